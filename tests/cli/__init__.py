"""Tests of pigeonpost/cli."""
