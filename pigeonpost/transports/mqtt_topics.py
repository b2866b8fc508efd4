"""Topics and signatures of the MQTT transport, for both ends."""

from __future__ import annotations

from pigeonpost.auth.key import Key
from pigeonpost.transports.payload import sign

PURPOSE = "mqtt"

ROOT = "pigeonpost"

MOST_HELD = 10_000  # maximum number of epochs in a question: the newest ones; samples of others are sent again


def sign_with_key(body: bytes, key: Key | None) -> bytes:
    """Return `body` signed with `key`, or unchanged if there is no key."""
    return sign(body, key.signature(PURPOSE, body)) if key else body
