"""The way in and out: the login page, and what is said to whom is not let in or asks for what is not there.

Runs on: server.  Reached from: webui, which looks after passwords and sessions itself.
Hands on to: nobody.  Threads: none.  Errors: none.
"""

from __future__ import annotations

from http_head import Answer, Refusal, Request
from pages import PAGE_HEADERS, Html, html_page, json_answer, text_page


def login_page(request: Request, said: str = "", status: int = 200) -> Answer:
    """`/login`. said: what was wrong with the last try."""
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


def refusal_page(request: Request | None, refusal: Refusal) -> Answer:
    """A refusal as its client can read it: JSON for programs, HTML for browsers, else a line of text."""
    headers = dict(PAGE_HEADERS) | dict(refusal.headers)
    if request is not None and request.path.startswith("/api/"):
        told = {"error": {"code": refusal.code, "text": refusal.text}}
        return json_answer(told, refusal.status)._replace(headers=headers)
    if request is None or not request.wants_html:
        return text_page(f"{refusal.text}\n", refusal.status)._replace(headers=headers)
    lines = refusal.text.split("\n")
    more = Html("\n<pre>{}</pre>").format("\n".join(lines[1:])) if lines[1:] else Html("")
    body = Html('<h1>{}</h1>{}\n<p><a href="/">To the front page</a></p>').format(lines[0], more)
    return html_page(str(refusal.status), body, status=refusal.status)._replace(headers=headers)
