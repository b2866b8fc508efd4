"""Tests of pigeonpost/storage/csv."""
