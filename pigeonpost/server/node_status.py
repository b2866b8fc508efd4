"""State of one node as the server last saw it.

Runs on: server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NodeState:
    """What the server knows of one node, for people to look at. Written by the session, read by anybody."""

    def __init__(self, address: str, expected: str = "") -> None:
        """`expected` is the name that the settings give the node at this address; empty: whoever answers there."""
        self.address = address
        self.expected = expected
        self.name = expected  # until the node has told its own
        self.takes_orders = False  # one that calls in, and then does as it was told meanwhile
        self.calls_in = False  # nobody connects to it: it brings its samples by itself
        self.connected = False
        self.since_ms: int | None = None  # when it was connected, or was lost
        self.fault = "not reached yet"  # why it is not connected; empty when it is
        self.on: bool | None = None
        self.last_sent: str | None = None  # local time of the last sample sent, as the node says it: HH:MM:SS
        self.details: Mapping[str, Any] = {}  # of its last STATUS
        self.sensors: list[dict[str, Any]] = []
        self.every_s: float | None = None
        self.offset_ms: int | None = None  # its date minus ours
        self.round_trip_ms: float | None = None
        self.checked_ms: int | None = None  # when its last STATUS came
