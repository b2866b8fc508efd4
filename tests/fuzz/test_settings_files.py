"""Settings files and environments: valid settings, or an error that names the place of the fault."""

import argparse
import os
import unittest
from pathlib import Path

import node
from pigeonpost.core.config import load
from pigeonpost.core.errors import SettingsError
from pigeonpost.settings import NODE, SERVER
from tests.fuzz import Target, fuzzed, mutated, st
from tests.support import ROOT, temp_folder

ENVIRONMENT = "#env "  # begins a line of the generated file that sets a variable; TOML reads it as a comment
DEFAULTS = [Path(ROOT, name).read_bytes() for name in ("node.default.toml", "server.default.toml")]
SEEDS = [b"".join(line for line in text.splitlines(True) if not line.startswith(b"#")) for text in DEFAULTS]
VALUES = (
    "1", "0", "-1", "64", "65536.0", "1e999", "nan", "-inf", "true", '""', '"each"', '"a\'b"', "[]", "{}", "[1, 2]",
    '["a@b:1"]', '"a@b:1"', '"[::]:5003"', '"a:99999"', '"\\u0000"', '"\\n"', "07:32:00", "1979-05-27", '"\\ud800"',
    "{t = {input = 1, convert = 'ldr_lux', gamma = 0.1}}", "1979-05-27T00:32:00-07:00", '"adc"', '"x" # "', "[" * 2000,
    '{t = {input = "0-1"}}', '{t = {formula = "t"}}', '{t = {formula = "9 ** 9", low = 1}}', '{t = {path = "a.0"}}',
    '{t = {path = "a", raw = true}}', "{a = 'env:PATH'}", '"env:\\u0000"', '"file:/dev/zero"', '"http://[/"',
    "9" * 400, "9" * 5000, "0x" + "f" * 5000, "'''a", "{a.b = 1}", "1_0", "'é'", '"machine"',
)  # fmt: skip
SENSORS = [
    f"[[sensor]]\nkind = {key} = "
    for key in (
        '"machine"\nroot', '"machine"\ndisk', '"adc"\nchannels', '"adc"\nbus', '"formula"\nchannels',
        '"formula"\nfresh', '"json"\nfile = "/x"\nchannels', '"json"\nheaders', '"json"\nchannels.x.path = "a"\nurl',
        '"json"\npreset = "nest"\ndevice',
    )
]  # fmt: skip
TABLES = ("[node]\n", "[server]\n", "[store]\n", "[outbox]\n", "[web]\n", "[[sensor]]\n", "[[node]]\n", "[sensor]\n")
PIECES = [
    *(text.encode() for text in (*VALUES, *SENSORS, *TABLES)),
    b"= ",
    b"\n",
    b"\r",
    b".",
    b"#",
    b'"',
    b"{",
    b"\xff",
]


def files():
    """Return a strategy for a program's settings as TOML, possibly with an environment and unknown keys."""
    numbers = st.sampled_from(("nan", "inf", "-inf", "9" * 400, "0x" + "f" * 5000, "true", "-1")) | st.integers().map(
        str
    )
    values = st.sampled_from(VALUES) | numbers | st.floats().map(str) | st.text(max_size=5).map(ascii)
    given = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=8) | st.sampled_from(VALUES)
    sensor = st.tuples(st.sampled_from(SENSORS), values).map("".join)
    more = st.just("") | st.just("\n") | st.sampled_from(("", *TABLES)) | sensor

    def of(rows):
        keys = st.sampled_from([f"{row.table}.{row.key} = " for row in rows])
        variables = st.sampled_from([f"{ENVIRONMENT}{row.variable}=" for row in rows])
        lines = st.lists(st.tuples(keys, values), max_size=3, unique_by=lambda pair: pair[0])
        variable = st.just([]) | st.just([]) | st.tuples(variables, given).map(lambda pair: [pair])
        return st.tuples(variable, lines).map(lambda two: "\n".join(map("".join, two[0] + two[1])))

    return st.tuples(of(NODE) | of(SERVER), more).map("\n".join).map(str.encode)


class SettingsFiles(Target, unittest.TestCase):
    corpus = "settings"
    MEMORY_BYTES = 16 << 20  # a thousand nested arrays are a thousand lists

    def setUp(self):
        super().setUp()
        self.path = os.path.join(temp_folder(self), "mine.toml")

    def check(self, data):
        Path(self.path).write_bytes(data)
        lines = os.fsdecode(data).split("\n")
        given = [line.removeprefix(ENVIRONMENT).partition("=") for line in lines if line.startswith(ENVIRONMENT)]
        environment = {name: value for name, _, value in given}
        for rows, arrays in ((NODE, ("sensor",)), (SERVER, ())):
            try:
                with self.bounded():
                    found = load(rows, argparse.Namespace(config=self.path), "", arrays, environment)
                    self.assertIn(f"[{rows[0].table}] name = ", found.show())
                    if arrays:
                        self.assertTrue(node.make_sources(found))
            except SettingsError as error:
                self.assertTrue(any(name in str(error) for name in (self.path, *environment)), error)
            else:
                for row in rows:
                    self.check_value(row, found[row.table, row.key])
                    self.assertIn(found.origin(row.table, row.key), ("default", self.path, row.variable))

    def check_value(self, row, value):
        """Check that a value is in the range of its setting, by rules written for this test."""
        if (row.table, row.key) in RANGES:
            low, high = RANGES[row.table, row.key]
            self.assertTrue(low <= value <= high, (row.key, value))
        if row.key == "listen":
            for host, port in value if row.many else [value]:
                self.assertTrue(host and 0 <= port < 1 << 16)
        if row.table in ("node", "server") and row.key in ("name", "data", "token"):
            self.assertIsInstance(value, str)
        if (row.table, row.key) == ("node", "token"):
            self.assertFalse(0 < len(value) < 16)

    @fuzzed(files)
    def test_random_settings_files_are_refused_or_read(self, data):
        self.check(data)

    @fuzzed(lambda: mutated(st.sampled_from(SEEDS) | files(), PIECES, 20_000))
    def test_files_mutated(self, data):
        self.check(data)


RANGES = {
    ("node", "every"): (0.01, 86_400), ("outbox", "slots"): (64, 1 << 24), ("outbox", "sync"): (0, 3600),
    ("store", "commit"): (0.05, 600), ("store", "buffer"): (1000, 1_000_000), ("node", "simulate"): (False, True),
}  # fmt: skip

if __name__ == "__main__":
    unittest.main()
