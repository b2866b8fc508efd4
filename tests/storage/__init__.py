"""Tests of pigeonpost/storage."""
