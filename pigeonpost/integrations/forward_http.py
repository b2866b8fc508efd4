"""HTTP requests of forward targets: one connection that stays open, credentials, and the meaning of the statuses.

A lost connection is never opened again within a request: the forwarder must learn that the target may have lost the
last samples. Any thread may call `close`; only one thread uses the other methods.
Errors: NotDelivered and RefusedData. Their texts do not contain the path of the URL, which may contain a secret.
Sources: RFC 9110, sections 10.2.3 (Retry-After) and 15 (statuses); RFC 7617 (Basic); RFC 6750 (Bearer).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from pigeonpost.core.http_client import USER_AGENT, HttpConnection, HttpError, HttpResponse, ServerTrust, split_url
from pigeonpost.integrations.contract import NotDelivered, RefusedData

ANSWER_S = 30.0  # time limit for connecting, and for each part of an answer
LONGEST_PAUSE_S = 86_400.0  # longest time of Retry-After that is obeyed
_ANSWER_BYTES = 65_536  # maximum length of an answer
_SHOWN = 200  # characters of an answer in an error
_REFUSED = (400, 413, 422)  # the statuses that are about the content: Bad Request, Content Too Large, Unprocessable


class HttpPoster:
    """Sender of POST requests to one URL.

    Attributes:
        place: Scheme, host and port of the server.
    """

    def __init__(
        self, url: str, token: str = "", user: str = "", password: str = "", scheme: str = "Bearer", ca: str = ""
    ) -> None:
        """Prepare the connection, without connecting.

        Args:
            url: The address. A user and a password in it are used, unless `user` is set.
            token: Token for the header Authorization, or an empty string.
            user: User for Basic authentication, or an empty string.
            password: Password of `user`.
            scheme: Word before the token in the header Authorization.
            ca: File with the certificates to trust (PEM), or an empty string for those of the system.

        Raises:
            ValueError: The address is invalid.
        """
        self.url = split_url(url)
        self.place = self.url.shown
        self._trust = ServerTrust(ca=ca or None)
        self._connection: HttpConnection | None = None
        self._is_closed = False
        if self.url.has_user and not user:
            parts = urlsplit(url)
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self._headers = {"User-Agent": USER_AGENT}
        if token:
            self._headers["Authorization"] = f"{scheme} {token}"
        elif user:
            pair = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {pair}"

    def post(self, target: str, body: bytes, headers: Mapping[str, str]) -> HttpResponse:
        """Send a request and return the answer, whose status is from 200 to 299.

        Args:
            target: Path and query.
            body: Body of the request.
            headers: Headers, in addition to User-Agent and Authorization.

        Raises:
            NotDelivered: There is no answer, or it has another status.
            RefusedData: The answer has a status that is about the content: 400, 413 or 422.
        """
        try:
            if self._connection is None:
                self._connection = HttpConnection(self.url, ANSWER_S, self._trust)
            if self._is_closed:
                raise NotDelivered("the connection is closed")
            answer = self._connection.request(
                "POST", target, {**self._headers, **headers}, body, limit_bytes=_ANSWER_BYTES
            )  # fmt: skip
        except HttpError as error:
            raise NotDelivered(f"{self.place}: {error}") from None
        except OSError as error:  # the file of certificates
            raise NotDelivered(f"{self.place}: {error.filename or ''} {error.strerror or error}") from None
        check(answer, self.place)
        return answer

    def close(self) -> None:
        """Abort the request of another thread, if there is one, and refuse further ones."""
        self._is_closed = True
        if self._connection is not None:
            self._connection.cut()


def check(answer: HttpResponse, place: str) -> None:
    """Return if the status of `answer` is from 200 to 299.

    Args:
        answer: The answer.
        place: Scheme, host and port of the server, for the error.

    Raises:
        NotDelivered: The samples must be sent again later.
        RefusedData: The status is about the content.
    """
    status = answer.status
    if 200 <= status < 300:
        return
    told = " ".join(answer.body[: 4 * _SHOWN].decode(errors="replace").split())[:_SHOWN]
    said = f"{place}: status {status} {answer.reason}{': ' if told else ''}{told}"
    if status in _REFUSED:
        raise RefusedData(said)
    if status in (401, 403):
        said += "; check the token, or the user and the password"
    elif status == 404:
        said += "; check the path of the url"
    elif 300 <= status < 400:
        said += "; redirects are not followed: set the url to the new address"
    raise NotDelivered(said, retry_after_s(answer.headers.get("Retry-After", ""), time.time()))


def retry_after_s(text: str, now_s: float) -> float | None:
    """Return the time in the header Retry-After in seconds, from 1 to LONGEST_PAUSE_S, or None if it contains none.

    Args:
        text: Value of the header: seconds, or a date.
        now_s: Current time, in seconds since 1970 (UTC).
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        pause_s = float(text[:12])
    else:
        from email.utils import parsedate_to_datetime

        try:
            pause_s = parsedate_to_datetime(text).timestamp() - now_s
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(pause_s, 1.0), LONGEST_PAUSE_S)
