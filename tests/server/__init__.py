"""Tests of pigeonpost/server."""
