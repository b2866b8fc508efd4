"""The nodes that the settings name: `[server] nodes` and `--node`, and the [[node]] tables.

A [[node]] table is for what an address cannot say. It is about the node of its name, wherever that is: at its own
`address`, in `[server] nodes`, or found by its announcement.
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
    Option("address", address(DEFAULT_PORT), None, "where it is, where [server] nodes does not say that"),
    Option("tls", switch, False, "whether it is collected from by TLS, and never in plain text"),
    Option("fingerprint", fingerprint, "", "SHA-256 of its certificate: any other is refused. A node that has a token"
           " here needs none"),
)  # fmt: skip


def read_nodes(settings: Settings) -> tuple[Sequence[tuple[str, tuple[str, int]]], dict[str, str]]:
    """Return the nodes to collect from, and those of them that are reached by TLS only.

    The first as name (or empty) and address of each; the second by name, with the fingerprint of the certificate that
    is pinned (empty: none). Raises SettingsError.
    """
    nodes: list[tuple[str, tuple[str, int]]] = list(settings["server", "nodes"])
    pins: dict[str, str] = {}
    seen: set[str] = set()
    for number, table in enumerate(settings.tables.get("node", ()), 1):
        where = f"{settings.file}: [[node]] {number}"
        found = read_options(table, NODE_OPTIONS, where)
        name = found["name"]
        if name is None:
            raise SettingsError(f'{where}: takes a name, as name = "basement"')
        if name in seen:
            raise SettingsError(f"{where}: there is a table for {name} already; put both into one")
        seen.add(name)
        if found["fingerprint"] and not found["tls"]:
            raise SettingsError(f"{where}: fingerprint is of a certificate, and takes tls = true beside it")
        if found["address"] is not None and (name, found["address"]) not in nodes:
            if any(name == other for other, _ in nodes):
                raise SettingsError(f"{where}: {name} has another address in [server] nodes or --node; leave one out")
            nodes.append((name, found["address"]))
        if found["tls"]:
            pins[name] = found["fingerprint"]
    return nodes, pins
