"""Damage of a simulated node's card: changed bytes, misdirected writes, a file of an earlier version.

There is one fault at a time, as docs/promise.md assumes. The three records of the newest sample (its slot, its mark,
and the slot that its write went to) are never damaged in more than one place at once. One copy of the header and of the
state stays intact.
"""

from __future__ import annotations

import random

from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_scan import read_slot
from tests.faults.sim_disk import FOLDER
from tests.faults.sim_machines import NodeMachine
from tests.faults.sim_oracle import Oracle
from tests.node.ring_version_1 import as_version_1

PATH = f"{FOLDER}/outbox.ring"


def _slot(node: NodeMachine, number: int) -> bytes:
    """Return the slot as it is on the card, without the program, whose disk may fail in any call."""
    assert node.outbox is not None
    at = _place(node.outbox.ring, number)
    return bytes(node.disk.names[PATH].cache[at : at + node.outbox.ring.slot_bytes])


def _is_whole(node: NodeMachine, number: int) -> bool:
    return read_slot(_slot(node, number), number, b"") is not None


def _has_mark(node: NodeMachine, number: int) -> bool:
    """Return True if the bytes before this slot are its mark. In a file of version 1 they belong to the slot before."""
    assert node.outbox is not None
    return number % node.outbox.ring.slots == 0 or layout.has_mark(_slot(node, number - 1))


def _place(ring: Ring, number: int) -> int:
    return layout.SLOTS_AT + number % ring.slots * ring.slot_bytes


class Damage:
    """The damages of all cards, and their meaning for the oracle."""

    def __init__(self, chance: random.Random, oracle: Oracle) -> None:
        self.chance = chance
        self.oracle = oracle
        self._marks: set[tuple[str, int]] = set()  # card and running number of the sample whose mark is damaged
        self._fragile: dict[str, int] = {}  # card to its newest sample, if only one record of it is intact

    def rot(self, node: NodeMachine) -> str:
        """Change bytes of a running node's file. Returns a description of the damage, empty if nothing was damaged."""
        assert node.outbox is not None
        ring, chance = node.outbox.ring, self.chance
        at, what = chance.choice((*layout.HEADER_AT, *layout.STATE_AT)), ""
        if chance.random() < 0.2:
            what = "header" if at in layout.HEADER_AT else "state"
            if what in node.rotten:  # repaired by the next start or change of the state
                return ""
            node.rotten.add(what)
            self._spoil(node, at, layout.HEADER_BYTES)
            return what
        return self._rot_slot(node, ring)

    def _rot_slot(self, node: NodeMachine, ring: Ring) -> str:
        chance, card, newest = self.chance, ring.identity, ring.last
        if not newest or self._fragile.get(card) == newest or not _is_whole(node, newest):
            return ""
        oldest = max(1, newest - ring.slots + 1)
        number = newest if chance.random() < 0.4 else chance.randrange(oldest, newest + 1)
        at, kind = _place(ring, number), chance.choice(("bits", "bits", "slot", "mark"))
        if kind == "mark":
            if not _has_mark(node, number):
                return ""
            self._marks.add((card, number))
            self._spoil(node, at - layout.MARK_BYTES, layout.MARK_BYTES)
        elif kind == "slot":
            if number == newest and (card, number) in self._marks:
                return ""
            self._spoil(node, at, ring.slot_bytes, junk=True)
            self._marks.add((card, number + 1))
        else:
            if number == newest and (card, number) in self._marks:
                return ""
            self._spoil(node, at, ring.slot_bytes - layout.MARK_BYTES)
        if kind != "mark":
            self.oracle.damaged.add((card, number))
        return f"{'newest ' if number == newest else ''}{'mark' if kind == 'mark' else 'sample'}"

    def _spoil(self, node: NodeMachine, at: int, size: int, junk: bool = False) -> None:
        file, chance = node.disk.names[PATH], self.chance
        places = range(at, at + size) if junk else [at + chance.randrange(size) for _ in range(chance.randrange(1, 4))]
        changed = {place: chance.randrange(1, 256) for place in places}
        for content in (file.cache, file.durable):
            for place, bits in changed.items():
                if place < len(content):
                    content[place] ^= bits

    def write_astray(self, node: NodeMachine) -> bool:
        """Make the next sample go to a wrong slot. Returns True if this was done."""
        node.commit()
        outbox, disk = node.outbox, node.disk
        if outbox is None or not outbox.on or disk.dies_in or disk.fails_in or disk.full:
            return False
        ring = outbox.ring
        card, number = ring.identity, ring.last + 1
        if self._fragile.get(card) == ring.last:
            return False
        # Not the slot of the next batch: if that write is torn, no record of this sample is left.
        step = self.chance.randrange(ring.slots // 2 + 1, ring.slots)
        hit = number + step - ring.slots  # the sample in the wrong slot, if there is one
        node.take(1)
        before = 0 if node.outbox is None else ring.last
        disk.astray = _place(ring, hit + ring.slots) - _place(ring, number)
        self.oracle.damaged |= {(card, number), (card, hit)}
        if not _has_mark(node, hit + ring.slots):
            self.oracle.damaged.add((card, hit - 1))
        self._marks |= {(card, number), (card, hit)}
        self._fragile[card] = number
        node.commit()
        disk.astray = 0
        return ring.last > before

    def make_older(self, node: NodeMachine) -> bool:
        """Replace the file of an ended node by the one that a program of version 1 would have left."""
        outbox, disk = node.outbox, node.disk
        if outbox is None or not outbox.ring.last or "header" in node.rotten or not _is_whole(node, outbox.ring.last):
            return False
        ring = outbox.ring
        node.die(power=False)
        file = disk.names[PATH]
        file.cache[:] = as_version_1(bytes(file.cache))
        file.durable[:], file.pending = file.cache, []
        self._fragile[ring.identity] = ring.last
        self._marks |= {(ring.identity, ring.last), (ring.identity, ring.last + 1)}
        node.rotten.clear()
        return True
