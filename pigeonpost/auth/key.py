"""Interface of a node's key: proofs of its token, and signatures made with it.

Transports take this protocol and not LinkKey, whose module imports hashlib: 3.7 MiB that a node without a token saves.
"""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.core.light_typing import Protocol


class Key(Protocol):
    """What a transport needs of a node's token. auth.link_key.LinkKey implements it."""

    def sign(self, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> str:
        """Return the proof that `side` ("node" or "server") knows the token: 64 hex digits, for these nonces only."""

    def proves(self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> bool:
        """Return True if `mac` is what `sign` returns for the same arguments; compared in constant time."""

    def proving(self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> Key | None:
        """Return the key that made `mac`, for the same arguments of `sign`: this one, or the one that it replaces and
        that is still accepted; None: neither."""

    def sealing(self, mac: object, purpose: str, body: bytes) -> Key | None:
        """Return the key that made `mac`, for the same arguments of `seal`: as `proving`."""

    def covers(self, other: Key) -> bool:
        """Return True if `other` is this key, or the one that it replaces and that is still accepted."""

    def is_token(self, token: object) -> bool:
        """Return True if `token` is the token itself; compared in constant time."""

    def plain_token(self) -> str:
        """Return the token itself, for transports that send it instead of a proof (HTTP, which should use TLS then)."""

    def seal(self, purpose: str, body: bytes) -> str:
        """Return the signature of `body`, valid for this `purpose` and no other: 64 hex digits."""

    def is_seal(self, mac: object, purpose: str, body: bytes) -> bool:
        """Return True if `mac` is what `seal` returns for the same arguments; compared in constant time."""
