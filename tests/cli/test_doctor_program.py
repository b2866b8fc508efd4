"""Tests of `control.py doctor` on the files of the program, environment variables, and the container."""

import os
import re
import shutil
import sys
import time
import unittest
from unittest import mock

from pigeonpost.cli import doctor, doctor_checks, doctor_libraries, doctor_node, doctor_program
from pigeonpost.cli.doctor_checks import Account, may_use
from pigeonpost.cli.install_files import PACKAGED
from tests.page_support import control_here, use_memory_disk
from tests.support import ROOT, temp_folder


def setUpModule():
    use_memory_disk()


class Case(unittest.TestCase):
    def find(self, findings, words):
        """Return the only finding that matches."""
        findings = list(findings)
        found = [finding for finding in findings if re.search(words, finding.about)]
        self.assertEqual(len(found), 1, f"{words}: {findings}")
        return found[0]

    def patch(self, where, name, value):
        patch = mock.patch.object(where, name, value)
        patch.start()
        self.addCleanup(patch.stop)


class ProgramFiles(Case):
    def setUp(self):
        self.folder = temp_folder(self)

    def put(self, name, text="x = 1\n"):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def program(self):
        """Create a small, complete program."""
        for name in ("node", "server", "control", "protocol", "adc", "csvbuffer", "webui"):
            self.put(f"{name}.py", "from pigeonpost.core import a, b as c\n")
        self.put("pigeonpost/__init__.py", '"""x"""\n')
        self.put("pigeonpost/core/__init__.py", '"""x"""\n')
        self.put(
            "pigeonpost/core/a.py",
            "def f():\n    from pigeonpost.web.c import (\n        thing,\n        other,\n    )\n",
        )
        self.put("pigeonpost/core/b.py", "import pigeonpost.core.a\n")
        self.put("pigeonpost/web/__init__.py", '"""x"""\n')
        self.put("pigeonpost/web/c.py")

    def test_program_under_test_has_no_problems(self):
        self.assertEqual(list(doctor_program.check_program(ROOT)), [])

    def test_complete_program_has_no_problems(self):
        self.program()
        self.assertEqual(list(doctor_program.check_program(self.folder)), [])

    def test_missing_and_empty_modules_are_problems(self):
        self.program()
        os.unlink(os.path.join(self.folder, "pigeonpost/web/c.py"))
        os.unlink(os.path.join(self.folder, "adc.py"))
        found = self.find(doctor_program.check_program(self.folder, "copy it"), "not copied completely")
        self.assertRegex(found.about, "adc.py, pigeonpost/web/c.py are missing")
        self.assertEqual((found.status, found.remedy), ("wrong", "copy it"))
        self.program()
        self.put("pigeonpost/core/b.py", "\n")
        self.assertRegex(
            self.find(doctor_program.check_program(self.folder), "not copied completely").about, "core/b.py is empty"
        )
        shutil.rmtree(os.path.join(self.folder, "pigeonpost/web"))
        self.assertRegex(
            self.find(doctor_program.check_program(self.folder), "not copied completely").about, "web/c.py is missing"
        )

    def test_modules_of_another_version_are_noted(self):
        self.program()
        path = self.put("pigeonpost/core/old.py")
        found = self.find(
            doctor_program.check_program(self.folder), "core/old.py is a file of another version, and is not used"
        )
        self.assertEqual((found.status, found.remedy), ("note", f"rm {path}"))

    def test_program_in_one_file_is_not_checked(self):
        self.assertEqual(list(doctor_program.check_program(self.put("node.pyz"))), [])

    def test_command_lines_depend_on_the_location_of_the_program(self):
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(ROOT)
        self.assertEqual(doctor_checks.control_command("status"), "python3 control.py status")
        os.chdir(self.folder)
        self.assertEqual(doctor_checks.control_command("status", data="/a b"),
                         f"python3 {ROOT}/control.py --data '/a b' status")  # fmt: skip
        with mock.patch("os.geteuid", lambda: 1000):
            self.assertTrue(doctor_checks.control_command("status", as_root=True).startswith("sudo python3"))
        with mock.patch.object(sys, "argv", ["/home/pi/.local/bin/pigeonpost", "doctor"]):
            self.assertEqual(doctor_checks.control_command("status"), "/home/pi/.local/bin/pigeonpost status")
        self.patch(doctor_checks, "FOLDER", PACKAGED)
        self.assertEqual(doctor_checks.control_command("status"), "pigeonpost status")
        self.patch(doctor_checks, "FOLDER", "/x/control.pyz")
        self.patch(doctor_checks.zipfile, "is_zipfile", lambda path: True)
        self.assertEqual(doctor_checks.control_command("status"), "python3 /x/control.pyz status")


class Variables(Case):
    def test_unknown_variables_are_noted(self):
        with mock.patch.dict(os.environ, {"PIGEONPOST_WEB_LISTN": "0.0.0.0:80"}):
            found = self.find(doctor_program.check_machine(), "PIGEONPOST_WEB_LISTN")
        self.assertEqual((found.status, found.remedy), ("note", "did you mean PIGEONPOST_WEB_LISTEN?"))

    def test_invalid_variable_is_a_problem(self):
        status, said, errors = control_here("doctor", "node", PIGEONPOST_NODE_EVERY="never")
        self.assertEqual((status, errors), (1, ""))
        self.assertIn("wrong  PIGEONPOST_NODE_EVERY", said)


class Containers(Case):
    """A container whose first process is the server or the node, as user 10001."""

    def setUp(self):
        self.root, self.data = temp_folder(self), temp_folder(self)
        for module in (doctor_checks,):
            self.patch(module, "in_container", lambda: True)
        os.makedirs(os.path.join(self.root, "proc/1"))
        self.run_("python3", "server.py")

    def run_(self, *words, uid=10001, groups="10001"):
        with open(os.path.join(self.root, "proc/1/cmdline"), "w", encoding="utf-8") as file:
            file.write("\0".join(words) + "\0")
        with open(os.path.join(self.root, "proc/1/status"), "w", encoding="utf-8") as file:
            file.write(f"Name:\tpython3\nUid:\t0\t{uid}\t0\t0\nGid:\t0\t{uid}\t0\t0\nGroups:\t{groups} \n")

    def findings(self):
        found = doctor_program.find_container(self.root)
        assert found is not None
        return list(doctor_program.check_container(found, self.data))

    def test_container_of_another_program_is_ignored(self):
        self.run_("bash")
        self.assertIsNone(doctor_program.find_container(self.root))

    def test_command_and_user_of_the_container_are_read(self):
        self.run_("/usr/bin/python3", "/app/node.py", "--simulate", groups="10001 44")
        found = doctor_program.find_container(self.root)
        self.assertEqual(found.command, "/app/node.py --simulate")
        self.assertEqual((found.account.uid, found.account.gids), (10001, {10001, 44}))

    def test_read_only_volume_is_a_problem(self):
        found = self.find(self.findings(), "and the program .user 10001. may not write there")
        self.assertEqual(found.status, "wrong")
        self.assertIn("docker run --rm --user root --entrypoint chown", found.remedy)
        self.run_("python3", "server.py", uid=os.getuid())
        self.assertFalse([one for one in self.findings() if one.status == "wrong"])

    def test_missing_time_zone_is_noted(self):
        self.patch(time, "tzname", ("UTC", "UTC"))
        with mock.patch.dict(os.environ):
            os.environ.pop("TZ", None)
            self.assertEqual(self.find(self.findings(), "TZ is not set").status, "note")
            os.environ["TZ"] = "Europe/Vienna"
            self.assertFalse([one for one in self.findings() if "TZ" in one.about])

    def test_container_id_as_node_name_is_noted(self):
        self.patch(doctor_program, "is_named_by_id", lambda: True)
        self.assertFalse([one for one in self.findings() if "its first container" in one.about])
        self.run_("python3", "node.py")
        self.assertIn("PIGEONPOST_NODE_NAME", self.find(self.findings(), "its first container").remedy)

    def test_devices_and_libraries_have_the_remedies_of_docker(self):
        for module in (doctor_node, doctor_libraries):
            self.patch(module, "in_our_container", lambda root="/": True)
        (found,) = doctor_node._device("/dev/spidev0.0", "do_spi", self.root, None)
        self.assertIn('in docker-compose.yml: devices: ["/dev/spidev0.0:/dev/spidev0.0"]', found.remedy)
        os.makedirs(os.path.join(self.root, "dev"))
        path = os.path.join(self.root, "dev/spidev0.0")
        with open(path, "w", encoding="utf-8"):
            pass
        os.chmod(path, 0o660)
        (found,) = doctor_node._device("/dev/spidev0.0", "do_spi", self.root, None)
        self.assertRegex(found.about, "cannot be opened by the program .user 10001")
        self.assertIn("user: root in docker-compose.yml", found.remedy)
        self.run_("python3", "node.py", groups=f"10001 {os.stat(path).st_gid}")
        self.assertEqual(
            [one.status for one in doctor_node._device("/dev/spidev0.0", "do_spi", self.root, None)], ["ok"]
        )
        with mock.patch("os.access", lambda path, mode: False):
            found = list(doctor_node._device("/dev/spidev0.0", "do_spi", self.root, None))
        self.assertEqual([one.status for one in found], ["ok", "note"])
        self.assertIn('EXTRA="python3-smbus2"', doctor_libraries._remedy(doctor_libraries.SMBUS2, None))

    def test_first_process_determines_what_is_checked(self):
        container = doctor_program.find_container(self.root)
        chosen = mock.Mock(what=None, root=self.root, node_config=None, config=None, data=None)
        self.assertTrue(doctor._is_set_up(doctor._Setup("server", chosen, None, container)))
        self.assertFalse(doctor._is_set_up(doctor._Setup("node", chosen, None, container)))


class Permissions(Case):
    def test_may_use_checks_owner_group_and_mode(self):
        folder = temp_folder(self)
        status = os.stat(folder)
        for mode, account, may in (
            (0o700, (status.st_uid, ()), True), (0o077, (status.st_uid, ()), status.st_uid == 0),
            (0o070, (54321, (status.st_gid,)), True), (0o707, (54321, (status.st_gid,)), False),
            (0o007, (54321, ()), True), (0o770, (None, ()), False), (0o000, (0, ()), True),
        ):  # fmt: skip
            with self.subTest(f"{mode:o} {account}"):
                os.chmod(folder, mode)
                uid, gids = account
                self.assertEqual(may_use(Account("x", uid, frozenset(gids)), folder, os.R_OK | os.W_OK), may)
        os.chmod(folder, 0o700)


if __name__ == "__main__":
    unittest.main()
