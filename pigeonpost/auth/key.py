"""What a link needs of a node's token.

Runs on: node and server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Key(Protocol):
    """What a session needs of a node's token (gate/tokens.py is the real one)."""

    def sign(self, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> str:
        """The proof that `side` ("node" or "server") knows the token: 64 hex digits, good for these nonces only."""

    def proves(self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> bool:
        """Whether `mac` is what `sign` gives for the same arguments, compared in constant time."""

    def is_token(self, token: object) -> bool:
        """Whether `token` is the token itself, compared in constant time."""

    def shown(self) -> str:
        """The token itself, for a road on which it is shown and not proved (HTTP, which is to go through TLS then)."""

    def seal(self, purpose: str, body: bytes) -> str:
        """The proof that who wrote `body`, for this `purpose` and no other, knows the token: 64 hex digits."""

    def is_seal(self, mac: object, purpose: str, body: bytes) -> bool:
        """Whether `mac` is what `seal` gives for the same arguments, compared in constant time."""
