"""Section 5 of docs/tutorial.md as written: a new user's commands, on a machine that is both Pi and server."""

import os
import re
import unittest

from tests.install import need_install
from tests.install.machine import machine_for
from tests.install.test_systemd_units import CURL
from tests.support import ROOT, wait_until

HOME = "/home/pi/pigeonpost"
PASSWORD = "correct horse battery"


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


def commands_of_section_5():
    """Return every command of the section before the part about containers, in order."""
    with open(os.path.join(ROOT, "docs", "tutorial.md"), encoding="utf-8") as file:
        text = file.read()
    section = text[text.index("## 5. Start at boot") : text.index("In a container")]
    return re.findall(r"^    (\S.*)$", section, re.MULTILINE)


class Tutorial:
    release = ""  # each class of tests has its own

    @classmethod
    def setUpClass(cls):
        cls.machine = machine_for(cls, cls.release)
        cls.machine.sh("useradd --create-home pi; echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi")
        cls.machine.copy_program(HOME)
        cls.machine.sh(f"chown -R pi: {HOME}")

    def test_section_5_as_written_leads_to_a_page_with_values(self):
        token = ""
        commands = commands_of_section_5()
        self.assertGreaterEqual(len(commands), 10)
        for command in commands:
            if command.startswith("sudo python3 /opt/pigeonpost/control.py") and command.endswith("check"):
                wait_until(self.is_collected, "the node is collected from")
            given = PASSWORD + "\n" if command.endswith(" password") else token + "\n"
            # This machine has no MCP3008, and is both Pi and server.
            command = command.replace("192.168.1.20", "127.0.0.1")
            if "name = " in command:
                command += "; sudo sed -i 's/^simulate = false/simulate = true/' /etc/pigeonpost/node.toml"
            with self.subTest(command):
                result = self.machine.run("sh", "-c", command, given=given, user="pi", cwd=HOME)
            if command.endswith(" token basement"):
                token = result.stdout.split()[0]
        self.assertIn("Active: active (running)", result.stdout)  # of the last one
        self.assertEqual(self.machine.run("stat", "-c", "%a %U", "/etc/pigeonpost/node-token").stdout, "600 root\n")
        self.assertIn("temperature", self.page())
        self.assertIn("basement", self.page())

    def control(self, command):
        path, data = "/opt/pigeonpost/control.py", "/var/lib/pigeonpost-server"
        return self.machine.run("python3", path, "--data", data, command, is_checked=False)

    def is_collected(self):
        return "last sample" in self.control("status").stdout

    def page(self):
        """Return the page as text, after a login with the password."""
        self.assertNotIn("basement", self.machine.run(*CURL, "http://127.0.0.1:8080/login").stdout)
        jar = ("--cookie-jar", "/tmp/jar", "--cookie", "/tmp/jar")
        form = self.machine.run(*CURL, *jar, "--header", "Accept: text/html", "http://127.0.0.1:8080/login").stdout
        hidden = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form))
        fields = {**hidden, "user": "admin", "password": PASSWORD}
        data = [part for name, value in fields.items() for part in ("--data-urlencode", f"{name}={value}")]
        origin = ("--header", "Origin: http://127.0.0.1:8080")
        self.machine.run(*CURL, *jar, *data, *origin, "http://127.0.0.1:8080/login")
        return self.machine.run(*CURL, *jar, "http://127.0.0.1:8080/").stdout


class Bookworm(Tutorial, unittest.TestCase):
    release = "bookworm"


class Trixie(Tutorial, unittest.TestCase):
    release = "trixie"


if __name__ == "__main__":
    unittest.main()
