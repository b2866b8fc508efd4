"""Scheduled backups: one per day, checked, only the newest ones kept. A failure is a fault with its remedy."""

import argparse
import errno
import json
import os
import stat
import threading
import time
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.tokens import Tokens
from pigeonpost.auth.users import Users
from pigeonpost.core.clock import FakeClock, parse_rfc3339
from pigeonpost.core.config import load
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.server import scheduled_backup
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.scheduled_backup import RETRY_S, ScheduledBackup, make_scheduled_backup
from pigeonpost.settings import SERVER, SERVER_ARRAYS
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.page_support import control_here, set_zone, use_memory_disk
from tests.storage.test_contract import batch
from tests.support import LIMIT_S, temp_folder, wait_until


def setUpModule():
    use_memory_disk()


def at(text):
    return parse_rfc3339(text)


class BackupCase(unittest.TestCase):
    def setUp(self):
        set_zone(self, "Europe/Vienna")
        self.enterContext(mock.patch("pigeonpost.core.faults.log"))  # its log lines contain each fault
        self.data, self.place = temp_folder(self), temp_folder(self)
        self.clock = FakeClock(wall_ms=at("2026-11-20T15:36:10Z"))
        self.faults = Faults()
        self.fill(batch(1, 5))
        self.backups = self.make()

    def fill(self, *batches):
        store = SqliteStore(self.data)
        csv = CsvLog(self.data, store, self.clock)
        ingestor = Ingestor(store, csv, self.clock, commit_s=0.0)
        csv.start()
        ingestor.start()
        for one in batches:
            ingestor.submit(one._replace(on_committed=lambda epoch, seq: None))
        ingestor.stop(LIMIT_S)
        csv.close()
        store.close()

    def make(self, time_of_day="03:00", keep=3, folder=None):
        return ScheduledBackup(self.data, "house", folder or self.place, time_of_day, keep, self.faults, self.clock)

    def now(self, text):
        self.clock.sleep((at(text) - self.clock.wall_ms()) / 1000)

    def names(self):
        return sorted(os.listdir(self.place))

    def fault(self):
        return self.faults.present().get("backup", "")


class ScheduleTest(BackupCase):
    def test_first_backup_is_made_immediately_and_then_one_per_day(self):
        self.backups.make_if_due()
        self.assertEqual(self.names(), ["pigeonpost-backup-house-2026-11-20T153610Z.tar"])
        self.now("2026-11-21T01:59:00Z")
        self.backups.make_if_due()
        self.assertEqual(len(self.names()), 1)
        self.now("2026-11-21T02:00:01Z")  # 03:00:01 in Vienna
        self.backups.make_if_due()
        self.backups.make_if_due()
        self.assertEqual(self.names()[1:], ["pigeonpost-backup-house-2026-11-21T020001Z.tar"])

    def test_missed_backup_is_made_at_the_next_start(self):
        self.backups.make_if_due()
        self.now("2026-11-23T11:00:00Z")
        self.make().make_if_due()
        self.assertEqual(len(self.names()), 2)

    def test_days_of_daylight_saving_changes_have_one_backup(self):
        """02:30 does not exist on 29 March, and exists twice on 25 October."""
        for first, days in (("2026-03-27T12:00:00Z", 4), ("2026-10-23T12:00:00Z", 4)):
            with self.subTest(first=first):
                self.clock = FakeClock(wall_ms=at(first))
                backups = self.make("02:30")
                due = set()
                for _ in range(days * 24 * 12):
                    due.add(backups.schedule.last_due_ms(self.clock.wall_ms()))
                    self.clock.sleep(300.0)
                self.assertEqual(len(due), days + 1)
                dates = {time.localtime(ms / 1000)[:3] for ms in due}
                self.assertEqual(len(dates), days + 1)

    def test_newest_backups_are_kept_and_other_files_are_not_deleted(self):
        others = ["pigeonpost-2026-11-20_030000.tar", "pigeonpost-backup-attic-2026-01-01T000000Z.tar",
                  "pigeonpost-backup-house-2026-13-01T000000Z.tar", "photo.jpg"]  # fmt: skip
        for name in others:
            with open(os.path.join(self.place, name), "w", encoding="utf-8"):
                pass
        for day in range(20, 26):
            self.now(f"2026-11-{day}T16:00:00Z")
            self.backups.make_if_due()
        made = [name for name in self.names() if name not in others]
        self.assertEqual(made, [f"pigeonpost-backup-house-2026-11-{day}T160000Z.tar" for day in (23, 24, 25)])
        self.assertEqual(set(others) - set(self.names()), set())

    def test_no_backup_is_made_before_the_clock_is_set(self):
        self.clock.known = False
        self.backups.make_if_due()
        self.assertEqual(self.names(), [])

    def test_file_with_a_future_time_does_not_prevent_a_backup(self):
        with open(os.path.join(self.place, "pigeonpost-backup-house-2037-01-01T000000Z.tar"), "w", encoding="utf-8"):
            pass
        self.backups.make_if_due()
        self.assertEqual(len(self.names()), 2)

    def test_backups_with_a_future_time_are_deleted_first_but_never_the_new_one(self):
        for year in (2035, 2036, 2037):
            path = os.path.join(self.place, f"pigeonpost-backup-house-{year}-01-01T000000Z.tar")
            with open(path, "w", encoding="utf-8"):
                pass
        self.make(keep=2).make_if_due()
        made = "pigeonpost-backup-house-2026-11-20T153610Z.tar"
        self.assertEqual(self.names(), [made, "pigeonpost-backup-house-2037-01-01T000000Z.tar"])
        self.make(keep=1).make_if_due()  # one of today exists
        self.now("2026-11-21T12:00:00Z")
        self.make(keep=1).make_if_due()
        self.assertEqual(self.names(), ["pigeonpost-backup-house-2026-11-21T120000Z.tar"])

    def test_backup_that_cannot_be_deleted_is_named_in_the_fault(self):
        self.backups = self.make(keep=1)
        self.backups.make_if_due()
        self.now("2026-11-21T12:00:00Z")
        real = os.unlink

        def unlink(path, **more):
            if str(path).endswith("Z.tar"):
                raise PermissionError(errno.EPERM, "Operation not permitted")
            real(path, **more)

        with mock.patch.object(os, "unlink", unlink):
            self.backups.make_if_due()
        self.assertIn("a backup was made, but an older one cannot be deleted", self.fault())
        self.assertEqual(len(self.names()), 2)
        self.now("2026-11-22T12:00:00Z")
        self.backups.make_if_due()
        self.assertEqual((len(self.names()), self.fault()), (1, ""))

    def test_thread_makes_a_backup_and_stops(self):
        with mock.patch.object(scheduled_backup, "FIRST_S", 0.01), mock.patch.object(scheduled_backup, "LOOK_S", 0.01):
            backups = self.make()
            with self.assertLogs("pigeonpost.server.scheduled_backup", "WARNING") as told:
                backups.start()
                wait_until(lambda: [name for name in self.names() if name.endswith(".tar")], "a backup")
            self.assertIsNone(backups.stop(LIMIT_S))
        self.assertIn("is on the same disk as the data, and would be lost with it", told.output[0])

    def test_stop_cancels_a_backup_that_is_being_made(self):
        begun = threading.Event()

        def copy(source, target, progress):
            begun.set()
            while True:
                progress("database", 0, 1)

        with mock.patch("pigeonpost.server.backup.copy_database", copy), \
                mock.patch.object(scheduled_backup, "FIRST_S", 0.0):  # fmt: skip
            backups = self.make()
            backups.start()
            self.assertTrue(begun.wait(LIMIT_S))
            self.assertIsNone(backups.stop(LIMIT_S))
        self.assertEqual((self.names(), self.fault()), ([], ""))


class RestoreTest(BackupCase):
    def test_backup_restores_samples_tokens_and_users(self):
        token = Tokens(self.data).make("a")
        api_token = ApiTokens(self.data, Faults(), self.clock).make("grafana", "viewer")
        Users(self.data).set_password("admin", "correct horse")
        self.backups.make_if_due()
        file = os.path.join(self.place, self.names()[0])
        self.assertEqual(stat.S_IMODE(os.stat(file).st_mode), 0o600)
        other = temp_folder(self)
        status, out, told = control_here("--data", other, "restore", file)
        self.assertEqual(status, 0, told)
        self.assertIn("5 samples of 1 node: none missing, none stored twice", out)
        self.assertEqual(Tokens(other).text_of("a"), token)
        self.assertTrue(Users(other).find("admin"))
        self.assertIsNotNone(ApiTokens(other, Faults(), self.clock).find(api_token))
        self.assertEqual(control_here("--data", other, "verify")[0], 0)

    def test_last_backup_is_reported_after_a_restart(self):
        self.assertEqual(self.backups.report()["made"], None)
        self.backups.make_if_due()
        report = self.make().report()
        self.assertEqual(report["made"], "2026-11-20T15:36:10.000Z")
        self.assertEqual((report["to"], report["same_disk"]), (self.place, True))
        self.assertEqual(report["bytes"], os.path.getsize(report["file"]))
        with open(os.path.join(self.data, "last_backup.json"), "w", encoding="utf-8") as file:
            json.dump({"last": {"made_ms": "x"}}, file)
        self.assertIsNone(self.make().report()["made"])


class FailureTest(BackupCase):
    def test_missing_folder_is_a_fault_until_it_exists(self):
        gone = os.path.join(self.place, "usb")
        backups = self.make(folder=gone)
        backups.make_if_due()
        self.assertIn(f"mount its disk, or create the folder {gone}", self.fault())
        os.mkdir(gone)
        self.clock.sleep(RETRY_S + 1)
        backups.make_if_due()
        self.assertEqual(self.fault(), "")
        self.assertEqual(len(os.listdir(gone)), 1)

    def test_failed_backup_is_retried_after_half_an_hour(self):
        with mock.patch.object(scheduled_backup, "make_backup_file", side_effect=OSError(errno.ENOSPC, "full")) as make:
            for _ in range(3):
                self.backups.make_if_due()
            self.assertEqual(make.call_count, 1)
            self.clock.sleep(RETRY_S + 1)
            self.backups.make_if_due()
            self.assertEqual(make.call_count, 2)

    def test_each_error_has_its_remedy(self):
        for code, text in (
            (errno.EACCES, f"ReadWritePaths={self.place}"), (errno.EROFS, "ReadWritePaths="),
            (errno.ENOSPC, "free space on the disk"), (errno.EFBIG, "FAT is limited to 4 GB"),
            (errno.EIO, "test it with"),
        ):  # fmt: skip
            with self.subTest(code=code):
                error = OSError(code, os.strerror(code))
                with mock.patch.object(scheduled_backup, "make_backup_file", side_effect=error):
                    self.backups.make_if_due()
                self.assertIn(text, self.fault())
                self.assertIn(os.strerror(code), self.fault())
                self.clock.sleep(RETRY_S + 1)

    def test_lack_of_memory_is_only_a_fault_of_the_backup(self):
        with mock.patch.object(scheduled_backup, "make_backup_file", side_effect=MemoryError):
            self.backups.make_if_due()
        self.assertIn("no backup could be made: MemoryError", self.fault())

    def test_damaged_database_leaves_the_existing_backups(self):
        self.backups.make_if_due()
        before = self.names()
        path = os.path.join(self.data, DATABASE)
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        self.now("2026-11-22T12:00:00Z")
        self.backups.make_if_due()
        self.assertIn(f"`python3 control.py --data {self.data} verify` shows the damage", self.fault())
        self.assertEqual(self.names(), before)

    def test_unmounted_disk_is_distinguished_from_a_folder_on_the_same_disk(self):
        with mock.patch.object(ScheduledBackup, "_is_same_disk", return_value=False):
            self.backups.make_if_due()
        self.now("2026-11-22T12:00:00Z")
        self.backups.make_if_due()
        self.assertIn(f"the disk with the backups is not mounted at {self.place}; mount it", self.fault())
        self.assertEqual(len(self.names()), 1)

    def test_files_left_by_a_kill_are_removed(self):
        left = os.path.join(self.place, ".pigeonpost-backup-house-making")
        os.mkdir(left)
        with open(os.path.join(left, DATABASE), "w", encoding="utf-8") as file:
            file.write("half")
        self.backups.make_if_due()
        self.assertEqual(self.names(), ["pigeonpost-backup-house-2026-11-20T153610Z.tar"])


class SettingsTest(unittest.TestCase):
    def settings(self, text):
        path = os.path.join(temp_folder(self), "server.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return load(SERVER, argparse.Namespace(config=path), "", SERVER_ARRAYS, environment={})

    def test_backups_are_only_made_if_they_are_configured(self):
        self.assertEqual(make_scheduled_backup(self.settings(""), "/data", "house", Faults(), FakeClock()), {})
        settings = self.settings('[backup]\nto = "/mnt/usb"')
        found = make_scheduled_backup(settings, "/data", "house", Faults(), FakeClock())
        self.assertEqual(list(found), ["backup"])

    def test_invalid_settings_are_refused(self):
        for text, why in (
            ('[backup]\nto = "/data/backups"', "is in the data folder"),
            ('[backup]\nto = "/mnt/usb"\n[store]\npostgres = "postgresql://x/y"', "pg_dump"),
        ):
            with self.subTest(text=text), self.assertRaisesRegex(SettingsError, why):
                make_scheduled_backup(self.settings(text), "/data", "house", Faults(), FakeClock())
        for text in ('[backup]\nat = "3:00"', '[backup]\nat = "24:00"', "[backup]\nkeep = 0"):
            with self.subTest(text=text), self.assertRaises(SettingsError):
                self.settings(text)


if __name__ == "__main__":
    unittest.main()
