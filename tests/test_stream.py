"""The pieces of a stream, without any session: what comes next, from where on, and how far ahead."""

import json
import unittest
from unittest import mock

from base.clock import FakeClock
from outbox import Outbox
from protocol import BATCH_SAMPLES, WINDOW_SAMPLES
from ring import Ring
from stream import FIRST_SAMPLES, Lost, Samples, Stream
from tests.support import MemoryDisk, taken


class StreamCase(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.disk = MemoryDisk()
        self.epochs = iter([f"{n:016x}" for n in range(1, 100)])
        self.start()

    def start(self, slots=8192):
        """The node starts: a new epoch."""
        self.outbox = Outbox(Ring("/data", slots, 128, self.disk), "0b" * 8, new_epoch=lambda: next(self.epochs))

    def take(self, count):
        for _ in range(count):
            self.outbox.put(taken())
        while self.outbox.commit():
            pass

    def stream(self, number=0, have=None, **more):
        stream = Stream(self.outbox, self.clock, **more)
        stream.begin(number, have or {})
        return stream

    def all(self, stream):
        return list(iter(stream.next, None))

    def assert_pieces(self, stream, *expected):
        """(epoch, first, last, number of the first) of samples; and what is lost, as it is."""
        found = [
            (int(piece.epoch, 16), piece.first, piece.first + len(piece.texts) - 1, piece.number)
            if isinstance(piece, Samples)
            else piece
            for piece in self.all(stream)
        ]
        self.assertEqual(found, list(expected))


class Pieces(StreamCase):
    def test_nothing(self):
        self.assert_pieces(self.stream())

    def test_they_begin_short_and_get_longer(self):
        self.take(3000)
        lengths = [len(piece.texts) for piece in self.all(self.stream())]
        self.assertEqual(lengths[:6], [FIRST_SAMPLES, 32, 64, 128, 256, BATCH_SAMPLES])
        self.assertEqual(sum(lengths), 3000)

    def test_samples_are_json_in_order(self):
        self.take(20)
        texts = [text for piece in self.all(self.stream()) for text in piece.texts]
        self.assertEqual([json.loads(text)["seq"] for text in texts], list(range(1, 21)))

    def test_epoch_by_epoch_with_running_numbers(self):
        self.take(5)
        self.start()
        self.take(3)
        self.assert_pieces(self.stream(), (1, 1, 5, 1), (2, 1, 3, 6))
        self.assert_pieces(self.stream(2, {f"{1:016x}": 2}), (1, 3, 5, 3), (2, 1, 3, 6))
        self.assert_pieces(self.stream(5, {f"{1:016x}": 5}), (2, 1, 3, 6))

    def test_a_piece_is_never_longer_than_its_room(self):
        self.take(100)
        text = len(self.stream().next().texts[0].encode()) + 1
        pieces = self.all(self.stream(room_bytes=text * 10))
        self.assertTrue(all(sum(len(one.encode()) + 1 for one in piece.texts) <= text * 10 for piece in pieces))
        self.assertEqual(sum(len(piece.texts) for piece in pieces), 100)

    def test_only_what_comes_from_now_on(self):
        self.take(5)
        stream = Stream(self.outbox, self.clock)
        stream.begin_now(self.outbox.ring.runs)
        self.take(2)
        self.assert_pieces(stream, (1, 6, 7, 6))


class Losses(StreamCase):
    def test_what_was_overwritten(self):
        self.disk = MemoryDisk()
        self.start(slots=64)
        self.take(70)
        epoch = self.outbox.epoch
        lost = Lost(epoch, 1, 6, 1, 0, "overwritten")
        self.assertEqual(self.stream().next(), lost)
        stream = self.stream(3, {epoch: 3})
        self.assertEqual(stream.next(), lost._replace(first=4, number=4))
        self.assertEqual(stream.next().first, 7)

    def test_whole_epochs_of_it_are_counted(self):
        self.disk = MemoryDisk()
        self.start(slots=64)
        self.take(10)
        self.start(slots=64)
        self.take(64)
        self.assertEqual(self.stream().next(), Lost(self.outbox.epoch, 1, 0, 11, 10, "overwritten"))
        self.assertEqual(self.stream(4).next(), Lost(self.outbox.epoch, 1, 0, 11, 6, "overwritten"))
        self.assertIsInstance(self.stream(None).next(), Samples)

    def test_overwritten_while_it_is_read(self):
        """Nobody would wake a sender that was told that there is nothing to send."""
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
        self.assertEqual(stream.next(), Lost(self.outbox.epoch, 1, 32, 1, 0, "overwritten"))


class Window(StreamCase):
    def test_no_more_than_the_window_ahead_of_what_is_acknowledged(self):
        self.take(WINDOW_SAMPLES + 100)
        stream = self.stream()
        self.assertEqual(sum(len(piece.texts) for piece in self.all(stream)), WINDOW_SAMPLES)
        stream.note_ack(self.outbox.epoch, 40)
        self.assert_pieces(stream, (1, WINDOW_SAMPLES + 1, WINDOW_SAMPLES + 40, WINDOW_SAMPLES + 1))
        self.assertEqual(stream.due(), 60)

    def test_beginning_anew_forgets_what_was_under_way(self):
        self.take(WINDOW_SAMPLES)
        stream = self.stream()
        self.all(stream)
        stream.begin(10, {self.outbox.epoch: 10})
        again = self.all(stream)
        self.assertEqual((again[0].first, len(again[0].texts)), (11, FIRST_SAMPLES))
        self.assertEqual(sum(len(piece.texts) for piece in again), WINDOW_SAMPLES - 10)


if __name__ == "__main__":
    unittest.main()
