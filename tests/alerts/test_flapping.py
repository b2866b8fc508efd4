"""Alerts that begin and end again and again: few messages, and few writes."""

import time
import unittest

from tests.alerts.engine_support import EngineCase, Names

HOT = {"sensor": "temperature", "above": 40}


class Flapping(EngineCase):
    TABLES = (HOT, {"sensor": "light", "above": 40, "severity": "critical"})
    COLLECT_S = 10.0

    def flap(self, periods, period_s):
        """Alternate the value, half a period above its threshold, and return the subjects that were sent."""
        said = []
        for step in range(4 * periods):
            if step % 2 == 0:
                self.bring(20 if step % 4 else 50)
            said += self.look(period_s / 4)
        return said

    def test_value_that_flaps_sends_few_messages_and_one_end_for_each_alert(self):
        for period_s in (4, 22, 60, 300, 900):
            with self.subTest(period_s=period_s):
                self.doCleanups()
                self.setUp()
                self.queue.commit = lambda *args: None  # only the messages matter
                said = self.flap(12, period_s)
                self.assertLessEqual(len(said), 6 + 2 * 5, said)
                self.assertGreaterEqual(len(said), 1)
                said += [subject for _ in range(9) for subject in self.look(500)]
                self.assertEqual([subject.split(":")[0] for subject in said], ["Alert", "Resolved"] * (len(said) // 2))

    def test_first_three_ends_of_an_hour_are_sent_without_delay(self):
        said = self.flap(3, 80)
        self.assertEqual([subject.split(":")[0] for subject in said], ["Alert", "Resolved"] * 3)

    def test_alert_that_was_calm_for_an_hour_is_prompt_again(self):
        self.flap(10, 60)
        self.bring(20)
        self.look(7200)
        self.look(3700)
        self.bring(50)
        self.look()
        self.assert_said(self.look(10), "^Alert: temperature")
        self.bring(20)
        self.look()
        self.assert_said(self.look(10), "^Resolved: temperature")

    def test_alert_of_a_renamed_node_is_still_damped(self):
        self.names = Names()
        self.start()
        self.flap(3, 80)
        self.names.on_rename[-1]("attic", "loft")
        self.bring(50, "loft")
        self.look()
        self.assert_said(self.look(10), "^Alert: temperature of loft")
        self.bring(20, "loft")
        self.look()
        self.assertEqual(self.look(49), [])
        self.assert_said(self.look(11), "^Resolved: temperature of loft")

    def test_flapping_value_is_not_written_each_time(self):
        self.flap(10, 60)
        writes = []
        commit = self.queue.commit
        self.queue.commit = lambda changes, messages, notes: (writes.append(changes), commit(changes, messages, notes))
        self.flap(100, 4)
        self.assertLessEqual(len(writes), 2, writes)

    def test_end_of_a_flapping_alert_is_sent_once_after_a_restart(self):
        self.flap(10, 60)
        self.bring(50)
        self.look()
        self.bring(20)
        self.look()
        self.start()  # kill -9 while the end is delayed
        self.bring(20)
        said = [subject for _ in range(10) for subject in self.look(500)]
        self.assertEqual([subject.split(":")[0] for subject in said], ["Resolved"])

    def test_many_alerts_one_after_the_other_are_collected_for_longer(self):
        said = []
        self.queue.commit = lambda *args: None
        for number in range(40):
            self.bring(50, node=f"n{number}")
            said += [*self.look(), *self.look(30)]
        self.assertLessEqual(len(said), 24)
        said += [subject for _ in range(4) for subject in self.look(100)]
        self.bring(50, sensor="light")
        self.look()
        self.assert_said(self.look(10), "^Critical alert: light")

    def test_momentary_value_has_its_own_duration(self):
        self.bring(50)
        self.look()
        self.bring(20)
        for _ in range(4):
            self.look(2)
        self.assert_said(self.look(2), "^Alert")
        self.assert_said(self.look(10), "^Resolved: .*\\(after 2 s")


class FlappingInQuietHours(EngineCase):
    TABLES = (HOT,)
    COLLECT_S = 10.0
    QUIET = "00:00-23:59"

    def flap(self, periods):
        for value in [50, 20] * periods:
            self.bring(value)
            self.assertEqual(self.look(2), [])

    def test_value_that_flaps_in_the_quiet_hours_is_not_written_each_time(self):
        self.flap(3)
        writes = []
        self.queue.commit = lambda changes, messages, notes: writes.append(changes)
        self.flap(60)
        self.assertLessEqual(len(writes), 1, writes)

    def test_alert_that_has_ended_by_the_end_of_the_quiet_hours_is_not_sent(self):
        for values, expected in (((50, 20), []), ((50, 20, 50, 20), []), ((50, 20, 50), ["Alert"])):
            for is_restarted in (False, True):
                with self.subTest(values=values, is_restarted=is_restarted):
                    self.doCleanups()
                    self.setUp()
                    for value in values:
                        self.bring(value)
                        self.look(2)
                    if is_restarted:
                        self.alerts.close()
                        self.start()
                    self.alerts._quiet = time.strftime("00:00-%H:%M", time.localtime(self.clock.wall_ms() / 1000 + 60))
                    said = [subject for _ in range(12) for subject in self.look(10)]
                    self.assertEqual([subject.split(":")[0] for subject in said], expected)
                    self.assertEqual(len(self.alerts.active()), len(expected))


class Escalation(EngineCase):
    COLLECT_S = 0.0
    TABLES = (
        {**HOT, "for": 60},
        {**HOT, "for": 600, "severity": "critical"},
        {"kind": "failed", "for": 60},
        {"kind": "failed", "for": 900, "severity": "critical"},
    )

    def test_two_rules_with_one_condition_are_two_alerts(self):
        self.bring(50)
        self.assert_said(self.look(61), "^Alert: temperature")
        self.assert_said(self.look(540), "^Critical alert: temperature")
        self.bring(None)
        self.assertEqual(self.look(), [])
        self.assert_said(self.look(61), "^Alert: temperature of attic has no value")
        self.start()
        self.bring(None)
        self.assertEqual(self.look(), [])
        self.assert_said(self.look(901), "^Critical alert: temperature of attic has no value")

    def test_equal_rules_are_one(self):
        self.tables = [HOT, dict(HOT), {**HOT, "for": 5}, dict(HOT)]
        self.start()
        self.bring(50)
        self.look()
        self.look(5)
        self.assertEqual(len(self.alerts.active()), 2)


if __name__ == "__main__":
    unittest.main()
