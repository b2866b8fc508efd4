"""Simulated node of `server.py --demo`: node.py with a simulated chip, in a separate process.

It shares the server's standard error. Errors: SettingsError if it does not start.
"""

from __future__ import annotations

import os
import selectors
import signal
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
_MAIN = "import node, sys; sys.exit(node.main())"


class DemoNode:
    """Process of the simulated node."""

    def __init__(self, folder: str) -> None:
        """Initialise the node. It will keep its data in the subfolder `node` of `folder`."""
        self._folder = os.path.join(folder, "node")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> tuple[str, int]:
        """Start the node, wait until it is listening, and return its address.

        Raises:
            SettingsError: The node did not start.
        """
        settings = os.path.join(self._folder, "node.toml")
        replace_file(settings, _SETTINGS.encode())
        # -P: do not import a different node.py from the working directory.
        program = [sys.executable, "-P", "-c", _MAIN]
        self._process = subprocess.Popen(
            [*program, "--config", settings, "--listen", "127.0.0.1:0", "--data", self._folder],
            env={**os.environ, "PYTHONPATH": _ROOT},
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_end_with_parent,
            process_group=0,  # Ctrl-C must only reach the server, which then stops the node
        )
        line = _first_line(self._process)
        if not line.startswith("listening on "):
            raise SettingsError(f"the demonstration's node did not start in {START_S:.0f} s: see its messages above")
        return split_address(line.removeprefix("listening on ").strip())

    def stop(self, limit_s: float) -> str | None:
        """Stop the node. Return a message if it has to be killed after `limit_s` seconds."""
        if self._process is None or self._process.poll() is not None:
            return None
        self._process.terminate()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return "the demonstration's node had to be killed"
        return None


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(START_S) else ""


def _end_with_parent() -> None:
    """Ask the kernel to stop the node if the server is killed (prctl(2)). Runs in the child process."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):  # Linux
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
