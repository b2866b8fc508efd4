"""Charts in Chromium: values under the pointer, range selection, saved graphs; phone, dark mode and print."""

import json
import re
import unittest
from urllib.parse import parse_qs, urlsplit

from tests.browser import test_page
from tests.browser.test_page import LIMIT_MS, PHONE, BrowserCase
from tests.page_support import Server, control
from tests.support import temp_folder, wait_until

try:
    from playwright.sync_api import expect
except ImportError:
    expect = None

SERIES = "demo/temperature,demo/light"


def setUpModule():
    test_page.setUpModule()


class ChartCase(BrowserCase):
    @classmethod
    def setUpClass(cls):
        cls.addCleanup = cls.addClassCleanup  # the program stops after the class, not after a test
        try:
            cls.server = cls.make_server()
        finally:
            del cls.addCleanup

    @classmethod
    def make_server(cls):
        server = Server(cls, "--demo")
        wait_until(lambda: json.loads(server.get("/api/v1/nodes/demo")[1]).get("samples", 0) > 12, "some samples", 60)
        return server

    def chart(self, query=f"series={SERIES}&span=10m", **options):
        """Open a chart page, wait until its image is drawn, and return the page."""
        page = self.open(self.server, f"/chart?{query}", **options)
        page.wait_for_function(
            "() => { const i = document.querySelector('.plot img'); return i.complete && i.naturalWidth }"
        )
        return page

    def place(self, page, part):
        """Return the window position (x, y) at a fraction of the chart's width."""
        box = page.locator(".plot").bounding_box()
        return box["x"] + part * box["width"], box["y"] + box["height"] / 2


class Charts(ChartCase):
    def test_pointer_shows_time_and_values(self):
        page = self.chart()
        told = page.locator("output.readout")
        expect(told).to_contain_text("Move the pointer over the chart")
        page.mouse.move(*self.place(page, 0.4))
        expect(told).to_contain_text("temperature of demo: no value")
        expect(page.locator(".hair")).to_be_visible()
        frame = page.evaluate(
            "fetch('/chart.json' + new URL(document.querySelector('.plot img').currentSrc).search).then(a => a.json())"
        )
        plot = frame["plot"]
        last = max(column["place"] for column in frame["series"][0]["columns"])
        x = (plot["left"] + (last + 0.5) * (plot["right"] - plot["left"]) / len(frame["times"])) / plot["width"]
        page.mouse.move(*self.place(page, x))
        expect(told).to_have_text(
            re.compile(r"\d\d:\d\d:\d\d.*temperature of demo: [\d.]+ °C.*light of demo: [\d.,]+ counts")
        )
        page.mouse.move(5, 5)
        expect(page.locator(".hair")).to_be_hidden()

    def test_browser_in_another_zone_shows_the_time_of_the_server(self):
        fixed = "from=2026-11-20T10:00:00Z&to=2026-11-20T12:00:00Z"  # so that the chart does not move on
        page = self.chart(f"series={SERIES}&{fixed}", timezone_id="Pacific/Auckland")
        frame = page.evaluate(
            "fetch('/chart.json' + new URL(document.querySelector('.plot img').currentSrc).search + '&units=shown')"
            ".then(a => a.json())"
        )
        page.mouse.move(*self.place(page, 0.5))
        told = page.locator("output.readout b")
        expect(told).to_have_text(re.compile(r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d$"))
        self.assertIn(told.text_content(), frame["shown_times"])
        shown = page.evaluate("new Date().getTimezoneOffset()")
        self.assertIn(shown, (-720, -780))  # the browser is really in another zone
        expect(page.locator("footer")).to_contain_text("Time zone: ")

    def test_dragging_selects_a_time_range(self):
        page = self.chart()
        page.mouse.move(*self.place(page, 0.3))
        page.mouse.down()
        expect(page.locator(".hair")).to_be_visible()
        page.mouse.move(*self.place(page, 0.5), steps=5)
        expect(page.locator(".chosen-span")).to_be_visible()
        page.mouse.up()
        page.wait_for_url("**/chart?*from=*")
        query = parse_qs(urlsplit(page.url).query)
        self.assertEqual(query["series"], [SERIES])
        begin, end = (page.evaluate("text => Date.parse(text)", query[key][0]) for key in ("from", "to"))
        self.assertTrue(60_000 < end - begin < 300_000, query)  # a fifth of the width; the whole width is ten minutes
        expect(page.get_by_role("link", name="Zoom out")).to_be_visible()

    def test_click_does_not_select_a_range(self):
        page = self.chart()
        page.mouse.click(*self.place(page, 0.4))
        expect(page.locator(".hair")).to_be_visible()
        self.assertNotIn("from=", page.url)

    def test_keyboard_shows_values_and_selects_a_range(self):
        page = self.chart()
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('.plot')"):
                break
        self.assertEqual(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"), "solid")
        told = page.locator("output.readout")
        page.keyboard.press("End")
        expect(told).to_contain_text("temperature of demo:")
        first = told.inner_text()
        page.keyboard.press("PageUp")
        expect(told).not_to_have_text(first)
        for _ in range(3):
            page.keyboard.press("Shift+PageUp")
        expect(page.locator(".chosen-span")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator(".chosen-span")).to_be_hidden()
        page.keyboard.press("Home")
        page.keyboard.press("Shift+PageDown")
        expect(page.locator(".chosen-span")).to_be_visible()
        page.keyboard.press("Enter")
        page.wait_for_url("**/chart?*from=*")

    def test_page_of_a_current_range_is_updated(self):
        page = self.chart("series=demo/light&span=10m")  # the temperature may stay the same for a minute
        rows = page.locator('[data-piece="numbers"]')
        snapshot, before = page.locator(".plot img").get_attribute("src"), rows.text_content()
        expect(rows).not_to_have_text(before)
        expect(page.locator(".plot img")).not_to_have_attribute("src", snapshot)
        expect(page.locator(".plot")).to_be_visible()

    def test_time_range_can_be_selected_without_the_script(self):
        page = self.open(self.server, f"/chart?series={SERIES}&span=1h", java_script_enabled=False)
        page.get_by_label("From").fill("2026-11-01T12:00")
        page.get_by_label("to", exact=True).fill("2026-11-01T14:00")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_label("From")).to_have_value("2026-11-01T12:00")
        page.get_by_role("link", name="Earlier").click()
        expect(page.get_by_label("From")).to_have_value("2026-11-01T10:00")
        page.get_by_role("link", name="hour", exact=True).click()
        page.get_by_text("Add or remove a series").click()
        page.get_by_role("link", name="– light of demo").click()
        expect(page.locator("h1")).to_have_text("temperature of demo")

    def test_graphs_are_saved_renamed_shared_and_deleted(self):
        page = self.chart()
        page.get_by_label("Name").fill("My <b>graph</b>")
        page.get_by_role("button", name="Save graph").click()
        expect(page.locator("h1")).to_have_text("Saved graphs")
        page.get_by_label("New name of My <b>graph</b>").fill("Greenhouse")
        page.get_by_role("button", name="Rename").click()
        page.get_by_role("button", name="Share, Greenhouse").click()
        expect(page.locator("code")).to_have_text(re.compile(r"^/graphs/[0-9a-f]{16}$"))
        page.get_by_role("button", name="Stop sharing, Greenhouse").click()
        page.get_by_role("link", name="Greenhouse").click()
        expect(page.locator("h1")).to_have_text("temperature and light of demo")
        page.get_by_role("link", name="Saved graphs").click()
        page.get_by_role("button", name="Delete, Greenhouse").click()
        expect(page.locator("main")).to_contain_text("You have not saved any graphs yet.")

    def test_links_lead_from_a_card_to_its_sensor_and_chart(self):
        page = self.open(self.server)
        page.locator(".card", has_text="temperature").first.click()
        expect(page.locator("h1")).to_have_text("temperature of demo")
        expect(page.locator("table.figures tbody tr")).to_have_count(4)
        value = page.locator(".now b")
        value.evaluate("place => place.textContent = 'before'")  # the value itself may stay the same for a minute
        expect(value).not_to_have_text("before")
        page.get_by_role("link", name="Zoom in").click()
        expect(page.get_by_label("From")).to_be_visible()
        page.goto("/")
        page.locator(".charts a:has(img)").first.click()
        page.wait_for_url("**/chart?series=demo/**")

    def test_pages_with_charts_fit_the_window(self):
        page = self.chart()
        page.get_by_label("Name").fill("W" * 60)
        page.get_by_role("button", name="Save graph").click()
        page.get_by_role("button", name="Share").click()
        for options in ({"viewport": PHONE, "is_mobile": True}, {"viewport": {"width": 800, "height": 600}}):
            page = self.open(self.server, f"/chart?series={SERIES}&span=24h", **options)
            page.locator("summary").first.click()
            self.assert_fits(page)
            for path in ("/nodes/demo/temperature", "/graphs", "/nodes/demo/memory_free"):
                page.goto(path)
                self.assert_fits(page)
        page.goto("/graphs")
        page.get_by_role("button", name="Delete").click()
        expect(page.locator("main")).to_contain_text("You have not saved any graphs yet.")

    def test_phone_gets_the_small_chart(self):
        page = self.chart(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
        self.assertIn("size=small", page.evaluate("document.querySelector('.plot img').currentSrc"))
        page.touchscreen.tap(*self.place(page, 0.4))
        expect(page.locator("output.readout")).to_contain_text("temperature of demo:")

    def test_page_supports_dark_mode_and_printing(self):
        page = self.chart(color_scheme="dark")
        self.assertEqual(
            page.evaluate("getComputedStyle(document.querySelector('.fields input')).backgroundColor"),
            "rgb(30, 33, 36)",
        )
        page.emulate_media(media="print", color_scheme="light")
        for hidden in (".fields", ".spans", "output.readout"):
            expect(page.locator(hidden).first).to_be_hidden()
        expect(page.locator("table.figures")).to_be_visible()


class TwoUsers(ChartCase):
    @classmethod
    def make_server(cls):
        data = temp_folder(cls)
        for user, word in (("admin", "correct horse"), ("guest", "battery staple")):
            assert control(cls, "--data", data, "password", user, said=f"{word}\n")[0] == 0
        return Server(cls, "--demo", data=data)

    def log_in(self, user, word):
        page = self.open(self.server, "/login")
        page.get_by_label("User").fill(user)
        page.get_by_label("Password").fill(word)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("footer")).to_contain_text(f"Signed in as {user}")
        return page

    def test_shared_graph_can_be_opened_by_another_user(self):
        page = self.log_in("admin", "correct horse")
        expect(page.locator(".card").first).to_be_visible(timeout=2 * LIMIT_MS)
        page.goto(f"/chart?series={SERIES}&span=1h")
        page.get_by_label("Name").fill("For all")
        page.get_by_role("button", name="Save graph").click()
        page.get_by_role("button", name="Share, For all").click()
        address = page.locator("code").inner_text()
        other = self.log_in("guest", "battery staple")
        other.goto(address)
        expect(other.locator("h1")).to_have_text("temperature and light of demo")
        other.goto("/graphs")
        expect(other.locator("main")).to_contain_text("For all, by admin")
        self.assertEqual(other.get_by_role("button", name="Delete").count(), 0)


if __name__ == "__main__":
    unittest.main()
