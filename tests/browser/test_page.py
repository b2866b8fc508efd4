"""Web interface in Chromium: live values, buttons, log, login, phone width and dark mode."""

import os
import re
import shutil
import unittest
from urllib.parse import urlsplit

from tests.page_support import Node, Server, control
from tests.support import free_port, temp_folder, wait_until

try:
    from playwright.sync_api import Error, expect, sync_playwright
except ImportError:
    sync_playwright = expect = None

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT_MS = 30_000
PHONE = {"width": 360, "height": 740}
BUTTONS = ["Sensor On", "Sensor Off", "Status", "Log Check", "Log Download", "Exit"]
browser = None


def setUpModule():
    global browser
    if sync_playwright is None:
        raise unittest.SkipTest("playwright is not installed for this Python")
    if CHROMIUM is None:
        raise unittest.SkipTest("there is no chromium")
    playwright = sync_playwright().start()
    unittest.addModuleCleanup(playwright.stop)
    # As root, Chromium does not start in its sandbox. In containers, /dev/shm is too small for it.
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
    unittest.addModuleCleanup(browser.close)
    expect.set_options(timeout=LIMIT_MS)


class BrowserCase(unittest.TestCase):
    """Base class: each test has its own browser windows; errors and requests to other hosts fail the test."""

    def setUp(self):
        self.wrong = []
        self.hosts = set()
        self.expected = ()  # parts of error messages that the test provokes

    def open(self, server, path="/", with_key=True, **options):
        """Open a page of `server` in a new window and return it.

        If `with_key`, the window first opens the address that the server printed: without a password, buttons work
        only with the key in that address.
        """
        options = {"viewport": {"width": 1100, "height": 1000}, **options}
        base = "http://{}:{}".format(*server.page)
        context = browser.new_context(base_url=base, **options)
        self.addCleanup(context.close)
        context.set_default_timeout(LIMIT_MS)
        context.on("console", self.note)
        context.on("weberror", lambda error: self.wrong.append(str(error.error)))
        context.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page = context.new_page()
        if with_key and "key=" in server.path:
            page.goto(server.path)
        page.goto(path)
        return page

    def note(self, message):
        """Record an error message of the browser's console with its address."""
        if message.type == "error":
            self.wrong.append(f"{message.text} ({message.location.get('url', '')})")

    def tearDown(self):
        wrong = [text for text in self.wrong if not any(part in text for part in self.expected)]
        self.assertEqual(wrong, [])
        self.assertLessEqual(len(self.hosts), 1)

    def values(self, page):
        """Return the displayed value of each sensor card by `node/sensor`."""
        return page.eval_on_selector_all(
            "b[data-live]", "all => Object.fromEntries(all.map(one => [one.dataset.live, one.textContent]))"
        )

    def assert_fits(self, page):
        """Assert that the page is not wider than the window."""
        page.wait_for_load_state("load")
        wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        self.assertLessEqual(wide, window, page.url)


class Demo(BrowserCase):
    """Tests that share one demo server; each leaves the node switched on."""

    @classmethod
    def setUpClass(cls):
        cls.addCleanup = cls.addClassCleanup  # the program stops after the class, not after a test
        try:
            cls.server = Server(cls, "--demo")
        finally:
            del cls.addCleanup
        wait_until(lambda: "is reporting" in cls.server.get("/")[1], "the demo node reports")

    def test_values_change_without_reloading(self):
        page = self.open(self.server)
        page.evaluate("window.same = true")
        before = self.values(page)
        self.assertLess({"demo/temperature", "demo/light", "demo/load"}, set(before))
        page.wait_for_function(
            "before => [...document.querySelectorAll('b[data-live]')]"
            ".some(one => one.textContent !== before[one.dataset.live])",
            arg=before,
        )
        expect(page.locator('[data-live="last"]')).to_have_text(re.compile(r"^\d s ago$"))
        self.assertTrue(page.evaluate("window.same"))

    def test_page_has_the_six_buttons_with_accessible_names(self):
        page = self.open(self.server)
        self.assertEqual(page.locator(".buttons button, .buttons a").all_inner_texts(), BUTTONS)
        for name in BUTTONS[:3]:
            expect(page.get_by_role("button", name=f"{name}, demo")).to_be_enabled()

    def test_unchanged_elements_are_not_replaced(self):
        """A button that is replaced while it is pressed would not be activated."""
        page = self.open(self.server)
        buttons = page.locator(".buttons").element_handle()
        cards = page.locator("section.cards").element_handle()
        page.wait_for_function("cards => !cards.isConnected", arg=cards)  # the page has been refreshed
        self.assertTrue(buttons.evaluate("buttons => buttons.isConnected"))

    def test_buttons_turn_sampling_off_and_on(self):
        page = self.open(self.server)
        page.get_by_text("Sensor Off").click()
        expect(page.get_by_role("status")).to_have_text(
            "demo is off: it takes no samples. Its stored samples are still delivered."
        )
        expect(page.locator("p.verdict")).to_contain_text("Switched off")
        page.get_by_role("link", name="Dashboard").click()
        expect(page.locator("h1")).to_contain_text("Node demo is switched off; last sample")
        page.get_by_text("Sensor On").click()
        expect(page.get_by_role("status")).to_have_text("demo is on: it samples.")
        expect(page.locator("p.verdict")).to_contain_text("Reporting")

    def test_status_button_shows_the_reply_of_the_node(self):
        page = self.open(self.server)
        page.get_by_text("Status", exact=True).click()
        expect(page.get_by_role("status")).to_have_text(
            re.compile(
                r"^demo answered: sampling is on, its last sample was sent at \d\d:\d\d:\d\d by its own clock\.$"
            )
        )

    def test_log_check_shows_ten_rows_and_stays_up_to_date(self):
        page = self.open(self.server)
        page.get_by_role("link", name="Log Check").last.click()
        rows = page.locator("table.log tbody tr")
        expect(rows).to_have_count(10)
        expect(rows.first).to_contain_text("temperature")
        expect(rows.first).to_contain_text("°C")
        first = rows.first.inner_text()
        expect(rows.first).not_to_have_text(first)

    def test_log_is_downloaded(self):
        page = self.open(self.server)
        with page.expect_download() as download:
            page.get_by_role("link", name="Log Download").last.click()
        self.assertRegex(download.value.suggested_filename, r"^sensorlog_\d{6}_\d{4}(_\d+)?\.csv$")
        path = os.path.join(temp_folder(self), "log.csv")
        download.value.save_as(path)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        self.assertTrue(text.startswith("time,node,sensor,value,unit\n") and text.endswith("\n"))
        self.assertIn(",demo,temperature,", text)

    def test_charts_are_drawn(self):
        page = self.open(self.server)
        charts = page.locator(".charts img")
        expect(charts).to_have_count(page.locator(".card").count())  # one chart per sensor
        for chart in charts.all():
            chart.scroll_into_view_if_needed()
            page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=chart.element_handle())
        self.expected = ("/favicon.ico",)  # Chromium requests it when an image is opened directly
        page.goto(charts.first.get_attribute("src"))
        colour = page.evaluate("getComputedStyle(document.querySelector('.mean')).stroke")
        self.assertEqual(colour, "rgb(0, 114, 178)")  # the policy of the image allows its style

    def test_buttons_work_with_the_keyboard(self):
        page = self.open(self.server)
        reached = []
        for _ in range(20):
            page.keyboard.press("Tab")
            text, outline = page.evaluate(
                "[document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"
            )
            if text in BUTTONS and page.evaluate("document.activeElement.closest('.buttons') !== null"):
                reached.append(text)
                self.assertEqual(outline, "solid", text)
            if text == "Exit":
                break
        self.assertEqual(reached, BUTTONS)
        page.goto("/")
        while page.evaluate("document.activeElement.textContent") != "Status":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("demo answered")

    def test_pages_fit_a_phone_and_buttons_are_44_pixels_high(self):
        page = self.open(self.server, viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
        for path in ("/", "/nodes/demo", "/log", "/login", "/nothing-here"):
            self.expected = ("404",)
            page.goto(path)
            self.assert_fits(page)
        page.goto("/")
        for name in BUTTONS:
            box = page.locator(".buttons").get_by_text(name, exact=True).bounding_box()
            self.assertGreaterEqual(box["height"], 44, name)  # minimum height of a touch target

    def test_pages_fit_all_window_widths(self):
        for width in (320, 500, 640, 800, 1920):
            page = self.open(self.server, viewport={"width": width, "height": 800})
            self.assert_fits(page)
            page.goto("/nodes/demo")
            self.assert_fits(page)

    def test_page_supports_dark_mode(self):
        colours = {}
        for scheme in ("light", "dark"):
            page = self.open(self.server, color_scheme=scheme, viewport=PHONE)
            self.assert_fits(page)
            colours[scheme] = page.evaluate(
                "['backgroundColor', 'color'].map(key => getComputedStyle(document.body)[key])"
            )
        self.assertEqual(colours["light"], ["rgb(250, 249, 246)", "rgb(28, 31, 34)"])
        self.assertEqual(colours["dark"], ["rgb(22, 24, 26)", "rgb(232, 230, 225)"])

    def test_page_is_complete_without_the_script(self):
        page = self.open(self.server, java_script_enabled=False)
        self.assertEqual(page.locator(".buttons button, .buttons a").all_inner_texts(), BUTTONS)
        expect(page.locator("h1")).to_contain_text("Node demo is reporting; last sample")
        page.get_by_text("Status", exact=True).click()
        expect(page.get_by_role("status")).to_contain_text("demo answered")


class SeparateServer(BrowserCase):
    """Tests that need a separate server."""

    def test_buttons_are_disabled_without_the_key_and_the_page_explains_it(self):
        server = Server(self, "--demo")
        page = self.open(server, with_key=False)
        expect(page.get_by_role("button", name="Sensor Off")).to_be_disabled(timeout=2 * LIMIT_MS)
        expect(page.get_by_role("button", name="Exit")).to_be_disabled()
        expect(page.locator("p.notice")).to_contain_text("Open the address that the server printed when it started")
        self.assert_fits(page)
        page.goto(server.path)  # as a user who opens the printed address
        page.get_by_role("button", name="Sensor Off").click()
        expect(page.get_by_role("status")).to_contain_text("demo is off")
        expect(page.locator("footer")).to_contain_text("Signed in with the one-time key (operator).")

    def test_exit_asks_for_confirmation(self):
        server = Server(self, "--demo")
        page = self.open(server)
        page.get_by_role("button", name="Exit").click()
        expect(page.locator("h1")).to_have_text("Stop this server?")
        page.get_by_text("Cancel").click()
        expect(page.locator("h1.verdict")).to_be_visible()
        page.get_by_role("button", name="Exit").click()
        expect(page.locator("h1")).to_have_text("Stop this server?")
        page.get_by_role("button", name="Exit").click()
        expect(page.locator("h1")).to_have_text("exited")
        expect(page.locator("main")).to_contain_text(re.compile(r"Flushed: .* stored; the log .*\.csv is complete"))
        self.assertEqual(server.wait(), 0, server.logged)

    def test_user_logs_in_and_out_with_a_password(self):
        self.expected = ("403",)  # Chromium logs the status of the wrong password in its console
        data = temp_folder(self)
        self.assertEqual(control(self, "--data", data, "password", said="correct horse\n")[0], 0)
        page = self.open(Server(self, data=data))
        self.assertEqual(urlsplit(page.url).path, "/login")
        self.assert_fits(page)
        page.get_by_label("Password").fill("wrong horse")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("Wrong user name or password.")
        page.get_by_label("Password").fill("correct horse")
        page.keyboard.press("Enter")
        expect(page.locator("footer")).to_contain_text("Signed in as admin (operator).")
        page.get_by_role("button", name="Log out").click()
        expect(page.locator("h1")).to_have_text("Log in")
        page.goto("/log")
        self.assertEqual(urlsplit(page.url).path, "/login")

    def test_page_opened_before_the_node_starts_is_completed(self):
        """Buttons, cards and charts appear automatically when the node starts."""
        place = f"127.0.0.1:{free_port()}"
        often = {"pigeonpost.transports.tcp_server.LONGEST_RETRY_S": 1.0}
        server = Server(self, "--node", f"basement@{place}", constants=often)
        page = self.open(server)
        log = self.open(server, "/log")
        page.evaluate("window.same = true")
        expect(page.get_by_role("button", name="Sensor Off")).to_be_disabled()
        self.assertEqual(page.locator(".card").count(), 0)
        expect(log.locator("main")).to_contain_text("No sample has arrived in this run yet.")
        Node(self, "--listen", place)
        expect(page.get_by_role("button", name="Sensor Off")).to_be_enabled()
        expect(page.locator(".card")).to_have_count(2)
        expect(page.locator(".charts img")).to_have_count(2)
        expect(page.locator("h1")).to_contain_text("Node basement is reporting")
        expect(log.locator("table.log tbody tr")).to_have_count(10)
        self.assertTrue(page.evaluate("window.same"))

    def test_age_of_the_values_grows_while_the_server_is_down(self):
        self.expected = ("ERR_", "Failed to load resource")
        server = Server(self, "--demo")
        page = self.open(server)
        expect(page.locator("h1")).to_contain_text("Node demo is reporting")
        server.terminate()
        server.wait()
        expect(page.locator('[data-live="last"]')).to_have_text(re.compile(r"^([6-9]|\d\d) s ago$"))
        self.assertFalse([error for error in self.wrong if isinstance(error, Error)])


if __name__ == "__main__":
    unittest.main()
