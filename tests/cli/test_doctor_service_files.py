"""Tests of `control.py doctor` on the files of a service: settings, secrets, token, devices, ports, data."""

import os
import socket
import stat
import unittest
from unittest import mock

from pigeonpost.cli import doctor, doctor_node, doctor_server, doctor_service, doctor_systemd
from pigeonpost.cli.install_files import DROP_INS
from tests.cli.test_doctor_service import UNITS, Machine
from tests.page_support import use_memory_disk
from tests.support import ROOT, temp_folder


def setUpModule():
    use_memory_disk()


class Files(Machine):
    def test_invalid_settings_of_the_service_are_a_problem(self):
        self.put("etc/pigeonpost/node.toml", "[node]\nnaem = 'x'\n")
        self.assert_wrong('etc/pigeonpost/node.toml, line 2: .*did you mean "name"', "node.default.toml lists all keys")
        self.put("etc/pigeonpost/node.toml", "\ufeff[node]\nsimulate = true\n")
        self.assertEqual(self.wrong(), [])
        with open(os.path.join(self.root, "etc/pigeonpost/node.toml"), "wb") as file:
            file.write("[node]\n".encode("utf-16"))
        self.assert_wrong("is UTF-16")

    def test_unreadable_settings_of_the_service_are_a_problem(self):
        path = self.put("etc/pigeonpost/server.toml", "[server]\n", 0o600)
        self.assert_wrong("server.toml cannot be read by the service", f"chmod 644 {path} && .*restart", "server")
        os.chmod(path, 0o644)
        os.chmod(os.path.dirname(path), 0o700)
        self.assert_wrong("etc/pigeonpost cannot be read by the service", "chmod 755 .*etc/pigeonpost", "server")

    def test_secrets_that_all_users_may_read_are_a_problem(self):
        self.put("etc/pigeonpost/server.toml", '[mail]\npassword = "hidden-word"\n')
        self.assert_wrong(
            r"\[mail\] password is a secret", "server.env, as the variable PIGEONPOST_MAIL_PASSWORD", "server"
        )
        self.put("etc/pigeonpost/node.toml", f'[node]\nsimulate = true\ntoken = "{"t" * 32}"\n')
        self.assert_wrong(r"\[node\] token is a secret", "node-token")
        sensor = '[[sensor]]\nkind = "mqtt"\nhost = "b"\npassword = "hidden-word"\nchannels = {a = {topic = "t"}}\n'
        self.put("etc/pigeonpost/node.toml", sensor)
        self.assert_wrong(r"\[\[sensor\]\] 1: password is a secret", "PIGEONPOST_NODE_TOML")
        self.put("etc/pigeonpost/node.env", "PIGEONPOST_NODE_EVERY=7\n", 0o644)
        self.assert_wrong("node.env .may contain secrets. can be read by other users", "chmod 600")

    def test_variables_of_the_unit_are_checked(self):
        self.put("etc/pigeonpost/node.env", "# x\nPIGEONPOST_NODE_EVERY='7'\nPIGEONPOST_NODE_NAME=a b\n", 0o600)
        found, hidden = self.service().environment()
        self.assertEqual(
            found, {"PYTHONDONTWRITEBYTECODE": "1", "PIGEONPOST_NODE_EVERY": "7", "PIGEONPOST_NODE_NAME": "a b"}
        )
        self.assertEqual(hidden, [])
        self.assert_wrong("PIGEONPOST_NODE_NAME: .*takes")
        self.put("etc/pigeonpost/node.env", "PIGEONPOST_NODE_EVRY=7\nPIGEONPOST_NODE_SIMULATE=1\n", 0o600)
        self.assertEqual(self.find("unknown variable 'PIGEONPOST_NODE_EVRY'")[0], "note")

    def test_data_folder_closed_to_the_service_is_a_problem(self):
        self.put("etc/pigeonpost/node.toml", '[node]\nsimulate = true\ndata = "/srv/x"\n')
        self.assert_wrong('data = "/srv/x": the service may write to /var/lib/pigeonpost-node only', "remove that line")

    def test_token_file_of_the_service_is_checked(self):
        self.put("etc/pigeonpost/node.toml", "[node]\nsimulate = true\n")
        self.assertEqual(self.find("/etc/pigeonpost/node-token does not exist")[0], "note")
        takes = "install -m 600 /dev/stdin /etc/pigeonpost/node-token"
        for text, words in (
            ("\n", "is empty"),
            ("short", "does not contain a valid token"),
            ("two words of a token\n", "does not contain a valid token"),
        ):
            self.put("etc/pigeonpost/node-token", text, 0o600)
            self.assert_wrong(f"node-token {words}", takes)
        self.put("etc/pigeonpost/node-token", f"{'t' * 32}\n", 0o640)
        self.assert_wrong("can be read by other users .mode 0640", "chmod 600")
        os.chmod(os.path.join(self.root, "etc/pigeonpost/node-token"), 0o600)
        self.assertEqual(self.find("node-token contains a token"), ("ok", ""))

    def test_files_of_a_run_by_hand_are_noted(self):
        trial = temp_folder(self)
        os.makedirs(os.path.join(trial, "data"))
        for name in ("server.toml", "data/pigeonpost.sqlite3"):
            with open(os.path.join(trial, name), "w", encoding="utf-8") as file:
                file.write("")
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(trial)
        word, remedy = self.find("server.toml is used only by a program started by hand; the service reads", "server")
        self.assertEqual(word, "note")
        self.assertIn("install -m 644", remedy)
        word, remedy = self.find("data has data of a program started by hand, which the service does not use", "server")
        self.assertRegex(remedy, rf"control.py --data {trial}/data install server --move-data --write")
        self.put("var/lib/pigeonpost-server/pigeonpost.sqlite3", "", 0o600)
        word, remedy = self.find("the two are not merged", "server")
        self.assertEqual(word, "note")


class Devices(Machine):
    SENSORS = '[[sensor]]\nkind = "mcp3424"\nchannels.a.input = 1\n'

    def setUp(self):
        super().setUp()
        self.put(
            "proc/devices", "Character devices:\n  1 mem\n 89 i2c\n235 bcm2835-gpiomem\n\nBlock devices:\n 89 other\n"
        )
        patch = mock.patch.object(doctor_node, "_readings", lambda about, kind, table, data: iter(()))
        patch.start()
        self.addCleanup(patch.stop)

    def add_drop_ins(self, *names, gid=None):
        """Add drop-ins whose groups exist on this system."""
        for name in names:
            with open(os.path.join(ROOT, "deploy/pigeonpost-node.service.d", name), encoding="utf-8") as file:
                self.put(f"{UNITS}/pigeonpost-node.service.d/{name}", file.read())
        for module in (doctor_service, doctor_systemd):
            patch = mock.patch.object(module, "group_id", lambda name: os.getgid() if gid is None else gid)
            patch.start()
            self.addCleanup(patch.stop)

    def device(self, path="dev/i2c-1", numbers=(89, 1)):
        """Create a file that looks like a device with these numbers."""
        path = self.put(path, "", 0o660)
        real, fake = os.stat, list(os.stat(path))
        fake[stat.ST_MODE] = stat.S_IFCHR | 0o660
        made = os.stat_result(fake, {"st_rdev": os.makedev(*numbers)})
        patch = mock.patch(
            "os.stat", lambda name, *more, **options: made if name == path else real(name, *more, **options)
        )
        patch.start()
        self.addCleanup(patch.stop)

    def test_device_without_its_drop_in_is_a_problem(self):
        self.put("etc/pigeonpost/node.toml", self.SENSORS)
        self.assert_wrong("dev/i2c-1 does not exist", "do_i2c 0, then sudo reboot")
        self.device()
        self.assert_wrong("pigeonpost-node cannot open /dev/i2c-1: the drop-in i2c.conf is missing",
                          "install node --write, which writes .*/pigeonpost-node.service.d/i2c.conf")  # fmt: skip
        self.add_drop_ins("i2c.conf")
        self.assertEqual(self.find("pigeonpost-node may open /dev/i2c-1"), ("ok", ""))

    def test_device_of_another_group_is_a_problem(self):
        self.put("etc/pigeonpost/node.toml", self.SENSORS)
        self.device()
        self.add_drop_ins("i2c.conf", gid=54321)
        self.assert_wrong(
            "/dev/i2c-1 cannot be opened by pigeonpost-node: the device's group is not i2c", "60-pigeonpost.rules"
        )

    def test_devices_are_allowed_by_path_and_by_driver(self):
        self.device("dev/gpiomem", (235, 0))
        self.assertFalse(self.service().allows_device("/dev/gpiomem"))
        self.add_drop_ins("gpio.conf")
        self.assertTrue(self.service().allows_device("/dev/gpiomem"))
        self.put(f"{UNITS}/pigeonpost-node.service", "[Service]\nDeviceAllow=/dev/gpiomem rw\n")
        self.assertTrue(self.service().allows_device("/dev/gpiomem"))
        self.put(f"{UNITS}/pigeonpost-node.service", "[Service]\nPrivateDevices=yes\nDeviceAllow=/dev/gpiomem rw\n")
        self.assertFalse(self.service().allows_device("/dev/gpiomem"))

    def command(self, line):
        self.put("etc/pigeonpost/node.toml", f'[[sensor]]\nkind = "command"\n{line}\nchannels.x = {{}}\n')

    def test_commands_that_the_unit_forbids_are_problems(self):
        self.put("dev/vcio", "")
        self.put("usr/local/bin/vcgencmd", "#!/bin/sh\n", 0o755)
        self.command('command = "vcgencmd measure_temp | cat"\nshell = true')
        self.assert_wrong(
            "does not allow vcgencmd to open its devices: the drop-in video.conf is missing", "install node"
        )
        for line, words, remedy in (
            ('command = ["sudo", "cat", "x"]', "sudo does not work in the service", "docs/install.md"),
            ('command = ["/home/pi/read.sh"]', "home/pi/read.sh cannot be read by the service", "install -m 755 /home"),
            ('file = "/tmp/value"', "/tmp/value cannot be read by the service, which has its own /tmp", "as /run"),
            ('file = "/home/pi/value"', "/home/pi/value cannot be read by the service", "another folder, such as /run"),
            ('command = ["no-such-program"]', "is not in the search path of the service", "/full/path/to/no-such"),
        ):  # fmt: skip
            with self.subTest(line):
                self.command(line)
                self.assert_wrong(words, remedy)
        self.command('command = ["echo", "1"]')
        self.assertEqual(self.wrong(), [])

    def test_every_drop_in_belongs_to_a_tool(self):
        self.assertEqual(set(doctor_node._TOOLS.values()), {one.name for one in DROP_INS})


class Pages(Machine):
    def test_port_below_1024_needs_the_socket(self):
        self.put("etc/pigeonpost/server.toml", '[web]\nlisten = ["0.0.0.0:80"]\n')
        self.assert_wrong("the service may not listen on 0.0.0.0:80", "install server --port-80 --write", "server")

    def test_inactive_socket_is_a_problem(self):
        self.put(f"{UNITS}/pigeonpost-server.socket", "[Socket]\nListenStream=80\n")
        self.socket_state = {"ActiveState": "inactive"}
        self.assert_wrong("pigeonpost-server.socket is not active", "install server --port-80 --write", "server")
        self.socket_state = {"ActiveState": "failed"}
        self.assert_wrong("pigeonpost-server.socket has failed: another program uses the port", "sport = :80", "server")
        self.socket_state = {"ActiveState": "active"}
        self.assertEqual(self.find("pigeonpost-server.socket has opened the port of the page", "server"), ("ok", ""))

    def test_page_port_used_by_another_program_is_a_problem(self):
        with mock.patch.object(doctor_server, "listeners", lambda number: {0}):
            self.assert_wrong(
                "a program other than pigeonpost-server listens on 0.0.0.0:8080", "sport = :8080", "server"
            )
        with mock.patch.object(doctor_server, "listeners", lambda number: set()):
            self.assert_wrong("is running, but does not listen on 0.0.0.0:8080", "systemctl restart", "server")
        self.state["ActiveState"] = "failed"
        with socket.create_server(("127.0.0.1", 0)) as other:
            number = other.getsockname()[1]
            self.put("etc/pigeonpost/server.toml", f'[web]\nlisten = ["127.0.0.1:{number}"]\n')
            self.assert_wrong("Address already in use", r"\[web\] listen = .*/etc/pigeonpost/server.toml", "server")

    def test_node_that_does_not_listen_is_a_problem(self):
        self.put("etc/pigeonpost/node.toml", "[node]\nsimulate = true\n")
        with mock.patch.object(doctor_node, "listeners", lambda number: set()):
            self.assert_wrong("pigeonpost-node is running, but does not listen on 0.0.0.0:5003", "systemctl restart")
        with mock.patch.object(doctor_node, "_ask_node", lambda address: {"faults": ["the ring is damaged; look"]}):
            self.assert_wrong("the node reports: the ring is damaged")

    def test_data_that_only_root_may_read_is_noted(self):
        self.put("etc/pigeonpost/node.toml", "[node]\nsimulate = true\n")
        for module in (doctor, doctor_server):
            patch = mock.patch.object(module, "is_hidden", lambda path: True)
            patch.start()
            self.addCleanup(patch.stop)
        for program in ("node", "server"):
            word, _ = self.find(f"run doctor with sudo to check .*/var/lib/pigeonpost-{program}", program)
            self.assertEqual(word, "note")


if __name__ == "__main__":
    unittest.main()
