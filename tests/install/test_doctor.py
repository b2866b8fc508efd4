"""control.py doctor in booted machines of both releases.

It finds each fault of a service, and its remedy works as printed.
"""

import os
import re
import unittest
from typing import NamedTuple

from tests.install import need_install
from tests.install.machine import machine_for
from tests.install.test_packages import build_package, put
from tests.install.test_systemd_units import CURL, UNITS
from tests.support import wait_until

FIRST_REVISION = "1b8238e"  # its units have the faults that doctor finds here
LIMIT_S = 5.0  # of processor time for doctor
NODE = '[node]\nname = "basement"\nsimulate = true\nevery = 0.2\n'
SERVER = '[server]\nnodes = ["basement@127.0.0.1:5003"]\n[store]\ncommit = 0.1\n'
TOKEN = "0123456789abcdef0123456789abcdef"
DRIVERS = "/run/devices"


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


class Found(NamedTuple):
    word: str
    about: str
    remedy: str


class OneRelease:
    release = ""

    @classmethod
    def setUpClass(cls):
        cls.machine = machine_for(cls, cls.release)
        cls.machine.run("useradd", "--create-home", "pi")

    def doctor(self, *arguments, user="", cwd="/", program="/opt/pigeonpost/control.py"):
        """Return the findings of doctor, except for the disk, which is an overlay in each of these machines."""
        before = os.times()
        words = program.split() if program.startswith("pigeonpost") else ["python3", program]
        result = self.machine.run(*words, "doctor", *arguments, is_checked=False, user=user, cwd=cwd)
        self.assertEqual(result.stderr, "")
        after = os.times()
        self.took_s = after.children_user + after.children_system - before.children_user - before.children_system
        found = []
        for line in result.stdout.splitlines():
            if finding := re.match(r"  (ok|note|wrong) +(.*)", line):
                found.append(Found(finding[1], finding[2], ""))
            elif line.startswith("         "):
                found[-1] = found[-1]._replace(remedy=line.strip().removeprefix("remedy: "))
        self.assertEqual(result.returncode, 1 if "wrong" in [one.word for one in found] else 0, result.stdout)
        return [one for one in found if not re.search("is on overlay", one.about)]

    def wrong(self, *arguments, **options):
        return [one.about for one in self.doctor(*arguments, **options) if one.word == "wrong"]

    def remedy_of(self, words, *arguments, **options):
        """Return the remedy of the only fault that matches."""
        found = self.doctor(*arguments, **options)
        matching = [one for one in found if one.word == "wrong" and re.search(words, one.about)]
        self.assertEqual(len(matching), 1, f"{words}: {found}")
        return matching[0].remedy

    def repair(self, words, *arguments, **options):
        """Type the remedy of a fault as root; doctor must not find the fault again."""
        remedy = self.remedy_of(words, *arguments, **options)
        self.machine.sh(remedy)
        left = [about for about in self.wrong(*arguments) if re.search(words, about)]
        self.assertEqual(left, [], remedy)
        return remedy

    def shown(self, unit, name):
        return self.machine.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()


class Services(OneRelease):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.machine.copy_program()

    def setUp(self):
        self.machine.sh(
            "systemctl stop pigeonpost-server.socket pigeonpost-node pigeonpost-server || true;"
            " rm -rf /var/lib/private/pigeonpost-* /var/lib/pigeonpost-* /etc/pigeonpost"
            " /etc/systemd/system/pigeonpost-*.d; rm -f /etc/systemd/system/pigeonpost-server.socket;"
            " cp /opt/pigeonpost/deploy/*.service /etc/systemd/system/; systemctl daemon-reload; systemctl reset-failed"
        )
        self.machine.write("/etc/pigeonpost/node.toml", NODE)
        self.machine.write("/etc/pigeonpost/server.toml", SERVER)
        self.machine.run("systemctl", "enable", "--now", "pigeonpost-node", "pigeonpost-server")

    def test_installation_made_by_install_has_no_faults_for_root_and_others(self):
        for program in ("node", "server"):
            self.machine.run("python3", "/opt/pigeonpost/control.py", "install", program, "--write")
        wait_until(lambda: not self.wrong(), "the server collects")
        self.assertLess(self.took_s, LIMIT_S)
        found = self.doctor()
        for words in ("pigeonpost-node is running", "pigeonpost-server is running", "8080: the page of this server",
                      "node basement at 127.0.0.1:5003 can be reached"):  # fmt: skip
            self.assertEqual([one.word for one in found if words in one.about], ["ok"], words)
        found = self.doctor(user="pi", cwd="/home/pi")
        self.assertNotIn("wrong", [one.word for one in found])
        hidden = [one.about for one in found if "run doctor with sudo to check" in one.about]
        self.assertEqual(len(hidden), 2, found)

    def test_unit_that_is_stopped_disabled_or_not_read_again(self):
        self.machine.run("systemctl", "stop", "pigeonpost-server")
        self.repair("pigeonpost-server is not running")
        self.machine.run("systemctl", "disable", "pigeonpost-server")
        self.repair("pigeonpost-server is running, but does not start at boot")
        self.machine.run("systemctl", "disable", "--now", "pigeonpost-server")
        self.repair("pigeonpost-server is installed, but is not running and does not start at boot")
        self.assertEqual(self.shown("pigeonpost-server", "ActiveState"), "active")
        self.machine.sh("echo '# changed' >> /etc/systemd/system/pigeonpost-server.service")
        self.repair("systemd has not read them")

    def test_changes_that_are_not_in_force(self):
        self.machine.sh("sleep 0.1; touch /etc/pigeonpost/node.toml /etc/pigeonpost/server.toml")
        self.repair("node.toml has changed since pigeonpost-node was started")
        self.repair("server.toml has changed since pigeonpost-server was started")
        self.machine.sh("sleep 0.1; touch /opt/pigeonpost/pigeonpost/server/ingest.py")
        self.repair("ingest.py has changed since pigeonpost-server was started")

    def test_wrong_settings_and_settings_that_the_service_may_not_read(self):
        self.machine.write("/etc/pigeonpost/node.toml", "[node]\nnaem = 'x'\n")
        self.machine.run("systemctl", "restart", "pigeonpost-node", is_checked=False)
        wait_until(lambda: self.shown("pigeonpost-node", "ActiveState") == "failed", "it has failed")
        words = r"has failed \(status 2: invalid settings\): .*node.toml, line 2: .*did you mean \"name\""
        self.remedy_of(words, "node")
        self.machine.write("/etc/pigeonpost/node.toml", NODE, 0o600)
        self.machine.run("systemctl", "restart", "pigeonpost-node", is_checked=False)
        self.repair("node.toml cannot be read by the service", "node")
        self.assertEqual(self.shown("pigeonpost-node", "ActiveState"), "active")
        self.machine.sh("chmod 600 /etc/pigeonpost/node.toml")
        found = self.doctor("node", user="pi")
        self.assertIn("run doctor with sudo to check /etc/pigeonpost/node.toml", [one.about for one in found])

    def test_group_that_is_missing(self):
        self.machine.write(f"{UNITS}/pigeonpost-node.service.d/x.conf", "[Service]\nSupplementaryGroups=noneofours\n")
        self.machine.sh("systemctl daemon-reload; systemctl restart pigeonpost-node || true")
        self.remedy_of(r"\(status 216: GROUP", "node")
        self.repair("the group noneofours does not exist on this system", "node")
        self.assertEqual(self.wrong("node"), [])

    def test_folder_that_is_missing(self):
        self.machine.write(f"{UNITS}/pigeonpost-server.service.d/x.conf", "[Service]\nReadWritePaths=/mnt/nosuch\n")
        self.machine.sh("systemctl daemon-reload; systemctl restart pigeonpost-server || true")
        self.remedy_of(r"\(status 226: NAMESPACE", "server")

    def test_data_in_use(self):
        self.machine.run("systemctl", "stop", "pigeonpost-server")
        by_hand = ["python3", "/opt/pigeonpost/server.py", "--data", "/var/lib/pigeonpost-server"]
        self.machine.run("systemd-run", "--unit=by-hand", *by_hand, "--web", "127.0.0.1:8090")
        self.addCleanup(self.machine.run, "systemctl", "stop", "by-hand")
        self.machine.wait_for_log("by-hand", "the page is at")
        self.machine.run("systemctl", "start", "pigeonpost-server", is_checked=False)
        self.remedy_of(r"\(status 75: another program uses the same data\): .*locked by process", "server")

    def test_missing_token_is_found(self):
        self.machine.write("/etc/pigeonpost/node-token", "", 0o600)
        self.machine.run("systemctl", "restart", "pigeonpost-node")
        remedy = self.remedy_of("node-token is empty", "node")
        command, _, then = remedy.partition(" (enter only the token), then ")
        self.machine.run("sh", "-ec", command, given=f"{TOKEN}\n")
        self.machine.sh(f"sleep 0.1; {then}")
        self.assertEqual(self.wrong("node"), [])
        self.machine.sh("chmod 644 /etc/pigeonpost/node-token")
        self.repair("node-token .contains the token. can be read by other users", "node")
        found = self.doctor("node", user="pi")
        self.assertTrue(
            [one for one in found if "sudo to check the token in /etc/pigeonpost/node-token" in one.about], found
        )
        self.assertNotIn("wrong", [one.word for one in found])

    def test_page_on_port_80(self):
        self.machine.write("/etc/pigeonpost/server.toml", f'{SERVER}[web]\nlisten = ["0.0.0.0:80"]\n')
        self.machine.run("systemctl", "restart", "pigeonpost-server", is_checked=False)
        remedy = self.remedy_of("may not listen on 0.0.0.0:80", "server")
        self.machine.write("/etc/pigeonpost/server.toml", SERVER)
        self.machine.sh(re.search("then (.* --write)", remedy)[1])
        self.assertEqual(self.wrong("server"), [])
        self.machine.run(*CURL, "http://127.0.0.1/healthz")
        self.machine.sh("systemctl stop pigeonpost-server.socket pigeonpost-server; systemctl start pigeonpost-server")
        self.repair("pigeonpost-server.socket is not active", "server")
        self.machine.run(*CURL, "http://127.0.0.1/healthz")

    def test_port_that_another_program_has(self):
        self.machine.run("systemctl", "stop", "pigeonpost-server")
        self.machine.run("systemd-run", "--unit=other", "nc", "-lk", "8080")
        self.addCleanup(self.machine.run, "systemctl", "stop", "other")
        wait_until(lambda: self.machine.sh("ss -Hltn 'sport = :8080'").stdout, "the port is taken")
        self.machine.run("systemctl", "start", "pigeonpost-server", is_checked=False)
        command = self.remedy_of("cannot listen on .*8080: Address already in use", "server").partition(" shows")[0]
        self.assertIn('"nc"', self.machine.sh(command).stdout)

    def test_backups_to_a_folder_that_the_unit_keeps_closed(self):
        to = "/mnt/second"
        self.machine.write("/etc/pigeonpost/server.toml", f'{SERVER}[backup]\nto = "{to}"\n')
        self.machine.sh("sleep 0.1; systemctl restart pigeonpost-server")
        self.addCleanup(self.machine.sh, f"rm -rf {to}")
        self.machine.sh(self.remedy_of(f"{to} does not exist", "server").rpartition("or ")[2])
        self.repair(f"the unit does not allow the server to write to {to}", "server")
        self.assertEqual(self.wrong("server"), [])
        pid = self.shown("pigeonpost-server", "MainPID")
        self.machine.run("nsenter", f"--target={pid}", "--mount", "--setuid=" + self.shown("pigeonpost-server", "UID"),
                         "--setgid=" + self.machine.sh("getent group pigeonpost-backup").stdout.split(":")[2],
                         "touch", f"{to}/x")  # fmt: skip

    def test_data_of_a_trial_by_hand(self):
        self.machine.sh(
            "systemctl stop pigeonpost-server; rm -rf /var/lib/private/pigeonpost-server /var/lib/pigeonpost-server;"
            " rm -rf /root/trial; mkdir /root/trial; mv /etc/pigeonpost/server.toml /root/trial/; cd /root/trial;"
            " systemd-run --quiet --unit=trial --working-directory=/root/trial python3 /opt/pigeonpost/server.py"
        )
        self.machine.wait_for_log("trial", "the page is at")
        self.machine.run("systemctl", "stop", "trial")
        found = self.doctor("server", cwd="/root/trial")
        (settings,) = [one for one in found if "server.toml is used only by a program started by hand" in one.about]
        by_hand = "data of a program started by hand"
        (data,) = [one for one in found if f"{by_hand}, which the service does not use" in one.about]
        self.machine.sh(f"{settings.remedy.partition(': ')[2]}; {data.remedy}")
        left = [one.about for one in self.doctor("server", cwd="/root/trial") if by_hand in one.about]
        self.assertEqual(left, [])
        self.assertEqual(self.wrong("server"), [])

    def test_program_that_was_copied_in_part_or_is_gone(self):
        self.machine.copy_program("/root/new")
        self.addCleanup(self.machine.copy_program)
        new = "/root/new/control.py"
        self.machine.sh(
            "rm /opt/pigeonpost/pigeonpost/server/ingest.py; :> /opt/pigeonpost/pigeonpost/server/quality.py"
        )
        self.repair(
            "/opt/pigeonpost was not copied completely: pigeonpost/server/ingest.py is missing", "server", program=new
        )
        self.machine.sh("rm -r /opt/pigeonpost")
        self.repair("starts /opt/pigeonpost/server.py, which does not exist", "server", program=new)


class Devices(OneRelease):
    """Devices that exist in name only: opening one gives ENXIO if it is allowed."""

    def test_drop_in_of_a_device_that_is_missing(self):
        machine = self.machine
        machine.copy_program()
        machine.write("/etc/pigeonpost/node.toml", '[[sensor]]\nkind = "adc"\nchannels.a.input = 1\n')
        machine.run("python3", "/opt/pigeonpost/control.py", "install", "node", "--write")
        machine.sh("mknod --mode=0660 /dev/spidev0.0 c 153 0; mknod --mode=0660 /dev/vcio c 236 0")
        machine.write(DRIVERS, machine.read("/proc/devices").replace("\n\n", "\n153 spi\n\n", 1))
        machine.sh(f"mount --bind {DRIVERS} /proc/devices")
        machine.write("/usr/local/bin/vcgencmd", "#!/bin/sh\necho temp=47.2\n", 0o755)
        table = (
            '[[sensor]]\nkind = "command"\ncommand = ["vcgencmd", "measure_temp"]\nchannels.t.pattern = "=([0-9.]+)"\n'
        )
        machine.sh(f"cat >> /etc/pigeonpost/node.toml <<'E'\n{table}E\nsystemctl restart pigeonpost-node")
        remedy = self.remedy_of("does not allow vcgencmd to open its devices: the drop-in video.conf", "node")
        self.assertIn("/etc/systemd/system/pigeonpost-node.service.d/video.conf", remedy)
        remedy = self.remedy_of("cannot open /dev/spidev0.0: the drop-in spi.conf is missing", "node")
        self.assertIn("/etc/systemd/system/pigeonpost-node.service.d/spi.conf", remedy)
        machine.sh(remedy.partition(",")[0])
        self.assertEqual([about for about in self.wrong("node") if "drop-in" in about], [])
        self.remedy_of("/dev/spidev0.0 cannot be opened by pigeonpost-node: the device's group is not spi", "node")
        machine.run("chgrp", "spi", "/dev/spidev0.0")  # as the rules of that remedy do with udev
        found = self.doctor("node")
        self.assertIn("ok", [one.word for one in found if "pigeonpost-node may open /dev/spidev0.0" in one.about])
        self.remedy_of("cannot be read", "node")  # there is no chip


class Older(OneRelease):
    def test_units_of_the_first_version_and_a_new_machine(self):
        machine = self.machine
        machine.copy_program("/root/new")
        new = "/root/new/control.py"
        self.assertEqual(self.wrong(program=new), [])
        machine.copy_program(revision=FIRST_REVISION)
        machine.sh("cp /opt/pigeonpost/deploy/*.service /etc/systemd/system/; systemctl daemon-reload")
        machine.sh("systemctl enable --now pigeonpost-node pigeonpost-server || true")
        machine.write("/etc/pigeonpost/node.toml", NODE)
        self.remedy_of("does not start: the group spi does not exist on this system .216/GROUP", program=new)
        remedy = self.repair("names the token '-node-token', so the node does not receive it", program=new)
        self.assertEqual(remedy, "python3 /root/new/control.py install node --write")
        self.assertEqual(self.wrong("node"), [])


class Package(OneRelease):
    def test_package_before_and_after_it_is_switched_on(self):
        put(self.machine, build_package(self), "/root/pigeonpost.deb")
        self.machine.run("dpkg", "--install", "/root/pigeonpost.deb")
        found = self.doctor(program="pigeonpost", cwd="/root")
        self.assertNotIn("wrong", [one.word for one in found])
        units = [one for one in found if "it is not enabled" in one.about]
        self.assertEqual(len(units), 2, found)
        self.machine.write("/etc/pigeonpost/node.toml", NODE)
        self.machine.write("/etc/pigeonpost/server.toml", SERVER)
        for one in units:
            self.machine.sh(one.remedy.rpartition(": ")[2])
        wait_until(lambda: not self.wrong(program="pigeonpost", cwd="/root"), "nothing is wrong")
        commands = [one.remedy for one in self.doctor(program="pigeonpost", cwd="/root") if "no password" in one.about]
        self.assertEqual(commands, ["pigeonpost --data /var/lib/pigeonpost-server password"])


class BookwormServices(Services, unittest.TestCase):
    release = "bookworm"


class TrixieServices(Services, unittest.TestCase):
    release = "trixie"


class BookwormDevices(Devices, unittest.TestCase):
    release = "bookworm"


class TrixieDevices(Devices, unittest.TestCase):
    release = "trixie"


class BookwormOlder(Older, unittest.TestCase):
    release = "bookworm"


class TrixieOlder(Older, unittest.TestCase):
    release = "trixie"


class BookwormPackage(Package, unittest.TestCase):
    release = "bookworm"


class TrixiePackage(Package, unittest.TestCase):
    release = "trixie"


if __name__ == "__main__":
    unittest.main()
