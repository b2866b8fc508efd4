"""Transports with a missing library do not keep the others from running."""

import argparse
import sys
import unittest
from unittest import mock

import node
from pigeonpost.core.errors import MissingLibrary, SettingsError
from pigeonpost.settings import load_node
from pigeonpost.transports import registry
from pigeonpost.transports.contract import PassiveTransport
from tests.page_support import use_memory_disk
from tests.support import temp_folder

NO_PAHO = dict.fromkeys(("paho", "paho.mqtt", "paho.mqtt.client"))
REMEDY = "[mqtt]: the Python module paho is missing: sudo apt install python3-paho-mqtt"


def setUpModule():
    use_memory_disk()


class MissingLibraries(unittest.TestCase):
    def fail_with(self, error):
        def make(*_):
            raise error

        return make

    def test_replacement_of_a_transport_shows_the_missing_library(self):
        with self.assertLogs("pigeonpost.transports.registry", "ERROR") as logged:
            made = registry.make_or_explain(self.fail_with(MissingLibrary("sudo apt install it")), 1, 2)
        self.assertEqual(made.fault, "sudo apt install it")
        self.assertIn("sudo apt install it; everything else keeps running", logged.output[0])
        made.start()
        self.assertIsNone(made.stop(0.0))
        self.assertEqual(PassiveTransport().fault, "")  # the fault is not shared

    def test_invalid_settings_are_refused(self):
        with self.assertRaises(SettingsError):
            registry.make_or_explain(self.fail_with(SettingsError("x")))

    def test_node_without_the_library_samples_and_shows_the_fault(self):
        environment = {"PIGEONPOST_MQTT_HOST": "localhost", "PIGEONPOST_OUTBOX_SLOTS": "64"}
        flags = argparse.Namespace(config=None, node_data=temp_folder(self), node_simulate=True)
        with (
            mock.patch.dict(sys.modules, NO_PAHO),
            self.assertLogs("pigeonpost.transports.registry", "ERROR") as logged,
        ):
            made = node.Node(load_node(flags, environment, ()))
        self.addCleanup(made.ring.close)
        self.assertIn(REMEDY, logged.output[0])
        self.assertEqual(made._details()["faults"], [REMEDY])


if __name__ == "__main__":
    unittest.main()
