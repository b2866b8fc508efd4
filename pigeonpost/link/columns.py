"""Samples as one JSON object with a list for each of their parts: what the link and the pushes carry in bulk.

    {"seq": 151, "time": [1763652970123, 10000, ...], "up": [48211903, 10000, ...],
     "values": {"temperature": [23.4, null, ...], "light": [512, ...]},
     "errors": {"temperature": {"1": "no response"}}, "clock": "unset"}

All samples of an object have the same sensors and the same clock state. `time` and `up` are milliseconds, the first
absolute and then differences; `up` is one number where its differences are those of `time`. The same samples are
accepted as one by one (sample_json). Whole columns are checked by functions in C, and one value after another only
where they have found that something is wrong.
Errors: BadArgument, which names the sample and the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate

from pigeonpost.core.clock import FIRST_MS, LAST_MS
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.strict_json import finite, no_key_twice, read_json_with
from pigeonpost.link.checks import (
    COLUMN_SAMPLES,
    INT,
    LARGEST_INTEGER,
    are_ups,
    are_values,
    check_clock,
    check_names,
    check_seq,
    check_up,
    check_value,
    preview,
)
from pigeonpost.link.samples import NO_ERRORS, Errors, SampleBatch

if TYPE_CHECKING:
    from typing import Any

# Objects are few here, so that a key that stands twice is looked for in each. Floats are many: those too large become
# infinities in C, and are found by the checks.
_DECODER = json.JSONDecoder(object_pairs_hook=no_key_twice, parse_constant=finite)


def decode_columns(text: str) -> Any:
    """Decode a JSON value that has columns in it, strictly but for numbers too large for a float: they become
    infinities, which `read_columns` refuses. Raises BadArgument."""
    return read_json_with(text, _DECODER)


def read_columns(value: Any) -> SampleBatch:
    """Return the samples in a decoded JSON object as described above; its lists are used, not copied.

    Raises BadArgument.
    """
    try:
        seq, time, up, values = value["seq"], value["time"], value["up"], value["values"]
    except (KeyError, TypeError):
        raise BadArgument("columns are an object with seq, time, up and values") from None
    check_seq(seq)
    if type(time) is not list or not 0 < len(time) <= COLUMN_SAMPLES:
        raise BadArgument(f"samples from {seq}: time is a list of 1 to {COLUMN_SAMPLES} numbers")
    count = len(time)
    check_seq(seq + count - 1)
    times = _times(seq, time)
    ups = _ups(seq, time, up)
    if type(values) is not dict or not values:
        raise BadArgument(f"samples from {seq}: values is an object of sensor names and lists of numbers")
    check_names(seq, tuple(values))
    for name, column in values.items():
        check_column(seq, name, column, count)
    if len(value) == 4:
        return SampleBatch(seq, times, ups, values)
    clock = value.get("clock", "")
    check_clock(seq, clock)
    return SampleBatch(seq, times, ups, values, _errors(seq, value.get("errors"), values, count), clock)


def _times(seq: int, time: list[Any]) -> list[int]:
    if set(map(type, time)) == INT:
        times = list(accumulate(time))
        if min(times) >= FIRST_MS and max(times) <= LAST_MS:
            return times
    at = 0
    for place, step in enumerate(time):
        if type(step) is int:
            at += step
        if type(step) is not int or not FIRST_MS <= at <= LAST_MS:
            raise BadArgument(
                f"sample {seq + place}: time is milliseconds since 1970 within the years 1 to 9999, whole numbers,"
                f" the first absolute and then differences, not {preview(step)}"
            )
    raise AssertionError("one of the times is wrong")


def _ups(seq: int, time: list[int], up: Any) -> list[int]:
    if type(up) is int:
        steps = time.copy()
        steps[0] = up
    elif type(up) is list and len(up) == len(time):
        steps = up
    else:
        raise BadArgument(f"samples from {seq}: up is a whole number, or a list of as many as time has, {len(time)}")
    if set(map(type, steps)) == INT:
        ups = list(accumulate(steps))
        if are_ups(ups):
            return ups
    at = 0
    for place, step in enumerate(steps):
        if type(step) is not int or abs(step) > LARGEST_INTEGER:  # it fits no sum, which might be too long to show
            check_up(seq + place, step)
        at += step
        check_up(seq + place, at)
    raise AssertionError("one of the times since boot is wrong")


def check_column(seq: int, name: str, column: Any, count: int) -> None:
    if type(column) is not list or len(column) != count:
        raise BadArgument(f"samples from {seq}: {name} is a list of as many numbers as time has, {count}")
    if are_values(column):
        return
    for place, value in enumerate(column):
        check_value(seq + place, name, value)


def _errors(seq: int, errors: Any, values: Mapping[str, list[Any]], count: int) -> Errors:
    if errors is None:
        return NO_ERRORS
    if type(errors) is not dict or not all(
        name in values and type(texts) is dict and set(map(type, texts.values())) <= {str}
        for name, texts in errors.items()
    ):
        raise BadArgument(f"samples from {seq}: errors is an object of names of these sensors; each has texts by place")
    return {name: {_place(seq, name, key, count): text for key, text in texts.items()}
            for name, texts in errors.items() if texts}  # fmt: skip


def _place(seq: int, name: str, key: str, count: int) -> int:
    place = int(key) if key.isascii() and key.isdigit() and len(key) < 5 else count
    if place >= count or str(place) != key:
        raise BadArgument(
            f"samples from {seq}: an error of {name} is at a place from 0 to {count - 1}, not {preview(key)}"
        )
    return place
