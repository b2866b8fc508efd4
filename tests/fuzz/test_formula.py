"""Formulas.

Each gives a finite number, a SettingsError with its column, or a SensorError, in bounded time and memory.
"""

import math
import unittest

from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors import formula
from pigeonpost.sensors.formula import FUNCTIONS, compile_formula
from tests.fuzz import Target, fuzzed, mutated, st

VALUES = {"a": 21.5, "b": -3, "zero": 0, "large": 1e308, "tiny": 5e-324, "whole": 2**63 - 1}
NUMBERS = ("0", "1", "9", "0.5", "1e308", "5e-324", "1e999", "9" * 400, "0x" + "f" * 300, "1j", "True", "1_0")
SIGNS = (" + ", " - ", " * ", " / ", " // ", " % ", "**", " < ", " == ", " and ", " or ", " if 1 else ", " in ", " @ ")
PIECES = [
    *(text.encode() for text in (*NUMBERS, *SIGNS, *VALUES, *FUNCTIONS)),
    b"(", b")", b",", b".", b"[", b"]", b"{", b":=", b"=", b"#", b"'", b'"""', b"f'", b"\\", b"\n", b"\0", b"\xff",
    b"lambda:", b"not ", b"-", b"~", b"*", b"__class__", b"__import__('os')", b" for a in b", b"await ", b"yield ",
    b"\xc3\xa4",
]  # fmt: skip


def formulas():
    """Return a strategy for texts that are formulas, sometimes with an invalid name or number."""
    leaves = st.sampled_from((*VALUES, *NUMBERS[:6], "pi", "e"))

    def larger(inner):
        pair = st.tuples(inner, st.sampled_from(SIGNS[:12]), inner).map(lambda parts: f"({''.join(parts)})")
        call = st.tuples(st.sampled_from(list(FUNCTIONS)), st.lists(inner, max_size=4)).map(
            lambda parts: f"{parts[0]}({', '.join(parts[1])})"
        )
        return pair | call | inner.map("-{}".format) | inner.map("not {}".format)

    return st.recursive(leaves, larger, max_leaves=20).map(str.encode)


class Formulas(Target, unittest.TestCase):
    corpus = "formulas"
    CPU_S = 0.5

    def check(self, data):
        text = data.decode(errors="surrogateescape")
        with self.bounded():
            try:
                made = compile_formula(text, VALUES)
            except SettingsError as error:
                self.assertIn("formula", str(error))
                self.assertLess(len(str(error)), 1000)
                return
            self.assertLessEqual(made.uses.keys(), VALUES.keys())
            for name, column in made.uses.items():
                if text.isascii():  # the parser may normalise other letters to plain ones
                    self.assertEqual(text[column - 1 : column - 1 + len(name)], name)
            try:
                value = made.evaluate(VALUES)
            except SensorError as error:
                self.assertIn("formula, column ", str(error))
                self.assertLess(len(str(error)), 1000)
            else:
                self.assertIs(type(value), float)
                self.assertTrue(math.isfinite(value))

    @fuzzed(formulas)
    def test_random_formulas_are_refused_or_calculated(self, data):
        self.check(data)

    @fuzzed(lambda: mutated(formulas(), PIECES, 4 * formula.LONGEST_TEXT))
    def test_formulas_mutated(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
