"""Tables of readings as CSV: our own log, and others.

    time,node,sensor,value,unit          our own log: one row per value; rows of one moment make one reading
    time,temperature (°C),humidity [%]   a table: the first column is the time, each other one a sensor

A column `node` of a table names the node of each row. A block of rows is held at a time, and decoded by column where
all of it is as usual; else row by row, which tells what is wrong. Both give the same readings in the same order of each
node: they are numbered in it, so that a file that is imported again is recognised. Errors: none raised.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, islice, repeat
from operator import ne
from typing import Any, BinaryIO, NamedTuple

from pigeonpost.importing.cells import (
    LINE_BYTES,
    MOST_COLUMNS,
    Fault,
    ImportedReading,
    ReadingColumns,
    Wrong,
    preview,
    read_time,
    read_times,
    read_value,
    read_values,
    sensor_name,
    unguarded,
)
from protocol import NODE_NAME, SENSOR_NAME, UNIT, Number, Values

BLOCK_ROWS = 4096
_STEP_ROWS = 16  # are read before the size of a block is looked at
_BLOCK_SIZE = 1 << 20  # characters and cells
_LOG_COLUMNS = ["time", "node", "sensor", "value", "unit"]

Item = ReadingColumns | ImportedReading | Fault


class _Table(NamedTuple):
    """The first line of a table.

    width          how many cells a row has
    node_at        which of them names the node; 0: none
    sensors        of the cells but the first and that
    decimal_comma  where semicolons stand between cells, a comma stands in numbers
    """

    width: int
    node_at: int
    sensors: list[str]
    units: dict[str, str]
    decimal_comma: bool


def csv_readings(file: BinaryIO) -> Iterator[Item]:
    first = file.readline(LINE_BYTES)
    file.seek(0)
    mark = max(";\t,", key=_text(first).count)  # of equally many the first; a comma where there is none
    mark = mark if _text(first).count(mark) else ","
    rows = csv.reader(_lines(file), delimiter=mark, strict=True)
    try:
        heads = [cell.strip() for cell in next(rows, [])]
        if [head.lower() for head in heads] == _LOG_COLUMNS:
            yield from _log_readings(rows)
        else:
            yield from _table_readings(rows, heads, mark == ";")
    except (csv.Error, Wrong) as error:
        yield Fault(f"line {max(rows.line_num, 1)}", str(error))


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(LINE_BYTES):
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            raise Wrong(f"a line has at most {LINE_BYTES} bytes")
        yield _text(line)


def _text(line: bytes) -> str:
    """A line of a table as text: UTF-8, or what programs of old write."""
    try:
        return line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        return line.decode("latin-1")


class _Block(NamedTuple):
    """Rows that follow each other. `line`: the number of the line before the first of them."""

    line: int
    rows: list[list[str]]

    @property
    def end(self) -> int:
        """The number of the last line."""
        return self.line + len(self.rows) + "".join(chain.from_iterable(self.rows)).count("\n")

    def numbered(self) -> Iterator[tuple[int, list[str]]]:
        """The rows, each with the number of its last line: a quoted cell may have several lines."""
        line = self.line
        for cells in self.rows:
            line += 1 + "".join(cells).count("\n")
            yield line, cells

    def where(self, place: int) -> str:
        """Return where the row at `place` is."""
        return f"line {_Block(self.line, self.rows[: place + 1]).end}"


def _blocks(reader: Any) -> Iterator[_Block]:
    """Rows of a csv.reader in blocks, all that are right before an error is raised."""
    block, size = _Block(reader.line_num, []), 0
    try:
        while True:
            before = len(block.rows)
            block.rows.extend(islice(reader, _STEP_ROWS))  # those before an error are there
            if len(block.rows) == before:
                break
            new = block.rows[before:]
            size += sum(map(len, new)) + sum(map(len, chain.from_iterable(new)))
            if len(block.rows) >= BLOCK_ROWS or size >= _BLOCK_SIZE:
                yield block
                block, size = _Block(reader.line_num, []), 0
    except (csv.Error, Wrong):
        yield block
        raise
    yield block


def _runs(nodes: Iterable[str], shapes: Iterable[Any]) -> list[tuple[str, Any, list[int]]]:
    """Return node, shape and places of the readings of each node that follow each other and have the same shape."""
    runs: list[tuple[str, Any, list[int]]] = []
    current: dict[str, tuple[str, Any, list[int]]] = {}
    for place, (node, shape) in enumerate(zip(nodes, shapes)):
        run = current.get(node)
        if run is None or run[1] != shape:
            run = current[node] = node, shape, []
            runs.append(run)
        run[2].append(place)
    return runs


# -------------------------------------------------------------------------------------------------------- our own log


def _log_readings(reader: Any) -> Iterator[Item]:
    left: list[list[str]] = []  # rows of a reading that may go on
    end = reader.line_num
    try:
        for block in _blocks(reader):
            rows = left + block.rows
            stop = _last_reading(rows)
            done = _Block(end, rows[:stop])
            yield from _log_block(done)
            left, end = rows[stop:], done.end
    except (csv.Error, Wrong):
        yield from _log_block(_Block(end, left))
        raise
    yield from _log_block(_Block(end, left))


def _last_reading(rows: Sequence[list[str]]) -> int:
    """Return the place of the first row of the last reading, which may go on in the next block."""
    moment: list[str] = []
    start = 0
    for place in range(len(rows) - 1, -1, -1):
        cells = rows[place]
        if len(cells) == len(_LOG_COLUMNS) and not _is_gap(cells[2], cells[4]):
            if moment and cells[:2] != moment:
                start = place + 1
                break
            moment = cells[:2]
    sensors: set[str] = set()
    for place in range(start, len(rows)):
        sensor = "".join(rows[place][2:3])
        if sensor in sensors:  # of one moment, but another reading
            start = place
            sensors.clear()
        sensors.add(sensor)
    return start


def _log_block(block: _Block) -> Iterator[Item]:
    """Readings of a block that ends with one of them."""
    readings = _log_columns(block) if block.rows else []
    yield from _log_rows(block) if readings is None else readings


def _log_columns(block: _Block) -> list[ReadingColumns] | None:
    """Return the readings by column; None where something in the block is not as usual."""
    if set(map(len, block.rows)) != {len(_LOG_COLUMNS)}:
        return None
    times, nodes, sensors, cells, units = zip(*block.rows)
    plain = {unit: unguarded(unit) for unit in set(units)}
    names = set(sensors)
    if "gap" in names or not all(map(SENSOR_NAME, names)) or not all(map(NODE_NAME, set(nodes))):
        return None
    moments = list(zip(times, nodes))
    starts = [0, *compress(range(1, len(times)), map(ne, moments[1:], moments))]
    values = read_values(cells)
    times_ms = read_times([times[start] for start in starts])
    if values is None or times_ms is None or not all(map(UNIT, plain.values())):
        return None
    shapes = [(sensors[start:end], units[start:end]) for start, end in zip(starts, [*starts[1:], len(times)])]
    readings = []
    for node, (of, told), places in _runs([nodes[start] for start in starts], shapes):
        if len(set(of)) != len(of):
            return None  # a sensor stands twice: these are two readings
        columns = {name: [values[starts[place] + k] for place in places] for k, name in enumerate(of)}
        known = {name: plain[unit] for name, unit in zip(of, told)}
        where = block.where(starts[places[0]])
        readings.append(ReadingColumns(where, node, [times_ms[place] for place in places], columns, known))
    return readings


def _log_rows(block: _Block) -> Iterator[ImportedReading | Fault]:
    """Rows of our own log: those that follow each other with the same time and node make one reading."""
    opened: tuple[str, str] | None = None
    reading = ImportedReading("", "", 0, {}, {})
    for line, row in block.numbered():
        where = f"line {line}"
        try:
            time, node, sensor, value, unit = _log_row(row)
            if _is_gap(sensor, unit):
                continue
            if opened != (time, node) or sensor in reading.values:
                if reading.values:
                    yield reading
                opened, reading = (time, node), ImportedReading(where, node, read_time(time), {}, {})
            reading.values[sensor] = read_value(value, sensor)
            reading.units[sensor] = unit
        except Wrong as error:
            yield Fault(where, str(error))
    if reading.values:
        yield reading


def _log_row(row: list[str]) -> tuple[str, str, str, str, str]:
    if len(row) != len(_LOG_COLUMNS):
        raise Wrong(f"{len(row)} cells, where {','.join(_LOG_COLUMNS)} are {len(_LOG_COLUMNS)}")
    time, node, sensor, value, unit = row
    unit = unguarded(unit)
    if not NODE_NAME(node):
        raise Wrong(f"{preview(node)} is no name of a node")
    if not SENSOR_NAME(sensor):
        raise Wrong(f"{preview(sensor)} is no name of a sensor")
    if not UNIT(unit) and not _is_gap(sensor, unit):
        raise Wrong(f"{preview(unit)} is no unit")
    return time, node, sensor, value, unit


def _is_gap(sensor: str, unit: str) -> bool:
    """A row that says what is missing, in place of a unit; a longer text than any unit."""
    return sensor == "gap" and unit.startswith("samples ")


# ------------------------------------------------------------------------------------------------------ other tables


def _table_readings(rows: Any, heads: list[str], decimal_comma: bool) -> Iterator[Item]:
    node_at = next((place for place, head in enumerate(heads) if place and head.lower() == "node"), 0)
    columns = _columns(heads[:node_at] + heads[node_at + 1 :] if node_at else heads)
    units = {name: unit for name, unit in columns if unit}
    table = _Table(len(heads), node_at, [name for name, _ in columns], units, decimal_comma)
    for block in _blocks(rows):
        readings = _table_columns(block, table) if block.rows else []
        yield from _table_rows(block, table) if readings is None else readings


def _table_columns(block: _Block, table: _Table) -> list[ReadingColumns] | None:
    """Return the readings by column; None where something in the block is not as usual."""
    if set(map(len, block.rows)) != {table.width}:
        return None
    columns = list(zip(*block.rows))
    nodes = [cell.strip() for cell in columns.pop(table.node_at)] if table.node_at else [""] * len(block.rows)
    times_ms = read_times(columns.pop(0))
    if times_ms is None or (table.node_at and not all(map(NODE_NAME, set(nodes)))):
        return None
    numbers: dict[str, list[Number | None]] = {}
    for name, cells in zip(table.sensors, columns):
        column = read_values([cell.replace(",", ".") for cell in cells] if table.decimal_comma else cells)
        if column is None:
            return None
        numbers[name] = column
    sensors = [
        [name if value is not None else "" for value in column] if None in column else repeat(name)
        for name, column in numbers.items()
    ]
    readings = []
    for node, shape, places in _runs(nodes, zip(*sensors)):
        values = {name: [numbers[name][place] for place in places] for name in shape if name}
        if values:  # an empty cell: that sensor was not read then
            where = block.where(places[0])
            readings.append(ReadingColumns(where, node, [times_ms[k] for k in places], values, table.units))
    return readings


def _table_rows(block: _Block, table: _Table) -> Iterator[ImportedReading | Fault]:
    for line, row in block.numbered():
        if not any(cell.strip() for cell in row):
            continue
        where = f"line {line}"
        try:
            if len(row) != table.width:
                raise Wrong(f"{len(row)} cells, where the first line has {table.width}")
            node = row.pop(table.node_at).strip() if table.node_at else ""
            if table.node_at and not NODE_NAME(node):
                raise Wrong(f"{preview(node)} is no name of a node")
            cells = [cell.replace(",", ".") if table.decimal_comma else cell for cell in row[1:]]
            values = {name: read_value(cell, name) for name, cell in zip(table.sensors, cells)}
            time_ms = read_time(row[0])
        except Wrong as error:
            yield Fault(where, str(error))
            continue
        there: Values = {name: value for name, value in values.items() if value is not None}
        if there:
            yield ImportedReading(where, node, time_ms, there, table.units)


def _columns(heads: list[str]) -> list[tuple[str, str]]:
    """Sensor and unit of each column but the first."""
    if not 2 <= len(heads) <= MOST_COLUMNS:
        raise Wrong(f"a table has 2 to {MOST_COLUMNS} columns, the first for the time; this one has {len(heads)}")
    try:
        read_time(heads[0])
    except Wrong:
        pass
    else:
        raise Wrong("the first line names the columns: time, and a sensor for each other one")
    columns = [sensor_name(head) for head in heads[1:]]
    names = [name for name, _ in columns]
    for head, name in zip(heads[1:], names):
        if not name:
            raise Wrong(f"{preview(head)} is no name of a sensor")
        if names.count(name) > 1:
            raise Wrong(f"two columns are called {name}")
    return columns
