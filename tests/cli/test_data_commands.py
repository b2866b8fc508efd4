"""Tests of the commands for data: backup, restore, verify, export, import."""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.cli import backup as data_commands
from pigeonpost.cli import export_rows
from pigeonpost.core.clock import FakeClock, parse_rfc3339
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import NotStored
from pigeonpost.core.files import lock_data_dir
from pigeonpost.link.samples import SampleBatch, batches_of
from pigeonpost.server import backup as server_backup
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.csv import format
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.storage.csv.verify import rebuild_log
from pigeonpost.storage.sqlite.store import SqliteStore
from tests import page_support
from tests.faults.house import House
from tests.old_store import OldStore
from tests.page_support import for_class, use_memory_disk
from tests.storage import test_contract
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import E2, batch, gap
from tests.support import LIMIT_S, ROOT, WALL_MS, clean_environment, long, rounds, temp_folder, wait_until
from tests.test_control import ControlCase


def setUpModule():
    use_memory_disk()
    # argparse searches for translations of its messages, which takes a third of the time of a command here.
    language = mock.patch.dict(os.environ, {"LANGUAGE": "C"})
    language.start()
    unittest.addModuleCleanup(language.stop)


@contextlib.contextmanager
def running_server(data):
    """Run the part of a server that stores samples, and yield its Ingestor."""
    store = SqliteStore(data)
    csv = CsvLog(data, store, FakeClock())
    ingestor = Ingestor(store, csv, FakeClock(), commit_s=0.0)
    csv.start()
    ingestor.start()
    try:
        yield ingestor
    finally:
        ingestor.stop(LIMIT_S)
        csv.close()
        store.close()


def fill(data, *batches):
    with running_server(data) as ingestor:
        for one in batches or (batch(1, 40), batch(1, 10, node="b", epoch=E2), gap(41, 50)):
            ingestor.submit(without_callback(one))


def without_callback(one):
    return one._replace(on_committed=lambda epoch, seq: None)


def crashed_copy(test, data):
    """Return a copy of the data folder, as it would be after a kill now."""
    copy = temp_folder(test)
    shutil.copytree(data, copy, dirs_exist_ok=True)
    return copy


def content(path):
    with open(path, "rb") as file:
        return file.read()


def tree(folder, without=()):
    """Return the content of all files below a folder by path, without locks, copies and temporary files of SQLite."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            inner = path[len(folder) + 1 :]
            if not name.endswith((".lock", "-shm", "-wal", ".bak")) and not inner.startswith(tuple(without)):
                found[inner] = content(path)
    return found


class DataCase(ControlCase):
    def setUp(self):
        super().setUp()
        self.place = temp_folder(self)  # of the backups
        self.tar, self.copy = os.path.join(self.place, "b.tar"), os.path.join(self.place, "b.sqlite3")

    def database(self, data=None):
        return os.path.join(data or self.data, DATABASE)

    def logs(self, data=None):
        return os.path.join(data or self.data, "logs")

    def assert_sound(self, samples, data=None):
        noun = "1 sample" if samples == 1 else f"{samples} samples"
        self.assertRegex(
            self.done("verify", data=data), rf"^{noun} of (1 node|[02-9] nodes): none missing, none stored twice"
        )


class Backup(DataCase):
    def test_both_formats_of_a_backup_can_be_restored(self):
        fill(self.data)
        self.done("token", "basement")
        for file in (self.tar, self.copy):
            told = self.done("backup", file)
            self.assertRegex(told, r"^\S+/b\.\w+: 50 samples of 2 nodes: none missing, none stored twice; 10 more"
                                   r" samples were lost, in 1 recorded gap; [\d,]+ bytes, checked\n$")  # fmt: skip
            self.assertEqual([name for name in os.listdir(self.place) if name.startswith(".")], [])
            other = temp_folder(self)
            self.done("restore", file, data=other)
            self.assert_sound(50, data=other)
            self.assertEqual(self.rows(other), self.rows(self.data))
            self.assertEqual(os.path.exists(os.path.join(other, "tokens.json")), file == self.tar)

    def rows(self, data):
        """Return all rows of all logs, sorted."""
        return sorted(
            row for name in logs_in(self.logs(data)) for row in content(f"{self.logs(data)}/{name}").split(b"\n")
        )

    def test_sha256sum_accepts_the_manifests_of_a_backup(self):
        fill(self.data)
        fill(self.data, batch(11, 30, node="b", epoch=E2))
        self.done("backup", self.tar)
        folder = temp_folder(self)
        with tarfile.open(self.tar) as tar:
            names = tar.getnames()
            for name in names:
                os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(tar.extractfile(name).read())
        self.assertEqual(names[0], DATABASE)
        self.assertEqual(names[-1], "SHA256SUMS")
        for sums in (folder, self.logs(folder)):
            done = subprocess.run(
                ["sha256sum", "-c", "SHA256SUMS"], cwd=sums, capture_output=True, text=True, timeout=60
            )
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(len(content(os.path.join(folder, "SHA256SUMS")).splitlines()), len(names) - 1)

    def test_backup_is_readable_by_its_owner_only(self):
        fill(self.data)
        self.done("backup", self.tar)
        self.assertEqual(stat.S_IMODE(os.stat(self.tar).st_mode), 0o600)

    def test_sqlite_backup_can_be_read_in_a_read_only_folder(self):
        fill(self.data)
        self.done("backup", self.copy)
        os.chmod(self.place, 0o555)
        self.addCleanup(os.chmod, self.place, 0o755)
        with contextlib.closing(sqlite3.connect(f"file:{self.copy}?mode=ro", uri=True)) as db:
            self.assertEqual(db.execute("PRAGMA journal_mode").fetchone(), ("delete",))
            self.assertEqual(db.execute("SELECT count(*) FROM readings").fetchone(), (100,))
        self.assertEqual(os.listdir(self.place), ["b.sqlite3"])

    def test_backup_to_a_folder_creates_a_new_file(self):
        fill(self.data)
        self.done("backup", self.place)
        (name,) = os.listdir(self.place)
        self.assertRegex(name, r"^pigeonpost-\d{4}-\d\d-\d\d_\d{6}\.tar$")

    def test_backup_does_not_change_the_files_of_the_server(self):
        """In particular, it makes no checkpoint: only the connection of the server may do that."""
        with running_server(self.data) as ingestor:
            ingestor.submit(without_callback(batch(1, 400)))
            ingestor.flush(LIMIT_S)
            wal = self.database() + "-wal"
            self.assertGreater(os.path.getsize(wal), 0)
            before = content(self.database()), content(wal)
            self.done("backup", self.tar)
            self.done("backup", self.copy)
            self.assertEqual((content(self.database()), content(wal)), before)

    def test_backup_contains_data_that_a_crash_left_in_the_wal(self):
        with running_server(self.data) as ingestor:
            ingestor.submit(without_callback(batch(1, 400)))
            ingestor.flush(LIMIT_S)
            crashed = crashed_copy(self, self.data)
        self.done("backup", self.tar, data=crashed)
        other = temp_folder(self)
        self.done("restore", self.tar, data=other)
        self.assert_sound(400, data=other)

    def test_backup_succeeds_while_a_server_commits(self):
        """The backup is consistent, and frequent commits do not make it start again without end."""
        fill(self.data, batch(1, 1000))
        stop = threading.Event()
        count = [1000]

        def write(ingestor):
            while not stop.is_set():
                ingestor.submit(without_callback(batch(count[0] + 1, count[0] + 20)), urgent=True)
                ingestor.flush(LIMIT_S)
                count[0] += 20

        with running_server(self.data) as ingestor, mock.patch.object(server_backup, "_PAGES_AT_ONCE", 1):
            writer = threading.Thread(target=write, args=(ingestor,))
            writer.start()
            try:
                for number in range(3):
                    before = count[0]
                    wait_until(lambda before=before: count[0] > before, "more is stored")
                    self.done("backup", f"{self.place}/{number}.tar")
            finally:
                stop.set()
                writer.join(LIMIT_S)
        seen = []
        for number in range(3):
            other = temp_folder(self)
            told = self.done("restore", f"{self.place}/{number}.tar", data=other)
            seen.append(int(re.search(r": (\d+) samples? of 1 node: none missing, none stored twice", told)[1]))
        self.assertEqual(seen, sorted(set(seen)))
        self.assert_sound(count[0])

    def test_damaged_database_does_not_replace_a_good_backup(self):
        fill(self.data)
        self.done("backup", self.tar)
        before = content(self.tar)
        with contextlib.closing(sqlite3.connect(self.database())) as db:
            db.execute("DELETE FROM fresh WHERE first = 1 AND count = 10")
            db.commit()
        status, out, told = self.run_("backup", self.tar)
        self.assertEqual(status, 1)
        self.assertIn("do not add up to", out)
        self.assertIn("the database is damaged: no backup was made", told)
        self.assertEqual((content(self.tar), os.listdir(self.place)), (before, ["b.tar"]))

    def test_full_disk_leaves_the_existing_backup(self):
        fill(self.data, batch(1, 3000))
        self.done("backup", self.tar)
        before = content(self.tar)
        # No file may exceed 64 KiB. The limit is set after the imports: it would apply to compiled modules, too.
        code = (
            "import resource, sys, control; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
            "print(*[control.main(['--data', sys.argv[1], 'backup', file]) for file in sys.argv[2:]])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.data, self.tar, self.copy], capture_output=True, text=True,
            timeout=3 * LIMIT_S, env=clean_environment(PYTHONPATH=ROOT), cwd=self.place,
        )  # fmt: skip
        self.assertEqual(done.stdout, "1 1\n", done.stderr)
        self.assertRegex(done.stderr, r"\A(control\.py: .*(disk|large).*\n){2}\Z")
        self.assertEqual((content(self.tar), os.listdir(self.place)), (before, ["b.tar"]))

    def test_files_of_a_killed_backup_are_deleted(self):
        fill(self.data)
        left = os.path.join(self.place, ".b.tar.making")
        os.mkdir(left)
        with open(os.path.join(left, DATABASE), "wb") as file:
            file.write(b"half of it")
        self.done("backup", self.tar)
        self.assertEqual(os.listdir(self.place), ["b.tar"])

    def test_simultaneous_backup_to_the_same_file_is_rejected(self):
        fill(self.data)
        lock = lock_data_dir(os.path.join(self.place, ".b.tar.making", "lock"))
        self.assert_fails(1, "another command is using the same folder", "backup", self.tar)
        os.close(lock)
        self.done("backup", self.tar)

    def test_invalid_targets_are_rejected(self):
        fill(self.data)
        for file in (self.database(), os.path.join(self.data, "b.tar"), os.path.join(self.logs(), "b.tar")):
            self.assert_fails(2, "is in the data folder, and would be lost with it", "backup", file)
        self.assert_fails(2, "is not a folder", "backup", os.path.join(self.place, "nowhere", "b.tar"))
        self.assert_fails(2, "there is no database in the folder", "backup", self.tar, data=temp_folder(self))
        self.assert_fails(1, "cannot write to /sys: ", "backup", "/sys/b.tar")

    def test_log_begun_during_a_backup_is_not_included(self):
        fill(self.data)
        real = server_backup.copy_database

        def copy(*arguments):
            real(*arguments)
            fill(self.data, batch(51, 99))  # another complete run of a server

        with mock.patch.object(server_backup, "copy_database", copy):
            self.done("backup", self.tar)
        other = temp_folder(self)
        self.done("restore", self.tar, data=other)
        self.assert_sound(50, data=other)
        fill(other, batch(51, 99))
        self.assert_sound(99, data=other)

    def test_uploaded_files_and_unusual_names_are_backed_up(self):
        fill(self.data)
        os.mkdir(os.path.join(self.data, "files"))
        names = ("0123456789abcdef_a.csv", ".coming-0123", "0123456789abcdef_a.sha256")
        for name in names:
            with open(os.path.join(self.data, "files", name), "w") as file:
                file.write(name)
        lines = "two\u2028lines.csv"
        for name in ("my own ä.csv", ".hidden.csv", lines, os.fsdecode(b"not-utf-8-\xe4.csv")):
            with open(os.path.join(self.logs(), name), "w") as file:
                file.write("time,node,sensor,value,unit\n")
        self.done("backup", self.tar)
        other = temp_folder(self)
        self.done("restore", self.tar, data=other)
        self.assertEqual(sorted(os.listdir(os.path.join(other, "files"))), [names[0], names[2]])
        (log, *_) = (name for name in logs_in(self.logs()) if name.startswith("sensorlog"))
        self.assertEqual(logs_in(self.logs(other)), sorted(["my own ä.csv", lines, log]))

    def test_database_of_an_older_format_is_backed_up_and_restored(self):
        """A backup with the new version must be possible before its server is started for the first time."""
        make_old(self.data)
        self.done("backup", self.tar)
        self.assert_fails(2, "was made by an older Pigeonpost: start the server of this version once", "verify")
        other = temp_folder(self)
        self.done("restore", self.tar, data=other)
        self.assert_sound(3, data=other)
        self.assertFalse([name for name in os.listdir(other) if ".v1" in name])


def make_old(data):
    """Create a data folder with a database of format 1 and its log."""
    fresh = tempfile.mkdtemp()
    try:
        fill(fresh, batch(1, 3))
        shutil.copytree(os.path.join(fresh, "logs"), os.path.join(data, "logs"))
        with contextlib.closing(SqliteStore(fresh, look_only=True)) as store:
            mark = store.log_mark()
        with OldStore(data, version=1) as old:
            one = batch(1, 3)
            filed = old.put(one.node, one.epoch, list(one.samples), units=one.units)
            old.record(*mark._replace(filed=filed))
    finally:
        shutil.rmtree(fresh)


class Restore(DataCase):
    @classmethod
    def setUpClass(cls):
        """Create a data folder and its backups. Each test uses a copy."""
        super().setUpClass()
        cls.made_data, cls.made_place = (temp_folder(for_class(cls)) for _ in range(2))
        fill(cls.made_data)
        for *command, name in (("token", "basement"), ("backup", "b.tar"), ("backup", "b.sqlite3")):
            argument = name if "token" in command else os.path.join(cls.made_place, name)
            status, _, told = page_support.control_here("--data", cls.made_data, *command, argument)
            assert status == 0, told

    def setUp(self):
        super().setUp()
        shutil.copytree(self.made_data, self.data, dirs_exist_ok=True)
        shutil.copytree(self.made_place, self.place, dirs_exist_ok=True)

    def test_restore_moves_the_previous_data_aside(self):
        fill(self.data, batch(51, 70))
        before = tree(self.data)
        for file in (self.tar, self.copy):
            status, out, told = self.run_("restore", file)
            self.assertEqual(status, 0, told)
            self.assertRegex(out, r"^\S+: 50 samples of 2 nodes: none missing, none stored twice")
            aside = re.search(r"The previous data is in (\S+/before-restore-\S+)\.\n", told)[1]
            self.assertIn("The nodes then send the samples that they have taken since", told)
            kept = {name: data for name, data in before.items() if file == self.tar or name != "tokens.json"}
            self.assertEqual(tree(aside), kept)
            self.assert_sound(50)
            shutil.rmtree(aside)
            before = tree(self.data)
            self.assertIn("tokens.json", before)

    def test_wal_of_the_old_database_is_not_applied_to_the_restored_one(self):
        with running_server(self.data) as ingestor:
            ingestor.submit(without_callback(batch(51, 400)))
            ingestor.flush(LIMIT_S)
            crashed = crashed_copy(self, self.data)
        self.assertGreater(os.path.getsize(self.database(crashed) + "-wal"), 0)
        self.done("restore", self.copy, data=crashed)
        self.assert_sound(50, data=crashed)

    def test_server_continues_with_restored_data(self):
        for file in (self.tar, self.copy):
            self.done("restore", file)
            fill(self.data, batch(51, 60))
            self.assert_sound(60)
            fill(self.data, batch(61, 70))
            self.assert_sound(70)

    def test_log_that_was_not_written_correctly_is_reported(self):
        def torn(folder, name, *rest):
            rebuild_log(folder, name, *rest)
            os.truncate(os.path.join(folder, name), os.path.getsize(os.path.join(folder, name)) - 1)

        with mock.patch.object(data_commands, "rebuild_log", torn):
            status, out, told = self.run_("restore", self.copy)
        self.assertEqual(status, 1, told)
        self.assertRegex(out, r"^sensorlog_\S+: changed since it was closed")

    def test_only_while_no_server_runs(self):
        before = tree(self.data)
        lock = lock_data_dir(os.path.join(self.data, "server.lock"))
        self.assert_fails(1, "the server is running (", "restore", self.tar)
        os.close(lock)
        self.assertEqual(tree(self.data), before)

    def assert_refused(self, text, file, status=1):
        before = tree(self.data)
        found, out, told = self.run_("restore", file)
        self.assertEqual(found, status, told)
        self.assertIn(text, told or out)
        self.assertNotIn("Traceback", told)
        self.assertEqual(tree(self.data), before)
        self.assertNotIn(".restoring", os.listdir(self.data))
        return told

    def test_damaged_tar_backup_is_rejected(self):
        whole = content(self.tar)
        with tarfile.open(self.tar) as tar:
            places = {member.name: member.offset_data for member in tar}
        bad = os.path.join(self.place, "bad.tar")
        for name, at in places.items():
            for more in (0, 20):
                with open(bad, "wb") as file:
                    file.write(whole[: at + more] + bytes([whole[at + more] ^ 1]) + whole[at + more + 1 :])
                with self.subTest(name=name, more=more):
                    self.assert_refused("control.py: ", bad)

    def test_truncated_tar_backup_is_rejected(self):
        whole = content(self.tar)
        bad = os.path.join(self.place, "bad.tar")
        end = len(whole.rstrip(b"\0"))
        for size in (0, 1, 100, 511, 512, 600, end // 2, end - 600, end - 1):
            with open(bad, "wb") as file:
                file.write(whole[:size])
            with self.subTest(size=size):
                self.assert_refused("control.py: ", bad)

    def test_damaged_sqlite_backup_is_rejected_or_harmless(self):
        whole = content(self.copy)
        bad = os.path.join(self.place, "bad.sqlite3")
        for at in range(4096, len(whole), 4096):
            with open(bad, "wb") as file:
                file.write(whole[:at] + b"\xff" * 200 + whole[at + 200 :])
            with self.subTest(page=at // 4096 + 1):
                status, _, told = self.run_("restore", bad)
                self.assertIn("Traceback" not in told and status, (1, 0))
                if status == 0:  # an unused page
                    self.assert_sound(50)
        self.assert_refused("control.py: ", self.cut(bad, whole[:5000]))

    def cut(self, path, data):
        with open(path, "wb") as file:
            file.write(data)
        return path

    def test_files_that_are_not_backups_are_rejected(self):
        self.assert_refused("the file does not exist", os.path.join(self.place, "none.tar"), status=2)
        self.assert_refused("the file does not exist", self.place, status=2)
        self.assert_refused("x.tar: is not a tar archive, ", self.cut(f"{self.place}/x.tar", b"my own notes\n" * 100))
        other = os.path.join(self.place, "other.sqlite3")
        with contextlib.closing(sqlite3.connect(other)) as db:
            db.execute("CREATE TABLE temperatures (time, value)")
        self.assert_refused("is the database of another program", other)

    def test_backup_of_a_newer_version_is_rejected(self):
        with contextlib.closing(sqlite3.connect(self.copy)) as db:
            db.execute("PRAGMA user_version = 99")
        self.assert_refused("was made by a newer Pigeonpost", self.copy, status=2)

    def make(self, *members, manifests=1):
        """Create a tar file of these members, with one or more valid manifests."""
        path = os.path.join(self.place, "made.tar")
        sums = b""
        with tarfile.open(path, "w") as tar:
            for member, data in members:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                sums += f"{hashlib.sha256(data).hexdigest()}  {member.name}\n".encode()
            info = tarfile.TarInfo("SHA256SUMS")
            info.size = len(sums)
            for _ in range(manifests):
                tar.addfile(info, io.BytesIO(sums))
        return path

    def test_hostile_tar_files_are_rejected(self):
        link = tarfile.TarInfo("logs/x.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        device = tarfile.TarInfo("logs/x.csv")
        device.type = tarfile.CHRTYPE
        members = {
            "but a symbolic link": (link,),
            "but a character device": (device,),
            "its name is a path outside of the folder": map(tarfile.TarInfo, ("../x", "/tmp/x", "logs/../../x")),
            "its name contains an empty component": map(tarfile.TarInfo, ("logs/", "")),
            "which does not belong in a backup": map(
                tarfile.TarInfo, ("logs/a/b", "server.lock", "running.json", "files/.x", "logs/a\nb", "lost+found")
            ),
        }
        database = tarfile.TarInfo(DATABASE), content(self.copy)
        for reason, member in ((reason, member) for reason, those in members.items() for member in those):
            with self.subTest(name=member.name, type=member.type):
                self.assert_refused(reason, self.make(database, (member, b"")))
        tokens = tarfile.TarInfo("tokens.json")
        self.assert_refused("contains 'tokens.json' twice", self.make(database, (tokens, b"1"), (tokens, b"2")))
        self.assert_refused("contains SHA256SUMS twice", self.make(database, manifests=2))
        self.assert_refused("contains no SHA256SUMS: it is not a backup", self.make(database, manifests=0))
        self.assert_refused("contains no database", self.make((tokens, b"{}")))
        with mock.patch.object(server_backup, "_SUMS_BYTES", 10):
            self.assert_refused("which is more than 10", self.make(database))

    def packed_again(self, command):
        """Return the path of the backup after it was unpacked and packed again by GNU tar."""
        folder, packed = os.path.join(self.place, "unpacked"), os.path.join(self.place, "NEW.tar")
        os.makedirs(folder, exist_ok=True)
        done = subprocess.run(
            ["sh", "-c", f"tar -xf {self.tar} && {command}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return packed

    @unittest.skipUnless(shutil.which("tar"), "there is no tar program")
    def test_backup_packed_again_by_gnu_tar_is_refused_with_a_remedy_that_works(self):
        for command, reason in (
            ("tar -cf ../NEW.tar *", "is in the GNU tar format, not in ustar or pax format"),
            ("tar -cf ../NEW.tar .", "is in the GNU tar format, not in ustar or pax format"),
            ("tar --format=pax -cf ../NEW.tar *", "'logs/' is refused: it is not a regular file, but a directory"),
        ):
            with self.subTest(command):
                told = self.assert_refused(reason, self.packed_again(command))
                remedy = told.strip().rpartition(": extract it, and pack it again in that folder: ")[2]
                other = temp_folder(self)
                self.done("restore", self.packed_again(remedy), data=other)
                self.assert_sound(50, data=other)
                self.assertEqual(tree(other, without=[DATABASE]), tree(self.data, without=[DATABASE]))

    def test_verify_checks_a_backup_without_changing_anything(self):
        for file in (self.tar, self.copy):
            before = tree(self.data), content(file)
            self.assertIn("50 samples of 2 nodes: none missing, none stored twice", self.done("verify", file))
            self.assertEqual((tree(self.data), content(file)), before)
        bad = self.cut(f"{self.place}/bad.tar", content(self.tar)[:-11_000])
        self.assert_fails(1, "control.py: ", "verify", bad)

    def test_restore_killed_at_any_step_can_be_repeated(self):
        """A server that is started in between does no harm: old data is neither lost nor mixed with new data."""
        with running_server(self.data) as ingestor:
            ingestor.submit(without_callback(batch(51, 400)))
            ingestor.flush(LIMIT_S)
            crashed = crashed_copy(self, self.data)
        # One interpreter starts the children: the first is killed at its first step, the next at its second step, ...
        killer = (
            "import itertools, os, shutil, sys, control\n"
            "crashed, copies, tar = sys.argv[1:]\n"
            "real = os.rename\n"
            "def rename(old, new):\n    left[0] -= 1\n    return real(old, new) if left[0] else os._exit(9)\n"
            "os.rename = rename\n"
            "for step in itertools.count(1):\n"
            "    left = [step]\n"
            "    data = shutil.copytree(crashed, f'{copies}/{step}')\n"
            "    child = os.fork()\n"
            "    if not child:\n        os._exit(control.main(['--data', data, 'restore', tar]))\n"
            "    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
            "    if status != 9:\n        sys.exit(status)"
        )
        copies = temp_folder(self)
        done = subprocess.run(
            [sys.executable, "-c", killer, crashed, copies, self.tar], capture_output=True, text=True,
            timeout=3 * LIMIT_S, env=clean_environment(PYTHONPATH=ROOT), cwd=self.place,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        steps = len(os.listdir(copies))
        for step in range(1, steps + 1):
            data = os.path.join(copies, str(step))
            found = [os.path.join(place, DATABASE) for place, _, names in os.walk(data) if DATABASE in names]
            kept = [path for path in found if ".restoring" not in path and self.count(path) == 400]
            self.assertEqual(len(kept), 1, f"step {step}: the old data")
            if step % 2:
                fill(data, batch(1, 3, node="new"))
            self.done("restore", self.tar, data=data)
            self.assert_sound(50, data=data)
            self.assertNotIn(".restoring", os.listdir(data))
        self.assertGreater(steps, 5)

    def count(self, path):
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return db.execute("SELECT count(*) FROM samples").fetchone()[0]

    @unittest.skipUnless(os.geteuid() == 0, "only root may give files away")
    def test_files_restored_by_root_belong_to_the_owner_of_the_folder(self):
        os.mkdir(os.path.join(self.data, "files"))
        with open(os.path.join(self.data, "files", "0123456789abcdef_a.csv"), "w") as file:
            file.write("x")
        self.done("backup", self.tar)
        new = temp_folder(self)
        os.chown(new, 12345, 12345)
        self.done("restore", self.tar, data=new)
        for place, folders, names in os.walk(new):
            for name in folders + names:
                self.assertEqual(os.stat(os.path.join(place, name)).st_uid, 12345, name)

    def test_restore_creates_the_data_folder_on_a_new_machine(self):
        new = os.path.join(self.place, "data")
        status, _, told = self.run_("restore", self.tar, data=new)
        self.assertEqual(status, 0, told)
        self.assertIn("There was no previous data.", told)
        self.assertEqual(self.done("tokens", data=new), "basement\n")


class Staging(DataCase):
    """Folder in which a backup is extracted. Another user of the data folder may have created symbolic links in it."""

    def setUp(self):
        super().setUp()
        fill(self.data)
        self.done("backup", self.tar)
        self.precious = temp_folder(self)
        self.victim = os.path.join(self.precious, "victim")
        with open(self.victim, "w") as file:
            file.write("precious")

    def assert_unharmed(self):
        self.assertEqual(tree(self.precious), {"victim": b"precious"})

    def unpack(self, folder):
        return server_backup.unpack(self.tar, folder, lambda what, done, total: None)

    def test_archive_is_extracted_into_an_empty_folder(self):
        folder = temp_folder(self)
        names = self.unpack(folder)
        self.assertEqual(sorted(tree(folder)), names)
        for name in names:
            with self.subTest(name):
                mode = 0o600 if name in server_backup.KEPT else 0o644
                self.assertEqual(stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode), mode & ~self.umask())

    def umask(self):
        mask = os.umask(0)
        os.umask(mask)
        return mask

    def test_unpack_does_not_follow_or_overwrite_existing_files(self):
        (log,) = logs_in(self.logs())
        for name, target in (
            (DATABASE, self.victim), (DATABASE, os.path.join(self.precious, "new")), ("logs", self.precious),
            ("logs", None),
            (DATABASE, None), (f"logs/{log}", self.victim),
        ):  # fmt: skip
            folder = temp_folder(self)
            path = os.path.join(folder, name)
            with self.subTest(name=name, target=target):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.symlink(target, path) if target else os.mkdir(path)
                with self.assertRaises(FileExistsError) as caught:
                    self.unpack(folder)
                self.assertTrue(caught.exception.filename.startswith(f"{folder}/{name.partition('/')[0]}"))
                self.assert_unharmed()

    def test_folder_replaced_by_a_link_during_unpack_receives_no_files(self):
        """The files of a folder are opened relative to its descriptor."""
        folder = temp_folder(self)
        real = os.open

        def open_(path, flags, *more, **options):
            if path == "SHA256SUMS":  # the one in logs/, which is the last file
                os.rename(f"{folder}/logs", f"{folder}/moved")
                os.symlink(self.precious, f"{folder}/logs")
            return real(path, flags, *more, **options)

        with mock.patch("os.open", open_):
            self.unpack(folder)
        self.assert_unharmed()
        self.assertIn("SHA256SUMS", os.listdir(f"{folder}/moved"))

    def test_symbolic_link_instead_of_the_folder_is_rejected(self):
        os.symlink(self.precious, os.path.join(self.data, ".restoring"))
        self.assert_fails(
            1, ".restoring is a symbolic link, but must be a folder that this command", "restore", self.tar
        )
        self.assert_unharmed()
        with self.assertRaises(NotADirectoryError):
            self.unpack(os.path.join(self.data, ".restoring"))
        self.assert_unharmed()
        os.symlink(self.precious, os.path.join(self.place, ".b.tar.making"))
        self.assert_fails(1, ".b.tar.making is a symbolic link", "backup", self.tar)
        self.assert_unharmed()

    def test_symbolic_link_instead_of_the_lock_is_rejected(self):
        os.mkdir(os.path.join(self.data, ".restoring"))
        for lock in (".restoring/lock", "server.lock"):
            with self.subTest(lock):
                path = os.path.join(self.data, lock)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                os.symlink(self.victim, path)
                self.assertEqual(self.run_("restore", self.tar)[0], 1)
                self.assert_unharmed()
                os.unlink(path)

    def test_symbolic_links_that_a_killed_run_left_are_removed(self):
        os.mkdir(os.path.join(self.data, ".restoring"))
        os.symlink(self.precious, os.path.join(self.data, ".restoring", "logs"))
        os.symlink(self.victim, os.path.join(self.data, ".restoring", DATABASE))
        self.done("restore", self.tar)
        self.assert_unharmed()
        self.assert_sound(50)

    @unittest.skipUnless(os.geteuid() == 0, "only root may give files away")
    def test_owner_of_the_target_of_a_symbolic_link_is_not_changed(self):
        os.chown(self.data, 12345, 12345)
        link = os.path.join(self.place, "link")
        os.symlink(self.victim, link)
        data_commands._give(link, self.data)
        self.assertEqual((os.lstat(link).st_uid, os.stat(self.victim).st_uid), (12345, 0))


class Versions(DataCase):
    """Upgrades between versions."""

    def test_start_of_the_server_copies_and_converts_an_older_database(self):
        make_old(self.data)
        before = content(self.database())
        for command in (("verify",), ("export",)):
            self.assert_fails(2, "was made by an older Pigeonpost: start the server of this version once", *command)
        self.assertEqual(content(self.database()), before)
        fill(self.data, batch(4, 6))
        self.assert_sound(6)
        with contextlib.closing(sqlite3.connect(self.database() + ".v1")) as copy:
            self.assertEqual(copy.execute("PRAGMA user_version").fetchone(), (1,))
            self.assertEqual(copy.execute("SELECT count(*) FROM samples").fetchone(), (3,))

    def test_newer_database_is_not_changed(self):
        fill(self.data)
        with contextlib.closing(sqlite3.connect(self.database())) as db:
            db.execute("PRAGMA user_version = 99")
        before = tree(self.data)
        path = os.path.join(self.place, "x.jsonl")
        with open(path, "w") as file:
            file.write('{"time":1795188970,"node":"a","t":1}')
        for command in (("verify",), ("export",), ("backup", self.tar), ("import", path)):
            self.assert_fails(2, "was made by a newer Pigeonpost (format 99; this one supports ", *command)
        self.assertEqual((tree(self.data), os.path.exists(self.tar)), (before, False))


class Checksums(DataCase):
    """Checksums of closed logs in logs/SHA256SUMS."""

    def sums(self):
        return content(os.path.join(self.logs(), "SHA256SUMS")).decode()

    def check(self):
        done = subprocess.run(
            ["sha256sum", "-c", "SHA256SUMS"], cwd=self.logs(), capture_output=True, text=True, timeout=60
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_closed_log_is_added_to_the_checksums(self):
        fill(self.data, batch(1, 50))
        self.assertEqual(len(self.sums().splitlines()), 1)
        self.check()
        fill(self.data, batch(51, 60))
        self.assertEqual([line.split()[1] for line in self.sums().splitlines()], logs_in(self.logs()))
        self.check()
        self.assert_sound(60)

    def test_changed_and_missing_logs_are_reported(self):
        fill(self.data, batch(1, 50))
        fill(self.data, batch(51, 60))
        first, second = logs_in(self.logs())
        with open(os.path.join(self.logs(), first), "r+b") as log:
            log.seek(40)
            log.write(b"!")
        os.unlink(os.path.join(self.logs(), second))
        status, out, _ = self.run_("verify")
        self.assertEqual(status, 1)
        self.assertIn(f"{first}: changed since it was closed (its SHA-256 is ", out)
        self.assertIn(f"{second}: this closed log cannot be read: No such file", out)

    def killed(self):
        """Use the data folder that a kill leaves after a run with fifty samples. Return the path of its log."""
        with running_server(self.data) as ingestor:
            ingestor.submit(without_callback(batch(1, 50)))
            wait_until(lambda: len(content(os.path.join(self.logs(), logs_in(self.logs())[0]))) > 4000, "it is logged")
            data = crashed_copy(self, self.data)
        self.data = data
        (name,) = logs_in(self.logs())
        return os.path.join(self.logs(), name)

    def test_start_after_a_kill_adds_the_missing_checksum(self):
        log = self.killed()
        sums = os.path.join(self.logs(), "SHA256SUMS")
        self.assertFalse(os.path.exists(sums))
        with running_server(self.data):
            wait_until(lambda: os.path.exists(sums), "the checksum is added")
            self.assertEqual(self.sums().split()[1:], [os.path.basename(log)])
        self.assertEqual(len(self.sums().splitlines()), 2)
        self.check()

    def test_checksum_is_updated_when_missing_rows_are_added(self):
        fill(self.data, batch(1, 50))
        (first,) = logs_in(self.logs())
        before = self.sums()
        store = SqliteStore(self.data)
        test_contract.file(store, batch(51, 60))  # stored at the end of a run, after the log was closed
        store.close()
        with running_server(self.data) as ingestor:
            ingestor.submit(without_callback(batch(61, 70)))
            wait_until(lambda: first in self.sums() and before not in self.sums(), "the checksum is updated")
        self.check()
        self.assert_sound(70)

    def test_log_that_lags_after_a_kill_is_valid(self):
        """After a kill, the next start writes the missing rows: this is not a fault."""
        log = self.killed()
        whole = content(log)
        with contextlib.closing(SqliteStore(self.data, look_only=True)) as store:
            recorded = store.log_mark().size
        self.assertLess(recorded, len(whole))
        count = rounds("PIGEONPOST_TEST_LAG", 10, 40)
        for size in sorted(
            {*range(recorded, len(whole), (len(whole) - recorded) // count), len(whole) - 1, len(whole)}
        ):
            with open(log, "wb") as file:
                file.write(whole[:size])
            self.assert_sound(50)
        with open(log, "ab") as file:
            file.write(whole[-40:])
        self.assertEqual(self.run_("verify")[0], 1)
        os.unlink(log)
        self.assert_sound(50)  # the next log will contain all rows


class Expired(DataCase):
    def test_logs_may_contain_expired_samples(self):
        hour = 3_600_000
        first = 1_795_000_000_000 // hour * hour + 1
        batches = [batch(n + 1, n + 1, time_ms=first + n * hour) for n in range(5)]
        fill(self.data, *batches)
        fill(self.data, batch(6, 6, time_ms=first + 6 * hour))
        store = SqliteStore(self.data)
        self.addCleanup(store.close)
        with store.writing(()):
            for window in store.dirty_windows(1 << 60, 100):
                store.replace_rollups(window, {})
            self.assertEqual(store.delete_expired(first + 3 * hour, 100), 3)
        self.assertEqual(
            self.done("verify"),
            "3 samples of 1 node: none missing, none stored twice; 3 expired samples were deleted\n",
        )
        with store.writing(()):
            store._db.execute("DELETE FROM fresh WHERE first = 5")
        self.assertIn("they differ", self.run_("verify")[1])
        self.done("export", "--out", os.path.join(self.place, "x.csv"))


class Export(DataCase):
    def setUp(self):
        super().setUp()
        page_support.set_zone(self, "Europe/Berlin")
        format._minutes.clear()
        self.addCleanup(format._minutes.clear)
        fill(
            self.data, batch(1, 40), batch(1, 10, node="b", epoch=E2, units={"temperature": "°F", "light": "counts"}),
            batch(41, 41, temperature=None, errors={"temperature": "no response"}), gap(42, 50), batch(51, 60),
        )  # fmt: skip

    def lines(self, *arguments):
        return self.done("export", *arguments).splitlines()

    def test_pipe_gets_the_export_and_is_not_replaced(self):
        pipe = os.path.join(self.place, "pipe")
        os.mkfifo(pipe)
        fd = os.open(pipe, os.O_RDWR)
        self.addCleanup(os.close, fd)
        expected = self.done("export", "--sensor", "light", "--to", "2026-11-20").encode()
        self.done("export", "--sensor", "light", "--to", "2026-11-20", "--out", pipe)
        self.assertEqual(os.read(fd, 1 << 16), expected)
        for command in (("export", "--format", "sqlite", pipe), ("backup", pipe), ("bundle", "node", pipe)):
            self.assertIn("pipe is not a regular file: name another one", self.run_(*command)[2])
        self.assertEqual(os.listdir(self.place), ["pipe"])

    def test_csv_export_is_equal_to_the_log(self):
        (log,) = logs_in(self.logs())
        logged = content(os.path.join(self.logs(), log)).decode().splitlines()
        told = self.lines()
        self.assertEqual(told[0], "time,node,sensor,value,unit")
        self.assertEqual(sorted(told), sorted(line for line in logged if ",gap," not in line))

    def test_wide_export_has_one_row_per_sample(self):
        told = self.lines("--format", "wide", "--node", "a")
        self.assertEqual(told[:2], ["time,node,light,temperature", "2026-11-18T12:06:41.000+01:00,a,1,20.5"])
        self.assertEqual(told[41], "2026-11-18T12:07:21.000+01:00,a,41,")
        self.assertEqual(len(told), 52)
        self.assertEqual(
            self.lines("--format", "wide", "--sensor", "temperature")[:2],
            ["time,node,temperature", "2026-11-18T12:06:41.000+01:00,a,20.5"],
        )

    def test_jsonl_export_has_one_object_per_sample(self):
        told = [json.loads(line) for line in self.lines("--format", "jsonl")]
        values, units = {"temperature": 20.5, "light": 1}, {"temperature": "°C"}
        first = {"time": "2026-11-18T11:06:41.000Z", "node": "a", "values": values, "units": units}
        self.assertEqual(told[0], first)
        self.assertEqual(told[40]["values"], {"temperature": None, "light": 41})
        self.assertEqual(told[-1]["units"], {"temperature": "°F", "light": "counts"})
        self.assertEqual(len(told), 61)

    def test_utc_export_has_the_same_samples_with_times_in_utc(self):
        for form, head in (("csv", "time"), ("wide", "time"), ("excel", "time (UTC)")):
            local, utc = self.lines("--format", form), self.lines("--format", form, "--utc")
            first = "2026-11-18 11:06:41" if form == "excel" else "2026-11-18T11:06:41.000Z"
            self.assertEqual((utc[0].removeprefix("\ufeff").split(",")[0], utc[1].split(",")[0]), (head, first))
            rest = [[line.partition(",")[2] for line in lines] for lines in (local, utc)]
            self.assertEqual(*rest)
        for form in ("jsonl", "influx"):  # always in UTC
            self.assertEqual(self.lines("--format", form), self.lines("--format", form, "--utc"))

    def test_influx_export_has_one_line_per_sample_with_values(self):
        told = self.lines("--format", "influx")
        self.assertEqual(told[0], "readings,node=a temperature=20.5,light=1 1795000001000000000")
        self.assertEqual(told[40], "readings,node=a light=41 1795000041000000000")  # the other sensor failed
        self.assertEqual(len(told), 61)
        only = self.lines("--format", "influx", "--sensor", "temperature", "--node", "a")
        self.assertEqual(len(only), 50)  # the line without any value is omitted

    def test_export_selects_nodes_sensors_and_times(self):
        one = self.lines("--node", "b", "--sensor", "temperature", "--from", "2026-11-18T12:06:45", "--to",
                         "2026-11-18T11:06:48Z")  # fmt: skip
        self.assertEqual([line[:19] for line in one[1:]], [f"2026-11-18T12:06:4{n}" for n in (5, 6, 7)])
        self.assertEqual(len(self.lines("--from", "2026-11-18")), len(self.lines()))
        for nothing in (("--from", "2026-11-19"), ("--to", "2026-11-18"), ("--from", "1s"), ("--to", "1969-12-31")):
            self.assertEqual(self.lines(*nothing), ["time,node,sensor,value,unit"])
        self.assertEqual(self.lines("--sensor", "light", "--node", "a", "--node", "b"), self.lines("--sensor", "light"))

    def test_samples_dated_before_1970_are_exported(self):
        fill(self.data, batch(61, 61, time_ms=-1))
        for form, moment in (("csv", "1970-01-01T00:59:59.999+01:00"), ("jsonl", "1969-12-31T23:59:59.999Z")):
            told = self.lines("--format", form, "--node", "a", "--to", "1970-01-02")
            self.assertTrue(any(moment in line for line in told), told)

    def test_unknown_nodes_sensors_and_times_are_rejected(self):
        self.assert_fails(1, "no samples of node attic are stored; the nodes are: a, b", "export", "--node", "attic")
        text = "no values of sensor humidity are stored; the sensors are: light, temperature"
        self.assert_fails(1, text, "export", "--sensor", "humidity")
        for time in ("yesterday", "", "7", "2026-13-01", "9999999999d", "0001-01-01"):
            self.assert_fails(2, "is not a valid time: write it as 2026-11-20", "export", f"--from={time}")
        self.assert_fails(2, "there is no database in the folder", "export", data=temp_folder(self))
        self.assert_fails(2, "is not a valid sensor name", "export", "--sensor", "../x")

    def test_failed_export_leaves_the_existing_file(self):
        out = os.path.join(self.place, "x.csv")
        status, told, said = self.run_("export", "--out", out)
        self.assertEqual((status, told, said), (0, "", f"{out}: {os.path.getsize(out):,} bytes\n"))
        self.assertEqual(content(out).decode().splitlines(), self.lines())
        before = content(out)
        self.assert_fails(1, "no samples of node x are stored", "export", "--out", out, "--node", "x")
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            self.assert_fails(1, f"{out}: No space left on device", "export", "--out", out)
        self.assertEqual((content(out), os.listdir(self.place)), (before, ["x.csv"]))
        self.assert_fails(1, "No such file or directory", "export", "--out", os.path.join(self.place, "none", "x"))

    def test_sqlite_export_has_one_indexed_table(self):
        plain = os.path.join(self.place, "plain.sqlite3")
        self.done("export", "--format", "sqlite", plain)
        with contextlib.closing(sqlite3.connect(plain)) as db:
            rows = db.execute("SELECT time, node, sensor, value, unit FROM readings ORDER BY rowid").fetchall()
            plan = " ".join(str(row) for row in db.execute(
                "EXPLAIN QUERY PLAN SELECT * FROM readings WHERE node = 'a' AND sensor = 'light' ORDER BY time DESC"
            ))  # fmt: skip
        self.assertIn("USING INDEX readings_of_sensor", plan)
        self.assertNotIn("TEMP B-TREE", plan)
        logged = [line.split(",") for line in self.lines()[1:]]
        self.assertEqual(
            [[format.local_time(parse_rfc3339(time)), node, sensor, "" if value is None else repr(value), unit]
             for time, node, sensor, value, unit in rows], logged,
        )  # fmt: skip
        self.assertEqual(os.listdir(self.place), ["plain.sqlite3"])

    def test_sqlite_export_of_a_selection_replaces_an_existing_file(self):
        plain = os.path.join(self.place, "plain.sqlite3")
        for arguments, count in (((), 122), (("--sensor", "light", "--node", "b"), 10)):
            self.done("export", "--format", "sqlite", "--out", plain, *arguments)
            with contextlib.closing(sqlite3.connect(plain)) as db:
                self.assertEqual(db.execute("SELECT count(*) FROM readings").fetchone(), (count,))

    def test_failed_sqlite_export_leaves_the_existing_file(self):
        self.assert_fails(2, "--format sqlite needs the name of a file", "export", "--format", "sqlite")
        self.assert_fails(2, "FILE and --out mean the same", "export", "--out", self.tar, self.copy)
        with open(self.copy, "w") as file:
            file.write("precious")
        with mock.patch("pigeonpost.core.files.sync_folder"), mock.patch(
            "pigeonpost.cli.export_sqlite._insert", side_effect=sqlite3.OperationalError("database or disk is full")
        ):  # fmt: skip
            self.assert_fails(1, "b.sqlite3: database or disk is full", "export", "--format", "sqlite", self.copy)
        self.assertEqual((content(self.copy), os.listdir(self.place)), (b"precious", ["b.sqlite3"]))

    def test_samples_of_overlapping_epochs_are_exported_in_order_of_time(self):
        data = temp_folder(self)
        with contextlib.closing(SqliteStore(data)) as store:
            for epoch, shift in ((test_contract.E1, 0), (E2, 500)):
                (made,) = batches_of(test_contract.sample(n, time_ms=WALL_MS + 1000 * n + shift) for n in range(1, 50))
                test_contract.file(store, batch(1, 1, epoch=epoch)._replace(samples=made))
        times = [line.split(",")[0] for line in self.done("export", "--format", "wide", data=data).splitlines()[1:]]
        self.assertEqual((len(times), times), (98, sorted(times)))

    def test_closed_pipe_ends_the_export_without_an_error(self):
        """In a separate process, with `| head`. The export is longer than the buffer of a pipe."""
        fill(self.data, batch(61, 4000))
        command = f"{sys.executable} {ROOT}/control.py --data {self.data} export | head -n 1"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=LIMIT_S,
            env=clean_environment(), cwd=self.place,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "time,node,sensor,value,unit\n", ""))

    def test_interrupted_export_leaves_no_file(self):
        """Ctrl-C during an export leaves no file and shows no traceback."""
        out = os.path.join(self.place, "x.csv")
        interrupted = []

        def as_log(*arguments):
            interrupted.append(sorted(os.listdir(self.place)))
            signal.raise_signal(signal.SIGINT)

        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        with mock.patch.dict(export_rows.FORMATS, csv=as_log):
            self.assertEqual(self.run_("export", "--out", out), (130, "", ""))
        self.assertEqual((interrupted, os.listdir(self.place)), ([["x.csv.part"]], []))

    def test_full_standard_output_is_reported(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, f"{ROOT}/control.py", "--data", self.data, "export"], stdout=full,
                stderr=subprocess.PIPE, text=True, timeout=LIMIT_S, env=clean_environment(), cwd=self.place,
            )  # fmt: skip
        self.assertEqual(done.returncode, 1)
        self.assertIn("standard output: No space left on device", done.stderr)

    def test_progress_bar_is_shown_on_a_terminal_only(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        out = os.path.join(self.place, "x.csv")
        with mock.patch("io.StringIO", Terminal):
            _, _, said = self.run_("export", "--out", out)
        self.assertRegex(said, r"\rx\.csv +\[#+-*\] +\d+ %.*\[#{30}\] 100 %\n")
        self.assertNotIn("%", self.run_("export", "--out", out)[2])

    def test_no_query_stays_open_between_parts(self):
        """Between two parts, the server can transfer its complete WAL: no reader blocks it."""
        with running_server(self.data) as ingestor:
            with contextlib.closing(SqliteStore(self.data, look_only=True)) as store:
                seen = 0
                for _, batches in export_rows.walk(store, "a", 0, 1 << 42):
                    seen += sum(map(len, batches))
                    if batches and seen < 60:
                        ingestor.submit(without_callback(batch(61, 2000)), urgent=True)
                        ingestor.flush(LIMIT_S)
                        with contextlib.closing(sqlite3.connect(self.database())) as db:
                            busy, pages, done = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                        self.assertEqual((busy, pages), (0, done))
            self.assertGreaterEqual(seen, 51)

    def test_walk_finds_each_sample_once(self):
        """Dense and sparse times, equal times and the ends of ranges give the same samples as a single query."""
        chance = random.Random(5)
        count = rounds("PIGEONPOST_TEST_WALK", 80, 300)
        for at_once in (1, 2, 7, 50):
            store = MemoryStore()
            times, at = [], 1000
            for _ in range(count):
                at += chance.choice((0, 0, 1, 1, 5, 1000, 10_000_000, 100_000_000_000 // count))
                times.append(at)
            samples = [test_contract.sample(n, time_ms=time_ms) for n, time_ms in enumerate(times, 1)]
            (made,) = batches_of(samples)
            test_contract.file(store, batch(1, 1)._replace(samples=made))
            middle = times[count // 6], times[count * 2 // 3]
            for from_ms, to_ms in ((0, at + 1), middle, (times[9] + 1, times[9] + 2), (5, 5), (9, 5)):
                with mock.patch.object(export_rows, "AT_ONCE", at_once):
                    walked = export_rows.walk(store, "a", from_ms, to_ms)
                    found = [sample.seq for _, batches in walked for one in batches for sample in one]
                self.assertEqual(found, [p.seq for p in store.points("a", from_ms, to_ms, 1 << 60)])

    def test_few_samples_with_many_values_are_read_together(self):
        store, times = SqliteStore(temp_folder(self)), [WALL_MS + 100 * n for n in range(4000)]
        self.addCleanup(store.close)
        wide = SampleBatch(1, times, times, {f"t{n}": list(range(4000)) for n in range(80)})
        test_contract.file(store, batch(1, 1)._replace(samples=wide))
        with mock.patch.object(export_rows, "AT_ONCE", 1000):
            walked = [batches for _, batches in export_rows.walk(store, "a", times[0], times[-1] + 1)]
        self.assertEqual([seq for batches in walked for one in batches for seq in range(one.seq, one.last + 1)],
                         list(range(1, 4001)))  # fmt: skip
        self.assertLessEqual(
            max(sum(map(len, batches)) for batches in walked), 1000 * export_rows.VALUES_PER_SAMPLE / 80
        )

    def test_memory_of_an_export_does_not_grow_with_its_size(self):
        """In a separate process, whose memory is measured."""
        folders = []
        for count in (80_000, 160_000):  # both are more than one part
            folders.append(temp_folder(self))
            times = [WALL_MS + 100 * n for n in range(count)]
            values = {"temperature": [20.5] * count, "light": [n % 1024 for n in range(count)]}
            samples = SampleBatch(1, times, times, values)
            test_contract.file(store := SqliteStore(folders[-1]), batch(1, 1, node="c")._replace(samples=samples))
            store.close()
        code = (
            "import re, sys, control\n"
            "for data in sys.argv[2:]:\n"
            "    if control.main(['--data', data, 'export', '--format', 'jsonl', '--out', sys.argv[1]]):\n"
            "        sys.exit(1)\n"
            "    print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.tar, *folders], capture_output=True, text=True, timeout=3 * LIMIT_S,
            env=clean_environment(PYTHONPATH=ROOT), cwd=self.place,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(content(self.tar).count(b"\n"), 160_000)
        most = [int(line) for line in done.stdout.split()]  # the second is at least the first
        self.assertLess(most[1] - most[0], 5_000, most)  # KiB; 9,000 if all samples, or lines, were kept


class Import(DataCase):
    def write(self, name, text):
        path = os.path.join(self.place, name)
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        return path

    def stored(self, data=None):
        return sorted(self.done("export", data=data).splitlines()[1:])

    def test_spreadsheets_are_imported_with_the_same_times_although_an_hour_occurs_twice(self):
        page_support.set_zone(self, "Europe/Berlin")
        first_ms = parse_rfc3339("2026-10-24T23:30:00Z")
        made = [test_contract.sample(n, time_ms=first_ms + 900_000 * n) for n in range(12)]
        with contextlib.closing(SqliteStore(self.data)) as store:
            for one in batches_of([sample._replace(seq=n) for n, sample in enumerate(made, 1)]):
                test_contract.file(store, batch(1, 1)._replace(samples=one))
        wanted = self.done("export", "--utc", "--sensor", "temperature").splitlines()
        for arguments in ((), ("--utc",), ("--decimal", "comma"), ("--decimal", "comma", "--utc")):
            with self.subTest(arguments):
                out, other = os.path.join(self.place, "sheet.csv"), temp_folder(self)
                self.done("export", "--format", "excel", "--out", out, *arguments)
                self.done("import", out, data=other)
                self.assertEqual(
                    self.done("export", "--utc", "--sensor", "temperature", data=other).splitlines(), wanted
                )

    @mock.patch("pigeonpost.importing.importer.BATCH_SAMPLES", 50)
    def test_exported_readings_are_imported_unchanged(self):
        page_support.set_zone(self, "UTC")
        fill(self.data, batch(1, 40), batch(1, 120, node="b", epoch=E2))
        for form, suffix in (("csv", "csv"), ("wide", "csv"), ("jsonl", "jsonl")):
            out, other = os.path.join(self.place, f"{form}.{suffix}"), temp_folder(self)
            self.done("export", "--format", form, "--out", out)
            for new in (160, 0):
                told = self.done("import", out, data=other)
                self.assertEqual(
                    told,
                    f"{out}: 160 readings, {new} new, 2026-11-18 11:06:41+00:00 to 2026-11-18 11:08:40+00:00\n",
                )
            self.assert_sound(160, data=other)
            there = self.stored(other)
            wanted = self.stored()
            if form == "wide":  # a table has no units
                wanted = [line.removesuffix("°C") for line in wanted]
            self.assertEqual(there, wanted)

    def test_file_without_a_node_needs_the_option_node(self):
        path = self.write("t.csv", "Time;Temperature (°C)\n2026-11-20T15:36:10Z;21,5\n")
        status, out, _ = self.run_("import", path)
        fault = "the file does not name the node of its readings: add --node NODE"
        self.assertEqual((status, out), (1, f"{path}: {fault}\n"))
        self.done("import", "--node", "attic", path)
        self.assertEqual(self.stored()[0].split(",")[1:], ["attic", "temperature", "21.5", "°C"])

    def test_file_with_an_invalid_row_is_skipped_and_other_files_are_imported(self):
        bad = self.write("bad.jsonl", '{"time":"2026-11-20T15:36:10Z","node":"a","t":1}\n\n{"time":"x","t":2}\n[]\n')
        good = self.write("good.json", '[{"time": 1795188970, "node": "a", "t": 2}]')
        status, out, told = self.run_("import", bad, good)
        self.assertEqual(status, 1)
        self.assertIn(f"{bad}: line 3: 'x' is not a valid time", out)
        self.assertIn(f"{bad}: line 4: a reading must be an object", out)
        self.assertIn(f"{good}: 1 reading, 1 new", out)
        self.assertIn(f"not imported: {bad}", told)
        self.assertEqual(len(self.stored()), 1)

    def test_only_while_no_server_runs(self):
        path = self.write("x.csv", "time,node,sensor,value,unit\n")
        lock = lock_data_dir(os.path.join(self.data, "server.lock"))
        self.assert_fails(1, "upload the file (send-files) and import it on the page Files", "import", path)
        os.close(lock)
        self.assert_fails(2, "the file does not exist", "import", f"{path}x")
        self.assert_fails(1, "not imported", "import", path)

    def test_file_uploaded_by_a_pi_is_imported_for_its_node(self):
        self.done("file-id", "0123456789abcdef", "attic")
        path = self.write("0123456789abcdef_x.csv", "time,t\n2026-11-20T15:36:10Z,21.5\n")
        self.done("import", path)
        self.assertIn(",attic,t,21.5,", self.stored()[0])

    def test_server_continues_after_an_import(self):
        fill(self.data)
        self.done("import", self.write("x.jsonl", '{"time":"2020-01-01T00:00:00Z","node":"a","t":1}\n'))
        fill(self.data, batch(51, 60))
        self.assert_sound(61)

    @mock.patch("pigeonpost.importing.blocks.BLOCK_ROWS", 64)
    def test_import_continues_after_a_full_disk(self):
        rows = "".join(f"{1_700_000_000 + n},{n % 50}\n" for n in range(1500))
        path = self.write("long.csv", f"time,t\n{rows}")
        with (
            mock.patch("pigeonpost.importing.importer.STORE_S", LIMIT_S),
            mock.patch.object(Ingestor, "submit", self.breaking_after(10)),
        ):
            self.assert_fails(1, "the disk is full", "import", "--node", "a", path)
        self.assertIn("1,500 readings, 860 new", self.done("import", "--node", "a", path))
        self.assert_sound(1500)

    def importing(self, rows, then):
        """Start an import that executes `then` after each batch. Return the process and its input file."""
        path = self.write(
            "long.csv", "time,t,u\n" + "".join(f"{1_700_000_000 + n},{n % 50},{n}\n" for n in range(rows))
        )
        code = (
            "import signal, sys, control; from pigeonpost.importing import blocks\n"
            "from pigeonpost.server.ingest import Ingestor\n"
            "blocks.BLOCK_ROWS = 512\n"
            "real, count = Ingestor.submit, 0\n"
            "def submit(intake, batch, **more):\n"
            "    global count\n"
            "    done, count = real(intake, batch, **more), count + 1\n"
            f"    {then}\n"
            "    return done\n"
            "Ingestor.submit = submit; sys.exit(control.main(sys.argv[1:]))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, "--data", self.data, "import", "--node", "a", path],
            env=clean_environment(PYTHONPATH=ROOT), stdout=subprocess.PIPE, cwd=self.place,
        )  # fmt: skip
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        return process, path

    def assert_killed(self, process):
        process.communicate(timeout=LIMIT_S)
        self.assertEqual(process.returncode, -9)

    def assert_continues(self, rows, path):
        left = rows - self.imported()
        self.assertGreater(left, 0)
        self.assertIn(f"{rows:,} readings, {left:,} new", self.done("import", "--node", "a", path))
        self.assert_sound(rows)

    def test_killed_import_is_continued(self):
        """It is killed twice, when some of the submitted batches are committed and others may not be."""
        rows, before = 4000, 0
        for batches in (1, 3):
            then = f"intake.flush(60) if count == {batches} else count == {batches + 2} and signal.raise_signal(9)"
            process, path = self.importing(rows, then)
            self.assert_killed(process)
            self.assertGreaterEqual(self.imported(), before + 500)
            before = self.imported()
        self.assert_continues(rows, path)

    @long
    def test_import_killed_at_any_time_is_continued(self):
        """The import pauses in the middle of its file, so that it does not end before it is killed."""
        rows = 100_000
        for more in (500, 2000):
            before = self.imported()
            process, path = self.importing(rows, "count == 100 and signal.pause()")
            wait_until(lambda enough=before + more: self.imported() >= enough, "some of it is stored")
            process.kill()
            self.assert_killed(process)
        self.assert_continues(rows, path)

    def imported(self):
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.database()}?mode=ro", uri=True)) as db:
                return db.execute("SELECT coalesce(sum(seq), 0) FROM epochs").fetchone()[0]
        except sqlite3.Error:
            return 0  # the database is still being created

    def breaking_after(self, count):
        real, calls = Ingestor.submit, []

        def submit(ingestor, one, **more):
            calls.append(one)
            if len(calls) > count:
                raise NotStored("the disk is full")
            return real(ingestor, one, **more)

        return submit


class ForeignDatabases(DataCase):
    """Tables in the databases of other programs."""

    def database(self, script, name="old.db"):
        path = os.path.join(self.place, name)
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(script)
        return path

    def rows(self):
        return [line.split(",", 1)[1] for line in self.done("export").splitlines()[1:]]

    def test_database_of_tmon_is_imported(self):
        """Values are millidegrees as text, and the node is in another table."""
        page_support.set_zone(self, "UTC")
        path = self.database("""
            CREATE TABLE node (id INTEGER PRIMARY KEY, name TEXT, token TEXT);
            CREATE TABLE temperature (
                id INTEGER PRIMARY KEY, node_id INTEGER REFERENCES node (id), timestamp TEXT, value TEXT);
            INSERT INTO node VALUES (1, 'Living röom', 'x'), (2, 'attic', 'y');
            INSERT INTO temperature (node_id, timestamp, value) VALUES (1, '2023-01-02 10:00:00', '20812'),
                (2, '2023-01-02T10:00:05', '-1500'), (1, '2023-01-02 10:10:00.123456', NULL);
            """)
        before = content(path)
        for new in (3, 0):
            told = self.done("import", "--scale", "0.001", "--unit", "°C", "--utc", path)
            self.assertRegex(
                told, rf": 3 readings, {new} new, 2023-01-02 10:00:00\+00:00 to 2023-01-02 10:10:00\+00:00"
            )
        self.assertEqual(self.rows(), ["Living_room,temperature,20.812,°C", "Living_room,temperature,,°C",
                                       "attic,temperature,-1.5,°C"])  # fmt: skip
        self.assertEqual(content(path), before)

    def test_table_with_one_row_per_reading_is_imported(self):
        path = self.database("""
            CREATE TABLE data (time REAL, location TEXT, sensorType TEXT, value REAL, unit TEXT);
            INSERT INTO data VALUES (1700000000.5, 'a', 'DHT22 t', 21.5, '°C'), (1700000000.5, 'a', 'h', 40, '=%'),
                (1700000010, 'b', 'h', 41, NULL);
            CREATE TABLE users (id, name, date);
            """)
        self.done("import", path)
        self.assertEqual(self.rows(), ["a,dht22_t,21.5,°C", "a,h,40.0,'=%", "b,h,41.0,"])

    def test_values_of_a_node_in_another_unit_are_converted_to_the_first_one(self):
        path = self.database("""
            CREATE TABLE data (time INTEGER, node TEXT, sensor TEXT, value REAL, unit TEXT);
            INSERT INTO data VALUES (1700000000, 'a', 't', 20, '°C'), (1700000010, 'a', 't', 50, '°F'),
                (1700000020, 'a', 't', NULL, NULL), (1700000030, 'a', 't', 21, NULL), (1700000040, 'b', 't', 68, '°F');
            """)
        self.done("import", path)
        self.assertEqual(self.rows(), ["a,t,20.0,°C", "a,t,10.0,°C", "a,t,,°C", "a,t,21.0,°C", "b,t,68.0,°F"])

    def test_table_with_one_column_per_sensor_is_imported(self):
        path = self.database("""
            CREATE TABLE log (id INTEGER, created_at INTEGER, temperature REAL, "humidity (%)" REAL);
            INSERT INTO log VALUES (1, 1700000000, 21.5, NULL), (2, 1700000010, 22, 40);
            """)
        status, out, _ = self.run_("import", path)
        self.assertEqual(status, 1)
        self.assertIn(
            "no table with readings was recognised; the tables are: log; use --table or --query, and --node if", out
        )
        self.done("import", "--node", "a", path)
        self.assertEqual(self.rows(), ["a,temperature,21.5,", "a,temperature,22.0,", "a,humidity,40.0,%"])

    def test_query_selects_the_readings(self):
        path = self.database("""
            CREATE TABLE x (d TEXT, t REAL); CREATE TABLE y (date TEXT, node TEXT, value REAL);
            CREATE TABLE z (date TEXT, node TEXT, value REAL);
            INSERT INTO x VALUES ('2023-01-02 10:00', 70.7);
            """)
        self.assertIn("several tables may have readings: y, z; use --table or --query", self.run_("import", path)[1])
        self.assertIn("there is no table `w`", self.run_("import", "--table", "w", path)[1])
        self.assertIn("it contains no readings", self.run_("import", "--table", "y", path)[1])
        query = "SELECT d AS time, round((t - 32) / 1.8, 2) AS t, 'n' AS node FROM x"
        self.done("import", "--query", query, path)
        self.assertEqual(self.rows(), ["n,t,21.5,"])
        for query, text in (
            ("SELECT d FROM x", "there is no column `time`"), ("SELEC", "syntax error"), ("", "may have readings"),
            ("DELETE FROM x", "readonly"), ("SELECT 1 AS time, 'a' AS node", "there is no column with values"),
        ):  # fmt: skip
            status, out, told = self.run_("import", "--query", query, path)
            self.assertEqual(status, 1)
            self.assertIn(text, out + told)

    def test_invalid_row_of_a_table_is_reported(self):
        for value in ("'warm'", "x'ff00'", "1e999", "9e30"):
            path = self.database(
                "DROP TABLE IF EXISTS t; CREATE TABLE t (time, node, value);"
                f"INSERT INTO t VALUES (1700000000, 'a', 1), (1700000001, 'a', {value})"
            )
            status, out, _ = self.run_("import", path)
            if value == "9e30":
                self.assertEqual(status, 0, out)
            else:
                self.assertEqual(status, 1, value)
                self.assertIn("row 2: ", out)
        for time in ("'noon'", "NULL", "-5", "1e300", "'0001-01-01 00:00:00'"):
            path = self.database(
                f"DROP TABLE t; CREATE TABLE t (time, node, value); INSERT INTO t VALUES ({time}, 'a', 1)"
            )
            status, out, _ = self.run_("import", path)
            self.assertEqual(status, 1, time)
            self.assertIn("row 1: ", out)

    def test_own_and_broken_databases_are_rejected(self):
        fill(self.data)
        own = os.path.join(self.place, "own.sqlite3")
        self.done("backup", own)
        self.assertIn("this is a Pigeonpost database: use `export` and import the result", self.run_("import", own)[1])
        broken = os.path.join(self.place, "broken.db")
        with open(broken, "wb") as file:
            file.write(b"SQLite format 3\0" + b"\xff" * 8000)
        status, _, told = self.run_("import", broken)
        self.assertEqual(status, 1)
        self.assertNotIn("Traceback", told)


class Promise(unittest.TestCase):
    """With the real programs: nodes send again the samples that a restored server has lost."""

    def setUp(self):
        self.house = House(temp_folder(self), every_s=0.01)
        self.addCleanup(self.house.close)
        self.house.start()

    def control(self, *arguments):
        status, out, told = page_support.control_here("--data", str(self.house.data / "server"), *arguments)
        self.assertEqual(status, 0, out + told)
        return out

    def collect(self, more=5):
        wanted = len(self.house.heard) + more
        wait_until(lambda: self.house.is_stored(wanted), "samples are stored")

    def test_restored_server_receives_its_lost_samples_again(self):
        for name in ("b.tar", "b.sqlite3"):
            self.collect()
            backup = str(self.house.folder / name)
            self.control("backup", backup)
            self.collect()
            self.house.server.kill()
            self.control("restore", backup)
            self.house.server.start()
            self.collect()
        self.house.settle()
        figures = self.house.check()
        self.assertEqual((figures["lost"], figures["repeated"], figures["gaps"]), (0, 0, 0))
        self.assertRegex(self.control("verify"), r"^\d+ samples? of 1 node: none missing, none stored twice\n$")


if __name__ == "__main__":
    unittest.main()
