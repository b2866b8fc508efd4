"""CSV downloads in a form that Excel opens correctly: any address of a CSV file with `for=excel`.

Decimal numbers have a point or a comma, depending on the language of the browser; `decimal=point` or `decimal=comma`
overrides this. A file is converted to a temporary file, which is deleted after it was sent, since a log may be larger
than the memory.
Errors: HTTPError 400; OSError of the disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from pigeonpost.http.message import FilePart, HTTPError, Request, Response
from pigeonpost.storage.csv.excel import for_excel, has_comma

_LINES_BYTES = 1 << 16  # size of the parts of a file that are converted


def is_wanted(request: Request, response: Response) -> bool:
    """Return True if `request` contains `for=excel` and `response` is a complete CSV file."""
    return request.query.get("for") == "excel" and response.kind.startswith("text/csv") and response.status == 200


def as_excel(request: Request, response: Response, folder: str) -> Response:
    """Return the CSV `response` to `request`, converted for Excel. Temporary files are created in `folder`.

    Raises HTTPError 400 if `decimal` in the query is invalid.
    """
    decimal = request.query.get("decimal", "")
    if decimal not in ("", "point", "comma"):
        raise HTTPError(400, "`decimal` must be point or comma.", "decimal")
    comma = decimal == "comma" if decimal else has_comma(request.headers.get("accept-language", ""))
    headers = {key: value for key, value in response.headers.items() if key not in ("ETag", "Accept-Ranges")}
    if response.file is None:
        return response._replace(body="".join(for_excel([response.body.decode()], comma)).encode(), headers=headers)
    with os.fdopen(response.file.fd, "rb") as file, tempfile.TemporaryFile(dir=folder) as made:
        file.seek(response.file.start)
        for text in for_excel(_lines(file.fileno(), response.file), comma):
            made.write(text.encode())
        made.flush()
        part = FilePart(os.dup(made.fileno()), 0, made.tell())
    return response._replace(headers=headers, file=part)


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
