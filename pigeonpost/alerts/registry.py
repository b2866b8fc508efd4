"""Creation of the alert rules, the Notifier, its channels and reports from the settings.

A channel is imported only if it is enabled. Errors: SettingsError.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import ALERT_RULES, ALERTS
from pigeonpost.core.errors import DiskError, NotStored, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from csvbuffer import CsvLog
    from pigeonpost.alerts.alert_store import AlertStore
    from pigeonpost.alerts.contract import AlertChannel, AlertEngine
    from pigeonpost.alerts.engine import Alerts
    from pigeonpost.alerts.recipients import ReportPlan
    from pigeonpost.alerts.reporter import Reporter
    from pigeonpost.alerts.rules import Rule
    from pigeonpost.core.faults import Faults
    from pigeonpost.server.ingest import Subscriber
    from pigeonpost.server.quality import QualityChecks
    from pigeonpost.storage.models import EpochCommit
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

_CHECK = "alerts about new values"  # subject of its faults


class AlertParts(NamedTuple):
    """Parts of the server that are about alerts.

    Attributes:
        components: The Notifier under the key "watch"; empty if there is no channel.
        engine: The alerts, or None if there is no channel.
    """

    components: Mapping[str, Any]
    engine: AlertEngine | None


def make_alerts(context: ServerContext, csv: CsvLog, quality: QualityChecks) -> AlertParts:
    """Return the parts of the server that are about alerts.

    Args:
        context: Context of the server, with its settings. The rules are subscribed to its commits.
        csv: The CSV log, whose faults cause alerts.
        quality: The quality checks, whose flags cause alerts.

    Raises:
        SettingsError: An alert, a recipient or the report is invalid; or there are alerts or reports, but no channel.
    """
    settings, clock = context.settings, context.clock
    rules = alert_rules(settings)
    if not (rules or has_channel(settings) or report_plans(settings)):
        return AlertParts({}, None)
    channels = alert_channels(settings, context.current)
    from pigeonpost.alerts.alert_store import AlertStore
    from pigeonpost.alerts.notifier import Notifier

    queue = AlertStore(os.path.join(context.data, ALERTS), [channel.key for channel in channels], clock)
    alerts = _make_engine(context, rules, queue)
    alerts.polls.quality, alerts.polls.data = quality, context.data
    alerts.polls.refused_addresses = context.throttle.refused_addresses
    alerts.polls.faults = lambda: {
        "samples": context.ingestor.fault, "CSV log": csv.fault, **context.faults.present()
    }  # fmt: skip
    context.ingestor.subscribe(guarded(alerts.on_commit, context.faults))

    def look() -> None:
        try:
            messages = alerts.look()
        except (NotStored, DiskError):
            raise
        except Exception as error:  # an internal error about one alert must not end all alerts
            context.faults.set("alerts", f"internal error, see the log: {type(error).__name__}: {error}")
            log.debug("alerts", exc_info=True)
            return
        context.faults.set("alerts", "")
        for message in messages:
            log.warning("%s", message.subject)

    def close() -> None:
        alerts.close()
        queue.close()

    reporter = _make_reporter(context, queue)
    return AlertParts({"watch": Notifier(channels, look, queue, clock, reporter, close)}, alerts)


def guarded(on_commit: Subscriber, faults: Faults) -> Subscriber:
    """Return a subscriber that calls `on_commit`, and records an internal error in `faults`: collecting continues."""

    def check(epoch_commits: Sequence[EpochCommit]) -> None:
        try:
            on_commit(epoch_commits)
        except Exception as error:
            log.debug("check of new values", exc_info=True)
            faults.set(_CHECK, f"internal error, see the log: {type(error).__name__}: {error}")
        else:
            faults.set(_CHECK, "")

    return check


def _make_engine(context: ServerContext, rules: Sequence[Rule], queue: AlertStore) -> Alerts:
    from pigeonpost.alerts.engine import COLLECT_S, Alerts
    from pigeonpost.alerts.rule_sets import ON_PAGE, RuleSets
    from pigeonpost.core.json_file import JsonFile

    settings = context.settings
    path = os.path.join(context.data, ALERT_RULES)
    file = JsonFile[Any](path, f"a list of {ON_PAGE}", lambda tables: tables, context.faults, auto_restore=True)
    shortest_s = settings["alerts", "silent"] and settings["alerts", "silent"] + settings["store", "commit"]
    sets = RuleSets(rules, settings.tables.get("alert", ()), file, shortest_s)
    context.faults.set(ON_PAGE, sets.fault)
    return Alerts(
        sets, context.links, context.clock, context.names, queue, COLLECT_S, settings["alerts", "quiet"],
        context.store, context.tokens, context.ingestor.identity, context.name, settings["alerts", "url"],
    )  # fmt: skip


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
    """Return True if alerts and reports can be sent: there is a recipient or a channel in `settings`."""
    tables = settings.tables.get("recipient") or settings.tables.get("channel")
    return bool(settings["mail", "to"] or settings["webhook", "url"] or tables)


def report_plans(settings: Settings) -> list[ReportPlan]:
    """Return the regular reports in `settings`.

    Raises:
        SettingsError: A key of [report], or of a [[recipient]] or [[channel]] table is invalid.
    """
    from pigeonpost.alerts.recipients import general_plan, read_recipients

    recipients, channels = read_recipients(settings), []
    if settings.tables.get("channel"):
        from pigeonpost.alerts.channel_settings import read_channels

        channels = read_channels(settings)
    own = {one.to for one in recipients}
    general = [f"mail:{to}" for to in dict.fromkeys(settings["mail", "to"]) if to not in own]
    if settings["webhook", "url"]:
        general.append("webhook")
    plans = [general_plan(settings, general), *(one.plan for one in recipients), *(one.plan for one in channels)]
    return [plan for plan in plans if plan is not None and (plan.channels or not (recipients or channels))]


def alert_channels(settings: Settings, current: Callable[[str], str] = lambda node: node) -> list[AlertChannel]:
    """Return the channels in `settings`: one for each mail recipient, the webhook, and one for each [[channel]].

    `current` returns the current name of a node that was renamed.

    Raises:
        SettingsError: No channel is set, or the webhook, a [[recipient]] table or a [[channel]] table is invalid.
    """
    from pigeonpost.alerts.channel_settings import read_channels, read_webhook
    from pigeonpost.alerts.recipients import EVERYTHING, read_recipients

    webhook = read_webhook(settings)
    http_channels = [*([webhook] if webhook else []), *read_channels(settings)]
    if not has_channel(settings):
        raise SettingsError(
            "there are alerts or reports, but no recipient: set [mail] to or [webhook] url, or write a [[recipient]] or"
            " a [[channel]]"
        )
    channels: list[AlertChannel] = []
    # A table of a recipient replaces the entry of the same address in [mail] to.
    chosen = dict.fromkeys(settings["mail", "to"], EVERYTHING)
    chosen.update({one.to: one.chosen for one in read_recipients(settings)})
    if chosen:
        from pigeonpost.alerts.email_channel import EmailChannel, MailServer

        host, port, tls, user, password = (settings["mail", key] for key in ("host", "port", "tls", "user", "password"))
        server = MailServer(host, port, tls, user, password, settings["mail", "from"] or next(iter(chosen)))
        channels += [EmailChannel(server, to, own, current) for to, own in chosen.items()]
    if http_channels:
        from pigeonpost.alerts.webhook_channel import WebhookChannel

        channels += [WebhookChannel(one, current) for one in http_channels]
    return channels
