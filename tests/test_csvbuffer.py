"""Tests of the CSV log: its rows, and its repair after crashes, failed writes and changes by other programs."""

import contextlib
import csv
import errno
import logging
import os
import random
import shutil
import sqlite3
import tempfile
import time
import unittest
from unittest import mock

import csvbuffer
from csvbuffer import CsvLog
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import DiskError, NotStored, StoreDamaged
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.csv import format
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.storage.csv.format import HEADER, local_time
from pigeonpost.storage.models import NOTHING, EpochCommit, LogMark
from pigeonpost.storage.sqlite import queries
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Gap, Sample
from tests.page_support import use_memory_disk
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import E1, batch, file, gap
from tests.support import LONG, long, rounds


def setUpModule():
    use_memory_disk()


class LogCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.clock = FakeClock()
        self.open()

    def open_store(self):
        """Return the store as it was left in `self.folder`."""
        return SqliteStore(self.folder)

    def open(self):
        """Start as the server does: first the store, then the log."""
        self.store = self.open_store()
        self.addCleanup(self.store.close)
        self.log = CsvLog(self.folder, self.store, self.clock)
        self.addCleanup(self.log.close)
        self.log.start()

    def crash(self):
        """Simulate a kill: nothing more is flushed, synced or recorded."""
        self.log._sums.stop()
        self.log._close_file()
        self.store.close()
        self.clock.sleep(60)

    def commit(self, *batches):
        """Commit as the Ingestor does: record the due mark, store the batches, add them to the log, flush."""
        epoch_commits = {}
        with self.store.writing({(b.node, b.epoch): None for b in batches}) as marks:
            for b in batches:
                key = b.node, b.epoch
                epoch_commit = epoch_commits.setdefault(
                    key, EpochCommit(b.node, b.outbox, b.epoch, marks.get(key, NOTHING))
                )
                epoch_commit.units = b.units
                epoch_commit.add(b, 0)
            filed = self.store.put(list(epoch_commits.values()), self.clock.wall_ms(), self.log.due())
        for epoch_commit in epoch_commits.values():
            self.log.add(epoch_commit, self.clock.wall_ms())
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
        """Return the samples in all logs together, identified by their light, which is their seq."""
        rows = [row for name in self.names() for row in self.rows(name)]
        return [int(row[3]) for row in rows if row[1] == node and row[2] == "light"]


class Rows(LogCase):
    def test_each_value_has_one_row(self):
        self.commit(batch(1, 2))
        when = local_time(1_795_000_001_000)
        self.assertEqual(self.rows()[:2], [[when, "a", "temperature", "20.5", "°C"], [when, "a", "light", "1", ""]])
        with open(self.path(), "rb") as log:
            content = log.read()
        self.assertNotIn(b"\r", content)
        self.assertTrue(content.endswith(b"\n"))

    def test_failed_reading_has_an_empty_value(self):
        self.commit(batch(1, 1, temperature=None, errors={"temperature": "no response"}))
        self.assertEqual(self.rows()[0][2:], ["temperature", "", "°C"])

    def test_gap_has_a_row_that_describes_it(self):
        self.commit(batch(1, 2), gap(3, 9, before=4))
        row = self.rows()[-1]
        self.assertEqual(row[1:4], ["a", "gap", "11"])
        self.assertEqual(row[4], f"samples 3 to 9 of epoch {E1} and 4 of earlier epochs: overwritten")

    def test_cells_are_not_formulas_and_are_quoted(self):
        units = {"temperature": '=cmd|"x",%s', "light": "%"}
        self.commit(batch(1, 1, units=units))
        self.assertEqual([row[4] for row in self.rows()], ['\'=cmd|"x",%s', "%"])
        for start in "+-@\t":
            self.assertEqual(format.cell(start + "1"), "'" + start + "1")

    def test_local_time_has_the_offset_at_that_time(self):
        self.addCleanup(time.tzset)
        with mock.patch.dict(os.environ, {"TZ": "Europe/Berlin"}):
            time.tzset()
            format._minutes.clear()
            self.assertEqual(local_time(1_774_745_999_123), "2026-03-29T01:59:59.123+01:00")
            self.assertEqual(local_time(1_774_746_000_000), "2026-03-29T03:00:00.000+02:00")
            self.assertEqual(local_time(1_792_888_200_000), "2026-10-25T02:30:00.000+02:00")
            self.assertEqual(local_time(1_792_891_800_000), "2026-10-25T02:30:00.000+01:00")
        with mock.patch.dict(os.environ, {"TZ": "America/St_Johns"}):
            time.tzset()
            format._minutes.clear()
            self.assertEqual(local_time(1_795_188_970_123), "2026-11-20T12:06:10.123-03:30")
        format._minutes.clear()
        with mock.patch.dict(os.environ, {"TZ": "XXX+00:44:30"}):  # the offset of Monrovia until 1972
            time.tzset()
            self.assertEqual(local_time(1_795_188_970_123), "2026-11-20T15:36:10.123+00:00")
        format._minutes.clear()

    def test_rows_of_a_batch_are_those_of_its_single_samples(self):
        self.addCleanup(format._minutes.clear)
        self.addCleanup(time.tzset)
        dice = random.Random(14)
        values = [None, 0, -1, 1.5, 1e300, -1e-7, 2**63 - 1, 21.37]
        units = {"t": "°C", "u": "None", "v": '=☃,"None",%s'}
        for zone, at_ms in (
            ("Europe/Berlin", 1_792_888_200_000), ("Asia/Kolkata", 1_795_188_970_123),
            ("America/St_Johns", 1_795_188_970_123), ("Australia/Lord_Howe", 1_759_590_000_000 - 1_800_000),
            ("XXX+00:44:30", 1_795_188_970_123), ("UTC", -62_135_596_800_000), ("XXX+5", -62_135_590_000_000),
            ("XXX-5", 253_402_300_799_999 - 9_000_000),
        ):  # fmt: skip
            with mock.patch.dict(os.environ, {"TZ": zone}):
                time.tzset()
                format._minutes.clear()
                for step_ms in (1, 617, 60_000):
                    samples, time_ms = [], at_ms
                    for seq in range(1, 150):
                        time_ms += step_ms if dice.random() < 0.95 else -step_ms if time_ms > at_ms + step_ms else 0
                        samples.append(Sample(seq, time_ms, seq, {name: dice.choice(values) for name in "tuv"}, {}, ""))
                    rows = format.log_rows("None", E1, SampleBatch.of(samples), units, 0)
                    wanted = [
                        f"{local_time(one.time_ms)},None,{name},{'' if value is None else value},"
                        f"{format.cell(units[name])}\n"
                        for one in samples for name, value in one.values.items()
                    ]  # fmt: skip
                    self.assertEqual(rows.decode(), "".join(wanted), (zone, step_ms))

    def test_cache_of_minutes_is_bounded(self):
        for minute in range(10_000):
            local_time(minute * 60_000)
        self.assertLessEqual(len(format._minutes), 4096)


class Files(LogCase):
    def test_each_run_has_one_file_named_by_the_minute(self):
        stem = time.strftime("sensorlog_%d%m%y_%H%M", time.localtime(self.clock.wall_ms() / 1000))
        self.assertEqual(self.names(), [f"{stem}.csv"])
        self.log.close()
        self.store.close()
        self.open()
        self.assertEqual(self.names(), [f"{stem}.csv", f"{stem}_2.csv"])

    def test_old_files_are_never_changed(self):
        self.log.close()
        self.store.close()
        with open(self.path(), "w") as log:
            log.write("mine")
        os.unlink(os.path.join(self.folder, "pigeonpost.sqlite3"))  # a deleted database never truncates a log
        name = self.log.name
        self.open()
        with open(self.path(name)) as log:
            self.assertEqual(log.read(), "mine")

    def test_last_ten_samples_are_returned(self):
        self.commit(batch(1, 7))
        self.commit(batch(8, 13), batch(1, 1, node="b"), gap(14, 20))
        self.assertEqual(
            [(s.node, s.sample.seq) for s in self.log.last()], [("a", n) for n in range(5, 14)] + [("b", 1)]
        )

    def test_log_is_synced_and_recorded_periodically(self):
        self.assertEqual(self.store.log_mark().size, len(HEADER))  # recorded before it has any row
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

    def test_readers_see_only_complete_rows(self):
        self.commit(batch(1, 50))
        path, size = self.log.whole()
        with open(path, "rb") as log:
            self.assertEqual(log.read(size)[-1:], b"\n")


class Crashes(LogCase):
    """Tests that after each crash all logs together contain each sample once, in order."""

    def check(self, last):
        self.assertEqual(self.all_lights(), list(range(1, last + 1)))

    def test_rows_that_were_not_written_before_a_kill_are_written_at_the_start(self):
        self.commit(batch(1, 5))
        file(self.store, batch(6, 9))  # stored just before a power cut
        self.crash()
        self.open()
        self.check(9)
        self.assertEqual(len(self.names()), 2)
        self.commit(batch(10, 12))
        self.check(12)

    def test_zeros_of_unwritten_blocks_are_replaced(self):
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

    def test_repeated_kills_lose_and_repeat_nothing(self):
        chance = random.Random(3)
        last = 0
        for _ in range(rounds("PIGEONPOST_TEST_CSV_KILLS", 30, 60)):
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

    def test_file_cut_by_hand_is_detected_and_nothing_is_lost(self):
        self.commit(batch(1, 5))
        self.clock.sleep(61)
        self.commit(batch(6, 9))  # records the first five samples
        name = self.log.name
        os.truncate(self.path(), 70)
        self.crash()
        with self.assertLogs("csvbuffer", "WARNING") as logged:
            self.open()
        self.assertIn("changed by hand", logged.output[0])
        self.assertEqual(os.path.getsize(self.path(name)), 70)
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["6", "7", "8", "9"])

    def test_file_with_lines_added_by_hand_is_not_changed(self):
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

    def test_long_unwritten_block_is_replaced(self):
        """A power cut may leave zeros in place of rows: here more than the longest cell of Python's CSV reader."""
        self.commit(batch(1, 5))
        self.clock.sleep(61)
        self.commit(batch(6, 9))  # records the first five samples
        self.commit(batch(10, 3000))
        self.commit(batch(3001, 5999))
        with open(self.path(), "r+b") as log:
            log.seek(50_000)
            log.write(bytes(150_000))
        self.crash()
        self.open()
        self.assertTrue(self.all_lights() == [seq % 1024 for seq in range(1, 6000)])

    def test_rows_of_a_deleted_file_go_to_the_next_one(self):
        self.commit(batch(1, 5))
        self.clock.sleep(61)
        self.commit(batch(6, 9))
        os.unlink(self.path())
        self.crash()
        with self.assertLogs("csvbuffer", "WARNING"):
            self.open()
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["6", "7", "8", "9"])

    def test_deleted_file_without_missing_rows_causes_no_warning(self):
        self.commit(batch(1, 5))
        self.log.record()
        os.unlink(self.path())
        self.crash()
        with self.assertNoLogs("csvbuffer", "WARNING"):
            self.open()
        self.assertEqual(self.rows(), [])
        self.commit(batch(6, 7))
        self.assertEqual(self.all_lights(), [6, 7])

    def test_full_disk_during_a_repair_loses_and_repeats_nothing(self):
        """Rows that still fit are written to the last run's log, and the others to the next log."""
        self.commit(batch(1, 5))
        for first in (6, 8, 10):
            file(self.store, batch(first, first + 1))  # stored just before a power cut
        name, size, real = self.log.name, self.log.size, os.pwrite
        self.crash()
        limit = size + 450  # two commits fit, and a part of the third

        def pwrite(fd, data, at):
            if not os.path.samestat(os.fstat(fd), os.stat(self.path(name))):
                return real(fd, data, at)
            if at >= limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(fd, bytes(data)[: limit - at], at)

        with mock.patch("csvbuffer.os.pwrite", pwrite), self.assertLogs("csvbuffer", "WARNING") as logged:
            self.open()
        self.assertIn(
            f"{name}: No space left on device; its missing rows are written to the next log", logged.output[0]
        )
        self.assertEqual([row[3] for row in self.rows(name) if row[2] == "light"], [str(n) for n in range(1, 10)])
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["10", "11"])
        self.crash()
        self.open()
        self.check(11)

    def test_rows_in_another_time_zone_or_unit_are_recognised(self):
        self.addCleanup(time.tzset)
        self.commit(batch(1, 5))
        self.commit(batch(6, 9, units={"temperature": "°C", "light": "lux"}))
        self.commit(batch(10, 10, units={"temperature": "°C", "light": "lx"}))
        name = self.log.name
        self.crash()
        with mock.patch.dict(os.environ, {"TZ": "Asia/Tokyo"}):
            time.tzset()
            format._minutes.clear()
            self.open()
            self.check(10)
            self.assertEqual(len(self.rows()), 0)
            self.assertEqual(len(self.rows(name)), 20)
        format._minutes.clear()


class PartialWrite(LogCase):
    """Tests of writes that a kill stops after any number of bytes. The next start completes them."""

    def setUp(self):
        super().setUp()
        self.commit(batch(1, 3))
        self.written_before = self.log.size
        self.commit(batch(4, 5), gap(6, 6), batch(7, 7))
        self.name = self.log.name
        with open(self.path(), "rb") as log:
            self.whole = log.read()
        self.crash()

    def assert_completed(self, cut):
        """Assert that a start completes the log after it was cut to `cut` bytes of the write."""
        with open(self.path(self.name), "wb") as log:
            log.write(self.whole[:cut])
        self.open()
        with open(self.path(self.name), "rb") as log:
            self.assertEqual(log.read(), self.whole, cut)
        self.assertEqual(self.rows(), [], cut)  # the next log has no rows
        self.log.close()
        self.store.close()

    def test_write_cut_at_its_ends_or_in_the_middle_is_completed(self):
        self.check_copies([self.written_before, (self.written_before + len(self.whole)) // 2, len(self.whole)])

    @long
    def test_write_cut_at_any_byte_is_completed(self):
        self.check_copies(range(self.written_before, len(self.whole) + 1))

    def check_copies(self, cuts):
        crashed = self.folder
        for cut in cuts:
            with tempfile.TemporaryDirectory() as self.folder:
                shutil.copytree(crashed, self.folder, dirs_exist_ok=True)
                self.assert_completed(cut)


class PartialWriteWithMemoryStore(PartialWrite):
    """The same tests for every byte, which need less time with this store."""

    def setUp(self):
        self.stored = MemoryStore()
        super().setUp()

    def open_store(self):
        return self.stored

    def check_copies(self, cuts):
        crashed = self.stored
        for cut in cuts:
            self.stored = crashed.backup()
            self.assert_completed(cut)
            os.unlink(self.path())  # the log of this start

    def test_write_cut_at_any_byte_is_completed(self):
        self.check_copies(range(self.written_before, len(self.whole) + 1))


CHANGES = (
    ("low", "low + 1000000"), ("high", "high - 1500"), ("epoch", "epoch + 100"), ("shape", "99"),
    ("count", "count + 1"), ("count", "count - 1"), ("count", "'x'"), ("count", "1 << 44"), ("count", "-count"),
)  # fmt: skip


class DamagedRows(LogCase):
    """Tests of rows that were damaged on the card before they were logged.

    The log lacks only these, until they are repaired.
    """

    def setUp(self):
        self.reported = []
        super().setUp()

    def open_store(self):
        store = super().open_store()
        store.on_damage = self.reported.append
        return store

    def change(self, first, column="data", value="replace(data, '.5', '.4')"):
        """Damage the row of `fresh` whose first sample is `first`. Return a function that repairs it."""
        db = sqlite3.connect(os.path.join(self.folder, "pigeonpost.sqlite3"), isolation_level=None)
        self.addCleanup(db.close)
        (old,) = db.execute(f"SELECT {column} FROM fresh WHERE first = ?", (first,)).fetchone()
        db.execute(f"UPDATE fresh SET {column} = {value} WHERE first = ?", (first,))
        return lambda: db.execute(f"UPDATE fresh SET {column} = ? WHERE first = ?", (old, first))

    def restart(self):
        self.crash()
        self.open()

    def test_later_rows_are_logged_and_the_damaged_row_after_its_repair(self):
        self.commit(batch(1, 5))
        full = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch("csvbuffer.os.pwrite", side_effect=full), self.assertLogs("csvbuffer", "ERROR"):
            for first in (6, 8, 10):
                self.commit(batch(first, first + 1))
        repair = self.change(8)
        self.commit(batch(12, 12))
        without = [*range(1, 8), 10, 11, 12]
        self.assertEqual((self.log.fault, self.all_lights()), ("", without))
        self.assertRegex(
            self.reported[-1],
            r"3 of node a, which the CSV log may lack: 2 samples of epoch 1, from 8 on.*restore BACKUP",
        )
        for _ in range(2):
            self.log.record()
            self.restart()
            without.append(without[-1] + 1)
            self.commit(batch(without[-1], without[-1]))
            self.assertEqual((self.all_lights(), self.store.unlogged), (without, {3}))
            self.assertIn("the CSV log may lack", self.reported[-1])
        repair()
        self.reported.clear()
        self.restart()
        self.assertEqual(sorted(self.all_lights()), list(range(1, 15)))
        for _ in range(2):
            self.assertEqual((self.store.unlogged, self.reported), (frozenset(), []))
            self.restart()
        self.assertEqual(sorted(self.all_lights()), list(range(1, 15)))

    def test_lines_of_a_damaged_row_in_the_log_are_kept(self):
        digit, byte = "replace(data, '.5', '.4')", "CAST(x'80' AS TEXT)"
        for column, value, *damaged in (
            ("data", digit, 4), ("data", digit, 6), ("data", byte, 8), ("data", byte, 6, 8), ("crc", "7", 4, 6, 8),
        ):  # fmt: skip
            with self.subTest(value, damaged=damaged), tempfile.TemporaryDirectory() as self.folder:
                self.open()
                for first in (1, 4, 6, 8):
                    self.commit(batch(first, first + 1 + (first == 1)))
                with open(self.path(), "rb") as log:
                    whole, name = log.read(), self.log.name
                for first in damaged:
                    self.change(first, column, value)
                self.crash()
                self.open()
                with open(self.path(name), "rb") as log:
                    self.assertEqual(log.read(), whole)
                self.assertEqual((self.rows(), self.store.unlogged), ([], frozenset()))
                self.commit(batch(10, 10))
                self.assertEqual(self.all_lights(), list(range(1, 11)))
                self.log.close()
                self.store.close()

    def test_lines_are_kept_no_matter_which_column_was_damaged(self):
        """This includes several damaged rows, and damaged rows at the end."""
        for first in (1, 4, 6, 8):
            self.commit(batch(first, first + 1 + (first == 1)))
        with open(self.path(), "rb") as log:
            whole, name, crashed = log.read(), self.log.name, self.folder
        self.crash()
        places = ((6,), (8,), (6, 8), (4, 6))
        for n, (column, value) in enumerate((*CHANGES, ("id", "77"))):
            for damaged in places if LONG else places[n % 4 :][:1]:
                damaged = damaged[: 1 if column == "id" else None]
                with self.subTest(f"{column} = {value}", damaged=damaged), tempfile.TemporaryDirectory() as self.folder:
                    shutil.copytree(crashed, self.folder, dirs_exist_ok=True)
                    repairs = [self.change(first, column, value) for first in damaged]
                    self.open()
                    with open(self.path(name), "rb") as log:
                        self.assertEqual(log.read(), whole)
                    self.assertEqual((self.rows(), self.store.unlogged), ([], frozenset()))
                    for repair in repairs:
                        repair()
                    self.restart()
                    self.assertEqual(self.all_lights(), list(range(1, 10)))
                    self.log.close()
                    self.store.close()

    def test_lines_are_kept_if_a_sector_cannot_be_read(self):
        for lost in ({3}, {2, 3}, {4}):
            with self.subTest(lost=lost), tempfile.TemporaryDirectory() as self.folder:
                self.open()
                for first in (1, 4, 6, 8):
                    self.commit(batch(first, first + 1 + (first == 1)))
                with open(self.path(), "a", encoding="utf-8") as log:
                    log.write("2026-11")  # beginning of the rows of a later commit
                file(self.store, batch(10, 11))
                with self.unreadable(*lost):
                    self.restart()
                self.assertEqual((self.all_lights(), self.store.unlogged), (list(range(1, 12)), frozenset()))
                self.log.close()
                self.store.close()

    @contextlib.contextmanager
    def unreadable(self, *ids):
        read = queries._logged

        def fail(db, shapes, id, is_gap):
            if id in ids:
                error = sqlite3.DatabaseError("a row cannot be read")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            return read(db, shapes, id, is_gap)

        with mock.patch.object(queries, "_logged", fail):
            yield

    def test_line_added_by_hand_is_not_counted_as_that_of_a_damaged_row(self):
        self.commit(batch(1, 5))
        file(self.store, batch(6, 7))  # stored just before a power cut
        with open(self.path(), "a", encoding="utf-8") as log:
            log.write("my own note\n")
        repair = self.change(6, "epoch", "100")
        with self.assertLogs("csvbuffer", "WARNING"):
            self.restart()
        self.assertEqual(self.store.unlogged, {2})
        repair()
        self.restart()
        with open(self.path(self.names()[0]), encoding="utf-8") as log:
            self.assertIn("my own note\n", log.read())
        self.assertEqual([row[3] for row in self.rows(self.names()[1]) if row[2] == "light"], ["6", "7"])

    def test_torn_line_of_a_damaged_row_is_not_continued(self):
        for first in (1, 4):
            self.commit(batch(first, first + 1 + (first == 1)))
        os.truncate(self.path(), self.log.size - 1)
        file(self.store, batch(6, 7))
        self.change(4, "low", "low + 1000000")
        with self.assertLogs("csvbuffer", "WARNING"):
            self.restart()
        self.assertEqual((self.all_lights(), self.store.unlogged), (list(range(1, 8)), {2}))

    def test_lines_are_kept_in_another_time_zone(self):
        self.addCleanup(format._minutes.clear)
        self.addCleanup(time.tzset)
        for first in (1, 4, 6):
            self.commit(batch(first, first + 1 + (first == 1)))
        self.change(4, "low", "low + 1000000")
        with mock.patch.dict(os.environ, {"TZ": "Asia/Tokyo"}):
            time.tzset()
            format._minutes.clear()
            self.restart()
        self.assertEqual((self.all_lights(), self.store.unlogged), (list(range(1, 8)), frozenset()))

    def test_kill_during_the_repair_leaves_the_lines_of_damaged_rows(self):
        for first in (1, 4, 6, 8):
            self.commit(batch(first, first + 1 + (first == 1)))
        file(self.store, batch(10, 11))
        for first in (6, 8):
            self.change(first)
        for killed in range(5):
            self.crash()
            self.store = self.open_store()
            self.log = CsvLog(self.folder, self.store, self.clock)
            writes = [mock.DEFAULT] * killed + [KeyboardInterrupt]
            with mock.patch("csvbuffer._append", wraps=csvbuffer._append, side_effect=writes):
                self.assertRaises(KeyboardInterrupt, self.log.start)
        self.restart()
        self.assertEqual((self.all_lights(), self.store.unlogged), (list(range(1, 12)), frozenset()))

    def test_lines_of_damaged_rows_missing_in_the_log_are_recorded(self):
        for written, damaged in ((0, 8), (1, 6), (1, 8), (1, 10), (2, 10), (3, 10)):
            with self.subTest(written=written, damaged=damaged), tempfile.TemporaryDirectory() as self.folder:
                self.open()
                self.commit(batch(1, 5))
                for place, first in enumerate((6, 8, 10)):
                    (self.commit if place < written else lambda one: file(self.store, one))(batch(first, first + 1))
                repair = self.change(damaged)
                self.restart()
                is_logged = (damaged - 6) // 2 < written
                lost = set() if is_logged else {damaged, damaged + 1}
                self.assertEqual(self.all_lights(), [seq for seq in range(1, 12) if seq not in lost])
                repair()
                self.restart()
                self.assertEqual(sorted(self.all_lights()), list(range(1, 12)))
                self.log.close()
                self.store.close()

    def test_random_damage_loses_no_other_rows(self):
        """Many digits of samples are changed, or another column of one row."""
        for seed in range(rounds("PIGEONPOST_TEST_DAMAGED_ROWS", 2, 100)):
            chance, repairs, last, self.lasts = random.Random(seed), [], 0, {}
            change = chance.choice(CHANGES) if seed % 2 else ()
            with self.subTest(seed=seed), tempfile.TemporaryDirectory() as self.folder:
                self.open()
                for _ in range(30):
                    done = chance.random()
                    if done < 0.6:
                        first, last = last + 1, last + chance.randint(1, 3)
                        self.lasts[first] = last
                        (self.commit if chance.random() < 0.8 else lambda one: file(self.store, one))(
                            batch(first, last)
                        )
                    elif done < 0.75:
                        ids = self.store._db.execute("SELECT first FROM fresh WHERE data NOT LIKE '%.4%'").fetchall()
                        if ids and not (change and repairs):
                            repairs.append(self.change(*chance.choice(ids), *change))
                    elif done < 0.85:
                        self.clock.sleep(61)
                    else:
                        self.restart()
                for _ in range(2):
                    self.restart()
                    lights = self.all_lights()
                    self.assertEqual(len(set(lights)), len(lights))
                    self.assertEqual(set(range(1, last + 1)) - set(lights), self.lacking())
                for repair in repairs:
                    repair()
                for _ in range(2):
                    self.restart()
                    self.assertEqual(sorted(self.all_lights()), list(range(1, last + 1)))
                    self.assertEqual(self.lacking(), set())
                self.log.close()
                self.store.close()

    def lacking(self):
        """Return the seqs in the rows that the log lacks."""
        rows = self.store._db.execute("SELECT id, first FROM fresh").fetchall()
        return {seq for id, first in rows if id in self.store.unlogged for seq in range(first, self.lasts[first] + 1)}

    def test_unreadable_sector_counts_as_a_damaged_row_but_a_damaged_structure_stops_the_log(self):
        for first in (1, 3, 5):
            file(self.store, batch(first, first + 1))
        read = queries._logged
        for code, owed in ((sqlite3.SQLITE_IOERR, [1, 0, 1]), (sqlite3.SQLITE_CORRUPT, None)):
            error = sqlite3.DatabaseError("the second row cannot be read")
            error.sqlite_errorcode = code

            def fail(db, shapes, id, is_gap, error=error):
                if id == 2:
                    raise error
                return read(db, shapes, id, is_gap)

            with mock.patch.object(queries, "_logged", fail):
                if owed:
                    self.assertEqual([len(entry.items) for entry in self.store.logged_after(0)], owed)
                    self.assertEqual(self.store.damage, "")
                else:
                    self.assertRaises(StoreDamaged, list, self.store.logged_after(0))


class Failures(LogCase):
    def test_file_changed_by_another_program_is_replaced_by_a_new_one(self):
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

    def test_file_deleted_while_it_is_written_is_replaced_by_a_new_one(self):
        self.commit(batch(1, 2))
        os.unlink(self.path())
        with self.assertLogs("csvbuffer", "WARNING"):
            self.commit(batch(3, 4))
        self.log.record()
        self.assertEqual([row[3] for row in self.rows() if row[2] == "light"], ["3", "4"])

    def test_full_disk_leaves_no_torn_row_and_loses_none(self):
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

    def test_full_disk_at_the_start_delays_the_log(self):
        self.commit(batch(1, 5))
        file(self.store, batch(6, 7))
        self.crash()
        real = os.open

        def full(path, flags, mode=0o777):
            if flags & os.O_CREAT:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, flags, mode)

        with mock.patch("csvbuffer.os.open", full), self.assertLogs("csvbuffer", "ERROR"):
            self.open()
        self.assertIn("No space", self.log.fault)
        self.commit(batch(8, 9))
        self.assertEqual(self.log.fault, "")
        self.log.record()
        self.assertEqual(self.all_lights(), list(range(1, 10)))

    def test_failed_transaction_records_nothing(self):
        """A file that the store does not know gets no rows, because after a crash they would be written again."""
        self.commit(batch(1, 3))
        with open(self.path(), "a") as log:
            log.write("by,hand,not,by,us\n")
        with self.assertLogs("csvbuffer", "WARNING"):
            self.commit(batch(4, 5))  # creates a new file, which stays empty until it is recorded
        with self.assertRaises(NotStored), mock.patch.object(self.store, "put", side_effect=NotStored("full")):
            self.commit(batch(6, 7))
        self.commit(batch(6, 7))
        self.crash()
        self.open()
        self.commit(batch(8, 8))
        self.commit(batch(9, 9))
        self.assertEqual(sorted(self.all_lights()), [*range(1, 10)])

    def test_commit_whose_confirmation_was_lost_is_logged(self):
        """If the connection to a database breaks, the samples arrive again as repeats, which are not logged."""
        self.commit(batch(1, 3))
        file(self.store, batch(4, 6))
        with self.store.writing(()):
            filed = self.store.put((), 0, self.log.due())
        self.log.flush(filed)
        self.assertEqual(self.all_lights(), [*range(1, 7)])
        self.commit(batch(7, 8))
        self.assertEqual(self.all_lights(), [*range(1, 9)])

    def test_log_starts_at_the_first_commit_if_the_store_is_full_at_the_start(self):
        self.commit(batch(1, 5))
        file(self.store, batch(6, 7))
        self.crash()
        full = mock.patch.object(SqliteStore, "put", side_effect=NotStored("disk full"))
        with full, self.assertLogs("csvbuffer", "WARNING") as logged:
            self.open()
        self.assertEqual(logged.output, ["WARNING:csvbuffer:the CSV log is not recorded yet: disk full"])
        self.assertEqual(self.rows(), [])
        self.commit(batch(8, 9))
        self.commit(batch(10, 10))
        self.assertEqual(self.all_lights(), [*range(1, 11)])
        self.crash()
        self.open()
        self.assertEqual(self.all_lights(), [*range(1, 11)])

    def test_next_start_records_the_log_if_the_store_is_full_at_the_end(self):
        self.commit(batch(1, 5))
        with mock.patch.object(self.store, "put", side_effect=NotStored("disk full")):
            with self.assertLogs("csvbuffer", "WARNING") as logged:
                self.log.record()
            self.log.close()
        self.assertIn("not recorded yet: disk full", logged.output[0])
        self.store.close()
        self.open()
        self.assertEqual((self.all_lights(), self.rows()), ([*range(1, 6)], []))

    def test_failed_sync_records_nothing(self):
        self.commit(batch(1, 5))
        with failing_sync(), self.assertLogs("csvbuffer", "ERROR"):
            self.assertIsNone(self.log.due(now=True))
        self.assertIsNone(self.log.due(now=True))
        self.commit(batch(6, 7))
        self.assertIsInstance(self.log.due(now=True), LogMark)


class FailingFirstSyncs(LogCase):
    def test_rows_of_earlier_logs_are_not_repeated(self):
        self.commit(batch(1, 5))
        self.log.record()
        self.commit(batch(6, 9))  # the earlier log lacks these rows at the next start
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        for fails_at in (2, 3):  # the first sync is that of the earlier log
            self.crash()
            answers = iter([None] * (fails_at - 1) + [OSError(errno.EIO, "I/O error")] + [None] * 9)
            with mock.patch("csvbuffer.os.fsync", side_effect=answers) as fsync:
                self.open()
            self.assertGreater(fsync.call_count, fails_at)
            self.commit(batch(8 + fails_at, 8 + fails_at))
            self.assertEqual(self.all_lights(), list(range(1, 9 + fails_at)))


class LostPages:
    """Simulation of a disk that loses everything written after the last successful sync in a power cut.

    A failed sync discards its pages, as Linux does: a later sync succeeds without them.
    """

    def __init__(self, test):
        self.durable = {}  # durable content by inode
        self.fails = False
        self._dirty = {}
        self._real = {name: getattr(os, name) for name in ("pwrite", "ftruncate", "fsync")}
        for name in self._real:
            patched = mock.patch(f"csvbuffer.os.{name}", getattr(self, f"_{name}"))
            patched.start()
            test.addCleanup(patched.stop)

    def _pwrite(self, fd, data, at):
        self._dirty.setdefault(os.fstat(fd).st_ino, []).append((at, bytes(data)))
        return self._real["pwrite"](fd, data, at)

    def _ftruncate(self, fd, size):
        self._dirty.setdefault(os.fstat(fd).st_ino, []).append((size, None))
        self._real["ftruncate"](fd, size)

    def _fsync(self, fd):
        status = os.fstat(fd)
        dirty = self._dirty.pop(status.st_ino, [])
        content = self.durable.setdefault(status.st_ino, bytearray())
        for at, data in dirty:
            if data is None:
                del content[at:]
            elif not self.fails:
                content.extend(bytes(max(0, at - len(content))))
                content[at : at + len(data)] = data
        if self.fails:
            raise OSError(errno.EIO, "I/O error")
        content.extend(bytes(max(0, status.st_size - len(content))))  # blocks that were allocated but never written
        self._real["fsync"](fd)

    def cut_power(self, folder):
        """Leave in each log only its durable content."""
        for name in logs_in(folder):
            path = os.path.join(folder, name)
            with open(path, "r+b") as file:
                file.truncate(0)
                file.write(self.durable.get(os.stat(path).st_ino, b""))


def failing_sync():
    return mock.patch("csvbuffer.os.fsync", side_effect=OSError(errno.EIO, "I/O error"))


class FailedSync(LogCase):
    """Tests that data of a failed sync are written again, and not just synced again."""

    def setUp(self):
        self.disk = LostPages(self)
        super().setUp()

    def test_data_of_a_failed_sync_are_written_again_while_the_server_runs(self):
        self.commit(batch(1, 5))
        self.disk.fails = True
        with self.assertLogs("csvbuffer", "ERROR"):
            self.clock.sleep(csvbuffer.SYNC_S)
            self.commit(batch(6, 7))
        self.disk.fails = False
        self.clock.sleep(csvbuffer.SYNC_S)
        self.commit(batch(8, 9))
        self.clock.sleep(csvbuffer.SYNC_S)
        self.commit(batch(10, 11))  # records the samples 1 to 9
        self.crash()
        self.disk.cut_power(os.path.join(self.folder, "logs"))
        self.open()
        self.assertEqual(self.all_lights(), [*range(1, 12)])
        self.assertEqual(len(self.names()), 2)

    def test_data_of_a_failed_sync_are_written_again_at_the_end_of_a_run(self):
        self.commit(batch(1, 5))
        self.disk.fails = True
        with self.assertLogs("csvbuffer", "ERROR"):
            self.assertIsNone(self.log.due(now=True))
        self.disk.fails = False
        self.log.record()
        self.crash()
        self.disk.cut_power(os.path.join(self.folder, "logs"))
        self.open()
        self.assertEqual(self.all_lights(), [*range(1, 6)])

    def test_data_of_a_failed_sync_are_written_again_during_the_repair(self):
        self.commit(batch(1, 5))
        file(self.store, batch(6, 7))  # stored just before a power cut
        self.crash()
        self.disk.fails = True
        with self.assertRaisesRegex(DiskError, "logs/.*: I/O error"):
            self.open()
        self.store.close()
        self.disk.fails = False
        self.open()
        self.crash()
        self.disk.cut_power(os.path.join(self.folder, "logs"))
        self.open()
        self.assertEqual(self.all_lights(), [*range(1, 8)])


class Format(unittest.TestCase):
    def test_leftovers_of_a_crash_are_recognised(self):
        is_left = format.is_left_by_crash
        self.assertTrue(is_left(b"", b"abc"))
        self.assertTrue(is_left(b"ab", b"abc"))
        self.assertTrue(is_left(b"\0b\0\0\0", b"abc"))
        self.assertFalse(is_left(b"abx", b"abc"))
        self.assertFalse(is_left(b"abcd", b"abc"))

    def test_gap_of_earlier_epochs_is_counted(self):
        row = format.log_rows("n", E1, Gap(1, 0, 5, "x"), {}, 0).decode()
        self.assertIn(",n,gap,5,", row)

    def test_sample_without_units_is_written(self):
        row = format.log_rows("n", E1, SampleBatch.of([Sample(1, 0, 0, {"x": 1}, {}, "")]), {}, 0).decode()
        self.assertTrue(row.endswith(",n,x,1,\n"))


if __name__ == "__main__":
    unittest.main()
