"""HTML, text and JSON responses: the frame of a page, buttons, redirects.

Errors: HTTPError 400 for a request body that is no JSON object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pigeonpost.core.errors import BadArgument
from pigeonpost.core.format import zone_name
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.strict_json import read_json, write_json
from pigeonpost.http.message import HTML, JSON, TEXT, HTTPError, Request, Response
from pigeonpost.views.context import RequestContext
from pigeonpost.web.access import password_command

# The meta element named referrer: under `no-referrer`, as the header has it, browsers say `Origin: null` with our own
# forms (Fetch standard, "append a request Origin header"), and AccessControl would take each button for another site's.
# Other sites still hear nothing.
_FRAME = Html(
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title} – Pigeonpost</title>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><meta name="referrer" content="same-origin">\n'
    '<link rel="icon" href="/favicon.svg" type="image/svg+xml"><link rel="stylesheet" href="/style.css">'
    '<script src="/script.js" defer></script></head>\n'
    '<body data-root="/"{live}>\n<header><a class="brand" href="/">{brand}</a>{nav}</header>\n'
    "<main>\n{body}\n</main>\n{foot}</body></html>\n"
)

# Address and words of each part; then other addresses of pages that belong to it.
_MENU = (
    ("/", "Now"),
    ("/graphs", "Graphs", "/chart"),
    ("/logs", "Logs", "/log"),
    ("/files", "Files"),
    ("/gaps", "Gaps"),
    ("/happenings", "Events"),
    ("/settings", "Preferences"),
    ("/about", "About", "/password"),
    ("/help", "Help"),
)

_KEY_NOTICE = Html(
    '<p class="notice">Buttons are disabled, as this page was opened without the key. Open the address that the'
    " server printed when it started (<code>/?key=...</code>, a new one at each start), or set a password:"
    " <code>{}</code></p>"
)


def html_page(
    title: str,
    body: Html,
    context: RequestContext | None = None,
    live: bool = False,
    foot: object = "",
    status: int = 200,
) -> Response:
    """Return an HTML page.

    context  the request; None: the client is not signed in, and sees nothing of the server
    live     the script keeps the page up to date
    """
    text = _FRAME.format(
        title=title, body=body, foot=foot or (_zone_foot(context) if context else ""),
        brand=f"Pigeonpost {context.app.name}" if context else "Pigeonpost",
        nav=_menu(context.request.path) if context else "",
        live=Html(' data-now="{}"').format(context.app.clock.wall_ms()) if live and context else "",
    )  # fmt: skip
    return Response(text.encode(), HTML, status, PAGE_HEADERS)


def _zone_foot(context: RequestContext) -> Html:
    """Return the foot of a page that has no other: the zone of its times."""
    return Html("<footer>Times are {}.</footer>\n").format(zone_name(context.app.clock.wall_ms()))


def _menu(path: str) -> Html:
    """Return the links to all parts of the page, with that of the shown page marked."""
    links = join_html((
        Html('<a href="{}"{}>{}</a>').format(
            to, Html(' aria-current="page"') if path == to or path in others else "", words)
        for to, words, *others in _MENU
    ), " ")  # fmt: skip
    return Html('<nav aria-label="Pages">{}</nav>').format(links)


def key_notice(context: RequestContext) -> Html:
    """Return why all buttons are disabled, to stand directly below them; nothing where they are not."""
    return _KEY_NOTICE.format(password_command(context.app.data)) if context.needs_key else Html("")


def disabled(context: RequestContext, why: str = "") -> Html:
    """Return the attributes of a button that cannot be pressed: without the key none can, else for the reason `why`."""
    why = "Disabled: the page was opened without the key" if context.needs_key else why
    return Html(' title="{}" disabled').format(why) if why else Html("")


def text_page(text: str, status: int = 200) -> Response:
    """Return a text page for a terminal."""
    return Response(text.encode(), TEXT, status, PAGE_HEADERS)


def see_other(path: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a redirect (303) after a change, so that reloading the page at `path` repeats nothing."""
    return text_page(f"see {path}\n", 303)._replace(headers={**PAGE_HEADERS, "Location": path, **(headers or {})})


def json_answer(value: Any, status: int = 200) -> Response:
    """Return `value` as a JSON response."""
    return Response(write_json(value).encode() + b"\n", JSON, status, {"Cache-Control": "no-store"})


def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raises HTTPError 400 when it is none."""
    try:
        value = read_json(request.body.decode("utf-8").strip())
    except (BadArgument, UnicodeDecodeError) as error:
        raise HTTPError(400, f"The body does not read as JSON: {error}.", "json") from None
    if not isinstance(value, dict):
        raise HTTPError(400, "The body is a JSON object.", "json")
    return value


# Pages carry who is logged in, so nobody between keeps them.
PAGE_HEADERS: Mapping[str, str] = {"Vary": "Accept", "Cache-Control": "no-store"}


def button(path: str, label: str, context: RequestContext, what: str = "", kind: str = "", off: str = "") -> Html:
    """Return a button for a change: a form of its own. `what` is added for screen readers.

    off  why it is disabled; empty: it is not
    """
    return Html(
        '<form method="post" action="{path}"><input type="hidden" name="csrf" value="{csrf}">'
        '<button class="{kind}"{label}{off}>{text}</button></form>'
    ).format(
        path=path, csrf=context.csrf, kind=kind, text=label,
        label=Html(' aria-label="{}"').format(f"{label}, {what}") if what else "",
        off=disabled(context, off),
    )  # fmt: skip


def span_links(links: Iterable[tuple[str, str, bool]], what: str) -> Html:
    """Return links to other spans of `what`, the chart or the charts of a page.

    links  path and words of each, and whether it is the span that is shown
    """
    anchors = join_html((
        Html('<a href="{}"{}>{}</a>').format(path, Html(' aria-current="true"') if is_shown else "", words)
        for path, words, is_shown in links
    ), " ")  # fmt: skip
    return Html('<nav class="spans" aria-label="Span of the {}">{}</nav>').format(what, anchors)


def sensor_path(node: str, sensor: str) -> str:
    """Return the path of a sensor's page. Three of these paths belong to buttons of its node."""
    return f"/nodes/{node}/{sensor}{'.html' if sensor in ('on', 'off', 'status') else ''}"
