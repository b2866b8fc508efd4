"""Tests of the import of files into a real store, also with interruptions."""

import hashlib
import io
import random
import time
import unittest
from unittest import mock

from pigeonpost.core.errors import NotStored
from pigeonpost.importing import blocks, importer
from pigeonpost.importing.importer import FAULTS_SHOWN, BadFile, import_readings, inspect_readings
from pigeonpost.server import ingest
from protocol import IMPORTED
from tests.importing.test_readers import row_by_row
from tests.support import rounds, wait_until
from tests.web.support import WebHouse

FAR_MS = 1 << 52


def table(rows, start=1_795_000_000):
    return "time,a,b\n" + "".join(f"{start + row},{row},{row / 4}\n" for row in range(rows))


class Case(unittest.TestCase):
    def setUp(self):
        self.web = WebHouse(self)

    def import_text(self, text, name="x.csv", node="attic"):
        file = io.BytesIO(text.encode())
        inspect_readings(file, name)
        checksum = hashlib.sha256(text.encode()).hexdigest()
        return import_readings(file, name, checksum, self.web.ingestor, node)

    def stored(self, node="attic"):
        return self.web.store.points(node, 0, FAR_MS, 1_000_000)


class Importing(Case):
    def test_repeated_import_stores_each_reading_once(self):
        self.assertEqual(self.import_text(table(1234)), (1234, 1234))
        self.assertEqual(self.import_text(table(1234)), (1234, 0))
        points = self.stored()
        self.assertEqual([point.values for point in points], [{"a": row, "b": row / 4} for row in range(1234)])
        self.assertEqual([point.seq for point in points], list(range(1, 1235)))
        epoch = hashlib.sha256(table(1234).encode()).hexdigest()[:16]
        self.assertEqual({point.epoch for point in points}, {epoch})
        self.assertEqual(list(self.web.store.verify()), [])

    def test_readings_are_numbered_alike_by_column_and_row_by_row(self):
        """Otherwise a file that an earlier version imported would not be recognised."""
        self.enterContext(mock.patch.object(blocks, "BLOCK_ROWS", 64))
        text = "time,a,b\n" + "".join(
            f"{1_795_000_000 + row},{'+' if row % 200 > 150 else ''}{row},{row if row % 100 > 30 else ''}\n"
            for row in range(1000)
        )
        self.assertEqual(self.import_text(text), (1000, 1000))
        by_column = self.stored()
        with row_by_row():
            self.assertEqual(self.import_text(text), (1000, 0))
            self.assertEqual(self.import_text(text, node="cellar"), (1000, 1000))
        self.assertEqual([point._replace(node="attic") for point in self.stored("cellar")], by_column)

    def test_interrupted_import_is_continued(self):
        self.enterContext(mock.patch.object(blocks, "BLOCK_ROWS", 500))
        chance = random.Random(7)
        text, total = table(5000), 0
        real = self.web.ingestor.submit
        for _ in range(rounds("PIGEONPOST_TEST_IMPORT_STOPS", 4, 20)):
            left = [chance.randrange(1, 5)]

            def submit(*args, left=left, **more):
                left[0] -= 1
                return left[0] >= 0 and real(*args, **more)

            with mock.patch.object(self.web.ingestor, "submit", submit), self.assertRaises(NotStored):
                self.import_text(text)
            self.web.ingestor.flush(60)
            before, total = total, len(self.stored())
            self.assertGreaterEqual(total, before)
        self.assertEqual(self.import_text(text)[0], 5000)
        self.assertEqual([point.values["a"] for point in self.stored()], list(range(5000)))

    def test_interrupted_import_of_a_table_with_one_row_per_value_is_continued(self):
        self.enterContext(mock.patch.object(blocks, "BLOCK_ROWS", 64))
        text = "entity_id,state,last_changed\n" + "".join(
            f"sensor.s{row % 3},{row if row % 7 else 'unavailable'},{1_795_000_000 + row}\n" for row in range(600)
        )
        real, left = self.web.ingestor.submit, [5]

        def submit(*args, **more):
            left[0] -= 1
            return left[0] >= 0 and real(*args, **more)

        with mock.patch.object(self.web.ingestor, "submit", submit), self.assertRaises(NotStored):
            self.import_text(text)
        self.web.ingestor.flush(60)
        stored = len(self.stored())
        self.assertEqual(self.import_text(text), (600, 600 - stored))
        self.assertEqual(self.import_text(text), (600, 0))
        found = sorted((point.time_ms, *point.values.items()) for point in self.stored())
        wanted = [((1_795_000_000 + row) * 1000, (f"s{row % 3}", row if row % 7 else None)) for row in range(600)]
        self.assertEqual(found, wanted)

    def test_import_succeeds_after_the_disk_was_full(self):
        full = mock.patch.object(self.web.store, "writing", side_effect=NotStored("full"))
        full.start()
        self.addCleanup(full.stop)
        self.enterContext(mock.patch.object(ingest, "_RETRY_S", 0.02))
        with mock.patch.object(importer, "STORE_S", 0.05), self.assertLogs("pigeonpost.server.ingest") as logged:
            wait_until(
                self.is_refused, "the writer has tried"
            )  # on a busy machine, STORE_S may be over before the first try
            full.stop()
            wait_until(lambda: "samples are stored again" in "".join(logged.output), "the disk has room again")
        self.assertEqual(self.import_text(table(3))[0], 3)
        self.assertEqual(len(self.stored()), 3)

    def is_refused(self):
        with self.assertRaises(NotStored):
            self.import_text(table(3))
        return self.web.ingestor.fault

    def test_last_batch_does_not_wait_for_the_next_commit(self):
        self.enterContext(mock.patch.object(self.web.ingestor, "commit_s", 3600.0))
        self.assertEqual(
            [self.import_text(table(rows, 1_795_000_000 + rows * 100)) for rows in (3, 4)], [(3, 3), (4, 4)]
        )

    def test_log_of_several_nodes_is_imported_per_node(self):
        text = "time,node,sensor,value,unit\n" + "".join(
            f"2026-11-20T15:36:{second:02d}Z,{node},t,{second},°C\n" for second in range(60) for node in ("a", "b")
        )
        self.assertEqual(self.import_text(text, node=""), (120, 120))
        self.assertEqual([point.values["t"] for point in self.stored("a")], list(range(60)))
        self.assertEqual([point.values["t"] for point in self.stored("b")], list(range(60)))
        self.assertEqual(self.import_text(text, node=""), (120, 0))

    def test_failed_readings_are_imported_as_failed(self):
        self.import_text("time,node,sensor,value,unit\n2026-11-20T15:36:10Z,n,t,,°C\n")
        self.assertEqual(self.stored()[0].values, {"t": None})

    def test_imported_readings_do_not_replace_the_latest_sample_of_a_node(self):
        """The page continues to show the last sample that the node itself has sent."""
        self.web.store_samples("attic", [{"a": 99}])
        self.import_text(table(3))
        self.assertEqual(self.web.ingestor.latest["attic"].sample.values, {"a": 99})

    def test_node_with_imported_readings_only_shows_the_newest(self):
        for start, newest in ((1_795_000_000, 2), (1_796_000_000, 9), (1_794_000_000, 9)):
            self.import_text(table(newest + 1 if start != 1_794_000_000 else 5, start))
            node = next(node for node in self.web.web._snapshots._take(time.monotonic()).nodes if node.name == "attic")
            self.assertEqual(node.sensors[0].value, newest)

    def test_csv_log_contains_imported_readings(self):
        self.import_text(table(2))
        path, _ = self.web.csv.whole()
        self.web.ingestor.flush(60)
        self.web.store_samples("other", [{"a": 1}])
        with open(path, encoding="utf-8") as file:
            self.assertEqual(file.read().count(",attic,"), 4)


class Inspecting(unittest.TestCase):
    def look(self, text, name="x.csv"):
        return inspect_readings(io.BytesIO(text.encode()), name)

    def test_summary_has_count_nodes_and_time_range(self):
        self.assertEqual(self.look(table(3)), (3, [""], 1_795_000_000_000, 1_795_000_002_000))

    def test_faults_are_named_and_counted(self):
        with self.assertRaises(BadFile) as caught:
            self.look(table(2) + "1795000000,x,1\n" * 50)
        lines = str(caught.exception).splitlines()
        self.assertEqual(lines[0], "line 4: a must be a number, not 'x'")
        self.assertEqual((len(lines), lines[-1]), (FAULTS_SHOWN + 1, f"and {50 - FAULTS_SHOWN} more"))

    def test_files_without_readings_are_rejected(self):
        for text, name in (("time,a\n", "x.csv"), ("[]", "x.json"), ("time,a\n1795000000,\n", "x.csv")):
            with self.assertRaises(BadFile) as caught:
                self.look(text, name)
            self.assertEqual(str(caught.exception), "the file: it contains no readings")

    def test_times_out_of_range_are_rejected(self):
        for row in (
            "99999999999999999999,1",
            "9999-12-31T23:59:59-12:00,1",
            "0001-01-01T00:00:00Z,1",
            "1960-01-01T00:00:00Z,1",
        ):
            with self.assertRaises(BadFile) as caught:
                self.look(f"time,a\n{row}\n")
            self.assertTrue(str(caught.exception).startswith("line 2: "), caught.exception)

    def test_too_many_nodes_in_a_file_are_rejected(self):
        text = "time,node,sensor,value,unit\n" + "".join(f"1795000000,n{k},t,1,\n" for k in range(150))
        with self.assertRaises(BadFile) as caught:
            self.look(text)
        self.assertIn("more than 100 nodes, which is the maximum", str(caught.exception))


class Names(unittest.TestCase):
    def test_name_of_imports_is_not_a_valid_outbox_id(self):
        self.assertNotRegex(IMPORTED, r"\A[0-9a-f]{16}\Z")


if __name__ == "__main__":
    unittest.main()
