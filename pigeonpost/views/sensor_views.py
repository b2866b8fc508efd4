"""What a page shows of each sensor of a node: its value, or its fault, and its last day.

What a node reports is untrusted input: numbers are used only where they are numbers.
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
_RESTING = {"off": "switched off", "past": "of the past", "retired": "retired"}
_STEADY = 0.05  # of the day's range: a change below it is no trend


def sensor_views(
    now: NodeNow, units: Mapping[str, str], day: RecentColumns, kept: Collection[str], now_ms: int
) -> list[SensorView]:
    """Return the sensors of a node; without what the quality checks say of them, and without labels.

    units  of all sensors that it ever had
    day    the last day of the node
    kept   sensors that are returned although the node has them no more
    """
    told = {sensor["name"]: sensor for sensor in (now.state.sensors if now.state else [])}
    # In the node's own order; then what it once had.
    names = [*told, *(name for name in units if name not in told and (not told or name in kept))]
    midnight_ms = _midnight_ms(now_ms)
    views = []
    for place, name in enumerate(names):
        columns = day.columns.get(name, [])
        value = now.sample.values.get(name) if now.sample else None
        low, high = _extremes(columns, day, midnight_ms)
        if value is not None and now.sample is not None and now.sample.time_ms >= midnight_ms:
            low, high = _with_value(low, high, value, now.sample.time_ms)
        views.append(SensorView(
            node=now.name, name=name, unit=str(told.get(name, {}).get("unit", units.get(name, ""))), number=place,
            simulated=told.get(name, {}).get("simulated") is True, value=value, fault=fault_of(name, now.sample),
            time_ms=now.sample.time_ms if now.sample else None, is_late=now.is_late,
            low=low[0] if low else None, high=high[0] if high else None,
            trend=_trend(columns, day.span_ms // day.width_ms),
            columns=columns, width_ms=day.width_ms, span_ms=day.span_ms,
            low_ms=low[1] if low else None, high_ms=high[1] if high else None,
            taken_ms=now.last_ms, now_ms=now_ms, resting=_RESTING.get(now.condition, ""),
        ))  # fmt: skip
    return views


_Extreme = tuple[float, int]  # a value, and when that was


def _extremes(
    columns: Sequence[Bucket], day: RecentColumns, midnight_ms: int
) -> tuple[_Extreme, _Extreme] | tuple[None, None]:
    """Return the lowest and the highest value of today, each with the beginning of its bucket."""
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
    """Return lowest and highest with the value that is shown: the buckets end at this server's now, while the clock of
    a node may be ahead."""
    this = value, time_ms
    return (low if low and low[0] <= value else this), (high if high and high[0] >= value else this)


def _trend(columns: Sequence[Any], count: int) -> int | None:
    """Compare the last twelfth of the day with the one before: 1 above, -1 below, 0 about equal, None unknown."""
    step = max(1, count // 12)
    latest = list(takewhile(lambda column: column.place >= count - 2 * step, reversed(columns)))
    recent = [column.mean for column in latest if column.place >= count - step]
    before = [column.mean for column in latest if column.place < count - step]
    if not recent or not before:
        return None
    change = sum(recent) / len(recent) - sum(before) / len(before)
    scale = max(map(_HIGH, columns)) - min(map(_LOW, columns))
    if change - change != 0 or scale - scale != 0:  # sums of huge values
        return None
    return 0 if abs(change) <= _STEADY * scale else 1 if change > 0 else -1


def _midnight_ms(now_ms: int) -> int:
    """Return the time at which today began, by this machine's clock and zone."""
    t = time.localtime(now_ms // 1000)
    return int(time.mktime((t.tm_year, t.tm_mon, t.tm_mday, 0, 0, 0, 0, 0, -1))) * 1000
