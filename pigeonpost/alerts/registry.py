"""Creation of the alert rules, the Notifier, its channels and reports from the settings.

A channel is imported only if it is enabled. Errors: SettingsError.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any

from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import ALERTS
from pigeonpost.core.errors import SettingsError

if TYPE_CHECKING:
    from pigeonpost.alerts.alert_store import AlertStore
    from pigeonpost.alerts.contract import AlertChannel
    from pigeonpost.alerts.recipients import ReportPlan
    from pigeonpost.alerts.reporter import Reporter
    from pigeonpost.alerts.rules import Rule
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)


def make_notifier(context: ServerContext) -> dict[str, Any]:
    """Return a dict with the Notifier under the key "watch"; empty if there is no channel.

    Args:
        context: Context of the server, with its settings. The rules are subscribed to its commits.

    Raises:
        SettingsError: An alert, a recipient or the report is invalid; or there are alerts or reports, but no channel.
    """
    settings, clock = context.settings, context.clock
    rules = alert_rules(settings)
    if not (rules or has_channel(settings) or report_plans(settings)):
        return {}
    channels = alert_channels(settings)
    from pigeonpost.alerts.alert_store import AlertStore
    from pigeonpost.alerts.notifier import Notifier
    from pigeonpost.alerts.rules import Alerts

    queue = AlertStore(os.path.join(context.data, ALERTS), [channel.key for channel in channels], clock)
    alerts = Alerts(rules, context.links, clock, context.names)
    if rules:
        context.ingestor.subscribe(alerts.on_commit)

    def look() -> None:
        messages = alerts.look()
        for message in messages:
            log.warning("%s", message.subject)
        queue.put(messages)

    reporter = _make_reporter(context, queue)
    return {"watch": Notifier(channels, look, queue, clock, reporter, queue.close)}


def _make_reporter(context: ServerContext, queue: AlertStore) -> Reporter | None:
    """Return the Reporter of the regular reports, or None if there are none."""
    plans = report_plans(context.settings)
    if not plans:
        return None
    from pigeonpost.alerts.recent import RecentMessages
    from pigeonpost.alerts.report import ReportSource
    from pigeonpost.alerts.reporter import Reporter, make_report
    from pigeonpost.server.disk_usage import DiskUsageMonitor

    source = ReportSource(
        context.name, context.store, context.names, RecentMessages(queue).in_span,
        lambda: [f"{subject}: {text}" for subject, text in context.faults.present().items()],
        DiskUsageMonitor(context.data, context.clock).use,
    )  # fmt: skip
    return Reporter(plans, functools.partial(make_report, source), queue, context.clock, context.name)


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


def has_channel(settings: Settings) -> bool:
    """Return True if alerts and reports can be sent: there is a mail recipient or a webhook in `settings`."""
    return bool(settings["mail", "to"] or settings["webhook", "url"] or settings.tables.get("recipient"))


def report_plans(settings: Settings) -> list[ReportPlan]:
    """Return the regular reports in `settings`.

    Raises:
        SettingsError: A key of [report] or of a [[recipient]] table is invalid.
    """
    from pigeonpost.alerts.recipients import general_plan, read_recipients

    recipients = read_recipients(settings)
    own = {one.to for one in recipients}
    general = [f"mail:{to}" for to in dict.fromkeys(settings["mail", "to"]) if to not in own]
    if settings["webhook", "url"]:
        general.append("webhook")
    plans = [general_plan(settings, general), *(one.plan for one in recipients)]
    return [plan for plan in plans if plan is not None and (plan.channels or not recipients)]


def alert_channels(settings: Settings) -> list[AlertChannel]:
    """Return the channels in `settings`: one for each mail recipient, and the webhook.

    Raises:
        SettingsError: No channel is set, or a [[recipient]] table is invalid.
    """
    from pigeonpost.alerts.recipients import EVERYTHING, read_recipients

    if not has_channel(settings):
        raise SettingsError(
            "there are alerts or reports, but no recipient: set [mail] to or [webhook] url, or write a [[recipient]]"
        )
    channels: list[AlertChannel] = []
    # A table of a recipient replaces the entry of the same address in [mail] to.
    chosen = dict.fromkeys(settings["mail", "to"], EVERYTHING)
    chosen.update({one.to: one.chosen for one in read_recipients(settings)})
    if chosen:
        from pigeonpost.alerts.email_channel import EmailChannel, MailServer

        host, port, tls, user, password = (settings["mail", key] for key in ("host", "port", "tls", "user", "password"))
        server = MailServer(host, port, tls, user, password, settings["mail", "from"] or next(iter(chosen)))
        channels += [EmailChannel(server, to, own) for to, own in chosen.items()]
    if url := settings["webhook", "url"]:
        from pigeonpost.alerts.webhook_channel import WebhookChannel

        channels.append(WebhookChannel(url))
    return channels
