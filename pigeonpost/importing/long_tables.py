"""Conversion of long tables, with one row per value, to rows of Pigeonpost's own log."""

from __future__ import annotations

from itertools import pairwise

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import counted
from pigeonpost.importing.blocks import Block
from pigeonpost.importing.cells import Fault, RowError
from pigeonpost.importing.numbers import read_in_unit
from pigeonpost.importing.survey import Plan, is_head, node_of
from pigeonpost.importing.text import zero_bytes
from pigeonpost.importing.units import Conversion, conversion_to_first, known_unit
from protocol import NODE_NAME


def check_row(row: list[str], width: int) -> None:
    """Remove empty cells at the end of a `row` that are beyond its `width`.

    Raises:
        RowError: The row has too few or too many cells, or zero bytes.
    """
    text = "".join(row)
    if "\0" in text:
        raise RowError(zero_bytes(text))
    if len(row) > width and not "".join(row[width:]).strip():
        del row[width:]
    if len(row) != width:
        raise RowError(f"the row has {counted(len(row), 'cell')}, but the first line has {width}")


def log_block(block: Block, plan: Plan) -> Block:
    """Return a `block` of a long table as rows of the log. Rows of sensors that are left out have no row.

    Args:
        block: Rows of the table.
        plan: How the file is understood.
    """
    faults, rows, lines = list(block.faults), [], []
    units: dict[tuple[str, str], tuple[str, Conversion]] = {}  # by sensor and text of the unit
    for line, row in zip(block.lines, block.rows):
        if not "".join(row).strip() or row[0].startswith("#") or is_head(row, plan.layout.headings):
            continue
        try:
            check_row(row, len(plan.layout.headings))
            converted = _row(line, row, plan, units)
        except RowError as error:
            faults.append(Fault(f"line {line}", str(error)))
            continue
        if converted:
            rows.append(converted)
            lines.append(line)
    if all(earlier[:2] != later[:2] for earlier, later in pairwise(rows)):
        # Each row is a reading. Readings with the same sensor are stored together much faster.
        order = sorted(range(len(rows)), key=lambda index: (rows[index][1], rows[index][2]))
        rows, lines = [rows[index] for index in order], [lines[index] for index in order]
    return Block(lines, rows, faults, True)


def _row(
    line: int, row: list[str], plan: Plan, units: dict[tuple[str, str], tuple[str, Conversion]]
) -> list[str] | None:
    layout = plan.layout
    series = plan.series.get(tuple([row[at] for at in layout.names]))
    if series is None or not series.facts.numbers:
        return None
    node = ""
    if layout.node >= 0 and (row[layout.node].strip() or layout.headings[layout.node].lower() == "node"):
        node = node_of(row[layout.node], "")
        if not NODE_NAME(node):
            raise RowError(f"{node!r:.60} is not a valid node name")
    time_ms = plan.clock.read_one(plan.time_cell(row), line, plan.series_of(row))
    key = series.name, row[layout.unit] if layout.unit >= 0 else ""
    if key not in units:
        first = plan.units[series.name]
        unit = known_unit(key[1]) or first
        units[key] = unit, conversion_to_first(series.name, unit, first, plan.options)
    unit, found = units[key]
    value = found.apply(read_in_unit(row[layout.value], series.name, series.decimal, unit))
    # Numbers with 13 digits are read fast. Others may be understood as seconds, or as a date.
    time = str(time_ms) if 10**12 <= time_ms < 10**13 else rfc3339(time_ms)
    return [time, node, series.name, "" if value is None else repr(value), found.unit]
