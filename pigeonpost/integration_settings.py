"""Definitions of the server's settings for messages to people and for other systems.

settings.py adds them to the other settings. The keys of the tables [[forward]], [[channel]] and [[device]] are defined
in the modules that use them.
"""

from __future__ import annotations

import re

from pigeonpost.core.config import Setting, matching, number, one_of, switch, text

SHAPES = ("json", "ntfy", "telegram", "slack", "discord", "gotify")
INTEGRATION_ARRAYS = ("forward", "channel", "device")
HEADER_TAKES = 'an HTTP header such as "X-Api-Key: secret"'
is_url = re.compile(r"https?://[!-~]+").fullmatch
is_header = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t -~]*").fullmatch
_is_topic = re.compile(r"[^\x00-\x1f#+/\x7f](?:[^\x00-\x1f#+\x7f]{0,98}[^\x00-\x1f#+/\x7f])?").fullmatch
_URL_TAKES = "a URL that begins with https:// or http://"


def _url_or_none(value: str) -> object:
    return not value or is_url(value)


INTEGRATIONS = (
    Setting("webhook", "url", matching(_url_or_none, _URL_TAKES), "",
            "URL that receives alerts and reports (HTTP POST)", secret=True),
    Setting("webhook", "shape", one_of(*SHAPES), "json",
            f"form of the messages: {', '.join(SHAPES[:-1])} or {SHAPES[-1]}"),
    Setting("webhook", "token", text, "", "token of the service (better: PIGEONPOST_WEBHOOK_TOKEN)", secret=True),
    Setting("webhook", "topic", text, "", "topic of ntfy", secret=True),
    Setting("webhook", "chat", text, "", "id of the chat of Telegram"),
    Setting("webhook", "template", text, "", "JSON text that replaces the body of the shape json, with placeholders"
            " such as {subject} and {text}"),
    Setting("webhook", "headers", matching(is_header, HEADER_TAKES), [], "additional HTTP headers", many=True,
            secret=True),
    Setting("heartbeat", "url", matching(_url_or_none, _URL_TAKES), "",
            "URL of a check of healthchecks.io or a similar service, which reports when this server is away",
            secret=True),
    Setting("heartbeat", "every", number(15, 86_400), 60.0, "seconds between two requests"),
    Setting("home_assistant", "discovery", switch, False,
            "show all nodes and sensors in Home Assistant, through the broker of [mqtt]"),
    Setting("home_assistant", "controls", switch, False,
            "Home Assistant, and every client of the broker that may publish, can switch the sampling of nodes on and"
            " off"),
    Setting("home_assistant", "prefix", matching(_is_topic, "a topic such as homeassistant"), "homeassistant",
            "first part of the discovery topics, as in Home Assistant's MQTT settings"),
    Setting("home_assistant", "url", matching(_url_or_none, _URL_TAKES), "",
            "address of Home Assistant, which receives the hour statistics of data that arrived late"),
    Setting("home_assistant", "token", text, "", "long-lived access token of an administrator of Home Assistant"
            " (better: PIGEONPOST_HOME_ASSISTANT_TOKEN)", secret=True),
)  # fmt: skip
