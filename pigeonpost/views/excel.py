"""Downloads of CSV as Excel reads them: any address of CSV with `for=excel`.

Decimals are written as the browser's language has them; `decimal=point` or `decimal=comma` chooses. What is in a file
is converted into a temporary one, which is gone when it is sent: a log may be longer than memory.
Errors: HTTPError 400; OSError of the disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from pigeonpost.http.message import FilePart, HTTPError, Request, Response
from pigeonpost.storage.csv.excel import for_excel, has_comma

_LINES_BYTES = 1 << 16  # converted together


def is_wanted(request: Request, response: Response) -> bool:
    """Return True for a whole CSV that is asked for in this form."""
    return request.query.get("for") == "excel" and response.kind.startswith("text/csv") and response.status == 200


def as_excel(request: Request, response: Response, folder: str) -> Response:
    """Return a response with CSV, converted. `folder`: where a temporary file may be made."""
    decimal = request.query.get("decimal", "")
    if decimal not in ("", "point", "comma"):
        raise HTTPError(400, "The decimal is point or comma.", "decimal")
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
    """Yield the text of a part of a file, some whole lines at a time."""
    at, end, rest = part.start, part.start + part.length, b""
    while at < end and (block := os.pread(fd, min(_LINES_BYTES, end - at), at)):
        at += len(block)
        whole, newline, tail = (rest + block).rpartition(b"\n")
        rest = tail
        if newline:
            yield (whole + newline).decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
