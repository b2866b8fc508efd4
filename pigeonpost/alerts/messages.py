"""Texts of the messages about alerts: one alert, or all alerts that are due at the same time.

People read local times with their offset from UTC (`core.format.stamp`), programs read UTC.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.alerts.contract import SEVERITIES, AlertMessage
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import age, counted, stamp

if TYPE_CHECKING:
    from pigeonpost.alerts.states import AlertState

MOST_LINES = 200  # alerts in the text of one message
_IN_SUBJECT = 3
_TIME = re.compile(r"(?: at|,) [0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}[+-][0-9:]{5}")  # with the result of `stamp`
_TITLES = {"info": "Notice", "warning": "Alert", "critical": "Critical alert"}
_REMEDIES = {
    "failed": "Check the sensor and its wiring; the page of the node shows the reason.",
    "flag": "Compare the value with another sensor; the limits are in [[limits]] and on the page of the sensor.",
    "silent": "Check the power and the network of the node. `control.py retire {node}` ends alerts about a node that"
    " is no longer used.",
    "gap": "These samples are lost. A larger outbox ([outbox] slots) survives a longer interruption.",
    "disk": "Delete or move files, or limit the stored time with [store] keep.",
    "store": "Follow the remedy in the text; `control.py check` shows the current state.",
    "voltage": "Use a stronger power supply and a short cable; the machine may crash, and its SD card may be damaged.",
    "refused": "If it is your node, give it the correct token; otherwise find out who uses this address.",
}


def alert_message(states: Sequence[AlertState], server: str, page: str, now_ms: int) -> AlertMessage:
    """Return one message about alerts that are due or repeated.

    Args:
        states: The alerts, at least one.
        server: Name of the server, or an empty string.
        page: Address of the server's page, or an empty string.
        now_ms: Current time in ms since 1970 (UTC).
    """
    severity = _highest(states)
    title = _TITLES[severity] + (", repeated" if all(state.sent for state in states) else "")
    if len(states) > 1:
        return _group("alert", title, states, [_line(state, now_ms) for state in states], server, page, now_ms)
    state = states[0]
    lines = [f"{state.alert_text}.", f"Condition of the alert: {_condition(state)}."]
    lines += [f"Since {stamp(state.since_ms)} ({age((now_ms - state.since_ms) / 1000)})."]
    lines += [f"Severity: {state.rule.severity}. Alert: {state.rule.name}."] if state.rule.name else []
    if remedy := _REMEDIES.get(state.rule.condition_kind):
        lines.append(remedy.format(node=state.key.node or "NODE"))
    return _message("alert", severity, f"{title}: {_line(state, now_ms)}", lines, states, server, page, now_ms)


def end_message(states: Sequence[AlertState], server: str, page: str, now_ms: int) -> AlertMessage:
    """Return one message about alerts that have ended.

    Args:
        states: The alerts, at least one.
        server: Name of the server, or an empty string.
        page: Address of the server's page, or an empty string.
        now_ms: Current time in ms since 1970 (UTC).
    """
    if len(states) > 1:
        return _group("over", "Resolved", states, [_end_line(state) for state in states], server, page, now_ms)
    state = states[0]
    lines = [f"{state.end_text or state.text}.", f"Condition of the alert: {_condition(state)}."]
    lines += [f"It lasted {_lasted(state)}, from {stamp(state.since_ms)} to {stamp(state.ended_ms)}."]
    return _message("over", _highest(states), f"Resolved: {_end_line(state)}", lines, states, server, page, now_ms)


def _group(
    kind: str, title: str, states: Sequence[AlertState], lines: Sequence[str], server: str, page: str, now_ms: int
) -> AlertMessage:
    few = "; ".join(lines[:_IN_SUBJECT])
    more = f"; and {len(states) - _IN_SUBJECT} more" if len(states) > _IN_SUBJECT else ""
    what = counted(len(states), "alert")
    subject = f"{title}: {what} at {stamp(now_ms)}: {_TIME.sub('', few)}{more}"
    first = f"{what} {'have ended' if kind == 'over' else 'within a short time'}, {stamp(now_ms)}:"
    listed = [f"- {line}" for line in lines[:MOST_LINES]]
    listed += [f"- and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return _message(kind, _highest(states), subject, [first, "", *listed], states, server, page, now_ms)


def _message(
    kind: str, severity: str, subject: str, lines: Sequence[str], states: Sequence[AlertState], server: str,
    page: str, now_ms: int,
) -> AlertMessage:  # fmt: skip
    if page:
        key = states[0].key
        path = f"nodes/{key.node}{f'/{key.sensor}' if key.sensor else ''}" if len(states) == 1 and key.node else ""
        lines = [*lines, f"{page.rstrip('/')}/{path}"]
    about = [_info(state) for state in states]
    single = about[0] if len(states) == 1 else {"node": "", "sensor": ""}
    info = {**single, "kind": kind, "severity": severity, "server": server, "time": rfc3339(now_ms), "alerts": about}
    return AlertMessage(" ".join(subject.split()), "\n".join(lines) + "\n", info, secrets.token_hex(16), severity, kind)


def _info(state: AlertState) -> dict[str, Any]:
    rule, key = state.rule, state.key
    return {
        "id": state.id, "condition": rule.condition_kind, "rule": rule.name, "node": key.node, "sensor": key.sensor,
        "detail": key.detail, "severity": rule.severity, "since": rfc3339(state.since_ms),
        "text": state.end_text or state.text if state.is_end_due else state.alert_text,
        "above": rule.above, "below": rule.below, "silent": rule.silent_s,
    }  # fmt: skip


def _condition(state: AlertState) -> str:
    """Return the condition of an alert, with the time for which it must last: `temperature above 40 °C for 60 s`."""
    rule = state.rule
    lasting = f" for {rule.for_s:g} s" if rule.for_s and rule.condition_kind != "failed" else ""
    return f"{rule.condition(state.unit)}{lasting}"


def _limit(state: AlertState) -> str:
    """Return the threshold of an alert with its unit, in parentheses; empty if there is none."""
    rule = state.rule
    if rule.condition_kind in ("value", "disk"):
        return rule.thresholds("MiB" if rule.condition_kind == "disk" else state.unit)
    return f"limit {rule.silent_s or state.value:.10g} s" if rule.condition_kind == "silent" else ""


def _line(state: AlertState, now_ms: int) -> str:
    limit = _limit(state)
    return f"{_with_time(state.alert_text, now_ms)}{f' ({limit})' if limit else ''}"


def _end_line(state: AlertState) -> str:
    limit = _limit(state)
    text = _with_time(state.end_text or state.text, state.ended_ms)
    return f"{text} (after {_lasted(state)}{f'; {limit}' if limit else ''})"


def _with_time(text: str, time_ms: int) -> str:
    """Return `text` with the local time `time_ms` (ms since 1970, UTC), unless it contains a time."""
    return text if _TIME.search(text) else f"{text}, {stamp(time_ms)}"


def _lasted(state: AlertState) -> str:
    return age(max(0, state.ended_ms - state.since_ms) / 1000)


def _highest(states: Sequence[AlertState]) -> str:
    return max((state.rule.severity for state in states), key=SEVERITIES.index)
