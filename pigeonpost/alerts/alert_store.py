"""Durable states of the alerts, and durable queue of their messages, in one SQLite file of the data folder.

One transaction writes the state of an alert and the message about it. After a crash, the message is thus either in the
queue, or the alert is still due. The file is separate from the store of samples, so that a full queue or a damaged file
never delays samples.

Any thread may use it. `_lock` guards the content in memory and the connection. It is held during a write, which happens
only when an alert or a message changes.
Errors: none. While the disk cannot be written, everything stays in memory, messages are delivered nevertheless, and
each further change tries to write all of it. `fault` contains the reason. A file that cannot be read is read later, and
before that it is not written, so that its messages are not lost. A damaged file is renamed and replaced.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pigeonpost.alerts.contract import AlertMessage, QueuedMessage
from pigeonpost.core.clock import Clock
from pigeonpost.core.files import give_to_owner
from pigeonpost.core.format import counted

log = logging.getLogger(__name__)

MOST_WAITING = 500  # messages per channel; at the limit the oldest message is dropped
_SOURCE = "source"  # key of AlertMessage.source in the stored `info`
_READ_AGAIN_S = 60.0  # time after which a file that could not be read is read again
_SCHEMA = """
CREATE TABLE IF NOT EXISTS states (key TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queue (
    number INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, queued_ms INTEGER NOT NULL, message TEXT NOT NULL
);
"""
_Statement = tuple[str, tuple[Any, ...]]


class AlertStore:
    """States of the alerts, and the queue of messages of each channel (contract.AlertQueue)."""

    def __init__(self, path: str, channels: Sequence[str], clock: Clock) -> None:
        """Open the file, or create it.

        Args:
            path: Path of the file.
            channels: Names of the channels. Messages for other channels are removed: they are no longer configured.
            clock: Clock of the server.
        """
        self._path, self._channels, self._clock = path, list(channels), clock
        self._lock = threading.Lock()
        self._fault = ""
        self._is_behind = False  # True if the file does not contain everything that is in memory
        self._states: dict[str, Any] = {}
        self._notes: dict[str, str] = {}
        self._queues: dict[str, dict[int, QueuedMessage]] = {channel: {} for channel in self._channels}
        self._last = 0  # number of the last message
        self._db: sqlite3.Connection | None = None
        self._is_read = False  # True if what the file contained at the start is in memory
        self._read_s = clock.monotonic()  # time of the last attempt to read it
        try:
            self._write(self._load())
        except (OSError, sqlite3.Error) as error:  # it cannot be opened or written now
            self._fail(error)

    @property
    def fault(self) -> str:
        """Reason why the queue and the states of the alerts cannot be stored now, or an empty string."""
        return self._fault

    def states(self) -> dict[str, Any]:
        """Return the stored states as JSON values, by key."""
        with self._lock:
            return dict(self._states)

    def commit(self, states: Mapping[str, Any], messages: Sequence[AlertMessage], notes: Mapping[str, str]) -> None:
        """Store changed states and notes, and add messages to the queues of all channels, in one transaction.

        Args:
            states: The changed states as JSON values, by key; None for a state that is removed.
            messages: The messages about these changes.
            notes: Changed notes, as with `note`.
        """
        with self._lock:
            statements = [self._change_state(key, state) for key, state in states.items()]
            statements += [self._change_note(key, value) for key, value in notes.items()]
            for message in messages:
                statements += self._enqueue(message, self._channels)
            self._write(statements)

    def put(self, messages: Sequence[AlertMessage], channels: Sequence[str] | None = None) -> None:
        """Add `messages` to the queues of the `channels`, or of all channels if it is None, and sync the disk."""
        with self._lock:
            statements: list[_Statement] = []
            for message in messages:
                statements += self._enqueue(message, self._channels if channels is None else channels)
            self._write(statements)

    def waiting(self, channel: str) -> list[QueuedMessage]:
        """Return the messages that wait for `channel`, the oldest first."""
        with self._lock:
            if not self._is_read and self._clock.monotonic() - self._read_s >= _READ_AGAIN_S:
                self._write([])
            return list(self._queues.get(channel, {}).values())

    def remove(self, channel: str, number: int) -> None:
        """Remove the message with this `number` from the queue of `channel`, and sync the disk."""
        with self._lock:
            if self._queues.get(channel, {}).pop(number, None) is not None:
                self._write([("DELETE FROM queue WHERE number = ?", (number,))])

    def note(self, key: str, value: str) -> None:
        """Store the text `value` under a `key`, and sync the disk."""
        with self._lock:
            if self._notes.get(key) != value:
                self._write([self._change_note(key, value)])

    def noted(self, key: str) -> str:
        """Return the text that was stored under `key`, or an empty string."""
        with self._lock:
            return self._notes.get(key, "")

    def close(self) -> None:
        """Close the file, after a last attempt to write what is only in memory."""
        with self._lock:
            if self._is_behind:
                self._write([])
            if self._db is not None:
                self._db.close()
                self._db = None

    # ------------------------------------------------------------------------------------------------- in memory

    def _change_state(self, key: str, state: Any) -> _Statement:
        if state is None:
            self._states.pop(key, None)
            return "DELETE FROM states WHERE key = ?", (key,)
        self._states[key] = state
        return "INSERT OR REPLACE INTO states VALUES (?, ?)", (key, json.dumps(state))

    def _change_note(self, key: str, value: str) -> _Statement:
        self._notes[key] = value
        return "INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, value)

    def _enqueue(self, message: AlertMessage, channels: Sequence[str]) -> Iterator[_Statement]:
        message = message if message.id else message._replace(id=secrets.token_hex(16))
        for channel in channels:
            queue = self._queues.setdefault(channel, {})
            if any(one.message.id == message.id for one in queue.values()):
                continue
            self._last += 1
            queue[self._last] = QueuedMessage(self._last, self._clock.wall_ms(), message)
            yield _insertion(channel, queue[self._last])
            if len(queue) > MOST_WAITING:
                oldest = next(iter(queue))
                log.error("a message was dropped, because %d others wait: %s", MOST_WAITING,
                          queue.pop(oldest).message.subject)  # fmt: skip
                yield "DELETE FROM queue WHERE number = ?", (oldest,)

    # ---------------------------------------------------------------------------------------------- on the disk

    def _load(self) -> list[_Statement]:
        """Read the file, and replace it if it is damaged.

        Returns:
            The statements that remove the messages of channels that are no longer configured.
        """
        self._read_s = self._clock.monotonic()
        try:
            return self._read_file()
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            self._set_aside(error)
            return self._read_file()

    def _read_file(self) -> list[_Statement]:
        """Add the content of the file to that in memory, which is newer."""
        if self._db is None:
            self._db = _open(self._path)
        states = {key: json.loads(text) for key, text in self._db.execute("SELECT key, state FROM states")}
        notes = dict(self._db.execute("SELECT key, value FROM notes"))
        queued = [
            (channel, QueuedMessage(number, queued_ms, _read_message(text)))
            for number, channel, queued_ms, text in self._db.execute(
                "SELECT number, channel, queued_ms, message FROM queue ORDER BY number"
            )
        ]
        found = self._db.execute("SELECT max(seq) FROM sqlite_sequence").fetchone()
        self._states, self._notes = {**states, **self._states}, {**notes, **self._notes}
        has_messages = self._last > 0  # those in memory keep their numbers, by which the Notifier knows them
        self._last = max(self._last, found[0] or 0)
        dropped: list[_Statement] = []
        removed = Counter(channel for channel, _ in queued if channel not in self._queues)
        for channel, count in removed.items():
            log.warning("%s, which is no longer in the settings: %s dropped", channel, counted(count, "message"))
        for channel, one in queued:
            if channel in removed:
                dropped.append(("DELETE FROM queue WHERE number = ?", (one.number,)))
                continue
            if has_messages:
                self._last += 1
                one = one._replace(number=self._last)
            self._queues[channel][one.number] = one
        self._is_read = True
        return dropped

    def _set_aside(self, error: Exception) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        set_aside = f"{self._path}.damaged-{self._clock.wall_ms()}"
        log.error("%s is damaged (%s). It is renamed to %s; the states of the alerts are lost", self._path, error,
                  os.path.basename(set_aside))  # fmt: skip
        os.rename(self._path, set_aside)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._path}-journal")

    def _write(self, statements: Sequence[_Statement]) -> None:
        """Execute `statements` in one transaction; after an earlier error, write the whole content instead."""
        if not statements and not self._is_behind:
            return
        try:
            if not self._is_read:
                self._load()
            if self._db is None:
                self._db = _open(self._path)
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for statement in self._everything() if self._is_behind else statements:
                    self._db.execute(*statement)
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
        else:
            if self._fault:
                log.warning("%s: works again", self._path)
            self._fault, self._is_behind = "", False

    def _everything(self) -> Iterator[_Statement]:
        for table in ("states", "notes", "queue"):
            yield f"DELETE FROM {table}", ()
        for key, state in list(self._states.items()):
            yield self._change_state(key, state)
        for key, value in list(self._notes.items()):
            yield self._change_note(key, value)
        for channel, queue in self._queues.items():
            yield from (_insertion(channel, queued) for queued in queue.values())

    def _fail(self, error: Exception) -> None:
        if not self._fault:
            log.error("%s cannot be written: %s", self._path, error)
        self._is_behind = True
        self._fault = (
            f"the states of alerts and their messages are only in memory, because {os.path.basename(self._path)} cannot"
            f" be written: {error}"
        )


def _open(path: str) -> sqlite3.Connection:
    if not os.path.exists(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        give_to_owner(path)
    db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _insertion(channel: str, queued: QueuedMessage) -> _Statement:
    text = _stored_message(queued.message)
    return "INSERT INTO queue VALUES (?, ?, ?, ?)", (queued.number, channel, queued.queued_ms, text)


def _stored_message(message: AlertMessage) -> str:
    """Return `message` as JSON. `source` is stored in `info`: earlier versions read exactly seven items."""
    if message.source is not None:
        message = message._replace(info={**message.info, _SOURCE: message.source})
    return json.dumps(list(message[:-1]))


def _read_message(text: str) -> AlertMessage:
    message = AlertMessage(*json.loads(text))
    source = message.info.pop(_SOURCE, None) if isinstance(message.info, dict) else None
    return message._replace(source=source)
