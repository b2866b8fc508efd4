"""Damage of the database and the logs: a server in this process whose files were changed before its start.

Allowed: correct responses, or a fault that names the damage. Never allowed: status 500, an acknowledgement of a sample
that cannot be read afterwards, missing samples without a fault, or a value with a changed digit (each row of samples
has a checksum).
"""

import argparse
import contextlib
import functools
import logging
import os
import random
import shutil
import sqlite3
import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.core.config import load
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import DiskError, StoreDamaged
from pigeonpost.core.faults import Faults
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server import damage_check
from pigeonpost.server.damage_check import DATABASE_FAULT, LOST_FAULT, make_check
from pigeonpost.settings import SERVER, SERVER_ARRAYS
from pigeonpost.storage.damaged_store import DamagedStore
from pigeonpost.storage.models import Window, window_end
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Gap, Sample
from tests.page_support import Server, control_here, use_memory_disk
from tests.storage.test_contract import file
from tests.storage.test_maintenance import rollups_of
from tests.support import WALL_MS, long, stored_samples, temp_folder, wait_until
from tests.web import support
from tests.web.support import WebHouse

EPOCH, OUTBOX = "0123456789abcdef", "00000000000000aa"
COUNT = 1500  # samples per node: several pages of each kind
PAGES = (
    "/", "/about", "/metrics", "/gaps", "/api/v1/nodes", "/api/v1/nodes/a", "/api/v1/samples?node=a", "/log.csv",
    f"/api/v1/samples?node=b&sensor=t&from={WALL_MS // 1000 - 600}&to={WALL_MS // 1000 + 18_000}&step=600",
    "/api/v1/statistics?node=a&sensor=t", "/nodes/a/t", "/chart.csv?node=a&sensor=t&span=24h", "/api/v1/health",
)  # fmt: skip


def setUpModule():
    use_memory_disk()


def sample(seq, value):
    errors = {"h": "no answer"} if seq % 50 == 0 else {}
    return Sample(seq, WALL_MS + seq * 10_000, seq, {"t": value, "h": None if errors else seq}, errors, "")


@functools.cache
def origin():
    """Return a data folder as a server leaves it: two nodes, chunks and fresh rows, gaps, failures, rollups, a log."""
    folder = temp_folder(_Module)
    with house_on(folder) as house:
        for node in ("a", "b"):
            bring(house, node, [sample(seq, 20 + seq % 7 / 10) for seq in range(1, COUNT + 1)])
            bring(house, node, (), Gap(COUNT + 1, COUNT + 5, 0, "overwritten"))
            for start_ms in range(WALL_MS, WALL_MS + COUNT * 10_000, 600_000):
                window = Window(node, 600_000, window_end(start_ms, 600_000), 0, False)
                found = house.store.stored_batches(node, window.end_ms - 600_000, window.end_ms)
                rollups = rollups_of([part.samples for part in found], window.end_ms)
                house.ingestor.run(functools.partial(house.store.replace_rollups, window, rollups), 60.0)
    with contextlib.closing(SqliteStore(folder)) as store:
        while job := store.compaction(1 << 60):
            with store.writing(()):
                job()
    with house_on(folder) as house:
        for node in ("a", "b"):
            bring(house, node, [sample(COUNT + 6, 1.5)])
    return folder


@contextlib.contextmanager
def house_on(folder):
    """Return a server in this process with its data in `folder`."""
    test = unittest.TestCase()
    with mock.patch.object(support, "temp_folder", lambda *_: folder):
        house = WebHouse(test)
    try:
        yield house
    finally:
        test.doCleanups()


class _Module:
    addCleanup = staticmethod(unittest.addModuleCleanup)


def bring(house, node, samples, gap=None):
    """Submit samples. Returns True if they were acknowledged."""
    acked = []
    made = SampleBatch.of(samples) if samples else None
    house.ingestor.submit(
        Batch(node, OUTBOX, EPOCH, 0, made, gap, {"t": "°C"}, lambda _, seq: acked.append(seq), acked.append)
    )
    wait_until(lambda: acked or house.ingestor.fault, "an answer, or a fault")
    return bool(acked) and acked[-1] == (gap.last if gap else samples[-1].seq)


def stored(folder):
    """Return all readable samples: (node, epoch, seq) to values."""
    with contextlib.closing(SqliteStore(folder, look_only=True)) as store:
        found = stored_samples(store.every_batch())
        return {(one.node, one.epoch, one.seq): (one.time_ms, one.values) for one in found}


class Damage(unittest.TestCase):
    """A copy of the folder of `origin`, for damage."""

    def setUp(self):
        self.folder = os.path.join(temp_folder(self), "data")
        shutil.copytree(origin(), self.folder)
        self.path = os.path.join(self.folder, DATABASE)
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def read(self):
        with open(self.path, "rb") as file:
            return bytearray(file.read())

    def write(self, content):
        with open(self.path, "wb") as file:
            file.write(content)

    @contextlib.contextmanager
    def house(self):
        """Run the server on the damaged folder."""
        test = unittest.TestCase()

        def open_store(folder):
            try:
                return SqliteStore(folder)
            except StoreDamaged as error:
                return DamagedStore(str(error))

        try:
            with (
                mock.patch.object(support, "temp_folder", lambda *_: self.folder),
                mock.patch.object(support, "SqliteStore", open_store),
            ):
                house = WebHouse(test)
            house.store.on_damage = functools.partial(house.faults.set, DATABASE_FAULT)
            if house.store.damage:
                house.store.on_damage(house.store.damage)
            yield house
        finally:
            test.doCleanups()

    def get(self, house, path):
        status, _, body = house.request("GET", path, house.bearer)
        return status, body.decode()

    def check(self, house):
        with mock.patch.object(damage_check, "SHARE_PERCENT", 100.0):
            make_check(self.folder, house.store, house.csv, house.faults, house.app.clock).run_pass()


class AtTheStart(Damage):
    """Starts with a file that is not a store, or not the store of its logs."""

    def refused(self, words):
        with self.house() as house:
            self.assertRegex(house.faults.present()[DATABASE_FAULT], words)
            self.assertIn("restore", house.faults.present()[DATABASE_FAULT])
            status, text = self.get(house, "/")
            self.assertEqual(status, 200)
            self.assertIn("restore", text)
            self.assertIn("restore", self.get(house, "/api/v1/health")[1])
            self.assertIn('pigeonpost_fault_of{subject="database"} 1', self.get(house, "/metrics")[1])
            self.assertFalse(bring(house, "a", [sample(COUNT + 7, 1.0)]))
            self.assertIn("damaged", house.ingestor.fault)

    def unchanged(self):
        """Return a function that compares database and logs with their present state."""
        logs = os.path.join(self.folder, "logs")

        def now():
            return self.read(), {name: os.path.getsize(os.path.join(logs, name)) for name in os.listdir(logs)}

        before = now()
        return lambda: self.assertEqual(now(), before)

    def test_a_file_of_zero_bytes_beside_logs_is_no_new_store(self):
        self.write(b"")
        unchanged = self.unchanged()
        self.refused("it has 0 bytes")
        unchanged()

    def test_a_file_of_zero_bytes_without_logs_is_a_new_store(self):
        self.write(b"")
        shutil.rmtree(os.path.join(self.folder, "logs"))
        SqliteStore(self.folder).close()

    def test_an_empty_database_beside_logs_is_no_new_store(self):
        os.unlink(self.path)
        empty = temp_folder(self)
        shutil.move(os.path.join(self.folder, "logs"), empty)
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.execute("PRAGMA journal_mode = WAL")
        shutil.move(os.path.join(empty, "logs"), self.folder)
        self.refused("it is empty")

    def test_a_header_of_zeros(self):
        content = self.read()
        content[:100] = bytes(100)
        self.write(content)
        unchanged = self.unchanged()
        self.refused("not a database")
        unchanged()

    def test_a_truncated_file(self):
        self.write(self.read()[:8192])
        self.refused("malformed")

    def test_a_format_that_there_is_not(self):
        content = self.read()
        content[60] = 0x40
        self.write(content)
        self.refused("format 10")

    def test_a_format_of_zero(self):
        content = self.read()
        content[60:64] = bytes(4)
        self.write(content)
        self.refused("no format")

    def test_a_damaged_index(self):
        content = self.read()
        at = content.rindex(EPOCH.encode())  # in the index or the table of epochs
        content[at] ^= 1
        self.write(content)
        self.refused("epochs")


PAGE = 4096


def damages(content, seed=4711):
    """Yield (name, damaged content) of every kind of damage."""
    draw = random.Random(seed)
    pages = len(content) // PAGE

    def changed(at, data):
        return content[:at] + data + content[at + len(data) :]

    for page in range(pages):
        at = page * PAGE
        yield f"page {page + 1} inverted", changed(at, bytes(255 - byte for byte in content[at : at + PAGE]))
        yield f"page {page + 1} of zeros", changed(at, bytes(PAGE))
        other = draw.randrange(pages)
        swapped = changed(at, content[other * PAGE : other * PAGE + PAGE])
        if page % 2:
            yield f"page {other + 1} written over page {page + 1}", swapped
        else:
            yield (
                f"pages {page + 1} and {other + 1} swapped",
                swapped[: other * PAGE] + content[at : at + PAGE] + swapped[other * PAGE + PAGE :],
            )
    for _ in range(200):
        at = draw.randrange(len(content))
        yield f"byte {at} (of page {at // PAGE + 1})", changed(at, bytes([content[at] ^ 1 << draw.randrange(8)]))
    for at in [draw.randrange(len(content)) for _ in range(50)]:
        yield f"cut to {at}", content[:at]


class WalOfAnother(Damage):
    """A WAL left from another database, or from an older state of this one, is not accepted as this one's."""

    def crashed(self, folder, first, last):
        """Store samples in `folder`. Returns a copy as `kill -9` leaves it, with a WAL."""
        copy = os.path.join(temp_folder(self), "data")
        with contextlib.closing(SqliteStore(folder)) as store:
            for seq in range(first, last + 1):
                file(store, Batch("a", OUTBOX, EPOCH, 0, SampleBatch.of([sample(seq, 1.0)]), None, {}, print, print))
            shutil.copytree(folder, copy)
        return copy

    def refused(self, wal):
        shutil.copy(os.path.join(wal, DATABASE + "-wal"), self.path + "-wal")
        before = self.read()
        with self.assertRaisesRegex(StoreDamaged, "-wal belongs to another file.*restore"):
            SqliteStore(self.folder)
        self.assertEqual(self.read(), before)

    def test_own_wal_is_accepted(self):
        crashed = self.crashed(self.folder, COUNT + 7, COUNT + 11)
        with contextlib.closing(SqliteStore(crashed)) as store:
            self.assertEqual(store.damage, "")
            self.assertEqual(store.marks("a", OUTBOX, [EPOCH])[1][EPOCH].seq, COUNT + 11)

    def test_wal_of_an_older_state_is_refused(self):
        older = self.crashed(self.folder, COUNT + 7, COUNT + 11)
        self.crashed(self.folder, COUNT + 12, COUNT + 50)
        self.refused(older)

    def test_wal_of_another_file_is_refused(self):
        self.refused(self.crashed(temp_folder(self), 1, 50))

    def test_commits_after_a_damaged_place_are_reported_and_sent_again(self):
        crashed = self.crashed(self.folder, COUNT + 7, COUNT + 30)
        path = os.path.join(crashed, DATABASE)
        with open(path + "-wal", "r+b") as wal:
            wal.seek(os.path.getsize(path + "-wal") // 2)
            wal.write(b"damage")
        faults = Faults()
        settings = load(SERVER, argparse.Namespace(config=None), "", SERVER_ARRAYS, environment={})
        with contextlib.closing(damage_check.open_despite_damage(settings, crashed, faults)) as store:
            damage_check.show_lost_rows(store, SimpleNamespace(beyond_store="", limits_fault=""), faults)
            self.assertRegex(
                faults.present()[LOST_FAULT], "WAL, whose last [0-9]+ transactions cannot be read.*restore"
            )
            seq = store.marks("a", OUTBOX, [EPOCH])[1][EPOCH].seq
            self.assertTrue(COUNT + 7 <= seq < COUNT + 30)
            file(store, Batch("a", OUTBOX, EPOCH, 0, SampleBatch.of([sample(seq + 1, 1.0)]), None, {}, print, print))

    def test_a_torn_last_commit_is_no_damage(self):
        crashed = self.crashed(self.folder, COUNT + 7, COUNT + 30)
        path = os.path.join(crashed, DATABASE)
        with open(path + "-wal", "r+b") as wal:
            wal.seek(os.path.getsize(path + "-wal") - 100)
            wal.write(b"torn")
        with contextlib.closing(SqliteStore(crashed)) as store:
            self.assertEqual((store.damage, store.found_at_start), ("", ""))
            self.assertEqual(store.marks("a", OUTBOX, [EPOCH])[1][EPOCH].seq, COUNT + 29)

    def test_damaged_head_is_reported_at_the_start(self):
        """SQLite treats such a WAL as an empty one, without an error."""
        whole = self.crashed(self.folder, COUNT + 7, COUNT + 30)
        for at in (0, 8, 12, 16, 20, 24, 31):
            with self.subTest(at=at):
                crashed = shutil.copytree(whole, os.path.join(temp_folder(self), "data"))
                with open(os.path.join(crashed, DATABASE) + "-wal", "r+b") as wal:
                    wal.seek(at)
                    byte = wal.read(1)[0]
                    wal.seek(at)
                    wal.write(bytes([byte ^ 0x10]))
                with contextlib.closing(SqliteStore(crashed)) as store:
                    self.assertRegex(
                        store.found_at_start, "WAL, whose last [0-9]+ transactions cannot be read.*restore"
                    )

    def test_a_head_that_is_damaged_while_it_is_in_use_loses_nothing(self):
        crashed = self.crashed(self.folder, COUNT + 7, COUNT + 30)
        told = []
        with contextlib.closing(SqliteStore(crashed)) as store:
            store.on_damage = told.append
            for seq in (COUNT + 31, COUNT + 32):
                file(store, Batch("a", OUTBOX, EPOCH, 0, SampleBatch.of([sample(seq, 1.0)]), None, {}, print, print))
                with open(os.path.join(crashed, DATABASE) + "-wal", "r+b") as wal:
                    wal.seek(20)
                    wal.write(b"\xff\xff")
            file(store, Batch("a", OUTBOX, EPOCH, 0, SampleBatch.of([sample(seq + 1, 1.0)]), None, {}, print, print))
            killed = shutil.copytree(crashed, os.path.join(temp_folder(self), "data"))  # as kill -9 leaves it
        self.assertIn("the header of its WAL; the content of the WAL was saved", told[0])
        with contextlib.closing(SqliteStore(killed)) as store:
            self.assertEqual(store.found_at_start, "")
            self.assertEqual(store.marks("a", OUTBOX, [EPOCH])[1][EPOCH].seq, COUNT + 33)

    def test_samples_are_not_stored_in_a_removed_file(self):
        crashed = self.crashed(self.folder, COUNT + 7, COUNT + 30)
        with contextlib.closing(SqliteStore(crashed)) as store:
            file(store, Batch("a", OUTBOX, EPOCH, 0, SampleBatch.of([sample(COUNT + 31, 1.0)]), None, {}, print, print))
            os.remove(os.path.join(crashed, DATABASE) + "-wal")
            with self.assertRaisesRegex(DiskError, "sqlite3-wal was removed or replaced"):
                file(
                    store,
                    Batch("a", OUTBOX, EPOCH, 0, SampleBatch.of([sample(COUNT + 32, 1.0)]), None, {}, print, print),
                )

    def test_garbage_in_its_place_changes_nothing(self):
        with open(self.path + "-wal", "wb") as wal:
            wal.write(random.Random(1).randbytes(50_000))
        with contextlib.closing(SqliteStore(self.folder)) as store:
            self.assertEqual(store.damage, "")
            self.assertEqual(store.marks("a", OUTBOX, [EPOCH])[1][EPOCH].seq, COUNT + 6)


class Commands(Damage):
    """Commands of control.py on damaged files."""

    def control(self, *arguments):
        return control_here("--data", self.folder, *arguments)

    def damage_a_page_of_samples(self):
        """Damage a page that contains the rest of one chunk."""
        content = self.read()
        pages = [at for at in range(0, len(content), PAGE) if content[at] == 0 and b",20.5," in content[at : at + PAGE]]
        at = pages[len(pages) // 2]
        content[at : at + PAGE] = bytes(PAGE)
        self.write(content)

    def test_export_gives_what_can_be_read_and_names_the_rest(self):
        _, whole, _ = self.control("export")
        self.damage_a_page_of_samples()
        path = os.path.join(temp_folder(self), "all.csv")
        status, _, told = self.control("export", "--out", path)
        self.assertEqual(status, 1)
        self.assertRegex(told, "node [ab]: 2026-.* to 2026-.* cannot be read\n")
        self.assertIn("restore", told)
        with open(path, encoding="utf-8") as written:
            rows, all_rows = written.read().splitlines(), whole.splitlines()
        self.assertGreater(len(rows), len(all_rows) * 0.8)
        given = set(rows)
        self.assertEqual([row for row in all_rows if row in given], rows)

    def test_export_where_the_first_samples_are_lost(self):
        content = self.read()
        at = content.index(b",20.1,1]") // PAGE * PAGE
        content[at : at + PAGE] = bytes(PAGE)
        self.write(content)
        status, out, told = self.control("export", "--format", "wide")
        self.assertEqual(status, 1)
        self.assertRegex(told, r"node \S+: \S+ \S+ to \S+ \S+ cannot be read\n")
        self.assertGreater(out.count("\n"), COUNT)

    def test_backup_refuses_and_leaves_the_good_one(self):
        good = os.path.join(temp_folder(self), "good.tar")
        self.assertEqual(self.control("backup", good)[0], 0)
        with open(good, "rb") as file:
            before = file.read()
        content = bytes(self.read())
        for name, damaged in (("empty", b""), ("no header", bytes(100) + content[100:]), ("short", content[:8192])):
            with self.subTest(name):
                self.write(damaged)
                status, _, told = self.control("backup", good)
                self.assertEqual(status, 1)
                self.assertIn("restore", told)
        self.write(content)
        self.damage_a_page_of_samples()
        self.assertEqual(self.control("backup", good)[0], 1)
        with open(good, "rb") as file:
            self.assertEqual(file.read(), before)
        self.assertEqual(self.control("restore", good)[0], 0)
        self.assertEqual(self.control("verify")[0], 0)

    def test_verify_and_doctor_name_it(self):
        content = bytes(self.read())
        for name, damaged in (("empty", b""), ("no header", bytes(100) + content[100:]), ("short", content[:8192])):
            with self.subTest(name):
                self.write(damaged)
                status, out, told = self.control("verify")
                self.assertEqual(status, 1)
                self.assertIn("restore", out + told)
                status, out, _ = self.control("doctor", "server")
                self.assertEqual(status, 1)
                self.assertRegex(out, f"wrong .*{DATABASE} is damaged")
                self.assertIn("restore", out)
        self.write(content)
        self.assertIn("no damage found", self.control("doctor", "server")[1])
        self.damage_a_page_of_samples()
        status, out, told = self.control("verify")
        self.assertEqual(status, 1)
        self.assertIn("restore", out + told)

    def test_a_restore_beside_the_wal_of_another_keeps_that_apart(self):
        good = os.path.join(temp_folder(self), "good.tar")
        self.control("backup", good)
        with open(self.path + "-wal", "wb") as file:
            file.write(b"garbage" * 1000)
        self.assertEqual(self.control("restore", good)[0], 0)
        with contextlib.closing(SqliteStore(self.folder)) as store:
            self.assertEqual(store.damage, "")


class WhileItRuns(Damage):
    """Files that change while a server runs."""

    def overwrite(self, at, data):
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(data)

    def test_a_reader_meets_a_page_and_the_writer_stops(self):
        content = self.read()
        at = content.index(b",20.5,901]") // PAGE * PAGE
        with self.house() as house:
            self.assertTrue(bring(house, "a", [sample(COUNT + 7, 1.0)]))
            self.overwrite(at, bytes(PAGE))
            self.assertEqual(house.faults.present(), {})
            status, text = self.get(house, "/api/v1/samples?node=b&limit=2000")
            if status == 200:
                status, text = self.get(house, "/api/v1/samples?node=a&limit=2000")
            self.assertEqual(status, 503)
            self.assertIn('"code":"damaged"', text.replace(" ", ""))
            self.assertIn("restore", text)
            self.assertIn("restore", self.get(house, "/")[1])
            self.assertEqual(self.get(house, "/gaps")[0], 200)
            self.assertFalse(bring(house, "a", [sample(COUNT + 8, 1.0)]))

    def test_another_database_is_copied_over_it(self):
        other = temp_folder(self)
        with contextlib.closing(SqliteStore(other)) as store:
            for seq in range(1, 800):
                file(store, Batch("x", OUTBOX, EPOCH, 0, SampleBatch.of([sample(seq, 1.0)]), None, {}, print, print))
        with self.house() as house:
            self.assertTrue(bring(house, "a", [sample(COUNT + 7, 1.0)]))
            with open(os.path.join(other, DATABASE), "rb") as copied:
                self.overwrite(0, copied.read())
            self.check(house)
            self.assertIn("restore", house.faults.present()[DATABASE_FAULT])
            self.assertFalse(bring(house, "a", [sample(COUNT + 8, 1.0)]))

    def test_a_replaced_file_is_named_by_readers_and_ends_the_writer(self):
        with self.house() as house:
            self.write_new(self.read())
            status, text = self.get(house, "/api/v1/samples?node=a")
            self.assertEqual(status, 503)
            self.assertIn("was removed or replaced", text)
            self.assertIn("was removed or replaced", house.faults.present()[DATABASE_FAULT])

    def write_new(self, content):
        with open(self.path + ".new", "wb") as file:
            file.write(content)
        os.rename(self.path + ".new", self.path)

    def test_a_changed_log_is_named_with_the_remedy(self):
        logs = os.path.join(self.folder, "logs")
        name = min(name for name in os.listdir(logs) if name.endswith(".csv"))
        with self.house() as house:
            self.check(house)
            self.assertEqual(house.faults.present(), {})
            with open(os.path.join(logs, name), "r+b") as log:
                log.seek(1000)
                log.write(b"9")
            self.check(house)
            self.assertRegex(
                house.faults.present()["logs"], f"{name} has changed since it was closed.*control.py --data .* export"
            )
            self.assertTrue(bring(house, "a", [sample(COUNT + 7, 1.0)]))

    def test_the_log_that_is_written_now(self):
        with self.house() as house:
            self.assertTrue(bring(house, "a", [sample(COUNT + 7, 1.0)]))
            wait_until(lambda: house.csv.size > 100, "it is in the log")
            self.check(house)
            self.assertEqual(house.faults.present(), {})
            with open(house.csv.whole()[0], "r+b") as log:
                log.seek(50)
                log.write(b"9")
            self.check(house)
            self.assertIn("differs from what was written to it", house.faults.present()["logs"])

    def test_a_sector_that_cannot_be_read(self):
        with self.house() as house:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
            with mock.patch("pigeonpost.storage.sqlite.counts.nodes", side_effect=error):
                status, text = self.get(house, "/api/v1/samples?node=a")
            self.assertEqual((status, "disk I/O error" in text), (503, True))
            self.assertIn("restore", house.faults.present()[DATABASE_FAULT])
            self.check(house)
            self.assertEqual(house.faults.present(), {})


class Program(Damage):
    """The server as a process."""

    def test_server_keeps_running_and_reports_the_damage(self):
        content = self.read()
        content[:100] = bytes(100)
        self.write(content)
        server = Server(self, data=self.folder)
        status, text = server.get("/")
        self.assertEqual(status, 200)
        self.assertIn("restore", text)
        server.logs("is damaged (file is not a database); nothing more is stored")
        status, out, _ = control_here("--data", self.folder, "check")
        self.assertEqual(status, 1)
        self.assertIn("is damaged (file is not a database)", out)
        server.terminate()
        self.assertEqual(server.wait(), 0)
        self.assertEqual(self.read(), content)


class Attack(Damage):
    """Each kind of damage at any position of the file before the start.

    Then requests, samples, and a complete check.
    """

    def attack(self, name, content):
        """Return "whole" if nothing is missing, or "named" if a fault reports the damage."""
        self.write(content)
        for rest in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + rest)
        with self.house() as house:
            for path in PAGES:
                status, text = self.get(house, path)
                self.assertIn(status, (200, 404, 503), f"{path}: {text[:500]}")
                if status == 503:
                    self.assertTrue(house.faults.present(), text)
                    self.assertIn("restore", text)
            was_acked = bring(house, "a", [sample(COUNT + 7, 1.0), sample(COUNT + 8, 2.0)])
            self.check(house)
            fault = house.faults.present().get(DATABASE_FAULT, "")
        if fault:
            self.assertIn("restore", fault)
        try:
            found = stored(self.folder)
        except (StoreDamaged, KeyError) as error:
            self.assertTrue(fault, f"{name}: cannot be read, and no fault reports it: {error}")
            found = None
        if was_acked:
            self.assertFalse(found is None and not fault, name)
            for seq in (COUNT + 7, COUNT + 8):
                there = found is not None and ("a", EPOCH, seq) in found
                self.assertTrue(there or fault, f"{name}: {seq} was acknowledged, and is not there")
        if fault:
            return "named"
        found = {key: value for key, value in found.items() if key[2] < COUNT + 7}
        self.assertEqual(found.keys(), self.expected.keys(), f"{name}: samples are missing, and no fault reports it")
        self.assertEqual(found, self.expected, f"{name}: a value has changed, and no fault reports it")
        return "whole"

    @classmethod
    def setUpClass(cls):
        cls.expected = stored(origin())

    def run_all(self, chosen):
        results = {}
        for name, content in chosen:
            with self.subTest(name):
                result = self.attack(name, content)
                results[result] = results.get(result, 0) + 1
        return results

    def test_random_damages_are_named(self):
        content = bytes(self.read())
        every = list(damages(content))
        results = self.run_all(random.Random(7).sample(every, 6))
        self.assertGreater(results.get("named", 0), 1)

    @long
    def test_damages_at_every_position_are_named(self):
        print(self.run_all(damages(bytes(self.read()))))


if __name__ == "__main__":
    unittest.main()
