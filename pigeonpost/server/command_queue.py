"""Persistent queue of ON/OFF commands for nodes that connect to this server.

A command is removed once the node reports that state. A *call* is one contact of such a node with this server, for
example one HTTP request or one MQTT message.

Any thread may use it. `_changed` (a Condition and its lock) guards all attributes. It is held for lookups and while the
file is written, and released while waiting for a node.
Errors: DiskError if a command cannot be saved. A damaged file is recorded as a fault until the next command is saved.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from pigeonpost.core.data_folder import COMMANDS
from pigeonpost.core.errors import DamagedFile, DiskError
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile
from pigeonpost.server.node_register import move_key

if TYPE_CHECKING:
    from pigeonpost.server.node_status import AskNode

log = logging.getLogger(__name__)


class CommandQueue:
    """Queue of the pending command of each node."""

    def __init__(self, data: str, faults: Faults) -> None:
        """Read the pending commands in the server's folder `data`. A damaged file is recorded in `faults`."""
        self._file = JsonFile(os.path.join(data, COMMANDS), "a list of commands", bool, faults, auto_restore=True)
        self._changed = threading.Condition()
        self._reported: dict[str, bool] = {}  # last reported state of each node: True for on
        self._calls: dict[str, int] = {}
        try:
            self._wanted = self._file.now()
        except DamagedFile:  # collecting samples does not depend on this file
            self._wanted = {}

    def of(self, node: str) -> bool | None:
        """Return the pending state of `node`: True for on, False for off, None if there is no command."""
        with self._changed:
            return self._wanted.get(node)

    def record(self, node: str, on: object) -> None:
        """Record that `node` has called and reported the state `on` (None if it reported none)."""
        with self._changed:
            self._calls[node] = self._calls.get(node, 0) + 1
            if type(on) is bool:
                self._reported[node] = on
                if self._wanted.get(node) is on:
                    self._write({name: state for name, state in self._wanted.items() if name != node})
            self._changed.notify_all()

    def on_rename(self, node: str, new: str) -> None:
        """Move the command of `node` to its new name `new`."""
        with self._changed:
            move_key(self._reported, node, new)
            move_key(self._calls, node, new)
            if node in self._wanted:
                try:
                    self._write({new if name == node else name: state for name, state in self._wanted.items()})
                except DiskError as error:
                    log.warning("%s: its pending command is still saved under its former name %s: %s", new, node, error)

    def set_sampling(self, node: str, on: bool, limit_s: float) -> bool:
        """Save the command for `node`, and return True if the node confirms the state `on` within `limit_s` seconds."""
        with self._changed:
            self._write({**self._wanted, node: on})
            return self._changed.wait_for(lambda: node not in self._wanted and self._reported.get(node) is on, limit_s)

    def wait_for_call(self, node: str, limit_s: float) -> bool:
        """Return True if `node` calls within `limit_s` seconds."""
        with self._changed:
            before = self._calls.get(node, 0)
            return self._changed.wait_for(lambda: self._calls.get(node, 0) > before, limit_s)

    def asker(self, node: str) -> AskNode:
        """Return the AskNode function of `node`.

        It waits for the next call of the node or, with the command SEND, for the call that confirms the state.
        """

        def ask(word: str, *args: bool, limit_s: float = 5.0) -> bool:
            if word != "SEND":
                return self.wait_for_call(node, limit_s)
            try:
                return self.set_sampling(node, args[0], limit_s)
            except DiskError as error:
                log.error("%s: the command cannot be saved: %s", node, error)
                return False

        return ask

    def _write(self, wanted: dict[str, bool]) -> None:
        self._file.write(wanted)
        self._wanted = wanted
