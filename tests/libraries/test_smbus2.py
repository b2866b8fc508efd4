"""Driver of the MCP3424 with the real smbus2, whose kernel calls go to a bit-exact simulation of the chip."""

import ctypes
import os
import unittest
from unittest import mock

from pigeonpost.sensors import mcp3424
from tests.sensors.chip_mcp3424 import Chip, Wires
from tests.support import temp_folder

try:
    import smbus2
except ImportError:
    smbus2 = None

I2C_FUNCS, I2C_RDWR, I2C_M_RD = 0x0705, 0x0707, 1  # linux/i2c-dev.h, linux/i2c.h


def setUpModule():
    if smbus2 is None:
        raise unittest.SkipTest("smbus2 is not installed for this Python")


class Kernel:
    """Simulated ioctl of /dev/i2c-1, as in linux/i2c-dev.h."""

    def __init__(self, wires):
        self.wires = wires

    def __call__(self, file, request, argument):
        if request == I2C_FUNCS:
            argument.value = 0x0EFF0009
            return 0
        assert request == I2C_RDWR, request
        for n in range(argument.nmsgs):
            message = argument.msgs[n]
            if message.flags & I2C_M_RD:
                data = self.wires.transfer(message.addr, count=message.len)
                ctypes.memmove(message.buf, data, len(data))
            else:
                self.wires.transfer(message.addr, ctypes.string_at(message.buf, message.len))
        return 0


class Smbus2Test(unittest.TestCase):
    def test_both_chips_of_the_board_are_read(self):
        wires = Wires({0x68: Chip(lambda n: 0.25 * n, polls=3), 0x69: Chip(lambda n: -0.1)})
        channels = {
            "a": {"input": 4, "bits": 12},
            "b": {"input": 5, "bits": 14},
            "c": {"input": 8, "bits": 12, "pga": 8},
        }
        source = mcp3424.make({"channels": channels, "root": temp_folder(self)}, "here")
        library = smbus2.smbus2
        opened = os.open("/dev/null", os.O_RDWR)
        with mock.patch.object(library, "ioctl", Kernel(wires)), mock.patch.object(library.os, "open") as opens:
            opens.return_value = opened
            readings = source.read()
        opens.assert_called_once_with("/dev/i2c-1", os.O_RDWR)
        for name, volts in (("a", 0.75), ("b", -0.1), ("c", -0.1)):
            self.assertAlmostEqual(readings[name], volts * 2.471, delta=0.003)
        source.close()
        with self.assertRaises(OSError):
            os.fstat(opened)


if __name__ == "__main__":
    unittest.main()
