"""HMAC-SHA-256 (RFC 2104) with a node's token: mutual proof of both ends of a link, and signatures of messages.

On the TCP link the token itself is never sent: each side proves it over the fresh nonces of both sides. This module
imports hashlib, which costs 3.7 MiB; a node without a token does not import it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from pigeonpost.auth.key import Key


class LinkKey:
    """The key of one token; implements auth.key.Key."""

    def __init__(self, token: str, replaced: LinkKey | None = None, retire: Callable[[], object] | None = None) -> None:
        """
        replaced  on a server: the key that this one replaces, while that is still accepted
        retire    called when this key was proven, so that `replaced` is accepted no more
        """
        self._token = token.encode()
        self._replaced = replaced
        self._retire = retire

    def sign(self, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> str:
        """Return the proof that `side` ("node" or "server") knows the token."""
        text = "|".join(("pigeonpost-link-1", side, server, node, outbox, *nonces))
        return hmac.digest(self._token, text.encode(), "sha256").hex()

    def proves(self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> bool:
        """Return True if `mac` is what `sign` returns for the same arguments."""
        return _is_same(mac, self.sign(side, server, node, outbox, nonces))

    def proving(
        self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]
    ) -> LinkKey | None:
        """Return the key that made `mac`, for the same arguments of `sign`: this one, or the replaced one; or None."""
        return self._found(lambda key: key.proves(mac, side, server, node, outbox, nonces))

    def sealing(self, mac: object, purpose: str, body: bytes) -> LinkKey | None:
        """Return the key that made `mac`, for the same arguments of `seal`: this one, or the replaced one; or None."""
        return self._found(lambda key: key.is_seal(mac, purpose, body))

    def covers(self, other: Key) -> bool:
        """Return True if `other` is this key or the replaced one."""
        return self._found(lambda key: key.is_token(other.plain_token()), is_use=False) is not None

    def _found(self, is_it: Callable[[LinkKey], bool], is_use: bool = True) -> LinkKey | None:
        if is_it(self):
            if is_use and self._retire is not None:
                self._retire()
            return self
        return self._replaced if self._replaced is not None and is_it(self._replaced) else None

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
