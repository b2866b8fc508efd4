"""Live values: every commit is sent to the open pages as a Server-Sent Event (HTML standard, section 9.2).

    id: 1f0a9c-17
    data: {"samples":[{"node":"basement","time_ms":1795188970123,"values":{"temperature":"23.4 °C"}}]}

One thread serves all pages, so a page needs a socket but no thread. `_lock` guards the data that other threads pass to
this thread (nodes with new samples, new sockets), and is held only for single changes. Errors: a client that does not
read is disconnected. Browsers reconnect automatically, with the id of the last event received.
"""

from __future__ import annotations

import logging
import secrets
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.format import number, with_unit
from pigeonpost.core.strict_json import write_json
from pigeonpost.core.units import conversion
from pigeonpost.core.wake_pipe import WakePipe
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.views.context import RequestContext, WebContext
from protocol import NODE_NAME

if TYPE_CHECKING:
    from pigeonpost.server.latest_samples import LatestSample
    from pigeonpost.storage.models import EpochCommit

log = logging.getLogger(__name__)

MOST_CLIENTS = 200
MOST_NODES = 60  # nodes that a page can request by name
HEARTBEAT_S = 15.0  # interval of heartbeats; the session of a client is checked before everything that is sent
_REMEMBERED = 64  # last events that are kept, for clients that reconnect
_UNSENT_BYTES = 64 << 10
_RETRY_MS = 3000
_KIND = "text/event-stream; charset=utf-8"


class _Client:
    """One open page."""

    def __init__(
        self,
        sock: socket.socket,
        is_signed_in: Callable[[], bool],
        units: Callable[[], Mapping[str, str]],
        nodes: frozenset[str] = frozenset(),
    ) -> None:
        """Create a client.

        Args:
            sock: Its socket.
            is_signed_in: Function that returns True while its session is valid.
            units: Function that returns the units for its user, as Preferences.units.
            nodes: Nodes that the page shows; empty for all.
        """
        self.sock = sock
        self.is_signed_in = is_signed_in
        self.units = units
        self.nodes = nodes
        self.unsent = b""


class _Event:
    """Event with the latest samples of some nodes. Its text is cached for clients with the same units and nodes."""

    def __init__(self, id: str, samples: Sequence[tuple[str, LatestSample]]) -> None:
        self._id = id
        self._samples = samples
        self._texts: dict[object, bytes] = {}

    def text(self, client: _Client) -> bytes:
        """Return the event for a client, in its units and with the nodes that it shows; empty without such nodes."""
        units = client.units()
        shown = [(node, latest) for node, latest in self._samples if not client.nodes or node in client.nodes]
        if self._samples and not shown:
            return b""
        key = frozenset(units.items()), client.nodes
        if key not in self._texts:
            samples = [_latest_as_json(node, latest, units) for node, latest in shown]
            self._texts[key] = f"id: {self._id}\ndata: {write_json({'samples': samples})}\n\n".encode()
        return self._texts[key]


class EventStream:
    """Event stream: the open pages, the last events, and the thread that sends them."""

    def __init__(self, app: WebContext, heartbeat_s: float = HEARTBEAT_S, most_clients: int = MOST_CLIENTS) -> None:
        self._app = app
        self._heartbeat_s = heartbeat_s
        self._most_clients = most_clients
        self._run = secrets.token_hex(3)  # random id of this run; the numbers of events begin at 1 in each run
        self._number = 0
        self._events: deque[tuple[int, _Event]] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()
        self._changed: dict[str, None] = {}
        self._new_clients: list[tuple[_Client, str]] = []  # each with the id of its last event
        self._clients: set[_Client] = set()
        self._chooser = selectors.DefaultSelector()
        self._wake_pipe = WakePipe()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="live", daemon=True)

    @property
    def clients(self) -> int:
        """Number of open pages."""
        return len(self._clients) + len(self._new_clients)

    def start(self) -> None:
        """Start the thread."""
        self._chooser.register(self._wake_pipe, selectors.EVENT_READ)
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        """Close all streams, within `limit_s` seconds."""
        self._stopping.set()
        self._wake_pipe.wake()
        if self._thread.ident is not None:
            self._thread.join(limit_s)
        if not self._thread.is_alive():
            self._chooser.close()
            self._wake_pipe.close()

    # --------------------------------------------------------------------------------- called by other threads

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Record the nodes of `epoch_commits`. It runs in the Ingestor's writer thread, so it must not wait."""
        with self._lock:
            self._changed.update(dict.fromkeys([epoch_commit.node for epoch_commit in epoch_commits]))
        self._wake_pipe.wake()

    def answer(self, context: RequestContext, is_signed_in: Callable[[], bool]) -> Response:
        """Return a stream for `context` that continues while `is_signed_in` returns True: `/events`.

        It resumes after Last-Event-ID. `?nodes=NAME,NAME` restricts it to these nodes. Raises HTTPError 503 if there
        are too many streams, 400 for invalid names.
        """
        nodes = _nodes_in(context.request.query.get("nodes", ""))
        if self.clients >= self._most_clients or self._stopping.is_set():
            raise HTTPError(
                503,
                "Too many pages receive live values; this one is refreshed periodically instead.",
                "busy",
                {"Retry-After": "30"},
            )
        last_id = context.request.headers.get("last-event-id", "")

        def adopt(sock: socket.socket) -> None:
            with self._lock:
                client = _Client(sock, is_signed_in, lambda: context.preferences.units, nodes)
                self._new_clients.append((client, last_id))
            self._wake_pipe.wake()

        return Response(kind=_KIND, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, live=adopt)

    # ------------------------------------------------------------------------------------ in the stream thread

    def _serve(self) -> None:
        clock = self._app.clock
        beat_s = clock.monotonic() + self._heartbeat_s
        while not self._stopping.is_set():
            for key, events in self._chooser.select(max(0.0, beat_s - clock.monotonic())):
                if key.data is None:
                    self._wake_pipe.drain()
                else:
                    self._attend(key.data, events)
            self._publish()
            if clock.monotonic() >= beat_s:
                beat_s = clock.monotonic() + self._heartbeat_s
                self._beat()
        for client in list(self._clients):
            self._drop(client)
        for client, _ in self._new_clients:
            client.sock.close()

    def _publish(self) -> None:
        """Send the new samples to all pages, and the missed events to new ones."""
        with self._lock:
            changed, self._changed = self._changed, {}
            new_clients, self._new_clients = self._new_clients, []
        if changed:
            self._number += 1
            event = self._event(changed)
            self._events.append((self._number, event))
            self._send_to_all(event.text)
        for client, last_id in new_clients:
            client.sock.setblocking(False)
            self._clients.add(client)
            self._chooser.register(client.sock, selectors.EVENT_READ, client)
            self._send(client, f"retry: {_RETRY_MS}\n\n".encode() + self._missed(last_id, client))

    def _event(self, nodes: Iterable[str]) -> _Event:
        latest = self._app.ingestor.latest
        return _Event(f"{self._run}-{self._number}", [(node, latest[node]) for node in nodes if node in latest])

    def _missed(self, last_id: str, client: _Client) -> bytes:
        """Return the events after `last_id`, or one with the current state if they are no longer kept."""
        run, _, number_text = last_id.partition("-")
        if run == self._run and number_text.isascii() and number_text.isdigit() and len(number_text) < 16:
            first_kept = self._events[0][0] if self._events else self._number + 1
            if first_kept <= int(number_text) + 1 <= self._number + 1:
                return b"".join(event.text(client) for number, event in self._events if number > int(number_text))
        return self._event(list(self._app.ingestor.latest)).text(client)

    def _beat(self) -> None:
        self._send_to_all(lambda client: b":\n\n")

    def _send_to_all(self, text: Callable[[_Client], bytes]) -> None:
        """Send to every page whose session is valid; disconnect the others.

        Args:
            text: Function that returns the text for a client; if it is empty, nothing is sent.
        """
        for client in list(self._clients):
            if client.is_signed_in():
                data = text(client)
                if data:
                    self._send(client, data)
            else:
                self._drop(client)

    def _attend(self, client: _Client, events: int) -> None:
        if events & selectors.EVENT_READ:
            try:
                if not client.sock.recv(1024):  # data from the client is ignored
                    self._drop(client)
                    return
            except BlockingIOError:
                pass
            except OSError:
                self._drop(client)
                return
        if events & selectors.EVENT_WRITE:
            self._send(client, b"")

    def _send(self, client: _Client, data: bytes) -> None:
        """Send as much as possible now; the rest is sent when the socket accepts it."""
        unsent = client.unsent + data
        try:
            unsent = unsent[client.sock.send(unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if len(unsent) > _UNSENT_BYTES:
            self._drop(client)
            return
        if bool(unsent) != bool(client.unsent):
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
            self._chooser.modify(client.sock, mask, client)
        client.unsent = unsent

    def _drop(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.discard(client)
            self._chooser.unregister(client.sock)
            client.sock.close()


def _nodes_in(text: str) -> frozenset[str]:
    """Return the nodes in a query, separated by commas. Raises HTTPError 400."""
    names = frozenset(text.split(",")) if text else frozenset()
    if len(names) > MOST_NODES or not all(map(NODE_NAME, names)):
        raise HTTPError(400, f"`nodes` must be up to {MOST_NODES} names of nodes, separated by commas.", "nodes")
    return names


def _latest_as_json(node: str, latest: LatestSample, units: Mapping[str, str]) -> dict[str, Any]:
    """Return a sample with its values as formatted texts, which the script inserts into the page.

    Values of earlier samples are left out: the page contains them already.
    """
    values = {}
    for name, value in latest.sample.values.items():
        if name in latest.older:
            continue
        to = conversion(latest.units.get(name, ""), units)
        values[name] = with_unit(number(to.value(value)), to.unit) if value is not None else "–"
    return {"node": node, "time_ms": latest.sample.time_ms, "values": values}
