"""Functions that read files in tests as the command `import` does."""

import io
from datetime import UTC, datetime, timedelta

from pigeonpost.importing.cells import Fault, ReadingColumns
from pigeonpost.importing.importer import BadFile, inspect_file
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.readers import readings
from pigeonpost.importing.zones import Zone

BERLIN = Zone("Europe/Berlin")
UTC_ZONE = Zone("UTC")


def inspected(text, name="x.csv", **options):
    """Inspect a file with the options. Times without an offset are in UTC, unless the options name a zone."""
    file = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    return inspect_file(file, name, ImportOptions(**{"zone": UTC_ZONE, **options}))


def rows_of(text, name="x.csv", **options):
    """Return node, time in UTC as text, and values of each reading of a file, in the order of the nodes' readings."""
    file = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    given = ImportOptions(**{"zone": UTC_ZONE, **options})
    found = []
    for item in readings(file, name, given, inspect_file(file, name, given).plan):
        if isinstance(item, ReadingColumns):
            found += [
                (item.node, utc(time_ms), {sensor: column[k] for sensor, column in item.values.items()})
                for k, time_ms in enumerate(item.times)
            ]
        elif not isinstance(item, Fault):
            found.append((item.node, utc(item.time_ms), dict(item.values)))
    return found


def utc(time_ms):
    """Return a time as text: 2026-11-20T15:36:10Z, with milliseconds if there are some."""
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    return time.isoformat(timespec="milliseconds" if time_ms % 1000 else "seconds").replace("+00:00", "Z")


def faults_of(text, name="x.csv", **options):
    """Return the error message for a file that cannot be imported."""
    try:
        inspected(text, name, **options)
    except BadFile as error:
        return str(error)
    raise AssertionError("the file can be imported")
