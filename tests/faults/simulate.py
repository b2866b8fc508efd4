"""Deterministic simulation of both ends in one thread, with faults of disk, network and clocks. One seed is one run.

    python3 -m tests.faults.simulate                     20,000 seeds, on all cores
    python3 -m tests.faults.simulate --seed 4711         the events of one seed

The real modules run: ring file, outbox, TCP sessions of node and server, Ingestor. Simulated are the things below them:
the node's disk (it loses unsynced bytes in any order and torn at any byte, is full, fails; the process dies in a call),
the bytes between the ends (cut, delayed, split, repeated), the clocks (stepping, unset), the server's store (full,
killed around a commit, damaged, deleted, set back to an old copy), and the cards (corrupted, misdirected writes, set
back, wiped, copied, used twice). Programs and files of other versions take part, and one component may fail
permanently. Each seed draws its kinds of faults and their frequencies. Two servers collect. At the end the faults stop,
everything is delivered, and the oracle (sim_oracle) checks each store. A run and its limits are small, so that rare
events are frequent.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.errors import WireError
from pigeonpost.server.ingest import Ingestor
from pigeonpost.transports.tcp_server_session import ServerSession
from protocol import decode
from tests.faults.sim_damage import Damage
from tests.faults.sim_disk import SimDisk
from tests.faults.sim_machines import Connection, NodeMachine, ServerMachine, SimStore
from tests.faults.sim_oracle import Oracle, Violation
from tests.storage.memory_store import MemoryStore

EVENTS = 600
_PORTIONS = (1, 40, 400, *[100_000] * 5)  # bytes that arrive at the same time
MOST_NODES = 3

Tell = Callable[[str], Any]


class World:
    """The state of a run, and its events."""

    def __init__(
        self, seed: int, tell: Tell | None = None, lies: bool = False, intake_type: type[Ingestor] = Ingestor
    ) -> None:
        """Prepare a run.

        Args:
            seed: Seed of all randomness.
            tell: Receives the description of each event.
            lies: The nodes' disks confirm bytes that they do not keep (a negative control).
            intake_type: Class of the servers' Ingestor (for negative controls).
        """
        self.chance = random.Random(seed)
        self.tell = tell
        self.counts: Counter[str] = Counter()
        self.oracle = Oracle()
        self.intake_type = intake_type
        self.connections: list[Connection] = []
        self.recorded: list[tuple[NodeMachine, ServerMachine, bool, bytes]] = []  # lines in transit at the cut
        self.key = LinkKey("a secret of the tests") if self.chance.random() < 0.3 else None
        self.mischief = self.chance.random() < 0.3  # with cards
        self.mix = self.chance.choice((0, 0, 0.3, 0.6))  # of versions
        self.damage = Damage(self.chance, self.oracle)
        self.nodes = [NodeMachine(self, SimDisk(self.chance, self.counts, lies), self.chance.choice((8, 16, 32, 64)))]
        self.nodes[0].start()
        self.servers = [ServerMachine(self, "s1")]
        if self.chance.random() < 0.4:
            self.servers.append(ServerMachine(self, "s2"))
            self.counts["two servers"] += 1
        self.doomed_first_commit: set[ServerMachine] = set()
        self.images: list[SimDisk] = []
        self.copies: list[tuple[ServerMachine, MemoryStore]] = []

    def say(self, text: str) -> None:
        if self.tell:
            self.tell(text)

    def run(self, events: int) -> None:
        for happens in self.chance.choices(_EVENTS, self._weights(), k=events):
            happens(self)
        self.settle()
        self.check()

    def _weights(self) -> list[float]:
        """Return the frequency of each kind of event in this run. The usual events happen in all runs."""
        factors = (0, 0.3, 1, 1, 1, 3)
        return [w if event in _USUAL else w * self.chance.choice(factors) for event, w in _TABLE.items()]

    # ------------------------------------------------------------------------------------ what usually happens

    def take(self) -> None:
        """Let the sampler take a sample, or several after a delay."""
        self.chance.choice(self.nodes).take(1 if self.chance.random() < 0.93 else self.chance.randrange(1, 25))

    def write(self) -> None:
        """Let the outbox's thread commit the queued samples."""
        self.chance.choice(self.nodes).commit()

    def node_reads(self) -> None:
        """Let some of the bytes in transit arrive at a node, which replies and sends what is due."""
        if not self.connections:
            self.connect()
            return
        connection = self.chance.choice(self.connections)
        connection.deliver_to_node(self.chance.choice(_PORTIONS))
        self._drop_if_over(connection)

    def server_reads(self) -> None:
        """Let some of the bytes in transit arrive at a server."""
        if self.connections:
            connection = self.chance.choice(self.connections)
            if connection.to_server:
                connection.deliver_to_server(self.chance.choice(_PORTIONS))
                self._drop_if_over(connection)

    def connect(self) -> None:
        node, server = self.chance.choice(self.nodes), self.chance.choice(self.servers)
        if server.broken == "damaged" or (node.outbox is None and not node.start(doomed=True)):
            return
        for connection in self.connections:
            if connection.node is node and connection.server is server:
                self.counts["session replaced"] += 1
                self._cut(connection)
                break
        self.connections.append(Connection(self, node, server))
        self.say(f"{server.name} connects")

    def commit(self) -> None:
        server = self.chance.choice(self.servers)
        fate = self.chance.random()
        if server in self.doomed_first_commit and server.ingestor._batches:  # ended again before it recovered
            self.doomed_first_commit.discard(server)
            self.counts["server: ended again in its first commit"] += 1
            fate = 0.0
        server.store.doom = "" if fate > 0.02 else "before" if fate > 0.01 else "after"
        server.commit()
        server.store.doom = ""
        for connection in list(self.connections):
            if connection.server is server:
                connection.take_server_output()
                self._drop_if_over(connection)

    def _drop_if_over(self, connection: Connection) -> None:
        if connection.is_over and connection in self.connections:
            self.say("a session closes")
            self.counts["session closed by an end"] += 1
            self.connections.remove(connection)

    # ---------------------------------------------------------------------------------------- the faults

    def cut(self) -> None:
        if self.connections:
            self.say("the network cuts")
            self.counts["connection cut"] += 1
            self._cut(self.chance.choice(self.connections))

    def _cut(self, connection: Connection) -> None:
        self.connections.remove(connection)
        for to_server, content in ((True, connection.to_server), (False, connection.to_node)):
            lines = content.split(b"\n")[:-1]
            self.recorded += [(connection.node, connection.server, to_server, line) for line in lines[:3]]
        if self.chance.random() < 0.5:  # part of the bytes in transit still arrives
            connection.deliver_to_server(self.chance.randrange(1 + len(connection.to_server)))

    def replay(self) -> None:
        """Repeat a line of an earlier session in a later one between the same two programs."""
        if not self.connections or not self.recorded:
            return
        connection = self.chance.choice(self.connections)
        node, server, to_server, line = self.chance.choice(self.recorded)
        if (node, server) != (connection.node, connection.server) or not connection.is_between_lines:
            return
        if not connection.server_end.collecting or not connection.node_end.server:
            return  # opening messages are not repeated; with a token they are unique
        if to_server and _goes_on(line, connection.server_end):
            return  # with an epoch out of order, which no connection delivers
        self.say(f"said again to {'server' if to_server else 'node'}: {line[:60]!r}")
        self.counts["line of an earlier session"] += 1
        if to_server:
            connection.server_end.receive(line)
            connection.take_server_output()
        else:
            connection.tell_node([line])
        self._drop_if_over(connection)

    def kill_node(self) -> None:
        self._end(self.chance.choice(self.nodes), power=False)

    def cut_power(self) -> None:
        self._end(self.chance.choice(self.nodes), power=True)

    def _end(self, node: NodeMachine, power: bool) -> None:
        self.say("node: the power goes" if power else "node: killed")
        self.counts["node: power cut" if power else "node: killed"] += 1
        node.die(power)
        started = node.start(doomed=True)
        while self.chance.random() < 0.2:  # again, before it recovered
            self.counts["node: ended again at once"] += 1
            node.die(power=started and self.chance.random() < 0.5)
            started = node.start(doomed=True)

    def doom_disk(self) -> None:
        disk = self.chance.choice(self.nodes).disk
        if self.chance.random() < 0.7:
            disk.dies_in = self.chance.randrange(1, 8)
        else:
            disk.fails_in = self.chance.randrange(1, 8)

    def fill_disk(self) -> None:
        disk = self.chance.choice(self.nodes).disk
        disk.full = not disk.full and self.chance.random() < 0.5
        self.say(f"node: its disk is {'full' if disk.full else 'free'}")

    def kill_server(self) -> None:
        server = self.chance.choice(self.servers)
        self.say(f"{server.name}: killed")
        self.counts["server: killed"] += 1
        server.die()
        self.doomed_first_commit.discard(server)
        if self.chance.random() < 0.3:
            self.doomed_first_commit.add(server)

    def fill_store(self) -> None:
        server = self.chance.choice(self.servers)
        if server.broken:
            return
        server.store.full = not server.store.full and self.chance.random() < 0.6
        self.say(f"{server.name}: its disk is {'full' if server.store.full else 'free'}")

    def step_clock(self) -> None:
        clock = self.chance.choice([*self.nodes, *self.servers]).clock
        seconds = self.chance.uniform(-1, 1) * self.chance.choice((10, 4000, 31_000_000))
        self.say(f"a clock steps by {seconds:.0f} s")
        self.counts["clock stepped"] += 1
        clock.step(seconds)
        clock.known = self.chance.random() < 0.7

    def wait(self) -> None:
        for machine in (*self.nodes, *self.servers):
            machine.clock.sleep(self.chance.choice((1, 1, 6, 16, 50)))
        for connection in list(self.connections):
            connection.server_end.tick()
            connection.take_server_output()
            connection.node_end.tick()
            self._drop_if_over(connection)

    def switch(self) -> None:
        if self.connections:
            connection = self.chance.choice(self.connections)
            if connection.server_end.collecting:
                connection.server_end.ask("SEND", self.chance.random() < 0.7)
                connection.take_server_output()

    def widen(self) -> None:
        """Give the node one more sensor, so that its slots must become wider."""
        node = self.chance.choice(self.nodes)
        if node.sensors < 4:
            node.sensors += 1
            self.say("node: it gets a sensor")
            self.counts["slots made wider"] += 1
            self._end(node, power=False)

    # ------------------------------------------------------------------------------------- damage, and other versions

    def rot(self) -> None:
        """Change bytes of a card; usually the node starts again before its next write."""
        node = self.chance.choice(self.nodes)
        if node.outbox is None:
            return
        what = self.damage.rot(node)
        if what:
            self.say(f"node: rot of its {what}")
            self.counts[f"node: rotten {what}"] += 1
            if self.chance.random() < 0.6:
                self._end(node, power=self.chance.random() < 0.5)

    def write_astray(self) -> None:
        node = self.chance.choice(self.nodes)
        if node.outbox is not None and self.damage.write_astray(node):
            self.say("node: a write goes to another slot")
            self.counts["node: a write to another slot"] += 1
            if self.chance.random() < 0.6:
                self._end(node, power=self.chance.random() < 0.5)

    def upgrade(self) -> None:
        """Replace a node's program, which used a file of an earlier version, by the present one."""
        node = self.chance.choice(self.nodes)
        if self.damage.make_older(node):
            self.say("node: its file was one of version 1")
            self.counts["node: file of version 1"] += 1
            node.start(doomed=True)

    def other_program(self) -> None:
        """Replace a program by one of another version."""
        machine = self.chance.choice([*self.nodes, *self.servers])
        machine.other_keys = self.chance.random() < self.mix
        self.counts["another version speaks"] += machine.other_keys
        if isinstance(machine, ServerMachine):
            machine.die()
        else:
            self._end(machine, power=False)

    def rot_store(self) -> None:
        """Damage a page of a server's database.

        The server reports it and collects nothing until its data is restored.
        """
        server = self.chance.choice(self.servers)
        if server.broken or not server.store.samples:
            return
        self.say(f"{server.name}: its data is damaged")
        self.counts["server: its data is damaged"] += 1
        server.die()
        server.broken = "damaged"

    def restore(self) -> None:
        for server in self.servers:
            if server.broken == "damaged":
                self._restore(server)

    def _restore(self, server: ServerMachine) -> None:
        """Set damaged data back to its latest copy, or to an empty store."""
        copies = [copy for of, copy in self.copies if of is server]
        self.counts["server: its data is restored"] += 1
        server.broken = ""
        server.use(copies[-1].backup() if copies else SimStore(self.chance.randbytes(8).hex()))
        self.say(f"{server.name}: its data is restored, {len(server.store.samples)} samples are left of it")

    def break_for_ever(self) -> None:
        """Make one component fail permanently. Everything else must go on."""
        if self.counts["broken permanently"] or self.chance.random() < 0.7:
            return
        self.counts["broken permanently"] = 1
        if self.chance.random() < 0.5 or len(self.nodes) == 1:
            server = self.chance.choice(self.servers)
            server.broken, server.store.full = "full", True
            self.say(f"{server.name}: its disk is full permanently")
            return
        node = self.chance.choice(self.nodes)
        if node.outbox is not None:
            self.say("node: its disk fails permanently")
            self.oracle.ended.add(node.card)
            node.disk.dead = True
            node.die(power=False)

    # ----------------------------------------------------------------------------- mischief with cards and data

    def copy_card(self) -> None:
        if self.mischief:
            image = self.chance.choice(self.nodes).disk.copy()
            image.crash()
            self.images.append(image)

    def roll_back(self) -> None:
        """Replace a card by an older image of it, or of another one."""
        if self.mischief and self.images:
            node = self.chance.choice(self.nodes)
            self._lose_card(node)
            self._put_in(node, self.chance.choice(self.images).copy())
            self.say("node: its card is set back to an older image")
            self.counts["card set back"] += 1

    def clone(self) -> None:
        """Start a second Pi from an image, with the same name, while the first one runs."""
        if self.mischief and self.images and len(self.nodes) < MOST_NODES:
            self.say("a copy of a card starts beside it")
            self.counts["card copied"] += 1
            other = NodeMachine(self, self.images[-1], self.nodes[0].slots)
            self.nodes.append(other)
            self._put_in(other, self.chance.choice(self.images).copy())

    def clone_alive(self) -> None:
        """Copy a running machine with its memory. Only then two machines use the same epoch."""
        node = self.chance.choice(self.nodes)
        if self.mischief and node.outbox is not None and len(self.nodes) < MOST_NODES:
            self.say("a running node is copied, and both go on")
            self.counts["node copied alive"] += 1
            self.oracle.doubtful.add(node.outbox.ring.identity)
            other = NodeMachine(self, node.disk, node.slots)
            self.nodes.append(other)
            other.run_as_copy_of(node)

    def wipe(self) -> None:
        if self.mischief:
            node = self.chance.choice(self.nodes)
            self._lose_card(node)
            node.disk = SimDisk(self.chance, self.counts, node.disk.lies)
            node.start()
            self.say("node: its card is wiped")
            self.counts["card wiped"] += 1

    def _lose_card(self, node: NodeMachine) -> None:
        self.oracle.ended.add(node.card)
        node.die(power=True)

    def _put_in(self, node: NodeMachine, card: SimDisk) -> None:
        """Start the machine with this image of a card, which another machine may use or have used longer."""
        node.disk = card
        while not node.start():
            card.full = False
        self.oracle.doubtful.add(node.card)

    def back_up(self) -> None:
        server = self.chance.choice([server for server in self.servers if server.broken != "damaged"] or [None])
        if server is None:
            return
        self.copies.append((server, server.store.backup()))

    def lose_store(self) -> None:
        """Delete the server's data, or set it back to an older copy."""
        server, copy = self.chance.choice(self.servers), None
        if self.copies and self.chance.random() < 0.7:
            server, copy = self.chance.choice(self.copies)
        if server.broken == "full":
            return
        server.broken = ""
        self.counts["ledger restored" if copy else "ledger deleted"] += 1
        server.die()
        server.use(copy.backup() if copy else SimStore(self.chance.randbytes(8).hex()))
        self.say(f"{server.name}: its data is lost, {len(server.store.samples)} samples are left of it")

    # ----------------------------------------------------------------------------------------------- the end

    def settle(self) -> None:
        """Stop all faults and deliver everything that is due."""
        self.say("the faults stop")
        self.restore()
        for server in self.servers:
            server.store.full = server.broken == "full"
        for node in [node for node in self.nodes if not node.disk.dead]:
            node.disk.full, node.disk.dies_in, node.disk.fails_in = False, 0, 0
            if node.outbox is None and not node.start():
                raise Violation("a node does not start any more")
            node.commit()
        for _ in range(3):  # a fork caused by one server gives samples a name that another server does not have
            forks = self.counts["fork"]
            for node in [node for node in self.nodes if not node.disk.dead]:
                for server in [server for server in self.servers if not server.broken]:
                    self._deliver_all(node, server)
            if forks == self.counts["fork"]:
                return

    def _deliver_all(self, node: NodeMachine, server: ServerMachine) -> None:
        self.connections = []
        for _ in range(5):  # a session may still be closed because of earlier events
            connection = Connection(self, node, server)
            idle = 0
            for _ in range(2000):
                is_idle = not connection.to_node and not connection.to_server and not server.ingestor._batches
                connection.deliver_to_node(1 << 20)
                connection.deliver_to_server(1 << 20)
                server.commit()
                connection.take_server_output()
                idle = idle + 1 if is_idle else 0
                if connection.is_over or (idle > 1 and connection.server_end.collecting):
                    break
            if not connection.is_over and connection.server_end.collecting:
                return
        raise Violation(f"{server.name} cannot collect: {connection.server_end.fault}")

    def check(self) -> None:
        outboxes = [node.outbox for node in self.nodes if node.outbox is not None]
        for server in self.servers:
            found = self.oracle.judge(
                server.name, server.store, outboxes, not server.tells_no_id, complete=not server.broken
            )
            self.counts.update(found)
        self.counts["accepted"] = len(self.oracle.accepted)
        self.counts["ring overrun"] += any(outbox.ring.last > outbox.ring.slots for outbox in outboxes)
        self.say(f"all is well: {dict(self.counts)}")


def _goes_on(line: bytes, end: ServerSession) -> bool:
    """Return True if a SENSORS or GAP line neither repeats samples nor leaves a hole in the server's data."""
    try:
        message = decode(line)
    except WireError:
        return False  # a part of a line
    if message is None or message.word not in ("SENSORS", "GAP"):
        return False
    epoch, content = message.args
    first, last = (content["from"], content["to"]) if message.word == "GAP" else (content[0].seq, content[-1].last)
    expected = end._next.get(epoch)
    return expected is None or first <= expected <= last


_TABLE: dict[Callable[[World], None], int] = {
    World.take: 210, World.write: 150, World.node_reads: 220, World.server_reads: 170, World.commit: 80,
    World.connect: 6, World.cut: 10, World.replay: 8, World.kill_node: 6,
    World.cut_power: 6, World.doom_disk: 8, World.fill_disk: 4, World.kill_server: 6, World.fill_store: 8,
    World.step_clock: 10, World.wait: 12, World.switch: 4, World.widen: 1, World.copy_card: 4, World.roll_back: 2,
    World.clone: 1, World.clone_alive: 2, World.wipe: 1, World.back_up: 4, World.lose_store: 3,
    World.rot: 8, World.write_astray: 3, World.upgrade: 1, World.other_program: 2, World.rot_store: 2, World.restore: 4,
    World.break_for_ever: 1,
}  # fmt: skip
_EVENTS = list(_TABLE)
_USUAL = (World.take, World.write, World.node_reads, World.server_reads, World.commit, World.connect)


def first_seed() -> int:
    """Return the first seed that a test plays: PIGEONPOST_TEST_FIRST_SEED, or a random one."""
    return int(os.environ.get("PIGEONPOST_TEST_FIRST_SEED", random.randrange(1 << 40)))


def play(
    seed: int,
    events: int = EVENTS,
    tell: Tell | None = None,
    lies: bool = False,
    intake_type: type[Ingestor] = Ingestor,
) -> Counter[str]:
    """Play one seed. Returns the number of each kind of event. Raises Violation."""
    with _small_limits(random.Random(seed ^ 0x5EED)):
        world = World(seed, tell, lies, intake_type)
        world.run(events)
    return world.counts


@contextlib.contextmanager
def _small_limits(chance: random.Random) -> Iterator[None]:
    """Set randomness from the seed, and small windows, batches and lists, so that their limits are reached."""
    with (
        mock.patch("os.urandom", chance.randbytes),
        mock.patch("pigeonpost.node.send_cursor.WINDOW_SAMPLES", chance.choice((10, 40, 5_000))),
        mock.patch("pigeonpost.node.send_cursor.BATCH_SAMPLES", chance.choice((3, 20, 500))),
        mock.patch("pigeonpost.node.send_cursor.COLUMN_SAMPLES", chance.choice((3, 20, 4_096))),
        mock.patch("pigeonpost.transports.tcp_server_session.COLUMNS_WINDOW", chance.choice((10, 40, 65_536))),
        mock.patch("pigeonpost.transports.tcp_session.ENTRIES_A_LINE", chance.choice((1, 2, 500))),
    ):
        yield


def _play(seed: int) -> Counter[str] | str:
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        return play(seed)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n  python3 -m tests.faults.simulate --seed {seed}"
    finally:
        if seed % 20 == 0:
            gc.collect()


def play_many(seeds: range) -> tuple[Counter[str], list[str]]:
    """Play many seeds on all cores. Returns the numbers of events, and the violations."""
    totals: Counter[str] = Counter()
    faults = []
    at_once = min(25, max(1, len(seeds) // 20))
    with multiprocessing.Pool() as pool:
        for result in pool.imap_unordered(_play, seeds, at_once):
            if isinstance(result, str):
                faults.append(result)
            else:
                totals.update(result)
    return totals, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="tell the story of this one")
    parser.add_argument("--seeds", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    if options.seed is not None:
        logging.basicConfig(stream=sys.stdout, format="    %(name)s: %(message)s")
        play(options.seed, tell=print)
        return 0
    began_s = time.monotonic()
    totals, faults = play_many(range(options.first, options.first + options.seeds))
    print(*faults, sep="\n")
    for name, value in sorted(totals.items()):
        print(f"{value:10} {name}")
    print(f"{options.seeds} seeds of {EVENTS} events in {time.monotonic() - began_s:.0f} s, {len(faults)} violations")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
