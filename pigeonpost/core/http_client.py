"""Asks a web server for JSON over one connection that is kept, and makes sure that it is the right server.

Runs on: node.  Reached from: links/push.  Hands on to: http.client and ssl, which are imported when a client is made: a
  node that pushes nothing does not pay for them.
Threads: a client belongs to one, but `cut` may be called by any.
Errors: Refused for an answer that is none; what `errors` lists where no answer comes.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pigeonpost.core.addresses import is_loopback
from pigeonpost.core.errors import BadArgument, WireError
from pigeonpost.core.strict_json import read_json

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

ANSWER_S = 30.0  # for an answer, or a part of one
LONGEST_RETRY_S = 60.0
_ANSWER_BYTES = 64 << 10


class Refused(WireError):
    """The server was reached, and did not take it. `rarely`: it would not the next time either. `wait_s`: it says."""

    code = "refused"

    def __init__(self, text: str, rarely: bool, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = LONGEST_RETRY_S if rarely else wait_s


class Client:
    """Asks one server over one connection, kept alive. Belongs to its thread, but `cut` may be called by any."""

    def __init__(self, address: str, fingerprint: str, token: str) -> None:
        """
        address      as [push] to has it
        fingerprint  of the server's certificate, 64 hex digits; empty: the system knows who signed it
        token        the node's
        """
        import hashlib
        import http.client
        from urllib.parse import urlsplit

        parts = urlsplit(address)
        self.place = parts.netloc
        self.errors = OSError, ValueError, http.client.HTTPException
        self._path = parts.path.rstrip("/")
        self._fingerprint, self._digest = fingerprint, hashlib.sha256
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        host, port = parts.hostname or "", parts.port
        self._link: http.client.HTTPConnection
        if parts.scheme == "https":
            self._link = http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=_context(fingerprint))
        else:
            self._link = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
            if not is_loopback(host) and host != "localhost":
                log.warning("%s: the token goes there unprotected; https:// in [push] to would hide it", self.place)

    def connect(self) -> None:
        """Connect, and make sure that it is the right server. Raises Refused, or OSError."""
        self.cut()
        self._link.connect()
        sock: Any = self._link.sock
        if self._fingerprint:
            found = self._digest(sock.getpeercert(binary_form=True)).hexdigest()
            if found != self._fingerprint:
                raise Refused(
                    f"another certificate than [push] certificate says: expected {self._fingerprint}, found {found}."
                    " If the server has a new one, put its fingerprint there",
                    rarely=True,
                )

    def cut(self) -> None:
        """End the connection, also under a thread that waits for an answer."""
        sock = self._link.sock
        if sock is not None:
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # it was over
        self._link.close()

    def ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The server's answer. Raises Refused for one that is not 200, and `errors` where none comes."""
        self._link.request(method, self._path + path, body, self._headers)
        answer = self._link.getresponse()
        data = answer.read(_ANSWER_BYTES + 1)
        if len(data) > _ANSWER_BYTES:
            raise Refused(f"answers with more than {_ANSWER_BYTES} bytes", rarely=True)
        # http.client reports no error for an answer that ends too early: in its body (some length is left), or in its
        # head (the length is unknown).
        if answer.length != 0:
            raise ConnectionResetError("the answer was cut off")
        try:
            told = read_json(data.decode().strip())
        except (BadArgument, UnicodeDecodeError):
            told = None
        if type(told) is not dict:
            raise Refused(f"answers {answer.status} with what is no JSON object: is that a Pigeonpost server?", True)
        if answer.status != 200:
            raise _refused(answer.status, told, answer.headers.get("Retry-After", ""))
        return told


def _context(fingerprint: str) -> ssl.SSLContext:
    """How TLS is spoken: 1.2 or later; with a server whose certificate is known, or was signed by who is trusted."""
    import ssl

    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if fingerprint:  # which says more than any signature, and is looked at once the server has shown what it has
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _refused(status: int, told: Mapping[str, Any], retry_after: str) -> Refused:
    """A refusal as the node's log has it, and as the node goes on after it."""
    error = told.get("error")
    text = str(error.get("text", ""))[:300] if type(error) is dict else ""
    if status in (401, 403):
        return Refused(f"refuses this node's token ({status}): {text}", rarely=True)
    if status == 409:
        return Refused(f"lacks samples before those that came: {text}", rarely=False)
    wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6 else 0.0
    return Refused(f"answers {status}: {text}", rarely=status < 500, wait_s=min(wait_s, LONGEST_RETRY_S))
