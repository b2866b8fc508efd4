"""Tests of the exception classes: base classes, error codes of the link, and exit statuses."""

import builtins
import unittest

from pigeonpost.core import errors
from pigeonpost.core.errors import PigeonpostError, WireError


def all_errors():
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, PigeonpostError)]


class Errors(unittest.TestCase):
    def test_each_class_has_a_docstring(self):
        for error in all_errors():
            self.assertIsNotNone(vars(error).get("__doc__"), error)

    def test_each_class_is_derived_from_one_builtin(self):
        own = {errors.PigeonpostError, errors.InUse}
        for error in set(all_errors()) - own:
            usual = {base.__name__ for base in error.__mro__} & {"ValueError", "OSError"}
            self.assertEqual(len(usual), 1, error)
            self.assertTrue(hasattr(builtins, usual.pop()))

    def test_error_codes_are_those_of_the_link(self):
        usual = set(all_errors()) - {errors.BeyondLimit}  # has the code of its base class, but closes the connection
        codes = {error.code: error.closes for error in usual if issubclass(error, WireError)}
        self.assertEqual(codes, {
            "bad-argument": False, "unknown-word": False, "not-utf8": False,
            "too-long": True, "auth": True, "protected": True, "version": True, "expected": True, "bad-ack": True,
            "too-many": True,
        })  # fmt: skip

    def test_exit_statuses_are_those_of_sysexits(self):
        statuses = {error.__name__: error.exit_status for error in all_errors() if error.exit_status != 1}
        self.assertEqual(statuses, {
            "SettingsError": 2, "MissingLibrary": 2, "DamagedFile": 2, "DiskError": 74, "StoreDamaged": 74, "InUse": 75,
        })  # fmt: skip


if __name__ == "__main__":
    unittest.main()
