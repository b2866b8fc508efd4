"""TLS for the web server: the certificate, the handshake, a socket for event streams, and certificate fingerprints.

May be used by any thread; `_lock` guards the certificate in use, and is held while it is read again.
Errors: SettingsError when certificate or key cannot be read at the start; later the one in use stays, and the fault is
logged.
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

_REMEDY = "`control.py certificate` makes one"


class Tls:
    """A certificate with its key. It is read again when its file has changed, so that it can be renewed at any time."""

    def __init__(self, certificate: str, key: str) -> None:
        """Paths of PEM files; without `key` it is in the certificate's file. Raises SettingsError."""
        self.path = os.path.abspath(certificate)
        self._paths = self.path, os.path.abspath(key or certificate)
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._context = _context(*self._paths)
        self.fingerprint = fingerprint_of(self.path)

    def wrap(self, sock: socket.socket) -> Secure:
        """The socket as TLS has it; the handshake comes after."""
        return Secure(self._now().wrap_socket(sock, server_side=True, do_handshake_on_connect=False))

    def _now(self) -> ssl.SSLContext:
        with self._lock:
            try:
                stamp = self._look()
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._context = _context(*self._paths)
                    self.fingerprint = fingerprint_of(self._paths[0])
                    log.info("%s is in use: SHA-256 %s", self._paths[0], self.fingerprint)
            except SettingsError as error:
                log.error("the certificate stays as it was: %s", error)
            return self._context

    def _look(self) -> object:
        try:
            return [(status.st_ino, status.st_mtime_ns) for status in map(os.stat, self._paths)]
        except OSError as error:
            raise SettingsError(
                f"{error.filename}: {error.strerror}; [web] certificate and key name PEM files ({_REMEDY})"
            ) from None


class Secure:
    """A TLS connection.

    `setblocking`, `fileno`, `recv`, `send` and `close` are for a thread that serves many of them (views.sse): they
    raise BlockingIOError where TLS has to wait.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.fileno, self.setblocking = sock.fileno, sock.setblocking

    def shake_hands(self, limit_s: float) -> None:
        """The handshake, within `limit_s` seconds in all. Raises OSError (ssl.SSLError is one)."""
        self.sock.settimeout(limit_s)
        self.sock.do_handshake()

    def say_goodbye(self) -> None:
        """Tell the client that nothing more comes, and do not wait for its answer: else it may think it was cut off."""
        try:
            self.sock.setblocking(False)
            self.sock.unwrap()
        except (OSError, ValueError):  # the client's own goodbye has not come, or it has gone
            pass

    def recv(self, most: int) -> bytes:
        try:
            return self.sock.recv(most)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def send(self, data: bytes) -> int:
        try:
            return self.sock.send(data) if data else 0
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def close(self) -> None:
        self.say_goodbye()
        self.sock.close()


def fingerprint_of(certificate: str) -> str:
    """Return the SHA-256 of the (first) certificate in a PEM file, as 64 hex digits. Raises SettingsError."""
    return certificate_files.fingerprint_of(certificate, _REMEDY)


def _context(certificate: str, key: str) -> ssl.SSLContext:
    return certificate_files.listening_context(certificate, key, ssl.TLSVersion.TLSv1_2, _REMEDY)
