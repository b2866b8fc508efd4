"""Calibrations of one sensor: part of its page as HTML, text and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pigeonpost.core.errors import DiskError, StoreDamaged
from pigeonpost.core.format import clock, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.server.calibrations import as_json
from pigeonpost.storage.calibrated_store import raw_store
from pigeonpost.storage.calibration import BEGINNING_MS

if TYPE_CHECKING:
    from pigeonpost.storage.calibration import Calibration, CalibrationTimeline
    from pigeonpost.views.context import RequestContext
    from pigeonpost.views.models import SensorView
    from protocol import Number

_ABOUT = (
    "Values on the pages, in the JSON API, in exports and in alerts are calibrated. The database and the CSV logs"
    " contain the raw values."
)


def raw_value(context: RequestContext, sensor: SensorView) -> Number | None:
    """Return the raw value of the last sample of a calibrated `sensor`, which its next calibration needs.

    None if there is none. `context` is the request.
    """
    if sensor.name not in context.app.timelines(sensor.node) or sensor.time_ms is None:
        return None
    try:
        points = raw_store(context.app.store).points(sensor.node, sensor.time_ms, sensor.time_ms + 1, -1)
    except (StoreDamaged, DiskError):  # the page shows this fault
        return None
    values = [point.values[sensor.name] for point in points if point.values.get(sensor.name) is not None]
    return values[-1] if values else None


def calibration_table(timeline: CalibrationTimeline | None, raw: Number | None, now_ms: int) -> Html:
    """Return a table of the calibrations of a sensor, the latest first; empty if there are none.

    Args:
        timeline: The calibrations of the sensor, or None.
        raw: Raw value of the last sample, or None.
        now_ms: Current time in ms since 1970 (UTC).
    """
    if timeline is None:
        return Html("")
    present = timeline.at(now_ms)
    rows = join_html(
        Html('<tr><th>{}</th><td data-label="raw = true">{}</td><td data-label="entered">{}</td>'
             '<td data-label="note">{}</td></tr>').format(
            f"{_validity(one, now_ms)}{' (valid now)' if one is present else ''}", _points(one),
            clock(one.entered_ms, now_ms), one.note or "–")
        for one in reversed(timeline.calibrations)
    )  # fmt: skip
    return Html(
        '<section data-piece="calibration"><h2>Calibration</h2><table class="judged"><thead><tr><th>valid</th>'
        "<th>raw = true</th><th>entered</th><th>note</th></tr></thead><tbody>{}</tbody></table><p>{}{}</p></section>"
    ).format(rows, f"Raw value of the last sample: {raw!r}. " if raw is not None else "", _ABOUT)


def calibration_lines(timeline: CalibrationTimeline | None, raw: Number | None, now_ms: int) -> Iterator[str]:
    """Yield the calibrations of a sensor as lines for a terminal, the latest first.

    Args:
        timeline: The calibrations of the sensor, or None.
        raw: Raw value of the last sample, or None.
        now_ms: Current time in ms since 1970 (UTC).
    """
    if timeline is None:
        return
    yield ""
    for one in reversed(timeline.calibrations):
        note = f" ({one.note})" if one.note else ""
        yield f"calibration {_validity(one, now_ms)}: {_points(one)}{note}"
    if raw is not None:
        yield f"raw value of the last sample: {raw!r}"


def calibrations_json(timeline: CalibrationTimeline | None) -> list[dict[str, Any]]:
    """Return the calibrations of a sensor as JSON objects, the earliest first. `timeline` is None if it has none."""
    return list(map(as_json, timeline.calibrations)) if timeline is not None else []


def _validity(one: Calibration, now_ms: int) -> str:
    return "from the beginning" if one.from_ms == BEGINNING_MS else f"from {clock(one.from_ms, now_ms)}"


def _points(one: Calibration) -> str:
    points = [f"{raw:.15g} = {with_unit(f'{true:.15g}', one.unit)}" for raw, true in one.points]
    return ", ".join(points).replace("-", "−")
