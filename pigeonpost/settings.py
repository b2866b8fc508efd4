"""Definitions of all settings of the node and of the server: names, accepted values and defaults.

`node.default.toml` and `server.default.toml` document the same tables; tests/test_settings.py checks that they agree.
The keys of a [[sensor]] table are defined in the module of its kind.

A parser raises ValueError with a description of the values that it accepts ("takes ..."). core.config turns that into a
SettingsError with the file, the line, the table and the key.
"""

from __future__ import annotations

import logging
import os
import re

from pigeonpost.core import config
from pigeonpost.core.addresses import is_group
from pigeonpost.core.config import Setting, Settings, address, matching, number, one_of, switch, text
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.integration_settings import INTEGRATION_ARRAYS, INTEGRATIONS, is_url
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
    "recipient",
    *INTEGRATION_ARRAYS,
)  # arrays of tables in server.toml; their keys are defined in the modules that use them


def _name_or_none(name: str) -> object:
    return not name or NODE_NAME(name)


def _token_or_none(token: str) -> bool:
    return not token or len(token) >= SHORTEST_TOKEN


def _node_address(value: Any) -> tuple[str, tuple[str, int]]:
    """Parse `NAME@HOST:PORT` or `HOST:PORT`. The port can be omitted; it is then 5003."""
    name, at, host_port = str(value).rpartition("@")
    if at and not name:
        raise ValueError("takes NAME@HOST:PORT with a name before the @, or HOST:PORT without @")
    if at and not NODE_NAME(name):
        raise ValueError(f"takes NAME@HOST:PORT, where NAME is {NODE_NAME_TAKES}")
    try:
        return name, address(DEFAULT_PORT)(host_port)
    except ValueError as error:
        raise ValueError(f"{error} after {name}@" if at else str(error)) from None


def path_prefix(value: Any) -> str:
    """Return the URL path in `value`, such as `/sensors`, without a slash at its end. An empty path is allowed.

    Raises:
        ValueError: `value` is not a path, or contains characters that are not allowed.
    """
    plain = value.removesuffix("/") if isinstance(value, str) else "-"
    if plain and (len(plain) > _PREFIX_LETTERS or not _WEB_PATH(plain)):
        raise ValueError(f"takes a path such as /sensors, of at most {_PREFIX_LETTERS} letters, digits, and . _ ~ -")
    return plain


def _network(value: Any) -> str:
    """Parse an IP address, or a network such as `172.16.0.0/12`."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(value if isinstance(value, str) else "", strict=False))
    except ValueError:
        raise ValueError("takes an address such as 192.168.1.5, or a network such as 172.16.0.0/12") from None


def _ending(text: str) -> object:
    if text in (".sha256", ".new"):  # reserved for files that the server itself creates
        return False
    return (
        text.startswith(".") and text[1:].isascii() and text[1:].isalnum() and text == text.lower() and len(text) < 10
    )


def _group(value: Any) -> tuple[str, int]:
    found: tuple[str, int] = address()(value)
    if not is_group(found):
        raise ValueError("takes a multicast group, such as 226.0.0.221:7001")
    return found


def _codifier_or_none(text: str) -> object:
    return not text or _CODIFIER(text)


def _named_codifier(value: Any) -> tuple[str, str]:
    """Parse `NAME=CODIFIER`."""
    name, _, codifier = str(value).partition("=")
    if not SENSOR_NAME(name) or not _CODIFIER(codifier):
        raise ValueError('takes NAME=CODIFIER, such as "temperature=C4"')
    return name, codifier


def fingerprint(value: Any) -> str:
    """Return the SHA-256 fingerprint of a certificate in `value` as 64 lower-case hex digits, or an empty string.

    Upper-case digits, and colons between them as openssl writes them, are accepted.

    Raises:
        ValueError: `value` is neither empty nor a fingerprint.
    """
    plain = value.replace(":", "").lower() if isinstance(value, str) else "-"
    if plain and not _HEX_64(plain):
        raise ValueError("takes the SHA-256 fingerprint of a certificate, 64 hex digits")
    return plain


def _sync(value: Any) -> float:
    if value == "each":
        return 0.0
    try:
        return float(number(0, 3600)(value))
    except ValueError:
        raise ValueError('takes "each", or a number of seconds up to 3600') from None


def quiet_hours(value: Any) -> str:
    """Return the quiet hours in `value`, such as `22:00-07:00`, or an empty text for none.

    Raises:
        ValueError: `value` has another form.
    """
    if value != "" and not (isinstance(value, str) and _QUIET(value) and value[:5] != value[6:]):
        raise ValueError('takes two different times of day such as "22:00-07:00", or "" for no quiet hours')
    return str(value)


_QUIET = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]-(?:[01][0-9]|2[0-3]):[0-5][0-9]").fullmatch


def report_day(value: Any) -> str:
    """Return the day of a report in `value`: the name of a weekday in lower case, or a number from 1 to 31, as text.

    An empty text is allowed.

    Raises:
        ValueError: `value` is neither.
    """
    day = str(value).lower() if isinstance(value, str | int) and not isinstance(value, bool) else "-"
    if not _DAY(day):
        raise ValueError(f"takes the {DAY_TAKES}")
    return day


DAY_TAKES = 'name of a weekday such as "monday", or a number from 1 to 31'
_DAY = re.compile(r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|[1-9]|[12][0-9]|3[01]|").fullmatch
TIME_OF_DAY = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]").fullmatch
_HEX_64 = re.compile(r"[0-9a-f]{64}").fullmatch
_PREFIX_LETTERS = 200
# Not allowed: `//`, because a URL that begins with it leads to another host; `.` and `..` as parts; and all characters
# that would have to be escaped in HTML or in the Path attribute of a cookie.
_WEB_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+").fullmatch
_WEB_ADDRESS = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[!-~]*)?|").fullmatch
_CODIFIER = re.compile(r"[!-~]{2}").fullmatch  # codifier of the multicast bus, with the same rule as packets.codifier


def _bus(*more: Setting) -> tuple[Setting, ...]:
    """Return the settings of [bus]: those of both programs, followed by `more`, the settings of one program only."""
    return (
        Setting("bus", "enabled", switch, False, "take part in the multicast bus of the older multi-sensor system"),
        Setting("bus", "control", _group, "226.0.0.221:7001", "multicast group of the control channel"),
        Setting("bus", "data", _group, "226.0.0.222:7002", "multicast group of the data channel"),
        Setting("bus", "interface", text, "",
                "network interface: its name, or this machine's address on it (default: chosen"
                " by the routing table)"),
        Setting("bus", "ttl", number(0, 255, whole=True), 2,
                "time to live: number of networks that a packet can cross; 1: only this network"),
        Setting("bus", "loop", switch, True, "let programs on this machine receive the packets, too"),
        Setting("bus", "alive", number(0.1, 86_400), 60.0,
                "seconds between two keep-alive packets (type I; KeepAliveInterval)"),
        Setting("bus", "commands", switch, False, "obey the packets S, H, C, A and E from the bus"),
        Setting("bus", "configuration", text, "", "file or URL of the old JSON configuration (default: $JPH_CONFIG)"),
        *more,
    )  # fmt: skip


def _announce(*more: Setting) -> tuple[Setting, ...]:
    return (
        Setting("announce", "group", _group, "239.255.50.3:5003", "the multicast group of the announcements"),
        *more,
    )


def _mqtt() -> tuple[Setting, ...]:
    """Return the settings of [mqtt], which are the same in both programs."""
    return (
        Setting("mqtt", "host", text, "", "host name or address of the MQTT broker; empty: MQTT is not used"),
        Setting("mqtt", "port", number(0, 65_535, whole=True), 0, "port of the broker; 0: 1883, or 8883 with TLS"),
        Setting("mqtt", "user", text, "", "user name for the broker"),
        Setting("mqtt", "password", text, "",
                "password for the broker (better: PIGEONPOST_MQTT_PASSWORD)", secret=True),
        Setting("mqtt", "tls", switch, False, "encrypt the connection and verify the certificate of the broker"),
        Setting("mqtt", "ca", text, "", "PEM file of the authority that signed the broker's certificate (default: the"
                " authorities known to this system)"),
        Setting("mqtt", "signed", switch, True, "require signed messages from and to nodes that have a token"),
    )  # fmt: skip


def _log() -> tuple[Setting, ...]:
    """Return the settings of [log], which are the same in both programs."""
    return (
        Setting("log", "level", one_of("debug", "info", "warning", "error"), "info",
                "lowest level of messages that are logged: debug, info, warning or error (info)", "--log-level",
                "LEVEL"),
    )  # fmt: skip


MAILBOX = re.compile(r"[^\s@,<>\x00-\x1f]{1,64}@[^\s@,<>\x00-\x1f]{1,250}").fullmatch

NODE = (
    Setting("node", "name", matching(_name_or_none, NODE_NAME_TAKES), "",
            "name of this node (default: this machine's name)", "--name", "NAME"),
    Setting("node", "listen", address(DEFAULT_PORT), f"0.0.0.0:{DEFAULT_PORT}",
            f"address where servers connect (0.0.0.0:{DEFAULT_PORT}); port 0: choose a free port and print it",
            "--listen", "HOST:PORT"),
    Setting("node", "data", text, "", "folder of the outbox (default: $STATE_DIRECTORY or ./data)", "--data", "DIR"),
    Setting("node", "every", number(0.01, 86_400), 10.0, "sampling interval in seconds (10)", "--every", "SECONDS"),
    Setting("node", "simulate", switch, False, "use a simulated MCP3008 instead of the chip", "--simulate"),
    Setting("node", "token", matching(_token_or_none, f"{SHORTEST_TOKEN} characters or more"), "",
            "token of this node (better: set PIGEONPOST_NODE_TOKEN, or write it in the file)", "--token",
            "TOKEN", secret=True),
    Setting("link", "tls", switch, False,
            "accept other machines only with TLS; programs on this machine can also connect without it"),
    Setting("link", "certificate", text, "",
            "PEM file of the certificate (default: the node creates its own, link.pem in its data"
            " folder)"),
    Setting("link", "key", text, "", "PEM file of the private key, if it is not in the file of the certificate"),
    Setting("push", "to", matching(_WEB_ADDRESS, "http://HOST:PORT or https://HOST:PORT"), "",
            "URL of a server to which this node sends its samples: for a node that no server can reach"),
    Setting("push", "certificate", fingerprint, "",
            "SHA-256 fingerprint of the server's certificate; empty: the certificate must be signed by an authority"
            " known to this system"),
    Setting("outbox", "slots", number(64, 1 << 24, whole=True), 65_536,
            "capacity of the outbox in samples; used when its file is created"),
    Setting("outbox", "sync", _sync, "each",
            "each: write every sample to the disk immediately; or seconds between two writes: a crash loses the"
            " samples taken since the last one"),
    *_bus(
        Setting("bus", "codifiers", _named_codifier, [], "channels that are sent, such as \"temperature=C4\"; the first"
                " codifier is that of the node itself", many=True),
        Setting("bus", "controls", _named_codifier, [], "values that packets A and E can change, such as"
                " \"target=FJ\"", many=True),
    ),
    *_announce(
        Setting("announce", "on", switch, True, "announce this node's address on the local network, if it has a token"),
        Setting("announce", "every", number(1, 3600), 30.0, "seconds between two announcements"),
    ),
    *_mqtt(),
    *_log(),
)  # fmt: skip


SERVER = (
    Setting("server", "name", matching(_name_or_none, NODE_NAME_TAKES), "",
            "name of this server (default: this machine's name)", "--name", "NAME"),
    Setting("server", "nodes", _node_address, [], "a node to collect from; can be repeated", "--node",
            "NAME@HOST:PORT", many=True),
    Setting("server", "data", text, "", "folder of the database and the CSV logs (default: $STATE_DIRECTORY or ./data)",
            "--data", "DIR"),
    Setting("web", "listen", address(WEB_PORT), [f"0.0.0.0:{WEB_PORT}"],
            f"address of the web interface (0.0.0.0:{WEB_PORT}); can be repeated", "--web", "HOST:PORT", many=True),
    Setting("web", "certificate", text, "", "PEM file of a certificate: [web] listen then uses TLS (https://)"),
    Setting("web", "key", text, "", "PEM file of the private key, if it is not in the file of the certificate"),
    Setting("web", "plain", address(WEB_PORT), [], "additional addresses without TLS, for old clients", many=True),
    Setting("web", "names", text, [],
            "host names by which browsers reach the web interface, in addition to this machine's own",
            many=True),
    Setting("web", "prefix", path_prefix, "", "URL path of the web interface behind a proxy, such as /sensors"),
    Setting("web", "proxies", _network, [], "addresses or networks of proxies on other machines whose information"
            " about the client is trusted; a proxy on this machine is always trusted", many=True),
    Setting("pimonitor", "api_key", text, "",
            "API key of the pimonitor devices, which send to the path /; empty: they are not accepted", secret=True),
    Setting("pimonitor", "unit", one_of("F", "C"), "F",
            "unit of the temperatures from these devices: F or C; [[location]] can override it"),
    Setting("pimonitor", "zone", text, "",
            "time zone of these devices (default: that of this machine); [[location]] can override it"),
    Setting("drop", "largest", number(1, 1 << 40, whole=True), 256 << 20, "maximum size of an uploaded file, in bytes"),
    Setting("drop", "types", matching(_ending, 'a file name extension such as ".csv", in lower case'),
            [".txt", ".json", ".csv"],
            "file name extensions that are accepted for uploads", many=True),
    Setting("store", "postgres", text, "",
            "URL of a PostgreSQL database that stores the samples instead of SQLite (docs/scale.md)", secret=True),
    Setting("store", "commit", number(0.05, 600), 1.0,
            "seconds between two commits to the database; 60 reduces the wear of an SD card"),
    Setting("store", "buffer", number(1000, 1_000_000, whole=True), 20_000,
            "maximum number of samples that wait for a commit; at the limit nodes have to wait"),
    Setting("store", "keep", number(0, 36_500), 0.0,
            "days for which samples are kept; 0: without limit. Statistics are never deleted"),
    Setting("store", "log_days", number(0, 36_500), 0.0, "days for which closed CSV logs are kept; 0: without limit"),
    Setting("store", "log_mib", number(0, 1 << 30), 0.0,
            "size of all CSV logs, in MiB, above which the oldest closed logs are deleted; 0: without limit"),
    Setting("store", "channels_per_sample", number(1, 10_000, whole=True), 256,
            "maximum number of channels in one sample; values of further channels are not stored"),
    Setting("store", "channels_per_node", number(1, 10_000, whole=True), 1024,
            "maximum number of channels that a node ever has; values of further channels are not stored"),
    Setting("backup", "to", text, "", "folder on another disk for a verified daily backup; empty: no backups"),
    Setting("backup", "at", matching(TIME_OF_DAY, 'a time of day such as "03:00"'), "03:00",
            "time of day of the backup, in local time; a missed backup is made later"),
    Setting("backup", "keep", number(1, 1000, whole=True), 7,
            "number of backups that are kept; older ones are deleted"),
    Setting("alerts", "silent", number(0, 8_640_000, unit="seconds"), 600.0,
            "shortest time without samples, in seconds, after which a node is reported without an [[alert]]; 0: off"),
    Setting("alerts", "quiet", quiet_hours, "",
            "quiet hours in local time, such as 22:00-07:00, in which alerts are held unless they are critical"),
    Setting("alerts", "url", matching(lambda url: not url or is_url(url), "a URL that begins with https:// or http://"),
            "", "address of this server's page, for the links in alerts"),
    Setting("report", "every", number(0, 8784), 0.0, "hours between two reports with statistics; 0: none"),
    Setting("report", "at", matching(lambda at: not at or TIME_OF_DAY(at), 'a time of day such as "07:00"'), "",
            "time of day of the report, in local time; a missed report is sent once, later (empty: 07:00 if `period`"
            " is set)"),
    Setting("report", "period", one_of("daily", "weekly", "monthly", ""), "",
            "period of the report: daily, weekly or monthly (empty: daily if `at` is set)"),
    Setting("report", "day", report_day, "", "day of a weekly report (monday) or of a monthly one (1)"),
    Setting("mail", "to", matching(MAILBOX, "an address such as you@example.org"), [],
            "mail addresses that receive alerts and reports", many=True),
    Setting("mail", "from", matching(lambda one: not one or MAILBOX(one), "an address such as pi@example.org"), "",
            "sender address (default: the first address in `to`)"),
    Setting("mail", "host", text, "localhost", "host name of the mail server (SMTP)"),
    Setting("mail", "port", number(0, 65_535, whole=True), 0,
            "port of the mail server; 0: 587 for starttls, 465 for tls, 25 for none"),
    Setting("mail", "tls", one_of("starttls", "tls", "none"), "starttls",
            "encryption of the connection: starttls, tls or none"),
    Setting("mail", "user", text, "", "user name for the mail server"),
    Setting("mail", "password", text, "",
            "password for the mail server (better: PIGEONPOST_MAIL_PASSWORD)", secret=True),
    *INTEGRATIONS,
    Setting("redis", "url", text, "",
            "URL of a Redis server that receives the latest reading of every sensor (docs/scale.md)", secret=True),
    Setting("redis", "prefix", text, "pigeonpost:", "prefix of the keys and channels in Redis"),
    *_bus(
        Setting("bus", "codifier", matching(_codifier_or_none, "two characters, such as R1"), "",
                "codifier of this server on the bus; empty: it only receives"),
    ),
    *_announce(
        Setting("announce", "on", switch, True, "collect from nodes that announce themselves and have a token on this"
                " server"),
    ),
    *_mqtt(),
    *_log(),
)  # fmt: skip


def load_node(
    arguments: argparse.Namespace | SimpleNamespace,
    environment: Mapping[str, str] | None = None,
    folders: Sequence[str] | None = None,
) -> Settings:
    """Return the settings of the node. `arguments`, `environment` and `folders` are those of `config.load`.

    Raises:
        SettingsError: A setting is invalid, or the settings file cannot be read.
    """
    elsewhere = dict.fromkeys({*SERVER_ARRAYS, *_tables_of(SERVER)} - _tables_of(NODE), SERVER_FILE)
    return config.load(NODE, arguments, NODE_FILE, NODE_ARRAYS, environment, folders, elsewhere)


def load_server(
    arguments: argparse.Namespace | SimpleNamespace,
    environment: Mapping[str, str] | None = None,
    folders: Sequence[str] | None = None,
) -> Settings:
    """Return the settings of the server, for server.py and control.py.

    `arguments`, `environment` and `folders` are those of `config.load`.

    Raises:
        SettingsError: A setting is invalid, or the settings file cannot be read.
    """
    elsewhere = dict.fromkeys({*NODE_ARRAYS, *_tables_of(NODE)} - _tables_of(SERVER), NODE_FILE)
    return config.load(SERVER, arguments, SERVER_FILE, SERVER_ARRAYS, environment, folders, elsewhere)


def _tables_of(settings: Sequence[Setting]) -> set[str]:
    return {setting.table for setting in settings}


_VARIABLES = "PIGEONPOST_"  # prefix of all environment variables
# Prefixes of variables that are not settings: those of the tests and of `control.py send-files`.
_OTHER_VARIABLES = ("PIGEONPOST_TEST_", "PIGEONPOST_PI_ID")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable PIGEONPOST_* in `environment` that neither program knows."""
    files = [config.variable_of_file(NODE_FILE), config.variable_of_file(SERVER_FILE)]
    known = [name.removeprefix(_VARIABLES) for name in (*(setting.variable for setting in (*NODE, *SERVER)), *files)]
    found = []
    for name in sorted(environment):
        key = name.removeprefix(_VARIABLES)
        if name.startswith(_VARIABLES) and key not in known and not name.startswith(_OTHER_VARIABLES):
            import difflib

            near = difflib.get_close_matches(key, known, 1, 0.7)
            hint = f"did you mean {_VARIABLES}{near[0]}?" if near else "docs/settings.md lists all variables"
            found.append(f"unknown variable {name!r:.100} has no effect; {hint}")
    return found


def warn_of_variables() -> None:
    """Log a warning for each environment variable PIGEONPOST_* that has no effect."""
    for fault in unknown_variables(os.environ):
        log.warning("%s", fault)
