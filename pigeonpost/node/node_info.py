"""What a node reports of itself on every transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pigeonpost.auth.key import Key
from pigeonpost.core.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class NodeInfo:
    """Facts about a node that all its transports report, and the switch that they share."""

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
