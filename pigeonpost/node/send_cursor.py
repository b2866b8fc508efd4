"""Position of one receiver in the outbox: determines the next batch of samples or the next gap to send.

A cursor is used only by the thread that sends. Errors: DiskError of the outbox.

The same rules apply to every transport:
- Epochs are sent in the order of the outbox, each from the sequence number after the last one that the receiver has.
- If the next samples are no longer in the outbox, or damaged, a gap is sent first.
- The number of samples that are sent and not yet acknowledged never exceeds the window.
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

# The first batch on a connection is short, and each batch is twice as long as the one before. With only the longest
# batches, a backlog could never be sent over a network that cuts every connection after a few kilobytes.
FIRST_SAMPLES = 16
_READ_SLOTS = 128  # slots per read, so that a long batch does not need more memory than a short one
_CLOCK_SET = attrgetter("clock_set")


class OutgoingBatch(NamedTuple):
    """Samples of one epoch with consecutive sequence numbers.

    Attributes:
        epoch: The epoch, 16 hex digits.
        first: Sequence number of the first sample.
        number: Running number of the first sample.
        sample_count: Number of samples.
        text: The samples as JSON: an array of samples, or an object of columns.
        last_ms: Time of the last sample in milliseconds since 1970 (UTC).
    """

    epoch: str
    first: int
    number: int
    sample_count: int
    text: str
    last_ms: int

    @property
    def last(self) -> int:
        """Sequence number of the last sample."""
        return self.first + self.sample_count - 1


class OutgoingGap(NamedTuple):
    """Samples of one epoch that will never arrive.

    Attributes:
        epoch: The epoch, 16 hex digits.
        first: Sequence number of the first lost sample.
        last: Sequence number of the last lost sample; `first` - 1 if only samples of earlier epochs are lost.
        number: Running number of the first lost sample.
        before: Number of lost samples of earlier epochs.
        why: Reason: "overwritten", "damaged" or "overwritten or damaged".
    """

    epoch: str
    first: int
    last: int
    number: int
    before: int
    why: str

    def as_json(self) -> dict[str, int | str]:
        """Return the gap as JSON, as every transport sends it."""
        before = {"before": self.before} if self.before else {}
        return {"from": self.first, "to": self.last, "why": self.why, **before}


class SendCursor:
    """Position of one receiver in the samples of an outbox.

    Attributes:
        takes_columns: True if the receiver accepts columns; set when the receiver reports it.
        window: Maximum number of samples that are sent and not yet acknowledged.
        sent: For each epoch, the highest sequence number that the receiver has or that was sent to it.
        offset_ms: Difference between the date of the receiver and the uptime of this machine, in milliseconds; None if
            the receiver has not reported its date.
    """

    def __init__(self, outbox: Outbox, clock: Clock, room_bytes: int = LINE_BYTES) -> None:
        """Create a cursor.

        Args:
            outbox: The outbox.
            clock: Clock of the node.
            room_bytes: Maximum length of the JSON text of one batch, in bytes.
        """
        self.takes_columns = False
        self.window = WINDOW_SAMPLES
        self.sent: dict[str, int] = {}
        self.offset_ms: int | None = None
        self._outbox = outbox
        self._clock = clock
        self._room_bytes = room_bytes
        self._accounted = 0  # highest running number that the receiver has, or that was sent or reported as lost
        self._next_number = 1
        self._most = FIRST_SAMPLES  # maximum number of samples in the next batch
        # For each epoch the samples sent and not acknowledged, as (last seq, count), oldest first. Consecutive batches
        # are one entry.
        self._unacked: dict[str, list[tuple[int, int]]] = {}
        self._unacked_count = 0  # their number, because summing up would be slow with many epochs

    # ---------------------------------------------------------------------------------------- starting position

    def begin(self, number: int | None, have: Mapping[str, int]) -> None:
        """Set the position to the first sample that the receiver does not have.

        Args:
            number: Highest running number that the receiver has, 0 if it has none. None if the receiver does not report
                it; then nothing is known about older epochs, and they are not reported as lost.
            have: Highest sequence number that the receiver has of each epoch that it knows.
        """
        self._accounted = self._outbox.ring.last if number is None else number
        self.sent = dict(have)
        self._next_number = 1
        self._most = FIRST_SAMPLES
        self._unacked, self._unacked_count = {}, 0

    def fork_if_other(self, epoch: str, seq: int, up_ms: object) -> str:
        """Fork the outbox if the receiver has different samples with the same epoch and sequence numbers.

        This happens if a copy of the outbox, for example on a copied SD card, has sent samples to the same receiver.
        Call this method before `begin`.

        Args:
            epoch: An epoch that the receiver has.
            seq: Highest sequence number of that epoch that the receiver has.
            up_ms: Uptime of that sample in milliseconds, or None if the receiver does not report it.

        Returns:
            The new epoch, or an empty string if no fork is necessary.
        """
        run = self._outbox.run_of(epoch)
        ours = self._outbox.read(run.number + seq - run.first, 1)[0] if run and run.first <= seq <= run.last else None
        is_other = ours is not None and is_count(up_ms) and ours.up_ms != up_ms
        is_ahead = epoch == self._outbox.epoch and seq > (run.last if run else 0)
        return self._outbox.fork(epoch, seq if is_other else seq + 1) if is_other or is_ahead else ""

    def begin_now(self, runs: Sequence[SeqRange]) -> None:
        """Set the position after all samples in `runs`, the current runs of the outbox: send only newer samples."""
        self.sent = {run.epoch: run.last for run in runs[-1:]}
        self._accounted = runs[-1].last_number if runs else 0
        self._next_number = self._accounted + 1

    def due(self) -> int:
        """Return the number of samples in the outbox that have not been sent to the receiver."""
        return sum(run.last - max(self.sent.get(run.epoch, 0), run.first - 1) for run in self._outbox.ring.runs)

    def waiting(self) -> int:
        """Return the number of samples in the outbox that the receiver has not acknowledged."""
        return self.due() + self._unacked_count

    # --------------------------------------------------------------------------------------------- sending

    def next(self) -> OutgoingBatch | OutgoingGap | None:
        """Return the next batch or gap, which then counts as sent; None if there is nothing to send now."""
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
        # The running numbers between the last sample accounted for and this run are those of lost samples. Those that
        # do not belong to the beginning of this epoch belong to earlier epochs, which are no longer known.
        before = max(0, run.number - 1 - self._accounted - (run.first - 1 - have if have < run.first else 0))
        self._accounted = max(self._accounted, run.number - 1)
        if first > have + 1 or before:
            return self._gap(run, have + 1, first - 1, before, self._why(run.number - (first - 1 - have) - before, run))
        longest = COLUMN_SAMPLES if self.takes_columns else BATCH_SAMPLES
        most = min(self._most, longest, room, run.last - first + 1)
        self._most = min(2 * self._most, longest)
        return self._samples(run, first, most)

    def record_ack(self, epoch: str, seq: int) -> None:
        """Record that the receiver has stored all samples of `epoch` up to the sequence number `seq`."""
        before = self._unacked.pop(epoch, [])
        left = [(last, min(count, last - seq)) for last, count in before if last > seq]
        if left:
            self._unacked[epoch] = left
        self._unacked_count -= sum(count for _, count in before) - sum(count for _, count in left)

    def _why(self, number: int, run: SeqRange) -> str:
        """Return the reason for the loss of the samples from the running `number` to the beginning of `run`."""
        held_from = self._outbox.ring.last - self._outbox.ring.slots + 1
        if number >= held_from:
            return "damaged"
        return "overwritten" if run.number <= held_from else "overwritten or damaged"

    def _gap(self, run: SeqRange, first: int, last: int, before: int, why: str) -> OutgoingGap:
        self.sent[run.epoch] = last
        return OutgoingGap(run.epoch, first, last, run.number + first - run.first, before, why)

    def _samples(self, run: SeqRange, first: int, most: int) -> OutgoingBatch | OutgoingGap | None:
        number = run.number + first - run.first
        encoded = self._columns(number, first, most) if self.takes_columns and most > 1 else None
        if encoded is None:  # a single sample, or one that does not fit in columns
            slots = self._outbox.read(number, min(most, BATCH_SAMPLES))
            encoded = self._array(slots, first)
            if encoded is None:
                return self._damaged(run, first, slots)
        text, count, last_ms = encoded
        last = first + count - 1
        self.sent[run.epoch] = last
        self._accounted = max(self._accounted, number + count - 1)
        of_epoch = self._unacked.setdefault(run.epoch, [])
        before = of_epoch.pop() if of_epoch and of_epoch[-1][0] == first - 1 else (0, 0)
        of_epoch.append((last, before[1] + count))
        self._unacked_count += count
        return OutgoingBatch(run.epoch, first, number, count, text, last_ms)

    def _array(self, slots: Sequence[Slot | None], first: int) -> tuple[str, int, int] | None:
        """Return the samples before the first damaged one as JSON, their number, and the time of the last one."""
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
        """Return the same as `_array`, as columns, for up to `most` consecutive samples with the same channels."""
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
            self._most = FIRST_SAMPLES  # the channels change often: a long batch would read many samples repeatedly
        return writer.text(), count, writer.last_ms

    def _dates(self, slots: Sequence[Slot]) -> tuple[list[int], str]:
        """Return the times of the first samples, up to a change of the clock flag, and that flag."""
        if all(map(_CLOCK_SET, slots)):
            return [slot.wall_ms for slot in slots], ""
        dated = map(self._dated, slots)  # once per sample, because the clock can be set in the meantime
        first_ms, flag = next(dated)
        return [first_ms, *[time_ms for time_ms, _ in takewhile(lambda entry: entry[1] == flag, dated)]], flag

    def _damaged(self, run: SeqRange, first: int, slots: Sequence[Slot | None]) -> OutgoingBatch | OutgoingGap | None:
        now = self._outbox.run_of(run.epoch)
        if now is None or now.first > first:
            return self.next()  # the sample was overwritten while it was read, and `runs` no longer contains it
        damaged = next((k for k, slot in enumerate(slots) if slot is not None), len(slots))
        return self._gap(run, first, first + damaged - 1, 0, "damaged")

    def _dated(self, slot: Slot) -> tuple[int, str]:
        """Return the best known time of a sample, and the flag that shows its source: "", "server" or "unset"."""
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
