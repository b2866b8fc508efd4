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
