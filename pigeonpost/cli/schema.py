"""Command that prints the SQL script of the PostgreSQL tables, to make them by hand or to read them."""

from __future__ import annotations

from pigeonpost.cli.contract import Command, Context
from pigeonpost.storage.postgres.schema import SCRIPT


def schema(context: Context) -> int:
    """Print the SQL that makes the tables in a PostgreSQL database: for where a server may not make them itself."""
    print(SCRIPT, end="")
    return 0


COMMANDS = {"schema": Command("print the SQL of the tables in PostgreSQL", [], schema)}
