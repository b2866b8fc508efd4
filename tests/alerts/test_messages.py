"""Tests of the texts of messages, for all recipients and for one that wants only some of the alerts."""

import json
import unittest

from pigeonpost.alerts.contract import AlertMessage
from pigeonpost.alerts.recipients import Filter
from tests.alerts.engine_support import EngineCase
from tests.page_support import use_memory_disk


def setUpModule():
    use_memory_disk()


HOT = {"sensor": "temperature", "above": 40, "for": 60}


class Messages(EngineCase):
    TABLES = (HOT,)

    def messages(self, seconds=0.0):
        """Return the messages that are due after `seconds`, as they are read again after a restart."""
        self.clock.sleep(seconds)
        made = self.alerts.look()
        self.start()
        read = [queued.message for queued in self.queue.waiting("mail")]
        self.assertEqual(read[-len(made) :], made)
        return made

    def test_message_for_a_recipient_of_one_alert_has_threshold_condition_and_page(self):
        self.bring(41.5, "attic")
        self.bring(42.5, "cellar")
        (group,) = self.messages(60)
        found = Filter(nodes=["cellar"]).select(group)
        self.assertRegex(found.subject, r"^Alert: temperature of cellar is 42\.5 °C at \S+ \S+ \(above 40 °C\)$")
        first, condition, since, page, end = found.text.split("\n")
        self.assertRegex(first, r"^temperature of cellar is 42\.5 °C at ")
        self.assertEqual(condition, "Condition of the alert: temperature above 40 °C for 60 s.")
        self.assertRegex(since, r"^Since .* \(60 s\)\.$")
        self.assertEqual((page, end), ("http://pi/nodes/cellar/temperature", ""))
        self.assertEqual((found.id, found.kind, found.info["node"]), (group.id, "alert", "cellar"))
        self.assertEqual([alert["node"] for alert in found.info["alerts"]], ["cellar"])

    def test_message_for_a_recipient_of_several_alerts_lists_them_with_their_thresholds(self):
        self.tables = [HOT, {**HOT, "above": 30, "severity": "info"}, {**HOT, "node": "cellar", "severity": "critical"}]
        self.start()
        for node in ("attic", "cellar"):
            self.bring(41.5, node)
        (group,) = self.messages(60)
        self.assertTrue(group.subject.startswith("Critical alert: 5 alerts at "), group.subject)
        found = Filter(nodes=["attic"]).select(group)
        value = "temperature of attic is 41.5 °C"
        self.assertRegex(
            found.subject, rf"^Alert: 2 alerts at \S+ \S+: {value} \(above 40 °C\); {value} \(above 30 °C\)$"
        )
        lines = found.text.split("\n")
        self.assertRegex(lines[0], r"^2 alerts within a short time, ")
        self.assertRegex(lines[2], rf"^- {value} at \S+ \S+ \(above 40 °C\)$")
        self.assertEqual(lines[-2:], ["http://pi/", ""])
        self.assertEqual((found.severity, found.info["severity"]), ("warning", "warning"))

    def test_repeated_and_ended_alerts_are_reduced_in_the_same_way(self):
        self.tables = [{**HOT, "again": 600}]
        self.start()
        for node in ("attic", "cellar"):
            self.bring(41.5, node)
        self.look(60)
        chosen = Filter(nodes=["attic"])
        (group,) = self.messages(600)
        self.assertRegex(chosen.select(group).subject, r"^Alert, repeated: temperature of attic is 41\.5 °C .*40 °C\)$")
        for node in ("attic", "cellar"):
            self.bring(39, node)
        (group,) = self.messages()
        found = chosen.select(group)
        self.assertRegex(found.subject, r"^Resolved: temperature of attic is 39 °C .* \(after 11 min; above 40 °C\)$")
        self.assertRegex(found.text, r"\nIt lasted 11 min, from .*\nhttp://pi/nodes/attic/temperature\n$")

    def test_reduced_message_equals_one_about_the_same_alerts_alone(self):
        texts = []
        for nodes in (("attic",), ("attic", "cellar")):
            self.doCleanups()
            self.setUp()
            self.tables = [{**HOT, "name": "heat"}, {"kind": "failed", "for": 60}]
            self.start()
            for node in nodes:
                self.bring(41.5, node)
                self.bring(None, node, "light", error="no answer")
            (message,) = self.messages(60)
            found = Filter(nodes=["attic"]).select(message)
            texts.append((found.subject, found.text, found.severity, found.kind))
        self.assertEqual(*texts)

    def test_message_about_several_alerts_contains_each_remedy_once(self):
        self.tables = [HOT, {"kind": "failed", "for": 60}, {"silent": 120}]
        self.start()
        for node in ("attic", "cellar"):
            self.bring(41.5, node)
            for sensor in ("light", "humidity"):
                self.bring(None, node, sensor)
        self.look(59)
        self.link("shed"), self.link("loft")
        (message,) = self.messages(121)
        self.assertEqual(message.text.count("Check the sensor and its wiring"), 1)
        self.assertEqual(message.text.count("`control.py retire NODE`"), 1)
        self.assertTrue(message.text.endswith("shows the reason.\nhttp://pi/\n"), message.text)
        found = Filter(nodes=["shed"]).select(message)
        self.assertIn("`control.py retire shed`", found.text)
        self.assertNotIn("wiring", found.text)

    def test_message_that_was_queued_without_its_source_is_still_read_and_reduced(self):
        message = AlertMessage(
            "Alert: 2 alerts", "text\n",
            {"alerts": [{"node": "attic", "severity": "warning", "text": "attic is hot"},
                        {"node": "cellar", "severity": "critical", "text": "cellar is hot"}]},
            "m1", "critical",
        )  # fmt: skip
        with self.queue._db as db:
            db.execute("INSERT INTO queue VALUES (1, 'mail', 5, ?)", (json.dumps(list(message)[:7]),))
        self.start()
        (queued,) = self.queue.waiting("mail")
        self.assertEqual(queued.message, message)
        for source in (None, {"of": "a later version"}):
            found = Filter(nodes=["attic"]).select(queued.message._replace(source=source))
            self.assertEqual((found.subject, found.text), ("Alert: attic is hot", "attic is hot.\n"))
            self.assertEqual(found.severity, "warning")

    def test_earlier_version_can_read_the_stored_message(self):
        for node in ("attic", "cellar"):
            self.bring(41.5, node)
        (message,) = self.messages(60)
        ((text,),) = self.queue._db.execute("SELECT message FROM queue")
        self.assertEqual(json.loads(text)[:2], [message.subject, message.text])
        self.assertEqual(len(json.loads(text)), 7)
        self.assertNotIn("source", message.info)


if __name__ == "__main__":
    unittest.main()
