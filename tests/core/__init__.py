"""Tests of pigeonpost/core."""
