"""Interface of both ends of a transport, and ServerContext, the components that the server's ends use.

Each end is a module of its own, named after the program that runs it (node or server). The name does not tell which end
connects: over TCP the node listens and the server connects. Every node has the TCP transport; registry.py lists the
others.

Each end has its own threads, and ends them within the time limit of `stop`.
Errors: an error of one connection ends only that connection and is logged once. The end that connects tries again.
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
    """The server's components and settings, as every transport end on the server receives them.

    Attributes:
        name: Name of the server.
        data: Path of the data directory.
        clock: The server's clock.
        settings: The settings of server.toml.
        store: The database.
        ingestor: Queue that commits submitted batches.
        tokens: The tokens of the nodes.
        unnumbered_sources: Clients that send readings without an epoch and sequence numbers.
        links: All nodes that the server collects from or that connect to it, as the pages show them. The list may grow
            while the server runs.
        collect: Function of (node name, address) that starts to collect from a node over TCP and returns that link.
        faults: Faults of this server that the pages and `control.py check` report.
        throttle: Delays and refuses clients after failed attempts with passwords, tokens and keys.
        names: Current names of renamed nodes, or None if nodes cannot be renamed.
        api_tokens: Tokens of programs that may write readings, or None if no program may write.
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
        """Return the current name of the node that reports the name `name`."""
        return name if self.names is None else self.names.current(name)

    def names_of(self, node: str) -> list[str]:
        """Return the current name `node` and the former names of this node."""
        return [node] if self.names is None else self.names.names_of(node)


class IntegrationStatus(NamedTuple):
    """State of the exchange with one other system, for the pages, /metrics and `control.py check`.

    Attributes:
        name: Unique name, for example "forward influx".
        kind: Kind of the other system, for example "influxdb".
        direction: "out", "in" or "both", as seen from this server.
        place: Address or name of the other system, without secrets.
        success_ms: Time of the last success, in ms since 1970 (UTC); None if there was none in this run.
        backlog: Number of items that the other system has not accepted yet; None if it is unknown or has no meaning.
        items: Plural noun for the items, for example "samples".
        done: Number of items that were exchanged in this run.
        refused: Number of items that were rejected permanently in this run.
        fault: The present fault with its remedy, or an empty string.
    """

    name: str
    kind: str
    direction: str
    place: str
    success_ms: int | None
    backlog: int | None
    items: str = "samples"
    done: int = 0
    refused: int = 0
    fault: str = ""


class Transport:
    """One end of a transport.

    Attributes:
        endpoints: HTTP endpoints of a server's end, which the web server offers in addition to the pages.
        fault: The fault that keeps a server's end from working, for people and `control.py check`, or an empty string.
    """

    endpoints: Sequence[Endpoint] = ()
    fault: str = ""

    def start(self) -> None:
        """Start the transport; return once it can be reached or has begun to connect.

        Raises:
            SettingsError: The transport can never work with its present settings.
        """
        raise NotImplementedError

    def report(self) -> dict[str, Any] | None:
        """Return the state of the transport for people and programs (JSON), or None if it has nothing to report."""
        return None

    def statuses(self) -> Sequence[IntegrationStatus]:
        """Return the states of the exchanges with other systems; empty if there are none. It must not block."""
        return ()

    def stop(self, limit_s: float) -> str | None:
        """Send pending data within `limit_s` seconds, then close; a second call does nothing.

        Returns:
            A description of the work that was not finished, or None if all of it was.
        """
        raise NotImplementedError


class PassiveTransport(Transport):
    """A transport with nothing to open or to close: it does no work, or has only endpoints."""

    def start(self) -> None:
        pass

    def stop(self, limit_s: float) -> str | None:
        return None
