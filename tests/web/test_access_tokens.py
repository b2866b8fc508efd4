"""Tests of programs with an API token: the rights of each role, the accepted headers, and wrong tokens."""

import base64
import json
import logging
import os
import unittest
from unittest import mock

from pigeonpost.auth.throttle import CLOSED_S, MOST
from pigeonpost.core.data_folder import API_TOKENS
from pigeonpost.core.errors import SettingsError
from pigeonpost.http.message import HTTPError
from pigeonpost.transports.push_server import PushServerTransport
from pigeonpost.views.sse import EventStream
from tests.page_support import use_memory_disk
from tests.support import EPOCH, wait_until
from tests.transports.test_push import body
from tests.web.support import CONTROL_KEY, FakeLink, WebHouse, read_all
from tests.web.test_access import ELSEWHERE, PASSWORD, AccessCase

CHALLENGES = 'Basic realm="pigeonpost", Bearer realm="pigeonpost"'
BROWSER = {"accept": "text/html", "user_agent": "Mozilla/5.0"}
WRONG = "pp_" + "0" * 40


def setUpModule():
    use_memory_disk()


def basic(token, user="prometheus"):
    return "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()


class TokenCredentials(AccessCase):
    def setUp(self):
        super().setUp()
        self.token = self.api_tokens.make("grafana")

    def visit_with(self, said, role="viewer", peer=ELSEWHERE, **more):
        return self.access.authorize(self.request(peer, authorization=said, **more), role)

    def test_bearer_and_basic_with_any_user(self):
        for said in (
            f"Bearer {self.token}", f"bearer  {self.token} ", basic(self.token), basic(self.token, ""),
            basic(self.token, "ä user"), f"basic   {basic(self.token)[6:]}",
        ):  # fmt: skip
            visitor = self.visit_with(said)
            self.assertEqual((visitor.name, visitor.role, visitor.csrf), ("token grafana", "viewer", ""))
            self.assertIsNone(visitor.session)

    def test_wrong_tokens_are_401(self):
        for said in (
            f"Bearer {self.token[:-1]}", f"Bearer {self.token}0", f"Bearer {WRONG}", self.token, f"Token {self.token}",
            basic(self.token[:-1]), basic(self.token + " "), basic(WRONG), "Basic", "Basic ", "Basic !!!!", "Basic YQ",
            "Basic " + base64.b64encode(self.token.encode()).decode(), "Basic YQ==", "Basic \xe4\xff",
            "Basic " + "A" * 8000, "Basic " + "YTpi" * 2000, basic(CONTROL_KEY), basic("", self.token),
            f"Digest {self.token}", "", " ", f"Basic {basic(self.token)}",
        ):  # fmt: skip
            self.clock.sleep(CLOSED_S)
            with self.subTest(said[:60]):
                found = self.refused(401, "key", self.visit_with, said)
                self.assertEqual(found.headers["WWW-Authenticate"], CHALLENGES)
                self.assertIn("control.py api-token", found.text)

    def test_revoked_token_is_401(self):
        self.api_tokens.revoke("grafana")
        self.refused(401, "key", self.visit_with, f"Bearer {self.token}")

    def test_request_without_a_token_is_refused(self):
        found = self.refused(401, "log-in", self.access.authorize, self.request(ELSEWHERE), "viewer")
        self.assertEqual(found.headers["WWW-Authenticate"], CHALLENGES)

    def test_browsers_get_no_window_that_asks_for_a_login(self):
        for sign in (
            {"accept": "text/html"}, {"user_agent": "Mozilla/5.0 (X11)"}, {"sec_fetch_site": "none"},
            {"sec_fetch_mode": "cors"},
        ):  # fmt: skip
            for said in (None, f"Bearer {WRONG}", basic(WRONG)):
                with self.assertRaises(HTTPError) as caught:
                    self.visit_with(said, **sign)
                self.assertEqual(caught.exception.headers["WWW-Authenticate"], "Bearer", (sign, said))

    def test_damaged_file_accepts_only_the_key_of_control_py(self):
        with open(os.path.join(self.folder, API_TOKENS), "w", encoding="ascii") as file:
            file.write("{")
        with self.assertRaises(SettingsError):
            self.visit_with(f"Bearer {self.token}")
        self.assertEqual(self.visit_with(f"Bearer {CONTROL_KEY}").role, "operator")


class TokensWithoutPassword(TokenCredentials):
    """API tokens while no password is set. They are accepted from any address."""

    password = None

    def test_request_without_a_token_is_refused(self):
        self.refused(403, "no-password", self.access.authorize, self.request(ELSEWHERE), "viewer")

    def test_browsers_get_no_window_that_asks_for_a_login(self):
        found = self.refused(403, "no-password", lambda: self.visit_with(basic("at a proxy"), **BROWSER))
        self.assertEqual(found.headers, {})

    def test_login_at_a_proxy_on_this_machine_is_not_this_machine(self):
        self.refused(403, "no-password", lambda: self.visit_with(basic("x"), peer="127.0.0.1", **BROWSER))


class TokenRoles(AccessCase):
    def setUp(self):
        super().setUp()
        self.tokens = {role: self.api_tokens.make(role, role) for role in ("viewer", "writer", "operator")}

    def ask(self, token_role, method, role, said=None, **more):
        said = said or f"Bearer {self.tokens[token_role]}"
        return self.access.authorize(self.request(ELSEWHERE, method, authorization=said, **more), role)

    def test_all_roles_can_read(self):
        for role in self.tokens:
            for method in ("GET", "HEAD"):
                self.assertEqual(self.ask(role, method, "viewer").role, role)

    def test_roles_have_their_rights(self):
        allowed = {"viewer": (), "writer": ("writer",), "operator": ("viewer", "writer", "operator")}
        for role, may in allowed.items():
            for needed in ("viewer", "writer", "operator"):
                if needed in may:
                    self.ask(role, "POST", needed)
                else:
                    found = self.refused(403, "role", self.ask, role, "POST", needed)
                    self.assertIn(f"This token ({role}) has the role {role}; this action needs the role", found.text)

    def test_tokens_need_no_csrf_token_and_content_type(self):
        visitor = self.ask("operator", "POST", "operator")
        for kind in (None, "text/plain", "application/x-www-form-urlencoded"):
            request = self.request(ELSEWHERE, "POST", content_type=kind)
            self.access.check_csrf(request, visitor)
            self.access.check_program(request, visitor)

    def test_browser_with_basic_credentials_cannot_change_anything(self):
        """After http://x:TOKEN@server/ was opened, a browser sends the token in requests of other sites' pages too."""
        said = basic(self.tokens["operator"])
        for sign in ({"accept": "text/html"}, {"user_agent": "Mozilla/5.0"}, {"sec_fetch_site": "same-origin"}):
            self.refused(403, "browser", lambda sign=sign: self.ask("", "POST", "operator", said, **sign))
        self.ask("", "GET", "viewer", said, **BROWSER)
        self.ask("", "POST", "operator", said, user_agent="curl/7.88.1", accept="*/*")


class WrongTokens(AccessCase):
    def setUp(self):
        super().setUp()
        self.token = self.api_tokens.make("grafana")

    def ask(self, said, peer=ELSEWHERE, **more):
        return self.access.authorize(self.request(peer, authorization=said, **more), "viewer")

    def test_wrong_tokens_are_delayed_and_then_429(self):
        for kind in (lambda: f"Bearer {WRONG}", lambda: basic(WRONG), lambda: "Basic junk", lambda: basic("guess")):
            waits = []
            for _ in range(MOST):
                before_s = self.clock.monotonic()
                self.refused(401, "key", self.ask, kind())
                waits.append(self.clock.monotonic() - before_s)
            self.assertEqual((waits[0], waits), (0.0, sorted(waits)))
            for _ in range(90):
                self.refused(429, "attempts", self.ask, kind())
            self.refused(401, "key", self.ask, kind(), "192.168.1.8")
            self.ask(f"Bearer {self.token}")  # the correct token is still accepted from the same address
            self.ask(basic(self.token))
            self.assertIsNotNone(self.log_in(peer=ELSEWHERE))
            self.clock.sleep(CLOSED_S)

    def test_wrong_tokens_are_logged_once_per_minute(self):
        logging.getLogger("pigeonpost.web.access").setLevel(logging.NOTSET)
        with self.assertLogs("pigeonpost.web.access", "WARNING") as logged:
            for _ in range(100):
                self.assertRaises(HTTPError, lambda: self.ask(f"Bearer {WRONG}"))
        self.assertEqual(logged.output, [f"WARNING:pigeonpost.web.access:{ELSEWHERE}: wrong key or API token"])

    def test_login_at_a_proxy_does_not_affect_a_session(self):
        """nginx passes on the login of its auth_basic with each request of the browser."""
        session = self.log_in(peer=ELSEWHERE)
        for _ in range(MOST + 1):
            visitor = self.ask(basic("password at the proxy"), cookie=self.cookie(session), **BROWSER)
            self.assertEqual((visitor.name, visitor.csrf), ("admin", session.csrf))
            self.refused(401, "log-in", lambda: self.ask(basic("password at the proxy"), **BROWSER))
        # A text with the format of a token counts as an attempt, even if it is sent by a browser.
        self.refused(401, "key", lambda: self.ask(basic(WRONG), cookie=self.cookie(session), **BROWSER))

    def test_check_of_a_stream_is_not_an_attempt(self):
        for _ in range(MOST + 1):
            self.assertIsNone(self.access.find(self.request(ELSEWHERE, authorization=f"Bearer {WRONG}")))
        self.refused(401, "key", self.ask, f"Bearer {WRONG}")


class TokensAtTheServer(unittest.TestCase):
    """API tokens through the running web server and its routes."""

    READ = (
        "/", "/nodes/basement", "/nodes/basement/temperature.csv", "/nodes/basement/temperature.json", "/log",
        "/log.csv", "/logs.json", "/gaps.csv", "/happenings.json", "/about.json", "/metrics",
        "/chart.csv?node=basement&sensor=temperature", "/chart.svg?node=basement&sensor=temperature",
        "/api/v1/nodes", "/api/v1/nodes/basement", "/api/v1/samples?node=basement", "/api/v1/health",
        "/api/v1/statistics?node=basement&sensor=temperature", "/api/v1/openapi.json",
    )  # fmt: skip
    CHANGES = (
        "/nodes/basement/on", "/nodes/basement/off", "/nodes/basement/status", "/exit", "/graphs", "/logout",
        "/password", "/api/v1/nodes/basement/send", "/api/v1/nodes/basement/check",
    )  # fmt: skip

    def setUp(self):
        for name in (
            "web.access", "web.http_server", "web.host_names", "transports.push_server", "server.unnumbered_sources",
        ):  # fmt: skip
            logger = logging.getLogger(f"pigeonpost.{name}")
            logger.setLevel(logging.CRITICAL)
            self.addCleanup(logger.setLevel, logging.NOTSET)
        self.enterContext(mock.patch("pigeonpost.auth.throttle.LONGEST_DELAY_S", 0.001))

    def make(self, password=PASSWORD):
        house = WebHouse(self, password, links=[FakeLink("basement", {"temperature": "°C"})])
        house.store_samples("basement", [{"temperature": 21.5}], {"temperature": "°C"})
        return house

    def bearer(self, house, role="viewer"):
        return {"Authorization": f"Bearer {house.api_tokens.make(role, role)}"}

    def test_viewer_token_reads_everything_and_changes_nothing(self):
        for password in (PASSWORD, None):
            house = self.make(password)
            token = house.api_tokens.make("grafana")
            for said in (f"Bearer {token}", basic(token)):
                for path in self.READ:
                    status, headers, _ = house.request("GET", path, {"Authorization": said})
                    self.assertEqual(status, 200, path)
                    self.assertNotIn("set-cookie", headers)
                for path in self.CHANGES:
                    status, headers, _ = house.request("POST", path, {"Authorization": said}, b"sure=yes")
                    self.assertEqual(status, 403, path)
                    self.assertNotIn("set-cookie", headers)
            self.assertEqual((house.app.links[0].asked, house.stopped), ([], []))

    def test_every_change_needs_an_operator_token(self):
        house = self.make()
        routes = [route for _, by_method in house.web.routes.pages for route in by_method.values()]
        changes = [route for route in routes if route.method == "POST" and route.role]
        self.assertGreater(len(changes), 10)
        for role in ("viewer", "writer"):
            bearer = self.bearer(house, role)
            for route in changes:
                path = route.path.replace("NAME", "basement").replace("WORD", "x")
                kind = {"Content-Type": "application/json"}
                status, _, answer = house.request("POST", path, {**bearer, **kind}, b"{}")
                self.assertEqual(status, 403, path)
                self.assertIn(b"this action needs the role operator", answer)
        self.assertEqual((house.app.links[0].asked, house.stopped), ([], []))

    def test_operator_turns_a_node_off_without_csrf_and_type(self):
        house = self.make()
        bearer = self.bearer(house, "operator")
        status, _, body = house.request("POST", "/api/v1/nodes/basement/send", bearer, b'{"on": false}')
        self.assertEqual((status, json.loads(body)["on"]), (200, False))
        self.assertEqual(house.request("POST", "/nodes/basement/status", bearer)[0], 303)
        self.assertEqual(house.app.links[0].asked, [("SEND", False), ("CHECK",)])

    def test_writer_token_pushes_samples_of_nodes_without_a_token(self):
        house = WebHouse(self, PASSWORD, transports=[PushServerTransport])
        house.tokens.make("attic")
        tokens = {role: house.api_tokens.make(role, role) for role in ("viewer", "writer", "operator")}

        def post(role, node, first, said=None, **more):
            headers = {"Authorization": said or f"Bearer {tokens[role]}", **more}
            payload = json.dumps({**json.loads(body(first, 1)), "node": node}).encode()
            status, _, answer = house.request("POST", "/api/v1/samples", headers, payload)
            return status, json.loads(answer)

        self.assertEqual(post("writer", "shed", 1), (200, {"ack": 1}))
        self.assertEqual(post("operator", "shed", 2), (200, {"ack": 2}))
        self.assertEqual(post("writer", "shed", 3, basic(tokens["writer"])), (200, {"ack": 3}))
        status, told = post("viewer", "shed", 4)
        self.assertEqual((status, told["error"]["code"]), (403, "role"))
        self.assertIn("This token (viewer) has the role viewer", told["error"]["text"])
        status, told = post("writer", "attic", 1)
        self.assertEqual((status, told["error"]["code"]), (403, "token"))
        self.assertIn("node attic has a token", told["error"]["text"])
        browser = {"User-Agent": "Mozilla/5.0"}
        self.assertEqual(post("writer", "shed", 4, basic(tokens["writer"]), **browser)[0], 403)
        self.assertEqual(post("writer", "../x", 1)[0], 400)
        resume = f"/api/v1/samples/resume?node=shed&epoch={EPOCH}"
        headers = {"Authorization": f"Bearer {tokens['writer']}"}
        self.assertEqual(json.loads(house.request("GET", resume, headers)[2])["have"], 3)
        for path in (resume.replace("shed", "attic"), resume.replace("shed", "")):
            self.assertIn(house.request("GET", path, headers)[0], (400, 403), path)
        house.api_tokens.revoke("writer")
        self.assertEqual(post("writer", "shed", 4)[0], 401)
        self.assertEqual(len(house.store.points("shed", 0, 1 << 60, 100)), 3)
        self.assertEqual(len(house.store.points("attic", 0, 1 << 60, 100)), 0)

    def test_token_is_accepted_with_a_foreign_host_name(self):
        """Prometheus uses the service name of a container, and a health check uses its address."""
        house = self.make()
        for host in ("pigeonpost:8080", "evil.example"):
            foreign = {"Host": host}
            self.assertEqual(house.request("GET", "/metrics", {**self.bearer(house, "viewer"), **foreign})[0], 200)
            house.api_tokens.revoke("viewer")
            for path in ("/", "/login", "/metrics", "/healthz"):
                self.assertEqual(house.request("GET", path, foreign)[0], 421)
            self.assertEqual(house.request("GET", "/metrics", {"Authorization": f"Bearer {WRONG}", **foreign})[0], 401)
            self.assertEqual(house.request("GET", "/healthz", {"Host": "192.168.1.20"})[::2], (200, b"ok\n"))
            login = house.request("POST", "/login", {"Authorization": "Basic eDp5", **foreign}, b"user=admin")
            self.assertEqual(login[0], 421)

    def test_invalid_basic_credentials_are_401(self):
        house = self.make()
        for said in ("Basic", "Basic =", "Basic a", "Basic ****", "Basic YQ==", "Basic Og==", "Basic \xff",
                     "Basic " + "A" * 7900, "Basic " + "YTpi" * 1900, "Basic YTpi, Bearer x"):  # fmt: skip
            status, headers, _ = house.request("GET", "/metrics", {"Authorization": said})
            self.assertIn(status, (401, 429), said[:40])
            if status == 401:
                self.assertEqual(headers["www-authenticate"], CHALLENGES)
        self.assertEqual(house.request("GET", "/metrics", {"Authorization": "Basic " + "A" * 9000})[0], 431)
        self.assertEqual(house.request("GET", "/healthz", {"Authorization": "Basic junk"})[0], 200)

    def test_browser_without_a_session_is_sent_to_the_login_page(self):
        house = self.make()
        status, headers, _ = house.request("GET", "/", {"Authorization": basic("at a proxy")}, html=True)
        self.assertEqual((status, headers["location"]), (303, "/login"))
        self.assertEqual(house.request("GET", "/login", {"Authorization": basic("at a proxy")}, html=True)[0], 200)
        status, headers, _ = house.request("GET", "/api/v1/nodes", html=True)
        self.assertEqual((status, headers["www-authenticate"]), (401, "Bearer"))

    def test_revoked_token_ends_its_stream_of_events(self):
        with mock.patch.object(EventStream.__init__, "__defaults__", (0.05, 200)):  # heartbeats
            house = self.make()
        bearer = self.bearer(house)
        with house.connect() as sock:
            lines = f"GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer['Authorization']}\r\n\r\n"
            sock.sendall(lines.encode())
            self.assertTrue(sock.recv(15).startswith(b"HTTP/1.1 200"))
            house.api_tokens.revoke("viewer")
            self.assertIn(b"retry:", read_all(sock))

    def test_last_use_of_a_token_is_recorded(self):
        house = self.make()
        house.request("GET", "/metrics", self.bearer(house))
        wait_until(lambda: house.api_tokens.all()[0].used_ms, "the use is known")

    def test_user_who_is_a_viewer_reads_and_cannot_press_a_button(self):
        house = self.make()
        house.users.set_password("guest", PASSWORD, "viewer")
        cookie = house.log_in("guest")
        for path in self.READ:
            self.assertEqual(house.request("GET", path, cookie)[0], 200, path)
        _, _, page = house.request("GET", "/", cookie, html=True)
        for action in ("/nodes/basement/on", "/nodes/basement/off", "/nodes/basement/status", "/exit"):
            self.assertNotIn(f'action="{action}"'.encode(), page.replace(b"<button disabled", b""))
            fields = {"csrf": house.csrf(cookie), "sure": "yes"}
            self.assertEqual(house.post_form(action, fields, cookie)[0], 403, action)
        self.assertEqual((house.app.links[0].asked, house.stopped), ([], []))


if __name__ == "__main__":
    unittest.main()
