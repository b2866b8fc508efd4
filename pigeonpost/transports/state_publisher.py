"""Factory of the RedisPublisher, which also gets the states of the nodes and of the multicast bus.

redis_publisher is imported only if Redis is set. Errors: those of storage.redis_publisher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pigeonpost.core.errors import MissingLibrary
from pigeonpost.server.liveness import is_silent
from pigeonpost.transports import registry
from pigeonpost.transports.contract import IntegrationStatus

if TYPE_CHECKING:
    from pigeonpost.storage.models import Reading
    from pigeonpost.storage.redis_publisher import RedisPublisher
    from pigeonpost.transports.contract import ServerContext, Transport


def make_publisher(context: ServerContext, transports: Mapping[str, Transport]) -> dict[str, Any]:
    """Return {"redis": RedisPublisher} if Redis is set, else an empty dict.

    Args:
        context: The server's components.
        transports: The server's transports by name; "bus" is the source of the bus states.
    """
    if not context.settings["redis", "url"]:
        return {}
    from pigeonpost.storage.redis_publisher import RedisPublisher

    def nodes() -> dict[str, dict[str, Any]]:
        states = [link.state for link in list(context.links)]
        received_s, now_s, commit_s = context.ingestor.received_s, context.clock.monotonic(), context.ingestor.commit_s
        return {
            state.name: {
                "IsActive": bool(state.connected and state.on is not False)  # None: a client that does not report it
                and not is_silent(state, received_s.get(state.name), now_s, commit_s),
                "ITimestamp": state.checked_ms,
                "TDuration": state.round_trip_ms,
            } for state in states
        }  # fmt: skip

    def others() -> dict[str, Any]:
        report = transports["bus"].report() if "bus" in transports else None
        return dict((report or {}).get("codifiers", {}))

    def newest(node: str) -> Iterable[Reading]:
        latest = context.ingestor.latest.get(node)
        return latest.readings() if latest else ()

    url, prefix = context.settings["redis", "url"], context.settings["redis", "prefix"]
    try:
        publisher = RedisPublisher(url, prefix, context.name, context.clock, newest, context.store, nodes, others)
    except MissingLibrary as error:  # Redis is only a copy, so the server runs without it
        return {"redis": registry.without_library(error)}
    publisher.statuses = lambda: [_status(publisher)]
    context.ingestor.subscribe(publisher.on_commit)
    return {"redis": publisher}


def _status(publisher: RedisPublisher) -> IntegrationStatus:
    backlog = publisher.report()["lacking"]
    return IntegrationStatus(
        "redis", "redis", "out", publisher.place, publisher.success_ms, backlog, "states", publisher.written,
        fault=publisher.fault,
    )  # fmt: skip
