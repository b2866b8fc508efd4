"""Disk usage and its growth, measured with test files."""

import contextlib
import os
import sqlite3
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.data_folder import DATABASE
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
            os.fsync(file.fileno())  # so that the file system allocates its blocks

    def test_stored_and_free_bytes_are_measured(self):
        self.put("a", 100_000)
        self.put("logs/b", 200_000)
        use = DiskUsageMonitor(self.folder, self.clock, self.process).use()
        self.assertTrue(300_000 <= use.stored < 330_000, use)
        self.assertGreater(use.free, 0)
        self.assertEqual((use.grows, use.written, use.days), (None, None, None))

    def test_growth_and_writes_per_day_are_calculated(self):
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.clock.sleep(7200)
        self.put("a", 1_000_000)
        self.count_writes(3001)
        use = disk.use()
        self.assertAlmostEqual(use.grows / 1e6, 12, delta=1)
        self.assertAlmostEqual(use.written, 2001 * 12)
        self.assertAlmostEqual(use.days, use.free / use.grows)

    def test_daily_values_are_unknown_in_the_first_hour(self):
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.put("a", 1_000_000)
        self.count_writes(3001)
        self.clock.sleep(3500)
        self.assertEqual((disk.use().grows, disk.use().days), (None, None))
        self.clock.sleep(200)
        self.assertNotIn(None, disk.use())

    def test_bytes_written_per_day_are_an_estimate_in_the_first_hour(self):
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.count_writes(1000 + 100_000)
        self.clock.sleep(59)
        self.assertIsNone(disk.use().written)
        for seconds, words in ((61, "about 68.7 MiB"), (3421, "about 2.3 MiB"), (120, "2.3 MiB")):
            with self.subTest(seconds=seconds):
                self.clock.sleep(seconds)
                self.assertEqual(disk_usage.written_words(disk.use()), words)

    def test_write_ahead_log_is_stored_data_but_not_growth(self):
        """SQLite's log grows to up to 16 MiB after each start and is then reused."""
        path = os.path.join(self.folder, DATABASE)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")  # only sizes matter here
            db.execute("PRAGMA wal_autocheckpoint = 0")
            db.execute("CREATE TABLE samples (body BLOB)")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            disk = DiskUsageMonitor(self.folder, self.clock, self.process)
            stored = disk.use().stored
            self.clock.sleep(24 * 3600)
            for _ in range(300):  # each row takes a little more than a page: the log contains the same pages repeatedly
                db.execute("INSERT INTO samples VALUES (zeroblob(3000))")
            use = disk.use()
            self.assertGreater(os.path.getsize(f"{path}-wal"), 2_400_000)
            self.assertGreater(use.stored - stored, 2_400_000)
            self.assertAlmostEqual(use.grows, 300 * 4096, delta=30_000)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.clock.sleep(61)
            self.assertAlmostEqual(disk.use().grows, 300 * 4096, delta=30_000)

    def test_damaged_database_is_measured_as_a_file(self):
        self.put(DATABASE, 500_000)
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.put(DATABASE, 1_000_000)
        self.clock.sleep(24 * 3600)
        self.assertAlmostEqual(disk.use().grows, 500_000, delta=10_000)

    def test_shrinking_folder_has_no_growth(self):
        self.put("a", 1_000_000)
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.put("a", 10)
        self.clock.sleep(7200)
        self.assertEqual((disk.use().grows, disk.use().days), (None, None))

    def test_growth_is_that_of_the_last_day(self):
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        self.put("a", 1_000_000)
        for _ in range(300):
            self.clock.sleep(600)
            disk.use()
        self.assertIsNone(disk.use().grows)

    def test_usage_is_measured_at_most_once_a_minute(self):
        disk = DiskUsageMonitor(self.folder, self.clock, self.process)
        with mock.patch.object(disk_usage, "_sizes", wraps=disk_usage._sizes) as size:
            for _ in range(5):
                disk.use()
            self.assertEqual(size.call_count, 1)
            self.clock.sleep(61)
            disk.use()
            self.assertEqual(size.call_count, 2)

    def test_writes_are_unknown_if_the_kernel_does_not_count_them(self):
        for prepare in (lambda: os.unlink(os.path.join(self.process, "io")), lambda: self.count_writes("x")):
            disk = DiskUsageMonitor(self.folder, self.clock, self.process)
            prepare()
            self.clock.sleep(7200)
            self.assertIsNone(disk.use().written)
            self.assertIsNone(DiskUsageMonitor(self.folder, self.clock, self.process).use().written)
            self.count_writes(1)

    def test_free_space_of_this_machine_is_measured(self):
        use = DiskUsageMonitor(self.folder, self.clock).use()
        self.assertGreater(use.free, 0)


if __name__ == "__main__":
    unittest.main()
