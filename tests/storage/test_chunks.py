"""Text form of runs of samples: SQL tools can read it, and conversion in both directions loses nothing."""

import json
import os
import random
import unittest
import zlib

from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.chunks import ChunkRow, pack, unpack
from tests.support import ROOT

START_MS = 1_795_000_000_000


def batch(times, values=None, seq=1, clock=""):
    return SampleBatch(seq, list(times), [], values or {"t": [20.5] * len(times)}, clock=clock)


def regular(count, every_ms, chance=None, jitter_ms=0):
    return [START_MS + k * every_ms + (chance.randint(0, jitter_ms) if chance else 0) for k in range(count)]


def any_batch(chance, seq=1, names=("t", "l")):
    count = chance.choice((1, 1, 2, 3, 50, 700))
    times = [START_MS]
    for _ in range(count - 1):
        times.append(times[-1] + chance.choice((1000, 1000, 1000, 1003, 0, -500, 3_600_000)))
    draw = (lambda: None), (lambda: chance.randrange(-5, 1 << 60)), (lambda: chance.uniform(-1e9, 1e9)), (lambda: -0.0)
    return batch(times, {name: [chance.choice(draw)() for _ in times] for name in names}, seq)


class TextTest(unittest.TestCase):
    def test_regular_samples_have_no_residuals(self):
        made = batch(regular(3, 10_000), {"t": [20.5, None, -0.0], "l": [1, 2, 1 << 60]})
        self.assertEqual(
            pack(made),
            (START_MS, START_MS + 20_000, 10_000, "[[0,20.5,1],[0,null,2],[0,-0.0,1152921504606846976]]"),
        )

    def test_single_sample_has_no_step(self):
        self.assertEqual(pack(batch([START_MS])), (START_MS, START_MS, 0, "[[0,20.5]]"))

    def test_samples_without_sensors_keep_their_times(self):
        self.assertEqual(pack(SampleBatch(1, [5, 6, 7], [], {})), (5, 7, 1, "[[0],[0],[0]]"))

    def test_pause_only_lengthens_the_samples_after_it(self):
        times = [START_MS, *(START_MS + 60_000 + k * 1000 for k in range(1, 100))]
        self.assertLessEqual(len(pack(batch(times))[3]), len(f"[[0,20.5]{',[60000,20.5]' * 99}]"))

    def test_pause_at_the_end_only_lengthens_its_own_sample(self):
        times = [*regular(100, 1000), START_MS + 3_000_000]
        self.assertEqual(pack(batch(times))[2:], (1000, f"[{'[0,20.5],' * 100}[2900000,20.5]]"))

    def test_low_and_high_are_minimum_and_maximum_after_a_clock_step(self):
        low, high, step, data = pack(batch([START_MS + 5000, START_MS + 9000, START_MS, START_MS + 4000]))
        self.assertEqual((low, high), (START_MS, START_MS + 9000))
        rows = [row[0] + low + k * step for k, row in enumerate(json.loads(data))]
        self.assertEqual(rows, [START_MS + 5000, START_MS + 9000, START_MS, START_MS + 4000])

    def test_residuals_are_short_for_all_intervals(self):
        chance = random.Random(1)
        for every_ms in (1, 7, 100, 999, 10_000):
            for count in (2, 3, 100, 3000):
                made = batch(regular(count, every_ms, chance, min(every_ms - 1, 9)))
                longest = max(abs(row[0]) for row in json.loads(pack(made)[3]))
                self.assertLess(longest, 100, (every_ms, count))

    def test_sql_can_calculate_the_times(self):
        chance = random.Random(2)
        for _ in range(50):
            made = any_batch(chance)
            low, high, step, data = pack(made)
            rows = json.loads(data)
            self.assertEqual([low + k * step + row[0] for k, row in enumerate(rows)], made.times)
            self.assertEqual([row[1:] for row in rows], [list(row) for row in zip(*made.values.values(), strict=True)])
            self.assertEqual((low, high), (min(made.times), max(made.times)))


class RowTest(unittest.TestCase):
    def test_consecutive_rows_are_unpacked_as_one_batch(self):
        chance = random.Random(3)
        for _ in range(50):
            whole, rows = any_batch(chance), []
            rows.append(ChunkRow.pack(1, 2, 3, whole, 4))
            for _ in range(chance.randrange(4)):
                part = any_batch(chance, whole.last + 1)
                rows.append(ChunkRow.pack(1, 2, 3, part, 4))
                self.assertTrue(rows[-2].is_followed_by(rows[-1]))
                whole.extend(part)
            found = unpack(rows, ("t", "l"))
            self.assertEqual(found, whole)
            kinds = [[type(value) for value in column] for column in found.values.values()]
            self.assertEqual(kinds, [[type(value) for value in column] for column in whole.values.values()])

    def test_wanted_columns_equal_those_of_a_complete_unpack(self):
        chance = random.Random(4)
        names = tuple("abcdefgh")
        for _ in range(20):
            made = any_batch(chance, names=names)
            row = ChunkRow.pack(1, 2, 3, made, 4)
            for wanted in ((), ("b",), ("h", "a", "nothing"), names[:6], names):
                found = unpack([row], names, wanted)
                self.assertEqual(found.times, made.times)
                self.assertEqual(found.values, {name: made.values[name] for name in names if name in wanted})

    def test_only_the_next_row_of_the_same_kind_follows(self):
        row = ChunkRow.pack(1, 2, 3, batch(regular(5, 10)), 4)
        after = ChunkRow.pack(1, 2, 3, batch(regular(5, 10), seq=6), 4)
        self.assertTrue(row.is_followed_by(after))
        for other in (after._replace(first=7), after._replace(epoch=3), after._replace(shape=4),
                      after._replace(clock="unset")):  # fmt: skip
            self.assertFalse(row.is_followed_by(other))

    def test_changed_column_is_detected(self):
        row = ChunkRow.pack(1, 2, 3, batch(regular(5, 10), clock="unset"), 4)
        self.assertEqual(row.unpack(("t",)).times, regular(5, 10))
        for name in ("low", "epoch", "first", "count", "high", "step", "shape", "crc"):
            with self.subTest(name), self.assertRaises(ValueError):
                row._replace(**{name: getattr(row, name) + 1}).unpack(("t",))
        for name, value in (("clock", None), ("clock", "server"), ("data", None), ("low", "1"), ("count", None)):
            with self.subTest(name, value=value), self.assertRaises(ValueError):
                row._replace(**{name: value}).unpack(("t",))

    def test_checksum_is_as_documented(self):
        row = ChunkRow.pack(1, 2, 3, batch(regular(5, 10)), 4)
        text = f"{row.low} {row.epoch} {row.first} {row.count} {row.high} {row.step} {row.shape}  {row.data}"
        self.assertEqual(row.crc, zlib.crc32(text.encode()))
        with open(os.path.join(ROOT, "docs", "data.md"), encoding="utf-8") as manual:
            self.assertIn("`low epoch first count high step shape clock data`", " ".join(manual.read().split()))

    def test_changed_digit_is_detected(self):
        row = ChunkRow.pack(1, 2, 3, batch(regular(3, 10), {"t": [20.5, 21.5, None]}), 4)
        for place, letter in enumerate(row.data):
            if letter.isdigit():
                changed = row.data[:place] + str((int(letter) + 1) % 10) + row.data[place + 1 :]
                with (
                    self.subTest(place),
                    self.assertRaisesRegex(ValueError, "3 samples of epoch 2, from 1 on, were changed"),
                ):
                    row._replace(data=changed).unpack(("t",))

    def test_shape_with_a_different_number_of_names_is_refused(self):
        row = ChunkRow.pack(1, 2, 3, batch(regular(3, 10)), 4)
        for names in ((), ("t", "l"), ("t", "a", "b", "c", "d")):
            with self.subTest(names), self.assertRaises(ValueError):
                row.unpack(names)


if __name__ == "__main__":
    unittest.main()
