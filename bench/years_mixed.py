"""Builder of a store with the samples of years: live and late samples mixed, some of them sent twice, with checksums.

All samples pass through the server's Ingestor and maintenance, with a simulated clock. Duplicates are discarded at the
high-water mark, and past hours are compacted to chunks and rollups. Only the CSV log is not written (6 GB for 100
million readings).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import Number, SampleBatch
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.storage.models import HOUR_MS, LogMark, stretches
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Gap

NODES, EVERY_MS, DAY_MS = 10, 10_000, 86_400_000
OF_HOUR = HOUR_MS // EVERY_MS
UNITS = {"temperature": "°C", "light": "counts"}
_TEMPERATURES: list[Number | None] = [*(20 + k / 100 for k in range(1000))] * 6
_LIGHTS: list[Number | None] = [*range(1024)] * 6
_LINE = 4096  # samples per line of a node that reconnects
_LOOK_HOURS = 6  # interval of the maintenance


class Direct:
    """Replaces the Ingestor's writer thread: runs the jobs of a MaintenanceWorker on `store` in the calling thread."""

    is_catching_up = False

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def run(self, job: Callable[[], Any], limit_s: float) -> Any:
        """Run `job` in a transaction and return its result; `limit_s` is not used."""
        with self._store.writing(()):
            return job()


class NoLog:
    """Replaces the CSV log, and reports everything as written.

    Args:
        filed: The filing number up to which everything is written.
    """

    def __init__(self, filed: int) -> None:
        """Start with everything up to the filing number `filed` written."""
        self._filed = filed

    def due(self) -> LogMark:
        """Return the log mark that the next transaction records."""
        return LogMark("none.csv", 1, 0, self._filed)

    def add(self, *_: object) -> None:
        """Accept stored samples."""

    def flush(self, filed: int) -> None:
        """Record that everything up to the filing number `filed` is written."""
        self._filed = filed


class Sums:
    """Number of samples, and the sums of times (ms), hundredths of a degree, and light, by node and day (UTC)."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], array[int]] = {}

    def add(self, node: str, batch: SampleBatch) -> None:
        """Add the samples of `batch` of `node`."""
        for part in stretches(batch):  # parts within one hour
            day = self.found.setdefault((node, part.times[0] // DAY_MS), array("q", [0] * 4))
            day[0] += len(part)
            day[1] += sum(part.times)
            day[2] += round(100 * sum(part.values["temperature"]))  # type: ignore[arg-type]
            day[3] += sum(part.values["light"])  # type: ignore[arg-type]


class Card:
    """Samples of one epoch that a node has taken and not yet sent."""

    def __init__(self, node: str, number: int) -> None:
        self.node, self.epoch = node, f"{int(node[1:]):08x}{number:08x}"
        self.seq = 0
        self.held: list[SampleBatch] = []

    def take(self, from_ms: int, count: int) -> SampleBatch:
        """Take `count` samples from `from_ms` on, each a few ms late, and return them."""
        first, self.seq = self.seq + 1, self.seq + count
        batch = SampleBatch(
            first, [from_ms + k * EVERY_MS + (first + k) * 7919 % 5 for k in range(count)], list(range(count)),
            {"temperature": _TEMPERATURES[first % 1000 :][:count], "light": _LIGHTS[first % 1024 :][:count]},
        )  # fmt: skip
        self.held.append(batch)
        return batch

    def to_send(self) -> Iterator[Batch]:
        """Yield all held samples as batches of one line each. Some samples are sent twice."""
        while self.held:
            line = self.held.pop(0).part(0)
            while self.held and len(line) + len(self.held[0]) <= _LINE:
                line.extend(self.held.pop(0))
            batch = Batch(self.node, self.epoch, self.epoch, 0, line, None, UNITS)
            yield batch
            if line.seq // 60 % 7 == 0:
                yield batch
            elif line.seq // 60 % 7 == 1:
                yield batch._replace(samples=line.part(len(line) // 2))

    def lose(self, count: int) -> Batch:
        """Return a batch that reports the next `count` samples as a gap."""
        first, self.seq = self.seq + 1, self.seq + count
        return Batch(self.node, self.epoch, self.epoch, 0, None, Gap(first, self.seq, 0, "overwritten"), UNITS)


class Builder:
    """Ten nodes that take and send samples hour by hour.

    Five nodes are always connected. Three nodes are disconnected for three of ten days. The clock of one node is set
    back by an hour each week. The card of the last node is replaced each month, and the old card is read twenty days
    later.
    """

    def __init__(self, store: SqliteStore, from_ms: int) -> None:
        self.sums, self.clock = Sums(), FakeClock(from_ms, from_ms)
        self.samples = 0
        self.reopen(store)
        self._cards = [Card(f"n{k}", 0) for k in range(NODES)]
        self._old: list[tuple[int, Card]] = []  # replaced cards, each with the hour when it is read out

    def reopen(self, store: SqliteStore) -> None:
        """Continue with `store`, opened again."""
        mark = store.log_mark()
        log: Any = NoLog(mark.filed if mark else 0)
        self.ingestor = Ingestor(store, log, self.clock, buffer_samples=1 << 30)
        self.worker = MaintenanceWorker(store, Direct(store), self.clock)

    def hour(self, number: int, parts: int) -> None:
        """Take the samples of hour `number` (since 1970) on all nodes. Connected nodes send them in `parts` commits."""
        begin_ms = self.clock.wall_ms()
        for part in range(parts):
            count = OF_HOUR // parts
            for k, card in enumerate(self._cards):
                at_ms = begin_ms + part * count * EVERY_MS
                if k == 8 and number // 24 % 7 == 0 and number % 24 >= 12:
                    at_ms -= HOUR_MS
                self._took(card, card.take(at_ms, count))
            self.clock.now_ms = begin_ms + (part + 1) * count * EVERY_MS
            for k, card in enumerate(self._cards):
                if not self._is_away(k, number):
                    self._send(card)
            if part == 0:
                self._change_cards(number)
            self.ingestor.commit()

    def finish(self) -> None:
        """Send all held samples."""
        for card in [*self._cards, *(old for _, old in self._old)]:
            self._send(card)
        self._commit()

    def bring(self, card: Card, at_ms: int, count: int) -> None:
        """Deliver `count` samples of `card`, taken from `at_ms` on, now. Then advance the clock by three hours."""
        for start in range(0, count, OF_HOUR):
            self._took(card, card.take(at_ms + start * EVERY_MS, min(OF_HOUR, count - start)))
        self._send(card)
        self._commit()
        self.clock.now_ms += 3 * HOUR_MS

    def maintain(self) -> None:
        """Run the maintenance that is due."""
        while self.worker.work():
            pass

    @staticmethod
    def _is_away(k: int, number: int) -> bool:
        if k == 9:  # the last two days of a card are read out later
            return number % 720 >= 672
        return k in (5, 6, 7) and (number // 24 + 3 * k) % 10 < 3

    def _change_cards(self, number: int) -> None:
        if number % 720 == 719:
            self._old.append((number + 480, self._cards[9]))
            self._cards[9] = Card("n9", number // 720 + 1)
        if self._old and self._old[0][0] <= number:
            self._send(self._old.pop(0)[1])
        if number % 240 == 100:
            self.ingestor.submit(self._cards[0].lose(50))

    def _commit(self) -> None:
        for _ in range(2):  # the second commit records the log's mark of the first
            self.ingestor.commit()

    def _took(self, card: Card, batch: SampleBatch) -> None:
        self.samples += len(batch)
        self.sums.add(card.node, batch)

    def _send(self, card: Card) -> None:
        for batch in card.to_send():
            self.ingestor.submit(batch)


def build_mixed(store: SqliteStore, samples: int, end_ms: int) -> Builder:
    """Fill `store` with `samples` that end at the full hour `end_ms` (ms since 1970); return the builder.

    The last hour has one commit per sample.
    """
    hours = -(-samples // (NODES * OF_HOUR))
    builder = Builder(store, end_ms - hours * HOUR_MS)
    for number in range(hours):
        is_last = number == hours - 1
        builder.hour(number, OF_HOUR if is_last else 60 if number % 24 == 7 else 1)
        if number % _LOOK_HOURS == 0:
            builder.maintain()
    builder.finish()
    builder.maintain()
    return builder
