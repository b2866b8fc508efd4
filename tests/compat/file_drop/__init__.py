"""Tests of pigeonpost/compat/file_drop."""
