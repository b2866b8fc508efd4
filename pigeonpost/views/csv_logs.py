"""CSV log pages: the last ten samples and the file of this run, and the files of all runs.

Errors: HTTPError.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping

from csvbuffer import RecentSample
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.data_folder import LOGS
from pigeonpost.core.format import clock, number, size, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.units import conversion
from pigeonpost.http.message import FilePart, HTTPError, Response, byte_range
from pigeonpost.storage.csv.checksums import logs_in, read_sums
from pigeonpost.storage.csv.format import local_time
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import html_page, text_page
from pigeonpost.views.table_page import TablePage, render_table


def log_check(context: RequestContext) -> Response:
    """`/log`: the last ten samples of this run, the newest first."""
    shown = context.app.csv.last()[::-1]
    path, length = context.app.csv.whole()
    name, units = os.path.basename(path), context.preferences.units
    if not context.request.wants_html:
        return text_page("\n".join([f"{name}, {size(length)}; its last {len(shown)} samples, newest first:", "",
                                    *(_line(one, units) for one in shown)]) + "\n")  # fmt: skip
    rows = join_html(Html("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n").format(*_cells(one, units)) for one in shown)
    body = Html(
        '<h1>Log Check</h1>\n<div data-piece="log"><p>The last {count} samples of this run, newest first. All of them'
        ' are in <a href="/log.csv">{name}</a>, {size} (<a href="/log.csv?for=excel">for Excel</a>).</p>\n'
        '<table class="log"><thead><tr><th>time</th><th>node</th><th>values</th></tr></thead><tbody>\n{rows}</tbody>'
        "</table></div>"
    ).format(count=len(shown), name=name, size=size(length), rows=rows)
    if not shown:
        body = Html('<h1>Log Check</h1>\n<div data-piece="log"><p>No sample has come in this run yet.</p></div>')
    return html_page("Log Check", body, context, live=True)


def log_download(context: RequestContext) -> Response:
    """`/log.csv`: this run's file up to its last whole row, or the range of it that was asked for."""
    path, length = context.app.csv.whole()
    name = os.path.basename(path)
    if not name:  # nor does the folder, which could be opened all the same
        raise HTTPError(404, f"This run has no log yet: {context.app.csv.fault}.", "no-log")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HTTPError(404, f"This run has no log yet: {error.strerror}.", "no-log") from None
    try:
        return _part(context, fd, name, length)
    except BaseException:
        os.close(fd)
        raise


def logs(context: RequestContext) -> Response:
    """`/logs`: the log of every run, the newest first, with its size and SHA-256."""
    app, found = context.app, _found(context)
    sums, now_ms = read_sums(_folder(context)), app.clock.wall_ms()
    own = os.path.basename(app.csv.whole()[0])
    more = Html(
        '<div class="buttons"><a class="button" href="/log">Log Check</a><a class="button" href="/log.csv">Log Download'
        '</a><a class="button" href="/log.csv?for=excel">For Excel</a></div>\n'
    )
    total = sum(length for _, length, _ in found)
    return render_table(context, TablePage(
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


def _folder(context: RequestContext) -> str:
    return os.path.join(context.app.data, LOGS)


def _found(context: RequestContext) -> list[tuple[str, int, int]]:
    """Return name, length and modification time of each log, the newest first."""
    found = []
    for name in logs_in(_folder(context)):
        try:
            status = os.stat(os.path.join(_folder(context), name), follow_symlinks=False)
        except OSError:  # gone since
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((name, status.st_size, status.st_mtime_ns // 1_000_000))
    return sorted(found, key=lambda one: one[2], reverse=True)


def one_log(context: RequestContext) -> Response:
    """`/logs/NAME`: the log of an earlier run, or of this one up to its last whole row."""
    name, own = context.args[0], context.app.csv.whole()[0]
    if name == os.path.basename(own):
        return log_download(context)
    if name not in [known for known, _, _ in _found(context)]:  # so no path leads out of the folder
        raise HTTPError(404, "There is no log of that name; /logs lists those that are.", "no-log")
    try:
        fd = os.open(os.path.join(_folder(context), name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise HTTPError(404, f"That log cannot be read: {error.strerror}.", "no-log") from None
    try:
        return _part(context, fd, name, os.fstat(fd).st_size)
    except BaseException:
        os.close(fd)
        raise


def _part(context: RequestContext, fd: int, name: str, length: int) -> Response:
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "ETag": f'"{name}"',  # a log only grows: what a client has of it stays right, and it may ask for the rest
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
    }
    asked = context.request.headers.get("range") if context.request.method == "GET" else None
    is_ours = context.request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
    part = byte_range(asked, length) if asked and is_ours else None
    if part is None:
        return Response(kind="text/csv; charset=utf-8", headers=headers, file=FilePart(fd, 0, length))
    start, count = part
    headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{length}"
    return Response(kind="text/csv; charset=utf-8", status=206, headers=headers, file=FilePart(fd, start, count))


def _cells(shown: RecentSample, units: Mapping[str, str]) -> Iterator[str]:
    yield time.strftime("%H:%M:%S", time.localtime(shown.sample.time_ms // 1000))
    yield shown.node
    yield ", ".join(_values(shown, units))


def _line(shown: RecentSample, units: Mapping[str, str]) -> str:
    return f"{local_time(shown.sample.time_ms)}  {shown.node}  {', '.join(_values(shown, units))}"


def _values(shown: RecentSample, units: Mapping[str, str]) -> Iterator[str]:
    for name, value in shown.sample.values.items():
        to = conversion(shown.units.get(name, ""), units)
        said = with_unit(number(to.value(value)), to.unit) if value is not None else "failed"
        yield f"{name} {said}"
