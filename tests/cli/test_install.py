"""Tests of `control.py install` in a temporary folder: output, copy of the program, drop-ins, move of the data."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import subprocess
import unittest
from unittest import mock

import control as control_program
from pigeonpost.cli import install, install_files, move_data
from pigeonpost.cli.contract import Failed
from pigeonpost.cli.install_files import DROP_INS, PROGRAM, Layout, copy_program, drop_ins, remove_program, unit_files
from pigeonpost.cli.move_data import check_move
from pigeonpost.core.errors import DiskError, InUse
from pigeonpost.core.files import lock_data_dir
from tests.page_support import main_here
from tests.support import memory_disk, temp_folder


class Died(BaseException):
    """Simulated kill, which no `except` clause of the program handles."""


def write(folder, name, text="x"):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def tree(folder):
    return sorted(
        os.path.relpath(os.path.join(top, name), folder) for top, _, names in os.walk(folder) for name in names
    )


class Files(unittest.TestCase):
    def setUp(self):
        sync = mock.patch("os.sync")  # it would sync all disks of this machine
        sync.start()
        self.addCleanup(sync.stop)
        self.layout = Layout(temp_folder(self, memory_disk()))

    def test_each_device_needs_its_own_drop_in(self):
        self.assertEqual(drop_ins(self.layout), [])
        for path, name in (
            ("/dev/i2c-1", "i2c.conf"), ("/dev/spidev0.0", "spi.conf"), ("/dev/gpiochip0", "gpio.conf"),
            ("/dev/vcio", "video.conf"),
        ):  # fmt: skip
            with self.subTest(path):
                layout = Layout(temp_folder(self))
                write(layout.root, path[1:])
                self.assertEqual([one.name for one in drop_ins(layout)], [name])

    def test_raspberry_pi_needs_all_drop_ins(self):
        write(self.layout.root, "proc/device-tree/model", "Raspberry Pi Zero W Rev 1.1\0")
        self.assertEqual(drop_ins(self.layout), list(DROP_INS))

    def test_each_drop_in_contains_its_group_and_a_device(self):
        files = dict(unit_files("node", list(DROP_INS), False))
        for one in DROP_INS:
            text = files[f"/etc/systemd/system/pigeonpost-node.service.d/{one.name}"].decode()
            self.assertIn(f"\nSupplementaryGroups={one.group}\n", text)
            self.assertRegex(text, "\nDeviceAllow=.* rw\n")
        self.assertEqual(len(files), 1 + len(DROP_INS))
        self.assertEqual(len(dict(unit_files("server", [], True))), 2)

    def program(self, *names):
        """Replace the program by a few files."""
        files = [(name, name.encode()) for name in names]
        patch = mock.patch("pigeonpost.cli.install_files.program_files", lambda: iter(files))
        patch.start()
        self.addCleanup(patch.stop)

    def test_copy_replaces_an_earlier_version_and_keeps_files_of_the_user(self):
        self.program("deploy/a.service", "node.py", "pigeonpost/core/a.py", "pigeonpost/views/static/style.css")
        target = self.layout.path(PROGRAM)
        users = ["data/outbox.ring", "files/photo.jpg", "mine.py", "node.toml"]
        for name in (
            *users,
            "pigeonpost/stale.py",
            "stores/__init__.py",
            "stores/x.py",
            "session.py",
            ".new/x",
            ".old/y",
        ):
            write(target, name)
        expected = sorted([*users, "deploy/a.service", "node.py", "pigeonpost/core/a.py",
                           "pigeonpost/views/static/style.css"])  # fmt: skip
        self.assertEqual(copy_program(self.layout), 4)
        self.assertEqual(self.copied_files(), expected)
        self.assertEqual(os.stat(os.path.join(target, "pigeonpost", "core")).st_mode & 0o777, 0o755)
        self.assertTrue(os.path.exists(os.path.join(target, "pigeonpost", "core", "__pycache__")))
        self.assertEqual(copy_program(self.layout), 0)  # it is installed already
        for name in ("pigeonpost/core/stale.py", "node.py", "wire.py"):
            with self.subTest(name):
                write(target, name, "# of another version")
                self.assertEqual(copy_program(self.layout), 4)
                self.assertEqual(self.copied_files(), expected)
        self.assertEqual(remove_program(self.layout), ["data", "files", "mine.py", "node.toml"])

    def copied_files(self):
        """Return the files in /opt, without compiled modules."""
        return [name for name in tree(self.layout.path(PROGRAM)) if "__pycache__" not in name]

    def test_copy_killed_at_any_rename_is_completed_by_another_run(self):
        self.program("deploy/a.service", "node.py", "pigeonpost/a.py")
        for n in range(1, 8):
            self.layout = Layout(temp_folder(self, memory_disk()))
            for name in ("deploy/a.service", "node.py", "pigeonpost/a.py", "session.py"):
                write(self.layout.path(PROGRAM), name, "# old")
            calls, rename = [], os.rename

            def kill(*names, calls=calls, rename=rename, n=n):
                calls.append(names)
                if len(calls) == n:
                    raise Died
                rename(*names)

            with self.subTest(n), mock.patch("os.rename", kill), contextlib.suppress(Died):
                copy_program(self.layout)
            copy_program(self.layout)
            self.assertEqual(self.copied_files(), ["deploy/a.service", "node.py", "pigeonpost/a.py"])
            with open(self.layout.path(f"{PROGRAM}/pigeonpost/a.py"), encoding="utf-8") as file:
                self.assertEqual(file.read(), "pigeonpost/a.py")

    def test_removing_a_missing_program_removes_nothing(self):
        self.assertEqual(remove_program(self.layout), [])


class Printed(unittest.TestCase):
    def setUp(self):
        folder, here = temp_folder(self), os.getcwd()
        os.chdir(folder)
        self.addCleanup(os.chdir, here)

    def run_(self, *arguments, program="control.py"):
        with mock.patch("sys.argv", [program]):
            return main_here(control_program, "--data", "data", *arguments)  # with its own parser: see `machine`

    def test_install_prints_files_and_commands_and_changes_nothing(self):
        for program in ("node", "server"):
            status, out, _ = self.run_("install", program)
            self.assertEqual(status, 0)
            for text in (
                f"# /etc/pigeonpost/{program}.toml: a copy of {program}.default.toml",
                f"# /etc/systemd/system/pigeonpost-{program}.service\n",
                f"ExecStart=/usr/bin/python3 /opt/pigeonpost/{program}.py",
                f"systemctl enable pigeonpost-{program}.service\n",
                f"sudo python3 control.py install {program} --write",
            ):
                self.assertIn(text, out)
        self.assertEqual(os.listdir(), [])
        status, out, _ = self.run_("install", "server", "--port-80")
        self.assertIn("\nListenStream=80\n", out)
        self.assertIn("install server --port-80 --write", out)

    def test_own_settings_are_copied_unless_they_have_a_secret_or_another_data_folder(self):
        write(".", "node.toml", '[node]\nname = "basement"\n')
        self.assertIn(f"a copy of {os.path.abspath('node.toml')}", self.run_("install", "node")[1])
        for text, told in (
            ('[node]\ntoken = "0123456789abcdef"\n', "[node] token to /etc/pigeonpost/node-token."),
            ('[mqtt]\npassword = "x"\n', "to /etc/pigeonpost/node.env, as the variable PIGEONPOST_MQTT_PASSWORD."),
            ('[node]\ndata = "/mnt/x"\n', "the service may write to /var/lib/pigeonpost-node only"),
        ):
            write(".", "node.toml", text)
            status, _, err = self.run_("install", "node")
            self.assertEqual(status, 2)
            self.assertIn(told, err)

    def test_secrets_in_arrays_of_tables_are_rejected_with_a_remedy(self):
        place = "to /etc/pigeonpost/{0}.env, with the complete text of this file: PIGEONPOST_{1}_TOML='...'"
        for program, text, name in (
            ("node", '[[sensor]]\nkind = "adc"\n[[sensor]]\nkind = "mqtt"\npassword = "x"\n', "[[sensor]] 2: password"),
            ("node", '[[sensor]]\nkind = "nest"\nclient_secret = "x"\nrefresh_token = "y"\n',
             "[[sensor]] 1: client_secret, [[sensor]] 1: refresh_token"),
            ("node", '[[sensor]]\nkind = "json"\nheaders = {Accept = "", Authorization = "Bearer x"}\n',
             "[[sensor]] 1: headers"),
            ("node", '[[sensor]]\nkind = "x"\nchannels = {a = {steps = [{api_key = "x"}]}}\n', "[[sensor]] 1: api_key"),
            ("server", '[[alert]]\ntoken = "x"\n', "[[alert]] 1: token"),
        ):  # fmt: skip
            with self.subTest(name):
                write(".", f"{program}.toml", text)
                status, _, err = self.run_("install", program)
                self.assertEqual(status, 2)
                self.assertIn(f"Move {name} {place.format(program, program.upper())}", err)
        for text in (
            'kind = "nest"\nclient_secret = "env:NEST"\n',
            'kind = "json"\nheaders = {Authorization = "file:/etc/x"}\npassword = ""\n',
            'kind = "adc"\nchannels = {token = {input = 1}}\n',
        ):
            with self.subTest(text):
                write(".", "node.toml", f"[[sensor]]\n{text}")
                self.assertEqual(self.run_("install", "node")[0], 0)

    def test_table_of_the_other_program_is_rejected_with_its_file(self):
        write(".", "node.toml", '[web]\nlisten = "127.0.0.1:80"\n')
        status, _, err = self.run_("install", "node")
        self.assertEqual(status, 2)
        self.assertIn("[web] belongs in server.toml", err)

    def test_failed_command_shows_its_first_line(self):
        failed = subprocess.CompletedProcess([], 1, "", "Failed to parse: x\nmore\n")
        with (
            mock.patch("subprocess.run", return_value=failed),
            contextlib.redirect_stdout(io.StringIO()),
            self.assertRaisesRegex(Failed, r"systemd-sysusers failed:\n  Failed to parse: x$"),
        ):
            install._run(["systemd-sysusers"], Layout())

    def test_devices_get_their_groups_immediately(self):
        layout, calls = self.machine("run/udev/control"), []
        plan = install.Plan("node", "node.default.toml", list(DROP_INS), ["spi"], False, None)
        with (
            mock.patch("pigeonpost.cli.install._run", lambda command, layout: calls.append(command)),
            mock.patch("pigeonpost.cli.install_files.copy_program", return_value=1),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            install._write(plan, layout)
        triggered = {word.removeprefix("--subsystem-match=") for word in calls[-1][2:]}
        self.assertEqual(calls[-1][:2], ["udevadm", "trigger"])
        rules = dict(install._files(plan))[install_files.RULES[1]].decode()
        self.assertLessEqual(set(re.findall(r'SUBSYSTEM=="([^"]+)"', rules)), triggered)
        self.assertLessEqual({"misc", "vchiq"}, triggered)  # of /dev/vcio and /dev/vchiq

    def test_write_without_root_prints_the_command_with_sudo(self):
        self.machine("etc/systemd/system/pigeonpost-server.service")
        for program, command, expected in (
            ("control.py", ["install", "node"], "sudo python3 control.py install node --write"),
            ("../my pigeonpost/control.pyz", ["uninstall", "server"],
             "sudo python3 '../my pigeonpost/control.pyz' uninstall server --write"),
            ("/home/pi/.local/bin/pigeonpost", ["install", "server", "--port-80", "--move-data"],
             "sudo /home/pi/.local/bin/pigeonpost install server --data data --move-data --port-80 --write"),
        ):  # fmt: skip
            with self.subTest(program), mock.patch("os.geteuid", return_value=1000):
                status, _, err = self.run_(*command, "--write", program=program)
                self.assertEqual((status, err), (1, f"control.py: --write needs root: {expected}\n"))

    def test_folder_that_only_root_may_read_needs_root(self):
        error = PermissionError(13, "Permission denied", "/var/lib/private/x")
        with mock.patch("pigeonpost.cli.install.check_move", side_effect=error):
            status, _, err = self.run_("install", "server", "--move-data")
        self.assertEqual(status, 1)
        self.assertIn(
            "/var/lib/private/x: only root may read it: sudo python3 control.py install server --data data"
            " --move-data\n", err
        )  # fmt: skip

    def test_disk_error_names_the_file(self):
        for error in (OSError(28, "No space left on device", "/opt/x"), DiskError("/opt/x: No space left on device")):
            with (
                self.subTest(type(error)),
                mock.patch("os.geteuid", return_value=0),
                mock.patch("pigeonpost.cli.install._write", side_effect=error),
            ):
                status, _, err = self.run_("install", "node", "--write")
                self.assertEqual((status, err), (1, "control.py: /opt/x: No space left on device\n"))

    def test_missing_data_cannot_be_moved(self):
        status, _, err = self.run_("install", "node", "--move-data")
        self.assertEqual(status, 1)
        self.assertIn("there is nothing to move (--data DIR names another folder)", err)

    def test_debian_package_needs_no_install(self):
        with mock.patch("pigeonpost.cli.install.FOLDER", install_files.PACKAGED):
            status, out, _ = self.run_("install", "node", "--write")
            self.assertEqual(status, 0)
            self.assertIn("sudo systemctl enable --now pigeonpost-node", out)
            self.assertIn("sudo apt remove pigeonpost", self.run_("uninstall", "node")[1])

    def test_debian_package_moves_data_and_shows_port_80(self):
        layout = self.machine("var/lib/x")
        packaged = mock.patch("pigeonpost.cli.install.FOLDER", install_files.PACKAGED)
        lock = mock.patch("pigeonpost.cli.move_data.lock_data_dir")  # each run is a separate process
        with packaged, lock, mock.patch("os.geteuid", return_value=0):
            status, out, _ = self.run_("install", "server", "--port-80")
            self.assertIn("sudo systemctl enable --now pigeonpost-server.socket pigeonpost-server\n", out)
            status, _, err = self.run_("install", "server", "--move-data", "--write")
            self.assertEqual(status, 1)
            self.assertIn("there is nothing to move", err)
            write(".", "data/pigeonpost.sqlite3")
            target = layout.path("/var/lib/pigeonpost-server")
            status, out, _ = self.run_("install", "server", "--move-data")
            self.assertEqual(status, 0)
            self.assertIn("sudo python3 control.py install server --data data --move-data --write\n", out)
            self.assertFalse(os.path.exists(target))
            with mock.patch("os.geteuid", return_value=1000):
                self.assertEqual(self.run_("install", "server", "--move-data", "--write")[0], 1)
            status, out, _ = self.run_("install", "server", "--move-data", "--write")
        self.assertEqual((status, tree(target), os.path.exists("data")), (0, ["pigeonpost.sqlite3"], False))
        self.assertIn(": 1 file moved from ", out)
        self.assertIn("sudo systemctl enable --now pigeonpost-server\n", out)

    def machine(self, *paths):
        """Run the commands on a machine with these files. Return the layout, whose folder replaces /."""
        layout = Layout(temp_folder(self))
        for path in paths:
            write(layout.root, path)
        for command in ("install", "uninstall"):
            run = functools.partial(getattr(install, f"_{command}"), layout=layout)
            patch = mock.patch.dict(control_program.COMMANDS, {command: install.COMMANDS[command]._replace(run=run)})
            patch.start()
            self.addCleanup(patch.stop)
        return layout

    def test_install_is_rejected_beside_the_debian_package(self):
        self.machine("usr/share/pigeonpost/control.py")
        status, _, err = self.run_("install", "node")
        self.assertEqual(status, 1)
        self.assertIn("sudo apt remove pigeonpost", err)
        self.assertIn("sudo apt remove pigeonpost", self.run_("uninstall", "node")[1])

    def test_uninstall_reports_a_missing_service(self):
        self.machine()
        for more in ((), ("--write",)):
            self.assertEqual(
                self.run_("uninstall", "node", *more), (0, "pigeonpost-node is not installed here\n", "")
            )  # fmt: skip
        self.machine("etc/systemd/system/pigeonpost-server.service", "opt/pigeonpost/node.py")
        self.assertIn("not installed here", self.run_("uninstall", "node")[1])
        self.assertIn("rm /etc/systemd/system/pigeonpost-server.service", self.run_("uninstall", "server")[1])

    def test_missing_token_and_password_are_reported_after_the_start(self):
        for program, log, told in (
            (
                "node",
                ["INFO no token: only programs on this machine can connect"],
                "systemctl restart pigeonpost-node\n",
            ),
            ("node", ["listening on 0.0.0.0:5003"], ""),
            ("server", ["the page is at http://127.0.0.1:8080/"], "/var/lib/pigeonpost-server password\n"),
        ):
            layout = self.machine("run/systemd/system/x")
            with self.subTest(log), self.started(log):
                self.assertTrue(self.out(program, layout).endswith(told or f"journalctl -u pigeonpost-{program}\n"))
        layout = self.machine("run/systemd/system/x", "var/lib/pigeonpost-server/users.json")
        with self.started(["the page is at http://127.0.0.1:8080/"]):
            self.assertTrue(self.out("server", layout).endswith("the page is at http://127.0.0.1:8080/\n"))

    def started(self, log):
        """Simulate the start of a unit that logs these lines."""
        return mock.patch.multiple("pigeonpost.cli.install", _run=mock.DEFAULT, _log=lambda unit: log)

    def out(self, program, layout):
        plan = install.Plan(program, "", [], [], False, None)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            install._start(plan, layout)
        return out.getvalue()


class MoveData(unittest.TestCase):
    NODE = ("outbox.ring", "link.pem", "pi_id", "counters/rain")
    SERVER = ("pigeonpost.sqlite3", "pigeonpost.sqlite3-wal", "tokens.json", "pi_ids.json", "logs/a.csv", "files/a/b")

    def setUp(self):
        self.folder = temp_folder(self, memory_disk())
        self.source, self.target = os.path.join(self.folder, "data"), os.path.join(self.folder, "lib", "target")
        os.mkdir(os.path.join(self.folder, "lib"))
        for name in (*self.NODE, *self.SERVER):
            write(self.source, name, name)
        write(self.source, "running.json")

    def move(self, program):
        """Move the data as in a separate process: its locks are released at the end, even after a kill."""
        held = []

        def lock(path):
            held.append(lock_data_dir(path))
            return held[-1]

        try:
            with mock.patch("pigeonpost.cli.move_data.lock_data_dir", lock):
                return move_data.move_data(check_move(program, self.source, self.target))
        finally:
            for descriptor in held:
                os.close(descriptor)

    def test_data_of_each_program_is_moved_from_a_common_folder(self):
        write(self.source, "mine.txt")
        self.assertEqual(self.move("node"), len(self.NODE))
        self.assertEqual(tree(self.target), sorted(self.NODE))
        self.target += "-server"
        self.assertEqual(self.move("server"), len(self.SERVER))
        self.assertEqual(tree(self.target), sorted(self.SERVER))
        self.assertEqual(tree(self.source), ["mine.txt"])
        self.assertEqual(os.stat(self.target).st_mode & 0o777, 0o700)
        with open(os.path.join(self.target, "files/a/b"), encoding="utf-8") as file:
            self.assertEqual(file.read(), "files/a/b")

    def test_empty_source_folder_is_deleted(self):
        for name in self.SERVER:
            os.unlink(os.path.join(self.source, name))
        shutil.rmtree(os.path.join(self.source, "logs"))
        shutil.rmtree(os.path.join(self.source, "files"))
        os.unlink(os.path.join(self.source, "running.json"))
        self.move("node")
        self.assertFalse(os.path.exists(self.source))

    def test_data_in_use_is_not_moved(self):
        descriptor = lock_data_dir(os.path.join(self.source, "server.lock"))
        self.addCleanup(os.close, descriptor)
        with self.assertRaisesRegex(InUse, f"locked by process {os.getpid()}"):
            self.move("server")
        self.assertFalse(os.path.exists(self.target))

    def test_data_is_not_merged_with_existing_data(self):
        write(self.target, "tokens.json", "other")
        with self.assertRaisesRegex(
            Failed, r"already contains tokens\.json, and the data of two folders is never merged"
        ):
            self.move("server")
        self.assertEqual(tree(self.target), ["tokens.json"])

    def test_full_disk_is_reported_before_anything_is_copied(self):
        full = mock.patch("shutil.disk_usage", return_value=mock.Mock(free=1))
        with full, self.assertRaisesRegex(Failed, "has 0 MiB free"):
            self.move("server")
        self.assertFalse(os.path.exists(self.target + ".moving"))

    def test_move_killed_at_any_call_loses_nothing_and_can_be_repeated(self):
        expected = {name: name for name in self.SERVER}
        for n in range(1, 200):
            with self.subTest(n):
                if not self.killed_at(n):
                    break
                both = tree(self.source) + (tree(self.target) if os.path.isdir(self.target) else [])
                self.assertLessEqual(set(expected), set(both))
                self.move("server")
                self.assertEqual(tree(self.target), sorted(expected))
                shutil.rmtree(self.folder)
                os.makedirs(os.path.join(self.folder, "lib"))
                for name in (*self.NODE, *self.SERVER):
                    write(self.source, name, name)
        self.assertGreater(n, 20)

    def killed_at(self, n):
        """Move the data with a kill before the nth changing call. Return False if there are fewer calls."""
        left = n

        def counted(real):
            def call(*arguments, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    raise Died
                return real(*arguments, **options)

            return call

        names = ("mkdir", "rename", "unlink", "rmdir", "fsync")
        calls = mock.patch.multiple("os", **{name: counted(getattr(os, name)) for name in names})
        with calls, mock.patch("shutil.copy2", counted(shutil.copy2)):
            try:
                self.move("server")
            except Died:
                return True
        return False

    def test_source_that_changed_since_the_copy_is_not_deleted(self):
        mark = {"from": self.source, "files": check_move("server", self.source, self.target).files()}
        write(self.target, ".moved-from", json.dumps(mark))
        write(self.source, "tokens.json", "changed")
        with self.assertRaisesRegex(Failed, r"tokens\.json has changed since it was copied"):
            self.move("server")
        self.assertTrue(os.path.exists(os.path.join(self.source, "tokens.json")))


if __name__ == "__main__":
    unittest.main()
