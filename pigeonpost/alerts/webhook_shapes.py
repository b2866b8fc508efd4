"""Forms of the HTTP requests for each service that shows messages to people, and the meaning of its answers.

All functions are pure: they take a message or an answer, and return a request or what to do.

Sources for the limits:
ntfy: docs/publish.md, docs/config.md ("Rate limiting"); server/config.go (4,096 bytes);
Telegram: Bot API, sendMessage, ResponseParameters, and Bots FAQ ("My bot is hitting limits"). Its character counts are
UTF-16 code units, as in MessageEntity;
Slack: "Sending messages using incoming webhooks", "Formatting message text", "Rate limits", and chat.postMessage
(40,000 characters);
Discord: Webhook resource (2,000 characters), "Rate limits", "Allowed mentions";
Gotify: REST-API (createMessage), "Message extras"; gotify/android, "Message priorities".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.alerts.channel_settings import PLACEHOLDER
from pigeonpost.alerts.contract import Pace
from pigeonpost.core.http_client import USER_AGENT
from pigeonpost.core.redact import hide_these, secrets_in
from pigeonpost.core.strict_json import write_json
from pigeonpost.core.tolerant_json import read_tolerant_json

if TYPE_CHECKING:
    from pigeonpost.alerts.channel_settings import HttpChannel
    from pigeonpost.alerts.contract import AlertMessage

LONGEST_TITLE = 250  # characters
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line ends
_URL_LINE = re.compile(r"https?://[!-~]+").fullmatch
_UTF_8, _UTF_16 = ("utf-8", 1), ("utf-16-le", 2)  # encoding in which a limit is counted, and bytes per unit


class ShapedRequest(NamedTuple):
    """HTTP request for one message, sent by POST.

    Attributes:
        target: Path and query.
        headers: HTTP headers.
        body: The body.
    """

    target: str
    headers: Mapping[str, str]
    body: bytes


class Shape(NamedTuple):
    """Form of the messages of one service.

    Attributes:
        place: Name of the service for messages and logs.
        content: Function that returns the JSON body for a message and a channel.
        pace: Rate of messages; None without a limit.
        path: Function that returns path and query, if it is not that of the URL.
        headers: Function that returns the HTTP headers of this shape.
        keys: Settings that are wrong if the service answers with one of the statuses: (statuses, keys).
    """

    place: str
    content: Callable[[AlertMessage, HttpChannel], Any]
    pace: Pace | None
    path: Callable[[HttpChannel], str] = lambda channel: channel.url.target
    headers: Callable[[HttpChannel], Mapping[str, str]] = lambda channel: {}
    keys: Sequence[tuple[Sequence[int], str]] = ()


def make_request(message: AlertMessage, channel: HttpChannel) -> ShapedRequest:
    """Return the request that sends `message` on `channel`."""
    shape = SHAPES[channel.shape]
    body = write_json(shape.content(message, channel)).encode(errors="replace")  # a file name may not be UTF-8
    headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, "Idempotency-Key": message.id}
    headers |= shape.headers(channel)
    own = {name.lower() for name in channel.headers}
    kept = {name: value for name, value in headers.items() if name.lower() not in own}
    return ShapedRequest(shape.path(channel), {**kept, **channel.headers}, body)


def page_of(message: AlertMessage) -> str:
    """Return the address of the page about `message`, the last line of its text; empty if it has none."""
    last = message.text.rstrip().rpartition("\n")[2]
    return last if _URL_LINE(last) else ""


# ----------------------------------------------------------------------------------------------------------- texts


def clean(text: str) -> str:
    """Return `text` without control characters, except tabs and line ends, and without half surrogate pairs."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n")).encode("utf-8", "replace").decode().strip()


def cut(text: str, limit: int, counted: tuple[str, int], end: str = "") -> str:
    """Return `text`, or if it is too long its beginning, an ellipsis, and `end`.

    Args:
        text: The text.
        limit: Maximum length of the result.
        counted: Encoding in which the length is counted, and the bytes of one unit.
        end: Text that is kept at the end of a text that is cut, for example an address.
    """
    encoding, size = counted
    encoded = text.encode(encoding)
    if len(encoded) <= limit * size:
        return text
    tail = f"…\n{end}" if end else "…"
    room = limit * size - len(tail.encode(encoding))
    if room < 0:
        return cut(text, limit, counted)
    kept = encoded[:room].decode(encoding, "ignore")
    return kept.rstrip("\u200d\ufe0f").rstrip() + tail  # not in the middle of a composed emoji


def _title(message: AlertMessage) -> str:
    return cut(" ".join(clean(message.subject).split()), LONGEST_TITLE, _UTF_16)


def _body(message: AlertMessage, limit: int, counted: tuple[str, int], with_title: bool = True) -> str:
    """Return the text of a message, which begins with its subject if `with_title` is True."""
    text = clean(message.text)
    text = f"{_title(message)}\n\n{text}" if with_title else text or _title(message)
    return cut(text.strip(), limit, counted, page_of(message))


def _kind(message: AlertMessage) -> str:
    """Return the severity of an alert; "over" for its end, "report" or "test"."""
    return message.severity if message.kind == "alert" else message.kind


# -------------------------------------------------------------------------------------------------------- services


def _json(message: AlertMessage, channel: HttpChannel) -> Any:
    if channel.template is None:
        return {"subject": message.subject, "text": message.text, "facts": message.info}
    about = {**message.info, "severity": message.severity, "url": page_of(message)}
    about |= {"subject": clean(message.subject), "text": clean(message.text)}

    def value(found: re.Match[str]) -> str:
        content = about.get(found[1])
        return "" if content is None else str(content)

    return _filled(channel.template, lambda text: PLACEHOLDER.sub(value, text))


def _filled(value: Any, fill: Callable[[str], str]) -> Any:
    """Return a JSON value whose texts, but not the keys, are replaced by the result of `fill`."""
    if isinstance(value, dict):
        return {key: _filled(item, fill) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, fill) for item in value]
    return fill(value) if isinstance(value, str) else value


_TAGS = {
    "info": "information_source", "warning": "warning", "critical": "rotating_light", "over": "white_check_mark",
    "report": "bar_chart",
}  # fmt: skip


def _ntfy(message: AlertMessage, channel: HttpChannel) -> Any:
    kind, page = _kind(message), page_of(message)
    content = {
        "topic": channel.topic, "title": _title(message), "message": _body(message, 4096, _UTF_8, with_title=False),
        "priority": {"warning": 4, "critical": 5}.get(kind, 3),
    }  # fmt: skip
    if kind in _TAGS:
        content["tags"] = [_TAGS[kind]]
    return {**content, "click": page} if page else content


def _telegram(message: AlertMessage, channel: HttpChannel) -> Any:
    return {
        "chat_id": channel.chat, "text": _body(message, 4096, _UTF_16), "link_preview_options": {"is_disabled": True},
        "disable_notification": _kind(message) == "info",
    }  # fmt: skip


def _slack(message: AlertMessage, channel: HttpChannel) -> Any:
    def escaped(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    text = escaped(f"{_title(message)}\n\n{clean(message.text)}".strip())
    # An escape that the cut has divided is removed.
    return {"text": re.sub("&[a-z]{0,3}…", "…", cut(text, 40_000, _UTF_16, escaped(page_of(message))))}


def _discord(message: AlertMessage, channel: HttpChannel) -> Any:
    return {"content": _body(message, 2000, _UTF_16), "allowed_mentions": {"parse": []}}


def _gotify(message: AlertMessage, channel: HttpChannel) -> Any:
    page = page_of(message)
    content = {
        "title": _title(message), "message": _body(message, 40_000, _UTF_16, with_title=False),
        "priority": {"warning": 7, "critical": 10}.get(_kind(message), 5),
    }  # fmt: skip
    extras = {"client::notification": {"click": {"url": page}}}
    return {**content, "extras": extras} if page else content


def _below(channel: HttpChannel, end: str) -> str:
    """Return the path of a channel's URL with `end`, and its query."""
    path, mark, query = channel.url.target.partition("?")
    return f"{path.rstrip('/').removesuffix(end)}{end}{mark}{query}"


def _bearer(channel: HttpChannel) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {channel.token}"} if channel.token else {}


SHAPES: Mapping[str, Shape] = {
    "json": Shape("webhook", _json, None, headers=_bearer, keys=(
        ((401, 403), "token or headers, or the user and password in url"), ((404, 410), "url"),
    )),
    # A bucket of 60 messages, which is filled with one message every 5 s; other programs may use the same bucket.
    "ntfy": Shape("ntfy", _ntfy, Pace(30, 5.0), headers=_bearer, keys=(
        ((401, 403), "token, or the user and password in url, and the permission to write to topic"), ((404,), "url"),
    )),
    # At most 20 messages a minute in a group, and one a second in a chat.
    "telegram": Shape(
        "Telegram", _telegram, Pace(1, 3.0), lambda channel: _below(channel, f"/bot{channel.token}/sendMessage"),
        keys=(((401, 404), "token"), ((403,), "chat: the bot must be a member of it and may not be blocked")),
    ),
    "slack": Shape("Slack", _slack, Pace(1, 1.0), keys=(((400, 403, 404, 410), "url: create a new incoming webhook"),)),
    # Five requests in 2 s, and 30 a minute for each webhook.
    "discord": Shape("Discord", _discord, Pace(5, 2.0), keys=(((401, 403, 404), "url: create a new webhook"),)),
    "gotify": Shape(
        "Gotify", _gotify, None, lambda channel: _below(channel, "/message"),
        lambda channel: {"X-Gotify-Key": channel.token},
        keys=(((401, 403), "token: it must be that of an application"), ((404,), "url")),
    ),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------- answers


class Reply(NamedTuple):
    """Answer of a service that did not accept a message.

    Attributes:
        words: Its description in one line, without the secrets of the channel; empty if there is none.
        remedy: What the user must change, with the name of the key; empty if that is not known.
        pause_s: Seconds after which it accepts messages again; None if it has not said so in the body.
    """

    words: str = ""
    remedy: str = ""
    pause_s: float | None = None


def read_reply(channel: HttpChannel, status: int, body: bytes) -> Reply:
    """Return what the answer with the HTTP `status` and the `body` means for `channel`."""
    keys = next((keys for statuses, keys in SHAPES[channel.shape].keys if status in statuses), "")
    said = _object(body)
    parameters = said.get("parameters") if channel.shape == "telegram" else said
    parameters = parameters if isinstance(parameters, dict) else {}
    words = next((said[key] for key in _WORDS if isinstance(said.get(key), str)), "")
    if not said and channel.shape == "slack":
        words = body.decode("utf-8", "replace")
    if channel.shape == "telegram" and status == 400:
        moved = parameters.get("migrate_to_chat_id")
        if isinstance(moved, int) and -(1 << 63) <= moved < 0:
            keys = f'chat = "{moved}"'
        elif "chat" in words:
            keys = "chat: write to the bot, or add it to the group, before it can send messages there"
    verb = "set" if keys.startswith("chat =") else "check"
    remedy = f"{verb} {channel.where} {keys}" if keys else ""
    pause_s = parameters.get("retry_after")
    is_number = isinstance(pause_s, int | float) and not isinstance(pause_s, bool) and pause_s >= 0  # not NaN
    secrets = {"a": channel.url.authorization, "token": channel.token, "topic": channel.topic, **channel.headers}
    words = hide_these(_one_line(words), secrets_in(channel.url.target, secrets))[:200]
    return Reply(words, remedy, pause_s if is_number else None)


_WORDS = ("description", "errorDescription", "message", "error")  # Telegram, Gotify, Discord and Mattermost, ntfy


def _object(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object in `body`, or an empty one."""
    try:
        found = read_tolerant_json(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _one_line(text: str) -> str:
    shown = "".join(letter if letter.isprintable() or letter.isspace() else "\ufffd" for letter in text)
    return " ".join(shown.split())
