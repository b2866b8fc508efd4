"""GPIO lines through the kernel's character device (ABI version 2, Linux 5.10), without a library.

    /dev/gpiochipN --GPIO_V2_GET_LINE_IOCTL--> file descriptor of a line --read()--> one record of 48 bytes per edge

The kernel numbers the edges of a line: `line_seqno` is 1 for the first one after the request. It buffers the records of
at most 1024 edges. If the buffer is full, the kernel drops the oldest record, so the newest record always contains the
number of all edges, and a step of more than one in `line_seqno` is the number of dropped records.

Chips are found by their labels, because their numbers differ between kernels: on a Raspberry Pi 5 the chip of the
header has been gpiochip4 and gpiochip0.

Errors: SensorError, whose message contains the remedy. Sources: include/uapi/linux/gpio.h, drivers/gpio/gpiolib-cdev.c
(edge_irq_thread, debounce_work_func, linereq_put_event) of the Linux kernel.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pigeonpost.core.errors import SensorError
from pigeonpost.sensors.contract import access_remedy

# Performs a request on a file descriptor, and changes the buffer.
Ioctl = Callable[[int, int, bytearray], Any]

CONSUMER = "pigeonpost"  # the name under which `gpioinfo` lists our lines
HEADER_LABELS = ("pinctrl-rp1", "pinctrl-bcm2711", "pinctrl-bcm2835", "pinctrl-bcm2712")  # Pi 5, Pi 4, older, Pi 5
EVENT_BYTES = 48  # struct gpio_v2_line_event
BUFFERED_EVENTS = 1024  # the largest buffer of one line: GPIO_V2_LINES_MAX * 16

_GET_CHIP_INFO = 0x8044B401  # GPIO_GET_CHIPINFO_IOCTL
_GET_LINE_INFO = 0xC100B405  # GPIO_V2_GET_LINEINFO_IOCTL
_GET_LINE = 0xC250B407  # GPIO_V2_GET_LINE_IOCTL

# struct gpiochip_info: name, label, lines
_CHIP_INFO = struct.Struct("=32s32sI")
# struct gpio_v2_line_info: name, consumer, offset, num_attrs, flags, 10 attributes, padding
_LINE_INFO = struct.Struct("=32s32sIIQ160x16x")
# struct gpio_v2_line_request: offsets[64], consumer, config (flags, num_attrs, padding[5], attrs[10]), num_lines,
# event_buffer_size, padding[5], fd
_LINE_REQUEST = struct.Struct("=256s32sQI20x240sII20xi")
# struct gpio_v2_line_config_attribute with a debounce period: id, padding, period in µs, rest of the union, mask
_DEBOUNCE = struct.Struct("=III4xQ")
# struct gpio_v2_line_event: timestamp_ns, id, offset, seqno, line_seqno, padding[6]
_EVENT = struct.Struct("=QIIII24x")

_FLAG_USED, _FLAG_INPUT = 1 << 0, 1 << 2
_EDGE_FLAGS: Mapping[str, int] = {"rising": 1 << 4, "falling": 1 << 5}
_BIAS_FLAGS: Mapping[str, int] = {"as-is": 0, "pull-up": 1 << 8, "pull-down": 1 << 9, "none": 1 << 10}
EDGES, BIASES = tuple(_EDGE_FLAGS), tuple(_BIAS_FLAGS)
_ATTRIBUTE_DEBOUNCE = 3  # GPIO_V2_LINE_ATTR_ID_DEBOUNCE

_EVENTS_PER_READ = 64
_MOST_READS = 2 * BUFFERED_EVENTS // _EVENTS_PER_READ  # per call: a line that oscillates must not occupy it permanently


class LineRequest(NamedTuple):
    """Request for the edges of one line.

    Attributes:
        line: Number of the line on its chip; on the header of a Raspberry Pi the BCM number.
        edge: The counted edge: "rising" or "falling".
        bias: Resistor in the chip: "pull-up", "pull-down", "none", or "as-is" to leave it unchanged.
        debounce_us: Time in microseconds for which the level must be stable before the edge counts; 0 for none.
    """

    line: int
    edge: str
    bias: str
    debounce_us: int

    def encode(self) -> bytearray:
        """Return the struct gpio_v2_line_request, in the byte order of this machine."""
        attributes = b""
        if self.debounce_us:
            attributes = _DEBOUNCE.pack(_ATTRIBUTE_DEBOUNCE, 0, self.debounce_us, 1)  # 1: the first line of the request
        flags = _FLAG_INPUT | _EDGE_FLAGS[self.edge] | _BIAS_FLAGS[self.bias]
        return bytearray(
            _LINE_REQUEST.pack(
                struct.pack("=I", self.line), CONSUMER.encode(), flags, 1 if attributes else 0, attributes, 1,
                BUFFERED_EVENTS, 0,
            )
        )  # fmt: skip


class Chip(NamedTuple):
    """A GPIO chip: the path of its device, its label, and its number of lines."""

    path: str
    label: str
    lines: int


class EdgeCounter:
    """Counter of the edges of a requested line. One thread at a time may use it.

    Args:
        fd: File descriptor of the line. The counter closes it.

    Attributes:
        edges: Number of all edges so far.
        missed: Number of these edges whose records the kernel dropped, because its buffer was full.
    """

    def __init__(self, fd: int) -> None:
        self.edges = 0
        self.missed = 0
        self._last = 0  # line_seqno, which has 32 bits
        self._fd = fd
        os.set_blocking(fd, False)

    def update(self) -> None:
        """Count the edges since the last call.

        Raises:
            OSError: The chip was removed, or its driver does not number the edges. The line must be requested again.
        """
        for _ in range(_MOST_READS):
            try:
                data = os.read(self._fd, _EVENTS_PER_READ * EVENT_BYTES)
            except BlockingIOError:
                return
            rest = len(data) % EVENT_BYTES
            for _time, _kind, _line, _seqno, line_seqno in _EVENT.iter_unpack(data[: len(data) - rest]):
                self._count(line_seqno)
            if rest or not data:
                raise OSError(errno.ENODEV, "the GPIO chip sends no more events")

    def _count(self, line_seqno: int) -> None:
        step = (line_seqno - self._last) % (1 << 32)
        if not 0 < step < 1 << 31:
            raise OSError(errno.EPROTO, f"the number of an edge changed from {self._last} to {line_seqno}")
        self.edges += step
        self.missed += step - 1
        self._last = line_seqno

    def close(self) -> None:
        """Release the line. It has no effect if the line is already released."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def chips(root: str = "/", ioctl: Ioctl = fcntl.ioctl) -> list[Chip]:
    """Return all chips that this program may open.

    Args:
        root: Folder that replaces `/` in tests.
        ioctl: Replaces fcntl.ioctl in tests.

    Raises:
        SensorError: There is no chip, or no chip may be opened.
    """
    paths = glob.glob(os.path.join(root, "dev/gpiochip[0-9]*"))
    if not paths:
        raise SensorError("there is no GPIO chip (/dev/gpiochip*); a container needs the device in its settings")
    found: list[Chip] = []
    refused: SensorError | None = None
    for path in sorted(paths, key=lambda path: int(re.sub(r"[^0-9]", "", os.path.basename(path)) or 0)):
        try:
            found.append(_chip_at(path, ioctl))
        except SensorError as error:
            refused = error
    if not found and refused is not None:
        raise refused
    return found


def find_chip(name: str, root: str = "/", ioctl: Ioctl = fcntl.ioctl) -> Chip:
    """Return a chip.

    Args:
        name: Path of its device, or its label; an empty string for the chip of a Raspberry Pi's header.
        root: Folder that replaces `/` in tests.
        ioctl: Replaces fcntl.ioctl in tests.

    Raises:
        SensorError: There is no such chip, or it may not be opened.
    """
    if name.startswith("/"):
        return _chip_at(name, ioctl)
    found = chips(root, ioctl)
    for label in [name] if name else HEADER_LABELS:
        for chip in found:
            if chip.label == label:
                return chip
    known = ", ".join(f"{chip.path} ({chip.label!r:.40})" for chip in found[:10])
    if name:
        raise SensorError(f"no GPIO chip has the label {name!r:.40}; found: {known}")
    raise SensorError(f"no GPIO chip is that of a Raspberry Pi's header; set chip to one of: {known}")


def request_edges(chip: Chip, request: LineRequest, ioctl: Ioctl = fcntl.ioctl) -> EdgeCounter:
    """Return a counter for a line, which is reserved until the counter is closed.

    Args:
        chip: The chip.
        request: The line and its configuration.
        ioctl: Replaces fcntl.ioctl in tests.

    Raises:
        SensorError: The line does not exist, is in use, or cannot report edges.
    """
    if request.line >= chip.lines:
        raise SensorError(f"{chip.path} ({chip.label!r:.40}) has the lines 0 to {chip.lines - 1}, not {request.line}")
    data = request.encode()
    fd = _open(chip.path)
    try:
        ioctl(fd, _GET_LINE, data)
    except OSError as error:
        raise SensorError(_request_fault(error, fd, chip, request.line, ioctl)) from None
    finally:
        os.close(fd)
    return EdgeCounter(_LINE_REQUEST.unpack(data)[-1])


def consumer_of(chip: Chip, line: int, ioctl: Ioctl = fcntl.ioctl) -> str | None:
    """Return the name of the program or driver that uses a line ("?" if it has no name), or None if it is free.

    Args:
        chip: The chip.
        line: Number of the line.
        ioctl: Replaces fcntl.ioctl in tests.

    Raises:
        SensorError: The chip may not be opened, or has no such line.
    """
    fd = _open(chip.path)
    try:
        return _consumer(fd, line, ioctl)
    except OSError as error:
        raise SensorError(f"GPIO {line} of {chip.path}: {error.strerror}") from None
    finally:
        os.close(fd)


def _consumer(fd: int, line: int, ioctl: Ioctl) -> str | None:
    data = bytearray(_LINE_INFO.pack(b"", b"", line, 0, 0))
    ioctl(fd, _GET_LINE_INFO, data)
    _name, consumer, _line, _count, flags = _LINE_INFO.unpack(data)
    return (_text(consumer) or "?") if flags & _FLAG_USED else None


def _request_fault(error: OSError, fd: int, chip: Chip, line: int, ioctl: Ioctl) -> str:
    where = f"GPIO {line} of {chip.path}"
    if error.errno == errno.EBUSY:
        try:
            user = _consumer(fd, line, ioctl)
        except OSError:
            user = None
        return (
            f"{where} is used by {user or 'another program'!r:.40}; choose another line, or stop that program or driver"
        )
    if error.errno in (errno.ENXIO, errno.EOPNOTSUPP):
        return f"{where} cannot report edges ({error.strerror}); choose another line"
    if error.errno in (errno.EINVAL, errno.ENOTTY):
        release = os.uname().release
        return f"{where}: the kernel refuses the request ({error.strerror}); it needs Linux 5.10, this is {release}"
    return f"{where}: {error.strerror}"


def _chip_at(path: str, ioctl: Ioctl) -> Chip:
    fd = _open(path)
    try:
        data = bytearray(_CHIP_INFO.size)
        ioctl(fd, _GET_CHIP_INFO, data)
    except OSError as error:
        raise SensorError(f"{path} is not a GPIO chip ({error.strerror})") from None
    finally:
        os.close(fd)
    _name, label, lines = _CHIP_INFO.unpack(data)
    return Chip(path, _text(label), lines)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise SensorError(f"no permission to open {path}: {access_remedy('gpio')}") from None
    except OSError as error:
        raise SensorError(f"{path}: {error.strerror}") from None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")
