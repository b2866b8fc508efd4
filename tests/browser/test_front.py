"""Front page in Chromium with several nodes: node selector, failed sensors, ages, and movable charts."""

import math
import re
import unittest

from tests.browser import test_page
from tests.browser.test_every_page import AXE_SCRIPT, found
from tests.browser.test_page import BrowserCase
from tests.web.support import FakeLink, WebHouse

try:
    from playwright.sync_api import expect
except ImportError:
    expect = None

UNITS = {"temperature": "°C", "light": "counts"}
WIDTHS = (320, 380, 768, 1280)


def setUpModule():
    test_page.setUpModule()


class FrontPage(BrowserCase):
    names = ("attic", "basement", "greenhouse")

    def setUp(self):
        super().setUp()
        self.links = [FakeLink(name, UNITS) for name in self.names]
        for link in self.links:
            link.state.takes_orders = True
        self.web = WebHouse(self, links=self.links)
        for name in self.names:
            self.web.store_samples(name, [{"temperature": 18 + math.sin(k), "light": k} for k in range(50)], UNITS)
        self.server = type("Address", (), {"page": self.web.address, "path": f"/?key={self.web.web.first_key}"})

    def own(self, page, name):
        return page.locator(".chooser").get_by_role("button", name=name)

    def charts(self, page):
        return page.eval_on_selector_all("[data-chart]", "all => all.map(one => one.dataset.chart)")

    def test_buttons_apply_to_the_selected_node(self):
        self.links[1].state.on = False
        self.web.web._snapshots.invalidate()
        page = self.open(self.server)
        page.evaluate("window.same = true")
        expect(self.own(page, "Sensor On")).to_have_class("chosen")
        expect(self.own(page, "Choose")).to_be_hidden()
        page.get_by_label("Node").select_option("basement")
        expect(self.own(page, "Sensor Off")).to_have_class("chosen")
        self.assertTrue(page.evaluate("window.same"))
        page.get_by_label("Node").press("Tab")
        self.own(page, "Status").click()
        expect(page.locator("h1")).to_have_text("basement")
        self.assertEqual(self.links[1].asked, [("CHECK",)])
        page.get_by_role("link", name="Dashboard").click()
        expect(page.get_by_label("Node")).to_have_value("basement")

    def test_node_selector_works_without_the_script(self):
        page = self.open(self.server, java_script_enabled=False)
        page.get_by_label("Node").select_option("greenhouse")
        self.own(page, "Sensor Off").click()
        self.assertEqual([link.asked for link in self.links], [[], [], [("SEND", False)]])
        page.goto("/")
        page.get_by_label("Node").select_option("attic")
        self.own(page, "Choose").click()
        expect(page.get_by_label("Node")).to_have_value("attic")

    def test_open_page_shows_that_a_sensor_fails(self):
        page = self.open(self.server)
        card = page.locator('.card[href="/nodes/basement/temperature"]')
        expect(card.locator(".age")).to_have_text(re.compile(r"^\d+ s ago$"))
        self.web.store_samples("basement", [{"temperature": None, "light": 1}], UNITS)
        expect(card.locator(".fault")).to_have_text("no reading")
        expect(card.locator(".since")).to_contain_text("since ")
        expect(page.locator("h1")).to_have_class("verdict wait")
        expect(page.locator("h1")).to_contain_text("Sensor temperature of basement: no reading; last sample")

    def test_live_value_updates_the_highest_value_of_the_day(self):
        page = self.open(self.server)
        card = page.locator('.card[href="/nodes/attic/light"]')
        expect(card.locator(".day")).to_contain_text("high 49")
        page.evaluate("void (window.fetch = () => new Promise(() => {}))")  # the page cannot be fetched again
        self.web.store_samples("attic", [{"temperature": 18, "light": 1234}], UNITS)
        expect(card.locator("b")).to_have_text("1,234")
        expect(card.locator(".day")).to_contain_text(re.compile(r"high 1,234 at \d\d:\d\d$"))

    def test_charts_are_moved_and_hidden_without_leaving_the_page(self):
        page = self.open(self.server)
        page.evaluate("window.same = true")
        before = self.charts(page)
        page.get_by_role("button", name="Move light of attic up").click()
        page.wait_for_function(
            "before => document.querySelector('[data-chart]').dataset.chart !== before", arg=before[0]
        )
        self.assertEqual(self.charts(page), [before[1], before[0], *before[2:]])
        page.get_by_role("button", name="Hide the chart of light of attic").click()
        show = page.get_by_role("button", name="Show the chart of light of attic")
        expect(show).to_be_focused()
        expect(page.locator(".charts img")).to_have_count(5)
        self.assertTrue(page.evaluate("window.same"))
        page.reload()
        expect(page.locator(".folded")).to_have_count(1)
        self.assertEqual(self.charts(page)[0], "attic/light")
        show.press("Enter")
        expect(page.locator(".charts img")).to_have_count(6)

    def test_charts_are_hidden_without_the_script(self):
        page = self.open(self.server, java_script_enabled=False)
        page.get_by_role("button", name="Hide the chart of light of attic").click()
        expect(page.locator(".folded")).to_have_count(1)
        self.assertEqual(page.url.rpartition("/")[2], "#charts")

    def test_page_with_long_names_fits_every_width(self):
        self.links[0].state.name = "a" * 63
        self.links[1].state.connected = False
        self.links[1].state.fault = "cannot be reached: Connection refused"
        self.web.store_samples("a" * 63, [{"temperature": 18, "light": 1}], UNITS)
        for width in WIDTHS:
            page = self.open(self.server, viewport={"width": width, "height": 800})
            self.assert_fits(page)

    @unittest.skipUnless(AXE_SCRIPT, "axe-playwright-python is not installed for this Python")
    def test_front_page_with_a_failed_sensor_passes_axe(self):
        self.web.store_samples("basement", [{"temperature": None, "light": 1}], UNITS)
        for scheme in ("light", "dark"):
            page = self.open(self.server, color_scheme=scheme)
            self.assertEqual(found(page), [])

    def test_update_causes_no_layout_shift(self):
        page = self.open(self.server)
        page.wait_for_load_state("load")
        page.evaluate(
            "window.moved = 0; new PerformanceObserver("
            "list => list.getEntries().forEach(one => window.moved += one.value)"
            ").observe({type: 'layout-shift', buffered: false})"
        )
        cards = page.locator("section.cards").element_handle()
        self.web.store_samples("basement", [{"temperature": 18.25, "light": 33}], UNITS)
        page.wait_for_function("cards => !cards.isConnected", arg=cards)
        self.assertLess(page.evaluate("window.moved"), 0.01)


if __name__ == "__main__":
    unittest.main()
