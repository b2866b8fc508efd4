"""HTTP/1.1 over TCP for any application: connections, deadlines, limits. Knows nothing of samples.

Runs on: server.  Reached from: webui, which is the application.
Hands on to: web/head, which reads heads; the application, which answers.
Threads: one for each address that accepts, one for each connection. A connection belongs to its thread, which alone
  reads and writes it; others may only shut it down, through Connections.
Errors: those of one connection end that connection; a fault of the application is answered with 500 and logged.

Slow clients hold a thread, never a place at work: a place is taken when the whole request has come. When all are taken
by senders that the network does not drain, the slowest is cut off; when too many connections are open, the one that
has waited longest of whoever has most of them. So 400 half requests cost nobody else an answer.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import socket
import socketserver
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from pigeonpost.core.errors import NotStored
from pigeonpost.http.message import (
    BodyConsumer,
    FilePart,
    HTTPError,
    Request,
    Response,
    answer_head,
    body_length,
    head_end,
    parse_head,
)
from pigeonpost.web.connection_limits import Connections, Limits

if TYPE_CHECKING:
    from pigeonpost.web.tls import Secure, Tls

log = logging.getLogger(__name__)

_READ_BYTES = 16 << 10
_BLOCK_BYTES = 256 << 10  # of a long body at once
_DRAIN_BYTES, _DRAIN_S = 1 << 20, 1.0  # that are read, and thrown away, after a refusal
_TLS_HANDSHAKE = b"\x16"  # with what every TLS connection begins (RFC 8446, section 5.1: ContentType handshake)
_COPY_BYTES = 64 << 10  # of a download over TLS at once
_STALL_S = 30.0  # a download, or an upload, that does not go on for so long is cut off,
_SLOWEST_BYTES_S = 4096.0  # and so is one that is slower than this, after its first minute


class Application(Protocol):
    """Who answers the requests; called by many threads."""

    def body_bytes(self, request: Request) -> int:
        """How long the body of this request may be; asked when its head has come."""

    def receiver(self, request: Request, length: int) -> BodyConsumer | None:
        """Who takes the body of this request as it comes; None: it is short, and comes with the request."""

    def answer(self, request: Request) -> Response:
        """The answer to a whole request. Raises Refusal."""

    def explain(self, request: Request | None, refusal: HTTPError) -> Response:
        """A refusal as the client can read it; without a request when its head did not read."""


class Listener(socketserver.ThreadingTCPServer):
    """Accepts on one address, and runs a Connection in a thread of its own for each client."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(
        self,
        address: tuple[str, int],
        application: Application,
        connections: Connections,
        limits: Limits,
        tls: Tls | None = None,
    ) -> None:
        """Raises OSError when it cannot have the address. tls: what is spoken here; None: plain HTTP."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.application = application
        self.connections = connections
        self.limits = limits
        self.tls = tls
        super().__init__(address, Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("%s: a fault of this program", client_address[0])


class Connection(socketserver.BaseRequestHandler):
    """One client: its requests, one after the other. Shaped like http.server.BaseHTTPRequestHandler."""

    server: Listener
    request: socket.socket

    def setup(self) -> None:
        self.host = str(self.client_address[0]).removeprefix("::ffff:")
        self.close_connection = False
        self.waiting_since: float | None = time.monotonic()  # for the client to say something
        self.sending_since: float | None = None
        self._limits = self.server.limits
        self._connections = self.server.connections
        self._application = self.server.application
        self._data = bytearray()  # received, but not used yet
        self._is_fresh = True
        self._refused = False
        self._secure: Secure | None = None  # around `request`, where TLS is spoken
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle(self) -> None:
        if not self._connections.enter(self):
            self.close_connection = True
            if self.server.tls is None:
                self._send(None, self._application.explain(None, _busy()))
            return
        try:
            if self.server.tls is not None:
                self._begin_tls(self.server.tls)
            while not self.close_connection:
                self.handle_one_request()
            if self._refused:
                self._drain()
        except OSError as error:
            log.debug("%s: %s", self.host, error)
        finally:
            self._connections.leave(self)
            if self._secure is not None:
                self._secure.close()

    def _begin_tls(self, tls: Tls) -> None:
        """The handshake, in this connection's own thread: a client that is silent keeps nobody else waiting."""
        give_up_s = time.monotonic() + self._limits.head_s
        self.request.settimeout(self._limits.head_s)
        first = self.request.recv(1, socket.MSG_PEEK)
        if first != _TLS_HANDSHAKE:
            self.close_connection = True
            if first:
                text = "This address speaks TLS: it begins with https://"
                self.send_error(None, HTTPError(400, text, "tls", closes=True))
            return
        # Assigned before the handshake, so that it can be cut off as any other connection.
        self._secure = tls.wrap(self.request)
        self.request = self._secure.sock
        self._secure.shake_hands(max(0.001, give_up_s - time.monotonic()))

    def handle_one_request(self) -> None:
        """Read one request and answer it; sets `close_connection` when it was the last."""
        request = None
        try:
            request = self._read_head()
            if request is None:
                self.close_connection = True
                return
            self._read_body(request)
            self.waiting_since = None
            self.close_connection = not request.keeps_alive or self._connections.is_stopping
            if not self._connections.begin():
                if request.receiver is not None:
                    request.receiver.abandon()
                raise _busy()
        except HTTPError as refusal:
            self.send_error(request, refusal)
            return
        self._work(request)

    def send_error(self, request: Request | None, refusal: HTTPError) -> None:
        """Answer with a refusal, and end the connection where that belongs to it."""
        self.waiting_since = None
        self.close_connection = self.close_connection or refusal.closes
        self._refused = self._refused or refusal.closes
        self._send(request, self._application.explain(request, refusal))

    # ------------------------------------------------------------------------------------------- reading

    def _read_head(self) -> Request | None:
        """The next request without its body; None when the client says nothing more."""
        self.waiting_since = time.monotonic()
        deadline_s = self.waiting_since + (self._limits.head_s if self._is_fresh else self._limits.idle_s)
        if not self._data:
            try:
                if not self._receive(deadline_s):
                    return None
            except TimeoutError:
                return None
        if not self._is_fresh:
            deadline_s = time.monotonic() + self._limits.head_s
        self._is_fresh = False
        while not (end := head_end(self._data)):
            try:
                if not self._receive(deadline_s):
                    return None
            except TimeoutError:
                raise HTTPError(408, "The request did not come whole in time.", closes=True) from None
        request = parse_head(bytes(self._data[:end]))
        del self._data[:end]
        request.peer = self.host
        request.is_secure = self._secure is not None
        return request

    def _read_body(self, request: Request) -> None:
        length = body_length(request, self._application.body_bytes(request))
        try:
            request.receiver = self._application.receiver(request, length)
        except HTTPError as refusal:
            refusal.closes = refusal.closes or length > 0  # the body would be taken for the next request
            raise
        self._expect(request, length)
        if request.receiver is not None:
            self._pass_on(request.receiver, length)
            return
        deadline_s = time.monotonic() + self._limits.body_s
        while len(self._data) < length:
            try:
                is_there = self._receive(deadline_s)
            except TimeoutError:
                is_there = False
            if not is_there:
                raise _cut_body()
        request.body = bytes(self._data[:length])
        del self._data[:length]

    def _pass_on(self, receiver: BodyConsumer, length: int) -> None:
        """Give a long body to whoever takes it, piece by piece: at a least pace, and with nothing left when it is cut.

        While it comes the connection counts as waiting: when too many are open it may be cut off as any other.
        """
        began_s, left = time.monotonic(), length
        try:
            while left:
                if self._data:  # what came with the head
                    piece = bytes(self._data[:left])
                    del self._data[:left]
                else:  # and then without a copy between: there may be much
                    pace_s = began_s + 60 + (length - left) / _SLOWEST_BYTES_S
                    piece = self._some(min(pace_s, time.monotonic() + _STALL_S), min(left, _BLOCK_BYTES))
                if not piece:
                    raise _cut_body()
                left -= len(piece)
                receiver.take(piece)
        except BaseException as error:
            receiver.abandon()
            if isinstance(error, TimeoutError):
                raise _cut_body() from None
            if isinstance(error, HTTPError):
                error.closes = True  # what else of the body comes would be taken for a request
            raise

    def _expect(self, request: Request, length: int) -> None:
        """Clients with a long body may ask first whether it is wanted (RFC 9110, section 10.1.1)."""
        said = request.headers.get("expect")
        if said is None or request.version == "1.0":
            return
        if said.lower() != "100-continue":
            raise HTTPError(417, "Only 100-continue can be expected.", closes=True)
        if len(self._data) < length:
            self.request.settimeout(self._limits.send_s)
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _receive(self, deadline_s: float) -> bool:
        """Some more bytes into `_data`; False when the client has closed. Raises TimeoutError at the deadline."""
        data = self._some(deadline_s, _READ_BYTES)
        self._data += data
        return bool(data)

    def _some(self, deadline_s: float, most: int) -> bytes:
        """Some more bytes; none when the client has closed. Raises TimeoutError at the deadline."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.request.settimeout(left_s)
        return self.request.recv(most)

    def _drain(self) -> None:
        """Read away what still comes: closing with unread bytes would reset the connection and lose the answer."""
        self.waiting_since = time.monotonic()
        deadline_s = self.waiting_since + _DRAIN_S
        if self._secure is not None:
            self._secure.say_goodbye()
        self.request.shutdown(socket.SHUT_WR)
        left = _DRAIN_BYTES
        try:
            while left > 0 and self._receive(deadline_s):
                left -= len(self._data)
                self._data.clear()
        except TimeoutError:
            pass  # it had its chance

    # ------------------------------------------------------------------------------------------ answering

    def _work(self, request: Request) -> None:
        """Answer at a place at work; a file is sent, and a stream begins, after the place was given back."""
        try:
            answer = self._answer(request)
            if answer.file is None:
                self._send(request, answer)
        finally:
            self._connections.end()
        if answer.file is not None:
            self._send_file(request, answer, answer.file)
        elif answer.live is not None and request.method != "HEAD":
            self._hand_over(answer.live)

    def _answer(self, request: Request) -> Response:
        try:
            return self._application.answer(request)
        except HTTPError as refusal:
            self.close_connection = self.close_connection or refusal.closes
            return self._application.explain(request, refusal)
        except NotStored as error:
            log.warning("%s: %s %s: %s", self.host, request.method, request.path, error)
            text = "The database cannot be asked now. Nothing is lost, the nodes keep their samples; try again soon."
            return self._application.explain(request, HTTPError(503, text))
        except Exception:  # whatever it was, the client gets an answer and the log the whole story
            number = secrets.token_hex(4)
            log.exception("%s: fault %s in %s %s", self.host, number, request.method, request.path)
            fault = HTTPError(500, f"A fault of this program. Its log tells more under {number}.", "fault")
            return self._application.explain(request, fault)

    def _send(self, request: Request | None, answer: Response) -> None:
        """Head and body in one write: in two, a delayed ACK holds the second back for 40 ms (measured)."""
        if answer.live is not None:
            self.close_connection = True
        length = None if answer.live else answer.file.length if answer.file else len(answer.body)
        keeps = "close" if self.close_connection else "keep-alive" if request and request.version == "1.0" else ""
        head = answer_head(answer, length, keeps, int(time.time()))
        is_head = request is not None and request.method == "HEAD"
        self._connections.count(answer.status)
        data = head if is_head else head + answer.body
        self.sending_since = time.monotonic()
        if self._secure is not None:
            self._secure.send_all(data, self._limits.send_s)
        else:
            self.request.settimeout(self._limits.send_s)
            self.request.sendall(data)
        self.sending_since = None

    def _send_file(self, request: Request, answer: Response, part: FilePart) -> None:
        try:
            if not self._connections.begin_download():
                self.send_error(request, _busy())
                return
            try:
                self._send(request, answer)
                if request.method != "HEAD" and self._secure is not None:
                    self._copy(self._secure, part)
                elif request.method != "HEAD":
                    self._stream(part)
            finally:
                self._connections.end_download()
        finally:
            os.close(part.fd)

    def _stream(self, part: FilePart) -> None:
        """From the disk's cache to the network inside the kernel, as socket.sendfile does, but at a least pace."""
        sock, sent, began_s = self.request, 0, time.monotonic()
        writable = select.poll()
        writable.register(sock, select.POLLOUT)
        while sent < part.length:
            late = time.monotonic() > began_s + 60 + sent / _SLOWEST_BYTES_S
            if late or not writable.poll(_STALL_S * 1000):
                raise TimeoutError("the client reads too slowly")
            try:
                step = os.sendfile(sock.fileno(), part.fd, part.start + sent, part.length - sent)
            except BlockingIOError:
                continue
            if not step:
                raise ConnectionAbortedError("the file has become shorter")
            sent += step

    def _copy(self, secure: Secure, part: FilePart) -> None:
        """The same through this program's memory, a block at a time: what goes through TLS is made here."""
        sent, began_s = 0, time.monotonic()
        while sent < part.length:
            block = os.pread(part.fd, min(_COPY_BYTES, part.length - sent), part.start + sent)
            if not block:
                raise ConnectionAbortedError("the file has become shorter")
            pace_s = began_s + 60 + sent / _SLOWEST_BYTES_S - time.monotonic()
            secure.send_all(block, min(_STALL_S, pace_s))
            sent += len(block)

    def _hand_over(self, live: Callable[..., object]) -> None:
        """Give the socket itself away; what is left here is an empty shell."""
        self._connections.leave(self)
        if self._secure is not None:
            secure, self._secure = self._secure, None
            live(secure)
        else:
            live(socket.socket(fileno=self.request.detach()))


def _cut_body() -> HTTPError:
    return HTTPError(408, "The body did not come whole in time.", closes=True)


def _busy() -> HTTPError:
    return HTTPError(503, "Too much at once; try again in a moment.", "busy", {"Retry-After": "1"}, closes=True)
