"""A server's alerts in one thread, with a fake clock, fake links, and restarts."""

import os
import unittest

from pigeonpost.alerts.alert_store import AlertStore
from pigeonpost.alerts.engine import Alerts
from pigeonpost.alerts.rule_sets import RuleSets
from pigeonpost.alerts.rules import read_rules
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.json_file import JsonFile
from pigeonpost.link.samples import Gap, SampleBatch
from pigeonpost.server.node_status import NodeState
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import Batch, Sample
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import file
from tests.support import temp_folder

OWN = "00000000000000ff"  # outbox of the samples that this server numbers
OUTBOX, EPOCH = "1111111111111111", "2222222222222222"


class Link:
    def __init__(self, name, calls_in=False, every_s=60.0):
        self.state = NodeState("" if calls_in else "192.168.1.9:5003", name)
        self.state.calls_in, self.state.every_s = calls_in, every_s


class Names:
    """Register of renamed and retired nodes."""

    def __init__(self):
        self.on_rename, self.retired = [], set()

    def current(self, node):
        return node

    def retired_ms(self, node):
        return 1 if node in self.retired else None


class EngineCase(unittest.TestCase):
    TABLES = ()
    COLLECT_S = 0.0
    SHORTEST_S = 0.0
    QUIET = ""

    def setUp(self):
        self.folder = temp_folder(self)
        self.clock = FakeClock()
        self.store, self.links, self.tokens, self.names = MemoryStore(), [], set(), None
        self.faults, self.quality, self.refused = {}, None, []
        self.seqs, self.epoch = {}, EPOCH
        self.tables = list(self.TABLES)
        self.start()

    def start(self):
        """Start the alerts. After the first call this is a restart after kill -9: nothing was closed."""
        self.queue = AlertStore(os.path.join(self.folder, "alerts.sqlite3"), ["mail"], self.clock)
        self.addCleanup(self.queue.close)
        file_of_page = JsonFile(os.path.join(self.folder, "alert_rules.json"), "rules", list)
        rules = read_rules(self.tables, "server.toml")
        sets = RuleSets(rules, self.tables, file_of_page, self.SHORTEST_S)
        self.alerts = Alerts(
            sets, self.links, self.clock, self.names, self.queue, self.COLLECT_S, self.QUIET, self.store, self.tokens,
            OWN, "home", "http://pi/",
        )  # fmt: skip
        polls = self.alerts.polls
        polls.data, polls.quality, polls.root = self.folder, self.quality, self.folder
        polls.faults, polls.refused_addresses = lambda: self.faults, lambda: self.refused

    def link(self, name, **more):
        self.links.append(Link(name, **more))
        return self.links[-1].state

    def bring(self, value, node="attic", sensor="temperature", time_ms=None, error="", outbox=OUTBOX, unit="°C"):
        """Store one sample, and check it."""
        self.file(self.sample(value, node, sensor, time_ms, error), node, outbox, {sensor: unit})

    def sample(self, value, node="attic", sensor="temperature", time_ms=None, error=""):
        seq = self.seqs[node] = self.seqs.get(node, 0) + 1
        time_ms = self.clock.wall_ms() if time_ms is None else time_ms
        return Sample(seq, time_ms, self.clock.up_ms(), {sensor: value}, {sensor: error} if error else {}, "")

    def file(self, sample, node="attic", outbox=OUTBOX, units=None, check=True):
        batch = Batch(node, outbox, self.epoch, 0, SampleBatch.of([sample]), None, units or {}, print, print)
        file(self.store, batch)
        if check:
            self.check(batch.samples, node, outbox, units or {})

    def check(self, item, node="attic", outbox=OUTBOX, units=None):
        epoch_commit = EpochCommit(node, outbox, self.epoch, NOTHING)
        epoch_commit.units = units or {}
        epoch_commit.items.append(item)
        self.alerts.on_commit([epoch_commit])

    def lose(self, count, node="attic", why="overwritten"):
        first = self.seqs.get(node, 0) + 1
        self.seqs[node] = first + count - 1
        self.check(Gap(first, first + count - 1, 0, why), node)

    def look(self, seconds=0.0):
        """Let `seconds` pass, and return the subjects of the messages."""
        self.clock.sleep(seconds)
        return [message.subject for message in self.alerts.look()]

    def said(self):
        """Return the subjects of all messages in the queue."""
        return [queued.message.subject for queued in self.queue.waiting("mail")]

    def assert_said(self, subjects, *patterns):
        self.assertEqual(len(subjects), len(patterns), subjects)
        for subject, pattern in zip(subjects, patterns, strict=True):
            self.assertRegex(subject, pattern)


__all__ = ["EPOCH", "OUTBOX", "OWN", "EngineCase", "Link", "Names"]
