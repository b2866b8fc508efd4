"""Plan of a commit: the new samples and gaps in the queued batches, the acknowledgements and the rejections.

The calculation is separate from the Ingestor so that it can be tested alone. It uses no clock and no thread, and no I/O
except in `admitted`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.errors import BeyondLimit, Unexpected, WireError, detach
from pigeonpost.storage.models import NOTHING, EpochCommit, HighWaterMark
from protocol import Batch, Gap

# Function that applies the limits. Its arguments are a batch, the number of its samples that are stored already, and
# True if its epoch is new. It returns the batches to store and the units, or raises BeyondLimit.
Admitted = Callable[[Batch, int, bool], tuple[Sequence[Batch], Mapping[str, str]]]


class CommitPlan(NamedTuple):
    """Result of `plan_commit`.

    Attributes:
        epoch_commits: New samples and gaps, one object per epoch.
        acknowledgements: Sequence number up to which an epoch is durable after the commit, by (Batch.on_committed,
            epoch).
        rejections: Batches that would leave a hole or exceed a limit, each with its error.
    """

    epoch_commits: Sequence[EpochCommit]
    acknowledgements: Mapping[tuple[Callable[[str, int], Any], str], int]
    rejections: Sequence[tuple[Batch, WireError]]


def outbox_of(batch: Batch) -> tuple[str, str]:
    """Return the pair (node, outbox) of `batch`."""
    return batch.node, batch.outbox


def plan_commit(
    batches: Iterable[Batch],
    marks: Mapping[tuple[str, str], HighWaterMark],
    tops: Mapping[tuple[str, str], int],
    admitted: Admitted,
) -> CommitPlan:
    """Compare batches with the stored high-water marks, and return the plan of their commit.

    A repeated batch is acknowledged but not stored again: the node may not have received the first acknowledgement.

    Args:
        batches: The batches, in order.
        marks: Stored high-water marks, by (node, epoch).
        tops: Highest stored running number (see Store.marks), by (node, outbox). It is needed for each outbox that has
            a gap which counts samples of earlier epochs.
        admitted: Function that applies the limits: NodeLimits.admitted.
    """
    epoch_commits: dict[tuple[str, str], EpochCommit] = {}
    acknowledgements: dict[tuple[Callable[[str, int], Any], str], int] = {}
    rejections: list[tuple[Batch, WireError]] = []
    for batch in batches:
        key = batch.node, batch.epoch
        epoch_commit = epoch_commits.get(key)
        if epoch_commit is None:
            epoch_commit = epoch_commits[key] = EpochCommit(*outbox_of(batch), batch.epoch, marks.get(key, NOTHING))
        mark = epoch_commit.mark
        batch = _numbered(batch, mark)
        first, last = batch.ends
        if first > mark.seq + 1:
            error = Unexpected(f"sample {mark.seq + 1} of epoch {batch.epoch} comes next, not {first}")
            rejections.append((batch, error))
            continue
        if batch.gap is not None and batch.gap.before:
            new_tops = [other.top for other in epoch_commits.values() if (other.node, other.outbox) == outbox_of(batch)]
            is_known = key in marks or bool(epoch_commit.items)
            batch = _without_counted(batch, batch.gap, max(tops[outbox_of(batch)], *new_tops), is_known)
        if last > mark.seq or (batch.gap is not None and batch.gap.before):
            known = mark.seq + 1 - first
            try:
                pieces, epoch_commit.units = admitted(batch, known, key not in marks and not epoch_commit.items)
            except BeyondLimit as error:
                detach(error)
                rejections.append((batch, error))
                continue
            for piece in pieces:
                epoch_commit.add(piece, known if batch.gap is not None else 0)
        acknowledgements[batch.on_committed, batch.epoch] = last
    return CommitPlan([commit for commit in epoch_commits.values() if commit.items], acknowledgements, rejections)


def _numbered(batch: Batch, mark: HighWaterMark) -> Batch:
    """Assign the next sequence numbers to the samples of a client that sends none."""
    if batch.samples is None or batch.samples.seq:
        return batch
    return batch._replace(samples=batch.samples.numbered(mark.seq + 1))


def _without_counted(batch: Batch, gap: Gap, top: int, is_known: bool) -> Batch:
    """Reduce the number of samples of earlier epochs in a gap to those with running numbers above `top`.

    The node counts the missing samples from the state at the start of the session. Since then, more samples or the same
    gap may have been stored. If the node sends no running numbers, the samples of earlier epochs count only if the gap
    is the first item of its epoch.
    `is_known` is True if the store or this commit contains an item of the epoch.
    """
    left = (0 if is_known else gap.before) if batch.base is None else max(0, batch.base - top)
    return batch._replace(gap=gap._replace(before=min(gap.before, left)))
