"""Tests of pigeonpost/http."""
