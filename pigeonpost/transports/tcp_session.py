"""What both ends of a TCP session share: lines in, lines out, and when it ends; without sockets and threads.

A session belongs to the one thread that serves its connection; tests drive both ends in one thread.
Errors: what is wrong with the peer's lines becomes an ERROR line to it, and sets `closing` where the protocol says so.
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

ENTRIES_A_LINE = 500  # of the lists in HELD and RESUME: 64 bytes each at most, with room to spare
MOST_WARNINGS = 20  # of one session in the log, so that a peer cannot fill the disk with nonsense

Mark = tuple[int, int | None]  # the highest seq stored of an epoch, and that sample's `up`; None: a gap ended there
Marks = tuple[int, Mapping[str, Mark]]  # the highest running number stored of an outbox, and what of each epoch
Resume = tuple[Mapping[str, Mark], Sequence[bytes]]


class LinkSession:
    """One end of a connection. Its owner feeds `receive`, sends `take_output`, calls `tick`, and ends on `closing`."""

    def __init__(self, clock: Clock, peer: str) -> None:
        """`peer` is how the other end is named in the log, its address first."""
        self.clock = clock
        self.peer = peer
        self.closing = False
        self._warnings = 0
        self._out: list[bytes] = []
        self._heard_s = self._said_s = clock.monotonic()

    def receive(self, line: bytes) -> None:
        """Take one line of the peer's. It never raises for what the peer says: that is answered with ERROR."""
        self._heard_s = self.clock.monotonic()
        if self.closing:
            return
        try:
            message = decode(line)
            if message is not None:
                self._take(message)
        except WireError as error:
            self.refuse(error, line)

    def receive_lines(self, lines: Sequence[bytes]) -> None:
        """Take lines that have come together, as `receive` takes each."""
        for line in lines:
            self.receive(line)

    def take_output(self) -> bytes:
        """The lines that are to be sent now; each is handed out once."""
        if not self._out:
            return b""
        self._said_s = self.clock.monotonic()
        lines, self._out = self._out, []
        return b"".join(lines)

    def is_closing(self) -> bool:
        """Return `closing` as it is now: what is called meanwhile may have set it, which a type checker cannot see."""
        return self.closing

    def refuse(self, error: WireError, line: bytes = b"") -> None:
        """Tell the peer what was wrong, with `line` if it was one; close where the wire says so."""
        self._warn(error.code, str(error), error.closes)
        self._out.append(error_line(error, line))
        self.closing = self.closing or error.closes

    def tick(self) -> float:
        """Do what is due by the clock, as giving up; the seconds until the next look is due."""
        raise NotImplementedError

    def _take(self, message: Message) -> None:
        raise NotImplementedError

    def _queue_message(self, word: str, *args: Any) -> None:
        self._out.append(encode(word, *args))

    def _on_error(self, code: str, details: Mapping[str, Any]) -> None:
        self._warn(f"says {code}", details.get("text", "(no text)"))

    def _warn(self, what: str, text: object, last: bool = False) -> None:
        """Log what went wrong, as long as it is not too often; the `last` of a session always."""
        self._warnings += 1
        if last or self._warnings <= MOST_WARNINGS:
            more = " (and no more of such lines is logged)" if self._warnings == MOST_WARNINGS else ""
            log.warning("%s: %s: %s%s", self.peer, what, text, more)

    def _on_bye(self) -> None:
        self.closing = True


def tls_binding(fingerprint: str) -> Sequence[str]:
    """Return what both ends append to the nonces that they sign: the certificate of a TLS connection, as each sees it.

    fingerprint  SHA-256 of the node's certificate, 64 hex digits; empty: the connection is not encrypted
    So a man in the middle, who has another certificate, cannot pass on the proofs of the two ends.
    """
    return (f"tls:{fingerprint}",) if fingerprint else ()


def parts(items: Sequence[Any]) -> list[tuple[Sequence[Any], dict[str, bool]]]:
    """A list cut into what fits a line each, with the `"more": true` that goes beside all parts but the last."""
    starts = range(0, max(1, len(items)), ENTRIES_A_LINE)
    return [
        (items[start : start + ENTRIES_A_LINE], {"more": True} if start + ENTRIES_A_LINE < len(items) else {})
        for start in starts
    ]


def find_resume(marks: Callable[..., Marks], *of: object) -> Resume:
    """Return what `marks(*of)` knows of epochs, and the RESUME lines that say so; of many epochs both take a while."""
    top, known = marks(*of)
    first, lines = {"id": top}, []
    for part, more in parts([(epoch, list(mark)) for epoch, mark in known.items()]):
        lines.append(encode("RESUME", {**first, **dict(part), **more}))
        first = {}
    return known, lines
