"""Parser of the Authorization header of a request, and the WWW-Authenticate header of a 401 response.

Sources: RFC 9110 section 11 (challenges and credentials), RFC 6750 (Bearer), RFC 7617 (Basic).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import NamedTuple

from pigeonpost.http.message import Request

# Basic comes first because wget reads the first challenge only. Browsers do not get Basic: they would ask for a user
# and a password in a window of their own, without any explanation from the pages of this server.
_FOR_PROGRAMS = {"WWW-Authenticate": 'Basic realm="pigeonpost", Bearer realm="pigeonpost"'}
_FOR_BROWSERS = {"WWW-Authenticate": "Bearer"}


class Credentials(NamedTuple):
    """Content of an Authorization header.

    Attributes:
        scheme: Authentication scheme in lower case, such as `bearer` or `basic`.
        secret: The token (Bearer) or the password (Basic); an empty string if it is missing or cannot be decoded.
    """

    scheme: str
    secret: str


def read_credentials(request: Request) -> Credentials | None:
    """Return the content of the Authorization header of `request`, or None if it has no such header."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, rest = header.partition(" ")
    scheme, rest = scheme.lower(), rest.strip()
    if scheme == "bearer":
        return Credentials(scheme, rest)
    return Credentials(scheme, _password(rest) if scheme == "basic" else "")


def _password(encoded: str) -> str:
    """Return the password in Basic credentials, or an empty string if they are invalid."""
    try:
        pair = base64.b64decode(encoded.encode(), validate=True).decode("latin-1")
    except (binascii.Error, UnicodeEncodeError):
        return ""
    return pair.partition(":")[2]


def is_browser(request: Request) -> bool:
    """Return True if `request` was sent by a browser: from its address bar, a form or the script of a page."""
    headers = request.headers
    return (
        request.wants_html
        or "sec-fetch-site" in headers
        or "sec-fetch-mode" in headers
        or headers.get("user-agent", "").startswith("Mozilla/")
    )


def challenge(request: Request) -> Mapping[str, str]:
    """Return the header of a 401 response to `request`, with the schemes that this kind of client can use."""
    return _FOR_BROWSERS if is_browser(request) else _FOR_PROGRAMS


def may_use_any_name(request: Request) -> bool:
    """Return True if `request` may contain any Host name, because it has an Authorization header.

    The page of an attacker whose name resolves to this server (DNS rebinding) does not know a token. At /login and
    /healthz the header proves nothing, since these paths need no token.
    """
    return "authorization" in request.headers and request.path not in ("/login", "/healthz")
