"""Commands that rename and retire nodes, and set the labels of sensors. The server may be running or stopped.

    python3 control.py rename basement cellar
    python3 control.py relabel cellar temperature "Cellar, north wall"
    python3 control.py retire attic

Errors: Failed, with the reason and the remedy. In this case, nothing is changed.
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


def _rename(context: Context) -> int:
    """Rename a node, with its samples, statistics, gaps and token. Existing CSV logs keep the old name.

    The node itself may continue to use the old name. With --release, the old name NODE becomes free for another node.
    """
    node, new = context.arguments.node, context.arguments.new
    if context.arguments.release == (new is not None):
        raise Failed("rename needs NODE and its NEW name, or NODE and --release")
    if new is None:
        _do(context, node, "rename", {"release": True}, lambda admin: admin.release(node))
        print(f"{node} is no longer a former name: a Pi that uses it is a separate node from now on")
        return 0
    _do(context, node, "rename", {"to": new}, lambda admin: admin.rename(node, new))
    print(f"{node} is now called {new}, with all its stored data")
    print(f'Its Pi may keep the old name. To change it there, at any time: [node] name = "{new}" in node.toml')
    for position in _named_in_settings(context, node):
        print(f"{position} still contains {node}, which continues to work; change it to {new}")
    return 0


def _retire(context: Context) -> int:
    """Remove a node from the front page, `check` and alerts. Its data and its own page are kept."""
    node, is_retired = context.arguments.node, not context.arguments.undo
    _do(context, node, "retire", {"retired": is_retired}, lambda admin: admin.retire(node, is_retired))
    if not is_retired:
        print(f"{node} is in use again")
        return 0
    print(f"{node} is retired: no alerts, not on the front page. Its data is kept; samples that it sends are stored")
    for position in _named_in_settings(context, node, only_collected=True):
        print(f"{position} still contains {node}: the server collects from it until you remove that line")
    return 0


def _relabel(context: Context) -> int:
    """Set the label of a sensor, which cards and charts show. Exports, settings and the API still use the name."""
    node, sensor, text = context.arguments.node, context.arguments.sensor, context.arguments.text.strip()
    content = {"sensor": sensor, "label": text}
    _do(context, node, "relabel", content, lambda admin: admin.relabel(node, sensor, text))
    print(f"{sensor} of {node} is now shown as {text}" if text else f"{sensor} of {node} no longer has a label")
    return 0


def _do(
    context: Context, node: str, action: str, content: Mapping[str, Any], without_server: Callable[[NodeAdmin], None]
) -> None:
    """Send a request for an action to the running server. Call `without_server` if no server is running."""
    require_store(context)
    try:
        lock = lock_data_dir(os.path.join(context.data, SERVER_LOCK))
    except InUse:
        ask_server(context.data, "POST", f"/api/v1/nodes/{quote(node)}/{action}", content)
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


def _named_in_settings(context: Context, node: str, only_collected: bool = False) -> Iterator[str]:
    """Yield the positions of a node in the settings. `only_collected` omits tables that do not cause a collection."""
    settings = context.settings
    file = settings.file or "the settings"
    if any(name == node for name, _ in settings["server", "nodes"]):
        yield f"[server] nodes ({settings.origin('server', 'nodes')})"
    for table in ("node", "limits", "alert", "location"):
        names = [entry.get("name" if table == "node" else "node") for entry in settings.tables.get(table, ())]
        if node in names and (table == "node" or not only_collected):
            yield f"{file}: [[{table}]]"


COMMANDS: Mapping[str, Command] = {
    "rename": Command(
        "rename a node, with all its stored data",
        [
            NODE,
            ("new", {"metavar": "NEW", "nargs": "?", "type": node_name, "help": "new name"}),
            ("--release", {"action": "store_true", "help": "release the former name NODE for another node"}),
        ],
        _rename,
    ),
    "retire": Command(
        "remove a node from the front page, check and alerts; its data is kept",
        [NODE, ("--undo", {"action": "store_true", "help": "put a retired node back into use"})],
        _retire,
    ),
    "relabel": Command(
        "set the label of a sensor on cards and charts",
        [NODE, ("sensor", {"metavar": "SENSOR", "type": sensor_name, "help": "name of the sensor"}),
         ("text", {"metavar": "TEXT", "help": 'label, such as "North wall"; "" removes it'})],
        _relabel,
    ),
}  # fmt: skip
