"""Tests of pigeonpost/alerts."""
