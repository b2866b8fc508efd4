"""Exit: asks first; then has everything in hand written, ends this server, and says how to start it again.

A browser that reloads one of these pages later, when the server runs again, is led to the front page by webui.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from pigeonpost.core.container import in_container
from pigeonpost.core.format import size
from pigeonpost.core.html import Html
from pigeonpost.core.redact import hide_secrets
from pigeonpost.http.message import HTTPError, Request, Response, form_of
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import html_page, text_page

_FLUSH_S = 3.0
_UNIT = re.compile(r"/system\.slice/(?:.*/)?([A-Za-z0-9@._:-]+\.service)$", re.MULTILINE)


def leave(context: RequestContext) -> Response:
    """`POST /exit`: asks first; with `sure=yes` writes what is in hand, says what, and ends the program."""
    if form_of(context.request).get("sure") != "yes":
        return _are_you_sure(context)
    report = _flush(context)
    context.app.stop(f"Exit, by {context.user or 'the page'} at {context.request.peer}")
    if not context.request.wants_html:
        return text_page(f"exited\n{report}\n")
    body = Html(
        "<h1>exited</h1>\n<p>{}</p>\n<p>The server has ended. The nodes go on sampling, and bring what"
        " they hold when it is started again, on its own machine with</p>\n<pre>{}</pre>\n"
        '<p>Then <a href="/" data-home="">the front page</a> is back, also by reloading this page.</p>'
    ).format(report, _start_again())
    return html_page("exited", body)


def _are_you_sure(context: RequestContext) -> Response:
    if not context.request.wants_html:
        return text_page("This stops the server. Are you sure? Then send the form field sure=yes.\n")
    body = Html(
        "<h1>Stop this server?</h1>\n<p>It writes what it has in hand, and ends. The nodes go on sampling and keep"
        " their samples until it is started again, on its own machine with</p>\n<pre>{}</pre>\n"
        '<div class="buttons"><form method="post" action="/exit">'
        '<input type="hidden" name="csrf" value="{}"><input type="hidden" name="sure" value="yes">'
        '<button class="danger">Exit</button></form><a class="button" href="/">No, go back</a></div>'
    ).format(_start_again(), context.csrf)
    return html_page("Exit", body, context)


def _start_again() -> str:
    return start_command(os.environ, _cgroup(), in_container() and os.getpid() == 1, sys.orig_argv, os.getcwd())


def is_reloaded(request: Request, error: HTTPError) -> bool:
    """Return True if a browser was refused that reloads a page of an earlier run, or asks for its address.

    It still has the cookie of that run, whose sessions have ended.
    """
    is_of_earlier_run = error.code == "no-key" and "pigeonpost-" in request.headers.get("cookie", "")
    return request.path == "/exit" and request.wants_html and (error.status == 405 or is_of_earlier_run)


def start_command(
    environment: Mapping[str, str], cgroup: str, is_container: bool, arguments: Sequence[str], folder: str
) -> str:
    """Return the command that starts this program again.

    environment  has INVOCATION_ID under systemd: also in a user's terminal, which some desktops start as a service
    cgroup       content of /proc/self/cgroup, whose last part under systemd is the unit
    is_container  it is what a container was made for: both end, and are started together
    arguments    as the interpreter was started with
    folder       the working directory
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
    except OSError:  # not every container has it
        return ""


def _flush(context: RequestContext) -> str:
    """Have everything stored and logged that was received. Returns a sentence about it."""
    ingestor = context.app.ingestor
    if not ingestor.flush(_FLUSH_S):
        return f"Not everything could be stored ({ingestor.fault or 'the disk is slow'}); the nodes keep the rest."
    path, length = context.app.csv.whole()
    count = "1 sample of this run is" if ingestor.stored == 1 else f"{ingestor.stored:,} samples of this run are"
    return f"Flushed: {count} stored; the log {os.path.basename(path)} is whole, {size(length)}."


ROUTES = (Route("POST", "/exit", "operator", leave),)
