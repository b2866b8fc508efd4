"""The conversation of a node with the servers at a broker: what to publish next, and how to process answers.

No thread and no lock: the conversation belongs to the thread of MqttNodeTransport. mqtt_states defines its states. The
server of a session is identified by its ledger, which is the identifier of its store; an empty ledger means any server.
Errors: none are raised. An invalid answer is logged once. Samples that are not acknowledged in time are sent again.
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

ANSWER_S, LONGEST_ANSWER_S = 3.0, 60.0  # wait for the answer to a question; doubles after each late one
ACK_S = 15.0  # wait for an acknowledgement, or three times the server's time between commits if that is longer
MOST_BODIES = 10  # maximum number of unacknowledged bodies
MOST_ANSWERS = 32  # maximum number of queued answers; more than the unacknowledged bodies, which are at most ten


class BodyPublisher:
    """Publishes bodies (docs/protocol.md, section MQTT) with the name of the session, to one server or to any server.

    Args:
        broker: Connection to the broker.
        info: Name and sensors of the node.
        outbox: The node's outbox.
        clock: Clock for the time in each body.
        key: Key that signs the bodies, or None for unsigned ones.

    Attributes:
        session: Name of the session, which answers repeat, or empty if there is none.
        ledger: Identifier of the server's store, or empty for any server.
    """

    def __init__(self, broker: MqttConnection, info: NodeInfo, outbox: Outbox, clock: Clock, key: Key | None) -> None:
        self.session = ""
        self.ledger = ""
        self._broker, self._info, self._outbox, self._clock, self._key = broker, info, outbox, clock, key

    def rename(self, ledger: str) -> None:
        """Begin a session under a new name, with the server of `ledger`."""
        self.session, self.ledger = os.urandom(8).hex(), ledger

    def publish(self, piece: OutgoingBatch | OutgoingGap, more: Mapping[str, Any] | None = None) -> int:
        """Publish `piece`, with the additional keys `more`, and return its last sequence number."""
        head, base = self._head(more), piece.number - piece.first
        if isinstance(piece, OutgoingBatch):
            self._send(write_body(head, piece.epoch, base, samples=piece.text))
            self._info.last_sent_ms = piece.last_ms
        else:
            self._send(write_body(head, piece.epoch, base, [piece.as_json()]))
        return piece.last

    def publish_state(self, more: Mapping[str, Any] | None = None) -> None:
        """Publish a body without samples, which contains the sampling state and the additional keys `more`."""
        self._send(write_body(self._head(more), self._outbox.epoch))

    def _head(self, more: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**node_head(self._info, self._outbox, self._clock), "session": self.session, **(more or {})}

    def _send(self, body: bytes) -> None:
        topic = f"{ROOT}/{self._info.name}/samples" + (f"/{self.ledger}" if self.ledger else "")
        self._broker.publish(topic, sign_with_key(body, self._key))


class SendWindow:
    """The unacknowledged bodies; their maximum number is one after a loss, and doubles with each acknowledgement."""

    def __init__(self) -> None:
        self._size = MOST_BODIES
        self._bodies: list[tuple[str, int, float]] = []  # epoch, last sequence number, when it is late

    @property
    def is_full(self) -> bool:
        """True if no further body may be published now."""
        return len(self._bodies) >= self._size

    def add(self, epoch: str, last: int, late_s: float) -> None:
        """Add a body of `epoch` up to the sequence number `last`, which is late after the monotonic time `late_s`."""
        self._bodies.append((epoch, last, late_s))

    def acknowledge(self, epoch: str, seq: int) -> None:
        """Remove the bodies of `epoch` up to `seq`, and double the maximum number of bodies, up to MOST_BODIES."""
        self._bodies = [body for body in self._bodies if body[0] != epoch or body[1] > seq]
        self._size = min(2 * self._size, MOST_BODIES)

    def clear(self, size: int | None = None) -> None:
        """Remove all bodies. From now on `size` bodies may be unacknowledged; None keeps the limit."""
        self._bodies = []
        self._size = size or self._size

    def late_s(self) -> float | None:
        """Return the monotonic time in seconds when the first body is late, or None if there is none."""
        return min((late_s for _, _, late_s in self._bodies), default=None)


class Conversation:
    """Questions, bodies and answers; the owner calls `publish_due` when it is due, and `receive` for each answer.

    Args:
        broker: Connection to the broker.
        info: Name and sensors of the node.
        outbox: The node's outbox.
        clock: Clock for timeouts and timestamps.
        key: Key that signs the bodies and checks the answers, or None if nothing is signed.

    Attributes:
        state: State of the conversation.
        acked: Highest acknowledged seq of each epoch, needed for a server that never sends its high-water marks.
    """

    def __init__(self, broker: MqttConnection, info: NodeInfo, outbox: Outbox, clock: Clock, key: Key | None) -> None:
        self.state = State.IDLE
        self.acked: dict[str, int] = {}
        self._place = broker.place
        self._info, self._outbox, self._clock, self._key = info, outbox, clock, key
        self._publisher = BodyPublisher(broker, info, outbox, clock, key)
        self._cursor = SendCursor(outbox, clock, PAYLOAD_BYTES // 2)
        self._window = SendWindow()
        self._ledger = ""  # ledger of the server that answered last, or empty if it has none
        self._again_s = 0.0  # time when the next question may be asked
        self._answer_s = ANSWER_S
        self._ack_s = ACK_S
        self._executed: deque[object] = deque(maxlen=MOST_ANSWERS)  # identities of executed commands
        self._fault = ""  # last logged fault, or empty after an answer
        self._columns_refused = False  # a server rejected columns: with a common store, versions can differ

    def _enter(self, event: Trigger) -> None:
        self.state = next_state(self.state, event)

    # ------------------------------------------------------------------------------------------------------ sending

    def publish_due(self) -> float:
        """Publish what is due, and return the seconds until the next call."""
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
            self._publish_state()  # tells the server the name of the session
        late_s = self._window.late_s()
        return LONGEST_ANSWER_S if late_s is None else late_s - now_s

    def reconnect(self) -> None:
        """Ask the server that answered last again, because the connection to the broker was lost or restored."""
        self._begin_again(Trigger.RECONNECT, self._ledger)

    def _on_late(self) -> None:
        """Ask again after a timeout: first the same server (the broker may have lost a message), then any server."""
        if self.state is State.ASKED:
            self._log_fault("no server answers")
            self._ask_later(random.uniform(0, self._answer_s / 4))
            self._begin_again(Trigger.LATE, "")
        else:
            self._log_fault("the server did not answer in time")
            self._begin_again(Trigger.LATE, self._ledger, 1)

    def _begin_again(self, event: Trigger, ledger: str, window: int = MOST_BODIES) -> None:
        """End the session; ask the server of `ledger` next, then allow `window` unacknowledged bodies."""
        self._enter(event)
        self._publisher.session, self._publisher.ledger = "", ledger
        self._window.clear(window)

    def _ask_later(self, pause_s: float) -> None:
        """Ask the next question after `pause_s` seconds, and wait twice as long for its answer."""
        self._again_s = self._clock.monotonic() + pause_s
        self._answer_s = min(2 * self._answer_s, LONGEST_ANSWER_S)

    def _ask(self) -> None:
        """Ask what the server has stored: publish the list of held epochs, with the first samples that it may lack.

        The samples serve a simple server that only answers with `ack`. After that answer, it gets the next samples.
        """
        self._publisher.rename(self._publisher.ledger)
        self._allow_columns(False)  # until the server reports that it accepts them
        self._cursor.begin(None, {} if self._ledger else self.acked)
        self._enter(Trigger.QUESTION)
        held = {"held": self._outbox.held()[-MOST_HELD:]}
        piece = self._cursor.next()
        if piece is None:
            self._publisher.publish_state(held)
            epoch, last = self._outbox.epoch, 0
        else:
            epoch, last = piece.epoch, self._publisher.publish(piece, held)
        self._window.add(epoch, last, self._clock.monotonic() + self._answer_s)

    def _allow_columns(self, are_accepted: bool) -> None:
        """Send samples by column if the server accepts them (`are_accepted`), with the window for that form."""
        self._cursor.takes_columns = are_accepted
        self._cursor.window = MOST_BODIES * COLUMN_SAMPLES if are_accepted else WINDOW_SAMPLES

    def _publish(self, piece: OutgoingBatch | OutgoingGap) -> None:
        last = self._publisher.publish(piece)
        self._enter(Trigger.BODY)
        self._window.add(piece.epoch, last, self._clock.monotonic() + self._ack_s)

    def _publish_state(self) -> None:
        self._publisher.publish_state()
        self._enter(Trigger.BODY)

    def _log_fault(self, fault: str) -> None:
        if fault != self._fault:
            log.warning("MQTT %s: %s; the node keeps the samples", self._place, fault)
            self._fault = fault

    # ------------------------------------------------------------------------------------------------------ answers

    def receive(self, payload: bytes) -> None:
        """Process `payload`, a message on the node's topic; ignore it if it is not an answer of this session."""
        mac, body = split_signature(payload)
        if self._key and not self._key.is_signature(mac, PURPOSE, body):
            name = self._info.name
            self._log_fault(
                "received an answer that is not signed with this node's token"
                f" (run `control.py token {name}` on the server)"
            )
            return
        try:
            message = read_json(body.decode())
            session = self._publisher.session
            if not session or message.get("re", None if self._key else session) != session:
                return  # an answer of an earlier session
            self._on_answer(read_answer(message))
        except NOT_AN_ANSWER as error:
            self._log_fault(f"received an invalid answer: {str(error)[:200]}")

    def _on_answer(self, answer: Answer) -> None:
        is_asked = self.state is State.ASKED
        if isinstance(answer, Rejection):
            self._on_rejection(answer)
        elif isinstance(answer, Hole):
            self._on_hole(answer)
        elif isinstance(answer, Order):
            self._on_order(answer)
        elif isinstance(answer, Ack):
            # An Ack instead of the expected Resume means that the Resume was lost: ignore it, and ask again later.
            if not (is_asked and answer.has_ledger):
                self._on_ack(answer)
        elif is_asked:
            self._on_resume(answer)

    def _on_rejection(self, answer: Rejection) -> None:
        self._log_fault(f"the server rejects the samples: {answer.error}")
        if self._cursor.takes_columns and answer.code == BadArgument.code:
            self._columns_refused = True
        self._ask_later(self._answer_s)
        self._begin_again(Trigger.REJECTION, "")

    def _on_hole(self, answer: Hole) -> None:
        log.debug("MQTT %s: the server lacks earlier samples; asking which samples it has", self._place)
        self.acked = {} if answer.have is None else {**self.acked, **answer.have}
        self._again_s = self._clock.monotonic() + random.uniform(0.05, 0.2)
        # One body at a time: servers that share a store may have received two bodies in the wrong order.
        self._begin_again(Trigger.HOLE, self._ledger, 1)

    def _on_order(self, answer: Order) -> None:
        """Execute a command only once, because the broker may repeat it and an attacker may replay it."""
        if answer.identity in self._executed:
            return
        self._executed.append(answer.identity)
        if answer.on is not None:
            log.info("MQTT %s: sampling %s", self._place, "on" if answer.on else "off")
            self._info.switch(answer.on)
        self._publish_state()

    def _on_resume(self, answer: Resume) -> None:
        """Continue after the server's high-water marks; from now on bodies go to its ledger."""
        for epoch, seq in answer.have.items():
            if new := self._cursor.fork_if_other(epoch, seq, answer.up_ms[epoch]):
                text = (
                    "another running copy of this node's SD card sent sample %d of epoch %s;"
                    " this node's samples from there on get the new epoch %s"
                )
                log.error("MQTT %s: " + text, self._place, seq, epoch, new)
        self._ack_s = max(ACK_S, 3.0 * answer.commit_s)
        if answer.time_ms is not None:
            self._cursor.offset_ms = answer.time_ms - self._clock.up_ms()
        self._allow_columns(answer.columns and not self._columns_refused)
        self._cursor.begin(answer.number, answer.have)
        self._log_success(answer.server)
        # The samples that were sent with the question are sent again, in the new session.
        self._enter(Trigger.RESUME)
        self._ledger = answer.ledger
        self._publisher.rename(answer.ledger)
        self._window.clear()

    def _on_ack(self, answer: Ack) -> None:
        epoch, seq = answer.epoch, answer.seq
        if seq > self._cursor.sent.get(epoch, 0):
            raise BadArgument(f"acknowledges sample {seq!r:.40} of epoch {epoch!r:.40}, which was not sent")
        if self.state is State.ASKED:
            self._log_success("a server")
            self._ledger = self._publisher.ledger = ""
        self._enter(Trigger.ACK)
        self._cursor.record_ack(epoch, seq)
        self.acked = {**self.acked, epoch: seq} if not self._ledger else {}
        self._window.acknowledge(epoch, seq)

    def _log_success(self, server: str) -> None:
        """Log that a server has answered a question."""
        log.info("MQTT %s: %s accepts the samples; samples to send: %d", self._place, server, self._cursor.due())
        self._fault, self._answer_s = "", ANSWER_S
