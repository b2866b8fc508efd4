"""Interface of a transport's two ends, and what the server gives to its end.

Each end is a module of its own, named by the program that runs it and not by its part in TCP: on `tcp` it is the node
that listens. registry.py lists the transports beside TCP, which every node has.

Each end has its own threads, and ends them within the limit that `stop` is given.
Errors: those of one connection end that connection, are logged once, and the end that connects tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from pigeonpost.auth.api_tokens import ApiTokens
    from pigeonpost.auth.throttle import LoginThrottle
    from pigeonpost.auth.tokens import Tokens
    from pigeonpost.core.clock import Clock
    from pigeonpost.core.config import Settings
    from pigeonpost.core.faults import Faults
    from pigeonpost.http.message import Endpoint
    from pigeonpost.server.ingest import Ingestor
    from pigeonpost.server.node_register import NodeRegister
    from pigeonpost.server.node_status import MovableLink, NodeLink
    from pigeonpost.server.unnumbered_sources import UnnumberedSources
    from pigeonpost.storage.contract import Store


class ServerContext(NamedTuple):
    """What the server gives to its end of every transport.

    links    all nodes that are collected from or connect to us, as the pages show them; may grow while the server runs
    collect  (node's name, address) begins to collect from a node over TCP; returns that link
    faults   what is wrong with this server
    throttle counts failed attempts with every kind of secret
    names    the present names of nodes; None: no node was ever renamed
    api_tokens  the tokens of programs; None: no program may write
    """

    name: str
    data: str
    clock: Clock
    settings: Settings
    store: Store
    ingestor: Ingestor
    tokens: Tokens
    unnumbered_sources: UnnumberedSources
    links: list[NodeLink]
    collect: Callable[[str, tuple[str, int]], MovableLink]
    faults: Faults
    throttle: LoginThrottle
    names: NodeRegister | None = None
    api_tokens: ApiTokens | None = None

    def current(self, name: str) -> str:
        """Return the present name of the node that says it is `name`."""
        return name if self.names is None else self.names.current(name)


class Transport:
    """One end of a transport."""

    endpoints: Sequence[Endpoint] = ()  # of a server's end: its addresses on the web server, beside the pages
    fault: str = ""  # of a server's end: what keeps it from its work, for people and `control.py check`

    def start(self) -> None:
        """Open it; returns when it can be reached, or is trying to reach. Raises SettingsError when it never will."""
        raise NotImplementedError

    def report(self) -> dict[str, Any] | None:
        """How it is, for people and programs to look at (JSON); None: it has nothing to tell."""
        return None

    def stop(self, limit_s: float) -> str | None:
        """Send what is due within `limit_s` seconds, and close. Stopping twice is fine. Says what was left undone."""
        raise NotImplementedError


class PassiveTransport(Transport):
    """A transport with nothing to open or to close: one without work, or with endpoints alone."""

    def start(self) -> None:
        pass

    def stop(self, limit_s: float) -> str | None:
        return None
