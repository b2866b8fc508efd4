"""Tests of pigeonpost/storage/sqlite."""
