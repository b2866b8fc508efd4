"""JSON from web servers, for sources: limits, and errors that say which setting to change.

Threads: a JsonFetcher may be used by one thread at a time.
Errors: SensorError, and HttpStatusError with the HTTP status. They name the server, and nothing of the address behind
  it nor of what was sent along: keys and passwords stand there.
"""

from __future__ import annotations

import json

from pigeonpost.core.errors import SensorError, SettingsError
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

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

LONGEST_ANSWER = 1 << 20  # bytes
_HINTS = {
    401: ": it wants a token or password", 403: ": it does not let us", 404: ": there is no such address",
    429: ": it is asked too often; set every",
}  # fmt: skip


class HttpStatusError(SensorError):
    """A web server answered with another status than 200 to 299."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def decoded(data: bytes, origin: str) -> Any:
    """Decode the JSON in `data`. SensorError, which names `origin`, for other text or more than LONGEST_ANSWER."""
    if len(data) > LONGEST_ANSWER:
        raise SensorError(f"{origin}: longer than {LONGEST_ANSWER} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise SensorError(hide_secrets(f"{origin}: no JSON, but {data[:60]!r}")) from None


class JsonFetcher:
    """Asks web servers for JSON, each time over a connection of its own."""

    def __init__(self, timeout_s: float, ca: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        """
        timeout_s  for a whole answer, redirects included
        ca         file of certificates to trust instead of the system's
        headers    are sent as long as the server is the one that was meant

        Raises SettingsError when the file is none of certificates.
        """
        trust = ServerTrust(ca=ca)
        if ca:
            try:
                trust.context  # noqa: B018  # which reads the file
            except OSError as error:
                raise SettingsError(f"ca takes a file of certificates (PEM), not {ca!r}: {error}") from None
        self._fetcher = HttpFetcher(timeout_s, LONGEST_ANSWER, trust, headers, accept="application/json")

    def ask(self, url: str, headers: Mapping[str, str] | None = None, form: str | None = None) -> Any:
        """Return the answer's JSON. Raises SensorError; HttpStatusError for another status than 200 to 299.

        headers  in addition to those of the fetcher
        form     is sent by POST, and then no redirect is followed
        """
        at, response = self._fetch(url, headers, form)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise SensorError(f"{at.shown}: answers in a coding that it was not asked for")
        if 200 <= response.status <= 299:
            return decoded(response.body, at.shown)
        raise _status_error(at.shown, response.status, _servers_words(response.body))

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
        """An error in words that fit a source's settings."""
        match error:
            case AnswerTimeout():
                return f"no answer within {self._fetcher.timeout_s:g} s"
            case InvalidAnswer():
                return f"its answer is no HTTP ({error.kind})"
            case AnswerCutOff():
                return "its answer breaks off"
            case CertificateNotTrusted():
                return f"{error.why}; a certificate that it has made itself can be named with ca"
        return str(error)


def _status_error(server: str, status: int, words: str = "") -> HttpStatusError:
    # A server may repeat the address that it was asked for, with the key in it.
    return HttpStatusError(hide_secrets(f"{server}: HTTP status {status}{words}{_HINTS.get(status, '')}"), status)


def _servers_words(data: bytes) -> str:
    """An error in the server's words, where it has one of the usual forms."""
    try:
        answer = decoded(data, "")
    except SensorError:
        return ""
    if not isinstance(answer, dict):
        return ""
    error = answer.get("error")
    words = error.get("message") if isinstance(error, dict) else error
    said = (words, answer.get("error_description"), answer.get("message"))
    return "".join(f", {word!r:.120}" for word in said if word and isinstance(word, str))
