"""Tests of log lines: one line per record, with the time on a terminal and the priority in systemd's journal."""

import io
import logging
import os
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from pigeonpost.core import logs
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.logs import is_journal, print_error, start_logging
from tests.support import ROOT, clean_environment

_LOG_ALL = """
import logging, sys
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.logs import print_error, start_logging
start_logging("debug")
log = logging.getLogger("a.module")
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
    log.log(level, "hello")
try:
    raise KeyError("x\\n<0>y")
except KeyError:
    log.exception("died")
print_error("node.py", SettingsError("password=sesame\\n<0>z"))
"""


class LogCase(unittest.TestCase):
    def logged(self, *arguments, level="info", at=logging.INFO, exc_info=None, journal=False):
        """Return the text that is written for one record."""
        stream = io.StringIO()
        root = logging.Logger("root")
        with (
            mock.patch.object(sys, "stderr", stream),
            mock.patch.object(logging, "root", root),
            mock.patch.object(logs, "is_journal", lambda: journal),
            mock.patch.object(logging, "getLogger", lambda: root),
        ):
            start_logging()
            start_logging(level)
            root.log(at, *arguments, exc_info=exc_info)
        return stream.getvalue()


class Lines(LogCase):
    def test_each_record_is_one_line_with_its_time(self):
        self.assertRegex(
            self.logged("%d samples", 3), r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d INFO 3 samples\n$"
        )

    def test_text_of_a_peer_cannot_add_a_line(self):
        text = "a\nCRITICAL b\r\x1b[2J\x85\x00°"
        shown = "INFO a\\x0aCRITICAL b\\x0d\\x1b[2J\\x85\\x00°\n"
        self.assertEqual(self.logged("%s", text, journal=True), f"<6>{shown}")
        self.assertTrue(self.logged("%s", text).endswith(f" {shown}"))

    def test_traceback_keeps_its_lines(self):
        try:
            raise KeyError("x")
        except KeyError as error:
            text = self.logged("died", exc_info=error)
        self.assertIn("\nKeyError: 'x'\n", text)

    def test_level_can_be_changed_later(self):
        for level, seen in (("debug", 4), ("info", 3), ("warning", 2), ("error", 1)):
            lines = [self.logged("x", level=level, at=at) for at in (10, 20, 30, 40)]
            self.assertEqual([bool(line) for line in lines], [False] * (4 - seen) + [True] * seen)


class Journal(LogCase):
    def run_with(self, stderr, **environment):
        subprocess.run(
            [sys.executable, "-c", _LOG_ALL], cwd=ROOT, env=clean_environment(**environment), stderr=stderr, check=True
        )

    def test_each_line_has_its_priority_including_tracebacks(self):
        with tempfile.TemporaryFile("w+") as journal:
            about = os.fstat(journal.fileno())
            self.run_with(journal, JOURNAL_STREAM=f"{about.st_dev}:{about.st_ino}")
            journal.seek(0)
            lines = journal.read().splitlines()
        self.assertEqual(lines[:5], ["<7>DEBUG hello", "<6>INFO hello", "<4>WARNING hello", "<3>ERROR hello",
                                     "<2>CRITICAL hello"])  # fmt: skip
        self.assertEqual(lines[5], "<3>ERROR died")
        self.assertGreater(len(lines), 8)
        self.assertEqual({line[:3] for line in lines[5:]}, {"<3>"})
        self.assertEqual(lines[-2], "<3>node.py: password=***")
        self.assertEqual(lines[-1], "<3><0>z")

    def test_lines_have_the_time_outside_of_the_journal(self):
        with tempfile.TemporaryFile("w+") as other:
            self.run_with(other, JOURNAL_STREAM="8:1")
            other.seek(0)
            lines = other.read().splitlines()
        self.assertRegex(lines[0], r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d DEBUG hello$")
        self.assertEqual(lines[-2], "node.py: password=***")

    def test_standard_error_without_a_file_is_not_the_journal(self):
        for stream in (io.StringIO(), None):
            with mock.patch.object(sys, "stderr", stream), mock.patch.dict(os.environ, JOURNAL_STREAM="8:1"):
                self.assertFalse(is_journal())

    def test_print_error_writes_program_and_reason(self):
        with mock.patch.object(sys, "stderr", io.StringIO()) as said:
            print_error("node.py", SettingsError("x: [node] every takes a number"))
        self.assertEqual(said.getvalue(), "node.py: x: [node] every takes a number\n")


if __name__ == "__main__":
    unittest.main()
