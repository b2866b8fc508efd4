"""Commands that ask a running server, or with --link a node itself: its state, ON and OFF, faults.

Errors: Failed where it does not answer, or refuses.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pigeonpost.cli.contract import NODE, Command, Context, Failed
from pigeonpost.cli.remote import ask_node, ask_server
from pigeonpost.core.addresses import split_address
from pigeonpost.settings import fingerprint
from protocol import DEFAULT_PORT


def status(context: Context) -> int:
    """How the nodes are, as the running server sees them; with --link, as a node itself says."""
    if context.arguments.link:
        print(ask_node(context, "CHECK"))
        return 0
    nodes = ask_server(context.data, "GET", "/api/v1/nodes")["nodes"]
    wanted = context.arguments.node
    chosen = [node for node in nodes if wanted in (None, node["name"])]
    if wanted and not chosen:
        raise Failed(
            f"the server knows no node {wanted!r}; it knows {', '.join(node['name'] for node in nodes) or 'none'}"
        )
    for node in chosen:
        print(describe(node))
    return 0


def send(context: Context) -> int:
    """Turn a node's sampling on or off, and wait for its word that it is."""
    on = context.arguments.state == "on"
    node = context.arguments.node
    if context.arguments.link:
        print(ask_node(context, "SEND", on))
    else:
        ask_server(context.data, "POST", f"/api/v1/nodes/{quote(node)}/send", {"on": on})
        print(f"{node} is {context.arguments.state}")
    return 0


def check(context: Context) -> int:
    """Exit 0 when the server and its nodes are well; else 1, with one line per fault. For cron."""
    faults = ask_server(context.data, "GET", "/api/v1/health")["faults"]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def describe(node: dict[str, Any]) -> str:
    """A node, as the JSON interface tells it, in one line."""
    if not node["connected"]:
        state = node["fault"] or "not connected"
    else:
        state = {True: "on", False: "OFF", None: "connected"}[node["on"]]
    rest = [f"last sample {node['last_sample']['time']}"] if node.get("last_sample") else []
    rest += [f"{node['missing']} samples missing"] if node.get("missing") else []
    return f"{node['name'] or node['address']}: " + "; ".join([state, *rest])


def _place(text: str) -> tuple[str, int]:
    try:
        return split_address(text, DEFAULT_PORT)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None


def _sha256(text: str) -> str:
    try:
        return fingerprint(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_LINK = ("--link", {"metavar": "HOST:PORT", "type": _place, "help": "ask the node itself, not a server"})
_FINGERPRINT = (
    "--fingerprint",
    {"metavar": "SHA256", "type": _sha256, "default": "",
     "help": "with --link: speak TLS with the node that has this certificate"},
)  # fmt: skip

COMMANDS: Mapping[str, Command] = {
    "status": Command("how the nodes are", [("node", {"metavar": "NODE", "nargs": "?"}), _LINK, _FINGERPRINT], status),
    "send": Command("turn a node on or off", [NODE, ("state", {"choices": ["on", "off"]}), _LINK, _FINGERPRINT], send),
    "check": Command("exit 0 when all is well, else 1 and one line per fault (for cron)", [], check),
}
