"""TCP relay between the server and the node of `server.py --demo`: the cable that the page "Break it" can cut.

One thread forwards the bytes. The other methods only record the wanted state and wake it, so any thread may call them.
Errors: none for callers; `fault` is the reason why the relay cannot listen again.
"""

from __future__ import annotations

import logging
import selectors
import socket
import struct
import threading
from enum import Enum

from pigeonpost.core.wake_pipe import WakePipe

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_CONNECT_S = 1.0
_RETRY_S = 0.5  # pause before the next attempt to listen
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER (socket(7)): close sends RST, so that the peer learns of it at once


class LinkState(Enum):
    """State of the link: it works; both ends see that it is broken; or all packets vanish without a sign."""

    WORKING = "working"
    CUT = "cut"
    STALLED = "stalled"


class _Side:
    """One of the two sockets of a connection, with the bytes that it has not accepted yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.unsent = sock, b""
        self.other: _Side


class DemoRelay:
    """The relay.

    Attributes:
        address: Address on which it listens; set by `start`.
        state: Wanted state of the link.
        fault: Reason why it does not listen, or an empty string.
    """

    def __init__(self) -> None:
        self.address = ("127.0.0.1", 0)
        self.state = LinkState.WORKING
        self.fault = ""
        self._target: tuple[str, int] | None = None
        self._is_over = False
        self._pipe = WakePipe()
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._sides: set[_Side] = set()
        self._thread = threading.Thread(target=self._run, name="demo relay", daemon=True)

    def start(self, target: tuple[str, int]) -> tuple[str, int]:
        """Start to forward connections to `target` (host, port), and return the address of the relay."""
        self._target = target
        self._listen()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._thread.start()
        return self.address

    def lead_to(self, target: tuple[str, int] | None) -> None:
        """Forward new connections to `target`; None: there is no node, so connections are refused."""
        self._target = target
        self._pipe.wake()

    def set_state(self, state: LinkState) -> None:
        """Set the state of the link. If packets were withheld, they continue when it is WORKING again, as in TCP."""
        self.state = state
        self._pipe.wake()

    def stop(self, limit_s: float) -> None:
        """End all connections, and the thread within `limit_s` seconds. A second call does nothing."""
        self._is_over = True
        self._pipe.wake()
        if self._thread.is_alive():
            self._thread.join(limit_s)
        if not self._thread.is_alive():
            self._pipe.close()

    # ------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._is_over:
            self._apply()
            wants_listener = self._listener is None and self._is_open
            for key, events in self._selector.select(_RETRY_S if wants_listener else None):
                if key.fileobj is self._pipe:
                    self._pipe.drain()
                elif key.fileobj is self._listener:
                    self._accept(self._listener)
                elif key.data in self._sides:
                    self._forward(key.data, events)
        self._close_all()
        self._selector.close()

    @property
    def _is_open(self) -> bool:
        is_refused = self.state is LinkState.WORKING and self._target is None
        return self.state is not LinkState.CUT and not is_refused

    def _apply(self) -> None:
        """Bring the sockets into the wanted state."""
        if not self._is_open:
            self._close_all()
            return
        if self._listener is None:
            self._listen()
        for side in self._sides:
            self._watch(side)
        if self._listener is not None:
            self._select(self._listener, 0 if self.state is LinkState.STALLED else selectors.EVENT_READ, None)

    def _listen(self) -> None:
        try:
            self._listener = socket.create_server(self.address)
        except OSError as error:  # another program has taken the port meanwhile
            self.fault = f"the link cannot be restored: {error.strerror or error}"
            return
        self.fault = ""
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()[:2]

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # the client has disconnected
        target = self._target
        try:
            if target is None:
                raise ConnectionRefusedError
            far = socket.create_connection(target, _CONNECT_S)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
            return
        pair = _Side(sock), _Side(far)
        for side, other in (pair, pair[::-1]):
            side.other = other
            side.sock.setblocking(False)
            side.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sides.add(side)
        for side in pair:
            self._watch(side)

    def _forward(self, side: _Side, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not side.other.unsent:
                data = side.sock.recv(_CHUNK)
                if not data:
                    self._end(side)
                    return
                side.other.unsent = data
            for one in (side, side.other):
                if one.unsent:
                    one.unsent = one.unsent[one.sock.send(one.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._end(side)
            return
        self._watch(side)
        self._watch(side.other)

    def _watch(self, side: _Side) -> None:
        """Wait for what `side` can do next. Nothing is read before the other side has accepted everything."""
        events = 0 if side.other.unsent else selectors.EVENT_READ
        events |= selectors.EVENT_WRITE if side.unsent else 0
        self._select(side.sock, 0 if self.state is LinkState.STALLED else events, side)

    def _select(self, sock: socket.socket, events: int, side: _Side | None) -> None:
        known = self._selector.get_map().get(sock)
        if known is not None and known.events == events:
            return
        if known is not None:
            self._selector.unregister(sock)
        if events:
            self._selector.register(sock, events, side)

    def _end(self, side: _Side) -> None:
        for one in (side, side.other):
            if one in self._sides:
                self._sides.remove(one)
                self._select(one.sock, 0, one)
                one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.sock.close()

    def _close_all(self) -> None:
        for side in list(self._sides):
            self._end(side)
        if self._listener is not None:
            self._select(self._listener, 0, None)
            self._listener.close()
            self._listener = None
