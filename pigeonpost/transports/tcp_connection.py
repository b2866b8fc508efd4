"""Line-based connection over a socket, and the loop that runs one link session on it in a thread of its own.

Only the thread that serves a connection reads and writes it; any other thread may call `wake`.
Errors: OSError when the connection breaks; TooLong for a line over the limit.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import Protected, TooLong, WireError
from pigeonpost.core.wake_pipe import WakePipe
from pigeonpost.transports.tcp_session import LinkSession
from protocol import LINE_BYTES

DRAIN_S = 2.0  # longest time in which a closing end sends pending data
READ_BYTES = LINE_BYTES
SEND_AHEAD_BYTES = 4 * LINE_BYTES  # unsent bytes at which streaming pauses
STUCK_BYTES = 64 * LINE_BYTES  # unsent bytes above which the connection is closed, because the peer does not read
# First byte from a peer that speaks TLS while this end does not (RFC 8446, 5.1), and the remedy.
_TLS_REMEDIES = {
    0x16: "this node does not speak TLS: set [link] tls = true on it, or tls = false for it in server.toml",
    0x15: "it speaks TLS: set tls = true for this node in server.toml ([[node]])",  # an alert in answer to HELLO
}


class LineSocket:
    """A non-blocking socket that reads complete lines and writes bytes; its owner waits until the socket is ready.

    Attributes:
        fingerprint: SHA-256 of the peer's certificate, or empty without TLS.
        is_closed: True once the peer has ended its TLS stream, which the socket itself does not report.
        is_full: True if the last read filled the buffer, so that there may be more to read.
    """

    fingerprint = ""
    is_closed = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock = sock
        self._unsent = bytearray()
        self._part = b""  # beginning of an incomplete line
        self._has_read = False
        self.is_full = False

    def fileno(self) -> int:
        """Return the socket's file descriptor, or -1 if it is closed."""
        return self._sock.fileno()

    def handshake_left_s(self, waited_s: float) -> float:
        """Continue the handshake, which began `waited_s` seconds ago.

        Returns:
            The seconds that the handshake may still take, or 0.0 if it is complete and lines can be sent.

        Raises:
            OSError: The handshake failed.
        """
        return 0.0

    @property
    def unsent(self) -> int:
        """Number of bytes that the network has not accepted yet."""
        return len(self._unsent)

    def send(self, data: bytes) -> None:
        """Send as many bytes of `data` as the network accepts now; later calls send the rest.

        Raises:
            OSError: The connection is broken.
            TimeoutError: The peer has not read for too long.
        """
        self._unsent += data
        if self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                pass
            if len(self._unsent) > STUCK_BYTES:
                raise TimeoutError("the peer does not read")

    def receive(self) -> list[bytes]:
        """Return the complete lines received so far.

        Raises:
            TooLong: A line is longer than LINE_BYTES.
            Protected: The peer speaks TLS, this end does not.
            ConnectionError: The peer has closed the connection.
        """
        block = self._received()
        if block and not self._has_read:
            self._has_read = True
            if block[0] in _TLS_REMEDIES:
                raise Protected(_TLS_REMEDIES[block[0]])
        return self._lines(block)

    def _received(self) -> bytes:
        """Return the bytes received so far, which may be none. Raise ConnectionError if the peer has closed."""
        try:
            block = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            self.is_full = False
            return b""
        if not block:
            raise ConnectionResetError("closed by the peer")
        self.is_full = len(block) == READ_BYTES
        return block

    def _lines(self, block: bytes) -> list[bytes]:
        *lines, self._part = (self._part + block).split(b"\n")
        if len(self._part) >= LINE_BYTES or (lines and max(map(len, lines)) >= LINE_BYTES):
            raise TooLong(f"a line must have at most {LINE_BYTES} bytes, including its end")
        return lines

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # not connected any more
        self._sock.close()


class LineConnection(LineSocket):
    """A LineSocket with a thread of its own, which waits in `wait`; any thread may call `wake` to end the wait."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._wake_pipe = WakePipe()
        self._wake_fd = self._wake_pipe.fileno()
        self.wake = self._wake_pipe.wake
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._poll.register(sock, select.POLLIN)
        self._polls_for_output = False

    def begin(self, is_local: bool, clock: Clock, is_over: Callable[[], bool]) -> str:
        """Make the connection ready for lines: with TLS, make the handshake; without TLS, do nothing.

        Args:
            is_local: The peer is on this machine.
            clock: Clock for the time limit.
            is_over: Function that is called after each `wake` and returns True to end the wait.

        Returns:
            The fingerprint of the node's certificate, or an empty string for plain text.

        Raises:
            OSError: The handshake failed.
            Protected: A peer on another machine speaks plain text to a node with TLS.
        """
        return ""

    def wait(self, seconds: float) -> list[bytes]:
        """Wait until lines arrive, data can be sent or `wake` is called, at most `seconds`; return the complete lines.

        Raises:
            TooLong, Protected, ConnectionError: As `receive`.
        """
        if self._polls_for_output != bool(self._unsent):
            self._polls_for_output = bool(self._unsent)
            self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        lines: list[bytes] = []
        for fd, events in self._poll.poll(max(0.0, seconds) * 1000 + 1):
            if fd == self._wake_fd:
                self._wake_pipe.drain()
                continue
            if events & select.POLLOUT:
                self.send(b"")
            if events & ~select.POLLOUT:
                lines = self.receive()
        return lines

    def close(self) -> None:
        self._wake_pipe.close()
        super().close()


def run_session(
    wire: LineConnection, session: LinkSession, stream: Callable[[], bool], ended: Callable[[], bool], clock: Clock
) -> None:
    """Pass lines between a connection and its session until either ends; then send pending data.

    Args:
        wire: The connection.
        session: The session.
        stream: Function that queues the next line of samples in the session; it returns False if there is none.
        ended: Function that returns True if the session must end.
        clock: Clock for the time limit of the last data.

    Raises:
        OSError: The connection broke.
    """
    while not (session.closing or ended()):
        due_s = session.tick()  # before the output, so that its messages are sent before the wait
        wire.send(session.take_output())
        if session.is_closing():  # requests of other threads may have closed it
            break
        while wire.unsent < SEND_AHEAD_BYTES and stream():
            wire.send(session.take_output())
        try:
            for line in wire.wait(due_s):
                session.receive(line)
        except WireError as error:
            session.refuse(error)
    give_up_s = clock.monotonic() + DRAIN_S
    wire.send(session.take_output())
    while wire.unsent and clock.monotonic() < give_up_s:
        try:
            wire.wait(give_up_s - clock.monotonic())
        except WireError:  # no further lines of the peer are needed
            return
