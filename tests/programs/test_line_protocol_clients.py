"""Line protocol and readings from real clients: InfluxDB's Python clients for v1 and v2, and curl.

Telegraf is neither in Debian nor on PyPI. Its requests are sent as its source makes them (plugins/outputs/influxdb/
http.go and influxdb_v2/http.go of 2026): v1 with chunks, both with gzip, and the blocks of docs/other-devices.md.
"""

import base64
import gzip
import http.client
import importlib.util
import json
import os
import subprocess
import tomllib
import types
import unittest
from datetime import UTC, datetime
from unittest import mock
from urllib.parse import urlsplit

from tests.document_blocks import blocks_of
from tests.programs import need_programs
from tests.support import WALL_MS
from tests.transports.test_readings_server import InCase


def setUpModule():
    need_programs("curl")
    for name in ("influxdb", "influxdb_client"):
        if importlib.util.find_spec(name) is None:
            if os.environ.get("CI"):
                raise AssertionError(f"the library {name} is not installed")
            raise unittest.SkipTest(f"the library {name} is not installed")


def block(words):
    """Return the example of docs/other-devices.md that contains `words`."""
    (found,) = [one.text for one in blocks_of("docs/other-devices.md") if words in one.text]
    return found


class ClientCase(InCase):
    def setUp(self):
        self.open()
        self.url = "http://{}:{}".format(*self.web.address)


class Libraries(ClientCase):
    def client_1(self, **more):
        import influxdb

        host, port = self.web.address
        client = influxdb.InfluxDBClient(host, port, "any", self.writer, "home", **more)
        self.addCleanup(client.close)
        return client

    def test_client_of_influxdb_1_writes_points(self):
        for number, client in enumerate((self.client_1(), self.client_1(gzip=True))):
            self.assertEqual(client.ping(), "1.8-pigeonpost")
            client.create_database("home")
            time = WALL_MS + number
            point = {"measurement": "weather", "tags": {"device": "shed"}, "time": time,
                     "fields": {"temperature": 21.5, "count": 7, "on": True, "text": 'a "b", c'}}  # fmt: skip
            for _ in range(2):
                self.assertTrue(client.write_points([point], time_precision="ms"))
        values = {"weather_temperature": 21.5, "weather_count": 7, "weather_on": 1}
        self.assertEqual(self.stored(), [(WALL_MS, values), (WALL_MS + 1, values)])

    def test_client_of_influxdb_1_reports_errors(self):
        from influxdb.exceptions import InfluxDBClientError

        client = self.client_1()
        for lines, words in (("m,node=shed f=1 1\noops", "partial write: line 2"), ("oops", "unable to parse: line 1")):
            with self.assertRaisesRegex(InfluxDBClientError, words) as caught:
                client.write_points(lines, protocol="line", time_precision="ms")
            self.assertEqual(caught.exception.code, 400)
        client.switch_user("any", "wrong")
        with self.assertRaisesRegex(InfluxDBClientError, "This token is unknown"):
            client.write_points("m,node=shed f=1 1", protocol="line")

    def client_2(self, token=None, **more):
        from influxdb_client import InfluxDBClient

        client = InfluxDBClient(self.url, token or self.writer, org="any", **more)
        self.addCleanup(client.close)
        return client

    def test_client_of_influxdb_2_writes_points(self):
        from influxdb_client import Point
        from influxdb_client.client.write_api import SYNCHRONOUS

        for number, client in enumerate((self.client_2(), self.client_2(enable_gzip=True))):
            self.assertTrue(client.ping())
            with self.assertWarns(DeprecationWarning):  # in favour of `ping`
                self.assertEqual(client.health().status, "pass")
            time = datetime.fromtimestamp((WALL_MS + number) / 1000, UTC)
            point = Point("weather").tag("device", "Living room").field("temperature", 21.5).time(time)
            for _ in range(2):
                client.write_api(write_options=SYNCHRONOUS).write("any", record=point)
        values = {"weather_temperature": 21.5}
        self.assertEqual(self.stored("Living-room"), [(WALL_MS, values), (WALL_MS + 1, values)])

    def test_client_of_influxdb_2_sends_batches(self):
        with self.client_2().write_api() as api:
            for number in range(3000):
                api.write("any", record=f"m,node=shed f={number} {WALL_MS + number}", write_precision="ms")
        self.assertEqual([values["m_f"] for _, values in self.stored()], list(range(3000)))

    def test_client_of_influxdb_2_reports_errors(self):
        from influxdb_client.client.write_api import SYNCHRONOUS
        from influxdb_client.rest import ApiException

        for token, lines, status, words in (
            (None, "m,node=shed f=1 1\noops", 400, "partial write: line 2"),
            ("pp_" + "0" * 40, "m,node=shed f=1 1", 401, "This token is unknown"),
        ):
            api = self.client_2(token).write_api(write_options=SYNCHRONOUS)
            with self.assertRaises(ApiException) as caught:
                api.write("any", record=lines, write_precision="ms")
            self.assertEqual(caught.exception.status, status)
            self.assertIn(words, json.loads(caught.exception.body)["message"])


class Telegraf(ClientCase):
    """The requests of Telegraf with the blocks of the manual."""

    LINES = (
        f"cpu,cpu=cpu-total,host=pi usage_idle=97.5,usage_user=1.25 {WALL_MS}000000\n"
        f"mem,host=pi used_percent=41.2,total=3978604544i {WALL_MS}000000\n"
        f'system,host=pi uptime_format="1 day,  2:03",n_cpus=4i,uptime=93780i {WALL_MS}000000\n'
    )
    VALUES = {
        "cpu_usage_idle_cpu_total": 97.5, "cpu_usage_user_cpu_total": 1.25, "mem_used_percent": 41.2,
        "mem_total": 3978604544, "system_n_cpus": 4, "system_uptime": 93780,
    }  # fmt: skip

    def settings(self, words):
        (output,) = tomllib.loads(block(words))["outputs"].values()
        self.assertEqual(urlsplit(output[0]["urls"][0]).scheme, "http")
        text = json.dumps(output[0]).replace("TOKEN", self.writer)
        return json.loads(text)

    def post(self, path, headers, body):
        connection = http.client.HTTPConnection(*self.web.address)
        self.addCleanup(connection.close)
        headers = {"User-Agent": "Telegraf/1.38.0 Go/1.26", "Content-Type": "text/plain; charset=utf-8", **headers}
        connection.request("POST", path, body, headers, encode_chunked=not isinstance(body, bytes))
        answer = connection.getresponse()
        return answer.status, answer.read()

    def test_output_for_influxdb_2_is_accepted(self):
        output = self.settings("outputs.influxdb_v2")
        path = f"/api/v2/write?bucket={output['bucket']}&org={output['organization']}"
        headers = {"Authorization": f"Token {output['token']}", "Content-Encoding": "gzip"}
        for _ in range(2):
            self.assertEqual(self.post(path, headers, gzip.compress(self.LINES.encode())), (204, b""))
        self.assertEqual(self.stored("pi"), [(WALL_MS, self.VALUES)])

    def test_output_for_influxdb_1_is_accepted(self):
        output = self.settings("outputs.influxdb]]")
        pair = base64.b64encode(f"{output['username']}:{output['password']}".encode()).decode()
        headers = {"Authorization": f"Basic {pair}"}
        form = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        status, answer = self.post("/query", form, b"q=CREATE+DATABASE+%22any%22")
        self.assertEqual((status, json.loads(answer)), (200, {"results": [{"statement_id": 0}]}))
        data = gzip.compress(self.LINES.encode())
        chunks = [data[place : place + 50] for place in range(0, len(data), 50)]
        headers |= {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
        for _ in range(2):
            self.assertEqual(self.post(f"/write?db={output['database']}", headers, iter(chunks)), (204, b""))
        self.assertEqual(self.stored("pi"), [(WALL_MS, self.VALUES)])


class Devices(ClientCase):
    def test_requests_of_tasmota_are_accepted(self):
        """As xdrv_59_influxdb.ino of Tasmota sends them: v1 with the token twice, v2, and no times."""
        text = b"temperature,device=tasmota_1,sensor=ds18b20,id=01144A0CB2AA value=26.44\n"
        text += b"power1,device=tasmota_1,sensor=device value=1"
        for path in (f"/write?db=any&u=any&p={self.writer}", "/api/v2/write?org=any&bucket=any"):
            headers = {"Authorization": f"Token {self.writer}", "Content-Type": "text/plain"}
            self.assertEqual(self.web.request("POST", path, headers, text)[0], 204)
        names = {"temperature_01144a0cb2aa_ds18b20", "power1_device"}
        self.assertEqual([values.keys() for _, values in self.stored("tasmota_1")], [names, names])

    def test_block_for_micropython_stores_a_reading(self):
        def post(url, json, headers):
            status, _, _ = self.web.request(
                "POST", urlsplit(url).path, headers, __import__("json").dumps(json).encode()
            )
            return types.SimpleNamespace(status_code=status, close=lambda: None)

        names = {}
        with mock.patch.dict("sys.modules", urequests=types.SimpleNamespace(post=post)):
            exec(block("import urequests").replace("TOKEN", self.writer), names)
            self.assertEqual([names["send"](21.5, 7), names["send"](21.5, 7)], [True, True])
        self.assertEqual([values for _, values in self.stored()], [{"temperature": 21.5}])

    def test_commands_of_the_manual_store_readings(self):
        with open(os.path.join(self.web.folder, "readings.json"), "w", encoding="utf-8") as file:
            file.write(block('[{"node": "shed"'))
        for words in ('\'{"node": "shed"', "@readings.json", "weather,device=shed"):
            command = block(words).replace("http://127.0.0.1:8080", self.url)
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, cwd=self.web.folder,
                env={**os.environ, "TOKEN": self.writer},
            )  # fmt: skip
            self.assertEqual((done.returncode, "error" in done.stdout), (0, False), done)
        self.assertEqual(len(self.stored()), 3)
        self.assertEqual([values for _, values in self.stored("attic")], [{"temperature": 24.1}])


if __name__ == "__main__":
    unittest.main()
