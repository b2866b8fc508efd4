"""Position of one receiver in the outbox: the next batch of samples to send, or the gap where some are lost.

Belongs to the thread that sends. Errors: DiskError of the outbox.

One rule for every transport: epoch by epoch in the order of the outbox, from the number after what the receiver has; a
gap first where that is no longer held; never more than the window ahead of the acknowledgement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from operator import attrgetter

from pigeonpost.core.clock import Clock
from pigeonpost.core.light_typing import NamedTuple
from pigeonpost.link.sample_text import sample_text, write_sample_array
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_records import SeqRange, Slot
from pigeonpost.node.slot_columns import ColumnsWriter
from protocol import BATCH_SAMPLES, COLUMN_SAMPLES, LINE_BYTES, WINDOW_SAMPLES, is_count

# Every stream begins with short pieces, each twice as long as the one before: over a network that cuts every connection
# after some kilobytes a backlog would never get smaller if it always came in the longest pieces.
FIRST_SAMPLES = 16
_READ_SLOTS = 128  # at once, so that a long piece needs no more memory than a short one
_CLOCK_SET = attrgetter("clock_set")


class OutgoingBatch(NamedTuple):
    """Samples of one epoch: `seq` from `first` on without holes.

    number        the running number of the first
    sample_count  how many they are
    text          they as JSON: an array of single samples, or an object of columns
    last_ms       when the last of them was taken
    """

    epoch: str
    first: int
    number: int
    sample_count: int
    text: str
    last_ms: int

    @property
    def last(self) -> int:
        """The seq of the last sample."""
        return self.first + self.sample_count - 1


class OutgoingGap(NamedTuple):
    """Samples `first` to `last` of one epoch that will never come (none when `last` is `first` - 1), and why.

    number   the running number of sample `first`, were it held
    before   how many samples of earlier epochs were lost too
    """

    epoch: str
    first: int
    last: int
    number: int
    before: int
    why: str

    def as_json(self) -> dict[str, int | str]:
        """The gap as it is sent, on every transport."""
        before = {"before": self.before} if self.before else {}
        return {"from": self.first, "to": self.last, "why": self.why, **before}


class SendCursor:
    """The samples of one outbox on their way to one receiver."""

    def __init__(self, outbox: Outbox, clock: Clock, room_bytes: int = LINE_BYTES) -> None:
        """room_bytes: for the text of one piece."""
        self.takes_columns = False  # the receiver; set once it has said so
        self.window = WINDOW_SAMPLES  # samples that are sent ahead of the last acknowledgement at most
        self.sent: dict[str, int] = {}  # of each epoch the highest seq that the receiver has or was sent
        self.offset_ms: int | None = None  # the receiver's date minus our uptime, where it has told the date
        self._outbox = outbox
        self._clock = clock
        self._room_bytes = room_bytes
        self._accounted = 0  # the highest running number that the receiver has, was sent, or was told to be lost
        self._next_number = 1
        self._most = FIRST_SAMPLES  # in the next piece
        # Of each epoch last seq, how many: what was sent, oldest first; samples that follow each other are one entry.
        self._unacked: dict[str, list[tuple[int, int]]] = {}
        self._unacked_count = 0  # samples in it: there may be as many epochs as samples

    # ---------------------------------------------------------------------------------------- where to begin

    def begin(self, number: int | None, have: Mapping[str, int]) -> None:
        """Go on after what the receiver has.

        number   the highest running number it has (0: none); None where it does not say: then it is not known which
                 older epochs it has, and none is said to be missing
        have     of each epoch that it knows the highest seq it has
        """
        self._accounted = self._outbox.ring.last if number is None else number
        self.sent = dict(have)
        self._next_number = 1
        self._most = FIRST_SAMPLES
        self._unacked, self._unacked_count = {}, 0

    def fork_if_other(self, epoch: str, seq: int, up_ms: object) -> str:
        """The receiver has `epoch` up to `seq`, a sample taken at `up_ms` (None: it does not say). Where ours of that
        number is another sample, another live copy of this card has sent it: what is held from there on gets a new
        epoch, which is returned; else empty. Comes before `begin`.
        """
        run = self._outbox.run_of(epoch)
        ours = self._outbox.read(run.number + seq - run.first, 1)[0] if run and run.first <= seq <= run.last else None
        is_other = ours is not None and is_count(up_ms) and ours.up_ms != up_ms
        is_ahead = epoch == self._outbox.epoch and seq > (run.last if run else 0)
        return self._outbox.fork(epoch, seq if is_other else seq + 1) if is_other or is_ahead else ""

    def begin_now(self, runs: Sequence[SeqRange]) -> None:
        """Send only what is taken after these runs were the outbox's."""
        self.sent = {run.epoch: run.last for run in runs[-1:]}
        self._accounted = runs[-1].last_number if runs else 0
        self._next_number = self._accounted + 1

    def due(self) -> int:
        """How many samples are held that the receiver does not have."""
        return sum(run.last - self.sent.get(run.epoch, 0) for run in self._outbox.ring.runs)

    def waiting(self) -> int:
        """How many samples are held that the receiver has not acknowledged."""
        return self.due() + self._unacked_count

    # --------------------------------------------------------------------------------------------- what comes next

    def next(self) -> OutgoingBatch | OutgoingGap | None:
        """The next piece, which counts as sent; None when there is none to send now."""
        room = self.window - self._unacked_count
        if room <= 0:
            return None
        run = self._outbox.run_at(self._next_number)
        while run is not None and self.sent.get(run.epoch, 0) >= run.last:
            self._next_number = run.last_number + 1
            self._accounted = max(self._accounted, run.last_number)
            run = self._outbox.run_at(self._next_number)
        if run is None:
            return None
        have = self.sent.get(run.epoch, 0)
        first = max(have + 1, run.first)
        before = max(0, run.number - 1 - self._accounted - (run.first - 1 - have if have < run.first else 0))
        self._accounted = max(self._accounted, run.number - 1)
        if first > have + 1 or before:
            return self._lost(
                run, have + 1, first - 1, before, self._why(run.number - (first - 1 - have) - before, run)
            )
        longest = COLUMN_SAMPLES if self.takes_columns else BATCH_SAMPLES
        most = min(self._most, longest, room, run.last - first + 1)
        self._most = min(2 * self._most, longest)
        return self._samples(run, first, most)

    def record_ack(self, epoch: str, seq: int) -> None:
        """The receiver has stored everything of `epoch` up to `seq`."""
        before = self._unacked.pop(epoch, [])
        left = [(last, min(count, last - seq)) for last, count in before if last > seq]
        if left:
            self._unacked[epoch] = left
        self._unacked_count -= sum(count for _, count in before) - sum(count for _, count in left)

    def _why(self, number: int, run: SeqRange) -> str:
        """Why the samples with the running numbers from `number` to the beginning of `run` are lost."""
        held_from = self._outbox.ring.last - self._outbox.ring.slots + 1
        if number >= held_from:
            return "damaged"
        return "overwritten" if run.number <= held_from else "overwritten or damaged"

    def _lost(self, run: SeqRange, first: int, last: int, before: int, why: str) -> OutgoingGap:
        self.sent[run.epoch] = last
        return OutgoingGap(run.epoch, first, last, run.number + first - run.first, before, why)

    def _samples(self, run: SeqRange, first: int, most: int) -> OutgoingBatch | OutgoingGap | None:
        number = run.number + first - run.first
        made = self._columns(number, first, most) if self.takes_columns and most > 1 else None
        if made is None:  # a single sample, or one that is not as usual: in an array it is sent as it is
            slots = self._outbox.read(number, min(most, BATCH_SAMPLES))
            made = self._array(slots, first)
            if made is None:
                return self._damaged(run, first, slots)
        text, count, last_ms = made
        last = first + count - 1
        self.sent[run.epoch] = last
        self._accounted = max(self._accounted, number + count - 1)
        of_epoch = self._unacked.setdefault(run.epoch, [])
        before = of_epoch.pop() if of_epoch and of_epoch[-1][0] == first - 1 else (0, 0)
        of_epoch.append((last, before[1] + count))
        self._unacked_count += count
        return OutgoingBatch(run.epoch, first, number, count, text, last_ms)

    def _array(self, slots: Sequence[Slot | None], first: int) -> tuple[str, int, int] | None:
        """Return JSON of the samples before the first damaged one, their number, and when the last was taken."""
        texts: list[str] = []
        room, last_ms = self._room_bytes - len("[]"), 0
        for seq, slot in enumerate(slots, first):
            if slot is None:
                break
            time_ms, flag = self._dated(slot)
            text = sample_text(seq, time_ms, slot.up_ms, slot.body, flag)
            room -= len(text.encode()) + 1
            if room < 0:
                break
            texts.append(text)
            last_ms = time_ms
        return (write_sample_array(texts), len(texts), last_ms) if texts else None

    def _columns(self, number: int, first: int, most: int) -> tuple[str, int, int] | None:
        """As `_array`, of as many samples as are alike, `most` at most."""
        writer: ColumnsWriter | None = None
        count = 0
        while count < most:
            read = self._outbox.read(number + count, min(_READ_SLOTS, most - count))
            slots = list(_until_damaged(read))
            if not slots:
                break
            times, flag = self._dates(slots)
            if writer is None:
                writer = ColumnsWriter(first, flag, self._room_bytes)
            elif flag != writer.clock:
                break
            added = writer.add(slots[: len(times)], times)
            count += added
            if added < len(read):
                break
        if writer is None or not count:
            return None
        if count < most and not writer.is_full:
            self._most = FIRST_SAMPLES  # samples that differ often would be read again for each piece
        return writer.text(), count, writer.last_ms

    def _dates(self, slots: Sequence[Slot]) -> tuple[list[int], str]:
        """When the samples were taken, up to the first with another flag than the first of them; and its flag."""
        if all(map(_CLOCK_SET, slots)):
            return [slot.wall_ms for slot in slots], ""
        dated = map(self._dated, slots)  # each once: the clock may be set meanwhile
        first_ms, flag = next(dated)
        return [first_ms, *[time_ms for time_ms, _ in takewhile(lambda entry: entry[1] == flag, dated)]], flag

    def _damaged(self, run: SeqRange, first: int, slots: Sequence[Slot | None]) -> OutgoingBatch | OutgoingGap | None:
        now = self._outbox.run_of(run.epoch)
        if now is None or now.first > first:
            return self.next()  # overwritten while it was read: another look at the runs says so
        damaged = next((k for k, slot in enumerate(slots) if slot is not None), len(slots))
        return self._lost(run, first, first + damaged - 1, 0, "damaged")

    def _dated(self, slot: Slot) -> tuple[int, str]:
        """When the sample was taken, as well as it is known now, and the flag that says how it is known."""
        if slot.clock_set:
            return slot.wall_ms, ""
        if slot.boot == int(self._clock.boot_id, 16):
            if self._clock.is_set():
                return self._clock.wall_ms() - (self._clock.up_ms() - slot.up_ms), ""
            if self.offset_ms is not None:
                return slot.up_ms + self.offset_ms, "server"
        return slot.wall_ms, "unset"


def _until_damaged(slots: Iterable[Slot | None]) -> Iterator[Slot]:
    for slot in slots:
        if slot is None:
            return
        yield slot
