"""Quality flags of values, by limits that an untrusted node reports or the settings contain, and their display."""

import json
import math
import random
import types
import unittest

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import SettingsError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.latest_samples import LatestSamples
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.quality import KINDS, QualityChecks, QualityFlag, read_rules
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import Sample
from tests.page_support import Server, set_zone, use_memory_disk
from tests.support import temp_folder, wait_until
from tests.web.support import FakeLink, WebHouse

EPOCH, OTHER = "0123456789abcdef", "fedcba9876543210"
T0 = 1_795_188_970_000


def setUpModule():
    use_memory_disk()


class Node:
    """One node with one sensor, its limits and quality flags."""

    def __init__(self, limits=None, every_s=10.0, rules=None, name="basement"):
        self.state = NodeState("address", name)
        self.state.every_s = every_s
        self.links = [types.SimpleNamespace(state=NodeState("other", "attic")), types.SimpleNamespace(state=self.state)]
        self.tell(limits)
        self.quality = QualityChecks(self.links, rules)
        self.now_ms = T0

    def tell(self, limits):
        """Report limits in a new HELLO."""
        self.state.sensors = [{"name": "light", "unit": ""}, {"name": "t", "unit": "°C"}]
        if limits is not None:
            self.state.sensors[1]["limits"] = limits

    def say(self, *values, every_s=10.0, epoch=EPOCH, sensor="t"):
        """Commit values at intervals of `every_s` together, and return the kinds of flags of the last one."""
        samples = []
        for value in values:
            self.now_ms += int(every_s * 1000)
            samples.append(Sample(len(samples) + 1, self.now_ms, self.now_ms - T0, {"light": 5, sensor: value}, {}, ""))
        self.file(samples, epoch)
        return self.kinds()

    def file(self, samples, epoch=EPOCH):
        epoch_commit = EpochCommit(self.state.name, "outbox", epoch, NOTHING)
        epoch_commit.items.append(SampleBatch.of(samples))
        self.quality.on_commit([epoch_commit])

    def judged(self, later_s=0.0, is_expected=True):
        return self.quality.of(self.state.name, "t", self.now_ms + int(later_s * 1000), is_expected)

    def kinds(self, later_s=0.0, is_expected=True):
        judged = self.judged(later_s, is_expected)
        return [finding.kind for finding in judged.findings] if judged else None

    def counts(self):
        return {kind: count for kind, count in self.judged().counts.items() if count}


class CheckTest(unittest.TestCase):
    def test_value_out_of_range_is_flagged(self):
        node = Node({"low": 2, "high": 30})
        for value, kinds in ((2, []), (30, []), (1.99, ["range"]), (30.01, ["range"]), (None, []), (20, [])):
            self.assertEqual(node.say(value), kinds, value)
        node.say(31)
        self.assertEqual(node.judged().findings, [QualityFlag("range", 30, 31)])
        node.say(1)
        self.assertEqual(node.judged().findings, [QualityFlag("range", 2, 1)])
        self.assertEqual(node.counts(), {"range": 4})

    def test_jump_is_a_change_per_elapsed_time(self):
        node = Node({"jump": 0.5})
        self.assertEqual(node.say(20), [])
        self.assertEqual(node.say(25), [])  # 5 in 10 s
        self.assertEqual(node.say(30.1), ["jump"])
        self.assertEqual(node.say(10), ["jump"])
        self.assertAlmostEqual(node.judged().findings[0].found, -20.1)
        self.assertEqual(node.say(40, every_s=60), [])
        self.assertEqual(node.say(None, None, None), [])
        self.assertEqual(node.say(59), [])  # 19 in 40 s
        self.assertEqual(node.counts(), {"jump": 2})

    def test_noise_of_a_fast_node_is_not_a_jump(self):
        node = Node({"jump": 0.5}, every_s=0.01)
        self.assertEqual(node.say(20, 20.4, 20, 20.4, every_s=0.01), [])
        self.assertEqual(node.say(21, every_s=0.01), ["jump"])

    def test_unchanged_value_is_stuck(self):
        node = Node({"stuck": 60})
        self.assertEqual(node.say(*[5] * 6), [])
        self.assertEqual(node.say(5), ["stuck"])
        self.assertEqual(node.judged().findings, [QualityFlag("stuck", 60, 60)])
        self.assertEqual(node.say(5, 5), ["stuck"])
        self.assertEqual(node.say(5.1), [])
        self.assertEqual(node.counts(), {"stuck": 3})
        self.assertEqual(node.say(5.1, 5.1, None, 5.1, 5.1, 5.1), ["stuck"])  # the failure in between changes nothing

    def test_pause_does_not_make_a_value_stuck(self):
        node = Node({"stuck": 60})
        node.say(5, 5, 5)
        self.assertEqual(node.say(5, every_s=7200), [])
        self.assertEqual(node.say(*[5] * 6), ["stuck"])

    def test_value_at_the_end_of_the_scale_is_flagged(self):
        node = Node({"rail": [-50, 279.68]})
        for value, kinds in ((-50, ["rail"]), (-51, ["rail"]), (279.68, ["rail"]), (279.67, []), (-49.9, [])):
            self.assertEqual(node.say(value), kinds, value)
        node.say(300)
        self.assertEqual(node.judged().findings, [QualityFlag("rail", 279.68, 300)])
        self.assertEqual(node.counts(), {"rail": 4})

    def test_old_value_is_stale_and_counted_once(self):
        node = Node({"high": 100})
        node.say(5)
        self.assertEqual(node.kinds(35), [])
        self.assertEqual(node.kinds(35.1), ["stale"])
        self.assertEqual(node.kinds(100), ["stale"])
        self.assertEqual(node.judged(100).findings, [QualityFlag("stale", 35, 100)])
        self.assertEqual(node.counts(), {"stale": 1})  # queried twice, but it has become stale once
        self.assertEqual(node.say(6, every_s=200), [])
        self.assertEqual(node.kinds(40), ["stale"])
        self.assertEqual(node.counts(), {"stale": 2})

    def test_failing_sensor_becomes_stale_without_a_query(self):
        node = Node({"high": 100})
        node.say(500, None, None, None)
        self.assertEqual(node.quality._nodes["basement"].tracks["t"].findings, [])
        node.say(None)
        self.assertEqual([one.kind for one in node.quality._nodes["basement"].tracks["t"].findings], ["stale"])
        self.assertEqual(node.say(5, 5), [])
        self.assertEqual(node.counts(), {"range": 1, "stale": 1})

    def test_node_that_need_not_send_is_not_stale(self):
        node = Node({"high": 100})
        node.say(5)
        self.assertEqual(node.kinds(1000), ["stale"])
        self.assertEqual(node.kinds(1000, is_expected=False), [])

    def test_sensor_with_unknown_interval_is_never_stale(self):
        node = Node({"high": 100}, every_s=None)
        node.say(5)
        self.assertEqual(node.kinds(1e6), [])

    def test_value_can_have_several_flags(self):
        node = Node({"high": 30, "rail": [0, 40], "jump": 0.1})
        self.assertEqual(node.say(20, 40), ["range", "jump", "rail"])
        self.assertEqual(node.say(None), [])

    def test_sensors_without_limits_are_not_kept(self):
        node = Node()
        self.assertIsNone(node.say(1e9))
        self.assertIsNone(node.quality.of("nobody", "t", T0))
        node = Node({"high": 5})
        node.say(6)
        self.assertIsNone(node.quality.of("basement", "light", T0))


class MemoryTest(unittest.TestCase):
    def test_node_with_changing_names_is_kept_under_few_names(self):
        node = Node({"high": 5}, rules={("pinned", "t"): {"low": 0}})
        for n in range(50):
            node.state.name = f"n{n}"
            self.assertEqual(node.say(7.0), ["range"])
        self.assertLessEqual(len(node.quality._nodes), 4)


class ReceiptTest(unittest.TestCase):
    """Staleness by the time of receipt, and late data of clients without numbers."""

    def setUp(self):
        self.clock = FakeClock()
        self.newest = LatestSamples("")
        self.state = NodeState("address", "n")
        self.state.sensors = [{"name": "t", "unit": "", "limits": {"high": 30, "jump": 1}}]
        self.state.every_s = 10.0
        links = [types.SimpleNamespace(state=self.state)]
        self.ingestor = types.SimpleNamespace(newest=self.newest, clock=self.clock, commit_s=1.0)
        self.quality = QualityChecks(links, ingestor=self.ingestor)

    def commit(self, *samples, outbox="outbox"):
        """Commit samples, each a value and its age in seconds."""
        commit = EpochCommit("n", outbox, EPOCH, NOTHING)
        now_ms, up_ms = self.clock.wall_ms(), self.clock.up_ms() if outbox else 0
        commit.items.append(SampleBatch.of([
            Sample(seq, now_ms - int(age_s * 1000), up_ms - int(age_s * 1000) if outbox else 0, {"t": value}, {}, "")
            for seq, (value, age_s) in enumerate(samples, 1)
        ]))  # fmt: skip
        self.newest.record([commit], now_ms, self.clock.monotonic())
        self.quality.on_commit([commit])

    def kinds(self, now_ms=0):
        return [finding.kind for finding in self.quality.of("n", "t", now_ms).findings]

    def test_value_becomes_stale_by_the_time_of_its_receipt(self):
        for age_s in (0, -3600, 3600, -366 * 86_400, 50 * 366 * 86_400):
            self.commit((20, age_s))
            self.clock.step(-age_s)
            self.clock.sleep(34)
            self.assertEqual(self.kinds(), [])
            self.clock.sleep(2)
            self.assertEqual(self.kinds(), ["stale"])

    def test_interval_between_commits_is_waited_for(self):
        for commit_s, late_s in ((0.05, 35), (5, 35), (60, 90), (600, 630)):
            self.ingestor.commit_s = float(commit_s)
            self.quality = QualityChecks(self.quality._links, ingestor=self.ingestor)
            self.commit((20, 0))
            self.clock.sleep(late_s - 0.5)
            self.assertEqual(self.kinds(), [])
            self.clock.sleep(1)
            self.assertEqual(self.kinds(), ["stale"])

    def test_failed_readings_do_not_prolong_a_value(self):
        self.commit((20, 0))
        for _ in range(4):
            self.clock.sleep(10)
            self.commit((None, 0))
        self.assertEqual(self.kinds(), ["stale"])
        self.commit((20, 40), (None, 30), (None, 20), (None, 0))  # the value is 40 s older than the last sample
        self.assertEqual(self.kinds(), ["stale"])
        self.commit((20, 20), (None, 10), (None, 0))
        self.assertEqual(self.kinds(), [])

    def test_late_data_is_counted_but_does_not_change_the_flags(self):
        self.commit((20, 0), outbox="")
        for value, age_s, ranges in ((40, 3600, 1), (10, 7200, 1), (50, 60, 2), (None, 500, 2), (31, 1e9, 3)):
            self.clock.sleep(2)
            self.commit((value, age_s), outbox="")
            self.assertEqual(self.kinds(), [])
            counts = self.quality.of("n", "t", 0).counts
            self.assertEqual((counts["range"], counts["jump"]), (ranges, 0))
        self.commit((31, 0), outbox="")
        self.assertEqual(self.kinds(), ["range", "jump"])
        self.clock.sleep(1)
        self.commit((20, 90), outbox="")
        self.assertEqual(self.kinds(), ["range", "jump"])

    def test_late_sensor_does_not_affect_the_others_of_its_sample(self):
        self.commit((20, 0), outbox="")
        commit = EpochCommit("n", "", EPOCH, NOTHING)
        commit.items.append(SampleBatch(1, [self.clock.wall_ms() - 50_000], [0], {"t": [99], "h": [1]}))
        self.clock.sleep(5)
        self.newest.record([commit], self.clock.wall_ms(), self.clock.monotonic())
        self.quality.on_commit([commit])
        self.assertEqual((self.kinds(), self.newest.samples["n"].sample.values), ([], {"t": 20, "h": 1}))


class OrderTest(unittest.TestCase):
    def test_only_dates_in_ascending_order_are_compared_between_epochs(self):
        node = Node({"jump": 1, "stuck": 15})
        node.say(5)
        self.assertEqual(node.say(100, epoch=OTHER), ["jump"])
        node.now_ms -= 3_600_000  # the clock was wrong, or this value is older: the rate of change is unknown
        self.assertEqual(node.say(5), [])
        self.assertEqual(node.say(5, 5), ["stuck"])

    def test_step_of_the_date_within_an_epoch_is_ignored(self):
        node = Node({"jump": 1})
        node.file([Sample(1, T0, 1000, {"t": 5}, {}, ""), Sample(2, T0 - 10**12, 2000, {"t": 5.5}, {}, "")])
        self.assertEqual(node.quality.of("basement", "t", T0 - 10**12).findings, [])
        node.file([Sample(3, T0 + 10**12, 3000, {"t": 50}, {}, "")])
        self.assertEqual([finding.kind for finding in node.quality.of("basement", "t", T0 + 10**12).findings], ["jump"])

    def test_backlog_is_checked_by_its_own_times(self):
        node = Node({"jump": 1, "high": 100})
        node.say(1)
        self.assertEqual(node.kinds(3600), ["stale"])
        self.assertEqual(node.say(*[20, 21, 22] * 100), [])
        self.assertEqual(node.counts(), {"jump": 1, "stale": 1})

    def test_samples_without_uptime_are_checked_by_their_dates(self):
        """In samples of clients without sequence numbers, `up` is always the same."""
        node = Node({"jump": 1})
        node.file([Sample(1, T0, 0, {"t": 5}, {}, ""), Sample(2, T0 + 10_000, 0, {"t": 50}, {}, "")])
        self.assertEqual([one.kind for one in node.quality.of("basement", "t", T0).findings], ["jump"])

    def test_stuck_values_within_a_batch_are_counted(self):
        node = Node({"stuck": 60})
        self.assertEqual(node.say(1, 2, *[5] * 8, 1, 2), [])
        self.assertEqual(node.counts(), {"stuck": 2})

    def test_pause_or_clock_step_within_a_batch_is_not_counted_as_stuck(self):
        for pause_ms, more in (
            (40_000, 57),
            (-300_000, 56),
        ):  # unchanged for 20 s since the pause, or 39 s in total
            node = Node({"stuck": 600})
            times = [1000, 10_000, 20_000, *[20_000 + pause_ms + place * 10_000 for place in range(3)]]
            node.file([Sample(seq, T0 + ms, ms + 10**6, {"t": 5}, {}, "") for seq, ms in enumerate(times, 1)])
            node.now_ms = T0 + 10**6 + times[-1]
            self.assertEqual((node.say(*[5] * more), node.say(5)), ([], ["stuck"]))

    def test_batch_has_the_same_result_as_its_single_samples(self):
        dice = random.Random(14)
        kinds = {
            "calm": lambda: 5 + dice.random() / 8, "whole": lambda: dice.randrange(3), "same": lambda: 7,
            "peaks": lambda: 5 if dice.random() < 0.97 else 50, "fails": lambda: dice.choice([5, 5.5, None]),
            "wild": lambda: dice.choice([2**62, 2**62 + 700, -(2**62), 1.7e308, -1.7e308, 1023, 0]),
        }  # fmt: skip
        found = set()
        for _ in range(100):
            limits = {"low": -5, "high": 20, "jump": dice.choice([0.1, 3, 600]), "stuck": dice.choice([2, 40, 500]),
                      "rail": [-10, 30]}  # fmt: skip
            limits = {key: limits[key] for key in limits if dice.random() < 0.6}
            at_once, one_by_one = Node(limits), Node(limits)
            value, step_ms, now_ms, last = kinds[dice.choice(list(kinds))], dice.choice([10, 1000, 10_000]), T0, 0
            for _ in range(3):
                samples, has_ups = [], dice.random() < 0.8
                for seq in range(last + 1, last + dice.randrange(2, 90)):
                    now_ms += step_ms if dice.random() < 0.98 else dice.choice([0, -5000, 60_000])
                    samples.append(Sample(seq, now_ms, now_ms - T0 + 10**6 if has_ups else 0, {"t": value()}, {}, ""))
                at_once.file(samples)
                last = samples[-1].seq
                for sample in samples:
                    one_by_one.file([sample])
                judged = [node.quality.of("basement", "t", now_ms) for node in (at_once, one_by_one)]
                self.assertEqual(*judged)
                if judged[0]:
                    found.update(kind for kind, count in judged[0].counts.items() if count)
        self.assertEqual(found, set(KINDS))


class ReportedLimitsTest(unittest.TestCase):
    def test_only_valid_numbers_of_untrusted_limits_are_used(self):
        nan, huge = math.nan, 10**400
        for told, taken in (
            (None, None), ("low", None), ([], None), ({}, None), ({"low": "5"}, None), ({"low": True}, None),
            ({"low": nan, "high": math.inf, "jump": -1, "stuck": 0, "rail": [1, 1]}, None), ({"low": huge}, None),
            ({"rail": [1]}, None), ({"rail": ["a", 2]}, None), ({"rail": {"0": 1, "1": 2}}, None),
            ({"rail": [nan, 2]}, None),
            ({"low": 5, "high": None, "else": {}}, {"low": 5}), ({"stuck": 1e-300}, {"stuck": 1e-300}),
            ({"low": 2**63, "rail": [0, 2**62]}, {"low": 2**63, "rail": [0, 2**62]}),
            ({"every": 5, "jump": 1}, {"jump": 1}),  # the node reports its interval once, for all sensors
        ):  # fmt: skip
            node = Node(told)
            node.say(5, -(2**63), None, 1.7e308, -1.7e308, 0)
            judged = node.judged(1e6)
            self.assertEqual(judged and judged.limits, taken, told)

    def test_random_limits_and_values_cause_no_error(self):
        dice = random.Random(7)
        pieces = [None, 0, 5, -5.5, 1e308, "x", True, [], {}, [0, 1], [1, 0], [0, [1]], math.nan, 2**70, {"low": 1}]
        node = Node({})
        for _ in range(500):
            node.tell({key: dice.choice(pieces) for key in ("low", "high", "jump", "stuck", "rail", "every", "x")})
            node.say(*dice.choices([None, 0, 5, 1e308, -(2**63), 0.1], k=5), every_s=dice.choice([10, -10, 0, 1e6]),
                     epoch=dice.choice([EPOCH, OTHER]))  # fmt: skip
            judged = node.judged(dice.choice([0, 1e9, -1e9]))
            self.assertTrue(judged is None or set(judged.counts) == set(KINDS))

    def test_new_hello_replaces_limits_and_keeps_the_counts(self):
        node = Node({"high": 10})
        node.say(20)
        node.tell({"high": 30})
        self.assertEqual(node.say(20), [])
        self.assertEqual(node.counts(), {"range": 1})
        node.tell(None)
        self.assertIsNone(node.say(20))

    def test_former_sensor_names_are_removed(self):
        node = Node({"high": 10})
        for number in range(100):
            node.state.sensors = [{"name": f"s{number}", "unit": "", "limits": {"high": 1}}]
            node.say(5, sensor=f"s{number}")
        self.assertEqual(list(node.quality._nodes["basement"].tracks), ["s99"])

    def test_node_whose_name_becomes_known_later_is_checked(self):
        node = Node({"high": 10}, name="")
        node.state.name = ""
        self.assertIsNone(node.quality.of("basement", "t", T0))
        node.state.name = "basement"
        self.assertEqual(node.say(20), ["range"])
        self.assertEqual(node.state.name, "basement")

    def test_limits_are_those_of_the_link_that_the_node_uses(self):
        node = Node({"high": 10})
        waiting = types.SimpleNamespace(state=NodeState("an address without a node", "basement"))
        node.links.insert(0, waiting)
        self.assertEqual(node.say(20), ["range"])
        node.state.sensors = []  # later it uses the other link
        waiting.state.sensors = [{"name": "t", "unit": "°C", "limits": {"high": 50}}]
        self.assertEqual(node.say(20), [])
        self.assertEqual(node.counts(), {"range": 1})

    def test_node_on_a_new_link_keeps_its_counts(self):
        node = Node({"high": 10})
        node.say(20)
        node.state.name = "someone"
        state = NodeState("elsewhere", "basement")
        state.sensors = [{"name": "t", "unit": "", "limits": {"high": 50}}]
        node.links.append(types.SimpleNamespace(state=state))
        self.assertEqual(node.quality.of("basement", "t", T0).limits, {"high": 50})
        self.assertEqual(node.quality.of("basement", "t", T0).counts["range"], 1)


class SettingsTest(unittest.TestCase):
    def test_settings_take_precedence_over_reported_limits(self):
        rules = read_rules([{"node": "basement", "sensor": "t", "high": 50, "every": 100}], "server.toml")
        node = Node({"high": 10, "low": 0}, rules=rules)
        self.assertEqual(node.say(20), [])
        self.assertEqual(node.judged().limits, {"low": 0, "high": 50, "every": 100})
        self.assertEqual((node.kinds(305), node.kinds(306)), ([], ["stale"]))

    def test_settings_apply_to_a_node_without_reported_limits(self):
        rules = read_rules([{"node": "basement", "sensor": "t", "high": 50}], "server.toml")
        node = Node(rules=rules)
        self.assertEqual(node.say(60), ["range"])
        node.links.clear()
        alone = QualityChecks([], rules)
        self.assertEqual(alone.of("basement", "t", T0).limits, {"high": 50})
        self.assertIsNone(alone.of("attic", "t", T0))

    def test_invalid_tables_are_refused(self):
        good = {"node": "a", "sensor": "t", "low": 1}
        for tables, words in (
            ([{"sensor": "t", "low": 1}], "server.toml: [[limits]] 1: node is missing"),
            ([{"node": "a", "low": 1}], "sensor is missing"), ([{"node": "a", "sensor": "t"}], "no limit is set"),
            ([good, good], "[[limits]] 2: a table for t of a exists already"),
            ([{**good, "high": 0}], "low is above high"), ([{**good, "hihg": 0}], 'did you mean "high"?'),
            ([{**good, "rail": [2, 1]}], "rail takes the two ends of a scale"), ([{**good, "rail": 5}], "rail takes"),
            ([{**good, "node": "../x"}], "node takes"), ([{**good, "sensor": "T"}], "sensor takes"),
            ([{**good, "every": 0}], "every takes a number"),
        ):  # fmt: skip
            with self.subTest(words), self.assertRaises(SettingsError) as caught:
                read_rules(tables, "server.toml")
            self.assertIn(words, str(caught.exception))
        self.assertEqual(read_rules([], ""), {})


class PageTest(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")
        self.link = FakeLink("basement", {"temperature": "°C", "light": "lx"})
        self.web = WebHouse(self, links=[self.link])
        limits = {"low": 2, "high": 30, "jump": 0.5, "stuck": 3600, "rail": [-50, 279.68]}
        self.link.state.sensors[0]["limits"] = limits
        self.web.store_samples("basement", [{"temperature": 21.5, "light": 5}, {"temperature": 43.25, "light": 6}])

    def get(self, path, html=False):
        status, _, body = self.web.request("GET", path, self.web.bearer, html=html)
        self.assertEqual(status, 200, body)
        return body.decode()

    def test_flags_are_on_the_card(self):
        card = self.get("/", html=True).partition('class="cards"')[2].partition("</section>")[0]
        first, _, second = card.partition("light")
        self.assertIn('<span class="odd">above 30 °C</span> <span class="odd">jumped by 21.75 °C</span>', first)
        self.assertIn("43.25", first)  # next to the value, never instead of it
        self.assertNotIn("odd", second)
        self.assertRegex(self.get("/"), r"43\.25 °C .*above 30 °C, jumped by 21\.75 °C")

    def test_flags_are_on_the_page_of_the_node(self):
        page = self.get("/nodes/basement", html=True)
        table = page.partition("Limits and quality flags")[2].partition("</section>")[0]
        limits = "2 to 30 °C; change of at most 0.5 °C per second; must change within 60 min; saturated at −50"
        self.assertIn(limits, table)
        self.assertIn("out of range 1 time, jumped 1 time", table)
        self.assertNotIn("light", table)
        self.assertRegex(self.get("/nodes/basement"), r"temperature +2 to 30 °C; .* out of range 1 time, jumped 1 time")
        self.web.store_samples("basement", [{"temperature": 21.5, "light": 5}, {"temperature": 21.6, "light": 5}])
        self.assertIn(">OK<", self.get("/nodes/basement", html=True))

    def test_flags_are_in_the_json_interface(self):
        temperature, light = json.loads(self.get("/api/v1/nodes"))["nodes"][0]["sensors"]
        self.assertEqual(temperature["verdicts"], [
            {"kind": "range", "text": "above 30 °C"}, {"kind": "jump", "text": "jumped by 21.75 °C"},
        ])  # fmt: skip
        self.assertEqual(temperature["verdict_counts"], {"range": 1, "jump": 1, "stuck": 0, "rail": 0, "stale": 0})
        self.assertEqual(temperature["limits"]["rail"], [-50, 279.68])
        self.assertEqual((light["verdicts"], light["verdict_counts"], light["limits"]), ([], {}, {}))

    def test_flags_are_in_the_metrics(self):
        metrics = self.get("/metrics").splitlines()
        for verdict, now, count in (("range", 1, 1), ("jump", 1, 1), ("stuck", 0, 0)):
            labels = f'{{node="basement",sensor="temperature",verdict="{verdict}"}}'
            self.assertIn(f"pigeonpost_verdict{labels} {now}", metrics)
            self.assertIn(f"pigeonpost_verdicts_total{labels} {count}", metrics)
            labels = labels.replace("verdict=", "flag=")
            self.assertIn(f"pigeonpost_quality_flag{labels} {now}", metrics)
            self.assertIn(f"pigeonpost_quality_flags_total{labels} {count}", metrics)
        self.assertFalse([line for line in metrics if ("verdict" in line or "flag" in line) and "light" in line])

    def test_each_flag_has_a_text(self):
        self.link.state.sensors = [{"name": "temperature", "unit": "<b>", "limits": {"stuck": 1, "low": 50}}]
        self.web.store_samples("basement", [{"temperature": 43.25}] * 3)
        page = self.get("/nodes/basement", html=True)
        self.assertIn('<span class="odd">below 50 &lt;b&gt;</span> <span class="odd">stuck for 3 s</span>', page)
        self.assertIn("at least 50 &lt;b&gt;; must change within 1 s", page)
        self.link.state.sensors = [{"name": "temperature", "unit": "", "limits": {"rail": [0, 43], "high": 50}}]
        self.web.store_samples("basement", [{"temperature": 43.25}])
        self.assertIn('<span class="odd">saturated</span>', self.get("/", html=True))
        self.link.state.every_s = 0.01
        self.link.state.offset_ms = -10_000_000  # its clock is slow: the time since its last sample counts
        self.web.store_samples(
            "basement",
            [Sample(7, self.web.app.clock.wall_ms() - 10_000_000, 99_000_000, {"temperature": 1}, {}, "")],
        )
        self.web.app.quality._nodes["basement"].tracks["temperature"].received_s -= 100
        self.web.web._snapshots.invalidate()
        self.assertIn('<span class="odd">no value for 100 s</span>', self.get("/", html=True))
        self.link.state.on = False
        self.web.web._snapshots.invalidate()
        self.assertNotIn("no value for", self.get("/", html=True))


class ServerTest(unittest.TestCase):
    def test_server_reads_its_limits(self):
        path = f"{temp_folder(self)}/server.toml"
        with open(path, "w", encoding="utf-8") as file:
            file.write('[[limits]]\nnode = "demo"\nsensor = "temperature"\nlow = 1000\n')
        server = Server(self, "--config", path, "--demo")
        limits = self.wait_for_limits(server)
        self.assertEqual((limits["low"], limits["rail"]), (1000, [-50, 279.68]))

    def wait_for_limits(self, server):
        def found():
            about = json.loads(server.get("/api/v1/nodes")[1])["nodes"][0]["sensors"]
            temperature = next((sensor for sensor in about if sensor["name"] == "temperature"), None)
            odd = temperature and [one["kind"] for one in temperature["verdicts"]]
            return temperature["limits"] if odd == ["range"] else None

        return wait_until(found, "the server judges what the demo sends")

    def test_invalid_limit_is_named_in_the_error(self):
        path = f"{temp_folder(self)}/server.toml"
        with open(path, "w", encoding="utf-8") as file:
            file.write('[[limits]]\nnode = "demo"\n')
        server = Server(self, "--config", path)
        self.assertEqual(server.wait(), 2)
        server.logs("[[limits]] 1: sensor is missing")


if __name__ == "__main__":
    unittest.main()
