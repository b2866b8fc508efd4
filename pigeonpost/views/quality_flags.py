"""Limits and quality flags of sensors on the pages of nodes and sensors."""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.core.format import age, counted, number, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.views.models import SensorView


def flags_table(sensors: Sequence[SensorView]) -> Html:
    """Return a table of the limits of `sensors`, their current flags, and the number of values with each flag."""
    rows = join_html(
        Html('<tr><th>{}</th><td data-label="limits">{}</td><td data-label="now">{}</td><td data-label="in this run">{}'
             "</td></tr>").format(
            sensor.title, limits_of(sensor), flags_of(sensor) or "OK",
            flag_counts(sensor))
        for sensor in sensors if sensor.limits
    )  # fmt: skip
    if not rows:
        return Html("")
    return Html(
        '<section data-piece="verdicts"><h2>Limits and quality flags</h2><table class="judged"><thead><tr>'
        "<th>sensor</th><th>limits</th><th>now</th><th>in this run</th></tr></thead><tbody>{}</tbody></table></section>"
    ).format(rows)


def limits_of(sensor: SensorView) -> str:
    """Return the limits of `sensor` as text."""
    limits, unit = sensor.limits, sensor.unit
    low, high, rail = limits.get("low"), limits.get("high"), limits.get("rail")
    parts = []
    if low is not None and high is not None:
        parts.append(f"{number(low)} to {with_unit(number(high), unit)}")
    elif low is not None or high is not None:
        parts.append(f"{'at least' if high is None else 'at most'} {with_unit(number(low or high or 0), unit)}")
    parts += [f"change of at most {with_unit(number(limits['jump']), unit)} per second"] if "jump" in limits else []
    parts += [f"must change within {age(limits['stuck'])}"] if "stuck" in limits else []
    parts += [f"saturated at {number(rail[0])} and {with_unit(number(rail[1]), unit)}"] if rail else []
    parts += [f"a value every {age(limits['every'])}"] if "every" in limits else []
    return "; ".join(parts)


def flags_text(sensor: SensorView) -> list[str]:
    """Return the limits and the counts of flags of `sensor` as lines for a terminal; an empty list without limits."""
    if not sensor.limits:
        return []
    return [f"limits: {limits_of(sensor)}", f"flags in this run: {flag_counts(sensor)}"]


def flag_counts(sensor: SensorView) -> str:
    """Return the number of values of `sensor` with each flag in this run, as text."""
    texts = [f"{_KINDS[kind]} {counted(count, 'time')}"
            for kind, count in sensor.counts.items() if count]  # fmt: skip
    return ", ".join(texts) or "none"


_KINDS = {
    "range": "out of range", "jump": "jumped", "stuck": "stuck", "rail": "saturated", "stale": "without a value",
}  # fmt: skip


def flags_of(sensor: SensorView) -> Html:
    """Return the flags of the current value of `sensor` in a few words each; empty if there are none."""
    if not sensor.flag_texts:
        return Html("")
    words = join_html((Html('<span class="odd">{}</span>').format(text) for text in sensor.flag_texts.values()), " ")
    return Html('<span class="odds">{}</span>').format(words)
