"""Topics and signatures of the MQTT transport, for both ends."""

from __future__ import annotations

from pigeonpost.auth.key import Key
from pigeonpost.transports.payload import sign

PURPOSE = "mqtt"

ROOT = "pigeonpost"

MOST_HELD = 10_000  # epochs named in a question; what older ones hold is sent again, and is a repeat


def sign_with_key(body: bytes, key: Key | None) -> bytes:
    """Return the message with the signature of `key` in it; without a key the body as it is."""
    return sign(body, key.seal(PURPOSE, body)) if key else body
