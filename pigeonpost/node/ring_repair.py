"""Copy of the samples of an outbox file to a new file, with larger slots or after damage.

The module is imported only when it is needed, to save memory.
"""

from __future__ import annotations

from collections.abc import Callable

from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_format import Header
from pigeonpost.node.ring_scan import Read, find_runs, read_slot, slot_position

Write = Callable[[bytes, int], object]  # data, position in the file


def copy_slots(read: Read, old: Header, write: Write, new: Header, renumbers: bool = False) -> tuple[int, int]:
    """Copy all samples and their marks to an empty file. A damaged sample stays damaged.

    Args:
        read: Function that reads the old file.
        old: Header of the old file.
        write: Function that writes to the new file.
        new: Header of the new file.
        renumbers: True to give the oldest sample the running number 1, for a file with another id; False to keep the
            running numbers.

    Returns:
        The number of undamaged samples, and the amount by which the running numbers have become smaller.
    """
    runs = find_runs(read, old)
    shift = runs[0].number - 1 if runs and renumbers else 0
    intact, has_room = 0, True
    for run in runs:
        for number in range(run.number, run.last_number + 1):
            slot = read(old.slot_bytes, slot_position(old, number))
            seq, epoch, at = run.seq_of(number), int(run.epoch, 16), slot_position(new, number - shift)
            packed = b""
            if read_slot(slot, number, old.tag) is not None:
                intact += 1
                packed = layout.pack_slot(_content(slot, number - shift), new.slot_bytes, new.tag)
            has_room, had_room = len(packed) < new.slot_bytes, has_room or at == layout.SLOTS_AT
            if had_room:
                packed, at = (
                    layout.pack_mark(number - shift, epoch, seq, new.tag) + packed,
                    at - layout.MARK_BYTES,
                )
            write(packed, at)
    return intact, shift


def _content(slot: bytes, number: int) -> bytes:
    """Return the head and the body of an undamaged slot, with another running number."""
    _, *fields, flags, length = layout.SLOT.unpack_from(slot, layout.CRC.size)
    head = layout.SLOT.pack(number, *fields, flags & layout.CLOCK_SET, length)
    return head + slot[layout.SLOT_HEAD : layout.SLOT_HEAD + length]
