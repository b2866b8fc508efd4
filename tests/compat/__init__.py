"""Tests of pigeonpost/compat."""
