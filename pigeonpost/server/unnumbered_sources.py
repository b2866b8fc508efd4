"""Clients that connect to us: who may write as which node, what the pages show of them, and their readings.

Every transport that nodes and older clients connect to asks here before it makes anything for a node name:

- A node that has a token is only written by who proves the token. Everything else is refused (AuthFailed).
- A transport lets in MOST_UNPROVEN names of nodes without a token, with MOST_UNPROVEN_SENSORS sensors in all
  (NotStored beyond that). Nodes that have a token are not counted, so nobody else takes their places.

Runs in any thread. `_lock` guards the clients of this run; it is held to look one up, or to add it.
Errors: NotStored if a reading could not be made durable in time; then it is not stored later either.

A reading without epoch and sequence number gets the identity that a node would have given it: an epoch, drawn at
random for each client in each run of this server, and the next number in it. A reading that is sent twice is stored
twice: a repetition cannot be told from a new reading.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import AuthFailed, BeyondLimit, NotStored, SettingsError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.commit_waiter import CommitWaiter
from pigeonpost.server.node_status import AskNode, NodeLink, NodeState
from protocol import Batch, Number

if TYPE_CHECKING:
    from pigeonpost.auth.throttle import LoginThrottle
    from pigeonpost.core.faults import Faults
    from pigeonpost.server.ingest import Ingestor

log = logging.getLogger(__name__)

STORE_S = 8.0  # for making a reading durable: the programs that bring one wait 10 s and more
MOST_UNPROVEN = 128  # names of nodes without a token, of each transport, in one run,
MOST_UNPROVEN_SENSORS = 512  # and names of sensors of all of them: anybody can invent both
MOST_SHOWN = 1024  # sensors of a client
_REMEMBERED = 4  # intervals between calls; the longest is the expected one


class Claim(NamedTuple):
    """Who a client says it is.

    transport  the name of the transport that it came by: "mqtt"
    is_proven  it has proved the node's token
    is_listed  the settings of the older system name this node: its place is never taken by others
    """

    node: str
    transport: str
    is_proven: bool = False
    is_listed: bool = False


class ExternalReading(NamedTuple):
    """One sample of a client.

    values   sensor name to number; None where a sensor failed
    time_ms  when it was taken, in milliseconds since 1970 (UTC); None: now, by this machine's clock
    errors   of the sensors that failed, in words
    """

    claim: Claim
    values: Mapping[str, Number | None]
    units: Mapping[str, str]
    time_ms: int | None = None
    errors: Mapping[str, str] | None = None


class ExternalClient:
    """A node that connects to us, as the pages see it: it cannot be asked, unless its transport has a way."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.sensors: set[str] = set()  # names that it brought while it proved nothing
        self.epoch = os.urandom(8).hex()
        self.state = NodeState("", claim.node)
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
    """The clients of this run that connect to us."""

    def __init__(
        self,
        ingestor: Ingestor,
        links: list[NodeLink],
        clock: Clock,
        tokens: Collection[str],
        faults: Faults,
        throttle: LoginThrottle,
        current: Callable[[str], str] = lambda name: name,
    ) -> None:
        """
        links   everybody who is collected from, as the pages show them; a new caller is added
        tokens  names of the nodes that have a token; looked up each time
        current returns the present name of a node that says it has this one; see NodeRegister
        """
        self._ingestor = ingestor
        self._links = links
        self._clock = clock
        self._tokens = tokens
        self._faults = faults
        self._throttle = throttle
        self._current = current
        self._lock = threading.Lock()
        self._callers: dict[str, ExternalClient] = {}
        self._unproven_sensors: Counter[str] = Counter()  # by transport

    def store(self, reading: ExternalReading) -> None:
        """Make a reading durable. Raises NotStored when that takes longer than STORE_S seconds; AuthFailed."""
        try:
            is_stored = CommitWaiter(self._ingestor, self._clock).store([self._batch([reading])], STORE_S)
        except BeyondLimit as error:
            raise NotStored(str(error)) from None
        if not is_stored:
            raise NotStored(self._ingestor.fault or f"it was not stored within {STORE_S:g} s")

    def leave(self, *readings: ExternalReading) -> bool:
        """Submit readings of one client, which have the same sensors, as one batch, without waiting for its commit.

        Returns False if there is no room for it.
        """
        return self._ingestor.submit(self._batch(readings), limit_s=0.0)

    def caller(self, claim: Claim, sensors: Iterable[str] = ()) -> NodeState:
        """Return what the pages show of a client; made when it first comes.

        sensors  names of the sensors whose values it brings

        Raises AuthFailed where the node has a token and the client has not proved it; NotStored where there is no room
        for another node without a token, or for its sensors. Nothing is made then.
        """
        return self._caller(claim, sensors).state

    def check(self, claim: Claim) -> None:
        """Raise AuthFailed where the node has a token and the client has not proved it."""
        if claim.is_proven:
            return
        try:
            has_token = self._current(claim.node) in self._tokens
        except SettingsError as error:  # tokens that do not read: nobody knows who may write what
            raise NotStored(str(error)) from None
        if has_token:
            self.forget_unproven(claim.node)
            text = f"node {claim.node} has a token, and is only written by who proves it"
            self._throttle.log_failure(log, claim.transport, f"refused: {text}")
            raise AuthFailed(text)

    def forget_unproven(self, node: str) -> None:
        """Show no more of a client that came before its node had a token, and has not proved that."""
        node = self._current(node)
        with self._lock:
            caller = self._callers.get(node)
            if caller is not None and not caller.claim.is_proven:
                del self._callers[node]
                self._links.remove(caller)

    def recheck_tokens(self, nodes: Iterable[str]) -> None:
        """Show which of these nodes, whose tokens have changed, have none any more, and so are refused."""
        for node in nodes:
            caller = self._callers.get(node)
            if caller is not None and caller.claim.is_proven and caller.state.connected and node not in self._tokens:
                caller.state.connected, caller.state.since_ms = False, self._clock.wall_ms()
                caller.state.fault = f"its token was revoked: `control.py token {node}` makes another one"

    def on_rename(self, node: str, new: str) -> None:
        """Know a client by its new name."""
        with self._lock:
            caller = self._callers.pop(node, None)
            if caller is not None:
                caller.claim, caller.state.name = caller.claim._replace(node=new), new
                caller.ask, caller.state.takes_orders = _no_answer, False  # until it calls: `let_ask` knew its old name
                self._callers[new] = caller

    def find(self, node: str) -> NodeState | None:
        """Return what the pages show of `node`; None: it has not called in this run."""
        caller = self._callers.get(self._current(node))
        return caller.state if caller is not None else None

    def let_ask(self, node: str, ask: AskNode) -> None:
        """Make `node`, which has called, one that can be asked, by `ask`."""
        caller = self._callers.get(self._current(node))
        if caller is not None:  # else `forget_unproven` came first
            caller.ask = ask
            caller.state.takes_orders = True

    def _caller(self, claim: Claim, sensors: Iterable[str]) -> ExternalClient:
        self.check(claim)
        claim = claim._replace(node=self._current(claim.node))
        with self._lock:
            caller = self._callers.get(claim.node)
            if claim.is_proven or claim.is_listed:
                caller = caller or self._add(claim)
                caller.claim = claim
                return caller
            new = set(sensors) if caller is None else set(sensors) - caller.sensors
            if caller is None or new:
                self._check_room(claim, len(new), is_new=caller is None)
            caller = caller or self._add(claim)
            caller.sensors |= new
            self._unproven_sensors[claim.transport] += len(new)
            return caller

    def _add(self, claim: Claim) -> ExternalClient:
        caller = self._callers[claim.node] = ExternalClient(claim)
        self._links.append(caller)
        return caller

    def _check_room(self, claim: Claim, new_sensors: int, is_new: bool) -> None:
        """Raise NotStored where the nodes without a token of one transport are too many, or their sensors."""
        known = set(self._tokens)
        others = [
            caller for node, caller in self._callers.items()
            if caller.claim.transport == claim.transport and not caller.claim.is_listed and node not in known
        ]  # fmt: skip
        if is_new and len(others) >= MOST_UNPROVEN:
            limit = f"{MOST_UNPROVEN} nodes without a token"
        elif self._unproven_sensors[claim.transport] + new_sensors > MOST_UNPROVEN_SENSORS:
            limit = f"{MOST_UNPROVEN_SENSORS} sensors of nodes without a token"
        else:
            return
        text = f"{limit} have sent readings by {claim.transport} since the start, which is as many as are taken"
        remedy = "further ones are refused. Give your nodes tokens (control.py token NODE), and restart the server"
        self._faults.set(f"{claim.transport} clients", f"{text}; {remedy}")
        raise NotStored(text)

    def _batch(self, readings: Sequence[ExternalReading]) -> Batch:
        claim, values, units = readings[0][:3]
        caller, clock = self._caller(claim, values), self._clock
        now_ms = clock.wall_ms()
        caller.record_call(clock.monotonic(), now_ms)
        known = {sensor["name"] for sensor in caller.state.sensors}
        if not known.issuperset(values):
            new = [{"name": name, "unit": units.get(name, "")} for name in values if name not in known]
            caller.state.sensors = [*caller.state.sensors, *new][:MOST_SHOWN]
        times = [now_ms if reading.time_ms is None else reading.time_ms for reading in readings]
        columns = {name: [reading.values[name] for reading in readings] for name in values}
        errors: dict[str, dict[int, str]] = {}
        for place, reading in enumerate(readings):
            for name, text in (reading.errors or {}).items():
                errors.setdefault(name, {})[place] = text
        samples = SampleBatch(0, times, [clock.up_ms()] * len(readings), columns, errors)
        return Batch(claim.node, self._ingestor.identity, caller.epoch, None, samples, None, units)
