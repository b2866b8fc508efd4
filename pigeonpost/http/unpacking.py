"""Collector of a request body that may be compressed by gzip (RFC 1952), with a limit of its uncompressed length.

Errors: HTTPError 400 for invalid data and 413 for too much of it.
"""

from __future__ import annotations

import zlib

from pigeonpost.http.message import HTTPError

_GZIP = 31  # window bits for gzip data: see zlib.decompressobj


class BodyCollector:
    """Body in memory. It may have at most `most` uncompressed bytes.

    Args:
        is_gzip: True if the data is compressed.
        most: Maximum number of uncompressed bytes.
    """

    def __init__(self, is_gzip: bool, most: int) -> None:
        self._gzip = zlib.decompressobj(_GZIP) if is_gzip else None
        self._most = most
        self._body = bytearray()

    def take(self, data: bytes) -> None:
        """Add `data`, a block of the body as received. Raise HTTPError if it is not accepted."""
        if self._gzip is not None:
            try:
                # One byte more than allowed, so that a body of the maximum length is accepted.
                data = self._gzip.decompress(data, self._most + 1 - len(self._body))
            except zlib.error:
                raise HTTPError(400, "The body is not valid gzip data.", "gzip", closes=True) from None
            if self._gzip.unused_data:
                raise HTTPError(400, "There is data after the end of the gzip data.", "gzip", closes=True)
        self._body += data
        if len(self._body) > self._most:
            raise HTTPError(413, f"The uncompressed body may have at most {self._most} bytes.", "too-long", closes=True)

    def finish(self) -> bytearray:
        """Return the uncompressed body, after all blocks were taken. Raise HTTPError if it is incomplete."""
        if self._gzip is not None and not self._gzip.eof:
            raise HTTPError(400, "The gzip data is incomplete.", "gzip")
        return self._body

    def clear(self) -> None:
        """Free the memory."""
        self._body = bytearray()
