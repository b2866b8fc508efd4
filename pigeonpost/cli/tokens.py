"""Commands for secrets: the tokens of nodes, and the passwords of the page.

Errors: Failed; SettingsError for a file that does not read, or a password that is too short.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Mapping

from pigeonpost.auth.tokens import LONGEST, REPLACED_S, SHORTEST, Tokens
from pigeonpost.auth.users import FIRST_USER, Users
from pigeonpost.cli.contract import NODE, Command, Context, Failed


def token(context: Context) -> int:
    """Make a node's token, and show it this once; with --set read the one that the node has."""
    tokens, node = Tokens(context.data), context.arguments.node
    if context.arguments.set:
        tokens.make(node, _read_token(tokens, node))
        print(f"This server now knows the token of {node}; any other that it had is accepted no more.", file=sys.stderr)
        return 0
    if tokens.text_of(node) is not None:
        raise Failed(
            f"{node} has a token already: `get-token {node}` shows it, `rotate {node}` replaces it, `revoke {node}`"
            " makes room for a new one"
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


def _read_token(tokens: Tokens, node: str) -> str:
    """Return the token that is typed (unseen) or piped in. Raises Failed for one that a node would not take."""
    asked = f"Token of {node}: "
    text = getpass.getpass(asked) if sys.stdin.isatty() else sys.stdin.readline()
    found = text.strip()
    if not SHORTEST <= len(found) <= LONGEST or not found.isprintable():
        raise Failed(f"a token is {SHORTEST} to {LONGEST} printable characters, in one line of standard input")
    other = tokens.node_of(found)
    if other not in (None, node):
        raise Failed(f"that is the token of {other}: each node takes one of its own")
    return found


def rotate(context: Context) -> int:
    """Replace a node's token by a new one, and show that this once."""
    node = context.arguments.node
    new = Tokens(context.data).rotate(node)
    if new is None:
        raise Failed(f"{node} has no token to replace; `token {node}` makes one, `tokens` lists the nodes that have")
    print(new)
    print(
        f"Give it to {node}, as PIGEONPOST_NODE_TOKEN or in its node.toml, and restart the node. Its token so far is"
        f" accepted until it uses the new one, for {REPLACED_S / 3600:g} h at most. Has somebody else got that one:"
        f" `revoke {node}`, then `token {node}`.",
        file=sys.stderr,
    )
    return 0


def list_tokens(context: Context) -> int:
    """The nodes that have a token."""
    for node in sorted(Tokens(context.data)):
        print(node)
    return 0


def revoke(context: Context) -> int:
    """Forget a node's token: what the node has open ends. Until it has a new one, whoever is at its address is
    believed, as with any node without a token."""
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
    "token": Command(
        "make a node's token, and show it this once; with --set read the one that the node has",
        [NODE, ("--set", {"action": "store_true", "help": "read the node's own token from standard input"})],
        token,
    ),
    "rotate": Command("replace a node's token; the old one is accepted until the new one is used", [NODE], rotate),
    "get-token": Command("show a node's token, made when first asked for", [NODE], get_token, ["get_token"]),
    "tokens": Command("list the nodes that have a token", [], list_tokens),
    "revoke": Command("forget a node's token", [NODE], revoke),
    "password": Command(
        "set the page's password", [("user", {"metavar": "USER", "nargs": "?", "default": FIRST_USER})], password
    ),
}
