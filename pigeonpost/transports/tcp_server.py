"""TCP transport, server side: connects to one node and collects from it.

The thread of the ConnectionLoop makes and serves the connections to all nodes. Any thread may call `ask`, `move`,
`recheck_token`, `wake`, `end` and `stop`. `_lock` guards the present session and the addresses to try next; it is held
for one lookup or change. A caller of `ask` holds `_asking` until the answer arrives or its time limit is over.
Errors: after a connection is lost or rejected, this end connects again after 1 s, doubling to 60 s. An internal error
in one session ends only that session.
"""

from __future__ import annotations

import functools
import logging
import random
import select
import socket
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pigeonpost.auth.key import Key
from pigeonpost.core.addresses import join_address
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SettingsError, StoreDamaged, WireError
from pigeonpost.core.wakeup import Wakeup
from pigeonpost.server.node_names import NodeNames
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports import tcp_faults
from pigeonpost.transports.connection_loop import ConnectionLoop, LoopMember
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.held_batches import BoundedIngest, HeldBatches
from pigeonpost.transports.tcp_connection import DRAIN_S, LineSocket
from pigeonpost.transports.tcp_connector import Connector
from pigeonpost.transports.tcp_server_session import ServerSession
from pigeonpost.transports.tcp_session import Resume
from protocol import CHECK_AFTER_S

log = logging.getLogger(__name__)

RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
STORE_S = 120.0  # longest wait for the store's high-water marks of a node
LIVE_BYTES = 4096  # a node that sends more bytes than this in one read sends other data than live samples
MOST_LINES = 1024  # maximum number of lines processed in one step; a read with a sample in each line has fewer


class TcpServerTransport(Transport, LoopMember):
    """Connects to one node, collects from it, and connects again whenever the connection is lost.

    Args:
        address: Host and port of the node.
        expected: Name of the node, or empty if any node is accepted.
        server: Name of this server.
        ledger: The Ingestor, which stores the samples.
        keys: Keys of the nodes that have a token, by name; looked up for every connection.
        clock: Clock for timeouts and timestamps.
        pins: Required certificate fingerprints of the nodes that use TLS, by name; empty if any is accepted.
        names: Registry that assigns each name to one link, or None if this is the only link.
        loop: Loop that serves this connection together with others, or None for a loop of its own.

    Attributes:
        state: State of the node, as the pages show it.
    """

    def __init__(
        self,
        address: tuple[str, int],
        expected: str,
        server: str,
        ledger: BoundedIngest,
        keys: Mapping[str, Key],
        clock: Clock,
        pins: Mapping[str, str] = MappingProxyType({}),
        names: NodeNames | None = None,
        loop: ConnectionLoop | None = None,
    ) -> None:
        self.state = NodeState(join_address(*address), expected)
        if names is not None:
            self.state.name = names.current(expected)
        self._home = self._good = address  # the configured address, and the last address with a collecting session
        self._server = server
        self._ledger = ledger
        self._keys = keys
        self._pins = pins
        self._names = names if names is not None else NodeNames(())
        self._connect_over = _tls_sockets() if expected in pins else LineSocket
        self._clock = clock
        self._loop = loop if loop is not None else ConnectionLoop(Clock())
        self._lock = threading.Lock()
        self._current: tuple[LineSocket, ServerSession] | None = None  # set after the handshake
        self._places = [address]
        self._is_stopping = False
        self._is_hurried = False  # connect again without a pause
        self._asking = threading.Lock()  # one question at a time
        self._awaited: tuple[Any, ...] = ()  # answer for which `ask` waits
        self._answered = Wakeup()
        # Used by the loop's thread only:
        self._address = address  # address of the present attempt
        self._connector: Connector | None = None
        self._wire: LineSocket | None = None
        self._lines: list[bytes] = []  # lines that were read and not processed yet
        self._held = HeldBatches(ledger)
        self._is_paused = False
        self._check_s = 0.0  # time of the next CHECK to a node that is not read, so that the node does not time out
        self._began_s = 0.0  # start of the handshake
        self._give_up_s = 0.0  # time limit for pending data while closing; 0 before that
        self._retry_s = RETRY_S
        self._retry_at_s = 0.0  # time of the next attempt; 0 before the first one

    def start(self) -> None:
        self._loop.add(self)

    def end(self) -> None:
        """Begin to stop, and return without waiting for the end, so that many transports can stop at the same time."""
        self._is_stopping = True
        self.wake()

    def move(self, address: tuple[str, int]) -> None:
        """Begin to connect to `address`, at which the node was announced; return without waiting.

        A working connection is kept. A wrong address costs only one attempt: the next one uses the previous address.
        """
        with self._lock:
            self._places = list(dict.fromkeys((address, self._good, self._home)))
            self._is_hurried = True
            if self._current:
                self._current[1].doubt()
        self.wake()

    def stop(self, limit_s: float) -> str | None:
        self.end()
        with self._lock:
            is_connected = self._current is not None
        is_over = self._loop.wait_for_end(self, limit_s)
        return None if is_over or not is_connected else f"the connection to {self.state.address} did not end"

    def wake(self) -> None:
        """Send what other threads have queued in the session."""
        self._loop.wake(self)

    def recheck_token(self) -> None:
        """End the session unless the node has proven a token that is still accepted; without a session, connect now."""
        with self._lock:
            if self._current:
                self._current[1].recheck_token()
                return
            self._is_hurried = True
        self.wake()

    def ask(self, word: str, *args: bool, limit_s: float = 5.0) -> bool:
        """Send a command to the node and wait for its answer, which is then in `state`.

        Args:
            word: SEND or CHECK.
            args: For SEND, the requested state: True for on, False for off.
            limit_s: Longest wait in seconds.

        Returns:
            True if the node answered in time; False if it did not, or is not connected.
        """
        with self._asking:
            # The STATUS that answers an earlier CHECK is not an answer to SEND, so the word of the answer is compared.
            self._awaited = ("SENDBACK", *args) if word == "SEND" else ("STATUS",)
            self._answered.wait(0.0)  # discard a late answer to an earlier question
            with self._lock:
                if self._current is None or not self._current[1].collecting:
                    return False
                self._current[1].ask(word, *args)
            return self._answered.wait(limit_s)

    def _record_answer(self, *answer: Any) -> None:
        if answer == self._awaited:
            self._answered.set()

    # ------------------------------------------------------------------------------------------ the thread

    def serve(self, events: int) -> None:
        if self._current is not None:
            self._collect(events, *self._current)
        elif self._is_stopping:
            self._close()
            self._loop.remove(self)
        elif self._wire is not None:
            self._continue_handshake(events, self._wire)
        elif self._connector is not None:
            self._connect(self._connector)
        else:
            self._try_again()

    def _try_again(self) -> None:
        """Begin the next attempt if it is due."""
        left_s = self._retry_at_s - self._loop.clock.monotonic()
        if left_s > 0 and not self._is_hurried:
            self._loop.call_in(self, left_s)
            return
        if self._is_hurried:
            self._retry_s = RETRY_S
        elif self._retry_at_s:
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
        with self._lock:
            self._address = self._places[0]
            self._places = self._places[1:] + [self._address]  # for the next attempt if this one fails
            self._is_hurried = False
        self.state.address = join_address(*self._address)
        self._connector = Connector(self._address, self._loop, self)
        self._connect(self._connector)

    def _connect(self, connector: Connector) -> None:
        sock = connector.step()
        if sock is None:
            return
        self._connector = None
        try:
            self._wire = self._connect_over(sock)
        except BaseException:  # the node has disconnected, or memory is exhausted
            sock.close()
            raise
        self._began_s = self._loop.clock.monotonic()
        self._loop.expect(self, True)  # not earlier: a node that is switched off must not keep the loop from resting
        self._continue_handshake(0, self._wire)

    def _continue_handshake(self, events: int, wire: LineSocket) -> None:
        if events & ~select.EPOLLOUT:
            wire.receive()
        left_s = wire.handshake_left_s(self._loop.clock.monotonic() - self._began_s)
        if left_s:
            self._loop.watch(self, wire.fileno(), select.EPOLLIN | (select.EPOLLOUT if wire.unsent else 0))
            self._loop.call_in(self, left_s)
            return
        self.state.fingerprint = wire.fingerprint
        fault = self._certificate_fault(wire.fingerprint)
        if fault:
            self._disconnect(fault)
            return
        session = ServerSession(
            self._server, self._held, self._keys, self.state, self._clock, self.wake, self._record_answer,
            wire.fingerprint, self._pins, self._names.claim, self._names.current, self._ask_store,
        )  # fmt: skip
        with self._lock:
            self._current = wire, session
        self._collect(0, wire, session)
        if self._current:
            self._collect(select.EPOLLIN, wire, session)  # lines received together with the end of the handshake

    def _ask_store(self, find: Callable[[], Resume], answer: Callable[[Callable[[], Resume]], None]) -> None:
        self._loop.call_in(self, min(CHECK_AFTER_S, STORE_S))  # the node must not time out: see _tick
        try:
            self._loop.helpers.run(find, answer)
        except RuntimeError:  # no thread can be started: query in this thread, and let all other nodes wait
            answer(find)

    def _certificate_fault(self, fingerprint: str) -> str:
        """Return the fault for which a node with this certificate is rejected, or an empty string if it is accepted."""
        if not fingerprint:
            return ""
        name = self.state.expected
        pinned = self._pins[name]
        if pinned and pinned != fingerprint:
            return tcp_faults.describe(tcp_faults.OTHER_CERTIFICATE, name, expected=pinned, found=fingerprint)
        if not pinned and self._names.current(name) not in self._keys:
            return tcp_faults.describe(tcp_faults.UNPROVEN, name)
        return ""

    def _collect(self, events: int, wire: LineSocket, session: ServerSession) -> None:
        """Move lines between the connection and its session; both end together."""
        if self._give_up_s:
            self._drain(events, wire, session)
            return
        is_readable = events & ~select.EPOLLOUT
        if not is_readable:
            self._tick(session)
        if is_readable or self._lines:
            self._read(wire, session)
        output = session.take_output()
        if output or wire.unsent:
            wire.send(output)
        if session.closing or self._is_stopping:
            self._give_up_s = self._loop.clock.monotonic() + DRAIN_S
            self._loop.forget(self)
            self._loop.call_in(self, DRAIN_S)
            self._drain(0, wire, session)
            return
        if wire.is_closed and not self._lines:
            raise ConnectionResetError("closed by the peer")
        if self._held.count:
            self._loop.hold(self, self._held.count)
        self._loop.expect(self, session.is_asked or wire.unsent > 0)
        self._watch(wire, session)

    def _watch(self, wire: LineSocket, session: ServerSession) -> None:
        is_waiting = self._is_paused or session.is_resuming
        if self._lines and not is_waiting:
            self._loop.wake(self)
        events = (0 if is_waiting else select.EPOLLIN) | (select.EPOLLOUT if wire.unsent else 0)
        if not events:
            self._loop.unwatch(self)
        elif events != self.watched_events:
            self._loop.watch(self, wire.fileno(), events)

    def _read(self, wire: LineSocket, session: ServerSession) -> None:
        if session.collecting and self._loop.is_full and not self._is_paused:
            self._pause()
        if self._is_paused or session.is_resuming:
            return
        try:
            self._lines = self._lines or wire.receive()
            if sum(map(len, self._lines)) > LIVE_BYTES:
                self._loop.stir()
            self._take_lines(session)
        except WireError as error:
            session.refuse(error)
        if wire.is_full:
            self._loop.hurry()

    def _take_lines(self, session: ServerSession) -> None:
        """Pass the next received lines to the session until it waits for the store."""
        lines, count = self._lines[:MOST_LINES], 0
        while count < len(lines) and not (session.collecting or session.is_resuming):
            session.receive_lines(lines[count : count + 1])
            count += 1
        if session.collecting:
            session.receive_lines(lines[count:])
            count = len(lines)
        del self._lines[:count]

    def _tick(self, session: ServerSession) -> None:
        """Do what is due by the clock.

        While the node is not read, its silence does not end the connection. It still gets CHECK lines, so that it does
        not close the connection itself.
        """
        if not (self._is_paused or session.is_resuming):
            self._loop.call_in(self, session.tick())
            return
        now_s = self._loop.clock.monotonic()
        if session.is_resuming and now_s - self._began_s > STORE_S:
            raise TimeoutError("this server's database does not answer")
        if now_s >= self._check_s:
            self._check_s = now_s + CHECK_AFTER_S
            session.ask("CHECK")
        self._loop.call_in(self, self._check_s - now_s)

    def _pause(self) -> None:
        """Stop reading until fewer samples are held; the node keeps the samples that are not read."""
        self._is_paused = True
        self._check_s = self._loop.clock.monotonic() + CHECK_AFTER_S
        self._loop.call_in(self, CHECK_AFTER_S)
        self._loop.pause(self)

    def hand_on(self) -> None:
        self._held.hand_on()
        self._loop.hold(self, self._held.count)

    def resume(self) -> None:
        self._is_paused = False
        if self._current is not None:
            self._watch(*self._current)

    def _drain(self, events: int, wire: LineSocket, session: ServerSession) -> None:
        """Send pending data, then end. Data from the peer is discarded."""
        if events & ~select.EPOLLOUT:
            try:
                wire.receive()
            except WireError:
                self._give_up_s = self._loop.clock.monotonic()
        wire.send(session.take_output())
        if wire.unsent and self._loop.clock.monotonic() < self._give_up_s:
            self._loop.expect(self, True)
            self._loop.watch(self, wire.fileno(), select.EPOLLIN | select.EPOLLOUT)
        else:
            self._disconnect(session.fault or "closed")

    def fail(self, error: Exception) -> None:
        self._disconnect(self._fault_of(error))

    def _fault_of(self, error: Exception) -> str:
        """Return the fault text for a connection that ended with `error`."""
        if isinstance(error, StoreDamaged):  # not a fault of the node; the page shows it with its remedy
            return tcp_faults.STORE_DAMAGED
        if isinstance(error, SettingsError):  # the token file is invalid; it may be corrected while the server runs
            return str(error)
        if isinstance(error, OSError):
            text = error.strerror or str(error)
            if self._current is not None:
                return self._current[1].fault_at_end(text)
            return text if self._wire is not None else f"cannot be reached: {text}"
        if isinstance(error, RuntimeError) and self._connector is None and self._wire is None:
            return f"cannot be reached: {error}"  # no thread can be started to look up the name
        self._loop.rare_log.log(logging.ERROR, "fault", f"{self.state.address}: internal error", is_traceback=True)
        return tcp_faults.describe(tcp_faults.INTERNAL, self.state.expected, text=str(error) or type(error).__name__)

    def _disconnect(self, fault: str) -> None:
        """End the connection or the attempt, record `fault`, and connect again later unless this transport stops."""
        has_collected = self._current is not None and self._current[1].collecting
        with self._lock:
            self._current = None
            if has_collected:
                self._good = self._address
                if not self._is_hurried:
                    self._places = list(dict.fromkeys((self._address, self._home)))
        self._close()
        if has_collected:
            self._retry_s = RETRY_S
        # The wait is random, so that many links that were lost together do not all reconnect at the same time.
        retry_s = self._retry_s * random.uniform(0.75, 1.25)
        self._retry_at_s = self._loop.clock.monotonic() + retry_s
        self._record_fault(fault)
        if self._is_stopping:
            self._loop.remove(self)
        else:
            self._loop.call_in(self, 0.0 if self._is_hurried else retry_s)

    def _close(self) -> None:
        self._loop.forget(self)
        self._loop.unwatch(self)
        self._held = HeldBatches(self._ledger)  # the node keeps what is not acknowledged
        self._lines, self._is_paused, self._give_up_s = [], False, 0.0
        if self._connector is not None:
            self._connector.close()
        if self._wire is not None:
            self._wire.close()
        self._connector = self._wire = None

    def _record_fault(self, fault: str) -> None:
        state = self.state
        if state.connected or fault != state.fault:
            is_expected = self._is_stopping  # no warning if this server itself ends the connection
            level = logging.DEBUG if is_expected else logging.WARNING
            log.log(level, "%s: %s", f"{state.address} {state.name or state.expected}".rstrip(), fault)
        if state.connected or state.since_ms is None:
            state.since_ms = self._clock.wall_ms()
        state.connected, state.fault = False, fault


@functools.cache
def _tls_sockets() -> Callable[[socket.socket], LineSocket]:
    """Return the factory of connections to nodes with TLS; they share one TLS context, which is large."""
    from pigeonpost.transports.tcp_tls import server_connections  # ssl is imported only if a node uses TLS

    return server_connections()
