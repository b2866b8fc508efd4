"""Connections to PostgreSQL for the writer and for readers, and the translation of psycopg's errors.

This is the only module of the store that imports psycopg 3. Any thread may use it. A reader borrows a connection for
one short query from `_idle`, a deque whose append and pop are atomic. The semaphore `_room` limits the number of
concurrent queries.
Errors: NotStored while the database cannot be reached, restarts, is locked or is full (a retry may succeed);
SettingsError at the start for an invalid address, a wrong password or missing privileges; StoreDamaged if the database
reports damaged data or a table is missing; DiskError for all other errors.
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
_ROOM_S = 30.0  # maximum wait of a reader for a connection, for example while the database does not respond
# Settings of libpq: the timeout for connecting, and the time after which a connection without response is closed.
_TIMEOUTS = {
    "connect_timeout": "5", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3",
    "tcp_user_timeout": "20000", "application_name": "pigeonpost",
}  # fmt: skip
# Settings of the session. They override defaults of the database or the role. The timeouts limit how long the database
# keeps the session of a server that has disappeared, because the session holds locks for which other servers wait.
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
_CLIENT_CHECK_VERSION = 140_000  # first version that can detect during a query that the client has disconnected
# Texts of errors that connecting again does not repair. They have no SQLSTATE, because there was no connection.
_PERMANENT = ("authentication failed", "does not exist", "no password supplied", "no pg_hba.conf entry")
_NO_PRIVILEGES = "42501"
_CORRUPTED = ("XX001", "XX002")  # data_corrupted, index_corrupted (PostgreSQL, appendix A)
# Undefined table, column or schema. PostgreSQL also reports these while the user's privileges are being changed, so
# readers try again.
_UNDEFINED = ("42P01", "42703", "3F000")
_READ_ONLY = "25006"  # a standby: during a failover the host name may lead to it for a short time


class PostgresConnection:
    """The connections to one database.

    Attributes:
        psycopg: The module psycopg.
        place: Description of the database for messages, without the password.
        has_worked: True once the store was opened successfully. After that, no error is attributed to the settings.
        on_damage: Called with the message when the database reports damaged data.
    """

    def __init__(self, address: str) -> None:
        """Check the address without connecting.

        Args:
            address: postgresql://user:password@host:port/database, or any other connection string of libpq.

        Raises:
            SettingsError: psycopg 3 is not installed, or `address` is not a valid connection string.
        """
        try:
            import psycopg
        except ImportError:
            raise SettingsError(
                "[store] postgres needs psycopg 3: `sudo apt install python3-psycopg`, or `pip install psycopg[binary]`"
            ) from None
        self.psycopg: Any = psycopg
        logging.getLogger("psycopg").setLevel(logging.ERROR)  # its warnings repeat errors that are reported here
        self._has_pipelines = hasattr(psycopg, "Pipeline") and psycopg.Pipeline.is_supported()  # libpq 14
        try:
            given = self.psycopg.conninfo.conninfo_to_dict(address)
        except self.psycopg.Error:  # its text may contain the password
            raise SettingsError(
                "[store] postgres is not a valid address; use the form postgresql://user:password@host:5432/database"
            ) from None
        self._parameters = {**_TIMEOUTS, **given}
        place = [given[part] for part in ("host", "hostaddr", "port", "dbname") if given.get(part)]
        self.place = f"PostgreSQL ({' '.join(place) or 'on this machine'})"
        self.has_worked = False
        self.on_damage: Callable[[str], object] = lambda text: None
        self._idle: deque[Any] = deque()
        self._room = threading.Semaphore(_MOST_READERS)

    def connect(self) -> Any:
        """Open a connection in autocommit mode and return it.

        Raises:
            SettingsError: The database refuses the connection permanently, or cannot be used (see `check_server`).
        """
        try:
            db = self.psycopg.connect(**self._parameters, autocommit=True)
        except self.psycopg.Error as error:
            if any(text in str(error) for text in _PERMANENT):
                raise SettingsError(f"{self.place}: {text_of(error)}") from None
            raise
        try:
            check_server(db)
            db.execute(_SESSION)
            if db.info.server_version >= _CLIENT_CHECK_VERSION:
                db.execute("SET client_connection_check_interval = '5s'")
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Borrow a read-only connection with a snapshot of the database, for one short query.

        Raises:
            NotStored: No connection became free in time, or the database cannot be reached.
        """
        if not self._room.acquire(timeout=_ROOM_S):
            raise NotStored(f"{self.place}: none of the {_MOST_READERS} read connections was free within {_ROOM_S:g} s")
        try:
            with self.translated_errors(reads=True):
                db = self._borrow()
                try:
                    yield db
                    db.execute("ROLLBACK")
                except BaseException:
                    db.close()  # its transaction is unfinished, or the connection is broken
                    raise
                self._idle.append(db)
        finally:
            self._room.release()

    def _borrow(self) -> Any:
        """Return a connection in a new transaction. Close pooled connections that a database restart broke."""
        while True:
            try:
                db = self._idle.pop()
            except IndexError:
                db = self.connect()
                db.execute(_BEGIN_READING)
                return db
            try:
                db.execute(_BEGIN_READING)
                return db
            except self.psycopg.Error:
                db.close()

    def pipeline(self, db: Any) -> AbstractContextManager[Any]:
        """Return a context in which statements on `db` are sent without waiting for the results of previous ones.

        Fetching the rows of a statement waits for its result, and leaving the context waits for all results. The error
        that is raised is that of the first statement that failed.
        """
        return db.pipeline() if self._has_pipelines else nullcontext()

    def close(self) -> None:
        """Close all connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def translated_errors(self, reads: bool = False) -> Iterator[None]:
        """Return a context in which errors of psycopg are raised as those of the module docstring.

        Once `has_worked` is True, a SettingsError becomes NotStored, because a retry may help. `reads` is True for
        queries of readers: for them a missing table is not reported as damage.
        """
        try:
            yield
        except (self.psycopg.Error, SettingsError) as error:
            translated = error if isinstance(error, SettingsError) else self._translated(error, reads)
            if self.has_worked and isinstance(translated, SettingsError):
                translated = NotStored(str(translated))
            raise translated from error

    def _translated(self, error: Exception, reads: bool) -> PigeonpostError:
        text, state = f"{self.place}: {text_of(error)}", getattr(error, "sqlstate", None) or ""
        if state == _NO_PRIVILEGES:
            return SettingsError(f"{text} (`control.py schema` prints a script that a superuser can run instead)")
        is_missing = state in _UNDEFINED and self.has_worked
        if state in _CORRUPTED or (is_missing and not reads):
            damage = (
                f"{text}; nothing more is stored, and the nodes keep their samples. Restore this database with"
                " pg_restore (docs/scale.md), then start the server again: the nodes send the contents of their"
                " outboxes again"
            )
            self.on_damage(damage)
            return StoreDamaged(damage)
        is_lost = isinstance(error, self.psycopg.OperationalError | self.psycopg.InterfaceError)
        return (NotStored if is_lost or is_missing or state == _READ_ONLY else DiskError)(text)


_BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


def text_of(error: Exception) -> str:
    """Return the text of `error`, an error of psycopg, as one line."""
    return " ".join(str(error).split()) or type(error).__name__
