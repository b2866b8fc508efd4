"""Tests of the tmon transport with the original requests and responses (docs/coming-from-tmon.md)."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

from pigeonpost.auth import throttle
from pigeonpost.compat import tmon
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import NotStored
from pigeonpost.server import unnumbered_sources
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.forked import Forked
from tests.page_support import control_here, set_zone, use_memory_disk
from tests.support import LIMIT_S, ROOT, clean_environment, temp_folder, wait_until
from tests.web.support import WebHouse, parse_response

CLIENT = os.path.join(ROOT, "tests", "compat", "tmon_client.py")
STORED = b'{"success": true}'
W1_SLAVE = "50 01 4b 46 7f ff 0c 10 1c : crc=1c YES\n50 01 4b 46 7f ff 0c 10 1c t=20812\n"


def setUpModule():
    use_memory_disk()


class TmonCase(unittest.TestCase):
    def setUp(self):
        self.web = WebHouse(self, transports=[tmon.TmonTransport])
        self.token = self.web.tokens.make("attic")

    def message(self, **changes):
        said = {"type": "temperature", "token": self.token, "data": {"temperature": "20812"}, **changes}
        return {key: value for key, value in said.items() if value is not ...}

    def post(self, said, **headers):
        """Send bytes or a JSON value, and return status and body of the response."""
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        status, _, answer = self.web.request("POST", "/temp", headers, data)
        return status, answer

    def error(self, said):
        status, answer = self.post(said)
        told = json.loads(answer)
        self.assertEqual((set(told), told["success"]), ({"success", "error"}, False))
        return status, told["error"]

    def points(self, node="attic"):
        return self.web.store.points(node, 0, 1 << 60, 10_000)


class PostTemp(TmonCase):
    """`POST /temp` and the meaning of its fields."""

    def test_conversation_of_the_old_client_is_unchanged(self):
        """The request of urllib, and the status line, type, length and body of the response."""
        data = json.dumps(self.message()).encode()
        request = (
            f"POST /temp HTTP/1.1\r\nAccept-Encoding: identity\r\nContent-Length: {len(data)}\r\n"
            f"Host: 192.168.1.10:13117\r\nUser-Agent: Python-urllib/3.4\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n\r\n"
        ).encode()
        answer = self.web.raw(request + data, ends=False)
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertIn(b"\r\nContent-Type: application/json\r\n", head)
        self.assertIn(b"\r\nContent-Length: 17\r\n", head)
        self.assertEqual(body, STORED)
        self.assertEqual([point.values for point in self.points()], [{"temperature": 20.812}])

    def test_value_is_in_thousandths_of_a_degree(self):
        for text, wanted in (
            ("20812", 20.812),
            ("-1062", -1.062),
            ("0", 0.0),
            (" 85000\n", 85.0),
            ("+125", 0.125),
            (21500, 21.5),
        ):
            with self.subTest(text):
                self.assertEqual(self.post(self.message(data={"temperature": text})), (200, STORED))
                self.assertEqual(self.points()[-1].values, {"temperature": wanted})
        self.assertEqual(self.web.store.nodes()[0]["sensors"], {"temperature": "°C"})

    def test_invalid_temperature_is_400_with_the_format(self):
        for value in (
            "20.8",
            "warm",
            "1e3",
            "0x10",
            "٢٠",
            "9" * 10,
            "99999999",
            "-300000",
            True,
            [],
            {"a": 1},
            1.5,
            10**30,
        ):
            with self.subTest(value):
                status, text = self.error(self.message(data={"temperature": value}))
                self.assertEqual(status, 400)
                self.assertIn("thousandths", text)
        self.assertEqual(self.points(), [])

    def test_missing_time_is_replaced_by_server_time(self):
        for time_said in (..., "", None):
            before = Clock().wall_ms()
            self.assertEqual(self.post(self.message(time=time_said)), (200, STORED))
            self.assertTrue(before <= self.points()[-1].time_ms <= Clock().wall_ms())

    def test_valid_time_formats_are_accepted(self):
        wanted = 1_795_188_970_000
        here = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wanted // 1000))
        for said in (1_795_188_970, "1795188970", "1795188970.0", 1_795_188_970.0, "2026-11-20T15:36:10Z", here,
                     "2026-11-20T15:36:10+00:00", "2026-11-20 16:36:10+01:00", here.replace(" ", "T")):  # fmt: skip
            with self.subTest(said):
                self.assertEqual(self.post(self.message(time=said)), (200, STORED))
                self.assertEqual(self.points()[-1].time_ms, wanted)

    def test_invalid_time_is_400(self):
        for said in ("yesterday", "-5", -5, 1e300, True, [], "2026-13-40", "99999-01-01", "1" * 40, "0001-01-01"):
            with self.subTest(said):
                status, text = self.error(self.message(time=said))
                self.assertEqual((status, text.partition(" ")[0]), (400, "time"))
        self.assertEqual(self.points(), [])

    def test_token_alone_identifies_the_node(self):
        self.web.tokens.make("cellar")
        for node in ("cellar", "nobody", "", None, 5):
            self.assertEqual(self.post(self.message(node=node)), (200, STORED))
        self.assertEqual((len(self.points()), self.points("cellar")), (5, []))

    def test_test_report_is_checked_but_not_stored(self):
        self.assertEqual(self.post(self.message(test=True)), (200, STORED))
        self.assertEqual(self.error(self.message(test=True, data={"temperature": "warm"}))[0], 400)
        self.assertEqual(self.error(self.message(test=True, token="0" * 32))[0], 400)
        self.assertEqual(self.points(), [])
        for no in (False, "false", "", "0", 0, None):
            self.assertEqual(self.post(self.message(test=no)), (200, STORED))
        self.assertEqual(len(self.points()), 6)

    def test_content_type_is_ignored(self):
        for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain", "nonsense"):
            self.assertEqual(self.post(self.message(), **{"Content-Type": kind}), (200, STORED))
        self.assertEqual(len(self.points()), 4)

    def test_host_name_is_ignored(self):
        self.assertEqual(self.post(self.message(), Host="tmon.example.org:13117"), (200, STORED))


class TmonResponses(TmonCase):
    """Responses, which are never empty."""

    def test_stored_reading_is_success(self):
        self.assertEqual(self.post(self.message()), (200, STORED))

    def test_missing_token_is_token_not_set(self):
        wanted = 200, b'{"success": false, "error": "token not set"}'
        for said in (self.message(token=...), self.message(token=""), self.message(token=None), {}):
            self.assertEqual(self.post(said), wanted)

    def test_missing_temperature_is_no_temperature_given(self):
        wanted = 200, b'{"success": false, "error": "No temperature given"}'
        for data in (..., {}, {"temperature": ""}, {"temperature": None}, None, "20812", []):
            self.assertEqual(self.post(self.message(data=data)), wanted)

    def test_unknown_token_is_400(self):
        for token in ("0" * 32, "x", self.token[:-1], self.token.upper() + "0", "é", "0" * 10_000):
            with self.subTest(token[:40]), mock.patch.object(throttle, "LONGEST_DELAY_S", 0.0):
                self.assertEqual(self.error(self.message(token=token)), (400, "unknown token"))
        self.assertEqual(self.web.store.nodes(), [])

    def test_invalid_json_or_report_is_400(self):
        for data in (b"", b"x", b"[]", b'"x"', b"\xff", b"[" * 10_000, b'{"token":"a","token":"b"}', b'{"time":NaN}'):
            with self.subTest(data[:20]):
                self.assertEqual(self.error(data)[0], 400)
        for said in (self.message(token=5), self.message(type="humidity"), self.message(type=None)):
            self.assertEqual(self.error(said)[0], 400)
        self.assertEqual(self.web.store.nodes(), [])

    def test_too_long_body_is_413_and_missing_length_is_411(self):
        self.assertEqual(self.post(b" " * 20_000)[0], 413)
        self.assertEqual(self.web.request("GET", "/temp")[0], 405)
        status, _, _ = parse_response(self.web.raw(b"POST /temp HTTP/1.1\r\nHost: a\r\n\r\n", ends=False))
        self.assertEqual(status, 411)


class TokenCommands(TmonCase):
    """`manage.py get_token NODE`, `list`, `run`."""

    def control(self, *arguments, data=None):
        status, said, told = control_here("--data", data or self.web.folder, *arguments)
        self.assertEqual((status, told), (0, ""))
        return said.splitlines()

    def test_get_token_creates_a_token_once(self):
        said = self.control("get_token", "cellar")
        self.assertRegex(said[0], r"^[0-9a-f]{32}$")
        self.assertEqual(self.control("get_token", "cellar"), said)
        self.assertEqual(self.control("get_token", "attic"), [self.token])
        self.assertEqual(self.post(self.message(token=said[0])), (200, STORED))
        self.assertEqual(len(self.points("cellar")), 1)

    def test_list_prints_nodes_with_tokens(self):
        set_zone(self, "UTC")
        self.web.tokens.make("a-much-longer-name")
        self.post(self.message(time="2026-11-20T15:36:10Z"))
        self.assertEqual(
            self.control("list"),
            ["a-much-longer-name  no samples yet", "attic               2026-11-20 15:36:10+00:00"],
        )

    def test_list_without_nodes_is_empty(self):
        self.assertEqual(self.control("list", data=temp_folder(self)), [])

    def test_server_accepts_the_old_port(self):
        """`server.py`, also on the port where the clients look for it."""
        data = temp_folder(self)
        server = Forked(self, "server.py", "--data", data, "--web", "127.0.0.1:0", "--web", "127.0.0.1:0")
        ports = [int(re.search(r":(\d+)/", server.line())[1]) for _ in range(2)]
        token = get_token(data)
        for port in ports:
            self.assertEqual(run_client(self, port, token), (0, "{'success': True}"))
        server.terminate()
        self.assertEqual(server.wait(), 0)


def get_token(data):
    """Create and return the token of `attic`."""
    return control_here("--data", data, "get_token", "attic")[1].rstrip("\n")


def run_client(test, port, token, device=W1_SLAVE):
    """Run the old client as cron does, and return its exit status and output."""
    path = os.path.join(temp_folder(test), "w1_slave")
    with open(path, "w", encoding="ascii") as file:
        file.write(device)
    done = subprocess.run(
        [sys.executable, CLIENT, f"http://127.0.0.1:{port}", token, path], capture_output=True, text=True,
        timeout=LIMIT_S, env=clean_environment(),
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).strip()


class OldClient(TmonCase):
    """The old client: a script with its settings at the top, run by cron, which reads `w1_slave`."""

    def run_it(self, token=None, device=W1_SLAVE):
        return run_client(self, self.web.address[1], token or self.token, device)

    def test_old_client_sends_its_reading(self):
        self.assertEqual(self.run_it(), (0, "{'success': True}"))
        self.assertEqual(self.points()[0].values, {"temperature": 20.812})

    def test_old_client_understands_errors(self):
        self.assertEqual(self.run_it("0" * 32), (1, '400 {"success": false, "error": "unknown token"}'))
        self.assertEqual(self.run_it(device=W1_SLAVE.replace("t=20812", "t=")),
                         (1, "{'success': False, 'error': 'No temperature given'}"))  # fmt: skip
        with mock.patch.object(self.web.unnumbered_sources, "store", side_effect=NotStored("the disk is full")):
            status, said = self.run_it()
            self.assertEqual((status, said.partition(" ")[0]), (1, "503"))

    def test_old_client_does_not_send_a_reading_with_a_wrong_crc(self):
        self.assertEqual(self.run_it(device=W1_SLAVE.replace("YES", "NO")), (1, "CRC is wrong"))


class CronCheck(unittest.TestCase):
    """Check by cron, with a mail if the server does not run: `control.py check || mail ...`."""

    def test_check_reports_a_server_that_does_not_run(self):
        data = temp_folder(self)
        check = Forked(self, "control.py", "--data", data, "check")
        self.assertEqual(check.wait(), 1)
        self.assertIn("no running server uses", "\n".join(check.logged))
        server = Forked(self, "server.py", "--data", data, "--web", "127.0.0.1:0")
        port = int(re.search(r":(\d+)/", server.line())[1])
        token = get_token(data)
        self.assertEqual(run_client(self, port, token)[0], 0)

        def is_well():
            return control_here("--data", data, "check") == (0, "", "")

        wait_until(is_well, "all is well")

    def test_python_m_unittest_finds_and_runs_all_tests(self):
        """Discover the tests in this process, which has already loaded most of them."""
        loader = unittest.TestLoader()
        found = loader.discover(ROOT, top_level_dir=ROOT)
        self.assertEqual(loader.errors, [])
        self.assertGreater(found.countTestCases(), 1000)


class TmonRegressions(TmonCase):
    """Regressions of tmon: no response after a validation error, guessable tokens, success without storage."""

    def test_tokens_are_random(self):
        tokens = {self.web.tokens.make(f"node{n}") for n in range(50)}
        self.assertEqual(len({token[k] for token in tokens for k in (12, 16)} - set("14")) > 2, True)  # no uuid1
        self.assertEqual((len(tokens), {len(token) for token in tokens}), (50, {32}))

    def test_success_is_reported_only_after_storing(self):
        with mock.patch.object(unnumbered_sources, "STORE_S", 0.1), \
                mock.patch.object(self.web.store, "put", side_effect=NotStored("the disk is full")):  # fmt: skip
            data = json.dumps(self.message()).encode()

            def refused():
                """Return True if the response contains the reason. On a busy machine, STORE_S may end too early."""
                status, headers, answer = self.web.request("POST", "/temp", body=data)
                told = json.loads(answer)
                self.assertEqual((status, told["success"]), (503, False))
                self.assertGreater(int(headers["retry-after"]), 0)
                return "the disk is full" in told["error"]

            wait_until(refused, "the reason")
        self.web.ingestor.flush(LIMIT_S)
        self.assertEqual(self.points(), [])

    def test_request_cut_at_any_byte_stores_nothing(self):
        data = json.dumps(self.message()).encode()
        upload = f"POST /temp HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        for end in range(len(upload)):
            with self.web.connect() as sock, contextlib.suppress(OSError):
                sock.sendall(upload[:end])
                if end % 2:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # ends with a reset
        self.assertEqual(self.post(self.message()), (200, STORED))
        self.assertEqual(len(self.points()), 1)

    def test_acknowledged_readings_survive_kill_9(self):
        data, answered = temp_folder(self), []
        token = get_token(data)
        server = Forked(self, "server.py", "--data", data, "--web", "127.0.0.1:0")
        port = int(re.search(r":(\d+)/", server.line())[1])

        def send(first):
            for value in range(first, first + 10_000):
                said = json.dumps({"token": token, "data": {"temperature": str(value)}}).encode()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
                    head = f"POST /temp HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(said)}\r\n\r\n"
                    sock.sendall(head.encode() + said)
                    if b"".join(iter(lambda sock=sock: sock.recv(1 << 16), b"")).endswith(STORED):
                        answered.append(value / 1000)
                        continue
                return

        threads = [threading.Thread(target=send, args=(first,)) for first in (10_000, 20_000, 30_000)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answered) >= 50, "fifty are answered")
        server.kill()
        for thread in threads:
            thread.join(LIMIT_S)
        again = Forked(self, "server.py", "--data", data, "--web", "127.0.0.1:0")
        again.line()
        again.terminate()
        self.assertEqual(again.wait(), 0)
        with contextlib.closing(SqliteStore(data, look_only=True)) as store:
            stored = [point.values["temperature"] for point in store.points("attic", 0, 1 << 60, 100_000)]
        self.assertEqual(len(stored), len(set(stored)))
        self.assertLessEqual(set(answered), set(stored))
        self.assertLessEqual(len(stored), len(answered) + len(threads))

    def test_fifty_simultaneous_clients_are_served(self):
        answers = []

        def send():
            with contextlib.closing(self.web.connect()) as sock:
                data = json.dumps(self.message()).encode()
                head = f"POST /temp HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
                sock.sendall(head.encode() + data)
                answers.append(parse_response(b"".join(iter(lambda: sock.recv(1 << 16), b"")))[0])

        threads = [threading.Thread(target=send) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(len(answers), 50)
        self.assertLessEqual(set(answers), {200, 503})
        self.assertEqual(len(self.points()), answers.count(200))


if __name__ == "__main__":
    unittest.main()
