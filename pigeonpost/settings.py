"""All settings of the node and of the server: names, accepted values, defaults.

`node.default.toml` and `server.default.toml` are the same tables as documentation; tests/test_settings.py proves that
they agree. The keys of a [[sensor]] table are in the module of its kind. A parser raises ValueError with what it takes,
from which core.config makes a SettingsError.
"""

from __future__ import annotations

import re

from pigeonpost.core.addresses import is_group
from pigeonpost.core.config import Setting, address, matching, number, one_of, switch, text
from pigeonpost.core.light_typing import TYPE_CHECKING
from protocol import DEFAULT_PORT, NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME

if TYPE_CHECKING:
    from typing import Any

WEB_PORT = 8080
SERVER_ARRAYS = (
    "node",
    "location",
    "limits",
    "alert",
)  # arrays of tables in server.toml; the keys of each are defined where they are used


def _name_or_none(name: str) -> object:
    return not name or NODE_NAME(name)


def _token_or_none(token: str) -> bool:
    return not token or len(token) >= 16


def _node_address(value: Any) -> tuple[str, tuple[str, int]]:
    """`NAME@HOST:PORT` or `HOST:PORT`, the port 5003 where it is left out."""
    name, at, place = str(value).rpartition("@")
    if at and not NODE_NAME(name):
        raise ValueError(f"takes NAME@HOST:PORT, the name {NODE_NAME_TAKES}")
    return name, address(DEFAULT_PORT)(place)


def _ending(text: str) -> object:
    if text in (".sha256", ".new"):  # the server's own files have these
        return False
    return (
        text.startswith(".") and text[1:].isascii() and text[1:].isalnum() and text == text.lower() and len(text) < 10
    )


def _group(value: Any) -> tuple[str, int]:
    found: tuple[str, int] = address()(value)
    if not is_group(found):
        raise ValueError("takes a multicast group, as 226.0.0.221:7001")
    return found


def _codifier_or_none(text: str) -> object:
    return not text or _CODIFIER(text)


def _named_codifier(value: Any) -> tuple[str, str]:
    """`NAME=CODIFIER`."""
    name, _, codifier = str(value).partition("=")
    if not SENSOR_NAME(name) or not _CODIFIER(codifier):
        raise ValueError('takes NAME=CODIFIER, as "temperature=C4"')
    return name, codifier


def fingerprint(value: Any) -> str:
    """A certificate's SHA-256 as 64 small hex digits; also with the colons that openssl writes."""
    plain = value.replace(":", "").lower() if isinstance(value, str) else "-"
    if plain and not _HEX_64(plain):
        raise ValueError("takes a certificate's SHA-256 fingerprint, 64 hex digits")
    return plain


def _sync(value: Any) -> float:
    if value == "each":
        return 0.0
    try:
        return float(number(0, 3600)(value))
    except ValueError:
        raise ValueError('takes "each", or seconds up to 3600') from None


_HEX_64 = re.compile(r"[0-9a-f]{64}").fullmatch
_WEB_ADDRESS = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[!-~]*)?|").fullmatch
_CODIFIER = re.compile(r"[!-~]{2}").fullmatch  # of the multicast bus, as packets.codifier


def _bus(*more: Setting) -> tuple[Setting, ...]:
    """[bus], which is nearly the same on both."""
    return (
        Setting("bus", "enabled", switch, False, "whether the multicast bus of multi-sensor is spoken here"),
        Setting("bus", "control", _group, "226.0.0.221:7001", "its control channel"),
        Setting("bus", "data", _group, "226.0.0.222:7002", "its data channel"),
        Setting("bus", "interface", text, "", "this machine's address on that network, or the interface's name"
                " (as the routes lead)"),
        Setting("bus", "ttl", number(0, 255, whole=True), 2, "1: this network only; each router takes one"),
        Setting("bus", "loop", switch, True, "whether programs on this machine hear it too"),
        Setting("bus", "alive", number(0.1, 86_400), 60.0, "seconds between two I (KeepAliveInterval)"),
        Setting("bus", "commands", switch, False, "whether S, H, C, A and E from the bus are obeyed"),
        Setting("bus", "configuration", text, "", "the old JSON configuration: a file or URL ($JPH_CONFIG)"),
        *more,
    )  # fmt: skip


def _announce(*more: Setting) -> tuple[Setting, ...]:
    return (
        Setting("announce", "group", _group, "239.255.50.3:5003", "the multicast group of the announcements"),
        *more,
    )


def _mqtt() -> tuple[Setting, ...]:
    """[mqtt], which is the same on both."""
    return (
        Setting("mqtt", "host", text, "", "the broker's name or address; without one nothing goes over MQTT"),
        Setting("mqtt", "port", number(0, 65_535, whole=True), 0, "its port; 0: 1883, with TLS 8883"),
        Setting("mqtt", "user", text, "", "a user of the broker"),
        Setting("mqtt", "password", text, "", "and the password (better: PIGEONPOST_MQTT_PASSWORD)", secret=True),
        Setting("mqtt", "tls", switch, False, "whether the connection is encrypted, and the broker has to prove"
                " who it is"),
        Setting("mqtt", "ca", text, "", "the file of the authority that signed its certificate; without it this"
                " machine's own list"),
        Setting("mqtt", "signed", switch, True, "whether nodes that have a token sign what they send, and servers"
                " what they answer them"),
    )  # fmt: skip


_mailbox = re.compile(r"[^\s@,<>\x00-\x1f]{1,64}@[^\s@,<>\x00-\x1f]{1,250}").fullmatch
_URL = re.compile(r"https?://[!-~]+").fullmatch

NODE = (
    Setting("node", "name", matching(_name_or_none, NODE_NAME_TAKES), "",
            "node name (this machine's name)", "--name", "NAME"),
    Setting("node", "listen", address(DEFAULT_PORT), f"0.0.0.0:{DEFAULT_PORT}",
            "link address; port 0 picks one and prints it", "--listen", "HOST:PORT"),
    Setting("node", "data", text, "", "where outbox.ring lives ($STATE_DIRECTORY or ./data)", "--data", "DIR"),
    Setting("node", "every", number(0.01, 86_400), 10.0, "sampling interval (10)", "--every", "SECONDS"),
    Setting("node", "simulate", switch, False, "a simulated MCP3008 instead of the chip", "--simulate"),
    Setting("node", "token", matching(_token_or_none, "16 characters or more"), "",
            "the node's token (better: PIGEONPOST_NODE_TOKEN, or the file)", "--token", "TOKEN", secret=True),
    Setting("link", "tls", switch, False, "whether other machines are answered by TLS only"),
    Setting("link", "certificate", text, "", "PEM file of its certificate, with the key or without (it makes its own)"),
    Setting("link", "key", text, "", "PEM file of the key, where that is not in the same file"),
    Setting("push", "to", matching(_WEB_ADDRESS, "http://HOST:PORT or https://HOST:PORT"), "",
            "a server's address, to which samples are brought: for a node that no server can reach"),
    Setting("push", "certificate", fingerprint, "",
            "SHA-256 fingerprint of its certificate; without one, who signed it must be known to this system"),
    Setting("outbox", "slots", number(64, 1 << 24, whole=True), 65_536,
            "samples held, used when the file is made"),
    Setting("outbox", "sync", _sync, "each",
            "each: every sample at once; or seconds that samples may gather, which a crash then costs"),
    *_bus(
        Setting("bus", "codifiers", _named_codifier, [], "channels that are sent, as \"temperature=C4\"; the first"
                " codifier is the node's own", many=True),
        Setting("bus", "controls", _named_codifier, [], "values that A and E may change, as \"target=FJ\"", many=True),
    ),
    *_announce(
        Setting("announce", "on", switch, True, "whether a node that has a token tells the local network where it is"),
        Setting("announce", "every", number(1, 3600), 30.0, "seconds between two announcements"),
    ),
    *_mqtt(),
)  # fmt: skip


SERVER = (
    Setting("server", "name", matching(_name_or_none, NODE_NAME_TAKES), "",
            "server name (this machine's name)", "--name", "NAME"),
    Setting("server", "nodes", _node_address, [], "a node to collect from; may be given again", "--node",
            "NAME@HOST:PORT", many=True),
    Setting("server", "data", text, "", "where database and logs live ($STATE_DIRECTORY or ./data)",
            "--data", "DIR"),
    Setting("web", "listen", address(WEB_PORT), [f"0.0.0.0:{WEB_PORT}"],
            f"page address (0.0.0.0:{WEB_PORT}); may be given again", "--web", "HOST:PORT", many=True),
    Setting("web", "certificate", text, "", "PEM file: these addresses then speak TLS (https://)"),
    Setting("web", "key", text, "", "PEM file of its key, where that is not in the same file"),
    Setting("web", "plain", address(WEB_PORT), [], "more addresses, without TLS: for old clients", many=True),
    Setting("web", "names", text, [], "names by which browsers reach the page, beside this machine's own",
            many=True),
    Setting("pimonitor", "api_key", text, "",
            "key of the devices that post to /; without one they are not answered", secret=True),
    Setting("pimonitor", "unit", one_of("F", "C"), "F",
            "of the temperatures they send, where [[location]] says nothing"),
    Setting("pimonitor", "zone", text, "", "their time zone, where [[location]] says nothing (this machine's)"),
    Setting("drop", "largest", number(1, 1 << 40, whole=True), 256 << 20, "bytes of a file that a Pi drops, at most"),
    Setting("drop", "types", matching(_ending, 'an ending like ".csv", in small letters'), [".txt", ".json", ".csv"],
            "endings of the names of files that are taken", many=True),
    Setting("store", "postgres", text, "",
            "address of a PostgreSQL that keeps the samples in place of SQLite (docs/scale.md)", secret=True),
    Setting("store", "commit", number(0.05, 600), 1.0, "seconds between commits; 60 spares an SD card"),
    Setting("store", "buffer", number(1000, 1_000_000, whole=True), 20_000,
            "uncommitted samples at most; then nodes have to wait"),
    Setting("store", "keep", number(0, 36_500), 0.0,
            "days that samples are kept, 0 for ever; their statistics are kept for ever, the CSV logs too"),
    Setting("store", "channels_per_sample", number(1, 10_000, whole=True), 256,
            "channels of a sample at most; the values of further ones are not stored"),
    Setting("store", "channels_per_node", number(1, 10_000, whole=True), 1024,
            "channels of a node in its life at most; the values of further ones are not stored"),
    Setting("report", "every", number(0, 8784), 0.0, "hours between two reports of how things went; 0: none"),
    Setting("mail", "to", matching(_mailbox, "an address like you@example.org"), [],
            "who is sent alerts and reports", many=True),
    Setting("mail", "from", matching(lambda one: not one or _mailbox(one), "an address like pi@example.org"), "",
            "whom they come from (the first of `to`)"),
    Setting("mail", "host", text, "localhost", "the mail server that takes them"),
    Setting("mail", "port", number(0, 65_535, whole=True), 0,
            "its port; 0: 587, with tls = \"tls\" 465, with \"none\" 25"),
    Setting("mail", "tls", one_of("starttls", "tls", "none"), "starttls", "how the connection is encrypted"),
    Setting("mail", "user", text, "", "a user of the mail server"),
    Setting("mail", "password", text, "", "and the password (better: PIGEONPOST_MAIL_PASSWORD)", secret=True),
    Setting("webhook", "url", matching(lambda url: not url or _URL(url), "an address that begins with https:// or http://"),
            "", "a web address that is sent alerts and reports as JSON", secret=True),
    Setting("redis", "url", text, "",
            "address of a Redis that is told the last state of every sensor (docs/scale.md)", secret=True),
    Setting("redis", "prefix", text, "pigeonpost:", "what its keys and channels begin with"),
    *_bus(
        Setting("bus", "codifier", matching(_codifier_or_none, "two characters, as R1"), "",
                "this server's own on the bus; without one it only listens"),
    ),
    *_announce(
        Setting("announce", "on", switch, True, "whether nodes that announce themselves are collected from, if they"
                " have a token here"),
    ),
    *_mqtt(),
)  # fmt: skip
