"""The road by HTTP: a node behind a router, which no server can reach, brings its samples to the server itself.

Runs on: node (NodeEnd), server (ServerEnd).  Reached from: node.py, server.py; webui, which brings the requests.
Hands on to: stream, which knows what comes next, and parcels, which is how it is written (node); intake (server).
Threads: NodeEnd has one. ServerEnd has none: it answers in those of the web server, one a connection.
Errors: on the server each request has its answer. On the node a server that is away is tried again after 1 s, doubling
  to 60 s; one that refuses the token, or what it was sent, is tried on slowly, and the log says why.

    GET  /api/v1/samples/resume?node=basement&epoch=8d1f03a2c4b5e697   ->  {"have": 150, ...}
    POST /api/v1/samples  {"node": "basement", "outbox": ..., "epoch": ..., "gaps": [], "samples": [...]}
                                                                       ->  {"ack": 170}

Both with `Authorization: Bearer <the node's token>`. docs/protocol.md has the rest. What only one end needs, and is
large, that end imports when it is made.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from links import End
from parcels import PARCEL_BYTES, Parcel, read_body, write_body
from pigeonpost.core.clock import Clock, parse_rfc3339, rfc3339
from pigeonpost.core.config import Settings
from pigeonpost.core.errors import DiskError, NotStored, SettingsError, TooLong, WireError
from pigeonpost.core.http_client import LONGEST_RETRY_S, Client, Refused
from pigeonpost.core.strict_json import write_json
from pigeonpost.node.node_info import NodeFacts
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.send_cursor import Lost, Samples, Stream
from protocol import HEX_16, Batch
from session import is_count

if TYPE_CHECKING:
    from links import Hall
    from pigeonpost.http.message import Answer, Endpoint, Receiver, Request
    from session_server import NodeState

log = logging.getLogger(__name__)

STORE_S = 10.0  # for making a body durable; a node waits longer
MOST_EPOCHS = 400  # that one request asks about: an address has 8 KiB at most
POLL_S = 15.0  # a node that had nothing to bring for so long asks how things are
POLL_OFF_S = 4.0  # and one that is off, so that whoever switches it on sees that it is
RETRY_S = 1.0
_BUSY_S = 5  # after which a node may try again when nothing can be stored
_ASKED_SINGLY = 8  # epochs: for more of them one request asks about many


# ------------------------------------------------------------------------------------------------------- the server


class _Body:
    """Takes the body of a node that has shown its token."""

    def __init__(self, end: ServerEnd, node: str) -> None:
        self._end = end
        self._node = node
        self._data = bytearray()

    def take(self, data: bytes) -> None:
        self._data += data

    def finish(self) -> Answer:
        return self._end.take(self._node, self._data)

    def abandon(self) -> None:
        self._data.clear()


class ServerEnd(End):
    """`POST /api/v1/samples` and `GET /api/v1/samples/resume`."""

    def __init__(self, hall: Hall) -> None:
        import errands
        from guests import Receipt
        from pigeonpost.http import message as http_head

        self._http, self._receipt = http_head, Receipt
        self._hall = hall
        self._orders = errands.Orders(hall.data)
        self.endpoints: Sequence[Endpoint] = [
            http_head.Endpoint("POST", "/api/v1/samples", self._no_body, PARCEL_BYTES, receive=self._receive),
            http_head.Endpoint("GET", "/api/v1/samples/resume", self.resume),
        ]

    def start(self) -> None:
        """Nothing to open: the web server listens."""

    def stop(self, limit_s: float) -> str | None:
        """Nothing to close."""
        return None

    def _receive(self, request: Request, length: int) -> Receiver:
        """Only whose token is right may send a long body."""
        return _Body(self, self._node_of(request))

    def _no_body(self, request: Request) -> Answer:
        raise AssertionError("a body is taken by its receiver")

    def _node_of(self, request: Request) -> str:
        """The node whose token a request brings; Refusal 401."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        node = self._hall.tokens.node_of(token.strip()) if kind.lower() == "bearer" else None
        if node is None:
            said = "That is no node's token here" if kind else "A node shows its token: Authorization: Bearer TOKEN"
            text = f"{said}. On the server, `control.py get_token NODE` tells it."
            raise self._http.Refusal(401, text, "token", {"WWW-Authenticate": "Bearer"})
        return node

    def _check_name(self, said: str, node: str) -> None:
        if said != node:
            raise self._http.Refusal(403, f"That token is the one of node {node}, not of another.", "token")

    # ---------------------------------------------------------------------------------------------- samples

    def take(self, node: str, data: bytes | bytearray) -> Answer:
        """Make a body durable, and acknowledge it."""
        try:
            parcel = read_body(data)
        except WireError as error:
            raise self._http.Refusal(413 if isinstance(error, TooLong) else 400, f"{error}.", error.code) from None
        self._check_name(parcel.node, node)
        self._note_parcel(parcel)
        if not parcel.pieces:
            return self._answer(200, {"ack": self._have(parcel), **self._order(node)})
        try:
            stored = self._store(parcel)
        except WireError as error:
            return self._hole(parcel, error)
        if not stored:
            why = self._hall.intake.fault or "the store is busy, or stops"
            raise self._http.Refusal(
                503, f"Not stored, try again: {why}.", "not-stored", {"Retry-After": str(_BUSY_S)}
            )  # fmt: skip
        return self._answer(200, {"ack": parcel.last, **self._order(node)})

    def _store(self, parcel: Parcel) -> bool:
        """Whether all of it was stored in time; else none of it is waiting to be stored any more.

        Raises WireError when it is refused: samples are missing before it.
        """
        receipt, intake, clock = self._receipt(parcel.last), self._hall.intake, self._hall.clock
        give_up_s = clock.monotonic() + STORE_S
        taken: list[Batch] = []
        for batch in parcel.batches(receipt.done, receipt.refused):
            if not intake.accept(batch, urgent=True, limit_s=max(0.0, give_up_s - clock.monotonic())):
                break
            taken.append(batch)
        else:
            while not receipt.wait(max(0.0, give_up_s - clock.monotonic())):
                # What is being stored just now cannot be withdrawn: that ends soon, one way or the other.
                withdrawn = [intake.withdraw(batch) for batch in reversed(taken)]
                if any(withdrawn) or clock.monotonic() > give_up_s + 2 * STORE_S:
                    return False
                receipt.wait(0.1)
            return True
        for batch in reversed(taken):
            intake.withdraw(batch)
        return False

    def _hole(self, parcel: Parcel, error: WireError) -> Answer:
        """409: samples are missing before these. It says which one comes next."""
        return self._answer(409, {
            "error": {"code": error.code, "text": f"{error}; a hole needs a gap", "next": self._have(parcel) + 1}
        })  # fmt: skip

    def _have(self, parcel: Parcel) -> int:
        """The highest seq stored of a parcel's epoch."""
        marks = self._hall.intake.marks(parcel.node, parcel.outbox, [parcel.epoch])[1]
        return marks[parcel.epoch][0] if parcel.epoch in marks else 0

    # ----------------------------------------------------------------------------------------------- resuming

    def resume(self, request: Request) -> Answer:
        """What is stored of an epoch, or of several (with commas between); and what the time is."""
        node, query = self._node_of(request), request.query
        epochs = query.get("epoch", "").split(",")
        self._check_name(query.get("node", ""), node)
        if not 0 < len(epochs) <= MOST_EPOCHS or not all(map(HEX_16, epochs)):
            raise self._http.Refusal(400, "epoch is 16 hex digits (0-9, a-f).", "epoch")
        outbox = query.get("outbox", "0" * 16)
        if not HEX_16(outbox):
            raise self._http.Refusal(400, "outbox is 16 hex digits (0-9, a-f).", "outbox")
        self._note(node, {"true": True, "false": False}.get(query.get("on", "")))
        top, marks = self._hall.intake.marks(node, outbox, epochs)
        have, up_ms = marks.get(epochs[-1], (0, None))
        clock = self._hall.clock
        told: dict[str, Any] = {"have": have, "up": up_ms, "time": rfc3339(clock.wall_ms())}
        told["clock"] = "set" if clock.is_set() else "unset"
        if "outbox" in query:
            told["id"] = top
        if len(epochs) > 1:
            told["epochs"] = {epoch: list(mark) for epoch, mark in marks.items()}
        return self._answer(200, {**told, **self._order(node)})

    # --------------------------------------------------------------------------------------------- who calls

    def _note(self, node: str, on: object) -> NodeState:
        """The node has called; what the pages show of it."""
        try:
            state = self._hall.guests.caller(node)
        except NotStored as error:
            raise self._http.Refusal(503, f"{error}.", "busy", {"Retry-After": str(_BUSY_S)}) from None
        if not state.takes_orders:
            self._hall.guests.let_ask(node, self._orders.asker(node))
        if not state.connected:
            state.since_ms = self._hall.clock.wall_ms()
        state.connected, state.fault = True, ""
        if type(on) is bool:
            state.on = on
        try:
            self._orders.note(node, on)
        except DiskError as error:
            log.warning("%s: an order that was carried out is not struck out: %s", node, error)
        return state

    def _note_parcel(self, parcel: Parcel) -> None:
        parcel.tell(self._note(parcel.node, parcel.said.get("on")), self._hall.clock.wall_ms())

    def _order(self, node: str) -> dict[str, bool]:
        on = self._orders.of(node)
        return {} if on is None else {"on": on}

    def _answer(self, status: int, told: Mapping[str, Any]) -> Answer:
        headers = {"Cache-Control": "no-store"}
        return self._http.Answer(write_json(told).encode() + b"\n", self._http.JSON, status, headers)


def make_server_end(hall: Hall) -> ServerEnd:
    """The end, for server.py."""
    return ServerEnd(hall)


# --------------------------------------------------------------------------------------------------------- the node


class NodeEnd(End):
    """Brings what the outbox holds to one server, and goes on bringing what is taken."""

    def __init__(self, settings: Settings, facts: NodeFacts, outbox: Outbox, clock: Clock) -> None:
        """Raises SettingsError for a node without a token."""
        if facts.key is None:
            raise SettingsError(
                "[push] to needs this node's token, by which the server knows it. On the server `control.py get_token"
                f" {facts.name}` tells it; here it is PIGEONPOST_NODE_TOKEN, or [node] token"
            )
        self._client = Client(settings["push", "to"], settings["push", "certificate"], facts.key.shown())
        self._facts, self._outbox, self._clock = facts, outbox, clock
        self._stream = Stream(outbox, clock, PARCEL_BYTES // 2)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._fault = ""  # what was said last, so that it is said once
        self._came_through = False  # something, over this connection
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    def start(self) -> None:
        self._outbox.watch(self._woken.set)
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is None:
            return None
        self._outbox.unwatch(self._woken.set)
        self._thread.join(limit_s / 2)
        if self._thread.is_alive():
            self._client.cut()  # what it waits for it will not get any more
            self._thread.join(limit_s / 2)
        return f"the connection to {self._client.place} did not end" if self._thread.is_alive() else None

    def _run(self) -> None:
        retry_s = RETRY_S
        while not self._stopping.is_set():
            wait_s, self._came_through = 0.0, False
            try:
                self._bring()
            except Refused as error:
                self._lost(str(error))
                wait_s = error.wait_s
            except self._client.errors as error:
                self._lost(getattr(error, "strerror", None) or str(error) or type(error).__name__)
            self._client.cut()
            retry_s = RETRY_S if self._came_through else retry_s
            self._stopping.wait(max(wait_s, retry_s) * random.uniform(0.75, 1.25))
            retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    def _lost(self, fault: str) -> None:
        if fault != self._fault and not self._stopping.is_set():
            log.warning("%s: %s; the samples are kept here meanwhile", self._client.place, fault)
        self._fault = fault

    def _bring(self) -> None:
        """One connection, from beginning to end."""
        self._client.connect()
        self._resume()
        if self._fault or not self._came_through:
            log.info("%s: brings samples there, %d are due", self._client.place, self._stream.due())
        self._fault = ""
        while not self._stopping.is_set():
            self._woken.clear()
            piece = self._stream.next()
            if piece is not None:
                self._push(piece)
            elif not self._woken.wait(POLL_S if self._outbox.on else POLL_OFF_S):
                self._poll()

    # ------------------------------------------------------------------------------------------------ resuming

    def _resume(self) -> None:
        """Ask what the server has of everything that is held."""
        epochs = [entry[0] for entry in self._outbox.held()]
        step = 1 if len(epochs) <= _ASKED_SINGLY else MOST_EPOCHS
        have: dict[str, int] = {}
        number: int | None = None
        for start in range(0, len(epochs), step):
            asked = epochs[start : start + step]
            told = self._ask_have(asked)
            marks = told.get("epochs", {}) if step > 1 else {asked[0]: [told.get("have"), told.get("up")]}
            for epoch in asked:
                seq, up_ms = marks.get(epoch, (0, None))
                if not is_count(seq):
                    raise Refused(f"says that it has {seq!r:.40} of epoch {epoch}", rarely=True)
                have[epoch] = seq
                self._look_for_a_fork(epoch, seq, up_ms)
            number = told["id"] if is_count(told.get("id")) else None
            self._note_time(told)
        self._stream.begin(number, have)

    def _ask_have(self, epochs: Sequence[str]) -> dict[str, Any]:
        on = "true" if self._outbox.on else "false"
        return self._client.ask(
            "GET",
            f"/api/v1/samples/resume?node={self._facts.name}&epoch={','.join(epochs)}"
            f"&outbox={self._outbox.ring.identity}&on={on}",
        )

    def _look_for_a_fork(self, epoch: str, seq: int, up_ms: object) -> None:
        new = self._stream.fork_if_other(epoch, seq, up_ms)
        if new:
            log.error(
                "%s has another sample %d of epoch %s than this node: another live copy of this card sent it. From"
                " there on this node's samples are those of epoch %s", self._client.place, seq, epoch, new,
            )  # fmt: skip

    def _note_time(self, told: Mapping[str, Any]) -> None:
        if told.get("clock") == "set":
            try:
                self._stream.offset_ms = parse_rfc3339(told["time"]) - self._clock.up_ms()
            except (KeyError, TypeError, ValueError, OverflowError):
                pass  # a server that does not say the time, then

    def _poll(self) -> None:
        """Nothing was taken for a while: is the server there, has it still what it had, and what does it want?"""
        epoch = self._outbox.epoch
        told = self._ask_have([epoch])
        if told.get("have") != self._stream.sent.get(epoch, 0):
            raise Refused("has not what it had before; asking anew what is due", rarely=False)
        self._obey(told)

    # ------------------------------------------------------------------------------------------------- samples

    def _push(self, piece: Samples | Lost) -> None:
        """Send a piece, and wait until it is acknowledged."""
        gaps: list[dict[str, Any]] = []
        texts: list[str] = []
        if isinstance(piece, Samples):
            texts, last = piece.texts, piece.first + len(piece.texts) - 1
        else:
            last, before = piece.last, {"before": piece.before} if piece.before else {}
            gaps = [{"from": piece.first, "to": last, "why": piece.why, **before}]
            log.warning(
                "%s: samples %d to %d of epoch %s are %s",
                self._client.place, piece.first, last, piece.epoch, piece.why,
            )  # fmt: skip
        head = {
            "node": self._facts.name, "outbox": self._outbox.ring.identity, "every": self._facts.every_s,
            "sensors": list(self._facts.sensors), "on": self._outbox.on, "time": rfc3339(self._clock.wall_ms()),
        }  # fmt: skip
        told = self._client.ask(
            "POST", "/api/v1/samples", write_body(head, piece.epoch, piece.number - piece.first, gaps, texts)
        )
        if told.get("ack") != last:
            raise Refused(f"acknowledges {told.get('ack')!r:.40} of epoch {piece.epoch}, not {last}", rarely=False)
        self._came_through = True
        self._stream.note_ack(piece.epoch, last)
        if isinstance(piece, Samples):
            self._facts.last_sent_ms = piece.last_ms
        self._obey(told)

    def _obey(self, told: Mapping[str, Any]) -> None:
        """Switch on or off as the server wants it, and tell it so."""
        on = told.get("on")
        if type(on) is bool:
            if on is not self._outbox.on:
                log.info("%s: sampling %s", self._client.place, "on" if on else "off")
                self._facts.switch(on)
            self._ask_have([self._outbox.epoch])


def make_node_end(settings: Settings, facts: NodeFacts, outbox: Outbox, clock: Clock) -> NodeEnd:
    """The end, for node.py."""
    return NodeEnd(settings, facts, outbox, clock)
