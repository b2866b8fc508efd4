"""The path below which a client has this server, written into the responses at one place, as they leave.

Pages are written as if this server had its host for itself: `href="/log"`. Where a proxy has it below a path, every
address gets that path: `href="/sensors/log"`. Only attributes of HTML are changed. A text cannot look like one, since
its quotation marks are escaped.

A proxy that says nothing of itself (nginx with a `proxy_pass` line alone) may have this server below any path, so
addresses are relative then: `href="../log"` on a page two levels deep.
"""

from __future__ import annotations

import re

from pigeonpost.http.message import HTML, Request, Response

# In this text a line that begins with four blanks is a command.
PREFIX_HINT = (
    "\nIf a proxy has this server below a path, as /sensors, it has to remove that path. nginx, with a slash at both"
    " ends:\n"
    "    location /sensors/ { proxy_pass http://127.0.0.1:8080/; proxy_set_header X-Forwarded-Prefix /sensors; }\n"
    "Or name the path in the settings file of the server, table [web]:\n"
    '    prefix = "/sensors"'
)


def placed(response: Response, request: Request | None) -> Response:
    """Return the response with all its addresses as the client of this request reaches them."""
    root = _root(request) if request is not None else ""
    if not root:
        return response
    headers, body = response.headers, response.body
    location = headers.get("Location", "")
    if location.startswith("/"):
        headers = {**headers, "Location": root + location}
        body = f"see {root}{location}\n".encode()
    elif response.kind == HTML:
        before = root.encode()
        body = _ADDRESS.sub(lambda found: found[1] + before + b"/", body)
    return response._replace(headers=headers, body=body)


def _root(request: Request) -> str:
    """Return what stands before the path of each address; empty: nothing does."""
    if request.prefix or not request.proxy or request.version == "1.1":
        return request.prefix
    return "/".join([".."] * min(request.path.count("/") - 1, _MOST_LEVELS)) or "."


_MOST_LEVELS = 8  # of a path; more than any page has
# The value of an attribute that is an address; `data-root` tells the scripts.
_ADDRESS = re.compile(rb'( (?:href|src|srcset|action|formaction|data-root)=")/')
