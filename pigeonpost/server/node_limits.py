"""Limits of what one node may store: channels, texts, gaps and epochs. They are checked directly before each commit.

The limits apply to all transports. Only the Ingestor's writer thread uses this module.
Errors: BeyondLimit if nothing of a batch can be stored; those of the store.

Clients choose the names of channels, the sizes of gaps and the ids of epochs, so the server must limit them. Each
stored channel name takes memory on the server and space on its pages. The total size of all gaps must remain a number
that all programs can process.

A sample that exceeds a limit of channels is stored without its surplus values, and its `errors` state this. If no
values remain, a gap with the reason `refused` is stored instead. Both are acknowledged: if the batch were rejected, the
node would send it again and again, and could never deliver its later samples. Batches that exceed one of the other
limits are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pigeonpost.core.errors import BeyondLimit
from pigeonpost.core.format import counted
from pigeonpost.link.samples import Gap, Number, SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import NodeUsage
from protocol import LONGEST_WHY, Batch

LARGEST_GAP = 10**12  # samples in one gap, including those of earlier epochs
MOST_MISSING = 10**15  # samples in all gaps of a node: 100 samples per second for 300,000 years
MOST_GAPS = 100_000  # gaps of a node
# Epochs of a node. An epoch begins when an outbox is created or copied; for older clients, it begins with each run of
# the server.
MOST_EPOCHS = 100_000
MOST_NODES = 10_000  # nodes in a store
CHANNELS_PER_SAMPLE, CHANNELS_PER_NODE = 256, 1024  # defaults of the settings
LONGEST_ERROR = 200  # characters in the text of a sensor error
REFUSED = "refused"  # reason of a gap that replaces samples which exceed a limit

_MOST_KEPT = 65_536  # channel names of all nodes in memory: about 8 MiB


def _plain(text: str, longest: int) -> str:
    """Return an untrusted text as one line of limited length. `verify` relies on this: a CSV row must be one line."""
    return _CONTROL(" ", text[:longest])


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]").sub


class _Node:
    """Cached channels and units of a node."""

    def __init__(self, channels: set[str]) -> None:
        self.channels = channels  # channels that are stored, or will be with this commit
        self.new: list[str] = []  # the channels that the open transaction stores for the first time
        self.received: Mapping[str, str] | None = None  # units in the last batch, as received
        self.units: Mapping[str, str] = {}  # units to store, which are those of admitted channels


class NodeLimits:
    """The limits, and a cache of the channel names of the nodes that sent last.

    Attributes:
        faults: Description of what was refused in the open transaction, by (node, kind of limit).
    """

    def __init__(self, store: Store, per_sample: int = CHANNELS_PER_SAMPLE, per_node: int = CHANNELS_PER_NODE) -> None:
        """Initialise the limits.

        Args:
            store: The store.
            per_sample: Maximum number of channels in a sample.
            per_node: Maximum number of channels that a node may ever have.
        """
        self._store = store
        self._per_sample, self._per_node = per_sample, per_node
        self._nodes: dict[str, _Node] = {}  # in the order of their last batch, the oldest first
        self._kept = 0  # number of names in the cache
        # State of the open transaction:
        self._usage: dict[str, NodeUsage] = {}  # usage by node, including what the transaction adds
        self._new_nodes = 0  # number of new nodes
        self._grown: list[_Node] = []  # nodes with new channels
        self.faults: dict[tuple[str, str], str] = {}

    def begin(self) -> None:
        """Record that a transaction begins."""
        for node in self._grown:
            node.new.clear()
        while self._kept > _MOST_KEPT:
            self._drop(next(iter(self._nodes)))
        self._usage, self._new_nodes, self._grown, self.faults = {}, 0, [], {}

    def undo(self, nodes: Iterable[str]) -> None:
        """Discard what was counted for `nodes` in a transaction that was rolled back."""
        for name in nodes:
            self._drop(name)

    def admitted(self, batch: Batch, known: int, is_new_epoch: bool) -> tuple[Sequence[Batch], Mapping[str, str]]:
        """Apply the limits to a batch.

        Args:
            batch: The batch.
            known: Number of its samples, or of the samples in its gap, that are stored already.
            is_new_epoch: True if neither the store nor this commit contains its epoch.

        Returns:
            The batches to store, in order, in which gaps replace refused samples; and the units to store.

        Raises:
            BeyondLimit: Nothing of the batch can be stored.
        """
        node = self._node(batch.node)
        pieces: Sequence[Batch] = ()
        gaps: Sequence[Gap] = ()
        new = 0
        if batch.gap is not None:
            gaps = [batch.gap._replace(why=_plain(batch.gap.why, LONGEST_WHY))]
            pieces = [batch._replace(gap=gaps[0])]
            new = max(0, batch.gap.last - batch.gap.first + 1 - known) + batch.gap.before
        elif batch.samples is not None:
            samples = batch.samples.part(known) if known else batch.samples
            names = samples.values.keys()
            if len(names) > self._per_sample or samples.errors or not names <= node.channels:
                pieces = [self._limited(batch, samples, node)]
            else:
                pieces = [batch._replace(samples=samples) if known else batch]
            gaps = [piece.gap for piece in pieces if piece.gap is not None]
            new = sum(gap.last - gap.first + 1 for gap in gaps)
        if gaps or is_new_epoch:
            self._count(batch.node, int(is_new_epoch), len(gaps), new)
        return pieces, self._units(node, batch)

    # --------------------------------------------------------------------------------------------- channels

    def _node(self, name: str) -> _Node:
        node = self._nodes.pop(name, None)
        if node is None:
            node = _Node(self._store.channels(name, self._per_node))
            self._kept += len(node.channels)
        self._nodes[name] = node
        return node

    def _drop(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is not None:
            self._kept -= len(node.channels)

    def _admit(self, node: _Node, name: str) -> bool:
        """Return True if `name` is a channel of the node or can be added to its channels."""
        if name not in node.channels:
            if len(node.channels) >= self._per_node:
                return False
            node.channels.add(name)
            node.new.append(name)
            node.received = None
            self._grown.append(node)
            self._kept += 1
        return True

    def _limited(self, batch: Batch, samples: SampleBatch, node: _Node) -> Batch:
        """Return samples without the channels that exceed a limit, or a gap if no channels remain."""
        kept: dict[str, list[Number | None]] = {}
        surplus = why = ""
        for channel, column in samples.values.items():
            if len(kept) >= self._per_sample:
                limit = f"a sample can have at most {self._per_sample} channels ([store] channels_per_sample)"
            elif not self._admit(node, channel):
                limit = f"a node can ever have at most {self._per_node} channels ([store] channels_per_node)"
            else:
                kept[channel] = column
                continue
            surplus, why = surplus or channel, why or limit
        errors = {
            channel: {place: _plain(text, LONGEST_ERROR) for place, text in texts.items()}
            for channel, texts in samples.errors.items()
            if channel in kept
        }
        if surplus:
            count = len(samples.values) - len(kept)
            others = f", like {counted(count - 1, 'other channel')}" if count > 1 else ""
            text = f"not stored{others}: {why}"
            errors[surplus] = dict.fromkeys(range(len(samples)), text)
            self.faults[batch.node, "channels"] = (
                f"sends too many channels: {counted(count, 'value')} of sample {samples.seq} not stored: {why}"
            )
        if not kept:
            return batch._replace(samples=None, gap=Gap(samples.seq, samples.last, 0, REFUSED))
        return batch._replace(samples=SampleBatch(samples.seq, samples.times, samples.ups, kept, errors, samples.clock))

    def _units(self, node: _Node, batch: Batch) -> Mapping[str, str]:
        """Return the units to store for a node. New channels without a unit are included.

        The same mapping object is returned until something changes, so a store can detect that it has stored it.
        """
        # Push clients send an equal, but different object with each batch.
        if node.received is not batch.units and node.received != batch.units:
            units = {name: unit for name, unit in batch.units.items() if self._admit(node, name)}
            node.units = {name: "" for name in node.new if name not in units} | units
            node.received = batch.units
        return node.units

    # ---------------------------------------------------------------------------------- gaps, epochs and nodes

    def _count(self, name: str, epochs: int, gaps: int, missing: int) -> None:
        """Count what a batch adds to its node. Raise BeyondLimit if that exceeds a limit."""
        stored = self._usage.get(name) or self._store.usage(name)
        is_new = not stored.epochs
        total = NodeUsage(stored.nodes, stored.epochs + epochs, stored.gaps + gaps, stored.missing + missing)
        if is_new and stored.nodes + self._new_nodes >= MOST_NODES:
            kind, text = "nodes", f"the store has {MOST_NODES:,} nodes already, which is the maximum"
        elif epochs and total.epochs > MOST_EPOCHS:
            kind, text = "epochs", f"a node can have at most {MOST_EPOCHS:,} epochs"
        elif gaps and total.gaps > MOST_GAPS:
            kind, text = "gaps", f"a node can have at most {MOST_GAPS:,} gaps"
        elif missing > LARGEST_GAP:
            kind, text = "gaps", f"a gap can have at most {LARGEST_GAP:,} samples, not {missing:,}"
        elif missing and total.missing > MOST_MISSING:
            kind, text = (
                "gaps",
                f"the gaps of a node can have at most {MOST_MISSING:,} samples in total, not {total.missing:,}",
            )
        else:
            self._usage[name] = total
            self._new_nodes += is_new
            return
        self.faults[name, kind] = f"its samples are refused: {text}"
        raise BeyondLimit(text)
