"""Tests of `control.py watch`, `say` and `router` as processes. The peer on the bus is independent test code."""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import unittest
import urllib.request
from unittest import mock

import control as program
from pigeonpost.compat.multicast_bus import cli as bus_commands
from tests.compat.multicast_bus.support import LOOPBACK, Ear, control, free_groups, packet, reading
from tests.forked import Forked
from tests.page_support import control_here
from tests.support import LIMIT_S, ROOT, clean_environment, temp_folder, wait_until

NOW = 1_795_188_970_123  # 2026-11-20T15:36:10.123Z


class Commands(unittest.TestCase):
    def setUp(self):
        self.groups = free_groups()
        self.control, self.data = (Ear(self, group) for group in self.groups)
        control_group, data_group = (f"{host}:{port}" for host, port in self.groups)
        self.environment = {
            "PIGEONPOST_BUS_CONTROL": control_group, "PIGEONPOST_BUS_DATA": data_group,
            "PIGEONPOST_BUS_INTERFACE": LOOPBACK,
        }  # fmt: skip

    def run_it(self, *words, **more):
        return Forked(self, "control.py", *words, **{**self.environment, **more})

    def watch(self, *words):
        running = self.run_it("watch", *words)
        wait_until(lambda: running.logged, "it listens")
        self.assertTrue(running.logged[0].startswith("listening to "), running.logged)
        return running

    def ended(self, running, status=0):
        self.assertEqual(running.wait(), status, running.logged)
        return running.said

    # ---------------------------------------------------------------------------------------------------- watch

    def test_watch_prints_one_line_per_packet_of_both_channels(self):
        running = self.watch("--count", "6")
        self.control.say(
            control("I", "C4", "@@", 151, NOW - 5, True, NOW), control("P", "R1", "C4", 7, 2.5, False, NOW)
        )
        lines = [running.line(), running.line()]
        self.data.say(reading("f", 21.3, "C4", 8, NOW), reading("i", 512, "C5", 9, NOW))
        self.data.say(reading("s", b"open", "C6", 1, NOW), reading("j", b'{"value":1.5}', "C7", 1, NOW))
        lines += [running.line() for _ in range(4)]
        self.ended(running)
        for line, start in zip(lines, (
            "2026-11-20T15:36:10.123Z control I C4 -> @@ #151 1795188970118 active from 127.0.0.1:",
            "2026-11-20T15:36:10.123Z control P R1 -> C4 #7 2.5 halted from 127.0.0.1:",
            "2026-11-20T15:36:10.123Z data    f C4 -> @@ #8 21.3 from 127.0.0.1:",
            "2026-11-20T15:36:10.123Z data    i C5 -> @@ #9 512 from 127.0.0.1:",
            '2026-11-20T15:36:10.123Z data    s C6 -> @@ #1 "open" from 127.0.0.1:',
            '2026-11-20T15:36:10.123Z data    j C7 -> @@ #1 {"value": 1.5} from 127.0.0.1:',
        ), strict=True):  # fmt: skip
            self.assertTrue(line.startswith(start), line)

    def test_filters_to_from_and_either(self):
        said = [control("P", "R1", "C4"), control("T", "C4", "R1"), control("H", "XX", "C5"), control("I", "C4"),
                control("S", "XX", "C5"), control("E", "C4", "C4", number=1.0)]  # fmt: skip
        for words, expected in (
            (["--to", "C4"], ["P R1 -> C4", "E C4 -> C4"]), (["--to", "@@"], ["I C4 -> @@"]),
            (["--from", "C4"], ["T C4 -> R1", "I C4 -> @@", "E C4 -> C4"]),
            (["--from", "XX"], ["H XX -> C5", "S XX -> C5"]),
            (["--either", "C4"], ["P R1 -> C4", "T C4 -> R1", "I C4 -> @@", "E C4 -> C4"]),
            (["--from", "C4", "--to", "R1"], ["T C4 -> R1"]),
        ):  # fmt: skip
            with self.subTest(words):
                running = self.watch(*words, "--channel", "control", "--count", str(len(expected)))
                self.control.say(b"junk", *said)
                self.ended(running)
                self.assertEqual([" ".join(line.split()[2:6]) for line in running.said], expected)

    def test_watch_shows_only_the_chosen_channel(self):
        running = self.watch("--channel", "data", "--count", "1")
        self.control.say(control("I", "C4"))
        self.data.say(reading("i", 1, "C9"))
        self.assertIn(" data    i C9 -> @@ ", self.ended(running)[0])
        running = self.watch("--channel", "control", "--count", "1")
        self.data.say(reading("i", 1, "C9"))
        self.control.say(control("I", "C4"))
        self.assertIn(" control I C4 -> @@ ", self.ended(running)[0])

    def test_watch_escapes_hostile_text(self):
        running = self.watch("--count", "2")
        self.data.say(reading("s", "\x1b[2J\r\n\u202etxt\x7f".encode()), packet("s", payload=b"\xff"),
                      reading("i", 1, time_ms=2**64 - 1))  # fmt: skip
        lines = [running.line() for _ in range(3)]
        self.ended(running)
        self.assertIn(r'"\u001b[2J\r\n\u202etxt\u007f"', lines[0])
        self.assertTrue(lines[1].startswith("invalid datagram on data, from 127.0.0.1:"), lines[1])
        self.assertTrue(lines[2].startswith("18446744073709551615 ms data    i C4 -> @@ #1 1"), lines[2])
        self.assertTrue(all(line.isascii() and line.isprintable() for line in lines))

    def test_watch_exits_with_1_if_too_few_packets_arrive(self):
        running = self.run_it("watch", "--count", "3", "--seconds", "0.05")
        self.assertEqual(self.ended(running, 1), [])
        self.assertEqual(running.logged[-1], "control.py: 0 of 3 packets arrived within 0.05 s")
        self.ended(self.run_it("watch", "--seconds", "0.05"))  # without a count, no packet is missing

    def test_watch_ends_with_ctrl_c(self):
        running = self.watch()
        self.control.say(control("I"))
        running.line()
        running.process.send_signal(signal.SIGINT)
        self.ended(running)

    def test_watch_ends_quietly_when_its_output_is_closed(self):
        process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "control.py"), "watch"], cwd=temp_folder(self),
            env=clean_environment(**self.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        process.stderr.readline()
        process.stdout.close()
        wait_until(lambda: self.control.say(control("I")) or process.poll() is not None, "it ends")
        self.assertEqual((process.returncode, process.stderr.read()), (0, ""))

    def test_watch_sends_nothing(self):
        running = self.watch("--count", "2")
        self.control.say(control("P", "R1", "@@"), control("C", "R1", "@@"))
        self.ended(running)
        with self.assertRaisesRegex(AssertionError, "nothing was received"):
            self.control.next(0)  # the process has ended, so any packet it sent would have arrived

    # ------------------------------------------------------------------------------------------------------ say

    def test_say_sends_and_exits(self):
        for word, letter in (("halt", "H"), ("start", "S"), ("config", "C"), ("h", "H"), ("alive", "I"), ("T", "T")):
            self.assertEqual(control_here("say", word, "C4", **self.environment), (0, "", ""))
            first, second = self.control.until("N"), self.control.until(letter)
            self.assertEqual((first.source, first.to), ("PP", "@@"))
            self.assertEqual((second.source, second.to, second.sequence), ("PP", "C4", first.sequence + 1))
            self.assertTrue(second.control[1])

    def test_set_and_step_take_a_value(self):
        for words, letter, number in ((("set", "FJ", "21.5"), "A", 21.5), (("step", "FJ", "-0.5"), "E", -0.5)):
            running = self.run_it("say", *words, "--as", "R7")
            seen = self.control.until(letter)
            self.ended(running)
            self.assertEqual((seen.source, seen.to, seen.control), ("R7", "FJ", (number, True)))
        running = self.run_it("say", "set", "FJ")
        self.ended(running, 2)
        self.assertEqual(running.logged, ["control.py: say A needs a VALUE, as in `say A FJ 21.5`"])

    def test_ping_waits_for_the_answer_and_prints_the_time(self):
        running = self.run_it("say", "ping", "C4", "--wait", f"{LIMIT_S:g}")
        ping = self.control.until("P")
        for wrong in (control("T", "C4", "PP", number=1.0), control("T", "C5", "PP", number=ping.control[0]),
                      control("T", "C4", "R1", number=ping.control[0]), b"junk"):  # fmt: skip
            self.control.say(wrong)
        self.control.say(control("T", "C4", "PP", number=ping.control[0]))
        self.assertRegex("\n".join(self.ended(running)), r"^C4 answered in [0-9.]+ ms$")

    def test_ping_to_all_prints_each_component_that_answers(self):
        said, waited = io.StringIO(), []

        def wait(ears, _writable, _failed, left_s):
            """Answer the ping twice, then report the timeout."""
            waited.append(left_s)
            if len(waited) == 1:
                number = self.control.until("P").control[0]
                self.control.say(*[control("T", code, "PP", number=number) for code in ("C4", "C5")])
            if said.getvalue().count("\n") == 2:
                return [], [], []
            return select.select(ears, [], [], LIMIT_S)

        with (
            mock.patch.dict(os.environ, clean_environment(**self.environment), clear=True),
            mock.patch.object(bus_commands, "select", mock.Mock(select=wait)),
            contextlib.redirect_stdout(said),
        ):
            self.assertEqual(program.main(["say", "ping", "@@", "--wait", "3600"]), 0)
        self.assertEqual([line.split()[0] for line in said.getvalue().splitlines()], ["C4", "C5"])
        self.assertTrue(all(3540 < left_s <= 3600 for left_s in waited), waited)

    def test_ping_without_answer_is_exit_status_1(self):
        running = self.run_it("say", "ping", "C4", "--wait", "0.1")
        self.ended(running, 1)
        self.assertEqual(running.logged, ["control.py: no answer from C4 within 0.1 s"])

    def test_wrong_usage_is_exit_status_2(self):
        for words, text in (
            (
                ["say", "shout", "C4"],
                "must be ping, start, halt, config, set, step, alive, or one of N I C P T S H A E",
            ),
            (["say", "i", "C44"], "a codifier must be two visible ASCII characters, such as C4, not 'C44'"),
            (["say", "set", "C4", "nan"], "must be a number"), (["watch", "--channel", "x"], "invalid choice"),
            (["watch", "--control-group", "192.0.2.1:7001"], "must be a multicast group, such as 226.0.0.221:7001"),
            (["watch", "--count", "0"], "must be a number from 1"), (["router", "--standby", "x"], "must be a number"),
            (["watch", "--interface", "nowhere9"], "this machine has no interface 'nowhere9'"),
        ):  # fmt: skip
            with self.subTest(words):
                status, _, told = control_here(*words, **self.environment)
                self.assertEqual(status, 2)
                self.assertIn(text, " ".join(told.split()))

    def test_the_groups_of_the_old_configuration_are_used(self):
        path = os.path.join(temp_folder(self), "config.json")
        (host, port), (data_host, data_port) = self.groups
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'{{"Multicast": {{"Control-Channel": {{"Address": "{host}", "Port": {port}}}, "Data-Channel":'
                       f' {{"Address": "{data_host}", "Port": "{data_port}"}}}}, "Sensors": []}}')  # fmt: skip
        del self.environment["PIGEONPOST_BUS_CONTROL"], self.environment["PIGEONPOST_BUS_DATA"]
        running = self.run_it("say", "halt", "C4", JPH_CONFIG=f"file:{path}")
        self.assertEqual(self.control.until("H").to, "C4")
        self.ended(running)
        self.ended(self.run_it("say", "halt", "C4", JPH_CONFIG="/nowhere/config.json"), 2)

    def test_bus_commands_are_registered_in_control_py(self):
        self.assertLessEqual({"watch", "say", "router", "old-config"}, set(program.COMMANDS))


class Programs(unittest.TestCase):
    """Processes: node.py sends, server.py receives, control.py sends commands."""

    def test_node_server_and_control_py_work_on_one_bus(self):
        control_group, data_group = (f"{host}:{port}" for host, port in free_groups())
        environment = {"PIGEONPOST_BUS_ENABLED": "1", "PIGEONPOST_BUS_CONTROL": control_group,
                       "PIGEONPOST_BUS_DATA": data_group, "PIGEONPOST_BUS_INTERFACE": LOOPBACK}  # fmt: skip
        folder = temp_folder(self)
        server = Forked(self, "server.py", "--data", folder, "--web", "127.0.0.1:0", **environment,
                        PIGEONPOST_BUS_CODIFIER="R1")  # fmt: skip
        self.assertIn("the page is at", server.line())
        node = Forked(self, "node.py", "--simulate", "--every", "0.1", "--listen", "127.0.0.1:0", **environment,
                      PIGEONPOST_BUS_CODIFIERS="temperature=C4,light=C5", PIGEONPOST_BUS_CONTROLS="target=FJ",
                      PIGEONPOST_BUS_COMMANDS="1")  # fmt: skip
        node.address()

        def say(*words):
            person = Forked(self, "control.py", "say", *words, **environment)
            self.assertEqual(person.wait(), 0, person.logged)
            return person.said

        def state():
            with open(os.path.join(folder, "running.json"), encoding="utf-8") as file:
                about = json.load(file)
            request = urllib.request.Request("http://{}:{}/api/v1/bus".format(*about["web"][0]))
            request.add_header("Authorization", f"Bearer {about['key']}")
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
                return json.load(answer)["codifiers"]

        wait_until(lambda: state().get("C4", {}).get("IsActive") is not None and "C5" in state(), "both are received")
        self.assertRegex(say("ping", "C4", "--wait", f"{LIMIT_S:g}")[0], "^C4 answered in ")
        wait_until(lambda: state()["C4"].get("RoundTrip") is not None, "the server saw the ping and its answer")
        say("set", "FJ", "21.5")
        wait_until(lambda: state().get("FJ", {}).get("Value") == 21.5, "the value was set")
        say("halt", "C4")
        wait_until(lambda: state()["C4"]["IsActive"] is False, "it is halted")
        self.assertTrue(state()["C4"]["Alive"])
        self.assertEqual((state()["C4"]["DPacketsLost"], state()["C5"]["CPacketsLost"]), (0, 0))
        for program_ in (node, server):
            program_.terminate()
            self.assertEqual(program_.wait(), 0, program_.logged)


class RouterCommand(unittest.TestCase):
    def test_router_command_forwards_until_it_is_terminated(self):
        groups = free_groups(4)
        names = [f"{host}:{port}" for host, port in groups]
        near, far = Ear(self, groups[0]), Ear(self, groups[2])
        running = Forked(self, "control.py", "router", "--control-group", names[0], "--data-group", names[1],
                         "--interface", LOOPBACK, "--other-control-group", names[2], "--other-data-group", names[3],
                         "--ttl", "1")  # fmt: skip
        self.assertEqual(running.line(), f"joining {names[0]} {names[1]} and {names[2]} {names[3]}")
        data = control("I", "C4", sequence=5)
        near.say(data)
        self.assertEqual(far.next(LIMIT_S), data)
        running.terminate()
        self.assertEqual(running.wait(), 0)
        text = r"^1 packet forwarded, (1 duplicate|0 duplicates) dropped, 0 invalid datagrams dropped$"
        self.assertRegex(running.said[-1], text)


if __name__ == "__main__":
    unittest.main()
