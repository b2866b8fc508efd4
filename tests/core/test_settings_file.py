"""Settings files that are not as they should be: the sentence names the line and what to write instead."""

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

    def test_text_without_quotes(self):
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

    def test_quotation_marks(self):
        plain = 'is no quotation mark here: put text in plain ones, as in name = "basement"'
        self.assert_faults(
            ("[node]\nname = “basement”", 2, f"“ {plain}"),
            ("[node]\nname = `basement`", 2, f"` {plain}"),
            ("nodes = [„a”]", 1, f"„ {plain}"),
            ('name = "basement', 1, 'the closing " is missing'),
            ("name = \"basement'\n[link]", 1, 'the closing " is missing'),
            ("name = 'it’s", 1, "the closing ' is missing"),
            ('name = """a\nb', 1, 'the closing """ is missing'),
            ('a = "b"c"', 1, "a \" within the text ends it: put the text in '...'"),
            ('[server]\nnodes = [\n"a,\n]', 3, "the closing quotation mark is missing"),
        )

    def test_backslashes_of_windows_paths(self):
        words = "a backslash in \"...\" has a meaning of its own: write two, or single quotes, as in 'C:\\data'"
        self.assert_faults(('[node]\ndata = "C:\\pi"', 2, words), ('[node]\ndata = "C:\\Users"', 2, words))

    def test_values_in_other_notations(self):
        unit = "(docs/settings.md tells in what it counts)"
        digits = "a number is written with digits on both sides of the point, and no 0 before"
        self.assert_faults(
            ("every = 0,5", 1, "a number has a decimal point: every = 0.5"),
            ("every = 5 s", 1, f"a number is written without its unit: every = 5 {unit}"),
            ("every = 10 minutes # x", 1, f"a number is written without its unit: every = 10 {unit}"),
            ("every = .5", 1, f"{digits}: every = 0.5"),
            ("every = 5.", 1, f"{digits}: every = 5"),
            ("every = 05", 1, f"{digits}: every = 5"),
            ("tls = True", 1, "write tls = true"),
            ("tls = no", 1, "write tls = false"),
            ("name = None", 1, "there is no None here: leave the line out"),
            ("name =", 1, 'the value of name is missing; an empty text is ""'),
            ("name = # x", 1, 'the value of name is missing; an empty text is ""'),
            ("nodes = (1, 2)", 1, 'put a list in square brackets: nodes = ["...", "..."]'),
            ('[web]\nlisten = ["a:1"\n[node]\nevery = 1', 2, "the list that begins here has no closing ]"),
            ("x = {a = 1,\nb = 2}", 1, "write {...} on one line; or write a [table] of its own"),
        )

    def test_lines_of_other_languages(self):
        stands = "between key and value stands ="
        other = 'is it JSON, XML or YAML? TOML has a line [table], then lines as name = "basement"'
        self.assert_faults(
            ("[node]\nevery: 5", 2, f"{stands}, not : (as in every = ...)"),
            ("node:\n  every: 5", 1, f"{stands}, not : (as in node = ...)"),
            ("every == 5", 1, f"{stands}, not == (as in every = ...)"),
            ("every 5", 1, "= is missing between key and value (as in every = ...)"),
            ("every = 5;", 1, "nothing follows the value: leave out the ;"),
            ('name = "a",', 1, "nothing follows the value: leave out the ,"),
            ("every = 5 slots = 64", 1, "each NAME = VALUE has a line of its own"),
            ("; comment", 1, "a comment begins with #"),
            ("// comment", 1, "a comment begins with #"),
            ('{"node": {}}', 1, other),
            ("- kind: adc", 1, other),
            ('"every" 5', 1, "a line begins with the name of its key, without quotes, as in every = 5"),
            ("größe = 5", 1, "'größe' is no key: keys have the letters a to z, digits, - and _"),
        )

    def test_lines_of_tables(self):
        self.assert_faults(
            ("[node\nevery = 5", 1, "the line of a table is [node]"),
            ("\n[[sensor]\n", 2, "the line of a table is [[sensor]]"),
            ("[node]]", 1, "the line of a table is [node]"),
            ("[ [sensor] ]", 1, "a table is written [node], one of several [[sensor]]"),
            ("[node]:", 1, "nothing follows [node] in its line: keys are below it, each in a line of its own"),
            ("[node] a = 1", 1, "nothing follows [node] in its line: keys are below it, each in a line of its own"),
        )

    def test_keys_and_tables_that_are_there_twice(self):
        self.assert_faults(
            ("[node]\nevery = 5\n\nevery = 6", 4, "[node] every is there already, in line 2: keep one of them"),
            ("[node]\nevery = 5\n[link]\n[node]\n", 4, "[node] is there already, in line 1: keep one of them"),
            (
                "[[sensor]]\n[[sensor]]\nkind = 1\nkind = 2",
                4,
                "[[sensor]] 2: kind is there already, in line 3: keep one of them",
            ),
            ("a = 1\na = 2", 2, "a is there already, in line 1: keep one of them"),
        )

    def test_characters_that_cannot_be_seen(self):
        space = "an unusual space (U+00A0), as web pages have them: replace it by a plain one"
        self.assert_faults(
            ("[node]\n\u00a0every = 5", 2, space),
            ("[node]\nevery =\u00a05", 2, space),
            ('[node]\nname = "a\x01"', 2, "illegal character '\\x01': delete it"),
        )

    def test_tabs_are_plain_spaces(self):
        self.assertEqual(parse('\t[node]\t\n\tevery\t=\t5\t# x\n\tname = "a\tb"', "x")["node"]["every"], 5)

    def test_no_secret_is_repeated(self):
        for text in ("token = abcdefgh12345678", "[mail]\npassword: sesame-123", "password = sesame 123",
                     'url = "https://me:sesame-123@host', "api_key = abcdefgh"):  # fmt: skip
            with self.subTest(text):
                self.assertNotRegex(self.fault(text), "abcdefgh|sesame")

    def test_any_text_gets_one_short_line(self):
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

    def test_a_byte_order_mark_is_no_part_of_the_text(self):
        self.assertEqual(self.read('[node]\nname = "é"'.encode("utf-8-sig")), '[node]\nname = "é"')

    def test_utf_16_and_32_are_named(self):
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"):
            for mark in ("", "\ufeff"):
                with self.subTest((encoding, mark)), self.assertRaises(SettingsError) as caught:
                    self.read((mark + "[node]\n").encode(encoding))
                self.assertEqual(
                    str(caught.exception),
                    f"{self.path}: is UTF-16 (or 32), not UTF-8: save it as UTF-8, which editors offer in Save as",
                )

    def test_another_encoding_is_named_with_its_line(self):
        with self.assertRaises(SettingsError) as caught:
            self.read('# x\n[node]\nname = "küche"'.encode("latin-1"))
        self.assertEqual(
            str(caught.exception),
            f"{self.path}, line 3: not TOML: byte 0xfc (perhaps 'ü') is not UTF-8: save the file as UTF-8",
        )

    def test_files_that_cannot_be_opened(self):
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


class WithLine(unittest.TestCase):
    def test_the_line_of_the_key_else_of_its_table(self):
        for message, line in (
            ("[node] every takes a number", 2),
            ("[node]: unknown key 'every'; did you mean", 2),
            ("[node] name takes", 1),
            ("node is a table", 1),
            ("[node] belongs in node.toml", 1),
            ("[[sensor]] belongs in node.toml", 4),
            ("[[sensor]] 1: kind takes adc", 5),
            ("[[sensor]] 2: channels is missing", 9),
            ("[[sensor]] 2: dsk is missing", 7),
            ("[[sensor]] 2: channels.light: input takes", 9),
            ("[[sensor]] 2: channels.temperature: input takes", 11),
            ("[[sensor]] 2: channels.temperature: unknown key 'inptu'; did you", 12),
            ("[[sensor]] 2: channels.temperature: no channel is called", 10),
        ):
            with self.subTest(message):
                self.assertEqual(with_line(f"x: {message}", TEXT, "x"), f"x, line {line}: {message}")

    def test_no_line_where_none_is_certain(self):
        for message in ("x: two sensors give", "x: [[sensor]] 3: kind takes", "y: [node] every", "x: [web] a"):
            self.assertEqual(with_line(message, TEXT, "x"), message)


if __name__ == "__main__":
    unittest.main()
