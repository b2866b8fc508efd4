"""Reader of what a file of the outbox holds, for the node and for `control.py read-outbox`.

Only reads, through a function `read(count, at)` that returns fewer bytes at the end of the file.
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
_SLOTS_UP_TO = 1 << 24  # as the setting [outbox] slots
_NUMBER = struct.Struct("<Q")
_new_tuple = tuple.__new__  # without the detour of a NamedTuple's constructor

Read = Callable[[int, int], bytes]


def place(header: Header, number: int) -> int:
    """Return where in the file the slot of sample `number` begins."""
    return layout.SLOTS_AT + number % header.slots * header.slot_bytes


def find_header(read: Read) -> Header | None:
    """Return the header: the first, else a copy of it, else the first with one damaged byte corrected."""
    found = (layout.parse_header(read(layout.HEADER_BYTES, at)) for at in layout.HEADER_AT)
    return next((header for header in found if header), None) or layout.correct_header(read(layout.HEADER_BYTES, 0))


def guess_header(read: Read) -> Header | None:
    """Return a header (of the id only the tag) for a file that has none left, by its slots; None if none is whole."""
    size = layout.SMALLEST_SLOT
    while size <= layout.LARGEST_SLOT:
        index, tag, is_found = 0, 0, False
        laps = 0  # the numbers of whole slots less their places are multiples of it
        while block := read(_CHUNK, layout.SLOTS_AT + index * size):
            for k in range(0, len(block) - size + 1, size):
                (number,) = _NUMBER.unpack_from(block, k + layout.CRC.size)
                if number and layout.is_whole(block[k : k + size]):
                    tag = tag or layout.tag_in(block[k : k + size])
                    laps, is_found = math.gcd(laps, number - index - k // size), True
            index += max(1, len(block) // size)
        if is_found:
            # Whether or not some of the file is missing: with this many slots each whole one is in its place.
            return Header(layout.VERSION, size, laps if laps % index and laps <= _SLOTS_UP_TO else index, tag)
        size *= 2
    return None


def read_state(read: Read) -> tuple[int, dict[str, Any]] | None:
    """Return the count and the content of the state in force; None where no copy is whole."""
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
    """Return the sample in `slot`; None if it is damaged or is not that with this running number and tag."""
    if len(slot) < layout.SMALLEST_SLOT or not layout.is_whole(slot, tag):
        return None
    found, _, _, wall_ms, up_ms, boot, flags, length = layout.SLOT.unpack_from(slot, layout.CRC.size)
    if found != number:
        return None
    body = slot[layout.SLOT_HEAD : layout.SLOT_HEAD + length].decode()
    return Slot(number, wall_ms, up_ms, boot, bool(flags & layout.CLOCK_SET), body)


def get_slots(block: bytes, number: int, header: Header) -> list[Slot | None]:
    """Return the samples in the slots of `block`, as `read_slot` reads each, with the running numbers from `number`."""
    size, tag = header.slot_bytes, header.tag
    slots: list[Slot | None] = []
    view = memoryview(block)
    content_end, tag_at = size - layout.MARK_BYTES, size - layout.MARK_BYTES - layout.TAG_BYTES
    at = 0
    for crc, found, _, _, wall_ms, up_ms, boot, flags, length, rest in _slot_struct(size).iter_unpack(block):
        has_mark = flags & layout.HAS_MARK
        is_whole = crc32(view[at + layout.CRC.size : at + (content_end if has_mark else size)]) == crc
        if is_whole and found == number and (not has_mark or block[at + tag_at : at + content_end] == tag):
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
    """Return the layout of a slot: its CRC, the fields of layout.SLOT, and the rest of it."""
    return struct.Struct(f"{layout.CRC.format}{layout.SLOT.format[1:]}{size - layout.SLOT_HEAD}s")


def find_runs(read: Read, header: Header) -> list[SeqRange]:
    """Return the samples that were written and not overwritten, as the slots name them: the damaged ones among them.

    Whatever a crash left, whole slots tell it. Of a damaged slot its mark tells which sample it was, or the slots
    beside it. A write that went to another slot shows that this number was used.
    """
    pieces, strays = _whole_slots(read, header)
    tag = header.tag
    last = max((piece.last_number for piece in pieces), default=0)

    def identity(number: int) -> tuple[int, int] | None:
        mark = layout.parse_mark(read(layout.MARK_BYTES, place(header, number) - layout.MARK_BYTES), number, tag)
        return mark or strays.get(number)

    ahead = range(last + 1, last + 1 + layout.most_at_once(header.slots))
    last = max((number for number in ahead if identity(number)), default=last)
    held_from = max(1, last - header.slots + 1)
    at = held_from
    for run in [*joined(sorted(pieces, key=_number), held_from), SeqRange("", 1, 1, last + 1)]:
        for number in range(at, run.number):
            found = identity(number)
            if found:
                pieces.append(SeqRange(f"{found[0]:016x}", found[1], found[1], number))
        at = max(at, run.last_number + 1)
    return _lengthened(joined(sorted(pieces, key=_number), held_from))


def _whole_slots(read: Read, header: Header) -> tuple[list[SeqRange], dict[int, tuple[int, int]]]:
    """Return the runs of whole slots, as they lie in the file, and (epoch, seq) of samples in a wrong slot."""
    slot_bytes, slots, tag = header.slot_bytes, header.slots, header.tag
    runs: list[list[int]] = []  # epoch, first, last, number of the first
    strays = {}
    heads = struct.Struct(f"<4xQQQ{slot_bytes - 28}x")
    for start in range(0, slots, _CHUNK // slot_bytes):
        count = min(_CHUNK // slot_bytes, slots - start)
        block = memoryview(read(count * slot_bytes, layout.SLOTS_AT + start * slot_bytes))
        for k, (number, epoch, seq) in enumerate(heads.iter_unpack(block[: len(block) // heads.size * heads.size])):
            if number == 0 or not layout.is_whole(block[k * slot_bytes : (k + 1) * slot_bytes], tag):
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
    """Add to each run, the oldest excepted, the damaged samples before it that its own numbers name."""
    found = list(runs[:1])
    for run in runs[1:]:
        damaged = min(run.number - found[-1].last_number, run.first) - 1
        found.append(run.cut(run.number - max(0, damaged)))
    return found


def _number(run: SeqRange) -> int:
    return run.number


def joined(runs: Sequence[SeqRange], held_from: int) -> list[SeqRange]:
    """Return `runs`, which are sorted, without what is overwritten, and with pieces of one run made one."""
    found: list[SeqRange] = []
    for run in runs:
        if run.last_number < held_from:
            continue
        if run.number < held_from:
            run = run.cut(held_from)
        last = found[-1] if found else None
        if last and last.epoch == run.epoch and last.seq_of(run.number) == run.first:
            found[-1] = last._replace(last=max(last.last, run.last))  # around torn slots they may overlap
        else:
            found.append(run)
    return found


def forked(runs: Sequence[SeqRange], forks: Sequence[tuple[int, int, str]], held_from: int) -> list[SeqRange]:
    """Return `runs` as the forks of the state rename them: [first number, last number, epoch]."""
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
