"""The kinds of store, and the choice between them by the settings."""

from __future__ import annotations

from pigeonpost.core.config import Settings
from pigeonpost.storage.contract import Store


def open_store(settings: Settings, data: str, look_only: bool = False) -> Store:
    """Open the store that the settings name: PostgreSQL where `[store] postgres` has an address, else SQLite in `data`.

    Raises SettingsError for one that cannot be used as it is set, DiskError for one that does not work.
    """
    address: str = settings["store", "postgres"]
    if address:
        from pigeonpost.storage.postgres.store import PostgresStore

        return PostgresStore(address, data, look_only)
    from pigeonpost.storage.sqlite.store import SqliteStore

    return SqliteStore(data, look_only)
