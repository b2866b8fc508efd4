"""Samples as one JSON object of columns, with a list for each of their parts: the form of bulk transfers and pushes.

    {"seq": 151, "time": [1763652970123, 10000, ...], "up": [48211903, 10000, ...],
     "values": {"temperature": [23.4, null, ...], "light": [512, ...]},
     "errors": {"temperature": {"1": "no response"}}, "clock": "unset"}

All samples of an object have the same sensors and the same clock state. `time` and `up` are in milliseconds: the first
number is absolute, and each later one is the difference from its predecessor. `up` is a single number if its
differences equal those of `time`. The checks accept the same samples as those of sample_json. Functions in C check
complete columns; single values are checked only to name the invalid one.
Errors: BadArgument, whose text names the sample and the key.
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

# Objects are few, so a Python function checks each for duplicate keys. Floats are many, so they are decoded in C, where
# those that are too large become infinities; `are_values` rejects them.
_DECODER = json.JSONDecoder(object_pairs_hook=no_key_twice, parse_constant=finite)


def decode_columns(text: str) -> Any:
    """Return the JSON value in `text`, which contains columns; numbers too large for a float become infinities.

    `read_columns` rejects the infinities. Everything else is checked strictly.

    Raises:
        BadArgument: The text is not valid JSON.
    """
    return read_json_with(text, _DECODER)


def read_columns(value: Any) -> SampleBatch:
    """Return the samples in `value`, a decoded JSON object of columns; the batch uses its lists without a copy.

    Raises:
        BadArgument: A part is missing or invalid.
    """
    try:
        seq, time, up, values = value["seq"], value["time"], value["up"], value["values"]
    except (KeyError, TypeError):
        raise BadArgument("columns must be an object with seq, time, up and values") from None
    check_seq(seq)
    if type(time) is not list or not 0 < len(time) <= COLUMN_SAMPLES:
        raise BadArgument(f"samples from {seq}: time must be a list of 1 to {COLUMN_SAMPLES} numbers")
    count = len(time)
    check_seq(seq + count - 1)
    times = _times(seq, time)
    ups = _ups(seq, time, up)
    if type(values) is not dict or not values:
        raise BadArgument(f"samples from {seq}: values must be an object of sensor names and lists of numbers")
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
    time_ms = 0
    for index, step in enumerate(time):
        if type(step) is int:
            time_ms += step
        if type(step) is not int or not FIRST_MS <= time_ms <= LAST_MS:
            raise BadArgument(
                f"sample {seq + index}: time must be whole milliseconds since 1970, within the years 1 to 9999:"
                f" the first absolute and then differences, not {preview(step)}"
            )
    raise AssertionError("at least one time is invalid")


def _ups(seq: int, time: list[int], up: Any) -> list[int]:
    if type(up) is int:
        steps = time.copy()
        steps[0] = up
    elif type(up) is list and len(up) == len(time):
        steps = up
    else:
        raise BadArgument(
            f"samples from {seq}: up must be a whole number, or a list as long as time, which has {len(time)}"
        )
    if set(map(type, steps)) == INT:
        ups = list(accumulate(steps))
        if are_ups(ups):
            return ups
    up_ms = 0
    for index, step in enumerate(steps):
        # Check each step before it is added: the sum might be too long to print.
        if type(step) is not int or abs(step) > LARGEST_INTEGER:
            check_up(seq + index, step)
        up_ms += step
        check_up(seq + index, up_ms)
    raise AssertionError("at least one time since boot is invalid")


def check_column(seq: int, name: str, column: Any, count: int) -> None:
    """Raise BadArgument unless `column`, of sensor `name` in samples from `seq`, is a list of `count` valid values."""
    if type(column) is not list or len(column) != count:
        raise BadArgument(f"samples from {seq}: {name} must be a list as long as time, which has {count}")
    if are_values(column):
        return
    for index, value in enumerate(column):
        check_value(seq + index, name, value)


def _errors(seq: int, errors: Any, values: Mapping[str, list[Any]], count: int) -> Errors:
    if errors is None:
        return NO_ERRORS
    if type(errors) is not dict or not all(
        name in values and type(texts) is dict and set(map(type, texts.values())) <= {str}
        for name, texts in errors.items()
    ):
        raise BadArgument(
            f"samples from {seq}: errors must map names of these sensors to objects that map indices to texts"
        )
    return {name: {_error_index(seq, name, key, count): text for key, text in texts.items()}
            for name, texts in errors.items() if texts}  # fmt: skip


def _error_index(seq: int, name: str, key: str, count: int) -> int:
    index = int(key) if key.isascii() and key.isdigit() and len(key) < 5 else count
    if index >= count or str(index) != key:
        raise BadArgument(
            f"samples from {seq}: the index of an error of {name} must be 0 to {count - 1}, not {preview(key)}"
        )
    return index
