"""Tests of the delivery: queue, retries, refusals, recipients, restarts."""

import logging
import os
import unittest
import unittest.mock

from pigeonpost.alerts import notifier
from pigeonpost.alerts.alert_store import AlertStore
from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent, Pace, Refused
from pigeonpost.alerts.notifier import Notifier
from pigeonpost.alerts.recipients import Filter
from pigeonpost.alerts.trial import send_trial
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import DiskError, NotStored
from tests.alerts.fake_servers import MemoryQueue
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, temp_folder

HELLO = AlertMessage("Alert: it is 41 °C", "It is 41 °C.\n", {"kind": "alert"}, "a-1")
AWAY = NotSent("fake at smtp://u:hunter2@host: it is away")
BUSY = NotSent("fake: 451 try later", is_answer=True)
NO = Refused("fake: 550 no such user")


def setUpModule():
    use_memory_disk()


class FakeChannel(AlertChannel):
    def __init__(self, key="fake", place="fake", chosen=None):
        self.key, self.place, self.taken, self.tried = key, place, [], []
        self.errors = {}  # by subject; "" for all
        if chosen is not None:
            self.select = chosen.select

    def send(self, message):
        self.tried.append(message.subject)
        error = self.errors.get(message.subject, self.errors.get(""))
        if error is not None:
            raise error
        self.taken.append(message.subject)


def named(*subjects):
    return [HELLO._replace(subject=one, id=f"id-{one}") for one in subjects]


class DeliveryCase(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.clock, self.channel, self.now = FakeClock(), FakeChannel(), []
        self.queue = MemoryQueue(self.clock, "fake", "other")
        self.watch = self.notifier(self.channel)

    def notifier(self, *channels):
        return Notifier(channels, self.look, self.queue, self.clock)

    def look(self):
        now, self.now = self.now, []
        self.queue.put(now, None if len(self.watch.channels) > 1 else ["fake"])

    def bring(self, *subjects):
        self.now = named(*subjects)
        self.watch.look()


class Delivery(DeliveryCase):
    def test_alerts_are_sent_immediately(self):
        self.bring("one", "two")
        self.assertEqual(self.channel.taken, ["one", "two"])
        self.assertEqual((self.watch.report(), self.watch.fault), ({"sent": 2, "waiting": 0}, ""))

    def test_failed_messages_are_retried_in_order_with_growing_pauses(self):
        self.channel.errors[""] = AWAY
        self.bring("one")
        self.assertEqual(self.watch.fault, "messages are not sent yet: fake at smtp://***@host: it is away")
        self.bring("two")
        for pause_s in (60, 120, 240, 480, 960, 1920, 3600, 3600):
            self.clock.sleep(pause_s - 1)
            tried = len(self.channel.tried)
            self.watch.look()
            self.assertEqual(len(self.channel.tried), tried, pause_s)
            self.clock.sleep(1)
            self.watch.look()
            self.assertEqual(len(self.channel.tried), tried + 1, pause_s)
        self.channel.errors.clear()
        self.clock.sleep(3600)
        self.watch.look()
        self.assertEqual((self.channel.taken, self.watch.fault), (["one", "two"], ""))

    def test_retry_after_is_obeyed(self):
        for pause_s in (1, 30, 600, 7200, 86_400):
            self.channel.errors[""] = NotSent("fake: 429", pause_s)
            self.bring(f"m{pause_s}")
            tried = len(self.channel.tried)
            self.clock.sleep(pause_s - 0.5)
            self.watch.look()
            self.assertEqual(len(self.channel.tried), tried, pause_s)
            self.channel.errors.clear()
            self.clock.sleep(0.5)
            self.watch.look()
            self.assertEqual(self.channel.taken[-1], f"m{pause_s}")

    def test_pace_of_a_channel_is_kept_and_delays_no_other(self):
        self.channel.pace, other = Pace(2, 5.0), FakeChannel("other")
        self.watch = self.notifier(self.channel, other)
        names = [f"m{number}" for number in range(6)]
        self.bring(*names)
        self.assertEqual((self.channel.taken, other.taken), (names[:2], names))
        self.assertEqual(self.watch.fault, "")
        for pause_s, count in ((4, 2), (1, 3), (2, 3), (3, 4), (100, 6)):
            self.clock.sleep(pause_s)
            self.watch.look()
            self.assertEqual(self.channel.taken, names[:count])
        self.clock.sleep(86_400)
        self.bring(*(f"{name} again" for name in names))
        self.assertEqual(len(self.channel.taken), 8)

    def test_state_of_each_channel_is_reported_without_addresses(self):
        mail, away = FakeChannel("mail:a@example.org", "mail server h"), FakeChannel("channel phone", "ntfy at h")
        mail.kind, away.kind = "mail", "ntfy"
        self.queue.queues = {"mail:a@example.org": {}, "channel phone": {}}
        self.watch = self.notifier(mail, away)
        mail.errors["two"], away.errors[""] = Refused("mail server h: a@example.org: 550 no"), AWAY
        self.bring("one", "two", "three")
        sent_ms = self.clock.wall_ms()
        first, second = self.watch.statuses()
        self.assertEqual(first[:9], ("alerts mail 1", "mail", "out", "mail server h", sent_ms, 0, "messages", 2, 1))
        self.assertEqual(first.fault, "a message was refused and is not sent again: mail server h")
        self.assertEqual(second[:9],
                         ("alerts channel phone", "ntfy", "out", "ntfy at h", None, 3, "messages", 0, 0))  # fmt: skip
        self.assertIn("smtp://***@host: it is away", second.fault)
        for status in (first, second):
            self.assertIn(status.fault, self.watch.fault)  # otherwise `check` would repeat it
        self.clock.sleep(notifier.REFUSED_S + 1)
        self.assertEqual(self.watch.statuses()[0].fault, "")

    def test_refused_message_blocks_no_other_and_is_a_fault_for_a_day(self):
        self.channel.errors["two"] = NO
        self.bring("one", "two", "three")
        self.assertEqual(self.channel.taken, ["one", "three"])
        self.assertEqual(self.watch.fault,
                         "a message was refused and is not sent again: fake: 550 no such user (two)")  # fmt: skip
        self.clock.sleep(86_399)
        self.watch.look()
        self.assertEqual(self.channel.tried, ["one", "two", "three"])
        self.assertIn("550", self.watch.fault)
        self.clock.sleep(2)
        self.assertEqual(self.watch.fault, "")

    def test_message_that_is_never_accepted_lets_the_others_pass(self):
        for error in (BUSY, ValueError("internal")):
            self.channel.errors["bad"] = error
            self.bring("bad", f"good {error}", "better")
            for _ in range(2 * notifier.PATIENCE):
                self.clock.sleep(notifier.LONGEST_RETRY_S)
                self.watch.look()
            self.assertEqual(self.channel.taken[-2:], [f"good {error}", "better"])
            self.assertIn("messages are not sent yet", self.watch.fault)
            self.channel.errors.clear()
            self.clock.sleep(notifier.LONGEST_RETRY_S)
            self.watch.look()
            self.assertEqual((self.channel.taken.pop(), self.watch.fault), ("bad", ""))

    def test_messages_stay_in_order_while_the_server_accepts_none(self):
        for minutes in (1, 4, 20, 200, 2000):
            self.channel.taken.clear()
            self.channel.errors[""] = BUSY
            self.bring("alert")
            for _ in range(minutes):
                self.clock.sleep(30)
                self.bring("over")
                self.clock.sleep(30)
                self.watch.look()
            self.channel.errors.clear()
            self.clock.sleep(notifier.LONGEST_RETRY_S)
            self.watch.look()
            self.assertEqual(self.channel.taken, ["alert", "over"], minutes)
            self.assertEqual(self.watch.fault, "")

    def test_order_is_kept_when_the_server_accepts_messages_again(self):
        """At any time: the earlier message is tried first."""
        for recovers_s in (61, 181, 200, 425, 1000, 5000, 50_000):
            self.channel.taken.clear()
            self.channel.errors[""] = BUSY
            self.bring("alert")
            self.clock.sleep(recovers_s / 2)
            self.bring("over")
            for _ in range(50):
                self.clock.sleep(recovers_s / 100)
                self.watch.look()
            self.channel.errors.clear()
            for _ in range(400):
                self.clock.sleep(10)
                self.watch.look()
            self.assertEqual(self.channel.taken, ["alert", "over"], recovers_s)

    def test_new_message_does_not_wait_for_one_that_is_never_accepted(self):
        self.channel.errors["bad"] = BUSY
        self.bring("bad", "good")
        for _ in range(10):
            self.clock.sleep(notifier.LONGEST_RETRY_S)
            self.watch.look()
        self.bring("new")
        tried = self.channel.tried.count("bad")
        for n in range(5):
            self.bring(f"new {n}")
            self.assertEqual(self.channel.taken[-2:], [f"new {n - 1}" if n else "new", f"new {n}"])
        self.assertEqual(self.channel.tried.count("bad"), tried)

    def test_message_that_is_not_accepted_for_days_is_given_up(self):
        self.channel.errors["bad"] = BUSY
        self.bring("bad")
        for _ in range(200):
            self.clock.sleep(3600)
            self.watch.look()
        self.assertEqual(self.watch.report()["waiting"], 0)
        self.assertIn("given up after 5 days", self.watch.fault + self.watch.recent.all()[0]["results"][0]["reason"])

    def test_clock_that_is_set_late_gives_up_no_message(self):
        self.channel.errors["bad"] = BUSY
        self.bring("bad")
        self.clock.step(60 * 86_400)
        for _ in range(20):
            self.clock.sleep(60)
            self.watch.look()
        self.channel.errors.clear()
        self.clock.sleep(notifier.LONGEST_RETRY_S)
        self.watch.look()
        self.assertEqual(self.channel.taken, ["bad"])

    def test_unselected_message_does_not_count_as_accepted(self):
        other = FakeChannel("other", chosen=Filter("critical"))
        other.errors[""] = AWAY
        self.watch = self.notifier(self.channel, other)
        self.now = [HELLO._replace(id="1", subject="1", severity="info"), HELLO._replace(id="2", severity="critical"),
                    HELLO._replace(id="3", severity="info")]  # fmt: skip
        self.watch.look()
        self.clock.sleep(59)
        self.watch.look()
        self.assertEqual((len(other.tried), len(self.queue.waiting("other"))), (1, 2))
        self.assertIn("it is away", self.watch.fault)

    def test_server_that_is_away_for_weeks_loses_no_message(self):
        self.channel.errors[""] = AWAY
        self.bring("one")
        for _ in range(21 * 24):
            self.clock.sleep(3600)
            self.watch.look()
        self.channel.errors.clear()
        self.clock.sleep(3600)
        self.watch.look()
        self.assertEqual(self.channel.taken, ["one"])

    def test_failing_channel_does_not_delay_the_other(self):
        other = FakeChannel("other")
        self.watch = self.notifier(self.channel, other)
        self.channel.errors[""] = AWAY
        self.bring("one")
        self.assertEqual((self.channel.taken, other.taken), ([], ["one"]))
        self.channel.errors.clear()
        self.clock.sleep(60)
        self.watch.look()
        self.assertEqual((self.channel.taken, other.taken), (["one"], ["one"]))

    def test_recipient_receives_only_what_it_wants(self):
        chosen = Filter("warning", ["attic"], ["temperature"])
        other = FakeChannel("other", chosen=chosen)
        self.watch = self.notifier(self.channel, other)
        facts = (
            ("a", "warning", {"node": "attic", "sensor": "temperature"}), ("b", "info", {"node": "attic"}),
            ("c", "critical", {"node": "cellar"}), ("d", "critical", {"node": "attic", "sensor": "light"}),
            ("e", "critical", {"alerts": [{"node": "cellar"}, {"node": "attic", "text": "attic"}]}),
            ("f", "critical", {"node": ""}),
        )  # fmt: skip
        self.now = [HELLO._replace(subject=one, id=one, severity=severity, info=info) for one, severity, info in facts]
        self.watch.look()
        self.assertEqual(
            (len(self.channel.taken), other.taken, self.watch.report()["waiting"]),
            (6, ["a", "Critical alert: attic", "f"], 0),
        )

    def test_recipient_without_alerts_receives_tests_and_reports(self):
        for kind, wanted in (("alert", False), ("over", False), ("report", True), ("test", True)):
            self.assertEqual(Filter("none").select(HELLO._replace(kind=kind)) is not None, wanted, kind)

    def test_message_about_several_alerts_is_reduced_to_those_of_the_recipient(self):
        alerts = [
            {"node": "attic", "sensor": "temperature", "severity": "critical", "text": "attic is hot"},
            {"node": "attic", "sensor": "light", "severity": "info", "text": "attic is dark"},
            {"node": "cellar", "sensor": "temperature", "severity": "critical", "text": "cellar is hot"},
            {"node": "", "sensor": "", "severity": "warning", "text": "disk is full"},
        ]
        group = HELLO._replace(subject="Critical alert: 4", severity="critical", info={"alerts": alerts})
        for chosen, kind, subject in (
            (Filter(), "alert", "Critical alert: 4"),
            (Filter("critical", ["attic"]), "alert", "Critical alert: attic is hot"),
            (Filter("info", ["attic"], ["light"]), "alert", "Alert: attic is dark; disk is full"),
            (Filter("warning", ["shed"]), "over", "Resolved: disk is full"),
            (Filter("critical", ["shed"]), "alert", None), (Filter("none"), "alert", None),
        ):  # fmt: skip
            found = chosen.select(group._replace(kind=kind))
            self.assertEqual(found and found.subject, subject, chosen)
            if found is not None:
                self.assertEqual(found.id, HELLO.id)
                self.assertNotIn("cellar", found.text if chosen.nodes else "")

    def test_results_are_listed(self):
        self.channel.errors["two"] = NO
        self.bring("one", "two")
        found = [(one["subject"], one["results"][0]["result"], one["results"][0]["reason"])
                 for one in self.watch.recent.all()]  # fmt: skip
        self.assertEqual(found, [("one", "sent", ""), ("two", "refused", "fake: 550 no such user")])
        self.channel.errors[""] = AWAY
        self.bring("three")
        (state,) = self.watch.states()
        self.assertEqual((state["sent"], state["waiting"], state["next_attempt_s"]), (1, 1, 60))

    def test_message_that_cannot_be_removed_is_not_sent_twice(self):
        self.queue.remove = lambda channel, number: None
        self.bring("one")
        self.watch.look()
        self.assertEqual(self.channel.tried, ["one"])

    def test_numbers_of_removed_messages_are_forgotten(self):
        for number in range(20):
            self.bring(f"m{number}")
        self.watch.look()
        (delivery,) = self.watch._deliveries
        self.assertEqual((len(self.channel.taken), delivery.finished), (20, set()))

    def test_message_that_was_dropped_from_the_queue_is_no_longer_a_fault(self):
        self.channel.errors["bad"] = BUSY
        self.bring("bad")
        for _ in range(4):
            self.clock.sleep(notifier.LONGEST_RETRY_S)
            self.bring("good")
        self.assertIn("451", self.watch.fault)
        self.queue.remove("fake", self.queue.waiting("fake")[0].number)  # as at the limit of the queue
        self.watch.look()
        self.assertEqual((self.watch.fault, self.watch.states()[0]["next_attempt_s"]), ("", None))

    def test_message_dropped_from_the_queue_does_not_end_a_fault_of_the_connection(self):
        self.channel.errors["bad"] = BUSY
        self.bring("bad")
        self.channel.errors[""] = AWAY
        self.clock.sleep(notifier.LONGEST_RETRY_S)
        self.channel.errors["bad"] = AWAY
        self.bring("good")
        self.queue.remove("fake", self.queue.waiting("fake")[0].number)
        self.watch.look()
        self.assertIn("it is away", self.watch.fault)

    def test_thread_continues_after_a_busy_store_or_an_internal_error_and_ends_with_a_broken_store(self):
        failures = [NotStored("locked"), ValueError("internal"), DiskError("broken")]
        self.watch._look = lambda: (_ for _ in ()).throw(failures.pop(0))
        with unittest.mock.patch.object(notifier, "LOOK_S", 0.01):
            self.watch.start()
            self.watch._threads[0].join(LIMIT_S)
        self.assertEqual((failures, self.watch._threads[0].is_alive()), ([], False))
        self.assertIn("internal error: ValueError", self.watch.fault)
        self.assertIsNone(self.watch.stop(LIMIT_S))

    def test_test_message_reports_the_answer_of_each_channel(self):
        other = FakeChannel("other")
        other.errors[""] = NO
        self.assertEqual([why for _, why in send_trial([self.channel, other], HELLO)], ["", "fake: 550 no such user"])


class Restart(DeliveryCase):
    """With the real file of the queue."""

    def setUp(self):
        super().setUp()
        self.path = os.path.join(temp_folder(self), "alerts.sqlite3")
        self.restart()

    def restart(self):
        """Open the file again without closing it, as after kill -9."""
        self.queue = AlertStore(self.path, ["fake"], self.clock)
        self.addCleanup(self.queue.close)
        self.watch = self.notifier(self.channel)

    def test_waiting_messages_are_sent_once_after_a_restart(self):
        self.channel.errors[""] = AWAY
        self.bring("alert")
        self.restart()
        self.bring("over")
        self.restart()
        self.channel.errors.clear()
        self.watch.look()
        self.restart()
        self.watch.look()
        self.assertEqual(self.channel.taken, ["alert", "over"])

    def test_refused_message_is_not_sent_after_a_restart(self):
        self.channel.errors["one"] = NO
        self.bring("one", "two")
        self.restart()
        self.watch.look()
        self.assertEqual((self.channel.tried, self.channel.taken), (["one", "two"], ["two"]))
        self.assertEqual(self.watch.recent.all()[0]["results"][0]["result"], "refused")


if __name__ == "__main__":
    unittest.main()
