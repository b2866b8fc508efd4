"""Faults about nodes that connect to this server and are rejected.

A rejected client has not proved its name. So a fault is set only for a known node, and only if no client with that name
was accepted in the last ACCEPTED_S seconds. A fault is set at most once a minute for each node.

Any thread may use it. `_lock` guards the times and the faults of this transport, and is held for one lookup or change.
Without it, a fault could be set just after its node was accepted, and would remain.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pigeonpost.transports.contract import ServerContext

NOTE_EVERY_S = 60.0  # minimum time between two faults of a node
ACCEPTED_S = 150.0  # no fault is set within this time after the node was accepted: twice the longest pause of a node
SHOWN_S = 600.0  # a fault is shown for this time after the last attempt


class RefusedNodes:
    """Faults about the rejected nodes of one transport.

    Args:
        transport: Name of the transport in the faults, such as "push".
        context: The server's components.
    """

    def __init__(self, transport: str, context: ServerContext) -> None:
        self._transport = transport
        self._context = context
        self._lock = threading.Lock()
        self._refused_s: dict[str, float] = {}
        self._accepted_s: dict[str, float] = {}
        context.faults.add_check(self._clear_old)

    def refused(self, node: str, peer: str, why: str) -> None:
        """Record that a client is rejected, and set the fault of the node whose name it reports.

        Args:
            node: Name that the client reports.
            peer: Address of the client.
            why: The reason, with the remedy.
        """
        context, now_s = self._context, self._context.clock.monotonic()
        if node not in context.tokens and context.unnumbered_sources.find(node) is None:
            return
        with self._lock:
            if now_s - self._accepted_s.get(node, now_s - ACCEPTED_S) < ACCEPTED_S:
                return
            if now_s - self._refused_s.get(node, now_s - NOTE_EVERY_S) < NOTE_EVERY_S:
                return
            self._refused_s[node] = now_s
            context.faults.set(
                self._subject(node), f"a client at {peer} that reports the name {node} is rejected: {why}"
            )

    def accepted(self, node: str) -> None:
        """Record that `node` has proved its token, and clear its fault."""
        with self._lock:
            self._accepted_s[node] = self._context.clock.monotonic()
            if self._refused_s.pop(node, None) is not None:
                self._context.faults.set(self._subject(node), "")

    def _subject(self, node: str) -> str:
        return f"node {node} ({self._transport})"

    def _clear_old(self) -> None:
        if not self._refused_s:
            return
        now_s = self._context.clock.monotonic()
        with self._lock:
            old = [node for node, seen_s in self._refused_s.items() if now_s - seen_s > SHOWN_S]
            for node in old:
                del self._refused_s[node]
                self._context.faults.set(self._subject(node), "")
