"""Compaction, rollups and retention of the SQLite store, killed at any point: nothing is lost or stored twice.

Samples arrive in any order, and the CSV log gets each row that it is owed. The quick suite kills at some statements and
plays short histories. With PIGEONPOST_TEST_LONG=1 the process is killed at every statement and, by strace, at every
write and sync of the file. PIGEONPOST_TEST_HISTORIES is the number of histories, PIGEONPOST_TEST_KILL_STRIDE the step
between the statements at which it is killed, PIGEONPOST_TEST_MOVES the number of moves of samples while they are read.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import unittest
from collections import Counter
from typing import Any
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.link.samples import SampleBatch, batches_of
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.storage.models import HOUR_MS, NOTHING, EpochCommit, LogMark
from pigeonpost.storage.sqlite import compaction
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Gap, Sample
from tests.faults.test_syscalls import injecting, may_trace
from tests.storage.test_contract import Direct
from tests.support import LIMIT_S, ROOT, long, memory_disk, rounds, temp_folder

HISTORIES = rounds("PIGEONPOST_TEST_HISTORIES", 5, 200)
STRIDE = rounds("PIGEONPOST_TEST_KILL_STRIDE", 17, 1)
NOON = 1_795_003_200_000  # a full hour
OUTBOX = "00000000000000aa"
EPOCHS = {"a": ("00000000000000e1", "00000000000000e2"), "b": ("00000000000000e3",)}
DAY_MS = 24 * HOUR_MS
FAR_MS = 1 << 52
SETS = (("temperature", "light"), ("temperature",), ("light", "temperature", "wind"))


def maintain(store, now_ms, keep_days=0.0):
    """Do all maintenance that is due at a time."""
    worker = MaintenanceWorker(store, Direct(store), FakeClock(now_ms), keep_days)
    while worker.work():
        pass


def plain(item):
    """Return the part of a log entry that the CSV log needs."""
    return item if isinstance(item, Gap) else (item.seq, item.times, repr(item.values), item.clock)


class History:
    """Accepted samples, in a store and in memory."""

    def __init__(self, folder, seed, batches=25):
        self.chance = random.Random(seed)
        self.folder, self.batches = folder, batches
        self.store = SqliteStore(folder)
        self.now_ms = NOON + 300_000
        self.accepted: dict[tuple[str, str, int], Sample] = {}
        self.gaps: set[tuple[str, int]] = set()
        self.items: dict[int, tuple[str, str, Any]] = {}  # by filing number
        self.last = dict.fromkeys((epoch for epochs in EPOCHS.values() for epoch in epochs), 0)
        self.filed = self.logged = 0

    # ------------------------------------------------------------------------------------- what happens

    def step(self):
        """Carry out a random event."""
        happens = self.chance.choices((self.commit, self.wait, self.tidy, self.start_again), (12, 3, 4, 1))[0]
        happens()

    def commit(self):
        chance, commits = self.chance, []
        for node in chance.choice(("a", "b", "ab")):
            epoch = chance.choice(EPOCHS[node])
            commit = EpochCommit(node, OUTBOX, epoch, self.store.marks(node, OUTBOX, [epoch])[1].get(epoch, NOTHING))
            commit.units = {"temperature": "°C"}
            for _ in range(chance.choice((1, 1, 3))):
                if chance.random() < 0.05:
                    gap = Gap(self.last[epoch] + 1, self.last[epoch] + chance.randrange(1, 9), 0, "overwritten")
                    commit.add(Batch(node, OUTBOX, epoch, 0, None, gap, {}, print, print), 0)
                    self.gaps.update((epoch, seq) for seq in range(gap.first, gap.last + 1))
                    self.last[epoch] = gap.last
                else:
                    for batch in batches_of(self.samples(node, epoch)):
                        commit.add(Batch(node, OUTBOX, epoch, 0, batch, None, commit.units, print, print), 0)
            commits.append(commit)
        mark = self.logged if chance.random() < 0.8 else None
        self.put(commits, mark)
        if chance.random() < 0.8:
            self.logged = self.filed  # recorded in the next commit

    def put(self, commits, logged):
        mark = None if logged is None else LogMark("a.csv", logged + 1, 0, logged)
        with self.store.writing(()):
            last = self.store.put(commits, self.now_ms, mark)
        for commit in commits:
            for item in commit.items:
                self.filed += 1
                self.items[self.filed] = commit.node, commit.epoch, item
        assert last == self.filed, (last, self.filed)
        if mark:
            self.items = {filed: item for filed, item in self.items.items() if filed > mark.filed}

    def commit_some(self, node, first_ms, count):
        """Commit samples of one node, one every ten seconds and each in its own row.

        The log then has all earlier ones.
        """
        epoch = EPOCHS[node][0]
        for n in range(count):
            self.last[epoch] += 1
            at_ms = first_ms + n * 10_000
            values, errors = {"temperature": 20.5 + n, "light": None}, {"light": "no response"}
            taken = Sample(self.last[epoch], at_ms, at_ms, values, errors, "")
            self.accepted[node, epoch, taken.seq] = taken
            commit = EpochCommit(node, OUTBOX, epoch, NOTHING)
            commit.add(Batch(node, OUTBOX, epoch, 0, SampleBatch.of([taken]), None, {}, print, print), 0)
            self.put([commit], self.filed)

    def samples(self, node, epoch):
        """Yield samples that are live, late or dated ahead; their clock may step while they are taken."""
        chance = self.chance
        at_ms = self.now_ms - chance.choice((0, 0, 0, 60_000, 3 * HOUR_MS, 30 * HOUR_MS, -5 * HOUR_MS))
        every_ms = chance.choice((10_000, 10_000, 1000, 60_000, 600_000))
        names, clock = chance.choice(SETS), chance.choice(("", "", "unset"))
        for _ in range(chance.choice((1, 1, 1, 4, 30))):
            self.last[epoch] += 1
            if chance.random() < 0.05:
                at_ms += chance.choice((-HOUR_MS, HOUR_MS, -7000))
            at_ms += every_ms + chance.choice((0, 0, 1, -1))
            if chance.random() < 0.1:
                at_ms = at_ms // 600_000 * 600_000  # at the boundary of a window
            values = {name: chance.choice((None, 20.5, 21, -0.0, 1e-300)) for name in names}
            errors = {name: "no response" for name, value in values.items() if value is None}
            taken = Sample(self.last[epoch], at_ms, at_ms, values, errors, clock)
            self.accepted[node, epoch, taken.seq] = taken
            yield taken

    def wait(self):
        self.now_ms += self.chance.choice((10_000, 600_000, HOUR_MS, HOUR_MS, 5 * HOUR_MS))

    def tidy(self):
        few = self.chance.choice((3, 50, 20_000))
        with mock.patch.object(compaction, "_MOST_FRESH", few), mock.patch.object(compaction, "_LOOK_ROWS", 1):
            maintain(self.store, self.now_ms, self.chance.choice((0, 0, 1.0)))

    def start_again(self):
        self.store.close()
        self.store = SqliteStore(self.folder)

    # ------------------------------------------------------------------------------------- what must be

    def check(self, test):
        """Check that every accepted sample is stored once, or was deleted after its rollup."""
        store = self.store
        test.assertEqual(list(store.verify()), [])
        nodes = {about["name"]: about for about in store.nodes()}
        kept_from = {name: about["kept_from_ms"] for name, about in nodes.items()}
        found: Counter[tuple[str, str, int]] = Counter()
        for node, epoch, batch in store.every_batch():
            for sample in batch:
                key = node, epoch, sample.seq
                found[key] += 1
                there = self.accepted[key]
                test.assertEqual(
                    (sample.time_ms, repr(sample.values), sample.clock),
                    (there.time_ms, repr(there.values), there.clock),
                )
        test.assertEqual([key for key, count in found.items() if count > 1], [])
        gone = [key for key in self.accepted if key not in found]
        for node, epoch, seq in gone:
            test.assertLess(self.accepted[node, epoch, seq].time_ms, kept_from[node])
        test.assertEqual(Counter(node for node, _, _ in gone),
                         Counter({name: about["forgotten"] for name, about in nodes.items()}))  # fmt: skip
        test.assertEqual({(epoch, seq) for _, epoch, seq in self.accepted} & self.gaps, set())
        owed = [
            (entry.filed, entry.node, entry.epoch, *map(plain, entry.items))
            for entry in store.logged_after(self.mark())
        ]
        test.assertEqual(owed, [(filed, *item[:2], plain(item[2])) for filed, item in sorted(self.items.items())])
        self.check_failures(test, found)

    def mark(self):
        mark = self.store.log_mark()
        return mark.filed if mark else 0

    def check_failures(self, test, found):
        with self.store._reading() as db:
            epochs = dict(db.execute("SELECT id, epoch FROM epochs"))
            stored = {(epochs[id], *rest) for id, *rest in db.execute("SELECT epoch, seq, sensor FROM failures")}
            for table in ("fresh", "chunks"):
                ask = f"SELECT * FROM {table} WHERE low / {HOUR_MS} != high / {HOUR_MS} OR count > 4096"
                test.assertEqual(db.execute(ask).fetchall(), [])
        test.assertEqual(stored, {
            (epoch, seq, sensor)
            for node, epoch, seq in found for sensor in self.accepted[node, epoch, seq].errors
        })  # fmt: skip

    def check_rollups(self, test):
        """Check that all rollups equal those of a recount.

        The recount includes deleted samples, and those that arrived after the deletion.
        """
        for node in EPOCHS:
            for sensor in ("temperature", "light", "wind"):
                values: dict[int, list[float]] = {}
                for (name, _, _), sample in self.accepted.items():
                    if name == node and sample.values.get(sensor) is not None:
                        values.setdefault(sample.time_ms // HOUR_MS, []).append(sample.values[sensor])
                found = self.store.summaries(node, sensor, HOUR_MS, 0, FAR_MS)
                test.assertEqual(
                    {one.end_ms // HOUR_MS - 1: (one.values, one.low, one.high) for one in found},
                    {hour: (len(some), min(some), max(some)) for hour, some in values.items()}, (node, sensor),
                )  # fmt: skip


class Histories(unittest.TestCase):
    def test_random_histories(self):
        for seed in range(HISTORIES):
            with self.subTest(seed=seed):
                history = History(temp_folder(self, memory_disk()), seed)
                for n in range(40):
                    history.step()
                    if n % 8 == 0:
                        history.check(self)
                history.check(self)
                history.logged = history.filed
                history.now_ms += 40 * HOUR_MS
                with mock.patch.object(history.chance, "random", lambda: 0.5):
                    history.commit()  # records the log's mark
                history.now_ms += 60 * HOUR_MS
                maintain(history.store, history.now_ms, 1.0)
                history.check(self)
                history.check_rollups(self)
                with history.store._reading() as db:
                    left = db.execute("SELECT count(*) FROM fresh WHERE id <= ?", (history.mark(),)).fetchone()
                self.assertEqual(left, (0,))
                history.store.close()


class Beside(unittest.TestCase):
    def test_readers_see_each_sample_once_while_it_moves(self):
        history = History(temp_folder(self, memory_disk()), 1)
        history.now_ms = NOON
        store, epoch, stop, wrong = history.store, EPOCHS["a"][0], threading.Event(), []

        def look():
            while not stop.is_set():
                committed = store.marks("a", OUTBOX, [epoch])[1].get(epoch, NOTHING).seq
                for seqs in (
                    [sample.seq for _, _, batch in store.stored_batches("a", 0, FAR_MS) for sample in batch],
                    [point.seq for point in store.points("a", 0, FAR_MS, 1 << 40)],
                ):
                    if seqs != list(range(1, len(seqs) + 1)) or len(seqs) < committed:
                        wrong.append((committed, seqs))
                        stop.set()

        readers = [threading.Thread(target=look) for _ in range(2)]
        for reader in readers:
            reader.start()
        with mock.patch.object(compaction, "_TOGETHER", 1), mock.patch.object(compaction, "_LOOK_ROWS", 1):
            for _ in range(rounds("PIGEONPOST_TEST_MOVES", 12, 200)):
                history.commit_some("a", history.now_ms, 4)
                history.now_ms += HOUR_MS // 2 + 130_000
                maintain(store, history.now_ms)
        stop.set()
        for reader in readers:
            reader.join(LIMIT_S)
        self.assertEqual(wrong, [])
        history.check(self)
        store.close()


class Killing(sqlite3.Connection):
    """A connection that kills the process before its k-th statement."""

    left = 0

    def execute(self, *arguments):
        self.step()
        return super().execute(*arguments)

    def executemany(self, *arguments):
        self.step()
        return super().executemany(*arguments)

    @staticmethod
    def step():
        Killing.left -= 1
        if Killing.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at(k, folder, now_ms):
    """Run the maintenance in a process that is killed at its k-th statement.

    Returns False if it made fewer statements.
    """
    pid = os.fork()
    if not pid:
        try:
            connect = sqlite3.connect
            with mock.patch.object(sqlite3, "connect", lambda *one, **more: connect(*one, **more, factory=Killing)):
                store = SqliteStore(folder)
                Killing.left = k
                maintain(store, now_ms, 1.0)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)


class Kills(unittest.TestCase):
    """A store in which every kind of maintenance is due.

    There are hours to compact, some of them next to existing chunks, samples to delete, and samples that arrived after
    others of their hour were deleted.
    """

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(dir=memory_disk())
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        history = cls.history = History(cls.folder, 5)
        for n in range(3):
            history.now_ms = NOON + n * HOUR_MS
            for node in "ab":
                history.commit_some(node, history.now_ms, 7)
        with mock.patch.object(compaction, "_MOST_FRESH", 0):
            maintain(history.store, history.now_ms)  # also the current hour
        history.commit_some("a", history.now_ms + 600_000, 6)
        history.now_ms = NOON + 25 * HOUR_MS
        maintain(history.store, history.now_ms, 1.0)  # deletes the first hour; a sample for it arrives afterwards
        history.commit_some("b", NOON + HOUR_MS - 40_000, 6)
        history.commit_some("a", history.now_ms, 5)
        history.now_ms += HOUR_MS
        history.commit_some("a", history.now_ms, 2)
        history.now_ms += compaction._GRACE_MS
        history.store.close()

    def round(self, kill):
        """Kill the process in a copy of the store, and continue.

        Returns False if the maintenance was finished before.
        """
        folder = temp_folder(self, memory_disk())
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        was_killed = kill(folder)
        history = self.history
        history.store = SqliteStore(folder)
        history.check(self)
        maintain(history.store, history.now_ms + 90 * HOUR_MS, 1.0)
        history.check(self)
        history.check_rollups(self)
        history.store.close()
        return was_killed

    def test_at_every_statement(self):
        k = 1
        while self.round(lambda folder: killed_at(k, folder, self.history.now_ms)):  # noqa: B023
            k += STRIDE
        self.assertGreater(k, 100)

    @long
    @unittest.skipUnless(may_trace(), "strace is not here, or may not trace")
    def test_at_every_write_and_sync_of_the_file(self):
        for call in ("pwrite64", "fdatasync"):
            k = 1
            while self.round(lambda folder: self.traced(folder, f"{call}:signal=KILL:when={k}")):  # noqa: B023
                k += 1
            self.assertGreater(k, 5, call)

    def traced(self, folder, fault):
        paths = [option for end in ("", "-wal") for option in ("-P", os.path.join(folder, DATABASE + end))]
        ended = subprocess.run(
            [*injecting(fault, *paths), sys.executable, "-m", "tests.faults.test_compaction", folder,
             str(self.history.now_ms)], cwd=ROOT, timeout=LIMIT_S,
        )  # fmt: skip
        self.assertIn(ended.returncode, (0, -signal.SIGKILL))
        return ended.returncode != 0


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2].isdigit():  # what test_at_every_write_and_sync_of_the_file kills
        opened = SqliteStore(sys.argv[1])
        maintain(opened, int(sys.argv[2]), 1.0)
        opened.close()
    else:
        unittest.main()
