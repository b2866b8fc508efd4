"""Command that lists the nodes that have a token, and when each was last heard.

Errors: SettingsError for a token file that cannot be read.
"""

from __future__ import annotations

import contextlib

from pigeonpost.auth.tokens import Tokens
from pigeonpost.cli.contract import Command, Context, has_store, look
from pigeonpost.core.clock import rfc3339


def listing(context: Context) -> int:
    """List the nodes that have a token, and the time of the last sample of each."""
    last_ms: dict[str, int | None] = {}
    if has_store(context):
        with contextlib.closing(look(context)) as store:
            last_ms = {about["name"]: about.get("last_ms") for about in store.nodes()}
    nodes = sorted(Tokens(context.data))
    width = max(map(len, nodes), default=0)
    for node in nodes:
        heard_ms = last_ms.get(node)
        print(f"{node:{width}}  {rfc3339(heard_ms) if heard_ms is not None else 'not heard yet'}")
    return 0


COMMANDS = {"list": Command("list the nodes that have a token, and when each was last heard", [], listing)}
