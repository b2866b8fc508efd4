"""Cards of sensors, and the table of sensors for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pigeonpost.charts.sparkline import sparkline
from pigeonpost.core.format import age, aligned, clock, number, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.views.html import sensor_path
from pigeonpost.views.models import SensorView
from pigeonpost.views.quality_flags import flags_of

_TRENDS = {1: "↗", 0: "→", -1: "↘", None: ""}
_TREND_WORDS = {1: "rising", 0: "steady", -1: "falling", None: ""}


def sensor_card(sensor: SensorView, names_node: bool) -> Html:
    """Return the card of `sensor`: value, trend, extremes of the day and age, or the fault and its start.

    If `names_node` is True, the card contains the name of the node.
    """
    fails = sensor.value is None
    return Html(
        '<a class="card{kind}" href="{path}"><span class="name"{title}>{name}{of}</span>'
        '<span class="value"><b data-live="{key}">{value}</b> <span class="unit">{unit}</span>{trend}</span>'
        "{spark}{day}{odd}{foot}</a>\n"
    ).format(
        kind=_kind(sensor),
        path=sensor_path(sensor.node, sensor.name), name=sensor.title,
        title=Html(' title="{}"').format(sensor.name) if sensor.label else "",
        of=Html(' <span class="of">{}</span>').format(sensor.node) if names_node else "",
        key=f"{sensor.node}/{sensor.name}", value=number(sensor.value), unit=sensor.unit if not fails else "",
        trend=_trend(sensor) if not fails else "",
        spark=sparkline(sensor.columns, sensor.span_ms // sensor.width_ms, sensor.number % 4),
        day=_fault(sensor) if fails else _today(sensor), odd=flags_of(sensor) if not fails else "",
        foot=_foot(sensor),
    )  # fmt: skip


def _kind(sensor: SensorView) -> str:
    """Return the CSS class of a card. It shows no fault if the node is switched off or has not sent anything yet."""
    if sensor.resting or sensor.time_ms is None:
        return " resting"
    if sensor.value is None:
        return " failing"
    return " stale" if sensor.is_stale else " odd-one" if sensor.flag_texts else ""


def _trend(sensor: SensorView) -> Html:
    if sensor.trend is None:
        return Html("")
    return Html(' <span class="trend" title="{0}" role="img" aria-label="{0}">{1}</span>').format(
        _TREND_WORDS[sensor.trend], _TRENDS[sensor.trend]
    )


def _fault(sensor: SensorView) -> Html:
    return Html('<span class="fault">{}</span>').format(sensor.fault)


def _foot(sensor: SensorView) -> Html:
    """Return the last line of a card: the age of the value or the start of the fault, and a remark."""
    is_stale = sensor.is_stale and sensor.value is not None
    word = sensor.resting or ("stale" if is_stale else "simulated" if sensor.simulated else "")
    mark = Html('<span class="tag">{}</span>').format(word) if word else ""
    return Html('<span class="foot">{}{}</span>').format(_since(sensor) if sensor.value is None else _age(sensor), mark)


def _since(sensor: SensorView) -> Html:
    if sensor.since_ms is None:
        return Html("")
    return Html('<span class="since">since {}</span>').format(clock(sensor.since_ms, sensor.now_ms))


def _today(sensor: SensorView) -> Html:
    if sensor.low is None or sensor.high is None or sensor.low_ms is None or sensor.high_ms is None:
        return Html('<span class="day">no values today</span>')
    low, high = clock(sensor.low_ms, sensor.low_ms), clock(sensor.high_ms, sensor.high_ms)
    return Html('<span class="day" data-low="{}" data-high="{}">low {} at {}<br>high {} at {}</span>').format(
        sensor.low, sensor.high, number(sensor.low), low, number(sensor.high), high
    )


def _age(sensor: SensorView) -> Html:
    if sensor.time_ms is None or sensor.taken_ms is None:
        return Html("")
    shift_ms = sensor.time_ms - sensor.taken_ms  # the script needs it too
    return Html('<span class="age" data-time="{}"{}>{} ago</span>').format(
        sensor.taken_ms, Html(' data-shift="{}"').format(shift_ms) if abs(shift_ms) >= 1000 else "",
        age((sensor.now_ms - sensor.taken_ms) / 1000),
    )  # fmt: skip


def sensor_lines(sensors: Iterable[SensorView]) -> list[str]:
    """Return a table of `sensors` for a terminal."""
    rows = [
        (
            sensor.node,
            sensor.title,
            sensor.fault or with_unit(number(sensor.value), sensor.unit),
            _TREND_WORDS[sensor.trend],
            f"{number(sensor.low)} to {number(sensor.high)}" if sensor.low is not None else "–",
            _remarks(sensor),
        )
        for sensor in sensors
    ]
    return aligned(("NODE", "SENSOR", "NOW", "", "TODAY", ""), rows, "<<><<<") if rows else ["No sensor is known yet."]


def _remarks(sensor: SensorView) -> str:
    plain = sensor.resting or (
        "simulated" if sensor.simulated else "stale" if sensor.is_stale and sensor.value is not None else ""
    )
    return ", ".join([*([plain] if plain else []), *sensor.flag_texts.values()])


def cards_section(cards: Sequence[Html], zone_minutes: int, nodes: Iterable[str] = ()) -> Html:
    """Return the section of the cards.

    Args:
        cards: The cards.
        zone_minutes: Local time minus UTC in minutes, for the times of new extremes, which the script writes.
        nodes: Nodes whose new values the script requests; empty for all.
    """
    only = Html(' data-nodes="{}"').format(",".join(nodes)) if nodes else ""
    return Html(
        '<section class="cards" aria-label="Sensors" data-piece="cards" data-zone="{}"{}>{}</section>'
    ).format(zone_minutes, only, join_html(cards))  # fmt: skip
