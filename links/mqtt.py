"""The road over MQTT: a node publishes its samples on a broker, a server takes them there and answers durably.

Runs on: node (NodeEnd), server (ServerEnd).  Reached from: node.py, server.py.
Hands on to: broker, which is the connection; parcels, which is what a message says; on the node stream and the outbox,
  on the server the intake.
Threads: paho's own at each end; the node has one more, which alone knows the conversation: paho's thread leaves it what
  comes in a deque, and sets an Event. On the server paho's thread reads and hands on, the intake's answers.
Errors: of the broker: told once, and tried again. Of a message: answered, and counted.

    pigeonpost/<node>/samples            a body (parcels.py), to whichever server takes it: $share/pigeonpost/...
    pigeonpost/<node>/samples/<ledger>   the same, to the server that has this ledger, and so what came before
    pigeonpost/<node>/ack                {"epoch": ..., "ack": n}: everything of it up to n is durably stored

A broker may lose, repeat and reorder: counted is what the server answers. docs/protocol.md has the rules.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from links import End, Hall
from parcels import PARCEL_BYTES, Parcel, read_body, sealed, unsealed, write_body
from pigeonpost.auth.key import Key
from pigeonpost.core.clock import Clock, parse_rfc3339, rfc3339
from pigeonpost.core.errors import AuthFailed, BadArgument, NotStored, SettingsError, WireError
from pigeonpost.core.mqtt_client import Broker
from pigeonpost.core.strict_json import read_json, write_json
from pigeonpost.node.send_cursor import Lost, Samples, Stream
from protocol import HEX_16, NODE_NAME
from session import is_count

if TYPE_CHECKING:
    from pigeonpost.core.config import Settings
    from pigeonpost.node.node_info import NodeFacts
    from pigeonpost.node.outbox import Outbox

log = logging.getLogger(__name__)

PURPOSE = "mqtt"
ROOT = "pigeonpost"
ANSWER_S, LONGEST_ANSWER_S = 3.0, 60.0  # that a question is given to be answered, doubling
ACK_S = 15.0  # that a body is given to be acknowledged, and at least three commits of the server
MOST_BODIES = 10  # that are sent ahead of their acknowledgement
MOST_HELD = 10_000  # epochs named in a question; what older ones hold is sent again, and is a repeat
ACCEPT_S = 5.0  # that a server waits for room in its intake, not hearing the broker meanwhile
ERRORS_A_S = 10  # answered at most, and as many logged
_LONGEST_SESSION = 64
_HEARD = 32  # answers that wait to be looked at; ten bodies at most are under way


def _signed(body: bytes, key: Key | None) -> bytes:
    return sealed(body, key.seal(PURPOSE, body)) if key else body


# --------------------------------------------------------------------------------------------------------- the node


class NodeEnd(End):
    """Publishes what the outbox holds, and goes on with what is taken."""

    def __init__(self, settings: Settings, facts: NodeFacts, outbox: Outbox, clock: Clock) -> None:
        self._facts, self._outbox, self._clock = facts, outbox, clock
        self._key = facts.key if settings["mqtt", "signed"] else None
        self._stream = Stream(outbox, clock, PARCEL_BYTES // 2)
        topic = f"{ROOT}/{facts.name}/ack"
        self._broker = Broker(settings, f"pigeonpost-{facts.name}", [topic], self._hear, self._turn)
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

    def _publish(self, piece: Samples | Lost, limit_s: float, more: Mapping[str, Any] | None = None) -> None:
        base = piece.number - piece.first
        if isinstance(piece, Samples):
            last = piece.first + len(piece.texts) - 1
            self._send(piece.epoch, base, [], piece.texts, more)
            self._facts.last_sent_ms = piece.last_ms
        else:
            last, before = piece.last, {"before": piece.before} if piece.before else {}
            gap = {"from": piece.first, "to": last, "why": piece.why, **before}
            self._send(piece.epoch, base, [gap], [], more)
        self._unanswered.append((piece.epoch, last, self._clock.monotonic() + limit_s))

    def _send(
        self, epoch: str, base: int | None, gaps: Sequence[Mapping[str, Any]], texts: Sequence[str],
        more: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        facts, self._is_new = self._facts, False
        head = {
            "node": facts.name, "outbox": self._outbox.ring.identity, "every": facts.every_s,
            "sensors": list(facts.sensors), "on": self._outbox.on, "time": rfc3339(self._clock.wall_ms()),
            "session": self._session, **(more or {}),
        }  # fmt: skip
        direct = self._direct if self._asking else bool(self._ledger)
        topic = f"{ROOT}/{facts.name}/samples" + (f"/{self._ledger}" if direct else "")
        self._broker.publish(topic, _signed(write_body(head, epoch, base, gaps, texts), self._key))

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
        mac, body = unsealed(payload)
        if self._key and not self._key.is_seal(mac, PURPOSE, body):
            self._lose(f"an answer that is not signed with this node's token (control.py token {self._facts.name})")
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
            self._facts.switch(on)
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


# ------------------------------------------------------------------------------------------------------- the server


class _Talk:
    """The answers to one conversation of a node; `committed` may be called from any thread."""

    def __init__(self, end: ServerEnd, node: str, key: Key | None, session: str) -> None:
        self.session, self.key = session, key
        self._end, self._node = end, node

    def committed(self, epoch: str, seq: int) -> None:
        """As Batch.done."""
        self.say({"epoch": epoch, "ack": seq})

    def say(self, answer: Mapping[str, Any]) -> None:
        """Publish an answer, with what tells whose it is, and whose question it answers."""
        re = {"re": self.session} if self.session else {}
        body = write_json({**answer, "server": self._end.name, "ledger": self._end.ledger, **re}).encode()
        self._end._broker.publish(f"{ROOT}/{self._node}/ack", _signed(body, self.key))


class ServerEnd(End):
    """Takes what nodes publish, as one of the servers that share the subscription."""

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self.name, self.ledger = hall.name, hall.intake.identity
        shared = f"$share/{ROOT}/{ROOT}/+/samples"
        self._broker = Broker(
            hall.settings, f"pigeonpost-server-{hall.name}", [shared, f"{shared}/{self.ledger}"], self._hear
        )
        self._signed = hall.settings["mqtt", "signed"]
        self._talks: dict[str, _Talk] = {}
        # Guards the count of bodies of each node, for those who wait for one; held to look and to count.
        self._called = threading.Condition()
        self._calls: Counter[str] = Counter()
        self._taken = 0
        self._refused: Counter[str] = Counter()
        self._errors_s: deque[float] = deque(maxlen=ERRORS_A_S)

    def start(self) -> None:
        self._broker.start()

    def stop(self, limit_s: float) -> str | None:
        return self._broker.stop(limit_s)

    def report(self) -> dict[str, Any]:
        return {"connected": self._broker.connected, "bodies": self._taken, "refused": dict(self._refused)}

    def ask(self, node: str, word: str, *args: Any, limit_s: float = 5.0) -> bool:
        """As ServerEnd.ask of links/tcp: SEND or CHECK; whether the node has said within the limit that it is so."""
        order = {"order": os.urandom(8).hex()} | ({"on": args[0]} if word == "SEND" else {})
        state, clock = self._hall.guests.caller(node), self._hall.clock
        give_up_s, told = clock.monotonic() + limit_s, None
        with self._called:
            before, is_so = self._calls[node], False
            while not is_so and self._broker.connected and (talk := self._talks.get(node)):
                if talk is not told:  # at once, and again where the node begins a new conversation just now
                    talk.say(order)
                    told = talk
                if not self._called.wait(give_up_s - clock.monotonic()):
                    break
                is_so = self._calls[node] > before and (word != "SEND" or state.on is args[0])
            return is_so

    def _hear(self, topic: str, payload: bytes) -> None:
        node = topic.split("/")[1]
        if not NODE_NAME(node):
            return
        try:
            self.take(node, payload)
        except (WireError, NotStored, SettingsError) as error:
            self._refuse(node, error)

    def take(self, node: str, payload: bytes) -> None:
        """One body of `node`, by its topic: hand it on, or raise what is wrong with it."""
        key, body = self._key_of(node, payload)
        parcel = read_body(body)
        if self._hall.intake.fault:  # another server may be well
            raise NotStored(self._hall.intake.fault)
        if parcel.node != node:
            raise BadArgument(f"the topic is that of node {node}, the samples are those of {parcel.node}")
        self._hall.guests.caller(node)  # raises NotStored when more have come than can be remembered
        self._taken += 1
        talk = self._talk(node, key, parcel.said.get("session"))
        self._note(parcel)
        if "held" in parcel.said:
            self._resume(parcel, talk)
        elif not parcel.pieces:
            talk.committed(parcel.epoch, self._marks(parcel)[1].get(parcel.epoch, (0, None))[0])
        hole = functools.partial(self._hole, parcel, talk)
        for batch in parcel.batches(talk.committed, hole):
            if not self._hall.intake.accept(batch, limit_s=ACCEPT_S):
                return  # the node asks again

    def _key_of(self, node: str, payload: bytes) -> tuple[Key | None, bytes]:
        """The key by which answers to the node are signed, and the body, which is the node's."""
        mac, body = unsealed(payload)
        key = self._hall.tokens.get(node) if self._signed else None
        if key is None and mac and self._signed:
            raise AuthFailed(f"node {node} has a token that this server does not know (control.py token {node})")
        if key is not None and not key.is_seal(mac, PURPOSE, body):
            raise AuthFailed(f"not signed with the token that this server has for node {node}")
        return key, body

    def _talk(self, node: str, key: Key | None, session: Any) -> _Talk:
        if type(session) is not str or len(session) > _LONGEST_SESSION:
            session = ""
        talk = self._talks.get(node)
        if talk is None or talk.session != session:
            talk = self._talks[node] = _Talk(self, node, key, session)
        talk.key = key
        return talk

    def _marks(self, parcel: Parcel, epochs: Sequence[str] | None = None) -> tuple[int, Mapping[str, Any]]:
        return self._hall.intake.marks(parcel.node, parcel.outbox, epochs or [parcel.epoch])

    def _resume(self, parcel: Parcel, talk: _Talk) -> None:
        """What is stored of all that the node holds, who stores it, and what the time is."""
        held = parcel.said["held"]
        epochs = [entry[0] for entry in held if type(entry) is list and entry] if type(held) is list else []
        if not epochs or len(epochs) > MOST_HELD or not all(type(epoch) is str and HEX_16(epoch) for epoch in epochs):
            raise BadArgument("held is a list of [epoch, first, last, number of first]")
        top, marks = self._marks(parcel, epochs)
        clock = self._hall.clock
        talk.say({
            "epoch": parcel.epoch, "resume": {"id": top, **{epoch: list(mark) for epoch, mark in marks.items()}},
            "time": rfc3339(clock.wall_ms()), "clock": "set" if clock.is_set() else "unset",
            "commit": self._hall.settings["store", "commit"],
        })  # fmt: skip

    def _hole(self, parcel: Parcel, talk: _Talk, error: WireError) -> None:
        """As Batch.refused: what came before it went elsewhere, or nowhere."""
        log.info("MQTT %s: %s: %s; the node is asked for it", self._broker.place, parcel.node, error)
        talk.say({"epoch": parcel.epoch, "have": self._marks(parcel)[1].get(parcel.epoch, (0, None))[0]})

    def _note(self, parcel: Parcel) -> None:
        guests, node = self._hall.guests, parcel.node
        state = guests.caller(node)
        parcel.tell(state, self._hall.clock.wall_ms())
        if not state.takes_orders and "session" in parcel.said:
            guests.let_ask(node, functools.partial(self.ask, node))
        with self._called:
            self._calls[node] += 1
            self._called.notify_all()

    def _refuse(self, node: str, error: Exception) -> None:
        """Say what was wrong, as long as it is not too often; never signed, since anybody may have caused it."""
        code = getattr(error, "code", "not-stored")
        self._refused[code] += 1
        now_s = self._hall.clock.monotonic()
        if len(self._errors_s) < ERRORS_A_S or now_s > self._errors_s[0] + 1:
            self._errors_s.append(now_s)
            log.warning("MQTT %s: %s: %s", self._broker.place, node, error)
            _Talk(self, node, None, "").say({"error": {"code": code, "text": str(error)[:500]}})


make_node_end, make_server_end = NodeEnd, ServerEnd
