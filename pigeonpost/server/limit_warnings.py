"""Warnings about nodes that exceeded a limit, shown until SHOWN_S seconds after the last time.

Any thread may use them. `_lock` guards the times, and is held while they are read or changed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pigeonpost.core.clock import Clock
from pigeonpost.core.faults import Faults
from pigeonpost.server.node_status import NodeLink

SHOWN_S = 3600.0  # time after which the warning disappears if the node no longer exceeds the limit


class LimitWarnings:
    """Warnings on the pages of the nodes and in `control.py check`."""

    def __init__(self, links: Sequence[NodeLink], faults: Faults, clock: Clock) -> None:
        """Initialise without warnings.

        Args:
            links: Links to the nodes. The sequence may grow.
            faults: Register of faults. Each query of it also removes old warnings.
            clock: Clock of the server.
        """
        self._links, self._clock = links, clock
        self._lock = threading.Lock()
        self._last_s: dict[tuple[str, str], float] = {}  # by node and kind of limit
        faults.add_check(self._clear_old)

    def warn(self, node: str, kind: str, text: str) -> None:
        """Show that `node` exceeded a limit of this `kind`, with the description `text`. Called by the Ingestor."""
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
