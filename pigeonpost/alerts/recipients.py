"""Recipients of alerts and reports: [[recipient]] tables and [report], and the messages that each recipient receives.

Errors: SettingsError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from pigeonpost.alerts.contract import SEVERITIES, AlertMessage, rank
from pigeonpost.alerts.messages import reduced
from pigeonpost.core.config import Option, matching, one_of, read_options
from pigeonpost.core.errors import SettingsError
from pigeonpost.server.schedule import WEEKDAYS, Period, Schedule
from pigeonpost.settings import DAY_TAKES, MAILBOX, TIME_OF_DAY, report_day
from protocol import NODE_NAME, SENSOR_NAME

if TYPE_CHECKING:
    from pigeonpost.core.config import Settings


class Filter(NamedTuple):
    """Messages that a recipient receives.

    Attributes:
        severity: Lowest severity of the alerts, or "none" for no alerts.
        nodes: Names of the nodes; empty for all nodes.
        sensors: Names of the sensors; empty for all sensors.
    """

    severity: str = "info"
    nodes: Sequence[str] = ()
    sensors: Sequence[str] = ()

    def covers(self, node: str, sensor: str = "") -> bool:
        """Return True if a `sensor` of a `node` is selected; with an empty sensor, if the node is."""
        return (not self.nodes or node in self.nodes) and (not self.sensors or not sensor or sensor in self.sensors)

    def select(self, message: AlertMessage, current: Callable[[str], str] = lambda node: node) -> AlertMessage | None:
        """Return what a recipient receives of `message`, or None if that is nothing.

        A message about several alerts is reduced to those that are selected. Reports and tests are not changed.

        Args:
            message: The message.
            current: Function that returns the current name of a node: this filter, or a message that has waited, may
                contain a former one.
        """
        if message.kind in ("report", "test"):
            return message
        alerts: Sequence[Mapping[str, Any]] = message.info.get("alerts") or [message.info]
        chosen = self._replace(nodes=[current(node) for node in self.nodes])
        kept = [index for index, alert in enumerate(alerts) if chosen._is_about(alert, message.severity, current)]
        return message if len(kept) == len(alerts) else reduced(message, kept) if kept else None

    def _is_about(self, alert: Mapping[str, Any], usual: str, current: Callable[[str], str]) -> bool:
        """Return True if an alert is severe enough, and about a selected node and sensor or about the server itself."""
        severity, node = str(alert.get("severity") or usual), str(alert.get("node") or "")
        is_severe = self.severity != "none" and rank(severity) >= rank(self.severity)
        return is_severe and (not node or self.covers(current(node), str(alert.get("sensor") or "")))


EVERYTHING = Filter()


class ReportPlan(NamedTuple):
    """Regular report to some recipients.

    Attributes:
        key: Name under which the time of the last report is stored.
        channels: Keys of the channels.
        schedule: Times of the reports; None if `every_ms` is set.
        every_ms: Time between two reports in ms; 0 if `schedule` is set.
        chosen: Nodes and sensors in the report.
    """

    key: str
    channels: Sequence[str]
    schedule: Schedule | None
    every_ms: int = 0
    chosen: Filter = EVERYTHING

    def last_due_ms(self, last_ms: int | None, now_ms: int) -> int:
        """Return the last time at which a report was due: the end of its time range.

        Args:
            last_ms: End of the last report, or None before the first one. All times are in ms since 1970 (UTC).
            now_ms: Current time.
        """
        if self.schedule is not None:
            return self.schedule.last_due_ms(now_ms)
        if last_ms is None or last_ms > now_ms:
            return now_ms
        return last_ms + (now_ms - last_ms) // self.every_ms * self.every_ms

    def __str__(self) -> str:
        """Return the schedule as text: `daily at 07:00`, `every 24 h`."""
        return str(self.schedule) if self.schedule is not None else f"every {self.every_ms / 3_600_000:g} h"


class Recipient(NamedTuple):
    """Contents of a [[recipient]] table.

    Attributes:
        to: Mail address.
        chosen: Alerts that it receives; also the nodes and sensors of its reports.
        plan: Its own report; None if it receives none.
    """

    to: str
    chosen: Filter
    plan: ReportPlan | None


def _names(match: Any, what: str) -> Any:
    def parse(value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(one, str) and match(one) for one in value):
            raise ValueError(f"takes a list of names of {what}")
        return value

    return parse


AT = "07:00"  # time of day of a report for which none is set
PERIODS: Sequence[str] = get_args(Period)
FILTER_OPTIONS = (
    Option("severity", one_of(*SEVERITIES, "none"), "info", "lowest severity of the alerts"),
    Option("nodes", _names(NODE_NAME, "nodes"), [], "only these nodes; empty: all"),
    Option("sensors", _names(SENSOR_NAME, "sensors"), [], "only these sensors; empty: all"),
)
REPORT_TIMES = (
    Option("at", matching(TIME_OF_DAY, 'a time of day such as "07:00"'), None, "local time of the report"),
    Option("day", report_day, "", DAY_TAKES),
)
OPTIONS = (
    Option("to", matching(MAILBOX, "an address such as you@example.org"), None, "mail address"),
    *FILTER_OPTIONS,
    Option("report", one_of(*PERIODS, "none"), None, "period of the report (default: that of [report])"),
    *REPORT_TIMES,
)


def read_recipients(settings: Settings) -> list[Recipient]:
    """Return the recipients in the [[recipient]] tables of `settings`.

    Raises:
        SettingsError: A table is invalid, or there are two for the same address.
    """
    found: dict[str, Recipient] = {}
    for count, table in enumerate(settings.tables.get("recipient", ()), 1):
        where = f"{settings.file}: [[recipient]] {count}"
        values = read_options(table, OPTIONS, where)
        if values["to"] is None:
            raise SettingsError(f"{where}: to is missing: it takes a mail address such as you@example.org")
        if values["to"] in found:
            raise SettingsError(f"{where}: to: there is another table for {values['to']}; use only one")
        chosen = make_filter(values)
        plan = own_plan(settings, values, f"mail:{values['to']}", chosen, where)
        found[values["to"]] = Recipient(values["to"], chosen, plan)
    return list(found.values())


def make_filter(values: Mapping[str, Any]) -> Filter:
    """Return the filter of the keys FILTER_OPTIONS in `values`."""
    return Filter(values["severity"], tuple(values["nodes"]), tuple(values["sensors"]))


def own_plan(settings: Settings, values: Mapping[str, Any], key: str, chosen: Filter, where: str) -> ReportPlan | None:
    """Return the report of one recipient or channel: its own keys, or else those of [report]; None if it has none.

    Args:
        settings: The settings of the server.
        values: The keys `report`, `at` and `day` of its table. `report` is a period, "none", or None.
        key: Key of the channel.
        chosen: Nodes and sensors in the report.
        where: Description of the table for errors.

    Raises:
        SettingsError: Two keys contradict each other.
    """
    if values["report"] == "none":
        return None
    if not (values["report"] or values["at"] or values["day"]):
        general = general_plan(settings, [key])
        return None if general is None else general._replace(key=f"report:{key}", chosen=chosen)
    usual = settings["report", "period"] or "daily"
    period, at = values["report"] or usual, values["at"] or settings["report", "at"] or AT
    day = values["day"] or (settings["report", "day"] if period == usual else "")
    return ReportPlan(f"report:{key}", [key], make_schedule(at, period, day, f"{where}: day"), 0, chosen)


def general_plan(settings: Settings, channels: Iterable[str]) -> ReportPlan | None:
    """Return the report of the table [report] of `settings` to `channels`, or None if it is not enabled.

    Raises:
        SettingsError: Two keys contradict each other.
    """
    every_h, at, period, day = (settings["report", key] for key in ("every", "at", "period", "day"))
    if every_h:
        for key in ("at", "period", "day"):
            if settings["report", key]:
                where = settings.origin("report", key)
                raise SettingsError(f"{where}: [report] {key} cannot be used with [report] every; remove one of them")
        return ReportPlan("report", list(channels), None, max(1, round(every_h * 3_600_000)))
    if not (at or period or day):
        return None
    where = f"{settings.origin('report', 'day')}: [report] day"
    return ReportPlan("report", list(channels), make_schedule(at or AT, period or "daily", day, where))


def make_schedule(at: str, period: str, day: str, where: str) -> Schedule:
    """Return the schedule of a report.

    Args:
        at: Local time of day, HH:MM.
        period: One of PERIODS.
        day: Name of a weekday for "weekly" (default: monday), a number from 1 to 31 for "monthly" (default: 1).
        where: Description of the key `day` for errors.

    Raises:
        SettingsError: `day` does not fit `period`.
    """
    if period == "weekly" and day in ("", *WEEKDAYS):
        return Schedule(at, "weekly", WEEKDAYS.index(day or "monday"))
    if period == "monthly" and (not day or day.isdigit()):
        return Schedule(at, "monthly", int(day or "1"))
    if period == "daily" and not day:
        return Schedule(at)
    if period == "daily":
        fitting = "monthly" if day.isdigit() else "weekly"
        raise SettingsError(f"{where} is not used with the period daily: remove it, or choose the period {fitting}")
    takes = {"weekly": "the name of a weekday", "monthly": "a number from 1 to 31"}
    raise SettingsError(f"{where} takes {takes[period]} with the period {period}, not {day!r}")
