"""A write of the ring file torn at every byte by a power cut, in a real file: a sample is complete or absent.

Also single bytes changed later: a sample is complete, or a gap reports that it is damaged.
"""

import contextlib
import os
import tempfile
import unittest

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.data_folder import OUTBOX
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.node.send_cursor import OutgoingBatch, SendCursor
from tests.faults.house import DISK
from tests.support import LONG

SLOTS, SLOT_BYTES = 8, 128
SLOTS_AT, STATES_AT, MARK = 12_288, (4_096, 8_192), 28
BOOT, EPOCH, LATER = "00000000000000b0", "00000000000000e1", "00000000000000e2"


def taken(value):
    return UnnumberedSample(1_795_000_000_000 + value, value, True, {"x": value, "y": value / 7}, {})


class RingCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=DISK)
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.path = os.path.join(folder.name, OUTBOX)

    def ring(self):
        return Ring(self.folder, SLOTS, SLOT_BYTES)

    def content(self):
        with open(self.path, "rb") as file:
            return file.read()

    def put(self, content):
        with open(self.path, "wb") as file:
            file.write(content)


class Torn(RingCase):
    def mixtures(self, old, new, at, size):
        """Yield every file in which a write of `size` bytes at `at` reached the disk in part.

        Its beginning, or its end.
        """
        for cut in range(size + 1):
            middle = at + cut
            yield f"the first {cut} bytes are new", new[:middle] + old[middle:]
            yield f"the first {cut} bytes are old", old[:middle] + new[middle:]

    def samples(self, ring):
        """Return running number to value of all samples that the ring file returns."""
        found = {}
        for run in ring.runs:
            for number in range(run.number, run.last_number + 1):
                slot = ring.read(number, 1)[0]
                if slot is not None:
                    self.assertEqual(slot.body, f'"values":{{"x":{slot.up_ms},"y":{slot.up_ms / 7}}}')
                    found[number] = slot.up_ms
        return found

    def tear(self, count):
        """Write `count` samples, tear the write of one more at every byte, and check the result."""
        ring = self.ring()
        ring.append(EPOCH, 1, BOOT, [taken(value) for value in range(1, min(count, SLOTS) + 1)])
        for value in range(SLOTS + 1, count + 1):
            ring.append(EPOCH, value, BOOT, [taken(value)])
        old, before = self.content(), self.samples(ring)
        ring.append(EPOCH, count + 1, BOOT, [taken(count + 1)])
        new, after = self.content(), self.samples(ring)
        ring.close()
        kept = {number: value for number, value in after.items() if number <= count}
        at = SLOTS_AT + (count + 1) % SLOTS * SLOT_BYTES - MARK
        for how, content in self.mixtures(old, new, at, SLOT_BYTES):
            with self.subTest(how, count=count):
                self.put(content)
                ring = self.ring()
                slot = content[at + MARK : at + SLOT_BYTES]
                has_mark = content[at : at + MARK] == new[at : at + MARK]
                if slot == new[at + MARK : at + SLOT_BYTES]:
                    expected = after
                elif slot == old[at + MARK : at + SLOT_BYTES] and not has_mark:
                    expected = before
                else:
                    expected = kept
                self.assertEqual(self.samples(ring), expected)
                self.assertEqual(ring.last, count + (expected is after or has_mark))
                number = ring.last + 1
                ring.append(LATER, 1, BOOT, [taken(1000)])
                ring.close()
                ring = self.ring()
                self.assertEqual(ring.last, number)
                self.assertEqual(self.samples(ring)[number], 1000)
                ring.close()

    def test_a_slot_that_was_empty(self):
        self.tear(3)

    def test_a_slot_that_held_an_older_sample(self):
        self.tear(13)

    def test_the_first_and_the_last_slot_of_the_file(self):
        self.tear(15)
        os.remove(self.path)
        self.tear(14)

    def test_the_state(self):
        """A torn state is the one before or the new one, in either of its two copies."""
        for times in (1, 2):
            ring = self.ring()
            ring.append(EPOCH, 1, BOOT, [taken(1)])
            for time in range(times):
                ring.change_state(on=bool(time % 2), forks=[])
            old, state = self.content(), dict(ring.state)
            ring.change_state(on=not state["on"], forks=[[1, 1, LATER]])
            new, changed = self.content(), dict(ring.state)
            ring.close()
            at = STATES_AT[times % 2]
            for how, content in self.mixtures(old, new, at, 100):
                with self.subTest(how, times=times):
                    self.put(content)
                    ring = self.ring()
                    whole = {old: [state], new: [changed]}
                    self.assertIn(ring.state, whole.get(content, [state, changed]))
                    self.assertEqual(ring.runs[0].epoch, ring.state["forks"][0][2] if ring.state["forks"] else EPOCH)
                    ring.change_state(on=True)
                    ring.close()
                    ring = self.ring()
                    self.assertTrue(ring.state["on"])
                    ring.close()
            os.remove(self.path)


class Rotten(RingCase):
    """Single bytes of a real file changed, and the real outbox started on it: every missing sample is reported."""

    def numbers_told(self):
        """Return what an outbox that starts on the file would send to an empty server: samples and gaps."""
        ring = self.ring()
        cursor = SendCursor(Outbox(ring, BOOT), FakeClock())
        cursor.begin(0, {})
        sent, damaged, other = set(), set(), set()
        while piece := cursor.next():
            if isinstance(piece, OutgoingBatch):
                sent |= set(range(piece.number, piece.number + piece.sample_count))
                continue
            lost = range(piece.number - piece.before, piece.number + piece.last - piece.first + 1)
            (damaged if piece.why == "damaged" else other).update(lost)
        ring.close()
        return sent, damaged, other

    def test_any_byte_of_the_newest_slots_and_of_the_header(self):
        step = 1 if LONG else 7
        for count in (5, 15, 16, 21):
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.path)
            ring = self.ring()
            for value in range(1, count + 1):
                epoch, first = (
                    (EPOCH, 0) if value < count else (LATER, count - 1)
                )  # the newest sample is the only one of its epoch
                ring.append(epoch, value - first, BOOT, [taken(value)])
            ring.close()
            whole = self.content()
            oldest = max(1, count - SLOTS + 1)
            slots = [SLOTS_AT + number % SLOTS * SLOT_BYTES for number in range(count - 2, count + 1)]
            for start in [0, *slots]:
                for at in range(start, start + (28 if start == 0 else SLOT_BYTES), step):
                    with self.subTest(count=count, at=at):
                        self.put(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
                        with self.assertLogs("pigeonpost.node", "ERROR") if start == 0 else contextlib.nullcontext():
                            sent, damaged, other = self.numbers_told()
                        self.assertEqual(sent | damaged, set(range(oldest, count + 1)))
                        self.assertEqual((sent & damaged, other), (set(), set(range(1, oldest))))
                        is_slot = start and at < start + SLOT_BYTES - MARK
                        self.assertEqual(damaged, {count - 2 + slots.index(start)} if is_slot else set())


if __name__ == "__main__":
    unittest.main()
