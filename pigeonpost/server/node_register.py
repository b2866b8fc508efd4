"""Records of what operators have said of nodes: former names, retired nodes, labels of sensors; read from the store.

May be used by any thread: the records are replaced as a whole; `_reading` is held while they are read, so that none
read earlier replace them. `refresh` is called where they have changed: by the Ingestor's writer right after the
transaction, so that no batch of a former name is committed under it. A store that other servers write to as well is
read again every READ_S.
Errors: none while a store cannot be read: then what was read before stays, and `require` raises.

After `rename A B`, what says that it is node A is node B: its Pi may go on saying A. Only a token of its own, made for
A later, makes A a node again.
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

READ_S = 10.0  # between two looks at a store that other servers write to
V = TypeVar("V")


def _no_token(node: str) -> str | None:
    return None


class NodeRegister:
    """The records of a store, as they were read last."""

    def __init__(
        self,
        store: Store,
        token_of: Callable[[str], str | None] = _no_token,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """token_of: returns the token of a node, None where it has none; looked up for former names alone"""
        self._store, self._token_of, self._monotonic = store, token_of, monotonic
        self._records = NodeRecords()
        self._present: Mapping[str, str] = {}  # former name to the present one
        self._own: set[str] = set()  # former names that have had a token of their own since
        self._read_s = 0.0
        self.is_read = False  # the last attempt to read succeeded
        self._reading = threading.Lock()
        self._renames: list[tuple[str, str]] = []  # that were read, and are not taken yet
        self.on_rename: list[Callable[[str, str], object]] = []  # called with both names, in the writer's thread
        self.refresh()
        self._renames.clear()  # of former runs

    def refresh(self) -> None:
        """Read the records again, if the store can be read."""
        try:
            self._read()
        except (StoreDamaged, NotStored, DiskError) as error:  # which is shown elsewhere, with its remedy
            log.debug("records of nodes: %s", error)

    def require(self) -> None:
        """Read the records again if that is due or failed last, before something is stored: a batch of a former name
        would make a second node of it. Raises NotStored or DiskError as long as it fails.
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
            # Of several the latest.
            self._present = {former.name: former.node for former in records.former if not former.is_released}
            self._records, self._own, self.is_read = records, set(), True
            # Each node that has another name than before, by the name under which it was known.
            pairs = {before.get(name, name): node for name, node in self._present.items()}
            self._renames += [(known, node) for known, node in pairs.items() if known != node]

    def take_renames(self) -> list[tuple[str, str]]:
        """Return the renames that were read since the last call: the name under which a node was known, and its new
        one."""
        if not self._renames:
            return []
        with self._reading:
            found, self._renames = self._renames, []
        return [(known, node) for known, node in found if self.current(known) == node]

    @property
    def records(self) -> NodeRecords:
        """What operators have said, as far as this server knows."""
        if self._is_due():
            self.refresh()
        return self._records

    def current(self, name: str) -> str:
        """Return the present name of the node that says it is `name`."""
        if not self.records.former:
            return name
        node = self._present.get(name)
        if node is None or name in self._own:
            return name
        try:
            own = self._token_of(name)
            if own is not None and own != self._token_of(node):
                self._own.add(name)
                return name
        except SettingsError as error:  # a fault of its own: it has none that is known
            log.debug("tokens: %s", error)
        return node

    def retired_ms(self, node: str) -> int | None:
        """Return since when `node` is retired, in ms since 1970; None: it is in use."""
        return self.records.retired.get(node)

    def label(self, node: str, sensor: str) -> str:
        """Return what people see in place of the sensor's name; empty: that name."""
        return self.records.labels.get((node, sensor), "")


def move_key(entries: dict[str, V], node: str, new: str) -> None:
    """Give the entry of a renamed node its new name, if there is one."""
    if node in entries:
        entries[new] = entries.pop(node)


class ByPresentName(Mapping[str, V]):
    """A mapping of nodes, whose keys may be former names, looked up by any name of a node."""

    def __init__(self, nodes: Mapping[str, V], current: Callable[[str], str]) -> None:
        """current: NodeRegister.current"""
        self._nodes, self._current = nodes, current

    def __getitem__(self, name: str) -> V:
        wanted = self._current(name)
        for key, value in self._nodes.items():
            if self._current(key) == wanted:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)
