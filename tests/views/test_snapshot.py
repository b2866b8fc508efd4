"""The status snapshot: one sentence for each state of the nodes, and what a card shows of each sensor."""

import threading
import unittest
from types import SimpleNamespace

from pigeonpost.alerts.rules import read_rules as alert_rules
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.faults import Faults
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.ingest import LatestSample
from pigeonpost.server.node_register import NodeRegister
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.quality import QualityChecks
from pigeonpost.server.recent_cache import RecentCache
from pigeonpost.storage.models import NOTHING, Bucket, EpochCommit, NodeRecords
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.views.context import WebContext
from pigeonpost.views.failures import FailureTracker
from pigeonpost.views.snapshot import FRESH_S, SnapshotBuilder
from protocol import Batch, Gap, Sample
from tests.page_support import set_zone, use_memory_disk
from tests.support import LIMIT_S, temp_folder

OUTBOX, EPOCH = "00000000000000aa", "0000000000000001"
HOUR = 3_600_000


def setUpModule():
    use_memory_disk()


class CountingStore(SqliteStore):
    def __init__(self, folder):
        super().__init__(folder)
        self.looks = 0

    def nodes(self):
        self.looks += 1
        return super().nodes()


class OverviewCase(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")
        self.clock = FakeClock()  # 2026-11-20 15:36:10 UTC
        self.store = CountingStore(temp_folder(self))
        self.addCleanup(self.store.close)
        self.ingestor = SimpleNamespace(latest={}, fault="", names=NodeRegister(self.store))
        self.csv = SimpleNamespace(fault="")
        self.links = []
        self.seqs = {}
        self.house = WebContext(
            name="house", data="", clock=self.clock, store=self.store, csv=self.csv, ingestor=self.ingestor,
            links=self.links, users=(), api_tokens=None, control="", started_ms=0, names=(), stop=print, disk=None,
            faults=Faults(), throttle=LoginThrottle(self.clock),
        )  # fmt: skip
        self.book = RecentCache(self.store)
        self.overview = SnapshotBuilder(self.house, self.book.day)

    def node(self, name="basement", connected=True, on=True, ago_s=3600, sensors=("temperature",), **more):
        """A node that this server collects from, and how its link is since `ago_s`."""
        state = NodeState(f"192.168.1.{20 + len(self.links)}:5003", name)
        state.connected, state.on, state.every_s = connected, on if connected else None, 10.0
        state.fault = "" if connected else "cannot be reached: Connection refused"
        state.since_ms = None if ago_s is None else self.clock.wall_ms() - int(ago_s * 1000)
        state.sensors = [{"name": sensor, "unit": "°C"} for sensor in sensors] if connected else []
        for key, value in more.items():
            setattr(state, key, value)
        self.links.append(SimpleNamespace(state=state))
        return state

    def put(self, node="basement", ago_s=0.0, values=None, errors=None, units=None, heard=True):
        """Store a sample of `node`, `ago_s` old by its own date; unless not `heard`, it came in this run."""
        seq = self.seqs[node] = self.seqs.get(node, 0) + 1
        values = {"temperature": 21.5} if values is None else values
        made = Sample(seq, self.clock.wall_ms() - int(ago_s * 1000), seq, values, errors or {}, "")
        units = {"temperature": "°C"} if units is None else units
        epoch_commit = self.file(node, Batch(node, OUTBOX, EPOCH, 0, SampleBatch.of([made]), None, units, print, print))
        self.committed = [epoch_commit]
        if heard:
            self.ingestor.latest[node] = LatestSample(made, units, self.clock.wall_ms())
            self.book.on_commit([epoch_commit])

    def file(self, node, batch):
        epoch_commit = EpochCommit(node, OUTBOX, EPOCH, NOTHING)
        epoch_commit.units = batch.units
        epoch_commit.add(batch, 0)
        with self.store.writing(()):
            self.store.put([epoch_commit], self.clock.wall_ms(), None)
        return epoch_commit

    def snapshot(self):
        self.overview.invalidate()
        return self.overview.snapshot()

    def assert_says(self, level, verdict):
        snapshot = self.snapshot()
        self.assertEqual((snapshot.level, snapshot.summary), (level, verdict))

    def view(self, name="basement"):
        return self.snapshot().node(name)

    def card(self, sensor="temperature", node="basement"):
        return next(view for view in self.view(node).sensors if view.name == sensor)


class Verdicts(OverviewCase):
    def test_no_node_is_set_up(self):
        self.assert_says("wait", "No node is set up: start the server with --node NAME@HOST:PORT")

    def test_all_is_well(self):
        self.node("basement")
        self.put("basement")
        self.assert_says("good", "Node basement is reporting")
        self.node("attic")
        self.put("attic")
        self.assert_says("good", "Both nodes are reporting")
        self.node("shed")
        self.put("shed")
        self.assert_says("good", "All 3 nodes are reporting")

    def test_late(self):
        self.node()
        self.put(ago_s=35)
        self.assert_says("good", "Node basement is reporting")
        self.clock.sleep(1)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 36 s")
        self.clock.sleep(600)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 11 min")
        self.assertEqual(self.view().state, "late")
        self.assertEqual(self.view().words, "connected, but sends nothing since 15:35")

    def test_one_that_calls_in(self):
        state = self.node(calls_in=True, every_s=None)
        self.put(ago_s=3600)
        self.assert_says("good", "Node basement is reporting")
        self.assertFalse(self.view().connected)
        state.every_s = 300.0
        self.assert_says("bad", "Node basement has sent nothing for 60 min")
        self.assertRegex(self.view().words, "^has brought nothing since ")

    def test_late_means_three_of_its_own_intervals(self):
        self.node(every_s=600.0, ago_s=86_400)
        self.put(ago_s=1800)
        self.assert_says("good", "Node basement is reporting")
        self.clock.sleep(6)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 30 min")

    def test_lost(self):
        state = self.node(connected=False, ago_s=120)
        self.put(ago_s=120)
        self.assert_says("bad", "Node basement cannot be reached since 15:34: Connection refused")
        state.fault = "refuses: node basement does not know the token"
        self.assert_says("bad", "Node basement refuses since 15:34: node basement does not know the token")
        state.fault = "closed"
        self.assert_says("bad", "Node basement is not connected (closed) since 15:34")
        self.assertEqual(self.view().state, "lost")
        self.clock.sleep(86_400)
        self.assert_says("bad", "Node basement is not connected (closed) since 20 Nov 15:34")

    def test_lost_without_a_name(self):
        self.node("", connected=False, ago_s=120)
        self.assert_says("bad", "The node at 192.168.1.20:5003 cannot be reached since 15:34: Connection refused")

    def test_some_of_many_are_wrong(self):
        self.node("attic")
        self.put("attic")
        self.node("basement", connected=False, ago_s=120)
        self.assert_says(
            "bad",
            "1 of 2 nodes is not reporting: basement cannot be reached since 15:34: Connection refused",
        )
        self.node("shed", ago_s=900)
        self.put("shed", ago_s=300)
        self.assert_says(
            "bad",
            "2 of 3 nodes are not reporting: basement cannot be reached since 15:34: Connection refused;"
            " shed is connected, but has sent nothing for 5 min",
        )

    def test_of_many_wrong_ones_three_are_named(self):
        for name in "abcde":
            self.node(name, connected=False, fault="closed", ago_s=0)
        self.assert_says(
            "bad",
            "5 of 5 nodes are not reporting: a is not connected (closed) since 15:36; b is not connected (closed)"
            " since 15:36; c is not connected (closed) since 15:36; and 2 more",
        )

    def test_switched_off(self):
        self.node("basement", on=False)
        self.put("basement", ago_s=7200)
        self.assert_says("wait", "Node basement is switched off")  # its name stays as it is, also at the beginning
        self.assertEqual((self.view().state, self.view().words), ("off", "switched off"))
        self.node("attic")
        self.put("attic")
        self.assert_says("wait", "Node basement is switched off; the other one is reporting")
        self.node("shed", on=False)
        self.assert_says("wait", "Nodes basement and shed are switched off; the other one is reporting")
        self.node("loft")
        self.put("loft")
        self.assert_says("wait", "Nodes basement and shed are switched off; the other 2 are reporting")

    def test_waiting(self):
        state = self.node("basement", connected=False, ago_s=None, fault="not reached yet")
        self.assert_says("wait", "Waiting for the first sample of basement")
        self.assertEqual((self.view().state, self.view().words), ("waiting", "not reached yet"))
        state.connected, state.since_ms, state.on = True, self.clock.wall_ms(), True
        self.assert_says("wait", "Waiting for the first sample of basement")
        self.assertEqual(self.view().words, "connected, waiting for a sample")
        self.node("attic", on=False)
        self.assert_says("wait", "Node attic is switched off; waiting for the first sample of basement")
        self.node("", connected=False, ago_s=None)
        self.assert_says(
            "wait",
            "Node attic is switched off; waiting for the first sample of basement and the node at 192.168.1.22:5003",
        )

    def test_waiting_for_many(self):
        for name in "abcde":
            self.node(name, ago_s=1)
        self.assert_says("wait", "Waiting for the first sample of a, b, c and 2 more")

    def test_connected_again_it_may_take_its_time(self):
        self.node(ago_s=10)
        self.put(ago_s=5000)
        self.assert_says("wait", "Waiting for the first sample of basement")
        self.clock.sleep(26)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 84 min")

    def test_a_node_that_never_sent_anything_is_waited_for(self):
        self.node(ago_s=10)
        self.clock.sleep(3600)
        self.assert_says("wait", "Waiting for the first sample of basement")

    def test_a_fault_of_the_server_itself_comes_first(self):
        self.node(connected=False)
        self.ingestor.fault = "nothing can be stored: database or disk is full"
        self.assert_says("bad", "Nothing can be stored: database or disk is full")
        self.csv.fault = "the CSV log waits: No space left on device"
        self.assert_says(
            "bad",
            "Nothing can be stored: database or disk is full; the CSV log waits: No space left on device",
        )
        self.assertEqual(len(self.snapshot().faults), 2)

    def test_a_node_of_the_past_is_no_trouble(self):
        self.put("cellar", ago_s=9000, heard=False)
        self.assert_says("wait", "No node is set up: start the server with --node NAME@HOST:PORT")
        self.node("basement")
        self.put("basement")
        self.assert_says("good", "Node basement is reporting")
        cellar = self.view("cellar")
        self.assertEqual((cellar.state, cellar.words), ("past", "nobody collects from it now"))
        self.assertEqual((cellar.connected, cellar.on, cellar.samples), (False, None, 1))
        self.assertEqual(self.snapshot().last_ms, self.clock.wall_ms())

    def test_every_sentence_begins_with_a_capital_letter_and_has_no_full_stop(self):
        for connected in (True, False):
            for name in ("basement", ""):
                self.links.clear()
                self.node(name, connected=connected, on=False)
                verdict = self.snapshot().summary
                self.assertRegex(verdict, r"^[A-Z].*[^.]$")


class Troubles(OverviewCase):
    """A sensor that fails or is out of range makes the headline amber, and is named."""

    def limit(self, **limits):
        quality = QualityChecks(self.links, {("basement", "temperature"): limits})
        self.builder_with(quality=quality)
        return quality

    def builder_with(self, **parts):
        self.house = self.house._replace(**parts)
        self.overview = SnapshotBuilder(self.house, self.book.day)

    def test_a_sensor_that_fails_is_named(self):
        self.node(sensors=("temperature", "inner_light"))
        self.put(
            values={"temperature": 20, "inner_light": None}, errors={"inner_light": "no permission to open /dev/x"}
        )
        self.assert_says("wait", "Sensor inner light of basement: no permission to open /dev/x")
        self.put(values={"temperature": 20, "inner_light": 3})
        self.assert_says("good", "Node basement is reporting")

    def test_of_several_the_first_is_named_and_all_are_counted(self):
        for name in ("attic", "basement"):
            self.node(name)
            self.put(name, values={"temperature": None})
        self.assert_says("wait", "2 sensors fail or are out of range; the first is temperature of attic: no reading")

    def test_a_node_that_is_lost_is_worse(self):
        self.node("attic")
        self.put("attic", values={"temperature": None})
        self.node("basement", connected=False, ago_s=0)
        self.assertEqual(self.snapshot().level, "bad")

    def test_a_node_that_does_not_report_has_no_sensor_in_trouble(self):
        self.node(on=False)
        self.put(values={"temperature": None})
        self.assert_says("wait", "Node basement is switched off")

    def test_a_sensor_that_was_taken_away_is_no_trouble(self):
        self.node()
        self.put(ago_s=60, values={"temperature": 20.0, "light": 700}, units={"temperature": "°C", "light": "counts"})
        self.put(values={"temperature": 20.0, "light": None})
        self.assert_says("good", "Node basement is reporting")

    def test_out_of_range(self):
        self.node()
        quality = self.limit(high=30)
        for value, level, words in ((31, "wait", "above 30 °C"), (29, "good", "")):
            self.put(values={"temperature": value})
            quality.on_commit(self.committed)
            text = f"Sensor temperature of basement: {words}" if words else "Node basement is reporting"
            self.assert_says(level, text)

    def test_a_value_that_has_become_stale(self):
        self.node(every_s=10.0)
        quality = self.limit(high=30, every=1)
        self.put()
        quality.on_commit(self.committed)
        self.assert_says("good", "Node basement is reporting")
        self.clock.sleep(9)  # with time alone
        self.assertEqual(self.overview.snapshot().summary, "Sensor temperature of basement: no value for 9 s")

    def test_beyond_the_threshold_of_an_alert(self):
        table = {"sensor": "temperature", "above": 20, "below": -5}
        self.builder_with(rules=alert_rules([table], "server.toml"))
        self.node()
        for value, words in ((21, "above 20 °C"), (-6, "below -5 °C")):
            self.put(values={"temperature": value})
            self.assert_says("wait", f"Sensor temperature of basement: {words.replace('-', '−')}")
        self.put(values={"temperature": 20})
        self.assert_says("good", "Node basement is reporting")

    def test_an_alert_for_the_former_name_of_a_node(self):
        self.node("cellar")
        self.put("cellar", values={"temperature": 21})
        with self.store.writing(()):
            self.store.rename("cellar", "basement", self.clock.wall_ms())
        self.ingestor.names.refresh()
        self.links[0].state.name = "basement"
        self.ingestor.latest["basement"] = self.ingestor.latest.pop("cellar")
        for node, level in (("cellar", "wait"), ("basement", "wait"), ("attic", "good")):
            self.builder_with(rules=alert_rules([{"node": node, "sensor": "temperature", "above": 20}], "server.toml"))
            self.assertEqual(self.snapshot().level, level, node)

    def test_what_is_the_same_is_not_made_again(self):
        state = self.node()
        self.put()
        first = self.snapshot().summaries[0]
        self.overview.on_commit([])
        self.assertIs(self.overview.snapshot().summaries[0], first)
        state.warn("outbox", "the card is full")
        self.overview.on_commit([])
        self.assertEqual(self.overview.snapshot().summary, "basement: the card is full")
        state.warn("outbox", "")
        self.clock.sleep(36)  # the time alone
        self.assertEqual(self.overview.snapshot().summaries[0].condition, "late")

    def test_since_when_a_sensor_fails(self):
        self.node()
        for ago_s, value in ((50, 20.0), (40, None), (30, 21.0), (20, None), (10, None), (0, None)):
            self.put(ago_s=ago_s, values={"temperature": value})
            self.overview.on_commit(self.committed)
        self.assertEqual(self.card().since_ms, self.clock.wall_ms() - 20_000)
        self.put(values={"temperature": 22.0})
        self.overview.on_commit(self.committed)
        self.assertIsNone(self.card().since_ms)
        self.clock.sleep(10)
        self.put(values={"temperature": None})
        self.overview.on_commit(self.committed)
        self.assertEqual(self.card().since_ms, self.clock.wall_ms())

    def test_since_when_it_fails_is_known_after_a_restart(self):
        self.node(offset_ms=1000)
        for ago_s, value in ((50, 20.0), (40, None), (0, None)):
            self.put(ago_s=ago_s, values={"temperature": value})
        self.builder_with()
        self.assertEqual(self.card().since_ms, self.clock.wall_ms() - 41_000)

    def test_since_within_a_batch(self):
        tracker = FailureTracker(self.store)
        self.node()
        now_ms = self.clock.wall_ms()
        samples = [
            Sample(seq, now_ms + seq, seq, {"temperature": value}, {}, "")
            for seq, value in enumerate((1.0, None, 2.0, None, None), 1)
        ]
        commit = EpochCommit("basement", OUTBOX, EPOCH, NOTHING)
        commit.add(Batch("basement", OUTBOX, EPOCH, 0, SampleBatch.of(samples), None, {}, print, print), 0)
        tracker.on_commit([commit])
        self.assertEqual(tracker.since_ms("basement", "temperature"), now_ms + 4)

    def test_one_that_fails_for_long_is_looked_up_by_the_hour(self):
        hours = [Bucket(700, 5, 1.0, 1.0, 1.0)]
        points = [SimpleNamespace(values={"t": None}, time_ms=HOUR * 1000 + place) for place in range(500)]
        store = SimpleNamespace(points=lambda *asked: points, downsample=lambda *asked: hours)
        self.assertEqual(FailureTracker(store).since_ms("basement", "t"), (1000 - 720 + 701) * HOUR)
        hours.clear()
        self.assertEqual(FailureTracker(store).since_ms("basement", "t"), HOUR * 1000)


class Nodes(OverviewCase):
    def test_what_waits_in_its_outbox_is_what_was_not_acknowledged(self):
        state = self.node(details={"held": 500, "slots": 65536, "waiting": 120})
        self.put()
        self.assertEqual(self.view().waiting, 0)  # the oldest is sent first, so all before this one has come
        self.clock.sleep(3600)
        self.assertEqual(self.view().waiting, 120)
        for told in ("many", -1, None, True):
            state.details = {"held": 500, "waiting": told}
            self.assertIsNone(self.view().waiting, told)
        state.connected = False
        self.assertIsNone(self.view().waiting)

    def test_a_retired_node_is_watched_no_more(self):
        self.node("attic", connected=False)
        self.node("basement")
        self.put("basement")
        self.put("attic", ago_s=-60)
        self.ingestor.names._records = NodeRecords(retired={"attic": self.clock.wall_ms()})
        self.assert_says("good", "Node basement is reporting")
        self.assertEqual((self.view("attic").state, self.view("attic").words), ("retired", "retired on 20 Nov 2026"))
        self.assertEqual(self.snapshot().last_ms, self.clock.wall_ms())

    def test_its_age_is_by_our_clock(self):
        self.node(offset_ms=90_000)
        self.put(ago_s=-85)  # its clock is 90 s ahead: the sample is 5 s old
        self.assertEqual((self.view().age_s, self.view().shift_ms), (5.0, 90_000))
        self.assert_says("good", "Node basement is reporting")

    def test_a_sample_of_the_future_is_now(self):
        self.node()
        self.put(ago_s=-3)
        self.assertEqual(self.view().age_s, 0.0)

    def test_what_it_tells_of_itself(self):
        self.node(details={"held": 250, "slots": 65536, "version": "0.1.0"}, last_sent="16:36:10", round_trip_ms=1.5)
        view = self.view()
        self.assertEqual((view.held, view.slots, view.version), (250, 65536, "0.1.0"))
        self.assertEqual((view.last_sent, view.round_trip_ms), ("16:36:10", 1.5))

    def test_of_its_computer_a_node_tells_numbers(self):
        for told, shown in (
            ({"cpu_temperature": 48.3, "load": 0.5}, {"cpu_temperature": 48.3, "load": 0.5}),
            ({"load": "<b>", "memory_free": None, "disk_free": 1e300, "cpu_temperature": [1], "more": 1}, {}),
            ([], {}), ("x", {}), (None, {}),
        ):  # fmt: skip
            self.links.clear()
            self.node(details={"machine": told})
            self.overview.invalidate()
            self.assertEqual(self.overview.snapshot().nodes[0].machine, shown)

    def test_what_a_stranger_tells_is_taken_for_a_number_only_where_it_is_one(self):
        for told in ("many", True, -1, 1.5, None, [], {"n": 1}):
            self.links.clear()
            self.node(details={"held": told, "slots": told, "version": "v" * 5000})
            view = self.view()
            self.assertEqual((view.held, view.slots, len(view.version)), (None, None, 20), told)

    def test_what_is_missing_is_counted(self):
        self.node()
        self.put()
        self.file("basement", Batch("basement", OUTBOX, EPOCH, 0, None, Gap(2, 8, 3, "x"), {}, print, print))
        self.assertEqual((self.view().samples, self.view().missing), (1, 10))

    def test_after_a_restart_the_last_sample_is_the_stored_one(self):
        self.put(ago_s=20, values={"temperature": 18.5}, heard=False)
        self.put(ago_s=10, values={"temperature": 19.5}, heard=False)
        self.node(ago_s=1)
        self.assertEqual((self.card().value, self.view().age_s), (19.5, 10.0))
        self.put(values={"temperature": 20.5})
        self.assertEqual((self.card().value, self.view().age_s), (20.5, 0.0))

    def test_two_that_have_the_name_of_nobody_yet(self):
        self.node("", connected=False, ago_s=None)
        self.node("", connected=False, ago_s=None)
        self.assertEqual([node.address for node in self.snapshot().nodes], ["192.168.1.20:5003", "192.168.1.21:5003"])


class Cards(OverviewCase):
    def test_a_card_has_what_the_sensor_says(self):
        self.node(sensors=("temperature", "light"))
        self.put(values={"temperature": 21.5, "light": 700})
        card = self.card()
        self.assertEqual((card.node, card.name, card.unit, card.value), ("basement", "temperature", "°C", 21.5))
        self.assertEqual((card.fault, card.is_late, card.simulated, card.number), ("", False, False, 0))
        self.assertEqual(self.card("light").number, 1)

    def test_a_sensor_that_failed_says_why(self):
        self.node(sensors=("temperature", "light", "humidity"))
        self.assertEqual(self.card().fault, "no sample yet")
        self.put(
            values={"temperature": None, "light": None}, errors={"temperature": "no chip answers on /dev/spidev0.0"}
        )
        self.assertEqual(self.card().fault, "no chip answers on /dev/spidev0.0")
        self.assertEqual(self.card("light").fault, "no reading")
        self.assertEqual(self.card("humidity").fault, "not in the last sample")
        self.assertIsNone(self.card().value)

    def test_a_strangers_long_story_is_cut(self):
        self.node()
        self.put(values={"temperature": None}, errors={"temperature": "x" * 5000})
        self.assertEqual(len(self.card().fault), 200)

    def test_simulated_is_said_only_when_it_is_true(self):
        for told, shown in ((True, True), (False, False), ("yes", False), (1, False)):
            self.links.clear()
            self.node(sensors=())
            self.links[0].state.sensors = [{"name": "temperature", "unit": "°C", "simulated": told}]
            self.assertIs(self.card().simulated, shown)

    def test_the_order_is_the_nodes_own(self):
        self.node(sensors=("zinc", "argon"))
        self.put(values={"argon": 1, "zinc": 2})
        self.assertEqual([card.name for card in self.view().sensors], ["zinc", "argon"])

    def test_a_sensor_that_was_taken_away_stays_as_long_as_the_day_shows_it(self):
        self.node()
        self.put(ago_s=60, values={"temperature": 20.0, "light": 700}, units={"temperature": "°C", "light": "counts"})
        self.put(values={"temperature": 20.0})
        self.assertEqual([card.name for card in self.view().sensors], ["temperature", "light"])
        self.assertEqual((self.card("light").unit, self.card("light").fault), ("counts", "not in the last sample"))
        self.clock.sleep(2 * 86_400)
        self.put(values={"temperature": 20.0})
        self.assertEqual([card.name for card in self.view().sensors], ["temperature"])

    def test_of_a_lost_node_all_is_shown_that_was_known(self):
        self.put(ago_s=5 * 86_400, values={"temperature": 20.0}, heard=False)
        self.node(connected=False)
        self.assertEqual((self.card().value, self.card().is_late), (20.0, True))
        self.assertEqual((self.card().low, self.card().high, self.card().trend), (None, None, None))

    def test_low_and_high_are_todays(self):
        self.node()
        self.put(ago_s=16 * 3600, values={"temperature": -30.0})  # yesterday, 23:36
        self.put(ago_s=15 * 3600, values={"temperature": 5.5})
        self.put(ago_s=3600, values={"temperature": 25.5})
        self.put()
        self.assertEqual((self.card().low, self.card().high), (5.5, 25.5))

    def test_a_value_ahead_of_our_clock_is_among_lowest_and_highest(self):
        self.node(offset_ms=700_000)
        self.put(ago_s=600, values={"temperature": 20.0})
        self.put(ago_s=-690, values={"temperature": 25.5})
        card = self.card()
        self.assertEqual((card.low, card.high, card.high_ms), (20.0, 25.5, self.clock.wall_ms() + 690_000))
        self.assertEqual(card.taken_ms, self.clock.wall_ms() - 10_000)

    def test_the_trend(self):
        self.node(every_s=60.0)
        series = {
            "rising": ([10, 12, 14, 16, 18], 1),
            "falling": ([18, 16, 14, 12, 10], -1),
            "steady": ([10, 18, 10, 18, 10, 18.0, 14, 14, 14, 14], 0),
            "level": ([14, 14, 14, 14], 0),
            "lonely": ([14], None),
        }
        for name, (values, _) in series.items():
            for k, value in enumerate(values):
                self.put(ago_s=(len(values) - 1 - k) * 50, values={name: value}, units={name: ""})
        for name, (_, trend) in series.items():
            self.links[0].state.sensors = [{"name": name, "unit": ""}]
            self.assertEqual(self.card(name).trend, trend, name)


class Zones(OverviewCase):
    """Today begins at midnight on the wall, on days of 23 hours and of 25 too."""

    def day_of(self, zone, now_ms):
        set_zone(self, zone)
        self.clock.step((now_ms - self.clock.wall_ms()) / 1000)
        self.node(ago_s=None)

    def test_the_day_that_loses_an_hour(self):
        self.day_of("Europe/Berlin", 1_774_778_400_000)  # 2026-03-29T10:00Z: 12:00 CEST, midnight was 23:00Z
        self.put(ago_s=11.5 * 3600, values={"temperature": -5.0})  # 28 March, 23:30 CET
        self.put(ago_s=10.5 * 3600, values={"temperature": 5.0})  # 29 March, 00:30 CET
        self.put(values={"temperature": 10.0})
        self.assertEqual((self.card().low, self.card().high), (5.0, 10.0))

    def test_the_day_that_gains_an_hour(self):
        self.day_of("Europe/Berlin", 1_792_926_000_000)  # 2026-10-25T11:00Z: 12:00 CET, midnight was 22:00Z
        self.put(ago_s=13.5 * 3600, values={"temperature": -5.0})  # 24 October, 23:30 CEST
        self.put(ago_s=12.5 * 3600, values={"temperature": 5.0})  # 25 October, 00:30 CEST
        self.put(values={"temperature": 10.0})
        self.assertEqual((self.card().low, self.card().high), (5.0, 10.0))

    def test_a_day_whose_midnight_was_left_out(self):
        self.day_of("Asia/Beirut", 1_774_771_200_000)  # 2026-03-29T08:00Z: 00:00 EET was 01:00 EEST, at 22:00Z
        self.put(ago_s=10.5 * 3600, values={"temperature": -5.0})
        self.put(ago_s=9.5 * 3600, values={"temperature": 5.0})
        self.put(values={"temperature": 10.0})
        self.assertEqual((self.card().low, self.card().high), (5.0, 10.0))

    def test_a_zone_with_three_quarters_of_an_hour(self):
        self.day_of("Asia/Kathmandu", 1_795_188_000_000)  # 2026-11-20T15:20Z: 21:05, midnight was 18:15Z
        self.put(ago_s=21.5 * 3600, values={"temperature": -5.0})
        self.put(ago_s=20.5 * 3600, values={"temperature": 5.0})
        self.put(values={"temperature": 10.0})
        self.assertEqual((self.card().low, self.card().high), (5.0, 10.0))

    def test_the_times_in_sentences_are_local(self):
        self.day_of("Asia/Kathmandu", 1_795_188_000_000)
        self.links.clear()
        self.node(connected=False, fault="closed", ago_s=0)
        self.assert_says("bad", "Node basement is not connected (closed) since 21:05")


class Freshness(OverviewCase):
    def test_who_asks_at_once_gets_the_same_picture(self):
        self.node()
        first = self.overview.snapshot()
        self.clock.sleep(FRESH_S / 2)
        self.assertIs(self.overview.snapshot(), first)
        self.clock.sleep(FRESH_S)
        self.assertIsNot(self.overview.snapshot(), first)

    def test_after_something_was_stored_it_is_another(self):
        first = self.overview.snapshot()
        changes = self.overview.changes
        self.overview.on_commit([])
        self.assertIsNot(self.overview.snapshot(), first)
        self.assertGreater(self.overview.changes, changes)

    def test_a_change_while_it_is_taken_is_not_overlooked(self):
        state = self.node(on=True)

        def switch_off():
            SqliteStore.nodes(self.store)
            state.on = False
            self.overview.invalidate()
            return []

        self.store.nodes = switch_off
        self.overview.snapshot()
        self.assertIs(self.overview.snapshot().node("basement").on, False)

    def test_a_crowd_costs_one(self):
        self.node()
        pictures = []
        crowd = [threading.Thread(target=lambda: pictures.append(self.overview.snapshot())) for _ in range(20)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join(LIMIT_S)
        self.assertEqual((len({id(snapshot) for snapshot in pictures}), self.store.looks), (1, 1))


if __name__ == "__main__":
    unittest.main()
