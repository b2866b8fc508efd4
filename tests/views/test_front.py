"""Front page: six buttons with a node selector, cards, movable charts, and thousands of nodes."""

import contextlib
import re
import time
import unittest
from types import SimpleNamespace
from unittest import mock
from urllib.parse import parse_qs, urlsplit

from pigeonpost.charts import sparkline
from pigeonpost.core import json_file
from pigeonpost.core.errors import DiskError
from pigeonpost.server.node_status import NodeState
from pigeonpost.views import front_charts, preferences
from pigeonpost.views.dashboard import CARDS_OF_MANY
from pigeonpost.views.front_charts import default_span
from pigeonpost.views.front_query import FrontQuery, read_query
from pigeonpost.views.models import SensorView
from pigeonpost.views.node_table import PAGE_NODES
from pigeonpost.views.preferences import PreferenceStore
from protocol import Sample
from tests.page_support import use_memory_disk
from tests.web.support import FakeLink, WebHouse

UNITS = {"temperature": "°C", "light": "counts"}
DAY_MS = 86_400_000


def setUpModule():
    use_memory_disk()


class FrontCase(unittest.TestCase):
    names = ("attic", "basement")
    password = None

    def setUp(self):
        self.links = [FakeLink(name, UNITS) for name in self.names]
        for link in self.links:
            link.state.takes_orders = True
        self.web = WebHouse(self, self.password, links=self.links)
        for name in self.names:
            self.web.store_samples(name, [{"temperature": 18.5, "light": 5}], UNITS)

    def page(self, path="/", status=200, browser=True):
        found, _, body = self.web.request("GET", path, self.web.browser if browser else None, html=True)
        self.assertEqual(found, status, body[:300])
        return body.decode()

    def text(self, path="/"):
        return self.web.request("GET", path)[2].decode()

    def post(self, path, status=303, **fields):
        browser = self.web.browser
        found, headers, body = self.web.post_form(path, {"csrf": self.web.csrf(browser), **fields}, browser)
        self.assertEqual(found, status, body[:300])
        return headers.get("location", ""), body.decode()

    def chosen(self, page):
        return re.search(r"<option selected>([^<]+)</option>", page)[1]

    def charts(self, page):
        return re.findall(r'data-chart="([^"]+)"', page)


class NodeSelector(FrontCase):
    def test_several_nodes_share_one_row_of_six_buttons(self):
        page = self.page()
        row = re.search(r'<div class="buttons" data-piece="buttons">.*?</div>', page, re.S)[0]
        labels = re.findall(r">([^<>]+)</(?:button|a)>", row)
        wanted = ["Choose", "Sensor On", "Sensor Off", "Status", "Log Check", "Log Download", "Exit"]
        self.assertEqual(labels, wanted)
        self.assertEqual(re.findall(r"<option[^>]*>([^<]+)", row), ["attic", "basement"])
        self.assertEqual(self.chosen(page), "attic")

    def test_buttons_show_the_state_of_the_selected_node(self):
        self.links[1].state.connected = False
        self.web.web._snapshots.invalidate()
        for node, count in (("attic", 0), ("basement", 3)):
            own = re.search(r'<span class="own".*?</span>', self.page(f"/?node={node}"), re.S)[0]
            self.assertEqual(own.count('title="Disabled: the node is not connected" disabled'), count, node)

    def test_button_acts_on_the_selected_node(self):
        where, _ = self.post("/nodes", node="basement", do="off")
        self.assertEqual(where, "/nodes/basement?notice=off")
        self.assertEqual((self.links[0].asked, self.links[1].asked), ([], [("SEND", False)]))
        self.post("/nodes", node="basement", do="on")
        self.post("/nodes", node="attic", do="status")
        self.assertEqual((self.links[0].asked, self.links[1].asked[-1]), ([("CHECK",)], ("SEND", True)))

    def test_selected_node_is_saved(self):
        where, _ = self.post("/nodes", node="basement", do="choose", back="span=7d")
        self.assertEqual(where, "/?span=7d&node=basement")
        self.assertEqual(self.chosen(self.page()), "basement")
        self.assertEqual(self.chosen(self.page("/?node=attic")), "attic")

    def test_buttons_work_while_the_disk_is_full(self):
        full = DiskError("preferences.json: No space left on device")
        with mock.patch.object(json_file, "replace_file", side_effect=full):
            with self.assertLogs("pigeonpost.views.node_buttons", "WARNING") as logged:
                where, _ = self.post("/nodes", node="basement", do="off")
            _, page = self.post("/nodes", 503, node="basement", do="choose")
        self.assertEqual((where, self.links[1].asked), ("/nodes/basement?notice=off", [("SEND", False)]))
        self.assertIn("No space left on device", logged.output[0])
        self.assertIn("No space left on device", page)  # here the selection was the only action

    def test_unchanged_selection_is_not_written_again(self):
        self.post("/nodes", node="basement", do="off")
        with mock.patch.object(json_file, "replace_file", side_effect=AssertionError("the file was written")):
            for action in ("on", "choose"):
                self.post("/nodes", node="basement", do=action)

    def test_unknown_nodes_and_actions_are_rejected(self):
        self.post("/nodes", 404, node="cellar", do="on")
        self.post("/nodes", 404, do="on")
        self.post("/nodes", 400, node="basement", do="explode")
        self.assertEqual(self.chosen(self.page()), "attic")
        self.assertEqual(self.links[0].asked, [])

    def test_node_selector_is_disabled_without_the_key(self):
        page = self.page(browser=False)
        row = re.search(r'<div class="buttons" data-piece="buttons">.*?</div>', page, re.S)[0]
        self.assertEqual((row.count("<select"), row.count(" disabled>")), (1, 6))

    def test_first_node_is_selected_if_the_selected_one_is_gone(self):
        self.post("/nodes", node="basement", do="choose")
        del self.web.links[1]
        self.web.web._snapshots.invalidate()
        page = self.page()
        self.assertNotIn("<select", page)  # one node is left, so there is no selector
        self.assertIn('action="/nodes/attic/on"', page)


class Cards(FrontCase):
    names = ("basement",)

    def test_card_shows_the_age_of_its_value(self):
        self.assertRegex(self.page(), r'<span class="age" data-time="\d+">\d s ago</span></span></a>')

    def test_age_is_calculated_with_the_server_s_clock(self):
        self.links[0].state.offset_ms = 90_000
        now_ms = self.web.app.clock.wall_ms()
        self.web.store_samples("basement", [Sample(2, now_ms + 80_000, 9000, {"temperature": 20, "light": 1}, {}, "")])
        self.assertIn(f'data-time="{now_ms - 10_000}" data-shift="90000">10 s ago<', self.page())

    def test_card_of_a_failed_sensor_shows_reason_and_start(self):
        self.web.store_samples("basement", [{"temperature": None, "light": 7}])
        page = self.page()
        self.assertRegex(
            page, r'<span class="fault">no reading</span><span class="foot"><span class="since">since \d\d:\d\d<'
        )
        self.assertRegex(page, r'<h1 class="verdict wait"[^>]*>Sensor temperature of basement: no reading; last sample')
        self.assertRegex(page, r'data-label="state"><span class="wait">temperature: no reading</span>')
        self.assertEqual(page.count('class="card failing"'), 1)

    def test_old_values_of_a_node_that_is_off_are_not_shown_as_faults(self):
        state, now_ms = self.links[0].state, self.web.app.clock.wall_ms()
        state.on, state.offset_ms = False, -3_600_000
        old = Sample(2, now_ms - 7_200_000, 9000, {"temperature": 20, "light": 1}, {}, "")
        self.web.store_samples("basement", [old])
        page = self.page()
        self.assertEqual(page.count('class="card resting"'), 2)
        self.assertNotIn('class="card stale"', page)
        self.assertIn('60 min ago</span><span class="tag">switched off</span></span></a>', page)
        self.assertIn("switched off", self.text().splitlines()[5])

    def test_sensor_without_samples_is_not_shown_as_a_fault(self):
        self.web.links.append(FakeLink("shed", {"light": "counts"}))
        page = self.page()
        self.assertRegex(page, r'<a class="card resting" href="/nodes/shed/light">.*>no sample yet<')
        self.assertNotIn('class="card failing"', page)

    def test_headline_of_a_silent_node_contains_one_age(self):
        state = self.links[0].state
        state.since_ms -= 3_600_000
        state.awaited_s = time.monotonic() - 3600
        self.web.ingestor.received_s["basement"] -= 600
        page = self.page()
        self.assertRegex(
            page, r'<h1 class="verdict bad"[^>]*>Node basement is connected, but has sent nothing for 10 min\.</h1>'
        )
        self.assertIn("but has sent nothing for 10 min.\n", self.text())

    def test_headline_shows_no_age_of_other_nodes_after_a_lost_node(self):
        lost = r"Node basement cannot be reached since \d\d:\d\d: Connection refused"
        state = self.links[0].state
        state.connected, state.fault = False, "cannot be reached: Connection refused"
        self.assertRegex(self.page(), f'<h1 class="verdict bad"[^>]*>{lost}; last sample <span')  # its own
        self.web.links.append(FakeLink("attic", UNITS))
        self.web.store_samples("attic", [{"temperature": 18.5, "light": 5}], UNITS)
        lost = f"1 of 2 nodes is not reporting: {lost[5:]}"
        self.assertRegex(self.page(), rf'<h1 class="verdict bad"[^>]*>{lost}\.</h1>')
        self.assertRegex(self.text(), rf"(?m)^{lost}\.$")

    def test_label_replaces_the_name_of_a_sensor(self):
        names = self.web.ingestor.names
        names._records = names._records._replace(labels={("basement", "temperature"): "Wine <shelf>"})
        self.web.web._snapshots.invalidate()
        page = self.page()
        self.assertIn('<span class="name" title="temperature">Wine &lt;shelf&gt;</span>', page)
        self.assertIn('alt="Wine &lt;shelf&gt; of basement, last 10 minutes"', page)

    def test_card_contains_lowest_and_highest_value_for_the_script(self):
        page = self.page()
        self.assertRegex(page, r'data-zone="-?\d+"')
        self.assertRegex(page, r'data-low="18\.5" data-high="18\.5">low 18\.5 at \d\d:\d\d<br>high')

    def test_delivered_samples_are_not_counted_as_waiting_in_the_outbox(self):
        self.links[0].state.details = {"held": 65_536, "slots": 65_536, "waiting": 120}
        self.web.web._snapshots.invalidate()
        self.assertIn('data-label="unsent">none<', self.page())
        self.assertRegex(self.text(), r"basement  reporting +none +none\n")


class RetiredNodes(FrontCase):
    def test_retired_node_is_only_listed_below_the_others(self):
        names = self.web.ingestor.names
        names._records = names._records._replace(retired={"attic": 1_795_188_970_123})
        self.web.web._snapshots.invalidate()
        page = self.page()
        self.assertIn('<p class="retired">1 retired node: <a href="/nodes/attic">attic</a></p>', page)
        self.assertEqual(page.count("attic"), 2)
        self.assertIn("Node basement is reporting", page)
        self.assertNotIn("attic", self.text())
        self.assertIn("retired on 20 Nov 2026", self.page("/nodes/attic"))


class Charts(FrontCase):
    def test_front_page_has_one_chart_per_sensor(self):
        self.assertEqual(
            self.charts(self.page()), ["attic/temperature", "attic/light", "basement/temperature", "basement/light"]
        )
        self.assertEqual(self.page().count('loading="lazy"'), 4)

    def test_order_of_moved_charts_is_saved(self):
        where, _ = self.post("/charts", up="basement/light", back="node=attic")
        self.assertEqual(where, "/?node=attic#charts")
        wanted = ["attic/temperature", "attic/light", "basement/light", "basement/temperature"]
        self.assertEqual(self.charts(self.page()), wanted)
        self.post("/charts", down="attic/temperature")
        wanted = ["attic/light", "attic/temperature", "basement/light", "basement/temperature"]
        self.assertEqual(self.charts(self.page()), wanted)
        self.post("/charts", up="attic/light")  # it is already the first chart
        self.assertEqual(self.charts(self.page()), wanted)

    def test_simultaneous_changes_by_two_processes_are_both_saved(self):
        other, locked = PreferenceStore(self.web.folder), preferences.changes_locked
        for fields, change in (
            ({"fold": "attic/light"}, lambda kept: kept._replace(folded=kept.folded | {"basement/light"})),
            ({"up": "attic/light"}, lambda kept: kept._replace(order=("basement/light", *kept.order))),
        ):

            @contextlib.contextmanager
            def after_another(folder, change=change):
                with mock.patch.object(preferences, "changes_locked", locked):
                    other.save("this machine", change)
                with locked(folder):
                    yield

            with mock.patch.object(preferences, "changes_locked", after_another):
                self.post("/charts", **fields)
        found = other.of("this machine")
        self.assertEqual(found.folded, {"attic/light", "basement/light"})
        self.assertEqual(found.order[:3], ("basement/light", "attic/light", "attic/temperature"))

    def test_hidden_chart_is_not_drawn_until_it_is_shown_again(self):
        self.post("/charts", fold="attic/light")
        page = self.page()
        self.assertIn('<div class="chart folded" data-chart="attic/light">', page)
        self.assertEqual((len(self.charts(page)), page.count("<img")), (4, 3))
        self.post("/charts", unfold="attic/light")
        self.assertEqual(self.page().count("<img"), 4)

    def test_first_chart_cannot_move_up_and_last_chart_cannot_move_down(self):
        page = self.page()
        for action in ("up", "down"):
            self.assertEqual(page.count(f'name="{action}"'), 3)

    def test_invalid_chart_actions_are_rejected(self):
        for fields in ({}, {"up": "attic/nothing"}, {"explode": "attic/light"}):
            self.post("/charts", 400, **fields)

    def test_selected_time_range_applies_to_all_charts(self):
        page = self.page("/?span=7d")
        self.assertEqual(page.count("span=7d&amp;size=small"), 4)
        self.assertIn('<a href="/?span=7d#charts" aria-current="true">week</a>', page)
        self.assertEqual(self.page("/?span=99y").count("span=10m&amp;size=small"), 4)

    def test_charts_have_no_buttons_without_the_key(self):
        self.assertNotIn('class="tool"', self.page(browser=False))


class DefaultTimeRange(unittest.TestCase):
    def test_default_time_range_of_a_chart_contains_samples(self):
        now_ms = 1_795_188_970_123
        one = SensorView("attic", "light", "", 0, False, 5, "", now_ms, False, None, None, None, [(0, 1, 5, 5, 5)],
                         10_000, 600_000, taken_ms=now_ms, now_ms=now_ms)  # fmt: skip
        for age_ms, has_columns, span_ms, span in (
            (0, True, 600_000, "10m"), (0, True, 3_600_000, "1h"), (0, True, DAY_MS, "24h"),
            (99 * DAY_MS, False, DAY_MS, "366d"), (2 * DAY_MS, False, DAY_MS, "7d"),
            (20 * DAY_MS, False, DAY_MS, "30d"),
        ):  # fmt: skip
            sensor = one._replace(columns=one.columns if has_columns else [], span_ms=span_ms, taken_ms=now_ms - age_ms)
            self.assertEqual(default_span(sensor), span)


class QueryParameters(unittest.TestCase):
    def test_invalid_query_parameters_are_ignored(self):
        self.assertEqual(read_query({}), FrontQuery())
        wrong = {"q": " " * 99, "state": "x", "page": "-1", "span": "1", "node": "a b"}
        self.assertEqual(read_query(wrong), FrontQuery())
        self.assertEqual([read_query({"page": page}).page for page in ("0", "7", "99999", "²", "1e3")], [1, 7, 1, 1, 1])

    def test_address_contains_only_parameters_that_differ_from_the_defaults(self):
        query = read_query({"q": "a&b", "page": "3", "span": "7d"})
        self.assertEqual(query.path(), "/?q=a%26b&page=3&span=7d")
        self.assertEqual(query.path(page=1, q=""), "/?span=7d")
        self.assertEqual(read_query({}).path(), "/")
        self.assertEqual(parse_qs(urlsplit(query.path()).query), {"q": ["a&b"], "page": ["3"], "span": ["7d"]})


class ManyNodes(unittest.TestCase):
    """More nodes than one page shows."""

    COUNT = 120

    @classmethod
    def setUpClass(cls):
        cls.enterContext = cls.enterClassContext  # the server stops after the class, not after a test
        cls.addCleanup = cls.addClassCleanup
        try:
            links = [SimpleNamespace(state=cls.state_of(number)) for number in range(cls.COUNT)]
            cls.web = WebHouse(cls, links=links)
        finally:
            del cls.addCleanup, cls.enterContext
        cls.web.store_samples("n005", [{"t": 1.5}], {"t": "V"})
        cls.web.store_samples("n100", [{"t": None}], {"t": "V"})

    @classmethod
    def state_of(cls, number):
        state = NodeState(f"10.0.0.{number}:5003", f"n{number:03d}")
        state.connected, state.on, state.since_ms = number != 77, True, 1
        state.fault = "" if state.connected else "closed"
        state.sensors = [{"name": "t", "unit": "V"}]
        return state

    def get(self, path="/", html=True):
        status, _, body = self.web.request("GET", path, self.web.browser if html else None, html=html)
        self.assertEqual(status, 200)
        return body.decode()

    def rows(self, page):
        return re.findall(r'<tr><td data-label="node"><a href="/nodes/([^"]+)">', page)

    def test_nodes_with_faults_are_listed_first_and_a_page_has_fifty_nodes(self):
        rows = self.rows(self.get())
        self.assertEqual((len(rows), rows[:3]), (PAGE_NODES, ["n077", "n100", "n000"]))
        second, third = self.rows(self.get("/?page=2")), self.rows(self.get("/?page=3"))
        self.assertEqual((len(second), len(third)), (PAGE_NODES, self.COUNT - 2 * PAGE_NODES))
        self.assertEqual(third[-1], "n005")  # the only node that reports
        self.assertEqual(len({*rows, *second, *third}), self.COUNT)
        self.assertEqual(self.rows(self.get("/?page=9999")), third)

    def test_counts_by_state_are_links_to_these_nodes(self):
        page = self.get()
        counts = re.findall(r'<a href="(/\?state=\w+)"><b>(\d+)</b> ([^<]+)</a>', page)
        self.assertEqual(counts, [
            ("/?state=lost", "1", "not reporting"), ("/?state=trouble", "1", "with a fault"),
            ("/?state=waiting", "117", "waiting"), ("/?state=reporting", "1", "reporting"),
        ])  # fmt: skip
        self.assertEqual(self.rows(self.get("/?state=trouble")), ["n100"])

    def test_search_finds_parts_of_names(self):
        self.assertEqual(self.rows(self.get("/?q=N11")), [f"n{number}" for number in range(110, 120)])
        page = self.get("/?q=nothing")
        self.assertIn("No node found.", page)
        self.assertIn('value="nothing"', page)
        self.assertIn('value="&quot;&gt;&lt;b&gt;"', self.get("/?q=%22%3E%3Cb%3E"))

    def test_page_links_keep_the_search(self):
        page = self.get("/?q=n&page=2&span=7d")
        self.assertIn('<a rel="prev" href="/?q=n&amp;span=7d#nodes">', page)
        self.assertIn('<a rel="next" href="/?q=n&amp;page=3&amp;span=7d#nodes">', page)
        self.assertIn("51 to 100 of 120", page)

    def test_page_of_many_nodes_limits_cards_and_charts(self):
        page = self.get()
        self.assertEqual(page.count('<a class="card'), CARDS_OF_MANY)
        self.assertEqual(page.count("data-chart="), front_charts.CHARTS_OF_MANY)
        self.assertLess(len(page), 60_000)
        self.assertRegex(page, r'data-nodes="n077,n100,n000,')

    def test_node_selector_lists_the_nodes_of_the_page(self):
        page = self.get("/?page=2")
        self.assertEqual(page.count("<option"), PAGE_NODES)
        self.assertEqual(self.get("/?page=2&node=n003").count("<option"), PAGE_NODES + 1)

    def test_terminal_gets_counts_and_the_address_of_the_next_page(self):
        text = self.get(html=False)
        self.assertIn("Nodes 1 to 50 of 120: 1 not reporting, 1 with a fault, 117 waiting, 1 reporting.\n", text)
        self.assertRegex(text, r"Next page: +curl 'http://[0-9.:]+/\?page=2'\n")
        self.assertLess(text.count("\n"), 130)

    def test_only_displayed_nodes_are_built(self):
        self.web.web._snapshots.invalidate()
        self.get("/?q=n01")
        made = [node for node in self.web.web._snapshots.snapshot().nodes._items if node is not None]
        self.assertLessEqual(len(made), 11)


class Sparkline(unittest.TestCase):
    def test_line_is_interrupted_where_there_are_no_values(self):
        columns = [(place, 1, 0.0, 0.0, float(place)) for place in (0, 1, 10, 11)]
        path = re.search(r'd="([^"]+)"', sparkline.sparkline(columns, 12, 0))[1]
        self.assertEqual(re.findall(r"[ML]\d+", path), ["M0", "L1", "M10", "L11"])

    def test_constant_value_is_a_line_at_half_height(self):
        columns = [(place, 1, 24_400.0, 24_400.0, 24_400.0) for place in range(3)]
        self.assertIn('d="M0 12.0L1 12.0L2 12.0"', sparkline.sparkline(columns, 3, 0))


if __name__ == "__main__":
    unittest.main()
