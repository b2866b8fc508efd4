"""Asks web servers for JSON, within a deadline for the whole of it, and takes no more than a limit.

Runs on: node (where a source asks the web) and server.  Reached from: sensors/json.  Hands on to: a web server.
Threads: a Web may be used by one thread at a time.
Errors: SensorError, and Refused with the HTTP status. They name the server, and nothing of the address behind it nor of
  what was sent along: keys and passwords stand there.

http.client, ssl and urllib are loaded when the first Web is made, ssl only for https: they cost several MiB.
"""

from __future__ import annotations

import functools
import io
import json
import re
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.version import VERSION

LONGEST_ANSWER = 1 << 20  # bytes
_HOPS = 4  # from one address to the next
_REDIRECTS = (301, 302, 303, 307, 308)
_HINTS = {
    401: ": it wants a token or password", 403: ": it does not let us", 404: ": there is no such address",
    429: ": it is asked too often; set every",
}  # fmt: skip


class Refused(SensorError):
    """A web server's answer that is none, with its status."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


class Url(NamedTuple):
    """The parts of an address; `shown` is how errors name it."""

    secure: bool
    host: str
    port: int
    target: str
    shown: str


def split_url(url: str) -> Url:
    """The parts of an http: or https: address; ValueError in words."""
    from urllib.parse import quote, urlsplit

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("takes an address that begins with http:// or https:// and a host")
    if parts.username is not None:
        raise ValueError("takes no user and password; give them as headers = {Authorization = 'Basic ...'}")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe="/?#[]@!$&'()*+,;=:%~")
    return Url(secure, host, port, target, re.sub("[^!-~]", "?", f"{parts.scheme}://{parts.netloc}")[:100])


def decoded(data: bytes, whence: str) -> Any:
    """What the JSON in `data` says. SensorError for what is none, or longer than LONGEST_ANSWER."""
    if len(data) > LONGEST_ANSWER:
        raise SensorError(f"{whence}: longer than {LONGEST_ANSWER} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise SensorError(f"{whence}: no JSON, but {data[:60]!r}") from None


class _Watched(io.RawIOBase):
    """A socket as http.client wants it, of which each read ends with the deadline of the whole answer.

    It also counts the bytes: http.client reads without end what is sent in a chunk of the length -1.
    """

    def __init__(self, sock: socket.socket, give_up_s: float) -> None:
        self._sock, self._give_up_s = sock, give_up_s
        self._left = 2 * LONGEST_ANSWER  # with the head, and what chunks cost
        self._raw = sock.makefile("rb", buffering=0)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._give_up_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(left_s)
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise OverflowError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class Web:
    """Asks web servers, each time over a connection of its own."""

    def __init__(self, timeout_s: float, ca: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        """
        timeout_s  for a whole answer, redirections included
        ca         a file of certificates to trust instead of the system's
        headers    are sent along, as long as the server is the one that was meant

        Raises SettingsError when the file is none of certificates.
        """
        import http.client

        self._http: Any = http.client
        self._timeout_s, self._ca = timeout_s, ca
        self._headers = headers or {}
        own = {"User-Agent": f"pigeonpost/{VERSION}", "Accept": "application/json", "Connection": "close"}
        given = {name.lower() for name in self._headers}
        self._own = {name: value for name, value in own.items() if name.lower() not in given}
        self._tls: Any = None
        if ca:
            self._context()

    def _context(self) -> Any:
        if self._tls is None:
            import ssl

            try:
                self._tls = ssl.create_default_context(cafile=self._ca)
            except OSError as error:
                raise SettingsError(f"ca takes a file of certificates (PEM), not {self._ca!r}: {error}") from None
        return self._tls

    def ask(self, url: str, headers: Mapping[str, str] | None = None, form: str | None = None) -> Any:
        """What is answered, as JSON. SensorError; Refused for another status than 200 to 299.

        headers  in addition to those of the Web
        form     is sent by POST, and then no redirection is followed
        """
        from urllib.parse import urljoin

        give_up_s = time.monotonic() + self._timeout_s
        at = split_url(url)
        sent = {**self._own, **self._headers, **(headers or {})}
        for _ in range(_HOPS):
            status, where, data = self._once(at, sent, form, give_up_s)
            if status not in _REDIRECTS or form is not None:
                return _judged(at, status, data)
            try:
                url = urljoin(url, where)
                to = split_url(url)
            except ValueError:
                raise SensorError(f"{at.shown}: sends us to something that is not http: or https:") from None
            if at.secure and not to.secure:
                raise SensorError(f"{at.shown}: sends us to {to.shown}, which is not encrypted")
            if to.host != at.host or (to.port != at.port and (at.port, to.port) != (80, 443)):
                sent = self._own
            at = to
        raise SensorError(f"{at.shown}: sends us from one address to the next without end")

    def _once(self, at: Url, headers: Mapping[str, str], form: str | None, give_up_s: float) -> tuple[int, str, bytes]:
        """One request: status, the Location, and at most one byte more than is taken."""
        if form is not None:
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        connection = response = None
        try:
            connection = self._connection(at, max(0.001, give_up_s - time.monotonic()))
            connection.response_class = functools.partial(self._response, give_up_s)
            connection.request("GET" if form is None else "POST", at.target, form, headers)
            response = connection.getresponse()
            data = response.read(LONGEST_ANSWER + 1)
            if len(data) <= LONGEST_ANSWER and response.length:
                raise SensorError(f"{at.shown}: its answer breaks off")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise SensorError(f"{at.shown}: answers in a coding that it was not asked for")
            return response.status, response.headers.get("Location", ""), data
        except SensorError:
            raise
        except OverflowError:
            raise SensorError(f"{at.shown}: longer than {LONGEST_ANSWER} bytes") from None
        except TimeoutError:
            raise SensorError(f"{at.shown}: no answer within {self._timeout_s:g} s") from None
        except self._http.HTTPException as error:
            raise SensorError(f"{at.shown}: its answer is no HTTP ({type(error).__name__})") from None
        except OSError as error:
            certificate = getattr(error, "verify_message", "")  # of ssl's errors
            hint = "; a certificate that it has made itself can be named with ca" if certificate else ""
            raise SensorError(f"{at.shown}: {certificate or error.strerror or error}{hint}") from None
        finally:  # now, not when somebody forgets the error that we are on the way with
            for held in (response, connection):
                if held:
                    held.close()

    def _connection(self, at: Url, seconds: float) -> Any:
        if at.secure:
            return self._http.HTTPSConnection(at.host, at.port, timeout=seconds, context=self._context())
        return self._http.HTTPConnection(at.host, at.port, timeout=seconds)

    def _response(self, give_up_s: float, sock: socket.socket, **more: Any) -> Any:
        return self._http.HTTPResponse(_Watched(sock, give_up_s), **more)


def _judged(at: Url, status: int, data: bytes) -> Any:
    if 200 <= status <= 299:
        return decoded(data, at.shown)
    raise Refused(f"{at.shown}: HTTP status {status}{_said(data)}{_HINTS.get(status, '')}", status)


def _said(data: bytes) -> str:
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
