"""MQTT transport, server side: takes what nodes publish, and answers once it is durable.

    pigeonpost/<node>/samples            a body (payload.py), for any server: $share/pigeonpost/...
    pigeonpost/<node>/samples/<ledger>   the same, for the server whose store has this id, and so what came before
    pigeonpost/<node>/ack                {"epoch": ..., "ack": n}: everything of it up to n is durably stored

A broker may lose, repeat and reorder: a node counts what the server answers. Source: docs/protocol.md, section MQTT.

Threads: paho's own reads and submits; the ingestor's writer publishes the answers; those of the pages ask. `_called`
  guards the count of bodies of each node, for those who wait for one; it is held to look and to count.
Errors: of the broker: logged once, and tried again. Of a message: answered, and counted.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from pigeonpost.auth.key import Key
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import AuthFailed, BadArgument, BeyondLimit, NotStored, SettingsError, WireError
from pigeonpost.core.mqtt_client import MqttConnection
from pigeonpost.core.rare_log import RareLog
from pigeonpost.core.strict_json import write_json
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.unnumbered_sources import Claim
from pigeonpost.transports.contract import ServerContext, Transport
from pigeonpost.transports.mqtt_replay import ReplayGuard
from pigeonpost.transports.mqtt_topics import MOST_HELD, PURPOSE, ROOT, sign_with_key
from pigeonpost.transports.payload import BatchPayload, read_body, split_signature
from pigeonpost.transports.refusals import RefusedNodes
from protocol import HEX_16, NODE_NAME, Gap

log = logging.getLogger(__name__)

ACCEPT_S = 5.0  # that a server waits for room in the Ingestor, not hearing the broker meanwhile
ERRORS_A_S = 10  # answered at most
_LONGEST_SESSION = 64


class _NodeSession:
    """Publishes the answers to one session of a node; from any thread."""

    def __init__(self, end: MqttServerTransport, node: str, key: Key | None, session: str) -> None:
        self.session, self.key = session, key
        self._end, self._node = end, node

    def committed(self, epoch: str, seq: int) -> None:
        """Acknowledge everything of `epoch` up to `seq`, which is durable."""
        self.say({"epoch": epoch, "ack": seq})

    def say(self, answer: Mapping[str, Any]) -> None:
        """Publish an answer with this server's name and the session that it belongs to."""
        re = {"re": self.session} if self.session else {}
        body = write_json({**answer, "server": self._end.name, "ledger": self._end.ledger, **re}).encode()
        self._end._broker.publish(f"{ROOT}/{self._node}/ack", sign_with_key(body, self.key))


class MqttServerTransport(Transport):
    """Receives what nodes publish, as one of the servers that share the subscription."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self.name, self.ledger = context.name, context.ingestor.identity
        shared = f"$share/{ROOT}/{ROOT}/+/samples"
        self._broker = MqttConnection(
            context.settings, f"pigeonpost-server-{context.name}", [shared, f"{shared}/{self.ledger}"], self._on_message
        )
        self._signed = context.settings["mqtt", "signed"]
        self._sessions: dict[str, _NodeSession] = {}
        self._refused_nodes = RefusedNodes("MQTT", context)
        self._rare_log = RareLog(log, context.clock)
        self._replays: dict[str, ReplayGuard] = {}  # of nodes whose bodies are signed
        self._old = 0  # bodies that were published before
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
        refused = {**self._refused, **({"old": self._old} if self._old else {})}
        return {"connected": self._broker.connected, "bodies": self._taken, "refused": refused}

    def ask(self, node: str, word: str, *args: bool, limit_s: float = 5.0) -> bool:
        """Publish SEND or CHECK for a node. Returns True if it has confirmed that within the limit (AskNode)."""
        order = {"order": os.urandom(8).hex()} | ({"on": args[0]} if word == "SEND" else {})
        state, clock = self._context.unnumbered_sources.find(node), self._context.clock
        node_session = self._sessions.get(node)
        if state is None or node_session is None:
            return False  # it has not called
        if self._signed and node_session.key is None and self._context.current(node) in self._context.tokens:
            return False  # it has not proved the token that it has meanwhile
        give_up_s, told = clock.monotonic() + limit_s, None
        with self._called:
            before, is_so = self._calls[node], False
            while not is_so and self._broker.connected and (node_session := self._sessions.get(node)):
                if node_session is not told:  # at once, and again where the node begins a new conversation just now
                    node_session.say(order)
                    told = node_session
                if not self._called.wait(give_up_s - clock.monotonic()):
                    break
                is_so = self._calls[node] > before and (word != "SEND" or state.on is args[0])
            return is_so

    def _on_message(self, topic: str, payload: bytes) -> None:
        node = topic.split("/")[1]
        if not NODE_NAME(node):
            return
        try:
            self.take(node, payload)
        except (WireError, NotStored, SettingsError) as error:
            self._refuse(node, error)

    def take(self, node: str, payload: bytes) -> None:
        """Submit one body that came on the topic of `node`. Raises WireError, NotStored or SettingsError."""
        key, mac, body = self._key_of(node, payload)
        batch_payload = read_body(body)
        if self._context.ingestor.fault:  # another server may be well
            raise NotStored(self._context.ingestor.fault)
        if batch_payload.node != node:
            raise BadArgument(f"the topic is that of node {node}, the samples are those of {batch_payload.node}")
        state = self._state_of(batch_payload, is_signed=key is not None)
        self._taken += 1
        session = batch_payload.said.get("session")
        session = session if type(session) is str and len(session) <= _LONGEST_SESSION else ""
        if key is not None and self._is_old(mac, session, batch_payload):
            node_session = _NodeSession(self, node, key, session)  # the node ignores the answers
        else:
            node_session = self._session_of(node, key, session)
            self._record(batch_payload, state)
            if key is not None:
                self._refused_nodes.accepted(node)
        if "held" in batch_payload.said:
            self._resume(batch_payload, node_session)
        elif not batch_payload.pieces:
            node_session.committed(batch_payload.epoch, batch_payload.stored_seq(self._context.ingestor))
        hole = functools.partial(self._hole, batch_payload, node_session)
        for batch in batch_payload.batches():
            batch = batch._replace(on_committed=node_session.committed, on_rejected=hole)
            if not self._context.ingestor.submit(batch, limit_s=ACCEPT_S):
                return  # the node asks again

    def _state_of(self, batch_payload: BatchPayload, is_signed: bool) -> NodeState:
        """Return what the pages show of a node. Raises AuthFailed or NotStored, see UnnumberedSources.caller."""
        node, names = batch_payload.node, set(batch_payload.units)
        # Where nodes do not sign, the broker has checked those that have a token.
        is_proven = is_signed or (not self._signed and self._context.current(node) in self._context.tokens)
        if not is_proven:
            names.update(*(piece.values for piece in batch_payload.pieces if not isinstance(piece, Gap)))
        return self._context.unnumbered_sources.caller(Claim(node, "mqtt", is_proven), names)

    def _is_old(self, mac: str, session: str, batch_payload: BatchPayload) -> bool:
        """Return True if a signed body was published before: then it changes nothing of the session."""
        clock, guard = self._context.clock, self._replays.setdefault(batch_payload.node, ReplayGuard())
        now_ms = clock.wall_ms() if clock.is_set() else None
        ingestor = self._context.ingestor
        if not guard.is_old(mac, session, batch_payload, lambda: batch_payload.stored_seq(ingestor), now_ms):
            return False
        self._old += 1
        return True

    def _key_of(self, node: str, payload: bytes) -> tuple[Key | None, str, bytes]:
        """Return the key that signs the answers, the signature, which is verified, and the body."""
        mac, body = split_signature(payload)
        known = self._context.current(node)  # under which its token is here
        key = self._context.tokens.get(known) if self._signed else None
        if key is None and mac and self._signed:
            raise AuthFailed(f"node {node} has a token that this server does not know: control.py token {known} --set")
        if key is None:
            return None, mac, body
        proven = key.sealing(mac, PURPOSE, body)
        if proven is None:
            raise AuthFailed(
                f"not signed with the token that this server has for node {node}: `control.py get-token {known}` on the"
                " server shows it; give it to the node as PIGEONPOST_NODE_TOKEN"
            )
        return proven, mac, body

    def _session_of(self, node: str, key: Key | None, session: str) -> _NodeSession:
        node_session = self._sessions.get(node)
        if node_session is None or node_session.session != session:
            node_session = self._sessions[node] = _NodeSession(self, node, key, session)
        node_session.key = key
        return node_session

    def _resume(self, batch_payload: BatchPayload, node_session: _NodeSession) -> None:
        """Publish what is stored of all that the node holds, and what the time is."""
        held = batch_payload.said["held"]
        epochs = [entry[0] for entry in held if type(entry) is list and entry] if type(held) is list else []
        if not epochs or len(epochs) > MOST_HELD or not all(type(epoch) is str and HEX_16(epoch) for epoch in epochs):
            raise BadArgument("held is a list of [epoch, first, last, number of first]")
        top, marks = self._context.ingestor.marks(batch_payload.node, batch_payload.outbox, epochs)
        clock = self._context.clock
        node_session.say({
            "epoch": batch_payload.epoch, "resume": {"id": top, **{epoch: list(mark) for epoch, mark in marks.items()}},
            "time": rfc3339(clock.wall_ms()), "clock": "set" if clock.is_set() else "unset",
            "commit": self._context.settings["store", "commit"], "columns": True,
        })  # fmt: skip

    def _hole(self, batch_payload: BatchPayload, node_session: _NodeSession, error: WireError) -> None:
        """Answer a batch that was rejected: what came before it went elsewhere, or nowhere; or it passes a limit."""
        if isinstance(error, BeyondLimit):
            self._refuse(batch_payload.node, error)
            return
        log.debug("MQTT %s: %s: %s; the node is asked for it", self._broker.place, batch_payload.node, error)
        node_session.say({"epoch": batch_payload.epoch, "have": batch_payload.stored_seq(self._context.ingestor)})

    def _record(self, batch_payload: BatchPayload, state: NodeState) -> None:
        node = batch_payload.node
        batch_payload.tell(state, self._context.clock.wall_ms())
        if not state.takes_orders and "session" in batch_payload.said:
            self._context.unnumbered_sources.let_ask(node, functools.partial(self.ask, node))
        with self._called:
            self._calls[node] += 1
            self._called.notify_all()

    def _refuse(self, node: str, error: Exception) -> None:
        """Publish what was wrong and log it, both at a limited rate; never signed, since anybody may have caused it."""
        code = getattr(error, "code", "not-stored")
        self._refused[code] += 1
        if isinstance(error, AuthFailed):
            self._refused_nodes.refused(node, f"the broker {self._broker.place}", str(error))
        now_s = self._context.clock.monotonic()
        self._rare_log.say(logging.WARNING, code, f"MQTT {self._broker.place}: {node}: {error}")
        if len(self._errors_s) < ERRORS_A_S or now_s > self._errors_s[0] + 1:
            self._errors_s.append(now_s)
            _NodeSession(self, node, None, "").say({"error": {"code": code, "text": str(error)[:500]}})
