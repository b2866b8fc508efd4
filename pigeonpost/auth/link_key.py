"""HMAC-SHA-256 (RFC 2104) with a node's token, for mutual authentication of a link and for signatures of messages.

The token itself is never sent on the TCP link. Each side proves that it knows the token, with the fresh nonces of both
sides. This module imports hashlib, which needs 3.7 MiB, so a node without a token does not import it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from pigeonpost.auth.key import Key


class LinkKey(Key):
    """Implementation of auth.key.Key for one token.

    Args:
        token: The token.
        replaced: Previous key that is still accepted after a rotation; on a server only.
        retire: Function that ends the acceptance of `replaced`. It is called each time this key has been used.
    """

    def __init__(self, token: str, replaced: LinkKey | None = None, retire: Callable[[], object] | None = None) -> None:
        self._token = token.encode()
        self._replaced = replaced
        self._retire = retire

    def sign(self, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> str:
        text = "|".join(("pigeonpost-link-1", side, server, node, outbox, *nonces))
        return hmac.digest(self._token, text.encode(), "sha256").hex()

    def proves(self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> bool:
        return _is_same(mac, self.sign(side, server, node, outbox, nonces))

    def proving_key(
        self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]
    ) -> LinkKey | None:
        return self._first_match(lambda key: key.proves(mac, side, server, node, outbox, nonces))

    def signing_key(self, mac: object, purpose: str, body: bytes) -> LinkKey | None:
        return self._first_match(lambda key: key.is_signature(mac, purpose, body))

    def covers(self, other: Key) -> bool:
        return self._first_match(lambda key: key.is_token(other.plain_token()), is_use=False) is not None

    def _first_match(self, matches: Callable[[LinkKey], bool], is_use: bool = True) -> LinkKey | None:
        """Return the key that `matches` accepts: this key, the previous key, or None.

        If it is this key and `is_use` is True, `retire` is called.
        """
        if matches(self):
            if is_use and self._retire is not None:
                self._retire()
            return self
        return self._replaced if self._replaced is not None and matches(self._replaced) else None

    def is_token(self, token: object) -> bool:
        return _is_same(token, self._token.decode())

    def plain_token(self) -> str:
        return self._token.decode()

    def signature(self, purpose: str, body: bytes) -> str:
        return hmac.digest(self._token, b"pigeonpost-%s-1|%s" % (purpose.encode(), body), "sha256").hex()

    def is_signature(self, mac: object, purpose: str, body: bytes) -> bool:
        return _is_same(mac, self.signature(purpose, body))


def _is_same(received: object, expected: str) -> bool:
    return isinstance(received, str) and hmac.compare_digest(received.encode(), expected.encode())
