"""Tests of formulas: syntax, calculation from other channels, and errors."""

import math
import os
import unittest

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.node.sampler import Sampler
from pigeonpost.sensors import formula
from pigeonpost.sensors.contract import Channel, LatestReading, SensorSource, in_order, with_limits
from pigeonpost.sensors.formula import compile_formula
from tests.node.test_sampler import FakeSource, SamplerCase, StuckReading
from tests.sensors.test_contract import Contract
from tests.support import LIMIT_S, ROOT, wait_until


def make(formulas, **more):
    """Return a source of formulas. A single text is the formula of the channel x."""
    texts = {"x": formulas} if isinstance(formulas, str) else formulas
    return formula.make({"channels": {name: {"formula": text} for name, text in texts.items()}, **more}, "here")


def value(text, **values):
    return compile_formula(text).evaluate(values)


class Formula(Contract, unittest.TestCase):
    module = formula

    def make(self):
        return make({"x": "sqrt(2) * pi", "y": "1 > 2"})

    def make_broken(self):
        return make("somewhere + 1")


class Calculations(unittest.TestCase):
    def assert_values(self, *rows, **values):
        for text, wanted in rows:
            with self.subTest(text):
                self.assertAlmostEqual(value(text, **values), wanted, 9)

    def test_arithmetic_gives_the_expected_values(self):
        self.assert_values(
            ("a + b * 2", 14), ("(a + b) * 2", 20), ("a - b - 1", 1), ("a / b", 1.5), ("a // b", 1), ("a % b", 2),
            ("-a ** 2", -36), ("2 ** 3 ** 2", 512), ("+a", 6), ("1e3", 1000), ("1_000", 1000), ("0x10", 16),
            ("2 * pi * a", 12 * math.pi), ("e", math.e), ("  a\n  + b ", 10), ("a" + " + a" * 100, 606),
            a=6, b=4,
        )  # fmt: skip

    def test_comparisons_give_1_or_0(self):
        self.assert_values(
            ("a > b", 1), ("a < b", 0), ("a >= 6", 1), ("a <= 5", 0), ("a == 6", 1), ("a != 6", 0), ("1 < b < a", 1),
            ("1 < b < 3", 0), ("a > 5 and b > 5", 0), ("a > 5 or b > 5", 1), ("not a", 0), ("not 0", 1),
            ("(a > 5) + (b > 3)", 2), ("5 and 7", 1), ("0 or 0", 0),
            a=6, b=4,
        )  # fmt: skip

    def test_conditional_evaluates_only_one_branch(self):
        self.assert_values(("a if a > b else b", 6), ("a if a < b else b", 4), ("1 if a else 1 / 0", 1), a=6, b=4)
        self.assertEqual(value("0 and gone"), 0)

    def test_functions_give_the_expected_values(self):
        self.assert_values(
            ("min(3, 1, 2)", 1), ("max(3, 1, 2)", 3), ("mean(1, 2, 6)", 3), ("abs(-2)", 2), ("round(2.567, 2)", 2.57),
            ("round(1234, -2)", 1200), ("round(2.4)", 2), ("floor(-1.5)", -2), ("ceil(1.2)", 2), ("sqrt(9)", 3),
            ("exp(1)", math.e), ("log(e)", 1), ("log(8, 2)", 3), ("log10(1000)", 3), ("log2(8)", 3), ("hypot(3, 4)", 5),
            ("sin(pi / 2)", 1), ("cos(0)", 1), ("tan(0)", 0), ("asin(1)", math.pi / 2), ("acos(1)", 0),
            ("atan(1)", math.pi / 4), ("atan2(1, 1)", math.pi / 4), ("degrees(pi)", 180), ("radians(180)", math.pi),
        )  # fmt: skip

    def test_every_function_is_tested_and_documented(self):
        with open(__file__, encoding="utf-8") as file:
            tests = file.read()
        with open(os.path.join(ROOT, "docs/sensors.md"), encoding="utf-8") as file:
            manual = file.read()
        for name in formula.FUNCTIONS:
            self.assertIn(f'"{name}(', tests)
            self.assertIn(f"`{name}(", manual)

    def test_dew_point_matches_published_values(self):
        # The formula of WMO-No. 8, calculated by hand, and properties of every dew point.
        self.assertAlmostEqual(value("dew_point(20, 50)"), 9.255, 3)
        self.assertAlmostEqual(value("dew_point(-10, 80)"), -12.75, 1)
        for t in (-40, 0, 12.5, 55):
            self.assertAlmostEqual(value("dew_point(t, 100)", t=t), t, 9)

    def test_absolute_humidity_matches_published_values(self):
        self.assertAlmostEqual(value("absolute_humidity(20, 100)"), 17.3, delta=0.1)  # from a steam table
        self.assertAlmostEqual(value("absolute_humidity(0, 100)"), 4.85, 2)
        self.assertAlmostEqual(value("absolute_humidity(20, 50)"), value("absolute_humidity(20, 100)") / 2, 9)

    def test_heat_index_matches_published_values(self):
        # The table of the US National Weather Service, °F: 90 and 60 % give 100, 80 and 40 % 80, 100 and 40 % 109.
        for f, rh, index in ((90, 60, 100), (80, 40, 80), (100, 40, 109), (90, 95, 127), (84, 90, 98), (70, 50, 69)):
            found = value("heat_index(t, rh)", t=(f - 32) / 1.8, rh=rh) * 1.8 + 32
            self.assertAlmostEqual(found, index, delta=0.75, msg=(f, rh))
        dry = value("heat_index(t, 10)", t=(95 - 32) / 1.8) * 1.8 + 32
        self.assertAlmostEqual(dry, 90.2 - 0.75, delta=0.01)  # calculated by hand: below 13 %

    def test_mixing_functions_give_the_expected_values(self):
        self.assertEqual(value("mix(60, 1, 10, 3)"), 22.5)
        self.assertEqual(value("mix(60, 0.25, 10, 1 - 0.25)"), 22.5)
        self.assertEqual(value("mix_share(60, 10, 22.5)"), 0.25)

    def test_integers_of_64_bits_are_accepted(self):
        self.assertEqual(value("a - a", a=2**63 - 1), 0)


class InvalidFormulas(unittest.TestCase):
    def test_impossible_calculation_is_a_sensor_error(self):
        for text, words in (
            ("1 + a / 0", "formula, column 5: / divides by zero"),
            ("5 % (a - a)", "column 1: % divides by zero"),
            ("9 ** 9 ** 9", "column 1: **: the result is too large"),
            ("1e308 * 10", "*: the result is too large"),
            ("exp(1000)", "exp: the result is too large"),
            ("log(-1)", "log is not possible with -1"),
            ("sqrt(-a)", "sqrt is not possible with -2"),
            ("(-8) ** 0.5", "** is not possible with -8, 0.5"),
            ("0 ** -1", "** is not possible with 0, -1"),
            ("log(2, 1)", "log divides by zero"),
            ("dew_point(20, 0)", "dew_point takes a relative humidity over 0 and up to 100 %, not 0"),
            ("absolute_humidity(20, 140)", "takes a relative humidity"),
            ("heat_index(30, -1)", "takes a relative humidity from 0 to 100 %"),
            ("mix(1, 0, 2, 0)", "takes flows that are not negative and not both zero"),
            ("mix(1, -1, 2, 5)", "takes flows that are not negative"),
            ("mix_share(5, 5, 5)", "mix_share divides by zero"),
        ):
            with self.subTest(text), self.assertRaises(SensorError) as caught:
                value(text, a=2)
            self.assertIn(words, str(caught.exception))

    def test_invalid_formula_is_refused_with_its_column(self):
        for text, words in (
            ("", "formula, column 1: invalid syntax"),
            ("a +", "formula, column 4: invalid syntax"),
            ("  (a", "column 3: '(' was never closed"),
            ("a b", "column 3: invalid syntax"),
            ("1 + a.real", "column 5: only numbers, channel names, operators and functions are allowed, not 'a.real'"),
            ("ä + a[0]", "column 5: only numbers, channel names, operators and functions are allowed, not 'a[0]'"),
            ("a # b", "column 3: comments are not allowed"),
            ("'a'", "not \"'a'\""),
            ("True", "not 'True'"),
            ("1j", "not '1j'"),
            ("lambda: 1", "not 'lambda: 1'"),
            ("[a for a in b]", "not '[a for a in b]'"),
            ("(a := 1)", "not 'a := 1'"),
            ("f'{a}'", "not \"f'{a}'\""),
            ("a @ b", "only the operators + - * / // % ** are supported"),
            ("a << 3", "only the operators + - * / // % ** are supported"),
            ("a in b", "only the comparisons < <= > >= == != are supported"),
            ("~a", "the operator ~ is not supported"),
            ("1e999", "the number is too large"),
            ("9" * 400, "the number is too large"),
            ("open(1)", "no function is called 'open'; known names: abs, "),
            ("dewpoint(1, 2)", "no function is called 'dewpoint'; did you mean \"dew_point\"?"),
            ("min.__class__(1)", "only functions can be called"),
            ("min(1)", "min takes 2 to 100 arguments, separated by commas"),
            ("sqrt()", "sqrt takes 1 argument"),
            ("a if b", "column 1: expected 'else' after 'if' expression"),
            ("min(*a)", "min takes 2 to 100 arguments"),
            ("round(1, digits=2)", "round takes 1 to 2 arguments"),
            ("a + " * 200 + "a", "the formula is too large"),
            ("-" * 400 + "1", "the formula is too large"),
            ("(" * 400 + "1" + ")" * 400, "too many nested parentheses"),
            ("1 + " * 300, "formula is longer than 1000 characters; divide it into several channels"),
            ("\0", "formula"),
            ("\ud800", "formula"),
        ):
            with self.subTest(text[:30]), self.assertRaises(SettingsError) as caught:
                compile_formula(text)
            self.assertIn(words, str(caught.exception))
            self.assertLess(len(str(caught.exception)), 400)

    def test_unknown_name_is_refused_with_a_hint(self):
        self.assertEqual(compile_formula("b + a + b", ["a", "b"]).uses, {"b": 1, "a": 5})
        with self.assertRaisesRegex(SettingsError, "column 5: no channel is called 'romo'; did you mean \"room\""):
            compile_formula("1 + romo", ["room", "hall"])


class Tables(unittest.TestCase):
    def test_invalid_tables_are_refused(self):
        for table, words in (
            ({}, "here: channels is missing; for example: channels.dew = {formula ="),
            ({"channels": {"x": {}}}, "here: channels.x: formula is missing"),
            ({"channels": {"x": {"formula": " "}}}, "here: channels.x: formula is missing"),
            ({"channels": {"x": {"formula": 5}}}, "here: channels.x: formula takes a string"),
            ({"channels": {"x": {"formula": "1 +"}}}, "here: channels.x: formula, column 4: invalid syntax"),
            ({"channels": {"x": {"formula": "1", "gain": 2}}}, "unknown key 'gain'"),
            ({"channels": {"x": {"formula": "1"}}, "fresh": 0}, "fresh takes a number from 0.01"),
        ):
            with self.subTest(words), self.assertRaises(SettingsError) as caught:
                formula.make(table, "here")
            self.assertIn(words, str(caught.exception))

    def test_names_are_checked_against_all_channels_of_the_node(self):
        for uses, words in (
            ({"x": "romo + 1"}, "here: channels.x: formula, column 1: no channel is called 'romo'; did you mean"),
            ({"x": "q + 1"}, "no channel is called 'q'; known names: hall, room, x"),
            ({"x": "2 * x"}, "here: channels.x: formula, column 5: the channels depend on each other: x needs x"),
            ({"x": "y", "y": "room + z", "z": "x"}, "depend on each other: "),
        ):
            with self.subTest(words), self.assertRaises(SettingsError) as caught:
                in_order([FakeSource("room", "hall"), make(uses)])
            self.assertIn(words, str(caught.exception))
        self.assertRegex(
            str(caught.exception), "(x needs y needs z needs x|y needs z needs x needs y|z needs x needs y)"
        )

    def test_channels_are_calculated_after_those_that_they_use(self):
        first, second = make({"a": "d + 1", "b": "room"}), make({"c": "a * 2", "d": "b + room"})
        self.assertEqual([name for _, name in in_order([first, FakeSource("room"), second])], ["b", "d", "a", "c"])
        self.assertEqual(in_order([FakeSource("room")]), [])

    def test_sampler_refuses_a_formula_with_a_missing_channel(self):
        with self.assertRaises(SettingsError):
            Sampler([make("gone")], print, 1, FakeClock())

    def test_formula_channel_can_have_limits(self):
        table = {"channels": {"x": {"formula": "room", "high": 30}}}
        source = with_limits(table, "here", lambda plain: formula.make(plain, "here"))
        self.assertEqual(source.channels, [Channel("x", "", limits={"high": 30.0})])
        self.assertEqual([name for _, name in in_order([source, FakeSource("room")])], ["x"])
        table["channels"]["x"]["raw"] = True
        with self.assertRaisesRegex(SettingsError, r"^here: channels\.x: raw is not possible for a calculated channel"):
            with_limits(table, "here", lambda plain: formula.make(plain, "here"))


class Freshness(unittest.TestCase):
    def derive(self, text, latest, now_s=100.0, **more):
        return make(text, **more).derive("x", {name: LatestReading(*pair) for name, pair in latest.items()}, now_s)

    def test_value_is_as_old_as_its_oldest_input(self):
        self.assertEqual(self.derive("a + b", {"a": (1, 95.0), "b": (2, 97.0)}), (3, 95.0))
        self.assertEqual(self.derive("5", {}), (5, 100.0))
        self.assertEqual(self.derive("b if b else a", {"a": (1, 95.0), "b": (2, 97.0)}), (2, 97.0))

    def test_value_is_used_only_while_it_is_recent(self):
        self.assertEqual(self.derive("a", {"a": (1, 80.0)}).value, 1)
        for fresh, at_s, words in (
            (20, 79.0, "the latest value of a is 21 s old; the limit is 20 s"),
            (0.5, 99.0, "the latest value of a is 1 s old; the limit is 0.5 s"),
        ):
            with self.assertRaises(SensorError) as caught:
                self.derive("a", {"a": (1, at_s)}, fresh=fresh)
            self.assertEqual(str(caught.exception), words)
        with self.assertRaisesRegex(SensorError, "a has no value yet"):
            self.derive("a", {})

    def test_value_is_rounded_to_significant_digits(self):
        self.assertEqual(self.derive("0.1 + 0.2", {}).value, 0.3)
        self.assertEqual(self.derive("100 / 3", {}).value, 33.333333)
        self.assertEqual(self.derive("1 / 30000000", {}).value, 3.33333e-8)


class Sampled(SamplerCase):
    def test_derived_values_are_in_the_same_sample_in_the_order_of_the_settings(self):
        one = self.sampled(make({"sum": "a + twice"}), FakeSource("a", does=lambda: {"a": 5}), make({"twice": "2 * a"}))
        self.assertEqual(one.values, {"sum": 15, "a": 5, "twice": 10})
        self.assertEqual(list(one.values), ["sum", "a", "twice"])

    def test_formula_source_has_no_thread(self):
        sampler = self.sampler(FakeSource("a"), make("a"))
        self.assertEqual([reader.name for reader in sampler._readers], ["a"])

    def test_last_value_of_a_failing_source_is_used_while_it_is_recent(self):
        clock, works = FakeClock(), [True]

        def does():
            if not works:
                raise SensorError("no response")
            return {"a": 5}

        sampler = self.sampler(FakeSource("a", does=does), make({"x": "a + 1", "y": "x + 1"}), clock=clock)
        sampler.sample()
        works.clear()
        with self.assertLogs("pigeonpost.node.sampler", "WARNING"):
            for _ in range(3):
                clock.sleep(10)
                sampler.sample()
        self.assertEqual([one.values["x"] for one in self.taken], [6, 6, 6, None])
        # A formula that uses another formula does not double the time for which a value is used.
        self.assertEqual([one.values["y"] for one in self.taken], [7, 7, 7, None])
        self.assertEqual(self.taken[-1].errors, {
            "a": "no response", "x": "the latest value of a is 30 s old; the limit is 20 s",
            "y": "the latest value of x is 30 s old; the limit is 20 s",
        })  # fmt: skip

    def test_late_answer_of_a_slow_source_is_used_by_age(self):
        clock, stuck = FakeClock(), StuckReading(self)
        sampler = self.sampler(FakeSource("slow", "also", does=stuck), make("slow + 1"), every_s=0.01, clock=clock)
        sampler._patience_s = 0.0
        with self.assertLogs("pigeonpost.node.sampler", "WARNING"):
            sampler.sample()
            self.assertTrue(stuck.begun.wait(LIMIT_S))
            stuck.let_go.set()
            wait_until(lambda: sampler._answers)
            clock.sleep(15)
            stuck.let_go.clear()
            sampler.sample()  # it is read again, and the answer to the first request has arrived
            self.assertEqual(self.taken[-1].values, {"slow": None, "also": None, "x": 100})
            clock.sleep(6)
            sampler.sample()
        self.assertEqual(self.taken[-1].errors["x"], "the latest value of slow is 21 s old; the limit is 20 s")

    def test_internal_error_in_a_formula_does_not_stop_sampling(self):
        source = make({"x": "a"})
        source.derive = lambda *_: 1 / 0
        with self.assertLogs("pigeonpost.node.sampler", "WARNING"):
            one = self.sampled(FakeSource("a"), source)
        self.assertEqual(one.values, {"a": 1.5, "x": None})
        self.assertIn("internal error", one.errors["x"])

    def test_formula_source_is_closed_with_the_others(self):
        closed = []
        source = make("1")
        source.close = lambda: closed.append(True)
        self.sampler(source).stop(LIMIT_S)
        self.assertEqual(closed, [True])


class SourceAlone(unittest.TestCase):
    def test_read_without_other_channels_is_a_sensor_error(self):
        self.assertNotIsInstance(FakeSource("a"), formula.FormulaSource)
        self.assertIsInstance(make("1"), SensorSource)


if __name__ == "__main__":
    unittest.main()
