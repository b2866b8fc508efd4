"""Storage in PostgreSQL, for several servers."""
