"""Certificates in PEM files: made with the program openssl, loaded for TLS, known by the SHA-256 of their DER form.

The only module that makes certificates: of the server's page (`control.py certificate`) and of a node's TCP link.
It imports ssl and hashlib; a node without TLS does not import it.
Errors: SettingsError, which names the file and the remedy. Sources: RFC 5280 (4.2.1.9, 4.2.1.3), openssl-req(1).
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Sequence

from pigeonpost.core.errors import SettingsError

_DAYS = 3650  # that a new certificate is good for

OPENSSL_S = 60.0  # that openssl gets to make one

IS_ADDRESS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*").fullmatch

# openssl reads this in place of the system's own file, whose section for `req -x509` makes an authority (CA:TRUE):
# who trusts such a certificate would also trust every other one that its key signs.
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
    """Return a new self-signed certificate and its key, as PEM.

    folder  where openssl leaves both for a moment, in a folder that only this user can read
    names   host names and addresses that it is for: letters, digits and ". _ - :"
    Raises SettingsError when openssl is missing or fails.
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
            raise SettingsError("there is no program openssl here; `sudo apt install openssl` brings it") from None
        except subprocess.TimeoutExpired:
            raise SettingsError(f"openssl did not end within {OPENSSL_S:.0f} s") from None
        if done.returncode:
            raise SettingsError(f"openssl ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return _content(certificate), _content(key)


def fingerprint_of(certificate: str, remedy: str) -> str:
    """Return the SHA-256 of the (first) certificate in a PEM file, as 64 hex digits. Raises SettingsError."""
    try:
        with open(certificate, encoding="ascii", errors="replace") as file:
            text = file.read()
        begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index("-----END CERTIFICATE-----")
        return fingerprint_of_der(ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{certificate}: no certificate in PEM form ({remedy}): {error}") from None


def fingerprint_of_der(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate in DER form, as 64 hex digits."""
    return hashlib.sha256(certificate).hexdigest()


def listening_context(certificate: str, key: str, least: ssl.TLSVersion, remedy: str) -> ssl.SSLContext:
    """Return the context of the end that shows a certificate. Raises SettingsError for files that do not fit.

    least   the lowest version of TLS that is spoken
    remedy  how to make new files, for the error
    """

    def no_password() -> str:
        raise SettingsError(f"{key}: the key has a password, which nobody is there to type; take one without")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = least
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        why = "the key is not the certificate's" if "MISMATCH" in str(error.reason) else "not PEM, or damaged"
        raise SettingsError(f"{certificate} and {key}: {why}; {remedy} ({error.reason})") from None
    except OSError as error:
        raise SettingsError(f"{certificate} and {key}: {error.strerror}; {remedy}") from None
    return context


def pinning_context(least: ssl.TLSVersion) -> ssl.SSLContext:
    """Return the context of an end that takes any certificate: its caller compares the fingerprint, or binds it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = least
    return context


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
