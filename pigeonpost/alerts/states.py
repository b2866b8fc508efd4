"""State of one alert rule for one node, sensor or fault, and the steps from a condition to its messages.

    condition met for the time `for`      -> the alert is open, and its message is due (owed)
    message in the queue                  -> the alert is reported
    condition not met                     -> the alert has ended; if it was reported, the message about its end is due
    condition met again before that       -> it is still the same alert, and no message is sent

So each message about an alert is followed by exactly one about its end, unless its node is retired. All of this is
stored, and is the same after a restart. Only Alerts (engine.py) uses these objects, with its lock.

An alert that begins and ends again and again would send a message each time. After FREE_ENDS ends, each further end is
therefore reported only if the condition was not met for some time, which is doubled each time.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.alerts.contract import ActiveAlert
from pigeonpost.alerts.rules import Rule

if TYPE_CHECKING:
    from pigeonpost.server.node_register import NodeRegister

FREE_ENDS = 3  # ends of an alert that are reported without a delay
_CALM_S, _LONGEST_CALM_S = 60.0, 3600.0  # first and longest delay of the further ones; forgotten after the longest


class StateKey(NamedTuple):
    """Identity of a state.

    Attributes:
        rule: Rule.key of its rule.
        node: Name of the node; empty for this server.
        sensor: Name of the sensor; empty if the alert is not about a sensor.
        detail: Part of the condition: the name of a quality flag, the subject of a fault, or an address.
    """

    rule: str
    node: str
    sensor: str = ""
    detail: str = ""


class AlertState:
    """State of one rule for one node, sensor or fault. Attributes that end in _s are times of the monotonic clock.

    Attributes:
        rule: The rule.
        key: Identity of the state.
        since_s: Start of the condition, or None if it is not met.
        began_s: Start of the alert: of its condition, or of the time without samples.
        ended_s: End of the alert.
        since_ms: `began_s` in ms since 1970 (UTC), by the clock at the last check: a correction of the date changes it.
        text: Text about the latest value, or about the fault.
        met_text: The last `text` while the condition was met.
        end_text: Text about the end of the condition.
        peak: Text about a condition that was met between two checks; empty if there was none.
        unit: Unit of the value.
        value: Latest value, or the number of missing samples of a gap.
        is_open: True from the time the alert was due until its end.
        is_owed: True if the message about the alert is due and was not sent yet.
        is_told: True if the message about the alert was sent, and that about its end was not.
        is_restored: True if the condition was stored by an earlier run and was not checked in this one.
        due_s: Time since which a message is due.
        sent_s: Time of the last message.
        id: Id of the alert; empty if it is not open.
        sent: Number of messages about this alert.
        sent_ms: Time of the last message in ms since 1970 (UTC).
        ended_ms: `ended_s` in ms since 1970 (UTC).
        calm_s: Time without the condition after which the end is reported.
        by: User who has acknowledged it; empty if no user has.
        by_ms: Time of the acknowledgement in ms since 1970 (UTC), or None.
    """

    def __init__(self, rule: Rule, key: StateKey) -> None:
        """Create the state of a condition that is not met. `rule` and `key` are the attributes."""
        self.rule, self.key = rule, key
        self.since_s: float | None = None
        self.since_ms = 0
        self.text = self.met_text = self.end_text = self.peak = self.unit = ""
        self.value: float = 0
        self.is_open = self.is_owed = self.is_told = self.is_restored = False
        self.due_s = self.sent_s = self.began_s = self.ended_s = self.calm_s = 0.0
        self.id = ""
        self.sent = self.sent_ms = self.ended_ms = 0
        self.by = ""
        self.by_ms: int | None = None

    def meet(self, since_s: float, began_s: float | None = None) -> None:
        """Record that the condition is met.

        Args:
            since_s: Start of the condition, unless it was met before.
            began_s: Start of the alert for people, if it is not the same.
        """
        self.is_restored = False
        self.met_text = self.text
        if self.since_s is None:
            self.since_s = since_s
            if not self.is_told:  # otherwise it is met again before its end was reported: it is still the same alert
                self.began_s = since_s if began_s is None else began_s

    def end(self) -> None:
        """Record that the condition is not met."""
        self.is_restored = False
        self.since_s = None

    def advance(self, now_s: float, now_ms: int) -> None:
        """Open or close the alert according to its condition and the time.

        Args:
            now_s: Current time of the monotonic clock.
            now_ms: Current time in ms since 1970 (UTC).
        """
        is_met = self.since_s is not None
        is_new_peak = bool(self.peak) and not self.is_owed
        if not self.is_open and (is_new_peak or (self.since_s is not None and now_s - self.since_s >= self.rule.for_s)):
            self.is_open = True
            if not self.is_told and not self.is_owed:
                self.id, self.is_owed, self.due_s = secrets.token_hex(8), True, now_s
                self.sent, self.by, self.by_ms = 0, "", None
                if not is_met:
                    self.began_s = now_s
        if self.is_open and not is_met:
            self.is_open, self.ended_s = False, now_s
            if self.is_told:
                self.due_s, self.peak = now_s, ""
        self.since_ms = now_ms - round(1000 * (now_s - self.began_s))
        self.ended_ms = now_ms - round(1000 * (now_s - self.ended_s))

    def drop(self) -> None:
        """Record that the alert, which has ended, is not reported."""
        self.is_owed, self.peak, self.id = False, "", ""

    def is_repeat_due(self, now_s: float) -> bool:
        """Return True if the message about the alert is to be repeated at `now_s`."""
        rule = self.rule
        return (
            self.is_open and self.is_told and not self.is_owed and not self.by and rule.again_s > 0
            and now_s - self.sent_s >= rule.again_s and (rule.repeats is None or self.sent <= rule.repeats)
        )  # fmt: skip

    @property
    def is_end_due(self) -> bool:
        """True if the message about the end of the alert is due."""
        return self.is_told and not self.is_open and not self.is_owed

    @property
    def alert_text(self) -> str:
        """Text for a message about the alert."""
        return self.peak or (self.met_text if self.since_s is None else self.text)

    @property
    def is_idle(self) -> bool:
        """True if there is no alert and no message."""
        return not (self.is_open or self.is_owed or self.is_told)

    def told(self, now_s: float, now_ms: int) -> None:
        """Record that the message about the alert is in the queue since `now_s` (monotonic) and `now_ms` (UTC)."""
        self.is_owed, self.is_told, self.peak = False, True, ""
        self.sent, self.sent_s, self.sent_ms, self.due_s = self.sent + 1, now_s, now_ms, now_s

    def told_end(self) -> None:
        """Record that the message about the end of the alert is in the queue."""
        self.is_told, self.id, self.sent = False, "", 0

    # ------------------------------------------------------------------------------------------------ stored form

    def signature(self) -> tuple[object, ...]:
        """Return the part of the state whose changes are stored: immediately, except those of the last item.

        A condition that is met and not met in turn would otherwise write each time. After a crash, the values since the
        last write are checked again.
        """
        return self.id, self.is_owed, self.is_told, self.sent, self.by, self.is_open

    def stored(self) -> dict[str, Any]:
        """Return the state as a JSON object."""
        kept = {name: getattr(self, name) for name in _STORED}
        return {"rule": list(self.rule), "key": list(self.key), **kept}

    @classmethod
    def restored(cls, stored: dict[str, Any], now_s: float, now_ms: int) -> AlertState:
        """Return the state in the JSON object `stored`, at the start of the program: at `now_s` and `now_ms`.

        Times of the last run are those of the wall clock. A wrong clock can only change the time of a repetition.

        Raises:
            ValueError: The object is not a state.
            TypeError: The object is not a state.
            KeyError: The object is not a state.
        """
        row: list[Any] = [tuple(item) if isinstance(item, list) else item for item in stored["rule"]]
        state = cls(Rule(*row), StateKey(*stored["key"]))
        for name in _STORED:
            setattr(state, name, stored[name])
        state.is_restored = True
        state.due_s = now_s
        state.began_s = now_s - max(0, now_ms - state.since_ms) / 1000
        state.ended_s = now_s - max(0, now_ms - state.ended_ms) / 1000
        state.sent_s = now_s - min(max(0.0, (now_ms - state.sent_ms) / 1000), state.rule.again_s)
        if state.is_open:
            state.since_s = now_s
        return state

    def active(self, is_quiet: bool) -> ActiveAlert:
        """Return the alert for the page. `is_quiet` is True in its quiet hours."""
        rule, key = self.rule, self.key
        return ActiveAlert(
            self.id, rule.name or rule.condition(self.unit), rule.condition_kind, key.node, key.sensor, rule.severity,
            self.since_ms, self.text, self.is_owed and is_quiet, self.by, self.by_ms,
        )  # fmt: skip


_STORED = (
    "since_ms", "text", "met_text", "end_text", "peak", "unit", "value", "is_open", "is_owed", "is_told", "id", "sent",
    "sent_ms", "ended_ms", "by", "by_ms",
)  # fmt: skip


class StateTable:
    """All states, and what the checks need to know about nodes: their current names, and which are retired."""

    def __init__(self, names: NodeRegister | None) -> None:
        """Create an empty table. `names` is the register of renamed and retired nodes, or None."""
        self.states: dict[StateKey, AlertState] = {}
        self._ends: dict[StateKey, tuple[int, float]] = {}  # ends that were reported, and the time of the last one
        self._names = names

    def of(self, rule: Rule, node: str, sensor: str = "", detail: str = "") -> AlertState:
        """Return the state of `rule` for a `node`, a `sensor` and a `detail`; it is created if it is missing."""
        key = StateKey(rule.key, node, sensor, detail)
        state = self.states.get(key)
        if state is None:
            state = self.states[key] = AlertState(rule, key)
        return state

    def find(self, rule: Rule, node: str, sensor: str = "", detail: str = "") -> AlertState | None:
        """Return the state of `rule` for a `node`, a `sensor` and a `detail`, or None."""
        return self.states.get(StateKey(rule.key, node, sensor, detail))

    def of_rule(self, rule: Rule) -> list[AlertState]:
        """Return all states of `rule`."""
        return [state for state in self.states.values() if state.key.rule == rule.key]

    def count_end(self, key: StateKey, now_s: float) -> None:
        """Record that the end of the alert `key` was reported at the time `now_s` of the monotonic clock."""
        self._ends = {one: end for one, end in self._ends.items() if now_s - end[1] < _LONGEST_CALM_S}
        self._ends[key] = self._ends.get(key, (0, 0.0))[0] + 1, now_s

    def calm_s(self, key: StateKey, now_s: float) -> float:
        """Return how long the condition of the alert `key` must not be met before its end is reported, at `now_s`."""
        count, last_s = self._ends.get(key, (0, now_s))
        if count < FREE_ENDS or now_s - last_s >= _LONGEST_CALM_S:
            return 0.0
        return min(_CALM_S * 2.0 ** (count - FREE_ENDS), _LONGEST_CALM_S)

    def present(self, node: str) -> str:
        """Return the current name of `node`."""
        return node if self._names is None else self._names.current(node)

    def is_retired(self, node: str) -> bool:
        """Return True if `node` is retired."""
        return self._names is not None and self._names.retired_ms(node) is not None

    def is_about(self, rule: Rule, node: str) -> bool:
        """Return True if `rule` applies to `node`."""
        return rule.node in ("", node) or self.present(rule.node) == node

    def rename(self, node: str, new: str) -> None:
        """Assign the states of `node`, and the damping of its alerts, to its new name `new`."""
        for key in [key for key in self.states if key.node == node]:
            state = self.states.pop(key)
            state.key = key._replace(node=new)
            self.states[state.key] = state
        ends = self._ends.items()
        self._ends = {key._replace(node=new) if key.node == node else key: end for key, end in ends}
