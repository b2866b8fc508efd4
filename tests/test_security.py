"""Tests of hostile inputs and their responses, sent as raw bytes by an independent client to a running server.

The name or the docstring of a test describes the input and the expected response. Other tests of this kind are in
tests/transports/test_hostile_node.py (a hostile node on the TCP link), tests/auth/test_tokens.py (comparisons of tokens
in constant time) and tests/web/test_access.py (wrong keys and passwords).
"""

import csv
import gzip
import io
import json
import logging
import os
import re
import socket
import threading
import time
import unittest
from unittest import mock
from urllib.parse import quote

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.throttle import MOST
from pigeonpost.core.addresses import is_loopback, own_address
from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.http.message import SAFE_HEADERS
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.transports.tcp_node import TcpNodeTransport
from pigeonpost.web.connection_limits import Limits
from protocol import Batch, Gap, encode
from tests.page_support import use_memory_disk
from tests.storage.test_contract import E2
from tests.support import BOOT, LIMIT_S, MemoryDisk, Talk, taken, wait_until
from tests.web.support import FakeLink, WebHouse, exchange, next_response, parse_response

PASSWORD = "correct horse"
EVIL = "<img src=x onerror=alert(1)>"
HOST = "Host: localhost"


def setUpModule():
    use_memory_disk()


class SecurityCase(unittest.TestCase):
    password: str | None = None
    limits = Limits(head_s=LIMIT_S, body_s=LIMIT_S)  # no test waits for these limits

    def setUp(self):
        for name in (
            "pigeonpost.web.http_server",
            "pigeonpost.web.access",
            "pigeonpost.transports.tcp_server",
            "session",
            "session_node",
        ):
            logging.getLogger(name).setLevel(logging.CRITICAL)
            self.addCleanup(logging.getLogger(name).setLevel, logging.NOTSET)
        self.link = FakeLink("basement", {"temperature": "°C"})
        self.house = self.build()

    def build(self):
        return WebHouse(self, self.password, [self.link], self.limits)

    def say(self, *lines, body=b"", ends=False):
        """Send a head with these lines and return the only response. The server must close the connection."""
        head = "\r\n".join((*lines, "", "")).encode("latin-1")
        return parse_response(self.house.raw(head + body, ends=ends), is_head=lines[0].startswith("HEAD"))

    def refuses(self, status, *lines, body=b"", ends=False):
        """Check the status, the safe headers, a short body, the closed connection, and that nothing was done."""
        found, headers, text = self.say(*lines, body=body, ends=ends)
        self.assertEqual(found, status, (lines[0][:60], text[:100]))
        self.assertEqual(headers.get("connection"), "close")
        self.assertLess(len(text), 300)
        self.is_safe(headers)
        self.assertEqual(self.link.asked, [])
        return headers, text

    def is_safe(self, headers):
        for name, said in SAFE_HEADERS.items():
            # A chart contains its style. The hash in the policy allows exactly this text.
            found = re.sub(r"style-src 'sha256-[A-Za-z0-9+/]{43}='", "style-src 'self'", headers.get(name.lower(), ""))
            self.assertEqual(found, said)
        self.assertNotIn("server", headers)
        self.assertNotIn("x-powered-by", headers)
        self.assertNotIn("access-control-allow-origin", headers)

    def is_alive(self):
        self.assertEqual(self.house.request("GET", "/healthz")[::2], (200, b"ok\n"))


class HostileRequests(SecurityCase):
    def test_invalid_lengths_are_refused(self):
        """POST without Content-Length: 411. `abc`, `-1`, `+5`, `1_0`, 5,000 digits, two different lengths: 400."""
        post = "POST /nodes/basement/off HTTP/1.1", HOST
        self.refuses(411, *post)
        for said in ("abc", "-1", "+5", "1_0", "5" * 5000):
            self.refuses(400, *post, f"Content-Length: {said}", body=b"csrf=")
        self.refuses(400, *post, "Content-Length: 5", "Content-Length: 6", body=b"csrf=x")
        self.refuses(400, *post, "Content-Length: 5", "Content-Length: 5", body=b"csrf=")

    def test_transfer_and_content_encodings_are_refused(self):
        """Length and Transfer-Encoding: 400. Transfer-Encoding alone: 501. Content-Encoding: 415."""
        post = "POST /nodes/basement/off HTTP/1.1", HOST
        smuggled = b"0\r\n\r\nPOST /exit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        self.refuses(400, *post, "Content-Length: 5", "Transfer-Encoding: chunked", body=smuggled)
        self.refuses(501, *post, "Transfer-Encoding: chunked", body=smuggled)
        self.refuses(501, *post, "Transfer-Encoding: xchunked", body=smuggled)
        self.refuses(415, *post, "Content-Length: 5", "Content-Encoding: gzip", body=b"csrf=")
        self.assertEqual(self.house.stopped, [])

    def test_zip_bomb_is_415(self):
        """A zip bomb as body: 415."""
        bomb = gzip.compress(bytes(10 << 20))
        lines = "Content-Encoding: gzip", f"Content-Length: {len(bomb)}"
        self.refuses(415, "POST /api/v1/nodes/basement/send HTTP/1.1", HOST, *lines, body=bomb)

    def test_declared_ten_gigabytes_are_413(self):
        """A declared length of 10 GB: 413 before reading."""
        for path in ("/login", "/nodes/basement/off", "/api/v1/nodes/basement/send", "/nowhere"):
            began_s = time.monotonic()
            self.refuses(413, f"POST {path} HTTP/1.1", HOST, "Content-Length: 10000000000")
            self.assertLess(time.monotonic() - began_s, self.limits.body_s)

    def test_invalid_header_lines_are_400(self):
        """Bare LF, folded line, lone CR, missing colon, space before the colon, NUL in a value: 400."""
        for data in (
            b"GET / HTTP/1.1\nHost: localhost\n\n", b"GET / HTTP/1.1\r\nHost: localhost\nX-a: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX-a: b\r\n c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\rX-a: b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-a: b\0c\r\n\r\n",
        ):  # fmt: skip
            with self.subTest(data):
                status, headers, _ = parse_response(self.house.raw(data, ends=False))
                self.assertEqual((status, headers["connection"]), (400, "close"))
                self.is_safe(headers)

    def test_too_long_heads_are_refused(self):
        """98 headers of 65 kB, 101 headers, a method of 60 kB: 431, 431, 400, and no input in the response."""
        for status, lines in (
            (431, ["GET / HTTP/1.1", HOST, *(f"X-{k}: {'evil' * 16_000}" for k in range(98))]),
            (431, ["GET / HTTP/1.1", HOST, *(f"X-evil{k}: b" for k in range(100))]),
            (400, ["EVIL" * 15_000 + " / HTTP/1.1", HOST]), (414, [f"GET /{'evil' * 15_000} HTTP/1.1", HOST]),
        ):  # fmt: skip
            _, text = self.refuses(status, *lines)
            self.assertNotIn(b"evil", text.lower())

    def test_unknown_versions_and_methods_are_refused(self):
        """HTTP/0.9, HTTP/1.9999999, TRACE, PUT on a page: 400, 505, and 405 with Allow."""
        self.refuses(400, "GET /")
        self.refuses(400, "GET / HTTP/0.9", HOST)
        self.refuses(505, "GET / HTTP/1.9999999", HOST)
        for method in ("TRACE", "PUT", "DELETE", "PATCH", "OPTIONS", "get", "EVIL"):
            headers, text = self.refuses(405, f"{method} / HTTP/1.1", HOST, "Connection: close", "X-Secret: evil")
            self.assertEqual(headers["allow"], "GET, HEAD")
            self.assertNotIn(b"evil", text.lower())
        headers, _ = self.refuses(405, "PUT /nodes/basement/on HTTP/1.1", HOST, "Connection: close")
        self.assertEqual(headers["allow"], "POST")

    def test_missing_or_unknown_hosts_are_refused(self):
        """No Host, two Hosts, an unknown Host (DNS rebinding), an absolute-form URL: 400, 400, 421, 400."""
        self.refuses(400, "GET / HTTP/1.1", "Connection: close")
        self.refuses(400, "GET / HTTP/1.1", HOST, HOST)
        for path in ("/", "/api/v1/nodes", "/healthz", "/login", "/style.css", "/nowhere"):
            _, text = self.refuses(421, f"GET {path} HTTP/1.1", "Host: evil.example:8080", "Connection: close")
            self.assertNotIn(b"evil", text)
        self.refuses(
            421, "POST /nodes/basement/off HTTP/1.1", "Host: evil.example", "Content-Length: 0", "Connection: close"
        )
        self.refuses(400, "GET http://localhost/ HTTP/1.1", HOST)

    def test_paths_outside_the_routes_are_404(self):
        """`/../../etc/passwd`, `%2e%2e%2f`, `%00`, `//evil/`, `/.git/`, the name of the database: 404."""
        log_name = os.path.basename(self.house.csv.whole()[0])
        for path in (
            "/../../etc/passwd", "/%2e%2e%2f%2e%2e%2fetc/passwd", "/..%2f..%2fetc%2fpasswd", "/%00", "/style.css%00",
            "/log.csv%00",
            "//evil/", "//", "/.git/", "/.git/config", "/pigeonpost.sqlite3", "/data/pigeonpost.sqlite3", "/users.json",
            "/tokens.json", "/running.json", "/logs/", "/logs/SHA256SUMS", "/logs/../users.json", "/logs/..",
            f"/{log_name}", "/pages/style.css",
            "/webui.py",
            "/style.css/", "/./style.css", "/nodes/../style.css", "/log.csv/../users.json", "/nodes/%2e%2e",
            "/nodes/..",
            "/nodes/basement/", "/nodes/basement/on/", "/Login", "/api/v1/nodes/../../../etc/passwd",
            "/nodes/-x",
            "/nodes/" + "x" * 64, "/api/v2/nodes", f"/nodes/{quote(EVIL)}", "/;/style.css", "/favicon.svg;x",
            "/cgi-bin/x.sh",
        ):  # fmt: skip
            with self.subTest(path):
                _, text = self.refuses(404, f"GET {path} HTTP/1.1", HOST, "Connection: close")
                self.assertNotIn(b"evil", text)

    def test_invalid_characters_in_the_target_are_400(self):
        for path in ("/\\..\\evil", "/<evil>", '/"evil"', "/^evil", "/`evil`", "/{evil}", "/evil|evil", "/?a=<evil>"):
            with self.subTest(path):
                _, text = self.refuses(400, f"GET {path} HTTP/1.1", HOST, "Connection: close")
                self.assertNotIn(b"evil", text)

    def test_error_response_contains_no_input(self):
        """The response contains no path, query, header or body of the request, in pages, texts and JSON."""
        for accept in ("text/html", "*/*"):
            for path in ("/evil1337", "/api/evil1337", "/nodes/evil1337", "/api/v1/nodes/evil1337", "/?key=evil1337",
                         "/chart.svg?node=evil1337", "/api/v1/samples?node=evil1337", "/api/v1/samples?from=evil1337",
                         "/api/v1/samples?format=evil1337", "/login?evil1337", "/?a=evil1337&a=1"):  # fmt: skip
                request = f"GET {path} HTTP/1.1", HOST, f"Accept: {accept}", "X-evil1337: evil1337", "Connection: close"
                status, headers, text = self.say(*request)
                self.assertIn(status, (200, 400, 403, 404), path)
                self.assertNotIn("evil1337", str(headers), path)
                self.assertNotIn(b"evil1337", text, path)

    def test_failed_login_response_contains_no_input(self):
        self.house.users.set_password("admin", PASSWORD)
        for accept in (True, False):
            found = self.house.request(
                "POST", "/login", {"Content-Type": "application/x-www-form-urlencoded"},
                b"user=evil1337&password=evil1337&next=//evil1337", html=accept,
            )  # fmt: skip
            self.assertEqual(found[0], 403)
            self.assertNotIn("evil1337", str(found))


class Deadlines(SecurityCase):
    limits = Limits(head_s=LIMIT_S, body_s=0.1)

    def test_missing_body_is_408(self):
        """A declared length of 1,000 and 5 sent bytes: 408 at the deadline."""
        began_s = time.monotonic()
        self.refuses(408, "POST /nodes/basement/off HTTP/1.1", HOST, "Content-Length: 1000", body=b"csrf=")
        self.assertGreater(time.monotonic() - began_s, 0.09)

    def test_incomplete_head_is_408(self):
        """The deadline of 5 s applies to the complete head (here 0.1 s)."""
        self.house.web._listeners[0].limits = self.limits._replace(head_s=0.1)
        for _ in range(20):  # on a busy machine the first byte may arrive too late; then there is no response
            began_s = time.monotonic()
            if data := self.house.raw(b"GET / HTTP/1.1\r\nHost: lo", ends=False):
                break
        status, headers, _ = parse_response(data)
        self.assertEqual((status, headers["connection"]), (408, "close"))
        self.assertGreater(time.monotonic() - began_s, 0.09)


class Changes(SecurityCase):
    CHANGES = ("/nodes/basement/on", "/nodes/basement/off", "/nodes/basement/status", "/exit", "/logout")
    JSON_CHANGES = ("/api/v1/nodes/basement/send", "/api/v1/nodes/basement/check")

    def test_change_by_get_is_405(self):
        """A change by GET: 405, and nothing is changed."""
        for method in ("GET", "HEAD"):
            for path in (*self.CHANGES, *self.JSON_CHANGES):
                found = self.house.request(
                    method, f"{path}?on=true&sure=yes&csrf={self.house.csrf(self.house.browser)}"
                )
                self.assertEqual((found[0], found[1]["allow"]), (405, "POST"), path)
        self.nothing_has_changed()

    def nothing_has_changed(self):
        self.assertEqual((self.link.asked, self.house.stopped), ([], []))

    def test_change_without_csrf_token_is_403(self):
        """A change without the CSRF token: 403, and nothing is changed."""
        csrf = self.house.csrf(self.house.browser)
        for path in self.CHANGES:
            for fields in ({}, {"sure": "yes"}, {"csrf": ""}, {"csrf": csrf[:-1], "sure": "yes"}, {"CSRF": csrf}):
                self.assertEqual(self.house.post_form(path, fields, self.house.browser)[0], 403, path)
        self.nothing_has_changed()

    def test_change_from_another_site_is_403(self):
        """A foreign Origin, or Sec-Fetch-Site cross-site: 403, and nothing is changed."""
        csrf = self.house.csrf(self.house.browser)
        for headers in (
            {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": f"http://127.0.0.1:{self.house.address[1] + 1}"},
        ):  # fmt: skip
            headers.update(self.house.browser)
            for path in (*self.CHANGES, "/login"):
                self.assertEqual(self.house.post_form(path, {"csrf": csrf, "sure": "yes"}, headers)[0], 403)
            for path in self.JSON_CHANGES:
                found = self.house.request(
                    "POST", path, {**headers, "Content-Type": "application/json"}, b'{"on": false}'
                )
                self.assertEqual((found[0], json.loads(found[2])["error"]["code"]), (403, "cross-site"))
        self.nothing_has_changed()

    def test_requests_without_preflight_are_refused(self):
        """Without a preflight, a page can send a form, a text or an untyped Blob to the API. These are refused."""
        kinds = "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""
        for kind in ({}, *({"Content-Type": kind} for kind in kinds)):
            for more in ({}, {"Referer": "http://evil.example/"}, {"Sec-Fetch-Site": "none"}):
                for path in self.JSON_CHANGES:
                    headers = {**kind, **more, **self.house.browser}
                    self.assertEqual(self.house.request("POST", path, headers, b'{"on": false}')[0], 415, headers)
                    headers = {**kind, **more}  # from this machine, which is not sufficient either
                    self.assertEqual(self.house.request("POST", path, headers, b'{"on": false}')[0], 403, headers)
        self.nothing_has_changed()

    def test_request_with_a_token_may_have_any_type(self):
        """`curl -d` sends such a request."""
        for kind in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
            headers = {**kind, **self.house.bearer}
            self.assertEqual(self.house.request("POST", self.JSON_CHANGES[0], headers, b'{"on": false}')[0], 200)
        self.assertEqual(self.link.asked, [("SEND", False)] * 3)

    def test_cors_preflight_gets_no_permission(self):
        """A CORS preflight gets no permission."""
        ask = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        status, headers, _ = self.house.request("OPTIONS", self.JSON_CHANGES[0], ask)
        self.assertEqual(status, 405)
        self.assertFalse([name for name in headers if name.startswith("access-control")])

    def test_complete_requests_change_something(self):
        """With all required values the requests change something. Otherwise the tests above would prove nothing."""
        browser = self.house.browser
        csrf, same = self.house.csrf(browser), {"Sec-Fetch-Site": "same-origin", **browser}
        same["Origin"] = f"http://{self.house.address[0]}:{self.house.address[1]}"
        self.assertEqual(self.house.post_form("/nodes/basement/off", {"csrf": csrf}, same)[0], 303)
        kind = {"Content-Type": "application/json", **browser}
        found = self.house.request("POST", self.JSON_CHANGES[0], kind, b'{"on": true}')
        self.assertEqual(found[0], 200)
        self.assertEqual(self.link.asked, [("SEND", False), ("SEND", True)])
        self.assertEqual(self.house.post_form("/exit", {"csrf": csrf}, same)[0], 200)  # asks for confirmation
        self.assertEqual(self.house.stopped, [])
        self.assertEqual(self.house.post_form("/exit", {"csrf": csrf, "sure": "yes"}, same)[0], 200)
        self.assertEqual(len(self.house.stopped), 1)


class AccessWithoutPassword(SecurityCase):
    """Access without a password."""

    def build(self):
        self.elsewhere = own_address()
        return WebHouse(self, None, [self.link], self.limits, listen="0.0.0.0")

    def test_request_from_another_machine_is_403_without_a_password(self):
        """A request from another machine while no password is set: 403 with the remedy."""
        headers = {}
        if self.elsewhere and not is_loopback(self.elsewhere):
            self.house.address = self.elsewhere, self.house.address[1]
        else:  # a machine without a network
            headers = {"X-Forwarded-For": "192.168.1.7"}
        for path in ("/", "/log", "/log.csv", "/nodes/basement", "/events", "/chart.svg", "/metrics", "/api/v1/nodes",
                     "/api/v1/nodes/basement", "/api/v1/samples", "/api/v1/health"):  # fmt: skip
            status, told, text = self.house.request("GET", path, headers)
            self.assertEqual(status, 403, path)
            self.assertIn(b"control.py --data FOLDER password", text)
            self.assertNotIn(b"basement", text)
            self.is_safe(told)
        for path in (*Changes.CHANGES, *Changes.JSON_CHANGES):
            found = self.house.request("POST", path, {**headers, "Content-Type": "application/json"}, b'{"on": false}')
            self.assertEqual(found[0], 403, path)
        self.assertEqual((self.link.asked, self.house.stopped), ([], []))
        self.assertEqual(self.house.request("GET", "/healthz", headers)[::2], (200, b"ok\n"))
        self.assertEqual(self.house.request("GET", "/", {**headers, **self.house.bearer})[0], 200)

    def test_request_through_a_proxy_is_403_without_a_password(self):
        """A request through a proxy does not count as a request from this machine."""
        self.assertEqual(self.house.request("GET", "/")[0], 200)
        for name in ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"):
            self.assertEqual(self.house.request("GET", "/", {name: "127.0.0.1"})[0], 403, name)


class Logins(SecurityCase):
    password = PASSWORD

    def test_pages_without_a_session_lead_to_the_login(self):
        """Any page without a session while a password is set: 303 to the login page, 401 for the API."""
        for path in ("/", "/log", "/log.csv", "/nodes/basement", "/nodes/unknown"):
            for html in (True, False):
                status, headers, text = self.house.request("GET", path, html=html)
                self.assertEqual((status, headers["location"]), (303, "/login"), path)
                self.assertNotIn(b"basement", text)
        for path in ("/api/v1/nodes", "/api/v1/nodes/basement", "/api/v1/samples", "/api/v1/health", "/metrics",
        "/events",
                     "/chart.svg"):  # fmt: skip
            status, headers, text = self.house.request("GET", path)
            challenges = 'Basic realm="pigeonpost", Bearer realm="pigeonpost"'
            self.assertEqual((status, headers["www-authenticate"]), (401, challenges), path)
            self.assertNotIn(b"basement", text)
        for path in Changes.CHANGES:
            self.assertEqual(self.house.post_form(path, {"sure": "yes"})[0], 303)
        for path in Changes.JSON_CHANGES:
            self.assertEqual(self.house.request("POST", path, body=b'{"on": false}')[0], 401)
        self.assertEqual((self.link.asked, self.house.stopped), ([], []))

    def test_cookie_is_invalid_after_logout(self):
        """The cookie after a logout: 401."""
        cookie = self.house.log_in()
        csrf = self.house.csrf(cookie)
        self.assertEqual(self.house.request("GET", "/api/v1/nodes", cookie)[0], 200)
        self.house.post_form("/logout", {"csrf": csrf}, cookie)
        self.assertEqual(self.house.request("GET", "/api/v1/nodes", cookie)[0], 401)
        self.assertEqual(self.house.post_form("/nodes/basement/off", {"csrf": csrf}, cookie)[0], 303)
        self.assertEqual(self.link.asked, [])

    def test_login_creates_a_new_session_id(self):
        """A session id chosen before the login is replaced by a new one."""
        name = f"pigeonpost-{self.house.address[1]}"
        for chosen in ("x" * 43, self.house.log_in()["Cookie"].partition("=")[2]):
            before = {"Cookie": f"{name}={chosen}"}
            status, headers, _ = self.house.post_form("/login", {"user": "admin", "password": PASSWORD}, before)
            self.assertEqual(status, 303)
            self.assertNotIn(chosen, headers["set-cookie"])
            self.assertEqual(self.house.request("GET", "/api/v1/nodes", before)[0], 401)

    def test_cookie_has_safe_attributes(self):
        """The cookie has HttpOnly and SameSite=Strict, and no Domain."""
        _, headers, _ = self.house.post_form("/login", {"user": "admin", "password": PASSWORD})
        name, *about = headers["set-cookie"].split("; ")
        self.assertRegex(name, rf"\Apigeonpost-{self.house.address[1]}=[A-Za-z0-9_-]{{43}}\Z")
        self.assertEqual(about, ["Path=/", "HttpOnly", "SameSite=Strict"])
        for path in ("/login", "/", "/style.css", "/healthz", "/nowhere"):
            self.assertNotIn("set-cookie", self.house.request("GET", path, html=True)[1])

    def test_cookie_of_32_kb_is_431(self):
        """A cookie of 32 kB is longer than a head may be. http.cookies would take 1.3 s for it."""
        for said in (";" * 32_768, "a=b; " * 6500):
            self.refuses(431, "GET / HTTP/1.1", HOST, f"Cookie: {said}")
        began_s = time.thread_time()
        self.assertEqual(self.house.request("GET", "/api/v1/nodes", {"Cookie": "a=b; " * 1500})[0], 401)
        self.assertLess(time.thread_time() - began_s, 1.0)

    def test_password_of_a_megabyte_is_413(self):
        """A password of 1 MB: 413. A Unicode password is used unchanged."""
        self.assertEqual(self.house.post_form("/login", {"user": "admin", "password": "x" * (1 << 20)})[0], 413)
        for password in ("pässwörter 🕊 ", "pa\u0308sswo\u0308rter", "🕊" * 1024, "  spaces  ", "a+b&c=d%20;"):
            self.house.users.set_password("admin", password)
            self.house.log_in(password=password)
            self.assertEqual(self.house.post_form("/login", {"user": "admin", "password": password + " "})[0], 403)

    def test_changed_keys_are_401(self):
        """A key with a different last byte: 401."""
        key = self.house.bearer["Authorization"]
        for said in (key[:-1], key[:-1] + "X", key + "X", key[7:], "Bearer ", "Basic YWRtaW46YWRtaW4="):
            status, headers, text = self.house.request("GET", "/api/v1/nodes", {"Authorization": said})
            self.assertEqual(status, 401)
            self.assertIn("Bearer", headers["www-authenticate"])
            self.assertEqual(json.loads(text)["error"]["code"], "key")

    def test_viewer_cannot_change_anything(self):
        """A viewer can read but not change anything."""
        self.house.users.set_password("guest", PASSWORD, "viewer")
        cookie = self.house.log_in("guest")
        self.assertEqual(self.house.request("GET", "/", cookie)[0], 200)
        for path in Changes.CHANGES[:-1]:
            self.assertEqual(self.house.post_form(path, {"sure": "yes"}, cookie)[0], 403)
        for path in Changes.JSON_CHANGES:
            found = self.house.request("POST", path, {**cookie, "Content-Type": "application/json"}, b'{"on": true}')
            self.assertEqual(found[0], 403)
        self.assertEqual((self.link.asked, self.house.stopped), ([], []))


class WrongPasswords(SecurityCase):
    password = PASSWORD

    def build(self):
        self.clock = FakeClock()  # delays take no time
        return WebHouse(self, self.password, [self.link], self.limits, clock=self.clock)

    def attempt(self, user, source):
        body = f"user={user}&password=wrong".encode()
        head = (
            f"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        with socket.create_connection(self.house.address, LIMIT_S, source_address=(source, 0)) as sock:
            return parse_response(exchange(sock, head + body))

    def test_twenty_wrong_passwords_are_delayed_then_429(self):
        """20 wrong passwords: delays, then 429 for that address only. An unknown user gets the same response."""
        answers, waits = [], []
        for number in range(20):
            before_s = self.clock.monotonic()
            answers.append(self.attempt("admin" if number % 2 else f"unknown{number}", "127.0.0.1"))
            waits.append(self.clock.monotonic() - before_s)
        self.assertEqual([status for status, _, _ in answers], [403] * MOST + [429] * (20 - MOST))
        self.assertEqual(len({text for _, _, text in answers[:MOST]}), 1)
        self.assertEqual(waits[:MOST], sorted(waits[:MOST]))
        self.assertGreater(waits[MOST - 1], 0.5)
        self.assertGreater(int(answers[-1][1]["retry-after"]), 0)
        self.assertEqual(self.house.post_form("/login", {"user": "admin", "password": PASSWORD})[0], 429)
        self.assertEqual(self.attempt("admin", "127.0.0.2")[0], 403)


class HostileInputs(SecurityCase):
    NAMES = (
        EVIL,
        "'; DROP TABLE samples; --",
        '" OR "1"="1',
        "..",
        "../../etc/passwd",
        "x" * 300,
        "a\r\nb",
        "\0",
        "ä",
        "-a",
        " ",
    )

    def test_hostile_names_are_400(self):
        """Names such as `<img src=x onerror=...>`, SQL text, `..` or 300 characters: 400."""
        self.house.store_samples("basement", [{"temperature": 1.0}], {"temperature": "°C"})
        for name in self.NAMES:
            for path in (
                f"/api/v1/samples?node={quote(name, safe='')}", f"/api/v1/samples?sensor={quote(name, safe='')}",
                f"/chart.svg?node={quote(name, safe='')}&sensor=temperature",
                f"/chart.svg?node=basement&sensor={quote(name, safe='')}",
            ):  # fmt: skip
                with self.subTest(path):
                    status, headers, text = self.house.request("GET", path)
                    self.assertEqual(status, 400)
                    self.is_safe(headers)
                    self.assertNotIn(b"<img", text)
                    self.assertNotIn(b"DROP", text)
        self.assertEqual(len(json.loads(self.house.request("GET", "/api/v1/samples")[2])["samples"]), 1)

    def test_hostile_texts_of_a_node_are_escaped(self):
        """Names, units, faults and details of a malicious node are escaped in the output."""
        quotes = f"\"'>{EVIL}"
        self.link.state.sensors = [{"name": quotes, "unit": quotes}, {"name": "temperature", "unit": quotes}]
        self.link.state.details = {"version": EVIL, "held": EVIL, "more": quotes, quotes: [quotes]}
        self.link.state.fault = quotes
        self.link.state.last_sent = EVIL
        self.house.store_samples(
            "basement", [{"temperature": k, quotes: k} for k in range(30)], {"temperature": quotes}
        )
        self.house.store_samples("basement", [{"temperature": None}], {"temperature": quotes})
        self.house.store_samples(f"a{EVIL}", [{"temperature": 1.5}], {"temperature": EVIL})
        self.house.app.links.append(FakeLink(f"b{EVIL}", {EVIL: EVIL}, connected=False))
        self.gap(quotes)
        shown = 0
        for path in ("/", "/nodes/basement", "/nodes/basement?notice=status", "/log", "/login",
                     "/chart.svg?node=basement&sensor=temperature&span=10m"):  # fmt: skip
            for connected in (True, False):
                self.link.state.connected = connected
                status, headers, text = self.house.request("GET", path, html=True)
                self.assertEqual(status, 200, path)
                self.assertRegex(headers["content-type"], "text/html|image/svg")
                self.assertNotIn(b"<img src=x", text, path)
                self.assertNotRegex(text, rb"=\"[^\"<>]*\"'>", path)
                shown += text.count(b"&lt;img src=x")
        self.assertGreater(shown, 10)  # the hostile text was really in the pages
        for path in ("/", "/log", "/metrics", "/api/v1/nodes", "/api/v1/nodes/basement", "/api/v1/samples"):
            status, headers, text = self.house.request("GET", path)
            self.assertEqual((status, headers["x-content-type-options"]), (200, "nosniff"))
            self.assertRegex(headers["content-type"], "text/plain|application/json")

    def build(self):
        return WebHouse(self, None, links=[self.link], limits=self.limits)

    def gap(self, why):
        """Store a gap in a separate epoch."""
        done = threading.Event()
        self.house.ingestor.submit(
            Batch("basement", "00000000000000bb", E2, 0, None, Gap(1, 5, 0, why), {}, lambda *_: done.set(), print)
        )
        self.assertTrue(done.wait(LIMIT_S))

    def test_hostile_json_is_400(self):
        """NaN, Infinity, 1e999, 100,000 nested brackets, integers of 5,000 digits, duplicate keys: 400."""
        path, kind = "/api/v1/nodes/basement/send", {"Content-Type": "application/json", **self.house.browser}
        for body in (
            b'{"on": NaN}', b'{"on": Infinity}', b'{"on": -Infinity}', b'{"on": 1e999}', b"[" * 60_000,
            b'{"on":' * 10_000,
            b'{"on": ' + b"5" * 5000 + b"}", b'{"on": true, "on": false}', b'{"on": true', b"", b"\xff",
            b'{"on": "\xed\xa0\x80"}',
            b'{"on": "\\ud800"}', b"true", b"[]", b"null", b'{"on": 1}', b'{"on": "true"}', b'{"on": null}', b"{}",
            b'{"off": true}',
            b"[" * 30_000 + b"]" * 30_000, b'{"on": true}x', b"\xef\xbb\xbf{}", b'{"a":[' + b"[]," * 20_000 + b"[]]}",
        ):  # fmt: skip
            with self.subTest(body[:40]):
                status, headers, text = self.house.request("POST", path, kind, body)
                self.assertEqual(status, 400)
                self.assertLess(len(text), 400)
                self.assertIn("error", json.loads(text))
                self.is_safe(headers)
        self.assertEqual(self.house.request("POST", path, kind, b"[" * 100_000)[0], 413)
        self.assertEqual(self.link.asked, [])
        self.is_alive()

    def test_invalid_queries_are_400(self):
        """Invalid numbers and times: 400."""
        self.house.store_samples("basement", [{"temperature": 1.0}], {"temperature": "°C"})
        chart = "/chart.svg?node=basement&sensor=temperature"
        samples = "/api/v1/samples?node=basement&sensor=temperature"
        for query in (
            "from=NaN", "from=1e999", f"from={'9' * 5000}", "from=-1", "from=2026-13-45T99:99:99Z", "to=%00",
            "from=0000-01-01T00:00:00Z", "a=%ff", "from=%D9%A1", "to=1&to=2",
        ):  # fmt: skip
            for path in (chart, samples):
                with self.subTest((path, query[:30])):
                    status, headers, _ = self.house.request("GET", f"{path}&{query}")
                    self.assertEqual(status, 400)
                    self.is_safe(headers)
        for query in ("limit=0", "limit=-1", "limit=1e3", "limit=99999999999", "step=0", "step=-1h", "step=1y",

                      "format=xml", "step=1s&from=0"):  # fmt: skip
            self.assertEqual(self.house.request("GET", f"{samples}&{query}")[0], 400, query)
        for query in ("span=0", "span=-1", "span=1e9d", "span=%C2%B2h", "span="):
            self.assertEqual(self.house.request("GET", f"{chart}&{query}")[0], 400, query)
        self.is_alive()


class CsvCells(SecurityCase):
    def test_formulas_in_csv_cells_are_quoted(self):
        """Text cells that start with = + - @ or a tab in CSV are prefixed with `'`, unless they are numbers."""
        units = {"a": "=1+1", "b": "+1", "c": "-1", "d": "@SUM(A1)", "e": "\t=1", "f": "%", "g": '=a","b', "h": "\r=1"}
        self.house.store_samples("basement", [dict.fromkeys(units, -1.5), {"a": -3}, {"a": None}], units)
        _, headers, text = self.house.request("GET", "/log.csv")
        self.assertEqual(headers["content-type"], "text/csv; charset=utf-8")
        self.assertRegex(headers["content-disposition"], r'\Aattachment; filename="sensorlog_[0-9_]+\.csv"\Z')
        rows = list(csv.reader(io.StringIO(text.decode(), newline="")))
        said = {row[2]: row[4] for row in rows[1:9]}
        self.assertEqual(said, {name: f"'{unit}" if unit != "%" else unit for name, unit in units.items()})
        self.assertEqual([row[3] for row in rows[1:]], ["-1.5"] * 8 + ["-3", ""])
        self.no_formula(rows)
        _, _, text = self.house.request("GET", "/api/v1/samples?node=basement&format=csv")
        rows = list(csv.reader(io.StringIO(text.decode(), newline="")))
        self.assertEqual(len(rows), 11)
        self.no_formula(rows)

    def no_formula(self, rows):
        for cell in (cell for row in rows for cell in row):
            self.assertTrue(cell[:1] not in tuple("=+-@\t\r") or re.fullmatch(r"-[0-9.]+", cell), cell)


class HandlerErrors(SecurityCase):
    def test_exception_in_a_handler_is_500_without_a_traceback(self):
        """An exception in a handler: 500 with an id and without a traceback; the server continues."""
        logging.getLogger("pigeonpost.web.http_server").setLevel(logging.NOTSET)
        secret = KeyError("/home/pi/secret")
        for path, accept in (
            ("/log", "text/html"),
            ("/log", "*/*"),
            ("/nodes/basement", "*/*"),
            ("/api/v1/samples", "*/*"),
        ):
            with (
                mock.patch.object(self.house.csv, "last", side_effect=secret),
                mock.patch.object(self.house.store, "gaps", side_effect=secret),
                mock.patch.object(self.house.store, "nodes", side_effect=secret),
                self.assertLogs("pigeonpost.web.http_server", "ERROR") as logged,
            ):
                head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
                again = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                status, headers, text, rest = next_response(self.house.raw((head + again).encode(), ends=False))
            self.assertEqual(status, 500)
            self.is_safe(headers)
            number = re.search(rb"See ([0-9a-f]{8}) in the log", text)[1].decode()
            self.assertIn(f"internal error {number} in GET {path}", logged.output[0])
            self.assertIn("KeyError: '/home/pi/secret'", logged.output[0])
            for word in (b"secret", b"Traceback", b"KeyError", b".py", b"line "):
                self.assertNotIn(word, text)
            self.assertEqual(parse_response(rest)[2], b"ok\n")  # on the same connection
        self.is_alive()


class ResponseHeaders(SecurityCase):
    def test_all_responses_have_the_safe_headers(self):
        """Every response has the CSP with `default-src 'none'`, own resources only, no framing, and nosniff."""
        policy = dict(part.strip().partition(" ")[::2] for part in SAFE_HEADERS["Content-Security-Policy"].split(";"))
        self.assertEqual(policy, {
            "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self'",
            "connect-src": "'self'", "form-action": "'self'", "base-uri": "'none'", "frame-ancestors": "'none'",
        })  # fmt: skip
        self.assertEqual(SAFE_HEADERS["X-Content-Type-Options"], "nosniff")
        self.assertEqual(SAFE_HEADERS["Referrer-Policy"], "no-referrer")
        self.house.store_samples("basement", [{"temperature": 1.5}], {"temperature": "°C"})
        statuses = set()
        for request in (
            "GET /", "GET /nodes/basement", "GET /log", "GET /log.csv", "HEAD /",
            "GET /chart.svg?node=basement&sensor=temperature",
            "GET /login", "GET /api/v1/nodes", "GET /api/v1/nodes/basement", "GET /api/v1/samples",
            "GET /api/v1/health",
            "GET /api/v1/samples?format=csv", "GET /metrics", "GET /healthz", "GET /style.css", "GET /script.js",
            "GET /favicon.svg", "HEAD /events", "GET /nowhere", "GET /api/nowhere", "PUT /", "POST /exit",
            "POST /nodes/basement/on",
            "POST /api/v1/nodes/basement/send", "POST /api/v1/nodes/basement/check", "POST /login", "GET /?key=wrong",
            "GET http://evil/", "GET /api/v1/samples?limit=x",
        ):  # fmt: skip
            for html in (True, False):
                method, path = request.split(" ")
                status, headers, text = self.house.request(method, path, html=html)
                statuses.add(status)
                with self.subTest(request):
                    self.is_safe(headers)
                    self.assertRegex(
                        headers["date"], r"\A[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} 20[0-9]{2} [:0-9]+ GMT\Z"
                    )
                    kind = headers["content-type"]
                    self.assertRegex(kind, r"; charset=utf-8\Z|\Aapplication/json\Z|\Aimage/svg\+xml")
                    if "text/html" in kind:
                        self.nothing_inline(text.decode())
                    if "style" not in path and "script" not in path and "favicon" not in path and "http" not in path:
                        self.assertIn("cache-control", headers)
        self.assertEqual(self.house.request("GET", "/log.csv", {"Range": "bytes=0-4"})[2], b"time,")
        for headers in ({"Range": "bytes=0-4"}, {"Range": "bytes=999999-"}):
            status, told, _ = self.house.request("GET", "/log.csv", headers)
            statuses.add(status)
            self.is_safe(told)
        self.assertGreaterEqual(statuses, {200, 206, 400, 403, 404, 405, 416})

    def nothing_inline(self, page):
        """Check that the page contains nothing that the policy would block."""
        self.assertNotRegex(page, r"(?i)<script(?! src=\"/script\.js\" defer></script>)")
        self.assertNotRegex(page, r"(?i)\son[a-z]+\s*=")
        self.assertNotRegex(page, r"(?i)\sstyle\s*=|<style|javascript:|<iframe|<object|<embed|<base")
        self.assertNotRegex(page, r"(?i)(src|href|action)=[\"']?(https?:)?//")


class Link(unittest.TestCase):
    """Proofs and ACKs of the link, at the socket. Missing AUTH, endless lines and floods are in tests/transports."""

    TOKEN = "0123456789abcdef0123456789abcdef"
    SERVER, NODE = "home", "basement"

    def setUp(self):
        self.clock = Clock()
        self.outbox = Outbox(Ring("/card", 64, 128, MemoryDisk()), BOOT)
        self.outbox.start()
        self.addCleanup(self.outbox.stop, LIMIT_S)

    def node(self, token=TOKEN):
        info = NodeInfo(
            self.NODE, [{"name": "temperature", "unit": "°C"}], 10.0, LinkKey(token) if token else None,
            lambda on: None, dict,
        )  # fmt: skip
        end = TcpNodeTransport(("127.0.0.1", 0), info, self.outbox, self.clock)
        end.start()
        self.addCleanup(end.stop, LIMIT_S)
        return end

    def hello(self, nonce="f" * 32, **more):
        return encode("HELLO", {"link": 1, "server": self.SERVER, "nonce": nonce, **more})

    def is_closed_with(self, talk, code):
        """Check that the last message is ERROR with this code, and that no data was sent before."""
        said = talk.rest()
        self.assertEqual([message.word for message in said if message.word in ("SENSORS", "STATUS", "SENDBACK")], [])
        self.assertEqual((said[-1].word, said[-1].args[0]), ("ERROR", code))

    def proof(self, nonces, side="server", token=TOKEN):
        identity = self.outbox.ring.identity
        return LinkKey(token).sign(side, self.SERVER, self.NODE, identity, nonces)

    def test_replayed_handshake_is_closed(self):
        """A replayed handshake on the link: closed and logged once."""
        end = self.node()
        with Talk(end.address) as talk:
            talk.send(self.hello())
            theirs = talk.until("HELLO").args[0]["nonce"]
            recorded = (
                self.hello() + encode("AUTH", {"mac": self.proof(("f" * 32, theirs))}) + encode("RESUME", {"id": 0})
            )
            talk.send(recorded[len(self.hello()) :])
            wait_until(lambda: end.collectors == [self.SERVER], "it was accepted once")
        with self.assertLogs("pigeonpost.transports", "WARNING") as logged, Talk(end.address) as talk:
            talk.send(recorded)
            self.is_closed_with(talk, "auth")
        self.assertEqual(len(logged.output), 1)

    def test_reflected_proof_is_closed(self):
        """A proof for a reflected nonce on the link: closed."""
        for choose in (lambda told: told["mac"], lambda told: self.proof(("f" * 32, told["nonce"]), side="node"),
                       lambda told: self.proof((told["nonce"], "f" * 32)), lambda told: "", lambda told: None,
                       lambda told: self.proof(("f" * 32, told["nonce"]))[:-1] + "x"):  # fmt: skip
            with (
                self.assertLogs("pigeonpost.transports", "WARNING") as logged,
                Talk(self.node().address) as talk,
            ):
                talk.send(self.hello())
                talk.send(encode("AUTH", {"mac": choose(talk.until("HELLO").args[0])}))
                self.is_closed_with(talk, "auth")
            self.assertEqual(len(logged.output), 1)

    def test_token_of_another_node_is_refused(self):
        """The token of another node gives no access to this node."""
        with self.assertLogs("pigeonpost.transports", "WARNING"), Talk(self.node().address) as talk:
            talk.send(self.hello())
            theirs = talk.until("HELLO").args[0]["nonce"]
            talk.send(encode("AUTH", {"mac": self.proof(("f" * 32, theirs), token=self.TOKEN[:-1] + "0")}))
            self.is_closed_with(talk, "auth")

    def test_ack_for_an_unsent_sample_is_closed(self):
        """An ACK for a sample that was never sent: closed and logged once."""
        end = self.node(token="")
        self.outbox.put(taken())
        wait_until(lambda: self.outbox.ring.last == 1, "it is held")
        with self.assertLogs("pigeonpost.transports", "WARNING") as logged, Talk(end.address) as talk:
            talk.send(encode("HELLO", {"link": 1, "server": self.SERVER}) + encode("RESUME", {"id": 0}))
            talk.until("SENSORS")
            talk.send(encode("ACK", self.outbox.epoch, 2))
            self.assertEqual(talk.rest()[-1].args[0], "bad-ack")
        self.assertEqual(len(logged.output), 1)
        self.assertEqual(self.outbox.ring.last, 1)


if __name__ == "__main__":
    unittest.main()
