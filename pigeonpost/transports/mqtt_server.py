"""MQTT transport, server side: receives what nodes publish, and answers once it is durable.

    pigeonpost/<node>/samples            a body (payload.py) for any one of the servers, by a shared subscription
    pigeonpost/<node>/samples/<ledger>   a body for the server whose store has this identifier
    pigeonpost/<node>/ack                the answer: {"epoch": ..., "ack": n}, everything up to seq n is durably stored

A broker may lose, repeat and reorder messages, so a node relies only on the answers of the server. Source:
docs/protocol.md, section MQTT.

Threads: paho's own thread receives and submits; the ingestor's writer publishes the answers; the threads of the pages
call `ask`. The Condition `_body_received` guards the number of bodies of each node, and callers of `ask` wait on it;
its lock is held for one lookup or change.
Errors: faults of the broker are logged once. An invalid message is answered with an error, and counted.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from pigeonpost.auth.key import Key
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import AuthFailed, BadArgument, BeyondLimit, NotStored, SettingsError, WireError
from pigeonpost.core.mqtt_client import NOT_YET, MqttConnection
from pigeonpost.core.rare_log import RareLog
from pigeonpost.core.strict_json import write_json
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.unnumbered_sources import Claim
from pigeonpost.transports.contract import IntegrationStatus, ServerContext, Transport
from pigeonpost.transports.mqtt_replay import ReplayGuard
from pigeonpost.transports.mqtt_topics import MOST_HELD, PURPOSE, ROOT, sign_with_key
from pigeonpost.transports.payload import BatchPayload, read_body, split_signature
from pigeonpost.transports.refusals import RefusedNodes
from protocol import HEX_16, NODE_NAME, Gap

log = logging.getLogger(__name__)

ACCEPT_S = 5.0  # longest wait for capacity in the Ingestor; no messages are read in this time
ERRORS_A_S = 10  # maximum number of error answers in one second
_LONGEST_SESSION = 64


class _NodeSession:
    """Publishes the answers to one session of a node; may be used by any thread."""

    def __init__(self, end: MqttServerTransport, node: str, key: Key | None, session: str) -> None:
        self.session, self.key = session, key
        self._end, self._node = end, node

    def committed(self, epoch: str, seq: int) -> None:
        """Acknowledge everything of `epoch` up to `seq`, which is durable."""
        self.publish({"epoch": epoch, "ack": seq})

    def publish(self, answer: Mapping[str, Any]) -> None:
        """Publish `answer` with this server's name and the session to which it belongs."""
        re = {"re": self.session} if self.session else {}
        body = write_json({**answer, "server": self._end.name, "ledger": self._end.ledger, **re}).encode()
        self._end._broker.publish(f"{ROOT}/{self._node}/ack", sign_with_key(body, self.key))


class MqttServerTransport(Transport):
    """Receives what nodes publish, as one of the servers that share the subscription.

    Args:
        context: The server's components.

    Attributes:
        name: Name of this server.
        ledger: Identifier of this server's store.
    """

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
        self._replays: dict[str, ReplayGuard] = {}  # of nodes that sign their bodies
        self._old_count = 0  # number of replayed bodies
        self._body_received = threading.Condition()
        self._body_counts: Counter[str] = Counter()
        self._accepted_count = 0
        self._accepted_ms: int | None = None
        self._refused_counts: Counter[str] = Counter()
        self._errors_s: deque[float] = deque(maxlen=ERRORS_A_S)

    def start(self) -> None:
        self._broker.start()

    def stop(self, limit_s: float) -> str | None:
        return self._broker.stop(limit_s)

    @property
    def fault(self) -> str:  # type: ignore[override]
        """Reason why the broker is not connected; empty if it is, or before the end of the first attempt."""
        return "" if self._broker.connected or self._broker.fault == NOT_YET else self._broker.fault

    def report(self) -> dict[str, Any]:
        refused_counts = {**self._refused_counts, **({"old": self._old_count} if self._old_count else {})}
        return {"connected": self._broker.connected, "bodies": self._accepted_count, "refused": refused_counts}

    def statuses(self) -> Sequence[IntegrationStatus]:
        refused = sum(self._refused_counts.values()) + self._old_count
        return [IntegrationStatus(
            "mqtt", "mqtt", "in", self._broker.place, self._accepted_ms, None, "messages", self._accepted_count,
            refused, self.fault,
        )]  # fmt: skip

    def ask(self, node: str, word: str, *args: bool, limit_s: float = 5.0) -> bool:
        """Publish a command for a node and wait until the node confirms it; see server.node_status.AskNode.

        Args:
            node: Name of the node.
            word: SEND or CHECK.
            args: For SEND, the requested state: True for on, False for off.
            limit_s: Longest wait in seconds.

        Returns:
            True if the node has confirmed the command in time.
        """
        order = {"order": os.urandom(8).hex()} | ({"on": args[0]} if word == "SEND" else {})
        state, clock = self._context.unnumbered_sources.find(node), self._context.clock
        node_session = self._sessions.get(node)
        if state is None or node_session is None:
            return False  # the node has not published anything yet
        if self._signed and node_session.key is None and self._context.current(node) in self._context.tokens:
            return False  # this server has a token for the node, but the node's last body was not signed with it
        give_up_s, informed_session = clock.monotonic() + limit_s, None
        with self._body_received:
            count_before, is_confirmed = self._body_counts[node], False
            while not is_confirmed and self._broker.connected and (node_session := self._sessions.get(node)):
                if node_session is not informed_session:  # first, and again after the node has begun a new session
                    node_session.publish(order)
                    informed_session = node_session
                if not self._body_received.wait(give_up_s - clock.monotonic()):
                    break
                is_confirmed = self._body_counts[node] > count_before and (word != "SEND" or state.on is args[0])
            return is_confirmed

    def _on_message(self, topic: str, payload: bytes) -> None:
        node = topic.split("/")[1]
        if not NODE_NAME(node):
            return
        try:
            self.take(node, payload)
        except (WireError, NotStored, SettingsError) as error:
            self._refuse(node, error)

    def take(self, node: str, payload: bytes) -> None:
        """Submit the body in `payload`, which arrived on the topic of `node`.

        Raises:
            WireError: The body is invalid, from another node (BadArgument), or not signed with the node's token.
            NotStored: The server cannot store samples now.
            SettingsError: The tokens cannot be read.
        """
        key, mac, body = self._key_of(node, payload)
        batch_payload = read_body(body)
        if self._context.ingestor.is_blocked:  # another server of the broker may be able to store it
            raise NotStored(self._context.ingestor.fault)
        if batch_payload.node != node:
            raise BadArgument(f"the topic belongs to node {node}, but the samples are from node {batch_payload.node}")
        state = self._state_of(batch_payload, is_signed=key is not None)
        self._accepted_count += 1
        self._accepted_ms = self._context.clock.wall_ms()
        session = batch_payload.fields.get("session")
        session = session if type(session) is str and len(session) <= _LONGEST_SESSION else ""
        if key is not None and self._is_old(mac, session, batch_payload):
            node_session = _NodeSession(self, node, key, session)  # a replayed body: the node ignores the answers
        else:
            node_session = self._session_of(node, key, session)
            self._record(batch_payload, state)
            if key is not None:
                self._refused_nodes.accepted(node)
        if "held" in batch_payload.fields:
            self._resume(batch_payload, node_session)
        elif not batch_payload.pieces:
            node_session.committed(batch_payload.epoch, batch_payload.stored_seq(self._context.ingestor))
        hole = functools.partial(self._hole, batch_payload, node_session)
        for batch in batch_payload.batches():
            batch = batch._replace(on_committed=node_session.committed, on_rejected=hole)
            if not self._context.ingestor.submit(batch, limit_s=ACCEPT_S):
                return  # without an answer, the node asks again

    def _state_of(self, batch_payload: BatchPayload, is_signed: bool) -> NodeState:
        """Return the state of a node for the pages. Raise AuthFailed or NotStored; see UnnumberedSources.caller."""
        node, names = batch_payload.node, set(batch_payload.units)
        # If bodies are not signed ([mqtt] signed), the broker is trusted to authenticate the nodes that have a token.
        is_proven = is_signed or (not self._signed and self._context.current(node) in self._context.tokens)
        if not is_proven:
            names.update(*(piece.values for piece in batch_payload.pieces if not isinstance(piece, Gap)))
        return self._context.unnumbered_sources.caller(Claim(node, "mqtt", is_proven), names)

    def _is_old(self, mac: str, session: str, batch_payload: BatchPayload) -> bool:
        """Return True if a signed body is a replay, which must change neither the session nor the node's state."""
        clock, guard = self._context.clock, self._replays.setdefault(batch_payload.node, ReplayGuard())
        now_ms = clock.wall_ms() if clock.is_set() else None
        ingestor = self._context.ingestor
        if not guard.is_old(mac, session, batch_payload, lambda: batch_payload.stored_seq(ingestor), now_ms):
            return False
        self._old_count += 1
        return True

    def _key_of(self, node: str, payload: bytes) -> tuple[Key | None, str, bytes]:
        """Return the key for the answers, the signature, and the body. Raise AuthFailed if the signature is wrong."""
        mac, body = split_signature(payload)
        current_name = self._context.current(node)  # tokens are stored under the current name
        key = self._context.tokens.get(current_name) if self._signed else None
        if key is None and mac and self._signed:
            raise AuthFailed(
                f"node {node} has a token that this server does not know: run `control.py token {current_name} --set`"
            )
        if key is None:
            return None, mac, body
        proven = key.signing_key(mac, PURPOSE, body)
        if proven is None:
            raise AuthFailed(
                f"not signed with the token that this server has for node {node}: set PIGEONPOST_NODE_TOKEN on the"
                f" node to the token that `control.py get-token {current_name}` shows on the server"
            )
        return proven, mac, body

    def _session_of(self, node: str, key: Key | None, session: str) -> _NodeSession:
        node_session = self._sessions.get(node)
        if node_session is None or node_session.session != session:
            node_session = self._sessions[node] = _NodeSession(self, node, key, session)
        node_session.key = key
        return node_session

    def _resume(self, batch_payload: BatchPayload, node_session: _NodeSession) -> None:
        """Publish the high-water marks of all epochs that the node holds, and this server's time."""
        held = batch_payload.fields["held"]
        epochs = [entry[0] for entry in held if type(entry) is list and entry] if type(held) is list else []
        if not epochs or len(epochs) > MOST_HELD or not all(type(epoch) is str and HEX_16(epoch) for epoch in epochs):
            raise BadArgument("held must be a list of [epoch, first, last, number of first]")
        top, marks = self._context.ingestor.marks(batch_payload.node, batch_payload.outbox, epochs)
        clock = self._context.clock
        node_session.publish({
            "epoch": batch_payload.epoch, "resume": {"id": top, **{epoch: list(mark) for epoch, mark in marks.items()}},
            "time": rfc3339(clock.wall_ms()), "clock": "set" if clock.is_set() else "unset",
            "commit": self._context.settings["store", "commit"], "columns": True,
        })  # fmt: skip

    def _hole(self, batch_payload: BatchPayload, node_session: _NodeSession, error: WireError) -> None:
        """Answer a batch that the ingestor rejected: earlier samples are missing, or the batch exceeds a limit."""
        if isinstance(error, BeyondLimit):
            self._refuse(batch_payload.node, error)
            return
        log.debug("MQTT %s: %s: %s; asking the node for the samples", self._broker.place, batch_payload.node, error)
        node_session.publish({"epoch": batch_payload.epoch, "have": batch_payload.stored_seq(self._context.ingestor)})

    def _record(self, batch_payload: BatchPayload, state: NodeState) -> None:
        node = batch_payload.node
        batch_payload.update_state(state, self._context.clock)
        if not state.takes_orders and "session" in batch_payload.fields:
            self._context.unnumbered_sources.set_ask(node, functools.partial(self.ask, node))
        with self._body_received:
            self._body_counts[node] += 1
            self._body_received.notify_all()

    def _refuse(self, node: str, error: Exception) -> None:
        """Publish and log an error at a limited rate; unsigned, because any client may have caused the error."""
        code = getattr(error, "code", "not-stored")
        self._refused_counts[code] += 1
        if isinstance(error, AuthFailed):
            self._refused_nodes.refused(node, f"the broker {self._broker.place}", str(error))
        now_s = self._context.clock.monotonic()
        self._rare_log.log(logging.WARNING, code, f"MQTT {self._broker.place}: {node}: {error}")
        if len(self._errors_s) < ERRORS_A_S or now_s > self._errors_s[0] + 1:
            self._errors_s.append(now_s)
            _NodeSession(self, node, None, "").publish({"error": {"code": code, "text": str(error)[:500]}})
