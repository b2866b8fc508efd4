"""Commands that list nodes: how all of them are, as a running server sees them; those that have a token here.

Errors: Failed where no server answers; SettingsError for a token file that cannot be read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli.contract import Command, Context, has_store, look
from pigeonpost.cli.remote import ask_server
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import aligned


def nodes(context: Context) -> int:
    """List all nodes that a running server knows: state, version, address, clock, free disk, temperature."""
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


def listing(context: Context) -> int:
    """List the nodes that have a token or are retired, and the time of the last sample of each."""
    last_ms: dict[str, int | None] = {}
    retired: Mapping[str, int] = {}
    if has_store(context):
        with contextlib.closing(look(context)) as store:
            last_ms = {about["name"]: about.get("last_ms") for about in store.nodes()}
            retired = store.node_records().retired
    known = sorted({*Tokens(context.data), *retired})
    width = max(map(len, known), default=0)
    for node in known:
        heard_ms = last_ms.get(node)
        more = f"  retired on {rfc3339(retired[node])[:10]}" if node in retired else ""
        print(f"{node:{width}}  {rfc3339(heard_ms) if heard_ms is not None else 'not heard yet'}{more}")
    return 0


COMMANDS = {
    "nodes": Command(
        "state, version, address, clock, disk and temperature of every node",
        [("--json", {"action": "store_true", "help": "as /api/v1/nodes has it"})], nodes,
    ),
    "list": Command("list the nodes that have a token, and when each was last heard", [], listing),
}  # fmt: skip
