"""Responses of a web server to a source: each gives a finite number or a SensorError, in bounded time and memory."""

import json
import math
import socket
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError
from pigeonpost.core.json_fetch import LONGEST_ANSWER, JsonFetcher, decoded
from pigeonpost.sensors import json as json_kind
from pigeonpost.sensors.contract import dotted_path
from tests.fuzz import Target, fuzzed, mutated, st

PATHS = [dotted_path(text) for text in ("", "a", "a.0", "a.-1.b", '"a.b".c', "0", "-0", "a.9999999999", "b.b.b")]
BODIES = [
    b'{"a": [1, {"b": "2.5"}], "a.b": {"c": true}, "b": null}', b"[[1], -0.0, 1e308]", b'"21.5"', b"1e999", b"NaN",
    b'{"a": [{"b": "' + b"9" * 400 + b'"}]}',
]  # fmt: skip
HEADS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n", b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[::1/\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\n\r\n",
]  # fmt: skip
PIECES = [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"true", b"9" * 5000, b"\\u0000", b"\\ud800", b"\xff",
    b"[" * 3000, b'{"a":' * 2000, b"1e5", b"-", b"NaN", b"Infinity", b"\0", b"\xef\xbb\xbf",
]  # fmt: skip
HEAD_PIECES = [
    b"\r\n", b"\n", b"Content-Length: ", b"-1", b"99999999999999999999", b"Transfer-Encoding: chunked\r\n", b"0\r\n",
    b"fffffffff\r\n", b"Location: ", b"file:///x", b"//", b"http://", b"\x1b", b"\xff", b"Content-Encoding: gzip\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"X: y\r\n" * 60, b"x" * 5000,
]  # fmt: skip


class JsonAnswers(Target, unittest.TestCase):
    corpus = "json_answers"
    MEMORY_BYTES = 16 << 20  # a thousand nested arrays are a thousand lists

    def check(self, data):
        with self.bounded():
            try:
                answer = decoded(data, "here")
            except SensorError as error:
                self.check_words(error)
                return
            for path in PATHS:
                try:
                    value = json_kind.find(path, {"ON": 1.0}, answer)
                except SensorError as error:
                    self.check_words(error)
                else:
                    self.assertIs(type(value), float)
                    self.assertTrue(math.isfinite(value))

    def check_words(self, error):
        self.assertLess(len(str(error)), 800)
        self.assertTrue(str(error).isprintable(), str(error))

    @fuzzed(lambda: mutated(st.sampled_from(BODIES), PIECES, 40_000))
    def test_answers_mutated(self, data):
        self.check(data)

    @fuzzed(lambda: st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(("a", "b", "a.b", "0")), inner),
        max_leaves=20).map(json.dumps).map(str.encode))  # fmt: skip
    def test_random_json_is_refused_or_parsed(self, data):
        self.check(data)


class PairedSocket(socket.socket):
    """One of a pair of sockets, without the options of TCP."""

    def setsockopt(self, *_):
        pass


class HttpAnswers(JsonAnswers):
    """The bytes of the complete response; after them the server is silent, or has closed the connection."""

    corpus = "http_answers"

    def check(self, data):
        sockets = []

        def connection(host, port, timeout_s, made):
            ours, theirs = socket.socketpair()
            sockets.append(theirs)
            theirs.setblocking(False)
            theirs.send(data)  # at most the socket's buffer
            if len(data) % 2:
                theirs.shutdown(socket.SHUT_WR)
            paired = PairedSocket(fileno=ours.detach())
            made(paired)
            return paired

        try:
            with mock.patch("pigeonpost.core.http_client.connected", connection), self.bounded():
                try:
                    JsonFetcher(0.05).ask("http://127.0.0.1/x?secret-key", {"Authorization": "secret"})
                except SensorError as error:
                    self.check_words(error)
                    self.assertNotIn("secret", str(error))
        finally:
            for sock in sockets:
                sock.close()

    @fuzzed(lambda: mutated(st.tuples(st.sampled_from(HEADS), st.sampled_from(BODIES)).map(b"".join),
                            [*PIECES, *HEAD_PIECES], 40_000))  # fmt: skip
    def test_answers_mutated(self, data):
        self.check(data)

    @fuzzed(lambda: mutated(st.sampled_from(HEADS), HEAD_PIECES, 10_000))
    def test_random_json_is_refused_or_parsed(self, data):
        self.check(data)

    def test_endless_response_is_refused(self):
        self.check(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * min(LONGEST_ANSWER, 150_000))


if __name__ == "__main__":
    unittest.main()
