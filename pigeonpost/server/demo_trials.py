"""Trials of `server.py --demo`: what its page "Break it" does to the node, to the link and to the disk.

Only the demonstration's own processes, connections and database are affected. `_lock` serialises the actions: any
thread may call them. Errors: SettingsError if the node does not start.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time

from pigeonpost.server.demo_count import DemoCount
from pigeonpost.server.demo_node import DemoNode
from pigeonpost.server.demo_relay import DemoRelay, LinkState
from pigeonpost.storage.contract import Store
from pigeonpost.storage.sqlite.store import SqliteStore

log = logging.getLogger(__name__)

NODE = "demo"  # first name of the node
_NO_LIMIT = 4_294_967_294  # pages; the default of SQLite


class DemoTrials:
    """The parts of the demonstration that can be broken.

    Args:
        folder: Data folder of the demonstration.

    Attributes:
        relay: The link between server and node.
        samples: Counter of the samples.
        is_full: True while the database gets no more space.
    """

    def __init__(self, folder: str) -> None:
        self._node = DemoNode(folder)
        self.relay = DemoRelay()
        self.samples = DemoCount(self._node.folder)
        self.is_full = False
        self._lock = threading.Lock()
        self._is_over = False

    def start(self) -> tuple[str, int]:
        """Start the node and the relay, and return the address at which the server reaches the node."""
        return self.relay.start(self._node.start())

    def stop(self, limit_s: float) -> None:
        """End the node and the relay within `limit_s` seconds, in any broken state. A second call does nothing."""
        self._is_over = True
        give_up_s = time.monotonic() + limit_s
        with self._lock:
            self._node.stop(max(0.1, give_up_s - time.monotonic()))
        self.relay.stop(max(0.1, give_up_s - time.monotonic()))

    @property
    def pid(self) -> int | None:
        """Id of the node's process, or None if it is not running."""
        return self._node.pid

    def kill_node(self) -> None:
        """Send SIGKILL to the node, if it is running."""
        with self._lock:
            if self._node.pid is not None:
                log.warning("demonstration: the node is killed")
            self._node.kill()
            self.relay.lead_to(None)

    def start_node(self) -> None:
        """Start the node again with the same data. Does nothing if it is running.

        Raises:
            SettingsError: It did not start.
        """
        with self._lock:
            if self._is_over or self._node.pid is not None:
                return
            self.relay.lead_to(self._node.start())
        log.warning("demonstration: the node is started again")

    def set_link(self, state: LinkState) -> None:
        """Set the `state` of the link: cut or stall it, or make it work again."""
        self.relay.set_state(state)
        log.warning("demonstration: the link is %s", state.value)

    def set_full(self, store: Store, is_full: bool) -> None:
        """Give the database no more space, or as much as it needs.

        Args:
            store: The store with the raw values. Only SQLite has such a limit.
            is_full: True for no more space.
        """
        if isinstance(store, SqliteStore):
            store.on_begin = use_up_space if is_full else lambda db: None
            self.is_full = is_full
            log.warning("demonstration: the disk is %s", "full" if is_full else "free again")


def use_up_space(db: sqlite3.Connection) -> None:
    """Limit the database to its present size, and write more than that in the open transaction of `db`.

    SQLite then reports SQLITE_FULL, as on a full disk. The transaction is rolled back, so the file does not change.

    Raises:
        sqlite3.OperationalError: The database is full.
    """
    pages, free, page_bytes = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    db.execute(f"PRAGMA max_page_count = {pages}")
    try:
        db.execute("CREATE TABLE ballast AS SELECT zeroblob(?) AS zeros", ((free + 2) * page_bytes,))
    finally:
        db.execute(f"PRAGMA max_page_count = {_NO_LIMIT}")
