"""Store in place of one that cannot be opened, so that the server can show why; every call raises StoreDamaged."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from pigeonpost.core.errors import StoreDamaged
from pigeonpost.storage.contract import Store


class DamagedStore(Store):
    """A store of which nothing can be read. Nothing is stored either: the nodes keep everything."""

    def __init__(self, damage: str) -> None:
        """damage: what is wrong, and the remedy"""
        self.identity = os.urandom(8).hex()
        self.description = "damaged: nothing can be read or stored"
        self.damage = damage
        for name in vars(Store):
            if not name.startswith("_") and callable(getattr(self, name)) and name != "on_damage":
                setattr(self, name, self._refuse)
        self.close = lambda: None  # type: ignore[method-assign]

    def _refuse(self, *args: Any, **more: Any) -> NoReturn:
        raise StoreDamaged(self.damage)
