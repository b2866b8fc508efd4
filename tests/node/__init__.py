"""Tests of pigeonpost/node."""
