"""The transports beside TCP, and the settings that switch them on. Programs add those of `compat/` to these.

Each function imports its module when it is called: what is switched off costs nothing.
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
    """Make a transport, or one without work in its place where its library is missing: the others go on."""
    try:
        return make(*arguments)
    except MissingLibrary as error:
        return without_library(error)


def without_library(error: MissingLibrary) -> Transport:
    """Return what stands for a transport whose library is missing: its fault shows the remedy. It is logged here."""
    log.error("%s; everything else goes on", error)
    missing = PassiveTransport()
    missing.fault = str(error)
    return missing


class NodeTransportEntry(NamedTuple):
    """A transport of the node: its name, the setting (table, key) that switches it on, and how it is made."""

    name: str
    setting: tuple[str, str]
    make: Callable[[Settings, NodeInfo, Outbox, Clock], Transport]


class ServerTransportEntry(NamedTuple):
    """A transport of the server: its name, the setting that switches it on (None: always on), how it is made."""

    name: str
    setting: tuple[str, str] | None
    make: Callable[[ServerContext], Transport]


def _discovery_node(settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> Transport:
    """Without a token there is nothing to announce; nor, unless it is set, where the node itself connects."""
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
    ServerTransportEntry("mqtt", ("mqtt", "host"), _mqtt_server),
    ServerTransportEntry("announce", ("announce", "on"), _discovery_server),
)
