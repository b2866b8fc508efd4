"""Commands for secrets: the tokens of nodes, and the passwords of the page.

Errors: Failed; SettingsError for a file that does not read, or a password that is too short.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Mapping

from pigeonpost.auth.tokens import Tokens
from pigeonpost.auth.users import FIRST_USER, Users
from pigeonpost.cli.contract import NODE, Command, Context, Failed


def token(context: Context) -> int:
    """Make a node's token, and show it this once."""
    tokens, node = Tokens(context.data), context.arguments.node
    if tokens.text_of(node) is not None:
        raise Failed(
            f"{node} has a token already: `get-token {node}` shows it, `revoke {node}` makes room for a new one"
        )
    print(tokens.make(node))
    print(
        f"Give it to the node, as PIGEONPOST_NODE_TOKEN or in its node.toml; this server knows it by the name {node}:\n"
        f"    python3 server.py --node {node}@ADDRESS",
        file=sys.stderr,
    )
    return 0


def get_token(context: Context) -> int:
    """Show a node's token, made when it is first asked for; the same one ever after."""
    tokens, node = Tokens(context.data), context.arguments.node
    print(tokens.text_of(node) or tokens.make(node))
    return 0


def list_tokens(context: Context) -> int:
    """The nodes that have a token."""
    for node in sorted(Tokens(context.data)):
        print(node)
    return 0


def revoke(context: Context) -> int:
    """Forget a node's token: it is not collected from any more until it has a new one."""
    if not Tokens(context.data).revoke(context.arguments.node):
        raise Failed(f"{context.arguments.node} has no token; `tokens` lists those that have")
    return 0


def password(context: Context) -> int:
    """Set the password of a user of the page, asked for twice; from a pipe, the first line."""
    user = context.arguments.user
    if sys.stdin.isatty():
        new = getpass.getpass(f"New password of {user}: ")
        if new != getpass.getpass("Again: "):
            raise Failed("the two differ; nothing was changed")
    else:
        new = sys.stdin.readline().rstrip("\r\n")
    Users(context.data).set_password(user, new)
    print(f"The page now asks for a password; the user is {user}.", file=sys.stderr)
    return 0


COMMANDS: Mapping[str, Command] = {
    "token": Command("make a node's token, and show it this once", [NODE], token),
    "get-token": Command("show a node's token, made when first asked for", [NODE], get_token, ["get_token"]),
    "tokens": Command("list the nodes that have a token", [], list_tokens),
    "revoke": Command("forget a node's token", [NODE], revoke),
    "password": Command(
        "set the page's password", [("user", {"metavar": "USER", "nargs": "?", "default": FIRST_USER})], password
    ),
}
