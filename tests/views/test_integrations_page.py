"""Page "Integrations": states of the exchanges with other systems, and their faults on other pages."""

import json
import logging
from types import SimpleNamespace

from pigeonpost.transports.contract import IntegrationStatus, PassiveTransport
from pigeonpost.views.integrations_page import read_faults, read_statuses
from tests.page_support import use_memory_disk
from tests.test_webui import WebCase


def setUpModule():
    use_memory_disk()


class Part(PassiveTransport):
    def __init__(self, *statuses, fault="", error=None):
        self._statuses, self.fault, self._error = statuses, fault, error

    def statuses(self):
        if self._error:
            raise self._error
        return self._statuses


def status(name="forward influx", fault="", **fields):
    found = IntegrationStatus(name, "influxdb", "out", "http://10.0.0.9:8086", None, 1204, fault=fault)
    return found._replace(**fields)


class Integrations(WebCase):
    def setUp(self):
        super().setUp()
        self.parts = {}
        self.web.web._app = self.web.app._replace(transports=self.parts)
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_page_without_integrations_names_the_documentation(self):
        for found in (self.page("/integrations"), self.text("/integrations")):
            self.assertIn("docs/integrations.md", found)
        self.assertEqual(self.json("/integrations.json"), {"integrations": []})

    def test_each_exchange_is_a_row_in_all_formats(self):
        now_ms = self.web.app.clock.wall_ms()
        self.parts["forward"] = Part(status(success_ms=now_ms - 240_000, done=5000, refused=3), status("mqtt", done=1))
        page, text = self.page("/integrations"), self.text("/integrations")
        for found in (page, text):
            for part in ("forward influx", "http://10.0.0.9:8086", "4 min ago", "1,204", "5,000 samples"):
                self.assertIn(part, found)
            self.assertRegex(found, r"\b1 sample\b")
            self.assertIn("2 exchanges with other systems; none has a fault.", found)
        row = self.json("/integrations.json")["integrations"][0]
        self.assertEqual(
            (row["name"], row["kind"], row["direction"], row["backlog"], row["exchanged"], row["refused"]),
            ("forward influx", "influxdb", "out", 1204, 5000, 3),
        )
        self.assertTrue(self.get("/integrations.csv").startswith("name,kind,direction,place,success,backlog,items,"))

    def test_error_of_a_part_is_shown_as_its_fault_and_the_others_are_shown(self):
        self.parts.update(broken=Part(error=ValueError("<no> state")), good=Part(status("good one")))
        page = self.page("/integrations")
        self.assertIn("internal error, see the log: ValueError: &lt;no&gt; state", page)
        self.assertIn("good one", page)

    def test_fault_of_a_part_without_states_is_shown(self):
        self.parts["home_assistant"] = Part(fault="the Python module paho is missing")
        self.assertIn("the Python module paho is missing", self.text("/integrations"))

    def test_part_without_the_method_exchanges_nothing(self):
        self.assertEqual(read_statuses({"report": SimpleNamespace(fault="")}), [])

    def test_untrusted_text_of_a_status_is_escaped(self):
        self.parts["in"] = Part(status("<script>alert(1)</script>", fault="<b>"))
        for path in ("/integrations", "/"):
            self.assertNotIn("<script>alert", self.page(path))

    def test_fault_is_on_the_dashboard_with_a_link_and_does_not_change_the_summary(self):
        before = self.page("/").partition('data-piece="verdict">')[2].partition("<")[0]
        self.parts["forward"] = Part(status(fault="no connection"), status("b", fault="refused"))
        self.web.store_samples("basement", self.samples)  # the page is made again
        page, text = self.page("/"), self.text("/")
        said = "forward influx: no connection; and 1 more integration."
        self.assertIn(f'<p class="notice"><a href="/integrations">{said}</a></p>', page)
        self.assertIn(said, text)
        self.assertEqual(page.partition('data-piece="verdict">')[2].partition("<")[0], before)

    def test_fault_of_part_and_exchange_is_reported_once_by_health(self):
        self.parts.update(
            redis=Part(status("redis", fault="no answer"), fault="no answer"),
            forward=Part(status("forward b", fault="HTTP 401"), status("forward c")),
        )
        faults = json.loads(self.get("/api/v1/health"))["faults"]
        self.assertEqual([one for one in faults if "no answer" in one], ["redis: no answer"])
        self.assertIn("forward b: HTTP 401", faults)
        self.assertFalse([one for one in faults if "forward c" in one])

    def test_error_of_a_part_is_reported_by_health(self):
        self.assertEqual(
            read_faults({"a": Part(error=KeyError("x"))}), ["a: internal error, see the log: KeyError: 'x'"]
        )

    def test_error_while_a_fault_is_read_is_the_fault_of_its_part(self):
        class Broken(Part):
            fault = property(lambda part: {}["x"], lambda part, value: None)

        self.parts.update(broken=Broken(status("a")), good=Part(status("good one")))
        said = "internal error, see the log: KeyError: 'x'"
        self.assertEqual(read_faults(self.parts), [f"broken: {said}"])
        self.assertIn(f"broken: {said}", json.loads(self.get("/api/v1/health"))["faults"])
        self.assertEqual(self.web.web._faults()["broken"], said)
        self.assertIn("good one", self.text("/integrations"))
        self.assertIn('integration_fault{name="good one"', self.get("/metrics"))

    def test_secrets_in_states_are_hidden_everywhere(self):
        secret = "https://user:hunter2@10.0.0.9/?token=hunter2"
        self.parts.update(a=Part(status(place=secret, fault=secret), fault=secret), b=Part(error=ValueError(secret)))
        for path in ("/integrations", "/integrations.json", "/integrations.csv", "/", "/api/v1/health", "/metrics"):
            self.assertNotIn("hunter2", self.get(path), path)
        self.assertNotIn("hunter2", str(self.web.web._faults()))

    def test_about_page_links_to_the_page(self):
        self.assertIn('href="/integrations"', self.page("/about"))
