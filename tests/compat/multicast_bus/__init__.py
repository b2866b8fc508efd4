"""Tests of pigeonpost/compat/multicast_bus."""
