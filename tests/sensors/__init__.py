"""Tests of pigeonpost/sensors."""
