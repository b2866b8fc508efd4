"""Command `export`, which writes stored samples as CSV, JSON, SQLite or line protocol. The server may be running.

    python3 control.py export --out all.csv
    python3 control.py export --format wide --node basement --from 2026-11-01 --to 2026-12-01 --out november.csv
    python3 control.py export --format jsonl --sensor temperature --from 7d | gzip > week.jsonl.gz
    python3 control.py export --utc --out all.csv
    python3 control.py export --format sqlite plain.sqlite3

Errors: Failed, for unknown names and for a full disk. An existing FILE then stays unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli.contract import (
    Bar,
    Command,
    Context,
    Failed,
    discard_output,
    node_name,
    open_read_only,
    sensor_name,
)
from pigeonpost.cli.export_rows import FORMATS, Rows, UnreadableRange, labelled, only, walk
from pigeonpost.cli.export_sqlite import write_sqlite
from pigeonpost.core.clock import FIRST_MS
from pigeonpost.core.errors import PigeonpostError, SettingsError, StoreDamaged
from pigeonpost.core.files import is_device, replacement_of
from pigeonpost.core.format import counted, stamp, zone_minutes
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.calibrations import Calibrations
from pigeonpost.server.node_register import NodeRegister
from pigeonpost.storage.calibrated_store import calibrated
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.excel import MOST_ROWS, for_excel
from pigeonpost.storage.csv.format import HEADER, cell, local_times, utc_times
from pigeonpost.storage.models import stretches

_NEVER_MS = 253_402_300_800_000  # the year 10000
_AGE = re.compile(r"([0-9]{1,9})([smhd])").fullmatch
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SQLITE = "sqlite"
_TABLES = ("wide", "excel")
# Formats with local times, each with its hint for a time range in which the offset from UTC changes.
_SEVERAL = (
    "hint: the times have several offsets from UTC, because of daylight saving time; programs may read them as text"
)
_LOCAL = {
    "csv": f"{_SEVERAL}: use --utc for programs", "wide": f"{_SEVERAL}: use --utc for programs",
    "excel": "hint: when daylight saving time begins or ends, an hour of local times is missing or occurs twice; --utc"
             " avoids this",
}  # fmt: skip


def parse_time(text: str) -> int:
    """Return the time in the command-line argument `text`, in milliseconds since 1970 (UTC).

    The text is a date, a date with a time (local time unless it has an offset from UTC), or an age such as `7d`.

    Raises:
        ArgumentTypeError: The text is not a valid time.
    """
    age = _AGE(text)
    if age:
        return int(time.time() * 1000) - int(age[1]) * _UNITS_MS[age[2]]
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a valid time: write it as 2026-11-20, 2026-11-20T15:36 or 2026-11-20T15:36:10Z, or as an"
            " age, such as 7d or 24h"
        ) from None


# ------------------------------------------------------------------------------------------------------- command


def _export(context: Context) -> int:
    """Write stored samples to a file or to standard output.

    Write TIME as 2026-11-20, 2026-11-20T15:36 (both local time) or 2026-11-20T15:36:10Z (UTC), or as an age: 7d, 24h,
    90m, 30s.
    """
    chosen = context.arguments
    if chosen.labels and chosen.format != "csv":
        raise SettingsError("--labels can be used with --format csv only; --format excel has the labels as headings")
    if chosen.out and chosen.file:
        raise SettingsError(f"FILE and --out mean the same: omit {chosen.file} or --out {chosen.out}")
    out = chosen.out or chosen.file
    if chosen.format == _SQLITE and not out:
        raise SettingsError("--format sqlite needs the name of a file: control.py export --format sqlite FILE")
    lost: list[UnreadableRange] = []
    damages: list[str] = []
    with contextlib.closing(open_read_only(context)) as store:
        store.on_damage = damages.append
        names = NodeRegister(store, Tokens(context.data).text_of)
        if not chosen.raw:
            store = calibrated(store, Calibrations(context.data, names.current).of)
        nodes = _chosen_nodes(_nodes(store), chosen.node, names.current)
        sensors = _chosen_sensors(store, nodes, chosen.sensor)
        bar = Bar(os.path.basename(out or ""))
        progress = bar.show if out else lambda done, total: None
        selection = _Selection(store, nodes, sensors, chosen, progress, lost, set())
        try:
            size = _write(selection, out)
        finally:
            bar.end()
        if out is not None:
            print(f"{out}: {counted(size, 'byte')}", file=sys.stderr)
    # A script that captures both outputs of an export without --out must not read the hint as a row.
    is_seen = out is not None or sys.stderr.isatty()
    if is_seen and chosen.format in _LOCAL and not chosen.utc and len(selection.offsets) > 1:
        print(_LOCAL[chosen.format], file=sys.stderr)
    for node, from_ms, to_ms in lost:
        print(f"node {node}: {stamp(from_ms)} to {stamp(to_ms)} cannot be read", file=sys.stderr)
    if store.damage or lost:
        print(f"only the readable data was written: {store.damage or damages[-1]}", file=sys.stderr)
    return 1 if store.damage or lost else 0


class _Selection(NamedTuple):
    """Samples to export.

    Attributes:
        store: Store to read.
        nodes: Selected nodes, as returned by Store.nodes.
        sensors: Names of the selected sensors, or None for all sensors.
        chosen: Arguments of the command.
        progress: Function that is called with the number of exported samples and the total number.
        lost: List to which unreadable time ranges are appended.
        offsets: Set to which the offsets of local time from UTC, in minutes, are added at the times of the samples.
    """

    store: Store
    nodes: list[dict[str, Any]]
    sensors: frozenset[str] | None
    chosen: argparse.Namespace
    progress: Callable[[int, int], None]
    lost: list[UnreadableRange]
    offsets: set[int]

    def spans(self) -> list[tuple[dict[str, Any], int, int]]:
        """Return the nodes, each with its part of the selected time range in milliseconds since 1970."""
        from_ms = FIRST_MS if self.chosen.since is None else self.chosen.since
        to_ms = _NEVER_MS if self.chosen.until is None else self.chosen.until
        return [
            (node, max(from_ms, node["first_ms"]), min(to_ms, node["last_ms"] + 1))
            for node in self.nodes if node["first_ms"] is not None
        ]  # fmt: skip

    def parts(self) -> Iterator[tuple[dict[str, Any], list[SampleBatch]]]:
        """Yield the samples of each node in parts."""
        spans = self.spans()
        total = max(1, sum(node["samples"] for node, _, _ in spans))
        done = 0
        for node, from_ms, to_ms in spans:
            for end_ms, batches in walk(self.store, node["name"], from_ms, to_ms, self.lost):
                yield node, batches if self.sensors is None else only(batches, self.sensors)
                self.progress(done + node["samples"] * (end_ms - from_ms) // (to_ms - from_ms), total)
            done += node["samples"]
        self.progress(total, total)


def _write(selection: _Selection, out: str | None) -> int:
    """Write the export to the file `out`, and return its size in bytes. Without `out`, use standard output."""
    chosen = selection.chosen
    if chosen.format == _SQLITE:
        assert out is not None
        parts = ((node["name"], node["sensors"], batches) for node, batches in selection.parts())
        with _errors_as_failed(out):
            return write_sqlite(out, parts)
    texts = _texts(selection)
    if chosen.format == "excel":
        texts = _for_excel(texts, chosen.decimal == "comma", chosen.utc)
    if out is None:
        _to_standard_output(texts)
        return 0
    with _errors_as_failed(out):
        return _to_file(out, texts)


def _nodes(store: Store) -> list[dict[str, Any]]:
    """Return all nodes of the store. If it is damaged, only their names and units are known, and not their times."""
    try:
        return store.nodes()
    except StoreDamaged:
        found = store.known_units()
    unknown = {"samples": 0, "first_ms": 0, "last_ms": int(time.time() * 1000) + _UNITS_MS["d"]}
    return [{"name": name, "sensors": units, **unknown} for name, units in found.items()]


def _chosen_nodes(
    nodes: list[dict[str, Any]], names: Sequence[str] | None, current: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Return the nodes with these names, or all nodes if there are no names. `current` translates former names."""
    known = [node["name"] for node in nodes]
    names = [name if name in known else current(name) for name in names or ()]
    for name in names:
        if name not in known:
            raise Failed(f"no samples of node {name} are stored; the nodes are: {', '.join(known) or 'none'}")
    return [node for node in nodes if not names or node["name"] in names]


def _chosen_sensors(
    store: Store, nodes: list[dict[str, Any]], names: Sequence[str] | None
) -> frozenset[str] | None:  # fmt: skip
    """Return the names of the selected sensors, or None for all sensors."""
    known = {name for node in nodes for name in node["sensors"]}
    if not known.issuperset(names or ()):  # sensors without a unit are found only in the samples
        known |= _all_sensors(store, [(n, n["first_ms"], n["last_ms"] + 1) for n in nodes if n["first_ms"] is not None])
    for name in names or ():
        if name not in known:
            raise Failed(
                f"no values of sensor {name} are stored; the sensors are: {', '.join(sorted(known)) or 'none'}"
            )
    return frozenset(names) if names else None


def _texts(selection: _Selection) -> Iterator[bytes]:
    """Yield the text of the export in parts."""
    chosen = selection.chosen
    columns: list[str] = []
    if chosen.format in _TABLES:
        columns = sorted(selection.sensors or _all_sensors(selection.store, selection.spans()))
    labels = selection.store.node_records().labels if chosen.labels else {}
    if chosen.format == "csv":
        yield (HEADER.replace("\n", ",label\n") if chosen.labels else HEADER).encode()
    elif chosen.format in _TABLES:
        heads = _titles(selection.store, selection.nodes, columns) if chosen.format == "excel" else columns
        yield (",".join(["time", "node", *map(cell, heads)]) + "\n").encode()
    rows: dict[str, Rows] = {}
    for node, batches in selection.parts():
        name = node["name"]
        if name not in rows:
            rows[name] = FORMATS[chosen.format](
                name, columns, node["sensors"], utc_times if chosen.utc else local_times
            )
            if chosen.labels:
                mine = {sensor: text for (of, sensor), text in labels.items() if of == name}
                rows[name] = labelled(rows[name], mine)
        for batch in batches:
            for stretch in stretches(batch):  # each within one hour of UTC
                selection.offsets.update(map(zone_minutes, (stretch.times[0], stretch.times[-1])))
                yield rows[name](stretch)


def _titles(store: Store, nodes: list[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return the heading of each column: the label or name of the sensor, and its unit.

    The label and the unit are used only if they are the same for all nodes. A heading that several columns would have
    contains the name of the sensor too.
    """
    labels = store.node_records().labels
    titles = []
    for sensor in columns:
        mine = [node for node in nodes if sensor in node["sensors"]]
        named = {labels.get((node["name"], sensor), sensor) for node in mine}
        units = {node["sensors"][sensor] for node in mine}
        unit = units.pop() if len(units) == 1 else ""
        titles.append((named.pop() if len(named) == 1 else sensor) + (f" ({unit})" if unit else ""))
    # Two sensors may have the same label.
    return [
        f"{title}, {sensor}" if titles.count(title) > 1 else title
        for sensor, title in zip(columns, titles, strict=True)
    ]


def _for_excel(texts: Iterable[bytes], comma: bool, utc: bool) -> Iterator[bytes]:
    """Yield an export in a format that Excel reads. Warn on standard error if it has too many rows for a sheet."""
    rows = 0
    for text in for_excel((text.decode() for text in texts), comma, utc):
        rows += text.count("\n")
        yield text.encode()
    if rows > MOST_ROWS:
        print(
            f"{rows:,} rows: Excel shows only the first {MOST_ROWS:,}; select fewer with --from and --to",
            file=sys.stderr,
        )


def _all_sensors(store: Store, spans: Iterable[tuple[dict[str, Any], int, int]]) -> set[str]:
    """Return all sensors with a value in these time ranges. A table needs its columns before its first row."""
    found: set[str] = set()
    shapes: set[tuple[str, ...]] = set()
    for node, from_ms, to_ms in spans:
        for _, batches in walk(store, node["name"], from_ms, to_ms, []):
            shapes.update([batch.names for batch in batches])
    return found.union(*shapes)


def _to_file(path: str, texts: Iterable[bytes]) -> int:
    """Write a file, and return its size in bytes. On an error, an existing file stays unchanged.

    A device or a pipe, such as `/dev/stdout`, is not replaced: the export is written to it.
    """
    place = contextlib.nullcontext(path) if is_device(path) else replacement_of(path)
    with place as new, open(new, "wb") as file:
        return sum(map(file.write, texts))


@contextlib.contextmanager
def _errors_as_failed(path: str) -> Iterator[None]:
    """Turn errors of the disk and the store into Failed, with the path of the file."""
    try:
        yield
    except PigeonpostError as error:
        raise Failed(str(error)) from None
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise Failed(f"{path}: {error}") from None


def _to_standard_output(texts: Iterable[bytes]) -> None:
    out = getattr(sys.stdout, "buffer", None)
    try:
        for text in texts:
            if out is None:
                sys.stdout.write(text.decode())
            else:
                out.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
    except StoreDamaged as error:
        raise Failed(str(error)) from None
    except OSError as error:
        raise Failed(f"standard output: {error.strerror}") from None


_REPEATABLE = "can be repeated"
COMMANDS: Mapping[str, Command] = {
    "export": Command(
        "write stored samples as CSV, for Excel, as JSON lines, as SQLite, or for InfluxDB",
        [
            ("file", {"metavar": "FILE", "nargs": "?", "help": "same as --out"}),
            ("--format", {"choices": [*FORMATS, _SQLITE], "default": "csv",
                          "help": "csv: one row per value, as in the log (default); wide: one row per sample; jsonl:"
                          " one JSON object per sample; excel: as wide, for spreadsheets; sqlite: one table in an"
                          " SQLite file; influx: line protocol of InfluxDB. Times are local in csv, wide and excel, and"
                          " UTC in the others"}),
            ("--utc", {"action": "store_true",
                       "help": "times in UTC in every format, for programs: 2026-11-20T15:36:10.123Z (default: local"
                       " time with its offset from UTC)"}),
            ("--labels", {"action": "store_true", "help": "for csv: add a column with the label of the sensor"}),
            ("--raw", {"action": "store_true", "help": "values as the nodes have sent them, without the calibrations of"
                       " this server; import needs these"}),
            ("--decimal", {"choices": ["point", "comma"], "default": "point",
                           "help": "for excel: decimal separator (default: point); with comma, columns are separated by"
                           " semicolons"}),
            ("--node", {"metavar": "NODE", "action": "append", "type": node_name,
                        "help": f"only this node; {_REPEATABLE} (default: all nodes)"}),
            ("--sensor", {"metavar": "SENSOR", "action": "append", "type": sensor_name,
                          "help": f"only this sensor; {_REPEATABLE} (default: all sensors)"}),
            ("--from", {"metavar": "TIME", "dest": "since", "type": parse_time,
                        "help": "only samples taken at or after this time (default: no limit)"}),
            ("--to", {"metavar": "TIME", "dest": "until", "type": parse_time,
                      "help": "only samples taken before this time (default: no limit)"}),
            ("--out", {"metavar": "FILE", "help": "file to write (default: standard output)"}),
        ],
        _export,
    ),
}  # fmt: skip
