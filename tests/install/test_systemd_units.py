"""The units in booted machines of both releases: token, exposure, invalid settings, kills, port 80."""

import re
import unittest

from tests.install import need_install
from tests.install.machine import machine_for
from tests.support import LIMIT_S, wait_until

UNITS = "/etc/systemd/system"
SERVER_DATA = "/var/lib/pigeonpost-server"
TOKEN = "0123456789abcdef0123456789abcdef"
SIMULATE = '[node]\nname = "basement"\nsimulate = true\nevery = 0.2\n'
COLLECT = '[server]\nnodes = ["basement@127.0.0.1:5003"]\n[store]\ncommit = 0.1\n'
CURL = ("curl", "--silent", "--fail", "--max-time", f"{LIMIT_S:g}")


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


class Installed:
    """A machine with the program in /opt and the units of deploy/. Each class has its own."""

    release = ""  # each class of tests has its own

    @classmethod
    def setUpClass(cls):
        cls.machine = machine_for(cls, cls.release)
        cls.machine.copy_program()
        cls.machine.sh("cp /opt/pigeonpost/deploy/*.service /opt/pigeonpost/deploy/*.socket /etc/systemd/system/")

    def setUp(self):
        self.machine.sh(
            "systemctl stop pigeonpost-server.socket pigeonpost-node pigeonpost-server || true; systemctl reset-failed;"
            " rm -rf /var/lib/private/pigeonpost-* /var/lib/pigeonpost-* /etc/pigeonpost;"
            " systemctl daemon-reload"
        )
        self.machine.write("/etc/pigeonpost/node.toml", SIMULATE)
        self.machine.write("/etc/pigeonpost/server.toml", COLLECT)

    def start(self, *units):
        self.machine.run("systemctl", "start", *units)

    def shown(self, unit, name):
        return self.machine.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def control(self, *arguments, **options):
        return self.machine.run(
            "python3", "/opt/pigeonpost/control.py", "--data", SERVER_DATA, *arguments, **options
        )  # fmt: skip

    def journal(self, unit):
        """Return the log of the present or last run of a unit."""
        self.machine.run("journalctl", "--sync")
        run = self.shown(unit, "InvocationID")
        return self.machine.run(
            "journalctl", "--no-pager", "--output=cat", f"_SYSTEMD_INVOCATION_ID={run}", "+", f"INVOCATION_ID={run}"
        ).stdout  # fmt: skip

    def is_collected(self):
        return "basement: on" in self.control("status", is_checked=False).stdout

    def stored(self):
        """Return the number of samples stored by the server."""
        rows = self.machine.run(
            "python3", "-c",
            f"import sqlite3; c = sqlite3.connect('file:{SERVER_DATA}/pigeonpost.sqlite3?mode=ro', uri=True);"
            " print(c.execute('SELECT count(*) FROM samples').fetchone()[0])", is_checked=False,
        ).stdout.strip()  # fmt: skip
        return int(rows) if rows.isdigit() else 0


class Units(Installed):
    def test_node_reads_its_token_and_starts_without_one(self):
        self.start("pigeonpost-node")
        self.assertIn("no token: only programs on this machine can connect", self.journal("pigeonpost-node"))
        self.machine.write("/etc/pigeonpost/node-token", TOKEN + "\n", 0o600)
        self.machine.run("systemctl", "restart", "pigeonpost-node")
        journal = self.journal("pigeonpost-node")
        self.assertIn("listening on", journal)
        self.assertNotIn("no token", journal)
        self.assertNotIn(TOKEN, journal)
        self.start("pigeonpost-server")
        self.control("token", "basement", "--set", given=TOKEN + "\n")
        wait_until(self.is_collected, "the node is collected from with its token")

    def test_units_are_without_fault(self):
        for name in ("pigeonpost-node.service", "pigeonpost-server.service", "pigeonpost-server.socket"):
            told = self.machine.run("systemd-analyze", "verify", f"{UNITS}/{name}")
            self.assertNotIn("pigeonpost", told.stdout + told.stderr)

    def test_exposure_of_both_units_and_with_all_drop_ins_is_at_most_2(self):
        for unit in ("pigeonpost-node", "pigeonpost-server"):
            with self.subTest(unit):
                self.assertLessEqual(self.exposure(unit), 2.0)
        self.addCleanup(self.machine.sh, "rm -r /etc/systemd/system/pigeonpost-node.service.d")
        names = self.machine.run("ls", "/opt/pigeonpost/deploy/pigeonpost-node.service.d").stdout.split()
        self.assertEqual(names, ["gpio.conf", "i2c.conf", "spi.conf", "video.conf"])
        self.machine.run("mkdir", "/etc/systemd/system/pigeonpost-node.service.d")
        for name in names:  # each with those before it
            self.machine.run(
                "cp", f"/opt/pigeonpost/deploy/pigeonpost-node.service.d/{name}",
                "/etc/systemd/system/pigeonpost-node.service.d/",
            )  # fmt: skip
            self.machine.run("systemctl", "daemon-reload")
            with self.subTest(name):
                self.assertLessEqual(self.exposure("pigeonpost-node"), 2.0)

    def exposure(self, unit):
        told = self.machine.run("systemd-analyze", "security", "--no-pager", f"{unit}.service").stdout
        return float(re.search(r"exposure level for \S+: ([0-9.]+)", told)[1])

    def test_wrong_settings_fail_once_and_status_shows_the_reason(self):
        for program in ("node", "server"):
            with self.subTest(program):
                unit = f"pigeonpost-{program}"
                self.machine.write(f"/etc/pigeonpost/{program}.toml", f"[{program}]\nnaem = 'x'\n")
                self.fails_once(unit, "2")
                status = self.machine.run("systemctl", "status", "--no-pager", unit, is_checked=False).stdout
                self.assertRegex(status, rf"{program}\.toml.*naem.*did you mean \"name\"")

    def fails_once(self, unit, status):
        self.assertNotEqual(self.machine.run("systemctl", "start", unit, is_checked=False).returncode, 0)
        wait_until(lambda: self.shown(unit, "ActiveState") == "failed", "the unit has failed")
        self.assertEqual(self.shown(unit, "ExecMainStatus"), status)
        self.assertEqual(self.shown(unit, "NRestarts"), "0")

    def test_data_in_use_fails_once(self):
        by_hand = ["python3", "/opt/pigeonpost/server.py", "--data", SERVER_DATA, "--web", "127.0.0.1:8090"]
        self.machine.run("systemd-run", "--unit=by-hand", *by_hand)
        self.addCleanup(self.machine.run, "systemctl", "stop", "by-hand")
        self.machine.wait_for_log("by-hand", "the page is at")
        self.fails_once("pigeonpost-server", "75")
        self.assertIn(f"locked by process {self.shown('by-hand', 'MainPID')}", self.journal("pigeonpost-server"))

    def test_limits_of_descriptors_and_tasks(self):
        self.start("pigeonpost-node", "pigeonpost-server")
        self.assertEqual(self.shown("pigeonpost-node", "LimitNOFILE"), "1024")
        self.assertEqual(self.shown("pigeonpost-server", "LimitNOFILE"), "65536")
        self.assertEqual(self.shown("pigeonpost-node", "TasksMax"), "512")
        self.assertEqual(self.shown("pigeonpost-server", "TasksMax"), "8192")

    def test_files_written_by_root_are_readable_by_the_service(self):
        self.machine.write("/etc/pigeonpost/node-token", TOKEN + "\n", 0o600)
        self.control("token", "basement", "--set", given=TOKEN + "\n")  # there is no folder yet
        self.control("password", given="a long password\n")
        self.control("certificate")
        self.start("pigeonpost-node", "pigeonpost-server")
        wait_until(self.is_collected, "the node is collected from")
        page = self.machine.run("curl", "--silent", "--include", "http://127.0.0.1:8080/").stdout
        self.assertNotIn("basement", page)  # it asks for the password
        made = self.control("token", "attic").stdout.strip()
        self.assertGreaterEqual(len(made.split()[0]), 16)
        self.control("password", "guest", "--role", "viewer", given="another password\n")
        program = self.control("api-token", "prometheus").stdout.split()[0]
        metrics = (*CURL, "--header", f"Authorization: Bearer {program}", "http://127.0.0.1:8080/metrics")
        wait_until(lambda: "pigeonpost_" in self.machine.run(*metrics, is_checked=False).stdout, "the token is known")
        self.machine.write(
            "/etc/pigeonpost/server.toml",
            f'{COLLECT}[web]\ncertificate = "{SERVER_DATA}/certificate.pem"\nkey = "{SERVER_DATA}/certificate.key"\n',
        )
        self.machine.run("systemctl", "restart", "pigeonpost-server")
        self.control("alive")
        owners = set(self.machine.sh(f"find {SERVER_DATA}/ -printf '%U\\n'").stdout.split())
        self.assertEqual(len(owners), 1, owners)
        self.assertNotIn("0", owners)
        self.assertNotIn("damaged", self.journal("pigeonpost-server"))
        self.assertNotIn("cannot be read", self.journal("pigeonpost-server"))

    def stores_more(self):
        before = self.stored()
        wait_until(lambda: self.stored() > before + 3, "samples are stored")

    def test_kill_of_both_services_while_they_collect_loses_nothing(self):
        self.start("pigeonpost-node", "pigeonpost-server")
        for _ in range(3):
            self.stores_more()
            self.machine.run("systemctl", "kill", "--signal=KILL", "pigeonpost-node", "pigeonpost-server")
            wait_until(lambda: self.shown("pigeonpost-node", "NRestarts") != "0", "the node runs again")
        self.stores_more()
        self.control("alive")
        self.assertIn("none missing, none stored twice", self.control("verify").stdout)
        self.machine.run("systemctl", "stop", "pigeonpost-node", "pigeonpost-server")
        self.assertIn("none missing, none stored twice", self.control("verify").stdout)

    def test_backup_is_restored_into_the_data_of_the_service_and_of_a_new_machine(self):
        self.start("pigeonpost-node", "pigeonpost-server")
        self.stores_more()
        self.control("backup", "/root/saved.backup")
        count = self.stored()
        self.stores_more()
        for what in ("the service's folder", "a new machine"):
            with self.subTest(what):
                self.machine.run("systemctl", "stop", "pigeonpost-server")
                if what == "a new machine":
                    self.machine.sh(f"rm -r {SERVER_DATA} /var/lib/private/pigeonpost-server")
                self.control("restore", "/root/saved.backup")
                self.assertLessEqual(self.stored(), count)
                self.start("pigeonpost-server")
                self.stores_more()
                self.assertNotIn("0", self.machine.sh(f"find {SERVER_DATA}/ -printf '%U\\n'").stdout.split())
                self.assertIn("none missing, none stored twice", self.control("verify").stdout)

    def test_port_80_is_passed_by_a_socket_that_outlives_a_restart(self):
        self.machine.run("systemctl", "start", "pigeonpost-server.socket", "pigeonpost-server")
        self.assertIn("the page is at http://127.0.0.1:80/", self.journal("pigeonpost-server"))
        self.machine.run(*CURL, "http://127.0.0.1/healthz")
        self.assertNotEqual(self.machine.run(*CURL, "http://127.0.0.1:8080/healthz", is_checked=False).returncode, 0)
        self.control("alive")
        inode = self.machine.sh("ss -Hltne 'sport = :80'").stdout
        self.machine.run("systemctl", "restart", "pigeonpost-server")
        self.machine.run(*CURL, "http://127.0.0.1/healthz")
        self.assertEqual(re.search(r"ino:(\d+)", inode)[1],
                         re.search(r"ino:(\d+)", self.machine.sh("ss -Hltne 'sport = :80'").stdout)[1])  # fmt: skip
        self.assertEqual(self.shown("pigeonpost-server", "CapabilityBoundingSet"), "")
        # A client that connects while the server is stopped waits until it runs.
        self.machine.run("systemctl", "stop", "pigeonpost-server")
        self.machine.run(*CURL, "http://127.0.0.1/healthz")
        self.assertEqual(self.shown("pigeonpost-server", "ActiveState"), "active")

    def test_passed_port_speaks_tls_where_the_page_does(self):
        self.control("certificate")
        self.machine.write(
            "/etc/pigeonpost/server.toml",
            f'[web]\ncertificate = "{SERVER_DATA}/certificate.pem"\nkey = "{SERVER_DATA}/certificate.key"\n',
        )
        self.machine.run("systemctl", "start", "pigeonpost-server.socket", "pigeonpost-server")
        self.assertIn("the page is at https://127.0.0.1:80/", self.journal("pigeonpost-server"))
        self.machine.run(*CURL, "--insecure", "https://127.0.0.1:80/healthz")
        self.control("alive")


class Bookworm(Units, unittest.TestCase):
    release = "bookworm"


class Trixie(Units, unittest.TestCase):
    release = "trixie"


if __name__ == "__main__":
    unittest.main()
