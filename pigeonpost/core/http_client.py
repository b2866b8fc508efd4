"""HTTP client of nodes, servers and commands: connections, TLS and pinned certificates, deadlines, limits, redirects.

Threads: an object belongs to one thread; `HttpConnection.cut` is for others.
Errors: HttpError and the classes derived from it; their texts do not repeat the address, which may have a secret in it.
Sources: RFC 9110, section 15.4 (redirects); RFC 9112, section 6.3 (the length of a body).

Proxies, cookies and compression are not used. http.client, ssl and hashlib cost a node several MiB of memory: they are
loaded when the first connection is made, the latter two only for https and a pinned certificate.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
import socket
import time

from pigeonpost.core.addresses import join_address
from pigeonpost.core.errors import PigeonpostError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.core.version import VERSION

if TYPE_CHECKING:
    import http.client
    import ssl
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

USER_AGENT = f"pigeonpost/{VERSION}"
MOST_REDIRECTS = 4
_REDIRECTS = (301, 302, 303, 307, 308)
_HEAD_BYTES = 64 << 10  # of an answer, beside twice its body's limit: chunks have heads of their own


class HttpError(PigeonpostError, OSError):
    """No answer, or one that cannot be used. `server` is its scheme, host and port, and nothing more of the address."""

    def __init__(self, text: str, server: str) -> None:
        super().__init__(text)
        self.server = server


class AnswerTimeout(HttpError):
    """No connection, or no complete answer, within the time limit."""


class InvalidAnswer(HttpError):
    """The server does not speak HTTP. `kind` is the name of http.client's error."""

    def __init__(self, error: Exception, server: str) -> None:
        super().__init__(str(error) or type(error).__name__, server)
        self.kind = type(error).__name__


class AnswerCutOff(HttpError):
    """The connection ended before the answer did."""


class AnswerTooLong(HttpError):
    """The body is longer than the limit. `response` has its beginning; None: the length that was declared is false."""

    def __init__(self, limit_bytes: int, server: str, response: HttpResponse | None) -> None:
        super().__init__(f"longer than {limit_bytes} bytes", server)
        self.limit_bytes, self.response = limit_bytes, response


class BadRedirect(HttpError):
    """The server redirects to an address that is not followed, or too often."""


class CertificateNotTrusted(HttpError):
    """No trusted authority vouches for the server's certificate; `why` is what OpenSSL reports."""

    def __init__(self, text: str, why: str, server: str) -> None:
        super().__init__(text, server)
        self.why = why


class CertificateMismatch(HttpError):
    """The server has another certificate than the pinned one: fingerprints `expected` and `found`."""

    def __init__(self, expected: str, found: str, server: str) -> None:
        super().__init__(f"another certificate: expected {expected}, found {found}", server)
        self.expected, self.found = expected, found


class Url(NamedTuple):
    """The parts of an address; `shown` is how errors name the server. A user and password are not used."""

    secure: bool
    host: str
    port: int
    target: str
    shown: str
    has_user: bool


def split_url(url: str) -> Url:
    """The parts of an http: or https: address; ValueError in words."""
    from urllib.parse import quote, urlsplit

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("takes an address that begins with http:// or https:// and a host")
    secure = parts.scheme == "https"
    try:
        port = parts.port or (443 if secure else 80)
    except ValueError:  # which quotes it: what stands there may be a part of a password
        raise ValueError("takes an address whose port is a number up to 65535") from None
    try:
        host = _checked_host(parts.hostname.encode("idna").decode())
    except UnicodeError:
        raise ValueError("takes a host name with labels of 1 to 63 characters") from None
    target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe="/?#[]@!$&'()*+,;=:%~")
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return Url(secure, host, port, target, re.sub("[^!-~]", "?", shown)[:100], parts.username is not None)


def server_url(host: str, port: int, secure: bool) -> Url:
    """Return the address of a server's first page. Raises ValueError for an invalid host."""
    shown = f"http{'s' if secure else ''}://{join_address(_checked_host(host), port)}"
    return Url(secure, host, port, "/", shown, False)


def _checked_host(host: str) -> str:
    """Return the host. Raises ValueError for characters at which http.client raises InvalidURL."""
    if re.search("[\0- \x7f]", host):
        raise ValueError("takes a host name without spaces and control characters")
    return host


class ServerTrust:
    """The servers that are trusted over TLS: by one certificate, or by the authorities of a file or of the system."""

    def __init__(self, fingerprint: str = "", ca: str | None = None) -> None:
        """
        fingerprint  SHA-256 of the server's certificate, 64 hex digits; it takes the place of any authority
        ca           file of certificates (PEM) to trust instead of the system's
        """
        self.fingerprint, self._ca = fingerprint, ca

    @functools.cached_property
    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later. Raises OSError for a file that cannot be read, or has no certificates in it."""
        import ssl

        if self.fingerprint:  # compared once the server has shown its certificate: no authority has to be loaded
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        else:
            context = ssl.create_default_context(cafile=self._ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        return context

    def check(self, sock: ssl.SSLSocket, server: str) -> None:
        """Raises CertificateMismatch if a certificate is pinned and this is another one."""
        if self.fingerprint:
            import hashlib

            found = hashlib.sha256(sock.getpeercert(binary_form=True) or b"").hexdigest()
            if found != self.fingerprint:
                raise CertificateMismatch(self.fingerprint, found, server)


class HttpResponse(NamedTuple):
    """A complete answer."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes


class HttpConnection:
    """A connection to one server, kept alive between requests where the server agrees."""

    def __init__(
        self, url: Url, timeout_s: float, trust: ServerTrust | None = None, *,
        connect_timeout_s: float = math.inf, deadline_s: float = math.inf,
    ) -> None:  # fmt: skip
        """
        url                its scheme, host and port
        timeout_s          to connect, and for each part of an answer
        trust              for https; without it, servers that the system trusts
        connect_timeout_s  to connect, with the TLS handshake, if that is less
        deadline_s         when everything has to be over, as time.monotonic() counts

        Raises OSError for a file of certificates that cannot be read.
        """
        import http.client

        self.server = url.shown
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._connect_timeout_s = min(timeout_s, connect_timeout_s)
        self._invalid = http.client.HTTPException
        self._trust = (trust or ServerTrust()) if url.secure else None
        self._link = (
            http.client.HTTPSConnection(url.host, url.port, context=self._trust.context)
            if self._trust
            else http.client.HTTPConnection(url.host, url.port)
        )
        self._link.auto_open = 0  # http.client would connect again without a look at the certificate

    def connect(self) -> None:
        """Connect, and check the server's certificate: nothing is sent before. Raises HttpError."""
        self.close()
        try:
            with self._translated():
                self._link.timeout = max(0.001, min(self._connect_timeout_s, self._deadline_s - time.monotonic()))
                self._link.connect()
                sock: Any = self._link.sock
                if self._trust:
                    self._trust.check(sock, self.server)
                sock.settimeout(self._timeout_s)
        except HttpError:
            self.close()
            raise

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | str | Iterable[bytes] | None = None,
        *, limit_bytes: int | None, until_close: bool = False,
    ) -> HttpResponse:  # fmt: skip
        """Send a request and return the answer, whatever its status. Raises HttpError; the connection is closed then.

        limit_bytes  of the answer's body; None: the body is not read, and the connection is closed
        until_close  whether a body without a length may end with the connection. Else that counts as cut off: a head
                     that is cut off looks the same, and http.client reports neither.
        """
        if self._link.sock is None:
            self.connect()
        budget_bytes = 2 * (limit_bytes or 0) + _HEAD_BYTES
        parse: Any = functools.partial(_parse, self._timeout_s, self._deadline_s, budget_bytes)
        self._link.response_class = parse
        try:
            with self._translated(limit_bytes or 0):
                self._link.request(method, target, body, headers)
                with contextlib.closing(self._link.getresponse()) as response:
                    return self._complete(response, limit_bytes, until_close)
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
        # Of chunks http.client reports itself that they are cut off.
        if response.length or (response.length is None and not (response.chunked or until_close)):
            raise AnswerCutOff("the answer was cut off", self.server)
        return found

    @contextlib.contextmanager
    def _translated(self, limit_bytes: int = 0) -> Iterator[None]:
        """Turns the errors of http.client, ssl and sockets into HttpError."""
        try:
            yield
        except HttpError:
            raise
        except self._invalid as error:  # before OSError: RemoteDisconnected is both
            raise InvalidAnswer(error, self.server) from None
        except OverflowError:
            raise AnswerTooLong(limit_bytes, self.server, None) from None
        except (OSError, ValueError) as error:  # ValueError: a host name or a header that cannot be sent
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                raise AnswerTimeout(text, self.server) from None
            why = getattr(error, "verify_message", "")  # of ssl.SSLCertVerificationError
            if why:
                raise CertificateNotTrusted(text, why, self.server) from None
            raise HttpError(text, self.server) from None

    def close(self) -> None:
        """End the connection; the next request opens another one."""
        self._link.close()

    def cut(self) -> None:
        """Let the request that another thread waits for fail at once, which then closes the connection."""
        sock = self._link.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # it was over
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of TLS too: its own shutdown waits for the peer


def _parse(
    timeout_s: float, deadline_s: float, budget_bytes: int, sock: socket.socket, **options: Any
) -> http.client.HTTPResponse:  # fmt: skip
    """The answer from `sock`, in whose place http.client gets a reader: it calls nothing but `makefile`."""
    import http.client

    reader: Any = _LimitedReader(sock, timeout_s, deadline_s, budget_bytes)
    return http.client.HTTPResponse(reader, **options)


class _LimitedReader(io.RawIOBase):
    """The bytes of one answer, limited: TimeoutError at the deadline, OverflowError beyond `budget_bytes`.

    http.client itself reads without end what is sent in a chunk of the length -1, or as heads with status 100.
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
    """An answer, and the address that gave it in the end."""

    url: Url
    response: HttpResponse


class HttpFetcher:
    """Fetches documents, each over a connection of its own, and follows redirects where that is safe."""

    def __init__(
        self, timeout_s: float, limit_bytes: int, trust: ServerTrust | None = None,
        headers: Mapping[str, str] | None = None, accept: str = "*/*",
    ) -> None:  # fmt: skip
        """
        timeout_s    for a whole answer, redirects included
        limit_bytes  of the answer
        headers      are sent as long as the server is the one that was meant
        accept       types of content that are taken
        """
        import http.client  # noqa: F401  # now: the deadline of the first answer does not include it

        self.timeout_s, self._limit_bytes = timeout_s, limit_bytes
        self._trust = trust or ServerTrust()
        self._headers = headers or {}
        public = {"User-Agent": USER_AGENT, "Accept": accept, "Connection": "close"}
        given = {name.lower() for name in self._headers}
        self._public = {name: value for name, value in public.items() if name.lower() not in given}

    def fetch(self, url: str, headers: Mapping[str, str] | None = None, form: str | None = None) -> Fetched:
        """Return the answer, whatever its status. Raises HttpError; ValueError for an address that is none.

        headers  in addition to those of the fetcher
        form     is sent by POST, and then no redirect is followed
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
                raise BadRedirect("sends us to something that is not http: or https:", at.shown) from None
            if at.secure and not to.secure:
                raise BadRedirect(f"sends us to {to.shown}, which is not encrypted", at.shown)
            if to.host != at.host or (to.port != at.port and (at.port, to.port) != (80, 443)):
                sent = self._public
            at = to
        raise BadRedirect("sends us from one address to the next without end", at.shown)

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
            return error.response  # where it leads to is in its head
        finally:  # now, not when the last reference to an error is dropped, whose traceback holds the connection
            connection.close()


def _without_user(url: str) -> Url:
    found = split_url(url)
    if found.has_user:
        raise ValueError("takes no user and password")
    return found
