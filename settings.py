"""Every setting of both programs, in two tables: what it is called, what it takes, what it is when nobody says.

Runs on: node and server.  Reached from: node.py, server.py, control.py.  Hands on to: base.config, which reads them.
Threads: none.  Errors: the parsers raise ValueError, which base.config puts into words.

`node.default.toml` and `server.default.toml` are the same for people; tests/test_settings.py holds them together.
The keys of a [[sensor]] stand in the file of its kind.
"""

from __future__ import annotations

from typing import Any

from base.config import Setting, address, matching, number, one_of, switch, text
from protocol import DEFAULT_PORT, NODE_NAME, NODE_NAME_TAKES

WEB_PORT = 8080
SERVER_ARRAYS = ("location",)  # arrays of tables in server.toml; the keys of each stand with whoever uses them


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
    return text.startswith(".") and text[1:].isascii() and text[1:].isalnum() and text == text.lower() and len(text) < 10


def _sync(value: Any) -> float:
    if value == "each":
        return 0.0
    try:
        return float(number(0, 3600)(value))
    except ValueError:
        raise ValueError('takes "each", or seconds up to 3600') from None


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
    Setting("outbox", "slots", number(64, 1 << 24, whole=True), 65_536,
            "samples held, used when the file is made"),
    Setting("outbox", "sync", _sync, "each",
            "each: every sample at once; or seconds that samples may gather, which a crash then costs"),
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
    Setting("store", "commit", number(0.05, 600), 1.0, "seconds between commits; 60 spares an SD card"),
    Setting("store", "buffer", number(1000, 1_000_000, whole=True), 20_000,
            "uncommitted samples at most; then nodes have to wait"),
)  # fmt: skip
