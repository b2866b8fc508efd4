"""Tests of alerts, reports, and the channels that deliver them."""

import random
import unittest
from types import SimpleNamespace

from pigeonpost.alerts.engine import Alerts
from pigeonpost.alerts.rules import read_rules
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import SettingsError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import NOTHING, EpochCommit
from tests.alerts.fake_servers import Hook, serve
from tests.forked import Forked
from tests.page_support import use_memory_disk
from tests.storage.test_contract import E1, OUTBOX, sample
from tests.support import temp_folder, wait_until


def setUpModule():
    use_memory_disk()


class AlertCase(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.links = [SimpleNamespace(state=SimpleNamespace(name=name)) for name in ("attic", "cellar")]
        self.seq = 0

    def alerts(self, *tables):
        self.made = Alerts(read_rules(tables, "server.toml"), self.links, self.clock)
        return self.made

    def bring(self, value, node="attic", time_ms=None):
        self.seq += 1
        self.file([sample(self.seq, value, self.clock.wall_ms() if time_ms is None else time_ms)], node)

    def file(self, samples, node="attic"):
        epoch_commit = EpochCommit(node, OUTBOX, E1, NOTHING)
        epoch_commit.units = {"temperature": "°C"}
        epoch_commit.items.append(SampleBatch.of(samples))
        self.made.on_commit([epoch_commit])

    def subjects(self):
        return [message.subject.partition(" at ")[0] for message in self.made.look()]


class Thresholds(AlertCase):
    HOT = {"sensor": "temperature", "above": 40}

    def test_threshold_alert_is_sent_and_resolved(self):
        self.alerts({**self.HOT, "below": 2, "node": "attic"})
        for value, said in (
            (40, []), (40.5, ["Alert: temperature of attic is 40.5 °C"]), (41, []), (None, []),
            (39, ["Resolved: temperature of attic is 39 °C"]), (1, ["Alert: temperature of attic is 1 °C"]),
        ):  # fmt: skip
            self.bring(value)
            self.assertEqual(self.subjects(), said, value)

    def test_value_of_another_node_is_ignored(self):
        self.alerts({**self.HOT, "node": "attic"})
        self.bring(50, "cellar")
        self.assertEqual(self.subjects(), [])

    def test_rule_without_a_node_applies_to_every_node(self):
        self.alerts(self.HOT)
        self.bring(50, "cellar")
        self.bring(51, "attic")
        (message,) = self.made.look()
        self.assertEqual([alert["node"] for alert in message.info["alerts"]], ["attic", "cellar"])

    def test_batch_gives_the_same_alerts_as_single_samples(self):
        dice = random.Random(14)
        tables = [
            {"sensor": "temperature", "above": 40}, {"sensor": "temperature", "above": 45, "below": -5, "for": 5},
            {"sensor": "light", "below": 1, "node": "attic", "again": 10}, {"node": "attic", "silent": 20},
        ]  # fmt: skip
        told = 0
        for _ in range(30):
            made = [self.alerts(*tables) for _ in range(2)]
            time_ms, last = self.clock.wall_ms(), 0
            for _ in range(6):
                values, samples = dice.choice([(20, 30), (50, 60), (None,), (20, 50, None), (-10, 44)]), []
                for seq in range(last + 1, last + dice.randrange(2, 20)):
                    time_ms += 1000 if dice.random() < 0.9 else -5000
                    samples.append(sample(seq, dice.choice(values), time_ms))
                last = samples[-1].seq
                for self.made, some in zip(made, ([samples], [[one] for one in samples])):
                    for part in some:
                        self.file(part)
                self.clock.sleep(dice.choice([1, 4, 30]))
                said = [sorted(message.subject for message in alerts.look()) for alerts in made]
                self.assertEqual(*said)
                told += len(said[0])
        self.assertGreater(told, 50)

    def test_alert_is_sent_only_after_the_time_for(self):
        self.alerts({**self.HOT, "for": 60})
        self.bring(50)
        self.clock.sleep(59)
        self.bring(50)
        self.assertEqual(self.subjects(), [])
        self.clock.sleep(1)
        self.assertEqual(len(self.subjects()), 1)

    def test_condition_that_ends_within_a_batch_starts_a_new_time(self):
        self.alerts({**self.HOT, "for": 60})
        self.bring(50)
        self.clock.sleep(40)
        time_ms = self.clock.wall_ms()
        self.file([sample(seq, value, time_ms + seq) for seq, value in enumerate((50, 20, 50), 2)])
        self.clock.sleep(40)
        self.assertEqual(self.subjects(), [])
        self.clock.sleep(20)
        self.assertEqual(len(self.subjects()), 1)

    def test_condition_that_ends_early_sends_no_alert(self):
        self.alerts({**self.HOT, "for": 60})
        self.bring(50)
        self.clock.sleep(30)
        self.bring(20)
        self.clock.sleep(60)
        self.assertEqual(self.subjects(), [])

    def test_peak_between_two_checks_is_reported_without_the_time_for(self):
        self.alerts(self.HOT)
        self.bring(50)
        self.bring(20)
        self.assertEqual(self.subjects(), ["Alert: temperature of attic is 50 °C"])
        self.assertEqual(self.subjects(), ["Resolved: temperature of attic is 20 °C"])
        self.assertEqual(self.subjects(), [])

    def test_peak_is_not_reported_with_the_time_for(self):
        self.alerts({**self.HOT, "for": 1})
        self.bring(50)
        self.bring(20)
        self.clock.sleep(5)
        self.assertEqual(self.subjects(), [])

    def test_alert_is_repeated_while_the_condition_lasts(self):
        self.alerts({**self.HOT, "again": 600})
        self.bring(50)
        self.assertEqual(len(self.subjects()), 1)
        self.clock.sleep(599)
        self.assertEqual(self.subjects(), [])
        self.clock.sleep(1)
        self.assertEqual(len(self.subjects()), 1)

    def test_late_value_older_than_the_last_one_is_ignored(self):
        self.alerts(self.HOT)
        self.bring(20)
        self.bring(50, time_ms=self.clock.wall_ms() - 1000)
        self.assertEqual(self.subjects(), [])

    def test_message_contains_value_time_and_condition(self):
        self.alerts(self.HOT)
        self.bring(50)
        (message,) = self.made.look()
        self.assertRegex(
            message.text,
            r"^temperature of attic is 50 °C at 20\S+ \S+\+00:00\.\nCondition of the alert: temperature above 40 °C\.\n"
            r"Since 20\S+ \S+\+00:00 \(0 s\)\.\n$",
        )
        self.assertEqual((message.info["kind"], message.info["node"], message.info["above"]), ("alert", "attic", 40))


class Silence(AlertCase):
    def test_silent_node_is_reported_and_resolved(self):
        self.alerts({"silent": 600})
        self.clock.sleep(300)
        self.bring(1, "attic")
        self.clock.sleep(301)
        self.assertEqual(self.subjects(), ["Alert: no sample of cellar for 601 s"])
        self.clock.sleep(300)
        self.assertEqual(self.subjects(), ["Alert: no sample of attic for 601 s"])
        self.bring(1, "cellar")
        self.assertEqual(self.subjects(), ["Resolved: cellar sends samples again"])

    def test_node_that_never_sent_a_sample_is_reported(self):
        self.alerts({"silent": 60, "node": "shed"})
        self.clock.sleep(61)
        self.assertEqual(self.subjects(), ["Alert: no sample of shed for 61 s"])


class Tables(unittest.TestCase):
    def test_invalid_tables_are_refused(self):
        for table, words in (
            ({}, "must have either `sensor` with `above` or `below`, or `silent`"),
            ({"silent": 5, "above": 1, "sensor": "x"}, "must have either `sensor`"),
            ({"above": 1}, "require `sensor`"), ({"silent": 5, "sensor": "x"}, "require `sensor`"),
            ({"sensor": "x", "above": "hot"}, "above takes"), ({"sensor": "x", "abov": 1}, "above"),
            ({"sensor": "X", "above": 1}, "sensor takes"), ({"silent": 0}, "silent takes"),
        ):  # fmt: skip
            with self.assertRaises(SettingsError) as caught:
                read_rules([{"silent": 9}, table], "server.toml")
            self.assertIn("server.toml: [[alert]] 2: ", str(caught.exception))
            self.assertIn(words, str(caught.exception))


class ServerProgram(unittest.TestCase):
    def test_server_sends_an_alert_about_a_silent_node(self):
        server, port = serve(self, Hook, status=200)
        folder = temp_folder(self)
        with open(f"{folder}/server.toml", "w", encoding="utf-8") as settings:
            settings.write(f'[webhook]\nurl = "http://127.0.0.1:{port}/"\n[[alert]]\nnode = "attic"\nsilent = 1\n')
        often = {"pigeonpost.alerts.notifier.LOOK_S": 0.05}
        program = Forked(self, "server.py", "--web", "127.0.0.1:0", folder=folder, constants=often)
        program.line()
        wait_until(lambda: server.received, "a message at the webhook")
        self.assertRegex(server.received[0][2]["subject"], "^Alert: no sample of attic for [0-9]+ s at .*limit 1 s")
        program.terminate()
        self.assertEqual(program.wait(), 0)

    def test_alerts_without_a_recipient_are_refused(self):
        folder = temp_folder(self)
        with open(f"{folder}/server.toml", "w", encoding="utf-8") as settings:
            settings.write("[report]\nevery = 24\n")
        program = Forked(self, "server.py", "--web", "127.0.0.1:0", folder=folder)
        self.assertEqual(program.wait(), 2)
        program.logs("set [mail] to or [webhook] url")


if __name__ == "__main__":
    unittest.main()
