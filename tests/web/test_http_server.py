"""Tests of connections, deadlines and limits: no client has to wait because of another one."""

import http.server
import logging
import os
import re
import select
import socket
import struct
import tempfile
import threading
import time
import unittest
from functools import partial
from unittest import mock

from pigeonpost.core.errors import NotStored
from pigeonpost.http.message import HTML, JSON, SAFE_HEADERS, FilePart, HTTPError, Response
from pigeonpost.web import connection_limits, transfers
from pigeonpost.web import http_server as webserver
from pigeonpost.web.connection_limits import Connections, Limits
from pigeonpost.web.deadline_stream import DeadlineStream
from pigeonpost.web.http_server import RequestHandler
from pigeonpost.web.listener import Listener
from tests.support import LIMIT_S, wait_until
from tests.web.support import exchange, next_response, parse_response, read_all

# The times are longer than any wait of a test, so a test that has to wait for one of them fails.
LIMITS = Limits(
    head_s=9 * LIMIT_S, body_s=9 * LIMIT_S, idle_s=9 * LIMIT_S, send_s=9 * LIMIT_S, queue_s=9 * LIMIT_S, at_work=4,
    open=32, downloads=2,
)  # fmt: skip


class Tiny:
    """An application in a few lines."""

    def __init__(self):
        self.gate = threading.Event()  # requests for /wait continue when it is set
        self.adopted = []
        self.path = ""
        self.files = []
        self.seen = []
        self.uploads = []

    def max_body_bytes(self, request):
        return 10 << 20 if request.path.startswith("/upload") else 1000

    def body_consumer(self, request, length):
        if not request.path.startswith("/upload"):
            return None
        if request.query_text == "unwanted":
            raise HTTPError(401, "Not from you.")
        if request.query_text == "broken":
            raise KeyError("a secret of this program")
        self.uploads.append(Upload(length, request.query_text))
        return self.uploads[-1]

    def respond(self, request):
        if request.consumer is not None:
            return request.consumer.finish()
        self.seen.append((request.method, request.path, request.body, request.peer))
        if request.path == "/wait":
            self.gate.wait(LIMIT_S)
        elif request.path == "/fault":
            raise KeyError("a secret of this program")
        elif request.path == "/database":
            raise NotStored("PostgreSQL at a secret place does not answer")
        elif request.path == "/elsewhere":
            return Response(b"", HTML, 303, {"Location": "/login"})
        elif request.path == "/unchanged":
            return Response(status=304)
        elif request.path == "/refused":
            raise HTTPError(403, "No.")
        elif request.path == "/refused-for-good":
            raise HTTPError(403, "No, and go.", closes=True)
        elif request.path == "/huge":
            return Response(bytes(16 << 20))
        elif request.path == "/stream":
            return Response(kind="text/event-stream", live=self.adopted.append)
        elif request.path == "/file":
            return self._file(request)
        return Response(request.body or request.path.encode())

    def _file(self, request):
        fd = os.open(self.path, os.O_RDONLY)
        self.files.append(fd)
        start, _, length = request.query_text.partition("-")
        return Response(kind="text/csv", file=FilePart(fd, int(start or 0), int(length or os.fstat(fd).st_size)))

    def error_page(self, request, error):
        return Response(f"{error.text}\n".encode(), status=error.status, headers=error.headers)


class Handler(RequestHandler):
    """Handler that delegates everything to its Tiny."""

    def __init__(self, app, *connection):
        self.app = app
        super().__init__(*connection)

    def do_GET(self):
        self.serve(self.app.respond)

    do_HEAD = do_POST = do_GET

    def max_body_bytes(self, request):
        return self.app.max_body_bytes(request)

    def body_consumer(self, request, length):
        return self.app.body_consumer(request, length)

    def takes_encoded(self, request):
        return request.path == "/upload/encoded"

    def error_page(self, request, error):
        return self.app.error_page(request, error)


class Upload:
    """BodyConsumer that records its calls."""

    is_proven = True

    def __init__(self, length, wish):
        self.length, self.wish = length, wish
        self.data = b""
        self.end = ""

    def take(self, data):
        self.data += data
        if self.wish == "refuse":
            raise HTTPError(415, "Not this.")
        if self.wish == "break":
            raise KeyError("a secret of this program")

    def finish(self):
        self.end = "finished"
        return Response(b"%d" % len(self.data))

    def abandon(self):
        self.end = "abandoned"


class ServerCase(unittest.TestCase):
    limits = LIMITS

    def setUp(self):
        self.app = Tiny()
        self.connections = Connections(self.limits)
        self.listener = Listener(("127.0.0.1", 0), partial(Handler, self.app), self.connections, self.limits)
        self.address = self.listener.server_address[:2]
        thread = threading.Thread(target=self.listener.serve_forever, args=(0.002,), daemon=True)
        thread.start()
        self.addCleanup(self.stop)
        logging.getLogger("pigeonpost.web.http_server").setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger("pigeonpost.web.http_server").setLevel, logging.NOTSET)

    def stop(self):
        self.app.gate.set()
        self.listener.shutdown()
        self.listener.server_close()
        self.connections.stop(LIMIT_S)
        for sock in self.app.adopted:
            sock.close()
        wait_until(lambda: not self.counts["open"] and not self.counts["at_work"], "all connections ended")

    @property
    def counts(self):
        return self.connections.counts()

    def connect(self, data=b""):
        sock = socket.create_connection(self.address, LIMIT_S)
        self.addCleanup(sock.close)
        sock.sendall(data)
        return sock

    def ask(self, path="/", *lines, method="GET", body=b"", close=True):
        """Return a complete request as bytes."""
        head = [f"{method} {path} HTTP/1.1", "Host: a", *(["Connection: close"] if close else []), *lines, "", ""]
        return "\r\n".join(head).encode() + body

    def get(self, path="/", *lines, **more):
        """Send one request on a new connection, and return (status, headers, body)."""
        with socket.create_connection(self.address, LIMIT_S) as sock:
            data = exchange(sock, self.ask(path, *lines, **more), ends=False)
        return parse_response(data, is_head=more.get("method") == "HEAD")

    def statuses(self, data, heads=False):
        """Return the statuses of all responses in `data`."""
        found = []
        while data:
            status, _, _, data = next_response(data, heads)
            found.append(status)
        return found

    def is_served(self):
        """Check that an honest client gets its response within LIMIT_S."""
        self.assertEqual(self.get("/honest")[::2], (200, b"/honest"))


class KeepAlive(ServerCase):
    def test_request_gets_a_response(self):
        status, headers, body = self.get("/hello")
        self.assertEqual((status, body), (200, b"/hello"))
        self.assertEqual((headers["content-length"], headers["connection"]), ("6", "close"))
        self.assertNotIn("server", headers)
        self.assertEqual(self.app.seen, [("GET", "/hello", b"", "127.0.0.1")])
        wait_until(lambda: self.counts["open"] == 0, "the connection is counted out")
        self.assertEqual(self.counts["answers"], {200: 1})

    def test_connection_is_kept_alive(self):
        sock = self.connect()
        for number in range(20):
            sock.sendall(self.ask(f"/{number}", close=False))
            status, headers, body, rest = next_response(self.read_one(sock))
            self.assertEqual((status, body, rest), (200, b"/%d" % number, b""))
            self.assertNotIn("connection", headers)
        self.assertEqual(self.counts["open"], 1)
        sock.sendall(self.ask("/last"))
        self.assertEqual(next_response(read_all(sock))[1]["connection"], "close")

    def read_one(self, sock):
        """Read until one response is complete."""
        data = b""
        while True:
            data += sock.recv(1 << 16)
            if b"\r\n\r\n" in data:
                try:
                    next_response(data)
                except AssertionError:
                    continue
                return data

    def test_http_1_0_closes_by_default(self):
        sock = self.connect(b"GET /a HTTP/1.0\r\n\r\n")
        self.assertEqual(parse_response(read_all(sock))[1]["connection"], "close")
        sock = self.connect(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        self.assertEqual(next_response(self.read_one(sock))[1]["connection"], "keep-alive")
        sock.sendall(b"GET /b HTTP/1.0\r\n\r\n")
        self.assertEqual(parse_response(read_all(sock))[2], b"/b")

    def test_pipelined_requests_are_answered_in_order(self):
        data = b"".join(self.ask(f"/{number}", close=False) for number in range(50)) + self.ask("/last")
        sock = self.connect(data)
        answers = read_all(sock)
        bodies = []
        while answers:
            _, _, body, answers = next_response(answers)
            bodies.append(body)
        self.assertEqual(bodies, [b"/%d" % number for number in range(50)] + [b"/last"])

    def test_pipelined_posts_received_byte_by_byte_are_answered(self):
        one = self.ask("/p", "Content-Length: 5", method="POST", body=b"12\r\n5", close=False)
        sock = self.connect()
        for at in range(len(data := one + one + self.ask("/last"))):
            sock.sendall(data[at : at + 1])
        self.assertEqual(self.statuses(read_all(sock)), [200, 200, 200])
        self.assertEqual([body for _, _, body, _ in self.app.seen], [b"12\r\n5", b"12\r\n5", b""])

    def test_bytes_after_a_refused_request_are_not_a_request(self):
        """The bytes could be the body of the refused request that looks like a request (request smuggling)."""
        for first in (
            self.ask("/p", method="POST", close=False), b"BAD\r\n\r\n",
            self.ask("/p", "Transfer-Encoding: chunked", method="POST", close=False),
            self.ask("/p", "Content-Length: 5000", method="POST", close=False), self.ask("/refused-for-good",
            close=False),
        ):  # fmt: skip
            with self.subTest(first[:40]):
                self.app.seen.clear()
                sock = self.connect(first + self.ask("/smuggled"))
                status, headers, _ = parse_response(read_all(sock))
                self.assertGreaterEqual(status, 400)
                self.assertEqual(headers["connection"], "close")
                self.assertNotIn("/smuggled", [path for _, path, _, _ in self.app.seen])

    def test_request_after_an_application_error_is_answered(self):
        sock = self.connect(self.ask("/refused", close=False) + self.ask("/next"))
        self.assertEqual(self.statuses(read_all(sock)), [403, 200])

    def test_head_has_no_body(self):
        sock = self.connect(self.ask("/hello", method="HEAD", close=False) + self.ask("/hello"))
        data = read_all(sock)
        status, headers, body, rest = next_response(data, is_head=True)
        self.assertEqual((status, headers["content-length"], body), (200, "6", b""))
        self.assertEqual(parse_response(rest)[2], b"/hello")

    def test_aborted_connections_are_counted_out(self):
        for data in (b"", b"GET", self.ask("/p", "Content-Length: 50", method="POST", body=b"half")):
            sock = self.connect(data)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self.is_served()
        wait_until(lambda: self.counts["open"] == 0, "all are counted out")

    def test_half_closed_connection_gets_its_response(self):
        """nc closes its half at the end of its input."""
        sock = self.connect()
        self.assertEqual(parse_response(exchange(sock, self.ask("/a", close=False), ends=True))[2], b"/a")


class Responses(ServerCase):
    """Responses, including the differences to BaseHTTPRequestHandler."""

    def test_server_and_handler_are_based_on_http_server(self):
        self.assertIsInstance(self.listener, http.server.ThreadingHTTPServer)
        self.assertTrue(issubclass(RequestHandler, http.server.BaseHTTPRequestHandler))
        self.assertTrue(self.listener.daemon_threads)

    def test_response_head_has_the_expected_headers(self):
        data = exchange(self.connect(), self.ask("/hello"), ends=False)
        first, *lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        self.assertEqual(first, "HTTP/1.1 200 OK")
        found = dict(line.split(": ", 1) for line in lines)
        self.assertEqual(len(found), len(lines), "no header comes twice")
        self.assertEqual(list(found), ["Date", "Content-Type", *SAFE_HEADERS, "Content-Length", "Connection"])
        self.assertRegex(found["Date"], r"^[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} 20\d\d \d\d:\d\d:\d\d GMT$")
        self.assertEqual(found["Content-Type"], "text/plain; charset=utf-8")
        self.assertEqual({name: found[name] for name in SAFE_HEADERS}, SAFE_HEADERS)

    def test_headers_of_the_application_are_sent(self):
        data = exchange(self.connect(), self.ask("/elsewhere"), ends=False)
        self.assertTrue(data.startswith(b"HTTP/1.1 303 See Other\r\nDate: "))
        self.assertIn(b"\r\nLocation: /login\r\n", data)
        self.assertIn(b"\r\nContent-Length: 0\r\n", data)

    def test_not_modified_has_no_length(self):
        sock = self.connect(self.ask("/unchanged", close=False) + self.ask("/next"))
        data = read_all(sock)
        self.assertTrue(data.startswith(b"HTTP/1.1 304 Not Modified\r\n"))
        self.assertNotIn(b"Content-Length", data.partition(b"\r\n\r\n")[0])
        self.assertTrue(data.endswith(b"/next"))

    def test_head_and_body_leave_in_one_write(self):
        """Two writes would be two packets: the client wakes up twice, and a delayed ACK can delay the second one."""
        writes = []
        write = DeadlineStream.write
        with mock.patch.object(DeadlineStream, "write", lambda *args: writes.append(write(*args)) or writes[-1]):
            data = exchange(self.connect(), self.ask("/p", "Content-Length: 1000", method="POST", body=b"x" * 1000))
        self.assertEqual(writes, [len(data)])

    def test_unknown_methods_get_our_error_page(self):
        for line in (b"BREW / HTTP/1.1", b"OTHER / HTTP/1.1", b"HTTP/1.1 / HTTP/1.1", b"get / HTTP/1.1"):
            sock = self.connect(line.replace(b"HTTP/1.1 /", b"X /") + b"\r\nHost: a\r\n\r\n" + self.ask("/smuggled"))
            status, headers, body = parse_response(read_all(sock))
            self.assertEqual((status, headers["connection"], body), (501, "close", b"Not Implemented.\n"))
            self.assertNotIn("server", headers)
        self.assertEqual(self.app.seen, [])

    def test_client_that_disconnects_is_not_an_internal_error(self):
        logging.getLogger("pigeonpost.web.http_server").setLevel(logging.NOTSET)
        before = set(threading.enumerate())
        with self.assertNoLogs("pigeonpost.web.http_server", "INFO"):
            sock = self.connect(self.ask("/huge"))
            sock.recv(1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            wait_until(lambda: self.counts["answers"] and not self.counts["open"], "it is counted out")
            wait_until(lambda: before.issuperset(threading.enumerate()), "its thread has ended")


class Bodies(ServerCase):
    def test_body_is_received(self):
        status, _, body = self.get("/p", "Content-Length: 1000", method="POST", body=b"x" * 1000)
        self.assertEqual((status, body), (200, b"x" * 1000))

    def test_application_limits_the_body_length(self):
        status, headers, _body = self.get("/p", "Content-Length: 1001", method="POST", body=b"x" * 1001)
        self.assertEqual((status, headers["connection"]), (413, "close"))
        self.assertEqual(self.app.seen, [])

    def test_expect_100_continue_is_answered(self):
        head = self.ask("/p", "Content-Length: 5", "Expect: 100-Continue", method="POST")
        sock = self.connect(head)
        self.assertEqual(sock.recv(1000), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(parse_response(exchange(sock, b"12345", ends=False))[2], b"12345")

    def test_no_100_continue_if_the_body_is_present_or_refused(self):
        for lines, body, status in (
            (("Content-Length: 5",), b"12345", 200), (("Content-Length: 0",), b"", 200),
            (("Content-Length: 1001",), b"", 413), (("Transfer-Encoding: chunked",), b"", 501),
        ):  # fmt: skip
            found = self.get("/p", "Expect: 100-continue", *lines, method="POST", body=body)
            self.assertEqual(found[0], status)

    def test_unknown_expectation_is_417(self):
        self.assertEqual(self.get("/p", "Expect: 200-ok", "Content-Length: 0", method="POST")[0], 417)

    def test_http_1_0_gets_no_100_continue(self):
        sock = self.connect(b"POST /p HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        self.assertEqual(parse_response(exchange(sock, b"12345", ends=False))[0], 200)

    def test_refusal_arrives_while_the_client_still_sends(self):
        """Closing with unread bytes would reset the connection and lose the response."""
        body = bytes(700_000)
        status, _, text = self.get("/p", f"Content-Length: {len(body)}", method="POST", body=body)
        self.assertEqual((status, text), (413, b"The body may have at most 1000 bytes.\n"))


class Deadlines(ServerCase):
    limits = LIMITS._replace(head_s=0.05, body_s=0.05, idle_s=0.05)

    def patiently(self, attempt):
        """Return the result of `attempt`. Try again if it is empty: on a busy machine, a byte may arrive too late."""
        began_s = []
        data = wait_until(lambda: began_s.append(time.monotonic()) or attempt(), "an answer")
        self.assertGreater(time.monotonic() - began_s[-1], 0.045)
        return data

    def drip(self, first, rest):
        """Send `first`, then one byte at a time until there is a response. Return the response."""
        sock = self.connect(first)
        began_s, bytes_left = time.monotonic(), iter(rest)
        while not select.select([sock], [], [], 0.01)[0]:
            sock.sendall(bytes([next(bytes_left)]))
            self.assertLess(time.monotonic() - began_s, LIMIT_S)
        return read_all(sock)

    def test_incomplete_head_is_408(self):
        data = self.patiently(lambda: read_all(self.connect(b"GET / HTTP/1.1\r\nHost: a\r\n")))
        self.assertEqual(parse_response(data)[0], 408)

    def test_slow_bytes_do_not_extend_the_head_deadline(self):
        """The deadline applies to the complete head. It does not restart with each byte."""
        request = self.ask("/", "X-Long: " + "x" * 5000)
        data = self.patiently(lambda: self.drip(request[:9], request[9:]))
        self.assertEqual(parse_response(data)[0], 408)

    def test_slow_bytes_do_not_extend_the_body_deadline(self):
        head = self.ask("/p", "Content-Length: 900", method="POST")
        data = self.patiently(lambda: self.drip(head, b"x" * 900))
        self.assertEqual(parse_response(data)[0], 408)
        self.assertEqual(self.app.seen, [])

    def test_silent_connection_is_closed(self):
        began_s = time.monotonic()
        self.assertEqual(read_all(self.connect()), b"")
        self.assertGreater(time.monotonic() - began_s, 0.045)

    def test_idle_connection_is_closed(self):
        data = self.patiently(lambda: read_all(self.connect(self.ask("/", close=False))))
        self.assertEqual(self.statuses(data), [200])

    def test_incomplete_second_head_is_408(self):
        data = self.patiently(lambda: read_all(self.connect(self.ask("/", close=False) + b"GET / HT")))
        self.assertEqual(self.statuses(data), [200, 408])


class UnreadResponses(ServerCase):
    limits = LIMITS._replace(send_s=0.1)

    def test_client_that_does_not_read_loses_its_slot(self):
        """Its slot is free again after the time limit of a response."""
        socks = [self.connect(self.ask("/huge")) for _ in range(self.limits.at_work)]
        wait_until(lambda: len(self.app.seen) == len(socks), "all are at work")
        wait_until(lambda: self.counts["at_work"] == 0, "all are aborted")
        self.is_served()

    def test_slow_reading_does_not_extend_the_deadline(self):
        """The deadline applies to the complete response. It does not restart with each byte."""
        sock = self.connect(self.ask("/huge"))
        began_s = time.monotonic()
        wait_until(lambda: sock.recv(1) and self.app.seen and self.counts["at_work"] == 0, "it is aborted")
        self.assertLess(time.monotonic() - began_s, LIMIT_S)
        self.is_served()

    def test_incomplete_body_is_408(self):
        sock = self.connect()
        data = exchange(sock, self.ask("/p", "Content-Length: 900", method="POST", body=b"x"), ends=True)
        self.assertEqual(parse_response(data)[0], 408)


class Slowloris(ServerCase):
    limits = LIMITS._replace(open=48)

    def test_400_incomplete_requests_do_not_block_others(self):
        socks = []
        for number in range(400):
            sock = socket.socket()
            self.addCleanup(sock.close)
            sock.settimeout(LIMIT_S)
            sock.connect(self.address)
            sock.sendall(b"GET /slow HTTP/1.1\r\nX-a: b")
            socks.append(sock)
            if number % 50 == 49:
                self.is_served()
        self.assertLessEqual(self.counts["open"], self.limits.open)
        wait_until(lambda: self.counts["cut_off"] >= 400 - self.limits.open, "the longest waiting are cut off")
        wait_until(lambda: threading.active_count() < 2 * self.limits.open, "and their threads end")
        for _ in range(10):
            self.is_served()
        self.assertEqual(self.app.seen, [("GET", "/honest", b"", "127.0.0.1")] * 18)

    def test_connection_of_the_address_with_most_connections_is_closed(self):
        """127.0.0.2 has one idle connection, the oldest. 127.0.0.1 has all others, and its connections are closed."""
        other = socket.create_connection(self.address, LIMIT_S, source_address=("127.0.0.2", 0))
        self.addCleanup(other.close)
        other.sendall(b"GET /other HTTP/1.1\r\n")
        wait_until(lambda: self.counts["open"] == 1, "the other is there")
        for _ in range(2 * self.limits.open):
            self.connect(b"GET /slow HTTP/1.1\r\n")
        wait_until(lambda: self.counts["cut_off"] >= self.limits.open, "some are cut off")
        self.assertEqual(parse_response(exchange(other, b"Host: a\r\nConnection: close\r\n\r\n"))[2], b"/other")

    def test_new_connection_is_503_if_all_are_in_progress(self):
        """If all open connections have requests in progress, another client gets 503."""
        self.connections._limits = self.limits._replace(open=2, at_work=2, queue_s=0.02)
        for _ in range(2):
            self.connect(self.ask("/wait"))
        wait_until(lambda: self.counts["at_work"] == 2, "both are at work")
        status, headers, _ = self.get("/more")
        self.assertEqual((status, headers["retry-after"], headers["connection"]), (503, "1", "close"))
        self.app.gate.set()
        wait_until(lambda: self.counts["open"] == 0, "both are done")
        self.is_served()


class RequestSlots(ServerCase):
    def test_request_without_a_free_slot_is_503(self):
        self.connections._limits = self.limits._replace(queue_s=0.02)
        socks = [self.connect(self.ask("/wait")) for _ in range(self.limits.at_work)]
        wait_until(lambda: self.counts["at_work"] == len(socks), "all places are taken")
        status, headers, _ = self.get("/more")
        self.assertEqual((status, headers["retry-after"], headers["connection"]), (503, "1", "close"))
        self.app.gate.set()
        for sock in socks:
            self.assertEqual(parse_response(read_all(sock))[0], 200)
        self.is_served()
        self.assertEqual(self.counts["cut_off"], 0)

    def test_waiting_request_gets_a_free_slot(self):
        socks = [self.connect(self.ask("/wait")) for _ in range(self.limits.at_work + 3)]
        wait_until(lambda: len(self.app.seen) == self.limits.at_work, "all places are taken")
        self.app.gate.set()
        for sock in socks:
            self.assertEqual(parse_response(read_all(sock))[0], 200)

    def test_incomplete_requests_occupy_no_slot(self):
        for _ in range(3 * self.limits.at_work):
            self.connect(b"GET / HTTP/1.1\r\n")
            self.connect(self.ask("/p", "Content-Length: 9", method="POST"))
        wait_until(lambda: self.counts["open"] == 6 * self.limits.at_work, "all are there")
        self.assertEqual(self.counts["at_work"], 0)
        self.is_served()

    def test_unread_responses_are_closed_for_waiting_requests(self):
        self.connections._limits = self.limits._replace(queue_s=0.2)
        with mock.patch.object(connection_limits, "_STUCK_S", 0.05):
            for _ in range(self.limits.at_work):
                self.connect(self.ask("/huge"))
            wait_until(lambda: self.counts["at_work"] == self.limits.at_work, "all places are taken")
            wait_until(lambda: self.is_given_a_place(), "one is cut off")
        self.assertGreater(self.counts["cut_off"], 0)

    def is_given_a_place(self):
        return self.get("/honest")[0] == 200


class ApplicationErrors(ServerCase):
    def test_unavailable_database_is_503(self):
        """The response is 503 without the address of the database. The log gets one line."""
        logging.getLogger("pigeonpost.web.http_server").setLevel(logging.NOTSET)
        with self.assertLogs("pigeonpost.web.http_server", "WARNING") as logged:
            sock = self.connect(self.ask("/database", close=False) + self.ask("/next"))
            status, _, body, rest = next_response(read_all(sock))
        self.assertEqual((status, parse_response(rest)[2]), (503, b"/next"))
        self.assertNotIn(b"secret", body)
        self.assertIn("GET /database: PostgreSQL at a secret place", logged.output[0])

    def test_exception_in_the_application_is_500_with_an_id(self):
        """The response is 500 with an id and without a traceback. The log gets the traceback."""
        logging.getLogger("pigeonpost.web.http_server").setLevel(logging.NOTSET)
        with self.assertLogs("pigeonpost.web.http_server", "ERROR") as logged:
            sock = self.connect(self.ask("/fault", close=False) + self.ask("/next"))
            status, _headers, body, rest = next_response(read_all(sock))
        self.assertEqual(status, 500)
        number = re.fullmatch(rb"Internal error\. See ([0-9a-f]{8}) in the log of the server\.\n", body)[1].decode()
        self.assertEqual(parse_response(rest)[2], b"/next")
        self.assertIn(f"127.0.0.1: internal error {number} in GET /fault", logged.output[0])
        self.assertIn("KeyError: 'a secret of this program'", logged.output[0])
        self.assertEqual(self.counts["answers"], {500: 1, 200: 1})

    def test_every_internal_error_has_its_own_id(self):
        self.assertEqual(len({self.get("/fault")[2] for _ in range(10)}), 10)
        self.assertEqual(self.counts["at_work"], 0)

    def test_exception_in_the_error_page_ends_only_the_connection(self):
        with mock.patch.object(self.app, "error_page", side_effect=ZeroDivisionError):
            sock = self.connect(self.ask("/refused"))
            self.assertEqual(read_all(sock), b"")
        self.is_served()
        wait_until(lambda: self.counts["open"] == 0 and self.counts["at_work"] == 0, "it is counted out")


class FileResponses(ServerCase):
    def setUp(self):
        super().setUp()
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.addCleanup(file.close)
        self.content = os.urandom(1 << 16) * 4
        file.write(self.content)
        file.flush()
        self.app.path = file.name

    def is_closed(self, fd):
        try:
            return not os.path.samestat(os.fstat(fd), os.stat(self.app.path))
        except OSError:
            return True

    def are_closed(self):
        wait_until(lambda: all(map(self.is_closed, self.app.files)), "the files are closed")

    def test_complete_file_is_sent(self):
        status, headers, body = self.get("/file")
        self.assertEqual((status, headers["content-length"]), (200, str(len(self.content))))
        self.assertEqual(body, self.content)
        self.are_closed()

    def test_part_of_a_file_is_sent(self):
        for start, length in ((0, 1), (5, 1000), (100_000, 162_144)):
            _, headers, body = self.get(f"/file?{start}-{length}")
            self.assertEqual(body, self.content[start : start + length])
            self.assertEqual(headers["content-length"], str(length))

    def test_file_is_sent_with_sendfile(self):
        calls = []
        original = os.sendfile

        def sendfile(*args):
            calls.append(args)
            return original(*args)

        with mock.patch.object(webserver.os, "sendfile", sendfile):
            self.assertEqual(self.get("/file")[2], self.content)
        self.assertTrue(calls)

    def test_connection_continues_after_a_file(self):
        sock = self.connect(self.ask("/file?0-5", close=False) * 2 + self.ask("/next"))
        self.assertEqual(self.statuses(read_all(sock)), [200, 200, 200])

    def test_head_request_of_a_file_has_no_body(self):
        status, headers, body = self.get("/file", method="HEAD")
        self.assertEqual((status, headers["content-length"], body), (200, str(len(self.content)), b""))
        self.are_closed()

    def test_shortened_file_ends_the_connection(self):
        """The announced length cannot be sent, so the client can detect that data is missing."""
        sock = self.connect(self.ask("/file?0-999999", close=False))
        data = read_all(sock)
        self.assertTrue(data.endswith(self.content))
        self.assertIn(b"Content-Length: 999999\r\n", data)
        self.are_closed()
        self.is_served()

    def stuck(self):
        """Start a download by a client with a small buffer that reads nothing."""
        sock = socket.socket()
        self.addCleanup(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.settimeout(LIMIT_S)
        sock.connect(self.address)
        ours = sock.getsockname()
        (there,) = wait_until(lambda: [one for one in list(self.connections._all) if one.client_address == ours])
        there.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # otherwise the kernel buffers megabytes
        sock.sendall(self.ask("/file"))
        return sock

    def make_large(self):
        os.truncate(self.app.path, 64 << 20)  # far more than the kernel buffers for a client that does not read

    def test_stuck_downloads_do_not_block_pages(self):
        self.make_large()
        for _ in range(self.limits.downloads):
            self.stuck()
        wait_until(lambda: self.counts["downloads"] == self.limits.downloads, "all are under way")
        self.assertEqual(self.counts["at_work"], 0)
        for _ in range(2 * self.limits.at_work):
            self.is_served()
        status, headers, _ = self.get("/file")
        self.assertEqual((status, headers["retry-after"], headers["connection"]), (503, "1", "close"))

    def test_ended_download_frees_its_slot(self):
        self.make_large()
        socks = [self.stuck() for _ in range(self.limits.downloads)]
        wait_until(lambda: self.counts["downloads"] == self.limits.downloads, "all are under way")
        socks[0].close()
        wait_until(lambda: self.counts["downloads"] < self.limits.downloads, "one has ended")
        self.assertEqual(self.get("/file?0-5")[0], 200)

    def test_stalled_download_is_closed(self):
        self.make_large()
        with mock.patch.object(transfers, "_STALL_S", 0.03):
            self.stuck()
            wait_until(lambda: self.app.files, "it is under way")
            wait_until(lambda: self.counts["downloads"] == 0, "it is given up")
        self.are_closed()
        wait_until(lambda: self.counts["open"] == 0, "it is counted out")

    def test_too_slow_download_is_closed(self):
        """There is a minimum speed, so a client cannot occupy a thread permanently with single bytes."""
        self.make_large()
        now = [1000.0]
        with mock.patch.object(webserver.time, "monotonic", lambda: now[0]):
            sock = self.stuck()
            wait_until(lambda: self.counts["downloads"] == 1, "it is under way")
            now[0] += 3600 * 24
            while sock.recv(1 << 16):
                pass
            wait_until(lambda: self.counts["downloads"] == 0, "it is given up")


class StreamResponses(ServerCase):
    def test_socket_of_a_stream_is_handed_over(self):
        sock = self.connect(self.ask("/stream", close=False))
        wait_until(lambda: self.app.adopted, "it is handed over")
        mine = self.app.adopted[0]
        self.assertEqual((self.counts["open"], self.counts["at_work"]), (0, 0))
        mine.sendall(b"data: 1\n\n")
        mine.close()
        status, headers, body = parse_response(read_all(sock))
        self.assertEqual((status, body), (200, b"data: 1\n\n"))
        self.assertEqual((headers["content-type"], headers["connection"]), ("text/event-stream", "close"))
        self.assertNotIn("content-length", headers)

    def test_stream_stays_open_after_its_thread_has_ended(self):
        sock = self.connect(self.ask("/stream"))
        wait_until(lambda: self.app.adopted, "it is handed over")
        wait_until(
            lambda: not [t for t in threading.enumerate() if "process_request" in t.name], "its thread has ended"
        )
        self.is_served()
        self.app.adopted[0].sendall(b"x")
        self.app.adopted[0].close()
        self.assertTrue(read_all(sock).endswith(b"\r\n\r\nx"))

    def test_head_request_of_a_stream_has_no_body(self):
        status, _, body = self.get("/stream", method="HEAD")
        self.assertEqual((status, body, self.app.adopted), (200, b"", []))


class Stopping(ServerCase):
    def test_stop_does_not_wait_for_idle_clients(self):
        socks = [self.connect(), self.connect(b"GET / HT"), self.connect(self.ask("/", close=False))]
        wait_until(lambda: self.counts["open"] == 3 and self.counts["answers"], "all are there")
        wait_until(lambda: self.counts["at_work"] == 0, "no request is in progress")
        self.listener.shutdown()
        self.listener.server_close()
        self.assertIsNone(self.connections.stop(LIMIT_S))
        for sock in socks:
            read_all(sock)

    def test_request_in_progress_is_answered_during_stop(self):
        sock = self.connect(self.ask("/wait", close=False))
        wait_until(lambda: self.counts["at_work"] == 1, "it is at work")
        told = []
        thread = threading.Thread(target=lambda: told.append(self.connections.stop(LIMIT_S)))
        thread.start()
        wait_until(lambda: self.connections.is_stopping, "it stops")
        self.app.gate.set()
        thread.join(LIMIT_S)
        self.assertEqual(told, [None])
        self.assertEqual(parse_response(read_all(sock))[2], b"/wait")

    def test_stop_has_a_time_limit_and_reports_the_rest(self):
        sock = self.connect(self.ask("/wait"))
        wait_until(lambda: self.counts["at_work"] == 1, "it is at work")
        self.assertEqual(self.connections.stop(0.05), "1 connection closed before the end of the response")
        self.assertEqual(read_all(sock), b"")

    def test_connection_after_stop_is_503(self):
        self.connections.stop(LIMIT_S)
        self.assertEqual(self.get("/")[0], 503)
        self.assertEqual(self.app.seen, [])


class Addresses(unittest.TestCase):
    def test_host_name_is_not_looked_up(self):
        """http.server would look up the host name in the DNS, and wait if there is no DNS server."""
        with (
            mock.patch("socket.getfqdn", side_effect=AssertionError),
            Listener(("127.0.0.1", 0), Handler, Connections(LIMITS), LIMITS) as listener,
        ):
            self.assertEqual((listener.server_name, listener.server_port), listener.server_address)

    def test_address_in_use_raises_an_error(self):
        with socket.create_server(("127.0.0.1", 0)) as taken, self.assertRaises(OSError):
            Listener(taken.getsockname(), Handler, Connections(LIMITS), LIMITS)

    def test_ipv4_mapped_addresses_are_shown_as_ipv4(self):
        if not socket.has_dualstack_ipv6():
            self.skipTest("no IPv6 here")
        app, connections = Tiny(), Connections(LIMITS)
        with Listener(("::", 0), partial(Handler, app), connections, LIMITS) as listener:
            threading.Thread(target=listener.serve_forever, args=(0.002,), daemon=True).start()
            self.addCleanup(connections.stop, LIMIT_S)
            self.addCleanup(listener.shutdown)
            for host in ("127.0.0.1", "::1"):
                with socket.create_connection((host, listener.server_address[1]), LIMIT_S) as sock:
                    exchange(sock, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            self.assertEqual([peer for _, _, _, peer in app.seen], ["127.0.0.1", "::1"])


class DefaultLimits(unittest.TestCase):
    def test_default_limits_are_those_of_the_documentation(self):
        """The documented limits are 5 s for the complete head and 32 requests in progress."""
        self.assertEqual((Limits().head_s, Limits().at_work), (5.0, 32))
        self.assertEqual(JSON, "application/json")


class LongBodies(ServerCase):
    """Bodies that a BodyConsumer receives block by block."""

    def upload(self, body, length=None, query=""):
        return self.ask(f"/upload{query}", f"Content-Length: {len(body) if length is None else length}",
                        method="POST", body=body, close=False)  # fmt: skip

    def test_consumer_receives_exactly_the_body(self):
        body = os.urandom(3 << 20)
        with self.connect(self.upload(body) + self.upload(b"") + self.ask("/next")) as sock:
            data = read_all(sock)
        first, second = self.app.uploads
        self.assertEqual((first.data == body, first.length, first.end), (True, len(body), "finished"))
        self.assertEqual((second.data, second.end), (b"", "finished"))
        self.assertEqual(self.statuses(data), [200, 200, 200])
        self.assertEqual(self.app.seen, [("GET", "/next", b"", "127.0.0.1")])

    def test_interrupted_body_is_abandoned(self):
        with self.connect(self.upload(b"x" * 99, 100)):
            wait_until(lambda: self.app.uploads and len(self.app.uploads[0].data) == 99, "99 % has arrived")
        wait_until(lambda: self.app.uploads[0].end == "abandoned", "it is abandoned")
        self.is_served()

    def test_stalled_body_is_abandoned_with_408(self):
        with mock.patch.object(transfers, "_STALL_S", 0.03), self.connect(self.upload(b"x" * 99, 100)) as sock:
            self.assertEqual(self.statuses(read_all(sock)), [408])
        self.assertEqual(self.app.uploads[0].end, "abandoned")

    def test_too_slow_body_is_abandoned_with_408(self):
        real = time.monotonic
        with self.connect(self.upload(b"x" * 9, 100)) as sock:
            wait_until(lambda: self.app.uploads and len(self.app.uploads[0].data) == 9, "99 % has arrived")
            with mock.patch.object(webserver.time, "monotonic", lambda: real() + 61.0):
                sock.sendall(b"x")
                self.assertEqual(self.statuses(read_all(sock)), [408])
        self.assertEqual(self.app.uploads[0].end, "abandoned")

    def test_refusal_by_the_consumer_ends_the_connection(self):
        with self.connect(self.upload(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000, query="?refuse")) as sock:
            self.assertEqual(self.statuses(read_all(sock)), [415])
        self.assertEqual(self.app.uploads[0].end, "abandoned")
        self.assertEqual(self.app.seen, [])

    def test_refused_body_is_not_the_next_request(self):
        with self.connect(self.upload(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000, query="?unwanted")) as sock:
            self.assertEqual(self.statuses(read_all(sock)), [401])
        self.assertEqual((self.app.uploads, self.app.seen), ([], []))

    def test_too_long_body_is_refused_before_it_is_read(self):
        with self.connect(self.upload(b"", 11 << 20)) as sock:
            self.assertEqual(self.statuses(read_all(sock)), [413])
        self.assertEqual(self.app.uploads, [])

    def test_body_without_a_free_slot_is_abandoned(self):
        self.connections._limits = self.limits._replace(queue_s=0.02)
        waiting = [self.connect(self.ask("/wait")) for _ in range(LIMITS.at_work)]
        wait_until(lambda: self.counts["at_work"] == len(waiting), "all places are taken")
        with self.connect(self.upload(b"body")) as sock:
            self.assertEqual(self.statuses(read_all(sock)), [503])
        self.assertEqual(self.app.uploads[0].end, "abandoned")


class ChunkedBodies(ServerCase):
    """Bodies in chunks (RFC 9112, section 7.1), which only some addresses accept."""

    def upload(self, body, *lines, path="/upload/encoded"):
        return self.ask(path, "Transfer-Encoding: chunked", *lines, method="POST", body=body, close=False)

    @staticmethod
    def chunks(*parts):
        return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))

    def test_consumer_receives_the_joined_chunks(self):
        parts = [os.urandom(size) for size in (1, 16, 255, 300_000, 1 << 20)]
        body = self.chunks(*parts).replace(b"ff\r\n", b"00000FF\r\n", 1)
        with self.connect(self.upload(body) + self.upload(self.chunks()) + self.ask("/next")) as sock:
            self.assertEqual(self.statuses(read_all(sock)), [200, 200, 200])
        self.assertEqual([upload.data for upload in self.app.uploads], [b"".join(parts), b""])
        self.assertEqual([upload.end for upload in self.app.uploads], ["finished", "finished"])
        self.assertEqual(self.app.seen, [("GET", "/next", b"", "127.0.0.1")])

    def test_chunks_are_refused_at_other_addresses_and_in_http_1_0(self):
        with self.connect(self.upload(self.chunks(b"x"), path="/upload")) as sock:
            self.assertEqual(self.statuses(read_all(sock)), [501])
        old = self.upload(self.chunks(b"x")).replace(b"HTTP/1.1", b"HTTP/1.0")
        with self.connect(old) as sock:
            self.assertEqual(self.statuses(read_all(sock)), [501])
        for lines, status in ((("Content-Length: 5",), 400), (("Content-Encoding: br",), 415)):
            with self.connect(self.upload(self.chunks(b"x"), *lines)) as sock:
                self.assertEqual(self.statuses(read_all(sock)), [status])
        self.assertEqual(self.app.uploads, [])

    def test_invalid_chunks_are_400_and_never_the_next_request(self):
        hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
        for body in (
            b"x\r\n", b"-1\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n", b"1 \r\nx\r\n", b" 1\r\nx\r\n", b"1\nx",
            b"1;a=b\r\nx\r\n", b"1\r\nxy\r\n", b"1\r\nx\n\n", b"\r\n1\r\nx\r\n", b"1" * 9 + b"\r\n",
            b"0\r\nA: b\r\n\r\n", b"0\r\nGE", b"1\r\nx\r\n\r\n",
        ):  # fmt: skip
            with self.subTest(body), self.connect(self.upload(body + hidden)) as sock:
                self.assertEqual(self.statuses(read_all(sock)), [400])
        self.assertEqual({upload.end for upload in self.app.uploads}, {"abandoned"})
        self.assertEqual(self.app.seen, [])

    def test_too_many_bytes_are_413(self):
        for body in (b"ffffffff\r\n", b"a00001\r\n", self.chunks(bytes(6 << 20))[:-5] + b"600000\r\n"):
            with self.connect(self.upload(body)) as sock:
                self.assertEqual(self.statuses(read_all(sock)), [413])

    def test_stalled_or_interrupted_body_is_abandoned(self):
        for body in (b"", b"5", b"5\r", b"5\r\nabc", b"5\r\nabcde", b"5\r\nabcde\r\n", b"5\r\nabcde\r\n0\r\n"):
            with (
                self.subTest(body),
                mock.patch.object(transfers, "_STALL_S", 0.03),
                self.connect(self.upload(body)) as sock,
            ):
                self.assertEqual(self.statuses(read_all(sock)), [408])
            self.assertEqual(self.app.uploads[-1].end, "abandoned")
        self.is_served()

    def test_client_that_waits_for_100_continue_gets_it(self):
        with self.connect(self.upload(b"", "Expect: 100-continue", "Connection: close")) as sock:
            self.assertTrue(sock.recv(25).startswith(b"HTTP/1.1 100"))
            sock.sendall(self.chunks(b"x"))
            self.assertIn(b"HTTP/1.1 200", read_all(sock))


class EarlyErrors(ServerCase):
    """Errors and refusals before the complete request was received."""

    def test_exception_in_a_consumer_is_500_with_an_id(self):
        for query in ("?broken", "?break"):
            with self.subTest(query), self.assertLogs("pigeonpost.web.http_server", "ERROR") as logged:
                status, headers, body = self.get(f"/upload{query}", "Content-Length: 5", method="POST", body=b"x" * 5)
                self.assertEqual((status, headers["connection"]), (500, "close"))
                self.assertNotIn(b"secret", body)
                (record,) = logged.records
                self.assertIn(record.args[1].encode(), body)  # the id
                self.assertIsNotNone(record.exc_info)
        self.assertEqual([upload.end for upload in self.app.uploads], ["abandoned"])

    def test_refusal_of_an_empty_body_keeps_the_connection(self):
        first = self.ask("/upload?unwanted", "Content-Length: 0", method="POST", close=False)
        sock = self.connect(first + self.ask("/next"))
        self.assertEqual(self.statuses(read_all(sock)), [401, 200])

    def test_unknown_expectation_is_refused_before_the_consumer(self):
        status, _, _ = self.get("/upload", "Expect: 200-ok", "Content-Length: 5", method="POST", body=b"x" * 5)
        self.assertEqual((status, self.app.uploads), (417, []))


if __name__ == "__main__":
    unittest.main()
