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
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import DiskError, NotStored, TooLong, WireError
from pigeonpost.core.strict_json import write_json
from pigeonpost.transports.contract import End
from pigeonpost.transports.payload import PARCEL_BYTES, Parcel, read_body
from pigeonpost.transports.push_body import MOST_EPOCHS
from protocol import HEX_16, Batch

if TYPE_CHECKING:
    from pigeonpost.http.message import Answer, Endpoint, Receiver, Request
    from pigeonpost.server.node_status import NodeState
    from pigeonpost.transports.contract import Hall

log = logging.getLogger(__name__)

STORE_S = 10.0  # for making a body durable; a node waits longer
_BUSY_S = 5  # after which a node may try again when nothing can be stored


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
        from pigeonpost.http import message as http_head
        from pigeonpost.server import command_queue
        from pigeonpost.server.commit_waiter import Receipt

        self._http, self._receipt = http_head, Receipt
        self._hall = hall
        self._orders = command_queue.Orders(hall.data)
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


# --------------------------------------------------------------------------------------------------------- the node
