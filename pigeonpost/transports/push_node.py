"""HTTP push transport, node side: sends what the outbox holds to one server.

One thread. http.client, and with it ssl for https, is imported when the transport is made.
Errors: a server that cannot be reached is tried again after 1 s, doubling to 60 s; one that rejects the token or the
samples is tried more rarely, and the log says why.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Mapping, Sequence

from pigeonpost.core.clock import Clock, parse_rfc3339
from pigeonpost.core.config import Settings
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.send_cursor import OutgoingBatch, OutgoingGap, SendCursor
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.payload import MOST_EPOCHS, PAYLOAD_BYTES, node_head, write_body
from pigeonpost.transports.push_node_client import LONGEST_RETRY_S, PushClient, RequestRefused
from protocol import is_count

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

POLL_S = 15.0  # a node that had nothing to bring for so long asks how things are

POLL_OFF_S = 4.0  # and one that is off, so that a user who switches it on soon sees that it is

RETRY_S = 1.0

_ASKED_SINGLY = 8  # epochs: for more of them one request asks about many


class PushNodeTransport(Transport):
    """Sends what the outbox holds to one server, and then each new sample."""

    def __init__(self, settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> None:
        """Raises SettingsError for a node without a token."""
        if info.key is None:
            raise SettingsError(
                "[push] to needs this node's token, by which the server knows it. On the server `control.py get-token"
                f" {info.name}` tells it; here it is PIGEONPOST_NODE_TOKEN, or [node] token"
            )
        self._client = PushClient(settings["push", "to"], settings["push", "certificate"], info.key.plain_token())
        self._info, self._outbox, self._clock = info, outbox, clock
        self._stream = SendCursor(outbox, clock, PAYLOAD_BYTES // 2)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._fault = ""  # what was said last, so that it is said once
        self._came_through = False  # something, over this connection
        self._columns_refused = False  # by one of several servers behind the address: it is older than the others
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    def start(self) -> None:
        self._outbox.watch(self._woken.set)
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is None:
            return None
        self._outbox.unwatch(self._woken.set)
        self._thread.join(limit_s / 2)
        if self._thread.is_alive():
            self._client.cut()  # what it waits for it will not get any more
            self._thread.join(limit_s / 2)
        return f"the connection to {self._client.place} did not end" if self._thread.is_alive() else None

    def _run(self) -> None:
        retry_s = RETRY_S
        while not self._stopping.is_set():
            wait_s, self._came_through = 0.0, False
            try:
                self._bring()
            except RequestRefused as error:
                self._lost(str(error))
                wait_s = error.wait_s
            except (OSError, ValueError) as error:  # HttpError is an OSError
                self._lost(getattr(error, "strerror", None) or str(error) or type(error).__name__)
            self._client.close()
            retry_s = RETRY_S if self._came_through else retry_s
            self._stopping.wait(max(wait_s, retry_s) * random.uniform(0.75, 1.25))
            retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    def _lost(self, fault: str) -> None:
        if fault != self._fault and not self._stopping.is_set():
            log.warning("%s: %s; the samples are kept here meanwhile", self._client.place, fault)
        self._fault = fault

    def _bring(self) -> None:
        """One connection, from beginning to end."""
        self._client.connect()
        self._resume()
        if self._fault or not self._came_through:
            log.info("%s: takes the samples; to send: %d", self._client.place, self._stream.due())
        self._fault = ""
        while not self._stopping.is_set():
            self._woken.clear()
            piece = self._stream.next()
            if piece is not None:
                self._push(piece)
            elif not self._woken.wait(POLL_S if self._outbox.on else POLL_OFF_S):
                self._poll()

    # ------------------------------------------------------------------------------------------------ resuming

    def _resume(self) -> None:
        """Ask what the server has of everything that is held."""
        epochs = [entry[0] for entry in self._outbox.held()]
        step = 1 if len(epochs) <= _ASKED_SINGLY else MOST_EPOCHS
        have: dict[str, int] = {}
        number: int | None = None
        for start in range(0, len(epochs), step):
            asked = epochs[start : start + step]
            told = self._ask_have(asked)
            marks = told.get("epochs", {}) if step > 1 else {asked[0]: [told.get("have"), told.get("up")]}
            for epoch in asked:
                seq, up_ms = _mark_of(epoch, marks)
                have[epoch] = seq
                self._look_for_a_fork(epoch, seq, up_ms)
            number = told["id"] if is_count(told.get("id")) else None
            self._stream.takes_columns = told.get("columns") is True and not self._columns_refused
            self._record_time(told)
        self._stream.begin(number, have)

    def _ask_have(self, epochs: Sequence[str]) -> dict[str, Any]:
        on = "true" if self._outbox.on else "false"
        return self._client.ask(
            "GET",
            f"/api/v1/samples/resume?node={self._info.name}&epoch={','.join(epochs)}"
            f"&outbox={self._outbox.ring.identity}&on={on}",
        )

    def _look_for_a_fork(self, epoch: str, seq: int, up_ms: object) -> None:
        new = self._stream.fork_if_other(epoch, seq, up_ms)
        if new:
            log.error(
                "%s has another sample %d of epoch %s than this node: another live copy of this card sent it. From"
                " there on this node's samples are those of epoch %s", self._client.place, seq, epoch, new,
            )  # fmt: skip

    def _record_time(self, told: Mapping[str, Any]) -> None:
        if told.get("clock") == "set":
            try:
                self._stream.offset_ms = parse_rfc3339(told["time"]) - self._clock.up_ms()
            except (KeyError, TypeError, ValueError, OverflowError):
                pass  # a server that does not say the time, then

    def _poll(self) -> None:
        """Nothing was taken for a while: is the server there, has it still what it had, and what does it want?"""
        epoch = self._outbox.epoch
        told = self._ask_have([epoch])
        if told.get("have") != self._stream.sent.get(epoch, 0):
            raise RequestRefused("has not what it had before; asking anew what is due", rarely=False)
        self._obey(told)

    # ------------------------------------------------------------------------------------------------- samples

    def _push(self, piece: OutgoingBatch | OutgoingGap) -> None:
        """Send a piece, and wait until it is acknowledged. Raises RequestRefused, HttpError."""
        head, base = node_head(self._info, self._outbox, self._clock), piece.number - piece.first
        if isinstance(piece, OutgoingBatch):
            body = write_body(head, piece.epoch, base, samples=piece.text)
        else:
            body = write_body(head, piece.epoch, base, [piece.as_json()])
            log.warning(
                "%s: samples %d to %d of epoch %s are %s",
                self._client.place, piece.first, piece.last, piece.epoch, piece.why,
            )  # fmt: skip
        try:
            told = self._client.ask("POST", "/api/v1/samples", body)
        except RequestRefused as error:
            self._columns_refused = self._columns_refused or (self._stream.takes_columns and error.status == 400)
            raise
        if told.get("ack") != piece.last:
            raise RequestRefused(
                f"acknowledges {told.get('ack')!r:.40} of epoch {piece.epoch}, not {piece.last}", rarely=False
            )
        self._came_through = True
        self._stream.record_ack(piece.epoch, piece.last)
        if isinstance(piece, OutgoingBatch):
            self._info.last_sent_ms = piece.last_ms
        self._obey(told)

    def _obey(self, told: Mapping[str, Any]) -> None:
        """Switch on or off as the server wants it, and tell it so."""
        on = told.get("on")
        if type(on) is bool:
            if on is not self._outbox.on:
                log.info("%s: sampling %s", self._client.place, "on" if on else "off")
                self._info.switch(on)
            self._ask_have([self._outbox.epoch])


def _mark_of(epoch: str, marks: object) -> tuple[int, object]:
    """Up to which sample the server has an epoch, and when that was taken. Raises RequestRefused for anything else."""
    mark = marks.get(epoch, [0, None]) if isinstance(marks, dict) else marks
    if isinstance(mark, list) and len(mark) == 2 and is_count(mark[0]):
        return mark[0], mark[1]
    found = mark[0] if isinstance(mark, list) and mark else mark
    raise RequestRefused(f"says that it has {found!r:.40} of epoch {epoch}", rarely=True)
