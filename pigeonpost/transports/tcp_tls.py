"""TLS 1.3 on the TCP link: both ends of a connection, and the node's certificate.

The lines are the same as without TLS. The thread that serves a connection also makes its handshake. On a node, a peer
that sends nothing occupies the thread of its own connection for HANDSHAKE_S. On a server, the handshake never blocks
the ConnectionLoop. The node shows a certificate that, by default, it has created itself. There is no certificate
authority: either the server pins the certificate's SHA-256, or both ends include it in the text that they sign with
the node's token (docs/protocol.md).

This module imports ssl, which costs memory; an end without TLS does not import it.
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

HANDSHAKE_S = 5.0  # time limit of a handshake, including the wait for the peer's first byte

_HANDSHAKE, _ALERT = 22, 21  # the first byte of a TLS record (RFC 8446, 5.1) at the beginning of a connection
FIRST_BYTES = 512  # number of bytes that are kept of an answer that is not TLS; they may contain the reason


class TlsSocket(LineSocket):
    """A LineSocket that encrypts after the handshake; base class of both ends.

    The module ssl only encrypts and decrypts bytes in memory. Reading, writing and waiting work as without TLS.

    Args:
        sock: A connected socket.
        context: The TLS context.
        is_node: True for the end that shows the certificate.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, is_node: bool) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_node)
        self._is_in_handshake = self._is_encrypted = False
        self._first = b""  # first bytes received in the handshake

    def _continue_handshake(self) -> bool:
        """Continue the handshake and return True if it is complete; raise NotTls for other protocols."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            if self._first[:1] not in (b"", bytes([_HANDSHAKE]), bytes([_ALERT])):
                raise NotTls(self._first) from None
            raise ConnectionAbortedError(f"TLS handshake failed: {error.reason or error}") from error
        finally:
            super().send(self._outgoing.read())  # includes the alert after a failed handshake
        self._is_in_handshake, self._is_encrypted = False, True
        return True

    def send(self, data: bytes) -> None:
        if not self._is_encrypted:
            super().send(data)
            return
        left = memoryview(data)
        while left:  # `write` may accept only a part
            left = left[self._tls.write(left) :]
        super().send(self._outgoing.read())

    def receive(self) -> list[bytes]:
        if not self._is_in_handshake and not self._is_encrypted:
            return super().receive()
        block = self._received()
        self._incoming.write(block)
        if self._is_in_handshake:
            self._first += block[: FIRST_BYTES - len(self._first)]
            return []
        return self._lines(self._decrypted())

    def _decrypted(self) -> bytes:
        blocks = []
        try:
            while part := self._tls.read(READ_BYTES):
                blocks.append(part)
            self.is_closed = True  # the peer has ended its stream; its earlier lines are still answered
        except ssl.SSLWantReadError:
            pass
        super().send(self._outgoing.read())  # includes the answer to a key update of the peer
        return b"".join(blocks)

    def close(self) -> None:
        if self._is_encrypted:
            try:
                self._tls.unwrap()
            except ssl.SSLError:  # the peer has not sent close_notify yet, or the connection broke
                pass
            self._is_encrypted = False
            try:
                super().send(self._outgoing.read())
            except OSError:
                pass  # disconnected
        super().close()


class NotTls(ConnectionError):
    """An answer to the handshake that is not TLS; the message contains the node's reason, or the remedy.

    Args:
        received: The first bytes of the answer.
    """

    def __init__(self, received: bytes) -> None:
        reason = _reason_in(received)
        super().__init__(f"answers in plain text: {reason}" if reason else _NO_TLS)


def _reason_in(received: bytes) -> str:
    """Return the text of a node's ERROR if it explains more than a lack of TLS, else an empty string."""
    try:
        message = decode(received.partition(b"\n")[0])
    except WireError:
        return ""
    if message is None or message.word != "ERROR" or message.args[0] not in ("protected", "too-many"):
        return ""  # an older node without TLS reports the bytes of the handshake as an unknown word
    return f"{message.args[1].get('text', '')!s:.200}"


class TlsNodeConnection(TlsSocket, LineConnection):
    """The node's end of a connection: TLS, or plain text for peers on the node's own machine.

    Args:
        sock: A connected socket.
        context: The TLS context.
        fingerprint: SHA-256 of the node's certificate.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, fingerprint: str) -> None:
        super().__init__(sock, context, is_node=True)
        self._fingerprint = fingerprint

    def begin(self, is_local: bool, clock: Clock, is_over: Callable[[], bool]) -> str:
        give_up_s = clock.monotonic() + HANDSHAKE_S
        first = self._peek(clock, is_over, give_up_s)
        if is_local and first != _HANDSHAKE:  # None: nothing received; a person with nc may still be typing
            return ""
        if first is None:
            raise TimeoutError(_TOO_LATE)
        if first != _HANDSHAKE:
            raise Protected(_PLAIN_TEXT)
        self._is_in_handshake = True
        while not self._continue_handshake():
            left_s = give_up_s - clock.monotonic()
            if left_s <= 0 or is_over():
                raise TimeoutError(_TOO_LATE)
            self.wait(left_s)
        return self._fingerprint

    def wait(self, seconds: float) -> list[bytes]:
        if self.is_closed:
            raise ConnectionResetError("closed by the peer")
        # Data received together with the end of the handshake is not reported by poll.
        if self._is_encrypted and self._incoming.pending:
            return self._lines(self._decrypted())
        return super().wait(seconds)

    def _peek(self, clock: Clock, is_over: Callable[[], bool], give_up_s: float) -> int | None:
        """Return the peer's first byte without consuming it, or None if none has arrived in time."""
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
    """The server's end of a TLS connection.

    Args:
        sock: A connected socket.
        context: The TLS context.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock, context, is_node=False)
        self._is_in_handshake = True

    def handshake_left_s(self, waited_s: float) -> float:
        """Continue the handshake as LineSocket.handshake_left_s; at its end set `fingerprint`, without checking it."""
        if not self._is_encrypted:
            if not self._continue_handshake():
                if waited_s >= HANDSHAKE_S:
                    raise TimeoutError(_TOO_LATE)
                return HANDSHAKE_S - waited_s
            self.fingerprint = fingerprint_of_der(self._tls.getpeercert(binary_form=True) or b"")
        return 0.0


def node_connections(certificate: str, key: str) -> tuple[Callable[[socket.socket], LineConnection], str]:
    """Return the factory of the node's connections, and the fingerprint of the node's certificate.

    Args:
        certificate: Path of the PEM file with the certificate.
        key: Path of the PEM file with the key, or empty if the certificate's file contains it.

    Raises:
        SettingsError: A file cannot be read or is not valid.
    """
    fingerprint = fingerprint_of(certificate, _REMEDY)
    context = listening_context(certificate, key or certificate, ssl.TLSVersion.TLSv1_3, _REMEDY)
    context.num_tickets = 0  # no session resumption, so that each handshake shows the certificate
    return (lambda sock: TlsNodeConnection(sock, context, fingerprint)), fingerprint


def server_connections() -> Callable[[socket.socket], LineSocket]:
    """Return the factory of the server's end of TLS connections."""
    context = pinning_context(ssl.TLSVersion.TLSv1_3)
    return lambda sock: TlsServerSocket(sock, context)


def own_certificate(data: str, name: str) -> str:
    """Return the path of the file with certificate and key in the node's data folder; create it if it is missing.

    Args:
        data: Path of the data folder.
        name: Name of the node, which the certificate contains.

    Raises:
        SettingsError: openssl is missing.
        DiskError: The file cannot be written.
    """
    path = os.path.join(data, LINK_CERTIFICATE)
    if not os.path.exists(path):
        try:
            certificate, key = make_certificate(data, [name])
        except SettingsError as error:
            raise SettingsError(
                f"{error}; or create certificate and key on another machine, and set [link] certificate and key to the"
                " files"
            ) from None
        replace_file(path, key + certificate, mode=0o600)  # one file, so that neither exists without the other
        log.info("%s: created certificate and key, valid for ten years", path)
    return path


def fingerprint_for_show(data: str, certificate: str) -> str:
    """Return the fingerprint of the node's certificate for `node.py --show`, which never creates a certificate.

    Return "created at the first start" if the node will create its own certificate.

    Args:
        data: Path of the data folder.
        certificate: Path of the certificate in the settings, or empty if the node uses its own.

    Raises:
        SettingsError: The file cannot be read or is not valid.
    """
    path = certificate or os.path.join(data, LINK_CERTIFICATE)
    return fingerprint_of(path, _REMEDY) if certificate or os.path.exists(path) else "created at the first start"


_REMEDY = "[link] certificate and key name PEM files; without them the node creates its own"
_TOO_LATE = f"no TLS handshake within {HANDSHAKE_S:g} s"
_NO_TLS = "does not speak TLS: set [link] tls = true on it"
_PLAIN_TEXT = (
    "this node speaks TLS: set tls = true for it in server.toml ([[node]]), or use control.py with --fingerprint;"
    " it accepts plain text only from its own machine"
)
