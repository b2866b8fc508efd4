"""Calibrations of a server: their file, live values, corrections, renamed nodes."""

import json
import os
import unittest

from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.data_folder import CALIBRATIONS
from pigeonpost.core.errors import DamagedFile
from pigeonpost.core.faults import Faults
from pigeonpost.server.calibrations import Calibrations, parse_from, require_sensor
from pigeonpost.server.node_admin import NodeAdmin, Refused
from pigeonpost.server.quality import QualityChecks
from pigeonpost.storage.calibration import BEGINNING_MS, Calibration
from pigeonpost.storage.csv.verify import verify_logs
from tests.page_support import set_zone, use_memory_disk
from tests.server.test_ingest import IngestCase
from tests.storage.test_contract import batch

NOW_MS = 1_795_000_100_000
TWO = [(0, 1), (20.5, 41.5)]  # 20.5, which each sample of `batch` contains, becomes 41.5
SECOND_MS = 1_795_000_000_000  # `batch` contains sample 1 at SECOND_MS + 1000, and so on


def setUpModule():
    use_memory_disk()


class CalibrationCase(IngestCase):
    def setUp(self):
        super().setUp()
        self.open_calibrations()

    def open_calibrations(self):
        self.calibrations = Calibrations(self.folder, self.ingestor.names.current)
        self.shown = self.calibrations.install(self.store, self.ingestor)
        self.calibrations.run_between_commits = lambda job: job()  # the writer thread does not run in these tests

    def bring(self, *made):
        self.submit(*made)
        self.ingestor.commit()

    def add(self, points, from_ms=BEGINNING_MS, sensor="temperature", node="a", **more):
        new = Calibration(from_ms, points, more.pop("unit", ""), more.pop("note", ""))
        return self.calibrations.add(node, sensor, new, NOW_MS, **more)

    def values(self, node="a", sensor="temperature"):
        return [point.values[sensor] for point in self.shown.points(node, 0, 1 << 60, -1)]


class LiveTest(CalibrationCase):
    def test_subscribers_and_the_latest_sample_have_calibrated_values(self):
        seen = []
        self.ingestor.subscribe(seen.append)
        self.add(TWO, unit="K")
        self.bring(batch(1, 2))
        (commit,) = seen[0]
        self.assertEqual(commit.items[0].values, {"temperature": [41.5, 41.5], "light": [1, 2]})
        self.assertEqual((commit.units["temperature"], commit.count, commit.mark.seq), ("K", 2, 2))
        latest = self.ingestor.latest["a"]
        self.assertEqual((latest.sample.values["temperature"], latest.units["temperature"]), (41.5, "K"))

    def test_store_and_log_contain_raw_values(self):
        self.add(TWO)
        self.bring(batch(1, 3))
        stored = [point.values["temperature"] for point in self.store.points("a", 0, 1 << 60, -1)]
        self.assertEqual(stored, [20.5] * 3)
        self.assertEqual([one.sample.values["temperature"] for one in self.log.last()], [20.5] * 3)
        with open(self.log.whole()[0], encoding="utf-8") as file:
            self.assertEqual(file.read().count(",a,temperature,20.5,"), 3)
        self.assertEqual(list(verify_logs(os.path.join(self.folder, "logs"), self.store)), [])

    def test_commit_of_another_node_is_passed_on_unchanged(self):
        self.add(TWO, node="b")
        seen = []
        self.ingestor.subscribe(seen.append)
        self.bring(batch(1, 1))
        self.assertEqual(seen[0][0].items[0].values["temperature"], [20.5])

    def test_latest_sample_is_converted_again_after_a_change(self):
        self.bring(batch(1, 2))
        changed = []
        self.calibrations.on_change.append(changed.append)
        self.add(TWO, unit="K")
        self.assertEqual(self.ingestor.latest["a"].sample.values, {"temperature": 41.5, "light": 2})
        self.assertEqual(self.ingestor.latest["a"].units["temperature"], "K")
        self.calibrations.clear("a", "temperature")
        self.assertEqual(self.ingestor.latest["a"].sample.values, {"temperature": 20.5, "light": 2})
        self.assertEqual(self.ingestor.latest["a"].units["temperature"], "°C")
        self.assertEqual(changed, ["a", "a"])


class DerivationTest(CalibrationCase):
    def test_correction_and_removal_derive_all_values_again(self):
        self.bring(batch(1, 4))
        steps = [
            (lambda: self.add(TWO), [41.5] * 4),
            (lambda: self.add([(20.5, 20)], SECOND_MS + 3000), [41.5, 41.5, 20, 20]),
            (lambda: self.add([(20.5, 30)], SECOND_MS + 3000), [41.5, 41.5, 30, 30]),
            (lambda: self.add([(0, 100), (100, 0)], SECOND_MS + 2000), [41.5, 79.5, 30, 30]),
            (lambda: self.calibrations.remove("a", "temperature", SECOND_MS + 3000), [41.5, 79.5, 79.5, 79.5]),
            (lambda: self.calibrations.remove("a", "temperature", BEGINNING_MS), [20.5, 79.5, 79.5, 79.5]),
            (lambda: self.calibrations.clear("a", "temperature"), [20.5] * 4),
        ]
        for change, wanted in steps:
            change()
            self.assertEqual(self.values(), wanted)
            self.open_calibrations()  # as after a restart
            self.assertEqual(self.values(), wanted)

    def test_late_sample_gets_the_calibration_of_its_own_time(self):
        self.add([(20.5, 10)], SECOND_MS + 5000)
        self.add([(20.5, 30)], SECOND_MS + 9000)
        self.bring(batch(1, 1, time_ms=SECOND_MS + 9000), batch(2, 2, time_ms=SECOND_MS + 6000))
        self.bring(batch(3, 3, time_ms=SECOND_MS))
        self.assertEqual(self.values(), [20.5, 10, 30])

    def test_replaced_calibration_is_returned(self):
        self.assertIsNone(self.add(TWO, note="ice"))
        self.assertEqual(self.add([(0, 1)]).note, "ice")

    def test_calibration_without_date_does_not_replace_another_one(self):
        self.add(TWO, is_dated=False)
        with self.assertRaisesRegex(Refused, "temperature of a is calibrated already, from: beginning. Add --from now"):
            self.add(TWO, is_dated=False)


class BadInputTest(CalibrationCase):
    def test_impossible_calibration_is_refused_with_the_reason(self):
        for words, points, more in (
            ("temperature of a: the raw value 1 has two true values", [(1, 2), (1, 3)], {}),
            ("same true value", [(1, 2), (2, 2)], {}),
            ("nan is not a number", [(float("nan"), 2)], {}),
            ("1 to 64 points", [], {}),
            ("not a valid unit", TWO, {"unit": "x" * 33}),
            ("not a valid unit", TWO, {"unit": "\n"}),
            ("a note must be one line", TWO, {"note": "x" * 201}),
            ("a note must be one line", TWO, {"note": "a\nb"}),
            ("is in the future", TWO, {"from_ms": NOW_MS + 100_000_000}),
        ):
            with self.subTest(words), self.assertRaisesRegex(Refused, words):
                self.add(points, **more)
        self.assertFalse(self.calibrations)

    def test_unknown_calibration_is_not_removed(self):
        with self.assertRaisesRegex(Refused, "temperature of a has no calibration$"):
            self.calibrations.clear("a", "temperature")
        self.add(TWO)
        set_zone(self, "Europe/Vienna")
        words = "no calibration from 2026-11-18T13:26:40.01:00; its calibrations are from: beginning"
        with self.assertRaisesRegex(Refused, words):
            self.calibrations.remove("a", "temperature", 1_795_004_800_000)

    def test_unknown_node_or_sensor_is_named_with_the_nearest_one(self):
        self.bring(batch(1, 1, node="basement"))
        for node, sensor, words in (
            ("basment", "light", "nothing is stored for a node basment; did you mean basement?"),
            ("xyz", "light", "nothing is stored for a node xyz; the stored nodes are: basement"),
            ("basement", "temprature", "node basement has never had a sensor temprature; did you mean temperature?"),
            ("basement", "zzz", "has never had a sensor zzz; its sensors are: light, temperature"),
            ("Basement", "light", "did you mean basement?"),
            ("basement", "", "has never had a sensor (empty name); its sensors are: light, temperature"),
        ):
            with self.subTest(node=node, sensor=sensor), self.assertRaises(Refused) as caught:
                require_sensor(self.store, lambda name: name, node, sensor)
            self.assertIn(words, str(caught.exception))
            self.assertTrue(caught.exception.is_unknown)
        self.assertEqual(require_sensor(self.store, lambda name: "basement", "cellar", "light"), "basement")

    def test_start_that_is_not_a_time_is_rejected(self):
        for text in ("yesterday", "", "2026-13-01T00:00:00Z", "2026-11-20", "2026-11-20T15:36:10"):
            with self.subTest(text), self.assertRaises(ValueError):
                parse_from(text)


class FileTest(CalibrationCase):
    def path(self):
        return os.path.join(self.folder, CALIBRATIONS)

    def test_file_lists_points_date_and_note(self):
        self.add(TWO, SECOND_MS, unit="K", note="ice, and boiling water")
        with open(self.path(), encoding="utf-8") as file:
            self.assertEqual(json.load(file), {"a": {"temperature": [{
                "from": "2026-11-18T11:06:40Z", "points": [[0.0, 1.0], [20.5, 41.5]], "unit": "K",
                "note": "ice, and boiling water", "entered": "2026-11-18T11:08:20.000Z",
            }]}})  # fmt: skip
        self.assertEqual(os.stat(self.path()).st_mode & 0o077, 0)

    def test_damaged_file_is_replaced_by_its_copy(self):
        self.add(TWO)
        for content in ("", "{", "[]", '{"a": {"temperature": [{"from": "x"}]}}', '{"a": 1}'):
            with open(self.path(), "w", encoding="utf-8") as file:
                file.write(content)
            with self.assertLogs("pigeonpost.core.json_file", "ERROR"):
                self.assertEqual(len(Calibrations(self.folder).of("a")), 1)

    def test_server_starts_with_a_fault_if_file_and_copy_are_damaged(self):
        for name in (self.path(), f"{self.path()}.bak"):
            with open(name, "w", encoding="utf-8") as file:
                file.write("damaged")
        faults = Faults()
        with self.assertLogs(level="ERROR"):
            self.assertFalse(Calibrations(self.folder, faults=faults))
            self.assertIn(CALIBRATIONS, faults.present())
        with self.assertRaisesRegex(DamagedFile, "calibrations.json is damaged"):
            Calibrations(self.folder)
        with self.assertRaises(DamagedFile):
            Calibrations(self.folder, faults=faults).clear("a", "temperature")


class RenameTest(CalibrationCase):
    def rename(self, node, new):
        self.ingestor.start()
        self.addCleanup(self.ingestor.stop, 10)
        NodeAdmin(self.store, self.ingestor, Tokens(self.folder), self.clock).rename(node, new)

    def test_renamed_node_keeps_its_calibrations(self):
        self.bring(batch(1, 2))
        self.add(TWO)
        self.rename("a", "b")
        self.assertEqual(self.values("b"), [41.5, 41.5])
        self.assertEqual(list(Calibrations(self.folder).nodes()), ["b"])

    def test_calibrations_are_found_by_a_former_name_that_is_still_in_the_file(self):
        self.add(TWO)
        found = Calibrations(self.folder, lambda name: "b" if name == "a" else name)
        self.assertEqual((list(found.nodes()), len(found.of("b"))), (["b"], 1))
        self.assertEqual(list(Calibrations(self.folder).nodes()), ["a"])
        Calibrations(self.folder, lambda name: "b" if name == "a" else name, Faults())  # as at the start of a server
        self.assertEqual(list(Calibrations(self.folder).nodes()), ["b"])
        found.add("b", "light", Calibration(BEGINNING_MS, [(0, 1)]), NOW_MS)
        self.assertEqual(list(Calibrations(self.folder).nodes()), ["b"])


class State:
    name, sensors, every_s = "a", (), None

    def __init__(self, **limits):
        self.state = self
        self.sensors = [{"name": "temperature", "limits": limits}]


class ChecksTest(CalibrationCase):
    def test_limits_of_the_node_are_converted_and_those_of_settings_are_not(self):
        self.add([(0, 100), (100, 0)])
        for limits, rules, wanted in (
            ({"low": 0, "high": 30}, {}, {"low": 70.0, "high": 100.0}),
            ({"rail": [-40, 85]}, {}, {"rail": [15.0, 140.0]}),
            ({"high": 30}, {("a", "temperature"): {"low": 5}}, {"low": 5}),
        ):
            checks = QualityChecks([State(**limits)], rules, self.calibrations.of)
            self.assertEqual(checks.of("a", "temperature", 0).limits, wanted)

    def test_change_of_a_calibration_is_not_a_jump_of_the_value(self):
        checks = QualityChecks([State(jump=1, high=30)], {}, self.calibrations.of)
        self.calibrations.on_change.append(checks.on_calibration)
        self.ingestor.subscribe(checks.on_commit)
        self.bring(batch(1, 2))
        self.add([(20.5, 40)])
        self.bring(batch(3, 4))
        found = checks.of("a", "temperature", 0)
        self.assertEqual(([flag.kind for flag in found.findings], found.limits["high"]), ([], 49.5))


if __name__ == "__main__":
    unittest.main()
