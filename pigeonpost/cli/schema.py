"""Command `schema`, which prints the SQL script of the PostgreSQL tables."""

from __future__ import annotations

from pigeonpost.cli.contract import Command, Context
from pigeonpost.storage.postgres.schema import SCRIPT


def _schema(context: Context) -> int:
    """Print the SQL that creates the tables in a PostgreSQL database, for a server that may not create them itself."""
    print(SCRIPT, end="")
    return 0


COMMANDS = {"schema": Command("print the SQL that creates the PostgreSQL tables", [], _schema)}
