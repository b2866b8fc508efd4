"""HTTP push transport, node side: sends the samples of the outbox to one server.

One thread. http.client, and ssl for https, are imported only with this transport.
Errors: after a failed connection, the node tries again after 1 s, doubling to 60 s. If the server rejects the token or
the samples, the node logs the reason and tries again after 60 s.
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

POLL_S = 15.0  # a node without new samples polls the server for commands after this time

POLL_OFF_S = 4.0  # the same while sampling is off; shorter, so that a command to switch it on takes effect soon

RETRY_S = 1.0

_SEPARATE_REQUESTS = 8  # up to this number of held epochs, there is one request per epoch


class PushNodeTransport(Transport):
    """Sends the samples of the outbox to one server by HTTP, and then each new sample.

    Args:
        settings: The node's settings.
        info: Name, token and sensors of the node.
        outbox: The node's outbox.
        clock: Clock for timestamps.

    Raises:
        SettingsError: The node has no token, or the server's address is invalid.
    """

    def __init__(self, settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> None:
        if info.key is None:
            raise SettingsError(
                "[push] to needs this node's token: set PIGEONPOST_NODE_TOKEN or [node] token to the token that"
                f" `control.py get-token {info.name}` shows on the server"
            )
        self._client = PushClient(settings["push", "to"], settings["push", "certificate"], info.key.plain_token())
        self._info, self._outbox, self._clock = info, outbox, clock
        self._cursor = SendCursor(outbox, clock, PAYLOAD_BYTES // 2)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._fault = ""  # last logged fault; the same fault is not logged again
        self._has_succeeded = False  # a request succeeded on this connection
        self._columns_refused = False  # a server rejected columns: behind one address, versions can differ
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
            self._client.cut()  # end the wait for an answer
            self._thread.join(limit_s / 2)
        return f"the connection to {self._client.place} did not end" if self._thread.is_alive() else None

    def _run(self) -> None:
        retry_s = RETRY_S
        while not self._stopping.is_set():
            wait_s, self._has_succeeded = 0.0, False
            try:
                self._use_connection()
            except RequestRefused as error:
                self._log_fault(str(error))
                wait_s = error.wait_s
            except (OSError, ValueError) as error:  # HttpError is an OSError
                self._log_fault(getattr(error, "strerror", None) or str(error) or type(error).__name__)
            self._client.close()
            retry_s = RETRY_S if self._has_succeeded else retry_s
            self._stopping.wait(max(wait_s, retry_s) * random.uniform(0.75, 1.25))
            retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    def _log_fault(self, fault: str) -> None:
        if fault != self._fault and not self._stopping.is_set():
            log.warning("%s: %s; the node keeps the samples", self._client.place, fault)
        self._fault = fault

    def _use_connection(self) -> None:
        """Connect, ask what the server has stored, and send samples until the transport stops or an error is raised."""
        self._client.connect()
        self._resume()
        if self._fault or not self._has_succeeded:
            log.info("%s: accepts the samples; samples to send: %d", self._client.place, self._cursor.due())
        self._fault = ""
        while not self._stopping.is_set():
            self._woken.clear()
            piece = self._cursor.next()
            if piece is not None:
                self._push(piece)
            elif not self._woken.wait(POLL_S if self._outbox.on else POLL_OFF_S):
                self._poll()

    # ------------------------------------------------------------------------------------------------ resuming

    def _resume(self) -> None:
        """Ask for the server's high-water marks of all held epochs, and continue after them."""
        epochs = [entry[0] for entry in self._outbox.held()]
        step = 1 if len(epochs) <= _SEPARATE_REQUESTS else MOST_EPOCHS
        have: dict[str, int] = {}
        number: int | None = None
        for start in range(0, len(epochs), step):
            requested = epochs[start : start + step]
            answer = self._ask_marks(requested)
            marks = answer.get("epochs", {}) if step > 1 else {requested[0]: [answer.get("have"), answer.get("up")]}
            for epoch in requested:
                seq, up_ms = _mark_of(epoch, marks)
                have[epoch] = seq
                self._check_for_fork(epoch, seq, up_ms)
            number = answer["id"] if is_count(answer.get("id")) else None
            self._cursor.takes_columns = answer.get("columns") is True and not self._columns_refused
            self._record_time(answer)
        self._cursor.begin(number, have)

    def _ask_marks(self, epochs: Sequence[str]) -> dict[str, Any]:
        on = "true" if self._outbox.on else "false"
        return self._client.ask(
            "GET",
            f"/api/v1/samples/resume?node={self._info.name}&epoch={','.join(epochs)}"
            f"&outbox={self._outbox.ring.identity}&on={on}",
        )

    def _check_for_fork(self, epoch: str, seq: int, up_ms: object) -> None:
        new = self._cursor.fork_if_other(epoch, seq, up_ms)
        if new:
            log.error(
                "%s has another sample %d of epoch %s than this node: another running copy of this node's SD card sent"
                " it. This node's samples from there on get the new epoch %s", self._client.place, seq, epoch, new,
            )  # fmt: skip

    def _record_time(self, answer: Mapping[str, Any]) -> None:
        if answer.get("clock") == "set":
            try:
                self._cursor.offset_ms = parse_rfc3339(answer["time"]) - self._clock.up_ms()
            except (KeyError, TypeError, ValueError, OverflowError):
                pass  # the server does not send its time

    def _poll(self) -> None:
        """Check that the server still has the samples that it acknowledged, and execute its command, if any."""
        epoch = self._outbox.epoch
        answer = self._ask_marks([epoch])
        if answer.get("have") != self._cursor.sent.get(epoch, 0):
            raise RequestRefused(
                "has lost samples that it had acknowledged; asking again which samples it has", rarely=False
            )
        self._execute_command(answer)

    # ------------------------------------------------------------------------------------------------- samples

    def _push(self, piece: OutgoingBatch | OutgoingGap) -> None:
        """Send `piece` and wait until it is acknowledged, or raise RequestRefused or HttpError."""
        head, base = node_head(self._info, self._outbox, self._clock), piece.number - piece.first
        if isinstance(piece, OutgoingBatch):
            body = write_body(head, piece.epoch, base, samples=piece.text)
        else:
            body = write_body(head, piece.epoch, base, [piece.as_json()])
            log.warning(
                "%s: cannot send samples %d to %d of epoch %s: %s",
                self._client.place, piece.first, piece.last, piece.epoch, piece.why,
            )  # fmt: skip
        try:
            answer = self._client.ask("POST", "/api/v1/samples", body)
        except RequestRefused as error:
            self._columns_refused = self._columns_refused or (self._cursor.takes_columns and error.status == 400)
            raise
        if answer.get("ack") != piece.last:
            raise RequestRefused(
                f"acknowledges {answer.get('ack')!r:.40} of epoch {piece.epoch}, not {piece.last}", rarely=False
            )
        self._has_succeeded = True
        self._cursor.record_ack(piece.epoch, piece.last)
        if isinstance(piece, OutgoingBatch):
            self._info.last_sent_ms = piece.last_ms
        self._execute_command(answer)

    def _execute_command(self, answer: Mapping[str, Any]) -> None:
        """Switch sampling on or off if the server's answer contains this command, and report the new state."""
        on = answer.get("on")
        if type(on) is bool:
            if on is not self._outbox.on:
                log.info("%s: sampling %s", self._client.place, "on" if on else "off")
                self._info.switch(on)
            self._ask_marks([self._outbox.epoch])


def _mark_of(epoch: str, marks: object) -> tuple[int, object]:
    """Return the highest seq of `epoch` in `marks`, and that sample's uptime. Raise RequestRefused if it is invalid."""
    mark = marks.get(epoch, [0, None]) if isinstance(marks, dict) else marks
    if isinstance(mark, list) and len(mark) == 2 and is_count(mark[0]):
        return mark[0], mark[1]
    seq = mark[0] if isinstance(mark, list) and mark else mark
    raise RequestRefused(f"reports an invalid mark {seq!r:.40} of epoch {epoch}", rarely=True)
