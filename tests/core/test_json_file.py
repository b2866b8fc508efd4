"""A file that is read again when it has changed."""

import os
import unittest

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.json_file import JsonFile
from tests.support import temp_folder


class Files(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(temp_folder(self), "x.json")
        self.read = []
        self.file = JsonFile(self.path, "a list of numbers", self.number)

    def number(self, entry):
        self.read.append(entry)
        return int(entry)

    def test_without_a_file_there_is_nothing(self):
        self.assertEqual(self.file.now(), {})

    def test_it_is_read_when_it_has_changed_and_only_then(self):
        for content in ({"a": "1"}, {"a": "2", "b": "3"}):
            JsonFile(self.path, "", str).write(content)
            first = self.file.now()
            self.assertIs(self.file.now(), first)
            self.assertEqual(first, {name: int(entry) for name, entry in content.items()})
        self.assertEqual(self.read, ["1", "2", "3"])
        os.unlink(self.path)
        self.assertEqual(self.file.now(), {})

    def test_it_is_for_its_owner_only(self):
        self.file.write({"a": 1})
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)

    def test_what_does_not_read_fails_as_long_as_it_is_so(self):
        for content in ("", "[]", "5", "{", '{"a": "x"}', '{"a": null}', "\xff"):
            with open(self.path, "w", encoding="latin-1") as file:
                file.write(content)
            for _ in range(2):
                with self.assertRaisesRegex(SettingsError, "x.json does not read as a list of numbers: "):
                    self.file.now()
        os.unlink(self.path)
        self.file.write({"a": "5"})
        self.assertEqual(self.file.now(), {"a": 5})

    def test_a_folder_where_the_file_should_be(self):
        os.mkdir(self.path)
        self.assertRaises(SettingsError, self.file.now)


if __name__ == "__main__":
    unittest.main()
