"""Limits of the HTTP push transport."""

from __future__ import annotations

MOST_EPOCHS = 400  # that one request asks about: an address has 8 KiB at most
