"""CSV log pages: the last ten samples and the log of this run, and the logs of all runs.

Errors: HTTPError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from csvbuffer import RecentSample
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.data_folder import LOGS
from pigeonpost.core.format import clock, counted, number, size, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.units import conversion
from pigeonpost.http.message import FilePart, HTTPError, Response, byte_range
from pigeonpost.storage.csv.checksums import logs_in, read_sums
from pigeonpost.storage.csv.format import local_time
from pigeonpost.views.context import RequestContext
from pigeonpost.views.excel import is_asked_for
from pigeonpost.views.html import html_page, text_page
from pigeonpost.views.table_page import TablePage, render_table

_RAW = ", without calibration"  # if sensors are calibrated: a log contains the values as the nodes have sent them


def log_check(context: RequestContext) -> Response:
    """Return the last ten samples of this run for `context`, newest first: `/log`."""
    shown = context.app.csv.last()[::-1]
    path, length = context.app.csv.whole()
    name = os.path.basename(path)
    raw = _RAW if context.app.calibrations else ""
    if not context.request.wants_html:
        about = f"{name}, {size(length)}; its last {counted(len(shown), 'sample')}, newest first{raw}:"
        return text_page("\n".join([about, "",
                                    *(_line(one, context) for one in shown)]) + "\n", context=context)  # fmt: skip
    rows = join_html(
        Html("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n").format(*_cells(one, context)) for one in shown
    )
    body = Html(
        '<h1>Log Check</h1>\n<div data-piece="log"><p>The last {count} of this run, newest first{raw}. The complete log'
        ' is <a href="/log.csv">{name}</a>, {size} (<a href="/log.csv?for=excel">CSV for Excel</a>).</p>\n'
        '<table class="log"><thead><tr><th>time</th><th>node</th><th>values</th></tr></thead><tbody>\n{rows}</tbody>'
        "</table></div>"
    ).format(count=counted(len(shown), "sample"), raw=raw, name=name, size=size(length), rows=rows)
    if not shown:
        body = Html('<h1>Log Check</h1>\n<div data-piece="log"><p>No sample has arrived in this run yet.</p></div>')
    return html_page("Log Check", body, context, live=True)


def log_download(context: RequestContext) -> Response:
    """Return the log of this run up to its last complete row, or the requested byte range, for `context`: `/log.csv`.

    Raises HTTPError 404 if there is no log yet.
    """
    path, length = context.app.csv.whole()
    name = os.path.basename(path)
    if not name:  # otherwise the folder would be opened
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
    """Return the list of all logs for `context`, newest first, with size and SHA-256: `/logs`."""
    app, found = context.app, _found(context)
    sums, now_ms = read_sums(_folder(context)), app.clock.wall_ms()
    own = os.path.basename(app.csv.whole()[0])
    more = Html(
        '<div class="buttons"><a class="button" href="/log">Log Check</a><a class="button" href="/log.csv">Log Download'
        '</a><a class="button" href="/log.csv?for=excel">CSV for Excel</a></div>\n'
    )
    total = sum(length for _, length, _ in found)
    return render_table(context, TablePage(
        title="Logs",
        lead=f"{counted(len(found), 'log')}, {size(total)}. Each run of the server starts a new log. When a log is"
             " closed, its SHA-256 is written to logs/SHA256SUMS, in the format of sha256sum -c."
             + (" The logs contain the values as the nodes have sent them, without calibration."
                if app.calibrations else ""),
        head=("log", "size", "last row", "SHA-256"),
        rows=[(name, size(length), clock(time_ms, now_ms),
               "still open" if name == own else sums.get(name, "not calculated yet"))
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
    """Return name, size and modification time of each log, newest first."""
    found = []
    for name in logs_in(_folder(context)):
        try:
            status = os.stat(os.path.join(_folder(context), name), follow_symlinks=False)
        except OSError:  # deleted in the meantime
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((name, status.st_size, status.st_mtime_ns // 1_000_000))
    return sorted(found, key=lambda one: one[2], reverse=True)


def one_log(context: RequestContext) -> Response:
    """Return the log of one run for `context`: `/logs/NAME`. The log of this run ends with its last complete row.

    Raises HTTPError 404 if there is no such log, or it cannot be read.
    """
    name, own = context.args[0], context.app.csv.whole()[0]
    if name == os.path.basename(own):
        return log_download(context)
    if name not in [known for known, _, _ in _found(context)]:  # so that no path leads out of the folder
        raise HTTPError(404, "There is no log with that name; /logs lists all logs.", "no-log")
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
        "ETag": f'"{name}"',  # a log only grows, so a client may request the part after the one it has
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
    }
    can_be_part = context.request.method == "GET" and not is_asked_for(context.request)
    requested = context.request.headers.get("range") if can_be_part else None
    is_same_log = context.request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
    part = byte_range(requested, length) if requested and is_same_log else None
    if part is None:
        return Response(kind="text/csv; charset=utf-8", headers=headers, file=FilePart(fd, 0, length))
    start, count = part
    headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{length}"
    return Response(kind="text/csv; charset=utf-8", status=206, headers=headers, file=FilePart(fd, start, count))


def _cells(shown: RecentSample, context: RequestContext) -> Iterator[str]:
    yield clock(shown.sample.time_ms, context.app.clock.wall_ms(), seconds=True)
    yield shown.node
    yield ", ".join(_values(shown, context))


def _line(shown: RecentSample, context: RequestContext) -> str:
    return f"{local_time(shown.sample.time_ms)}  {shown.node}  {', '.join(_values(shown, context))}"


def _values(shown: RecentSample, context: RequestContext) -> Iterator[str]:
    """Yield each reading with the sensor's label, as on the other pages."""
    names, units = context.app.ingestor.names, context.preferences.units
    for name, value in shown.sample.values.items():
        to = conversion(shown.units.get(name, ""), units)
        text = with_unit(number(to.value(value)), to.unit) if value is not None else "failed"
        yield f"{names.label(shown.node, name) or name.replace('_', ' ')} {text}"
