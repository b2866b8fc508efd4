"""Sequences whose items are created at the first access, since a page shows only some of thousands of nodes.

Any thread may use them. Two threads may create the same item at the same time, which is harmless.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class _Lazy(Sequence[T], Generic[T]):
    @abstractmethod
    def _at(self, place: int) -> T:
        """Return the item at an index."""

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return [self._at(at) for at in range(*place.indices(len(self)))]
        return self._at(range(len(self))[place])


class LazyItems(_Lazy[T]):
    """Sequence whose items are created one by one, each at its first access."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        """Create a sequence of `count` items; `make` returns the item at an index."""
        self._items: list[T | None] = [None] * count
        self._make = make

    def __len__(self) -> int:
        return len(self._items)

    def _at(self, place: int) -> T:
        item = self._items[place]
        if item is None:
            item = self._items[place] = self._make(place)
        return item


class LazyWhole(_Lazy[T]):
    """Sequence whose items are all created at the first access."""

    def __init__(self, make: Callable[[], Sequence[T]]) -> None:
        self._items: Sequence[T] | None = None
        self._make = make

    def _whole(self) -> Sequence[T]:
        if self._items is None:
            self._items = self._make()
        return self._items

    def __len__(self) -> int:
        return len(self._whole())

    def _at(self, place: int) -> T:
        return self._whole()[place]
