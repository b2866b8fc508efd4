"""Limits and checks of samples, whichever form they are carried in.

Errors: BadArgument, which names the sample and the key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pigeonpost.core.errors import BadArgument
from pigeonpost.core.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

BATCH_SAMPLES = 500  # in one array of samples at most
COLUMN_SAMPLES = 4_096  # in one object of columns at most
LARGEST_INTEGER = 2**63 - 1  # of a value, either sign
LARGEST_SEQ = 10**18 - 1  # what an ACK can say; also of every other count, so that the sum of two fits 64 bits

SENSOR_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}").fullmatch
SENSOR_NAME_TAKES = "a small letter, then up to 31 small letters, digits and _"
CLOCKS = ("", "unset", "server")

INT = {int}
_NUMBERS = {int, float}
_NONE = type(None)
_good_names: set[tuple[str, ...]] = set()  # the names of a sample's values, found right before
_MOST_REMEMBERED = 256  # of them, and of names in each: a peer may make them up


def check_seq(seq: Any) -> None:
    """Raise BadArgument unless `seq` is a sequence number."""
    if type(seq) is not int or not 0 < seq <= LARGEST_SEQ:
        raise BadArgument(f"seq is a whole number from 1, not {preview(seq)}")


def check_up(seq: int, up_ms: Any) -> None:
    """Raise BadArgument unless `up_ms` is a time since boot that can be stored."""
    if type(up_ms) is not int or not 0 <= up_ms <= LARGEST_INTEGER:
        raise BadArgument(f"sample {seq}: up is milliseconds since boot, a whole number from 0, not {preview(up_ms)}")


def check_names(seq: int, names: tuple[str, ...]) -> None:
    """Raise BadArgument unless all `names` can be names of sensors."""
    if not are_names(names):
        wrong = next(name for name in names if not SENSOR_NAME(name))
        raise BadArgument(f"sample {seq}: {preview(wrong)} is no sensor name ({SENSOR_NAME_TAKES})")


def check_value(seq: int, name: str, value: Any) -> None:
    """Raise BadArgument unless `value` is None, a finite float, or an integer of 64 bits; bool is none of them."""
    kind = type(value)
    if (kind is float and value - value == 0) or (kind is int and -LARGEST_INTEGER <= value <= LARGEST_INTEGER):
        return
    if value is not None:
        raise BadArgument(f"sample {seq}: {name} is a finite number or null, not {preview(value)}")


def check_clock(seq: int, clock: Any) -> None:
    """Raise BadArgument unless `clock` is one of the states of a node's clock."""
    if clock not in CLOCKS:
        raise BadArgument(f'sample {seq}: clock is "unset" or "server" or absent, not {preview(clock)}')


def are_names(names: tuple[str, ...]) -> bool:
    """Return True if all `names` can be names of sensors."""
    if names in _good_names:
        return True
    if not all(map(SENSOR_NAME, names)):
        return False
    if len(_good_names) >= _MOST_REMEMBERED:
        _good_names.clear()
    if len(names) <= _MOST_REMEMBERED:
        _good_names.add(names)
    return True


def are_ups(ups: Sequence[Any]) -> bool:
    """Return True if `check_up` accepts each of `ups`."""
    return set(map(type, ups)) == INT and min(ups) >= 0 and max(ups) <= LARGEST_INTEGER


def are_values(column: Sequence[Any]) -> bool:
    """Return True if `check_value` accepts each value of `column`; it is False for some that are right, too: then only
    one after another tells. All in C."""
    kinds = set(map(type, column))
    if _NONE in kinds:
        kinds.discard(_NONE)
        column = [value for value in column if value is not None]
    if not kinds <= _NUMBERS:
        return False
    if int in kinds and not (min(column) >= -LARGEST_INTEGER and max(column) <= LARGEST_INTEGER):
        return False
    total = sum(column) if float in kinds else 0  # of finite numbers only it is finite, unless it is too large
    return total - total == 0


def preview(value: Any) -> str:
    """Return an untrusted value for an error text: short, and in one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
