"""Readings out of another program's PostgreSQL tables, by the command as people use it."""

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


class Importing(unittest.TestCase):
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

    def test_a_table_each_reading_once_however_often(self):
        said = self.run_import("--table", "public.readings", DATABASE.url)
        self.assertIn("3 readings, 3 of them new, 2026-11-20T15:36:10.000Z", said)
        # PostgreSQL hands the rows of a table out as they lie there, which a change of one changes.
        DATABASE.do("UPDATE public.readings SET id = id WHERE codifier = 'C5'")
        self.assertIn("3 readings, 0 of them new", self.run_import("--table", "public.readings", DATABASE.url))
        self.assertEqual(sorted(self.export()), ["Living_room,c4,,", "Living_room,c4,20.5,", "Living_room,c5,3,"])

    def test_a_query_says_what_names_do_not(self):
        query = "SELECT added AS time, value / 2 AS temperature FROM readings WHERE codifier = 'C4' AND value > 0"
        self.assertIn("1 readings", self.run_import("--query", query, "--node", "attic", DATABASE.url))
        self.assertEqual(self.export(), ["attic,temperature,10.25,"])

    def test_what_cannot_be_read_is_said_and_nothing_is_stored(self):
        for arguments, words in (
            ((), "--table or --query"), (("--table", "nothing"), "nothing"),
            (("--query", "SELECT 1 AS x"), "no column is called time"),
            (("--query", "DELETE FROM readings RETURNING *"), "PostgreSQL:"), (("--table", "bad"), "row 1: "),
        ):  # fmt: skip
            self.assertIn(words, self.run_import(*arguments, DATABASE.url, status=1), arguments)
        self.assertEqual(DATABASE.do("SELECT count(*) FROM public.readings"), [(3,)])
        self.assertEqual(self.export(), [])

    def test_a_database_that_is_not_there_and_no_password_in_what_is_said(self):
        said = self.run_import("--table", "x", "postgresql://me:very-secret@127.0.0.1:1/sensors", status=1)
        self.assertIn("postgresql://127.0.0.1:1/sensors", said)
        self.assertNotIn("very-secret", said)

    def test_without_psycopg(self):
        with mock.patch.dict("sys.modules", {"psycopg": None}):
            said = self.run_import("--table", "readings", DATABASE.url, status=2)
        self.assertIn("python3-psycopg", said)

    def test_which_addresses_are_databases(self):
        for text, right in (
            ("postgresql://host/db", True), ("postgres://u:p@host:5432/db?sslmode=require", True),
            ("postgresql", False), ("readings.csv", False), ("https://host/db", False),
        ):  # fmt: skip
            self.assertEqual(bool(foreign_postgres.IS_URL(text)), right, text)


if __name__ == "__main__":
    unittest.main()
