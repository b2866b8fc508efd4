"""Tests of the parsers of request heads, forms and ranges. Invalid input is rejected quickly with an HTTPError."""

import random
import time
import unittest
from http import HTTPStatus

from pigeonpost.http.message import (
    HEAD_BYTES,
    MOST_FIELDS,
    MOST_HEADERS,
    SAFE_HEADERS,
    HTTPError,
    Request,
    body_length,
    byte_range,
    form_of,
    head_end,
    parse_form,
    parse_head,
)
from tests.support import rounds

GOOD = (
    b"POST /nodes/basement/on?a=1&b=%C2%B0 HTTP/1.1\r\nHost: pi.local:8080\r\nAccept: text/html, */*\r\n"
    b"Cookie: pigeonpost-8080=x; other=y\r\nContent-Length: 12\r\nX-Empty:\r\nConnection: keep-alive\r\n\r\n"
)


def head(*lines, first="GET / HTTP/1.1", host="Host: a"):
    """Return a head with these lines. Strings are encoded as latin-1."""
    wanted = [first, *([host] if host else []), *lines, "", ""]
    return b"\r\n".join(line if isinstance(line, bytes) else line.encode("latin-1") for line in wanted)


def read(data):
    """Parse a head as the web server does."""
    end = head_end(bytearray(data))
    return parse_head(bytes(data[:end])) if end else None


class HeadCase(unittest.TestCase):
    def refused(self, data, status):
        """Check that `data` is refused with `status`, closes the connection, and is not repeated in the text."""
        with self.assertRaises(HTTPError) as caught:
            if read(data) is None:
                self.fail(f"waits for more: {data[:80]!r}")
        self.assertEqual(caught.exception.status, status, data[:80])
        self.assertTrue(caught.exception.closes)
        self.assertNotRegex(caught.exception.text, "(?i)evil")
        self.assertLess(len(caught.exception.text), 100)
        return caught.exception


class ValidHeads(HeadCase):
    def test_valid_head_is_parsed(self):
        request = read(GOOD)
        self.assertEqual((request.method, request.path, request.version), ("POST", "/nodes/basement/on", "1.1"))
        self.assertEqual(request.query_text, "a=1&b=%C2%B0")
        self.assertEqual(dict(request.query), {"a": "1", "b": "°"})
        self.assertEqual(request.headers["host"], "pi.local:8080")
        self.assertEqual(request.headers["x-empty"], "")
        self.assertEqual((request.body, request.peer), (b"", ""))
        self.assertTrue(request.wants_html)
        self.assertTrue(request.keeps_alive)

    def test_head_ends_at_its_empty_line(self):
        for more in (b"", b"x", GOOD, b"\n\n\r\r\0" * 3000):
            self.assertEqual(head_end(GOOD + more), len(GOOD))
            self.assertEqual(head_end(bytearray(GOOD + more)), len(GOOD))

    def test_incomplete_head_is_neither_complete_nor_invalid(self):
        for end in range(len(GOOD)):
            self.assertEqual(head_end(GOOD[:end]), 0, GOOD[:end])

    def test_values_are_trimmed_and_names_in_small_letters(self):
        request = read(head("ACCEPT:text/html", "X-a: \t b c\t \t", "x-B:  ", "x-c: ä"))
        self.assertEqual(request.headers["accept"], "text/html")
        self.assertEqual(request.headers["x-a"], "b c")
        self.assertEqual(request.headers["x-b"], "")
        self.assertEqual(request.headers["x-c"], "ä")

    def test_repeated_header_is_joined_as_a_list(self):
        self.assertEqual(read(head("Accept: a/b", "accept: text/html")).headers["accept"], "a/b, text/html")

    def test_wants_html_depends_on_accept(self):
        self.assertTrue(read(head("Accept: text/html")).wants_html)
        for one in (head(), head("Accept: */*"), head("Accept: application/json")):
            self.assertFalse(read(one).wants_html)

    def test_keeps_alive_depends_on_connection_and_version(self):
        for version, said, wanted in (
            ("1.1", None, True), ("1.1", "close", False), ("1.1", "Close", False), ("1.1", "keep-alive", True),
            ("1.1", "foo, close", False), ("1.0", None, False), ("1.0", "Keep-Alive", True), ("1.0", "close", False),
        ):  # fmt: skip
            request = read(head(*([f"Connection: {said}"] if said else []), first=f"GET / HTTP/{version}"))
            self.assertEqual(request.keeps_alive, wanted, (version, said))

    def test_maximum_of_headers_and_bytes_is_accepted(self):
        request = read(head(*(f"a{k}: b" for k in range(MOST_HEADERS - 1))))
        self.assertEqual(len(request.headers), MOST_HEADERS)
        short = len(head("a: "))
        request = read(head("a: " + "b" * (HEAD_BYTES - short)))
        self.assertEqual(len(request.headers["a"]), HEAD_BYTES - short)

    def test_http_1_0_needs_no_host(self):
        self.assertEqual(read(head(first="GET / HTTP/1.0", host="")).headers, {})


class RefusedHeads(HeadCase):
    def test_invalid_request_lines_are_refused(self):
        for first, status in (
            ("", 400), (" ", 400), ("GET", 400), ("GET /", 400), ("GET /evil HTTP", 400), ("GET / HTTP/", 400),
            ("GET / HTTP/1", 400), ("GET / http/1.1", 400), ("GET / HTTP/1.1 ", 400), (" GET / HTTP/1.1", 400),
            ("GET  / HTTP/1.1", 400), ("GET /  HTTP/1.1", 400), ("GET\t/ HTTP/1.1", 400), ("GET / /evil HTTP/1.1", 400),
            ("GET / HTTP/+1.1", 400), ("GET / HTTP/1.1.1", 400), ("GET / HTTP/1.-1", 400), ("GET / HTTP/\xb91.1", 400),
            ("GE(T / HTTP/1.1", 400), ("GET:evil / HTTP/1.1", 400), ("G\xcbT / HTTP/1.1", 400),
            ("G" * 33 + " / HTTP/1.1", 400),
            ("GET /\x00evil HTTP/1.1", 400), ("GET /\x7f HTTP/1.1", 400), ("GET /\xe4 HTTP/1.1", 400),
            ("GET /#evil HTTP/1.1", 400), ("GET / HTTP/0.9", 400), ("GET / HTTP/0.0", 400), ("GET / HTTP/00.1", 400),
            ("GET / HTTP/1.2", 505), ("GET / HTTP/1.9999999", 505), ("GET / HTTP/2.0", 505), ("GET / HTTP/999.0", 505),
            ("PRI * HTTP/2.0", 505), ("GET / HTTP/1.10", 505), ("GET / HTTP/1.01", 505),
            ("GET http://evil/ HTTP/1.1", 400), ("GET evil HTTP/1.1", 400), ("OPTIONS * HTTP/1.1", 400),
            ("CONNECT evil:443 HTTP/1.1", 400), ("GET \\evil HTTP/1.1", 400), ("GET ?evil HTTP/1.1", 400),
        ):  # fmt: skip
            with self.subTest(first):
                self.refused(head(first=first), status)

    def test_invalid_head_is_refused_before_it_is_complete(self):
        """The server does not wait for the end of a head that can no longer become valid."""
        for data in (
            b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nHost: a\nb", b"\n", b"\r\n", b"GET /\r\n",
            b"\x16\x03\x01\x02\x00\r\n",
            b"GET / HTTP/3.1\r\nHo", b"GET / HTTP/1.1\rH", b"SSH-2.0-x\r\n", b"HELLO {}\n",
        ):  # fmt: skip
            with self.subTest(data), self.assertRaises(HTTPError):
                head_end(data)

    def test_invalid_line_ends_are_400(self):
        """A bare LF, a lone CR and folded lines are answered with 400."""
        for data in (
            b"GET / HTTP/1.1\nHost: a\n\n", b"GET / HTTP/1.1\r\nHost: a\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"GET / HTTP/1.1\r\nHost: a\rEvil: b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
            b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", b"GET /\revil HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\n\nGET /evil HTTP/1.1\r\n\r\n", b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\r\n\r\n", b"\r\n\r\n\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n evil\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\tevil: x\r\n\r\n", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        ):  # fmt: skip
            with self.subTest(data):
                self.refused(data, 400)

    def test_invalid_headers_are_400(self):
        for line in (
            "evil", ": evil", "evil : x", "evil\t: x", " evil: x", "ev il: x", "evil\x00: x", "evil: \x00",
            "evil: a\x00b",
            "evil: \x01", "evil: \x1b[2J", "evil: \x7f", "\xe4vil: x", "ev(il): x", "e\"vil\": x", "evil\x0b: x",
            "evil;: x",
        ):  # fmt: skip
            with self.subTest(line):
                self.refused(head(line), 400)

    def test_repeated_single_headers_are_400(self):
        for name in (
            "Host", "content-length", "Content-Type", "COOKIE", "Authorization", "Origin", "Transfer-Encoding", "Range",
            "If-Range", "Expect", "Content-Encoding", "Sec-Fetch-Site", "X-CSRF-Token", "Last-Event-ID",
        ):  # fmt: skip
            with self.subTest(name):
                self.refused(head(f"{name}: 1", f"{name.swapcase()}: 1", host="" if name == "Host" else "Host: a"), 400)

    def test_missing_host_is_400(self):
        self.refused(head(host=""), 400)
        self.refused(head("X-Host: a", host=""), 400)

    def test_too_many_headers_are_431(self):
        self.refused(head(*(f"a{k}: b" for k in range(MOST_HEADERS))), 431)
        self.refused(head(*("a: b" for _ in range(101))), 431)

    def test_too_long_head_is_refused(self):
        for data, status in (
            (head("a: " + "b" * HEAD_BYTES), 431), (head("evil" * 3000), 431), (head() [:-2] + b"a: b\r\n" * 2000, 431),
            (b"G" * 60_000, 400), (b"G" * 60_000 + b" / HTTP/1.1\r\n\r\n", 400), (b"\0" * HEAD_BYTES, 400),
            (b"GET /" + b"a" * 60_000, 414), (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n", 414),
            (head("a: " + "b" * (HEAD_BYTES - len(head("a: ")) + 1)), 431),
        ):  # fmt: skip
            with self.subTest(data[:40]):
                self.refused(data, status)

    def test_head_is_refused_at_the_byte_limit(self):
        """One byte below the limit, the parser waits for more. At the limit, it rejects the head."""
        data = head("a: " + "b" * HEAD_BYTES)
        self.assertEqual(head_end(data[: HEAD_BYTES - 1]), 0)
        with self.assertRaises(HTTPError):
            head_end(data[:HEAD_BYTES])

    def test_http_error_has_a_code_for_programs(self):
        self.assertEqual(HTTPError(405, "x").code, "method-not-allowed")
        self.assertEqual(HTTPError(403, "x", "csrf").code, "csrf")


class Bodies(unittest.TestCase):
    def length(self, *lines, method="POST", most=1000):
        return body_length(read(head(*lines, first=f"{method} / HTTP/1.1")), most)

    def refused(self, status, *lines, method="POST", most=1000):
        with self.assertRaises(HTTPError) as caught:
            self.length(*lines, method=method, most=most)
        self.assertEqual((caught.exception.status, caught.exception.closes), (status, True), lines)

    def test_body_length_is_read_from_the_header(self):
        for said, length in (("0", 0), ("5", 5), ("1000", 1000), ("0005", 5), (" 5 ", 5)):
            self.assertEqual(self.length(f"Content-Length: {said}"), length)
        self.assertEqual(self.length(method="GET"), 0)
        self.assertEqual(self.length("Content-Length: 7", method="GET"), 7)
        self.assertEqual(self.length("Content-Length: 7", "Content-Encoding: Identity"), 7)
        self.assertEqual(self.length("Content-Encoding: gzip", method="GET"), 0)

    def test_missing_length_is_411(self):
        self.refused(411)

    def test_invalid_lengths_are_400(self):
        for said in (
            "abc", "-1", "+5", "1_0", "5" * 5000, "", "5,5", "5, 6", "0x10", "5.0", "1e3", "5 5", "\xb2", "5;5",
            "1" * 19,
        ):  # fmt: skip
            with self.subTest(said[:20]):
                self.refused(400, f"Content-Length: {said}")

    def test_too_long_body_is_413(self):
        self.refused(413, "Content-Length: 1001")
        self.refused(413, "Content-Length: 10000000000")
        self.refused(413, "Content-Length: " + "9" * 18)
        self.refused(413, "Content-Length: 1", most=0)

    def test_transfer_and_content_encodings_are_refused(self):
        self.refused(400, "Content-Length: 5", "Transfer-Encoding: chunked")
        for said in ("chunked", "identity", "", "xchunked", "chunked, chunked", "gzip"):
            self.refused(501, f"Transfer-Encoding: {said}")
            self.refused(501, f"Transfer-Encoding: {said}", method="GET")
        self.refused(501, "TRANSFER-encoding:chunked")
        for said in ("gzip", "deflate", "br", "zstd", "", "identity, gzip"):
            self.refused(415, "Content-Length: 5", f"Content-Encoding: {said}")


class RandomHeads(unittest.TestCase):
    """Random and mutated heads: they are parsed or rejected with an HTTPError, quickly and without another error."""

    HEADS = rounds("PIGEONPOST_TEST_HEADS", 7_000, 70_000)

    def work(self, data):
        """Do all the parsing before a handler is called. Return True if a handler would be called."""
        try:
            request = read(data)
            if request is None:
                return False
            body_length(request, 65536)
            assert request.path.startswith("/") and request.path.isascii() and " " not in request.path
            assert len(request.headers) <= MOST_HEADERS
            for name, value in request.headers.items():
                assert name == name.lower() and not {"\r", "\n", "\0"} & {*name, *value}, (name, value)
            parse_form(request.query_text)
            byte_range(request.headers.get("range", ""), 1000)
            bool(request.keeps_alive), bool(request.wants_html)
        except HTTPError as refusal:
            assert HTTPStatus(refusal.status) and refusal.text.isascii()
            return False
        return True

    def test_mutated_heads_cause_no_other_error(self):
        """Valid heads with one to six random changes: bytes replaced, deleted, duplicated or inserted."""
        source = random.Random(1)
        telling = b"\r\n\t :\0\x7f\x80\xff/?&=%+#,;-_09azAZ\"'<>"
        seeds = [GOOD, head("Range: bytes=0-5", "Content-Encoding: identity", "Transfer-Encoding: chunked")]
        good = 0
        for _ in range(self.HEADS):
            data = bytearray(source.choice(seeds))
            for _ in range(source.randint(1, 6)):
                at, kind = source.randrange(len(data)), source.random()
                if kind < 0.5:
                    data[at] = source.choice(telling)
                elif kind < 0.7:
                    del data[at : at + source.randint(1, 20)]
                elif kind < 0.85:
                    data[at:at] = data[source.randrange(len(data)) :][: source.randint(1, 40)]
                else:
                    data[at:at] = bytes([source.choice(telling)])
                if not data:
                    break
            good += self.work(bytes(data))
        self.assertGreater(good, self.HEADS / 140)

    def test_random_heads_cause_no_other_error(self):
        source = random.Random(2)
        words = [b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"\r\n", b"Host:", b" ", b"a", b":", b"\n", b"\r", b"\0", b"%"]
        for _ in range(self.HEADS // 5):
            self.work(source.randbytes(source.randrange(60)))
        for _ in range(self.HEADS // 5):
            self.work(b"".join(source.choices(words, k=source.randrange(30))) + b"\r\n\r\n")

    def test_no_head_takes_long(self):
        """Each head would take seconds with a regular expression that backtracks (ReDoS)."""
        room = HEAD_BYTES - 60
        data = [
            head(b"a:" + b" " * room + b"\0"), head(b"a:" + b"\t" * room + b"\x7f"),
            head(b"a:" + b" \t" * (room // 2) + b"\1"),
            head(b"a: b" + b" " * room + b"\0"), head(b"!" * room), head(b"a" * room + b" :"),
            head(b"a:" * (room // 2) + b"\0"),
            b"GET /" + b"/" * room + b"\0 HTTP/1.1\r\n", b"GET " + b"/ " * (room // 2) + b"\r\n\r\n",
            b"\r\n" * (room // 2),
            head(b"Cookie: " + b";" * (room - 10)), b" " * room + b"\r\n\r\n",
            head(b"Range: bytes=" + b"0" * (room - 20)),
        ]  # fmt: skip
        for one in data:
            took_s = []
            for _ in range(5):
                began_s = time.thread_time()
                self.work(one)
                took_s.append(time.thread_time() - began_s)
            self.assertLess(min(took_s), 0.1, one[:40])

    def test_head_received_byte_by_byte_takes_little_time(self):
        """The head is checked after each byte, so a slow sender causes up to 8,000 checks."""
        data = head("a: " + "b" * (HEAD_BYTES - 100))
        began_s = time.thread_time()
        for end in range(len(data)):
            head_end(memoryview(data)[:end].tobytes())
        self.assertLess(time.thread_time() - began_s, 3.0)


class Fields(unittest.TestCase):
    def refused(self, text):
        with self.assertRaises(HTTPError) as caught:
            parse_form(text)
        self.assertEqual(caught.exception.status, 400)
        self.assertFalse(caught.exception.closes)

    def test_valid_fields_are_parsed(self):
        for text, wanted in (
            ("", {}), ("a=b", {"a": "b"}), ("a=b&c=", {"a": "b", "c": ""}), ("a", {"a": ""}), ("a=b=c", {"a": "b=c"}),
            ("a=1+2%2B3", {"a": "1 2+3"}), ("%61=%c3%A4", {"a": "ä"}), ("a=%00x"[:2] + "%0A", {"a": "\n"}),
            ("k=%3Cimg%20src=x%3E", {"k": "<img src=x>"}), ("a=%F0%9F%95%8A", {"a": "🕊"}),
        ):  # fmt: skip
            self.assertEqual(parse_form(text), wanted, text)

    def test_invalid_fields_are_400(self):
        for text in (
            "a=%", "a=%4", "a=%zz", "%=1", "a=%ff", "a=%C3", "a=%ED%A0%80", "a=%C0%80", "a=%00", "%00=1", "a=1&a=2",
            "a&a=",
            "a=1&%61=2", "&", "a=1&&&b=2", "a=%u0041", "a=% 41",
        ):  # fmt: skip
            with self.subTest(text):
                self.refused(text)

    def test_number_of_fields_is_limited(self):
        self.assertEqual(len(parse_form("&".join(f"a{k}=1" for k in range(MOST_FIELDS)))), MOST_FIELDS)
        self.refused("&".join(f"a{k}=1" for k in range(MOST_FIELDS + 1)))
        self.refused("&" * 65_000)

    def form(self, body, kind="application/x-www-form-urlencoded"):
        request = Request("POST", "/", "1.1", {"content-type": kind} if kind else {})
        request.body = body
        return form_of(request)

    def test_valid_forms_are_parsed(self):
        self.assertEqual(self.form(b"user=a&password=%C3%A4"), {"user": "a", "password": "ä"})
        kind = "Application/X-WWW-form-urlencoded; charset=UTF-8"
        self.assertEqual(self.form(b"a=b", kind), {"a": "b"})
        self.assertEqual(self.form(b"", "text/plain"), {})
        self.assertEqual(self.form(b"", ""), {})

    def test_invalid_form_bodies_are_refused(self):
        for kind in ("", "text/plain", "application/json", "multipart/form-data; boundary=x"):
            with self.assertRaises(HTTPError) as caught:
                self.form(b"a=b", kind)
            self.assertEqual(caught.exception.status, 415)
        for body in (b"a=\xc3\xa4", b"\xff", b"a=\0"[:2] + b"%00", b"a=%ff"):
            with self.assertRaises(HTTPError) as caught:
                self.form(body)
            self.assertEqual(caught.exception.status, 400)

    def test_query_is_parsed_when_it_is_accessed(self):
        request = read(head(first="GET /?a=%ff HTTP/1.1"))
        with self.assertRaises(HTTPError):
            _ = request.query
        request = read(head(first="GET /?a=1?b=2 HTTP/1.1"))
        self.assertEqual((request.path, request.query), ("/", {"a": "1?b=2"}))


class Ranges(unittest.TestCase):
    def test_valid_ranges_are_parsed(self):
        for text, size, wanted in (
            ("bytes=0-", 10, (0, 10)), ("bytes=3-5", 10, (3, 3)), ("bytes=9-9", 10, (9, 1)),
            ("bytes=5-500", 10, (5, 5)),
            ("bytes=-3", 10, (7, 3)), ("bytes=-30", 10, (0, 10)), ("bytes=0-0", 1, (0, 1)),
            ("bytes=" + "0" * 17 + "1-", 10, (1, 9)), ("bytes=0-" + "9" * 18, 10, (0, 10)),
        ):  # fmt: skip
            self.assertEqual(byte_range(text, size), wanted, text)

    def test_invalid_ranges_mean_the_complete_file(self):
        for text in (
            "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "bytes = 0-1", "items=0-1", "bytes=5-3",
            "bytes=0--1",
            "bytes=+1-2", "bytes=0-" + "9" * 19, "bytes=\u0661-", "bytes=0-1 ",
        ):  # fmt: skip
            self.assertIsNone(byte_range(text, 10), text)

    def test_range_outside_the_file_is_416(self):
        for text, size in (("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)):
            with self.assertRaises(HTTPError) as caught:
                byte_range(text, size)
            self.assertEqual(caught.exception.status, 416)
            self.assertEqual(caught.exception.headers, {"Content-Range": f"bytes */{size}"})

    def test_random_ranges_are_within_the_file(self):
        source = random.Random(3)
        for _ in range(2000):
            size = source.randrange(20)
            ends = [str(source.randrange(25)) if source.random() < 0.8 else "" for _ in range(2)]
            try:
                found = byte_range("bytes=" + "-".join(ends), size)
            except HTTPError:
                continue
            if found:
                self.assertTrue(0 <= found[0] < size and 0 < found[1] <= size - found[0], (ends, size, found))


class ResponseHeaders(unittest.TestCase):
    def test_headers_that_every_response_has(self):
        self.assertTrue(SAFE_HEADERS["Content-Security-Policy"].startswith("default-src 'none'; "))
        self.assertIn("frame-ancestors 'none'", SAFE_HEADERS["Content-Security-Policy"])
        self.assertNotIn("unsafe", SAFE_HEADERS["Content-Security-Policy"])


class Targets(unittest.TestCase):
    def test_characters_that_no_uri_has_are_refused(self):
        for letter in '"#<>\\^`{|}':
            with self.subTest(letter), self.assertRaises(HTTPError) as caught:
                parse_head(f"GET /a{letter}b HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            self.assertEqual(caught.exception.status, 400)

    def test_all_uri_characters_are_accepted(self):
        target = "/-._~!$&'()*+,;=:@%20?a=1&b=[2]/?"
        self.assertEqual(parse_head(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).path, "/-._~!$&'()*+,;=:@%20")


if __name__ == "__main__":
    unittest.main()
