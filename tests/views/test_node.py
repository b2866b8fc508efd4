"""The page of a node: before its first sensor, and with one that has never had a value."""

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

    def test_without_a_sensor_it_says_so_and_offers_no_spans(self):
        page = self.page({})
        self.assertIn("No sensor of this node is known yet.", page)
        self.assertNotIn("Span of the charts", page)
        self.assertIn('<section class="charts" aria-label="Charts"></section>', page)  # where the first one will come

    def test_a_sensor_without_any_value_does_not_choose_the_span(self):
        page = self.page({"broken": "°C", "light": "counts"}, [{"broken": None, "light": 7}] * 3)
        self.assertIn('span=10m" aria-current="true">10 minutes</a>', page)

    def test_the_sentence_names_a_sensor_that_fails(self):
        page = self.page({"broken": "°C", "light": "counts"}, [{"broken": None, "light": 7}])
        self.assertRegex(page, r'<p class="verdict wait"[^>]*>Reporting; broken: no reading; last sample')

    def test_what_waits_is_not_what_is_kept(self):
        page = self.page({"light": "counts"})
        self.assertIn("<th>waiting to be sent</th>", page)
        self.assertIn("<th>in its outbox</th>", page)


if __name__ == "__main__":
    unittest.main()
