"""Register of the operators' records about nodes: former names, retired nodes and sensor labels.

Any thread may use it, because the records are replaced as one object. `_reading` is held while they are read from the
store, so older records never replace newer ones. `refresh` is called after each change: the Ingestor's writer thread
calls it directly after the transaction, so no later batch is committed with a former name. If other servers write to
the store too, the records are read again every READ_S seconds.
Errors: none if the store cannot be read. The last records then remain in use, and `require` raises the error.

After `rename A B`, a node that reports the name A is node B, because its Pi may continue to use A. A is a different
node only if a separate token was created for A later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from pigeonpost.core.errors import DiskError, NotStored, SettingsError, StoreDamaged
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import NodeRecords

log = logging.getLogger(__name__)

READ_S = 10.0  # interval between two reads of a store that other servers write to
V = TypeVar("V")


def _no_token(node: str) -> str | None:
    return None


class NodeRegister:
    """Records about nodes, as they were last read from the store.

    Attributes:
        is_read: True if the last attempt to read was successful.
        on_rename: Functions that the Ingestor's writer thread calls with (former name, new name) after a renaming.
    """

    def __init__(
        self,
        store: Store,
        token_of: Callable[[str], str | None] = _no_token,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the records.

        Args:
            store: The store.
            token_of: Function that returns the token of a node, or None. It is only called for former names.
            monotonic: Clock that counts seconds and never steps.
        """
        self._store, self._token_of, self._monotonic = store, token_of, monotonic
        self._records = NodeRecords()
        self._present: Mapping[str, str] = {}  # current names by former name
        self._own: set[str] = set()  # former names that have a separate token now
        self._read_s = 0.0
        self.is_read = False
        self._reading = threading.Lock()
        self._renames: list[tuple[str, str]] = []  # renamings that `take_renames` has not returned yet
        self.on_rename: list[Callable[[str, str], object]] = []
        self.refresh()
        self._renames.clear()  # those of former runs

    def refresh(self) -> None:
        """Read the records again, if the store can be read."""
        try:
            self._read()
        except (StoreDamaged, NotStored, DiskError) as error:  # other parts show it, with its remedy
            log.debug("records of nodes: %s", error)

    def require(self) -> None:
        """Read the records again if this is due or the last attempt failed.

        This is called before a commit: with outdated records, a batch with a former name would create a second node.

        Raises:
            NotStored: The store cannot be read now.
            DiskError: The store cannot be read.
        """
        if self._is_due() or not self.is_read:
            self._read()

    def _is_due(self) -> bool:
        return self._store.is_shared and self._monotonic() - self._read_s > READ_S

    def _read(self) -> None:
        with self._reading:
            self._read_s, self.is_read = self._monotonic(), False
            records = self._store.node_records()
            before = self._present
            # If several nodes had the same name, the one that was renamed last counts.
            self._present = {former.name: former.node for former in records.former if not former.is_released}
            self._records, self._own, self.is_read = records, set(), True
            # Nodes whose name has changed, each with the name by which this server knew it.
            pairs = {before.get(name, name): node for name, node in self._present.items()}
            self._renames += [(known, node) for known, node in pairs.items() if known != node]

    def take_renames(self) -> list[tuple[str, str]]:
        """Return the renamings since the last call, as pairs of the last known name and the new name."""
        if not self._renames:
            return []
        with self._reading:
            found, self._renames = self._renames, []
        return [(known, node) for known, node in found if self.current(known) == node]

    @property
    def records(self) -> NodeRecords:
        """Records about nodes. They are read again if this is due."""
        if self._is_due():
            self.refresh()
        return self._records

    def current(self, name: str) -> str:
        """Return the current name of the node that reports the name `name`."""
        if not self.records.former:
            return name
        node = self._present.get(name)
        if node is None or name in self._own:
            return name
        try:
            token = self._token_of(name)
            if token is not None and token != self._token_of(node):
                self._own.add(name)
                return name
        except SettingsError as error:  # unreadable tokens are reported elsewhere: continue as if there were no token
            log.debug("tokens: %s", error)
        return node

    def names_of(self, node: str) -> list[str]:
        """Return the current name `node` and all former names of this node, also those that another node has now."""
        return [node, *(one.name for one in self.records.former if one.node == node)]

    def retired_ms(self, node: str) -> int | None:
        """Return the time since which `node` is retired, in ms since 1970 (UTC); None if it is in use."""
        return self.records.retired.get(node)

    def label(self, node: str, sensor: str) -> str:
        """Return the label that is displayed instead of the name of a `sensor` of `node`; empty if there is none."""
        return self.records.labels.get((node, sensor), "")


def move_key(entries: dict[str, V], node: str, new: str) -> None:
    """Move the entry of `node` in `entries` to the key `new`, if there is one."""
    if node in entries:
        entries[new] = entries.pop(node)


class ByPresentName(Mapping[str, V]):
    """Mapping by node name, in which a node can be looked up by its current name or any former name."""

    def __init__(self, nodes: Mapping[str, V], current: Callable[[str], str]) -> None:
        """Initialise the mapping from `nodes`. `current` is NodeRegister.current."""
        self._nodes, self._current = nodes, current

    def __getitem__(self, name: str) -> V:
        present = self._current(name)
        for key, value in self._nodes.items():
            if self._current(key) == present:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)
