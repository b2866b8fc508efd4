"""TLS for the web server: the certificate, the handshake, a socket for event streams, and certificate fingerprints.

All functions may be called from any thread. `_lock` guards the certificate in use and is held while the file is read
again.
Errors: SettingsError when the certificate or the key cannot be read at the start. If a changed file cannot be read
later, the error is logged and the certificate in use stays.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading

from pigeonpost.core import certificate as certificate_files
from pigeonpost.core.errors import SettingsError

log = logging.getLogger(__name__)

_REMEDY = "`control.py certificate` creates both files"


class Tls:
    """Certificate with its private key. The files are read again when they have changed, for renewals.

    Args:
        certificate: Path of the PEM file with the certificate.
        key: Path of the PEM file with the private key, or an empty string if it is in the file of the certificate.

    Raises:
        SettingsError: A file cannot be read.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self.path = os.path.abspath(certificate)
        self._paths = self.path, os.path.abspath(key or certificate)
        self._lock = threading.Lock()
        self._stamp = self._status()
        self._context = _context(*self._paths)
        self.fingerprint = fingerprint_of(self.path)

    def wrap(self, sock: socket.socket) -> TlsConnection:
        """Return a TLS connection over `sock`. The caller must do the handshake."""
        return TlsConnection(self._current_context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False))

    def _current_context(self) -> ssl.SSLContext:
        with self._lock:
            try:
                stamp = self._status()
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._context = _context(*self._paths)
                    self.fingerprint = fingerprint_of(self._paths[0])
                    log.info("%s is in use: SHA-256 %s", self._paths[0], self.fingerprint)
            except SettingsError as error:
                log.error("the changed certificate cannot be used; the previous one stays in use: %s", error)
            return self._context

    def _status(self) -> object:
        """Return a value that changes when a file has changed."""
        try:
            return [(status.st_ino, status.st_mtime_ns) for status in map(os.stat, self._paths)]
        except OSError as error:
            raise SettingsError(
                f"{error.filename}: {error.strerror}; [web] certificate and key must be paths of PEM files ({_REMEDY})"
            ) from None


class TlsConnection:
    """TLS connection.

    The methods `setblocking`, `fileno`, `recv`, `send` and `close` are for a thread that serves many connections
    (views.sse).

    Args:
        sock: The wrapped socket.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.fileno, self.setblocking = sock.fileno, sock.setblocking

    def do_handshake(self, limit_s: float) -> None:
        """Do the handshake within `limit_s` seconds. Raise OSError (or its subclass ssl.SSLError) if it fails."""
        self.sock.settimeout(limit_s)
        self.sock.do_handshake()

    def send_close_notify(self) -> None:
        """Send the TLS close notification, and do not wait for that of the client.

        Without it, the client could conclude that the data was truncated.
        """
        try:
            self.sock.setblocking(False)
            self.sock.unwrap()
        except (OSError, ValueError):  # the client has not sent its notification yet, or has disconnected
            pass

    def recv(self, most: int) -> bytes:
        """Return at most `most` received bytes. Raise BlockingIOError if TLS must wait for the network."""
        try:
            return self.sock.recv(most)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def send(self, data: bytes) -> int:
        """Send `data` and return the number of bytes sent. Raise BlockingIOError if TLS must wait for the network."""
        try:
            return self.sock.send(data) if data else 0
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def close(self) -> None:
        """Close the connection with a close notification."""
        self.send_close_notify()
        self.sock.close()


def fingerprint_of(certificate: str) -> str:
    """Return the SHA-256 fingerprint of the first certificate in a PEM file, as 64 hex digits.

    Args:
        certificate: Path of the file.

    Raises:
        SettingsError: The file cannot be read.
    """
    return certificate_files.fingerprint_of(certificate, _REMEDY)


def _context(certificate: str, key: str) -> ssl.SSLContext:
    return certificate_files.listening_context(certificate, key, ssl.TLSVersion.TLSv1_2, _REMEDY)
