"""TCP transport, server side: connects to one node and collects from it.

One thread for each node; the connection belongs to it, and any other thread may `wake` it. `_lock` guards the present
connection and the address to try next; `_asking` is held until the answer to one question has come, or has not.
Errors: a connection that breaks or is refused is tried again after 1 s, doubling to 60 s.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pigeonpost.auth.key import Key
from pigeonpost.core.addresses import join_address
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SettingsError, StoreDamaged
from pigeonpost.server.node_names import NodeNames
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports import tcp_faults
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.tcp_connection import LineConnection, run_session
from pigeonpost.transports.tcp_server_session import IngestProtocol, ServerSession

log = logging.getLogger(__name__)

CONNECT_S = 10.0
RETRY_S, LONGEST_RETRY_S = 1.0, 60.0


class TcpServerTransport(Transport):
    """Connects to one node, collects from it, and tries again whenever that ends."""

    def __init__(
        self,
        address: tuple[str, int],
        expected: str,
        server: str,
        ledger: IngestProtocol,
        keys: Mapping[str, Key],
        clock: Clock,
        pins: Mapping[str, str] = MappingProxyType({}),
        names: NodeNames | None = None,
    ) -> None:
        """
        address   of the node
        expected  the node's name; empty: any node
        server    this server's name
        ledger    the Ingestor
        keys      of nodes that have a token, by name; looked up at every connection
        pins      nodes that are reached by TLS only, by name, each with its certificate's fingerprint (empty: any)
        names     which link has which name; None: this is the only one
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
        self._connect_over = _tls_connections() if expected in pins else LineConnection
        self._clock = clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._current: tuple[LineConnection, ServerSession] | None = None
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

    def recheck_token(self) -> None:
        """End the session unless the token that it proved is still accepted; without a session, connect at once."""
        with self._lock:
            if self._current:
                self._current[1].recheck_token()
                return
        self._hurried.set()

    def ask(self, word: str, *args: bool, limit_s: float = 5.0) -> bool:
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
        try:
            wire = self._connect_over(sock)
        except OSError as error:  # no descriptor for its pipe, or the node has gone
            sock.close()
            self._lost(f"cannot be reached: {error.strerror or error}")
            return False
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

    def _collect(self, wire: LineConnection) -> bool:
        try:
            fingerprint = wire.begin(False, self._clock, self._stopping.is_set)
        except OSError as error:
            self._lost(error.strerror or str(error))
            return False
        self.state.fingerprint = fingerprint
        fault = self._mistrust(fingerprint)
        if fault:
            self._lost(fault)
            return False
        session = ServerSession(
            self._server, self._ledger, self._keys, self.state, self._clock, wire.wake, self._record_answer,
            fingerprint, self._pins, self._names.claim, self._names.current,
        )  # fmt: skip
        with self._lock:
            self._current = wire, session
        try:
            run_session(wire, session, lambda: False, self._stopping.is_set, self._clock)
            self._lost(session.fault or "closed")
        except StoreDamaged:  # this server's own fault, shown elsewhere with the remedy
            self._lost(tcp_faults.STORE_DAMAGED)
        except OSError as error:
            self._lost(session.fault_at_end(error.strerror or str(error)))
        return session.collecting

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

    def _record_answer(self, *answer: Any) -> None:
        if answer == self._awaited:
            self._answered.set()

    def _lost(self, fault: str) -> None:
        state = self.state
        if state.connected or fault != state.fault:
            is_ours = self._stopping.is_set()  # this server ends the connection: no reason to warn
            level = logging.DEBUG if is_ours else logging.WARNING
            log.log(level, "%s: %s", f"{state.address} {state.name or state.expected}".rstrip(), fault)
        if state.connected or state.since_ms is None:
            state.since_ms = self._clock.wall_ms()
        state.connected, state.fault = False, fault


def _tls_connections() -> Callable[[socket.socket], LineConnection]:
    from pigeonpost.transports.tcp_tls import server_connections  # ssl is only loaded where a node has TLS

    return server_connections()
