"""Tests of `control.py doctor` on a node or server that is started by hand: each problem has a remedy."""

import argparse
import errno
import os
import re
import socket
import sys
import types
import unittest
from unittest import mock

from pigeonpost.auth.tokens import Tokens
from pigeonpost.auth.users import Users
from pigeonpost.cli import (
    doctor,
    doctor_checks,
    doctor_libraries,
    doctor_node,
    doctor_program,
    doctor_server,
    doctor_web,
)
from pigeonpost.cli.doctor_checks import Finding
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import load
from pigeonpost.core.errors import SensorError
from pigeonpost.sensors import gpio
from pigeonpost.sensors.counter_file import CounterFile, CounterState
from pigeonpost.sensors.simulated import SimulatedChip, room
from pigeonpost.settings import NODE, SERVER, SERVER_ARRAYS
from tests.page_support import Node, Server, control, control_here
from tests.support import LIMIT_S, temp_folder


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        # The results must not depend on this machine: its file system, its proxies, and a virtual environment.
        self.patch(doctor_checks, "kind_of_filesystem", lambda folder: "ext4")
        self.patch(doctor_web, "running_proxies", lambda folder="/proc": [])
        self.patch(sys, "prefix", sys.base_prefix)

    def patch(self, where, name, value):
        patch = mock.patch.object(where, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def put(self, name, content="", mode=0o644):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    def settings(self, table, text, arrays):
        flags = argparse.Namespace(config=self.put(f"{len(text)}.toml", text, 0o600))
        return load(table, flags, "", arrays, {})

    def node(self, text="", listen='listen = "127.0.0.1:0"'):
        text = f'[node]\ndata = "{self.folder}"\n{listen}\n{text}'
        return list(doctor.check_node(self.settings(NODE, text, ("sensor",)), self.folder))

    def server(self, text=""):
        text = f'[web]\nlisten = ["127.0.0.1:0"]\n{text}'
        return list(doctor.check_server(self.settings(SERVER, text, SERVER_ARRAYS), self.folder))

    def find(self, findings, words):
        """Return the only finding whose text matches."""
        found = [finding for finding in findings if re.search(words, finding.about)]
        self.assertEqual(len(found), 1, f"{words}: {findings}")
        return found[0]

    def assert_wrong(self, findings, words, remedy):
        found = self.find(findings, words)
        self.assertEqual(found.status, "wrong", found)
        self.assertRegex(found.remedy, remedy)

    def assert_ok(self, findings, words):
        self.assertEqual(self.find(findings, words).status, "ok", findings)


class Machine(Case):
    def test_old_python_is_a_problem(self):
        self.assert_ok(doctor.check_machine(), r"^Python 3\.")
        self.patch(doctor_program, "_NEWEST_UNSUPPORTED", (9, 9))
        self.assert_wrong(doctor.check_machine(), "but 3.11 or later is needed", "bookworm")

    def test_unsynchronised_clock_is_a_problem(self):
        self.patch(Clock, "is_set", lambda self: True)
        self.assert_ok(doctor.check_machine(), "the clock is synchronised")
        self.patch(Clock, "is_set", lambda self: False)
        self.assert_wrong(
            doctor.check_machine(), "the clock of this machine is not synchronised", "timedatectl set-ntp true"
        )


class Folders(Case):
    def look(self, data=None):
        return list(doctor_checks.check_folder(data or self.folder))

    def test_folder_is_valid_even_if_it_does_not_exist_yet(self):
        for data in (self.folder, os.path.join(self.folder, "a", "b")):
            self.assertEqual([finding.status for finding in self.look(data)], ["ok"])

    def test_unsuitable_file_systems_are_problems(self):
        for kind, words, remedy in (
            ("tmpfs", "lost at a restart", "volume"), ("overlay", "lost at a restart", "volume"),
            ("nfs4", "does not store data reliably", "local disk"), ("vfat", "not store data reliably", "ext4"),
        ):  # fmt: skip
            self.patch(doctor_checks, "kind_of_filesystem", lambda folder, kind=kind: kind)
            self.assert_wrong(self.look(), f"on {kind}.*{words}", remedy)

    def test_full_disk_is_a_problem(self):
        self.patch(doctor_checks, "_LEAST_BYTES", 1 << 60)
        self.assert_wrong(self.look(), "only [0-9]+ MiB are free", "--data DIR")

    def test_read_only_folder_is_a_problem(self):
        self.patch(os, "access", lambda path, mode: False)
        self.assert_wrong(self.look(), "may not write there", "install -d -o .*--data DIR")
        self.assert_wrong(self.look(self.put("file")), "may not write there", "--data DIR")


class Ports(Case):
    def test_port_is_free_used_by_pigeonpost_or_by_another_program(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            address = other.getsockname()
            self.assertEqual(
                doctor_checks.check_port(address, "--web", lambda: "our page is there"),
                Finding("ok", f"127.0.0.1:{address[1]}: our page is there"),
            )
            self.assert_wrong(
                [doctor_checks.check_port(address, "--web", str)], "Address already in use", f"ss -ltnp .*:{address[1]}"
            )
        self.assert_ok([doctor_checks.check_port(address, "--web", str)], "is free to listen on")

    def test_unusable_addresses_are_problems(self):
        self.assert_wrong(
            [doctor_checks.check_port(("192.0.2.1", 8080), "--web", str)],
            "cannot listen on 192.0.2.1:8080",
            "`ip address`",
        )
        denied = mock.Mock(side_effect=PermissionError(errno.EACCES, "Permission denied"))
        self.patch(socket, "create_server", denied)
        self.assert_wrong(
            [doctor_checks.check_port(("0.0.0.0", 80), "--web", str)], "Permission denied", "below 1024.*--port-80"
        )


class Nodes(Case):
    def test_missing_chip_and_library_are_problems(self):
        self.patch(doctor_libraries, "is_installed", lambda module, service=None: False)
        findings = self.node()
        self.assert_wrong(
            findings, "the default sensor.: the Python module spidev is missing", "apt install python3-spidev"
        )
        self.assert_wrong(
            findings, r"the default sensor.: .*dev/spidev0\.0 does not exist", "do_spi 0, then sudo reboot"
        )
        # The sensor is then not read.
        self.assertFalse([finding for finding in findings if "temperature" in finding.about])

    def test_readings_of_the_chip_are_shown(self):
        self.put("dev/spidev0.0")
        chip = SimulatedChip(room(lambda: 5.0))
        spi = types.SimpleNamespace(open=lambda *place: None, xfer2=chip.xfer2, close=lambda: None)
        self.patch(doctor_libraries, "is_installed", lambda module, service=None: True)
        with mock.patch.dict(sys.modules, {"spidev": types.SimpleNamespace(SpiDev=lambda: spi)}):
            findings = self.node()
        for words in (r"spidev0\.0 can be opened", r"temperature = 2[0-9]", "light = [0-9]+"):
            self.assert_ok(findings, words)
        self.assertNotIn("wrong", [finding.status for finding in findings])

    def test_simulated_chip_needs_no_device(self):
        self.assertFalse(
            [one for one in self.node("simulate = true") if "MCP3008" in one.about or one.status == "wrong"]
        )

    def test_missing_i2c_and_one_wire_buses_are_problems(self):
        tables = (
            '[[sensor]]\nkind = "mcp3424"\nbus = 3\nchannels.a.input = 1\n[[sensor]]\nkind = "kernel"\n'
            f'root = "{self.folder}"\nchannels.w.from = "w1/28-0316a2794bff"\n'
        )
        self.patch(doctor_libraries, "is_installed", lambda module, service=None: module != "smbus2")
        findings = self.node(tables)
        self.assert_wrong(
            findings, r"\[\[sensor\]\] 1, mcp3424: .*dev/i2c-3 does not exist", "do_i2c 0, then sudo reboot"
        )
        self.assert_wrong(findings, "module smbus2 is missing", "apt install python3-smbus2")
        self.assert_wrong(findings, r"\[\[sensor\]\] 2, kernel: 1-wire is not enabled", "do_onewire 0, then sudo")
        os.makedirs(os.path.join(self.folder, "sys/bus/w1/devices"))
        found = self.find(self.node(tables), "w cannot be read")
        self.assertIn("no such device", found.about)

    def test_line_of_a_counter_is_checked_without_reserving_it(self):
        table = '[[sensor]]\nkind = "counter"\nline = 17\nchannels.rain.unit = "mm"\n'
        self.assert_wrong(self.node(table), "counter: .*dev/gpiochip0 does not exist", "has GPIO lines, and `chip`")
        self.put("dev/gpiochip3")
        chip = gpio.Chip("/dev/gpiochip3", "pinctrl-rp1", 54)
        for user, status, words in (
            (None, "ok", r"counter: GPIO 17 of /dev/gpiochip3 \(pinctrl-rp1\) is free"),
            ("pigeonpost", "ok", "is counted by a running node"), ("w1_gpio", "wrong", "is used by 'w1_gpio'"),
            (SensorError("no permission to open"), "wrong", "counter: no permission to open"),
        ):  # fmt: skip
            self.patch(gpio, "find_chip", lambda name: chip)
            consumer = mock.Mock(side_effect=[user])
            self.patch(gpio, "consumer_of", consumer)
            found = self.find(self.node(table), words)
            self.assertEqual(found.status, status)
            consumer.assert_called_once_with(chip, 17)
        self.assert_wrong(
            self.node(table.replace("17", "-1")), "line takes a whole number", "settings.md lists the keys"
        )

    def test_total_of_a_counter_is_checked_without_writing(self):
        table = '[[sensor]]\nkind = "counter"\nline = 17\nchannels.rain.unit = "mm"\nchannels.wind.value = "rate"\n'
        self.put("dev/gpiochip0")
        self.assertFalse([one for one in self.node(table) if "total" in one.about])
        path = os.path.join(self.folder, "counters/rain")
        file = CounterFile(path)
        file.load()
        file.save(CounterState(3, 0, 4711304.25, 0.5, None))
        before = os.stat(path).st_mtime_ns
        found = self.find(self.node(table), "counter: total of rain = 4711305.75")
        self.assertEqual((found.status, os.stat(path).st_mtime_ns), ("ok", before))
        for content in (b"", b"hello", bytes(8192), b"0" * 8192):
            with open(path, "wb") as damaged:
                damaged.write(content)
            self.assert_wrong(self.node(table), "rain is damaged, so the total is unknown", "delete it, and set start")

    def test_enabled_buses_are_listed(self):
        found = self.find(self.node("simulate = true"), "buses enabled")
        self.assertEqual(found, Finding("note", "buses enabled: none; disabled: SPI, I2C, 1-wire"))
        for name in ("dev/spidev0.1", "dev/spidev0.0", "dev/i2c-1", "dev/i2c-x", "sys/bus/w1/devices/w1_bus_master1"):
            self.put(name)
        found = self.find(self.node("simulate = true"), "buses enabled")
        on = "SPI (spidev0.0, spidev0.1), I2C (i2c-1), 1-wire (w1_bus_master1)"
        self.assertEqual(found.about, f"buses enabled: {on}; disabled: none")

    def test_mqtt_sensor_needs_paho(self):
        self.patch(doctor_libraries, "is_installed", lambda module, service=None: False)
        findings = self.node('[[sensor]]\nkind = "mqtt"\nchannels.a.topic = "x"\n')
        self.assert_wrong(findings, "mqtt: the Python module paho is missing", "apt install python3-paho-mqtt")

    def test_missing_libraries_of_brokers_and_databases_are_problems(self):
        self.patch(doctor_libraries, "is_installed", lambda module, service=None: False)
        tables = '[mqtt]\nhost = "127.0.0.1"\nport = 1\n'
        self.assert_wrong(self.node(tables), r"\[mqtt\] host: the Python module paho", "apt install python3-paho-mqtt")
        tables += '[redis]\nurl = "redis://127.0.0.1:1"\n[store]\npostgres = "postgresql://127.0.0.1:1/x"\n'
        findings = self.server(tables)
        for words, remedy in (("mqtt. host", "python3-paho-mqtt"), ("redis. url", "python3-redis"),
                              ("store. postgres", "python3-psycopg")):  # fmt: skip
            self.assert_wrong(findings, f"{words}: the Python module", f"apt install {remedy}")
        device = '[[device]]\nname = "kitchen"\npreset = "tasmota"\nhost = "127.0.0.1"\n'
        self.assert_wrong(self.server(device), r"\[\[device\]\]: the Python module paho", "python3-paho-mqtt")
        self.patch(sys, "prefix", "/an/environment")
        self.assert_wrong(self.server(tables), "store. postgres", r"-m pip install 'psycopg\[binary\]'")

    def test_each_reading_and_failure_is_a_finding(self):
        findings = self.node(
            '[[sensor]]\nkind = "command"\ncommand = ["echo", "21.5"]\nchannels.a = {}\nchannels.b.pattern = "x(.)"\n'
            '[[sensor]]\nkind = "command"\ncommand = ["false"]\nchannels.c = {}\n'
            '[[sensor]]\nkind = "command"\nchannels.d = {}\n[[sensor]]\nkind = "barometer"\n'
            '[[sensor]]\nkind = "formula"\nchannels.e.formula = "a + 1"\n'
        )
        self.assert_ok(findings, r"\[\[sensor\]\] 1, command: a = 21\.5")
        for words in (
            r"1, command: b cannot be read: 'x\(\.\)' does not match",
            "2, command cannot be read: 'false' failed",
            "must have either `command` or `file`",
            "4, barometer: this kind of sensor does not exist",
        ):
            self.assertEqual(self.find(findings, words).status, "wrong")
        self.assertFalse([finding for finding in findings if " 5, " in finding.about])

    def test_root_does_not_run_commands_of_a_file_that_others_may_write(self):
        path = os.path.join(self.folder, "mine")
        table = f'[[sensor]]\nkind = "command"\ncommand = ["touch", "{path}"]\nchannels.a = {{}}\n'
        self.patch(doctor_node, "_is_writable_by_others", lambda file: True)
        self.assertEqual(
            self.find(self.node(table), "not run as root, because other users may write to").status, "note"
        )
        self.assertFalse(os.path.exists(path))

    def test_settings_files_that_others_may_write_are_detected(self):
        path = self.put("node.toml", mode=0o644)
        self.patch(os, "geteuid", lambda: 0)
        for uid, mode, is_anothers in ((0, 0o644, False), (1000, 0o644, True), (0, 0o664, True), (0, 0o646, True)):
            with mock.patch("os.stat", lambda name, uid=uid, mode=mode: mock.Mock(st_uid=uid, st_mode=mode)):
                self.assertEqual(doctor_node._is_writable_by_others(path), is_anothers, f"{uid} {mode:o}")
        self.assertFalse(doctor_node._is_writable_by_others("PIGEONPOST_NODE_TOML"))
        self.patch(os, "geteuid", lambda: 1000)
        self.assertFalse(doctor_node._is_writable_by_others(path))

    def test_device_without_permission_is_a_problem(self):
        path = self.put("dev/spidev0.0")
        self.patch(os, "access", lambda path, mode: False)
        self.patch(doctor_checks, "_user", lambda: "pat")
        self.patch(doctor_checks, "_group_name", lambda number: "spi")
        self.patch(doctor_checks, "_members", lambda group: [])
        self.assert_wrong(
            [doctor_checks.check_device(path, "")], "cannot be opened by pat", "usermod -aG spi pat, then log in again"
        )
        self.patch(doctor_checks, "_members", lambda group: ["pat"])
        self.assert_wrong([doctor_checks.check_device(path, "")], "joined group spi after this login", "log in again")

    def test_missing_group_gpio_is_a_note(self):
        self.patch(doctor_checks, "_exists", lambda group: True)
        self.patch(doctor_checks, "_members", lambda group: [])
        self.patch(os, "getuid", lambda: 12345)
        found = self.find(self.node("simulate = true"), "not in group gpio")
        self.assertEqual((found.status, found.remedy), ("note", "sudo usermod -aG gpio 12345"))
        self.patch(doctor_checks, "_exists", lambda group: False)
        self.assertFalse([one for one in self.node("simulate = true") if "gpio" in one.about])

    def test_token_file_must_be_private(self):
        self.assertEqual(self.find(self.node(listen='listen = "0.0.0.0:0"'), "no token").status, "note")
        text = f'[node]\ndata = "{self.folder}"\nlisten = "127.0.0.1:0"\nsimulate = true\ntoken = "{"t" * 32}"\n'
        settings = self.settings(NODE, text, ("sensor",))
        self.assert_ok(doctor.check_node(settings), "contains the token. can be read by its owner only")
        os.chmod(settings.file, 0o644)
        self.assert_wrong(
            doctor.check_node(settings), r"can be read by other users \(mode 0644\)", f"chmod 600 {settings.file}"
        )

    def test_tls_needs_openssl_and_a_private_key_file(self):
        with mock.patch("shutil.which", lambda program: None):
            found = self.find(self.node("[link]\ntls = true"), "openssl")
        self.assertEqual((found.status, "apt install openssl" in found.remedy), ("wrong", True))
        self.put("link.pem", "key", 0o644)
        self.assertEqual(self.find(self.node("[link]\ntls = true"), "link's certificate").status, "wrong")
        os.chmod(os.path.join(self.folder, "link.pem"), 0o600)
        self.assertEqual(self.find(self.node("[link]\ntls = true"), "link's certificate").status, "ok")

    def test_server_for_push_must_be_reachable(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            to = f'simulate = true\n[push]\nto = "http://127.0.0.1:{other.getsockname()[1]}"\n'
            self.assert_ok(self.node(to), "the server at .* can be reached")
        self.assert_wrong(
            self.node(to), "the server at .* cannot be reached: Connection refused", "check that it is running"
        )

    def test_broker_must_be_reachable(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            broker = f'[mqtt]\nhost = "127.0.0.1"\nport = {other.getsockname()[1]}\n'
            self.assert_ok(self.node("simulate = true\n" + broker), "the broker at .* can be reached")
            self.assert_ok(self.server(broker), "the broker at .* can be reached")
        self.assert_wrong(self.server(broker), "the broker at .* cannot be reached", "check that it is running")


class Servers(Case):
    def test_valid_server_has_no_problems(self):
        Tokens(self.folder).make("basement")
        findings = self.server()
        self.assertEqual({finding.status for finding in findings}, {"ok"}, findings)
        self.assert_ok(findings, "tokens of the nodes. can be read by its owner only")

    def test_token_file_that_others_may_read_is_a_problem(self):
        path = self.put("tokens.json", "{}", 0o640)
        self.assert_wrong(
            self.server(), r"tokens of the nodes. can be read by other users \(mode 0640\)", f"chmod 600 {path}"
        )
        real = os.access
        self.patch(os, "access", lambda name, mode: name != path and real(name, mode))
        self.assert_wrong(self.server(), "cannot be read by", "sudo chown .*tokens.json")

    def test_damaged_token_file_is_a_problem(self):
        self.put("tokens.json", "no list", 0o600)
        flags = self.settings(SERVER, '[web]\nlisten = ["127.0.0.1:0"]\n', SERVER_ARRAYS)
        findings = list(doctor._safely(doctor.check_server(flags, self.folder)))
        self.assertEqual(self.find(findings, "tokens.json is damaged").status, "wrong")

    def test_damaged_user_file_has_a_remedy(self):
        Users(self.folder).set_password("admin", "correct horse")
        path = self.put("users.json", "", 0o600)
        self.assert_wrong(self.server(), r"users.json is damaged \(0 bytes\)", f"restore {path}.bak")

    def test_data_folder_that_others_may_read_is_a_problem(self):
        os.chmod(self.folder, 0o755)
        self.assert_wrong(self.server(), r"can be read by other users \(mode 0755\)", f"chmod 700 {self.folder}")

    @unittest.skipUnless(os.geteuid() == 0, "only root can give files to others")
    def test_files_of_another_owner_are_a_problem(self):
        os.makedirs(os.path.join(self.folder, "logs"))
        os.chown(self.put("logs/a.csv", "", 0o600), 4321, 4321)
        self.assert_wrong(
            self.server(), "a.csv belongs to 4321, but its folder belongs to root", "sudo chown -hR root: "
        )

    def test_nodes_of_the_server_must_be_reachable(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            nodes = f'[server]\nnodes = ["basement@127.0.0.1:{other.getsockname()[1]}"]\n'
            self.assert_ok(self.server(nodes), "node basement at .* can be reached")
        self.assert_wrong(self.server(nodes), "node basement at .* cannot be reached", "control.py doctor node")
        away = mock.Mock(side_effect=TimeoutError("timed out"))
        self.patch(socket, "create_connection", away)
        findings = self.server('[server]\nnodes = ["attic@192.0.2.7"]\n')
        self.assert_wrong(findings, "node attic at 192.0.2.7:5003 cannot be reached: timed out", "doctor node")
        self.assertEqual(
            self.find(findings, "has no token on this server").remedy,
            "python3 control.py token attic, and copy it to the node",
        )


class Running(Case):
    def test_running_server_of_another_user_is_detected(self):
        self.put("running.json", '{"pid": 1, "web": [["0.0.0.0", 8080]]}')
        for error, text in ((PermissionError(), "the page of this server"), (ProcessLookupError(), "")):
            self.patch(os, "kill", mock.Mock(side_effect=error))
            self.assertEqual(doctor_server._running(self.folder, ("127.0.0.1", 8080)), text)


class Programs(unittest.TestCase):
    def test_machine_without_a_setup_has_no_problems(self):
        status, said, errors = control(self, "doctor")
        self.assertEqual(errors, "")
        self.assertIn("nothing is set up here yet", said)
        self.assertEqual(status, 0 if "No problems found." in said else 1)

    def test_running_node_and_server_are_recognised(self):
        node = Node(self)
        server = Server(self, "--node", node.at)
        host, port = server.page
        config = os.path.join(server.data, "server.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f'[web]\nlisten = ["{host}:{port}"]\n[server]\nnodes = ["{node.at}"]\n')
        own = os.path.join(server.data, "node.toml")
        with open(own, "w", encoding="utf-8") as file:
            file.write(f'[node]\nlisten = "{node.place}"\nsimulate = true\ndata = "{server.data}"\n')
        with mock.patch.object(doctor_node, "REACH_S", LIMIT_S):
            status, said, errors = control_here(
                "--data", server.data, "--config", config, "doctor", "--node-config", own
            )  # fmt: skip
        self.assertEqual(errors, "")
        self.assertIn(f"ok     {host}:{port}: the page of this server", said)
        self.assertRegex(
            said, rf"ok     {node.place}: the node of this machine answers; collected by (no server|[A-Za-z0-9._-]+)"
        )
        self.assertIn(f"ok     node basement at {node.place} can be reached", said)
        self.assertEqual(said.count("  wrong  "), said.count("lost at a restart"), said)
        self.assertEqual(status, 1 if "  wrong  " in said else 0)

    def test_number_of_problems_is_printed_and_the_status_is_1(self):
        config = os.path.join(temp_folder(self), "node.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                '[node]\nlisten = "127.0.0.1:0"\n[[sensor]]\nkind = "command"\ncommand = ["false"]\nchannels.x = {}\n'
            )
        status, said, errors = control_here("doctor", "node", "--node-config", config)
        self.assertEqual((status, errors), (1, ""))
        self.assertRegex(said, r"\n[1-9] problems? found\.\n$")

    def test_help_names_the_flags(self):
        status, said, _ = control_here("doctor", "--help")
        self.assertEqual(status, 0)
        self.assertRegex(said, r"--node-config FILE\b")
        self.assertRegex(said, r"--root FOLDER\b")

    def test_invalid_settings_of_the_server_are_a_problem(self):
        config = os.path.join(temp_folder(self), "server.toml")
        with open(config, "wb") as file:
            file.write("[server]\n".encode("utf-16"))
        status, said, errors = control_here("doctor", "--config", config)
        self.assertEqual((status, errors), (1, ""))
        self.assertIn("server.toml: is UTF-16", said)
        self.assertIn("As a node", control_here("doctor", "node", "--config", config)[1])

    def test_invalid_settings_of_the_node_are_a_problem(self):
        config = os.path.join(temp_folder(self), "node.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write("[node]\nevry = 5\n")
        status, said, _ = control_here("doctor", "--node-config", config)
        self.assertEqual(status, 1)
        self.assertIn('did you mean "every"?', said)
        self.assertIn("remedy: node.default.toml lists all keys", said)


if __name__ == "__main__":
    unittest.main()
