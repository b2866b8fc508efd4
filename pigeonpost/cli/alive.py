"""Health check of the program that uses a data folder.

    python3 control.py alive
    python3 -m pigeonpost.cli.alive DATA     the same check in a third of the time, for a container on a Pi Zero

Errors: Failed if the program does not answer; SettingsError for invalid settings of the node.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from pigeonpost.cli.contract import Command, Context, Failed
from pigeonpost.cli.remote import ANSWER_S, ask_server, local_host
from pigeonpost.core.addresses import join_address
from pigeonpost.core.config import data_folder
from pigeonpost.core.data_folder import OUTBOX_LOCK, RUNNING, SERVER_LOCK
from pigeonpost.core.errors import PigeonpostError, WireError
from pigeonpost.settings import load_node
from protocol import LINE_BYTES, VERSION, decode, encode


def _alive(context: Context) -> int:
    """Exit with status 0 if the server or node that uses the data folder answers, else with 1.

    A node is contacted at the address in its settings.
    """
    check_alive(context.data)
    return 0


def check_alive(data: str) -> None:
    """Check that the server that uses the folder `data` answers, or else a node on this machine.

    If a server has used the folder and no node has, no node is contacted: containers that share a network would
    otherwise reach the node of another container.

    Raises:
        Failed: Neither answers.
    """
    is_running, was_server, was_node = (
        os.path.exists(os.path.join(data, name)) for name in (RUNNING, SERVER_LOCK, OUTBOX_LOCK)
    )
    if is_running or (was_server and not was_node):
        ask_server(data, "GET", "/healthz")
    else:
        host, port = load_node(SimpleNamespace(config=None))["node", "listen"]
        _greet_node((local_host(host), port))


def _greet_node(address: tuple[str, int]) -> None:
    """Send HELLO to the node at an address. Raise Failed unless it answers in the link protocol.

    HELLO needs no token, and on this machine it is answered without TLS. A rejection counts as an answer.
    """
    place = join_address(*address)
    hello = {"link": VERSION, "server": "health-check", "nonce": secrets.token_hex(16)}
    try:
        with socket.create_connection(address, ANSWER_S) as link:
            link.sendall(encode("HELLO", hello))
            line = link.makefile("rb").readline(LINE_BYTES + 1)
            link.sendall(encode("BYE"))
    except OSError as error:
        raise Failed(f"no node answers at {place}: {error.strerror or error}") from None
    try:
        answer = decode(line)
    except WireError:
        raise Failed(f"the program at {place} is not a node: it answered {line[:60]!r}") from None
    if answer is None:
        raise Failed(f"{place}: the connection was closed without an answer")


def main(arguments: Sequence[str]) -> int:
    """Check the program that uses the data folder in `arguments` (default: ./data), and return the exit status."""
    try:
        check_alive(arguments[0] if arguments else data_folder(""))
    except PigeonpostError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


COMMANDS: Mapping[str, Command] = {
    "alive": Command("exit 0 if the program answers (for health checks)", [], _alive),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
