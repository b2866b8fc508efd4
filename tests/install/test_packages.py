"""The Debian package in booted machines, the file for Raspberry Pi Imager, and pipx (docs/packages.md)."""

import json
import os
import re
import shutil
import subprocess
import unittest

from tests.install import need_install
from tests.install.machine import Machine, machine_for
from tests.support import LIMIT_S, ROOT, clean_environment, free_port, temp_folder, wait_until

try:
    import yaml
except ImportError:
    yaml = None

PASSWORD = "correct horse battery"
NODE_SETTINGS = '[node]\nname = "basement"\nevery = 0.5\nsimulate = true\n'


def setUpModule():
    need_install(systemd_nspawn="systemd-container", debootstrap="debootstrap", dpkg_deb="dpkg", pipx="pipx")


def build_package(test):
    """Return the path of a package built from these files; its folder is removed after the class."""
    folder = temp_folder(test)
    subprocess.run(
        ["sh", os.path.join(ROOT, "deploy", "build-deb.sh"), folder], check=True, capture_output=True, timeout=LIMIT_S
    )
    (name,) = os.listdir(folder)
    return os.path.join(folder, name)


def put(machine: Machine, path, target):
    """Copy a file into a machine."""
    os.makedirs(os.path.dirname(machine.root + target), exist_ok=True)
    shutil.copy(path, machine.root + target)


class Package:
    """One release. A test goes through the life of a package, and removes it at the end."""

    release = ""

    @classmethod
    def setUpClass(cls):
        cls.machine = machine_for(cls, cls.release)

    def test_life_of_the_package(self):
        machine = self.machine
        put(machine, build_package(self), "/root/pigeonpost.deb")
        own = '[server]\nname = "cellar"\n'  # written first, as by cloud-init; dpkg asks no question
        machine.write("/etc/pigeonpost/server.toml", own)
        # As on Raspberry Pi OS. Otherwise systemd-sysusers would report each group that it creates.
        machine.sh("for name in spi i2c gpio; do getent group $name || groupadd --system $name; done")
        result = machine.run("dpkg", "--install", "/root/pigeonpost.deb")
        self.assertIn("sudo systemctl enable --now pigeonpost-node", result.stdout)
        self.assertEqual(result.stderr, "")
        self.assertEqual(machine.read("/etc/pigeonpost/server.toml"), own)
        default = machine.read("/usr/share/pigeonpost/node.default.toml")
        self.assertEqual(machine.read("/etc/pigeonpost/node.toml"), default)
        self.assertTrue(machine.run("ls", "/usr/share/pigeonpost/__pycache__").stdout)  # compiled once, for all starts
        machine.run("test", "-s", "/usr/share/pigeonpost/docs/tutorial.md")  # the manual of /help
        self.collects_and_shows()
        self.backs_up_and_restores()
        before = self.rows()
        machine.run("dpkg", "--install", "/root/pigeonpost.deb")  # an upgrade: settings are kept, programs continue
        self.assertEqual(machine.read("/etc/pigeonpost/node.toml"), NODE_SETTINGS)
        wait_until(lambda: self.rows() > before + 2, "samples after the upgrade")
        self.control("verify")
        self.leaves_the_data()

    def test_package_beside_an_installation_by_control_py_prints_what_runs(self):
        machine = self.machine
        put(machine, build_package(self), "/root/pigeonpost.deb")
        unit = "/etc/systemd/system/pigeonpost-node.service"
        machine.write(unit, "[Service]\nExecStart=/usr/bin/python3 /opt/pigeonpost/node.py\n")
        result = machine.run("dpkg", "--install", "/root/pigeonpost.deb")
        self.assertIn("sudo python3 /opt/pigeonpost/control.py uninstall node --write\n", result.stderr)
        self.assertNotIn("uninstall server", result.stderr)
        machine.copy_program("/root/pigeonpost")
        result = machine.run("python3", "/root/pigeonpost/control.py", "install", "node", is_checked=False)
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("sudo apt remove pigeonpost", result.stderr)
        machine.run("dpkg", "--purge", "pigeonpost")
        machine.run("rm", unit)

    def test_an_image_that_is_being_built_has_the_groups(self):
        """In an image systemd is installed but does not run.

        The units with the package's drop-ins need the groups at boot.
        """
        machine = self.machine
        put(machine, build_package(self), "/root/pigeonpost.deb")
        groups = "for name in spi i2c gpio; do groupdel $name 2>/dev/null || true; done"
        machine.sh(f"{groups}; unshare --mount sh -ec 'umount -l /run; dpkg --install /root/pigeonpost.deb'")
        machine.run("getent", "group", "spi", "i2c", "gpio")
        machine.run("dpkg", "--purge", "pigeonpost")

    def test_data_of_a_trial_is_moved_and_the_page_comes_to_port_80(self):
        machine = self.machine
        put(machine, build_package(self), "/root/pigeonpost.deb")
        machine.sh("rm -rf /var/lib/pigeonpost-server /var/lib/private/pigeonpost-server /etc/pigeonpost")
        machine.run("dpkg", "--install", "/root/pigeonpost.deb")
        machine.write("/root/one.csv", "time,temperature\n2026-01-01T00:00:00Z,1\n")
        trial = ["pigeonpost", "--data", "/root/data"]
        machine.run(*trial, "import", "--node", "attic", "/root/one.csv")
        told = machine.run(*trial, "install", "server", "--move-data", "--port-80", "--write").stdout
        machine.run("test", "!", "-e", "/root/data")
        machine.sh(told.rstrip().rpartition("To start it: ")[2].replace("sudo ", ""))
        machine.wait_for_log("pigeonpost-server", "the page is at ")
        machine.run("curl", "--silent", "--fail", "http://127.0.0.1/healthz")
        self.assertIn("1 sample of 1 node: none missing", self.control("verify"))
        machine.sh("systemctl disable --now pigeonpost-server.socket pigeonpost-server; dpkg --purge pigeonpost")
        machine.sh("rm -rf /var/lib/private/pigeonpost-server /var/lib/pigeonpost-server")

    def collects_and_shows(self):
        machine = self.machine
        token = self.control("token", "basement").strip()
        machine.write("/etc/pigeonpost/node-token", f"{token}\n", 0o600)
        machine.write("/etc/pigeonpost/node.toml", NODE_SETTINGS)
        machine.write("/etc/pigeonpost/server.toml", '[server]\nnodes = ["basement@127.0.0.1"]\n')
        machine.run("systemctl", "enable", "--now", "pigeonpost-node", "pigeonpost-server")
        page = wait_until(lambda: re.search(r"temperature +-?[0-9.]+ °C", self.page()), "a value on the page")
        self.assertTrue(page)
        self.assertNotIn("no token", machine.journal("pigeonpost-node"))
        given = f"{PASSWORD}\n{PASSWORD}\n"
        machine.run("pigeonpost", "--data", "/var/lib/pigeonpost-server", "password", given=given)
        wait_until(lambda: "login" in self.page(), "the password")
        self.control("check")

    def backs_up_and_restores(self):
        """Check docs/data.md: a backup while the server runs, and the server restored from it alone."""
        self.control("backup", "/root/backup")
        machine = self.machine
        machine.run("systemctl", "stop", "pigeonpost-server")
        machine.sh("rm -rf /var/lib/private/pigeonpost-server/*")
        self.control("restore", "/root/backup")
        machine.run("systemctl", "start", "pigeonpost-server")
        machine.wait_for_log("pigeonpost-server", "the page is at ")
        wait_until(lambda: "login" in self.page(), "the password from the backup")
        before = self.rows()
        wait_until(lambda: self.rows() > before, "samples after the restore")
        self.control("verify")

    def leaves_the_data(self):
        machine = self.machine
        result = machine.run("dpkg", "--purge", "pigeonpost")
        self.assertIn("The samples are still in /var/lib/private/pigeonpost-server", result.stderr)
        for path in ("/etc/pigeonpost", "/usr/share/pigeonpost", "/usr/bin/pigeonpost"):
            self.assertNotEqual(machine.run("test", "-e", path, is_checked=False).returncode, 0, path)
        machine.run("test", "-s", "/var/lib/private/pigeonpost-server/pigeonpost.sqlite3")
        machine.run("test", "-s", "/var/lib/private/pigeonpost-node/outbox.ring")
        self.assertEqual(machine.run("systemctl", "--failed", "--no-legend").stdout.strip(), "")

    def control(self, *command):
        return self.machine.run("pigeonpost", "--data", "/var/lib/pigeonpost-server", *command).stdout

    def page(self):
        return self.machine.run("curl", "--silent", "http://127.0.0.1:8080/", is_checked=False).stdout

    def rows(self):
        return self.control("export").count("\n")


class Bookworm(Package, unittest.TestCase):
    release = "bookworm"


class Trixie(Package, unittest.TestCase):
    release = "trixie"


@unittest.skipIf(yaml is None, "needs PyYAML")
class FirstStart(unittest.TestCase):
    """deploy/user-data.yaml, carried out as cloud-init does."""

    def test_the_node_runs_after_the_first_start(self):
        with open(os.path.join(ROOT, "deploy", "user-data.yaml"), encoding="utf-8") as file:
            text = file.read()
        self.assertTrue(text.startswith("#cloud-config\n"))
        data = yaml.safe_load(text)
        self.assertEqual(set(data), {"hostname", "rpi", "write_files", "runcmd"})
        machine = machine_for(type(self), "trixie")
        package = build_package(self)
        put(machine, package, f"/boot/firmware/{os.path.basename(package)}")
        for file in data["write_files"]:
            machine.write(file["path"], file["content"], int(file.get("permissions", "0644"), 8))
        with_chip = machine.read("/etc/pigeonpost/node.toml")
        machine.write("/etc/pigeonpost/node.toml", f"{with_chip}simulate = true\n")  # the machine has none
        for command in data["runcmd"]:
            machine.run(*command)
        self.assertIn("basement", machine.wait_for_log("pigeonpost-node", "listening on "))
        self.assertIn("every = 10", machine.read("/etc/pigeonpost/node.toml"))


class Pipx(unittest.TestCase):
    def test_installed_commands_run(self):
        folder = temp_folder(self)
        source = os.path.join(folder, "source")  # pip leaves files in its build folder
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
            if name and os.path.exists(os.path.join(ROOT, name)) and not name.startswith(("tests/", "bench/")):
                os.makedirs(os.path.dirname(os.path.join(source, name)), exist_ok=True)
                shutil.copy(os.path.join(ROOT, name), os.path.join(source, name))
        programs = os.path.join(folder, "bin")
        environment = {**os.environ, "PIPX_HOME": os.path.join(folder, "pipx"), "PIPX_BIN_DIR": programs}
        install = ["pipx", "install", "--python", "/usr/bin/python3", source]
        result = subprocess.run(install, env=environment, capture_output=True, text=True, timeout=5 * LIMIT_S)
        self.assertEqual(result.returncode, 0, result.stderr)
        for name in ("pigeonpost", "pigeonpost-node", "pigeonpost-server"):
            version = subprocess.run([os.path.join(programs, name), "--version"], capture_output=True, text=True)
            self.assertRegex(version.stdout, r"^pigeonpost \d")
        bundle = os.path.join(folder, "node.pyz")
        subprocess.run(
            [os.path.join(programs, "pigeonpost"), "bundle", "node", bundle], check=True, capture_output=True
        )
        self.shows_a_value(os.path.join(programs, "pigeonpost-server"), folder)

    def shows_a_value(self, program, folder):
        port = free_port()
        command = [program, "--demo", "--web", f"127.0.0.1:{port}"]
        with open(os.path.join(folder, "log"), "wb") as log:
            server = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=log, stderr=log)
        try:
            wait_until(lambda: self.value_at(port), "a value on the page")
        finally:
            server.terminate()
            self.assertEqual(server.wait(LIMIT_S), 0)

    def value_at(self, port):
        address = f"http://127.0.0.1:{port}/api/v1/nodes"
        result = subprocess.run(["curl", "--silent", address], capture_output=True, text=True, timeout=LIMIT_S)
        return result.returncode == 0 and "temperature" in json.dumps(json.loads(result.stdout))


if __name__ == "__main__":
    unittest.main()
