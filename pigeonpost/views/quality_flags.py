"""Limits and quality flags of sensors, as the pages of nodes and sensors show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pigeonpost.core.format import age, number, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.views.models import SensorView

if TYPE_CHECKING:
    from pigeonpost.server.quality import QualityFlag


def flags_table(sensors: Sequence[SensorView]) -> Html:
    """Return a table of limits, and of how often each flag was set."""
    rows = join_html(
        Html('<tr><th>{}</th><td data-label="limits">{}</td><td data-label="now">{}</td><td data-label="in this run">{}'
             "</td></tr>").format(
            sensor.title, limits_of(sensor), flags_of(sensor) or "as it should be",
            flag_counts(sensor))
        for sensor in sensors if sensor.limits
    )  # fmt: skip
    if not rows:
        return Html("")
    return Html(
        '<section data-piece="verdicts"><h2>Limits, and what was beyond them</h2><table class="judged"><thead><tr>'
        "<th>sensor</th><th>limits</th><th>now</th><th>in this run</th></tr></thead><tbody>{}</tbody></table></section>"
    ).format(rows)


def limits_of(sensor: SensorView) -> str:
    limits, unit = sensor.limits, sensor.unit
    low, high, rail = limits.get("low"), limits.get("high"), limits.get("rail")
    parts = []
    if low is not None and high is not None:
        parts.append(f"{number(low)} to {with_unit(number(high), unit)}")
    elif low is not None or high is not None:
        parts.append(f"{'at least' if high is None else 'at most'} {with_unit(number(low or high or 0), unit)}")
    parts += [f"{with_unit(number(limits['jump']), unit)} a second"] if "jump" in limits else []
    parts += [f"changes within {age(limits['stuck'])}"] if "stuck" in limits else []
    parts += [f"rail at {number(rail[0])} and {with_unit(number(rail[1]), unit)}"] if rail else []
    parts += [f"a value every {age(limits['every'])}"] if "every" in limits else []
    return "; ".join(parts)


def flags_text(sensor: SensorView) -> list[str]:
    """Return the same for a terminal, of one sensor; nothing where it has no limits."""
    if not sensor.limits:
        return []
    return [f"limits: {limits_of(sensor)}", f"beyond them, in this run: {flag_counts(sensor)}"]


def flag_counts(sensor: SensorView) -> str:
    told = [f"{_KINDS[kind]} {count:,} {'time' if count == 1 else 'times'}"
            for kind, count in sensor.counts.items() if count]  # fmt: skip
    return ", ".join(told) or "nothing"


_KINDS = {
    "range": "out of range", "jump": "jumped", "stuck": "stuck", "rail": "at the rail", "stale": "without a value",
}  # fmt: skip


def flag_words(flag: QualityFlag, unit: str) -> str:
    """Return a flag in a few words, to show beside the value; `unit` is that of the flag's limit and value."""
    if flag.kind == "range":
        return f"{'above' if flag.found > flag.limit else 'below'} {with_unit(number(flag.limit), unit)}"
    if flag.kind == "jump":
        return f"jumped by {with_unit(number(flag.found), unit)}"
    if flag.kind == "rail":
        return "at the rail"
    return f"{'stuck' if flag.kind == 'stuck' else 'no value'} for {age(flag.found)}"


def flags_of(sensor: SensorView) -> Html:
    """Return the flags of the value, a word or two each."""
    if not sensor.odd:
        return Html("")
    words = join_html((Html('<span class="odd">{}</span>').format(text) for text in sensor.odd.values()), " ")
    return Html('<span class="odds">{}</span>').format(words)
