"""Every export and download, read with pandas, polars and DuckDB.

Times must be times, also while daylight saving time begins and ends; names, units and numbers must be unchanged, and
failed readings must be missing values. The libraries read CSV with the lines of docs/data.md.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import math
import os
import re
import sqlite3
import unittest
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.link.samples import Gap
from pigeonpost.storage.csv.format import guarded
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Sample
from tests.document_blocks import blocks_of
from tests.page_support import Afternoon, set_zone, use_memory_disk
from tests.storage.test_contract import E1, OUTBOX, file, wrapped
from tests.support import temp_folder
from tests.test_control import ControlCase
from tests.web.support import FakeLink, WebHouse

try:
    import duckdb
    import pandas
    import polars
except ImportError:
    duckdb = None

Reading = tuple[int, str, str, "float | None", str]  # time in ms since 1970, node, sensor, value, unit

LIBRARIES = ("pandas", "polars", "duckdb")
CHANGES = {  # the hours in which daylight saving time begins or ends
    "Europe/Berlin": ("2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"),
    "America/New_York": ("2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"),
}
# Units that need quotes, contain no ASCII, or would be formulas; sensors and nodes that look like other types.
UNITS = {
    "t": "°C", "f": "µg/m³", "time": "=1+1", "node": "+x", "nan": "-1", "null": "@a", "true": 'a "b", c', "na": ";",
    "inf": "'q", "wide": "\uff1d1", "temperature": "",
}  # fmt: skip
NODES = ("007", "1e5", "NA", "true", "2026-10-25", "north-1.a_b")
NUMBERS = (0.1 + 0.2, 1 / 3, 1.7976931348623157e308, 5e-324, -0.0, 123456789.12345679, 1e-05, -40, 2**53, None)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def setUpModule() -> None:
    if duckdb is None:
        raise unittest.SkipTest("pandas, polars and duckdb are not installed for this Python")
    use_memory_disk()


def samples_of(zone: str) -> Iterator[Sample]:
    """Yield samples around the changes to and from daylight saving time of `zone`, every 10 minutes."""
    seq = 0
    for text in CHANGES[zone]:
        middle_ms = parse_rfc3339(text)
        for minute in range(-120, 121, 10):
            seq += 1
            values = {name: NUMBERS[(seq + k) % len(NUMBERS)] for k, name in enumerate(UNITS)}
            # Far more integers than a library examines to guess the type of a column, and then another number.
            values["temperature"] = 21 if seq < 49 else 21.5
            yield Sample(seq, middle_ms + minute * 60_000 + seq % 1000, seq * 1000, values, {}, "")


def readings_of(nodes: Iterable[str], zone: str) -> list[Reading]:
    return sorted(
        ((one.time_ms, node, name, value, UNITS[name])
         for node in nodes for one in samples_of(zone) for name, value in one.values.items()),
        key=key_of,
    )  # fmt: skip


def key_of(reading: Reading) -> tuple[Any, ...]:
    return reading[:3]


def document_lines(library: str, path: str) -> Any:
    """Return the table that the lines of docs/data.md for `library` make of the CSV file `path`."""
    (block,) = [one for one in blocks_of("docs/data.md") if one.text.startswith(f"import {library}\n")]
    text = block.text.replace('"all.csv"', repr(path))
    assert text != block.text and len(text.split("\n")) <= 5
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(text, names)
    return names["table"]


def rows_of(library: str, table: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a table of `library`, with times as ms since 1970, and None for missing values."""
    if library == "pandas":
        rows: Iterable[Sequence[Any]] = table.itertuples(index=False, name=None)
    elif library == "polars":
        rows = table.rows()
    else:
        rows = table.fetchall()
    return [tuple(map(plain, row)) for row in rows]


def plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        assert value.tzinfo is not None
        since = value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return since // datetime.timedelta(milliseconds=1)
    return None if isinstance(value, float) and math.isnan(value) else value


class ExportCase(ControlCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = temp_folder(self)

    def fill(self, zone: str, nodes: Sequence[str] = NODES, samples: Sequence[Sample] | None = None) -> None:
        set_zone(self, zone)
        self.data = temp_folder(self)
        made = list(samples_of(zone)) if samples is None else samples
        with contextlib.closing(SqliteStore(self.data)) as store:
            for node in nodes:
                file(store, *(one._replace(units=UNITS) for one in wrapped(made, node)))

    def export(self, form: str, *arguments: str) -> str:
        """Export in the format `form`, and return the path of the file."""
        path = os.path.join(self.folder, f"export.{form}")
        status, told, self.said = self.run_("export", "--format", form, "--out", path, *arguments)
        self.assertEqual((status, told), (0, ""), self.said)
        return path

    def assert_same(self, rows: Iterable[Sequence[Any]], wanted: Sequence[Reading]) -> None:
        """Check rows of five columns; the number of each value must be the same, to the last bit."""
        found = sorted((tuple(row) for row in rows), key=key_of)
        self.assertEqual([row[:3] for row in found], [row[:3] for row in wanted])
        self.assertEqual([exact(row[3]) for row in found], [exact(row[3]) for row in wanted])
        self.assertEqual([row[4] or "" for row in found], [row[4] for row in wanted])


def exact(value: Any) -> str | None:
    return None if value is None else float(value).hex()


def as_text(wanted: Iterable[Reading]) -> list[Reading]:
    """Return readings as in CSV, where a unit that a spreadsheet would execute has an apostrophe before it."""
    return [(*one[:4], guarded(one[4])) for one in wanted]


class CsvExport(ExportCase):
    def test_the_lines_of_the_manual_read_csv_exports_around_changes_of_the_clock(self) -> None:
        for zone in CHANGES:
            self.fill(zone)
            wanted = as_text(readings_of(NODES, zone))
            for arguments in ((), ("--utc",)):
                path = self.export("csv", *arguments)
                self.assertEqual("several offsets from UTC" in self.said, not arguments, self.said)
                for library in LIBRARIES:
                    with self.subTest(zone=zone, library=library, arguments=arguments):
                        self.assert_same(rows_of(library, document_lines(library, path)), wanted)

    def test_utc_times_are_recognised_without_any_options(self) -> None:
        self.fill("Europe/Berlin", ["a"])
        local, utc = self.export("csv"), self.export("wide", "--utc")
        self.assertEqual(str(pandas.read_csv(utc, parse_dates=["time"])["time"].dtype), "datetime64[us, UTC]")
        self.assertEqual(polars.read_csv(utc, try_parse_dates=True)["time"].dtype, polars.Datetime("us", "UTC"))
        self.assertEqual(str(duckdb.read_csv(utc).types[0]), "TIMESTAMP WITH TIME ZONE")
        # The reason for --utc: two offsets in one column.
        self.assertIn(str(pandas.read_csv(local, parse_dates=["time"])["time"].dtype), ("str", "object"))

    def test_hint_is_printed_only_if_the_offset_changes(self) -> None:
        self.fill("Europe/Berlin", ["a"])
        for form, arguments, hint in (
            ("csv", (), "use --utc for programs"), ("wide", (), "use --utc for programs"),
            ("excel", (), "is missing or occurs twice"), ("csv", ("--utc",), ""), ("excel", ("--utc",), ""),
            ("jsonl", (), ""), ("influx", (), ""), ("sqlite", (), ""),
            ("csv", ("--from", "2026-10-25T01:00:00Z"), ""), ("csv", ("--to", "2026-10-25T01:00:00Z", "--from",
                                                                        "2026-10-01"), ""),
        ):  # fmt: skip
            with self.subTest(form=form, arguments=arguments):
                self.export(form, *arguments)
                self.assertEqual(self.said.count("hint: "), 1 if hint else 0, self.said)
                self.assertIn(hint, self.said)

    def test_wide_exports_are_read_by_every_library(self) -> None:
        for zone in CHANGES:
            self.fill(zone)
            wanted = [(*one[:4], "") for one in readings_of(NODES, zone)]
            for arguments in ((), ("--utc",)):
                path = self.export("wide", *arguments)
                with open(path, encoding="utf-8") as file:
                    heads = next(csv.reader(file))[2:]
                self.assertEqual(heads, sorted(UNITS))
                empty = dict.fromkeys([*heads, "time.1", "node.1"], "")
                frame = pandas.read_csv(path, dtype={"node": str}, keep_default_na=False, na_values=empty)
                frame["time"] = pandas.to_datetime(frame["time"], utc=True)
                table = polars.read_csv(path, infer_schema=False)
                others = polars.exclude(table.columns[:2])
                table = table.with_columns(
                    polars.col("time").str.to_datetime(time_zone="UTC"), others.cast(polars.Float64)
                )
                relation = duckdb.read_csv(
                    path, header=True, dtype={"time": "TIMESTAMPTZ", "node": "VARCHAR"}, sample_size=-1
                )
                for library, made in zip(LIBRARIES, (frame, table, relation)):
                    with self.subTest(zone=zone, library=library, arguments=arguments):
                        rows = rows_of(library, made)
                        long = [(*row[:2], name, value, "") for row in rows for name, value in zip(heads, row[2:])]
                        self.assert_same(long, wanted)


class OtherExports(ExportCase):
    def test_json_lines_are_read_by_every_library(self) -> None:
        for zone in CHANGES:
            self.fill(zone)
            path = self.export("jsonl")
            wanted = readings_of(NODES, zone)
            with open(path, encoding="utf-8") as file:
                frame = pandas.json_normalize([json.loads(line) for line in file], max_level=0)
            frame["time"] = pandas.to_datetime(frame["time"], utc=True)
            table = polars.read_ndjson(path, infer_schema_length=None)
            table = table.with_columns(polars.col("time").str.to_datetime(time_zone="UTC"))
            relation = duckdb.read_json(path, sample_size=-1)
            for library, made in zip(LIBRARIES, (frame, table, relation)):
                with self.subTest(zone=zone, library=library):
                    rows = rows_of(library, made)
                    long = [
                        (time, node, name, value, units.get(name))
                        for time, node, values, units in rows for name, value in values.items()
                    ]  # fmt: skip
                    self.assert_same(long, wanted)

    def test_sqlite_exports_are_read_by_every_library(self) -> None:
        for zone in CHANGES:
            self.fill(zone)
            wanted = readings_of(NODES, zone)
            with contextlib.closing(sqlite3.connect(self.export("sqlite"))) as db:
                frame = pandas.read_sql("SELECT * FROM readings", db, parse_dates=["time"])
                table = polars.read_database("SELECT * FROM readings", db, infer_schema_length=None)
            table = table.with_columns(polars.col("time").str.to_datetime(time_zone="UTC"))
            relation = duckdb.sql("SELECT * FROM frame")  # its own reader of SQLite is an extension, to be downloaded
            for library, made in zip(LIBRARIES, (frame, table, relation)):
                with self.subTest(zone=zone, library=library):
                    self.assert_same(rows_of(library, made), wanted)

    def test_excel_exports_have_dates_and_no_formulas(self) -> None:
        for zone in CHANGES:
            self.fill(zone)
            wanted = readings_of(NODES, zone)
            for comma in (False, True):
                for utc in (False, True):
                    with self.subTest(zone=zone, comma=comma, utc=utc):
                        arguments = [*(["--decimal", "comma"] if comma else []), *(["--utc"] if utc else [])]
                        path = self.export("excel", *arguments)
                        self.assert_sheet(path, wanted, ";" if comma else ",", "time (UTC)" if utc else "time")

    def assert_sheet(self, path: str, wanted: Sequence[Reading], separator: str, head: str) -> None:
        with open(path, "rb") as file:
            self.assertEqual(file.read(3), b"\xef\xbb\xbf")
        with open(path, encoding="utf-8-sig", newline="") as file:
            cells = list(csv.reader(file, delimiter=separator))
        self.assertEqual(cells[0][:2], [head, "node"])
        for text in (text for row in cells for text in row):
            is_number = re.fullmatch(r"-?[0-9.,]+(e[+-]?[0-9]+)?", text)
            self.assertFalse(text.startswith(FORMULA) and not is_number, text)
        decimal = "," if separator == ";" else "."
        frame = pandas.read_csv(
            path, sep=separator, decimal=decimal, encoding="utf-8-sig", parse_dates=[head], dtype={"node": str},
            keep_default_na=False, na_values=dict.fromkeys(cells[0][2:], ""),
        )  # fmt: skip
        self.assertEqual(str(frame[head].dtype), "datetime64[us]")
        offset = datetime.UTC if head == "time (UTC)" else None
        found = sorted((stamp.replace(tzinfo=offset).timestamp(), node) for stamp, node, *_ in frame.values.tolist())
        times = sorted({(time_ms // 1000, node) for time_ms, node, *_ in wanted})
        if offset:
            self.assertEqual(found, times)
        else:  # one hour of local times occurs twice
            self.assertNotEqual(found, times)
        for place, name in enumerate(sorted(UNITS)):
            column = frame.iloc[:, 2 + place]
            self.assertEqual(
                sorted(exact(value) for value in column.dropna().tolist()),
                sorted(exact(one[3]) for one in wanted if one[2] == name and one[3] is not None), name,
            )  # fmt: skip

    def test_line_protocol_has_every_value_with_its_time(self) -> None:
        line_of = re.compile(r"readings,node=([^ ,=\\]+) ([^ ]+) (-?[0-9]+)").fullmatch
        for zone in CHANGES:
            self.fill(zone)
            found = []
            with open(self.export("influx"), encoding="utf-8") as file:
                for line in file:
                    match = line_of(line.removesuffix("\n"))
                    assert match, line
                    for field in match[2].split(","):
                        name, _, text = field.partition("=")
                        name = "time" if name == "time_" else name  # InfluxDB rejects a field named `time`
                        self.assertRegex(
                            text, r"\A-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?\Z"
                        )  # a float, without i, u or quotes
                        found.append((int(match[3]) // 1_000_000, match[1], name, float(text), ""))
            self.assert_same(found, [(*one[:4], "") for one in readings_of(NODES, zone) if one[3] is not None])


class SmallExports(ExportCase):
    def test_exports_of_one_sample_and_of_none_are_read(self) -> None:
        one = Sample(1, parse_rfc3339("2026-10-25T00:30:00Z"), 1000, {"t": 1.5, "f": None}, {}, "")
        for count, samples in ((0, []), (1, [one])):
            self.fill("Europe/Berlin", NODES[:1], samples)
            wanted = [(one.time_ms, "007", "f", None, UNITS["f"]), (one.time_ms, "007", "t", 1.5, UNITS["t"])][
                : 2 * count
            ]
            for library in LIBRARIES:
                for arguments in ((), ("--utc",)):
                    with self.subTest(count=count, library=library, arguments=arguments):
                        table = document_lines(library, self.export("csv", *arguments))
                        self.assert_same(rows_of(library, table), wanted)
            for form in ("wide", "excel"):
                path = self.export(form)
                self.assertEqual(len(pandas.read_csv(path)), count)
                self.assertEqual(len(polars.read_csv(path)), count)
                self.assertEqual(len(duckdb.read_csv(path, header=True, sample_size=-1)), count)
            for form, lines in (("jsonl", count), ("influx", count)):
                with open(self.export(form), encoding="utf-8") as file:
                    self.assertEqual(len(file.readlines()), lines)
            with contextlib.closing(sqlite3.connect(self.export("sqlite"))) as db:
                self.assertEqual(len(pandas.read_sql("SELECT * FROM readings", db, parse_dates=["time"])), 2 * count)


class Downloads(unittest.TestCase):
    """CSV and JSON of the page."""

    def setUp(self) -> None:
        set_zone(self, "Europe/Berlin")
        self.folder = temp_folder(self)
        self.web = WebHouse(self, links=[FakeLink("007", UNITS)], clock=Afternoon())
        made = list(samples_of("Europe/Berlin"))
        self.web.store_samples("007", made, UNITS)
        self.web.ingestor.submit(
            Batch("lost", OUTBOX, E1, 0, None, Gap(1, 3, 0, 'card "full", replaced'), {}, lambda *_: None, print)
        )
        self.wanted = readings_of(["007"], "Europe/Berlin")
        self.times = [one.time_ms for one in made]

    def get(self, path: str) -> str:
        status, _, body = self.web.request("GET", path)
        self.assertEqual(status, 200, body[:200])
        return body.decode()

    def saved(self, path: str) -> str:
        name = os.path.join(self.folder, "download.csv")
        with open(name, "w", encoding="utf-8", newline="") as file:
            file.write(self.get(path))
        return name

    def test_log_is_read_by_the_lines_of_the_manual(self) -> None:
        path = self.saved("/log.csv")
        for library in LIBRARIES:
            with self.subTest(library):
                rows = [row for row in rows_of(library, document_lines(library, path)) if row[2] != "gap"]
                rows = [(*row[:4], row[4] or "") for row in sorted(rows, key=key_of)]
                self.assertEqual(
                    [(*row[:3], exact(row[3]), row[4]) for row in rows],
                    [(*row[:3], exact(row[3]), row[4]) for row in as_text(self.wanted)],
                )

    def test_log_in_utc_is_read_without_any_options(self) -> None:
        path = self.saved("/log.csv?utc=1")
        kind = pandas.read_csv(path, parse_dates=["time"])["time"].dtype
        self.assertEqual(str(kind), "datetime64[us, UTC]")
        for library in LIBRARIES:
            rows = [row for row in rows_of(library, document_lines(library, path)) if row[2] != "gap"]
            self.assertEqual(sorted({row[0] for row in rows}), sorted(self.times))

    def test_samples_of_the_api_are_read_by_every_library(self) -> None:
        query = "node=007&from=2026-01-01T00:00:00Z&limit=1000"
        path = self.saved(f"/api/v1/samples?{query}&format=csv")
        wanted = [(*one[:3], exact(one[3])) for one in self.wanted]
        frame = pandas.read_csv(
            path, dtype={"node": str, "sensor": str}, keep_default_na=False, na_values={"value": ""}
        )
        frame["time"] = pandas.to_datetime(frame["time"], utc=True)
        table = polars.read_csv(path, schema_overrides={"node": polars.String, "value": polars.Float64},
                                try_parse_dates=True, infer_schema_length=None)  # fmt: skip
        types = {"time": "TIMESTAMPTZ", "node": "VARCHAR", "sensor": "VARCHAR", "value": "DOUBLE"}
        relation = duckdb.read_csv(path, header=True, dtype=types)
        for library, made in zip(LIBRARIES, (frame, table, relation)):
            with self.subTest(library):
                rows = sorted((row[0], row[1], row[4], exact(row[5])) for row in rows_of(library, made))
                self.assertEqual(rows, wanted)

    def test_every_table_for_programs_has_utc_times_without_options(self) -> None:
        span = "from=2026-03-01T00:00:00Z&to=2026-11-20T00:00:00Z"
        for path, columns in (
            ("/nodes/007/temperature.csv", ("from", "to", "low_time", "high_time")),
            (f"/api/v1/samples?node=007&sensor=t&{span}&format=csv", ("time",)),
            (f"/api/v1/samples?node=007&sensor=temperature&{span}&step=1d&format=csv", ("time",)),
            ("/api/v1/statistics?node=007&sensor=temperature&from=2026-10-25T00:00:00Z&to=2026-10-25T09:00:00Z"
             "&format=csv", ("time",)),
            (f"/chart.csv?series=007/temperature&{span}", ("time",)),
            ("/gaps.csv", ("noted",)), ("/happenings.csv", ("time",)), ("/logs.csv", ("changed",)),
        ):  # fmt: skip
            with self.subTest(path):
                name = self.saved(path)
                frame, table = pandas.read_csv(name), polars.read_csv(name, try_parse_dates=True)
                self.assertGreater(len(frame), 0)
                relation = duckdb.read_csv(name, header=True)
                for column in columns:
                    texts = frame[column].tolist()
                    self.assertTrue(all(re.fullmatch(r"[0-9T:.-]{23}Z", text) for text in texts), texts[:2])
                    self.assertEqual(table[column].dtype, polars.Datetime("us", "UTC"))
                    kind = relation.types[relation.columns.index(column)]
                    self.assertEqual(str(kind), "TIMESTAMP WITH TIME ZONE")
                    times = pandas.to_datetime(frame[column], utc=True)
                    self.assertEqual(str(times.dtype), "datetime64[us, UTC]")

    def test_json_of_a_chart_has_utc_times(self) -> None:
        span = "from=2026-10-24T20:00:00Z&to=2026-10-25T06:00:00Z"
        found = json.loads(self.get(f"/chart.json?series=007/temperature&{span}"))
        texts = [found["from"], found["to"], *found["times"]]
        self.assertTrue(all(text.endswith("Z") for text in texts), texts[:3])
        times = list(map(parse_rfc3339, found["times"]))
        self.assertEqual(times, sorted(times))
        self.assertEqual(str(pandas.to_datetime(pandas.Series(found["times"])).dtype), "datetime64[us, UTC]")
        made = polars.Series(found["times"]).str.to_datetime(time_zone="UTC")
        self.assertEqual([plain(one) for one in made], times)

    def test_downloads_for_excel_are_dates_and_numbers(self) -> None:
        for path in ("/log.csv", "/nodes/007/temperature.csv", "/gaps.csv",
                     "/chart.csv?series=007/temperature&span=366d",
                     "/api/v1/samples?node=007&sensor=t&from=2026-01-01T00:00:00Z&format=csv"):  # fmt: skip
            for decimal, separator in (("point", ","), ("comma", ";")):
                with self.subTest(path=path, decimal=decimal):
                    text = self.get(f"{path}{'&' if '?' in path else '?'}for=excel&decimal={decimal}")
                    self.assertEqual(text[0], "\ufeff")
                    rows = list(csv.reader(io.StringIO(text[1:], newline=""), delimiter=separator))
                    self.assertEqual(len(set(map(len, rows))), 1)
                    for cell in (
                        cell for row in rows[1:] for cell in row if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T", cell)
                    ):
                        self.fail(cell)
