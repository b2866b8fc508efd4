"""Readings from clients that send no epoch or sequence number, as those of older systems.

Runs in any thread. `_lock` guards the clients of this run; it is held to look one up, or to add it.
Errors: NotStored if a reading could not be made durable in time; then it is not stored later either.

Such a reading gets the identity that a node would have given it: an epoch, drawn at random for each client in each run
of this server, and the next number in it. A reading that is sent twice is stored twice: a repetition cannot be told
from a new reading.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import NotStored
from pigeonpost.server.commit_waiter import CommitWaiter
from pigeonpost.server.node_status import AskNode, NodeLink, NodeState
from protocol import Batch, Number, Sample

if TYPE_CHECKING:
    from pigeonpost.server.ingest import Ingestor

STORE_S = 8.0  # for making a reading durable: the programs that bring one wait 10 s and more
MOST_CALLERS = 10_000
_REMEMBERED = 4  # intervals between calls; the longest is the expected one


class ExternalReading(NamedTuple):
    """One sample of a client.

    values   sensor name to number; None where a sensor failed
    time_ms  when it was taken, in milliseconds since 1970 (UTC); None: now, by this machine's clock
    errors   of the sensors that failed, in words
    """

    node: str
    values: Mapping[str, Number | None]
    units: Mapping[str, str]
    time_ms: int | None = None
    errors: Mapping[str, str] | None = None


class ExternalClient:
    """A node that connects to us, as the pages see it: it cannot be asked, unless its transport has a way."""

    def __init__(self, name: str) -> None:
        self.epoch = os.urandom(8).hex()
        self.state = NodeState("", name)
        self.state.calls_in = True
        self._calls: deque[float] = deque(maxlen=_REMEMBERED + 1)
        self.ask: AskNode = _no_answer

    def record_call(self, now_s: float, now_ms: int) -> None:
        """It has called now; how often it does is learned from that."""
        state = self.state
        self._calls.append(now_s)
        calls = list(self._calls)
        if len(calls) > 1:
            state.every_s = max(later - earlier for earlier, later in pairwise(calls))
        state.record_contact(now_ms)


def _no_answer(word: str, *args: bool, limit_s: float = 5.0) -> bool:
    """Return False: this client sends, but cannot be asked."""
    return False


class UnnumberedSources:
    """The clients of this run that do not number their readings."""

    def __init__(self, ingestor: Ingestor, links: list[NodeLink], clock: Clock) -> None:
        """links: everybody who is collected from, as the pages show them; a new caller is added."""
        self._ingestor = ingestor
        self._links = links
        self._clock = clock
        self._lock = threading.Lock()
        self._callers: dict[str, ExternalClient] = {}

    def store(self, reading: ExternalReading) -> None:
        """Make a reading durable. Raises NotStored when that takes longer than STORE_S seconds."""
        if not CommitWaiter(self._ingestor, self._clock).store([self._batch(reading)], STORE_S):
            raise NotStored(self._ingestor.fault or f"it was not stored within {STORE_S:g} s")

    def leave(self, reading: ExternalReading) -> bool:
        """Submit a reading without waiting for its commit. Returns False if there is no room for it."""
        return self._ingestor.submit(self._batch(reading), limit_s=0.0)

    def caller(self, node: str) -> NodeState:
        """What the pages show of `node`, which calls in; made when it is first asked for."""
        return self._caller(node).state

    def record_call(self, node: str) -> NodeState:
        """`node` has called just now; what the pages show of it."""
        caller, clock = self._caller(node), self._clock
        caller.record_call(clock.monotonic(), clock.wall_ms())
        return caller.state

    def let_ask(self, node: str, ask: AskNode) -> None:
        """Make `node` one that can be asked, by `ask`."""
        caller = self._caller(node)
        caller.ask = ask
        caller.state.takes_orders = True

    def _caller(self, node: str) -> ExternalClient:
        with self._lock:
            caller = self._callers.get(node)
            if caller is None:
                if len(self._callers) >= MOST_CALLERS:
                    raise NotStored(f"{MOST_CALLERS} nodes have called in, which is as many as are listened to")
                caller = self._callers[node] = ExternalClient(node)
                self._links.append(caller)
            return caller

    def _batch(self, reading: ExternalReading) -> Batch:
        node, values, units, time_ms, errors = reading
        caller, clock = self._caller(node), self._clock
        now_ms = clock.wall_ms()
        caller.record_call(clock.monotonic(), now_ms)
        known = {sensor["name"] for sensor in caller.state.sensors}
        if not known.issuperset(values):
            new = [{"name": name, "unit": units.get(name, "")} for name in values if name not in known]
            caller.state.sensors = [*caller.state.sensors, *new]
        sample = Sample(0, now_ms if time_ms is None else time_ms, clock.up_ms(), dict(values), errors or {}, "")
        identity = self._ingestor.identity
        return Batch(node, identity, caller.epoch, None, [sample], None, units)
