"""The server's end of a TCP session: opens it, passes samples to the Ingestor, and acknowledges durable samples.

A session belongs to the thread that serves its connection. Any thread may call `committed`, `refused`, `ask`,
`recheck_token` and `doubt`. `doubt` sets a flag that `tick` reads; the others append to a deque, which `take_output`
empties in the owner's thread. No lock is needed, because these operations are atomic and only the owner changes the
rest of the session. Errors: as in tcp_session.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from pigeonpost.auth.key import Key
from pigeonpost.core.clock import Clock, parse_rfc3339, rfc3339
from pigeonpost.core.errors import AuthFailed, BadArgument, Unexpected, UnknownWord, WireError, WrongVersion
from pigeonpost.core.strict_json import write_json
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports import tcp_faults
from pigeonpost.transports.clock_steps import ClockSteps
from pigeonpost.transports.payload import MOST_SENSORS, read_sensors
from pigeonpost.transports.tcp_session import LinkSession, Marks, Resume, find_resume, tls_binding
from protocol import (
    AUTH_S,
    CHECK_AFTER_S,
    COLUMNS_WINDOW,
    HEX_16,
    JOINED_HEAD_BYTES,
    LONGEST_WHY,
    NODE_NAME,
    SILENCE_S,
    VERSION,
    WINDOW_SAMPLES,
    Batch,
    Gap,
    Message,
    SampleBatch,
    decode_joined,
    is_count,
)

log = logging.getLogger(__name__)

_ASK_AFTER_S = 60.0  # longest time between two CHECKs while samples arrive
DOUBT_S = 5.0  # time for a node to answer CHECK after it was announced at another address

# Codes of the errors after which the node closes the connection.
_ENDS = frozenset(error.code for error in WireError.__subclasses__() if error.closes)

LONGEST_DETAILS = 4096  # longest JSON of a STATUS that is kept, in characters
_JOINED_HEAD_OF = itemgetter(slice(JOINED_HEAD_BYTES))
MOST_EPOCHS = 100_000  # maximum number of epochs that a node may list; an outbox normally holds 65,536 samples

RunApart = Callable[[Callable[[], Resume], Callable[[Callable[[], Resume]], None]], object]  # see HelperThreads.run


class IngestProtocol(Protocol):
    """The part of the Ingestor that a session uses."""

    identity: str

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> Marks:
        """Return the high-water marks of what is durably stored.

        Args:
            node: Name of the node.
            outbox: Identifier of the node's outbox.
            epochs: The epochs to look up.

        Returns:
            The highest running number of `outbox` (0 if there is none); and for each known epoch the highest seq with
            that sample's `up` (None if a gap ended there).
        """

    def submit(self, batch: Batch) -> object:
        """Queue `batch` and later call its on_committed or on_rejected; may wait while too much is uncommitted.

        The value that it returns is not used.
        """


class ServerSession(LinkSession):
    """The server's end of one connection; sends HELLO immediately.

    Args:
        server: Name of this server.
        ledger: The Ingestor, which stores the samples.
        keys: Keys of the nodes that have a token on this server, by name.
        state: State of the node, which the session keeps up to date.
        clock: Clock for timeouts and timestamps.
        wake: Function that makes the owner's thread call `take_output` soon.
        answered: Called with ("SENDBACK", on) or ("STATUS",) after `state` has been updated from the node's answer.
        fingerprint: Fingerprint of the node's certificate, or empty if the connection is not encrypted.
        pins: Required certificate fingerprints of the nodes that use TLS, by name; empty if any is accepted.
        claim: NodeNames.claim; returns why the node may not use its name, or an empty string if it may.
        current: NodeRegister.current; returns the current name of a node that was renamed.
        run_apart: Function that queries the store in another thread, because this may take long; None to query it
            in this thread.

    Attributes:
        is_asked: True while an answer of the node (HELLO, STATUS or SENDBACK) is expected.
        fault: Reason why the connection ends, as a rule a text of tcp_faults; empty if there is none.
        collecting: True after RESUME was sent.
        is_resuming: True while the store is queried for the high-water marks.
    """

    is_asked = True

    def __init__(
        self,
        server: str,
        ledger: IngestProtocol,
        keys: Mapping[str, Key],
        state: NodeState,
        clock: Clock,
        wake: Callable[[], Any],
        answered: Callable[..., Any] = lambda *answer: None,
        fingerprint: str = "",
        pins: Mapping[str, str] = MappingProxyType({}),
        claim: Callable[[NodeState, str, bool], str] = lambda state, name, is_proven: "",
        current: Callable[[str], str] = lambda name: name,
        run_apart: RunApart | None = None,
    ) -> None:
        super().__init__(clock, state.address)
        self._server, self._ledger, self._keys, self._state = server, ledger, keys, state
        self._wake, self._answered = wake, answered
        self._fingerprint, self._pins, self._claim, self._current = fingerprint, pins, claim, current
        self._run_apart = run_apart or (lambda find, answer: self._resume(find))
        self.fault = ""
        self._key: Key | None = None  # the key that the node has proven
        self._proved_s: float | None = None  # monotonic time when this end sent its own proof
        self._began_s = self._checked_s = clock.monotonic()
        self._is_doubted, self._doubted_s = False, -1.0  # `doubt` was called; time of the CHECK that it caused
        self._began_ms = clock.wall_ms()
        # A nonce asks the node for a proof. So it is sent only if this server has a token for the expected node, or, if
        # any node is accepted, at least one token.
        self._nonce = os.urandom(16).hex() if (current(state.expected) in keys if state.expected else keys) else ""
        self._hello: dict[str, Any] = {}
        self._bases: dict[str, int] = {}  # epoch to the running number of its seq 0
        self._next: dict[str, int] = {}  # epoch to the next expected seq
        self._units: dict[str, str] = {}
        self._window = WINDOW_SAMPLES  # as agreed with the node
        self._posted: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._acks: dict[str, int] = {}
        self._samples: SampleBatch | None = None  # samples of one epoch, received since the last output
        self._samples_epoch = ""
        self._clock_steps = ClockSteps()
        self.collecting = self.is_resuming = False
        hello = {
            "link": VERSION,
            "server": server,
            "ledger": ledger.identity,
            "time": rfc3339(self._began_ms),
            "clock": "set" if clock.is_set() else "unset",
            "columns": True,
            "window": COLUMNS_WINDOW,
        }
        self._queue_message("HELLO", hello | ({"nonce": self._nonce} if self._nonce else {}))

    # ------------------------------------------------------------------------------------ from any thread

    def committed(self, epoch: str, seq: int) -> None:
        """Acknowledge everything of `epoch` up to `seq` with the next output, since it is durable."""
        self._post(self._acks.__setitem__, epoch, seq)

    def refused(self, error: WireError) -> None:
        """Send ERROR with the next output and close the connection, because a batch was rejected with `error`."""
        self._post(self.refuse, error)

    def ask(self, word: str, *args: Any) -> None:
        """Send SEND or CHECK (`word`) with its arguments `args` in the next output."""
        self._post(self._ask, word, *args)

    def recheck_token(self) -> None:
        """End the session unless the node has proven a token that is still accepted; called after tokens change."""
        self._post(self._recheck_token)

    def doubt(self) -> None:
        """Send CHECK, and end the session if nothing is received within DOUBT_S: the node was announced elsewhere."""
        self._is_doubted = True
        self._wake()

    def _post(self, call: Callable[..., Any], *args: Any) -> None:
        self._posted.append((call, args))
        self._wake()

    # ------------------------------------------------------------------------------- from the owner's thread

    def receive_lines(self, lines: Sequence[bytes]) -> None:
        """Process `lines` that were received together; lines of one sample each are decoded together, to save time."""
        for _, group in groupby(lines, _JOINED_HEAD_OF):
            alike = list(group)
            message = decode_joined(alike) if len(alike) > 1 and not self.closing else None
            if message is None:
                super().receive_lines(alike)
                continue
            self._last_received_s = self.clock.monotonic()
            try:
                self._take(message)
            except WireError as error:
                self.refuse(error, alike[0])

    def take_output(self) -> bytes:
        self._hand_on_samples()
        while self._posted:
            call, args = self._posted.popleft()
            call(*args)
        if self._acks:
            acks, self._acks = self._acks, {}
            for epoch, seq in acks.items():
                self._queue_message("ACK", epoch, seq)
        return super().take_output()

    def tick(self) -> float:
        now_s = self.clock.monotonic()
        if self._is_doubted:
            self._is_doubted = False
            self._doubt()
        if not self.collecting:
            left_s = self._began_s + 2 * AUTH_S - now_s
            if left_s <= 0:
                self.refuse(Unexpected(f"no complete HELLO within {2 * AUTH_S:.0f} s"))
            return left_s
        silence_left_s = self._last_received_s + SILENCE_S - now_s
        if self._last_received_s < self._doubted_s:
            silence_left_s = min(silence_left_s, self._doubted_s + DOUBT_S - now_s)
        if silence_left_s <= 0:
            log.warning("%s: received nothing for %.0f s, closing", self.peer, now_s - self._last_received_s)
            self.fault = self._described(tcp_faults.SILENT, text=f"{now_s - self._last_received_s:.0f} s")
            self.closing = True
        # Send CHECK also while samples arrive, so that the data from STATUS is never much older than _ASK_AFTER_S.
        check_left_s = (
            min(max(self._last_sent_s, self._checked_s) + CHECK_AFTER_S, self._checked_s + _ASK_AFTER_S) - now_s
        )
        if check_left_s <= 0:
            self._ask("CHECK")
            check_left_s = CHECK_AFTER_S
        return min(silence_left_s, check_left_s)

    def _doubt(self) -> None:
        if self.collecting and self._last_received_s >= self._doubted_s:
            self._ask("CHECK")
            self._doubted_s = self.clock.monotonic()

    def _ask(self, word: str, *args: Any) -> None:
        self.is_asked = True
        if word == "CHECK":
            self._checked_s = self.clock.monotonic()
        self._queue_message(word, *args)

    def _take(self, message: Message) -> None:
        handler = self._HANDLERS.get(message.word)
        if handler is None:
            raise UnknownWord(f"{message.word} is a word of the server; a node must not send it")
        handler(self, *message.args)

    # ---------------------------------------------------------------------------------- opening a session

    def _on_hello(self, hello: dict[str, Any]) -> None:
        if self._hello:
            raise Unexpected("HELLO was already sent in this session")
        if hello.get("link") != VERSION:
            self.fault = self._described(tcp_faults.OTHER_VERSION, text=f"{hello.get('link')!r:.20}, not {VERSION}")
            raise WrongVersion(f"this server speaks link {VERSION}, not {hello.get('link')!r}")
        name, outbox = hello.get("node"), hello.get("outbox")
        if not isinstance(name, str) or not NODE_NAME(name):
            raise BadArgument("HELLO: node must be the node's name")
        if self._state.expected and self._current(self._state.expected) != self._current(name):
            self.fault = self._described(tcp_faults.OTHER_NODE, other=name)
            raise Unexpected(
                f"this is node {name!r}, but the server's settings expect {self._state.expected!r} at this address"
            )
        if not isinstance(outbox, str) or not HEX_16(outbox):
            raise BadArgument("HELLO: outbox must be the identifier of the outbox (16 hex digits)")
        if not self._fingerprint and name in self._pins:
            self.fault = tcp_faults.describe(tcp_faults.PLAIN_TEXT, name)
            raise Unexpected(f"the server collects from node {name} by TLS only")
        state = self._state
        self.peer = f"{state.address} {name}"
        self._prove(name, outbox, hello)  # before anything of HELLO is used
        self.fault = self._claim(state, self._current(name), self._key is not None)
        if self.fault:
            raise Unexpected(f"this node {self.fault}")
        self._record_sensors(hello.get("sensors"))
        if hello.get("columns") is True:
            self._window = COLUMNS_WINDOW
        every = hello.get("every")
        state.name = self._current(name)
        state.every_s = float(every) if isinstance(every, int | float) and 0 < every < 1e9 else None
        state.round_trip_ms = (self.clock.monotonic() - self._began_s) * 1000
        self._record_offset(hello.get("time"), self._began_ms)
        self._hello = hello
        self._on_held(hello)

    def _record_sensors(self, sensors: Any) -> None:
        try:
            found = read_sensors(sensors[:MOST_SENSORS] if type(sensors) is list else sensors)
        except BadArgument as error:
            raise BadArgument(f"HELLO: {error}") from None
        self._units = {sensor["name"]: sensor["unit"] for sensor in found}
        self._state.sensors = found

    def _record_offset(self, time: Any, asked_ms: int) -> None:
        try:
            self._state.offset_ms = parse_rfc3339(time) - (asked_ms + self.clock.wall_ms()) // 2
        except (TypeError, ValueError):
            self._state.offset_ms = None

    def _prove(self, name: str, outbox: str, hello: Mapping[str, Any]) -> None:
        current_name = self._current(name)  # tokens are stored under the current name
        key, mac, nonce = self._keys.get(current_name), hello.get("mac"), hello.get("nonce")
        if key is None:
            if mac is not None:
                self.fault = tcp_faults.describe(tcp_faults.UNKNOWN_TOKEN, current_name)
                raise AuthFailed(
                    f"this server does not know the token of node {name}: run `control.py token {current_name} --set`"
                )
            if self._fingerprint and not self._pins.get(name):  # the token was revoked after the connection was made
                self.fault = tcp_faults.describe(tcp_faults.UNPROVEN, current_name)
                raise AuthFailed(f"the server has no token for node {name} that could prove it")
            return
        names, nonces = (self._server, name, outbox), (self._nonce, str(nonce), *tls_binding(self._fingerprint))
        self._key = key.proving_key(mac, "node", *names, nonces)
        if self._key is None:
            mismatch = tcp_faults.INTERCEPTED if self._fingerprint else tcp_faults.WRONG_TOKEN
            fault = mismatch if mac is not None else tcp_faults.NO_TOKEN
            self.fault = tcp_faults.describe(fault, current_name, found=self._fingerprint)
            raise AuthFailed(
                f"node {name} does not know the token that this server has for it: set PIGEONPOST_NODE_TOKEN on the"
                f" node to the token that `control.py get-token {current_name}` shows on the server"
            )
        # The node proves the token first, so that this server's proof is never sent to an impostor.
        self._queue_message("AUTH", {"mac": self._key.sign("server", *names, nonces)})
        self._proved_s = self.clock.monotonic()

    def _recheck_token(self) -> None:
        if not self._hello:
            return
        name = self._state.name
        key = self._keys.get(name)
        if key is None and self._key is not None:
            self.fault = self._described(tcp_faults.REVOKED)
            self.refuse(AuthFailed(f"the token of node {name} was revoked on the server"))
        elif key is not None and (self._key is None or not key.covers(self._key)):
            self.fault = self._described(tcp_faults.REPLACED if self._key is not None else tcp_faults.NO_TOKEN)
            self.refuse(AuthFailed(
                f"the server now has another token for node {name}: run `control.py get-token {name}` there to see it"
            ))  # fmt: skip

    def _on_held(self, held: Mapping[str, Any]) -> None:
        if not self._hello:
            raise Unexpected("HELD continues HELLO, so it must follow HELLO")
        try:
            for epoch, first, last, number in held["held"]:
                if not (HEX_16(epoch) and is_count(first) and is_count(last) and is_count(number)):
                    raise ValueError
                self._bases[epoch] = number - first
        except (KeyError, TypeError, ValueError):
            raise BadArgument(
                f"held must be a list of [epoch, first, last, number of first]: {held.get('held')!r:.80}"
            ) from None
        if len(self._bases) > MOST_EPOCHS:
            raise Unexpected(f"a node may list at most {MOST_EPOCHS} epochs")
        if held.get("more") is not True and not (self.collecting or self.is_resuming):
            self.is_resuming = True
            arguments = self._state.name, self._hello["outbox"], tuple(self._bases)
            find = functools.partial(find_resume, self._ledger.marks, *arguments)
            self._run_apart(find, functools.partial(self._post, self._resume))

    def _resume(self, find: Callable[[], Resume]) -> None:
        marks, lines = find()
        if self.closing:
            return
        self._next = {epoch: seq + 1 for epoch, (seq, _) in marks.items()}
        self._out += lines
        self.collecting, self.is_resuming = True, False
        self._state.connected, self._state.fault = True, ""
        self._state.since_ms, self._state.awaited_s = self.clock.wall_ms(), self.clock.monotonic()
        log.info(
            "%s: collecting; %s",
            self.peer,
            "continuing after the stored samples" if marks else "starting with its oldest sample",
        )
        log.debug("%s: %d of %d epochs known", self.peer, len(marks), len(self._bases))
        self._ask("CHECK")

    # -------------------------------------------------------------------------------------------- samples

    def _on_sensors(self, epoch: str, batches: list[SampleBatch]) -> None:
        self._expect(epoch, batches[0].seq)
        self._find_clock_step(batches[-1])
        # Samples that were received together are merged. With one sample per line, this is three times as fast.
        for samples in batches:
            pending = self._samples
            if pending is not None and epoch == self._samples_epoch and pending.is_followed_by(samples):
                pending.extend(samples)
            else:
                self._hand_on_samples()
                self._samples, self._samples_epoch = samples, epoch
        self._next[epoch] = max(batches[-1].last + 1, self._next.get(epoch, 1))

    def _find_clock_step(self, samples: SampleBatch) -> None:
        """Correct the known difference of the clocks at once if one of them was set, and measure it again."""
        if samples.clock == "server" or not samples.ups or self._state.offset_ms is None:
            return
        times = samples.times[-1], samples.ups[-1], self.clock.wall_ms(), self.clock.monotonic()
        if step_ms := self._clock_steps.step_ms(*times):
            self._state.offset_ms += step_ms
            if not self.is_asked:
                self._ask("CHECK")

    def _on_gap(self, epoch: str, gap: Mapping[str, Any]) -> None:
        numbers = [gap.get("from"), gap.get("to"), gap.get("before", 0)]
        first, last, before = [number if is_count(number) else -1 for number in numbers]
        if first < 1 or last < first - 1 or before < 0:
            raise BadArgument('GAP must have {"from": first seq, "to": last seq, "why": text}')
        self._expect(epoch, first)
        self._hand_on_samples()
        self._next[epoch] = max(last + 1, self._next.get(epoch, 1))
        self._hand_on(epoch, None, Gap(first, last, before, str(gap.get("why", ""))[:LONGEST_WHY]))

    def _expect(self, epoch: str, first: int) -> None:
        if not self.collecting:
            raise Unexpected("samples must not be sent before RESUME")
        expected = self._next.get(epoch, 1)
        if first > expected:
            raise Unexpected(
                f"sample {expected} of epoch {epoch} comes next, not {first}; report missing samples with GAP"
            )

    def _hand_on_samples(self) -> None:
        if self._samples is not None:
            samples, self._samples = self._samples, None
            self._hand_on(self._samples_epoch, samples, None)

    def _hand_on(self, epoch: str, samples: SampleBatch | None, gap: Gap | None) -> None:
        name, outbox, base = self._state.name, self._hello["outbox"], self._bases.get(epoch)
        self._ledger.submit(Batch(
            name, outbox, epoch, base, samples, gap, self._units, self.committed, self.refused, self._window
        ))  # fmt: skip

    # ------------------------------------------------------------------------------------------- answers

    def _on_status(self, on: bool, last_sent: str | None, details: dict[str, Any]) -> None:
        state = self._state
        self.is_asked = False
        state.record_sampling(on, self.clock.monotonic())
        state.last_sent, state.checked_ms = last_sent, self.clock.wall_ms()
        state.details = details if len(write_json(details)) <= LONGEST_DETAILS else {}
        faults = state.details.get("faults")  # faults of the node's outbox
        texts = [text for text in faults if isinstance(text, str)] if isinstance(faults, list) else []
        state.warn("outbox", "; ".join(texts))
        trip_s = self.clock.monotonic() - self._checked_s
        state.round_trip_ms = trip_s * 1000
        self._record_offset(details.get("time"), state.checked_ms - int(trip_s * 1000))
        if state.offset_ms is not None and is_count(up_ms := details.get("up")):
            self._clock_steps.start(state.offset_ms + state.checked_ms, up_ms, state.checked_ms, self.clock.monotonic())
        self._answered("STATUS")

    def _on_sendback(self, on: bool) -> None:
        self.is_asked = False
        self._state.record_sampling(on, self.clock.monotonic())
        self._answered("SENDBACK", on)

    def _on_error(self, code: str, details: Mapping[str, Any]) -> None:
        super()._on_error(code, details)
        if code in _ENDS or not self.collecting:  # other errors do not end the session
            name = self._state.name or self._state.expected
            text = str(details.get("text", code))
            self.fault = tcp_faults.described_error(code, text, name, self._proved_s is not None)

    # ------------------------------------------------------------------------------------------- the end

    def refuse(self, error: WireError, line: bytes = b"") -> None:
        super().refuse(error, line)
        if not self.fault and not self.collecting and not self._hello:
            self.fault = self._described(tcp_faults.NOT_THE_LINK, text=error)
        elif not self.fault and error.closes:
            self.fault = f"is rejected: {error}"[:300]

    def fault_at_end(self, text: str) -> str:
        """Return the fault text for the end of the connection: `text` if no better reason is known."""
        if self.fault:
            return self.fault
        if not self._hello:
            return self._described(tcp_faults.NO_ANSWER)
        if self._proved_s is not None and self._last_received_s <= self._proved_s:
            return self._described(tcp_faults.NO_ANSWER_TO_PROOF)
        return text

    def _described(self, fault: str, **more: object) -> str:
        return tcp_faults.describe(fault, self._current(self._state.expected or self._state.name), **more)

    _HANDLERS: ClassVar[dict[str, Callable[..., None]]] = {
        "HELLO": _on_hello, "HELD": _on_held, "SENDBACK": _on_sendback, "STATUS": _on_status, "SENSORS": _on_sensors,
        "GAP": _on_gap, "ERROR": _on_error, "BYE": LinkSession._on_bye,
    }  # fmt: skip
