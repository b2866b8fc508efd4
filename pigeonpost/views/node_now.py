"""Current state of one node, and the faults of its sensors: the part of a snapshot that is made for every node.

It is made for each of possibly thousands of nodes whenever a page is rendered, and therefore does not query the store.
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

_USUAL_EVERY_S = 60.0  # assumed sampling interval of a node that was not reached yet
_CALLS_EVERY_S = 3600.0  # assumed interval of a node that connects to this server, until its interval is known
_OUT_OF_RANGE = ("range", "rail", "stuck", "stale")  # without "jump", which ends with the next sample


def node_now(name: str, state: NodeState | None, sample: Sample | None, retired_ms: int | None, now_ms: int) -> NodeNow:
    """Return the state of a node, without faults of its sensors.

    Args:
        name: Name of the node.
        state: State of its link; None if this server does not collect from it.
        sample: Its last sample, or None.
        retired_ms: Time when it was retired in ms since 1970, or None.
        now_ms: Current time in ms since 1970.
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
    """Return the state of a node, the text about it, and its start."""
    if state is None:
        return "past", "this server no longer collects from it", last_ms
    if not state.connected and state.since_ms is None:
        return "waiting", "not reached yet", None
    if not state.connected:
        return "lost", state.fault or "not connected", state.since_ms
    if state.on is False:
        return "off", "switched off", last_ms
    if last_ms is None or (is_late and state.since_ms is not None and now_ms - state.since_ms < wait_ms(state)):
        words = "has connected; waiting for a sample" if state.calls_in else "connected; waiting for a sample"
        return "waiting", words, state.since_ms
    if is_late and state.calls_in:
        return "late", f"has sent nothing since {clock(last_ms, now_ms)}", last_ms
    if is_late:
        return "late", f"connected, but has sent nothing since {clock(last_ms, now_ms)}", last_ms
    return "reporting", "reporting", state.since_ms


def wait_ms(state: NodeState | None) -> float:
    """Return the age in ms above which the last sample of a node is late. `state` is the state of its link, or None.

    After connecting, a node has the same time for its first sample.
    """
    usual_s = _CALLS_EVERY_S if state and state.calls_in else _USUAL_EVERY_S
    return 1000 * (LATE_INTERVALS * ((state.every_s if state else None) or usual_s) + LATE_S)


# --------------------------------------------------------------------------------------------------- failing sensors


def failing(now: NodeNow) -> Iterator[tuple[str, str]]:
    """Yield the name and the fault of each sensor of the reporting node `now` that has no value."""
    sample, state = now.sample, now.state
    if sample is None or state is None:
        return
    names = [sensor["name"] for sensor in state.sensors] or sample.values
    for name in names:
        if sample.values.get(name) is None:
            yield name, fault_of(name, sample)


def fault_of(name: str, sample: Sample | None) -> str:
    """Return the reason why the sensor `name` has no value in `sample`; empty if it has one."""
    if sample is None:
        return "no sample yet"
    if sample.values.get(name) is not None:
        return ""
    return str(sample.errors.get(name) or ("no reading" if name in sample.values else "not in the last sample"))[:200]


def is_out_of_range(flag: QualityFlag) -> bool:
    """Return True if the quality `flag` applies until another value arrives, unlike a jump."""
    return flag.kind in _OUT_OF_RANGE
