"""Caches of a store's shapes and units. A shape is the list of channel names of a sample.

A store keeps each shape once, under an id. Clients choose the channel names, and every new combination of names is a
new shape. So the number of shapes in a store is not limited, but the number in memory is. A query reads only the shapes
of the samples that it selects.

Any thread may use `ShapeNames`, because single operations of its dictionaries are atomic. The other classes belong to
the writer thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

MOST_NAMES = 20_000  # names in all shapes of one cache: about 2 MiB
MOST_UNITS = 50_000  # channels in the cache of units; it is cleared when it is full
MOST_PLACES = 100  # shapes for which a query lists the index of a channel; with more, SQL searches each sample's names


class ShapeNames:
    """Cache of channel names by shape id. Missing entries are read from the store."""

    def __init__(self, parameter: str) -> None:
        """Initialise the cache. `parameter` is the placeholder of the database, "?" or "%s"."""
        self._query = f"SELECT names FROM shapes WHERE id = {parameter}"
        self._names: dict[int, tuple[str, ...]] = {}
        self._count = 0

    def one(self, db: Any, id: int) -> tuple[str, ...]:
        """Return the names of the shape `id`. `db` is an open connection to its store."""
        names = self._names.get(id)
        if names is None:
            names = tuple(json.loads(db.execute(self._query, (id,)).fetchone()[0]))
            if self._count + len(names) > MOST_NAMES:
                self._names, self._count = {}, 0
            self._names[id] = names
            self._count += len(names)
        return names

    def of(self, db: Any, ids: Iterable[int]) -> Mapping[int, tuple[str, ...]]:
        """Return the names of each of the shapes `ids`. `db` is an open connection to their store."""
        return {id: self.one(db, id) for id in ids}

    def places(self, db: Any, ids: Iterable[int], name: str) -> list[tuple[int, int]]:
        """Return pairs (shape, index of `name` in it) for those of the shapes `ids` that contain `name`.

        `db` is an open connection to their store.
        """
        return [(id, names.index(name)) for id in ids if name in (names := self.one(db, id))]


class ShapeIds:
    """Cache of shape ids by channel names."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, ...], int] = {}
        self._count = 0
        self.get = self._ids.get

    def keep(self, names: tuple[str, ...], id: int) -> int:
        """Add the shape `names` to the cache, and return its `id`."""
        if self._count + len(names) > MOST_NAMES:
            self._ids.clear()
            self._count = 0
        self._ids[names] = id
        self._count += len(names)
        return id


class StoredUnits:
    """Cache of the units that were last stored for each node, as the mapping object that was received."""

    def __init__(self) -> None:
        self._units: dict[str, Mapping[str, str]] = {}
        self._count = 0
        self.get = self._units.get

    def keep(self, node: str, units: Mapping[str, str]) -> None:
        """Record that `units` were stored for `node`. All other nodes are removed if the cache is full."""
        self._count += len(units)
        if self._count > MOST_UNITS:
            self._units.clear()
            self._count = len(units)
        self._units[node] = units
