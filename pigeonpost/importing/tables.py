"""Readers of CSV files with readings: Pigeonpost's own log, and tables of other programs.

    time,node,sensor,value,unit          own log: one row per value; rows with the same time and node are one reading
    time,temperature (°C),humidity [%]   wide table: each column except that of the time is a sensor
    entity_id,state,last_changed         long table: one row per value; it is converted to rows of the log

The module `survey` finds out what the columns of a table are. The file is read in blocks of rows. A block is decoded by
column if all its cells have the usual format. Otherwise it is decoded row by row, which finds the faults. Both ways
give the same readings in the same order for each node. This matters because readings are numbered in this order, and a
repeated import is recognised by the numbers. An invalid row is a Fault among the readings. Errors: UnknownFold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, repeat
from operator import ne
from typing import Any, NamedTuple

from pigeonpost.core.format import counted
from pigeonpost.importing.blocks import Block
from pigeonpost.importing.cells import (
    Fault,
    ImportedReading,
    ReadingColumns,
    RowError,
    preview,
    read_value,
    read_values,
    unguarded,
)
from pigeonpost.importing.columns import LOG_COLUMNS
from pigeonpost.importing.long_tables import check_row, log_block
from pigeonpost.importing.numbers import read_in_unit
from pigeonpost.importing.survey import Plan, is_head, node_of
from pigeonpost.importing.text import zero_bytes
from pigeonpost.importing.times import Clock
from pigeonpost.importing.units import Conversion
from protocol import NODE_NAME, SENSOR_NAME, UNIT, Number, Values

Item = ReadingColumns | ImportedReading | Fault


class _Table(NamedTuple):
    """Description of a wide table.

    Attributes:
        plan: How the file is understood.
        width: Number of cells in a row.
        node_at: Index of the cell with the node, or -1 if there is none.
        columns: Index, sensor, decimal character and conversion of each other cell.
        units: Units by sensor.
    """

    plan: Plan
    width: int
    node_at: int
    columns: list[tuple[int, str, str, Conversion]]
    units: dict[str, str]


def csv_readings(plan: Plan) -> Iterator[Item]:
    """Yield all readings and faults of the CSV file that a `plan` describes, from its beginning."""
    try:
        if plan.is_log:
            yield from _log_readings(plan.blocks(), plan.clock)
        elif plan.layout.names:
            yield from _log_readings(map(log_block, plan.blocks(), repeat(plan)), Clock(plan.options, "", {}))
        else:
            yield from _table_readings(plan)
    except RowError as error:
        yield fault(error)


def fault(error: RowError) -> Fault:
    """Return the Fault for an `error` whose message may begin with a line."""
    found = _WHERE(str(error))
    return Fault(found[1], found[2]) if found else Fault("the file", str(error))


_WHERE = re.compile(r"(line [0-9]+): (.*)", re.DOTALL).fullmatch


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


def _log_readings(blocks: Iterable[Block], clock: Clock) -> Iterator[Item]:
    pending = Block((), [])  # rows of a reading that may continue in the next block
    try:
        for block in blocks:
            yield from block.faults
            rows, lines = pending.rows + block.rows, [*pending.lines, *block.lines]
            stop = _last_reading(rows)
            yield from _log_block(Block(lines[:stop], rows[:stop], (), block.may_lack_node), clock)
            pending = Block(lines[stop:], rows[stop:], (), block.may_lack_node)
    except RowError:
        yield from _log_block(pending, clock)
        raise
    yield from _log_block(pending, clock)


def _last_reading(rows: Sequence[list[str]]) -> int:
    """Return the index of the first row of the last reading, which may continue in the next block."""
    time_and_node: list[str] = []
    start = 0
    for index in range(len(rows) - 1, -1, -1):
        cells = rows[index]
        if len(cells) == len(LOG_COLUMNS) and not _is_gap(cells[2], cells[4]):
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


def _log_block(block: Block, clock: Clock) -> Iterator[Item]:
    """Yield the readings of a block that ends with a complete reading."""
    readings = _log_columns(block, clock) if block.rows else []
    yield from _log_rows(block, clock) if readings is None else readings


def _log_columns(block: Block, clock: Clock) -> list[ReadingColumns] | None:
    """Return the readings by column, or None if the block has a cell or row of an unusual format."""
    if set(map(len, block.rows)) != {len(LOG_COLUMNS)}:
        return None
    times, nodes, sensors, cells, units = zip(*block.rows)
    plain = {unit: unguarded(unit) for unit in set(units)}
    names = set(sensors)
    if (
        "gap" in names
        or not all(map(SENSOR_NAME, names))
        or not all(map(NODE_NAME, set(nodes) - {""} if block.may_lack_node else set(nodes)))
    ):
        return None
    keys = list(zip(times, nodes))
    starts = [0, *compress(range(1, len(times)), map(ne, keys[1:], keys))]
    values = read_values(cells)
    times_ms = clock.read([times[start] for start in starts], starts, nodes)
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


def _log_rows(block: Block, clock: Clock) -> Iterator[ImportedReading | Fault]:
    """Yield the readings of the own log. Consecutive rows with the same time and node are one reading."""
    current: tuple[str, str] | None = None
    reading = ImportedReading("", "", 0, {}, {})
    for line, row in zip(block.lines, block.rows):
        where = f"line {line}"
        if row == LOG_COLUMNS:  # the head line again, where files were joined
            continue
        try:
            time, node, sensor, value, unit = _log_row(row, block.may_lack_node)
            if _is_gap(sensor, unit):
                continue
            if current != (time, node) or sensor in reading.values:
                if reading.values:
                    yield reading
                current, reading = (time, node), ImportedReading(where, node, clock.read_one(time, line, node), {}, {})
            reading.values[sensor] = read_value(value, sensor)
            reading.units[sensor] = unit
        except RowError as error:
            yield Fault(where, str(error))
    if reading.values:
        yield reading


def _log_row(row: list[str], may_lack_node: bool) -> tuple[str, str, str, str, str]:
    if any("\0" in cell for cell in row):
        raise RowError(zero_bytes("".join(row)))
    if len(row) != len(LOG_COLUMNS):
        raise RowError(
            f"the row has {counted(len(row), 'cell')} instead of {len(LOG_COLUMNS)} ({','.join(LOG_COLUMNS)})"
        )
    time, node, sensor, value, unit = row
    unit = unguarded(unit)
    if not NODE_NAME(node) and not (may_lack_node and not node):
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


def _table_readings(plan: Plan) -> Iterator[Item]:
    layout = plan.layout
    columns = [
        (column.at, column.name, plan.decimals[column.at], plan.conversions[column.name])
        for column in layout.sensors
        if column.name in plan.conversions
    ]
    units = {name: found.unit for _, name, _, found in columns if found.unit}
    table = _Table(plan, len(layout.headings), layout.node, columns, units)
    for block in plan.blocks():
        yield from block.faults
        readings = _table_columns(block, table) if block.rows else []
        yield from _table_rows(block, table) if readings is None else readings


def _table_columns(block: Block, table: _Table) -> list[ReadingColumns] | None:
    """Return the readings by column, or None if the block has a cell or row of an unusual format."""
    if block.may_have_zeros or set(map(len, block.rows)) != {table.width}:
        return None
    layout, plan = table.plan.layout, table.plan
    columns = list(zip(*block.rows))
    if "#" in "".join(columns[0]):  # perhaps a comment
        return None
    series = columns[layout.node] if layout.node >= 0 else [""] * len(block.rows)
    times = columns[layout.times[0]] if len(layout.times) == 1 else [plan.time_cell(row) for row in block.rows]
    times_ms = plan.clock.read(times, block.lines, series)
    nodes = _nodes(series, layout.headings[layout.node]) if layout.node >= 0 else series
    if times_ms is None or nodes is None:
        return None
    numbers: dict[str, list[Number | None]] = {}
    for at, name, decimal, conversion in table.columns:
        column = _column(columns[at], name, decimal, plan.units[name])
        if column is None:
            return None
        numbers[name] = [conversion.apply(value) for value in column] if conversion.text else column
    if layout.node < 0 and numbers and not any(None in column for column in numbers.values()):
        return [ReadingColumns(block.where(0), "", times_ms, numbers, table.units)]
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


def _nodes(cells: Sequence[str], heading: str) -> list[str] | None:
    """Return the node names in `cells`, or None if one is invalid."""
    try:
        names = {cell: node_of(cell, heading) for cell in set(cells)}
    except RowError:
        return None
    return [names[cell] for cell in cells] if all(map(NODE_NAME, names.values())) else None


def _column(cells: Sequence[str], name: str, decimal: str, unit: str) -> list[Number | None] | None:
    """Return the values in the cells of a column, or None if one is invalid."""
    if decimal == ".":
        values = read_values(cells)
    else:
        text = "".join(cells)
        is_mixed = "." in text and (decimal == "," or "," in text)
        values = None if is_mixed else read_values([cell.replace(",", ".") for cell in cells])
    if values is not None:
        return values
    try:
        return [read_in_unit(cell, name, decimal, unit) for cell in cells]
    except RowError:
        return None


def _table_rows(block: Block, table: _Table) -> Iterator[ImportedReading | Fault]:
    plan, layout = table.plan, table.plan.layout
    for line, row in zip(block.lines, block.rows):
        if not "".join(row).strip() or row[0].startswith("#") or is_head(row, layout.headings):
            continue
        where = f"line {line}"
        try:
            check_row(row, table.width)
            node = node_of(row[layout.node], layout.headings[layout.node]) if layout.node >= 0 else ""
            if layout.node >= 0 and not NODE_NAME(node):
                raise RowError(f"{preview(node)} is not a valid node name")
            values = {
                name: conversion.apply(read_in_unit(row[at], name, decimal, plan.units[name]))
                for at, name, decimal, conversion in table.columns
            }
            time_ms = plan.clock.read_one(plan.time_cell(row), line, plan.series_of(row))
        except RowError as error:
            yield Fault(where, str(error))
            continue
        present: Values = {name: value for name, value in values.items() if value is not None}
        if present:
            yield ImportedReading(where, node, time_ms, present, table.units)
