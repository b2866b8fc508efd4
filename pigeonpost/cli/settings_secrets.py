"""Search for secrets in a settings file. All users of the machine may read the settings file of a service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.cli.install_files import SETTINGS
from pigeonpost.core.config import Settings, variable_of_file
from pigeonpost.core.redact import SECRET_KEYS, SECRET_TABLES
from pigeonpost.settings import NODE, SERVER

if TYPE_CHECKING:
    from typing import Any

TOKEN = f"{SETTINGS}/node-token"
_ELSEWHERE = ("env:", "file:")  # prefixes of values that refer to a secret in another place (docs/sensors.md)


class Secret(NamedTuple):
    """Secret in a settings file.

    Attributes:
        name: Its table and key: `[mqtt] password`.
        place: Description of the file to which it should be moved.
    """

    name: str
    place: str


def secrets_in_file(program: str, settings: Settings) -> list[Secret]:
    """Return the secrets in the settings file of a program, including those in arrays of tables.

    Args:
        program: `node` or `server`.
        settings: Its settings.
    """
    environment = f"{SETTINGS}/{program}.env"
    found = []
    for row in NODE if program == "node" else SERVER:
        if row.secret and settings[row.table, row.key] and settings.origin(row.table, row.key) == settings.file:
            is_token = (row.table, row.key) == ("node", "token")
            place = TOKEN if is_token else f"{environment}, as the variable {row.variable}"
            found.append(Secret(f"[{row.table}] {row.key}", place))
    variable = variable_of_file(f"{program}.toml")
    place = (
        f"{environment}, with the complete text of this file: {variable}='...'; this variable replaces the file (an"
        f' HTTP sensor also accepts "env:NAME", with the line NAME=... in {environment})'
    )
    for array, tables in settings.tables.items():
        for n, table in enumerate(tables, 1):
            keys = [key for key in SECRET_TABLES.get(array, ()) if table.get(key)] + list(_secret_keys(table))
            found += [Secret(f"[[{array}]] {n}: {key}", place) for key in keys]
    return found


def _secret_keys(value: Any) -> Iterator[str]:
    """Yield the keys of secrets in a table and the tables inside it."""
    if isinstance(value, list):
        for item in value:
            yield from _secret_keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            is_text = isinstance(item, str)
            texts: Iterable[Any] = [item] * is_text
            if key.endswith("headers") and isinstance(item, dict | list):
                texts = item.values() if isinstance(item, dict) else item
            if key.endswith(SECRET_KEYS) and any(text and not str(text).startswith(_ELSEWHERE) for text in texts):
                yield key
            else:
                yield from _secret_keys(item)
