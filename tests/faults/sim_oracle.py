"""Oracle of the simulation: records the samples that nodes accept, outside of every disk, and checks the stores.

Exceptions that docs/promise.md makes are recorded card by card. The id of an outbox identifies a card from the time
when the outbox was made.

- `ended`: the card was wiped or replaced. Samples that it had not delivered are lost. - `damaged`: samples of it (by
card and number) were corrupted or overwritten. If a server does not have them, they must be in a gap, or counted by
one, that gives this reason. - `doubtful`: the card was set back to an image, or is used by two nodes. Then numbers
stand for more than one sample, and the number of missing samples is unknown. Each sample still has its own name, and
all held samples must arrive.

All other samples must be stored once and in order, or be missing because the ring file overwrote them, and then be in a
gap or be counted by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_records import UnnumberedSample
from tests.storage.memory_store import MemoryStore

Identity = tuple[str, int]  # epoch, seq


class Violation(AssertionError):
    """The promise was broken."""


class Accepted(NamedTuple):
    """A sample that a node has accepted, with its running number on that card."""

    card: str
    number: int
    value: int
    up_ms: int


class Oracle:
    """The accepted samples, and those whose acceptance was attempted."""

    def __init__(self) -> None:
        self.accepted: dict[Identity, list[Accepted]] = {}  # several per name only if a machine was copied
        self.ended: set[str] = set()
        self.doubtful: set[str] = set()
        self.damaged: set[tuple[str, int]] = set()
        self._value = 0
        self._tried: set[tuple[Identity, int]] = set()  # with its value: a crash may have left exactly this
        self._cards: dict[str, str] = {}  # epoch to card
        self._slots: dict[str, int] = {}
        self._highest: dict[str, int] = {}  # highest running number attempted on this card

    # ----------------------------------------------------------------------------------- what nodes report

    def next_value(self) -> int:
        """Return a new value. Values identify samples and give their order."""
        self._value += 1
        return self._value

    def saw(self, outbox: Outbox) -> None:
        """Record that this card is in use."""
        ring = outbox.ring
        self._slots[ring.identity] = ring.slots
        self._highest[ring.identity] = max(ring.last, self._highest.get(ring.identity, 0))

    def new_epoch(self, card: str, epoch: str) -> str:
        """Record the beginning of an epoch."""
        self._cards[epoch] = card
        return epoch

    def attempt(self, outbox: Outbox, queued: Sequence[UnnumberedSample]) -> None:
        """Record that the node is about to write the first samples of `queued`."""
        ring = outbox.ring
        batch = queued[: ring.most_at_once]
        self._highest[ring.identity] = max(ring.last + len(batch), self._highest[ring.identity])
        seq = outbox._next_seq
        self._tried.update(((outbox.epoch, seq + k), taken.values["x"]) for k, taken in enumerate(batch))  # type: ignore[misc]

    def accept(self, outbox: Outbox, number: int, taken: Iterable[UnnumberedSample]) -> None:
        """Record that the node has accepted samples with running numbers from `number` on."""
        ring = outbox.ring
        run = ring.runs[-1]
        for n, sample in enumerate(taken, number):
            entry = Accepted(ring.identity, n, sample.values["x"], sample.up_ms)  # type: ignore[arg-type]
            self.accepted.setdefault((run.epoch, run.seq_of(n)), []).append(entry)

    def look_at_gap(self, outbox: Outbox, line: bytes) -> None:
        """Check a GAP line: its samples must be overwritten, or never have been accepted."""
        _, epoch, text = line.decode().split(" ", 2)
        gap = json.loads(text)
        for sample in [
            sample for seq in range(gap["from"], gap["to"] + 1) for sample in self.accepted.get((epoch, seq), ())
        ]:
            if (
                sample.card == outbox.ring.identity and not self._is_overrun(sample) and not self._is_excused(sample)
                and not self._is_damaged(sample)
            ):  # fmt: skip
                raise Violation(f"the node sent {line.decode()}, but must still hold number {sample.number}")

    def _is_overrun(self, sample: Accepted) -> bool:
        return sample.number <= self._highest[sample.card] - self._slots[sample.card]

    def _is_damaged(self, sample: Accepted) -> bool:
        return (sample.card, sample.number) in self.damaged

    def _is_excused(self, sample: Accepted) -> bool:
        return sample.card in self.ended or sample.card in self.doubtful

    # ----------------------------------------------------------------------------------------- the judgement

    def judge(
        self, name: str, store: MemoryStore, held: Sequence[Outbox], counts: bool = True, complete: bool = True
    ) -> dict[str, int]:
        """Check that the store has all promised samples. Raises Violation.

        Args:
            name: Name of the server.
            store: Its store.
            held: The outboxes that have delivered their samples.
            counts: True if the server sent its highest running number to the nodes, so that lost epochs are counted
                too.
            complete: True if everything was delivered; otherwise only the stored samples are checked.

        Returns:
            Figures.
        """
        for fault in store.verify():
            raise Violation(f"{name}: {fault}")
        stored = self._judge_stored(name, store)
        if not complete:
            return {"stored": len(stored)}
        told = {(epoch, seq) for _, epoch, gap, _ in store.gap_rows for seq in range(gap.first, gap.last + 1)}
        for outbox in held:
            for run in outbox.ring.runs:
                for seq in range(run.first, run.last + 1):
                    if (run.epoch, seq) not in stored and (run.epoch, seq) not in told:
                        raise Violation(f"{name}: {run.epoch} {seq} is held and not stored")
        missing = self._missing(name, store, stored)
        if not counts:
            return {"stored": len(stored), "missing": sum(map(len, missing.values()))}
        silent = {card: [one for one in identities if one not in told] for card, identities in missing.items()}
        self._judge_sums(name, store, stored, silent, {outbox.ring.identity: outbox for outbox in held})
        damaged = self._judge_reasons(name, store, missing)
        return {"stored": len(stored), "missing": sum(map(len, missing.values())), "damaged, and not stored": damaged}

    def _judge_reasons(self, name: str, store: MemoryStore, missing: dict[str, list[Identity]]) -> int:
        """Check that missing damaged samples are in a gap with that reason; return their number."""
        reasons = {
            (epoch, seq): gap.why for _, epoch, gap, _ in store.gap_rows for seq in range(gap.first, gap.last + 1)
        }
        counting = {
            self._cards.get(epoch) for _, epoch, gap, _ in store.gap_rows if gap.before and "damaged" in gap.why
        }
        count = 0
        for card, identities in missing.items():
            for identity in identities:
                if any(entry.card == card and not self._is_overrun(entry) for entry in self.accepted[identity]):
                    count += 1
                    if "damaged" not in reasons.get(identity, "damaged" if card in counting else "nothing"):
                        raise Violation(f"{name}: {identity} was damaged; said was {reasons.get(identity)}")
        return count

    def _judge_stored(self, name: str, store: MemoryStore) -> set[Identity]:
        """Check that each stored sample was taken by a node, with its name, value and order."""
        stored = set()
        latest: dict[str, int] = {}
        for _, epoch, sample in store.samples:
            identity, value = (epoch, sample.seq), sample.values["x"]
            stored.add(identity)
            card = self._cards.get(epoch, "")
            entry = next((entry for entry in self.accepted.get(identity, ()) if entry.value == value), None)
            if entry is None and (identity, value) not in self._tried and card not in self.doubtful:
                raise Violation(f"{name}: {identity} is {value}; accepted was {self.accepted.get(identity)}")
            if entry is not None and entry.up_ms != sample.up_ms:
                raise Violation(f"{name}: {identity} was taken {entry.up_ms} ms after boot, not {sample.up_ms}")
            if value <= latest.get(card, 0) and card not in self.doubtful:
                raise Violation(f"{name}: {identity} with value {value} stands after value {latest[card]}")
            latest[card] = value  # type: ignore[assignment]
        return stored

    def _missing(self, name: str, store: MemoryStore, stored: set[Identity]) -> dict[str, list[Identity]]:
        """Return the accepted samples that are not stored, by card. Only overwritten ones may be missing."""
        missing: dict[str, list[Identity]] = {}
        for identity, entries in self.accepted.items():
            if identity in stored:
                continue
            for entry in entries:
                if not self._is_excused(entry):
                    if not self._is_overrun(entry) and not self._is_damaged(entry):
                        raise Violation(f"{name}: {identity} was accepted as number {entry.number}, and is lost")
                    missing.setdefault(entry.card, []).append(identity)
        return missing

    def _judge_sums(
        self, name: str, store: MemoryStore, stored: set[Identity], silent: dict[str, list[Identity]],
        outboxes: dict[str, Outbox],
    ) -> None:  # fmt: skip
        """Check that missing samples are in a gap or counted by one, and that gaps count nothing else."""
        before: dict[str, int] = {}
        for _, epoch, gap, _ in store.gap_rows:
            card = self._cards.get(epoch, "")
            before[card] = before.get(card, 0) + gap.before
        for card, outbox in outboxes.items():
            if card in self.doubtful or card in self.ended:
                continue
            counted, missed = before.get(card, 0), silent.get(card, [])
            if len(missed) > counted:
                raise Violation(f"{name}: {len(missed)} are missing, {counted} counted: {missed[:3]}")
            marks = sum(mark.seq for (_, epoch), mark in store.epochs.items() if self._cards.get(epoch) == card)
            ghosts = sum(self._cards.get(epoch) == card and (epoch, seq) not in self.accepted for epoch, seq in stored)
            if not outbox.ring.last <= marks + counted <= outbox.ring.last + ghosts:
                raise Violation(
                    f"{name}: {outbox.ring.last} samples are numbered, but {marks} stored or in gaps and {counted}"
                    f" counted before gaps ({ghosts} were stored and never accepted)"
                )
