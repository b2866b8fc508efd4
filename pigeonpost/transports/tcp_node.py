"""TCP transport, node side: listens, and serves one session per connection.

On TCP the node listens and the server connects; the protocol is lines of text that a person can type with nc. One
thread accepts, and one serves each connection. `_lock` guards who is connected, who collects, and the failed proofs of
each host; it is held for lookups and changes only.
Errors: those of one connection end that connection.
"""

from __future__ import annotations

import functools
import logging
import select
import socket
import socketserver
import threading
from collections.abc import Callable

from pigeonpost.core.addresses import is_loopback, join_address
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SettingsError, TooMany
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.wake_pipe import WakePipe
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.tcp_connection import LineConnection, run_session
from pigeonpost.transports.tcp_node_session import NodeSession
from protocol import error_line

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 64  # that a node serves at once,

MOST_OF_A_HOST = 16  # and of these from one address other than its own


class _Connection:
    """State of one connection that is served."""

    def __init__(self, host: str, wire: LineConnection) -> None:
        self.host = host
        self.wire = wire
        self.thread = threading.current_thread()
        self.seated = False  # it has been the active collector: another one in its place came later


class TcpNodeTransport(Transport):
    """Listens, and serves each connection with a NodeSession."""

    def __init__(self, address: tuple[str, int], info: NodeInfo, outbox: Outbox, clock: Clock) -> None:
        self._address = address
        self._info = info
        self._outbox = outbox
        self._clock = clock
        self._stopping = threading.Event()
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
        self._info.address = self.address
        threading.Thread(target=self._server.serve_forever, name="listen", daemon=True).start()

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
        connection = _Connection(host, LineConnection(sock))
        wire = connection.wire
        session = None
        try:
            delay_s = self._admit(connection)
            if self._stopping.wait(delay_s):
                return
            session = NodeSession(self._info, self._outbox, self._clock, peer, is_loopback(host))
            self._outbox.watch(wire.wake)
            run_session(
                wire, session, session.stream, functools.partial(self._is_over, connection, session), self._clock
            )
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
    timeout = 0  # of `handle_request`, which is called when there is one

    def __init__(self, address: tuple[str, int], serve: Callable[[socket.socket, Any], None]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._serve = serve
        self._wake_pipe = WakePipe()
        self._has_ended = threading.Event()
        super().__init__(address, socketserver.BaseRequestHandler)

    def serve_forever(self, poll_interval: float = 0.0) -> None:
        """Serve until `shutdown`. The library's own wakes up every now and then to look for that."""
        poll = select.poll()  # select(2) takes no descriptor above 1023
        for fd in (self.fileno(), self._wake_pipe.fileno()):
            poll.register(fd, select.POLLIN)
        try:
            while self._wake_pipe.fileno() not in {fd for fd, _ in poll.poll()}:
                self.handle_request()
        finally:  # else `shutdown` would wait for ever
            self._has_ended.set()

    def shutdown(self) -> None:
        self._wake_pipe.wake()
        self._has_ended.wait()

    def server_close(self) -> None:
        super().server_close()
        self._wake_pipe.close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._serve(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("%s: a fault of this program", client_address)
