"""Tests of pigeonpost/web."""
