"""HTTP push transport, node side: the requests to the server's JSON interface, and which failures are tried again soon.

Threads: a PushClient belongs to one; `cut` is for others.
Errors: RequestRefused; pigeonpost.core.http_client.HttpError where no answer comes.
"""

from __future__ import annotations

import logging

from pigeonpost.core.addresses import is_loopback
from pigeonpost.core.errors import BadArgument, SettingsError, WireError
from pigeonpost.core.http_client import AnswerTooLong, CertificateMismatch, HttpConnection, ServerTrust, split_url
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.strict_json import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

log = logging.getLogger(__name__)

ANSWER_S = 30.0  # for an answer, or a part of one
LONGEST_RETRY_S = 60.0
_ANSWER_BYTES = 64 << 10


class RequestRefused(WireError):
    """The server was reached, and did not accept the request, or its answer is not acceptable."""

    code = "refused"

    def __init__(self, text: str, rarely: bool, wait_s: float = 0.0, status: int = 0) -> None:
        """
        rarely  the next attempt would fail too: wait for LONGEST_RETRY_S
        wait_s  how long the server asks to wait
        status  of the server's answer; 0: another than 200 is not what was wrong
        """
        super().__init__(text)
        self.status = status
        self.wait_s = LONGEST_RETRY_S if rarely else wait_s


class PushClient:
    """Sends requests to one server, over one connection that is kept alive."""

    def __init__(self, address: str, fingerprint: str, token: str) -> None:
        """
        address      as [push] to has it
        fingerprint  of the server's certificate, 64 hex digits; empty: an authority that the system trusts signed it
        token        the node's

        Raises SettingsError for an address that is none.
        """
        try:
            url = split_url(address)
        except ValueError as error:
            raise SettingsError(f"[push] to: {error}") from None
        self.place = url.shown.partition("://")[2].partition("/")[0]
        self._path = url.target.partition("?")[0].rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connection = HttpConnection(url, ANSWER_S, ServerTrust(fingerprint))
        if not url.secure and not is_loopback(url.host) and url.host != "localhost":
            log.warning("%s: the token goes there unprotected; https:// in [push] to would hide it", self.place)

    def connect(self) -> None:
        """Connect, and make sure that it is the right server. Raises RequestRefused, HttpError."""
        try:
            self._connection.connect()
        except CertificateMismatch as error:
            raise _wrong_certificate(error) from None

    def cut(self) -> None:
        """Let the request that another thread waits for fail at once."""
        self._connection.cut()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Return the server's answer. Raises RequestRefused for a status that is not 200; HttpError."""
        try:
            answer = self._connection.request(
                method, self._path + path, self._headers, body, limit_bytes=_ANSWER_BYTES
            )  # fmt: skip
        except AnswerTooLong as error:
            raise RequestRefused(f"answers with more than {error.limit_bytes} bytes", rarely=True) from None
        except CertificateMismatch as error:
            raise _wrong_certificate(error) from None
        try:
            told = read_json(answer.body.decode().strip())
        except (BadArgument, UnicodeDecodeError):
            told = None
        if type(told) is not dict:
            raise RequestRefused(
                f"answers {answer.status} with what is no JSON object: is that a Pigeonpost server?", rarely=True
            )
        if answer.status != 200:
            raise _refused(answer.status, told, answer.headers.get("Retry-After", ""))
        return told


def _wrong_certificate(error: CertificateMismatch) -> RequestRefused:
    return RequestRefused(
        f"another certificate than [push] certificate says: expected {error.expected}, found {error.found}."
        " If the server has a new one, put its fingerprint there",
        rarely=True,
    )


def _refused(status: int, told: Mapping[str, Any], retry_after: str) -> RequestRefused:
    """A refusal as the node's log has it, and how soon it is tried again."""
    error = told.get("error")
    text = str(error.get("text", ""))[:300] if type(error) is dict else ""
    if status in (401, 403):
        return RequestRefused(f"refuses this node's token ({status}): {text}", rarely=True)
    if status == 409:
        return RequestRefused(f"lacks samples before those that came: {text}", rarely=False)
    wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6 else 0.0
    return RequestRefused(
        f"answers {status}: {text}", rarely=status < 500, wait_s=min(wait_s, LONGEST_RETRY_S), status=status
    )
