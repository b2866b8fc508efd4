"""A target and a store whose commits a forwarder receives, for the tests of the forwarder."""

import logging
import threading

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.faults import Faults
from pigeonpost.integrations import forwarder
from pigeonpost.integrations.contract import ForwardTarget, NotDelivered
from pigeonpost.integrations.forward_position import PositionFile
from pigeonpost.integrations.forward_settings import ForwardTable
from pigeonpost.integrations.forwarder import Forwarder
from pigeonpost.storage.models import NOTHING, EpochCommit
from tests.storage.memory_store import MemoryStore
from tests.support import LIMIT_S, temp_folder, wait_until


class FakeTarget(ForwardTarget):
    """Target that records the samples, and fails as a test wants.

    Attributes:
        got: (node, epoch, seq) of each sample, in the order of their arrival.
        batches: The batches.
        errors: Errors of the next calls, the first one first.
        poison: Sequence numbers that are refused.
        away: Error of every call, or None.
        lost: True to fail in the next check.
        gate: If it is not set, calls wait until it is, or until `close`.
    """

    place = "fake:1"
    most = 10

    def __init__(self):
        self.got, self.batches, self.errors, self.poison = [], [], [], {}
        self.away = None
        self.calls = self.closed = self.checks = 0
        self.lost = False
        self.gate = threading.Event()
        self.gate.set()

    def send(self, batches):
        self.calls += 1
        assert self.gate.wait(LIMIT_S)
        if self.errors:
            raise self.errors.pop(0)
        if self.away is not None:
            raise self.away
        samples = [(b.node, b.epoch, seq) for b in batches for seq in range(b.samples.seq, b.samples.last + 1)]
        assert 0 < len(samples) <= self.most, samples
        for sample in samples:
            if sample[2] in self.poison:
                raise self.poison[sample[2]]
        self.got += samples
        self.batches += batches

    def check(self):
        self.checks += 1
        if self.lost:
            self.lost = False
            raise NotDelivered("lost")

    def close(self):
        self.closed += 1
        self.away = NotDelivered("closed")
        self.gate.set()


class ForwardCase:
    """Base of a test: a store, a target, and a forwarder on the same folder."""

    def setUp(self):
        logging.disable(logging.CRITICAL)  # the faults of these tests are intended
        self.addCleanup(logging.disable, logging.NOTSET)
        self.folder, self.clock, self.faults = temp_folder(self), FakeClock(), Faults()
        self.store, self.target, self.forwarder = MemoryStore(), FakeTarget(), None
        for name, value in (("RETRY_S", 0.001), ("STOP_S", LIMIT_S)):
            self.addCleanup(setattr, forwarder, name, getattr(forwarder, name))
            setattr(forwarder, name, value)
        self.addCleanup(self.stop)

    def make(self, again_s=0.0, history=True, nodes=(), sensors=(), current=lambda node: node, most_queued=100):
        """Make a forwarder that is not started."""
        table = ForwardTable("t", "fake", frozenset(nodes), frozenset(sensors), again_s, history, {}, "here")
        file = PositionFile(self.folder, self.faults, self.clock)
        self.forwarder = Forwarder(table, self.target, file, self.store, self.clock, current, most_queued)
        return self.forwarder

    def start(self, **options):
        self.make(**options).start()
        return self.forwarder

    def stop(self):
        if self.forwarder is not None:
            assert self.forwarder.stop(LIMIT_S) is None
            self.forwarder = None

    def restart(self, **options):
        """End as by a kill: what is not in the files is lost. The target is a new connection."""
        self.stop()
        got = self.target.got
        self.target = FakeTarget()
        self.target.got = got
        return self.start(**options)

    def commit(self, *batches):
        """Commit batches of one node and epoch to the store, and tell the forwarder."""
        commits = {}
        with self.store.writing({(b.node, b.epoch): None for b in batches}) as marks:
            for b in batches:
                key = b.node, b.epoch
                commit = commits.setdefault(key, EpochCommit(*key[:1], b.outbox, b.epoch, marks.get(key, NOTHING)))
                commit.units = b.units
                commit.add(b, 0)
            self.store.put(list(commits.values()), 1, None)
        if self.forwarder is not None:
            self.forwarder.on_commit(list(commits.values()))

    def wait_for(self, *samples):
        """Wait until the target has got exactly these samples, in any order."""
        wait_until(lambda: len(self.target.got) >= len(samples), f"{samples}, got {self.target.got}")
        self.wait_idle()
        assert sorted(self.target.got) == sorted(samples), self.target.got

    def wait_idle(self):
        """Wait until nothing is left to send, after the first look into the store."""
        wait_until(
            lambda: self.forwarder._look_s and self.status().backlog == 0 and not self.forwarder._behind, "no backlog"
        )

    def status(self):
        (found,) = self.forwarder.statuses()
        return found
