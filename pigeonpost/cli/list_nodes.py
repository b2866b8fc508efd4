"""Commands that list nodes: `nodes` with their state in the running server, `list` with the time of the last sample.

Errors: Failed if no server answers; SettingsError for a token file that cannot be read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli.contract import Command, Context, has_store, open_read_only
from pigeonpost.cli.remote import ask_server
from pigeonpost.core.format import aligned, stamp


def _nodes(context: Context) -> int:
    """List all nodes of the running server: state, version, address, clock offset, free disk space, CPU temperature."""
    found = ask_server(context.data, "GET", "/api/v1/nodes")["nodes"]
    if context.arguments.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    head = ("NODE", "STATE", "VERSION", "ADDRESS", "CLOCK", "DISK FREE", "CPU")
    for line in aligned(head, [_cells(node) for node in found], "<<<<>>>"):
        print(line)
    return 0


def _cells(node: dict[str, Any]) -> tuple[str, ...]:
    machine, offset_ms = node["machine"], node["clock_offset_ms"]
    return (
        node["name"] or "?", node["state"], node["version"] or "-", node["address"] or "-",
        "-" if offset_ms is None else f"{offset_ms / 1000:+.1f} s",
        f"{machine['disk_free'] / 1024:.1f} GiB" if "disk_free" in machine else "-",
        f"{machine['cpu_temperature']:.0f} °C" if "cpu_temperature" in machine else "-",
    )  # fmt: skip


def _list(context: Context) -> int:
    """List the nodes that have a token or are retired, with the local time of their last sample."""
    last_ms: dict[str, int | None] = {}
    retired: Mapping[str, int] = {}
    if has_store(context):
        with contextlib.closing(open_read_only(context)) as store:
            last_ms = {about["name"]: about.get("last_ms") for about in store.nodes()}
            retired = store.node_records().retired
    nodes = sorted({*Tokens(context.data), *retired})
    width = max(map(len, nodes), default=0)
    for node in nodes:
        time_ms = last_ms.get(node)
        more = f"  retired on {stamp(retired[node])[:10]}" if node in retired else ""
        print(f"{node:{width}}  {stamp(time_ms) if time_ms is not None else 'no samples yet'}{more}")
    return 0


COMMANDS = {
    "nodes": Command(
        "list all nodes: state, version, address, clock offset, free disk space, CPU temperature",
        [("--json", {"action": "store_true", "help": "print JSON, as /api/v1/nodes"})], _nodes,
    ),
    "list": Command("list the nodes that have a token or are retired, with the time of their last sample", [], _list),
}  # fmt: skip
