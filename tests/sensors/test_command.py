"""Tests of kind = "command": output of programs and files, and all their errors."""

import os
import sys
import tempfile
import time
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors import command
from pigeonpost.sensors.contract import Channel
from tests.sensors.test_contract import Contract
from tests.sensors.test_kernel import GOOD, POWER_ON
from tests.support import LIMIT_S, Leftovers, temp_folder, wait_until


def python(code):
    """Return a command that runs `code`."""
    return [sys.executable, "-c", code]


def make(words=None, channels=None, **more):
    given = {"timeout": LIMIT_S} if words is None else {"timeout": LIMIT_S, "command": words}
    return command.make({**given, "channels": {"x": {}} if channels is None else channels, **more}, "here")


def read(words=None, channels=None, **more):
    return make(words, channels, **more).read()["x"]


class Command(Contract, unittest.TestCase):
    module = command

    def make(self):
        return make(["echo", "21.5"])

    def make_broken(self):
        return make(["false"])


class Output(unittest.TestCase):
    def test_output_that_is_a_number_is_read(self):
        for said, value in (("21.5\\n", 21.5), ("  -3 ", -3), ("1e3", 1000)):
            self.assertEqual(read(["printf", said]), value)

    def test_patterns_find_several_numbers_in_one_text(self):
        channels = {"x": {"pattern": "temp=([-0-9.]+)", "unit": "°C"}, "y": {"pattern": "^hum: (.*)%$", "gain": 0.5}}
        source = make(["printf", "temp=-1.5'C\\nhum: 40%%\\n"], channels)
        self.assertEqual(source.channels, [Channel("x", "°C"), Channel("y", "")])
        self.assertEqual(source.read(), {"x": -1.5, "y": 20})

    def test_missing_number_does_not_affect_the_others(self):
        readings = make(["echo", "a=1"], {"x": {"pattern": "a=(.*)"}, "y": {"pattern": "b=(.*)"}}).read()
        self.assertEqual(readings["x"], 1)
        self.assertEqual(str(readings["y"]), "'b=(.*)' does not match 'a=1\\n'")

    def test_output_that_is_not_a_number_is_an_error(self):
        self.assertEqual(str(read(["echo", "twenty"])), "not a number: 'twenty\\n'")
        self.assertIn("not a number: ''", str(read(["true"])))
        self.assertLess(len(str(read(["printf", "%0500d.x", "0"]))), 120)

    def test_calibration_is_applied(self):
        self.assertEqual(read(["echo", "20812"], {"x": {"gain": 0.001, "offset": -0.5}}), 20.312)

    def test_file_is_read(self):
        path = os.path.join(temp_folder(self), "boiler")
        source = make(file=path)
        with self.assertRaisesRegex(SensorError, "No such file"):
            source.read()
        with open(path, "w") as file:
            file.write("61.25\n")
        self.assertEqual(source.read(), {"x": 61.25})
        with open(path, "w") as file:
            file.write("1" * 100_000)
        with self.assertRaisesRegex(SensorError, "longer than 65536 bytes"):
            source.read()

    def write(self, *contents):
        """Return the path of a file that contains one of `contents` at each reading, and then the last one."""
        path, pending = os.path.join(temp_folder(self), "value"), list(contents)

        def read_file(name):
            return pending.pop(0) if len(pending) > 1 else pending[0]

        patch = mock.patch.object(command, "read_file", read_file)
        patch.start()
        self.addCleanup(patch.stop)
        return path

    def test_impossible_value_is_read_once_more_and_is_then_an_error(self):
        channels = {"t": {"pattern": "t=(.*)", "unit": "°C"}, "rh": {"pattern": "h=(.*)", "unit": "%"}}
        first, second = "t=-3274.5\nh=48\n", "t=21.5\nh=50\n"
        self.assertEqual(make(file=self.write(first, second), channels=channels).read(), {"t": 21.5, "rh": 48})
        readings = make(file=self.write(first), channels=channels).read()
        self.assertEqual(readings["rh"], 48)
        self.assertEqual(str(readings["t"]), "impossible: -3274.5 °C; read 't=-3274.5\\nh=48'"
                                             " (absolute zero: at least -273.15 °C)")  # fmt: skip
        slow = make(file=self.write(first, second), channels=channels)
        slow.patience_s = 0.0
        self.assertIsInstance(slow.read()["t"], SensorError)

    def test_range_of_a_chip_applies_if_the_command_names_it(self):
        for words, channel, value in (
            (["vcgencmd", "measure_temp"], {"unit": "°C"}, 150.1), (["/bin/read_ds18b20", "2"], {"unit": "°C"}, -127),
            (["sudo", "dht22.py"], {"unit": "°F"}, 180), (["cat", "/sys/class/thermal/thermal_zone0/temp"],
            {"unit": "°C", "gain": 0.001}, 655_350), (["dht.sh"], {"unit": "%RH"}, 100.5),
        ):  # fmt: skip
            source = make(words, {"humidity": channel})
            source._read_text = lambda value=value: f"{value}\n"
            self.assertIn("impossible", str(source.read()["humidity"]), words)
            source._read_text = lambda: "20"
            self.assertEqual(source.read()["humidity"], 20 * channel.get("gain", 1))

    def test_file_of_a_1_wire_thermometer_is_checked(self):
        zeros = "00 00 00 00 00 00 00 00 00 : crc=00 YES\n00 00 00 00 00 00 00 00 00 t=0\n"
        channels = {"x": {"pattern": "t=(.*)", "gain": 0.001, "unit": "°C"}}
        for content, words in (
            (zeros, "all bytes are 00"), (POWER_ON, "power-on"), (GOOD.replace("YES", "NO"), "checksum"),
            (GOOD.replace("t=26187", "t=0"), "contradicts"),
        ):  # fmt: skip
            path = self.write(content).replace("value", "28-0316a2794bff/w1_slave")
            self.assertIn(words, str(make(file=path, channels=channels).read()["x"]))
        self.assertEqual(make(file=self.write(GOOD), channels=channels).read()["x"], 26.187)

    def test_shell_is_used_only_if_set(self):
        self.assertIn("not a number: '$HOME;", str(read(["echo", "$HOME; echo 1"])))
        self.assertEqual(read("echo 20 | tr 2 3", shell=True), 30)


class CommandErrors(unittest.TestCase):
    def assert_fails(self, words, *texts, **more):
        with self.assertRaises(SensorError) as caught:
            make(words, **more).read()
        for text in texts:
            self.assertIn(text, str(caught.exception))

    def test_exit_status_and_last_line_are_reported(self):
        code = "import sys; print(21); print('first', file=sys.stderr); sys.exit('no bus 1')"
        self.assert_fails(python(code), "failed with exit status 1: no bus 1")
        self.assert_fails(python("import os; os.kill(os.getpid(), 9)"), "failed with signal 9")
        self.assert_fails(["/nowhere/at/all"], "'/nowhere/at/all' cannot be started: ", "No such file")
        self.assert_fails(["a\0b"], "cannot be started: embedded null byte")

    def test_command_that_takes_too_long_is_killed_with_its_children(self):
        path = os.path.join(temp_folder(self), "pid")
        for timeout in (0.1, 1, 10, LIMIT_S):  # on a busy machine it may not have started a child in such a short time
            began_s = time.monotonic()
            self.assert_fails(f"sleep 1000 & echo $! > {path}.new; mv {path}.new {path}; wait",
                              f"did not end within {timeout:g} s and was killed",
                              shell=True, timeout=timeout)  # fmt: skip
            self.assertLess(time.monotonic() - began_s, timeout + LIMIT_S)
            if os.path.exists(path):
                break
        with open(path) as file:
            child = int(file.read())
        wait_until(lambda: not is_running(child), "what it started has ended")

    def test_command_that_closes_its_output_and_continues_is_killed(self):
        for timeout in (0.2, 1.0, 5.0, LIMIT_S):  # sh can need longer than the first time limit to close its output
            with tempfile.TemporaryDirectory() as folder:
                closed = os.path.join(folder, "closed")
                self.assert_fails(f"exec >&- 2>&-; touch {closed}; exec sleep 1000",
                                  f"did not end within {timeout:g} s", shell=True, timeout=timeout)  # fmt: skip
                if os.path.exists(closed):
                    return
        self.fail("its output was never closed in time")

    def test_command_that_prints_too_much_is_killed(self):
        self.assert_fails(["yes"], "'yes' printed too much and was killed")

    def test_command_has_no_input(self):
        self.assertEqual(read(["wc", "-c"]), 0)

    def test_no_process_and_no_descriptor_is_left(self):
        source, leftovers = make(["echo", "1"]), Leftovers()
        for _ in range(20):
            source.read()
        leftovers.wait_for_none()


def is_running(pid):
    """Return True if the process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Tables(unittest.TestCase):
    def test_invalid_tables_are_refused(self):
        for words, more, text in (
            (None, {}, "must have either `command` or `file`"),
            (["true"], {"file": "/x"}, "must have either `command` or `file`"),
            ("true", {}, "command must be a list of strings, or a string with shell = true"),
            (["true"], {"shell": True}, "command must be a list of strings, or a string with shell = true"),
            ([], {}, 'command takes a list of strings, such as ["/usr/bin/sensor", "--once"]'),
            ([1], {}, "command takes a list of strings"),
            (["true"], {"timeout": 0}, "timeout takes a number from 0.1"),
            (["true"], {"channels": {}}, "channels is missing; for example: channels.boiler = {}"),
            (["true"], {"channels": {"x": {"pattern": "("}}}, "pattern takes a regular expression (missing )"),
            (["true"], {"channels": {"x": {"pattern": "a"}}}, "pattern takes a regular expression with one group"),
            (["true"], {"channels": {"x": {"pattern": 5}}}, "pattern takes a regular expression"),
        ):
            with self.subTest(text), self.assertRaises(SettingsError) as caught:
                make(words, **more)
            self.assertTrue(str(caught.exception).startswith("here: "), caught.exception)
            self.assertIn(text, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
