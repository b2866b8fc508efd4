"""Layout of the outbox file `outbox.ring`: conversion of its bytes to values and back, without any I/O.

All numbers are little-endian. The offsets are in bytes from the beginning of the file.

    0      header: CRC-32 | magic | slot bytes | slots | outbox id
    4096   state A: CRC-32 | count | length | JSON, and at 8128 a copy of the header
    8192   state B: a copy of state A, and at 12160 a copy of the header
    12260  mark of slot 0
    12288  slot 0, slot 1, ... slot n-1     the sample with the running number i (1, 2, 3 ...) is in slot i mod n

    slot:  CRC-32 | i | epoch | seq | wall ms | up ms | boot id | flags | length | body | zeros | tag | mark
    mark:  CRC-32 (of the tag, too) | i | epoch | seq       of the sample in the following slot
    tag:   the lower four bytes of the outbox id; a slot with another tag belongs to the file of another outbox

`body` is the part of the sample's JSON that never changes.

A mark is at the end of the slot before the one that it describes, and is written together with that slot in one call.
If the slot is damaged, the mark still identifies the lost sample. For the newest sample no other information can do
that, because no later sample follows it.

The CRC of a slot covers everything up to the mark at its end. In two cases there is no mark, and the CRC covers the
complete slot: in a file of version 1, which has no marks and only one header, and if the sample needs the space.
"""

from __future__ import annotations

import struct
import zlib

from pigeonpost.core.light_typing import NamedTuple

SMALLEST_SLOT = 128
LARGEST_SLOT = 32_768  # a sample must fit in one line of the TCP link

MOST_AT_ONCE = 1_000  # samples that are written and synced together
VERSION = 2
MARK_BYTES, TAG_BYTES = 28, 4
STATE_AT = (4096, 8192)
STATE_BYTES = 3840  # less than a block of 4,096 bytes, which also contains a copy of the header
HEADER_AT = (0, 8128, 12_160)
SLOTS_AT = 12_288
CLOCK_SET, HAS_MARK = 1, 2  # flags of a slot; HAS_MARK: its last bytes are the mark of the next slot
NUMBERS = 24  # size of i, epoch and seq, in bytes

CRC = struct.Struct("<I")  # of all bytes that follow it
STATE = struct.Struct("<QH")  # count, length of the JSON
SLOT = struct.Struct("<QQQqQQBH")  # i, epoch, seq, wall ms, up ms, boot id, flags, length of the body
SLOT_HEAD = CRC.size + SLOT.size

_MAGIC = b"PGNPOST"  # followed by the version, one digit
_HEADER = struct.Struct("<8sIIQ")
_MARK = struct.Struct("<QQQ")
_FLAGS_AT = CRC.size + 48
HEADER_BYTES = CRC.size + _HEADER.size


def most_at_once(slots: int) -> int:
    """Return the maximum number of samples in one write to a ring with `slots` slots.

    It is at most half of the slots: a crash during the write then cannot damage all samples of the ring.
    """
    return min(MOST_AT_ONCE, slots // 2)


class Header(NamedTuple):
    """Contents of the header.

    Attributes:
        version: Version of the file format.
        slot_bytes: Size of a slot in bytes.
        slots: Number of slots.
        identity: Id of the outbox, a random number of 64 bits.
    """

    version: int
    slot_bytes: int
    slots: int
    identity: int

    @property
    def tag(self) -> bytes:
        """The tag in each slot of this outbox."""
        return CRC.pack(self.identity & 0xFFFF_FFFF)


def checked(content: bytes) -> bytes:
    """Return `content` with its CRC in front."""
    return CRC.pack(zlib.crc32(content)) + content


def is_checked(block: bytes | memoryview) -> bool:
    """Return True if the CRC at the beginning of `block` matches the remaining bytes."""
    return CRC.unpack_from(block) == (zlib.crc32(block[CRC.size :]),)


# ------------------------------------------------------------------------------------------------------ header


def pack_header(header: Header) -> bytes:
    """Return the bytes of `header`."""
    magic = _MAGIC + b"%d" % header.version
    return checked(_HEADER.pack(magic, header.slot_bytes, header.slots, header.identity))


def parse_header(block: bytes) -> Header | None:
    """Return the header at the beginning of `block`, or None if it is missing or damaged."""
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
    """Return the header in `block` with one damaged byte corrected, or None if that is not possible.

    This is for files of version 1, which contain no copy of the header. The function tries all other values of each
    byte, which are 7,140 candidates. The probability that a wrong candidate matches the CRC-32 is 2 in a million, and
    the result must also be a valid header.
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
    """Return the bytes of a slot without the mark at its end, and set the flag HAS_MARK.

    If the sample needs the space of the mark, return a complete slot without the flag.

    Args:
        head_and_body: Fields of SLOT and the body, without the CRC.
        slot_bytes: Size of a slot in bytes.
        tag: Tag of the outbox.
    """
    if CRC.size + len(head_and_body) > slot_bytes - MARK_BYTES - TAG_BYTES:
        return checked(head_and_body.ljust(slot_bytes - CRC.size, b"\0"))
    flags = head_and_body[_FLAGS_AT - CRC.size] | HAS_MARK
    content = head_and_body[: _FLAGS_AT - CRC.size] + bytes((flags,)) + head_and_body[_FLAGS_AT - CRC.size + 1 :]
    return checked(content.ljust(slot_bytes - MARK_BYTES - TAG_BYTES - CRC.size, b"\0") + tag)


def has_mark(slot: bytes | memoryview) -> bool:
    """Return True if the mark of the next slot can be written at the end of `slot`."""
    return bool(slot[_FLAGS_AT] & HAS_MARK) or not is_undamaged(slot)


def is_undamaged(slot: bytes | memoryview, tag: bytes = b"") -> bool:
    """Return True if `slot` is undamaged and, if `tag` is given, belongs to the outbox with that tag."""
    if not slot[_FLAGS_AT] & HAS_MARK:
        return is_checked(slot)
    content = slot[:-MARK_BYTES]
    return is_checked(content) and (not tag or content[-TAG_BYTES:] == tag)


def tag_in(slot: bytes) -> int:
    """Return the tag in an undamaged `slot` as a number, or 0 if the slot has no tag."""
    (tag,) = CRC.unpack_from(slot, len(slot) - MARK_BYTES - TAG_BYTES)
    return tag if slot[_FLAGS_AT] & HAS_MARK else 0


def pack_mark(number: int, epoch: int, seq: int, tag: bytes) -> bytes:
    """Return the mark that precedes the slot of a sample.

    Args:
        number: Running number of the sample.
        epoch: Epoch of the sample, as a number.
        seq: Sequence number of the sample.
        tag: Tag of the outbox.
    """
    return checked(_MARK.pack(number, epoch, seq) + tag)[:MARK_BYTES]


def parse_mark(block: bytes, number: int, tag: bytes) -> tuple[int, int] | None:
    """Return (epoch, seq) if `block` is the mark of sample `number` of the outbox with the tag `tag`, else None."""
    if len(block) < MARK_BYTES or not is_checked(block + tag):
        return None
    found, epoch, seq = _MARK.unpack_from(block, CRC.size)
    return (epoch, seq) if found == number else None
