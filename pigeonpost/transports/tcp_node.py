"""TCP transport, node side: listens, and serves one session per connection.

On TCP the node listens and the server connects; the protocol is lines of text that a person can type with nc. One
thread accepts and admits, and one serves each connection. `_lock` guards who is connected, who collects, and the failed
proofs of each host; it is held for lookups and changes only.
Errors: those of one connection end that connection.

At a limit a new connection takes the place of one that has proven nothing: so silent connections, however many and from
wherever, do not keep a server out that knows the token. What a peer without a token can cause is logged by RareLog.
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

MOST_CONNECTIONS = 64  # that a node serves at once,

MOST_OF_A_HOST = 16  # and of these from one address other than its own

LONGEST_DELAY_S = 4.0  # of the answer to a wrong proof

MOST_HOSTS = 1024  # whose failed proofs are counted, and that are remembered as having proven themselves


class _Connection:
    """State of one connection that is served."""

    def __init__(self, host: str, peer: str, wire: LineConnection, is_own: bool) -> None:
        self.host = host
        self.is_own = is_own  # it comes from the address that it was accepted on
        self.peer = peer
        self.wire = wire
        self.thread = threading.current_thread()  # until it has its own
        self.session: NodeSession | None = None
        self.is_proven = False  # see NodeSession.is_proven; kept here so that `_lock` guards it
        self.is_evicted = False
        self.seated = False  # it has been the active collector: another one in its place came later


class TcpNodeTransport(Transport):
    """Listens, and serves each connection with a NodeSession."""

    def __init__(
        self,
        address: tuple[str, int],
        info: NodeInfo,
        outbox: Outbox,
        clock: Clock,
        connect: Callable[[socket.socket], LineConnection] = LineConnection,
    ) -> None:
        """`connect` makes the connection of an accepted socket; with TLS, that of tcp_tls."""
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
            self._server = _Listener(self._address, self._accept, self._make_way)
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

    # --------------------------------------------------------------------------------- the listener's thread

    def _accept(self, sock: socket.socket, peer_address: Any) -> None:
        """Give a new connection its slot and its thread, or tell the peer why not, and close it."""
        host, peer = str(peer_address[0]), f"{peer_address[0]}:{peer_address[1]}"
        is_own = host == sock.getsockname()[0]
        if self._info.key is None and not is_loopback(host):  # answered here: it takes no slot and no thread
            self._turn_away(sock, peer, Protected(HOW_TO_PROTECT), is_own)
            return
        try:
            connection = _Connection(host, peer, self._connect(sock), is_own)
        except OSError as error:  # no descriptor for its pipe, or the peer has gone
            sock.close()
            self._make_way(error)
            return
        connection.thread = threading.Thread(target=self._serve, args=(connection,), name="serve", daemon=True)
        try:
            self._admit(connection)
            connection.thread.start()
        except TooMany as error:
            self._turn_away(sock, peer, error, is_own)
            connection.wire.close()
        except (RuntimeError, MemoryError) as error:  # no thread can be started: threading raises RuntimeError
            self._dismiss(connection)
            connection.wire.close()
            self._make_way(error)

    def _turn_away(self, sock: socket.socket, peer: str, error: WireError, is_own: bool) -> None:
        self._log_refusal(error.code, peer, error, is_own)
        try:
            sock.setblocking(False)
            sock.send(error_line(error, b""))
        except OSError:
            pass  # the peer has gone, which is what is wanted
        sock.close()

    def _log_refusal(self, kind: str, peer: str, error: WireError, is_own: bool) -> None:
        """Log why a peer is refused, unless it is a health check: that asks in plain text, and takes any answer.

        is_own  it comes from this end's own address. That does not make it trusted: rootless Podman gives the address
                of the container to every peer of a published port
        """
        if not (is_own and isinstance(error, Protected)):
            self._rare_log.say(logging.WARNING, kind, f"{peer}: {error.code}: {error}")

    def _make_way(self, error: BaseException) -> None:
        """Close a connection that has proven nothing: there is no descriptor, memory or thread for a new one."""
        if isinstance(error, OSError) and error.errno not in SHORTAGE:
            return
        self._rare_log.say(logging.ERROR, "no room", f"a connection is not accepted: {error}")
        with self._lock:
            self._evict(self._connections)
        self._stopping.wait(PAUSE_S)

    def _admit(self, connection: _Connection) -> None:
        """Count a connection in, at a limit in place of one that has proven nothing.

        Raises TooMany where all have proven themselves, and none of them is an idle plain session.
        """
        with self._lock:
            of_host = [other for other in self._connections if other.host == connection.host]
            most_of_host = MOST_CONNECTIONS if is_loopback(connection.host) else MOST_OF_A_HOST
            is_full = len(self._connections) >= MOST_CONNECTIONS
            if (len(of_host) >= most_of_host and not self._evict(of_host)) or (
                len(self._connections) >= MOST_CONNECTIONS and not self._evict(self._connections)
            ):
                where = "in all" if is_full else f"from {connection.host}"
                raise TooMany(
                    f"{len(of_host)} connections from {connection.host} are open, {len(self._connections)} in all;"
                    f" close one of those {where}"
                )
            self._connections[connection] = None

    def _evict(self, among: Iterable[_Connection]) -> bool:
        """Close the least important connection. Returns False if all have proven themselves and are in use.

        First the unproven: those of hosts that never proved themselves before others, so that a server that comes back
        has its time; then those of the host that has most; then the oldest. Last, a plain session (a forgotten nc).
        """
        unproven = [one for one in among if not one.is_proven]
        if unproven:
            of_host: dict[str, int] = {}
            for one in unproven:
                of_host[one.host] = of_host.get(one.host, 0) + 1
            victim = min(unproven, key=lambda one: (one.host in self._proven_hosts, -of_host[one.host]))
        else:
            silent_s = self._clock.monotonic() - SILENCE_S
            idle = [one for one in among if one.session and not one.session.server and one.session.heard_s < silent_s]
            if not idle:
                return False
            victim = min(idle, key=lambda one: one.session.heard_s if one.session else 0.0)
        victim.is_evicted = True
        del self._connections[victim]
        victim.wire.wake()
        return True

    # ---------------------------------------------------------------------------- the thread of a connection

    def _serve(self, connection: _Connection) -> None:
        """One connection, in its own thread."""
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
        except (TooMany, Protected) as error:  # evicted; or plain text where it must be TLS
            self._log_refusal(f"{error.code} after all", peer, error, connection.is_own)
            self._send_last(wire, error)
        except OSError as error:
            if connection.is_proven:
                log.info("%s: %s", peer, error)
            else:
                self._rare_log.say(logging.INFO, "broken", f"{peer}: {error}")
        except Exception:
            self._rare_log.say(logging.ERROR, "fault", f"{peer}: internal error", is_traceback=True)
        finally:
            self._outbox.unwatch(wire.wake)
            self._dismiss(connection)
            wire.close()

    def _send_last(self, wire: LineConnection, error: WireError) -> None:
        """Tell a peer why its connection is closed, if the network takes it at once: nobody waits for this peer."""
        try:
            wire.send(error_line(error, b""))
        except OSError:
            pass  # the peer has gone, which is what is wanted

    def _record_failure(self, host: str) -> float:
        """Count a wrong proof of `host`. Returns the seconds by which to delay the answer, more each time.

        A right proof is never delayed: else a client with a wrong token could delay a server at the same address.
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
        """Return True if the program stops, or a later session of the same server has taken this one's place.

        Raises TooMany when the connection was evicted.
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
            sitting = self._collectors.get(session.server)
            if sitting is connection or connection.seated:
                return sitting is not connection
            self._collectors[session.server] = connection
            connection.seated = True
        if sitting is not None:
            log.info("%s: replaces its connection from before", session.peer)
            sitting.wire.wake()
        return False


_EVICTED = "others want to connect, and this connection has not proven that it knows the token, or was idle; try again"


class _Listener(socketserver.TCPServer):
    """Accepts, and hands each connection to `accept`; what the kernel cannot accept is told to `fail`."""

    allow_reuse_address = True
    request_queue_size = 64
    timeout = 0  # of `handle_request`, which is called when there is one

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

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:  # EMFILE: the library would try again at once, for ever
            self._fail(error)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        self._accept(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("%s: internal error", client_address)
