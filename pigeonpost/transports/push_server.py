"""HTTP push transport, server side: endpoints to which nodes post their samples.

They serve nodes to which no server can connect, such as nodes behind a router.

    GET  /api/v1/samples/resume?node=basement&epoch=8d1f03a2c4b5e697   ->  {"have": 150, ...}
    POST /api/v1/samples  {"node": "basement", "outbox": ..., "epoch": ..., "gaps": [], "samples": [...]}
                                                                       ->  {"ack": 170}

Both need `Authorization: Bearer <the node's token>`, or the API token of a program that may write (Bearer or Basic).
Such a program may send readings for any node that has no token of its own. If it is a Pigeonpost server that forwards
samples, `relay` contains its name. docs/protocol.md describes the details. The threads of the web server run this
module. Errors: HTTPError, with the status that answers the request.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import AuthFailed, BeyondLimit, DiskError, NotStored, TooLong, WireError
from pigeonpost.core.strict_json import write_json
from pigeonpost.http.credentials import Credentials, is_browser, read_credentials
from pigeonpost.http.message import JSON, BodyConsumer, Endpoint, HTTPError, Request, Response
from pigeonpost.http.proven_body import ProvenBody, answered_by_consumer
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

STORE_S = 10.0  # longest wait until a body is durable; a node waits longer
_BUSY_S = 5  # Retry-After when nothing can be stored, in seconds


@contextlib.contextmanager
def _http_errors() -> Iterator[None]:
    """Convert the errors of UnnumberedSources to HTTPError."""
    try:
        yield
    except AuthFailed as error:
        raise HTTPError(403, f"{error}.", "token") from None
    except NotStored as error:
        raise HTTPError(503, f"{error}.", "busy", {"Retry-After": str(_BUSY_S)}) from None


class PushServerTransport(PassiveTransport):
    """The endpoints `POST /api/v1/samples` and `GET /api/v1/samples/resume`.

    Args:
        context: The server's components.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._refused_nodes = RefusedNodes("push", context)
        self._commands = CommandQueue(context.data, context.faults)
        if context.names is not None:
            context.names.on_rename.append(self._commands.on_rename)
        self.endpoints: Sequence[Endpoint] = [
            Endpoint("POST", "/api/v1/samples", answered_by_consumer, PAYLOAD_BYTES, receive=self._receive),
            Endpoint("GET", "/api/v1/samples/resume", self.resume),
        ]

    def _receive(self, request: Request, length: int) -> BodyConsumer:
        """Check the token before the body is read: only an authenticated client may send a long body."""
        self.node_of(request)
        return ProvenBody(lambda data: self.take(self.node_of(request), data), PAYLOAD_BYTES)

    def node_of(self, request: Request) -> str:
        """Return the node whose token `request` contains, or an empty string for the token of a program that may write.

        A correct token is never rejected: other nodes may have the same address as a client with a wrong token.

        Raises:
            HTTPError: 401 without a known token; 403 for a program that may only read, and for a browser; 429 after
                many wrong tokens.
        """
        credentials = read_credentials(request)
        node = (
            self._context.tokens.node_of(credentials.secret)
            if credentials is not None and credentials.scheme == "bearer"
            else None
        )
        if node is None and credentials is not None and self._is_writer(request, credentials):
            return ""
        if node is None:
            if credentials is not None and credentials.scheme in (
                "bearer",
                "basic",
            ):  # other schemes contain no token to guess
                self._context.throttle.delay_or_refuse(request.peer)
                self._context.throttle.log_failure(log, request.peer, "a token that belongs to no node of this server")
                name = request.query.get("node", "")
                current_name = self._context.current(name)
                remedy = (
                    f"set PIGEONPOST_NODE_TOKEN on it to the token that `control.py get-token {current_name}` shows"
                )
                self._refused_nodes.refused(name, request.peer, f"its token is not that of {name}; {remedy}")
            problem = (
                "No node has this token" if credentials else "The node's token is missing: Authorization: Bearer TOKEN"
            )
            text = f"{problem}. On the server, `control.py get-token NODE` shows the token of a node."
            raise HTTPError(401, text, "token", {"WWW-Authenticate": "Bearer"})
        return self._context.current(node)

    def _is_writer(self, request: Request, credentials: Credentials) -> bool:
        """Return True if `credentials` is the API token of a program that may write, False if it is not an API token.

        Raise HTTPError 403 for a token that may only read, and for a browser.
        """
        found = self._context.api_tokens.find(credentials.secret) if self._context.api_tokens is not None else None
        if found is None:
            return False
        if found.role == "viewer":
            text = f"This token ({found.name}) has the role viewer; sending readings requires the role writer."
            raise HTTPError(403, text, "role")
        # A browser automatically adds a Basic login to each request, including those that a page of another site makes.
        if credentials.scheme == "basic" and is_browser(request):
            raise HTTPError(403, "A browser must not send readings with a token as its password.", "browser")
        return True

    def _check_name(self, name: str, node: str) -> str:
        """Return the current name of the node that a request names, or raise HTTPError if it is not `node`.

        Args:
            name: Name in the request.
            node: Node whose token the request contains, or empty for any node without a token.
        """
        if not NODE_NAME(name):
            raise HTTPError(400, "node must be the name of a node.", "node")
        current = self._context.current(name)
        if node and current != node:
            raise HTTPError(403, f"This token belongs to node {node}, not to the node in the request.", "token")
        return current

    # ---------------------------------------------------------------------------------------------- samples

    def take(self, node: str, data: bytes | bytearray) -> Response:
        """Make the body `data` durable, and return the response with the acknowledgement.

        Args:
            node: Node whose token the request contains, or empty for the token of a program.
            data: The body.

        Raises:
            HTTPError: The body is invalid, belongs to another node, or cannot be stored.
        """
        try:
            batch_payload = read_body(data)
        except WireError as error:
            raise HTTPError(413 if isinstance(error, TooLong) else 400, f"{error}.", error.code) from None
        is_proven, node = bool(node), self._check_name(batch_payload.node, node)
        batch_payload = batch_payload._replace(node=node)
        relay = batch_payload.relay
        if relay:
            batch_payload = batch_payload.without_ups()
        self._record_payload(batch_payload, is_proven, relay)
        order = {} if relay else self._order(node)
        if not batch_payload.pieces:
            return self._answer(200, {"ack": batch_payload.stored_seq(self._context.ingestor), **order})
        try:
            stored = self._store(batch_payload)
        except WireError as error:
            return self._hole(batch_payload, error)
        if not stored:
            why = self._context.ingestor.fault or "the database is busy, or the server is stopping"
            raise HTTPError(
                503, f"Not stored, try again: {why}.", "not-stored", {"Retry-After": str(_BUSY_S)}
            )  # fmt: skip
        return self._answer(200, {"ack": batch_payload.last, **order})

    def _store(self, batch_payload: BatchPayload) -> bool:
        """Make the complete payload durable, or return False if this takes too long; then none of it stays queued.

        Raise WireError if it is rejected because earlier samples are missing.
        """
        waiter = CommitWaiter(self._context.ingestor, self._context.clock)
        return waiter.store(batch_payload.batches(), STORE_S, overtime_s=2 * STORE_S)

    def _hole(self, batch_payload: BatchPayload, error: WireError) -> Response:
        """Return 409 with the first missing seq (`next`), or raise HTTPError if the samples exceed a limit."""
        if isinstance(error, BeyondLimit):  # for a server that forwards it is no fault of the samples
            raise HTTPError(507 if batch_payload.relay else 400, f"{error}.", error.code)
        next_seq = batch_payload.stored_seq(self._context.ingestor) + 1
        return self._answer(
            409, {"error": {"code": error.code, "text": f"{error}; report missing samples as a gap", "next": next_seq}}
        )

    # ----------------------------------------------------------------------------------------------- resuming

    def resume(self, request: Request) -> Response:
        """Return the high-water marks of one epoch or of several (separated by commas), and the time.

        Args:
            request: The request, with `node`, `epoch` and optionally `outbox`, `on` and `relay` in its query.

        Raises:
            HTTPError: The token is not accepted, or an argument is invalid.
        """
        node, query = self.node_of(request), request.query
        epochs = query.get("epoch", "").split(",")
        is_proven, node = bool(node), self._check_name(query.get("node", ""), node)
        if not 0 < len(epochs) <= MOST_EPOCHS or not all(map(HEX_16, epochs)):
            raise HTTPError(400, "epoch must be 16 hex digits (0-9, a-f).", "epoch")
        outbox = query.get("outbox", "0" * 16)
        if not HEX_16(outbox):
            raise HTTPError(400, "outbox must be 16 hex digits (0-9, a-f).", "outbox")
        relay = query.get("relay", "")
        if relay and not NODE_NAME(relay):
            raise HTTPError(400, "relay must be the name of a server.", "relay")
        if relay:  # it asks for each former name of a node too, and these are no nodes here
            self._check_relayed(node, is_proven)
        else:
            self._record(node, {"true": True, "false": False}.get(query.get("on", "")), is_proven)
        top, marks = self._context.ingestor.marks(node, outbox, epochs)
        have, up_ms = marks.get(epochs[-1], (0, None))
        clock = self._context.clock
        answer: dict[str, Any] = {"have": have, "up": up_ms, "time": rfc3339(clock.wall_ms())}
        answer["clock"] = "set" if clock.is_set() else "unset"
        answer["columns"] = True
        if "outbox" in query:
            answer["id"] = top
        if len(epochs) > 1:
            answer["epochs"] = {epoch: list(mark) for epoch, mark in marks.items()}
        if relay:
            return self._answer(200, {**answer, "relay": True, "known": bool(self._context.store.channels(node, 1))})
        return self._answer(200, {**answer, **self._order(node)})

    # ------------------------------------------------------------------------------------------- node states

    def _record(self, node: str, on: object, is_proven: bool, relay: str = "") -> NodeState:
        """Record a contact of the node and its sampling state `on`, and return its state, as the pages show it.

        Args:
            node: Name of the node.
            on: True or False as reported by the node, or another value if it has not reported it.
            is_proven: True if the request contains the token of the node.
            relay: Name of the server that forwards the samples of the node; empty if they come from the node.
        """
        if relay:
            self._check_relayed(node, is_proven)
        name = "relay" if relay else "push"
        with _http_errors():
            state = self._context.unnumbered_sources.caller(Claim(node, name, is_proven, is_listed=bool(relay)))
        self._refused_nodes.accepted(node)
        state.record_contact(self._context.clock.wall_ms(), self._context.clock.monotonic())
        if relay:  # a server that forwards delivers no commands
            return state
        if not state.takes_orders:
            self._context.unnumbered_sources.set_ask(node, self._commands.asker(node))
        if type(on) is bool:
            state.record_sampling(on, self._context.clock.monotonic())
        try:
            self._commands.record(node, on)
        except DiskError as error:
            log.warning("%s: cannot remove an executed command from the queue: %s", node, error)
        return state

    def _check_relayed(self, node: str, is_proven: bool) -> None:
        """Raise HTTPError 403 if another server must not forward samples of `node`.

        That is so with the token of a node, for a node that has a token, and for one from which this server collects.
        """
        if is_proven:
            raise HTTPError(403, "Forwarding needs an API token with the role writer, not the token of a node.", "role")
        if any(link.state.name == node and not link.state.calls_in for link in self._context.links):
            self._context.unnumbered_sources.forget_unproven(node)
            raise HTTPError(403, f"This server collects from node {node} itself.", "collected")
        with _http_errors():
            self._context.unnumbered_sources.check(Claim(node, "relay"))

    def _record_payload(self, batch_payload: BatchPayload, is_proven: bool, relay: str) -> None:
        state = self._record(batch_payload.node, batch_payload.fields.get("on"), is_proven, relay)
        batch_payload.update_state(state, self._context.clock)

    def _order(self, node: str) -> dict[str, bool]:
        on = self._commands.of(node)
        return {} if on is None else {"on": on}

    def _answer(self, status: int, fields: Mapping[str, Any]) -> Response:
        headers = {"Cache-Control": "no-store"}
        return Response(write_json(fields).encode() + b"\n", JSON, status, headers)
