"""Tests of the forwarding headers of proxies: trusted proxies, client address, scheme, name and path."""

import logging
import unittest

from pigeonpost.auth.throttle import MOST, MOST_OF_PROXY, LoginThrottle
from pigeonpost.core.clock import FakeClock
from pigeonpost.http.message import HTTPError, Request
from pigeonpost.web.proxies import Proxies, shows_proxy
from tests.web.support import WebHouse

PASSWORD = "correct horse"
ELSEWHERE = "192.168.1.7"
LOCAL = "127.0.0.1"


def read(proxies=None, peer=LOCAL, path="/", version="1.1", **headers):
    """Return a request with these headers after Proxies.read. `_` in the name of a header means `-`."""
    told = {"host": "127.0.0.1:8080", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = Request("GET", path, version, told)
    request.peer = peer
    (proxies or Proxies()).read(request)
    return request


class Trust(unittest.TestCase):
    HEADERS = {
        "x_forwarded_for": ELSEWHERE, "x_forwarded_proto": "https", "x_forwarded_host": "sensors.example.org",
        "x_forwarded_prefix": "/sensors",
    }  # fmt: skip

    def found(self, request):
        return request.peer, request.proxy, request.is_secure, request.forwarded_host, request.prefix

    def test_proxy_on_this_machine_is_trusted(self):
        for peer in ("127.0.0.1", "127.0.0.5", "::1"):
            found = self.found(read(peer=peer, **self.HEADERS))
            self.assertEqual(found, (ELSEWHERE, peer, True, "sensors.example.org", "/sensors"))

    def test_headers_of_other_machines_are_ignored(self):
        for peer in ("192.168.1.8", "10.0.0.1", "fe80::1", "2001:db8::1"):
            self.assertEqual(self.found(read(peer=peer, **self.HEADERS)), (peer, "", False, "", ""))

    def test_proxies_in_the_settings_are_trusted(self):
        proxies = Proxies(["172.16.0.0/12", "192.168.1.5/32", "2001:db8::/32"])
        for peer in ("172.18.0.3", "192.168.1.5", "2001:db8::7"):
            self.assertEqual(read(proxies, peer, **self.HEADERS).proxy, peer)
        for peer in ("172.32.0.1", "192.168.1.6", "2001:db9::7", "fe80::1%eth0"):
            self.assertEqual(read(proxies, peer, **self.HEADERS).proxy, "")

    def test_local_client_without_proxy_headers_is_not_a_proxy(self):
        self.assertEqual(self.found(read()), (LOCAL, "", False, "", ""))
        self.assertEqual(read(version="1.0").proxy, LOCAL)  # nginx with its defaults


class Client(unittest.TestCase):
    def assert_client(self, wanted, proxies=None, **headers):
        with self.subTest(headers):
            self.assertEqual(read(proxies, **headers).peer, wanted)

    def test_client_is_the_last_address_of_no_trusted_proxy(self):
        """The client may have invented the addresses before it."""
        for told, wanted in (
            (ELSEWHERE, ELSEWHERE), ("1.2.3.4, 192.168.1.7", ELSEWHERE), ("evil, 192.168.1.7", ELSEWHERE),
            ("192.168.1.7, 127.0.0.1", ELSEWHERE), ("2001:db8::7", "2001:db8::7"), ("[2001:DB8::7]:443", "2001:db8::7"),
            ("192.168.1.7:50000", ELSEWHERE), ("::ffff:192.168.1.7", ELSEWHERE), ("127.0.0.1, ::1", LOCAL),
        ):  # fmt: skip
            self.assert_client(wanted, x_forwarded_for=told)
        behind_another = Proxies(["192.168.1.0/24"])
        self.assert_client("10.1.1.1", behind_another, x_forwarded_for="9.9.9.9, 10.1.1.1, 192.168.1.7")

    def test_invalid_client_address_is_replaced_by_that_of_the_proxy(self):
        for told in (
            "", " ", "unknown", "_hidden", "1.2.3.4, unknown", "1.2.3", "999.1.1.1", "1.2.3.4.5", "::g", "[]",
            "1.2.3.4;5", ",", "a" * 5000, "," * 5000,
        ):  # fmt: skip
            self.assert_client(LOCAL, x_forwarded_for=told)

    def test_x_real_ip_is_read_without_x_forwarded_for(self):
        self.assert_client(ELSEWHERE, x_real_ip=ELSEWHERE)
        self.assert_client(ELSEWHERE, x_real_ip="1.2.3.4", x_forwarded_for=ELSEWHERE)


class SchemeAndName(unittest.TestCase):
    def test_scheme_is_that_of_the_nearest_proxy(self):
        for told, wanted in (
            ("https", True),
            ("HTTPS", True),
            ("http, https", True),
            ("https, http", False),
            ("", False),
        ):
            self.assertEqual(read(x_forwarded_proto=told).is_secure, wanted, told)

    def test_forwarded_host_must_match_the_pattern(self):
        for told, wanted in (
            ("Sensors.Example.org:8443", "sensors.example.org:8443"), ("evil, good.org", "good.org"),
            ("[::1]:80", "[::1]:80"), ("", ""), ("<b>", ""), ("a b", ""), ("a'; rm -rf /", ""), ("x" * 300, ""),
        ):  # fmt: skip
            self.assertEqual(read(x_forwarded_host=told).forwarded_host, wanted, told)

    def test_site_is_the_url_for_the_client(self):
        told = {"x_forwarded_host": "sensors.example.org:8443", "x_forwarded_proto": "https"}
        self.assertEqual(read(**told, x_forwarded_prefix="/a/b/").site, "https://sensors.example.org:8443/a/b")
        self.assertEqual(read().site, "http://127.0.0.1:8080")


class Prefix(unittest.TestCase):
    def test_valid_paths_are_accepted(self):
        for told, wanted in (
            ("/sensors", "/sensors"), ("/sensors/", "/sensors"), ("/", ""), ("", ""),
            ("/a/b.c/d_e-f~g", "/a/b.c/d_e-f~g"),
            ("/" + "a" * 199, "/" + "a" * 199), ("/...", "/..."), ("/.well", "/.well"),
        ):  # fmt: skip
            self.assertEqual(read(x_forwarded_prefix=told).prefix, wanted, told)

    def test_invalid_paths_are_refused(self):
        for told in (
            "sensors", "//evil.example", "/a//b", "/..", "/a/../b", "/.", "/a/.", "/a b", '/"><script>', "/a?b", "/a#b",
            "/%2e%2e", "/a%0d%0ab", "/a\\b", "http://evil.example", "/" + "a" * 200, "/a, /b", "/\u00e4", "/a;b",
            "/a'b", "/a//", "/a\n",
        ):  # fmt: skip
            with self.subTest(told), self.assertRaises(HTTPError) as caught:
                read(x_forwarded_prefix=told)
            self.assertEqual((caught.exception.status, caught.exception.code), (400, "prefix"))
            self.assertEqual(
                caught.exception.text,
                "X-Forwarded-Prefix takes a path such as /sensors, of at most 200 letters, digits, and . _ ~ -.",
            )

    def test_path_in_the_settings_is_removed_from_requests(self):
        proxies = Proxies(prefix="/sensors", is_known=lambda path: True)
        for peer in (LOCAL, ELSEWHERE):
            for path, wanted in (
                ("/sensors/log", "/log"), ("/sensors/", "/"), ("/sensors", "/"), ("/log", "/log"), ("/", "/"),
                ("/sensorsx/log", "/sensorsx/log"), ("/sensors/sensors/log", "/sensors/log"),
            ):  # fmt: skip
                request = read(proxies, peer, path)
                self.assertEqual((request.path, request.prefix), (wanted, "/sensors"), path)

    def test_path_in_the_header_is_removed_from_unknown_paths(self):
        known = {"/log", "/nodes/log", "/nodes/nodes"}
        proxies = Proxies(is_known=known.__contains__)
        for prefix, path, wanted in (
            ("/sensors", "/sensors/log", "/log"), ("/sensors", "/log", "/log"), ("/nodes", "/nodes/log", "/nodes/log"),
            ("/nodes", "/log", "/log"),
        ):  # fmt: skip
            self.assertEqual(read(proxies, path=path, x_forwarded_prefix=prefix).path, wanted, (prefix, path))

    def test_header_overrides_the_settings(self):
        request = read(Proxies(prefix="/sensors"), x_forwarded_prefix="/other")
        self.assertEqual(request.prefix, "/other")


class Guessing(unittest.TestCase):
    """Failed logins through a proxy are counted for the forwarded client address and for the proxy."""

    def setUp(self):
        self.throttle = LoginThrottle(FakeClock())

    def attempt(self, host, proxy=LOCAL, account="admin"):
        """Make a failed attempt. Return True if it was refused without checking the password."""
        return self.throttle.begin(host, account, proxy)[1] > 0

    def test_failures_of_one_client_do_not_affect_others(self):
        refused = [self.attempt(ELSEWHERE) for _ in range(MOST + 5)]
        self.assertEqual(refused, [False] * MOST + [True] * 5)
        self.assertFalse(self.attempt("192.168.1.8"))

    def test_invented_addresses_reach_the_limit_of_the_proxy(self):
        """By default, nginx passes on the X-Forwarded-For of the client unchanged."""
        refused = [self.attempt(f"10.0.{k // 250}.{k % 250}", account=f"user{k % 7}") for k in range(MOST_OF_PROXY + 5)]
        self.assertEqual(refused, [False] * MOST_OF_PROXY + [True] * 5)
        self.assertFalse(self.attempt("192.168.1.8", proxy=""))
        self.assertFalse(self.attempt("192.168.1.8", proxy="192.168.1.5"))

    def test_success_clears_the_failures_with_that_account(self):
        for k in range(MOST_OF_PROXY - 1):
            self.attempt(f"10.0.0.{k}")
        self.throttle.succeeded("10.0.0.1", "admin", LOCAL)
        self.assertEqual([self.attempt(f"10.0.1.{k}") for k in range(MOST_OF_PROXY)], [False] * MOST_OF_PROXY)

    def test_failed_logins_through_a_proxy_are_counted_per_client(self):
        for name in ("pigeonpost.web.access", "pigeonpost.auth.throttle"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
            self.addCleanup(logging.getLogger(name).setLevel, logging.NOTSET)
        clock = FakeClock()
        house = WebHouse(self, password=PASSWORD, clock=clock)

        def log_in(password, client):
            headers = {"X-Forwarded-For": f"6.6.6.6, {client}"}
            return house.post_form("/login", {"user": "admin", "password": password}, headers)[0]

        statuses = [log_in("wrong", ELSEWHERE) for _ in range(MOST + 1)]
        self.assertEqual(statuses, [403] * MOST + [429])
        self.assertEqual(log_in(PASSWORD, ELSEWHERE), 429)
        self.assertEqual(log_in(PASSWORD, "192.168.1.8"), 303)


class Signs(unittest.TestCase):
    def test_proxy_headers_are_recognised(self):
        for name in (
            "Forwarded", "Via", "X-Forwarded-For", "X_Real_IP", "CF-Ray", "CDN-Loop", "X-Anything", "Remote-User",
            "SSL-Client-Verify", "Surrogate-Capability", "Front-End-Https", "WL-Proxy-Client-IP", "Incap-Client-IP",
            "Ali-CDN-Real-IP", "EO-Connecting-IP", "traceparent",
        ):  # fmt: skip
            self.assertTrue(shows_proxy(Request("GET", "/", "1.1", {"host": "a", name.lower(): "x"})), name)

    def test_headers_of_browsers_and_pages_are_not_proxy_headers(self):
        headers = dict.fromkeys(
            ("host", "accept", "cookie", "origin", "sec-fetch-site", "x-csrf-token", "x-requested-with", "upgrade"), "x"
        )
        self.assertFalse(shows_proxy(Request("GET", "/", "1.1", headers)))


if __name__ == "__main__":
    unittest.main()
