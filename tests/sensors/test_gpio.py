"""Tests of GPIO lines without hardware: the bytes of the requests, the numbers of edges, and all errors."""

import errno
import os
import shutil
import struct
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError
from pigeonpost.sensors import gpio
from tests.sensors.fake_gpio import FakeGpio, record


class Requests(unittest.TestCase):
    """The structs of include/uapi/linux/gpio.h, whose offsets a C compiler printed."""

    def expected(self, line, flags, debounce_us=0):
        data = bytearray(592)
        struct.pack_into("I", data, 0, line)
        data[256:266] = b"pigeonpost"
        struct.pack_into("Q", data, 288, flags)
        if debounce_us:
            struct.pack_into("I", data, 296, 1)  # num_attrs
            struct.pack_into("I", data, 320, 3)  # attrs[0].attr.id
            struct.pack_into("I", data, 328, debounce_us)
            struct.pack_into("Q", data, 336, 1)  # attrs[0].mask
        struct.pack_into("I", data, 560, 1)  # num_lines
        struct.pack_into("I", data, 564, 1024)  # event_buffer_size
        return data

    def test_request_is_encoded_byte_for_byte(self):
        for request, expected in (
            (("falling", "pull-up", 5000), (1 << 2 | 1 << 5 | 1 << 8, 5000)),
            (("rising", "pull-down", 0), (1 << 2 | 1 << 4 | 1 << 9, 0)),
            (("rising", "none", 1), (1 << 2 | 1 << 4 | 1 << 10, 1)),
            (("falling", "as-is", 0), (1 << 2 | 1 << 5, 0)),
            (("falling", "pull-up", 1_000_000), (1 << 2 | 1 << 5 | 1 << 8, 1_000_000)),
        ):  # fmt: skip
            for line in (0, 17, 1023):
                self.assertEqual(gpio.LineRequest(line, *request).encode(), self.expected(line, *expected))

    def test_structs_have_the_sizes_of_the_kernel(self):
        sizes = [
            each.size for each in (gpio._CHIP_INFO, gpio._LINE_INFO, gpio._LINE_REQUEST, gpio._DEBOUNCE, gpio._EVENT)
        ]
        self.assertEqual(sizes, [68, 256, 592, 24, 48])


class Chips(unittest.TestCase):
    def test_chip_of_the_header_is_found_by_its_label(self):
        for labels, path in (
            (["pinctrl-rp1", "gpio-brcmstb@107d508500"], "gpiochip0"),
            (["gpio-brcmstb@107d508500", "raspberrypi-exp-gpio", "pinctrl-rp1"], "gpiochip2"),
            (["pinctrl-bcm2711", "raspberrypi-exp-gpio"], "gpiochip0"), (["x", "pinctrl-bcm2835"], "gpiochip1"),
            (["pinctrl-bcm2712", "pinctrl-rp1"], "gpiochip1"),
        ):  # fmt: skip
            fake = FakeGpio(self, labels)
            self.assertEqual(os.path.basename(gpio.find_chip("", fake.root, fake.ioctl).path), path)

    def test_chip_is_found_by_its_path_or_another_label(self):
        fake = FakeGpio(self, ["pinctrl-bcm2711", "mcp23017"])
        path = os.path.join(fake.root, "dev/gpiochip1")
        for name in (path, "mcp23017"):
            self.assertEqual(gpio.find_chip(name, fake.root, fake.ioctl), (path, "mcp23017", 58))

    def test_missing_chip_is_an_error_with_those_that_exist(self):
        fake = FakeGpio(self, ["INT34C5:00", "x"])
        for name, words in (
            ("", "set chip to one of: .*gpiochip0 ..INT34C5:00.., "),
            ("y", "has the label 'y'; found: "),
        ):
            with self.assertRaisesRegex(SensorError, words):
                gpio.find_chip(name, fake.root, fake.ioctl)
        with self.assertRaisesRegex(SensorError, "is not a GPIO chip .Inappropriate ioctl"):
            gpio.find_chip("/dev/null", fake.root, fake.ioctl)
        with self.assertRaisesRegex(SensorError, "gpiochip9: No such file"):
            gpio.find_chip(os.path.join(fake.root, "dev/gpiochip9"), fake.root, fake.ioctl)
        shutil.rmtree(os.path.join(fake.root, "dev"))
        with self.assertRaisesRegex(SensorError, "there is no GPIO chip"):
            gpio.find_chip("", fake.root, fake.ioctl)

    def test_chip_without_permission_names_the_group(self):
        fake = FakeGpio(self)
        with mock.patch.object(os, "open", side_effect=PermissionError), self.assertRaises(SensorError) as caught:
            gpio.find_chip("", fake.root, fake.ioctl)
        self.assertIn("usermod -aG gpio", str(caught.exception))


class Lines(unittest.TestCase):
    def request(self, fake, line=17):
        chip = gpio.find_chip("", fake.root, fake.ioctl)
        return gpio.request_edges(chip, gpio.LineRequest(line, "falling", "pull-up", 5000), fake.ioctl)

    def test_line_that_cannot_be_requested_is_an_error_with_the_reason(self):
        for fault, users, words in (
            (errno.EBUSY, {17: "w1_gpio@11"}, "is used by 'w1_gpio@11'; choose another line"),
            (errno.EBUSY, {}, "is used by 'another program'"), (errno.ENXIO, {}, "cannot report edges"),
            (errno.EINVAL, {}, "it needs Linux 5.10, this is "), (errno.ENOTTY, {}, "it needs Linux 5.10, this is "),
            (errno.EPERM, {}, "Operation not permitted"),
        ):  # fmt: skip
            fake = FakeGpio(self)
            fake.fault, fake.users = fault, users
            with self.subTest(fault), self.assertRaisesRegex(SensorError, f"^GPIO 17 of .*gpiochip0.*{words}"):
                self.request(fake)
        with self.assertRaisesRegex(SensorError, "has the lines 0 to 57, not 58"):
            self.request(fake, 58)

    def test_user_of_a_line_is_reported(self):
        fake = FakeGpio(self)
        fake.users = {4: "w1", 5: ""}
        chip = gpio.find_chip("", fake.root, fake.ioctl)
        self.assertEqual([gpio.consumer_of(chip, line, fake.ioctl) for line in (3, 4, 5)], [None, "w1", "?"])

    def test_all_edges_are_counted_once(self):
        fake = FakeGpio(self)
        line = self.request(fake)
        for count in (0, 1, 5, 64, 65, 1000):
            before = line.edges
            fake.pulse(count)
            line.update()
            line.update()
            self.assertEqual((line.edges - before, line.missed), (count, 0))
        line.close()
        line.close()

    def test_edges_without_a_record_are_counted_and_reported(self):
        fake = FakeGpio(self)
        line = self.request(fake)
        for dropped, edges in ((3, 4), (0, 5), (1000, 1006), (1 << 30, (1 << 30) + 1007)):
            fake.pulse(dropped=dropped)
            line.update()
            self.assertEqual(line.edges, edges)
        self.assertEqual(line.missed, 3 + 1000 + (1 << 30))

    def test_number_of_32_bits_wraps(self):
        fake = FakeGpio(self)
        line = self.request(fake)
        for _ in range(5):
            fake.pulse(dropped=(1 << 30) - 1)
            line.update()
        self.assertEqual(line.edges, 5 << 30)

    def test_line_that_ends_or_repeats_a_number_is_an_error(self):
        for data, edges in ((b"", 2), (record(2), 2), (record(1), 2), (record(0), 2), (b"x" * 47, 2)):
            fake = FakeGpio(self)
            line = self.request(fake)
            fake.pulse(2)
            fake.write(data)
            if not data:
                fake.remove()
            with self.subTest(data), self.assertRaises(OSError):
                line.update()
                line.update()
            self.assertEqual(line.edges, edges)

    def test_oscillating_line_does_not_occupy_the_reader(self):
        fake = FakeGpio(self)
        line = self.request(fake)
        endless = b"".join(record(n) for n in range(1, 65))

        def read(fd, size):
            nonlocal endless
            first = struct.unpack_from("I", endless, 20)[0]
            data, endless = endless, b"".join(record(n) for n in range(first + 64, first + 128))
            return data

        with mock.patch.object(os, "read", read):
            line.update()
        self.assertEqual(line.edges, 2 * gpio.BUFFERED_EVENTS)


if __name__ == "__main__":
    unittest.main()
