"""Limits of what a node may store, tested with an Ingestor, which all transports use."""

import logging
import os
import random
from unittest import mock

from pigeonpost.core.errors import BeyondLimit, NotStored
from pigeonpost.link.samples import batches_of
from pigeonpost.server import node_limits
from pigeonpost.server.node_limits import LARGEST_GAP, MOST_MISSING, REFUSED, NodeLimits
from pigeonpost.storage.csv.verify import verify_logs
from pigeonpost.storage.models import NodeUsage
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import LARGEST_SEQ, Sample
from tests.page_support import use_memory_disk
from tests.server.test_ingest import E1, E2, IngestCase, batch, gap


def setUpModule():
    use_memory_disk()


def made(first, *values, node="a", epoch=E1, units=None, errors=None):
    """Return batches of samples with these values. Samples with the same sensors are in one batch."""
    samples = [
        Sample(seq, 1_795_000_000_000 + seq * 1000, seq, one, errors or {}, "") for seq, one in enumerate(values, first)
    ]
    one = batch(1, 1, node=node, epoch=epoch)._replace(units=units or {})
    return [one._replace(samples=samples) for samples in batches_of(samples)]


def names(first, count):
    return {f"n{k}": float(k) for k in range(first, first + count)}


class LimitsCase(IngestCase):
    def setUp(self):
        log = logging.getLogger("pigeonpost.server.ingest")
        log.setLevel(logging.ERROR)
        self.addCleanup(log.setLevel, logging.NOTSET)
        super().setUp()

    def open(self, per_sample=4, per_node=8, **more):
        self.warnings = {}
        super().open(warn=lambda *warning: self.warnings.__setitem__(warning[:2], warning[2]))
        self.ingestor._limits = self.limits = NodeLimits(self.store, per_sample, per_node)

    def commit(self, *batches):
        self.answers.acks.clear()
        self.submit(*[one for some in batches for one in (some if isinstance(some, list) else [some])])
        self.ingestor.commit()

    def stored(self, node="a"):
        return {point.seq: point.values for point in self.store.points(node, 0, 1 << 60, 1000)}

    def texts(self):
        return self.store._db.execute("SELECT seq, sensor, text FROM failures ORDER BY seq, sensor").fetchall()


class ChannelLimitTest(LimitsCase):
    def test_samples_within_the_limits_are_stored_unchanged(self):
        one = made(1, names(0, 4), names(4, 4), units={"n0": "V"})
        self.commit(one)
        self.assertEqual(self.stored(), {1: names(0, 4), 2: names(4, 4)})
        self.assertEqual((self.texts(), self.warnings), ([], {}))
        self.assertEqual(self.store.nodes()[0]["sensors"], {"n0": "V"} | dict.fromkeys(names(1, 7), ""))

    def test_surplus_values_are_omitted_and_the_errors_name_the_limit(self):
        self.commit(made(1, names(0, 7)))
        self.assertEqual(self.stored(), {1: names(0, 4)})
        ((seq, sensor, text),) = self.texts()
        self.assertEqual((seq, sensor), (1, "n4"))
        self.assertEqual(
            text,
            "not stored, like 2 other channels: a sample can have at most 4 channels ([store] channels_per_sample)",
        )
        self.assertIn(
            "3 values of sample 1 not stored: a sample can have at most 4 channels", self.warnings["a", "channels"]
        )
        self.assertEqual(self.answers.acks, [(E1, 1)])

    def test_sample_without_admitted_channels_becomes_a_gap_and_the_node_continues(self):
        self.commit(made(1, names(0, 4), names(4, 4), names(8, 4), names(9, 3), {"n1": 7.0}, {"x": 1, "n2": 2.0}))
        self.assertEqual(self.stored(), {1: names(0, 4), 2: names(4, 4), 5: {"n1": 7.0}, 6: {"n2": 2.0}})
        found = [(one["from"], one["to"], one["why"]) for one in self.store.gaps(10)]
        self.assertEqual(found, [(4, 4, REFUSED), (3, 3, REFUSED)])  # one gap for samples with the same channels
        self.assertEqual(self.answers.acks, [(E1, 6)])
        self.assertEqual(list(self.store.verify()), [])
        self.assertEqual(self.ingestor.repeated, 0)
        self.commit(made(7, names(20, 2)))
        self.assertEqual([(one["from"], one["to"]) for one in self.store.gaps(10)], [(7, 7), (4, 4), (3, 3)])
        self.commit(made(8, {"n0": 1.0}))
        self.assertEqual((self.stored()[8], self.answers.acks), ({"n0": 1.0}, [(E1, 8)]))

    def test_number_of_channels_of_a_node_survives_a_restart(self):
        self.commit(made(1, names(0, 4), names(4, 4)))
        self.store.close()
        self.open()
        self.commit(made(3, {"n8": 1.0, "n7": 2.0}))
        self.assertEqual(self.stored()[3], {"n7": 2.0})

    def test_announced_sensors_are_counted(self):
        self.commit(made(1, {"a": 1.0}, units=dict.fromkeys(names(0, 100), "V")))
        self.assertEqual(len(self.store.nodes()[0]["sensors"]), 8)

    def test_limit_does_not_affect_another_node(self):
        self.commit(made(1, names(0, 4), names(4, 4), names(8, 4)), made(1, names(8, 4), node="b"))
        self.assertEqual(self.stored("b"), {1: names(8, 4)})
        self.assertEqual(list(self.warnings), [("a", "channels")])

    def test_unit_that_is_not_repeated_is_kept(self):
        self.commit(made(1, {"t": 1.0}, units={"t": "°C"}))
        self.commit(made(2, {"t": 1.0, "u": 2.0}), made(3, {"t": 1.0, "w": 2.0}))
        self.assertEqual(self.store.nodes()[0]["sensors"], {"t": "°C", "u": "", "w": ""})
        self.commit(made(4, {"t": 1.0}, units={"t": "K", "u": "V"}))
        self.assertEqual(self.store.nodes()[0]["sensors"], {"t": "K", "u": "V", "w": ""})

    def test_unchanged_units_are_not_written_again(self):
        units = {"t": "°C"}
        self.commit(made(1, {"t": 1.0, "u": 1.0}, units=units))
        before = self.store._units.get("a")
        self.commit(made(2, {"t": 1.0, "u": 1.0}, units=dict(units)))  # as in each push
        self.assertIs(self.store._units.get("a"), before)

    def test_texts_of_errors_are_shortened(self):
        self.commit(made(1, {"t": None, "u": 1.0}, errors={"t": "x" * 5000, "other": "y"}))
        self.assertEqual(self.texts(), [(1, "t", "x" * 200)])

    def test_channels_of_a_failed_commit_are_not_counted(self):
        with (
            mock.patch.object(SqliteStore, "put", side_effect=NotStored("full")), self.assertRaises(NotStored)
        ):  # fmt: skip
            self.commit(made(1, names(0, 4), names(4, 4)))
        self.ingestor._batches.clear()
        self.commit(made(1, names(10, 4), names(14, 4)))
        self.assertEqual(self.stored(), {1: names(10, 4), 2: names(14, 4)})

    def test_number_of_names_in_memory_is_limited(self):
        with mock.patch.object(node_limits, "_MOST_KEPT", 40):
            for n in range(30):
                self.commit(made(1, names(n * 4, 4), names(n * 4 + 4, 4), node=f"node{n}"))
            self.assertLessEqual(self.limits._kept, 56)
            self.assertEqual(self.limits._kept, sum(len(node.channels) for node in self.limits._nodes.values()))
            self.commit(made(3, {"n0": 1.0, "more": 1.0}, node="node0"))
            self.assertEqual(self.stored("node0")[3], {"n0": 1.0})

    def test_random_names_never_exceed_a_limit_and_each_sample_is_accounted_for(self):
        chance, seq = random.Random(7), 1
        for _ in range(60):
            values = [
                {f"n{chance.randrange(20)}": 1.0 for _ in range(chance.randint(1, 9))}
                for _ in range(chance.randint(1, 5))
            ]
            self.commit(made(seq, *values))
            seq += len(values)
            self.assertEqual(self.answers.acks, [(E1, seq - 1)])
        stored = self.stored().values()
        self.assertLessEqual(max(map(len, stored)), 4)
        self.assertLessEqual(len(set().union(*stored)), 8)
        self.assertEqual(list(self.store.verify()), [])


class GapLimitTest(LimitsCase):
    def refusal(self, *batches):
        """Commit batches, expect one rejection, and return its reason."""
        self.answers.refusals.clear()
        self.commit(*batches)
        (error,) = self.answers.refusals
        self.assertIsInstance(error, BeyondLimit)
        self.assertEqual((error.code, error.closes), ("bad-argument", True))
        return str(error)

    def test_size_of_a_gap_is_limited(self):
        self.commit(gap(1, LARGEST_GAP))
        self.assertEqual((self.answers.acks, self.answers.refusals), ([(E1, LARGEST_GAP)], []))
        for one in (gap(1, LARGEST_GAP + 1, epoch=E2), gap(1, LARGEST_SEQ, epoch=E2),
                    gap(1, 0, epoch=E2, before=LARGEST_GAP + 1, base=LARGEST_SEQ),
                    gap(1, 6, epoch=E2, before=LARGEST_GAP - 5, base=LARGEST_SEQ)):  # fmt: skip
            self.assertIn("a gap can have at most 1,000,000,000,000 samples", self.refusal(one))
            self.assertEqual(self.answers.acks, [])
        self.assertIn("its samples are refused: a gap can have", self.warnings["a", "gaps"])
        self.assertEqual(self.store.usage("a"), NodeUsage(1, 1, 1, LARGEST_GAP))

    def test_repeated_gap_is_acknowledged(self):
        self.commit(gap(1, LARGEST_GAP))
        self.commit(gap(1, LARGEST_GAP))
        self.assertEqual((self.answers.acks, self.answers.refusals), ([(E1, LARGEST_GAP)], []))

    def test_sum_of_gaps_is_limited_across_commits_epochs_and_outboxes(self):
        count = MOST_MISSING // LARGEST_GAP
        whole = [gap(1, LARGEST_GAP, epoch=f"{n:016x}")._replace(outbox=f"{n:016x}") for n in range(count)]
        self.commit(*whole[:600])
        self.commit(*whole[600:])
        self.assertEqual((len(self.answers.acks), self.answers.refusals), (400, []))
        text = "the gaps of a node can have at most 1,000,000,000,000,000 samples in total, not 1,000,000,000,000,001"
        self.assertEqual(self.refusal(gap(1, 1, epoch="f" * 16)), text)
        self.assertEqual(self.refusal(gap(1, 0, epoch="f" * 16, before=1, base=LARGEST_SEQ)), text)
        self.commit(batch(1, 3, epoch="f" * 16), gap(1, 5, node="b"))  # samples and other nodes are still admitted
        self.assertEqual((len(self.answers.acks), self.stored().keys()), (2, {1, 2, 3}))

    def test_sum_of_gaps_is_limited_within_one_commit(self):
        with mock.patch.object(node_limits, "MOST_MISSING", 10):
            self.refusal(gap(1, 6), gap(1, 5, epoch=E2))
            self.assertEqual(self.store.usage("a").missing, 6)

    def test_batches_after_a_refused_gap_are_refused_and_earlier_ones_are_stored(self):
        self.commit(batch(1, 2), gap(3, LARGEST_SEQ), batch(3, 4), batch(5, 5))
        self.assertEqual((self.answers.acks, len(self.answers.refusals)), ([(E1, 5)], 1))
        self.assertEqual(sorted(self.stored()), [1, 2, 3, 4, 5])

    def test_reason_of_several_lines_becomes_one_line_in_the_log(self):
        self.commit(gap(1, 1, why='x,\n"\r\u2028\x85\0=1'), gap(2, 2, why="=1+1"), batch(3, 3))
        self.assertEqual([one["why"] for one in self.store.gaps(9)], ["=1+1", 'x, "    =1'])
        self.assertEqual(list(verify_logs(os.path.join(self.folder, "logs"), self.store)), [])

    def test_number_of_gaps_is_limited(self):
        with mock.patch.object(node_limits, "MOST_GAPS", 3):
            self.commit(*(gap(n, n) for n in range(1, 4)))
            self.assertEqual(self.refusal(gap(4, 4)), "a node can have at most 3 gaps")
            self.commit(batch(4, 4))
            self.assertEqual(self.answers.acks, [(E1, 4)])

    def test_number_of_epochs_is_limited(self):
        with mock.patch.object(node_limits, "MOST_EPOCHS", 3):
            self.commit(*(batch(1, 1, epoch=f"{n:016x}") for n in range(3)))
            self.assertEqual(self.refusal(batch(1, 1, epoch="f" * 16)), "a node can have at most 3 epochs")
            self.commit(batch(2, 2, epoch=f"{0:016x}"))
            self.assertEqual(self.answers.acks, [(f"{0:016x}", 2)])

    def test_number_of_nodes_is_limited(self):
        with mock.patch.object(node_limits, "MOST_NODES", 3):
            self.commit(batch(1, 1, node="x"), batch(1, 1, node="y"))
            self.assertIn("the store has 3 nodes", self.refusal(batch(1, 1, node="z"), batch(1, 1, node="q")))
            self.assertIn("the store has 3 nodes", self.refusal(batch(1, 1, node="r")))
            self.commit(batch(2, 2, node="x"), batch(1, 1, node="x", epoch=E2), batch(2, 2, node="z"))
            self.assertEqual(set(self.answers.acks), {(E1, 2), (E2, 1)})

    def test_each_limit_is_logged_once(self):
        with self.assertLogs("pigeonpost.server.ingest", "WARNING") as logged:
            for _ in range(3):
                self.refusal(gap(1, LARGEST_SEQ))
        self.assertEqual(len(logged.output), 1)
        self.assertIn("node a: its samples are refused: a gap can have", logged.output[0])
