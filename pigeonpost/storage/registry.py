"""Selection of the store that the settings configure: SQLite or PostgreSQL."""

from __future__ import annotations

from pigeonpost.core.config import Settings
from pigeonpost.storage.contract import Store


def open_store(settings: Settings, data: str, look_only: bool = False) -> Store:
    """Open the configured store and return it.

    It is PostgreSQL if `[store] postgres` contains an address, and SQLite otherwise.

    Args:
        settings: Settings of the server.
        data: Path of the server's data folder, which contains the SQLite database.
        look_only: True to open the store for reading only, for example while a server is running.

    Raises:
        SettingsError: The store cannot be used with these settings.
        StoreDamaged: The store is damaged.
        DiskError: The store cannot be opened or created.
        InUse: Another process uses the store as this server.
    """
    address: str = settings["store", "postgres"]
    if address:
        from pigeonpost.storage.postgres.store import PostgresStore

        return PostgresStore(address, data, look_only)
    from pigeonpost.storage.sqlite.store import SqliteStore

    return SqliteStore(data, look_only)
