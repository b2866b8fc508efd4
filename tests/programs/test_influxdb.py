"""Forwarding to InfluxDB 1.6 of Debian: it and this server are killed at random, and each reading is there once."""

import base64
import json
import unittest
import urllib.error
import urllib.parse
import urllib.request

from pigeonpost.integrations.contract import NotDelivered, RefusedData
from tests.integrations.forwarding import batch_of, make_target, some
from tests.programs import RealProgram, need_programs
from tests.programs.forward_house import KILLS, forwarding, kill_at_random
from tests.support import WALL_MS, free_port

CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
[http]
  bind-address = "127.0.0.1:{port}"
  auth-enabled = {auth}
  flux-enabled = false
[monitor]
  store-enabled = false
"""


def setUpModule():
    need_programs("influxd")


class Influx(RealProgram):
    """InfluxDB with the database "home"."""

    def __init__(self, test, auth=False):
        self.port = free_port()
        super().__init__(test, ["influxd", "-config", "{folder}/influxdb.conf"], self.is_up)
        filled = CONFIG.replace("{folder}", self.folder).replace("{port}", str(self.port))
        filled = filled.replace("{rpc}", str(free_port())).replace("{auth}", str(auth).lower())
        with open(f"{self.folder}/influxdb.conf", "w", encoding="utf-8") as file:
            file.write(filled)
        self.url = f"http://127.0.0.1:{self.port}"
        self.login = {}

    def is_up(self):
        with urllib.request.urlopen(f"{self.url}/ping", timeout=5) as answer:
            return answer.status == 204

    def query(self, text, **more):
        """Return the first series of the result of a query as rows, or [] if there is none."""
        query = urllib.parse.urlencode({"db": "home", "epoch": "ms", "q": text, **more})
        request = urllib.request.Request(f"{self.url}/query", query.encode(), self.login)
        with urllib.request.urlopen(request, timeout=20) as answer:
            (result,) = json.load(answer)["results"]
        assert "error" not in result, result
        return result["series"][0]["values"] if "series" in result else []

    def readings(self):
        """Return the values by node and sensor, and by time in ms."""
        found = {}
        try:
            fields = [field for field, _ in self.query("SHOW FIELD KEYS FROM readings")]
            for _, node in self.query('SHOW TAG VALUES FROM readings WITH KEY = "node"'):
                for field in fields:
                    rows = self.query(f"SELECT \"{field}\" FROM readings WHERE node = '{node}'")
                    assert len(rows) == len({time_ms for time_ms, _ in rows})
                    found[node, field] = dict(rows)
        except OSError:
            pass  # it is being started
        return found


class InfluxTest(unittest.TestCase):
    def settings(self, influx):
        return f"""
            [[forward]]
            name = "influx"
            kind = "influxdb"
            url = "{influx.url}"
            database = "home"
            history = true
        """

    def test_each_reading_arrives_once_although_both_servers_are_killed(self):
        influx = Influx(self).start()
        influx.query("CREATE DATABASE home")
        with forwarding(self.settings(influx)) as (house, chance):
            kill_at_random(house, [influx], KILLS, chance)
            house.finish(lambda: influx.readings() == house.readings(), "InfluxDB has all readings")
            wanted, found = house.readings(), influx.readings()
            self.assertEqual(wanted, found)
            self.assertGreater(len(wanted["n", "temperature"]), 4 * KILLS)
            print(f"influxdb: {sum(map(len, found.values()))} readings, {house.server.kills} kills of the server")

    def test_answers_of_influxdb_have_their_meaning(self):
        influx = Influx(self).start()
        target = make_target(self, "influxdb", url=influx.url, database="home")
        with self.assertRaisesRegex(NotDelivered, "database not found.*create the database home in InfluxDB"):
            target.send([batch_of(some(1, 2))])
        influx.query("CREATE DATABASE home")
        samples = some(1, 3, temperature=[20.5, None, -1e-300], light=[512, None, 2**53], time=[None, 1, 2])
        for _ in range(2):
            target.send([batch_of(samples)])
        times = [WALL_MS + 1000 * number for number in (1, 2, 3)]
        self.assertEqual(influx.readings(), {
            ("basement", "temperature"): {times[0]: 20.5, times[2]: -1e-300},
            ("basement", "light"): {times[0]: 512, times[2]: 2**53},
            ("basement", "time_"): {times[1]: 1, times[2]: 2},
        })  # fmt: skip
        write = urllib.request.Request(f"{influx.url}/write?db=home&precision=ms", b"readings level=3i %d" % WALL_MS)
        urllib.request.urlopen(write, timeout=20).close()
        with self.assertRaisesRegex(RefusedData, "field type conflict"):
            target.send([batch_of(some(1, 1, level=[3]))])

    def test_user_and_password_are_accepted(self):
        influx = Influx(self, auth=True).start()
        influx.query("CREATE USER me WITH PASSWORD 'se-cret' WITH ALL PRIVILEGES")
        influx.login = {"Authorization": "Basic " + base64.b64encode(b"me:se-cret").decode()}
        influx.query("CREATE DATABASE home")
        keys = {"url": influx.url, "database": "home", "user": "me"}
        make_target(self, "influxdb", **keys, password="se-cret").send([batch_of(some(1, 1))])
        self.assertEqual(len(influx.readings()), 1)
        with self.assertRaisesRegex(NotDelivered, "set user and password to one that InfluxDB knows"):
            make_target(self, "influxdb", **keys, password="wrong").send([batch_of(some(1, 1))])


if __name__ == "__main__":
    unittest.main()
