"""Node page: without sensors, and with a sensor that has never had a value."""

import unittest

from tests.page_support import use_memory_disk
from tests.web.support import FakeLink, WebHouse


def setUpModule():
    use_memory_disk()


class NodePage(unittest.TestCase):
    def page(self, units, samples=()):
        web = WebHouse(self, links=[FakeLink("shed", units)])
        for values in samples:
            web.store_samples("shed", [values], units)
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


if __name__ == "__main__":
    unittest.main()
