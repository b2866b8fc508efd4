"""Dashboards for Grafana: their structure, each request against a real server, each statement against PostgreSQL.

Grafana itself cannot be installed here. Sources of the structure: the JSON model of dashboards (schema version 39), and
the documentation of the plugin Infinity.
"""

import datetime
import json
import os
import re
import unittest
import urllib.parse

try:
    import yaml
except ImportError:  # not installed for this Python
    yaml = None

from pigeonpost.core.clock import Clock, rfc3339
from pigeonpost.storage.postgres.store import PostgresStore
from tests.libraries.databases import Database, need_postgres
from tests.page_support import Server, control, for_class
from tests.programs import need_programs
from tests.storage.test_contract import batch, file, gap
from tests.support import ROOT, temp_folder, wait_until

FOLDER = os.path.join(ROOT, "deploy", "grafana")
INFINITY, POSTGRES = "yesoreyeram-infinity-datasource", "postgres"
BUILT_IN = {"__from", "__to", "__interval"}  # variables of Grafana
TYPES = {"string", "number", "timestamp", "timestamp_epoch"}  # of a column of Infinity


def setUpModule():
    need_programs()
    if yaml is None:
        raise unittest.SkipTest("PyYAML is not installed for this Python")


def read(*parts):
    with open(os.path.join(FOLDER, *parts), encoding="utf-8") as file:
        return file.read()


def dashboards():
    return {
        name: json.loads(read("dashboards", name)) for name in sorted(os.listdir(os.path.join(FOLDER, "dashboards")))
    }


def targets_of(board):
    """Return (name, target) for all queries: those of panels, annotations and variables."""
    found = [(panel["title"], target) for panel in board["panels"] for target in panel["targets"]]
    found += [(one["name"], one["target"]) for one in board["annotations"]["list"] if "target" in one]
    found += [(one["name"], one["query"].get("infinityQuery", one["query"])) for one in board["templating"]["list"]]
    return found


class Structure(unittest.TestCase):
    def test_panels_have_different_ids_and_places_within_the_grid(self):
        for name, board in dashboards().items():
            with self.subTest(name):
                ids = [panel["id"] for panel in board["panels"]]
                self.assertEqual(len(set(ids)), len(ids))
                taken = set()
                for panel in board["panels"]:
                    place = panel["gridPos"]
                    self.assertTrue(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0, place)
                    cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                             for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
                    self.assertFalse(taken & cells, panel["title"])
                    taken |= cells
                    self.assertLessEqual({"id", "type", "title", "datasource", "fieldConfig", "options", "targets"},
                                         set(panel))  # fmt: skip
                    references = [target["refId"] for target in panel["targets"]]
                    self.assertEqual(len(set(references)), len(references))

    def test_dashboards_have_different_ids_and_the_schema_version(self):
        boards = dashboards().values()
        self.assertEqual(len({board["uid"] for board in boards}), len(boards))
        for board in boards:
            self.assertEqual(board["schemaVersion"], 39)
            self.assertTrue(board["uid"] and len(board["uid"]) <= 40)  # the limit of Grafana
            self.assertNotIn("id", board)  # it is assigned by Grafana

    def test_each_data_source_is_provisioned_with_its_type(self):
        settings = yaml.safe_load(read("provisioning", "datasources", "pigeonpost.yaml"))
        self.assertEqual(settings["apiVersion"], 1)
        known = {one["uid"]: one["type"] for one in settings["datasources"]}
        self.assertEqual(set(known.values()), {INFINITY, POSTGRES})
        for name, board in dashboards().items():
            used = [panel["datasource"] for panel in board["panels"]]
            used += [target.get("datasource", one) for one, (_, target) in zip(used, targets_of(board))]
            used += [one["datasource"] for one in board["annotations"]["list"] if "builtIn" not in one]
            used += [one["datasource"] for one in board["templating"]["list"]]
            for one in used:
                self.assertEqual(known[one["uid"]], one["type"], name)
        providers = yaml.safe_load(read("provisioning", "dashboards", "pigeonpost.yaml"))["providers"]
        self.assertEqual([one["type"] for one in providers], ["file"])

    def test_secrets_are_variables(self):
        text = read("provisioning", "datasources", "pigeonpost.yaml")
        for key in ("bearerToken", "password"):
            self.assertRegex(text, rf"(?m)^      {key}: \$\{{PIGEONPOST_[A-Z_]+\}}")

    def test_each_variable_is_defined(self):
        for name, board in dashboards().items():
            defined = {one["name"] for one in board["templating"]["list"]} | BUILT_IN
            used = set(re.findall(r"\$\{([a-z_]+)[:}]", json.dumps(board))) - {"node:csv"}
            self.assertEqual(used - defined, set(), name)

    def test_columns_of_infinity_have_known_types(self):
        for board in dashboards().values():
            for name, target in targets_of(board):
                if "columns" in target:
                    self.assertLessEqual({one["type"] for one in target["columns"]}, TYPES, name)
                    self.assertEqual((target["parser"], target["source"], target["type"]), ("backend", "url", "json"))


def rows_at(value, path):
    """Return the rows at a path of JSONata that consists of names: arrays on the way are flattened."""
    found = value if isinstance(value, list) else [value]
    for name in path.split(".") if path else ():
        found = [one[name] for one in found]
        found = [part for one in found for part in (one if isinstance(one, list) else [one])]
    return found


def cell_at(row, selector):
    for name in selector.split("."):
        row = row[name]
    return row


class Requests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        test = for_class(cls)
        data = temp_folder(test)
        control(test, "--data", data, "password", said="correct horse\n")
        status, out, told = control(test, "--data", data, "api-token", "grafana")
        assert status == 0, told
        cls.headers = {"Authorization": f"Bearer {out.strip()}"}
        cls.server = Server(test, "--demo", data=data)
        now_ms = Clock().wall_ms()
        cls.values = {"__from": str(now_ms - 3_600_000), "__to": str(now_ms + 600_000), "node:csv": "demo",
                      "sensor:csv": "temperature,light"}  # fmt: skip
        wait_until(lambda: cls.fetch("/api/v1/readings?sensor=temperature"), "a reading")

    @classmethod
    def fetch(cls, path):
        status, text = cls.server.get(path, cls.headers)
        if status != 200:
            raise AssertionError(f"{path}: {status} {text}")
        return json.loads(text)

    def check(self, target):
        """Execute a query, and return its rows. Each of them contains all columns."""
        url = re.sub(r"\$\{([^}]+)\}", lambda found: urllib.parse.quote(self.values[found[1]], ","), target["url"])
        rows = rows_at(self.fetch(url), target["root_selector"])
        for row in rows:
            for column in target["columns"]:
                value = cell_at(row, column["selector"])
                if column["type"] == "number":
                    self.assertIsInstance(value, int | float | None, column)
                elif column["type"] == "timestamp_epoch":
                    self.assertIsInstance(value, int, column)
                elif column["type"] == "timestamp" and value is not None:
                    datetime.datetime.fromisoformat(value)
        return rows

    def test_each_request_has_rows_with_all_columns(self):
        empty = set()
        for name, target in targets_of(dashboards()["pigeonpost.json"]):
            with self.subTest(name):
                if not self.check(target):
                    empty.add(name)
        # A demonstration has neither gaps nor integrations: tests/views contains the tests of these addresses.
        self.assertEqual(empty, {"Integrations and backlogs", "Gaps", "Outages and faults", "Notes"})

    def test_columns_of_empty_tables_are_those_of_the_pages(self):
        for panel in dashboards()["pigeonpost.json"]["panels"]:
            for target in panel["targets"]:
                if target["url"].endswith(".json"):
                    head = self.server.get(target["url"].replace(".json", ".csv"), self.headers)[1].splitlines()[0]
                    self.assertLessEqual({one["selector"] for one in target["columns"]}, set(head.split(",")))

    def test_values_of_the_variables_are_found(self):
        found = {name: [one[target["columns"][0]["selector"]] for one in self.check(target)]
                 for name, target in targets_of(dashboards()["pigeonpost.json"])[-2:]}  # fmt: skip
        self.assertEqual(found["node"], ["demo"])
        self.assertIn("temperature", found["sensor"])


def substituted(statement, from_ms, to_ms):
    """Return the statement with the macros of Grafana's PostgreSQL data source replaced, as Grafana replaces them."""
    statement = statement.replace("${node:sqlstring}", "'a'").replace("${sensor:sqlstring}", "'temperature','light'")
    statement = statement.replace(
        "$__timeGroupAlias(time, $__interval)", 'floor(extract(epoch from time)/60)*60 AS "time"'
    )
    opening = "$__timeFilter("
    while opening in statement:
        start = statement.index(opening)
        depth, end = 1, start + len(opening)
        while depth:
            depth += {"(": 1, ")": -1}.get(statement[end], 0)
            end += 1
        inner = statement[start + len(opening) : end - 1]
        condition = f"{inner} BETWEEN '{rfc3339(from_ms)}' AND '{rfc3339(to_ms)}'"
        statement = statement[:start] + condition + statement[end:]
    assert "$" not in statement, statement
    return statement


class Statements(unittest.TestCase):
    """The statements are executed with a role that can only read, as docs/monitoring.md creates it."""

    def setUp(self):
        need_postgres()
        self.database = Database()
        self.addCleanup(self.database.drop)
        store = PostgresStore(self.database.address, temp_folder(self))
        self.addCleanup(store.close)
        self.now_ms = 1_795_000_060_000  # one minute after the gap, as `file` records it
        file(store, batch(1, 5, time_ms=self.now_ms - 60_000))
        file(store, gap(6, 7))
        with open(os.path.join(ROOT, "docs", "monitoring.md"), encoding="utf-8") as document:
            (grants,) = re.findall(r"^    (CREATE ROLE grafana(?:.*\n    )*.*;)$", document.read(), re.MULTILINE)
        self.role = f"grafana_{os.getpid()}"
        for statement in re.sub(r"\bgrafana\b", self.role, grants).rstrip(";").split(";"):
            self.database.do(statement)
        self.addCleanup(self.database.do, f"DROP ROLE {self.role}")
        self.addCleanup(self.database.do, f"DROP OWNED BY {self.role}")

    def connect(self):
        db = self.database.connect()
        db.execute(f"SET search_path = public; SET ROLE {self.role}")
        return db

    def test_each_statement_has_the_columns_that_its_format_needs(self):
        empty = set()
        for name, target in targets_of(dashboards()["pigeonpost-postgresql.json"]):
            with self.subTest(name), self.connect() as connection:
                found = connection.execute(
                    substituted(target["rawSql"], self.now_ms - 3_600_000, self.now_ms + 600_000)
                )
                columns = [one.name for one in found.description]
                if target["format"] == "time_series":
                    self.assertEqual(columns[:2], ["time", "metric"])
                if target["refId"] == "Anno":
                    self.assertEqual(columns, ["time", "text", "tags"])
                if not found.fetchall():
                    empty.add(name)
        self.assertEqual(empty, {"Statistics of hours"})  # they are made an hour later

    def test_role_cannot_change_anything(self):
        with self.connect() as connection, self.assertRaisesRegex(Exception, "permission denied"):
            connection.execute("DELETE FROM pigeonpost.samples")


if __name__ == "__main__":
    unittest.main()
