"""Current state of one node, and the faults of its sensors: the part of a snapshot that is made for every node.

It is made for each of possibly thousands of nodes whenever a page is rendered, and therefore does not query the store.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.core.format import MONTHS, clock
from pigeonpost.server.liveness import UNKNOWN_EVERY_S, wait_s
from pigeonpost.server.quality import LATE_INTERVALS
from pigeonpost.views.models import NodeNow, NodeStatus

if TYPE_CHECKING:
    from pigeonpost.server.latest_samples import LatestSample
    from pigeonpost.server.node_status import NodeState
    from pigeonpost.server.quality import QualityFlag

_BACKLOG_S = 300.0  # values that are older than this when they arrive are not current, if the node's clock is known
AHEAD_MS = 60_000  # a stored date that is further in the future than this is that of a wrong clock
_OUT_OF_RANGE = ("range", "rail", "stuck", "stale")  # without "jump", which ends with the next sample


class Moment(NamedTuple):
    """Time for which the state of the nodes is made.

    Attributes:
        now_ms: The time in ms since 1970.
        now_s: The time by the monotonic clock, in s.
        started_s: Start of the server by the monotonic clock, in s.
        commit_s: Interval between two commits, in s.
    """

    now_ms: int
    now_s: float
    started_s: float
    commit_s: float = 0.0


def node_now(
    name: str,
    state: NodeState | None,
    latest: LatestSample | None,
    received_s: float | None,
    retired_ms: int | None,
    moment: Moment,
) -> NodeNow:
    """Return the state of a node, without faults of its sensors.

    Args:
        name: Name of the node.
        state: State of its link; None if this server does not collect from it.
        latest: Its newest values, or None.
        received_s: Time at which this server received new samples of it last, by the monotonic clock in s; None if it
            has not received any in this run.
        retired_ms: Time when it was retired in ms since 1970, or None.
        moment: The present time.
    """
    now_ms, limit_s = moment.now_ms, wait_s(state, moment.commit_s)
    offset_ms = state.offset_ms if state else None
    last_ms = latest.taken_ms(offset_ms, now_ms, moment.now_s) if latest else None
    silent_s = None if received_s is None else moment.now_s - received_s
    awaited_s = state.awaited_s if state else None
    is_new = moment.now_s - (moment.started_s if awaited_s is None else awaited_s) <= limit_s  # for a first sample
    if silent_s is not None:
        is_late = silent_s > limit_s
    else:  # receive times of earlier runs, and of other servers that store samples here, are not known
        is_ahead = latest is not None and latest.sample.time_ms > now_ms + AHEAD_MS
        is_missed = is_ahead or (state is not None and not is_new)  # the age of a sample from the future is unknown
        is_late = is_missed or last_ms is None or now_ms - last_ms > 1000 * limit_s
    now = NodeNow(
        name, state.address if state else "", state, latest.sample if latest else None, last_ms, is_late, "past", "",
        last_ms, silent_s=silent_s, latest=latest,
        received_ms=None if silent_s is None else now_ms - round(1000 * silent_s),
        stale=() if latest is None else _stale(latest, state, is_late, last_ms, limit_s, moment),
        older_ms={name: part.taken_ms(offset_ms, now_ms, moment.now_s) for name, part in latest.older.items()}
        if latest else {},
    )  # fmt: skip
    if retired_ms is not None:
        return now._replace(condition="retired", words=_retired(retired_ms), since_ms=retired_ms)
    warnings = list(state.warnings.values()) if state and state.warnings else ()
    condition, words, since_ms = _condition(now, now_ms, is_new)
    return now._replace(condition=condition, words=words, since_ms=since_ms, warnings=warnings)


def _stale(
    latest: LatestSample, state: NodeState | None, is_late: bool, last_ms: int | None, limit_s: float, moment: Moment
) -> Collection[str]:
    """Return the sensors whose newest values are not current: too old, or part of a backlog."""
    has_clock = latest.received_s is not None and state is not None and state.offset_ms is not None
    is_backlog = has_clock and moment.now_ms - (last_ms or 0) > 1000 * max(limit_s, _BACKLOG_S)
    if is_late or is_backlog:
        return latest.sample.values.keys()
    if not latest.older:
        return ()
    long_s = max(limit_s, LATE_INTERVALS * UNKNOWN_EVERY_S)  # the interval of a message that has other sensors
    return [name for name, part in latest.older.items() if moment.now_s - (part.received_s or 0.0) > long_s]


def _retired(retired_ms: int) -> str:
    t = time.localtime(retired_ms // 1000)
    return f"retired on {t.tm_mday} {MONTHS[t.tm_mon - 1]} {t.tm_year}"


def _condition(now: NodeNow, now_ms: int, is_new: bool) -> tuple[NodeStatus, str, int | None]:
    """Return the state of a node, the text about it, and its start; `is_new` as in `node_now`."""
    state = now.state
    if state is None:
        return "past", "this server no longer collects from it", now.last_ms
    is_expected = state.calls_in and state.since_ms is None  # a client of an earlier run, which has not connected yet
    if not state.connected and state.since_ms is None and not is_expected:
        return "waiting", "not reached yet", None
    if not state.connected and not is_expected:
        return "lost", state.fault or "not connected", state.since_ms
    if state.on is False:
        return "off", "switched off", now.last_ms
    if now.last_ms is None or (now.is_late and is_new):
        words = "has connected; waiting for a sample" if state.calls_in else "connected; waiting for a sample"
        words = state.fault if is_expected and not state.connected else words
        return "waiting", words, state.since_ms
    if not now.is_late:
        return "reporting", "reporting", state.since_ms
    since = "the server's start" if now.received_ms is None else clock(now.received_ms, now_ms)
    but = "" if state.calls_in else "connected, but "
    return "late", f"{but}has sent nothing since {since}", now.received_ms


# --------------------------------------------------------------------------------------------------- failing sensors


def failing(now: NodeNow) -> Iterator[tuple[str, str]]:
    """Yield the name and the fault of each sensor of the reporting node `now` that has no value."""
    sample, state = now.sample, now.state
    if sample is None or state is None:
        return
    names = [sensor["name"] for sensor in state.sensors] or sample.values
    for name in names:
        if fault := fault_of(name, now):
            yield name, fault


def fault_of(name: str, now: NodeNow) -> str:
    """Return the reason why the sensor `name` of the node `now` has no value; empty if it has one.

    Each message of a client may contain other sensors, so one that it has not sent since this server's start has no
    fault.
    """
    sample = now.sample
    if sample is None:
        return "no sample yet"
    if sample.values.get(name) is not None:
        return ""
    if name not in sample.values:
        return "" if now.state is not None and now.state.calls_in else "not in the last sample"
    return str(sample.errors.get(name) or "no reading")[:200]


def is_out_of_range(flag: QualityFlag) -> bool:
    """Return True if the quality `flag` applies until another value arrives, unlike a jump."""
    return flag.kind in _OUT_OF_RANGE
