"""Tests of node.py as a program: start, output, end, and restart."""

import argparse
import errno
import json
import os
import shutil
import signal
import time
import unittest
from itertools import pairwise
from unittest import mock

import node
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.config import load
from pigeonpost.core.errors import SettingsError
from pigeonpost.node.ring_file import Ring
from pigeonpost.sensors.contract import Channel
from pigeonpost.sensors.registry import KINDS
from pigeonpost.settings import NODE
from pigeonpost.transports.tcp_server import TcpServerTransport
from tests.forked import Forked
from tests.page_support import main_here, use_memory_disk
from tests.support import (
    LIMIT_S,
    ROOT,
    FakeLedger,
    Program,
    Talk,
    samples_of,
    temp_folder,
    wait_until,
)


def setUpModule():
    use_memory_disk()


def run(test, *arguments, **environment):
    """Run a node that ends on its own, and return its exit status, output and errors."""
    program = Forked(test, "node.py", *arguments, **environment)
    status = program.wait()
    said, logged = ("".join(f"{line}\n" for line in lines) for lines in (program.said, program.logged))
    return status, said, logged


def run_here(test, *arguments, **environment):
    """Do the same in this process."""
    return main_here(node, *arguments, **environment)


class NodeCase(unittest.TestCase):
    def setUp(self):
        self.data = temp_folder(self)

    def start(self, *arguments, kind=Forked, **environment):
        """Start a simulated node with a short interval, on a free port, with the data folder of this test."""
        return kind(
            self, "node.py", "--simulate", "--listen", "127.0.0.1:0", "--data", self.data, "--name", "basement",
            *(arguments or ("--every", "0.02")), **{"PIGEONPOST_OUTBOX_SLOTS": "1024", **environment},
        )  # fmt: skip

    def ring(self):
        """Return the contents of the outbox file, as another program reads them."""
        ring = Ring(self.data, 64, 128)
        self.addCleanup(ring.close)
        return ring

    def status(self, address, token=None):
        with Talk(address) as talk:
            if token:
                talk.say("AUTH", {"token": token})
            talk.say("CHECK")
            return talk.until("STATUS").args

    def held(self, address, token=None):
        """Return the number of samples in the outbox, after waiting for the first."""
        return wait_until(lambda: self.status(address, token)[2]["held"])


class Starting(NodeCase):
    def test_node_prints_its_address_and_answers_there(self):
        program = self.start(kind=Program)
        host, port = program.address()
        self.assertEqual(host, "127.0.0.1")
        self.assertNotEqual(port, 0)
        on, _, details = self.status((host, port))
        self.assertTrue(on)
        self.assertEqual((details["every"], details["slots"], details["collectors"]), (0.02, 1024, []))
        self.assertEqual(set(details["machine"]) - {"cpu_temperature"}, {"load", "memory_free", "disk_free"})
        program.logs("node basement: sensors temperature, light, sampled every 0.02 s; sampling is on;")
        program.logs("no token: only programs on this machine can connect; `control.py token basement` creates a token")
        self.assertEqual(program.said, [f"listening on 127.0.0.1:{port}"])

    def test_damaged_outbox_is_kept_and_replaced(self):
        for damaged in (b"", bytes(10_000)):
            with open(os.path.join(self.data, "outbox.ring"), "wb") as file:
                file.write(damaged)
            node = self.start()
            address = node.address()
            self.assertGreater(self.held(address), 0)
            faults = self.status(address)[2]["faults"]
            self.assertRegex(faults[0], "is not an outbox.*: python3 control.py read-outbox .*outbox.ring.damaged-")
            node.logs("is not an outbox, or its header is damaged; 0 samples could be read and copied to a new outbox")
            node.terminate()
            node.wait()
        self.assertEqual(len(faults), 2)  # the first damaged file is still there
        self.assertIn("prints its samples; delete the file afterwards", faults[1])

    def test_samples_are_taken_and_stored(self):
        address = self.start().address()
        wait_until(lambda: self.status(address)[2]["taken"] >= 3)
        self.assertGreaterEqual(wait_until(lambda: self.status(address)[2]["held"] >= 3 and 3), 3)

    def test_server_collects_the_samples_of_a_node(self):
        address = self.start().address()
        ledger = FakeLedger()
        end = TcpServerTransport(address, "basement", "home", ledger, {}, FakeClock())
        end.start()
        self.addCleanup(end.stop, LIMIT_S)
        ledger.wait_for(5)
        with self.assertNoLogs("pigeonpost.transports.tcp_server", "INFO"):  # closed by this end
            end.stop(LIMIT_S)
        epoch = ledger.rows[0][1]
        seqs = ledger.seqs(epoch)
        self.assertEqual(seqs, list(range(1, len(seqs) + 1)))
        sample = ledger.rows[-1][2]
        self.assertEqual(set(sample.values), {"temperature", "light"})
        self.assertTrue(15 < sample.values["temperature"] < 27, sample)
        simulated = [
            {"name": "temperature", "unit": "°C", "simulated": True, "limits": {"rail": [-50.0, 279.68]}},
            {"name": "light", "unit": "counts", "simulated": True},
        ]
        self.assertEqual(end.state.sensors, simulated)

    def test_node_runs_from_a_read_only_program_folder(self):
        """A copied program writes only to its data folder, in any current folder."""
        copy = os.path.join(temp_folder(self), "pigeonpost")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "tests", "bench", "__pycache__", ".*"))
        before = sorted(os.walk(copy))
        with mock.patch("tests.support.ROOT", copy):
            program = self.start(kind=Program)
        program.address()
        program.terminate()
        self.assertEqual(program.wait(), 0)
        self.assertEqual(sorted(os.walk(copy)), before)

    def test_missing_chip_is_reported_with_the_remedy_and_the_machine_is_read(self):
        program = Program(
            self, "node.py", "--listen", "127.0.0.1:0", "--data", self.data, "--every", "0.05",
            PIGEONPOST_OUTBOX_SLOTS="64",
        )  # fmt: skip
        address = program.address()
        remedies = ("sudo apt install python3-spidev", "sudo raspi-config nonint do_spi 0", "sudo usermod -aG spi")
        line = program.logs("temperature: ")
        self.assertTrue(any(remedy in line for remedy in remedies), line)
        with Talk(address) as talk:
            talk.say("SEND", True)
            first = samples_of(talk.until("SENSORS"))[0]
        values, errors = first.values, first.errors
        self.assertIsNone(values["temperature"])
        said = line.partition("temperature: ")[2]
        self.assertTrue(len(errors["temperature"]) >= 20 and said.startswith(errors["temperature"]), (errors, said))
        self.assertIsNotNone(values["load"])
        self.assertIsNotNone(values["disk_free"])

    def test_version_and_help_are_printed(self):
        status, said, _ = run(self, "--version")
        self.assertEqual(status, 0)
        self.assertRegex(said, r"^pigeonpost \d+\.\d+\.\d+\n$")
        status, said, _ = run_here(self, "--help")
        self.assertEqual(status, 0)
        for flag in (
            "--config",
            "--name",
            "--listen",
            "--data",
            "--every",
            "--simulate",
            "--token",
            "--show",
            "examples:",
        ):
            self.assertIn(flag, said)


class Settings_(NodeCase):
    def refused(self, *arguments, file=None, run=run_here, **environment):
        """Return the standard error output of a node that ended with exit status 2."""
        if file is not None:
            path = os.path.join(self.data, "node.toml")
            with open(path, "w", encoding="utf-8") as out:
                out.write(file)
            arguments = ("--config", path, *arguments)
        status, said, errors = run(self, "--data", self.data, *arguments, **environment)
        self.assertEqual((status, said), (2, ""), errors)
        self.assertNotIn("Traceback", errors)
        return errors

    def test_show_prints_all_settings_with_their_origins(self):
        status, said, errors = run_here(
            self, "--show", "--every", "3", "--token", "a secret of 16 letters", PIGEONPOST_OUTBOX_SLOTS="128"
        )
        self.assertEqual((status, errors), (0, ""))
        self.assertEqual(len(said.splitlines()), len(NODE))
        for line in (
            "[node] every = 3  # --every", "[outbox] slots = 128  # PIGEONPOST_OUTBOX_SLOTS",
            '[node] listen = "0.0.0.0:5003"  # default', "[node] token = (set)  # --token",
        ):  # fmt: skip
            self.assertIn(line.split("  # ")[1], said)
            self.assertIn(line.partition(" = ")[0], said)
        self.assertIn("[node] token = (set)  # --token", said)
        self.assertNotIn("a secret of", said)

    def test_show_creates_no_files(self):
        folder = os.path.join(self.data, "new")
        self.assertEqual(run_here(self, "--show", "--data", folder)[0], 0)
        self.assertFalse(os.path.exists(folder))

    def test_invalid_value_is_reported_with_file_table_and_key(self):
        errors = self.refused(file="[node]\nevery = 'often'\n", run=run)
        path = os.path.join(self.data, "node.toml")
        words = "[node] every takes a number from 0.01 to 86400, not 'often'"
        self.assertEqual(errors, f"node.py: {path}, line 2: {words}\n")

    def test_unknown_key_is_reported_with_a_hint(self):
        self.assertIn("[node]: unknown key 'evry'; did you mean \"every\"?", self.refused(file="[node]\nevry = 5\n"))

    def test_invalid_flags_and_variables_are_reported(self):
        self.assertIn("--every: [node] every takes", self.refused("--every", "0"))
        errors = self.refused(PIGEONPOST_NODE_LISTEN="here:99999")
        self.assertIn("PIGEONPOST_NODE_LISTEN: [node] listen takes HOST:PORT", errors)
        errors = self.refused("--token", "too short")
        self.assertIn("16 characters or more", errors)
        self.assertNotIn("too short", errors)

    def settings(self, file):
        """Return the settings as the program reads them, from a file only."""
        path = os.path.join(self.data, "node.toml")
        with open(path, "w", encoding="utf-8") as out:
            out.write(file)
        no_flags = argparse.Namespace(config=path)
        return path, load(NODE, no_flags, "", ("sensor",), {})

    def test_invalid_sensor_is_reported_with_its_table(self):
        for table, words in (
            (
                '[[sensor]]\nkind = "barometer"',
                "[[sensor]] 1: kind must be one of adc, command, counter, formula, json, kernel, machine, mcp3424,"
                " mqtt",
            ),
            (
                '[[sensor]]\nkind = "simulated"',
                "kind must be one of adc, command, counter, formula, json, kernel, machine, mcp3424, mqtt",
            ),
            ("[[sensor]]", "kind must be one of adc, command, counter, formula, json, kernel, machine, mcp3424, mqtt"),
            (
                '[[sensor]]\nkind = ["adc"]',
                "kind must be one of adc, command, counter, formula, json, kernel, machine, mcp3424, mqtt",
            ),
            ('[[sensor]]\nkind = "machine"\n[[sensor]]\nkind = "adc"', "[[sensor]] 2: channels is missing"),
            ('[[sensor]]\nkind = "machine"\ndsk = "/"', 'did you mean "disk"?'),
            ('[[sensor]]\nkind = "machine"\n[[sensor]]\nkind = "machine"', "[[sensor]] 2: channels.load: two sensors"),
            (
                '[[sensor]]\nkind = "counter"\nline = 4\nchannels.a = {}\n'
                '[[sensor]]\nkind = "counter"\nline = 5\n[sensor.channels.a]',
                "node.toml, line 8: [[sensor]] 2: channels.a: two sensors have a channel 'a'; rename one of them",
            ),
            ('[sensor]\nkind = "machine"', "sensor must be written as [[sensor]]"),
            (
                '[[sensor]]\nkind = "formula"\nchannels.x.formula = "1 +"',
                "[[sensor]] 1: channels.x: formula, column 4: ",
            ),
            (
                '[[sensor]]\nkind = "machine"\n[[sensor]]\nkind = "formula"\nchannels.x.formula = "2 * laod"',
                "[[sensor]] 2: channels.x: formula, column 5: no channel is called 'laod'; did you mean \"load\"?",
            ),
        ):
            with self.subTest(table), self.assertRaises(SettingsError) as caught:
                node.make_sources(self.settings(table)[1])
            self.assertRegex(str(caught.exception), "node.toml(, line [0-9]+)?: ")
            self.assertIn(words, str(caught.exception))
        self.assertIn("channels is missing", self.refused(file='[[sensor]]\nkind = "adc"', run=run))

    def test_channel_calculated_from_a_simulated_one_is_simulated(self):
        adc = '[[sensor]]\nkind = "adc"\nchannels.t = {input = 1, convert = "mcp9700"}\n'
        formulas = (
            '[[sensor]]\nkind = "formula"\nchannels = {a = {formula = "b"}, b = {formula = "t"}, c = {formula = "1"}}'
        )
        settings = self.settings("[node]\nsimulate = true\n" + adc + formulas)[1]
        channels = [channel for source in node.make_sources(settings) for channel in source.channels]
        self.assertEqual([(channel.name, channel.simulated) for channel in channels],
                         [("t", True), ("a", True), ("b", True), ("c", False)])  # fmt: skip

    def test_total_of_a_counter_is_announced_as_a_total(self):
        channels = [Channel("rain", "mm", is_total=True), Channel("rate", "mm/h")]
        self.assertEqual([node._channel_as_json(channel).get("total") for channel in channels], [True, None])

    def test_address_in_use_is_reported(self):
        address = self.start().address()
        errors = self.refused("--simulate", "--listen", f"127.0.0.1:{address[1]}", "--data", temp_folder(self), run=run)
        self.assertIn(f"cannot listen on 127.0.0.1:{address[1]}: Address already in use", errors)
        self.assertIn("--listen HOST:PORT", errors)

    def test_missing_settings_file_is_reported(self):
        self.assertIn("nowhere.toml: No such file or directory", self.refused("--config", "nowhere.toml"))

    def test_default_sources_are_the_chip_and_the_machine(self):
        _, settings = self.settings("")
        names = [channel.name for source in node.make_sources(settings) for channel in source.channels]
        self.assertEqual(names[:2], ["temperature", "light"])
        self.assertEqual(set(names[2:]) - {"cpu_temperature"}, {"load", "memory_free", "disk_free"})

    def test_every_kind_has_a_module(self):
        self.assertEqual(
            set(KINDS) - {"adc"},
            {n[:-3] for n in os.listdir(os.path.join(ROOT, "pigeonpost", "sensors")) if n.endswith(".py")}
            - {
                "__init__",
                "contract",
                "registry",
                "simulated",
                "counter_file",
                "mqtt_message",
                "mqtt_presets",
                "gpio",
                "chips",
                "one_wire",
                "ranges",
                "sysfs",
            },
        )

    def test_sources_are_started_with_the_data_folder(self):
        sources = [mock.Mock(), mock.Mock()]
        node.Node._start_sources(mock.Mock(sources=sources, _data="folder"))
        for source in sources:
            source.start.assert_called_once_with("folder")

    def test_too_many_sensors_are_refused(self):
        with self.assertRaisesRegex(SettingsError, "too many for one node"):
            node._slot_bytes([f"n{k}" for k in range(5000)])
        with self.assertRaisesRegex(SettingsError, "600 sensors are too many for one node: move some of them"):
            node._refuse_too_many([Channel(f"sensor_{k:03d}", "µg/m³") for k in range(600)])
        node._refuse_too_many([Channel(f"sensor_{k:03d}", "µg/m³") for k in range(300)])


class Ending(NodeCase):
    def test_sigterm_ends_a_node_with_an_idle_client(self):
        program = self.start(kind=Program)
        address = program.address()
        with Talk(address) as idle, Talk(address) as plain:
            plain.say("SEND", True)
            plain.until("SENSORS")
            before = self.held(address)
            began_s = time.monotonic()
            program.terminate()
            self.assertEqual(program.wait(), 0)
            self.assertLess(time.monotonic() - began_s, 5)
            self.assertIsNone(idle.line())
        program.logs("ended: received SIGTERM")
        self.assertGreaterEqual(self.ring().last, before)

    def test_sigint_ends_the_node(self):
        program = self.start()
        program.address()
        program.process.send_signal(signal.SIGINT)
        self.assertEqual(program.wait(), 0)
        program.logs("ended: received SIGINT")

    def test_queued_samples_are_written_at_the_end(self):
        program = self.start("--every", "0.02", PIGEONPOST_OUTBOX_SYNC="3600")
        address = program.address()
        taken = wait_until(lambda: (n := self.status(address)[2]["taken"]) >= 5 and n)
        self.assertEqual(self.status(address)[2]["held"], 0)
        program.terminate()
        self.assertEqual(program.wait(), 0)
        self.assertGreaterEqual(self.ring().last, taken)

    def test_killed_node_continues_with_a_new_epoch(self):
        held = 0
        for _ in range(3):
            program = self.start()
            address = program.address()
            now = wait_until(lambda h=held, a=address: (n := self.status(a)[2]["held"]) >= h + 3 and n)
            program.kill()
            held = self.ring().last
            self.assertGreaterEqual(held, now)
        runs = self.ring().runs
        self.assertEqual(len({run.epoch for run in runs}), 3)
        self.assertEqual([run.first for run in runs], [1, 1, 1])
        self.assertEqual([b.number - a.last_number for a, b in pairwise(runs)], [1, 1])

    def test_off_state_is_kept_after_a_restart(self):
        program = self.start()
        address = program.address()
        with Talk(address) as talk:
            talk.say("SEND", False)
            self.assertEqual(talk.until("SENDBACK").args, (False,))
        program.kill()
        program = self.start()
        on, _, details = self.status(program.address())
        self.assertEqual((on, details["taken"]), (False, 0))
        program.logs("OFF")

    def test_second_node_on_the_same_data_exits_with_75(self):
        program = self.start()
        program.address()
        status, said, errors = run(self, "--simulate", "--listen", "127.0.0.1:0", "--data", self.data)
        self.assertEqual((status, said), (75, ""))
        self.assertIn(f"outbox.lock is locked by process {program.process.pid}", errors)
        program.kill()
        again = self.start()  # the lock ends with the process that holds it
        again.address()


class DiskErrors(NodeCase):
    def test_unwritable_data_folder_is_reported(self):
        path = os.path.join(self.data, "file")
        with open(path, "w", encoding="utf-8"):
            pass
        status, _, errors = run(self, "--simulate", "--listen", "127.0.0.1:0", "--data", os.path.join(path, "data"))
        self.assertEqual(status, 74)
        self.assertIn("--data DIR", errors)

    def failing(self, condition):
        """Start a node whose writes fail with EIO once the Python expression `condition` is true."""
        code = f"""
import os, sys, errno
sys.path.insert(0, {ROOT!r})
import node
from pigeonpost.node import ring_file as ring
calls = 0
def pwrite(fd, data, at):
    global calls
    calls += at >= 12288 and len(data) < 1000
    if {condition}:
        raise OSError(errno.EIO, "Input/output error")
    return os.pwrite(fd, data, at)
ring.FileOps.pwrite = staticmethod(pwrite)
sys.exit(node.main(sys.argv[1:]))
"""
        path = os.path.join(self.data, "sick.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(code)
        return Program(
            self, path, "--simulate", "--listen", "127.0.0.1:0", "--data", self.data, "--every", "0.02",
            PIGEONPOST_OUTBOX_SLOTS="64",
        )  # fmt: skip

    def test_disk_error_during_a_sample_exits_with_74(self):
        program = self.failing("calls > 5")
        program.address()
        self.assertEqual(program.wait(), 74)
        program.logs("outbox.ring: " + os.strerror(errno.EIO))
        self.assertGreater(self.ring().last, 3)

    def test_disk_error_during_off_exits_with_74(self):
        """The thread of the connection gets the error, and must not treat it as an error of the connection."""
        program = self.failing("4096 <= at < 12288 and b'false' in bytes(data)")
        with Talk(program.address()) as talk:
            talk.say("SEND", False)
            self.assertEqual(program.wait(), 74)
            self.assertNotIn("SENDBACK", [message.word for message in talk.rest()])
        program.logs("outbox.ring: " + os.strerror(errno.EIO))


class Tokens(NodeCase):
    TOKEN = "a token of 16 letters or more"

    def test_token_is_read_from_variable_flag_and_credential(self):
        credentials = temp_folder(self)
        with open(os.path.join(credentials, "node-token"), "w", encoding="utf-8") as file:
            file.write(self.TOKEN + "\n")
        for arguments, environment in (
            ((), {"PIGEONPOST_NODE_TOKEN": self.TOKEN}),
            (("--token", self.TOKEN), {}),
            ((), {"CREDENTIALS_DIRECTORY": credentials}),
        ):
            with self.subTest(arguments=arguments, environment=environment):
                program = self.start("--every", "0.02", *arguments, **environment)
                address = program.address()
                self.assertTrue(self.held(address, self.TOKEN))
                with Talk(address) as talk:  # last, because a client must wait after a failed attempt
                    talk.say("CHECK")
                    self.assertEqual([m.args[0] for m in talk.rest()], ["auth"])
                self.assertFalse(any("no token" in line for line in program.logged))
                program.kill()

    def test_invalid_credential_is_refused_and_an_empty_one_is_ignored(self):
        folder = temp_folder(self)
        unusable = "must have 16 characters or more; `control.py token"
        for content, words in ((b"short\n", unusable), (b"\xff" * 20, unusable), (b"\n", "")):
            with open(os.path.join(folder, "node-token"), "wb") as file:
                file.write(content)
            with mock.patch.dict(os.environ, CREDENTIALS_DIRECTORY=folder):
                if words:
                    with self.assertRaisesRegex(SettingsError, words):
                        node._key("")
                else:
                    self.assertIsNone(node._key(""))

    def test_credentials_folder_without_a_token_is_ignored(self):
        program = self.start("--every", "5", CREDENTIALS_DIRECTORY=temp_folder(self))
        self.status(program.address())
        program.logs("no token")


class LoadedModules(NodeCase):
    """Modules loaded by a running node, which need memory on a Pi Zero."""

    NEVER = (
        "http",
        "urllib.request",
        "smtplib",
        "asyncio",
        "sqlite3",
        "email",
        "webui",
        "csvbuffer",
        "pigeonpost.server",
        "pigeonpost.storage",
        "pigeonpost.web",
        "unittest",
    )

    def modules(self, *arguments, **environment):
        code = f"""
import json, sys
sys.path[0] = {ROOT!r}
import node
report = node.Node._report_ready
def report_ready(self):
    print(json.dumps(sorted(sys.modules)), flush=True)
    report(self)
node.Node._report_ready = report_ready
sys.exit(node.main(sys.argv[1:]))
"""
        path = os.path.join(self.data, "look.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(code)
        program = Program(
            self, path, "--listen", "127.0.0.1:0", "--data", self.data, "--simulate", *arguments,
            PIGEONPOST_OUTBOX_SLOTS="64", **environment,
        )  # fmt: skip
        loaded = set(json.loads(program.line()))
        program.address()
        program.kill()
        self.assertIn("pigeonpost.transports.tcp_node", loaded)
        return loaded

    def found(self, loaded, names):
        return sorted(name for name in loaded if any(name == bad or name.startswith(bad + ".") for bad in names))

    def test_node_without_a_token_loads_no_unnecessary_modules(self):
        self.assertEqual(self.found(self.modules(), (*self.NEVER, "hashlib", "_hashlib", "hmac", "ssl", "gate")), [])

    def test_node_with_a_token_loads_no_unnecessary_modules(self):
        loaded = self.modules(PIGEONPOST_NODE_TOKEN="a token of 16 letters")
        self.assertIn("hmac", loaded)
        self.assertEqual(self.found(loaded, (*self.NEVER, "ssl", "pigeonpost.auth.users")), [])


if __name__ == "__main__":
    unittest.main()
