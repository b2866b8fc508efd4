"""Settings of the channels that send to a web address: the table [webhook], and one table [[channel]] per further one.

Errors: SettingsError, which never contains a URL, a token, a topic or a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.alerts.recipients import (
    EVERYTHING,
    FILTER_OPTIONS,
    PERIODS,
    REPORT_TIMES,
    Filter,
    ReportPlan,
    make_filter,
    own_plan,
)
from pigeonpost.core.config import Option, matching, one_of, read_options, text
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.http_client import Url, split_url
from pigeonpost.core.strict_json import read_json
from pigeonpost.integration_settings import HEADER_TAKES, SHAPES, is_header

if TYPE_CHECKING:
    from pigeonpost.core.config import Settings

PLACEHOLDERS = ("subject", "text", "severity", "node", "sensor", "value", "url", "time")
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")  # in a template
# The keys that each shape needs, and those that it can use.
_NEEDED: Mapping[str, Sequence[str]] = {"telegram": ("token", "chat"), "gotify": ("token",)}
_USABLE: Mapping[str, Sequence[str]] = {"json": ("token", "template"), "ntfy": ("token", "topic"), **_NEEDED}
_is_topic = re.compile(r"[-_A-Za-z0-9]{1,64}").fullmatch  # ntfy: server/server.go, topicRegex
_is_token = re.compile(r"[!-~]+").fullmatch
_is_bot_token = re.compile(r"[0-9]+:[A-Za-z0-9_-]+").fullmatch
_is_chat = re.compile(r"-?[0-9]{1,32}|@[A-Za-z0-9_]{4,64}").fullmatch
_is_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}").fullmatch
_FRAMING = ("host", "content-length", "transfer-encoding", "connection")  # headers that the HTTP client writes


class HttpChannel(NamedTuple):
    """Settings of one channel that sends to a web address.

    Attributes:
        key: Key of the channel in the queue: "webhook", or "channel NAME".
        where: Its table for messages: `[webhook]`, or `[[channel]] NAME`.
        url: The address.
        shape: One of SHAPES.
        token: Token of the service, or an empty string.
        topic: Topic of ntfy, or an empty string if `url` contains it.
        chat: Id of the chat of Telegram, or an empty string.
        template: JSON value in which placeholders are replaced, instead of the body of the shape json; None for none.
        headers: Additional HTTP headers.
        chosen: Alerts that it receives; also the nodes and sensors of its reports.
        plan: Its own report; None if it receives none, or that of [report] together with other channels.
    """

    key: str
    where: str
    url: Url
    shape: str = "json"
    token: str = ""
    topic: str = ""
    chat: str = ""
    template: Any = None
    headers: Mapping[str, str] = {}
    chosen: Filter = EVERYTHING
    plan: ReportPlan | None = None


def _report(value: Any) -> str | None:
    """Parse `report`: True for the report of [report] (None), False for none, or a period."""
    if value is True:
        return None
    if value is False or value == "none":
        return "none"
    if value not in PERIODS:
        raise ValueError(f"takes true, false, {', '.join(map(repr, PERIODS[:-1]))} or {PERIODS[-1]!r}")
    return str(value)


def _header_list(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) and is_header(one) for one in value):
        raise ValueError(f"takes a list of HTTP headers: {HEADER_TAKES}")
    return value


OPTIONS = (
    Option("name", matching(_is_name, "a name of up to 32 letters, digits, and . _ -"), None, "name of the channel"),
    Option("url", text, "", "URL that receives the messages"),
    Option("shape", one_of(*SHAPES), "json", "form of the messages"),
    Option("token", text, "", "token of the service"),
    Option("topic", text, "", "topic of ntfy"),
    Option("chat", text, "", "id of the chat of Telegram"),
    Option("template", text, "", "JSON text that replaces the body of the shape json"),
    Option("headers", _header_list, [], "additional HTTP headers"),
    *FILTER_OPTIONS,
    Option("report", _report, None, "true, false, or the period of its own report"),
    *REPORT_TIMES,
)


def read_webhook(settings: Settings) -> HttpChannel | None:
    """Return the channel of the table [webhook] of `settings`, or None if none of its keys is set.

    Raises:
        SettingsError: A key is missing or invalid.
    """
    values = {key: settings["webhook", key] for key in ("url", "token", "topic", "chat", "template", "headers")}
    given = next((key for key, value in values.items() if value), None)
    if given is None:
        return None
    where = f"{settings.origin('webhook', given)}: [webhook]"
    return _checked("webhook", "[webhook]", where, {**values, "shape": settings["webhook", "shape"]})


def read_channels(settings: Settings) -> list[HttpChannel]:
    """Return the channels of the tables [[channel]] of `settings`.

    Raises:
        SettingsError: A key is missing, unknown or invalid; or there are two channels with the same name.
    """
    found: dict[str, HttpChannel] = {}
    for count, table in enumerate(settings.tables.get("channel", ()), 1):
        where = f"{settings.file}: [[channel]] {count}"
        values = read_options(table, OPTIONS, where)
        name = values["name"]
        if name is None:
            raise SettingsError(f'{where}: name is missing: it takes a name such as "phone"')
        if name in (*found, "webhook", "mail"):
            raise SettingsError(f"{where}: name: there is another channel {name!r}; use another name")
        channel = _checked(f"channel {name}", f"[[channel]] {name}", f"{where}:", values)
        chosen = make_filter(values)
        plan = own_plan(settings, values, channel.key, chosen, where)
        found[name] = channel._replace(chosen=chosen, plan=plan)
    return list(found.values())


def _checked(key: str, shown: str, where: str, values: Mapping[str, Any]) -> HttpChannel:
    """Return a channel with checked `values`. `shown` is its table for messages, and `where` that for errors here."""
    shape = values["shape"]
    if not values["url"]:
        raise SettingsError(f"{where} url is missing: it takes the URL that receives the messages")
    try:
        url = split_url(values["url"])
    except ValueError as error:
        raise SettingsError(f"{where} url {error}") from None
    for name in _NEEDED.get(shape, ()):
        if not values[name]:
            raise SettingsError(f'{where} {name} is missing: shape = "{shape}" needs it (docs/alerts.md)')
    for name in ("token", "topic", "chat", "template"):
        if values[name] and name not in _USABLE.get(shape, ()):
            raise SettingsError(f'{where} {name} is not used with shape = "{shape}"; remove it, or change shape')
    for name, is_valid, takes in (
        ("token", _is_token, "the token of the service, without spaces"),
        ("token", _is_bot_token if shape == "telegram" else _is_token, "the token of a bot: digits, a colon, letters"),
        ("topic", _is_topic, "a topic of up to 64 letters, digits, - and _"),
        ("chat", _is_chat, 'the number of a chat such as "-1001234567890", or a name such as "@channel"'),
    ):
        if values[name] and not is_valid(values[name]):
            raise SettingsError(f"{where} {name} takes {takes}")
    topic = values["topic"]
    if shape == "ntfy":
        url, topic = _ntfy_address(url, topic, where)
    template = _template(values["template"], where) if values["template"] else None
    headers = _headers(values["headers"], where)
    return HttpChannel(key, shown, url, shape, values["token"], topic, values["chat"], template, headers)


def _ntfy_address(url: Url, topic: str, where: str) -> tuple[Url, str]:
    """Return the address to which JSON is sent, the root of the server, and the topic: `topic`, or the path of `url`.

    Source: ntfy, docs/publish.md, "Publish as JSON".
    """
    path, mark, query = url.target.partition("?")
    named = path.strip("/")
    if topic and named not in ("", topic):
        raise SettingsError(f"{where} url: leave out the path, because topic is set")
    if not _is_topic(topic or named):
        raise SettingsError(f"{where} topic is missing: set it, or write it in url as in https://ntfy.sh/TOPIC")
    return url._replace(target=f"/{mark}{query}"), topic or named


def _template(written: str, where: str) -> Any:
    """Return the JSON value of a template."""
    try:
        value = read_json(written)
    except ValueError as error:
        raise SettingsError(f"{where} template takes a JSON text: {error}") from None
    unknown = [name for name in dict.fromkeys(PLACEHOLDER.findall(written)) if name not in PLACEHOLDERS]
    if unknown:
        shown, known = (", ".join(f"{{{name}}}" for name in names) for names in (unknown, PLACEHOLDERS))
        raise SettingsError(f"{where} template: unknown placeholder {shown}; known are {known}")
    return value


def _headers(lines: Sequence[str], where: str) -> dict[str, str]:
    """Return HTTP headers that are written as `Name: value`."""
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() in _FRAMING:
            raise SettingsError(f"{where} headers: the header {name} cannot be set")
        found[name] = value.strip()
    return found
