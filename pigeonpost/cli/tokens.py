"""Commands for secrets: tokens of nodes, API tokens, and passwords of users.

Errors: Failed; SettingsError for a file that cannot be read, or a password that is too short.
"""

from __future__ import annotations

import contextlib
import getpass
import sys
from collections.abc import Mapping

from pigeonpost.auth.api_tokens import ROLES as TOKEN_ROLES
from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.tokens import LONGEST, REPLACED_S, SHORTEST, Tokens
from pigeonpost.auth.users import FIRST_USER, ROLES, Users
from pigeonpost.cli.contract import NODE, Command, Context, Failed, has_store, node_name, open_read_only
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.core.format import stamp
from pigeonpost.server.node_register import NodeRegister


def _token(context: Context) -> int:
    """Create a token for a node, and show it once. With --set, save the token that the node already has."""
    tokens, node = Tokens(context.data), context.arguments.node
    if context.arguments.set:
        tokens.make(node, _read_token(tokens, node))
        print(f"{node}: the token was saved. An earlier token of this node is no longer accepted.", file=sys.stderr)
        return 0
    if tokens.text_of(node) is not None:
        raise Failed(
            f"{node} already has a token: `get-token {node}` shows it, `rotate {node}` replaces it, `revoke {node}`"
            " deletes it"
        )
    current = _current_name(context, tokens, node)
    print(tokens.make(node))
    if current != node:
        print(
            f"{node} is a former name of {current}. With this token, {node} is a separate node from now on.",
            file=sys.stderr,
        )
    print(
        "Copy the token to the node: to the variable PIGEONPOST_NODE_TOKEN, to [node] token in its node.toml, or, for a"
        " service, to the file /etc/pigeonpost/node-token. To collect from the node, start the server with its name and"
        " address:\n"
        f"    python3 server.py --node {node}@ADDRESS",
        file=sys.stderr,
    )
    return 0


def _get_token(context: Context) -> int:
    """Show the token of a node. If the node has none, create one first."""
    tokens = Tokens(context.data)
    node = _current_name(context, tokens, context.arguments.node)
    print(tokens.text_of(node) or tokens.make(node))
    return 0


def _current_name(context: Context, tokens: Tokens, node: str) -> str:
    """Return the current name of a node. A name that has its own token is the current name of a separate node."""
    if tokens.text_of(node) is not None or not has_store(context):
        return node
    try:
        store = open_read_only(context)
    except PigeonpostError:  # the store is damaged, or too old to have former names; tokens do not need it
        return node
    with contextlib.closing(store):
        return NodeRegister(store, tokens.text_of).current(node)


def _read_token(tokens: Tokens, node: str) -> str:
    """Return the token from the terminal (without echo) or from a pipe. Raise Failed if it is not valid for a node."""
    prompt = f"Token of {node}: "
    text = getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline()
    found = text.strip()
    if not SHORTEST <= len(found) <= LONGEST or not found.isprintable():
        raise Failed(
            f"the token is not valid: it must be {SHORTEST} to {LONGEST} printable characters, on one line of standard"
            " input"
        )
    other = tokens.node_of(found)
    if other not in (None, node):
        raise Failed(f"this is the token of {other}: each node needs its own token")
    return found


def _rotate(context: Context) -> int:
    """Replace the token of a node, and show the new token once.

    The old token is accepted until the node uses the new one.
    """
    tokens = Tokens(context.data)
    node = _current_name(context, tokens, context.arguments.node)
    new = tokens.rotate(node)
    if new is None:
        raise Failed(f"{node} has no token; `token {node}` creates one, `tokens` lists the nodes that have one")
    print(new)
    print(
        f"Copy it to {node}, to the variable PIGEONPOST_NODE_TOKEN or to its node.toml, and restart the node. The old"
        f" token is accepted until the node uses the new one, for {REPLACED_S / 3600:g} h at most. If someone else"
        f" knows the old token: `revoke {node}`, then `token {node}`.",
        file=sys.stderr,
    )
    return 0


def _list_tokens(context: Context) -> int:
    """List the nodes that have a token."""
    for node in sorted(Tokens(context.data)):
        print(node)
    return 0


def _revoke(context: Context) -> int:
    """Delete the token of a node, and close its connections. With --api, delete an API token.

    Without a token, the server cannot check the identity of a node: it accepts any node at the node's address. A
    deleted API token may still be accepted for up to 2 s.
    """
    node, name = context.arguments.node, context.arguments.api
    if (node is None) == (name is None):
        raise SettingsError("revoke needs the name of a node, or --api and the name of an API token")
    if name is not None:
        if not ApiTokens(context.data).revoke(name):
            raise Failed(f"there is no API token {name!r:.70}; `api-tokens` lists all API tokens")
        return 0
    tokens = Tokens(context.data)
    node = _current_name(context, tokens, node)
    if not tokens.revoke(node):
        raise Failed(f"{node} has no token; `tokens` lists the nodes that have one")
    return 0


# ------------------------------------------------------------------------------------------------------ API tokens


def _api_token(context: Context) -> int:
    """Create an API token for a program (Prometheus, Grafana, Home Assistant, curl), and show it once.

    A viewer may read all data. A writer may also send readings. An operator may do everything that the page offers,
    such as turning nodes off. The token is valid immediately; no restart is needed.
    """
    name, role = context.arguments.name, context.arguments.role
    made = ApiTokens(context.data).make(name, role)
    if made is None:
        raise Failed(
            f"the API token {name} exists already, and cannot be shown again: use another name, or delete it with"
            f" `revoke --api {name}`"
        )
    print(made)
    print(
        f"API token {name}, role {role}. It is shown only once; `revoke --api {name}` deletes it. The program must send"
        " it with each request:\n"
        "    Authorization: Bearer TOKEN\n"
        "or as the password of Basic authentication, with any user name:\n"
        "    curl -u any:TOKEN http://SERVER:8080/metrics",
        file=sys.stderr,
    )
    return 0


def _list_api_tokens(context: Context) -> int:
    """List the API tokens: name, role, time of creation and time of last use (local time)."""
    found = ApiTokens(context.data).all()
    width = max((len(token.name) for token in found), default=0)
    for token in found:
        used = f"used {stamp(token.used_ms)}" if token.used_ms is not None else "never used"
        print(f"{token.name:{width}}  {token.role:8}  created {stamp(token.made_ms)}  {used}")
    return 0


# ------------------------------------------------------------------------------------------------------- passwords


def _password(context: Context) -> int:
    """Set the password of a user of the page. It is typed twice, or read from the first line of a pipe.

    A viewer may read everything and change nothing. An operator may also press the buttons. A new password ends all
    sessions of the user.
    """
    chosen = context.arguments
    if chosen.list or chosen.remove:
        if chosen.role or (chosen.list and chosen.remove):
            raise SettingsError("--list, --remove and --role cannot be used together")
        return _list_users(context) if chosen.list else _remove_user(context)
    user = chosen.user or FIRST_USER
    if sys.stdin.isatty():
        new = getpass.getpass(f"New password of {user}: ")
        if new != getpass.getpass("Again: "):
            raise Failed("the two passwords differ; nothing was changed")
    else:
        new = sys.stdin.readline().rstrip("\r\n")
    users = Users(context.data)
    users.set_password(user, new, chosen.role or "")
    is_viewer = users.roles()[user] == "viewer"
    role = " (viewer: may read everything and change nothing)" if is_viewer else ""
    print(f"The password of {user}{role} was set. The page now asks for user name and password.", file=sys.stderr)
    _warn_of_no_operator(users)
    return 0


def _list_users(context: Context) -> int:
    for name, role in sorted(Users(context.data).roles().items()):
        print(f"{name}  {role}")
    return 0


def _remove_user(context: Context) -> int:
    users, name = Users(context.data), context.arguments.user
    if not name:
        raise SettingsError("--remove needs the name of the user: password USER --remove")
    if not users.remove(name):
        raise Failed(f"there is no user {name!r:.70}; `password --list` lists all users")
    if not users.roles():
        print(
            "No user has a password now, so the page can be opened from this machine only. At its next start, the"
            " server prints an address with a one-time key.",
            file=sys.stderr,
        )
    _warn_of_no_operator(users)
    return 0


def _warn_of_no_operator(users: Users) -> None:
    roles = users.roles()
    if roles and "operator" not in roles.values():
        print(
            "No user is an operator, so no one can press the buttons. `password USER --role operator` adds one.",
            file=sys.stderr,
        )


COMMANDS: Mapping[str, Command] = {
    "token": Command(
        "create a token for a node, and show it once",
        [
            NODE,
            (
                "--set",
                {
                    "action": "store_true",
                    "help": "save the existing token of the node, read from standard input",
                },
            ),
        ],
        _token,
    ),
    "rotate": Command(
        "replace the token of a node; the old one is accepted until the node uses the new one", [NODE], _rotate
    ),
    "get-token": Command("show the token of a node; create it if the node has none", [NODE], _get_token, ["get_token"]),
    "tokens": Command("list the nodes that have a token", [], _list_tokens),
    "revoke": Command(
        "delete the token of a node, or an API token",
        [
            ("node", {"metavar": "NODE", "nargs": "?", "type": node_name, "help": "name of the node"}),
            ("--api", {"metavar": "NAME", "help": "name of the API token to delete"}),
        ],
        _revoke,
    ),
    "api-token": Command(
        "create a token for a program that uses the page or the JSON API, and show it once",
        [
            ("name", {"metavar": "NAME", "help": "name of the program, for example prometheus"}),
            (
                "--role",
                {
                    "choices": TOKEN_ROLES,
                    "default": TOKEN_ROLES[0],
                    "help": "permissions of the program (default: viewer)",
                },
            ),
        ],
        _api_token,
    ),
    "api-tokens": Command("list the API tokens, with their role and last use", [], _list_api_tokens),
    "password": Command(
        "set the password of a user of the page; list and remove users",
        [
            ("user", {"metavar": "USER", "nargs": "?", "help": f"name of the user (default: {FIRST_USER})"}),
            ("--role", {"choices": ROLES, "help": "role of the user (default: unchanged; operator for a new user)"}),
            ("--list", {"action": "store_true", "help": "list the users and their roles"}),
            ("--remove", {"action": "store_true", "help": "remove the user"}),
        ],
        _password,
    ),
}
