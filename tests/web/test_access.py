"""The door: who is there, may he do this, and did he mean to. No socket but where the page itself is asked."""

import logging
import os
import threading
import time
import unittest
from unittest import mock

from pigeonpost.auth import users as gate_users
from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.sessions import IDLE_S
from pigeonpost.auth.throttle import CLOSED_S, FREE, MOST, LoginThrottle
from pigeonpost.auth.users import Users
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.data_folder import USERS
from pigeonpost.core.errors import SettingsError
from pigeonpost.http.message import JSON, HTTPError, Request
from pigeonpost.views.sse import EventStream
from pigeonpost.web.access import NOBODY, AccessControl, no_password, password_command
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, temp_folder, wait_until
from tests.web.support import CONTROL_KEY, FakeLink, WebHouse, parse_response, read_all

PASSWORD = "correct horse"
FORM = "application/x-www-form-urlencoded"
PROXY_HEADERS = (
    "Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Forwarded",
    "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "CF-Connecting-IP", "CF-Ray", "True-Client-IP",
    "Fastly-Client-IP", "X-Original-URL", "X-Original-Forwarded-For", "X-Remote-IP", "X-Envoy-External-Address",
    "CDN-Loop", "Client-IP", "Max-Forwards", "X-Amzn-Trace-Id", "X-Request-Id", "X_Forwarded_For", "X-Anything",
    "Proxy-Connection", "Tailscale-User-Login", "Fly-Client-IP",
)  # fmt: skip
ELSEWHERE = "192.168.1.7"


def setUpModule():
    use_memory_disk()


class DoorCase(unittest.TestCase):
    password: str | None = PASSWORD

    def setUp(self):
        patched = mock.patch.object(gate_users, "_N", 2)  # what a hash costs is told in test_users
        patched.start()
        self.addCleanup(patched.stop)
        logging.getLogger("pigeonpost.web.access").setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger("pigeonpost.web.access").setLevel, logging.NOTSET)
        self.folder = temp_folder(self)
        self.clock = FakeClock()
        self.users = Users(self.folder)
        if self.password:
            self.users.set_password("admin", self.password)
            self.users.set_password("guest", PASSWORD, "viewer")
        self.api_tokens = ApiTokens(self.folder)
        self.addCleanup(self.api_tokens.stop, LIMIT_S)
        self.door = self.make()

    def make(self, port=8080):
        return AccessControl(self.users, CONTROL_KEY, self.clock, port, LoginThrottle(self.clock), self.api_tokens)

    def request(self, peer="127.0.0.1", method="GET", body=b"", **headers):
        """A request as the web server hands it on; `_` in a header's name stands for `-`."""
        told = {"host": "localhost:8080", **{name.lower().replace("_", "-"): said for name, said in headers.items()}}
        request = Request(method, "/", "1.1", {name: said for name, said in told.items() if said is not None})
        request.peer, request.body = peer, body
        return request

    def refused(self, status, code, call, *args):
        with self.assertRaises(HTTPError) as caught:
            call(*args)
        self.assertEqual((caught.exception.status, caught.exception.code), (status, code))
        return caught.exception

    def log_in(self, name="admin", password=PASSWORD, **more):
        return self.door.log_in(self.request(**more), name, password)

    def cookie(self, session):
        return f"pigeonpost-8080={session.id}"

    def visit(self, session, role="viewer", peer=ELSEWHERE):
        return self.door.authorize(self.request(peer, cookie=self.cookie(session)), role)


class OtherSites(DoorCase):
    def test_a_form_carries_what_only_our_pages_know(self):
        visitor = self.visit(self.log_in())
        self.assertGreaterEqual(len(visitor.csrf) * 6, 128)
        right = f"a=b&csrf={visitor.csrf}".encode()
        self.door.check_csrf(self.request(method="POST", body=right, content_type=FORM), visitor)
        self.door.check_csrf(self.request(method="POST", x_csrf_token=visitor.csrf), visitor)

    def test_without_it_nothing_changes(self):
        visitor, other = self.visit(self.log_in()), self.visit(self.log_in())
        for headers, body in (
            ({}, b""), ({"x_csrf_token": ""}, b""), ({"x_csrf_token": visitor.csrf[:-1]}, b""),
            ({"x_csrf_token": other.csrf}, b""), ({"x_csrf_token": "\xe4"}, b""), ({"content_type": FORM}, b"csrf="),
            ({"content_type": FORM}, b"a=b"), ({"content_type": FORM}, f"csrf={other.csrf}".encode()),
            ({"content_type": "text/plain"}, f"csrf={visitor.csrf}".encode()),
            ({"content_type": "multipart/form-data; boundary=x"}, f"csrf={visitor.csrf}".encode()),
            ({"x_csrf_token": "wrong", "content_type": FORM}, f"csrf={visitor.csrf}".encode()),
        ):  # fmt: skip
            with self.subTest((headers, body)):
                request = self.request(method="POST", body=body, **headers)
                self.refused(403, "csrf", self.door.check_csrf, request, visitor)

    def test_a_program_needs_none(self):
        visitor = self.door.authorize(self.request(authorization=f"Bearer {CONTROL_KEY}"), "operator")
        self.door.check_csrf(self.request(method="POST"), visitor)

    def test_what_a_browser_sends_to_programs_addresses_is_json(self):
        """Another site's page may send forms, texts, and what has no type at all, without asking first; never JSON.

        Whether Origin, Referer or Sec-Fetch-Site is there does not matter: old browsers and proxies leave them out.
        """
        visitor = self.visit(self.log_in())
        for kind in (None, "", FORM, "text/plain", "multipart/form-data", "application/jsonx", "text/json"):
            for name in ("origin", "referer", "sec_fetch_site", "x_nothing"):
                with self.subTest((kind, name)):
                    request = self.request(method="POST", content_type=kind, **{name: "x"})
                    self.refused(415, "content-type", self.door.check_program, request, visitor)
        self.door.check_program(self.request(method="POST", content_type=f"{JSON}; charset=utf-8", origin="x"), visitor)

    def test_what_comes_with_a_token_is_read_whatever_its_type(self):
        visitor = self.door.authorize(self.request(authorization=f"Bearer {CONTROL_KEY}"), "operator")
        for kind in (None, "", FORM, "text/plain"):
            self.door.check_program(self.request(method="POST", content_type=kind, origin="x"), visitor)


class Bearer(DoorCase):
    def test_the_key_of_control_py(self):
        for said in (f"Bearer {CONTROL_KEY}", f"bearer   {CONTROL_KEY} "):
            visitor = self.door.authorize(self.request(ELSEWHERE, authorization=said), "operator")
            self.assertEqual((visitor.name, visitor.role, visitor.csrf), ("control.py", "operator", ""))

    def test_no_other(self):
        """Neither nearly right, nor does anything else help whoever says something wrong."""
        session = self.log_in()
        for said in (
            "", "Bearer", "Bearer ", "Bearer x", f"Bearer {CONTROL_KEY[:-1]}", f"Bearer {CONTROL_KEY[:-1]}x",
            CONTROL_KEY,
            f"Basic {CONTROL_KEY}", f"Bearer {CONTROL_KEY.upper()}", "Bearer \xe4\xff", f"Bearer {CONTROL_KEY} x",
        ):  # fmt: skip
            for door in (self.door, self.make()):
                with self.subTest(said):
                    self.clock.sleep(CLOSED_S)
                    request = self.request(authorization=said, cookie=self.cookie(session))
                    found = self.refused(401, "key", door.authorize, request, "viewer")
                    self.assertIn("Bearer", found.headers["WWW-Authenticate"])

    def wrong(self, peer=ELSEWHERE):
        return lambda: self.door.authorize(self.request(peer, authorization="Bearer x"), "viewer")

    def test_wrong_ones_are_answered_later_and_later_then_not_at_all(self):
        waits = []
        for _ in range(MOST):
            before_s = self.clock.monotonic()
            self.refused(401, "key", self.wrong())
            waits.append(self.clock.monotonic() - before_s)
        self.assertEqual((waits[:FREE], waits), ([0.0] * FREE, sorted(waits)))
        self.assertGreater(waits[-1], 0.5)
        found = self.refused(429, "attempts", self.wrong())
        self.assertRegex(found.headers["Retry-After"], r"\A[1-9][0-9]{1,2}\Z")
        self.refused(401, "key", self.wrong("192.168.1.8"))

    def test_the_right_one_comes_in_from_an_address_where_others_guess(self):
        """A client behind the same router as an attacker is not shut out, and neither is who logs in there."""
        for _ in range(MOST + 1):
            self.assertRaises(HTTPError, self.wrong())
        before_s = self.clock.monotonic()
        self.door.authorize(self.request(ELSEWHERE, authorization=f"Bearer {CONTROL_KEY}"), "operator")
        self.assertIsNotNone(self.log_in(peer=ELSEWHERE))
        self.assertEqual(self.clock.monotonic(), before_s)

    def test_a_login_at_a_proxy_before_us_is_no_attempt(self):
        for _ in range(MOST + 1):
            request = self.request(ELSEWHERE, authorization="Basic YTpi", accept="text/html")
            self.refused(401, "log-in", self.door.authorize, request, "viewer")

    def test_a_line_of_the_log_a_minute(self):
        logging.getLogger("pigeonpost.web.access").setLevel(logging.NOTSET)
        with self.assertLogs("pigeonpost.web.access", "WARNING") as logged:
            for _ in range(100):
                self.assertRaises(HTTPError, self.wrong())
            self.clock.sleep(CLOSED_S)
            self.assertRaises(HTTPError, self.wrong())
        self.assertEqual(len(logged.output), 2, logged.output)
        self.assertIn(f"{ELSEWHERE}: wrong key", logged.output[0])
        self.assertIn("(99 more attempts failed since", logged.output[1])  # those that were refused as well

    def test_compared_in_constant_time(self):
        with mock.patch("pigeonpost.web.access.hmac.compare_digest", return_value=False) as compared:
            request = self.request(authorization=f"Bearer {CONTROL_KEY}")
            self.refused(401, "key", self.door.authorize, request, "viewer")
        compared.assert_called_once()


class NoPassword(DoorCase):
    password = None

    def test_this_machine_may_read(self):
        for peer in ("127.0.0.1", "127.9.9.9", "::1"):
            for host in ("localhost:8080", "LOCALHOST", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "localhost."):
                visitor = self.door.authorize(self.request(peer, host=host), "viewer")
                self.assertEqual((visitor.name, visitor.role), ("this machine", "viewer"))

    def test_this_machine_alone_changes_nothing(self):
        """Whatever role the change takes: a proxy on this machine may connect for anybody."""
        for role in ("viewer", "operator"):
            found = self.refused(403, "no-key", self.door.authorize, self.request(method="POST"), role)
            self.assertIn("control.py password", found.text)
            self.assertIn("/?key=", found.text)
        self.refused(403, "role", self.door.authorize, self.request(), "operator")
        visitor = self.door.authorize(self.request(method="POST", authorization=f"Bearer {CONTROL_KEY}"), "operator")
        self.assertEqual(visitor.name, "control.py")
        session = self.door.open_with_key(self.request(), self.door.first_key)
        request = self.request(method="POST", cookie=self.cookie(session))
        self.assertEqual(self.door.authorize(request, "operator").name, "one-time key")

    def test_what_looks_like_a_proxy_may_not_even_read(self):
        """nginx by default asks with HTTP/1.0 and the name of its upstream; others add a header, or pass on Host."""
        for host in ("house.local", "192.168.1.20", "upstream", "", None, "localhost.example.org", "127.0.0.1.evil"):
            self.refused(403, "no-password", self.door.authorize, self.request(host=host), "viewer")
        old = self.request()
        old.version = "1.0"
        self.refused(403, "no-password", self.door.authorize, old, "viewer")

    def test_nobody_else_may_anything(self):
        for peer in (ELSEWHERE, "10.0.0.1", "fe80::1%eth0", "2001:db8::1", "1.127.0.0", ""):
            found = self.refused(403, "no-password", self.door.authorize, self.request(peer), "viewer")
            self.assertIn("control.py password", found.text)

    def test_what_comes_through_a_proxy_is_not_this_machine(self):
        for name in PROXY_HEADERS:
            for said in ("192.168.1.7", "127.0.0.1", ""):
                self.refused(403, "no-password", self.door.authorize, self.request(**{name: said}), "viewer")

    def test_what_scripts_of_a_page_add_is_no_sign_of_a_proxy(self):
        for name in ("X-CSRF-Token", "X-Requested-With"):
            self.door.authorize(self.request(**{name: "x"}), "viewer")

    def test_it_ends_with_the_first_password_at_once(self):
        self.door.authorize(self.request(), "viewer")
        self.users.set_password("admin", PASSWORD)
        self.refused(401, "log-in", self.door.authorize, self.request(), "viewer")
        self.assertTrue(self.door.has_password)

    def test_and_begins_again_when_the_last_user_is_gone(self):
        self.users.set_password("admin", PASSWORD)
        self.users.remove("admin")
        self.door.authorize(self.request(), "viewer")

    def test_a_users_file_that_does_not_read_is_not_one_without_users(self):
        with open(os.path.join(self.folder, USERS), "w", encoding="ascii") as file:
            file.write("{")
        with self.assertRaises(SettingsError):
            self.door.authorize(self.request(), "viewer")
        with self.assertRaises(SettingsError):
            self.log_in()
        self.assertEqual(self.make().first_key, "")


class OneTimeKey(DoorCase):
    password = None

    def test_it_lets_one_browser_in_once(self):
        key = self.door.first_key
        self.assertGreaterEqual(len(key) * 6, 128)
        session = self.door.open_with_key(self.request(ELSEWHERE), key)
        visitor = self.visit(session, "operator")
        self.assertEqual((visitor.name, visitor.role), ("one-time key", "operator"))
        for again in (key, ""):
            self.assertIsNone(self.door.open_with_key(self.request(ELSEWHERE), again))

    def test_on_this_machine_it_goes_on(self):
        """Its owner opens the printed address in another browser, or another day; elsewhere one still comes in."""
        key = self.door.first_key
        first = self.door.open_with_key(self.request(), key)
        second = self.door.open_with_key(self.request(), key)
        self.assertNotEqual(first.id, second.id)
        self.visit(first, "operator")
        self.assertIsNotNone(self.door.open_with_key(self.request(ELSEWHERE), key))
        self.assertIsNone(self.door.open_with_key(self.request(ELSEWHERE), key))
        for proxied in (self.request(x_forwarded_for=ELSEWHERE), self.request(host="upstream")):
            self.assertIsNone(self.door.open_with_key(proxied, key))
        third = self.door.open_with_key(self.request(cookie=self.cookie(first)), key)
        self.refused(403, "no-password", self.visit, first)  # which the browser has replaced
        self.assertNotIn(third.id, (first.id, second.id))

    def test_another_key_does_not(self):
        key = self.door.first_key
        for wrong in ("", key[:-1], key + "x", key.swapcase(), "ä", "x" * 8000):
            self.assertIsNone(self.door.open_with_key(self.request(f"10.0.0.{len(wrong) % 250}"), wrong))
        self.assertEqual(self.door.first_key, key)
        self.assertIsNotNone(self.door.open_with_key(self.request(ELSEWHERE), key))

    def test_it_cannot_be_tried_out(self):
        for _ in range(MOST):
            self.door.open_with_key(self.request(ELSEWHERE), "wrong")
        self.refused(429, "attempts", self.door.open_with_key, self.request(ELSEWHERE), "wrong")
        self.assertIsNone(self.door.open_with_key(self.request("192.168.1.8"), "wrong"))
        self.assertIsNotNone(self.door.open_with_key(self.request(ELSEWHERE), self.door.first_key))  # 128 random bits

    def test_links_on_a_page_of_another_site_are_no_attempts(self):
        """Else any page could close the login to its visitor's address."""
        for site in ("cross-site", "same-site"):
            for _ in range(MOST + 2):
                self.assertIsNone(self.door.open_with_key(self.request(sec_fetch_site=site), "wrong"))
        with self.assertLogs("pigeonpost.web.access", "WARNING") as logged:
            self.assertIsNone(self.door.open_with_key(self.request(), "wrong"))  # which is not refused
        self.assertIn("a key that is not the one-time key", logged.output[0])
        request = self.request(sec_fetch_site="cross-site")
        self.assertIsNotNone(self.door.open_with_key(request, self.door.first_key))  # as a link in a mail

    def test_the_command_that_is_told_is_for_this_servers_data(self):
        self.assertEqual(password_command("data"), "python3 control.py password")
        self.assertEqual(password_command("/var/my data"), "python3 control.py --data '/var/my data' password")
        self.assertNotIn("/var", no_password("/var/lib/pigeonpost"))  # strangers are not told
        self.assertIn("\n    python3 control.py password\n", no_password("data"))

    def test_with_a_password_there_is_none(self):
        key = self.door.first_key
        session = self.door.open_with_key(self.request(ELSEWHERE), key)
        other = self.make()
        self.users.set_password("admin", PASSWORD)
        self.assertIsNone(other.open_with_key(self.request(ELSEWHERE), other.first_key))
        self.assertEqual(self.make().first_key, "")
        self.refused(401, "session-over", self.visit, session)  # who was let in before is out as well

    def test_of_many_at_once_one_comes_in(self):
        found, key = [], self.door.first_key
        threads = [
            threading.Thread(target=lambda k=k: found.append(self.door.open_with_key(self.request(f"10.0.0.{k}"), key)))
            for k in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sum(session is not None for session in found), 1)


class Sessions(DoorCase):
    def test_who_has_none(self):
        for peer in ("127.0.0.1", ELSEWHERE):
            found = self.refused(401, "log-in", self.door.authorize, self.request(peer), "viewer")
            self.assertIn("Bearer", found.headers["WWW-Authenticate"])
        self.assertEqual((NOBODY.role, NOBODY.csrf), ("", ""))

    def test_a_login(self):
        session = self.log_in()
        visitor = self.visit(session, "operator")
        self.assertEqual((visitor.name, visitor.role, visitor.csrf), ("admin", "operator", session.csrf))

    def test_a_role_that_only_looks(self):
        session = self.log_in("guest")
        self.assertEqual(self.visit(session).role, "viewer")
        self.refused(403, "role", self.visit, session, "operator")

    def test_an_id_chosen_before_the_login_is_not_the_one_after_it(self):
        chosen = "x" * 43
        session = self.log_in(cookie=f"pigeonpost-8080={chosen}")
        self.assertNotEqual(session.id, chosen)
        self.refused(
            401, "session-over", self.door.authorize, self.request(cookie=f"pigeonpost-8080={chosen}"), "viewer"
        )

    def test_a_login_ends_the_session_that_it_came_with(self):
        first = self.log_in()
        second = self.log_in(cookie=self.cookie(first))
        self.assertNotEqual(first.id, second.id)
        self.assertNotEqual(first.csrf, second.csrf)
        self.refused(401, "session-over", self.visit, first)
        self.visit(second)

    def test_a_failed_login_ends_none(self):
        first = self.log_in()
        self.assertIsNone(self.log_in(password="wrong", cookie=self.cookie(first)))
        self.visit(first)

    def test_logout(self):
        one, other = self.log_in(), self.log_in()
        self.door.log_out(self.request(cookie=self.cookie(one)))
        self.refused(401, "session-over", self.visit, one)
        self.visit(other)
        self.door.log_out(self.request())
        self.door.log_out(self.request(cookie=self.cookie(one)))

    def test_a_new_password_ends_those_begun_with_the_old(self):
        mine, others = self.log_in(), self.log_in("guest")
        self.users.set_password("admin", PASSWORD)  # even the same one anew
        self.refused(401, "session-over", self.visit, mine)
        self.visit(others)

    def test_another_role_ends_them(self):
        session = self.log_in("guest")
        self.users.set_password("guest", PASSWORD, "operator")
        self.refused(401, "session-over", self.visit, session)

    def test_a_user_who_is_gone_is_out(self):
        session = self.log_in("guest")
        self.users.remove("guest")
        self.refused(401, "session-over", self.visit, session)

    def test_they_end_by_time(self):
        session = self.log_in()
        self.clock.sleep(IDLE_S + 1)
        self.refused(401, "session-over", self.visit, session)


class Cookies(DoorCase):
    def setUp(self):
        super().setUp()
        self.session = self.log_in()

    def found(self, cookie):
        return self.door._session_id(self.request(cookie=cookie))

    def test_what_the_browser_is_told(self):
        said = self.door.cookie(self.request(), self.session)["Set-Cookie"]
        self.assertEqual(said, f"pigeonpost-8080={self.session.id}; Path=/; HttpOnly; SameSite=Strict")
        self.assertEqual(
            self.door.cookie(self.request(), None)["Set-Cookie"],
            "pigeonpost-8080=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0",
        )

    def test_it_is_found_among_others(self):
        ours = self.cookie(self.session)
        for cookie in (
            ours,
            f"a=b; {ours}",
            f"{ours}; a=b",
            f"a=b;{ours};c",
            f"a; {ours}; pigeonpost-80=x",
            f"é=ü; {ours}",
        ):
            self.assertEqual(self.found(cookie), self.session.id, cookie)

    def test_by_a_strict_pattern(self):
        id = self.session.id
        for cookie in (
            "", ";", "pigeonpost-8080", "pigeonpost-8080=", f"pigeonpost-8080 ={id}", f"pigeonpost-8080= {id}",
            f'pigeonpost-8080="{id}"', f"xpigeonpost-8080={id}", f"Pigeonpost-8080={id}", f"pigeonpost-80={id}",
            f"pigeonpost-8080={id[:-1]}", f"pigeonpost-8080={id}x", f"pigeonpost-8080={id[:-1]}!",
            f"pigeonpost-8080={id} ",
            f"pigeonpost-8080={id},a=b", f"a=pigeonpost-8080={id}", f"a={id}", id, f"$Version=1, pigeonpost-8080={id}",
        ):  # fmt: skip
            with self.subTest(cookie):
                self.assertEqual(self.found(cookie), "")

    def test_two_servers_on_one_host_do_not_share_it(self):
        self.assertEqual(self.make(port=8081)._session_id(self.request(cookie=self.cookie(self.session))), "")

    def test_one_of_32_kb_is_fast(self):
        """http.cookies takes 1.3 s for it (measured)."""
        name = "pigeonpost-8080="
        for cookie in (
            ";" * 32_768, "a=b; " * 6500, name * 2048, f"{name}{'x' * 43}! ;" * 520, "; " * 16_000 + name, "x" * 32_768,
            f"{name}{'x' * 32_000}", " ;" * 16_384, '"\\' * 16_384, f"{name}{'x' * 42};" * 550,
        ):  # fmt: skip
            took_s = []
            for _ in range(3):  # into one of them a garbage collection may fall
                began_s = time.thread_time()
                self.assertEqual(self.found(cookie), "")
                took_s.append(time.thread_time() - began_s)
            self.assertLess(min(took_s), 0.05, cookie[:40])
        ours = "a=b; " * 6500 + self.cookie(self.session)
        self.assertEqual(self.found(ours), self.session.id)


class Trying(DoorCase):
    """20 wrong passwords: delays, then 429 for that address only."""

    def wait_for_a_try(self, peer=ELSEWHERE, name="admin", password="wrong"):
        before_s = self.clock.monotonic()
        self.assertIsNone(self.log_in(name, password, peer=peer))
        return self.clock.monotonic() - before_s

    def test_later_and_later_then_not_at_all(self):
        waits = [self.wait_for_a_try() for _ in range(MOST)]
        self.assertEqual(waits[0], 0.0)
        self.assertEqual(waits, sorted(waits))
        self.assertGreater(waits[-1], 0.5)
        for _ in range(20 - MOST):
            found = self.refused(429, "attempts", self.wait_for_a_try)
            self.assertRegex(found.headers["Retry-After"], r"\A[1-9][0-9]{1,2}\Z")

    def test_even_the_right_password_then(self):
        for _ in range(MOST):
            self.wait_for_a_try()
        self.refused(429, "attempts", lambda: self.log_in(peer=ELSEWHERE))
        self.assertIsNotNone(self.log_in(peer="192.168.1.8"))
        self.clock.sleep(CLOSED_S)
        self.assertIsNotNone(self.log_in(peer=ELSEWHERE))

    def test_sessions_of_that_address_go_on(self):
        session = self.log_in(peer=ELSEWHERE)
        for _ in range(MOST):
            self.wait_for_a_try()
        self.visit(session)

    def test_unknown_users_count_as_well(self):
        for number in range(MOST):
            self.wait_for_a_try(name=f"user{number}")
        self.refused(429, "attempts", self.wait_for_a_try)

    def test_success_makes_good(self):
        for _ in range(MOST - 1):
            self.wait_for_a_try()
        self.log_in(peer=ELSEWHERE)
        self.assertEqual(self.wait_for_a_try(), 0.0)

    def test_the_log_has_neither_name_nor_password(self):
        """People type their password where the name belongs."""
        logging.getLogger("pigeonpost.web.access").setLevel(logging.NOTSET)
        with self.assertLogs("pigeonpost.web.access", "WARNING") as logged:
            self.wait_for_a_try(name="my password\nCRITICAL x", password="hunter2")
        self.assertEqual(logged.output, [f"WARNING:pigeonpost.web.access:{ELSEWHERE}: wrong user or password"])


class AtThePage(unittest.TestCase):
    """The same through the server, where it is more than the door that has to be right."""

    def setUp(self):
        logging.getLogger("pigeonpost.web.access").setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger("pigeonpost.web.access").setLevel, logging.NOTSET)
        logging.getLogger("pigeonpost.web.http_server").setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger("pigeonpost.web.http_server").setLevel, logging.NOTSET)

    def test_from_login_to_logout(self):
        house = WebHouse(self, password=PASSWORD, links=[FakeLink("basement")])
        status, headers, _ = house.request("GET", "/", html=True)
        self.assertEqual((status, headers["location"]), (303, "/login"))
        status, headers, body = house.post_form("/login", {"user": "admin", "password": "wrong"})
        self.assertEqual(status, 403)
        self.assertNotIn("set-cookie", headers)
        wrong_user = house.post_form("/login", {"user": "<b>nobody", "password": "wrong"})
        self.assertEqual((wrong_user[0], wrong_user[2]), (403, body))  # the same text, nothing of what was typed
        cookie = house.log_in()
        self.assertEqual(house.request("GET", "/", cookie, html=True)[0], 200)
        csrf = house.csrf(cookie)
        self.assertEqual(house.post_form("/nodes/basement/off", {}, cookie)[0], 403)
        self.assertEqual(house.post_form("/nodes/basement/off", {"csrf": csrf}, cookie)[0], 303)
        self.assertEqual(house.app.links[0].asked, [("SEND", False)])
        self.assertEqual(house.post_form("/logout", {}, cookie)[0], 403)
        status, headers, _ = house.post_form("/logout", {"csrf": csrf}, cookie)
        self.assertEqual((status, headers["location"]), (303, "/login"))
        self.assertIn("Max-Age=0", headers["set-cookie"])
        status, headers, _ = house.request("GET", "/", cookie, html=True)
        self.assertEqual((status, headers["location"]), (303, "/login"))
        self.assertEqual(house.request("GET", "/api/v1/nodes", cookie)[0], 401)

    def test_the_one_time_key(self):
        house = WebHouse(self)
        proxied = {"X-Forwarded-For": "192.168.1.7"}
        key = house.web.first_key
        self.assertEqual(house.request("HEAD", f"/?key={key}", proxied)[0], 403)  # asked for by a link's preview
        self.assertEqual(house.request("GET", f"/log?key={key}", proxied)[0], 403)
        self.assertEqual(house.request("GET", "/?key=wrong", proxied)[0], 403)
        status, headers, body = house.request("GET", f"/?key={key}", proxied)
        self.assertEqual((status, headers["location"]), (303, "/"))
        self.assertNotIn(key.encode(), body)
        cookie = {"Cookie": headers["set-cookie"].partition(";")[0], **proxied}
        self.assertEqual(house.request("GET", "/", cookie, html=True)[0], 200)
        self.assertEqual(house.request("GET", f"/?key={key}", proxied)[0], 403)

    def test_a_local_proxy_gives_nobody_control(self):
        """nginx as it is installed: HTTP/1.0, the name of its upstream, `Connection: close`, no other header."""
        house = WebHouse(self, links=[FakeLink("basement")], names=["backend"])
        for head in ("HTTP/1.0\r\nHost: backend", "HTTP/1.0\r\nHost: localhost", "HTTP/1.1\r\nHost: backend"):
            for method, path in (("GET", "/"), ("POST", "/exit"), ("POST", "/nodes/basement/off")):
                kind = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 8"
                data = f"{method} {path} {head}\r\nConnection: close\r\n{kind}\r\n\r\nsure=yes"
                self.assertEqual(parse_response(house.raw(data.encode(), ends=False))[0], 403, (head, path))
        for path in ("/exit", "/nodes/basement/off", "/logout", "/graphs", "/password"):  # and whoever looks local
            self.assertEqual(house.post_form(path, {"sure": "yes", "csrf": ""})[0], 403, path)
        self.assertEqual((house.stopped, house.app.links[0].asked), ([], []))
        self.assertEqual(house.request("GET", "/", html=True)[0], 200)
        browser = house.sign_in()
        self.assertEqual(house.post_form("/exit", {"sure": "yes", "csrf": house.csrf(browser)}, browser)[0], 200)
        self.assertEqual(len(house.stopped), 1)

    def test_no_key_with_a_password(self):
        house = WebHouse(self, password=PASSWORD)
        self.assertEqual(house.web.first_key, "")
        for key in ("", "x"):
            self.assertEqual(house.request("GET", f"/?key={key}")[0], 403)

    def test_a_stream_ends_with_its_session(self):
        with mock.patch.object(EventStream.__init__, "__defaults__", (0.05, 200)):  # heartbeats
            house = WebHouse(self, password=PASSWORD)
        cookie = house.log_in()
        with self.listen(house, cookie) as sock:
            house.users.set_password("admin", "another password")
            self.assertIn(b"retry:", read_all(sock))

    def test_a_users_file_broken_meanwhile_ends_streams_and_nothing_else(self):
        """It was taken for a fault of the program, which ended for it."""
        with mock.patch.object(EventStream.__init__, "__defaults__", (0.05, 200)):
            house = WebHouse(self, password=PASSWORD)
        cookie = house.log_in()
        with open(os.path.join(house.folder, USERS), "rb") as file:
            right = file.read()
        with self.listen(house, cookie) as sock:
            with open(os.path.join(house.folder, USERS), "wb") as file:
                file.write(b"{")
            read_all(sock)
        self.assertEqual(house.request("GET", "/", cookie)[0], 503)
        self.assertEqual(house.request("GET", "/", house.bearer)[0], 200)
        os.unlink(os.path.join(house.folder, USERS))
        with open(os.path.join(house.folder, USERS), "wb") as file:
            file.write(right)
        self.assertEqual(house.request("GET", "/", cookie)[0], 200)
        with self.listen(house, cookie) as sock:
            wait_until(lambda: b":\n\n" in sock.recv(1000), "it is listened to again")

    def listen(self, house, cookie):
        """A connection that has begun to listen to the live values."""
        sock = house.connect()
        self.addCleanup(sock.close)
        lines = "".join(f"{name}: {said}\r\n" for name, said in cookie.items())
        sock.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        self.assertTrue(sock.recv(15).startswith(b"HTTP/1.1 200"))
        return sock


if __name__ == "__main__":
    unittest.main()
