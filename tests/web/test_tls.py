"""Tests of the web server with TLS: handshakes, deadlines, downloads, live values, cookies and the certificate."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest
import warnings
from unittest import mock

from pigeonpost.core.errors import SettingsError
from pigeonpost.web import http_server as webserver
from pigeonpost.web.tls import Tls, fingerprint_of
from tests.forked import Forked
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, temp_folder, wait_until
from tests.web.support import PATIENT, WebHouse, next_response, parse_response, read_all

QUICK = PATIENT._replace(head_s=0.1, body_s=0.1)
AT_ONCE = QUICK._replace(head_s=0.05)  # for tests in which no handshake succeeds
PATHS = []  # paths of the certificate and the key of all tests that do not change them


def setUpModule():
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            raise AssertionError("these tests need the program openssl")
        raise unittest.SkipTest("there is no program openssl here")
    use_memory_disk()
    folder = tempfile.mkdtemp(prefix="pigeonpost-test-")
    unittest.addModuleCleanup(shutil.rmtree, folder)
    PATHS[:] = make_certificate(folder)


def make_certificate(folder, name="page", more=()):
    """Return the paths of a new certificate and its key."""
    paths = [os.path.join(folder, f"{name}.{end}") for end in ("pem", "key")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    ends = ["-out", paths[0], "-keyout", paths[1], *(more or ["-nodes"])]
    subprocess.run([*command, *names, *ends], check=True, capture_output=True, timeout=60)
    return paths


def client_context(trusted=None):
    """Return the TLS context of a client that trusts one certificate, or any certificate by default."""
    context = ssl.create_default_context(cafile=trusted)
    if trusted is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class TlsCase(unittest.TestCase):
    def setUp(self):
        self.paths = PATHS

    def house(self, **options):
        house = WebHouse(self, tls=Tls(*self.paths), **options)
        self.address = house.address
        return house

    def connect(self, context=None):
        plain = socket.socket()
        plain.settimeout(LIMIT_S)
        plain.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
        )  # limits the data in transit to a client that does not read
        try:
            plain.connect(self.address)
            link = (context or client_context(self.paths[0])).wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise
        self.addCleanup(link.close)
        return link

    def get(self, path="/", more="", link=None):
        link = link or self.connect()
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n".encode())
        return parse_response(read_all(link))


class TlsConnections(TlsCase):
    def test_client_that_trusts_the_certificate_gets_the_page(self):
        self.house()
        status, _, body = self.get()
        self.assertEqual(status, 200)
        self.assertIn(b"Pigeonpost house", body)

    def test_connection_serves_many_requests(self):
        self.house()
        link, rest = self.connect(), b""
        for _ in range(5):
            link.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            data = rest
            while b"\r\n\r\n" not in data:
                data += link.recv(1 << 16)
            status, _, _, rest = next_response(data)
            self.assertEqual(status, 200)

    def test_connection_ends_with_a_close_notification(self):
        self.house()
        link = self.connect()
        link.suppress_ragged_eofs = False  # an end without a close notification is an error then
        self.assertEqual(self.get(link=link)[0], 200)

    def test_tls_1_1_is_refused_and_1_2_is_accepted(self):
        self.house()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old = client_context()
            old.set_ciphers("DEFAULT:@SECLEVEL=0")
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises(OSError):
            self.connect(old)
        newer = client_context(self.paths[0])
        newer.maximum_version = ssl.TLSVersion.TLSv1_2
        self.assertEqual(self.get(link=self.connect(newer))[0], 200)

    def test_plain_http_gets_an_error_message(self):
        house = self.house()
        status, headers, body = parse_response(house.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", ends=False))
        self.assertEqual((status, headers["connection"]), (400, "close"))
        self.assertIn(b"https://", body)
        self.assertNotIn(b"Waiting", body)

    def test_invalid_tls_ends_only_that_connection(self):
        house = self.house(limits=AT_ONCE)
        for data in (b"\x16", b"\x16\x03\x01\xff\xff" + b"x" * 100, b"\x16\x03\x01\x00\x05hello", b"\x16" * 70_000):
            with self.subTest(data[:10]):
                self.assertNotIn(b"HTTP", house.raw(data, ends=False))
        house.web._listeners[0].limits = PATIENT
        self.assertEqual(self.get()[0], 200)

    def test_additional_address_without_tls_is_served(self):
        house = self.house(plain=[("127.0.0.1", 0)])
        schemes = [scheme for scheme, _, _ in house.web.urls]
        self.assertEqual(schemes, ["https", "http"])
        self.assertEqual(self.get("/healthz")[0], 200)
        house.address = house.web.addresses[1]
        self.assertEqual(house.request("GET", "/healthz")[0], 200)


class TlsDeadlines(TlsCase):
    def test_silent_clients_do_not_block_others(self):
        self.house(limits=PATIENT._replace(head_s=10 * LIMIT_S))
        silent = [socket.create_connection(self.address, LIMIT_S) for _ in range(20)]
        half = [socket.create_connection(self.address, LIMIT_S) for _ in range(20)]
        for sock in half:
            sock.sendall(b"\x16\x03\x01\x01\x00")
        self.assertEqual(self.get("/healthz")[0], 200)
        for sock in (*silent, *half):
            sock.close()

    def test_incomplete_handshake_is_closed(self):
        house = self.house(limits=AT_ONCE)
        for data in (b"", b"\x16", b"\x16\x03\x01\x01\x00"):
            with self.subTest(data), house.connect() as sock:
                sock.sendall(data)
                self.assertEqual(read_all(sock), b"")

    def test_slow_handshake_does_not_extend_the_deadline(self):
        house = self.house(limits=AT_ONCE)
        with house.connect() as sock, contextlib.suppress(OSError):
            sock.settimeout(0.01)
            for byte in b"\x16\x03\x01\x02\x00" + b"\x01" * 500:
                sock.sendall(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(1):
                        break
            else:
                self.fail("the connection was not closed")

    def patiently(self, data):
        """Return the response to `data`. Try again if the handshake or the first byte is late, on a busy machine."""

        def answer():
            with contextlib.suppress(OSError), self.connect() as link:
                link.sendall(data)
                return read_all(link)

        return wait_until(answer, "an answer")

    def test_incomplete_request_is_408(self):
        self.house(limits=QUICK)
        for data in (b"GET / HT", b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nuser"):
            with self.subTest(data), mock.patch.object(webserver, "_DRAIN_S", 0.1):
                self.assertEqual(parse_response(self.patiently(data))[0], 408)

    def test_stop_does_not_wait_for_silent_clients(self):
        house = self.house(limits=PATIENT._replace(head_s=10 * LIMIT_S))
        self.connect()
        with house.connect() as silent:
            silent.sendall(b"\x16\x03")
            wait_until(lambda: house.web._connections.counts()["open"] == 2, "both are connected")
            house.web.stop(LIMIT_S)
            self.assertEqual(read_all(silent), b"")

    def test_unread_download_is_closed_when_the_server_stops(self):
        house = self.house()
        house.store_samples("n", [{"value": n / 7} for n in range(200)])
        self.fill_log(house, 4 << 20)
        link = self.connect()
        link.sendall(b"GET /log.csv HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertTrue(link.recv(100))
        wait_until(lambda: house.web._connections.counts()["downloads"] == 1, "it is being sent")
        house.web.stop(0.1)
        wait_until(lambda: house.web._connections.counts()["downloads"] == 0, "it was cut off")

    fill_log = staticmethod(lambda house, length: _fill_log(house, length))


def _fill_log(house, length):
    """Make the log of this run longer than any buffer in the connection."""
    path, size = house.csv.whole()
    with open(path, "ab") as file:
        file.write(b"x" * (length - size))
    house.csv.size = length


class Downloads(TlsCase):
    def test_download_is_the_file_byte_for_byte(self):
        house = self.house()
        house.store_samples("n", [{"value": n / 7} for n in range(2000)])
        _fill_log(house, 1_000_001)
        with open(house.csv.whole()[0], "rb") as file:
            wanted = file.read()
        status, headers, body = self.get("/log.csv")
        self.assertEqual((status, int(headers["content-length"])), (200, len(wanted)))
        self.assertEqual(hashlib.sha256(body).hexdigest(), hashlib.sha256(wanted).hexdigest())

    def test_range_of_a_download_is_sent(self):
        house = self.house()
        house.store_samples("n", [{"value": n / 7} for n in range(200)])
        with open(house.csv.whole()[0], "rb") as file:
            wanted = file.read()
        status, _, body = self.get("/log.csv", "Range: bytes=10-99\r\n")
        self.assertEqual((status, body), (206, wanted[10:100]))


class LiveValues(TlsCase):
    def events(self, link):
        link.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        data = b""
        while b"retry:" not in data:
            data += link.recv(1 << 16)
        return data

    def test_events_are_sent_over_tls(self):
        house = self.house()
        link = self.connect()
        self.assertIn(b"text/event-stream", self.events(link))
        for value in (20.5, 21.5):
            house.store_samples("attic", [{"temperature": value}], {"temperature": "°C"})
            data = b""
            while str(value).encode() not in data:
                part = link.recv(1 << 16)
                self.assertTrue(part, data)
                data += part

    def test_disconnected_and_unreading_stream_clients_are_dropped(self):
        house = self.house()
        gone, stuck = self.connect(), self.connect()
        self.events(gone)
        self.events(stuck)
        self.assertEqual(house.web._live.clients, 2)
        gone.close()
        wait_until(lambda: house.web._live.clients == 1, "it is dropped")
        for client in list(house.web._live._clients):  # otherwise the kernel buffers megabytes
            client.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        values = {f"sensor_{n}": n / 7 for n in range(3000)}

        def is_dropped():
            house.store_samples("attic", [values])
            return house.web._live.clients == 0

        wait_until(is_dropped, "it is dropped", 4 * LIMIT_S)

    def test_input_on_an_event_stream_is_ignored(self):
        house = self.house()
        link = self.connect()
        self.events(link)
        link.sendall(b"x" * 100_000)
        house.store_samples("attic", [{"temperature": 20.5}])
        self.assertTrue(link.recv(1 << 16))


class Cookies(TlsCase):
    def log_in(self, house, link, password="correct horse"):
        body = f"user=admin&password={password.replace(' ', '+')}".encode()
        head = "POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: https://localhost\r\n"
        kind = "Content-Type: application/x-www-form-urlencoded\r\n"
        link.sendall(f"{head}{kind}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return parse_response(read_all(link))

    def test_session_over_tls_has_a_secure_cookie(self):
        house = self.house(password="correct horse", plain=[("127.0.0.1", 0)])
        status, headers, _ = self.log_in(house, self.connect())
        self.assertEqual(status, 303)
        found = re.fullmatch(
            rf"(__Host-pigeonpost-{self.address[1]}=[\w-]{{43}}); Path=/; HttpOnly; Secure; SameSite=Strict",
            headers["set-cookie"],
        )
        self.assertTrue(found, headers["set-cookie"])
        cookie = found[1]
        self.assertEqual(self.get("/", f"Cookie: {cookie}\r\n")[0], 200)
        self.assertEqual(self.get("/api/v1/nodes", f"Cookie: {cookie.removeprefix('__Host-')}\r\n")[0], 401)
        house.address = house.web.addresses[1]
        self.assertEqual(house.request("GET", "/api/v1/nodes", {"Cookie": cookie})[0], 401)

    def test_ended_session_deletes_the_cookie_with_its_name(self):
        house = self.house(password="correct horse")
        _, headers, _ = self.log_in(house, self.connect())
        cookie = headers["set-cookie"].partition(";")[0]
        house.users.set_password("admin", "another one")
        _, headers, _ = self.get("/", f"Cookie: {cookie}\r\nAccept: text/html\r\n")
        self.assertIn(f"__Host-pigeonpost-{self.address[1]}=; ", headers["set-cookie"])
        self.assertIn("Max-Age=0", headers["set-cookie"])


class Certificate(TlsCase):
    def refused(self, *paths):
        with self.assertRaises(SettingsError) as caught:
            Tls(*paths)
        self.assertIn(paths[0] if os.path.exists(paths[-1]) else paths[-1], str(caught.exception))
        return str(caught.exception)

    def test_unreadable_files_are_named_with_the_remedy(self):
        folder = temp_folder(self)
        other = make_certificate(folder, "other")
        locked = make_certificate(folder, "locked", ["-passout", "pass:secret"])
        nothing = os.path.join(folder, "nothing")
        with open(nothing, "w", encoding="ascii") as file:
            file.write("not a certificate\n")
        self.assertIn("control.py certificate", self.refused(os.path.join(folder, "none.pem"), self.paths[1]))
        self.assertIn("No such file", self.refused(self.paths[0], os.path.join(folder, "none.key")))
        self.assertIn("does not belong to the certificate", self.refused(self.paths[0], other[1]))
        self.assertIn("not PEM", self.refused(nothing, self.paths[1]))
        with self.assertRaisesRegex(SettingsError, "password"):
            Tls(*locked)

    def test_key_may_be_in_the_file_of_the_certificate(self):
        both = os.path.join(temp_folder(self), "both.pem")
        with open(both, "w", encoding="ascii") as file:
            for path in self.paths:
                with open(path, encoding="ascii") as part:
                    file.write(part.read())
        self.paths = [both, ""]
        self.house()
        self.assertEqual(self.get("/healthz", link=self.connect(client_context(both)))[0], 200)

    def test_fingerprint_is_that_of_openssl(self):
        said = subprocess.run(
            ["openssl", "x509", "-in", self.paths[0], "-noout", "-fingerprint", "-sha256"],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
        self.assertEqual(fingerprint_of(self.paths[0]), said.partition("=")[2].strip().replace(":", "").lower())

    def test_renewed_certificate_is_used_and_a_damaged_one_is_not(self):
        self.paths = make_certificate(temp_folder(self))
        self.house()

        def shown():
            return hashlib.sha256(self.connect(client_context()).getpeercert(binary_form=True)).hexdigest()

        first = shown()
        self.assertEqual(first, fingerprint_of(self.paths[0]))
        with self.assertLogs("pigeonpost.web.tls", "ERROR"):
            with open(self.paths[0], "w", encoding="ascii") as file:
                file.write("half a certif")
            self.assertEqual(shown(), first)
        new = make_certificate(temp_folder(self), "new")
        os.replace(new[1], self.paths[1])
        os.replace(new[0], self.paths[0])
        self.assertEqual(shown(), fingerprint_of(self.paths[0]))
        self.assertNotEqual(shown(), first)


class Programs(unittest.TestCase):
    def test_certificate_of_control_py_is_used_by_server_and_control_py(self):
        data = temp_folder(self)
        made = Forked(self, "control.py", "--data", data, "certificate", "localhost", "127.0.0.1")
        self.assertEqual(made.wait(), 0, made.logged)
        path, key = os.path.join(data, "certificate.pem"), os.path.join(data, "certificate.key")
        self.assertEqual(made.said, [fingerprint_of(path)])
        self.assertEqual(os.stat(key).st_mode & 0o777, 0o600)
        again = Forked(self, "control.py", "--data", data, "certificate")
        self.assertEqual((again.wait(), again.said), (0, made.said))
        server = Forked(
            self, "server.py", "--data", data, "--web", "127.0.0.1:0",
            PIGEONPOST_WEB_CERTIFICATE=path, PIGEONPOST_WEB_KEY=key,
        )  # fmt: skip
        line = server.line()
        self.assertRegex(line, r"^the page is at https://127\.0\.0\.1:\d+/\?key=\S{16,}$")
        server.logs(made.said[0])
        status = Forked(self, "control.py", "--data", data, "alive")
        self.assertEqual(status.wait(), 0, status.logged)
        port = int(line.rpartition(":")[2].partition("/")[0])
        with client_context(path).wrap_socket(
            socket.create_connection(("127.0.0.1", port), LIMIT_S), server_hostname="127.0.0.1"
        ) as link:
            link.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            self.assertEqual(parse_response(read_all(link))[0], 200)
        other = Forked(self, "control.py", "--data", data, "certificate", "--new")
        self.assertEqual(other.wait(), 0)
        self.assertNotEqual(other.said, made.said)
        status = Forked(self, "control.py", "--data", data, "alive")
        self.assertEqual(status.wait(), 0, status.logged)  # the server uses the new certificate
        self.check_another_certificate_is_refused(data, other.said[0])

    def check_another_certificate_is_refused(self, data, found):
        """control.py sends its key only to the server whose certificate it knows."""
        path = make_certificate(temp_folder(self), "another")[0]
        place = os.path.join(data, "running.json")
        with open(place, encoding="utf-8") as file:
            about = json.load(file)
        with open(place, "w", encoding="utf-8") as file:
            json.dump({**about, "certificate": path}, file)
        refused = Forked(self, "control.py", "--data", data, "alive")
        self.assertEqual(refused.wait(), 1)
        self.assertIn(f"expected {fingerprint_of(path)}, found {found}", "\n".join(refused.logged))

    def test_server_with_incomplete_tls_settings_reports_it(self):
        for environment, words in (
            ({"PIGEONPOST_WEB_KEY": "/nowhere/key.pem"}, "[web] key requires [web] certificate"),
            ({"PIGEONPOST_WEB_CERTIFICATE": "/nowhere/page.pem"}, "/nowhere/page.pem: No such file"),
        ):
            with self.subTest(words):
                server = Forked(self, "server.py", "--data", temp_folder(self), **environment)
                self.assertEqual(server.wait(), 2)
                self.assertIn(words, "\n".join(server.logged))

    def test_missing_openssl_is_reported_with_the_package(self):
        made = Forked(self, "control.py", "--data", temp_folder(self), "certificate", PATH="/nowhere")
        self.assertEqual(made.wait(), 1)
        self.assertIn("sudo apt install openssl", "\n".join(made.logged))


class SimultaneousClients(TlsCase):
    def test_fifty_simultaneous_clients_are_served(self):
        self.house()
        context, answers = client_context(self.paths[0]), []

        def ask():
            answers.append(self.get("/healthz", link=self.connect(context))[0])

        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * LIMIT_S)
        self.assertEqual(answers, [200] * 50)


if __name__ == "__main__":
    unittest.main()
