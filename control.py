"""The operator's command line: tokens, password, status, switching nodes, checking, verifying.

    python3 control.py token basement            make a token for a node
    python3 control.py status                    ask the running server
    python3 control.py send basement off         turn a node off

Runs on: node and server.  Reached from: people, cron, container health checks.
Hands on to: the files in the data folder; a running server, over its JSON interface; a node itself, over the link.
Threads: none.
Errors: exit status 0 done; 1 failed, with one line a fault; 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import functools
import getpass
import http.client
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pigeonpost.auth.tokens import Tokens
from pigeonpost.auth.users import Users
from pigeonpost.cli import backup, certificate, doctor, export, import_, list_nodes, scan, schema
from pigeonpost.cli.contract import NODE, Command, Context, Failed
from pigeonpost.compat.file_drop import cli as file_drop
from pigeonpost.compat.file_drop.storage import node_of_file
from pigeonpost.compat.multicast_bus import cli as multicast_bus
from pigeonpost.compat.multicast_bus import convert_config
from pigeonpost.core import config
from pigeonpost.core.addresses import join_address, split_address
from pigeonpost.core.data_folder import RUNNING
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.core.version import VERSION
from pigeonpost.settings import SERVER, SERVER_ARRAYS
from protocol import DEFAULT_PORT, decode, encode

ANSWER_S = 10.0  # for a running server or a node


# ------------------------------------------------------------------------------------------ tokens and passwords


def _place(text: str) -> tuple[str, int]:
    try:
        return split_address(text, DEFAULT_PORT)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None


def token(context: Context) -> int:
    """Make a node's token, and show it this once."""
    tokens, node = Tokens(context.data), context.arguments.node
    if tokens.text_of(node) is not None:
        raise Failed(
            f"{node} has a token already: `get_token {node}` shows it, `revoke {node}` makes room for a new one"
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


# ------------------------------------------------------------------------------------------- a running server


def ask_server(data: str, method: str, path: str, content: Any = None) -> Any:
    """What the server that runs on `data` answers, decoded; Failed when it does not run or refuses."""
    try:
        with open(os.path.join(data, RUNNING), encoding="utf-8") as file:
            about = json.load(file)
    except FileNotFoundError:
        raise Failed(f"no server runs on {data} (--data DIR, before the command, names another folder)") from None
    except PermissionError:
        raise Failed(f"{data}/running.json may be read only by the user who runs the server") from None
    host, port = about["web"][0]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    link = _connection(here, port, about.get("certificate", ""))
    try:
        body = None if content is None else json.dumps(content)
        headers = {"Authorization": f"Bearer {about['key']}", "Content-Type": "application/json"}
        link.request(method, path, body, headers)
        answer = link.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:  # the latter from another program that has the port now
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Failed(f"the server at {join_address(here, port)} does not answer: {why}") from None
    finally:
        link.close()
    found = json.loads(text) if answer.headers.get_content_type() == "application/json" else text.decode()
    if answer.status >= 400:
        raise Failed(found["error"]["text"] if isinstance(found, dict) else str(found).strip())
    return found


def _connection(host: str, port: int, certificate: str) -> http.client.HTTPConnection:
    """A connection to the server on this machine; through TLS where it has a certificate, which has to be that one."""
    if not certificate:
        return http.client.HTTPConnection(host, port, timeout=ANSWER_S)
    import hashlib
    import ssl

    from pigeonpost.web.tls import fingerprint_of

    expected = fingerprint_of(certificate)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    link = http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=context)
    try:
        link.connect()
    except OSError as error:
        raise Failed(f"the server at {join_address(host, port)} does not answer: {error}") from None
    sock: Any = link.sock
    found = hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest()
    if found != expected:
        link.close()
        raise Failed(f"another certificate is at {join_address(host, port)}: expected {expected}, found {found}")
    return link


def status(context: Context) -> int:
    """How the nodes are, as the running server sees them; with --link, as a node itself says."""
    if context.arguments.link:
        print(ask_node(context, "CHECK"))
        return 0
    nodes = ask_server(context.data, "GET", "/api/v1/nodes")["nodes"]
    wanted = context.arguments.node
    chosen = [node for node in nodes if wanted in (None, node["name"])]
    if wanted and not chosen:
        raise Failed(
            f"the server knows no node {wanted!r}; it knows {', '.join(node['name'] for node in nodes) or 'none'}"
        )
    for node in chosen:
        print(describe(node))
    return 0


def send(context: Context) -> int:
    """Turn a node's sampling on or off, and wait for its word that it is."""
    on = context.arguments.state == "on"
    node = context.arguments.node
    if context.arguments.link:
        print(ask_node(context, "SEND", on))
    else:
        ask_server(context.data, "POST", f"/api/v1/nodes/{quote(node)}/send", {"on": on})
        print(f"{node} is {context.arguments.state}")
    return 0


def check(context: Context) -> int:
    """Exit 0 when the server and its nodes are well; else 1, with one line a fault. For cron."""
    faults = ask_server(context.data, "GET", "/api/v1/health")["faults"]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def alive(context: Context) -> int:
    """Exit 0 when the program in this container or on this data answers. For health checks."""
    if os.path.exists(os.path.join(context.data, RUNNING)):
        ask_server(context.data, "GET", "/healthz")
    else:
        context.arguments.link = "127.0.0.1", DEFAULT_PORT
        ask_node(context, "CHECK")
    return 0


def ask_node(context: Context, word: str, *arguments: Any) -> str:
    """Say one word to a node in a plain session, with its token if there is one; the line that it answers."""
    address: tuple[str, int] = context.arguments.link
    place = join_address(*address)
    secret = os.environ.get("PIGEONPOST_NODE_TOKEN") or Tokens(context.data).text_of(
        getattr(context.arguments, "node", None) or ""
    )
    try:
        with socket.create_connection(address, ANSWER_S) as link:
            if secret:
                link.sendall(encode("AUTH", {"token": secret}))
            link.sendall(encode(word, *arguments))
            line = link.makefile("rb").readline()
    except OSError as error:
        raise Failed(f"{place}: {error.strerror or error}") from None
    if not line:
        raise Failed(f"{place}: closed without an answer")
    answer = decode(line)
    if answer is not None and answer.word == "ERROR":
        raise Failed(f"{place}: {answer.args[1].get('text', answer.args[0])}")
    return line.decode().rstrip()


def describe(node: dict[str, Any]) -> str:
    """A node, as the JSON interface tells it, in one line."""
    if not node["connected"]:
        state = node["fault"] or "not connected"
    else:
        state = {True: "on", False: "OFF", None: "connected"}[node["on"]]
    rest = [f"last sample {node['last_sample']['time']}"] if node.get("last_sample") else []
    rest += [f"{node['missing']} samples missing"] if node.get("missing") else []
    return f"{node['name'] or node['address']}: " + "; ".join([state, *rest])


_LINK = ("--link", {"metavar": "HOST:PORT", "type": _place, "help": "ask the node itself, not a server"})

COMMANDS: Mapping[str, Command] = {
    "token": Command("make a node's token, and show it this once", [NODE], token),
    "get_token": Command("show a node's token, made when first asked for", [NODE], get_token),
    "tokens": Command("list the nodes that have a token", [], list_tokens),
    "revoke": Command("forget a node's token", [NODE], revoke),
    "password": Command(
        "set the page's password", [("user", {"metavar": "USER", "nargs": "?", "default": "admin"})], password
    ),
    "status": Command("how the nodes are", [("node", {"metavar": "NODE", "nargs": "?"}), _LINK], status),
    "send": Command("turn a node on or off", [NODE, ("state", {"choices": ["on", "off"]}), _LINK], send),
    "check": Command("exit 0 when all is well, else 1 and one line a fault (for cron)", [], check),
    "alive": Command("exit 0 when the program answers (for health checks)", [], alive),
    **backup.COMMANDS,
    **export.COMMANDS,
    **import_.COMMANDS,
    **schema.COMMANDS,
    **certificate.COMMANDS,
    **list_nodes.COMMANDS,
    **file_drop.COMMANDS,
    **multicast_bus.COMMANDS,
    **convert_config.COMMANDS,
    **scan.COMMANDS,
    **doctor.COMMANDS,
}

_EXAMPLES = """examples:
  python3 control.py token basement
  python3 control.py --data /var/lib/pigeonpost status
  python3 control.py send basement off
  python3 control.py watch --from C4
  python3 control.py backup /mnt/usb/
  python3 control.py status --link 192.168.1.20:5003
  python3 control.py send-files server.local readings/
  */5 * * * * python3 control.py check || mail -s pigeonpost you@example.org"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="control.py", description="Look after Pigeonpost: tokens, password, status, data.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="the data folder (as the server's)")
    parser.add_argument("--config", metavar="FILE", help="the server's settings file")
    parser.add_argument("--version", action="version", version=f"pigeonpost {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.run.__doc__)
        for argument, options in command.arguments:
            sub.add_argument(argument, **options)
    chosen = parser.parse_args(arguments)
    try:
        flags = argparse.Namespace(config=chosen.config, server_data=chosen.data)
        settings = config.load(SERVER, flags, "server.toml", SERVER_ARRAYS)
        data = config.data_folder(settings["server", "data"])
        context = Context(data, chosen, settings, chosen.config or "", functools.partial(node_of_file, data))
        return COMMANDS[chosen.command].run(context)
    except KeyboardInterrupt:
        return 130  # as a shell tells a program that SIGINT ended
    except (PigeonpostError, ValueError) as error:
        print(f"control.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) or not isinstance(error, PigeonpostError) else 1


if __name__ == "__main__":
    sys.exit(main())
