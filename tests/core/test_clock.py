"""What time it is, and how sure of it we are."""

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
    def test_written(self):
        for time_ms, text in (
            (NOW_MS, "2026-11-20T15:36:10.123Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_826_154_007, "2000-02-29T12:09:14.007Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ):
            self.assertEqual(rfc3339(time_ms), text)
            self.assertEqual(parse_rfc3339(text), time_ms)

    def test_agrees_with_the_standard_library(self):
        for days in range(-30_000, 30_000, 97):
            time_ms = days * 86_400_000 + 37_777_001 * (days % 3)
            expected = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(milliseconds=time_ms)
            self.assertEqual(rfc3339(time_ms), expected.isoformat(timespec="milliseconds").replace("+00:00", "Z"))

    def test_read(self):
        for text in (
            "2026-11-20T15:36:10.123Z", "2026-11-20T15:36:10.123999Z", "2026-11-20T16:36:10.123+01:00",
            "2026-11-20T10:06:10.123-05:30", "2026-11-20 15:36:10.123Z", "2026-11-20T15:36:10.123+00:00",
        ):  # fmt: skip
            self.assertEqual(parse_rfc3339(text), NOW_MS, text)
        self.assertEqual(parse_rfc3339("2026-11-20T15:36:10Z"), NOW_MS - 123)

    def test_what_is_no_date(self):
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


class Real(unittest.TestCase):
    def test_it_tells_the_time(self):
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


class Set(unittest.TestCase):
    """Whether the date can be believed."""

    def believes(self, *, machine="aarch64", timesyncd=False, battery=None, adjtimex=5, now_ms=NOW_MS):
        """What a Clock says on such a machine; `battery` is what rtc0 reads, in seconds."""
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            enter(mock.patch.object(clock.os, "uname", lambda: mock.Mock(machine=machine)))
            enter(mock.patch.object(clock.os.path, "exists", lambda path: timesyncd))
            enter(mock.patch.object(Clock, "wall_ms", lambda self: now_ms))
            read = mock.mock_open(read_data=f"{battery}\n") if battery is not None else mock.Mock(side_effect=OSError)
            enter(mock.patch.object(clock, "open", read, create=True))
            enter(mock.patch("ctypes.CDLL", lambda name: mock.Mock(adjtimex=lambda buffer: adjtimex)))
            return Clock().is_set()

    def test_nobody_keeps_it(self):
        self.assertFalse(self.believes())
        self.assertFalse(self.believes(adjtimex=-1))

    def test_a_time_daemon_keeps_it(self):
        self.assertTrue(self.believes(timesyncd=True))
        self.assertTrue(self.believes(adjtimex=0))
        self.assertTrue(self.believes(adjtimex=1))  # TIME_INS: a leap second is coming

    def test_a_battery_keeps_it_when_it_agrees(self):
        self.assertTrue(self.believes(battery=NOW_MS // 1000 + 50))
        self.assertFalse(self.believes(battery=12))
        self.assertFalse(self.believes(battery="what?"))

    def test_a_pc_keeps_it(self):
        self.assertTrue(self.believes(machine="x86_64"))

    def test_a_date_before_this_program_was_written_is_wrong_whoever_vouches_for_it(self):
        self.assertFalse(self.believes(machine="x86_64", timesyncd=True, adjtimex=0, now_ms=1_000_000_000_000))

    def test_once_believed_always_believed(self):
        real = Clock()
        with mock.patch.object(clock, "_clock_is_kept", return_value=False) as kept:
            self.assertFalse(real.is_set())
            kept.return_value = True
            self.assertTrue(real.is_set())
            kept.return_value = False
            self.assertTrue(real.is_set())

    def test_adjtimex_is_asked_as_it_is(self):
        self.assertIsInstance(clock._kernel_says_synchronised(), bool)


class Fake(unittest.TestCase):
    def test_it_moves_only_when_told(self):
        fake = FakeClock(NOW_MS, 5000)
        self.assertEqual((fake.wall_ms(), fake.up_ms(), fake.monotonic()), (NOW_MS, 5000, 5.0))
        fake.sleep(1.5)
        self.assertEqual((fake.wall_ms(), fake.up_ms(), fake.monotonic()), (NOW_MS + 1500, 6500, 6.5))

    def test_a_stepped_date_is_no_time_that_passed(self):
        fake = FakeClock(NOW_MS, 5000)
        fake.step(-86_400)
        self.assertEqual((fake.wall_ms(), fake.up_ms(), fake.monotonic()), (NOW_MS - 86_400_000, 5000, 5.0))

    def test_waiting_lets_the_time_pass(self):
        fake, event = FakeClock(NOW_MS, 5000), threading.Event()
        self.assertFalse(fake.wait(event, 2))
        self.assertFalse(fake.wait(event, -2))
        self.assertEqual(fake.up_ms(), 7000)
        event.set()
        self.assertTrue(fake.wait(event, 2))
        self.assertEqual(fake.up_ms(), 7000)


if __name__ == "__main__":
    unittest.main()
