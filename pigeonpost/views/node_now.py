"""How one node is now: its state, in words, and which of its sensors are in trouble. The cheap part of a snapshot.

Made for every node whenever a page is, so of thousands: it reads no store, and nothing that a page may not need.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pigeonpost.core.format import MONTHS, clock
from pigeonpost.server.quality import LATE_INTERVALS, LATE_S
from pigeonpost.views.models import NodeNow, NodeStatus

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeState
    from pigeonpost.server.quality import QualityFlag
    from protocol import Sample

_USUAL_EVERY_S = 60.0  # for a node that was not reached, so that nobody knows its interval
_CALLS_EVERY_S = 3600.0  # and for one that calls in, and has called once so far
_OUT_OF_RANGE = ("range", "rail", "stuck", "stale")  # a jump is over with the next sample


def node_now(name: str, state: NodeState | None, sample: Sample | None, retired_ms: int | None, now_ms: int) -> NodeNow:
    """Return how a node is, without its troubles.

    retired_ms  since when it is retired; None: it is not
    """
    last_ms = sample.time_ms - ((state.offset_ms if state else None) or 0) if sample else None
    is_late = last_ms is None or now_ms - last_ms > wait_ms(state)
    address = state.address if state else ""
    if retired_ms is not None:
        return NodeNow(name, address, state, sample, last_ms, is_late, "retired", _retired(retired_ms), retired_ms)
    warnings = list(state.warnings.values()) if state and state.warnings else ()
    return NodeNow(
        name, address, state, sample, last_ms, is_late, *_condition(state, last_ms, is_late, now_ms), warnings
    )


def _retired(retired_ms: int) -> str:
    t = time.localtime(retired_ms // 1000)
    return f"retired on {t.tm_mday} {MONTHS[t.tm_mon - 1]} {t.tm_year}"


def _condition(
    state: NodeState | None, last_ms: int | None, is_late: bool, now_ms: int
) -> tuple[NodeStatus, str, int | None]:
    """Return a node's state, its text, and its beginning."""
    if state is None:
        return "past", "nobody collects from it now", last_ms
    if not state.connected and state.since_ms is None:
        return "waiting", "not reached yet", None
    if not state.connected:
        return "lost", state.fault or "not connected", state.since_ms
    if state.on is False:
        return "off", "switched off", last_ms
    if last_ms is None or (is_late and state.since_ms is not None and now_ms - state.since_ms < wait_ms(state)):
        words = "has called, waiting for a sample" if state.calls_in else "connected, waiting for a sample"
        return "waiting", words, state.since_ms
    if is_late and state.calls_in:
        return "late", f"has brought nothing since {clock(last_ms, now_ms)}", last_ms
    if is_late:
        return "late", f"connected, but sends nothing since {clock(last_ms, now_ms)}", last_ms
    return "reporting", "reporting", state.since_ms


def wait_ms(state: NodeState | None) -> float:
    """Return how old a node's last sample may be, which is also the time for the first one after connecting."""
    usual_s = _CALLS_EVERY_S if state and state.calls_in else _USUAL_EVERY_S
    return 1000 * (LATE_INTERVALS * ((state.every_s if state else None) or usual_s) + LATE_S)


# ------------------------------------------------------------------------------------------------ sensors in trouble


def failing(now: NodeNow) -> Iterator[tuple[str, str]]:
    """Yield name and fault of each sensor that a reporting node should have a value of, and has none."""
    sample, state = now.sample, now.state
    if sample is None or state is None:
        return
    names = [sensor["name"] for sensor in state.sensors] or sample.values
    for name in names:
        if sample.values.get(name) is None:
            yield name, fault_of(name, sample)


def fault_of(name: str, sample: Sample | None) -> str:
    """Return why a sensor has no value; empty: it has one."""
    if sample is None:
        return "no sample yet"
    if sample.values.get(name) is not None:
        return ""
    return str(sample.errors.get(name) or ("no reading" if name in sample.values else "not in the last sample"))[:200]


def is_out_of_range(flag: QualityFlag) -> bool:
    """Return True for a quality flag that lasts as long as the sensor's value does not change."""
    return flag.kind in _OUT_OF_RANGE
