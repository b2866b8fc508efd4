"""Tests of the command line of all three programs: position of flags, settings files, and log level."""

import os
import subprocess
import sys
import tempfile
import unittest

from tests.forked import Forked
from tests.page_support import control_here, use_memory_disk
from tests.support import LIMIT_S, ROOT, clean_environment, temp_folder


def setUpModule():
    use_memory_disk()


class Control(unittest.TestCase):
    """--data and --config have the same meaning before and after the command."""

    def setUp(self):
        self.data = temp_folder(self)
        self.assertEqual(control_here("token", "shed", "--data", self.data)[0], 0)
        self.file = os.path.join(temp_folder(self), "my.toml")
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(f"[server]\ndata = '{self.data}'\n")

    def test_flags_are_accepted_before_and_after_the_command(self):
        for flag, value in (("--data", self.data), ("--config", self.file)):
            for arguments in ((flag, value, "tokens"), ("tokens", flag, value), ("tokens", f"{flag}={value}")):
                with self.subTest(arguments):
                    self.assertEqual(control_here(*arguments), (0, "shed\n", ""))

    def test_last_data_flag_wins_on_either_side_of_the_command(self):
        empty = temp_folder(self)
        for arguments in (("--config", self.file, "tokens", "--data", empty), ("--data", empty, "tokens", "--config",
                          self.file), ("--data", self.data, "tokens", "--data", empty)):  # fmt: skip
            with self.subTest(arguments):
                status, said, _ = control_here(*arguments)
                self.assertEqual((status, "shed" in said), (0, False))

    def test_error_in_the_settings_file_contains_its_line(self):
        with open(self.file, "a", encoding="utf-8") as file:
            file.write("[store]\ncommit = '1'\n")
        status, _, errors = control_here("tokens", "--config", self.file)
        words = "[store] commit takes a number from 0.05 to 600, without quotes, not '1'"
        self.assertEqual((status, errors), (2, f"control.py: {self.file}, line 4: {words}\n"))


class Programs(unittest.TestCase):
    def start(self, program, *arguments, **environment):
        where = ("--listen", "127.0.0.1:0", "--simulate") if program == "node.py" else ("--web", "127.0.0.1:0")
        folder = temp_folder(self)
        return Forked(self, program, *where, "--data", os.path.join(folder, "data"), *arguments, folder=folder,
                      **{"PIGEONPOST_OUTBOX_SLOTS": "64", **environment})  # fmt: skip

    def test_program_logs_the_origin_of_its_settings_and_unknown_variables(self):
        for program, kind in (("node.py", "NODE"), ("server.py", "SERVER")):
            with self.subTest(program):
                name = f"{kind.lower()}.toml"
                running = self.start(program, PIGEONPOST_NODE_EVRY="5")
                running.logs(f"INFO settings: no {name} in /")
                running.logs("WARNING unknown variable 'PIGEONPOST_NODE_EVRY' has no effect; did you mean ")
                running.kill()
                running = self.start(program, **{f"PIGEONPOST_{kind}_TOML": "log.level = 'info'"})
                running.logs(f"INFO settings: the variable PIGEONPOST_{kind}_TOML")
                running.kill()

    def test_settings_file_in_the_current_folder_is_read(self):
        folder = temp_folder(self)
        path = os.path.join(folder, "node.toml")
        with open(path, "w", encoding="utf-8-sig") as file:
            file.write("[node]\nname = 'attic'\nsimulate = true\nlisten = '127.0.0.1:0'\ndata = 'data'\n")
        running = Forked(self, "node.py", folder=folder, PIGEONPOST_OUTBOX_SLOTS="64")
        running.logs(f"INFO settings: {path}")
        running.logs("INFO node attic: ")

    def test_log_level_filters_log_lines(self):
        running = self.start("node.py", "--log-level", "warning", PIGEONPOST_FOO="1")
        running.address()
        running.terminate()
        self.assertEqual(running.wait(), 0)
        self.assertEqual([line for line in running.logged if " WARNING " not in line], [])
        self.assertIn(" WARNING unknown variable 'PIGEONPOST_FOO' has no effect", running.logged[0])

    def test_journal_lines_have_a_priority(self):
        with tempfile.TemporaryFile("w+") as journal:
            about = os.fstat(journal.fileno())
            stream = f"{about.st_dev}:{about.st_ino}"
            status = _run_with(journal, temp_folder(self), "--every", "0", JOURNAL_STREAM=stream, PIGEONPOST_FOO="1")
            journal.seek(0)
            lines = journal.read().splitlines()
        self.assertEqual(status, 2)
        self.assertEqual(lines, ["<3>node.py: --every: [node] every takes a number from 0.01 to 86400, not '0'"])


def _run_with(stderr, folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, os.path.join(ROOT, "node.py"), "--data", folder, *arguments], cwd=folder, stderr=stderr,
        env=clean_environment(**environment), timeout=LIMIT_S, check=False,
    ).returncode  # fmt: skip


if __name__ == "__main__":
    unittest.main()
