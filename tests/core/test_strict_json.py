"""Nesting of JSON: what is counted quickly, from the marks alone, is what is counted without the strings."""

import json
import random
import unittest

from pigeonpost.core import strict_json
from pigeonpost.core.strict_json import DEEPEST_JSON, has_escaped


def is_too_deep_without_strings(text):
    """As the module's docstring says it: strings are taken out first."""
    brackets = "".join(mark for mark in strict_json._STRING.sub("", text) if mark in "[]{}")
    for _ in range(DEEPEST_JSON):
        brackets = brackets.replace("[", "{").replace("]", "}").replace("{}", "")
    return bool(brackets)


class Nesting(unittest.TestCase):
    def test_any_text_is_as_deep_as_without_its_strings(self):
        draw = random.Random(6)
        pieces = [*'[]{}"', "[" * 9, "]" * 9, '""', '"a"', '"["', '"]"', '"}{"', "\\", '\\"', '"\\""', "\\\\", ",", "é"]
        seen = set()
        for _ in range(600):
            text = "".join(draw.choices(pieces, k=draw.randrange(1, 30)))
            expected = text.count("[") + text.count("{") > DEEPEST_JSON and is_too_deep_without_strings(text)
            self.assertEqual(strict_json._is_too_deep(text), expected, text)
            seen.add(expected)
        self.assertEqual(seen, {True, False})

    def test_brackets_in_strings_hide_no_depth(self):
        deep = '["]",' * 20 + "1" + "]" * 20
        json.loads(deep)  # it is JSON
        self.assertTrue(strict_json._is_too_deep(deep))

    def test_escaped_letters_are_found_wherever_they_stand(self):
        for text in ("\\u", "a\\n\\u", "\\u \\n", "\\\\u"):
            self.assertTrue(has_escaped(text, "u"), text)
        for text in ("", "u", "\\", "a\\", '"\\n"u'):
            self.assertFalse(has_escaped(text, "u"), text)


if __name__ == "__main__":
    unittest.main()
