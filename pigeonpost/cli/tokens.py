"""Commands for secrets: the tokens of nodes and of programs, and the passwords of the page.

Errors: Failed; SettingsError for a file that does not read, or a password that is too short.
"""

from __future__ import annotations

import contextlib
import getpass
import sys
import time
from collections.abc import Mapping

from pigeonpost.auth.api_tokens import ROLES as TOKEN_ROLES
from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.tokens import LONGEST, REPLACED_S, SHORTEST, Tokens
from pigeonpost.auth.users import FIRST_USER, ROLES, Users
from pigeonpost.cli.contract import NODE, Command, Context, Failed, has_store, look, node_name
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.server.node_register import NodeRegister


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
    present = _present(context, tokens, node)
    print(tokens.make(node))
    if present != node:
        print(f"{node} is a former name of {present}: with this token it is another node from now on.", file=sys.stderr)
    print(
        f"Give it to the node, as PIGEONPOST_NODE_TOKEN, in its node.toml, or (a service) alone in"
        f" /etc/pigeonpost/node-token; this server knows it by the name {node}:\n"
        f"    python3 server.py --node {node}@ADDRESS",
        file=sys.stderr,
    )
    return 0


def get_token(context: Context) -> int:
    """Show a node's token, made when it is first asked for; the same one ever after."""
    tokens = Tokens(context.data)
    node = _present(context, tokens, context.arguments.node)
    print(tokens.text_of(node) or tokens.make(node))
    return 0


def _present(context: Context, tokens: Tokens, node: str) -> str:
    """Return the present name of a renamed node: a token of its own would make the former name another node."""
    if tokens.text_of(node) is not None or not has_store(context):
        return node
    try:
        store = look(context)
    except PigeonpostError:  # damaged, or older than former names; tokens do not need it
        return node
    with contextlib.closing(store):
        return NodeRegister(store, tokens.text_of).current(node)


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
    tokens = Tokens(context.data)
    node = _present(context, tokens, context.arguments.node)
    new = tokens.rotate(node)
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
    believed, as with any node without a token. With --api: forget a program's token, which ends within 2 s."""
    node, name = context.arguments.node, context.arguments.api
    if (node is None) == (name is None):
        raise SettingsError("revoke takes the node whose token is revoked, or --api and the name of an API token")
    if name is not None:
        if not ApiTokens(context.data).revoke(name):
            raise Failed(f"there is no API token {name!r:.70}; `api-tokens` lists those that there are")
        return 0
    tokens = Tokens(context.data)
    node = _present(context, tokens, node)
    if not tokens.revoke(node):
        raise Failed(f"{node} has no token; `tokens` lists those that have")
    return 0


# ---------------------------------------------------------------------------------------------- tokens of programs


def api_token(context: Context) -> int:
    """Make a token for a program (Prometheus, Grafana, Home Assistant, curl), and show it this once.

    A viewer reads everything that the page shows; a writer may bring readings as well; an operator may do all that
    the page can, such as to turn nodes off. The server takes it at once, without a restart.
    """
    name, role = context.arguments.name, context.arguments.role
    made = ApiTokens(context.data).make(name, role)
    if made is None:
        raise Failed(
            f"there is an API token {name} already, and it cannot be shown again: take another name, or"
            f" `revoke --api {name}` makes room for a new one"
        )
    print(made)
    print(
        f"API token {name}, role {role}. It is shown this once; `revoke --api {name}` ends it. The program sends it"
        " with each request:\n"
        "    Authorization: Bearer TOKEN\n"
        "or as the password of Basic authentication, with any user:\n"
        "    curl -u any:TOKEN http://SERVER:8080/metrics",
        file=sys.stderr,
    )
    return 0


def list_api_tokens(context: Context) -> int:
    """The tokens of programs: name, role, when each was made, and when it was last used, to a minute."""
    found = ApiTokens(context.data).all()
    width = max((len(token.name) for token in found), default=0)
    for token in found:
        used = f"used {_local(token.used_ms)}" if token.used_ms is not None else "never used"
        print(f"{token.name:{width}}  {token.role:8}  made {_local(token.made_ms)}  {used}")
    return 0


def _local(time_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ms / 1000))


# ------------------------------------------------------------------------------------------------------- passwords


def password(context: Context) -> int:
    """Set the password of a user of the page, asked for twice; from a pipe, the first line.

    A viewer reads everything and changes nothing; an operator may press the buttons as well. A new password ends all
    sessions of the user.
    """
    chosen = context.arguments
    if chosen.list or chosen.remove:
        if chosen.role or (chosen.list and chosen.remove):
            raise SettingsError("--list, --remove and --role are three different things: one at a time")
        return _list_users(context) if chosen.list else _remove_user(context)
    user = chosen.user or FIRST_USER
    if sys.stdin.isatty():
        new = getpass.getpass(f"New password of {user}: ")
        if new != getpass.getpass("Again: "):
            raise Failed("the two differ; nothing was changed")
    else:
        new = sys.stdin.readline().rstrip("\r\n")
    users = Users(context.data)
    users.set_password(user, new, chosen.role or "")
    is_viewer = users.roles()[user] == "viewer"
    role = ", who may read everything and change nothing" if is_viewer else ""
    print(f"The page now asks for a password; the user is {user}{role}.", file=sys.stderr)
    _warn_of_no_operator(users)
    return 0


def _list_users(context: Context) -> int:
    for name, role in sorted(Users(context.data).roles().items()):
        print(f"{name}  {role}")
    return 0


def _remove_user(context: Context) -> int:
    users, name = Users(context.data), context.arguments.user
    if not name:
        raise SettingsError("--remove takes the name of the user before it: password USER --remove")
    if not users.remove(name):
        raise Failed(f"there is no user {name!r:.70}; `password --list` lists those that there are")
    if not users.roles():
        print(
            "No password is set any more: the page answers this machine only. The server prints an address with a"
            " one-time key when it is started again.",
            file=sys.stderr,
        )
    _warn_of_no_operator(users)
    return 0


def _warn_of_no_operator(users: Users) -> None:
    roles = users.roles()
    if roles and "operator" not in roles.values():
        print(
            "No user is an operator, so nobody can press the buttons: `password USER --role operator` sets one.",
            file=sys.stderr,
        )


COMMANDS: Mapping[str, Command] = {
    "token": Command(
        "make a node's token, and show it this once; with --set read the one that the node has",
        [NODE, ("--set", {"action": "store_true", "help": "read the node's own token from standard input"})],
        token,
    ),
    "rotate": Command("replace a node's token; the old one is accepted until the new one is used", [NODE], rotate),
    "get-token": Command("show a node's token, made when first asked for", [NODE], get_token, ["get_token"]),
    "tokens": Command("list the nodes that have a token", [], list_tokens),
    "revoke": Command(
        "forget a node's token, or with --api a program's",
        [
            ("node", {"metavar": "NODE", "nargs": "?", "type": node_name}),
            ("--api", {"metavar": "NAME", "help": "the name of an API token"}),
        ],
        revoke,
    ),
    "api-token": Command(
        "make a token for a program that reads the page or the JSON API, and show it this once",
        [
            ("name", {"metavar": "NAME", "help": "of the program, for the list: prometheus"}),
            ("--role", {"choices": TOKEN_ROLES, "default": TOKEN_ROLES[0], "help": "what it may do (viewer)"}),
        ],
        api_token,
    ),
    "api-tokens": Command("list the tokens of programs, with role and last use", [], list_api_tokens),
    "password": Command(
        "set the page's password; add, list and remove its users",
        [
            ("user", {"metavar": "USER", "nargs": "?", "help": f"({FIRST_USER})"}),
            ("--role", {"choices": ROLES, "help": "what the user may do (unchanged; a new user: operator)"}),
            ("--list", {"action": "store_true", "help": "list the users and their roles"}),
            ("--remove", {"action": "store_true", "help": "remove the user"}),
        ],
        password,
    ),
}
