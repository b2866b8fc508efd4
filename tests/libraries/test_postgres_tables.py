"""Import of readings from PostgreSQL tables of other programs, with the command."""

import contextlib
import io
import unittest
from unittest import mock

import control
from pigeonpost.importing import foreign_postgres
from tests.libraries.databases import Database, need_postgres
from tests.support import temp_folder


def setUpModule():
    global DATABASE
    need_postgres()
    DATABASE = Database()
    unittest.addModuleCleanup(DATABASE.drop)
    DATABASE.do("""
        CREATE TABLE public.readings (
            id serial, codifier text, value numeric, added timestamptz, raw json, location text);
        INSERT INTO public.readings (codifier, value, added, raw, location) VALUES
            ('C4', 20.5, '2026-11-20 15:36:10+00', '{"a": 1}', 'Living room'),
            ('C5', 3, '2026-11-20 16:36:10.25+01', NULL, 'Living room'),
            ('C4', NULL, '2026-11-20 15:36:20+00', NULL, 'Living room')
    """)
    DATABASE.do("CREATE TABLE public.bad (time timestamp, node text, value text)")
    DATABASE.do("INSERT INTO public.bad VALUES ('2026-11-20', 'a', 'warm')")


class ImportTest(unittest.TestCase):
    def setUp(self):
        self.data = temp_folder(self)

    def run_import(self, *arguments, status=0):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.assertEqual(control.main(["--data", self.data, "import", *arguments]), status, err.getvalue())
        return out.getvalue() + err.getvalue()

    def export(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            control.main(["--data", self.data, "export"])
        return [line.split(",", 1)[1] for line in out.getvalue().splitlines()[1:]]

    def test_repeated_import_of_a_table_stores_each_reading_once(self):
        said = self.run_import("--table", "public.readings", DATABASE.url)
        self.assertIn("3 readings, 3 new, 2026-11-20 15:36:10+00:00 to 2026-11-20 15:36:20+00:00", said)
        # PostgreSQL returns rows in their physical order, which an update changes.
        DATABASE.do("UPDATE public.readings SET id = id WHERE codifier = 'C5'")
        self.assertIn("3 readings, 0 new", self.run_import("--table", "public.readings", DATABASE.url))
        self.assertEqual(sorted(self.export()), ["Living_room,c4,,", "Living_room,c4,20.5,", "Living_room,c5,3,"])

    def test_query_replaces_the_recognition_of_columns(self):
        query = "SELECT added AS time, value / 2 AS temperature FROM readings WHERE codifier = 'C4' AND value > 0"
        self.assertIn("1 reading,", self.run_import("--query", query, "--node", "attic", DATABASE.url))
        self.assertEqual(self.export(), ["attic,temperature,10.25,"])

    def test_unreadable_data_is_reported_and_nothing_is_stored(self):
        for arguments, words in (
            ((), "with --table, or use --query"), (("--table", "nothing"), "nothing"),
            (("--query", "SELECT 1 AS x"), "there is no column `time`"),
            (("--query", "DELETE FROM readings RETURNING *"), "PostgreSQL:"), (("--table", "bad"), "row 1: "),
        ):  # fmt: skip
            self.assertIn(words, self.run_import(*arguments, DATABASE.url, status=1), arguments)
        self.assertEqual(DATABASE.do("SELECT count(*) FROM public.readings"), [(3,)])
        self.assertEqual(self.export(), [])

    def test_error_about_an_unreachable_database_does_not_contain_the_password(self):
        said = self.run_import("--table", "x", "postgresql://me:very-secret@127.0.0.1:1/sensors", status=1)
        self.assertIn("postgresql://127.0.0.1:1/sensors", said)
        self.assertNotIn("very-secret", said)

    def test_missing_psycopg_is_reported(self):
        with mock.patch.dict("sys.modules", {"psycopg": None}):
            said = self.run_import("--table", "readings", DATABASE.url, status=2)
        self.assertIn("python3-psycopg", said)

    def test_addresses_of_databases_are_recognised(self):
        for text, right in (
            ("postgresql://host/db", True), ("postgres://u:p@host:5432/db?sslmode=require", True),
            ("postgresql", False), ("readings.csv", False), ("https://host/db", False),
        ):  # fmt: skip
            self.assertEqual(bool(foreign_postgres.IS_URL(text)), right, text)


if __name__ == "__main__":
    unittest.main()
