"""Durable state of a pulse counter: a file of two slots that are written alternately.

    slot    two copies of a line of 2,048 bytes
    line    8 hex digits: CRC-32 of the JSON; a space; the JSON; spaces; a newline

Each write replaces the older slot in place and syncs it, so a write that a power cut interrupts leaves the newer slot
valid. The file keeps its size: a write needs no free space, and changes one block and nothing of the file system. A
slot has 4 KiB, the block size of the file system, so a torn block contains only one slot. Because of its two
copies, a changed byte does not make the total fall back to the older slot.

Threads: one thread at a time may use a CounterFile. Errors: SensorError, whose message contains the remedy.
"""

from __future__ import annotations

import errno
import logging
import os
import zlib
from typing import Any, NamedTuple

from pigeonpost.core.errors import BadArgument, DiskError, SensorError
from pigeonpost.core.files import replace_file
from pigeonpost.core.strict_json import read_json, write_json

log = logging.getLogger(__name__)

SLOT_BYTES = 4096
_LINE_BYTES = SLOT_BYTES // 2


class CounterState(NamedTuple):
    """State of a counter. Its total is `base` + `pulses` x `scale`.

    Attributes:
        pulses: Pulses since the total was `base`.
        missed: Pulses that were counted although their records were missed.
        base: Total at 0 pulses.
        scale: Amount per pulse.
        start: The setting `start` from which `base` was taken; None if there was none.
    """

    pulses: int
    missed: int
    base: float
    scale: float
    start: float | None

    @property
    def total(self) -> float:
        """The total, calculated from integers, so rounding errors do not add up."""
        return self.base + self.pulses * self.scale


class CounterFile:
    """File with the state of one counter. Call `load` once before `save`.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._number = 0  # of the newest valid slot; slot n is in the half n % 2

    def load(self) -> CounterState | None:
        """Return the newest state in the file, or None if there is no file.

        The newest slot is written again in its place. After a crash it may be only in the memory of the kernel, and it
        must be on the disk before `save` replaces the other slot.

        Raises:
            SensorError: The file is damaged, or cannot be read or written.
        """
        newest = self._newest()
        if newest is None:
            return None
        self._number, state, is_whole = newest
        if not is_whole:
            log.warning(
                "%s: a part is damaged, by a power cut or a fault of the disk; the total continues at %.12g, and may"
                " lack the pulses of the last write (remedy: compare it with the meter; set start)",
                self.path, state.total,
            )  # fmt: skip
        self._write(self._number, state)
        return state

    def peek(self) -> CounterState | None:
        """Return the newest state in the file without writing, or None if there is no file.

        Raises:
            SensorError: The file is damaged or cannot be read.
        """
        newest = self._newest()
        return None if newest is None else newest[1]

    def _newest(self) -> tuple[int, CounterState, bool] | None:
        """Return the number of the newest slot, its state, and False if the other slot is damaged."""
        try:
            with open(self.path, "rb") as file:
                content = file.read(2 * SLOT_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SensorError(f"{self.path}: {error.strerror}") from None
        slots = [_decode(content[:SLOT_BYTES]), _decode(content[SLOT_BYTES:])]
        newest = max((slot for slot in slots if slot is not None), key=lambda slot: slot[0], default=None)
        if newest is None:
            raise SensorError(
                f"{self.path} is damaged, so the total is unknown; delete it, and set start to the present total"
            )
        return (*newest, None not in slots)

    def save(self, state: CounterState) -> None:
        """Store a state durably.

        After an error, the same slot is written again, so the other one stays valid.

        Raises:
            SensorError: The disk is full or faulty.
        """
        self._write(self._number + 1, state)
        self._number += 1

    def _write(self, number: int, state: CounterState) -> None:
        slot = _encode(number, state)
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.pwrite(fd, slot, number % 2 * SLOT_BYTES) != SLOT_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            self._create(slot)
        except OSError as error:
            raise SensorError(f"{self.path}: {error.strerror}") from None

    def _create(self, slot: bytes) -> None:
        """Create the file with the state in both slots, so that it never exists with less."""
        try:
            replace_file(self.path, 2 * slot)
        except DiskError as error:
            raise SensorError(str(error)) from None


def _encode(number: int, state: CounterState) -> bytes:
    body = write_json({"number": number, **state._asdict()}).encode()
    return 2 * ((b"%08x %s" % (zlib.crc32(body), body)).ljust(_LINE_BYTES - 1) + b"\n")


def _decode(slot: bytes) -> tuple[int, CounterState] | None:
    """Return the number of a slot and its state, from the newer valid copy, or None if no copy is valid."""
    copies = (_decode_line(slot[:_LINE_BYTES]), _decode_line(slot[_LINE_BYTES:]))
    return max((copy for copy in copies if copy is not None), key=lambda copy: copy[0], default=None)


def _decode_line(line: bytes) -> tuple[int, CounterState] | None:
    body = line[9:].rstrip(b" \n")
    if line[:9] != b"%08x " % zlib.crc32(body):
        return None
    try:
        fields: dict[str, Any] = read_json(body.decode())
        return fields["number"], CounterState(*[fields[name] for name in CounterState._fields])
    except (BadArgument, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        return None
