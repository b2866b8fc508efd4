"""Login page, password page, and error pages. Passwords and sessions are checked by webui."""

from __future__ import annotations

from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import HTTPError, Request, Response
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import PAGE_HEADERS, html_page, json_answer, text_page
from pigeonpost.web.access import no_password, password_command


def login_page(context: RequestContext, said: str = "", status: int = 200) -> Response:
    """`/login`. said: the fault of the last attempt."""
    request = context.request
    if context.app.users.are_none():
        return _refusal(request, no_password(context.app.data), status)
    if not request.wants_html:
        how = "Log in with a browser; on the server's own machine, control.py needs no password."
        return text_page(f"{said or 'This server asks for a password.'}\n{how}\n", status)
    body = Html(
        '<h1>Log in</h1>\n{}<form method="post" action="/login" class="login"><label>User '
        '<input name="user" value="admin" autocomplete="username" maxlength="63" required></label><label>Password '
        '<input name="password" type="password" autocomplete="current-password" maxlength="1024" required autofocus>'
        "</label><button>Log in</button></form>"
    ).format(Html('<p class="notice bad" role="alert">{}</p>\n').format(said) if said else "")
    return html_page("Log in", body, status=status)


def password_page(context: RequestContext, said: str = "", status: int = 200) -> Response:
    """`/password`. said: the fault of the last attempt."""
    users = context.app.users
    if not context.request.wants_html:
        return text_page(f"{said or 'The password is changed with a browser, or: control.py password.'}\n", status)
    if users.find(context.user) is None:
        body = Html(
            "<h1>Password</h1>\n<p>You came in without a password. On the server's own machine, this sets one:</p>\n"
            "<pre>{}</pre>"
        ).format(password_command(context.app.data))
        return html_page("Password", body, context)
    notice = Html('<p class="notice bad" role="alert">{}</p>\n').format(said) if said else ""
    body = Html(
        "<h1>Change the password of {user}</h1>\n{notice}<p>Everybody else who is logged in as {user} is logged out by"
        ' this.</p>\n<form method="post" action="/password" class="login"><input type="hidden" name="csrf"'
        ' value="{csrf}"><input type="hidden" name="user" value="{user}" autocomplete="username">'
        '<label>Old password <input name="old" type="password" autocomplete="current-password" maxlength="1024"'
        ' required></label><label>New password <input name="new" type="password" autocomplete="new-password"'
        ' minlength="8" maxlength="1024" required></label><label>Repeat the new password <input name="again"'
        ' type="password" autocomplete="new-password" minlength="8" maxlength="1024" required></label>'
        "<button>Change password</button></form>"
    ).format(user=context.user, notice=notice, csrf=context.csrf)
    return html_page("Password", body, context, status=status)


def password_changed(context: RequestContext) -> Response:
    """Return the page after `POST /password`."""
    if not context.request.wants_html:
        return text_page("The password is changed.\n")
    body = Html(
        "<h1>The password is changed</h1>\n<p>This browser stays logged in; every other one logs in anew.</p>\n"
        '<p><a class="button" href="/">To the front page</a></p>'
    )
    return html_page("Password", body, context)


def refusal_page(request: Request | None, refusal: HTTPError) -> Response:
    """Return an error as the client can read it: JSON for programs, HTML for browsers, else a line of text."""
    headers = dict(PAGE_HEADERS) | dict(refusal.headers)
    if request is not None and request.path.startswith("/api/"):
        told = {"error": {"code": refusal.code, "text": refusal.text}}
        return json_answer(told, refusal.status)._replace(headers=headers)
    if request is None or not request.wants_html:
        return text_page(f"{refusal.text}\n", refusal.status)._replace(headers=headers)
    return _refusal(request, refusal.text, refusal.status, refusal.code)._replace(headers=headers)


def _refusal(request: Request, text: str, status: int, code: str = "") -> Response:
    """Return a page or a text of lines. The first is the title; those that begin with four blanks are commands."""
    if not request.wants_html:
        return text_page(f"{text}\n", status)
    title, *lines = text.split("\n")
    more = join_html(
        Html("\n<pre>{}</pre>").format(line.strip()) if line.startswith("    ") else Html("\n<p>{}</p>").format(line)
        for line in lines
    )
    link = ("/login", "Log in") if code == "password-set" else ("/", "To the front page")
    body = Html('<h1>{}</h1>{}\n<p><a href="{}">{}</a></p>').format(title, more, *link)
    return html_page(str(status), body, status=status)
