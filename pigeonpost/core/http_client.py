"""HTTP client of nodes, servers and commands: connections, TLS and pinned certificates, deadlines, limits, redirects.

Threads: only one thread may use an object, except that other threads may call `HttpConnection.cut`.

Errors: HttpError and its subclasses. Their texts do not contain the full address, which may contain a secret.
Sources: RFC 9110, section 15.4 (redirects); RFC 9112, section 6.3 (length of a body).

Proxies, cookies and compression are not supported. http.client, ssl and hashlib need several MiB of a node's memory, so
they are imported when the first connection is created; ssl and hashlib only for https and a pinned certificate.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
import socket
import time
from types import MappingProxyType

from pigeonpost.core.addresses import join_address
from pigeonpost.core.dial import connected
from pigeonpost.core.errors import PigeonpostError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.core.redact import hide_these, secrets_in
from pigeonpost.core.version import VERSION

if TYPE_CHECKING:
    import http.client
    import ssl
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

USER_AGENT = f"pigeonpost/{VERSION}"
MOST_REDIRECTS = 4
_REDIRECTS = (301, 302, 303, 307, 308)
# A complete answer may have this many bytes for its head, in addition to twice the limit of its body. Twice, because
# each chunk of the body has a head too.
_HEAD_BYTES = 64 << 10
_SHOWN = 200  # characters of an invalid answer in an error


class HttpError(PigeonpostError, OSError):
    """A request failed, or its answer is not usable.

    Attributes:
        server: Scheme, host and port of the server, and no other part of the address.
    """

    def __init__(self, text: str, server: str) -> None:
        super().__init__(text)
        self.server = server


class AnswerTimeout(HttpError):
    """There was no connection, or no complete answer, within the time limit."""


class InvalidAnswer(HttpError):
    """The server does not speak HTTP.

    Attributes:
        kind: Name of the exception of http.client.
    """

    def __init__(self, error: Exception, server: str, secrets: Iterable[str] = ()) -> None:
        self.kind = type(error).__name__
        text = str(error)
        if self.kind == "BadStatusLine":  # the text is the first line of the answer, which may repeat the request
            text = f"its answer is not valid HTTP: {hide_these(text, secrets)[:_SHOWN]}"
        elif not isinstance(error, ConnectionError):  # RemoteDisconnected
            text = f"its answer is not valid HTTP ({self.kind})"
        super().__init__(text, server)


class AnswerCutOff(HttpError):
    """The connection ended before the answer was complete."""


class AnswerTooLong(HttpError):
    """The body is longer than the limit.

    Attributes:
        limit_bytes: The limit.
        response: The answer with the beginning of its body, or None if its heads and chunks together were too long.
    """

    def __init__(self, limit_bytes: int, server: str, response: HttpResponse | None) -> None:
        super().__init__(f"longer than {limit_bytes} bytes", server)
        self.limit_bytes, self.response = limit_bytes, response


class BadRedirect(HttpError):
    """The server redirects to an address that is not followed, or too often."""


class CertificateNotTrusted(HttpError):
    """No trusted authority has signed the server's certificate.

    Attributes:
        why: Error message of OpenSSL.
    """

    def __init__(self, text: str, why: str, server: str) -> None:
        super().__init__(text, server)
        self.why = why


def network_error(error: OSError | ValueError, server: str) -> HttpError:
    """Return the HttpError for an `error` of a socket or of the TLS library with `server`."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        return AnswerTimeout(text, server)
    why = getattr(error, "verify_message", "")  # of ssl.SSLCertVerificationError
    return CertificateNotTrusted(text, why, server) if why else HttpError(text, server)


class CertificateMismatch(HttpError):
    """The server's certificate differs from the pinned one.

    Attributes:
        expected: Pinned fingerprint.
        found: Fingerprint of the server's certificate.
    """

    def __init__(self, expected: str, found: str, server: str) -> None:
        super().__init__(f"the certificate is not the pinned one: expected {expected}, found {found}", server)
        self.expected, self.found = expected, found


class Url(NamedTuple):
    """Parts of an address.

    Attributes:
        secure: True for https.
        host: Host name or address.
        port: Port.
        target: Path and query.
        shown: Name of the server for errors: scheme, host and port.
        has_user: True if the address contains a user.
        authorization: Value of the header Authorization for this user and password (RFC 7617), or an empty string.
    """

    secure: bool
    host: str
    port: int
    target: str
    shown: str
    has_user: bool
    authorization: str = ""


def split_url(url: str) -> Url:
    """Return the parts of `url`, an http: or https: address. Raise ValueError if it is not valid."""
    from urllib.parse import quote, urlsplit

    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket without its counterpart
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("takes an address that begins with http:// or https:// and a host")
    secure = parts.scheme == "https"
    try:
        port = parts.port or (443 if secure else 80)
    except ValueError:  # its text is not used: the part after the colon may belong to a password
        raise ValueError("takes an address whose port is a number up to 65535") from None
    try:
        host = _checked_host(parts.hostname.encode("idna").decode())
    except UnicodeError:
        raise ValueError("takes a host name with labels of 1 to 63 characters") from None
    target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe="/?#[]@!$&'()*+,;=:%~")
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    shown = re.sub("[^!-~]", "?", shown)[:100]
    has_user = parts.username is not None
    return Url(secure, host, port, target, shown, has_user, _basic(parts.username, parts.password) if has_user else "")


def _basic(user: str | None, password: str | None) -> str:
    """Return the value of the header Authorization for a user and a password, which are percent-encoded."""
    from base64 import b64encode
    from urllib.parse import unquote

    name = unquote(user or "")
    if ":" in name:  # RFC 7617, section 2
        raise ValueError("takes a user name without a colon")
    pair = f"{name}:{unquote(password or '')}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def server_url(host: str, port: int, secure: bool) -> Url:
    """Return the address of the first page of the server at `host` and `port`, with https if `secure` is True.

    Raises:
        ValueError: The host is invalid.
    """
    shown = f"http{'s' if secure else ''}://{join_address(_checked_host(host), port)}"
    return Url(secure, host, port, "/", shown, False)


def _checked_host(host: str) -> str:
    """Return the host. Raise ValueError for characters that http.client does not accept."""
    if re.search("[\0- \x7f]", host):
        raise ValueError("takes a host name without spaces and control characters")
    return host


class ServerTrust:
    """Trusted servers for TLS: those with one certificate, or those of certificate authorities.

    Args:
        fingerprint: SHA-256 of the server's certificate, 64 hex digits. If it is not empty, authorities are not used.
        ca: File of certificates (PEM) to trust instead of the system's; None for the system's.
    """

    def __init__(self, fingerprint: str = "", ca: str | None = None) -> None:
        self.fingerprint, self._ca = fingerprint, ca

    @functools.cached_property
    def context(self) -> ssl.SSLContext:
        """TLS context for version 1.2 or later.

        Raises OSError if the file cannot be read, or contains no certificates.
        """
        import ssl

        if self.fingerprint:  # the fingerprint is compared after the handshake, so authorities are not needed
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        else:
            context = ssl.create_default_context(cafile=self._ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        return context

    def check(self, sock: ssl.SSLSocket, server: str) -> None:
        """Raise CertificateMismatch if a certificate is pinned, and `sock` received another one from `server`."""
        if self.fingerprint:
            import hashlib

            found = hashlib.sha256(sock.getpeercert(binary_form=True) or b"").hexdigest()
            if found != self.fingerprint:
                raise CertificateMismatch(self.fingerprint, found, server)


class HttpResponse(NamedTuple):
    """A complete answer.

    Attributes:
        status: HTTP status.
        reason: Reason phrase.
        headers: The headers.
        body: The body.
    """

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes


class HttpConnection:
    """Connection to one server, which stays open between requests if the server agrees.

    Args:
        url: Address with scheme, host and port of the server. Its user and password are sent with each request that has
            no header Authorization.
        timeout_s: Time limit in seconds for connecting, and for each part of an answer.
        trust: Trusted servers for https; None for those that the system trusts.
        connect_timeout_s: Time limit in seconds for connecting, including the TLS handshake, if less than `timeout_s`.
        deadline_s: Value of time.monotonic() at which everything must be complete.

    Raises:
        OSError: The file of certificates cannot be read.

    Attributes:
        server: Scheme, host and port of the server.
    """

    def __init__(
        self, url: Url, timeout_s: float, trust: ServerTrust | None = None, *,
        connect_timeout_s: float = math.inf, deadline_s: float = math.inf,
    ) -> None:  # fmt: skip
        import http.client

        self.server = url.shown
        self._authorization = url.authorization
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._connect_timeout_s = min(timeout_s, connect_timeout_s)
        self._invalid = http.client.HTTPException
        self._trust = (trust or ServerTrust()) if url.secure else None
        self._link = (
            http.client.HTTPSConnection(url.host, url.port, context=self._trust.context)
            if self._trust
            else http.client.HTTPConnection(url.host, url.port)
        )
        self._link.auto_open = 0  # http.client would connect again without checking the certificate

    @property
    def is_open(self) -> bool:
        """False before the first request, after an error, and after an answer with which the server closes it."""
        return self._link.sock is not None

    def connect(self) -> None:
        """Connect, and check the server's certificate before anything is sent. Raise HttpError if that fails."""
        self.close()
        try:
            with self._translated():
                timeout_s = max(0.001, min(self._connect_timeout_s, self._deadline_s - time.monotonic()))
                sock: Any = connected(self._link.host, self._link.port, timeout_s, self._set_sock)
                if self._trust:
                    sock = self._link.sock = self._trust.context.wrap_socket(
                        sock, server_hostname=self._link.host, do_handshake_on_connect=False
                    )
                    sock.do_handshake()  # when `_link` has the new object, which `cut` can abort
                    self._trust.check(sock, self.server)
                sock.settimeout(self._timeout_s)
        except HttpError:
            self.close()
            raise

    def _set_sock(self, sock: socket.socket) -> None:
        self._link.sock = sock

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | str | Iterable[bytes] | None = None,
        *, limit_bytes: int | None, until_close: bool = False, skip_success: bool = False,
    ) -> HttpResponse:  # fmt: skip
        """Send a request and return the answer, regardless of its status. After an error the connection is closed.

        Args:
            method: HTTP method.
            target: Path and query.
            headers: HTTP headers.
            body: Body of the request, or None.
            limit_bytes: Maximum length of the answer's body. If it is None, the body is not read, and the connection is
                closed.
            until_close: True to accept a body without a declared length, which ends with the connection. If it is
                False, such a body counts as cut off: after a truncated head the length is missing too, and http.client
                does not report that.
            skip_success: True to not read the body of an answer with a status from 200 to 299, as without
                `limit_bytes`. An error in that body then cannot hide the success.

        Raises:
            HttpError: There is no valid answer.
        """
        if self._link.sock is None:
            self.connect()
        if self._authorization and "authorization" not in map(str.lower, headers):
            headers = {**headers, "Authorization": self._authorization}
        budget_bytes = 2 * (limit_bytes or 0) + _HEAD_BYTES
        parse: Any = functools.partial(_parse, self._timeout_s, self._deadline_s, budget_bytes)
        self._link.response_class = parse
        try:
            with self._translated(limit_bytes or 0, target, headers):
                self._link.request(method, target, body, headers)
                with contextlib.closing(self._link.getresponse()) as response:
                    is_skipped = skip_success and response.status // 100 == 2
                    return self._complete(response, None if is_skipped else limit_bytes, until_close)
        except HttpError:
            self.close()
            raise

    def _complete(self, response: http.client.HTTPResponse, limit_bytes: int | None, until_close: bool) -> HttpResponse:
        if limit_bytes is None:
            self.close()
            return HttpResponse(response.status, response.reason, response.headers, b"")
        body = response.read(limit_bytes + 1)
        found = HttpResponse(response.status, response.reason, response.headers, body[:limit_bytes])
        if len(body) > limit_bytes:
            raise AnswerTooLong(limit_bytes, self.server, found)
        # http.client itself reports incomplete chunks.
        if response.length or (response.length is None and not (response.chunked or until_close)):
            raise AnswerCutOff("the answer was cut off", self.server)
        return found

    @contextlib.contextmanager
    def _translated(
        self, limit_bytes: int = 0, target: str = "", headers: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[None]:
        """Convert errors of http.client, ssl and sockets to HttpError."""
        try:
            yield
        except HttpError:
            raise
        except self._invalid as error:  # before OSError, because RemoteDisconnected is both
            raise InvalidAnswer(error, self.server, secrets_in(target, headers)) from None
        except OverflowError:
            raise AnswerTooLong(limit_bytes, self.server, None) from None
        except OSError as error:  # before ValueError, because SSLCertVerificationError is both
            raise network_error(error, self.server) from None
        except ValueError as error:  # its text contains the header
            raise HttpError(f"the host name or a header is invalid ({type(error).__name__})", self.server) from None

    def close(self) -> None:
        """Close the connection. The next request opens a new one."""
        self._link.close()

    def cut(self) -> None:
        """Abort the request of another thread, also while it connects. It fails immediately, and then closes this."""
        sock = self._link.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # the connection has ended
                # This method is used for TLS too, because SSLSocket.shutdown waits for the peer.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _parse(
    timeout_s: float, deadline_s: float, budget_bytes: int, sock: socket.socket, **options: Any
) -> http.client.HTTPResponse:  # fmt: skip
    """Return the answer that is read from `sock`, with limits.

    Instead of the socket, http.client receives a limited reader. It only calls the `makefile` of that reader.
    """
    import http.client

    reader: Any = _LimitedReader(sock, timeout_s, deadline_s, budget_bytes)
    return http.client.HTTPResponse(reader, **options)


class _LimitedReader(io.RawIOBase):
    """Reader of the bytes of one answer, with limits.

    It raises TimeoutError at the deadline, and OverflowError after `budget_bytes`.
    http.client itself has no limit for a chunk with the length -1, or for the number of heads with status 100.
    """

    def __init__(self, sock: socket.socket, timeout_s: float, deadline_s: float, budget_bytes: int) -> None:
        self._sock, self._timeout_s, self._deadline_s = sock, timeout_s, deadline_s
        self._left_bytes = budget_bytes
        self._raw = sock.makefile("rb", buffering=0)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline_s < math.inf:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(min(self._timeout_s, left_s))
        count = self._raw.readinto(buffer)
        self._left_bytes -= count or 0
        if self._left_bytes < 0:
            raise OverflowError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class Fetched(NamedTuple):
    """An answer, and the address of the document after redirects.

    Attributes:
        url: The address.
        response: The answer.
    """

    url: Url
    response: HttpResponse


class HttpFetcher:
    """Client that fetches documents, each over a new connection, and follows redirects if that is safe.

    Args:
        timeout_s: Time limit in seconds for a complete answer, including redirects.
        limit_bytes: Maximum length of an answer's body.
        trust: Trusted servers for https; None for those that the system trusts.
        headers: HTTP headers. They are not sent to another server after a redirect.
        accept: Accepted types of content.
    """

    def __init__(
        self, timeout_s: float, limit_bytes: int, trust: ServerTrust | None = None,
        headers: Mapping[str, str] | None = None, accept: str = "*/*",
    ) -> None:  # fmt: skip
        import http.client  # noqa: F401  # imported now, so that it does not use the time limit of the first answer

        self.timeout_s, self._limit_bytes = timeout_s, limit_bytes
        self._trust = trust or ServerTrust()
        self._headers = headers or {}
        public = {"User-Agent": USER_AGENT, "Accept": accept, "Connection": "close"}
        given = {name.lower() for name in self._headers}
        self._public = {name: value for name, value in public.items() if name.lower() not in given}

    def fetch(self, url: str, headers: Mapping[str, str] | None = None, form: str | None = None) -> Fetched:
        """Return the answer, regardless of its status.

        Args:
            url: Address of the document.
            headers: HTTP headers in addition to those of the fetcher.
            form: Text of a form, which is sent by POST; then no redirect is followed.

        Raises:
            ValueError: The address is invalid.
            BadRedirect: The server redirects to an address that is not followed, or too often.
            HttpError: There is no valid answer.
        """
        from urllib.parse import urljoin

        deadline_s = time.monotonic() + self.timeout_s
        at = _without_user(url)
        sent = {**self._public, **self._headers, **(headers or {})}
        for _ in range(MOST_REDIRECTS):
            response = self._once(at, sent, form, deadline_s)
            if response.status not in _REDIRECTS or form is not None:
                return Fetched(at, response)
            try:
                url = urljoin(url, response.headers.get("Location", ""))
                to = _without_user(url)
            except ValueError:
                raise BadRedirect("redirects to an address that is not a valid http or https URL", at.shown) from None
            if at.secure and not to.secure:
                raise BadRedirect(f"redirects to {to.shown}, which is not encrypted", at.shown)
            if to.host != at.host or (to.port != at.port and (at.port, to.port) != (80, 443)):
                sent = self._public
            at = to
        raise BadRedirect("redirects too often", at.shown)

    def _once(self, at: Url, headers: Mapping[str, str], form: str | None, deadline_s: float) -> HttpResponse:
        method = "GET" if form is None else "POST"
        if form is not None:
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        connection = HttpConnection(at, self.timeout_s, self._trust, deadline_s=deadline_s)
        try:
            return connection.request(
                method, at.target, headers, form, limit_bytes=self._limit_bytes, until_close=True
            )  # fmt: skip
        except AnswerTooLong as error:
            if error.response is None or error.response.status not in _REDIRECTS:
                raise
            return error.response  # the target of the redirect is in its head
        finally:  # close it here: otherwise it stays open as long as the traceback of an error exists
            connection.close()


def _without_user(url: str) -> Url:
    found = split_url(url)
    if found.has_user:
        raise ValueError("takes no user and password")
    return found
