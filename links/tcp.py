"""The road over TCP: the node listens, the server connects; lines of text that a person can type with nc.

Runs on: node (NodeEnd), server (ServerEnd).  Reached from: node.py, server.py.
Hands on to: session_node and session_server, which know what is said; here bytes are moved and time is kept.
Threads: NodeEnd has one that accepts and one for each connection; ServerEnd has one for its node. A connection
  belongs to its thread, which alone reads and writes it; any other may `wake` it.  Locks stand where they are made,
  with what they guard.
Errors: of a connection: it is closed, and the server tries again after 1 s, doubling to 60 s.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from typing import Any

from base.clock import Clock
from base.errors import SettingsError, TooLong, TooMany, WireError
from base.net import is_loopback, join_address
from links import End
from outbox import Outbox
from protocol import LINE_BYTES, error_line
from session import Key, Session
from session_node import NodeFacts, NodeSession
from session_server import Ledger, NodeState, ServerSession

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 64  # that a node serves at once,
MOST_OF_A_HOST = 16  # and of these from one address other than its own
CONNECT_S = 10.0
RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
DRAIN_S = 2.0  # that a closing end takes to send what is due
_READ_BYTES = LINE_BYTES
_SEND_AHEAD_BYTES = 4 * LINE_BYTES  # unsent at most before streaming pauses
_STUCK_BYTES = 64 * LINE_BYTES  # unsent: the peer does not read, and keeps asking


class Wire:
    """A socket as whole lines in and bytes out, that never blocks but in `wait`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock = sock
        self._unsent = bytearray()
        self._part = b""  # of a line that has not ended
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        # Guards the pipe against being closed, and its number reused, while another thread wakes; held for one write.
        self._lock = threading.Lock()
        self._closed = False
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)
        self._poll.register(sock, select.POLLIN)
        self._polls_for_room = False

    @property
    def unsent(self) -> int:
        """Bytes that the network has not taken yet."""
        return len(self._unsent)

    def send(self, data: bytes) -> None:
        """Send as much as goes now; the rest goes while waiting. Raises OSError when the connection is gone."""
        self._unsent += data
        if self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                pass
            if len(self._unsent) > _STUCK_BYTES:
                raise TimeoutError("the peer takes nothing")

    def wait(self, seconds: float) -> list[bytes]:
        """Whole lines that have come, after at most `seconds`; none of them when woken, or when only sending went on.

        Raises TooLong for a line over the limit, ConnectionError when the peer has closed.
        """
        if self._polls_for_room != bool(self._unsent):
            self._polls_for_room = bool(self._unsent)
            self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        lines: list[bytes] = []
        for fd, events in self._poll.poll(max(0.0, seconds) * 1000 + 1):
            if fd == self._woken:
                os.read(self._woken, 4096)
                continue
            if events & select.POLLOUT:
                self.send(b"")
            if events & ~select.POLLOUT:
                lines = self._read()
        return lines

    def _read(self) -> list[bytes]:
        try:
            block = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        if not block:
            raise ConnectionResetError("closed by the peer")
        *lines, self._part = (self._part + block).split(b"\n")
        if len(self._part) >= LINE_BYTES or any(len(line) >= LINE_BYTES for line in lines):
            raise TooLong(f"a line is at most {LINE_BYTES} bytes long, its end included")
        return lines

    def wake(self) -> None:
        """Make `wait` return; from any thread, at any time."""
        with self._lock:
            if not self._closed:
                try:
                    os.write(self._waker, b"\0")
                except BlockingIOError:
                    pass  # woken 65,536 times already

    def close(self) -> None:
        """Close it; closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._woken)
            os.close(self._waker)
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone already
        self._sock.close()


def converse(wire: Wire, session: Session, stream: Callable[[], bool], ended: Callable[[], bool], clock: Clock) -> None:
    """Move lines between `wire` and `session` until either ends it, or `ended` says so; then send what is due.

    stream  says one more line of samples; False when there is none
    Raises OSError when the connection breaks.
    """
    while not session.closing and not ended():
        due_s = session.tick()  # first, so that what it says goes out now, and not after the wait
        wire.send(session.take_output())
        while wire.unsent < _SEND_AHEAD_BYTES and stream():
            wire.send(session.take_output())
        try:
            for line in wire.wait(due_s):
                session.receive(line)
        except WireError as error:
            session.refuse(error)
    give_up_s = clock.monotonic() + DRAIN_S
    wire.send(session.take_output())
    while wire.unsent and clock.monotonic() < give_up_s:
        wire.wait(give_up_s - clock.monotonic())


# --------------------------------------------------------------------------------------------------------- the node


class _Connection:
    """What NodeEnd keeps of a connection that it serves."""

    def __init__(self, host: str, wire: Wire) -> None:
        self.host = host
        self.wire = wire
        self.thread = threading.current_thread()
        self.seated = False  # it has collected, so whoever sits in its place came later


class NodeEnd(End):
    """Listens, and serves each connection with a NodeSession."""

    def __init__(self, address: tuple[str, int], facts: NodeFacts, outbox: Outbox, clock: Clock) -> None:
        self._address = address
        self._facts = facts
        self._outbox = outbox
        self._clock = clock
        self._stopping = threading.Event()
        # Guards who is connected, who collects, and who failed to prove himself; held for lookups and changes only.
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._collectors: dict[str, _Connection] = {}
        self._failures: dict[str, int] = {}
        self._server: _Listener | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; the port is the real one also where 0 was asked for."""
        assert self._server is not None, "started first"
        host, port = self._server.server_address[:2]
        return str(host), port

    @property
    def collectors(self) -> list[str]:
        """The names of the servers that collect now."""
        with self._lock:
            return sorted(self._collectors)

    def start(self) -> None:
        try:
            self._server = _Listener(self._address, self._serve)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {join_address(*self._address)}: {error.strerror or error};"
                " does another node run here? --listen HOST:PORT chooses another address"
            ) from error
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="listen", daemon=True).start()

    def stop(self, limit_s: float) -> str | None:
        self._stopping.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.wire.wake()
        give_up_s = self._clock.monotonic() + limit_s
        for connection in connections:
            connection.thread.join(max(0.0, give_up_s - self._clock.monotonic()))
        left = sum(connection.thread.is_alive() for connection in connections)
        return f"{left} connections did not end" if left else None

    def _serve(self, sock: socket.socket, peer_address: Any) -> None:
        """One connection, in its own thread."""
        host, peer = str(peer_address[0]), f"{peer_address[0]}:{peer_address[1]}"
        connection = _Connection(host, Wire(sock))
        wire = connection.wire
        session = None
        try:
            delay_s = self._admit(connection)
            if self._stopping.wait(delay_s):
                return
            session = NodeSession(self._facts, self._outbox, self._clock, peer, is_loopback(host))
            self._outbox.watch(wire.wake)
            converse(wire, session, session.stream, functools.partial(self._is_over, connection, session), self._clock)
        except TooMany as error:
            log.warning("%s: %s", peer, error)
            wire.send(error_line(error, b""))
        except OSError as error:
            log.info("%s: %s", peer, error)
        finally:
            self._outbox.unwatch(wire.wake)
            self._dismiss(connection, session is not None and session.auth_failed)
            wire.close()

    def _admit(self, connection: _Connection) -> float:
        """Count a connection in; the seconds to wait before it is answered, which grow with its host's failures."""
        with self._lock:
            of_host = sum(other.host == connection.host for other in self._connections)
            most_of_host = MOST_CONNECTIONS if is_loopback(connection.host) else MOST_OF_A_HOST
            if len(self._connections) >= MOST_CONNECTIONS or of_host >= most_of_host:
                raise TooMany(f"{of_host} connections from {connection.host} are open, {len(self._connections)} in all")
            self._connections.add(connection)
            failures = self._failures.get(connection.host, 0)
            return min(0.25 * 2**failures, 4.0) if failures else 0.0

    def _dismiss(self, connection: _Connection, auth_failed: bool) -> None:
        with self._lock:
            self._connections.discard(connection)
            self._collectors = {name: other for name, other in self._collectors.items() if other is not connection}
            if auth_failed:
                if len(self._failures) >= 1024:
                    self._failures.clear()
                self._failures[connection.host] = min(self._failures.get(connection.host, 0) + 1, 10)
            elif connection.seated:
                self._failures.pop(connection.host, None)

    def _is_over(self, connection: _Connection, session: NodeSession) -> bool:
        """Whether the program stops, or a later session of the same server has taken this one's place."""
        if self._stopping.is_set():
            return True
        if not session.server:
            return False
        with self._lock:
            sitting = self._collectors.get(session.server)
            if sitting is connection or connection.seated:
                return sitting is not connection
            self._collectors[session.server] = connection
            connection.seated = True
        if sitting is not None:
            log.info("%s: takes the place of the session before it", session.peer)
            sitting.wire.wake()
        return False


class _Listener(socketserver.ThreadingTCPServer):
    """Accepts, and runs `serve` in a thread for each connection."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], serve: Callable[[socket.socket, Any], None]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._serve = serve
        super().__init__(address, socketserver.BaseRequestHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._serve(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("%s: a fault of this program", client_address)


# ------------------------------------------------------------------------------------------------------- the server


class ServerEnd(End):
    """Connects to one node, collects from it, and tries again whenever that ends."""

    def __init__(
        self,
        address: tuple[str, int],
        expected: str,
        server: str,
        ledger: Ledger,
        keys: Mapping[str, Key],
        clock: Clock,
    ) -> None:
        """
        address   of the node
        expected  the node's name; empty: whoever answers there
        server    this server's name
        ledger    the intake
        keys      of nodes that have a token, by name; looked up at every connection
        """
        self.state = NodeState(join_address(*address), expected)
        self._address = address
        self._server = server
        self._ledger = ledger
        self._keys = keys
        self._clock = clock
        self._stopping = threading.Event()
        # Guards the connection that now is, for those who ask through it; held to look it up and wake it.
        self._lock = threading.Lock()
        self._current: tuple[Wire, ServerSession] | None = None
        self._asking = threading.Lock()  # one question at a time; held until its answer came or did not
        self._awaited: tuple[Any, ...] = ()  # what that answer is
        self._answered = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"collect {self.state.address}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Begin to stop; returns at once, so that many ends can be stopped together."""
        self._stopping.set()
        self.wake()

    def stop(self, limit_s: float) -> str | None:
        self.end()
        with self._lock:
            is_connected = self._current is not None
        if is_connected:  # else it waits for a node that does not answer, and has nothing to say
            self._thread.join(limit_s)
        stuck = is_connected and self._thread.is_alive()
        return f"the connection to {self.state.address} did not end" if stuck else None

    def wake(self) -> None:
        """Send what others have left with the session."""
        with self._lock:
            if self._current:
                self._current[0].wake()

    def ask(self, word: str, *args: Any, limit_s: float = 5.0) -> bool:
        """Say SEND or CHECK to the node; whether it answered within `limit_s` seconds (`state` then has the answer)."""
        with self._asking:
            # A CHECK may be under way already: its STATUS is no answer to SEND.
            self._awaited = ("SENDBACK", *args) if word == "SEND" else ("STATUS",)
            self._answered.clear()
            with self._lock:
                if self._current is None or not self._current[1].collecting:
                    return False
                self._current[1].ask(word, *args)
                self._current[0].wake()
            return self._answered.wait(limit_s)

    def _run(self) -> None:
        retry_s = RETRY_S
        while not self._stopping.is_set():
            if self._connect():
                retry_s = RETRY_S
            self._stopping.wait(retry_s * random.uniform(0.75, 1.25))
            retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    def _connect(self) -> bool:
        """One connection, from beginning to end; whether it came to collecting."""
        try:
            sock = socket.create_connection(self._address, CONNECT_S)
        except OSError as error:
            self._lost(f"cannot be reached: {error.strerror or error}")
            return False
        wire = Wire(sock)
        try:
            return self._collect(wire)
        except SettingsError as error:  # tokens that do not read: somebody will mend the file while this runs
            self._lost(str(error))
            return False
        finally:
            with self._lock:
                self._current = None
            wire.close()

    def _collect(self, wire: Wire) -> bool:
        session = ServerSession(
            self._server, self._ledger, self._keys, self.state, self._clock, wire.wake, self._note_answer
        )
        with self._lock:
            self._current = wire, session
        try:
            converse(wire, session, lambda: False, self._stopping.is_set, self._clock)
            self._lost(session.fault or "closed")
        except OSError as error:
            self._lost(session.fault or error.strerror or str(error))
        return session.collecting

    def _note_answer(self, *answer: Any) -> None:
        if answer == self._awaited:
            self._answered.set()

    def _lost(self, fault: str) -> None:
        state = self.state
        if state.connected or fault != state.fault:
            log.warning("%s %s: %s", state.address, state.name, fault)
        if state.connected or state.since_ms is None:
            state.since_ms = self._clock.wall_ms()
        state.connected, state.fault = False, fault
