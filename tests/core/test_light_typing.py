"""Tests of NamedTuple without typing, which must make the same classes as typing.NamedTuple."""

import pickle
import typing
import unittest

from pigeonpost.core.light_typing import NamedTuple


class Point(NamedTuple):
    """A place."""

    x: int
    y: int = 2
    label: str = ""

    @property
    def sum(self) -> int:
        return self.x + self.y

    def moved(self, by: int) -> "Point":
        return self._replace(x=self.x + by)

    @classmethod
    def origin(cls) -> "Point":
        return cls(0, 0)


class Reference(typing.NamedTuple):
    """A place."""

    x: int
    y: int = 2
    label: str = ""


class SameAsTyping(unittest.TestCase):
    def test_fields_defaults_and_names_are_those_of_typing(self):
        for name in ("_fields", "_field_defaults", "__match_args__", "__doc__", "__module__", "__bases__"):
            self.assertEqual(getattr(Point, name), getattr(Reference, name), name)
        self.assertEqual((Point.__name__, Point.__qualname__), ("Point", "Point"))
        self.assertEqual(list(Point.__annotations__), ["x", "y", "label"])
        self.assertEqual(Point(1), Reference(1))
        self.assertEqual(repr(Point(1)), repr(Reference(1)).replace("Reference", "Point"))

    def test_methods_properties_and_class_methods_work(self):
        self.assertEqual((Point(1).sum, Point(1).moved(4), Point.origin()), (3, (5, 2, ""), (0, 0, "")))

    def test_tuple_can_be_unpacked_matched_and_pickled(self):
        x, y, label = Point(1, label="a")
        self.assertEqual((x, y, label), (1, 2, "a"))
        match Point(3):
            case Point(x, _, _):
                self.assertEqual(x, 3)
        self.assertIs(type(pickle.loads(pickle.dumps(Point(1)))), Point)

    def test_missing_and_unknown_arguments_are_refused(self):
        for arguments, keywords in (((), {}), ((1, 2, 3, 4), {}), ((1,), {"z": 1})):
            with self.assertRaises(TypeError):
                Point(*arguments, **keywords)

    def test_field_without_default_after_a_default_is_refused(self):
        with self.assertRaises(TypeError):

            class Bad(NamedTuple):
                a: int = 1
                b: int


if __name__ == "__main__":
    unittest.main()
