"""How full the disk is and gets, measured on files of our own."""

import os
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.server import disk_usage
from pigeonpost.server.disk_usage import DiskUsageMonitor
from tests.support import temp_folder


class DiskUseTest(unittest.TestCase):
    def setUp(self):
        self.folder, self.process = temp_folder(self), temp_folder(self)
        self.clock = FakeClock()
        self.count_writes(1000)

    def count_writes(self, count):
        with open(os.path.join(self.process, "io"), "w", encoding="ascii") as file:
            file.write(f"rchar: 5\nwchar: 6\nread_bytes: 7\nwrite_bytes: {count}\ncancelled_write_bytes: 9\n")

    def put(self, name, count):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x" * count)
            file.flush()
            os.fsync(file.fileno())  # so that the file system has given it its blocks

    def test_what_is_stored_and_what_is_free(self):
        self.put("a", 100_000)
        self.put("logs/b", 200_000)
        use = DiskUsageMonitor(self.folder, self.clock, self.process).use()
        self.assertTrue(300_000 <= use.stored < 330_000, use)
        self.assertGreater(use.free, 0)
        self.assertEqual((use.grows, use.written, use.days), (None, None, None))

    def test_how_fast_it_fills_and_is_written_to(self):
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.clock.sleep(1200)
        self.put("a", 1_000_000)
        self.count_writes(3001)
        use = disk.use()
        self.assertAlmostEqual(use.grows / 1e6, 72, delta=1)
        self.assertAlmostEqual(use.written, 2001 * 72)
        self.assertAlmostEqual(use.days, use.free / use.grows)

    def test_one_that_gets_smaller_has_no_end(self):
        self.put("a", 1_000_000)
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.put("a", 10)
        self.clock.sleep(1200)
        self.assertEqual((disk.use().grows, disk.use().days), (None, None))

    def test_the_last_day_counts(self):
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.put("a", 1_000_000)
        for _ in range(300):
            self.clock.sleep(600)
            disk.use()
        self.assertIsNone(disk.use().grows)

    def test_it_is_measured_once_a_minute(self):
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        with mock.patch.object(disk_usage, "_size", wraps=disk_usage._size) as size:
            for _ in range(5):
                disk.use()
            self.assertEqual(size.call_count, 1)
            self.clock.sleep(61)
            disk.use()
            self.assertEqual(size.call_count, 2)

    def test_a_kernel_that_does_not_count(self):
        for prepare in (lambda: os.unlink(os.path.join(self.process, "io")), lambda: self.count_writes("x")):
            disk = DiskUsageMonitor(self.folder, self.clock, self.process)
            prepare()
            self.clock.sleep(1200)
            self.assertIsNone(disk.use().written)
            self.assertIsNone(DiskUsageMonitor(self.folder, self.clock, self.process).use().written)
            self.count_writes(1)

    def test_this_machine(self):
        use = DiskUsageMonitor(self.folder, self.clock).use()
        self.assertGreater(use.free, 0)


if __name__ == "__main__":
    unittest.main()
