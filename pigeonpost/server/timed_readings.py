"""Readings of clients that may repeat a request: one value per node, sensor and millisecond is stored.

The database itself tells what is stored, so no crash can separate the readings from the record of them. Only a reading
at or before the newest one of its node can be a repeat, so a live reading needs no query. A reading that a client has
sent with an id gets the time of its first request again (see reading_ids). A new id with a time at which another value
is stored is another reading: it gets the next free millisecond.

Any thread may use it. `_stripes` guard the nodes: the locks of a node are held from the query to the end of the commit,
so the same reading in two requests at the same time is found too. Two servers with one PostgreSQL database do not see
each other's open requests: a client must send to one of them.
Errors: NotStored, DiskError: all readings of the request may be sent again; BeyondLimit: they exceed a limit of the
server; AuthFailed: the node has a token that the client has not proved.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.core.clock import FIRST_MS, LAST_MS
from pigeonpost.core.data_folder import READING_IDS
from pigeonpost.core.errors import BeyondLimit, NotStored
from pigeonpost.server.commit_waiter import CommitWaiter
from pigeonpost.server.reading_ids import ReadingIds
from pigeonpost.server.unnumbered_sources import STORE_S, Claim, ExternalReading

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.ingest import Ingestor
    from pigeonpost.server.unnumbered_sources import UnnumberedSources
    from pigeonpost.storage.contract import Store
    from protocol import Number

    _Taken = dict[int, dict[str, Number | None]]  # values by time and sensor

AHEAD_MS = 86_400_000  # a time further in the future than this is an error of the client's clock or of its unit
_STRIPES = 64  # locks; nodes that share one wait for each other
_MOST_TIMES, _MOST_CHANNELS = 10_000, 256  # nodes in the two caches
_RANGE_MS = 3_600_000  # late readings closer than this are looked up together: the database keeps an hour together
_AHEAD = 500  # milliseconds that are read together when a free one is searched
MOST_LATER_MS = 10_000  # a reading gets at most this much later a time than its own, which a stopped clock repeats
_NOTHING: Mapping[str, Number | None] = {}
_FAILED = "the client reports that this sensor failed"


class TimedReading(NamedTuple):
    """Values of one node at one time.

    Attributes:
        values: Value by sensor; None for a failed reading.
        units: Unit by sensor.
        time_ms: Time in ms since 1970 (UTC); None for the time of its arrival.
        id: Id of the reading among all of its node, or an empty string.
    """

    values: Mapping[str, Number | None]
    units: Mapping[str, str]
    time_ms: int | None
    id: str = ""


class Outcome(NamedTuple):
    """Number of readings that were stored, and of those that were stored already."""

    stored: int
    repeated: int


class TimedReadings:
    """Stores the readings of all clients that send times or ids.

    Args:
        ingestor: The ingestor.
        store: The database.
        sources: The clients of this server.
        clock: Clock of the server.
        data: Path of the data folder.
        per_sample: Maximum number of channels in a sample.
        per_node: Maximum number of channels of a node.
    """

    def __init__(
        self,
        ingestor: Ingestor,
        store: Store,
        sources: UnnumberedSources,
        clock: Clock,
        data: str,
        per_sample: int,
        per_node: int,
    ) -> None:
        self._ingestor, self._store, self._sources, self._clock = ingestor, store, sources, clock
        self._per_sample, self._per_node = per_sample, per_node
        self._ids = ReadingIds(os.path.join(data, READING_IDS))
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]
        self._newest_ms: dict[str, int] = {}  # by node: the time of its newest reading, or a later time
        self._channels: dict[str, set[str]] = {}  # by node: channels that it has
        self._uncertain: set[str] = set()  # nodes whose last request may still be committed
        ingestor.names.on_rename.append(self._on_rename)

    def latest_ms(self) -> int:
        """Return the last time that readings can have now, in ms since 1970 (UTC): any if this clock is not set."""
        return self._clock.wall_ms() + AHEAD_MS if self._clock.is_set() else LAST_MS

    def surplus(self, node: str, names: Iterable[str]) -> list[str]:
        """Return those of the channels `names` that `node` cannot have in addition to its present ones."""
        node = self._ingestor.names.current(node)
        known = self._channels.get(node, set())
        new = list(dict.fromkeys(name for name in names if name not in known))
        if not new:
            return []
        stored = self._store.channels(node, self._per_node)
        new = [name for name in new if name not in stored]
        room = max(0, self._per_node - len(stored))
        if len(self._channels) >= _MOST_CHANNELS:
            self._channels.clear()
        self._channels[node] = stored
        return new[room:]

    def store(self, readings: Mapping[Claim, Sequence[TimedReading]], limit_s: float = STORE_S) -> Outcome:
        """Make the readings of one request durable, except those that are stored already.

        Args:
            readings: Readings by client; the claims have different nodes.
            limit_s: Maximum wait, in seconds.

        Returns:
            The number of readings that are stored now, and of those that were stored before.

        Raises:
            NotStored: This would take longer. Some of the readings may be stored.
            BeyondLimit: They exceed a limit of the server.
            AuthFailed: A node has a token that its client has not proved.
            DiskError: The ids cannot be written.
        """
        give_up_s = self._clock.monotonic() + limit_s
        for claim in readings:
            self._sources.check(claim)
        while True:
            nodes = self._nodes(readings)
            with self._locked(nodes.values(), give_up_s):
                self._settle(nodes.values(), give_up_s)
                for claim, wanted in readings.items():
                    if self.surplus(nodes[claim], {name for reading in wanted for name in reading.values}):
                        raise NotStored(f"other requests have added sensors to node {nodes[claim]} at the same time")
                plans = {claim: self._plan(nodes[claim], wanted) for claim, wanted in readings.items()}
                self._ingestor.names.refresh()
                if self._nodes(readings) == nodes:  # otherwise a node was renamed, and not found by its former name
                    self._commit(plans, nodes.values(), give_up_s)
                    break
        return Outcome(sum(plan.stored for plan in plans.values()), sum(plan.repeated for plan in plans.values()))

    def _commit(self, plans: Mapping[Claim, _Plan], nodes: Collection[str], give_up_s: float) -> None:
        self._ids.add(entry for plan in plans.values() for entry in plan.ids)
        batches = [
            batch for claim, plan in plans.items() if plan.samples
            for batch in self._sources.batches(self._external(claim, plan))
        ]  # fmt: skip
        self._uncertain.update(nodes)
        waiter = CommitWaiter(self._ingestor, self._clock)
        if not waiter.store(batches, max(0.0, give_up_s - self._clock.monotonic())):
            raise NotStored(self._ingestor.fault or "the database is busy, or the server is stopping")
        self._uncertain.difference_update(nodes)

    # ------------------------------------------------------------------------------------------------- the plan

    def _plan(self, node: str, readings: Sequence[TimedReading]) -> _Plan:
        """Return what is to be stored of the readings of `node`. Raise BeyondLimit if there is no free time for one."""
        now_ms, newest_ms = self._clock.wall_ms(), self._newest(node)
        names = self._ingestor.names.names_of(node)
        times = {reading.id: time_ms for reading in readings
                 if reading.id and (time_ms := self._time_of(names, reading.id)) is not None}  # fmt: skip
        given = [times.get(reading.id, reading.time_ms) for reading in readings]
        wanted = {time_ms for time_ms in given if time_ms is not None and time_ms <= newest_ms}
        plan = _Plan(self._stored(node, sorted(wanted)))
        for reading, time_ms in zip(readings, given):
            if time_ms is None:
                time_ms = times.get(reading.id)  # the same id earlier in this request
            if time_ms is None:
                while not reading.values.keys().isdisjoint(self._values_at(node, now_ms, newest_ms, plan)):
                    now_ms += 1
                time_ms = now_ms
            if reading.id and reading.id not in times:
                time_ms = self._free_ms(node, reading, time_ms, newest_ms, plan)
                times[reading.id] = time_ms
                plan.ids.append((_id_of(node, reading.id), time_ms))
            plan.add(reading, time_ms)
        if plan.samples:
            if len(self._newest_ms) >= _MOST_TIMES:
                self._newest_ms.clear()
            self._newest_ms[node] = max(newest_ms, *plan.samples)
        return plan

    def _time_of(self, names: Sequence[str], id: str) -> int | None:
        """Return the time of the reading `id` of the node with the current and former names `names`, if it is known."""
        found = (self._ids.time_of(_id_of(name, id)) for name in names)
        return next((time_ms for time_ms in found if time_ms is not None), None)

    def _newest(self, node: str) -> int:
        found = self._newest_ms.get(node)
        if found is None:
            last = self._store.points(node, FIRST_MS, LAST_MS + 1, 1)
            found = last[0].time_ms if last else FIRST_MS
        return found

    def _free_ms(self, node: str, reading: TimedReading, time_ms: int, newest_ms: int, plan: _Plan) -> int:
        """Return the first time from `time_ms` on at which no other value is stored for a sensor of `reading`.

        An equal value is a repeat whose id has been forgotten.
        """
        values, last_ms = reading.values, time_ms + MOST_LATER_MS
        steps = plan.steps.setdefault(frozenset(values), {})
        passed: list[int] = []
        while (at_time := self._values_at(node, time_ms, newest_ms, plan)) and any(
            at_time.get(name, value) not in (value, None) for name, value in values.items()
        ):
            passed.append(time_ms)
            time_ms = steps.get(time_ms, time_ms + 1)
            if time_ms > last_ms:
                text = (
                    f"node {node} has other values in all {MOST_LATER_MS:,} ms from {passed[0]} on: correct the clock"
                )
                raise BeyondLimit(text)
        steps.update(dict.fromkeys(passed, time_ms))
        return time_ms

    def _values_at(self, node: str, time_ms: int, newest_ms: int, plan: _Plan) -> Mapping[str, Number | None]:
        """Return the values that are stored or planned at `time_ms`. Those of the next times are read with them."""
        if time_ms not in plan.taken and time_ms <= newest_ms:
            plan.taken = {**self._stored(node, range(time_ms, time_ms + _AHEAD)), **plan.taken}
        return plan.taken.get(time_ms, _NOTHING)

    def _stored(self, node: str, times: Sequence[int]) -> _Taken:
        """Return the stored values at each of `times`, which are sorted."""
        found: _Taken = {time_ms: {} for time_ms in times}
        start = 0
        for place in range(1, len(times) + 1):
            if place == len(times) or times[place] - times[place - 1] > _RANGE_MS:
                for _, _, batch in self._ingestor.stored_batches(node, times[start], times[place - 1] + 1):
                    for place_in_batch, time_ms in enumerate(batch.times):
                        if (at_time := found.get(time_ms)) is not None:
                            at_time.update((name, column[place_in_batch]) for name, column in batch.values.items())
                start = place
        return found

    def _external(self, claim: Claim, plan: _Plan) -> list[ExternalReading]:
        """Return the samples of `plan` in the order of their times, each with at most `per_sample` channels."""
        found = []
        for time_ms, values in sorted(plan.samples.items()):
            names = list(values)
            for start in range(0, len(names), self._per_sample):
                part = {name: values[name] for name in names[start : start + self._per_sample]}
                errors = {name: _FAILED for name, value in part.items() if value is None}
                found.append(ExternalReading(claim, part, plan.units, time_ms, errors))
        return found

    # ------------------------------------------------------------------------------------------------ the nodes

    def _nodes(self, claims: Iterable[Claim]) -> dict[Claim, str]:
        """Return the current names of the nodes of `claims`."""
        return {claim: self._ingestor.names.current(claim.node) for claim in claims}

    @contextlib.contextmanager
    def _locked(self, nodes: Iterable[str], give_up_s: float) -> Iterator[None]:
        # An open request may have locked a node by its former name.
        names = {name for node in nodes for name in self._ingestor.names.names_of(node)}
        with contextlib.ExitStack() as held:
            for stripe in sorted({hash(name) % _STRIPES for name in names}):  # in one order: no deadlock
                if not self._stripes[stripe].acquire(timeout=max(0.0, give_up_s - self._clock.monotonic())):
                    raise NotStored("another request of the same node takes too long")
                held.callback(self._stripes[stripe].release)
            yield

    def _settle(self, nodes: Iterable[str], give_up_s: float) -> None:
        """Wait until no earlier request of `nodes` can still be committed: the next query must find its readings."""
        if self._uncertain.isdisjoint(nodes):
            return
        if not self._ingestor.flush(max(0.0, give_up_s - self._clock.monotonic())):
            raise NotStored(self._ingestor.fault or "the database is busy, or the server is stopping")
        self._uncertain.difference_update(nodes)

    def _on_rename(self, node: str, new: str) -> None:
        for cache in (self._newest_ms, self._channels):
            cache.pop(node, None)
            cache.pop(new, None)
        self._uncertain.update((node, new))


def _id_of(node: str, id: str) -> str:
    return f"{node}\0{id}"


class _Plan:
    """Samples to store for one node.

    Args:
        taken: Stored values by time, for each time that has been looked up.

    Attributes:
        taken: The same, with the values of this plan.
        steps: By the sensors of a reading, then by a time at which it found other values: the next time to try.
        samples: Values by time.
        units: Units by sensor.
        ids: New ids and the times of their readings.
        stored: Number of readings with a value that is not stored yet.
        repeated: Number of the other readings.
    """

    def __init__(self, taken: _Taken) -> None:
        self.taken = taken
        self.steps: dict[frozenset[str], dict[int, int]] = {}
        self.samples: dict[int, dict[str, Number | None]] = {}
        self.units: dict[str, str] = {}
        self.ids: list[tuple[str, int]] = []
        self.stored = self.repeated = 0

    def add(self, reading: TimedReading, time_ms: int) -> None:
        """Add the values of `reading` whose sensors have none at `time_ms`."""
        taken = self.taken.setdefault(time_ms, {})
        new = reading.values if not taken else {
            name: value for name, value in reading.values.items() if name not in taken
        }  # fmt: skip
        if not new:
            self.repeated += 1
            return
        self.stored += 1
        self.units.update(reading.units)
        self.samples.setdefault(time_ms, {}).update(new)
        taken.update(new)
