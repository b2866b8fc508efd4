"""Tests of columns made from slots: they contain the same samples and never exceed the length limit."""

import json
import random
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock, parse_rfc3339
from pigeonpost.link.columns import decode_columns, read_columns
from pigeonpost.link.sample_text import sample_body
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import Slot
from pigeonpost.node.send_cursor import OutgoingBatch, OutgoingGap, SendCursor
from pigeonpost.node.slot_columns import ColumnsWriter
from tests.support import WALL_MS, MemoryDisk, taken

NAMES = "abcdefghijklmnopqrstuvwxyz"


def slots_of(count, values, errors, up_ms=0):
    return [Slot(k, 0, up_ms + k, 0, True, sample_body(values(k), errors(k))) for k in range(count)]


class Writer(unittest.TestCase):
    def write(self, slots, times, room_bytes, seq=10**17, clock="server", at_once=100):
        """Return the samples that fit, and the length of their text in bytes."""
        writer, count = ColumnsWriter(seq, clock, room_bytes), 0
        while count < len(slots) and not writer.is_full:
            added = writer.add(slots[count : count + at_once], times[count : count + at_once])
            count += added
            if not added:
                break
        text = writer.text()
        batch = read_columns(decode_columns(text))
        self.assertEqual((batch.seq, batch.clock, batch.times), (seq, clock, times[:count]))
        self.assertEqual(writer.last_ms, times[count - 1])
        self.assertEqual(batch.ups, [slot.up_ms for slot in slots[:count]])
        return batch, len(text.encode())

    def test_text_never_exceeds_its_limit(self):
        start = -62_135_596_800_000  # with the longest numbers, all different
        for names, failing in ((NAMES, True), (NAMES, False), ("a", True), ("a", False)):
            slots = slots_of(
                4000,
                lambda k, names=names, failing=failing: dict.fromkeys(names, None if failing else -k / 7),
                lambda k, names=names, failing=failing: dict.fromkeys(names, "x") if failing else {},
                up_ms=2**62,
            )
            times = [start + k * 10**10 for k in range(4000)]
            for room in (1500, 20_000, 65_000):
                batch, length = self.write(slots, times, room)
                self.assertLessEqual(length, room, (names, failing))
                self.assertTrue(length > 0.6 * room or room < 2000 or len(batch) == 4000, (names, failing, length))

    def test_text_fits_with_a_first_sample_of_any_length(self):
        slots = slots_of(50, lambda k: {"a": k}, lambda k: {})
        for room in range(250, 400):
            self.write(slots, [WALL_MS + k for k in range(50)], room, at_once=7)

    def test_texts_of_values_are_copied_unchanged(self):
        values = [1, -7, 0.5, 1e-7, -0.0, 1e300, 2**63 - 1, None, 123456789.123456789]
        slots = slots_of(9, lambda k: {"a": values[k], "b_2": values[-k]}, lambda k: {})
        batch, _ = self.write(slots, list(range(9)), 5000)
        self.assertEqual(repr(batch.values["a"]), repr(values))

    def test_unexpected_body_is_not_accepted(self):
        writer = ColumnsWriter(1, "", 5000)
        self.assertEqual(writer.add([Slot(1, 0, 0, 0, True, '"values":{"a":{"b":1}}')], [0]), 0)


class OutboxColumns(unittest.TestCase):
    """Outbox after random operations: clock set or not, changing and failing sensors, damage, and a full ring."""

    def setUp(self):
        self.clock = FakeClock()
        self.clock.known = False
        self.clock.boot_id = "0b" * 8

    def life(self, chance):
        disk = MemoryDisk()
        outbox = Outbox(Ring("/data", 64, 256, disk), "0b" * 8, new_epoch=lambda: "e" * 16)
        given, clock_set, names = [], True, ("a", "b")
        for number in range(chance.choice((3, 20, 60, 90))):
            if chance.random() < 0.15:
                clock_set, outbox._boot_id = chance.choice(((True, "0b" * 8), (False, "0b" * 8), (False, "0c" * 8)))
            if chance.random() < 0.1:
                names = chance.choice((("a", "b"), ("b", "a"), ("a",), ("a", "b", "c")))
            values = {name: None if chance.random() < 0.2 else chance.choice((number, number / 8)) for name in names}
            errors = {name: f'"{name}" °' for name, value in values.items() if value is None}
            wall_ms, up_ms = WALL_MS + 1000 * number + chance.choice((0, 0, 1)), 1000 * number
            outbox.put(taken(wall_ms=wall_ms, up_ms=up_ms, clock_set=clock_set, values=values, errors=errors))
            outbox.commit()
            flag = "" if clock_set else "server" if outbox._boot_id == "0b" * 8 else "unset"
            given.append((5_000_000 + up_ms if flag == "server" else wall_ms, up_ms, values, errors, flag))
        held = range(max(1, len(given) - 63), len(given) + 1)
        damaged = set(chance.sample(held, chance.choice((0, 0, 1, 3))))
        for number in damaged:
            at = outbox.ring._position(number) + 60
            disk.pwrite(outbox.ring._fd, bytes([disk.pread(outbox.ring._fd, 1, at)[0] ^ 1]), at)
        return outbox, given, damaged

    def test_every_sample_is_sent_once_and_unchanged(self):
        columns = 0
        for seed in range(120):
            chance = random.Random(f"slots {seed}")
            outbox, given, damaged = self.life(chance)
            cursor = SendCursor(outbox, self.clock, room := chance.choice((600, 1500, 65_000)))
            cursor.takes_columns, cursor.offset_ms = True, 5_000_000
            cursor.begin(0, {})
            found, lost, last = {}, set(), 0
            with (
                mock.patch("pigeonpost.node.send_cursor._READ_SLOTS", chance.choice((1, 3, 16, 128))),
                mock.patch("pigeonpost.node.send_cursor.COLUMN_SAMPLES", chance.choice((2, 7, 4096))),
            ):
                pieces = list(iter(cursor.next, None))
            for piece in pieces:
                self.assertEqual(piece.first, last + 1, f"seed {seed}")
                last = piece.last
                if isinstance(piece, OutgoingGap):
                    lost |= set(range(piece.first, piece.last + 1))
                    continue
                self.assertLessEqual(len(piece.text.encode()), room)
                samples = self.samples(piece)
                columns += piece.text.startswith("{")
                self.assertEqual(piece.sample_count, len(samples))
                self.assertEqual(piece.last_ms, samples[-1][1])
                found |= {seq: tuple(rest) for seq, *rest in samples}
            overwritten = set(range(1, len(given) - 64 + 1))
            self.assertEqual(lost, overwritten | damaged, f"seed {seed}")
            expected = {seq: entry for seq, entry in enumerate(given, 1) if seq not in lost}
            self.assertEqual(found, expected, f"seed {seed}")
            self.assertEqual((cursor.due(), cursor.waiting()), (0, len(found)))
        self.assertGreater(columns, 200)

    def samples(self, piece):
        value = json.loads(piece.text)
        if isinstance(value, list):
            return [
                (s["seq"], parse_rfc3339(s["time"]), s["up"], s["values"], s.get("errors", {}), s.get("clock", ""))
                for s in value
            ]
        return [(s.seq, s.time_ms, s.up_ms, s.values, s.errors, s.clock) for s in read_columns(value)]

    def test_samples_with_different_channels_are_not_read_repeatedly(self):
        outbox = Outbox(Ring("/data", 1024, 256, MemoryDisk()), "0b" * 8)
        for number in range(1000):
            outbox.put(taken(values={"a": 1} if number % 2 else {"b": 1}))
        while outbox.commit():
            pass
        cursor, read = SendCursor(outbox, self.clock), []
        cursor.takes_columns = True
        cursor.begin(0, {})
        outbox_read = outbox.read
        with mock.patch.object(outbox, "read", lambda number, count: read.append(count) or outbox_read(number, count)):
            pieces = list(iter(cursor.next, None))
        self.assertEqual(sum(piece.sample_count for piece in pieces), 1000)
        self.assertLess(sum(read), 17 * 1000)

    def test_clock_set_during_a_batch_changes_only_the_times(self):
        outbox = Outbox(Ring("/data", 64, 256, MemoryDisk()), self.clock.boot_id)
        for number in range(5):
            outbox.put(taken(up_ms=number, clock_set=False))
        outbox.commit()
        for looks in range(7):
            answers = iter([False] * looks)
            cursor = SendCursor(outbox, self.clock)
            cursor.takes_columns = True
            cursor.begin(0, {})
            with mock.patch.object(self.clock, "is_set", lambda answers=answers: next(answers, True)):
                pieces = list(iter(cursor.next, None))
            samples = [sample for piece in pieces for sample in self.samples(piece)]
            self.assertEqual([sample[0] for sample in samples], [1, 2, 3, 4, 5], f"set after {looks} looks")

    def test_waiting_counts_samples_without_gaps(self):
        disk = MemoryDisk()
        outbox = Outbox(Ring("/data", 64, 256, disk), "0b" * 8, new_epoch=lambda: "e" * 16)
        for _ in range(12):
            outbox.put(taken())
        outbox.commit()
        for number in (6, 7, 8):
            disk.pwrite(outbox.ring._fd, b"\xff\xff", outbox.ring._position(number) + 60)
        cursor = SendCursor(outbox, self.clock)
        cursor.begin(0, {})
        pieces = list(iter(cursor.next, None))
        self.assertEqual([type(piece) for piece in pieces], [OutgoingBatch, OutgoingGap, OutgoingBatch])
        for acknowledged, waits in ((0, 9), (3, 6), (5, 4), (8, 4), (10, 2), (12, 0)):
            cursor.record_ack("e" * 16, acknowledged)
            self.assertEqual(cursor.waiting(), waits)


if __name__ == "__main__":
    unittest.main()
