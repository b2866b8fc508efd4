"""HTTP/1.1 server for any application, based on http.server, with strict parsing, deadlines, limits and TLS.

Threads: one for each listening address and one for each connection. A handler belongs to the thread of its connection.
Only this thread reads and writes the socket. Other threads only shut the socket down, through Connections.
Errors: an error of a connection closes this connection. An exception in the application is logged and answered with
500.

A slow client occupies a thread but never a slot, because a slot is acquired only after the complete request has been
received. When all slots are occupied by responses that the clients do not read, the slowest connection is closed. When
too many connections are open, the longest waiting connection of the address with the most connections is closed. Thus
400 incomplete requests do not prevent responses to other clients.
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
    from pigeonpost.web.tls import Tls, TlsConnection

log = logging.getLogger(__name__)

_READ_BYTES = 16 << 10
_DRAIN_BYTES, _DRAIN_S = 1 << 20, 1.0  # maximum input that is read and discarded after an error response
_TLS_HANDSHAKE = b"\x16"  # the first byte of every TLS connection (RFC 8446, section 5.1: ContentType handshake)


class RequestHandler(http.server.BaseHTTPRequestHandler, ABC):
    """Handler of one connection, which serves its requests one after the other.

    A subclass has a `do_` method for each HTTP method, which calls `serve`, and the method `do_OTHER` for all other
    HTTP methods. It defines the maximum length of a body, the consumer of a body, and the error pages.

    Attributes:
        host: Address of the client.
        message: Current request, or None while its head has not been read.
        waiting_since: `time.monotonic()` since which the server has been waiting for data of the client, or None.
        sending_since: `time.monotonic()` at which sending the current response began, or None.
        is_proven: True if the client that is sending the current body has authenticated.
    """

    protocol_version = default_request_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 << 10  # large enough to send a page and its head in one write

    server: Listener
    request: socket.socket
    raw_requestline: bytes  # the complete head: see RequestReader

    @abstractmethod
    def max_body_bytes(self, request: Request) -> int:
        """Return the maximum length in bytes of the body of `request`. This is called after its head has been read."""

    @abstractmethod
    def body_consumer(self, request: Request, length: int) -> BodyConsumer | None:
        """Return the consumer for the body of `request`, or None to store the complete body in the request.

        `length` is the length of the body in bytes, or the maximum length if the body is chunked.
        """

    def takes_encoded(self, request: Request) -> bool:
        """Return True if the body of `request` may be chunked and compressed, which requires a consumer."""
        return False

    @abstractmethod
    def error_page(self, request: Request | None, error: HTTPError) -> Response:
        """Return the response for `error`. `request` is None if its head could not be read."""

    # ------------------------------------------------------------------------------------------- connection

    def setup(self) -> None:
        """Prepare the connection."""
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
        self._is_kept = False  # True after the first request
        self._is_refused = False
        self._is_responding = False  # True if a part of the response may have been sent
        self._secure: TlsConnection | None = None  # the TLS connection over `request`, if TLS is used

    def _use(self, stream: DeadlineStream) -> None:
        self._stream = stream
        self.rfile: RequestReader = RequestReader(stream, _READ_BYTES)
        self.wfile: io.BufferedIOBase = io.BufferedWriter(stream, self.wbufsize)

    def handle(self) -> None:
        """Serve the connection, or refuse it if there are too many."""
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
        """Close the streams of the connection."""
        try:
            super().finish()
        except OSError:  # closing wfile tries again to send the remaining data
            pass

    def _begin_tls(self, tls: Tls) -> bool:
        """Do the handshake and return True, or return False if the client does not use TLS.

        This runs in the thread of the connection, so that a silent client does not block others.
        """
        give_up_s = time.monotonic() + self._limits.head_s
        self.request.settimeout(self._limits.head_s)
        first = self.request.recv(1, socket.MSG_PEEK)
        self.request.setblocking(False)  # as required by DeadlineStream
        if first != _TLS_HANDSHAKE:
            self.close_connection = True
            if first:
                text = "This server uses TLS. Open the address with https:// instead of http://."
                self.refuse(HTTPError(400, text, "tls", closes=True))
            return False
        # Assigned before the handshake, so that the connection can be closed at a limit like any other.
        self._secure = tls.wrap(self.request)
        self.request = self.connection = self._secure.sock
        self._secure.do_handshake(max(0.001, give_up_s - time.monotonic()))
        self._use(TlsStream(self._secure.sock))
        return True

    def _drain(self) -> None:
        """Read and discard further input: closing with unread bytes would reset the connection, losing the response."""
        self.waiting_since = time.monotonic()
        self._stream.allow(_DRAIN_S)
        if self._secure is not None:
            self._secure.send_close_notify()
        self.request.shutdown(socket.SHUT_WR)
        left_bytes = _DRAIN_BYTES
        try:
            while left_bytes > 0 and (data := self.rfile.read1(_READ_BYTES)):
                left_bytes -= len(data)
        except TimeoutError:
            pass  # the client has had enough time to read the response

    # --------------------------------------------------------------------------------------------- requests

    def handle_one_request(self) -> None:
        """Read one request and respond. Set `close_connection` if it is the last one."""
        self.message = None
        self.is_proven = False
        self.waiting_since = time.monotonic()
        self._is_responding = False
        try:
            if self._is_kept:  # the time limit between two requests is longer
                self._stream.allow(self._limits.idle_s)
                self.rfile.peek(1)
            self._is_kept = True
            self._stream.allow(self._limits.head_s)
            super().handle_one_request()
        except HTTPError as error:
            self.refuse(error)
        except TimeoutError:  # the client has sent no further request
            self.close_connection = True
        except OSError:  # an error of the connection
            raise
        except Exception as error:
            if self._is_responding:
                raise
            http_error = self._http_error(error)
            http_error.closes = True  # the unread part of the body would be interpreted as the next request
            self.refuse(http_error)

    def parse_request(self) -> bool:
        """Parse the head in `raw_requestline`, with stricter rules than http.server.

        Return True. Raise HTTPError if the head is invalid.
        """
        self.message = request = parse_head(self.raw_requestline)
        request.peer = self.host
        request.is_secure = self._secure is not None
        self.requestline = f"{request.method} {request.path}"
        self.path = request.path
        # The response of http.server to an unknown method, 501, does not list the allowed methods.
        self.command = request.method if hasattr(self, f"do_{request.method}") else "OTHER"
        self.close_connection = not request.keeps_alive or self._connections.is_stopping
        return True

    def serve(self, respond: Callable[[Request], Response]) -> None:
        """Receive the body of the request, call `respond`, and send the response.

        `respond` is called while a slot is held. Files and event streams are sent after the slot was released.

        Args:
            respond: Function that returns the response to the request.

        Raises:
            HTTPError: The body is not accepted.
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
            request.consumer = None  # breaks a reference cycle if the consumer refers to the request
        if response.file is not None:
            self._send_file(response, response.file)
        elif response.live is not None and request.method != "HEAD":
            self._hand_over(response.live)

    def _response(self, request: Request, respond: Callable[[Request], Response]) -> Response:
        try:
            return respond(request)
        except Exception as error:
            http_error = self._http_error(error)
            self.close_connection = self.close_connection or http_error.closes
            return self.error_page(request, http_error)

    def _http_error(self, error: Exception) -> HTTPError:
        """Return the error for the client that corresponds to an exception. Log the traceback of an internal error."""
        try:
            return self._converted(error)
        finally:
            detach(error)

    def _converted(self, error: Exception) -> HTTPError:
        if isinstance(error, HTTPError):
            return error
        if isinstance(error, StoreDamaged):  # already logged, and shown as a fault of this server
            return HTTPError(503, f"{error}.", "damaged")
        if isinstance(error, DiskError | DamagedFile):  # the text contains the name of the file but none of its content
            kind = type(error).__name__
            self.server.rare_log.log(logging.WARNING, kind, f"{self.host}: {self.requestline}: {error}")
            return HTTPError(503, f"{error}.", "damaged", {"Retry-After": "10"})
        if isinstance(error, NotStored):
            log.warning("%s: %s: %s", self.host, self.requestline, error)
            return HTTPError(
                503, "The database cannot be read now. No data is lost: the nodes keep their samples. Try again soon."
            )
        number = secrets.token_hex(4)
        log.error("%s: internal error %s in %s", self.host, number, self.requestline, exc_info=error)
        return HTTPError(500, f"Internal error. See {number} in the log of the server.", "fault")

    # ----------------------------------------------------------------------------------------------- bodies

    def _receive_body(self, request: Request) -> None:
        most = self.max_body_bytes(request)
        chunked = (length := body_length(request, most, self.takes_encoded(request))) is None
        length = most if length is None else length
        expects_continue = _expects_continue(request)
        try:
            request.consumer = self.body_consumer(request, length)
        except HTTPError as error:
            error.closes = error.closes or length > 0  # the body would be interpreted as the next request
            raise
        self.is_proven = request.consumer is not None and request.consumer.is_proven
        if expects_continue and self.rfile.ahead < (1 if chunked else length):
            self._send_continue(request)
        if request.consumer is not None:
            receive = transfers.receive_chunked if chunked else transfers.receive
            receive(self._stream, self.rfile, length, request.consumer)
        elif length:
            self._stream.allow(self._limits.body_s)
            try:
                request.body = self.rfile.read(length)
            except TimeoutError:
                pass  # the received part is discarded
            if len(request.body) < length:
                raise transfers.cut_body()

    def _send_continue(self, request: Request) -> None:
        """Send 100 Continue to a client that waits for it before it sends the body (RFC 9110, section 10.1.1)."""
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
        """Send the error page for `error`, and close the connection if `error.closes` is set."""
        self.waiting_since = None
        self.close_connection = self.close_connection or error.closes
        self._is_refused = self._is_refused or error.closes
        self.send(self.error_page(self.message, error))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error page and close the connection. Unlike that of http.server, it contains no part of the request.

        Args:
            code: Status of the response.
            message: Ignored.
            explain: Ignored.
        """
        self.refuse(HTTPError(code, f"{HTTPStatus(code).phrase}.", closes=True))

    def send(self, response: Response) -> None:
        """Send `response`. If its body is a file or an event stream, send the head only."""
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
        """Send the status line with `code` and `message`, and the Date header.

        Unlike http.server, this sends no Server header: the version of a program only helps attackers.
        """
        self.log_request(code)
        self.send_response_only(code, message)
        self.send_header("Date", self.date_time_string())

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the text of the Date header for `timestamp`, or for the current time.

        The text is cached for one second. http.server takes 7 µs to format it, and a small response takes 100 µs in
        total (measured).
        """
        now_s = int(time.time() if timestamp is None else timestamp)
        cached_s, text = self.server.date
        if cached_s != now_s:
            text = super().date_time_string(now_s)
            self.server.date = now_s, text
        return text

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Count a response with the status `code` instead of logging it. `size` is ignored."""
        self._connections.count(int(code))

    def log_message(self, format: str, *args: Any) -> None:
        """Log the message `format % args` at debug level."""
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
        """Pass the socket to an event stream. This handler no longer uses it."""
        self._connections.leave(self)
        if self._secure is not None:
            secure, self._secure = self._secure, None
            live(secure)
        else:
            live(socket.socket(fileno=self.request.detach()))


def _expects_continue(request: Request) -> bool:
    """Return True if the client waits for 100 Continue. Raise HTTPError for any other expectation."""
    expected = request.headers.get("expect")
    if expected is None or request.version == "1.0":
        return False
    if expected.lower() != "100-continue":
        raise HTTPError(417, "The only supported value of Expect is 100-continue.", closes=True)
    return True


def _busy() -> HTTPError:
    text = "The server is handling too many requests. Try again in a moment."
    return HTTPError(503, text, "busy", {"Retry-After": "1"}, closes=True)
