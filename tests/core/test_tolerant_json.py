"""Tests of the tolerant JSON decoder: an invalid value never affects its neighbours; a broken document is refused."""

import json
import random
import time
import unittest

from pigeonpost.core.errors import BadArgument
from pigeonpost.core.tolerant_json import DEEPEST_FOREIGN_JSON, read_tolerant_json


class ValidDocuments(unittest.TestCase):
    def test_valid_documents_are_decoded_as_by_the_library(self):
        for text in (
            '{"a":1,"b":[2.5,null,true,"x"],"c":{"d":"\\u00b0\\ud83d\\ude00"}}', "[]", "5", '"nan"', "null", " {} \r\n",
            '{"a":1,"a":2}', "[" * DEEPEST_FOREIGN_JSON + "]" * DEEPEST_FOREIGN_JSON,
        ):  # fmt: skip
            self.assertEqual(read_tolerant_json(text.encode()), json.loads(text), text)


class InvalidValues(unittest.TestCase):
    def test_invalid_value_becomes_its_text_and_leaves_its_neighbours(self):
        for value in (
            "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "1.#QNAN",
            "-1.#IND", "nan(ind)", "---", "**.*", "0x1F", "12:30:05", "not available", "+21.5", ".5", "5.", "007",
        ):  # fmt: skip
            for form in ('{"a":61,"v":%s,"z":-52}', '{"v": %s , "a": 61, "z": -52}', '{"a":61,"z":-52,"v":%s}'):
                with self.subTest(form % value[:20]):
                    found = read_tolerant_json((form % value).encode())
                    self.assertEqual(found, {"a": 61, "z": -52, "v": value})
            self.assertEqual(read_tolerant_json(f"[1,{value},3]".encode()), [1, value, 3])

    def test_missing_value_is_null(self):
        for value in ("", " ", "None", "undefined", "NULL", "Null"):
            self.assertEqual(read_tolerant_json(f'{{"v":{value},"a":61}}'.encode()), {"v": None, "a": 61})
            self.assertEqual(read_tolerant_json(f"[1,{value},[3]]".encode()), [1, None, [3]])

    def test_untidy_documents_are_decoded(self):
        for text, value in (
            ('{"a":1,}', {"a": 1}), ("[1,2,]", [1, 2]), ('{,"a":1,,"b":2}', {"a": 1, "b": 2}),
            ("{'a': 'x', 'b': True, 'c': None}", {"a": "x", "b": True, "c": None}), ("{a: 1, b : 2}", {"a": 1, "b": 2}),
            ('{"a":{"b":[nan,{"c":5,}]},}', {"a": {"b": ["nan", {"c": 5}]}}),
            ('{"a":"tab\t and line\n"}', {"a": "tab\t and line\n"}), ('{"a":"C:\\x","b":2}', {"a": "C:\\x", "b": 2}),
            ('{"a":1}\0\0', {"a": 1}), ('\ufeff{"a":1}', {"a": 1}),
        ):  # fmt: skip
            self.assertEqual(read_tolerant_json(text.encode()), value, text)

    def test_decimal_comma_becomes_a_text_and_leaves_its_neighbours(self):
        for text, value in (
            ('{"v":21,5,"a":61}', "21,5"), ('{"a":61,"v":-0,25}', "-0,25"), ('{"v": 1,234,567 , "a": 61}', "1,234,567"),
            ('{"v":nan,5,"a":61}', "nan,5"), ('{"v":21, 5 ,"a":61}', "21, 5"),
        ):  # fmt: skip
            self.assertEqual(read_tolerant_json(text.encode()), {"v": value, "a": 61}, text)

    def test_text_with_quotes_leaves_its_neighbours(self):
        for text, value in (
            ('{"v":"5" pipe","a":61}', '5" pipe'), ('{"a":61,"v":"the "big" one"}', 'the "big" one'),
            ('{"v":"a\\"b","a":61,}', 'a"b'), ('{"v":"x" "a":61}', "x"),
        ):  # fmt: skip
            self.assertEqual(read_tolerant_json(text.encode()), {"v": value, "a": 61}, text)
        self.assertEqual(read_tolerant_json(b'{"v":21.5 "a":61}'), {"v": 21.5, "a": 61})

    def test_text_in_another_encoding_leaves_its_neighbours(self):
        found = read_tolerant_json('{"unit":"°C","v":21.5}'.encode("latin-1"))
        self.assertEqual(found, {"unit": "\ufffdC", "v": 21.5})
        self.assertEqual(read_tolerant_json('{"unit":"°C","v":21.5}'.encode("utf-16")), {"unit": "°C", "v": 21.5})


class BrokenDocuments(unittest.TestCase):
    def test_broken_document_is_refused(self):
        for text in (
            "", "online", "nan,", '{"a":1,"b":2', '{"a":', '{"a"', '{"a', "{", "[1", '{"a":nan', '{"a" 1}', '{"a":1} x',
            "{5}", '{"a":"x",5}', '{"a":[1,2],5}', '{"a":21.5"C","b":2}',
            '{"a":nan} {"b":1}', '{"a":[1}', '{"a":"x"y', "<html>", "9" * 5000, "{]", '{"a":nan,]',
        ):  # fmt: skip
            with self.subTest(text[:20]), self.assertRaises(BadArgument) as caught:
                read_tolerant_json(text.encode())
            self.assertLess(len(str(caught.exception)), 200)

    def test_deep_nesting_is_refused(self):
        for text in (
            "[" * 60_000,
            "[" * 33 + "]" * 33,
            '{"a":' * 99 + "nan" + "}" * 99,
            "['[', " * 40 + "nan" + "]" * 40,
        ):
            with self.assertRaises(BadArgument):
                read_tolerant_json(text.encode())

    def test_any_bytes_are_decoded_or_refused(self):
        dice = random.Random(6)
        pieces = [
            *(bytes([c]) for c in b"{}[]:,'\\ \n\0"),
            b'"',
            b'"v"',
            b"1",
            b"nan",
            b"\xff",
            b"\\ud800",
            b"e9",
            b"-",
        ]
        for _ in range(2000):
            data = b"".join(dice.choices(pieces, k=dice.randrange(14)))
            try:
                read_tolerant_json(data)
            except BadArgument as error:
                self.assertTrue(str(error))

    def test_hostile_documents_take_linear_time(self):
        began_s = time.process_time()
        for text in (
            "{" + "'" * 65_000,
            "[" + '"\\q' * 20_000,
            "[" + "," * 65_000,
            "[nan," + "a " * 30_000,
            '{"a":"x"y' * 9_000,
            '{"a":"' + '" ' * 30_000,
            '{"a":1,' + "5," * 30_000,
            "{" + '"" ' * 20_000,
            '{"a":' + '"x"y,' * 9_000,
            "{" + "a:" * 30_000,
        ):
            try:
                read_tolerant_json(text.encode())
            except BadArgument:
                pass
        self.assertLess(time.process_time() - began_s, 5.0)


if __name__ == "__main__":
    unittest.main()
