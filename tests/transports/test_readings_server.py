"""Readings that programs post: what is accepted, refused and stored, and that each of them is stored exactly once."""

import json
import threading
import unittest
from unittest import mock

from pigeonpost.core.clock import FIRST_MS, LAST_MS, Clock, rfc3339
from pigeonpost.core.errors import NotStored
from pigeonpost.server import timed_readings
from pigeonpost.server.node_admin import NodeAdmin
from pigeonpost.transports.readings_server import BODY_BYTES, MOST_READINGS, ReadingsServerTransport
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, WALL_MS, stored_samples
from tests.web.support import WebHouse

DAY_MS = 86_400_000


def setUpModule():
    use_memory_disk()


class InCase(unittest.TestCase):
    def open(self, **options):
        def make(context):
            self.end = ReadingsServerTransport(context)
            return self.end

        self.web = WebHouse(self, transports=[make], **options)
        self.writer = self.web.api_tokens.make("telegraf", "writer")
        return self.web

    def again(self):
        """Forget everything in memory, as after a crash and a new start."""
        fresh = ReadingsServerTransport(self.end.context)
        self.end._timed, self.end._lines._timed, self.end._lines._sensors = (
            fresh._timed, fresh._timed, fresh._lines._sensors,
        )  # fmt: skip

    def rename(self, node, new):
        NodeAdmin(self.web.store, self.web.ingestor, self.web.tokens, self.web.app.clock).rename(node, new)

    def post(self, content, token=None, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        auth = {} if token == "" else {"Authorization": f"Bearer {token or self.writer}"}
        status, heads, answer = self.web.request("POST", "/api/v1/readings", {**auth, **headers}, data)
        self.heads = heads
        return status, json.loads(answer)

    def stored(self, node="shed"):
        """Return (time, values) of each stored sample, in the order of the times."""
        batches = self.web.store.stored_batches(node, FIRST_MS, LAST_MS + 1)
        return sorted(((one.time_ms, one.values) for one in stored_samples(batches)), key=str)

    def refused(self, status, content, *words, **more):
        """Check the status and the `words` of a refusal, and that nothing is stored."""
        before = self.stored()
        answer = self.post(content, **more)
        self.assertEqual(answer[0], status, answer)
        for word in words:
            self.assertIn(word, answer[1]["error"]["text"])
        self.assertEqual(self.stored(), before)


def reading(value=21.5, time=WALL_MS, **more):
    return {"node": "shed", "values": {"temperature": value}, "time": time, **more}


class Accepted(InCase):
    def setUp(self):
        self.open()

    def test_reading_without_time_gets_the_time_of_arrival(self):
        before_ms = self.web.app.clock.wall_ms()
        self.assertEqual(self.post({"node": "shed", "values": {"a": 1}}), (200, {"stored": 1, "repeated": 0}))
        ((time_ms, values),) = self.stored()
        self.assertEqual(values, {"a": 1})
        self.assertTrue(before_ms <= time_ms <= self.web.app.clock.wall_ms())

    def test_times_are_rfc_3339_or_seconds_or_milliseconds(self):
        for value in (rfc3339(WALL_MS), WALL_MS, WALL_MS / 1000, f"{rfc3339(WALL_MS)[:-1]}+00:00"):
            self.assertEqual(self.post(reading(time=value))[0], 200, value)
        self.assertEqual([time_ms for time_ms, _ in self.stored()], [WALL_MS])

    def test_array_is_stored_completely(self):
        content = [reading(n, WALL_MS + n) for n in range(1000)]
        self.assertEqual(self.post(content), (200, {"stored": 1000, "repeated": 0}))
        self.assertEqual(len(self.stored()), 1000)

    def test_null_is_a_failed_reading(self):
        self.assertEqual(self.post(reading(None))[0], 200)
        self.assertEqual(self.stored(), [(WALL_MS, {"temperature": None})])

    def test_impossible_value_is_stored_as_a_failed_reading(self):
        self.assertEqual(self.post(reading(-300, units={"temperature": "°C"}))[0], 200)
        self.assertEqual(self.stored(), [(WALL_MS, {"temperature": None})])

    def test_units_are_stored(self):
        self.post(reading(units={"temperature": "°C"}))
        self.assertEqual(self.web.store.nodes()[0]["sensors"], {"temperature": "°C"})

    def test_values_of_one_time_are_one_sample(self):
        self.post([reading(), {"node": "shed", "values": {"humidity": 40}, "time": WALL_MS}])
        self.assertEqual(self.stored(), [(WALL_MS, {"temperature": 21.5, "humidity": 40})])

    def test_client_appears_on_the_pages_and_is_expected_again(self):
        self.post(reading(units={"temperature": "°C"}))
        (link,) = self.web.links
        self.assertEqual((link.state.name, link.state.sensors), ("shed", [{"name": "temperature", "unit": "°C"}]))

    def test_integration_is_reported_after_the_first_request(self):
        self.assertEqual(self.end.statuses(), [])
        self.post(reading())
        (status,) = self.end.statuses()
        self.assertEqual((status.direction, status.done, status.refused, status.fault), ("in", 1, 0, ""))
        self.post({"node": "shed", "values": {}})
        (status,) = self.end.statuses()
        self.assertEqual((status.refused, "values" in status.fault), (1, True))


class Repeated(InCase):
    def setUp(self):
        self.open()

    def test_repeat_of_a_time_is_not_stored_again(self):
        content = [reading(n, WALL_MS + n) for n in range(5)]
        self.post(content)
        for again in (False, True):
            if again:
                self.again()
            self.assertEqual(self.post(content), (200, {"stored": 0, "repeated": 5}))
        self.assertEqual(len(self.stored()), 5)

    def test_new_readings_among_repeats_are_stored(self):
        self.post([reading(n, WALL_MS + 2 * n) for n in range(5)])
        self.again()
        self.assertEqual(self.post([reading(n, WALL_MS + n) for n in range(10)])[1], {"stored": 5, "repeated": 5})
        self.assertEqual([time_ms - WALL_MS for time_ms, _ in self.stored()], list(range(10)))

    def test_sensor_that_a_known_time_lacks_is_stored(self):
        self.post(reading())
        content = {"node": "shed", "values": {"temperature": 0, "humidity": 40}, "time": WALL_MS}
        self.assertEqual(self.post(content)[1], {"stored": 1, "repeated": 0})
        self.assertEqual(self.stored(), [(WALL_MS, {"humidity": 40}), (WALL_MS, {"temperature": 21.5})])

    def test_repeat_in_one_request_is_found(self):
        self.assertEqual(self.post([reading(), reading()])[1], {"stored": 1, "repeated": 1})

    def test_repeated_id_is_not_stored_again(self):
        content = {"node": "shed", "values": {"a": 1}, "id": "7f3a"}
        self.post(content)
        for again in (False, True):
            if again:
                self.again()
            self.assertEqual(self.post(content)[1], {"stored": 0, "repeated": 1})
        self.assertEqual(self.post({**content, "id": "7f3b"})[1], {"stored": 1, "repeated": 0})
        self.assertEqual(self.post({**content, "node": "attic"})[1], {"stored": 1, "repeated": 0})

    def test_repeated_id_is_not_stored_again_after_the_node_is_renamed(self):
        token = self.web.tokens.make("shed")
        content = {"values": {"temperature": 1}, "id": 7}
        self.post(content, token=token)
        for node, new in (("shed", "garden"), ("garden", "shed")):  # back, too
            self.rename(node, new)
            self.again()
            self.assertEqual(self.post(content, token=token), (200, {"stored": 0, "repeated": 1}))

    def test_repeat_is_found_when_the_node_is_renamed_at_the_same_time(self):
        self.post([reading(), reading(2, WALL_MS + 1)])
        newest = self.end._timed._newest
        names = ["garden"]

        def rename_first(node):
            if names:
                self.rename(node, names.pop())
            return newest(node)

        with mock.patch.object(self.end._timed, "_newest", rename_first):
            self.assertEqual(self.post(reading()), (200, {"stored": 0, "repeated": 1}))
        self.assertEqual(len(self.stored("garden")), 2)

    def test_id_that_was_written_before_a_crash_is_stored_at_its_first_time(self):
        """The crash came after the id was durable and before the commit."""
        content = {"node": "shed", "values": {"a": 1}, "id": 1}
        with mock.patch.object(timed_readings.CommitWaiter, "store", return_value=False):
            self.assertEqual(self.post(content)[0], 503)
        first_ms = self.web.app.clock.wall_ms()
        self.again()
        self.assertEqual(self.post(content)[1], {"stored": 1, "repeated": 0})
        self.assertLessEqual(self.stored()[0][0], first_ms)
        self.assertEqual(self.post(content)[1], {"stored": 0, "repeated": 1})

    def test_readings_with_other_ids_at_one_time_are_stored(self):
        content = [reading(n % 3, id=n) for n in range(6)]
        self.assertEqual(self.post(content[:2])[1], {"stored": 2, "repeated": 0})
        self.again()
        self.assertEqual(self.post(content[2])[1], {"stored": 1, "repeated": 0})
        values = [(WALL_MS + n, {"temperature": n}) for n in range(3)]
        self.assertEqual(self.stored(), values)
        self.assertEqual(self.post(content[:3])[1], {"stored": 0, "repeated": 3})
        self.assertEqual(self.post(reading(0, id="forgotten"))[1], {"stored": 0, "repeated": 1})
        self.assertEqual(self.stored(), values)

    def test_readings_with_other_ids_keep_those_of_later_times_in_their_request(self):
        self.post(reading(0, WALL_MS))
        content = [reading(1, WALL_MS + 2, id="a"), reading(2, WALL_MS, id="b"), reading(3, WALL_MS + 2, id="c")]
        self.assertEqual(self.post(content), (200, {"stored": 3, "repeated": 0}))
        times = {WALL_MS: 0, WALL_MS + 1: 2, WALL_MS + 2: 1, WALL_MS + 3: 3}
        self.assertEqual(self.stored(), [(time_ms, {"temperature": value}) for time_ms, value in times.items()])

    def test_readings_with_other_ids_at_one_time_are_refused_when_no_free_time_is_near(self):
        with mock.patch.object(timed_readings, "MOST_LATER_MS", 20):
            answer = self.post([reading(n, id=n) for n in range(21)])
            self.assertEqual(answer, (200, {"stored": 21, "repeated": 0}))
            self.refused(422, reading(21, id=21), "other values in all 20 ms", "clock")
            self.assertEqual(self.post(reading(7, id="forgotten")), (200, {"stored": 0, "repeated": 1}))

    def test_full_request_of_one_time_takes_time_in_proportion_to_its_length(self):
        looked_up, look_up = [], timed_readings.TimedReadings._values_at
        with mock.patch.object(timed_readings.TimedReadings, "_values_at", autospec=True) as values_at:
            values_at.side_effect = lambda *args: looked_up.append(1) or look_up(*args)
            self.post([reading(n, id=n) for n in range(1000)])
        self.assertLess(len(looked_up), 5000)
        self.assertEqual(len(self.stored()), 1000)

    def test_repeated_id_with_another_time_is_not_stored_again(self):
        self.post(reading(id="a"))
        self.assertEqual(self.post(reading(3, WALL_MS + 5000, id="a"))[1], {"stored": 0, "repeated": 1})

    def test_readings_without_times_are_never_repeats(self):
        content = [{"node": "shed", "values": {"a": n}} for n in range(3)]
        for _ in range(2):
            self.assertEqual(self.post(content)[1], {"stored": 3, "repeated": 0})
        self.assertEqual(sorted(values["a"] for _, values in self.stored()), [0, 0, 1, 1, 2, 2])
        self.assertEqual(len({time_ms for time_ms, _ in self.stored()}), 6)

    def test_readings_without_times_that_arrive_after_a_burst_get_free_times(self):
        one = {"node": "shed", "values": {"temperature": 1}}
        self.post([one] * 2000)
        self.post(one)
        times = [time_ms for time_ms, _ in self.stored()]
        self.assertEqual((len(times), len(set(times))), (2001, 2001))

    def test_same_request_at_the_same_time_is_stored_once(self):
        content = [reading(n, WALL_MS + n) for n in range(100)]
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(self.post(content)[1])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sum(answer["stored"] for answer in answers), 100)
        self.assertEqual(len(self.stored()), 100)

    def test_requests_at_the_same_time_keep_the_limit_of_sensors(self):
        """Each request is within the limit when it arrives, all together are not."""
        arrived, answers = threading.Barrier(3), []
        find = self.end._timed.surplus

        def surplus(node, names):
            found = find(node, names)
            if threading.current_thread().name not in seen:
                seen.add(threading.current_thread().name)
                arrived.wait(LIMIT_S)
            return found

        def post(start):
            values = dict.fromkeys((f"s{n}" for n in range(start, start + 400)), 1)
            answers.append(self.post({"node": "shed", "values": values})[0])

        seen = set()
        with mock.patch.object(self.end._timed, "surplus", surplus):
            threads = [threading.Thread(target=post, args=(start,)) for start in (0, 400, 800)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(sorted(answers), [200, 200, 503])
        self.assertEqual(len({name for _, values in self.stored() for name in values}), 800)
        self.assertEqual(self.web.faults.present(), {})

    def test_request_that_may_still_be_committed_is_waited_for(self):
        """The first request gives up while its batch is in the queue; the second must find its readings."""
        batches = []
        with mock.patch.object(
            timed_readings.CommitWaiter, "store", lambda self, found, limit_s: batches.extend(found)
        ):
            self.assertEqual(self.post(reading())[0], 503)
        self.web.ingestor.submit(batches[0])
        self.assertEqual(self.post(reading())[1], {"stored": 0, "repeated": 1})
        self.assertEqual(len(self.stored()), 1)

    def test_old_readings_between_stored_ones_are_stored(self):
        hour_ms = 3_600_000
        self.post([reading(n, WALL_MS + 2 * n * hour_ms // 3) for n in range(20)][-1:])
        self.again()
        content = [reading(n, WALL_MS + 2 * n * hour_ms // 3) for n in range(20)]
        self.assertEqual(self.post(content)[1], {"stored": 19, "repeated": 1})
        self.again()
        self.assertEqual(self.post(content[::-1])[1], {"stored": 0, "repeated": 20})


class Refused(InCase):
    def setUp(self):
        self.open()

    def test_invalid_bodies_are_400_and_name_the_item_and_the_field(self):
        good = reading()
        for content, words in (
            (b"", ["not valid"]), (b"[", ["not valid"]), (b"\xff", ["UTF-8"]), ([], ["array"]), (3, ["array"]),
            ([good, {**good, "values": {}}], ["[1].values"]),
            ([good, {**good, "vaules": {}}], ["[1].", "vaules", "values"]),
            ({**good, "values": {"Temp": 1}}, ["name of a sensor", "Temp"]),
            ({**good, "values": {"t": "21.5"}}, ["values.t", "number"]),
            ({**good, "values": {"t": True}}, ["values.t"]), ([good, 3], ["[1] must"]),
            ({**good, "id": ""}, ["id must be", "1 to 200"]),
            (b'{"node":"shed","values":{"t":NaN}}', ["NaN"]), (b'{"node":"shed","values":{"t":1e999}}', ["finite"]),
            ({**good, "values": {"t": 2**63}}, ["values.t"]), ({**good, "node": "a b"}, ["node"]),
            ({**good, "node": None}, ["node must be"]), ({"values": {"t": 1}}, ["node is missing"]),
            ({**good, "time": "yesterday"}, ["time", "yesterday"]),
            ({**good, "time": -1}, ["time"]), ({**good, "time": True}, ["time"]), ({**good, "time": 1e300}, ["time"]),
            ({**good, "time": "1969-12-31T23:59:59Z"}, ["time"]), ({**good, "id": [1]}, ["id"]),
            ({**good, "id": "x" * 201}, ["id"]), ({**good, "units": {"x": "m"}}, ["units", "x"]),
            ({**good, "units": {"temperature": "\n"}}, ["units.temperature"]), ({**good, "units": 3}, ["units"]),
            (b'{"node":"shed","node":"x","values":{"t":1}}', ["twice"]),
        ):  # fmt: skip
            with self.subTest(content):
                self.refused(400, content, *words)

    def test_request_with_an_invalid_reading_is_refused_completely(self):
        self.refused(400, [reading(n, WALL_MS + n) for n in range(100)] + [reading("x")], "[100].values.temperature")

    def test_time_in_the_future_is_422(self):
        late_ms = self.web.app.clock.wall_ms() + 2 * DAY_MS
        self.refused(422, [reading(), reading(1, late_ms)], "[1].time", "future")
        self.assertEqual(self.post(reading(1, late_ms - 2 * DAY_MS + 1000))[0], 200)

    def test_too_many_sensors_are_422(self):
        self.post([{"node": "shed", "values": {f"s{n}": 1 for n in range(1024)}, "time": WALL_MS}])
        self.refused(422, {"node": "shed", "values": {"one_more": 1}}, "one_more", "channels_per_node")
        self.assertEqual(self.post({"node": "shed", "values": {"s7": 1}})[0], 200)
        self.assertEqual(len(self.web.store.channels("shed", 5000)), 1024)

    def test_too_much_is_413(self):
        self.refused(
            413, [reading(1, n) for n in range(MOST_READINGS + 1)][: MOST_READINGS + 1], str(10), "readings"[:4]
        )
        status, _, _ = self.web.request(
            "POST", "/api/v1/readings", {"Authorization": f"Bearer {self.writer}"}, b" " * (BODY_BYTES + 1)
        )
        self.assertEqual(status, 413)

    def test_missing_and_wrong_tokens_are_401(self):
        self.refused(401, reading(), "api-token NAME --role writer", token="")
        self.refused(401, reading(), "unknown", token="pp_" + "0" * 40)
        self.assertIn("Bearer", self.heads["www-authenticate"])

    def test_many_wrong_tokens_are_429_but_a_correct_one_is_accepted(self):
        clock = self.web.throttle._clock
        with mock.patch.object(clock, "wait", lambda event, limit_s: None):
            statuses = {self.post(reading(), token="wrong")[0] for _ in range(30)}
            self.assertEqual(statuses, {401, 429})
            self.assertEqual(self.post(reading())[0], 200)

    def test_viewer_is_403(self):
        self.refused(403, reading(), "writer", token=self.web.api_tokens.make("grafana", "viewer"))

    def test_revoked_token_is_401(self):
        self.web.api_tokens.revoke("telegraf")
        self.refused(401, reading())

    def test_token_of_a_node_writes_only_this_node(self):
        token = self.web.tokens.make("shed")
        self.refused(403, {**reading(), "node": "attic"}, "belongs to node shed", token=token)
        self.assertEqual(self.post({"values": {"t": 1}}, token=token)[0], 200)
        self.assertEqual(self.post(reading(), token=token)[0], 200)
        self.refused(403, reading(2, WALL_MS + 1), "token of its own")

    def test_readings_are_503_while_the_database_fails(self):
        with mock.patch.object(self.web.ingestor, "submit", return_value=False):
            self.refused(503, reading(), "try again")
        self.assertIn("retry-after", self.heads)
        self.assertEqual(self.post(reading())[1], {"stored": 1, "repeated": 0})

    def test_database_that_cannot_be_read_is_503(self):
        self.post(reading())
        self.again()
        with mock.patch.object(self.web.store, "points", side_effect=NotStored("locked")):
            self.refused(503, reading(), "locked")


class WrongClock(InCase):
    def test_any_time_is_accepted_while_the_clock_of_the_server_is_not_set(self):
        clock = Clock()
        self.open(clock=clock)
        with mock.patch.object(clock, "is_set", return_value=False):
            self.assertEqual(self.post(reading(1, clock.wall_ms() + 30 * DAY_MS))[0], 200)

    def test_clock_that_is_set_back_repeats_no_time(self):
        clock = Clock()
        self.open(clock=clock)
        now_ms = clock.wall_ms()
        for step in (0, -1000, -1000, 0):
            with mock.patch.object(clock, "wall_ms", return_value=now_ms + step):
                self.assertEqual(
                    self.post({"node": "shed", "values": {"a": step}}), (200, {"stored": 1, "repeated": 0})
                )
        self.assertEqual(len({time_ms for time_ms, _ in self.stored()}), 4)


if __name__ == "__main__":
    unittest.main()
