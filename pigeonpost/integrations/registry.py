"""Creation of the parts that exchange data with other systems, from the settings.

A part is imported only if it is enabled, so that the others need no memory. Errors: SettingsError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.errors import MissingLibrary, SettingsError
from pigeonpost.transports.registry import without_library

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pigeonpost.core.config import Settings
    from pigeonpost.server.calibrations import Calibrations
    from pigeonpost.transports.contract import ServerContext, Transport


class IntegrationEntry(NamedTuple):
    """Parts of one kind.

    Attributes:
        name: Name of the kind.
        is_wanted: Function that returns True if the settings enable it.
        make: Function that returns its parts by name, which are unique among all components of the server.
    """

    name: str
    is_wanted: Callable[[Settings], bool]
    make: Callable[[ServerContext], Mapping[str, Transport]]


def _devices(context: ServerContext) -> Mapping[str, Transport]:
    from pigeonpost.transports import mqtt_devices

    return mqtt_devices.make_devices(context)


def _heartbeat(context: ServerContext) -> Mapping[str, Transport]:
    from pigeonpost.integrations.heartbeat import make_heartbeat

    return make_heartbeat(context)


def _forwarders(context: ServerContext) -> Mapping[str, Transport]:
    from pigeonpost.integrations import forwarder

    return forwarder.make(context)


def _home_assistant(context: ServerContext) -> Mapping[str, Transport]:
    from pigeonpost.integrations import home_assistant_discovery

    if not context.settings["home_assistant", "discovery"]:
        raise SettingsError("[home_assistant] url requires discovery = true, which publishes the entities")
    discovery = home_assistant_discovery.make(context)
    if not context.settings["home_assistant", "url"]:
        return {"home_assistant": discovery}
    from pigeonpost.integrations import home_assistant_statistics

    statistics = home_assistant_statistics.make(context, discovery)
    return {"home_assistant": discovery, "home_assistant_statistics": statistics}


INTEGRATIONS: tuple[IntegrationEntry, ...] = (
    IntegrationEntry(
        "home_assistant",
        lambda settings: settings["home_assistant", "discovery"] or settings["home_assistant", "url"],
        _home_assistant,
    ),
    IntegrationEntry("devices", lambda settings: bool(settings.tables.get("device")), _devices),
    IntegrationEntry("heartbeat", lambda settings: bool(settings["heartbeat", "url"]), _heartbeat),
    IntegrationEntry("forward", lambda settings: bool(settings.tables.get("forward")), _forwarders),
)


def make_integrations(context: ServerContext) -> dict[str, Transport]:
    """Return the enabled parts by name. A part whose library is missing is replaced by one that has only this fault.

    Args:
        context: Context of the server, with its settings.

    Raises:
        SettingsError: A setting is invalid.
    """
    parts: dict[str, Transport] = {}
    for entry in INTEGRATIONS:
        if entry.is_wanted(context.settings):
            try:
                parts.update(entry.make(context))
            except MissingLibrary as error:
                parts[entry.name] = without_library(error)
    return parts


def connect_parts(parts: Mapping[str, Any], calibrations: Calibrations) -> None:
    """Connect parts that need others: the heartbeat reports the faults of all, and Redis receives new calibrations.

    Args:
        parts: All optional components of the server, by name.
        calibrations: The calibrations of the server.
    """
    if "heartbeat" in parts:
        parts["heartbeat"].parts = parts
    if "redis" in parts:
        from pigeonpost.server.calibrations import announcement

        calibrations.on_change.append(lambda node: parts["redis"].on_commit(announcement(node)))
