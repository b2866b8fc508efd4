"""Metrics and health check: values and faults of sensors, without reading their last 24 hours."""

import json
import time
import unittest
from unittest import mock

from pigeonpost.transports.contract import IntegrationStatus
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S
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


class Backlogs(unittest.TestCase):
    def setUp(self):
        self.web = WebHouse(self)

    def values(self):
        status, _, body = self.web.request("GET", "/metrics")
        self.assertEqual(status, 200, body[:300])
        lines = (line for line in body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def test_process_has_the_metrics_with_the_usual_names(self):
        found = self.values()
        self.assertLess(found["process_resident_memory_bytes"], found["process_virtual_memory_bytes"])
        self.assertGreater(found["process_resident_memory_bytes"], 5 << 20)
        self.assertTrue(2 < found["process_open_fds"] < found.get("process_max_fds", 1 << 62))
        self.assertTrue(time.time() - 86_400 < found["process_start_time_seconds"] <= time.time() + 60)
        self.assertGreaterEqual(found["process_cpu_seconds_total"], found["pigeonpost_process_cpu_seconds_total"])

    def test_backlogs_of_the_server_are_counted(self):
        self.web.ingestor.stop(LIMIT_S)
        found = self.values()
        for name in ("ingest_queue_samples", "log_unwritten", "rollups_pending", "event_streams"):
            self.assertEqual(found[f"pigeonpost_{name}"], 0, name)
        self.assertNotIn("pigeonpost_alert_messages_waiting", found)
        self.web.ingestor._waiting_of = {"attic": 3, "cellar": 4}
        self.web.csv._wanted += 5
        notifier = mock.Mock(report=lambda: {"waiting": 2})
        window = mock.Mock()
        self.web.web._app = self.web.web._app._replace(notifier=notifier)
        with mock.patch.object(self.web.store, "dirty_windows", return_value=[window] * 6):
            found = self.values()
        self.assertEqual(
            [found[f"pigeonpost_{name}"] for name in
             ("ingest_queue_samples", "log_unwritten", "alert_messages_waiting", "rollups_pending")], [7, 5, 2, 6]
        )  # fmt: skip

    def test_log_that_cannot_be_written_has_a_backlog(self):
        with mock.patch.object(self.web.csv, "_write", side_effect=OSError(28, "No space left on device")):
            self.web.store_samples("attic", [{"temperature": 1}])
            self.assertEqual(self.values()["pigeonpost_log_unwritten"], 1)
        self.web.store_samples("attic", [{"temperature": 2}])
        self.assertEqual(self.values()["pigeonpost_log_unwritten"], 0)

    def test_every_exchange_has_its_backlog_and_a_broken_part_does_not_break_the_metrics(self):
        states = (
            IntegrationStatus('a "b"', "influxdb", "out", "here", 5000, 7, done=8, refused=1, fault="away"),
            IntegrationStatus("c", "mqtt", "both", "there", None, None),
            IntegrationStatus("c", "mqtt", "both", "there again", None, 3),
        )
        parts = {"one": mock.Mock(fault="", statuses=lambda: states),
                 "two": mock.Mock(fault="", statuses=mock.Mock(side_effect=ValueError("broken")))}  # fmt: skip
        self.web.web._app = self.web.web._app._replace(transports=parts)
        with self.assertLogs("pigeonpost.views.integrations_page", "WARNING"):
            found = self.values()
        self.assertEqual({name: value for name, value in found.items() if "integration_" in name}, {
            f"pigeonpost_integration_{name}{{{labels}}}": value
            for labels, values in (
                (r'name="a \"b\"",kind="influxdb",direction="out"', {
                    "fault": 1, "backlog": 7, "last_success_timestamp_seconds": 5, "done_total": 8, "refused_total": 1,
                }),
                ('name="c",kind="mqtt",direction="both"', {
                    "fault": 0, "backlog": 3, "done_total": 0, "refused_total": 0,
                }),
                ('name="two",kind="",direction=""', {"fault": 1, "done_total": 0, "refused_total": 0}),
            )
            for name, value in values.items()
        })  # fmt: skip


if __name__ == "__main__":
    unittest.main()
