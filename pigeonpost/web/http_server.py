"""HTTP/1.1 server for any application: http.server, with a strict head, deadlines, limits and TLS.

Threads: one for each listening address, one for each connection. A handler belongs to the thread of its connection,
  which alone reads and writes the socket; other threads only shut it down, through Connections.
Errors: those of one connection end that connection; an exception in the application is answered with 500 and logged.

Slow clients hold a thread, never a slot: a slot is acquired once the whole request has been received. When all slots
are taken by responses that the network does not drain, the slowest is cut off; when too many connections are open, the
longest waiting one of the address that has most of them. So 400 half requests cost no other client a response.
"""

from __future__ import annotations

import http.server
import io
import logging
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pigeonpost.core.errors import DamagedFile, DiskError, NotStored, StoreDamaged, detach
from pigeonpost.http.message import (
    SAFE_HEADERS,
    BodyConsumer,
    FilePart,
    HTTPError,
    Request,
    Response,
    body_length,
    parse_head,
)
from pigeonpost.web import transfers
from pigeonpost.web.deadline_stream import DeadlineStream, RequestReader, TlsStream
from pigeonpost.web.listener import Listener

if TYPE_CHECKING:
    from pigeonpost.web.tls import Secure, Tls

log = logging.getLogger(__name__)

_READ_BYTES = 16 << 10
_DRAIN_BYTES, _DRAIN_S = 1 << 20, 1.0  # that are read and discarded after an error response
_TLS_HANDSHAKE = b"\x16"  # the first byte of every TLS connection (RFC 8446, section 5.1: ContentType handshake)


class RequestHandler(http.server.BaseHTTPRequestHandler, ABC):
    """The requests of one connection, one after the other.

    A subclass has a `do_` method for each HTTP method, which calls `serve`, and `do_OTHER` for all that remain; it says
    how long a body may be, who consumes it, and how an error is shown.

    host           the client's address
    message        the current request; None while its head has not been read
    waiting_since  the time.monotonic() since which the client is to send something; None: it is not
    sending_since  the time.monotonic() at which sending the current response began
    is_proven      the client that sends the current body has proven who it is
    """

    protocol_version = default_request_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 << 10  # a page leaves with its head in one write, and arrives in one read

    server: Listener
    request: socket.socket
    raw_requestline: bytes  # the whole head: see RequestReader

    @abstractmethod
    def max_body_bytes(self, request: Request) -> int:
        """Return how long the body of this request may be; called once its head has been read."""

    @abstractmethod
    def body_consumer(self, request: Request, length: int) -> BodyConsumer | None:
        """Return who takes the body of this request as it comes; None: it is short, and is kept in the request."""

    @abstractmethod
    def error_page(self, request: Request | None, error: HTTPError) -> Response:
        """Return an error as the client can read it; without a request where its head could not be read."""

    # ------------------------------------------------------------------------------------------- connection

    def setup(self) -> None:
        super().setup()
        self._use(DeadlineStream(self.request))
        self.host = str(self.client_address[0]).removeprefix("::ffff:")
        self.message: Request | None = None
        self.request_version = self.default_request_version
        self.requestline = ""
        self.waiting_since: float | None = time.monotonic()
        self.sending_since: float | None = None
        self.is_proven = False
        self._limits = self.server.limits
        self._connections = self.server.connections
        self._is_kept = False  # after its first request
        self._is_refused = False
        self._is_responding = False  # a part of the response may have been sent
        self._secure: Secure | None = None  # around `request`, where TLS is spoken

    def _use(self, stream: DeadlineStream) -> None:
        self._stream = stream
        self.rfile: RequestReader = RequestReader(stream, _READ_BYTES)
        self.wfile: io.BufferedIOBase = io.BufferedWriter(stream, self.wbufsize)

    def handle(self) -> None:
        """Serve the connection, where there is room for it."""
        tls = self.server.tls
        if not self._connections.enter(self):
            self.close_connection = True
            if tls is None:
                try:
                    self.refuse(_busy())
                except OSError as error:
                    log.debug("%s: %s", self.host, error)
            return
        try:
            if tls is None or self._begin_tls(tls):
                super().handle()
            if self._is_refused:
                self._drain()
        except OSError as error:
            log.debug("%s: %s", self.host, error)
        finally:
            self._connections.leave(self)
            if self._secure is not None:
                self._secure.close()

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # closing wfile tries again to send what could not be sent
            pass

    def _begin_tls(self, tls: Tls) -> bool:
        """Do the handshake, in the connection's own thread: a silent client blocks nobody else."""
        give_up_s = time.monotonic() + self._limits.head_s
        self.request.settimeout(self._limits.head_s)
        first = self.request.recv(1, socket.MSG_PEEK)
        self.request.setblocking(False)  # as the DeadlineStream expects it
        if first != _TLS_HANDSHAKE:
            self.close_connection = True
            if first:
                self.refuse(HTTPError(400, "This address speaks TLS: it begins with https://", "tls", closes=True))
            return False
        # Assigned before the handshake, so that it can be cut off as any other connection.
        self._secure = tls.wrap(self.request)
        self.request = self.connection = self._secure.sock
        self._secure.shake_hands(max(0.001, give_up_s - time.monotonic()))
        self._use(TlsStream(self._secure.sock))
        return True

    def _drain(self) -> None:
        """Read and discard what still comes: closing with unread bytes resets the connection and loses the response."""
        self.waiting_since = time.monotonic()
        self._stream.allow(_DRAIN_S)
        if self._secure is not None:
            self._secure.say_goodbye()
        self.request.shutdown(socket.SHUT_WR)
        left = _DRAIN_BYTES
        try:
            while left > 0 and (data := self.rfile.read1(_READ_BYTES)):
                left -= len(data)
        except TimeoutError:
            pass  # it had its chance

    # --------------------------------------------------------------------------------------------- requests

    def handle_one_request(self) -> None:
        """Read one request and respond; sets `close_connection` when it was the last."""
        self.message = None
        self.is_proven = False
        self.waiting_since = time.monotonic()
        self._is_responding = False
        try:
            if self._is_kept:  # between two requests a client may be silent for longer
                self._stream.allow(self._limits.idle_s)
                self.rfile.peek(1)
            self._is_kept = True
            self._stream.allow(self._limits.head_s)
            super().handle_one_request()
        except HTTPError as error:
            self.refuse(error)
        except TimeoutError:  # of a client that has nothing more to say
            self.close_connection = True
        except OSError:  # of the connection
            raise
        except Exception as error:
            if self._is_responding:
                raise
            found = self._http_error(error)
            found.closes = True  # what was not read of the body would be taken for the next request
            self.refuse(found)

    def parse_request(self) -> bool:
        """Read the head in `raw_requestline`, by stricter rules than the library's. Raises HTTPError."""
        self.message = request = parse_head(self.raw_requestline)
        request.peer = self.host
        request.is_secure = self._secure is not None
        self.requestline = f"{request.method} {request.path}"
        self.path = request.path
        # The library's own answer to an unknown method, 501, does not say which ones the address takes.
        self.command = request.method if hasattr(self, f"do_{request.method}") else "OTHER"
        self.close_connection = not request.keeps_alive or self._connections.is_stopping
        return True

    def serve(self, respond: Callable[[Request], Response]) -> None:
        """Receive the body of the request, then let `respond` answer it. Raises HTTPError where the body is refused.

        A slot is held meanwhile; a file is sent, and an event stream begins, after it was released.
        """
        request = self.message
        assert request is not None
        self._receive_body(request)
        self.waiting_since = None
        self.close_connection = not request.keeps_alive or self._connections.is_stopping
        if not self._connections.acquire_slot():
            if request.consumer is not None:
                request.consumer.abandon()
            raise _busy()
        try:
            response = self._response(request, respond)
            if response.file is None:
                self.send(response)
        finally:
            self._connections.release_slot()
            request.consumer = None  # which may know its request
        if response.file is not None:
            self._send_file(response, response.file)
        elif response.live is not None and request.method != "HEAD":
            self._hand_over(response.live)

    def _response(self, request: Request, respond: Callable[[Request], Response]) -> Response:
        try:
            return respond(request)
        except Exception as error:
            found = self._http_error(error)
            self.close_connection = self.close_connection or found.closes
            return self.error_page(request, found)

    def _http_error(self, error: Exception) -> HTTPError:
        """Return what the client is told of an exception; the log gets the traceback of an internal error."""
        try:
            return self._told(error)
        finally:
            detach(error)

    def _told(self, error: Exception) -> HTTPError:
        if isinstance(error, HTTPError):
            return error
        if isinstance(error, StoreDamaged):  # one of the faults of this server, which has logged it
            return HTTPError(503, f"{error}.", "damaged")
        if isinstance(error, DiskError | DamagedFile):  # the text names the file, and has nothing of its content
            kind = type(error).__name__
            self.server.rare_log.say(logging.WARNING, kind, f"{self.host}: {self.requestline}: {error}")
            return HTTPError(503, f"{error}.", "damaged", {"Retry-After": "10"})
        if isinstance(error, NotStored):
            log.warning("%s: %s: %s", self.host, self.requestline, error)
            return HTTPError(
                503, "The database cannot be asked now. Nothing is lost, the nodes keep their samples; try again soon."
            )
        number = secrets.token_hex(4)
        log.error("%s: fault %s in %s", self.host, number, self.requestline, exc_info=error)
        return HTTPError(500, f"A fault of this program. Its log tells more under {number}.", "fault")

    # ----------------------------------------------------------------------------------------------- bodies

    def _receive_body(self, request: Request) -> None:
        length = body_length(request, self.max_body_bytes(request))
        expects_continue = _expects_continue(request)
        try:
            request.consumer = self.body_consumer(request, length)
        except HTTPError as error:
            error.closes = error.closes or length > 0  # the body would be taken for the next request
            raise
        self.is_proven = request.consumer is not None and request.consumer.is_proven
        if expects_continue and self.rfile.ahead < length:
            self._send_continue(request)
        if request.consumer is not None:
            transfers.receive(self._stream, self.rfile, length, request.consumer)
        elif length:
            self._stream.allow(self._limits.body_s)
            try:
                request.body = self.rfile.read(length)
            except TimeoutError:
                pass  # what came is lost
            if len(request.body) < length:
                raise transfers.cut_body()

    def _send_continue(self, request: Request) -> None:
        """Tell a client that asks first that its body is wanted (RFC 9110, section 10.1.1)."""
        try:
            self._stream.allow(self._limits.send_s)
            self.handle_expect_100()
            self.wfile.flush()
        except OSError:
            if request.consumer is not None:
                request.consumer.abandon()
            raise

    # -------------------------------------------------------------------------------------------- responses

    def refuse(self, error: HTTPError) -> None:
        """Send an error page, and end the connection where the error says so."""
        self.waiting_since = None
        self.close_connection = self.close_connection or error.closes
        self._is_refused = self._is_refused or error.closes
        self.send(self.error_page(self.message, error))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """As the library's, with an error page of ours: what the client sent is not repeated."""
        self.refuse(HTTPError(code, f"{HTTPStatus(code).phrase}.", closes=True))

    def send(self, response: Response) -> None:
        """Send a response, or the head of one whose body follows."""
        request = self.message
        if response.live is not None:
            self.close_connection = True
        self.send_response(response.status)
        for name, value in {"Content-Type": response.kind, **SAFE_HEADERS, **response.headers}.items():
            self.send_header(name, value)
        if response.live is None and response.status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(response.file.length if response.file else len(response.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        elif request is not None and request.version == "1.0":
            self.send_header("Connection", "keep-alive")
        self._stream.allow(self._limits.send_s)
        self.sending_since = time.monotonic()
        self._is_responding = True
        self.end_headers()
        if request is None or request.method != "HEAD":
            self.wfile.write(response.body)
        self.wfile.flush()
        self.sending_since = None

    def send_response(self, code: int, message: str | None = None) -> None:
        """As the library's, without a Server header: versions of programs help attackers only."""
        self.log_request(code)
        self.send_response_only(code, message)
        self.send_header("Date", self.date_time_string())

    def date_time_string(self, timestamp: float | None = None) -> str:
        """As the library's, made once a second: it takes 7 µs, of 100 for a small response (measured)."""
        now_s = int(time.time() if timestamp is None else timestamp)
        made_s, text = self.server.date
        if made_s != now_s:
            text = super().date_time_string(now_s)
            self.server.date = now_s, text
        return text

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Count the response; it is not logged."""
        self._connections.count(int(code))

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s: %s", self.host, format % args)

    def _send_file(self, response: Response, part: FilePart) -> None:
        try:
            if not self._connections.begin_download():
                self.refuse(_busy())
                return
            try:
                self.send(response)
                if self.command != "HEAD" and self._secure is not None:
                    transfers.send_file_over_tls(self._stream, self.wfile, part)
                elif self.command != "HEAD":
                    transfers.send_file(self.request, part)
            finally:
                self._connections.end_download()
        finally:
            os.close(part.fd)

    def _hand_over(self, live: Callable[..., object]) -> None:
        """Give the socket itself away to an event stream; what is left here is an empty shell."""
        self._connections.leave(self)
        if self._secure is not None:
            secure, self._secure = self._secure, None
            live(secure)
        else:
            live(socket.socket(fileno=self.request.detach()))


def _expects_continue(request: Request) -> bool:
    """Returns True if the client waits for 100 Continue. Raises HTTPError for any other expectation."""
    expected = request.headers.get("expect")
    if expected is None or request.version == "1.0":
        return False
    if expected.lower() != "100-continue":
        raise HTTPError(417, "Only 100-continue can be expected.", closes=True)
    return True


def _busy() -> HTTPError:
    return HTTPError(503, "Too much at once; try again in a moment.", "busy", {"Retry-After": "1"}, closes=True)
