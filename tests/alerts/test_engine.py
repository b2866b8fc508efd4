"""Tests of the kinds of alerts, of groups, quiet hours and acknowledgements."""

import os
import shutil
import time
import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.core.errors import SettingsError
from pigeonpost.server.quality import QualityChecks, read_rules
from protocol import IMPORTED
from tests.alerts.engine_support import OWN, EngineCase
from tests.page_support import use_memory_disk

HOT = {"sensor": "temperature", "above": 40}


def setUpModule():
    use_memory_disk()


class Values(EngineCase):
    TABLES = ({**HOT, "clear": 35},)

    def test_alert_ends_only_past_the_value_of_clear(self):
        for value, said in (
            (39, []), (41, ["^Alert: temperature of attic is 41 °C at .*\\(above 40 °C\\)$"]), (36, []), (35.1, []),
            (41, []), (35, ["^Resolved: temperature of attic is 35 °C at .*\\(after 5 s; above 40 °C\\)$"]), (39.9, []),
        ):  # fmt: skip
            self.bring(value)
            with self.subTest(value):
                self.assert_said(self.look(1), *said)

    def test_noise_around_the_threshold_gives_one_alert(self):
        for value in (41, 39, 42, 38, 40.1, 36, 44):
            self.bring(value)
            self.look(5)
        self.assert_said(self.said(), "^Alert: ")

    def test_value_before_the_time_for_must_meet_the_condition_itself(self):
        self.tables = [{**HOT, "clear": 35, "for": 60}]
        self.start()
        for value, seconds in ((41, 50), (39, 20), (41, 50), (41, 5)):
            self.bring(value)
            self.assertEqual(self.look(seconds), [])
        self.assert_said(self.look(10), "^Alert: ")
        self.bring(36)
        self.assertEqual(self.look(100), [])

    def test_two_thresholds_have_a_clear_value_each(self):
        self.tables = [{**HOT, "below": 2, "clear": [4, 35]}]
        self.start()
        for value, said in ((1, 1), (3, 0), (4, 1), (41, 1), (36, 0), (3.5, 0), (20, 1), (1.9, 1)):
            self.bring(value)
            with self.subTest(value):
                self.assertEqual(len(self.look()), said)

    def test_message_contains_severity_and_name(self):
        self.tables = [{**HOT, "severity": severity, "name": severity} for severity in ("info", "critical")]
        self.start()
        self.bring(41)
        (message,) = self.alerts.look()
        self.assertRegex(message.subject, "^Critical alert: 2 alerts at ")
        self.assertEqual((message.severity, message.kind, message.info["server"]), ("critical", "alert", "home"))
        self.assertEqual([alert["rule"] for alert in message.info["alerts"]], ["critical", "info"])

    def test_end_has_the_id_of_its_alert_and_another_alert_has_another(self):
        for value in (41, 20, 41, 20):
            self.bring(value)
            self.look()
            self.start()
        messages = [queued.message for queued in self.queue.waiting("mail")]
        ids = [message.info["alerts"][0]["id"] for message in messages]
        self.assertEqual([ids[0], ids[2]], [ids[1], ids[3]])
        self.assertEqual((len(set(ids)), len({message.id for message in messages})), (2, 4))

    def test_repetitions_are_limited_and_contain_the_current_value(self):
        self.tables = [{**HOT, "again": 600, "repeats": 2}]
        self.start()
        self.bring(41)
        self.look()
        self.bring(44)
        self.assert_said(self.look(600), "^Alert, repeated: temperature of attic is 44 °C")
        self.bring(None, error="no answer")
        self.assert_said(
            self.look(600), r"^Alert, repeated: temperature of attic has no value at .*\(no answer\); last value 44 °C"
        )
        self.assertEqual(self.look(6000), [])
        self.bring(20)
        self.assert_said(self.look(), "^Resolved: temperature of attic is 20 °C")

    def test_corrected_clocks_neither_start_nor_end_an_alert(self):
        self.bring(41)
        self.look()
        for step_s in (-86_400, 7 * 86_400, -30, 30, -400 * 86_400):
            self.clock.step(step_s)
            with self.subTest(step_s):
                self.assertEqual(self.look(), [])
                self.bring(42)
                self.assertEqual(self.look(), [])
        self.bring(20)
        self.assert_said(self.look(), "^Resolved")

    def test_start_and_duration_are_right_after_the_clock_was_set(self):
        for step_s in (20 * 365 * 86_400, -3600, 50, -1e8, 86_400):
            with self.subTest(step_s):
                self.look(3600)  # an alert that begins often ends later: tests/alerts/test_flapping.py
                self.bring(41)
                self.look(5)
                self.clock.step(step_s)
                self.look(5)
                self.assertEqual(self.alerts.active()[0].since_ms, self.clock.wall_ms() - 10_000)
                self.bring(20)
                self.assert_said(self.look(), r"^Resolved: .* \(after 10 s; above 40 °C\)$")

    def test_clock_of_the_node_that_is_set_back_hides_no_value(self):
        ahead_ms = self.clock.wall_ms() + 86_400_000
        self.bring(20, time_ms=ahead_ms)
        for time_ms, value, said in (
            (self.clock.wall_ms(), 41, 1), (self.clock.wall_ms() - 7_200_000, 20, 1), (ahead_ms, 41, 1),
            (self.clock.wall_ms() + 1000, 20, 1), (self.clock.wall_ms() - 10 * 86_400_000, 41, 1),
        ):  # fmt: skip
            self.bring(value, time_ms=time_ms)
            with self.subTest(time_ms - self.clock.wall_ms()):
                self.assertEqual(len(self.look()), said)

    def test_clock_of_the_node_that_is_behind_after_a_restart_hides_no_value(self):
        for behind_s in (100, 3600, 86_400, 50 * 365 * 86_400):
            for restart in (self.start, self.start_the_node):
                with self.subTest(behind_s=behind_s, restart=restart.__name__):
                    self.bring(20)
                    self.look()
                    restart()
                    self.bring(41, time_ms=self.clock.wall_ms() - behind_s * 1000)
                    self.assertEqual(len(self.look()), 1)
                    self.bring(20, time_ms=self.clock.wall_ms() - behind_s * 1000 + 1000)
                    self.assertEqual(len(self.look()), 1)

    def start_the_node(self):
        self.epoch = f"{int(self.epoch, 16) + 1:016x}"
        self.seqs.clear()

    def test_late_and_imported_values_are_ignored(self):
        self.bring(20, outbox=OWN)
        for age_s in (1, 60, 3600, 86_400):
            self.bring(50, outbox=OWN, time_ms=self.clock.wall_ms() - age_s * 1000)
        self.bring(50, node="cellar", outbox=IMPORTED)
        self.assertEqual(self.look(), [])

    def test_alert_that_ends_while_it_is_collected_is_sent_with_the_value_that_caused_it(self):
        self.COLLECT_S = 10.0
        self.tables = [{**HOT, "for": 5}]
        self.start()
        self.bring(41)
        self.assertEqual(self.look(5), [])
        self.bring(20)
        self.assertEqual(self.look(5), [])
        self.assert_said(self.look(5), "^Alert: temperature of attic is 41 °C")
        self.assert_said([*self.look(), *self.look(10)], "^Resolved: temperature of attic is 20 °C")


class Failed(EngineCase):
    TABLES = ({"kind": "failed", "for": 60},)

    def test_sensor_without_values_is_reported_with_its_reason(self):
        for sensor, error in (("temperature", "no answer"), ("light", ""), ("x", "CRC"), ("h_1", "stale"), ("p", "é")):
            with self.subTest(sensor):
                self.bring(1, sensor=sensor)
                self.bring(None, sensor=sensor, error=error)
                self.assertEqual(self.look(59), [])
                self.bring(None, sensor=sensor, error=error)
                self.assert_said(self.look(1), f"^Alert: {sensor} of attic has no value at .*{error}")
                self.bring(7, sensor=sensor)
                self.assert_said(self.look(), f"^Resolved: {sensor} of attic has a value again: 7 °C")

    def test_single_missing_value_is_not_reported(self):
        for value in (1, None, 1, None, None, 1, None):
            self.bring(value)
            self.assertEqual(self.look(25), [])

    def test_rule_ignores_other_sensors_and_nodes(self):
        self.tables = [{"kind": "failed", "for": 0, "sensor": "temperature", "node": "attic"}]
        self.start()
        self.bring(None, sensor="light")
        self.bring(None, node="cellar")
        self.assertEqual(self.look(5), [])
        self.bring(None)
        self.assertEqual(len(self.look()), 1)

    def test_sensor_that_is_no_longer_in_the_samples_is_reported_if_the_rule_names_it(self):
        self.tables = [{"kind": "failed", "sensor": "light", "for": 60}, {"kind": "failed", "for": 60}]
        self.start()
        self.bring(5, sensor="light")
        for _ in range(3):
            self.bring(20)
            self.assertEqual(self.look(20), [])
        self.bring(20)
        self.assert_said(self.look(), "^Alert: light of attic is not in its samples since ")
        self.assertEqual(self.look(600), [])
        self.bring(6, sensor="light")
        self.assert_said(self.look(), "^Resolved: light of attic has a value again: 6")

    def test_late_values_do_not_end_the_failure(self):
        self.bring(1)
        self.bring(None)
        self.look(60)
        self.bring(5, time_ms=self.clock.wall_ms() - 70_000, outbox=OWN)
        self.assertEqual(self.look(), [])


class Flags(EngineCase):
    TABLES = ({"kind": "flag"},)
    LIMITS = {"node": "attic", "sensor": "temperature", "low": 0, "high": 30, "jump": 5, "stuck": 300, "every": 60}

    def setUp(self):
        super().setUp()
        self.state = self.link("attic")
        self.state.sensors = [{"name": "temperature", "unit": "°C"}]
        self.state.on = True
        self.quality = QualityChecks(self.links, read_rules([{**self.LIMITS, "rail": [-50, 50]}], "server.toml"))
        self.start()

    def check(self, item, node="attic", outbox="", units=None):
        super().check(item, node, outbox, units)
        commit = SimpleNamespace(node=node, epoch="e", items=[item])
        if self.quality is not None:
            self.quality.on_commit([commit])

    def test_each_flag_is_reported_and_resolved(self):
        for values, said in (
            ([20, 21], []), ([31], ["attic: above 30 °C at"]), ([28], ["no longer out of range"]),
            ([-1], ["2 alerts at .*(below 0 °C.*jumped by|jumped by.*below 0 °C)"]), ([2, 5], ["2 alerts"]),
        ):  # fmt: skip
            for value in values:
                self.clock.sleep(2)
                self.bring(value)
            with self.subTest(values):
                self.assert_said(self.look(), *said)

    def test_stuck_and_stale_sensors_are_reported(self):
        for _ in range(6):
            self.bring(20)
            self.look(59)
        self.bring(20)
        self.look()
        self.assert_said(self.said(), "attic: stuck for")
        self.assert_said(self.look(186), "no value for 3 min")
        self.bring(21)
        self.assert_said(self.look(), "Resolved: 2 alerts")

    def test_jump_between_two_checks_is_reported(self):
        for value in (20, 29, 29.5):
            self.clock.sleep(1)
            self.bring(value)
        self.assert_said(self.look(), "temperature of attic was jumping shortly before")
        self.assert_said(self.look(), "no longer jumping")

    def test_renaming_a_node_does_not_report_its_earlier_flags_again(self):
        self.names = mock.Mock(on_rename=[self.quality.on_rename])
        self.names.current.side_effect = lambda node: node
        self.names.retired_ms.return_value = None
        self.start()
        for value in (20, 29, 29.5):
            self.clock.sleep(1)
            self.bring(value)
        self.assert_said(self.look(), "temperature of attic was jumping shortly before")
        self.assert_said(self.look(), "no longer jumping")
        for rename in self.names.on_rename:
            rename("attic", "loft")
        self.state.name = "loft"
        self.assertEqual(self.look(60), [])

    def test_only_chosen_flags_are_reported(self):
        self.tables = [{"kind": "flag", "flags": ["rail"]}]
        self.start()
        for value in (20, 31, 49, 50):
            self.clock.sleep(60)
            self.bring(value)
            said = self.look()
        self.assert_said(said, "saturated")


class Gaps(EngineCase):
    TABLES = ({"kind": "gap"},)

    def test_gap_is_reported_once_with_the_number_of_samples(self):
        for count, node, why, said in (
            (1, "a", "overwritten", "^Alert: 1 sample of a will never arrive: overwritten"),
            (5000, "b", "damaged", "^Alert: 5,000 samples of b will never arrive: damaged"),
            (3, "c", "", "^Alert: 3 samples of c will never arrive, 2026-11-20 [0-9:]+\\+00:00$"),
        ):
            self.lose(count, node, why)
            with self.subTest(node):
                self.assert_said(self.look(), said)
                self.assertEqual(self.look(60), [])

    def test_further_gaps_are_added_up_until_an_hour_without_gaps(self):
        self.lose(10)
        self.look()
        for _ in range(3):
            self.lose(10)
            self.assertEqual(self.look(3000), [])
        self.assert_said(
            self.look(600), "^Resolved: attic has lost no further samples for 60 min \\(40 samples in total"
        )
        self.lose(2)
        self.assert_said(self.look(), "^Alert: 2 samples")

    def test_gap_that_was_stored_just_before_a_crash_is_reported_after_it(self):
        self.look()
        gap = {"node": "attic", "epoch": "e", "from": 1, "to": 4, "before": 2, "why": "damaged"}
        gap["noted_ms"] = self.clock.wall_ms() + 1
        self.store.gaps = lambda limit: [gap]
        self.clock.sleep(5)
        self.start()
        self.assert_said(self.look(), "^Alert: 6 samples of attic will never arrive: damaged")
        self.clock.sleep(5)
        self.start()
        self.assertEqual(self.look(), [])


class ThisServer(EngineCase):
    TABLES = ({"kind": "disk"}, {"kind": "store"}, {"kind": "voltage"}, {"kind": "refused"})

    def hwmon(self, alarm, name="rpi_volt"):
        folder = os.path.join(self.folder, "sys/class/hwmon/hwmon1")
        os.makedirs(folder, exist_ok=True)
        for file, text in (("name", name), ("in0_lcrit_alarm", alarm)):
            with open(os.path.join(folder, file), "w", encoding="ascii") as out:
                out.write(f"{text}\n")

    def test_disk_of_a_node_is_reported_until_it_has_ten_per_cent_more(self):
        state = self.link("attic")
        for free, said in (
            (600, 0), (499, 1), (520, 0), (549, 0), (551, 1), ("x", 0), (True, 0), (400, 1), (None, 0), (700, 1),
        ):  # fmt: skip
            state.details = {"machine": {"disk_free": free}}
            self.alerts._silence.record("attic", 0)
            with self.subTest(free):
                self.assertEqual(len(self.look()), said, self.said())

    def test_disk_of_this_server_is_reported(self):
        free_mib = shutil.disk_usage(self.folder).free / (1 << 20)
        self.tables = [{"kind": "disk", "below": free_mib + 1000}]
        self.start()
        self.assert_said(self.look(), "^Alert: [0-9]+ MiB of disk space are free on this server at .*below [0-9.e+]+ M")

    def test_faults_of_this_server_are_reported(self):
        for subject, text in (
            ("samples", "nothing can be stored: the disk is full"), ("CSV log", "cannot be written"),
            ("backup", "the folder is not mounted"), ("database", "is damaged"), ("tokens.json", "is damaged"),
        ):  # fmt: skip
            self.faults = {subject: text}
            with self.subTest(subject):
                self.assertIn(f"fault of this server: {subject}: {text}", self.look()[0])
                self.faults = {subject: ""}
                self.assert_said(self.look(), f"^Resolved: {subject}: works again")

    def test_undervoltage_of_a_node_and_of_this_server_is_reported(self):
        state = self.link("attic")
        for value, said in ((0, 0), (1, 1), ("1", 0), (0, 1), (True, 1)):
            state.details = {"machine": {"undervoltage": value}}
            self.alerts._silence.record("attic", 0)
            with self.subTest(value):
                self.assertEqual(len(self.look()), said)
        state.details = {"machine": {"undervoltage": False}}
        self.look()
        for alarm, said in ((0, 0), (1, 1), (1, 0), ("", 1), (2, 1)):
            self.hwmon(alarm)
            with self.subTest(alarm):
                self.assertEqual(len(self.look()), said)
        self.hwmon(1, "nct6775")
        self.assert_said(self.look(), "^Resolved: the supply voltage of this server is sufficient again")

    def test_undervoltage_between_two_checks_is_reported_from_the_samples(self):
        for value in (0, 1, 0):
            self.bring(value, sensor="undervoltage")
        self.assert_said(self.look(), "^Alert: the supply voltage of attic is too low at ")
        self.assert_said(self.look(), "^Resolved: the supply voltage of attic is sufficient again at ")

    def test_refused_clients_are_reported(self):
        state = self.link("attic")
        for fault, warning, faults, refused, said in (
            ("", "", {"node cellar (push)": "a client at 10.0.0.9 is rejected"}, [], "10.0.0.9 is rejected"),
            ("does not have the token that this server has for it: x", "", {}, [], "attic does not have"),
            ("answers as node b: correct it", "", {}, [], "node attic answers as node b"),
            ("", "two senders use this name", {}, [], "two senders"), ("", "", {}, ["10.0.0.7"], "from 10.0.0.7 are"),
            ("has another certificate: expected SHA-256 x", "", {}, [], "has another certificate"),
        ):  # fmt: skip
            state.fault, state.warnings, self.faults, self.refused = fault, {"copy": warning}, faults, refused
            with self.subTest(said):
                self.assert_said(self.look(), said)
            state.fault, state.warnings, self.faults, self.refused = "has sent nothing for 30 s", {}, {}, []
            self.assert_said(self.look(), "^Resolved: .*no longer refused")

    def test_alert_of_an_earlier_run_continues_until_its_condition_was_checked(self):
        self.faults = {"backup": "not mounted"}
        self.look()
        self.faults = {}  # after a restart the fault is found again only at the next attempt
        self.start()
        self.assertEqual(self.look(300), [])
        self.faults = {"backup": "not mounted"}
        self.assertEqual(self.look(200), [])
        self.faults = {}
        self.assert_said(self.look(), "^Resolved: backup: works again")


class Groups(EngineCase):
    TABLES = (HOT, {"silent": 600})
    COLLECT_S = 10.0

    def test_power_failure_of_fifty_nodes_is_one_message_and_one_end(self):
        names = [f"n{n:02d}" for n in range(50)]
        for name in names:
            self.link(name)
            self.clock.sleep(1)
            self.bring(20, node=name)
        said = [subject for _ in range(400) for subject in self.look(2)]
        self.assert_said(said, "^Alert: 50 alerts at .*: no sample of n00 for .*; and 47 more$")
        for name in names:
            self.bring(20, node=name)
            self.clock.sleep(0.1)
        said = [subject for _ in range(10) for subject in self.look(2)]
        self.assert_said(said, "^Resolved: 50 alerts at ")
        (queued, _) = self.queue.waiting("mail")
        self.assertEqual(queued.message.text.count("- no sample of n"), 50)
        self.assertEqual({alert["node"] for alert in queued.message.info["alerts"]}, set(names))

    def test_value_that_flaps_while_the_end_is_collected_is_one_alert(self):
        self.bring(41)
        self.assertEqual(self.look(), [])
        self.assert_said(self.look(10), "^Alert")
        for value in (20, 41, 20, 41, 20):
            self.bring(value)
            self.assertEqual(self.look(5), [])
        self.assert_said(self.look(10), "^Resolved: temperature of attic is 20 °C at .*\\(after 35 s")

    def test_text_contains_condition_start_remedy_and_address(self):
        self.link("attic")
        self.assertEqual(self.look(601), [])
        self.look(60)
        (queued,) = self.queue.waiting("mail")
        for words in ("limit 600 s", "Condition of the alert: 600 s without a sample.", "Since 20", "Check the power",
                      "control.py retire attic", "http://pi/nodes/attic"):  # fmt: skip
            self.assertIn(words, queued.message.subject + queued.message.text)


class QuietHours(EngineCase):
    TABLES = (HOT, {"sensor": "light", "above": 9, "severity": "critical"}, {"sensor": "p", "above": 9, "quiet": ""})
    QUIET = "22:00-07:00"

    def setUp(self):
        super().setUp()
        self.at("21:59")

    def at(self, time_of_day):
        """Let time pass until the local `time_of_day`."""
        t = time.localtime(self.clock.wall_ms() / 1000)
        hours, minutes = map(int, time_of_day.split(":"))
        self.clock.sleep(((hours - t.tm_hour) * 3600 + (minutes - t.tm_min) * 60 - t.tm_sec) % 86_400)

    def test_held_alerts_are_sent_together_at_the_end_of_the_quiet_hours(self):
        self.at("23:00")
        self.bring(41)
        self.assertEqual(self.look(), [])
        self.assertTrue(self.alerts.active()[0].is_held)
        self.at("03:00")
        self.bring(42, node="cellar")
        self.assertEqual(self.look(), [])
        self.start()
        self.at("06:59")
        self.assertEqual(self.look(), [])
        self.at("07:00")
        self.assert_said(self.look(), "^Alert: 2 alerts at .*attic.*cellar")

    def test_alert_that_ends_in_the_quiet_hours_is_not_sent(self):
        for hour in ("22:00", "23:30", "00:00", "04:00", "06:58"):
            self.at(hour)
            self.bring(41)
            self.look(10)
            self.bring(20)
            self.look()
        self.at("07:00")
        self.assertEqual(self.look(), [])

    def test_end_of_an_earlier_alert_is_held_and_dropped_if_it_begins_again(self):
        self.bring(41)
        self.assertEqual(len(self.look()), 1)
        self.at("22:30")
        self.bring(20)
        self.assertEqual(self.look(), [])
        self.bring(41)
        self.assertEqual(self.look(), [])
        self.at("07:01")
        self.assertEqual(self.look(), [])
        self.bring(20)
        self.assert_said(self.look(), "^Resolved")

    def test_critical_alerts_and_rules_without_quiet_hours_pass(self):
        self.at("02:00")
        self.bring(10, sensor="light")
        self.bring(10, sensor="p")
        self.assert_said(self.look(), "^Critical alert: 2 alerts")

    def test_repetitions_are_held(self):
        self.tables = [{**HOT, "again": 3600}]
        self.start()
        self.bring(41)
        self.look()
        self.at("23:30")
        self.assertEqual(self.look(), [])
        self.at("07:00")
        self.assert_said(self.look(), "^Alert, repeated")


class Pages(EngineCase):
    TABLES = ({**HOT, "again": 60, "name": "heat"},)

    def test_active_alerts_have_everything_that_the_page_shows(self):
        self.bring(41)
        self.look(5)
        (one,) = self.alerts.active()
        self.assertEqual((one.rule, one.kind, one.node, one.sensor), ("heat", "value", "attic", "temperature"))
        self.assertEqual(
            (one.severity, one.since_ms, one.acknowledged_by), ("warning", self.clock.wall_ms() - 5000, "")
        )
        self.assertIn("is 41 °C", one.text)

    def test_acknowledged_alert_is_not_repeated_and_its_end_is_reported(self):
        self.bring(41)
        self.look()
        (one,) = self.alerts.active()
        self.assertTrue(self.alerts.acknowledge(one.id, "ann"))
        for _ in range(2):
            self.assertEqual(self.look(600), [])
            (again,) = self.alerts.active()
            self.assertEqual((again.id, again.acknowledged_by), (one.id, "ann"))
            self.start()  # also after a restart
        self.bring(20)
        self.assert_said(self.look(), "^Resolved")
        for gone in (one.id, "", "x"):
            self.assertFalse(self.alerts.acknowledge(gone, "ann"))

    def test_rules_of_the_page_are_stored_and_apply_immediately(self):
        self.alerts.set_rules([{"sensor": "light", "above": 5, "name": "bright"}, {"kind": "gap"}])
        for _ in range(2):
            self.assertEqual(
                [(rule.name, rule.origin) for rule in self.alerts.rules()],
                [("heat", "settings"), ("bright", "page"), ("samples that will never arrive", "page")],
            )
            self.assertEqual(self.alerts.rules()[1].table["above"], 5)
            self.start()
        self.bring(6, sensor="light")
        self.assert_said(self.look(), "light of attic is 6")

    def test_invalid_rules_of_the_page_change_nothing(self):
        self.alerts.set_rules([{"silent": 5}])
        for tables, words in (
            ([{"silent": 0}], "silent takes"), ([{**HOT, "name": "heat"}], "exists already"), ([5], "list of tables"),
            ("x", "list of tables"), ([{"silent": 5}] * 2, "exists already"), ([{"silent": 5}] * 501, "at most 500"),
        ):  # fmt: skip
            with self.subTest(words), self.assertRaisesRegex(SettingsError, words):
                self.alerts.set_rules(tables)
            self.assertEqual([rule.origin for rule in self.alerts.rules()], ["settings", "page"])

    def test_alert_whose_rule_is_removed_ends(self):
        self.alerts.set_rules([{"sensor": "light", "above": 5}])
        self.bring(6, sensor="light")
        self.look()
        self.alerts.set_rules([])
        self.assert_said(self.look(), "^Resolved: the rule of this alert was changed or removed: light of attic is 6")
        self.bring(41)
        self.look()
        self.tables = []
        self.start()
        self.assert_said(self.look(), "^Resolved: the rule of this alert was changed or removed: temperature")
        self.assertEqual(self.look(60), [])

    def test_damaged_rules_of_the_page_are_a_fault(self):
        with open(os.path.join(self.folder, "alert_rules.json"), "w", encoding="utf-8") as file:
            file.write('{"rules": [{"silent": 0}]}')
        self.start()
        self.assertIn("silent takes", self.alerts._sets.fault)
        self.assertEqual([rule.origin for rule in self.alerts.rules()], ["settings"])


if __name__ == "__main__":
    unittest.main()
