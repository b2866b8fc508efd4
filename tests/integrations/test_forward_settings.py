"""Tests of the keys of [[forward]] tables."""

import re
import unittest
from pathlib import Path

from pigeonpost.core.config import Option, text
from pigeonpost.core.errors import SettingsError
from pigeonpost.integrations import (
    influxdb,
    mqtt_topics,
    otlp,
    pigeonpost_server,
    victoriametrics,
    webhook_batches,
)
from pigeonpost.integrations.forward_settings import own_keys, read_forward_tables
from pigeonpost.integrations.forward_targets import KINDS
from tests.support import ROOT

TABLE = {"name": "metrics", "kind": "victoriametrics", "url": "http://localhost:8428"}


def read(*tables):
    return read_forward_tables(tables, "server.toml", KINDS)


class ForwardSettingsTest(unittest.TestCase):
    def refused(self, *tables):
        with self.assertRaises(SettingsError) as caught:
            read(*tables)
        return str(caught.exception)

    def test_table_has_defaults_for_all_general_keys(self):
        (found,) = read(TABLE)
        self.assertEqual(found[:6], ("metrics", "victoriametrics", frozenset(), frozenset(), None, False))
        self.assertEqual((found.table, found.where), (TABLE, "server.toml: [[forward]] 1"))

    def test_values_of_general_keys_are_read(self):
        (found,) = read({**TABLE, "nodes": ["a"], "sensors": ["t", "light"], "again": 60, "history": True})
        self.assertEqual(found[2:6], ({"a"}, {"t", "light"}, 60, True))

    def test_name_and_kind_are_required(self):
        self.assertEqual(self.refused({"kind": "victoriametrics"}), "server.toml: [[forward]] 1: name is missing")
        self.assertEqual(self.refused(TABLE, {"name": "b"}), "server.toml: [[forward]] 2: kind is missing")

    def test_name_is_used_only_once(self):
        self.assertIn("[[forward]] 2: name 'metrics' is used twice", self.refused(TABLE, TABLE))

    def test_invalid_values_are_refused_with_their_key(self):
        for key, value, takes in (
            ("name", "a b", "name takes 1 to 32 letters"), ("kind", "graphite", "kind takes 'influxdb' or 'mqtt'"),
            ("nodes", "a", "nodes takes a list"), ("nodes", ["?"], "nodes takes a letter or digit"),
            ("sensors", [1], "sensors takes"), ("again", -1, "again takes a number from 0 to 86400"),
            ("history", "yes", "history takes true or false"),
        ):  # fmt: skip
            with self.subTest(key=key, value=value):
                self.assertIn(takes, self.refused({**TABLE, key: value}))

    def test_unknown_key_is_refused_with_the_nearest_general_or_own_key(self):
        own = [Option("token", text, "", "token")]
        for key, near in (("histori", "history"), ("tokn", "token")):
            with self.subTest(key=key), self.assertRaisesRegex(SettingsError, f'did you mean "{near}"'):
                own_keys({"name": "a", "kind": "b", key: "x"}, own, "here")
        self.assertEqual(own_keys({"name": "a", "kind": "b", "nodes": ["c"]}, own, "here"), {"token": ""})

    def test_each_key_of_each_kind_is_in_the_manual(self):
        manual = Path(ROOT, "docs", "forwarding.md").read_text(encoding="utf-8")
        sections = re.split(r"^## ", manual, flags=re.MULTILINE)
        for title, module in (
            ("VictoriaMetrics", victoriametrics), ("InfluxDB", influxdb), ("Prometheus", otlp),
            ("Another Pigeonpost", pigeonpost_server), ("A webhook", webhook_batches), ("MQTT", mqtt_topics),
        ):  # fmt: skip
            (section,) = (part for part in sections if part.startswith(title))
            for option in module.OPTIONS:
                with self.subTest(title, key=option.key):
                    self.assertRegex(section, rf"(?m)`{option.key}\b|^ +{option.key} = ")
