"""Limits of the CSV logs: closing of long logs, and deletion of the oldest ones, also with crashes in between."""

import json
import os
import random
import threading
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.core.errors import DiskError
from pigeonpost.server import backup
from pigeonpost.server.backup_file import make_backup_file
from pigeonpost.storage.csv import checksums, retention
from pigeonpost.storage.csv.checksums import faults, logs_in, read_sums
from pigeonpost.storage.csv.retention import LogLimits, read_removed
from pigeonpost.storage.csv.verify import verify_logs
from tests.page_support import use_memory_disk
from tests.storage.test_contract import E2, batch, gap
from tests.support import LIMIT_S, temp_folder, wait_until
from tests.test_csvbuffer import LogCase

MIB = 1 << 20


def setUpModule():
    use_memory_disk()


class LimitedLogCase(LogCase):
    LIMITS = LogLimits(days=8)  # a log is closed after one day
    is_damaged = False

    def setUp(self):
        self.enterContext(mock.patch.object(retention, "_LEAST_BYTES", 2000))
        self.seq = 0
        super().setUp()

    def open(self):
        self.store = self.open_store()
        self.addCleanup(self.store.close)
        self.log = CsvLog(self.folder, self.store, self.clock, self.LIMITS, lambda: not self.is_damaged)
        self.addCleanup(self.log.close)
        with mock.patch.object(self.log._retention, "start"):  # the tests call delete_oldest
            self.log.start()

    def add(self, count=10):
        self.commit(batch(self.seq + 1, self.seq + count))
        self.seq += count

    def delete_oldest(self):
        self.log._retention.delete_oldest()

    def day(self):
        """Add samples, and let a day pass; the logs' times follow the clock."""
        self.add()
        self.age()
        self.clock.sleep(86_400)
        self.add()  # closes the log, and begins the next one
        self.add()

    def age(self):
        """Set the time of this run's log to the time of the test's clock."""
        now_s = self.clock.wall_ms() / 1000
        os.utime(self.path(), (now_s, now_s))

    def faults(self):
        folder = os.path.join(self.folder, "logs")
        return [*faults(folder), *verify_logs(folder, self.store)]

    def restart(self):
        self.log.record()
        self.log.close()
        self.store.close()
        self.clock.sleep(60)
        self.open()


class PartTest(LimitedLogCase):
    def test_log_is_closed_after_its_part_of_the_time(self):
        for days, hours in ((1, 3), (0.1, 1), (8, 24), (365, 24), (0.5, 1.5)):
            with self.subTest(days=days):
                limits = LogLimits(days=days)
                self.assertFalse(limits.is_part_full(10**12, hours * 3600 - 1))
                self.assertTrue(limits.is_part_full(50, hours * 3600))

    def test_log_is_closed_at_its_part_of_the_size(self):
        with mock.patch.object(retention, "_LEAST_BYTES", MIB):
            for mib, length in ((1, MIB), (8, MIB), (80, 10 * MIB), (1000, 125 * MIB), (0.1, MIB)):
                with self.subTest(mib=mib):
                    limits = LogLimits(mib=mib)
                    self.assertFalse(limits.is_part_full(length - 1, 1e9))
                    self.assertTrue(limits.is_part_full(length, 0))

    def test_log_without_limits_is_never_closed(self):
        self.assertFalse(LogLimits().is_part_full(10**12, 10**12))

    def test_rows_of_several_logs_are_complete_and_in_order(self):
        for _ in range(4):
            self.day()
        self.assertEqual(len(self.names()), 5)
        self.assertEqual(self.all_lights(), list(range(1, self.seq + 1)))
        self.log.record()
        closed = set(self.names()) - {self.log.name}
        self.assertEqual(set(read_sums(os.path.join(self.folder, "logs"))), closed)
        self.assertEqual(self.faults(), [])

    def test_no_log_is_closed_while_it_has_no_rows(self):
        for _ in range(3):
            self.clock.sleep(86_400)
            self.commit()
        self.assertEqual(len(self.names()), 1)

    def test_failed_sync_at_the_end_of_a_log_loses_no_row(self):
        self.add()
        self.clock.sleep(86_400)
        with (
            mock.patch("csvbuffer.os.fsync", side_effect=OSError(5, "Input/output error")),
            self.assertLogs("csvbuffer", "ERROR"),
        ):
            self.add()
        self.add()
        self.clock.sleep(60)
        self.add()
        self.assertEqual(self.all_lights(), list(range(1, self.seq + 1)))

    def test_log_is_not_sealed_while_the_next_one_cannot_be_created(self):
        self.add()
        self.clock.sleep(86_400)
        with (
            mock.patch.object(self.log, "_begin", side_effect=OSError(28, "No space left on device")),
            self.assertLogs("csvbuffer", "ERROR"),
        ):
            self.add()
        self.add()
        self.log.record()
        self.assertEqual((self.faults(), self.all_lights()), ([], list(range(1, self.seq + 1))))


class DeletionTest(LimitedLogCase):
    def test_logs_older_than_the_limit_are_deleted(self):
        for day in range(1, 15):
            self.day()
            self.delete_oldest()
            self.assertEqual(len(self.names()), min(day, 8) + 1)
        self.assertEqual(read_removed(os.path.join(self.folder, "logs")).logs, 6)
        self.log.record()
        self.assertEqual(self.faults(), [])

    def test_oldest_logs_are_deleted_above_the_size(self):
        self.log._retention.limits = LogLimits(mib=16_000 / MIB)  # a log is closed at 2,000 bytes
        for k in range(60):
            self.add()
            os.utime(self.path(), (k, k))
            self.delete_oldest()
            sizes = [os.path.getsize(self.path(name)) for name in self.names()]
            self.assertLessEqual(sum(sizes), 16_000)
        self.assertGreater(read_removed(os.path.join(self.folder, "logs")).logs, 5)
        self.log.record()
        self.assertEqual(max(self.all_lights()), self.seq)  # a new log may have the name of a deleted one
        self.assertEqual(self.faults(), [])

    def test_gaps_renamed_nodes_and_restarts_are_verified(self):
        self.commit(gap(1, 3, before=2, node="b", epoch=E2), batch(4, 9, node="b", epoch=E2))
        for _ in range(10):
            self.day()
            self.restart()
            self.delete_oldest()
        self.log.record()
        self.assertEqual(self.faults(), [])
        with self.store.writing(()):
            self.store.rename("a", "attic", self.clock.wall_ms())
        self.assertEqual(self.faults(), [])

    def test_lost_rows_of_remaining_logs_are_found(self):
        for _ in range(10):
            self.day()
        self.delete_oldest()
        self.log.record()
        for name in (self.names()[0], self.log.name):
            with self.subTest(name=name), open(self.path(name), "rb") as file:
                content = file.read()
            with open(self.path(name), "wb") as file:
                file.write(b"".join(content.splitlines(keepends=True)[:-2]))
            self.assertTrue(list(verify_logs(os.path.join(self.folder, "logs"), self.store)))
            with open(self.path(name), "wb") as file:
                file.write(content)
        self.assertEqual(self.faults(), [])


class ThreadTest(LimitedLogCase):
    def test_thread_deletes_logs_and_stops(self):
        for _ in range(12):
            self.day()
        self.enterContext(mock.patch.object(retention, "_FIRST_S", 0.0))
        self.log._retention.start()
        wait_until(lambda: len(self.names()) == 9, "the old logs are deleted")
        self.log._retention.stop(LIMIT_S)
        self.assertNotIn("log limits", [thread.name for thread in threading.enumerate()])

    def test_thread_is_not_started_without_limits(self):
        self.log._retention.limits = LogLimits()
        self.log._retention.start()
        self.assertNotIn("log limits", [thread.name for thread in threading.enumerate()])
        self.log._retention.stop()


class ProtectionTest(LimitedLogCase):
    def old_logs(self):
        for _ in range(12):
            self.day()
        return [name for name in self.names() if name != self.log.name]

    def test_changed_log_is_left_alone_and_reported(self):
        name = self.old_logs()[0]
        with open(self.path(name), "ab") as file:
            file.write(b"a remark\n")
        os.utime(self.path(name), (0, 0))
        with self.assertLogs("pigeonpost.storage.csv.retention", "WARNING") as logged:
            self.delete_oldest()
            self.delete_oldest()
        self.assertEqual(len([one for one in logged.records if "has changed" in one.getMessage()]), 1)
        self.assertIn(name, self.names())
        self.assertGreater(read_removed(os.path.join(self.folder, "logs")).logs, 1)

    def test_files_with_other_names_are_kept(self):
        self.old_logs()
        for name in ("notes.csv", "sensorlog_now.csv", "sensorlog_010101_0000.csv.bak", "SHA256SUMS", "sensorlog.csv"):
            path = self.path(name)
            if name != "SHA256SUMS":
                with open(path, "wb") as file:
                    file.write(b"mine\n")
            os.utime(path, (0, 0))
        self.delete_oldest()
        self.assertLessEqual({"notes.csv", "sensorlog_now.csv", "sensorlog.csv"}, set(self.names()))

    def test_files_with_other_names_do_not_count_for_the_limit(self):
        before = self.old_logs()
        self.log._retention.limits = LogLimits(mib=1)
        for name in ("export.csv", "sensorlog (copy).csv", "sensorlog_now.csv"):
            with open(self.path(name), "wb") as file:
                file.truncate(2 * MIB)
        self.delete_oldest()
        self.assertLessEqual(set(before), set(self.names()))

    def test_files_with_other_names_get_no_checksum(self):
        self.old_logs()
        for name in ("export.csv", "sensorlog_now.csv"):
            with open(self.path(name), "wb") as file:
                file.write(b"mine\n")
        self.restart()
        self.log._sums._thread and self.log._sums._thread.join(10)
        self.assertFalse({"export.csv", "sensorlog_now.csv"} & set(read_sums(os.path.join(self.folder, "logs"))))

    def test_link_to_a_missing_file_does_not_prevent_deletions(self):
        name = self.old_logs()[5]
        os.unlink(self.path(name))
        os.symlink("/mnt/away/log.csv", self.path(name))
        self.delete_oldest()
        self.assertGreater(read_removed(os.path.join(self.folder, "logs")).logs, 1)
        self.assertIn(name, self.names())

    def test_log_that_cannot_be_deleted_is_a_fault_until_it_is_deleted(self):
        name = self.old_logs()[0]
        for code, words in ((1, "Operation not permitted"), (30, "Read-only file system"), (5, "Input/output error")):
            error = OSError(code, words, self.path(name))
            with self.subTest(words=words), mock.patch.object(retention.os, "unlink", side_effect=error):
                self.log._retention.delete_and_report()
                self.assertRegex(self.log.limits_fault, f"{name}: {words}; .*tries again")
        for text in ("removed.json: No space left on device", "removed.json: Read-only file system"):
            with mock.patch.object(retention, "replace_file", side_effect=DiskError(text)):
                self.clock.sleep(86_400)
                self.log._retention.delete_and_report()
            self.assertIn(f"not deleted: {text}; ", self.log.limits_fault)
        self.log._retention.delete_and_report()
        self.assertEqual(self.log.limits_fault, "")
        with open(self.path("removed.json"), "wb") as file:
            file.write(b"{")
        self.log._retention.delete_and_report()
        self.assertIn("removed.json is damaged", self.log.limits_fault)

    def test_log_is_kept_while_its_checksum_cannot_be_removed(self):
        before = self.old_logs()
        error = DiskError("SHA256SUMS: No space left on device")
        with (
            mock.patch.object(checksums, "replace_file", side_effect=error),
            self.assertLogs("pigeonpost.storage.csv.checksums", "WARNING"),
        ):
            for _ in range(2):
                self.log._retention.delete_and_report()
                self.assertIn("SHA256SUMS", self.log.limits_fault)
        self.assertLessEqual(set(before), set(self.names()))
        self.log.record()
        self.assertEqual(self.faults(), [])
        self.log._retention.delete_and_report()
        self.assertFalse(set(before) <= set(self.names()))
        self.assertEqual((self.log.limits_fault, self.faults()), ("", []))

    def test_damaged_database_prevents_any_deletion(self):
        before = self.old_logs()
        self.is_damaged = True
        self.delete_oldest()
        self.assertEqual([name for name in self.names() if name != self.log.name], before)

    def test_log_without_a_checksum_is_kept(self):
        name = self.old_logs()[0]
        self.log._sums.unseal(name)
        self.delete_oldest()
        self.assertIn(name, self.names())

    def test_log_that_the_store_has_recorded_is_kept(self):
        self.day()
        self.clock.sleep(86_400)
        self.add()  # begins a log that is not recorded yet
        recorded = self.log._recorded.name
        self.assertNotEqual(recorded, self.log.name)
        self.clock.sleep(30 * 86_400)
        for name in self.names():
            os.utime(self.path(name), (0, 0))
        self.delete_oldest()
        self.assertLessEqual({recorded, self.log.name}, set(self.names()))


class CrashTest(LimitedLogCase):
    class Killed(BaseException):
        pass

    def test_kill_at_each_step_of_a_deletion_counts_each_line_once(self):
        for call in ("replace_file", "LogChecksums.unseal", "os.unlink", "sync_folder"):
            with self.subTest(call=call):
                for _ in range(10):
                    self.day()
                self.log.record()
                with (
                    mock.patch.object(*self.place(call), side_effect=self.Killed),
                    self.assertRaises(self.Killed),
                ):
                    self.delete_oldest()
                self.assertEqual(self.faults(), [])
                self.delete_oldest()
                self.assertEqual(self.faults(), [])
                removed = read_removed(os.path.join(self.folder, "logs"))
                self.assertNotIn(removed.name, self.names())

    def place(self, call):
        owner, _, name = call.rpartition(".")
        return {"LogChecksums": retention.LogChecksums, "os": retention.os, "": retention}[owner], name

    def test_crashes_and_restarts_at_random_lose_and_repeat_no_row(self):
        chance = random.Random(16)
        for _ in range(60):
            self.add(chance.randint(1, 20))
            step = chance.randrange(6)
            if step == 0:
                self.crash()
                self.open()
            elif step == 1:
                self.restart()
            elif step <= 4:
                self.age()
                self.clock.sleep(chance.choice((30, 40_000, 86_400)))
            else:
                self.delete_oldest()
        self.log.record()
        self.assertEqual(self.faults(), [])
        lights = self.all_lights()
        self.assertEqual(len(lights), len(set(lights)))

    def test_damaged_record_is_reported_and_deletes_nothing(self):
        for _ in range(12):
            self.day()
        self.delete_oldest()
        before = self.names()
        for content in (b"", b"{", b"[]", b'{"logs": "1"}', b'{"other": 1}'):
            with self.subTest(content=content):
                with open(self.path("removed.json"), "wb") as file:
                    file.write(content)
                self.assertRaisesRegex(ValueError, "removed.json is damaged", self.delete_oldest)
                self.assertIn("removed.json is damaged", self.faults()[0])
        self.assertEqual(self.names(), before)


class BackupTest(LimitedLogCase):
    def test_backup_contains_all_logs_and_the_record(self):
        for _ in range(12):
            self.day()
        self.delete_oldest()
        self.log.record()
        target, place = os.path.join(temp_folder(self), "b.tar"), temp_folder(self)
        make_backup_file(self.folder, target, "staging", lambda *_: None)
        backup.unpack(target, place, lambda *_: None)
        self.assertEqual(sorted(logs_in(os.path.join(place, "logs"))), sorted(self.names()))
        self.assertEqual(list(verify_logs(os.path.join(place, "logs"), self.store)), [])

    def test_log_that_is_deleted_during_the_backup_is_counted_once(self):
        for _ in range(12):
            self.day()
        self.log.record()
        target, place = os.path.join(temp_folder(self), "b.tar"), temp_folder(self)
        pack, packed = backup.pack, []

        def slow_pack(*arguments):
            pack(*arguments)
            if not packed:
                self.delete_oldest()
            packed.append(1)

        with mock.patch.object(backup, "pack", slow_pack):
            make_backup_file(self.folder, target, "staging", lambda *_: None)
        self.assertEqual(len(packed), 2)
        backup.unpack(target, place, lambda *_: None)
        self.assertEqual(list(verify_logs(os.path.join(place, "logs"), self.store)), [])
        with open(os.path.join(place, "logs", "removed.json"), encoding="utf-8") as file:
            self.assertGreater(json.load(file)["logs"], 0)


if __name__ == "__main__":
    unittest.main()
