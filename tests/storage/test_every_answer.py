"""Comparison of all queries with a plain list of samples: API functions, views, exports, statistics and CSV logs.

A seed simulates minutes to hours from a full hour on: late samples, clocks that step, sensors that appear, disappear or
fail, restarts and kills. Maintenance runs in between, or is interrupted.
"""

import contextlib
import csv
import json
import math
import os
import random
import sqlite3
import unittest

from csvbuffer import CsvLog
from pigeonpost.core.clock import FakeClock, parse_rfc3339
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.storage.csv.verify import verify_logs
from pigeonpost.storage.maintenance import MaintenanceWorker, current_rollups, rollup
from pigeonpost.storage.models import NOTHING, SPANS_MS, EpochCommit, StoredSample, window_end
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.views.statistics import StatisticsReader
from protocol import Sample
from tests.page_support import control_here, use_memory_disk
from tests.storage.test_contract import FAR_MS, OUTBOX, Direct, gap, wrapped
from tests.support import rounds, stored_samples, temp_folder

SHORT_MS, HOUR_MS = SPANS_MS
NOON = 1_795_003_200_000  # the beginning of an hour
FIRST, SEEDS = int(os.environ.get("PIGEONPOST_TEST_FIRST_SEED", 0)), rounds("PIGEONPOST_TEST_ANSWERS", 1, 40)
STEPS = (5, 30, 80) if SEEDS > 1 else (12,)
UNITS = {"t": "°C", "p": '%"'}


def setUpModule():
    use_memory_disk()


class Play:
    """Simulation of one seed on a store, with a plain list of its content."""

    def __init__(self, test, seed, keep_days=0.0):
        self.chance = random.Random(seed)
        self.keep_days = keep_days
        self.folder = temp_folder(test)
        self.clock = FakeClock(NOON)
        self.samples = []  # StoredSample
        self.gaps = []
        self.seqs = {}
        self.ranks = {}  # order in which the epochs were first stored
        self.nodes = ["a", "b-c", "E"][: self.chance.randint(1, 3)]
        self.open()

    def open(self):
        self.store = SqliteStore(self.folder)
        self.log = CsvLog(self.folder, self.store, self.clock)
        self.log.start()
        self.worker = MaintenanceWorker(self.store, Direct(self.store), self.clock, self.keep_days)

    def close(self):
        self.log.record()
        self.log.close()
        self.store.close()

    def kill(self):
        self.log._sums.stop()
        self.log._close_file()
        self.store.close()

    def value(self):
        return self.chance.choice((
            None, self.chance.randint(-5, 5), self.chance.uniform(-30, 30), round(self.chance.uniform(0, 99), 1), 0.1,
            self.chance.choice((1e300, -1e-300, 1e22, -(1 << 60), 0, -0.0)),
        ))  # fmt: skip

    def stretch(self, seq):
        """Return consecutive samples: in time, late, ahead of time, or with a clock step."""
        start_ms = self.clock.wall_ms() - self.chance.choice(
            (0, 0, 0, 1, 60_000, 600_000, HOUR_MS, 3 * HOUR_MS, -70_000)
        )
        if self.chance.random() < 0.2:
            start_ms = start_ms // SHORT_MS * SHORT_MS  # an edge of two windows
        every_ms = self.chance.choice((0, 1, 100, 1000, 10_000, 60_000, 600_000, -1000))
        names = self.chance.sample(["t", "p", "l", "m"], self.chance.randint(1, 4))
        clock = self.chance.choice(("", "", "unset", "server"))
        jitter = self.chance.choice((0, 0, 30, 3_600_000))
        return [
            Sample(seq + n, start_ms + n * every_ms + self.chance.randint(0, jitter), n,
                   {name: self.value() for name in names}, {}, clock)
            for n in range(self.chance.choice((1, 1, 2, 7, 60)))
        ]  # fmt: skip

    def commit(self):
        commits = {}
        with self.store.writing(
            {(node, epoch): None for node in self.nodes for epoch in ("1" * 16, "2" * 16)}
        ) as marks:
            for _ in range(self.chance.randint(1, 4)):
                node, epoch = key = self.chance.choice(self.nodes), self.chance.choice(("1", "2")) * 16
                seq = self.seqs.get(key, 1)
                if key not in commits:
                    commits[key] = EpochCommit(node, OUTBOX, epoch, marks.get(key, NOTHING))
                    commits[key].units = UNITS
                    self.ranks.setdefault(key, len(self.ranks))
                if self.chance.random() < 0.1:
                    batches = [gap(seq, seq + 2, node, epoch)]
                    self.gaps.append((node, epoch, seq))
                    self.seqs[key] = seq + 3
                else:
                    new = self.stretch(seq)
                    batches = wrapped(new, node, epoch)
                    self.samples += [StoredSample(node, s.time_ms, epoch, s.seq, s.values, s.clock) for s in new]
                    self.seqs[key] = seq + len(new)
                for one in batches:
                    commits[key].add(one, 0)
            filed = self.store.put(list(commits.values()), self.clock.wall_ms(), self.log.due())
        if self.chance.random() < 0.03:
            self.kill()  # before the rows are in the log
            self.open()
            return
        for commit in commits.values():
            self.log.add(commit, self.clock.wall_ms())
        self.log.flush(filed)

    def step(self):
        done = self.chance.random()
        if done < 0.75:
            self.commit()
        elif done < 0.9:
            for _ in range(self.chance.choice((1, 1, 2, 50))):
                if not self.worker.work():
                    break
        elif done < 0.95:
            self.log.record()
        elif done < 0.97:
            self.kill()
            self.open()
        elif done < 0.98:
            self.close()
            self.open()
        self.clock.sleep(self.chance.choice((1, 1, 10, 61, 300)))


class EveryAnswerTest(unittest.TestCase):
    maxDiff = 2000

    def test_answers_equal_those_of_a_plain_list(self):
        for seed in range(FIRST, FIRST + SEEDS):
            with self.subTest(seed=seed):
                self.play = Play(self, seed)
                try:
                    for _ in range(self.play.chance.choice(STEPS)):
                        self.play.step()
                        if self.play.chance.random() < 0.03:
                            self.check()
                    self.check()
                    self.check_beside()
                finally:
                    self.play.close()
                self.check_logs()

    def test_statistics_include_deleted_samples(self):
        for seed in range(FIRST, FIRST + SEEDS):
            with self.subTest(seed=seed):
                self.play = Play(self, seed, keep_days=0.05)
                try:
                    for _ in range(self.play.chance.choice(STEPS)):
                        self.play.step()
                        if self.play.chance.random() < 0.03:
                            self.check_kept()
                        if self.play.chance.random() < 0.05:
                            self.play.clock.sleep(3600)
                    self.check_kept()
                finally:
                    self.play.close()
                self.check_logs()

    # ---------------------------------------------------------------------------------------------- the answers

    def check_kept(self):
        play, store = self.play, self.play.store
        self.samples = play.samples
        self.assertEqual(list(store.verify()), [])
        present = set(self.sorted(stored_samples(store.every_batch())))
        for about in store.nodes():
            node, kept_from_ms = about["name"], about["kept_from_ms"]
            mine = [one for one in self.samples if one.node == node]
            left = [one for one in mine if repr(one) in present]
            self.assertEqual((about["samples"], about["forgotten"]), (len(mine), len(mine) - len(left)))
            self.assertEqual([one for one in mine if one.time_ms >= kept_from_ms and repr(one) not in present], [])
            hours = [one.time_ms // HOUR_MS * HOUR_MS for one in mine] or [NOON]
            for sensor in ("t", "l"):
                for span_ms in SPANS_MS:
                    found = current_rollups(store, node, sensor, span_ms, 0, FAR_MS, kept_from_ms, 1 << 40)
                    self.assert_windows(found, self.windows(mine, sensor, span_ms))
                for from_ms, to_ms in ((min(hours), max(hours) + HOUR_MS), (hours[0], hours[0] + 3 * HOUR_MS)):
                    count = (to_ms - from_ms) // HOUR_MS
                    within = [one for one in mine if from_ms <= one.time_ms < to_ms]
                    wanted = self.windows(within, sensor, HOUR_MS)
                    found = store.downsample(node, sensor, from_ms, to_ms, count)
                    self.assertEqual(
                        [(from_ms + (one.place + 1) * HOUR_MS, one.values, one.low, one.high) for one in found],
                        [(one.end_ms, one.values, one.low, one.high) for one in wanted],
                    )
                    told = StatisticsReader(store, play.clock).of(node, sensor, from_ms, to_ms)
                    self.assertEqual(
                        told and (told.values, told.low, told.high),
                        (sum(one.values for one in wanted), min(one.low for one in wanted),
                         max(one.high for one in wanted)) if wanted else None,
                    )  # fmt: skip

    def windows(self, samples, sensor, span_ms):
        """Return the rollup of each window of these samples."""
        found = {}
        for one in samples:
            if one.values.get(sensor) is not None:
                found.setdefault(window_end(one.time_ms, span_ms), []).append(float(one.values[sensor]))
        return [rollup(found[end_ms], end_ms) for end_ms in sorted(found)]

    def assert_windows(self, found, wanted):
        """Compare all fields except median and mode, which late samples do not change."""
        exact = [(one.end_ms, one.values, one.low, one.high) for one in wanted]
        self.assertEqual([(one.end_ms, one.values, one.low, one.high) for one in found], exact)
        for one, other in zip(found, wanted):
            most = max(abs(other.low), abs(other.high))
            self.assert_near(one.mean, other.mean, (most,))
            self.assertLessEqual(abs(one.deviation - other.deviation), 1e-6 * most)

    def check(self):
        play, store = self.play, self.play.store
        self.samples = sorted(
            play.samples, key=lambda one: (one.node, one.time_ms, play.ranks[one.node, one.epoch], one.seq)
        )
        self.assertEqual(list(store.verify()), [])
        self.assertEqual([text for text in store.check_pieces() if text], [])
        every = list(stored_samples(store.every_batch()))
        self.assertEqual(self.sorted(every), self.sorted(self.samples))
        self.assert_in_order(every)
        told = {about["name"]: about for about in store.nodes()}
        for node in play.nodes:
            mine = [one for one in self.samples if one.node == node]
            if node in told:
                self.assertEqual(
                    (told[node]["samples"], told[node]["first_ms"], told[node]["last_ms"], told[node]["missing"]),
                    (len(mine), min((one.time_ms for one in mine), default=None),
                     max((one.time_ms for one in mine), default=None), 3 * sum(gap[0] == node for gap in play.gaps)),
                )  # fmt: skip
            for from_ms, to_ms in self.spans(mine):
                within = [one for one in mine if from_ms <= one.time_ms < to_ms]
                self.assert_samples(node, from_ms, to_ms, within)
                for sensor in ("t", "l"):
                    values = [(one.time_ms, one.values[sensor]) for one in within if one.values.get(sensor) is not None]
                    self.assert_buckets(node, sensor, from_ms, to_ms, values)
                    self.assert_statistics(node, sensor, from_ms, to_ms, values)
            for sensor in ("t", "l"):
                self.assert_rollups(node, sensor, mine)

    def spans(self, samples):
        chance = self.play.chance
        times = [one.time_ms for one in samples] or [NOON]
        yield min(times) - 1, max(times) + 1
        for _ in range(3):
            from_ms = chance.choice(times) - chance.choice((0, 1, 1000, HOUR_MS))
            yield from_ms, from_ms + chance.choice((1, 1000, 600_000, HOUR_MS, 3 * HOUR_MS, 50 * HOUR_MS))
        from_ms = chance.choice(times) // HOUR_MS * HOUR_MS
        yield from_ms, from_ms + chance.choice((1, 3)) * HOUR_MS

    def sorted(self, samples):
        return sorted(map(repr, samples))

    def assert_in_order(self, samples):
        last = {}
        for one in samples:
            self.assertGreater(one.seq, last.get((one.node, one.epoch), 0))
            last[one.node, one.epoch] = one.seq

    def assert_samples(self, node, from_ms, to_ms, within):
        store = self.play.store
        self.assertEqual(list(map(repr, store.points(node, from_ms, to_ms, -1))), list(map(repr, within)))
        limit = self.play.chance.randint(1, 20)
        self.assertEqual(store.points(node, from_ms, to_ms, limit), within[-limit:])
        found = list(stored_samples(store.stored_batches(node, from_ms, to_ms)))
        self.assertEqual(self.sorted(found), self.sorted(within))
        self.assert_in_order(found)

    def assert_buckets(self, node, sensor, from_ms, to_ms, values):
        """Compare buckets. If rollups may be used, only buckets of complete windows are compared exactly."""
        store, chance = self.play.store, self.play.chance
        count = chance.choice((1, 3, 7, 100))
        width_ms = (to_ms - from_ms) / count
        is_exact = width_ms < SHORT_MS or not any(edge % HOUR_MS for edge in (from_ms, to_ms, width_ms))
        places = {}
        for time_ms, value in values:
            places.setdefault((time_ms - from_ms) * count // (to_ms - from_ms), []).append(value)
        wanted = [(place, len(of), min(of), max(of)) for place, of in sorted(places.items())]
        every = store.downsample_all(node, from_ms, to_ms, count, {sensor}).get(sensor, [])
        found = store.downsample(node, sensor, from_ms, to_ms, count)
        self.assertEqual([one[:4] for one in every], wanted)
        if is_exact:
            self.assertEqual([one[:4] for one in found], wanted)
        else:
            self.assertEqual(sum(one.values for one in found), len(values))
            self.assertEqual(min((one.low for one in found), default=None), min((v for _, v in values), default=None))
            self.assertEqual(max((one.high for one in found), default=None), max((v for _, v in values), default=None))
        for buckets in (every, found) if is_exact else (every,):
            for one in buckets:
                self.assert_near(one.mean, math.fsum(places[one.place]) / len(places[one.place]), places[one.place])
        self.assertEqual(store.downsample_several(node, from_ms, to_ms, count, (sensor,)), {sensor: found})

    def assert_near(self, found, wanted, values):
        self.assertLessEqual(abs(found - wanted), 1e-9 * max(map(abs, values)) * len(values))

    def assert_statistics(self, node, sensor, from_ms, to_ms, values):
        found = StatisticsReader(self.play.store, self.play.clock).of(node, sensor, from_ms, to_ms)
        if not values:
            self.assertIsNone(found)
            return
        low, high = min(value for _, value in values), max(value for _, value in values)
        self.assertEqual((found.values, found.low, found.high), (len(values), low, high))
        self.assertEqual(found.low_ms, min(time_ms for time_ms, value in values if value == low))
        self.assertEqual(found.high_ms, min(time_ms for time_ms, value in values if value == high))
        one = rollup([float(value) for _, value in values], to_ms)
        self.assert_near(found.mean, one.mean, (low, high))
        self.assertLessEqual(abs(found.deviation - one.deviation), 1e-6 * max(abs(low), abs(high)))
        if found.is_exact:
            self.assertEqual((found.median, found.mode), (one.median, one.mode))

    def assert_rollups(self, node, sensor, samples):
        store = self.play.store
        for span_ms in SPANS_MS:
            wanted = self.windows(samples, sensor, span_ms)
            self.assertEqual(current_rollups(store, node, sensor, span_ms, 0, FAR_MS, 0, 1 << 40), wanted)
            dirty = set(store.dirty_ends(node, span_ms, 0, FAR_MS))
            clean = [one for one in store.summaries(node, sensor, span_ms, 0, FAR_MS) if one.end_ms not in dirty]
            self.assertEqual(clean, [one for one in wanted if one.end_ms not in dirty])
            with contextlib.closing(self.shell()) as db:
                rows = db.execute(
                    'SELECT end_ms, "values", mean, median, mode, low, high, deviation FROM statistics'
                    " WHERE node = ? AND sensor = ? AND minutes = ? AND NOT outdated AND closed = 'left'"
                    " ORDER BY end_ms",
                    (node, sensor, span_ms // 60_000),
                ).fetchall()
            self.assertEqual(rows, [tuple(one) for one in clean])

    def shell(self):
        return sqlite3.connect(f"file:{os.path.join(self.play.folder, DATABASE)}?mode=ro", uri=True)

    def check_beside(self):
        """Check the views and exports that other programs use."""
        readings = sorted(
            (one.node, sensor, one.time_ms, repr(value), UNITS.get(sensor, ""))
            for one in self.samples for sensor, value in one.values.items()
        )  # fmt: skip
        with contextlib.closing(self.shell()) as db:
            rows = db.execute("SELECT node, sensor, time_ms, value, unit FROM readings").fetchall()
            self.assertEqual(sorted((*row[:3], repr(row[3]), row[4]) for row in rows), readings)
            rows = db.execute('SELECT node, time_ms, epoch, seq, sensors, "values", clock FROM samples').fetchall()
            found = [StoredSample(*row[:4], dict(zip(*map(json.loads, row[4:6]))), row[6]) for row in rows]
            self.assertEqual(self.sorted(found), self.sorted(self.samples))
        if self.samples:
            self.check_exports(readings)

    def check_exports(self, readings):
        folder = self.play.folder
        path = os.path.join(folder, "out")
        self.export("csv", path)
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        self.assertEqual(sorted(self.meaning(row) for row in rows), readings)
        for node in self.play.nodes:
            times = [parse_rfc3339(row[0]) for row in rows if row[1] == node]
            self.assertEqual(times, sorted(times))
        self.export("jsonl", path)
        with open(path, encoding="utf-8") as file:
            told = [json.loads(line) for line in file]
        self.assertEqual(
            sorted(repr((o["node"], parse_rfc3339(o["time"]), o["values"], o.get("clock", ""))) for o in told),
            sorted(repr((o.node, o.time_ms, o.values, o.clock)) for o in self.samples),
        )
        self.export("sqlite", path)
        with contextlib.closing(sqlite3.connect(path)) as db:
            rows = db.execute("SELECT node, sensor, time, value, unit FROM readings").fetchall()
        self.assertEqual(
            sorted((node, sensor, parse_rfc3339(time), repr(value), unit) for node, sensor, time, value, unit in rows),
            readings,
        )

    def export(self, form, path):
        status, _, told = control_here("--data", self.play.folder, "export", "--format", form, "--out", path)
        self.assertEqual(status, 0, told)

    @staticmethod
    def meaning(row):
        time, node, sensor, value, unit = row
        value = "None" if value == "" else value
        return node, sensor, parse_rfc3339(time), value, unit

    def check_logs(self):
        """Check after the run that each reading and gap is in the logs once, in the order of its epoch."""
        folder, found, gaps = os.path.join(self.play.folder, "logs"), [], 0
        for name in sorted(logs_in(folder), key=lambda name: (name[:-4].partition("_")[0], len(name), name)):
            with open(os.path.join(folder, name), newline="", encoding="utf-8") as file:
                for row in list(csv.reader(file))[1:]:
                    gaps += row[2] == "gap"
                    if row[2] != "gap":
                        found.append(self.meaning(row))
        wanted = sorted(
            (one.node, sensor, one.time_ms, repr(value), UNITS.get(sensor, ""))
            for one in self.samples for sensor, value in one.values.items()
        )  # fmt: skip
        self.assertEqual((sorted(found), gaps), (wanted, len(self.play.gaps)))
        with contextlib.closing(SqliteStore(self.play.folder, look_only=True)) as store:
            self.assertEqual(list(verify_logs(folder, store)), [])


if __name__ == "__main__":
    unittest.main()
