"""Connections to PostgreSQL: the writer's, a pool for readers, and the translation of psycopg's errors into ours.

The only module that imports psycopg 3 for the store. May be used by any thread: a reader borrows a connection for one
short query from `_idle`, a deque whose append and pop are atomic; `_room` limits how many readers query at once.
Errors: NotStored while the database cannot be reached, restarts, is locked or full: trying again may help.
SettingsError at the start for an address, a password or privileges that do not suffice; StoreDamaged where the database
says that its data is damaged, or a table is gone; DiskError for everything else.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from pigeonpost.core.errors import DiskError, NotStored, PigeonpostError, SettingsError, StoreDamaged
from pigeonpost.storage.postgres.schema import SCHEMA, check_server

_MOST_READERS = 8
_ROOM_S = 30.0  # that a reader waits for one of them, as while the database does not answer
# Of libpq: how long a connection may take, and when one is given up over which nothing comes any more.
_PATIENCE = {
    "connect_timeout": "5", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3",
    "tcp_user_timeout": "20000", "application_name": "pigeonpost",
}  # fmt: skip
# Of the database: what does not depend on how it is set; and when it gives up a server that is gone, and with it the
# locks for which others wait.
_SESSION = f"""
SET search_path = {SCHEMA};
SET TimeZone = 'UTC';
SET extra_float_digits = 1;
SET jit = off;
SET default_transaction_read_only = off;
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 3;
SET idle_in_transaction_session_timeout = '60s';
SET lock_timeout = '10s';
"""
_ASKS_AFTER_CLIENT = 140_000  # versions that notice, while they work, that who asked is gone
# Why a connection is refused for good: such an error has no SQLSTATE, as nobody was connected.
_HOPELESS = ("authentication failed", "does not exist", "no password supplied", "no pg_hba.conf entry")
_NO_RIGHTS = "42501"
_CORRUPTED = ("XX001", "XX002")  # data_corrupted, index_corrupted (PostgreSQL, appendix A)
# Table, column and schema. To a user whose rights are changed for a while they are not there either: readers try again.
_UNDEFINED = ("42P01", "42703", "3F000")
_READ_ONLY = "25006"  # a standby, to which a failing primary's name may lead for a while


class PostgresConnection:
    """The connections to one database."""

    def __init__(self, address: str) -> None:
        """address: postgresql://user:password@host:port/database, or what else libpq takes"""
        try:
            import psycopg
        except ImportError:
            raise SettingsError(
                "[store] postgres needs psycopg 3: `sudo apt install python3-psycopg`, or `pip install psycopg[binary]`"
            ) from None
        self.psycopg: Any = psycopg
        logging.getLogger("psycopg").setLevel(logging.ERROR)  # its warnings repeat errors that we report
        self._has_pipelines = hasattr(psycopg, "Pipeline") and psycopg.Pipeline.is_supported()  # libpq 14
        try:
            given = self.psycopg.conninfo.conninfo_to_dict(address)
        except self.psycopg.Error:  # whose text may show the password
            raise SettingsError(
                "[store] postgres takes an address like postgresql://user:password@host:5432/database, not what it got"
            ) from None
        self._parameters = {**_PATIENCE, **given}
        place = [given[part] for part in ("host", "hostaddr", "port", "dbname") if given.get(part)]
        self.place = f"PostgreSQL ({' '.join(place) or 'on this machine'})"
        self.has_worked = False  # once it has, the settings are not to blame any more
        self.on_damage: Callable[[str], object] = lambda text: None  # told what the database says of its data
        self._idle: deque[Any] = deque()
        self._room = threading.Semaphore(_MOST_READERS)

    def connect(self) -> Any:
        """Open a connection in autocommit mode."""
        try:
            db = self.psycopg.connect(**self._parameters, autocommit=True)
        except self.psycopg.Error as error:
            if any(words in str(error) for words in _HOPELESS):
                raise SettingsError(f"{self.place}: {words_of(error)}") from None
            raise
        try:
            check_server(db)
            db.execute(_SESSION)
            if db.info.server_version >= _ASKS_AFTER_CLIENT:
                db.execute("SET client_connection_check_interval = '5s'")
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Borrow a read-only connection with a snapshot of the database, for one short query."""
        if not self._room.acquire(timeout=_ROOM_S):
            raise NotStored(f"{self.place}: none of the {_MOST_READERS} reading connections was free for {_ROOM_S:g} s")
        try:
            with self.our_errors(reads=True):
                db = self._borrow()
                try:
                    yield db
                    db.execute("ROLLBACK")
                except BaseException:
                    db.close()  # in the middle of something, or dead
                    raise
                self._idle.append(db)
        finally:
            self._room.release()

    def _borrow(self) -> Any:
        """Return a connection in a new transaction. Those in the pool may be dead after a restart of the database."""
        while True:
            try:
                db = self._idle.pop()
            except IndexError:
                db = self.connect()
                db.execute(_LOOK)
                return db
            try:
                db.execute(_LOOK)
                return db
            except self.psycopg.Error:
                db.close()

    def at_once(self, db: Any) -> AbstractContextManager[Any]:
        """Return a context in which statements are sent without waiting for the answers of those before.

        Fetching the rows of a statement waits for its answer, and leaving the context for all of them. The error
        raised is that of the first statement that failed.
        """
        return db.pipeline() if self._has_pipelines else nullcontext()

    def close(self) -> None:
        """Close all connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def our_errors(self, reads: bool = False) -> Iterator[None]:
        """Translate the library's errors. After a first success a SettingsError becomes NotStored: a retry may help."""
        try:
            yield
        except (self.psycopg.Error, SettingsError) as error:
            ours = error if isinstance(error, SettingsError) else self._ours(error, reads)
            if self.has_worked and isinstance(ours, SettingsError):
                ours = NotStored(str(ours))
            raise ours from error

    def _ours(self, error: Exception, reads: bool) -> PigeonpostError:
        text, state = f"{self.place}: {words_of(error)}", getattr(error, "sqlstate", None) or ""
        if state == _NO_RIGHTS:
            return SettingsError(f"{text} (`control.py schema` prints what a superuser may run instead)")
        is_gone = state in _UNDEFINED and self.has_worked
        if state in _CORRUPTED or (is_gone and not reads):
            damage = (
                f"{text}; nothing more is stored, the nodes keep their samples. Restore this database with pg_restore"
                " (docs/scale.md), then start the server again: nodes send again what their outboxes hold"
            )
            self.on_damage(damage)
            return StoreDamaged(damage)
        is_lost = isinstance(error, self.psycopg.OperationalError | self.psycopg.InterfaceError)
        return (NotStored if is_lost or is_gone or state == _READ_ONLY else DiskError)(text)


_LOOK = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


def words_of(error: Exception) -> str:
    """Return the text of an error of the library, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
