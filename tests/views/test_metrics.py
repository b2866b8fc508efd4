"""Metrics and health check: values and faults of sensors, without reading their last 24 hours."""

import json
import unittest
from unittest import mock

from tests.page_support import use_memory_disk
from tests.web.support import FakeLink, WebHouse

UNITS = {"temperature": "°C", "light": "counts"}


def setUpModule():
    use_memory_disk()


class Readings(unittest.TestCase):
    def setUp(self):
        self.links = [FakeLink(name, UNITS) for name in ("attic", "basement")]
        self.web = WebHouse(self, links=self.links)
        for name in ("attic", "basement", "cellar"):  # the server does not collect from the last node
            self.web.store_samples(name, [{"temperature": 18.5, "light": 0}], UNITS)

    def get(self, path):
        self.web.web._snapshots.invalidate()
        status, _, body = self.web.request("GET", path)
        self.assertEqual(status, 200, body[:300])
        return body.decode()

    def readings(self):
        return {line.partition("{")[2] for line in self.get("/metrics").splitlines() if "_reading{" in line}

    def test_metrics_contain_the_last_value_of_every_sensor(self):
        self.assertEqual(self.readings(), {
            f'node="{node}",sensor="{sensor}",unit="{UNITS[sensor]}"}} {value}'
            for node in ("attic", "basement", "cellar") for sensor, value in (("temperature", 18.5), ("light", 0))
        })  # fmt: skip

    def test_removed_sensor_stays_in_the_metrics_until_the_next_sample(self):
        self.links[0].state.sensors = [{"name": "temperature", "unit": "°C"}]
        self.assertIn('node="attic",sensor="light",unit="counts"} 0', self.readings())
        self.web.store_samples("attic", [{"temperature": 19}])
        self.assertEqual({line for line in self.readings() if "attic" in line},
                         {'node="attic",sensor="temperature",unit="°C"} 19'})  # fmt: skip

    def test_stale_values_are_absent(self):
        for node, state in (("attic", {"connected": False, "fault": "closed"}), ("basement", {}), ("cellar", None)):
            self.web.ingestor.received_s[node] -= 3600
            if state is not None:
                vars(self.links[node == "basement"].state).update(state)
            self.assertFalse([line for line in self.readings() if node in line], node)
        found = json.loads(self.get("/api/v1/nodes"))["nodes"]
        self.assertEqual({sensor["stale"] for node in found for sensor in node["sensors"]}, {True})

    def test_time_of_arrival_is_in_the_metrics(self):
        self.web.ingestor.received_s["attic"] -= 3600
        times = dict(
            line.rpartition(" ")[::2] for line in self.get("/metrics").splitlines() if "received_timestamp" in line
        )
        attic, basement = (float(times[f'pigeonpost_node_received_timestamp_seconds{{node="{node}"}}'])
                           for node in ("attic", "basement"))  # fmt: skip
        self.assertAlmostEqual(basement - attic, 3600, delta=30)

    def test_metrics_and_health_do_not_read_the_last_24_hours(self):
        with mock.patch.object(self.web.store, "downsample_all", side_effect=AssertionError("the samples were read")):
            self.assertEqual(len(self.readings()), 6)
            self.assertTrue(json.loads(self.get("/api/v1/health"))["well"])

    def test_failed_sensor_is_a_fault_but_a_removed_one_is_not(self):
        self.links[0].state.sensors = [{"name": "temperature", "unit": "°C"}]
        self.web.store_samples("attic", [{"temperature": None}])
        self.assertEqual(json.loads(self.get("/api/v1/health"))["faults"], ["attic temperature: no reading"])


if __name__ == "__main__":
    unittest.main()
