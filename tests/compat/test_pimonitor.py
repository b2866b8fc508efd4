"""Tests of the pimonitor transport with the original requests and responses."""

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from unittest import mock
from zoneinfo import ZoneInfo

from pigeonpost.auth import throttle
from pigeonpost.compat import pimonitor
from pigeonpost.compat.pimonitor import (
    BadDeviceReport,
    DeviceReading,
    Names,
    node_name,
    read_sensors,
    read_timestamp,
    snake,
)
from pigeonpost.core import json_file
from pigeonpost.core.clock import Clock, parse_rfc3339
from pigeonpost.core.errors import DamagedFile, DiskError, NotStored, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.server import unnumbered_sources
from protocol import NODE_NAME, SENSOR_NAME
from tests.forked import Forked
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, ROOT, clean_environment, temp_folder, wait_until
from tests.web.support import WebHouse, parse_response

CLIENT = os.path.join(ROOT, "tests", "compat", "pimonitor_client.py")
KEY = "an old key"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
STAMP = "11/20/2026 15:36:10"
STORED = f"[{STAMP}] Successfully received and inserted into database."
NOT_JSON = "An unexpected error occured.  Try again."
DHT22 = {"sensorType": "DHT22", "temperature": 71.6, "humidity": 40.1}
SETTINGS = f"""
[pimonitor]
api_key = "{KEY}"
zone = "America/New_York"
[[location]]
name = "Wohnzimmer"
node = "living"
unit = "C"
zone = "Europe/Berlin"
"""


def setUpModule():
    use_memory_disk()


class PimonitorCase(unittest.TestCase):
    def setUp(self):
        self.open()

    def open(self, settings=SETTINGS):
        self.web = WebHouse(self, transports=[pimonitor.PiMonitorTransport], settings=settings)

    def message(self, **changes):
        said = {"api_hash": HASH, "location": "Kitchen", "timestamp": STAMP, "sensors": [DHT22], **changes}
        return {key: value for key, value in said.items() if value is not ...}

    def post(self, said=None, **changes):
        """Send bytes or a JSON value, and return status and text of the response."""
        data = said if isinstance(said, bytes) else json.dumps(self.message(**changes)).encode()
        status, _, answer = self.web.request("POST", "/", {"Content-Type": "application/json"}, data)
        return status, answer.decode()

    def points(self, node="Kitchen"):
        return self.web.store.points(node, 0, 1 << 60, 10_000)

    def values(self, node="Kitchen"):
        return self.points(node)[-1].values


class PostReadings(PimonitorCase):
    """`POST /` with api_hash, location, timestamp and sensors."""

    def test_conversation_of_the_old_device_is_unchanged(self):
        data = json.dumps(self.message()).encode()
        request = (
            "POST / HTTP/1.1\r\nHost: 192.168.1.10:5000\r\nUser-Agent: python-requests/2.18.4\r\n"
            "Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        ).encode()
        head, _, body = self.web.raw(request + data).partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertIn(b"\r\nContent-Type: text/plain", head)
        self.assertEqual(body, b"[11/20/2026 15:36:10] Successfully received and inserted into database.")

    def test_readings_are_stored_in_celsius_and_utc(self):
        self.assertEqual(self.post(), (200, STORED))
        self.assertEqual(self.values(), {"temperature": 22.0, "humidity": 40.1})
        self.assertEqual(self.points()[0].time_ms, parse_rfc3339("2026-11-20T20:36:10Z"))
        self.assertEqual(self.web.store.nodes()[0]["sensors"], {"temperature": "°C", "humidity": "%"})

    def test_location_can_have_its_own_unit_zone_and_node(self):
        self.assertEqual(self.post(location="Wohnzimmer"), (200, STORED))
        self.assertEqual(self.values("living"), {"temperature": 71.6, "humidity": 40.1})
        self.assertEqual(self.points("living")[0].time_ms, parse_rfc3339("2026-11-20T14:36:10Z"))

    def test_location_becomes_the_node_name(self):
        for location, wanted in (
            ("Living room", "Living-room"),
            ("  Küche/2 ", "K-che-2"),
            ("../../etc", "etc"),
            ("x" * 200, "x" * 63),
        ):
            self.assertEqual(self.post(location=location), (200, STORED))
            self.assertEqual(len(self.points(wanted)), 1)

    def test_key_hash_may_be_in_capitals(self):
        self.assertEqual(self.post(api_hash=HASH.upper())[0], 200)

    def test_wrong_key_hash_is_401(self):
        with self.assertLogs("pigeonpost.compat.pimonitor", "WARNING") as logs:
            for said in (
                ..., "", KEY, HASH[:-1], HASH[:-1] + ("0" if HASH[-1] != "0" else "1"), None, 5, ["x"], "é" * 64,
            ):  # fmt: skip
                with self.subTest(said), mock.patch.object(throttle, "LONGEST_DELAY_S", 0.0):
                    status, text = self.post(api_hash=said)
                    self.assertEqual(status, 401)
                    self.assertNotIn("Successfully", text)
        self.assertEqual(len(logs.output), 1)
        self.assertEqual(self.web.store.nodes(), [])

    def test_front_page_is_still_served(self):
        self.assertIn(b"Pigeonpost house", self.web.request("GET", "/")[2])

    def test_transport_is_off_without_a_key(self):
        server = Forked(self, "server.py", "--data", temp_folder(self), "--web", "127.0.0.1:0")
        port = int(re.search(r":(\d+)/", server.line())[1])
        self.assertEqual(run_device(self, port)[0], 1)


class PimonitorResponses(PimonitorCase):
    """Responses to valid and invalid requests."""

    def test_invalid_json_is_400_with_the_original_text(self):
        for data in (
            b"",
            b"x",
            b"[]",
            b"5",
            b"\xff",
            b"location=Kitchen",
            b"[" * 50_000,
            b'{"a":1,"a":2}',
            b'{"a":NaN}',
        ):
            with self.subTest(data[:20]):
                self.assertEqual(self.post(data), (400, NOT_JSON))

    def test_index_returns_text(self):
        status, headers, body = self.web.request("GET", "/index")
        self.assertEqual((status, headers["content-type"]), (200, "text/plain; charset=utf-8"))
        self.assertTrue(body)

    def test_invalid_report_is_400_and_nothing_is_stored(self):
        for changes, words in (
            ({"location": ...}, "location"), ({"location": " "}, "location"), ({"location": 5}, "location"),
            ({"location": "x" * 201}, "location"), ({"location": "ÄÖ"}, "[[location]]"),
            ({"timestamp": ...}, "timestamp"), ({"timestamp": "2026-11-20"}, "MM/DD/YYYY"),
            ({"timestamp": "02/30/2026 10:00:00"}, "MM/DD/YYYY"), ({"timestamp": "11/20/0000 10:00:00"}, "MM/DD/YYYY"),
            ({"timestamp": STAMP + "Z"}, "MM/DD/YYYY"), ({"timestamp": "1١/20/2026 15:36:10"}, "MM/DD/YYYY"),
            ({"sensors": ...}, "sensors"), ({"sensors": []}, "sensors"), ({"sensors": {}}, "sensors"),
            ({"sensors": [DHT22] * 65}, "sensors"), ({"sensors": ["x"]}, "sensor 1"),
            ({"sensors": [DHT22, {"sensorType": "DHT22"}]}, "sensor 2 has no value"),
            ({"sensors": [{**DHT22, "temperature": "warm"}]}, "sensor 1: temperature"),
            ({"sensors": [{**DHT22, "temperature": True}]}, "sensor 1: temperature"),
            ({"sensors": [{**DHT22, "temperature": 10**30}]}, "sensor 1: temperature"),
            ({"sensors": [{**DHT22, "°": 1}]}, "sensor 1"),
            ({"sensors": [{f"v{n}": n for n in range(65)}]}, "sensor 1"),
        ):  # fmt: skip
            with self.subTest(changes):
                status, text = self.post(**changes)
                self.assertEqual(status, 400)
                self.assertIn(words, text)
                self.assertNotIn("Successfully", text)
        self.assertEqual(self.web.store.nodes(), [])

    def test_too_long_body_is_413(self):
        self.assertEqual(self.post(b" " * 70_000)[0], 413)


class SeveralSensors(PimonitorCase):
    """Devices with several sensors: no reading is lost or stored under the name of another sensor."""

    def test_every_sensor_after_the_first_is_stored_too(self):
        sensors = [
            DHT22,
            {"sensorType": "BMP280", "temperature": 68, "pressure": 1013.2},
            {"sensorType": "BH1750", "lightLevel": 230},
        ]
        self.assertEqual(self.post(sensors=sensors), (200, STORED))
        wanted = {
            "temperature": 22.0,
            "humidity": 40.1,
            "bmp280_temperature": 20.0,
            "pressure": 1013.2,
            "light_level": 230,
        }
        self.assertEqual(self.values(), wanted)
        self.assertEqual(len(self.points()), 1)

    def test_missing_sensor_is_not_replaced_by_another(self):
        other = {"sensorType": "BMP280", "temperature": 68}
        self.post(sensors=[DHT22, other])
        self.post(sensors=[other])
        self.assertEqual(self.values(), {"bmp280_temperature": 20.0})
        self.post(sensors=[other, DHT22])
        self.assertEqual(self.values(), {"bmp280_temperature": 20.0, "temperature": 22.0, "humidity": 40.1})

    def test_channel_names_survive_a_restart(self):
        path = os.path.join(temp_folder(self), "names.json")
        one, two = (DeviceReading(sensor, "temperature", 1, "°C") for sensor in ("dht22", "bmp280"))
        self.assertEqual(Names(path, Faults()).of("Kitchen", [one, two]), ["temperature", "bmp280_temperature"])
        self.assertEqual(Names(path, Faults()).of("Kitchen", [two]), ["bmp280_temperature"])
        self.assertEqual(Names(path, Faults()).of("Attic", [two]), ["temperature"])

    def test_sensors_of_the_same_type_get_different_names(self):
        self.post(sensors=[DHT22, DHT22, {**DHT22, "sensorName": "outside"}])
        self.assertEqual(sorted(self.values()), [
            "dht22_2_humidity", "dht22_2_temperature", "dht22_outside_humidity", "dht22_outside_temperature",
            "humidity", "temperature",
        ])  # fmt: skip

    def test_value_that_the_named_chip_cannot_have_is_stored_as_null(self):
        values = [
            {"sensorType": "DS18B20", "temperature": -196.6},
            {"sensorType": "DHT22", "temperature": 392, "humidity": 50},
            {"sensorType": "BME280", "temperature": 32, "dewPoint": -60}, {"sensorType": "PT1000", "temperature": 302},
            {"sensorType": "DHT11", "temperature": -40, "humidity": 100, "heatIndex": 200},
        ]  # fmt: skip
        self.assertEqual(self.post(sensors=values)[0], 200)
        self.assertEqual(self.points()[0].values, {
            "temperature": None, "dht22_temperature": None, "humidity": 50, "bme280_temperature": 0.0,
            "dew_point": -51.111, "pt1000_temperature": 150.0, "dht11_temperature": -40.0, "dht11_humidity": 100,
            "heat_index": 93.333,
        })  # fmt: skip
        self.assertEqual(pimonitor._fault(DeviceReading("ds18b20", "temperature", -127.0, "°C")),
                         "impossible: -127 °C (ds18b20: -55 to 125 °C)")  # fmt: skip

    def test_failed_sensor_is_stored_as_null(self):
        self.assertEqual(self.post(sensors=[{**DHT22, "temperature": None}]), (200, STORED))
        self.assertEqual(self.values(), {"temperature": None, "humidity": 40.1})

    def test_numbers_in_strings_are_accepted(self):
        self.post(sensors=[{"sensorType": "DHT22", "temperature": "71.60", "humidity": " 40.1 "}])
        self.assertEqual(self.values(), {"temperature": 22.0, "humidity": 40.1})

    def test_colliding_channel_names_stay_different(self):
        names = Names(os.path.join(temp_folder(self), "names.json"), Faults())
        readings = [DeviceReading("s" * 20, "k" * 29 + letter, 1, "") for letter in "ab"]
        readings += [DeviceReading(f"s{n}", "kind", 1, "") for n in range(40)] + [
            DeviceReading("x" * 30 + str(n), "kind", 1, "") for n in range(12)
        ]
        found = names.of("Kitchen", readings)
        self.assertEqual(len(set(found)), len(readings))
        self.assertTrue(all(map(SENSOR_NAME, found)), found)

    def test_number_of_channel_names_is_limited(self):
        names = Names(os.path.join(temp_folder(self), "names.json"), Faults())
        with mock.patch.object(pimonitor, "_MOST_NAMES", 5), self.assertRaises(BadDeviceReport):
            names.of("Kitchen", [DeviceReading("s", f"kind{n}", 1, "") for n in range(6)])
        self.assertEqual(names.of("Kitchen", [DeviceReading("s", "kind0", 1, "")]), ["kind0"])

    def test_damaged_name_file_is_a_fault(self):
        path = os.path.join(temp_folder(self), "names.json")
        for text in ("[", "[]", '{"a": 5}'):
            with self.subTest(text):
                with open(path, "w", encoding="ascii") as file:
                    file.write(text)
                faults = Faults()
                names = Names(path, faults)
                with self.assertRaisesRegex(DamagedFile, "names.json"):
                    names.of("Kitchen", [DeviceReading("s", "kind0", 1, "")])
                self.assertIn("names.json", faults.present())


class UnitConversion(unittest.TestCase):
    """Conversion of °F to °C. Other quantities remain unchanged."""

    def of(self, unit, **values):
        return {reading.kind: (reading.value, reading.unit) for reading in read_sensors([values], unit)}

    def test_all_temperature_names_are_converted(self):
        for key in (
            "temperature",
            "Temperature",
            "temp",
            "dewPoint",
            "heat_index",
            "outsideTemperature",
            "temperature2",
        ):
            with self.subTest(key):
                self.assertEqual(list(self.of("F", **{key: 71.6}).values()), [(22.0, "°C")])
                self.assertEqual(list(self.of("C", **{key: 22.5}).values()), [(22.5, "°C")])
                self.assertEqual(list(self.of("F", **{key: None}).values()), [(None, "°C")])

    def test_unit_in_the_name_overrides_the_setting(self):
        self.assertEqual(self.of("F", tempC=22.5, temp_f=71.6), {"temp_c": (22.5, "°C"), "temp_f": (22.0, "°C")})
        self.assertEqual(self.of("C", tempC=22.5, temp_f=71.6), {"temp_c": (22.5, "°C"), "temp_f": (22.0, "°C")})

    def test_quantities_without_a_temperature_are_not_converted(self):
        wanted = {"humidity": (71.6, "%"), "pressure": (1013, "hPa"), "template": (5, ""), "light": (7, "")}
        self.assertEqual(self.of("F", humidity=71.6, pressure=1013, template=5, light=7), wanted)

    def test_conversion_preserves_hundredths_of_a_degree(self):
        for hundredths in range(-4000, 12_000, 7):
            ((celsius, _),) = self.of("F", temperature=hundredths / 100).values()
            self.assertEqual(round(celsius * 1.8 + 32, 2), hundredths / 100)

    def test_texts_become_valid_names(self):
        for said, wanted in (
            ("heatIndex", "heat_index"),
            ("PM2.5", "pm2_5"),
            ("Heat Index", "heat_index"),
            ("2nd", "n2nd"),
            ("°", ""),
        ):
            self.assertEqual(snake(said), wanted)
        for said in ("a" * 300, "-x-", "x..", "a/b/c", "1", "ß1"):
            self.assertTrue(NODE_NAME(node_name(said)), said)
        with self.assertRaises(BadDeviceReport):
            node_name("../..")


class ZoneConversion(unittest.TestCase):
    """Conversion of the device's local time. The settings contain its time zone."""

    NEW_YORK = ZoneInfo("America/New_York")

    def utc(self, stamp, now="2026-11-20T12:00:00Z", zone=NEW_YORK):
        return read_timestamp(stamp, zone, parse_rfc3339(now))

    def test_summer_time_is_converted(self):
        self.assertEqual(self.utc("07/04/2026 12:00:00"), parse_rfc3339("2026-07-04T16:00:00Z"))
        self.assertEqual(self.utc("12/24/2026 12:00:00"), parse_rfc3339("2026-12-24T17:00:00Z"))

    def test_repeated_hour_is_the_one_closer_to_now(self):
        for now, hour in (("2026-11-01T05:30:05Z", 5), ("2026-11-01T06:30:05Z", 6), ("2026-11-20T00:00:00Z", 6)):
            self.assertEqual(self.utc("11/01/2026 01:30:00", now), parse_rfc3339(f"2026-11-01T0{hour}:30:00Z"))

    def test_skipped_hour_is_in_winter_time(self):
        self.assertEqual(self.utc("03/08/2026 02:30:00"), parse_rfc3339("2026-03-08T07:30:00Z"))

    def test_zone_offsets_with_minutes_are_converted(self):
        self.assertEqual(
            self.utc("11/20/2026 15:36:10", zone=ZoneInfo("Asia/Kathmandu")), parse_rfc3339("2026-11-20T09:51:10Z")
        )

    def test_default_zone_is_that_of_this_machine(self):
        code = (
            "from pigeonpost.compat.pimonitor import read_timestamp as r; print(r('07/04/2026 12:00:00', None, 0),"
            " r('11/01/2026 01:30:00', None, 1793514600000), r('03/08/2026 02:30:00', None, 0))"
        )
        environment = clean_environment(TZ="America/New_York", PYTHONPATH=ROOT)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        wanted = [
            self.utc("07/04/2026 12:00:00"),
            parse_rfc3339("2026-11-01T06:30:00Z"),
            self.utc("03/08/2026 02:30:00"),
        ]
        self.assertEqual(done.stdout.split(), [str(one) for one in wanted], done.stderr)

    def test_implausible_years_are_refused(self):
        """In UTC, a time in year 1 could be before the first valid date."""
        for stamp in ("01/01/0001 00:00:00", "12/31/1969 12:00:00", "12/31/9999 23:59:59"):
            with self.subTest(stamp), self.assertRaises(BadDeviceReport):
                self.utc(stamp)
        with contextlib.suppress(BadDeviceReport):
            self.utc("01/01/0001 00:00:00", zone=None)
        self.assertEqual(self.utc("01/01/1970 00:00:00"), 5 * 3_600_000)


class PimonitorSettings(PimonitorCase):
    """[pimonitor] and [[location]]."""

    def refused(self, settings):
        with self.assertRaises(SettingsError) as caught:
            self.open(settings)
        return str(caught.exception)

    def test_invalid_settings_are_named(self):
        key = '[pimonitor]\napi_key = "k"\n'
        for settings, words in (
            (key + 'zone = "Europe/Berlim"\n', "there is no time zone 'Europe/Berlim'"),
            (key + 'zone = "../../etc/passwd"\n', "zone '../../etc/passwd'"),
            (key + 'unit = "K"\n', "[pimonitor] unit takes 'F' or 'C'"),
            (key + '[[location]]\nname = "a"\nzone = "Nowhere"\n', "[[location]] 1: there is no time zone"),
            (key + '[[location]]\nname = "a"\nzone = "../x"\n', "[[location]] 1: zone '../x' cannot be read"),
            (key + '[[location]]\nname = "a"\nunit = "K"\n', "[[location]] 1: unit takes"),
            (key + '[[location]]\nname = "a"\nzoen = "UTC"\n', 'did you mean "zone"?'),
            (key + '[[location]]\nunit = "C"\n', "[[location]] 1: name is missing"),
            (key + '[[location]]\nname = "a"\n[[location]]\nname = "a"\n', "[[location]] 2: name occurs twice"),
            (key + '[[location]]\nname = "a"\nnode = "b c"\n', "[[location]] 1: node takes"),
            (key + '[[location]]\nname = "°"\n', "[[location]] 1: location has no letter"),
        ):  # fmt: skip
            with self.subTest(settings):
                self.assertIn(words, self.refused(settings))


def run_device(test, port, location="Kitchen", sensors=(DHT22,), key=KEY):
    """Run the program of the old device, and return its exit status and output."""
    done = subprocess.run(
        [sys.executable, CLIENT, f"http://127.0.0.1:{port}", key, location, json.dumps(sensors)],
        capture_output=True, text=True, timeout=LIMIT_S, env=clean_environment(TZ="America/New_York"),
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).strip()


class OldDevice(PimonitorCase):
    """The program of the old device, with urllib, and a server process."""

    def test_old_device_sends_its_readings(self):
        before = Clock().wall_ms() // 1000 * 1000
        status, said = run_device(self, self.web.address[1])
        self.assertEqual(status, 0)
        self.assertRegex(
            said, r"^\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d\] Successfully received and inserted into database\.$"
        )
        self.assertEqual(self.values(), {"temperature": 22.0, "humidity": 40.1})
        self.assertTrue(before <= self.points()[0].time_ms <= Clock().wall_ms())

    def test_server_with_only_a_key_accepts_a_device(self):
        data = temp_folder(self)
        server = Forked(
            self, "server.py", "--data", data, "--web", "127.0.0.1:0", TZ="America/New_York",
            PIGEONPOST_PIMONITOR_API_KEY=KEY,
        )  # fmt: skip
        port = int(re.search(r":(\d+)/", server.line())[1])
        self.assertEqual(run_device(self, port)[0], 0)
        self.assertEqual(run_device(self, port, key="another")[0], 1)
        folder = Path(data, "logs")
        wait_until(
            lambda: "".join(log.read_text() for log in folder.iterdir()).count("Kitchen") == 2, "it is in the log"
        )


class PimonitorRegressions(PimonitorCase):
    """Regressions of pimonitor: success after a failed insert, lost sensors, a key that is never checked."""

    def test_success_is_reported_only_after_storing(self):
        with mock.patch.object(unnumbered_sources, "STORE_S", 0.1), \
                mock.patch.object(self.web.store, "put", side_effect=NotStored("the disk is full")):  # fmt: skip
            status, headers, answer = self.web.request("POST", "/", body=json.dumps(self.message()).encode())
        self.assertEqual(status, 503)
        self.assertTrue(answer.startswith(f"[{STAMP}] Not stored".encode()))
        self.assertGreater(int(headers["retry-after"]), 0)
        self.web.ingestor.flush(LIMIT_S)
        self.assertEqual(self.points(), [])

    def test_unsaved_channel_names_are_503(self):
        with mock.patch.object(json_file, "replace_file", side_effect=DiskError("the disk is full")):
            self.assertEqual(self.post()[0], 503)
        self.assertEqual(self.post(), (200, STORED))

    def test_request_cut_at_any_byte_stores_nothing(self):
        data = json.dumps(self.message()).encode()
        upload = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        for end in range(len(upload)):
            with self.web.connect() as sock, contextlib.suppress(OSError):
                sock.sendall(upload[:end])
                if end % 2:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # ends with a reset
        self.assertEqual(self.post(), (200, STORED))
        self.assertEqual(len(self.points()), 1)

    def test_fifty_simultaneous_devices_are_served(self):
        answers = []

        def send(number):
            data = json.dumps(self.message(location=f"Room {number % 10}")).encode()
            with contextlib.closing(self.web.connect()) as sock:
                sock.sendall(
                    f"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                    + data
                )
                answers.append(parse_response(b"".join(iter(lambda: sock.recv(1 << 16), b"")))[0])

        threads = [threading.Thread(target=send, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(len(answers), 50)
        self.assertLessEqual(set(answers), {200, 503})
        self.assertEqual(sum(len(self.points(f"Room-{n}")) for n in range(10)), answers.count(200))


if __name__ == "__main__":
    unittest.main()
