"""Layout of the outbox's file `outbox.ring`: its bytes to values and back, without any I/O. Numbers are little-endian.

    0      header: CRC-32 | magic | slot bytes | slots | outbox id
    4096   state A: CRC-32 | count | length | JSON, and at 8128 a copy of the header
    8192   state B: a copy of state A, and at 12160 a copy of the header
    12260  mark of slot 0
    12288  slot 0, slot 1, ... slot n-1     sample number i (1, 2, 3 ...) is in slot i mod n

    slot:  CRC-32 | i | epoch | seq | wall ms | up ms | boot id | flags | length | body | zeros | tag | mark
    mark:  CRC-32, of the tag too | i | epoch | seq         of the sample in the slot that follows it
    tag:   the lower four bytes of the outbox's id, so that what belongs into another outbox's file is no sample of this

`body` is the part of a sample's JSON that never changes. A mark is written together with the slot that it precedes, in
one call, and outside of it: when the slot is damaged, the mark still tells which sample was there. Nothing else could
tell that of the newest one, since no later number follows it. A slot's CRC covers all up to the mark at its end. In a
file of version 1, which has no marks and one header, and for a sample that needs the room, it covers the whole slot.
"""

from __future__ import annotations

import struct
import zlib

from pigeonpost.core.light_typing import NamedTuple

SMALLEST_SLOT = 128
LARGEST_SLOT = 32_768  # a sample must fit a line of the link

MOST_AT_ONCE = 1_000  # samples made durable by one fdatasync
VERSION = 2
MARK_BYTES, TAG_BYTES = 28, 4
STATE_AT = (4096, 8192)
STATE_BYTES = 3840  # of a block of 4,096, so that the copies of the header have room behind it
HEADER_AT = (0, 8128, 12_160)
SLOTS_AT = 12_288
CLOCK_SET, HAS_MARK = 1, 2  # flags of a slot; HAS_MARK: its last bytes are the next slot's mark
NUMBERS = 24  # bytes of i, epoch and seq

CRC = struct.Struct("<I")  # of all that follows it
STATE = struct.Struct("<QH")  # count, length of the JSON
SLOT = struct.Struct("<QQQqQQBH")  # i, epoch, seq, wall ms, up ms, boot id, flags, length of the body
SLOT_HEAD = CRC.size + SLOT.size

_MAGIC = b"PGNPOST"  # and the version, a digit
_HEADER = struct.Struct("<8sIIQ")
_MARK = struct.Struct("<QQQ")
_FLAGS_AT = CRC.size + 48
HEADER_BYTES = CRC.size + _HEADER.size


def most_at_once(slots: int) -> int:
    """Return how many samples one write takes; half of all at most, so that a torn one leaves older ones whole."""
    return min(MOST_AT_ONCE, slots // 2)


class Header(NamedTuple):
    """Content of a header."""

    version: int
    slot_bytes: int
    slots: int
    identity: int

    @property
    def tag(self) -> bytes:
        """Bytes at the end of each slot of this outbox."""
        return CRC.pack(self.identity & 0xFFFF_FFFF)


def checked(content: bytes) -> bytes:
    """Return `content` behind its CRC."""
    return CRC.pack(zlib.crc32(content)) + content


def is_checked(block: bytes | memoryview) -> bool:
    """Return True if the CRC at the beginning of `block` is that of the rest."""
    return CRC.unpack_from(block) == (zlib.crc32(block[CRC.size :]),)


# ------------------------------------------------------------------------------------------------------ header


def pack_header(header: Header) -> bytes:
    """Return the header's bytes."""
    magic = _MAGIC + b"%d" % header.version
    return checked(_HEADER.pack(magic, header.slot_bytes, header.slots, header.identity))


def parse_header(block: bytes) -> Header | None:
    """Return the header at the beginning of `block`; None where it is none, or is damaged."""
    block = block[:HEADER_BYTES]
    if len(block) < HEADER_BYTES or not is_checked(block):
        return None
    magic, slot_bytes, slots, identity = _HEADER.unpack_from(block, CRC.size)
    if magic[:7] != _MAGIC or not magic[7:].isdigit() or not slots:
        return None
    if not SMALLEST_SLOT <= slot_bytes <= LARGEST_SLOT:
        return None
    return Header(int(magic[7:]), slot_bytes, slots, identity)


def correct_header(block: bytes) -> Header | None:
    """Return the header in `block` as it was before one of its bytes, whichever, was damaged; None if it is not that.

    Version 1 has no copy of it. Of 7,140 tries one fits a CRC-32 by accident with a probability of 2 in a million, and
    must be a header as well.
    """
    block = block[:HEADER_BYTES]
    for at in range(len(block)):
        for byte in range(256):
            header = parse_header(block[:at] + bytes((byte,)) + block[at + 1 :])
            if header is not None:
                return header
    return None


# ------------------------------------------------------------------------------------------------ slots and marks


def pack_slot(head_and_body: bytes, slot_bytes: int, tag: bytes) -> bytes:
    """Return a slot up to its mark, with the flag that says so; where the sample needs the room, one without both."""
    if CRC.size + len(head_and_body) > slot_bytes - MARK_BYTES - TAG_BYTES:
        return checked(head_and_body.ljust(slot_bytes - CRC.size, b"\0"))
    flags = head_and_body[_FLAGS_AT - CRC.size] | HAS_MARK
    content = head_and_body[: _FLAGS_AT - CRC.size] + bytes((flags,)) + head_and_body[_FLAGS_AT - CRC.size + 1 :]
    return checked(content.ljust(slot_bytes - MARK_BYTES - TAG_BYTES - CRC.size, b"\0") + tag)


def has_mark(slot: bytes | memoryview) -> bool:
    """Return True if the next slot's mark may be written at this slot's end."""
    return bool(slot[_FLAGS_AT] & HAS_MARK) or not is_whole(slot)


def is_whole(slot: bytes | memoryview, tag: bytes = b"") -> bool:
    """Return True if the slot is as it was written, whichever sample it holds. With `tag` it must be of that outbox."""
    if not slot[_FLAGS_AT] & HAS_MARK:
        return is_checked(slot)
    content = slot[:-MARK_BYTES]
    return is_checked(content) and (not tag or content[-TAG_BYTES:] == tag)


def tag_in(slot: bytes) -> int:
    """Return the lower bytes of the id of the outbox that a whole slot is of; 0 if it does not say."""
    (tag,) = CRC.unpack_from(slot, len(slot) - MARK_BYTES - TAG_BYTES)
    return tag if slot[_FLAGS_AT] & HAS_MARK else 0


def pack_mark(number: int, epoch: int, seq: int, tag: bytes) -> bytes:
    """Return the mark that precedes the slot of sample `number`."""
    return checked(_MARK.pack(number, epoch, seq) + tag)[:MARK_BYTES]


def parse_mark(block: bytes, number: int, tag: bytes) -> tuple[int, int] | None:
    """Return (epoch, seq) if `block` is the mark of sample `number` of the outbox with this tag."""
    if len(block) < MARK_BYTES or not is_checked(block + tag):
        return None
    found, epoch, seq = _MARK.unpack_from(block, CRC.size)
    return (epoch, seq) if found == number else None
