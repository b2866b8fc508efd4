"""Health check: whether the program on a data folder answers.

    python3 control.py alive
    python3 -m pigeonpost.cli.alive DATA     the same in a third of the time, for a container on a Pi Zero

Errors: Failed where it does not answer; SettingsError for those of the node.
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


def alive(context: Context) -> int:
    """Exit 0 when the program on this data answers, a node at the address of its settings. For health checks."""
    check_alive(context.data)
    return 0


def check_alive(data: str) -> None:
    """Ask the server that runs on `data`, else a node. Raises Failed where none answers.

    Where a server has run and no node, no node is asked: containers that share a network would take each other's.
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
    """Have the node at an address say anything of the protocol. Raises Failed.

    HELLO takes no token, and is answered in plain text on this machine; a refusal is an answer too.
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
        raise Failed(f"what answers at {place} is no node: {line[:60]!r}") from None
    if answer is None:
        raise Failed(f"{place}: closed without an answer")


def main(arguments: Sequence[str]) -> int:
    """Check the program on the data folder that is given, else on ./data. Returns the exit status."""
    try:
        check_alive(arguments[0] if arguments else data_folder(""))
    except PigeonpostError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


COMMANDS: Mapping[str, Command] = {
    "alive": Command("exit 0 when the program answers (for health checks)", [], alive),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
