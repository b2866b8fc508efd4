"""MQTT transport, node side: publishes what the outbox holds.

Runs on: node.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import Clock, parse_rfc3339, rfc3339
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.mqtt_client import MqttConnection
from pigeonpost.core.strict_json import read_json
from pigeonpost.node.send_cursor import OutgoingBatch, OutgoingGap, SendCursor
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.mqtt_topics import MOST_HELD, PURPOSE, ROOT, sign_with_key
from pigeonpost.transports.payload import PAYLOAD_BYTES, split_signature, write_body
from protocol import HEX_16, is_count

if TYPE_CHECKING:
    from pigeonpost.core.config import Settings
    from pigeonpost.node.node_info import NodeInfo
    from pigeonpost.node.outbox import Outbox

log = logging.getLogger(__name__)

ANSWER_S, LONGEST_ANSWER_S = 3.0, 60.0  # that a question is given to be answered, doubling

ACK_S = 15.0  # that a body is given to be acknowledged, and at least three commits of the server

MOST_BODIES = 10  # that are sent ahead of their acknowledgement

_HEARD = 32  # answers that wait to be looked at; ten bodies at most are under way


class MqttNodeTransport(Transport):
    """Publishes what the outbox holds, and goes on with what is taken."""

    def __init__(self, settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> None:
        self._info, self._outbox, self._clock = info, outbox, clock
        self._key = info.key if settings["mqtt", "signed"] else None
        self._stream = SendCursor(outbox, clock, PAYLOAD_BYTES // 2)
        topic = f"{ROOT}/{info.name}/ack"
        self._broker = MqttConnection(settings, f"pigeonpost-{info.name}", [topic], self._hear, self._turn)
        self._heard: deque[bytes] = deque(maxlen=_HEARD)
        self._turned = False  # the connection came or went
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        # The conversation; it belongs to the thread.
        self._session = ""  # its name, in what is sent and in the answers; empty: there is none
        self._is_new = False  # the server has not heard that name yet
        self._ledger = ""  # who answered last; empty: one that does not tell
        self._direct = False  # whether the next question goes to that one
        self._asking = False  # nobody has answered yet
        self._again_s = 0.0  # when the next question may be asked
        self._answer_s = ANSWER_S
        self._ack_s = ACK_S
        self._window = MOST_BODIES
        self._unanswered: list[tuple[str, int, float]] = []  # epoch, last seq, when it is late
        self._obeyed: deque[Any] = deque(maxlen=_HEARD)  # orders
        self._acked: dict[str, int] = {}  # by a server that does not tell what it has
        self._fault = ""

    def start(self) -> None:
        self._outbox.watch(self._woken.set)
        self._broker.start()
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is None:
            return None
        self._outbox.unwatch(self._woken.set)
        self._thread.join(limit_s / 2)
        return self._broker.stop(limit_s / 2)

    def _hear(self, topic: str, payload: bytes) -> None:
        self._heard.append(payload)
        self._woken.set()

    def _turn(self) -> None:
        self._turned = True
        self._woken.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            if self._turned:
                self._turned = False
                self._begin_again(bool(self._ledger))
            while self._heard:
                self.take(self._heard.popleft())
            self._woken.wait(self.go_on() if self._broker.connected else None)

    # ---------------------------------------------------------------------------------------------- the conversation

    def go_on(self) -> float:
        """Send what is to be sent now; the seconds until the next look is due."""
        now_s = self._clock.monotonic()
        if self._unanswered and now_s >= min(late_s for _, _, late_s in self._unanswered):
            self._be_late()
        if not self._session:
            if now_s < self._again_s:
                return self._again_s - now_s
            self._ask()
        while not self._asking and len(self._unanswered) < self._window:
            piece = self._stream.next()
            if piece is None:
                break
            self._publish(piece, self._ack_s)
        if self._is_new and not self._asking:
            self._say_on()
        return min([late_s for _, _, late_s in self._unanswered], default=LONGEST_ANSWER_S) - now_s

    def _be_late(self) -> None:
        """The broker has lost it, or the server is gone: ask that one first, and then whoever is there."""
        if self._asking:
            self._lose("no server answers")
            self._again_s = self._clock.monotonic() + random.uniform(0, self._answer_s / 4)
            self._answer_s = min(2 * self._answer_s, LONGEST_ANSWER_S)
            self._begin_again(False)
        else:
            self._lose("the server has not answered in time")
            self._begin_again(bool(self._ledger), 1)

    def _begin_again(self, direct: bool, window: int = MOST_BODIES) -> None:
        """With the next `go_on`: a question to who answered last (`direct`), or to whoever is there. Then `window`
        bodies may be ahead of their acknowledgement; it doubles with each of these."""
        self._session, self._direct, self._window, self._unanswered = "", direct, window, []

    def _ask(self) -> None:
        """A body with the first samples that may be due, and a list of all that is held: what is stored of it?

        Who answers only with `ack`, as the simplest server does, is sent everything after that.
        """
        self._session, self._asking = os.urandom(8).hex(), True
        self._stream.begin(None, {} if self._ledger else self._acked)
        held = {"held": self._outbox.held()[-MOST_HELD:]}
        piece = self._stream.next()
        if piece is not None:
            self._publish(piece, self._answer_s, held)
        else:
            self._send(self._outbox.epoch, None, [], [], held)
            self._unanswered.append((self._outbox.epoch, 0, self._clock.monotonic() + self._answer_s))

    def _publish(
        self, piece: OutgoingBatch | OutgoingGap, limit_s: float, more: Mapping[str, Any] | None = None
    ) -> None:
        base = piece.number - piece.first
        if isinstance(piece, OutgoingBatch):
            last = piece.first + len(piece.texts) - 1
            self._send(piece.epoch, base, [], piece.texts, more)
            self._info.last_sent_ms = piece.last_ms
        else:
            last, before = piece.last, {"before": piece.before} if piece.before else {}
            gap = {"from": piece.first, "to": last, "why": piece.why, **before}
            self._send(piece.epoch, base, [gap], [], more)
        self._unanswered.append((piece.epoch, last, self._clock.monotonic() + limit_s))

    def _send(
        self, epoch: str, base: int | None, gaps: Sequence[Mapping[str, Any]], texts: Sequence[str],
        more: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        info, self._is_new = self._info, False
        head = {
            "node": info.name, "outbox": self._outbox.ring.identity, "every": info.every_s,
            "sensors": list(info.sensors), "on": self._outbox.on, "time": rfc3339(self._clock.wall_ms()),
            "session": self._session, **(more or {}),
        }  # fmt: skip
        direct = self._direct if self._asking else bool(self._ledger)
        topic = f"{ROOT}/{info.name}/samples" + (f"/{self._ledger}" if direct else "")
        self._broker.publish(topic, sign_with_key(write_body(head, epoch, base, gaps, texts), self._key))

    def _say_on(self) -> None:
        """A body without samples: it tells whether sampling is on, and the name of the conversation."""
        self._send(self._outbox.epoch, None, [], [], None)

    def _lose(self, fault: str) -> None:
        if fault != self._fault:
            log.warning("MQTT %s: %s; the samples are kept here meanwhile", self._broker.place, fault)
            self._fault = fault

    # ------------------------------------------------------------------------------------------------------ answers

    def take(self, payload: bytes) -> None:
        """One message on our topic: an answer of this conversation, or something to be ignored."""
        mac, body = split_signature(payload)
        if self._key and not self._key.is_seal(mac, PURPOSE, body):
            self._lose(f"an answer that is not signed with this node's token (control.py token {self._info.name})")
            return
        try:
            said = read_json(body.decode())
            if not self._session or said.get("re", None if self._key else self._session) != self._session:
                return  # of a conversation before this one
            self._take(said)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            self._lose(f"an answer that does not read: {str(error)[:200]}")

    def _take(self, said: Mapping[str, Any]) -> None:
        if "error" in said:
            self._lose(f"the server refuses: {str(said['error'])[:300]}")
            self._again_s = self._clock.monotonic() + self._answer_s
            self._answer_s = min(2 * self._answer_s, LONGEST_ANSWER_S)
            self._begin_again(False)
        elif "resume" in said:
            if self._asking:
                self._on_resume(said)
        elif "have" in said:
            log.info("MQTT %s: a hole at the server; it is asked what it has", self._broker.place)
            self._acked = {**self._acked, said["epoch"]: said["have"]} if is_count(said["have"]) else {}
            self._again_s = self._clock.monotonic() + random.uniform(0.05, 0.2)
            # One by one at first: servers that share a store may have taken two bodies in the wrong order.
            self._begin_again(bool(self._ledger), 1)
        elif "order" in said:
            self._obey(said)
        elif not (self._asking and said.get("ledger")):  # else the other half of the answer, what it has, was lost
            self._on_ack(said["epoch"], said["ack"])

    def _obey(self, said: Mapping[str, Any]) -> None:
        """CHECK, or SEND; each once, since the broker may say it again, and so may others."""
        if said["order"] in self._obeyed:
            return
        self._obeyed.append(said["order"])
        if type(on := said.get("on")) is bool:
            log.info("MQTT %s: sampling %s", self._broker.place, "on" if on else "off")
            self._info.switch(on)
        self._say_on()

    def _on_resume(self, said: Mapping[str, Any]) -> None:
        """It tells all that it has, and who it is: from now on samples go there."""
        number, have = said["resume"].get("id"), {}
        for epoch, (seq, up_ms) in ((e, mark) for e, mark in said["resume"].items() if e != "id"):
            if not HEX_16(epoch) or not is_count(seq):
                raise BadArgument(f"epoch {epoch!r:.40} up to {seq!r:.40}")
            have[epoch] = seq
            if new := self._stream.fork_if_other(epoch, seq, up_ms):
                told = "another live copy of this card sent sample %d of epoch %s: from there on ours are of epoch %s"
                log.error("MQTT %s: " + told, self._broker.place, seq, epoch, new)
        self._ledger = said["ledger"] if HEX_16(said["ledger"]) else ""
        commit_s = said.get("commit")
        self._ack_s = max(ACK_S, 3.0 * commit_s) if isinstance(commit_s, int | float) and commit_s < 3600 else ACK_S
        if said.get("clock") == "set":
            self._stream.offset_ms = parse_rfc3339(said["time"]) - self._clock.up_ms()
        self._stream.begin(number if is_count(number) else None, have)
        # What was sent with the question is sent again, under another name.
        self._session, self._is_new, self._unanswered = os.urandom(8).hex(), True, []
        self._come_through(str(said.get("server", "a server"))[:63])

    def _on_ack(self, epoch: str, seq: int) -> None:
        if not is_count(seq) or seq > self._stream.sent.get(epoch, 0):
            raise BadArgument(f"epoch {epoch!r:.40} was not sent up to {seq!r:.40}")
        if self._asking:
            self._ledger = ""
            self._come_through("a server")
        self._stream.note_ack(epoch, seq)
        self._acked = {**self._acked, epoch: seq} if not self._ledger else {}
        self._unanswered = [entry for entry in self._unanswered if entry[0] != epoch or entry[1] > seq]
        self._window = min(2 * self._window, MOST_BODIES)

    def _come_through(self, server: str) -> None:
        if self._fault or self._answer_s != ANSWER_S or self._asking:
            log.info("MQTT %s: %s takes the samples, %d are due", self._broker.place, server, self._stream.due())
        self._asking, self._fault, self._answer_s = False, "", ANSWER_S
