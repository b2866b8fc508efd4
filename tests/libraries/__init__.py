"""Tests with optional libraries: paho-mqtt with a real Mosquitto on a separate port, psycopg, redis-py and smbus2.

Exports are read with pandas, polars and DuckDB.

.ci/run runs them with a Python that has these libraries, and with both interfaces of paho. Elsewhere they are skipped
if a library is missing. If CI is set, a missing broker is a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import unittest
from collections.abc import Sequence

from tests.support import free_port, temp_folder, wait_until

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")

try:
    import paho.mqtt.client as paho
except ImportError:
    paho = None


def need_broker() -> None:
    """Skip the tests if paho-mqtt or Mosquitto is missing. To be called in setUpModule."""
    if paho is None:
        raise unittest.SkipTest("paho-mqtt is not installed for this Python")
    if MOSQUITTO is None:
        if os.environ.get("CI"):
            raise AssertionError("mosquitto is not installed: sudo apt install mosquitto")
        raise unittest.SkipTest("mosquitto is not installed")


class Broker:
    """Mosquitto with a configuration. It is stopped at the end of the test."""

    def __init__(self, test: unittest.TestCase, *lines: str, port: int = 0) -> None:
        """Write the configuration.

        Args:
            test: The test.
            lines: Lines of the configuration after the listener. {folder} is replaced by the folder of the broker.
                Without lines, all clients are admitted.
            port: TCP port; 0 for any free port.
        """
        self.port = port or free_port()
        self.folder = temp_folder(test)
        self._config = os.path.join(self.folder, "mosquitto.conf")
        user = (
            ["user root"] if os.getuid() == 0 else []
        )  # otherwise it drops root privileges and cannot read this folder
        with open(self._config, "w", encoding="utf-8") as file:
            rest: Sequence[str] = lines or ("allow_anonymous true",)
            rest = [line.replace("{folder}", self.folder) for line in rest]
            file.write("\n".join([f"listener {self.port} 127.0.0.1", *user, *rest, ""]))
        self._process: subprocess.Popen[bytes] | None = None
        test.addCleanup(self.stop)

    def start(self) -> Broker:
        """Start the broker, and return when it can be reached."""
        assert MOSQUITTO
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], stdout=log, stderr=log)
        wait_until(self._answers, "mosquitto listens")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            with open(os.path.join(self.folder, "log"), encoding="utf-8") as log:
                raise AssertionError(f"mosquitto ended: {log.read()}")
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Stop the broker. Mosquitto 2.0.11 ignores a SIGTERM before its main loop, so the signal is repeated."""
        if self._process is None:
            return
        process, self._process = self._process, None
        for _ in range(120):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
                return
        process.kill()
        process.wait()
        raise AssertionError("mosquitto did not end within 60 s")
