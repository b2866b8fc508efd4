"""Conversion of tables in other programs' PostgreSQL databases to Pigeonpost's CSV log.

The module foreign_sqlite recognises the columns. psycopg 3 is imported only when it is needed.
Errors: SettingsError if psycopg is missing; BadTable for an error of the database, or an unsuitable table.

The rows are sorted, because a table has no order of its own: a repeated import is recognised only if its lines are the
same, in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from pigeonpost.core.errors import SettingsError
from pigeonpost.importing.foreign_sqlite import BadTable, ForeignColumns, log_lines

IS_URL = re.compile(r"postgres(?:ql)?://\S+").fullmatch
_FETCH_ROWS = 5000  # rows that are fetched together


def place(url: str) -> str:
    """Return the address `url` of a database, without its user name and password."""
    parts = urlsplit(url)
    return f"postgresql://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def postgres_lines(url: str, table: str, query: str, options: ForeignColumns, notes: list[str]) -> Iterator[str]:
    """Yield the rows of a table in a PostgreSQL database as lines of the CSV log. The database is only read.

    Args:
        url: Address of the database, starting with `postgresql://`.
        table: Name of the table, also as SCHEMA.TABLE.
        query: SELECT statement that is used instead of a table. The module foreign_sqlite must recognise its columns.
        options: Information that the table does not contain.
        notes: List to which notes for the user are added.

    Raises:
        SettingsError: psycopg is missing.
        BadTable: The database reports an error, or the columns cannot be recognised, or a row is invalid.
    """
    try:
        import psycopg
        from psycopg import sql
    except ImportError:
        raise SettingsError(f"{place(url)}: psycopg is missing: sudo apt install python3-psycopg") from None
    if not table and not query:
        raise BadTable("name the table with the readings with --table, or use --query")
    if not query:
        options = options.for_table(table)
    notes.append(f"{'the query' if query else f'the table {table}'} of a PostgreSQL database")
    chosen = sql.SQL(query) if query else sql.SQL("SELECT * FROM {}").format(sql.Identifier(*table.split(".")))
    try:
        with psycopg.connect(url, connect_timeout=10) as db:
            db.read_only = True
            with db.cursor(name="pigeonpost") as rows:
                rows.itersize = _FETCH_ROWS
                rows.execute(sql.SQL("SELECT * FROM ({}) AS readings ORDER BY readings::text").format(chosen))
                names = [column.name for column in rows.description or ()]
                yield from log_lines(names, (tuple(map(_plain, row)) for row in rows), options, notes)
    except psycopg.Error as error:
        raise BadTable(f"PostgreSQL: {' '.join(str(error).split())}"[:500]) from None


def _plain(value: Any) -> Any:
    """Return a value of the database with a Decimal converted to int or float."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
