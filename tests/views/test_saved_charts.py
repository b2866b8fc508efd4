"""Saved graphs: private unless shared by their owner, limited in number and size, escaped, and durable."""

import html
import json
import os
import re
import stat
import unittest
from unittest import mock

from pigeonpost.core.errors import DiskError
from pigeonpost.views import saved_charts
from tests.page_support import use_memory_disk
from tests.web.support import FakeLink, WebHouse

QUERY = "series=basement/temperature,basement/light&span=7d"


def setUpModule():
    use_memory_disk()


class GraphCase(unittest.TestCase):
    password = None

    def setUp(self):
        self.web = WebHouse(self, self.password, links=[FakeLink("basement", {"temperature": "°C", "light": "counts"})])
        self.web.store_samples("basement", [{"temperature": 21.5, "light": 700}], {"temperature": "°C"})
        self.session = self.web.log_in() if self.password else self.web.browser

    def post(self, path, session=None, **fields):
        session = session or self.session
        fields = {"csrf": self.web.csrf(session), **fields}
        return self.web.post_form(path, fields, session)

    def saved(self, name="Basement", query=QUERY, session=None):
        """Save a graph and return its id."""
        status, headers, body = self.post("/graphs", session, name=name, query=query)
        self.assertEqual((status, headers.get("location")), (303, "/graphs"), body)
        return next(one["id"] for one in self.listed(session) if one["name"] == " ".join(name.split()))

    def listed(self, session=None):
        status, _, body = self.web.request("GET", "/graphs.json", session or self.session)
        self.assertEqual(status, 200)
        return json.loads(body)["graphs"]

    def page(self, path="/graphs", session=None):
        status, _, body = self.web.request("GET", path, session or self.session, html=True)
        return status, body.decode()

    @property
    def path(self):
        return os.path.join(self.web.folder, "graphs.json")

    def assert_refused(self, answer, status, text):
        self.assertEqual(answer[0], status, answer[2])
        self.assertIn(text, html.unescape(answer[2].decode()))


class SingleUser(GraphCase):
    def test_pages_without_a_saved_graph_state_that_there_is_none(self):
        self.assertIn("You have not saved any graphs yet.", self.page()[1])
        self.assertEqual(self.listed(), [])
        self.assertEqual(self.web.request("GET", "/graphs")[2], b"No graph is saved yet.\n")
        self.assertFalse(os.path.exists(self.path))

    def test_graph_is_saved_opened_renamed_and_deleted(self):
        id = self.saved()
        self.assertIn(f'<a href="/graphs/{id}">Basement</a>', self.page()[1])
        status, headers, _ = self.web.request("GET", f"/graphs/{id}")
        self.assertEqual((status, headers["location"]), (303, f"/chart?{QUERY}"))
        self.assertEqual(self.web.request("GET", headers["location"])[0], 200)
        self.assertEqual(self.post(f"/graphs/{id}/rename", name=" Cellar \n door ")[0], 303)
        self.assertEqual([one["name"] for one in self.listed()], ["Cellar door"])
        self.assertIn(f"/chart?{QUERY}", self.web.request("GET", "/graphs")[2].decode())
        self.assertEqual(self.post(f"/graphs/{id}/delete")[0], 303)
        self.assertEqual(self.listed(), [])
        self.assertEqual(self.web.request("GET", f"/graphs/{id}")[0], 404)

    def test_chart_page_has_the_form_to_save_it(self):
        _, page = self.page(f"/chart?{QUERY}")
        form = re.search(r'<form[^>]* action="/graphs">(.*?)</form>', page, re.S)[1]
        fields = dict(re.findall(r'name="(\w+)"[^>]* value="([^"]*)"', form))
        self.assertEqual(html.unescape(fields["query"]), QUERY)
        self.assertEqual(self.post("/graphs", name="x", query=html.unescape(fields["query"]))[0], 303)

    def test_saved_graph_survives_a_restart_and_its_file_is_private(self):
        id = self.saved()
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        again = saved_charts.SavedCharts(self.web.folder)
        self.assertEqual(again._all()[id].name, "Basement")

    def test_names_are_escaped(self):
        self.saved("<script>alert(1)</script>\"'&")
        page = self.page()[1]
        self.assertNotIn("<script>alert", page)
        self.assertIn("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;", page)

    def test_invalid_names_are_rejected(self):
        id = self.saved()
        for name in (
            "",
            "  ",
            "x" * 61,
            "a\x01b",
            "a\x7f",
            "a\u202eb",
            "\ud83d".encode("utf-8", "replace").decode() * 61,
        ):
            for path, more in (("/graphs", {"query": QUERY}), (f"/graphs/{id}/rename", {})):
                self.assert_refused(
                    self.post(path, name=name, **more), 400, "A name must have 1 to 60 printable characters."
                )
        self.assertEqual([one["name"] for one in self.listed()], ["Basement"])

    def test_duplicate_names_are_rejected(self):
        self.saved("one")
        two = self.saved("two")
        self.assert_refused(self.post("/graphs", name="one", query=QUERY), 409, "already have a graph with that name")
        self.assert_refused(self.post(f"/graphs/{two}/rename", name="one"), 409, "already have a graph with that name")
        self.assertEqual(self.post(f"/graphs/{two}/rename", name="two")[0], 303)

    def test_invalid_queries_are_rejected(self):
        for query in (
            "",
            "series=",
            "series=<b>/x",
            "span=1h",
            "series=a/b&span=never",
            "x" * 5000,
            "series=a/b&series=c/d",
        ):
            self.assertEqual(self.post("/graphs", name="x", query=query)[0], 400, query)
        self.assertEqual(self.listed(), [])

    def test_unknown_query_parameters_are_not_saved(self):
        self.saved("x", "node=basement&sensor=light&span=1h&evil=//evil.example&size=small")
        self.assertEqual(self.listed()[0]["chart"], "/chart?series=basement/light&span=1h")

    def test_number_of_graphs_is_limited_per_user_and_in_total(self):
        with mock.patch.object(saved_charts, "MOST_OF_ONE", 3):
            for k in range(3):
                self.saved(f"graph {k}")
            self.assert_refused(self.post("/graphs", name="more", query=QUERY), 409, "can be saved")
        with mock.patch.object(saved_charts, "MOST", 3):
            self.assert_refused(self.post("/graphs", name="more", query=QUERY), 409, "can be saved")
        self.assertEqual(len(self.listed()), 3)

    def test_requests_without_a_csrf_token_change_nothing(self):
        id = self.saved()
        for path in (
            "/graphs",
            f"/graphs/{id}/rename",
            f"/graphs/{id}/delete",
            f"/graphs/{id}/share",
            f"/graphs/{id}/unshare",
        ):
            self.assertEqual(self.web.post_form(path, {"name": "evil", "query": QUERY})[0], 403, path)
            self.assertEqual(self.post(path, csrf="wrong", name="evil", query=QUERY)[0], 403, path)
        self.assertEqual([(one["name"], one["shared"]) for one in self.listed()], [("Basement", False)])

    def test_graphs_of_one_time_key_and_this_machine_are_shared(self):
        """Without a password there is one user. In earlier versions, this user needed no key."""
        if self.password:
            self.skipTest("with a password there are users")
        id = self.saved()
        here = self.web.request("GET", "/graphs.json")[2]  # from this machine, without the key
        self.assertEqual([(one["id"], one["owner"]) for one in json.loads(here)["graphs"]], [(id, "this machine")])
        status, page = self.page(session={"Accept": "text/html"})
        self.assertEqual((status, page.count(" disabled>")), (200, 3))
        self.assertEqual(self.web.post_form(f"/graphs/{id}/delete", {"csrf": ""})[0], 403)
        self.assertEqual(self.post(f"/graphs/{id}/delete")[0], 303)

    def test_get_requests_change_nothing(self):
        id, csrf = self.saved(), self.web.csrf(self.session)
        for what in ("rename", "delete", "share", "unshare"):
            status, headers, _ = self.web.request("GET", f"/graphs/{id}/{what}?csrf={csrf}&name=x")
            self.assertEqual((status, headers["allow"]), (405, "POST"), what)
        self.assertEqual([(one["name"], one["shared"]) for one in self.listed()], [("Basement", False)])

    def test_graphs_stay_unchanged_if_the_disk_is_full(self):
        id = self.saved()
        with mock.patch.object(
            saved_charts, "replace_file", side_effect=DiskError("graphs.json: No space left on device")
        ):
            self.assert_refused(self.post(f"/graphs/{id}/delete"), 503, "No space left on device")
            self.assert_refused(self.post("/graphs", name="x", query=QUERY), 503, "Nothing was changed")
        self.assertEqual([one["id"] for one in self.listed()], [id])

    def test_damaged_file_is_reported_and_not_overwritten(self):
        good = {"id": "a" * 16, "user": "admin", "name": "n", "query": QUERY, "shared": True}
        for content in (
            b"", b"{", b"[]", b'{"graphs": 1}', b'{"graphs": [1]}', b'{"graphs": [{}]}', b"\xff", b"[" * 100_000,
            json.dumps({"graphs": [good | {"query": "series=<"}]}).encode(),
            json.dumps({"graphs": [good | {"shared": 1}]}).encode(),
            json.dumps({"graphs": [good | {"name": 7}]}).encode(),
        ):  # fmt: skip
            with open(self.path, "wb") as file:
                file.write(content)
            self.assertEqual(self.page()[0], 503, content[:60])
            self.assert_refused(self.post("/graphs", name="x", query=QUERY), 503, "cannot be read")
            with open(self.path, "rb") as file:
                self.assertEqual(file.read(), content)
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump({"graphs": [good]}, file)
        self.assertEqual(self.listed()[0]["owner"], "admin")


class SeveralUsers(GraphCase):
    password = "correct horse"

    def setUp(self):
        super().setUp()
        self.web.users.set_password("guest", "battery staple", "viewer")
        self.guest = self.web.log_in("guest", "battery staple")

    def csrf_of_guest(self):
        """Return the viewer's CSRF token from the chart page; the front page has no form for viewers."""
        _, page = self.page(f"/chart?{QUERY}", self.guest)
        return re.search(r'name="csrf" value="([^"]+)"', page)[1]

    def post_as_guest(self, path, **fields):
        return self.web.post_form(path, {"csrf": self.csrf_of_guest(), **fields}, self.guest)

    def test_each_user_has_separate_graphs(self):
        id = self.saved()
        self.assertEqual(self.listed(self.guest), [])
        self.assertEqual(self.web.request("GET", f"/graphs/{id}", self.guest)[0], 404)
        self.assertEqual(self.post_as_guest("/graphs", name="Basement", query=QUERY)[0], 303)
        self.assertEqual([one["owner"] for one in self.listed(self.guest)], ["guest"])
        self.assertEqual([one["owner"] for one in self.listed()], ["admin"])

    def test_shared_graph_is_visible_to_all_and_changeable_only_by_its_owner(self):
        id = self.saved("<i>")
        self.assertEqual(self.post(f"/graphs/{id}/share")[0], 303)
        self.assertIn(f"<code>/graphs/{id}</code>", self.page()[1])
        self.assertIn(f'<a href="/graphs/{id}">&lt;i&gt;</a>, by admin', self.page(session=self.guest)[1])
        self.assertIn("<i>, shared by admin", self.web.request("GET", "/graphs", self.guest)[2].decode())
        self.assertEqual(self.web.request("GET", f"/graphs/{id}", self.guest)[1]["location"], f"/chart?{QUERY}")
        for what in ("rename", "delete", "share", "unshare"):
            self.assertEqual(self.post_as_guest(f"/graphs/{id}/{what}", name="mine")[0], 404, what)
        self.assertEqual([(one["name"], one["shared"]) for one in self.listed()], [("<i>", True)])
        self.assertEqual(self.post(f"/graphs/{id}/unshare")[0], 303)
        self.assertEqual(self.web.request("GET", f"/graphs/{id}", self.guest)[0], 404)

    def test_graphs_and_charts_require_a_login(self):
        id = self.saved()
        for path in (
            "/graphs.json",
            "/chart.json",
            "/chart.csv",
            "/nodes/basement/light.json",
            "/nodes/basement/light.csv",
        ):
            self.assertEqual(self.web.request("GET", path)[0], 401, path)
        for path in ("/graphs", f"/graphs/{id}", f"/chart?{QUERY}", "/nodes/basement/temperature"):
            self.assertEqual(self.web.request("GET", path, html=True)[1]["location"], "/login", path)
        self.assertEqual(self.web.post_form("/graphs", {"name": "x", "query": QUERY})[1]["location"], "/login")


if __name__ == "__main__":
    unittest.main()
