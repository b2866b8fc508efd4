"""The transports beside TCP, and the settings that switch them on. Programs add those of `compat/` to these.

Each function imports its module when it is called: what is switched off costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.core.config import Settings
    from pigeonpost.node.node_info import NodeFacts
    from pigeonpost.node.outbox import Outbox
    from pigeonpost.transports.contract import End, Hall


class NodeEntry(NamedTuple):
    """A transport of the node: its name, the setting (table, key) that switches it on, and how it is made."""

    name: str
    setting: tuple[str, str]
    make: Callable[[Settings, NodeFacts, Outbox, Clock], End]


class ServerEntry(NamedTuple):
    """A transport of the server: its name, the setting that switches it on (None: always on), how it is made."""

    name: str
    setting: tuple[str, str] | None
    make: Callable[[Hall], End]


def _discovery_node(settings: Settings, facts: NodeFacts, outbox: Outbox, clock: Clock) -> End:
    from pigeonpost.transports import discovery_node

    return discovery_node.make_node_end(settings, facts, outbox, clock)


def _push_node(settings: Settings, facts: NodeFacts, outbox: Outbox, clock: Clock) -> End:
    from pigeonpost.transports import push_node

    return push_node.NodeEnd(settings, facts, outbox, clock)


def _mqtt_node(settings: Settings, facts: NodeFacts, outbox: Outbox, clock: Clock) -> End:
    from pigeonpost.transports import mqtt_node

    return mqtt_node.NodeEnd(settings, facts, outbox, clock)


def _push_server(hall: Hall) -> End:
    from pigeonpost.transports import push_server

    return push_server.ServerEnd(hall)


def _mqtt_server(hall: Hall) -> End:
    from pigeonpost.transports import mqtt_server

    return mqtt_server.ServerEnd(hall)


def _discovery_server(hall: Hall) -> End:
    from pigeonpost.transports import discovery_server

    return discovery_server.ServerEnd(hall, hall.settings["announce", "group"])


NODE = (
    NodeEntry("announce", ("announce", "on"), _discovery_node),
    NodeEntry("push", ("push", "to"), _push_node),
    NodeEntry("mqtt", ("mqtt", "host"), _mqtt_node),
)
SERVER = (
    ServerEntry("push", None, _push_server),
    ServerEntry("mqtt", ("mqtt", "host"), _mqtt_server),
    ServerEntry("announce", ("announce", "on"), _discovery_server),
)
