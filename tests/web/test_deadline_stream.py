"""Tests of the deadlines of reads and writes on a socket, and of reading complete heads."""

import io
import socket
import threading
import time
import unittest

from pigeonpost.http.message import HEAD_BYTES, HTTPError
from pigeonpost.web.deadline_stream import DeadlineStream, RequestReader
from tests.support import LIMIT_S

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class StreamCase(unittest.TestCase):
    def setUp(self):
        ours, self.client = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.client.close)
        self.client.settimeout(LIMIT_S)
        self.stream = DeadlineStream(ours)
        self.stream.allow(LIMIT_S)
        self.reader = RequestReader(self.stream)

    def trickle(self, data, step_s=0.01):
        """Send single bytes from a thread until everything is sent or the test has ended."""
        done = threading.Event()

        def send():
            for byte in data:
                self.client.sendall(bytes([byte]))
                if done.wait(step_s):
                    break

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        self.addCleanup(thread.join, LIMIT_S)
        self.addCleanup(done.set)


class Deadlines(StreamCase):
    def test_slow_bytes_do_not_extend_the_read_deadline(self):
        self.trickle(b"x" * 1000)
        began_s = time.monotonic()
        self.stream.allow(0.1)
        with self.assertRaises(TimeoutError):
            self.reader.read(1000)
        self.assertGreater(time.monotonic() - began_s, 0.09)

    def test_read_after_the_deadline_consumes_nothing(self):
        self.client.sendall(b"late")
        self.stream.allow(-1.0)
        self.assertRaises(TimeoutError, self.reader.read, 4)
        self.stream.allow(LIMIT_S)
        self.assertEqual(self.reader.read(4), b"late")

    def test_slow_reader_does_not_extend_the_write_deadline(self):
        """A client that reads slowly does not extend the deadline."""
        writer = io.BufferedWriter(self.stream, 4096)
        done = threading.Event()

        def read():
            while not done.wait(0.005) and self.client.recv(4096):
                pass

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        self.addCleanup(thread.join, LIMIT_S)
        self.addCleanup(done.set)
        self.addCleanup(self.stream.sock.shutdown, socket.SHUT_WR)  # otherwise the thread may wait for more
        self.stream.allow(0.1)
        with self.assertRaises(TimeoutError):
            writer.write(bytes(64 << 20))
        writer.detach()

    def test_closing_the_stream_leaves_the_socket_open(self):
        self.reader.close()
        self.client.sendall(b"x")
        self.assertEqual(self.stream.sock.recv(1), b"x")


class Heads(StreamCase):
    def refused(self, status):
        with self.assertRaises(HTTPError) as caught:
            self.reader.readline(65537)
        self.assertEqual((caught.exception.status, caught.exception.closes), (status, True))

    def test_readline_returns_exactly_the_complete_head(self):
        self.client.sendall(HEAD + b"body")
        self.assertEqual(self.reader.readline(65537), HEAD)
        self.assertEqual((self.reader.ahead, self.reader.read(4)), (4, b"body"))

    def test_pipelined_heads_are_returned_one_by_one(self):
        self.client.sendall(HEAD * 3 + HEAD[:-1])
        self.assertEqual([self.reader.readline() for _ in range(3)], [HEAD] * 3)
        self.client.sendall(HEAD[-1:])
        self.assertEqual((self.reader.readline(), self.reader.ahead), (HEAD, 0))

    def test_head_received_byte_by_byte_is_returned(self):
        self.trickle(HEAD, 0.0)
        self.assertEqual(self.reader.readline(), HEAD)

    def test_long_head_is_separated_from_its_body(self):
        head = HEAD[:-2] + b"X: " + b"x" * (HEAD_BYTES - len(HEAD) - 5) + b"\r\n\r\n"
        body = bytes(range(256)) * 256
        thread = threading.Thread(target=self.client.sendall, args=(head + body,), daemon=True)
        thread.start()
        self.assertEqual((self.reader.readline(), len(head)), (head, HEAD_BYTES))
        self.assertEqual(self.reader.read(len(body)), body)
        thread.join(LIMIT_S)

    def test_silence_returns_an_empty_head(self):
        self.stream.allow(0.02)
        self.assertEqual(self.reader.readline(), b"")

    def test_end_within_a_head_returns_an_empty_head(self):
        self.client.sendall(HEAD[:9])
        self.client.shutdown(socket.SHUT_WR)
        self.assertEqual((self.reader.readline(), self.reader.readline()), (b"", b""))

    def test_incomplete_head_is_408(self):
        self.client.sendall(HEAD[:9])
        self.reader.peek(1)  # ensures that the first part has arrived in time, even on a slow machine
        self.stream.allow(0.05)
        self.refused(408)

    def test_invalid_head_is_refused_immediately(self):
        for data in (b"GET /\rx", b"GET /\n", b"GET / HTTP/1.1\r\nHost: a\rb"):
            self.setUp()
            self.client.sendall(data)
            self.refused(400)

    def test_endless_line_is_refused_at_the_limit(self):
        for first, status in ((b"G" * HEAD_BYTES, 400), (b"GET /".ljust(HEAD_BYTES, b"x"), 414)):
            self.setUp()
            self.client.sendall(first)
            self.refused(status)


if __name__ == "__main__":
    unittest.main()
