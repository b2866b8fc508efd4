"""Login page, password page, and error pages. The module webui checks passwords and sessions."""

from __future__ import annotations

from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import HTTPError, Request, Response
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import PAGE_HEADERS, html_page, json_answer, text_page
from pigeonpost.web.access import no_password, password_command


def login_page(context: RequestContext, fault: str = "", status: int = 200) -> Response:
    """Return the login page with `status` for `context`: `/login`. `fault` is the error of the last attempt."""
    request = context.request
    if context.app.users.are_none():
        return _refusal(request, no_password(context.app.data), status)
    if not request.wants_html:
        how = "Log in with a browser. On the server's machine, control.py needs no password."
        return text_page(f"{fault or 'This server requires a password.'}\n{how}\n", status)
    body = Html(
        '<h1>Log in</h1>\n{}<form method="post" action="/login" class="login"><label>User '
        '<input name="user" value="admin" autocomplete="username" maxlength="63" required></label><label>Password '
        '<input name="password" type="password" autocomplete="current-password" maxlength="1024" required autofocus>'
        "</label><button>Log in</button></form>"
    ).format(Html('<p class="notice bad" role="alert">{}</p>\n').format(fault) if fault else "")
    return html_page("Log in", body, status=status)


def password_page(context: RequestContext, fault: str = "", status: int = 200) -> Response:
    """Return the form to change a password with `status` for `context`: `/password`.

    `fault` is the error of the last attempt.
    """
    users = context.app.users
    if not context.request.wants_html:
        return text_page(f"{fault or 'Change the password with a browser, or with: control.py password.'}\n", status)
    if users.find(context.user) is None:
        body = Html(
            "<h1>Password</h1>\n<p>You signed in without a password. To set one, run on the server's machine:</p>\n"
            "<pre>{}</pre>"
        ).format(password_command(context.app.data))
        return html_page("Password", body, context)
    notice = Html('<p class="notice bad" role="alert">{}</p>\n').format(fault) if fault else ""
    body = Html(
        "<h1>Change the password of {user}</h1>\n{notice}<p>All other sessions of {user} will be logged out.</p>\n"
        '<form method="post" action="/password" class="login"><input type="hidden" name="csrf"'
        ' value="{csrf}"><input type="hidden" name="user" value="{user}" autocomplete="username">'
        '<label>Old password <input name="old" type="password" autocomplete="current-password" maxlength="1024"'
        ' required></label><label>New password <input name="new" type="password" autocomplete="new-password"'
        ' minlength="8" maxlength="1024" required></label><label>Repeat the new password <input name="again"'
        ' type="password" autocomplete="new-password" minlength="8" maxlength="1024" required></label>'
        "<button>Change password</button></form>"
    ).format(user=context.user, notice=notice, csrf=context.csrf)
    return html_page("Password", body, context, status=status)


def password_changed(context: RequestContext) -> Response:
    """Return the page after a successful `POST /password` for `context`."""
    if not context.request.wants_html:
        return text_page("The password was changed.\n")
    body = Html(
        "<h1>Password changed</h1>\n<p>This browser stays logged in. All others must log in again.</p>\n"
        '<p><a class="button" href="/">Go to the front page</a></p>'
    )
    return html_page("Password", body, context)


def refusal_page(request: Request | None, refusal: HTTPError) -> Response:
    """Return an error for the client: JSON for programs, HTML for browsers, otherwise text.

    Args:
        request: The request, or None if it could not be parsed.
        refusal: The error.
    """
    headers = dict(PAGE_HEADERS) | dict(refusal.headers)
    if request is not None and request.path.startswith("/api/"):
        content = {"error": {"code": refusal.code, "text": refusal.text}}
        return json_answer(content, refusal.status)._replace(headers=headers)
    if request is None or not request.wants_html:
        return text_page(f"{refusal.text}\n", refusal.status)._replace(headers=headers)
    return _refusal(request, refusal.text, refusal.status, refusal.code)._replace(headers=headers)


def _refusal(request: Request, text: str, status: int, code: str = "") -> Response:
    """Return an error as a page or as text.

    The first line of `text` is the title. Lines with four leading spaces are commands.
    """
    if not request.wants_html:
        return text_page(f"{text}\n", status)
    title, *lines = text.split("\n")
    more = join_html(
        Html("\n<pre>{}</pre>").format(line.strip()) if line.startswith("    ") else Html("\n<p>{}</p>").format(line)
        for line in lines
    )
    link = ("/login", "Log in") if code == "password-set" else ("/", "Go to the front page")
    body = Html('<h1>{}</h1>{}\n<p><a href="{}">{}</a></p>').format(title, more, *link)
    return html_page(str(status), body, status=status)
