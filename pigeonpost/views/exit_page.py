"""Pages of the Exit button: confirmation, and the result with the command that starts the server again.

All received samples are written before the server stops. If a browser reloads one of these pages after a restart, webui
redirects it to the front page.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from pigeonpost.core.container import in_container
from pigeonpost.core.format import counted, size
from pigeonpost.core.html import Html
from pigeonpost.core.redact import hide_secrets
from pigeonpost.http.message import HTTPError, Request, Response, form_of
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import html_page, text_page

_FLUSH_S = 3.0
_UNIT = re.compile(r"/system\.slice/(?:.*/)?([A-Za-z0-9@._:-]+\.service)$", re.MULTILINE)


def leave(context: RequestContext) -> Response:
    """Return the page that asks for confirmation, or with `sure=yes` stop the program, for `context`: `POST /exit`."""
    if form_of(context.request).get("sure") != "yes":
        return _are_you_sure(context)
    report = _flush(context)
    context.app.stop(f"Exit by {context.user or 'the page'} at {context.request.peer}")
    if not context.request.wants_html:
        return text_page(f"exited\n{report}\n")
    body = Html(
        "<h1>exited</h1>\n<p>{}</p>\n<p>The server has stopped. The nodes keep sampling, and deliver their samples"
        " when it is started again. To start it, run on its machine:</p>\n<pre>{}</pre>\n"
        '<p>Then open <a href="/" data-home="">the front page</a>, or reload this page.</p>'
    ).format(report, _start_again())
    return html_page("exited", body)


def _are_you_sure(context: RequestContext) -> Response:
    if not context.request.wants_html:
        return text_page("This stops the server. To confirm, send the form field sure=yes.\n")
    body = Html(
        "<h1>Stop this server?</h1>\n<p>It stores all received samples, and stops. The nodes keep sampling, and keep"
        " their samples until it is started again. To start it, run on its machine:</p>\n<pre>{}</pre>\n"
        '<div class="buttons"><form method="post" action="/exit">'
        '<input type="hidden" name="csrf" value="{}"><input type="hidden" name="sure" value="yes">'
        '<button class="danger">Exit</button></form><a class="button" href="/">Cancel</a></div>'
    ).format(_start_again(), context.csrf)
    return html_page("Exit", body, context)


def _start_again() -> str:
    return start_command(os.environ, _cgroup(), in_container() and os.getpid() == 1, sys.orig_argv, os.getcwd())


def is_reloaded(request: Request, error: HTTPError) -> bool:
    """Return True if `request`, refused with `error`, is a browser's reload of an exit page after a restart.

    The browser still sends the cookie of the earlier run, whose sessions have ended.
    """
    is_of_earlier_run = error.code == "no-key" and "pigeonpost-" in request.headers.get("cookie", "")
    return request.path == "/exit" and request.wants_html and (error.status == 405 or is_of_earlier_run)


def start_command(
    environment: Mapping[str, str], cgroup: str, is_container: bool, arguments: Sequence[str], folder: str
) -> str:
    """Return the command that starts this program again.

    Args:
        environment: Environment variables. INVOCATION_ID is set by systemd, also in terminals that a desktop starts as
            services.
        cgroup: Content of /proc/self/cgroup; its last part is the unit if systemd started the program.
        is_container: True if the program is the main process of a container, so that the container ends with it.
        arguments: Arguments of the interpreter.
        folder: Working directory.
    """
    unit = _UNIT.search(cgroup)
    if unit and environment.get("INVOCATION_ID"):
        return f"sudo systemctl start {unit[1].removesuffix('.service')}"
    if is_container:
        return "docker compose up -d server"
    return f"cd {shlex.quote(folder)} && {hide_secrets(shlex.join(arguments))}"


def _cgroup() -> str:
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:  # missing in some containers
        return ""


def _flush(context: RequestContext) -> str:
    """Write all received samples to the store and the log, and return a sentence about the result."""
    ingestor = context.app.ingestor
    if not ingestor.flush(_FLUSH_S):
        return f"Some samples could not be stored ({ingestor.fault or 'the disk is slow'}); the nodes keep them."
    path, length = context.app.csv.whole()
    count = counted(ingestor.stored, "sample")
    return f"Flushed: {count} of this run stored; the log {os.path.basename(path)} is complete, {size(length)}."


ROUTES = (Route("POST", "/exit", "operator", leave),)
