"""The transports other than TCP, and the settings that enable them. The programs add the transports of `compat/`.

Each factory imports its module when it is called, so that a transport that is not enabled needs no memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pigeonpost.core.errors import MissingLibrary
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.transports.contract import PassiveTransport

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.core.config import Settings
    from pigeonpost.node.node_info import NodeInfo
    from pigeonpost.node.outbox import Outbox
    from pigeonpost.transports.contract import ServerContext, Transport


log = logging.getLogger(__name__)


def make_or_explain(make: Callable[..., Transport], *arguments: object) -> Transport:
    """Return the transport `make(*arguments)`, or a transport that does nothing if its library is missing."""
    try:
        return make(*arguments)
    except MissingLibrary as error:
        return without_library(error)


def without_library(error: MissingLibrary) -> Transport:
    """Log `error`, and return a transport that does nothing and whose fault is `error`, which contains the remedy."""
    log.error("%s; everything else keeps running", error)
    missing = PassiveTransport()
    missing.fault = str(error)
    return missing


class NodeTransportEntry(NamedTuple):
    """A transport of the node: its name, the setting (table, key) that enables it, and its factory."""

    name: str
    setting: tuple[str, str]
    make: Callable[[Settings, NodeInfo, Outbox, Clock], Transport]


class ServerTransportEntry(NamedTuple):
    """A transport of the server: its name, the setting that enables it (None: always enabled), and its factory."""

    name: str
    setting: tuple[str, str] | None
    make: Callable[[ServerContext], Transport]


def _discovery_node(settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> Transport:
    """Return the announcements, or a transport that does nothing if no server could use them.

    No server could use them if the node has no token to sign them with, or if the node connects to servers itself. In
    the second case, the setting [announce] on enables the announcements nevertheless.
    """
    connects = settings["mqtt", "host"] or settings["push", "to"]
    if info.key is None or (connects and settings.origin("announce", "on") == "default"):
        return PassiveTransport()  # the module would cost 0.2 MiB
    from pigeonpost.transports import discovery_node

    group, every_s = settings["announce", "group"], settings["announce", "every"]
    return discovery_node.DiscoveryNodeTransport(info, info.key, group, every_s, clock)


def _push_node(settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> Transport:
    from pigeonpost.transports import push_node

    return push_node.PushNodeTransport(settings, info, outbox, clock)


def _mqtt_node(settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> Transport:
    from pigeonpost.transports import mqtt_node

    return mqtt_node.MqttNodeTransport(settings, info, outbox, clock)


def _push_server(context: ServerContext) -> Transport:
    from pigeonpost.transports import push_server

    return push_server.PushServerTransport(context)


def _readings_server(context: ServerContext) -> Transport:
    from pigeonpost.transports import readings_server

    return readings_server.ReadingsServerTransport(context)


def _mqtt_server(context: ServerContext) -> Transport:
    from pigeonpost.transports import mqtt_server

    return mqtt_server.MqttServerTransport(context)


def _discovery_server(context: ServerContext) -> Transport:
    from pigeonpost.transports import discovery_server

    return discovery_server.DiscoveryServerTransport(context, context.settings["announce", "group"])


NODE = (
    NodeTransportEntry("announce", ("announce", "on"), _discovery_node),
    NodeTransportEntry("push", ("push", "to"), _push_node),
    NodeTransportEntry("mqtt", ("mqtt", "host"), _mqtt_node),
)
SERVER = (
    ServerTransportEntry("push", None, _push_server),
    ServerTransportEntry("readings", None, _readings_server),
    ServerTransportEntry("mqtt", ("mqtt", "host"), _mqtt_server),
    ServerTransportEntry("announce", ("announce", "on"), _discovery_server),
)
