"""Plan of a commit: what is new in the waiting batches, which acknowledgements are due, which batches are rejected.

No I/O but that of `admitted`, no clock, no thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.errors import BeyondLimit, Unexpected, WireError, detach
from pigeonpost.storage.models import NOTHING, EpochCommit, HighWaterMark
from protocol import Batch, Gap

# Takes a batch, the number of its samples that are stored already, and whether its epoch is new; returns what is to be
# stored of it, and the units. Raises BeyondLimit.
Admitted = Callable[[Batch, int, bool], tuple[Sequence[Batch], Mapping[str, str]]]


class CommitPlan(NamedTuple):
    """The result of plan_commit.

    epoch_commits     what is new, one for each epoch
    acknowledgements  Batch.on_committed and epoch, to the sequence number up to which the epoch is durable then
    rejections        batches that would leave a hole, or pass a limit
    """

    epoch_commits: Sequence[EpochCommit]
    acknowledgements: Mapping[tuple[Callable[[str, int], Any], str], int]
    rejections: Sequence[tuple[Batch, WireError]]


def outbox_of(batch: Batch) -> tuple[str, str]:
    """Return the node and its outbox."""
    return batch.node, batch.outbox


def plan_commit(
    batches: Iterable[Batch],
    marks: Mapping[tuple[str, str], HighWaterMark],
    tops: Mapping[tuple[str, str], int],
    admitted: Admitted,
) -> CommitPlan:
    """Compare `batches`, in their order, with what is stored.

    marks     node and epoch, to what is stored of it
    tops      node and outbox, to its highest running number stored; for outboxes with a gap that counts earlier epochs
    admitted  what the limits leave of a batch: NodeLimits.admitted
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
            of_outbox = [
                other.top for other in epoch_commits.values() if (other.node, other.outbox) == outbox_of(batch)
            ]
            is_known = key in marks or bool(epoch_commit.items)
            batch = _without_counted(batch, batch.gap, max(tops[outbox_of(batch)], *of_outbox), is_known)
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
    """Number the samples of a client that sends no sequence numbers."""
    if batch.samples is None or batch.samples.seq:
        return batch
    return batch._replace(samples=batch.samples.numbered(mark.seq + 1))


def _without_counted(batch: Batch, gap: Gap, top: int, is_known: bool) -> Batch:
    """Reduce the samples of earlier epochs in a gap to those that are not accounted for: numbers above `top`.

    The node counts from what was durable when the session began. Since then more may have been stored, or the same gap.
    Where numbers are not sent, earlier epochs are counted with the first item of an epoch only (`is_known`: it came).
    """
    left = (0 if is_known else gap.before) if batch.base is None else max(0, batch.base - top)
    return batch._replace(gap=gap._replace(before=min(gap.before, left)))
