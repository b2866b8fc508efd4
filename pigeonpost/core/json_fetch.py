"""Client that requests JSON from web servers, for sensor sources. Its errors name the setting to change.

The answers come from devices of other makers, so they are decoded tolerantly: see tolerant_json.

Threads: one thread at a time may use a JsonFetcher.

Errors: SensorError, and HttpStatusError with the HTTP status. They contain the name of the server, but not the rest of
the address nor any data that were sent, because these contain keys and passwords.
"""

from __future__ import annotations

from pigeonpost.core.errors import BadArgument, SensorError, SettingsError
from pigeonpost.core.http_client import (
    AnswerCutOff,
    AnswerTimeout,
    AnswerTooLong,
    CertificateNotTrusted,
    Fetched,
    HttpError,
    HttpFetcher,
    InvalidAnswer,
    ServerTrust,
)
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.redact import hide_secrets
from pigeonpost.core.tolerant_json import read_tolerant_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

LONGEST_ANSWER = 1 << 20  # bytes
_HINTS = {
    401: ": it requires a token or password", 403: ": access denied", 404: ": the address does not exist",
    429: ": too many requests; set a longer interval with every",
}  # fmt: skip


class HttpStatusError(SensorError):
    """A web server answered with a status other than 200 to 299.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def decoded(data: bytes, origin: str) -> Any:
    """Return the value of the JSON document `data`.

    Raises:
        SensorError: The data are not JSON, or longer than LONGEST_ANSWER. The message begins with `origin`.
    """
    if len(data) > LONGEST_ANSWER:
        raise SensorError(f"{origin}: longer than {LONGEST_ANSWER} bytes")
    try:
        return read_tolerant_json(data)
    except BadArgument:
        raise SensorError(hide_secrets(f"{origin}: expected JSON, not {data[:60]!r}")) from None


class JsonFetcher:
    """Client for JSON, with a new connection for each request.

    Args:
        timeout_s: Time limit in seconds for a complete answer, including redirects.
        ca: Path of a file of certificates (PEM) to trust instead of the system's; None for the system's.
        headers: HTTP headers. They are not sent to another server after a redirect.

    Raises:
        SettingsError: The file does not contain certificates.
    """

    def __init__(self, timeout_s: float, ca: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        trust = ServerTrust(ca=ca)
        if ca:
            try:
                trust.context  # noqa: B018  # reads the file
            except OSError as error:
                raise SettingsError(f"ca takes a file of certificates (PEM), not {ca!r}: {error}") from None
        self._fetcher = HttpFetcher(timeout_s, LONGEST_ANSWER, trust, headers, accept="application/json")

    def ask(self, url: str, headers: Mapping[str, str] | None = None, form: str | None = None) -> Any:
        """Return the JSON value of an answer.

        Args:
            url: Address to request.
            headers: HTTP headers in addition to those of the fetcher.
            form: Text of a form, which is sent by POST; then no redirect is followed.

        Raises:
            SensorError: There is no valid answer.
            HttpStatusError: The status is not 200 to 299.
        """
        at, response = self._fetch(url, headers, form)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise SensorError(f"{at.shown}: the answer has a Content-Encoding that was not requested")
        if 200 <= response.status <= 299:
            return decoded(response.body, at.shown)
        raise _status_error(at.shown, response.status, _error_message(response.body))

    def _fetch(self, url: str, headers: Mapping[str, str] | None, form: str | None) -> Fetched:
        try:
            return self._fetcher.fetch(url, headers, form)
        except AnswerTooLong as error:
            if error.response is not None and not 200 <= error.response.status <= 299:
                raise _status_error(error.server, error.response.status) from None
            raise SensorError(f"{error.server}: {error}") from None
        except HttpError as error:
            raise SensorError(f"{error.server}: {self._explained(error)}") from None

    def _explained(self, error: HttpError) -> str:
        """Return the text of an error, in the terms of a source's settings."""
        match error:
            case AnswerTimeout():
                return f"no answer within {self._fetcher.timeout_s:g} s"
            case InvalidAnswer():
                return f"its answer is not valid HTTP ({error.kind})"
            case AnswerCutOff():
                return "its answer is incomplete"
            case CertificateNotTrusted():
                return f"{error.why}; for a self-signed certificate set ca"
        return str(error)


def _status_error(server: str, status: int, message: str = "") -> HttpStatusError:
    # The server's message may repeat the requested address, which may contain a key.
    return HttpStatusError(hide_secrets(f"{server}: HTTP status {status}{message}{_HINTS.get(status, '')}"), status)


def _error_message(data: bytes) -> str:
    """Return the error message in an answer with a leading comma, or an empty string if there is no message.

    Only the usual forms of JSON error messages are recognised.
    """
    try:
        answer = decoded(data, "")
    except SensorError:
        return ""
    if not isinstance(answer, dict):
        return ""
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    messages = (message, answer.get("error_description"), answer.get("message"))
    return "".join(f", {text!r:.120}" for text in messages if text and isinstance(text, str))
