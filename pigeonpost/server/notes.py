"""Notes of operators at a time or a time range, such as "window opened", for charts and the list of events.

They are in `notes.json` in the data folder, which is part of the backups. Any thread may use them. `_changing` is held
while the file is changed. `on_rename` runs in the Ingestor's writer thread.
Errors: Refused; DiskError; DamagedFile if the file cannot be used.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.clock import FIRST_MS, LAST_MS
from pigeonpost.core.data_folder import NOTES
from pigeonpost.core.errors import DamagedFile, DiskError
from pigeonpost.core.json_file import JsonFile
from pigeonpost.server.node_admin import Refused

if TYPE_CHECKING:
    from pigeonpost.core.faults import Faults

log = logging.getLogger(__name__)

MOST_NOTES = 10_000
LONGEST_TEXT = 500  # characters
MOST_TAGS, LONGEST_TAG = 10, 40


class TooManyNotes(Refused):
    """Error for a note that would be one too many."""


class Note(NamedTuple):
    """A note.

    Attributes:
        time_ms: Its time, or the start of its time range, in ms since 1970 (UTC).
        end_ms: End of its time range; the same as `time_ms` if it has none.
        text: The text, one line.
        tags: Tags, for filters.
        node: Node that it is about; empty for all.
        user: Name of the operator or the token that has added it.
    """

    time_ms: int
    end_ms: int
    text: str
    tags: Sequence[str] = ()
    node: str = ""
    user: str = ""


class Notes:
    """The notes of a server."""

    def __init__(
        self, data: str, current: Callable[[str], str] = lambda name: name, faults: Faults | None = None
    ) -> None:
        """Read the notes.

        Args:
            data: Data folder of the server.
            current: Function that returns the current name of a node: see NodeRegister.
            faults: Receives damage of the file.
        """
        self._file = JsonFile(os.path.join(data, NOTES), "a list of notes", _read, faults, auto_restore=True)
        self._current = current
        self._changing = threading.Lock()

    def all(self) -> Mapping[str, Note]:
        """Return all notes by their ids; none if the file is damaged, which is a fault of the server."""
        try:
            found = self._file.now()
        except DamagedFile:
            return {}
        return {id: note._replace(node=self._current(note.node)) if note.node else note for id, note in found.items()}

    def add(self, note: Note) -> str:
        """Add a note durably and return its id.

        Raises:
            Refused: The note is invalid.
            TooManyNotes: There are too many.
            DiskError: It cannot be saved.
        """
        if not (note.text.strip() and len(note.text) <= LONGEST_TEXT and note.text.isprintable()):
            raise Refused(f"the text of a note must be one line of 1 to {LONGEST_TEXT} printable characters")
        if len(note.tags) > MOST_TAGS or not all(
            tag.strip() and len(tag) <= LONGEST_TAG and tag.isprintable() for tag in note.tags
        ):
            raise Refused(f"a note may have at most {MOST_TAGS} tags of 1 to {LONGEST_TAG} printable characters")
        if not (FIRST_MS <= note.time_ms <= LAST_MS and FIRST_MS <= note.end_ms <= LAST_MS):
            raise Refused("the times of a note must be in the years 1 to 9999")
        if note.end_ms < note.time_ms:
            raise Refused("the end of a note must not be before its time")
        id = secrets.token_hex(8)
        with self._changing:
            entries = self._file.now()
            if len(entries) >= MOST_NOTES:
                raise TooManyNotes(f"there are {MOST_NOTES:,} notes already: remove some of them first")
            self._write({**entries, id: note})
        return id

    def remove(self, id: str) -> None:
        """Remove the note `id`. Raises Refused if there is none, DiskError if the change cannot be saved."""
        with self._changing:
            entries = dict(self._file.now())
            if entries.pop(id, None) is None:
                raise Refused("there is no note with this id", is_unknown=True)
            self._write(entries)

    def on_rename(self, node: str, new: str) -> None:
        """Assign the notes of `node` to its new name `new`, because another node may get the former name later."""
        try:
            with self._changing:
                entries = self._file.now()
                if any(note.node == node for note in entries.values()):
                    self._write({
                        id: note._replace(node=new) if note.node == node else note for id, note in entries.items()
                    })  # fmt: skip
        except (DiskError, DamagedFile) as error:  # the former name is still resolved, until it is released
            log.warning("%s: its notes are still saved under its former name %s: %s", new, node, error)

    def _write(self, entries: Mapping[str, Note]) -> None:
        self._file.write({id: note._asdict() for id, note in entries.items()})


def _read(entry: Any) -> Note:
    note = Note(**entry)
    texts = (note.text, note.node, note.user, *note.tags)
    if not all(type(text) is str for text in texts) or not isinstance(note.tags, list):
        raise ValueError("a text is missing")
    if not (type(note.time_ms) is type(note.end_ms) is int and FIRST_MS <= note.time_ms <= note.end_ms <= LAST_MS):
        raise ValueError("a time is invalid")
    return note
