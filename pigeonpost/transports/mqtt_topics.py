"""Topics and signatures of the MQTT transport.

Runs on: node and server.
"""

from __future__ import annotations

from pigeonpost.auth.key import Key
from pigeonpost.transports.payload import sign

PURPOSE = "mqtt"

ROOT = "pigeonpost"

MOST_HELD = 10_000  # epochs named in a question; what older ones hold is sent again, and is a repeat


def sign_with_key(body: bytes, key: Key | None) -> bytes:
    return sign(body, key.seal(PURPOSE, body)) if key else body
