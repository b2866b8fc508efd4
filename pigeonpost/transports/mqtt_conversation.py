"""The conversation of a node with the servers behind a broker: what is published next, and what an answer means.

No thread and no lock: it belongs to the thread of MqttNodeTransport. The states are those of mqtt_states. The server
that a node goes on with is called by its ledger, the id of its store; empty: any server that takes the message.
Errors: none. Whatever is wrong with an answer is logged once, and what was sent is sent again.
"""

from __future__ import annotations

import logging
import os
import random
from collections import deque
from collections.abc import Mapping

from pigeonpost.auth.key import Key
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.mqtt_client import MqttConnection
from pigeonpost.core.strict_json import read_json
from pigeonpost.node.send_cursor import OutgoingBatch, OutgoingGap, SendCursor
from pigeonpost.transports.mqtt_answers import NOT_AN_ANSWER, Ack, Answer, Hole, Order, Rejection, Resume, read_answer
from pigeonpost.transports.mqtt_states import State, Trigger, next_state
from pigeonpost.transports.mqtt_topics import MOST_HELD, PURPOSE, ROOT, sign_with_key
from pigeonpost.transports.payload import PAYLOAD_BYTES, node_head, split_signature, write_body
from protocol import COLUMN_SAMPLES, WINDOW_SAMPLES

if TYPE_CHECKING:
    from typing import Any

    from pigeonpost.node.node_info import NodeInfo
    from pigeonpost.node.outbox import Outbox

log = logging.getLogger(__name__)

ANSWER_S, LONGEST_ANSWER_S = 3.0, 60.0  # until a question is late; doubles with each that is
ACK_S = 15.0  # until a body is late, and at least three commits of the server
MOST_BODIES = 10  # ahead of their acknowledgement
MOST_ANSWERS = 32  # that wait to be read; ten bodies at most are under way


class BodyPublisher:
    """Publishes bodies under the session's name, to one server or to any."""

    def __init__(self, broker: MqttConnection, info: NodeInfo, outbox: Outbox, clock: Clock, key: Key | None) -> None:
        self.session = ""  # name of the conversation, which answers repeat; empty: there is none
        self.ledger = ""  # the server that gets the bodies; empty: any
        self._broker, self._info, self._outbox, self._clock, self._key = broker, info, outbox, clock, key

    def rename(self, ledger: str) -> None:
        """Begin a session under a new name, with the server of `ledger`."""
        self.session, self.ledger = os.urandom(8).hex(), ledger

    def publish(self, piece: OutgoingBatch | OutgoingGap, more: Mapping[str, Any] | None = None) -> int:
        """Publish samples or a gap, and `more` beside them. Returns the last sequence number."""
        head, base = self._head(more), piece.number - piece.first
        if isinstance(piece, OutgoingBatch):
            self._send(write_body(head, piece.epoch, base, samples=piece.text))
            self._info.last_sent_ms = piece.last_ms
        else:
            self._send(write_body(head, piece.epoch, base, [piece.as_json()]))
        return piece.last

    def publish_state(self, more: Mapping[str, Any] | None = None) -> None:
        """Publish a body without samples, which tells whether the node is sampling."""
        self._send(write_body(self._head(more), self._outbox.epoch))

    def _head(self, more: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**node_head(self._info, self._outbox, self._clock), "session": self.session, **(more or {})}

    def _send(self, body: bytes) -> None:
        topic = f"{ROOT}/{self._info.name}/samples" + (f"/{self.ledger}" if self.ledger else "")
        self._broker.publish(topic, sign_with_key(body, self._key))


class SendWindow:
    """The bodies ahead of their acknowledgement: one after a loss, twice as many after each acknowledgement."""

    def __init__(self) -> None:
        self._size = MOST_BODIES
        self._bodies: list[tuple[str, int, float]] = []  # epoch, last sequence number, when it is late

    @property
    def is_full(self) -> bool:
        return len(self._bodies) >= self._size

    def add(self, epoch: str, last: int, late_s: float) -> None:
        self._bodies.append((epoch, last, late_s))

    def acknowledge(self, epoch: str, seq: int) -> None:
        """Remove what is durable, and let more be under way."""
        self._bodies = [body for body in self._bodies if body[0] != epoch or body[1] > seq]
        self._size = min(2 * self._size, MOST_BODIES)

    def clear(self, size: int | None = None) -> None:
        """Remove all. From now on `size` bodies may be under way; None: as many as before."""
        self._bodies = []
        self._size = size or self._size

    def late_s(self) -> float | None:
        """When the first of them is late, in seconds of the monotonic clock; None: nothing is under way."""
        return min((late_s for _, _, late_s in self._bodies), default=None)


class Conversation:
    """Questions, bodies and answers. `go_on` and `take` are called again and again."""

    def __init__(self, broker: MqttConnection, info: NodeInfo, outbox: Outbox, clock: Clock, key: Key | None) -> None:
        self.state = State.IDLE
        self.acked: dict[str, int] = {}  # of each epoch, by a server that never says what it has
        self._place = broker.place
        self._info, self._outbox, self._clock, self._key = info, outbox, clock, key
        self._bodies = BodyPublisher(broker, info, outbox, clock, key)
        self._cursor = SendCursor(outbox, clock, PAYLOAD_BYTES // 2)
        self._window = SendWindow()
        self._ledger = ""  # the server that answered last; empty: one that has none
        self._again_s = 0.0  # when the next question may be asked
        self._answer_s = ANSWER_S
        self._ack_s = ACK_S
        self._obeyed: deque[object] = deque(maxlen=MOST_ANSWERS)  # orders
        self._fault = ""  # logged last; empty after an answer
        self._columns_refused = False  # by one of several servers of one store: it is older than the others

    def _enter(self, event: Trigger) -> None:
        self.state = next_state(self.state, event)

    # ------------------------------------------------------------------------------------------------------ sending

    def go_on(self) -> float:
        """Publish what is due. Returns the seconds until the next call."""
        now_s = self._clock.monotonic()
        late_s = self._window.late_s()
        if late_s is not None and now_s >= late_s:
            self._on_late()
        if self.state is State.IDLE:
            if now_s < self._again_s:
                return self._again_s - now_s
            self._ask()
        while self.state is not State.ASKED and not self._window.is_full:
            piece = self._cursor.next()
            if piece is None:
                break
            self._publish(piece)
        if self.state is State.RESUMED:
            self._publish_state()  # so that the server knows the session's name
        late_s = self._window.late_s()
        return LONGEST_ANSWER_S if late_s is None else late_s - now_s

    def reconnect(self) -> None:
        """The connection to the broker was lost, or is there again: ask the server that answered last."""
        self._begin_again(Trigger.RECONNECT, self._ledger)

    def _on_late(self) -> None:
        """The broker has lost a message, or the server is gone: ask that one first, and then any."""
        if self.state is State.ASKED:
            self._log_fault("no server answers")
            self._ask_later(random.uniform(0, self._answer_s / 4))
            self._begin_again(Trigger.LATE, "")
        else:
            self._log_fault("the server has not answered in time")
            self._begin_again(Trigger.LATE, self._ledger, 1)

    def _begin_again(self, event: Trigger, ledger: str, window: int = MOST_BODIES) -> None:
        """End the session. The next question goes to the server of `ledger`; then `window` bodies may be under way."""
        self._enter(event)
        self._bodies.session, self._bodies.ledger = "", ledger
        self._window.clear(window)

    def _ask_later(self, pause_s: float) -> None:
        """The next question comes after a pause, and has twice as long to be answered."""
        self._again_s = self._clock.monotonic() + pause_s
        self._answer_s = min(2 * self._answer_s, LONGEST_ANSWER_S)

    def _ask(self) -> None:
        """Publish the first samples that may be due, and a list of all that is held: what of it is stored?

        A server that answers only with `ack`, as the simplest one does, is sent everything after that.
        """
        self._bodies.rename(self._bodies.ledger)
        self._allow_columns(False)  # until the server that answers says that it takes them
        self._cursor.begin(None, {} if self._ledger else self.acked)
        self._enter(Trigger.QUESTION)
        held = {"held": self._outbox.held()[-MOST_HELD:]}
        piece = self._cursor.next()
        if piece is None:
            self._bodies.publish_state(held)
            epoch, last = self._outbox.epoch, 0
        else:
            epoch, last = piece.epoch, self._bodies.publish(piece, held)
        self._window.add(epoch, last, self._clock.monotonic() + self._answer_s)

    def _allow_columns(self, are_taken: bool) -> None:
        """Send samples by column if they are taken, and as many ahead of the acknowledgement as fit all bodies."""
        self._cursor.takes_columns = are_taken
        self._cursor.window = MOST_BODIES * COLUMN_SAMPLES if are_taken else WINDOW_SAMPLES

    def _publish(self, piece: OutgoingBatch | OutgoingGap) -> None:
        last = self._bodies.publish(piece)
        self._enter(Trigger.BODY)
        self._window.add(piece.epoch, last, self._clock.monotonic() + self._ack_s)

    def _publish_state(self) -> None:
        self._bodies.publish_state()
        self._enter(Trigger.BODY)

    def _log_fault(self, fault: str) -> None:
        if fault != self._fault:
            log.warning("MQTT %s: %s; the samples are kept here meanwhile", self._place, fault)
            self._fault = fault

    # ------------------------------------------------------------------------------------------------------ answers

    def take(self, payload: bytes) -> None:
        """Act on a message on the node's topic: an answer of this session, or something to be ignored."""
        mac, body = split_signature(payload)
        if self._key and not self._key.is_seal(mac, PURPOSE, body):
            name = self._info.name
            self._log_fault(f"an answer that is not signed with this node's token (control.py token {name})")
            return
        try:
            message = read_json(body.decode())
            session = self._bodies.session
            if not session or message.get("re", None if self._key else session) != session:
                return  # of a session before this one
            self._on_answer(read_answer(message))
        except NOT_AN_ANSWER as error:
            self._log_fault(f"an answer that does not read: {str(error)[:200]}")

    def _on_answer(self, answer: Answer) -> None:
        is_asked = self.state is State.ASKED
        if isinstance(answer, Rejection):
            self._on_rejection(answer)
        elif isinstance(answer, Hole):
            self._on_hole(answer)
        elif isinstance(answer, Order):
            self._on_order(answer)
        elif isinstance(answer, Ack):
            if not (is_asked and answer.has_ledger):  # else the other half of its answer, Resume, was lost
                self._on_ack(answer)
        elif is_asked:
            self._on_resume(answer)

    def _on_rejection(self, answer: Rejection) -> None:
        self._log_fault(f"the server refuses: {answer.error}")
        if self._cursor.takes_columns and answer.code == BadArgument.code:
            self._columns_refused = True
        self._ask_later(self._answer_s)
        self._begin_again(Trigger.REJECTION, "")

    def _on_hole(self, answer: Hole) -> None:
        log.debug("MQTT %s: a hole at the server; it is asked what it has", self._place)
        self.acked = {} if answer.have is None else {**self.acked, **answer.have}
        self._again_s = self._clock.monotonic() + random.uniform(0.05, 0.2)
        # One by one at first: servers that share a store may have taken two bodies in the wrong order.
        self._begin_again(Trigger.HOLE, self._ledger, 1)

    def _on_order(self, answer: Order) -> None:
        """Obey an order once: the broker may repeat it, and so may others."""
        if answer.identity in self._obeyed:
            return
        self._obeyed.append(answer.identity)
        if answer.on is not None:
            log.info("MQTT %s: sampling %s", self._place, "on" if answer.on else "off")
            self._info.switch(answer.on)
        self._publish_state()

    def _on_resume(self, answer: Resume) -> None:
        """Go on after what the server has; from now on bodies go to its ledger."""
        for epoch, seq in answer.have.items():
            if new := self._cursor.fork_if_other(epoch, seq, answer.up_ms[epoch]):
                told = "another live copy of this card sent sample %d of epoch %s: from there on ours are of epoch %s"
                log.error("MQTT %s: " + told, self._place, seq, epoch, new)
        self._ack_s = max(ACK_S, 3.0 * answer.commit_s)
        if answer.time_ms is not None:
            self._cursor.offset_ms = answer.time_ms - self._clock.up_ms()
        self._allow_columns(answer.columns and not self._columns_refused)
        self._cursor.begin(answer.number, answer.have)
        self._log_success(answer.server)
        # What was sent with the question is sent again, under another name.
        self._enter(Trigger.RESUME)
        self._ledger = answer.ledger
        self._bodies.rename(answer.ledger)
        self._window.clear()

    def _on_ack(self, answer: Ack) -> None:
        epoch, seq = answer.epoch, answer.seq
        if seq > self._cursor.sent.get(epoch, 0):
            raise BadArgument(f"epoch {epoch!r:.40} was not sent up to {seq!r:.40}")
        if self.state is State.ASKED:
            self._log_success("a server")
            self._ledger = self._bodies.ledger = ""
        self._enter(Trigger.ACK)
        self._cursor.record_ack(epoch, seq)
        self.acked = {**self.acked, epoch: seq} if not self._ledger else {}
        self._window.acknowledge(epoch, seq)

    def _log_success(self, server: str) -> None:
        """Log that a server has answered a question."""
        log.info("MQTT %s: %s takes the samples; to send: %d", self._place, server, self._cursor.due())
        self._fault, self._answer_s = "", ANSWER_S
