"""Request heads: each is refused, or parsed correctly to the last byte, in time proportional to its length."""

import re
import unittest
from http import HTTPStatus

from pigeonpost.http.message import (
    BODY_BYTES,
    HEAD_BYTES,
    MOST_HEADERS,
    HTTPError,
    body_length,
    byte_range,
    form_of,
    head_end,
    parse_head,
)
from tests.fuzz import Target, fuzzed, mutated, st
from tests.http.test_message import GOOD

SEEDS = (
    GOOD + b"a=%C2%B0&b=1",
    b"GET /?from=1&to=%2B HTTP/1.0\r\nRange: bytes=5-\r\nIf-Range: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b",
)
PIECES = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\0", b":", b"%", b"%00", b"%FF", b"=", b"&", b"\xff", b"\r\n ",
    b"HTTP/1.1", b"HTTP/9.9", b"HTTP/0.9", b"a: b\r\n", b"Host: b\r\n", b"Content-Length: 4\r\n", b"\r\nX: ", b"/../",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length : 4\r\n", b"Range: bytes=-0\r\n", b"9" * 19, b"\xc2\xb2",
    b"Content-Encoding: gzip\r\n", b"a=1&a=2", b"a: " + b" " * 200, b"Content-Length:\r\n",
)  # fmt: skip
HEADER = re.compile(rb"[^\x00-\x20()<>@,;:\\\"/\[\]?={}\x7f-\xff]+:[^\x00-\x08\x0a-\x1f\x7f]*").fullmatch  # RFC 9110, 5


class Heads(Target, unittest.TestCase):
    corpus = "heads"
    CPU_S = 0.25  # for 8 KiB; quadratic parsing takes four times as long

    def check(self, data):
        early = next((cut for cut in range(0, len(data), len(data) // 20 + 1) if self.is_refused(data[:cut])), None)
        try:
            with self.bounded():
                end = self.read(data)
        except HTTPError as refusal:
            self.assertIn(HTTPStatus(refusal.status), HTTPStatus)
            self.assertLess(len(refusal.text), 100)
            return
        self.assertIsNone(early, "the beginning was refused, and the whole is not")
        if end:
            self.check_head(data[:end])
        else:
            self.assertLess(len(data), HEAD_BYTES)
            self.assertEqual(data.count(b"\n"), data.count(b"\r\n"), "nothing good can become of it")
            self.assertNotIn(b"\r\n\r\n", data)

    def is_refused(self, data):
        try:
            head_end(data)
        except HTTPError:
            return True
        return False

    def read(self, data):
        """Return the server's parse of the bytes, and the position where the head ends (0 if it is incomplete)."""
        end = head_end(bytearray(data))
        if end:
            request = parse_head(data[:end])
            request.body = data[end : end + body_length(request, BODY_BYTES)]
            for size in (0, 1000):
                found = byte_range(request.headers.get("range", ""), size)
                self.assertTrue(found is None or 0 <= found[0] < found[0] + found[1] <= size)
            fields = request.query | form_of(request)
            told = (*fields, *fields.values(), request.wants_html, request.keeps_alive)
            self.assertNotIn("\0", "".join(map(str, told)))
        return end

    def check_head(self, head):
        """Check that no other program can read the head differently (RFC 9112, sections 2.2, 3, 5 and 6)."""
        self.assertEqual((head.count(b"\r"), head.count(b"\n")), (head.count(b"\r\n"),) * 2)
        first, *headers = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        self.assertRegex(first, rb"\A[!-~]+ /[!-~]* HTTP/1\.[01]\Z")
        self.assertLessEqual(len(headers), MOST_HEADERS)
        for header in headers:
            self.assertTrue(HEADER(header), header)
        names = [header.partition(b":")[0].lower() for header in headers]
        self.assertTrue(names.count(b"host") == 1 or (not names.count(b"host") and b" HTTP/1.0\r\n" in head))
        self.assertLessEqual(names.count(b"content-length"), 1)
        self.assertNotIn(b"transfer-encoding", names)

    @fuzzed(lambda: mutated(st.sampled_from(SEEDS), PIECES, HEAD_BYTES + 500))
    def test_random_heads_are_refused_or_parsed(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
