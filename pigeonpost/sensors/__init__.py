"""Sensor sources, one module per kind."""
