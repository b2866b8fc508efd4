"""Tests of the settings: the default files and the documentation contain every key with its default."""

import argparse
import tomllib
import unittest
from pathlib import Path

import adc
from pigeonpost.alerts import channel_settings
from pigeonpost.compat import pimonitor
from pigeonpost.core.config import load
from pigeonpost.core.errors import SettingsError
from pigeonpost.integrations import forward_settings, victoriametrics
from pigeonpost.sensors import command, counter, formula, kernel, machine, mcp3424, mqtt
from pigeonpost.sensors import json as json_kind
from pigeonpost.sensors.contract import LIMITS
from pigeonpost.server.node_settings import NODE_OPTIONS
from pigeonpost.settings import NODE, SERVER, load_node, load_server, unknown_variables

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

    def test_node_defaults_match_the_default_file(self):
        self.compare("node.default.toml", NODE, ("sensor",))

    def test_server_defaults_match_the_default_file(self):
        self.compare("server.default.toml", SERVER)

    def test_default_files_can_be_loaded(self):
        for name, settings, arrays in (("node.default.toml", NODE, ("sensor",)), ("server.default.toml", SERVER, ())):
            loaded = load(settings, argparse.Namespace(config=str(ROOT / name)), "", arrays, environment={})
            self.assertEqual(loaded.origin(settings[0].table, settings[0].key), str(ROOT / name))

    def test_sensor_tables_of_the_default_file_match_the_default_sources(self):
        import node

        adc_table, machine_table = tomllib.loads((ROOT / "node.default.toml").read_text())["sensor"]
        self.assertEqual(set(adc_table) - {"kind"}, {option.key for option in adc.OPTIONS})
        self.assertEqual(adc_table["channels"], node._CHIP["channels"])
        for option in adc.OPTIONS:
            if option.default is not None:
                self.assertEqual(option.parse(adc_table[option.key]), option.default, option.key)
        self.assertEqual(set(machine_table) - {"kind", "root"}, {o.key for o in machine.OPTIONS} - {"root"})


class Variables(unittest.TestCase):
    def test_variables_of_both_programs_and_of_the_tests_are_known(self):
        known = [setting.variable for setting in (*NODE, *SERVER)]
        others = ["PIGEONPOST_NODE_TOML", "PIGEONPOST_SERVER_TOML", "PIGEONPOST_TEST_LONG", "PIGEONPOST_PI_ID", "TZ"]
        self.assertEqual(unknown_variables(dict.fromkeys([*known, *others], "x")), [])

    def test_unknown_variable_is_reported_with_the_nearest_name_and_without_its_value(self):
        said = unknown_variables({"PIGEONPOST_NODE_TOKN": "sesame", "PIGEONPOST_FOO": "", "PIGEONPOST_": ""})
        self.assertEqual(said, [
            "unknown variable 'PIGEONPOST_' has no effect; docs/settings.md lists all variables",
            "unknown variable 'PIGEONPOST_FOO' has no effect; docs/settings.md lists all variables",
            "unknown variable 'PIGEONPOST_NODE_TOKN' has no effect; did you mean PIGEONPOST_NODE_TOKEN?",
        ])  # fmt: skip


class TablesOfTheOtherProgram(unittest.TestCase):
    """Tables in the settings file of the other program."""

    def refused(self, loader, name, text):
        with self.assertRaises(SettingsError) as caught:
            loader(argparse.Namespace(config=None), {f"PIGEONPOST_{name}_TOML": text}, ())
        return str(caught.exception)

    def test_table_of_the_other_program_is_reported_with_file_and_line(self):
        for text in ("\n[web]\n", "\n[[alert]]\n", "\n[server]\nnodes = []", "\nserver.name = 'x'"):
            table = "[[alert]]" if "alert" in text else "[web]" if "web" in text else "[server]"
            self.assertEqual(
                self.refused(load_node, "NODE", text),
                f"PIGEONPOST_NODE_TOML, line 2: {table} belongs in server.toml",
            )
        tables = ("[[sensor]]", "[[sensor]]"), ("[node]\nevery = 5", "[node]"), ("outbox.slots = 64", "[outbox]")
        for text, table in tables:
            self.assertEqual(
                self.refused(load_server, "SERVER", text),
                f"PIGEONPOST_SERVER_TOML, line 1: {table} belongs in node.toml",
            )

    def test_tables_common_to_both_programs_are_accepted_by_both(self):
        both = "[log]\nlevel = 'debug'\n[mqtt]\nport = 1\n[bus]\nttl = 3\n"
        for loader, name in ((load_node, "NODE"), (load_server, "SERVER")):
            loaded = loader(argparse.Namespace(config=None), {f"PIGEONPOST_{name}_TOML": both}, ())
            self.assertEqual(loaded["log", "level"], "debug")


class Addresses(unittest.TestCase):
    def test_node_addresses_are_parsed(self):
        for text, found in (
            ("basement@192.168.1.20", ("basement", ("192.168.1.20", 5003))),
            ("10.0.0.5:5004", ("", ("10.0.0.5", 5004))),
            ("a@[fe80::1%eth0]:5003", ("a", ("fe80::1%eth0", 5003))),
            ("a@fe80::1%eth0", ("a", ("fe80::1%eth0", 5003))),
        ):
            environment = {"PIGEONPOST_SERVER_NODES": text}
            self.assertEqual(load_server(argparse.Namespace(config=None), environment, ())["server", "nodes"], [found])

    def test_invalid_node_address_is_reported(self):
        place = "takes HOST:PORT, as in 192.168.1.20:5003 or [::]:5003"
        for text, words in (
            ("a@http://10.0.0.5", f"{place} (without http://) after a@"),
            ("a@fe80::1", f"{place} (add the network interface: [fe80::1%eth0]:5003) after a@"),
            ("a@10.0.0.5:99999", f"{place} (the port must be a number from 0 to 65535) after a@"),
            ("a@", f"{place} (the host is missing) after a@"),
            ("my pi", "takes HOST:PORT without spaces and control characters, as in 192.168.1.20:5003"),
            ("@10.0.0.5", "takes NAME@HOST:PORT with a name before the @, or HOST:PORT without @"),
        ):
            with self.subTest(text), self.assertRaises(SettingsError) as caught:
                load_server(argparse.Namespace(config=None), {"PIGEONPOST_SERVER_NODES": text}, ())
            self.assertEqual(str(caught.exception), f"PIGEONPOST_SERVER_NODES: [server] nodes {words}, not {text!r}")


class SettingsInDocs(unittest.TestCase):
    def test_every_setting_and_option_is_documented(self):
        manual = (ROOT / "docs" / "settings.md").read_text()
        for setting in (*NODE, *SERVER):
            self.assertIn(f"`[{setting.table}] {setting.key}`", manual)
            self.assertIn(setting.variable, manual)
        for option in (
            *NODE_OPTIONS,
            *channel_settings.OPTIONS,
            *forward_settings.GENERAL,
            *victoriametrics.OPTIONS,
            *pimonitor.LOCATION,
            *adc.OPTIONS,
            *adc.CHANNEL_OPTIONS,
            *machine.OPTIONS,
            *kernel.OPTIONS,
            *kernel.CHANNEL_OPTIONS,
            *command.OPTIONS,
            *command.CHANNEL_OPTIONS,
            *counter.OPTIONS,
            *counter.CHANNEL_OPTIONS,
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
