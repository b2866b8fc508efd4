"""Tests of pigeonpost/integrations."""
