"""Detection of steps of the clocks of node and server between two measurements of their difference."""

from __future__ import annotations

from typing import NamedTuple

_LIVE_MS = 5000  # a sample that took longer from the node to this server than the last one is not compared
_STEP_MS = 1000  # a smaller change of the difference is measured with the next STATUS


class _Reading(NamedTuple):
    """Date and uptime of the node, and date and monotonic clock of the server, at one time and in ms."""

    node_ms: float
    up_ms: float
    wall_ms: float
    mono_ms: float


class ClockSteps:
    """Clocks of a node and of this server. Their dates can be set; uptime and monotonic clock never step.

    A sample that has just been taken contains the present date and uptime of its node. A sample of a backlog contains
    earlier ones, so its uptime is too low for the time of its arrival, and it is ignored.
    """

    def __init__(self) -> None:
        """Initialise without a reading."""
        self._last: _Reading | None = None

    def start(self, node_ms: int, up_ms: int, wall_ms: int, now_s: float) -> None:
        """Record the clocks at a measurement of their difference.

        Args:
            node_ms: Date of the node, in ms since 1970 (UTC).
            up_ms: Uptime of the node, in ms.
            wall_ms: Date of this server, in ms since 1970 (UTC).
            now_s: Monotonic clock of this server, in s.
        """
        self._last = _Reading(node_ms, up_ms, wall_ms, now_s * 1000)

    def step_ms(self, node_ms: int, up_ms: int, wall_ms: int, now_s: float) -> int:
        """Return the change of the difference since the last reading in ms, or 0 if there is none.

        Args:
            node_ms: Date of a sample that has just been received, in ms since 1970 (UTC).
            up_ms: Uptime of the node at this sample, in ms.
            wall_ms: Date of this server, in ms since 1970 (UTC).
            now_s: Monotonic clock of this server, in s.
        """
        new, last = _Reading(node_ms, up_ms, wall_ms, now_s * 1000), self._last
        if last is None or abs(new.up_ms - last.up_ms - (new.mono_ms - last.mono_ms)) > _LIVE_MS:
            return 0
        self._last = new
        node_step = new.node_ms - last.node_ms - (new.up_ms - last.up_ms)
        server_step = new.wall_ms - last.wall_ms - (new.mono_ms - last.mono_ms)
        step = round(node_step - server_step)
        return step if abs(step) >= _STEP_MS else 0
