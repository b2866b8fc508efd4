"""Machines of the simulation: nodes and servers that run the real modules, and the connections between them.

Simulated are only the things below these modules: the card (sim_disk), the clock, the bytes in transit, the store (in
memory, as durable as SQLite's), and the time at which a process ends. They report to `World`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.node_status import NodeState
from pigeonpost.storage.models import NOTHING, HighWaterMark, LogMark
from pigeonpost.transports.tcp_node_session import NodeSession
from pigeonpost.transports.tcp_server_session import ServerSession
from tests.faults.sim_disk import FOLDER, Died, SimDisk
from tests.faults.sim_oracle import Oracle, Violation
from tests.storage.memory_store import MemoryStore

NODE = "n"  # the name of all nodes: one node and its copies


class World(Protocol):
    """Interface of the simulation that the machines use."""

    chance: random.Random
    counts: Counter[str]
    oracle: Oracle
    key: LinkKey | None
    intake_type: type[Ingestor]
    connections: list[Connection]
    mix: float


# ------------------------------------------------------------------------------------------------------ the node


class NodeMachine:
    """A Pi: its card, its clock, and the program while it runs."""

    def __init__(self, world: World, disk: SimDisk, slots: int) -> None:
        self.world = world
        self.disk = disk
        self.slots = slots
        self.clock = FakeClock(up_ms=world.chance.randrange(1 << 30), known=world.chance.random() < 0.5)
        self.sensors = 1
        self.card = ""  # the id of its outbox, once known
        self.outbox: Outbox | None = None  # None while the program does not run
        self.failed = False  # the outbox has reported a disk error
        self.rotten: set[str] = set()  # records with one damaged copy: "header", "state"
        self.other_keys = world.chance.random() < world.mix  # the program is of another version
        self._noted = 0  # the highest running number known to the oracle
        self._queued: list[UnnumberedSample] = []

    def start(self, doomed: bool = False) -> bool:
        """Start the program. Returns True if it runs; with `doomed` it may be killed during its start."""
        chance = self.world.chance
        if doomed and chance.random() < 0.1:
            self.disk.dies_in = chance.randrange(1, 12)
        elif doomed and chance.random() < 0.05:
            self.disk.fails_in = chance.randrange(1, 12)
        try:
            ring = Ring(FOLDER, self.slots, 128 * self.sensors, self.disk)
        except (DiskError, Died):
            self.world.counts["node: ended while it started"] += 1
            self.die(power=chance.random() < 0.5)
            return False
        self.disk.dies_in = self.disk.fails_in = 0
        self.rotten.discard("header")
        self.rotten.discard("state")
        oracle = self.world.oracle
        self._run(
            Outbox(ring, self.clock.boot_id, failed=self._fail,
                   new_epoch=lambda: oracle.new_epoch(ring.identity, chance.randbytes(8).hex()))
        )  # fmt: skip
        return True

    def _run(self, outbox: Outbox) -> None:
        self.outbox, self.failed, self._queued, self._noted = outbox, False, [], outbox.ring.last
        self.card = outbox.ring.identity
        outbox.watch(self._note_accepted)
        sensors = [{"name": "x", "unit": ""}]
        self.info = NodeInfo(NODE, sensors, 1.0, self.world.key, outbox.switch, lambda: {"held": 1})
        self.world.oracle.saw(outbox)

    def run_as_copy_of(self, other: NodeMachine) -> None:
        """Continue from the present memory and card of `other`, as a virtual machine's snapshot does."""
        assert other.outbox is not None
        self.disk = other.disk.copy()
        self.clock.boot_id, self.clock.now_ms = other.clock.boot_id, other.clock.now_ms + 1
        self.sensors = other.sensors
        if self.start():
            assert self.outbox is not None
            self.outbox.epoch, self.outbox._next_seq = other.outbox.epoch, other.outbox._next_seq

    def _fail(self, error: BaseException) -> None:
        self.failed = True

    def die(self, power: bool) -> None:
        """End the program; with `power` cut the machine's power, which may lose unsynced writes."""
        self.outbox = None
        self.world.connections = [c for c in self.world.connections if c.node is not self]
        if not power:
            self.disk.killed()
            return
        chance = self.world.chance
        self.disk.crash()
        self.clock.boot_id = chance.randbytes(8).hex()
        self.clock.now_ms = float(chance.randrange(1 << 20))
        self.clock.known = chance.random() < 0.5

    def take(self, count: int) -> None:
        """Take samples, as the sampler does."""
        outbox, clock = self.outbox, self.clock
        if outbox is None or not outbox.on:
            return
        for _ in range(count):
            clock.now_ms += self.world.chance.randrange(1, 5000)
            taken = UnnumberedSample(
                clock.wall_ms(), clock.up_ms(), clock.known, {"x": self.world.oracle.next_value()}, {}
            )
            self._queued.append(taken)
            outbox.put(taken)

    def commit(self) -> None:
        """Make the outbox commit the queued samples. It reports accepted ones to `_note_accepted`."""
        outbox = self.outbox
        if outbox is None or not self._queued:
            return
        try:
            while self._queued:
                self.world.oracle.attempt(outbox, self._queued)
                outbox.commit()
        except (Died, DiskError):
            self.die(power=self.world.chance.random() < 0.6)

    def _note_accepted(self) -> None:
        assert self.outbox is not None
        ring = self.outbox.ring
        count = ring.last - self._noted
        self.world.oracle.accept(self.outbox, self._noted + 1, self._queued[:count])
        del self._queued[:count]
        self._noted = ring.last


# ----------------------------------------------------------------------------------------------------- the server


class SimStore(MemoryStore):
    """A store whose process may die in a commit, before or after that is durable."""

    doom = ""  # "", "before" or "after"

    @contextmanager
    def writing(self, epochs: Iterable[tuple[str, str]]) -> Iterator[Mapping[tuple[str, str], HighWaterMark]]:
        with super().writing(epochs) as marks:
            yield marks
            if self.doom == "before":
                raise Died
        if self.doom == "after":
            raise Died


class _NoLog:
    """Replaces the CSV log, which is derived from the store and has its own tests."""

    def due(self, now: bool = False) -> LogMark | None:
        return None

    def add(self, epoch_commit: Any, noted_ms: int) -> None:
        pass

    def flush(self, filed: int) -> None:
        pass


class ServerMachine:
    """A server: its store, its clock, and the program while it runs."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.clock = FakeClock(known=world.chance.random() < 0.7)
        self.broken = ""  # "full": permanently; "damaged": until its data is restored
        self.other_keys = world.chance.random() < world.mix  # the program is of another version
        self.tells_no_id = False  # it sent RESUME without `id`, as an older server does
        self.use(SimStore(world.chance.randbytes(8).hex()))

    def use(self, store: MemoryStore) -> None:
        """Start the program with this data."""
        store.__class__ = SimStore  # a backup is a store in memory
        self.store = store
        self.ingestor = self.world.intake_type(store, _NoLog(), self.clock)  # type: ignore[arg-type]

    def die(self) -> None:
        """End the program: uncommitted samples are lost; they were not acknowledged."""
        self.world.connections = [c for c in self.world.connections if c.server is not self]
        self.world.counts["server: killed with samples not stored"] += bool(self.ingestor._batches)
        self.store.doom, self.store.full = "", self.broken == "full"
        self.other_keys = self.world.chance.random() < self.world.mix  # another version is started
        self.use(self.store)

    def commit(self) -> None:
        """Run one cycle of the Ingestor's writer thread."""
        try:
            self.ingestor.commit()
        except NotStored:
            self.world.counts["server: not stored, its disk is full"] += 1
        except Died:
            self.world.counts["server: killed in a commit"] += 1
            self.die()


# ------------------------------------------------------------------------------------------------- the connection


def other_version(output: bytes, drops: Iterable[str] = ()) -> bytes:
    """Return a message as a program of another version would send it: with unknown keys, and without some known ones.

    Of the keys that a version may omit, only RESUME's `id` and HELLO's `columns` change the behaviour of the other end.
    """
    lines = []
    for line in output.split(b"\n"):
        word, _, rest = line.partition(b" ")
        head, brace, text = rest.partition(b"{")
        if word in (b"HELLO", b"HELD", b"RESUME", b"GAP", b"STATUS") and brace:
            content = json.loads(brace + text)
            content |= {"later": [1, {"more": True}], "z": None}
            for key in drops if word == b"RESUME" else ("every", "columns", "window"):
                content.pop(key, None)
            line = b" ".join((word, head + json.dumps(content).encode()))
        lines.append(line)
    return b"\n".join(lines)


class Connection:
    """A TCP connection between two programs: bytes in transit in each direction."""

    def __init__(self, world: World, node: NodeMachine, server: ServerMachine) -> None:
        assert node.outbox is not None
        self.world, self.node, self.server = world, node, server
        self.node_end = NodeSession(node.info, node.outbox, node.clock, "server", True)
        keys = {NODE: world.key} if world.key else {}
        self.server_end = ServerSession(
            server.name, server.ingestor, keys, NodeState("node", NODE), server.clock, lambda: None
        )
        self.to_node = self._from_server(self.server_end.take_output())
        self.to_server = b""
        self._part_node = self._part_server = b""

    @property
    def is_over(self) -> bool:
        return self.node_end.closing or self.server_end.closing

    @property
    def is_between_lines(self) -> bool:
        return not self._part_node and not self._part_server

    def deliver_to_node(self, count: int) -> None:
        """Let `count` bytes arrive at the node, and let the node process them. It may die in doing so."""
        *lines, self._part_node = (self._part_node + self.to_node[:count]).split(b"\n")
        self.to_node = self.to_node[count:]
        self.tell_node(lines)

    def tell_node(self, lines: Iterable[bytes]) -> None:
        """Let the node process these lines, then send what is due."""
        end = self.node_end
        try:
            for line in lines:
                end.receive(line)
            sent = [end.take_output()]
            room = 4000 - len(self.to_server)
            while room > 0 and end.stream():
                sent.append(end.take_output())
                room -= len(sent[-1])
        except Died:
            self.node.die(power=self.world.chance.random() < 0.5)
            return
        except DiskError:  # the TCP transport closes the connection; the program ends if the outbox asks for it
            end.closing = True
            if self.node.failed:
                self.node.die(power=self.world.chance.random() < 0.5)
            return
        output = b"".join(sent)
        if any(word in output for word in (b"GAP ", b"HELD ", b'"more"', b'"clock":"', b" {")):
            self._look_at(output)
        self.to_server += other_version(output) if self.node.other_keys else output

    def _from_server(self, output: bytes) -> bytes:
        if not self.server.other_keys:
            return other_version(output) if self.node.other_keys else output  # keys that an older node ignores
        if b"RESUME " in output:
            self.server.tells_no_id = True
        return other_version(output, ("id",))

    def _look_at(self, output: bytes) -> None:
        counts = self.world.counts
        for line in output.splitlines():
            if line.startswith(b"GAP "):
                counts["gap"] += 1
                counts["gap with `before`"] += b'"before"' in line
                counts["gap: damaged"] += b'"damaged"' in line
                assert self.node.outbox is not None
                self.world.oracle.look_at_gap(self.node.outbox, line)
            counts["fork"] += line.startswith(b"HELD ") and self.server_end.collecting
            counts["held with more"] += line.startswith((b"HELLO ", b"HELD ")) and b'"more":true' in line
            if line.startswith(b"SENSORS "):
                counts["columns"] += b" {" in line
                counts["dated by the server's clock"] += b'"clock":"server"' in line
                counts["sent with clock unset"] += b'"clock":"unset"' in line

    def deliver_to_server(self, count: int) -> None:
        """Let `count` bytes arrive at the server, and let the server process them."""
        *lines, self._part_server = (self._part_server + self.to_server[:count]).split(b"\n")
        self.to_server = self.to_server[count:]
        self.server_end.receive_lines(lines)
        self.take_server_output()

    def take_server_output(self) -> None:
        """Put the server's present output on its way."""
        output = self.server_end.take_output()
        if b"ACK " in output:
            self._check_acks(output)
        if b"comes next, not" in output:
            self.world.counts["hole refused"] += 1
        if b'"more":true' in output:
            self.world.counts["resume with more"] += output.count(b"RESUME ") > 0
        self.to_node += self._from_server(output)

    def _check_acks(self, output: bytes) -> None:
        """Check that each acknowledged sample is durable."""
        for line in output.splitlines():
            if line.startswith(b"ACK "):
                _, epoch, seq = line.decode().split(" ")
                mark = self.server.store.epochs.get(
                    (NODE, epoch), NOTHING
                )  # ACK 0 acknowledges a GAP without new samples
                if mark.seq < int(seq):
                    raise Violation(f"{self.server.name} said {line.decode()}, but its store has {mark}")
