"""Keys of the access to an MQTT broker, in every table that names a broker of its own."""

from __future__ import annotations

from pigeonpost.core.config import Option, number, switch, text

BROKER_OPTIONS = (
    Option("port", number(0, 65_535, whole=True), 0, "port of the broker; 0: 1883, or 8883 with TLS"),
    Option("user", text, "", "user name for the broker"),
    Option("password", text, "", "password for the broker"),
    Option("tls", switch, False, "encrypt the connection and verify the certificate of the broker"),
    Option(
        "ca", text, "", "PEM file of the authority that signed the broker's certificate (default: those of this system)"
    ),
)
