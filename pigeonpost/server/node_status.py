"""Last known state of a node, and the interfaces of the links to nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class NodeState:
    """Last known state of a node. Its session writes it; any thread may read it.

    Attributes:
        address: Address of the node, HOST:PORT; empty if the node connects to this server.
        expected: Name that the settings assign to the node at this address; empty if they assign none.
        name: Name of the node; `expected` until the node has reported its name.
        takes_orders: True if the node connects to this server with a transport that can deliver commands.
        calls_in: True if the node connects to this server, which never connects to it.
        connected: True if the node is connected.
        since_ms: Time at which it was connected or lost, in ms since 1970 (UTC).
        awaited_s: Time from which samples are awaited, by the server's monotonic clock in s: it was connected or
            switched on.
        fault: Reason why the node is not connected; empty if it is.
        fingerprint: SHA-256 of the node's last certificate; empty if the link is in plain text.
        on: True if the node is sampling, False if not, None if it is unknown.
        last_sent: Time at which the node sent its last sample, HH:MM:SS in its local time, as it reports it.
        details: Content of the last STATUS.
        sensors: Descriptions of the sensors, as reported by the node.
        every_s: Sampling interval in seconds.
        offset_ms: Clock of the node minus clock of the server, in ms.
        round_trip_ms: Round-trip time of the link, in ms.
        checked_ms: Time of the last STATUS, in ms since 1970 (UTC).
        warnings: Warnings about the node by kind. The node may be connected nevertheless.
    """

    def __init__(self, address: str, expected: str = "") -> None:
        """Initialise the state of a node that is not connected yet. `address` and `expected` are the attributes."""
        self.address = address
        self.expected = expected
        self.name = expected
        self.takes_orders = False
        self.calls_in = False
        self.connected = False
        self.since_ms: int | None = None
        self.awaited_s: float | None = None
        self.fault = "not reached yet"
        self.fingerprint = ""
        self.on: bool | None = None
        self.last_sent: str | None = None
        self.details: Mapping[str, Any] = {}
        self.sensors: list[dict[str, Any]] = []
        self.every_s: float | None = None
        self.offset_ms: int | None = None
        self.round_trip_ms: float | None = None
        self.checked_ms: int | None = None
        self.warnings: Mapping[str, str] = {}

    def record_contact(self, now_ms: int, now_s: float) -> None:
        """Record that the node has connected or sent something.

        Args:
            now_ms: Current time, in ms since 1970 (UTC).
            now_s: Current time by the monotonic clock, in s.
        """
        if not self.connected:
            self.since_ms, self.awaited_s = now_ms, now_s
        self.connected, self.fault = True, ""

    def record_sampling(self, on: bool, now_s: float) -> None:
        """Record that the node has reported its sampling state `on` at `now_s` by the monotonic clock."""
        if on and self.on is False:
            self.awaited_s = now_s
        self.on = on

    def warn(self, kind: str, text: str) -> None:
        """Set the warning of a `kind`, for the page of the node and `control.py check`; remove it if `text` is empty.

        The text contains the remedy.
        """
        rest = {other: message for other, message in self.warnings.items() if other != kind}
        self.warnings = {**rest, kind: text} if text else rest


class AskNode(Protocol):
    """Function that sends the command SEND (with the wanted state) or CHECK to a node.

    It returns True if the node has answered within `limit_s` seconds.
    """

    def __call__(self, word: str, *args: bool, limit_s: float = 5.0) -> bool: ...


class NodeLink(Protocol):
    """Link to a node, on which either side connects to the other. Pages, checks and alerts use this interface."""

    @property
    def state(self) -> NodeState:
        """Last known state of the node."""

    def ask(self, word: str, *args: bool, limit_s: float = 5.0) -> bool:
        """Send the command `word` with `args` to the node, and return True if it answers within `limit_s` seconds.

        The commands are those of AskNode. The answer is then in `state`.
        """


class MovableLink(NodeLink, Protocol):
    """Link on which this server connects to a node."""

    def move(self, address: tuple[str, int]) -> None:
        """Use `address` (host, port) for the next connection."""

    def end(self) -> None:
        """End the link, without waiting until it has ended."""
