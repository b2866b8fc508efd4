"""Administration of nodes by operators: renaming, retiring and relabelling, with or without a running server.

Any thread may use it. The Ingestor's writer thread changes the store, with one transaction per action. Tokens are in a
separate file. So during a renaming both names have the token, and the node can connect even if the program crashes at
that time. After a crash that follows the transaction, `finish` removes the token of the former name at the next start.
Errors: Refused, with the reason and the remedy; NotStored if a retry may succeed; DiskError.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import DiskError, NotStored, PigeonpostError, SettingsError
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.node_register import NodeRegister
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import FormerName
from protocol import NODE_NAME, NODE_NAME_TAKES

log = logging.getLogger(__name__)

LONGEST_LABEL = 64  # characters
_LIMIT_S = 5.0  # maximum wait until the transaction begins; control.py waits longer for the result


class Refused(PigeonpostError, ValueError):
    """Error for an action that is not possible.

    Attributes:
        is_unknown: True if the node, or its sensor or former name in the request, does not exist.
    """

    def __init__(self, text: str, is_unknown: bool = False) -> None:
        """Initialise the error with its `text` and `is_unknown`."""
        super().__init__(text)
        self.is_unknown = is_unknown


class NodeAdmin:
    """Renaming, retiring and relabelling of nodes.

    Attributes:
        names: Current names of the nodes.
    """

    def __init__(self, store: Store, ingestor: Ingestor, tokens: Tokens, clock: Clock) -> None:
        """Initialise with the `store`, its `ingestor`, the `tokens` of the nodes and the server's `clock`."""
        self._store, self._ingestor, self._tokens, self._clock = store, ingestor, tokens, clock
        self.names: NodeRegister = ingestor.names
        self._renaming = threading.Lock()  # held during a renaming: two concurrent ones may use the same name

    def rename(self, node: str, new: str) -> None:
        """Rename `node` to `new`, with all its stored data and its token.

        Raises:
            Refused: Nothing is stored for `node`, or the new name is invalid or in use.
            NotStored: The store was busy, or the CSV log could not be written.
        """
        with self._renaming:
            self._rename(node, new)

    def _rename(self, node: str, new: str) -> None:
        self._entry_of(node)
        self._check_new(node, new)
        had_token = self._tokens.text_of(new) is not None
        self._tokens.share(node, new)

        def job() -> None:
            mark = self._store.log_mark()
            filed = mark.filed if mark else 0
            # If rows are not in the CSV log yet and the program crashes after the renaming, the next start writes them
            # with the new name. So they must be written first. Damaged entries have no rows. Entries up to the log
            # mark were damaged when the log passed them, and only the next start writes them.
            if any(entry.items and entry.filed > filed for entry in self._store.logged_after(filed)):
                raise NotStored("the CSV log is waiting for the disk: try again when its rows are written")
            self._store.rename(node, new, self._clock.wall_ms())

        def then() -> None:
            self.names.refresh()
            self._ingestor.announce_renames()

        try:
            self._ingestor.run(job, _LIMIT_S, then, is_logged=True)
        except (PigeonpostError, LookupError, ValueError) as error:
            self.names.refresh()
            # If the connection to the database was lost during the commit, its result is unknown. Then keep the token.
            if not had_token and self.names.is_read and self.names.current(node) != new:
                self._tokens.revoke(new)
            if isinstance(error, PigeonpostError):
                raise
            # Another server with the same database has used one of the names after the checks.
            raise Refused(f"node {node} cannot be renamed to {new}: {error}") from None
        log.info("node %s was renamed to %s", node, new)
        self._tokens.revoke(node)

    def release(self, name: str) -> None:
        """Release the former name `name`: a node that reports it from now on is a new node.

        Raises:
            Refused: `name` is not a former name, or is released already.
        """
        if name not in {former.name for former in self.names.records.former if not former.is_released}:
            raise Refused(f"{name} is not a former name of a node", is_unknown=True)
        self._ingestor.run(lambda: self._store.release(name), _LIMIT_S, self.names.refresh)

    def retire(self, node: str, is_retired: bool) -> None:
        """Retire `node` if `is_retired` is True; otherwise put it into use again.

        Raises:
            Refused: Nothing is stored for `node`.
        """
        self._entry_of(node)
        at_ms = self._clock.wall_ms() if is_retired else None
        # If the node is retired already, the time at which it was retired is kept.
        if is_retired != (self.names.retired_ms(node) is not None):
            self._ingestor.run(lambda: self._store.retire(node, at_ms), _LIMIT_S, self.names.refresh)

    def relabel(self, node: str, sensor: str, label: str) -> None:
        """Set the `label` that is displayed instead of the name of a `sensor` of `node`; empty for no label.

        Raises:
            Refused: The node or sensor is unknown, or the label is too long or not printable.
        """
        if sensor not in self._entry_of(node)["sensors"]:
            raise Refused(f"node {node} has never had a sensor {sensor}", is_unknown=True)
        label = label.strip()
        if len(label) > LONGEST_LABEL or not label.isprintable():
            raise Refused(f"a label must be one line of at most {LONGEST_LABEL} printable characters")
        self._ingestor.run(lambda: self._store.relabel(node, sensor, label), _LIMIT_S, self.names.refresh)

    def finish(self) -> None:
        """Remove the tokens of former names that an interrupted renaming has left."""
        try:
            for former in self.names.records.former:
                if self._has_same_token(former):
                    self._tokens.revoke(former.name)
        except (SettingsError, DiskError) as error:  # these tokens do no harm, and the next start tries again
            log.warning("tokens of former names cannot be removed: %s", error)

    def _has_same_token(self, former: FormerName) -> bool:
        token = self._tokens.text_of(former.name)
        return token is not None and former.name != former.node and token == self._tokens.text_of(former.node)

    def _entry_of(self, node: str) -> Mapping[str, Any]:
        """Return the entry of a node in Store.nodes. Raise Refused if there is none."""
        stored = {about["name"]: about for about in self._store.nodes()}
        if node in stored:
            return stored[node]
        present = self.names.current(node)
        if present != node:
            raise Refused(f"node {node} was renamed to {present}", is_unknown=True)
        raise Refused(
            f"nothing is stored for a node {node}; the stored nodes are: {', '.join(stored) or 'none'}", is_unknown=True
        )

    def _check_new(self, node: str, new: str) -> None:
        """Raise Refused if the new name is invalid or in use."""
        if not NODE_NAME(new):
            raise Refused(f"{new!r:.80} is not a valid node name: {NODE_NAME_TAKES}")
        if new == node:
            raise Refused(f"the name of the node is {node} already")
        if any(about["name"] == new for about in self._store.nodes()):
            raise Refused(f"a node {new} exists already, and two nodes cannot be merged: choose another name")
        other = self.names.current(new)
        if other not in (new, node):
            raise Refused(
                f"{new} is a former name of {other}, whose Pi may still use it. When it no longer does, run"
                f" `control.py rename {new} --release`"
            )
        token = self._tokens.text_of(new)
        if token is not None and token != self._tokens.text_of(node):
            raise Refused(f"another node {new} has a token here: choose another name, or run `control.py revoke {new}`")
