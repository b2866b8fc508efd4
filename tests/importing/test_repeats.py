"""Import of files that have readings in common with an earlier import: each reading is stored once."""

from unittest import mock

from pigeonpost.core.errors import NotStored
from pigeonpost.importing import blocks
from tests.importing.test_importer import Case, table

START = 1_795_000_000
LONG = "entity_id,state,last_changed\n"


def values_of(points):
    return sorted((point.time_ms, *sorted(point.values.items())) for point in points)


def long_rows(rows):
    return LONG + "".join(f"sensor.s{row % 3},{row},{START + row // 3}\n" for row in range(rows))


class Repeated(Case):
    def assert_stored_once(self, rows):
        self.assertEqual([point.values["a"] for point in self.stored()], list(range(rows)))
        self.assertEqual(list(self.web.store.verify()), [])

    def test_file_that_has_grown_stores_its_new_rows_only(self):
        self.enterContext(mock.patch.object(blocks, "BLOCK_ROWS", 64))
        before = 0
        for rows in (10, 11, 300, 300, 1000):
            self.assertEqual(self.import_text(table(rows)), (rows, rows - before))
            before = rows
        self.assert_stored_once(1000)

    def test_shorter_file_after_the_longer_stores_nothing(self):
        self.import_text(table(200))
        for rows in (200, 100, 150, 200):
            self.assertEqual(self.import_text(table(rows)), (rows, 0))
        self.assert_stored_once(200)

    def test_overlapping_and_reversed_files_store_new_rows_only(self):
        head, *rows = table(100).splitlines(keepends=True)
        self.import_text(head + "".join(rows[:60]))
        self.assertEqual(self.import_text(head + "".join(rows[30:])), (70, 40))
        self.assertEqual(self.import_text(head + "".join(reversed(rows))), (100, 0))
        self.assertEqual(self.import_text("time;a;b\n" + "".join(rows).replace(",", ";")), (100, 0))
        self.assert_stored_once(100)

    def test_table_with_one_row_per_value_that_has_grown_lacks_and_repeats_no_value(self):
        for rows in (7, 8, 100, 101, 200):
            self.import_text(long_rows(rows))
        stored = [
            (point.time_ms, name, value) for point in self.stored() for name, value in point.values.items()
        ]  # fmt: skip
        wanted = [((START + row // 3) * 1000, f"s{row % 3}", row) for row in range(200)]
        self.assertEqual(sorted(stored), wanted)

    def test_row_whose_last_cells_were_empty_gets_the_missing_values(self):
        self.import_text(f"time,a,b\n{START},1,2\n{START + 1},3,\n")
        self.assertEqual(self.import_text(f"time,a,b\n{START},1,2\n{START + 1},3,4\n{START + 2},5,6\n"), (3, 2))
        at = START * 1000
        self.assertEqual(
            values_of(self.stored()),
            [(at, ("a", 1), ("b", 2)), (at + 1000, ("a", 3)), (at + 1000, ("b", 4)), (at + 2000, ("a", 5), ("b", 6))],
        )

    def test_corrected_value_and_other_time_are_stored(self):
        self.import_text(table(3))
        self.assertEqual(self.import_text(f"time,a,b\n{START},0.5,0\n{START + 1}.5,1,0.25\n"), (2, 2))

    def test_rows_that_are_alike_within_one_file_are_kept_and_not_stored_again(self):
        text = f"time,a\n{START},1\n{START},1\n"
        self.assertEqual(self.import_text(text), (2, 2))
        self.assertEqual(self.import_text(text + f"{START + 1},2\n"), (3, 1))

    def test_own_samples_of_the_node_are_not_imported_again(self):
        self.web.store_samples("attic", [{"a": 99}])
        time_ms = self.stored()[0].time_ms
        self.assertEqual(self.import_text(f"time,a\n{time_ms / 1000:.3f},99\n{time_ms / 1000 - 1:.3f},98\n"), (2, 1))

    def test_interrupted_import_of_a_grown_file_is_continued(self):
        self.enterContext(mock.patch.object(blocks, "BLOCK_ROWS", 64))
        self.import_text(table(150))
        real = self.web.ingestor.submit
        for pieces in (0, 1, 3, 2):
            left = [pieces]

            def submit(*args, left=left, **more):
                left[0] -= 1
                return left[0] >= 0 and real(*args, **more)

            with mock.patch.object(self.web.ingestor, "submit", submit), self.assertRaises(NotStored):
                self.import_text(table(1000))
            self.web.ingestor.flush(60)
        self.assertEqual(self.import_text(table(1000))[0], 1000)
        self.assertEqual(self.import_text(table(1100)), (1100, 100))
        self.assert_stored_once(1100)

    def test_nodes_of_a_log_are_compared_separately(self):
        rows = [f"{START + row},{node},t,{row},°C\n" for row in range(30) for node in ("a", "b")]
        head = "time,node,sensor,value,unit\n"
        self.import_text(head + "".join(rows[:20]), node="")
        self.import_text(head + "".join(row for row in rows[:40] if ",a," in row), node="")
        self.assertEqual(self.import_text(head + "".join(rows), node=""), (60, 30))
        for node in ("a", "b"):
            self.assertEqual([point.values["t"] for point in self.stored(node)], list(range(30)))
