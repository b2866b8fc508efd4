"""Test messages, sent directly on every channel, without the queue. Errors: none."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent
from pigeonpost.core.format import stamp
from pigeonpost.core.redact import hide_secrets

AT_ONCE = 8  # channels that are tested at the same time


def trial_message(server: str, user: str, now_ms: int) -> AlertMessage:
    """Return a test message.

    Args:
        server: Name of the server.
        user: Name of the user who requested it; empty on the command line.
        now_ms: Current time, in ms since 1970 (UTC).
    """
    text = (
        f"This is a test message of the Pigeonpost server {server}. Its alerts and reports reach you.\n"
        f"It was requested{f' by {user}' if user else ''} at {stamp(now_ms)}.\n"
    )
    id = f"test-{secrets.token_hex(8)}"
    info = {"kind": "test", "severity": "info", "node": "", "sensor": ""}
    return AlertMessage(f"Test message of {server}", text, info, id, "info", "test")


def send_trial(channels: Sequence[AlertChannel], message: AlertMessage) -> list[tuple[AlertChannel, str]]:
    """Send `message` on all `channels` at the same time.

    Returns:
        Each channel with the reason why the message was not accepted, or an empty string if it was.
    """
    from concurrent.futures import ThreadPoolExecutor

    def answer(channel: AlertChannel) -> str:
        try:
            channel.send(message)
        except NotSent as error:
            return hide_secrets(str(error))
        return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(zip(channels, pool.map(answer, channels)))
