"""Help page, manual, menu of all pages, and the displayed time zone."""

import os
import re
import unittest
from unittest import mock

from pigeonpost.core.format import zone_name
from pigeonpost.views import about, manual
from tests.page_support import set_zone, use_memory_disk
from tests.support import WALL_MS, temp_folder
from tests.web.support import FakeLink, WebHouse

SUMMER_MS = WALL_MS - 120 * 86_400_000


def setUpModule():
    use_memory_disk()


class HelpCase(unittest.TestCase):
    def setUp(self):
        self.web = WebHouse(self, links=[FakeLink("basement", {"temperature": "°C"})])

    def get(self, path, status=200, html=True):
        found, _, body = self.web.request("GET", path, self.web.browser, html=html)
        self.assertEqual(found, status, body[:300])
        return body.decode()


class Help(HelpCase):
    def test_help_explains_buttons_terms_and_next_steps(self):
        page = self.get("/help")
        backup = f"python3 control.py --data {self.web.folder} backup FILE"
        for text in ("Sensor On, Sensor Off", "<th>outbox</th>", "python3 node.py --name NAME", backup, "tutorial.md"):
            self.assertIn(text, page)
        text = self.get("/help", html=False)
        for part in ("BUTTONS", "  Exit  ", "ADD A NODE", "/help/tutorial.md"):
            self.assertIn(part, text)
        self.assertLessEqual(max(map(len, text.splitlines()[:25])), 79)

    def test_page_of_the_manual_is_html_for_browsers_and_markdown_for_terminals(self):
        page = self.get("/help/tutorial.md")
        self.assertRegex(page, r"<article class=\"manual\"><h1 id=")
        self.assertRegex(page, r'<a href="/help/[a-z-]+\.md(#[a-z-]+)?">')
        with open(os.path.join(manual.FOLDER, "tutorial.md"), encoding="utf-8") as file:
            self.assertEqual(self.get("/help/tutorial.md", html=False), file.read())

    def test_links_to_headings_of_the_manual_are_valid(self):
        places = set(re.findall(r' id="([^"]+)"', self.get("/help/web.md")))
        for name in manual.pages():
            for place in re.findall(r'href="/help/web\.md#([^"]+)"', self.get(f"/help/{name}")):
                self.assertIn(place, places, name)

    def test_no_path_leads_out_of_the_manual(self):
        for name in ("..", "settings.py", "tutorial", ".", "README.md.."):
            self.get(f"/help/{name}", 404)

    def test_help_works_without_the_manual(self):
        """A .pyz file does not contain the manual."""
        with mock.patch.object(manual, "FOLDER", os.path.join(temp_folder(self), "none")):
            self.assertIn("in the folder <code>docs</code>", self.get("/help"))
            self.assertNotIn("MANUAL", self.get("/help", html=False))
            self.get("/help/tutorial.md", 404)


class Menu(HelpCase):
    PAGES = ("/", "/graphs", "/logs", "/files", "/alerts", "/gaps", "/happenings", "/settings", "/about", "/help")

    def test_menu_of_every_page_lists_all_pages_and_marks_the_current_one(self):
        for path in self.PAGES:
            nav = re.search(r'<nav aria-label="Pages">(.*?)</nav>', self.get(path))[1]
            self.assertEqual(re.findall(r'href="([^"]+)"', nav), list(self.PAGES))
            self.assertEqual(re.findall(r'href="([^"]+)" aria-current="page"', nav), [path])

    def test_subpages_mark_their_parent_in_the_menu(self):
        for path, part in (
            ("/log", "/logs"),
            ("/password", "/about"),
            ("/chart?node=basement&sensor=temperature", "/graphs"),
        ):
            self.assertIn(f'href="{part}" aria-current="page"', self.get(path))
        self.assertNotIn('aria-current="page"', self.get("/nodes/basement"))

    def test_login_page_has_no_menu(self):
        self.web.users.set_password("admin", "correct horse")
        self.assertNotIn("<nav", self.web.request("GET", "/login", html=True)[2].decode())


class TimeZone(HelpCase):
    def test_zone_is_shown_with_its_offset(self):
        for zone, time_ms, expected in (
            ("Europe/Vienna", WALL_MS, "Europe/Vienna (UTC+1)"), ("Europe/Vienna", SUMMER_MS, "Europe/Vienna (UTC+2)"),
            ("Asia/Kolkata", WALL_MS, "Asia/Kolkata (UTC+5:30)"),
            ("America/St_Johns", WALL_MS, "America/St_Johns (UTC−3:30)"),
            ("UTC", WALL_MS, "UTC"), ("Etc/UTC", WALL_MS, "UTC"), ("", WALL_MS, "UTC"),
            (":Europe/Vienna", WALL_MS, "Europe/Vienna (UTC+1)"), ("CET-1CEST", WALL_MS, "CET-1CEST (UTC+1)"),
        ):  # fmt: skip
            set_zone(self, zone)
            self.assertEqual(zone_name(time_ms), expected)

    def test_unknown_zone_is_shown_as_utc_with_the_reason(self):
        """In a container without tzdata, times are in UTC and the system reports no error."""
        set_zone(self, "Europe/Viena")
        self.assertEqual(zone_name(WALL_MS), "UTC (TZ=Europe/Viena is not known to this system)")

    def test_zone_of_the_system_is_used_without_tz(self):
        set_zone(self, "UTC")
        with mock.patch.dict(os.environ), mock.patch("os.path.realpath", return_value="/usr/share/zoneinfo/Asia/Tokyo"):
            del os.environ["TZ"]
            self.assertEqual(zone_name(WALL_MS), "Asia/Tokyo (UTC)")  # tzset() was not called

    def test_about_page_shows_the_zone(self):
        set_zone(self, "Asia/Kolkata")
        self.assertIn("<th>time zone</th><td>Asia/Kolkata (UTC+5:30)</td>", self.get("/about"))

    def test_about_page_in_a_container_without_tz_explains_how_to_set_it(self):
        with mock.patch.object(about, "in_container", return_value=True), mock.patch.dict(os.environ):
            os.environ.pop("TZ", None)
            self.assertIn("To change it, set TZ, for example TZ=Europe/Vienna", self.get("/about"))
            os.environ["TZ"] = "UTC"
            self.assertNotIn("set TZ", self.get("/about"))


if __name__ == "__main__":
    unittest.main()
