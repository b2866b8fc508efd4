"""Expected interval of the samples of a node, and the time after which it is late.

All times are those of this server's monotonic clock, so no correction of a clock makes a node late. Any thread may call
`wait_s`; the thread that receives from a client uses its UsualInterval. Errors: none.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pigeonpost.server.quality import late_after_s

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeState

USUAL_EVERY_S = 60.0  # assumed sampling interval of a node that was not reached yet
UNKNOWN_EVERY_S = 3600.0  # assumed interval of a node that connects to this server, until its interval is known
FLOOR_S = 60.0  # shortest assumed interval of such a node
_VISIT_S = 30.0  # calls within this time are one visit: clients send several messages at once
LEARNED_VISITS = 8  # number of intervals after which the interval of a client is known
_RECENT_VISITS = 16  # intervals that are remembered at any age
_REMEMBERED_S = 7 * 86_400.0  # time for which a long interval is remembered
_MOST_LONG = 16  # remembered long intervals


def wait_s(state: NodeState | None, commit_s: float = 0.0) -> float:
    """Return the time without new samples in seconds after which a node is late.

    After connecting, and after the start of the server, a node has the same time for its first sample.

    Args:
        state: State of its link, or None.
        commit_s: Interval between two commits in seconds: samples are received when they are committed.
    """
    usual_s = UNKNOWN_EVERY_S if state and state.calls_in else USUAL_EVERY_S
    return late_after_s((state.every_s if state else None) or usual_s, commit_s)


def is_silent(state: NodeState, received_s: float | None, now_s: float, commit_s: float = 0.0) -> bool:
    """Return True if a connected node should have sent a new sample, but has not.

    Args:
        state: State of its link.
        received_s: Time at which new samples of it were received last, or None.
        now_s: Current time.
        commit_s: Interval between two commits.
    """
    times_s = [time_s for time_s in (received_s, state.awaited_s) if time_s is not None]
    return not times_s or now_s - max(times_s) > wait_s(state, commit_s)


class UsualInterval:
    """Interval between the visits of a client that reports none, learned from several visits.

    Calls within _VISIT_S are one visit. After LEARNED_VISITS intervals, the result is the second longest of the last
    _RECENT_VISITS intervals and of the long ones in the last _REMEMBERED_S: a single outage does not count, but a pause
    that returns, for example every night, does. Before, it is the longest interval if that exceeds UNKNOWN_EVERY_S and
    the interval in an earlier run; otherwise, it is the latter.
    """

    def __init__(self, former_s: float | None = None) -> None:
        """Initialise without visits. `former_s` is the interval in an earlier run in seconds, or None."""
        self._former_s = self._usual_s = former_s
        self._began_s: float | None = None  # start of the current visit
        self._recent: deque[float] = deque(maxlen=_RECENT_VISITS)
        self._long: list[tuple[float, float]] = []  # the longest intervals that are not in `_recent`, and their ends
        self._count = 0

    def record(self, now_s: float) -> float | None:
        """Record a call at `now_s`, and return the expected interval in seconds, or None if it is not known yet."""
        if self._began_s is None:
            self._began_s = now_s
        elif now_s - self._began_s >= _VISIT_S:
            if len(self._recent) == _RECENT_VISITS:
                self._long = sorted([*self._long, (self._recent[0], now_s)])[-_MOST_LONG:]
            self._recent.append(now_s - self._began_s)
            self._began_s = now_s
            self._count += 1
            self._long = [(interval_s, end_s) for interval_s, end_s in self._long if now_s - end_s < _REMEMBERED_S]
            self._usual_s = self._interval_s()  # here, because most calls are part of a visit
        return self._usual_s

    def _interval_s(self) -> float | None:
        intervals = sorted([*self._recent, *(interval_s for interval_s, _ in self._long)])
        if self._count >= LEARNED_VISITS:
            return max(FLOOR_S, intervals[-2])
        longest_s = intervals[-1]
        return longest_s if longest_s > max(UNKNOWN_EVERY_S, self._former_s or 0.0) else self._former_s
