"""Tests of pigeonpost/transports."""
