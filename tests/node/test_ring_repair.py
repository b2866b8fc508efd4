"""Tests of damaged outbox files: all readable samples are kept, and the others are known to be missing."""

import contextlib
import errno
import logging
import os
import struct
import unittest
import zlib

from pigeonpost.core.data_folder import OUTBOX
from pigeonpost.core.errors import DiskError
from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import SeqRange
from tests.node.ring_version_1 import as_version_1
from tests.node.test_ring_file import OTHER, PATH, content, fill, open_ring
from tests.support import BOOT, EPOCH, MemoryDisk, taken, temp_folder

SLOT = 128
THIRD = "00000000000000ee"


def place(number, slots=8):
    return layout.SLOTS_AT + number % slots * SLOT


def with_bytes(file, at, data):
    return file[:at] + data + file[at + len(data) :]


class DamagedCase(unittest.TestCase):
    def setUp(self):
        disk = MemoryDisk()
        self.ring = open_ring(disk)
        fill(self.ring, 8)
        fill(self.ring, 3)
        fill(self.ring, 2, OTHER, seq=1)  # 6 to 11 and, of another epoch, 12 and 13
        self.ring.change_state(on=False)
        self.whole, self.samples = disk.content(PATH), content(self.ring)

    def open(self, file):
        """Return the ring after a start with `file`. `self.kept` is then the list of damaged files that were kept."""
        self.disk = MemoryDisk()
        self.disk.lay(PATH, file)
        with self.silence():
            ring = open_ring(self.disk)
        self.kept = [self.disk.content(name) for name in self.disk.names if name.startswith(PATH + ".damaged-")]
        self.assertEqual(set(self.disk.names) - {PATH}, {name for name in self.disk.names if ".damaged-" in name})
        return ring

    def silence(self):
        return self.assertLogs("pigeonpost.node.ring_file", "ERROR") if self.says else self.assertNoLogs()

    says = True

    def assert_goes_on(self, ring, samples):
        """Assert that the ring accepts samples and, when opened again, contains all samples and reports no fault."""
        self.assertEqual(content(ring), samples)
        fill(ring, 1, THIRD, seq=1)
        again = open_ring(self.disk)
        self.assertEqual((content(again), again.faults), (content(ring), []))


class Headers(DamagedCase):
    def assert_repaired(self, file):
        ring = self.open(file)
        self.assertEqual((ring.identity, ring.state), (self.ring.identity, {"on": False, "forks": []}))
        self.assertIn("the header was damaged; it is repaired", ring.faults[0])
        self.assertEqual(self.kept, [])
        self.assertEqual(self.disk.content(PATH), self.whole)
        self.assertEqual(content(ring), self.samples)

    def test_any_damaged_byte_is_repaired_or_marked(self):
        for at in range(layout.HEADER_BYTES):
            for bits in (1, 0xFF):
                self.assert_repaired(with_bytes(self.whole, at, bytes([self.whole[at] ^ bits])))

    def test_completely_damaged_copy_of_the_header_is_repaired(self):
        for at in layout.HEADER_AT:
            for junk in (bytes(28), b"\xff" * 28, self.whole[place(9) : place(9) + 28]):
                self.assert_repaired(with_bytes(self.whole, at, junk))

    def test_damaged_first_block_is_repaired(self):
        for junk in (bytes(4096), os.urandom(4096)):
            ring = self.open(with_bytes(self.whole, 0, junk))
            self.assertEqual(ring.identity, self.ring.identity)
            self.assert_goes_on(ring, self.samples)

    def test_any_damaged_byte_of_a_version_1_header_is_corrected(self):
        old = as_version_1(self.whole)
        for at in range(layout.HEADER_BYTES):
            for bits in (1, 0xFF):
                ring = self.open(with_bytes(old, at, bytes([old[at] ^ bits])))
                self.assertEqual(ring.identity, self.ring.identity)
                self.assertEqual(content(ring), self.samples)
                self.assertIn("the header was damaged; it is repaired", ring.faults[0])

    def test_samples_are_copied_to_a_new_file_if_all_headers_are_damaged(self):
        """The samples are copied to a new file, which has another id and numbers that begin at 1."""
        file = self.whole
        for at in layout.HEADER_AT:
            file = with_bytes(file, at, b"\xff" * 28)
        ring = self.open(file)
        self.assertNotEqual(ring.identity, self.ring.identity)
        self.assertEqual(self.kept, [file])
        self.assertEqual(ring.runs, [SeqRange(EPOCH, 6, 11, 1), SeqRange(OTHER, 1, 2, 7)])
        slots = [ring.read(number, 1)[0] for number in range(1, 9)]
        self.assertEqual([slot.wall_ms for slot in slots], list(range(6, 14)))
        self.assertFalse(ring.state["on"])
        self.assertIn("8 samples could be read and copied", ring.faults[0])
        self.assertIn("control.py read-outbox /card/outbox.ring.damaged-", ring.faults[0])

    def test_new_file_has_enough_slots_although_the_setting_is_lower(self):
        disk = MemoryDisk()
        disk.lay(PATH, bytes(layout.SLOTS_AT) + self.whole[layout.SLOTS_AT :])
        with self.silence():
            ring = open_ring(disk, slots=4)
        self.assertEqual([slot.wall_ms for slot in ring.read(1, 7) + ring.read(8, 1)], list(range(6, 14)))

    def test_samples_are_copied_if_all_headers_and_the_end_are_missing(self):
        file = bytes(layout.SLOTS_AT) + self.whole[layout.SLOTS_AT : place(12)]  # 8 to 11 are left of it
        ring = self.open(file)
        self.assertEqual([slot.wall_ms for slot in ring.read(1, 4)], [8, 9, 10, 11])
        self.assertTrue(ring.state["on"])

    def test_forks_keep_their_samples_in_the_new_file(self):
        disk = MemoryDisk()
        disk.lay(PATH, self.whole)
        open_ring(disk).fork(10, 11, THIRD)
        ring = self.open(bytes(28) + disk.content(PATH)[28:])
        self.assertEqual(ring.runs, open_ring(disk).runs)
        ring = self.open(bytes(28) + with_bytes(disk.content(PATH)[28:], 8128 - 28, bytes(28)).replace(
            layout.pack_header(ring._header), bytes(28)))  # fmt: skip
        self.assertEqual(ring.runs, [SeqRange(EPOCH, 6, 9, 1), SeqRange(THIRD, 1, 2, 5), SeqRange(OTHER, 1, 2, 7)])


class Files(DamagedCase):
    def test_truncated_file_keeps_id_and_numbers(self):
        for length in (
            28,
            100,
            4096,
            5000,
            9000,
            layout.SLOTS_AT,
            place(9),
            place(9) + 5,
            place(12),
            place(15) + 127,
        ):
            with self.subTest(length):
                ring = self.open(self.whole[:length])
                self.assertEqual((ring.identity, ring.slots), (self.ring.identity, 8))
                self.assertEqual(self.kept, [self.whole[:length]])
                self.assertIn("has been truncated", ring.faults[0])
                left = {n: row for n, row in self.samples.items() if place(n) + SLOT <= length}
                self.assert_goes_on(ring, left)

    def test_truncated_file_without_a_header_becomes_a_new_outbox(self):
        for length in (0, 1, 10, 27):
            ring = self.open(self.whole[:length])
            self.assertEqual(self.kept, [self.whole[:length]])
            self.assert_goes_on(ring, {})

    def test_file_that_is_not_an_outbox_is_kept_and_replaced(self):
        for other in (b"\0" * 100_000, b"SQLite format 3\0" + bytes(50_000), os.urandom(20_000)):
            ring = self.open(other)
            self.assertEqual(self.kept, [other])
            self.assertIn("0 samples could be read", ring.faults[0])
            self.assert_goes_on(ring, {})

    def test_newer_version_is_refused_and_not_changed(self):
        head = b"PGNPOST3" + self.whole[12:28]
        file = struct.pack("<I", zlib.crc32(head)) + head + self.whole[28:]
        disk = MemoryDisk()
        disk.lay(PATH, file)
        refusal = r"newer version of this program \(file version 3; this program supports 2\): update"
        with self.assertRaisesRegex(DiskError, refusal):
            open_ring(disk)
        self.assertEqual((disk.content(PATH), list(disk.names)), (file, [PATH]))

    def test_slot_of_another_outbox_is_not_a_sample(self):
        """Its number can match the index of the slot by chance, for example that of a second node on this machine."""
        disk = MemoryDisk()
        other = open_ring(disk)
        fill(other, 8)
        for _ in range(1000):
            fill(other, 1)
        at = place(9)
        self.says = False
        strange = disk.content(PATH)[at - layout.MARK_BYTES : at + SLOT]
        ring = self.open(with_bytes(self.whole, at - layout.MARK_BYTES, strange))
        self.assertEqual((ring.last, ring.runs), (13, self.ring.runs))
        self.assertEqual(content(ring), {n: row for n, row in self.samples.items() if n != 9})

    def test_two_damaged_files_in_one_second_are_both_kept(self):
        self.open(b"one")
        self.disk.lay(PATH, b"two")
        with self.silence():
            open_ring(self.disk)
        kept = {self.disk.content(name) for name in self.disk.names if ".damaged-" in name}
        self.assertEqual(kept, {b"one", b"two"})

    def test_damaged_file_is_replaced_on_a_real_disk(self):
        folder = temp_folder(self)
        path = os.path.join(folder, OUTBOX)
        with open(path, "wb") as file:
            file.write(self.whole[: place(9)])
        with self.silence():
            ring = Ring(folder, 8, SLOT)
        self.assertEqual(sorted(content(ring)), [8])
        ring.close()
        self.assertEqual(len(os.listdir(folder)), 2)

    def test_full_disk_is_reported_with_the_remedy(self):
        for call in range(3, 12):
            disk = MemoryDisk()
            disk.lay(PATH, self.whole[: place(12)])
            disk.die_at(call, OSError(errno.ENOSPC, "No space left on device"))
            with self.assertRaises(DiskError) as caught:
                open_ring(disk)
            self.assertEqual(disk.content(PATH), self.whole[: place(12)])
            if "cannot be created" in str(caught.exception):
                break
        self.assertRegex(
            str(caught.exception), "has been truncated, and a new file .*: No space left on device. Free space"
        )

    def test_disk_that_returns_other_bytes_raises_disk_error(self):
        disk = MemoryDisk()
        pread = disk.pread
        disk.pread = lambda fd, count, at: bytes(len(pread(fd, count, at)))
        with self.assertRaisesRegex(DiskError, "differs from the data just written; the disk is broken"):
            open_ring(disk)

    def test_damaged_file_that_cannot_be_kept_is_not_replaced(self):
        def link(old, new):
            raise OSError(errno.EIO, "Input/output error")

        disk = MemoryDisk()
        disk.lay(PATH, b"junk")
        disk.link = link
        with self.assertRaisesRegex(DiskError, "Input/output error"):
            open_ring(disk)
        self.assertEqual(disk.content(PATH), b"junk")

    def test_no_file_descriptor_is_left_open(self):
        for file in (self.whole, self.whole[: place(9)], bytes(layout.SLOTS_AT) + self.whole[layout.SLOTS_AT :], b""):
            self.says = file != self.whole
            self.open(file).close()
            self.assertEqual(self.disk._open, {})

    def test_damaged_file_is_kept_on_a_file_system_without_links(self):
        def link(old, new):
            raise PermissionError(1, "Operation not permitted")

        disk = MemoryDisk()
        disk.lay(PATH, b"junk")
        disk.link = link
        with self.silence():
            fill(open_ring(disk), 1)
        self.assertEqual(sorted(disk.content(name)[:4] == b"junk" for name in disk.names), [False, True])


class NewestSample(DamagedCase):
    """The newest sample has no successor whose number shows that it existed, but its mark does."""

    says = False

    def rings(self):
        """Yield files whose newest sample is damaged, with their samples: in each slot, alone in its epoch or not."""
        for before in (0, 1, 2, 6, 7, 8, 12, 15):
            for epoch, seq in ((EPOCH, before + 1), (OTHER, 1)):
                disk = MemoryDisk()
                ring = open_ring(disk)
                for _ in range(before):
                    fill(ring, 1)
                fill(ring, 1, epoch, seq=seq)
                yield disk.content(PATH), ring

    def assert_missing(self, file, ring):
        number = ring.last
        opened = self.open(file)
        self.assertEqual((opened.last, opened.runs), (number, ring.runs))
        self.assertEqual(opened.read(number, 1), [None])
        expected = content(ring)
        del expected[number]
        self.assertEqual(content(opened), expected)

    def test_any_damaged_byte_is_repaired_or_marked(self):
        file, ring = list(self.rings())[7]
        at = place(ring.last)
        for byte in range(SLOT - layout.MARK_BYTES):
            self.assert_missing(with_bytes(file, at + byte, bytes([file[at + byte] ^ 0x10])), ring)

    def test_completely_damaged_newest_sample_is_known_to_be_missing(self):
        for file, ring in self.rings():
            at = place(ring.last)
            older = layout.pack_slot((ring.last - 1).to_bytes(8, "little").ljust(60, b"\0"), SLOT, b"tags")
            for junk in (bytes(SLOT), b"\xff" * SLOT, os.urandom(SLOT), older):
                self.assert_missing(with_bytes(file, at, junk), ring)

    def test_damaged_mark_loses_no_sample(self):
        for file, ring in self.rings():
            at = place(ring.last) - layout.MARK_BYTES
            opened = self.open(with_bytes(file, at, os.urandom(layout.MARK_BYTES)))
            self.assertEqual((content(opened), opened.runs), (content(ring), ring.runs))

    def test_completely_damaged_newest_batch_is_known_to_be_missing(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        fill(ring, 5)
        fill(ring, 4)
        file = disk.content(PATH)
        for number in (6, 7, 8, 9):
            file = with_bytes(file, place(number) + 20, b"\xff\xfe\xfd")
        opened = self.open(file)
        self.assertEqual((opened.last, opened.runs, sorted(content(opened))), (9, ring.runs, [2, 3, 4, 5]))

    def test_write_to_a_wrong_slot_shows_that_the_number_was_used(self):
        """Neither the sample nor its mark is in its slot, but the undamaged slot shows that its number was used."""
        disk = MemoryDisk()
        ring = open_ring(disk)
        fill(ring, 5)
        before = disk.content(PATH)
        fill(ring, 1)
        at = place(6) - layout.MARK_BYTES
        moved = with_bytes(before, place(2) - layout.MARK_BYTES, disk.content(PATH)[at : at + SLOT])
        opened = self.open(moved)
        self.assertEqual((opened.last, opened.runs, sorted(content(opened))), (6, ring.runs, [1, 3, 4, 5]))


class OtherSamples(DamagedCase):
    says = False

    def test_any_single_damaged_slot_is_known_to_be_missing(self):
        for number in self.samples:
            for junk in (bytes(100), os.urandom(100), self.whole[place(number + 1) : place(number + 1) + 100]):
                opened = self.open(with_bytes(self.whole, place(number), junk))
                self.assertEqual(opened.runs, self.ring.runs)
                self.assertEqual(content(opened), {n: row for n, row in self.samples.items() if n != number})

    def test_adjacent_damaged_slots_with_their_marks_are_counted(self):
        """The remaining numbers show how many samples are missing, but not their epochs."""
        for first in range(7, 12):
            file = with_bytes(self.whole, place(first), bytes(2 * SLOT)[: len(self.whole) - place(first)])
            opened = self.open(file)
            self.assertEqual((opened.last, opened.runs[0].number), (13, 6))
            self.assertLessEqual(sum(run.last_number - run.number + 1 for run in self.ring.runs), 8)

    def test_damage_after_a_sample_without_a_mark_is_known(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        long = taken(values={"temperature_x": -1.2345678901234567e-300}, up_ms=5)
        for seq in range(1, 12):
            ring.append(EPOCH, seq, BOOT, [long if seq % 3 else taken(values={"n": 1})])
        ring.append(EPOCH, 12, BOOT, [taken(values={"n": 1})])
        ring.append(EPOCH, 13, BOOT, [long, taken(values={"n": 1}), long, long])
        again = open_ring(disk)
        self.assertEqual([slot is not None for n in range(9, 17) for slot in again.read(n, 1)], [True] * 8)
        self.assertEqual(again.runs, [SeqRange(EPOCH, 9, 16, 9)])
        wide = open_ring(disk, slot_bytes=256)
        self.assertEqual([slot is not None for n in range(9, 17) for slot in wide.read(n, 1)], [True] * 8)

    def test_damage_of_both_copies_of_the_state_is_reported(self):
        for one in layout.STATE_AT:
            self.assertFalse(self.open(with_bytes(self.whole, one, os.urandom(200))).state["on"])
        file = with_bytes(self.whole, 4100, b"\xff\xff\xff")
        self.says = True
        ring = self.open(with_bytes(file, 8200, b"\xff\xff\xff"))
        self.assertTrue(ring.state["on"])
        self.assertIn("both copies of the state are damaged", ring.faults[0])


class Versions(DamagedCase):
    says = False

    def test_version_1_file_is_used_unchanged(self):
        ring = self.open(as_version_1(self.whole))
        self.assertEqual((content(ring), ring.runs, ring.identity), (self.samples, self.ring.runs, self.ring.identity))
        self.assertFalse(ring.state["on"])
        self.assertEqual((ring.faults, self.kept), ([], []))
        for number in range(14, 40):
            fill(ring, 1, THIRD, seq=number - 13)
            again = open_ring(self.disk)
            self.assertEqual((content(again), again.runs), (content(ring), ring.runs))

    def test_used_version_1_file_has_the_present_version(self):
        """A program that supports only version 1 checks these bytes and refuses the file."""
        old = as_version_1(self.whole)
        self.assertEqual(old[4:12], b"PGNPOST1")
        self.open(old)
        self.assertNotEqual(self.disk.content(PATH)[4:12], b"PGNPOST1")

    def test_crash_at_any_call_of_the_first_start_loses_nothing(self):
        for call in range(200):
            disk = MemoryDisk(call)
            disk.lay(PATH, as_version_1(self.whole))
            disk.die_at(call)
            try:
                open_ring(disk)
                break
            except BaseException:
                disk.cut_power()
                ring = open_ring(disk)
                self.assertEqual((content(ring), ring.identity), (self.samples, self.ring.identity))
        self.assertGreater(call, 10)

    def setUp(self):
        super().setUp()
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def silence(self):
        return contextlib.nullcontext()

    def test_crash_at_any_call_during_a_replacement_loses_nothing(self):
        for call in range(300):
            disk = MemoryDisk(call)
            disk.lay(PATH, self.whole[: place(13)])
            disk.die_at(call)
            try:
                open_ring(disk)
                break
            except BaseException:
                disk.cut_power()
                self.assertEqual(sorted(content(open_ring(disk))), [8, 9, 10, 11, 12])
        self.assertGreater(call, 20)


if __name__ == "__main__":
    unittest.main()
