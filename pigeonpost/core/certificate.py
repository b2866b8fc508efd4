"""Certificates in PEM files: creation with the program openssl, TLS contexts, and SHA-256 fingerprints.

This is the only module that creates certificates: for the server's page (`control.py certificate`) and for a node's TCP
link. It imports ssl and hashlib, so a node without TLS does not import it.

Errors: SettingsError, which contains the file and the remedy. Sources: RFC 5280 (4.2.1.9, 4.2.1.3), openssl-req(1).
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Sequence

from pigeonpost.core.errors import SettingsError

_DAYS = 3650  # validity of a new certificate

OPENSSL_S = 60.0  # time limit for openssl

IS_ADDRESS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*").fullmatch

# openssl reads this instead of the system's configuration, with which it would create an authority (CA:TRUE).
# A client that trusts an authority would also trust every other certificate that its key signs.
_CONFIGURATION = """[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = {name}
[extensions]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
subjectAltName = {alternatives}
"""


def make_certificate(folder: str, names: Sequence[str]) -> tuple[bytes, bytes]:
    """Return a new self-signed certificate and its key, both in PEM form.

    Args:
        folder: Folder for temporary files. They are written to a subfolder that only this user can read.
        names: Host names and addresses of the certificate. Allowed are letters, digits and ". _ - :".

    Raises:
        SettingsError: openssl is missing or fails.
    """
    import subprocess
    import tempfile

    os.makedirs(folder, exist_ok=True)
    alternatives = ",".join(f"{'IP' if IS_ADDRESS(name) else 'DNS'}:{name}" for name in names)
    with tempfile.TemporaryDirectory(prefix="certificate-", dir=folder) as place:
        configuration, certificate, key = (os.path.join(place, name) for name in ("configuration", "pem", "key"))
        with open(configuration, "w", encoding="ascii") as file:
            file.write(_CONFIGURATION.format(name=names[0][:64], alternatives=alternatives))
        command = [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256",
            "-days", str(_DAYS), "-config", configuration, "-out", certificate, "-keyout", key,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=OPENSSL_S, check=False
            )
        except FileNotFoundError:
            raise SettingsError("the program openssl is missing; install it with `sudo apt install openssl`") from None
        except subprocess.TimeoutExpired:
            raise SettingsError(f"openssl did not finish within {OPENSSL_S:.0f} s") from None
        if done.returncode:
            raise SettingsError(f"openssl failed with exit status {done.returncode}: {done.stderr.strip()[-300:]}")
        return _content(certificate), _content(key)


def fingerprint_of(certificate: str, remedy: str) -> str:
    """Return the SHA-256 of the first certificate in a PEM file, as 64 hex digits.

    Args:
        certificate: Path of the file.
        remedy: Remedy for the error text.

    Raises:
        SettingsError: The file cannot be read, or contains no certificate.
    """
    try:
        with open(certificate, encoding="ascii", errors="replace") as file:
            text = file.read()
        begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index("-----END CERTIFICATE-----")
        return fingerprint_of_der(ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{certificate}: not a certificate in PEM form ({remedy}): {error}") from None


def fingerprint_of_der(certificate: bytes) -> str:
    """Return the SHA-256 of `certificate`, which is in DER form, as 64 hex digits."""
    return hashlib.sha256(certificate).hexdigest()


def listening_context(certificate: str, key: str, least: ssl.TLSVersion, remedy: str) -> ssl.SSLContext:
    """Return the TLS context for a listening socket, which presents a certificate to its clients.

    Args:
        certificate: Path of the certificate (PEM).
        key: Path of its key (PEM).
        least: Lowest accepted version of TLS.
        remedy: How to create new files, for the error text.

    Raises:
        SettingsError: The files cannot be read or do not belong together.
    """

    def no_password() -> str:
        raise SettingsError(f"{key}: the key has a password, which a service cannot enter; use a key without one")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = least
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        why = "the key does not belong to the certificate" if "MISMATCH" in str(error.reason) else "not PEM, or damaged"
        raise SettingsError(f"{certificate} and {key}: {why}; {remedy} ({error.reason})") from None
    except OSError as error:
        raise SettingsError(f"{certificate} and {key}: {error.strerror}; {remedy}") from None
    return context


def pinning_context(least: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a TLS client context that accepts any certificate and at least the TLS version `least`.

    The caller must compare the certificate's fingerprint, or bind the session to it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = least
    return context


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
