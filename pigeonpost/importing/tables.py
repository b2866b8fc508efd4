"""Readers of CSV files with readings: Pigeonpost's own log, and tables of other programs.

    time,node,sensor,value,unit          own log: one row per value; rows with the same time and node are one reading
    time,temperature (°C),humidity [%]   table: the first column is the time, and each other column is a sensor

A column `node` of a table contains the node of each row. The file is read in blocks of rows. A block is decoded by
column if all its cells have the usual format. Otherwise it is decoded row by row, which finds the faults. Both ways
give the same readings in the same order for each node. This matters because readings are numbered in this order, and a
repeated import is recognised by the numbers. No errors are raised: an invalid row is a Fault among the readings.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, islice, repeat
from operator import ne
from typing import Any, BinaryIO, NamedTuple

from pigeonpost.core.format import counted
from pigeonpost.importing.cells import (
    LINE_BYTES,
    MOST_COLUMNS,
    Fault,
    ImportedReading,
    ReadingColumns,
    RowError,
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
_STEP_ROWS = 16  # rows that are read before the size of a block is checked again
_BLOCK_SIZE = 1 << 20  # maximum number of characters and cells in a block
_LOG_COLUMNS = ["time", "node", "sensor", "value", "unit"]

Item = ReadingColumns | ImportedReading | Fault


class _Table(NamedTuple):
    """Description of a table, from its first line.

    Attributes:
        width: Number of cells in a row.
        node_at: Index of the cell with the node, or 0 if there is none.
        sensors: Sensors of the other cells, except the first, which is the time.
        units: Units by sensor.
        decimal_comma: True if numbers have a decimal comma, because semicolons separate the cells.
    """

    width: int
    node_at: int
    sensors: list[str]
    units: dict[str, str]
    decimal_comma: bool


def csv_readings(file: BinaryIO) -> Iterator[Item]:
    """Yield all readings and faults of a CSV `file`, from its beginning."""
    first = file.readline(LINE_BYTES)
    file.seek(0)
    # The separator is the most frequent one in the first line, or a comma if the line has none.
    separator = max(";\t,", key=_text(first).count)
    separator = separator if _text(first).count(separator) else ","
    rows = csv.reader(_lines(file), delimiter=separator, strict=True)
    try:
        headings = [cell.strip() for cell in next(rows, [])]
        if [heading.lower() for heading in headings] == _LOG_COLUMNS:
            yield from _log_readings(rows)
        else:
            yield from _table_readings(rows, headings, separator == ";")
    except (csv.Error, RowError) as error:
        yield Fault(f"line {max(rows.line_num, 1)}", str(error))


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(LINE_BYTES):
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            raise RowError(f"the line is longer than {LINE_BYTES:,} bytes, which is the maximum")
        yield _text(line)


def _text(line: bytes) -> str:
    """Return a line as text, decoded as UTF-8, or as Latin-1 if it is not valid UTF-8."""
    try:
        return line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        return line.decode("latin-1")


class _Block(NamedTuple):
    """Consecutive rows. `line` is the number of the line before the first row."""

    line: int
    rows: list[list[str]]

    @property
    def end(self) -> int:
        """The number of the last line of the block."""
        return self.line + len(self.rows) + "".join(chain.from_iterable(self.rows)).count("\n")

    def numbered(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each row with the number of its last line. A quoted cell may contain several lines."""
        line = self.line
        for cells in self.rows:
            line += 1 + "".join(cells).count("\n")
            yield line, cells

    def where(self, index: int) -> str:
        """Return the position of the row at `index`: "line 5"."""
        return f"line {_Block(self.line, self.rows[: index + 1]).end}"


def _blocks(reader: Any) -> Iterator[_Block]:
    """Yield the rows of a csv.reader in blocks. Before an error is raised, all valid rows are yielded."""
    block, size = _Block(reader.line_num, []), 0
    try:
        while True:
            before = len(block.rows)
            block.rows.extend(islice(reader, _STEP_ROWS))  # on an error, the rows before it have been added
            if len(block.rows) == before:
                break
            new = block.rows[before:]
            size += sum(map(len, new)) + sum(map(len, chain.from_iterable(new)))
            if len(block.rows) >= BLOCK_ROWS or size >= _BLOCK_SIZE:
                yield block
                block, size = _Block(reader.line_num, []), 0
    except (csv.Error, RowError):
        yield block
        raise
    yield block


def _runs(nodes: Iterable[str], shapes: Iterable[Any]) -> list[tuple[str, Any, list[int]]]:
    """Return runs of readings: consecutive readings of a node with the same shape.

    A run is its node, its shape, and the indexes of its readings. Readings of other nodes may be between them.
    """
    runs: list[tuple[str, Any, list[int]]] = []
    current: dict[str, tuple[str, Any, list[int]]] = {}
    for index, (node, shape) in enumerate(zip(nodes, shapes)):
        run = current.get(node)
        if run is None or run[1] != shape:
            run = current[node] = node, shape, []
            runs.append(run)
        run[2].append(index)
    return runs


# ----------------------------------------------------------------------------------------------------------- own log


def _log_readings(reader: Any) -> Iterator[Item]:
    pending: list[list[str]] = []  # rows of a reading that may continue in the next block
    end = reader.line_num
    try:
        for block in _blocks(reader):
            rows = pending + block.rows
            stop = _last_reading(rows)
            done = _Block(end, rows[:stop])
            yield from _log_block(done)
            pending, end = rows[stop:], done.end
    except (csv.Error, RowError):
        yield from _log_block(_Block(end, pending))
        raise
    yield from _log_block(_Block(end, pending))


def _last_reading(rows: Sequence[list[str]]) -> int:
    """Return the index of the first row of the last reading, which may continue in the next block."""
    time_and_node: list[str] = []
    start = 0
    for index in range(len(rows) - 1, -1, -1):
        cells = rows[index]
        if len(cells) == len(_LOG_COLUMNS) and not _is_gap(cells[2], cells[4]):
            if time_and_node and cells[:2] != time_and_node:
                start = index + 1
                break
            time_and_node = cells[:2]
    sensors: set[str] = set()
    for index in range(start, len(rows)):
        sensor = "".join(rows[index][2:3])
        if sensor in sensors:  # another reading with the same time and node
            start = index
            sensors.clear()
        sensors.add(sensor)
    return start


def _log_block(block: _Block) -> Iterator[Item]:
    """Yield the readings of a block that ends with a complete reading."""
    readings = _log_columns(block) if block.rows else []
    yield from _log_rows(block) if readings is None else readings


def _log_columns(block: _Block) -> list[ReadingColumns] | None:
    """Return the readings by column, or None if the block has a cell or row of an unusual format."""
    if set(map(len, block.rows)) != {len(_LOG_COLUMNS)}:
        return None
    times, nodes, sensors, cells, units = zip(*block.rows)
    plain = {unit: unguarded(unit) for unit in set(units)}
    names = set(sensors)
    if "gap" in names or not all(map(SENSOR_NAME, names)) or not all(map(NODE_NAME, set(nodes))):
        return None
    keys = list(zip(times, nodes))
    starts = [0, *compress(range(1, len(times)), map(ne, keys[1:], keys))]
    values = read_values(cells)
    times_ms = read_times([times[start] for start in starts])
    if values is None or times_ms is None or not all(map(UNIT, plain.values())):
        return None
    shapes = [(sensors[start:end], units[start:end]) for start, end in zip(starts, [*starts[1:], len(times)])]
    readings = []
    for node, (of, of_units), indexes in _runs([nodes[start] for start in starts], shapes):
        if len(set(of)) != len(of):
            return None  # a sensor occurs twice: these are two readings
        columns = {name: [values[starts[index] + k] for index in indexes] for k, name in enumerate(of)}
        known = {name: plain[unit] for name, unit in zip(of, of_units)}
        where = block.where(starts[indexes[0]])
        readings.append(ReadingColumns(where, node, [times_ms[index] for index in indexes], columns, known))
    return readings


def _log_rows(block: _Block) -> Iterator[ImportedReading | Fault]:
    """Yield the readings of the own log. Consecutive rows with the same time and node are one reading."""
    current: tuple[str, str] | None = None
    reading = ImportedReading("", "", 0, {}, {})
    for line, row in block.numbered():
        where = f"line {line}"
        try:
            time, node, sensor, value, unit = _log_row(row)
            if _is_gap(sensor, unit):
                continue
            if current != (time, node) or sensor in reading.values:
                if reading.values:
                    yield reading
                current, reading = (time, node), ImportedReading(where, node, read_time(time), {}, {})
            reading.values[sensor] = read_value(value, sensor)
            reading.units[sensor] = unit
        except RowError as error:
            yield Fault(where, str(error))
    if reading.values:
        yield reading


def _log_row(row: list[str]) -> tuple[str, str, str, str, str]:
    if len(row) != len(_LOG_COLUMNS):
        raise RowError(
            f"the row has {counted(len(row), 'cell')} instead of {len(_LOG_COLUMNS)} ({','.join(_LOG_COLUMNS)})"
        )
    time, node, sensor, value, unit = row
    unit = unguarded(unit)
    if not NODE_NAME(node):
        raise RowError(f"{preview(node)} is not a valid node name")
    if not SENSOR_NAME(sensor):
        raise RowError(f"{preview(sensor)} is not a valid sensor name")
    if not UNIT(unit) and not _is_gap(sensor, unit):
        raise RowError(f"{preview(unit)} is not a valid unit")
    return time, node, sensor, value, unit


def _is_gap(sensor: str, unit: str) -> bool:
    """Return True for a row that describes a gap: the description replaces the unit, and is longer than any unit."""
    return sensor == "gap" and unit.startswith("samples ")


# ------------------------------------------------------------------------------------------------------ other tables


def _table_readings(rows: Any, headings: list[str], decimal_comma: bool) -> Iterator[Item]:
    node_at = next((index for index, heading in enumerate(headings) if index and heading.lower() == "node"), 0)
    columns = _columns(headings[:node_at] + headings[node_at + 1 :] if node_at else headings)
    units = {name: unit for name, unit in columns if unit}
    table = _Table(len(headings), node_at, [name for name, _ in columns], units, decimal_comma)
    for block in _blocks(rows):
        readings = _table_columns(block, table) if block.rows else []
        yield from _table_rows(block, table) if readings is None else readings


def _table_columns(block: _Block, table: _Table) -> list[ReadingColumns] | None:
    """Return the readings by column, or None if the block has a cell or row of an unusual format."""
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
    for node, shape, indexes in _runs(nodes, zip(*sensors)):
        values = {name: [numbers[name][index] for index in indexes] for name in shape if name}
        if values:  # an empty cell means that the sensor was not read at that time
            where = block.where(indexes[0])
            readings.append(ReadingColumns(where, node, [times_ms[k] for k in indexes], values, table.units))
    return readings


def _table_rows(block: _Block, table: _Table) -> Iterator[ImportedReading | Fault]:
    for line, row in block.numbered():
        if not any(cell.strip() for cell in row):
            continue
        where = f"line {line}"
        try:
            if len(row) != table.width:
                raise RowError(f"the row has {counted(len(row), 'cell')}, but the first line has {table.width}")
            node = row.pop(table.node_at).strip() if table.node_at else ""
            if table.node_at and not NODE_NAME(node):
                raise RowError(f"{preview(node)} is not a valid node name")
            cells = [cell.replace(",", ".") if table.decimal_comma else cell for cell in row[1:]]
            values = {name: read_value(cell, name) for name, cell in zip(table.sensors, cells)}
            time_ms = read_time(row[0])
        except RowError as error:
            yield Fault(where, str(error))
            continue
        present: Values = {name: value for name, value in values.items() if value is not None}
        if present:
            yield ImportedReading(where, node, time_ms, present, table.units)


def _columns(headings: list[str]) -> list[tuple[str, str]]:
    """Return the sensor and the unit of each column except the first."""
    if not 2 <= len(headings) <= MOST_COLUMNS:
        raise RowError(
            f"the table has {counted(len(headings), 'column')}; it must have 2 to {MOST_COLUMNS}, and the first must be"
            " the time"
        )
    try:
        read_time(headings[0])
    except RowError:
        pass
    else:
        raise RowError("the first line must contain the names of the columns: time, then the sensors")
    columns = [sensor_name(heading) for heading in headings[1:]]
    names = [name for name, _ in columns]
    for heading, name in zip(headings[1:], names):
        if not name:
            raise RowError(f"{preview(heading)} is not a valid sensor name")
        if names.count(name) > 1:
            raise RowError(f"two columns have the name {name}")
    return columns
