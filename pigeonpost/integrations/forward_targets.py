"""Kinds of targets of a [[forward]] table. The module of a kind is imported only if it is used.

Each module has a function `make(table, where, context)`, which reads the keys of its kind with
`forward_settings.own_keys` and returns the target. It must not connect yet. Errors: SettingsError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pigeonpost.integrations.contract import ForwardTarget
    from pigeonpost.transports.contract import ServerContext

MakeTarget = Callable[[Mapping[str, Any], str, "ServerContext"], "ForwardTarget"]


def _influxdb(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    from pigeonpost.integrations import influxdb

    return influxdb.make(table, where, context)


def _mqtt(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    from pigeonpost.integrations import mqtt_topics

    return mqtt_topics.make(table, where, context)


def _otlp(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    from pigeonpost.integrations import otlp

    return otlp.make(table, where, context)


def _pigeonpost(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    from pigeonpost.integrations import pigeonpost_server

    return pigeonpost_server.make(table, where, context)


def _victoriametrics(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    from pigeonpost.integrations import victoriametrics

    return victoriametrics.make(table, where, context)


def _webhook(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    from pigeonpost.integrations import webhook_batches

    return webhook_batches.make(table, where, context)


KINDS: Mapping[str, MakeTarget] = {
    "influxdb": _influxdb,
    "mqtt": _mqtt,
    "otlp": _otlp,
    "pigeonpost": _pigeonpost,
    "victoriametrics": _victoriametrics,
    "webhook": _webhook,
}
