"""Screenshots of the manual, drawn by docs/pictures/make.py into a temporary folder."""

import os
import struct
import unittest

from docs.pictures import make
from tests.browser import test_page
from tests.page_support import set_zone
from tests.support import ROOT, temp_folder

PICTURE_BYTES = 150_000


def setUpModule():
    test_page.setUpModule()


def size_of(path):
    """Return width and height of a PNG file (PNG specification, 11.2.2: IHDR)."""
    with open(path, "rb") as file:
        head = file.read(24)
    assert head.startswith(b"\x89PNG\r\n\x1a\n"), path
    return struct.unpack(">II", head[16:])


class Pictures(unittest.TestCase):
    def test_each_screenshot_has_the_size_of_the_one_in_the_manual(self):
        set_zone(self, "UTC")
        folder, manual = temp_folder(self), os.path.join(ROOT, "docs", "pictures")
        make.draw(folder, test_page.browser)
        self.assertEqual(sorted(os.listdir(folder)), sorted(make.PICTURES))
        self.assertEqual(sorted(name for name in os.listdir(manual) if name.endswith(".png")), sorted(make.PICTURES))
        for name in make.PICTURES:
            path = os.path.join(folder, name)
            self.assertEqual(size_of(path), size_of(os.path.join(manual, name)), name)
            self.assertLess(os.path.getsize(path), PICTURE_BYTES, name)

    def test_page_of_the_screenshots_shows_a_day_of_the_demo_node(self):
        set_zone(self, "UTC")
        with make.served() as address:
            page = test_page.browser.new_page()
            self.addCleanup(page.close)
            page.clock.set_fixed_time(make.NOW_MS / 1000)
            page.goto(address)
            self.assertEqual(page.locator("h1").inner_text(), "Node demo is reporting; last sample 1 s ago.")
            self.assertEqual(page.locator(".card").count(), len(make.UNITS))
            self.assertEqual(page.locator(".charts img").count(), len(make.UNITS))


if __name__ == "__main__":
    unittest.main()
