"""The two default files are the whole manual of the settings: every key, with the default that is in force."""

import argparse
import tomllib
import unittest
from pathlib import Path

import adc
from pigeonpost.compat import pimonitor
from pigeonpost.core.config import load
from pigeonpost.sensors import command, formula, kernel, machine, mcp3424, mqtt
from pigeonpost.sensors import json as json_kind
from pigeonpost.sensors.contract import LIMITS
from pigeonpost.server.node_settings import NODE_OPTIONS
from pigeonpost.settings import NODE, SERVER

ROOT = Path(__file__).resolve().parent.parent


class DefaultFiles(unittest.TestCase):
    def compare(self, name, settings, arrays=()):
        content = tomllib.loads((ROOT / name).read_text())
        written = {(table, key) for table, keys in content.items() if table not in arrays for key in keys}
        self.assertEqual(written, {(setting.table, setting.key) for setting in settings})
        for setting in settings:
            value = content[setting.table][setting.key]
            parsed = [setting.parse(item) for item in value] if setting.many else setting.parse(value)
            usual = (
                [setting.parse(item) for item in setting.default] if setting.many else setting.parse(setting.default)
            )
            self.assertEqual(parsed, usual, f"{name}: [{setting.table}] {setting.key}")

    def test_node(self):
        self.compare("node.default.toml", NODE, ("sensor",))

    def test_server(self):
        self.compare("server.default.toml", SERVER)

    def test_files_load_as_they_stand(self):
        for name, settings, arrays in (("node.default.toml", NODE, ("sensor",)), ("server.default.toml", SERVER, ())):
            loaded = load(settings, argparse.Namespace(config=str(ROOT / name)), "", arrays, environment={})
            self.assertEqual(loaded.origin(settings[0].table, settings[0].key), str(ROOT / name))

    def test_sensor_blocks_are_what_a_node_reads_without_any(self):
        import node

        adc_table, machine_table = tomllib.loads((ROOT / "node.default.toml").read_text())["sensor"]
        self.assertEqual(set(adc_table) - {"kind"}, {option.key for option in adc.OPTIONS})
        self.assertEqual(adc_table["channels"], node._CHIP["channels"])
        for option in adc.OPTIONS:
            if option.default is not None:
                self.assertEqual(option.parse(adc_table[option.key]), option.default, option.key)
        self.assertEqual(set(machine_table) - {"kind", "root"}, {o.key for o in machine.OPTIONS} - {"root"})


class SettingsInDocs(unittest.TestCase):
    def test_every_setting_and_option_is_in_the_manual(self):
        manual = (ROOT / "docs" / "settings.md").read_text()
        for setting in (*NODE, *SERVER):
            self.assertIn(f"`[{setting.table}] {setting.key}`", manual)
            self.assertIn(setting.variable, manual)
        for option in (
            *NODE_OPTIONS,
            *pimonitor.LOCATION,
            *adc.OPTIONS,
            *adc.CHANNEL_OPTIONS,
            *machine.OPTIONS,
            *kernel.OPTIONS,
            *kernel.CHANNEL_OPTIONS,
            *command.OPTIONS,
            *command.CHANNEL_OPTIONS,
            *json_kind.OPTIONS,
            *json_kind.CHANNEL_OPTIONS,
            *formula.OPTIONS,
            *formula.CHANNEL_OPTIONS,
            *mqtt.OPTIONS,
            *mqtt.CHANNEL_OPTIONS,
            *mcp3424.OPTIONS,
            *mcp3424.CHANNEL_OPTIONS,
            *LIMITS,
        ):
            self.assertIn(f"`{option.key}`", manual)


if __name__ == "__main__":
    unittest.main()
