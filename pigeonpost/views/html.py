"""HTML, text and JSON responses: frame of a page with its menu, buttons, redirects.

Errors: HTTPError 400 for a request body that is not a JSON object.
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

# The meta element `referrer` is necessary for forms: with `no-referrer`, as in the header, browsers send `Origin: null`
# with them (Fetch standard, "append a request Origin header"), and the server would refuse each button as a request
# from another site. Other sites still receive no referrer.
_FRAME = Html(
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title} – Pigeonpost</title>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><meta name="referrer" content="same-origin">\n'
    '<link rel="icon" href="/favicon.svg" type="image/svg+xml"><link rel="stylesheet" href="/style.css">'
    '<script src="/script.js" defer></script></head>\n'
    '<body data-root="/"{live}>\n<header><a class="brand" href="/">{brand}</a>{nav}</header>\n'
    "<main>\n{body}\n</main>\n{foot}</body></html>\n"
)

# Address and label of each menu entry, and other addresses that belong to it.
_MENU = (
    ("/", "Dashboard"),
    ("/graphs", "Graphs", "/chart"),
    ("/logs", "Logs", "/log"),
    ("/files", "Files"),
    ("/alerts", "Alerts", "/alerts/rules"),
    ("/gaps", "Gaps"),
    ("/happenings", "Events"),
    ("/settings", "Preferences"),
    ("/about", "About", "/password"),
    ("/help", "Help"),
)

_KEY_NOTICE = Html(
    '<p class="notice">The buttons are disabled because this page was opened without the key. Open the address'
    " that the server printed when it started (<code>/?key=...</code>, new at each start), or set a password with"
    " <code>{}</code>.</p>"
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

    Args:
        title: Title of the browser window.
        body: Content.
        context: The request; None if the client is not signed in. The page then has no menu and no name of the server.
        live: True if the script keeps the page up to date.
        foot: Foot of the page; by default the time zone.
        status: HTTP status.
    """
    text = _FRAME.format(
        title=title, body=body, foot=foot or (_zone_foot(context) if context else ""),
        brand=f"Pigeonpost {context.app.name}" if context else "Pigeonpost",
        nav=_menu(context.request.path) if context else "",
        live=Html(' data-now="{}"').format(context.app.clock.wall_ms()) if live and context else "",
    )  # fmt: skip
    return Response(text.encode(), HTML, status, PAGE_HEADERS)


def _zone_foot(context: RequestContext) -> Html:
    """Return the default foot of a page: the time zone."""
    return Html("<footer>Time zone: {}.</footer>\n").format(zone_name(context.app.clock.wall_ms()))


def _menu(path: str) -> Html:
    """Return the menu. The entry of the current page is marked."""
    links = join_html((
        Html('<a href="{}"{}>{}</a>').format(
            to, Html(' aria-current="page"') if path == to or path in others else "", words)
        for to, words, *others in _MENU
    ), " ")  # fmt: skip
    return Html('<nav aria-label="Pages">{}</nav>').format(links)


def key_notice(context: RequestContext) -> Html:
    """Return the notice that all buttons are disabled without the key; empty if `context` needs no key."""
    return _KEY_NOTICE.format(password_command(context.app.data)) if context.needs_key else Html("")


def disabled(context: RequestContext, why: str = "") -> Html:
    """Return the attributes of a button that is disabled because `context` needs the key, or for the reason `why`.

    The result is empty if neither applies.
    """
    why = "Disabled: the page was opened without the key" if context.needs_key else why
    return Html(' title="{}" disabled').format(why) if why else Html("")


def text_page(text: str, status: int = 200, context: RequestContext | None = None) -> Response:
    """Return a page for a terminal.

    Args:
        text: Content.
        status: HTTP status.
        context: The request, if the page contains times: then its last line is the time zone.
    """
    foot = f"\nTime zone: {zone_name(context.app.clock.wall_ms())}.\n" if context else ""
    return Response(f"{text}{foot}".encode(), TEXT, status, PAGE_HEADERS)


def see_other(path: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a redirect (303) to `path` with `headers`. After it, reloading the page does not repeat the change."""
    return text_page(f"see {path}\n", 303)._replace(headers={**PAGE_HEADERS, "Location": path, **(headers or {})})


def json_answer(value: Any, status: int = 200) -> Response:
    """Return `value` as a JSON response with `status`."""
    return Response(write_json(value).encode() + b"\n", JSON, status, {"Cache-Control": "no-store"})


def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of `request`. Raises HTTPError 400 if there is none."""
    try:
        value = read_json(request.body.decode("utf-8").strip())
    except (BadArgument, UnicodeDecodeError) as error:
        raise HTTPError(400, f"The body is not valid JSON: {error}.", "json") from None
    if not isinstance(value, dict):
        raise HTTPError(400, "The body must be a JSON object.", "json")
    return value


# Pages contain the name of the user, so they must not be cached by proxies.
PAGE_HEADERS: Mapping[str, str] = {"Vary": "Accept", "Cache-Control": "no-store"}


def button(path: str, label: str, context: RequestContext, what: str = "", kind: str = "", off: str = "") -> Html:
    """Return a button that makes a change, in its own form.

    Args:
        path: Address of the POST request.
        label: Text on the button.
        context: The request.
        what: Text that screen readers read after the label.
        kind: CSS class.
        off: Reason why the button is disabled; empty if it is not.
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
    """Return links to other time ranges of the chart or the charts of a page.

    Args:
        links: Path and text of each link, and True for the range that is shown.
        what: "chart" or "charts", for screen readers.
    """
    anchors = join_html((
        Html('<a href="{}"{}>{}</a>').format(path, Html(' aria-current="true"') if is_shown else "", words)
        for path, words, is_shown in links
    ), " ")  # fmt: skip
    return Html('<nav class="spans" aria-label="Range of the {}">{}</nav>').format(what, anchors)


def sensor_path(node: str, sensor: str) -> str:
    """Return the path of the page of `sensor` of `node`.

    For sensors called `on`, `off` or `status` it ends with `.html`, because the path without it belongs to a button.
    """
    return f"/nodes/{node}/{sensor}{'.html' if sensor in ('on', 'off', 'status') else ''}"
