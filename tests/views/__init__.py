"""Tests of pigeonpost/views."""
