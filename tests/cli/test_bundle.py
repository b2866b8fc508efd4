"""Tests of `control.py bundle`, and of the list of the program's files."""

import os
import shutil
import subprocess
import sys
import unittest
import zipfile

from pigeonpost.cli import program_files
from pigeonpost.cli.bundle import bundle_of
from pigeonpost.core.errors import PigeonpostError
from tests.page_support import control_here
from tests.support import LIMIT_S, ROOT, clean_environment, temp_folder


class ProgramFiles(unittest.TestCase):
    def test_program_files_are_code_settings_and_installed_files_only(self):
        names = [name for name, _ in program_files.program_files()]
        self.assertEqual(names, sorted(set(names)))
        for name in ("node.py", "control.py", "server.default.toml", "LICENSE", "pigeonpost/views/static/style.css",
                     "pigeonpost/core/config.py", "deploy/pigeonpost-node.service"):  # fmt: skip
            self.assertIn(name, names)
        for name in names:
            self.assertFalse(name.startswith(("tests", "bench", "docs", ".", "data")) or "__pycache__" in name, name)

    def test_all_modules_at_the_root_are_listed(self):
        found = {name.removesuffix(".py") for name in os.listdir(ROOT) if name.endswith(".py")}
        self.assertEqual(found, set(program_files.MODULES))

    def test_incomplete_program_is_not_copied(self):
        folder = temp_folder(self)
        shutil.copytree(os.path.join(ROOT, "pigeonpost"), os.path.join(folder, "pigeonpost"))
        for name in ("control.py", "protocol.py", "server.default.toml"):
            shutil.copy(os.path.join(ROOT, name), folder)
        self.addCleanup(setattr, program_files, "FOLDER", program_files.FOLDER)
        program_files.FOLDER = folder
        with self.assertRaisesRegex(PigeonpostError, r"node\.py is missing: copy the complete folder"):
            list(program_files.program_files())


class Bundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.content = bundle_of("control")

    def run_(self, *arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=clean_environment(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip

    def setUp(self):
        self.folder = temp_folder(self)
        self.control = os.path.join(self.folder, "control.pyz")
        with open(self.control, "wb") as file:
            file.write(self.content)

    def test_bundle_runs_and_creates_an_identical_bundle(self):
        result = self.run_("control.pyz", "bundle", "node", "node.pyz")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"^node\.pyz: 1\.\d MB; copy it and run it: python3 node\.pyz\n$")
        self.assertTrue(os.access(os.path.join(self.folder, "node.pyz"), os.X_OK))
        with open(os.path.join(self.folder, "node.pyz"), "rb") as file:
            self.assertEqual(file.read(), bundle_of("node"))
        self.assertRegex(self.run_("node.pyz", "--version").stdout, r"^pigeonpost \d")
        self.assertEqual(sorted(os.listdir(self.folder)), ["control.pyz", "node.pyz"])  # no other files

    def test_file_name_with_a_space_is_quoted_for_the_shell(self):
        _, said, _ = control_here("bundle", "node", os.path.join(self.folder, "my node.pyz"))
        self.assertTrue(said.endswith("run it: python3 'my node.pyz'\n"), said)

    def test_bundle_contains_each_file_once(self):
        with zipfile.ZipFile(self.control) as archive:
            names = archive.namelist()
            self.assertIsNone(archive.testzip())
        self.assertEqual(names, ["__main__.py", *sorted(names[1:])])
        self.assertEqual(len(names), len(set(names)))

    def test_invalid_file_names_are_rejected_with_the_remedy(self):
        status, _, said = control_here("bundle", "node", ".")
        self.assertEqual(
            (status, said), (2, "control.py: . is a folder: give the name of a file, such as ./node.pyz\n")
        )
        status, _, said = control_here("bundle", "node", f"{self.control}/node.pyz")
        self.assertEqual((status, said.count("\n")), (1, 1), said)
        self.assertIn("control.pyz/node.pyz", said)


if __name__ == "__main__":
    unittest.main()
