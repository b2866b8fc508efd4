"""TCP transport, server side: connects to one node and collects from it.

The ConnectionLoop's one thread makes and serves the connections to all nodes; what is said here of "the thread" is that
one. Any thread may call `ask`, `move`, `recheck_token`, `wake` and `end`. `_lock` guards the present session and the
addresses to try next, and is held for one look or change; `_asking` is held until the answer to one question has come,
or has not.
Errors: a connection that breaks or is refused is tried again after 1 s, doubling to 60 s; a fault of this program in
one session ends that session alone.
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
STORE_S = 120.0  # for the store to say what it has of a node
LIVE_BYTES = 4096  # read at once of one node: more are not only live samples
MOST_LINES = 1024  # that are taken at once: more than are read of a node that sends a sample a line


class TcpServerTransport(Transport, LoopMember):
    """Connects to one node, collects from it, and tries again whenever that ends."""

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
        """
        address   of the node
        expected  the node's name; empty: any node
        server    this server's name
        ledger    the Ingestor
        keys      of nodes that have a token, by name; looked up at every connection
        pins      nodes that are reached by TLS only, by name, each with its certificate's fingerprint (empty: any)
        names     which link has which name; None: this is the only one
        loop      serves this connection beside others; None: it has a thread of its own
        """
        self.state = NodeState(join_address(*address), expected)
        if names is not None:
            self.state.name = names.current(expected)
        self._home = self._good = address  # as it was told first, and where the node was reached last
        self._server = server
        self._ledger = ledger
        self._keys = keys
        self._pins = pins
        self._names = names if names is not None else NodeNames(())
        self._connect_over = _tls_sockets() if expected in pins else LineSocket
        self._clock = clock
        self._loop = loop if loop is not None else ConnectionLoop(Clock())
        self._lock = threading.Lock()
        self._current: tuple[LineSocket, ServerSession] | None = None  # once lines can be said
        self._places = [address]
        self._is_stopping = False
        self._is_hurried = False  # try again now
        self._asking = threading.Lock()  # one question at a time; held until its answer came or did not
        self._awaited: tuple[Any, ...] = ()  # what that answer is
        self._answered = Wakeup()
        # The rest is the thread's own.
        self._address = address  # of this attempt
        self._connector: Connector | None = None
        self._wire: LineSocket | None = None
        self._lines: list[bytes] = []  # that were read, and are to be taken before more is read
        self._held = HeldBatches(ledger)
        self._is_paused = False
        self._check_s = 0.0  # when a node that is not read is told next that this end lives
        self._began_s = 0.0  # of the handshake
        self._give_up_s = 0.0  # of the end: what is due has gone by then, or goes no more; 0: it has not come
        self._retry_s = RETRY_S
        self._retry_at_s = 0.0  # 0: it has not been tried

    def start(self) -> None:
        self._loop.add(self)

    def end(self) -> None:
        """Begin to stop; returns at once, so that many ends can be stopped together."""
        self._is_stopping = True
        self.wake()

    def move(self, address: tuple[str, int]) -> None:
        """The node has said that it is at `address`: try there next, and now. Returns at once; from any thread.

        A connection that lives is kept. An address that was wrong costs one attempt: the next goes where it was before.
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
        """Send what others have left with the session."""
        self._loop.wake(self)

    def recheck_token(self) -> None:
        """End the session unless the token that it proved is still accepted; without a session, connect at once."""
        with self._lock:
            if self._current:
                self._current[1].recheck_token()
                return
            self._is_hurried = True
        self.wake()

    def ask(self, word: str, *args: bool, limit_s: float = 5.0) -> bool:
        """Say SEND or CHECK to the node; whether it answered within `limit_s` seconds (`state` then has the answer)."""
        with self._asking:
            # A CHECK may be under way already: its STATUS is no answer to SEND.
            self._awaited = ("SENDBACK", *args) if word == "SEND" else ("STATUS",)
            self._answered.wait(0.0)  # an answer that came too late for the question before
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
            self._shake_hands(events, self._wire)
        elif self._connector is not None:
            self._connect(self._connector)
        else:
            self._try_again()

    def _try_again(self) -> None:
        """Begin the next attempt, if it is time for it."""
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
            self._places = self._places[1:] + [self._address]  # for the next attempt, should this one fail
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
        except BaseException:  # the node has gone, or there is no memory
            sock.close()
            raise
        self._began_s = self._loop.clock.monotonic()
        self._loop.expect(self, True)  # and not before: a node that is switched off must not keep all others busy
        self._shake_hands(0, self._wire)

    def _shake_hands(self, events: int, wire: LineSocket) -> None:
        if events & ~select.EPOLLOUT:
            wire.receive()
        left_s = wire.handshake_left_s(self._loop.clock.monotonic() - self._began_s)
        if left_s:
            self._loop.watch(self, wire.fileno(), select.EPOLLIN | (select.EPOLLOUT if wire.unsent else 0))
            self._loop.call_in(self, left_s)
            return
        self.state.fingerprint = wire.fingerprint
        fault = self._mistrust(wire.fingerprint)
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
            self._collect(select.EPOLLIN, wire, session)  # what came with the end of the handshake

    def _ask_store(self, find: Callable[[], Resume], answer: Callable[[Callable[[], Resume]], None]) -> None:
        self._loop.call_in(self, min(CHECK_AFTER_S, STORE_S))  # for the node that waits: see _tick
        try:
            self._loop.helpers.run(find, answer)
        except RuntimeError:  # no thread can be started: then all wait for the store
            answer(find)

    def _mistrust(self, fingerprint: str) -> str:
        """Return why nothing is sent to a node with this certificate; empty: it is accepted."""
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
        wanted = (0 if is_waiting else select.EPOLLIN) | (select.EPOLLOUT if wire.unsent else 0)
        if not wanted:
            self._loop.unwatch(self)
        elif wanted != self.watched_events:
            self._loop.watch(self, wire.fileno(), wanted)

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
        """Have the session take the next of the lines that were read; none while it waits for the store."""
        lines, count = self._lines[:MOST_LINES], 0
        while count < len(lines) and not (session.collecting or session.is_resuming):
            session.receive_lines(lines[count : count + 1])
            count += 1
        if session.collecting:
            session.receive_lines(lines[count:])
            count = len(lines)
        del self._lines[:count]

    def _tick(self, session: ServerSession) -> None:
        """Do what is due by the clock. A node that is not read is not found silent, and hears that this end lives."""
        if not (self._is_paused or session.is_resuming):
            self._loop.call_in(self, session.tick())
            return
        now_s = self._loop.clock.monotonic()
        if session.is_resuming and now_s - self._began_s > STORE_S:
            raise TimeoutError("this server's store does not answer")
        if now_s >= self._check_s:
            self._check_s = now_s + CHECK_AFTER_S
            session.ask("CHECK")
        self._loop.call_in(self, self._check_s - now_s)

    def _pause(self) -> None:
        """Read no more until less is held: the node keeps what is not read."""
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
        """Send what is due, and end. What the peer still says is of no use any more."""
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
        """Return why the connection ended, for people, from what was raised."""
        if isinstance(error, StoreDamaged):  # this server's own fault, shown elsewhere with the remedy
            return tcp_faults.STORE_DAMAGED
        if isinstance(error, SettingsError):  # tokens that do not read: somebody will mend the file while this runs
            return str(error)
        if isinstance(error, OSError):
            how = error.strerror or str(error)
            if self._current is not None:
                return self._current[1].fault_at_end(how)
            return how if self._wire is not None else f"cannot be reached: {how}"
        if isinstance(error, RuntimeError) and self._connector is None and self._wire is None:
            return f"cannot be reached: {error}"  # no thread to look up its name
        self._loop.rare_log.say(logging.ERROR, "fault", f"{self.state.address}: internal error", is_traceback=True)
        return tcp_faults.describe(tcp_faults.INTERNAL, self.state.expected, text=str(error) or type(error).__name__)

    def _disconnect(self, fault: str) -> None:
        """End the connection or the attempt, say why, and try again later unless this end stops."""
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
        retry_s = self._retry_s * random.uniform(0.75, 1.25)
        self._retry_at_s = self._loop.clock.monotonic() + retry_s
        self._lost(fault)
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

    def _lost(self, fault: str) -> None:
        state = self.state
        if state.connected or fault != state.fault:
            is_ours = self._is_stopping  # this server ends the connection: no reason to warn
            level = logging.DEBUG if is_ours else logging.WARNING
            log.log(level, "%s: %s", f"{state.address} {state.name or state.expected}".rstrip(), fault)
        if state.connected or state.since_ms is None:
            state.since_ms = self._clock.wall_ms()
        state.connected, state.fault = False, fault


@functools.cache
def _tls_sockets() -> Callable[[socket.socket], LineSocket]:
    """Return what makes the connections to nodes with TLS: all have one context, which is large."""
    from pigeonpost.transports.tcp_tls import server_connections  # ssl is only loaded where a node has TLS

    return server_connections()
