"""Tests of kind = "json": values in documents from HTTP and files, presets, and all errors."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import tracemalloc
import unittest
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from pigeonpost.core.config import load
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.json_fetch import LONGEST_ANSWER, JsonFetcher
from pigeonpost.sensors import json as json_kind
from pigeonpost.sensors.contract import Channel, dotted_path
from tests.http_servers import Server, raw_server, says
from tests.sensors.test_contract import Contract
from tests.support import LIMIT_S, ROOT, temp_folder, wait_until

# As developers.google.com/nest/device-access/api/thermostat shows it.
THERMOSTAT = {
    "name": "enterprises/p/devices/d", "type": "sdm.devices.types.THERMOSTAT", "traits": {
        "sdm.devices.traits.Connectivity": {"status": "ONLINE"}, "sdm.devices.traits.Fan": {"timerMode": "OFF"},
        "sdm.devices.traits.Humidity": {"ambientHumidityPercent": 35.0},
        "sdm.devices.traits.Temperature": {"ambientTemperatureCelsius": 23.5},
        "sdm.devices.traits.ThermostatEco": {"availableModes": ["MANUAL_ECO", "OFF"], "mode": "OFF"},
        "sdm.devices.traits.ThermostatHvac": {"status": "HEATING"},
        "sdm.devices.traits.ThermostatTemperatureSetpoint": {"heatCelsius": 20.0},
    },
}  # fmt: skip
# As Dwarfpool answered (2018).
POOL = {
    "autopayout_from": "5.000", "earning_24_hours": "0.01137842", "error": False, "immature_earning": 0.000455540976,
    "last_payment_amount": 0, "last_payment_date": None, "last_share_date": "Sat, 24 Mar 2018 21:09:25 GMT",
    "total_hashrate": 174, "total_hashrate_calculated": 197.03, "wallet": "0x4e2c", "wallet_balance": "0.78665394",
    "workers": {"rig.1": {
        "alive": True, "hashrate": 87.015, "hashrate_below_threshold": False, "hashrate_calculated": 98.515,
        "last_submit": "Sat, 24 Mar 2018 21:09:32 GMT", "second_since_submit": 342, "worker": "rig.1",
    }},
}  # fmt: skip


def find(path, answer, **words):
    return json_kind.find(dotted_path(path), words, answer)


class JsonCase(unittest.TestCase):
    def setUp(self):
        self.server = Server(self)

    def make(self, channels=None, **more):
        more = more if "url" in more or "file" in more else {"url": self.server.url + "/x", **more}
        return json_kind.make({"timeout": LIMIT_S, "channels": channels or {"x": {"path": "a"}}, **more}, "here")

    def read(self, answer, path="a", **more):
        self.server.answers["/x"] = answer
        return self.make({"x": {"path": path, **more}}).read()["x"]

    def assert_fails(self, *words, source=None, **more):
        with self.assertRaises(SensorError) as caught:
            (source or self.make(**more)).read()
        for word in words:
            self.assertIn(word, str(caught.exception))
        return str(caught.exception)


class Json(Contract, JsonCase):
    module = json_kind

    def make(self):
        self.server.answers["/x"] = {"a": 1}
        return JsonCase.make(self)

    def make_broken(self):
        return JsonCase.make(self, url=self.server.url + "/gone")


class Values(unittest.TestCase):
    def test_paths_are_parsed(self):
        answer = {"result": [{"value": 5}, {"value": "6.5"}], "a.b": {"c": 7}, "0": 8, "": 9, "it's": 10}
        for path, value in (
            ("result.0.value", 5), ("result.-1.value", 6.5), ('"a.b".c', 7), ("'a.b'.c", 7), ("0", 8), ('""', 9),
            ('"it\'s"', 10),
        ):  # fmt: skip
            with self.subTest(path):
                self.assertEqual(find(path, answer), value)
        self.assertEqual(find("", 21.5), 21.5)
        self.assertEqual(find("-2", [1, 2, 3]), 2)

    def test_numbers_are_found_in_numbers_texts_and_booleans(self):
        for there, value in (
            (5, 5), (-2.5, -2.5), ("21.5", 21.5), (" +3e2 ", 300), (".5", 0.5), ("5.", 5), (True, 1), (False, 0),
            (2**70, 2.0**70),
        ):  # fmt: skip
            with self.subTest(there):
                self.assertEqual(find("a", {"a": there}), value)
        self.assertEqual(find("a", {"a": "ON"}, ON=1, OFF=0), 1)

    def test_values_that_are_not_numbers_are_errors(self):
        for there, shown in (
            (None, "null"), ({}, "nothing"), ([1, 2], "a list of 2"), ("warm", '"warm"'), ("", '""'), ("nan", '"nan"'),
            ("1_0", '"1_0"'), ("\u0663", '"\\u0663"'), ("1e999", '"1e999"'), (float("nan"), "NaN"),
            (float("inf"), "Infinity"), (10**400, "1000"), ("9" * 500, '"9999'), ({"\x1b[2J": 1}, "'\\x1b[2J'"),
        ):  # fmt: skip
            with self.subTest(shown), self.assertRaises(SensorError) as caught:
                find("a", {"a": there})
            self.assertIn(f"no number at 'a', found: {shown}", str(caught.exception))
            self.assertLess(len(str(caught.exception)), 200)

    def test_missing_path_is_reported_with_what_was_found(self):
        for path, answer, words in (
            ("temp", {"temperature": 1, "h": 2}, "there is no 'temp'; found: 'temperature', 'h'"),
            ("a.2", {"a": [1, 2]}, "there is no 'a.2'; found: a list of 2"),
            ("a.-3", {"a": [1, 2]}, "there is no 'a.-3'; found: a list of 2 elements"),
            ("a.\u0661", {"a": [1, 2]}, "; found: a list of 2"),
            ("a." + "9" * 5000, {"a": [1, 2]}, "; found: a list of 2"),
            ("a", dict.fromkeys(map(str, range(5000))), "'9', ..."),
            ("a", {"k" * 5000: 1}, "found: 'kkk"),
            ("a", {"\x1b[2J": 1}, "found: '\\x1b[2J'"),
            ("a", "s" * 5000, 'found: "sss'),
        ):
            with self.subTest(words), self.assertRaises(SensorError) as caught:
                find(path, answer)
            self.assertIn(words, str(caught.exception))
            self.assertLess(len(str(caught.exception)), 600)


class Responses(JsonCase):
    def test_several_values_are_read_with_one_request(self):
        self.server.answers["/x"] = {"t": 21.5, "list": [{"on": True}], "h": "n/a"}
        source = self.make({
            "t": {"path": "t", "unit": "°C", "gain": 2, "offset": -1}, "on": {"path": "list.0.on"}, "h": {"path": "h"},
        })  # fmt: skip
        self.assertEqual(source.channels, [Channel("t", "°C"), Channel("on", ""), Channel("h", "")])
        readings = source.read()
        self.assertEqual((readings["t"], readings["on"]), (42, 1))
        self.assertEqual(str(readings["h"]), "no number at 'h', found: \"n/a\"; set `words` to convert texts")
        self.assertEqual(len(self.server.asked), 1)

    def test_request_contains_the_headers(self):
        with mock.patch.dict(os.environ, {"MY_KEY": "sesame"}):
            headers = {"X-Api-Key": "env:MY_KEY", "accept": "text/json"}
            source = self.make(url=self.server.url + "/x y/ä?q=1 2&k=ü%20#part", headers=headers)
        self.server.answers["/x%20y/%C3%A4"] = {"a": 5}
        self.assertEqual(source.read(), {"x": 5})
        ((method, path, sent, body),) = self.server.asked
        self.assertEqual((method, path, body), ("GET", "/x%20y/%C3%A4?q=1%202&k=%C3%BC%20", b""))
        self.assertEqual(sent["X-Api-Key"], "sesame")
        self.assertEqual(sent.get_all("Accept"), ["text/json"])
        self.assertRegex(sent["User-Agent"], "^pigeonpost/[0-9]")
        self.assertEqual(sent["Host"], self.server.url.removeprefix("http://"))

    def test_last_response_is_used_until_the_next_request(self):
        now, answers = [100.0], iter([1, SensorError("away"), 3])

        def ask():
            answer = next(answers)
            if isinstance(answer, SensorError):
                raise answer
            return answer

        source = json_kind.JsonSource([Channel("x", "")], ask, {"x": lambda answer: answer}, 60, lambda: now[0])
        self.assertEqual([source.read(), source.read()], [{"x": 1}] * 2)
        now[0] += 59.97  # one slot is slightly late and the next is on time, so the next request is due
        for _ in range(2):
            with self.assertRaisesRegex(SensorError, "away"):
                source.read()
        now[0] += 60
        self.assertEqual(source.read(), {"x": 3})

    def test_file_is_read(self):
        name = os.path.join(temp_folder(self), "state.json")
        source = self.make(file=name)
        self.assert_fails("state.json: No such file", source=source)
        for content, value in ((b'{"a": 5}', 5), (b'\xef\xbb\xbf{"a": 6}', 6)):
            with open(name, "wb") as file:
                file.write(content)
            self.assertEqual(source.read(), {"x": value})
        with open(name, "wb") as file:
            file.write(b" " * (LONGEST_ANSWER + 1))
        self.assert_fails("longer than 1048576 bytes", source=source)

    def test_calibration_result_that_is_not_finite_is_an_error(self):
        self.assertIn("too large after calibration", str(self.read({"a": 1e308}, gain=1e9)))

    def test_no_socket_is_left_open(self):
        self.server.answers["/x"] = {"a": 1}
        source = self.make()
        before = len(os.listdir("/proc/self/fd"))
        errors = []  # kept by the caller: they must not keep a connection open
        for n in range(20):
            source.read()
            self.server.answers["/long"] = (200, {"Transfer-Encoding": "chunked"} if n % 2 else {}, b"9" * 2_000_000)
            with self.assertRaises(SensorError) as caught:
                JsonFetcher(LIMIT_S).ask(self.server.url + "/long")
            errors.append(caught.exception)
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "all connections are closed")


class ResponseErrors(JsonCase):
    def test_http_status_is_reported_with_the_message_of_the_server(self):
        for status, body, words in (
            (404, b"<html>", "HTTP status 404: the address does not exist"),
            (500, b'{"error": {"code": 500, "message": "boiler\\u001b[2J fell"}}', "status 500, 'boiler\\x1b[2J fell'"),
            (401, b'{"error": "no", "error_description": "token old"}', "401, 'no', 'token old': it requires a token"),
            (429, b'{"message": "slower"}', "429, 'slower': too many requests; set a longer interval with every"),
            (403, b'{"error": ["x"], "message": 5}', "403: access denied"),
            (304, b"", "HTTP status 304"),
        ):
            with self.subTest(status):
                self.server.answers["/x"] = (status, {}, body)
                self.assert_fails(words)

    def test_response_that_is_not_json_is_an_error(self):
        for body, words in (
            (b"<html>hello", "expected JSON, not b'<html>hello'"), (b"", "expected JSON, not b''"),
            (b'{"a": 5', "expected JSON"),
            (b"[" * 100_000, "expected JSON, not b'[["), (b"\xff\xfe\x00", "expected JSON"),
            (b"9" * 5000, "expected JSON, not b'999"),
            (b" " * (LONGEST_ANSWER + 1), "longer than 1048576 bytes"),
        ):  # fmt: skip
            with self.subTest(words):
                self.server.answers["/x"] = (200, {}, body)
                self.assertLess(len(self.assert_fails(words)), 300)

    def test_bad_value_leaves_its_neighbours(self):
        for bad, shown in (
            (b"nan", '"nan"'), (b"NaN", '"NaN"'), (b"-Infinity", '"-Infinity"'), (b"1e999", '"1e999"'), (b"", "null"),
            (b"null", "null"), (b'"unavailable"', '"unavailable"; set `words` to convert texts'), (b"9" * 5000, '"999'),
        ):  # fmt: skip
            for form in (b'{"a":%s,"b":61}', b'{"b":61,"a":%s,}', b'{"unit":"\xb0C","a":%s,"b":61}'):
                self.server.answers["/x"] = (200, {}, form % bad)
                readings = self.make({"a": {"path": "a"}, "b": {"path": "b"}}).read()
                self.assertEqual(readings["b"], 61)
                self.assertTrue(str(readings["a"]).startswith(f"no number at 'a', found: {shown}"), readings)

    def test_null_replaces_the_value_of_the_previous_response(self):
        self.server.answers["/x"] = (200, {}, b'{"a":5}')
        source = self.make()
        self.assertEqual(source.read(), {"x": 5})
        self.server.answers["/x"] = (200, {}, b'{"a":null}')
        self.assertEqual(str(source.read()["x"]), "no number at 'a', found: null")

    def test_response_that_is_not_http_is_an_error(self):
        for talk, words in (
            (says(b"200 OK\r\nContent-Length: 100", b'{"a": 1}'), "its answer is incomplete"),
            (
                says(b"200 OK\r\nTransfer-Encoding: chunked", b"5\r\n[1,2"),
                "its answer is not valid HTTP (IncompleteRead)",
            ),
            (says(b"200 OK\r\nContent-Encoding: gzip", b"\x1f\x8b"), "a Content-Encoding that was not requested"),
            (lambda sock: sock.sendall(b"SSH-2.0-OpenSSH\r\n"), "its answer is not valid HTTP (BadStatusLine)"),
            (lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), "is not valid HTTP (LineTooLong)"),
            (
                lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200),
                "is not valid HTTP (HTTPException)",
            ),
            (lambda sock: None, "its answer is not valid HTTP (RemoteDisconnected)"),
        ):
            with self.subTest(words):
                self.assert_fails(words, url=raw_server(self, talk))

    def test_time_limit_applies_to_the_complete_response(self):
        def dribble(sock):
            for _ in range(10_000):
                sock.sendall(b" ")
                time.sleep(0.005)  # each single read is short

        def ask(talk):
            began_s = time.monotonic()
            self.assert_fails("no answer within 0.1 s", url=raw_server(self, talk), timeout=0.1)
            self.assertLess(time.monotonic() - began_s, 30)

        talks = (
            lambda sock: sock.recv(1),
            dribble,
            lambda sock: (says(b"200 OK\r\nContent-Length: 9999")(sock), dribble(sock)),
            lambda sock: (sock.sendall(b"HTTP/1.1 200 OK\r\nX: "), dribble(sock)),
        )
        with ThreadPoolExecutor(len(talks)) as pool:
            list(pool.map(ask, talks))  # raises the exception of the threads

    def test_response_length_is_limited_regardless_of_its_header(self):
        def flood(head):
            def talk(sock):
                sock.sendall(b"HTTP/1.1 200 OK\r\n" + head)
                for _ in range(50):
                    sock.sendall(b" " * (1 << 20))

            return talk

        for head in (
            b"\r\n", b"Content-Length: 99999999999\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        ):  # fmt: skip
            with self.subTest(head):
                source = self.make(url=raw_server(self, flood(head)))
                tracemalloc.start()
                try:
                    self.assert_fails(": longer than 1048576 bytes", source=source)
                    self.assertLess(tracemalloc.get_traced_memory()[1], 16 << 20)
                finally:
                    tracemalloc.stop()

    def test_unreachable_server_is_an_error(self):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # it does not listen; no other program can use this port in the meantime
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            self.assert_fails(f"{url}: Connection refused", url=f"{url}/secret?key=1")
        self.assert_fails("http://no.such.host.invalid: ", url="http://no.such.host.invalid/")

    def test_errors_contain_no_secrets(self):
        url = self.server.url + "/api/secret-user?key=secret-key"
        for answer in ((500, {}, b""), (200, {}, b"x"), (302, {"Location": "/?again=secret-again"}, b"")):
            for path in ("/api/secret-user", "/"):
                self.server.answers[path] = answer
            self.assertNotIn("secret", self.assert_fails(url=url, headers={"Authorization": "secret"}))

    def test_shown_settings_contain_no_secrets(self):
        name = os.path.join(temp_folder(self), "node.toml")
        with open(name, "w") as file:
            file.write(
                '[[sensor]]\nkind = "json"\nheaders = {Authorization = "sesame"}\nclient_secret = "sesame"\n'
                'refresh_token = "sesame"\ntoken_url = "http://a"\n'
            )
        shown = load([], mock.Mock(config=name), "", ("sensor",)).show()
        self.assertNotIn("sesame", shown)
        self.assertIn('token_url = "http://a"', shown)
        for option in ({"headers": {"a b": "sesame"}}, {"client_secret": "sesame\n"}):
            with self.assertRaises(SettingsError) as caught:
                self.make(**option)
            self.assertNotIn("sesame", str(caught.exception))


class Redirections(JsonCase):
    def moved(self, where, status=302):
        return (status, {"Location": where}, b"")

    def test_redirects_are_followed_without_sending_headers_to_other_servers(self):
        other = Server(self)
        self.server.answers["/x"] = self.moved("/y?z=1", 301)
        self.server.answers["/y"] = self.moved(other.url + "/z", 307)
        other.answers["/z"] = {"a": 7}
        self.assertEqual(self.make(headers={"Authorization": "Bearer me"}).read(), {"x": 7})
        self.assertEqual([sent["Authorization"] for _, _, sent, _ in self.server.asked], ["Bearer me"] * 2)
        self.assertEqual([(path, sent["Authorization"]) for _, path, sent, _ in other.asked], [("/z", None)])

    def test_invalid_redirects_are_errors(self):
        for where, words in (
            ("file:///etc/passwd", "redirects to an address that is not a valid http or https URL"),
            ("ftp://127.0.0.1/x", "redirects to an address that is not a valid http or https URL"),
            ("http://[::1/", "redirects to an address that is not a valid http or https URL"),
            ("http://me:too@127.0.0.1/", "redirects to an address that is not a valid"),
            ("http://a\x1b[2J b.invalid/", "http://"),
            ("/x", "redirects too often"),
            ("", "redirects too often"),
        ):
            with self.subTest(where):
                self.server.answers["/x"] = self.moved(where)
                self.assertTrue(self.assert_fails(words).isprintable())


class Encryption(JsonCase):
    def setUp(self):
        if not shutil.which("openssl"):
            self.assertFalse(os.environ.get("CI"), "openssl is missing")
            self.skipTest("openssl is not installed")
        folder = temp_folder(self)
        self.key, self.certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
             "2", "-keyout", self.key, "-out", self.certificate, "-subj", "/CN=device", "-addext",
             "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True, timeout=LIMIT_S,
        )  # fmt: skip
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.certificate, self.key)
        self.server = Server(self, tls)
        self.server.answers["/x"] = {"a": 5}

    def test_only_the_given_certificate_is_trusted(self):
        self.assertEqual(self.make(ca=self.certificate).read(), {"x": 5})
        self.assert_fails("self-signed certificate", "set ca")

    def test_redirect_from_https_to_http_is_refused(self):
        plain = Server(self)
        self.server.answers["/x"] = (302, {"Location": plain.url + "/x"}, b"")
        self.assert_fails("which is not encrypted", source=self.make(ca=self.certificate))
        self.assertEqual(plain.asked, [])

    def test_redirect_from_http_to_https_is_followed(self):
        plain = Server(self)
        plain.answers["/x"] = (302, {"Location": self.server.url + "/x"}, b"")
        self.assertEqual(self.make(url=plain.url + "/x", ca=self.certificate).read(), {"x": 5})

    def test_invalid_ca_file_is_refused(self):
        for ca in ("/nowhere.pem", __file__):
            with self.assertRaisesRegex(SettingsError, "^here: ca takes a file of certificates"):
                self.make(ca=ca)


class Dwarfpool(JsonCase):
    def make(self, channels=None, **more):
        self.server.answers["/x"] = POOL
        url = self.server.url + "/x?wallet=0x4e2c&email=me@example.com"
        channels = {} if channels is None else {"channels": channels}
        return json_kind.make({"preset": "dwarfpool", "url": url, "timeout": LIMIT_S, **channels, **more}, "here")

    def test_default_channels_of_the_pool_are_read(self):
        source = self.make()
        self.assertEqual(source.channels, [Channel("hashrate", "MH/s"), Channel("balance", "")])
        self.assertEqual(source.read(), {"hashrate": 174, "balance": 0.786654})
        source.read()
        self.assertEqual([path for _, path, _, _ in self.server.asked], ["/x?wallet=0x4e2c&email=me@example.com"])

    def test_values_of_one_worker_can_have_other_names(self):
        readings = self.make({
            "rig": {"worker": "rig.1", "value": "hashrate"}, "alive": {"worker": "rig.1"},
            "age": {"worker": "rig.1", "value": "since_submit"},
            "slow": {"worker": "rig.1", "value": "below_threshold"},
            "made": {"value": "earning_24_hours", "gain": 1000}, "payout": {"path": "autopayout_from"},
            "gone": {"worker": "rig.2", "value": "hashrate"},
        }).read()  # fmt: skip
        self.assertIn("there is no 'workers.rig.2'; found: 'rig.1'", str(readings.pop("gone")))
        self.assertEqual(readings, {"rig": 87.015, "alive": 1, "age": 342, "slow": 0, "made": 11.37842, "payout": 5})

    def test_error_of_the_pool_is_reported(self):
        source = self.make()
        self.server.answers["/x"] = {"error": True, "error_code": "API_DOWN"}
        self.assert_fails("the pool reports the error 'API_DOWN'", source=source)

    def test_every_value_of_the_preset_is_found(self):
        self.assertEqual(set(self.make({name: {} for name in json_kind.POOL}, every=0).read()), set(json_kind.POOL))
        readings = self.make({name: {"worker": "rig.1"} for name in json_kind.WORKER}).read()
        self.assertTrue(all(isinstance(value, float) for value in readings.values()), readings)


class Nest(JsonCase):
    """Preset "nest", with one server in the roles of both Google servers."""

    def setUp(self):
        super().setUp()
        self.tokens = 0
        self.good = ""
        self.lasts_s = 3599
        self.server.answers["/token"] = self.give_token
        self.server.answers["/v1/enterprises/p/devices/d"] = self.thermostat
        self.answer = THERMOSTAT

    def give_token(self):
        self.tokens += 1
        self.good = f"ya29.{self.tokens}"
        return {"access_token": self.good, "expires_in": self.lasts_s, "scope": "sdm.service", "token_type": "Bearer"}

    def thermostat(self):
        if self.server.asked[-1][2]["Authorization"] != f"Bearer {self.good}":
            error = {
                "code": 401,
                "message": "Request had invalid authentication credentials.",
                "status": "UNAUTHENTICATED",
            }
            return (401, {}, json.dumps({"error": error}).encode())
        return self.answer

    def make(self, channels=None, **more):
        table = {
            "preset": "nest", "timeout": LIMIT_S, "project": "p",
            "device": "enterprises/p/devices/d", "client_id": "id&",
            "client_secret": "secret", "refresh_token": "1//refresh", "url": self.server.url + "/v1/", "every": 0,
            "token_url": self.server.url + "/token", **({} if channels is None else {"channels": channels}), **more,
        }  # fmt: skip
        return json_kind.make({key: value for key, value in table.items() if value is not None}, "here")

    def requests(self):
        return [path for _, path, _, _ in self.server.asked]

    def test_default_channels_of_a_thermostat_are_read(self):
        source = self.make()
        self.assertEqual(source.channels, [Channel("temperature", "°C"), Channel("humidity", "%")])
        self.assertEqual(source.read(), {"temperature": 23.5, "humidity": 35})
        method, _, sent, body = self.server.asked[0]
        self.assertEqual((method, sent["Content-Type"]), ("POST", "application/x-www-form-urlencoded"))
        self.assertEqual(dict(urllib.parse.parse_qsl(body.decode())), {
            "client_id": "id&", "client_secret": "secret", "refresh_token": "1//refresh", "grant_type": "refresh_token",
        })  # fmt: skip

    def test_all_values_of_a_thermostat_are_read(self):
        self.answer = json.loads(json.dumps(THERMOSTAT))
        self.answer["traits"]["sdm.devices.traits.ThermostatTemperatureSetpoint"]["coolCelsius"] = 24.0
        self.assertEqual(self.make({name: {} for name in json_kind.NEST}).read(), {
            "temperature": 23.5, "humidity": 35, "heat_setpoint": 20, "cool_setpoint": 24, "heating": 1, "cooling": 0,
            "eco": 0, "fan": 0, "online": 1,
        })  # fmt: skip

    def test_value_of_another_mode_is_reported_as_missing(self):
        reading = self.make({"cool_setpoint": {}}).read()["cool_setpoint"]
        self.assertIn("found: 'heatCelsius'", str(reading))

    def test_access_token_is_reused(self):
        source = self.make()
        for _ in range(3):
            source.read()
        self.assertEqual(self.requests(), ["/token"] + ["/v1/enterprises/p/devices/d"] * 3)

    def test_access_token_is_fetched_again_shortly_before_it_expires(self):
        now = [1000.0]
        token = json_kind.AccessToken(JsonFetcher(LIMIT_S), self.server.url + "/token", "form", lambda: now[0])
        for passes_s, wanted in ((0, "ya29.1"), (3538, "ya29.1"), (1.1, "ya29.2")):
            now[0] += passes_s
            self.assertEqual(token.get(), wanted)
        for lasts_s, kept_s in ((30, 15), ("soon", 3540), (-5, 3540), (None, 3540), (True, 0.5)):
            self.lasts_s = lasts_s
            token.forget()
            first = token.get()
            now[0] += kept_s - 0.1
            self.assertEqual(token.get(), first, lasts_s)
            now[0] += 0.2
            self.assertNotEqual(token.get(), first, lasts_s)

    def test_rejected_access_token_is_fetched_again_once(self):
        source = self.make()
        source.read()
        self.good = "revoked"
        self.assertEqual(source.read()["temperature"], 23.5)
        self.assertEqual(self.tokens, 2)
        self.server.answers["/v1/enterprises/p/devices/d"] = (401, {}, b"{}")
        self.assert_fails("HTTP status 401: it requires a token", source=source)
        self.assertEqual(self.tokens, 3)

    def test_invalid_refresh_token_is_reported(self):
        body = b'{"error": "invalid_grant", "error_description": "Token has been expired or revoked."}'
        self.server.answers["/token"] = (400, {}, body)
        said = self.assert_fails("400, 'invalid_grant', 'Token has been expired or revoked.'", "docs/sensors.md",
                                 source=self.make())  # fmt: skip
        self.assertNotIn("1//refresh", said)
        for answer in ({}, [], {"access_token": 5}, {"access_token": "a\r\nb"}, {"access_token": "ü"}):
            self.server.answers["/token"] = answer
            self.assert_fails("the response contains no access_token", source=self.make())

    def test_nest_request_interval_is_one_minute_by_default(self):
        source = self.make(every=None)
        for _ in range(3):
            source.read()
        self.assertEqual(len(self.server.asked), 2)
        self.assertEqual(json_kind._NEST_URL, "https://smartdevicemanagement.googleapis.com/v1")
        self.assertEqual(json_kind._TOKEN_URL, "https://www.googleapis.com/oauth2/v4/token")

    def test_secrets_are_read_from_variables_and_files(self):
        folder = temp_folder(self)
        with open(os.path.join(folder, "refresh"), "w") as file:
            file.write("from-file \nsecond line\n")
        with mock.patch.dict(os.environ, {"NEST_SECRET": "from-env", "CREDENTIALS_DIRECTORY": folder}):
            source = self.make(client_secret="env:NEST_SECRET", refresh_token="file:$CREDENTIALS_DIRECTORY/refresh")
        source.read()
        body = self.server.asked[0][3].decode()
        self.assertIn("client_secret=from-env&refresh_token=from-file&", body)
        for value, words in (
            ("env:NOT_SET_ANYWHERE", "refers to the variable NOT_SET_ANYWHERE, which is not set"),
            ("file:/nowhere", "refers to a file that cannot be read"),
            ("", "takes a string of ASCII characters"),
        ):
            with self.assertRaises(SettingsError) as caught:
                self.make(client_secret=value)
            self.assertIn(f"here: client_secret {words}", str(caught.exception))


class Tables(JsonCase):
    def test_invalid_tables_are_refused(self):
        nest = {"preset": "nest", "project": "p", "device": "d", "client_id": "i", "client_secret": "s"}
        url = {"url": "http://a/"}
        channels = {"channels": {"x": {"path": "a"}}}
        for table, words in (
            ({}, "must have either `url` or `file`"),
            ({"url": "http://a", "file": "/x"}, "must have either `url` or `file`"),
            (url, "channels is missing; for example: channels.power ="),
            ({**url, "channels": {"x": {}}}, "channels.x: path is missing"),
            ({**url, "channels": {"x": {"path": "a..b"}}}, "path takes keys and indices separated by dots"),
            ({**url, "channels": {"x": {"path": 5}}}, "path takes a string"),
            ({**url, "channels": {"x": {"path": "a", "worker": "b"}}}, 'worker is only for preset = "dwarfpool"'),
            ({**url, "channels": {"x": {"path": "a", "value": "b"}}}, "must have either `path` or `value`, not both"),
            ({**url, "channels": {"x": {"path": "a", "words": {"ON": "x"}}}}, "words takes a number"),
            ({**channels, "url": "ftp://a/"}, "url takes an address that begins with http:// or https://"),
            ({**channels, "url": "http://"}, "url takes an address"),
            ({**channels, "url": "http://a:99999/"}, "url takes an address whose port is a number"),
            (
                {**channels, "url": "http://[::1/"},
                "url takes an address that begins with http:// or https:// and a host",
            ),
            ({**channels, "url": "http://me:sesame@a/"}, "url must not contain a user and a password"),
            ({**channels, **url, "timeout": 0}, "timeout takes a number from 0.1"),
            ({**channels, **url, "headers": {"a b": "c"}}, "headers takes names of HTTP headers as keys"),
            ({**channels, **url, "headers": {"a": "b\r\nc: d"}}, "headers takes a string of ASCII characters"),
            ({**channels, **url, "device": "d"}, 'device is only for preset = "nest"'),
            ({**channels, **url, "preset": "tado"}, "preset takes 'nest' or 'dwarfpool'"),
            ({"preset": "dwarfpool"}, "must have either `url` or `file`"),
            (
                {"preset": "dwarfpool", **url, "channels": {"x": {}}},
                "value must be one of hashrate, hashrate_calculated, ",
            ),
            (nest, 'preset = "nest" requires refresh_token'),
            ({**nest, "file": "/x"}, 'preset = "nest" cannot have a `file`'),
            ({**nest, "refresh_token": "r", "token_url": "x"}, "token_url takes an address"),
        ):
            with self.subTest(words), self.assertRaises(SettingsError) as caught:
                json_kind.make(table, "here")
            self.assertTrue(str(caught.exception).startswith("here: "), caught.exception)
            self.assertIn(words, str(caught.exception))
            self.assertNotIn("sesame", str(caught.exception))

    def test_module_does_not_hide_the_json_library(self):
        self.assertEqual((json_kind.__name__, json.__name__), ("pigeonpost.sensors.json", "json"))
        for code in (
            "from pigeonpost.sensors import json; json.make",
            "import pigeonpost.sensors.mqtt; from pigeonpost.sensors import json; json.make",
        ):
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=LIMIT_S)


class LongTexts(unittest.TestCase):
    def test_long_text_that_is_not_a_number_is_refused_quickly(self):
        began_s = time.process_time()
        self.assertFalse(json_kind._NUMBER("9" * 40_000 + "x"))
        self.assertLess(time.process_time() - began_s, 1.0)  # with quadratic time it was 50 s


if __name__ == "__main__":
    unittest.main()
