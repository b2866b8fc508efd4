"""Conversion of sensors, buckets and statistics to the units that a user has chosen.

Stored and exported values stay as measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pigeonpost.core.units import Conversion, conversion
from pigeonpost.server.flag_words import flag_words
from pigeonpost.views.models import SensorView

if TYPE_CHECKING:
    from pigeonpost.server.quality import QualityFlag
    from pigeonpost.storage.models import Bucket
    from pigeonpost.views.statistics import Statistics


def in_units(sensor: SensorView, units: Mapping[str, str]) -> SensorView:
    """Return `sensor` with its values, limits and flags converted to the chosen `units` (Preferences.units)."""
    to = conversion(sensor.unit, units)
    if not to.changes:
        return sensor
    return sensor._replace(
        unit=to.unit,
        value=to.value(sensor.value) if sensor.value is not None else None,
        low=to.value(sensor.low) if sensor.low is not None else None,
        high=to.value(sensor.high) if sensor.high is not None else None,
        columns=[bucket_in(column, to) for column in sensor.columns],
        limits=_limits_in(sensor.limits, to),
        flag_texts={
            **sensor.flag_texts,
            **{flag.kind: flag_words(_flag_in(flag, to), to.unit) for flag in sensor.flags},
        },
    )


def bucket_in(bucket: Bucket, to: Conversion) -> Bucket:
    """Return the `bucket` of a downsampled series with its values converted by `to`."""
    return bucket._replace(low=to.value(bucket.low), high=to.value(bucket.high), mean=to.value(bucket.mean))


def statistics_in(found: Statistics | None, to: Conversion) -> Statistics | None:
    """Return the statistics `found` with values converted by `to`.

    A standard deviation is converted as a difference.
    """
    if found is None or not to.changes:
        return found
    return found._replace(
        mean=to.value(found.mean), low=to.value(found.low), high=to.value(found.high),
        median=to.value(found.median) if found.median is not None else None,
        mode=to.value(found.mode) if found.mode is not None else None,
        deviation=to.difference(found.deviation) if found.deviation is not None else None,
    )  # fmt: skip


def _flag_in(flag: QualityFlag, to: Conversion) -> QualityFlag:
    """Return a flag with converted values. Those of `stuck` and `stale` are seconds."""
    if flag.kind == "jump":
        return flag._replace(limit=to.difference(flag.limit), found=to.difference(flag.found))
    if flag.kind in ("range", "rail"):
        return flag._replace(limit=to.value(flag.limit), found=to.value(flag.found))
    return flag


def _limits_in(limits: Mapping[str, Any], to: Conversion) -> dict[str, Any]:
    """Return converted limits. `jump` is a change per second; `stuck` and `every` are seconds."""
    converted = dict(limits)
    for key in ("low", "high"):
        if converted.get(key) is not None:
            converted[key] = to.value(converted[key])
    if converted.get("jump") is not None:
        converted["jump"] = to.difference(converted["jump"])
    if converted.get("rail"):
        converted["rail"] = [to.value(end) for end in converted["rail"]]
    return converted
