"""Persistent queue of ON/OFF commands for nodes that connect to us.

A command is removed once the node reports that state.

May be used by any thread. `_changed` (a Condition and its lock) guards everything; it is held for lookups and to write
the file, and released while waiting for a node.
Errors: DiskError when a command cannot be saved. A damaged file is recorded as a fault until the next command is saved.
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
    """The pending command of each node."""

    def __init__(self, data: str, faults: Faults) -> None:
        """data: the folder of the server's data."""
        self._file = JsonFile(os.path.join(data, COMMANDS), "a list of orders", bool, faults, is_mended=True)
        self._changed = threading.Condition()
        self._said: dict[str, bool] = {}  # what each node said last
        self._calls: dict[str, int] = {}
        try:
            self._wanted = self._file.now()
        except DamagedFile:  # nodes and samples do not depend on it
            self._wanted = {}

    def of(self, node: str) -> bool | None:
        """What the node is to be; None: as it is."""
        with self._changed:
            return self._wanted.get(node)

    def record(self, node: str, on: object) -> None:
        """The node has called, and said what it is (None: it did not)."""
        with self._changed:
            self._calls[node] = self._calls.get(node, 0) + 1
            if type(on) is bool:
                self._said[node] = on
                if self._wanted.get(node) is on:
                    self._write({name: wanted for name, wanted in self._wanted.items() if name != node})
            self._changed.notify_all()

    def on_rename(self, node: str, new: str) -> None:
        """Keep the command of a node for its new name."""
        with self._changed:
            move_key(self._said, node, new)
            move_key(self._calls, node, new)
            if node in self._wanted:
                try:
                    self._write({new if name == node else name: on for name, on in self._wanted.items()})
                except DiskError as error:
                    log.warning("%s: the command to %s is kept under its former name: %s", new, node, error)

    def give(self, node: str, on: bool, limit_s: float) -> bool:
        """Tell the node so when it calls; whether it has called within `limit_s` seconds, and is."""
        with self._changed:
            self._write({**self._wanted, node: on})
            return self._changed.wait_for(lambda: node not in self._wanted and self._said.get(node) is on, limit_s)

    def hear(self, node: str, limit_s: float) -> bool:
        """Whether the node calls within `limit_s` seconds."""
        with self._changed:
            before = self._calls.get(node, 0)
            return self._changed.wait_for(lambda: self._calls.get(node, 0) > before, limit_s)

    def asker(self, node: str) -> AskNode:
        """Return what asks `node`: it waits for the next call of the node, or for the one that confirms a SEND."""

        def ask(word: str, *args: bool, limit_s: float = 5.0) -> bool:
            if word != "SEND":
                return self.hear(node, limit_s)
            try:
                return self.give(node, args[0], limit_s)
            except DiskError as error:
                log.error("%s: an order to it cannot be kept: %s", node, error)
                return False

        return ask

    def _write(self, wanted: dict[str, bool]) -> None:
        self._file.write(wanted)
        self._wanted = wanted
