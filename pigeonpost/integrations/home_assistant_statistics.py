"""Hour statistics for Home Assistant, of the hours whose data arrived late.

After an outage of a node, of this server, of the broker or of Home Assistant, its charts have a gap, because states
over MQTT have no time. For each of these hours (home_assistant_hours), this part sends mean, minimum and maximum or,
for a total, state and sum to `recorder/import_statistics`. Only finished hours are sent, when the node has no more late
samples. The same hour sent again replaces the former one. An hour is removed from the list once Home Assistant returns
the same values: it answers before it has written them.

The entity is found by its unique id, so a user may rename it. Values are converted to the unit in which Home Assistant
stores the statistics of the entity.

Threads: `on_commit` runs in the Ingestor's writer thread and only marks hours; one own thread does the rest. There is a
connection only while there are hours to send, and once after the start.
Errors: all of them are this part's fault, and it tries again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pigeonpost.core.data_folder import HOME_ASSISTANT_HOURS
from pigeonpost.core.errors import DiskError, NotStored, SettingsError
from pigeonpost.core.http_client import HttpError, split_url
from pigeonpost.core.redact import HIDDEN
from pigeonpost.core.units import conversion
from pigeonpost.integrations.home_assistant_api import (
    ApiSession,
    CommandRefused,
    Entity,
    LoginRefused,
    NotReady,
    StatisticsInfo,
)
from pigeonpost.integrations.home_assistant_discovery import HomeAssistantDiscovery
from pigeonpost.integrations.home_assistant_hours import DueHours, LateHours
from pigeonpost.integrations.home_assistant_messages import UNIQUE_PREFIX, SensorFacts, unique_id
from pigeonpost.integrations.home_assistant_units import ANGLE, TOTAL
from pigeonpost.storage.maintenance import current_rollups
from pigeonpost.storage.models import HOUR_MS, EpochCommit, Rollup
from pigeonpost.transports.contract import IntegrationStatus, ServerContext, Transport

log = logging.getLogger(__name__)

TICK_S = 1.0
RETRY_S = 15.0, 600.0  # first and longest pause after a failed attempt
WRITTEN_S = 30.0  # longest wait until Home Assistant has written what it has accepted
_ASK_AGAIN_S = 0.25
HOURS_AT_ONCE = 24 * 14  # hours of one sensor in one message: 60 kB
_MOST_SAMPLES = 2_000_000  # samples of one sensor that are read for one message
_BEFORE_HOURS, _AFTER_HOURS = 24 * 400, 24 * 31  # where the sums before and after are searched
_RESET = 0.9  # a total that falls below this part of its last value was reset (components/sensor/recorder.py)

Hours = dict[int, dict[str, float]]


class _NotWritten(Exception):
    """Home Assistant has not written the statistics yet."""


class _Job(NamedTuple):
    """Statistics of one sensor for consecutive hours."""

    hours: DueHours
    sensor: str
    facts: SensorFacts
    entity: Entity
    info: StatisticsInfo


class HomeAssistantStatistics(Transport):
    """Sends the statistics of late hours.

    Args:
        context: The server's components.
        discovery: The part that publishes the entities.

    Raises:
        SettingsError: The settings are invalid.
    """

    def __init__(self, context: ServerContext, discovery: HomeAssistantDiscovery) -> None:
        settings = context.settings
        try:
            self._url = split_url(settings["home_assistant", "url"])
        except ValueError as error:
            raise SettingsError(f"[home_assistant] url {error}") from None
        if not settings["home_assistant", "token"]:
            raise SettingsError("[home_assistant] url requires token, a long-lived access token of an administrator")
        self._token: str = settings["home_assistant", "token"]
        self._context, self._discovery = context, discovery
        self._hours = LateHours(os.path.join(context.data, HOME_ASSISTANT_HOURS), context.clock)
        discovery.on_unseen, discovery.on_lost = self._hours.mark_since, self._hours.mark_lost
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="home assistant statistics", daemon=True)
        self._session: ApiSession | None = None
        self._is_checked = False  # True once Home Assistant has accepted the token in this run
        self._next_s, self._pause_s = 0.0, RETRY_S[0]
        self._fault = self._refusal = ""
        self._done = self._refused = 0
        self._success_ms: int | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        self._stopping.set()
        if self._session is not None:
            self._session.cut()
        if self._thread.is_alive():
            self._thread.join(limit_s)
        with contextlib.suppress(DiskError):  # after the next start, these hours are sent again
            self._hours.save(now=True)
        return "Home Assistant does not answer" if self._thread.is_alive() else None

    @property
    def fault(self) -> str:  # type: ignore[override]
        """The present fault, or an empty string."""
        return self._fault or self._hours.fault or self._refusal

    def statuses(self) -> Sequence[IntegrationStatus]:
        return [IntegrationStatus(
            "home assistant statistics", "home_assistant", "out", self._url.shown, self._success_ms,
            self._hours.count(), "hours", self._done, self._refused + self._hours.removed, self.fault,
        )]  # fmt: skip

    def on_commit(self, commits: Sequence[EpochCommit]) -> None:
        """Mark the hours of late samples in `commits`. Called with each commit (see Ingestor.subscribe)."""
        is_live = self._discovery.is_live
        for commit in commits:
            node = commit.node
            self._hours.note(commit, is_live, self._discovery.expire_s(node), self._discovery.offset_ms(node))

    def on_rename(self, node: str, new: str) -> None:
        """Assign the hours of `node` to its new name `new`."""
        self._hours.on_rename(node, new)

    # ------------------------------------------------------------------------------------------------ own thread

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            try:
                self._hours.save()
                self._send_due(self._context.clock.monotonic())
            except DiskError as error:
                self._fault = str(error)
            except Exception:  # a fault of this part must not end it
                log.exception("Home Assistant: internal error; trying again")
                self._failed("an internal error occurred; the log contains its details")

    def _send_due(self, now_s: float) -> None:
        due = self._hours.due()
        if now_s < self._next_s or (not due and self._is_checked):
            return
        session = self._session = ApiSession(self._url, self._token)
        try:
            if self._stopping.is_set():  # `stop` has not seen this session
                return
            session.open()
            self._is_checked = True
            self._send_all(session, due)
            self._set_fault("")
            self._success_ms = self._context.clock.wall_ms()
            if self._hours.due():  # Home Assistant does not know all entities yet
                self._pause()
            else:
                self._next_s, self._pause_s = 0.0, RETRY_S[0]
        except HttpError as error:
            self._failed(f"no connection to Home Assistant: {error}")
        except CommandRefused as error:
            self._failed(f"Home Assistant refuses {error}")
        except (NotReady, LoginRefused, OSError) as error:
            self._failed(str(error))
        except _NotWritten:
            self._failed("Home Assistant has accepted statistics, but does not return them: see its log")
        finally:
            session.close()
            self._session = None

    def _failed(self, fault: str) -> None:
        if not self._stopping.is_set():
            self._set_fault(fault.replace(self._token, HIDDEN))  # the server may repeat it
        self._pause()

    def _pause(self) -> None:
        self._next_s = self._context.clock.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, RETRY_S[1])

    def _set_fault(self, fault: str) -> None:
        if fault and fault != self._fault:
            log.warning("Home Assistant %s: %s; trying again", self._url.shown, fault)
        elif self._fault and not fault:
            log.info("Home Assistant %s: connected", self._url.shown)
        self._fault = fault

    def _send_all(self, session: ApiSession, due: Sequence[DueHours]) -> None:
        if not due:
            return
        entities = session.entities(UNIQUE_PREFIX)
        kept_from = {about["name"]: int(about["kept_from_ms"]) for about in self._context.store.nodes()}
        self._refusal = ""
        for hours in due:
            if self._stopping.is_set():
                return
            try:
                self._send(session, hours, entities, kept_from.get(hours.node, 0))
            except NotStored as error:  # the store cannot be read now; the hours stay
                log.debug("Home Assistant: %s", error)

    def _send(
        self, session: ApiSession, hours: DueHours, entities: Mapping[str, Entity], kept_from_ms: int
    ) -> None:  # fmt: skip
        """Send the hours of one node, and remove them from the list if nothing is missing."""
        names = self._context.names
        if names is not None and names.retired_ms(hours.node) is not None:  # Home Assistant no longer shows it
            self._hours.done(hours)
            return
        sensors = self._discovery.sensors(hours.node)
        known = {name: entities.get(unique_id(hours.node, name)) for name in sensors}
        ids = [entity.entity_id for entity in known.values() if entity is not None and not entity.is_disabled]
        if not sensors or not ids:
            if not sensors or any(entity is None for entity in known.values()):  # not set up yet
                self._refusal = f"Home Assistant does not show node {hours.node} yet; its hours are sent later"
                return
            self._hours.done(hours)  # all of its entities are disabled
            return
        infos, is_complete = session.statistics_info(ids), True
        for name, facts in sensors.items():
            entity = known[name]
            if facts.entity(name).state_class == ANGLE or (entity is not None and entity.is_disabled):
                continue  # the mean of an angle is not the mean of its values
            info = infos.get(entity.entity_id) if entity is not None else None
            if entity is None or info is None or (facts.entity(name).unit and info.unit is None):
                self._refusal = f"Home Assistant has no value of {hours.node} {name} yet; its hours are sent later"
                is_complete = False
                continue
            self._send_sensor(session, _Job(hours, name, facts, entity, info), kept_from_ms)
        if is_complete:
            self._hours.done(hours)
            self._hours.save()

    def _send_sensor(self, session: ApiSession, job: _Job, kept_from_ms: int) -> None:
        why = _refusal_of(job)
        if why:
            self._refuse(job, why)
            return
        for first in range(job.hours.first, job.hours.last + 1, HOURS_AT_ONCE):
            last = min(job.hours.last, first + HOURS_AT_ONCE - 1)
            rollups = self._rollups(job, first, last, kept_from_ms)
            if not rollups:
                continue
            found = self._totals(session, job, rollups) if job.info.has_sum else _measured(rollups)
            try:
                session.import_hours(job.entity.entity_id, job.info, _converted(job, found))
            except CommandRefused as error:
                self._refuse(job, str(error))
                return
            self._wait_written(session, job, _converted(job, found))
            self._done += len(found)

    def _rollups(self, job: _Job, first: int, last: int, kept_from_ms: int) -> list[Rollup]:
        """Return the statistics of the hours from `first` to `last` that have values."""
        store, node = self._context.store, job.hours.node
        found = current_rollups(
            store, node, job.sensor, HOUR_MS, first * HOUR_MS, (last + 1) * HOUR_MS, kept_from_ms, _MOST_SAMPLES
        )  # fmt: skip
        if found is None and first < last:  # too many samples for one message
            middle = (first + last) // 2
            return [
                *self._rollups(job, first, middle, kept_from_ms),
                *self._rollups(job, middle + 1, last, kept_from_ms),
            ]
        if found is None:
            self._refuse(job, "an hour has too many samples")
        return found or []

    def _totals(self, session: ApiSession, job: _Job, rollups: Sequence[Rollup]) -> Hours:
        """Return state and sum of the hours of a total, which continue the sums that Home Assistant has."""
        states = {hour: self._last_value(job, hour, rollup) for rollup in rollups for hour in [_hour_of(rollup)]}
        first, last = min(states), max(states)

        def stored(begin: int, end: int) -> list[tuple[float, float]]:
            found = session.hours(job.entity.entity_id, job.info, begin, end, ("state", "sum"))
            pairs = [(row.get("state"), row.get("sum")) for row in found]
            back = conversion(job.info.unit or "", {job.info.unit or "": job.facts.entity(job.sensor).unit})
            return [
                (back.value(state), back.value(total)) for state, total in pairs
                if isinstance(state, int | float) and isinstance(total, int | float)
            ]  # fmt: skip

        before = stored(first - _BEFORE_HOURS, first - 1)
        after = [] if before else stored(last + 1, last + _AFTER_HOURS)
        begin = before[-1] if before else (rollups[0].low, 0.0)
        return continued_sums(states, begin, after[0] if after else None)

    def _last_value(self, job: _Job, hour: int, rollup: Rollup) -> float:
        """Return the last value of a total in an hour; its highest value if the samples are deleted already."""
        points = self._context.store.points(job.hours.node, hour * HOUR_MS, (hour + 1) * HOUR_MS, 1)
        value = points[0].values.get(job.sensor) if points else None
        return rollup.high if value is None else value

    def _wait_written(self, session: ApiSession, job: _Job, expected: Hours) -> None:
        """Return once Home Assistant returns the statistics of the last hour. Raise _NotWritten after WRITTEN_S."""
        hour, values = max(expected.items())
        give_up_s = self._context.clock.monotonic() + WRITTEN_S
        while True:
            found = session.hours(job.entity.entity_id, job.info, hour, hour, [*values])
            if found and all(_is_equal(found[0].get(name), value) for name, value in values.items()):
                return
            if self._context.clock.monotonic() > give_up_s or self._stopping.wait(_ASK_AGAIN_S):
                raise _NotWritten

    def _refuse(self, job: _Job, why: str) -> None:
        self._refused += job.hours.last - job.hours.first + 1
        self._refusal = f"hours of {job.entity.entity_id} are not sent: {why}"
        log.warning("Home Assistant: %s", self._refusal)


def _refusal_of(job: _Job) -> str:
    """Return why Home Assistant's statistics of an entity cannot contain our values, or an empty string."""
    unit, _, state_class = job.facts.entity(job.sensor)
    theirs = job.info.unit or ""
    if theirs != unit and not conversion(unit, {unit: theirs}).changes:
        return f"its statistics there have the unit {theirs or 'none'}, not {unit or 'none'}"
    if (state_class == TOTAL) != job.info.has_sum or (job.info.mean_type != 1 and state_class != TOTAL):
        return "its statistics there are of another kind"
    return ""


def _measured(rollups: Sequence[Rollup]) -> Hours:
    return {_hour_of(one): {"mean": one.mean, "min": one.low, "max": one.high} for one in rollups}


def _converted(job: _Job, hours: Hours) -> Hours:
    unit = job.facts.entity(job.sensor).unit
    convert = conversion(unit, {unit: job.info.unit or ""})
    kinds: Mapping[str, Callable[[float], float]] = {"sum": convert.difference}
    return {
        hour: {name: kinds.get(name, convert.value)(value) for name, value in values.items()}
        for hour, values in hours.items()
    }  # fmt: skip


def continued_sums(
    states: Mapping[int, float], before: tuple[float, float], after: tuple[float, float] | None
) -> Hours:
    """Return state and sum of the hours of a total.

    Args:
        states: Last value of each hour.
        before: State and sum of the last hour before them.
        after: State and sum of the first hour after them, if there is none before: the sums then lead to it.
    """
    state, total = before
    hours: Hours = {}
    for hour, value in sorted(states.items()):
        total += increase(state, value)
        hours[hour] = {"state": value, "sum": total}
        state = value
    if after is not None:
        shift = after[1] - increase(state, after[0]) - total
        for values in hours.values():
            values["sum"] += shift
    return hours


def increase(before: float, value: float) -> float:
    """Return the increase of a total from `before` to `value`. After a reset it begins at 0, as in Home Assistant."""
    return value if value < _RESET * before else value - before


def _hour_of(rollup: Rollup) -> int:
    return rollup.end_ms // HOUR_MS - 1


def _is_equal(found: object, expected: float) -> bool:
    return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9)


def make(context: ServerContext, discovery: HomeAssistantDiscovery) -> HomeAssistantStatistics:
    """Return the part for `context`, which receives all commits and renamings.

    Args:
        context: The server's components.
        discovery: The part that publishes the entities.

    Raises:
        SettingsError: The settings are invalid.
    """
    part = HomeAssistantStatistics(context, discovery)
    context.ingestor.subscribe(part.on_commit)
    if context.names is not None:
        context.names.on_rename.append(part.on_rename)
    return part
