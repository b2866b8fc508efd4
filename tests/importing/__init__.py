"""Tests of the package pigeonpost.importing."""
