"""Times in the output of `status` and `check`."""

from unittest import mock

from pigeonpost.cli import status
from tests.page_support import set_zone
from tests.test_control import ControlCase


class Times(ControlCase):
    def ask(self, answer, *arguments):
        with mock.patch.object(status, "ask_server", return_value=answer):
            return self.run_(*arguments)

    def test_status_shows_local_time_with_its_offset(self):
        sample = {"time": "2026-10-25T00:30:00.000Z"}
        node = {"name": "a", "connected": True, "on": True, "last_sample": sample, "missing": 0, "address": ""}
        for zone, text in (("Asia/Kolkata", "2026-10-25 06:00:00+05:30"), ("UTC", "2026-10-25 00:30:00+00:00"),
                           ("Europe/Berlin", "2026-10-25 02:30:00+02:00")):  # fmt: skip
            set_zone(self, zone)
            self.assertEqual(self.ask({"nodes": [node]}, "status"), (0, f"a: on; last sample {text}\n", ""))

    def test_status_of_a_silent_node_contains_the_time_of_the_last_receipt(self):
        set_zone(self, "UTC")
        sample = {"time": "2027-10-25T00:30:00.000Z", "received": "2026-10-25T00:30:02.500Z"}
        node = {"name": "a", "connected": True, "on": True, "last_sample": sample, "missing": 0, "address": ""}
        shown = "; last sample 2027-10-25 00:30:00+00:00\n"
        late = "a: on, but late: nothing received since "
        for more, text in (
            ({"state": "late"}, f"{late}2026-10-25 00:30:02+00:00{shown}"),
            ({"state": "late", "last_sample": sample | {"received": None}}, f"{late}the server's start{shown}"),
            ({"state": "late", "last_sample": None}, f"{late}the server's start\n"),
            ({"state": "reporting"}, f"a: on{shown}"),
            ({"state": "reporting", "connected": False, "fault": ""}, f"a: reporting{shown}"),
            ({"state": "lost", "connected": False, "fault": ""}, f"a: not connected{shown}"), ({}, f"a: on{shown}"),
            ({"state": "late", "connected": False, "fault": "has sent nothing since 5:00"},
             f"a: has sent nothing since 5:00{shown}"),
        ):  # fmt: skip
            with self.subTest(**more):
                self.assertEqual(self.ask({"nodes": [node | more]}, "status"), (0, text, ""))

    def test_check_names_the_time_zone_of_the_server_if_a_fault_has_a_time(self):
        for faults, zone, told in (
            (["a: has sent nothing since 16:36"], {"time_zone": "Europe/Vienna (UTC+1)"},
             "Time zone: Europe/Vienna (UTC+1).\n"),
            (["a: has sent nothing since 20 Nov 16:36", "b: lost"], {"time_zone": "UTC"}, "Time zone: UTC.\n"),
            (["a: not connected (10.0.0.1:5003)"], {"time_zone": "UTC"}, ""),
            (["a: has sent nothing since 16:36"], {}, ""),  # the server has an older version
        ):  # fmt: skip
            with self.subTest(faults):
                printed = "".join(f"{fault}\n" for fault in faults)
                self.assertEqual(self.ask({"faults": faults, **zone}, "check"), (1, printed, told))
        self.assertEqual(self.ask({"faults": [], "time_zone": "UTC"}, "check"), (0, "", ""))
