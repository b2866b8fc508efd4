"""Flat tables of readings: `GET /api/v1/readings`."""

import errno
import json
import unittest
from unittest import mock
from urllib.parse import quote

from pigeonpost.core.clock import rfc3339
from pigeonpost.views import readings_api, spool
from protocol import Sample
from tests.page_support import use_memory_disk
from tests.web.support import FakeLink, WebHouse

UNITS = {"temperature": "°C", "light": "counts"}
MINUTE_MS = 60_000


def setUpModule():
    use_memory_disk()


class ReadingsTable(unittest.TestCase):
    def setUp(self):
        self.web = WebHouse(self, links=[FakeLink("attic", UNITS), FakeLink("new")])
        self.now_ms = self.web.app.clock.wall_ms() // MINUTE_MS * MINUTE_MS
        self.put("attic", [{"temperature": 20 + k, "light": None if k == 1 else k} for k in range(3)], UNITS)
        self.put("cellar", [{"temperature": 10.5 + k} for k in range(3)], {"temperature": "°C"})
        self.put("hostile", [{"time": 1, "node": 2}], {})

    def put(self, node, values, units):
        """Store one sample per minute, the last one two minutes ago."""
        count = len(values)
        self.web.store_samples(node, [
            Sample(k + 1, self.now_ms - (count + 1 - k) * MINUTE_MS, k, one, {}, "") for k, one in enumerate(values)
        ], units)  # fmt: skip

    def get(self, query="", status=200):
        found, self.headers, body = self.web.request("GET", "/api/v1/readings" + query)
        self.assertEqual(found, status, body[:300])
        return body.decode()

    def json(self, query="", status=200):
        return json.loads(self.get(query, status))

    def refusal(self, query, status=400):
        return self.json(query, status)["error"]

    def test_rows_have_one_column_per_sensor_and_are_ordered_by_time_and_node(self):
        found = self.json("?node=cellar,attic&sensor=temperature,light")
        times = [self.now_ms - k * MINUTE_MS for k in (4, 3, 2)]
        self.assertEqual(found, [row for k, time_ms in enumerate(times) for row in (
            {"time": time_ms, "node": "attic", "temperature": 20 + k, "light": None if k == 1 else k},
            {"time": time_ms, "node": "cellar", "temperature": 10.5 + k, "light": None},
        )])  # fmt: skip

    def test_without_names_all_nodes_and_sensors_are_returned(self):
        found = self.json()
        self.assertEqual({row["node"] for row in found}, {"attic", "cellar", "hostile"})
        self.assertEqual({len(row) for row in found}, {6})

    def test_sensors_called_like_a_column_get_another_name(self):
        (row,) = self.json("?node=hostile")
        self.assertEqual(row, {
            "time": self.now_ms - 2 * MINUTE_MS, "node": "hostile", "time (sensor)": 1, "node (sensor)": 2,
        })  # fmt: skip

    def test_long_table_has_units_and_no_failed_readings(self):
        found = self.json("?node=attic&sensor=light&format=long")
        self.assertEqual(found, [
            {"time": self.now_ms - ago * MINUTE_MS, "node": "attic", "sensor": "light", "value": value,
             "unit": "counts", "low": value, "high": value, "count": 1} for ago, value in ((4, 0), (2, 2))
        ])  # fmt: skip

    def test_csv_has_the_same_columns(self):
        lines = self.get("?node=attic&format=csv").splitlines()
        self.assertEqual(self.headers["content-type"], "text/csv; charset=utf-8")
        self.assertEqual(lines[0], "time,node,light,temperature")
        self.assertEqual(lines[2], f"{rfc3339(self.now_ms - 3 * MINUTE_MS)},attic,,21")
        long = self.get("?node=attic&sensor=temperature&format=long-csv").splitlines()
        self.assertEqual(long[:2], [
            "time,node,sensor,value,unit,low,high,count",
            f"{rfc3339(self.now_ms - 4 * MINUTE_MS)},attic,temperature,20,°C,20,20,1",
        ])  # fmt: skip

    def test_step_returns_the_chosen_statistic(self):
        for statistic, value in (("mean", 21), ("low", 20), ("high", 22)):
            rows = self.json(f"?node=attic&sensor=temperature&step=1d&value={statistic}")
            values = [row["temperature"] for row in rows]
            if len(rows) == 1:  # not around midnight
                self.assertEqual(values, [value])
        (row, *_) = self.json("?node=attic&sensor=temperature&step=1h&format=long")
        self.assertEqual(row["time"] % 3_600_000, 0)
        self.assertTrue(row["low"] <= row["value"] <= row["high"])

    def test_step_is_chosen_if_there_are_more_samples_than_points(self):
        every = self.json("?node=attic&sensor=temperature&format=long&points=3")
        self.assertEqual([row["count"] for row in every], [1, 1, 1])
        fewer = self.json("?node=attic&sensor=temperature&format=long&points=2")
        self.assertLessEqual(len(fewer), 2)
        self.assertEqual(sum(row["count"] for row in fewer), 3)

    def test_step_of_a_range_from_1970_depends_on_the_stored_samples(self):
        fewer = self.json("?node=attic&sensor=temperature&points=2&from=0")
        self.assertLessEqual(self.now_ms - fewer[0]["time"], 20 * MINUTE_MS)

    def test_times_may_be_relative_in_ms_or_in_rfc_3339(self):
        from_ms, to_ms = self.now_ms - 3 * MINUTE_MS, self.now_ms - 2 * MINUTE_MS
        for query in (f"from={from_ms}&to={to_ms}", f"from={rfc3339(from_ms)}&to={rfc3339(to_ms)}"):
            self.assertEqual([row["temperature"] for row in self.json(f"?node=attic&{query}")], [21])
        for query in ("from=now-24h&to=now", "from=-24h", "from=-1d&to=now-1s"):
            self.assertEqual(len(self.json(f"?node=attic&{query}")), 3, query)
        self.assertEqual(self.json("?from=now-20s"), [])

    def test_node_without_samples_has_no_rows(self):
        self.assertEqual(self.json("?node=new"), [])
        self.assertEqual(self.get("?node=new&format=csv"), "time,node\n")

    def test_invalid_queries_are_refused(self):
        for query in (
            "node=attic,", "node=-", "sensor=A", "node=" + ",".join(f"n{k}" for k in range(201)), "from=yesterday",
            "from=-", "from=-0h", "from=now&to=-1h", "step=often", "format=xml", "value=median",
            "points=0", "points=10001", "raw=2", "node=attic&node=cellar", f"sensor={quote('a b')}",
        ):  # fmt: skip
            with self.subTest(query):
                self.refusal(f"?{query}")
        with mock.patch.object(readings_api, "MOST_POINTS", 10):
            self.refusal("?step=1s")
        self.assertEqual(self.refusal("?node=nobody", 404)["code"], "unknown-node")

    def test_too_many_values_are_refused_with_a_remedy_or_downsampled(self):
        with mock.patch.object(readings_api, "MOST_VALUES", 4):
            self.assertIn("choose a shorter range", self.refusal("?node=attic&step=none")["text"])
            self.assertLessEqual(len(self.json("?node=attic")), 2)
            self.assertIn("name fewer nodes or sensors", self.refusal("")["text"])

    def test_large_response_that_leaves_too_little_free_space_is_refused(self):
        full = {"side_effect": OSError(errno.ENOSPC, "No space left on device")}
        for left, failure in ((1 << 60, {}), (0, full)):
            with (
                mock.patch.multiple(spool, IN_MEMORY_BYTES=10, LEFT_BYTES=left),
                mock.patch.object(spool, "_write", wraps=spool._write, **failure),
            ):
                refused = self.refusal("", 503)
            self.assertEqual((refused["code"], self.headers["retry-after"]), ("disk-full", "60"))
        self.assertTrue(self.json())

    def test_single_row_is_refused_with_a_remedy(self):
        self.assertIn("increase `points`", self.refusal("?points=1")["text"])

    def test_unknown_node_is_named(self):
        self.assertIn("nobody", self.refusal("?node=attic,nobody", 404)["text"])

    def test_large_response_is_complete_and_leaves_no_file(self):
        small = self.get("?format=long")
        with mock.patch.multiple(spool, IN_MEMORY_BYTES=10, LEFT_BYTES=0):
            self.assertEqual(self.get("?format=long"), small)

    def test_a_third_query_at_the_same_time_is_refused(self):
        api = readings_api.ReadingsApi()
        api._working = mock.Mock(acquire=lambda timeout: False)
        context = mock.Mock(request=mock.Mock(query={}))
        with mock.patch.object(readings_api, "_read_query"), self.assertRaises(readings_api.HTTPError) as caught:
            api.answer(context)
        self.assertEqual(caught.exception.status, 503)

    def test_calibrated_values_are_returned_unless_raw_ones_are_wanted(self):
        body = json.dumps({"sensor": "temperature", "points": [[0, 1], [100, 101]]}).encode()
        headers = {**self.web.bearer, "Content-Type": "application/json"}
        status, _, answer = self.web.request("POST", "/api/v1/nodes/cellar/calibrate", headers, body)
        self.assertEqual(status, 200, answer)
        query = "?node=cellar&sensor=temperature"
        calibrated, raw = ([row["temperature"] for row in self.json(query + more)] for more in ("", "&raw=1"))
        self.assertEqual([round(value - 1, 9) for value in calibrated], raw)


if __name__ == "__main__":
    unittest.main()
