"""CSV downloads in other forms: any address of a CSV file with `for=excel`, `utc=1`, or both.

With `for=excel`, Excel opens the file correctly. Decimal numbers have a point or a comma, depending on the language of
the browser; `decimal=point` or `decimal=comma` overrides this. With `utc=1`, all times are in UTC. A file is converted
to a temporary file, which is deleted after it was sent, since a log may be larger than the memory.
Errors: HTTPError 400, or 503 if the disk is too full; OSError of the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from pigeonpost.http.message import FilePart, HTTPError, Request, Response
from pigeonpost.storage.csv.excel import for_excel, has_comma
from pigeonpost.storage.csv.utc import in_utc
from pigeonpost.views.spool import spool

_LINES_BYTES = 1 << 16  # size of the parts of a file that are converted


def is_wanted(request: Request, response: Response) -> bool:
    """Return True if `request` is for another form of CSV, and `response` is a complete CSV file."""
    return is_asked_for(request) and response.kind.startswith("text/csv") and response.status == 200


def is_asked_for(request: Request) -> bool:
    """Return True if the query of `request` contains `for=excel` or `utc`."""
    return request.query.get("for") == "excel" or "utc" in request.query


def converted(request: Request, response: Response, folder: str) -> Response:
    """Return the CSV `response` to `request` in the requested form. Temporary files are created in `folder`.

    Raises HTTPError 400 if `decimal` or `utc` in the query is invalid, 503 if the disk is too full.
    """
    try:
        change = _conversion(request)
    except HTTPError:
        if response.file is not None:
            os.close(response.file.fd)
        raise
    headers = {key: value for key, value in response.headers.items() if key not in ("ETag", "Accept-Ranges")}
    if response.file is None:
        return response._replace(body="".join(change([response.body.decode()])).encode(), headers=headers)
    with os.fdopen(response.file.fd, "rb") as file:
        body, part = spool(change(_lines(file.fileno(), response.file)), folder)
    return response._replace(body=body, headers=headers, file=part)


def _conversion(request: Request) -> Callable[[Iterable[str]], Iterator[str]]:
    """Return the function that converts parts of CSV to the requested form. Raises HTTPError 400."""
    decimal, utc = request.query.get("decimal", ""), request.query.get("utc", "0")
    if decimal not in ("", "point", "comma"):
        raise HTTPError(400, "`decimal` must be point or comma.", "decimal")
    if utc not in ("0", "1"):
        raise HTTPError(400, "`utc` must be 1 or 0.", "utc")
    if request.query.get("for") == "excel":
        comma = decimal == "comma" if decimal else has_comma(request.headers.get("accept-language", ""))
        return lambda texts: for_excel(texts, comma, utc == "1")
    return in_utc if utc == "1" else iter


def _lines(fd: int, part: FilePart) -> Iterator[str]:
    """Yield the text of a part of a file, several complete lines at a time."""
    at, end, rest = part.start, part.start + part.length, b""
    while at < end and (block := os.pread(fd, min(_LINES_BYTES, end - at), at)):
        at += len(block)
        whole, newline, tail = (rest + block).rpartition(b"\n")
        rest = tail
        if newline:
            yield (whole + newline).decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
