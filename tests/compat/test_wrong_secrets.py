"""Tests of older systems' clients: they cannot write to a node with a token, and cannot guess secrets quickly."""

import hashlib
import json
import threading
import unittest
from unittest import mock

from pigeonpost.auth import throttle
from pigeonpost.compat import pimonitor, tmon, wrong_secrets
from pigeonpost.compat.file_drop import server as file_drop
from pigeonpost.core.clock import Clock
from pigeonpost.server import unnumbered_sources
from tests.compat.file_drop.support import PI, accept
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, wait_until
from tests.web.support import WebHouse

HASH = hashlib.sha256(b"an old key").hexdigest()
SETTINGS = '[pimonitor]\napi_key = "an old key"\n[[location]]\nname = "Wohnzimmer"\nnode = "living"\n'


def setUpModule():
    use_memory_disk()


class PatientClock(Clock):
    """Clock that records waits instead of waiting."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, event, seconds):
        self.waits.append(seconds)
        return False


class WrongSecretsCase(unittest.TestCase):
    def setUp(self):
        self.clock = PatientClock()
        transports = [pimonitor.PiMonitorTransport, tmon.TmonTransport, file_drop.make_transport]
        self.web = WebHouse(self, transports=transports, settings=SETTINGS, clock=self.clock)
        accept(self.web.folder, PI)

    def pimonitor(self, key=HASH, location="Kitchen", **more):
        sensors = [{"sensorType": "DHT22", "temperature": 71.6}]
        said = {"api_hash": key, "location": location, "timestamp": "11/20/2026 15:36:10", "sensors": sensors, **more}
        status, _, answer = self.web.request("POST", "/", {}, json.dumps(said).encode())
        return status, answer.decode()

    def tmon(self, token):
        said = {"type": "temperature", "token": token, "data": {"temperature": "20812"}}
        status, _, answer = self.web.request("POST", "/temp", {}, json.dumps(said).encode())
        return status, json.loads(answer)

    def drop(self, pi_id):
        status, _, answer = self.web.request("GET", "/upload/", {"pi_id": pi_id, "pi_num": "4"})
        return status, answer[:3]

    def stored(self, node):
        return self.web.store.points(node, 0, 1 << 60, 10_000)


class NodeProtection(WrongSecretsCase):
    def test_pimonitor_location_cannot_write_to_a_node_with_a_token(self):
        self.assertEqual(self.pimonitor(location="basement")[0], 200)
        for node in ("basement", "living"):
            self.web.tokens.make(node)
        before = len(self.stored("basement"))
        for location in (
            "basement",
            " basement",
            "Wohnzimmer",
        ):  # including a location that the settings assign to a node
            status, text = self.pimonitor(location=location)
            self.assertEqual(status, 403, text)
            self.assertRegex(text, r"^\[11/20/2026 15:36:10\] Not stored: node .* has a token")
        self.assertEqual((len(self.stored("basement")), self.stored("living")), (before, []))
        self.assertIsNone(self.web.unnumbered_sources.find("living"))

    def test_tmon_token_is_accepted(self):
        self.assertEqual(self.tmon(self.web.tokens.make("attic")), (200, {"success": True}))
        self.assertEqual(len(self.stored("attic")), 1)

    def test_invented_locations_are_limited(self):
        with mock.patch.object(unnumbered_sources, "MOST_UNPROVEN", 3):
            statuses = [self.pimonitor(location=f"room {n}")[0] for n in range(10)]
            self.assertEqual(statuses, [200] * 3 + [503] * 7)
            self.assertEqual(self.pimonitor(location="Wohnzimmer")[0], 200)
            self.assertEqual(self.tmon(self.web.tokens.make("attic"))[0], 200)
        self.assertIn("3 nodes without a token", self.web.faults.present()["pimonitor clients"])
        names = self.web.folder + "/pimonitor.json"
        with open(names, encoding="utf-8") as file:
            self.assertEqual(len(json.load(file)), 4)  # no names are stored for refused locations


class GuessedSecrets(WrongSecretsCase):
    def test_pimonitor_keys_are_refused_after_some_failures(self):
        for n in range(30):
            self.assertEqual(self.pimonitor(key=f"{n:064x}")[0], 401)
        self.assertEqual(self.pimonitor()[0], 401)  # the correct key, but after too many failures from this address
        self.assertGreater(len(self.clock.waits), 20)
        self.assertEqual(max(self.clock.waits), throttle.LONGEST_DELAY_S)

    def test_wrong_keys_from_other_addresses_lock_no_one_out(self):
        for n in range(100):
            self.web.throttle.begin(f"10.0.{n}.66")
        self.assertEqual(self.pimonitor()[0], 200)

    def test_correct_key_clears_earlier_failures(self):
        for _ in range(5):
            for _ in range(throttle.MOST - 1):
                self.assertEqual(self.pimonitor(key="0" * 64)[0], 401)
            self.assertEqual(self.pimonitor()[0], 200)

    def test_correct_tokens_are_accepted_despite_failures_at_the_address(self):
        token = self.web.tokens.make("attic")
        for n in range(15):
            self.assertEqual(self.tmon(f"{n:032x}"), (400, {"success": False, "error": "unknown token"}))
            self.assertEqual(self.drop(f"{n:016x}"), (200, b"401"))
        self.assertGreater(len(self.clock.waits), 20)
        self.clock.waits.clear()
        self.assertEqual(self.tmon(token)[0], 200)
        self.assertEqual(self.drop(PI)[1], b"301")
        self.assertEqual(self.clock.waits, [])

    def test_hundred_wrong_secrets_are_one_log_line(self):
        with self.assertLogs("pigeonpost", "INFO") as logs:
            for n in range(20):  # five of each
                self.pimonitor(key=f"{n:064x}")
                self.tmon(f"{n:032x}")
                self.drop(f"{n:016x}")
                self.web.request("POST", "/upload/abc", {"pi_id": f"{n:016x}", "checksum": "0", "num_files": "1"})
                self.web.request("POST", "/upload/abc", {"checksum": "0"})
        self.assertEqual(len([line for line in logs.output if "127.0.0.1" in line]), 1, logs.output)

    def test_number_of_delayed_refusals_is_limited(self):
        entered, go_on = threading.Semaphore(0), threading.Event()

        def wait(event, seconds):
            entered.release()
            return not go_on.wait(LIMIT_S)

        with mock.patch.object(self.clock, "wait", wait):
            for _ in range(throttle.MOST):
                self.web.throttle.begin("127.0.0.1")
            threads = [threading.Thread(target=self.tmon, args=("0" * 32,)) for _ in range(wrong_secrets.MOST_DELAYED)]
            for thread in threads:
                thread.start()
            for _ in threads:
                self.assertTrue(entered.acquire(timeout=LIMIT_S))
            self.assertEqual(self.tmon("1" * 32)[0], 400)  # immediately
            self.assertEqual(self.tmon(self.web.tokens.make("attic"))[0], 200)
            go_on.set()
            for thread in threads:
                thread.join(LIMIT_S)
        wait_until(lambda: wrong_secrets._delay_slots._value == wrong_secrets.MOST_DELAYED, "the slots are free again")


if __name__ == "__main__":
    unittest.main()
