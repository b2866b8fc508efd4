"""Tests of the send cursor without a session: the next batch or gap, the starting position, and the window."""

import json
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock, parse_rfc3339
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.send_cursor import FIRST_SAMPLES, OutgoingBatch, OutgoingGap, SendCursor
from protocol import BATCH_SAMPLES, WINDOW_SAMPLES
from tests.support import MemoryDisk, taken


class CursorCase(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.disk = MemoryDisk()
        self.epochs = iter([f"{n:016x}" for n in range(1, 100)])
        self.start()

    def start(self, slots=8192):
        """Start the node again, which begins a new epoch."""
        self.outbox = Outbox(Ring("/data", slots, 128, self.disk), "0b" * 8, new_epoch=lambda: next(self.epochs))

    def take(self, count):
        for _ in range(count):
            self.outbox.put(taken())
        while self.outbox.commit():
            pass

    def stream(self, number=0, have=None, **more):
        stream = SendCursor(self.outbox, self.clock, **more)
        stream.begin(number, have or {})
        return stream

    def all(self, stream):
        return list(iter(stream.next, None))

    def assert_pieces(self, stream, *expected):
        """Return (epoch, first, last, running number of the first) for each batch; gaps are returned unchanged."""
        found = [
            (int(piece.epoch, 16), piece.first, piece.first + piece.sample_count - 1, piece.number)
            if isinstance(piece, OutgoingBatch)
            else piece
            for piece in self.all(stream)
        ]
        self.assertEqual(found, list(expected))


class Batches(CursorCase):
    def test_empty_outbox_has_nothing_to_send(self):
        self.assert_pieces(self.stream())

    def test_batches_begin_short_and_get_longer(self):
        self.take(3000)
        lengths = [piece.sample_count for piece in self.all(self.stream())]
        self.assertEqual(lengths[:6], [FIRST_SAMPLES, 32, 64, 128, 256, BATCH_SAMPLES])
        self.assertEqual(sum(lengths), 3000)

    def test_samples_are_sent_as_json_in_order(self):
        self.take(20)
        samples = [sample for piece in self.all(self.stream()) for sample in json.loads(piece.text)]
        self.assertEqual([sample["seq"] for sample in samples], list(range(1, 21)))

    def test_epochs_are_sent_in_order_with_running_numbers(self):
        self.take(5)
        self.start()
        self.take(3)
        self.assert_pieces(self.stream(), (1, 1, 5, 1), (2, 1, 3, 6))
        self.assert_pieces(self.stream(2, {f"{1:016x}": 2}), (1, 3, 5, 3), (2, 1, 3, 6))
        self.assert_pieces(self.stream(5, {f"{1:016x}": 5}), (2, 1, 3, 6))

    def test_batch_is_never_longer_than_its_limit(self):
        self.take(1)
        text = len(self.stream().next().text.encode()) + 1
        self.take(99)
        pieces = self.all(self.stream(room_bytes=text * 10))
        self.assertTrue(all(len(piece.text.encode()) <= text * 10 for piece in pieces))
        self.assertEqual(sum(piece.sample_count for piece in pieces), 100)

    def test_batch_is_as_long_as_its_limit_allows(self):
        self.take(FIRST_SAMPLES)
        whole = len(self.stream().next().text.encode())
        for room, count in ((whole - 50, 15), (whole - 1, 15), (whole + 1, 16)):
            piece = self.stream(room_bytes=room).next()
            self.assertEqual(piece.sample_count, count)
            self.assertLessEqual(len(piece.text.encode()), room)

    def test_batch_has_the_time_of_its_last_sample(self):
        for wall_ms in range(1_795_188_970_001, 1_795_188_970_018):
            self.outbox.put(taken(wall_ms=wall_ms))
        self.outbox.commit()
        pieces = self.all(self.stream())
        self.assertEqual([piece.last_ms for piece in pieces], [1_795_188_970_016, 1_795_188_970_017])

    def test_due_counts_samples_not_sent_yet(self):
        self.take(5)
        self.start()
        self.take(3)
        self.assertEqual(self.stream().due(), 8)
        self.assertEqual(self.stream(5, {f"{1:016x}": 5}).due(), 3)

    def test_due_does_not_count_overwritten_samples(self):
        self.disk = MemoryDisk()
        self.start(slots=64)
        epoch = self.outbox.epoch
        self.take(100)
        for have, due in ((0, 64), (20, 64), (36, 64), (50, 50), (90, 10), (100, 0)):
            stream = self.stream(have, {epoch: have} if have else {})
            self.assertEqual(stream.due(), due, have)
            sent = [piece.sample_count for piece in self.all(stream) if isinstance(piece, OutgoingBatch)]
            self.assertEqual((sum(sent), stream.due()), (due, 0), have)
        self.start(slots=64)
        self.take(30)
        self.assertEqual(self.stream().due(), 64)

    def test_begin_now_sends_only_new_samples(self):
        self.take(5)
        stream = SendCursor(self.outbox, self.clock)
        stream.begin_now(self.outbox.ring.runs)
        self.take(2)
        self.assert_pieces(stream, (1, 6, 7, 6))

    def test_begin_now_skips_earlier_epochs(self):
        self.take(5)
        self.start()
        self.take(3)
        stream = SendCursor(self.outbox, self.clock)
        stream.begin_now(self.outbox.ring.runs)
        self.take(2)
        self.assert_pieces(stream, (2, 4, 5, 9))


class Gaps(CursorCase):
    def test_overwritten_samples_are_sent_as_a_gap(self):
        self.disk = MemoryDisk()
        self.start(slots=64)
        self.take(70)
        epoch = self.outbox.epoch
        lost = OutgoingGap(epoch, 1, 6, 1, 0, "overwritten")
        self.assertEqual(self.stream().next(), lost)
        stream = self.stream(3, {epoch: 3})
        self.assertEqual(stream.next(), lost._replace(first=4, number=4))
        self.assertEqual(stream.next().first, 7)

    def test_overwritten_epochs_are_counted_in_the_gap(self):
        self.disk = MemoryDisk()
        self.start(slots=64)
        self.take(10)
        self.start(slots=64)
        self.take(64)
        self.assertEqual(self.stream().next(), OutgoingGap(self.outbox.epoch, 1, 0, 11, 10, "overwritten"))
        self.assertEqual(self.stream(4).next(), OutgoingGap(self.outbox.epoch, 1, 0, 11, 6, "overwritten"))
        self.assertIsInstance(self.stream(None).next(), OutgoingBatch)

    def test_samples_overwritten_during_the_read_are_sent_as_a_gap(self):
        """A sender that finds nothing to send would not be called again."""
        self.disk = MemoryDisk()
        self.start(slots=64)
        self.take(64)
        stream, read = self.stream(), self.outbox.read

        def late(number, count):
            with mock.patch.object(self.outbox, "read", read):
                self.take(32)
            self.outbox.read = read
            return [None] * count

        self.outbox.read = late
        self.assertEqual(stream.next(), OutgoingGap(self.outbox.epoch, 1, 32, 1, 0, "overwritten"))

    def test_damaged_samples_are_a_gap_and_the_others_are_sent(self):
        self.take(12)
        self.damage(1, 2, 6, 12)
        epoch = self.outbox.epoch
        self.assert_pieces(
            self.stream(),
            OutgoingGap(epoch, 1, 2, 1, 0, "damaged"),
            (1, 3, 5, 3),
            OutgoingGap(epoch, 6, 6, 6, 0, "damaged"),
            (1, 7, 11, 7),
            OutgoingGap(epoch, 12, 12, 12, 0, "damaged"),
        )

    def test_batch_of_only_damaged_samples_is_one_gap(self):
        self.take(FIRST_SAMPLES + 1)
        self.damage(*range(1, FIRST_SAMPLES + 1))
        lost = OutgoingGap(self.outbox.epoch, 1, FIRST_SAMPLES, 1, 0, "damaged")
        self.assert_pieces(self.stream(), lost, (1, FIRST_SAMPLES + 1, FIRST_SAMPLES + 1, FIRST_SAMPLES + 1))

    def test_newest_sample_damaged_before_a_restart_is_a_gap(self):
        self.take(3)
        self.damage(3)
        self.start()
        self.take(1)
        self.assert_pieces(self.stream(), (1, 1, 2, 1), OutgoingGap(f"{1:016x}", 3, 3, 3, 0, "damaged"), (2, 1, 1, 4))
        self.assert_pieces(self.stream(3, {f"{1:016x}": 3}), (2, 1, 1, 4))

    def test_damaged_epoch_with_damaged_marks_is_counted_in_the_gap(self):
        """The epochs of the samples are no longer known, but their number is."""
        self.disk = MemoryDisk()
        self.start(slots=64)
        self.take(2)
        self.start(slots=64)
        self.take(3)
        self.start(slots=64)
        self.take(60)
        self.damage(*range(2, 6), whole=True)
        epoch = self.outbox.epoch
        self.start(slots=64)
        self.assertEqual(self.outbox.ring.runs[0].number, 6)
        self.assertEqual(self.stream().next(), OutgoingGap(epoch, 1, 0, 6, 5, "overwritten or damaged"))
        self.assertEqual(self.stream(2).next(), OutgoingGap(epoch, 1, 0, 6, 3, "damaged"))
        self.assertEqual(self.stream(1).next(), OutgoingGap(epoch, 1, 0, 6, 4, "damaged"))  # 2 is the oldest held

    def test_damaged_beginning_of_an_epoch_with_damaged_marks_is_a_gap(self):
        self.disk = MemoryDisk()
        self.start(slots=64)
        self.take(64)
        epoch = self.outbox.epoch
        self.damage(*range(1, 6), whole=True)
        self.start(slots=64)
        self.assertEqual(self.outbox.ring.runs[0].number, 6)
        self.assertEqual(self.stream(2, {epoch: 2}).next(), OutgoingGap(epoch, 3, 5, 3, 0, "damaged"))

    def test_samples_sent_before_they_were_overwritten_are_not_a_gap(self):
        for sent in (1, FIRST_SAMPLES):
            self.disk = MemoryDisk()
            self.start(slots=64)
            self.take(40)
            stream = self.stream()
            stream.window = sent
            stream.record_ack(self.outbox.epoch, stream.next().last)
            self.outbox.fork(self.outbox.epoch, 41)  # another session has found a copy of the outbox
            self.take(64)
            self.assertEqual(stream.next(), OutgoingGap(self.outbox.epoch, 1, 0, 41, 40 - sent, "overwritten"))

    def damage(self, *numbers, whole=False):
        """Change one byte of each sample on the disk or, if `whole` is true, all of its bytes and of its mark."""
        ring = self.outbox.ring
        for number in numbers if whole else ():
            self.disk.pwrite(ring._fd, b"\xff" * (128 + 28), ring._position(number) - 28)
        for number in numbers:
            at = ring._position(number) + 60
            (byte,) = self.disk.pread(ring._fd, 1, at)
            self.disk.pwrite(ring._fd, bytes([byte ^ 1]), at)


class Window(CursorCase):
    def test_window_limits_the_samples_sent_ahead_of_the_acknowledgement(self):
        self.take(WINDOW_SAMPLES + 100)
        stream = self.stream()
        self.assertEqual(sum(piece.sample_count for piece in self.all(stream)), WINDOW_SAMPLES)
        stream.record_ack(self.outbox.epoch, 40)
        self.assert_pieces(stream, (1, WINDOW_SAMPLES + 1, WINDOW_SAMPLES + 40, WINDOW_SAMPLES + 1))
        self.assertEqual(stream.due(), 60)

    def test_begin_discards_unacknowledged_samples(self):
        self.take(WINDOW_SAMPLES)
        stream = self.stream()
        self.all(stream)
        stream.begin(10, {self.outbox.epoch: 10})
        again = self.all(stream)
        self.assertEqual((again[0].first, again[0].sample_count), (11, FIRST_SAMPLES))
        self.assertEqual(sum(piece.sample_count for piece in again), WINDOW_SAMPLES - 10)

    def test_acknowledgement_of_one_epoch_keeps_the_others_in_the_window(self):
        self.take(3000)
        self.start()
        self.take(5000)
        stream = self.stream()
        self.all(stream)
        first, second = (run.epoch for run in self.outbox.ring.runs)
        stream.record_ack(second, 2000)
        self.assertEqual(sum(piece.sample_count for piece in self.all(stream)), 2000)
        stream.record_ack(first, 3000)
        self.assert_pieces(stream, (2, 4001, 4500, 7001), (2, 4501, 5000, 7501))
        self.assertEqual(stream.due(), 0)

    def test_window_of_one_sample_waits_for_each_acknowledgement(self):
        self.take(17)
        stream = self.stream()
        stream.window = 17
        self.assertEqual(self.all(stream)[-1].sample_count, 1)
        stream.record_ack(self.outbox.epoch, 16)
        self.take(20)
        self.assertEqual((stream.waiting(), self.all(stream)[-1].last), (21, 33))
        self.assertEqual((stream.waiting(), stream.due()), (21, 4))

    def test_acknowledgement_affects_only_its_own_of_many_epochs(self):
        for _ in range(20):
            self.take(3)
            self.start()
        stream = self.stream()
        stream.window = 60
        epochs = [piece.epoch for piece in self.all(stream)]
        self.assertEqual((len(epochs), stream.waiting()), (20, 60))
        for k, epoch in enumerate(reversed(epochs)):
            stream.record_ack(epoch, 1)
            stream.record_ack(epoch, 1)
            self.assertEqual(stream.waiting(), 59 - 3 * k)
            stream.record_ack(epoch, 3)
            stream.record_ack(epoch, 2)  # an older acknowledgement that arrives late
            self.assertEqual(stream.waiting(), 57 - 3 * k)

    def test_consecutive_single_samples_are_one_entry(self):
        stream = self.stream()
        for _ in range(100):
            self.take(1)
            stream.next()
        self.assertEqual(stream._unacked, {self.outbox.epoch: [(100, 100)]})


class Columns(CursorCase):
    """Batches for a receiver that accepts columns."""

    def stream(self, *args, **more):
        stream = super().stream(*args, **more)
        stream.takes_columns = True
        return stream

    def seqs(self, piece):
        """Return the samples of a batch, which is an object of columns if it contains several samples."""
        told = json.loads(piece.text)
        if isinstance(told, list):
            return [sample["seq"] for sample in told]
        return list(range(told["seq"], told["seq"] + len(told["time"])))

    def test_batches_begin_short_and_get_longer(self):
        self.take(6000)
        stream = self.stream()
        stream.window = 10_000
        pieces = self.all(stream)
        self.assertEqual([piece.sample_count for piece in pieces][:9], [16, 32, 64, 128, 256, 512, 1024, 2048, 1920])
        for piece in pieces:
            self.assertEqual(self.seqs(piece), list(range(piece.first, piece.last + 1)))
        self.assertEqual(pieces[-1].last_ms, self.outbox.read(6000, 1)[0].wall_ms)

    def test_window_limits_the_samples_in_columns(self):
        self.take(6000)
        for window in (1, 2, 17, 240, 5000):
            stream = self.stream()
            stream.window = window
            pieces = self.all(stream)
            self.assertEqual(sum(len(self.seqs(piece)) for piece in pieces), window)

    def test_two_samples_are_columns_and_one_is_an_array(self):
        self.take(3)
        stream = self.stream()
        stream.window = 2
        self.assertEqual(json.loads(stream.next().text)["seq"], 1)
        stream.record_ack(self.outbox.epoch, 2)
        self.assertEqual(json.loads(stream.next().text)[0]["seq"], 3)

    def test_damaged_sample_ends_a_batch(self):
        self.take(300)
        for number in (5, 6, 200, 300):
            ring = self.outbox.ring
            self.disk.pwrite(ring._fd, b"\xff" * 20, ring._position(number) + 40)
        pieces = self.all(self.stream())
        gaps = [(piece.first, piece.last) for piece in pieces if isinstance(piece, OutgoingGap)]
        self.assertEqual(gaps, [(5, 6), (200, 200), (300, 300)])
        seqs = [seq for piece in pieces if isinstance(piece, OutgoingBatch) for seq in self.seqs(piece)]
        self.assertEqual(seqs, [seq for seq in range(1, 300) if seq not in (5, 6, 200)])

    def test_batches_stay_short_if_channels_change_often(self):
        for number in range(400):
            self.outbox.put(taken(values={"a": 1} if number % 100 else {"a": 1, "b": 2}))
        while self.outbox.commit():
            pass
        pieces = self.all(self.stream())
        self.assertEqual([seq for piece in pieces for seq in self.seqs(piece)], list(range(1, 401)))
        lasts = [1, 17, 49, 100, 101, 117, 149, 200, 201, 217, 249, 300, 301, 317, 349, 400]
        self.assertEqual([piece.last for piece in pieces], lasts)


class CopiedOutbox(CursorCase):
    """A receiver that has a different sample with the same number received it from a copy of the outbox."""

    def setUp(self):
        super().setUp()
        for up_ms in range(1, 11):
            self.outbox.put(taken(up_ms=up_ms))
        self.outbox.commit()
        self.epoch = self.outbox.epoch

    def fork(self, seq, up_ms, epoch=None):
        return SendCursor(self.outbox, self.clock).fork_if_other(epoch or self.epoch, seq, up_ms)

    def test_same_sample_needs_no_new_epoch(self):
        self.assertEqual(self.fork(7, 7), "")
        self.assertEqual(self.outbox.held(), [[self.epoch, 1, 10, 1]])

    def test_different_sample_starts_a_new_epoch_at_that_number(self):
        new = self.fork(7, 700)
        self.assertEqual(self.outbox.held(), [[self.epoch, 1, 6, 1], [new, 1, 4, 7]])
        self.assertEqual(self.outbox.epoch, new)

    def test_sample_without_an_uptime_counts_as_the_same(self):
        for up_ms in (None, "7", -1, 7.5, True):
            self.assertEqual(self.fork(7, up_ms), "")

    def test_receiver_that_is_ahead_starts_a_new_epoch(self):
        new = self.fork(11, 11)
        self.assertEqual(self.outbox.held(), [[self.epoch, 1, 10, 1], [new, 1, 0, 11]])

    def test_any_sequence_number_is_ahead_before_the_first_sample(self):
        self.start()
        fresh = self.outbox.epoch
        self.assertEqual(self.fork(0, None, fresh), "")
        new = self.fork(1, 1, fresh)
        self.assertEqual(self.outbox.held()[-1], [new, 1, 0, 11])

    def test_epochs_that_are_not_in_the_outbox_are_not_forked(self):
        before = self.outbox.held()
        self.assertEqual(self.fork(3, 300, "f" * 16), "")
        self.assertEqual(self.outbox.held(), before)

    def test_earlier_epoch_is_also_compared(self):
        self.start()
        self.take(2)
        self.assertEqual(self.fork(20, 20), "")  # only in the current epoch can the receiver be ahead
        new = self.fork(10, 11)
        self.assertEqual(self.outbox.held(), [[self.epoch, 1, 9, 1], [new, 1, 1, 10], [self.outbox.epoch, 1, 2, 11]])


class SampleTimes(CursorCase):
    """Time and clock flag of a sample, as they are known when it is sent."""

    def sent(self, clock_set, boot=None, offset_ms=None):
        """Return (time in ms before now, clock flag) of a sample taken 5 s ago, whose date is one hour slow."""
        self.outbox._boot_id = boot or self.clock.boot_id
        wall_ms, up_ms = self.clock.wall_ms() - 3_600_000 - 5000, self.clock.up_ms() - 5000
        self.outbox.put(taken(wall_ms=wall_ms, up_ms=up_ms, clock_set=clock_set))
        self.outbox.commit()
        stream = SendCursor(self.outbox, self.clock)
        stream.offset_ms = offset_ms
        stream.begin(0, {})
        sample = json.loads(stream.next().text)[-1]
        return self.clock.wall_ms() - parse_rfc3339(sample["time"]), sample.get("clock", "")

    def test_time_of_a_set_clock_is_used(self):
        self.assertEqual(self.sent(clock_set=True), (3_605_000, ""))

    def test_clock_set_later_corrects_samples_of_this_boot(self):
        self.assertEqual(self.sent(clock_set=False), (5000, ""))

    def test_samples_of_an_earlier_boot_keep_their_time_and_are_flagged(self):
        self.assertEqual(self.sent(clock_set=False, boot="0b" * 8), (3_605_000, "unset"))

    def test_date_of_the_receiver_is_used_and_flagged_without_a_clock(self):
        self.clock.known = False
        offset_ms = self.clock.wall_ms() + 60_000 - self.clock.up_ms()  # it is a minute ahead
        self.assertEqual(self.sent(clock_set=False, offset_ms=offset_ms), (-55_000, "server"))

    def test_time_is_flagged_without_any_clock(self):
        self.clock.known = False
        self.assertEqual(self.sent(clock_set=False), (3_605_000, "unset"))


if __name__ == "__main__":
    unittest.main()
