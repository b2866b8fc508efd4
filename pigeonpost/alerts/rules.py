"""Alert rules: the contents of [[alert]] tables, in the settings file or edited on the page.

Errors: SettingsError for an invalid table.

    value    a value above `above` or below `below`, until it has returned to `clear`
    failed   a sensor without a value for the time `for`
    flag     a quality flag of a sensor (server/quality.py)
    silent   a node without samples for `silent` seconds
    gap      samples of a node that will never arrive
    disk     little free space on the disk of this server's data folder, or of a node
    store    a fault of the database, of the CSV log, of backups, or of another file of this server
    voltage  too low a supply voltage of a Raspberry Pi
    refused  a client that is refused because of its token, its certificate or its name
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pigeonpost.alerts.contract import KINDS, SEVERITIES
from pigeonpost.core.config import Option, Parse, matching, number, one_of, read_options
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.format import with_unit
from pigeonpost.server.quality import KINDS as FLAGS
from pigeonpost.settings import quiet_hours
from protocol import NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME, SENSOR_NAME_TAKES

FAILED_S = 300.0  # default of `for` with kind = "failed"
FREE_MIB = 500.0  # default of `below` with kind = "disk"
VOLTAGE = "undervoltage"  # reading of sensors/machine.py: 1 while the voltage is too low
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,80}").fullmatch


def _seconds(low: float, high: float) -> Parse:
    return number(low, high, unit="seconds")


def _clear(value: Any) -> tuple[float, ...]:
    limit = number(-1e15, 1e15)
    if isinstance(value, list):
        if len(value) != 2 or limit(value[0]) > limit(value[1]):
            raise ValueError("takes a number, or [low, high] for an alert with `above` and `below`")
        return limit(value[0]), limit(value[1])
    return (limit(value),)


def _flags(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(flag in FLAGS for flag in value):
        raise ValueError(f"takes a list of {', '.join(FLAGS)}")
    return tuple(dict.fromkeys(value))


OPTIONS = (
    Option("node", matching(NODE_NAME, NODE_NAME_TAKES), "", "name of the node; without it: every node"),
    Option("sensor", matching(SENSOR_NAME, SENSOR_NAME_TAKES), "", "name of the sensor"),
    Option("above", number(-1e15, 1e15), None, "alert if the value is above this"),
    Option("below", number(-1e15, 1e15), None, "alert if the value is below this; with disk: MiB of free space"),
    Option("silent", _seconds(1, 8_640_000), None, "instead of `sensor`: seconds without a sample of the node"),
    Option("for", _seconds(0, 864_000), None, "seconds for which the condition must last before the alert is sent"),
    Option("again", _seconds(0, 8_640_000), 0.0, "seconds after which the alert is repeated; 0: never"),
    Option("kind", one_of(*KINDS), "", "kind of the condition"),
    Option(
        "clear", _clear, (), "the alert ends only when the value has returned to this; [low, high] for two thresholds"
    ),
    Option("severity", one_of(*SEVERITIES), "warning", "info, warning or critical"),
    Option("quiet", quiet_hours, None, "quiet hours in local time, such as 22:00-07:00; critical alerts pass"),
    Option("repeats", number(0, 1_000_000, whole=True), None, "maximum number of repetitions with `again`"),
    Option("flags", _flags, (), "with flag: names of the quality flags; without it: all"),
    Option("name", matching(_NAME, "1 to 80 characters without control characters"), "", "name of the alert"),
)
_MAY_HAVE_SENSOR = ("value", "failed", "flag")
_THRESHOLDS = {"value": ("above", "below"), "disk": ("below",)}


class Rule(NamedTuple):
    """Contents of an [[alert]] table. Times are in seconds, `quiet` is None if [alerts] quiet applies."""

    node: str
    sensor: str
    above: float | None
    below: float | None
    silent_s: float | None
    for_s: float
    again_s: float
    kind: str = ""
    clear: tuple[float, ...] = ()
    severity: str = "warning"
    quiet: str | None = None
    repeats: int | None = None
    flags: tuple[str, ...] = ()
    name: str = ""
    twin: int = 0  # number of earlier tables with the same condition but another `for`, severity or `again`

    def is_met(self, value: float) -> bool:
        """Return True if `value` is above the upper or below the lower threshold; with voltage: if it is not 0."""
        if self.kind == "voltage":
            return value > 0
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)

    def is_cleared(self, value: float) -> bool:
        """Return True if `value` ends the alert: with `clear`, only a value that is not beyond it."""
        if not self.clear:
            return not self.is_met(value)
        return (self.above is None or value <= self.clear[-1]) and (self.below is None or value >= self.clear[0])

    @property
    def key(self) -> str:
        """Text that identifies the rule in stored states: its name, or else its condition."""
        if self.name:
            return self.name
        condition = (self.condition_kind, self.node, self.sensor, self.above, self.below, self.silent_s, self.flags)
        return json.dumps((*condition, self.twin) if self.twin else condition)

    @property
    def condition_kind(self) -> str:
        """The kind. A table without `kind` is about silence or about a value."""
        return self.kind or ("silent" if self.silent_s is not None else "value")

    def thresholds(self, unit: str) -> str:
        """Return the thresholds with their `unit` as text: `above 40 °C or below 2 °C`."""
        limits = (("above", self.above), ("below", self.below))
        return " or ".join(with_unit(f"{name} {value:.10g}", unit) for name, value in limits if value is not None)

    def condition(self, unit: str = "") -> str:
        """Return the condition as text, for example `temperature above 40 °C`. `unit` is the unit of the sensor."""
        kind = self.condition_kind
        if kind in ("value", "disk"):
            unit = "MiB" if kind == "disk" else unit
            text = f"{self.sensor or 'free disk space'} {self.thresholds(unit)}"
            if not self.clear:
                return text
            return f"{text}, until past {with_unit(' and '.join(f'{one:.10g}' for one in self.clear), unit)}"
        if kind == "failed":
            return f"{self.sensor or 'a sensor'} without a value for {self.for_s:.10g} s"
        if kind == "flag":
            chosen = f" ({', '.join(self.flags)})" if self.flags else ""
            return f"{self.sensor or 'a sensor'} with a quality flag{chosen}"
        return f"{self.silent_s:.10g} s without a sample" if self.silent_s is not None else _CONDITIONS[kind]


_CONDITIONS = {
    "silent": "longer without a sample than the node's usual interval allows",
    "gap": "samples that will never arrive",
    "store": "a fault of this server's database, files or backups",
    "voltage": "supply voltage too low",
    "refused": "a client that is refused",
}


def read_rules(tables: Iterable[Mapping[str, Any]], where: str) -> list[Rule]:
    """Return the rules in [[alert]] tables.

    Args:
        tables: The tables.
        where: Path of the settings file, for error messages.

    Raises:
        SettingsError: A table is invalid.
    """
    rules: list[Rule] = []
    names: set[str] = set()
    for count, table in enumerate(tables, 1):
        here = f"{where}: [[alert]] {count}"
        options = read_options(table, OPTIONS, here)
        rule = Rule(*options.values())
        _check(rule, table, here)
        if "for" not in table:
            rule = rule._replace(for_s=FAILED_S if rule.kind == "failed" else 0.0)
        if rule.kind == "disk":
            below = FREE_MIB if rule.below is None else rule.below
            rule = rule._replace(below=below, clear=rule.clear or (1.1 * below,))
        if rule.name and rule.name in names:
            raise SettingsError(f"{here}: name {rule.name!r} belongs to another table already; names must differ")
        names.add(rule.name)
        if rule not in [one._replace(twin=0) for one in rules]:
            rule = rule._replace(twin=0 if rule.name else sum(one._replace(twin=0).key == rule.key for one in rules))
        rules.append(rule)
    return rules


def _check(rule: Rule, table: Mapping[str, Any], here: str) -> None:
    kind = rule.condition_kind
    has_threshold = rule.above is not None or rule.below is not None
    if not rule.kind:
        if (rule.silent_s is not None) == has_threshold:
            raise SettingsError(f"{here}: must have either `sensor` with `above` or `below`, or `silent`, or `kind`")
        if has_threshold != bool(rule.sensor):
            raise SettingsError(f"{here}: `above` and `below` require `sensor`; `silent` must not be used with it")
    for key in ("above", "below"):
        if key in table and key not in _THRESHOLDS.get(kind, ()):
            hint = ": use `below`, in MiB" if kind == "disk" else ""
            raise SettingsError(f"{here}: {key} must not be used with kind = {kind!r}{hint}")
    if kind == "value" and not (has_threshold and rule.sensor):
        raise SettingsError(f'{here}: kind = "value" requires `sensor`, and `above` or `below`')
    if kind == "disk" and rule.below is not None and rule.below <= 0:
        raise SettingsError(f"{here}: below takes a number of MiB that is greater than 0, not {rule.below:g}")
    if rule.sensor and kind not in _MAY_HAVE_SENSOR:
        raise SettingsError(f"{here}: sensor must not be used with kind = {kind!r}")
    if rule.silent_s is not None and kind != "silent":
        raise SettingsError(f"{here}: silent must not be used with kind = {kind!r}")
    if rule.flags and kind != "flag":
        raise SettingsError(f"{here}: flags must not be used with kind = {kind!r}")
    if rule.node and kind == "store":
        raise SettingsError(f"{here}: node must not be used with kind = 'store', which is about this server")
    if rule.above is not None and rule.below is not None and rule.below > rule.above and rule.clear:
        raise SettingsError(f"{here}: clear must not be used if below is greater than above: every value is an alert")
    _check_clear(rule, kind, here)
    if rule.repeats is not None and not rule.again_s:
        raise SettingsError(f"{here}: repeats requires `again`, the seconds between two messages")


def _check_clear(rule: Rule, kind: str, here: str) -> None:
    if not rule.clear:
        return
    if kind not in _THRESHOLDS:
        raise SettingsError(f"{here}: clear must not be used with kind = {kind!r}")
    both = rule.above is not None and rule.below is not None
    if both != (len(rule.clear) == 2):
        raise SettingsError(
            f"{here}: clear takes [low, high] for an alert with `above` and `below`, and otherwise one number"
        )
    if rule.above is not None and rule.clear[-1] > rule.above:
        raise SettingsError(f"{here}: clear must not be greater than above ({rule.above:g})")
    below = FREE_MIB if kind == "disk" and rule.below is None else rule.below
    if below is not None and rule.clear[0] < below:
        raise SettingsError(f"{here}: clear must not be less than below ({below:g})")


def default_silence() -> Rule:
    """Return the rule about silent nodes that applies as soon as a channel is set."""
    return Rule("", "", None, None, None, 0.0, 0.0, "silent", name="silent nodes (default)")
