"""Watches the tokens while a server runs, so that what was revoked or replaced ends at once.

One thread for all nodes, which reads the status of the token files once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Set

from pigeonpost.auth.tokens import Accepted, Tokens
from pigeonpost.core.errors import SettingsError

LOOK_EVERY_S = 1.0  # a session with a revoked token lives at most this much longer


class TokenWatch:
    """Calls `on_change` with the names of the nodes for which other tokens are accepted than before."""

    def __init__(self, tokens: Tokens, on_change: Callable[[Set[str]], object]) -> None:
        self._tokens = tokens
        self._on_change = on_change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tokens", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        """Stop watching."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(limit_s)

    def _run(self) -> None:
        known: Accepted | None = None
        while True:
            accepted = self._look() or known  # a damaged file, which is reported, ends no session
            if known is not None and accepted is not None and accepted != known:
                self._on_change({
                    name
                    for new, old in zip(accepted, known, strict=True)
                    for name in new.keys() | old.keys() if new.get(name) != old.get(name)
                })  # fmt: skip
            known = accepted
            if self._stopping.wait(LOOK_EVERY_S):
                return

    def _look(self) -> Accepted | None:
        try:
            return self._tokens.accepted()
        except SettingsError:
            return None
