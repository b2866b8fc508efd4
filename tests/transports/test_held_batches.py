"""Batches that are held while the Ingestor has no capacity."""

import unittest
from types import SimpleNamespace

from pigeonpost.link.samples import SampleBatch
from pigeonpost.transports.held_batches import HeldBatches
from protocol import Batch
from tests.support import EPOCH, FakeLedger

A, B, C, D = [SimpleNamespace(weight=weight) for weight in (3, 5, 1, 1)]


class Room(FakeLedger):
    """Ingestor with capacity for a given number of batches."""

    def __init__(self, room):
        super().__init__()
        self.room, self.taken = room, []

    def submit(self, batch, urgent=False, limit_s=None):
        if limit_s != 0.0:
            raise AssertionError("it would wait")
        if len(self.taken) < self.room:
            self.taken.append(batch)
            return True
        return False


class Held(unittest.TestCase):
    def test_batches_are_not_held_while_there_is_capacity(self):
        ledger = Room(2)
        held = HeldBatches(ledger)
        for batch in A, B:
            held.submit(batch)
        self.assertEqual((held.count, ledger.taken), (0, [A, B]))
        held.hand_on()
        self.assertEqual((held.count, ledger.taken), (0, [A, B]))

    def test_held_batches_are_submitted_once_and_in_order(self):
        ledger = Room(1)
        held = HeldBatches(ledger)
        for batch in A, B, C:
            held.submit(batch)
        held.hand_on()
        self.assertEqual((held.count, ledger.taken), (6, [A]))
        ledger.room = 2
        held.hand_on()
        self.assertEqual((held.count, ledger.taken), (1, [A, B]))
        ledger.room = 9
        held.submit(D)  # there is capacity, but earlier batches come first
        self.assertEqual((held.count, ledger.taken), (2, [A, B]))
        held.hand_on()
        self.assertEqual((held.count, ledger.taken), (0, [A, B, C, D]))

    def test_samples_with_many_values_count_as_several(self):
        ledger = Room(0)
        held = HeldBatches(ledger)
        samples = SampleBatch(1, [0, 0], [0, 0], {f"n{k}": [1, 2] for k in range(400)})
        held.submit(Batch("basement", "0b" * 8, EPOCH, 0, samples, None, {}))
        self.assertEqual(held.count, 200)
        ledger.room = 1
        held.hand_on()
        self.assertEqual(held.count, 0)


if __name__ == "__main__":
    unittest.main()
