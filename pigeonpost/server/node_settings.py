"""Nodes in the settings: `[server] nodes`, `--node` and the [[node]] tables.

A [[node]] table contains settings of the node with its name. The address of that node is either in the table, in
`[server] nodes`, or found through the node's announcement.
Errors: SettingsError.
"""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.core.config import Option, Settings, address, matching, read_options, switch
from pigeonpost.core.errors import SettingsError
from pigeonpost.settings import fingerprint
from protocol import DEFAULT_PORT, NODE_NAME, NODE_NAME_TAKES

NODE_OPTIONS = (
    Option("name", matching(NODE_NAME, NODE_NAME_TAKES), None, "the node's name"),
    Option("address", address(DEFAULT_PORT), None, "its address, if it is not in [server] nodes"),
    Option("tls", switch, False, "true to collect from it only through TLS, never in plain text"),
    Option("fingerprint", fingerprint, "", "SHA-256 of its certificate; any other one is refused. Not needed for a node"
           " that has a token on this server"),
)  # fmt: skip


def read_nodes(settings: Settings) -> tuple[Sequence[tuple[str, tuple[str, int]]], dict[str, str]]:
    """Return the nodes to collect from, and those of them that require TLS, from `settings`.

    Returns:
        Pairs (name or empty, address) of all nodes; and the pinned fingerprint, which may be empty, by name of each
        node that requires TLS.

    Raises:
        SettingsError: A [[node]] table is invalid.
    """
    nodes: list[tuple[str, tuple[str, int]]] = list(settings["server", "nodes"])
    pins: dict[str, str] = {}
    seen: set[str] = set()
    for number, table in enumerate(settings.tables.get("node", ()), 1):
        where = f"{settings.file}: [[node]] {number}"
        found = read_options(table, NODE_OPTIONS, where)
        name = found["name"]
        if name is None:
            raise SettingsError(f'{where}: the name is missing, for example name = "basement"')
        if name in seen:
            raise SettingsError(f"{where}: a table for {name} exists already; put both into one")
        seen.add(name)
        if found["fingerprint"] and not found["tls"]:
            raise SettingsError(f"{where}: fingerprint requires tls = true")
        if found["address"] is not None and (name, found["address"]) not in nodes:
            if any(name == other for other, _ in nodes):
                raise SettingsError(f"{where}: {name} has a different address in [server] nodes or --node; remove one")
            nodes.append((name, found["address"]))
        if found["tls"]:
            pins[name] = found["fingerprint"]
    return nodes, pins
