"""Every page in Chromium: accessibility (axe-core), phone width, links, and a changed password."""

import os
import re
import unittest
from urllib.parse import urlsplit

from tests.browser import test_page
from tests.browser.test_page import PHONE, BrowserCase
from tests.page_support import Server, control
from tests.support import temp_folder, wait_until

try:
    from axe_playwright_python.base import AXE_SCRIPT
    from playwright.sync_api import expect
except ImportError:
    AXE_SCRIPT = ""

PAGES = (
    "/", "/nodes/demo", "/nodes/demo/temperature", "/chart?series=demo/temperature,demo/light", "/graphs", "/log",
    "/logs", "/files", "/alerts", "/gaps", "/happenings", "/bus", "/integrations", "/settings", "/about", "/password",
    "/help", "/help/tutorial.md", "/login",
)  # fmt: skip


def setUpModule():
    test_page.setUpModule()


def found(page):
    """Return the violations that axe-core finds: rule, severity, and the first elements."""
    page.evaluate(AXE_SCRIPT)
    violations = page.evaluate("axe.run().then(found => found.violations)")
    return [(one["id"], one["impact"], [node["html"][:200] for node in one["nodes"][:3]]) for one in violations]


@unittest.skipUnless(AXE_SCRIPT or os.environ.get("CI"), "axe-playwright-python is not installed for this Python")
class EveryPage(BrowserCase):
    """A server with a password and with the bus, so that every page exists."""

    @classmethod
    def setUpClass(cls):
        cls.addCleanup = cls.addClassCleanup  # the program stops after the class, not after a test
        try:
            data = temp_folder(cls)
            if control(cls, "--data", data, "password", said="correct horse\n")[0]:
                raise AssertionError("the password was not set")
            settings = os.path.join(data, "server.toml")
            with open(settings, "w", encoding="utf-8") as file:
                file.write(
                    "[bus]\nenabled = true\n[webhook]\nurl = 'http://127.0.0.1:1/'\n"
                    "[[alert]]\nkind = 'disk'\nbelow = 1e9\n"
                )
            cls.server = Server(cls, "--demo", "--config", settings, data=data)
            wait_until(lambda: cls.server.page, "the server has started")
        finally:
            del cls.addCleanup

    def log_in(self, password="correct horse", **options):
        page = self.open(self.server, "/login", **options)
        page.get_by_label("Password").fill(password)
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_contain_text("Node demo is reporting")
        return page

    def test_every_page_passes_axe_in_light_and_dark_mode(self):
        self.assertIn("axe", AXE_SCRIPT[:40])
        for scheme in ("light", "dark"):
            page = self.log_in(color_scheme=scheme)
            for path in PAGES:
                with self.subTest(path, scheme=scheme):
                    page.goto(path)
                    expect(page.locator("h1").first).to_be_visible()
                    self.assertEqual(found(page), [])

    def test_axe_finds_deliberate_violations(self):
        page = self.log_in()
        page.evaluate("document.querySelector('.buttons button').textContent = ''")
        page.evaluate("document.querySelector('.buttons button').removeAttribute('aria-label')")
        page.evaluate("document.querySelector('footer').style.color = '#ccc'")
        self.assertLessEqual({"button-name", "color-contrast"}, {rule for rule, _, _ in found(page)})

    def test_every_page_fits_a_phone(self):
        page = self.log_in(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
        for path in PAGES:
            page.goto(path)
            self.assert_fits(page)

    def test_every_page_is_reachable_by_links(self):
        """All links are followed, starting at the front page."""
        page = self.log_in()
        seen, waiting = set(), ["/"]
        while waiting:
            path = waiting.pop()
            if path in seen or "." in path.rpartition("/")[2]:  # a file, not a page
                continue
            seen.add(path)
            page.goto(path)
            links = page.eval_on_selector_all("a[href^='/']", "all => all.map(one => one.getAttribute('href'))")
            waiting += [urlsplit(link).path for link in links if urlsplit(link).path not in ("/metrics", "/chart")]
        for path in PAGES:
            if path != "/login":
                self.assertTrue(urlsplit(path).path in seen or path.startswith(("/chart", "/help/")), path)

    def test_password_is_changed_twice_and_other_sessions_end(self):
        self.expected = ("403",)
        old, new = "correct horse", "battery staple"
        page, other = self.log_in(), self.log_in()
        for before, after in ((old, new), (new, old)):
            page.goto("/about")
            page.get_by_role("link", name="Change your password").click()
            page.get_by_label("Old password").fill("wrong horse")
            self.fill_new(page, after)
            expect(page.get_by_role("alert")).to_have_text("The old password is wrong.")
            page.get_by_label("Old password").fill(before)
            self.fill_new(page, after)
            expect(page.locator("h1")).to_have_text("Password changed")
        other.goto("/about")
        self.assertEqual(urlsplit(other.url).path, "/login")

    def fill_new(self, page, password):
        page.get_by_label("New password", exact=True).fill(password)
        page.get_by_label("Repeat the new password").fill(password)
        page.get_by_role("button", name="Change password").click()

    def test_listed_log_is_downloaded(self):
        page = self.log_in()
        page.goto("/logs")
        with page.expect_download() as download:
            page.locator("table.list a").first.click()
        self.assertRegex(download.value.suggested_filename, r"^sensorlog_\d{6}_\d{4}(_\d+)?\.csv$")

    def test_open_events_page_shows_new_events(self):
        watching, page = self.log_in(), self.log_in()
        watching.goto("/happenings")
        rows = watching.locator("table.list tbody tr")
        expect(rows.filter(has_text="this server was started")).to_have_count(1)
        expect(rows.filter(has_text="messages are not sent yet")).to_have_count(1)  # no later event of its own
        page.get_by_text("Sensor Off").click()
        expect(page.get_by_role("status")).to_contain_text("demo is off")
        expect(rows.first).to_contain_text(re.compile("switched off"))
        page.get_by_text("Sensor On").click()
        expect(page.get_by_role("status")).to_contain_text("demo is on")
        expect(rows.first).to_contain_text(re.compile("switched on"))


if __name__ == "__main__":
    unittest.main()
