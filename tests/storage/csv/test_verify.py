"""Comparing the CSV logs with the store, and writing a log from the store."""

import os
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.core.clock import FakeClock, parse_rfc3339
from pigeonpost.storage.csv import format, verify
from pigeonpost.storage.csv.checksums import faults, read_sums
from pigeonpost.storage.csv.format import HEADER, _minutes, local_time, log_name
from pigeonpost.storage.csv.verify import rebuild_log, verify_logs
from pigeonpost.storage.models import LogMark
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.page_support import set_zone, use_memory_disk
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import E2, batch, file, gap
from tests.support import temp_folder
from tests.test_csvbuffer import LogCase

UNITS = {"temperature": "°C", "light": '"lux", as %s'}


def setUpModule():
    use_memory_disk()


class LocalTime(unittest.TestCase):
    def test_the_first_and_the_last_day_that_rfc_3339_has_can_be_read_again_in_any_zone(self):
        for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago", "UTC"):
            set_zone(self, zone)
            for time_ms in (parse_rfc3339("0001-01-01T00:00:00Z"), parse_rfc3339("9999-12-31T23:59:59.999Z")):
                _minutes.clear()
                self.addCleanup(_minutes.clear)
                self.assertEqual(parse_rfc3339(local_time(time_ms)), time_ms, zone)


class LogFileCase(LogCase):
    def faults(self):
        return list(verify_logs(os.path.join(self.folder, "logs"), self.store))

    def content(self, name=None):
        with open(self.path(name), "rb") as log:
            return log.read()

    def write(self, content, name=None):
        with open(self.path(name), "wb") as log:
            log.write(content)

    def replace(self, old, new):
        """Change this run's log by hand: the first `old` in it becomes `new`."""
        content = self.content()
        self.assertIn(old, content)
        self.write(content.replace(old, new, 1))

    def crashed(self):
        """Crash, then open the store without starting a new log."""
        self.crash()
        self.store = self.open_store()
        self.addCleanup(self.store.close)


class Verifying(LogFileCase):
    def setUp(self):
        super().setUp()
        self.commit(batch(1, 20), gap(21, 30, before=3, why='a "long", gap'), batch(31, 40, units=UNITS))
        self.commit(batch(1, 5, node="b", epoch=E2, temperature=None, errors={"temperature": "no response"}))
        self.log.record()

    def test_logs_that_say_what_is_stored_are_sound(self):
        self.assertEqual(self.faults(), [])

    def test_a_reason_with_line_ends_that_an_older_server_stored_is_no_fault(self):
        self.commit(gap(41, 41, why='one,\ntwo\r\n"three"\n'), batch(42, 42))
        self.log.record()
        self.assertEqual(self.faults(), [])
        self.replace(b"two\r", b'two"\r')
        self.assertIn("torn row", self.faults()[0])

    def test_the_logs_of_several_runs_count_together(self):
        self.log.close()
        self.store.close()
        self.open()
        self.commit(batch(41, 45))
        self.log.record()
        self.assertEqual(len(self.names()), 2)
        self.assertEqual(self.faults(), [])

    def test_without_any_log_everything_recorded_is_missing(self):
        os.unlink(self.path())
        expected = "the logs hold 0 readings and the store 70; they are not the same (was a log changed?)"
        self.assertEqual(self.faults(), [expected, "the logs tell of 0 gaps and the store of 1"])

    def test_an_empty_store_without_a_folder_of_logs_is_sound(self):
        self.assertEqual(list(verify_logs(os.path.join(temp_folder(self), "logs"), MemoryStore())), [])

    def test_a_value_that_was_changed_is_found(self):
        for old, new in (
            (b",a,temperature,20.5,", b",a,temperature,20.6,"),
            (b",a,light,7,", b",b,light,7,"),
            (b",a,light,7,", b",a,lights,7,"),
            (b",b,temperature,,", b",b,temperature,0,"),
        ):
            with self.subTest(old):
                whole = self.content()
                self.replace(old, new)
                (fault,) = self.faults()
                self.assertIn("the logs hold 70 readings and the store 70; they are not the same", fault)
                self.write(whole)

    def test_a_time_that_was_changed_is_found(self):
        when, other = local_time(1_795_000_006_000), local_time(1_795_000_006_001)
        self.replace(when.encode(), other.encode())
        (fault,) = self.faults()
        self.assertIn("they are not the same", fault)

    def test_a_time_in_another_zone_is_the_same_time(self):
        row = self.content().splitlines(keepends=True)[1]
        when = self.rows()[0][0].encode()
        self.assertTrue(row.startswith(when))
        self.replace(row, row.replace(when, b"2026-11-18T13:06:41.000+02:00"))
        self.assertEqual(self.faults(), [])

    def test_a_row_that_is_missing_or_there_twice_is_found(self):
        whole = self.content()
        row = whole.splitlines(keepends=True)[3]
        self.replace(row, b"")
        self.assertIn("the logs hold 69 readings and the store 70", self.faults()[0])
        self.write(whole + row)
        self.assertIn("the logs hold 71 readings and the store 70", self.faults()[0])

    def test_a_gap_that_is_missing_is_found(self):
        (row,) = [row for row in self.content().splitlines(keepends=True) if b",gap," in row]
        self.replace(row, b"")
        self.assertEqual(self.faults(), ["the logs tell of 0 gaps and the store of 1"])

    def test_a_gap_whose_row_is_torn_is_shown(self):
        whole = self.content()
        (row,) = [row for row in whole.splitlines(keepends=True) if b",gap," in row]
        for length in (len(row) - 1, row.index(b"samples ") + 9):
            with self.subTest(length):
                self.write(whole.replace(row, b"") + row[:length])
                torn, count = self.faults()
                self.assertEqual(torn, f"{self.log.name}: a torn row: {row[:length].decode().strip()[:60]!r}")
                self.assertEqual(count, "the logs tell of 0 gaps and the store of 1")

    def test_a_row_that_is_torn_or_no_row_is_shown(self):
        whole, name = self.content(), self.log.name
        for text, shown in (
            (b"my own note\n", "'my own note'"),
            (b"2026-11-20T16:36:10.123+01:00,a,light,7", "'2026-11-20T16:36:10.123+01:00,a,light,7'"),
            (b"2026-11-20T16:36:10.123+01:00,a,light,7,l", "'2026-11-20T16:36:10.123+01:00,a,light,7,l'"),
            (b"yesterday,a,light,7,\n", "'yesterday,a,light,7,'"),
            (b"2026-11-20T16:36:10.123+01:00,a,\xff,7,\n", "'2026-11-20T16:36:10.123+01:00,a,\ufffd,7,'"),
            (b"x" * 200_000 + b"\n", repr("x" * 60)),
            (b'"' + b"x" * 200_000 + b"\n", repr('"' + "x" * 59)),  # longer than Python's reader takes a cell for
            (b"\0" * 100 + b"\n", repr("\0" * 60)),
        ):
            with self.subTest(text[:20]):
                self.write(whole + text)
                self.assertEqual(self.faults(), [f"{name}: a torn row: {shown}"])

    def test_another_header_within_a_log_says_nothing(self):
        self.write(self.content() + HEADER.encode())
        self.assertEqual(self.faults(), [])

    def test_a_sensor_called_gap_is_a_sensor(self):
        with_gap = batch(41, 42)
        with_gap.samples.values["gap"] = [10.25, 10.5]
        self.commit(with_gap)
        self.log.record()
        self.assertEqual(self.faults(), [])
        self.replace(b",a,gap,10.25,", b",a,gap,10.75,")
        self.assertEqual(len(self.faults()), 1)


class VerifyingLines(LogFileCase):
    def test_lines_as_they_would_be_written_are_not_read_one_by_one(self):
        self.commit(batch(1, 5), gap(6, 8), batch(9, 12))
        self.log.record()
        self.commit(gap(13, 14), batch(15, 20))
        self.crashed()  # so that rows are owed to the log
        with mock.patch.object(verify, "_compare_meanings", side_effect=AssertionError):
            self.assertEqual(self.faults(), [])
            with open(self.path(), "r+b") as log:
                log.truncate(self.store.log_mark().size)
            self.assertEqual(self.faults(), [])


class VerifyingAfterACrash(LogFileCase):
    """What the last run stored and did not write to its log is no fault: the next start writes it."""

    def setUp(self):
        super().setUp()
        self.commit(batch(1, 5))
        self.commit(gap(6, 6))
        self.log.record()
        self.commit(batch(7, 8))
        self.commit(gap(9, 9))
        self.commit(batch(10, 11))
        self.recorded = self.store.log_mark().size
        file(self.store, batch(12, 13))
        self.whole = self.content()

    def test_a_log_that_ends_anywhere_behind_what_is_recorded_is_sound(self):
        self.assertLess(self.recorded, len(self.whole) - 400)
        self.crashed()
        for size in range(self.recorded, len(self.whole) + 1, 7):
            self.write(self.whole[:size])
            self.assertEqual(self.faults(), [], size)

    def test_rows_written_in_another_time_zone_are_sound(self):
        self.crashed()
        self.addCleanup(format._minutes.clear)
        set_zone(self, "Asia/Kathmandu")
        format._minutes.clear()
        self.assertEqual(self.faults(), [])

    def test_blocks_of_zeros_behind_what_is_recorded_are_sound(self):
        self.crashed()
        for zeros in (1, 100, len(self.whole) - self.recorded):
            self.write(self.whole[: len(self.whole) - zeros] + bytes(zeros))
            self.assertEqual(self.faults(), [], zeros)

    def test_the_next_start_agrees(self):
        self.write(self.whole[: self.recorded + 40])
        self.crashed()
        self.assertEqual(self.faults(), [])
        self.store.close()
        self.open()
        self.assertEqual(self.faults(), [])
        self.assertEqual(self.all_lights(), [1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13])

    def test_a_log_that_is_shorter_than_recorded_is_not_what_a_crash_leaves(self):
        self.crashed()
        *_, last = self.whole[: self.recorded].splitlines(keepends=True)  # the gap
        self.write(self.whole[: self.recorded - len(last)])
        self.assertEqual(self.faults(), [
            "the logs hold 10 readings and the store 22; they are not the same (was a log changed?)",
            "the logs tell of 0 gaps and the store of 2",
        ])  # fmt: skip

    def test_a_note_behind_what_is_recorded_is_not_what_a_crash_leaves(self):
        self.crashed()
        self.write(self.whole[: self.recorded] + b"my own note\n")
        self.assertEqual(self.faults(), [
            f"{self.log.name}: a torn row: 'my own note'",
            "the logs hold 10 readings and the store 22; they are not the same (was a log changed?)",
            "the logs tell of 1 gaps and the store of 2",
        ])  # fmt: skip

    def test_a_log_of_which_nothing_was_recorded_may_be_gone(self):
        self.crashed()
        self.store.close()
        self.open()  # a new log, of which only the header is recorded
        file(self.store, batch(14, 15))
        self.crashed()
        os.unlink(self.path())
        self.assertEqual(self.faults(), [])


class VerifyingAfterForgetting(LogFileCase):
    """The logs keep what the store was set to delete."""

    HOUR_MS = 3_600_000

    def open_store(self):
        self.kept = getattr(self, "kept", None) or MemoryStore()
        return self.kept

    def setUp(self):
        super().setUp()
        first_ms = 1_795_000_000_000 // self.HOUR_MS * self.HOUR_MS + 1
        for hour in range(5):
            self.commit(batch(hour + 1, hour + 1, time_ms=first_ms + hour * self.HOUR_MS))
        self.log.record()
        with self.store.writing(()):
            for window in self.store.dirty_windows(1 << 60, 100):
                self.store.replace_rollups(window, {})
            self.assertEqual(self.store.delete_expired(first_ms + 3 * self.HOUR_MS, 100), 3)
        self.commit(batch(1, 2, node="b", time_ms=first_ms))  # comes late
        self.log.record()

    def test_logs_may_say_more_than_is_kept(self):
        self.assertEqual(self.store.nodes()[0]["forgotten"], 3)
        self.assertEqual(self.faults(), [])

    def test_what_is_kept_is_compared_still(self):
        self.replace(b",a,light,5,", b",a,light,6,")
        self.assertEqual(len(self.faults()), 1)

    def test_other_nodes_are_compared_as_far_back_as_they_are_kept(self):
        self.replace(b",b,light,1,", b",b,light,3,")
        self.assertEqual(len(self.faults()), 1)


class WritingALog(unittest.TestCase):
    """A log of all that is stored, for a database that came without its logs."""

    def setUp(self):
        self.folder = temp_folder(self)
        self.store = SqliteStore(self.folder)
        self.addCleanup(self.store.close)
        self.clock = FakeClock()
        self.logs, self.name = os.path.join(self.folder, "logs"), log_name(self.clock.wall_ms())

    def write_log(self):
        rebuild_log(self.logs, self.name, self.store, self.clock)
        with open(os.path.join(self.logs, self.name), encoding="utf-8") as log:
            return log.read()

    def assert_next_run_adds_nothing(self):
        """The next server takes the log as whole, and its own is empty."""
        log = CsvLog(self.folder, self.store, self.clock)
        self.addCleanup(log.close)
        with self.assertNoLogs("csvbuffer", "WARNING"):
            log.start()
        self.assertNotEqual(log.name, self.name)
        with open(log.whole()[0], encoding="utf-8") as file:
            self.assertEqual(file.read(), HEADER)

    def test_an_empty_store_gives_a_header(self):
        self.assertEqual(self.write_log(), HEADER)
        self.assertEqual(list(verify_logs(self.logs, self.store)), [])

    def test_its_checksum_tells_whether_the_disk_has_what_was_written(self):
        file(self.store, batch(1, 2))
        written = self.write_log()
        self.assertEqual(list(read_sums(self.logs)), [self.name])
        self.assertEqual(list(faults(self.logs)), [])
        self.assert_next_run_adds_nothing()
        self.assertEqual(list(faults(self.logs)), [])
        with open(os.path.join(self.logs, self.name), "w", encoding="utf-8") as log:
            log.write(written.replace(",1,", ",3,"))
        self.assertRegex(next(iter(faults(self.logs))), f"{self.name}: changed since it was closed")

    def test_it_says_all_that_is_stored_node_by_node(self):
        for one in (batch(1, 2, units=UNITS), gap(3, 9, before=4), batch(10, 10)):
            file(self.store, one)
        file(self.store, batch(1, 2, node="b", temperature=None, errors={"temperature": "no response"}))
        file(self.store, gap(11, 12, why="damaged"), batch(1, 1, epoch=E2, time_ms=1_795_000_000_000))
        rows = [row.split(",", 4)[1:] for row in self.write_log().splitlines()[1:]]
        self.assertEqual([(node, sensor, value) for node, sensor, value, _ in rows], [
            ("a", "temperature", "20.5"), ("a", "light", "1"),  # of the second epoch, and the oldest
            ("a", "temperature", "20.5"), ("a", "light", "1"), ("a", "temperature", "20.5"), ("a", "light", "2"),
            ("a", "temperature", "20.5"), ("a", "light", "10"),
            ("b", "temperature", ""), ("b", "light", "1"), ("b", "temperature", ""), ("b", "light", "2"),
            ("a", "gap", "11"), ("a", "gap", "2"),
        ])  # fmt: skip
        self.assertEqual(rows[1][3], '"""lux"", as %s"')
        self.assertIn("samples 3 to 9 of epoch 0000000000000001 and 4 of earlier epochs: overwritten", rows[-2][3])
        self.assertEqual(list(verify_logs(self.logs, self.store)), [])
        self.assert_next_run_adds_nothing()

    def test_more_samples_than_are_written_at_once(self):
        file(self.store, batch(1, 2500), batch(1, 1000, node="b"), batch(1, 1, node="c"))
        lights = [row.split(",") for row in self.write_log().splitlines() if ",light," in row]
        expected = [(node, str(seq % 1024)) for node, count in (("a", 2500), ("b", 1000), ("c", 1))
                    for seq in range(1, count + 1)]  # fmt: skip
        self.assertEqual([(row[1], row[3]) for row in lights], expected)
        self.assertEqual(list(verify_logs(self.logs, self.store)), [])
        self.assert_next_run_adds_nothing()

    def test_nothing_that_is_stored_is_owed_to_the_log_any_more(self):
        self.store.unlogged = frozenset({file(self.store, batch(1, 50))})
        file(self.store, log=LogMark("one that is gone.csv", 1, 0, 1))
        size = len(self.write_log().encode())
        mark = self.store.log_mark()
        self.assertEqual((mark.name, mark.size), (self.name, size))
        self.assertEqual(list(self.store.logged_after(mark.filed)), [])
        file(self.store, batch(51, 51))
        (owed,) = self.store.logged_after(mark.filed)
        self.assertEqual([sample.seq for sample in owed.items[0]], [51])

    def test_a_log_of_that_name_is_not_overwritten(self):
        os.makedirs(self.logs)
        with open(os.path.join(self.logs, self.name), "w") as log:
            log.write("mine")
        file(self.store, batch(1, 2))
        with self.assertRaises(FileExistsError):
            self.write_log()
        with open(os.path.join(self.logs, self.name)) as log:
            self.assertEqual(log.read(), "mine")
        self.assertIsNone(self.store.log_mark())


if __name__ == "__main__":
    unittest.main()
