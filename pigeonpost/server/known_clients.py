"""File of the clients that connect to this server. After a restart, it shows which of them stay silent.

Any thread may use it. `_writing` guards the clients, and is held while the file is written.
Errors: none. A file that is damaged or cannot be written is recorded as a fault; collecting does not depend on it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from pigeonpost.core.data_folder import CLIENTS
from pigeonpost.core.errors import DamagedFile, DiskError
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile
from pigeonpost.server.node_register import move_key

log = logging.getLogger(__name__)

MOST = 1000  # clients; the silence of further ones is not noticed after a restart


class KnownClient(NamedTuple):
    """A client that has connected.

    Attributes:
        transport: Name of the transport that it used last.
        is_proven: True if it has proved the token of its node.
        is_listed: True if the settings of an older system contain its node.
        every_s: Its interval in seconds, reported or learned; None if it is not known.
        on: True if it was sampling, False if not, None if that is not known.
    """

    transport: str
    is_proven: bool
    is_listed: bool
    every_s: float | None
    on: bool | None

    def resembles(self, other: KnownClient) -> bool:
        """Return True if `other` differs only by an interval that is at most twice as long or short."""
        if self._replace(every_s=other.every_s) != other or (self.every_s is None) != (other.every_s is None):
            return False
        return self.every_s is None or other.every_s is None or 0.5 <= self.every_s / other.every_s <= 2.0


class KnownClients:
    """The clients in the file, by node."""

    def __init__(self, data: str, faults: Faults) -> None:
        """Read the clients in the server's folder `data`. A damaged file is recorded in `faults`."""
        self._file = JsonFile(os.path.join(data, CLIENTS), "a list of clients", _read, faults, auto_restore=True)
        self._writing = threading.Lock()
        try:
            self._clients: dict[str, KnownClient] = dict(self._file.now())
        except DamagedFile:
            self._clients = {}

    def all(self) -> Mapping[str, KnownClient]:
        """Return the clients by node."""
        return dict(self._clients)

    def record(self, node: str, client: KnownClient) -> None:
        """Record that `client` has connected as `node`. Small changes are not written, to spare the disk."""
        known = self._clients.get(node)
        if (known is not None and known.resembles(client)) or (known is None and len(self._clients) >= MOST):
            return
        with self._writing:
            self._clients[node] = client
            self._write()

    def on_rename(self, node: str, new: str) -> None:
        """Assign the client of `node` to its new name `new`."""
        with self._writing:
            if node in self._clients:
                move_key(self._clients, node, new)
                self._write()

    def remove(self, node: str) -> None:
        """Remove the client of `node`."""
        with self._writing:
            if self._clients.pop(node, None) is not None:
                self._write()

    def _write(self) -> None:
        try:
            self._file.write({
                node: {"transport": client.transport, "proven": client.is_proven, "listed": client.is_listed,
                       "every": client.every_s, "on": client.on}
                for node, client in self._clients.items()
            })  # fmt: skip
        except DiskError as error:  # the next change writes all clients
            log.debug("the clients cannot be written: %s", error)


def _read(entry: Any) -> KnownClient:
    every_s, on = entry["every"], entry["on"]
    if every_s is not None and not (type(every_s) in (int, float) and 0 < every_s < 1e9):
        raise ValueError("every must be a time in seconds")
    if on is not None and type(on) is not bool:
        raise ValueError("on must be true, false or null")
    return KnownClient(str(entry["transport"]), entry["proven"] is True, entry["listed"] is True, every_s, on)
