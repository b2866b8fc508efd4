"""Publisher of the last state of each sensor to Redis: one hash per sensor, and a message when its value changes.

Only this module imports redis-py. A separate thread communicates with Redis. `_lock` guards the states and the set of
states that are not written yet. It is held while they are changed or copied, and never during a call to Redis, so the
Ingestor's writer thread never waits for Redis.
Errors: none for callers. If Redis is unreachable, full or misconfigured, this is logged once and shown as a fault, and
the publisher keeps trying.

Redis is a mirror and not a store: nothing is read back, and nothing waits for it. For each sensor only the newest state
is kept until it is written. Redis may lose all data (a restart, FLUSHALL, another server at its address). A key with a
random value of this run shows this: if it is missing or different, all present states are written again.

    HGETALL pigeonpost:basement:temperature
    SUBSCRIBE pigeonpost:basement:temperature     (or PSUBSCRIBE pigeonpost:*)

The names of the fields are those of the older multi-sensor system. Node, Sensor, Unit, Error and Clock are new.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pigeonpost.core.clock import FIRST_MS, Clock
from pigeonpost.core.errors import MissingLibrary, NotStored, SettingsError
from pigeonpost.core.format import counted
from pigeonpost.core.redact import hide_secrets
from pigeonpost.link.samples import Gap
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import EpochCommit, Reading

log = logging.getLogger(__name__)

MOST_SERIES = 100_000  # maximum number of states in memory: nodes choose the names of their sensors freely
PACE_S = 0.1  # minimum interval between two writes: if a state changes faster, only its last value is published
LOOK_S = 1.0  # interval between two checks of the states of nodes and bus components
CHECK_S = 10.0  # interval between two checks that Redis has not lost its data
RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
ANSWER_S = 5.0  # timeout of a call to Redis
_AT_ONCE = 500  # states that are sent together

State = dict[str, Any]


class RedisPublisher:
    """Thread that keeps the states in Redis up to date.

    Attributes:
        fault: Reason why Redis does not accept the states; empty if it does.
        written: Number of states that were written in this run.
        success_ms: Time at which Redis last had all states, in ms since 1970 (UTC); None if it never had in this run.
        place: Address of Redis, without user and password.
        statuses: Function that returns its states for the page "Integrations"; its creator sets it.
    """

    statuses: Callable[[], Sequence[Any]] = staticmethod(tuple)

    def __init__(
        self,
        url: str,
        prefix: str,
        server: str,
        clock: Clock,
        newest: Callable[[str], Iterable[Reading]],
        store: Store | None = None,
        nodes: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
        others: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
    ) -> None:
        """Initialise the publisher without starting its thread.

        Args:
            url: redis://[user:password@]host:port/number, or rediss:// for TLS.
            prefix: Prefix of all keys and channels.
            server: Name of this server.
            clock: Clock of the server.
            newest: Function that returns the newest reading of each sensor of a node.
            store: Store whose last samples are published at the start; None for no samples.
            nodes: Function that returns additional fields by node. They are added to the hashes of all its sensors.
            others: Function that returns more hashes, keyed by the part of their Redis key after `prefix`: the
                components of the multicast bus, keyed by codifier (the two letters that identify a component).

        Raises:
            MissingLibrary: redis-py is not installed.
            SettingsError: `url` is not a valid address.
        """
        try:
            import redis
        except ImportError:
            raise MissingLibrary(
                "[redis] url needs redis-py: `sudo apt install python3-redis`, or `pip install redis`"
            ) from None
        self.fault = ""
        self.written = 0
        self.success_ms: int | None = None
        self.place = hide_secrets(url)
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError, ValueError)
        try:
            self._redis: Any = redis.Redis.from_url(
                url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S, decode_responses=True
            )
        except ValueError:  # its text may contain the password
            raise SettingsError(
                "[redis] url is not a valid address; use the form redis://:password@host:6379/0"
            ) from None
        self._prefix = prefix
        self._run_marker = f"{prefix}@{server}", os.urandom(8).hex()
        self._clock = clock
        self._newest = newest
        self._store = store
        self._nodes, self._others = nodes, others
        self._lock = threading.Lock()
        self._states: dict[str, State] = {}
        self._pending: dict[str, None] = {}  # keys of states that are not written yet, in order
        self._lost: dict[str, int] = {}  # number of samples in gaps, by node
        self._published: dict[str, Any] = {}  # values that were published last, by key
        self._active: dict[str, Any] = {}  # the last known IsActive of each node
        self._ignored = 0  # readings of sensors that exceed MOST_SERIES
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)

    def start(self) -> None:
        """Start the thread. The method does not wait for Redis."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Write the remaining states and stop, within `limit_s` seconds.

        Returns a message if states were not written, otherwise None.
        """
        self._stopping.set()
        self._changed.set()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            return "Redis does not answer: the last states were not written to it"
        self._redis.close()
        return f"Redis: {counted(len(self._pending), 'state')} not written" if self._pending else None

    def report(self) -> dict[str, Any]:
        """Return the state for the pages and the JSON API."""
        with self._lock:
            return {"series": len(self._states), "lacking": len(self._pending), "written": self.written,
                    "ignored": self._ignored, "fault": self.fault}  # fmt: skip

    # ----------------------------------------------------------------------------- the Ingestor's writer thread

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Record the newest state of each sensor of the nodes in `epoch_commits`.

        Runs in the Ingestor's writer thread, so it must not wait.
        """
        lost_of: dict[str, int] = {}
        for commit in epoch_commits:
            gaps = [item for item in commit.items if isinstance(item, Gap)]
            lost = sum(gap.last - gap.first + 1 + gap.before for gap in gaps)
            lost_of[commit.node] = lost_of.get(commit.node, 0) + lost
        for node, lost in lost_of.items():
            with self._lock:
                if lost:
                    self._lost[node] = self._lost.get(node, 0) + lost
                for reading in self._newest(node):
                    self._put(f"{node}:{reading.sensor}", _state(node, reading))
        self._changed.set()

    def _put(self, key: str, state: State) -> None:
        entry = self._states.get(key)
        if entry is None:
            if len(self._states) >= MOST_SERIES:
                self._ignored += 1
                return
            entry = self._states[key] = {}
        if not state.items() <= entry.items():
            entry.update(state)
            self._pending[key] = None

    # ----------------------------------------------------------------------------------------- this thread

    def _run(self) -> None:
        retry_s = RETRY_S
        others_s = checked_s = -CHECK_S
        self._load_last()
        while True:
            is_last = self._stopping.is_set()
            self._changed.clear()
            now_s = self._clock.monotonic()
            try:
                if now_s - others_s >= LOOK_S:
                    self._check_others()
                    others_s = now_s
                if self._pending or now_s - checked_s >= CHECK_S:
                    self._write_pending()
                    checked_s, retry_s = now_s, RETRY_S
                    self.success_ms = self._clock.wall_ms()
                if self.fault:
                    log.warning("Redis accepts the last states again")
                self.fault = ""
            except self._errors as error:
                if not self.fault:
                    log.warning("Redis does not accept the last states: %s", error)
                self.fault = f"Redis does not accept the last states: {hide_secrets(str(error))}"
                checked_s = -CHECK_S
                self._stopping.wait(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
            if is_last:
                return
            self._changed.wait(LOOK_S)
            self._stopping.wait(PACE_S)

    def _load_last(self) -> None:
        """Record the states of the last samples in the store, except for sensors that have a newer state already."""
        if self._store is None:
            return
        try:
            for node in self._store.nodes():
                if self._stopping.is_set() or node["last_ms"] is None:
                    continue
                with self._lock:
                    self._lost[node["name"]] = self._lost.get(node["name"], 0) + node["missing"]
                # A date in the future is that of a wrong clock.
                last_ms = min(node["last_ms"], self._clock.wall_ms())
                points = self._store.points(node["name"], FIRST_MS, last_ms + 1, 1)
                for point in points or self._store.points(node["name"], node["last_ms"], node["last_ms"] + 1, 1):
                    for sensor, value in point.values.items():
                        key = f"{point.node}:{sensor}"
                        unit = node["sensors"].get(sensor, "")
                        reading = Reading(sensor, value, point.time_ms, unit, "", point.clock)
                        with self._lock:
                            if key not in self._states:
                                self._put(key, _state(point.node, reading))
        except (OSError, NotStored) as error:
            log.warning("the last states in the store cannot be published to Redis: %s", error)

    def _check_others(self) -> None:
        for key, fields in self._others().items():
            state = {name: field for name, field in fields.items() if not isinstance(field, Mapping | list)}
            with self._lock:
                if self._states.get(key) != state:
                    self._put(key, state)
        active = {name: fields.get("IsActive") for name, fields in self._nodes().items()}
        changed = {name for name, is_active in active.items() if self._active.get(name) != is_active}
        self._active = active
        if changed:
            with self._lock:
                self._pending.update({key: None for key, state in self._states.items() if state.get("Node") in changed})

    def _write_pending(self) -> None:
        """Write the pending states, or all states if Redis has lost the key of this run and thus its other data."""
        key, marker = self._run_marker
        if self._redis.get(key) != marker:
            self._redis.set(key, marker)  # first: if Redis loses its data again now, it loses this key too
            with self._lock:
                self._pending = dict.fromkeys(self._states)
        while True:
            with self._lock:
                keys = list(self._pending)[:_AT_ONCE]
                states = {name: dict(self._states[name]) for name in keys}
                for name in keys:
                    del self._pending[name]
            if not states:
                break
            try:
                self._send(states)
            except BaseException:
                with self._lock:
                    self._pending = dict.fromkeys([*keys, *self._pending])
                raise

    def _send(self, states: Mapping[str, State]) -> None:
        nodes = self._nodes()
        changed = {}
        pipeline = self._redis.pipeline(transaction=False)
        for key, state in states.items():
            complete = dict(state)
            if "Node" in state:
                complete |= {**nodes.get(state["Node"], {}), "DPacketsLost": self._lost.get(state["Node"], 0)}
            fields = {name: _text(field) for name, field in complete.items()}
            pipeline.hset(self._prefix + key, mapping=fields)
            value = state.get("Value")
            if key not in self._published or self._published[key] != value:
                changed[key] = value
                pipeline.publish(self._prefix + key, json.dumps(fields, ensure_ascii=False))
        pipeline.execute()
        self._published.update(changed)
        self.written += len(states)


def _state(node: str, reading: Reading) -> State:
    return {
        "Codifier": f"{node}:{reading.sensor}", "Value": reading.value, "DTimestamp": reading.time_ms,
        "Node": node, "Sensor": reading.sensor, "Unit": reading.unit, "Error": reading.error, "Clock": reading.clock,
    }  # fmt: skip


def _text(field: Any) -> str:
    """Return a field as text for Redis: an empty string for None, and 1 or 0 for booleans."""
    if field is None:
        return ""
    return str(int(field)) if isinstance(field, bool) else str(field)
