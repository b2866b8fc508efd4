"""Substitute for a store that cannot be opened: every call raises StoreDamaged, and the server can show the reason."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from pigeonpost.core.errors import StoreDamaged
from pigeonpost.storage.contract import Store


class DamagedStore(Store):
    """Store from which nothing can be read. Nothing is stored in it either, so the nodes keep their samples."""

    def __init__(self, damage: str) -> None:
        """Initialise the store. `damage` is the description of the damage, with the remedy."""
        self.identity = os.urandom(8).hex()
        self.description = "damaged: nothing can be read or stored"
        self.damage = damage
        for name in vars(Store):
            if not name.startswith("_") and callable(getattr(self, name)) and name != "on_damage":
                setattr(self, name, self._refuse)
        self.close = lambda: None  # type: ignore[method-assign]

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise StoreDamaged(self.damage)
