"""Copies the samples of one outbox file into another: into wider slots, or out of a damaged file.

Imported only when one of these is to be done.
"""

from __future__ import annotations

from collections.abc import Callable

from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_format import Header
from pigeonpost.node.ring_scan import Read, find_runs, place, read_slot

Write = Callable[[bytes, int], object]  # data, where


def copy_slots(read: Read, old: Header, write: Write, new: Header, renumbers: bool = False) -> tuple[int, int]:
    """Write every sample of `old` that is held into the empty file `new`, its marks too; a damaged one stays that.

    renumbers  give the oldest the running number 1, for a file with another id; else all keep theirs

    Returns how many are whole, and by how much the numbers have become less.
    """
    runs = find_runs(read, old)
    less = runs[0].number - 1 if runs and renumbers else 0
    whole, has_room = 0, True
    for run in runs:
        for number in range(run.number, run.last_number + 1):
            slot = read(old.slot_bytes, place(old, number))
            seq, epoch, at = run.seq_of(number), int(run.epoch, 16), place(new, number - less)
            packed = b""
            if read_slot(slot, number, old.tag) is not None:
                whole += 1
                packed = layout.pack_slot(_content(slot, number - less), new.slot_bytes, new.tag)
            has_room, had_room = len(packed) < new.slot_bytes, has_room or at == layout.SLOTS_AT
            if had_room:
                packed, at = layout.pack_mark(number - less, epoch, seq, new.tag) + packed, at - layout.MARK_BYTES
            write(packed, at)
    return whole, less


def _content(slot: bytes, number: int) -> bytes:
    """Return the head and body of a whole slot, with another running number."""
    _, *fields, flags, length = layout.SLOT.unpack_from(slot, layout.CRC.size)
    head = layout.SLOT.pack(number, *fields, flags & layout.CLOCK_SET, length)
    return head + slot[layout.SLOT_HEAD : layout.SLOT_HEAD + length]
