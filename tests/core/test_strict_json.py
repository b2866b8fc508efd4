"""Tests of the limit for the nesting of JSON: the fast count must agree with a count after removal of all strings."""

import json
import random
import unittest

from pigeonpost.core import strict_json
from pigeonpost.core.strict_json import DEEPEST_JSON, has_escaped


def is_too_deep_without_strings(text):
    """Return True if the nesting is too deep after the strings are removed."""
    brackets = "".join(mark for mark in strict_json._STRING.sub("", text) if mark in "[]{}")
    for _ in range(DEEPEST_JSON):
        brackets = brackets.replace("[", "{").replace("]", "}").replace("{}", "")
    return bool(brackets)


class Nesting(unittest.TestCase):
    def test_fast_count_agrees_with_count_without_strings(self):
        draw = random.Random(6)
        pieces = [*'[]{}"', "[" * 9, "]" * 9, '""', '"a"', '"["', '"]"', '"}{"', "\\", '\\"', '"\\""', "\\\\", ",", "é"]
        seen = set()
        for _ in range(600):
            text = "".join(draw.choices(pieces, k=draw.randrange(1, 30)))
            expected = text.count("[") + text.count("{") > DEEPEST_JSON and is_too_deep_without_strings(text)
            self.assertEqual(strict_json.is_too_deep(text, DEEPEST_JSON), expected, text)
            seen.add(expected)
        self.assertEqual(seen, {True, False})

    def test_brackets_in_strings_do_not_hide_the_depth(self):
        deep = '["]",' * 20 + "1" + "]" * 20
        json.loads(deep)  # it is JSON
        self.assertTrue(strict_json.is_too_deep(deep, DEEPEST_JSON))

    def test_escaped_letters_are_found_at_any_position(self):
        for text in ("\\u", "a\\n\\u", "\\u \\n", "\\\\u"):
            self.assertTrue(has_escaped(text, "u"), text)
        for text in ("", "u", "\\", "a\\", '"\\n"u'):
            self.assertFalse(has_escaped(text, "u"), text)


if __name__ == "__main__":
    unittest.main()
