"""Command that exports what is stored, as a table, as JSON or as SQLite, also beside a running server.

    python3 control.py export --out all.csv
    python3 control.py export --format wide --node basement --from 2026-11-01 --to 2026-12-01 --out november.csv
    python3 control.py export --format jsonl --sensor temperature --from 7d | gzip > week.jsonl.gz
    python3 control.py export --format sqlite plain.sqlite3

Errors: Failed, for unknown names and for a full disk: then FILE is unchanged.
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
from pigeonpost.cli.contract import Bar, Command, Context, Failed, discard_output, look, node_name, sensor_name
from pigeonpost.cli.export_rows import FORMATS, LostSpan, Rows, labelled, only, walk
from pigeonpost.cli.export_sqlite import write_sqlite
from pigeonpost.core.clock import FIRST_MS, rfc3339
from pigeonpost.core.errors import PigeonpostError, SettingsError, StoreDamaged
from pigeonpost.core.files import replacement_of
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.node_register import NodeRegister
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.excel import MOST_ROWS, for_excel
from pigeonpost.storage.csv.format import HEADER, cell
from pigeonpost.storage.models import stretches

_NEVER_MS = 253_402_300_800_000  # the year 10000
_SPAN = re.compile(r"([0-9]{1,9})([smhd])").fullmatch
_SPANS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SQLITE = "sqlite"
_TABLES = ("wide", "excel")


def moment(text: str) -> int:
    """An argument that is a time, in ms since 1970: a date or time, or how long ago. Without an offset: local time."""
    span = _SPAN(text)
    if span:
        return int(time.time() * 1000) - int(span[1]) * _SPANS_MS[span[2]]
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            "takes a time as 2026-11-20, 2026-11-20T15:36 or 2026-11-20T15:36:10Z, or how long ago it was, as 7d or"
            f" 24h; not {text!r}"
        ) from None


# ------------------------------------------------------------------------------------------------------- together


def export(context: Context) -> int:
    """Write what is stored: a row per value as in the log, or per sample a row (wide, excel) or a JSON object (jsonl).

    Times are given as 2026-11-20, 2026-11-20T15:36 (local time), 2026-11-20T15:36:10Z, or 7d, 24h, 90m ago.
    """
    chosen = context.arguments
    if chosen.labels and chosen.format != "csv":
        raise SettingsError("--labels adds a column to --format csv; excel has the labels above its columns")
    if chosen.out and chosen.file:
        raise SettingsError(f"FILE and --out are the same: leave out {chosen.file} or --out {chosen.out}")
    out = chosen.out or chosen.file
    if chosen.format == _SQLITE and not out:
        raise SettingsError("--format sqlite needs the name of the file: control.py export --format sqlite FILE")
    lost: list[LostSpan] = []
    met: list[str] = []
    with contextlib.closing(look(context)) as store:
        store.on_damage = met.append
        names = NodeRegister(store, Tokens(context.data).text_of)
        nodes = _chosen_nodes(_nodes(store), chosen.node, names.current)
        wanted = _chosen_sensors(store, nodes, chosen.sensor)
        bar = Bar(os.path.basename(out or ""))
        found = _Found(store, nodes, wanted, chosen, bar.show if out else lambda done, total: None, lost)
        try:
            size = _write(found, out)
        finally:
            bar.end()
        if out is not None:
            print(f"{out}: {size:,} bytes", file=sys.stderr)
    for node, from_ms, to_ms in lost:
        print(f"not readable: node {node}, from {rfc3339(from_ms)} to {rfc3339(to_ms)}", file=sys.stderr)
    if store.damage or lost:
        print(f"what can be read was written. {store.damage or met[-1]}", file=sys.stderr)
    return 1 if store.damage or lost else 0


class _Found(NamedTuple):
    """What is exported.

    wanted    names of sensors; None: all
    progress  called with the number of samples that are done, and of all
    lost      gets what cannot be read
    """

    store: Store
    nodes: list[dict[str, Any]]
    wanted: frozenset[str] | None
    chosen: argparse.Namespace
    progress: Callable[[int, int], None]
    lost: list[LostSpan]

    def spans(self) -> list[tuple[dict[str, Any], int, int]]:
        """Return the nodes, each with the time range in which there may be something that is wanted."""
        from_ms = FIRST_MS if self.chosen.since is None else self.chosen.since
        to_ms = _NEVER_MS if self.chosen.until is None else self.chosen.until
        return [
            (node, max(from_ms, node["first_ms"]), min(to_ms, node["last_ms"] + 1))
            for node in self.nodes if node["first_ms"] is not None
        ]  # fmt: skip

    def parts(self) -> Iterator[tuple[dict[str, Any], list[SampleBatch]]]:
        """Yield the samples of each node, some at a time."""
        spans = self.spans()
        total = max(1, sum(node["samples"] for node, _, _ in spans))
        done = 0
        for node, from_ms, to_ms in spans:
            for end_ms, batches in walk(self.store, node["name"], from_ms, to_ms, self.lost):
                yield node, batches if self.wanted is None else only(batches, self.wanted)
                self.progress(done + node["samples"] * (end_ms - from_ms) // (to_ms - from_ms), total)
            done += node["samples"]
        self.progress(total, total)


def _write(found: _Found, out: str | None) -> int:
    """Write the export to the file `out`, and return its size; or to standard output."""
    chosen = found.chosen
    if chosen.format == _SQLITE:
        assert out is not None
        parts = ((node["name"], node["sensors"], batches) for node, batches in found.parts())
        with _failing(out):
            return write_sqlite(out, parts)
    texts = _texts(found)
    if chosen.format == "excel":
        texts = _for_excel(texts, chosen.decimal == "comma")
    if out is None:
        _to_standard_output(texts)
        return 0
    with _failing(out):
        return _to_file(out, texts)


def _nodes(store: Store) -> list[dict[str, Any]]:
    """Return what is stored of every node; of a damaged one only names and units, with a range of all times."""
    try:
        return store.nodes()
    except StoreDamaged:
        found = store.known_units()
    ever = {"samples": 0, "first_ms": 0, "last_ms": int(time.time() * 1000) + _SPANS_MS["d"]}
    return [{"name": name, "sensors": units, **ever} for name, units in found.items()]


def _chosen_nodes(
    nodes: list[dict[str, Any]], names: Sequence[str] | None, current: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Return the nodes of these names, which may be former ones; all without any. current: NodeRegister.current"""
    known = [node["name"] for node in nodes]
    names = [name if name in known else current(name) for name in names or ()]
    for name in names:
        if name not in known:
            raise Failed(f"there is nothing of a node {name}; there is of {', '.join(known) or 'none'}")
    return [node for node in nodes if not names or node["name"] in names]


def _chosen_sensors(
    store: Store, nodes: list[dict[str, Any]], names: Sequence[str] | None
) -> frozenset[str] | None:  # fmt: skip
    """The sensors that are wanted; None: all."""
    known = {name for node in nodes for name in node["sensors"]}
    if not known.issuperset(names or ()):  # those that came without a unit stand only in the samples
        known |= _all_sensors(store, [(n, n["first_ms"], n["last_ms"] + 1) for n in nodes if n["first_ms"] is not None])
    for name in names or ():
        if name not in known:
            raise Failed(f"there is nothing of a sensor {name}; there is of {', '.join(sorted(known)) or 'none'}")
    return frozenset(names) if names else None


def _texts(found: _Found) -> Iterator[bytes]:
    """Yield the whole export, piece by piece."""
    chosen = found.chosen
    columns = sorted(found.wanted or _all_sensors(found.store, found.spans())) if chosen.format in _TABLES else []
    labels = found.store.node_records().labels if chosen.labels else {}
    if chosen.format == "csv":
        yield (HEADER.replace("\n", ",label\n") if chosen.labels else HEADER).encode()
    elif columns or chosen.format != "jsonl":
        heads = _titles(found.store, found.nodes, columns) if chosen.format == "excel" else columns
        yield (",".join(["time", "node", *map(cell, heads)]) + "\n").encode()
    rows: dict[str, Rows] = {}
    for node, batches in found.parts():
        name = node["name"]
        if name not in rows:
            rows[name] = FORMATS[chosen.format](name, columns, node["sensors"])
            if chosen.labels:
                mine = {sensor: text for (of, sensor), text in labels.items() if of == name}
                rows[name] = labelled(rows[name], mine)
        for batch in batches:
            for stretch in stretches(batch):  # of one hour each
                yield rows[name](stretch)


def _titles(store: Store, nodes: list[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return what people see above each column: the sensor's label or name, and its unit, where all nodes agree."""
    labels = store.node_records().labels
    titles = []
    for sensor in columns:
        mine = [node for node in nodes if sensor in node["sensors"]]
        named = {labels.get((node["name"], sensor), sensor) for node in mine}
        units = {node["sensors"][sensor] for node in mine}
        unit = units.pop() if len(units) == 1 else ""
        titles.append((named.pop() if len(named) == 1 else sensor) + (f" ({unit})" if unit else ""))
    return titles


def _for_excel(texts: Iterable[bytes], comma: bool) -> Iterator[bytes]:
    """Yield an export as Excel reads it; standard error gets a line where a sheet cannot show all of it."""
    rows = 0
    for text in for_excel((text.decode() for text in texts), comma):
        rows += text.count("\n")
        yield text.encode()
    if rows > MOST_ROWS:
        print(f"{rows:,} rows: Excel shows the first {MOST_ROWS:,}; --from and --to choose fewer", file=sys.stderr)


def _all_sensors(store: Store, spans: Iterable[tuple[dict[str, Any], int, int]]) -> set[str]:
    """Whatever has a value there: a table's columns have to be known before its first row."""
    found: set[str] = set()
    shapes: set[tuple[str, ...]] = set()
    for node, from_ms, to_ms in spans:
        for _, batches in walk(store, node["name"], from_ms, to_ms, []):
            shapes.update([batch.names for batch in batches])
    return found.union(*shapes)


def _to_file(path: str, texts: Iterable[bytes]) -> int:
    """Write a file, or leave the one that is there as it was. Returns its size."""
    with replacement_of(path) as new, open(new, "wb") as file:
        for text in texts:
            file.write(text)
    return os.path.getsize(path)


@contextlib.contextmanager
def _failing(path: str) -> Iterator[None]:
    """Name the file where the disk, or the store, does not do its part."""
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


_AGAIN = "may be given again"
COMMANDS: Mapping[str, Command] = {
    "export": Command(
        "write what is stored as CSV, for Excel, as JSON lines, or as SQLite",
        [
            ("file", {"metavar": "FILE", "nargs": "?", "help": "as --out"}),
            ("--format", {"choices": [*FORMATS, _SQLITE], "default": "csv",
                          "help": "csv: a row per value, as the log; wide: one per sample; jsonl: JSON lines; excel: as"
                          " wide, for spreadsheets; sqlite: one plain table (csv)"}),
            ("--labels", {"action": "store_true", "help": "csv: one more column, the sensor's label"}),
            ("--decimal", {"choices": ["point", "comma"], "default": "point",
                           "help": "excel: as its region writes numbers; with a comma, columns end with semicolons"}),
            ("--node", {"metavar": "NODE", "action": "append", "type": node_name, "help": f"only of that; {_AGAIN}"}),
            ("--sensor", {"metavar": "SENSOR", "action": "append", "type": sensor_name,
                          "help": f"only of that; {_AGAIN}"}),
            ("--from", {"metavar": "TIME", "dest": "since", "type": moment, "help": "what was taken then or later"}),
            ("--to", {"metavar": "TIME", "dest": "until", "type": moment, "help": "what was taken before that"}),
            ("--out", {"metavar": "FILE", "help": "write it there (standard output)"}),
        ],
        export,
    ),
}  # fmt: skip
