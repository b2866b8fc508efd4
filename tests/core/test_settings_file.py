"""Tests of errors in settings files: each names the line and the correction."""

import os
import unittest

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.settings_file import parse, read_text, with_line
from tests.support import temp_folder


class Faults(unittest.TestCase):
    def fault(self, text):
        with self.assertRaises(SettingsError) as caught:
            parse(text, "node.toml")
        return str(caught.exception)

    def assert_faults(self, *rows):
        for text, line, words in rows:
            with self.subTest(text):
                self.assertEqual(self.fault(text), f"node.toml, line {line}: not TOML: {words}")

    def test_unquoted_text_is_explained(self):
        self.assert_faults(
            ("[node]\nname = basement\n", 2, 'put text in quotes: name = "basement"'),
            ("[node]\nname = my pi  # mine\n", 2, 'put text in quotes: name = "my pi"'),
            ("listen = 0.0.0.0:5003", 1, 'put text in quotes: listen = "0.0.0.0:5003"'),
            ("codifier = C4", 1, 'put text in quotes: codifier = "C4"'),
            ("[mail]\npassword = 0815", 2, "put text in quotes: password = ***"),
            ("[mail]\npassword = (sesame)", 2, "put text in quotes: password = ***"),
            (
                '[server]\nnodes = [a@b, "c"]',
                2,
                'put each text of a list in quotes, with a comma between two: nodes = ["...", "..."]',
            ),
            (
                '[server]\nnodes = [\n"a",\nb,\n]',
                4,
                "put each text of a list in quotes, with a comma between two",
            ),
        )

    def test_wrong_quotation_marks_are_explained(self):
        plain = 'is not a valid quotation mark: use plain ones, as in name = "basement"'
        self.assert_faults(
            ("[node]\nname = “basement”", 2, f"“ {plain}"),
            ("[node]\nname = `basement`", 2, f"` {plain}"),
            ("nodes = [„a”]", 1, f"„ {plain}"),
            ('name = "basement', 1, 'the closing " is missing'),
            ("name = \"basement'\n[link]", 1, 'the closing " is missing'),
            ("name = 'it’s", 1, "the closing ' is missing"),
            ('name = """a\nb', 1, 'the closing """ is missing'),
            ('a = "b"c"', 1, "a \" in the text ends the text: put it in '...'"),
            ('[server]\nnodes = [\n"a,\n]', 3, "the closing quotation mark is missing"),
        )

    def test_backslashes_are_explained(self):
        words = "a backslash has a special meaning in \"...\": write two, or use single quotes, as in 'C:\\data'"
        self.assert_faults(('[node]\ndata = "C:\\pi"', 2, words), ('[node]\ndata = "C:\\Users"', 2, words))

    def test_values_in_other_notations_are_explained(self):
        unit = "(docs/settings.md has the unit of each setting)"
        digits = "write digits on both sides of the decimal point, and no leading 0"
        self.assert_faults(
            ("every = 0,5", 1, "use a decimal point: every = 0.5"),
            ("every = 5 s", 1, f"write the number without its unit: every = 5 {unit}"),
            ("every = 10 minutes # x", 1, f"write the number without its unit: every = 10 {unit}"),
            ("every = .5", 1, f"{digits}: every = 0.5"),
            ("every = 5.", 1, f"{digits}: every = 5"),
            ("every = 05", 1, f"{digits}: every = 5"),
            ("tls = True", 1, "write tls = true"),
            ("tls = no", 1, "write tls = false"),
            ("name = None", 1, "TOML has no None: delete the line"),
            ("name =", 1, 'the value of name is missing; an empty text is ""'),
            ("name = # x", 1, 'the value of name is missing; an empty text is ""'),
            ("nodes = (1, 2)", 1, 'put a list in square brackets: nodes = ["...", "..."]'),
            ('[web]\nlisten = ["a:1"\n[node]\nevery = 1', 2, "the closing ] of the list that begins here is missing"),
            ("x = {a = 1,\nb = 2}", 1, "write {...} on one line, or use a [table]"),
        )

    def test_lines_of_other_formats_are_explained(self):
        words = "write = between key and value"
        other = 'this looks like JSON, XML or YAML; TOML has a line [table], then lines such as name = "basement"'
        self.assert_faults(
            ("[node]\nevery: 5", 2, f"{words}, not : (as in every = ...)"),
            ("node:\n  every: 5", 1, f"{words}, not : (as in node = ...)"),
            ("every == 5", 1, f"{words}, not == (as in every = ...)"),
            ("every 5", 1, "= is missing between key and value (as in every = ...)"),
            ("every = 5;", 1, "nothing may follow the value: delete the ;"),
            ('name = "a",', 1, "nothing may follow the value: delete the ,"),
            ("every = 5 slots = 64", 1, "write each NAME = VALUE on a line of its own"),
            ("; comment", 1, "a comment begins with #"),
            ("// comment", 1, "a comment begins with #"),
            ('{"node": {}}', 1, other),
            ("- kind: adc", 1, other),
            ('"every" 5', 1, "a line must begin with a key, without quotes, as in every = 5"),
            ("größe = 5", 1, "'größe' is not a valid key: keys consist of the letters a to z, digits, - and _"),
        )

    def test_invalid_table_headers_are_explained(self):
        self.assert_faults(
            ("[node\nevery = 5", 1, "write the table as [node]"),
            ("\n[[sensor]\n", 2, "write the table as [[sensor]]"),
            ("[node]]", 1, "write the table as [node]"),
            ("[ [sensor] ]", 1, "the name of the table is missing: write [node], or [[sensor]] for one of several"),
            ("[node]:", 1, "nothing may follow [node] on its line: write each key on a line of its own below it"),
            ("[node] a = 1", 1, "nothing may follow [node] on its line: write each key on a line of its own below it"),
        )

    def test_repeated_keys_and_tables_are_explained(self):
        self.assert_faults(
            ("[node]\nevery = 5\n\nevery = 6", 4, "[node] every is already set in line 2: keep only one of them"),
            ("[node]\nevery = 5\n[link]\n[node]\n", 4, "[node] is already set in line 1: keep only one of them"),
            (
                "[[sensor]]\n[[sensor]]\nkind = 1\nkind = 2",
                4,
                "[[sensor]] 2: kind is already set in line 3: keep only one of them",
            ),
            ("a = 1\na = 2", 2, "a is already set in line 1: keep only one of them"),
        )

    def test_invisible_characters_are_explained(self):
        space = "a special space (U+00A0), perhaps copied from a web page: replace it by a normal one"
        self.assert_faults(
            ("[node]\n\u00a0every = 5", 2, space),
            ("[node]\nevery =\u00a05", 2, space),
            ('[node]\nname = "a\x01"', 2, "illegal character '\\x01': delete it"),
        )

    def test_tabs_are_accepted_as_spaces(self):
        self.assertEqual(parse('\t[node]\t\n\tevery\t=\t5\t# x\n\tname = "a\tb"', "x")["node"]["every"], 5)

    def test_secrets_are_not_shown(self):
        for text in ("token = abcdefgh12345678", "[mail]\npassword: sesame-123", "password = sesame 123",
                     'url = "https://me:sesame-123@host', "api_key = abcdefgh"):  # fmt: skip
            with self.subTest(text):
                self.assertNotRegex(self.fault(text), "abcdefgh|sesame")

    def test_each_error_is_one_short_line(self):
        pieces = [*"a=\"'[]{}\n #,\\1é“:\t.", '"""']
        for number in range(4000):
            text = "".join(pieces[number * 7919 // 20**place % 20] for place in range(number % 9))
            try:
                parse(text, "x")
            except SettingsError as error:
                self.assertNotIn("\n", str(error), text)
                self.assertLess(len(str(error)), 300, text)


class Encodings(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(temp_folder(self), "node.toml")

    def read(self, data):
        with open(self.path, "wb") as file:
            file.write(data)
        return read_text(self.path)

    def test_byte_order_mark_is_removed(self):
        self.assertEqual(self.read('[node]\nname = "é"'.encode("utf-8-sig")), '[node]\nname = "é"')

    def test_utf_16_and_utf_32_are_refused(self):
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"):
            for mark in ("", "\ufeff"):
                with self.subTest((encoding, mark)), self.assertRaises(SettingsError) as caught:
                    self.read((mark + "[node]\n").encode(encoding))
                self.assertEqual(
                    str(caught.exception),
                    f"{self.path}: is UTF-16 or UTF-32: save it as UTF-8 (in an editor: Save as)",
                )

    def test_invalid_utf_8_is_refused_with_the_line(self):
        with self.assertRaises(SettingsError) as caught:
            self.read('# x\n[node]\nname = "küche"'.encode("latin-1"))
        self.assertEqual(
            str(caught.exception),
            f"{self.path}, line 3: not TOML: byte 0xfc (perhaps 'ü') is not UTF-8: save the file as UTF-8",
        )

    def test_unreadable_files_are_refused(self):
        with self.assertRaisesRegex(SettingsError, "No such file or directory$"):
            read_text(self.path)
        with self.assertRaisesRegex(SettingsError, "Is a directory$"):
            read_text(os.path.dirname(self.path))


TEXT = """\
[node]
every = 0

[[sensor]]
kind = "machine"

[[sensor]]
kind = "adc"
channels.light = {input = 9}
[sensor.channels.temperature]
input = 9
inptu = 1
"""


class LineNumbers(unittest.TestCase):
    def test_error_gets_the_line_of_its_key_or_table(self):
        for message, line in (
            ("[node] every takes a number", 2),
            ("[node]: unknown key 'every'; did you mean", 2),
            ("[node] name takes", 1),
            ("node is a table", 1),
            ("[node] belongs in node.toml", 1),
            ("[[sensor]] belongs in node.toml", 4),
            ("[[sensor]] 1: kind must be one of adc", 5),
            ("[[sensor]] 1: `kind` and `name` must not be used together", 5),
            ("[[sensor]] 2: channels is missing", 9),
            ("[[sensor]] 2: dsk is missing", 7),
            ("[[sensor]] 2: channels.light: input takes", 9),
            ("[[sensor]] 2: channels.temperature: input takes", 11),
            ("[[sensor]] 2: channels.temperature: unknown key 'inptu'; did you", 12),
            ("[[sensor]] 2: channels.temperature: no channel is called", 10),
        ):
            with self.subTest(message):
                self.assertEqual(with_line(f"x: {message}", TEXT, "x"), f"x, line {line}: {message}")

    def test_error_without_a_certain_line_is_unchanged(self):
        for message in ("x: two sensors give", "x: [[sensor]] 3: kind must be one of", "y: [node] every", "x: [web] a"):
            self.assertEqual(with_line(message, TEXT, "x"), message)


if __name__ == "__main__":
    unittest.main()
