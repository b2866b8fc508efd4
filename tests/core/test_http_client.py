"""Tests of the HTTP client: certificates, deadlines, limits, truncated answers, redirects."""

import base64
import contextlib
import math
import os
import shutil
import socket
import ssl
import threading
import time
import unittest
from unittest import mock

from pigeonpost.core.http_client import (
    MOST_REDIRECTS,
    AnswerCutOff,
    AnswerTimeout,
    AnswerTooLong,
    BadRedirect,
    CertificateMismatch,
    CertificateNotTrusted,
    HttpConnection,
    HttpError,
    HttpFetcher,
    InvalidAnswer,
    ServerTrust,
    Url,
    server_url,
    split_url,
)
from pigeonpost.web.tls import fingerprint_of
from tests.http_servers import Server, certificates, raw_server, says, unanswering_ports
from tests.support import LIMIT_S, free_port, wait_until
from tests.test_layers import FILES, info

HTTP = "pigeonpost.core.http_client"


class SingleClient(unittest.TestCase):
    def test_no_other_module_opens_http_connections(self):
        for library in ("http.client", "urllib.request"):
            found = {module for module in FILES for entry in info(module).imports if entry.module == library}
            self.assertLessEqual(found, {HTTP}, library)


class Addresses(unittest.TestCase):
    def test_split_url_returns_the_parts_of_an_address(self):
        self.assertEqual(
            split_url("https://[::1]:8443/a b?c=d"),
            Url(True, "::1", 8443, "/a%20b?c=d", "https://[::1]:8443", False),
        )
        self.assertEqual(split_url("http://pi.local"), Url(False, "pi.local", 80, "/", "http://pi.local", False))
        self.assertEqual(split_url("https://büro.example").host, "xn--bro-hoa.example")

    def test_split_url_does_not_show_the_password(self):
        url = split_url("http://me:secret@pi.local/")
        self.assertEqual((url.has_user, url.host, url.shown), (True, "pi.local", "http://pi.local"))

    def test_user_and_password_become_a_header(self):
        for user, pair in (
            ("me:secret", "me:secret"), ("me", "me:"), (":secret", ":secret"), ("m%40e:s%3Aec:ret%2F", "m@e:s:ec:ret/"),
            ("j%C3%BCrgen:%E2%82%AC", "jürgen:€"),
        ):  # fmt: skip
            expected = "Basic " + base64.b64encode(pair.encode()).decode()
            self.assertEqual(split_url(f"http://{user}@pi.local/").authorization, expected)
        self.assertEqual(split_url("http://pi.local/").authorization, "")
        with self.assertRaisesRegex(ValueError, "a user name without a colon"):
            split_url("http://a%3Ab:secret@pi.local/")

    def test_split_url_refuses_invalid_addresses(self):
        for text in (
            "pi.local",
            "ftp://pi.local/",
            "http:///x",
            "http://pi:x/",
            "http://pi:99999/",
            "file:///etc/passwd",
            "http://1 302 found",
            "http://pi\x7f/",
            "http://pi..local/",
            f"http://{'a' * 64}.local/",
        ):
            with self.subTest(text), self.assertRaises(ValueError):
                split_url(text)

    def test_server_url_is_made_of_host_and_port(self):
        self.assertEqual(server_url("::1", 80, secure=True), Url(True, "::1", 80, "/", "https://[::1]:80", False))

    def test_server_url_refuses_spaces_and_control_characters(self):
        for host in ("a b", "pi\x7f", "pi\r\nX: y"):
            with self.subTest(host), self.assertRaisesRegex(ValueError, "host name without spaces"):
                server_url(host, 80, secure=False)


class ConnectionCase(unittest.TestCase):
    def connect(self, url, timeout_s=LIMIT_S, trust=None, **options):
        connection = HttpConnection(split_url(url), timeout_s, trust, **options)
        self.addCleanup(connection.close)
        return connection

    def get(self, connection, target="/secret?key=1", limit_bytes=1000, **options):
        return connection.request("GET", target, {"X-Key": "secret"}, limit_bytes=limit_bytes, **options)

    def assert_fails(self, kind, talk, words="", **options):
        """Assert that a request to a raw server raises an error of exactly the class `kind`. Return the error."""
        connection = self.connect(raw_server(self, talk))
        with self.assertRaisesRegex(HttpError, words) as caught:
            self.get(connection, **options)
        self.assertIs(type(caught.exception), kind)
        self.assertIsNone(connection._link.sock)
        self.assertEqual(caught.exception.server, connection.server)
        self.assertNotIn("secret", str(caught.exception))
        return caught.exception


class Connections(ConnectionCase):
    def test_answers_of_any_status_are_returned(self):
        server = Server(self)
        server.answers["/x"] = (404, {"Retry-After": "5"}, b"none")
        found = self.get(self.connect(server.url), "/x")
        self.assertEqual((found.status, found.reason, found.body), (404, "Not Found", b"none"))
        self.assertEqual(found.headers.get("retry-after"), "5")
        self.assertEqual(server.asked[0][2]["X-Key"], "secret")

    def test_credentials_of_the_address_are_sent_unless_the_request_has_others(self):
        server = Server(self)
        server.answers["/x"] = (200, {}, b"")
        connection = self.connect(server.url.replace("//", "//me:secret@"))
        self.get(connection, "/x")
        connection.request("GET", "/x", {"authorization": "Bearer t"}, limit_bytes=10)
        sent = [{name.lower(): value for name, value in asked[2].items()} for asked in server.asked]
        self.assertEqual([one["authorization"] for one in sent], ["Basic bWU6c2VjcmV0", "Bearer t"])

    def test_body_of_a_success_is_not_read_if_it_is_not_wanted(self):
        short = says(b"200 OK\r\nContent-Length: 9", b"short")
        self.assertEqual(self.get(self.connect(raw_server(self, short)), skip_success=True).body, b"")
        self.assert_fails(AnswerCutOff, short)
        self.assert_fails(AnswerCutOff, says(b"500 No\r\nContent-Length: 9", b"short"), skip_success=True)

    def test_connection_stays_open_if_the_server_agrees(self):
        answers = [says(b"200 OK\r\nContent-Length: 1", b"%d" % number) for number in range(3)]

        def talk(sock):
            answers[0](sock)
            for answer in answers[1:]:
                sock.recv(65_536)
                answer(sock)

        connection = self.connect(raw_server(self, talk))
        self.assertEqual([self.get(connection).body for _ in range(3)], [b"0", b"1", b"2"])

    def test_client_reconnects_after_the_server_has_closed_the_connection(self):
        connection = self.connect(raw_server(self, says(b"200 OK\r\nConnection: close\r\nContent-Length: 1", b"x")))
        self.assertEqual([self.get(connection).body for _ in range(3)], [b"x"] * 3)

    def test_proxies_and_cookies_are_not_used(self):
        url = raw_server(self, says(b"200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 1", b"x"))
        with mock.patch.dict(os.environ, {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}):
            connection = self.connect(url)
            with mock.patch.object(connection._link, "send", wraps=connection._link.send) as sent:
                self.get(connection)
                connection.close()
                self.get(connection)
        self.assertNotIn(b"cookie", b"".join(call.args[0] for call in sent.mock_calls).lower())

    def test_refused_connection_raises_http_error(self):
        port = free_port()
        with self.assertRaisesRegex(HttpError, "^Connection refused$") as caught:
            self.get(self.connect(f"http://127.0.0.1:{port}"))
        self.assertEqual(caught.exception.server, f"http://127.0.0.1:{port}")

    def test_invalid_host_name_raises_http_error(self):
        for host in ("a..b", "x" * 64 + ".example"):
            with self.subTest(host), self.assertRaises(HttpError):
                self.get(HttpConnection(server_url(host, 80, secure=False), 5))

    def test_another_thread_can_abort_a_request(self):
        asked = threading.Event()
        connection = self.connect(raw_server(self, lambda sock: (asked.set(), sock.recv(1))))
        errors = []

        def ask():
            try:
                self.get(connection)
            except HttpError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        self.assertTrue(asked.wait(LIMIT_S))
        connection.cut()
        thread.join(LIMIT_S)
        self.assertFalse(thread.is_alive())
        self.assertEqual(len(errors), 1)
        self.assertIsNone(connection._link.sock)
        connection.cut()  # the connection has ended already

    def test_another_thread_can_abort_the_connecting(self):
        for scheme, port in unanswering_ports(self):
            connection = HttpConnection(split_url(f"{scheme}://127.0.0.1:{port}"), LIMIT_S)
            threading.Timer(0.05, connection.cut).start()
            start_s = time.monotonic()
            with self.subTest(scheme), self.assertRaises(HttpError) as caught:
                connection.connect()
            self.assertNotIsInstance(caught.exception, AnswerTimeout)
            self.assertLess(time.monotonic() - start_s, LIMIT_S / 2)


class TruncatedAnswers(ConnectionCase):
    def test_truncated_body_raises_answer_cut_off(self):
        self.assert_fails(AnswerCutOff, says(b"200 OK\r\nContent-Length: 9", b"half"), "the answer was cut off")

    def test_truncated_head_raises_answer_cut_off(self):
        for head in (b"HTTP/1.1 200 OK\r\nServer:", b"HTTP/1.1 200 OK\r\nContent-Length: "):
            with self.subTest(head):
                self.assert_fails(AnswerCutOff, lambda sock, head=head: sock.sendall(head))

    def test_truncated_chunk_raises_invalid_answer(self):
        error = self.assert_fails(InvalidAnswer, says(b"200 OK\r\nTransfer-Encoding: chunked", b"5\r\nab"))
        self.assertEqual(error.kind, "IncompleteRead")

    def test_missing_answer_raises_invalid_answer(self):
        error = self.assert_fails(InvalidAnswer, lambda sock: None, "closed connection")
        self.assertEqual(error.kind, "RemoteDisconnected")

    def test_complete_chunks_are_returned(self):
        talk = says(b"200 OK\r\nTransfer-Encoding: chunked", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
        self.assertEqual(self.get(self.connect(raw_server(self, talk))).body, b"abc")

    def test_body_without_length_is_accepted_only_with_until_close(self):
        talk = says(b"200 OK", b"abc")
        self.assert_fails(AnswerCutOff, talk)
        self.assertEqual(self.get(self.connect(raw_server(self, talk)), until_close=True).body, b"abc")


class Limits(ConnectionCase):
    def test_body_longer_than_the_limit_is_refused(self):
        server = Server(self)
        server.answers["/x"] = (500, {}, b"x" * 1000)
        self.assertEqual(len(self.get(self.connect(server.url), "/x").body), 1000)
        with self.assertRaisesRegex(AnswerTooLong, "^longer than 999 bytes$") as caught:
            self.get(self.connect(server.url), "/x", limit_bytes=999)
        self.assertEqual((caught.exception.response.status, len(caught.exception.response.body)), (500, 999))

    def test_endless_answer_is_refused_at_the_limit(self):
        def flood(head, piece):
            def talk(sock):
                sock.sendall(b"HTTP/1.1 " + head)
                while True:
                    sock.sendall(piece)

            return talk

        for head, piece in (
            (b"200 OK\r\n\r\n", b" " * 65_536),
            (b"200 OK\r\nContent-Length: 99999999999\r\n\r\n", b" " * 65_536),
            (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b" " * 65_536),
            (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 10_000),
            (b"100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        ):
            with self.subTest(head):
                self.assert_fails(AnswerTooLong, flood(head, piece), "^longer than 1000 bytes$", until_close=True)

    def test_body_is_not_read_without_a_limit(self):
        talk = says(b"204 No Content\r\nContent-Length: 99999999999", b"x" * 9)
        connection = self.connect(raw_server(self, talk))
        found = self.get(connection, limit_bytes=None)
        self.assertEqual((found.status, found.body), (204, b""))
        self.assertIsNone(connection._link.sock)


class TimeLimits(ConnectionCase):
    def test_silent_server_causes_a_timeout(self):
        connection = self.connect(raw_server(self, lambda sock: sock.recv(1)), timeout_s=0.05)
        with self.assertRaisesRegex(AnswerTimeout, "timed out"):
            self.get(connection)

    def test_deadline_applies_to_the_complete_answer(self):
        def dribble(sock):
            while True:
                sock.sendall(b"x")
                time.sleep(0.005)  # so that no single read takes long

        for head in (b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"):
            with self.subTest(head):
                url = raw_server(self, lambda sock, head=head: (sock.sendall(head), dribble(sock)))
                began_s = time.monotonic()
                with self.assertRaises(AnswerTimeout):
                    self.get(self.connect(url, deadline_s=began_s + 0.1), limit_bytes=1 << 20)
                self.assertLess(time.monotonic() - began_s, LIMIT_S / 2)

    def test_timeout_applies_to_each_part_without_a_deadline(self):
        def slowly(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
            for _ in range(20):
                sock.sendall(b"x")
                time.sleep(0.005)

        self.assertEqual(len(self.get(self.connect(raw_server(self, slowly), timeout_s=LIMIT_S)).body), 20)

    def test_connect_timeout_is_the_shortest_limit(self):
        for limits, expected_s in (
            ({}, 60.0), ({"connect_timeout_s": 5.0}, 5.0), ({"connect_timeout_s": 90.0}, 60.0),
            ({"deadline_s": time.monotonic() - 1}, 0.001), ({"deadline_s": math.inf}, 60.0),
        ):  # fmt: skip
            with self.subTest(limits), mock.patch("socket.socket") as made:
                made.return_value.connect.side_effect = TimeoutError
                with self.assertRaises(AnswerTimeout):
                    self.connect("http://192.0.2.1/", 60.0, **limits).connect()
                made.return_value.settimeout.assert_called_once_with(expected_s)


@unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate (apt install openssl)")
class Tls(ConnectionCase):
    @classmethod
    def setUpClass(cls):
        cls.first, cls.second = certificates(cls, "first", "second")
        cls.fingerprints = [fingerprint_of(paths[0]) for paths in (cls.first, cls.second)]

    def serve(self, *certificates):
        """Return the address of a server that presents one certificate after the other, and its list of requests."""
        contexts = []
        for paths in certificates:
            contexts.append(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            contexts[-1].load_cert_chain(*paths)
        listener = socket.create_server(("127.0.0.1", 0))
        asked = []

        def run():
            for context in contexts:
                sock, _ = listener.accept()
                sock.settimeout(LIMIT_S)
                request = b""
                with contextlib.suppress(OSError), sock, context.wrap_socket(sock, server_side=True) as secured:
                    request = secured.recv(65_536)  # empty, or an error, if the client has disconnected
                    secured.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
                asked.append(request)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.addCleanup(thread.join, LIMIT_S)
        self.addCleanup(listener.close)
        return f"https://127.0.0.1:{listener.getsockname()[1]}", asked

    def test_pinned_certificate_is_accepted(self):
        url, asked = self.serve(self.first)
        self.assertEqual(self.get(self.connect(url, trust=ServerTrust(self.fingerprints[0]))).body, b"ok")
        wait_until(lambda: asked)
        self.assertIn(b"X-Key: secret", asked[0])

    def test_wrong_certificate_is_refused_before_anything_is_sent(self):
        url, asked = self.serve(self.second)
        connection = self.connect(url, trust=ServerTrust(self.fingerprints[0]))
        with self.assertRaises(CertificateMismatch) as caught:
            self.get(connection)
        self.assertEqual([caught.exception.expected, caught.exception.found], self.fingerprints)
        self.assertIsNone(connection._link.sock)
        wait_until(lambda: asked)
        self.assertEqual(asked, [b""])

    def test_certificate_is_checked_at_each_connection(self):
        """http.client reconnects after the server has closed the connection, and does not check the certificate."""
        url, asked = self.serve(self.first, self.second)
        connection = self.connect(url, trust=ServerTrust(self.fingerprints[0]))
        self.assertEqual(self.get(connection).body, b"ok")
        with self.assertRaises(CertificateMismatch):
            self.get(connection)
        wait_until(lambda: len(asked) == 2)
        self.assertEqual(asked[1], b"")

    def test_self_signed_certificate_is_not_trusted(self):
        url, _ = self.serve(self.first)
        with self.assertRaisesRegex(CertificateNotTrusted, "CERTIFICATE_VERIFY_FAILED") as caught:
            self.get(self.connect(url))
        self.assertIn("self-signed certificate", caught.exception.why.replace("self signed", "self-signed"))

    def test_certificate_file_replaces_the_system_authorities(self):
        url, _ = self.serve(self.first)
        self.assertEqual(self.get(self.connect(url, trust=ServerTrust(ca=self.first[0]))).body, b"ok")
        with self.assertRaises(OSError):
            ServerTrust(ca=self.first[1]).context.get_ca_certs()

    def test_plain_http_answer_to_tls_is_refused(self):
        url = raw_server(self, says(b"200 OK\r\nContent-Length: 2", b"ok")).replace("http:", "https:")
        connection = self.connect(url)
        with self.assertRaisesRegex(HttpError, "SSL"):
            self.get(connection)
        self.assertIsNone(connection._link.sock)  # otherwise the next request would be sent unencrypted

    def test_old_versions_of_tls_are_refused(self):
        for trust in (ServerTrust(), ServerTrust("00" * 32), ServerTrust(ca=self.first[0])):
            self.assertEqual(trust.context.minimum_version, ssl.TLSVersion.TLSv1_2)


class Redirects(unittest.TestCase):
    def setUp(self):
        self.server, self.other = Server(self), Server(self)
        self.fetcher = HttpFetcher(LIMIT_S, 1000, headers={"X-Key": "secret"})

    def fetch(self, path="/a", **options):
        return self.fetcher.fetch(self.server.url + path, **options)

    def redirect(self, path, to, body=b"", status=302):
        self.server.answers[path] = (status, {"Location": to}, body)

    def test_redirect_to_the_same_server_keeps_the_headers(self):
        self.redirect("/a", "/b", b"x" * 5000)  # longer than the limit for answers
        self.server.answers["/b"] = (200, {}, b"here")
        found = self.fetch(headers={"X-More": "1"})
        self.assertEqual((found.url.target, found.response.body), ("/b", b"here"))
        for _, _, headers, _ in self.server.asked:
            self.assertEqual((headers["X-Key"], headers["X-More"], headers["Connection"]), ("secret", "1", "close"))

    def test_redirect_to_another_server_drops_the_headers(self):
        self.redirect("/a", f"{self.other.url}/b")
        self.other.answers["/b"] = (200, {}, b"here")
        self.assertEqual(self.fetch().response.body, b"here")
        self.assertIsNone(self.other.asked[0][2]["X-Key"])
        self.assertTrue(self.other.asked[0][2]["User-Agent"].startswith("pigeonpost/"))

    def test_endless_redirects_are_refused(self):
        self.redirect("/a", "/a")
        with self.assertRaisesRegex(BadRedirect, "too often"):
            self.fetch()
        self.assertEqual(len(self.server.asked), MOST_REDIRECTS)

    def test_redirect_to_an_invalid_address_is_refused(self):
        for to in ("file:///etc/passwd", "ftp://x/", "http://me:secret@127.0.0.1/", "http://[::1/"):
            self.redirect("/a", to)
            with (
                self.subTest(to),
                self.assertRaisesRegex(BadRedirect, "to an address that is not a valid http") as got,
            ):
                self.fetch()
            self.assertEqual(got.exception.server, self.server.url)

    def test_redirect_is_not_followed_after_a_form(self):
        self.redirect("/a", "/b")
        self.assertEqual(self.fetch(form="a=b").response.status, 302)
        method, _, headers, body = self.server.asked[0]
        self.assertEqual(
            (method, headers["Content-Type"], body), ("POST", "application/x-www-form-urlencoded", b"a=b")
        )  # fmt: skip

    def test_deadline_includes_redirects(self):
        self.redirect("/a", "/a")
        self.fetcher = HttpFetcher(0.0, 1000)
        with self.assertRaises(AnswerTimeout):
            self.fetch()


if __name__ == "__main__":
    unittest.main()
