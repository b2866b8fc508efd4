"""Preferences, menu and Exit in Chromium: displayed units with and without the script, and the menu on a phone."""

import re
from urllib.parse import urlsplit

from tests.browser import test_page
from tests.browser.test_page import BrowserCase, expect
from tests.page_support import Server, StartedServer
from tests.support import wait_until

NARROW = {"width": 380, "height": 800}


def setUpModule():
    test_page.setUpModule()


class Units(BrowserCase):
    def setUp(self):
        super().setUp()
        self.server = Server(self, "--demo")
        wait_until(lambda: "is reporting" in self.server.get("/")[1], "the demo node reports")

    def choose(self, page, unit):
        page.goto("/settings")
        page.get_by_label("Measured in °C, shown in").select_option(unit)
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("status")).to_have_text("Saved.")

    def test_selected_unit_applies_to_pages_and_live_values(self):
        page = self.open(self.server)
        self.choose(page, "°F")
        for path in ("/nodes/demo/temperature", "/"):
            page.goto(path)
            live = page.locator('b[data-live="demo/temperature"]').first
            live.evaluate("place => place.textContent = 'before'")  # the value itself may stay the same for a minute
            expect(live).not_to_have_text("before")  # an event has arrived
            self.assertGreater(float(live.text_content()), 55, path)  # 21 °C are 70 °F
            expect(live.locator("xpath=../span[@class='unit']")).to_have_text("°F")

    def test_values_under_the_pointer_have_the_unit_of_the_chart(self):
        page = self.open(self.server)
        self.choose(page, "°F")
        page.goto("/chart?series=demo/temperature&span=10m")
        page.locator("figure.plot").focus()
        page.keyboard.press("End")
        expect(page.locator("output.readout")).to_contain_text(re.compile(r"temperature: [5-9]\d(\.\d+)? °F"))
        picture = page.request.get("/chart.svg?series=demo/temperature&span=10m").text()
        self.assertIn(">temperature, °F</text>", picture)

    def test_unit_can_be_selected_without_the_script(self):
        page = self.open(self.server, java_script_enabled=False)
        self.choose(page, "K")
        page.goto("/log")
        expect(page.locator("table.log tbody tr").first).to_contain_text(re.compile(r"temperature \d+(\.\d+)? K"))


class Menu(BrowserCase):
    def test_menu_on_a_phone_lists_all_pages_and_marks_the_current_one(self):
        page = self.open(Server(self, "--demo"), viewport=NARROW, is_mobile=True, has_touch=True)
        names = page.get_by_role("navigation", name="Pages").get_by_role("link").all_text_contents()
        self.assertEqual(len(names), 10)
        for name in names:
            page.get_by_role("navigation", name="Pages").get_by_role("link", name=name, exact=True).click()
            marked = page.get_by_role("navigation", name="Pages").locator("[aria-current=page]")
            expect(marked).to_have_text(name)
            self.assert_fits(page)

    def test_reload_after_exit_opens_the_front_page(self):
        self.expected = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE")
        server = StartedServer(self)
        port = server.page[1]
        page = self.open(server)
        page.get_by_role("button", name="Exit").click()
        page.get_by_role("button", name="Exit").click()
        expect(page.locator("h1")).to_have_text("exited")
        expect(page.locator("pre")).to_contain_text("server.py")
        server.wait()
        again = StartedServer(self, "--web", f"127.0.0.1:{port}", data=server.data)
        wait_until(lambda: again.page, "the next run has started")
        page.reload()
        expect(page.locator("h1.verdict")).to_be_visible()
        self.assertEqual(urlsplit(page.url).path, "/")
        self.assertIsNone(again.process.poll())
