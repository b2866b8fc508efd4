"""Samples as they travel: their types, and how the link writes and reads them. No I/O, no clock."""
