"""Write access to the store for commands, while no server is running.

The caller holds the lock of the data folder. Errors: Failed for a damaged store, and for data not stored in time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from csvbuffer import CsvLog
from pigeonpost.cli.contract import Context, Failed
from pigeonpost.core.clock import Clock
from pigeonpost.core.faults import Faults
from pigeonpost.server.calibrations import Calibrations
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.contract import Store
from pigeonpost.storage.registry import open_store

STOP_S = 60.0  # limit for the last commit


@contextlib.contextmanager
def open_to_write(context: Context) -> Iterator[tuple[Store, Ingestor]]:
    """Yield the store of `context` and an Ingestor that writes to the store and to the CSV log, as in the server.

    Raises:
        Failed: The store is damaged, or some data could not be stored.
    """
    store, clock = open_store(context.settings, context.data), Clock()
    try:
        if store.damage:
            raise Failed(store.damage)
        csv = CsvLog(context.data, store, clock)
        ingestor = Ingestor(store, csv, clock, commit_s=0.05)
        ingestor.names.on_rename.append(Calibrations(context.data, ingestor.names.current, Faults()).on_rename)
        csv.start()
        ingestor.start()
        try:
            yield store, ingestor
        finally:
            undone = ingestor.stop(STOP_S)
            csv.close()
        if undone:
            raise Failed(undone)
    finally:
        store.close()
