import logging
import unittest
from unittest import mock

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import NotStored, StoreDamaged
from pigeonpost.core.faults import Faults
from pigeonpost.server import damage_check
from pigeonpost.server.damage_check import DATABASE_FAULT, LOGS_FAULT, SHARE_PERCENT, DamageCheck, make_check
from tests.page_support import use_memory_disk
from tests.support import wait_until
from tests.web.support import WebHouse


def setUpModule():
    use_memory_disk()


class FakeStore:
    damage = ""

    def __init__(self, *pieces):
        self.pieces = pieces

    def check_pieces(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class PassTest(unittest.TestCase):
    def setUp(self):
        self.faults = Faults()
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def run_pass(self, store, logs=()):
        self.check = DamageCheck(store, lambda: iter(logs), self.faults, Clock(), lambda text: f"damaged: {text}")
        self.check.run_pass()
        return self.faults.present()

    def test_pass_without_faults_clears_earlier_faults(self):
        self.assertEqual(self.run_pass(FakeStore("", ""), ["", ""]), {})
        self.assertIsNotNone(self.check.checked_ms)

    def test_fault_text_is_short_and_is_cleared_after_the_repair(self):
        found = self.run_pass(FakeStore("", "a", "b", "b", "c", "d"), ["log x"])
        self.assertEqual(found, {DATABASE_FAULT: "damaged: a; b; c; and 1 more", LOGS_FAULT: "log x"})
        self.assertEqual(self.run_pass(FakeStore("")), {})

    def test_damage_that_ends_the_pass_is_a_fault(self):
        self.assertEqual(self.run_pass(FakeStore("", StoreDamaged("malformed"))), {DATABASE_FAULT: "malformed"})
        self.assertIsNotNone(self.check.checked_ms)

    def test_store_that_cannot_be_read_is_checked_later(self):
        self.assertEqual(self.run_pass(FakeStore(NotStored("locked"))), {})
        self.assertIsNone(self.check.checked_ms)

    def test_check_uses_two_percent_of_a_core(self):
        check = DamageCheck(FakeStore(), lambda: iter(()), self.faults, Clock())
        paused = []
        check._stopping = mock.Mock(wait=lambda s: paused.append(s), is_set=lambda: False)
        with mock.patch("time.thread_time", side_effect=[0.0, 0.002, 0.002, 0.005, 0.005, 0.005]):
            self.assertEqual(list(check._paced(iter(["", ""]))), ["", ""])
        self.assertAlmostEqual(sum(paused), 0.005 * (100 / SHARE_PERCENT - 1))
        self.assertAlmostEqual(check.took_s, 0.005)


class DisplayTest(unittest.TestCase):
    def test_time_of_the_last_pass_is_on_the_page_and_in_the_metrics(self):
        house = WebHouse(self)
        check = make_check(house.folder, house.store, house.csv, house.faults, house.app.clock)
        house.web._app = house.web._app._replace(check=check)
        self.assertIn("the first check of this run is not finished", self.get(house, "/about"))
        self.assertNotIn("\npigeonpost_database_checked_timestamp_seconds ", self.get(house, "/metrics"))
        with mock.patch.object(damage_check, "FIRST_S", 0.0):
            check.start()
            self.addCleanup(check.stop, 60.0)
            wait_until(lambda: check.checked_ms, "a pass")
        self.assertRegex(self.get(house, "/about"), "checked +.*: no damage")
        self.assertRegex(self.get(house, "/metrics"), r"\npigeonpost_database_checked_timestamp_seconds 1")
        self.assertIn("\npigeonpost_damage 0\n", self.get(house, "/metrics"))
        with self.assertLogs():
            house.faults.set(DATABASE_FAULT, "a page is damaged")
        self.assertIn("a page is damaged", self.get(house, "/about"))
        text = self.get(house, "/metrics")
        self.assertIn("\npigeonpost_damage 1\n", text)
        self.assertIn('\npigeonpost_fault_of{subject="database"} 1\n', text)

    def get(self, house, path):
        return house.request("GET", path, house.bearer)[2].decode()
