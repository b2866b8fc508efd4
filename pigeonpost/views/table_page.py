"""Page that consists of one table: as HTML, as text for a terminal, as JSON and as CSV, from the same rows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.format import aligned
from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import Response
from pigeonpost.storage.csv.format import cell
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import html_page, json_answer, text_page

_WIDTH = 79  # columns of a terminal
_SHORT = 12  # a cell with up to this number of characters, such as `156.1 KiB`, is not wrapped


class TablePage(NamedTuple):
    """Content of a page with one table.

    Attributes:
        title: Heading.
        lead: One or two sentences below the heading.
        head: Titles of the columns.
        rows: Rows for people; every cell is a text.
        keys: Names of the columns for programs, in JSON and CSV.
        data: Rows for programs; cells are values.
        none: Text that is shown instead of an empty table.
        links: Address to which the first cell of each row is linked; empty for no links.
        more: Further content of the HTML page, above the table.
        live: True if the script keeps the open page up to date.
    """

    title: str
    lead: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: Sequence[str]
    data: Sequence[Sequence[Any]]
    none: str
    links: Sequence[str] = ()
    more: Html = Html("")
    live: bool = False


def render_table(context: RequestContext, listing: TablePage) -> Response:
    """Return the table `listing` for `context`: JSON or CSV if the address ends so, otherwise HTML or text."""
    path = context.request.path
    if path.endswith(".json"):
        name = path.rpartition("/")[2].removesuffix(".json")
        return json_answer({name: [dict(zip(listing.keys, row)) for row in listing.data]})
    if path.endswith(".csv"):
        return csv_answer(listing.keys, listing.data)
    if not context.request.wants_html:
        return text_page("\n".join([textwrap.fill(listing.lead, _WIDTH), "", *_lines(listing)]) + "\n", context=context)
    piece = Html('<div data-piece="list"><p>{}</p>\n{}</div>').format(listing.lead, _table(listing))
    body = Html("<h1>{}</h1>\n{}{}\n{}").format(
        listing.title, listing.more, piece, other_forms(context, ".json", ".csv")
    )
    return html_page(listing.title, body, context, live=listing.live)


def _lines(listing: TablePage) -> list[str]:
    """Return the table for a terminal. If it is too wide, the last cell of each row gets its own line."""
    if not listing.rows:
        return [listing.none]
    sides = "<" * len(listing.head)
    whole = aligned(listing.head, listing.rows, sides)
    if max(map(len, whole)) <= _WIDTH:
        return whole
    narrow = aligned(listing.head[:-1], [row[:-1] for row in listing.rows], sides[:-1])
    lines = narrow[:1]
    for line, row in zip(narrow[1:], listing.rows):
        lines += [line, *textwrap.wrap(row[-1], _WIDTH, initial_indent="    ", subsequent_indent="    ")]
    return lines


def _table(listing: TablePage) -> Html:
    if not listing.rows:
        return Html("<p>{}</p>").format(listing.none)
    links = listing.links or [""] * len(listing.rows)
    rows = join_html(
        Html("<tr>{}</tr>\n").format(join_html(
            Html('<td data-label="{}"{}>{}</td>').format(
                label, Html(' class="short"') if len(value) <= _SHORT else "",
                _linked(value, link if place == 0 else ""))
            for place, (label, value) in enumerate(zip(listing.head, row))
        ))
        for row, link in zip(listing.rows, links)
    )  # fmt: skip
    head = join_html(Html("<th>{}</th>").format(text) for text in listing.head)
    return Html('<table class="list"><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>').format(head, rows)


def _linked(text: str, link: str) -> Html:
    return Html('<a href="{}">{}</a>').format(link, text) if link else Html("{}").format(text)


def other_forms(context: RequestContext, *suffixes: str) -> Html:
    """Return links to the page of `context` in the formats for programs, one per address suffix in `suffixes`."""
    path, prefix = context.request.path, context.request.prefix
    link = Html('<a href="{0}{1}">{2}{0}{1}</a>')
    links = join_html((link.format(path, suffix, prefix) for suffix in suffixes), ", ")
    return Html('<p class="links">For programs: {}</p>').format(links)


def csv_answer(keys: Sequence[str], rows: Iterable[Sequence[Any]]) -> Response:
    """Return `rows` with the head `keys` as CSV (RFC 4180), in which no text is a formula."""
    lines = [",".join(keys), *(",".join(map(_cell, row)) for row in rows)]
    return Response(
        ("\n".join(lines) + "\n").encode(), "text/csv; charset=utf-8", headers={"Cache-Control": "no-store"}
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping | list | tuple):
        return cell(str(value))
    return cell(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
