"""Publisher of the last state of every sensor to Redis: a hash for each, and a message at each change.

redis-py is imported here alone. A thread of its own talks to Redis. `_lock` guards the states and the set of those that
Redis lacks; it is held to change or copy them, never during a call to Redis, so the Ingestor's writer never waits.
Errors: none for others. A Redis that is away, full or misconfigured is logged once, shown as a fault, and tried again.

It is a mirror and no store: nothing is read back, and nothing waits for it. Of each sensor only the newest state is
kept until it is written. Redis may lose everything (a restart, FLUSHALL, another server at its address): a key with a
random value of this run shows that, and then the whole present state is written again.

    HGETALL pigeonpost:basement:temperature
    SUBSCRIBE pigeonpost:basement:temperature     (or PSUBSCRIBE pigeonpost:*)

The names of the fields are those of the older multi-sensor system; Node, Sensor, Unit, Error and Clock are new.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import MissingLibrary, NotStored, SettingsError
from pigeonpost.core.redact import hide_secrets
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import EpochCommit

log = logging.getLogger(__name__)

MOST_SERIES = 100_000  # that are kept in memory: a node may call its sensors what it likes
PACE_S = 0.1  # between two rounds at least: what changes faster is told as it then is
LOOK_S = 1.0  # between two looks at what others tell,
CHECK_S = 10.0  # and at whether Redis still knows what it was told
RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
ANSWER_S = 5.0  # that Redis may take
_AT_ONCE = 500  # states that are sent together

State = dict[str, Any]


class RedisPublisher:
    """Thread that keeps the states in Redis up to date."""

    def __init__(
        self,
        url: str,
        prefix: str,
        server: str,
        clock: Clock,
        store: Store | None = None,
        nodes: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
        others: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
    ) -> None:
        """
        url     redis://[user:password@]host:port/number, or rediss:// with TLS
        prefix  of all keys and channels
        server  this server's name
        store   whose last samples are published at the start
        nodes   returns what is known of each node besides its samples: these fields are in the hash of each sensor
        others  returns more hashes, by the rest of their keys: the components of the multicast bus, by codifier
        """
        try:
            import redis
        except ImportError:
            raise MissingLibrary(
                "[redis] url needs redis-py: `sudo apt install python3-redis`, or `pip install redis`"
            ) from None
        self.fault = ""
        self.written = 0  # states, in this run
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError, ValueError)
        try:
            self._redis: Any = redis.Redis.from_url(
                url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S, decode_responses=True
            )
        except ValueError:  # whose text may show the password
            raise SettingsError(
                "[redis] url takes an address like redis://:password@host:6379/0, not what it got"
            ) from None
        self._prefix = prefix
        self._ours = f"{prefix}@{server}", os.urandom(8).hex()
        self._clock = clock
        self._store = store
        self._nodes, self._others = nodes, others
        self._lock = threading.Lock()
        self._states: dict[str, State] = {}
        self._lacking: dict[str, None] = {}  # keys of states that Redis does not have, in their order
        self._lost: dict[str, int] = {}  # samples of a node that are said to be missing
        self._told: dict[str, Any] = {}  # the values that were published
        self._active: dict[str, Any] = {}  # nodes, and whether they were active when that was written
        self._ignored = 0  # readings of sensors beyond MOST_SERIES
        self._something = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)

    def start(self) -> None:
        """Begin to talk to Redis; returns at once."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Write what is still to be written, for `limit_s` seconds at most."""
        self._stopping.set()
        self._something.set()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            return "Redis does not answer: the last states were not told"
        self._redis.close()
        return f"{len(self._lacking)} states were not told to Redis" if self._lacking else None

    def report(self) -> dict[str, Any]:
        """Return the state for the pages and the JSON API."""
        with self._lock:
            return {"series": len(self._states), "lacking": len(self._lacking), "written": self.written,
                    "ignored": self._ignored, "fault": self.fault}  # fmt: skip

    # ----------------------------------------------------------------------------- the Ingestor's writer thread

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Take the newest state of each sensor from a commit. Runs in the Ingestor's writer thread; must not wait."""
        for epoch_commit in epoch_commits:
            states, lost = _newest(epoch_commit)
            with self._lock:
                if lost:
                    self._lost[epoch_commit.node] = self._lost.get(epoch_commit.node, 0) + lost
                for key, state in states.items():
                    self._put(key, state)
        self._something.set()

    def _put(self, key: str, state: State) -> None:
        known = self._states.get(key)
        if known is None:
            if len(self._states) >= MOST_SERIES:
                self._ignored += 1
                return
            known = self._states[key] = {}
        known.update(state)
        self._lacking[key] = None

    # ----------------------------------------------------------------------------------------- the thread's

    def _run(self) -> None:
        retry_s = RETRY_S
        looked_s = checked_s = -CHECK_S
        self._begin()
        while True:
            ends = self._stopping.is_set()
            self._something.clear()
            now_s = self._clock.monotonic()
            try:
                if now_s - looked_s >= LOOK_S:
                    self._look_at_others()
                    looked_s = now_s
                if self._lacking or now_s - checked_s >= CHECK_S:
                    self._bring()
                    checked_s, retry_s = now_s, RETRY_S
                if self.fault:
                    log.warning("Redis is there again")
                self.fault = ""
            except self._errors as error:
                if not self.fault:
                    log.warning("Redis does not take the last states: %s", error)
                self.fault = f"Redis does not take the last states: {hide_secrets(str(error))}"
                checked_s = -CHECK_S
                self._stopping.wait(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
            if ends:
                return
            self._something.wait(LOOK_S)
            self._stopping.wait(PACE_S)

    def _begin(self) -> None:
        """Take the last samples in the store, as far as nothing newer has come."""
        if self._store is None:
            return
        try:
            for node in self._store.nodes():
                if self._stopping.is_set() or node["last_ms"] is None:
                    continue
                with self._lock:
                    self._lost[node["name"]] = self._lost.get(node["name"], 0) + node["missing"]
                for point in self._store.points(node["name"], node["last_ms"], node["last_ms"] + 1, 1):
                    for sensor, value in point.values.items():
                        key = f"{point.node}:{sensor}"
                        unit = node["sensors"].get(sensor, "")
                        with self._lock:
                            if key not in self._states:
                                self._put(key, _state(point.node, sensor, value, point.time_ms, unit, "", point.clock))
        except (OSError, NotStored) as error:
            log.warning("the last states from before are not told to Redis: %s", error)

    def _look_at_others(self) -> None:
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
                self._lacking.update({key: None for key, state in self._states.items() if state.get("Node") in changed})

    def _bring(self) -> None:
        """Write all that Redis lacks; everything, when it has lost the key of this run."""
        key, word = self._ours
        if self._redis.get(key) != word:
            self._redis.set(key, word)  # before the rest: if it forgets again meanwhile, it forgets this too
            with self._lock:
                self._lacking = dict.fromkeys(self._states)
        while True:
            with self._lock:
                keys = list(self._lacking)[:_AT_ONCE]
                states = {name: dict(self._states[name]) for name in keys}
                for name in keys:
                    del self._lacking[name]
            if not states:
                break
            try:
                self._send(states)
            except BaseException:
                with self._lock:
                    self._lacking = dict.fromkeys([*keys, *self._lacking])
                raise

    def _send(self, states: Mapping[str, State]) -> None:
        nodes = self._nodes()
        changed = {}
        pipeline = self._redis.pipeline(transaction=False)
        for key, state in states.items():
            whole = dict(state)
            if "Node" in state:
                whole |= {**nodes.get(state["Node"], {}), "DPacketsLost": self._lost.get(state["Node"], 0)}
            fields = {name: _text(field) for name, field in whole.items()}
            pipeline.hset(self._prefix + key, mapping=fields)
            value = state.get("Value")
            if key not in self._told or self._told[key] != value:
                changed[key] = value
                pipeline.publish(self._prefix + key, json.dumps(fields, ensure_ascii=False))
        pipeline.execute()
        self._told.update(changed)
        self.written += len(states)


def _newest(epoch_commit: EpochCommit) -> tuple[dict[str, State], int]:
    """Return the last value of each sensor in what one commit adds to an epoch, and the number of lost samples."""
    states: dict[str, State] = {}
    names: tuple[str, ...] = ()
    lost = 0
    for item in reversed(epoch_commit.items):
        if not isinstance(item, SampleBatch):
            lost += item.last - item.first + 1 + item.before
            continue
        if item.names == names:
            continue  # of the same sensors, and older
        names, sample = item.names, item[-1]
        for sensor, value in sample.values.items():
            if f"{epoch_commit.node}:{sensor}" not in states:
                unit, error = epoch_commit.units.get(sensor, ""), sample.errors.get(sensor, "")
                states[f"{epoch_commit.node}:{sensor}"] = _state(
                    epoch_commit.node, sensor, value, sample.time_ms, unit, error, sample.clock
                )
    return states, lost


def _state(node: str, sensor: str, value: float | None, time_ms: int, unit: str, error: str, clock: str) -> State:
    return {
        "Codifier": f"{node}:{sensor}", "Value": value, "DTimestamp": time_ms,
        "Node": node, "Sensor": sensor, "Unit": unit, "Error": error, "Clock": clock,
    }  # fmt: skip


def _text(field: Any) -> str:
    """Return a field for Redis: numbers as Python and JSON write them, empty for no value, 1 and 0 for booleans."""
    if field is None:
        return ""
    return str(int(field)) if isinstance(field, bool) else str(field)
