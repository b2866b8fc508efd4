"""Tests of line numbers in TOML text: they are correct for all text that tomllib reads, or they are not given."""

import random
import tomllib
import unittest

from pigeonpost.core.toml_lines import TomlLines


def values(content, path=()):
    """Yield the path and the value of each number in the result of tomllib."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, dict | list):
            yield from values(value, (*path, key))
        elif type(value) is int:
            yield (*path, key), value


class Lines(unittest.TestCase):
    def assert_lines(self, text):
        """Assert that each number in the text is the number of its line."""
        found = TomlLines(text)
        self.assertEqual((found.statement, found.repeated), (0, None), text)
        for path, line in values(tomllib.loads(text)):
            self.assertEqual(found.lines.get(path), line, (path, text))

    def test_lines_of_tables_dotted_keys_arrays_and_inline_tables_are_correct(self):
        self.assert_lines(
            "top = 1\n"
            "# comment = 9\n"
            "[node]   # [other]\n"
            "every = 4\r\n"
            "a.b . \"c d\".'e' = 5\n"
            "list = [6,\n 7, # [\n\n [9, {x = 9, y = [9]}]]\n"
            't = {a = 10, "b" = {c = 10}, d.e = 10}\n'
            's = "# = [ \\" x"\n'
            "t2.x = 12\n"
            "[[sensor]]\nx = 14\n"
            "[sensor.channels.a]\ny = 16\n"
            "[[sensor]]\nx = 18\n"
            "[sensor.channels]\na.y = 20\n"
            "[[sensor.more]]\nz = 22\n"
            "[[sensor.more]]\nz = 24\n"
            "[a.b.c]\nz = 26\n"
            "[a]\nz = 28"
        )

    def test_lines_after_multiline_strings_and_dates_are_correct(self):
        self.assert_lines(
            "a = '''\nb = 9\n''''''\n".replace("''''''", "'''")
            + 'b = 4\nc = """x\\"""\n[no]\n"" """""\nd = 8\n'
            + "e = 1979-05-27 07:32:00Z\nf = 10\ng = [1979-05-27T07:32:00-08:00, 0.5, +1e3, inf, true]\nh = 12\n"
        )

    def test_lines_of_random_text_are_correct(self):
        seed = random.Random(15)
        for _ in range(300):
            lines = []
            for used in range(seed.randrange(12)):
                key = seed.choice([f"k{used}", f'"k {used}"', f"a{used}.b", f"'x.{used}' . y"])
                here = len(lines) + 1
                lines += seed.choice([
                    [f"{key} = {here}"], [f"[{key}]"], [f"[[{key}]]"], ["[[sensor]]"], ["# x = ["], [""],
                    [f"{key} = [", f"{here + 1},", "# ]", f"{{z = {here + 3}, y = {here + 3}}}, ]"],
                    [f'{key} = """', "[x]", '"""'], [f"{key} = {{}} # '"], [f"{key} = []"],
                ])  # fmt: skip
            self.assert_lines(seed.choice(["\n", "\r\n"]).join(lines))

    def test_repeated_keys_and_tables_are_found(self):
        for text, path, first, second in (
            ("[node]\nevery = 1\n\nevery = 2\n", ("node", "every"), 2, 4),
            ("[node]\na = 1\n[link]\n[node]\n", ("node",), 1, 4),
            ("[[s]]\nk = 1\n[[s]]\nk = 1\nl = 1\nk = 2\n", ("s", 1, "k"), 4, 6),
            ("a = {b = 1, b = 2}\n", ("a", "b"), 1, 1),
            ("a.b = 1\na.b = 2\n", ("a", "b"), 1, 2),
            ("a = 1\na.b = 2\n", ("a",), 1, 2),
            ("[[s]]\n[s]\n", ("s",), 1, 2),
        ):
            with self.subTest(text):
                self.assertRaises(tomllib.TOMLDecodeError, tomllib.loads, text)
                self.assertEqual(TomlLines(text).repeated, (path, first, second))

    def test_reader_stops_at_invalid_text(self):
        for text, line in (
            ("a = 1\n\nb = x y\n", 3),
            ("a = 1\nb = [1,\n2\nc = 3\n", 2),
            ("a = 1\n[node\n", 2),
            ("a = 1\n: 2\n", 2),
            (f"a = 1\nb = {'[' * 500}", 2),
        ):
            with self.subTest(text[:30]):
                found = TomlLines(text)
                self.assertEqual(found.statement, line)
                self.assertEqual(found.lines["a",], 1)


if __name__ == "__main__":
    unittest.main()
