"""TLS 1.3 on the TCP link: both ends of a connection, and the node's certificate.

The lines are the same as without TLS. A connection belongs to the thread that serves it, the handshake too: on a node a
peer that is silent in it costs that connection's thread HANDSHAKE_S, on a server nobody waits for it. The node shows a
certificate that it made itself. What proves it is its SHA-256: pinned by the server, or at the end of the text that
both sign with the node's token (docs/protocol.md).

This module imports ssl; an end without TLS does not import it.
Errors: SettingsError for certificate files; OSError (ssl.SSLError is one) when a handshake or a connection fails;
Protected when a peer on another machine speaks plain text to a node with TLS.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Callable

from pigeonpost.core.certificate import (
    fingerprint_of,
    fingerprint_of_der,
    listening_context,
    make_certificate,
    pinning_context,
)
from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import LINK_CERTIFICATE
from pigeonpost.core.errors import Protected, SettingsError, WireError
from pigeonpost.core.files import replace_file
from pigeonpost.transports.tcp_connection import READ_BYTES, LineConnection, LineSocket
from protocol import decode

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0  # for a whole handshake, the first byte of a peer included

_HANDSHAKE, _ALERT = 22, 21  # the first byte of a TLS record (RFC 8446, 5.1) at the beginning of a connection
FIRST_BYTES = 512  # of what a peer says instead of TLS, to tell why


class TlsSocket(LineSocket):
    """A LineSocket that encrypts: plain text until the handshake is done. Base of both ends.

    ssl only transforms bytes here; the socket is read, written and waited for as without TLS.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, is_node: bool) -> None:
        """`is_node`: this end shows the certificate."""
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_node)
        self._is_shaking = self._is_encrypted = False
        self._first = b""  # what the peer said first, in the handshake

    def _has_shaken(self) -> bool:
        """Go on with the handshake. Raises OSError: ConnectionError; NotTls when the peer speaks something else."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            if self._first[:1] not in (b"", bytes([_HANDSHAKE]), bytes([_ALERT])):
                raise NotTls(self._first) from None
            raise ConnectionAbortedError(f"no TLS: {error.reason or error}") from error
        finally:
            super().send(self._outgoing.read())  # also the alert of a handshake that failed
        self._is_shaking, self._is_encrypted = False, True
        return True

    def send(self, data: bytes) -> None:
        if not self._is_encrypted:
            super().send(data)
            return
        left = memoryview(data)
        while left:  # `write` may take a part
            left = left[self._tls.write(left) :]
        super().send(self._outgoing.read())

    def receive(self) -> list[bytes]:
        if not self._is_shaking and not self._is_encrypted:
            return super().receive()
        block = self._received()
        self._incoming.write(block)
        if self._is_shaking:
            self._first += block[: FIRST_BYTES - len(self._first)]
            return []
        return self._lines(self._decrypted())

    def _decrypted(self) -> bytes:
        found = []
        try:
            while part := self._tls.read(READ_BYTES):
                found.append(part)
            self.is_closed = True  # the peer has said that nothing more comes: what it said before is answered first
        except ssl.SSLWantReadError:
            pass
        super().send(self._outgoing.read())  # the answer to a new key of the peer's
        return b"".join(found)

    def close(self) -> None:
        if self._is_encrypted:
            try:
                self._tls.unwrap()
            except ssl.SSLError:  # the peer's close_notify has not come, or the connection broke
                pass
            self._is_encrypted = False
            try:
                super().send(self._outgoing.read())
            except OSError:
                pass  # it is gone
        super().close()


class NotTls(ConnectionError):
    """The peer answered the handshake with something that is not TLS. The message names the remedy."""

    def __init__(self, said: bytes) -> None:
        reason = _reason_in(said)
        super().__init__(f"answers in plain text: {reason}" if reason else _NO_TLS)


def _reason_in(said: bytes) -> str:
    """Return what a node's ERROR says, where that is a better reason than that it does not speak TLS; else nothing."""
    try:
        message = decode(said.partition(b"\n")[0])
    except WireError:
        return ""
    if message is None or message.word != "ERROR" or message.args[0] not in ("protected", "too-many"):
        return ""  # a node of an older version finds fault with the bytes of the handshake
    return f"{message.args[1].get('text', '')!s:.200}"


class TlsNodeConnection(TlsSocket, LineConnection):
    """The node's end, with its thread: TLS, or plain text with its own machine."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, fingerprint: str) -> None:
        super().__init__(sock, context, is_node=True)
        self._fingerprint = fingerprint

    def begin(self, is_local: bool, clock: Clock, is_over: Callable[[], bool]) -> str:
        """As LineConnection.begin. Raises Protected for plain text from another machine; OSError."""
        give_up_s = clock.monotonic() + HANDSHAKE_S
        first = self._peek(clock, is_over, give_up_s)
        if is_local and first != _HANDSHAKE:  # nothing: a person with nc, who is still typing
            return ""
        if first is None:
            raise TimeoutError(_TOO_LATE)
        if first != _HANDSHAKE:
            raise Protected(_PLAIN_TEXT)
        self._is_shaking = True
        while not self._has_shaken():
            left_s = give_up_s - clock.monotonic()
            if left_s <= 0 or is_over():
                raise TimeoutError(_TOO_LATE)
            self.wait(left_s)
        return self._fingerprint

    def wait(self, seconds: float) -> list[bytes]:
        if self.is_closed:
            raise ConnectionResetError("closed by the peer")
        if self._is_encrypted and self._incoming.pending:  # it came with the end of the handshake: poll does not tell
            return self._lines(self._decrypted())
        return super().wait(seconds)

    def _peek(self, clock: Clock, is_over: Callable[[], bool], give_up_s: float) -> int | None:
        """Return the first byte of the peer's, which stays to be read; None when none has come in time."""
        while not is_over() and (left_s := give_up_s - clock.monotonic()) > 0:
            try:
                first = self._sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                if any(fd == self._wake_fd for fd, _ in self._poll.poll(left_s * 1000 + 1)):
                    self._wake_pipe.drain()
                continue
            if not first:
                raise ConnectionResetError("closed by the peer")
            return first[0]
        return None


class TlsServerSocket(TlsSocket):
    """The server's end."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock, context, is_node=False)
        self._is_shaking = True

    def handshake_left_s(self, waited_s: float) -> float:
        """As LineSocket.handshake_left_s; then `fingerprint` is of what the node has shown, which is not judged yet."""
        if not self._is_encrypted:
            if not self._has_shaken():
                if waited_s >= HANDSHAKE_S:
                    raise TimeoutError(_TOO_LATE)
                return HANDSHAKE_S - waited_s
            self.fingerprint = fingerprint_of_der(self._tls.getpeercert(binary_form=True) or b"")
        return 0.0


def node_connections(certificate: str, key: str) -> tuple[Callable[[socket.socket], LineConnection], str]:
    """Return what makes the node's end of a connection, and the fingerprint of its certificate.

    Arguments: paths of PEM files. Raises SettingsError.
    """
    fingerprint = fingerprint_of(certificate, _REMEDY)
    context = listening_context(certificate, key or certificate, ssl.TLSVersion.TLSv1_3, _REMEDY)
    context.num_tickets = 0  # sessions are not resumed: each handshake shows the certificate
    return (lambda sock: TlsNodeConnection(sock, context, fingerprint)), fingerprint


def server_connections() -> Callable[[socket.socket], LineSocket]:
    """Return what makes the server's end of a connection."""
    context = pinning_context(ssl.TLSVersion.TLSv1_3)
    return lambda sock: TlsServerSocket(sock, context)


def own_certificate(data: str, name: str) -> str:
    """Return the path of the certificate, with its key, in the node's data folder; it is made where there is none.

    Raises SettingsError when openssl is missing, DiskError.
    """
    path = os.path.join(data, LINK_CERTIFICATE)
    if not os.path.exists(path):
        try:
            certificate, key = make_certificate(data, [name])
        except SettingsError as error:
            raise SettingsError(
                f"{error}; or make certificate and key on another machine, and name the files in [link] certificate"
                " and key"
            ) from None
        replace_file(path, key + certificate, mode=0o600)  # one file: both are there, or neither
        log.info("%s: certificate and key made, good for ten years", path)
    return path


def fingerprint_for_show(data: str, certificate: str) -> str:
    """Return the fingerprint of the certificate for `node.py --show`, which makes none. Raises SettingsError."""
    path = certificate or os.path.join(data, LINK_CERTIFICATE)
    return fingerprint_of(path, _REMEDY) if certificate or os.path.exists(path) else "made at the first start"


_REMEDY = "[link] certificate and key name PEM files; without them the node makes its own"
_TOO_LATE = f"no TLS handshake within {HANDSHAKE_S:g} s"
_NO_TLS = "does not speak TLS: set [link] tls = true on it"
_PLAIN_TEXT = (
    "this node speaks TLS: set tls = true for it in server.toml ([[node]]), or give control.py --fingerprint;"
    " plain text is for its own machine"
)
