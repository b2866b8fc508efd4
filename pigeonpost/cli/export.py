"""Command that exports what is stored, as a table or as JSON, also beside a running server.

    python3 control.py export --out all.csv
    python3 control.py export --format wide --node basement --from 2026-11-01 --to 2026-12-01 --out november.csv
    python3 control.py export --format jsonl --sensor temperature --from 7d | gzip > week.jsonl.gz

Errors: Failed, for unknown names and for a full disk: then FILE is unchanged.

A few thousand samples are queried and written at a time, however many there are, and no query stays open meanwhile,
which would keep the server from truncating its WAL.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli.contract import Bar, Command, Context, Failed, discard_output, look, node_name, sensor_name
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import SettingsError, StoreDamaged
from pigeonpost.core.files import sync_folder
from pigeonpost.core.strict_json import write_json
from pigeonpost.link.samples import batches_of
from pigeonpost.server.node_register import NodeRegister
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.excel import MOST_ROWS, for_excel
from pigeonpost.storage.csv.format import HEADER, cell, local_time, log_rows
from pigeonpost.storage.models import StoredSample
from protocol import Sample

AT_ONCE = 4000  # samples asked for together
_LEAST_LOST_S = 1.0  # of a span that cannot be read
_NEVER_MS = 253_402_300_800_000  # the year 10000
_SPAN = re.compile(r"([0-9]{1,9})([smhd])").fullmatch
_SPANS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

Points = Sequence[StoredSample]  # of one node
Units = Mapping[str, str]


# --------------------------------------------------------------------------------------------------------- asking


def walk(
    store: Store, node: str, from_ms: int, to_ms: int, lost: list[tuple[str, int, int]] | None = None
) -> Iterator[tuple[int, Points]]:
    """All samples of `node` taken in [from_ms, to_ms), oldest first, some at a time: up to when they go, and they.

    How long a span is asked for follows from how many samples the last one had.

    lost: gets (node, from, to) of each span that a damaged store cannot read: a little longer than it is, for speed
    """
    at_ms, width_ms, lost_ms = from_ms, 60_000, 0
    while at_ms < to_ms:
        end_ms = min(to_ms, at_ms + width_ms)
        try:
            points = store.points(node, at_ms, end_ms, AT_ONCE + 1)
        except StoreDamaged:
            if lost is None:
                raise
            least_ms = max(int(_LEAST_LOST_S * 1000), lost_ms // 16)
            if end_ms - at_ms > least_ms:
                width_ms = max(least_ms, (end_ms - at_ms) // 4)
                continue
            _add_lost(lost, node, at_ms, end_ms)
            lost_ms += end_ms - at_ms
            at_ms, width_ms = end_ms, max(int(_LEAST_LOST_S * 1000), lost_ms // 16)
            continue
        lost_ms = 0
        if len(points) > AT_ONCE:
            if end_ms - at_ms > 1:
                width_ms = max(1, (end_ms - at_ms) // 4)
                continue
            points = store.points(node, at_ms, end_ms, 1 << 62)  # all of one millisecond
        yield end_ms, points
        at_ms = end_ms
        if len(points) <= AT_ONCE // 4:
            width_ms *= 2


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


# -------------------------------------------------------------------------------------------------------- writing


def as_log(sensors: Sequence[str], units: Units) -> Callable[[Points], str]:
    """Make rows as the log has them: one per value."""

    def rows(points: Points) -> str:
        samples = [Sample(point.seq, point.time_ms, 0, point.values, {}, point.clock) for point in points]
        return "".join([log_rows(points[0].node, "", batch, units, 0) for batch in batches_of(samples)])

    return rows


def as_table(sensors: Sequence[str], units: Units) -> Callable[[Points], str]:
    """Make one row per sample, with a cell for each of `sensors`; empty where it failed, or was not there."""

    def rows(points: Points) -> str:
        lines = []
        for point in points:
            values = [point.values.get(name) for name in sensors]
            cells = ["" if value is None else repr(value) for value in values]
            lines.append(f"{local_time(point.time_ms)},{point.node},{','.join(cells)}\n")
        return "".join(lines)

    return rows


def as_json(sensors: Sequence[str], units: Units) -> Callable[[Points], str]:
    """Make one line per sample: a JSON object."""
    shapes: dict[tuple[str, ...], tuple[str, str]] = {}  # of each list of sensors a template of its values, its units

    def rows(points: Points) -> str:
        lines = []
        for node, time_ms, _, _, values, clock in points:
            names = tuple(values)
            shape = shapes.get(names)
            if shape is None:
                shape = shapes[names] = ",".join([f'"{name}":%s' for name in names]), _units_of(names, units)
            texts = tuple(["null" if value is None else repr(value) for value in values.values()])
            more = f',"clock":"{clock}"' if clock else ""
            lines.append(
                f'{{"time":"{rfc3339(time_ms)}","node":"{node}","values":{{{shape[0] % texts}}}{shape[1]}{more}}}\n'
            )
        return "".join(lines)

    return rows


def _units_of(names: Iterable[str], units: Units) -> str:
    named = {name: units[name] for name in names if units.get(name)}
    return f',"units":{write_json(named)}' if named else ""


FORMATS: Mapping[str, Callable[[Sequence[str], Units], Callable[[Points], str]]] = {
    "csv": as_log, "wide": as_table, "jsonl": as_json, "excel": as_table,
}  # fmt: skip


def _only(points: Points, sensors: frozenset[str]) -> Points:
    """Of each sample only those sensors; samples that have none of them are left out."""
    found = []
    for point in points:
        values = {name: value for name, value in point.values.items() if name in sensors}
        if values:
            found.append(point._replace(values=values))
    return found


# ------------------------------------------------------------------------------------------------------- together


def export(context: Context) -> int:
    """Write what is stored: a row per value as in the log, or per sample a row (wide, excel) or a JSON object (jsonl).

    Times are given as 2026-11-20, 2026-11-20T15:36 (local time), 2026-11-20T15:36:10Z, or 7d, 24h, 90m ago.
    """
    chosen = context.arguments
    if chosen.labels and chosen.format != "csv":
        raise SettingsError("--labels adds a column to --format csv; excel has the labels above its columns")
    lost: list[tuple[str, int, int]] = []
    with contextlib.closing(look(context)) as store:
        names = NodeRegister(store, Tokens(context.data).text_of)
        nodes = _chosen_nodes(_nodes(store), chosen.node, names.current)
        wanted = _chosen_sensors(store, nodes, chosen.sensor)
        bar = Bar(os.path.basename(chosen.out or ""))
        progress = bar.show if chosen.out else lambda done, total: None
        texts = _texts(store, nodes, wanted, chosen, progress, lost)
        if chosen.format == "excel":
            texts = _for_excel(texts, chosen.decimal == "comma")
        if chosen.out is None:
            _to_standard_output(texts)
        else:
            try:
                size = _to_file(chosen.out, texts)
            finally:
                bar.end()
            print(f"{chosen.out}: {size:,} bytes", file=sys.stderr)
    for node, from_ms, to_ms in lost:
        print(f"not readable: node {node}, from {rfc3339(from_ms)} to {rfc3339(to_ms)}", file=sys.stderr)
    if store.damage or lost:
        print(f"what can be read was written. {store.damage}", file=sys.stderr)
    return 1 if store.damage or lost else 0


def _nodes(store: Store) -> list[dict[str, Any]]:
    """Return what is stored of every node; of a damaged one only names and units, with a range of all times."""
    try:
        return store.nodes()
    except StoreDamaged:
        found = store.known_units()
    ever = {"samples": 0, "first_ms": 0, "last_ms": int(time.time() * 1000) + _SPANS_MS["d"]}
    return [{"name": name, "sensors": units, **ever} for name, units in found.items()]


def _add_lost(lost: list[tuple[str, int, int]], node: str, from_ms: int, to_ms: int) -> None:
    """Note a span that cannot be read, as one with the last where it goes on there."""
    if lost and lost[-1][0] == node and lost[-1][2] == from_ms:
        from_ms = lost.pop()[1]
    lost.append((node, from_ms, to_ms))


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


def _texts(
    store: Store, nodes: list[dict[str, Any]], wanted: frozenset[str] | None, chosen: argparse.Namespace,
    progress: Callable[[int, int], None], lost: list[tuple[str, int, int]],
) -> Iterator[str]:  # fmt: skip
    """The whole export, piece by piece. `lost` gets what cannot be read."""
    spans = [(node, *_span(node, chosen)) for node in nodes if node["first_ms"] is not None]
    columns = sorted(wanted or _all_sensors(store, spans)) if chosen.format in ("wide", "excel") else []
    labels = store.node_records().labels if chosen.labels else {}
    if chosen.format == "csv":
        yield HEADER.replace("\n", ",label\n") if chosen.labels else HEADER
    elif columns or chosen.format != "jsonl":
        heads = _titles(store, nodes, columns) if chosen.format == "excel" else columns
        yield ",".join(["time", "node", *map(cell, heads)]) + "\n"
    total = max(1, sum(node["samples"] for node, _, _ in spans))
    done = 0
    for node, from_ms, to_ms in spans:
        rows = FORMATS[chosen.format](columns, node["sensors"])
        if chosen.labels:
            rows = _labelled(rows, {sensor: text for (name, sensor), text in labels.items() if name == node["name"]})
        for end_ms, points in walk(store, node["name"], from_ms, to_ms, lost):
            found = points if wanted is None else _only(points, wanted)
            if found:
                yield rows(found)
            progress(done + node["samples"] * (end_ms - from_ms) // (to_ms - from_ms), total)
        done += node["samples"]
    progress(total, total)


def _labelled(rows: Callable[[Points], str], labels: Mapping[str, str]) -> Callable[[Points], str]:
    """Return what makes the rows of `as_log` with the label of each sensor in one more column."""

    def labelled(points: Points) -> str:
        lines = rows(points).splitlines()
        return "".join([f"{line},{cell(labels.get(line.split(',', 3)[2], ''))}\n" for line in lines])

    return labelled


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


def _for_excel(texts: Iterable[str], comma: bool) -> Iterator[str]:
    """Yield an export as Excel reads it; standard error gets a line where a sheet cannot show all of it."""
    rows = 0
    for text in for_excel(texts, comma):
        rows += text.count("\n")
        yield text
    if rows > MOST_ROWS:
        print(f"{rows:,} rows: Excel shows the first {MOST_ROWS:,}; --from and --to choose fewer", file=sys.stderr)


def _span(node: dict[str, Any], chosen: argparse.Namespace) -> tuple[int, int]:
    """From when to when there is something of the node that is wanted."""
    from_ms, to_ms = chosen.since or 0, _NEVER_MS if chosen.until is None else chosen.until
    return max(from_ms, node["first_ms"]), min(to_ms, node["last_ms"] + 1)


def _all_sensors(store: Store, spans: Iterable[tuple[dict[str, Any], int, int]]) -> set[str]:
    """Whatever has a value there: a table's columns have to be known before its first row."""
    found: set[str] = set()
    shapes: set[tuple[str, ...]] = set()
    for node, from_ms, to_ms in spans:
        for _, points in walk(store, node["name"], from_ms, to_ms, []):
            shapes.update([tuple(point.values) for point in points])
    return found.union(*shapes)


def _to_file(path: str, texts: Iterable[str]) -> int:
    """Write a file, or leave the one that is there as it was; its size."""
    new = f"{path}.part"
    try:
        with open(new, "w", encoding="utf-8", newline="") as file:
            for text in texts:
                file.write(text)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.rename(new, path)
        sync_folder(path)
    except StoreDamaged as error:
        raise Failed(str(error)) from None
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
    return size


def _to_standard_output(texts: Iterable[str]) -> None:
    out = getattr(sys.stdout, "buffer", None)
    try:
        for text in texts:
            if out is None:
                sys.stdout.write(text)
            else:
                out.write(text.encode())
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
        "write what is stored as CSV, for Excel, or as JSON lines",
        [
            ("--format", {"choices": list(FORMATS), "default": "csv",
                          "help": "csv: a row per value, as the log; wide: one per sample; jsonl: JSON lines; excel: as"
                          " wide, for spreadsheets (csv)"}),
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
