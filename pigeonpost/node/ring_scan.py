"""Reader of the outbox file, for the node and for `control.py read-outbox`.

It only reads, through a function `read(count, at)` that returns up to `count` bytes at the position `at`, and fewer at
the end of the file.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable, Sequence
from zlib import crc32

from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_format import Header
from pigeonpost.node.ring_records import SeqRange, Slot

if TYPE_CHECKING:
    from typing import Any

_CHUNK = 1 << 18
_SLOTS_UP_TO = 1 << 24  # the maximum of the setting [outbox] slots
_NUMBER = struct.Struct("<Q")
_new_tuple = tuple.__new__  # faster than the constructor of a NamedTuple

Read = Callable[[int, int], bytes]


def slot_position(header: Header, number: int) -> int:
    """Return the position in the file of the slot for sample `number`, for a file with `header`."""
    return layout.SLOTS_AT + number % header.slots * header.slot_bytes


def find_header(read: Read) -> Header | None:
    """Return the header: the first undamaged copy, or else the first copy with one damaged byte corrected.

    `read` reads the file. The result is None if no header can be recovered.
    """
    found = (layout.parse_header(read(layout.HEADER_BYTES, at)) for at in layout.HEADER_AT)
    return next((header for header in found if header), None) or layout.correct_header(read(layout.HEADER_BYTES, 0))


def guess_header(read: Read) -> Header | None:
    """Return a header derived from the slots of a file without a readable header, or None if no slot is undamaged.

    Only the lower bytes of the id, the tag, can be recovered. `read` reads the file.
    """
    size = layout.SMALLEST_SLOT
    while size <= layout.LARGEST_SLOT:
        index, tag, is_found = 0, 0, False
        laps = 0  # greatest common divisor of (running number - index) of all undamaged slots
        while block := read(_CHUNK, layout.SLOTS_AT + index * size):
            for k in range(0, len(block) - size + 1, size):
                (number,) = _NUMBER.unpack_from(block, k + layout.CRC.size)
                if number and layout.is_undamaged(block[k : k + size]):
                    tag = tag or layout.tag_in(block[k : k + size])
                    laps, is_found = math.gcd(laps, number - index - k // size), True
            index += max(1, len(block) // size)
        if is_found:
            # With this number of slots, each undamaged slot has the correct index, even if part of the file is missing.
            return Header(layout.VERSION, size, laps if laps % index and laps <= _SLOTS_UP_TO else index, tag)
        size *= 2
    return None


def read_state(read: Read) -> tuple[int, dict[str, Any]] | None:
    """Return the count and the contents of the newest valid copy of the state, or None. `read` reads the file."""
    newest = None
    for at in layout.STATE_AT:
        block = read(layout.STATE_BYTES, at)
        if len(block) < layout.CRC.size + layout.STATE.size:
            continue
        count, length = layout.STATE.unpack_from(block, layout.CRC.size)
        text = layout.CRC.size + layout.STATE.size
        if count > (newest[0] if newest else 0) and layout.is_checked(block[: text + length]):
            newest = count, json.loads(block[text : text + length])
    return newest


def read_slot(slot: bytes, number: int, tag: bytes) -> Slot | None:
    """Return the sample in `slot`, or None if it is damaged or has another running `number` or another `tag`."""
    if len(slot) < layout.SMALLEST_SLOT or not layout.is_undamaged(slot, tag):
        return None
    found, _, _, wall_ms, up_ms, boot, flags, length = layout.SLOT.unpack_from(slot, layout.CRC.size)
    if found != number:
        return None
    body = slot[layout.SLOT_HEAD : layout.SLOT_HEAD + length].decode()
    return Slot(number, wall_ms, up_ms, boot, bool(flags & layout.CLOCK_SET), body)


def get_slots(block: bytes, number: int, header: Header) -> list[Slot | None]:
    """Return the samples in consecutive slots; the result is the same as that of `read_slot` for each slot.

    Args:
        block: Bytes of the slots.
        number: Running number of the first sample; the others follow.
        header: Header of the file.
    """
    size, tag = header.slot_bytes, header.tag
    slots: list[Slot | None] = []
    view = memoryview(block)
    content_end, tag_at = size - layout.MARK_BYTES, size - layout.MARK_BYTES - layout.TAG_BYTES
    at = 0
    for crc, found, _, _, wall_ms, up_ms, boot, flags, length, rest in _slot_struct(size).iter_unpack(block):
        has_mark = flags & layout.HAS_MARK
        is_undamaged = crc32(view[at + layout.CRC.size : at + (content_end if has_mark else size)]) == crc
        if is_undamaged and found == number and (not has_mark or block[at + tag_at : at + content_end] == tag):
            body = rest[:length].decode()
            clock_set = bool(flags & layout.CLOCK_SET)
            slots.append(_new_tuple(Slot, (number, wall_ms, up_ms, boot, clock_set, body)))
        else:
            slots.append(None)
        number += 1
        at += size
    return slots


@functools.lru_cache(maxsize=2)
def _slot_struct(size: int) -> struct.Struct:
    """Return the layout of a slot: the CRC, the fields of layout.SLOT, and the remaining bytes."""
    return struct.Struct(f"{layout.CRC.format}{layout.SLOT.format[1:]}{size - layout.SLOT_HEAD}s")


def find_runs(read: Read, header: Header) -> list[SeqRange]:
    """Return the ranges of samples that were written and not yet overwritten, including the damaged samples.

    The undamaged slots show which samples were written. A damaged sample is identified by the mark before its slot, or
    by the numbers in the neighbouring slots. A sample that the disk has written to a wrong slot also shows that its
    number has been used.

    Args:
        read: Function that reads the file.
        header: Header of the file.
    """
    pieces, strays = _undamaged_slots(read, header)
    tag = header.tag
    last = max((piece.last_number for piece in pieces), default=0)

    def identity(number: int) -> tuple[int, int] | None:
        mark = layout.parse_mark(
            read(layout.MARK_BYTES, slot_position(header, number) - layout.MARK_BYTES), number, tag
        )
        return mark or strays.get(number)

    # Samples after the last undamaged one: a crash can have damaged the last batch, whose marks may still exist.
    ahead = range(last + 1, last + 1 + layout.most_at_once(header.slots))
    last = max((number for number in ahead if identity(number)), default=last)
    held_from = max(1, last - header.slots + 1)
    at = held_from
    for run in [*joined(sorted(pieces, key=_number), held_from), SeqRange("", 1, 1, last + 1)]:
        # Search for damaged samples before each run. The last entry of the loop is not a run: it marks the end.
        for number in range(at, run.number):
            found = identity(number)
            if found:
                pieces.append(SeqRange(f"{found[0]:016x}", found[1], found[1], number))
        at = max(at, run.last_number + 1)
    return _lengthened(joined(sorted(pieces, key=_number), held_from))


def _undamaged_slots(read: Read, header: Header) -> tuple[list[SeqRange], dict[int, tuple[int, int]]]:
    """Return the runs of undamaged slots in file order, and (epoch, seq) of each sample in a wrong slot."""
    slot_bytes, slots, tag = header.slot_bytes, header.slots, header.tag
    runs: list[list[int]] = []  # epoch, first seq, last seq, running number of the first
    strays = {}
    heads = struct.Struct(f"<4xQQQ{slot_bytes - 28}x")
    for start in range(0, slots, _CHUNK // slot_bytes):
        count = min(_CHUNK // slot_bytes, slots - start)
        block = memoryview(read(count * slot_bytes, layout.SLOTS_AT + start * slot_bytes))
        for k, (number, epoch, seq) in enumerate(heads.iter_unpack(block[: len(block) // heads.size * heads.size])):
            if number == 0 or not layout.is_undamaged(block[k * slot_bytes : (k + 1) * slot_bytes], tag):
                continue
            if number % slots != start + k:
                strays[number] = epoch, seq
                continue
            last = runs[-1] if runs else None
            if last and last[0] == epoch and number - seq == last[3] - last[1] and seq > last[2]:
                last[2] = seq
            else:
                runs.append([epoch, seq, seq, number])
    return [SeqRange(f"{epoch:016x}", first, last, number) for epoch, first, last, number in runs], strays


def _lengthened(runs: Sequence[SeqRange]) -> list[SeqRange]:
    """Return `runs`, each except the oldest extended by the damaged samples directly before it.

    The sequence numbers of a run show how many samples of its epoch are before it.
    """
    found = list(runs[:1])
    for run in runs[1:]:
        damaged = min(run.number - found[-1].last_number, run.first) - 1
        found.append(run.cut(run.number - max(0, damaged)))
    return found


def _number(run: SeqRange) -> int:
    return run.number


def joined(runs: Sequence[SeqRange], held_from: int) -> list[SeqRange]:
    """Return the sorted `runs` without the samples before `held_from`, after joining adjacent runs.

    `held_from` is the running number of the oldest sample that is not overwritten.
    """
    found: list[SeqRange] = []
    for run in runs:
        if run.last_number < held_from:
            continue
        if run.number < held_from:
            run = run.cut(held_from)
        last = found[-1] if found else None
        if last and last.epoch == run.epoch and last.seq_of(run.number) == run.first:
            found[-1] = last._replace(last=max(last.last, run.last))  # runs can overlap next to damaged slots
        else:
            found.append(run)
    return found


def forked(runs: Sequence[SeqRange], forks: Sequence[tuple[int, int, str]], held_from: int) -> list[SeqRange]:
    """Return `runs` after applying the forks in the state of the ring.

    Args:
        runs: Runs of samples, as the slots contain them.
        forks: Forks, oldest first, each as (first running number, last running number, new epoch).
        held_from: Running number of the oldest sample that is not overwritten.
    """
    for start, end, epoch in forks:
        pieces = []
        for run in runs:
            low, high = max(run.number, start), min(run.last_number, end)
            if low > high:
                pieces.append(run)
                continue
            if run.number < low:
                pieces.append(run._replace(last=run.seq_of(low - 1)))
            pieces.append(SeqRange(epoch, low - start + 1, high - start + 1, low))
            if high < run.last_number:
                pieces.append(run.cut(high + 1))
        runs = pieces
    return joined(runs, held_from)
