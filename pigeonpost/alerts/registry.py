"""Creation of the alert rules, the Notifier and its channels from the settings.

A channel is imported only if it is enabled. Errors: SettingsError.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pigeonpost.core.config import Settings
from pigeonpost.core.errors import SettingsError

if TYPE_CHECKING:
    from pigeonpost.alerts.contract import AlertChannel
    from pigeonpost.alerts.rules import Rule
    from pigeonpost.transports.contract import ServerContext


def make_notifier(context: ServerContext) -> dict[str, Any]:
    """Return a dict with the Notifier under the key "watch"; empty if no alerts and no reports are enabled.

    Args:
        context: Context of the server, with its settings. The rules are subscribed to its commits.

    Raises:
        SettingsError: An alert is invalid, or no channel is set.
    """
    rules, every_h = alert_rules(context.settings), context.settings["report", "every"]
    if not rules and not every_h:
        return {}
    from pigeonpost.alerts.notifier import Notifier
    from pigeonpost.alerts.report import report
    from pigeonpost.alerts.rules import Alerts

    alerts = Alerts(rules, context.links, context.clock, context.names)
    if rules:
        context.ingestor.subscribe(alerts.on_commit)
    make_report = functools.partial(report, context.store, context.name)
    channels = alert_channels(context.settings)
    return {"watch": Notifier(channels, alerts.look, make_report, every_h * 3600, context.clock)}


def alert_rules(settings: Settings) -> list[Rule]:
    """Return the rules in the [[alert]] tables of `settings`.

    Raises:
        SettingsError: A table is invalid.
    """
    tables = settings.tables.get("alert", ())
    if not tables:
        return []
    from pigeonpost.alerts.rules import read_rules

    return read_rules(tables, settings.file)


def alert_channels(settings: Settings) -> list[AlertChannel]:
    """Return the channels in `settings`: mail, webhook or both.

    Raises:
        SettingsError: No channel is set.
    """
    channels: list[AlertChannel] = []
    if to := settings["mail", "to"]:
        from pigeonpost.alerts.email_channel import EmailChannel

        host, port, tls, user, password = (settings["mail", key] for key in ("host", "port", "tls", "user", "password"))
        channels.append(EmailChannel(host, port, tls, user, password, settings["mail", "from"] or to[0], to))
    if url := settings["webhook", "url"]:
        from pigeonpost.alerts.webhook_channel import WebhookChannel

        channels.append(WebhookChannel(url))
    if not channels:
        raise SettingsError("there are alerts or reports, but no recipient: set [mail] to or [webhook] url")
    return channels
