"""Line-based connection over a socket, and the loop that runs one link session on it in a thread of its own.

A connection belongs to the thread that serves it, which alone reads and writes it; any other may call `wake`.
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

DRAIN_S = 2.0  # that a closing end takes to send what is due
READ_BYTES = LINE_BYTES
SEND_AHEAD_BYTES = 4 * LINE_BYTES  # unsent at most before streaming pauses
STUCK_BYTES = 64 * LINE_BYTES  # unsent: the peer does not read, and keeps asking
# The first byte of a connection on which the peer speaks TLS (RFC 8446, 5.1), and how that is mended.
_TLS = {
    0x16: "this node does not speak TLS: set [link] tls = true on it, or tls = false for it in server.toml",
    0x15: "it speaks TLS: set tls = true for this node in server.toml ([[node]])",  # an alert answers our HELLO
}


class LineSocket:
    """A non-blocking socket: whole lines in, bytes out. Its owner waits until it can be read or written."""

    fingerprint = ""  # SHA-256 of the certificate that the peer has shown; empty: plain text
    is_closed = False  # the peer has said that nothing more comes, which the socket does not tell

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock = sock
        self._unsent = bytearray()
        self._part = b""  # of a line that has not ended
        self._has_read = False
        self.is_full = False  # the last read filled the buffer: more is there

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 when it is closed."""
        return self._sock.fileno()

    def handshake_left_s(self, waited_s: float) -> float:
        """Go on with the handshake, `waited_s` seconds after its beginning. Returns 0.0 when lines can be said, else
        the seconds that it may still take. Raises OSError."""
        return 0.0

    @property
    def unsent(self) -> int:
        """Bytes that the network has not taken yet."""
        return len(self._unsent)

    def send(self, data: bytes) -> None:
        """Send as much as goes now; the rest goes with later calls. Raises OSError when the connection is gone."""
        self._unsent += data
        if self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                pass
            if len(self._unsent) > STUCK_BYTES:
                raise TimeoutError("the peer takes nothing")

    def receive(self) -> list[bytes]:
        """Return whole lines that have come.

        Raises TooLong for a line over the limit, Protected for TLS, ConnectionError when the peer has closed.
        """
        block = self._received()
        if block and not self._has_read:
            self._has_read = True
            if block[0] in _TLS:
                raise Protected(_TLS[block[0]])
        return self._lines(block)

    def _received(self) -> bytes:
        """Return what has come; empty: nothing yet. Raises ConnectionError when the peer has closed."""
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
            raise TooLong(f"a line is at most {LINE_BYTES} bytes long, its end included")
        return lines

    def close(self) -> None:
        """Close it; closing twice is fine."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone already
        self._sock.close()


class LineConnection(LineSocket):
    """A LineSocket with a thread of its own, which `wait` blocks."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._wake_pipe = WakePipe()
        self._wake_fd = self._wake_pipe.fileno()
        self.wake = self._wake_pipe.wake  # makes `wait` return; from any thread, at any time
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._poll.register(sock, select.POLLIN)
        self._polls_for_room = False

    def begin(self, is_local: bool, clock: Clock, is_over: Callable[[], bool]) -> str:
        """Make the connection ready for lines; with TLS (tcp_tls) that is the handshake.

        is_local  the peer is on this machine
        is_over   asked whenever `wake` is called: True ends a wait
        Returns the fingerprint of the node's certificate, empty: plain text. Raises OSError, or Protected.
        """
        return ""

    def wait(self, seconds: float) -> list[bytes]:
        """Whole lines that have come, after at most `seconds`; none of them when woken, or when only sending went on.

        Raises what `receive` raises.
        """
        if self._polls_for_room != bool(self._unsent):
            self._polls_for_room = bool(self._unsent)
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
    """Move lines between `wire` and `session` until either ends it, or `ended` says so; then send what is due.

    stream  says one more line of samples; False when there is none
    Raises OSError when the connection breaks.
    """
    while not (session.closing or ended()):
        due_s = session.tick()  # first, so that what it says goes out now, and not after the wait
        wire.send(session.take_output())
        if session.is_closing():  # by what other threads have left with it: it waits for nothing more
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
        except WireError:  # a line over the limit: nothing that the peer says is of use any more
            return
