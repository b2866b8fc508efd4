"""Web page of the files that Pis have uploaded: list, downloads, and import of the readings.

The functions run in the threads of requests. `_importing` is held while a file is imported, so that only one file is
imported at a time. Errors: HTTPError.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping

from pigeonpost.compat.file_drop.storage import Pi, PiIds, StoredFile, listing, open_stored, sum_of
from pigeonpost.core.errors import NotStored, SettingsError
from pigeonpost.core.format import clock, counted, size
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
    """Handlers of the requests about uploaded files."""

    def __init__(self) -> None:
        self._importing = threading.Lock()

    def show(self, context: RequestContext) -> Response:
        """Return the page `/files` for the request `context`: the uploaded files, newest first."""
        data = context.app.data
        files, count = listing(data, SHOWN)
        pis = _pis(context)
        imported = _imported(context, files, pis)
        notice = _notice(context)
        number = counted(count, "file")
        lead = f"The newest {len(files)} of {number}" if count > len(files) else number
        lead = f"{lead} uploaded by Pis, newest first"
        if not context.request.wants_html:
            lines = [f"{lead}:" if files else "No Pi has sent a file yet.", ""]
            lines[:0] = [notice, ""] if notice else []
            lines += [_line(context, file, pis, imported.get(file.name, 0)) for file in files]
            return text_page("\n".join(lines) + "\n", context=context)
        if not files:
            body = Html(
                "<p>No Pi has sent a file yet. <code>control.py file-id HEX NODE</code> allows a Pi to send files.</p>"
            )
        else:
            rows = join_html(_row(context, file, pis, imported.get(file.name, 0)) for file in files)
            body = Html(
                '<p>{lead}.</p>\n<table class="nodes files"><thead><tr>'
                "<th>file</th><th>size</th><th>received</th><th>from</th><th>SHA-256</th><th>readings</th></tr></thead>\n"
                "<tbody>\n{rows}</tbody></table>{why}"
            ).format(lead=lead, rows=rows, why=key_notice(context))
        top = Html('<p class="notice" role="status">{}</p>\n').format(notice) if notice else ""
        return html_page("Files", Html("<h1>Files</h1>\n{}{}").format(top, body), context)

    def download(self, context: RequestContext) -> Response:
        """Return the uploaded file `/files/NAME` that the request `context` names, unchanged."""
        name = context.args[0]
        fd = _open(context, name)
        kind = _KINDS.get(os.path.splitext(name)[1].lower(), "text/plain; charset=utf-8")
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-cache"}
        return Response(kind=kind, headers=headers, file=FilePart(fd, 0, os.fstat(fd).st_size))

    def import_file(self, context: RequestContext) -> Response:
        """Import the readings of a file as samples of the Pi's node (`POST /files/NAME/import`).

        A repeated import stores no sample twice.

        Args:
            context: Context of the request.

        Returns:
            A redirect to the list of files, or the page with the errors in the file.

        Raises:
            HTTPError: 503: another file is being imported, or not all readings could be stored. 422: the file contains
                readings of several nodes. 404: there is no such file.
        """
        name = context.args[0]
        if not self._importing.acquire(blocking=False):
            raise HTTPError(503, "Another file is being imported. Try again in a moment.", "busy", {"Retry-After": "5"})
        try:
            with open(_open(context, name), "rb") as file:
                pi_id = name[:16]
                node = _pis(context).get(pi_id, Pi(pi_id)).node
                contents = inspect_readings(file, name)
                if len(contents.nodes) > 1:
                    names = ", ".join(contents.nodes[:5])
                    text = f"The file contains readings of several nodes ({names}), but its Pi is the node {node}."
                    raise HTTPError(422, text, "several-nodes")
                units = {about["name"]: about["sensors"] for about in context.app.store.nodes()}
                total, new = import_readings(file, name, sum_of(file.fileno()), context.app.ingestor, node, units)
        except BadFile as error:
            return _not_imported(context, name, error)
        except NotStored as error:
            raise HTTPError(
                503, f"The file was imported only in part: {error}. Import it again to continue.", "not-stored",
                {"Retry-After": "10"},
            ) from None  # fmt: skip
        finally:
            self._importing.release()
        return see_other(f"/files?file={name}&all={total}&new={new}")


def _pis(context: RequestContext) -> Mapping[str, Pi]:
    """Return every Pi by its id, with the current name of its node."""
    current = context.app.ingestor.names.current
    try:
        return {pi_id: pi._replace(node=current(pi.node)) for pi_id, pi in PiIds(context.app.data).all().items()}
    except SettingsError as error:
        raise HTTPError(503, f"{error}. Files are accepted again when this has been fixed.", "pi-ids") from None


def _open(context: RequestContext, name: str) -> int:
    try:
        return open_stored(context.app.data, name)
    except OSError:
        raise HTTPError(404, "There is no file with this name. The page /files lists all files.", "no-file") from None


def _not_imported(context: RequestContext, name: str, error: BadFile) -> Response:
    """Return the page about a file with invalid rows, none of whose readings were stored."""
    if not context.request.wants_html:
        return text_page(f"{name} was not imported, because it has invalid rows:\n{error}\n", 422)
    rows = join_html(Html("<li>{}</li>\n").format(line) for line in str(error).splitlines())
    body = Html(
        "<h1>Not imported</h1>\n<p>{name} was not imported, because it has invalid rows:</p>\n<ul>\n{rows}"
        '</ul>\n<p><a class="button" href="/files">Back to the files</a></p>'
    ).format(name=name, rows=rows)
    return html_page("Not imported", body, context, status=422)


def _imported(context: RequestContext, files: Iterable[StoredFile], pis: Mapping[str, Pi]) -> dict[str, int]:
    """Return the number of stored readings of each file, by the name of the file."""
    found: dict[str, int] = {}
    of_node: dict[str, list[StoredFile]] = {}
    for file in files:
        of_node.setdefault(pis.get(file.pi_id, Pi(file.pi_id)).node, []).append(file)
    for node, own_files in of_node.items():
        marks = context.app.ingestor.marks(node, IMPORTED, {file.checksum[:16] for file in own_files})[1]
        found.update({file.name: marks[file.checksum[:16]].seq for file in own_files if file.checksum[:16] in marks})
    return found


def _notice(context: RequestContext) -> str:
    """Return the result of an import from the query of a redirect to this page, or an empty string."""
    query = context.request.query
    counts = [query.get(key, "") for key in ("all", "new")]
    if "file" not in query or not all(_COUNT(text) for text in counts):
        return ""
    total, new = map(int, counts)
    new_text = "all" if new == total > 1 else f"{new:,}" if new else "none"
    return f"{query['file']}: {_reading_count(total)} stored, {new_text} new."


def _row(context: RequestContext, file: StoredFile, pis: Mapping[str, Pi], imported: int) -> Html:
    done = f"{imported:,} stored" if imported else ""
    can_import = (context.role == "operator" or context.needs_key) and not imported
    return Html(
        '<tr><td><a href="/files/{name}" download>{name}</a></td><td data-label="size">{size}</td>'
        '<td data-label="received">{time}</td><td data-label="from">{who}</td>'
        '<td data-label="SHA-256"><code title="{sum}">{short}</code></td>'
        '<td data-label="readings">{done}{button}</td></tr>\n'
    ).format(
        name=file.name, size=size(file.size), time=clock(file.time_ms, context.app.clock.wall_ms()),
        who=_sender_of(file, pis), sum=file.checksum, short=file.checksum[:12] or "–", done=done,
        button=button(f"/files/{file.name}/import", "Import", context, file.name) if can_import else "",
    )  # fmt: skip


def _line(context: RequestContext, file: StoredFile, pis: Mapping[str, Pi], imported: int) -> str:
    done = f", {_reading_count(imported)} stored" if imported else ""
    when = clock(file.time_ms, context.app.clock.wall_ms())
    return f"{when}  {file.name}  {size(file.size)}  from {_sender_of(file, pis)}{done}  {file.checksum}"


def _sender_of(file: StoredFile, pis: Mapping[str, Pi]) -> str:
    return pis[file.pi_id].node if file.pi_id in pis else f"{file.pi_id} (no longer accepted)"


def _reading_count(count: int) -> str:
    return counted(count, "reading")


def routes() -> list[Route]:
    """Return the routes of these pages."""
    files = FilesPage()
    return [
        Route("GET", "/files", "viewer", files.show),
        Route("GET", "/files/WORD", "viewer", files.download),
        Route("POST", "/files/WORD/import", "operator", files.import_file, changes=True),
    ]
