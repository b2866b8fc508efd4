"""Modules that do not depend on samples: errors, clock, settings files, start and stop, disk, network."""
