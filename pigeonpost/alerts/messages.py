"""Texts of the messages about alerts: one alert, or all alerts that are due at the same time.

A message about several alerts is stored with what it was written from (`_Source`), so that it can be written again with
only those alerts that a recipient wants.

People read local times with their offset from UTC (`core.format.stamp`), programs read UTC.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.alerts.contract import AlertMessage, rank
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


class _Source(NamedTuple):
    """Content of a message about several alerts, besides its `info`. It is stored with the message.

    Attributes:
        alerts: For each alert its line in a list of alerts, and its text in a message about it alone.
        is_repeated: True if the message is a repetition.
        page: Address of the server's page, or an empty string.
        time_ms: Time of the message in ms since 1970 (UTC).
    """

    alerts: Sequence[Sequence[str]]
    is_repeated: bool
    page: str
    time_ms: int


def alert_message(states: Sequence[AlertState], server: str, page: str, now_ms: int) -> AlertMessage:
    """Return one message about alerts that are due or repeated.

    Args:
        states: The alerts, at least one.
        server: Name of the server, or an empty string.
        page: Address of the server's page, or an empty string.
        now_ms: Current time in ms since 1970 (UTC).
    """
    alerts = [[_line(state, now_ms), _text(state, now_ms)] for state in states]
    source = _Source(alerts, all(state.sent for state in states), page, now_ms)
    return _message("alert", source, [_info(state) for state in states], server, secrets.token_hex(16))


def end_message(states: Sequence[AlertState], server: str, page: str, now_ms: int) -> AlertMessage:
    """Return one message about alerts that have ended.

    Args:
        states: The alerts, at least one.
        server: Name of the server, or an empty string.
        page: Address of the server's page, or an empty string.
        now_ms: Current time in ms since 1970 (UTC).
    """
    source = _Source([[_end_line(state), _end_text(state)] for state in states], False, page, now_ms)
    return _message("over", source, [_info(state) for state in states], server, secrets.token_hex(16))


def reduced(message: AlertMessage, kept: Sequence[int]) -> AlertMessage:
    """Return `message` with only some of its alerts, and the same id.

    Args:
        message: A message about alerts.
        kept: Indices of these alerts, at least one.
    """
    about: Sequence[Mapping[str, Any]] = message.info["alerts"]
    about = [about[index] for index in kept]
    if message.source is None or message.source.keys() != set(_Source._fields):
        return _reduced_former(message, about)
    source = _Source(**message.source)
    source = source._replace(alerts=[source.alerts[index] for index in kept])
    return _message(message.kind, source, about, message.info["server"], message.id)


def _reduced_former(message: AlertMessage, about: Sequence[Mapping[str, Any]]) -> AlertMessage:
    """Return `message` of another version, without a source or with an unknown one, with only the alerts `about`."""
    severity = max((str(alert.get("severity") or message.severity) for alert in about), key=rank)
    title = "Resolved" if message.kind == "over" else "Critical alert" if severity == "critical" else "Alert"
    texts = [str(alert.get("text", "")) for alert in about]
    text = "".join(f"{one}.\n" for one in texts)
    info = {**message.info, "alerts": list(about), "severity": severity}
    return message._replace(subject=f"{title}: {_first(texts)}", text=text, info=info, severity=severity)


def _message(
    kind: str, source: _Source, about: Sequence[Mapping[str, Any]], server: str, message_id: str
) -> AlertMessage:
    """Return a message about alerts; `about` are their objects in its `info`."""
    severity = max((str(alert["severity"]) for alert in about), key=rank)
    title = "Resolved" if kind == "over" else _TITLES[severity] + (", repeated" if source.is_repeated else "")
    is_single = len(about) == 1
    (line, text), *_ = source.alerts
    subject, lines = (f"{title}: {line}", [text]) if is_single else _group(kind, title, source)
    if kind == "alert" and (remedies := _remedies(about)):
        lines += remedies if is_single else ["", *remedies]
    if source.page:
        node, sensor = about[0]["node"], about[0]["sensor"]
        path = f"nodes/{node}{f'/{sensor}' if sensor else ''}" if is_single and node else ""
        lines.append(f"{source.page.rstrip('/')}/{path}")
    single = about[0] if is_single else {"node": "", "sensor": ""}
    more = {"kind": kind, "severity": severity, "server": server, "time": rfc3339(source.time_ms)}
    return AlertMessage(
        " ".join(subject.split()), "\n".join(lines) + "\n", {**single, **more, "alerts": list(about)}, message_id,
        severity, kind, source=None if is_single else source._asdict(),
    )  # fmt: skip


def _group(kind: str, title: str, source: _Source) -> tuple[str, list[str]]:
    """Return the subject and the first lines of the text of a message about several alerts."""
    lines, time = [line for line, _ in source.alerts], stamp(source.time_ms)
    what = counted(len(lines), "alert")
    subject = f"{title}: {what} at {time}: {_TIME.sub('', _first(lines))}"
    first = f"{what} {'have ended' if kind == 'over' else 'within a short time'}, {time}:"
    listed = [f"- {line}" for line in lines[:MOST_LINES]]
    listed += [f"- and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return subject, [first, "", *listed]


def _first(texts: Sequence[str]) -> str:
    """Return the first of the texts about alerts for a subject, with the number of the others."""
    more = f"; and {len(texts) - _IN_SUBJECT} more" if len(texts) > _IN_SUBJECT else ""
    return "; ".join(texts[:_IN_SUBJECT]) + more


def _remedies(about: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what to do about alerts: one line for each of their conditions."""
    nodes: dict[str, set[str]] = {}
    for alert in about:
        nodes.setdefault(alert["condition"], set()).add(alert["node"])
    return [
        _REMEDIES[condition].format(node=names.pop() or "NODE" if len(names) == 1 else "NODE")
        for condition, names in nodes.items() if condition in _REMEDIES
    ]  # fmt: skip


def _info(state: AlertState) -> dict[str, Any]:
    rule, key = state.rule, state.key
    return {
        "id": state.id, "condition": rule.condition_kind, "rule": rule.name, "node": key.node, "sensor": key.sensor,
        "detail": key.detail, "severity": rule.severity, "since": rfc3339(state.since_ms),
        "text": state.end_text or state.text if state.is_end_due else state.alert_text,
        "above": rule.above, "below": rule.below, "silent": rule.silent_s, "value": _value(state),
    }  # fmt: skip


def _value(state: AlertState) -> float | None:
    """Return the latest value of an alert about a value or about disk space; None for the other conditions."""
    return state.value if state.rule.condition_kind in ("value", "disk") else None


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


def _text(state: AlertState, now_ms: int) -> str:
    """Return the text of a message about one alert, without what to do."""
    lines = [f"{state.alert_text}.", f"Condition of the alert: {_condition(state)}."]
    lines += [f"Since {stamp(state.since_ms)} ({age((now_ms - state.since_ms) / 1000)})."]
    lines += [f"Severity: {state.rule.severity}. Alert: {state.rule.name}."] if state.rule.name else []
    return "\n".join(lines)


def _end_text(state: AlertState) -> str:
    """Return the text of a message about the end of one alert."""
    lasted = f"It lasted {_lasted(state)}, from {stamp(state.since_ms)} to {stamp(state.ended_ms)}."
    return f"{state.end_text or state.text}.\nCondition of the alert: {_condition(state)}.\n{lasted}"


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
