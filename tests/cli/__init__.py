"""Tests of the package pigeonpost.cli."""
