"""The CSV log: its rows, and that it is whole again after whatever happened to it."""

import csv
import errno
import os
import random
import shutil
import tempfile
import time
import unittest
from unittest import mock

import csvbuffer
from base.clock import FakeClock
from base.errors import NotStored
from csvbuffer import HEADER, CsvLog, local_time
from files.log_sums import logs_in
from protocol import Gap, Sample
from stores import LogMark
from stores.sqlite import SqliteStore
from tests.test_stores import E1, batch, file, gap


class LogCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.clock = FakeClock()
        self.open()

    def open(self):
        """Start as the server does: the store, then the log."""
        self.store = SqliteStore(self.folder)
        self.addCleanup(self.store.close)
        self.log = CsvLog(self.folder, self.store, self.clock)
        self.addCleanup(self.log.close)
        self.log.start()

    def crash(self):
        """What a kill leaves: nothing is flushed, synced or recorded any more."""
        self.log._sums.stop()
        self.log._close_file()
        self.store.close()
        self.clock.sleep(60)

    def commit(self, *batches):
        """What the intake does: record what is due, store, hand to the log, flush."""
        filings = {}
        from stores import NOTHING, Filing

        with self.store.writing({(b.node, b.epoch): None for b in batches}) as marks:
            for b in batches:
                key = b.node, b.epoch
                filing = filings.setdefault(key, Filing(b.node, b.outbox, b.epoch, marks.get(key, NOTHING)))
                filing.units = b.units
                filing.add(b, 0)
            filed = self.store.put(list(filings.values()), self.clock.wall_ms(), self.log.due())
        for filing in filings.values():
            self.log.add(filing, self.clock.wall_ms())
        self.log.flush(filed)

    def names(self):
        return sorted(logs_in(os.path.join(self.folder, "logs")), key=lambda name: (len(name), name))

    def path(self, name=None):
        return os.path.join(self.folder, "logs", name or self.log.name)

    def rows(self, name=None):
        with open(self.path(name), newline="", encoding="utf-8") as log:
            header, *rows = csv.reader(log)
        self.assertEqual(",".join(header) + "\n", HEADER)
        return rows

    def all_lights(self, node="a"):
        """Which samples stand in all logs together, told by their light, which is their seq."""
        rows = [row for name in self.names() for row in self.rows(name)]
        return [int(row[3]) for row in rows if row[1] == node and row[2] == "light"]


class Rows(LogCase):
    def test_a_row_a_value(self):
        self.commit(batch(1, 2))
        when = local_time(1_795_000_001_000)
        self.assertEqual(self.rows()[:2], [[when, "a", "temperature", "20.5", "°C"], [when, "a", "light", "1", ""]])
        with open(self.path(), "rb") as log:
            content = log.read()
        self.assertNotIn(b"\r", content)
        self.assertTrue(content.endswith(b"\n"))

    def test_a_failed_reading_has_an_empty_value(self):
        self.commit(batch(1, 1, temperature=None, errors={"temperature": "no response"}))
        self.assertEqual(self.rows()[0][2:], ["temperature", "", "°C"])

    def test_a_gap_is_a_row_that_says_what_is_missing(self):
        self.commit(batch(1, 2), gap(3, 9, before=4))
        row = self.rows()[-1]
        self.assertEqual(row[1:4], ["a", "gap", "11"])
        self.assertEqual(row[4], f"samples 3 to 9 of epoch {E1} and 4 of earlier epochs: overwritten")

    def test_no_cell_is_a_formula_and_every_text_is_quoted_right(self):
        units = {"temperature": '=cmd|"x",%s', "light": "%"}
        self.commit(batch(1, 1, units=units))
        self.assertEqual([row[4] for row in self.rows()], ['\'=cmd|"x",%s', "%"])
        for start in "+-@\t":
            self.assertEqual(csvbuffer.cell(start + "1"), "'" + start + "1")

    def test_local_time_has_the_offset_of_its_own_moment(self):
        self.addCleanup(time.tzset)
        with mock.patch.dict(os.environ, {"TZ": "Europe/Berlin"}):
            time.tzset()
            csvbuffer._minutes.clear()
            self.assertEqual(local_time(1_774_745_999_123), "2026-03-29T01:59:59.123+01:00")
            self.assertEqual(local_time(1_774_746_000_000), "2026-03-29T03:00:00.000+02:00")
            self.assertEqual(local_time(1_792_888_200_000), "2026-10-25T02:30:00.000+02:00")
            self.assertEqual(local_time(1_792_891_800_000), "2026-10-25T02:30:00.000+01:00")
        with mock.patch.dict(os.environ, {"TZ": "America/St_Johns"}):
            time.tzset()
            csvbuffer._minutes.clear()
            self.assertEqual(local_time(1_795_188_970_123), "2026-11-20T12:06:10.123-03:30")
        csvbuffer._minutes.clear()
        with mock.patch.dict(os.environ, {"TZ": "XXX+00:44:30"}):  # as Monrovia had until 1972
            time.tzset()
            self.assertEqual(local_time(1_795_188_970_123), "2026-11-20T15:36:10.123+00:00")
        csvbuffer._minutes.clear()

    def test_the_cache_of_minutes_is_bounded(self):
        for minute in range(10_000):
            local_time(minute * 60_000)
        self.assertLessEqual(len(csvbuffer._minutes), 4096)


class Files(LogCase):
    def test_one_a_run_named_by_the_minute(self):
        stem = time.strftime("sensorlog_%d%m%y_%H%M", time.localtime(self.clock.wall_ms() / 1000))
        self.assertEqual(self.names(), [f"{stem}.csv"])
        self.log.close()
        self.store.close()
        self.open()
        self.assertEqual(self.names(), [f"{stem}.csv", f"{stem}_2.csv"])

    def test_an_old_file_is_never_touched(self):
        self.log.close()
        self.store.close()
        with open(self.path(), "w") as log:
            log.write("mine")
        os.unlink(os.path.join(self.folder, "pigeonpost.sqlite3"))  # a deleted database never truncates a log
        name = self.log.name
        self.open()
        with open(self.path(name)) as log:
            self.assertEqual(log.read(), "mine")

    def test_the_last_ten(self):
        self.commit(batch(1, 7))
        self.commit(batch(8, 13), batch(1, 1, node="b"), gap(14, 20))
        self.assertEqual(
            [(s.node, s.sample.seq) for s in self.log.last()], [("a", n) for n in range(5, 14)] + [("b", 1)]
        )

    def test_it_is_synced_and_recorded_now_and_then(self):
        self.assertEqual(self.store.log_mark().size, len(HEADER))  # before it has any row
        self.commit(batch(1, 2))
        self.commit(batch(3, 4))
        self.assertEqual(self.store.log_mark().size, len(HEADER))
        self.assertEqual(len(list(self.store.logged_after(self.store.log_mark().filed))), 2)
        self.clock.sleep(61)
        self.commit(batch(5, 6))
        self.assertEqual(self.store.log_mark().size, len(HEADER) + 4 * len(self.text_of_one(1)))
        self.assertEqual(len(list(self.store.logged_after(self.store.log_mark().filed))), 1)
        self.log.record()
        self.assertEqual(list(self.store.logged_after(self.store.log_mark().filed)), [])

    def text_of_one(self, seq):
        when = local_time(1_795_000_000_000 + seq * 1000)
        return f"{when},a,temperature,20.5,°C\n{when},a,light,{seq},\n".encode()

    def test_readers_see_whole_rows_only(self):
        self.commit(batch(1, 50))
        path, size = self.log.whole()
        with open(path, "rb") as log:
            self.assertEqual(log.read(size)[-1:], b"\n")


class Crashes(LogCase):
    """After each, all logs together have each sample once, in order."""

    def check(self, last):
        self.assertEqual(self.all_lights(), list(range(1, last + 1)))

    def test_killed_before_the_rows_were_written(self):
        self.commit(batch(1, 5))
        file(self.store, batch(6, 9))  # stored, and then the power went
        self.crash()
        self.open()
        self.check(9)
        self.assertEqual(len(self.names()), 2)
        self.commit(batch(10, 12))
        self.check(12)

    def test_killed_at_every_byte_of_a_write(self):
        self.commit(batch(1, 3))
        size = self.log.size
        self.commit(batch(4, 5), gap(6, 6), batch(7, 8))
        name = self.log.name
        with open(self.path(), "rb") as log:
            whole = log.read()
        self.crash()
        crashed = self.folder
        for cut in range(size, len(whole) + 1):
            with tempfile.TemporaryDirectory() as self.folder:
                shutil.copytree(crashed, self.folder, dirs_exist_ok=True)
                with open(self.path(name), "wb") as log:
                    log.write(whole[:cut])
                self.open()
                with open(self.path(name), "rb") as log:
                    self.assertEqual(log.read(), whole, cut)
                self.log.close()
                self.store.close()

    def test_blocks_that_were_never_written_are_zero(self):
        self.commit(batch(1, 3))
        size = self.log.size
        self.commit(batch(4, 400))
        name = self.log.name
        with open(self.path(), "r+b") as log:
            whole = log.read()
            log.seek(size + 5)
            log.write(bytes(5000))
            log.seek(0, os.SEEK_END)
            log.write(bytes(3000))
        self.crash()
        self.open()
        with open(self.path(name), "rb") as log:
            self.assertEqual(log.read(), whole)

    def test_killed_again_and_again(self):
        chance = random.Random(3)
        last = 0
        for _ in range(60):
            for _ in range(chance.randint(0, 4)):
                first, last = last + 1, last + chance.randint(1, 9)
                self.commit(batch(first, last))
            if chance.random() < 0.5:
                first, last = last + 1, last + chance.randint(1, 9)
                file(self.store, batch(first, last))
            if chance.random() < 0.5 and self.log.size > 2000:
                recorded = self.store.log_mark()
                start = recorded.size if recorded and recorded.name == self.log.name else len(HEADER)
                if recorded and recorded.name == self.log.name:
                    os.truncate(self.path(), chance.randint(start, self.log.size))
            self.crash()
            self.open()
        self.check(last)

    def test_a_file_cut_by_hand_is_caught_and_nothing_is_lost(self):
        self.commit(batch(1, 5))
        self.clock.sleep(61)
        self.commit(batch(6, 9))  # records the first five
        name = self.log.name
        os.truncate(self.path(), 70)
        self.crash()
        with self.assertLogs("csvbuffer", "WARNING") as logged:
            self.open()
        self.assertIn("changed by hand", logged.output[0])
        self.assertEqual(os.path.getsize(self.path(name)), 70)
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["6", "7", "8", "9"])

    def test_a_file_added_to_by_hand_is_left_alone(self):
        self.commit(batch(1, 5))
        self.commit(batch(6, 9))
        name = self.log.name
        file(self.store, batch(10, 11))
        with open(self.path(), "a") as log:
            log.write("my own note\n")
        self.crash()
        with self.assertLogs("csvbuffer", "WARNING"):
            self.open()
        with open(self.path(name)) as log:
            self.assertTrue(log.read().endswith("my own note\n"))
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["10", "11"])

    def test_a_long_block_that_was_never_written(self):
        """A power cut may leave zeros where rows were to be; more of them than Python's reader takes for a cell."""
        self.commit(batch(1, 5))
        self.clock.sleep(61)
        self.commit(batch(6, 9))  # records the first five
        self.commit(batch(10, 3000))
        self.commit(batch(3001, 5999))
        with open(self.path(), "r+b") as log:
            log.seek(50_000)
            log.write(bytes(150_000))
        self.crash()
        self.open()
        self.assertTrue(self.all_lights() == [seq % 1024 for seq in range(1, 6000)])

    def test_a_removed_file(self):
        self.commit(batch(1, 5))
        self.clock.sleep(61)
        self.commit(batch(6, 9))
        os.unlink(self.path())
        self.crash()
        with self.assertLogs("csvbuffer", "WARNING"):
            self.open()
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["6", "7", "8", "9"])

    def test_another_time_zone_or_unit_is_no_other_row(self):
        self.addCleanup(time.tzset)
        self.commit(batch(1, 5))
        self.commit(batch(6, 9, units={"temperature": "°C", "light": "lux"}))
        self.commit(batch(10, 10, units={"temperature": "°C", "light": "lx"}))
        name = self.log.name
        self.crash()
        with mock.patch.dict(os.environ, {"TZ": "Asia/Tokyo"}):
            time.tzset()
            csvbuffer._minutes.clear()
            self.open()
            self.check(10)
            self.assertEqual(len(self.rows()), 0)
            self.assertEqual(len(self.rows(name)), 20)
        csvbuffer._minutes.clear()


class Faults(LogCase):
    def test_changed_while_it_is_written(self):
        self.commit(batch(1, 2))
        with open(self.path(), "a") as log:
            log.write("note\n")
        with self.assertLogs("csvbuffer", "WARNING"):
            self.commit(batch(3, 4))
        self.assertEqual(len(self.names()), 2)
        self.commit(batch(5, 5))
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["3", "4", "5"])
        self.crash()
        self.open()
        self.assertEqual(len(self.rows()), 0)

    def test_removed_while_it_is_written(self):
        self.commit(batch(1, 2))
        os.unlink(self.path())
        with self.assertLogs("csvbuffer", "WARNING"):
            self.commit(batch(3, 4))
        self.log.record()
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["3", "4"])

    def test_a_full_disk_leaves_no_torn_row_and_loses_none(self):
        self.commit(batch(1, 5))
        real, room = os.pwrite, [30]

        def pwrite(fd, data, at):
            if room[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = real(fd, bytes(data)[: room[0]], at)
            room[0] -= written
            return written

        with mock.patch("csvbuffer.os.pwrite", pwrite), self.assertLogs("csvbuffer", "ERROR") as logged:
            self.commit(batch(6, 9))
            self.commit(batch(10, 12))
        self.assertEqual(len(logged.output), 1)
        self.assertIn("No space left", self.log.fault)
        self.assertEqual(self.all_lights(), [1, 2, 3, 4, 5])
        self.commit(batch(13, 13))
        self.assertEqual(self.log.fault, "")
        self.assertEqual(self.all_lights(), list(range(1, 14)))

    def test_a_full_disk_at_the_start(self):
        self.commit(batch(1, 5))
        file(self.store, batch(6, 7))
        self.crash()
        real = os.open

        def full(path, flags, mode=0o777):
            if flags & os.O_CREAT:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, flags, mode)

        with mock.patch("csvbuffer.os.open", full):
            self.open()
        self.assertIn("No space", self.log.fault)
        self.commit(batch(8, 9))
        self.assertEqual(self.log.fault, "")
        self.log.record()
        self.assertEqual(self.all_lights(), list(range(1, 10)))

    def test_a_transaction_that_fails_records_nothing(self):
        """A file that the store does not know gets no rows: after a crash they would be written a second time."""
        self.commit(batch(1, 3))
        with open(self.path(), "a") as log:
            log.write("by,hand,not,by,us\n")
        self.commit(batch(4, 5))  # begins a new file, which is empty until it is recorded
        with self.assertRaises(NotStored), mock.patch.object(self.store, "put", side_effect=NotStored("full")):
            self.commit(batch(6, 7))
        self.commit(batch(6, 7))
        self.crash()
        self.open()
        self.commit(batch(8, 8))
        self.commit(batch(9, 9))
        self.assertEqual(sorted(self.all_lights()), [*range(1, 10)])

    def test_a_commit_of_which_the_answer_was_lost_is_in_the_log(self):
        """As when the connection to a database breaks: the samples come again, as repeats, and nobody hands them on."""
        self.commit(batch(1, 3))
        file(self.store, batch(4, 6))
        with self.store.writing(()):
            filed = self.store.put((), 0, self.log.due())
        self.log.flush(filed)
        self.assertEqual(self.all_lights(), [*range(1, 7)])
        self.commit(batch(7, 8))
        self.assertEqual(self.all_lights(), [*range(1, 9)])

    def test_a_sync_that_fails_records_nothing(self):
        self.commit(batch(1, 5))
        with mock.patch("csvbuffer.os.fsync", side_effect=OSError(errno.EIO, "I/O error")):
            self.assertIsNone(self.log.due(now=True))
        self.assertIsInstance(self.log.due(now=True), LogMark)


class Pieces(unittest.TestCase):
    def test_what_a_crash_leaves(self):
        is_left = csvbuffer.is_left_by_crash
        self.assertTrue(is_left(b"", b"abc"))
        self.assertTrue(is_left(b"ab", b"abc"))
        self.assertTrue(is_left(b"\0b\0\0\0", b"abc"))
        self.assertFalse(is_left(b"abx", b"abc"))
        self.assertFalse(is_left(b"abcd", b"abc"))

    def test_gap_without_more(self):
        row = csvbuffer.log_rows("n", E1, Gap(1, 0, 5, "x"), {}, 0)
        self.assertIn(",n,gap,5,", row)

    def test_sample_of_no_units(self):
        from stores import Stretch

        row = csvbuffer.log_rows("n", E1, Stretch([Sample(1, 0, 0, {"x": 1}, {}, "")]), {}, 0)
        self.assertTrue(row.endswith(",n,x,1,\n"))


if __name__ == "__main__":
    unittest.main()
