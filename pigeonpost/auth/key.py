"""Interface of a node's key, which creates and checks proofs of the node's token and signatures of messages.

Transports use this protocol instead of LinkKey, whose module imports hashlib. This saves 3.7 MiB in a node without a
token.
"""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.core.light_typing import Protocol


class Key(Protocol):
    """Operations that a transport performs with a node's token. auth.link_key.LinkKey implements them.

    After a rotation, a key accepts proofs and signatures of the previous token too, until that token expires.
    """

    def sign(self, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> str:
        """Return the proof that one side of a link knows the token.

        Args:
            side: Side that makes the proof: `node` or `server`.
            server: Id of the server.
            node: Name of the node.
            outbox: Id of the node's outbox.
            nonces: Fresh random values of both sides. The proof is valid for these only.

        Returns:
            The proof: 64 hex digits.
        """

    def proves(self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]) -> bool:
        """Return True if a proof was made with this key. The comparison takes constant time.

        Args:
            mac: The received proof.
            side: Side that made the proof: `node` or `server`.
            server: Id of the server.
            node: Name of the node.
            outbox: Id of the node's outbox.
            nonces: Random values of both sides.
        """

    def proving_key(
        self, mac: object, side: str, server: str, node: str, outbox: str, nonces: Sequence[str]
    ) -> Key | None:
        """Return the key that made a proof.

        Args:
            mac: The received proof.
            side: Side that made the proof: `node` or `server`.
            server: Id of the server.
            node: Name of the node.
            outbox: Id of the node's outbox.
            nonces: Random values of both sides.

        Returns:
            This key, the previous key if that is still accepted, or None if neither made the proof.
        """

    def signing_key(self, mac: object, purpose: str, body: bytes) -> Key | None:
        """Return the key that signed a message.

        Args:
            mac: The received signature.
            purpose: Purpose for which the message was signed.
            body: The message.

        Returns:
            This key, the previous key if that is still accepted, or None if neither signed the message.
        """

    def covers(self, other: Key) -> bool:
        """Return True if `other` is this key, or the previous key if that is still accepted."""

    def is_token(self, token: object) -> bool:
        """Return True if `token` is this key's token. The comparison takes constant time."""

    def plain_token(self) -> str:
        """Return the token itself, for transports that send it instead of a proof (HTTP, which should then use TLS)."""

    def signature(self, purpose: str, body: bytes) -> str:
        """Return the signature of `body`: 64 hex digits, valid for this `purpose` only."""

    def is_signature(self, mac: object, purpose: str, body: bytes) -> bool:
        """Return True if `mac` is this key's signature of `body` for `purpose`. The comparison takes constant time."""
