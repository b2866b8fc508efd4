"""Tests of kind = "counter" without hardware: durable totals, rates, faults of the line and of the disk."""

import contextlib
import errno
import itertools
import os
import random
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors import counter, counter_file
from pigeonpost.sensors.contract import Channel, WithRaw, with_limits
from pigeonpost.sensors.counter_file import SLOT_BYTES, CounterFile, CounterState
from tests.sensors.fake_gpio import FakeGpio
from tests.sensors.test_contract import Contract
from tests.support import temp_folder

TOTAL = {"rain": {"unit": "mm"}}


class CounterCase(unittest.TestCase):
    def setUp(self):
        self.gpio = FakeGpio(self)
        self.data = temp_folder(self)
        self.now_s = 100.0
        for name in ("fsync", "fdatasync"):  # a real sync takes as long as the whole test
            patch = mock.patch.object(os, name, lambda fd: None)
            patch.start()
            self.addCleanup(patch.stop)

    def source(self, channels=TOTAL, gpio=None, **options):
        """Return a source that is started, but without its thread."""
        gpio = gpio or self.gpio
        read = counter.read_tables({"line": 17, "save": 3600, "channels": channels, **options}, "here")
        made = counter.CounterSource(*read, gpio.root, gpio.ioctl, lambda: self.now_s)
        made._thread = mock.Mock(is_alive=lambda: False)
        self.addCleanup(made.close)
        made.start(self.data)
        return made

    def path(self, name="rain"):
        return os.path.join(self.data, "counters", name)


class Kind(Contract, CounterCase):
    module = counter

    def make(self):
        channels = {"rain": {"unit": "mm"}, "lost": {"value": "missed"}}
        return self.source(channels, scale=0.2794)

    def make_broken(self):
        return self.source(gpio=FakeGpio(self, ["other"]))


class Totals(CounterCase):
    def test_total_is_the_number_of_pulses_times_the_scale(self):
        for name, scale, pulses, total in (
            ("a", 1.0, 3, 3), ("b", 0.2794, 3, 0.8382), ("c", 0.001, 1234, 1.234), ("d", 10, 2, 20),
            ("e", 1e-6, 7, 7e-6),
        ):  # fmt: skip
            gpio = FakeGpio(self)
            source = self.source({name: {}}, gpio, scale=scale)
            self.assertEqual(source.read(), {name: 0})
            gpio.pulse(pulses)
            self.assertEqual(source.read(), {name: total})
            self.assertEqual(source.read(), {name: total})

    def test_pulses_without_records_are_counted_and_shown(self):
        source = self.source({"rain": {}, "lost": {"value": "missed"}})
        source.read()
        self.gpio.pulse(dropped=5)
        with self.assertLogs("pigeonpost.sensors.counter", "WARNING") as logs:
            self.assertEqual(source.read(), {"rain": 6, "lost": 5})
        self.assertIn("rain: the records of 5 pulses were missed, because they were not read in time", logs.output[0])
        self.gpio.pulse(dropped=1)
        with self.assertNoLogs("pigeonpost.sensors.counter", "WARNING"):
            self.assertEqual(source.read(), {"rain": 8, "lost": 6})

    def test_start_sets_the_total_once(self):
        source = self.source(start=12345.6, scale=0.1)
        self.assertEqual(source.read(), {"rain": 12345.6})
        self.gpio.pulse(2)
        self.assertEqual(source.read(), {"rain": 12345.8})
        source.close()
        for start, total in ((12345.6, 12345.8), (None, 12345.8), (12345.6, 12345.8), (500, 500), (500, 500), (0, 0)):
            source = self.source(scale=0.1, **({} if start is None else {"start": start}))
            self.assertEqual(source.read(), {"rain": total})
            source.close()

    def test_log_contains_totals_with_all_digits(self):
        for options, words in (
            ({"start": 4711304.25}, "rain: a new total begins at 4711304.25"),
            ({}, "rain: the total continues at 4711304.25"),
            ({"start": 81234567.8}, "the total is set to start = 81234567.8; it was 4711304.25"),
            ({"start": -0.001}, "the total is set to start = -0.001; it was 81234567.8"),
            ({"scale": 0.1}, "the total continues at -0.001"),
        ):
            with self.subTest(words), self.assertLogs("pigeonpost.sensors.counter", "INFO") as logs:
                source = self.source(**options)
                source.read()
                source.close()
            self.assertIn(words, logs.output[0])

    def test_changed_scale_applies_to_new_pulses_only(self):
        for scale, total in ((0.5, 1.0), (0.25, 1.5), (0.25, 2.0), (2, 6.0)):
            source = self.source(scale=scale)
            source.read()
            self.gpio.pulse(2)
            self.assertEqual(source.read(), {"rain": total})
            source.close()

    def test_total_continues_on_another_line(self):
        source = self.source()
        source.read()
        self.gpio.pulse(4)
        source.close()
        self.assertEqual(self.source(line=5).read(), {"rain": 4})

    def test_total_with_a_calibration_has_a_raw_channel(self):
        table = {"line": 17, "channels": {"rain": {"gain": 2, "raw": True, "unit": "mm"}}}
        made = with_limits(table, "here", lambda plain: self.source(plain["channels"], line=plain["line"]))
        self.assertEqual(made.channels, [Channel("rain", "mm", is_total=True), Channel("rain_raw", "")])
        made.read()
        self.gpio.pulse(3)
        self.assertEqual(made.read(), {"rain": 6, "rain_raw": 3})

    def test_source_with_a_raw_channel_is_started(self):
        source = mock.Mock(channels=[Channel("rain", "")])
        WithRaw(source, {}).start("folder")
        source.start.assert_called_once_with("folder")


class Rates(CounterCase):
    def test_rate_is_that_since_the_previous_reading(self):
        source = self.source({"wind": {"value": "rate"}}, scale=0.5)
        self.assertEqual(str(source.read()["wind"]), "a rate needs two readings")
        for seconds, pulses, rate in ((10, 20, 1.0), (5, 0, 0), (0.5, 1, 1.0), (2, 8, 2.0), (1000, 1, 0.0005)):
            self.now_s += seconds
            self.gpio.pulse(pulses)
            self.assertEqual(source.read(), {"wind": rate})

    def test_rate_per_hour_is_averaged_over_a_time(self):
        source = self.source({"power": {"value": "rate", "per": 3600, "over": 60}}, scale=0.001)  # kWh, 1000 per kWh
        source.read()
        for _ in range(20):
            self.now_s += 10
            self.gpio.pulse(1)
            reading = source.read()["power"]
        self.assertEqual(reading, 0.36)  # 6 pulses in 60 s
        for _ in range(6):
            self.now_s += 10
            reading = source.read()["power"]
        self.assertEqual(reading, 0)

    def test_counter_without_a_total_writes_no_file(self):
        source = self.source({"wind": {"value": "rate"}, "lost": {"value": "missed"}})
        for _ in range(2):
            source.read()
            self.gpio.pulse(3)
        source.close()
        self.assertEqual(os.listdir(self.data), [])

    def test_window_of_a_rate_stays_small(self):
        window = counter.RateWindow(60)
        for count in range(20_000):
            now_s = count * 0.01
            if count:
                self.assertAlmostEqual(window.update(now_s, count), 100)
            else:
                self.assertRaises(SensorError, window.update, now_s, count)
        self.assertLess(len(window._points), 300)

    def test_reading_without_new_time_has_no_rate(self):
        source = self.source({"wind": {"value": "rate"}})
        for _ in range(2):
            self.assertIsInstance(source.read()["wind"], SensorError)


class LineFaults(CounterCase):
    def test_removed_chip_is_requested_again_without_losing_the_total(self):
        source = self.source({"rain": {}, "rate": {"value": "rate"}})
        source.read()
        self.gpio.pulse(3)
        self.gpio.remove()
        with self.assertRaisesRegex(SensorError, "GPIO 17: the GPIO chip sends no more events"):
            source.read()
        self.now_s += 10
        self.assertEqual(source.read()["rain"], 3)
        self.gpio.pulse(2)
        self.now_s += 10
        self.assertEqual(source.read(), {"rain": 5, "rate": 0.2})

    def test_pulses_before_a_failure_of_the_line_are_saved_at_the_end(self):
        source = self.source()
        source.read()
        self.gpio.pulse(3)
        self.gpio.remove()
        self.gpio.fault = errno.EBUSY
        for _ in range(2):
            with self.assertRaises(SensorError):
                source.read()
        source.close()
        self.assertEqual(CounterFile(self.path()).load().total, 3)

    def test_busy_line_is_requested_again_at_each_reading(self):
        self.gpio.fault = errno.EBUSY
        source = self.source()
        for _ in range(2):
            with self.assertRaisesRegex(SensorError, "^GPIO 17 of .* is used by 'another program'"):
                source.read()
        self.gpio.fault = 0
        self.assertEqual(source.read(), {"rain": 0})
        self.assertEqual(len(self.gpio.requests), 3)

    def test_source_that_was_not_started_counts_nothing(self):
        source = counter.make({"line": 17, "channels": TOTAL}, "here")
        with self.assertRaisesRegex(SensorError, "only while the node runs"):
            source.read()
        source.close()


class Durability(CounterCase):
    """No reported total is lost or reported again for other pulses, whenever the program or the machine ends."""

    def crash(self, source):
        """End a source as by kill -9: nothing is written any more, and the kernel releases the line."""
        source._release()
        source._line = source._file = None

    def test_total_is_on_the_disk_before_it_is_reported(self):
        for pulses in (1, 2, 5, 0, 7):
            source = self.source()
            source.read()
            self.gpio.pulse(pulses)
            reported = source.read()["rain"]
            self.assertEqual(CounterFile(self.path()).load().total, reported)
            self.gpio.pulse(3)  # lost: neither read nor saved
            self.crash(source)
            source = self.source()
            self.assertEqual(source.read()["rain"], reported)
            source.close()

    def test_clean_end_saves_the_last_pulses(self):
        source = self.source()
        source.read()
        self.gpio.pulse(3)
        source.close()
        source.close()
        self.assertEqual(self.source().read(), {"rain": 3})

    def test_disk_that_does_not_answer_does_not_prevent_the_end(self):
        source = self.source()
        source.read()
        with source._lock, mock.patch.object(counter, "_STOP_S", 0.01):
            source.close()
        source.close()

    def test_total_that_cannot_be_stored_is_not_reported(self):
        source = self.source()
        source.read()
        for name in ("pwrite", "fdatasync"):
            self.gpio.pulse(2)
            with (
                mock.patch.object(os, name, side_effect=OSError(errno.EIO, "Input/output error")),
                self.assertRaisesRegex(SensorError, "counters/rain: Input/output error"),
            ):
                source.read()
        self.assertEqual(source.read(), {"rain": 4})

    def test_full_disk_at_the_first_start_loses_no_pulse(self):
        source = self.source()
        with (
            mock.patch.object(os, "fsync", side_effect=OSError(errno.ENOSPC, "No space left on device")),
            self.assertRaisesRegex(SensorError, "No space left on device"),
        ):
            source.read()
        self.gpio.pulse(2)
        self.assertEqual(source.read(), {"rain": 2})

    def test_file_that_cannot_be_used_at_the_start_loses_no_pulse(self):
        source = self.source()
        source.read()
        source.close()
        read_only = OSError(errno.EROFS, "Read-only file system")
        for name, made in (("pwrite", 3), ("fdatasync", 6)):
            source = self.source()
            with self.subTest(name), mock.patch.object(os, name, side_effect=read_only):
                with self.assertRaisesRegex(SensorError, "rain: Read-only file system"):
                    source.read()
                self.gpio.pulse(1)
                with self.assertRaisesRegex(SensorError, "rain: Read-only file system"):
                    source.read()
                self.gpio.pulse(2)
            self.assertEqual(source.read(), {"rain": made})
            source.close()

    def test_unchanged_total_is_not_written_again(self):
        source = self.source()
        source.read()
        with mock.patch.object(os, "pwrite", side_effect=AssertionError):
            source.read()
            source.close()

    def test_write_interrupted_at_any_byte_keeps_the_previous_state(self):
        """The machine loses power while a slot is written: the rest of its block is old, zero, or random."""
        dice = random.Random(5)
        states = [CounterState(n, 0, 0.0, 1.0, None) for n in range(5)]
        file = CounterFile(self.path())
        self.assertIsNone(file.load())
        file.save(states[0])
        for old, new in itertools.pairwise(states):
            before = self.content()
            file.save(new)
            after = self.content()
            (half,) = [n for n in (0, SLOT_BYTES) if before[n : n + SLOT_BYTES] != after[n : n + SLOT_BYTES]]
            for _ in range(12):
                cut = half + dice.randrange(SLOT_BYTES)
                rest = dice.choice([before, bytes(2 * SLOT_BYTES), dice.randbytes(2 * SLOT_BYTES)])
                torn = before[:half] + after[half:cut] + rest[cut : half + SLOT_BYTES] + before[half + SLOT_BYTES :]
                self.write(torn)
                with mock.patch.object(counter_file, "log"):
                    self.assertIn(CounterFile(self.path()).load(), (old, new))
            self.write(after)

    def test_damage_of_one_copy_does_not_change_the_total(self):
        file = CounterFile(self.path())
        file.load()
        for pulses in range(4):
            file.save(CounterState(pulses, 0, 0.0, 1.0, None))
        good = self.content()
        for at, size in ((0, 1), (9, 1), (4096, 1), (4100, 3), (0, 512), (4096, 2048), (6144, 2048), (8191, 1)):
            with self.subTest(at=at, size=size), self.assertNoLogs("pigeonpost.sensors.counter_file"):
                self.write(good[:at] + bytes(size) + good[at + size :])
                self.assertEqual(CounterFile(self.path()).load(), CounterState(3, 0, 0.0, 1.0, None))

    def test_damage_of_both_copies_is_reported(self):
        """The newest total may be lost, after a power cut or a fault of the card; then the older one is used."""
        for lost in range(2):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path())
            file = CounterFile(self.path())
            file.load()
            file.save(CounterState(7 + lost, 0, 0.0, 1.0, None))
            file.save(CounterState(8 + lost, 0, 0.0, 1.0, None))
            content = bytearray(self.content())
            content[lost * SLOT_BYTES : (lost + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)
            self.write(content)
            with self.assertLogs("pigeonpost.sensors.counter_file", "WARNING") as logs:
                state = CounterFile(self.path()).load()
            self.assertIn(state.pulses, (7 + lost, 8 + lost))
            self.assertRegex(logs.output[0], f"a part is damaged.*continues at {state.total:g}.*set start")

    def test_file_with_one_copy_per_slot_is_read(self):
        file = CounterFile(self.path())
        file.load()
        file.save(CounterState(5, 0, 0.0, 1.0, None))
        line = self.content().split(b"\n")[0].rstrip(b" ")
        self.write((line.ljust(SLOT_BYTES - 1) + b"\n") * 2)
        self.assertEqual(CounterFile(self.path()).load(), CounterState(5, 0, 0.0, 1.0, None))

    def test_newest_slot_is_written_again_before_the_other_one_is_replaced(self):
        """After a crash it may be only in the memory of the kernel."""
        file = CounterFile(self.path())
        file.load()
        for pulses in range(3):
            file.save(CounterState(pulses, 0, 0.0, 1.0, None))
            writes = []
            with mock.patch.object(os, "pwrite", lambda fd, data, at, writes=writes: writes.append((data, at)) or 4096):
                CounterFile(self.path()).load()
            ((data, at),) = writes
            self.assertEqual(self.content()[at : at + SLOT_BYTES], data)
            self.assertIn(b'"pulses":%d,' % pulses, data)

    def content(self):
        with open(self.path(), "rb") as file:
            return file.read()

    def write(self, content):
        with open(self.path(), "wb") as file:
            file.write(content)

    def test_random_crashes_never_repeat_or_lose_a_reported_total(self):
        """Each call that writes can be the last one. A total contains at least all reported pulses, and none twice."""
        dice = random.Random(7)
        reported, made = 0, 0
        for _ in range(60):
            source, left = self.source(), [dice.randrange(12)]
            calls = {name: self.last_call(getattr(os, name), left) for name in ("pwrite", "fdatasync", "rename")}
            with mock.patch.multiple(os, **calls), contextlib.suppress(KeyboardInterrupt):
                for _ in range(6):
                    total = source.read()["rain"]
                    self.assertTrue(reported <= total <= made, (reported, total, made))
                    reported = total
                    pulses = dice.randrange(3)
                    self.gpio.pulse(pulses)
                    made += pulses
            self.crash(source)
        self.assertGreater(reported, 50)

    def last_call(self, real, left):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt  # as kill -9 before the call
            return real(*arguments, **options)

        return call

    def test_damaged_file_is_never_taken_for_a_new_counter(self):
        self.source().read()
        for content in (b"", b"\0" * 8192, b"x" * 4096, b"{}"):
            with open(self.path(), "wb") as file:
                file.write(content)
            with (
                self.subTest(content[:5]),
                self.assertRaisesRegex(SensorError, "rain is damaged, so the total is unknown"),
            ):
                self.source(start=5).read()
        os.unlink(self.path())
        self.assertEqual(self.source(start=5).read(), {"rain": 5})

    def test_state_of_a_newer_version_is_read(self):
        self.source().read()
        file = CounterFile(self.path())
        file.load()
        with mock.patch.object(CounterState, "_asdict", lambda self: {**dict(zip(self._fields, self)), "future": 1}):
            file.save(CounterState(7, 1, 2.0, 1.0, None))
        self.assertEqual(CounterFile(self.path()).load(), CounterState(7, 1, 2.0, 1.0, None))

    def test_thread_saves_the_pulses_between_two_readings(self):
        read = counter.read_tables({"line": 17, "save": 3600, "channels": TOTAL}, "here")
        source = counter.CounterSource(*read, self.gpio.root, self.gpio.ioctl)
        self.addCleanup(source.close)
        waits = []

        def wait(seconds):
            waits.append(seconds)
            if len(waits) == 1:
                self.gpio.pulse(4)
            return len(waits) > 1

        with mock.patch.object(source._stop, "wait", wait):
            source.start(self.data)
            source._thread.join(30)
        self.assertEqual((waits, CounterFile(self.path()).load().total), ([3600, 3600], 4))


class Tables(unittest.TestCase):
    def test_key_of_the_table_below_a_channel_is_refused_with_the_remedy(self):
        for key, value in (("scale", 0.2794), ("start", 5), ("debounce_ms", 20), ("line", 17), ("save", 5)):
            with self.subTest(key), self.assertRaises(SettingsError) as caught:
                counter.read_tables({"line": 17, "channels": {"rain": {key: value}}}, "here")
            self.assertEqual(
                str(caught.exception),
                f"here: channels.rain: {key} is a key of the table [[sensor]]: write it before the first channel",
            )

    def test_invalid_tables_are_refused(self):
        for table, words in (
            ({"channels": TOTAL}, "line is missing: the number of the GPIO line, such as 17"),
            ({"line": 17}, 'channels is missing; for example: channels.rain = {unit = "mm"}'),
            ({"line": -1, "channels": TOTAL}, "line takes a whole number from 0 to 1023"),
            ({"line": 17, "edge": "both", "channels": TOTAL}, "edge takes 'rising' or 'falling'"),
            ({"line": 17, "bias": "up", "channels": TOTAL}, "bias takes"),
            ({"line": 17, "debounce_ms": 2000, "channels": TOTAL}, "debounce_ms takes a number from 0 to 1000"),
            ({"line": 17, "scale": 0, "channels": TOTAL}, "scale takes a number from"),
            ({"line": 17, "save": 0, "channels": TOTAL}, "save takes a number from 1 to 3600"),
            ({"line": 17, "channels": {"x": {"per": 60}}}, 'channels.x: per is only for value = "rate"'),
            ({"line": 17, "channels": {"x": {}, "y": {}}}, 'channels.y: value = "total" is possible for one channel'),
            ({"line": 17, "start": 1, "channels": {"x": {"value": "rate"}}}, "start is only for a table with"),
            ({"line": 17, "channels": {"x": {"value": "count"}}}, "value takes"),
        ):  # fmt: skip
            with self.subTest(words), self.assertRaises(SettingsError) as caught:
                counter.make(table, "here")
            self.assertTrue(str(caught.exception).startswith("here: "), caught.exception)
            self.assertIn(words, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
