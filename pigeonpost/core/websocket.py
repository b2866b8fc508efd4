"""WebSocket client: handshake, masked frames, fragments, ping and close, with limits and deadlines.

Only text messages are exchanged, without extensions and subprotocols. Trusted servers are those of http_client.
Threads: only one thread may use a connection, except that other threads may call `cut`.
Errors: HttpError and its subclasses, among them WebSocketClosed. After each of them, the connection is closed.
Source: RFC 6455.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from pigeonpost.core.dial import connected
from pigeonpost.core.http_client import (
    USER_AGENT,
    AnswerCutOff,
    AnswerTooLong,
    HttpError,
    ServerTrust,
    Url,
    network_error,
)

MOST_SENT_BYTES = 4 << 20  # longest message that Home Assistant accepts (the default of its library aiohttp)
MOST_RECEIVED_BYTES = 16 << 20
_MOST_HEAD_BYTES = 64 << 10
_READ_BYTES = 64 << 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA  # section 5.2
_FIN, _RESERVED, _CONTROL, _MASKED = 0x80, 0x70, 0x8, 0x80
_NORMAL, _PROTOCOL_ERROR, _UNSUPPORTED, _NOT_UTF8, _TOO_LONG = 1000, 1002, 1003, 1007, 1009  # section 7.4.1
_CLOSE_CODES = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}  # codes that may be sent
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2})(?: ([^\r\n]*))?").fullmatch
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)").fullmatch
_END_S = 2.0  # longest wait for the peer's answer to a close frame


class WebSocketClosed(HttpError):
    """The server has closed the connection.

    Attributes:
        code: Status code (RFC 6455, section 7.4.1); 1005 if the server sent none.
    """

    def __init__(self, code: int, reason: str, server: str) -> None:
        super().__init__(f"the server closed the connection ({code}{reason and f': {reason}'})", server)
        self.code = code


class WebSocketRefused(HttpError):
    """The server does not offer a WebSocket at this address.

    Attributes:
        status: HTTP status of its answer; 0 if it is not a valid answer.
    """

    def __init__(self, status: int, text: str, server: str) -> None:
        super().__init__(text, server)
        self.status = status


class _Violation(Exception):
    """The server violates the protocol. `code` is sent to it in a close frame."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Frame(NamedTuple):
    opcode: int
    is_last: bool
    payload: bytes


class WebSocket:
    """Connection to a WebSocket server.

    Args:
        url: Address with scheme (http for ws, https for wss), host, port, path and query.
        timeout_s: Time limit in seconds for connecting to each address of the host, for the opening handshake, and for
            sending one message.
        trust: Trusted servers for https; None for those that the system trusts.
        limit_bytes: Maximum length of a received message.

    Raises:
        OSError: The file of certificates cannot be read.

    Attributes:
        server: Scheme, host and port of the server.
    """

    def __init__(
        self, url: Url, timeout_s: float, trust: ServerTrust | None = None, limit_bytes: int = MOST_RECEIVED_BYTES
    ) -> None:
        self.server = url.shown
        self._url, self._timeout_s, self._limit_bytes = url, timeout_s, limit_bytes
        self._trust = (trust or ServerTrust()) if url.secure else None
        self._sock: Any = None
        self._is_cut = False
        self._received = bytearray()

    def connect(self) -> None:
        """Connect, check the certificate, and make the opening handshake.

        Raises:
            WebSocketRefused: The server does not offer a WebSocket at this address.
            HttpError: There is no connection.
        """
        self.end()
        self._received.clear()
        with self._translated():
            connected(self._url.host, self._url.port, self._timeout_s, self._made)
            deadline_s = time.monotonic() + self._timeout_s
            if self._trust is not None:
                self._sock = self._trust.context.wrap_socket(
                    self._sock, server_hostname=self._url.host, do_handshake_on_connect=False
                )
                self._set_timeout(deadline_s)
                self._sock.do_handshake()  # when `_sock` is the new object, which `cut` can abort
                self._trust.check(self._sock, self.server)
            key = base64.b64encode(os.urandom(16))
            self._send(self._request(key), deadline_s)
            self._check_answer(self._head(deadline_s), key)

    def send(self, text: str) -> None:
        """Send the message `text`.

        Raises:
            AnswerTooLong: The message is longer than MOST_SENT_BYTES. The connection stays open.
            HttpError: The message could not be sent within the time limit.
        """
        payload = text.encode()
        if len(payload) > MOST_SENT_BYTES:
            raise AnswerTooLong(MOST_SENT_BYTES, self.server, None)
        with self._translated():
            self._send(_frame(_TEXT, payload), time.monotonic() + self._timeout_s)

    def receive(self, limit_s: float) -> str:
        """Return the next text message. Answers pings while it waits.

        Args:
            limit_s: Time limit in seconds for the complete message.

        Raises:
            WebSocketClosed: The server has closed the connection.
            AnswerTimeout: There was no complete message within the time limit.
            AnswerTooLong: The message is longer than the limit.
            HttpError: The connection is lost, or the server violates the protocol.
        """
        with self._translated():
            return self._message(time.monotonic() + limit_s)

    def close(self) -> None:
        """Close the connection with a close frame, and wait shortly for that of the server. Raises no error."""
        deadline_s = time.monotonic() + _END_S
        try:
            if self._sock is not None:
                self._send(_frame(_CLOSE, _NORMAL.to_bytes(2, "big")), deadline_s)
                while self._frame(deadline_s).opcode != _CLOSE:
                    pass
        except (OSError, _Violation, OverflowError):
            pass  # the connection ends anyway
        self.end()

    def end(self) -> None:
        """Close the connection at once."""
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def cut(self) -> None:
        """Abort the connection of another thread, also while it is made. Its present call and later ones fail."""
        self._is_cut = True
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):  # the connection has ended
                # This method is used for TLS too, because SSLSocket.shutdown waits for the peer.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # ---------------------------------------------------------------------------------------- opening handshake

    def _made(self, sock: socket.socket) -> None:
        self._sock = sock
        self._check_cut()

    def _request(self, key: bytes) -> bytes:
        host = self.server.partition("://")[2]
        lines = [
            f"GET {self._url.target} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key.decode()}", "Sec-WebSocket-Version: 13", f"User-Agent: {USER_AGENT}", "", "",
        ]  # fmt: skip
        return "\r\n".join(lines).encode("ascii", "replace")

    def _head(self, deadline_s: float) -> bytes:
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if len(self._received) > _MOST_HEAD_BYTES:
                raise AnswerTooLong(_MOST_HEAD_BYTES, self.server, None)
            self._read(deadline_s)
        head = bytes(self._received[:end])
        del self._received[: end + 4]
        return head

    def _check_answer(self, head: bytes, key: bytes) -> None:
        """Raise WebSocketRefused unless `head` accepts the handshake with `key` (section 4.1)."""
        first, *lines = head.split(b"\r\n")
        status = _STATUS_LINE(first)
        if status is None:
            raise WebSocketRefused(0, "the server does not speak HTTP/1.1", self.server)
        code = int(status[1])
        if code != 101:
            reason = re.sub(r"[^ -~]", "?", (status[2] or b"").decode("latin-1"))[:100]
            raise WebSocketRefused(code, f"no WebSocket: the server answered {code} {reason}".rstrip(), self.server)
        headers: dict[str, bytes] = {}
        for line in lines:
            found = _HEADER(line)
            name = found[1].decode().lower() if found else ""
            if found is None or (name in headers and name.startswith(("sec-websocket", "upgrade", "connection"))):
                raise WebSocketRefused(0, "the server's answer has an invalid header", self.server)
            headers[name] = found[2].strip()
        accepted = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        tokens = [token.strip().lower() for token in headers.get("connection", b"").split(b",")]
        if (
            headers.get("upgrade", b"").lower() != b"websocket"
            or b"upgrade" not in tokens
            or headers.get("sec-websocket-accept") != accepted
            or headers.get("sec-websocket-extensions")
            or headers.get("sec-websocket-protocol")
        ):
            raise WebSocketRefused(
                0, "the server's answer does not accept the WebSocket that was requested", self.server
            )

    # --------------------------------------------------------------------------------------------------- frames

    def _message(self, deadline_s: float) -> str:
        message = bytearray()
        is_begun = False
        while True:
            frame = self._frame(deadline_s, self._limit_bytes - len(message))
            if frame.opcode == _CLOSE:
                self._answer_close(frame.payload, deadline_s)
            elif frame.opcode == _PING:
                self._send(_frame(_PONG, frame.payload), deadline_s)
            elif frame.opcode == _BINARY:
                raise _Violation(_UNSUPPORTED, "the server sent a binary message")
            elif frame.opcode != _PONG:
                if (frame.opcode == _CONTINUATION) != is_begun:
                    raise _Violation(_PROTOCOL_ERROR, "the server sent fragments in a wrong order")
                is_begun = True
                message += frame.payload
                if frame.is_last:
                    try:
                        return message.decode()
                    except UnicodeDecodeError:
                        raise _Violation(_NOT_UTF8, "the server sent a text that is not UTF-8") from None

    def _frame(self, deadline_s: float, limit_bytes: int = MOST_RECEIVED_BYTES) -> _Frame:
        """Return the next frame. Raise OverflowError if a data frame is longer than `limit_bytes`."""
        first, second = self._take(2, deadline_s)
        opcode, length = first & 0x0F, second & 0x7F
        if first & _RESERVED or opcode not in (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
            raise _Violation(_PROTOCOL_ERROR, "the server sent a frame of an unknown kind")
        if second & _MASKED:
            raise _Violation(_PROTOCOL_ERROR, "the server sent a masked frame")
        if opcode & _CONTROL and (length > 125 or not first & _FIN):
            raise _Violation(_PROTOCOL_ERROR, "the server sent a control frame that is too long or in fragments")
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self._take(size, deadline_s), "big")
            if length < (126 if size == 2 else 1 << 16) or length >> 63:
                raise _Violation(_PROTOCOL_ERROR, "the server sent a frame with an invalid length")
        if not opcode & _CONTROL and length > limit_bytes:
            raise OverflowError
        return _Frame(opcode, bool(first & _FIN), self._take(length, deadline_s))

    def _answer_close(self, payload: bytes, deadline_s: float) -> None:
        """Answer a close frame, and raise WebSocketClosed."""
        code, reason = int.from_bytes(payload[:2], "big") if payload else 1005, payload[2:]
        if payload and (len(payload) == 1 or code not in _CLOSE_CODES):
            raise _Violation(_PROTOCOL_ERROR, "the server sent an invalid close frame")
        try:
            text = "".join(c if c.isprintable() else "?" for c in reason.decode())
        except UnicodeDecodeError:
            raise _Violation(_NOT_UTF8, "the server sent a text that is not UTF-8") from None
        with contextlib.suppress(OSError):  # it has closed the connection already
            self._send(_frame(_CLOSE, payload[:2]), min(deadline_s, time.monotonic() + _END_S))
        raise WebSocketClosed(code, text, self.server)

    def _take(self, count: int, deadline_s: float) -> bytes:
        """Return the next `count` bytes."""
        while len(self._received) < count:
            self._read(deadline_s)
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _read(self, deadline_s: float) -> None:
        self._set_timeout(deadline_s)
        data = self._sock.recv(_READ_BYTES)
        if not data:
            raise AnswerCutOff("the server has ended the connection", self.server)
        self._received += data

    def _send(self, data: bytes, deadline_s: float) -> None:
        self._set_timeout(deadline_s)
        self._sock.sendall(data)

    def _set_timeout(self, deadline_s: float) -> None:
        if self._sock is None:
            raise HttpError("there is no connection", self.server)
        self._check_cut()
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left_s)

    def _check_cut(self) -> None:
        if self._is_cut:
            raise HttpError("the connection is aborted", self.server)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Convert errors of sockets and violations of the protocol to HttpError, and close the connection."""
        try:
            yield
        except HttpError:
            self.end()
            raise
        except _Violation as error:
            with contextlib.suppress(OSError):
                self._send(_frame(_CLOSE, error.code.to_bytes(2, "big")), time.monotonic() + _END_S)
            self.end()
            raise HttpError(str(error), self.server) from None
        except OverflowError:
            with contextlib.suppress(OSError):
                self._send(_frame(_CLOSE, _TOO_LONG.to_bytes(2, "big")), time.monotonic() + _END_S)
            self.end()
            raise AnswerTooLong(self._limit_bytes, self.server, None) from None
        except (OSError, ValueError) as error:  # ValueError: an invalid host name
            self.end()
            raise network_error(error, self.server) from None


def _frame(opcode: int, payload: bytes) -> bytes:
    """Return a complete frame with a random mask (sections 5.2 and 5.3)."""
    count = len(payload)
    if count < 126:
        head = bytes([_FIN | opcode, _MASKED | count])
    elif count < 1 << 16:
        head = bytes([_FIN | opcode, _MASKED | 126]) + count.to_bytes(2, "big")
    else:
        head = bytes([_FIN | opcode, _MASKED | 127]) + count.to_bytes(8, "big")
    mask = os.urandom(4)
    whole = (mask * (count // 4 + 1))[:count]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(count, "big")  # 4 MiB in ms
    return head + mask + masked
