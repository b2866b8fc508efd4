"""Tests of pigeonpost/importing."""
