"""Commands that rename and retire nodes, and give sensors labels; beside a running server, or without one.

    python3 control.py rename basement cellar
    python3 control.py relabel cellar temperature "Cellar, north wall"
    python3 control.py retire attic

Errors: Failed, with the reason and what to do; then nothing was changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli.contract import NODE, Command, Context, Failed, node_name, require_store, sensor_name
from pigeonpost.cli.open_to_write import open_to_write
from pigeonpost.cli.remote import ask_server
from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import SERVER_LOCK
from pigeonpost.core.errors import InUse, NotStored
from pigeonpost.core.files import lock_data_dir
from pigeonpost.server.node_admin import NodeAdmin, Refused


def rename(context: Context) -> int:
    """Give a node another name. What is stored of it, its statistics, gaps and its token go along; CSV logs of the past
    keep the old name. Its Pi may go on saying the old name. --release: forget that a node was called NODE.
    """
    node, new = context.arguments.node, context.arguments.new
    if context.arguments.release == (new is not None):
        raise Failed("takes NODE and its NEW name, or NODE --release")
    if new is None:
        _do(context, node, "rename", {"release": True}, lambda admin: admin.release(node))
        print(f"{node} is no longer a former name: a Pi that says it is a node of its own")
        return 0
    _do(context, node, "rename", {"to": new}, lambda admin: admin.rename(node, new))
    print(f"{node} is called {new} now, with all that is stored of it")
    print(f'Its Pi may keep the name that it has. To change it there, at any time: [node] name = "{new}" in node.toml')
    for where in _named_in_settings(context, node):
        print(f"{where} still says {node}, which works; write {new} there")
    return 0


def retire(context: Context) -> int:
    """Take a node out of the front page, `check` and alerts. What is stored of it stays, and so does its own page."""
    node, is_retired = context.arguments.node, not context.arguments.undo
    _do(context, node, "retire", {"retired": is_retired}, lambda admin: admin.retire(node, is_retired))
    if not is_retired:
        print(f"{node} is in use again")
        return 0
    print(f"{node} is retired: no alerts, and not on the front page; its data is kept, and so is what it still sends")
    for where in _named_in_settings(context, node, ("nodes",)):
        print(f"{where} still names {node}: the server goes on collecting from it until that line is removed")
    return 0


def relabel(context: Context) -> int:
    """Give a sensor a text that people see on cards and charts; its name stays for programs, exports and settings."""
    node, sensor, text = context.arguments.node, context.arguments.sensor, context.arguments.text.strip()
    asked = {"sensor": sensor, "label": text}
    _do(context, node, "relabel", asked, lambda admin: admin.relabel(node, sensor, text))
    print(f"{sensor} of {node} is shown as {text}" if text else f"{sensor} of {node} has no label any more")
    return 0


def _do(
    context: Context, node: str, action: str, asked: Mapping[str, Any], without_server: Callable[[NodeAdmin], None]
) -> None:
    """Have a running server do it, or do it here. Raises Failed."""
    require_store(context)
    try:
        lock = lock_data_dir(os.path.join(context.data, SERVER_LOCK))
    except InUse:
        ask_server(context.data, "POST", f"/api/v1/nodes/{quote(node)}/{action}", asked)
        return
    try:
        with open_to_write(context) as (store, ingestor):
            admin = NodeAdmin(store, ingestor, Tokens(context.data), Clock())
            admin.finish()
            without_server(admin)
    except (Refused, NotStored) as error:
        raise Failed(str(error)) from None
    finally:
        os.close(lock)


def _named_in_settings(context: Context, node: str, tables: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield where the settings name a node. tables: only these; empty: all of them."""
    settings = context.settings
    file = settings.file or "the settings"
    if any(name == node for name, _ in settings["server", "nodes"]):
        yield f"[server] nodes ({settings.origin('server', 'nodes')})"
    for table in ("node", "limits", "alert", "location"):
        names = [entry.get("name" if table == "node" else "node") for entry in settings.tables.get(table, ())]
        if node in names and (table == "node" or not tables):
            yield f"{file}: [[{table}]]"


COMMANDS: Mapping[str, Command] = {
    "rename": Command(
        "give a node another name, with all that is stored of it",
        [
            NODE,
            ("new", {"metavar": "NEW", "nargs": "?", "type": node_name}),
            ("--release", {"action": "store_true", "help": "forget that a node was called NODE"}),
        ],
        rename,
    ),
    "retire": Command(
        "take a node out of the front page, check and alerts; its data is kept",
        [NODE, ("--undo", {"action": "store_true", "help": "it is in use again"})],
        retire,
    ),
    "relabel": Command(
        "give a sensor a text for people",
        [NODE, ("sensor", {"metavar": "SENSOR", "type": sensor_name}),
         ("text", {"metavar": "TEXT", "help": 'as "North wall"; "" removes it'})],
        relabel,
    ),
}  # fmt: skip
