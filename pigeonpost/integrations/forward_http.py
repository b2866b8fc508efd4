"""HTTP requests of forward targets: one connection that stays open, credentials, and the meaning of the statuses.

A lost connection is never opened again within a request: the forwarder must learn that the target may have lost the
last samples. Any thread may call `close`; only one thread uses the other methods, and holds `_using` meanwhile.
Errors: NotDelivered and RefusedData. Their texts do not contain the path of the URL, which may contain a secret.
Sources: RFC 9110, section 15 (statuses); RFC 7617 (Basic); RFC 6750 (Bearer).
"""

from __future__ import annotations

import base64
import math
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from pigeonpost.core.config import Option, matching, text
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.http_client import USER_AGENT, HttpConnection, HttpError, HttpResponse, ServerTrust, split_url
from pigeonpost.core.redact import hide_secrets, hide_these, secrets_in
from pigeonpost.core.retry_after import retry_after_s
from pigeonpost.integrations.contract import NotDelivered, RefusedData

ANSWER_S = 30.0  # time limit for connecting, and for each part of an answer
IDLE_S = 5.0  # idle time after which targets that sync first are connected again; usual servers wait longer
_ANSWER_BYTES = 65_536  # maximum length of an answer
_SHOWN = 200  # characters of an answer in an error
_PUBLIC = ("user-agent", "content-type", "content-encoding", "idempotency-key")  # headers without secrets
_TOO_LARGE = 413  # Content Too Large
_AWAY = (502, 503, 504)  # the statuses of a proxy whose server does not answer
_REFUSED = (400, _TOO_LARGE, 422)  # the statuses that are about the content; 400: Bad Request, 422: Unprocessable
_CHECK_LOGIN = "check the token, or the user and the password"
_REMEDIES = {401: _CHECK_LOGIN, 403: _CHECK_LOGIN, 404: "check the path of the url"}


def _is_base_url(url: str) -> bool:
    try:
        split_url(url)
    except ValueError:
        return False
    return not set("?#") & set(url)


base_url = matching(_is_base_url, "an address such as http://HOST:PORT, without a query")


LOGIN_OPTIONS = (
    Option("token", text, "", "token for the header Authorization: Bearer"),
    Option("user", text, "", "user for Basic authentication"),
    Option("password", text, "", "password of this user"),
    Option("ca", text, "", "PEM file of the authority that signed the certificate of the server"),
)


def make_poster(values: Mapping[str, Any], where: str, example: str, **more: Any) -> HttpPoster:
    """Return the sender for the keys of a [[forward]] table.

    Args:
        values: The key `url`, and those of LOGIN_OPTIONS or `certificate` that the kind has.
        where: File and table, for errors.
        example: Usual address of such a target, for the error if `url` is missing.
        more: Further arguments of HttpPoster.

    Raises:
        SettingsError: `url` is missing or invalid.
    """
    if values["url"] is None:
        raise SettingsError(f'{where}: url is missing, for example "{example}"')
    try:
        return HttpPoster(**values, **more)
    except ValueError as error:
        raise SettingsError(f"{where}: url {error}") from None


def headers_in(lines: Iterable[str]) -> dict[str, str]:
    """Return the headers in `lines` of the form `NAME: VALUE`."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def gzip(content: bytes) -> bytes:
    """Return `content`, compressed for the header Content-Encoding: gzip."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)  # 31: the format of gzip, with the largest window
    return packer.compress(content) + packer.flush()


class HttpPoster:
    """Sender of POST requests to one URL.

    Attributes:
        place: Scheme, host and port of the server.
    """

    def __init__(
        self, url: str, token: str = "", user: str = "", password: str = "", scheme: str = "Bearer", ca: str = "",
        certificate: str = "", idle_s: float = math.inf,
    ) -> None:  # fmt: skip
        """Prepare the connection, without connecting.

        Args:
            url: The address. A user and a password in it are used, unless `user` is set.
            token: Token for the header Authorization, or an empty string.
            user: User for Basic authentication, or an empty string.
            password: Password of `user`.
            scheme: Word before the token in the header Authorization.
            ca: File with the certificates to trust (PEM), or an empty string for those of the system.
            certificate: SHA-256 of the only certificate to trust, 64 hex digits, or an empty string.
            idle_s: Seconds without a request after which the connection is opened again. Only for a target that syncs
                before it acknowledges: the forwarder does not learn that the connection was lost meanwhile.

        Raises:
            ValueError: The address is invalid.
        """
        self.url = split_url(url)
        self.place = self.url.shown
        self._trust = ServerTrust(certificate, ca or None)
        self._connection: HttpConnection | None = None
        self._idle_s, self._used_s = idle_s, 0.0
        self._is_closed = False
        self._using = threading.Lock()
        if self.url.has_user and not user:
            parts = urlsplit(url)
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self._headers = {"User-Agent": USER_AGENT}
        if token:
            self._headers["Authorization"] = f"{scheme} {token}"
        elif user:
            pair = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {pair}"

    def post(
        self, target: str, body: bytes, headers: Mapping[str, str], remedies: Mapping[int, str] = MappingProxyType({})
    ) -> HttpResponse:
        """Send a request and return the answer, whose status is from 200 to 299.

        Args:
            target: Path and query.
            body: Body of the request.
            headers: Headers, in addition to User-Agent and Authorization.
            remedies: Remedies by status, instead of the usual ones.

        Raises:
            NotDelivered: There is no answer, or it has another status.
            RefusedData: The answer has a status that is about the content: see `require_success`.
        """
        answer = self.request("POST", target, body, headers)
        self.require_success(answer, remedies, headers)
        return answer

    def require_success(
        self, answer: HttpResponse, remedies: Mapping[int, str] = MappingProxyType({}),
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Return if the status of `answer` is from 200 to 299.

        An HTML page is that of a proxy, for example of its login, or for http instead of https. So the samples are
        neither stored nor given up. Some receivers declare a short text as HTML, which counts as success.

        Args:
            answer: The answer.
            remedies: Remedies by status, instead of the usual ones.
            headers: Headers of the request, whose values are hidden in the error.

        Raises:
            NotDelivered: The samples must be sent again later.
            RefusedData: The status is about the content: 400, 413 or 422.
        """
        status = answer.status
        is_page = answer.headers.get_content_type() == "text/html"
        if 200 <= status < 300:
            if is_page and answer.body.lstrip().startswith(b"<"):
                raise NotDelivered(f"{self.place}: status {status} with a web page; check the url")
            return
        sent = {name: value for name, value in {**self._headers, **headers}.items() if name.lower() not in _PUBLIC}
        told = f"{answer.reason}: {answer.body.decode(errors='replace')}"
        told = hide_these(hide_secrets(" ".join(told.split())), secrets_in(self.url.target, sent))[:_SHOWN].rstrip(": ")
        said = f"{self.place}: status {status} {told}"
        if status in _REFUSED and (status == _TOO_LARGE or not is_page):
            raise RefusedData(said)
        remedy = remedies.get(status) or _REMEDIES.get(status, "")
        if 300 <= status < 400:
            remedy = "redirects are not followed: set the url to the new address"
        said += f"; {remedy}" if remedy else ""
        pause_s = retry_after_s(answer.headers.get("Retry-After", ""), time.time())
        is_open = self._connection is not None and self._connection.is_open
        raise NotDelivered(said, pause_s, is_open and (status not in _AWAY or pause_s is not None))

    def request(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> HttpResponse:
        """Send a request and return the answer, regardless of its status.

        Args:
            method: HTTP method.
            target: Path and query.
            body: Body of the request, or None.
            headers: Headers, in addition to User-Agent and Authorization.

        Raises:
            NotDelivered: There is no answer.
        """
        with self._using:
            return self._request(method, target, body, headers)

    def _request(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> HttpResponse:
        if self._is_closed:
            raise NotDelivered("the connection is closed")
        try:
            if self._connection is None:
                self._connection = HttpConnection(self.url, ANSWER_S, self._trust)
            if time.monotonic() - self._used_s > self._idle_s:
                self._connection.close()  # the server may close it at the same moment
            answer = self._connection.request(
                method, target, {**self._headers, **headers}, body, limit_bytes=_ANSWER_BYTES
            )  # fmt: skip
            self._used_s = time.monotonic()
            return answer
        except HttpError as error:
            raise NotDelivered(f"{self.place}: {error}") from None
        except OSError as error:  # the file of certificates
            raise NotDelivered(f"{self.place}: {error.filename or ''} {error.strerror or error}") from None

    def check(self) -> None:
        """Send a request without content on the open connection, if there is one: any answer of the server will do.

        A server that closes the connection after each answer cannot be checked.

        Raises:
            NotDelivered: The connection was lost, or a proxy answers that the server is away.
        """
        if self._connection is not None and self._connection.is_open:
            answer = self.request("HEAD", "/", None, {})
            if answer.status in _AWAY:
                raise NotDelivered(f"{self.place}: status {answer.status}")

    def close(self) -> None:
        """Abort the request of another thread, if there is one, and refuse further ones."""
        self._is_closed = True
        if self._connection is None:
            return
        if self._using.acquire(blocking=False):
            self._connection.close()
            self._using.release()
        else:
            self._connection.cut()  # the request fails, and closes the connection
