"""Web interface in Chromium behind nginx with TLS, below a path: pages, live values and buttons."""

import os
import re
import unittest

from tests.browser import test_page
from tests.browser.test_page import BrowserCase
from tests.install import find_command
from tests.install.nginx import Nginx
from tests.page_support import Node, Server, control
from tests.support import temp_folder, wait_until

try:
    from playwright.sync_api import expect
except ImportError:
    pass  # setUpModule skips these tests

PASSWORD = "correct horse"
HEADERS = (
    "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;"
    " proxy_set_header X-Forwarded-Proto $scheme;"
)


def setUpModule():
    test_page.setUpModule()


class BelowAPath(BrowserCase):
    def setUp(self):
        super().setUp()
        if not find_command("nginx"):
            if os.environ.get("CI"):
                self.fail("nginx is not installed: sudo apt install nginx-light")
            self.skipTest("nginx is not installed: sudo apt install nginx-light")
        data = temp_folder(self)
        control(self, "--data", data, "password", said=f"{PASSWORD}\n{PASSWORD}\n")
        self.node = Node(self)
        self.server = Server(self, "--node", self.node.at, data=data)

    def begin(self, lines, is_tls=True):
        """Log in below /house/sensors/, and return the window and its base address."""
        at = "{}:{}".format(*self.server.page)
        nginx = Nginx(self, f"location /house/sensors/ {{ proxy_pass http://{at}/; {lines} }}", is_tls)
        base = nginx.url.replace("127.0.0.1", "localhost") + "/house/sensors/"
        window = self.open(self.server, base, ignore_https_errors=True)
        window.get_by_label("User").fill("admin")
        window.get_by_label("Password").fill(PASSWORD)
        window.get_by_role("button", name="Log in").click()
        window.wait_for_url(base)
        return window, base

    def assert_lives(self, window):
        """Assert that values change without a reload, so nginx forwards the event stream."""
        place = window.locator('[data-live="basement/light"]').first  # the temperature may stay the same for a minute
        expect(place).to_be_visible()
        before = place.text_content()
        window.evaluate("window.stays = true")
        wait_until(lambda: place.text_content() != before, "another value")
        self.assertTrue(window.evaluate("window.stays"))

    def assert_all_pages(self, window, base):
        """Assert that each page linked from the front page has its style sheet and images."""
        addresses = window.eval_on_selector_all("a[href]", "all => all.map(one => one.href)")
        for address in dict.fromkeys(one.partition("#")[0] for one in addresses):
            self.assertTrue(address.startswith(base), address)
            if re.search(r"\.(csv|json)$", address):
                continue
            answer = window.goto(address)
            self.assertEqual(answer.status, 200, address)
            window.wait_for_load_state("load")
            self.assertTrue(window.evaluate("document.styleSheets[0].cssRules.length > 0"), address)
            broken = window.eval_on_selector_all(
                "img:not([loading=lazy])", "all => all.filter(one => !one.naturalWidth).map(one => one.src)"
            )
            self.assertEqual(broken, [], address)
        window.goto(base)

    def assert_buttons(self, window, base):
        window.get_by_role("button", name="Sensor Off").first.click()
        expect(window).to_have_url(re.compile(re.escape(base) + "nodes/basement"))
        window.goto(base)
        window.get_by_role("button", name="Sensor On").first.click()
        expect(window).to_have_url(re.compile(re.escape(base) + "nodes/basement"))
        window.goto(base)
        with window.expect_download() as coming:
            window.get_by_role("link", name="Log Download").click()
        with open(coming.value.path(), "rb") as log:
            self.assertTrue(log.read().startswith(b"time,node,sensor,value,unit\n"))
        window.get_by_role("button", name="Log out").click()
        expect(window).to_have_url(base + "login")

    def test_pages_work_below_a_path_in_x_forwarded_prefix(self):
        window, base = self.begin(f"{HEADERS} proxy_set_header X-Forwarded-Prefix /house/sensors;")
        (cookie,) = window.context.cookies()
        self.assertTrue(cookie["name"].startswith("__Secure-pigeonpost-"))
        self.assertEqual((cookie["path"], cookie["secure"], cookie["sameSite"]), ("/house/sensors", True, "Strict"))
        self.assert_lives(window)
        self.assert_all_pages(window, base)
        self.assert_buttons(window, base)

    def test_pages_work_with_proxy_pass_alone(self):
        window, base = self.begin("", is_tls=False)
        self.assert_lives(window)
        self.assert_all_pages(window, base)
        self.assert_buttons(window, base)

    def test_time_range_selected_in_a_chart_stays_below_the_path(self):
        window, base = self.begin(f"{HEADERS} proxy_set_header X-Forwarded-Prefix /house/sensors;")
        wait_until(lambda: len(self.server.get("/healthz")[1]) > 0, "the server answers")
        window.goto(base + "chart?series=basement/temperature&span=10m")
        plot = window.locator("figure.plot")
        plot.focus()
        window.keyboard.press("ArrowLeft")
        expect(window.locator("output.readout b")).to_be_visible()
        for _ in range(3):
            window.keyboard.press("Shift+ArrowLeft")
        window.keyboard.press("Enter")
        expect(window).to_have_url(re.compile(re.escape(base) + r"chart\?.*from="))


if __name__ == "__main__":
    unittest.main()
