"""Faults that name nodes which connect to this server and are refused.

Such a client has proven nothing. So only names that are known here are shown, none that was accepted in the last
ACCEPTED_S, and each is noted at most once a minute.

May be used by any thread. `_lock` guards the times and the faults of this transport, and is held for one lookup or
change: otherwise a fault could be set after its node was accepted, and stay.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pigeonpost.transports.contract import ServerContext

NOTE_EVERY_S = 60.0  # a refused node is noted at most so often
ACCEPTED_S = 150.0  # after which silence of the true node somebody else's attempt is shown: twice its longest pause
SHOWN_S = 600.0  # after the last attempt


class RefusedNodes:
    """The nodes that one transport refuses now, as faults of this server."""

    def __init__(self, transport: str, context: ServerContext) -> None:
        """`transport` is its name for people: "push"."""
        self._transport = transport
        self._context = context
        self._lock = threading.Lock()
        self._refused_s: dict[str, float] = {}
        self._accepted_s: dict[str, float] = {}
        context.faults.add_check(self._forget_old)

    def refused(self, node: str, peer: str, why: str) -> None:
        """Note that a client at `peer` which calls itself `node` is refused. `why`: with the remedy."""
        context, now_s = self._context, self._context.clock.monotonic()
        if node not in context.tokens and context.unnumbered_sources.find(node) is None:
            return
        with self._lock:
            if now_s - self._accepted_s.get(node, now_s - ACCEPTED_S) < ACCEPTED_S:
                return
            if now_s - self._refused_s.get(node, now_s - NOTE_EVERY_S) < NOTE_EVERY_S:
                return
            self._refused_s[node] = now_s
            context.faults.set(self._subject(node), f"a client at {peer} that calls itself {node} is refused: {why}")

    def accepted(self, node: str) -> None:
        """Note that the node has proven its token."""
        with self._lock:
            self._accepted_s[node] = self._context.clock.monotonic()
            if self._refused_s.pop(node, None) is not None:
                self._context.faults.set(self._subject(node), "")

    def _subject(self, node: str) -> str:
        return f"node {node} ({self._transport})"

    def _forget_old(self) -> None:
        if not self._refused_s:
            return
        now_s = self._context.clock.monotonic()
        with self._lock:
            old = [node for node, seen_s in self._refused_s.items() if now_s - seen_s > SHOWN_S]
            for node in old:
                del self._refused_s[node]
                self._context.faults.set(self._subject(node), "")
