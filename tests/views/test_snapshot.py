"""Status snapshot: summary of the states of all nodes, and the content of the sensor cards."""

import threading
import unittest
from types import SimpleNamespace

from pigeonpost.alerts.rules import read_rules as alert_rules
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.faults import Faults
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.latest_samples import LatestSample
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
        self.reads = 0

    def nodes(self):
        self.reads += 1
        return super().nodes()


class SnapshotCase(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")
        self.clock = FakeClock()  # 2026-11-20 15:36:10 UTC
        self.store = CountingStore(temp_folder(self))
        self.addCleanup(self.store.close)
        self.ingestor = SimpleNamespace(
            latest={}, received_s={}, commit_s=1.0, fault="", names=NodeRegister(self.store)
        )
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
        """Add a node that this server collects from; the state of its link started `ago_s` seconds ago."""
        state = NodeState(f"192.168.1.{20 + len(self.links)}:5003", name)
        state.connected, state.on, state.every_s = connected, on if connected else None, 10.0
        state.fault = "" if connected else "cannot be reached: Connection refused"
        state.since_ms = None if ago_s is None else self.clock.wall_ms() - int(ago_s * 1000)
        state.awaited_s = None if ago_s is None else self.clock.monotonic() - ago_s
        state.sensors = [{"name": sensor, "unit": "°C"} for sensor in sensors] if connected else []
        for key, value in more.items():
            setattr(state, key, value)
        self.links.append(SimpleNamespace(state=state))
        return state

    def put(self, node="basement", ago_s=0.0, values=None, errors=None, units=None, received=True):
        """Store a sample of `node` that is `ago_s` seconds old; if `received`, it was received when it was taken."""
        seq = self.seqs[node] = self.seqs.get(node, 0) + 1
        values = {"temperature": 21.5} if values is None else values
        made = Sample(seq, self.clock.wall_ms() - int(ago_s * 1000), seq, values, errors or {}, "")
        units = {"temperature": "°C"} if units is None else units
        epoch_commit = self.file(node, Batch(node, OUTBOX, EPOCH, 0, SampleBatch.of([made]), None, units, print, print))
        self.committed = [epoch_commit]
        if received:
            received_s = self.ingestor.received_s[node] = self.clock.monotonic() - ago_s
            self.ingestor.latest[node] = LatestSample(made, units, made.time_ms, received_s)
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


class Summaries(SnapshotCase):
    def test_summary_without_nodes_explains_how_to_start_with_one(self):
        self.assert_says("wait", "No node is set up: start the server with --node NAME@HOST:PORT")

    def test_summary_states_that_all_nodes_are_reporting(self):
        self.node("basement")
        self.put("basement")
        self.assert_says("good", "Node basement is reporting")
        self.node("attic")
        self.put("attic")
        self.assert_says("good", "Both nodes are reporting")
        self.node("shed")
        self.put("shed")
        self.assert_says("good", "All 3 nodes are reporting")

    def test_node_is_late_after_three_sampling_intervals(self):
        self.node()
        self.put(ago_s=35)
        self.assert_says("good", "Node basement is reporting")
        self.clock.sleep(1)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 36 s")
        self.clock.sleep(600)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 11 min")
        self.assertEqual(self.view().state, "late")
        self.assertEqual(self.view().words, "connected, but has sent nothing since 15:35")

    def test_node_that_connects_to_the_server_may_be_disconnected(self):
        state = self.node(calls_in=True, every_s=None)
        self.put(ago_s=3600)
        self.assert_says("good", "Node basement is reporting")
        self.assertFalse(self.view().connected)
        state.every_s = 300.0
        self.assert_says("bad", "Node basement has sent nothing for 60 min")
        self.assertRegex(self.view().words, "^has sent nothing since ")

    def test_lateness_depends_on_the_sampling_interval_of_the_node(self):
        self.node(every_s=600.0, ago_s=86_400)
        self.put(ago_s=1800)
        self.assert_says("good", "Node basement is reporting")
        self.clock.sleep(6)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 30 min")

    def test_summary_of_a_lost_node_states_reason_and_start(self):
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

    def test_lost_node_without_a_name_is_identified_by_its_address(self):
        self.node("", connected=False, ago_s=120)
        self.assert_says("bad", "The node at 192.168.1.20:5003 cannot be reached since 15:34: Connection refused")

    def test_summary_counts_and_names_the_nodes_that_do_not_report(self):
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

    def test_summary_names_at_most_three_nodes_that_do_not_report(self):
        for name in "abcde":
            self.node(name, connected=False, fault="closed", ago_s=0)
        self.assert_says(
            "bad",
            "5 of 5 nodes are not reporting: a is not connected (closed) since 15:36; b is not connected (closed)"
            " since 15:36; c is not connected (closed) since 15:36; and 2 more",
        )

    def test_summary_names_the_nodes_that_are_off(self):
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

    def test_summary_names_the_nodes_without_a_first_sample(self):
        state = self.node("basement", connected=False, ago_s=None, fault="not reached yet")
        self.assert_says("wait", "Waiting for the first sample of basement")
        self.assertEqual((self.view().state, self.view().words), ("waiting", "not reached yet"))
        state.connected, state.since_ms, state.on = True, self.clock.wall_ms(), True
        self.assert_says("wait", "Waiting for the first sample of basement")
        self.assertEqual(self.view().words, "connected; waiting for a sample")
        self.node("attic", on=False)
        self.assert_says("wait", "Node attic is switched off; waiting for the first sample of basement")
        self.node("", connected=False, ago_s=None)
        self.assert_says(
            "wait",
            "Node attic is switched off; waiting for the first sample of basement and the node at 192.168.1.22:5003",
        )

    def test_summary_names_three_of_many_nodes_without_a_first_sample(self):
        for name in "abcde":
            self.node(name, ago_s=1)
        self.assert_says("wait", "Waiting for the first sample of a, b, c and 2 more")

    def test_reconnected_node_is_late_only_after_three_intervals(self):
        self.node(ago_s=10)
        self.put(ago_s=5000)
        self.assert_says("wait", "Waiting for the first sample of basement")
        self.clock.sleep(26)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 84 min")

    def test_node_without_any_sample_is_waiting_and_never_late(self):
        self.node(ago_s=10)
        self.clock.sleep(3600)
        self.assert_says("wait", "Waiting for the first sample of basement")

    def test_faults_of_the_server_precede_those_of_nodes(self):
        self.node(connected=False)
        self.ingestor.fault = "nothing can be stored: database or disk is full"
        self.assert_says("bad", "Nothing can be stored: database or disk is full")
        self.csv.fault = "the CSV log cannot be written: No space left on device"
        self.assert_says(
            "bad",
            "Nothing can be stored: database or disk is full; the CSV log cannot be written: No space left on device",
        )
        self.assertEqual(len(self.snapshot().faults), 2)

    def test_node_that_is_no_longer_collected_from_is_not_a_fault(self):
        self.put("cellar", ago_s=9000, received=False)
        self.assert_says("wait", "No node is set up: start the server with --node NAME@HOST:PORT")
        self.node("basement")
        self.put("basement")
        self.assert_says("good", "Node basement is reporting")
        cellar = self.view("cellar")
        self.assertEqual((cellar.state, cellar.words), ("past", "this server no longer collects from it"))
        self.assertEqual((cellar.connected, cellar.on, cellar.samples), (False, None, 1))
        self.assertEqual(self.snapshot().last_ms, self.clock.wall_ms())

    def test_every_summary_starts_with_a_capital_letter_and_has_no_full_stop(self):
        for connected in (True, False):
            for name in ("basement", ""):
                self.links.clear()
                self.node(name, connected=connected, on=False)
                verdict = self.snapshot().summary
                self.assertRegex(verdict, r"^[A-Z].*[^.]$")


class Liveness(SnapshotCase):
    """A node is alive if the server receives samples, with any error of its clock."""

    def send(self, ahead_s=0.0, node="basement", **more):
        """Receive a sample now whose date is `ahead_s` seconds in the future."""
        self.put(node, -ahead_s, **more)
        received_s = self.ingestor.received_s[node] = self.clock.monotonic()
        latest = self.ingestor.latest[node]
        self.ingestor.latest[node] = latest._replace(committed_ms=self.clock.wall_ms(), received_s=received_s)

    def test_dead_node_is_late_with_any_clock(self):
        state = self.node()
        for ahead_s in (3600, -3600, 366 * 86_400, -50 * 366 * 86_400, 5, 0):
            for offset_s in (0, ahead_s, None):
                with self.subTest(ahead_s=ahead_s, offset_s=offset_s):
                    state.offset_ms = None if offset_s is None else offset_s * 1000
                    self.send(ahead_s)
                    self.assert_says("good", "Node basement is reporting")
                    self.clock.sleep(36)
                    self.assert_says("bad", "Node basement is connected, but has sent nothing for 36 s")
                    self.clock.sleep(7200)
                    self.assertEqual(self.view().state, "late")
                    self.assertGreaterEqual(self.view().age_s, 7236)
                    self.assertTrue(self.card().is_stale)

    def test_corrected_clock_of_a_live_node_raises_no_alarm(self):
        state = self.node()
        state.offset_ms = 3_600_000  # as measured before the correction
        for ahead_s in (3600, 3600, 0, 0, -3600, 0, 86_400, 0):
            self.send(ahead_s)
            self.clock.sleep(10)
            self.assert_says("good", "Node basement is reporting")

    def test_corrected_clock_of_the_server_raises_no_alarm(self):
        self.node(ago_s=1e6)
        for step_s in (3600, -3600, 366 * 86_400, -366 * 86_400, 40):
            self.send()
            self.clock.step(step_s)
            self.clock.sleep(30)
            self.assert_says("good", "Node basement is reporting")
            self.assertEqual(round(self.view().age_s), 30)
            self.clock.sleep(6)
            self.assert_says("bad", "Node basement is connected, but has sent nothing for 36 s")

    def test_cached_state_follows_the_clock_of_the_server(self):
        self.node()
        self.send()
        self.assertEqual(self.overview.snapshot().last_ms, self.clock.wall_ms())
        self.clock.step(86_400)
        self.clock.sleep(2)
        self.assertEqual(self.overview.snapshot().last_ms, self.clock.wall_ms() - 2000)

    def test_node_that_sends_a_backlog_is_alive_but_its_values_are_stale(self):
        self.node(offset_ms=0)
        for ago_s, is_stale in ((7200, True), (3600, True), (301, True), (200, False), (0, False)):
            self.send(-ago_s)
            self.assert_says("good", "Node basement is reporting")
            self.assertEqual((self.card().is_stale, round(self.view().age_s)), (is_stale, ago_s))
            self.clock.sleep(1)

    def test_node_has_its_usual_time_after_a_restart_of_the_server(self):
        self.node(ago_s=0)
        self.put(ago_s=20, received=False)
        self.assert_says("good", "Node basement is reporting")
        self.clock.sleep(20)
        self.assert_says("wait", "Waiting for the first sample of basement")
        self.assertTrue(self.card().is_stale)
        self.clock.sleep(16)
        self.assert_says("bad", "Node basement is connected, but has sent nothing since the server's start")
        self.assertEqual(self.view().words, "connected, but has sent nothing since the server's start")
        self.send()
        self.assert_says("good", "Node basement is reporting")

    def test_client_that_does_not_return_after_a_restart_is_late(self):
        for every_s, wait_s in ((300.0, 905), (None, 10_805), (86_400.0, 259_205)):
            with self.subTest(every_s=every_s):
                self.links.clear()
                state = self.node(connected=False, ago_s=None, calls_in=True, every_s=every_s)
                state.fault = "has not connected since the server's start"
                self.overview = SnapshotBuilder(self.house, self.book.day)
                self.put(ago_s=10, received=False)
                self.assert_says("good", "Node basement is reporting")
                self.clock.sleep(wait_s - 5)
                self.assert_says("wait", "Waiting for the first sample of basement")
                self.assertEqual(self.view().words, "has not connected since the server's start")
                self.clock.sleep(6)
                self.assert_says("bad", "Node basement has sent nothing since the server's start")
                self.assertEqual((self.view().state, self.card().is_stale), ("late", True))
                state.on = False
                self.assert_says("wait", "Node basement is switched off")

    def test_values_that_another_server_stores_are_current_by_their_dates(self):
        for later_s in (0, 10_000, 86_400):
            self.clock.sleep(later_s)
            self.put("cellar", ago_s=20, received=False)
            self.assertEqual((self.view("cellar").state, self.card(node="cellar").is_stale), ("past", False))
            self.clock.sleep(170)
            self.assertTrue(self.card(node="cellar").is_stale)

    def test_stored_sample_with_a_date_in_the_future_is_no_sign_of_life(self):
        self.node(ago_s=0)
        for ahead_s in (40, 86_400, 366 * 86_400):
            self.put(ago_s=-ahead_s, received=False)
        self.put(ago_s=50, values={"temperature": 3.0}, received=False)
        self.assertEqual(self.card().value, 21.5)  # 40 s ahead is an ordinary error
        self.clock.sleep(36)
        self.assertEqual((self.view().state, self.card().is_stale, self.view().age_s), ("late", True, 36.0))

    def test_sample_of_an_earlier_run_with_a_date_in_the_future_is_not_current(self):
        for ahead_s in (61, 3600, 3601, 86_400, 366 * 86_400):
            for link in ({"ago_s": 0}, {"ago_s": 0, "connected": False}, {"ago_s": None, "calls_in": True}, None):
                with self.subTest(ahead_s=ahead_s, link=link):
                    self.store = CountingStore(temp_folder(self))
                    self.addCleanup(self.store.close)
                    self.house = self.house._replace(store=self.store)
                    self.links.clear()
                    self.seqs.clear()
                    self.overview = SnapshotBuilder(self.house, self.book.day)
                    if link is not None:
                        self.node(**link)
                    self.put(ago_s=-ahead_s, received=False)
                    self.assertNotEqual(self.view().state, "reporting")
                    self.assertTrue(self.card().is_stale)
                    self.put(ago_s=3600, values={"temperature": 3.0}, received=False)
                    self.assertEqual(self.card().value, 3.0)

    def test_stored_sample_that_is_far_in_the_future_is_not_the_newest(self):
        self.put(ago_s=-366 * 86_400, received=False)
        self.node()
        self.assertEqual(self.card().value, 21.5)
        for value in (3.0, 4.0):
            self.clock.sleep(10)
            self.put(ago_s=5, values={"temperature": value}, received=False)
            self.overview.on_commit(())
            snapshot = self.overview.snapshot()
            self.assertEqual(snapshot.node("basement").sensors[0].value, value)

    def test_node_has_its_usual_time_after_it_was_switched_on(self):
        state = self.node(on=False, ago_s=1e6)
        self.send()
        self.clock.sleep(20_000)
        self.assert_says("wait", "Node basement is switched off")
        state.record_sampling(True, self.clock.monotonic())
        self.assert_says("wait", "Waiting for the first sample of basement")
        self.clock.sleep(20)
        state.record_sampling(True, self.clock.monotonic())
        self.clock.sleep(16)
        self.assert_says("bad", "Node basement is connected, but has sent nothing for 6 h")

    def test_interval_between_commits_is_waited_for(self):
        self.ingestor.commit_s = 60.0
        self.node()
        self.send()
        self.clock.sleep(89)
        self.assert_says("good", "Node basement is reporting")
        self.clock.sleep(2)
        self.assertEqual(self.view().state, "late")

    def send_two_messages(self):
        """Send a temperature, and 10,000 s later a light level in another message of the same client."""
        self.send(values={"temperature": 20.0})
        older = self.ingestor.latest["basement"]
        self.clock.sleep(10_000)
        self.send(values={"light": 7})
        latest = self.ingestor.latest["basement"]
        values = {**latest.sample.values, **older.sample.values}
        both = latest._replace(sample=latest.sample._replace(values=values), older={"temperature": older})
        self.ingestor.latest["basement"] = both

    def test_value_that_its_client_no_longer_repeats_becomes_stale(self):
        state = self.node(calls_in=True, every_s=60.0, sensors=("temperature", "light"))
        self.send_two_messages()
        self.assertEqual(self.view().troubles, [])
        card = self.card()
        self.assertEqual((card.value, card.is_stale, card.now_ms - card.taken_ms), (20.0, False, 10_000_000))
        self.clock.sleep(900)
        self.ingestor.received_s["basement"] = self.clock.monotonic()
        self.assertEqual((self.card().is_stale, self.card("light").is_stale), (True, False))
        self.assertTrue(state.connected)

    def test_sensor_that_a_client_has_not_sent_since_the_start_of_the_server_is_no_fault(self):
        self.node(calls_in=True, every_s=60.0, sensors=("temperature", "light"))
        self.put(values={"light": 700})
        self.assertEqual((self.view().troubles, self.card().fault, self.card().value), ([], "", None))

    def test_value_that_its_client_no_longer_repeats_becomes_stale_without_a_new_sample(self):
        self.node(calls_in=True, every_s=3600.0, sensors=("temperature", "light"))
        self.send_two_messages()
        self.assertEqual((self.card().is_stale, self.card("light").is_stale), (False, False))
        self.clock.sleep(900)
        self.overview.invalidate = lambda: None
        self.assertEqual((self.card().is_stale, self.card("light").is_stale), (True, False))


class SensorFaults(SnapshotCase):
    """A sensor that fails or is out of range: the headline is amber and names the sensor."""

    def limit(self, **limits):
        quality = QualityChecks(self.links, {("basement", "temperature"): limits})
        self.builder_with(quality=quality)
        return quality

    def builder_with(self, **parts):
        self.house = self.house._replace(**parts)
        self.overview = SnapshotBuilder(self.house, self.book.day)

    def test_summary_names_a_failed_sensor(self):
        self.node(sensors=("temperature", "inner_light"))
        self.put(
            values={"temperature": 20, "inner_light": None}, errors={"inner_light": "no permission to open /dev/x"}
        )
        self.assert_says("wait", "Sensor inner light of basement: no permission to open /dev/x")
        self.put(values={"temperature": 20, "inner_light": 3})
        self.assert_says("good", "Node basement is reporting")

    def test_summary_counts_failed_sensors_and_names_the_first(self):
        for name in ("attic", "basement"):
            self.node(name)
            self.put(name, values={"temperature": None})
        self.assert_says("wait", "2 sensors are failing or out of range; the first is temperature of attic: no reading")

    def test_lost_node_has_priority_over_a_failed_sensor(self):
        self.node("attic")
        self.put("attic", values={"temperature": None})
        self.node("basement", connected=False, ago_s=0)
        self.assertEqual(self.snapshot().level, "bad")

    def test_failed_sensor_of_a_node_that_is_off_is_not_a_fault(self):
        self.node(on=False)
        self.put(values={"temperature": None})
        self.assert_says("wait", "Node basement is switched off")

    def test_removed_sensor_is_not_a_fault(self):
        self.node()
        self.put(ago_s=60, values={"temperature": 20.0, "light": 700}, units={"temperature": "°C", "light": "counts"})
        self.put(values={"temperature": 20.0, "light": None})
        self.assert_says("good", "Node basement is reporting")

    def test_summary_names_a_sensor_that_is_out_of_range(self):
        self.node()
        quality = self.limit(high=30)
        for value, level, words in ((31, "wait", "above 30 °C"), (29, "good", "")):
            self.put(values={"temperature": value})
            quality.on_commit(self.committed)
            text = f"Sensor temperature of basement: {words}" if words else "Node basement is reporting"
            self.assert_says(level, text)

    def test_value_becomes_stale_without_a_new_sample(self):
        self.node(every_s=10.0)
        quality = self.limit(high=30, every=1)
        self.put()
        quality.on_commit(self.committed)
        self.assert_says("good", "Node basement is reporting")
        self.clock.sleep(9)  # only the time has changed
        self.assertEqual(self.overview.snapshot().summary, "Sensor temperature of basement: no value for 9 s")

    def test_summary_names_a_sensor_beyond_the_threshold_of_an_alert(self):
        table = {"sensor": "temperature", "above": 20, "below": -5}
        self.builder_with(rules=alert_rules([table], "server.toml"))
        self.node()
        for value, words in ((21, "above 20 °C"), (-6, "below -5 °C")):
            self.put(values={"temperature": value})
            self.assert_says("wait", f"Sensor temperature of basement: {words.replace('-', '−')}")
        self.put(values={"temperature": 20})
        self.assert_says("good", "Node basement is reporting")

    def test_alert_for_the_former_name_of_a_node_applies(self):
        self.node("cellar")
        self.put("cellar", values={"temperature": 21})
        with self.store.writing(()):
            self.store.rename("cellar", "basement", self.clock.wall_ms())
        self.ingestor.names.refresh()
        self.links[0].state.name = "basement"
        for by_node in (self.ingestor.latest, self.ingestor.received_s):
            by_node["basement"] = by_node.pop("cellar")
        for node, level in (("cellar", "wait"), ("basement", "wait"), ("attic", "good")):
            self.builder_with(rules=alert_rules([{"node": node, "sensor": "temperature", "above": 20}], "server.toml"))
            self.assertEqual(self.snapshot().level, level, node)

    def test_unchanged_node_is_not_evaluated_again(self):
        state = self.node()
        self.put()
        first = self.snapshot().summaries[0]
        self.overview.on_commit([])
        self.assertIs(self.overview.snapshot().summaries[0], first)
        state.warn("outbox", "the card is full")
        self.overview.on_commit([])
        self.assertEqual(self.overview.snapshot().summary, "basement: the card is full")
        state.warn("outbox", "")
        self.clock.sleep(36)  # only the time has changed
        self.assertEqual(self.overview.snapshot().summaries[0].condition, "late")

    def test_start_of_a_failure_is_its_first_failed_reading(self):
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

    def test_start_of_a_failure_is_found_in_the_store_after_a_restart(self):
        self.node(offset_ms=1000)
        for ago_s, value in ((50, 20.0), (40, None), (0, None)):
            self.put(ago_s=ago_s, values={"temperature": value})
        self.builder_with()
        self.assertEqual(self.card().since_ms, self.clock.wall_ms() - 41_000)

    def test_start_of_a_failure_is_found_within_a_batch(self):
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

    def test_start_of_a_long_failure_is_found_with_a_resolution_of_one_hour(self):
        hours = [Bucket(700, 5, 1.0, 1.0, 1.0)]
        points = [SimpleNamespace(values={"t": None}, time_ms=HOUR * 1000 + place) for place in range(500)]
        store = SimpleNamespace(points=lambda *asked: points, downsample=lambda *asked: hours)
        self.assertEqual(FailureTracker(store).since_ms("basement", "t"), (1000 - 720 + 701) * HOUR)
        hours.clear()
        self.assertEqual(FailureTracker(store).since_ms("basement", "t"), HOUR * 1000)


class Nodes(SnapshotCase):
    def test_waiting_samples_are_those_that_are_not_acknowledged(self):
        state = self.node(details={"held": 500, "slots": 65536, "waiting": 120})
        self.put()
        # A node sends its oldest samples first, so all samples before this one have arrived.
        self.assertEqual(self.view().waiting, 0)
        self.clock.sleep(3600)
        self.assertEqual(self.view().waiting, 120)
        received_ms = self.clock.wall_ms() - 3_600_000
        for checked_ms, waiting in ((received_ms - 1, None), (received_ms - 60_000, None), (received_ms + 5, 120)):
            state.checked_ms = checked_ms  # a STATUS before the last sample counted samples that have arrived since
            self.assertEqual(self.view().waiting, waiting)
        state.on = False
        self.assertEqual(self.view().waiting, 120)
        state.checked_ms -= 10_000
        self.assertIsNone(self.view().waiting)
        state.on, state.checked_ms = True, None
        for told in ("many", -1, None, True):
            state.details = {"held": 500, "waiting": told}
            self.assertIsNone(self.view().waiting, told)
        state.connected = False
        self.assertIsNone(self.view().waiting)

    def test_retired_node_is_not_monitored(self):
        self.node("attic", connected=False)
        self.node("basement")
        self.put("basement")
        self.put("attic", ago_s=-60)
        self.ingestor.names._records = NodeRecords(retired={"attic": self.clock.wall_ms()})
        self.assert_says("good", "Node basement is reporting")
        self.assertEqual((self.view("attic").state, self.view("attic").words), ("retired", "retired on 20 Nov 2026"))
        self.assertEqual(self.snapshot().last_ms, self.clock.wall_ms())

    def test_age_of_a_sample_is_calculated_with_the_server_s_clock(self):
        self.node(offset_ms=90_000)
        self.put(ago_s=-85)  # its clock is 90 s ahead: the sample is 5 s old
        self.assertEqual((self.view().age_s, self.view().shift_ms), (5.0, 90_000))
        self.assert_says("good", "Node basement is reporting")

    def test_age_of_a_sample_from_the_future_is_zero(self):
        self.node()
        self.put(ago_s=-3)
        self.assertEqual(self.view().age_s, 0.0)

    def test_view_contains_the_values_of_the_status_report(self):
        self.node(details={"held": 250, "slots": 65536, "version": "0.1.0"}, last_sent="16:36:10", round_trip_ms=1.5)
        view = self.view()
        self.assertEqual((view.held, view.slots, view.version), (250, 65536, "0.1.0"))
        self.assertEqual((view.last_sent, view.round_trip_ms), ("16:36:10", 1.5))

    def test_only_numbers_are_accepted_as_readings_of_the_computer(self):
        for told, shown in (
            ({"cpu_temperature": 48.3, "load": 0.5}, {"cpu_temperature": 48.3, "load": 0.5}),
            ({"load": "<b>", "memory_free": None, "disk_free": 1e300, "cpu_temperature": [1], "more": 1}, {}),
            ([], {}), ("x", {}), (None, {}),
        ):  # fmt: skip
            self.links.clear()
            self.node(details={"machine": told})
            self.overview.invalidate()
            self.assertEqual(self.overview.snapshot().nodes[0].machine, shown)

    def test_invalid_counts_in_a_status_report_are_ignored(self):
        for told in ("many", True, -1, 1.5, None, [], {"n": 1}):
            self.links.clear()
            self.node(details={"held": told, "slots": told, "version": "v" * 5000})
            view = self.view()
            self.assertEqual((view.held, view.slots, len(view.version)), (None, None, 20), told)

    def test_lost_samples_are_counted(self):
        self.node()
        self.put()
        self.file("basement", Batch("basement", OUTBOX, EPOCH, 0, None, Gap(2, 8, 3, "x"), {}, print, print))
        self.assertEqual((self.view().samples, self.view().missing), (1, 10))

    def test_after_a_restart_the_last_sample_is_the_stored_one(self):
        self.put(ago_s=20, values={"temperature": 18.5}, received=False)
        self.put(ago_s=10, values={"temperature": 19.5}, received=False)
        self.node(ago_s=1)
        self.assertEqual((self.card().value, self.view().age_s), (19.5, 10.0))
        self.put(values={"temperature": 20.5})
        self.assertEqual((self.card().value, self.view().age_s), (20.5, 0.0))

    def test_two_nodes_without_a_name_are_both_listed(self):
        self.node("", connected=False, ago_s=None)
        self.node("", connected=False, ago_s=None)
        self.assertEqual([node.address for node in self.snapshot().nodes], ["192.168.1.20:5003", "192.168.1.21:5003"])


class Cards(SnapshotCase):
    def test_card_contains_name_unit_and_value(self):
        self.node(sensors=("temperature", "light"))
        self.put(values={"temperature": 21.5, "light": 700})
        card = self.card()
        self.assertEqual((card.node, card.name, card.unit, card.value), ("basement", "temperature", "°C", 21.5))
        self.assertEqual((card.fault, card.is_stale, card.simulated, card.number), ("", False, False, 0))
        self.assertEqual(self.card("light").number, 1)

    def test_card_of_a_failed_sensor_contains_the_reason(self):
        self.node(sensors=("temperature", "light", "humidity"))
        self.assertEqual(self.card().fault, "no sample yet")
        self.put(
            values={"temperature": None, "light": None}, errors={"temperature": "no chip answers on /dev/spidev0.0"}
        )
        self.assertEqual(self.card().fault, "no chip answers on /dev/spidev0.0")
        self.assertEqual(self.card("light").fault, "no reading")
        self.assertEqual(self.card("humidity").fault, "not in the last sample")
        self.assertIsNone(self.card().value)

    def test_long_error_text_is_shortened(self):
        self.node()
        self.put(values={"temperature": None}, errors={"temperature": "x" * 5000})
        self.assertEqual(len(self.card().fault), 200)

    def test_sensor_is_simulated_only_if_the_node_reports_true(self):
        for told, shown in ((True, True), (False, False), ("yes", False), (1, False)):
            self.links.clear()
            self.node(sensors=())
            self.links[0].state.sensors = [{"name": "temperature", "unit": "°C", "simulated": told}]
            self.assertIs(self.card().simulated, shown)

    def test_cards_are_in_the_order_of_the_node(self):
        self.node(sensors=("zinc", "argon"))
        self.put(values={"argon": 1, "zinc": 2})
        self.assertEqual([card.name for card in self.view().sensors], ["zinc", "argon"])

    def test_removed_sensor_is_shown_until_its_values_are_a_day_old(self):
        self.node()
        self.put(ago_s=60, values={"temperature": 20.0, "light": 700}, units={"temperature": "°C", "light": "counts"})
        self.put(values={"temperature": 20.0})
        self.assertEqual([card.name for card in self.view().sensors], ["temperature", "light"])
        self.assertEqual((self.card("light").unit, self.card("light").fault), ("counts", "not in the last sample"))
        self.clock.sleep(2 * 86_400)
        self.put(values={"temperature": 20.0})
        self.assertEqual([card.name for card in self.view().sensors], ["temperature"])

    def test_cards_of_a_lost_node_show_its_last_values(self):
        self.put(ago_s=5 * 86_400, values={"temperature": 20.0}, received=False)
        self.node(connected=False)
        self.assertEqual((self.card().value, self.card().is_stale), (20.0, True))
        self.assertEqual((self.card().low, self.card().high, self.card().trend), (None, None, None))

    def test_lowest_and_highest_value_are_those_of_today(self):
        self.node()
        self.put(ago_s=16 * 3600, values={"temperature": -30.0})  # yesterday, 23:36
        self.put(ago_s=15 * 3600, values={"temperature": 5.5})
        self.put(ago_s=3600, values={"temperature": 25.5})
        self.put()
        self.assertEqual((self.card().low, self.card().high), (5.5, 25.5))

    def test_value_ahead_of_the_server_s_clock_counts_for_lowest_and_highest(self):
        self.node(offset_ms=700_000)
        self.put(ago_s=600, values={"temperature": 20.0})
        self.put(ago_s=-690, values={"temperature": 25.5})
        card = self.card()
        self.assertEqual((card.low, card.high, card.high_ms), (20.0, 25.5, self.clock.wall_ms() + 690_000))
        self.assertEqual(card.taken_ms, self.clock.wall_ms() - 10_000)

    def test_trend_is_rising_falling_steady_or_unknown(self):
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


class TimeZones(SnapshotCase):
    """Today starts at midnight local time, also on days of 23 and 25 hours."""

    def day_of(self, zone, now_ms):
        set_zone(self, zone)
        self.clock.step((now_ms - self.clock.wall_ms()) / 1000)
        self.node(ago_s=None)

    def test_today_starts_at_midnight_on_a_day_of_23_hours(self):
        self.day_of("Europe/Berlin", 1_774_778_400_000)  # 2026-03-29T10:00Z: 12:00 CEST, midnight was 23:00Z
        self.put(ago_s=11.5 * 3600, values={"temperature": -5.0})  # 28 March, 23:30 CET
        self.put(ago_s=10.5 * 3600, values={"temperature": 5.0})  # 29 March, 00:30 CET
        self.put(values={"temperature": 10.0})
        self.assertEqual((self.card().low, self.card().high), (5.0, 10.0))

    def test_today_starts_at_midnight_on_a_day_of_25_hours(self):
        self.day_of("Europe/Berlin", 1_792_926_000_000)  # 2026-10-25T11:00Z: 12:00 CET, midnight was 22:00Z
        self.put(ago_s=13.5 * 3600, values={"temperature": -5.0})  # 24 October, 23:30 CEST
        self.put(ago_s=12.5 * 3600, values={"temperature": 5.0})  # 25 October, 00:30 CEST
        self.put(values={"temperature": 10.0})
        self.assertEqual((self.card().low, self.card().high), (5.0, 10.0))

    def test_today_starts_at_01_00_if_midnight_was_skipped(self):
        self.day_of("Asia/Beirut", 1_774_771_200_000)  # 2026-03-29T08:00Z: 00:00 EET was 01:00 EEST, at 22:00Z
        self.put(ago_s=10.5 * 3600, values={"temperature": -5.0})
        self.put(ago_s=9.5 * 3600, values={"temperature": 5.0})
        self.put(values={"temperature": 10.0})
        self.assertEqual((self.card().low, self.card().high), (5.0, 10.0))

    def test_today_starts_at_midnight_in_a_zone_with_a_45_minute_offset(self):
        self.day_of("Asia/Kathmandu", 1_795_188_000_000)  # 2026-11-20T15:20Z: 21:05, midnight was 18:15Z
        self.put(ago_s=21.5 * 3600, values={"temperature": -5.0})
        self.put(ago_s=20.5 * 3600, values={"temperature": 5.0})
        self.put(values={"temperature": 10.0})
        self.assertEqual((self.card().low, self.card().high), (5.0, 10.0))

    def test_times_in_the_summary_are_local(self):
        self.day_of("Asia/Kathmandu", 1_795_188_000_000)
        self.links.clear()
        self.node(connected=False, fault="closed", ago_s=0)
        self.assert_says("bad", "Node basement is not connected (closed) since 21:05")


class Freshness(SnapshotCase):
    def test_snapshot_is_reused_while_it_is_fresh(self):
        self.node()
        first = self.overview.snapshot()
        self.clock.sleep(FRESH_S / 2)
        self.assertIs(self.overview.snapshot(), first)
        self.clock.sleep(FRESH_S)
        self.assertIsNot(self.overview.snapshot(), first)

    def test_snapshot_is_renewed_after_a_commit(self):
        first = self.overview.snapshot()
        changes = self.overview.changes
        self.overview.on_commit([])
        self.assertIsNot(self.overview.snapshot(), first)
        self.assertGreater(self.overview.changes, changes)

    def test_change_during_the_construction_invalidates_the_snapshot(self):
        state = self.node(on=True)

        def switch_off():
            SqliteStore.nodes(self.store)
            state.on = False
            self.overview.invalidate()
            return []

        self.store.nodes = switch_off
        self.overview.snapshot()
        self.assertIs(self.overview.snapshot().node("basement").on, False)

    def test_simultaneous_requests_share_one_snapshot(self):
        self.node()
        pictures = []
        crowd = [threading.Thread(target=lambda: pictures.append(self.overview.snapshot())) for _ in range(20)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join(LIMIT_S)
        self.assertEqual((len({id(snapshot) for snapshot in pictures}), self.store.reads), (1, 1))


if __name__ == "__main__":
    unittest.main()
