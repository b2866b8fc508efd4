"""State of one node as the server last saw it, and the link by which it can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class NodeState:
    """State of one node, for people. Written by its session, read by any thread."""

    def __init__(self, address: str, expected: str = "") -> None:
        """`expected` is the name that the settings give the node at this address; empty: any node."""
        self.address = address
        self.expected = expected
        self.name = expected  # until the node has told its own
        self.takes_orders = False  # it connects to us, and can be asked: its transport has a way
        self.calls_in = False  # it connects to us, and this server never to it
        self.connected = False
        self.since_ms: int | None = None  # when it was connected, or was lost
        self.fault = "not reached yet"  # why it is not connected; empty when it is
        self.fingerprint = ""  # SHA-256 of the certificate that it showed last; empty: none, the link is plain text
        self.on: bool | None = None
        self.last_sent: str | None = None  # local time of the last sample sent, as the node says it: HH:MM:SS
        self.details: Mapping[str, Any] = {}  # of its last STATUS
        self.sensors: list[dict[str, Any]] = []
        self.every_s: float | None = None
        self.offset_ms: int | None = None  # its date minus ours
        self.round_trip_ms: float | None = None
        self.checked_ms: int | None = None  # when its last STATUS came
        self.warnings: Mapping[str, str] = {}  # what is wrong with it though it may be connected, by kind

    def record_contact(self, now_ms: int) -> None:
        """The node has connected or sent something: it is connected since now, unless it was before."""
        if not self.connected:
            self.since_ms = now_ms
        self.connected, self.fault = True, ""

    def warn(self, kind: str, text: str) -> None:
        """Record what is wrong with the node, and the remedy, for its page and `control.py check`; empty: nothing."""
        rest = {other: said for other, said in self.warnings.items() if other != kind}
        self.warnings = {**rest, kind: text} if text else rest


class AskNode(Protocol):
    """Sends SEND, with the state wanted, or CHECK to a node. Returns True if it has answered within `limit_s`."""

    def __call__(self, word: str, *args: bool, limit_s: float = 5.0) -> bool: ...


class NodeLink(Protocol):
    """A node that this server collects from, or that brings its samples: what pages, checks and alerts use of it."""

    @property
    def state(self) -> NodeState: ...

    def ask(self, word: str, *args: bool, limit_s: float = 5.0) -> bool:
        """Ask the node, as an AskNode does; the answer is in `state` then."""


class MovableLink(NodeLink, Protocol):
    """A node that this server connects to."""

    def move(self, address: tuple[str, int]) -> None:
        """Connect to `address` next."""

    def end(self) -> None:
        """Begin to stop; returns at once."""
