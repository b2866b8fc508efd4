"""The log of this run: its last ten samples, and the whole file to take away.

Runs on: server.  Reached from: webui (`/log`, `/log.csv`).  Hands on to: csvbuffer, which has both.
Threads: none of its own.  Errors: Refusal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from csvbuffer import Shown, local_time
from http_head import Answer, FilePart, Refusal, byte_range
from pages import Html, Visit, html_page, number, size, text_page, together, with_unit


def log_check(visit: Visit) -> Answer:
    """`/log`: the last ten samples of this run, the newest first."""
    shown = visit.house.csv.last()[::-1]
    path, length = visit.house.csv.whole()
    name = os.path.basename(path)
    if not visit.request.wants_html:
        return text_page("\n".join([f"{name}, {size(length)}; its last {len(shown)} samples, newest first:", "",
                                    *(_line(one) for one in shown)]) + "\n")  # fmt: skip
    rows = together(Html("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n").format(*_cells(one)) for one in shown)
    body = Html(
        '<h1>Log Check</h1>\n<div data-piece="log"><p>The last {count} samples of this run, newest first. All of them'
        ' are in <a href="/log.csv">{name}</a>, {size}.</p>\n<table class="log"><thead><tr><th>time</th><th>node</th>'
        "<th>values</th></tr></thead><tbody>\n{rows}</tbody></table></div>"
    ).format(count=len(shown), name=name, size=size(length), rows=rows)
    if not shown:
        body = Html('<h1>Log Check</h1>\n<div data-piece="log"><p>No sample has come in this run yet.</p></div>')
    return html_page("Log Check", body, visit, live=True)


def log_download(visit: Visit) -> Answer:
    """`/log.csv`: this run's file up to its last whole row, or the range of it that was asked for."""
    path, length = visit.house.csv.whole()
    name = os.path.basename(path)
    if not name:  # nor does the folder, which could be opened all the same
        raise Refusal(404, f"This run has no log yet: {visit.house.csv.fault}.", "no-log")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refusal(404, f"This run has no log yet: {error.strerror}.", "no-log") from None
    try:
        return _part(visit, fd, name, length)
    except BaseException:
        os.close(fd)
        raise


def _part(visit: Visit, fd: int, name: str, length: int) -> Answer:
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "ETag": f'"{name}"',  # a log only grows: what a client has of it stays right, and it may ask for the rest
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
    }
    asked = visit.request.headers.get("range") if visit.request.method == "GET" else None
    is_ours = visit.request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
    part = byte_range(asked, length) if asked and is_ours else None
    if part is None:
        return Answer(kind="text/csv; charset=utf-8", headers=headers, file=FilePart(fd, 0, length))
    start, count = part
    headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{length}"
    return Answer(kind="text/csv; charset=utf-8", status=206, headers=headers, file=FilePart(fd, start, count))


def _cells(shown: Shown) -> Iterator[str]:
    yield time.strftime("%H:%M:%S", time.localtime(shown.sample.time_ms // 1000))
    yield shown.node
    yield ", ".join(_values(shown))


def _line(shown: Shown) -> str:
    return f"{local_time(shown.sample.time_ms)}  {shown.node}  {', '.join(_values(shown))}"


def _values(shown: Shown) -> Iterator[str]:
    for name, value in shown.sample.values.items():
        said = with_unit(number(value), shown.units.get(name, "")) if value is not None else "failed"
        yield f"{name} {said}"
