"""Saved charts, called graphs on the pages. Each one is visible to its owner, or to all users if it is shared.

They are in `graphs.json` in the data folder. `_lock` guards the file, and is held while it is read or written.
Errors: HTTPError. A file that cannot be read is left unchanged, and no charts can be saved.

A saved chart consists of a name and the query of `/chart`, which is checked when the chart is saved and when the file
is read. While no password is set, there is only one user.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pigeonpost.core.data_folder import SAVED_CHARTS
from pigeonpost.core.errors import DiskError
from pigeonpost.core.files import replace_file
from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import HTTPError, Response, form_of
from pigeonpost.views.chart import plain_query
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import button, disabled, html_page, json_answer, key_notice, see_other, text_page
from pigeonpost.web.access import LOCAL, ONE_TIME_KEY

MOST_OF_ONE, MOST = 50, 1000
_NAME_LETTERS, _QUERY_LETTERS = 60, 1200
_MOST_BYTES = 4 << 20  # a longer file was not written by this program


class SavedChart(NamedTuple):
    """A saved chart.

    Attributes:
        id: Random identifier, used in addresses.
        user: Name of its owner.
        name: Name for people.
        query: Query of `/chart`, as plain_query returns it.
        shared: True if all users can see it.
    """

    id: str
    user: str
    name: str
    query: str
    shared: bool


class SavedCharts:
    """All saved charts, and the functions of their routes."""

    def __init__(self, data: str) -> None:
        self._path = os.path.join(data, SAVED_CHARTS)
        self._lock = threading.Lock()
        self._graphs: dict[str, SavedChart] | None = None

    # -------------------------------------------------------------------------------------------------------- reading

    def shown(self, context: RequestContext) -> Response:
        """Return the page with the user's own charts and the shared ones, for `context`: `/graphs`."""
        own, others = self._seen_by(context)
        if not context.request.wants_html:
            return text_page("\n".join(_text(context, own, others)) + "\n")
        body = Html("<h1>Saved graphs</h1>\n{}{}").format(
            _own(context, own),
            Html("<h2>Shared by others</h2>\n<ul>{}</ul>").format(
                join_html(Html("<li>{}, by {}</li>\n").format(_link(one), one.user) for one in others)
            ) if others else "",
        )  # fmt: skip
        return html_page("Saved graphs", body, context)

    def as_json(self, context: RequestContext) -> Response:
        """Return the user's own charts and the shared ones as JSON, for `context`: `/graphs.json`."""
        own, others = self._seen_by(context)
        chart = f"{context.request.prefix}/chart"
        return json_answer({"graphs": [
            {"id": one.id, "name": one.name, "chart": f"{chart}?{one.query}", "owner": one.user, "shared": one.shared}
            for one in (*own, *others)
        ]})  # fmt: skip

    def opened(self, context: RequestContext) -> Response:
        """Return a redirect to the chart, for `context`: `/graphs/ID`.

        Raises HTTPError 404 if it does not exist, or neither is shared nor belongs to the user.
        """
        graph = self._all().get(context.args[0])
        if graph is None or not (graph.shared or graph.user == _owner(context)):
            raise HTTPError(404, "There is no such graph, or it is not shared with you.", "no-graph")
        return see_other(f"/chart?{graph.query}")

    # -------------------------------------------------------------------------------------------------------- changes

    def save(self, context: RequestContext) -> Response:
        """Save a chart for `context`: `POST /graphs` with `name` and `query`. Return a redirect.

        Raises HTTPError 400 for an invalid query, 409 if the name is in use or there are too many.
        """
        fields = form_of(context.request)
        name, query = _name(fields.get("name", "")), plain_query(fields.get("query", ""))
        if len(query) > _QUERY_LETTERS:
            raise HTTPError(400, "The query of this graph is too long.", "query")

        def change(graphs: dict[str, SavedChart]) -> None:
            own = [one for one in graphs.values() if one.user == _owner(context)]
            if any(one.name == name for one in own):
                raise HTTPError(409, "You already have a graph with that name; rename or delete it on /graphs.", "name")
            if len(own) >= MOST_OF_ONE or len(graphs) >= MOST:
                raise HTTPError(
                    409,
                    f"At most {MOST_OF_ONE} graphs per user, and {MOST} in all, can be saved; delete one first.",
                    "full",
                )
            id = secrets.token_hex(8)
            graphs[id] = SavedChart(id, _owner(context), name, query, False)

        return self._changed(change)

    def rename(self, context: RequestContext) -> Response:
        """Rename a chart for `context`: `POST /graphs/ID/rename` with `name`. Return a redirect.

        Raises HTTPError 409 if the name is in use.
        """
        name = _name(form_of(context.request).get("name", ""))

        def change(graphs: dict[str, SavedChart]) -> None:
            graph = _mine(graphs, context)
            if any(one.name == name and one.user == _owner(context) and one.id != graph.id for one in graphs.values()):
                raise HTTPError(409, "You already have a graph with that name.", "name")
            graphs[graph.id] = graph._replace(name=name)

        return self._changed(change)

    def delete(self, context: RequestContext) -> Response:
        """Delete a chart for `context`: `POST /graphs/ID/delete`. Return a redirect."""
        return self._changed(lambda graphs: graphs.pop(_mine(graphs, context).id))

    def share(self, context: RequestContext) -> Response:
        """Make a chart visible to all users, for `context`: `POST /graphs/ID/share`. Return a redirect."""
        return self._sharing(context, True)

    def unshare(self, context: RequestContext) -> Response:
        """Make a chart visible to its owner only, for `context`: `POST /graphs/ID/unshare`. Return a redirect."""
        return self._sharing(context, False)

    def _sharing(self, context: RequestContext, shared: bool) -> Response:
        def change(graphs: dict[str, SavedChart]) -> None:
            graph = _mine(graphs, context)
            graphs[graph.id] = graph._replace(shared=shared)

        return self._changed(change)

    # ------------------------------------------------------------------------------------------------------- the file

    def _changed(self, change: Callable[[dict[str, SavedChart]], object]) -> Response:
        """Apply `change` to a copy of the list, which replaces the list once it is durable."""
        with self._lock:
            graphs = dict(self._read())
            change(graphs)
            text = json.dumps({"graphs": [one._asdict() for one in graphs.values()]}, ensure_ascii=False, indent=1)
            try:
                replace_file(self._path, text.encode())
            except DiskError as error:
                raise HTTPError(503, f"Nothing was changed: {error}.", "disk", {"Retry-After": "10"}) from None
            self._graphs = graphs
        return see_other("/graphs")

    def _all(self) -> dict[str, SavedChart]:
        with self._lock:
            return self._read()

    def _read(self) -> dict[str, SavedChart]:
        if self._graphs is None:
            try:
                with open(self._path, "rb") as file:
                    content = file.read(_MOST_BYTES + 1)
                found = list(self._decoded(content))
            except FileNotFoundError:
                found = []
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                text = (
                    f"{self._path} cannot be read ({type(error).__name__}); move it away, or restore it from a backup."
                )
                raise HTTPError(503, text, "graphs") from None
            self._graphs = {graph.id: graph for graph in found}
        return self._graphs

    def _decoded(self, content: bytes) -> Iterator[SavedChart]:
        """Decode the file. Raises any error if it is in another format."""
        if len(content) > _MOST_BYTES:
            raise ValueError("too long")
        for one in json.loads(content)["graphs"]:
            graph = SavedChart(**one)
            if not all(isinstance(text, str) for text in graph[:4]) or type(graph.shared) is not bool:
                raise ValueError("not a graph")
            yield graph._replace(query=plain_query(graph.query), user=_one_owner(graph.user))

    def _seen_by(self, context: RequestContext) -> tuple[list[SavedChart], list[SavedChart]]:
        """Return the user's own charts and those shared by others, sorted by name."""
        found = sorted(self._all().values(), key=lambda one: one.name.casefold())
        own = [one for one in found if one.user == _owner(context)]
        return own, [one for one in found if one.shared and one.user != _owner(context)]


def _mine(graphs: dict[str, SavedChart], context: RequestContext) -> SavedChart:
    graph = graphs.get(context.args[0])
    if graph is None or graph.user != _owner(context):
        raise HTTPError(404, "You have no such graph.", "no-graph")
    return graph


def _owner(context: RequestContext) -> str:
    return _one_owner(context.user)


def _one_owner(user: str) -> str:
    """Return the owner of charts that `user` saves: the same with the one-time key as without it."""
    return LOCAL.name if user == ONE_TIME_KEY else user


def _name(text: str) -> str:
    """Return a normalised name. Raises HTTPError if it is too long or not printable."""
    name = " ".join(text.split())
    if not 1 <= len(name) <= _NAME_LETTERS or not name.isprintable():
        raise HTTPError(400, f"A name must have 1 to {_NAME_LETTERS} printable characters.", "name")
    return name


def _own(context: RequestContext, graphs: Iterable[SavedChart]) -> Html:
    where = f"{context.request.prefix}/graphs"
    rows = join_html(
        Html(
            '<tr><th scope=row>{link}</th><td><form class="fields" method="post" action="/graphs/{id}/rename">'
            '<input type="hidden" name="csrf" value="{csrf}"><input name="name" maxlength="60" value="{name}" required'
            ' aria-label="New name of {name}"><button{off}>Rename</button></form></td>'
            '<td><div class="buttons small">{share}{delete}</div>{address}</td></tr>\n'
        ).format(
            link=_link(one), id=one.id, csrf=context.csrf, name=one.name,
            off=disabled(context),
            share=button(f"/graphs/{one.id}/{'unshare' if one.shared else 'share'}",
                         "Stop sharing" if one.shared else "Share", context, one.name),
            delete=button(f"/graphs/{one.id}/delete", "Delete", context, one.name),
            address=Html("<small>shared as <code>{}/{}</code></small>").format(where, one.id) if one.shared else "",
        )
        for one in graphs
    )  # fmt: skip
    if not rows:
        return Html(
            '<p>You have not saved any graphs yet. To save one, open a sensor on <a href="/">the front page</a>,'
            " then its chart.</p>\n"
        )
    return Html(
        '<table class="graphs"><thead><tr><th>graph</th><th>name</th><td></td></tr></thead>'
        "<tbody>\n{}</tbody></table>\n{}"
    ).format(rows, key_notice(context))


def _link(graph: SavedChart) -> Html:
    return Html('<a href="/graphs/{}">{}</a>').format(graph.id, graph.name)


def _text(context: RequestContext, own: Iterable[SavedChart], others: Iterable[SavedChart]) -> Iterator[str]:
    site = context.request.site
    lines = [f"{one.name}{', shared' if one.shared else ''}\n  {site}/chart?{one.query}" for one in own]
    lines += [f"{one.name}, shared by {one.user}\n  {site}/graphs/{one.id}" for one in others]
    yield from lines or ["No graph is saved yet."]
