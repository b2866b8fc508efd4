"""Log of events: each change once, in order, limited in number."""

import os
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
from tests.support import LIMIT_S, temp_folder, wait_until


class EventLogCase(unittest.TestCase):
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


class StateChangeTest(EventLogCase):
    def test_node_that_is_not_reached_yet_is_not_an_event(self):
        self.node(connected=False, on=None)
        self.event_log.update()
        self.assertEqual(self.told(), [])

    def test_connection_loss_and_new_connection_are_events(self):
        state = self.node(connected=False, on=None)
        self.event_log.update()
        state.connected, state.on, state.since_ms = True, True, 1000
        self.event_log.update()
        self.event_log.update()
        state.connected, state.fault, state.since_ms = False, "closed", 2000
        self.event_log.update()
        state.connected, state.since_ms = True, 3000
        self.event_log.update()
        self.assertEqual(
            [(one.time_ms, one.kind, one.words) for one in self.event_log.all()],
            [(1000, "reached", "connected"), (2000, "lost", "lost: closed"), (3000, "reached", "connected")],
        )

    def test_short_interruption_between_two_checks_is_an_event(self):
        state = self.node()
        self.event_log.update()
        state.since_ms += 400
        self.event_log.update()
        self.assertEqual(self.told(), [("basement", "reached")] * 2)
        self.assertIn("connected again", self.event_log.all()[-1].words)

    def test_switching_off_and_on_are_events(self):
        state = self.node()
        for state.on in (True, False, False, True):
            self.event_log.update()
        self.assertEqual([kind for _, kind in self.told()], ["reached", "off", "on"])

    def test_first_state_off_is_an_event(self):
        self.node(on=False)
        self.event_log.update()
        self.assertEqual([kind for _, kind in self.told()], ["reached", "off"])

    def test_state_of_a_client_in_an_earlier_run_is_not_an_event(self):
        for on, kinds in ((False, ["reached"]), (True, ["reached", "off"])):
            self.setUp()
            state = self.node(connected=False, on=on)
            self.event_log.update()
            self.assertEqual(self.told(), [])
            state.connected, state.on, state.since_ms = True, False, 1000
            self.event_log.update()
            self.assertEqual([kind for _, kind in self.told()], kinds)

    def test_node_that_is_added_later_is_an_event(self):
        self.event_log.update()
        self.node("attic")
        self.event_log.update()
        self.assertEqual(self.told(), [("attic", "reached")])

    def test_node_without_a_name_is_identified_by_its_address(self):
        self.node("")
        self.event_log.update()
        self.assertEqual(self.told(), [("192.168.1.20:5003", "reached")])

    def test_fault_begins_once_and_ends_once(self):
        for self.faults in (
            {"store": ""},
            {"store": "the disk is full"},
            {"store": "the disk is fuller"},
            {"store": ""},
        ):
            self.event_log.update()
        self.assertEqual(
            [(one.node, one.kind, one.words) for one in self.event_log.all()],
            [("", "fault", "store: the disk is full"), ("", "mended", "store: works again")],
        )

    def test_number_of_events_is_limited(self):
        state = self.node()
        for number in range(2 * MOST):
            state.since_ms = number
            self.event_log.update()
        self.assertEqual(len(self.event_log.all()), MOST)
        self.assertEqual(self.event_log.all()[-1].time_ms, 2 * MOST - 1)

    def test_untrusted_texts_are_shortened(self):
        state = self.node()
        self.event_log.update()
        state.connected, state.fault = False, "x" * 100_000
        self.event_log.update()
        self.assertLess(len(self.event_log.all()[-1].words), 400)

    def test_thread_checks_automatically_and_stops(self):
        before = event_log._LOOK_S
        event_log._LOOK_S = 0.01
        self.addCleanup(setattr, event_log, "_LOOK_S", before)
        self.event_log.start()
        self.node()
        wait_until(lambda: self.told() == [("", "started"), ("basement", "reached")], "it looked")
        self.event_log.stop(LIMIT_S)
        self.assertNotIn("events", [thread.name for thread in threading.enumerate()])


class CommitTest(EventLogCase):
    def epoch_commit(self, first, outbox="a" * 16, gap=False):
        epoch_commit = EpochCommit("basement", outbox, "b" * 16, NOTHING)
        samples = [Sample(first, 5000, 1, {"t": 1}, {}, ""), Sample(first + 1, 6000, 2, {"t": 1}, {}, "")]
        epoch_commit.items = [Gap(1, 3, 0, "lost"), SampleBatch.of(samples)] if gap else [SampleBatch.of(samples)]
        return epoch_commit

    def test_first_sample_of_an_epoch_is_a_start_event(self):
        self.event_log.on_commit([self.epoch_commit(1), self.epoch_commit(3)])
        self.assertEqual([(one.time_ms, one.kind) for one in self.event_log.all()], [(5000, "started")])

    def test_later_samples_and_gaps_are_not_start_events(self):
        self.event_log.on_commit([self.epoch_commit(4, gap=True)])
        self.assertEqual(self.told(), [])


class SaveTest(EventLogCase):
    def setUp(self):
        super().setUp()
        self.path = os.path.join(temp_folder(self), "events.jsonl")

    def log_of_a_run(self):
        return EventLog(self.links, dict, self.clock, self.path)

    def events(self):
        return [(one.node, one.kind, one.words) for one in self.log_of_a_run().all()]

    def content(self):
        with open(self.path, encoding="utf-8") as file:
            return file.read()

    def test_events_survive_a_restart(self):
        run = self.log_of_a_run()
        run.record("attic", "lost", "lost: “Ü”\nnot connected")
        run.save()
        run.record("attic", "reached", "connected")
        run.save()  # less than ten seconds later
        self.assertEqual(len(self.events()), 1)
        self.clock.sleep(10)
        run.save()
        self.assertEqual([kind for _, kind, _ in self.events()], ["lost", "reached"])
        self.assertEqual(self.events()[0][2], "lost: “Ü”\nnot connected")

    def test_last_events_are_saved_at_the_end(self):
        run = self.log_of_a_run()
        for kind in ("lost", "reached"):
            run.record("attic", kind, "words")
            run.save(now=True)
        self.assertEqual([kind for _, kind, _ in self.events()], ["lost", "reached"])

    def test_file_contains_a_limited_number_of_events(self):
        run = self.log_of_a_run()
        for number in range(2 * MOST + 100):
            run.record("attic", "lost", str(number))
            if number % 150 == 0:
                run.save(now=True)
        run.save(now=True)
        self.assertEqual([words for _, _, words in self.events()], [str(k) for k in range(MOST + 100, 2 * MOST + 100)])
        self.assertLessEqual(len(self.content().splitlines()), 2 * MOST)

    def test_renamed_node_is_renamed_in_the_file(self):
        run = self.log_of_a_run()
        run.record("attic", "lost", "words")
        run.save(now=True)
        run.on_rename("attic", "loft")
        run.save(now=True)
        self.assertEqual(self.events(), [("loft", "lost", "words")])

    def test_damaged_lines_are_skipped_and_removed(self):
        whole = '[1000, "attic", "lost", "words"]\n'
        lines = ('{"a": 1}', "\0\0", "[" * 10_000, '[1e400, "a", "b", "c"]', '[-1, "", "", ""]')
        for damage in ("[1000, ", *(f"{line}\n" for line in lines)):
            with self.subTest(damage=damage[:20]):
                with open(self.path, "w", encoding="utf-8") as file:
                    file.write(whole + damage)
                self.assertEqual(self.events(), [("attic", "lost", "words")])
                run = self.log_of_a_run()
                run.record("attic", "reached", "connected")
                run.save(now=True)
                self.assertEqual([kind for _, kind, _ in self.events()], ["lost", "reached"])

    def test_name_of_a_file_that_is_not_utf_8_is_saved(self):
        run = self.log_of_a_run()
        run.record("", "fault", os.fsdecode(b"caf\xe9/tokens.json is damaged"))
        run.save(now=True)
        self.assertEqual(self.events(), [("", "fault", "caf?/tokens.json is damaged")])

    def test_events_that_cannot_be_written_are_written_later(self):
        run = self.log_of_a_run()
        os.mkdir(self.path)
        with self.assertLogs("pigeonpost.server.event_log", "WARNING") as logged:
            for kind in ("lost", "reached"):
                run.record("attic", kind, "words")
                run.save(now=True)
        self.assertEqual(len(logged.records), 1)
        os.rmdir(self.path)
        run.save(now=True)
        self.assertEqual([kind for _, kind, _ in self.events()], ["lost", "reached"])


if __name__ == "__main__":
    unittest.main()
