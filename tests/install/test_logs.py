"""The log of a service in systemd's journal: each line has its priority, and one names the settings file."""

import json
import unittest

from tests.install import need_install
from tests.install.machine import machine_for

UNIT = "pigeonpost-node"
SIMULATE = '[node]\nname = "basement"\nsimulate = true\n[[sensor]]\nkind = "mcp3424"\nchannels.volts = {input = 1}\n'


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


class Journal(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.machine = machine_for(cls, "bookworm")
        cls.machine.copy_program()
        cls.machine.sh(
            "cp /opt/pigeonpost/deploy/pigeonpost-node.service /etc/systemd/system/; systemctl daemon-reload"
        )

    def entries(self):
        """Return priority and text of each line of the node."""
        told = self.machine.run("journalctl", "--no-pager", "--output=json", f"_SYSTEMD_UNIT={UNIT}.service").stdout
        return [(int(entry["PRIORITY"]), entry["MESSAGE"]) for entry in map(json.loads, told.splitlines())]

    def test_priorities_the_settings_that_were_read_and_variables_without_effect(self):
        self.machine.write("/etc/pigeonpost/node.toml", "\ufeff" + SIMULATE)
        drop_in = "[Service]\nEnvironment=PIGEONPOST_NODE_EVRY=5\n"
        self.machine.write(f"/etc/systemd/system/{UNIT}.service.d/test.conf", drop_in)
        self.machine.sh(f"systemctl daemon-reload; systemctl restart {UNIT}")
        self.machine.wait_for_log(UNIT, "smbus2")
        entries = self.entries()
        self.assertIn((6, "INFO settings: /etc/pigeonpost/node.toml"), entries)
        variable = "unknown variable 'PIGEONPOST_NODE_EVRY' has no effect; did you mean PIGEONPOST_NODE_EVERY?"
        self.assertIn((4, f"WARNING {variable}"), entries)
        missing = "the Python module smbus2 is missing: sudo apt install python3-smbus2"
        self.assertIn((4, f"WARNING volts: {missing}"), entries)
        self.assertEqual(self.machine.run("systemctl", "is-active", UNIT).stdout, "active\n")
        self.assertFalse([text for _, text in entries if text.startswith("<")])

    def test_wrong_settings_are_an_error_with_file_and_line(self):
        self.machine.write("/etc/pigeonpost/node.toml", "[node]\nname = basement\n")
        self.machine.run("systemctl", "restart", UNIT, is_checked=False)
        fault = '/etc/pigeonpost/node.toml, line 2: not TOML: put text in quotes: name = "basement"'
        self.machine.wait_for_log(UNIT, fault)
        (found,) = [(priority, text) for priority, text in self.entries() if text.endswith(fault)]
        self.assertEqual((found[0], found[1].startswith("node.py: ")), (3, True))


if __name__ == "__main__":
    unittest.main()
