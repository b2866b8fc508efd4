"""Files for import: readings that can be stored, or faults with their place, in bounded time and memory."""

import io
import unittest

from pigeonpost.importing.cells import MOST_COLUMNS, Fault
from pigeonpost.importing.importer import BadFile, inspect_readings
from pigeonpost.importing.readers import readings
from protocol import LARGEST_INTEGER, NODE_NAME, SENSOR_NAME, UNIT
from tests.fuzz import Target, fuzzed, mutated, st
from tests.importing.test_readers import LOG, by_node, row_by_row

MOST_BYTES = 100_000
JSON = b'{"node": "x", "units": {"A": "V"}, "readings": [{"time": 1795188970, "A": 1, "b": "2.5"}, {"date": "x"}]}'
SEEDS = (
    LOG.encode(),
    b"Time;Temperature (\xc2\xb0C);b [%]\r\n2026-11-20 15:36:10Z;23,4;\r\n1795188970,5;1;2\r\n",
    JSON,
    b'[{"time": "2026-11-20T15:36:10Z", "values": {"a": null}}, {"time": 1795188970123, "sensor": "a", "value": 1}]',
)
PIECES = (
    b"\n", b"\r\n", b",", b";", b"\t", b'"', b"'", b"\0", b"\xff", b"\xef\xbb\xbf", b"9" * 20, b"9" * 400, b"-",
    b"1e999", b"=",
    b"nan", b"inf", b"[", b"{", b"]", b"}", b":", b"[" * 50, b"time", b"gap", b"0000-00-00 00:00:00",
    b"9999-12-31 23:59",
    b"2026-11-20T15:36:10+99:99", b"x" * 300, b" ", b"null", b"true", b'"a": 1, "A": 2', b"0001-01-01T00:00:00Z",
)  # fmt: skip


class Files(Target, unittest.TestCase):
    corpus = "tables"
    CPU_S = 2.0
    MEMORY_BYTES = 32 << 20  # about ten times the size of the JSON, and the test's own records

    def check(self, data):
        for name in ("x.csv", "x.json", "x.jsonl"):
            with self.bounded():
                by_column = list(readings(io.BytesIO(data), name))
            with self.bounded(), row_by_row():
                found = list(readings(io.BytesIO(data), name))
            for one in found:
                self.assertLess(len(one.where), 30)
                if isinstance(one, Fault):
                    self.assertTrue(0 < len(one.text) < 300, one.text)
                    self.assertNotIn("\n", one.text)
                else:
                    self.check_reading(one)
            faults = sum(isinstance(one, Fault) for one in found)
            if faults:
                self.assertEqual(
                    [one for one in by_column if isinstance(one, Fault)],
                    [one for one in found if isinstance(one, Fault)],
                )
            else:
                self.assertEqual(by_node(by_column), by_node(found))
            try:
                summary = inspect_readings(io.BytesIO(data), name)
            except BadFile as error:
                self.assertGreaterEqual(error.count, max(1, faults))
            else:
                self.assertEqual((summary.samples, faults), (len(found), 0))

    def check_reading(self, one):
        self.assertTrue(not one.node or NODE_NAME(one.node))
        self.assertTrue(0 < len(one.values) <= MOST_COLUMNS)
        self.assertIs(type(one.time_ms), int)
        for name, value in one.values.items():
            self.assertTrue(SENSOR_NAME(name), name)
            self.assertTrue(value is None or value - value == 0)
            self.assertTrue(type(value) is not int or abs(value) <= LARGEST_INTEGER)
        for unit in one.units.values():
            self.assertTrue(UNIT(unit), unit)

    @fuzzed(lambda: mutated(st.sampled_from(SEEDS), PIECES, MOST_BYTES))
    def test_random_tables_are_refused_or_imported(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
