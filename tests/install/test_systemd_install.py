"""control.py install and uninstall in booted machines, by a user with sudo; data of a trial; upgrades of 1b8238e."""

import re
import unittest

from tests.install import need_install
from tests.install.machine import machine_for
from tests.install.test_systemd_units import CURL, SERVER_DATA, UNITS
from tests.support import wait_until

HOME = "/home/pi/pigeonpost"
OLD = "1b8238e"
NODE = '[node]\nname = "basement"\nsimulate = true\nevery = 0.2\n'
SERVER = '[server]\nnodes = ["basement@127.0.0.1:5003"]\n[store]\ncommit = 0.1\n'


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap")


class Install:
    release = ""  # each class of tests has its own

    @classmethod
    def setUpClass(cls):
        cls.machine = machine_for(cls, cls.release)
        cls.machine.sh(
            "useradd --create-home pi; chmod 700 /home/pi; echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi"
        )
        cls.machine.copy_program(HOME)
        cls.machine.sh(f"chown -R pi: {HOME}; chmod -R go= {HOME}")  # a umask of 077

    def setUp(self):
        self.machine.sh(
            "systemctl stop by-hand-node by-hand-server pigeonpost-node pigeonpost-server.socket pigeonpost-server"
            " 2>/dev/null || true; rm -rf /var/lib/private/pigeonpost-* /var/lib/pigeonpost-* /etc/pigeonpost"
            f" /opt/pigeonpost {UNITS}/pigeonpost-* {HOME}/data {HOME}/*[a-z].toml.own {HOME}/node.toml"
            f" {HOME}/server.toml; systemctl daemon-reload; systemctl reset-failed"
        )

    def control(self, *arguments, cwd=HOME, **options):
        """Run control.py of the user's copy with sudo."""
        return self.machine.run("sudo", "python3", "control.py", *arguments, cwd=cwd, user="pi", **options)

    def server(self, *arguments, **options):
        """Run control.py of the installed program on the server's data."""
        return self.control("--data", SERVER_DATA, *arguments, cwd="/opt/pigeonpost", **options)

    def count(self):
        """Return the number of samples that the server has."""
        return int(re.match(r"\d+", self.server("verify").stdout)[0])

    def settings(self):
        self.machine.write("/etc/pigeonpost/node.toml", NODE)
        self.machine.write("/etc/pigeonpost/server.toml", SERVER)

    def test_install_again_and_uninstall(self):
        self.settings()
        for program in ("server", "node"):
            self.control("install", program, "--write")
        self.machine.sh("test ! -e /home/pi/pigeonpost/data")
        self.machine.run("systemctl", "is-enabled", "pigeonpost-node", "pigeonpost-server")
        wait_until(self.count, "samples are stored")
        self.assertFalse(self.machine.run("find", "/opt/pigeonpost", "!", "-perm", "-444").stdout)
        self.assertFalse(self.machine.run("find", "/opt/pigeonpost", "!", "-user", "root").stdout)

        # A user's file is kept, and a module that no longer exists is deleted.
        self.machine.sh("echo x > /opt/pigeonpost/mine.sh; echo x > /opt/pigeonpost/pigeonpost/core/stale.py")
        self.machine.write("/etc/pigeonpost/node.toml", NODE + "\n# mine\n")
        before = self.count()
        for program in ("server", "node"):
            self.control("install", program, "--write")
        self.control("install", "server", "--port-80", "--write")
        self.machine.sh("test -e /opt/pigeonpost/mine.sh; test ! -e /opt/pigeonpost/pigeonpost/core/stale.py")
        self.assertIn("# mine", self.machine.read("/etc/pigeonpost/node.toml"))
        told = self.control("install", "server", "--write", cwd="/opt/pigeonpost").stdout  # port 80 stays
        self.assertIn("the page is at http://127.0.0.1:80/?key=", told)
        self.machine.run(*CURL, "http://127.0.0.1/healthz")
        wait_until(lambda: self.count() > before, "samples are stored")

        printed = self.control("uninstall", "server").stdout
        self.assertIn(f"rm {UNITS}/pigeonpost-server.socket", printed)
        self.machine.run("systemctl", "is-active", "pigeonpost-server")
        self.control("uninstall", "server", "--write")
        self.machine.run("systemctl", "is-active", "pigeonpost-node")
        told = self.control("uninstall", "node", "--write", cwd="/opt/pigeonpost").stdout
        self.assertIn("/opt/pigeonpost/mine.sh", told)
        self.assertEqual(self.machine.run("ls", "/opt/pigeonpost").stdout.split(), ["mine.sh"])
        self.assertFalse(self.machine.sh(f"find {UNITS} -name 'pigeonpost*'").stdout)
        self.machine.sh(
            f"test -e {SERVER_DATA}/pigeonpost.sqlite3; test -e /var/lib/pigeonpost-node/outbox.ring;"
            " test -e /etc/pigeonpost/node.toml; test -e /etc/pigeonpost/server.toml"
        )
        self.settings()
        self.control("install", "server", "--write")
        self.assertGreater(self.count(), before)

    def test_without_root_and_with_wrong_settings_nothing_is_written(self):
        self.machine.write("/etc/pigeonpost/node.toml", '[node]\ndata = "data"\n')
        plain = ("python3", "control.py", "install", "node", "--write")
        result = self.machine.run(*plain, cwd=HOME, user="pi", is_checked=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("sudo python3 control.py install node --write", result.stderr)
        for text, told in (
            ('[node]\ndata = "data"\n', "remove the line"),
            ("[node]\nnaem = 1\n", 'did you mean "name"?'),
        ):
            self.machine.write("/etc/pigeonpost/node.toml", text)
            result = self.control("install", "node", "--write", is_checked=False)
            self.assertEqual(result.returncode, 2)
            self.assertIn(told, result.stderr)
        self.machine.write("/etc/pigeonpost/node.toml", NODE, 0o600)
        self.assertIn("sudo chmod 644", self.control("install", "node", "--write", is_checked=False).stderr)
        self.machine.sh(f"rm /etc/pigeonpost/node.toml; echo '[mail]\npassword = \"x\"' > {HOME}/server.toml")
        result = self.control("install", "server", "--write", is_checked=False)
        self.assertIn("/etc/pigeonpost/server.env", result.stderr)
        self.machine.sh(f"test ! -e /opt/pigeonpost; test ! -e {UNITS}/pigeonpost-node.service")

    def test_secret_of_a_sensor_goes_to_the_place_that_is_named(self):
        text = NODE + '[[sensor]]\nkind = "command"\ncommand = ["echo", "42"]\nchannels = {a = {}}\npassword = "x"\n'
        self.machine.write(f"{HOME}/node.toml", text)
        result = self.control("install", "node", "--write", is_checked=False)
        self.assertEqual(result.returncode, 2)
        self.assertIn("[[sensor]] 1: password to /etc/pigeonpost/node.env", result.stderr)
        self.assertIn("PIGEONPOST_NODE_TOML='...'", result.stderr)
        self.machine.sh(f"test ! -e /etc/pigeonpost/node.toml; rm {HOME}/node.toml")
        text = text.replace('password = "x"\n', "")
        self.machine.write("/etc/pigeonpost/node.env", f"PIGEONPOST_NODE_TOML='{text}'\n", 0o600)
        self.control("install", "node", "--write")
        self.assertIn("node basement: sensors a, sampled every", self.machine.journal("pigeonpost-node"))

    def test_service_that_does_not_start_logs_the_reason(self):
        self.machine.run("systemd-run", "--unit=by-hand-server", "nc", "-lk", "8080")
        result = self.control("install", "server", "--write", is_checked=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Address already in use", result.stderr)

    def by_hand(self, program):
        """Run a program in the user's folder, as the user."""
        self.machine.run(
            "systemd-run", f"--unit=by-hand-{program}", "--uid=pi", f"--working-directory={HOME}",
            "python3", f"{program}.py",
        )  # fmt: skip

    def test_data_of_a_trial_is_moved(self):
        self.machine.sh(f"cat > {HOME}/node.toml <<'X'\n{NODE}\nX\ncat > {HOME}/server.toml <<'X'\n{SERVER}\nX\n")
        for program in ("node", "server"):
            self.by_hand(program)
        taken = wait_until(
            lambda: int(re.match(r"\d+", self.control("verify", is_checked=False).stdout or "0")[0]), "samples"
        )
        self.control("token", "attic")
        result = self.control("install", "server", "--move-data", "--write", is_checked=False)
        self.assertIn("is locked by process", result.stderr)
        self.machine.sh("test ! -e /opt/pigeonpost")
        self.machine.run("systemctl", "kill", "--signal=KILL", "by-hand-node", "by-hand-server")
        wait_until(lambda: "active" not in self.machine.run(
            "systemctl", "is-active", "by-hand-server", is_checked=False).stdout.split(), "it is gone")  # fmt: skip
        for program in ("server", "node"):
            self.control("install", program, "--move-data", "--write")
        self.assertIn('name = "basement"', self.machine.read("/etc/pigeonpost/node.toml"))  # the settings, too
        self.assertGreaterEqual(self.count(), taken)
        wait_until(lambda: self.count() > taken, "it goes on")
        self.assertIn("attic", self.server("tokens").stdout)
        self.machine.sh(f"test ! -e {HOME}/data")
        owners = set(self.machine.sh(f"find {SERVER_DATA}/ /var/lib/pigeonpost-node/ -printf '%U\\n'").stdout.split())
        self.assertNotIn("0", owners)
        result = self.control("install", "server", "--move-data", "--write", is_checked=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("there is nothing to move", result.stderr)

    def start_the_old_version(self):
        self.machine.copy_program(revision=OLD)
        self.machine.sh(f"getent group spi || groupadd --system spi; cp /opt/pigeonpost/deploy/*.service {UNITS}/")
        self.settings()
        self.machine.write("/etc/pigeonpost/node-token", "0123456789abcdef0123456789abcdef\n", 0o600)
        self.machine.sh("systemctl daemon-reload; systemctl enable --now pigeonpost-node pigeonpost-server")
        wait_until(self.count, "samples are stored by the old version")
        return self.count()

    def goes_on_after(self, before):
        """Check that the new version has the data of the old one, and continues with the token."""
        self.server("token", "basement", "--set", given="0123456789abcdef0123456789abcdef\n")
        self.assertGreaterEqual(self.count(), before)
        wait_until(lambda: self.count() > before, "samples are stored by the new version")
        self.assertIn("none missing, none stored twice", self.server("verify").stdout)
        wait_until(lambda: "basement: on" in self.server("status").stdout, "the node is collected from")

    def test_upgrade_of_1b8238e_by_install(self):
        before = self.start_the_old_version()
        for program in ("server", "node"):
            self.control("install", program, "--write")
        self.goes_on_after(before)
        stale = self.machine.sh("ls -d /opt/pigeonpost/stores /opt/pigeonpost/session.py 2>/dev/null || true").stdout
        self.assertFalse(stale)


class Bookworm(Install, unittest.TestCase):
    release = "bookworm"

    def test_upgrade_of_1b8238e_by_copying_files_over_it(self):
        before = self.start_the_old_version()
        self.machine.copy_program()
        self.machine.sh(f"cp /opt/pigeonpost/deploy/*.service {UNITS}/; systemctl daemon-reload")
        self.machine.run("systemctl", "restart", "pigeonpost-server", "pigeonpost-node")
        self.goes_on_after(before)


class Trixie(Install, unittest.TestCase):
    release = "trixie"


if __name__ == "__main__":
    unittest.main()
