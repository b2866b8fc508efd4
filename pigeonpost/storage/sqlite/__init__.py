"""Storage in SQLite, the default."""
