"""Ids of readings: they survive a crash and a torn line; the oldest are forgotten; errors of the disk are reported."""

import os
import unittest
from unittest import mock

from pigeonpost.core.errors import DiskError
from pigeonpost.server import reading_ids
from pigeonpost.server.reading_ids import ReadingIds
from tests.page_support import use_memory_disk
from tests.support import temp_folder


def setUpModule():
    use_memory_disk()


class Ids(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(temp_folder(self), "ids")
        self.ids = ReadingIds(self.path)

    def test_ids_are_known_after_a_restart(self):
        self.assertIsNone(self.ids.time_of("a"))
        self.ids.add([("a", 1), ("b", -2)])
        self.ids.add([("a", 3), ("c", 4)])
        for ids in (self.ids, ReadingIds(self.path)):
            self.assertEqual([ids.time_of(name) for name in "abcd"], [1, -2, 4, None])

    def test_torn_line_is_skipped(self):
        self.ids.add([("a", 1)])
        self.ids.add([("b", 2)])
        with open(self.path, "r+b") as file:
            file.truncate(os.path.getsize(self.path) - 3)
        ids = ReadingIds(self.path)
        self.assertEqual([ids.time_of(name) for name in "ab"], [1, None])
        ids.add([("c", 3)])
        self.assertEqual([ReadingIds(self.path).time_of(name) for name in "abc"], [1, None, 3])

    def test_oldest_ids_are_forgotten_and_the_file_stays_small(self):
        with mock.patch.object(reading_ids, "MOST_IDS", 10):
            self.ids = ReadingIds(self.path)
            for number in range(100):
                self.ids.add([(str(number), number)])
                self.assertLessEqual(os.path.getsize(self.path), 20 * 40)
            for ids in (self.ids, ReadingIds(self.path)):
                self.assertEqual([ids.time_of(str(number)) for number in (0, 89, 90, 99)], [None, None, 90, 99])
            self.ids.add([(f"x{number}", number) for number in range(25)])
            self.assertEqual([ReadingIds(self.path).time_of(name) for name in ("99", "x14", "x15")], [None, None, 15])

    def test_ids_that_cannot_be_written_are_not_remembered(self):
        self.ids.add([("a", 1)])
        with mock.patch.object(os, "fdatasync", side_effect=OSError(28, "No space")), self.assertRaises(DiskError):
            self.ids.add([("b", 2)])
        self.assertIsNone(self.ids.time_of("b"))
        self.ids.add([("b", 3)])
        for ids in (self.ids, ReadingIds(self.path)):
            self.assertEqual([ids.time_of(name) for name in "ab"], [1, 3])

    def test_unreadable_file_is_an_error(self):
        os.mkdir(self.path)
        with self.assertRaises(DiskError):
            self.ids.time_of("a")


if __name__ == "__main__":
    unittest.main()
