"""Command `alerts`: active alerts of the running server, and test messages. Errors: Failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigeonpost.alerts.contract import AlertChannel
from pigeonpost.alerts.registry import alert_channels
from pigeonpost.alerts.trial import send_trial, trial_message
from pigeonpost.cli.contract import Command, Context, Failed
from pigeonpost.cli.remote import ask_server
from pigeonpost.core.addresses import own_name
from pigeonpost.core.clock import Clock, parse_rfc3339
from pigeonpost.core.format import stamp


def _alerts(context: Context) -> int:
    """List the active alerts of the running server, or with `test` send a test message by every channel.

    `alerts test` uses the settings directly, so the server need not run. It prints the answer of each channel. CHANNEL
    is `mail`, `webhook`, the address of one recipient, or the name of a [[channel]]. The exit status is 1 if a channel
    did not accept the message.
    """
    if context.arguments.action == "test":
        return _test(context)
    found = ask_server(context.data, "GET", "/api/v1/alerts")
    for one in found["active"]:
        print(describe(one))
    if not found["active"]:
        print("There are no active alerts.")
    for channel in found["channels"]:
        for fault in filter(None, (channel["fault"], channel["refused"])):
            print(f"{channel['channel']}: {fault}")
    return 0


def describe(alert: Mapping[str, Any]) -> str:
    """Return a line about `alert`, an object from /api/v1/alerts."""
    held = "; its message is held back until the quiet hours end" if alert["held"] else ""
    by = f"; acknowledged by {alert['acknowledged_by']}" if alert["acknowledged"] else ""
    return f"{alert['severity']}: {alert['text']} (since {stamp(parse_rfc3339(alert['since']))}{held}{by})"


def _test(context: Context) -> int:
    settings, wanted = context.settings, context.arguments.channel
    every = alert_channels(settings)
    channels = [one for one in every if wanted in (None, one.key, _name(one), one.key.partition(":")[0])]
    if not channels:
        names = ", ".join(map(_name, every))
        raise Failed(f"there is no channel {wanted!r}; the channels are: {names}")
    message = trial_message(settings["server", "name"] or own_name(), "", Clock().wall_ms())
    results = send_trial(channels, message)
    for channel, why in results:
        print(f"{_name(channel)}: {why or f'accepted ({channel.place})'}")
    if settings["mail", "user"] and not settings["mail", "password"] and any(why for _, why in results):
        print(
            "The password of the mail account is not set. The server may have it in its environment: PIGEONPOST_MAIL_"
            "PASSWORD, with systemd in /etc/pigeonpost/server.env"
        )
    return 1 if any(why for _, why in results) else 0


def _name(channel: AlertChannel) -> str:
    """Return the address of a mail recipient, `webhook`, or the name of a [[channel]]."""
    return channel.key.removeprefix("channel ").removeprefix("mail:")


COMMANDS: Mapping[str, Command] = {
    "alerts": Command(
        "list the active alerts; `alerts test` sends a test message",
        [
            ("action", {"metavar": "test", "nargs": "?", "choices": ["test"], "help": "send a test message"}),
            ("channel", {"metavar": "CHANNEL", "nargs": "?", "help": "mail, webhook, an address, or a name"}),
        ],
        _alerts,
    ),
}
