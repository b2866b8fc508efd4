"""Page of the files that Pis have uploaded: the list, downloads, and import of their readings.

Runs in the threads of requests. `_importing` is held while a file is imported: one at a time. Errors: HTTPError.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping

from pigeonpost.compat.file_drop.storage import Pi, PiIds, StoredFile, listing, open_stored, sum_of
from pigeonpost.core.errors import NotStored, SettingsError
from pigeonpost.core.format import clock, size
from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import FilePart, HTTPError, Response
from pigeonpost.importing.importer import BadFile, import_readings, inspect_readings
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import button, html_page, key_notice, see_other, text_page
from protocol import IMPORTED

SHOWN = 500
_KINDS = {".csv": "text/csv; charset=utf-8", ".json": "application/json"}
_COUNT = re.compile(r"[0-9]{1,12}").fullmatch


class FilesPage:
    """Requests about uploaded files."""

    def __init__(self) -> None:
        self._importing = threading.Lock()

    def shown(self, context: RequestContext) -> Response:
        """`/files`: what has come, the newest first."""
        data = context.app.data
        files, count = listing(data, SHOWN)
        pis = _pis(context)
        imported = _imported(context, files, pis)
        said = _notice(context)
        more = f"The newest {len(files)} of {count} files" if count > len(files) else _files(count)
        if not context.request.wants_html:
            lines = [f"{more} that Pis have sent, newest first:" if files else "No Pi has sent a file yet.", ""]
            lines[:0] = [said, ""] if said else []
            lines += [_line(context, one, pis, imported.get(one.name, 0)) for one in files]
            return text_page("\n".join(lines) + "\n")
        if not files:
            body = Html("<p>No Pi has sent a file yet. <code>control.py file-id HEX NODE</code> accepts one.</p>")
        else:
            rows = join_html(_row(context, one, pis, imported.get(one.name, 0)) for one in files)
            body = Html(
                '<p>{more} that Pis have sent, newest first.</p>\n<table class="nodes files"><thead><tr><th>file</th>'
                "<th>size</th><th>came</th><th>from</th><th>SHA-256</th><th>readings</th></tr></thead>\n"
                "<tbody>\n{rows}</tbody></table>{why}"
            ).format(more=more, rows=rows, why=key_notice(context))
        notice = Html('<p class="notice" role="status">{}</p>\n').format(said) if said else ""
        return html_page("Files", Html("<h1>Files</h1>\n{}{}").format(notice, body), context)

    def download(self, context: RequestContext) -> Response:
        """`/files/NAME`: the file as it was sent."""
        name = context.args[0]
        fd = _open(context, name)
        kind = _KINDS.get(os.path.splitext(name)[1].lower(), "text/plain; charset=utf-8")
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-cache"}
        return Response(kind=kind, headers=headers, file=FilePart(fd, 0, os.fstat(fd).st_size))

    def bring_in(self, context: RequestContext) -> Response:
        """`POST /files/NAME/import`: its readings become samples of the Pi's node; each once, however often asked."""
        name = context.args[0]
        if not self._importing.acquire(blocking=False):
            raise HTTPError(503, "Another file is being imported; try again in a moment.", "busy", {"Retry-After": "5"})
        try:
            with open(_open(context, name), "rb") as file:
                pi_id = name[:16]
                node = _pis(context).get(pi_id, Pi(pi_id)).node
                look = inspect_readings(file, name)
                if len(look.nodes) > 1:
                    names = ", ".join(look.nodes[:5])
                    text = f"The file has readings of several nodes ({names}), and came from one: {node}."
                    raise HTTPError(422, text, "several-nodes")
                units = {about["name"]: about["sensors"] for about in context.app.store.nodes()}
                total, new = import_readings(file, name, sum_of(file.fileno()), context.app.ingestor, node, units)
        except BadFile as error:
            return _not_imported(context, name, error)
        except NotStored as error:
            raise HTTPError(
                503, f"Not all of it is stored: {error}. Import it again: that goes on where this ended.", "not-stored",
                {"Retry-After": "10"},
            ) from None  # fmt: skip
        finally:
            self._importing.release()
        return see_other(f"/files?file={name}&all={total}&new={new}")


def _pis(context: RequestContext) -> Mapping[str, Pi]:
    """Return every Pi by its id, with the present name of its node."""
    current = context.app.ingestor.names.current
    try:
        return {pi_id: pi._replace(node=current(pi.node)) for pi_id, pi in PiIds(context.app.data).all().items()}
    except SettingsError as error:
        raise HTTPError(503, f"{error}. Files are taken again when it does.", "pi-ids") from None


def _open(context: RequestContext, name: str) -> int:
    try:
        return open_stored(context.app.data, name)
    except OSError:
        raise HTTPError(404, "There is no file of that name; /files lists those that are.", "no-file") from None


def _not_imported(context: RequestContext, name: str, error: BadFile) -> Response:
    """Return the page about a file with wrong rows, of which nothing was stored."""
    if not context.request.wants_html:
        return text_page(f"{name} was not imported, nothing of it:\n{error}\n", 422)
    rows = join_html(Html("<li>{}</li>\n").format(line) for line in str(error).splitlines())
    body = Html(
        "<h1>Not imported</h1>\n<p>{name} has rows that do not read, so nothing of it was stored:</p>\n<ul>\n{rows}"
        '</ul>\n<p><a class="button" href="/files">Back to the files</a></p>'
    ).format(name=name, rows=rows)
    return html_page("Not imported", body, context, status=422)


def _imported(context: RequestContext, files: Iterable[StoredFile], pis: Mapping[str, Pi]) -> dict[str, int]:
    """Return how many readings of each file are stored, by its name."""
    found: dict[str, int] = {}
    of_node: dict[str, list[StoredFile]] = {}
    for one in files:
        of_node.setdefault(pis.get(one.pi_id, Pi(one.pi_id)).node, []).append(one)
    for node, own in of_node.items():
        marks = context.app.ingestor.marks(node, IMPORTED, {one.checksum[:16] for one in own})[1]
        found.update({one.name: marks[one.checksum[:16]].seq for one in own if one.checksum[:16] in marks})
    return found


def _notice(context: RequestContext) -> str:
    """Return the result of an import, as the redirect to this page has it; empty without one."""
    query = context.request.query
    counts = [query.get(key, "") for key in ("all", "new")]
    if "file" not in query or not all(_COUNT(text) for text in counts):
        return ""
    total, new = map(int, counts)
    what = "all" if new == total > 1 else f"{new:,}" if new else "none"
    return f"{query['file']}: {_readings(total)} stored, {what} new."


def _row(context: RequestContext, one: StoredFile, pis: Mapping[str, Pi], imported: int) -> Html:
    done = f"{imported:,} stored" if imported else ""
    may = context.role == "operator" or context.needs_key
    return Html(
        '<tr><td><a href="/files/{name}" download>{name}</a></td><td data-label="size">{size}</td>'
        '<td data-label="came">{time}</td><td data-label="from">{who}</td>'
        '<td data-label="SHA-256"><code title="{sum}">{short}</code></td>'
        '<td data-label="readings">{done}{button}</td></tr>\n'
    ).format(
        name=one.name, size=size(one.size), time=clock(one.time_ms, context.app.clock.wall_ms()),
        who=_sender_of(one, pis), sum=one.checksum, short=one.checksum[:12] or "–", done=done,
        button=button(f"/files/{one.name}/import", "Import", context, one.name) if may and not imported else "",
    )  # fmt: skip


def _line(context: RequestContext, one: StoredFile, pis: Mapping[str, Pi], imported: int) -> str:
    done = f", {_readings(imported)} stored" if imported else ""
    when = clock(one.time_ms, context.app.clock.wall_ms())
    return f"{when}  {one.name}  {size(one.size)}  from {_sender_of(one, pis)}{done}  {one.checksum}"


def _sender_of(one: StoredFile, pis: Mapping[str, Pi]) -> str:
    return pis[one.pi_id].node if one.pi_id in pis else f"{one.pi_id} (no longer accepted)"


def _readings(count: int) -> str:
    return "1 reading" if count == 1 else f"{count:,} readings"


def _files(count: int) -> str:
    return "The one file" if count == 1 else f"The {count} files"


def routes() -> list[Route]:
    """Return the routes of these pages."""
    files = FilesPage()
    return [
        Route("GET", "/files", "viewer", files.shown),
        Route("GET", "/files/WORD", "viewer", files.download),
        Route("POST", "/files/WORD/import", "operator", files.bring_in, changes=True),
    ]
