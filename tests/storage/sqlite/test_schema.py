"""Tests of the tables and views of the SQLite store: their content, and the indexes that queries use."""

import contextlib
import os
import random
import re
import sqlite3
import tempfile
import unittest

from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import SettingsError, StoreDamaged
from pigeonpost.storage.models import HOUR_MS, LogMark
from pigeonpost.storage.sqlite import schema
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Sample
from tests.document_blocks import blocks_of
from tests.page_support import use_memory_disk
from tests.storage.test_contract import E1, E2, FAR_MS, file, wrapped
from tests.support import temp_folder

START_MS = 1_795_003_200_000  # start of an hour


def setUpModule():
    use_memory_disk()


class Views(unittest.TestCase):
    """Tests with three hours of two nodes.

    Two hours are in chunks; the last one is in fresh, and has one more sensor.
    """

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        chance = random.Random(1)
        cls.taken = {
            node: [
                Sample(n + 1, START_MS + n * 60_000 + chance.randrange(50), 0,
                       {"t": round(chance.uniform(0, 30), 1) if n % 9 else None} | ({"l": n} if n >= 120 else {}), {},
                       "unset" if n < 3 else "")
                for n in range(180)
            ] for node in ("a", "b c")
        }  # fmt: skip
        with contextlib.closing(SqliteStore(folder.name)) as store:
            for start, stop in ((0, 60), (60, 120), (120, 180)):
                for node, samples in cls.taken.items():
                    filed = file(store, *wrapped(samples[start:stop], node))
                if stop == 120:
                    file(store, log=LogMark("a.csv", 1, 0, filed))
                    while job := store.compaction(FAR_MS):
                        with store.writing(()):
                            job()
        cls.db = sqlite3.connect(f"file:{os.path.join(folder.name, DATABASE)}?mode=ro", uri=True)
        cls.addClassCleanup(cls.db.close)

    def ask(self, query, *values):
        return self.db.execute(query, values).fetchall()

    def plan(self, query):
        return [row[3] for row in self.ask(f"EXPLAIN QUERY PLAN {query}")]

    def test_fresh_and_chunks_both_have_rows(self):
        for table in ("fresh", "chunks"):
            self.assertGreater(self.ask(f"SELECT sum(count) FROM {table}")[0][0], 100)

    def test_readings_contain_all_values(self):
        expected = sorted(
            (node, name, one.time_ms, value)
            for node, samples in self.taken.items() for one in samples for name, value in one.values.items()
        )  # fmt: skip
        found = self.ask("SELECT node, sensor, time_ms, value FROM readings")
        self.assertEqual(sorted(found, key=lambda row: row[:3]), sorted(expected, key=lambda row: row[:3]))
        for text, time_ms, low, high in self.ask("SELECT time, time_ms, chunk_low, chunk_high FROM readings"):
            self.assertTrue(low <= time_ms <= high < low // HOUR_MS * HOUR_MS + HOUR_MS)
            (expected,) = self.ask("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ? / 1000.0, 'unixepoch')", time_ms)
            self.assertEqual(text, expected[0])

    def test_samples_contain_all_samples(self):
        found = self.ask('SELECT node, epoch, seq, time_ms, clock, "values" FROM samples')
        expected = [
            (node, E1, one.seq, one.time_ms, one.clock,
             f"[{','.join('null' if value is None else repr(value) for value in one.values.values())}]")
            for node, samples in self.taken.items() for one in samples
        ]  # fmt: skip
        self.assertEqual(sorted(found), sorted(expected))

    def test_queries_about_a_node_read_its_chunks_only(self):
        low = START_MS + HOUR_MS
        for view in ("readings", "samples"):
            for condition in (
                f"node = 'a' AND chunk_low >= {low}",
                f"node = 'a' AND chunk_low >= {low} AND chunk_low < {low + HOUR_MS} AND time_ms >= {low + 600_000}",
                "node = 'a' ORDER BY chunk_low DESC, time DESC LIMIT 100",
            ):
                with self.subTest(view, condition=condition):
                    plan = self.plan(f"SELECT * FROM {view} WHERE {condition}")
                    self.assertEqual([step for step in plan if step.startswith("SCAN chunks")], [])
                    (search,) = [step for step in plan if step.startswith("SEARCH chunks")]
                    self.assertIn("USING INDEX chunks_of_node (node=?", search)

    def test_queries_about_all_nodes_use_the_index_by_time(self):
        for view in ("readings", "samples"):
            plan = self.plan(f"SELECT * FROM {view} ORDER BY chunk_low DESC LIMIT 101")
            self.assertIn("SCAN chunks USING INDEX chunks_by_time", plan)
            plan = self.plan(f"SELECT * FROM {view} WHERE chunk_low >= {START_MS}")
            self.assertIn("SEARCH chunks USING INDEX chunks_by_time (low>?)", plan)

    def test_newest_readings_of_a_node_are_returned(self):
        found = self.ask("SELECT time_ms FROM readings WHERE node = 'a' AND sensor = 't'"
                         " ORDER BY chunk_low DESC, time DESC LIMIT 100")  # fmt: skip
        times = [one.time_ms for one in self.taken["a"]]
        self.assertEqual([time_ms for (time_ms,) in found], times[:-101:-1])

    def test_queries_of_the_manual_do_not_read_all_chunks(self):
        blocks = [block.text for block in blocks_of("docs/data.md")]
        questions = [text.replace("'basement'", "'a'") for text in blocks if text.startswith("SELECT")]
        self.assertEqual(len(questions), 4)
        found = [self.ask(text) for text in questions]
        self.assertEqual(found[0], [
            (*self.ask("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ? / 1000.0, 'unixepoch')", one.time_ms)[0], "t",
             one.values["t"]) for one in self.taken["a"][:60]
        ])  # fmt: skip
        self.assertEqual(len(found[1]), 100)
        self.assertEqual(found[2], [("a", 180), ("b c", 180)])
        for text in questions[:2]:
            self.assertEqual([step for step in self.plan(text) if step.startswith("SCAN chunks")], [])
        (program,) = [text for text in blocks if "import sqlite3, pandas" in text]
        compile(program, "docs/data.md", "exec")
        (query,) = re.findall(r'query = "(.*)"', program)
        self.assertEqual(len(self.ask(query, "a", START_MS)), 180 + 60)

    def test_statistics_contain_windows_and_their_state(self):
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            schema.make_tables(db)
            db.execute("INSERT INTO nodes (id, name) VALUES (1, 'a')")
            db.execute("INSERT INTO sensors VALUES (1, 't', '°C')")
            db.execute(
                "INSERT INTO summaries VALUES (1, 't', 600000, ?, 60, 2.0, 1.5, 1.0, 0.0, 9.0, 3.0)", (START_MS,)
            )
            self.assertEqual(
                db.execute("SELECT * FROM statistics").fetchall(),
                [("a", "t", "°C", 10, "2026-11-18T11:50:00Z", "2026-11-18T12:00:00Z", START_MS, 60, 2.0, 1.5, 1.0, 0.0,
                  9.0, 3.0, "left", 0)],
            )  # fmt: skip
            asked = "SELECT closed, outdated FROM statistics"
            db.execute("INSERT INTO unsummed VALUES (1, 600000, ?)", (START_MS,))
            self.assertEqual(db.execute(asked).fetchall(), [("left", 1)])
            for edge, closed in ((START_MS - 1, "left"), (START_MS, "right")):
                db.execute("UPDATE nodes SET old_edges = ?", (edge,))
                self.assertEqual(db.execute(asked).fetchall(), [(closed, 1)])


class Versions(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.path = os.path.join(self.folder, DATABASE)

    def version(self, number):
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.execute(f"PRAGMA user_version = {number}")

    def test_new_file_has_all_tables_or_none(self):
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.execute("CREATE TABLE labels (id)")
            with self.assertRaises(sqlite3.OperationalError):
                schema.bring_up_to_date(db, self.path)
            db.execute("ROLLBACK")
            self.assertEqual(db.execute("SELECT count(*) FROM sqlite_schema").fetchone(), (1,))
            self.assertEqual(db.execute("PRAGMA user_version").fetchone(), (0,))

    def test_files_of_other_versions_are_refused(self):
        SqliteStore(self.folder).close()
        for version, error, words in ((99, SettingsError, "newer Pigeonpost"), (5000, StoreDamaged, "format 5000"),
                                      (1000, SettingsError, "in the middle of a format conversion")):  # fmt: skip
            self.version(version)
            with self.subTest(version), self.assertRaisesRegex(error, words):
                SqliteStore(self.folder, look_only=True)
        self.version(3)
        with self.assertRaisesRegex(SettingsError, "older Pigeonpost: start the server of this version once"):
            SqliteStore(self.folder, look_only=True)

    def test_identity_is_permanent(self):
        with contextlib.closing(SqliteStore(self.folder)) as store:
            identity = store.identity
            file(store, *wrapped([Sample(1, START_MS, 0, {"t": 1}, {}, "")], epoch=E2))
        with contextlib.closing(SqliteStore(self.folder)) as store:
            self.assertEqual(store.identity, identity)


if __name__ == "__main__":
    unittest.main()
