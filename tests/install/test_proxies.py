"""The page through a real nginx in the usual configurations.

Page, login, buttons, live values, charts and downloads.
"""

import http.client
import json
import logging
import re
import ssl
import unittest
from unittest import mock
from urllib.parse import urlencode, urljoin, urlsplit

from pigeonpost.core.clock import FakeClock
from tests.install import need_install
from tests.install.nginx import Nginx, documented
from tests.install.other_proxies import Apache, Caddy
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S
from tests.web.support import FakeLink, WebHouse

PASSWORD = "correct horse"
NAME = "sensors.example.org"
HEADERS = (
    "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;"
    " proxy_set_header X-Forwarded-Proto $scheme;"
)
HTML = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"


def setUpModule():
    need_install(nginx="nginx-light", openssl="openssl")
    use_memory_disk()
    for name in ("pigeonpost.web.access", "pigeonpost.web.host_names", "pigeonpost.web.http_server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
        unittest.addModuleCleanup(logging.getLogger(name).setLevel, logging.NOTSET)


class Browser:
    """A browser's view of a site: it keeps cookies by name and path, follows redirects, and sends the origin of a form.

    Attributes:
        address: Address to connect to.
        is_tls: True for TLS.
        host: Host in its address line, with the port.
        is_old: It sends no Fetch Metadata, as every browser on plain HTTP.
    """

    def __init__(self, nginx, host="", is_old=False):
        parts = urlsplit(nginx.url)
        self.address, self.is_tls = (parts.hostname, parts.port), parts.scheme == "https"
        self.host, self.is_old = host or parts.netloc, is_old
        self.cookies = {}
        self.tls = ssl.create_default_context(cafile=nginx.certificate) if self.is_tls else None

    def ask(self, method, path, body=None, accept=HTML, **headers):
        link = self.connect()
        try:
            self.send(link, method, path, body, accept, **headers)
            answer = link.getresponse()
            content = answer.read()
        finally:
            link.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        self.keep(found.get("set-cookie", ""))
        return answer.status, found, content

    def connect(self):
        if self.tls is not None:
            return http.client.HTTPSConnection(*self.address, timeout=LIMIT_S, context=self.tls)
        return http.client.HTTPConnection(*self.address, timeout=LIMIT_S)

    def send(self, link, method, path, body=None, accept=HTML, **headers):
        wanted = {
            "Host": self.host,
            "Accept": accept,
            **{name.replace("_", "-"): said for name, said in headers.items()},
        }
        if not self.is_old:
            wanted["Sec-Fetch-Site"] = "same-origin"
        if body is not None:
            wanted["Content-Type"] = "application/x-www-form-urlencoded"
            wanted.setdefault("Origin", f"{'https' if self.is_tls else 'http'}://{self.host}")
        sent = [f"{name}={value}" for (name, below), value in self.cookies.items() if f"{path}/".startswith(below)]
        if sent:
            wanted["Cookie"] = "; ".join(sent)
        link.request(method, path, body, wanted)

    def keep(self, set_cookie):
        found = re.match(r"([^=]+)=([^;]*);.*Path=([^;]*)", set_cookie)
        if found:
            key = found[1], found[3].rstrip("/") + "/"
            if found[2]:
                self.cookies[key] = found[2]
            else:
                self.cookies.pop(key, None)

    def log_in(self, base):
        """Log in by the form of the page at `base`. Returns status, text and final address of the response."""
        status, headers, _ = self.ask("GET", base)
        page = urljoin(base, headers.get("location", "login"))
        if status != 303:
            raise AssertionError(f"{base} answers {status}")
        form = re.search(r'action="([^"]*)"', self.ask("GET", page)[2].decode())
        answer = self.ask("POST", urljoin(page, form[1]), urlencode({"user": "admin", "password": PASSWORD}))
        return answer[0], answer[2].decode(), urljoin(page, answer[1].get("location", ""))


class ProxyCase(unittest.TestCase):
    def setUp(self):
        self.house = self.make()

    def make(self, **more):
        link = FakeLink("basement", {"temperature": "°C"})
        house = WebHouse(self, password=PASSWORD, links=[link], names=[NAME, "example.org"], **more)
        house.store_samples("basement", [{"temperature": 20.0 + k / 10} for k in range(20)], {"temperature": "°C"})
        return house

    def nginx(self, location="/", to="", lines="", is_tls=False):
        at = "{}:{}".format(*self.house.address)
        return Nginx(self, f"location {location} {{ proxy_pass http://{at}{to}; {lines} }}", is_tls)

    def assert_works(self, browser, base="/"):
        """Check everything that users do with the page."""
        status, text, home = browser.log_in(base)
        self.assertEqual((status, home), (303, base), text)
        status, _, body = browser.ask("GET", home)
        page = body.decode()
        self.assertEqual(status, 200)
        self.assertIn("20", page)
        self.assert_files(browser, home, page)
        self.assert_live(browser, urljoin(home, re.search(r'data-root="([^"]*)"', page)[1]) + "events")
        self.assert_button(browser, home, page)
        self.assert_logout(browser, home, page)

    def assert_files(self, browser, home, page):
        """Check style and script, all charts, the log, and a part of it."""
        found = re.findall(r' (?:src|href)="([^"#]*)"', page)
        wanted = [urljoin(home, one.replace("&amp;", "&")) for one in found]
        self.assertTrue(any("/chart.svg?" in one for one in wanted))
        for path in dict.fromkeys(wanted):
            with self.subTest(path):
                self.assertEqual(browser.ask("GET", path)[0], 200)
        log = next(one for one in wanted if one.endswith("/log.csv"))
        self.assertTrue(browser.ask("GET", log)[2].startswith(b"time,node,sensor,value,unit\n"))
        status, _, part = browser.ask("GET", log, Range="bytes=0-3")
        self.assertEqual((status, part), (206, b"time"))

    def assert_live(self, browser, path):
        """Check that a value arrives when it is stored, not when the proxy's buffer is full."""
        link = browser.connect()
        self.addCleanup(link.close)
        browser.send(link, "GET", path, None, "text/event-stream")
        answer = link.getresponse()
        self.assertEqual(answer.status, 200)
        self.house.store_samples("basement", [{"temperature": 31.25}], {"temperature": "°C"})
        while not (line := answer.readline()).startswith(b"data:") or b"31.25" not in line:
            self.assertTrue(line, "the stream has ended")

    def assert_button(self, browser, home, page):
        csrf = re.search(r'name="csrf" value="([^"]*)"', page)[1]
        path = next(one for one in re.findall(r'action="([^"]*)"', page) if one.endswith("/nodes/basement/off"))
        status, headers, body = browser.ask("POST", urljoin(home, path), urlencode({"csrf": csrf}))
        self.assertEqual(status, 303, body)
        self.assertIn(("SEND", False), self.house.app.links[0].asked)
        self.assertEqual(browser.ask("GET", urljoin(urljoin(home, path), headers["location"]))[0], 200)

    def assert_logout(self, browser, home, page):
        csrf = re.search(r'name="csrf" value="([^"]*)"', page)[1]
        path = next(one for one in re.findall(r'action="([^"]*)"', page) if one.endswith("/logout"))
        self.assertEqual(browser.ask("POST", urljoin(home, path), urlencode({"csrf": csrf}))[0], 303)
        self.assertEqual(browser.cookies, {})


class AtTheRoot(ProxyCase):
    def test_nginx_with_proxy_pass_alone(self):
        for is_tls in (False, True):
            self.assert_works(Browser(self.nginx(is_tls=is_tls)))

    def test_host_without_the_port(self):
        nginx = self.nginx(lines="proxy_set_header Host $host;")
        self.assert_works(Browser(nginx, f"{NAME}:8443"))

    def test_host_without_the_port_with_an_old_browser(self):
        """The host name is in the settings."""
        nginx = self.nginx(lines="proxy_set_header Host $host;", is_tls=True)
        self.assert_works(Browser(nginx, f"{NAME}:8443", is_old=True))

    def test_old_browser_receives_the_line_that_is_missing(self):
        status, text, _ = Browser(self.nginx(), "unknown.example.org", is_old=True).log_in("/")
        self.assertEqual(status, 403)
        self.assertIn("proxy_set_header Host $http_host;", text)

    def test_the_headers_of_the_manual(self):
        for is_tls in (False, True):
            for is_old in (False, True):
                browser = Browser(self.nginx(lines=HEADERS, is_tls=is_tls), f"{NAME}:8443", is_old)
                self.assert_works(browser)

    def test_through_tls_the_cookie_is_secure(self):
        browser = Browser(self.nginx(lines=HEADERS, is_tls=True), NAME)
        browser.log_in("/")
        self.assertEqual([name[:7] for name, _ in browser.cookies], ["__Host-"])

    def test_name_that_is_not_set_is_reported_with_its_line(self):
        status, _, body = Browser(self.nginx(lines=HEADERS), "other.example.org").ask("GET", "/")
        self.assertEqual(status, 421)
        self.assertIn(b"names = [&quot;other.example.org&quot;]", body)

    def test_name_of_an_upstream_is_reported_with_the_line_of_the_proxy(self):
        at = "{}:{}".format(*self.house.address)
        server = f"upstream backend {{ server {at}; }} server {{ listen 127.0.0.1:{{port}};"
        nginx = Nginx(self, server=f"{server} location / {{ proxy_pass http://backend; }} }}")
        status, _, body = Browser(nginx).ask("GET", "/")
        self.assertEqual(status, 421)
        self.assertIn(b"proxy_set_header Host $http_host;", body)

    def test_guessing_client_does_not_block_other_clients(self):
        """Attempts are counted for the client that nginx names, regardless of the client's own headers."""
        self.house = self.make(clock=FakeClock())
        client = HEADERS.replace("$remote_addr", "$http_x_client")  # all clients of the test have the same address
        browser = Browser(self.nginx(lines=client), NAME)

        def log_in(password, address):
            form = urlencode({"user": "admin", "password": password})
            return browser.ask("POST", "/login", form, X_Client=address, X_Forwarded_For="10.0.0.1")[0]

        self.assertEqual([log_in("wrong", "192.168.1.7") for _ in range(11)], [403] * 10 + [429])
        self.assertEqual(log_in(PASSWORD, "192.168.1.8"), 303)
        self.assertEqual(log_in(PASSWORD, "192.168.1.7"), 429)

    def test_page_without_a_password_explains_what_to_do(self):
        house = WebHouse(self)
        at = "{}:{}".format(*house.address)
        for lines in ("", HEADERS, "proxy_http_version 1.1; proxy_set_header X-Real-IP $remote_addr;"):
            nginx = Nginx(self, f"location / {{ proxy_pass http://{at}; {lines} }}")
            status, _, body = Browser(nginx).ask("GET", "/")
            self.assertEqual(status, 403)
            self.assertIn(b"Behind a proxy, the page needs a password.", body)
            self.assertIn(b"control.py", body)


class BelowAPath(ProxyCase):
    def test_the_path_that_the_proxy_names(self):
        nginx = self.nginx("/sensors/", "/", f"{HEADERS} proxy_set_header X-Forwarded-Prefix /sensors;")
        browser = Browser(nginx, NAME)
        self.assert_works(browser, "/sensors/")

    def test_a_proxy_that_names_the_path_and_leaves_it(self):
        """proxy_pass has no slash at its end."""
        nginx = self.nginx("/sensors/", "", f"{HEADERS} proxy_set_header X-Forwarded-Prefix /sensors;")
        self.assert_works(Browser(nginx, NAME), "/sensors/")

    def test_pages_work_behind_a_proxy_that_removes_the_path_without_a_header(self):
        self.assert_works(Browser(self.nginx("/sensors/", "/")), "/sensors/")

    def test_the_path_of_the_settings(self):
        self.house = self.make(prefix="/sensors")
        for to in ("", "/"):
            self.assert_works(Browser(self.nginx("/sensors/", to, HEADERS), NAME), "/sensors/")
            self.assert_works(Browser(self.nginx("/sensors/", to)), "/sensors/")

    def test_path_without_a_setting_is_reported_with_its_line(self):
        browser = Browser(self.nginx("/sensors/", "", HEADERS), NAME)
        status, _, body = browser.ask("GET", "/sensors/")
        self.assertEqual(status, 404)
        self.assertIn(b"X-Forwarded-Prefix /sensors;", body)

    def test_two_servers_below_one_name_keep_their_sessions_apart(self):
        first, second = self.house, self.make()
        servers = " ".join(
            f"location {path}/ {{ proxy_pass http://127.0.0.1:{house.address[1]}/; {HEADERS}"
            f" proxy_set_header X-Forwarded-Prefix {path}; }}"
            for path, house in (("/a", first), ("/b", second))
        )
        browser = Browser(Nginx(self, servers, is_tls=True), NAME)
        for base in ("/a/", "/b/"):
            self.assertEqual(browser.log_in(base)[0], 303)
        self.assertEqual(sorted(path for _, path in browser.cookies), ["/a/", "/b/"])
        for base in ("/a/", "/b/"):
            self.assertEqual(browser.ask("GET", base)[0], 200)


class ManualCase(ProxyCase):
    """The blocks of docs/web.md as written, with the ports and the certificate of the test."""

    def here(self, block, to="http://127.0.0.1:8080"):
        block = block.replace("listen 443 ssl;", "listen 127.0.0.1:{port} ssl;")
        block = block.replace("/etc/ssl/sensors.pem", "{certificate}").replace(
            "/etc/ssl/private/sensors.key", "{certificate}"
        )
        self.assertIn(to, block)
        return block.replace("127.0.0.1:8080", "{}:{}".format(*self.house.address))


class TheManual(ManualCase):
    """The blocks for nginx."""

    def test_the_server_block(self):
        nginx = Nginx(self, server=self.here(documented("server {")), is_tls=True)
        for is_old in (False, True):
            self.assert_works(Browser(nginx, f"{NAME}:8443", is_old))

    def test_the_block_below_a_path(self):
        nginx = Nginx(self, self.here(documented("location /sensors/ {")), is_tls=True)
        for is_old in (False, True):
            self.assert_works(Browser(nginx, f"{NAME}:8443", is_old), "/sensors/")

    def test_a_long_body_passes(self):
        nginx = Nginx(self, server=self.here(documented("server {")), is_tls=True)
        # It is refused without being read, and nginx loses the response when the connection is closed.
        drain = mock.patch.multiple("pigeonpost.web.http_server", _DRAIN_BYTES=4 << 20, _DRAIN_S=60.0)
        with drain:
            status, _, body = Browser(nginx, NAME).ask("POST", "/api/v1/samples", b"x" * (2 << 20), "application/json")
        self.assertNotIn(b"nginx", body)
        self.assertEqual(json.loads(body).keys(), {"error"}, status)


class OtherProxies(ManualCase):
    """The blocks for Apache and Caddy."""

    def test_apache_serves_every_browser(self):
        need_install(apache2="apache2-bin")
        apache = Apache(self, self.here(documented("ProxyPreserveHost On")))
        for is_old in (False, True):
            self.assert_works(Browser(apache, f"{NAME}:8443", is_old))

    def test_apache_below_a_path(self):
        need_install(apache2="apache2-bin")
        block = self.here(documented("ProxyPreserveHost On")).replace('ProxyPass "/"', 'ProxyPass "/sensors/"')
        apache = Apache(self, block + documented('RequestHeader set X-Forwarded-Prefix "/sensors"'))
        for is_old in (False, True):
            self.assert_works(Browser(apache, f"{NAME}:8443", is_old), "/sensors/")

    def test_caddy_serves_every_browser(self):
        need_install(caddy="caddy")
        caddy = Caddy(self, self.here(documented("sensors.example.org {"), "reverse_proxy 127.0.0.1:8080"))
        port = caddy.address[1]
        for is_old in (False, True):
            self.assert_works(Browser(caddy, f"{NAME}:{port}", is_old))
            browser = Browser(caddy, f"example.org:{port}", is_old)
            self.assertEqual(browser.ask("GET", "/sensors")[1]["location"], "/sensors/")
            self.assert_works(browser, "/sensors/")


if __name__ == "__main__":
    unittest.main()
