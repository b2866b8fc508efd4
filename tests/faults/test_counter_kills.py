"""Pulse counters in a process that is killed at any time: no total is lost, repeated, or larger than the pulses.

A pipe replaces the GPIO line of the process, which reads the counter as fast as it can and prints each total.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import unittest

from tests.sensors.fake_gpio import FakeGpio, record
from tests.support import ROOT, temp_folder

PROCESS = """
import struct, sys
from pigeonpost.sensors import counter
root, data, line = sys.argv[1], sys.argv[2], int(sys.argv[3])

def ioctl(fd, request, data):
    if request == 0x8044B401:
        struct.pack_into("32s32sI", data, 0, b"gpiochip0", b"pinctrl-rp1", 54)
    else:
        struct.pack_into("i", data, 588, line)

tables = counter.read_tables({"line": 17, "save": 1, "channels": {"rain": {}}}, "here")
source = counter.CounterSource(*tables, root, ioctl)
source.start(data)
while True:
    print(round(source.read()["rain"]), flush=True)
"""
ROUNDS = 25


class Kills(unittest.TestCase):
    def test_killed_process_never_repeats_or_loses_a_reported_total(self):
        gpio, data, dice = FakeGpio(self, ["pinctrl-rp1"]), temp_folder(self), random.Random(3)
        reported = made = 0
        for _ in range(ROUNDS):
            reader, writer = os.pipe()
            with contextlib.closing(os.fdopen(writer, "wb", 0)) as line:
                process = subprocess.Popen(
                    [sys.executable, "-c", PROCESS, gpio.root, data, str(reader)], stdout=subprocess.PIPE,
                    pass_fds=[reader], cwd=ROOT, text=True,
                )  # fmt: skip
                os.close(reader)
                with process:
                    for seqno in range(1, dice.randrange(2, 60)):
                        line.write(record(seqno))
                        made += 1
                        for _ in range(dice.randrange(3)):
                            total = int(process.stdout.readline())
                            self.assertTrue(reported <= total <= made, (reported, total, made))
                            reported = total
                    process.send_signal(signal.SIGKILL)
                    for total in process.stdout:  # reported before it was killed; the last line may be cut off
                        if total.endswith("\n"):
                            self.assertTrue(reported <= int(total) <= made, (reported, total, made))
                            reported = int(total)
        self.assertGreater(reported, ROUNDS)


if __name__ == "__main__":
    unittest.main()
