"""The CSV logs: of this run its last ten samples and the whole file to take away, and the files of all runs.

Runs on: server.  Reached from: webui (`/log`, `/log.csv`, `/logs`, `/logs/NAME`).
Hands on to: csvbuffer, which has the log of this run; the folder of the others, and their checksums (files/log_sums).
Threads: none of its own.  Errors: Refusal.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from csvbuffer import Shown
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import clock, number, size, with_unit
from pigeonpost.core.html import Html, together
from pigeonpost.http.message import Answer, FilePart, Refusal, byte_range
from pigeonpost.storage.csv.checksums import logs_in, read_sums
from pigeonpost.storage.csv.format import local_time
from pigeonpost.views.context import Visit
from pigeonpost.views.html import html_page, text_page
from pigeonpost.views.table_page import Listing, listed


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


def logs(visit: Visit) -> Answer:
    """`/logs`: the log of every run, the newest first, with its size and SHA-256."""
    house, found = visit.house, _found(visit)
    sums, now_ms = read_sums(_folder(visit)), house.clock.wall_ms()
    own = os.path.basename(house.csv.whole()[0])
    more = Html(
        '<div class="buttons"><a class="button" href="/log">Log Check</a><a class="button" href="/log.csv">Log Download'
        "</a></div>\n"
    )
    total = sum(length for _, length, _ in found)
    return listed(visit, Listing(
        title="Logs",
        lead=f"{'One log' if len(found) == 1 else f'{len(found):,} logs'}, {size(total)}. Each run of the server begins"
             " one; when it is closed, its SHA-256 is in logs/SHA256SUMS, as sha256sum -c reads it.",
        head=("log", "size", "last row", "SHA-256"),
        rows=[(name, size(length), clock(time_ms, now_ms),
               "open: it still grows" if name == own else sums.get(name, "not summed up yet"))
              for name, length, time_ms in found],
        keys=("name", "bytes", "changed", "sha256", "open"),
        data=[(name, length, rfc3339(time_ms), sums.get(name) if name != own else None, name == own)
              for name, length, time_ms in found],
        none="There is no log yet.",
        links=[f"/logs/{name}" for name, _, _ in found],
        more=more,
    ))  # fmt: skip


def _folder(visit: Visit) -> str:
    return os.path.join(visit.house.data, "logs")


def _found(visit: Visit) -> list[tuple[str, int, int]]:
    """Name, length and time of the last change of each log, the newest first."""
    found = []
    for name in logs_in(_folder(visit)):
        try:
            status = os.stat(os.path.join(_folder(visit), name), follow_symlinks=False)
        except OSError:  # gone since
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((name, status.st_size, status.st_mtime_ns // 1_000_000))
    return sorted(found, key=lambda one: one[2], reverse=True)


def one_log(visit: Visit) -> Answer:
    """`/logs/NAME`: the log of an earlier run, or of this one up to its last whole row."""
    name, own = visit.args[0], visit.house.csv.whole()[0]
    if name == os.path.basename(own):
        return log_download(visit)
    if name not in [known for known, _, _ in _found(visit)]:  # so no path leads out of the folder
        raise Refusal(404, "There is no log of that name; /logs lists those that are.", "no-log")
    try:
        fd = os.open(os.path.join(_folder(visit), name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise Refusal(404, f"That log cannot be read: {error.strerror}.", "no-log") from None
    try:
        return _part(visit, fd, name, os.fstat(fd).st_size)
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
