"""Command `import`, which reads files and databases of other programs, and stores each reading once.

    python3 control.py import november.csv week.jsonl
    python3 control.py import --node attic 2023.csv
    python3 control.py import --scale 0.001 --unit °C tmon.sqlite3
    python3 control.py import --query "SELECT at AS time, room AS node, t AS temperature FROM log" old.db
    python3 control.py import --table readings --node attic postgresql://user@host/sensors

Errors: Failed for invalid rows, which are printed. No reading of a file with invalid rows is stored.

Only one process may write to the store, so the server must be stopped. While it is running, import files with the web
interface (`/files`). A database is first converted to a temporary file in Pigeonpost's CSV format. A repeated import is
recognised by the checksum of this file, because the bytes of a database can change even when it is only read.
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
from pigeonpost.core.data_folder import SERVER_LOCK
from pigeonpost.core.errors import InUse, NotStored, SettingsError
from pigeonpost.core.files import lock_data_dir
from pigeonpost.core.format import counted, stamp
from pigeonpost.importing.foreign_postgres import IS_URL, place, postgres_lines
from pigeonpost.importing.foreign_sqlite import BadTable, ForeignColumns, sqlite_lines
from pigeonpost.importing.importer import BadFile, import_readings, inspect_readings
from pigeonpost.server.ingest import Ingestor
from protocol import UNIT

_SQLITE = b"SQLite format 3\0"


class ImportSource(NamedTuple):
    """File to import.

    Attributes:
        file: The open file.
        name: Its name, whose extension determines the format.
        node: Node of readings that name none, or an empty string.
    """

    file: BinaryIO
    name: str
    node: str


class ProgressFile:
    """Wrapper of a binary `file` that shows on a `bar` how much of it has been read."""

    def __init__(self, file: BinaryIO, bar: Bar) -> None:
        self._file, self._bar = file, bar
        self._size = os.fstat(file.fileno()).st_size
        self._position = self._lines = 0

    def readline(self, most: int) -> bytes:
        """Read and return a line of at most `most` bytes."""
        line = self._file.readline(most)
        self._position += len(line)
        self._lines += 1
        if self._lines % 1000 == 0:
            self._bar.show(self._position, self._size)
        return line

    def read(self, most: int) -> bytes:
        """Read and return at most `most` bytes."""
        return self._file.read(most)

    def seek(self, position: int) -> int:
        """Move to the `position`, in bytes from the beginning of the file, and return it."""
        self._position = position
        return self._file.seek(position)


def _import_files(context: Context) -> int:
    """Import readings from files or databases.

    A file is CSV (in the format of the log, or a table with one column per sensor), JSON, or JSON lines. A database is
    an SQLite file, or a PostgreSQL database given by its address (postgresql://...). Each reading is stored once, even
    if its file is imported again. A file with an invalid row is not imported.
    """
    chosen = context.arguments
    for path in chosen.file:
        if not IS_URL(path) and not os.path.isfile(path):
            raise SettingsError(f"{path}: the file does not exist")
    try:
        lock = lock_data_dir(os.path.join(context.data, SERVER_LOCK))
    except InUse as error:
        raise Failed(
            f"the server is running ({error}): stop it and import again, or upload the file (send-files) and import it"
            " on the page Files"
        ) from None
    try:
        with open_to_write(context) as (store, ingestor):
            units = {about["name"]: about["sensors"] for about in store.nodes()}
            rejected = [path for path in chosen.file if not _import_one(path, context, ingestor, units)]
    finally:
        os.close(lock)
    if rejected:
        raise Failed(f"not imported: {', '.join(map(_display_name, rejected))}")
    return 0


def _display_name(path: str) -> str:
    return place(path) if IS_URL(path) else path


def _import_one(path: str, context: Context, ingestor: Ingestor, units: Mapping[str, Mapping[str, str]]) -> bool:
    """Import one file or database. Return False if it has invalid rows."""
    shown = _display_name(path)
    bar = Bar(os.path.basename(shown))
    try:
        with _opened(path, context) as source:
            progress_file = cast(BinaryIO, ProgressFile(source.file, bar))
            summary = inspect_readings(progress_file, source.name)
            if "" in summary.nodes and not source.node:
                raise BadTable("the file does not name the node of its readings: add --node NODE")
            node = source.node if "" in summary.nodes or context.arguments.node else ""
            source.file.seek(0)
            checksum = hashlib.file_digest(source.file, "sha256").hexdigest()  # type: ignore[arg-type]
            total, new = import_readings(progress_file, source.name, checksum, ingestor, node, units)
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
    period = f"{stamp(summary.first_ms)} to {stamp(summary.last_ms)}"
    print(f"{shown}: {counted(total, 'reading')}, {new:,} new, {period}")
    return True


@contextlib.contextmanager
def _opened(path: str, context: Context) -> Iterator[ImportSource]:
    """Open a file, or convert a database to Pigeonpost's CSV format and open the result."""
    chosen = context.arguments
    read: Callable[[str, str, str, ForeignColumns], Iterator[str]] = postgres_lines
    if not IS_URL(path):
        read = sqlite_lines
        with open(path, "rb") as file:
            if file.read(len(_SQLITE)) != _SQLITE:
                yield ImportSource(file, os.path.basename(path), chosen.node or context.node_of_file(path))
                return
    columns = ForeignColumns(
        chosen.node or "", chosen.sensor or ForeignColumns().sensor, chosen.unit or "", chosen.scale, chosen.utc
    )
    # The copy is in the data folder, which needs space for the imported readings anyway.
    with tempfile.TemporaryFile(dir=context.data) as copy:
        for line in read(path, chosen.table or "", chosen.query or "", columns):
            copy.write(line.encode())
        copy.flush()
        yield ImportSource(cast(BinaryIO, copy), "table.csv", columns.node)


_DATABASE = "for databases: "
_OPTIONS: Sequence[tuple[str, dict[str, Any]]] = [
    ("file", {"metavar": "FILE", "nargs": "+", "help": "file to import, or a postgresql:// address"}),
    ("--node", {"metavar": "NODE", "type": node_name, "help": "node of all readings (default: the nodes in the file)"}),
    ("--table", {"metavar": "NAME", "help": f"{_DATABASE}table with the readings (default: found by its columns)"}),
    ("--query", {"metavar": "SQL", "help": f"{_DATABASE}a SELECT with columns time, node, and value or the sensors"}),
    ("--sensor", {"metavar": "SENSOR", "type": sensor_name,
                  "help": f"{_DATABASE}sensor of the column `value` (default: the name of the table)"}),
    ("--unit", {"metavar": "UNIT", "type": matching(UNIT, "unit", "up to 32 printable characters"),
                "help": f"{_DATABASE}unit of the values (default: the units in the table)"}),
    ("--scale", {"metavar": "NUMBER", "type": float, "default": 1.0,
                 "help": f"{_DATABASE}factor for all values (default: 1)"}),
    ("--utc", {"action": "store_true",
               "help": f"{_DATABASE}times without an offset from UTC are in UTC (default: local time)"}),
]  # fmt: skip
COMMANDS: Mapping[str, Command] = {
    "import": Command("import readings from files, or from the database of another program", _OPTIONS, _import_files)
}
