"""The simulation of both ends: many seeds, negative controls, and faults that it once found.

PIGEONPOST_TEST_SEEDS is the number of seeds, with 600 events each. PIGEONPOST_TEST_FIRST_SEED is the first one; without
it every run plays other seeds.
"""

import contextlib
import logging
import random
import subprocess
import sys
import unittest
from collections import Counter
from unittest import mock

from pigeonpost.core.errors import DiskError
from pigeonpost.node import ring_scan
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.node.send_cursor import SendCursor
from pigeonpost.server import ingest
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.models import HighWaterMark
from tests.faults.house import ROOT
from tests.faults.sim_disk import FOLDER, Died, SimDisk
from tests.faults.sim_oracle import Violation
from tests.faults.simulate import first_seed, play, play_many
from tests.support import LONG, clean_environment, rounds

SEEDS = rounds("PIGEONPOST_TEST_SEEDS", 10, 8_000)
# In two of 20,000 seeds, one sample is not counted by any gap: several faults on one card, a file of version 1 in
# between, and the loss of its server's data come together (docs/promise.md).
UNCOUNTED = (8045, 15419)
BOOT = "00000000000000b0"

# Events that must happen in this number of runs; otherwise they prove nothing.
HAPPENS = [
    "accepted", "stored", "missing", "two servers", "ring overrun", "gap", "gap with `before`", "gap: damaged",
    "connection cut", "session replaced", "session closed by an end", "line of an earlier session", "resume with more",
    "held with more", "columns", "fork", "dated by the server's clock", "sent with clock unset", "clock stepped",
    "node: killed", "node: power cut", "node: killed in a disk call", "node: ended while it started",
    "node: a write torn by a power cut", "node: short write", "node: I/O error", "node: no space left on its disk",
    "node: its cache shows what is not on the card", "slots made wider", "card copied", "card set back", "card wiped",
    "node copied alive", "server: killed", "server: killed in a commit", "server: killed with samples not stored",
    "server: not stored, its disk is full", "ledger deleted", "ledger restored",
    "damaged, and not stored", "node: rotten newest sample", "node: rotten sample", "node: rotten mark",
    "node: rotten newest mark", "node: rotten header", "node: rotten state", "node: a write to another slot",
    "node: file of version 1", "node: ended again at once", "another version speaks", "broken permanently",
    "server: its data is damaged", "server: its data is restored", "server: ended again in its first commit",
]  # fmt: skip


class Seeds(unittest.TestCase):
    def test_many_seeds(self):
        first = first_seed()
        counts, faults = play_many(range(first, first + SEEDS))
        self.assertEqual(faults, [], "\n".join(["", *faults]))
        if SEEDS >= 200:
            rare = [name for name in HAPPENS if not counts[name]]
            self.assertEqual(rare, [], f"never happened in the {SEEDS} seeds from {first} on")

    def test_known_seeds_still_miss_a_count(self):
        """If these seeds pass, delete this test and play 20,000 seeds in CI."""
        for seed in UNCOUNTED if LONG else UNCOUNTED[:1]:
            with self.assertRaisesRegex(Violation, "are missing, [0-9]+ counted"):
                play(seed)

    def test_a_seed_tells_the_same_story_again(self):
        for seed in (3, 4) if LONG else (3,):
            told = [
                subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.simulate", "--seed", str(seed)],
                    env=clean_environment(PYTHONHASHSEED=hash_seed), cwd=ROOT, stdout=subprocess.PIPE,
                )
                for hash_seed in ("1", "2")
            ]  # fmt: skip
            stories = [program.communicate()[0] for program in told]
            self.assertEqual([program.returncode for program in told], [0, 0])
            self.assertIn(b"all is well", stories[0])
            self.assertEqual(*stories)


class HastyIntake(Ingestor):
    """Acknowledges samples that it has not stored."""

    def submit(self, batch):
        super().submit(batch)
        batch.on_committed(batch.epoch, batch.samples.last if batch.samples else batch.gap.last)


class ForgetfulIntake(Ingestor):
    """Accepts every sample as new, as if none were stored."""

    def commit(self):
        with mock.patch("pigeonpost.server.ingest.plan_commit", _plan_for_all):
            super().commit()


def _plan_for_all(batches, marks, *rest, real=ingest.plan_commit):
    marks = {}
    for batch in batches:
        first = batch.samples.seq if batch.samples else batch.gap.first
        marks.setdefault((batch.node, batch.epoch), HighWaterMark(first - 1, None))
    return real(batches, marks, *rest)


class Controls(unittest.TestCase):
    """Negative controls: changes that break the promise, which the oracle must find with the right message."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def violation(self, **options):
        """Return the oracle's message for the first seed with a violation. Without the change there is none."""
        for seed in range(40):
            play(seed)
            try:
                play(seed, **options)
            except Violation as violation:
                return str(violation)
        return "nothing"

    def test_a_disk_that_lies_about_fdatasync(self):
        self.assertRegex(self.violation(lies=True), "must still hold|is lost|are numbered|are missing")

    def test_a_server_that_acknowledges_before_its_commit(self):
        self.assertRegex(self.violation(intake_type=HastyIntake), r"said ACK .*, but its store has")

    def test_a_server_that_stores_repeats(self):
        self.assertRegex(self.violation(intake_type=ForgetfulIntake), "do not make up its mark|stands after")

    def test_a_node_that_keeps_silent_about_older_epochs(self):
        real = SendCursor._gap

        def lost(stream, run, first, last, before, why):
            return real(stream, run, first, last, 0, why)

        self.assert_noticed("are (missing|num)", mock.patch.object(SendCursor, "_gap", lost))

    def assert_noticed(self, what, *patches):
        """Check that the oracle reports `what` within some seeds if the program is patched."""
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            stack.enter_context(self.assertRaisesRegex(Violation, what))
            for seed in range(60):
                play(seed)

    def test_a_ring_that_keeps_its_last_number_once_only(self):
        """Without the marks only its own slot shows that the newest sample exists."""
        patch = mock.patch("pigeonpost.node.ring_format.parse_mark", lambda *_: None)
        self.assert_noticed("are missing|are numbered|is lost", patch)

    def test_a_ring_that_takes_no_notice_of_a_sample_in_a_wrong_slot(self):
        real = ring_scan._undamaged_slots
        patch = mock.patch("pigeonpost.node.ring_scan._undamaged_slots", lambda *args: (real(*args)[0], {}))
        self.assert_noticed("are missing|are numbered|is lost", patch)

    def test_a_ring_with_one_header(self):
        self.assert_noticed(
            "are missing|are numbered|is lost",
            mock.patch("pigeonpost.node.ring_format.HEADER_AT", (0,)),
            mock.patch("pigeonpost.node.ring_format.correct_header", lambda block: None),
        )

    def test_a_node_that_calls_what_is_damaged_overwritten(self):
        real = SendCursor._gap

        def lost(stream, run, first, last, before, why):
            return real(stream, run, first, last, before, "overwritten")

        self.assert_noticed("was damaged; said was", mock.patch.object(SendCursor, "_gap", lost))


def taken(value):
    return UnnumberedSample(1_795_000_000_000 + value, value, True, {"x": value}, {})


class Chance(random.Random):
    """A power cut keeps no unsynced write."""

    def random(self):
        return 0.1

    def shuffle(self, items):
        pass


class Found(unittest.TestCase):
    """Faults of the product that the simulation found."""

    def setUp(self):
        self.disk = SimDisk(Chance(0), Counter())

    def open(self, slots=64):
        return Ring(FOLDER, slots, 128, self.disk)

    def test_sample_of_a_killed_node_is_durable_before_a_server_gets_it(self):
        """Otherwise a power cut could remove a sent sample from the card, and its number be given to another sample."""
        outbox = Outbox(self.open(), BOOT)
        outbox.put(taken(1))
        self.disk.dies_in = 2  # written, but not synced
        with self.assertRaises(Died):
            outbox.commit()
        self.disk.killed()
        seen = self.open().last
        self.disk.crash()
        self.assertEqual((seen, self.open().last), (1, 1))

    def test_sample_left_in_the_cache_by_a_failed_sync_is_durable_before_a_server_gets_it(self):
        """The kernel forgets that it is not on the card. A later sample would overwrite an accepted one."""
        for does in (Outbox.commit, lambda outbox: outbox.switch(False)):
            outbox = Outbox(self.open(), BOOT)
            outbox.put(taken(1))
            before = outbox.ring.last, outbox.ring.state["on"]
            self.disk.fails_in = 2  # written, but the sync fails
            with self.assertRaises(DiskError):
                does(outbox)
            self.disk.killed()
            ring = self.open()
            seen = ring.last, ring.state["on"]
            self.disk.crash()
            ring = self.open()
            self.assertNotEqual(seen, before)
            self.assertEqual((ring.last, ring.state["on"]), seen)

    def test_file_survives_any_failure_during_its_creation(self):
        calls = 0
        while not self.disk.fails_in:
            calls += 1
            self.setUp()
            self.disk.fails_in = calls
            with contextlib.suppress(DiskError):
                self.open()
            if not self.disk.fails_in:
                outbox = Outbox(self.open(), BOOT)
                outbox.put(taken(1))
                outbox.commit()
                self.disk.crash()
                self.assertEqual(self.open().last, 1, f"call {calls} failed")
        self.assertGreater(calls, 5)

    def test_a_power_cut_in_a_batch_leaves_the_newest_that_were_accepted(self):
        """Otherwise the numbers would start again, and the loss would remain unknown."""
        outbox = Outbox(self.open(slots=8), BOOT)
        for value in range(1, 101):
            outbox.put(taken(value))
        while outbox.commit():
            pass
        for value in range(101, 120):
            outbox.put(taken(value))
        self.disk.dies_in = 3
        with self.assertRaises(Died):
            outbox.commit()
        self.disk.dies_in = 0
        for file in self.disk.names.values():  # only the first byte of each write reaches the card
            for at, data in file.pending:
                for slot in range(0, len(data), 128):
                    file.durable[at + slot] ^= 255
            file.pending = []
        self.disk.crash()
        ring = self.open(slots=8)
        self.assertEqual(ring.last, 100)
        self.assertEqual(ring.runs[-1].last, 100)

    def test_a_switch_that_the_disk_refuses_ends_the_program(self):
        """The session that requested it cannot distinguish this from a broken connection, and would continue."""
        failures = []
        outbox = Outbox(self.open(), BOOT, failed=failures.append)
        self.disk.fails_in = 1
        with self.assertRaises(DiskError):
            outbox.switch(False)
        self.assertEqual(len(failures), 1)
        self.disk.fails_in = 1
        with self.assertRaises(DiskError):
            outbox.fork(outbox.epoch, 1)
            outbox.switch(False)
        self.assertEqual(len(failures), 2)


if __name__ == "__main__":
    unittest.main()
