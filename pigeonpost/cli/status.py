"""Commands `status`, `send` and `check`, which contact a running server, or a node with --link.

Errors: Failed if there is no answer, or if the request is rejected.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pigeonpost.cli.contract import NODE, Command, Context, Failed
from pigeonpost.cli.remote import ask_node, ask_server
from pigeonpost.core.addresses import split_address
from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.format import counted, stamp
from pigeonpost.settings import fingerprint
from protocol import DEFAULT_PORT


def _status(context: Context) -> int:
    """Show the state of the nodes of the running server, or with --link the status that a node reports."""
    if context.arguments.link:
        print(ask_node(context, "CHECK"))
        return 0
    nodes = ask_server(context.data, "GET", "/api/v1/nodes")["nodes"]
    name = context.arguments.node
    chosen = [node for node in nodes if name in (None, node["name"])]
    if name and not chosen:
        raise Failed(
            f"the server has no node {name!r}; its nodes are: {', '.join(node['name'] for node in nodes) or 'none'}"
        )
    for node in chosen:
        print(describe(node))
    return 0


def _send(context: Context) -> int:
    """Turn sampling of a node on or off, and wait for its confirmation."""
    on = context.arguments.state == "on"
    node = context.arguments.node
    if context.arguments.link:
        print(ask_node(context, "SEND", on))
    else:
        ask_server(context.data, "POST", f"/api/v1/nodes/{quote(node)}/send", {"on": on})
        print(f"{node} is {context.arguments.state}")
    return 0


def _check(context: Context) -> int:
    """Check the server and its nodes, for example from cron. Print one line per fault.

    The exit status is 0 if there are no faults, else 1.
    """
    answer = ask_server(context.data, "GET", "/api/v1/health")
    faults = answer["faults"]
    for fault in faults:
        print(fault)
    if _TIME_OF_DAY(" ".join(faults)) and "time_zone" in answer:  # on standard error: standard output has only faults
        print(f"Time zone: {answer['time_zone']}.", file=sys.stderr)
    return 1 if faults else 0


def describe(node: dict[str, Any]) -> str:
    """Return a line with the state of `node`, an object from /api/v1/nodes."""
    if not node["connected"]:
        state = node["fault"] or ("reporting" if node.get("state") == "reporting" else "not connected")
    else:
        state = {True: "on", False: "OFF", None: "connected"}[node["on"]]
    if node["connected"] and node.get("state") == "late":
        received = (node.get("last_sample") or {}).get("received")
        since = stamp(parse_rfc3339(received)) if received else "the server's start"
        state = f"{state}, but late: nothing received since {since}"
    details = [f"last sample {stamp(parse_rfc3339(node['last_sample']['time']))}"] if node.get("last_sample") else []
    details += [f"{counted(node['missing'], 'sample')} missing"] if node.get("missing") else []
    return f"{node['name'] or node['address']}: " + "; ".join([state, *details])


def _address(text: str) -> tuple[str, int]:
    try:
        return split_address(text, DEFAULT_PORT)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None


def _sha256(text: str) -> str:
    try:
        return fingerprint(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_LINK = ("--link", {"metavar": "HOST:PORT", "type": _address, "help": "contact the node directly, without a server"})
_FINGERPRINT = (
    "--fingerprint",
    {"metavar": "SHA256", "type": _sha256, "default": "",
     "help": "with --link: use TLS, and accept only this certificate fingerprint"},
)  # fmt: skip

_TIME_OF_DAY = re.compile(r"\b[0-9]{2}:[0-9]{2}\b").search

COMMANDS: Mapping[str, Command] = {
    "status": Command(
        "show the state of the nodes",
        [
            ("node", {"metavar": "NODE", "nargs": "?", "help": "name of the node (default: all nodes)"}),
            _LINK,
            _FINGERPRINT,
        ],
        _status,
    ),
    "send": Command(
        "turn sampling of a node on or off",
        [NODE, ("state", {"choices": ["on", "off"], "help": "new state"}), _LINK, _FINGERPRINT],
        _send,
    ),
    "check": Command("print one line per fault; exit 0 if there are none, else 1 (for cron)", [], _check),
}
