"""Tests of what other parts report to the alerts: undervoltage, refused addresses, refusals over TCP, limits."""

import os
import unittest
from unittest import mock

from pigeonpost.alerts.registry import guarded
from pigeonpost.auth.throttle import CLOSED_S, MOST, LoginThrottle
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import NotStored
from pigeonpost.core.faults import Faults
from pigeonpost.sensors.machine import MachineSource, is_undervoltage
from pigeonpost.server.quality import QualityChecks, read_rules
from pigeonpost.transports import tcp_faults
from tests.alerts.engine_support import EngineCase, Link
from tests.page_support import use_memory_disk
from tests.support import temp_folder


def setUpModule():
    use_memory_disk()


class Undervoltage(unittest.TestCase):
    def setUp(self):
        self.root = temp_folder(self)

    def device(self, number, name, alarm=None):
        folder = os.path.join(self.root, f"sys/class/hwmon/hwmon{number}")
        os.makedirs(folder, exist_ok=True)
        for file, text in (("name", name), ("in0_lcrit_alarm", alarm)):
            if text is not None:
                with open(os.path.join(folder, file), "w", encoding="utf-8") as out:
                    out.write(f"{text}\n")

    def test_machine_without_the_alarm_has_no_such_channel(self):
        self.assertFalse(is_undervoltage(self.root))
        self.device(0, "cpu_thermal", 1)
        self.assertFalse(is_undervoltage(self.root))
        self.assertNotIn("undervoltage", [channel.name for channel in MachineSource(self.root).channels])

    def test_alarm_is_found_by_the_name_of_its_device(self):
        self.device(0, "cpu_thermal", 1)
        for number, alarm, said in ((2, 0, 0), (2, 1, 1), (2, "", None), (2, "x", None), (1, 1, 1)):
            self.device(number, "rpi_volt", alarm)
            with self.subTest(number=number, alarm=alarm):
                self.assertIs(is_undervoltage(self.root), said == 1)
                reading = MachineSource(self.root).read()["undervoltage"]
                self.assertEqual(None if isinstance(reading, Exception) else reading, said)

    def test_missing_alarm_file_is_an_error_of_the_channel_only(self):
        self.device(0, "rpi_volt")
        self.assertFalse(is_undervoltage(self.root))
        self.assertIsInstance(MachineSource(self.root).read()["undervoltage"], Exception)


class UndervoltageOfNodes(EngineCase):
    TABLES = ({"kind": "voltage"},)

    def status(self, state, value):
        """Report a value in the status of the node: it does not sample it any more."""
        state.details = {"machine": {} if value is None else {"undervoltage": value}}
        state.sensors = [{"name": "temperature", "unit": "°C"}]

    def test_status_counts_again_when_the_node_no_longer_samples_it(self):
        for is_restarted in (False, True):
            with self.subTest(is_restarted=is_restarted):
                self.doCleanups()
                self.setUp()
                state = self.link("attic")
                state.sensors = [{"name": "undervoltage", "unit": ""}]
                state.details = {"machine": {"undervoltage": 0}}
                self.bring(1, sensor="undervoltage", unit="")
                self.assert_said(self.look(), "^Alert: the supply voltage of attic is too low")
                self.assertEqual(self.look(60), [])  # the samples count, not the status
                if is_restarted:
                    self.start()
                self.bring(20)
                self.status(state, None)
                self.assertEqual(self.look(), [])
                self.status(state, 1)
                self.assertEqual(self.look(), [])
                self.status(state, 0)
                self.assert_said(self.look(), "^Resolved: the supply voltage of attic is sufficient again")
                self.status(state, 1)
                self.assert_said(self.look(), "^Alert: the supply voltage of attic is too low")

    def test_samples_count_again_when_the_node_samples_it_again(self):
        state = self.link("attic")
        self.bring(0, sensor="undervoltage", unit="")
        self.status(state, 1)
        self.assert_said(self.look(), "^Alert: the supply voltage of attic is too low")
        state.sensors = [{"name": "undervoltage", "unit": ""}]
        self.bring(0, sensor="undervoltage", unit="")
        self.assert_said(self.look(), "^Resolved: the supply voltage of attic is sufficient again")


class Refusals(unittest.TestCase):
    def test_addresses_are_listed_from_the_limit_until_attempts_are_accepted_again(self):
        clock = FakeClock()
        throttle = LoginThrottle(clock)
        for host, account, times, shown in (
            ("10.0.0.1", "ann", MOST, "10.0.0.1"), ("10.0.0.2", "", MOST + 5, "10.0.0.2"),
            ("10.0.0.3", "ann", MOST - 1, None), ("2001:db8:1:2:3::9", "", MOST, "2001:db8:1:2"),
        ):  # fmt: skip
            for _ in range(times):
                throttle.begin(host, account)
            with self.subTest(host):
                self.assertEqual(throttle.refused_addresses(), [shown] if shown else [])
            clock.sleep(CLOSED_S + 1)
        self.assertEqual(throttle.refused_addresses(), [])

    def test_passwords_and_keys_of_one_address_are_counted_separately(self):
        throttle = LoginThrottle(FakeClock())
        for _ in range(MOST - 1):
            throttle.begin("10.0.0.1", "ann")
            throttle.begin("10.0.0.1")
        self.assertEqual(throttle.refused_addresses(), [])

    def test_faults_about_tokens_certificates_and_names_are_refusals(self):
        for fault, fields in (
            (tcp_faults.WRONG_TOKEN, {}), (tcp_faults.NO_TOKEN, {}), (tcp_faults.UNKNOWN_TOKEN, {}),
            (tcp_faults.REPLACED, {}), (tcp_faults.REJECTED, {}), (tcp_faults.OTHER_NODE, {"other": "b"}),
            (tcp_faults.OTHER_CERTIFICATE, {"expected": "a", "found": "b"}), (tcp_faults.UNPROVEN, {}),
            (tcp_faults.INTERCEPTED, {"found": "b"}),
        ):  # fmt: skip
            with self.subTest(fault):
                self.assertTrue(tcp_faults.is_refusal(tcp_faults.describe(fault, "a", **fields)))

    def test_is_refusal_is_false_for_other_faults(self):
        for fault in (
            "", "cannot be reached: Connection refused", tcp_faults.SILENT, tcp_faults.NO_ANSWER, "closed by the peer",
            tcp_faults.OTHER_VERSION, tcp_faults.TOO_MANY, tcp_faults.STORE_DAMAGED, tcp_faults.PROTECTED,
        ):  # fmt: skip
            with self.subTest(fault):
                self.assertFalse(tcp_faults.is_refusal(tcp_faults.describe(fault, "a", text="5 s")))


class Guard(unittest.TestCase):
    def test_internal_error_of_a_check_is_a_fault_until_a_check_succeeds(self):
        faults, outcomes = (
            Faults(),
            [None, ZeroDivisionError("x"), KeyError("y"), OSError(5, "z"), NotStored("w"), None],
        )
        check = guarded(mock.Mock(side_effect=outcomes), faults)
        seen = []
        with self.assertLogs("pigeonpost.core.faults", "WARNING"):
            for _ in outcomes:
                check([])
                seen.append(list(faults.present().values()))
        self.assertEqual((seen[0], seen[-1]), ([], []))
        for texts, name in zip(seen[1:-1], ("ZeroDivisionError", "KeyError", "OSError", "NotStored")):
            self.assertEqual(len(texts), 1)
            self.assertIn(f"internal error, see the log: {name}: ", texts[0])


class Limits(unittest.TestCase):
    def test_sensors_with_limits_are_those_of_the_settings_and_of_the_node(self):
        link = Link("attic")
        rules = read_rules([{"node": "attic", "sensor": "light", "low": 1}], "server.toml")
        checks = QualityChecks([link], rules)
        self.assertEqual(checks.sensors("attic"), ["light"])
        link.state.sensors = [{"name": "temperature", "limits": {"high": 5}}, {"name": "load"}]
        self.assertEqual(sorted(checks.sensors("attic")), ["light", "temperature"])
        self.assertEqual(checks.sensors("cellar"), [])


if __name__ == "__main__":
    unittest.main()
