"""`POST /api/v1/nodes/NAME/calibrate`, and calibrated values on pages, in charts, exports and the JSON API."""

import json
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock, rfc3339
from pigeonpost.views.chart import Charts
from pigeonpost.views.statistics import StatisticsReader
from protocol import Sample
from tests.page_support import set_zone, use_memory_disk
from tests.web.support import FakeLink, WebHouse


def setUpModule():
    use_memory_disk()


class CalibrationCase(unittest.TestCase):
    def setUp(self):
        set_zone(self, "Europe/Vienna")
        self.web = WebHouse(self, links=[FakeLink("basement", {"temperature": "V", "light": ""})])

    def post(self, content, status=200, node="basement"):
        headers = {**self.web.bearer, "Content-Type": "application/json"}
        found, _, body = self.web.request(
            "POST", f"/api/v1/nodes/{node}/calibrate", headers, json.dumps(content).encode()
        )
        self.assertEqual(found, status, body)
        return json.loads(body)

    def get(self, path, html=False):
        status, _, body = self.web.request("GET", path, self.web.bearer, html=html)
        self.assertEqual(status, 200, body)
        return body.decode()

    def load(self, path):
        return json.loads(self.get(path))

    def sensor(self):
        return self.load("/api/v1/nodes/basement")["sensors"][0]


class EveryAnswer(CalibrationCase):
    """One sensor, whose values are 1 V and 2 V, and 20 °C and 30 °C after calibration."""

    def setUp(self):
        super().setUp()
        self.web.store_samples("basement", [{"temperature": 1.0, "light": 1}, {"temperature": 2.0, "light": 2}],
                               {"temperature": "V", "light": ""})  # fmt: skip

    def test_all_answers_agree_before_and_after_a_calibration_and_after_its_removal(self):
        points = [[1, 20], [2, 30]]
        self.assert_values(1.0, 2.0, "V")
        answer = self.post({"sensor": "temperature", "points": points, "unit": "°C", "note": "<i>ice</i>"})
        self.assertEqual(answer, {"node": "basement", "sensor": "temperature", "replaced": None})
        self.assert_values(20.0, 30.0, "°C")
        given = self.sensor()["calibration"]
        self.assertEqual((given["from"], given["points"], given["unit"]), ("beginning", points, "°C"))
        self.assertIn("temperature: calibrated from beginning: 1=20 2=30", self.get("/happenings.csv"))
        page = self.get("/nodes/basement/temperature", html=True)
        for text in ("<h2>Calibration</h2>", "from the beginning (valid now)", "1 = 20 °C, 2 = 30 °C", "&lt;i&gt;ice",
                     "Raw value of the last sample: 2.0. "):  # fmt: skip
            self.assertIn(text, page)
        self.assertIn("calibration from the beginning: 1 = 20 °C, 2 = 30 °C (", self.get("/nodes/basement/temperature"))
        self.assertIn("newest first, without calibration", self.get("/log", html=True))
        self.assertIn("\nraw value of the last sample: 2.0\n", self.get("/nodes/basement/temperature"))
        self.assertEqual(self.load("/nodes/basement/temperature.json")["raw"], 2.0)
        self.assertEqual(self.post({"sensor": "temperature", "clear": True})["cleared"], 1)
        self.assert_values(1.0, 2.0, "V")
        self.assertIsNone(self.sensor()["calibration"])
        self.assertNotIn("<h2>Calibration</h2>", self.get("/nodes/basement/temperature", html=True))
        self.assertNotIn("without calibration", self.get("/log"))

    def assert_values(self, low, high, unit):
        """Check the values in all answers. The later sample has the value `high`."""
        found = self.sensor()
        self.assertEqual((found["value"], found["unit"], found["today"]["high"]), (high, unit, high))
        self.assertEqual(self.load("/api/v1/nodes/basement")["last_sample"]["values"]["temperature"], high)
        samples = "/api/v1/samples?node=basement&sensor=temperature"
        for path, wanted in ((samples, [low, high]), (f"{samples}&raw=1", [1.0, 2.0])):
            self.assertEqual([one["values"]["temperature"] for one in self.load(path)["samples"]], wanted)
        self.assertIn(f",temperature,{high}\n", self.get(f"{samples}&format=csv"))
        for path, ends in ((f"{samples}&step=1d", (low, high)), (f"{samples}&step=1d&raw=1", (1.0, 2.0))):
            columns = self.load(path)["columns"]
            self.assertEqual((columns[0]["low"], columns[-1]["high"]), ends)
        (series,) = self.load("/chart.json?node=basement&sensor=temperature")["series"]
        self.assertEqual(series["unit"], unit)
        self.assertIn(f",{high}", self.get("/chart.csv?node=basement&sensor=temperature"))
        page = self.load("/nodes/basement/temperature.json")
        self.assertEqual((page["value"], page["unit"], page["statistics"]["day"]["mean"]),
                         (high, unit, (low + high) / 2))  # fmt: skip
        self.assertIn(f'unit="{unit}"}} {high:g}', self.get("/metrics").replace(".0\n", "\n"))
        self.assertEqual(self.web.ingestor.latest["basement"].sample.values["temperature"], high)
        self.assertIn(f"{high:g} {unit}", self.get("/nodes/basement"))


class DatedCalibration(CalibrationCase):
    def test_chart_that_spans_the_date_shows_both_parts(self):
        now_ms = self.web.app.clock.wall_ms()
        noon_ms = now_ms // 3_600_000 * 3_600_000 - 43_200_000
        times = range(noon_ms - 3_600_000, noon_ms + 3_600_000, 60_000)
        samples = [
            Sample(seq, time_ms, seq * 1000, {"temperature": 10.0}, {}, "") for seq, time_ms in enumerate(times, 1)
        ]
        self.web.store_samples("basement", samples, {"temperature": "°C"})
        self.post({"sensor": "temperature", "points": [[0, 5]], "from": rfc3339(noon_ms + 1234)})
        path = "/api/v1/samples?node=basement&sensor=temperature&step=1h"
        columns = self.load(f"{path}&from={rfc3339(times[0])}&to={rfc3339(noon_ms + 3_600_000)}")["columns"]
        self.assertEqual([(one["low"], one["high"], one["count"]) for one in columns], [(10, 10, 60), (10, 15, 60)])
        self.assertAlmostEqual(columns[1]["mean"], (10 + 59 * 15) / 60)


class Requests(CalibrationCase):
    def setUp(self):
        super().setUp()
        self.web.store_samples("basement", [{"temperature": 1.0}])

    def test_invalid_requests_are_rejected_with_a_reason(self):
        one = [[0, 1]]
        for content, status, text in (
            ({}, 400, "`sensor` must be a string"),
            ({"sensor": "temperature"}, 400, "one of `points`, `remove` and `clear`"),
            ({"sensor": "temperature", "points": one, "clear": True}, 400, "one of `points`, `remove` and `clear`"),
            ({"sensor": "temperature", "clear": {}}, 400, "`clear` must be true or false"),
            ({"sensor": "temperature", "points": {"0": 1}}, 400, "`points` must be a list of pairs"),
            ({"sensor": "temperature", "points": [[1]]}, 400, "`points` must be a list of pairs"),
            ({"sensor": "temperature", "points": [["1", 2]]}, 400, "`points` must be a list of pairs"),
            ({"sensor": "temperature", "points": [[True, 2]]}, 400, "`points` must be a list of pairs"),
            ({"sensor": "temperature", "points": []}, 409, "1 to 64 points"),
            ({"sensor": "temperature", "points": [[1, 2], [1, 3]]}, 409, "the raw value 1 has two true values"),
            ({"sensor": "temperature", "points": [[10**400, 2]]}, 409, "must be from"),
            ({"sensor": "temperature", "points": one, "from": "noon"}, 400, '`from` must be "beginning" or a time'),
            ({"sensor": "temperature", "points": one, "from": 5}, 400, "`from` must be a string."),
            ({"sensor": "temperature", "points": one, "unit": 5}, 400, "`unit` must be a string"),
            ({"sensor": "temperature", "points": one, "note": "a\nb"}, 409, "a note must be one line"),
            ({"sensor": "temprature", "points": one}, 404, "did you mean temperature?"),
            ({"sensor": "temperature", "clear": True}, 404, "has no calibration"),
            ({"sensor": "temperature", "remove": "beginning"}, 404, "it has none"),
        ):
            with self.subTest(content=str(content)[:80]):
                self.assertIn(text, self.post(content, status)["error"]["text"])
        self.assertIn("did you mean basement?", self.post({"sensor": "x"}, 404, "basment")["error"]["text"])
        status, _, body = self.web.request("GET", "/api/v1/samples?raw=yes", self.web.bearer)
        self.assertEqual((status, b"`raw` must be 0 or 1." in body), (400, True))

    def test_calibration_requires_an_operator(self):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer wrong"}
        status, _, _ = self.web.request("POST", "/api/v1/nodes/basement/calibrate", headers, b"{}")
        self.assertIn(status, (401, 403))


class CachedAnswers(unittest.TestCase):
    def test_statistics_made_during_a_change_are_not_cached(self):
        reader = StatisticsReader(None, FakeClock())
        with mock.patch.object(reader, "_calculated") as calculated:
            calculated.side_effect = lambda *_: reader.forget("a")
            reader.of("a", "t", 0, 1000)
            calculated.side_effect = None
            reader.of("a", "t", 0, 1000)
            reader.of("a", "t", 0, 1000)
        self.assertEqual(calculated.call_count, 2)

    def test_chart_made_during_a_change_is_not_cached(self):
        clock = FakeClock()
        charts, context = Charts(clock), mock.Mock(**{"app.clock": clock})
        asked = mock.Mock(names=(), from_ms=0, to_ms=1000), mock.Mock(columns=10)
        first = mock.Mock(side_effect=lambda: charts.forget("a") or 1)
        found = [charts._once(context, "svg", *asked, make) for make in (first, lambda: 2, lambda: 3)]
        self.assertEqual(found, [1, 2, 2])


if __name__ == "__main__":
    unittest.main()
