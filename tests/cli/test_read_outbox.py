"""Tests of `control.py read-outbox` with intact and damaged outbox files."""

import contextlib
import errno
import io
import json
import os
import unittest
from unittest import mock

import control
from pigeonpost.core.data_folder import OUTBOX
from pigeonpost.node import ring_format as layout
from pigeonpost.node.ring_file import Ring
from tests.support import BOOT, EPOCH, taken, temp_folder

OTHER = "00000000000000ff"
START_MS = 1_795_188_970_000


class ReadOutbox(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.path = os.path.join(self.folder, OUTBOX)
        self.ring = ring = Ring(self.folder, 8, 128)
        self.addCleanup(ring.close)
        ring.append(EPOCH, 1, BOOT, [self.sample(n) for n in range(1, 5)])
        ring.append(OTHER, 1, BOOT, [self.sample(n) for n in range(5, 9)])
        ring.append(OTHER, 5, BOOT, [taken(values={"x": None}, errors={"x": "cut"}, wall_ms=START_MS, clock_set=False)])

    def sample(self, n):
        return taken(values={"x": n / 4}, wall_ms=START_MS + n, up_ms=n)

    def run_command(self, *options, path=None):
        """Return exit status, standard output and standard error. Check that the file is not changed."""
        path = path or self.path
        before = os.stat(path), self.content(path)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = control.main(["--data", self.folder, "read-outbox", *options, path])
        after = os.stat(path), self.content(path)
        self.assertEqual((before[0].st_mtime_ns, before[1]), (after[0].st_mtime_ns, after[1]))
        return status, out.getvalue(), err.getvalue()

    def content(self, path):
        with open(path, "rb") as file:
            return file.read()

    def spoil(self, *places):
        content = bytearray(self.content(self.path))
        for at, data in places:
            content[at : at + len(data)] = data
        with open(self.path, "r+b") as file:
            file.write(content)

    def place(self, number):
        return layout.SLOTS_AT + number % 8 * 128

    def test_csv_has_one_row_per_value(self):
        status, out, err = self.run_command("--node", "basement")
        lines = out.splitlines()
        self.assertEqual((status, err, lines[0]), (0, "", "time,node,epoch,seq,sensor,value"))
        self.assertEqual(lines[1], f"2026-11-20T15:36:10.002Z,basement,{EPOCH},2,x,0.5")
        self.assertEqual(lines[-1], f"2026-11-20T15:36:10.000Z,basement,{OTHER},5,x,")
        self.assertEqual(len(lines), 1 + 8)

    def test_json_has_one_object_per_sample(self):
        status, out, _ = self.run_command("--format", "jsonl")
        samples = [json.loads(line) for line in out.splitlines()]
        self.assertEqual((status, len(samples)), (0, 8))
        self.assertEqual(
            samples[0],
            {"time": "2026-11-20T15:36:10.002Z", "node": "", "epoch": EPOCH, "seq": 2, "up": 2, "values": {"x": 0.5}},
        )
        self.assertEqual((samples[-1]["errors"], samples[-1]["clock"]), ({"x": "cut"}, "unset"))

    def test_damaged_samples_are_reported(self):
        self.spoil((self.place(4), b"\xff" * 50), (self.place(6), b"\0" * 50), (self.place(7) + 30, b"\1\2\3"))
        status, out, err = self.run_command()
        self.assertEqual((status, len(out.splitlines())), (1, 1 + 5))
        damaged = [f"sample 4 of epoch {EPOCH}: damaged", f"samples 2 to 3 of epoch {OTHER}: damaged"]
        self.assertEqual(err.splitlines(), [f"{self.path}: {text}" for text in damaged])

    def test_damaged_newest_sample_is_reported(self):
        self.spoil((self.place(9), bytes(100)))
        status, _, err = self.run_command()
        self.assertEqual((status, err), (1, f"{self.path}: sample 5 of epoch {OTHER}: damaged\n"))

    def test_samples_are_read_with_a_damaged_header(self):
        expected = self.run_command()[1]
        self.spoil((3, b"\xff\xff"))
        status, out, err = self.run_command()
        self.assertEqual((status, out), (1, expected))
        self.assertIn("the header is damaged; it was read from its copy", err)
        self.spoil(*[(at, bytes(28)) for at in layout.HEADER_AT])
        status, out, err = self.run_command()
        self.assertEqual((status, out), (1, expected))
        self.assertIn("the samples were found without it", err)

    def test_truncated_file_is_reported(self):
        os.truncate(self.path, self.place(4))
        status, out, err = self.run_command()
        self.assertEqual((status, len(out.splitlines())), (1, 1 + 4))  # 8, 9, 2 and 3
        self.assertIn("the file is shorter than its original size, 13,312 bytes", err)

    def test_forked_samples_have_the_epoch_with_which_they_are_sent(self):
        self.ring.fork(5, 9, "00000000000000ee")
        self.assertIn(",00000000000000ee,5,x,", self.run_command()[1])

    def test_sample_overwritten_during_the_scan_is_not_reported_as_damaged(self):
        """The node continues to write to the file."""
        real = os.pread

        def pread(fd, count, at):
            if count == 128 and at == self.place(2):
                self.ring.append(OTHER, self.ring.last - 3, BOOT, [self.sample(10)])
            return real(fd, count, at)

        with mock.patch("os.pread", pread):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = control.main(["--data", self.folder, "read-outbox", self.path])
        self.assertEqual((status, err.getvalue()), (0, ""))

    def test_unreadable_sectors_are_reported_as_damaged_samples(self):
        real = os.pread
        bad = range(self.place(3) // 512 * 512, self.place(3) // 512 * 512 + 512)  # slots 0 to 3

        def pread(fd, count, at):
            if at < bad.stop and at + count > bad.start:
                raise OSError(errno.EIO, "Input/output error")
            return real(fd, count, at)

        out, err = io.StringIO(), io.StringIO()
        with mock.patch("os.pread", pread), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.assertEqual(control.main(["--data", self.folder, "read-outbox", self.path]), 1)
        self.assertEqual(len(out.getvalue().splitlines()), 1 + 4)  # 4 to 7
        self.assertIn(f"sample 4 of epoch {OTHER}: damaged", err.getvalue())

    def test_files_that_are_not_outboxes_are_rejected(self):
        for name, content in (("empty", b""), ("text", b"a,b\n" * 1000), ("zeros", bytes(50_000))):
            path = os.path.join(self.folder, name)
            with open(path, "wb") as file:
                file.write(content)
            status, out, err = self.run_command(path=path)
            self.assertEqual((status, out), (1, ""))
            self.assertIn(f"{path} is not an outbox file: no sample can be read from it", err)
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.assertEqual(control.main(["--data", self.folder, "read-outbox", self.folder]), 1)
            self.assertEqual(control.main(["--data", self.folder, "read-outbox", self.path + "x"]), 1)
        self.assertIn("is not a regular file", err.getvalue())
        self.assertIn("No such file or directory", err.getvalue())


if __name__ == "__main__":
    unittest.main()
