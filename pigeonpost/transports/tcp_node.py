"""TCP transport, node side: listens, and serves one session per connection.

Over TCP the node listens and the server connects. The protocol consists of lines of text that a person can type with
nc. One thread accepts connections, and each connection has a thread that serves it. `_lock` guards the connections,
the collectors, and the proofs of each host; it is held only for lookups and changes.
Errors: an error of one connection ends only that connection.

At its limit of connections, the node closes one whose peer has not proven the token, to accept a new one. So idle
connections cannot keep out a server that knows the token, regardless of their number and addresses. RareLog limits the
log lines that a peer without a token can cause.
"""

from __future__ import annotations

import functools
import logging
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable

from pigeonpost.core.addresses import is_loopback, join_address
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import Protected, SettingsError, TooMany, WireError
from pigeonpost.core.format import counted
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.rare_log import RareLog
from pigeonpost.core.shortage import PAUSE_S, SHORTAGE
from pigeonpost.core.wake_pipe import WakePipe
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.tcp_connection import LineConnection, run_session
from pigeonpost.transports.tcp_node_session import HOW_TO_PROTECT, NodeSession
from protocol import SILENCE_S, error_line

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 64  # maximum number of connections at the same time

MOST_OF_A_HOST = 16  # maximum number of connections from one address, except from this machine

LONGEST_DELAY_S = 4.0  # longest delay of the answer to a wrong proof, so that guessing is slow

MOST_HOSTS = 1024  # maximum number of remembered hosts with failed proofs, and of those with a correct proof


class _Connection:
    """State of one connection."""

    def __init__(self, host: str, peer: str, wire: LineConnection, is_own: bool) -> None:
        self.host = host
        self.is_own = is_own  # the peer has the address on which the connection was accepted
        self.peer = peer
        self.wire = wire
        self.thread = threading.current_thread()  # replaced by its own thread
        self.session: NodeSession | None = None
        self.is_proven = False  # copy of NodeSession.is_proven that `_lock` guards
        self.is_evicted = False
        self.has_collected = False  # it was the active collector; if another connection is now, that one is newer


class TcpNodeTransport(Transport):
    """Listens, and serves each connection with a NodeSession.

    Args:
        address: Host and port to listen on.
        info: Name, token and sensors of the node.
        outbox: The node's outbox.
        clock: Clock for timeouts and timestamps.
        connect: Factory that wraps an accepted socket; with TLS, that of tcp_tls.
    """

    def __init__(
        self,
        address: tuple[str, int],
        info: NodeInfo,
        outbox: Outbox,
        clock: Clock,
        connect: Callable[[socket.socket], LineConnection] = LineConnection,
    ) -> None:
        self._address = address
        self._connect = connect
        self._info = info
        self._outbox = outbox
        self._clock = clock
        self._stopping = threading.Event()
        self._rare_log = RareLog(log, clock)
        self._lock = threading.Lock()
        self._connections: dict[_Connection, None] = {}  # the oldest first
        self._collectors: dict[str, _Connection] = {}
        self._failures: dict[str, int] = {}
        self._proven_hosts: dict[str, None] = {}
        self._server: _Listener | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Address and port on which the node listens; the real port if 0 was requested."""
        assert self._server is not None, "not started"
        host, port = self._server.server_address[:2]
        return str(host), port

    @property
    def collectors(self) -> list[str]:
        """Names of the servers that collect now."""
        with self._lock:
            return sorted(self._collectors)

    def start(self) -> None:
        try:
            self._server = _Listener(self._address, self._accept, self._handle_shortage)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {join_address(*self._address)}: {error.strerror or error};"
                " if another node runs on this machine, choose another address with --listen HOST:PORT"
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
        open_count = sum(connection.thread.is_alive() for connection in connections)
        return f"{counted(open_count, 'connection')} did not end" if open_count else None

    # --------------------------------------------------------------------------------- the listener's thread

    def _accept(self, sock: socket.socket, peer_address: Any) -> None:
        """Start the thread of a new connection, or send the reason for a rejection and close the connection."""
        host, peer = str(peer_address[0]), f"{peer_address[0]}:{peer_address[1]}"
        is_own = host == sock.getsockname()[0]
        # Without a token the node answers only its own machine. The rejection needs neither a thread nor a slot.
        if self._info.key is None and not is_loopback(host):
            self._reject(sock, peer, Protected(HOW_TO_PROTECT), is_own)
            return
        try:
            connection = _Connection(host, peer, self._connect(sock), is_own)
        except OSError as error:  # no file descriptor for its pipe, or the peer has disconnected
            sock.close()
            self._handle_shortage(error)
            return
        connection.thread = threading.Thread(target=self._serve, args=(connection,), name="serve", daemon=True)
        try:
            self._admit(connection)
            connection.thread.start()
        except TooMany as error:
            self._reject(sock, peer, error, is_own)
            connection.wire.close()
        except (RuntimeError, MemoryError) as error:  # no thread can be started: threading raises RuntimeError
            self._dismiss(connection)
            connection.wire.close()
            self._handle_shortage(error)

    def _reject(self, sock: socket.socket, peer: str, error: WireError, is_own: bool) -> None:
        self._log_refusal(error.code, peer, error, is_own)
        try:
            sock.setblocking(False)
            sock.send(error_line(error, b""))
        except OSError:
            pass  # the peer has disconnected already
        sock.close()

    def _log_refusal(self, kind: str, peer: str, error: WireError, is_own: bool) -> None:
        """Log why a peer is rejected, except for a health check, which uses plain text and accepts any answer.

        Args:
            kind: Kind of log line for RareLog.
            peer: Address and port of the peer.
            error: The reason.
            is_own: True if the peer has this end's own address, as a health check has. Such a peer is still not
                trusted: with rootless Podman every peer of a published port has the address of the container.
        """
        if not (is_own and isinstance(error, Protected)):
            self._rare_log.log(logging.WARNING, kind, f"{peer}: {error.code}: {error}")

    def _handle_shortage(self, error: BaseException) -> None:
        """Log a lack of file descriptors, memory or threads, close an unproven connection, and wait.

        Do nothing for any other error.
        """
        if isinstance(error, OSError) and error.errno not in SHORTAGE:
            return
        self._rare_log.log(logging.ERROR, "shortage", f"cannot accept a connection: {error}")
        with self._lock:
            self._evict(self._connections)
        self._stopping.wait(PAUSE_S)

    def _admit(self, connection: _Connection) -> None:
        """Register a connection; at a limit, close another one that has not proven the token.

        Raises:
            TooMany: All other connections (or all others of this host) have proven the token, and none of them is an
                idle plain session.
        """
        with self._lock:
            of_host = [other for other in self._connections if other.host == connection.host]
            most_of_host = MOST_CONNECTIONS if is_loopback(connection.host) else MOST_OF_A_HOST
            is_full = len(self._connections) >= MOST_CONNECTIONS
            if (len(of_host) >= most_of_host and not self._evict(of_host)) or (
                len(self._connections) >= MOST_CONNECTIONS and not self._evict(self._connections)
            ):
                where = "of them" if is_full else f"from {connection.host}"
                raise TooMany(
                    f"{len(self._connections)} connections are open, {len(of_host)} of them from {connection.host};"
                    f" close one {where}"
                )
            self._connections[connection] = None

    def _evict(self, connections: Iterable[_Connection]) -> bool:
        """Close one of `connections`, or return False if all have proven the token and are in use.

        An unproven connection is closed if there is one: first of hosts that have never proven the token, so that a
        server has time to reconnect; then of the host with the most unproven connections; then the oldest. If all are
        proven, the plain session that has been idle for longest (a forgotten nc) is closed.
        """
        unproven = [candidate for candidate in connections if not candidate.is_proven]
        if unproven:
            of_host: dict[str, int] = {}
            for candidate in unproven:
                of_host[candidate.host] = of_host.get(candidate.host, 0) + 1
            victim = min(
                unproven, key=lambda candidate: (candidate.host in self._proven_hosts, -of_host[candidate.host])
            )
        else:
            silent_s = self._clock.monotonic() - SILENCE_S
            idle = [
                candidate
                for candidate in connections
                if candidate.session and not candidate.session.server and candidate.session.last_received_s < silent_s
            ]
            if not idle:
                return False
            victim = min(idle, key=lambda candidate: candidate.session.last_received_s if candidate.session else 0.0)
        victim.is_evicted = True
        del self._connections[victim]
        victim.wire.wake()
        return True

    # ---------------------------------------------------------------------------- the thread of a connection

    def _serve(self, connection: _Connection) -> None:
        """Serve one connection in its own thread."""
        wire, peer, is_local = connection.wire, connection.peer, is_loopback(connection.host)
        try:
            fingerprint = wire.begin(is_local, self._clock, lambda: self._stopping.is_set() or connection.is_evicted)
            session = connection.session = NodeSession(
                self._info, self._outbox, self._clock, peer, is_local, fingerprint,
                functools.partial(self._record_failure, connection.host), self._rare_log,
            )  # fmt: skip
            self._outbox.watch(wire.wake)
            run_session(
                wire, session, session.stream, functools.partial(self._is_over, connection, session), self._clock
            )
        except (TooMany, Protected) as error:  # evicted, or plain text although TLS is required
            self._log_refusal(f"{error.code} after all", peer, error, connection.is_own)
            self._send_last(wire, error)
        except OSError as error:
            if connection.is_proven:
                log.info("%s: %s", peer, error)
            else:
                self._rare_log.log(logging.INFO, "broken", f"{peer}: {error}")
        except Exception:
            self._rare_log.log(logging.ERROR, "fault", f"{peer}: internal error", is_traceback=True)
        finally:
            self._outbox.unwatch(wire.wake)
            self._dismiss(connection)
            wire.close()

    def _send_last(self, wire: LineConnection, error: WireError) -> None:
        """Send the reason for closing to the peer if the network accepts it now; do not wait for the peer."""
        try:
            wire.send(error_line(error, b""))
        except OSError:
            pass  # the peer has disconnected already

    def _record_failure(self, host: str) -> float:
        """Count a wrong proof of `host`, and return the delay of the answer in seconds, which increases each time.

        A correct proof is never delayed. Otherwise a client with a wrong token could delay a server at its address.
        """
        with self._lock:
            failures = self._failures.pop(host, 0)
            if len(self._failures) >= MOST_HOSTS:
                del self._failures[next(iter(self._failures))]
            self._failures[host] = min(failures + 1, 10)
        return min(0.25 * 2**failures, LONGEST_DELAY_S) if failures else 0.0

    def _record_proof(self, connection: _Connection) -> None:
        connection.is_proven = True
        self._failures.pop(connection.host, None)
        self._proven_hosts.pop(connection.host, None)
        if len(self._proven_hosts) >= MOST_HOSTS:
            del self._proven_hosts[next(iter(self._proven_hosts))]
        self._proven_hosts[connection.host] = None

    def _dismiss(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.pop(connection, None)
            self._collectors = {name: other for name, other in self._collectors.items() if other is not connection}

    def _is_over(self, connection: _Connection, session: NodeSession) -> bool:
        """Return True if the program is stopping, or if a newer session of the same server has replaced this one.

        Raise TooMany if this connection was closed in favour of another one.
        """
        if self._stopping.is_set():
            return True
        if session.is_proven and not connection.is_proven:
            with self._lock:
                self._record_proof(connection)
        if connection.is_evicted:
            raise TooMany(_EVICTED)
        if not session.server:
            return False
        with self._lock:
            active = self._collectors.get(session.server)
            if active is connection or connection.has_collected:
                return active is not connection
            self._collectors[session.server] = connection
            connection.has_collected = True
        if active is not None:
            log.info("%s: replaces its earlier connection", session.peer)
            active.wire.wake()
        return False


_EVICTED = (
    "this connection was closed in favour of another one, because it was idle or has not proven the token; try again"
)


class _Listener(socketserver.TCPServer):
    """Passes each accepted connection to `accept`, and errors of accept(2) to `fail`."""

    allow_reuse_address = True
    request_queue_size = 64
    timeout = 0  # `handle_request` does not wait: it is called when there is a connection

    def __init__(
        self,
        address: tuple[str, int],
        accept: Callable[[socket.socket, Any], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._accept, self._fail = accept, fail
        self._wake_pipe = WakePipe()
        self._has_ended = threading.Event()
        super().__init__(address, socketserver.BaseRequestHandler)

    def serve_forever(self, poll_interval: float = 0.0) -> None:
        """Serve until `shutdown`; `poll_interval` is not used.

        The method of the library would wake up regularly to check for the shutdown; this one waits for a pipe.
        """
        poll = select.poll()  # select(2) accepts no file descriptor above 1023
        for fd in (self.fileno(), self._wake_pipe.fileno()):
            poll.register(fd, select.POLLIN)
        try:
            while self._wake_pipe.fileno() not in {fd for fd, _ in poll.poll()}:
                self.handle_request()
        finally:  # otherwise `shutdown` would never return
            self._has_ended.set()

    def shutdown(self) -> None:
        self._wake_pipe.wake()
        self._has_ended.wait()

    def server_close(self) -> None:
        super().server_close()
        self._wake_pipe.close()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:  # EMFILE: the library would try again in an endless loop
            self._fail(error)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        self._accept(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("%s: internal error", client_address)
