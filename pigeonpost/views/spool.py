"""Temporary files for large responses.

They are deleted when they are sent, which takes long if a client reads slowly. They leave LEFT_BYTES of the disk free,
so that clients cannot fill it and stop the collecting.
Errors: HTTPError 503.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable

from pigeonpost.http.message import FilePart, HTTPError

IN_MEMORY_BYTES = 1 << 20  # smaller responses are not written to a file
LEFT_BYTES = 64 << 20  # free space of the disk that is left for the samples
_STEP_BYTES = 1 << 20  # the free space is checked whenever so much was written


def spool(texts: Iterable[str], folder: str) -> tuple[bytes, FilePart | None]:
    """Return `texts`, joined and encoded as UTF-8: as bytes, or if they are too large, as a file in `folder`.

    Raises HTTPError 503 if the file would leave too little free space.
    """
    texts, head = iter(texts), bytearray()
    for text in texts:
        head += text.encode()
        if len(head) > IN_MEMORY_BYTES:
            break
    else:
        return bytes(head), None
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            size = _write(file.fileno(), folder, head)
            block = bytearray()
            for text in texts:
                block += text.encode()
                if len(block) >= _STEP_BYTES:
                    size += _write(file.fileno(), folder, block)
                    block.clear()
            size += _write(file.fileno(), folder, block)
            return b"", FilePart(os.dup(file.fileno()), 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = "The disk is too full for a response of this size. Request less, or delete files from this disk."
        raise HTTPError(503, text, "disk-full", {"Retry-After": "60"}) from None


def _write(fd: int, folder: str, block: bytearray) -> int:
    """Write `block` and return its size. Raises OSError if it would leave less than LEFT_BYTES."""
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < LEFT_BYTES + len(block):
        raise OSError(errno.ENOSPC, "too little free space")
    with memoryview(block) as rest:
        done = 0
        while done < len(rest):
            done += os.write(fd, rest[done:])
    return done
