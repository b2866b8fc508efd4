"""Creation of the SensorView of each sensor of a node: value or fault, and the last day.

Reports of nodes are untrusted input, so the type of their fields is checked or converted.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from operator import attrgetter
from typing import Any

from pigeonpost.server.recent_cache import RecentColumns
from pigeonpost.storage.models import Bucket
from pigeonpost.views.models import NodeNow, SensorView
from pigeonpost.views.node_now import fault_of
from protocol import Number

_LOW, _HIGH = attrgetter("low"), attrgetter("high")
_RESTING = {"off": "switched off", "past": "former", "retired": "retired"}
_STEADY = 0.05  # a smaller share of the day's range is not a trend


def sensor_views(
    now: NodeNow, units: Mapping[str, str], day: RecentColumns, kept: Collection[str], now_ms: int
) -> list[SensorView]:
    """Return the sensors of a node, without quality flags and labels.

    Args:
        now: State of the node.
        units: Units of all sensors that it ever had.
        day: The last day of the node.
        kept: Sensors of the store to return even if the node no longer reports them.
        now_ms: Current time in ms since 1970.
    """
    reported = {sensor["name"]: sensor for sensor in (now.state.sensors if now.state else [])}
    # In the node's own order, then its former sensors.
    names = [*reported, *(name for name in units if name not in reported and (not reported or name in kept))]
    midnight_ms = _midnight_ms(now_ms)
    views = []
    for place, name in enumerate(names):
        columns = day.columns.get(name, [])
        value = now.sample.values.get(name) if now.sample else None
        low, high = _extremes(columns, day, midnight_ms)
        time_ms = now.latest.of(name).sample.time_ms if now.latest else None
        if value is not None and time_ms is not None and time_ms >= midnight_ms:
            low, high = _with_value(low, high, value, time_ms)
        views.append(SensorView(
            node=now.name, name=name, unit=str(reported.get(name, {}).get("unit", units.get(name, ""))), number=place,
            simulated=reported.get(name, {}).get("simulated") is True, value=value, fault=fault_of(name, now),
            time_ms=time_ms, is_stale=now.is_late or name in now.stale,
            low=low[0] if low else None, high=high[0] if high else None,
            trend=_trend(columns, day.span_ms // day.width_ms),
            columns=columns, width_ms=day.width_ms, span_ms=day.span_ms,
            low_ms=low[1] if low else None, high_ms=high[1] if high else None,
            taken_ms=now.taken_ms(name), now_ms=now_ms, resting=_RESTING.get(now.condition, ""),
        ))  # fmt: skip
    return views


_Extreme = tuple[float, int]  # a value and its time


def _extremes(
    columns: Sequence[Bucket], day: RecentColumns, midnight_ms: int
) -> tuple[_Extreme, _Extreme] | tuple[None, None]:
    """Return the lowest and the highest value of today, each with the start of its bucket."""
    first = (midnight_ms - day.from_ms) // day.width_ms
    today = [column for column in columns if column.place >= first]
    if not today:
        return None, None
    lowest, highest = min(today, key=_LOW), max(today, key=_HIGH)
    return (
        (lowest.low, day.from_ms + lowest.place * day.width_ms),
        (highest.high, day.from_ms + highest.place * day.width_ms),
    )


def _with_value(low: _Extreme | None, high: _Extreme | None, value: Number, time_ms: int) -> tuple[_Extreme, _Extreme]:
    """Return the lowest and the highest value of today, including the value shown.

    The buckets end at the current time of this server. The clock of a node may be ahead, so the value may be later.
    """
    this = value, time_ms
    return (low if low and low[0] <= value else this), (high if high and high[0] >= value else this)


def _trend(columns: Sequence[Any], count: int) -> int | None:
    """Return the trend, as in SensorView: the mean of the last twelfth of the range compared with the one before."""
    step = max(1, count // 12)
    latest = list(takewhile(lambda column: column.place >= count - 2 * step, reversed(columns)))
    recent = [column.mean for column in latest if column.place >= count - step]
    before = [column.mean for column in latest if column.place < count - step]
    if not recent or not before:
        return None
    change = sum(recent) / len(recent) - sum(before) / len(before)
    scale = max(map(_HIGH, columns)) - min(map(_LOW, columns))
    if change - change != 0 or scale - scale != 0:  # overflow of huge values
        return None
    return 0 if abs(change) <= _STEADY * scale else 1 if change > 0 else -1


def _midnight_ms(now_ms: int) -> int:
    """Return the start of today in ms since 1970, by this machine's clock and zone."""
    t = time.localtime(now_ms // 1000)
    return int(time.mktime((t.tm_year, t.tm_mon, t.tm_mday, 0, 0, 0, 0, 0, -1))) * 1000
