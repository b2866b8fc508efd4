"""What happened in a run: every turn once, in order, bounded."""

import threading
import unittest
from types import SimpleNamespace

from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server import event_log
from pigeonpost.server.event_log import MOST, EventLog
from pigeonpost.server.node_status import NodeState
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import Gap, Sample
from tests.support import LIMIT_S, wait_until


class DiaryCase(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.links, self.faults = [], {}
        self.event_log = EventLog(self.links, lambda: self.faults, self.clock)

    def node(self, name="basement", connected=True, on=True):
        state = NodeState("192.168.1.20:5003", name)
        state.connected, state.on = connected, on
        state.since_ms = self.clock.wall_ms() if connected else None
        self.links.append(SimpleNamespace(state=state))
        return state

    def told(self):
        return [(one.node, one.kind) for one in self.event_log.all()]


class Looking(DiaryCase):
    def test_a_node_that_is_not_reached_yet_is_nothing_new(self):
        self.node(connected=False, on=None)
        self.event_log.look()
        self.assertEqual(self.told(), [])

    def test_reached_lost_and_reached_again(self):
        state = self.node(connected=False, on=None)
        self.event_log.look()
        state.connected, state.on, state.since_ms = True, True, 1000
        self.event_log.look()
        self.event_log.look()
        state.connected, state.fault, state.since_ms = False, "closed", 2000
        self.event_log.look()
        state.connected, state.since_ms = True, 3000
        self.event_log.look()
        self.assertEqual(
            [(one.time_ms, one.kind, one.words) for one in self.event_log.all()],
            [(1000, "reached", "connected"), (2000, "lost", "lost: closed"), (3000, "reached", "connected")],
        )

    def test_lost_and_back_between_two_looks(self):
        state = self.node()
        self.event_log.look()
        state.since_ms += 400
        self.event_log.look()
        self.assertEqual(self.told(), [("basement", "reached")] * 2)
        self.assertIn("anew", self.event_log.all()[-1].words)

    def test_off_and_on(self):
        state = self.node()
        for state.on in (True, False, False, True):
            self.event_log.look()
        self.assertEqual([kind for _, kind in self.told()], ["reached", "off", "on"])

    def test_one_that_is_found_switched_off(self):
        self.node(on=False)
        self.event_log.look()
        self.assertEqual([kind for _, kind in self.told()], ["reached", "off"])

    def test_a_node_that_comes_later(self):
        self.event_log.look()
        self.node("attic")
        self.event_log.look()
        self.assertEqual(self.told(), [("attic", "reached")])

    def test_one_without_a_name_is_called_by_its_address(self):
        self.node("")
        self.event_log.look()
        self.assertEqual(self.told(), [("192.168.1.20:5003", "reached")])

    def test_a_fault_begins_once_and_ends_once(self):
        for self.faults in (
            {"store": ""},
            {"store": "the disk is full"},
            {"store": "the disk is fuller"},
            {"store": ""},
        ):
            self.event_log.look()
        self.assertEqual(
            [(one.node, one.kind, one.words) for one in self.event_log.all()],
            [("", "fault", "store: the disk is full"), ("", "mended", "store: works again")],
        )

    def test_no_more_than_so_many_are_kept(self):
        state = self.node()
        for number in range(2 * MOST):
            state.since_ms = number
            self.event_log.look()
        self.assertEqual(len(self.event_log.all()), MOST)
        self.assertEqual(self.event_log.all()[-1].time_ms, 2 * MOST - 1)

    def test_words_of_a_stranger_are_cut(self):
        state = self.node()
        self.event_log.look()
        state.connected, state.fault = False, "x" * 100_000
        self.event_log.look()
        self.assertLess(len(self.event_log.all()[-1].words), 400)

    def test_its_thread_looks_by_itself_and_ends(self):
        before = event_log._LOOK_S
        event_log._LOOK_S = 0.01
        self.addCleanup(setattr, event_log, "_LOOK_S", before)
        self.event_log.start()
        self.node()
        wait_until(lambda: self.told() == [("basement", "reached")], "it looked")
        self.event_log.stop(LIMIT_S)
        self.assertNotIn("events", [thread.name for thread in threading.enumerate()])


class Stored(DiaryCase):
    def epoch_commit(self, first, outbox="a" * 16, gap=False):
        epoch_commit = EpochCommit("basement", outbox, "b" * 16, NOTHING)
        samples = [Sample(first, 5000, 1, {"t": 1}, {}, ""), Sample(first + 1, 6000, 2, {"t": 1}, {}, "")]
        epoch_commit.items = [Gap(1, 3, 0, "lost"), SampleBatch.of(samples)] if gap else [SampleBatch.of(samples)]
        return epoch_commit

    def test_sample_1_tells_of_a_start(self):
        self.event_log.on_commit([self.epoch_commit(1), self.epoch_commit(3)])
        self.assertEqual([(one.time_ms, one.kind) for one in self.event_log.all()], [(5000, "started")])

    def test_what_is_no_first_sample_does_not(self):
        self.event_log.on_commit([self.epoch_commit(4, gap=True)])
        self.assertEqual(self.told(), [])


if __name__ == "__main__":
    unittest.main()
