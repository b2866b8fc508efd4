"""Hour statistics for Home Assistant: which hours are due, what is sent, and what survives a crash."""

import os
import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.core.errors import DiskError, SettingsError
from pigeonpost.core.http_client import HttpError
from pigeonpost.integrations import home_assistant_api, home_assistant_statistics
from pigeonpost.integrations.home_assistant_hours import FINAL_MS, MOST_RANGES, QUIET_S, LateHours
from pigeonpost.integrations.home_assistant_messages import SensorFacts
from pigeonpost.integrations.home_assistant_statistics import HomeAssistantStatistics, continued_sums
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import HOUR_MS, NOTHING, EpochCommit
from tests.integrations.ha_api import FakeApi
from tests.integrations.ha_context import make_context
from tests.storage.memory_store import MemoryStore
from tests.support import EPOCH, LIMIT_S

ID = "sensor.basement_temperature"
UNIQUE = "pigeonpost:basement:temperature"


def commit_of(node, times, values, clock=""):
    """Return a commit with samples, which are stored as they would arrive."""
    commit = EpochCommit(node, "00000000000000ab", EPOCH, NOTHING)
    commit.units = {"temperature": "°C", "rain": "mm"}
    commit.items = [SampleBatch(1, list(times), [0] * len(times), values, clock=clock)]
    return commit


class HoursCase(unittest.TestCase):
    def setUp(self):
        self.context = make_context(self)
        self.clock = self.context.clock
        self.hours = self.load()

    def load(self):
        return LateHours(os.path.join(self.context.data, "hours.json"), self.clock)

    def now_hour(self):
        return self.clock.wall_ms() // HOUR_MS

    def note(self, age_s=0.0, is_live=True, node="basement", clock=""):
        self.hours.note(
            commit_of(node, [self.clock.wall_ms() - round(age_s * 1000)], {"temperature": [1.0]}, clock), is_live, 60.0
        )

    def due(self):
        self.clock.sleep(QUIET_S)
        return [(one.first - self.now_hour(), one.last - self.now_hour()) for one in self.hours.due()]


class Hours(HoursCase):
    def test_live_samples_are_not_due(self):
        for _ in range(100):
            self.note()
            self.clock.sleep(60)
        self.assertEqual(self.hours.count(), 0)

    def test_late_samples_are_due_when_no_more_arrive(self):
        for age_s in range(4 * 3600, 2 * 3600, -600):
            self.note(age_s)
        self.assertEqual(self.hours.due(), [])
        self.assertEqual(self.due(), [(-4, -2)])

    def test_hour_is_due_after_home_assistant_has_made_its_own_statistics(self):
        self.note(is_live=False)
        self.assertEqual(self.due(), [])
        self.clock.sleep(3600 - self.clock.wall_ms() % HOUR_MS / 1000 + FINAL_MS / 1000 - 10)
        self.assertEqual(self.hours.due(), [])
        self.clock.sleep(20)
        self.assertEqual(len(self.hours.due()), 1)

    def test_samples_without_a_valid_date_are_ignored(self):
        self.note(86_400, clock="unset")
        self.note(-10 * 86_400, is_live=False)
        self.assertEqual(self.hours.count(), 0)

    def test_samples_before_the_connection_was_known_to_be_lost_are_due(self):
        self.note()
        self.clock.sleep(3600)
        self.note(is_live=False)
        self.assertEqual(self.hours.count(), 2)

    def test_samples_before_a_short_loss_between_two_commits_are_due(self):
        self.note()
        self.hours.mark_lost()
        self.clock.sleep(1)
        self.note()  # the connection is there again
        self.assertEqual(self.hours.count(), 1)

    def test_hours_since_the_last_write_are_due_after_a_crash(self):
        self.note()
        self.hours.save(now=True)
        self.clock.sleep(3 * 3600)
        self.hours = self.load()  # killed; samples may have been stored in between
        self.assertEqual(self.due()[0][1], -1)
        self.assertGreaterEqual(self.hours.count(), 4)

    def test_samples_of_a_node_whose_clock_is_wrong_are_live(self):
        commit = commit_of("basement", [self.clock.wall_ms() - 7_200_000], {"temperature": [1.0]})
        self.hours.note(commit, True, 60.0, offset_ms=-7_200_000)
        self.assertEqual(self.hours.count(), 0)

    def test_hours_that_home_assistant_may_not_have_seen_are_due(self):
        self.note()
        began_ms = self.clock.wall_ms() - 1000
        self.clock.sleep(3 * 3600)
        self.note()
        self.hours.mark_since(began_ms)
        self.assertEqual(self.hours.count(), 4)

    def test_late_hours_survive_a_crash(self):
        self.note(10 * 3600)
        self.hours.save()
        self.hours = self.load()
        self.assertEqual(self.due(), [(-10, -10)])

    def test_sent_hours_are_removed_unless_more_samples_have_arrived(self):
        self.note(10 * 3600)
        self.clock.sleep(QUIET_S)
        (first,) = self.hours.due()
        self.note(10 * 3600)
        self.hours.done(first)
        self.assertEqual(self.hours.count(), 1)
        self.clock.sleep(QUIET_S)
        self.hours.done(self.hours.due()[0])
        self.assertEqual(self.hours.count(), 0)

    def test_renamed_node_keeps_its_hours(self):
        self.note(10 * 3600)
        self.hours.on_rename("basement", "cellar")
        self.clock.sleep(QUIET_S)
        self.assertEqual([one.node for one in self.hours.due()], ["cellar"])

    def test_number_of_ranges_is_limited(self):
        for n in range(MOST_RANGES + 5):
            self.note((2 * n + 2) * 3600)
        self.assertEqual(self.hours.count(), MOST_RANGES)
        self.assertEqual(self.hours.removed, 5)

    def test_file_is_not_written_for_live_samples(self):
        with mock.patch("pigeonpost.core.json_file.replace_file") as replace:
            for _ in range(50):
                self.note()
                self.hours.save()
        self.assertEqual(replace.call_count, 0)

    def test_failed_write_is_repeated(self):
        self.note(10 * 3600)
        with (
            mock.patch("pigeonpost.core.json_file.replace_file", side_effect=DiskError("full")),
            self.assertRaises(DiskError),
        ):
            self.hours.save()
        self.hours.save()
        self.hours = self.load()
        self.assertEqual(self.hours.count(), 1)


class Sums(unittest.TestCase):
    def test_sums_continue_the_ones_before(self):
        found = continued_sums({1: 105.0, 2: 110.0}, (100.0, 40.0), None)
        self.assertEqual(found, {1: {"state": 105.0, "sum": 45.0}, 2: {"state": 110.0, "sum": 50.0}})

    def test_reset_total_begins_again(self):
        self.assertEqual(continued_sums({1: 3.0, 2: 5.0}, (100.0, 40.0), None)[2], {"state": 5.0, "sum": 45.0})

    def test_sums_lead_to_the_ones_after(self):
        found = continued_sums({1: 105.0, 2: 110.0}, (100.0, 0.0), (112.0, 0.0))
        self.assertEqual([found[n]["sum"] for n in (1, 2)], [-7.0, -2.0])


class FakeSocket:
    """Replacement of WebSocket that talks to a FakeApi."""

    def __init__(self, api, is_reachable):
        self.server, self._api, self._is_reachable = "http://ha:8123", api, is_reachable

    def connect(self):
        if not self._is_reachable():
            raise HttpError("refused", self.server)
        self._session = self._api.session()
        self._answers = [self._session.greeting()]

    def send(self, text):
        self._answers += self._session.answer(text)

    def receive(self, limit_s):
        if not self._answers:
            raise HttpError(f"closed: {self._api.faults}", self.server)
        return self._answers.pop(0)

    def close(self):
        pass

    cut = close


class StatisticsCase(unittest.TestCase):
    def setUp(self):
        self.context = make_context(self)
        self.clock, self.api, self.is_reachable = self.context.clock, FakeApi(), True
        self.context.store = MemoryStore()
        self.sensors = {"temperature": SensorFacts("°C", "", False)}
        self.discovery = SimpleNamespace(
            is_live=True, expire_s=lambda node: 60.0, offset_ms=lambda node: 0, sensors=lambda node: self.sensors
        )
        self.part = self.make()
        self.seq, self.begin = 0, self.clock.wall_ms() // HOUR_MS
        self.api.add(ID, UNIQUE, "°C")
        sockets = mock.patch.object(
            home_assistant_api, "WebSocket", lambda *args: FakeSocket(self.api, lambda: self.is_reachable)
        )
        sockets.start()
        self.addCleanup(sockets.stop)

    def make(self):
        return HomeAssistantStatistics(self.context, self.discovery)

    def store(self, hours, values_of, name="temperature"):
        """Store and note late samples: four per hour, whose values are `values_of(hour)`."""
        for hour in hours:
            begin_ms = (self.begin + hour) * HOUR_MS
            times = [begin_ms + n * 600_000 for n in range(4)]
            commit = commit_of("basement", times, {name: values_of(hour)})
            commit.items[0].seq = self.seq + 1
            commit.items[0].ups = times
            self.seq += 4
            commit.count = 4
            with self.context.store.writing([("basement", EPOCH)]):
                self.context.store.put([commit], self.clock.wall_ms(), None)
            self.part.on_commit([commit])

    def send(self):
        self.clock.sleep(QUIET_S + 1000)
        self.part._hours.save()
        self.part._send_due(self.clock.monotonic())

    def sent(self, entity=ID):
        return {hour - self.begin: row for hour, row in self.api.hours.get(entity, {}).items()}

    def tearDown(self):
        self.assertEqual(self.api.faults, [])


class Statistics(StatisticsCase):
    def test_late_hours_are_sent_once(self):
        self.store([-5, -4, -3], lambda hour: [20.0 + hour, 21.0, 22.0, 25.0])
        self.send()
        self.assertEqual(self.sent().keys(), {-5, -4, -3})
        self.assertEqual(self.sent()[-5], {"mean": 83 / 4, "min": 15.0, "max": 25.0})
        self.assertEqual(self.part.statuses()[0].backlog, 0)
        imports = self.api.imports
        self.send()
        self.assertEqual(self.api.imports, imports)

    def test_renamed_entity_is_found_by_its_unique_id(self):
        self.api.registry.clear()
        self.api.add("sensor.boiler", UNIQUE, "°C")
        self.store([-5], lambda hour: [1.0] * 4)
        self.send()
        self.assertEqual(self.sent("sensor.boiler").keys(), {-5})

    def test_values_are_converted_to_the_unit_of_the_statistics(self):
        self.api.registry.clear()
        self.api.add(ID, UNIQUE, "°F")
        self.store([-5], lambda hour: [20.0] * 4)
        self.send()
        self.assertEqual(self.sent()[-5], {"mean": 68.0, "min": 68.0, "max": 68.0})

    def test_statistics_with_another_unit_are_refused_and_not_changed(self):
        self.api.registry.clear()
        self.api.add(ID, UNIQUE, "kWh")
        self.store([-5], lambda hour: [20.0] * 4)
        with self.assertLogs(level="WARNING"):
            self.send()
        self.assertEqual(self.api.imports, 0)
        self.assertIn("unit kWh", self.part.fault)
        self.assertEqual(self.part.statuses()[0].refused, 1)

    def test_total_has_state_and_sum(self):
        self.sensors = {"rain": SensorFacts("mm", "", True)}
        self.api.add("sensor.rain", "pigeonpost:basement:rain", "mm", has_sum=True)
        self.api.hours["sensor.rain"] = {self.begin - 6: {"state": 100.0, "sum": 40.0}}
        self.store([-5, -4], lambda hour: [110.0 + hour, 112.0 + hour, 113.0 + hour, 114.0 + hour], "rain")
        self.send()
        self.assertEqual(self.sent("sensor.rain")[-5], {"state": 109.0, "sum": 49.0})
        self.assertEqual(self.sent("sensor.rain")[-4], {"state": 110.0, "sum": 50.0})

    def test_hours_wait_until_the_entity_exists(self):
        self.api.registry.clear()
        self.store([-5], lambda hour: [20.0] * 4)
        self.send()
        self.assertEqual(self.part.statuses()[0].backlog, 1)
        self.assertIn("does not show node basement yet", self.part.fault)
        self.api.add(ID, UNIQUE, "°C")
        self.send()
        self.assertEqual(self.part.statuses()[0].backlog, 0)
        self.assertEqual(self.part.fault, "")

    def test_hours_of_a_retired_node_are_removed(self):
        self.store([-5], lambda hour: [20.0] * 4)
        self.context.names.retired.add("basement")
        self.sensors = {}
        self.send()
        self.assertEqual((self.api.imports, self.part.statuses()[0].backlog, self.part.fault), (0, 0, ""))

    def test_hours_of_a_disabled_entity_are_removed(self):
        self.api.registry[0]["disabled_by"] = "user"
        self.store([-5], lambda hour: [20.0] * 4)
        self.send()
        self.assertEqual((self.api.imports, self.part.statuses()[0].backlog), (0, 0))

    def test_accepted_statistics_that_are_not_written_are_sent_again(self):
        self.api.is_writing = False
        self.store([-5], lambda hour: [20.0] * 4)
        with mock.patch.object(home_assistant_statistics, "WRITTEN_S", -1.0), self.assertLogs(level="WARNING"):
            self.send()
        self.assertEqual(self.part.statuses()[0].backlog, 1)
        self.api.is_writing = True
        self.send()
        self.assertEqual(self.sent().keys(), {-5})

    def test_hours_are_sent_after_home_assistant_was_away_and_this_server_was_killed(self):
        self.is_reachable = False
        self.store([-5, -4], lambda hour: [20.0] * 4)
        with self.assertLogs(level="WARNING"):
            self.send()
        self.assertIn("no connection", self.part.fault)
        self.part = self.make()
        self.is_reachable = True
        self.send()
        self.assertEqual(self.sent().keys(), {-5, -4})

    def test_more_samples_replace_the_statistics_of_their_hour(self):
        self.store([-5], lambda hour: [20.0] * 4)
        self.send()
        self.store([-5], lambda hour: [30.0] * 4)
        self.send()
        self.assertEqual(self.sent()[-5]["mean"], 25.0)


class Faults(StatisticsCase):
    def fault(self):
        with self.assertLogs(level="WARNING"):
            self.send()
        return self.part.fault

    def test_wrong_token_names_the_remedy(self):
        self.api.token = "other"
        self.assertRegex(self.fault(), r"does not accept the token: set \[home_assistant\] token")

    def test_token_of_a_user_who_is_no_administrator_names_the_remedy(self):
        self.api.is_admin = False
        self.assertRegex(self.fault(), "administrator")

    def test_starting_home_assistant_is_waited_for(self):
        self.api.state = "NOT_RUNNING"
        self.assertRegex(self.fault(), "is starting")
        self.api.state = "RUNNING"
        self.send()
        self.assertEqual(self.part.fault, "")

    def test_pause_between_attempts_grows(self):
        self.is_reachable = False
        self.fault()
        pauses = []
        for _ in range(8):
            pauses.append(self.part._next_s - self.clock.monotonic())
            self.clock.sleep(pauses[-1])
            self.part._send_due(self.clock.monotonic())
        self.assertEqual(pauses[:3], [15.0, 30.0, 60.0])
        self.assertEqual(pauses[-1], 600.0)

    def test_command_that_is_not_executed_is_a_fault_with_its_reason(self):
        self.api.refused["recorder/get_statistics_metadata"] = "Unknown command."
        self.store([-5], lambda hour: [20.0, 21.0, 22.0, 23.0])
        self.assertEqual(self.fault(), "Home Assistant refuses recorder/get_statistics_metadata: Unknown command.")
        self.api.refused.clear()
        self.send()
        self.assertEqual((self.part.fault, [*self.sent()]), ("", [-5]))

    def test_token_in_an_answer_is_never_shown(self):
        for command in ("auth/current_user", "recorder/import_statistics"):
            self.api.refused = {command: f"{'x' * 180} secret is wrong"}
            self.store([-5], lambda hour: [20.0, 21.0, 22.0, 23.0])
            with self.assertLogs(level="WARNING") as logged:
                self.send()
            self.assertNotIn("secr", f"{self.part.fault} {logged.output}")

    def test_no_connection_is_made_after_stop(self):
        self.store([-5], lambda hour: [20.0, 21.0, 22.0, 23.0])
        self.assertIsNone(self.part.stop(LIMIT_S))
        self.send()
        self.assertEqual(self.api.sessions, 0)

    def test_token_is_required(self):
        self.context.settings["home_assistant", "token"] = ""
        with self.assertRaisesRegex(SettingsError, "token"):
            self.make()
