"""Tests of users, sessions and the throttling of failed logins."""

import itertools
import json
import logging
import os
import stat
import threading
import unittest
from unittest import mock

from pigeonpost.auth import hash_thread
from pigeonpost.auth import users as module
from pigeonpost.auth.sessions import ABSOLUTE_S, IDLE_S, MOST_SESSIONS, UserSessions
from pigeonpost.auth.throttle import (
    CLOSED_S,
    FREE,
    LINE_EVERY_S,
    LONGEST_DELAY_S,
    MOST,
    MOST_COUNTED,
    MOST_DELAYED,
    MOST_LINES,
    LoginThrottle,
)
from pigeonpost.auth.users import LONGEST, User, Users
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.data_folder import USERS
from pigeonpost.core.errors import SettingsError
from pigeonpost.http.message import HTTPError
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, LONG, temp_folder

PASSWORD = "correct horse"


def setUpModule():
    use_memory_disk()


class UsersCase(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.path = os.path.join(self.folder, USERS)
        self.users = Users(self.folder)
        # One test checks the cost of a hash. The other tests use a cheap hash.
        patched = mock.patch.object(module, "_N", 2)
        patched.start()
        self.addCleanup(patched.stop)

    def entry(self, **changes):
        """Return a valid user of the file with changes."""
        right = {"role": "viewer", "salt": "00" * 16, "n": 2, "r": 8, "p": 1, "scrypt": "11" * 64}
        return {key: value for key, value in {**right, **changes}.items() if value is not ...}

    def lay(self, content):
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(content if isinstance(content, str) else json.dumps(content))


class Passwords(UsersCase):
    def test_new_server_has_no_default_login(self):
        self.assertEqual((len(self.users), self.users.roles()), (0, {}))
        for name in ("", "admin", "root", "pi"):
            for password in ("", "admin", "password", "raspberry"):
                self.assertIsNone(self.users.check(name, password))
        self.assertFalse(os.path.exists(self.path))

    def test_only_the_correct_password_is_accepted(self):
        self.users.set_password("admin", PASSWORD)
        found = self.users.check("admin", PASSWORD)
        self.assertEqual((found.name, found.role), ("admin", "operator"))
        self.assertEqual(found, self.users.find("admin"))
        for wrong in ("", PASSWORD[:-1], PASSWORD + " ", " " + PASSWORD, PASSWORD.upper()):
            self.assertIsNone(self.users.check("admin", wrong), wrong)
        for name in ("Admin", "admin ", "", "other"):
            self.assertIsNone(self.users.check(name, PASSWORD), name)

    def test_deleted_user_is_not_created_again_by_a_password_change(self):
        self.users.set_password("viewer", PASSWORD, "viewer")
        stamp = self.users.check("viewer", PASSWORD).stamp
        Users(self.folder).remove("viewer")
        for _ in range(2):
            before = self.users.roles()
            with self.assertRaisesRegex(SettingsError, "user viewer was changed or deleted in the meantime"):
                self.users.set_password("viewer", "another one", stamp=stamp)
            self.assertEqual(self.users.roles(), before)
            self.users.set_password("viewer", PASSWORD, "viewer")

    def test_simultaneous_changes_of_users_are_all_kept(self):
        threads = [
            threading.Thread(target=Users(self.folder).set_password, args=(f"user{number}", PASSWORD))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(len(self.users), 8)

    def test_unicode_password_is_used_unchanged(self):
        composed, decomposed = "pässwörter", "pa\u0308sswo\u0308rter"
        self.users.set_password("a", composed)
        self.assertIsNotNone(self.users.check("a", composed))
        self.assertIsNone(self.users.check("a", decomposed))
        self.users.set_password("b", "  🕊 Tauben  🕊  ")
        self.assertIsNotNone(self.users.check("b", "  🕊 Tauben  🕊  "))
        self.assertIsNone(self.users.check("b", "🕊 Tauben  🕊"))

    def test_password_length_is_limited(self):
        for password in ("x" * 7, "", "x" * (LONGEST + 1)):
            with self.assertRaisesRegex(SettingsError, f"8 to 1024 characters, not {len(password)}"):
                self.users.set_password("admin", password)
        self.users.set_password("admin", "x" * LONGEST)
        self.assertIsNotNone(self.users.check("admin", "x" * LONGEST))
        self.assertIsNone(self.users.check("admin", "x" * (1 << 20)))

    def test_user_names_are_checked(self):
        for name in ("a", "Anna.B-c_d@example.org", "7", "a" * 63):
            self.users.set_password(name, PASSWORD)
        for name in ("", " a", "a b", ".a", "-a", "a\n", "ä", "a" * 64, "<img>", "a\0b"):
            with self.assertRaises(SettingsError):
                self.users.set_password(name, PASSWORD)
        self.assertEqual(len(self.users), 4)

    def test_every_hash_has_its_own_salt(self):
        self.users.set_password("a", PASSWORD)
        self.users.set_password("b", PASSWORD)
        with open(self.path, encoding="utf-8") as file:
            said = json.load(file)
        self.assertNotEqual(said["a"]["salt"], said["b"]["salt"])
        self.assertNotEqual(said["a"]["scrypt"], said["b"]["scrypt"])
        self.assertEqual(len(bytes.fromhex(said["a"]["salt"])), 16)

    def test_file_does_not_contain_the_password(self):
        self.users.set_password("a", PASSWORD)
        with open(self.path, "rb") as file:
            self.assertNotIn(PASSWORD.encode(), file.read())

    def test_unknown_user_takes_the_same_time(self):
        """The time does not reveal which users exist, because scrypt is called in the same way for all names."""
        self.users.set_password("admin", PASSWORD)
        calls = []

        def scrypt(password, **how):
            self.assertEqual(threading.current_thread().name, "passwords")
            calls.append({key: value for key, value in how.items() if key != "salt"} | {"salt": len(how["salt"])})
            return b"\1" * 64

        with mock.patch.object(hash_thread.hashlib, "scrypt", scrypt):
            for name in ("admin", "unknown", "", "x" * 1000):
                self.assertIsNone(self.users.check(name, "wrong password"))
        self.assertEqual(len(calls), 4)
        self.assertTrue(all(call == calls[0] for call in calls), calls)

    def test_unknown_user_is_never_accepted(self):
        with mock.patch.object(hash_thread.hashlib, "scrypt", lambda password, **how: bytes(64)):
            self.assertIsNone(self.users.check("unknown", "any password"))

    def test_passwords_are_hashed_one_at_a_time(self):
        """Each hash needs 16 MiB, so 32 simultaneous requests would need half a gigabyte."""
        at_once, most, lock = [0], [0], threading.Lock()
        go = threading.Event()

        def scrypt(password, **how):
            with lock:
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
            go.wait(0.01)
            with lock:
                at_once[0] -= 1
            return bytes(64)

        with mock.patch.object(hash_thread.hashlib, "scrypt", scrypt):
            threads = [threading.Thread(target=self.users.check, args=("a", "b")) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT_S)
        self.assertEqual(most, [1])


class HashCost(unittest.TestCase):
    def test_hash_parameters_are_stored_and_as_documented(self):
        """New hashes use scrypt with n=2^14, r=8 and p=1. Other parameters in the file are used for a check."""
        folder = temp_folder(self)
        users = Users(folder)
        users.set_password("admin", PASSWORD)
        with open(os.path.join(folder, USERS), encoding="utf-8") as file:
            said = json.load(file)["admin"]
        self.assertEqual((said["n"], said["r"], said["p"]), (1 << 14, 8, 1))
        with mock.patch.object(module, "_N", 1 << 15):  # increased in a later version
            self.assertIsNotNone(Users(folder).check("admin", PASSWORD))


class Roles(UsersCase):
    def test_default_role_is_operator(self):
        self.users.set_password("a", PASSWORD)
        self.users.set_password("b", PASSWORD, "viewer")
        self.assertEqual(self.users.roles(), {"a": "operator", "b": "viewer"})
        self.assertEqual(self.users.check("b", PASSWORD).role, "viewer")

    def test_a_new_password_keeps_the_role(self):
        self.users.set_password("b", PASSWORD, "viewer")
        self.users.set_password("b", "another password")
        self.assertEqual(self.users.roles(), {"b": "viewer"})
        self.users.set_password("b", "another password", "operator")
        self.assertEqual(self.users.roles(), {"b": "operator"})

    def test_unknown_role_is_rejected(self):
        for role in ("admin", "Look", "look ", "x" * 200):
            with self.assertRaisesRegex(SettingsError, "a role must be viewer or operator"):
                self.users.set_password("a", PASSWORD, role)
        self.assertEqual(len(self.users), 0)

    def test_removed_user_cannot_log_in(self):
        self.users.set_password("a", PASSWORD)
        self.assertFalse(self.users.remove("b"))
        self.assertTrue(self.users.remove("a"))
        self.assertIsNone(self.users.find("a"))
        self.assertIsNone(self.users.check("a", PASSWORD))
        self.assertEqual(len(self.users), 0)


class UserFile(UsersCase):
    def test_file_is_readable_by_its_owner_only(self):
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        for _ in range(2):  # creates the file, then replaces it
            self.users.set_password("a", PASSWORD)
            self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        self.lay(json.dumps({}))
        os.chmod(self.path, 0o644)
        self.users.set_password("a", PASSWORD)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)

    def test_running_server_sees_changes_of_control_py(self):
        running, beside = self.users, Users(self.folder)
        self.assertEqual(len(running), 0)
        beside.set_password("a", PASSWORD)
        self.assertIsNotNone(running.check("a", PASSWORD))
        beside.set_password("a", "another password")
        self.assertIsNone(running.check("a", PASSWORD))
        self.assertIsNotNone(running.check("a", "another password"))
        beside.set_password("b", PASSWORD, "viewer")
        self.assertEqual(running.roles(), {"a": "operator", "b": "viewer"})
        beside.remove("a")
        self.assertIsNone(running.find("a"))
        os.unlink(self.path)
        os.unlink(f"{self.path}.bak")
        self.assertEqual(len(running), 0)

    def test_unchanged_file_is_not_read_again(self):
        self.users.set_password("a", PASSWORD)
        self.users.find("a")
        with mock.patch("builtins.open", side_effect=AssertionError("read again")):
            self.assertIsNotNone(self.users.find("a"))

    def test_stamp_changes_with_every_new_password(self):
        self.users.set_password("a", PASSWORD)
        stamps = {self.users.find("a").stamp}
        self.users.set_password("b", PASSWORD)
        self.assertEqual({self.users.find("a").stamp}, stamps)
        self.users.set_password("a", PASSWORD)
        self.assertNotIn(self.users.find("a").stamp, stamps)

    def test_damaged_file_admits_no_user(self):
        """The server neither behaves as without a password nor uses the previous content."""
        self.users.set_password("a", PASSWORD)
        self.assertIsNotNone(self.users.check("a", PASSWORD))
        broken = [
            "", "{", "[]", "null", "3", '"a"', '{"a": 1}', '{"a": null}', '{"a": {}}', "\x00\xff",
            {"a": self.entry(role="root")}, {"a": self.entry(role=None)}, {"a": self.entry(role=...)},
            {"a": self.entry(salt="xy")}, {"a": self.entry(salt=3, scrypt=4)}, {"a": self.entry(scrypt=...)},
            {"a": self.entry(salt="0", scrypt="123")},
            {"a": self.entry(n="2")}, {"a": self.entry(n=2.0)}, {"a": self.entry(n=True)}, {"a": self.entry(n=0)},
            {"a": self.entry(n=-2)}, {"a": self.entry(r=0)}, {"a": self.entry(p=None)},
            {"a": self.entry(n=3)}, {"a": self.entry(n=1)}, {"a": self.entry(n=1 << 40)},
            {"a": self.entry(n=1 << 16, r=8, p=1)}, {"a": self.entry(n=2, r=1 << 17)}, {"a": self.entry(p=1 << 30)},
            {"good": self.entry(), "a": self.entry(n=3)},
        ]  # fmt: skip
        for content in broken:
            with self.subTest(content):
                self.lay(content)
                for look in (
                    lambda: self.users.check("a", PASSWORD), lambda: self.users.find("a"), lambda: len(self.users),
                    lambda: Users(self.folder).check("good", PASSWORD), self.users.roles,
                    lambda: self.users.set_password("c", PASSWORD),
                ):  # fmt: skip
                    with self.assertRaisesRegex(SettingsError, rf"{USERS} is damaged \(.* restore .*{USERS}.bak`"):
                        look()

    def test_accepted_hash_parameters_can_be_hashed(self):
        """The largest accepted parameters do not fail at the login."""
        between = [(1 << 15, 8, 1)] if LONG else []
        for n, r, p in ((2, 8, 1), (1 << 10, 8, 8), (2, 1, 1), (1 << 15, 15, 1), (2, 1 << 16, 1), *between):
            self.lay({"a": self.entry(n=n, r=r, p=p)})
            self.assertIsNone(Users(self.folder).check("a", PASSWORD))

    def test_repaired_file_is_read_again(self):
        self.users.set_password("a", PASSWORD)
        with open(self.path, encoding="utf-8") as file:
            right = file.read()
        self.lay("{")
        with self.assertRaises(SettingsError):
            self.users.check("a", PASSWORD)
        os.unlink(self.path)
        self.lay(right)
        self.assertIsNotNone(self.users.check("a", PASSWORD))

    def test_unreadable_file_admits_no_user(self):
        self.users.set_password("a", PASSWORD)
        no = PermissionError(13, "Permission denied")
        with mock.patch("builtins.open", side_effect=no), self.assertRaises(SettingsError):
            Users(self.folder).check("a", PASSWORD)
        with mock.patch.object(module.os, "stat", side_effect=no), self.assertRaises(SettingsError):
            self.users.check("a", PASSWORD)


class SessionsCase(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.sessions = UserSessions(self.clock)
        self.user = User("a", "viewer", "5a17")


class BrowserSessions(SessionsCase):
    def test_session_contains_its_user(self):
        session = self.sessions.begin(self.user)
        self.assertEqual((session.user, session.role, session.stamp), ("a", "viewer", "5a17"))
        self.assertEqual(self.sessions.find(session.id), session)

    def test_session_of_the_one_time_key_is_operator_without_a_user(self):
        session = self.sessions.begin(None)
        self.assertEqual((session.user, session.role), ("", "operator"))

    def test_ids_and_tokens_cannot_be_guessed(self):
        made = [self.sessions.begin(self.user) for _ in range(200)]
        for texts in ([one.id for one in made], [one.csrf for one in made]):
            self.assertEqual(len(set(texts)), 200)
            self.assertGreaterEqual(min(map(len, texts)) * 6, 128)  # bits, at 6 a letter
        self.assertRegex(made[0].id, r"\A[A-Za-z0-9_-]{43}\Z")

    def test_unknown_session_id_is_not_found(self):
        for id in ("", "x" * 43, "0" * 10_000):
            self.assertIsNone(self.sessions.find(id))
        self.sessions.end("x" * 43)

    def test_ended_session_is_not_found(self):
        one, other = self.sessions.begin(self.user), self.sessions.begin(self.user)
        self.sessions.end(one.id)
        self.sessions.end(one.id)
        self.assertIsNone(self.sessions.find(one.id))
        self.assertIsNotNone(self.sessions.find(other.id))

    def test_session_ends_when_it_is_not_used(self):
        session = self.sessions.begin(self.user)
        for _ in range(3):
            self.clock.sleep(IDLE_S - 1)
            self.assertIsNotNone(self.sessions.find(session.id))
        self.clock.sleep(IDLE_S + 1)
        self.assertIsNone(self.sessions.find(session.id))
        self.assertIsNone(self.sessions.find(session.id))

    def test_session_ends_at_its_maximum_age(self):
        session = self.sessions.begin(self.user)
        left_s = ABSOLUTE_S
        while left_s > 0:
            self.assertIsNotNone(self.sessions.find(session.id))
            self.clock.sleep(step := min(IDLE_S / 2, left_s))
            left_s -= step
        self.clock.sleep(1)
        self.assertIsNone(self.sessions.find(session.id))

    def test_clock_step_ends_no_session(self):
        session = self.sessions.begin(self.user)
        self.clock.step(365 * 86_400)
        self.assertIsNotNone(self.sessions.find(session.id))

    def test_least_recently_used_session_is_dropped_at_the_limit(self):
        made = [self.sessions.begin(self.user) for _ in range(MOST_SESSIONS)]
        self.sessions.find(made[0].id)
        self.sessions.begin(self.user)
        self.assertIsNotNone(self.sessions.find(made[0].id))
        self.assertIsNone(self.sessions.find(made[1].id))
        self.assertIsNotNone(self.sessions.find(made[2].id))

    def test_sessions_work_with_many_threads(self):
        faults = []

        def work():
            try:
                for _ in range(300):
                    session = self.sessions.begin(self.user)
                    assert self.sessions.find(session.id) == session
                    self.sessions.end(session.id)
                    assert self.sessions.find(session.id) is None
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(faults, [])


class Throttling(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.attempts = LoginThrottle(self.clock)

    def attempt(self, host="192.168.1.7", times=1):
        return [self.attempts.begin(host) for _ in range(times)]

    def test_failures_are_delayed_and_then_refused(self):
        waits = self.attempt(times=MOST)
        self.assertEqual(waits[:FREE], [(0.0, 0.0)] * FREE)
        delays = [wait_s for wait_s, _ in waits[FREE:]]
        self.assertEqual(delays, sorted(delays))
        self.assertGreater(delays[0], 0)
        self.assertLessEqual(delays[-1], 1.0)
        self.assertTrue(all(closed_s == 0.0 for _, closed_s in waits))
        self.assertEqual(self.attempt(), [(0.0, CLOSED_S)])

    def test_address_is_accepted_again_after_a_time(self):
        self.attempt(times=MOST)
        self.clock.sleep(CLOSED_S - 10)
        self.assertEqual(self.attempt(), [(0.0, 10.0)])
        self.clock.sleep(9)
        self.assertEqual(self.attempt(), [(0.0, 1.0)])
        self.clock.sleep(1)
        self.assertEqual(self.attempt(), [(0.0, 0.0)])

    def test_number_of_delayed_attempts_is_limited(self):
        hosts, waited = itertools.count(1), []

        def attempt():
            self.attempts.delay_or_refuse(f"10.0.0.{next(hosts)}", "admin")

        for _ in range(FREE):
            attempt()
        with mock.patch.object(self.clock, "wait", lambda event, delay_s: (waited.append(delay_s), attempt())):
            with self.assertRaises(HTTPError) as refused:
                attempt()  # each attempt begins while the previous one waits
            self.assertEqual((refused.exception.status, len(waited)), (429, MOST_DELAYED))
        attempt()

    def test_delayed_wrong_keys_leave_slots_for_logins(self):
        """Without this, wrong keys from invented addresses prevented logins with the correct password (measured)."""
        for number in range(FREE):
            self.attempts.begin(f"10.0.1.{number}", "admin")  # so that each login of admin is delayed
        hosts, outcomes = itertools.count(1), []

        def guess():
            host = f"10.0.0.{next(hosts)}"
            for _ in range(FREE):
                self.attempts.begin(host)
            self.attempts.delay_or_refuse(host)

        def meanwhile(event, delay_s):
            outcomes.append("waits")
            try:
                guess()
            except HTTPError as error:
                outcomes.append(error.status)
                self.clock.wait = mock.Mock()
                self.attempts.delay_or_refuse("192.168.1.7", "admin")
                outcomes.append("admitted")

        with mock.patch.object(self.clock, "wait", meanwhile):
            guess()
        self.assertEqual(outcomes, ["waits"] * (MOST_DELAYED // 2) + [429, "admitted"])

    def test_failures_do_not_affect_other_addresses(self):
        self.attempt("192.168.1.7", MOST + 5)
        self.assertEqual(self.attempt("192.168.1.8"), [(0.0, 0.0)])

    def test_success_clears_the_failures(self):
        self.attempt(times=MOST - 1)
        self.attempts.succeeded("192.168.1.7")
        self.assertEqual(self.attempt(), [(0.0, 0.0)])
        self.attempts.succeeded("10.0.0.1")

    def test_attempt_is_counted_when_it_begins(self):
        """Twenty simultaneous attempts are counted like twenty consecutive ones."""
        self.assertEqual(
            [closed_s > 0 for _, closed_s in self.attempt(times=20)], [False] * MOST + [True] * (20 - MOST)
        )

    def test_ipv6_addresses_are_counted_per_network(self):
        self.attempt("2001:db8:1:2:3:4:5:6", MOST)
        for same in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::", "2001:db8:1:2:0:0:0:1"):
            self.assertGreater(self.attempt(same)[0][1], 0, same)
        for other in ("2001:db8:1:3::1", "2001:db8::1", "::1", "fe80::1%eth0", "::", "1::", "2001:db8:1::"):
            self.assertEqual(self.attempt(other), [(0.0, 0.0)], other)

    def test_number_of_counted_addresses_is_limited(self):
        self.attempt("192.168.1.7", MOST)
        log = logging.Logger("unused", logging.CRITICAL)
        for number in range(MOST_COUNTED + 200):
            host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            self.attempts.begin(host, f"user{number}" + "x" * 10_000)
            self.attempts.log_failure(log, host, "wrong")
        for table in (self.attempts._addresses, self.attempts._accounts, self.attempts._lines):
            self.assertEqual(len(table), MOST_COUNTED)
            self.assertLess(max(map(len, table)), 100)
        self.assertGreater(self.attempt()[0][1], 0)  # the address with the most failures is kept longest

    def test_account_is_delayed_but_never_locked(self):
        """Otherwise any client could lock its owner out."""
        for number in range(500):
            self.assertEqual(self.attempts.begin(f"10.0.{number >> 8}.{number & 255}", "admin")[1], 0.0)
        self.assertEqual(self.attempts.begin("192.168.1.7", "admin"), (LONGEST_DELAY_S, 0.0))
        self.assertEqual(self.attempts.begin("192.168.1.7", "guest"), (0.0, 0.0))
        self.attempts.succeeded("192.168.1.7", "admin")
        self.assertEqual(self.attempts.begin("192.168.1.8", "admin"), (0.0, 0.0))

    def test_own_account_does_not_clear_failures_of_another(self):
        refused = 0
        for _ in range(2 * MOST):
            refused += self.attempts.begin("192.168.1.7", "admin")[1] > 0
            if not self.attempts.begin("192.168.1.7", "mine")[1]:
                self.attempts.succeeded("192.168.1.7", "mine")
        self.assertEqual(refused, MOST)

    def test_wrong_keys_do_not_lock_out_logins(self):
        self.attempt(times=MOST)
        self.assertGreater(self.attempt()[0][1], 0)
        self.assertEqual(self.attempts.begin("192.168.1.7", "admin"), (0.0, 0.0))

    def test_failures_are_logged_once_per_minute_and_address(self):
        log = logging.getLogger("throttled")
        with self.assertLogs(log, "WARNING") as logged:
            for _ in range(600):
                for host in ("192.168.1.7", "2001:db8::1", "2001:db8::2"):
                    self.attempts.log_failure(log, host, "wrong key")
                self.clock.sleep(LINE_EVERY_S / 300)
        self.assertEqual(logged.output, [
            "WARNING:throttled:192.168.1.7: wrong key", "WARNING:throttled:2001:db8::1: wrong key",
            "WARNING:throttled:192.168.1.7: wrong key"
            " (299 more attempts failed since the last line about this address)",
            "WARNING:throttled:2001:db8::1: wrong key"
            " (599 more attempts failed since the last line about this address)",
        ])  # fmt: skip

    def test_log_lines_about_all_addresses_are_limited(self):
        """A client of a proxy may invent an address for each attempt: 10,000 lines in 13 s (measured)."""
        log = logging.getLogger("throttled")
        with self.assertLogs(log, "WARNING") as logged:
            for number in range(2000):
                self.attempts.log_failure(log, f"10.0.{number >> 8}.{number & 255}", "wrong key")
            self.assertEqual(len(logged.output), MOST_LINES)
            self.assertRegex(logged.output[-1], "further addresses")
            self.assertNotIn("further addresses", "".join(logged.output[:-1]))
            self.attempts.log_failure(log, "192.168.1.7", "wrong key")
            self.clock.sleep(LINE_EVERY_S)
            self.attempts.log_failure(log, "192.168.1.7", "wrong key")
        self.assertEqual(logged.output[MOST_LINES:], [
            "WARNING:throttled:192.168.1.7: wrong key (1 more attempt failed since the last line about this address)",
        ])  # fmt: skip

    def test_expired_failures_are_dropped_first(self):
        """Otherwise, after an attack has filled the table, the failures of two addresses would displace each other."""
        for number in range(MOST_COUNTED):
            for _ in range(MOST):
                self.attempts.begin(f"10.0.{number >> 8}.{number & 255}")
        self.clock.sleep(CLOSED_S)
        for _ in range(MOST):
            for host in ("192.168.1.7", "192.168.1.8"):
                self.assertEqual(self.attempts.begin(host)[1], 0.0)
        self.assertGreater(self.attempts.begin("192.168.1.7")[1], 0)


if __name__ == "__main__":
    unittest.main()
