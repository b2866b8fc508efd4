"""Limits and checks of samples, in any encoding.

Errors: BadArgument, whose text names the sample and the key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pigeonpost.core.errors import BadArgument
from pigeonpost.core.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

BATCH_SAMPLES = 500  # maximum number of samples in one array
COLUMN_SAMPLES = 4_096  # maximum number of samples in one object of columns
LARGEST_INTEGER = 2**63 - 1  # largest absolute value of an integer reading
LARGEST_SEQ = 10**18 - 1  # largest sequence number and largest count: has 18 digits, and the sum of two fits in 64 bits

SENSOR_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}").fullmatch
SENSOR_NAME_TAKES = "a lower-case letter, then up to 31 lower-case letters, digits and _"
CLOCKS = ("", "unset", "server")

INT = {int}
_NUMBERS = {int, float}
_NONE = type(None)
_good_names: set[tuple[str, ...]] = set()  # cache of valid name tuples; a node sends the same names in every sample
_MOST_REMEMBERED = 256  # limit of tuples, and of names in a tuple: an untrusted peer could keep sending new names


def check_seq(seq: Any) -> None:
    """Raise BadArgument unless `seq` is a sequence number, 1 to LARGEST_SEQ."""
    if type(seq) is not int or not 0 < seq <= LARGEST_SEQ:
        raise BadArgument(f"seq must be a whole number of at least 1, not {preview(seq)}")


def check_up(seq: int, up_ms: Any) -> None:
    """Raise BadArgument unless `up_ms`, of sample `seq`, is a storable time since boot in milliseconds."""
    if type(up_ms) is not int or not 0 <= up_ms <= LARGEST_INTEGER:
        raise BadArgument(
            f"sample {seq}: up must be milliseconds since boot, a whole number of at least 0, not {preview(up_ms)}"
        )


def check_names(seq: int, names: tuple[str, ...]) -> None:
    """Raise BadArgument unless all `names` of sample `seq` are valid sensor names."""
    if not are_names(names):
        invalid = next(name for name in names if not SENSOR_NAME(name))
        raise BadArgument(f"sample {seq}: {preview(invalid)} is not a valid sensor name ({SENSOR_NAME_TAKES})")


def check_value(seq: int, name: str, value: Any) -> None:
    """Raise BadArgument unless `value` of sensor `name` in sample `seq` is None, a finite float or a 64-bit integer.

    A bool is rejected, although it is an int in Python.
    """
    kind = type(value)
    if (kind is float and value - value == 0) or (kind is int and -LARGEST_INTEGER <= value <= LARGEST_INTEGER):
        return
    if value is not None:
        raise BadArgument(f"sample {seq}: {name} must be a finite number or null, not {preview(value)}")


def check_clock(seq: int, clock: Any) -> None:
    """Raise BadArgument unless `clock` of sample `seq` is one of the states of a node's clock (CLOCKS)."""
    if clock not in CLOCKS:
        raise BadArgument(f'sample {seq}: clock must be "unset", "server" or absent, not {preview(clock)}')


def are_names(names: tuple[str, ...]) -> bool:
    """Return True if all `names` are valid sensor names."""
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
    """Return True if `check_up` accepts each time in `ups`."""
    return set(map(type, ups)) == INT and min(ups) >= 0 and max(ups) <= LARGEST_INTEGER


def are_values(column: Sequence[Any]) -> bool:
    """Return True if `check_value` accepts each value of `column`; all work is done by functions in C.

    If the sum of valid values overflows, this returns False. So the caller then checks each value separately.
    """
    kinds = set(map(type, column))
    if _NONE in kinds:
        kinds.discard(_NONE)
        column = [value for value in column if value is not None]
    if not kinds <= _NUMBERS:
        return False
    if int in kinds and not (min(column) >= -LARGEST_INTEGER and max(column) <= LARGEST_INTEGER):
        return False
    total = sum(column) if float in kinds else 0  # finite if all numbers are, unless it overflows
    return total - total == 0


def preview(value: Any) -> str:
    """Return an untrusted `value` for an error text, as at most 60 characters in one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
