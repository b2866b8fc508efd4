"""HTTP push transport, node side: requests to the server's JSON interface, and the time of the next attempt.

Threads: a PushClient belongs to one thread; other threads may call `cut`.
Errors: RequestRefused; pigeonpost.core.http_client.HttpError if there is no answer.
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

ANSWER_S = 30.0  # longest wait for an answer or the next part of it
LONGEST_RETRY_S = 60.0
_ANSWER_BYTES = 64 << 10


class RequestRefused(WireError):
    """A request that the server rejected, or an answer that is not valid.

    Args:
        text: The reason.
        rarely: True if an early retry would fail too; then the next attempt waits LONGEST_RETRY_S.
        wait_s: Seconds to wait before the next attempt, as the server requests; not used if `rarely`.
        status: HTTP status that rejects the request, or 0 for 401, 403 and 409 and for an invalid answer.
    """

    code = "refused"

    def __init__(self, text: str, rarely: bool, wait_s: float = 0.0, status: int = 0) -> None:
        super().__init__(text)
        self.status = status
        self.wait_s = LONGEST_RETRY_S if rarely else wait_s


class PushClient:
    """Sends requests to one server over one connection that is kept alive.

    Args:
        address: URL of the server, as in [push] to.
        fingerprint: SHA-256 of the server's certificate, 64 hex digits, or empty if the system's certificate
            authorities are used.
        token: Token of the node.

    Attributes:
        place: Host and port of the server, for the log.

    Raises:
        SettingsError: The address is not a valid URL.
    """

    def __init__(self, address: str, fingerprint: str, token: str) -> None:
        try:
            url = split_url(address)
        except ValueError as error:
            raise SettingsError(f"[push] to: {error}") from None
        self.place = url.shown.partition("://")[2].partition("/")[0]
        self._path = url.target.partition("?")[0].rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connection = HttpConnection(url, ANSWER_S, ServerTrust(fingerprint))
        if not url.secure and not is_loopback(url.host) and url.host != "localhost":
            log.warning("%s: the token is sent unencrypted; use https:// in [push] to to protect it", self.place)

    def connect(self) -> None:
        """Connect, and verify the server's certificate.

        Raises:
            RequestRefused: The server has another certificate.
            HttpError: The server cannot be reached.
        """
        try:
            self._connection.connect()
        except CertificateMismatch as error:
            raise _wrong_certificate(error) from None

    def cut(self) -> None:
        """Cut the connection, so that a request that another thread is waiting for fails."""
        self._connection.cut()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Send a request and return the server's answer, a JSON object.

        Args:
            method: HTTP method.
            path: Path and query of the request.
            body: Body of the request, or None if there is none.

        Raises:
            RequestRefused: The status is not 200, or the answer is not valid.
            HttpError: There is no answer.
        """
        try:
            answer = self._connection.request(
                method, self._path + path, self._headers, body, limit_bytes=_ANSWER_BYTES
            )  # fmt: skip
        except AnswerTooLong as error:
            raise RequestRefused(f"answers with more than {error.limit_bytes} bytes", rarely=True) from None
        except CertificateMismatch as error:
            raise _wrong_certificate(error) from None
        try:
            fields = read_json(answer.body.decode().strip())
        except (BadArgument, UnicodeDecodeError):
            fields = None
        if type(fields) is not dict:
            raise RequestRefused(
                f"answers {answer.status} without a valid JSON object: is it a Pigeonpost server?", rarely=True
            )
        if answer.status != 200:
            raise _refused(answer.status, fields, answer.headers.get("Retry-After", ""))
        return fields


def _wrong_certificate(error: CertificateMismatch) -> RequestRefused:
    return RequestRefused(
        f"has another certificate than [push] certificate requires: expected {error.expected}, found {error.found};"
        " if the server has a new certificate, set [push] certificate to its fingerprint",
        rarely=True,
    )


def _refused(status: int, fields: Mapping[str, Any], retry_after: str) -> RequestRefused:
    """Return the error for an answer whose `status` is not 200, with the wait before the next attempt."""
    error = fields.get("error")
    text = str(error.get("text", ""))[:300] if type(error) is dict else ""
    if status in (401, 403):
        return RequestRefused(f"rejects this node's token ({status}): {text}", rarely=True)
    if status == 409:
        return RequestRefused(f"lacks samples before those sent: {text}", rarely=False)
    wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6 else 0.0
    return RequestRefused(
        f"answers {status}: {text}", rarely=status < 500, wait_s=min(wait_s, LONGEST_RETRY_S), status=status
    )
