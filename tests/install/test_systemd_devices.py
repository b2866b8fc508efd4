"""Devices under the node's unit: closed without a drop-in, open with it; groups that a system lacks.

The devices are real nodes in /dev, of drivers that this machine does not have. Opening one gives ENXIO if it is
allowed, EACCES without its group, and EPERM without its DeviceAllow.
"""

import unittest

from tests.install import need_install
from tests.install.machine import machine_for
from tests.install.test_systemd_units import UNITS
from tests.support import wait_until

DROP_INS = "/etc/systemd/system/pigeonpost-node.service.d"
# Device, its numbers (Linux, Documentation/admin-guide/devices.txt; the dynamic ones chosen), its driver, its group.
DEVICES = {
    "/dev/i2c-1": ("89 1", "i2c", "i2c"),
    "/dev/spidev0.0": ("153 0", "spi", "spi"),
    "/dev/gpiochip0": ("234 0", "gpiochip", "gpio"),
    "/dev/gpiomem": ("235 0", "bcm2835-gpiomem", "gpio"),
    "/dev/vcio": ("236 0", "", "video"),
}
NOT_THERE = "No such device or address"
# Records for the test: the run of the unit, its groups, and the result of opening each device.
LOOK = """#!/bin/sh
{{
  echo $INVOCATION_ID
  sed -n 's/^Groups:.//p' /proc/self/status
  for device in {devices}; do cat $device 2>&1 >/dev/null; done
}} > $STATE_DIRECTORY/new
mv $STATE_DIRECTORY/new $STATE_DIRECTORY/answers
echo temp=47.2
"""
SETTINGS = """[node]
every = 0.2
[[sensor]]
kind = "command"
command = ["vcgencmd", "measure_temp"]
[sensor.channels.gpu_temperature]
pattern = "temp=([0-9.]+)"
unit = "°C"
"""


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


class Devices:
    release = ""  # each class of tests has its own

    @classmethod
    def setUpClass(cls):
        cls.machine = machine = machine_for(cls, cls.release)
        machine.copy_program()
        machine.sh(f"cp /opt/pigeonpost/deploy/pigeonpost-node.service {UNITS}/")
        for path, (numbers, _, _) in DEVICES.items():
            machine.sh(f"mknod --mode=0660 {path} c {numbers}")
        # systemd finds the numbers of `char-i2c` in /proc/devices, where the drivers would be.
        drivers = "".join(f"{n.split()[0]} {driver}\n" for n, driver, _ in DEVICES.values() if driver)
        machine.write("/run/devices", machine.read("/proc/devices").replace("\n\n", f"\n{drivers}\n", 1))
        machine.sh("mount --bind /run/devices /proc/devices")
        machine.write("/usr/local/bin/vcgencmd", LOOK.format(devices=" ".join(DEVICES)), 0o755)
        machine.write("/etc/pigeonpost/node.toml", SETTINGS)

    def test_drop_ins_that_install_writes_open_the_devices(self):
        machine = self.machine
        self.assertNotEqual(machine.run("getent", "group", "i2c", is_checked=False).returncode, 0)  # a plain Debian
        machine.run("systemctl", "start", "pigeonpost-node")
        answers, groups = self.answers()
        self.assertLessEqual(set(answers), {"Operation not permitted", "Permission denied"})
        self.assertEqual(len(groups), 1)

        printed = machine.run("python3", "/opt/pigeonpost/control.py", "install", "node").stdout
        self.assertIn("/etc/sysusers.d/pigeonpost.conf", printed)
        self.assertFalse(machine.sh(f"ls {DROP_INS} 2>/dev/null || true").stdout)
        machine.run("python3", "/opt/pigeonpost/control.py", "install", "node", "--write")
        self.assertEqual(
            machine.run("ls", DROP_INS).stdout.split(), ["gpio.conf", "i2c.conf", "spi.conf", "video.conf"]
        )
        for path, (_, _, group) in DEVICES.items():  # as the rules do with udev
            machine.run("chgrp", group, path)
        machine.run("systemctl", "restart", "pigeonpost-node")
        answers, groups = self.answers()
        self.assertEqual(answers, [NOT_THERE] * len(DEVICES))
        self.assertEqual(len(groups), 5)  # its own, and that of each drop-in

    def answers(self):
        """Return the result of opening each device in the present run of the unit, in their order, and its groups."""
        run = self.machine.run("systemctl", "show", "--property=InvocationID", "--value", "pigeonpost-node").stdout
        path = "/var/lib/pigeonpost-node/answers"
        wait_until(lambda: self.machine.sh(f"cat {path} || true").stdout.startswith(run), "the command has run")
        _, groups, *lines = self.machine.read(path).splitlines()
        self.assertEqual(len(lines), len(DEVICES), lines)
        return [line.rpartition(": ")[2] for line in lines], groups.split()


class Bookworm(Devices, unittest.TestCase):
    release = "bookworm"


class Trixie(Devices, unittest.TestCase):
    release = "trixie"


if __name__ == "__main__":
    unittest.main()
