"""`control.py calibrate`, `calibrations` and `export --raw`, with and without a running server."""

import json
import os

from pigeonpost.core.data_folder import CALIBRATIONS, RUNNING, SERVER_LOCK
from pigeonpost.core.files import lock_data_dir
from tests.cli.test_data_commands import fill
from tests.page_support import set_zone, use_memory_disk
from tests.storage.test_contract import batch
from tests.test_control import ControlCase
from tests.web.support import CONTROL_KEY, WebHouse


def setUpModule():
    use_memory_disk()


class CalibrateCase(ControlCase):
    def setUp(self):
        super().setUp()
        set_zone(self, "Europe/Vienna")
        self.prepare()

    def prepare(self):
        fill(self.data, batch(1, 3))  # temperature 20.5, light 1 to 3, at 2026-11-18 12:06:41 to 43 local time

    def column(self, sensor, *more):
        rows = self.done("export", "--sensor", sensor, *more).splitlines()[1:]
        return [float(row.split(",")[3]) for row in rows]


class WithoutServer(CalibrateCase):
    def test_two_points_are_applied_to_stored_values_until_they_are_removed(self):
        out = self.done("calibrate", "a", "light", "1=10", "3=30", "--note", "lux meter")
        self.assertEqual(out, "light of a is calibrated from the beginning: 1=10 3=30\n")
        self.assertEqual((self.column("light"), self.column("light", "--raw")), ([10, 20, 30], [1, 2, 3]))
        self.assertEqual(self.done("calibrations"), "a light from the beginning: 1=10 3=30  (lux meter)\n")
        self.assertEqual(
            self.done("calibrations", "a", "light", "--remove", "beginning"),
            "light of a: calibration from the beginning: 1=10 3=30  (lux meter) removed\n",
        )
        self.assertEqual(self.column("light"), [1, 2, 3])
        self.assertEqual(self.done("calibrations"), "no sensor is calibrated\n")
        self.assertEqual(self.done("calibrations", "a"), "no sensor of a is calibrated\n")
        self.assertEqual(self.done("calibrations", "a", "light"), "light of a is not calibrated\n")

    def test_every_kind_of_points_is_accepted(self):
        for points, wanted in (
            (["2=0"], [-1, 0, 1]),
            (["-1=-2", "1=0"], [0, 1, 2]),
            (["3=-3", "-.5=.5"], [-1, -2, -3]),
            (["1=1", "2=4", "3=5"], [1, 4, 5]),
            (["0=100", "2=0"], [50, 0, -50]),
            (["-1e1=0", "1=11"], [11, 12, 13]),
        ):
            with self.subTest(points=points):
                self.done("calibrate", "a", "light", "--from", "beginning", *points)
                self.assertEqual(self.column("light"), wanted)

    def test_second_calibration_needs_a_date(self):
        self.done("calibrate", "a", "light", "0=10")
        self.assert_fails(1, "calibrated already, from: beginning. Add --from now", "calibrate", "a", "light", "0=20")
        self.assertIn(
            "from 2026-11-18T12:06:42+01:00: 0=20",
            self.done("calibrate", "a", "light", "0=20", "--from", "2026-11-18T12:06:42", "--unit", "lx"),
        )
        self.assertEqual(self.column("light"), [11, 22, 23])
        self.assertIn(",lx\n", self.done("export", "--sensor", "light"))
        self.assertIn("this replaces from the beg", self.done("calibrate", "a", "light", "0=0", "--from", "beginning"))
        listed = self.done("calibrations", "a").splitlines()
        self.assertEqual(listed[1], "a light from 2026-11-18T12:06:42+01:00: 0=20 lx")
        self.done("calibrations", "a", "light", "--remove", "2026-11-18T12:06:42+01:00")
        self.assertEqual(self.column("light"), [1, 2, 3])
        self.assertIn("from 20", self.done("calibrate", "a", "light", "0=5", "--from", "now"))
        self.assertEqual(self.done("calibrations", "a", "light", "--clear"), "light of a: 2 calibrations removed\n")

    def test_bad_input_is_rejected_with_what_is_wrong(self):
        for text, *arguments in (
            ("'1,5' in '1,5=2' is not a number; write 1.5", "a", "light", "1,5=2"),
            ("'x' in 'x=2' is not a number", "a", "light", "x=2"),
            ("'' in '1=' is not a number", "a", "light", "1="),
            ("'5' is not a point: write RAW=TRUE", "a", "light", "5"),
            ("'-5' is not a point: write RAW=TRUE", "a", "light", "-5"),
            ("'noon' is not a valid time: write it as 2026-11-20", "a", "light", "1=2", "--from", "noon"),
        ):
            with self.subTest(text=text):
                self.assert_fails(2, text, "calibrate", *arguments)
        for text, *arguments in (
            ("light of a: nan is not a number", "a", "light", "nan=2"),
            ("light of a: inf is not a number", "a", "light", "1=inf"),
            ("light of a: the raw value 1 has two true values, 2 and 3", "a", "light", "1=2", "1=3"),
            ("have the same true value 2", "a", "light", "1=2", "5=2"),
            ("must rise throughout or fall throughout: 1=2, 2=5, 3=4", "a", "light", "3=4", "1=2", "2=5"),
            ("node a has never had a sensor lihgt; did you mean light?", "a", "lihgt", "1=2"),
            ("nothing is stored for a node b; the stored nodes are: a", "b", "light", "1=2"),
            ("is in the future", "a", "light", "1=2", "--from", "2900-01-01"),
        ):
            with self.subTest(text=text):
                self.assert_fails(1, text, "calibrate", *arguments)
        self.assert_fails(1, "light of a has no calibration", "calibrations", "a", "light", "--clear")
        self.assert_fails(1, "write `calibrations NODE SENSOR", "calibrations", "a", "--clear")
        self.assert_fails(1, "nothing is stored for a node b; the stored nodes are: a", "calibrations", "b")
        self.assert_fails(1, "did you mean light?", "calibrations", "a", "lihgt")
        self.assertFalse(os.path.exists(os.path.join(self.data, CALIBRATIONS)))

    def test_rename_and_backup_keep_calibrations(self):
        self.done("calibrate", "a", "light", "0=10")
        self.done("rename", "a", "b")
        self.assertEqual(self.done("calibrations", "a"), "b light from the beginning: 0=10\n")
        self.done("rename", "a", "--release")
        self.assertEqual(self.column("light"), [11, 12, 13])
        self.assertRegex(self.done("verify"), "^3 samples of 1 node: none missing, none stored twice")
        tar = os.path.join(self.data, "..", f"{os.path.basename(self.data)}.tar")
        self.addCleanup(os.unlink, tar)
        self.done("backup", tar)
        self.done("calibrations", "b", "light", "--clear")
        self.done("restore", tar)
        self.assertEqual(self.column("light"), [11, 12, 13])


class WithServer(CalibrateCase):
    def prepare(self):
        self.web = WebHouse(self)
        self.data = self.web.folder
        self.addCleanup(os.close, lock_data_dir(os.path.join(self.data, SERVER_LOCK)))
        with open(os.path.join(self.data, RUNNING), "w", encoding="utf-8") as file:
            json.dump({"pid": 1, "web": [self.web.address], "key": CONTROL_KEY}, file)
        self.web.store_samples("a", [{"light": 1}, {"light": 3}], {"light": ""})

    def latest(self):
        return self.web.ingestor.latest["a"].sample.values["light"]

    def test_running_server_applies_a_change_immediately(self):
        self.assertIn("calibrated from the beginning: 1=10 3=30", self.done("calibrate", "a", "light", "3=30", "1=10"))
        self.assertEqual((self.latest(), self.column("light")), (30, [10, 30]))
        self.assert_fails(1, "calibrated already, from: beginning", "calibrate", "a", "light", "0=20")
        self.assertIn("this replaces", self.done("calibrate", "a", "light", "0=20", "--from", "beginning"))
        self.assertEqual(self.latest(), 23)
        self.assertEqual(self.done("calibrations"), "a light from the beginning: 0=20\n")
        self.assertIn("0=20 removed", self.done("calibrations", "a", "light", "--remove", "beginning"))
        self.assertEqual((self.latest(), self.column("light")), (3, [1, 3]))
        self.done("calibrate", "a", "light", "0=-1")
        self.assertIn("1 calibration removed", self.done("calibrations", "a", "light", "--clear"))
        self.assert_fails(1, "did you mean light?\n", "calibrate", "a", "ligth", "0=1")


if __name__ == "__main__":
    import unittest

    unittest.main()
