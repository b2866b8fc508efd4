"""The secret in the Authorization header of a request, and the challenge of an answer that asks for one.

Sources: RFC 9110 section 11 (challenges and credentials), RFC 6750 (Bearer), RFC 7617 (Basic).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import NamedTuple

from pigeonpost.http.message import Request

# Basic first: wget looks at the beginning only. A browser would ask for a user and a password in a window of its own,
# which no page of ours can explain; so it gets no Basic.
_FOR_PROGRAMS = {"WWW-Authenticate": 'Basic realm="pigeonpost", Bearer realm="pigeonpost"'}
_FOR_BROWSERS = {"WWW-Authenticate": "Bearer"}


class Credentials(NamedTuple):
    """What a request shows.

    scheme  in lower case: "bearer", "basic"
    secret  the token; of Basic the password. Empty where there is none, or it cannot be decoded
    """

    scheme: str
    secret: str


def read_credentials(request: Request) -> Credentials | None:
    """Return the content of the Authorization header; None where there is no such header."""
    said = request.headers.get("authorization")
    if said is None:
        return None
    scheme, _, rest = said.partition(" ")
    scheme, rest = scheme.lower(), rest.strip()
    if scheme == "bearer":
        return Credentials(scheme, rest)
    return Credentials(scheme, _password(rest) if scheme == "basic" else "")


def _password(encoded: str) -> str:
    """Return the password of Basic credentials; empty where they have none."""
    try:
        pair = base64.b64decode(encoded.encode(), validate=True).decode("latin-1")
    except (binascii.Error, UnicodeEncodeError):
        return ""
    return pair.partition(":")[2]


def is_browser(request: Request) -> bool:
    """Return True for a request of a browser: of its address line, of a form, or of a page's script."""
    headers = request.headers
    return (
        request.wants_html
        or "sec-fetch-site" in headers
        or "sec-fetch-mode" in headers
        or headers.get("user-agent", "").startswith("Mozilla/")
    )


def challenge(request: Request) -> Mapping[str, str]:
    """Return the header of an answer 401: how a client of this kind can authenticate."""
    return _FOR_BROWSERS if is_browser(request) else _FOR_PROGRAMS


def may_use_any_name(request: Request) -> bool:
    """Return True if it does not matter by which name (Host) a request asks for this server.

    A page whose name leads here (DNS rebinding) knows no token. At /login and /healthz, which ask for none, the header
    proves nothing.
    """
    return "authorization" in request.headers and request.path not in ("/login", "/healthz")
