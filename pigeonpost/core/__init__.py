"""Foundations that know nothing of samples: errors, clock, settings files, start and stop, disk, network."""
