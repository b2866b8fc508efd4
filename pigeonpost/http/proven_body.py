"""Consumer of a request body in memory, which may be compressed by gzip (RFC 1952), with a limit of its length.

Errors: HTTPError 400 for invalid gzip data and 413 for too much data.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NoReturn

from pigeonpost.http.message import HTTPError, Request, Response

_GZIP = 31  # window bits for gzip data: see zlib.decompressobj


class ProvenBody:
    """Consumer (see BodyConsumer) of the body of a client whose token has been checked.

    Args:
        answer: Function that returns the response to the complete body. It should check the token again, because it may
            have been revoked while the body was received.
        most: Maximum number of uncompressed bytes.
        is_gzip: True if the body is compressed.
    """

    is_proven = True

    def __init__(self, answer: Callable[[bytearray], Response], most: int, is_gzip: bool = False) -> None:
        self._answer = answer
        self._gzip = zlib.decompressobj(_GZIP) if is_gzip else None
        self._most = most
        self._body = bytearray()

    def take(self, data: bytes) -> None:
        """Add `data`, the next block of the body as received. Raise HTTPError if it is not accepted."""
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

    def finish(self) -> Response:
        """Return the response, after the complete body was received. Raise HTTPError if gzip data is incomplete."""
        if self._gzip is not None and not self._gzip.eof:
            raise HTTPError(400, "The gzip data is incomplete.", "gzip")
        return self._answer(self._body)

    def abandon(self) -> None:
        """Free the memory, because the rest of the body will not arrive."""
        self._body = bytearray()


def answered_by_consumer(request: Request) -> NoReturn:
    """Raise AssertionError: an Endpoint with `receive` answers by its consumer, so this is never called.

    Args:
        request: The request.
    """
    raise AssertionError("the consumer reads the body")
