"""Proof by HMAC-SHA-256 (RFC 2104) that both ends of a link know the same token.

Runs on: node and server.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence


class LinkKey:
    """One token, as session.Key."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def sign(self, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> str:
        """As session.Key.sign."""
        text = "|".join(("pigeonpost-link-1", side, server, node, outbox, *nonces))
        return hmac.digest(self._token, text.encode(), "sha256").hex()

    def proves(self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> bool:
        """As session.Key.proves."""
        return _is_same(mac, self.sign(side, server, node, outbox, nonces))

    def is_token(self, token: object) -> bool:
        """As session.Key.is_token."""
        return _is_same(token, self._token.decode())

    def shown(self) -> str:
        """As session.Key.shown."""
        return self._token.decode()

    def seal(self, purpose: str, body: bytes) -> str:
        """As session.Key.seal."""
        return hmac.digest(self._token, b"pigeonpost-%s-1|%s" % (purpose.encode(), body), "sha256").hex()

    def is_seal(self, mac: object, purpose: str, body: bytes) -> bool:
        """As session.Key.is_seal."""
        return _is_same(mac, self.seal(purpose, body))


def _is_same(said: object, right: str) -> bool:
    return isinstance(said, str) and hmac.compare_digest(said.encode(), right.encode())
