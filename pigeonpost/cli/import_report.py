"""Texts about a file that is imported: how it is understood, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator

from pigeonpost.core.format import counted, stamp
from pigeonpost.importing.importer import Inspection
from pigeonpost.importing.survey import Plan

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar", " ": "space"}
_ENCODINGS = {"utf-8": "UTF-8", "utf-16-le": "UTF-16 (little endian)", "utf-16-be": "UTF-16 (big endian)"}
_ORDERS = {"dmy": "day first", "mdy": "month first", "ymd": "year first"}
_LEFT_OUT_SHOWN = 20


def notes_about(inspection: Inspection) -> Iterator[str]:
    """Yield what the user must know about a file after its `inspection`: columns that are left out, and guesses."""
    plan = inspection.plan
    if plan is None:
        return
    if plan.not_utf8:
        yield f"line {plan.not_utf8} is not UTF-8: it was read as Windows-1252"
    for heading, reason in plan.left_out[:_LEFT_OUT_SHOWN]:
        yield f"left out: {heading} ({reason})"
    if len(plan.left_out) > _LEFT_OUT_SHOWN:
        yield f"left out: {len(plan.left_out) - _LEFT_OUT_SHOWN} more"


def described(inspection: Inspection, node: str, is_node_given: bool, is_database: bool) -> Iterator[str]:
    """Yield the lines of `import --check` for a file.

    Args:
        inspection: Result of the inspection of the file.
        node: Node of readings that name none, or an empty string.
        is_node_given: True if `node` is the node of all readings.
        is_database: True if the file was converted from a database, whose format is described already.
    """
    summary, plan = inspection.summary, inspection.plan
    if is_database:
        pass
    elif plan is None:
        yield "format: JSON"
    elif plan.is_log:
        yield "format: log of Pigeonpost (time,node,sensor,value,unit)"
    else:
        yield from _structure(plan)
    yield f"first and last time: {stamp(summary.first_ms)} to {stamp(summary.last_ms)}"
    for (of_node, sensor), (values, empty) in inspection.counts.items():
        shown = node if is_node_given or not of_node else of_node
        unit = inspection.units[of_node, sensor]
        text = plan.conversions[sensor].text if plan and sensor in plan.conversions else ""
        missing = empty or (summary.samples - values if plan and not plan.is_log and plan.layout.node < 0
                            and not plan.layout.names else 0)  # fmt: skip
        yield (
            f"{shown or '(no node: add --node NODE)'} {sensor}{f' [{unit}]' if unit else ''}:"
            f" {counted(values, 'value')}, {missing:,} without a value{f', converted: {text}' if text else ''}"
        )
    yield from notes_about(inspection)
    skipped = counted(inspection.skipped_count, "invalid row")
    yield f"{counted(summary.samples, 'reading')}, {skipped}; nothing was stored"


def _structure(plan: Plan) -> Iterator[str]:
    layout, head = plan.layout, plan.head
    kind = "one row per value" if layout.names else "one column per sensor"
    yield (
        f"format: CSV, {kind}, encoding {_ENCODINGS.get(plan.encoding, plan.encoding)}, separator"
        f" {_SEPARATORS.get(head.separator, repr(head.separator))}"
    )
    yield f"head line: line {head.line}" if head.line else "head line: none, the columns are named by --columns"
    names = " + ".join(layout.headings[at] or f"column {at + 1}" for at in layout.times)
    cells = next((plan.time_cell(row) for row in head.rows if plan.is_data(row)), "")
    order = f", {_ORDERS[plan.order]}" if plan.order in _ORDERS else ""
    zone = plan.options.zone.name or "of this machine"
    yield f"time: column {names}, such as {cells!r}{order}; time zone of times without an offset: {zone}"
    decimals = {plan.decimals[column.at] for column in layout.sensors if column.name in plan.conversions}
    if "," in decimals.union(series.decimal for series in plan.series.values()):
        yield "numbers: decimal comma"
    folds = sum(map(len, (plan.clock.folds or {}).values()))
    if folds:
        yield f"end of summer time: {counted(folds, 'series', 'series')} of rows assigned by the order of the rows"
    if layout.node >= 0:
        yield f"node: column {layout.headings[layout.node]}"
    if layout.names:
        sensor = " + ".join(layout.headings[at] for at in layout.names)
        yield f"sensor: column {sensor}; value: column {layout.headings[layout.value]}"
