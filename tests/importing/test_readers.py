"""Tests of the readers of CSV and JSON files, and of the parsers of their cells."""

import io
import os
import random
import time
import unittest
from unittest import mock

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.importing import blocks, tables
from pigeonpost.importing.cells import (
    Fault,
    ImportedReading,
    ReadingColumns,
    read_time,
    read_times,
    read_value,
    read_values,
    sensor_name,
)
from pigeonpost.importing.readers import JSON_BYTES, readings

LOG = """time,node,sensor,value,unit
2026-11-20T16:36:10.123+01:00,basement,temperature,23.4,°C
2026-11-20T16:36:10.123+01:00,basement,light,512,
2026-11-20T16:36:20.123+01:00,basement,temperature,,°C
2026-11-20T16:36:20.123+01:00,basement,light,513,
2026-11-20T16:36:25.000+01:00,basement,gap,12,"samples 3 to 14 of epoch 0123456789abcdef: overwritten"
2026-11-20T16:36:30.123+01:00,attic,temperature,-1,'=odd
2026-11-20T16:36:30.123+01:00,attic,temperature,-2,'=odd
"""
T = parse_rfc3339("2026-11-20T15:36:10.123Z")


def found_in(text, name="x.csv"):
    """Return the content of a file: columns, readings and faults."""
    return list(readings(io.BytesIO(text if isinstance(text, bytes) else text.encode()), name))


def row_by_row():
    """Disable reading by column, so that all files are read row by row."""
    return mock.patch.multiple(tables, _log_columns=lambda block, clock: None, _table_columns=lambda block, table: None)


def read(text, name="x.csv"):
    """Return the readings and the faults in a file, read row by row."""
    with row_by_row():
        return found_in(text, name)


def by_node(found):
    """Return the readings of each node in their order, without their positions. Columns are converted to readings."""
    nodes = {}
    for one in found:
        assert not isinstance(one, Fault), one
        rows = [one]
        if isinstance(one, ReadingColumns):
            rows = [
                ImportedReading(
                    "", one.node, time_ms, {name: column[k] for name, column in one.values.items()}, one.units
                )
                for k, time_ms in enumerate(one.times)
            ]
        nodes.setdefault(one.node, []).extend(
            (row.time_ms, list(row.values.items()), {name: row.units.get(name, "") for name in row.values})
            for row in rows
        )
    return nodes


def values(text, name="x.csv"):
    """Return time (ms since 1970) and values of each reading. The file must have no faults."""
    found = read(text, name)
    assert all(isinstance(one, ImportedReading) for one in found), found
    return [(one.time_ms, one.values) for one in found]


def faults(text, name="x.csv"):
    return [str(one) for one in read(text, name) if isinstance(one, Fault)]


class OwnLog(unittest.TestCase):
    def test_rows_with_the_same_time_and_node_are_one_reading(self):
        units = {"temperature": "°C", "light": ""}
        self.assertEqual(
            read(LOG),
            [
                ImportedReading("line 2", "basement", T, {"temperature": 23.4, "light": 512}, units),
                ImportedReading("line 4", "basement", T + 10_000, {"temperature": None, "light": 513}, units),
                ImportedReading("line 7", "attic", T + 20_000, {"temperature": -1}, {"temperature": "=odd"}),
                ImportedReading("line 8", "attic", T + 20_000, {"temperature": -2}, {"temperature": "=odd"}),
            ],
        )  # fmt: skip

    def test_faults_are_reported_with_their_line(self):
        invalid = (
            ("2026-11-20T16:36:10Z,basement,temperature,abc,°C", "temperature must be a number, not 'abc'"),
            ("yesterday,basement,temperature,1,°C", "'yesterday' is not a valid time"),
            ("2026-11-20T16:36:10Z,../x,temperature,1,°C", "'../x' is not a valid node name"),
            ("2026-11-20T16:36:10Z,basement,Temp,1,°C", "'Temp' is not a valid sensor name"),
            ("2026-11-20T16:36:10Z,basement,temperature,1", "has 4 cells instead of 5 (time,node,sensor,value,unit)"),
            ("2026-11-20T16:36:10Z,basement,temperature,1," + "x" * 33, "is not a valid unit"),
            ('2026-11-20T16:36:10Z,basement,gap,1,"\nsamples"', "is not a valid unit"),
        )
        for row, text in invalid:
            found = faults(LOG + row + "\n")
            self.assertEqual(len(found), 1, row)
            self.assertTrue(found[0].startswith(("line 9: ", "line 10: ")), found)
            self.assertIn(text, found[0])


class Tables(unittest.TestCase):
    def test_each_column_is_a_sensor(self):
        text = (
            "Time;Temperature (°C);Rel. Humidity [%];2nd\n2026-11-20 15:36:10Z;23,4;;7\n2026-11-20T15:36:11+00:00;;;\n"
        )
        found = read(text)
        units = {"temperature": "°C", "rel_humidity": "%"}
        self.assertEqual(found, [ImportedReading("line 2", "", T - 123, {"temperature": 23.4, "s_2nd": 7}, units)])

    def test_line_ends_and_cell_separators_are_detected(self):
        for text in (
            "time,a\r\n2026-11-20T15:36:10.123Z,1\r\n",
            "\ufefftime\ta\n2026-11-20T15:36:10.123Z\t1",
            'time,a\n\n"2026-11-20T15:36:10,123Z","1"\n\n',
            "timestamp,A\n1795188970.123,1\n",
            "timestamp , A \n1795188970123, 1\n",
        ):
            self.assertEqual(values(text), [(T, {"a": 1})], text)

    def test_latin_1_is_decoded(self):
        self.assertEqual(read("time,t (°C)\n1795188970,1\n".encode("latin-1"))[0].units, {"t": "°C"})

    def test_node_column_names_the_node_of_each_row(self):
        text = "time,t (°C),Node,u\n2026-11-20T15:36:10.123Z,1,a,2\n2026-11-20T15:36:10.123Z,3,../b,4\n"
        self.assertEqual(
            read(text),
            [
                ImportedReading("line 2", "a", T, {"t": 1, "u": 2}, {"t": "°C"}),
                Fault("line 3", "'../b' is not a valid node name"),
            ],
        )

    def test_time_without_an_offset_is_local_time(self):
        before = os.environ.get("TZ")
        os.environ["TZ"] = "Europe/Berlin"
        time.tzset()
        try:
            self.assertEqual(values("time,a\n2026-11-20 16:36:10.123,1\n"), [(T, {"a": 1})])
        finally:
            os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
            time.tzset()

    def test_faults_are_reported(self):
        for text, said in (
            ("", "the table has 0 columns; it must have 2 to 256"),
            ("time\n1\n", "the table has 1 column; it must have 2 to 256"),
            ("time" + ",a" * 300, "the table has 301 columns; it must have 2 to 256"),
            ("2026-11-20T15:36:10Z,1\n", "the first line must contain the names of the columns"),
            ("time,a,A\n", "two columns have the name a"),
            ("time,!\n", "'!' is not a valid sensor name"),
            ("time,a\n1795188970,x\n", "line 2: a must be a number, not 'x'"),
            ("time,a\n1795188970,1,2\n", "line 2: the row has 3 cells, but the first line has 2"),
            ("time,a\n1795188970,1e999\n", "line 2: a is too large"),
            ("time,a\n1795188970," + "9" * 30 + "\n", "line 2: a is too large"),
            ("time,a\n17,1\n", "line 2: '17' is not a valid time"),
            ("time,a\n2026-13-40 10:00:00,1\n", "line 2: '2026-13-40 10:00:00' is not a valid time"),
            ('time,a\n1795188970,"1\n', "unexpected end of data"),
            ("time,a\n" + "x" * 100_000 + "\n", "the line is longer than 65,536 bytes"),
            ("x" * 1_000_000, "the line is longer than 65,536 bytes"),
            ('time,a\n1795188970,"' + "1\n" * 100_000, "field larger than field limit"),
        ):
            found = faults(text)
            self.assertEqual(len(found), 1, text[:50])
            self.assertIn(said, found[0])

    def test_all_invalid_rows_are_reported(self):
        rows = "".join(f"1795188970,{'x' if number % 2 else number}\n" for number in range(10))
        self.assertEqual([fault.partition(":")[0] for fault in faults("time,a\n" + rows)],
                         [f"line {line}" for line in (3, 5, 7, 9, 11)])  # fmt: skip


class ByColumn(unittest.TestCase):
    """Reading by column gives the same readings as reading row by row."""

    def assert_same_by_column(self, text):
        found = found_in(text)
        self.assertEqual(by_node(found), by_node(read(text)))
        return found

    def test_files_in_usual_format_are_read_by_column(self):
        for head, row in (
            ("time,node,sensor,value,unit\n", "2026-11-20T16:36:{k:02}.123+01:00,n{n},t,{k}.5,°C\n"
             "2026-11-20T16:36:{k:02}.123+01:00,n{n},u,{n},\n"),
            ("time,a [V],node,b\n", "2026-11-20 15:36:{k:02}Z,{k},n{n},-{n}.25\n".replace(" ", "T")),
            ("time;a;node;b\n", "17951889{k:02};{k},5;n{n};\n"),
        ):  # fmt: skip
            text = head + "".join(row.format(k=k, n=n) for k in range(60) for n in range(3))
            with self.subTest(head):
                found = self.assert_same_by_column(text)
                self.assertEqual({type(one) for one in found}, {ReadingColumns})
                self.assertEqual(sum(len(one.times) for one in found), 180)
                self.assertLessEqual(len(found), 4)  # the last reading of a log may continue in the next block
                wheres = [one.where for one in found[:3]]
                self.assertEqual(wheres, [f"line {2 + n * row.count(chr(10))}" for n in range(3)])

    def test_readings_divided_between_blocks_are_joined(self):
        rows = "".join(f"17951889{k:02},n{k // 7},{'tuvw'[s]},{k},\n" for k in range(90) for s in range(k % 4 + 1))
        rows += '1795189999,n1,gap,12,"samples 3 to 14 of epoch 0:\n overwritten"\n' * 3
        text = "time,node,sensor,value,unit\n" + rows.replace("1795188950,", "1795188949,")
        wanted = by_node(read(text))
        for size in (1, 2, 3, 7, 64, 4096):
            with self.subTest(size), mock.patch.multiple(blocks, BLOCK_ROWS=size, STEP_ROWS=min(size, 5)):
                self.assertEqual(by_node(found_in(text)), wanted)
        with mock.patch.object(blocks, "BLOCK_ROWS", 16), mock.patch.object(blocks, "STEP_ROWS", 4):
            self.assertEqual(
                faults(text + "1795189999,n1,t,x,\n"), [f"line {text.count(chr(10)) + 1}: t must be a number, not 'x'"]
            )

    def test_size_of_a_block_is_limited_in_characters_and_cells(self):
        for row in ("17951889{:02}," + "0" * 60_000, "{}" + "," * 60_000):
            text = "time,a\n" + "".join(row.format(k) + "\n" for k in range(99))
            with mock.patch.object(tables, "_table_columns", side_effect=tables._table_columns) as columns:
                self.assertEqual(len(found_in(text)), 99)
            self.assertGreater(len(columns.mock_calls), 2)

    def test_rows_are_kept_no_longer_than_one_reading(self):
        text = "time,node,sensor,value,unit\n" + "1795188970,n,t,1,\n1795188970,n,u,2,\n" * 100
        with (
            mock.patch.multiple(blocks, BLOCK_ROWS=16, STEP_ROWS=4),
            mock.patch.object(tables, "_log_columns", side_effect=tables._log_columns) as columns,
        ):
            self.assert_same_by_column(text)
        self.assertLessEqual(max(len(call.args[0].rows) for call in columns.mock_calls), 18)

    def test_random_files_are_read_alike_by_column_and_by_row(self):
        rng = random.Random(5)
        cells = ["1", "-2.5", "0.125", "", " 7 ", "1e3", "+4", "null", "007", "9" * 18, '"5"', "-0", "-0.0"]
        for _ in range(150):
            few = rng.sample(cells, rng.randint(1, 4))
            if rng.random() < 0.5:
                rows = ["time,node,sensor,value,unit"] + [
                    f"17951889{rng.randint(10, 12)},n{rng.randint(1, 2)},{rng.choice('ttu')},{rng.choice(few)},"
                    + rng.choice(["", "V"])
                    for _ in range(rng.randint(1, 30))
                ]
            else:
                rows = ["time,a,node,b"] + [
                    f"2026-11-20T15:36:{rng.randint(10, 59)}{rng.choice(['Z', '.5Z', '+01:00'])},{rng.choice(few)},"
                    f"n{rng.randint(1, 2)},{rng.choice(few)}"
                    for _ in range(rng.randint(1, 30))
                ]
            with self.subTest(rows=rows), mock.patch.object(blocks, "BLOCK_ROWS", rng.choice([2, 8, 4096])):
                self.assert_same_by_column("\n".join(rows) + "\n")

    def test_read_values_agrees_with_read_value_or_returns_none(self):
        right = ["1", "-2.5", "", " 7 ", "null", "0", "-0", "9223372036854775807", "0." + "1" * 38]
        values = read_values(right)
        self.assertEqual(
            [(value, type(value)) for value in values], [(v := read_value(c, "x"), type(v)) for c in right]
        )
        for odd in (
            "9223372036854775808", "1e3", "1E3", "NaN", "-Infinity", "true", "[1", "1]", '"1', "1,2", "{", "-", "+1",
            ".5", "5.", "0x1", "1_0", "1" * 41, "1 2", "\u0661",
        ):  # fmt: skip
            for cells in ([odd], ["1", odd, "2"], [odd, odd], ["1", odd, ""]):
                self.assertIsNone(read_values(cells), cells)
        for cells in (['"1', '2"'], ["[1", "2]"], ["1,2", '"a', 'b"'], ["1,2", "[3", "4]"]):
            self.assertIsNone(read_values(cells), cells)

    def test_read_times_agrees_with_read_time_or_returns_none(self):
        for right in (
            ["1795188970", "1795188970123", "999999999"],
            ["2026-11-20T15:36:10.123Z", "2026-11-20T15:36Z", "2026-11-20 15:36Z", "2026-11-20 15:36 Z"],
            ["2026-11-20T16:36:10.1239+01:00", "2026-11-20t15:36:10-0130", "2026-03-29T02:30:00"],
        ):  # fmt: skip
            self.assertEqual(read_times(right), [read_time(cell) for cell in right])
        for odd in (
            "", "x", "2026-11-20", "2026-11-20T15:36:10,5Z", "2026-11-20T25:00Z",
            "2026-W01-1T15:36Z", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00", "12345678", "1795188970.5",
            "\u0661" * 10,
        ):  # fmt: skip
            for cells in ([odd], ["1795188970", odd], ["2026-11-20T15:36:10Z", odd]):
                self.assertIsNone(read_times(cells), cells)


class Json(unittest.TestCase):
    def test_all_forms_of_json_are_read(self):
        at, want = "2026-11-20T15:36:10.123Z", [(T, {"a": 1.5})]
        for text in (
            '[{"time": "%s", "a": 1.5}]' % at,
            '{"timestamp": "%s", "a": "1.5"}' % at,
            '{"node": "x", "units": {"A": "V"}, "readings": [{"date": "%s", "A": 1.5}]}' % at,
            '{"samples": [{"seq": 1, "time": "%s", "up": 5, "values": {"a": 1.5}, "errors": {}}]}' % at,
            '{"data": [{"time": 1795188970.123, "sensor": "A", "value": 1.5, "unit": "V"}]}',
            '\ufeff [{"time": 1795188970123, "a": 1.5}]\n',
        ):
            self.assertEqual(values(text, "x.JSON"), want, text)

    def test_json_lines_are_read(self):
        text = (
            '{"time":"2026-11-20T15:36:10.123Z","node":"a","values":{"t":1,"u":null},"units":{"t":"°C"}}\n'
            '\r\n{"time":1795188970,"sensor":"t","value":2,"unit":"K","units":3}'
        )
        self.assertEqual(
            read(text, "x.jsonl"),
            [
                ImportedReading("line 1", "a", T, {"t": 1, "u": None}, {"t": "°C"}),
                ImportedReading("line 3", "", T - 123, {"t": 2}, {"t": "K"}),
            ],
        )
        self.assertEqual(read("\ufeff" + text, "x.NDJSON"), read(text, "x.jsonl"))
        self.assertEqual(
            faults('{"time": 1, "time": 2}\nx\n{"time":1795188970,"values":{"t":"x"}}\n' + "1" * 70_000, "x.jsonl"),
            [
                "line 1: the key 'time' occurs twice in one JSON object",
                "line 2: expected JSON",
                "line 3: t must be a number, not 'x'",
                "line 4: the line is longer than 65,536 bytes, which is the maximum",
            ],
        )

    def test_json_file_with_one_object_per_line_is_read(self):
        text = (
            '{"time": 1795188970, "a": 1}\r\n\n {"time": 1795188971, "a": 2, "node": "x"}\n{"time": 1795188972}\n{]\n'
        )
        found = read(text, "x.json")
        self.assertEqual(found[0], ImportedReading("line 1", "", 1795188970_000, {"a": 1}, {}))
        self.assertEqual(found[1], ImportedReading("line 3", "x", 1795188971_000, {"a": 2}, {}))
        self.assertEqual([type(one) for one in found[2:]], [Fault, Fault])
        self.assertEqual([one.where for one in found[2:]], ["line 4", "line 5"])

    def test_node_of_a_reading_overrides_that_of_the_file(self):
        text = '{"node": "x", "units": {"A": "V"}, "readings": [{"time": 1795188970, "A": 1, "node": "y"}]}'
        self.assertEqual(
            read(text, "x.json"), [ImportedReading("reading 1", "y", 1795188970_000, {"a": 1}, {"a": "V"})]
        )

    def test_faults_are_reported(self):
        for text, said in (
            ("", "expected JSON"),
            ("{", "not JSON"),
            ("7", "the JSON must be a list of readings"),
            ("{}", "the JSON must be a list of readings"),
            ('{"units": 1, "readings": []}', "`units` must be an object"),
            ("[7]", "reading 1: a reading must be an object"),
            ('[{"a": 1}]', "reading 1: the reading has no time: its key must be time or "),
            ('[{"time": 1795188970}]', "reading 1: the reading has 0 values; 1 to 256 are allowed"),
            ('[{"time": 1795188970, "a": true}]', "reading 1: a must be a number, not True"),
            ('[{"time": 1795188970, "a": [1]}]', "reading 1: a must be a number, not [1]"),
            ('[{"time": 1795188970, "a": "x"}]', "reading 1: a must be a number, not 'x'"),
            ('[{"time": 1795188970, "a": 1, "A": 2}]', "occurs twice"),
            ('[{"time": 1795188970, "a": NaN}]', "not a finite number"),
            ('[{"time": 1795188970, "a": 1, "node": "../x"}]', "'../x' is not a valid node name"),
            ('[{"time": true, "a": 1}]', "True is not a valid time"),
            ("[" * 100_000, "nested deeper"),
            (b"\xff\xfe", "utf-8"),
            (b"[" + b" " * JSON_BYTES + b"]", "a JSON file may have at most 8,388,608 bytes"),
        ):
            found = faults(text, "x.json")
            self.assertEqual(len(found), 1, text[:50])
            self.assertIn(said, found[0])

    def test_readings_after_a_fault_are_checked_too(self):
        text = '[{"time": 1795188970, "a": 1}, {"time": "x", "a": 1}, {"time": 1795188971, "a": 2}, 5]'
        found = read(text, "x.json")
        self.assertEqual([type(one) for one in found], [ImportedReading, Fault, ImportedReading, Fault])
        self.assertEqual((found[1].where, found[3].where), ("reading 2", "reading 4"))


class Cells(unittest.TestCase):
    def test_values_are_parsed(self):
        for said, value in (
            ("23.4", 23.4), ("-5", -5), ("+.5", 0.5), ("1e3", 1000.0), (" 7 ", 7), ("NaN", None), ("", None),
            ("-", None), (None, None), (3, 3), (2.5, 2.5), ("null", None),
        ):  # fmt: skip
            self.assertEqual(read_value(said, "x"), value)
            self.assertIs(type(read_value(said, "x")), type(value))

    def test_times_are_parsed_to_the_millisecond(self):
        for said, ms in (
            ("2026-11-20T15:36:10.123Z", T), ("2026-11-20T16:36:10.123+01:00", T), ("1795188970.123", T),
            ("1795188970123", T), (1795188970123, T), ("2026-11-20T15:36Z", T - 10_123), ("999999999", 999_999_999_000),
        ):  # fmt: skip
            self.assertEqual(read_time(said), ms, said)

    def test_sensor_names_and_units_are_parsed(self):
        for said, name in (
            ("Temperature", ("temperature", "")), ("CPU-Temp. (°C)", ("cpu_temp", "°C")), ("1", ("s_1", "")),
            ("Größe [m]", ("groe", "m")), ("x" * 40, ("x" * 32, "")), ("()", ("", "")), ("__", ("", "")),
        ):  # fmt: skip
            self.assertEqual(sensor_name(said), name, said)


if __name__ == "__main__":
    unittest.main()
