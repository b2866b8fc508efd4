"""A report as HTML for mail programs: tables, with bars made of table cells, and no images.

Mail programs remove the element `style` and most of CSS, so all styles are in attributes. No background and no colour
of text is set except for the bars, so the report follows a dark mode; the grey of lines and small text is readable on
both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pigeonpost.alerts.report import (
    MOST_LINES,
    ReportContent,
    SensorStatistics,
    alert_lines,
    disk_text,
    empty_sensors,
    gap_lines,
    no_samples,
    silent_nodes,
    span_text,
    when,
)
from pigeonpost.core.format import counted, number, with_unit, zone_name
from pigeonpost.core.html import Html, join_html

if TYPE_CHECKING:
    from pigeonpost.alerts.report import NodeStatistics

MOST_SENSORS = 70  # sensors in the HTML, each 1.2 kB: Gmail cuts off mails after 102 kB

_FRAME = Html(
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark"><meta name="supported-color-schemes" content="light dark">\n'
    '</head><body style="margin:0;padding:12px">\n'
    '<div style="max-width:640px;margin:0 auto;font-family:-apple-system,Segoe UI,Roboto,Helvetica,Arial,sans-serif;'
    'font-size:15px;line-height:1.4">\n{body}</div></body></html>\n'
)
_LINE = "border-bottom:1px solid #88888866"
_CELL = f"padding:5px 6px;vertical-align:top;{_LINE}"
_HEAD = f"padding:4px 6px;text-align:left;font-size:12px;font-weight:600;color:#808080;{_LINE}"
_SMALL = "font-size:12px;color:#808080"
_LOW, _HIGH = "#5b9bd5", "#2f75b5"  # colours of a bar: lowest value to mean, mean to highest value


def report_html(content: ReportContent) -> str:
    """Return the report with `content` as a complete HTML document."""
    ranges = _ranges(content.nodes)
    parts: list[Html] = [
        Html('<h1 style="font-size:20px;margin:0 0 2px">Report of {}</h1>\n<p style="margin:0 0 14px;{}">{}, {}<br>'
             "Time zone: {}</p>\n").format(content.server, _SMALL, span_text(content.from_ms, content.to_ms),
                                           content.schedule, zone_name(content.to_ms))
    ]  # fmt: skip
    left = MOST_SENSORS
    for node in content.nodes:
        if node.sensors and left > 0:
            parts.append(_node(node, node.sensors[:left], ranges))
            left -= len(node.sensors)
    shown = sum(len(node.sensors) for node in content.nodes)
    more = content.more + max(0, shown - MOST_SENSORS)
    if shown:
        parts.append(_paragraph(_LEGEND))
    if more:
        parts.append(_paragraph(f"{counted(more, 'more sensor')} not listed here; see the page."))
    if not content.nodes:
        parts.append(_paragraph(no_samples(content)))
    if silent := silent_nodes(content):
        parts.append(_section("Nodes without values", _list(silent)))
    if empty := empty_sensors(content):
        parts.append(_section("Sensors without values", _list(empty)))
    if gaps := gap_lines(content):
        note = f"The latest {MOST_LINES} of {len(content.gaps):,} gaps." if len(content.gaps) > MOST_LINES else ""
        parts.append(_section("Lost samples", _table(("recorded", "node", "samples", "reason"), gaps), note))
    alerts = alert_lines(content)
    table = _table(("time", "severity", "alert"), alerts) if alerts else _paragraph("None.")
    parts.append(_section("Alerts", table))
    if content.faults:
        parts.append(_section("Faults of the server now", _list(content.faults)))
    if content.disk is not None:
        parts.append(_section("Disk", _paragraph(disk_text(content.disk))))
    return _FRAME.format(title=f"Report of {content.server}", body=join_html(parts))


_LEGEND = (
    "Each bar shows the range from the lowest to the highest value, on one scale for all sensors with the same unit."
    " The mean is where its colour changes."
)


def _ranges(nodes: Sequence[NodeStatistics]) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest value of all sensors with the same unit, by unit."""
    found: dict[str, tuple[float, float]] = {}
    for node in nodes:
        for one in node.sensors:
            low, high = found.get(one.unit, (one.low, one.high))
            found[one.unit] = min(low, one.low), max(high, one.high)
    return found


def _node(node: NodeStatistics, sensors: Sequence[SensorStatistics], ranges: dict[str, tuple[float, float]]) -> Html:
    lost = Html(' <span style="{};font-weight:400">{} lost</span>').format(_SMALL, counted(node.lost, "sample"))
    rows = join_html(
        Html(
            '<tr><th scope="row" style="padding:6px 6px 2px;text-align:left;vertical-align:top;font-weight:400">{name}'
            '<br><span style="{small}">{values}</span></th>{low}{mean}{high}</tr>\n'
            '<tr><td colspan="4" style="padding:0 6px 7px;{line}">{bar}</td></tr>\n'
        ).format(
            name=one.title, small=_SMALL, values=counted(one.values, "value"), line=_LINE,
            mean=_value(one.mean, one.unit, ""), low=_value(one.low, one.unit, when(one.low_ms)),
            high=_value(one.high, one.unit, when(one.high_ms)), bar=_bar(one, *ranges[one.unit]),
        )
        for one in sensors
    )  # fmt: skip
    heads = join_html(
        Html('<th scope="col" width="{}%" style="{}">{}</th>').format(
            22 if k else 34, _HEAD + (";text-align:right" if k else ""), words
        )
        for k, words in enumerate(("sensor", "lowest", "mean", "highest"))
    )
    return Html(
        '<h2 style="font-size:16px;margin:16px 0 4px">{}{}</h2>\n<table width="100%" cellpadding="0" cellspacing="0"'
        ' style="border-collapse:collapse;font-size:14px"><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>\n'
    ).format(node.name, lost if node.lost else "", heads, rows)


def _value(value: float, unit: str, at: str) -> Html:
    time = Html('<br><span style="{}">{}</span>').format(_SMALL, at) if at else ""
    return Html(
        '<td style="padding:6px 6px 2px;text-align:right;vertical-align:top;word-break:break-word">{}{}</td>'
    ).format(with_unit(number(value), unit).replace(" ", "\u00a0", 1), time)


def _bar(one: SensorStatistics, low: float, high: float) -> Html:
    """Return a bar from the lowest value to the highest one, on the scale from `low` to `high`."""
    width = high - low
    if not 0 < width < float("inf"):  # all values are the same, or they exceed the range of floats
        shares: list[float] = [0, 50, 50, 0]
    else:
        edges = [low, one.low, one.mean, one.high, high]
        shares = [100 * (end - start) / width for start, end in pairwise(edges)]
        added = max(0.0, 0.5 - shares[1])  # a constant value is visible, too
        shares[1] += added
        shares[0 if shares[0] > shares[3] else 3] -= added
    cells = join_html(
        Html('<td width="{}%"{} style="height:6px;font-size:0;line-height:6px">&nbsp;</td>').format(
            f"{share:.1f}", Html(' bgcolor="{}"').format(colour) if colour else ""
        )
        for share, colour in zip(shares, ("", _LOW, _HIGH, ""))
        if share >= 0.05
    )
    return Html(
        '<table role="presentation" width="100%" cellpadding="0" cellspacing="0" style="border-collapse:collapse">'
        "<tr>{}</tr></table>"
    ).format(cells)


def _section(title: str, content: Html, note: str = "") -> Html:
    heading = Html('<h2 style="font-size:16px;margin:18px 0 4px">{}</h2>\n').format(title)
    return join_html([heading, content, _paragraph(note) if note else Html("")])


def _paragraph(text: str) -> Html:
    return Html('<p style="margin:6px 0;{}">{}</p>\n').format(_SMALL, text)


def _list(lines: Iterable[str]) -> Html:
    return Html('<ul style="margin:4px 0;padding-left:20px;font-size:14px">{}</ul>\n').format(
        join_html(Html("<li>{}</li>").format(line) for line in lines)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    heads = join_html(Html('<th scope="col" style="{}">{}</th>').format(_HEAD, words) for words in head)
    body = join_html(
        Html("<tr>{}</tr>\n").format(join_html(Html('<td style="{}">{}</td>').format(_CELL, cell) for cell in row))
        for row in rows
    )
    return Html(
        '<table width="100%" cellpadding="0" cellspacing="0" style="border-collapse:collapse;font-size:14px">'
        "<thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>\n"
    ).format(heads, body)
