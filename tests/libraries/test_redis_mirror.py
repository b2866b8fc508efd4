"""Publisher of the last states to a real Redis: content, messages, and absence of Redis."""

import json
import sys
import time
import unittest
from unittest import mock

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SettingsError
from pigeonpost.server.latest_samples import LatestSamples
from pigeonpost.storage import redis_publisher
from pigeonpost.storage.models import NOTHING, EpochCommit
from pigeonpost.storage.redis_publisher import RedisPublisher
from tests.libraries.databases import Redis, need_redis, redis
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import OUTBOX, batch, file, gap
from tests.support import LIMIT_S, Program, temp_folder, wait_until

KEY = "pigeonpost:a:temperature"


def setUpModule():
    need_redis()


def epoch_commits(*batches):
    """Return the EpochCommits that the ingestor passes to subscribers."""
    made = {}
    for one in batches:
        epoch_commit = made.setdefault((one.node, one.epoch), EpochCommit(one.node, OUTBOX, one.epoch, NOTHING))
        epoch_commit.units = one.units
        epoch_commit.add(one, 0)
    return list(made.values())


class Case(unittest.TestCase):
    def setUp(self):
        for name, seconds in (("RETRY_S", 0.05), ("LONGEST_RETRY_S", 0.1), ("CHECK_S", 0.2), ("LOOK_S", 0.05),
                              ("PACE_S", 0.01), ("ANSWER_S", 0.5)):  # fmt: skip
            patch = mock.patch.object(redis_publisher, name, seconds)
            patch.start()
            self.addCleanup(patch.stop)
        self.server = Redis(self)
        self.client = redis.Redis(port=self.server.port, decode_responses=True)
        self.addCleanup(self.client.close)

    def publisher(self, start=True, **more):
        newest, clock = LatestSamples(""), Clock()

        def readings(node):
            return newest.samples[node].readings() if node in newest.samples else ()

        class Publisher(RedisPublisher):
            def on_commit(self, epoch_commits):
                newest.record(epoch_commits, clock.wall_ms(), clock.monotonic())
                super().on_commit(epoch_commits)

        made = Publisher(self.server.address, "pigeonpost:", "home", clock, readings, **more)
        self.addCleanup(made.stop, LIMIT_S)
        if start:
            made.start()
        return made

    def hash(self, key=KEY):
        try:
            return self.client.hgetall(key)
        except redis.RedisError:
            return {}

    def wait_for(self, value, key=KEY, field="Value"):
        wait_until(lambda: self.hash(key).get(field) == value, f"{field} {value}; there is {self.hash(key)}")


class StateTest(Case):
    def setUp(self):
        super().setUp()
        self.server.start()

    def test_each_sensor_has_a_hash(self):
        publisher = self.publisher(nodes=lambda: {"a": {"IsActive": True, "TDuration": 1.5, "ITimestamp": None}})
        publisher.on_commit(
            epoch_commits(batch(1, 3, temperature=20.5), gap(4, 9, before=2), batch(10, 10, temperature=-1e-7))
        )
        self.wait_for("-1e-07")
        self.assertEqual(self.hash(), {
            "Codifier": "a:temperature", "Value": "-1e-07", "DTimestamp": "1795000010000", "DPacketsLost": "8",
            "IsActive": "1", "TDuration": "1.5", "ITimestamp": "", "Node": "a", "Sensor": "temperature",
            "Unit": "°C", "Error": "", "Clock": "",
        })  # fmt: skip
        self.assertEqual(self.hash("pigeonpost:a:light")["Value"], "10")
        self.assertEqual(publisher.report()["series"], 2)

    def test_failed_sensor_has_an_error_and_no_value(self):
        publisher = self.publisher()
        publisher.on_commit(epoch_commits(batch(1, 1, temperature=None, errors={"temperature": "no\r\nresponse"})))
        self.wait_for("no\r\nresponse", field="Error")
        self.assertEqual(self.hash()["Value"], "")

    def test_only_changes_are_published(self):
        listener = self.client.pubsub()
        self.addCleanup(listener.close)
        listener.psubscribe("pigeonpost:*")
        wait_until(lambda: listener.get_message(timeout=0.1), "subscribed")
        publisher = self.publisher()
        heard = []
        for seq, value in enumerate((20.5, 20.5, 21, None, None, 21), 1):
            publisher.on_commit(epoch_commits(batch(seq, seq, temperature=value)))
            self.wait_for(str(1_795_000_000_000 + seq * 1000), field="DTimestamp")
        publisher.stop(LIMIT_S)

        def listen():
            message = listener.get_message(timeout=0.1) or {"channel": None, "data": "null"}
            if message["channel"] == KEY:
                heard.append(json.loads(message["data"])["Value"])
            return message["channel"] == "pigeonpost:a:light" and json.loads(message["data"])["Value"] == "6"

        wait_until(listen, "the last message")
        self.assertEqual(heard, ["20.5", "21", "", "21"])

    def test_states_in_the_store_are_published_at_the_start_without_replacing_newer_ones(self):
        store = MemoryStore()
        file(store, batch(1, 5), gap(6, 7))
        publisher = self.publisher(start=False, store=store)
        publisher.on_commit(epoch_commits(batch(8, 8, temperature=9)))
        publisher.on_commit(epoch_commits(batch(1, 1, node="b", units={"temperature": "K"})))
        publisher.start()
        self.wait_for("9")
        self.wait_for("K", "pigeonpost:b:temperature", "Unit")
        self.assertEqual((self.hash()["DPacketsLost"], self.hash("pigeonpost:a:light")["Value"]), ("2", "8"))

    def test_late_data_does_not_replace_the_state(self):
        publisher = self.publisher()
        now_ms = Clock().wall_ms()
        for seq, (age_ms, value) in enumerate(((0, 20), (3_600_000, 19), (60_000, 18), (10**11, 17), (2000, 16)), 1):
            commits = epoch_commits(batch(seq, seq, temperature=value))
            commits[0].outbox = ""  # a client without numbers
            commits[0].items[0].times[:] = [now_ms - age_ms]
            publisher.on_commit(commits)
            self.wait_for("20")
        self.assertEqual(publisher.report()["lacking"], 0)
        self.assertEqual(self.hash()["DTimestamp"], str(now_ms))

    def test_node_that_is_switched_off_is_updated_without_a_sample(self):
        nodes = {"a": {"IsActive": True}}
        publisher = self.publisher(nodes=lambda: nodes)
        publisher.on_commit(epoch_commits(batch(1, 1)))
        self.wait_for("1", field="IsActive")
        nodes = {"a": {"IsActive": False}}
        self.wait_for("0", field="IsActive")

    def test_bus_components_have_hashes(self):
        codifiers = {"C4": {"Codifier": "C4", "Value": 21.5, "DPacketsLost": 3, "Alive": True, "More": {"x": 1}}}
        self.publisher(others=lambda: codifiers)
        self.wait_for("21.5", "pigeonpost:C4")
        self.assertEqual(self.hash("pigeonpost:C4"),
                         {"Codifier": "C4", "Value": "21.5", "DPacketsLost": "3", "Alive": "1"})  # fmt: skip
        codifiers = {"C4": {"Codifier": "C4", "Value": 22, "DPacketsLost": 4}}
        self.wait_for("4", "pigeonpost:C4", "DPacketsLost")

    def test_number_of_sensors_is_limited(self):
        with mock.patch.object(redis_publisher, "MOST_SERIES", 3):
            publisher = self.publisher()
            for node in "abc":
                publisher.on_commit(epoch_commits(batch(1, 1, node=node)))
            self.assertEqual((publisher.report()["series"], publisher.report()["ignored"]), (3, 3))


class AbsenceTest(Case):
    def test_all_states_are_written_when_redis_returns(self):
        publisher = self.publisher()
        publisher.on_commit(epoch_commits(batch(1, 3), batch(1, 1, node="b")))
        wait_until(lambda: publisher.fault, "a fault")
        self.server.start()
        self.wait_for("20.5")
        self.wait_for("20.5", "pigeonpost:b:temperature")
        wait_until(lambda: not publisher.fault, "no fault")
        self.server.stop()
        publisher.on_commit(epoch_commits(batch(4, 4, temperature=22)))
        wait_until(lambda: publisher.fault, "a fault")
        self.server.start()
        self.wait_for("22")
        self.wait_for("20.5", "pigeonpost:b:temperature")  # there was no newer sample

    def test_all_states_are_written_after_redis_lost_its_data(self):
        self.server.start()
        publisher = self.publisher()
        publisher.on_commit(epoch_commits(batch(1, 3)))
        self.wait_for("20.5")
        self.client.flushall()
        self.wait_for("20.5")
        self.server.stop()  # it returns before this is noticed
        self.server.start()
        self.wait_for("20.5")

    def test_commits_do_not_wait_for_a_redis_that_hangs(self):
        self.server.start()
        publisher = self.publisher()
        publisher.on_commit(epoch_commits(batch(1, 1)))
        self.wait_for("20.5")
        self.server.freeze()
        began_s = time.monotonic()
        for seq in range(2, 2002):
            publisher.on_commit(epoch_commits(batch(seq, seq, temperature=seq)))
        self.assertLess(time.monotonic() - began_s, LIMIT_S / 2)
        self.assertEqual(publisher.report()["series"], 2)
        wait_until(lambda: publisher.fault, "a fault")
        self.server.thaw()
        self.wait_for("2001")

    def test_stop_does_not_wait_for_a_redis_that_hangs(self):
        self.server.start()
        publisher = self.publisher()
        publisher.on_commit(epoch_commits(batch(1, 1)))
        self.wait_for("20.5")
        self.server.freeze()
        publisher.on_commit(epoch_commits(batch(2, 2, temperature=3)))
        began_s = time.monotonic()
        self.assertIn("not written", publisher.stop(0.3))
        self.assertLess(time.monotonic() - began_s, LIMIT_S / 2)
        self.server.thaw()

    def test_key_of_another_type_is_a_fault_until_it_is_deleted(self):
        self.server.start()
        self.client.set(KEY, "another's")
        publisher = self.publisher()
        publisher.on_commit(epoch_commits(batch(1, 1)))
        wait_until(lambda: "WRONGTYPE" in publisher.fault, "a fault")
        self.client.delete(KEY)
        self.wait_for("20.5")

    def test_errors_about_settings_do_not_contain_the_password(self):
        for url in ("http://:hidden@x", "redis://:hidden@x:port", "hidden"):
            with self.assertRaises(SettingsError) as caught:
                RedisPublisher(url, "", "home", Clock(), lambda node: ())
            self.assertNotIn("hidden", str(caught.exception))
        with mock.patch.dict(sys.modules, {"redis": None}), self.assertRaises(SettingsError) as caught:
            RedisPublisher(self.server.address, "", "home", Clock(), lambda node: ())
        self.assertIn("python3-redis", str(caught.exception))


class ServerTest(Case):
    def test_server_continues_while_redis_is_missing(self):
        """Collecting continues without Redis, and `check` reports the fault."""
        node = Program(self, "node.py", "--simulate", "--name", "a", "--listen", "127.0.0.1:0", "--every", "0.1",
                       "--data", temp_folder(self))  # fmt: skip
        host, port = node.address()
        data = temp_folder(self)
        server = Program(self, "server.py", "--node", f"a@{host}:{port}", "--web", "127.0.0.1:0", "--data", data,
                         PIGEONPOST_REDIS_URL=self.server.address, PIGEONPOST_STORE_COMMIT="0.1")  # fmt: skip
        server.logs("Redis does not accept")
        check = Program(self, "control.py", "--data", data, "check")
        self.assertEqual(check.wait(), 1)
        self.assertIn("redis: Redis does not accept", check.said[0])
        self.server.start()
        wait_until(lambda: self.hash().get("IsActive") == "1", "a hash")
        first = self.hash()["DTimestamp"]
        wait_until(lambda: self.hash()["DTimestamp"] > first, "it goes on")
        server.terminate()
        self.assertEqual(server.wait(), 0)


if __name__ == "__main__":
    unittest.main()
