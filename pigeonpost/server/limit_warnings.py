"""Warnings of nodes of which something was over a limit: shown until SHOWN_S after the last time.

May be used by any thread; `_lock` guards the times, and is held for one look at them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pigeonpost.core.clock import Clock
from pigeonpost.core.faults import Faults
from pigeonpost.server.node_status import NodeLink

SHOWN_S = 3600.0  # a node that was mended is well again after that


class LimitWarnings:
    """Shows them on the pages of their nodes, and in `control.py check`."""

    def __init__(self, links: Sequence[NodeLink], faults: Faults, clock: Clock) -> None:
        self._links, self._clock = links, clock
        self._lock = threading.Lock()
        self._last_s: dict[tuple[str, str], float] = {}  # by node and kind of limit
        faults.add_check(self._clear_old)

    def warn(self, node: str, kind: str, text: str) -> None:
        """Show that something of a node was over a limit. Called by the Ingestor."""
        with self._lock:
            self._last_s[node, kind] = self._clock.monotonic()
            self._set(node, kind, text)

    def _set(self, node: str, kind: str, text: str) -> None:
        for link in list(self._links):
            if link.state.name == node:
                link.state.warn(kind, text)

    def _clear_old(self) -> None:
        now_s = self._clock.monotonic()
        with self._lock:
            for key in [key for key, last_s in self._last_s.items() if now_s - last_s > SHOWN_S]:
                del self._last_s[key]
                self._set(*key, "")
