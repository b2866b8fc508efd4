"""Watcher of the nodes' tokens in a running server, which ends sessions with a revoked or replaced token.

One thread serves all nodes. It reads the status of the token files once per second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Set

from pigeonpost.auth.tokens import Accepted, Tokens
from pigeonpost.core.errors import SettingsError

CHECK_EVERY_S = 1.0  # maximum time that a session lasts after its token was revoked


class TokenWatch:
    """Thread that reports changes of the accepted tokens.

    Args:
        tokens: The tokens to watch.
        on_change: Function that is called with the names of the nodes whose accepted tokens have changed.
    """

    def __init__(self, tokens: Tokens, on_change: Callable[[Set[str]], object]) -> None:
        self._tokens = tokens
        self._on_change = on_change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tokens", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        """Stop watching, and wait at most `limit_s` seconds for the thread to end."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(limit_s)

    def _run(self) -> None:
        previous: Accepted | None = None
        while True:
            accepted = self._read() or previous  # a damaged file ends no session; JsonFile reports it
            if previous is not None and accepted is not None and accepted != previous:
                self._on_change({
                    name
                    for new, old in zip(accepted, previous, strict=True)
                    for name in new.keys() | old.keys() if new.get(name) != old.get(name)
                })  # fmt: skip
            previous = accepted
            if self._stopping.wait(CHECK_EVERY_S):
                return

    def _read(self) -> Accepted | None:
        try:
            return self._tokens.accepted()
        except SettingsError:
            return None
