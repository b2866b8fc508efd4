"""Tests of the ring file: confirmed samples survive every crash, and a torn slot is not a sample."""

import errno
import itertools
import json
import os
import random
import unittest

from pigeonpost.core.data_folder import OUTBOX
from pigeonpost.core.errors import DiskError
from pigeonpost.node.ring_file import Ring, slot_bytes_for
from pigeonpost.node.ring_format import LARGEST_SLOT, MARK_BYTES, SLOT_HEAD, TAG_BYTES
from pigeonpost.node.ring_records import SeqRange, UnnumberedSample
from tests.support import BOOT, EPOCH, Killed, MemoryDisk, rounds, taken, temp_folder

FOLDER = "/card"
PATH = f"{FOLDER}/{OUTBOX}"
OTHER = "00000000000000ff"
SLOTS_AT = 12_288


def open_ring(disk, slots=8, slot_bytes=128):
    return Ring(FOLDER, slots, slot_bytes, disk)


def batch(first, count):
    """Return samples whose values are their numbers."""
    return [taken(values={"n": n}, up_ms=1000 + n, wall_ms=n) for n in range(first, first + count)]


def fill(ring, count, epoch=EPOCH, seq=None):
    """Append `count` samples whose value is their running number. Without `seq`, the sequence numbers continue, too."""
    first = ring.last + 1
    ring.append(epoch, seq or first, BOOT, batch(first, count))


def content(ring):
    """Return all undamaged samples of the ring: running number to (epoch, seq, value)."""
    found = {}
    for run in ring.runs:
        number = run.number
        while number <= run.last_number:
            for slot in ring.read(number, run.last_number + 1 - number):
                if slot is not None:
                    value = json.loads("{" + slot.body + "}")["values"]["n"]
                    if (slot.number, slot.up_ms, slot.wall_ms) != (number, 1000 + value, value):
                        raise AssertionError(f"{slot} under the number {number}")
                    found[number] = (run.epoch, run.seq_of(number), value)
                number += 1
    return found


def held(first, last, epoch=EPOCH):
    """Return the `content` of a ring filled by `fill`."""
    return {n: (epoch, n, n) for n in range(first, last + 1)}


class Appending(unittest.TestCase):
    def setUp(self):
        self.disk = MemoryDisk()

    def test_new_ring_is_empty(self):
        ring = open_ring(self.disk)
        self.assertEqual((ring.runs, ring.last, ring.slots, ring.slot_bytes), ([], 0, 8, 128))
        self.assertRegex(ring.identity, "^[0-9a-f]{16}$")
        self.assertNotEqual(open_ring(MemoryDisk()).identity, ring.identity)

    def test_new_file_has_its_full_size(self):
        open_ring(self.disk)
        size = len(self.disk.content(PATH))
        self.assertEqual(size, SLOTS_AT + 8 * 128)
        fill(open_ring(self.disk), 8)
        self.assertEqual(len(self.disk.content(PATH)), size)

    def test_later_writes_go_only_to_preallocated_bytes(self):
        """A file can have holes, which need space on the disk when they are written."""
        written, pwrite = set(), self.disk.pwrite

        def noted(fd, data, at):
            written.update(range(at, at + len(data)))
            return pwrite(fd, data, at)

        self.disk.pwrite = noted
        ring = open_ring(self.disk)
        made = set(written)
        written.clear()
        for _ in range(9):
            fill(ring, 1)
        ring.change_state(forks=[[1, 2, EPOCH]] * 50)
        open_ring(self.disk)
        self.assertLessEqual(written, made)

    def test_appended_samples_are_read_unchanged(self):
        ring = open_ring(self.disk, slot_bytes=256)
        given = UnnumberedSample(
            1_795_188_970_123, 48_000_000, False, {"a": -1.5, "b": None, "c": 2**63 - 1}, {"b": "no °C\n"}
        )
        ring.append(EPOCH, 1, BOOT, [given])
        (slot,) = ring.read(1, 1)
        self.assertEqual(slot[:5], (1, 1_795_188_970_123, 48_000_000, int(BOOT, 16), False))
        self.assertEqual(json.loads("{" + slot.body + "}"), {"values": given.values, "errors": given.errors})

    def test_dates_before_1970_and_far_in_the_future_are_kept(self):
        ring = open_ring(self.disk)
        ring.append(EPOCH, 1, BOOT, [taken(wall_ms=-(2**63)), taken(wall_ms=2**63 - 1, up_ms=2**64 - 1)])
        self.assertEqual([slot.wall_ms for slot in ring.read(1, 2)], [-(2**63), 2**63 - 1])

    def test_sample_counts_only_after_the_disk_has_confirmed_it(self):
        ring = open_ring(self.disk)
        fill(ring, 2)
        self.assertEqual(self.disk.calls[-2:], ["pwrite", "fdatasync"])
        self.disk.cut_power()
        self.assertEqual(content(open_ring(self.disk)), held(1, 2))

    def test_batch_needs_only_one_sync(self):
        ring = open_ring(self.disk)
        del self.disk.calls[:]
        fill(ring, 5)
        self.assertEqual(self.disk.calls, ["pwrite", "fdatasync"])

    def test_full_ring_keeps_the_newest_samples(self):
        ring = open_ring(self.disk)
        for last in range(1, 30):
            fill(ring, 1)
            self.assertEqual(content(ring), held(max(1, last - 7), last))
            self.assertEqual(content(open_ring(self.disk)), content(ring))
            self.assertEqual(open_ring(self.disk).runs, ring.runs)

    def test_batch_at_the_end_of_the_file_continues_at_its_beginning(self):
        for before in range(16):
            for count in range(1, 9):
                disk = MemoryDisk()
                ring = open_ring(disk)
                for _ in range(before):
                    fill(ring, 1)
                fill(ring, count)
                last = before + count
                self.assertEqual(content(ring), held(max(1, last - 7), last))
                self.assertEqual(content(open_ring(disk)), content(ring))

    def test_read_stops_at_the_end_of_the_file_and_of_the_samples(self):
        ring = open_ring(self.disk)
        fill(ring, 8)
        fill(ring, 3)  # 4 to 11; number 8 is the first in the file
        self.assertEqual([slot.number for slot in ring.read(5, 100)], [5, 6, 7])
        self.assertEqual([slot.number for slot in ring.read(8, 100)], [8, 9, 10, 11])
        self.assertEqual([slot.number for slot in ring.read(8, 2)], [8, 9])

    def test_overwritten_number_is_read_as_none(self):
        ring = open_ring(self.disk)
        fill(ring, 8)
        fill(ring, 1)
        self.assertEqual(ring.read(1, 1), [None])

    def test_epochs_are_stored_one_after_the_other(self):
        ring = open_ring(self.disk)
        fill(ring, 3)
        fill(ring, 2, OTHER, seq=1)
        self.assertEqual(ring.runs, [SeqRange(EPOCH, 1, 3, 1), SeqRange(OTHER, 1, 2, 4)])
        self.assertEqual(open_ring(self.disk).runs, ring.runs)
        fill(ring, 4, OTHER, seq=3)
        self.assertEqual(ring.runs, [SeqRange(EPOCH, 2, 3, 2), SeqRange(OTHER, 1, 6, 4)])
        self.assertEqual(open_ring(self.disk).runs, ring.runs)

    def test_run_converts_numbers_and_sequence_numbers(self):
        run = SeqRange(EPOCH, 11, 20, 111)
        self.assertEqual((run.last_number, run.seq_of(115)), (120, 15))
        self.assertEqual(run.cut(115), SeqRange(EPOCH, 15, 20, 115))

    def test_ring_works_on_a_real_disk(self):
        folder = temp_folder(self)
        ring = Ring(folder, 8, 128)
        fill(ring, 8)
        fill(ring, 3)
        ring.change_state(on=False)
        ring.close()
        again = Ring(folder, 64, 128)
        self.assertEqual((again.slots, again.identity, again.state["on"]), (8, ring.identity, False))
        self.assertEqual(content(again), held(4, 11))
        again.close()
        self.assertEqual(os.listdir(folder), [OUTBOX])


class SlotSizes(unittest.TestCase):
    def test_slot_size_is_a_power_of_two_that_fits_all_values(self):
        chance = random.Random(1)
        extremes = (-2.2250738585072014e-308, 1.7976931348623157e308, -(2**63), None, -1.2345678901234567e-300)
        for count in (1, 2, 3, 7, 20, 100):
            names = [f"n{k:031d}"[: chance.randint(5, 32)] + f"_{k}" for k in range(count)]
            names = [name[-32:] if name[-32:][0].isalpha() else "x" + name[-31:] for name in names]
            size = slot_bytes_for(names)
            self.assertEqual(size & (size - 1), 0)
            ring = open_ring(MemoryDisk(), slot_bytes=size)
            for value in extremes:
                sample = taken(values=dict.fromkeys(names, value))
                ring.append(EPOCH, ring.last + 1, BOOT, [sample])
                (slot,) = ring.read(ring.last, 1)
                self.assertEqual(json.loads("{" + slot.body + "}")["values"], sample.values)

    def test_slot_fits_an_error_text_with_usual_values(self):
        text = "/dev/spidev0.0 may not be opened: join the group spi"
        for names in (["t"], ["temperature", "light"], ["temperature", "light", "load", "memory_free", "disk_free"]):
            size = slot_bytes_for(names)
            self.assertEqual(size, 256)  # 16 MiB on an SD card
            ring = open_ring(MemoryDisk(), slot_bytes=size)
            values = dict.fromkeys(names, 23_395.25) | {names[0]: None}
            ring.append(EPOCH, 1, BOOT, [taken(values=values, errors={names[0]: text})])
            body = json.loads("{" + ring.read(1, 1)[0].body + "}")
            self.assertEqual(body["values"], values)
            self.assertGreaterEqual(len(body["errors"][names[0]]), 20)
            self.assertTrue(text.startswith(body["errors"][names[0]]))

    def test_error_text_of_one_of_several_sensors_is_not_shortened(self):
        text = "/dev/spidev0.0 may not be open"
        for count, digits in itertools.product(range(1, 10), range(1, 32)):
            names = [f"n{k:0{digits}}" for k in range(count)]
            ring = open_ring(MemoryDisk(), slot_bytes=slot_bytes_for(names))
            values = dict.fromkeys(names, 23_395.25) | {names[-1]: None}
            ring.append(EPOCH, 1, BOOT, [taken(values=values, errors={names[-1]: text})])
            body = json.loads("{" + ring.read(1, 1)[0].body + "}")
            self.assertEqual(body, {"values": values, "errors": {names[-1]: text}})

    def test_too_many_sensors_raise_value_error(self):
        self.assertEqual(slot_bytes_for([f"sensor_{k}" for k in range(800)]), LARGEST_SLOT)
        with self.assertRaisesRegex(ValueError, "1200 sensors are too many for one node"):
            slot_bytes_for([f"sensor_{k}" for k in range(1200)])

    def test_error_texts_are_shortened_until_they_fit(self):
        ring = open_ring(MemoryDisk(), slot_bytes=256)
        for length in (10, 100, 1000, 100_000):
            for letter in ("x", "°", '"', "\n", "🕊"):
                errors = {"temperature": letter * length, "light": "!" + letter * length}
                sample = taken(values={"temperature": None, "light": None}, errors=errors)
                ring.append(EPOCH, ring.last + 1, BOOT, [sample])
                body = json.loads("{" + ring.read(ring.last, 1)[0].body + "}")
                self.assertEqual(body["values"], sample.values)
                for name, text in body.get("errors", {}).items():
                    self.assertTrue(errors[name].startswith(text))

    def test_errors_of_the_first_sensors_are_kept_if_not_all_fit(self):
        names = [f"sensor_{n}" for n in range(12)]
        ring = open_ring(MemoryDisk(), slot_bytes=slot_bytes_for(names))
        errors = {name: f"{name} is impossible; read '-3274500'" for name in names}
        ring.append(EPOCH, 1, BOOT, [taken(values=dict.fromkeys(names), errors=errors)])
        body = json.loads("{" + ring.read(1, 1)[0].body + "}")
        self.assertEqual(body["values"], dict.fromkeys(names))
        self.assertIn(len(body["errors"]), (6, 12))
        self.assertEqual(body["errors"]["sensor_0"], errors["sensor_0"][:20])

    def test_error_texts_are_shortened_in_steps(self):
        seen = set()
        for count, digits, slot_bytes in itertools.product((1, 2, 3), range(1, 32), (256, 512)):
            names = [f"n{k:0{digits}}" for k in range(count)]
            ring = open_ring(MemoryDisk(), slot_bytes=slot_bytes)
            errors = {name: name + "x" * 300 for name in names}
            ring.append(EPOCH, 1, BOOT, [taken(values=dict.fromkeys(names), errors=errors)])
            seen |= {len(text) for text in json.loads("{" + ring.read(1, 1)[0].body + "}").get("errors", {}).values()}
        self.assertEqual(seen, {200, 160, 120, 100, 80, 60, 40, 20})

    def test_error_text_that_fits_is_not_shortened(self):
        room = 256 - SLOT_HEAD - MARK_BYTES - TAG_BYTES
        left = room - len('"values":{"n":null},"errors":{"n":""}')
        ring = open_ring(MemoryDisk(), slot_bytes=256)
        for length, is_cut in ((left - 1, False), (left, False), (left + 1, True)):
            ring.append(EPOCH, ring.last + 1, BOOT, [taken(values={"n": None}, errors={"n": "x" * length})])
            body = ring.read(ring.last, 1)[0].body
            self.assertEqual(len(json.loads("{" + body + "}")["errors"]["n"]) < length, is_cut, length)

    def test_repeated_error_text_is_stored_once_before_it_is_shortened(self):
        ring = open_ring(MemoryDisk(), slot_bytes=256)
        remedy = "the Python module spidev is missing: sudo apt install python3-spidev"
        for errors, told in (
            ({"temperature": "short", "light": "short"}, {"temperature": "short", "light": "short"}),
            ({"temperature": remedy, "light": remedy}, {"temperature": remedy, "light": "see temperature"}),
        ):
            sample = taken(values={"temperature": None, "light": None}, errors=errors)
            ring.append(EPOCH, ring.last + 1, BOOT, [sample])
            self.assertEqual(json.loads("{" + ring.read(ring.last, 1)[0].body + "}")["errors"], told)

    def test_error_text_that_is_not_unicode_is_stored_with_replacements(self):
        """A file name can contain any bytes. Python represents bytes that are not UTF-8 as surrogates."""
        ring = open_ring(MemoryDisk(), slot_bytes=256)
        ring.append(EPOCH, 1, BOOT, [taken(values={"n": None}, errors={"n": "no file a\udcffb"})])
        self.assertEqual(json.loads("{" + ring.read(1, 1)[0].body + "}")["errors"], {"n": "no file a?b"})


class TornSlots(unittest.TestCase):
    """A slot that was only partly written is not a sample, regardless of the bytes that were written."""

    def test_sample_torn_at_any_byte_is_not_read(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        fill(ring, 8)
        fill(ring, 3)
        old = disk.content(PATH)
        fill(ring, 1)  # 12, in the slot of 4
        new = disk.content(PATH)
        at = SLOTS_AT + 12 % 8 * 128 - MARK_BYTES
        self.assertEqual((old[:at], old[at + 128 :]), (new[:at], new[at + 128 :]))
        seen = set()
        for cut in range(129):
            for torn in (
                old[:at] + new[at : at + cut] + old[at + cut :],
                old[:at] + old[at : at + cut] + new[at + cut :],
                old[:at] + new[at : at + cut] + bytes(128 - cut) + old[at + 128 :],
            ):
                with self.subTest(cut=cut):
                    disk = MemoryDisk()
                    disk.lay(PATH, torn)
                    opened = open_ring(disk)
                    slot = torn[at + MARK_BYTES : at + 128]
                    has_mark = torn[at : at + MARK_BYTES] == new[at : at + MARK_BYTES]
                    if slot == old[at + MARK_BYTES : at + 128]:
                        expected = held(5 if has_mark else 4, 11)
                    elif slot == new[at + MARK_BYTES : at + 128]:
                        expected = held(5, 12)
                    else:
                        expected = held(5, 11)
                    seen.add((min(expected), max(expected)))
                    self.assertEqual(content(opened), expected)
                    last = max(max(expected), 12 if has_mark else 0)
                    self.assertEqual(opened.last, last)
                    fill(opened, 2)
                    expected |= held(last + 1, last + 2)
                    expected = {n: row for n, row in expected.items() if n > last - 6}
                    self.assertEqual(content(opened), expected)
                    self.assertEqual(content(open_ring(disk)), expected)
        self.assertEqual(seen, {(4, 11), (5, 12), (5, 11)})

    def test_every_changed_bit_is_detected(self):
        disk = MemoryDisk()
        fill(open_ring(disk), 5)
        whole = disk.content(PATH)
        for bit in range((128 - MARK_BYTES) * 8):
            spoilt = bytearray(whole)
            spoilt[SLOTS_AT + 3 * 128 + bit // 8] ^= 1 << bit % 8
            disk = MemoryDisk()
            disk.lay(PATH, bytes(spoilt))
            ring = open_ring(disk)
            self.assertEqual(content(ring), held(1, 2) | held(4, 5))
            self.assertIsNone(ring.read(3, 1)[0])

    def test_damaged_sample_in_the_middle_keeps_its_number(self):
        disk = MemoryDisk()
        fill(open_ring(disk), 8)
        spoilt = bytearray(disk.content(PATH))
        for number in (1, 4, 5):
            spoilt[SLOTS_AT + number * 128 + 60] ^= 1
        disk.lay(PATH, bytes(spoilt))
        ring = open_ring(disk)
        self.assertEqual(ring.runs, [SeqRange(EPOCH, 1, 8, 1)])
        self.assertEqual([slot and slot.number for slot in ring.read(1, 7)], [None, 2, 3, None, None, 6, 7])

    def test_batch_with_only_the_last_slot_undamaged_keeps_its_numbers(self):
        """An old sample and a new sample of the same epoch are then in adjacent slots."""
        disk = MemoryDisk()
        ring = open_ring(disk)
        fill(ring, 8)
        fill(ring, 3)
        old = disk.content(PATH)
        fill(ring, 5)  # 12 to 16, in the slots 4 to 7 and 0
        new = disk.content(PATH)
        for whole in range(12, 17):
            torn = bytearray(old)
            for number in range(12, 17):
                at = SLOTS_AT + number % 8 * 128
                torn[at : at + 128] = new[at : at + 128] if number == whole else bytes(128)
            disk.lay(PATH, bytes(torn))
            ring = open_ring(disk)
            last = whole + (whole in (12, 13, 14))  # by the mark at the end of the slot
            self.assertEqual((ring.last, ring.runs[-1].last_number, len(ring.runs)), (last, last, 1))
            self.assertEqual(content(ring), held(9, 11) | held(whole, whole))

    def test_old_sample_next_to_a_new_one_does_not_hide_it(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        fill(ring, 8)
        fill(ring, 3)  # 4 to 11; slots 4 to 7 hold 4 to 7
        torn = bytearray(disk.content(PATH))
        fill(ring, 2)
        new = disk.content(PATH)
        at = SLOTS_AT + 5 * 128
        torn[at : at + 128] = new[at : at + 128]  # 13 is written, and the slot of 12 still contains 4
        disk.lay(PATH, bytes(torn))
        ring = open_ring(disk)
        self.assertEqual((ring.last, ring.runs[-1].last_number), (13, 13))
        self.assertEqual(content(ring), held(6, 11) | held(13, 13))

    def test_slot_at_a_wrong_index_is_not_a_sample(self):
        disk = MemoryDisk()
        fill(open_ring(disk), 3)
        spoilt = bytearray(disk.content(PATH))
        slot = SLOTS_AT + 3 * 128
        spoilt[slot + 128 : slot + 256] = spoilt[slot : slot + 128]
        disk.lay(PATH, bytes(spoilt))
        self.assertEqual(content(open_ring(disk)), held(1, 3))


class Crashes(unittest.TestCase):
    """The program is killed, or the power is cut, at each disk call in turn."""

    def live(self, disk, noted):
        """Run all operations once; `noted` receives everything that is durable."""
        ring = open_ring(disk)
        for step in range(14):
            noted["trying"] = ring.last + 3 if step % 3 == 2 else ring.last + 1
            fill(ring, 3 if step % 3 == 2 else 1)
            noted["last"] = ring.last
            if step == 5:
                noted["on_trying"] = False
                ring.change_state(on=False)
                noted["on"] = False
            if step == 9:
                ring = open_ring(disk, slot_bytes=256)
        ring.fork(ring.last - 1, ring.last, OTHER)
        noted["forked"] = True
        ring.close()
        noted["ended"] = True

    def look(self, disk, noted):
        """Start again after the crash: all durable samples exist, and at most those that were attempted."""
        ring = open_ring(disk)
        last, trying = noted["last"], noted["trying"]
        found = {number: value for number, (_, _, value) in content(ring).items()}
        self.assertTrue(last <= ring.last <= max(last, trying), (last, ring.last, trying))
        self.assertEqual({n for n, value in found.items() if n != value}, set())
        # The attempted samples may have overwritten the oldest samples, and no others.
        self.assertLessEqual(set(range(max(1, trying - 7), last + 1)), set(found))
        self.assertIn(ring.state["on"], (noted["on"], noted["on_trying"]))
        if noted["forked"]:
            self.assertEqual(ring.runs[-1].epoch, OTHER)
        fill(ring, 2, "00000000000000aa", seq=1)
        self.assertEqual(content(open_ring(disk)), content(ring))

    def crash_at_each_call(self, crash, seeds):
        calls = 0
        while True:
            for seed in range(seeds):
                noted = {"last": 0, "trying": 0, "on": True, "on_trying": True, "forked": False, "ended": False}
                disk = MemoryDisk(f"{calls} {seed}")
                disk.die_at(calls)
                with self.subTest(call=calls, seed=seed):
                    try:
                        self.live(disk, noted)
                    except Killed:
                        pass
                    crash(disk)
                    self.look(disk, noted)
            if noted["ended"]:
                return calls
            calls += 1

    def test_kill_at_each_disk_call_loses_nothing_durable(self):
        self.assertGreater(self.crash_at_each_call(MemoryDisk.kill, 1), 60)

    def test_power_cut_at_each_disk_call_loses_nothing_durable(self):
        self.assertGreater(self.crash_at_each_call(MemoryDisk.cut_power, rounds("PIGEONPOST_TEST_RING_CUTS", 2, 4)), 60)

    def test_samples_found_after_a_kill_survive_a_power_cut(self):
        """A transport must never send a sample that is not durable: a power cut would lose it and its number."""

        def crash(disk):
            disk.kill()
            seen = content(open_ring(disk))
            disk.cut_power()
            self.assertEqual(content(open_ring(disk)), seen)

        self.crash_at_each_call(crash, 1)

    def test_incomplete_new_file_is_created_again(self):
        disk = MemoryDisk()
        disk.lay(PATH + ".new", b"half")
        self.assertEqual(open_ring(disk).runs, [])
        self.assertEqual(list(disk.names), [PATH])


class DiskErrors(unittest.TestCase):
    def test_error_of_any_call_raises_disk_error_with_the_file_name(self):
        life = Crashes()
        for number, text in ((errno.EIO, "Input/output error"), (errno.ENOSPC, "No space left on device")):
            for call in range(1000):
                noted = {"last": 0, "trying": 0, "on": True, "on_trying": True, "forked": False, "ended": False}
                disk = MemoryDisk()
                disk.die_at(call, OSError(number, os.strerror(number)))
                try:
                    life.live(disk, noted)
                    break
                except DiskError as error:
                    self.assertEqual(str(error), f"{PATH}: {text}")
                except OSError:
                    self.assertEqual(disk.calls[-1], "close")  # the last call, whose result is no longer needed
                disk.cut_power()
                life.look(disk, noted)
            self.assertTrue(noted["ended"])
            self.assertGreater(call, 60)

    def test_sample_that_could_not_be_written_does_not_count(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        fill(ring, 2)
        for call in (0, 1):
            disk.die_at(call, OSError(errno.EIO, "Input/output error"))
            with self.assertRaises(DiskError) as caught:
                fill(ring, 1)
            self.assertEqual(caught.exception.exit_status, 74)
            self.assertEqual((ring.last, ring.runs), (2, [SeqRange(EPOCH, 1, 2, 1)]))

    def test_state_that_could_not_be_written_is_not_in_force(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        disk.die_at(1, OSError(errno.EIO, "Input/output error"))
        with self.assertRaises(DiskError):
            ring.change_state(on=False)
        self.assertTrue(ring.state["on"])

    def test_samples_of_a_failed_sync_are_synced_again_before_they_count(self):
        """The kernel reports the error once, and does not write these bytes again automatically."""

        def fail(call):
            if call == "fdatasync":
                raise OSError(errno.EIO, "Input/output error")

        for before in range(10):
            for count in (1, 2, 4):
                disk = MemoryDisk()
                ring = open_ring(disk)
                for _ in range(before):
                    fill(ring, 1)
                disk.fault = fail
                with self.assertRaises(DiskError):
                    fill(ring, count)
                disk.kill()
                disk.names[PATH].unsynced.clear()
                seen = content(open_ring(disk))
                self.assertEqual(max(seen), before + count)
                disk.cut_power()
                self.assertEqual(content(open_ring(disk)), seen)

    def test_state_of_a_failed_sync_is_synced_again(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        disk.die_at(3, OSError(errno.EIO, "Input/output error"))  # two reads, the first copy, its sync
        with self.assertRaises(DiskError):
            ring.change_state(on=False)
        self.assertEqual(disk.calls[-1], "fdatasync")
        disk.kill()
        disk.names[PATH].unsynced.clear()
        self.assertFalse(open_ring(disk).state["on"])
        disk.cut_power()
        self.assertFalse(open_ring(disk).state["on"])

    def test_file_truncated_while_open_is_read_as_damaged(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        fill(ring, 5)
        del disk.names[PATH].seen[SLOTS_AT + 4 * 128 + 50 :]
        self.assertEqual([slot and slot.number for slot in ring.read(3, 3)], [3, None, None])

    def test_no_file_descriptor_is_left_open(self):
        disk = MemoryDisk()
        for slot_bytes in (128, 256):  # a new file, and one that is made wider
            open_ring(disk, slot_bytes=slot_bytes).close()
            self.assertEqual(disk._open, {})

    def test_short_writes_are_continued(self):
        chance = random.Random(3)
        for short in (lambda length: 1, lambda length: chance.randint(1, length), lambda length: max(1, length - 1)):
            disk = MemoryDisk()
            ring = open_ring(disk)
            disk.short = short
            fill(ring, 8)
            fill(ring, 5)
            ring.change_state(on=False)
            again = open_ring(disk)
            self.assertEqual((content(again), again.state["on"]), (held(6, 13), False))

    def test_write_of_zero_bytes_raises_disk_error(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        disk.short = lambda length: 0
        with self.assertRaisesRegex(DiskError, f"^{PATH}: the disk accepted no more data$"):
            fill(ring, 1)

    def test_write_of_zero_bytes_after_a_short_write_raises_disk_error(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        lengths = iter((40, 0))
        disk.short = lambda length: next(lengths, length)
        with self.assertRaisesRegex(DiskError, f"^{PATH}: the disk accepted no more data$"):
            fill(ring, 1)

    def test_failed_sample_whose_mark_was_written_does_not_count_as_damaged(self):
        for before in range(9):
            disk = MemoryDisk()
            ring = open_ring(disk)
            for _ in range(before):
                fill(ring, 1)
            lengths = iter((MARK_BYTES, 0))
            disk.short = lambda length, lengths=lengths: next(lengths, length)
            with self.assertRaises(DiskError):
                fill(ring, 1)
            disk.kill()
            again = open_ring(disk)
            self.assertEqual((again.last, content(again)), (before, held(max(1, before - 7), before)))

    def test_missing_folder_raises_disk_error(self):
        folder = os.path.join(temp_folder(self), "nowhere")
        with self.assertRaisesRegex(DiskError, "outbox.ring: No such file or directory"):
            Ring(folder, 8, 128)


class States(unittest.TestCase):
    A, B = 4096, 8192

    def changed(self, *states):
        disk = MemoryDisk()
        ring = open_ring(disk)
        for on in states:
            ring.change_state(on=on)
        return disk

    def spoil(self, disk, *places):
        content = bytearray(disk.content(PATH))
        for place in places:
            content[place] ^= 0xFF
        disk.lay(PATH, bytes(content))
        return open_ring(disk).state

    def test_new_ring_is_on(self):
        self.assertEqual(open_ring(MemoryDisk()).state, {"on": True, "forks": []})

    def test_copies_of_the_state_are_written_one_after_the_other(self):
        for states in ([False], [False, True]):
            disk = self.changed(*states)
            content = disk.content(PATH)
            self.assertNotEqual(content[self.A : self.A + 64], bytes(64))
            self.assertEqual(content[self.A : self.A + 3840], content[self.B : self.B + 3840])
            self.assertEqual(disk.calls[-4:], ["pwrite", "fdatasync"] * 2)

    def test_later_copy_of_the_state_is_in_force(self):
        for states in ([False], [False, True], [False, True, False], [True, True, True, False, True]):
            self.assertEqual(open_ring(self.changed(*states)).state["on"], states[-1])

    def test_damaged_copy_of_the_state_does_not_affect_the_other(self):
        for place in (0, 4, 12, 14, 20):
            for at in (self.A, self.B):
                self.assertFalse(self.spoil(self.changed(True, False), at + place)["on"])
                self.assertTrue(self.spoil(self.changed(False, True), at + place)["on"])

    def test_sampling_is_on_if_both_copies_of_the_state_are_damaged(self):
        self.assertEqual(self.spoil(self.changed(False, False), self.A + 20, self.B + 20), {"on": True, "forks": []})

    def test_only_undamaged_copy_of_the_state_is_overwritten_last(self):
        for damaged in (self.A, self.B):
            for call in range(6):
                disk = self.changed(True, False)
                ring = open_ring(disk)
                disk.pwrite(ring._fd, b"\xff" * 64, damaged)
                disk.fdatasync(ring._fd)
                disk.die_at(call)
                with self.assertRaises(Killed):
                    ring.change_state(forks=[[1, 2, EPOCH]])
                disk.cut_power()
                self.assertFalse(open_ring(disk).state["on"])

    def test_state_that_is_too_long_is_refused(self):
        ring = open_ring(MemoryDisk())
        with self.assertRaisesRegex(DiskError, "the state is too long"):
            ring.change_state(forks=[[10**17, 10**17, EPOCH]] * 100)
        self.assertEqual(ring.state["forks"], [])


class Forks(unittest.TestCase):
    def setUp(self):
        self.disk = MemoryDisk()
        self.ring = open_ring(self.disk)

    def same_after_restart(self):
        self.assertEqual(open_ring(self.disk).runs, self.ring.runs)
        self.assertEqual(content(open_ring(self.disk)), content(self.ring))

    def test_fork_renames_the_end_of_a_run(self):
        fill(self.ring, 6)
        self.ring.fork(5, 6, OTHER)
        self.assertEqual(self.ring.runs, [SeqRange(EPOCH, 1, 4, 1), SeqRange(OTHER, 1, 2, 5)])
        self.assertEqual(content(self.ring)[6], (OTHER, 2, 6))
        self.same_after_restart()

    def test_later_samples_of_the_new_epoch_join_the_fork(self):
        fill(self.ring, 6)
        self.ring.fork(5, 6, OTHER)
        fill(self.ring, 2, OTHER, seq=3)
        self.assertEqual(self.ring.runs, [SeqRange(EPOCH, 1, 4, 1), SeqRange(OTHER, 1, 4, 5)])
        self.same_after_restart()

    def test_fork_renames_a_complete_run_its_middle_or_its_beginning(self):
        for start, end, expected in (
            (1, 6, [SeqRange(OTHER, 1, 6, 1)]),
            (1, 2, [SeqRange(OTHER, 1, 2, 1), SeqRange(EPOCH, 3, 6, 3)]),
            (3, 4, [SeqRange(EPOCH, 1, 2, 1), SeqRange(OTHER, 1, 2, 3), SeqRange(EPOCH, 5, 6, 5)]),
        ):
            self.setUp()
            fill(self.ring, 6)
            self.ring.fork(start, end, OTHER)
            self.assertEqual(self.ring.runs, expected)
            self.same_after_restart()

    def test_fork_can_be_forked_again(self):
        fill(self.ring, 8)
        self.ring.fork(3, 8, OTHER)
        self.ring.fork(6, 8, "00000000000000ee")
        self.assertEqual(
            self.ring.runs, [SeqRange(EPOCH, 1, 2, 1), SeqRange(OTHER, 1, 3, 3), SeqRange("00000000000000ee", 1, 3, 6)]
        )
        self.same_after_restart()

    def test_fork_ends_when_its_samples_are_overwritten(self):
        fill(self.ring, 6)
        self.ring.fork(5, 6, OTHER)
        for n in range(1, 12):
            fill(self.ring, 1, "00000000000000ee", seq=n)
            self.same_after_restart()
        self.assertEqual({run.epoch for run in self.ring.runs}, {"00000000000000ee"})
        self.ring.fork(self.ring.last, self.ring.last, OTHER)
        self.assertEqual(len(self.ring.state["forks"]), 1)  # the overwritten fork is removed

    def test_partly_overwritten_fork_keeps_its_numbers(self):
        fill(self.ring, 8)
        self.ring.fork(3, 8, OTHER)
        fill(self.ring, 4, "00000000000000ee", seq=1)
        self.assertEqual(self.ring.runs[0], SeqRange(OTHER, 3, 6, 5))
        self.same_after_restart()


class Files(unittest.TestCase):
    def setUp(self):
        self.disk = MemoryDisk()
        fill(open_ring(self.disk), 5)
        self.content = self.disk.content(PATH)

    def test_number_of_slots_is_read_from_the_file(self):
        for slots in (4, 64, 65_536):
            ring = open_ring(self.disk, slots=slots)
            self.assertEqual((ring.slots, content(ring)), (8, held(1, 5)))

    def test_file_with_larger_slots_is_not_changed(self):
        disk = MemoryDisk()
        fill(open_ring(disk, slot_bytes=512), 3)
        ring = open_ring(disk, slot_bytes=128)
        self.assertEqual((ring.slot_bytes, content(ring)), (512, held(1, 3)))


class Widening(unittest.TestCase):
    def test_widening_keeps_all_samples_and_numbers(self):
        disk = MemoryDisk()
        ring = open_ring(disk)
        fill(ring, 8)
        fill(ring, 5)
        ring.fork(12, 13, OTHER)
        ring.change_state(on=False)
        before = content(ring)
        wide = open_ring(disk, slot_bytes=1024)
        self.assertEqual((wide.slot_bytes, wide.slots, wide.identity), (1024, 8, ring.identity))
        self.assertEqual((content(wide), wide.runs, wide.state), (before, ring.runs, ring.state))
        wide.append(OTHER, 3, BOOT, [taken(values={f"name_{k}": 1 / 3 for k in range(20)})])
        self.assertEqual(len(json.loads("{" + wide.read(14, 1)[0].body + "}")["values"]), 20)
        again = open_ring(disk)
        self.assertEqual((again.slot_bytes, again.last, again.state["on"]), (1024, 14, False))
        wide.change_state(on=True)
        self.assertTrue(open_ring(disk).state["on"])

    def test_widening_keeps_damaged_slots_damaged(self):
        disk = MemoryDisk()
        fill(open_ring(disk), 5)
        spoilt = bytearray(disk.content(PATH))
        spoilt[SLOTS_AT + 3 * 128 + 60] ^= 1
        disk.lay(PATH, bytes(spoilt))
        ring = open_ring(disk, slot_bytes=256)
        self.assertEqual(content(ring), held(1, 2) | held(4, 5))
        self.assertIsNone(ring.read(3, 1)[0])

    def test_ring_works_on_a_real_disk(self):
        folder = temp_folder(self)
        ring = Ring(folder, 64, 128)
        fill(ring, 60)
        fill(ring, 20)
        ring.close()
        wide = Ring(folder, 64, 512)
        self.addCleanup(wide.close)
        self.assertEqual(content(wide), held(17, 80))
        self.assertEqual(os.path.getsize(os.path.join(folder, OUTBOX)), SLOTS_AT + 64 * 512)
        self.assertEqual(os.listdir(folder), [OUTBOX])


class Model(unittest.TestCase):
    """Random operations are compared with a simple model: a list whose last n entries are kept."""

    def test_random_operations_match_the_model(self):
        for seed in range(rounds("PIGEONPOST_TEST_RING_LIVES", 20, 50)):
            with self.subTest(seed=seed):
                self.life(random.Random(f"ring {seed}"), seed)

    def life(self, chance, seed):
        disk, slots, width = MemoryDisk(seed), chance.choice((1, 2, 8, 13, 64)), 128
        ring = open_ring(disk, slots)
        model, last = {}, 0  # number to (epoch, seq, value), of all samples ever accepted; the last number
        epoch, seq, on, forks = f"{chance.getrandbits(64):016x}", 1, True, 0
        for _ in range(40):
            deed = chance.random()
            if deed < 0.6:
                count = chance.randint(1, min(slots, 10))
                first = ring.last + 1
                fill(ring, count, epoch, seq)
                model |= {first + k: (epoch, seq + k, first + k) for k in range(count)}
                seq, last = seq + count, last + count
            elif deed < 0.75:
                chance.choice((disk.kill, disk.cut_power, ring.close))()
                width = chance.choice((128, width, 2 * width))
                ring = open_ring(disk, chance.randint(1, 100), min(width, 1024))
                epoch, seq = f"{chance.getrandbits(64):016x}", 1
            elif deed < 0.8:
                on = not on
                ring.change_state(on=on)
            elif deed < 0.85 and ring.runs and forks < 20:
                run = chance.choice(ring.runs)
                start, new = chance.randint(run.number, run.last_number), f"{chance.getrandbits(64):016x}"
                ring.fork(start, run.last_number, new)
                forks += 1
                for number in range(start, run.last_number + 1):
                    if number in model:
                        model[number] = (new, number - start + 1, model[number][2])
                epoch, seq = (new, run.last_number - start + 2) if run.last_number == ring.last else (epoch, seq)
            else:
                count = chance.randint(1, min(slots, 10))
                last = self.die_while_appending(chance, disk, ring, model, epoch, seq, count)
                ring = open_ring(disk)
                epoch, seq = f"{chance.getrandbits(64):016x}", 1
            expected = {n: row for n, row in model.items() if n > ring.last - slots}
            self.assertEqual(content(ring), expected)
            self.assertEqual(ring.state["on"], on)
            self.assertEqual(ring.last, last)

    def die_while_appending(self, chance, disk, ring, model, epoch, seq, count):
        """Crash during a batch, and update `model` with the samples that were written and overwritten.

        Assert that the crash affected only samples that it could affect. Return the last number.
        """
        first, slots = ring.last + 1, ring.slots
        disk.die_at(chance.randrange(3))
        try:
            fill(ring, count, epoch, seq)
        except Killed:
            pass
        chance.choice((disk.kill, disk.cut_power))()
        after = open_ring(disk)
        found = content(after)
        tried = {first + k: (epoch, seq + k, first + k) for k in range(count)}
        safe = {n: row for n, row in model.items() if n > first + count - 1 - slots}
        self.assertEqual({n: found.get(n) for n in safe}, safe)
        known = model | tried
        self.assertEqual({n: row for n, row in found.items() if known.get(n) != row}, {})
        # A mark that has reached the disk shows that the sample was attempted.
        self.assertTrue(max(found, default=0) <= after.last < first + count, (after.last, found))
        model.clear()
        model.update(found)
        return after.last


if __name__ == "__main__":
    unittest.main()
