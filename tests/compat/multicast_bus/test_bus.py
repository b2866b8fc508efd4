"""Tests of the bus transports of node and server, on loopback. The peer is independent test code that uses struct."""

import json
import os
import resource
import threading
import unittest
from unittest import mock

from pigeonpost import settings
from pigeonpost.compat.multicast_bus import component as bus_component
from pigeonpost.compat.multicast_bus import node, server
from pigeonpost.compat.multicast_bus.component import Bus, Sender
from pigeonpost.compat.multicast_bus.legacy_config import Unreachable, parse
from pigeonpost.compat.multicast_bus.node import BusNodeTransport
from pigeonpost.compat.multicast_bus.server import BusServerTransport
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import NotStored, SettingsError
from pigeonpost.core.multicast import Path
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.server import unnumbered_sources
from pigeonpost.server.unnumbered_sources import UnnumberedSources
from pigeonpost.transports.contract import ServerContext
from tests.compat.multicast_bus.support import LOOPBACK, Ear, control, free_groups, packet, reading
from tests.page_support import use_memory_disk
from tests.support import BOOT, LIMIT_S, MemoryDisk, taken, wait_until
from tests.web.support import WebHouse

OLD = {
    "Sensors": [
        {"Codifier": "C4", "ShortName": "pimon Temp", "Symbol": "C", "DataType": "float", "KeepAliveInterval": 30},
        {"Codifier": "C5", "ShortName": "Light", "Symbol": "lx", "DataType": "integer"},
        {"Codifier": "B1", "ShortName": "Total power", "Symbol": "W", "DataType": "bool"},
        {"Codifier": "B2", "ShortName": "Total power", "Symbol": "W"},
        {"Codifier": "FJ", "ShortName": "Target", "Symbol": "C", "Control": "enabled"},
    ]
}


def setUpModule():
    use_memory_disk()


class Draw:
    """First sequence numbers, as given by the test."""

    def __init__(self, *starts):
        self.starts = list(starts)

    def __call__(self, first, last):
        assert (first, last) == (1, 2**31 - 1)
        return self.starts.pop(0) if self.starts else 1


class BusCase(unittest.TestCase):
    """Two groups on loopback, with an Ear for each."""

    def setUp(self):
        self.groups = free_groups()
        self.control, self.data = (Ear(self, group) for group in self.groups)
        self.clock = Clock()
        self.old = parse(json.dumps(OLD).encode(), "old.json")
        self.loads = 0

    def bus(self, old=None, commands=False, alive_s=3600.0):
        return Bus(*self.groups, Path(LOOPBACK, 2, True), alive_s, commands, old)

    def loader(self, **about):
        def load():
            self.loads += 1
            return self.bus(**about)

        return load


class Node(BusCase):
    def start(self, codifiers=None, controls=None, draw=(), **about):
        self.ring = Ring("/card", 256, 128, MemoryDisk())
        self.outbox = Outbox(self.ring, BOOT, new_epoch=iter(["0123456789abcdef"]).__next__)
        voice = Sender("C4", self.clock, Draw(*draw))
        codifiers = {"temperature": "C4", "light": "C5"} if codifiers is None else codifiers
        self.end = BusNodeTransport(self.loader(**about), voice, codifiers, controls or {}, self.outbox, self.clock)
        self.outbox.start()
        self.addCleanup(self.outbox.stop, LIMIT_S)
        self.end.start()
        self.addCleanup(self.end.stop, LIMIT_S)
        self.begun = self.control.until("N")
        return self.begun

    def sample(self, **values):
        self.outbox.put(taken(wall_ms=self.clock.wall_ms(), values=values))

    def test_sequence_starts_at_random_and_is_announced_by_N_and_n(self):
        self.assertEqual(self.start(draw=(500, 70, 80)).sequence, 500)
        self.assertEqual(self.control.until("I").sequence, 501)
        self.sample(temperature=21.5, light=512)
        seen = [self.data.until(flag) for flag in ("n", "f", "n", "i")]
        self.assertEqual([(one.source, one.sequence) for one in seen], [("C4", 70), ("C4", 71), ("C5", 80), ("C5", 81)])
        self.assertEqual((seen[0].u32, seen[1].f32, seen[2].u32, seen[3].u32), (70, 21.5, 80, 512))
        self.assertTrue(all(one.to == "@@" for one in seen))

    def test_sequence_starts_between_1_and_the_largest(self):
        for _ in range(3):
            voice = Sender("C4", self.clock)
            voice.open(self.bus())
            self.addCleanup(voice.close)
            voice.begin(1)
            self.assertTrue(1 <= self.control.until("N").sequence < 2**31)

    def test_data_sequence_numbers_are_counted_per_codifier(self):
        self.start(draw=(1, 100, 2**31 - 2))
        for value in range(3):
            self.sample(temperature=float(value), light=value)
        seen = [self.data.until(flag) for flag in "nfnififi"]
        self.assertEqual([one.sequence for one in seen if one.source == "C4"], [100, 101, 102, 103])
        self.assertEqual([one.sequence for one in seen if one.source == "C5"], [2**31 - 2, 2**31 - 1, 0, 1])

    def test_values_are_sent_according_to_their_DataType(self):
        self.start({"temperature": "C4", "light": "C5", "power": "B1", "other": "ZZ"}, old=self.old)
        self.sample(temperature=21, light=512.0, power=1, other=-3)
        self.sample(temperature=-1.5, light=-7, power=0.5, other=1e300)
        seen = [self.data.next() for _ in range(12)]
        kinds = [chr(data[16]) for data in seen]
        self.assertEqual(
            "".join(kinds), "nfninin" + "f" + "fffj"
        )  # a value that does not fit its type is sent as f or j

    def test_alive_packets_are_sent_at_their_interval(self):
        self.start(alive_s=0.02)
        seen = [self.control.until("I") for _ in range(4)]
        config_ms = self.begun.control[0]
        self.assertEqual([one.control for one in seen], [(config_ms, True)] * 4)
        self.assertLessEqual(abs(config_ms - self.clock.wall_ms()), LIMIT_S * 1000)

    def test_ping_is_answered_by_T_that_echoes_the_payload(self):
        self.start()
        for number in (0.0, -1.25, 1e300):
            self.control.say(control("P", "R1", "C4", number=number))
            answer = self.control.until("T")
            self.assertEqual((answer.source, answer.to, answer.control), ("C4", "R1", (number, True)))
        self.control.say(control("P", "R1", "ZZ"), control("P", "R1", "@@", number=7.0))
        self.assertEqual(self.control.until("T").control[0], 7.0)  # the ping to ZZ was not answered

    def test_ping_answers_are_rate_limited(self):
        self.clock.monotonic = lambda: 100.0  # all pings arrive within one second
        self.start()
        self.control.say(*[control("P", "R1", "C4", number=float(n)) for n in range(400)])
        self.end.wake()
        self.control.say(control("P", "R1", "C4", number=1.0))
        wait_until(lambda: self.end._answered[1] > bus_component.MOST_ANSWERS, "too many pings were received")

    def test_halt_stops_data_and_start_resumes_it(self):
        self.start(commands=True)
        self.control.until("I")
        self.control.say(control("H", "R1", "C4"))
        self.assertFalse(self.control.until("I").control[1])
        self.sample(temperature=1.0)
        wait_until(lambda: self.end._next == 2, "the sample was passed over")
        self.control.say(control("S", "R1", "@@"))
        self.assertTrue(self.control.until("I").control[1])
        self.sample(temperature=2.0)
        self.assertEqual([self.data.until(flag).flag for flag in "nf"], ["n", "f"])

    def test_C_reads_the_configuration_again_and_restarts_numbering(self):
        self.start(draw=(10, 20, 500, 600), commands=True)
        self.sample(temperature=1.0)
        self.data.until("f")
        self.assertEqual(self.loads, 1)
        self.control.say(control("C", "R1", "C4"))
        again = self.control.until("N")
        self.assertEqual((self.loads, again.sequence), (2, 500))
        self.assertGreaterEqual(again.control[0], self.begun.control[0])
        self.sample(temperature=2.0)
        self.assertEqual(self.data.until("n").sequence, 600)

    def test_unreadable_configuration_after_C_changes_nothing(self):
        self.start(commands=True)
        self.end._load = mock.Mock(side_effect=SettingsError("old.json: gone"))
        with self.assertLogs("pigeonpost.compat.multicast_bus.component", "ERROR") as logs:
            self.control.say(control("C", "R1", "C4"), control("P", "R1", "C4", number=5.0))
            self.assertEqual(self.control.until("T").control[0], 5.0)
        self.assertIn("the configuration cannot be read again: old.json: gone", logs.output[0])

    def test_A_sets_and_E_steps_a_control_as_a_new_reading(self):
        self.start(controls={"target": "FJ"}, commands=True, old=self.old)
        self.control.say(control("A", "R1", "FJ", number=21.5))
        self.assertEqual(self.data.until("f", source="FJ").f32, 21.5)
        self.control.say(control("E", "R1", "FJ", number=-0.5))
        self.assertEqual(self.data.until("f", source="FJ").f32, 21.0)
        self.assertEqual(self.ring.last, 2)  # both are durable, and are sent over the other transports too
        self.assertEqual(self.outbox.read(2, 1)[0].body, '"values":{"target":21.0}')
        self.sample(temperature=1.0)  # the value is sent again with each reading, as by the old component
        self.assertEqual(self.data.until("f", source="FJ").f32, 21.0)

    def test_A_and_E_change_controls_only(self):
        self.start(controls={"target": "FJ"}, commands=True)
        self.control.say(control("A", "R1", "C4", number=99.0), control("A", "R1", "C5", number=99.0),
                         control("A", "R1", "FJ", number=1.0))  # fmt: skip
        self.assertEqual(self.data.until("f").source, "FJ")
        self.assertEqual(self.ring.last, 1)

    def test_bus_works_with_descriptors_above_1023(self):
        """A server with hundreds of nodes has such descriptors. select(2) would refuse them."""
        usual = resource.getrlimit(resource.RLIMIT_NOFILE)
        if usual[1] < 2048:
            self.skipTest("this user may not open 2,048 files")
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, usual)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(2048, usual[0]), usual[1]))
        with open(os.devnull, "rb") as file:
            for _ in range(1100):
                self.addCleanup(os.close, os.dup(file.fileno()))
        self.start()
        self.control.say(control("P", "R1", "C4", number=7.0))
        self.assertEqual(self.control.until("T").control[0], 7.0)

    def test_older_duplicate_instance_stops_sending(self):
        self.start()
        config_ms = self.begun.control[0]
        self.control.say(control("I", "C4", number=config_ms), control("N", "C4", number=config_ms - 1))
        self.control.say(control("P", "R1", "C4", number=3.0))
        self.control.until("T")  # neither was newer
        with self.assertLogs("pigeonpost.compat.multicast_bus.component", "CRITICAL") as logs:
            self.control.say(control("I", "C4", number=config_ms + 1))
            self.end._thread.join(LIMIT_S)
        self.assertFalse(self.end._thread.is_alive())
        self.assertIn("another instance of C4 is on the bus", logs.output[0])
        self.assertEqual(self.end.fault, "another instance of C4 is on the bus")

    def test_configuration_time_in_the_far_future_is_ignored(self):
        self.start()
        self.control.say(
            control("I", "C4", number=self.begun.control[0] + 25 * 3_600_000), control("N", "C4", number=1e300)
        )
        self.control.say(control("P", "R1", "C4", number=3.0))
        self.control.until("T")

    def test_commands_are_ignored_by_default(self):
        with self.assertLogs("pigeonpost.compat.multicast_bus.component", "WARNING") as logs:
            self.start(controls={"target": "FJ"})
            for flag in "HCSAE":
                self.control.say(control(flag, "XX", "C4"), control(flag, "XX", "@@"), control(flag, "XX", "FJ"))
            self.control.say(control("P", "R1", "C4", number=3.0))
            self.assertEqual(self.control.until("T").control, (3.0, True))
        self.assertEqual(self.loads, 1)
        self.sample(temperature=1.0)
        self.assertEqual(self.data.until("f").source, "C4")
        self.assertEqual(self.ring.last, 1)
        refused = [line for line in logs.output if "ignored: [bus] commands is false" in line]
        self.assertEqual(len(refused), 5)

    def test_hostile_datagrams_do_not_stop_the_node(self):
        self.start()
        self.control.say(b"", b"x" * 2000, bytes(28), packet("P", payload=b"xx"), reading("i", 1), os.urandom(37))
        self.control.say(control("P", "R1", "C4", number=3.0))
        self.control.until("T")

    def test_missing_network_is_tried_again(self):
        with (
            mock.patch.object(bus_component, "RETRY_S", 0.01),
            self.assertLogs("pigeonpost.compat.multicast_bus.component", "WARNING") as logs,
        ):
            real, failures = bus_component.listener, iter([1, 1, 1])

            def listener(group, path):
                if next(failures, 0):
                    raise SettingsError("the multicast group: No such device")
                return real(group, path)

            with mock.patch.object(bus_component, "listener", listener):
                self.start()
        self.assertEqual(len(logs.output), 1)
        self.assertIn("No such device; trying again", logs.output[0])

    def test_unreachable_configuration_is_tried_again(self):
        loads = iter([Unreachable("http://here/c.json: no route"), Unreachable("http://here/c.json: no route"), None])

        def load():
            error = next(loads)
            if error:
                raise error
            return self.bus(old=self.old)

        self.loader = lambda **about: load
        with (
            mock.patch.object(bus_component, "RETRY_S", 0.01),
            self.assertLogs("pigeonpost.compat.multicast_bus.component", "WARNING") as logs,
        ):
            self.start()
        self.assertEqual(
            logs.output,
            ["WARNING:pigeonpost.compat.multicast_bus.component:bus: http://here/c.json: no route; trying again"],
        )
        self.assertEqual(self.end.bus.old, self.old)

    def test_fault_hides_secrets_in_the_configuration_url(self):
        load = mock.Mock(side_effect=Unreachable("http://u:hunter2@here/c?k=hunter2: takes no user and password"))
        with self.assertLogs("pigeonpost.compat.multicast_bus.component", "WARNING"):
            end = bus_component.BusTransport(load, None, Clock())
        self.assertEqual(end.fault, "http://***@here/c?k=*** takes no user and password")

    def test_unsent_packets_are_counted_and_logged_once(self):
        self.start()
        with self.assertLogs("pigeonpost.compat.multicast_bus.component", "WARNING") as logs:
            gone = mock.Mock(send=mock.Mock(side_effect=OSError(101, "Network is unreachable")))
            with mock.patch.dict(self.end._component_sender._sockets, {"data": gone}):
                self.sample(temperature=1.0)
                self.sample(temperature=2.0)
                wait_until(lambda: self.end._component_sender.unsent == 3, "three packets")
        self.assertEqual(len(logs.output), 1)


class Facts:
    def __init__(self, *names):
        self.sensors = [{"name": name, "unit": ""} for name in names]


class Settings(dict):
    """Settings of a node without a file."""

    def __init__(self, **given):
        usual = {"codifiers": [], "controls": [], "configuration": "", "control": ("239.1.1.1", 7001),
                 "data": ("239.1.1.2", 7002), "interface": LOOPBACK, "ttl": 2, "loop": True, "alive": 60.0,
                 "commands": False}  # fmt: skip
        super().__init__({("bus", key): value for key, value in {**usual, **given}.items()})
        self.given = given

    def origin(self, table, key):
        return "here" if key in self.given else "default"


class Defaults(unittest.TestCase):
    def test_groups_ttl_2_and_loop_on(self):
        for rows in (settings.NODE, settings.SERVER):
            usual = {row.key: row.parse(row.default) for row in rows if row.table == "bus" and not row.many}
            self.assertEqual((usual["control"], usual["data"]), (("226.0.0.221", 7001), ("226.0.0.222", 7002)))
            self.assertEqual(
                (usual["ttl"], usual["loop"], usual["enabled"], usual["commands"]), (2, True, False, False)
            )


class NodeTransportSettings(unittest.TestCase):
    def make(self, old=None, **given):
        outbox = Outbox(Ring("/card", 64, 256, MemoryDisk()), BOOT)
        self.info = Facts("temperature", "light")
        with mock.patch(
            "pigeonpost.compat.multicast_bus.component.load",
            lambda source: parse(json.dumps(old or OLD).encode(), source),
        ):
            return node.make_transport(Settings(**given), self.info, outbox, Clock())

    def test_invalid_settings_are_rejected_with_the_reason(self):
        for given, text in (
            ({}, "codifiers must contain at least one codifier, and none twice"),
            ({"codifiers": [("temprature", "C4")]}, "there is no channel 'temprature'; there are temperature, light"),
            ({"codifiers": [("temperature", "C4"), ("light", "C4")]}, "codifiers must contain at least one codifier"),
            ({"controls": [("light", "FJ")]}, "'light' is the name of a measured channel"),
            ({"controls": [("target", "C4")], "configuration": "old.json"}, 'C4 (target) has no "Control": "enabled"'),
        ):  # fmt: skip
            with self.subTest(text), self.assertRaises(SettingsError) as caught:
                self.make(**given)
            self.assertIn(text, str(caught.exception))

    def test_old_configuration_replaces_default_settings(self):
        groups = {"Control-Channel": {"Address": "226.0.0.221", "Port": 7001},
                  "Data-Channel": {"Address": "226.0.0.222", "Port": 7002}}  # fmt: skip
        old = {**OLD, "Multicast": groups}
        sensor = {**OLD["Sensors"][0], "Active": False}
        end = self.make({**old, "Sensors": [sensor, OLD["Sensors"][4]]}, configuration="old.json",
                        codifiers=[("temperature", "C4")], controls=[("target", "FJ")])  # fmt: skip
        # `given` contains neither group, so Settings reports them as defaults
        self.assertEqual(end.bus.alive_s, 30.0)
        end._opened()
        self.assertFalse(end._component_sender.active)
        end._component_sender.active = True  # S has started it
        end._opened()
        self.assertTrue(end._component_sender.active)
        self.assertEqual(self.info.sensors[-1], {"name": "target", "unit": "C"})

    def test_settings_apply_if_the_old_configuration_has_no_groups(self):
        end = self.make(configuration="old.json", codifiers=[("temperature", "C4")], alive=5.0)
        self.assertEqual((end.bus.control, end.bus.alive_s), (("239.1.1.1", 7001), 5.0))


class Server(BusCase):
    def start(self, voice=None, **about):
        self.web = WebHouse(self)
        self.links = []
        sources = UnnumberedSources(
            self.web.ingestor, self.links, self.clock, self.web.tokens, self.web.faults, self.web.throttle
        )
        context = ServerContext("home", self.web.folder, self.clock, None, self.web.store, self.web.ingestor,
                    self.web.tokens, sources, self.links, None, self.web.app.faults,
                    self.web.app.throttle)  # fmt: skip
        self.end = BusServerTransport(self.loader(**about), voice, context)
        self.end.start()
        self.addCleanup(self.end.stop, LIMIT_S)
        wait_until(lambda: not self.end.fault, "the groups are open")

    def report(self, packets):
        """Return the report after `packets` packets were received."""
        wait_until(lambda: self.end.report()["packets"] >= packets, f"{packets} packets")
        return self.end.report()

    def stored(self, count):
        def look():
            found = [(about["name"], point) for about in self.web.store.nodes()
                     for point in self.web.store.points(about["name"], 0, 1 << 52, 1000)]  # fmt: skip
            return found if len(found) >= count else None

        found = wait_until(look, f"{count} readings in the store")
        ordered = [(name, point.values, point.time_ms) for name, point in found]
        return sorted(ordered, key=lambda one: (one[0], one[2]))

    def test_values_are_stored_as_readings_with_their_own_time(self):
        self.start()
        now_ms = self.clock.wall_ms()
        self.data.say(reading("n", 70, sequence=70), reading("f", 21.3, sequence=71, time_ms=now_ms - 5000),
                      reading("i", 512, "C5", 9, now_ms - 4000))  # fmt: skip
        self.assertEqual(
            self.stored(2), [("bus-C4", {"value": 21.3}, now_ms - 5000), ("bus-C5", {"value": 512}, now_ms - 4000)]
        )
        self.assertEqual(self.end.report()["stored"], 2)

    def test_nodes_and_sensors_are_named_as_in_the_old_configuration(self):
        self.start(old=self.old)
        now_ms = self.clock.wall_ms()
        self.data.say(*[reading("i", 1, code, time_ms=now_ms) for code in ("C4", "B1", "B2", "ZZ", "FJ")])
        found = self.stored(4)
        self.assertEqual([(name, list(values)) for name, values, _ in found], [
            ("Target", ["target"]), ("Total-power-B1", ["total_power"]), ("Total-power-B2", ["total_power"]),
            ("pimon-Temp", ["pimon_temp"]),
        ])  # fmt: skip
        report = self.report(5)
        self.assertIn("ZZ", report["codifiers"])  # an unlisted component is shown but not stored
        self.assertEqual(report["stored"], 4)

    def test_component_does_not_take_the_name_of_a_connected_node(self):
        class Link:
            class state:
                name = "Light"

        self.start(old=self.old)
        self.links.append(Link)
        self.data.say(reading("i", 1, "C5"))
        self.assertEqual(self.stored(1)[0][0], "Light-C5")

    def test_additional_json_numbers_are_stored(self):
        self.start()
        self.data.say(reading("j", b'{"value":20.5,"Voltage (V)":1.25,"ok":true,"why":"x","deep":{"a":1}}'))
        self.assertEqual(self.stored(1)[0][1], {"value": 20.5, "voltage_v": 1.25, "ok": 1})

    def test_nan_is_stored_as_a_failed_reading(self):
        self.start()
        self.data.say(reading("f", float("nan")))
        self.assertEqual(self.stored(1)[0][1], {"value": None})

    def test_implausible_time_is_replaced_by_server_time(self):
        self.start()
        before_ms = self.clock.wall_ms()
        self.data.say(reading("i", 1, time_ms=12), reading("i", 1, "C5", time_ms=2**64 - 1))
        for _, _, time_ms in self.stored(2):
            self.assertTrue(before_ms <= time_ms <= self.clock.wall_ms())

    def test_loss_is_counted_exactly_and_restarts_are_not_loss(self):
        self.start()
        self.data.say(
            reading("n", 100, sequence=100), *[reading("i", n, sequence=n) for n in (101, 102, 105, 106, 110)]
        )
        self.assertEqual(self.report(6)["codifiers"]["C4"]["DPacketsLost"], 2 + 3)
        self.data.say(reading("n", 7, sequence=7), reading("i", 1, sequence=8))
        self.assertEqual(self.report(8)["codifiers"]["C4"]["DPacketsLost"], 0)
        self.control.say(control("N", sequence=9), control("I", sequence=10), control("I", sequence=13))
        self.assertEqual(self.report(11)["codifiers"]["C4"]["CPacketsLost"], 2)

    def test_collectors_ignore_H(self):
        self.start(commands=True, voice=Sender("R1", self.clock))
        self.control.say(control("H", "XX", "R1"), control("H", "XX", "@@"))
        self.report(2)
        self.data.say(reading("i", 5))
        self.assertEqual(self.stored(1)[0][1], {"value": 5})

    def test_hostile_packets_are_shown_and_not_executed(self):
        self.start()
        with self.assertLogs("pigeonpost.compat.multicast_bus.server", "WARNING") as logs:
            self.control.say(control("H", "XX"), control("C", "XX"), control("A", "XX", number=1e300), b"", b"x" * 2000)
            self.control.say(control("I", "XX", time_ms=1), control("N", "<>", number=-1e300), reading("i", 1))
            self.data.say(
                reading("s", b"\x1b[2J<img src=x onerror=alert(1)>" + b"x" * 1400), reading("f", 1.0, "<>"), b"\0"
            )
            report = self.report(7)
            wait_until(lambda: self.end.report()["refused"] == 4, "four invalid datagrams")
        self.assertEqual(self.loads, 1)
        self.assertEqual(len(logs.output), 1)
        self.assertEqual({"HTimestamp", "CTimestamp", "ATimestamp"} - set(report["codifiers"]["XX"]), set())
        self.assertEqual(self.stored(1)[0][0], "bus-x3c3e")
        json.dumps(self.end.report(), allow_nan=False)

    def test_server_with_its_own_codifier_sends_alive_and_answers(self):
        self.start(voice=Sender("R1", self.clock), alive_s=0.02)
        for _ in range(3):
            self.assertEqual(self.control.until("I").source, "R1")
        self.control.say(control("P", "C4", "R1", number=4.0))
        self.assertEqual(self.control.until("T").control, (4.0, True))
        with self.assertLogs("pigeonpost.compat.multicast_bus.component", "CRITICAL"):
            self.control.say(control("I", "R1", number=float(self.clock.wall_ms() + 5000)))  # a second one
            wait_until(lambda: "another instance" in self.end.fault, "it has seen the other")
        self.data.say(reading("i", 5))  # it stops sending, but continues to receive
        self.assertEqual(self.stored(1)[0][1], {"value": 5})

    def test_report_has_alive_state_and_ping_times(self):
        self.start()
        now_ms = self.clock.wall_ms()
        self.control.say(control("N", number=now_ms), control("I", sequence=2, number=now_ms, active=False),
                         control("T", "C4", "R1", sequence=3, number=now_ms - 30, time_ms=now_ms))  # fmt: skip
        fields = self.report(3)["codifiers"]["C4"]
        self.assertEqual((fields["Alive"], fields["IsActive"], fields["TDuration"]), (True, False, 30))

    def test_readings_are_held_while_the_store_is_busy(self):
        self.start()
        real, refusals = self.end._context.unnumbered_sources.queue, iter([1] * 5)
        self.end._context.unnumbered_sources.queue = lambda *reading: False if next(refusals, 0) else real(*reading)
        now_ms = self.clock.wall_ms()
        self.data.say(*[reading("i", n, sequence=n, time_ms=now_ms + n) for n in range(20)])
        self.assertEqual([values["value"] for _, values, _ in self.stored(20)], list(range(20)))
        self.assertEqual(self.end.report()["unstored"], 0)

    def test_simultaneous_readings_form_one_batch_per_codifier(self):
        self.start()
        self.end.stop(LIMIT_S)  # from here on, this thread does the work of the transport's thread
        queue, batches = self.end._context.unnumbered_sources.queue, []
        self.end._context.unnumbered_sources.queue = lambda *batch: batches.append(len(batch)) or queue(*batch)
        now_ms = self.clock.wall_ms()
        alike = [reading("i", n, ("C4", "C5")[n % 2], n, now_ms + n) for n in range(20)]
        other = reading("j", b'{"value": 20, "pressure": 1010}', "C4", 20, now_ms + 20)
        alone = reading("i", 21, "C4", 21, now_ms + 21)
        for datagrams in (alike[:7], [*alike[7:], other, alone]):
            self.end._data_drain = lambda sock, datagrams=datagrams: datagrams
            self.end._receive(None)
        self.end.stop(LIMIT_S)  # submits the waiting readings
        self.assertEqual(batches, [10, 10, 1, 1])
        found = [(name, values["value"]) for name, values, _ in self.stored(22)]
        self.assertEqual(found, [("bus-C4", n) for n in (*range(0, 20, 2), 20, 21)]
                         + [("bus-C5", n) for n in range(1, 20, 2)])  # fmt: skip

    def test_rereading_the_configuration_starts_a_new_batch(self):
        self.start()
        self.end.stop(LIMIT_S)  # from here on, this thread does the work of the transport's thread
        batches = []
        self.end._context.unnumbered_sources.queue = lambda *batch: batches.append(len(batch)) or True
        for n in range(4):
            self.end._data_drain = lambda sock, n=n: [reading("i", n, "C4", n, self.clock.wall_ms() + n)]
            self.end._receive(None)
            if n == 2:
                for sock in self.end._opened():
                    sock.close()
        self.end.stop(LIMIT_S)
        self.assertEqual(batches, [3, 1])

    def test_unstored_readings_are_counted_and_logged_once(self):
        self.start()
        self.end._context.unnumbered_sources.queue = mock.Mock(side_effect=NotStored("10000 nodes have called in"))
        with self.assertLogs("pigeonpost.compat.multicast_bus.server", "ERROR") as logs:
            self.data.say(*[reading("i", 5, sequence=n) for n in range(5)])
            wait_until(lambda: self.end.report()["unstored"] == 5, "all five")
        self.assertEqual(len(logs.output), 1)
        self.end._context.unnumbered_sources.queue = mock.Mock(return_value=False)
        with mock.patch.object(server, "MOST_QUEUED", 10):
            self.data.say(*[reading("i", 5, sequence=n) for n in range(5, 25)])
            wait_until(lambda: self.end.report()["unstored"] == 15, "ten are held")
        self.assertEqual(self.end.stop(LIMIT_S), "10 readings of the bus not stored")

    def test_readings_for_a_node_with_a_token_are_refused(self):
        self.start()
        self.web.tokens.make("bus-C4")
        with self.assertLogs("pigeonpost", "WARNING") as logs:
            self.data.say(*[reading("i", 5, sequence=n) for n in range(50)], reading("i", 6, "C5"))
            self.assertEqual(self.stored(1)[0][:2], ("bus-C5", {"value": 6}))
        self.assertEqual(self.end.report()["unstored"], 50)
        self.assertEqual([link.state.name for link in self.links], ["bus-C5"])
        self.assertEqual(len([line for line in logs.output if "has a token" in line]), 2)  # refused, and not stored

    def test_invented_codifiers_leave_room_for_nodes_with_a_token(self):
        self.start()
        with mock.patch.object(unnumbered_sources, "MOST_UNPROVEN", 3):
            self.data.say(*[reading("i", 5, f"{chr(65 + n)}1") for n in range(20)])
            self.stored(3)
            wait_until(lambda: self.end.report()["unstored"] == 17, "the rest is counted")
        self.assertEqual(len(self.links), 3)
        self.assertIn("3 nodes without a token", self.web.faults.present()["bus clients"])

    def test_stop_returns_immediately_and_can_be_repeated(self):
        self.start()
        self.assertIsNone(self.end.stop(LIMIT_S))
        self.assertIsNone(self.end.stop(LIMIT_S))
        self.assertNotIn("bus", [thread.name for thread in threading.enumerate()])


class BusApi(unittest.TestCase):
    def test_bus_api_needs_the_viewer_role_and_the_transport(self):
        class FaultyTransport:
            fault = "the multicast group 226.0.0.221:7001: No such device"

            def report(self):
                return {"codifiers": {"C4": {"Value": 21.5}}}

        web = WebHouse(self, password="correct horse")
        self.assertEqual(web.request("GET", "/api/v1/bus")[0], 401)
        self.assertEqual(web.request("GET", "/api/v1/bus", web.bearer)[0], 404)
        web.web._app = web.app._replace(transports={"bus": FaultyTransport()})
        status, _, body = web.request("GET", "/api/v1/bus", web.bearer)
        self.assertEqual((status, json.loads(body)["codifiers"]["C4"]["Value"]), (200, 21.5))
        _, _, body = web.request("GET", "/api/v1/health", web.bearer)
        self.assertIn("bus: the multicast group 226.0.0.221:7001: No such device", json.loads(body)["faults"])


if __name__ == "__main__":
    unittest.main()
