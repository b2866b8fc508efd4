"""Runs node.py or server.py with shorter pauses: `impatient.py node.py ARGUMENTS`.

Changed are only the pauses before a program tries something again, the time in which a listener notices that it must
stop, and the interval of compaction. Tests that kill the programs hundreds of times would otherwise spend most of their
time in these pauses.
"""

from __future__ import annotations

import importlib
import os
import socketserver
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RETRY_S, LONGEST_RETRY_S = 0.05, 1.0
STOP_POLL_S = 0.02


def shorten(module: str, **constants: float) -> None:
    """Set constants of a module. Raises AttributeError if it has no such constant."""
    found = importlib.import_module(module)
    for name, value in constants.items():
        getattr(found, name)
        setattr(found, name, value)


def main(script: str, arguments: list[str]) -> int:
    """Run the program and return its exit status."""
    sys.path[0] = ROOT  # as if the program itself had been started
    shorten("pigeonpost.transports.tcp_server", RETRY_S=RETRY_S, LONGEST_RETRY_S=LONGEST_RETRY_S)
    serve = socketserver.BaseServer.serve_forever
    socketserver.BaseServer.serve_forever = lambda listener, poll_interval=0.5: serve(listener, STOP_POLL_S)  # type: ignore[assignment]
    if script == "server.py":
        shorten("pigeonpost.server.ingest", _RETRY_S=RETRY_S)
        # Compaction runs all the time, so that kills interrupt it too.
        shorten("pigeonpost.storage.maintenance", LOOK_S=0.1, _MOST_REST_S=0.1)
        shorten("pigeonpost.storage.sqlite.compaction", _MOST_FRESH=5, _LOOK_ROWS=1)
    elif os.environ.get("PIGEONPOST_PUSH_TO"):
        shorten("pigeonpost.transports.push_node_client", LONGEST_RETRY_S=LONGEST_RETRY_S)
        shorten("pigeonpost.transports.push_node", RETRY_S=RETRY_S, LONGEST_RETRY_S=LONGEST_RETRY_S)
    program = importlib.import_module(script.removesuffix(".py"))
    status: int = program.main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
