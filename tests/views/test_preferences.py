"""Preferences of users: storage, limits, privacy; displayed units on all pages, measured units in all data."""

import html
import http.client
import json
import os
import re
import stat
import unittest
from types import MappingProxyType
from unittest import mock

from pigeonpost.core import json_file
from pigeonpost.core.errors import DiskError
from pigeonpost.core.faults import Faults
from pigeonpost.http.message import HTTPError
from pigeonpost.views import preferences
from pigeonpost.views.preferences import DEFAULTS, Preferences, PreferenceStore
from protocol import Sample
from tests.page_support import Afternoon, set_zone, use_memory_disk
from tests.support import LIMIT_S, temp_folder
from tests.web.support import FakeLink, WebHouse

UNITS = {"temperature": "°C", "humidity": "%"}


def setUpModule():
    use_memory_disk()


class Store(unittest.TestCase):
    def setUp(self):
        self.folder, self.faults = temp_folder(self), Faults()
        self.store = PreferenceStore(self.folder, self.faults)
        self.path = os.path.join(self.folder, "preferences.json")
        self.some = Preferences(
            MappingProxyType({"°C": "°F"}), ("shed/light", "shed/load"), frozenset(("shed/load",)), "shed"
        )

    def put(self, user, wanted):
        self.store.save(user, lambda preferences: wanted)

    def test_preferences_survive_a_restart(self):
        self.assertEqual(self.store.of("anna"), DEFAULTS)
        self.put("anna", self.some)
        for store in (self.store, PreferenceStore(self.folder, self.faults)):
            self.assertEqual(store.of("anna"), self.some)
            self.assertEqual(store.of("ben"), DEFAULTS)

    def test_change_is_applied_to_the_stored_preferences(self):
        self.put("anna", self.some)
        for key in ("shed/light", "shed/dew"):
            other = PreferenceStore(self.folder)
            other.save("anna", lambda kept, key=key: kept._replace(folded={*kept.folded, key}))
        self.assertEqual(self.store.of("anna"), self.some._replace(folded={"shed/load", "shed/light", "shed/dew"}))

    def test_unchanged_preferences_are_not_written(self):
        self.put("anna", self.some)
        with mock.patch.object(json_file, "replace_file", side_effect=AssertionError("the file was written")):
            self.put("anna", self.some)
            self.put("ben", DEFAULTS)

    def test_file_is_readable_by_its_owner_only(self):
        self.put("anna", self.some)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)

    def test_preferences_of_one_time_key_and_this_machine_are_shared(self):
        self.put("one-time key", self.some)
        self.assertEqual(self.store.of("this machine"), self.some)

    def test_preferences_changed_longest_ago_are_deleted_if_there_are_too_many_users(self):
        with mock.patch.object(preferences, "MOST_USERS", 3):
            for place, user in enumerate(("anna", "ben", "anna", "carl", "dora")):
                self.put(user, self.some._replace(node=f"n{place}"))
        self.assertEqual([self.store.of(user).node for user in ("anna", "ben", "carl", "dora")], ["n2", "", "n3", "n4"])

    def test_invalid_and_excess_entries_are_not_saved(self):
        order = ("shed/light", "<b>/x", "../../etc", "shed/light", "shed", *(f"n/s{k}" for k in range(5000)))
        units = MappingProxyType({"°C": "parsec", "hPa": "inHg"})
        self.put("anna", Preferences(units, order, frozenset(order), "<b>"))
        found = self.store.of("anna")
        self.assertEqual((found.units, found.node), ({"hPa": "inHg"}, ""))
        self.assertEqual(found.order[:2], ("shed/light", "n/s0"))
        self.assertLessEqual(len(found.order), preferences.MOST_SENSORS)
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(len(json.load(file)["anna"]["order"]), preferences.MOST_SENSORS)

    def test_damaged_file_is_replaced_by_its_backup(self):
        self.put("anna", self.some)
        for content in (b"", b"[]", b'{"anna": 5}', b'{"anna": {"units": [], "order": 5, "folded": 3}}', b"\xff"):
            with open(self.path, "wb") as file:
                file.write(content)
            with self.assertLogs(json_file.__name__, "ERROR"):
                self.assertEqual(PreferenceStore(self.folder, self.faults).of("anna"), self.some, content)
            self.assertEqual(self.faults.present(), {})

    def test_defaults_are_used_and_a_fault_is_shown_without_a_valid_backup(self):
        for name in ("preferences.json", "preferences.json.bak"):
            with open(os.path.join(self.folder, name), "wb") as file:
                file.write(b"{")
        store = PreferenceStore(self.folder, self.faults)
        with self.assertLogs("pigeonpost.core.faults", "ERROR"):
            self.assertEqual(store.of("anna"), DEFAULTS)
        self.assertIn("preferences.json", self.faults.present())
        with self.assertRaisesRegex(HTTPError, "Nothing was changed"):
            store.save("anna", lambda preferences: self.some)

    def test_preferences_stay_unchanged_if_the_disk_is_full(self):
        self.put("anna", self.some)
        full = mock.patch.object(json_file, "replace_file", side_effect=DiskError("preferences.json: No space left"))
        with full, self.assertRaisesRegex(HTTPError, "No space left") as raised:
            self.put("anna", DEFAULTS)
        self.assertEqual(raised.exception.status, 503)
        self.assertEqual(self.store.of("anna"), self.some)


class UnitsCase(unittest.TestCase):
    password: str | None = None

    def setUp(self):
        set_zone(self, "UTC")
        self.link = FakeLink("shed", UNITS)
        self.link.state.sensors[0]["limits"] = {"low": 0, "high": 24, "jump": 2}
        self.link.state.details = {"machine": {"cpu_temperature": 50}}
        self.web = WebHouse(self, self.password, links=[self.link], clock=Afternoon())
        now_ms = self.web.app.clock.wall_ms()
        self.web.store_samples("shed", [
            Sample(1, now_ms - 60_000, 1000, {"temperature": 20.0, "humidity": 40}, {}, ""),
            Sample(2, now_ms - 59_000, 2000, {"temperature": 25.0, "humidity": 45}, {}, ""),
        ], UNITS)  # fmt: skip
        self.session = self.web.log_in() if self.password else self.web.browser

    def post(self, path, session=None, **fields):
        session = session or self.session
        return self.web.post_form(path, {"csrf": self.web.csrf(session), **fields}, session)

    def choose(self, **more):
        answer = self.post("/settings", **{"unit:°C": "°F"}, **more)
        self.assertEqual((answer[0], answer[1].get("location")), (303, "/settings?saved"), answer[2])

    def get(self, path, wants_html=True, session=None, status=200):
        found, _, body = self.web.request("GET", path, session or self.session, html=wants_html)
        self.assertEqual(found, status, body[:300])
        return html.unescape(body.decode())


class ChosenUnits(UnitsCase):
    def test_form_shows_the_selected_units(self):
        page = self.get("/settings")
        self.assertIn('<option value="°C" selected>°C</option>', page)
        self.assertIn('<a href="/settings" aria-current="page">Preferences</a>', page)
        self.choose()
        page = self.get("/settings?saved")
        self.assertIn('<option value="°F" selected>°F</option>', page)
        self.assertIn('role="status">Saved.', page)
        self.assertIn("°C      shown in °F", self.get("/settings", wants_html=False))

    def test_units_of_all_sensors_are_offered_without_reading_their_samples(self):
        self.web.store_samples("cellar", [{"pressure": 5}], {"pressure": "psi"})  # a former node
        self.link.state.sensors += [{"name": "wind", "unit": "km/h"}]
        self.web.web._snapshots.invalidate()
        with mock.patch.object(self.web.store, "downsample_all", side_effect=AssertionError("the samples were read")):
            page = self.get("/settings")
        for unit in ("km/h", "psi"):
            self.assertIn(f"Measured in {unit}, shown in", page)

    def test_selecting_the_measured_unit_removes_the_preference(self):
        self.choose()
        self.post("/settings", **{"unit:°C": "°C"})
        self.assertIn('<span class="unit">°C</span>', self.get("/nodes/shed/temperature"))
        with open(os.path.join(self.web.folder, "preferences.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["this machine"]["units"], {})

    def test_unknown_units_are_not_saved(self):
        self.post("/settings", **{"unit:°C": "<script>", "unit:parsec": "m", "other": "x"})
        self.assertEqual(self.web.web._preferences.of("this machine").units, {})

    def test_sensor_page_uses_the_selected_unit(self):
        self.choose()
        page = self.get("/nodes/shed/temperature")
        self.assertIn('<b data-live="shed/temperature">77</b> <span class="unit">°F</span>', page)
        self.assertIn('<span class="odd">above 75.2 °F</span>', page)
        self.assertIn('<span class="odd">jumped by 9 °F</span>', page)  # 5 °C × 1.8, without offset
        self.assertIn("32 to 75.2 °F; change of at most 3.6 °F per second", page)
        self.assertIn('<td data-label="mean">72.5 °F</td>', page)
        self.assertIn('<td data-label="standard deviation">4.5 °F</td>', page)  # 2.5 °C
        self.assertIn('<td data-label="lowest">68 °F, ', page)
        self.assertIn("temperature of shed: 77 °F", self.get("/nodes/shed/temperature", wants_html=False))

    def test_node_page_uses_the_selected_unit(self):
        self.web.ingestor.received_s["shed"] -= 600  # late, so that its state is not about the sensor
        self.web.web._snapshots.invalidate()
        self.choose()
        page = self.get("/nodes/shed")
        self.assertRegex(page, r'data-live="shed/temperature"[^>]*>77</b> <span class="unit">°F')
        self.assertRegex(page, r'data-live="shed/humidity"[^>]*>45</b> <span class="unit">%')
        self.assertIn("CPU temperature 122 °F", page)
        self.assertNotIn("°C", page)

    def test_log_check_uses_the_selected_unit(self):
        self.choose()
        self.assertIn("temperature 77 °F, humidity 45 %", self.get("/log"))
        self.assertIn("temperature 77 °F, humidity 45 %", self.get("/log", wants_html=False))

    def test_charts_use_the_selected_unit(self):
        before = self.get("/chart.svg?series=shed/temperature")  # drawn and cached
        self.assertIn("temperature, °C", before)
        self.choose()
        for path in ("/chart.svg?series=shed/temperature", "/chart?series=shed/temperature"):
            self.assertIn("From 68 to 77, mean 72.5 °F", self.get(path), path)
        self.assertIn("temperature, °F", self.get("/chart.svg?series=shed/temperature"))
        self.assertIn('<td data-label="standard deviation">4.5 °F</td>', self.get("/chart?series=shed/temperature"))

    def test_chart_json_with_units_shown_uses_the_selected_unit(self):
        self.choose()
        shown = json.loads(self.get("/chart.json?series=shed/temperature&units=shown"))["series"][0]
        self.assertEqual((shown["unit"], shown["columns"][-1]["high"]), ("°F", 77))

    def test_data_formats_keep_the_measured_unit(self):
        self.choose()
        plain = json.loads(self.get("/chart.json?series=shed/temperature"))["series"][0]
        self.assertEqual((plain["unit"], plain["columns"][-1]["high"]), ("°C", 25))
        self.assertRegex(self.get("/chart.csv?series=shed/temperature"), r"shed,temperature,\d,[0-9.]+,25\.0,")
        self.assertRegex(self.get("/log.csv"), r"shed,temperature,25\.0,°C")
        about = json.loads(self.get("/nodes/shed/temperature.json"))
        self.assertEqual((about["unit"], about["value"], about["limits"]["high"]), ("°C", 25, 24))
        self.assertEqual(about["verdicts"][0]["text"], "above 24 °C")
        self.assertIn('"unit":"°C"', self.get("/api/v1/nodes/shed").replace(": ", ":"))
        self.assertRegex(self.get("/metrics"), r'pigeonpost_reading\{[^}]*unit="°C"[^}]*\} 25')

    def test_series_with_the_same_displayed_unit_share_an_axis(self):
        self.link.state.sensors += [{"name": "other", "unit": "°F"}, {"name": "load", "unit": ""}]
        self.web.store_samples("shed", [{"temperature": 25.0, "humidity": 45, "other": 50.0, "load": 1.0}],
                               {**UNITS, "other": "°F", "load": ""})  # fmt: skip
        path = "/chart.svg?series=shed/temperature,shed/other,shed/humidity"
        self.get(path, status=400)
        self.choose()
        self.assertIn("</svg>", self.get(path))

    def test_live_values_use_the_selected_unit(self):
        link = http.client.HTTPConnection(*self.web.address, timeout=LIMIT_S)
        self.addCleanup(link.close)
        link.request("GET", "/events", headers=self.session)
        stream = link.getresponse()
        self.addCleanup(stream.close)

        def value():
            while True:
                line = stream.readline().decode()
                if line.startswith("data:"):
                    return json.loads(line[5:])["samples"][0]["values"]["temperature"]

        self.assertEqual(value(), "25 °C")
        self.choose()
        self.web.store_samples("shed", [{"temperature": 20.0, "humidity": 45}], UNITS)
        self.assertEqual(value(), "68 °F")

    def test_reset_restores_the_front_page_and_keeps_the_units(self):
        store = self.web.web._preferences
        some = Preferences(MappingProxyType({"°C": "°F"}), ("shed/light",), frozenset(("a/b",)))
        store.save("this machine", lambda preferences: some)
        self.assertEqual(self.post("/settings/reset")[0], 303)
        self.assertEqual(store.of("this machine"), Preferences(MappingProxyType({"°C": "°F"})))

    def test_preferences_cannot_be_changed_without_the_key(self):
        page = self.web.request("GET", "/settings", html=True)[2].decode()  # from this machine, without the key
        self.assertRegex(page, r"<button[^>]* disabled>Save</button>")
        self.assertEqual(self.web.request("POST", "/settings")[0], 403)
        self.assertEqual(self.web.post_form("/settings", {"csrf": "wrong", "unit:°C": "°F"}, self.session)[0], 403)
        self.assertEqual(self.web.web._preferences.of("this machine"), DEFAULTS)


class WithPasswords(UnitsCase):
    password = "correct horse"

    def test_each_user_has_separate_preferences(self):
        self.web.users.set_password("anna", "battery staple", "viewer")
        answer = self.web.post_form("/login", {"user": "anna", "password": "battery staple"})
        anna = {"Cookie": str(answer[1]["set-cookie"]).partition(";")[0]}
        self.choose()
        self.assertIn("77 °F", self.get("/log"))
        self.assertIn("25 °C", self.get("/log", session=anna))
        self.assertIn("These preferences apply to anna.", self.get("/settings", session=anna))
        self.assertEqual(self.post("/settings", anna, **{"unit:°C": "K"})[0], 303)  # allowed for viewers, too
        self.assertIn("298.1 K", re.sub(r"298\.\d+ K", "298.1 K", self.get("/log", session=anna)))
        self.assertIn("77 °F", self.get("/log"))

    def test_control_py_gets_the_measured_units(self):
        self.choose()
        self.assertIn("25 °C", self.get("/log", session=self.web.bearer))


if __name__ == "__main__":
    unittest.main()
