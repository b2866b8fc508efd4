"""Command `import`, which reads files and databases of other programs, and stores each reading once.

    python3 control.py import november.csv week.jsonl
    python3 control.py import --check --node attic old.csv
    python3 control.py import --node attic --dates dmy --timezone Europe/Berlin --skip-bad 2023.csv
    python3 control.py import --node bbq --columns time,setpoint,pit,food1,-,ambient hm.csv
    python3 control.py import --node cellar --unit temperature=°C --scale pressure=0.01 log.txt
    python3 control.py import --node home home-assistant_v2.db
    python3 control.py import --scale 0.001 --unit °C tmon.sqlite3
    python3 control.py import --query "SELECT at AS time, room AS node, t AS temperature FROM log" old.db
    python3 control.py import --table readings --node attic postgresql://user@host/sensors

Errors: Failed for invalid rows, which are printed. No reading of a file with invalid rows is stored.

Only one process may write to the store, so the server must be stopped. While it is running, import files with the web
interface (`/files`). A database is first converted to a temporary file in Pigeonpost's CSV format. A repeated import is
recognised by the checksum of this file, because the bytes of a database can change even when it is only read.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from pigeonpost.cli.contract import Bar, Command, Context, Failed, matching, node_name, sensor_name
from pigeonpost.cli.import_report import described, notes_about
from pigeonpost.cli.open_to_write import open_to_write
from pigeonpost.core.data_folder import SERVER_LOCK
from pigeonpost.core.errors import InUse, NotStored, SettingsError
from pigeonpost.core.files import lock_data_dir
from pigeonpost.core.format import counted, stamp
from pigeonpost.importing.foreign_postgres import IS_URL, place, postgres_lines
from pigeonpost.importing.foreign_sqlite import BadTable, ForeignColumns, sqlite_lines
from pigeonpost.importing.importer import BadFile, Inspection, import_readings, inspect_file
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.zones import BadZone, Zone
from pigeonpost.server.ingest import Ingestor
from protocol import UNIT

_SQLITE = b"SQLite format 3\0"


class ImportSource(NamedTuple):
    """File to import.

    Attributes:
        file: The open file.
        name: Its name, whose extension determines the format.
        node: Node of readings that name none, or an empty string.
        options: Options of the user that apply to the file.
        notes: What was found out about a database.
    """

    file: BinaryIO
    name: str
    node: str
    options: ImportOptions
    notes: Sequence[str] = ()


class ProgressFile:
    """Wrapper of a binary `file` that shows on a `bar` how much of it has been read."""

    def __init__(self, file: BinaryIO, bar: Bar) -> None:
        self._file, self._bar = file, bar
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0

    def readline(self, most: int) -> bytes:
        """Read and return a line of at most `most` bytes."""
        return self._shown(self._file.readline(most))

    def read(self, most: int) -> bytes:
        """Read and return at most `most` bytes."""
        return self._shown(self._file.read(most))

    def _shown(self, data: bytes) -> bytes:
        before, self._position = self._position, self._position + len(data)
        if self._position >> 16 != before >> 16:
            self._bar.show(self._position, self._size)
        return data

    def seek(self, position: int) -> int:
        """Move to the `position`, in bytes from the beginning of the file, and return it."""
        self._position = position
        return self._file.seek(position)


def _import_files(context: Context) -> int:
    """Import readings from files or databases.

    A file is CSV, JSON, or JSON lines. A CSV file may have any usual separator, encoding, and form of times and
    numbers, one column per sensor, or one row per value. A database is an SQLite file, of Home Assistant, WeeWX or
    another program, or a PostgreSQL database given by its address (postgresql://...). Each reading is stored once, even
    if its file is imported again. A file with an invalid row is not imported, unless --skip-bad is given. --check shows
    how a file is understood, and stores nothing.
    """
    chosen = context.arguments
    for path in chosen.file:
        if not IS_URL(path) and not os.path.isfile(path):
            raise SettingsError(f"{path}: the file does not exist")
    options = _options(context)
    if chosen.check:
        bad = [path for path in chosen.file if not _check_one(path, context, options)]
        if bad:
            raise Failed(f"cannot be imported: {', '.join(map(_display_name, bad))}")
        return 0
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
            rejected = [path for path in chosen.file if not _import_one(path, context, options, ingestor, units)]
    finally:
        os.close(lock)
    if rejected:
        raise Failed(f"not imported: {', '.join(map(_display_name, rejected))}")
    return 0


def _display_name(path: str) -> str:
    return place(path) if IS_URL(path) else path


def _options(context: Context) -> ImportOptions:
    """Return the options of the command line.

    Raises:
        SettingsError: The time zone is unknown.
    """
    chosen = context.arguments
    try:
        zone = Zone(chosen.timezone or ("UTC" if chosen.utc else ""))
    except BadZone as error:
        raise SettingsError(f"--timezone: {error}") from None
    columns = tuple(name.strip() for name in chosen.columns.split(",")) if chosen.columns else ()
    return ImportOptions(
        columns, chosen.time_format or "", chosen.dates or "", zone, chosen.skip_bad,
        dict(chosen.scale or ()), dict(chosen.offset or ()), dict(chosen.unit or ()),
    )  # fmt: skip


def _inspected(path: str, context: Context, source: ImportSource, file: BinaryIO) -> Inspection:
    """Return the inspection of a file, and print the invalid rows that are left out."""
    inspection = inspect_file(file, source.name, source.options)
    shown = _display_name(path)
    for fault in inspection.skipped:
        print(f"{shown}: {fault}: left out")
    if inspection.skipped_count:
        more = f" ({inspection.skipped_count - len(inspection.skipped)} more than shown)"
        rows = counted(inspection.skipped_count, "invalid row")
        print(f"{shown}: {rows} left out{more if inspection.skipped_count > len(inspection.skipped) else ''}")
    return inspection


def _check_one(path: str, context: Context, options: ImportOptions) -> bool:
    """Print how a file is understood. Return False if it cannot be imported."""
    shown = _display_name(path)
    try:
        with _opened(path, context, options) as source:
            inspection = _inspected(path, context, source, source.file)
            for line in [
                *source.notes,
                *described(inspection, source.node, bool(context.arguments.node), bool(source.notes)),
            ]:
                print(f"{shown}: {line}")
            return True
    except (BadFile, BadTable) as error:
        _print_faults(shown, error, options)
        return False
    except (sqlite3.Error, OSError) as error:
        raise Failed(f"{shown}: {error}") from error


def _print_faults(shown: str, error: Exception, options: ImportOptions) -> None:
    for line in str(error).splitlines():
        print(f"{shown}: {line}")
    has_rows = isinstance(error, BadFile) and any(fault.where != "the file" for fault in error.faults)
    if has_rows and not options.skip_bad and "--dates" not in str(error):
        print(f"{shown}: to import the other rows, add --skip-bad")


def _import_one(
    path: str, context: Context, options: ImportOptions, ingestor: Ingestor, units: Mapping[str, Mapping[str, str]]
) -> bool:
    """Import one file or database. Return False if it has invalid rows."""
    shown = _display_name(path)
    bar = Bar(os.path.basename(shown))
    try:
        with _opened(path, context, options) as source:
            progress_file = cast(BinaryIO, ProgressFile(source.file, bar))
            inspection = _inspected(path, context, source, progress_file)
            summary = inspection.summary
            if "" in summary.nodes and not source.node:
                raise BadTable("the file does not name the node of its readings: add --node NODE")
            node = source.node if "" in summary.nodes or context.arguments.node else ""
            source.file.seek(0)
            checksum = hashlib.file_digest(source.file, "sha256").hexdigest()  # type: ignore[arg-type]
            total, new = import_readings(progress_file, source.name, checksum, ingestor, node, units, inspection)
            notes = [*source.notes, *notes_about(inspection)]
    except (BadFile, BadTable) as error:
        bar.end()
        _print_faults(shown, error, options)
        return False
    except (sqlite3.Error, NotStored) as error:
        raise Failed(f"{shown}: {error}") from error
    except OSError as error:
        raise Failed(f"{shown}: {error.strerror or error}") from error
    finally:
        bar.end()
    for note in notes:
        print(f"{shown}: {note}")
    period = f"{stamp(summary.first_ms)} to {stamp(summary.last_ms)}"
    print(f"{shown}: {counted(total, 'reading')}, {new:,} new, {period}")
    return True


@contextlib.contextmanager
def _opened(path: str, context: Context, options: ImportOptions) -> Iterator[ImportSource]:
    """Open a file, or convert a database to Pigeonpost's CSV format and open the result."""
    chosen = context.arguments
    if not IS_URL(path):
        with open(path, "rb") as file:
            if file.read(len(_SQLITE)) != _SQLITE:
                yield ImportSource(file, os.path.basename(path), chosen.node or context.node_of_file(path), options)
                return
    columns = ForeignColumns(chosen.node or "", chosen.sensor or ForeignColumns().sensor, options)
    read = postgres_lines if IS_URL(path) else sqlite_lines
    notes: list[str] = []
    # The copy is in the data folder, which needs space for the imported readings anyway.
    with tempfile.TemporaryFile(dir=context.data if os.path.isdir(context.data) else None) as copy:
        for line in read(path, chosen.table or "", chosen.query or "", columns, notes):
            copy.write(line.encode())
        copy.flush()
        yield ImportSource(cast(BinaryIO, copy), "table.csv", columns.node, ImportOptions(), notes)


def _by_sensor(read: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Return a type for argparse that accepts VALUE, or SENSOR=VALUE, and returns the sensor and the value."""

    def value(text: str) -> tuple[str, Any]:
        name, found, rest = text.partition("=")
        return (sensor_name(name.strip()), read(rest.strip())) if found else ("", read(text))

    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value - value != 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number")
    return value


_DATABASE = "for databases: "
_OPTIONS: Sequence[tuple[str, dict[str, Any]]] = [
    ("file", {"metavar": "FILE", "nargs": "+", "help": "file to import, or a postgresql:// address"}),
    ("--node", {"metavar": "NODE", "type": node_name, "help": "node of all readings (default: the nodes in the file)"}),
    ("--table", {"metavar": "NAME", "help": f"{_DATABASE}table with the readings (default: found by its columns)"}),
    ("--query", {"metavar": "SQL", "help": f"{_DATABASE}a SELECT with columns time, node, and value or the sensors"}),
    ("--sensor", {"metavar": "SENSOR", "type": sensor_name,
                  "help": f"{_DATABASE}sensor of the column `value` (default: the name of the table)"}),
    ("--columns", {"metavar": "NAMES", "help": "names of the columns of a file without a head line, separated by"
                   " commas: time,temperature (°C),- (a column with the name - is left out)"}),
    ("--time-format", {"metavar": "FORMAT", "help": "format of the times, for example '%%d.%%m.%%y %%H:%%M' (as for"
                       " strptime), or `excel` for the day numbers of a spreadsheet"}),
    ("--dates", {"choices": ("dmy", "mdy", "ymd"),
                 "help": "order of day, month and year in dates such as 05/06/2023 (default: found in the file)"}),
    ("--timezone", {"metavar": "ZONE", "help": "time zone of times without an offset: Europe/Berlin, UTC, +01:00"
                    " (default: that in the heading, such as `time (UTC)`, else that of this machine)"}),
    ("--utc", {"action": "store_true", "help": "times without an offset are in UTC (as --timezone UTC)"}),
    ("--skip-bad", {"action": "store_true", "help": "leave out invalid rows, and print them"}),
    ("--check", {"action": "store_true", "help": "show how the files are understood, and store nothing"}),
    ("--scale", {"metavar": "[SENSOR=]NUMBER", "type": _by_sensor(_number), "action": "append",
                 "help": "factor for the values of a sensor, or of all; repeatable"}),
    ("--offset", {"metavar": "[SENSOR=]NUMBER", "type": _by_sensor(_number), "action": "append",
                  "help": "number that is added to the values of a sensor, after the factor; repeatable"}),
    ("--unit", {"metavar": "[SENSOR=]UNIT", "action": "append",
                "type": _by_sensor(matching(UNIT, "unit", "up to 32 printable characters")),
                "help": "unit of a sensor, or of all; values in another unit are converted, unless --scale or --offset"
                " is given; repeatable"}),
]  # fmt: skip
_EXAMPLES = """examples:
  python3 control.py import --check --node attic old.csv
  python3 control.py import --node attic --dates dmy --timezone Europe/Berlin 2023.csv
  python3 control.py import --node bbq --columns time,setpoint,pit,food1,-,ambient hm.csv
  python3 control.py import --node shed --unit temperature=°C --skip-bad govee.txt
  python3 control.py import --node home home-assistant_v2.db"""
COMMANDS: Mapping[str, Command] = {
    "import": Command(
        "import readings from files, or from the database of another program", _OPTIONS, _import_files,
        examples=_EXAMPLES,
    )
}  # fmt: skip
