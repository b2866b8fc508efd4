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
from pigeonpost.http.message import JSON, BodyConsumer, Endpoint, HTTPError, Request, Response
from pigeonpost.server.command_queue import CommandQueue
from pigeonpost.server.commit_waiter import CommitWaiter
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.payload import PAYLOAD_BYTES, BatchPayload, read_body
from pigeonpost.transports.push_body import MOST_EPOCHS
from protocol import HEX_16, Batch

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeState
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

STORE_S = 10.0  # for making a body durable; a node waits longer
_BUSY_S = 5  # after which a node may try again when nothing can be stored


# ------------------------------------------------------------------------------------------------------- the server


class _Body:
    """Takes the body of a node that has shown its token."""

    def __init__(self, end: PushServerTransport, node: str) -> None:
        self._end = end
        self._node = node
        self._data = bytearray()

    def take(self, data: bytes) -> None:
        self._data += data

    def finish(self) -> Response:
        return self._end.take(self._node, self._data)

    def abandon(self) -> None:
        self._data.clear()


class PushServerTransport(Transport):
    """`POST /api/v1/samples` and `GET /api/v1/samples/resume`."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._commands = CommandQueue(context.data)
        self.endpoints: Sequence[Endpoint] = [
            Endpoint("POST", "/api/v1/samples", self._no_body, PAYLOAD_BYTES, receive=self._receive),
            Endpoint("GET", "/api/v1/samples/resume", self.resume),
        ]

    def start(self) -> None:
        """Nothing to open: the web server listens."""

    def stop(self, limit_s: float) -> str | None:
        """Nothing to close."""
        return None

    def _receive(self, request: Request, length: int) -> BodyConsumer:
        """Only whose token is right may send a long body."""
        return _Body(self, self._node_of(request))

    def _no_body(self, request: Request) -> Response:
        raise AssertionError("a body is taken by its receiver")

    def _node_of(self, request: Request) -> str:
        """The node whose token a request brings; Refusal 401."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        node = self._context.tokens.node_of(token.strip()) if kind.lower() == "bearer" else None
        if node is None:
            said = "That is no node's token here" if kind else "A node shows its token: Authorization: Bearer TOKEN"
            text = f"{said}. On the server, `control.py get_token NODE` tells it."
            raise HTTPError(401, text, "token", {"WWW-Authenticate": "Bearer"})
        return node

    def _check_name(self, said: str, node: str) -> None:
        if said != node:
            raise HTTPError(403, f"That token is the one of node {node}, not of another.", "token")

    # ---------------------------------------------------------------------------------------------- samples

    def take(self, node: str, data: bytes | bytearray) -> Response:
        """Make a body durable, and acknowledge it."""
        try:
            batch_payload = read_body(data)
        except WireError as error:
            raise HTTPError(413 if isinstance(error, TooLong) else 400, f"{error}.", error.code) from None
        self._check_name(batch_payload.node, node)
        self._note_parcel(batch_payload)
        if not batch_payload.pieces:
            return self._answer(200, {"ack": self._have(batch_payload), **self._order(node)})
        try:
            stored = self._store(batch_payload)
        except WireError as error:
            return self._hole(batch_payload, error)
        if not stored:
            why = self._context.ingestor.fault or "the store is busy, or stops"
            raise HTTPError(
                503, f"Not stored, try again: {why}.", "not-stored", {"Retry-After": str(_BUSY_S)}
            )  # fmt: skip
        return self._answer(200, {"ack": batch_payload.last, **self._order(node)})

    def _store(self, batch_payload: BatchPayload) -> bool:
        """Whether all of it was stored in time; else none of it is waiting to be stored any more.

        Raises WireError when it is refused: samples are missing before it.
        """
        waiter, ingestor, clock = CommitWaiter(batch_payload.last), self._context.ingestor, self._context.clock
        give_up_s = clock.monotonic() + STORE_S
        taken: list[Batch] = []
        for batch in batch_payload.batches(waiter.done, waiter.refused):
            if not ingestor.accept(batch, urgent=True, limit_s=max(0.0, give_up_s - clock.monotonic())):
                break
            taken.append(batch)
        else:
            while not waiter.wait(max(0.0, give_up_s - clock.monotonic())):
                # What is being stored just now cannot be withdrawn: that ends soon, one way or the other.
                withdrawn = [ingestor.withdraw(batch) for batch in reversed(taken)]
                if any(withdrawn) or clock.monotonic() > give_up_s + 2 * STORE_S:
                    return False
                waiter.wait(0.1)
            return True
        for batch in reversed(taken):
            ingestor.withdraw(batch)
        return False

    def _hole(self, batch_payload: BatchPayload, error: WireError) -> Response:
        """409: samples are missing before these. It says which one comes next."""
        return self._answer(409, {
            "error": {"code": error.code, "text": f"{error}; a hole needs a gap", "next": self._have(batch_payload) + 1}
        })  # fmt: skip

    def _have(self, batch_payload: BatchPayload) -> int:
        """The highest seq stored of a parcel's epoch."""
        marks = self._context.ingestor.marks(batch_payload.node, batch_payload.outbox, [batch_payload.epoch])[1]
        return marks[batch_payload.epoch][0] if batch_payload.epoch in marks else 0

    # ----------------------------------------------------------------------------------------------- resuming

    def resume(self, request: Request) -> Response:
        """What is stored of an epoch, or of several (with commas between); and what the time is."""
        node, query = self._node_of(request), request.query
        epochs = query.get("epoch", "").split(",")
        self._check_name(query.get("node", ""), node)
        if not 0 < len(epochs) <= MOST_EPOCHS or not all(map(HEX_16, epochs)):
            raise HTTPError(400, "epoch is 16 hex digits (0-9, a-f).", "epoch")
        outbox = query.get("outbox", "0" * 16)
        if not HEX_16(outbox):
            raise HTTPError(400, "outbox is 16 hex digits (0-9, a-f).", "outbox")
        self._note(node, {"true": True, "false": False}.get(query.get("on", "")))
        top, marks = self._context.ingestor.marks(node, outbox, epochs)
        have, up_ms = marks.get(epochs[-1], (0, None))
        clock = self._context.clock
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
            state = self._context.unnumbered_sources.caller(node)
        except NotStored as error:
            raise HTTPError(503, f"{error}.", "busy", {"Retry-After": str(_BUSY_S)}) from None
        if not state.takes_orders:
            self._context.unnumbered_sources.let_ask(node, self._commands.asker(node))
        if not state.connected:
            state.since_ms = self._context.clock.wall_ms()
        state.connected, state.fault = True, ""
        if type(on) is bool:
            state.on = on
        try:
            self._commands.note(node, on)
        except DiskError as error:
            log.warning("%s: an order that was carried out is not struck out: %s", node, error)
        return state

    def _note_parcel(self, batch_payload: BatchPayload) -> None:
        batch_payload.tell(self._note(batch_payload.node, batch_payload.said.get("on")), self._context.clock.wall_ms())

    def _order(self, node: str) -> dict[str, bool]:
        on = self._commands.of(node)
        return {} if on is None else {"on": on}

    def _answer(self, status: int, told: Mapping[str, Any]) -> Response:
        headers = {"Cache-Control": "no-store"}
        return Response(write_json(told).encode() + b"\n", JSON, status, headers)


# --------------------------------------------------------------------------------------------------------- the node
