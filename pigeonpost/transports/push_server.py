"""HTTP push transport, server side: endpoints to which nodes post their samples.

For a node behind a router, to which no server can connect.

    GET  /api/v1/samples/resume?node=basement&epoch=8d1f03a2c4b5e697   ->  {"have": 150, ...}
    POST /api/v1/samples  {"node": "basement", "outbox": ..., "epoch": ..., "gaps": [], "samples": [...]}
                                                                       ->  {"ack": 170}

Both with `Authorization: Bearer <the node's token>`, or with the API token of a program that may write (Bearer or
Basic): it writes as any node that has no token of its own. docs/protocol.md has the rest. Runs in the threads of the
web server. Errors: each request gets its response.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import AuthFailed, BeyondLimit, DiskError, NotStored, TooLong, WireError
from pigeonpost.core.strict_json import write_json
from pigeonpost.http.credentials import Credentials, is_browser, read_credentials
from pigeonpost.http.message import JSON, BodyConsumer, Endpoint, HTTPError, Request, Response
from pigeonpost.server.command_queue import CommandQueue
from pigeonpost.server.commit_waiter import CommitWaiter
from pigeonpost.server.unnumbered_sources import Claim
from pigeonpost.transports.contract import PassiveTransport
from pigeonpost.transports.payload import MOST_EPOCHS, PAYLOAD_BYTES, BatchPayload, read_body
from pigeonpost.transports.refusals import RefusedNodes
from protocol import HEX_16, NODE_NAME

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeState
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

STORE_S = 10.0  # for making a body durable; a node waits longer
_BUSY_S = 5  # after which a node may try again when nothing can be stored


class _Body:
    """Receives the body of a node whose token was checked."""

    is_proven = True

    def __init__(self, end: PushServerTransport, request: Request) -> None:
        self._end = end
        self._request = request
        self._data = bytearray()

    def take(self, data: bytes) -> None:
        self._data += data

    def finish(self) -> Response:
        return self._end.take(self._end.node_of(self._request), self._data)  # it may have been revoked meanwhile

    def abandon(self) -> None:
        self._data.clear()


class PushServerTransport(PassiveTransport):
    """`POST /api/v1/samples` and `GET /api/v1/samples/resume`."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._refused_nodes = RefusedNodes("push", context)
        self._commands = CommandQueue(context.data, context.faults)
        if context.names is not None:
            context.names.on_rename.append(self._commands.on_rename)
        self.endpoints: Sequence[Endpoint] = [
            Endpoint("POST", "/api/v1/samples", self._no_body, PAYLOAD_BYTES, receive=self._receive),
            Endpoint("GET", "/api/v1/samples/resume", self.resume),
        ]

    def _receive(self, request: Request, length: int) -> BodyConsumer:
        """Only whose token is right may send a long body."""
        self.node_of(request)
        return _Body(self, request)

    def _no_body(self, request: Request) -> Response:
        raise AssertionError("a body is taken by its receiver")

    def node_of(self, request: Request) -> str:
        """Return the node whose token a request has; empty: it has a program's, which may write.

        Raises HTTPError 401; 403 for a program that may only read; 429 after many wrong tokens.

        A right token is never refused: other nodes may be behind the same address as one with a wrong token.
        """
        shown = read_credentials(request)
        node = self._context.tokens.node_of(shown.secret) if shown is not None and shown.scheme == "bearer" else None
        if node is None and shown is not None and self._is_writer(request, shown):
            return ""
        if node is None:
            if shown is not None and shown.scheme in ("bearer", "basic"):  # with another scheme no token is tried
                self._context.throttle.delay_or_refuse(request.peer)
                self._context.throttle.log_failure(log, request.peer, "a token that is no node's here")
                name = request.query.get("node", "")
                known = self._context.current(name)
                remedy = f"give it the one that `control.py get-token {known}` shows, as PIGEONPOST_NODE_TOKEN"
                self._refused_nodes.refused(name, request.peer, f"its token is not that of {name}; {remedy}")
            said = "That is no node's token here" if shown else "A node shows its token: Authorization: Bearer TOKEN"
            text = f"{said}. On the server, `control.py get-token NODE` tells it."
            raise HTTPError(401, text, "token", {"WWW-Authenticate": "Bearer"})
        return self._context.current(node)

    def _is_writer(self, request: Request, shown: Credentials) -> bool:
        """Return True for a program's API token with which it may write; False where it shows no API token.

        Raises HTTPError 403 for a token that may only read, and for a browser.
        """
        found = self._context.api_tokens.find(shown.secret) if self._context.api_tokens is not None else None
        if found is None:
            return False
        if found.role == "viewer":
            text = f"This token ({found.name}) has the role viewer; to send readings takes the role writer."
            raise HTTPError(403, text, "role")
        # A browser adds a login (Basic) to each request by itself, also to those that a page of another site makes.
        if shown.scheme == "basic" and is_browser(request):
            raise HTTPError(403, "A browser sends no readings with a token as password.", "browser")
        return True

    def _check_name(self, said: str, node: str) -> str:
        """Return the present name of the node that a request names. Raises HTTPError for one that is not `node`.

        node  whose token was shown; empty: any that has none
        """
        if not NODE_NAME(said):
            raise HTTPError(400, "node is the name of a node.", "node")
        current = self._context.current(said)
        if node and current != node:
            raise HTTPError(403, f"That token is the one of node {node}, not of another.", "token")
        return current

    # ---------------------------------------------------------------------------------------------- samples

    def take(self, node: str, data: bytes | bytearray) -> Response:
        """Make a body durable, and acknowledge it."""
        try:
            batch_payload = read_body(data)
        except WireError as error:
            raise HTTPError(413 if isinstance(error, TooLong) else 400, f"{error}.", error.code) from None
        is_proven, node = bool(node), self._check_name(batch_payload.node, node)
        batch_payload = batch_payload._replace(node=node)
        self._record_payload(batch_payload, is_proven)
        if not batch_payload.pieces:
            return self._answer(200, {"ack": batch_payload.stored_seq(self._context.ingestor), **self._order(node)})
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
        """Make all of it durable. Returns False if it was not stored in time; then none of it waits any more.

        Raises WireError when it is rejected: samples are missing before it.
        """
        waiter = CommitWaiter(self._context.ingestor, self._context.clock)
        return waiter.store(batch_payload.batches(), STORE_S, overtime_s=2 * STORE_S)

    def _hole(self, batch_payload: BatchPayload, error: WireError) -> Response:
        """Return 409: samples are missing before these. `next` is the first of them. 400 where they pass a limit."""
        if isinstance(error, BeyondLimit):
            raise HTTPError(400, f"{error}.", error.code)
        next_seq = batch_payload.stored_seq(self._context.ingestor) + 1
        return self._answer(
            409, {"error": {"code": error.code, "text": f"{error}; a hole needs a gap", "next": next_seq}}
        )

    # ----------------------------------------------------------------------------------------------- resuming

    def resume(self, request: Request) -> Response:
        """What is stored of an epoch, or of several (with commas between); and what the time is."""
        node, query = self.node_of(request), request.query
        epochs = query.get("epoch", "").split(",")
        is_proven, node = bool(node), self._check_name(query.get("node", ""), node)
        if not 0 < len(epochs) <= MOST_EPOCHS or not all(map(HEX_16, epochs)):
            raise HTTPError(400, "epoch is 16 hex digits (0-9, a-f).", "epoch")
        outbox = query.get("outbox", "0" * 16)
        if not HEX_16(outbox):
            raise HTTPError(400, "outbox is 16 hex digits (0-9, a-f).", "outbox")
        self._record(node, {"true": True, "false": False}.get(query.get("on", "")), is_proven)
        top, marks = self._context.ingestor.marks(node, outbox, epochs)
        have, up_ms = marks.get(epochs[-1], (0, None))
        clock = self._context.clock
        told: dict[str, Any] = {"have": have, "up": up_ms, "time": rfc3339(clock.wall_ms())}
        told["clock"] = "set" if clock.is_set() else "unset"
        told["columns"] = True
        if "outbox" in query:
            told["id"] = top
        if len(epochs) > 1:
            told["epochs"] = {epoch: list(mark) for epoch, mark in marks.items()}
        return self._answer(200, {**told, **self._order(node)})

    # --------------------------------------------------------------------------------------------- who calls

    def _record(self, node: str, on: object, is_proven: bool) -> NodeState:
        """The node has called; what the pages show of it."""
        try:
            state = self._context.unnumbered_sources.caller(Claim(node, "push", is_proven))
        except AuthFailed as error:
            raise HTTPError(403, f"{error}.", "token") from None
        except NotStored as error:
            raise HTTPError(503, f"{error}.", "busy", {"Retry-After": str(_BUSY_S)}) from None
        if not state.takes_orders:
            self._context.unnumbered_sources.let_ask(node, self._commands.asker(node))
        self._refused_nodes.accepted(node)
        state.record_contact(self._context.clock.wall_ms())
        if type(on) is bool:
            state.on = on
        try:
            self._commands.record(node, on)
        except DiskError as error:
            log.warning("%s: an order that was carried out is not struck out: %s", node, error)
        return state

    def _record_payload(self, batch_payload: BatchPayload, is_proven: bool) -> None:
        state = self._record(batch_payload.node, batch_payload.said.get("on"), is_proven)
        batch_payload.tell(state, self._context.clock.wall_ms())

    def _order(self, node: str) -> dict[str, bool]:
        on = self._commands.of(node)
        return {} if on is None else {"on": on}

    def _answer(self, status: int, told: Mapping[str, Any]) -> Response:
        headers = {"Cache-Control": "no-store"}
        return Response(write_json(told).encode() + b"\n", JSON, status, headers)
