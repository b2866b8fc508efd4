"""Command that imports readings from files and from databases of older systems, each reading once.

    python3 control.py import november.csv week.jsonl
    python3 control.py import --node attic 2023.csv
    python3 control.py import --scale 0.001 --unit °C tmon.sqlite3
    python3 control.py import --query "SELECT at AS time, room AS node, t AS temperature FROM log" old.db
    python3 control.py import --table readings --node attic postgresql://user@host/sensors

Errors: Failed, with the wrong rows of each file; nothing of such a file is stored.

Only one process writes to the store, so no server may run; beside one, files are imported on the page (`/files`). A
database is first converted to our CSV format, in a temporary file: its readings are recognised by what is read, not by
the database's own bytes, which change when somebody only looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from pigeonpost.cli.contract import Bar, Command, Context, Failed, matching, node_name, sensor_name
from pigeonpost.cli.open_to_write import open_to_write
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.data_folder import SERVER_LOCK
from pigeonpost.core.errors import InUse, NotStored, SettingsError
from pigeonpost.core.files import lock_data_dir
from pigeonpost.importing.foreign_postgres import IS_URL, place, postgres_lines
from pigeonpost.importing.foreign_sqlite import BadTable, ForeignColumns, sqlite_lines
from pigeonpost.importing.importer import BadFile, import_readings, inspect_readings
from pigeonpost.server.ingest import Ingestor
from protocol import UNIT

_SQLITE = b"SQLite format 3\0"


class ImportSource(NamedTuple):
    """A file to import: its name, which tells its format, and the node of readings that name none."""

    file: BinaryIO
    name: str
    node: str


class ProgressFile:
    """A file that reports the progress of reading it."""

    def __init__(self, file: BinaryIO, bar: Bar) -> None:
        self._file, self._bar = file, bar
        self._size = os.fstat(file.fileno()).st_size
        self._at = self._lines = 0

    def readline(self, most: int) -> bytes:
        line = self._file.readline(most)
        self._at += len(line)
        self._lines += 1
        if self._lines % 1000 == 0:
            self._bar.show(self._at, self._size)
        return line

    def read(self, most: int) -> bytes:
        return self._file.read(most)

    def seek(self, at: int) -> int:
        self._at = at
        return self._file.seek(at)


def import_files(context: Context) -> int:
    """Bring readings into the store: CSV as the log or as a table, JSON, JSON lines, or tables of a database: an SQLite
    file, or a postgresql:// address.

    Each reading is stored once, however often its file is imported. A file with a wrong row is not imported at all.
    """
    chosen = context.arguments
    for path in chosen.file:
        if not IS_URL(path) and not os.path.isfile(path):
            raise SettingsError(f"{path}: there is no such file")
    try:
        lock = lock_data_dir(os.path.join(context.data, SERVER_LOCK))
    except InUse as error:
        raise Failed(
            f"the server runs ({error}): stop it and import then, or drop the file to it (send-files) and import it on"
            " its page, under Files"
        ) from None
    try:
        with open_to_write(context) as (store, ingestor):
            units = {about["name"]: about["sensors"] for about in store.nodes()}
            wrong = [path for path in chosen.file if not _import_one(path, context, ingestor, units)]
    finally:
        os.close(lock)
    if wrong:
        raise Failed(f"not imported: {', '.join(map(_display_name, wrong))}")
    return 0


def _display_name(path: str) -> str:
    return place(path) if IS_URL(path) else path


def _import_one(path: str, context: Context, ingestor: Ingestor, units: Mapping[str, Mapping[str, str]]) -> bool:
    """Import one file, or one database. Returns True if that was possible."""
    shown = _display_name(path)
    bar = Bar(os.path.basename(shown))
    try:
        with _opened(path, context) as source:
            watched = cast(BinaryIO, ProgressFile(source.file, bar))
            look = inspect_readings(watched, source.name)
            if "" in look.nodes and not source.node:
                raise BadTable("does not say whose it is: --node says it")
            node = source.node if "" in look.nodes or context.arguments.node else ""
            source.file.seek(0)
            checksum = hashlib.file_digest(source.file, "sha256").hexdigest()  # type: ignore[arg-type]
            total, new = import_readings(watched, source.name, checksum, ingestor, node, units)
    except (BadFile, BadTable) as error:
        bar.end()
        for line in str(error).splitlines():
            print(f"{shown}: {line}")
        return False
    except (sqlite3.Error, NotStored) as error:
        raise Failed(f"{shown}: {error}") from error
    except OSError as error:
        raise Failed(f"{shown}: {error.strerror or error}") from error
    finally:
        bar.end()
    print(f"{shown}: {total} readings, {new} of them new, {rfc3339(look.first_ms)} to {rfc3339(look.last_ms)}")
    return True


@contextlib.contextmanager
def _opened(path: str, context: Context) -> Iterator[ImportSource]:
    """A file as it is or, of a database, as our CSV has it."""
    chosen = context.arguments
    read: Callable[[str, str, str, ForeignColumns], Iterator[str]] = postgres_lines
    if not IS_URL(path):
        read = sqlite_lines
        with open(path, "rb") as file:
            if file.read(len(_SQLITE)) != _SQLITE:
                yield ImportSource(file, os.path.basename(path), chosen.node or context.node_of_file(path))
                return
    said = ForeignColumns(
        chosen.node or "", chosen.sensor or ForeignColumns().sensor, chosen.unit or "", chosen.scale, chosen.utc
    )
    # In the data folder: that has room for it, as it has for the readings themselves.
    with tempfile.TemporaryFile(dir=context.data) as copy:
        for line in read(path, chosen.table or "", chosen.query or "", said):
            copy.write(line.encode())
        copy.flush()
        yield ImportSource(cast(BinaryIO, copy), "table.csv", said.node)


_DATABASE = "database: "
_OPTIONS: Sequence[tuple[str, dict[str, Any]]] = [
    ("file", {"metavar": "FILE", "nargs": "+"}),
    ("--node", {"metavar": "NODE", "type": node_name, "help": "whose all of it is (what the file says)"}),
    ("--table", {"metavar": "NAME", "help": f"{_DATABASE}the table with the readings (the one that looks like it)"}),
    ("--query", {"metavar": "SQL", "help": f"{_DATABASE}a SELECT with columns time, node, and value or the sensors"}),
    ("--sensor", {"metavar": "SENSOR", "type": sensor_name,
                  "help": f"{_DATABASE}what the column `value` is (as the table is called)"}),
    ("--unit", {"metavar": "UNIT", "type": matching(UNIT, "unit", "up to 32 letters"),
                "help": f"{_DATABASE}unit of the values"}),
    ("--scale", {"metavar": "NUMBER", "type": float, "default": 1.0, "help": f"{_DATABASE}values times this"}),
    ("--utc", {"action": "store_true", "help": f"{_DATABASE}times without an offset are UTC (local time)"}),
]  # fmt: skip
COMMANDS: Mapping[str, Command] = {
    "import": Command("bring readings into the store, from files or an older system's database", _OPTIONS, import_files)
}
