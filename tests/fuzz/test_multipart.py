"""Bodies of uploads: they give the same parts or are refused, however they are split, in bounded time and memory."""

import unittest

from pigeonpost.compat.file_drop.storage import STORED_NAME, plain_name
from pigeonpost.http.multipart import MOST_PARTS, PART_HEAD_BYTES, BadMultipart, Multipart, boundary_of
from tests.fuzz import Target, fuzzed, mutated, st
from tests.http.test_multipart import FORM, RecordingSink

MOST_BYTES = 200_000
SEEDS = (
    FORM,
    b'--X-1\r\nContent-Disposition: form-data; name="sensor_data_file"; filename="a.csv"\r\n\r\n'
    b"time,a\r\n1,2\r\n\r\n--X-1--\r\n",
    b'--X-1\r\nContent-Disposition: form-data; name="f"; filename="\xff\xfe"\r\nX: y\r\n\r\n\r\n--X-1--',
)
PIECES = (
    b"\r\n--X-1", b"\r\n--X-1--", b"--X-1\r\n", b"\r\n", b"\r", b"\n", b"--", b"-", b"\r\n\r\n", b"\0", b'"', b"\\",
    b";", b"filename=CON.csv",
    b"Content-Disposition: form-data; name=a\r\n\r\n", b"\r\n--X-1\r\nContent-Disposition: form-data; name=a\r\n\r\n",
    b"filename*=UTF-8''%00", b"filename*=utf-8''%C3", b'filename="../../x.csv"', b"X: " + b"y" * 300 + b"\r\n",
    b"Content-Transfer-Encoding: base64\r\n", b" \t", b'; name="', b"=", b"\r\n--X", b"\r\n--X-",
)  # fmt: skip


class Bodies(Target, unittest.TestCase):
    corpus = "multipart"
    CPU_S = 1.0  # of 200 kB, read four times
    MEMORY_BYTES = 8 << 20  # mostly the test's own records

    def check(self, data):
        whole = self.read([data])
        self.assertEqual(whole, self.read([data[at : at + 997] for at in range(0, len(data), 997)]))
        if len(data) < 3000:  # byte by byte, and split in two at every byte
            self.assertEqual(whole, self.read([data[at : at + 1] for at in range(len(data))]))
        for at in range(0, len(data), max(1, len(data) // 50)):
            self.assertEqual(whole, self.read([data[:at], data[at:]]), at)
        for part, content in whole or ():
            self.assertNotIn(b"\r\n--X-1", b"\r\n" + content if content else b"")
            for text in (part.name, part.filename or ""):
                self.assertFalse([letter for letter in text if letter < " " and letter != "\t"], text)
            name = plain_name(part.filename or "", (".csv", ".txt"))
            if name and not name.startswith("."):
                self.assertTrue(STORED_NAME(f"0123456789abcdef_{name}"), name)

    def read(self, pieces):
        """Return the parts, or None if the body is refused."""
        heard = RecordingSink()
        with self.bounded():
            form = Multipart(b"X-1", heard)
            try:
                for piece in pieces:
                    form.take(piece)
                    self.assertLessEqual(len(form._buffer), PART_HEAD_BYTES + len(piece) + 100)
                form.finish()
            except BadMultipart as error:
                self.assertLess(len(str(error)), 100)
                return None
        self.assertFalse(heard.is_open)
        self.assertLessEqual(len(heard.parts), MOST_PARTS)
        return heard.parts

    @fuzzed(lambda: mutated(st.sampled_from(SEEDS), PIECES, MOST_BYTES))
    def test_random_bodies_are_refused_or_parsed(self, data):
        self.check(data)

    @fuzzed(lambda: st.text(max_size=300))
    def test_content_types(self, text):
        with self.bounded():
            try:
                found = boundary_of(f"multipart/form-data; {text}")
            except BadMultipart:
                return
        self.assertTrue(found and len(found) <= 70)

    @fuzzed(lambda: st.text(max_size=2000))
    def test_random_file_names_are_refused_or_safe(self, text):
        with self.bounded():
            for said in (text, f"{text}.csv"):
                name = plain_name(said, (".csv", ".txt"))
                if name and not name.startswith("."):
                    self.assertTrue(STORED_NAME(f"0123456789abcdef_{name}"), name)
                    self.assertLess(len(name), 120)


if __name__ == "__main__":
    unittest.main()
