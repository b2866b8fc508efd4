"""Tests of the documentation: links, index, line length, the limits in docs/limits.md, and the licence."""

import importlib
import inspect
import os
import re
import unittest
from fractions import Fraction

from pigeonpost import settings
from tests.support import ROOT
from tests.test_layers import FILES

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "min": 60, "h": 3600, "days": 86_400}
# A constant with such a name is a limit that docs/limits.md must list, except for these.
LIMIT_NAME = re.compile(r"_?(MOST|LONGEST|LARGEST|DEEPEST|SMALLEST|SHORTEST)(_[A-Z0-9_]+)?").fullmatch
NO_LIMITS = {
    "pigeonpost.compat.multicast_bus.packets._LARGEST_TIME",  # limit of the packet format
    "pigeonpost.compat.multicast_bus.node._LARGEST_F32",  # limit of a 32-bit float
    "pigeonpost.node.ring_file._LONGEST_NUMBER",  # number of digits of a float
    "pigeonpost.node.ring_file._SHORTEST_REASON",  # used to calculate the size of a slot
    "pigeonpost.sensors.mcp3424._LONGEST_S",  # conversion times from the data sheet
    "pigeonpost.compat.multicast_bus.component.MOST_AT_ONCE",  # size of the parts of a loop
    "pigeonpost.compat.multicast_bus.router._MOST_AT_ONCE",  # the same
    "pigeonpost.compat.multicast_bus.convert_config._MOST_NODES",  # of a converter for a user's own file
}  # fmt: skip
TABLE = ("limit", "value", "reason", "effect", "definition")


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def documents():
    """Return the paths of all documents, relative to the root."""
    found = [name for name in os.listdir(ROOT) if name.endswith(".md")]
    for folder in ("docs", "bench"):
        found += [f"{folder}/{name}" for name in os.listdir(os.path.join(ROOT, folder)) if name.endswith(".md")]
    return sorted(found)


def anchors(text):
    """Return the anchors of a document's headings, in the format of GitHub."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows_of_limits():
    """Return the five cells of each row in the tables of docs/limits.md."""
    rows = []
    for line in read("docs", "limits.md").splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            rows.append(tuple(cell.strip() for cell in line.strip("|").split(" | ")))
    return [row for row in rows if row != TABLE]


def amount(text, name=""):
    """Return the number in a cell such as `64 KiB` or `5 min`, converted to the unit of the constant `name`."""
    number, _, rest = text.partition(" ")
    factor = Fraction(UNITS.get(rest.partition(" ")[0], 1))
    if name.endswith("_MS"):
        factor *= 1000
    if name.endswith("_KIB"):
        factor /= 1024
    return Fraction(number.replace(",", "")) * factor


def object_at(path):
    """Return the object `module.NAME` or `module.Class.NAME`; for a field of a NamedTuple, its default."""
    module, _, name = path.rpartition(".")
    if module not in FILES:
        kind = object_at(module)
        return kind._field_defaults[name] if hasattr(kind, "_field_defaults") else getattr(kind, name)
    return getattr(importlib.import_module(module), name)


class Limits(unittest.TestCase):
    def test_each_row_has_five_cells(self):
        rows = rows_of_limits()
        self.assertGreater(len(rows), 100)
        for row in rows:
            self.assertEqual(len(row), len(TABLE), row)
            self.assertTrue(all(row), row)

    def test_each_value_matches_the_program(self):
        for _, value, _, _, where in rows_of_limits():
            with self.subTest(where):
                place = where.strip("`")
                if place.startswith("["):
                    self.check_setting(place, value)
                elif ": " in place:
                    self.check_expression(*place.split(": ", 1), value)
                else:
                    self.check_constant(place, value)

    def check_constant(self, place, value):
        constant = object_at(place)
        if callable(constant):  # a pattern that matches texts up to this length
            self.assertTrue(constant("a" * int(amount(value))))
            self.assertFalse(constant("a" * (int(amount(value)) + 1)))
        elif isinstance(constant, float):
            self.assertEqual(float(amount(value, place)), constant)
        else:
            self.assertEqual(amount(value, place), constant)

    def check_expression(self, module, expression, value):
        source = inspect.getsource(importlib.import_module(module))
        self.assertIn(expression, source)
        self.assertIn(amount(value), [Fraction(number) for number in re.findall(r"\d+(?:\.\d+)?", expression)])

    def check_setting(self, place, value):
        table, key = re.fullmatch(r"\[(\w+)\] (\w+)", place).groups()
        (one,) = [one for one in (*settings.NODE, *settings.SERVER) if (one.table, one.key) == (table, key)]
        usual, low, high = re.fullmatch(r"(.+) \(([\d.,]+) to ([\d.,]+)\)", value).groups()
        self.assertEqual(float(amount(usual)), float(one.default))
        low, high = float(amount(low)), float(amount(high))
        for right in (low, high):
            one.parse(int(right) if right.is_integer() else right)
        for wrong in (low / 2 if low else -1, 2 * high):
            with self.assertRaises(ValueError):
                one.parse(int(wrong) if float(wrong).is_integer() else wrong)

    def test_every_limit_of_the_program_is_documented(self):
        listed = {where.strip("`") for *_, where in rows_of_limits()}
        limits = {
            f"{module}.{name}"
            for module, path in FILES.items() for names in re.findall(r"(?m)^(\w+(?:, \w+)*) = ", read(path))
            for name in names.split(", ") if LIMIT_NAME(name)
        }  # fmt: skip
        self.assertLessEqual(NO_LIMITS, limits)
        self.assertEqual(limits - listed - NO_LIMITS, set())


class Documents(unittest.TestCase):
    def test_each_relative_link_leads_to_a_file_and_its_heading(self):
        count = 0
        for document in documents():
            for link in re.findall(r"\]\(([^)\s]+)\)", read(document)):
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = link.partition("#")
                target = os.path.normpath(os.path.join(os.path.dirname(document), path)) if path else document
                with self.subTest(document, link=link):
                    self.assertTrue(os.path.exists(os.path.join(ROOT, target)))
                    if anchor:
                        self.assertIn(anchor, anchors(read(target)))
                count += 1
        self.assertGreater(count, 50)

    def test_index_lists_each_document_once(self):
        index = read("docs", "README.md")
        for name in os.listdir(os.path.join(ROOT, "docs")):
            if name != "README.md" and not name.startswith((".", "__")):
                self.assertEqual(len(re.findall(rf"\]\({re.escape(name)}[/)]", index)), 1, name)

    def test_lines_are_at_most_100_columns_wide(self):
        for path in ("CONTRIBUTING.md", "SECURITY.md", "docs/README.md", "docs/limits.md"):
            for line in read(path).splitlines():
                if not line.startswith("|"):  # a row of a table cannot be wrapped
                    self.assertLessEqual(len(line), 100, f"{path}: {line}")

    def test_licence_is_mit(self):
        lines = read("LICENSE").splitlines()
        self.assertEqual((lines[0], lines[2]), ("MIT License", "Copyright (c) 2026 Pigeonpost contributors"))


if __name__ == "__main__":
    unittest.main()
