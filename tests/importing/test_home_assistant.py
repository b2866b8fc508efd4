"""Tests of the import of Home Assistant's database, in the schemas of several years."""

import contextlib
import os
import sqlite3
import unittest

from pigeonpost.importing.foreign_sqlite import BadTable, ForeignColumns, sqlite_lines
from pigeonpost.importing.options import ImportOptions
from tests.support import temp_folder

META = """
CREATE TABLE states_meta (metadata_id INTEGER PRIMARY KEY, entity_id TEXT);
CREATE TABLE state_attributes (attributes_id INTEGER PRIMARY KEY, shared_attrs TEXT);
INSERT INTO states_meta VALUES (1, 'sensor.cellar'), (2, 'light.x'), (3, 'sensor.status');
INSERT INTO state_attributes VALUES (1, '{"unit_of_measurement": "°C"}'), (2, '{}'), (3, 'no json');
"""
NEW = f"""{META}
CREATE TABLE states (state_id INTEGER PRIMARY KEY, entity_id CHAR(0), state TEXT, attributes CHAR(0),
    last_updated CHAR(0), last_updated_ts FLOAT, attributes_id INTEGER, metadata_id INTEGER);
INSERT INTO states (state, last_updated_ts, attributes_id, metadata_id) VALUES ('18.5', 1700000000.25, 1, 1),
    ('unavailable', 1700000010.25, 2, 1), ('on', 1700000000, 2, 2), ('ok', 1700000000, 3, 3), ('warm', 1700000015, 1,
     1),
    ('19', 1700000020, 1, 1);
"""
MIDDLE = """
CREATE TABLE states (state_id INTEGER PRIMARY KEY, entity_id TEXT, state TEXT, attributes TEXT, last_updated TEXT,
    last_updated_ts FLOAT, attributes_id INTEGER);
CREATE TABLE state_attributes (attributes_id INTEGER PRIMARY KEY, shared_attrs TEXT);
INSERT INTO states (entity_id, state, attributes, last_updated, last_updated_ts) VALUES
    ('sensor.cellar', '18.5', '{"unit_of_measurement": "°C"}', '2023-11-14 22:13:20.250000', NULL),
    ('sensor.cellar', 'unknown', '', NULL, 1700000010.25), ('sensor.cellar', '19', NULL, NULL, 1700000020);
"""
OLD = """
CREATE TABLE states (state_id INTEGER PRIMARY KEY, domain TEXT, entity_id TEXT, state TEXT, attributes TEXT,
    last_changed TEXT, last_updated TEXT);
INSERT INTO states (entity_id, state, attributes, last_updated) VALUES
    ('sensor.cellar', '18.5', '{"unit_of_measurement": "°C"}', '2023-11-14 22:13:20.250000'),
    ('sensor.cellar', 'unavailable', '{}', '2023-11-14 22:13:30.250000'), ('sun.sun', 'below_horizon', '{}', NULL),
    ('sensor.cellar', '19', '{}', '2023-11-14 22:13:40');
"""
STATISTICS = """
CREATE TABLE statistics_meta (id INTEGER PRIMARY KEY, statistic_id TEXT, unit_of_measurement TEXT);
CREATE TABLE {0} (id INTEGER PRIMARY KEY, start TEXT, start_ts FLOAT, mean FLOAT, state FLOAT, sum FLOAT,
 metadata_id INTEGER);
INSERT INTO statistics_meta VALUES (1, 'sensor.cellar', '°C'), (2, 'sensor.energy', 'kWh');
INSERT INTO {0} (start, start_ts, mean, state, sum, metadata_id) VALUES (NULL, 1699995600, 18.25, NULL, NULL, 1),
    (NULL, 1700002800, 19, NULL, NULL, 1), (NULL, 1699995600, NULL, 120.5, 2.5, 2), ('2023-11-14 22:00:00', NULL, NULL,
     121, 3, 2);
"""
STATES = [
    "2023-11-14T22:13:20.250Z,home,cellar,18.5,°C", "2023-11-14T22:13:30.250Z,home,cellar,,°C",
    "2023-11-14T22:13:40.000Z,home,cellar,19,°C",
]  # fmt: skip
ENERGY = ["2023-11-14T21:00:00.000Z,home,energy,120.5,kWh", "2023-11-14T22:00:00.000Z,home,energy,121.0,kWh"]


class Case(unittest.TestCase):
    def read(self, script, table="", node="home", **options):
        path = os.path.join(temp_folder(self), "home-assistant_v2.db")
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(script)
        self.notes = []
        columns = ForeignColumns(node, options=ImportOptions(**options))
        return [line.rstrip("\n") for line in sqlite_lines(path, table, "", columns, self.notes)][1:]


class HomeAssistant(Case):
    def test_states_of_all_schemas_are_read(self):
        for script in (NEW, MIDDLE, OLD):
            self.assertEqual(self.read(script), STATES)
        self.read(NEW)
        self.assertEqual(
            self.notes,
            ["database of Home Assistant: 3 values of states",
             "left out: 2 entities without numbers (light.x, sensor.status, ...)",
             "left out: 1 state that is no number, such as 'warm'"],
        )  # fmt: skip

    def test_statistics_are_read_up_to_the_first_state(self):
        mean = "2023-11-14T21:00:00.000Z,home,cellar,18.25,°C"
        self.assertEqual(self.read(NEW + STATISTICS.format("statistics")), [mean, *ENERGY, *STATES])
        only = self.read(NEW + STATISTICS.format("statistics"), table="statistics")
        self.assertEqual(only, [mean, "2023-11-14T23:00:00.000Z,home,cellar,19.0,°C", *ENERGY])
        short = self.read(NEW + STATISTICS.format("statistics_short_term"), table="statistics_short_term")
        self.assertEqual(short, only)
        self.assertEqual(self.read(NEW + STATISTICS.format("statistics"), table="states"), STATES)

    def test_values_in_another_unit_are_converted_to_the_first_one(self):
        fahrenheit = NEW.replace("°C", "°F").replace("'18.5'", "'50'") + STATISTICS.format("statistics")
        found = self.read(fahrenheit)
        self.assertEqual(
            [line.split(",", 3)[3] for line in found if ",cellar," in line],
            ["18.25,°C", "10.0,°C", ",°C", "-7.22222222222,°C"],
        )
        found = self.read(fahrenheit, units={"cellar": "°F"})
        self.assertEqual(
            [line.split(",", 3)[3] for line in found if ",cellar," in line], ["64.85,°F", "50,°F", ",°F", "19,°F"]
        )

    def test_options_and_the_node_are_used(self):
        self.assertEqual(self.read(NEW, units={"cellar": "°F"})[0], "2023-11-14T22:13:20.250Z,home,cellar,65.3,°F")
        self.assertEqual(self.read(OLD, offsets={"": 1.0})[0], "2023-11-14T22:13:20.250Z,home,cellar,19.5,°C")
        with self.assertRaisesRegex(BadTable, "Home Assistant does not name the node of its readings: add --node NODE"):
            self.read(NEW, node="")


ARCHIVE = """
CREATE TABLE archive (dateTime INTEGER NOT NULL PRIMARY KEY, usUnits INTEGER NOT NULL, interval INTEGER NOT NULL,
    barometer REAL, outTemp REAL, outHumidity REAL, windSpeed REAL, windDir REAL, rain REAL, rainRate REAL, UV REAL,
     txt TEXT);
CREATE TABLE archive_day_outTemp (dateTime INTEGER, min REAL);
INSERT INTO archive VALUES (1700000000, {0}, 5, 30, 50, 60, 10, NULL, 1, 2, 3, 'x');
"""


class WeeWX(Case):
    def values(self, script, **options):
        return {line.split(",")[2]: ",".join(line.split(",")[3:]) for line in self.read(script, **options)}

    def test_units_are_those_of_the_system(self):
        for system, wanted in (
            (1, "30.0,inHg 50.0,°F 60.0,% 10.0,mph 1.0,in 2.0,in/h 3.0,"),
            (16, "30.0,mbar 50.0,°C 60.0,% 10.0,km/h 1.0,cm 2.0,cm/h 3.0,"),
            (17, "30.0,mbar 50.0,°C 60.0,% 10.0,m/s 1.0,mm 2.0,mm/h 3.0,"),
        ):
            names = ("barometer", "outtemp", "outhumidity", "windspeed", "rain", "rainrate", "uv")
            self.assertEqual(self.values(ARCHIVE.format(system)), dict(zip(names, wanted.split())))

    def test_rows_with_other_units_are_converted_to_those_of_the_last_row(self):
        more = "INSERT INTO archive VALUES (1700000300, 17, 5, 1013, 10, 61, 4, 90, NULL, NULL, NULL, NULL);"
        found = self.read(ARCHIVE.format(1) + more)
        self.assertEqual(found[1], "2023-11-14T22:13:20.000Z,home,outtemp,10.0,°C")
        self.assertEqual(found[4], "2023-11-14T22:13:20.000Z,home,rain,25.4,mm")
        self.assertEqual(found[-1], "2023-11-14T22:18:20.000Z,home,winddir,90.0,°")
        self.assertEqual(self.notes, ["archive of WeeWX: 2 rows, 12 values, units US, METRICWX, converted to METRICWX"])

    def test_options_and_the_node_are_used(self):
        self.assertEqual(self.values(ARCHIVE.format(1), units={"outtemp": "°C"})["outtemp"], "10.0,°C")
        for script, node, text in (
            (ARCHIVE.format(1), "", "WeeWX does not name the node"), (ARCHIVE.format(5), "home",
             "row 1: usUnits 5 is not 1, 16"),
            (ARCHIVE.format(1).replace("1700000000", "-1"), "home", "row 1: dateTime -1 is not a time"),
        ):  # fmt: skip
            with self.assertRaisesRegex(BadTable, text):
                self.read(script, node=node)


if __name__ == "__main__":
    unittest.main()
