"""Tests of the names of the server: known names, the message for unknown names, and the origin of changes."""

import logging
import os
import re
import socket
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.http.message import HTTPError, Request
from pigeonpost.web.host_names import HostNames, NamesOrigin, is_this_machine
from tests.web.support import WebHouse

PROXY = "127.0.0.1"
UUID = "1a2b3c4d5e6f708192a3b4c5d6e7f809"


def request_of(peer="127.0.0.1", version="1.1", proxy="", forwarded_host="", **headers):
    """Return a request as the web server passes it on. `_` in a header name means `-`; None omits the header."""
    told = {"host": "localhost:8080", **{name.lower().replace("_", "-"): said for name, said in headers.items()}}
    request = Request("GET", "/", version, {name: said for name, said in told.items() if said is not None})
    request.peer, request.proxy, request.forwarded_host = peer, proxy, forwarded_host
    return request


class HostNamesCase(unittest.TestCase):
    def setUp(self):
        logging.getLogger("pigeonpost.web.host_names").setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger("pigeonpost.web.host_names").setLevel, logging.NOTSET)

    def make(self, *names, file="", variable="", host="raspberrypi", environment=None):
        own = {name: said for name, said in os.environ.items() if not name.startswith("BALENA")}
        with (
            mock.patch.object(socket, "gethostname", lambda: host),
            mock.patch.dict(os.environ, own | (environment or {}), clear=True),
        ):
            return HostNames(names, NamesOrigin(file, variable), FakeClock())

    def refused(self, status, code, call, *args):
        with self.assertRaises(HTTPError) as caught:
            call(*args)
        self.assertEqual((caught.exception.status, caught.exception.code), (status, code))
        return caught.exception.text


class OwnNames(HostNamesCase):
    """The name of a hostile page may resolve to this server (DNS rebinding), so unknown names are refused."""

    def assert_known(self, names, *hosts):
        for host in hosts:
            with self.subTest(host):
                names.check_host(request_of(host=host))

    def assert_unknown(self, names, *hosts):
        for host in hosts:
            with self.subTest(host):
                self.refused(421, "name", names.check_host, request_of(host=host))

    def test_addresses_and_set_names_are_known(self):
        self.assert_known(
            self.make("Page.Example.org"),
            "localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "192.168.1.20:8080", "[::1]", "[fe80::1]:80",
            "0.0.0.0", "page.example.org:99999", "page.example.ORG.", None,  # None: HTTP/1.0, so no browser
        )  # fmt: skip

    def test_names_of_this_machine_in_local_networks_are_known(self):
        self.assert_known(
            self.make(),
            "raspberrypi", "raspberrypi:8080", "RaspberryPi.local", "raspberrypi.local.", "raspberrypi.lan:80",
            "raspberrypi.fritz.box", "raspberrypi.home.arpa", "raspberrypi.home", "raspberrypi.internal",
            "raspberrypi.localdomain",
        )  # fmt: skip
        self.assert_known(self.make(host="pi.example.org"), "pi.example.org", "pi", "pi.lan")

    def test_foreign_name_in_a_local_domain_is_unknown(self):
        self.assert_unknown(
            self.make(),
            "other.lan", "fritz.box", "lan", "evil.raspberrypi.lan", "raspberrypi.evil.lan", "raspberrypi.lan.evil.org",
            "raspberrypi.example.org", "raspberrypi.box", "raspberrypi.arpa", "raspberrypilan",
        )  # fmt: skip

    def test_foreign_and_malformed_names_are_unknown(self):
        self.assert_unknown(
            self.make(),
            "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost",
            "", " ",
            "localhost:", "localhost:80:80", "localhost:999999", "user@localhost", "localhost/",
            "localhost,localhost", "1.2.3",
            "0x7f000001", "127.1", "1.2.3.4.5", "256.0.0.1", "[::1", "::1", "[]", "[evil]", "[::1]evil", "[1.2.3.4]",
            ".", "..",
            "local", "localhost..", "\u0131localhost", "x" * 300, "[" + ":" * 45 + "]", "127.0.0.1\t", "example.org",
        )  # fmt: skip

    def test_balena_device_is_known_by_uuid_and_name(self):
        environment = {"BALENA_DEVICE_UUID": UUID, "BALENA_DEVICE_NAME_AT_INIT": "quiet-river"}
        self.assert_known(
            self.make(host="3f2a1b4c5d6e", environment=environment),
            f"{UUID[:7]}.local", UUID[:7], f"{UUID}.balena-devices.com", "quiet-river.local", "3f2a1b4c5d6e",
        )  # fmt: skip
        for uuid in ("", "evil.org", "../../etc", UUID[:6], "x" * 32):
            names = self.make(environment={"BALENA_DEVICE_UUID": uuid})
            self.assert_unknown(names, f"{UUID[:7]}.local", f"{uuid}.balena-devices.com", f"{uuid[:7]}.local")

    def test_name_may_be_written_as_an_address(self):
        """Users copy the address from the browser."""
        for written in ("https://sensors.example.org:8443/", "sensors.example.org:8443", "SENSORS.example.org."):
            self.assert_known(self.make(written), "sensors.example.org", "sensors.example.org:8443")


class UnknownName(HostNamesCase):
    """The response to an unknown name contains the file, the table, the key and the line to write."""

    def told(self, names, host="sensors.example.org:8443", **more):
        return self.refused(421, "name", names.check_host, request_of(host=host, **more))

    def test_response_contains_the_line_for_the_settings_file(self):
        text = self.told(self.make(file="/etc/pigeonpost/server.toml"))
        self.assertEqual(
            text,
            "sensors.example.org is not a name of this server.\n"
            "If it is yours, add it to /etc/pigeonpost/server.toml, table [web], and restart the server:\n"
            '    names = ["sensors.example.org"]',
        )

    def test_response_does_not_contain_the_other_names(self):
        """The configured names are not shown to a client that uses an unknown name."""
        text = self.told(self.make("house.example.org", file="/etc/pigeonpost/server.toml"))
        self.assertIn("add it to /etc/pigeonpost/server.toml, table [web]", text)
        self.assertIn('names = [..., "sensors.example.org"]', text)
        self.assertNotIn("house.example.org", text)

    def test_folder_of_the_file_is_in_the_log_only(self):
        names = self.make(file="/home/ann/pi/server.toml")
        logger = "pigeonpost.web.host_names"
        logging.getLogger(logger).setLevel(logging.NOTSET)
        with self.assertLogs(logger, "WARNING") as logged:
            text = self.told(names)
            self.told(names)  # a second time in the same minute
        self.assertIn("server.toml, the server's settings file, table [web]", text)
        self.assertNotIn("/home/ann", text)
        self.assertEqual(len(logged.output), 1)
        self.assertIn('[web] names = ["sensors.example.org"] in /home/ann/pi/server.toml', logged.output[0])

    def test_response_without_a_file_contains_the_variable(self):
        text = self.told(self.make())
        self.assertIn('names = ["sensors.example.org"]', text)
        self.assertIn("    PIGEONPOST_WEB_NAMES=sensors.example.org", text)

    def test_response_contains_the_variable_if_it_is_set(self):
        text = self.told(self.make("a.org", file="/etc/pigeonpost/server.toml", variable="PIGEONPOST_WEB_NAMES"))
        self.assertIn("    PIGEONPOST_WEB_NAMES=...,sensors.example.org", text)
        self.assertNotIn("server.toml", text)

    def test_unregistrable_name_is_not_repeated(self):
        for host in ("evil.example", "evil.example:8080", "www.evil.invalid.", "evil.EXAMPLE"):
            text = self.told(self.make(), host)
            self.assertNotIn("evil", text)
            self.assertLess(len(text), 300)

    def test_unusual_characters_are_not_repeated(self):
        for host in (
            "<script>", "evil example", "a" * 101 + ".org", "x\x1b[31m", "evil..org'", "-evil.org", "e_v.org", "[::g]",
            "evil.org/<b>", "user@evil.org", "evil.org:999999",
        ):  # fmt: skip
            text = self.told(self.make(), host)
            self.assertIn("That is not a name of this server.", text)
            self.assertNotIn(host, text)

    def test_response_through_a_proxy_contains_the_proxy_setting(self):
        """nginx with an `upstream` block sends the name of the block."""
        self.assertNotIn("proxy_set_header", self.told(self.make()))
        for more in ({"version": "1.0"}, {"x_forwarded_for": "192.168.1.7"}):
            self.assertIn("proxy_set_header Host $http_host;", self.told(self.make(), "backend", **more))


class Origins(HostNamesCase):
    """Pages of other sites cannot change anything. The browser reports the page that makes the request."""

    def setUp(self):
        super().setUp()
        self.names = self.make("sensors.example.org")

    def allowed(self, **request):
        with self.subTest(request):
            self.names.check_origin(request_of(**request))

    def test_own_pages_are_allowed(self):
        for headers in (
            {}, {"origin": "http://localhost:8080"}, {"origin": "https://LOCALHOST:8080"},
            {"sec_fetch_site": "same-origin"}, {"sec_fetch_site": "same-origin", "origin": "null"},
            {"sec_fetch_site": "none"}, {"host": "10.0.0.5", "origin": "http://10.0.0.5"},
        ):  # fmt: skip
            self.allowed(**headers)

    def test_pages_of_other_sites_are_refused(self):
        for headers in (
            {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": ""}, {"origin": "http://localhost"},
            {"origin": "http://localhost:8081"}, {"origin": "http://localhost:8080.evil.example"},
            {"origin": "http://localhost:8080/"}, {"origin": "localhost:8080"}, {"origin": "ftp://localhost:8080"},
            {"origin": "http://evil.example http://localhost:8080"}, {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"}, {"sec_fetch_site": ""}, {"sec_fetch_site": "Same-Origin, none"},
            {"origin": "http://localhost:8080", "sec_fetch_site": "cross-site"}, {"host": None,
            "origin": "http://evil.example"}, {"host": None, "origin": "http://"}, {"host": "", "origin": "https://"},
        ):  # fmt: skip
            with self.subTest(headers):
                self.refused(403, "cross-site", self.names.check_origin, request_of(**headers))

    def test_sec_fetch_site_is_sufficient_if_a_proxy_replaces_host(self):
        """nginx without `proxy_set_header` sends the name of its upstream, and `Host $host` omits the port."""
        origin = "https://sensors.example.org:8443"
        for host in ("127.0.0.1:8080", "sensors.example.org"):
            self.allowed(host=host, origin=origin, sec_fetch_site="same-origin", version="1.0", proxy=PROXY)

    def test_old_browser_is_allowed_if_a_proxy_forwards_its_host(self):
        origin = "https://page.example.net:8443"
        self.allowed(host="127.0.0.1:8080", origin=origin, proxy=PROXY, forwarded_host="page.example.net:8443")
        for forwarded_host in ("", "page.example.net", "page.example.net:8444", "evil.example"):
            request = request_of(host="127.0.0.1:8080", origin=origin, proxy=PROXY, forwarded_host=forwarded_host)
            self.refused(403, "cross-site", self.names.check_origin, request)

    def test_old_browser_is_allowed_if_a_proxy_omits_the_port(self):
        """The name must be in the settings. Without a proxy, another port is the page of another program."""
        for origin in (
            "https://sensors.example.org:8443",
            "http://sensors.example.org",
            "https://SENSORS.example.org.",
        ):
            self.allowed(host="sensors.example.org", origin=origin, proxy=PROXY)
        for origin, proxy in (
            ("https://sensors.example.org:8443", ""), ("https://evil.example", PROXY), ("http://localhost:81", PROXY),
            ("https://raspberrypi:81", PROXY), ("https://192.168.1.5:81", PROXY), ("https://[::1]:81", PROXY),
            ("https://sensors.example.org:8443/", PROXY), ("https://a@sensors.example.org", PROXY),
            ("https://sensors.example.org.evil.example", PROXY), ("null", PROXY), ("", PROXY),
        ):  # fmt: skip
            with self.subTest(origin):
                request = request_of(host="sensors.example.org", origin=origin, proxy=proxy)
                self.refused(403, "cross-site", self.names.check_origin, request)

    def test_response_contains_the_setting_of_each_proxy(self):
        text = self.refused(403, "cross-site", self.names.check_origin, request_of(origin="http://evil.example"))
        for line in (
            "Pages of other sites are not allowed to change anything", "    proxy_set_header Host $http_host;",
            "    ProxyPreserveHost On",
        ):  # fmt: skip
            self.assertIn(line, text)
        self.assertNotIn("evil", text)
        told = request_of(origin="http://evil.example", sec_fetch_site="cross-site")
        self.assertNotIn("proxy", self.refused(403, "cross-site", self.names.check_origin, told))


class ThisMachine(unittest.TestCase):
    def test_client_of_a_proxy_is_never_this_machine(self):
        self.assertTrue(is_this_machine(request_of()))
        for more in ({"proxy": PROXY}, {"version": "1.0"}, {"x_real_ip": "127.0.0.1"}, {"peer": "192.168.1.7"}):
            self.assertFalse(is_this_machine(request_of(**more)), more)


class UnknownNamePage(unittest.TestCase):
    def test_browser_sees_the_line_for_the_settings(self):
        logging.getLogger("pigeonpost.web.host_names").setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger("pigeonpost.web.host_names").setLevel, logging.NOTSET)
        house = WebHouse(self, password="correct horse")
        status, _, body = house.request("GET", "/", {"Host": "sensors.example.org"}, html=True)
        self.assertEqual(status, 421)
        shown = re.findall("<pre>(.*?)</pre>", body.decode())
        self.assertEqual(
            shown, ["names = [&quot;sensors.example.org&quot;]", "PIGEONPOST_WEB_NAMES=sensors.example.org"]
        )
        style = {"Host": "sensors.example.org", "Accept": "text/css,*/*;q=0.1"}  # as in requests of browsers
        for path, wanted in (("/style.css", 200), ("/login", 421), ("/script.js", 421), ("/api/v1/nodes", 421)):
            self.assertEqual(house.request("GET", path, style)[0], wanted, path)
        status, _, body = house.request("GET", "/", {"Host": '"><script>alert(1)</script>'}, html=True)
        self.assertEqual(status, 421)
        self.assertNotIn(b"alert", body)


if __name__ == "__main__":
    unittest.main()
