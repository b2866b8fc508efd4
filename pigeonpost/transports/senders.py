"""Programs that send readings over HTTP: their identity (the token of a node, or an API token), and their numbers.

Errors: HTTPError 401, 403 and 429, with the remedy.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from pigeonpost.core.errors import AuthFailed
from pigeonpost.http.credentials import is_browser
from pigeonpost.http.message import HTTPError
from pigeonpost.server.unnumbered_sources import Claim
from pigeonpost.transports.contract import IntegrationStatus
from pigeonpost.transports.refusals import SHOWN_S

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.http.credentials import Credentials
    from pigeonpost.http.message import Request
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

_MISSING = (
    "The token is missing. Send `Authorization: Bearer TOKEN` with an API token of the role writer"
    " (`control.py api-token NAME --role writer`) or with the token of the node (`control.py get-token NODE`)."
)
_UNKNOWN = (
    "This token is unknown. `control.py api-token NAME --role writer` creates a token that may send readings;"
    " `control.py get-token NODE` shows the token of a node."
)


class Sender:
    """An authenticated program.

    Args:
        node: Node whose token it has sent, or an empty string for an API token: any node without a token of its own.
    """

    def __init__(self, node: str) -> None:
        self.node = node

    def claim(self, context: ServerContext, node: str, transport: str) -> Claim:
        """Return the claim with which this program writes as `node`.

        Args:
            context: The server's components.
            node: Name of the node in the request.
            transport: Name of the transport, for the pages.

        Raises:
            AuthFailed: The program may not write as this node.
            NotStored: The tokens cannot be read.
        """
        current = context.current(node)
        if self.node and current != self.node:
            raise AuthFailed(f"this token belongs to node {self.node}, not to node {node}")
        claim = Claim(current, transport, is_proven=bool(self.node), is_listed=not self.node)
        try:
            context.unnumbered_sources.check(claim)
        except AuthFailed:
            raise AuthFailed(f"node {node} has a token of its own, so only this token may send its readings") from None
        return claim


def find_sender(context: ServerContext, request: Request, credentials: Credentials | None) -> Sender:
    """Return the program that has sent `credentials`, with the token as password or as bearer token.

    A correct token is never rejected because of earlier wrong ones: other programs may have the same address.

    Args:
        context: The server's components.
        request: The request.
        credentials: What it contains to prove its identity, or None.

    Raises:
        HTTPError: 401 without a known token; 403 for a token that may only read, and for a browser with a password,
            which it also sends with the requests of other sites' pages; 429 after many wrong tokens.
    """
    secret = credentials.secret if credentials is not None else ""
    node = context.tokens.node_of(secret) if secret else None
    token = context.api_tokens.find(secret) if secret and node is None and context.api_tokens is not None else None
    if credentials is not None and credentials.scheme == "basic" and (node or token) and is_browser(request):
        raise HTTPError(403, "A browser must not send readings with a token as its password.", "browser")
    if node is not None:
        return Sender(context.current(node))
    if token is None:
        if secret:
            context.throttle.delay_or_refuse(request.peer)
            context.throttle.log_failure(log, request.peer, "a token that belongs to no node and to no program")
        challenge = {"WWW-Authenticate": 'Bearer realm="pigeonpost"'}
        raise HTTPError(401, _UNKNOWN if secret else _MISSING, "token", challenge)
    if token.role == "viewer":
        text = f"This token ({token.name}) has the role viewer; sending readings requires the role writer."
        raise HTTPError(403, text, "role")
    return Sender("")


class Tally:
    """Numbers of one way to send readings, for the page Integrations. Any thread may use it.

    Args:
        name: Name of the integration.
        kind: Kind of the other programs.
        place: Address of this server to which they send.
        items: Plural noun for what they send.
        clock: Clock of the server.
    """

    def __init__(self, name: str, kind: str, place: str, items: str, clock: Clock) -> None:
        self._name, self._kind, self._place, self._items, self._clock = name, kind, place, items, clock
        self._lock = threading.Lock()  # guards the numbers below
        self._success_ms: int | None = None
        self._done = self._refused = 0
        self._fault, self._fault_s = "", 0.0

    def accepted(self, count: int) -> None:
        """Record that `count` items are stored, and nothing of their request was refused."""
        with self._lock:
            self._success_ms = self._clock.wall_ms()
            self._done += count
            self._fault = ""

    def refused(self, count: int, why: str, accepted: int = 0) -> None:
        """Record that `count` items of an authenticated program are refused permanently.

        Args:
            count: Number of refused items.
            why: The reason, with the remedy.
            accepted: Number of items of the same request that are stored.
        """
        with self._lock:
            self._refused += count
            self._done += accepted
            if accepted:
                self._success_ms = self._clock.wall_ms()
            self._fault, self._fault_s = why, self._clock.monotonic()

    def statuses(self) -> list[IntegrationStatus]:
        """Return the state of the integration; nothing if no authenticated program has sent anything yet.

        The reason of a refusal is a fault until a later request is accepted, and for at most SHOWN_S.
        """
        with self._lock:
            if not self._done and not self._refused:
                return []
            fault = self._fault if self._clock.monotonic() - self._fault_s < SHOWN_S else ""
            return [IntegrationStatus(
                self._name, self._kind, "in", self._place, self._success_ms, None, self._items, self._done,
                self._refused, fault,
            )]  # fmt: skip
