"""Help page (`/help`): buttons and terms of the pages, adding a node, location of the data, and the manual.

Errors: HTTPError for an unknown page of the manual.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.views import manual
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import html_page, text_page
from pigeonpost.web.access import password_command

_BUTTONS = (
    ("Sensor On, Sensor Off", "start and stop sampling on a node; its stored samples are still delivered"),
    ("Status", "asks a node for its status, and shows the reply on the node's page"),
    ("Log Check", "shows the last ten samples of this run"),
    ("Log Download", "downloads the log of this run as CSV, for any spreadsheet"),
    ("Exit", "stops this server after a confirmation; the nodes keep sampling, and keep their samples"),
)
_WORDS = (
    ("node", "a computer with sensors, on which node.py runs"),
    ("sample", "the readings that a node took at one time, with a unique number"),
    ("outbox", "a file on the node's card with its latest samples, from which servers collect"),
    ("missing", "samples that are permanently lost; the Gaps page lists them with the reasons"),
    ("late", "a node from which nothing has arrived for three intervals, or a value that arrived late"),
    ("stale", "a value that is not current: its node is late, or sends an old backlog"),
    ("simulated", "a value that no sensor measured: the node was started with --simulate or --demo"),
    ("reporting", "its samples arrive on time, with any error of its clock"),
)
_MANUAL = (
    ("tutorial.md", "Tutorial: from a demonstration to two Pis that start at boot"),
    ("sensors.md", "Sensors: chips, commands, services, formulas, limits"),
    ("settings.md", "Settings of both programs"),
    ("data.md", "Back up, restore, import and export the data"),
    ("alerts.md", "Alerts by e-mail, on a phone or in a chat; reports"),
    ("web.md", "Pages, JSON API, metrics, users and permissions"),
    ("limits.md", "Limits, with their reasons"),
)


def help_page(context: RequestContext) -> Response:
    """Return the help page for `context`: `/help`."""
    shipped = manual.pages()
    listed = [(name, words) for name, words in _MANUAL if name in shipped]
    if not context.request.wants_html:
        return text_page("\n".join(_text(context, listed)) + "\n")
    body = Html(
        "<h1>Help</h1>\n<h2>Buttons</h2>\n{buttons}<h2>Terms</h2>\n{words}"
        "<h2>Add a node</h2>\n<p>Copy the folder of Pigeonpost to the other computer, and start the node there:</p>\n"
        "<pre>python3 node.py --name NAME</pre>\n<p>It prints the address on which it listens. Start this server with"
        " that address, or add it to <code>nodes</code> in <code>server.toml</code>:</p>\n"
        "<pre>python3 server.py --node NAME@HOST:5003</pre>\n"
        '<h2>Where the data is</h2>\n<p>In the folder <code>{data}</code> on the server: the database, and one CSV'
        ' <a href="/logs">log</a> per run. To make a backup of all data:</p>\n<pre>{backup}</pre>\n'
        "<h2>Password</h2>\n<p>With a password, these pages can be used from other computers. To set one:</p>\n"
        "<pre>{password}</pre>\n"
        "{manual}"
    ).format(
        buttons=_terms(_BUTTONS), words=_terms(_WORDS), data=context.app.data, backup=_backup_command(context),
        password=password_command(context.app.data), manual=_manual(listed),
    )  # fmt: skip
    return html_page("Help", body, context)


def manual_page(context: RequestContext) -> Response:
    """Return a page of the manual for `context`: `/help/NAME.md`.

    Raises HTTPError 404 if it is missing or unreadable.
    """
    name, known = context.args[0], manual.pages()
    if name not in known:  # so no path leads out of the folder
        raise HTTPError(404, "The manual has no page with that name; /help lists all pages.", "no-page")
    try:
        text = manual.read_page(name)
    except OSError as error:
        raise HTTPError(404, f"That page cannot be read: {error.strerror}.", "no-page") from None
    if not context.request.wants_html:
        return text_page(text)
    body = Html('<p class="links"><a href="/help">Help</a></p>\n<article class="manual">{}</article>').format(
        manual.render(text, known)
    )
    return html_page(name, body, context)


def _terms(terms: tuple[tuple[str, str], ...]) -> Html:
    return Html('<table class="facts"><tbody>{}</tbody></table>\n').format(
        join_html(Html("<tr><th>{}</th><td>{}</td></tr>\n").format(*term) for term in terms)
    )


def _manual(listed: list[tuple[str, str]]) -> Html:
    if not listed:
        return Html("<h2>Manual</h2>\n<p>The manual is in the folder <code>docs</code> of the source code.</p>")
    return Html('<h2>Manual</h2>\n<ul class="ways">{}</ul>').format(
        join_html(Html('<li><a href="/help/{}">{}</a></li>\n').format(*page) for page in listed)
    )


def _backup_command(context: RequestContext) -> str:
    return password_command(context.app.data).removesuffix("password") + "backup FILE"


def _text(context: RequestContext, listed: list[tuple[str, str]]) -> Iterator[str]:
    for title, terms in (("BUTTONS", _BUTTONS), ("TERMS", _WORDS)):
        yield title
        for name, words in terms:
            yield from textwrap.wrap(words, 79, initial_indent=f"  {name:<24}", subsequent_indent=" " * 26)
        yield ""
    yield "ADD A NODE"
    yield "  python3 node.py --name NAME                  on the other computer"
    yield "  python3 server.py --node NAME@HOST:5003      on this one"
    yield ""
    yield f"The data is in {context.app.data}; backup: {_backup_command(context)}"
    if listed:
        yield ""
        yield "MANUAL"
        yield from (f"  {context.request.site}/help/{name:<14}{words}" for name, words in listed)


ROUTES = (
    Route("GET", "/help", "viewer", help_page),
    Route("GET", "/help/WORD", "viewer", manual_page),
)
