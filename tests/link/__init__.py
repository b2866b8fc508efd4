"""Tests of pigeonpost/link."""
