"""The machines of these tests.

They boot, are isolated from each other and from this one, and are removed completely.
"""

import os
import unittest

from tests.install import need_install
from tests.install.machine import Machine
from tests.install.roots import RELEASES, root_of


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


class Boot(unittest.TestCase):
    def test_each_release_boots_and_writes_only_to_its_own_layer(self):
        for release, python in zip(RELEASES, ("3.11", "3.13")):
            with self.subTest(release):
                machine = Machine(release)
                self.addCleanup(machine.stop)
                self.assertIn(f"Python {python}", machine.run("python3", "--version").stdout)
                machine.copy_program()
                machine.write("/etc/pigeonpost/node.toml", "x", 0o600)
                self.assertEqual(machine.read("/etc/pigeonpost/node.toml"), "x")
                self.assertEqual(machine.run("stat", "-c", "%a", "/etc/pigeonpost/node.toml").stdout, "600\n")
                self.assertTrue(machine.run("test", "-e", "/opt/pigeonpost/server.py"))
                self.assertFalse(os.path.exists(os.path.join(root_of(release), "opt/pigeonpost")))
                self.assertEqual(machine.run("false", is_checked=False).returncode, 1)
                machine.stop()
                self.assertFalse(os.path.exists(machine.root))


if __name__ == "__main__":
    unittest.main()
