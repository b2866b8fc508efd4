"""Page "Break it" of the demonstration in Chromium: every button, live numbers, phone width, and accessibility."""

import json
import os
import re
import unittest

from tests.browser import test_page
from tests.browser.test_every_page import AXE_SCRIPT, found
from tests.browser.test_page import PHONE, BrowserCase
from tests.page_support import Server
from tests.support import wait_until

try:
    from playwright.sync_api import expect
except ImportError:
    expect = None


def setUpModule():
    test_page.setUpModule()


class DemoPage(BrowserCase):
    def setUp(self):
        super().setUp()
        self.server = Server(self, "--demo")
        wait_until(lambda: self.number("stored"), "a sample is stored")

    def number(self, name):
        return json.loads(self.server.get("/demo.json")[1])[name]

    def press(self, page, name):
        page.get_by_role("button", name=name, exact=True).click()

    def test_class_breaks_and_repairs_each_part_and_sees_the_numbers_change_without_reloading(self):
        page = self.open(self.server)
        page.get_by_role("link", name="Break it").click()
        expect(page.locator("h1")).to_have_text("Break it")
        count = page.locator('[data-piece="demo-count"]')
        for part, harm, state, repair in (
            ("Link", "Cut the link", "cut", "Restore it"),
            ("Disk", "Fill the disk", "full", "Free it"),
            ("Link", "Stall the link", "stalled: packets vanish", "Restore it"),
        ):
            heading = page.get_by_role("heading", name=re.compile(f"^{part}: "))
            self.press(page, harm)
            expect(heading).to_have_text(f"{part}: {state}")
            page.evaluate("window.same = true")
            expect(count).to_contain_text(re.compile(r"taken = [\d,]+ stored \+ [2-9] held\."))
            self.assertTrue(page.evaluate("window.same"))
            self.press(page, repair)
            expect(count).to_contain_text(re.compile(r"stored \+ [01] held\."))
        heading = page.get_by_role("heading", name=re.compile("^Node: "))
        self.press(page, "Kill the node")
        expect(heading).to_have_text("Node: not running")
        expect(page.get_by_role("button", name="Kill the node")).to_be_disabled()
        self.press(page, "Start it again")
        expect(heading).to_have_text(re.compile(r"Node: running as process \d+"))
        self.press(page, "Count and verify")
        expect(page.get_by_role("status")).to_contain_text("Faults found by verify: none.")
        expect(count).to_contain_text("Stored twice: 0. Missing without a trace: 0.")

    def test_page_works_without_javascript(self):
        page = self.open(self.server, "/demo", java_script_enabled=False)
        self.press(page, "Cut the link")
        expect(page.get_by_role("heading", name="Link: cut")).to_be_visible()
        self.press(page, "Restore it")
        expect(page.get_by_role("heading", name="Link: working")).to_be_visible()

    def test_buttons_are_disabled_without_the_key(self):
        page = self.open(self.server, "/demo", with_key=False)
        for button in page.get_by_role("button").all():
            expect(button).to_be_disabled()

    def test_page_fits_a_phone(self):
        page = self.open(self.server, "/demo", viewport=PHONE, is_mobile=True, has_touch=True)
        self.assert_fits(page)

    @unittest.skipUnless(AXE_SCRIPT or os.environ.get("CI"), "axe-playwright-python is not installed for this Python")
    def test_page_passes_axe_in_light_and_dark_mode(self):
        for scheme in ("light", "dark"):
            self.assertEqual(found(self.open(self.server, "/demo", color_scheme=scheme)), [])


if __name__ == "__main__":
    unittest.main()
