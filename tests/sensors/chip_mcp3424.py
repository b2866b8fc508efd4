"""Simulated MCP3424 below the library: it handles single bits on the bus, and follows only the data sheet.

    wires = Wires({0x68: Chip(lambda n: 1.0)})
    wires.transfer(0x68, [0b1_00_0_11_00])              send a byte
    wires.transfer(0x68, count=4)                        receive bytes

`library(wires)` replaces smbus2; tests/libraries uses the same wires below the real smbus2.
"""

import errno
import os
import types


class Chip:
    """Chip that receives and sends bits once it is addressed. A conversion takes `polls` reads."""

    def __init__(self, volts, polls=2):
        """Create the chip. `volts` returns the voltage at an input, 0 to 3."""
        self.volts = volts
        self.polls = polls
        self.ready, self.channel, self.continuous, self.size, self.amplifier = 1, 0, 1, 0, 0  # at power-on
        self.code = 0
        self.left = 0
        self.writes = []

    def take(self, bits):
        """Receive the configuration register: one byte, most significant bit first."""
        self.writes.append("".join(map(str, bits)))
        ready, c1, c0, continuous, s1, s0, g1, g0 = bits
        self.channel, self.continuous = c1 << 1 | c0, continuous
        self.size, self.amplifier = s1 << 1 | s0, g1 << 1 | g0
        if ready and not continuous:
            self.ready, self.left = 1, self.polls
            self.converted = self.convert()

    def convert(self):
        bits = 12 + 2 * self.size
        code = int(self.volts(self.channel) * (1 << self.amplifier) / 2.048 * (1 << bits - 1))
        return min(max(code, -(1 << bits - 1)), (1 << bits - 1) - 1)

    def give(self):
        """Yield bits without end: the last result, and then the configuration repeatedly."""
        if self.left:
            self.left -= 1
            if not self.left:
                self.ready, self.code = 0, self.converted
        width = 24 if self.size == 3 else 16
        yield from (self.code >> shift & 1 for shift in range(width - 1, -1, -1))
        register = (self.ready, self.channel >> 1, self.channel & 1, self.continuous,
                    self.size >> 1, self.size & 1, self.amplifier >> 1, self.amplifier & 1)  # fmt: skip
        while True:
            yield from register


class Wires:
    """Bus with its chips, by address. `broken` is the number of the error with which every transfer fails."""

    def __init__(self, chips):
        self.chips = chips
        self.broken = 0
        self.open = 0
        self.log = []  # address and direction of each transfer

    def transfer(self, address, data=None, count=0):
        if self.broken:
            raise OSError(self.broken, os.strerror(self.broken))
        self.log.append((address, "write" if data is not None else "read"))
        chip = self.chips.get(address)
        if chip is None:  # no chip pulls SDA down to acknowledge
            raise OSError(errno.EREMOTEIO, "Remote I/O error")
        if data is not None:
            for byte in data:
                chip.take([byte >> shift & 1 for shift in range(7, -1, -1)])
            return b""
        bits = chip.give()
        return bytes(int("".join(str(next(bits)) for _ in range(8)), 2) for _ in range(count))


class _Message:
    def __init__(self, address, data, count):
        self.address, self.data, self.count, self.said = address, data, count, b""

    @staticmethod
    def write(address, data):
        return _Message(address, list(data), 0)

    @staticmethod
    def read(address, count):
        return _Message(address, None, count)

    def __bytes__(self):
        return self.said


def library(wires):
    """The part of smbus2 that the driver uses."""

    class SMBus:
        def __init__(self, bus):
            if isinstance(wires, OSError):
                raise wires
            self.number = bus
            wires.open += 1

        def i2c_rdwr(self, *messages):
            for message in messages:
                message.said = wires.transfer(message.address, message.data, message.count)

        def close(self):
            wires.open -= 1

    return types.SimpleNamespace(SMBus=SMBus, i2c_msg=_Message)
