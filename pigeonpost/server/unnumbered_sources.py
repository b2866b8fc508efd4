"""Clients that connect to this server: their permissions, their states for the pages, and their readings.

Each transport to which nodes and older clients connect calls this module before it accepts data for a node name:

- Only a client that proves the token of a node may write as that node. Other clients are refused (AuthFailed).
- A transport admits up to MOST_UNPROVEN names of nodes without a token, with up to MOST_UNPROVEN_SENSORS sensors in
  total (NotStored beyond that). Nodes with a token are not counted, so untrusted clients cannot exclude them.

Any thread may use it. `_lock` guards the clients of this run, and is held while one is looked up or added.
Errors: NotStored if a reading could not be made durable in time. It is then not stored later either.

A reading without epoch and sequence number receives the identity that a node would have assigned: an epoch, chosen at
random for each client in each run of this server, and the next number in it. A reading that is sent twice is stored
twice, because a repetition cannot be distinguished from a new reading. Instead of a value that is impossible in its
unit (see sensors.ranges), null is stored with an error. A node checks its values itself, and the server never changes
them.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import AuthFailed, BeyondLimit, NeverStored, NotStored, SensorError, SettingsError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.sensors.contract import Channel
from pigeonpost.sensors.ranges import Range, checked, ranges_of
from pigeonpost.server.commit_waiter import CommitWaiter
from pigeonpost.server.known_clients import KnownClient, KnownClients
from pigeonpost.server.liveness import UsualInterval
from pigeonpost.server.node_status import AskNode, NodeLink, NodeState
from protocol import Batch, Number

if TYPE_CHECKING:
    from pigeonpost.auth.throttle import LoginThrottle
    from pigeonpost.core.faults import Faults
    from pigeonpost.server.ingest import Ingestor

log = logging.getLogger(__name__)

STORE_S = 8.0  # time limit for making a reading durable: client programs wait for at least 10 s
MOST_UNPROVEN = 128  # names of nodes without a token per transport and run: any client can invent names
MOST_UNPROVEN_SENSORS = 512  # names of sensors of all these nodes, per transport and run
MOST_SHOWN = 1024  # maximum number of sensors of a client on the pages


class Claim(NamedTuple):
    """Identity that a client reports.

    Attributes:
        node: Name of the node.
        transport: Name of the transport that the client uses, for example "mqtt".
        is_proven: True if the client has proved the token of the node.
        is_listed: True if the settings of the older system contain this node, or if a program with an API token that
            may write sends its readings. It is then always admitted.
    """

    node: str
    transport: str
    is_proven: bool = False
    is_listed: bool = False


class ExternalReading(NamedTuple):
    """One sample of a client.

    Attributes:
        claim: Identity of the client.
        values: Number by sensor name; None for a sensor that failed.
        units: Unit by sensor name.
        time_ms: Time of the sample, in ms since 1970 (UTC); None for the current time of the server.
        errors: Descriptions of the errors of failed sensors, by sensor name.
    """

    claim: Claim
    values: Mapping[str, Number | None]
    units: Mapping[str, str]
    time_ms: int | None = None
    errors: Mapping[str, str] | None = None


class ExternalClient:
    """Client that connects to this server: the NodeLink of a node for the pages.

    Attributes:
        claim: Identity of the client.
        sensors: Names of sensors that it sent without proving a token.
        epoch: Epoch of its readings in this run.
        state: State of the node.
        ask: Function that sends a command to the node; it returns False if the transport does not support commands.
    """

    def __init__(self, claim: Claim, every_s: float | None = None) -> None:
        """Initialise a client that has not sent anything yet.

        Args:
            claim: Identity of the client.
            every_s: Its interval in earlier runs in seconds, or None.
        """
        self.claim = claim
        self.sensors: set[str] = set()
        self.epoch = os.urandom(8).hex()
        self.state = NodeState("", claim.node)
        self.state.calls_in = True
        self.state.every_s = every_s
        self._interval = UsualInterval(every_s)
        self.ask: AskNode = _no_answer

    def record_call(self, now_s: float, now_ms: int) -> None:
        """Record a call at `now_s` (monotonic clock, in s) and `now_ms` (ms since 1970, UTC).

        The expected interval is learned from several calls.
        """
        self.state.every_s = self._interval.record(now_s)
        self.state.record_contact(now_ms, now_s)


def _no_answer(word: str, *args: bool, limit_s: float = 5.0) -> bool:
    """Return False: this client sends readings, but does not accept commands."""
    return False


class UnnumberedSources:
    """Clients that have connected to this server in this run."""

    def __init__(
        self,
        ingestor: Ingestor,
        links: list[NodeLink],
        clock: Clock,
        tokens: Collection[str],
        faults: Faults,
        throttle: LoginThrottle,
        current: Callable[[str], str] = lambda name: name,
        known: KnownClients | None = None,
    ) -> None:
        """Initialise without clients.

        Args:
            ingestor: The ingestor.
            links: Links to all nodes, for the pages. New clients are added to it.
            clock: Clock of the server.
            tokens: Names of the nodes that have a token. The collection may change.
            faults: Receives a fault if too many unknown clients connect.
            throttle: Limits the log lines about refused clients.
            current: Function that returns the current name of the node that reports a name: see NodeRegister.
            known: The clients of earlier runs; None if there is no file of them.
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
        self._known = known

    def expect_known(self) -> None:
        """Add the clients of earlier runs to the links, unless another link already has the name of their node."""
        collected = {link.state.name for link in self._links}
        for name, client in self._known.all().items() if self._known else ():
            node = self._current(name)
            with self._lock:
                if node not in collected and node not in self._callers:
                    claim = Claim(node, client.transport, client.is_proven, client.is_listed)
                    state = self._add(claim, client.every_s).state
                    state.on, state.fault = client.on, "has not connected since the server's start"

    def store(self, reading: ExternalReading) -> None:
        """Make `reading` durable.

        Raises:
            NotStored: This would take longer than STORE_S seconds.
            NeverStored: A limit is exceeded.
            AuthFailed: The node has a token that the client has not proved.
        """
        try:
            is_stored = CommitWaiter(self._ingestor, self._clock).store(self.batches([reading]), STORE_S)
        except BeyondLimit as error:
            raise NeverStored(str(error)) from None
        if not is_stored:
            raise NotStored(self._ingestor.fault or f"it was not stored within {STORE_S:g} s")

    def queue(self, *readings: ExternalReading) -> bool:
        """Submit `readings` of one client as one batch, without waiting for its commit.

        All readings must have the same sensors. Returns False if the queue is full.
        """
        (batch,) = self.batches(readings)
        return self._ingestor.submit(batch, limit_s=0.0)

    def caller(self, claim: Claim, sensors: Iterable[str] = ()) -> NodeState:
        """Return the state of a client, which is created at its first call.

        Args:
            claim: Identity of the client.
            sensors: Names of the sensors whose values it sends.

        Raises:
            AuthFailed: The node has a token that the client has not proved.
            NotStored: There are too many nodes without a token, or too many sensors of such nodes.
        """
        return self._caller(claim, sensors).state

    def check(self, claim: Claim) -> None:
        """Check that the client with the identity `claim` may write as its node.

        Raises:
            AuthFailed: The node has a token that the client has not proved.
            NotStored: The tokens cannot be read.
        """
        if claim.is_proven:
            return
        try:
            has_token = self._current(claim.node) in self._tokens
        except SettingsError as error:  # unreadable tokens: it is unknown which nodes are protected
            raise NotStored(str(error)) from None
        if has_token:
            self.forget_unproven(claim.node)
            text = f"node {claim.node} has a token, and the client has not proved it"
            self._throttle.log_failure(log, claim.transport, f"refused: {text}")
            raise AuthFailed(text)

    def forget_unproven(self, node: str) -> None:
        """Remove the client of `node` if it has not proved a token: it connected before the node received one."""
        node = self._current(node)
        with self._lock:
            caller = self._callers.get(node)
            if caller is not None and not caller.claim.is_proven:
                del self._callers[node]
                self._links.remove(caller)

    def recheck_tokens(self, nodes: Iterable[str]) -> None:
        """Mark those of `nodes` that no longer have a token as not connected, because they are refused now.

        `nodes` are the nodes whose tokens have changed.
        """
        for node in nodes:
            caller = self._callers.get(node)
            if caller is not None and caller.claim.is_proven and caller.state.connected and node not in self._tokens:
                caller.state.connected, caller.state.since_ms = False, self._clock.wall_ms()
                caller.state.fault = f"its token was revoked: `control.py token {node}` creates a new one"
                if self._known is not None:
                    self._known.remove(node)

    def on_rename(self, node: str, new: str) -> None:
        """Assign the client of `node` to its new name `new`."""
        with self._lock:
            caller = self._callers.pop(node, None)
            if self._known is not None:
                self._known.on_rename(node, new)
            if caller is not None:
                caller.claim, caller.state.name = caller.claim._replace(node=new), new
                caller.ask, caller.state.takes_orders = _no_answer, False  # until its next call
                self._callers[new] = caller

    def find(self, node: str) -> NodeState | None:
        """Return the state of `node`; None if it has not called in this run."""
        caller = self._callers.get(self._current(node))
        return caller.state if caller is not None else None

    def set_ask(self, node: str, ask: AskNode) -> None:
        """Set the function `ask`, which sends commands to `node`. The node has called before."""
        caller = self._callers.get(self._current(node))
        if caller is not None:  # None if `forget_unproven` was called first
            caller.ask = ask
            caller.state.takes_orders = True

    def _caller(self, claim: Claim, sensors: Iterable[str]) -> ExternalClient:
        self.check(claim)
        claim = claim._replace(node=self._current(claim.node))
        caller = self._admitted(claim, sensors)
        if self._known is not None and (claim.is_proven or claim.is_listed):  # not the names that any client can invent
            client = KnownClient(
                claim.transport, claim.is_proven, claim.is_listed, caller.state.every_s, caller.state.on
            )
            self._known.record(claim.node, client)
        return caller

    def _admitted(self, claim: Claim, sensors: Iterable[str]) -> ExternalClient:
        """Return the client, which is created at its first call. Raise NotStored if a limit is exceeded."""
        with self._lock:
            caller = self._callers.get(claim.node)
            if claim.is_proven or claim.is_listed:
                caller = caller or self._add(claim)
                caller.claim = claim
                return caller
            new = set(sensors) if caller is None else set(sensors) - caller.sensors
            if caller is None or new:
                self._check_limits(claim, len(new), is_new=caller is None)
            caller = caller or self._add(claim)
            caller.sensors |= new
            self._unproven_sensors[claim.transport] += len(new)
            return caller

    def _add(self, claim: Claim, every_s: float | None = None) -> ExternalClient:
        caller = self._callers[claim.node] = ExternalClient(claim, every_s)
        self._links.append(caller)
        return caller

    def _check_limits(self, claim: Claim, new_sensors: int, is_new: bool) -> None:
        """Raise NotStored if a transport has too many nodes without a token, or too many sensors of these."""
        protected = set(self._tokens)
        others = [
            caller for node, caller in self._callers.items()
            if caller.claim.transport == claim.transport and not caller.claim.is_listed and node not in protected
        ]  # fmt: skip
        if is_new and len(others) >= MOST_UNPROVEN:
            limit = f"{MOST_UNPROVEN} nodes without a token"
        elif self._unproven_sensors[claim.transport] + new_sensors > MOST_UNPROVEN_SENSORS:
            limit = f"{MOST_UNPROVEN_SENSORS} sensors of nodes without a token"
        else:
            return
        text = f"{limit} have sent readings via {claim.transport} since the start, which is the maximum"
        remedy = "others are refused. Create tokens for your nodes (control.py token NODE), and restart the server"
        self._faults.set(f"{claim.transport} clients", f"{text}; {remedy}")
        raise NotStored(text)

    def batches(self, readings: Sequence[ExternalReading]) -> list[Batch]:
        """Record one call of a client, and return its readings as batches for the ingestor.

        Args:
            readings: The readings of one client, at least one.

        Raises:
            AuthFailed: The node has a token that the client has not proved.
            NotStored: There are too many nodes without a token, or too many sensors of such nodes.
        """
        claim = readings[0].claim
        units = {name: unit for reading in readings for name, unit in reading.units.items()}
        names = {name: units.get(name, "") for reading in readings for name in reading.values}
        caller, clock = self._caller(claim, names), self._clock
        now_ms = clock.wall_ms()
        caller.record_call(clock.monotonic(), now_ms)
        shown = {sensor["name"]: sensor["unit"] for sensor in caller.state.sensors}
        now = {**shown, **{name: units.get(name, shown.get(name, "")) for name in names}}
        now = dict(itertools.islice(now.items(), MOST_SHOWN))
        if now != shown:
            caller.state.sensors = [{"name": name, "unit": unit} for name, unit in now.items()]
        ranges = ranges_of(Channel(name, unit) for name, unit in names.items())
        possible = [_without_impossible(reading, ranges) for reading in readings]
        runs = [list(alike) for _, alike in itertools.groupby(possible, lambda reading: tuple(reading.values))]
        samples = [self._samples(alike, now_ms) for alike in runs]
        return [Batch(claim.node, self._ingestor.identity, caller.epoch, None, one, None, units) for one in samples]

    def _samples(self, readings: Sequence[ExternalReading], now_ms: int) -> SampleBatch:
        """Return readings with the same sensors as samples; `now_ms` is the time of those without one."""
        times = [now_ms if reading.time_ms is None else reading.time_ms for reading in readings]
        columns = {name: [reading.values[name] for reading in readings] for name in readings[0].values}
        errors: dict[str, dict[int, str]] = {}
        for place, reading in enumerate(readings):
            for name, text in (reading.errors or {}).items():
                errors.setdefault(name, {})[place] = text
        return SampleBatch(0, times, [self._clock.up_ms()] * len(readings), columns, errors)


def _without_impossible(reading: ExternalReading, ranges: Mapping[str, tuple[Range, str]]) -> ExternalReading:
    """Return `reading` with None and an error instead of each impossible value.

    Args:
        reading: The reading.
        ranges: Possible values and unit by sensor name: see ranges_of.
    """
    found = checked(reading.values, ranges)
    if found is reading.values:
        return reading
    errors = {name: str(error) for name, error in found.items() if isinstance(error, SensorError)}
    values = {name: None if name in errors else value for name, value in reading.values.items()}
    return reading._replace(values=values, errors={**(reading.errors or {}), **errors})
