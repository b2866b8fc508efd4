"""Survey of a CSV file before its readings are read: how its times, numbers and columns are to be understood.

A survey of the first rows is sufficient for most files. The whole file is surveyed if they leave a question, or if a
later row contradicts them. Errors: RowError, whose message may begin with a line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import BinaryIO

from pigeonpost.core.format import counted
from pigeonpost.importing.blocks import Block, blocks
from pigeonpost.importing.cells import RowError, node_name, preview, unique_names
from pigeonpost.importing.columns import LOG_COLUMNS, Layout, find_layout
from pigeonpost.importing.dialect import HEAD_LINES, Head, find_head
from pigeonpost.importing.numbers import decimal_in, has_no_value, is_number, unit_in
from pigeonpost.importing.options import BadOption, ImportOptions
from pigeonpost.importing.text import TextLines
from pigeonpost.importing.time_forms import DateOrder, joined
from pigeonpost.importing.time_names import heading_zone
from pigeonpost.importing.times import Clock, FoldFinder
from pigeonpost.importing.units import Conversion, conversion, known_unit
from pigeonpost.importing.zones import BadZone, Zone

_MOST_SERIES = 5000
_FIRST_LOOK = 2048  # rows that are surveyed first
Key = tuple[str, ...]


class ColumnFacts:
    """Facts about the cells of one column, or of one sensor in a long table.

    Attributes:
        numbers: True if a cell contains a number.
        text: The first cell that contains neither a number nor a word for no value, or an empty string.
        decimals: Decimal characters that cells prove, and "?" if a cell leaves it open.
        unit: Unit in the cells, or an empty string.
    """

    def __init__(self) -> None:
        self.numbers = False
        self.text = self.unit = ""
        self.decimals: set[str] = set()

    def add(self, cells: Sequence[str]) -> None:
        """Add `cells`. Those that cannot change a fact are skipped."""
        text = "".join(cells)
        is_settled = (
            self.numbers and ("," not in text or "," in self.decimals) and ("." not in text or "." in self.decimals)
        )
        if is_settled:
            return
        for cell in cells:
            if has_no_value(cell):
                continue
            if not is_number(cell):
                self.text = self.text or cell.strip()
                continue
            self.numbers = True
            self.unit = self.unit or unit_in(cell)
            if found := decimal_in(cell):
                self.decimals.add(found)
            if found in (".", ",") and not ("," in text and "." in text):
                return  # all others of these cells agree, or are found when they are read


class Series:
    """One sensor of a long table.

    Attributes:
        name: Name of the sensor.
        unit: Its unit in the file.
        facts: Facts about its values.
        decimal: Their decimal character, as for `read_number`.
    """

    def __init__(self, name: str) -> None:
        self.name, self.unit, self.facts, self.decimal = name, "", ColumnFacts(), "?"


class Plan:
    """Interpretation of a CSV file: its structure, the purposes of its columns, the forms of times and numbers.

    Args:
        file: The open file.
        options: Options of the user.

    Attributes:
        head: Structure of the file.
        layout: Purposes of its columns.
        is_log: True if the file is Pigeonpost's own log.
        is_whole: True if all rows have been surveyed.
        clock: Reader of its times.
        left_out: Headings of columns, or sensors, that are left out, and the reason.
        conversions: Conversion of the values by sensor.
        units: Unit in the file by sensor.
        encoding: Encoding of the file.
        not_utf8: Number of the first line that is not UTF-8, or 0.

    Raises:
        RowError: The structure of the file cannot be understood, or an option does not fit it.
    """

    def __init__(self, file: BinaryIO, options: ImportOptions) -> None:
        self._file, self.options = file, options
        text = TextLines(file, options.skip_bad)
        self.head: Head = find_head(list(islice(iter(text), HEAD_LINES)), options)
        self.encoding, self.not_utf8 = text.encoding, text.not_utf8
        self.layout: Layout = find_layout(self.head, options.time_format)
        zone = next(filter(None, (heading_zone(self.layout.headings[at]) for at in self.layout.times)), "")
        if zone and not options.zone.name:
            with contextlib.suppress(BadZone):
                options = self.options = options._replace(zone=Zone(zone))
        self.series: dict[Key, Series] = {}
        self.decimals: dict[int, str] = {}
        self.conversions: dict[str, Conversion] = {}
        self.units: dict[str, str] = {}
        self.left_out = list(self.layout.left_out)
        self.order, self.is_whole = options.dates, False
        self.clock = Clock(options, self.order)
        headings = [heading.lower() for heading in self.head.headings]
        times = [row[0] for row in self.head.rows if len(row) == len(LOG_COLUMNS)]
        self.is_log = (
            headings == LOG_COLUMNS
            and self.head.separator == ","
            and not (options.scales or options.offsets or options.units or options.time_format)
            and not any(map(self._is_local, times))
        )
        if self.is_log:
            self.is_whole, self.clock.folds = True, {}
        else:
            self.survey(is_whole=bool(self.layout.names))

    def _is_local(self, cell: str) -> bool:
        try:
            return self.clock.find(cell).is_local
        except RowError:
            return False

    def survey(self, is_whole: bool) -> None:
        """Survey the file.

        Args:
            is_whole: True to survey all rows, False to begin with the first ones and to continue only if they leave a
                question.

        Raises:
            RowError: The order of day and month cannot be decided, or an option does not fit the file.
        """
        order = DateOrder()
        facts = {column.at: ColumnFacts() for column in self.layout.sensors}
        self.series.clear()
        rows, self.is_whole = 0, True
        for block in self.blocks():
            if rows >= _FIRST_LOOK and not is_whole and self._is_answered(order, facts):
                self.is_whole = False
                break
            rows += len(block.rows)
            self._look(block, order, facts)
        if not self.options.dates and not self.options.time_format:
            self.order = order.decide()
        self.clock = Clock(self.options, self.order, self.clock.folds)
        self._decide(facts)

    def blocks(self) -> Iterator[Block]:
        """Yield the rows of the file in blocks.

        Raises:
            RowError: A line is too long, or a row is not valid CSV.
        """
        text = TextLines(self._file, self.options.skip_bad)
        for block in blocks(text, self.head, self.options.skip_bad):
            self.not_utf8 = self.not_utf8 or text.not_utf8
            yield block

    def find_folds(self) -> None:
        """Find the rows in the second of two equal hours, when summer time ends."""
        finder = FoldFinder(self.clock)
        for block in _until_error(self.blocks()):
            for line, row in zip(block.lines, block.rows):
                if self.is_data(row) and (cell := self.time_cell(row)):
                    finder.add(line, cell, self.series_of(row))
        self.clock.folds = finder.folds()

    def is_data(self, row: Sequence[str]) -> bool:
        """Return True if a `row` is complete, and neither a comment nor the head line again."""
        headings = self.layout.headings
        return len(row) >= len(headings) and not row[0].startswith("#") and not is_head(row, headings)

    def time_cell(self, row: Sequence[str]) -> str:
        """Return the text of the time of a `row`, or an empty string if a part of it is missing."""
        if len(self.layout.times) == 1:
            return row[self.layout.times[0]]
        try:
            return joined([row[at] for at in self.layout.times], self.layout.date_parts)
        except RowError:
            return ""

    def series_of(self, row: Sequence[str]) -> str:
        """Return the name of the series of a `row`: its node and, in a long table, its sensor."""
        node = row[self.layout.node] if self.layout.node >= 0 else ""
        return "\0".join((node, *(row[at] for at in self.layout.names)))

    def _is_answered(self, order: DateOrder, facts: dict[int, ColumnFacts]) -> bool:
        if any(one.text and not one.numbers for one in facts.values()):
            return False
        marks = set().union(*(one.decimals for one in facts.values()))
        if "?" in marks and len(marks & {".", ","}) != 1:
            return False
        is_decided = not order.firsts or bool(set(order.firsts) - {""} and not order.is_open)
        return bool(self.options.dates or self.options.time_format or is_decided)

    def _look(self, block: Block, order: DateOrder, facts: dict[int, ColumnFacts]) -> None:
        rows = [row for row in block.rows if self.is_data(row)]
        if not rows:
            return
        if not self.options.dates and not self.options.time_format:
            first = rows[0][self.layout.times[0]]
            if not first.isdecimal() and not first[:4].isdecimal():
                for line, row in zip(block.lines, block.rows):
                    if self.is_data(row) and (cell := self.time_cell(row)):
                        order.add(line, cell)
        for at, one in facts.items():
            one.add([row[at] for row in rows])
        if self.layout.names:
            self._look_at_series(rows)

    def _look_at_series(self, rows: list[list[str]]) -> None:
        layout = self.layout
        values: dict[Key, list[str]] = {}
        for row in rows:
            key = tuple([row[at] for at in layout.names])
            if key not in values:
                values[key] = []
                if key not in self.series:
                    if len(self.series) >= _MOST_SERIES:
                        raise RowError(
                            f"the file has more than {counted(_MOST_SERIES, 'sensor')}, which is the maximum"
                        )
                    self.series[key] = Series("")
                if layout.unit >= 0 and not self.series[key].unit:
                    self.series[key].unit = known_unit(row[layout.unit])
            values[key].append(row[layout.value])
        for key, cells in values.items():
            self.series[key].facts.add(cells)

    def _decide(self, facts: dict[int, ColumnFacts]) -> None:
        """Decide the numbers' form, what is left out, the names of the sensors, and the conversions."""
        layout = self.layout
        all_facts = [*facts.values(), *(one.facts for one in self.series.values())]
        marks = set().union(*(one.decimals for one in all_facts)) & {".", ","}
        usual = marks.pop() if len(marks) == 1 else "." if self.head.separator == "," else "?"
        self.left_out = list(layout.left_out)
        has_numbers = any(one.numbers for one in all_facts)
        for column in layout.sensors:
            one = facts[column.at]
            self.decimals[column.at] = _decimal(one, usual)
            if has_numbers and one.text and not one.numbers:
                self.left_out.append((layout.headings[column.at], f"contains text such as {preview(one.text)}"))
            else:
                unit = self.units[column.name] = column.unit or known_unit(one.unit)
                self.conversions[column.name] = conversion(column.name, unit, self.options)
        _name_series(self.series, len(layout.names))
        for key, series in self.series.items():
            series.decimal = _decimal(series.facts, usual)
            if not series.facts.numbers:
                what = f"contains text such as {preview(series.facts.text)}" if series.facts.text else "has no values"
                self.left_out.append((key[-1], what))
            elif not series.name:
                raise RowError(f"{preview(key[-1])} is not a valid sensor name")
            else:
                unit = self.units[series.name] = series.unit or known_unit(series.facts.unit)
                self.conversions[series.name] = conversion(series.name, unit, self.options)
        self._check_options()

    def _check_options(self) -> None:
        for option, values in (
            ("scale", self.options.scales),
            ("offset", self.options.offsets),
            ("unit", self.options.units),
        ):
            for name in values:
                if name and name not in self.conversions and self.is_whole:
                    raise BadOption(
                        f"--{option}: there is no sensor {name}; the sensors are: {', '.join(self.conversions)}"[:250]
                    )


def _decimal(facts: ColumnFacts, usual: str) -> str:
    """Return the decimal character of values. "?" means that 1.234 has a decimal point, and 1,234 a decimal comma."""
    marks = facts.decimals & {".", ","}
    return marks.pop() if len(marks) == 1 else usual


def _name_series(series: dict[Key, Series], parts: int) -> None:
    """Give each series a name of its own. Names that are too long or equal end in a checksum."""
    fields = {key[-1] for key in series}
    joins = parts > 1 and (len(fields) < len(series) or fields & {"value", "_value", "mean", "val"})
    texts = {}
    for key in series:
        one = (
            key[0]
            if parts > 1 and key[-1] in ("value", "_value", "mean", "val")
            else "_".join(key)
            if joins
            else key[-1]
        )
        texts[key] = one.removeprefix("sensor.")
    names = unique_names(texts.values())
    for key, one_series in series.items():
        one_series.name = names[texts[key]]


def _until_error(found: Iterator[Block]) -> Iterator[Block]:
    try:
        yield from found
    except RowError:
        return


def is_head(row: Sequence[str], headings: Sequence[str]) -> bool:
    """Return True if a `row` contains the `headings`: loggers write them again when they start."""
    first = row[0].lstrip("\ufeff").strip()  # files that were joined have a byte order mark in the middle
    return first == headings[0] and [cell.strip() for cell in row[1 : len(headings)]] == headings[1:]


def node_of(cell: str, heading: str) -> str:
    """Return the node name in a `cell`. A column with the `heading` node contains valid names.

    Raises:
        RowError: The cell contains no node name.
    """
    text = cell.strip()
    return text if heading.lower() == "node" else node_name(text)
