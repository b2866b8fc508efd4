"""Node page: without sensors, and with a sensor that has never had a value."""

import unittest

from pigeonpost.views.node import MOST_GAPS
from protocol import Batch, Gap
from tests.page_support import use_memory_disk
from tests.web.support import FakeLink, WebHouse


def setUpModule():
    use_memory_disk()


class NodePage(unittest.TestCase):
    def page(self, units, samples=(), silent_s=0.0, **state):
        link = FakeLink("shed", units)
        vars(link.state).update(state)
        web = WebHouse(self, links=[link])
        for values in samples:
            web.store_samples("shed", [values], units)
            web.ingestor.received_s["shed"] -= silent_s
        web.web._snapshots.invalidate()
        status, _, body = web.request("GET", "/nodes/shed", web.browser, html=True)
        self.assertEqual(status, 200)
        return body.decode()

    def test_page_of_a_node_without_sensors_has_no_time_ranges(self):
        page = self.page({})
        self.assertIn("No sensors of this node are known yet.", page)
        self.assertNotIn("Range of the charts", page)
        self.assertIn('<section class="charts" aria-label="Charts"></section>', page)  # the first chart will be here

    def test_sensor_without_values_does_not_affect_the_time_range(self):
        page = self.page({"broken": "°C", "light": "counts"}, [{"broken": None, "light": 7}] * 3)
        self.assertIn('span=10m" aria-current="true">10 minutes</a>', page)

    def test_headline_names_a_failed_sensor(self):
        page = self.page({"broken": "°C", "light": "counts"}, [{"broken": None, "light": 7}])
        self.assertRegex(page, r'<p class="verdict wait"[^>]*>Reporting; broken: no reading; last sample')

    def test_page_distinguishes_waiting_samples_from_samples_in_the_outbox(self):
        page = self.page({"light": "counts"})
        self.assertIn("<th>unsent</th>", page)
        self.assertIn("<th>outbox</th>", page)

    def test_page_of_a_silent_node_contains_a_remedy(self):
        for silent_s, state, remedy in (
            (0, {}, False), (7200, {"awaited_s": 1.0}, True), (7200, {"awaited_s": 1.0, "calls_in": True}, True),
            (0, {"connected": False, "fault": "cannot be reached: Connection refused"}, True),
            (0, {"connected": False, "fault": "its token was revoked: `control.py token shed` creates one"}, False),
            (0, {"on": False}, False),
        ):  # fmt: skip
            with self.subTest(silent_s=silent_s, **state):
                page = self.page({"light": ""}, [{"light": 7}], silent_s, **state)
                self.assertIs("<th>what to do</th><td>" in page and "control.py doctor" in page, remedy)

    def test_readings_of_the_computer_have_the_time_of_their_report(self):
        page = self.page({"light": ""}, checked_ms=1_795_188_970_123, details={"machine": {"load": 0.5}})
        self.assertRegex(page, r"<th>computer</th><td>load 0\.50; at 20 Nov [^<]*</td>")

    def test_page_does_not_deny_gaps_that_are_older_than_those_of_other_nodes(self):
        web = WebHouse(self, links=[FakeLink("shed", {}), FakeLink("attic", {})])
        for node, number in [("shed", 1), *(("attic", number) for number in range(1, MOST_GAPS + 1))]:
            outbox = f"{sum(node.encode()):016x}"
            web.ingestor.submit(Batch(node, outbox, "0123456789abcdef", 0, None, Gap(number, number, 0, "x"), {}))
        self.assertTrue(web.ingestor.flush(10))
        web.web._snapshots.invalidate()
        page = web.request("GET", "/nodes/shed", web.browser, html=True)[2].decode()
        self.assertIn("<th>missing</th><td>1 sample</td>", page)
        self.assertNotIn("No samples of this node are missing.", page)
        self.assertIn(f"<p>Its gaps are older than the latest {MOST_GAPS} gaps of all nodes.</p>", page)


if __name__ == "__main__":
    unittest.main()
