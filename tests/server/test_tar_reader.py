"""Reader of tar archives: it reads those of Python and GNU tar, and refuses hostile and damaged ones."""

import io
import itertools
import os
import re
import shutil
import subprocess
import tarfile
import time
import tracemalloc
import unittest

from pigeonpost.server.tar_reader import MEMBERS, PADDING_BYTES, PAX_BYTES, BadArchive, read_members
from tests.support import temp_folder

GIB = 1 << 30
CPU_S = 2.0  # seconds, for an operation that takes milliseconds; with CVE-2024-6232 it takes minutes
END = bytes(1024)


def padded(content):
    return content + bytes(-len(content) % 512)


def octal(number, size):
    return b"%0*o\0" % (size - 1, number)


def header(name=b"a", size=0, kind=b"0", mtime=0, magic=b"ustar\x0000", prefix=b"", checksum=None, mode=b"0000644\0"):
    """Return a header. `size` and `mtime` are numbers, or the bytes of their fields."""
    block = b"".join([
        name.ljust(100, b"\0"), mode, octal(0, 8), octal(0, 8),
        size if isinstance(size, bytes) else octal(size, 12), mtime if isinstance(mtime, bytes) else octal(mtime, 12),
        b" " * 8, kind, bytes(100), magic, bytes(32), bytes(32), octal(0, 8), octal(0, 8), prefix.ljust(155, b"\0"),
        bytes(12),
    ])  # fmt: skip
    assert len(block) == 512
    checksum = b"%06o\0 " % sum(block) if checksum is None else checksum
    return block[:148] + checksum + block[156:]


def file(name=b"a", content=b"", **more):
    return header(name, len(content), **more) + padded(content)


def record(keyword, value):
    """Return a pax record with its length, which includes its own digits."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d%s" % (length, rest)


def pax(*records, size=None):
    content = b"".join(records)
    return header(b"./PaxHeaders/a", len(content) if size is None else size, b"x") + padded(content)


def one(*records, **more):
    """Return a file with a pax header."""
    return pax(*records) + file(**more)


class Pipe:
    """Binary file that cannot seek, and returns a few bytes at a time."""

    def __init__(self, content, most=300):
        self._file, self._most = io.BytesIO(content), most

    def seekable(self):
        return False

    def read(self, size):
        assert size > 0
        return self._file.read(min(size, self._most))


class Forward(io.BytesIO):
    """File whose size may be determined at the beginning, and whose bytes must not be read twice after that."""

    def __init__(self, content):
        super().__init__(content)
        self.furthest = self.count = 0

    def seek(self, at, whence=0):
        assert whence == os.SEEK_CUR or not self.count, "it goes back"
        return super().seek(at, whence)

    def read(self, size=-1):
        assert size > 0
        assert self.tell() >= self.furthest, "it is read again"
        block = super().read(size)
        self.furthest = self.tell()
        self.count += len(block)
        return block


def everything(opened, most=MEMBERS, block=1 << 16):
    """Return (name, size, mtime, content) of each member."""
    found = []
    for member in read_members(opened, "x.tar", most):
        content = b"".join(iter(lambda source=member.source: source.read(block), b""))
        found.append((member.name, member.size, member.mtime, content))
    return found


class Case(unittest.TestCase):
    def assert_refused(self, archive, reason, **more):
        """Check that each way of reading refuses the archive, with an error that contains its name and the reason."""
        for opened in (Forward(archive), Pipe(archive)):
            with self.assertRaises(BadArchive) as caught:
                everything(opened, **more)
            text = str(caught.exception)
            self.assertTrue(text.startswith("x.tar: ") and text.isprintable(), text)
            self.assertLess(len(text), 400)
            if isinstance(opened, Forward) or not re.search("is truncated: its size in the header", reason):
                self.assertRegex(text, reason)

    def assert_each_refused(self, cases):
        for label, (archive, reason) in cases.items():
            with self.subTest(label):
                self.assert_refused(archive + END, reason)

    def assert_read(self, archive, *expected):
        for opened in (Forward(archive), Pipe(archive), Pipe(archive, 1)):
            self.assertEqual(everything(opened), list(expected))


class AcceptedTest(Case):
    def test_ustar_file_is_read(self):
        self.assert_read(file(b"logs/a.csv", b"time\n", mtime=5) + END, ("logs/a.csv", 5, 5, b"time\n"))

    def test_old_type_of_regular_file_is_read(self):
        self.assert_read(file(b"a", b"x", kind=b"\0") + END, ("a", 1, 0, b"x"))

    def test_prefix_is_prepended_to_the_name(self):
        self.assert_read(file(b"b" * 100, prefix=b"a" * 155) + END, (f"{'a' * 155}/{'b' * 100}", 0, 0, b""))

    def test_archive_without_files_is_accepted(self):
        self.assert_read(END)
        self.assert_read(bytes(10240))
        self.assertEqual(everything(Forward(bytes(1024 + PADDING_BYTES))), [])

    def test_pax_records_replace_the_fields_of_the_next_header_only(self):
        long = "ä" * 100 + "/" + "b" * 300
        records = record(b"path", long.encode()), record(b"size", b"3"), record(b"mtime", b"-1.25")
        self.assert_read(
            pax(*records) + header(b"other", 0, mtime=7) + padded(b"abc") + file(b"c", b"d", mtime=8) + END,
            (long, 3, -1.25, b"abc"),
            ("c", 1, 8, b"d"),
        )

    def test_pax_keywords_about_owner_and_access_are_ignored(self):
        ignored = [record(key, b"1.5") for key in (b"atime", b"ctime", b"uid", b"gid")]
        ignored += [record(key, "ä=\n".encode()) for key in (b"comment", b"uname", b"gname")]
        self.assert_read(one(*ignored, content=b"x") + END, ("a", 1, 0, b"x"))

    def test_records_may_fill_the_pax_header(self):
        comment = record(b"comment", b"c" * (PAX_BYTES - 14))
        self.assertEqual(len(comment), PAX_BYTES)
        self.assert_read(one(comment) + END, ("a", 0, 0, b""))

    def test_caller_may_leave_content_unread(self):
        archive = file(b"a", b"x" * 700) + file(b"b") + file(b"c", b"y" * 100_000) + file(b"d", b"z") + END
        for opened in (Forward(archive), Pipe(archive)):
            found = [(member.name, member.source.read(600)[:1]) for member in read_members(opened, "x.tar")]
            self.assertEqual(found, [("a", b"x"), ("b", b""), ("c", b"y"), ("d", b"z")])

    def test_content_ends_at_its_size(self):
        archive = file(b"a", b"x" * 700) + file(b"b", b"y") + END
        first = next(read_members(io.BytesIO(archive), "x.tar")).source
        self.assertEqual([len(first.read(size)) for size in (1, 1 << 30, 1, 1)], [1, 699, 0, 0])

    def test_reading_begins_at_the_position_of_the_file(self):
        opened = io.BytesIO(b"before" + file(b"a", b"x") + END)
        opened.seek(6)
        self.assertEqual(everything(opened), [("a", 1, 0, b"x")])

    def test_maximum_number_of_members_is_accepted(self):
        self.assertEqual(len(everything(io.BytesIO(file() * 3 + END), most=3)), 3)
        self.assert_refused(file() * 4 + END, "contains more than 3 files", most=3)


class RoundTripTest(Case):
    NAMES = (
        "a", "logs/2026-11-20_153610.csv", "x" * 99, "x" * 100, "x" * 101, f"logs/{'y' * 250}", "my own ä.csv",
        f"logs/{'ü' * 120}", "a\nb", "*?'\"$(x)", "日本語/🐦", " ", "-rf", "a.", "..a", "...", "a/..b", "x" * 4000,
    )  # fmt: skip
    SIZES = (0, 1, 511, 512, 513, 100_000)
    TIMES = (0, 1_795_188_970, 1_795_188_970.25, -1, -1.5, 8**11, 253_402_300_799)

    def written(self, form, names):
        out, expected = io.BytesIO(), []
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name, size, mtime in zip(names, itertools.cycle(self.SIZES), itertools.cycle(self.TIMES)):
                member = tarfile.TarInfo(name)
                mtime = max(0, min(int(mtime), 8**11 - 1)) if form == tarfile.USTAR_FORMAT else mtime
                member.size, member.mtime, content = size, mtime, os.urandom(size)
                tar.addfile(member, io.BytesIO(content))
                expected.append((name, size, mtime, content))
        return out.getvalue(), expected

    def test_pax_archive_of_tarfile_is_read(self):
        archive, expected = self.written(tarfile.PAX_FORMAT, self.NAMES * 3)
        for opened in (Forward(archive), Pipe(archive)):
            self.assertEqual(everything(opened), expected)

    def test_ustar_archive_of_tarfile_is_read(self):
        archive, expected = self.written(tarfile.USTAR_FORMAT, [name for name in self.NAMES if len(name) < 101])
        self.assertEqual(everything(Forward(archive)), expected)

    def test_gnu_archive_of_tarfile_is_refused(self):
        archive, _ = self.written(tarfile.GNU_FORMAT, self.NAMES)
        self.assert_refused(archive, r"'a' is in the GNU tar format, not in ustar or pax format: extract it, and pack")

    def test_sizes_above_8_gib_are_read(self):
        """The file is sparse, and its content is not read."""
        path = os.path.join(temp_folder(self), "x.tar")
        sizes = 8 * GIB - 1, 8 * GIB, 9 * GIB + 1
        with open(path, "wb") as archive:
            for number, size in enumerate(sizes):
                member = tarfile.TarInfo(str(number))
                member.size = size
                archive.write(member.tobuf(tarfile.PAX_FORMAT))
                archive.seek(size + -size % 512, os.SEEK_CUR)
            archive.write(file(b"last", b"x") + END)
        with open(path, "rb") as archive:
            found = [(member.name, member.size, member.source.read(9)) for member in read_members(archive, path)]
        self.assertEqual(found, [(str(n), size, bytes(9)) for n, size in enumerate(sizes)] + [("last", 1, b"x")])
        os.truncate(path, os.path.getsize(path) - 9 * GIB)
        with (
            open(path, "rb") as archive,
            self.assertRaisesRegex(BadArchive, r"'2' is truncated: its size in the header is 9,663,"),
        ):
            list(read_members(archive, path))


@unittest.skipUnless(shutil.which("tar"), "there is no tar program")
class GnuTarTest(Case):
    def setUp(self):
        self.place = temp_folder(self)
        self.folder = os.path.join(self.place, "unpacked")
        os.makedirs(os.path.join(self.folder, "logs"))
        self.names = ["SHA256SUMS", "logs/a.csv", "logs/my own ä.csv", f"logs/{'y' * 250}"]
        for name in self.names:
            with open(os.path.join(self.folder, name), "w") as out:
                out.write(name)

    def shell(self, command):
        done = subprocess.run(["sh", "-c", command], cwd=self.folder, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(os.path.join(self.place, "NEW.tar"), "rb") as archive:
            return archive.read()

    def test_usual_tar_commands_are_refused_and_the_remedy_works(self):
        for command, reason in (
            ("tar --format=gnu -cf ../NEW.tar *", "'SHA256SUMS' is in the GNU tar format"),
            ("tar --format=gnu -cf ../NEW.tar .", "'./' is in the GNU tar format"),
            ("tar --format=pax -cf ../NEW.tar *", "'logs/' is refused: it is not a regular file, but a directory"),
            ("tar --format=v7 -cf ../NEW.tar SHA256SUMS", "'SHA256SUMS' is in an old format"),
            (
                "find . -type f | tar --format=pax -cf ../NEW.tar -T -",
                r"is refused: its name contains an empty comp.* or '.'",
            ),
        ):
            with self.subTest(command), self.assertRaisesRegex(BadArchive, reason) as caught:
                everything(io.BytesIO(self.shell(command)))
            remedy = str(caught.exception).rpartition(": extract it, and pack it again in that folder: ")[2]
            found = everything(io.BytesIO(self.shell(remedy)))
            self.assertEqual(
                sorted((name, content.decode()) for name, _, _, content in found), [(n, n) for n in self.names]
            )

    def test_times_of_the_files_are_returned(self):
        path = os.path.join(self.folder, "SHA256SUMS")
        os.utime(path, ns=(5, 1_700_000_000_250_000_000))
        found = everything(io.BytesIO(self.shell("tar --format=pax -cf ../NEW.tar SHA256SUMS")))
        self.assertEqual([mtime for _, _, mtime, _ in found], [1_700_000_000.25])


class HostileTest(Case):
    """Archives that are valid except for one detail."""

    def test_special_files_are_refused(self):
        self.assert_each_refused({
            "hard link": (header(kind=b"1"), "'a' is refused: it is not a regular file, but a hard link"),
            "symbolic link": (header(kind=b"2"), "but a symbolic link"),
            "character device": (header(kind=b"3"), "but a character device"),
            "block device": (header(kind=b"4"), "but a block device"),
            "directory": (header(b"logs/", kind=b"5"), "'logs/' is refused: it is not a regular file, but a directory"),
            "FIFO": (header(kind=b"6"), "but a FIFO"),
            "contiguous file": (header(kind=b"7"), "but a contiguous file"),
            "global header": (header(kind=b"g") + file(), "but a pax global header"),
            "GNU long name": (file(b"././@LongLink", b"b\0", kind=b"L") + file(), "but a GNU long name"),
            "GNU long link name": (file(b"././@LongLink", b"b\0", kind=b"K") + file(), "but a GNU long link name"),
            "GNU sparse file": (header(kind=b"S"), "but a GNU sparse file"),
            "unknown type": (header(kind=b"\xff"), r"but of the unknown type b'\\xff'"),
            "pax path of a link": (pax(record(b"path", b"b")) + header(kind=b"2"), "'b' is refused: .* symbolic link"),
        })  # fmt: skip

    def test_formats_other_than_ustar_and_pax_are_refused(self):
        gnu = b"ustar  \0"
        self.assert_each_refused({
            "GNU": (header(magic=gnu), "'a' is in the GNU tar format, .*: extract it, and pack it again in that"),
            "GNU long name": (file(b"././@LongLink", b"b" * 9999, kind=b"L", magic=gnu), "the GNU tar format"),
            "before POSIX": (header(magic=bytes(8)), "'a' is in an old format"),
            "unknown version": (header(magic=b"ustar\x0001"), "'a' is in an old format"),
            "gzip": (b"\x1f\x8b" + bytes(600), "is not a tar archive, or is compressed or damaged"),
            "text": (b"my own notes\n" * 100, "is not a tar archive, .* no header at its beginning"),
        })  # fmt: skip

    def test_wrong_checksums_are_refused(self):
        right = sum(header(checksum=b" " * 8))
        signed = sum(header(b"\xe4", checksum=b" " * 8)) - 256
        self.assert_each_refused({
            "one less": (header(checksum=b"%06o\0 " % (right - 1)), "no header at its beginning"),
            "blank": (header(checksum=b" " * 8), "no header"),
            "not there": (header(checksum=bytes(8)), "no header"),
            "no octal number": (header(checksum=b"00999\0  "), "no header"),
            "of signed bytes": (header(b"\xe4", checksum=b"%06o\0 " % signed), "no header"),
            "second header": (file(b"a", b"x") + header(checksum=bytes(8)), "no header after 'a'"),
        })  # fmt: skip
        self.assert_read(header(checksum=b"%06o\0 " % right) + END, ("a", 0, 0, b""))

    def test_invalid_numbers_are_refused(self):
        self.assert_each_refused({
            "base-256 size": (header(size=b"\x80" + bytes(10) + b"\1"), r"'a' is refused: its size is not an .*x80"),
            "negative base-256 size": (header(size=b"\xff" * 12), "its size is not an octal number"),
            "negative size": (header(size=b"-0000000512\0"), "its size is not an octal number"),
            "size with a sign": (header(size=b"+0000000000\0"), "its size is not an octal number"),
            "size with a digit 8": (header(size=b"00000000008\0"), "its size is not an octal number"),
            "size without an end": (header(size=b"0" * 12), "its size is not an octal number"),
            "size with an underscore": (header(size=b"0000000_000\0"), "its size is not an octal number"),
            "size with a digit after the end": (header(size=b"0000000\00007 \0"), "its size is not an octal number"),
            "empty size": (header(size=bytes(12)), "its size is not an octal number"),
            "base-256 time": (header(mtime=b"\xff" * 12), "its mtime is not an octal number"),
            "mode": (header(mode=b"rw-r--r--"[:8]), "its mode is not an octal number: b'rw-r--r-'"),
            "empty time": (header(mtime=b" " * 12), "its mtime is not an octal number"),
        })  # fmt: skip

    def test_sizes_beyond_the_end_are_refused(self):
        for label, archive in {
            "one byte": file(b"a", b"x" * 512)[:-1] + b"",
            "8 GiB": header(size=b"77777777777\0") + bytes(512),
            "pax, as much as fits": one(record(b"size", b"9" * 18)),
        }.items():
            with self.subTest(label):
                self.assert_refused(
                    archive, "'a' is truncated: its size in the header is [0-9,]+ bytes, but only [0-9]+ follow"
                )

    def test_invalid_pax_values_are_refused(self):
        for keyword, values in {
            b"size": (b"-1", b"+1", b" 1", b"1 ", b"01", b"1.0", b"1e3", b"0x10", b"1_0", b"9" * 19, b"9" * 5000, b"",
                      "٣".encode(), b"1\n"),
            b"mtime": (b"nan", b"inf", b"-inf", b"1e5", b"--1", b"1.", b".5", b"1_0", b"9" * 13, b"1." + b"0" * 21,
                       b"1" * 8000, b"", b"1\n", b"0x1"),
            b"path": (b"",),
        }.items():  # fmt: skip
            for value in values:
                with self.subTest(keyword=keyword, value=value[:20]):
                    reason = f"'./PaxHeaders/a' is refused: invalid {keyword.decode()} in a pax header: '"
                    self.assert_refused(one(record(keyword, value)) + END, reason)

    def test_invalid_pax_records_are_refused(self):
        right = record(b"path", b"b")
        self.assert_each_refused({
            "length with a leading zero": (one(b"010 path=b\n"), "damaged: no valid record at byte 0 of its pax"),
            "length 0": (one(b"0 path=b\n"), "no valid record"),
            "length within itself": (one(b"1 path=b\n"), "no valid record"),
            "length before the keyword": (one(b"3 path=b\n"), "no valid record"),
            "negative length": (one(b"-9 path=b\n"), "no valid record"),
            "length too small": (one(b"9 path=bc\n"), "no valid record"),
            "length too large": (one(b"99 path=b\n"), "no valid record"),
            "length of five digits": (one(b"10000 comment=" + b"c" * 8000 + b"\n"), "no valid record"),
            "length without a space": (one(b"9" * 8000), "no valid record"),
            "length with letters": (one(b"0x9 path=b\n"), "no valid record"),
            "length in other digits": (one("٩ path=b\n".encode()), "no valid record"),
            "no end of line": (one(b"9 path=bc"), "no valid record"),
            "no equals sign": (one(b"7 path\n"), "no valid record"),
            "two spaces": (one(b"10  path=b\n"), "no valid record|unknown keyword"),
            "NULs after the last one": (one(right, bytes(3)), "no valid record at byte 9 of its pax header"),
            "empty lines": (one(b"\n" * 512), "no valid record"),
            "path twice": (one(right, right), "is refused: its pax header contains path twice"),
            "comment twice": (one(record(b"comment", b"a"), record(b"comment", b"b")), "contains comment twice"),
        })  # fmt: skip

    def test_unknown_pax_keywords_are_refused(self):
        for keyword in (
            b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.name",
            b"SCHILY.xattr.security.capability", b"SCHILY.realsize", b"LIBARCHIVE.symlinktype", b"hdrcharset",
            b"charset", b"linkpath", b"devmajor", b"PATH", b" path", b"path ", b"", b"\xff", b"path\0", b"k" * 8000,
        ):  # fmt: skip
            with self.subTest(keyword[:20]):
                self.assert_refused(
                    one(record(keyword, b"1")) + END, "is refused: its pax header contains the unknown keyword"
                )

    def test_invalid_pax_headers_are_refused(self):
        self.assert_each_refused({
            "empty": (pax() + file(), "'./PaxHeaders/a' is refused: a pax header of 0 bytes, not 1 to 8,192"),
            "too long": (one(record(b"comment", b"c" * PAX_BYTES)), "a pax header of 8,2.. bytes, not 1 to 8,192"),
            "8 GiB": (pax(size=8 * GIB - 1) + file(), "a pax header of 8,589,934,591 bytes"),
            "base-256 size": (pax(size=b"\x80" + b"\xff" * 11), "its size is not an octal number"),
            "two": (pax(record(b"path", b"b")) + one(record(b"path", b"c")), "damaged: a pax header is not followed"),
            "before the end": (pax(record(b"path", b"b")), "is damaged: a pax header is not followed by a file"),
        })  # fmt: skip
        self.assert_refused(pax(record(b"path", b"b"))[:700], "its end is missing")

    def test_invalid_names_are_refused(self):
        """The names are in the header and in a pax record."""
        for reason, names in {
            "is a path outside of the folder": (
                b"/", b"/etc/passwd", b"//x", b"..", b"../x", b"a/..", b"a/../../x", b"a/../b",
            ),
            "contains an empty component or '.': extract": (b".", b"./a", b"a/", b"a//b", b"a/.", b"a/./b", b"./"),
            "contains a NUL or a backslash, or is not in UTF-8": (
                b"a\\b", b"..\\x", b"\\\\host\\x", b"a\0b", b"\xff", b"\xe4.csv", b"\xc0\xae\xc0\xae", b"\xed\xa0\x80",
            ),
        }.items():  # fmt: skip
            for name in names:
                with self.subTest(name):
                    self.assert_refused(file(name) + END, f"is refused: its name {re.escape(reason)}")
                    self.assert_refused(one(record(b"path", name)) + END, f"is refused: its name {re.escape(reason)}")
        self.assert_refused(file(b"") + END, "'a file' is refused: its name contains an empty component")
        for prefix, name in (
            (b"..", b"x"),
            (b"/", b"x"),
            (b"a/..", b"x"),
            (b"a", b""),
            (b"\0a", b"x"),
            (b"/tmp", b"x"),
        ):
            with self.subTest(prefix=prefix):
                self.assert_refused(file(name, prefix=prefix) + END, "is refused: its name ")

    def test_pax_path_replaces_name_and_prefix(self):
        archive = one(record(b"path", b"b"), name=b"../x", prefix=b"/etc") + END
        self.assert_read(archive, ("b", 0, 0, b""))

    def test_data_after_the_end_is_refused(self):
        right = file(b"a", b"x")
        for label, archive, reason in (
            ("a byte", right + END + b"x", "contains data after its end, which is after 'a'"),
            ("a byte after zeros", right + bytes(300_000) + b"x", "contains data after its end"),
            ("another archive", right + END + right + END, "contains data after its end"),
            ("zeros without end", right + bytes(1025 + PADDING_BYTES), "contains data after its end"),
            ("zeros in the middle", right + bytes(512) + right + END, "is damaged: a single block of zeros"),
            ("one block of zeros", right + bytes(512), "its end is missing: it is truncated after 'a'"),
            ("no end", right, "its end is missing: it is truncated after 'a'"),
            ("nothing", b"", "its end is missing: it is truncated at its beginning"),
        ):  # fmt: skip
            with self.subTest(label):
                self.assert_refused(archive, reason)


class DamagedTest(Case):
    ARCHIVE = one(record(b"path", b"b"), record(b"mtime", b"1.5"), content=b"x" * 600) + file(b"c", b"y") + END

    def test_archive_truncated_anywhere_is_refused(self):
        for size in range(len(self.ARCHIVE)):
            for opened in (io.BytesIO(self.ARCHIVE[:size]), Pipe(self.ARCHIVE[:size], 1000)):
                with self.assertRaisesRegex(BadArchive, "its end is missing|is truncated", msg=size):
                    everything(opened)

    def test_error_names_the_position_of_the_truncation(self):
        for size, place in ((10, "at its beginning"), (1600, "in 'b'"), (2600, "after 'b'"), (-513, "after 'c'")):
            with self.assertRaisesRegex(BadArchive, f"its end is missing: it is truncated {place}"):
                everything(Pipe(self.ARCHIVE[:size]))

    def test_changed_bit_of_a_header_is_detected_or_harmless(self):
        """A bit may only be harmless at the end of the checksum, which is a NUL or a space."""
        right = everything(io.BytesIO(self.ARCHIVE))
        for bit in range(1024 * 8, 1536 * 8):
            archive = bytearray(self.ARCHIVE)
            archive[bit // 8] ^= 1 << bit % 8
            try:
                self.assertEqual(everything(io.BytesIO(archive)), right)
            except BadArchive:
                continue
            self.assertIn(bit // 8 - 1024, range(148, 156))


class BoundsTest(Case):
    def worst(self):
        """Return archives with the largest possible pax header, for which a careless parser needs a long time."""
        digits, commas = b"9" * PAX_BYTES, b"0," * (PAX_BYTES // 2)
        bodies = [
            digits, b" " * PAX_BYTES, b"=" * PAX_BYTES, b"\n" * PAX_BYTES, b"1 " * (PAX_BYTES // 2), commas,
            b"9 path=b\n" * (PAX_BYTES // 9), record(b"size", digits[:8000]), record(b"mtime", digits[:8000]),
            record(b"mtime", b"1." + digits[:8000]), record(b"GNU.sparse.map", commas[:8000]),
            record(b"path", b"a/" * 4000), record(b"path", b"../" * 2700), record(b"path", b"\\" * 8000),
            record(b"comment", b"1 a=b\n" * 1300) + b"x", record(b"hdrcharset", b"BINARY" * 1000),
        ]  # fmt: skip
        yield from (one(body[:PAX_BYTES]) + END for body in bodies)
        yield from (header(b"a", size=field) + END for field in (b"7" * 12, b" " * 12, b"\xff" * 12, b"7 " * 6))
        yield header(b"a", kind=b"L", size=b"77777777777\0") + END
        yield header(b"a", kind=b"x", size=b"77777777777\0") + bytes(100_000)

    def test_hostile_header_takes_linear_time(self):
        for number, archive in enumerate(self.worst()):
            with self.subTest(number):
                opened, before_s = Forward(archive), time.process_time()
                with self.assertRaises(BadArchive):
                    everything(opened)
                self.assertLess(time.process_time() - before_s, CPU_S)
                self.assertLessEqual(opened.count, len(archive))

    def test_archive_takes_limited_memory(self):
        huge = one(record(b"size", b"9" * 17), content=b"x" * 4_000_000)
        large = file(b"a", b"x" * 4_000_000) + END
        for archive in (*self.worst(), huge, large, file() + bytes(1 << 20)):
            for opened in (Forward(archive), Pipe(archive, 1 << 16)):
                tracemalloc.start()
                try:
                    for member in read_members(opened, "x.tar"):
                        while member.source.read(1 << 12):
                            pass
                except BadArchive:
                    pass
                finally:
                    _, peak = tracemalloc.get_traced_memory()
                    tracemalloc.stop()
                self.assertLess(peak, 1 << 20)

    def test_many_members_take_no_memory(self):
        archive = file() * 2000 + END
        opened = Forward(archive)
        tracemalloc.start()
        count = sum(1 for _ in read_members(opened, "x.tar"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.assertEqual(count, 2000)
        self.assertLess(peak, 100_000)


if __name__ == "__main__":
    unittest.main()
