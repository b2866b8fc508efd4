"""Prefixes for the addresses in responses, for a server that a proxy provides below a path.

Pages are written for a server at the root of its host: `href="/log"`. If a proxy provides the server below a path, that
path is added to every address just before the response is sent: `href="/sensors/log"`. Only attributes of HTML are
changed. Text cannot look like an attribute, since its quotation marks are escaped.

A proxy that sends no headers about itself (nginx with only a `proxy_pass` line) may provide this server below any path.
Addresses are relative in this case: `href="../log"` on a page two levels deep.
"""

from __future__ import annotations

import re

from pigeonpost.http.message import HTML, Request, Response

# In this text, a line that begins with four spaces is a command.
PREFIX_HINT = (
    "\nIf a proxy provides this server below a path, such as /sensors, the proxy must remove that path. nginx, with a"
    " slash at both ends:\n"
    "    location /sensors/ { proxy_pass http://127.0.0.1:8080/; proxy_set_header X-Forwarded-Prefix /sensors; }\n"
    "Or set the path in the settings file of the server, table [web]:\n"
    '    prefix = "/sensors"'
)


def with_prefix(response: Response, request: Request | None) -> Response:
    """Return `response` with all addresses changed to those that the client of `request` can reach."""
    root = _root(request) if request is not None else ""
    if not root:
        return response
    headers, body = response.headers, response.body
    location = headers.get("Location", "")
    if location.startswith("/"):
        headers = {**headers, "Location": root + location}
        body = f"see {root}{location}\n".encode()
    elif response.kind == HTML:
        prefix = root.encode()
        body = _ADDRESS.sub(lambda found: found[1] + prefix + b"/", body)
    return response._replace(headers=headers, body=body)


def _root(request: Request) -> str:
    """Return the prefix of all addresses, or an empty string."""
    if request.prefix or not request.proxy or request.version == "1.1":
        return request.prefix
    return "/".join([".."] * min(request.path.count("/") - 1, _MOST_LEVELS)) or "."


_MOST_LEVELS = 8  # depth of a path; no page has more
# The value of an attribute that is an address. The scripts read `data-root`.
_ADDRESS = re.compile(rb'( (?:href|src|srcset|action|formaction|data-root)=")/')
