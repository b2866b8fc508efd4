"""Tests of JsonFile: reading after changes, the copy, and damaged files."""

import os
import unittest
from unittest import mock

from pigeonpost.core import files
from pigeonpost.core.errors import DamagedFile, DiskError
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile
from tests.support import temp_folder

DAMAGED = ("", "[]", "5", "{", '{"a": "x"}', '{"a": null}', "\xff", '"a"', "null", "[" * 100_000)


class FileCase(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(temp_folder(self), "x.json")
        self.copy = f"{self.path}.bak"
        self.read = []
        self.faults = Faults()

    def open(self, **options):
        return JsonFile(self.path, "a list of numbers", self.number, **options)

    def number(self, entry):
        self.read.append(entry)
        return int(entry)

    def write_text(self, text, path=None):
        with open(path or self.path, "w", encoding="latin-1") as file:
            file.write(text)

    def text(self, path=None):
        with open(path or self.path, encoding="latin-1") as file:
            return file.read()

    def damages(self):
        """Damage the file in every way that a disk, an editor or a careless user may. Yield a description of each."""
        for text in DAMAGED:
            self.write_text(text)
            yield text[:10]
        os.unlink(self.path)
        yield "it is missing"
        os.mkdir(self.path)
        yield "it is a folder"
        os.rmdir(self.path)
        os.mkfifo(self.path)
        yield "it is a pipe"
        os.unlink(self.path)
        os.symlink("/dev/zero", self.path)
        yield "it has no end"
        os.unlink(self.path)
        with open(self.path, "wb") as file:
            file.truncate(1 << 40)
        yield "it is very large"
        os.unlink(self.path)
        os.symlink("x.json", self.path)
        yield "it leads to itself"
        os.unlink(self.path)


class Files(FileCase):
    def setUp(self):
        super().setUp()
        self.file = self.open()

    def test_missing_file_has_no_entries(self):
        self.assertEqual(self.file.now(), {})

    def test_file_is_read_again_only_after_a_change(self):
        for content in ({"a": "1"}, {"a": "2", "b": "3"}):
            JsonFile(self.path, "", str).write(content)
            first = self.file.now()
            self.assertIs(self.file.now(), first)
            self.assertEqual(first, {name: int(entry) for name, entry in content.items()})
        self.assertEqual(self.read, ["1", "2", "3"])
        os.unlink(self.path)
        os.unlink(self.copy)
        self.assertEqual(self.file.now(), {})

    def test_file_and_copy_are_readable_by_their_owner_only(self):
        for _ in range(2):
            self.file.write({"a": 1})
            for path in (self.path, self.copy):
                self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
                os.chmod(path, 0o644)

    def test_damaged_file_raises_at_each_access_until_it_is_repaired(self):
        self.file.write({"a": "5"})
        for damage in self.damages():
            for _ in range(2):
                with self.subTest(damage), self.assertRaisesRegex(DamagedFile, "x.json is |x.json cannot be read"):
                    self.file.now()
        self.file.write({"a": "5"})
        self.assertEqual(self.file.now(), {"a": 5})

    def test_error_contains_the_command_that_restores_the_copy(self):
        self.file.write({"a": "5"})
        self.write_text("")
        folder = os.path.dirname(self.path)
        remedy = rf"damaged \(0 bytes\); `python3 control.py --data {folder} restore {self.copy}` restores"
        with self.assertRaisesRegex(DamagedFile, remedy):
            self.file.now()

    def test_error_reports_a_missing_copy(self):
        self.write_text("{")
        with self.assertRaisesRegex(DamagedFile, r"damaged \(invalid JSON at line 1, column 2\); it has no copy"):
            self.file.now()

    def test_special_file_is_refused_and_recorded_once(self):
        os.mkfifo(self.path)
        faults = Faults()
        with self.assertLogs("pigeonpost.core.faults") as logged:
            file = self.open(faults=faults)
            for _ in range(2):
                with self.assertRaisesRegex(DamagedFile, r"x.json is not a regular file; it has no copy"):
                    file.now()
        self.assertEqual(len(logged.output), 1)

    def test_error_of_an_unreadable_file_contains_the_remedy(self):
        self.file.write({"a": "5"})
        no = mock.patch("builtins.open", side_effect=PermissionError(13, "Permission denied"))
        for user, remedy in ((0, "chown .*chmod 600"), (1000, "run the command with sudo")):
            told = self.assertRaisesRegex(DamagedFile, rf"cannot be read \(Permission denied\); .*{remedy}")
            with no, mock.patch("os.geteuid", return_value=user), told:
                self.file.now()


class Copies(FileCase):
    def test_new_file_is_written_before_its_copy(self):
        file, written = self.open(), []
        with mock.patch("pigeonpost.core.json_file.replace_file", side_effect=lambda path, data: written.append(path)):
            file.write({"a": 1})
        self.assertEqual(written, [self.path, self.copy])  # a copy without a file would count as damage

    def test_copy_is_written_before_an_existing_file(self):
        file, written, replace = self.open(), [], files.replace_file
        file.write({"a": 0})
        with mock.patch("pigeonpost.core.json_file.replace_file", side_effect=lambda path, data: written.append(path)):
            file.write({"a": 1})
        self.assertEqual(written, [self.copy, self.path])
        for failing in written:
            file.write({"a": 1, "b": 2})

            def fail(path, data, failing=failing):
                if path == failing:
                    raise DiskError("the disk is full")
                replace(path, data)

            with mock.patch("pigeonpost.core.json_file.replace_file", side_effect=fail), self.assertRaises(DiskError):
                file.write({"a": 1})
            self.assertEqual(file.now(), {"a": 1, "b": 2})

    def test_full_disk_leaves_file_and_copy_as_they_were(self):
        file = self.open()
        file.write({"a": 1})
        with mock.patch("os.write", side_effect=OSError(28, "No space left on device")), self.assertRaises(DiskError):
            file.write({"a": 2})
        self.assertEqual((file.now(), self.text(), self.text(self.copy)), ({"a": 1}, *2 * ('{\n "a": 1\n}\n',)))

    def test_server_copies_changes_of_other_programs(self):
        file = self.open(faults=self.faults)
        for text in ('{"a": 1}', '{"a": 2}'):
            self.write_text(text)
            file.now()
            self.assertEqual(self.text(self.copy), text)

    def test_server_and_command_write_the_copy_at_the_same_time(self):
        """Each uses a temporary file of its own.

        Otherwise one would delete the file that the other is about to rename.
        """
        numbers = self.open(faults=self.faults)
        self.write_text('{"a": 7}')
        self.write_text("half of what the comm", f"{self.copy}.new")  # control.py is writing this file
        self.assertEqual(numbers.now(), {"a": 7})
        self.assertEqual(self.text(f"{self.copy}.new"), "half of what the comm")
        self.assertEqual(self.text(self.copy), '{"a": 7}')

    def test_file_is_read_even_if_its_copy_cannot_be_written(self):
        file = self.open(faults=self.faults)
        self.write_text('{"a": 1}')
        full = mock.patch("pigeonpost.core.json_file.replace_file", side_effect=DiskError("full"))
        with full, self.assertLogs("pigeonpost.core.json_file", "WARNING"):
            self.assertEqual(file.now(), {"a": 1})

    def test_reading_by_a_command_writes_no_copy(self):
        self.write_text('{"a": 1}')
        self.open().now()
        self.assertFalse(os.path.exists(self.copy))


class Servers(FileCase):
    def setUp(self):
        super().setUp()
        self.enterContext(self.assertLogs("pigeonpost.core.faults", "WARNING"))

    def test_running_server_keeps_the_entries_of_a_damaged_file_and_shows_the_fault(self):
        file = self.open(faults=self.faults)
        file.write({"a": 1})
        file.now()
        for damage in self.damages():
            with self.subTest(damage):
                self.assertRegex(self.faults.present()["x.json"], "is |cannot be read")  # before an entry is used
                self.assertEqual(file.now(), {"a": 1})
        self.write_text('{"a": 2}')
        self.assertEqual((self.faults.present(), file.now()), ({}, {"a": 2}))

    def test_damaged_file_at_the_start_is_not_treated_as_empty(self):
        self.open().write({"a": 1})
        for damage in self.damages():
            file = self.open(faults=self.faults)
            with self.subTest(damage):
                self.assertRaises(DamagedFile, file.now)
                self.assertIn("x.json", self.faults.present())

    def test_file_with_auto_restore_is_replaced_by_its_copy(self):
        self.open().write({"a": 1})
        self.enterContext(self.assertLogs("pigeonpost.core.json_file", "ERROR"))
        for text in DAMAGED:
            self.write_text(text)
            file = self.open(faults=self.faults, auto_restore=True)
            self.assertEqual((file.now(), self.faults.present()), ({"a": 1}, {}))
            self.assertEqual(self.open().now(), {"a": 1})
        self.write_text("", self.copy)
        self.write_text("")
        self.assertRaises(DamagedFile, self.open(faults=self.faults, auto_restore=True).now)
        self.assertIn("x.json", self.faults.present())


if __name__ == "__main__":
    unittest.main()
