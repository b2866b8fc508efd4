"""Outbox files of version 1, which have one header, one copy of the state in force, and no marks."""

from pigeonpost.node import ring_format as layout

CRC = layout.CRC.size


def as_version_1(content):
    """Return the file of version 1 with the same samples as `content`, a file of the present version."""
    header = layout.parse_header(content)
    old = bytearray(content)
    for at in layout.HEADER_AT:
        old[at : at + layout.HEADER_BYTES] = bytes(layout.HEADER_BYTES)
    old[: layout.HEADER_BYTES] = layout.pack_header(header._replace(version=1))
    old[layout.SLOTS_AT - layout.MARK_BYTES : layout.SLOTS_AT] = bytes(layout.MARK_BYTES)
    for at in range(layout.SLOTS_AT, len(content), header.slot_bytes):
        slot = content[at : at + header.slot_bytes]
        packed = bytes(header.slot_bytes)  # a torn slot stays damaged
        if layout.is_undamaged(slot):
            *fields, flags, length = layout.SLOT.unpack_from(slot, CRC)
            head = layout.SLOT.pack(*fields, flags & layout.CLOCK_SET, length)
            body = slot[layout.SLOT_HEAD : layout.SLOT_HEAD + length]
            packed = layout.checked((head + body).ljust(header.slot_bytes - CRC, b"\0"))
        old[at : at + header.slot_bytes] = packed
    count, _ = layout.STATE.unpack_from(content, layout.STATE_AT[0] + CRC)
    if count:  # the copy of the state before this one
        at = layout.STATE_AT[count % 2]
        old[at : at + layout.STATE_BYTES] = bytes(layout.STATE_BYTES)
    return bytes(old)
