"""Tests of the comparison of CSV logs with the store, and of the creation of a log from the store."""

import os
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.core.clock import FakeClock, parse_rfc3339
from pigeonpost.storage.csv import format, verify
from pigeonpost.storage.csv.checksums import faults, log_sizes, read_sums
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
    def test_first_and_last_day_of_rfc_3339_can_be_read_in_any_zone(self):
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
        """Change this run's log by hand: replace the first `old` by `new`."""
        content = self.content()
        self.assertIn(old, content)
        self.write(content.replace(old, new, 1))

    def crashed(self):
        """Simulate a crash, then open the store without starting a new log."""
        self.crash()
        self.store = self.open_store()
        self.addCleanup(self.store.close)


class Verification(LogFileCase):
    def setUp(self):
        super().setUp()
        self.commit(batch(1, 20), gap(21, 30, before=3, why='a "long", gap'), batch(31, 40, units=UNITS))
        self.commit(batch(1, 5, node="b", epoch=E2, temperature=None, errors={"temperature": "no response"}))
        self.log.record()

    def test_logs_with_the_stored_data_have_no_faults(self):
        self.assertEqual(self.faults(), [])

    def test_reason_of_a_gap_with_line_ends_is_no_fault(self):
        self.commit(gap(41, 41, why='one,\ntwo\r\n"three"\n'), batch(42, 42))
        self.log.record()
        self.assertEqual(self.faults(), [])
        self.replace(b"two\r", b'two"\r')
        self.assertIn("torn row", self.faults()[0])

    def test_logs_of_several_runs_are_counted_together(self):
        self.log.close()
        self.store.close()
        self.open()
        self.commit(batch(41, 45))
        self.log.record()
        self.assertEqual(len(self.names()), 2)
        self.assertEqual(self.faults(), [])

    def test_missing_log_is_reported(self):
        os.unlink(self.path())
        expected = "the logs contain 0 readings and the store 70; they differ (was a log changed?)"
        self.assertEqual(self.faults(), [expected, "the logs contain 0 gaps and the store 1"])

    def test_files_with_other_names_are_left_out(self):
        rows = self.content()
        self.write(rows, "sensorlog_010120_0000 (copy).csv")
        self.write(b"name;value\n1;2\n", "export.csv")
        self.write(b"\xff\xfe\0t", "notes.csv")
        os.mkdir(self.path("old.csv"))
        os.symlink("/mnt/away/log.csv", self.path("elsewhere.csv"))
        self.assertEqual(self.faults(), [])
        self.replace(b",light,1,", b",light,9,")
        self.assertEqual(len(self.faults()), 1)

    def test_renamed_log_is_counted(self):
        name = self.log.name
        self.log.close()
        os.rename(self.path(name), self.path("november.csv"))
        self.assertEqual(self.faults(), [])

    def test_log_that_cannot_be_read_is_reported_by_its_name(self):
        os.symlink("/mnt/away/log.csv", self.path("sensorlog_010120_0000.csv"))
        os.mkdir(self.path("sensorlog_010120_0000_2.csv"))
        self.assertEqual(self.faults(), [
            "sensorlog_010120_0000.csv: this log cannot be read: No such file or directory",
            "sensorlog_010120_0000_2.csv: this log cannot be read: Is a directory",
        ])  # fmt: skip

    def test_sizes_are_those_of_the_logs_of_the_server(self):
        self.write(b"mine\n", "export.csv")
        os.symlink("/mnt/away/log.csv", self.path("sensorlog_010120_0000.csv"))
        self.assertEqual(log_sizes(os.path.dirname(self.path())), {self.log.name: len(self.content())})

    def test_empty_store_without_logs_has_no_faults(self):
        self.assertEqual(list(verify_logs(os.path.join(temp_folder(self), "logs"), MemoryStore())), [])

    def test_changed_value_is_reported(self):
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
                self.assertIn("the logs contain 70 readings and the store 70; they differ", fault)
                self.write(whole)

    def test_changed_time_is_reported(self):
        when, other = local_time(1_795_000_006_000), local_time(1_795_000_006_001)
        self.replace(when.encode(), other.encode())
        (fault,) = self.faults()
        self.assertIn("they differ", fault)

    def test_same_time_in_another_zone_is_no_fault(self):
        row = self.content().splitlines(keepends=True)[1]
        when = self.rows()[0][0].encode()
        self.assertTrue(row.startswith(when))
        self.replace(row, row.replace(when, b"2026-11-18T13:06:41.000+02:00"))
        self.assertEqual(self.faults(), [])

    def test_missing_and_repeated_rows_are_reported(self):
        whole = self.content()
        row = whole.splitlines(keepends=True)[3]
        self.replace(row, b"")
        self.assertIn("the logs contain 69 readings and the store 70", self.faults()[0])
        self.write(whole + row)
        self.assertIn("the logs contain 71 readings and the store 70", self.faults()[0])

    def test_missing_gap_is_reported(self):
        (row,) = [row for row in self.content().splitlines(keepends=True) if b",gap," in row]
        self.replace(row, b"")
        self.assertEqual(self.faults(), ["the logs contain 0 gaps and the store 1"])

    def test_torn_row_of_a_gap_is_shown(self):
        whole = self.content()
        (row,) = [row for row in whole.splitlines(keepends=True) if b",gap," in row]
        for length in (len(row) - 1, row.index(b"samples ") + 9):
            with self.subTest(length):
                self.write(whole.replace(row, b"") + row[:length])
                torn, count = self.faults()
                self.assertEqual(torn, f"{self.log.name}: a torn row: {row[:length].decode().strip()[:60]!r}")
                self.assertEqual(count, "the logs contain 0 gaps and the store 1")

    def test_torn_and_invalid_rows_are_shown(self):
        whole, name = self.content(), self.log.name
        for text, shown in (
            (b"my own note\n", "'my own note'"),
            (b"2026-11-20T16:36:10.123+01:00,a,light,7", "'2026-11-20T16:36:10.123+01:00,a,light,7'"),
            (b"2026-11-20T16:36:10.123+01:00,a,light,7,l", "'2026-11-20T16:36:10.123+01:00,a,light,7,l'"),
            (b"yesterday,a,light,7,\n", "'yesterday,a,light,7,'"),
            (b"2026-11-20T16:36:10.123+01:00,a,\xff,7,\n", "'2026-11-20T16:36:10.123+01:00,a,\ufffd,7,'"),
            (b"x" * 200_000 + b"\n", repr("x" * 60)),
            (b'"' + b"x" * 200_000 + b"\n", repr('"' + "x" * 59)),  # longer than the longest cell of Python's reader
            (b"\0" * 100 + b"\n", repr("\0" * 60)),
        ):
            with self.subTest(text[:20]):
                self.write(whole + text)
                self.assertEqual(self.faults(), [f"{name}: a torn row: {shown}"])

    def test_header_within_a_log_is_no_fault(self):
        self.write(self.content() + HEADER.encode())
        self.assertEqual(self.faults(), [])

    def test_sensor_named_gap_is_compared_like_any_other(self):
        with_gap = batch(41, 42)
        with_gap.samples.values["gap"] = [10.25, 10.5]
        self.commit(with_gap)
        self.log.record()
        self.assertEqual(self.faults(), [])
        self.replace(b",a,gap,10.25,", b",a,gap,10.75,")
        self.assertEqual(len(self.faults()), 1)


class VerificationByLines(LogFileCase):
    def test_identical_lines_are_not_parsed(self):
        self.commit(batch(1, 5), gap(6, 8), batch(9, 12))
        self.log.record()
        self.commit(gap(13, 14), batch(15, 20))
        self.crashed()  # so that the log lacks rows
        with mock.patch.object(verify, "_compare_meanings", side_effect=AssertionError):
            self.assertEqual(self.faults(), [])
            with open(self.path(), "r+b") as log:
                log.truncate(self.store.log_mark().size)
            self.assertEqual(self.faults(), [])


class VerificationAfterACrash(LogFileCase):
    """Tests that rows which a crash kept out of the last log are no faults, because the next start writes them."""

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

    def test_log_may_end_anywhere_after_its_recorded_length(self):
        self.assertLess(self.recorded, len(self.whole) - 400)
        self.crashed()
        for size in range(self.recorded, len(self.whole) + 1, 7):
            self.write(self.whole[:size])
            self.assertEqual(self.faults(), [], size)

    def test_rows_in_another_time_zone_are_no_faults(self):
        self.crashed()
        self.addCleanup(format._minutes.clear)
        set_zone(self, "Asia/Kathmandu")
        format._minutes.clear()
        self.assertEqual(self.faults(), [])

    def test_zeros_after_the_recorded_length_are_no_faults(self):
        self.crashed()
        for zeros in (1, 100, len(self.whole) - self.recorded):
            self.write(self.whole[: len(self.whole) - zeros] + bytes(zeros))
            self.assertEqual(self.faults(), [], zeros)

    def test_next_start_completes_the_log(self):
        self.write(self.whole[: self.recorded + 40])
        self.crashed()
        self.assertEqual(self.faults(), [])
        self.store.close()
        self.open()
        self.assertEqual(self.faults(), [])
        self.assertEqual(self.all_lights(), [1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13])

    def test_log_shorter_than_its_recorded_length_is_reported(self):
        self.crashed()
        *_, last = self.whole[: self.recorded].splitlines(keepends=True)  # the gap
        self.write(self.whole[: self.recorded - len(last)])
        self.assertEqual(self.faults(), [
            "the logs contain 10 readings and the store 22; they differ (was a log changed?)",
            "the logs contain 0 gaps and the store 2",
        ])  # fmt: skip

    def test_note_after_the_recorded_length_is_reported(self):
        self.crashed()
        self.write(self.whole[: self.recorded] + b"my own note\n")
        self.assertEqual(self.faults(), [
            f"{self.log.name}: a torn row: 'my own note'",
            "the logs contain 10 readings and the store 22; they differ (was a log changed?)",
            "the logs contain 1 gap and the store 2",
        ])  # fmt: skip

    def test_log_without_recorded_rows_may_be_missing(self):
        self.crashed()
        self.store.close()
        self.open()  # a new log, with only its header recorded
        file(self.store, batch(14, 15))
        self.crashed()
        os.unlink(self.path())
        self.assertEqual(self.faults(), [])


class VerificationAfterExpiry(LogFileCase):
    """Tests of logs that still contain samples which expired in the store."""

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
        self.commit(batch(1, 2, node="b", time_ms=first_ms))  # arrives late
        self.log.record()

    def test_expired_samples_in_logs_are_no_faults(self):
        self.assertEqual(self.store.nodes()[0]["forgotten"], 3)
        self.assertEqual(self.faults(), [])

    def test_remaining_samples_are_compared(self):
        self.replace(b",a,light,5,", b",a,light,6,")
        self.assertEqual(len(self.faults()), 1)

    def test_expiry_of_each_node_is_taken_into_account(self):
        self.replace(b",b,light,1,", b",b,light,3,")
        self.assertEqual(len(self.faults()), 1)


class NewLog(unittest.TestCase):
    """Tests of a log of all stored data, for a database without its logs."""

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
        """Assert that the next server accepts the log as complete, and that its own log is empty."""
        log = CsvLog(self.folder, self.store, self.clock)
        self.addCleanup(log.close)
        with self.assertNoLogs("csvbuffer", "WARNING"):
            log.start()
        self.assertNotEqual(log.name, self.name)
        with open(log.whole()[0], encoding="utf-8") as file:
            self.assertEqual(file.read(), HEADER)

    def test_log_of_an_empty_store_is_a_header(self):
        self.assertEqual(self.write_log(), HEADER)
        self.assertEqual(list(verify_logs(self.logs, self.store)), [])

    def test_checksum_of_a_new_log_detects_changes(self):
        file(self.store, batch(1, 2))
        written = self.write_log()
        self.assertEqual(list(read_sums(self.logs)), [self.name])
        self.assertEqual(list(faults(self.logs)), [])
        self.assert_next_run_adds_nothing()
        self.assertEqual(list(faults(self.logs)), [])
        with open(os.path.join(self.logs, self.name), "w", encoding="utf-8") as log:
            log.write(written.replace(",1,", ",3,"))
        self.assertRegex(next(iter(faults(self.logs))), f"{self.name}: changed since it was closed")

    def test_new_log_contains_all_stored_data_node_by_node(self):
        for one in (batch(1, 2, units=UNITS), gap(3, 9, before=4), batch(10, 10)):
            file(self.store, one)
        file(self.store, batch(1, 2, node="b", temperature=None, errors={"temperature": "no response"}))
        file(self.store, gap(11, 12, why="damaged"), batch(1, 1, epoch=E2, time_ms=1_795_000_000_000))
        rows = [row.split(",", 4)[1:] for row in self.write_log().splitlines()[1:]]
        self.assertEqual([(node, sensor, value) for node, sensor, value, _ in rows], [
            ("a", "temperature", "20.5"), ("a", "light", "1"),  # the second epoch has the oldest sample
            ("a", "temperature", "20.5"), ("a", "light", "1"), ("a", "temperature", "20.5"), ("a", "light", "2"),
            ("a", "temperature", "20.5"), ("a", "light", "10"),
            ("b", "temperature", ""), ("b", "light", "1"), ("b", "temperature", ""), ("b", "light", "2"),
            ("a", "gap", "11"), ("a", "gap", "2"),
        ])  # fmt: skip
        self.assertEqual(rows[1][3], '"""lux"", as %s"')
        self.assertIn("samples 3 to 9 of epoch 0000000000000001 and 4 of earlier epochs: overwritten", rows[-2][3])
        self.assertEqual(list(verify_logs(self.logs, self.store)), [])
        self.assert_next_run_adds_nothing()

    def test_new_log_of_many_samples_is_complete(self):
        file(self.store, batch(1, 2500), batch(1, 1000, node="b"), batch(1, 1, node="c"))
        lights = [row.split(",") for row in self.write_log().splitlines() if ",light," in row]
        expected = [(node, str(seq % 1024)) for node, count in (("a", 2500), ("b", 1000), ("c", 1))
                    for seq in range(1, count + 1)]  # fmt: skip
        self.assertEqual([(row[1], row[3]) for row in lights], expected)
        self.assertEqual(list(verify_logs(self.logs, self.store)), [])
        self.assert_next_run_adds_nothing()

    def test_no_rows_are_missing_after_a_new_log(self):
        self.store.unlogged = frozenset({file(self.store, batch(1, 50))})
        file(self.store, log=LogMark("deleted.csv", 1, 0, 1))
        size = len(self.write_log().encode())
        mark = self.store.log_mark()
        self.assertEqual((mark.name, mark.size), (self.name, size))
        self.assertEqual(list(self.store.logged_after(mark.filed)), [])
        file(self.store, batch(51, 51))
        (owed,) = self.store.logged_after(mark.filed)
        self.assertEqual([sample.seq for sample in owed.items[0]], [51])

    def test_existing_log_is_not_overwritten(self):
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
