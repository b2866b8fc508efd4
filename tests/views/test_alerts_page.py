"""Alerts page and its JSON interface: acknowledgement, test messages, rules, and who may do what."""

import html
import json
import re
import unittest

from pigeonpost.alerts.contract import ActiveAlert, AlertChannel, AlertMessage, AlertRule, Refused
from pigeonpost.alerts.notifier import Notifier
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import DiskError, SettingsError
from pigeonpost.views.alerts_page import read_rules_text, rules_text
from tests.alerts.fake_servers import MemoryQueue
from tests.page_support import use_memory_disk
from tests.web.support import WebHouse

HOT = ActiveAlert("a1", "hot", "value", "attic", "temperature", "critical", 1_795_188_000_000, "it is <41> °C")
TABLE = {"sensor": "temperature", "above": 40}


def setUpModule():
    use_memory_disk()


class FakeEngine:
    def __init__(self):
        self.alerts, self.tables, self.error = [HOT], [dict(TABLE)], None

    def active(self):
        return self.alerts

    def acknowledge(self, alert_id, user):
        self.alerts = [one._replace(acknowledged_by=user, acknowledged_ms=1_795_188_001_000) for one in self.alerts]
        return alert_id == "a1"

    def rules(self):
        return [AlertRule("silent", "settings", {"silent": 600}), AlertRule("dead-man", "default", {"silent": 3600}),
                *(AlertRule("rule", "page", table) for table in self.tables)]  # fmt: skip

    def set_rules(self, tables):
        if self.error:
            raise self.error
        self.tables = tables


class FakeChannel(AlertChannel):
    def __init__(self, key, error=None):
        self.key, self.place, self.error, self.taken = key, "server", error, []

    def send(self, message):
        if self.error:
            raise self.error
        self.taken.append(message)


class PageCase(unittest.TestCase):
    password = None

    def setUp(self):
        self.engine, clock = FakeEngine(), FakeClock()
        self.channels = [FakeChannel("mail:you@example.org"), FakeChannel("webhook", Refused("hook: status 404"))]
        self.queue = MemoryQueue(clock, "mail:you@example.org", "webhook")
        self.notifier = Notifier(self.channels, lambda: None, self.queue, clock)
        self.web = WebHouse(self, self.password, notifier=self.notifier, alerts=self.engine)
        self.session = self.web.log_in() if self.password else self.web.browser

    def get(self, path="/alerts", session=None, page=True):
        status, _, body = self.web.request("GET", path, session or self.session, html=page)
        self.assertEqual(status, 200, body)
        return html.unescape(body.decode())

    def post(self, path, session=None, **fields):
        session = session or self.session
        return self.web.post_form(path, {"csrf": self.web.csrf(session), **fields}, session)


class AlertsPage(PageCase):
    def test_page_shows_alerts_channels_messages_and_rules(self):
        self.queue.put([AlertMessage("Alert: <hot>", "", {}, "m1", "critical")])
        self.notifier.look()
        page = self.get()
        for words in ("it is <41> °C", "critical", "you@example.org", "Alert: <hot>", "sent to you@example.org",
                      "refused by webhook: hook: status 404", "silent = 600", "above = 40", "dead-man"):  # fmt: skip
            self.assertIn(words, page)
        self.assertNotIn("<41>", self.web.request("GET", "/alerts", self.session, html=True)[2].decode())

    def test_page_for_a_terminal_has_the_same_content(self):
        text = self.get(page=False)
        for words in ("critical  it is <41> °C", "you@example.org", '[[alert]]\nsensor = "temperature"\nabove = 40'):
            self.assertIn(words, text)

    def test_alert_is_acknowledged_once_and_by_name(self):
        self.assertIn('action="/alerts/a1/acknowledge"', self.get())
        status, headers, _ = self.post("/alerts/a1/acknowledge")
        self.assertEqual((status, headers["location"]), (303, "/alerts"))
        page = self.get()
        self.assertNotIn('action="/alerts/a1/acknowledge"', page)
        self.assertIn("acknowledged by", page)
        self.assertEqual(self.post("/alerts/other/acknowledge")[0], 404)

    def test_front_page_shows_active_alerts_until_they_are_acknowledged(self):
        self.engine.alerts = [HOT, HOT._replace(id="a2", text="it is dark")]
        words = "2 active alerts: it is <41> °C; and 1 more."
        self.assertIn(f'<a href="/alerts">{words}</a>', self.get("/"))
        self.assertIn(words, self.get("/", page=False))
        self.post("/alerts/a1/acknowledge")
        self.assertNotIn("active alert", self.get("/", page=False))

    def test_change_without_the_token_of_the_form_is_refused(self):
        for path in ("/alerts/a1/acknowledge", "/alerts/test", "/alerts/rules"):
            self.assertEqual(self.web.post_form(path, {"rules": ""}, self.session)[0], 403, path)
        self.assertEqual((self.engine.alerts, self.engine.tables, self.channels[0].taken), ([HOT], [TABLE], []))

    def test_test_message_is_sent_on_every_channel_and_answered(self):
        self.assertEqual(self.post("/alerts/test")[1]["location"], "/alerts#test")
        (message,) = self.channels[0].taken
        self.assertEqual((message.kind, message.subject), ("test", "Test message of house"))
        page = self.get()
        self.assertIn("you@example.org: accepted", page)
        self.assertIn("webhook: hook: status 404", page)

    def test_second_test_at_the_same_time_is_refused(self):
        with self.notifier._testing:
            self.assertEqual(self.post("/alerts/test")[0], 409)

    def test_rules_are_saved(self):
        text = '# comment\r\n[[alert]]\r\nnode = "attic"\r\nsilent = 60\r\n'
        status, headers, body = self.post("/alerts/rules", rules=text)
        self.assertEqual((status, headers.get("location")), (303, "/alerts?saved#rules"), body)
        self.assertEqual(self.engine.tables, [{"node": "attic", "silent": 60}])
        self.assertIn("silent = 60", re.search("<textarea.*?</textarea>", self.get("/alerts?saved"), re.S)[0])
        self.assertEqual(self.post("/alerts/rules", rules="")[0], 303)
        self.assertEqual(self.engine.tables, [])

    def test_invalid_rules_are_shown_again_with_the_line(self):
        for text, error, words in (
            ("[[alert]]\nabove = \n", None, "rules of the page, line 2"),
            ("[[alert]]\nabove = 1\nabove = 2\n", None, "rules of the page, line 3"),
            ("[mail]\nto = []\n", None, "'mail' is not allowed: write only [[alert]] tables here"),
            ("[alert]\nabove = 1\n", None, "write [[alert]] with two brackets"),
            ("[[alert]]\n\nabov = 1\n", SettingsError("rules of the page: [[alert]] 1: unknown key 'abov'"), "line 3"),
            (
                "[[alert]]\nabove = 'x'\n",
                SettingsError("rules of the page: [[alert]] 1: above takes a number"),
                "line 2",
            ),
        ):
            self.engine.error = error
            status, _, body = self.post("/alerts/rules", rules=text)
            page = html.unescape(body.decode())
            self.assertEqual(status, 400, page)
            self.assertIn(words, page)
            self.assertIn(f">\n{text}</textarea>", page)
        self.assertEqual(self.engine.tables, [TABLE])

    def test_rules_that_another_user_has_changed_are_not_overwritten(self):
        def state(page):
            return re.search('name="before" value="([^"]*)"', page)[1]

        mine = "[[alert]]\nsilent = 70\n"
        for other in ([], [{"silent": 60}], [TABLE, {"silent": 60}], [dict(TABLE, name="x")], [{"sensor": "a<b"}]):
            self.engine.tables, before = [dict(TABLE)], state(self.get())
            self.engine.tables = other
            status, _, body = self.post("/alerts/rules", rules="[[alert]", before=before)
            self.assertEqual((status, state(body.decode())), (400, before))
            status, _, body = self.post("/alerts/rules", rules=mine, before=before)
            page = html.unescape(body.decode())
            self.assertEqual((status, self.engine.tables), (409, other))
            self.assertIn("The present rules differ from those that you opened.", page)
            self.assertIn(f">\n{mine}</textarea>", page)
            self.assertIn(f"<pre>{rules_text([AlertRule('', 'page', table) for table in other])}</pre>", page)
            self.assertEqual(self.post("/alerts/rules", rules=mine, before=state(page))[0], 303)
            self.assertEqual(self.engine.tables, [{"silent": 70}])
            self.assertEqual(self.post("/alerts/rules", rules=mine, before=state(page))[0], 303)  # pressed twice

    def test_rules_that_cannot_be_stored_are_reported(self):
        self.engine.error = DiskError("disk full")
        self.assertEqual(self.post("/alerts/rules", rules="")[0], 503)

    def test_changes_are_in_the_event_log(self):
        self.post("/alerts/rules", rules="")
        self.post("/alerts/a1/acknowledge")
        events = self.get("/happenings", page=False)
        self.assertIn("the alert rules were changed by", events)
        self.assertRegex(events, r"acknowledged\s+by")

    def test_rules_survive_their_form(self):
        for table in (TABLE, {"node": 'a"b\\', "for": 0.5}, {"x": [1, "é"], "on": True}, {"s": "a\nb\t"}, {}):
            self.assertEqual(read_rules_text(rules_text([AlertRule("", "page", table)] * 2)), [table, table])
        self.assertEqual(read_rules_text(rules_text([])), [])


class Interface(PageCase):
    def api(self, body, session=None):
        headers = {**(session or self.web.bearer), "Content-Type": "application/json"}
        return self.web.request("POST", "/api/v1/alerts/acknowledge", headers, json.dumps(body).encode())

    def test_alerts_are_listed_as_json(self):
        found = json.loads(self.get("/api/v1/alerts"))
        self.assertEqual(found["active"][0], {
            "id": "a1", "rule": "hot", "kind": "value", "node": "attic", "sensor": "temperature",
            "severity": "critical", "since": "2026-11-20T15:20:00.000Z",
            "text": "it is <41> °C", "held": False, "acknowledged_by": "",
            "acknowledged": None,
        })  # fmt: skip
        self.assertEqual([one["origin"] for one in found["rules"]], ["settings", "default", "page"])
        self.assertEqual([one["channel"] for one in found["channels"]], ["you@example.org", "webhook"])

    def test_alert_is_acknowledged_by_a_program(self):
        self.assertEqual(self.api({"id": "a1"})[0], 200)
        self.assertTrue(self.engine.alerts[0].acknowledged_by)

    def test_invalid_acknowledgements_are_refused(self):
        for body, status in (({"id": "a2"}, 404), ({}, 400), ({"id": 1}, 400), ([], 400), ({"id": None}, 400)):
            self.assertEqual(self.api(body)[0], status, body)
        self.assertEqual(self.engine.alerts, [HOT])


class Viewer(PageCase):
    password = "correct horse"

    def setUp(self):
        super().setUp()
        self.web.users.set_password("guest", "battery staple", "viewer")
        self.guest = self.web.log_in("guest", "battery staple")

    def test_viewer_sees_alerts_without_buttons_and_addresses(self):
        self.channels[0].error = Refused("server: you@example.org: 550 no such user <you@example.org>")
        self.queue.put([AlertMessage("Alert: hot", "", {}, "m1")])
        self.notifier.look()
        page = self.get(session=self.guest)
        self.assertIn("server: (address): 550 no such user", page)
        self.assertIn("it is <41> °C", page)
        for words in ("you@example.org", 'action="/alerts', "<textarea"):
            self.assertNotIn(words, page)
        self.assertNotIn("you@example.org", self.get("/api/v1/alerts", session=self.guest))

    def test_viewer_can_change_nothing(self):
        for path in ("/alerts/a1/acknowledge", "/alerts/test", "/alerts/rules", "/api/v1/alerts/acknowledge"):
            self.assertEqual(self.post(path, self.guest, rules="")[0], 403, path)
        self.assertEqual((self.engine.alerts, self.engine.tables, self.channels[0].taken), ([HOT], [TABLE], []))


class WithoutChannel(unittest.TestCase):
    def test_page_states_that_no_alerts_are_sent(self):
        web = WebHouse(self)
        for page in (True, False):
            body = web.request("GET", "/alerts", web.browser, html=page)[2].decode()
            self.assertIn("No alerts are sent: there is no recipient", body)
        found = json.loads(web.request("GET", "/api/v1/alerts", web.browser)[2])
        self.assertEqual(found, {"active": [], "rules": [], "channels": [], "recent": []})
        csrf = web.csrf(web.browser)
        for path, status in (("/alerts/test", 409), ("/alerts/rules", 409), ("/alerts/x/acknowledge", 404)):
            self.assertEqual(web.post_form(path, {"csrf": csrf, "rules": ""}, web.browser)[0], status, path)


if __name__ == "__main__":
    unittest.main()
