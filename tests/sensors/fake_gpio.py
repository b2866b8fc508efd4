"""A kernel with GPIO chips: device files in a folder, and a function that replaces fcntl.ioctl.

A requested line is the reading end of a pipe, into which `pulse` writes the records of edges.
"""

import contextlib
import errno
import os
import struct

from tests.support import temp_folder

CHIP_INFO, LINE_INFO, GET_LINE = 0x8044B401, 0xC100B405, 0xC250B407


def record(line_seqno, line=17):
    """Return the struct gpio_v2_line_event of an edge."""
    return struct.pack("=QIIII", 123_456_789, 2, line, line_seqno, line_seqno).ljust(48, b"\0")


class FakeGpio:
    """GPIO chips, by default that of a Raspberry Pi 4.

    Attributes:
        root: Folder with dev/gpiochipN.
        requests: The encoded requests of all lines.
        fault: Error number with which the next requests fail; 0 for none.
        users: Names of the users of lines, by line.
    """

    def __init__(self, test, labels=("pinctrl-bcm2711",)):
        self.root = temp_folder(test)
        os.makedirs(os.path.join(self.root, "dev"))
        self.labels = {}
        for number, label in enumerate(labels):
            path = os.path.join(self.root, f"dev/gpiochip{number}")
            with open(path, "wb"):
                self.labels[path] = label
        self.requests, self.users, self.fault, self.edges = [], {}, 0, 0
        self._writer = -1
        test.addCleanup(self.remove)

    def ioctl(self, fd, request, data):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path not in self.labels:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        if request == CHIP_INFO:
            struct.pack_into("32s32sI", data, 0, b"gpiochip0", self.labels[path].encode(), 58)
        elif request == LINE_INFO:
            (line,) = struct.unpack_from("I", data, 64)
            if line in self.users:
                struct.pack_into("32s", data, 32, self.users[line].encode())
                struct.pack_into("Q", data, 72, 1)
        elif request == GET_LINE:
            self.requests.append(bytes(data))
            if self.fault:
                raise OSError(self.fault, os.strerror(self.fault))
            self.remove()
            reader, self._writer = os.pipe()
            self.edges = 0
            struct.pack_into("i", data, 588, reader)
        else:
            raise AssertionError(hex(request))

    def pulse(self, count=1, dropped=0):
        """Make `count` edges, after `dropped` edges whose records the kernel dropped."""
        self.edges += dropped
        for _ in range(count):
            self.edges += 1
            self.write(record(self.edges & 0xFFFFFFFF))

    def write(self, data):
        """Write any bytes as records of the line."""
        os.write(self._writer, data)

    def remove(self):
        """Remove the chip: its lines end."""
        with contextlib.suppress(OSError):
            os.close(self._writer)
        self._writer = -1
