"""Description of a node, common to all its transports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pigeonpost.auth.key import Key
from pigeonpost.core.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class NodeInfo:
    """Properties of a node that all its transports report, and the function that turns sampling on and off.

    Attributes:
        last_sent_ms: Time at which the last sample sent was taken, in milliseconds since 1970 (UTC), or None.
        address: Host and port of the link, once it is listening; until then ("", 0).
    """

    def __init__(
        self,
        name: str,
        sensors: Sequence[Mapping[str, Any]],
        every_s: float,
        key: Key | None,
        switch: Callable[[bool], Any],
        details: Callable[[], dict[str, Any]],
    ) -> None:
        """Create the description.

        Args:
            name: Name of the node.
            sensors: Description of each channel, as in HELLO: `{"name": ..., "unit": ...}`.
            every_s: Sampling interval in seconds.
            key: Key of the node's token. None admits only clients on this machine.
            switch: Function that turns sampling on or off, durably.
            details: Function that returns the additional fields of the response to STATUS.
        """
        self.name = name
        self.sensors = sensors
        self.every_s = every_s
        self.key = key
        self.switch = switch
        self.details = details
        self.last_sent_ms: int | None = None
        self.address = ("", 0)
