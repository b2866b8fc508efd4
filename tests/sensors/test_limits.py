"""Tests of limits and raw channels, which every kind with a table per channel supports."""

import unittest

import adc
import node
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.strict_json import write_json
from pigeonpost.sensors import command, formula, kernel
from pigeonpost.sensors.contract import Channel, DerivedSource, SensorSource, at_path, dotted_path, with_limits
from pigeonpost.sensors.simulated import SimulatedChip


def said(number, **options):
    """Return a source of kind "command" that reads `number`."""
    table = {"command": ["echo", str(number)], "channels": {"x": {"unit": "°C", **options}}}
    return with_limits(table, "here", lambda plain: command.make(plain, "here"))


def chip(volts, **options):
    table = {"channels": {"x": {"input": 0, **options}}}
    return with_limits(table, "here", lambda plain: adc.make(plain, "here", SimulatedChip(lambda n: volts)))


class Limits(unittest.TestCase):
    def test_limits_are_part_of_the_channel(self):
        source = said(5, low=-10, high=35, jump=0.5, stuck=3600, rail=[-50, 100])
        limits = {"low": -10, "high": 35, "jump": 0.5, "stuck": 3600, "rail": [-50, 100]}
        self.assertEqual(source.channels, [Channel("x", "°C", False, limits)])
        told = node._channel_as_json(source.channels[0])
        self.assertEqual(told, {"name": "x", "unit": "°C", "limits": limits})
        write_json(told)
        self.assertEqual(source.read(), {"x": 5})

    def test_source_is_unchanged_without_limits(self):
        self.assertIsInstance(said(5), command.CommandSource)
        self.assertEqual(node._channel_as_json(said(5).channels[0]), {"name": "x", "unit": "°C"})

    def test_rail_is_calibrated_like_the_value(self):
        for options, rail in (({"gain": 0.5, "offset": 1}, [-24, 51]), ({"gain": -1}, [-100, 50]), ({}, [-50, 100])):
            source = said(5, rail=[-50, 100], **options)
            self.assertEqual(source.channels[0].limits, {"rail": rail})
            at_the_end = said(100, rail=[-50, 100], **options).read()["x"]
            self.assertIn(at_the_end, rail)

    def test_temperature_sensor_has_a_rail_by_default(self):
        for volts, end in ((0, 0), (3.3, 1)):
            source = chip(volts, convert="mcp9700")
            rail = source.channels[0].limits["rail"]
            self.assertEqual(rail, [-50, 279.68])
            self.assertEqual(adc.Mcp3008(SimulatedChip(lambda n, v=volts: v)).read(0), end * 1023)
        self.assertEqual(chip(1, convert="lm35", gain=-1).channels[0].limits["rail"], [-329.68, 0])
        self.assertEqual(chip(1).channels[0].limits, {})

    def test_each_kind_accepts_limits(self):
        for member, table in (
            (command, {"command": ["true"], "channels": {"x": {"high": 1}}}),
            (kernel, {"channels": {"x": {"from": "thermal/cpu", "high": 1}}}),
            (adc, {"channels": {"x": {"input": 1, "high": 1}}}),
        ):
            source = with_limits(table, "here", lambda plain, member=member: member.make(plain, "here"))
            self.assertEqual(source.channels[0].limits, {"high": 1}, member)

    def test_invalid_limit_is_named_in_the_error(self):
        for options, words in (
            ({"low": "cold"}, "here: channels.x: low takes a number"),
            ({"low": 5, "high": 4}, "here: channels.x: low must not be above high"),
            ({"jump": 0}, "jump takes a number from 1e-09"),
            ({"stuck": 0}, "stuck takes a number from 1 to 864000"),
            ({"rail": 5}, "rail takes the two ends of a scale"),
            ({"rail": [1, 2, 3]}, "rail takes the two ends of a scale"),
            ({"rail": [2, 1]}, "rail takes the lower end first"),
            ({"rail": ["a", 1]}, "rail takes a number"),
            ({"raw": "perhaps"}, "raw takes true or false"),
            ({"raw": True, "gain": "big"}, "channels.x: gain takes a number"),
            ({"hihg": 5}, "channels.x: unknown key 'hihg'; did you mean \"high\"?"),
        ):
            with self.subTest(options), self.assertRaises(SettingsError) as caught:
                said(1, **options)
            self.assertIn(words, str(caught.exception))
        long = {"command": ["true"], "channels": {"x" * 30: {"raw": True}}}
        with self.assertRaisesRegex(SettingsError, "the name is too long"):
            with_limits(long, "here", lambda plain: command.make(plain, "here"))

    def test_channel_that_is_not_a_table_is_refused_by_the_kind(self):
        for channels in (5, {"x": 5}, {}):
            with self.assertRaises(SettingsError):
                with_limits({"command": ["true"], "channels": channels}, "here", lambda t: command.make(t, "here"))


class RawChannels(unittest.TestCase):
    def test_raw_channel_has_the_value_before_calibration(self):
        source = said(20812, gain=0.001, offset=-0.5, raw=True)
        self.assertEqual(source.channels, [Channel("x", "°C"), Channel("x_raw", "")])
        self.assertEqual(source.read(), {"x": 20.312, "x_raw": 20812})

    def test_raw_channel_has_the_default_unit(self):
        source = chip(1.65, convert="volts", unit="°C", gain=10, raw=True)
        self.assertEqual(source.channels, [Channel("x", "°C", True), Channel("x_raw", "V", True)])
        self.assertEqual(source.read(), {"x": 16.5, "x_raw": 1.65})

    def test_raw_channel_equals_the_value_without_calibration(self):
        readings = chip(1.65, raw=True).read()
        self.assertEqual(readings, {"x": 512, "x_raw": 512})
        self.assertIs(type(readings["x"]), int)

    def test_rail_of_a_driver_is_calibrated(self):
        source = chip(0, convert="mcp9700", offset=1.5, raw=True)
        self.assertEqual(source.channels[0].limits, {"rail": [-48.5, 281.18]})
        self.assertEqual(source.channels[1].limits, {})
        self.assertEqual(
            source.channels[0].limits["rail"], chip(0, convert="mcp9700", offset=1.5).channels[0].limits["rail"]
        )

    def test_calculated_channel_can_have_limits_but_no_raw_channel(self):
        def calculated(**options):
            table = {"channels": {"x": {"formula": "a + 1", **options}}}
            return with_limits(table, "here", lambda plain: formula.make(plain, "here"))

        self.assertEqual(calculated(high=5).channels[0].limits, {"high": 5})
        self.assertIsInstance(calculated(high=5), DerivedSource)
        with self.assertRaisesRegex(SettingsError, "here: channels.x: raw is not possible for a calculated channel"):
            calculated(raw=True)

    def test_failure_affects_the_raw_channel_too(self):
        source = said("nothing", gain=2, raw=True)
        readings = source.read()
        self.assertEqual(list(readings), ["x", "x_raw"])
        for error in readings.values():
            self.assertIsInstance(error, SensorError)

    def test_raw_does_not_affect_other_channels(self):
        table = {"channels": {"a": {"input": 0}, "b": {"input": 1, "raw": True, "gain": 2}, "c": {"input": 2}}}
        source = with_limits(table, "here", lambda plain: adc.make(plain, "here", SimulatedChip(lambda n: 1.65)))
        self.assertEqual(list(source.read()), ["a", "b", "b_raw", "c"])
        self.assertEqual([channel.name for channel in source.channels], ["a", "b", "b_raw", "c"])
        self.assertEqual(source.read()["b"], 1024)

    def test_close_closes_the_inner_source(self):
        class Below(SensorSource):
            channels = [Channel("x", "")]
            closed = 0

            def close(self):
                self.closed += 1

        below = Below()
        with_limits({"channels": {"x": {"low": 1}}}, "here", lambda plain: below).close()
        self.assertEqual(below.closed, 1)


class Paths(unittest.TestCase):
    def test_value_at_a_path_is_found(self):
        value = {"a": {"b": [1, {"c": 2}]}, "0": 3}
        for path, found in (("", value), ("a.b.0", 1), ("a.b.1.c", 2), ("a.b.-1.c", 2), ("0", 3)):
            self.assertEqual(at_path(value, dotted_path(path)), found)

    def test_missing_path_is_reported_with_what_was_found(self):
        for path, words in (
            ("a.x.y", "there is no 'a.x'; found: 'b', 'c'"),
            ("a.b.7", "there is no 'a.b.7'; found: a list of 1 element"),
            ("a.b.z", "there is no 'a.b.z'"), ("n.m", "there is no 'n.m'; found: 5"),
            ("a.c.x", "there is no 'a.c.x'; found: nothing"), ("z" * 999, "there is no 'zzz"),
        ):  # fmt: skip
            with self.subTest(path[:9]), self.assertRaises(SensorError) as caught:
                at_path({"a": {"b": [1], "c": {}}, "n": 5}, dotted_path(path))
            self.assertIn(words, str(caught.exception))
            self.assertLess(len(str(caught.exception)), 250)


if __name__ == "__main__":
    unittest.main()
