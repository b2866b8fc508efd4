"""Access to the store for commands that change it while no server runs.

The caller holds the lock of the data folder. Errors: Failed, for a damaged store, and for what was not stored in time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from csvbuffer import CsvLog
from pigeonpost.cli.contract import Context, Failed
from pigeonpost.core.clock import Clock
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.contract import Store
from pigeonpost.storage.registry import open_store

STOP_S = 60.0


@contextlib.contextmanager
def open_to_write(context: Context) -> Iterator[tuple[Store, Ingestor]]:
    """Lend the store and its Ingestor, as the server has them: one writer, and the log written with it."""
    store, clock = open_store(context.settings, context.data), Clock()
    try:
        if store.damage:
            raise Failed(store.damage)
        csv = CsvLog(context.data, store, clock)
        ingestor = Ingestor(store, csv, clock, commit_s=0.05)
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
