"""Limits of what one node may store: channels, texts, gaps and epochs; for all transports, right before the commit.

Belongs to the Ingestor's writer thread. Errors: BeyondLimit for a batch of which nothing is stored; those of the store.

Clients choose the names of channels, the numbers in gaps and the ids of epochs. Each name that was ever stored takes
memory on the server and a place on its pages, and a sum of gaps has to stay a number that programs can take. So a
sample over a limit is stored without its surplus values and says so in `errors`; of samples that have nothing else a
gap with the reason `refused` is stored, so that the node goes on. A node that is over another limit is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pigeonpost.core.errors import BeyondLimit
from pigeonpost.link.samples import Gap, Number, SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import NodeUsage
from protocol import LONGEST_WHY, Batch

LARGEST_GAP = 10**12  # samples in a gap, those of earlier epochs included,
MOST_MISSING = 10**15  # and in all gaps of a node: a hundred a second for 300,000 years
MOST_GAPS = 100_000  # of a node
MOST_EPOCHS = 100_000  # of a node: one begins when an outbox is made, or copied, and with each run for older clients
MOST_NODES = 10_000  # in a store
CHANNELS_PER_SAMPLE, CHANNELS_PER_NODE = 256, 1024  # the defaults of the settings
LONGEST_ERROR = 200  # characters of why a sensor failed
REFUSED = "refused"  # the reason of a gap of samples that are over a limit

_MOST_KEPT = 65_536  # names in memory, of all nodes together: about 8 MiB


def _plain(text: str, longest: int) -> str:
    """Return an untrusted text in one line, cut: a row of the CSV log is one line, which `verify` relies on."""
    return _CONTROL(" ", text[:longest])


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]").sub


class _Node:
    """What is remembered of a node."""

    def __init__(self, channels: set[str]) -> None:
        self.channels = channels  # that are stored, or will be with this commit
        self.new: list[str] = []  # of them, those that the open transaction is the first to store
        self.told: Mapping[str, str] | None = None  # the units of its last batch, as they came,
        self.units: Mapping[str, str] = {}  # and those that are stored of them


class NodeLimits:
    """The limits, and the names of the channels of the nodes that were last heard of."""

    def __init__(self, store: Store, per_sample: int = CHANNELS_PER_SAMPLE, per_node: int = CHANNELS_PER_NODE) -> None:
        """
        per_sample  channels in a sample
        per_node    channels of a node in its life
        """
        self._store = store
        self._per_sample, self._per_node = per_sample, per_node
        self._nodes: dict[str, _Node] = {}  # the one that was heard of longest ago first
        self._kept = 0  # names in them
        # In the open transaction:
        self._usage: dict[str, NodeUsage] = {}  # what is stored of a node, with what is added
        self._made = 0  # new nodes
        self._grown: list[_Node] = []  # nodes with new channels
        self.faults: dict[tuple[str, str], str] = {}  # node and kind of limit to what was refused

    def begin(self) -> None:
        """Note that a transaction begins."""
        for node in self._grown:
            node.new.clear()
        while self._kept > _MOST_KEPT:
            self._forget(next(iter(self._nodes)))
        self._usage, self._made, self._grown, self.faults = {}, 0, [], {}

    def undo(self, nodes: Iterable[str]) -> None:
        """Forget what was counted of these nodes in a transaction that was rolled back."""
        for name in nodes:
            self._forget(name)

    def admitted(self, batch: Batch, known: int, is_new_epoch: bool) -> tuple[Sequence[Batch], Mapping[str, str]]:
        """Return what is to be stored of a batch, in its order: samples, and gaps for those refused; and the units.

        known         so many of its samples, or of its gap, are stored already
        is_new_epoch  the store has no mark of its epoch, and this commit nothing of it yet

        Raises BeyondLimit when it cannot be stored at all.
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
                pieces = [self._within(batch, samples, node)]
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

    def _forget(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is not None:
            self._kept -= len(node.channels)

    def _admit(self, node: _Node, name: str) -> bool:
        """Return True if `name` is a channel of the node, or becomes one."""
        if name not in node.channels:
            if len(node.channels) >= self._per_node:
                return False
            node.channels.add(name)
            node.new.append(name)
            node.told = None
            self._grown.append(node)
            self._kept += 1
        return True

    def _within(self, batch: Batch, samples: SampleBatch, node: _Node) -> Batch:
        """Return samples without their channels that are over a limit; a gap if there are no others."""
        kept: dict[str, list[Number | None]] = {}
        surplus = why = ""
        for channel, column in samples.values.items():
            if len(kept) >= self._per_sample:
                limit = f"a sample has {self._per_sample} channels at most ([store] channels_per_sample)"
            elif not self._admit(node, channel):
                limit = f"a node has {self._per_node} channels at most in its life ([store] channels_per_node)"
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
            text = f"not stored{f', as {count - 1} others' if count > 1 else ''}: {why}"
            errors[surplus] = dict.fromkeys(range(len(samples)), text)
            self.faults[batch.node, "channels"] = (
                f"sends too many channels: of sample {samples.seq}, {count} values were not stored: {why}"
            )
        if not kept:
            return batch._replace(samples=None, gap=Gap(samples.seq, samples.last, 0, REFUSED))
        return batch._replace(samples=SampleBatch(samples.seq, samples.times, samples.ups, kept, errors, samples.clock))

    def _units(self, node: _Node, batch: Batch) -> Mapping[str, str]:
        """Return the units of the channels of a node that are to be stored: also of new ones that it tells no unit of.

        The same mapping as long as nothing has changed, by which a store knows that it has them.
        """
        if node.told is not batch.units and node.told != batch.units:  # clients that push tell them with each batch
            units = {name: unit for name, unit in batch.units.items() if self._admit(node, name)}
            node.units = {name: "" for name in node.new if name not in units} | units
            node.told = batch.units
        return node.units

    # ---------------------------------------------------------------------------------- gaps, epochs and nodes

    def _count(self, name: str, epochs: int, gaps: int, missing: int) -> None:
        """Count what a batch adds to its node. Raises BeyondLimit."""
        stored = self._usage.get(name) or self._store.usage(name)
        is_new = not stored.epochs
        wanted = NodeUsage(stored.nodes, stored.epochs + epochs, stored.gaps + gaps, stored.missing + missing)
        if is_new and stored.nodes + self._made >= MOST_NODES:
            kind, text = "nodes", f"the store has {MOST_NODES:,} nodes, and takes no further one"
        elif epochs and wanted.epochs > MOST_EPOCHS:
            kind, text = "epochs", f"a node has {MOST_EPOCHS:,} epochs at most"
        elif gaps and wanted.gaps > MOST_GAPS:
            kind, text = "gaps", f"a node has {MOST_GAPS:,} gaps at most"
        elif missing > LARGEST_GAP:
            kind, text = "gaps", f"a gap is of {LARGEST_GAP:,} samples at most, not of {missing:,}"
        elif missing and wanted.missing > MOST_MISSING:
            kind, text = (
                "gaps",
                f"the gaps of a node are of {MOST_MISSING:,} samples at most, not of {wanted.missing:,}",
            )
        else:
            self._usage[name] = wanted
            self._made += is_new
            return
        self.faults[name, kind] = f"its samples are refused: {text}"
        raise BeyondLimit(text)
