"""Keys of a [[forward]] table of server.toml: the general ones, and those of the module of its kind.

Errors: SettingsError, which contains the file, the table and the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.config import Option, matching, number, one_of, read_options, switch, text
from pigeonpost.core.errors import SettingsError
from protocol import NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME, SENSOR_NAME_TAKES

LONGEST_AGAIN_S = 86_400.0  # seconds
_is_name = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,30}[A-Za-z0-9])?").fullmatch
_NAME_TAKES = "1 to 32 letters, digits, dots, dashes and underscores, with a letter or digit at both ends"


def list_of(parse: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """Return a parser of lists whose items `parse` accepts."""

    def parse_list(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError("takes a list")
        return [parse(item) for item in value]

    return parse_list


GENERAL = (
    Option("name", matching(_is_name, _NAME_TAKES), None, "unique name of the target"),
    Option("kind", text, None, "kind of the target"),
    Option("nodes", list_of(matching(NODE_NAME, NODE_NAME_TAKES)), (), "nodes to forward; empty: all"),
    Option("sensors", list_of(matching(SENSOR_NAME, SENSOR_NAME_TAKES)), (),
           "sensors to forward; empty: all"),
    Option("again", number(0, LONGEST_AGAIN_S), None,
           "seconds before the loss of the connection whose samples are sent again"),
    Option("history", switch, False, "send the samples that are stored already when the target is used first"),
)  # fmt: skip


class ForwardTable(NamedTuple):
    """General keys of a [[forward]] table.

    Attributes:
        name: Unique name of the target.
        kind: Kind of the target.
        nodes: Names of the nodes to forward; empty for all nodes.
        sensors: Names of the sensors to forward; empty for all sensors.
        again_s: Seconds before the loss of the connection whose samples are sent again; None for the default of the
            kind.
        has_history: True if the samples that are stored at the first start with this target are sent too.
        table: The complete table.
        where: File and table, for errors.
    """

    name: str
    kind: str
    nodes: Collection[str]
    sensors: Collection[str]
    again_s: float | None
    has_history: bool
    table: Mapping[str, Any]
    where: str


def read_forward_tables(
    tables: Iterable[Mapping[str, Any]], file: str, kinds: Collection[str]
) -> list[ForwardTable]:  # fmt: skip
    """Return the general keys of all [[forward]] tables. The other keys are checked by the kinds, with `own_keys`.

    Args:
        tables: The tables.
        file: Path of the settings file.
        kinds: Names of all kinds.

    Raises:
        SettingsError: A name is missing or used twice, or a value is invalid.
    """
    found: dict[str, ForwardTable] = {}
    for count, table in enumerate(tables, 1):
        where = f"{file}: [[forward]] {count}"
        for key in ("name", "kind"):
            if key not in table:
                raise SettingsError(f"{where}: {key} is missing")
        general = {option.key: table[option.key] for option in GENERAL if option.key in table}
        name, kind, nodes, sensors, again_s, has_history = read_options(general, _with_kinds(kinds), where).values()
        if name in found:
            raise SettingsError(f"{where}: name {name!r} is used twice; every [[forward]] needs a name of its own")
        found[name] = ForwardTable(
            name, kind, frozenset(nodes), frozenset(sensors), again_s, has_history, table, where
        )  # fmt: skip
    return list(found.values())


def _with_kinds(kinds: Collection[str]) -> list[Option]:
    return [option._replace(parse=one_of(*kinds)) if option.key == "kind" else option for option in GENERAL]


def own_keys(table: Mapping[str, Any], options: Sequence[Option], where: str) -> dict[str, Any]:
    """Return the values of the keys that only this kind has. All keys in `options` are present.

    Args:
        table: The complete table.
        options: The keys that the kind has in addition to GENERAL.
        where: File and table, for errors.

    Raises:
        SettingsError: A key is unknown, or a value is invalid.
    """
    found = read_options(table, (*GENERAL, *options), where)
    return {option.key: found[option.key] for option in options}
