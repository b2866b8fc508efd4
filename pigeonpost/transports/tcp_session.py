"""Common part of both ends of a TCP session: it processes received lines and returns the lines to send.

A session has neither sockets nor threads, so that tests can run both ends in one thread with a simulated clock. It
belongs to the one thread that serves its connection.
Errors: an invalid line of the peer is answered with an ERROR line, and sets `closing` if the protocol requires it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import WireError
from pigeonpost.core.light_typing import TYPE_CHECKING
from protocol import Message, decode, encode, error_line

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

ENTRIES_A_LINE = 500  # epochs in one HELD or RESUME line; each needs at most 80 bytes, so the line is never too long
MOST_WARNINGS = 20  # maximum number of warnings of one session in the log, so that a peer cannot fill the disk

# High-water mark of an epoch: the highest seq stored, and that sample's `up` (None if a gap ended there).
Mark = tuple[int, int | None]
# High-water marks of an outbox: the highest running number stored, and the mark of each epoch.
Marks = tuple[int, Mapping[str, Mark]]
# High-water marks of the epochs of an outbox, and the RESUME lines that send them.
Resume = tuple[Mapping[str, Mark], Sequence[bytes]]


class LinkSession:
    """One end of a connection.

    Its owner passes received lines to `receive`, sends what `take_output` returns, calls `tick` in time, and closes the
    connection once `closing` is True.

    Args:
        clock: Clock for timeouts.
        peer: Name of the other end in the log; it begins with the address.

    Attributes:
        clock: The clock.
        peer: Name of the other end in the log.
        closing: True once the owner must send pending output and close the connection.
    """

    def __init__(self, clock: Clock, peer: str) -> None:
        self.clock = clock
        self.peer = peer
        self.closing = False
        self._warnings = 0
        self._out: list[bytes] = []
        self._last_received_s = self._last_sent_s = clock.monotonic()

    def receive(self, line: bytes) -> None:
        """Process one `line` of the peer; an invalid line is answered with ERROR and never raises."""
        self._last_received_s = self.clock.monotonic()
        if self.closing:
            return
        try:
            message = decode(line)
            if message is not None:
                self._take(message)
        except WireError as error:
            self.refuse(error, line)

    def receive_lines(self, lines: Sequence[bytes]) -> None:
        """Process `lines` that were received together, as `receive` does with each."""
        for line in lines:
            self.receive(line)

    def take_output(self) -> bytes:
        """Return the lines to send now; each line is returned once."""
        if not self._out:
            return b""
        self._last_sent_s = self.clock.monotonic()
        lines, self._out = self._out, []
        return b"".join(lines)

    def is_closing(self) -> bool:
        """Return `closing`; after a test of the attribute itself, a type checker assumes that it does not change."""
        return self.closing

    def refuse(self, error: WireError, line: bytes = b"") -> None:
        """Report `error`, caused by `line` if any, to the peer; close if the protocol requires it."""
        self._warn(error.code, str(error), error.closes)
        self._out.append(error_line(error, line))
        self.closing = self.closing or error.closes

    def tick(self) -> float:
        """Do what is due by the clock, such as timeouts. Return the number of seconds until the next call is due."""
        raise NotImplementedError

    def _take(self, message: Message) -> None:
        raise NotImplementedError

    def _queue_message(self, word: str, *args: Any) -> None:
        self._out.append(encode(word, *args))

    def _on_error(self, code: str, details: Mapping[str, Any]) -> None:
        self._warn(f"peer reports {code}", details.get("text", "(no text)"))

    def _warn(self, what: str, text: object, last: bool = False) -> None:
        """Log a warning, at most MOST_WARNINGS of a session; the `last` one of a session is always logged."""
        self._warnings += 1
        if last or self._warnings <= MOST_WARNINGS:
            more = " (further warnings of this session are not logged)" if self._warnings == MOST_WARNINGS else ""
            log.warning("%s: %s: %s%s", self.peer, what, text, more)

    def _on_bye(self) -> None:
        self.closing = True


def tls_binding(fingerprint: str) -> Sequence[str]:
    """Return the text about the TLS certificate that both ends append to the nonces that they sign.

    Each end uses the certificate that it sees. So an attacker between the ends, who has another certificate, cannot
    relay the proofs of one end to the other.

    Args:
        fingerprint: SHA-256 of the node's certificate, 64 hex digits, or empty if the connection is not encrypted.
    """
    return (f"tls:{fingerprint}",) if fingerprint else ()


def parts(items: Sequence[Any]) -> list[tuple[Sequence[Any], dict[str, bool]]]:
    """Return `items` in parts that fit in one line each; with each part, `{"more": True}`, or `{}` for the last one."""
    starts = range(0, max(1, len(items)), ENTRIES_A_LINE)
    return [
        (items[start : start + ENTRIES_A_LINE], {"more": True} if start + ENTRIES_A_LINE < len(items) else {})
        for start in starts
    ]


def find_resume(marks: Callable[..., Marks], *arguments: object) -> Resume:
    """Return the high-water marks that `marks(*arguments)` finds, and the RESUME lines that contain them.

    Both steps may take long if there are many epochs, so the server calls this in another thread.

    Args:
        marks: Function that queries the store, such as IngestProtocol.marks.
        *arguments: Arguments of `marks`.
    """
    top, known = marks(*arguments)
    first, lines = {"id": top}, []
    for part, more in parts([(epoch, list(mark)) for epoch, mark in known.items()]):
        lines.append(encode("RESUME", {**first, **dict(part), **more}))
        first = {}
    return known, lines
