"""All settings of the node and of the server: names, accepted values, defaults.

`node.default.toml` and `server.default.toml` are the same tables as documentation; tests/test_settings.py proves that
they agree. The keys of a [[sensor]] table are in the module of its kind. A parser raises ValueError with what it takes,
from which core.config makes a SettingsError.
"""

from __future__ import annotations

import logging
import os
import re

from pigeonpost.core import config
from pigeonpost.core.addresses import is_group
from pigeonpost.core.config import Setting, Settings, address, matching, number, one_of, switch, text
from pigeonpost.core.light_typing import TYPE_CHECKING
from protocol import DEFAULT_PORT, NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from types import SimpleNamespace
    from typing import Any

log = logging.getLogger(__name__)

WEB_PORT = 8080
SHORTEST_TOKEN = 16  # characters
NODE_FILE, SERVER_FILE = "node.toml", "server.toml"
NODE_ARRAYS = ("sensor",)
SERVER_ARRAYS = (
    "node",
    "location",
    "limits",
    "alert",
)  # arrays of tables in server.toml; the keys of each are defined where they are used


def _name_or_none(name: str) -> object:
    return not name or NODE_NAME(name)


def _token_or_none(token: str) -> bool:
    return not token or len(token) >= SHORTEST_TOKEN


def _node_address(value: Any) -> tuple[str, tuple[str, int]]:
    """`NAME@HOST:PORT` or `HOST:PORT`, the port 5003 where it is left out."""
    name, at, place = str(value).rpartition("@")
    if at and not name:
        raise ValueError("takes NAME@HOST:PORT with a name before the @, or HOST:PORT without @")
    if at and not NODE_NAME(name):
        raise ValueError(f"takes NAME@HOST:PORT, the name {NODE_NAME_TAKES}")
    try:
        return name, address(DEFAULT_PORT)(place)
    except ValueError as error:
        raise ValueError(f"{error} behind {name}@" if at else str(error)) from None


def path_prefix(value: Any) -> str:
    """The path below which a proxy has the page, as `/sensors`; empty for none. Raises ValueError for any other."""
    plain = value.removesuffix("/") if isinstance(value, str) else "-"
    if plain and (len(plain) > _PREFIX_LETTERS or not _WEB_PATH(plain)):
        raise ValueError(f"takes a path like /sensors, of letters, digits, and . _ ~ -, {_PREFIX_LETTERS} at most")
    return plain


def _network(value: Any) -> str:
    """An address, or a network of them as `172.16.0.0/12`."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(value if isinstance(value, str) else "", strict=False))
    except ValueError:
        raise ValueError("takes an address, as 192.168.1.5, or a network of addresses, as 172.16.0.0/12") from None


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


_TIME_OF_DAY = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]").fullmatch
_HEX_64 = re.compile(r"[0-9a-f]{64}").fullmatch
_PREFIX_LETTERS = 200
# No `//`, which would lead to another host, no `.` and `..`, and nothing that is escaped in HTML or in a cookie's Path.
_WEB_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+").fullmatch
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


def _log() -> tuple[Setting, ...]:
    """[log], which is the same on both."""
    return (
        Setting("log", "level", one_of("debug", "info", "warning", "error"), "info",
                "the least important lines that are logged: debug, info, warning or error", "--log-level", "LEVEL"),
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
    Setting("node", "token", matching(_token_or_none, f"{SHORTEST_TOKEN} characters or more"), "",
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
    *_log(),
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
    Setting("web", "prefix", path_prefix, "", "the path below which a proxy has the page, as /sensors"),
    Setting("web", "proxies", _network, [], "addresses or networks of proxies on other machines that are believed"
            " for whom they ask; one on this machine is", many=True),
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
    Setting("backup", "to", text, "", "a folder on another disk that gets a checked backup each day; without one none"),
    Setting("backup", "at", matching(_TIME_OF_DAY, 'a time of day like "03:00"'), "03:00",
            "when, by this machine's clock; one that was missed is made later"),
    Setting("backup", "keep", number(1, 1000, whole=True), 7, "so many are kept, the newest"),
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
    *_log(),
)  # fmt: skip


def load_node(
    arguments: argparse.Namespace | SimpleNamespace,
    environment: Mapping[str, str] | None = None,
    folders: Sequence[str] | None = None,
) -> Settings:
    """Return the node's settings; arguments as config.load. Raises SettingsError."""
    elsewhere = dict.fromkeys({*SERVER_ARRAYS, *_tables_of(SERVER)} - _tables_of(NODE), SERVER_FILE)
    return config.load(NODE, arguments, NODE_FILE, NODE_ARRAYS, environment, folders, elsewhere)


def load_server(
    arguments: argparse.Namespace | SimpleNamespace,
    environment: Mapping[str, str] | None = None,
    folders: Sequence[str] | None = None,
) -> Settings:
    """Return the server's settings, for the server and control.py; arguments as config.load. Raises SettingsError."""
    elsewhere = dict.fromkeys({*NODE_ARRAYS, *_tables_of(NODE)} - _tables_of(SERVER), NODE_FILE)
    return config.load(SERVER, arguments, SERVER_FILE, SERVER_ARRAYS, environment, folders, elsewhere)


def _tables_of(settings: Sequence[Setting]) -> set[str]:
    return {setting.table for setting in settings}


_VARIABLES = "PIGEONPOST_"  # the beginning of all names
# Of variables that are no settings: those of tests, and of `control.py send-files`.
_OTHER_VARIABLES = ("PIGEONPOST_TEST_", "PIGEONPOST_PI_ID")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence about each variable PIGEONPOST_* that neither program knows: probably misspelt."""
    files = [config.variable_of_file(NODE_FILE), config.variable_of_file(SERVER_FILE)]
    known = [name.removeprefix(_VARIABLES) for name in (*(setting.variable for setting in (*NODE, *SERVER)), *files)]
    found = []
    for name in sorted(environment):
        key = name.removeprefix(_VARIABLES)
        if name.startswith(_VARIABLES) and key not in known and not name.startswith(_OTHER_VARIABLES):
            import difflib

            near = difflib.get_close_matches(key, known, 1, 0.7)
            hint = f"did you mean {_VARIABLES}{near[0]}?" if near else "docs/settings.md has all of them"
            found.append(f"unknown variable {name!r:.100} has no effect; {hint}")
    return found


def warn_of_variables() -> None:
    """Log a warning of each variable PIGEONPOST_* that has no effect."""
    for fault in unknown_variables(os.environ):
        log.warning("%s", fault)
