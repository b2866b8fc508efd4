"""What operators do to nodes: rename, retire and relabel; beside a running server, and without one.

May be used by any thread: the store is changed by the Ingestor's writer, in one transaction each. A token is in a file
of its own: while a node is renamed both names have it, so that its Pi is known whenever a crash comes in between. Where
it came after the transaction, `finish` removes the token of the former name at the next start.
Errors: Refused, with the reason and what to do; NotStored, when it may be tried again; DiskError.
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
_LIMIT_S = 5.0  # for the transaction to begin: control.py waits longer for the answer, so it hears what became of it


class Refused(PigeonpostError, ValueError):
    """What cannot be done to a node. `is_unknown`: there is no such node."""

    def __init__(self, text: str, is_unknown: bool = False) -> None:
        super().__init__(text)
        self.is_unknown = is_unknown


class NodeAdmin:
    """Renames, retires and relabels nodes."""

    def __init__(self, store: Store, ingestor: Ingestor, tokens: Tokens, clock: Clock) -> None:
        self._store, self._ingestor, self._tokens, self._clock = store, ingestor, tokens, clock
        self.names: NodeRegister = ingestor.names
        self._renaming = threading.Lock()  # held from the checks of a rename to its end: two may want the same name

    def rename(self, node: str, new: str) -> None:
        """Give a node another name, with all that is stored of it; its token goes along.

        Raises Refused for a node without stored data, and for a new name that is in use.
        """
        with self._renaming:
            self._rename(node, new)

    def _rename(self, node: str, new: str) -> None:
        self._known(node)
        self._check_new(node, new)
        had_token = self._tokens.text_of(new) is not None
        self._tokens.share(node, new)

        def job() -> None:
            mark = self._store.log_mark()
            filed = mark.filed if mark else 0
            # After a crash its rows would be completed under the new name, beside those of the former one. Damaged
            # entries have no rows; entries up to the mark were damaged before, and the next start writes them.
            if any(entry.items and entry.filed > filed for entry in self._store.logged_after(filed)):
                raise NotStored("the CSV log waits for the disk: try again when it is written")
            self._store.rename(node, new, self._clock.wall_ms())

        def then() -> None:
            self.names.refresh()
            self._ingestor.announce_renames()

        try:
            self._ingestor.run(job, _LIMIT_S, then, is_logged=True)
        except (PigeonpostError, LookupError, ValueError) as error:
            self.names.refresh()
            # Of a database that is lost in the midst of the commit nobody knows yet if it is done.
            if not had_token and self.names.is_read and self.names.current(node) != new:
                self._tokens.revoke(new)
            if isinstance(error, PigeonpostError):
                raise
            # Since the checks another server on the same database has renamed or named a node.
            raise Refused(f"node {node} cannot be called {new}: {error}") from None
        log.info("node %s is called %s now", node, new)
        self._tokens.revoke(node)

    def release(self, name: str) -> None:
        """Let another node have the former name `name`: what says so from now on is that. Raises Refused."""
        if name not in {former.name for former in self.names.records.former if not former.is_released}:
            raise Refused(f"{name} is no former name of a node", is_unknown=True)
        self._ingestor.run(lambda: self._store.release(name), _LIMIT_S, self.names.refresh)

    def retire(self, node: str, is_retired: bool) -> None:
        """Retire a node, or take it into use again. Raises Refused for a node without stored data."""
        self._known(node)
        at_ms = self._clock.wall_ms() if is_retired else None
        if is_retired != (self.names.retired_ms(node) is not None):  # the date of the first time stays
            self._ingestor.run(lambda: self._store.retire(node, at_ms), _LIMIT_S, self.names.refresh)

    def relabel(self, node: str, sensor: str, label: str) -> None:
        """Give a sensor a text that people see in place of its name; empty: its name again. Raises Refused."""
        if sensor not in self._known(node)["sensors"]:
            raise Refused(f"node {node} never had a sensor {sensor}", is_unknown=True)
        label = label.strip()
        if len(label) > LONGEST_LABEL or not label.isprintable():
            raise Refused(f"a label is a line of up to {LONGEST_LABEL} letters")
        self._ingestor.run(lambda: self._store.relabel(node, sensor, label), _LIMIT_S, self.names.refresh)

    def finish(self) -> None:
        """Remove tokens of former names that a rename left when it was interrupted."""
        try:
            for former in self.names.records.former:
                if self._has_same_token(former):
                    self._tokens.revoke(former.name)
        except (SettingsError, DiskError) as error:  # they do no harm, and the next start tries again
            log.warning("tokens of former names stay: %s", error)

    def _has_same_token(self, former: FormerName) -> bool:
        token = self._tokens.text_of(former.name)
        return token is not None and former.name != former.node and token == self._tokens.text_of(former.node)

    def _known(self, node: str) -> Mapping[str, Any]:
        """Return what is stored of a node. Raises Refused."""
        stored = {about["name"]: about for about in self._store.nodes()}
        if node in stored:
            return stored[node]
        present = self.names.current(node)
        if present != node:
            raise Refused(f"node {node} is called {present} now", is_unknown=True)
        raise Refused(f"nothing of a node {node} is stored; there is of {', '.join(stored) or 'none'}", is_unknown=True)

    def _check_new(self, node: str, new: str) -> None:
        """Raise Refused for a new name that is in use, or none at all."""
        if not NODE_NAME(new):
            raise Refused(f"{new!r:.80} is no node name: {NODE_NAME_TAKES}")
        if new == node:
            raise Refused(f"the node is called {node} already")
        if any(about["name"] == new for about in self._store.nodes()):
            raise Refused(f"there is a node {new} already: two histories cannot become one. Choose another name")
        other = self.names.current(new)
        if other not in (new, node):
            raise Refused(
                f"{new} is a former name of {other}, whose Pi may still say it. When it does not any more:"
                f" `control.py rename {new} --release`"
            )
        token = self._tokens.text_of(new)
        if token is not None and token != self._tokens.text_of(node):
            raise Refused(f"another node {new} has a token here: choose another name, or `control.py revoke {new}`")
