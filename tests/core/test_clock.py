"""Tests of the clock: RFC 3339 times, reliability of the date, and the fake clock."""

import contextlib
import datetime
import threading
import time
import unittest
from unittest import mock

from pigeonpost.core import clock
from pigeonpost.core.clock import Clock, FakeClock, parse_rfc3339, rfc3339

NOW_MS = 1_795_188_970_123


class Dates(unittest.TestCase):
    def test_times_are_written_and_read_in_rfc3339(self):
        for time_ms, text in (
            (NOW_MS, "2026-11-20T15:36:10.123Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_826_154_007, "2000-02-29T12:09:14.007Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ):
            self.assertEqual(rfc3339(time_ms), text)
            self.assertEqual(parse_rfc3339(text), time_ms)

    def test_written_times_agree_with_the_standard_library(self):
        for days in range(-30_000, 30_000, 97):
            time_ms = days * 86_400_000 + 37_777_001 * (days % 3)
            expected = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(milliseconds=time_ms)
            self.assertEqual(rfc3339(time_ms), expected.isoformat(timespec="milliseconds").replace("+00:00", "Z"))

    def test_times_with_offsets_and_fractions_are_read(self):
        for text in (
            "2026-11-20T15:36:10.123Z", "2026-11-20T15:36:10.123999Z", "2026-11-20T16:36:10.123+01:00",
            "2026-11-20T10:06:10.123-05:30", "2026-11-20 15:36:10.123Z", "2026-11-20T15:36:10.123+00:00",
        ):  # fmt: skip
            self.assertEqual(parse_rfc3339(text), NOW_MS, text)
        self.assertEqual(parse_rfc3339("2026-11-20T15:36:10Z"), NOW_MS - 123)

    def test_invalid_times_are_refused(self):
        for text in (
            "",
            "now",
            "2026-11-20T15:36:10.123",
            "2026-11-20",
            "2026-W47-5T15:36:10Z",
            "x" * 60_000,
            "T" * 24,
        ):
            with self.subTest(text[:30]), self.assertRaises(ValueError) as caught:
                parse_rfc3339(text)
            self.assertLess(len(str(caught.exception)), 200)
        for value in (None, 1, [], ["T"] * 24, {str(k): "T" for k in range(24)}, dict(enumerate("T" * 24)), b"2026"):
            with self.subTest(value), self.assertRaises(ValueError):
                parse_rfc3339(value)


class RealClock(unittest.TestCase):
    def test_clock_agrees_with_the_system(self):
        real = Clock()
        self.assertLess(abs(real.wall_ms() - time.time() * 1000), 1000)
        self.assertGreaterEqual(real.up_ms(), int(real.monotonic() * 1000) - 1000)  # BOOTTIME counts sleep too
        self.assertRegex(real.boot_id, "^[0-9a-f]{16}$")
        self.assertEqual(Clock().boot_id, real.boot_id)

    def test_waiting_ends_with_the_event_or_the_time(self):
        event = threading.Event()
        self.assertFalse(Clock().wait(event, -5))
        self.assertFalse(Clock().wait(event, 0.001))
        event.set()
        self.assertTrue(Clock().wait(event, 60))


class Reliability(unittest.TestCase):
    """Tests whether the date counts as reliable on different machines."""

    def is_set(self, *, machine="aarch64", timesyncd=False, battery=None, adjtimex=5, now_ms=NOW_MS):
        """Return the result of Clock.is_set on such a machine.

        `battery` is the content of the battery clock, in seconds.
        """
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            enter(mock.patch.object(clock.os, "uname", lambda: mock.Mock(machine=machine)))
            enter(mock.patch.object(clock.os.path, "exists", lambda path: timesyncd))
            enter(mock.patch.object(Clock, "wall_ms", lambda self: now_ms))
            read = mock.mock_open(read_data=f"{battery}\n") if battery is not None else mock.Mock(side_effect=OSError)
            enter(mock.patch.object(clock, "open", read, create=True))
            enter(mock.patch("ctypes.CDLL", lambda name: mock.Mock(adjtimex=lambda buffer: adjtimex)))
            return Clock().is_set()

    def test_date_is_unreliable_without_a_time_source(self):
        self.assertFalse(self.is_set())
        self.assertFalse(self.is_set(adjtimex=-1))

    def test_date_is_reliable_with_a_time_daemon(self):
        self.assertTrue(self.is_set(timesyncd=True))
        self.assertTrue(self.is_set(adjtimex=0))
        self.assertTrue(self.is_set(adjtimex=1))  # TIME_INS: a leap second is coming

    def test_date_is_reliable_if_a_battery_clock_agrees(self):
        self.assertTrue(self.is_set(battery=NOW_MS // 1000 + 50))
        self.assertFalse(self.is_set(battery=12))
        self.assertFalse(self.is_set(battery="what?"))

    def test_date_is_reliable_on_a_pc(self):
        self.assertTrue(self.is_set(machine="x86_64"))

    def test_date_before_the_release_of_this_program_is_unreliable(self):
        self.assertFalse(self.is_set(machine="x86_64", timesyncd=True, adjtimex=0, now_ms=1_000_000_000_000))

    def test_reliable_date_stays_reliable(self):
        real = Clock()
        with mock.patch.object(clock, "_clock_is_kept", return_value=False) as kept:
            self.assertFalse(real.is_set())
            kept.return_value = True
            self.assertTrue(real.is_set())
            kept.return_value = False
            self.assertTrue(real.is_set())

    def test_adjtimex_of_this_machine_can_be_called(self):
        self.assertIsInstance(clock._kernel_clock_is_synchronised(), bool)


class Fake(unittest.TestCase):
    def test_fake_clock_moves_only_in_sleep(self):
        fake = FakeClock(NOW_MS, 5000)
        self.assertEqual((fake.wall_ms(), fake.up_ms(), fake.monotonic()), (NOW_MS, 5000, 5.0))
        fake.sleep(1.5)
        self.assertEqual((fake.wall_ms(), fake.up_ms(), fake.monotonic()), (NOW_MS + 1500, 6500, 6.5))

    def test_step_changes_the_date_but_not_the_uptime(self):
        fake = FakeClock(NOW_MS, 5000)
        fake.step(-86_400)
        self.assertEqual((fake.wall_ms(), fake.up_ms(), fake.monotonic()), (NOW_MS - 86_400_000, 5000, 5.0))

    def test_waiting_moves_the_fake_clock(self):
        fake, event = FakeClock(NOW_MS, 5000), threading.Event()
        self.assertFalse(fake.wait(event, 2))
        self.assertFalse(fake.wait(event, -2))
        self.assertEqual(fake.up_ms(), 7000)
        event.set()
        self.assertTrue(fake.wait(event, 2))
        self.assertEqual(fake.up_ms(), 7000)


if __name__ == "__main__":
    unittest.main()
