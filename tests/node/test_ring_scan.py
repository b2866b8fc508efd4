"""Tests of reading several slots at once: undamaged, damaged, torn, and of another outbox."""

import random
import unittest

from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_scan import get_slots, read_slot
from tests.support import MemoryDisk, taken


class Slots(unittest.TestCase):
    def setUp(self):
        self.disk = MemoryDisk()
        self.ring = Ring("/data", 32, 128, self.disk)
        for number in range(1, 25):  # some samples need the space of the next mark
            values = {"a": number / 7, "b": number / 9} if number % 3 == 0 else {"a": number}
            self.ring.append("e" * 16, number, "b" * 16, [taken(values=values)])

    def each(self, block, number):
        size = self.ring.slot_bytes
        return [
            read_slot(block[at : at + size], number + at // size, self.ring._tag) for at in range(0, len(block), size)
        ]

    def test_get_slots_returns_the_same_as_read_slot(self):
        size = self.ring.slot_bytes
        whole = self.ring._read(20 * size, self.ring._position(3))
        self.assertNotIn(None, get_slots(whole, 3, self.ring._header))
        self.assertEqual(
            len({bool(whole[at + 52] & 2) for at in range(0, len(whole), size)}), 2
        )  # with and without marks
        found = {True: 0, False: 0}
        for seed in range(100):
            chance = random.Random(f"block {seed}")
            block = bytearray(whole)
            for _ in range(chance.choice((0, 1, 5, 20))):
                block[chance.randrange(len(block))] ^= 1 << chance.randrange(8)
            expected = self.each(bytes(block), 3)
            self.assertEqual(get_slots(bytes(block), 3, self.ring._header), expected, f"seed {seed}")
            for slot in expected:
                found[slot is None] += 1
        self.assertTrue(min(found.values()) > 50, found)

    def test_slots_with_other_numbers_or_of_another_outbox_are_none(self):
        block = self.ring._read(20 * self.ring.slot_bytes, self.ring._position(3))
        self.assertEqual(get_slots(block, 4, self.ring._header), [None] * 20)
        other = self.ring._header._replace(identity=self.ring._header.identity ^ 1)
        with_tag = [slot is None for slot in get_slots(block, 3, other)]
        self.assertEqual(with_tag, [bool(block[at + 52] & 2) for at in range(0, len(block), self.ring.slot_bytes)])

    def test_truncated_slots_are_read_as_damaged(self):
        """The file is truncated while the outbox is open."""
        before = self.ring.read(1, 24)
        content = self.disk.names["/data/outbox.ring"].seen
        del content[self.ring._position(20) + 60 :]
        self.assertEqual(self.ring.read(1, 24), [*before[:19], *[None] * 5])


if __name__ == "__main__":
    unittest.main()
