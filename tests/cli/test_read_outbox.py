"""control.py read-outbox: what can be read of an outbox, also of a damaged one, and what cannot."""

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
        """Exit status, standard output, standard error; the file is not changed."""
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

    def test_csv_has_a_row_per_value(self):
        status, out, err = self.run_command("--node", "basement")
        lines = out.splitlines()
        self.assertEqual((status, err, lines[0]), (0, "", "time,node,epoch,seq,sensor,value"))
        self.assertEqual(lines[1], f"2026-11-20T15:36:10.002Z,basement,{EPOCH},2,x,0.5")
        self.assertEqual(lines[-1], f"2026-11-20T15:36:10.000Z,basement,{OTHER},5,x,")
        self.assertEqual(len(lines), 1 + 8)

    def test_json_has_an_object_per_sample(self):
        status, out, _ = self.run_command("--format", "jsonl")
        samples = [json.loads(line) for line in out.splitlines()]
        self.assertEqual((status, len(samples)), (0, 8))
        self.assertEqual(
            samples[0],
            {"time": "2026-11-20T15:36:10.002Z", "node": "", "epoch": EPOCH, "seq": 2, "up": 2, "values": {"x": 0.5}},
        )
        self.assertEqual((samples[-1]["errors"], samples[-1]["clock"]), ({"x": "cut"}, "unset"))

    def test_damaged_samples_are_named(self):
        self.spoil((self.place(4), b"\xff" * 50), (self.place(6), b"\0" * 50), (self.place(7) + 30, b"\1\2\3"))
        status, out, err = self.run_command()
        self.assertEqual((status, len(out.splitlines())), (1, 1 + 5))
        damaged = [f"sample 4 of epoch {EPOCH}: damaged", f"samples 2 to 3 of epoch {OTHER}: damaged"]
        self.assertEqual(err.splitlines(), [f"{self.path}: {text}" for text in damaged])

    def test_the_newest_is_named_too(self):
        self.spoil((self.place(9), bytes(100)))
        status, _, err = self.run_command()
        self.assertEqual((status, err), (1, f"{self.path}: sample 5 of epoch {OTHER}: damaged\n"))

    def test_a_damaged_header(self):
        whole = self.run_command()[1]
        self.spoil((3, b"\xff\xff"))
        status, out, err = self.run_command()
        self.assertEqual((status, out), (1, whole))
        self.assertIn("its header is damaged; it is read from a copy", err)
        self.spoil(*[(at, bytes(28)) for at in layout.HEADER_AT])
        status, out, err = self.run_command()
        self.assertEqual((status, out), (1, whole))
        self.assertIn("the samples are found by themselves", err)

    def test_a_file_cut_short(self):
        os.truncate(self.path, self.place(4))
        status, out, err = self.run_command()
        self.assertEqual((status, len(out.splitlines())), (1, 1 + 4))  # 8, 9, 2 and 3
        self.assertIn("it is shorter than the 13312 bytes that it had", err)

    def test_forks_are_named_as_they_are_sent(self):
        self.ring.fork(5, 9, "00000000000000ee")
        self.assertIn(",00000000000000ee,5,x,", self.run_command()[1])

    def test_beside_a_node_that_writes(self):
        """A sample that is overwritten meanwhile is not a damaged one."""
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

    def test_sectors_that_the_disk_cannot_read(self):
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

    def test_what_is_no_outbox(self):
        for name, content in (("empty", b""), ("text", b"a,b\n" * 1000), ("zeros", bytes(50_000))):
            path = os.path.join(self.folder, name)
            with open(path, "wb") as file:
                file.write(content)
            status, out, err = self.run_command(path=path)
            self.assertEqual((status, out), (1, ""))
            self.assertIn(f"{path} is not an outbox, and not one sample can be read of it", err)
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.assertEqual(control.main(["--data", self.folder, "read-outbox", self.folder]), 1)
            self.assertEqual(control.main(["--data", self.folder, "read-outbox", self.path + "x"]), 1)
        self.assertIn("is not a file", err.getvalue())
        self.assertIn("No such file or directory", err.getvalue())


if __name__ == "__main__":
    unittest.main()
