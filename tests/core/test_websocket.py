"""WebSocket client: handshake, frames, limits and deadlines, against servers that violate the protocol."""

import base64
import hashlib
import os
import socket
import ssl
import struct
import threading
import unittest

from pigeonpost.core.http_client import (
    AnswerCutOff,
    AnswerTimeout,
    AnswerTooLong,
    CertificateMismatch,
    CertificateNotTrusted,
    HttpError,
    ServerTrust,
    split_url,
)
from pigeonpost.core.websocket import MOST_SENT_BYTES, WebSocket, WebSocketClosed, WebSocketRefused
from pigeonpost.web.tls import fingerprint_of
from tests.http_servers import certificates, unanswering_ports
from tests.support import LIMIT_S

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(first, payload=b"", length=None):
    """Return a frame of a server, which is not masked."""
    head = bytes([first])
    if length is not None:
        return head + length + payload
    count = len(payload)
    if count < 126:
        return head + bytes([count]) + payload
    if count < 65_536:
        return head + b"\x7e" + struct.pack(">H", count) + payload
    return head + b"\x7f" + struct.pack(">Q", count) + payload


def read_frame(sock):
    """Return first byte and payload of a frame of the client, which must be masked."""
    first, second = _exactly(sock, 2)
    assert second & 0x80, "not masked"
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", _exactly(sock, 2))
    elif length == 127:
        (length,) = struct.unpack(">Q", _exactly(sock, 8))
    mask = _exactly(sock, 4)
    payload = _exactly(sock, length)
    return first, bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


def _exactly(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise OSError("ended")
        data += more
    return data


class ServerCase(unittest.TestCase):
    def serve(self, talk, head=None, context=None):
        """Start a server that accepts one handshake, unless `head` is its answer, and then calls `talk(socket)`."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.received = []

        def run():
            try:
                sock, _ = listener.accept()
                with sock if context is None else context.wrap_socket(sock, server_side=True) as link:
                    link.settimeout(LIMIT_S)
                    data = b""
                    while b"\r\n\r\n" not in data:
                        data += _exactly(link, 1)
                    self.received.append(data)
                    link.sendall(self.answer_to(data) if head is None else head)
                    talk(link)
            except OSError:
                pass

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.addCleanup(thread.join, LIMIT_S)
        self.addCleanup(listener.close)
        return f"http{'s' if context else ''}://127.0.0.1:{listener.getsockname()[1]}/api/websocket"

    @staticmethod
    def answer_to(request, more=b""):
        key = next(line[19:] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n" + more + b"\r\n"
        )

    def connect(self, url, limit_bytes=1 << 20, timeout_s=LIMIT_S, trust=None):
        client = WebSocket(split_url(url), timeout_s, trust, limit_bytes)
        self.addCleanup(client.end)
        client.connect()
        return client

    def talk(self, data, limit_s=LIMIT_S, limit_bytes=1 << 20):
        """Return what the client receives from a server that sends `data`, and then waits for its answer."""

        def talk(sock):
            sock.sendall(data)
            while True:
                self.received.append(read_frame(sock))

        return self.connect(self.serve(talk), limit_bytes).receive(limit_s)


class Messages(ServerCase):
    def test_request_has_all_headers(self):
        self.connect(self.serve(lambda sock: None))
        lines = self.received[0].decode().split("\r\n")
        self.assertEqual(lines[0], "GET /api/websocket HTTP/1.1")
        self.assertIn("Sec-WebSocket-Version: 13", lines)
        self.assertRegex(lines[1], r"\AHost: 127\.0\.0\.1:\d+\Z")

    def test_messages_of_every_length_are_sent_masked_and_received(self):
        for count in (0, 1, 125, 126, 65_535, 65_536, 200_001):
            text = "µ" * (count // 2) + "x" * (count % 2)

            def talk(sock):
                first, payload = read_frame(sock)
                self.received.append(payload)
                sock.sendall(frame(first, payload))

            client = self.connect(self.serve(talk))
            client.send(text)
            self.assertEqual(client.receive(LIMIT_S), text)
            self.assertEqual(self.received[1], text.encode())

    def test_fragments_with_a_ping_in_between_are_one_message(self):
        data = frame(0x01, b"a\xc2") + frame(0x89, b"hi") + frame(0x00, b"\xb5") + frame(0x8A) + frame(0x80, b"b")
        self.assertEqual(self.talk(data), "aµb")

    def test_ping_is_answered_with_its_payload(self):
        answered = threading.Event()

        def talk(sock):
            sock.sendall(frame(0x89, b"hi"))
            self.received.append(read_frame(sock))
            answered.set()
            sock.sendall(frame(0x81, b"end"))

        self.assertEqual(self.connect(self.serve(talk)).receive(LIMIT_S), "end")
        self.assertEqual(self.received[1], (0x8A, b"hi"))

    def test_close_sends_a_close_frame_and_waits_for_that_of_the_server(self):
        done = threading.Event()

        def talk(sock):
            self.received.append(read_frame(sock))
            sock.sendall(frame(0x88, self.received[1][1]))
            done.set()

        self.connect(self.serve(talk)).close()
        self.assertTrue(done.wait(LIMIT_S))
        self.assertEqual(self.received[1], (0x88, b"\x03\xe8"))

    def test_close_of_the_server_is_answered_and_reported(self):
        with self.assertRaisesRegex(WebSocketClosed, r"1001: going \? away") as caught:
            self.talk(frame(0x88, b"\x03\xe9going \n away"))
        self.assertEqual(caught.exception.code, 1001)

    def test_messages_that_are_too_long_are_not_sent(self):
        client = self.connect(self.serve(lambda sock: sock.recv(1)))
        with self.assertRaises(AnswerTooLong):
            client.send("x" * (MOST_SENT_BYTES + 1))


class Violations(ServerCase):
    def test_invalid_frames_end_the_connection(self):
        for name, data in {
            "reserved bit": frame(0xC1, b"x"),
            "unknown opcode": frame(0x83, b"x"),
            "unknown control": frame(0x8B, b"x"),
            "masked": frame(0x81, b"\0\0\0\0x", b"\x81"),
            "fragmented ping": frame(0x09, b"x"),
            "long ping": frame(0x89, b"x" * 126),
            "continuation first": frame(0x80, b"x"),
            "text in a message": frame(0x01, b"x") + frame(0x81, b"x"),
            "binary": frame(0x82, b"x"),
            "length not minimal": frame(0x81, b"x" * 5, b"\x7e\0\5"),
            "64-bit length not minimal": frame(0x81, b"x" * 5, b"\x7f\0\0\0\0\0\0\0\5"),
            "negative length": frame(0x81, b"", b"\x7f\xff\0\0\0\0\0\0\0"),
            "not UTF-8": frame(0x81, b"\xff"),
            "surrogate": frame(0x81, b"\xed\xa0\x80"),
            "close with one byte": frame(0x88, b"\x03"),
            "close with a reserved code": frame(0x88, b"\x03\xed"),
            "close not UTF-8": frame(0x88, b"\x03\xe8\xff"),
        }.items():
            with self.subTest(name), self.assertRaisesRegex(HttpError, "the server sent"):
                self.talk(data)

    def test_message_over_the_limit_is_refused_before_it_is_read(self):
        for data in (frame(0x81, b"", b"\x7f\0\0\0\1\0\0\0\0"), frame(0x01, b"x" * 60) + frame(0x80, b"x" * 60)):
            with self.assertRaises(AnswerTooLong):
                self.talk(data, limit_bytes=100)

    def test_connection_that_ends_is_cut_off(self):
        for data in (b"", b"\x81", frame(0x81, b"xyz")[:-1]):
            with self.assertRaises(AnswerCutOff):
                self.connect(self.serve(lambda sock, data=data: sock.sendall(data))).receive(LIMIT_S)

    def test_endless_pings_end_at_the_deadline(self):
        def talk(sock):
            while True:
                sock.sendall(frame(0x89) * 100)

        with self.assertRaises(AnswerTimeout):
            self.connect(self.serve(talk)).receive(0.05)

    def test_silence_ends_at_the_deadline(self):
        with self.assertRaises(AnswerTimeout):
            self.talk(b"", limit_s=0.02)

    def test_connection_ends_with_an_error(self):
        client = self.connect(self.serve(lambda sock: None))
        with self.assertRaises(HttpError):
            client.receive(LIMIT_S)
        with self.assertRaisesRegex(HttpError, "no connection"):
            client.send("x")

    def test_random_bytes_never_cause_another_error(self):
        for _ in range(30):
            with self.assertRaises(HttpError):
                client = self.connect(self.serve(lambda sock: sock.sendall(os.urandom(200))))
                while True:
                    client.receive(LIMIT_S)


class Handshake(ServerCase):
    def test_answers_that_do_not_accept_are_refused(self):
        good = b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        for head, text in (
            (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "answered 401 Unauthorized"),
            (b"HTTP/1.1 200\r\n\r\n", "answered 200"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
            (good + b"\r\n", "does not accept"),
            (good + b"Sec-WebSocket-Accept: dGVzdA==\r\n\r\n", "does not accept"),
            (good + b"Upgrade: websocket\r\n\r\n", "invalid header"),
            (good + b" folded\r\n\r\n", "invalid header"),
        ):
            with self.subTest(head), self.assertRaisesRegex(WebSocketRefused, text):
                self.connect(self.serve(lambda sock: None, head))

    def test_extensions_and_protocols_that_were_not_requested_are_refused(self):
        for more in (b"Sec-WebSocket-Extensions: permessage-deflate\r\n", b"Sec-WebSocket-Protocol: x\r\n"):
            self.answer_to = lambda request, more=more: ServerCase.answer_to(request, more)
            with self.assertRaises(WebSocketRefused):
                self.connect(self.serve(lambda sock: None))

    def test_endless_headers_are_refused(self):
        def talk(sock):
            while True:
                sock.sendall(b"x: y\r\n" * 1000)

        with self.assertRaisesRegex(AnswerTooLong, "longer than 65536 bytes"):
            self.connect(self.serve(talk, b"HTTP/1.1 101 OK\r\n"))

    def test_cut_ends_a_connection_that_is_being_made(self):
        for scheme, port in unanswering_ports(self):
            client = WebSocket(split_url(f"{scheme}://127.0.0.1:{port}/"), 10 * LIMIT_S)
            cut = threading.Timer(0.05, client.cut)
            cut.start()
            with self.assertRaises(HttpError):
                client.connect()
            cut.join()
            with self.assertRaisesRegex(HttpError, "aborted"):
                client.connect()

    def test_missing_server_is_an_http_error(self):
        with self.assertRaises(HttpError):
            self.connect("http://127.0.0.1:1/")


class Tls(ServerCase):
    @classmethod
    def setUpClass(cls):
        cls.first, cls.second = certificates(cls, "first", "second")

    def serve_tls(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.first)
        return self.serve(lambda sock: sock.sendall(frame(0x81, b"hello")), context=context)

    def test_pinned_certificate_is_accepted(self):
        client = self.connect(self.serve_tls(), trust=ServerTrust(fingerprint_of(self.first[0])))
        self.assertEqual(client.receive(LIMIT_S), "hello")

    def test_request_is_not_sent_to_another_certificate(self):
        with self.assertRaises(CertificateMismatch):
            self.connect(self.serve_tls(), trust=ServerTrust(fingerprint_of(self.second[0])))
        self.assertEqual(self.received, [])
        with self.assertRaises(CertificateNotTrusted):
            self.connect(self.serve_tls())
