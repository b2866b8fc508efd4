"""Tests of pigeonpost/auth."""
