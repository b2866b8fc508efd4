"""Simulated node of `server.py --demo`: node.py with a simulated chip, in a separate process.

It shares the server's standard error, and ends with the server. Errors: SettingsError if it does not start.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys

from pigeonpost.core.addresses import split_address
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.files import replace_file

START_S = 10.0

_SETTINGS = """# Written by server.py --demo.
[node]
name = "demo"
every = 1
simulate = true

[outbox]
slots = 180  # three minutes: a longer interruption of the link shows a gap

[log]
level = "warning"  # its lines would be mixed with the server's

[[sensor]]  # simulated: there is no chip
kind = "adc"
[sensor.channels]
temperature = {input = 1, convert = "mcp9700"}
light = {input = 2, convert = "counts"}

[[sensor]]  # real: this computer itself
kind = "machine"
"""
# Location of the module `node`, three levels above pigeonpost/server/demo_node.py: a folder, or a zip file of all
# modules.
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The server keeps the other end of the node's standard input open. When the server ends, even by SIGKILL, the node
# reads the end of the file and stops. os.read, because a thread in a buffered read would abort the end of Python.
_MAIN = """
import os, signal, threading
def wait_for_end():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=wait_for_end, name="server", daemon=True).start()
import node, sys
sys.exit(node.main())
"""


class DemoNode:
    """Process of the simulated node, which can be started again after it has ended. Only one thread at a time uses it.

    Attributes:
        folder: Data folder of the node.
    """

    def __init__(self, folder: str) -> None:
        """Initialise the node. It will keep its data in the subfolder `node` of `folder`."""
        self.folder = os.path.join(folder, "node")
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """Id of the node's process, or None if it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> tuple[str, int]:
        """Start the node, wait until it is listening, and return its address.

        Raises:
            SettingsError: The node did not start.
        """
        settings = os.path.join(self.folder, "node.toml")
        replace_file(settings, _SETTINGS.encode())
        # -P: do not import a different node.py from the working directory.
        program = [sys.executable, "-P", "-c", _MAIN]
        self._process = subprocess.Popen(
            [*program, "--config", settings, "--listen", "127.0.0.1:0", "--data", self.folder],
            env={**os.environ, "PYTHONPATH": _ROOT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C must only reach the server, which then stops the node
        )
        line = _first_line(self._process)
        if not line.startswith("listening on "):
            raise SettingsError(f"the demonstration's node did not start in {START_S:.0f} s: see its messages above")
        return split_address(line.removeprefix("listening on ").strip())

    def kill(self) -> None:
        """End the node by SIGKILL, which it cannot notice. Does nothing if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def stop(self, limit_s: float) -> str | None:
        """Stop the node. Return a message if it has to be killed after `limit_s` seconds."""
        if self._process is None:
            return None
        self._process.terminate()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the demonstration's node had to be killed"
        self._reap()
        return None

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(START_S) else ""
