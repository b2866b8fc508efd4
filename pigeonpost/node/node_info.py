"""What a node reports of itself on every transport.

Runs on: node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pigeonpost.auth.key import Key


class NodeInfo:
    """What all sessions of a node tell about it, and the switch they share."""

    def __init__(
        self,
        name: str,
        sensors: Sequence[Mapping[str, Any]],
        every_s: float,
        key: Key | None,
        switch: Callable[[bool], Any],
        details: Callable[[], dict[str, Any]],
    ) -> None:
        """
        sensors  `{"name": ..., "unit": ...}` of each
        key      of the node's token; None: this machine alone may ask
        switch   turns sampling on or off, durably
        details  what STATUS adds, as JSON
        """
        self.name = name
        self.sensors = sensors
        self.every_s = every_s
        self.key = key
        self.switch = switch
        self.details = details
        self.last_sent_ms: int | None = None
        self.address = ("", 0)  # where it listens, once it does
