"""The node's end of a TCP session: answers to the server's lines, and the samples to send next.

docs/protocol.md describes the protocol in prose. A session belongs to the thread that serves its connection; NodeInfo
contains the state that all sessions share. Errors: as in tcp_session.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

from pigeonpost.auth.key import Key
from pigeonpost.core.clock import Clock, parse_rfc3339, rfc3339
from pigeonpost.core.errors import AuthFailed, BadAck, BadArgument, Protected, Unexpected, UnknownWord, WrongVersion
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.rare_log import RareLog
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.send_cursor import OutgoingBatch, SendCursor
from pigeonpost.transports.tcp_session import LinkSession, parts, tls_binding
from protocol import (
    AUTH_S,
    LARGEST_WINDOW,
    LINE_BYTES,
    NODE_NAME,
    SILENCE_S,
    VERSION,
    Message,
    is_count,
)

if TYPE_CHECKING:
    from typing import Any, ClassVar

log = logging.getLogger(__name__)

_ROOM_BYTES = LINE_BYTES - len("SENSORS 0123456789abcdef \n")  # maximum length of the samples in a line


class NodeSession(LinkSession):
    """The node's end of one connection: a plain session until HELLO, then a collecting session.

    Args:
        info: Name, token and sensors of the node.
        outbox: The node's outbox.
        clock: Clock for timeouts and timestamps.
        peer: Address and port of the peer.
        local: True if the peer is on this machine; a node without a token rejects all other peers.
        fingerprint: Fingerprint of the certificate that this node has shown, or empty if the connection is not
            encrypted.
        record_failure: Called after a wrong proof of the peer; returns the seconds by which to delay the answer.
        rare_log: Log for warnings that an unproven peer causes, or None to log them like others.
    """

    def __init__(
        self,
        info: NodeInfo,
        outbox: Outbox,
        clock: Clock,
        peer: str,
        local: bool,
        fingerprint: str = "",
        record_failure: Callable[[], float] = lambda: 0.0,
        rare_log: RareLog | None = None,
    ) -> None:
        super().__init__(clock, peer)
        self._record_failure = record_failure
        self._rare_log = rare_log
        self._delayed: tuple[float, AuthFailed] | None = None  # time and error of the delayed answer to a wrong proof
        self._info = info
        self._outbox = outbox
        self._began_s = clock.monotonic()
        self._trusted = info.key is None
        self._server = ""  # name of the server, after HELLO
        self._nonces: Sequence[str] | None = None
        self._binding = tls_binding(fingerprint)
        self._collecting = False  # RESUME was received
        self._listed: set[str] = set()  # epochs that HELLO and HELD listed
        self._resume: dict[str, Any] = {}
        self._live = False  # samples are sent: after RESUME, or in a plain session after SEND ON
        self._cursor = SendCursor(outbox, clock, _ROOM_BYTES)
        if info.key is None and not local:
            self.refuse(Protected(HOW_TO_PROTECT))

    @property
    def server(self) -> str:
        """Name of the server that collects in this session, or empty in any other session."""
        return self._server if self._collecting else ""

    @property
    def is_proven(self) -> bool:
        """True if the peer has proven the token; on a node without a token, if the peer is a server that collects."""
        return self._trusted if self._info.key is not None else self._collecting

    @property
    def last_received_s(self) -> float:
        """Monotonic time when the latest line of the peer was received."""
        return self._last_received_s

    def tick(self) -> float:
        now = self.clock.monotonic()
        if self._delayed is not None:
            due_s, error = self._delayed
            if now >= due_s:
                self.refuse(error)
            return due_s - now
        if not self._trusted:
            left = self._began_s + AUTH_S - now
            if left <= 0:
                self.refuse(AuthFailed(f"no AUTH within {AUTH_S:.0f} s"))
            return left
        if not self._server:
            return SILENCE_S
        left = self._last_received_s + SILENCE_S - now
        if left <= 0:
            log.warning("%s: received nothing for %.0f s, closing", self.peer, SILENCE_S)
            self.closing = True
        return left

    def _take(self, message: Message) -> None:
        word = message.word
        if self._delayed is not None:
            return  # only one proof per connection: a client must not avoid the delay by trying again
        if not self._trusted and word not in ("AUTH", "HELLO", "ERROR", "BYE"):
            raise AuthFailed("this node has a token: the first word must be AUTH or HELLO")
        handler = self._HANDLERS.get(word)
        if handler is None:
            raise UnknownWord(f"{word} is a word of the node; a node accepts {', '.join(self._HANDLERS)}")
        handler(self, *message.args)

    # ---------------------------------------------------------------------------------- opening a session

    def _on_hello(self, hello: dict[str, Any]) -> None:
        if self._server:
            raise Unexpected("HELLO was already sent in this session")
        if hello.get("link") != VERSION:
            raise WrongVersion(f"this node speaks link {VERSION}, not {hello.get('link')!r}")
        server = hello.get("server")
        if not isinstance(server, str) or not NODE_NAME(server):
            raise BadArgument("HELLO: server must be the server's name")
        self._record_time(hello)
        self._agree(hello)
        info, outbox = self._info, self._outbox
        answer = {
            "link": VERSION, "node": info.name, "outbox": outbox.ring.identity,
            "every": info.every_s, "sensors": list(info.sensors), "time": rfc3339(self.clock.wall_ms()),
        }  # fmt: skip
        if self._cursor.takes_columns:
            answer["columns"] = True
        if info.key is not None:
            answer |= self._prove(info.key, server, hello.get("nonce"))
        self._server = server
        held_epochs = outbox.held()
        self._listed = {entry[0] for entry in held_epochs}
        for held, more in parts(held_epochs):
            self._queue_message("HELLO" if answer else "HELD", {**answer, "held": held, **more})
            answer = {}

    def _agree(self, hello: dict[str, Any]) -> None:
        """Accept the options that the server offers: samples by column, and a longer window."""
        window = hello.get("window")
        self._cursor.takes_columns = hello.get("columns") is True
        if self._cursor.takes_columns and is_count(window) and window > 0:
            self._cursor.window = min(window, LARGEST_WINDOW)

    def _prove(self, key: Key, server: str, nonce: Any) -> dict[str, str]:
        # "|" separates the fields of the signed text, so a nonce must not contain it.
        if not isinstance(nonce, str) or not 16 <= len(nonce) <= 128 or "|" in nonce:
            raise AuthFailed(
                "this node has a token that the server does not know: run `control.py token"
                f" {self._info.name} --set` on the server"
            )
        self._nonces = nonce, os.urandom(16).hex(), *self._binding
        mac = key.sign("node", server, self._info.name, self._outbox.ring.identity, self._nonces)
        return {"nonce": self._nonces[1], "mac": mac}

    def _record_time(self, hello: dict[str, Any]) -> None:
        if hello.get("clock") == "set":
            try:
                self._cursor.offset_ms = parse_rfc3339(hello["time"]) - self.clock.up_ms()
            except (KeyError, TypeError, ValueError):
                raise BadArgument("HELLO: time must be like 2026-11-20T15:36:10.123Z") from None

    def _on_auth(self, proof: dict[str, Any]) -> None:
        key = self._info.key
        if key is None or self._trusted:
            return  # no proof is needed
        if self._nonces:
            names = "server", self._server, self._info.name, self._outbox.ring.identity
            is_correct = key.proves(proof.get("mac"), *names, self._nonces)
        else:
            is_correct = key.is_token(proof.get("token"))
        if is_correct:
            self._trusted = True
            return
        error = AuthFailed(
            "this is not this node's token: set PIGEONPOST_NODE_TOKEN on the node to the one that `control.py"
            f" get-token {self._info.name}` shows on the server"
        )
        delay_s = self._record_failure()
        if not delay_s:
            raise error
        self._delayed = self.clock.monotonic() + delay_s, error

    def _warn(self, what: str, text: object, last: bool = False) -> None:
        if self._rare_log is None or self.is_proven:
            super()._warn(what, text, last)
        else:  # one kind for all ERRORs of peers: their codes are untrusted, and RareLog stores every kind
            kind = "peer reports" if what.startswith("peer reports ") else what
            self._rare_log.log(logging.WARNING, kind, f"{self.peer}: {what}: {text}")

    def _on_resume(self, resume: dict[str, Any]) -> None:
        if not self._server or not self._trusted or self._collecting:
            raise Unexpected("RESUME must be sent once, after HELLO" + (" and AUTH" if self._info.key else ""))
        self._resume |= {key: entry for key, entry in resume.items() if key == "id" or key in self._listed}
        if resume.get("more") is True:
            return
        number = self._resume.pop("id", None)
        have = {epoch: self._resumed_at(epoch, entry) for epoch, entry in self._resume.items()}
        self._cursor.begin(number if is_count(number) else None, have)
        self._resume = {}
        self._collecting = self._live = True
        log.info("%s: collected by %s; samples to send: %d", self.peer, self._server, self._cursor.due())

    def _resumed_at(self, epoch: str, entry: Any) -> int:
        """Return the highest seq that the server has of `epoch`.

        If another copy of this node sent that sample, begin a new epoch for this node's samples from there on.
        """
        if not isinstance(entry, list) or len(entry) != 2 or not is_count(entry[0]):
            raise BadArgument(f"RESUME: the value of epoch {epoch} must be [highest seq stored, its up or null]")
        seq: int = entry[0]
        new = self._cursor.fork_if_other(epoch, seq, entry[1])
        if not new:
            return seq
        log.error(
            "%s: %s has another sample %d of epoch %s than this node: another running copy of this node's SD card sent"
            " it. This node's samples from there on get the new epoch %s", self.peer, self._server, seq, epoch, new,
        )  # fmt: skip
        self._queue_message("HELD", {"held": [entry for entry in self._outbox.held() if entry[0] == new]})
        return seq

    # ------------------------------------------------------------------------------------------ commands

    def _on_send(self, on: bool) -> None:
        runs = self._outbox.ring.runs  # read before sampling starts, so that not even the first new sample is missed
        self._info.switch(on)
        log.info("%s: sampling %s", self.peer, "on" if on else "off")
        self._queue_message("SENDBACK", on)
        if not self._server and not self._live and on:  # a plain session gets the samples from now on
            self._live = True
            self._cursor.begin_now(runs)

    def _on_check(self) -> None:
        sent_ms = self._info.last_sent_ms
        at = time.strftime("%H:%M:%S", time.localtime(sent_ms / 1000)) if sent_ms is not None else None
        now = rfc3339(self.clock.wall_ms())
        waiting = {"waiting": self._cursor.waiting()} if self._collecting else {}
        self._queue_message("STATUS", self._outbox.on, at, {"time": now, **self._info.details(), **waiting})

    def _on_ack(self, epoch: str, seq: int) -> None:
        if not self._collecting:
            raise Unexpected("ACK is only valid in a collecting session")
        sent = self._cursor.sent.get(epoch, 0)
        if seq > sent:
            raise BadAck(f"epoch {epoch} was sent up to sample {sent}, not {seq}")
        self._cursor.record_ack(epoch, seq)

    # ----------------------------------------------------------------------------------------- streaming

    def stream(self) -> bool:
        """Queue the next SENSORS or GAP line. Return False if there is none now."""
        if not self._live or self.closing:
            return False
        piece = self._cursor.next()
        if isinstance(piece, OutgoingBatch):
            self._queue_message("SENSORS", piece.epoch, piece.text)
            self._info.last_sent_ms = piece.last_ms
            if not self._collecting:  # a plain session has no acknowledgements
                self._cursor.record_ack(piece.epoch, self._cursor.sent[piece.epoch])
        elif piece is not None:
            first, last = piece[1:3]
            log.warning("%s: cannot send samples %d to %d: %s", self.peer, first, last, piece.why)
            self._queue_message("GAP", piece.epoch, piece.as_json())
        return piece is not None

    _HANDLERS: ClassVar[dict[str, Callable[..., None]]] = {
        "HELLO": _on_hello, "AUTH": _on_auth, "RESUME": _on_resume, "SEND": _on_send, "CHECK": _on_check,
        "ACK": _on_ack, "ERROR": LinkSession._on_error, "BYE": LinkSession._on_bye,
    }  # fmt: skip


HOW_TO_PROTECT = (
    "this node has no token, so it answers only its own machine. On the server run `control.py token NODE`,"
    " and start the node with PIGEONPOST_NODE_TOKEN set to what it prints"
)
