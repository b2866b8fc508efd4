"""Caches of a store: shapes, which are the lists of names of samples' values, and units.

A store keeps each shape once, with a number. Clients choose the names, and every new combination of them is a new
shape. So the number of shapes in a store is not limited, but what is in memory is; and a query reads only the shapes of
the samples that it is about.

`ShapeNames` may be used by any thread (its dictionaries' own operations are atomic), the others by the writer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

MOST_NAMES = 20_000  # in a cache, in all its shapes together: about 2 MiB
MOST_UNITS = 50_000  # channels whose units are remembered, since these were last forgotten
MOST_PLACES = 100  # shapes whose places a query lists; of more it looks into the names of each sample's shape


class ShapeNames:
    """The names of shapes by their number, read from the store when they are asked for."""

    def __init__(self, parameter: str) -> None:
        """parameter: how the database writes a parameter in SQL"""
        self._query = f"SELECT names FROM shapes WHERE id = {parameter}"
        self._names: dict[int, tuple[str, ...]] = {}
        self._count = 0

    def one(self, db: Any, id: int) -> tuple[str, ...]:
        """Return the names of a shape. `db` is an open connection to its store."""
        names = self._names.get(id)
        if names is None:
            names = tuple(json.loads(db.execute(self._query, (id,)).fetchone()[0]))
            if self._count + len(names) > MOST_NAMES:
                self._names, self._count = {}, 0
            self._names[id] = names
            self._count += len(names)
        return names

    def of(self, db: Any, ids: Iterable[int]) -> Mapping[int, tuple[str, ...]]:
        """Return the names of several shapes."""
        return {id: self.one(db, id) for id in ids}

    def places(self, db: Any, ids: Iterable[int], name: str) -> list[tuple[int, int]]:
        """Return the shapes among `ids` that have `name`, each with its place in them."""
        return [(id, names.index(name)) for id in ids if name in (names := self.one(db, id))]


class ShapeIds:
    """The numbers of shapes by their names."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, ...], int] = {}
        self._count = 0
        self.get = self._ids.get

    def keep(self, names: tuple[str, ...], id: int) -> int:
        """Remember the number of a shape, and return it."""
        if self._count + len(names) > MOST_NAMES:
            self._ids.clear()
            self._count = 0
        self._ids[names] = id
        self._count += len(names)
        return id


class StoredUnits:
    """The units of each node that the store has last been given, as the mapping in which they came."""

    def __init__(self) -> None:
        self._units: dict[str, Mapping[str, str]] = {}
        self._count = 0
        self.get = self._units.get

    def keep(self, node: str, units: Mapping[str, str]) -> None:
        """Remember what was stored; the others are forgotten when there are too many."""
        self._count += len(units)
        if self._count > MOST_UNITS:
            self._units.clear()
            self._count = len(units)
        self._units[node] = units
