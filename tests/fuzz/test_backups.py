"""Untrusted tar files as backups: each is accepted or raises BadBackup.

Nothing is written outside the target folder.
"""

import functools
import hashlib
import io
import os
import tarfile
import tempfile
import unittest

from pigeonpost.core.data_folder import DATABASE
from pigeonpost.server.backup import BadBackup, unpack
from tests.fuzz import Target, fuzzed, mutated, st

PIECES = [
    b"ustar\x0000", b"ustar  \x00", b"\x00" * 512, b"../../../../tmp/pigeonpost-was-here", b"logs/", b"SHA256SUMS",
    b"10 path=x\n", b"21 size=999999999999\n", b"31 GNU.sparse.realsize=99999\n", b"22 GNU.sparse.major=1\n",
    b"13 size=1024\n", b"19 path=logs/b.csv\n", b"21 hdrcharset=BINARY\n", b"16 mtime=-1.25\n", b"13 comment=c\n",
    b"7777777777", b"\x80\xff\xff\xff\xff\xff\xff\xff", b"x", b"g", b"L", b"S", b"2", b"5",
]  # fmt: skip


@functools.cache
def made(form):
    """Return a small valid backup."""
    content = {DATABASE: b"SQLite format 3\0" + bytes(600), "logs/a.csv": b"time,node\n", "tokens.json": b"{}"}
    content["SHA256SUMS"] = b"".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode() for name, data in content.items()
    )
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(member, io.BytesIO(data))
    whole = out.getvalue().rstrip(b"\0")
    return whole + bytes(-len(whole) % 512 + 1024)


def signed():
    """Return a strategy for changed backups whose heads have correct checksums, so that the change is examined."""

    @st.composite
    def changed(draw):
        data = bytearray(draw(st.sampled_from([made(form) for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT)])))
        at = 512 * draw(st.integers(0, len(data) // 512 - 1))
        field, size = draw(
            st.sampled_from([(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155)])
        )
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=size))[:size]
        data[at + field : at + field + len(piece)] = piece
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        return bytes(data)

    return changed()


class Backups(Target, unittest.TestCase):
    corpus = "backups"

    def check(self, data):
        with tempfile.TemporaryDirectory() as folder:
            archive, inside = os.path.join(folder, "b.tar"), os.path.join(folder, "inside")
            os.mkdir(inside)
            with open(archive, "wb") as file:
                file.write(data)
            with self.bounded():
                try:
                    names = unpack(archive, inside, lambda what, done, total: None)
                except BadBackup as error:
                    self.assertTrue(str(error).isprintable(), str(error))
                    names = None
            self.assertEqual(sorted(os.listdir(folder)), ["b.tar", "inside"])
            self.assertFalse(os.path.exists("/tmp/pigeonpost-was-here"))
            there = [os.path.join(place, name) for place, _, found in os.walk(inside) for name in found]
            if names is not None:
                self.assertEqual(sorted(path[len(inside) + 1 :] for path in there), names)
                self.assertIn(DATABASE, names)
                self.assert_as_others_read_it(archive, inside, names)
            self.assertFalse([path for path in there if os.path.islink(path)])
            self.assertLess(sum(map(os.path.getsize, there)), len(data) + 1)

    def assert_as_others_read_it(self, archive, inside, names):
        """Check that an accepted file is unambiguous: Python's own reader finds the same files."""
        with tarfile.open(archive) as tar:
            self.assertEqual(sorted(tar.getnames()), sorted([*names, "SHA256SUMS"]))
            for name in names:
                with open(os.path.join(inside, name), "rb") as file:
                    self.assertEqual(tar.extractfile(name).read(), file.read(), name)

    def test_right_ones_are_accepted(self):
        with tempfile.TemporaryDirectory() as folder:
            archive = os.path.join(folder, "b.tar")
            for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
                with open(archive, "wb") as file:
                    file.write(made(form))
                names = unpack(archive, None, lambda what, done, total: None)
                self.assertEqual(names, ["logs/a.csv", DATABASE, "tokens.json"])

    @fuzzed(lambda: mutated(st.sampled_from([made(form) for form in (0, 1, 2)]), PIECES, 30_000))
    def test_changed_backups_are_refused_or_restored(self, data):
        self.check(data)

    @fuzzed(signed)
    def test_changed_and_signed_again(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
