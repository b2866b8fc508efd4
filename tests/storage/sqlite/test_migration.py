"""Tests of the migration of older formats: each sample is stored exactly once, wherever the migration is stopped."""

import contextlib
import gc
import itertools
import json
import os
import random
import shutil
import socket
import sqlite3
import unittest
from unittest import mock

from pigeonpost.core.errors import DiskError, NotStored, SettingsError, StoreDamaged
from pigeonpost.link.samples import Gap, Sample, batches_of
from pigeonpost.storage.chunks import COLUMNS, ChunkRow
from pigeonpost.storage.csv.format import log_rows, logged_rows
from pigeonpost.storage.models import HOUR_MS, SPANS_MS
from pigeonpost.storage.sqlite import migration, row_conversion, schema
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.old_store import IDENTITY, OldStore
from tests.support import Killed, memory_disk, rounds, temp_folder

NOON = 1_795_003_200_000 // HOUR_MS * HOUR_MS  # 12:00
UNITS = {"temperature": "°C", "light": "counts"}
# Distance between the statements at which the migration is stopped.
STRIDE = rounds("PIGEONPOST_TEST_MIGRATION_STRIDE", 47, 1)
SEEDS = rounds("PIGEONPOST_TEST_MIGRATIONS", 2, 100)
E1, E2, E3 = (f"{number:016x}" for number in (1, 2, 3))


def samples(first, count, time_ms=NOON, step_ms=10_000, names=("temperature", "light"), clock="", errors=()):
    """Return consecutive samples. Those whose seq is in `errors` failed."""
    return [
        Sample(
            seq, time_ms + path_of_socket * step_ms, 1000 + seq,
            {name: None if seq in errors else 20 + seq % 50 / 10 if name == "temperature" else seq for name in names},
            dict.fromkeys(names, "no response") if seq in errors else {}, clock,
        )
        for path_of_socket, seq in enumerate(range(first, first + count))
    ]  # fmt: skip


def history(seed):
    """Return (node, epoch, items) of random commits: with clock steps, other sensors, gaps and several epochs."""
    rnd = random.Random(seed)
    seqs, times, commits = {}, {}, []
    for _ in range(25):
        node, epoch = rnd.choice("abc"), rnd.choice((E1, E2))
        key = node, epoch
        seq, time_ms = seqs.get(key, 0), times.get(key, NOON + rnd.randrange(HOUR_MS))
        items = []
        for _ in range(rnd.randrange(1, 4)):
            if rnd.random() < 0.2:
                count = rnd.randrange(1, 9)
                items.append(Gap(seq + 1, seq + count, rnd.choice((0, 3)), "overwritten"))
                seq += count
                continue
            filed = []
            for _ in range(rnd.randrange(1, 4)):
                if rnd.random() < 0.3:
                    time_ms += rnd.choice((-2 * HOUR_MS, -5000, HOUR_MS, 40 * HOUR_MS, -(time_ms % HOUR_MS)))
                count, step_ms = rnd.randrange(1, 40), rnd.choice((1, 500, 10_000, 600_000))
                names = rnd.choice((("temperature", "light"), ("temperature",), ("light", "temperature")))
                made = samples(seq + 1, count, time_ms, step_ms, names, rnd.choice(("", "", "unset")), {seq + 2})
                filed += made
                seq, time_ms = seq + count, made[-1].time_ms + step_ms
            items.append(filed)
        seqs[key], times[key] = seq, time_ms
        commits.append((node, epoch, items))
    return commits


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self, memory_disk())
        self.path = os.path.join(self.folder, "pigeonpost.sqlite3")
        self.enterContext(mock.patch.object(row_conversion, "_PIECE_ROWS", 100))
        migration_log = self.enterContext(mock.patch.object(migration, "log"))
        self.warnings = migration_log.warning
        self.enterContext(mock.patch.object(migration, "_free_bytes", lambda path: self.free_bytes))
        self.free_bytes = 1 << 40

    def make(self, commits, version=3, filed=0):
        """Write an old file whose log is recorded up to the filing number `filed`."""
        with OldStore(self.folder, version) as old:
            for node, epoch, items in commits:
                old.put(node, epoch, *items, units=UNITS, noted_ms=NOON)
            if filed:
                old.record("a.csv", 100, 7, filed)

    def read(self):
        """Return all samples by (node, epoch, seq), each as (time, values as text, clock), and the table of each."""
        found, places = {}, {}
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            nodes = dict(db.execute("SELECT id, name FROM nodes"))
            epochs = dict(db.execute("SELECT id, epoch FROM epochs"))
            shapes = {id: json.loads(names) for id, names in db.execute("SELECT id, names FROM shapes")}
            for table in ("chunks", "fresh"):
                for row in map(ChunkRow._make, db.execute(f"SELECT {COLUMNS} FROM {table}")):
                    batch = row.unpack(shapes[row.shape])
                    self.assertEqual({time_ms // HOUR_MS for time_ms in batch.times}, {row.low // HOUR_MS})
                    self.assertEqual((row.low, row.high), (min(batch.times), max(batch.times)))
                    for sample in batch:
                        key = nodes[row.node], epochs[row.epoch], sample.seq
                        self.assertNotIn(key, found)
                        found[key] = sample.time_ms, repr(sample.values), sample.clock
                        places[key] = table
        return found, places

    def expected(self, commits):
        return {
            (node, epoch, sample.seq): (sample.time_ms, repr(sample.values), sample.clock)
            for node, epoch, items in commits for item in items if not isinstance(item, Gap) for sample in item
        }  # fmt: skip

    def ask(self, query):
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            return db.execute(query).fetchall()


class Content(Case):
    def assert_whole(self, commits, filed):
        """Check everything against the stored commits."""
        found, places = self.read()
        self.assertEqual(found, self.expected(commits))
        filings = [(node, epoch, item) for node, epoch, items in commits for item in items]
        owed = filings[filed:]
        in_fresh = {key for node, epoch, item in owed for key in self.expected([(node, epoch, [item])])}
        self.assertEqual({key for key, table in places.items() if table == "fresh"}, in_fresh)
        self.assertEqual(self.ask("SELECT DISTINCT name, unit FROM sensors ORDER BY name DESC"), list(UNITS.items()))
        gaps = [(node, epoch, *item, NOON) for node, epoch, item in filings if isinstance(item, Gap)]
        self.assertEqual(gaps, self.ask(
            'SELECT n.name, e.epoch, g.first, g.last, g.before, g.why, g.noted FROM gaps g'
            " JOIN epochs e ON e.id = g.epoch JOIN nodes n ON n.id = e.node ORDER BY g.id"
        ))  # fmt: skip
        marks = {(node, epoch): max(item.last if isinstance(item, Gap) else item[-1].seq for item in items)
                 for node, epoch, items in commits}  # fmt: skip
        stored = self.ask("SELECT n.name, e.epoch, e.seq FROM epochs e JOIN nodes n ON n.id = e.node")
        self.assertEqual({(node, epoch): seq for node, epoch, seq in stored}, marks)
        failed = sum(len(sample.errors) for _, _, item in filings if isinstance(item, list) for sample in item)
        self.assertEqual(self.ask("SELECT count(*) FROM failures"), [(failed,)])
        self.assertEqual(self.ask("PRAGMA integrity_check"), [("ok",)])
        self.assertEqual(self.ask("PRAGMA user_version"), [(schema.VERSION,)])
        with contextlib.closing(sqlite3.connect(":memory:")) as model:
            schema.make_tables(model)
            tables = row_conversion._tables(model, "main")
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            self.assertEqual(row_conversion._tables(db, "main") - {"sqlite_sequence"}, tables)
        self.assert_log(owed)

    def assert_log(self, owed):
        """Check that the CSV log gets the same bytes as from the old program."""
        store = SqliteStore(self.folder)
        self.addCleanup(store.close)
        self.assertEqual((store.identity, store.damage), (IDENTITY, ""))
        mark = store.log_mark()
        rows = b"".join(map(logged_rows, store.logged_after(mark.filed if mark else 0)))
        expected = b""
        for node, epoch, item in owed:
            batches = [item] if isinstance(item, Gap) else row_batches(item)
            expected += b"".join(log_rows(node, epoch, batch, UNITS, NOON) for batch in batches)
        self.assertEqual(rows, expected)
        self.assertEqual(list(store.verify()), [])
        store.close()

    def test_each_sample_is_stored_once(self):
        for seed in range(SEEDS):
            for in_place in (False, True):
                with self.subTest(seed=seed, in_place=in_place):
                    shutil.rmtree(self.folder)
                    os.mkdir(self.folder)
                    commits = history(seed)
                    filings = sum(len(items) for _, _, items in commits)
                    filed = (filings - 20, 0, filings, filings // 2)[seed % 4]
                    self.make(commits, filed=filed)
                    self.free_bytes = (40 << 20) if in_place else 1 << 40
                    if in_place:
                        self.enterContext(mock.patch.object(migration, "_SPARE_BYTES", 1 << 30))
                    migration.migrate(self.path)
                    self.assertEqual(os.path.exists(f"{self.path}.v3"), not in_place)
                    self.assert_whole(commits, filed)

    def test_formats_1_and_2_are_migrated(self):
        for version in (1, 2):
            for in_place in (False, True):
                with self.subTest(version=version, in_place=in_place):
                    shutil.rmtree(self.folder)
                    os.mkdir(self.folder)
                    commits = [("a", E1, [samples(1, 300, NOON + 1)])]
                    self.make(commits, version, filed=1)
                    self.enterContext(mock.patch.object(migration, "_SPARE_BYTES", (1 << 50) if in_place else 0))
                    self.assertTrue(migration.is_old(self.path))
                    migration.migrate(self.path)
                    self.assertFalse(migration.is_old(self.path))
                    self.assertEqual(os.path.exists(f"{self.path}.v{version}"), not in_place)
                    self.assert_whole(commits, 1)
                    # 50 minutes of samples.
                    ends = [NOON + 600_000 * number for number in range(1, 6)] + [NOON + HOUR_MS]
                    self.assertEqual(self.ask('SELECT "end" FROM unsummed ORDER BY span, "end"'),
                                     [(end,) for end in ends])  # fmt: skip

    def test_reused_name_of_a_log_repeats_no_rows(self):
        """Format 3 counted the last new name as the last log, so its mark may be older than what was written."""
        with OldStore(self.folder) as old:
            filed = old.put("a", E1, samples(1, 5), *(Gap(seq, seq, 0, "lost") for seq in range(6, 10)), units=UNITS)
            old.record("a.csv", 1, 1, 1)
            old.record("b.csv", 1, 1, 2)
            old.record("a.csv", 2, 2, filed)
            old.put("a", E1, samples(10, 3))
        with contextlib.closing(SqliteStore(self.folder)) as store:
            owed = [item for logged in store.logged_after(store.log_mark().filed) for item in logged.items]
        self.assertEqual([(item.seq, len(item)) for item in owed], [(10, 3)])

    def test_records_of_operators_are_kept(self):
        with OldStore(self.folder) as old:
            old.put("a", E1, samples(1, 3), units=UNITS)
            old.db.execute("INSERT INTO retired VALUES (1, 5)")
            old.db.execute("INSERT INTO former_names VALUES ('b', 1, 7, 0)")
            old.db.execute("INSERT INTO labels VALUES (1, 'temperature', 'Cellar')")
            old.db.execute("INSERT INTO summaries VALUES (1, 'light', 600000, 1200000, 2, 1, 1, 1, 1, 1, 0)")
        migration.migrate(self.path)
        for table, row in (
            ("retired", (1, 5)), ("former_names", ("b", 1, 7, 0)), ("labels", (1, "temperature", "Cellar")),
            ("outboxes", (1, E1, 3)), ("summaries", (1, "light", 600000, 1200000, 2, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)),
        ):  # fmt: skip
            self.assertEqual(self.ask(f"SELECT * FROM {table}"), [row])

    def test_commits_that_are_only_in_the_wal_are_migrated(self):
        """As after `kill -9`, the file alone contains none of them."""
        with OldStore(self.folder) as old:
            old.put("a", E1, samples(1, 30), units=UNITS)
            aside = temp_folder(self)
            for end in ("", "-wal"):
                shutil.copy(self.path + end, aside)
        for name in os.listdir(aside):
            shutil.copy(os.path.join(aside, name), self.folder)
        self.assertGreater(os.path.getsize(f"{self.path}-wal"), 0)
        self.assertIsNone(migration.migrate(self.path))
        self.assertEqual(len(self.read()[0]), 30)

    def test_progress_is_logged_and_systemd_waits(self):
        self.make([("a", E1, [samples(1, 350)])], filed=1)
        path_of_socket = os.path.join(self.folder, "notify")
        ticks = itertools.count(step=20)
        with (
            contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd,
            mock.patch.dict(os.environ, NOTIFY_SOCKET=path_of_socket),
            mock.patch.object(migration, "time", mock.Mock(monotonic=lambda: next(ticks))),  # not for other threads
            mock.patch.object(migration, "log") as log,
        ):
            systemd.bind(path_of_socket)
            migration.migrate(self.path)
            systemd.setblocking(False)
            received = [systemd.recv(100), systemd.recv(100)]
        self.assertEqual(received, [b"EXTEND_TIMEOUT_USEC=900000000", b"EXTEND_TIMEOUT_USEC=120000000"])
        lines = [call.args[0] % call.args[1:] for call in log.info.call_args_list]
        self.assertEqual(lines[0], f"{self.path}: converting 350 samples to the new format")
        self.assertEqual(lines[1], f"{self.path}: 28 % converted, about 100 s left")
        self.assertIn("the old file is kept as", lines[-1])

    def test_old_file_is_kept_unchanged(self):
        commits = history(1)
        self.make(commits)
        with open(self.path, "rb") as file:
            before = file.read()
        migration.migrate(self.path)
        with open(f"{self.path}.v3", "rb") as file:
            self.assertEqual(file.read(), before)
        self.assertEqual(sorted(os.listdir(self.folder)), ["pigeonpost.sqlite3", "pigeonpost.sqlite3.v3"])

    def test_existing_copy_is_not_replaced(self):
        self.make(history(1))
        with open(f"{self.path}.v3", "w") as file:
            file.write("precious")
        migration.migrate(self.path)
        with open(f"{self.path}.v3") as file:
            self.assertEqual(file.read(), "precious")
        self.assertTrue(os.path.exists(f"{self.path}.v3_2"))

    def test_old_file_is_copied_without_hard_links(self):
        self.make(history(1))
        with mock.patch.object(os, "link", side_effect=PermissionError):
            migration.migrate(self.path)
        with contextlib.closing(sqlite3.connect(f"{self.path}.v3")) as db:
            self.assertEqual(db.execute("PRAGMA user_version").fetchone(), (3,))
        self.assertFalse(migration.is_old(self.path))

    def test_database_on_another_disk_stays_there(self):
        self.make(history(1))
        elsewhere = os.path.join(temp_folder(self, memory_disk()), "x.sqlite3")
        os.rename(self.path, elsewhere)
        os.symlink(elsewhere, self.path)
        migration.migrate(self.path)
        self.assertEqual((os.readlink(self.path), os.listdir(self.folder)), (elsewhere, ["pigeonpost.sqlite3"]))
        self.assertTrue(os.path.exists(f"{elsewhere}.v3"))
        self.assertFalse(migration.is_old(self.path))

    def test_symbolic_links_are_not_followed(self):
        victim = os.path.join(temp_folder(self), "victim")
        with open(victim, "w"):
            pass
        self.make(history(1))
        for end in (".migrating", ".v3.part"):
            os.symlink(victim, f"{self.path}{end}")
        with mock.patch.object(os, "link", side_effect=PermissionError):
            migration.migrate(self.path)
        self.assertEqual(os.path.getsize(victim), 0)
        self.assertFalse(migration.is_old(self.path))

    def test_windows_with_a_sample_on_an_edge_become_dirty(self):
        hour = SPANS_MS[-1]
        with OldStore(self.folder) as old:
            old.put("a", E1, samples(1, 1, NOON), samples(2, 1, NOON + 600_000), samples(3, 1, NOON + 700_000),
                    samples(4, 1, NOON - 3 * hour))  # fmt: skip
            old.record("a.csv", 1, 1, 4)
            old.db.execute("DELETE FROM unsummed")
            old.db.execute("UPDATE nodes SET kept_from = ?", (NOON - 2 * hour,))
        migration.migrate(self.path)
        short = SPANS_MS[0]
        late = NOON - 3 * hour  # the samples of earlier windows are deleted, so these keep their old edges
        dirty = {(short, NOON), (hour, NOON), (short, NOON + short), (hour, NOON + hour), (short, NOON + 2 * short),
                 (short, late + short), (hour, late + hour)}  # fmt: skip
        self.assertEqual(set(self.ask('SELECT span, "end" FROM unsummed')), dirty)
        self.assertEqual(self.ask("SELECT kept_from, old_edges FROM nodes"), [(NOON - 2 * hour,) * 2])

    def test_invalid_json_does_not_affect_other_samples(self):
        self.make([("a", E1, [samples(1, 50)])], filed=1)
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.execute("""UPDATE samples SET "values" = '[20.5, 1' WHERE seq = 20""")
            db.commit()
        with mock.patch.object(row_conversion, "log") as log:
            migration.migrate(self.path)
        self.assertEqual(log.warning.call_args.args[1:], (20, 1))
        rows = self.ask(f"SELECT {COLUMNS} FROM chunks ORDER BY first")
        found = []
        for row in map(ChunkRow._make, rows):
            if row.first <= 20 < row.first + row.count:
                self.assertEqual(row.count, 1)
                self.assertRaises(ValueError, row.unpack, ["temperature", "light"])
            else:
                found += [sample.seq for sample in row.unpack(["temperature", "light"])]
        self.assertEqual(found, [*range(1, 20), *range(21, 51)])

    def test_row_without_a_time_is_damage_and_the_old_file_stays(self):
        self.make([("a", E1, [samples(1, 5)])], filed=1)
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.execute("UPDATE samples SET time = 'noon' WHERE seq = 3")
            db.commit()
        self.assertRaises(StoreDamaged, migration.migrate, self.path)
        self.assertEqual(self.ask("SELECT count(*) FROM samples"), [(5,)])

    def test_commits_lost_with_a_damaged_wal_are_reported(self):
        with OldStore(self.folder) as old:
            for first in range(1, 41):
                old.put("a", E1, samples(first, 1), units=UNITS)
            aside = temp_folder(self)
            for end in ("", "-wal"):
                shutil.copy(self.path + end, aside)
        for name in os.listdir(aside):
            shutil.copy(os.path.join(aside, name), self.folder)
        with open(f"{self.path}-wal", "r+b") as file:
            file.seek(os.path.getsize(f"{self.path}-wal") // 2)
            file.write(b"\xff" * 100)
        damage = migration.migrate(self.path)
        self.assertIn("whose last 25 transactions cannot be read", damage.text)
        self.assertEqual({seq for _, _, seq in self.read()[0]}, set(range(1, len(self.read()[0]) + 1)))


def row_batches(filed):
    """Return each sample as a batch of its own."""
    return [batches_of([sample])[0] for sample in filed]


class DiskSpace(Case):
    def test_file_is_converted_in_place_without_space_for_two(self):
        commits = history(2)
        self.make(commits)
        self.free_bytes = 40 << 20
        with mock.patch.object(migration, "_SPARE_BYTES", 41 << 20):
            migration.migrate(self.path)
        self.assertIn("no copy of the old file is kept, because a copy needs", self.warnings.call_args.args[1])
        self.assertEqual(self.read()[0], self.expected(commits))
        self.assertEqual([name for name in os.listdir(self.folder) if "-" not in name], ["pigeonpost.sqlite3"])

    def test_second_name_of_the_file_is_not_kept_as_a_copy(self):
        """A kill between link and rename leaves two names of one database, which is damaged if both are used."""
        commits = history(2)
        self.make(commits)
        with mock.patch.object(migration, "sync_folder", side_effect=Killed), self.assertRaises(Killed):
            migration.migrate(self.path)
        self.assertTrue(os.path.samefile(self.path, f"{self.path}.v3"))
        self.free_bytes = 40 << 20
        with mock.patch.object(migration, "_SPARE_BYTES", 41 << 20):
            migration.migrate(self.path)
        self.assertEqual(self.read()[0], self.expected(commits))
        self.assertEqual(os.stat(self.path).st_nlink, 1)

    def test_full_disk_during_the_migration_switches_to_conversion_in_place(self):
        commits = history(2)
        self.make(commits)
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with mock.patch.object(row_conversion.RowConversion, "_finish", side_effect=[full, None]):
            migration.migrate(self.path)
        self.assertFalse(os.path.exists(f"{self.path}.migrating"))
        migration.migrate(self.path)  # `_finish` was a mock above
        self.assertEqual(self.read()[0], self.expected(commits))

    def test_file_is_unchanged_without_any_space(self):
        self.make(history(2))
        with open(self.path, "rb") as file:
            before = file.read()
        self.free_bytes = 1000
        with self.assertRaises(NotStored) as caught:
            migration.migrate(self.path)
        self.assertIn(
            "which needs 33,554,432 bytes of free space, but only 1,000 are free. Nothing was changed",
            str(caught.exception),
        )
        with open(self.path, "rb") as file:
            self.assertEqual(file.read(), before)

    @mock.patch.object(migration, "_BUSY_S", 0.0)
    def test_file_that_another_program_reads_is_not_migrated(self):
        with OldStore(self.folder) as old:
            old.put("a", E1, samples(1, 30), units=UNITS)
            with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
                other.execute("BEGIN")
                other.execute("SELECT * FROM samples LIMIT 1").fetchone()
                old.put("a", E1, samples(31, 3), units=UNITS)
                with self.assertRaises(NotStored) as caught:
                    migration.migrate(self.path)
        self.assertIn("another program has it open", str(caught.exception))
        self.assertEqual(len(self.ask("SELECT * FROM samples")), 33)

    def test_disk_error_contains_the_file(self):
        self.make(history(2))
        with (
            mock.patch.object(os, "rename", side_effect=OSError(5, "Input/output error", self.path)),
            self.assertRaises(DiskError) as caught,
        ):
            migration.migrate(self.path)
        self.assertIn("Input/output error", str(caught.exception))
        self.assertTrue(migration.is_old(self.path))


class Interruptions(Case):
    """Tests that stop the migration at each statement and each file operation, and then run it again."""

    def stop_everywhere(self, is_in_place):
        commits = [*history(5)[:12], ("a", E3, [samples(1, 250)])]
        filed = sum(len(items) for _, _, items in commits) - 3
        self.make(commits, filed=filed)
        origin = temp_folder(self)
        shutil.copytree(self.folder, origin, dirs_exist_ok=True)
        spare = (1 << 50) if is_in_place else 0
        self.enterContext(mock.patch.object(migration, "_SPARE_BYTES", spare))
        runs = 0
        while True:
            runs += 1
            shutil.rmtree(self.folder)
            shutil.copytree(origin, self.folder)
            counter = Counter(1 + (runs - 1) * STRIDE)
            try:
                with counter.installed():
                    migration.migrate(self.path)
                break
            except Killed:
                pass
            gc.collect()  # close the files that the exception keeps open, as the end of a process would
            self.assertTrue(os.path.exists(self.path))
            if migration.is_old(self.path):
                self.assertRaises(SettingsError, SqliteStore, self.folder, look_only=True)
                with contextlib.suppress(Killed), Counter(runs % 50 + 1).installed():
                    migration.migrate(self.path)
            if migration.is_old(self.path):
                migration.migrate(self.path)
            self.assertEqual(self.read()[0], self.expected(commits))
        return runs

    def test_migration_into_a_new_file_survives_any_interruption(self):
        self.assertGreater(self.stop_everywhere(False), 100 // STRIDE)
        self.assertTrue(os.path.exists(f"{self.path}.v3"))

    def test_conversion_in_place_survives_any_interruption(self):
        self.assertGreater(self.stop_everywhere(True), 100 // STRIDE)

    def test_transaction_that_must_be_rolled_back_first_is_no_error(self):
        """A kill just after the creation of a store leaves such a rollback journal, because there is no WAL yet."""
        SqliteStore(self.folder).close()
        aside = temp_folder(self)
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("PRAGMA cache_size = 1")
            db.execute("BEGIN")
            for number in range(100):  # more than SQLite keeps in memory, so that it needs the journal
                db.execute("INSERT INTO meta VALUES (?, ?)", (str(number), "x" * 3000))
            for end in ("", "-journal"):
                shutil.copy(self.path + end, aside)
            db.execute("ROLLBACK")
        shutil.rmtree(self.folder)
        shutil.copytree(aside, self.folder)
        self.assertFalse(migration.is_old(self.path))
        SqliteStore(self.folder).close()
        self.assertEqual(self.ask("SELECT count(*) FROM meta WHERE length(value) > 100"), [(0,)])

    def test_damaged_file_of_an_earlier_run_is_replaced(self):
        commits = [("a", E1, [samples(1, 250)])]
        self.make(commits)
        with open(f"{self.path}.migrating", "wb") as file:
            file.write(b"SQLite format 3\0" + b"\xff" * 8176)
        migration.migrate(self.path)
        self.assertEqual(self.read()[0], self.expected(commits))

    def stop_after(self, pieces):
        """Stop a migration in the transaction after `pieces` others."""
        real, done = row_conversion.RowConversion._piece, []

        def piece(work, state):
            is_left = real(work, state)
            done.append(state["done"])
            if len(done) > pieces:
                raise Killed
            return is_left

        with mock.patch.object(row_conversion.RowConversion, "_piece", piece), self.assertRaises(Killed):
            migration.migrate(self.path)
        gc.collect()

    def test_migration_continues_where_it_was_stopped(self):
        commits = [("a", E1, [samples(1, 350)])]
        for in_place in (False, True):
            shutil.rmtree(self.folder)
            os.mkdir(self.folder)
            self.make(commits, filed=1)
            report = mock.Mock()
            with mock.patch.object(migration, "_SPARE_BYTES", (1 << 50) if in_place else 0):
                self.stop_after(3)  # the first piece only finds the node
                migration.migrate(self.path, report)
            self.assertEqual([call.args for call in report.mock_calls], [(200, 350), (300, 350), (350, 350)])
            self.assertEqual(self.read()[0], self.expected(commits))

    def test_samples_that_an_old_program_stored_in_between_are_migrated(self):
        """After the first attempt a user returned to the old program for some time."""
        commits = [("a", E1, [samples(1, 250)])]
        self.make(commits, filed=1)
        self.stop_after(2)
        self.assertTrue(os.path.exists(f"{self.path}.migrating"))
        os.utime(self.path, ns=(1, 1))
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.execute(
                'INSERT INTO samples SELECT node, time - 9999999, epoch, 251, shape, clock, "values"'
                " FROM samples WHERE seq = 250"
            )
            db.execute("UPDATE epochs SET seq = 251")
            db.commit()
        migration.migrate(self.path)
        self.assertEqual(len(self.read()[0]), 251)
        self.assertEqual(self.ask("SELECT seq FROM epochs"), [(251,)])

    def test_database_file_exists_at_every_moment(self):
        self.make(history(2))
        with mock.patch.object(migration, "sync_folder", side_effect=Killed), self.assertRaises(Killed):
            migration.migrate(self.path)
        self.assertTrue(migration.is_old(self.path))


class Counter:
    """Raises Killed instead of executing the k-th statement or file operation."""

    def __init__(self, at):
        self.left = at

    def call(self, do, *args, **more):
        self.left -= 1
        if self.left <= 0:
            raise Killed
        return do(*args, **more)

    @contextlib.contextmanager
    def installed(self):
        counter = self

        class Connection(sqlite3.Connection):
            def execute(self, *args):
                return counter.call(super().execute, *args)

            def executemany(self, *args):
                return counter.call(super().executemany, *args)

        connect = sqlite3.connect
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(
                sqlite3, "connect",
                lambda *args, **more: connect(*args, **more, **({"factory": Connection} if "uri" in more else {})),
            ))  # fmt: skip
            for name in ("link", "rename", "unlink", "fsync"):
                real = getattr(os, name)
                stack.enter_context(mock.patch.object(
                    os, name, lambda *args, real=real, **more: counter.call(real, *args, **more)
                ))  # fmt: skip
            yield


if __name__ == "__main__":
    unittest.main()
