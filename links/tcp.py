"""The road over TCP: the node listens, the server connects; lines of text that a person can type with nc.

Runs on: node (NodeEnd), server (ServerEnd).  Reached from: node.py, server.py.
Hands on to: wire, which moves the bytes; session_node and session_server, which know what is said.
Threads: NodeEnd has one that accepts and one for each connection; ServerEnd has one for its node. A connection
  belongs to its thread, which alone reads and writes it; any other may `wake` it.  Locks stand where they are made,
  with what they guard.
Errors: of a connection: it is closed, and the server tries again after 1 s, doubling to 60 s.
"""

from __future__ import annotations

import functools
import logging
import random
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from links import End
from pigeonpost.auth.key import Key
from pigeonpost.core.addresses import is_loopback, join_address
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SettingsError, TooMany
from pigeonpost.node.node_info import NodeFacts
from pigeonpost.node.outbox import Outbox
from protocol import error_line
from session_node import NodeSession
from wire import Wire, converse

if TYPE_CHECKING:
    from session_server import Ledger, ServerSession

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 64  # that a node serves at once,
MOST_OF_A_HOST = 16  # and of these from one address other than its own
CONNECT_S = 10.0
RETRY_S, LONGEST_RETRY_S = 1.0, 60.0

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
        self._facts.address = self.address
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
        from session_server import NodeState, ServerSession  # here: a node has no use for the server's half

        self._session = ServerSession
        self.state = NodeState(join_address(*address), expected)
        self._home = self._good = address  # as it was told first, and where the node was reached last
        self._server = server
        self._ledger = ledger
        self._keys = keys
        self._clock = clock
        self._stopping = threading.Event()
        # Guards the connection that now is, for those who ask through it, and where to try next; held for a moment.
        self._lock = threading.Lock()
        self._current: tuple[Wire, ServerSession] | None = None
        self._places = [address]
        self._hurried = threading.Event()  # set: try again now
        self._asking = threading.Lock()  # one question at a time; held until its answer came or did not
        self._awaited: tuple[Any, ...] = ()  # what that answer is
        self._answered = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"collect {self.state.address}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Begin to stop; returns at once, so that many ends can be stopped together."""
        self._stopping.set()
        self._hurried.set()
        self.wake()

    def move(self, address: tuple[str, int]) -> None:
        """The node has said that it is at `address`: try there next, and now. Returns at once; from any thread.

        A connection that lives is kept. An address that was wrong costs one attempt: the next goes where it was before.
        """
        with self._lock:
            self._places = list(dict.fromkeys((address, self._good, self._home)))
            if self._current:
                self._current[1].doubt()
        self._hurried.set()

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
            hurried = self._hurried.wait(retry_s * random.uniform(0.75, 1.25))
            retry_s = RETRY_S if hurried else min(2 * retry_s, LONGEST_RETRY_S)

    def _connect(self) -> bool:
        """One connection, from beginning to end; whether it came to collecting."""
        with self._lock:
            address = self._places[0]
            self._places = self._places[1:] + [address]  # for the next attempt, should this one fail
            self._hurried.clear()
        self.state.address = join_address(*address)
        try:
            sock = socket.create_connection(address, CONNECT_S)
        except OSError as error:
            self._lost(f"cannot be reached: {error.strerror or error}")
            return False
        wire = Wire(sock)
        collected = False
        try:
            collected = self._collect(wire)
        except SettingsError as error:  # tokens that do not read: somebody will mend the file while this runs
            self._lost(str(error))
        finally:
            with self._lock:
                self._current = None
                if collected:
                    self._good = address
                    if not self._hurried.is_set():
                        self._places = list(dict.fromkeys((address, self._home)))
            wire.close()
        return collected

    def _collect(self, wire: Wire) -> bool:
        session = self._session(
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
