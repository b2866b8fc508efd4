"""HMAC-SHA-256 (RFC 2104) with a node's token: mutual proof of both ends of a link, and signatures of messages.

On the TCP link the token itself is never sent: each side proves it over the fresh nonces of both sides. This module
imports hashlib, which costs 3.7 MiB; a node without a token does not import it.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence


class LinkKey:
    """The key of one token; implements auth.key.Key."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def sign(self, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> str:
        """Return the proof that `side` ("node" or "server") knows the token."""
        text = "|".join(("pigeonpost-link-1", side, server, node, outbox, *nonces))
        return hmac.digest(self._token, text.encode(), "sha256").hex()

    def proves(self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> bool:
        """Return True if `mac` is what `sign` returns for the same arguments."""
        return _is_same(mac, self.sign(side, server, node, outbox, nonces))

    def is_token(self, token: object) -> bool:
        """Return True if `token` is the token itself."""
        return _is_same(token, self._token.decode())

    def plain_token(self) -> str:
        """Return the token itself."""
        return self._token.decode()

    def seal(self, purpose: str, body: bytes) -> str:
        """Return the signature of `body` for this `purpose`."""
        return hmac.digest(self._token, b"pigeonpost-%s-1|%s" % (purpose.encode(), body), "sha256").hex()

    def is_seal(self, mac: object, purpose: str, body: bytes) -> bool:
        """Return True if `mac` is what `seal` returns for the same arguments."""
        return _is_same(mac, self.seal(purpose, body))


def _is_same(said: object, right: str) -> bool:
    return isinstance(said, str) and hmac.compare_digest(said.encode(), right.encode())
