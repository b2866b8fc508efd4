"""Readings in tables of other programs' PostgreSQL databases, converted to rows of our CSV log.

The counterpart of foreign_sqlite, which recognises the columns. psycopg 3 is imported when it is needed.
Errors: SettingsError without psycopg; BadTable for what the database or its table does not have.

The rows are put into one order, whichever that is: a table has none of its own, and a repeated import is recognised by
all of its lines.
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
_AT_ONCE = 5000  # rows that are fetched together


def place(url: str) -> str:
    """A database's address without the password that may stand in it."""
    parts = urlsplit(url)
    return f"postgresql://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def postgres_lines(url: str, table: str, query: str, said: ForeignColumns) -> Iterator[str]:
    """Yield the rows of a table in a database as lines of our CSV log. The database is only read.

    table  which one, also as SCHEMA.TABLE
    query  instead of a table: a SELECT, whose columns are named as in foreign_sqlite
    """
    try:
        import psycopg
        from psycopg import sql
    except ImportError:
        raise SettingsError(f"{place(url)}: psycopg is missing: sudo apt install python3-psycopg") from None
    if not table and not query:
        raise BadTable("--table or --query says where the readings are")
    if not query:
        said = said.for_table(table)
    chosen = sql.SQL(query) if query else sql.SQL("SELECT * FROM {}").format(sql.Identifier(*table.split(".")))
    try:
        with psycopg.connect(url, connect_timeout=10) as db:
            db.read_only = True
            with db.cursor(name="pigeonpost") as rows:
                rows.itersize = _AT_ONCE
                rows.execute(sql.SQL("SELECT * FROM ({}) AS readings ORDER BY readings::text").format(chosen))
                names = [column.name for column in rows.description or ()]
                yield from log_lines(names, (tuple(map(_plain, row)) for row in rows), said)
    except psycopg.Error as error:
        raise BadTable(f"PostgreSQL: {' '.join(str(error).split())}"[:500]) from None


def _plain(value: Any) -> Any:
    """Numbers of any length as Python's own."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
