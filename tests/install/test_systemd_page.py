"""docs/install.md as written: each of its commands and drop-ins, in order, by a user with sudo."""

import os
import re
import unittest

from tests.install import need_install
from tests.install.machine import machine_for
from tests.install.test_systemd_units import CURL, UNITS
from tests.support import ROOT

HOME = "/home/pi/pigeonpost"


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


def blocks():
    """Return the indented blocks of the page as lists of lines, each with its heading."""
    with open(os.path.join(ROOT, "docs", "install.md"), encoding="utf-8") as file:
        text = file.read()
    found = []
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        found += [(heading, block.split("\n")) for block in re.findall(r"(?m)(?:^    .*\n?)+", body)]
    return [(heading, [line[4:] for line in lines if line]) for heading, lines in found]


class Page:
    release = ""  # each class of tests has its own

    @classmethod
    def setUpClass(cls):
        cls.machine = machine_for(cls, cls.release)
        cls.machine.sh("useradd --create-home pi; echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi")
        cls.machine.copy_program(HOME)
        cls.machine.sh(f"chown -R pi: {HOME}")

    def test_every_command_and_drop_in_of_the_page_works(self):
        count, last = 0, ""
        for heading, lines in blocks():
            with self.subTest(heading, block=lines[0]):
                if heading != last:
                    self.prepare(heading)
                    last = heading
                if lines[0].startswith("["):
                    self.try_drop_in("\n".join(lines))
                    continue
                for command in lines:
                    self.machine.run("sh", "-c", command, user="pi", cwd=HOME)
                    count += 1
                self.check(heading)
        self.assertGreater(count, 20)

    def prepare(self, heading):
        """Bring the machine to the state in which the section begins."""
        if heading.startswith("Keep the data"):
            self.machine.sh(
                f"cd {HOME}; python3 control.py uninstall server --write; rm -rf /var/lib/pigeonpost-server"
                " /var/lib/private/pigeonpost-server"
            )
            trial = ("timeout", "--signal=INT", "3", "python3", "server.py", "--web", "127.0.0.1:0")
            self.machine.run(*trial, user="pi", cwd=HOME, is_checked=False)
        elif heading.startswith("By hand"):
            self.machine.sh(
                "systemctl stop pigeonpost-server.socket pigeonpost-server; rm -rf /opt/pigeonpost"
                f" {UNITS}/pigeonpost-server.* /etc/pigeonpost/server.toml; systemctl daemon-reload"
            )

    def try_drop_in(self, text):
        """Apply a drop-in as `systemctl edit` does; it is removed afterwards."""
        unit = "pigeonpost-server.socket" if text.startswith("[Socket]") else "pigeonpost-node.service"
        again = f"cd {HOME}; python3 control.py install {unit[11:].partition('.')[0]} --write"
        self.machine.write(f"{UNITS}/{unit}.d/override.conf", text + "\n")
        self.machine.sh(again)
        if unit.endswith("socket"):
            self.machine.run(*CURL, "http://127.0.0.1:443/healthz")
        self.machine.sh(f"rm -r {UNITS}/{unit}.d/override.conf; {again}")

    def check(self, heading):
        if heading.startswith(("By hand", "Keep the data")):
            self.machine.run(*CURL, "http://127.0.0.1:8080/healthz")
        elif heading.startswith("Backups"):
            self.machine.run(*CURL, "http://127.0.0.1/healthz")
            # As the service sees the folder: in its file systems, as its user and group.
            self.machine.sh(
                "pid=$(systemctl show -P MainPID pigeonpost-server);"
                " group=$(getent group pigeonpost-backup | cut -d: -f3);"
                " nsenter --target $pid --mount setpriv --reuid $(stat -c %u /proc/$pid) --clear-groups --regid $group"
                " touch /mnt/usb/pigeonpost/x"
            )


class Bookworm(Page, unittest.TestCase):
    release = "bookworm"


class Trixie(Page, unittest.TestCase):
    release = "trixie"


if __name__ == "__main__":
    unittest.main()
