"""The roads from node to server: what every road's two ends have in common.

Runs on: node and server.  Reached from: the programs, which make the ends; the members, which are them.
Members: tcp, which every node has, and one file for each other road.  Both ends of a road stand in one file, named by
the house they belong to and not by their part in TCP: on `tcp` it is the *node* that listens.
Threads: each end owns its own, and ends them within the limit that `stop` is given.
Errors: those of one connection end that connection, are logged once, and are tried again where it is ours to try.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pigeonpost.auth.tokens import Tokens
    from pigeonpost.core.clock import Clock
    from pigeonpost.core.config import Settings
    from pigeonpost.http.message import Endpoint
    from pigeonpost.server.ingest import Ingestor
    from pigeonpost.server.unnumbered_sources import UnnumberedSources
    from pigeonpost.storage.contract import Store


class ServerContext(NamedTuple):
    """What the server hands to the end of every road.

    links    everybody who is collected from or calls in, as the pages show them; may grow while the server runs
    collect  (node's name, address) begins to collect from a node over TCP; gives that end
    """

    name: str
    data: str
    clock: Clock
    settings: Settings
    store: Store
    ingestor: Ingestor
    tokens: Tokens
    unnumbered_sources: UnnumberedSources
    links: list[Any]
    collect: Callable[[str, tuple[str, int]], Any]


class Transport:
    """One end of a road.

    A member that node.py or server.py lists among its ROADS has `make_node_end(settings, facts, outbox, clock)` or
    `make_server_end(hall)`, which gives one.
    """

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
