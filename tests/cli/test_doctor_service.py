"""Tests of `control.py doctor` on a systemd service, with unit files in a folder that replaces /, and a fake state."""

import argparse
import io
import os
import re
import socket
import sys
import time
import unittest
from contextlib import redirect_stdout
from unittest import mock

from pigeonpost.cli import (
    doctor,
    doctor_checks,
    doctor_libraries,
    doctor_node,
    doctor_server,
    doctor_service,
    doctor_systemd,
    doctor_web,
)  # fmt: skip
from pigeonpost.cli.contract import Context
from pigeonpost.core.config import Settings
from tests.page_support import use_memory_disk
from tests.support import ROOT, temp_folder

UNITS = "etc/systemd/system"
PYTHON, PYTHON_VERSION = sys.version_info[:2], doctor_systemd.python_version
IS_INSTALLED = doctor_libraries.is_installed
OLD_NODE = """[Service]
ExecStart=/usr/bin/python3 /opt/pigeonpost/node.py
WorkingDirectory=-/etc/pigeonpost
LoadCredential=-node-token:/etc/pigeonpost/node-token
SupplementaryGroups=nosuchgroup
DevicePolicy=closed
"""
RUNS = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled",
        "NeedDaemonReload": "no", "NRestarts": "0", "ExecMainStatus": "0", "UID": "4321"}  # fmt: skip


def setUpModule():
    use_memory_disk()


class Machine(unittest.TestCase):
    """Machine with the program in /opt, the units in /etc, and the state `self.state` in systemd."""

    def setUp(self):
        self.root = temp_folder(self)
        self.addCleanup(os.umask, os.umask(0o022))  # an earlier test in this process may have changed it
        self.state = dict(RUNS)
        self.socket_state = {}
        for name in ("opt/pigeonpost/node.py", "opt/pigeonpost/server.py"):
            self.put(name)
        os.makedirs(os.path.join(self.root, "usr/bin"))
        os.symlink(sys.executable, os.path.join(self.root, "usr/bin/python3"))
        for name in ("node", "server"):
            with open(os.path.join(ROOT, f"deploy/pigeonpost-{name}.service"), encoding="utf-8") as file:
                self.put(f"{UNITS}/pigeonpost-{name}.service", file.read())
        self.last_line = ""
        for where, name, value in (
            (doctor_service, "ask_systemd", self.ask), (doctor_server, "ask_systemd", self.ask),
            (doctor_systemd, "last_line", lambda found: self.last_line),
            (doctor_systemd, "program_files", list),
            (doctor_systemd, "python_version", lambda found: (3, 11)),
            (doctor_libraries, "is_installed", lambda module, service=None: True),
            (doctor_checks, "kind_of_filesystem", lambda folder: "ext4"),
            (doctor_web, "running_proxies", lambda folder="/proc": []),
            (doctor_node, "listeners", lambda number: {4321}), (doctor_server, "listeners", lambda number: {4321}),
            (doctor_node, "_ask_node", lambda address: {"collectors": ["home"]}),
        ):  # fmt: skip
            patch = mock.patch.object(where, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def ask(self, unit, root="/"):
        return self.socket_state if unit.endswith(".socket") else self.state

    def put(self, name, content="x", mode=0o644):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    def service(self, program="node"):
        found = doctor_service.find_service(program, self.root)
        assert found is not None
        return found

    def findings(self, program="node"):
        """Return the findings of doctor on the service of a program."""
        setup = doctor._Setup(program, self.chosen(program), self.service(program), None)
        return list(doctor._safely(doctor._by_service(setup, self.service(program))))

    def chosen(self, what=None, **more):
        known = {"what": what, "root": self.root, "node_config": None, "config": None, "data": None}
        return argparse.Namespace(**known | more)

    def find(self, words, program="node"):
        """Return the only finding that matches, as (status, remedy)."""
        findings = self.findings(program)
        found = [finding for finding in findings if re.search(words, finding.about)]
        self.assertEqual(len(found), 1, f"{words}: {findings}")
        return found[0].status, found[0].remedy

    def wrong(self, program="node"):
        return [finding.about for finding in self.findings(program) if finding.status == "wrong"]

    def assert_wrong(self, words, remedy=".*", program="node"):
        word, found = self.find(words, program)
        self.assertEqual(word, "wrong")
        self.assertRegex(found, remedy)


class Units(Machine):
    def test_valid_services_have_no_problems(self):
        self.put("etc/pigeonpost/node.toml", "[node]\nsimulate = true\n")
        self.assertEqual(self.wrong("node"), [])
        self.assertEqual(self.wrong("server"), [])
        self.assertEqual(self.find("pigeonpost-node is running"), ("ok", ""))
        self.assertEqual(self.find("collected by home"), ("ok", ""))

    def test_unit_of_an_older_version_is_a_problem(self):
        self.put(f"{UNITS}/pigeonpost-node.service", OLD_NODE)
        self.assert_wrong("names the token '-node-token', so the node does not receive it", "install node --write")
        self.assert_wrong("does not start: the group nosuchgroup does not exist on this system", "install node --write")

    def test_missing_group_of_a_drop_in_is_created_by_groupadd(self):
        self.put(f"{UNITS}/pigeonpost-node.service.d/x.conf", "[Service]\nSupplementaryGroups=nosuchgroup\n")
        self.assert_wrong(
            "the group nosuchgroup does not exist", "groupadd --system nosuchgroup && .*restart pigeonpost-node"
        )

    def test_unit_without_its_token_is_a_problem(self):
        text = OLD_NODE.replace("=-node-token", "=node-token").replace("nosuchgroup", "")
        self.put(f"{UNITS}/pigeonpost-node.service", text)
        self.assert_wrong("without /etc/pigeonpost/node-token the service does not start .243", "install node --write")
        self.put(f"{UNITS}/pigeonpost-node.service", re.sub("LoadCredential.*", "", text))
        self.put("etc/pigeonpost/node-token", "t" * 32, 0o600)
        self.assert_wrong("does not pass the token in /etc/pigeonpost/node-token", "install node --write")

    def test_missing_program_is_a_problem(self):
        os.unlink(os.path.join(self.root, "opt/pigeonpost/node.py"))
        self.assert_wrong("starts /opt/pigeonpost/node.py, which does not exist", "install node --write")
        self.put(f"{UNITS}/pigeonpost-server.service", "[Service]\nExecStart=\n")
        self.assert_wrong("ExecStart names no program", "install server --write", "server")

    def test_old_python_of_the_unit_is_a_problem(self):
        with mock.patch.object(doctor_systemd, "python_version", lambda found: (3, 9)):
            self.assert_wrong("pigeonpost-node runs /usr/bin/python3, which is Python 3.9", "bookworm")

    def test_unreadable_program_is_a_problem(self):
        home = "/home/nosuchuser/pigeonpost"
        with mock.patch("os.path.realpath", lambda path: home if path.endswith("/opt/pigeonpost") else path):
            self.assert_wrong(
                f"/opt/pigeonpost is a link to {home}, but the service has no access to home", "rm /opt/pigeonpost && "
            )
        os.chmod(os.path.join(self.root, "opt/pigeonpost/node.py"), 0o600)
        self.assert_wrong("/opt/pigeonpost/node.py cannot be read by the service", "chmod -R a.rX /opt/pigeonpost")

    def test_version_of_the_units_python_is_read(self):
        self.assertEqual(PYTHON_VERSION(self.service()), PYTHON)
        os.unlink(os.path.join(self.root, "usr/bin/python3"))
        self.assertIsNone(PYTHON_VERSION(self.service()))

    def test_libraries_are_searched_in_the_units_python(self):
        self.assertTrue(IS_INSTALLED("json", self.service()))
        self.assertFalse(IS_INSTALLED("no_such_module_of_ours", self.service()))
        with mock.patch.object(doctor_libraries, "is_installed", lambda module, service=None: False):
            self.put("etc/pigeonpost/node.toml", '[[sensor]]\nkind = "mqtt"\nchannels.a.topic = "x"\n')
            self.assert_wrong("module paho is missing", "apt install python3-paho-mqtt && .*restart pigeonpost-node")

    def test_unit_that_differs_from_the_program_is_noted(self):
        self.put("opt/pigeonpost/deploy/pigeonpost-node.service", "[Service]\n")
        self.assertEqual(self.find("differs from the unit that belongs to /opt/pigeonpost")[0], "note")

    def test_service_of_another_version_is_noted(self):
        os.makedirs(os.path.join(self.root, "opt/pigeonpost/pigeonpost"))
        with mock.patch.object(doctor_systemd, "program_files", lambda: [("node.py", b"x"), ("server.py", b"new")]):
            word, remedy = self.find("another version than .*: 1 file differs")
        self.assertEqual(word, "note")
        self.assertIn("install node --write", remedy)

    def test_program_without_a_unit_has_no_service(self):
        os.unlink(os.path.join(self.root, UNITS, "pigeonpost-node.service"))
        self.assertIsNone(doctor_service.find_service("node", self.root))

    def test_drop_ins_add_and_reset_values_of_the_unit(self):
        self.put(
            f"{UNITS}/pigeonpost-node.service", "[Service]\nDeviceAllow=a \\\n rw\n# Key=no\n[Install]\nDeviceAllow=z\n"
        )
        self.put("usr/lib/systemd/system/pigeonpost-node.service.d/1.conf", "[Service]\nDeviceAllow=hidden\n")
        self.put(f"{UNITS}/pigeonpost-node.service.d/1.conf", "[Service]\nDeviceAllow=b\n")
        self.assertEqual(self.service().values("DeviceAllow"), ["a   rw", "b"])
        self.put(f"{UNITS}/pigeonpost-node.service.d/2.conf", "[Service]\nDeviceAllow=\nDeviceAllow=c\n")
        self.assertEqual(self.service().values("DeviceAllow"), ["c"])
        self.assertEqual(self.service().own.values("DeviceAllow"), ["a   rw"])


class States(Machine):
    def test_failures_are_explained_by_status_and_last_line(self):
        self.state.update(ActiveState="failed", SubState="failed", Result="exit-code")
        self.last_line = "node.py: what is wrong"
        for status, words, remedy in (
            ("2", "status 2: invalid settings", "correct them, then .*systemctl restart pigeonpost-node"),
            ("74", "the disk failed", "journalctl -k"), ("75", "another program uses the same data", "stop the other"),
            ("203", "EXEC", "install node --write"), ("216", "GROUP", "see the remedy above"),
            ("226", "NAMESPACE", "ReadWritePaths=-"), ("243", "CREDENTIALS", "install node --write"),
            ("1", "an error, see the log", "journalctl --unit pigeonpost-node"), ("9", "see the log", "show"),
        ):  # fmt: skip
            with self.subTest(status):
                self.state["ExecMainStatus"] = status
                self.assert_wrong(f"pigeonpost-node has failed .*{words}.*: node.py: what is wrong", remedy)

    def test_failures_without_an_exit_status_are_explained(self):
        self.state.update(ActiveState="activating", SubState="auto-restart", ExecMainStatus="9")
        for result, words in (
            ("oom-kill", "the memory was full"),
            ("watchdog", "it did not respond"),
            ("signal", "killed by signal 9"),
        ):
            self.state["Result"] = result
            self.assert_wrong(f"fails repeatedly .{words}", "journalctl --unit")

    def test_unreadable_log_is_mentioned(self):
        self.state.update(ActiveState="failed", Result="exit-code", ExecMainStatus="2")
        with mock.patch("os.geteuid", lambda: 1000):
            self.assert_wrong("run doctor with sudo to see the last line", "sudo systemctl restart")

    def test_stopped_and_disabled_services_are_problems(self):
        self.state["ActiveState"] = "inactive"
        self.assert_wrong(
            "is not running: it was stopped, or ended with the button Exit", "systemctl start pigeonpost-node"
        )
        self.state["UnitFileState"] = "disabled"
        self.assert_wrong("is not running and does not start at boot", "systemctl enable --now pigeonpost-node")
        self.state["ActiveState"] = "active"
        self.assert_wrong("is running, but does not start at boot", "systemctl enable pigeonpost-node")

    def test_changed_units_need_a_daemon_reload(self):
        self.state["NeedDaemonReload"] = "yes"
        self.assert_wrong(
            "systemd has not read them again", "systemctl daemon-reload && .*systemctl restart pigeonpost-node"
        )

    def test_repeated_restarts_are_noted(self):
        self.state["NRestarts"] = "7"
        self.assertEqual(self.find("ended unexpectedly 7 times")[0], "note")

    def test_changes_since_the_start_of_the_service_are_a_problem(self):
        self.put("etc/pigeonpost/node.toml", "[node]\nsimulate = true\n")
        started = time.monotonic() - 100
        self.state["ExecMainStartTimestampMonotonic"] = str(int(started * 1e6))
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    os.utime(path, (time.time() - 200,) * 2)
        self.assertEqual(self.wrong(), [])
        for name in ("etc/pigeonpost/node.toml", f"{UNITS}/pigeonpost-node.service", "opt/pigeonpost/node.py"):
            with self.subTest(name):
                os.utime(os.path.join(self.root, name))
                self.assert_wrong(f"{name} has changed since pigeonpost-node was started", "systemctl restart")
                os.utime(os.path.join(self.root, name), (time.time() - 200,) * 2)

    def test_missing_systemd_is_noted(self):
        self.state = {}
        self.assertEqual(self.find("systemd is not running here")[0], "note")

    def test_packaged_unit_that_is_not_enabled_is_not_checked(self):
        os.renames(os.path.join(self.root, UNITS, "pigeonpost-server.service"),
                   os.path.join(self.root, "usr/lib/systemd/system/pigeonpost-server.service"))  # fmt: skip
        self.state.update(ActiveState="inactive", UnitFileState="disabled")
        said = self.doctor("server")
        self.assertIn("the Debian package has installed pigeonpost-server, but it is not enabled", said)
        self.assertIn("systemctl enable --now pigeonpost-server", said)
        self.state["ActiveState"] = "active"
        self.assertIn("As a server (service pigeonpost-server)", self.doctor("server"))

    def test_raspberry_pi_without_a_setup_is_checked_as_a_node(self):
        self.put("proc/device-tree/model", "Raspberry Pi Zero W Rev 1.1\0")
        said = self.doctor(None)
        self.assertNotIn("the usual role of a Raspberry Pi", said)
        for name in ("node", "server"):
            os.unlink(os.path.join(self.root, UNITS, f"pigeonpost-{name}.service"))
        with mock.patch.object(doctor, "_by_hand", lambda setup: iter(())):
            self.assertIn("As a node (the usual role of a Raspberry Pi)", self.doctor(None))

    def test_settings_fault_in_the_log_is_reported_once(self):
        self.put("etc/pigeonpost/node.toml", "[node]\nnaem = 'x'\n")
        self.assertEqual(len(self.wrong()), 1)
        fault = self.wrong()[0]
        self.state.update(ActiveState="failed", Result="exit-code", ExecMainStatus="2")
        self.last_line = f"node.py: {fault}"
        self.assertEqual(len(self.wrong()), 1)

    def test_masked_unit_is_noted(self):
        self.state.update(LoadState="masked", ActiveState="inactive")
        self.assertIn("pigeonpost-node is masked", self.doctor("node"))

    def doctor(self, what, **more):
        output = io.StringIO()
        with redirect_stdout(output), mock.patch.object(doctor, "check_machine", lambda: iter(())):
            doctor.COMMANDS["doctor"].run(Context("", self.chosen(what, **more), Settings()))
        return output.getvalue()

    def test_flags_select_a_program_that_is_started_by_hand(self):
        heading = "As a server (service "
        self.assertIn(heading, self.doctor("server"))
        self.assertIn(heading, self.doctor("server", data=os.path.join(self.root, "var/lib/pigeonpost-server")))
        self.assertNotIn(heading, self.doctor("server", data=temp_folder(self)))
        self.assertNotIn("(service ", self.doctor("node", node_config=self.put("n.toml", "[node]\nsimulate = true\n")))


class Listeners(unittest.TestCase):
    def test_listeners_returns_the_users_of_a_port(self):
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                server = socket.create_server((host, 0), family=family)
            except OSError:
                continue  # a machine without IPv6
            with server:
                number = server.getsockname()[1]
                self.assertEqual(doctor_checks.listeners(number), {os.getuid()})
            self.assertEqual(doctor_checks.listeners(number), set())


if __name__ == "__main__":
    unittest.main()
