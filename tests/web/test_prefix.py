"""Tests of a server below a proxy's path: every address in every response gets the path, and no text is changed."""

import json
import re
import unittest
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from pigeonpost.core.html import Html
from pigeonpost.http.message import HTML, Request, Response
from pigeonpost.views.html import see_other
from pigeonpost.web.prefix import with_prefix
from tests.page_support import use_memory_disk
from tests.support import ROOT
from tests.web.support import FakeLink, WebHouse

PASSWORD = "correct horse"
PREFIX = "/house/sensors"
ADDRESSES = ("href", "src", "srcset", "action", "formaction", "data-root", "poster", "data", "cite", "content")
HOSTILE = (
    '<a href="/evil">', '" href="/evil"', "' href='/evil'", ' href="/evil', 'href="/', '<form action="/x">',
    ' src="/',
    '\\" href=\\"/', "&quot; href=&quot;/", "\u201d href=\u201d/",
)  # fmt: skip


def setUpModule():
    use_memory_disk()


class Addresses(HTMLParser):
    """The addresses in an HTML page."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ADDRESSES and value and (name != "content" or value.startswith("/")):
                self.found.append((tag, name, value))


def request_below(prefix="", path="/", version="1.1", proxy="127.0.0.1"):
    request = Request("GET", path, version, {"host": "localhost"})
    request.prefix, request.proxy = prefix, proxy
    return request


class PrefixedResponses(unittest.TestCase):
    def with_prefix(self, html, *args, **more):
        return with_prefix(Response(html.encode(), HTML), request_below(*args, **more)).body.decode()

    def test_response_without_a_path_is_unchanged(self):
        response = Response(b'<a href="/log">', HTML)
        self.assertIs(with_prefix(response, request_below()), response)
        self.assertIs(with_prefix(response, request_below(version="1.0", proxy="")), response)
        self.assertIs(with_prefix(response, None), response)

    def test_address_attributes_get_the_path(self):
        for name in ("href", "src", "srcset", "action", "formaction", "data-root"):
            self.assertEqual(self.with_prefix(f'<x {name}="/log?a=b">', "/p"), f'<x {name}="/p/log?a=b">')
        self.assertEqual(self.with_prefix('<a class="b" href="/">', "/p"), '<a class="b" href="/p/">')

    def test_attributes_without_own_addresses_are_unchanged(self):
        for html in (
            '<a href="https://example.org/">',
            '<a href="?span=1h">',
            '<img alt="/log">',
            '<a title="/">',
            "/log",
        ):
            self.assertEqual(self.with_prefix(html, "/p"), html)

    def test_text_cannot_look_like_an_attribute(self):
        """The pages contain names of sensors, nodes, charts and files, whose quotation marks are escaped."""
        for text in HOSTILE:
            for frame in ("<p>{}</p>", '<img alt="{}">', '<a title="{}">', '<option value="{}">{}'):
                html = Html(frame).format(text, text)
                with self.subTest(text=text, frame=frame):
                    self.assertEqual(self.with_prefix(html, "/p"), html)

    def test_only_html_is_changed(self):
        for kind in ("text/plain; charset=utf-8", "application/json", "image/svg+xml", "text/csv; charset=utf-8"):
            response = Response(b' href="/log"', kind)
            self.assertEqual(with_prefix(response, request_below("/p")).body, response.body)

    def test_redirects_get_the_path(self):
        response = with_prefix(see_other("/login", {"X-Other": "kept"}), request_below("/p"))
        self.assertEqual(response.headers["Location"], "/p/login")
        self.assertEqual(response.headers["X-Other"], "kept")
        self.assertEqual(response.body, b"see /p/login\n")

    def test_addresses_are_relative_for_a_proxy_without_headers(self):
        for path, wanted in (
            ("/", "./log"), ("/log", "./log"), ("/nodes/a", "../log"), ("/nodes/a/b", "../../log"), ("/x/", "../log"),
        ):  # fmt: skip
            self.assertEqual(self.with_prefix('<a href="/log">', "", path, "1.0"), f'<a href="{wanted}">', path)
            self.assertEqual(urljoin(f"http://a/some/where{path}", wanted), "http://a/some/where/log")
        deep = self.with_prefix('<a href="/log">', "", "/" * 8000, "1.0")
        self.assertLess(len(deep), 60)
        self.assertEqual(self.with_prefix('<a href="/log">', "/p", "/nodes/a", "1.0"), '<a href="/p/log">')


class SourceRules(unittest.TestCase):
    """Rules for pages and scripts that make it possible to add the path to all addresses."""

    def sources(self, *endings):
        for top in ("views", "compat"):
            for path in sorted((Path(ROOT) / "pigeonpost" / top).rglob("*")):
                if path.suffix in endings:
                    yield path.name, path.read_text(encoding="utf-8")

    def test_addresses_in_templates_are_in_quotation_marks(self):
        for name, text in self.sources(".py"):
            self.assertEqual(
                re.findall(r"<\w[^<>]*\s(?:href|src|srcset|action|formaction|data-root)=[^\"].{20}", text), [], name
            )

    def test_scripts_contain_no_addresses(self):
        for name, text in self.sources(".js"):
            found = re.findall(r"""["'`]/[a-z].*""", text.replace('"/chart.svg", "/chart.json"', ""))
            self.assertEqual(found, [], name)

    def test_style_contains_no_addresses(self):
        for name, text in self.sources(".css"):
            self.assertNotIn("url(", text, name)


class Site:
    """Client of a server below a path, as through a proxy."""

    def __init__(self, house, prefix, headers, strips=True):
        self.house, self.prefix, self.headers, self.strips = house, prefix, headers, strips

    def get(self, address, html=True, **more):
        """Request an address as a browser does. An address that is not below the path is an error."""
        parts = urlsplit(address)
        if not f"{parts.path}/".startswith(f"{self.prefix}/"):
            raise AssertionError(f"{address} leads out of {self.prefix}")
        path = parts.path.removeprefix(self.prefix) if self.strips else parts.path
        target = path + (f"?{parts.query}" if parts.query else "")
        return self.house.request("GET", target, {**self.headers, **more}, html=html)


class EveryPage(unittest.TestCase):
    """Crawl from the front page to every address in any page."""

    def crawl(self, site):
        seen, left = {}, [f"{site.prefix}/"]
        while left:
            address = left.pop()
            status, headers, body = site.get(address)
            seen[address] = status
            if status == 303:
                left += [urljoin(address, headers["location"])]
            elif headers["content-type"] == HTML:
                found = Addresses(body.decode()).found
                self.assertTrue(found, address)
                for tag, name, value in found:
                    with self.subTest(page=address, tag=tag, name=name, value=value):
                        self.assertTrue(value.startswith((f"{site.prefix}/", "?", "#", "https://")), value)
                left += [
                    urljoin(address, value) for tag, name, value in found
                    if name in ("href", "src", "srcset") and not value.startswith(("https://", "#"))
                ]  # fmt: skip
            left = [one for one in dict.fromkeys(left) if one not in seen and _kind(one) not in map(_kind, seen)]
        return seen

    def make_house(self, **more):
        house = WebHouse(self, password=PASSWORD, links=[FakeLink("basement", {"temperature": "°C"})], **more)
        values = [{"temperature": 20.0 + k / 10, "light": 1.0, "on": 2.0} for k in range(20)]
        house.store_samples("basement", values, {"temperature": "°C", "light": '" href="/'})
        cookie = house.log_in()
        graph = {"csrf": house.csrf(cookie), "query": "series=basement/temperature&span=24h", "name": '" href="/evil'}
        self.assertEqual(house.post_form("/graphs", graph, cookie)[0], 303)
        return house, cookie

    def assert_whole(self, seen, prefix):
        wrong = {address: status for address, status in seen.items() if status not in (200, 303)}
        self.assertEqual(wrong, {})
        for path in ("/", "/log", "/log.csv", "/logs", "/graphs", "/gaps", "/about", "/style.css", "/script.js",
                     "/nodes/basement", "/nodes/basement/temperature", "/metrics"):  # fmt: skip
            self.assertIn(prefix + path, seen)
        for path in ("/chart.svg", "/chart.csv", "/chart.json", "/chart", "/zoom.js", "/favicon.svg"):
            self.assertTrue(any(urlsplit(one).path == prefix + path for one in seen), path)

    def test_crawl_below_the_path_in_the_header_of_a_proxy(self):
        house, cookie = self.make_house()
        site = Site(house, PREFIX, {**cookie, "X-Forwarded-Prefix": PREFIX})
        self.assert_whole(self.crawl(site), PREFIX)

    def test_crawl_below_the_path_in_the_settings(self):
        house, cookie = self.make_house(prefix=PREFIX)
        self.assert_whole(self.crawl(Site(house, PREFIX, cookie, strips=False)), PREFIX)

    def test_crawl_below_a_path_that_is_also_a_page(self):
        house, cookie = self.make_house(prefix="/nodes")
        self.assert_whole(self.crawl(Site(house, "/nodes", cookie, strips=False)), "/nodes")

    def test_cached_page_is_used_for_its_path_only(self):
        house, cookie = self.make_house()
        for prefix in ("/a", "/b", ""):
            _, _, body = house.request("GET", "/", {**cookie, "X-Forwarded-Prefix": prefix}, html=True)
            self.assertIn(f'href="{prefix}/log"'.encode(), body)

    def test_texts_for_a_terminal_contain_complete_addresses(self):
        house, cookie = self.make_house()
        told = {**cookie, "X-Forwarded-Prefix": PREFIX, "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.org:8443"}
        told["Cookie"] = told["Cookie"].replace("pigeonpost", "__Secure-pigeonpost")
        for path in ("/", "/nodes/basement/temperature", "/chart?series=basement/temperature", "/graphs"):
            with self.subTest(path):
                text = house.request("GET", path, told)[2].decode()
                addresses = re.findall(r"https?://[^\s']+", text)
                self.assertTrue(addresses, text)
                for address in addresses:
                    self.assertTrue(address.startswith(f"https://a.org:8443{PREFIX}/"), address)

    def test_json_links_contain_the_prefix(self):
        house, cookie = self.make_house()
        told = {**cookie, "X-Forwarded-Prefix": PREFIX}
        graphs = json.loads(house.request("GET", "/graphs.json", told)[2])
        self.assertTrue(json.dumps(graphs).count(f'"{PREFIX}/chart?') == 1, graphs)
        document = json.loads(house.request("GET", "/api/v1/openapi.json", told)[2])
        base = urljoin(f"http://a{PREFIX}/api/v1/openapi.json", document["servers"][0]["url"])
        self.assertEqual(base.rstrip("/"), f"http://a{PREFIX}")


class LoginBelowAPath(unittest.TestCase):
    TLS = {"X-Forwarded-Prefix": PREFIX, "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.168.1.7"}

    def log_in(self, house, headers):
        status, headers, _ = house.post_form("/login", {"user": "admin", "password": PASSWORD}, headers)
        self.assertEqual(status, 303)
        return headers["location"], headers["set-cookie"]

    def test_cookie_is_for_the_path_only(self):
        house = WebHouse(self, password=PASSWORD)
        port = house.address[1]
        location, cookie = self.log_in(house, {"X-Forwarded-Prefix": PREFIX})
        self.assertEqual(location, f"{PREFIX}/")
        self.assertRegex(cookie, rf"\Apigeonpost-{port}=[\w-]{{43}}; Path={PREFIX}; HttpOnly; SameSite=Strict\Z")

    def test_cookie_through_tls_is_secure(self):
        house = WebHouse(self, password=PASSWORD)
        port = house.address[1]
        for headers, name, path in (
            (self.TLS, "__Secure-", PREFIX), ({**self.TLS, "X-Forwarded-Prefix": ""}, "__Host-", "/"),
        ):  # fmt: skip
            _, cookie = self.log_in(house, headers)
            self.assertRegex(
                cookie, rf"\A{name}pigeonpost-{port}=[\w-]{{43}}; Path={path}; HttpOnly; Secure; SameSite=Strict\Z"
            )
            browser = {**headers, "Cookie": cookie.partition(";")[0]}
            self.assertEqual(house.request("GET", "/", browser, html=True)[0], 200)
            plain = {**browser, "X-Forwarded-Proto": "http"}
            self.assertEqual(house.request("GET", "/", plain, html=True)[0], 303)
            status, gone, _ = house.post_form("/logout", {"csrf": house.csrf(browser)}, browser)
            self.assertEqual((status, gone["location"]), (303, headers["X-Forwarded-Prefix"] + "/login"))
            self.assertIn(f"{name}pigeonpost-{port}=; Path={path};", gone["set-cookie"])

    def test_cookie_for_a_path_is_accepted_below_it_only(self):
        """A page of a sub-domain could set a cookie called __Secure- for the complete domain, with its own session."""
        house = WebHouse(self, password=PASSWORD)
        _, cookie = self.log_in(house, self.TLS)
        stolen = {**self.TLS, "Cookie": cookie.partition(";")[0]}
        self.assertEqual(house.request("GET", "/", stolen, html=True)[0], 200)
        self.assertEqual(house.request("GET", "/", {**stolen, "X-Forwarded-Prefix": ""}, html=True)[0], 303)

    def test_cookie_without_a_proxy_is_for_the_complete_server(self):
        """Clients that use the server's own address are not affected by the path in the settings."""
        house = WebHouse(self, password=PASSWORD, prefix=PREFIX)
        self.assertIn("; Path=/;", self.log_in(house, {})[1])

    def test_invalid_path_is_refused(self):
        house = WebHouse(self, password=PASSWORD)
        for told in ("//evil.example", '/"><script>', "/..", "x"):
            status, headers, body = house.request("GET", "/", {"X-Forwarded-Prefix": told}, html=True)
            self.assertEqual((status, headers["connection"]), (400, "close"))
            self.assertNotIn(b"evil", body)
        body = b"csrf=1"
        told = {"X-Forwarded-Prefix": "//evil", "Content-Length": str(len(body))}
        self.assertEqual(house.request("POST", "/exit", told, body)[0], 400)


class LostPath(unittest.TestCase):
    def test_unknown_address_through_a_proxy_shows_the_setting(self):
        house = WebHouse(self, password=PASSWORD)
        cookie = house.log_in()
        status, _, body = house.request("GET", "/sensors/", {**cookie, "X-Forwarded-For": "192.168.1.7"}, html=True)
        self.assertEqual(status, 404)
        self.assertIn(b"proxy_set_header X-Forwarded-Prefix /sensors;", body)
        self.assertIn(b"prefix = &quot;/sensors&quot;", body)
        for headers in ({}, {"X-Forwarded-Prefix": "/house"}):
            self.assertNotIn(b"proxy", house.request("GET", "/sensors/", {**cookie, **headers}, html=True)[2])


def _kind(address):
    """Return the kind of an address. Only one address of each kind is requested."""
    parts = urlsplit(unquote(address))
    return parts.path, tuple(sorted(part.partition("=")[0] for part in parts.query.split("&")))


if __name__ == "__main__":
    unittest.main()
