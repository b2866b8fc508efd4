"""Discovery messages and states for Home Assistant, checked with its keys, units and classes."""

import json
import os
import unittest
from unittest import mock

from pigeonpost.core.errors import NotStored, SettingsError
from pigeonpost.integrations import home_assistant_discovery, home_assistant_messages
from pigeonpost.integrations.home_assistant_messages import node_key, slug
from pigeonpost.integrations.home_assistant_units import _BY_NAME, _BY_UNIT, _SPELLINGS, entity_unit
from tests.integrations.ha_checker import FACTS, FakeHomeAssistant
from tests.integrations.ha_context import Broker, Link, make_context, receive

TEMPERATURE = "pigeonpost:basement:temperature"
CONFIG = "homeassistant/device/pigeonpost_basement/config"
UNITS = {"temperature": "°C", "light": "%"}


class Units(unittest.TestCase):
    def test_every_device_class_accepts_its_unit_and_state_class(self):
        units = {unit for about in FACTS["device_classes"].values() for unit in about["units"] or () if unit}
        units |= {*_SPELLINGS, *FACTS["ambiguous_units"], *_BY_UNIT, "", "unknown", "°", "K"}
        names = ["x", *(name for name, _, _ in _BY_NAME), "wind_dir", "rain", "water", "gas", "co2", "rssi", "voc"]
        count = 0
        for unit in units:
            for name in names:
                for is_total in (False, True):
                    found = entity_unit(name, unit, is_total)
                    with self.subTest(name=name, unit=unit, is_total=is_total):
                        self.assertNotIn(found.unit, FACTS["ambiguous_units"])
                        if found.device_class:
                            about = FACTS["device_classes"][found.device_class]
                            self.assertIn(found.unit or None, about["units"])
                            self.assertIn(found.state_class, about["state_classes"])
                            count += 1
        self.assertGreater(count, 1000)

    def test_usual_sensors_have_their_classes(self):
        for name, unit, is_total, expected in (
            ("temperature", "°C", False, ("°C", "temperature", "measurement")),
            ("humidity", "%", False, ("%", "humidity", "measurement")),
            ("light", "%", False, ("%", "", "measurement")),
            ("pressure", "hPa", False, ("hPa", "pressure", "measurement")),
            ("pm25", "\N{MICRO SIGN}g/m³", False, ("\N{GREEK SMALL LETTER MU}g/m³", "pm25", "measurement")),
            ("fan", "RPM", False, ("rpm", "", "measurement")),
            ("rain", "mm", True, ("mm", "precipitation", "total_increasing")),
            ("level", "L", False, ("L", "volume_storage", "measurement")),
            ("water", "L", True, ("L", "water", "total_increasing")),
            ("meter", "kWh", False, ("kWh", "energy", "total_increasing")),
            ("drift", "K", False, ("K", "", "measurement")),
            ("wind_direction", "°", False, ("°", "wind_direction", "measurement_angle")),
            ("soil_ph", "pH", False, ("", "ph", "measurement")),
            ("pulses", "turns", True, ("turns", "", "total_increasing")),
        ):
            self.assertEqual(entity_unit(name, unit, is_total), expected)


class Names(unittest.TestCase):
    def test_two_nodes_never_have_the_same_topic(self):
        names = [
            f"{a}{b}{c}" for a in ("a", "a_", "a.") for b in ("", "2e", "5f2e", ".", "_", "_2e") for c in ("", "b", ".")
        ]
        names = sorted(set(names))
        keys = {node_key(name) for name in names}
        self.assertEqual(len(keys), len(names))
        for key in keys:
            self.assertRegex(key, r"\A[a-zA-Z0-9_-]+\Z")
        self.assertEqual(node_key("living_room-2"), "living_room-2")

    def test_entity_ids_have_only_valid_characters(self):
        self.assertEqual(slug("Living.Room-2", "pm2_5"), "living_room_2_pm2_5")


class DiscoveryCase(unittest.TestCase):
    def setUp(self):
        self.home = FakeHomeAssistant()
        self.context = make_context(self)
        self.broker = Broker(self.home, self.context.clock)
        self.part = self.make()

    def make(self, **settings):
        for key, value in settings.items():
            self.context.settings["home_assistant", key] = value
        self.context.ingestor.subscribers.clear()
        with mock.patch.object(home_assistant_discovery, "MqttConnection", self.broker.connection):
            part = home_assistant_discovery.make(self.context)
        part._on_change()
        return part

    def add_node(self, name="basement"):
        link = Link(name)
        self.context.links.append(link)
        receive(self.context, name, {"temperature": 21.5, "light": 40}, UNITS)
        return link

    def work(self, seconds=1.0):
        self.context.clock.sleep(seconds)
        self.part._work(self.context.clock.monotonic())

    def state(self, unique_id=TEMPERATURE):
        return self.home.state(unique_id, self.context.clock.monotonic())


class Discovery(DiscoveryCase):
    def test_node_and_its_sensors_appear_with_values(self):
        self.add_node()
        self.work()
        self.assertEqual(self.state(), "21.5")
        self.assertEqual(self.state("pigeonpost:basement:_connection"), "ON")
        entity = self.home.entities[TEMPERATURE].config
        self.assertEqual(entity["default_entity_id"], "sensor.basement_temperature")
        self.assertEqual(entity["device_class"], "temperature")
        device = self.home.devices[CONFIG]["device"]
        self.assertEqual(device["configuration_url"], "http://pi.local:8080/nodes/basement")
        self.assertEqual(device["via_device"], "pigeonpost:server:home")

    def test_server_has_a_device_with_its_faults(self):
        with self.assertLogs(level="ERROR"):
            self.context.faults.set("disk", "almost full")
        self.work()
        self.assertEqual(self.state("pigeonpost:server:home:faults"), "1")
        self.assertEqual(self.state("pigeonpost:server:home:problem"), "ON")

    def test_discovery_is_retained_with_qos_1_and_states_are_not(self):
        self.add_node()
        self.work()
        for topic, _, qos, retain in self.broker.messages:
            is_kept = topic.endswith(("/config", "/online"))
            self.assertEqual((retain, qos >= is_kept), (is_kept, True), topic)

    def test_late_sample_is_never_a_state(self):
        self.add_node()
        self.work()
        receive(self.context, "basement", {"temperature": 99.0, "light": 1}, UNITS, age_s=7200)
        self.work()
        self.assertEqual(self.state(), "21.5")
        self.work(self.home.entities[TEMPERATURE].config["expire_after"] + 1)
        self.assertIsNone(self.state())

    def test_failed_sensor_becomes_unknown_while_the_others_are_current(self):
        self.add_node()
        self.work()
        receive(self.context, "basement", {"temperature": None, "light": 41}, UNITS)
        self.work()
        self.assertIsNone(self.state())
        self.assertEqual(self.state("pigeonpost:basement:light"), "41")

    def test_silent_node_becomes_unavailable_and_its_connection_is_reported(self):
        link = self.add_node()
        self.work()
        link.state.connected = False
        self.work(600)
        self.assertFalse(
            self.home.is_available("pigeonpost:basement:_last_sample") and self.home.is_available(TEMPERATURE)
        )
        self.assertEqual(self.state("pigeonpost:basement:_connection"), "OFF")

    def test_number_of_waiting_samples_is_not_that_of_an_old_status(self):
        link = self.add_node()
        link.state.details, link.state.checked_ms = {"waiting": 241}, self.context.clock.wall_ms() - 1000
        self.work()
        self.assertEqual(self.state("pigeonpost:basement:_waiting"), "0")
        receive(self.context, "basement", {"temperature": 1.0, "light": 1}, UNITS, age_s=7200)
        self.work(6)
        self.assertIsNone(self.state("pigeonpost:basement:_waiting"))
        link.state.checked_ms = self.context.clock.wall_ms()
        self.work(6)
        self.assertEqual(self.state("pigeonpost:basement:_waiting"), "241")

    def test_will_makes_everything_unavailable(self):
        self.add_node()
        self.work()
        topic, payload = self.broker.will
        self.home.receive(topic, payload, retain=True)
        self.assertIsNone(self.state())
        self.assertIsNone(self.state("pigeonpost:basement:_connection"))

    def test_will_of_a_former_connection_is_replaced(self):
        self.add_node()
        self.work()
        topic, payload = self.broker.will
        self.assertIn(topic, self.broker.topics)
        for deliver in (self.part._on_message, self.part._on_retained):
            self.home.receive(topic, payload, retain=True)
            deliver(topic, payload)
            self.work(5)
            self.assertEqual(self.state("pigeonpost:basement:_connection"), "ON")
        deliver(topic, b"online")  # the own message returns
        before = len(self.broker.messages)
        self.work(5)
        self.assertNotIn(topic, [message[0] for message in self.broker.messages[before:]])

    def test_states_are_published_again_when_home_assistant_starts(self):
        self.add_node()
        self.work()
        self.home.entities[TEMPERATURE].state = None
        self.part._on_message("homeassistant/status", b"online")
        self.work()
        self.assertEqual(self.state(), "21.5")

    def test_states_are_repeated_after_new_entities_are_set_up(self):
        self.add_node()
        self.work()
        self.home.entities[TEMPERATURE].state = None
        self.work(11)
        self.assertEqual(self.state(), "21.5")

    def test_unchanged_discovery_is_published_once(self):
        self.add_node()
        for _ in range(5):
            self.work(6)
        self.assertEqual(len([topic for topic, *_ in self.broker.messages if topic == CONFIG]), 1)

    def test_discovery_is_published_again_after_reconnecting(self):
        self.add_node()
        self.work()
        self.part._on_change()
        self.work()
        self.assertEqual(len([topic for topic, *_ in self.broker.messages if topic == CONFIG]), 2)

    def test_new_sensor_appears_and_removed_sensor_disappears(self):
        self.add_node()
        self.work()
        receive(self.context, "basement", {"temperature": 20.0, "humidity": 50}, {"temperature": "°C", "humidity": "%"})
        self.work(6)
        self.assertEqual(self.state("pigeonpost:basement:humidity"), "50")
        self.assertIn("pigeonpost:basement:light", self.home.entities)
        self.work(700)
        self.assertNotIn("pigeonpost:basement:light", self.home.entities)

    def test_label_of_a_sensor_is_its_name(self):
        self.context.names.labels["basement", "temperature"] = "Boiler"
        self.add_node()
        self.work()
        self.assertEqual(self.home.entities[TEMPERATURE].config["name"], "Boiler")

    def test_is_live_while_broker_and_home_assistant_are_there(self):
        self.assertTrue(self.part.is_live)
        self.part._on_message("homeassistant/status", b"offline")
        self.assertFalse(self.part.is_live)
        self.part._on_retained("homeassistant/status", b"online")
        self.assertTrue(self.part.is_live)
        self.broker.connected = False
        self.assertFalse(self.part.is_live)

    def test_home_assistant_that_starts_later_may_have_missed_values(self):
        since = []
        self.part.on_unseen = since.append
        self.part._on_message("homeassistant/status", b"online")
        self.part._on_message("homeassistant/status", b"offline")
        self.part._on_message("homeassistant/status", b"online")
        self.assertEqual(since, [self.context.clock.wall_ms()])
        self.context.clock.sleep(100)
        self.part._on_change()  # the broker was restarted, and Home Assistant connects to it later than this server
        self.context.clock.sleep(100)
        self.part._on_message("homeassistant/status", b"online")
        self.assertEqual(since[1:], [self.context.clock.wall_ms() - 100_000])

    def test_lost_connection_is_reported_at_once(self):
        lost = []
        self.part.on_lost = lambda: lost.append(1)
        self.part._on_change()
        self.part._on_message("homeassistant/status", b"online")
        self.assertEqual(lost, [])
        self.part._on_message("homeassistant/status", b"offline")
        self.broker.connected = False
        self.part._on_change()
        self.assertEqual(lost, [1, 1])

    def test_fault_of_the_broker_is_shown(self):
        self.broker.fault = "user or password is wrong"
        self.assertEqual([status.fault for status in self.part.statuses()], ["user or password is wrong"])

    def test_message_that_the_broker_refuses_is_a_fault_until_it_connects_again(self):
        with self.assertLogs(level="WARNING") as logged:
            self.part._on_published(1, "Not authorized")
            self.part._on_published(2, "Not authorized")
        self.assertRegex(self.part.fault, r"Not authorized; allow .* homeassistant/device/# and pigeonpost/ha/home/#")
        self.assertEqual(len(logged.output), 1)
        self.part._on_change()
        self.assertEqual(self.part.fault, "")

    def test_success_is_what_the_broker_has_accepted(self):
        self.broker.is_acknowledging = False
        self.add_node()
        self.work()
        status = self.part.statuses()[0]
        self.assertEqual((status.success_ms, status.done), (None, 0))
        self.broker.acknowledge_all()
        status = self.part.statuses()[0]
        self.assertEqual((status.success_ms, status.done), (self.context.clock.wall_ms(), len(self.broker.messages)))

    def test_states_are_published_again_after_the_store_was_not_readable(self):
        self.add_node()
        self.context.store.nodes = mock.Mock(side_effect=NotStored("busy"))
        self.part._stopping.wait = mock.Mock(side_effect=lambda s: self.part._stopping.set())
        self.part._run()
        self.context.store.nodes = list
        self.work()
        self.assertEqual(self.state(), "21.5")

    def test_internal_error_is_a_fault_until_it_is_over_and_logged_once(self):
        self.add_node()
        failing = mock.patch.object(self.part, "_look", side_effect=ZeroDivisionError("one"))
        with failing, self.assertLogs("pigeonpost.integrations.home_assistant_discovery", "ERROR") as logged:
            for _ in range(3):
                self.part._try_to_work(self.context.clock.monotonic())
        self.assertEqual(len(logged.output), 1)
        self.assertIn("ZeroDivisionError: one", self.part.statuses()[0].fault)
        self.part._try_to_work(self.context.clock.monotonic())
        self.assertEqual(self.part.fault, "")
        self.assertEqual(self.state(), "21.5")

    def test_broker_is_required(self):
        self.context.settings["mqtt", "host"] = ""
        with self.assertRaisesRegex(SettingsError, r"\[mqtt\] host"):
            self.make()


class Removal(DiscoveryCase):
    def test_renamed_node_is_removed_and_appears_with_its_new_name(self):
        self.add_node()
        self.work()
        self.context.names.renamed["basement"] = "cellar"
        self.context.links[0].state.name = "cellar"
        for values in (self.context.ingestor.latest, self.context.ingestor.received_s):
            values["cellar"] = values.pop("basement")
        self.work(6)
        self.assertNotIn(CONFIG, self.home.devices)
        self.work(11)
        self.assertEqual(self.state("pigeonpost:cellar:temperature"), "21.5")
        removals = [topic for topic, payload, *_ in self.broker.messages if not payload]
        self.assertEqual(removals, ["pigeonpost/ha/home/basement/online", CONFIG])  # once

    def test_node_renamed_while_the_server_was_away_is_removed(self):
        self.add_node()
        self.work()
        self.context.names.renamed["basement"] = "cellar"
        self.context.ingestor.latest.clear()
        self.context.links.clear()
        self.part = self.make()
        self.work(6)
        self.assertNotIn(CONFIG, self.home.devices)
        self.part = self.make()  # the file no longer contains it
        self.home.removed.clear()
        self.work(6)
        self.assertEqual(self.home.removed, set())

    def test_removal_is_repeated_until_the_broker_acknowledges_it(self):
        self.add_node()
        self.work()
        self.context.names.retired.add("basement")
        self.broker.is_acknowledging = False
        self.work(6)
        self.part = self.make()  # killed before the acknowledgement
        self.broker.is_acknowledging = True
        self.home.removed.clear()
        self.work(6)
        self.assertEqual(self.home.removed, {CONFIG})

    def test_node_that_returns_is_not_forgotten(self):
        self.add_node()
        self.work()
        self.context.names.retired.add("basement")
        self.broker.is_acknowledging = False
        self.work(6)
        self.context.names.retired.clear()
        self.work(6)
        self.broker.acknowledge_all()
        self.work(6)
        self.assertIn(CONFIG, self.home.devices)
        self.assertIn(CONFIG, self.part._published)

    def test_node_stays_while_it_is_away_after_a_restart(self):
        self.add_node()
        self.work()
        before = self.home.devices[CONFIG]["components"]
        self.context.ingestor.latest.clear()
        self.context.ingestor.received_s.clear()
        self.context.links.clear()
        self.part = self.make()
        self.work()
        self.assertEqual(self.home.devices[CONFIG]["components"].keys(), before.keys())
        self.assertIsNone(self.state())

    def test_damaged_file_is_a_fault_and_not_the_end(self):
        path = os.path.join(self.context.data, "home_assistant.json")
        with open(path, "w", encoding="utf-8") as file:
            file.write("{")
        self.add_node()
        self.part = self.make()
        self.work()
        self.assertEqual(self.state(), "21.5")
        with open(path, encoding="utf-8") as file:
            self.assertIn(CONFIG, json.load(file))


class Controls(DiscoveryCase):
    def test_without_controls_no_command_is_subscribed_or_executed(self):
        link = self.add_node()
        self.work()
        self.assertEqual(self.broker.topics, ["homeassistant/status", "pigeonpost/ha/home/online"])
        self.assertNotIn("command_topic", json.dumps(self.home.devices))
        self.part._on_message("pigeonpost/ha/home/basement/set", b"OFF")
        self.assertEqual(link.asked, [])

    def test_switch_turns_sampling_off(self):
        link = self.add_node()
        self.part = self.make(controls=True)
        self.work()
        switch = self.home.entities["pigeonpost:basement:_switch"].config
        self.assertIn("pigeonpost/ha/home/+/set", self.broker.topics)
        self.assertEqual(self.state("pigeonpost:basement:_switch"), "ON")
        self.part._on_message(switch["command_topic"], b"OFF")
        with self.assertLogs(level="WARNING") as logged:
            for text in (b"EXPLODE", b"on", b" ON", b"ON\n", b"", b"\xff"):
                self.part._on_message(switch["command_topic"], text)
        self.assertEqual(len(logged.output), 1)
        self.part._on_message("pigeonpost/ha/home/other/set", b"OFF")
        self.part._on_retained(switch["command_topic"], b"ON")  # an old command
        self.part._commands.put(None)
        self.part._switch()
        self.assertEqual(link.asked, [("SEND", False)])

    def test_switch_is_removed_when_controls_are_turned_off(self):
        self.add_node()
        self.part = self.make(controls=True)
        self.work()
        self.part = self.make(controls=False)
        self.work()
        self.assertNotIn("pigeonpost:basement:_switch", self.home.entities)
        self.assertIn("pigeonpost:basement:_sampling", self.home.entities)


class Messages(unittest.TestCase):
    def test_origin_names_the_program(self):
        topics = home_assistant_messages.Topics("homeassistant", "pi.local")
        config = home_assistant_messages.server_config(topics, "pi.local", "")
        self.assertEqual(config["origin"]["name"], "pigeonpost")
        self.assertEqual(topics.config, "homeassistant/device/pigeonpost-server_pi_2elocal/config")
