"""Tokens of programs: made once, found by hash, revoked beside a running server, their last use kept sparingly."""

import json
import os
import re
import stat
import threading
import unittest
from unittest import mock

from pigeonpost.auth import api_tokens
from pigeonpost.auth.api_tokens import MOST_TOKENS, WRITE_EVERY_S, ApiTokens, is_api_token, read_api_token
from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.data_folder import API_TOKEN_USES, API_TOKENS, COPY
from pigeonpost.core.errors import DamagedFile, DiskError, SettingsError
from pigeonpost.core.faults import Faults
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, temp_folder, wait_until


def setUpModule():
    use_memory_disk()


class TokensCase(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.clock = FakeClock()
        self.tokens = self.open()

    def open(self, faults=None):
        tokens = ApiTokens(self.folder, faults, self.clock)
        self.addCleanup(tokens.stop, LIMIT_S)
        return tokens

    def path(self, name=API_TOKENS):
        return os.path.join(self.folder, name)

    def lay(self, text, name=API_TOKENS):
        with open(self.path(name), "w", encoding="ascii") as file:
            file.write(text)


class Made(TokensCase):
    def test_token_has_160_random_bits_and_is_no_number_of_yaml(self):
        found = {self.tokens.make(f"t{number}") for number in range(20)}
        self.assertEqual(len(found), 20)
        for token in found:
            self.assertTrue(re.fullmatch("pp_[0-9a-f]{40}", token) and is_api_token(token), token)

    def test_it_is_found_with_its_role(self):
        for role in api_tokens.ROLES:
            token = self.tokens.make(role, role)
            found = self.tokens.find(token)
            self.assertEqual((found.name, found.role), (role, role))
        self.assertEqual(self.tokens.find(self.tokens.make("usual")).role, "viewer")

    def test_thread_with_an_older_list_takes_no_role_of_it_for_a_newer_token(self):
        """Revoked as operator and made again as viewer, while requests come: one thread has each list."""
        self.tokens.make("thermostat", "operator")
        older, newer = self.tokens._file.now(), self.open()
        newer.revoke("thermostat")
        token = newer.make("thermostat")
        self.assertEqual(newer.find(token).role, "viewer")

        class Replaced(tuple):
            """What a thread has looked at when another one replaces it."""

            def __getitem__(known, index):
                self.tokens._by_digest = newer._by_digest
                return tuple.__getitem__(known, index)

        self.tokens._by_digest = Replaced((older, {}))
        with mock.patch.object(self.tokens._file, "now", return_value=older):
            self.assertIsNone(self.tokens.find(token))

    def test_what_is_nearly_right_is_not_found(self):
        token = self.tokens.make("a")
        for said in ("", token[:-1], token + "0", token.upper(), token[3:], f" {token}", "x" * 8000, "ä\udcff"):
            self.assertIsNone(self.tokens.find(said), said[:50])

    def test_file_has_the_hash_alone_and_is_its_owners(self):
        token = self.tokens.make("a")
        for name in (API_TOKENS, f"{API_TOKENS}{COPY}"):
            with open(self.path(name), encoding="ascii") as file:
                text = file.read()
            self.assertNotIn(token[3:], text)
            self.assertEqual(set(json.loads(text)["a"]), {"role", "sha256", "made_ms"})
            self.assertEqual(stat.S_IMODE(os.stat(self.path(name)).st_mode), 0o600)

    def test_second_one_of_a_name_is_not_made(self):
        token = self.tokens.make("a")
        self.assertIsNone(self.tokens.make("a", "operator"))
        self.assertEqual(self.tokens.find(token).role, "viewer")

    def test_names_and_roles_that_are_not_accepted(self):
        for name in ("", "a b", "../x", "x" * 64, "-x", "a\n", "ä", "a/b", "<img>"):
            with self.assertRaisesRegex(SettingsError, "the name of an API token is letters, digits"):
                self.tokens.make(name)
        for role in ("", "admin", "Viewer", "control"):
            with self.assertRaisesRegex(SettingsError, "role of an API token is viewer, writer or operator"):
                self.tokens.make("a", role)
        self.assertFalse(os.path.exists(self.path()))

    def test_there_is_a_most(self):
        with mock.patch.object(api_tokens, "MOST_TOKENS", 2):
            self.tokens.make("a")
            self.tokens.make("b")
            with self.assertRaisesRegex(SettingsError, "there are 2 API tokens, .* revoke one first"):
                self.tokens.make("c")
        self.assertGreater(MOST_TOKENS, 2)

    def test_none_is_lost_when_several_programs_change_them(self):
        threads = [threading.Thread(target=self.open().make, args=(f"t{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(len(self.tokens.all()), 8)


class Revoked(TokensCase):
    def test_it_is_found_no_more(self):
        one, other = self.tokens.make("a"), self.tokens.make("b")
        self.assertTrue(self.tokens.revoke("a"))
        self.assertFalse(self.tokens.revoke("a"))
        self.assertIsNone(self.tokens.find(one))
        self.assertEqual(self.tokens.find(other).name, "b")

    def test_running_server_sees_what_control_py_changes(self):
        beside = self.open()
        token = beside.make("a")
        self.assertEqual(self.tokens.find(token).name, "a")
        beside.revoke("a")
        self.assertIsNone(self.tokens.find(token))

    def test_it_does_not_come_back_with_the_copy(self):
        token = self.tokens.make("a")
        self.tokens.make("b")
        self.tokens.revoke("a")
        os.replace(self.path(f"{API_TOKENS}{COPY}"), self.path())
        self.assertIsNone(self.open().find(token))


class Damaged(TokensCase):
    def test_no_token_is_taken_from_a_damaged_file(self):
        token = self.tokens.make("a")
        right = {"role": "viewer", "sha256": "00" * 32, "made_ms": 1}
        for text in (
            "", "[", "[]", '{"a": null}', '{"a": 1}', '{"a": {}}',
            json.dumps({"a": {**right, "role": "admin"}}), json.dumps({"a": {**right, "sha256": "00"}}),
            json.dumps({"a": {**right, "sha256": None}}), json.dumps({"a": {**right, "made_ms": "1"}}),
            json.dumps({"a": {**right, "made_ms": True}}), json.dumps({"a": {**right, "role": ["viewer"]}}),
        ):  # fmt: skip
            self.lay(text)
            tokens = self.open()
            for call, *arguments in ([tokens.find, token], [tokens.all], [tokens.make, "b"], [tokens.revoke, "a"]):
                with self.subTest(text), self.assertRaisesRegex(DamagedFile, "api_tokens.json is damaged"):
                    call(*arguments)
        self.lay(json.dumps({"a": right}))
        self.assertEqual(self.open().all()[0].name, "a")

    def test_server_that_runs_keeps_those_that_it_knows_and_says_so(self):
        faults = Faults()
        token = self.tokens.make("a")
        running = self.open(faults)
        self.assertIsNotNone(running.find(token))
        self.lay("")
        with self.assertLogs("pigeonpost.core.faults", "ERROR"):
            self.assertIsNotNone(running.find(token))
        self.assertIn(f"restore {self.path()}.bak", faults.present()[API_TOKENS])

    def test_missing_beside_its_copy_is_no_empty_list(self):
        token = self.tokens.make("a")
        os.unlink(self.path())
        with self.assertRaisesRegex(DamagedFile, "is missing"):
            self.open().find(token)

    def test_damaged_times_of_use_shut_nobody_out(self):
        token = self.tokens.make("a")
        self.lay("", API_TOKEN_USES)
        with self.assertLogs("pigeonpost.auth.api_tokens", "WARNING") as logged:
            self.assertIsNotNone(self.tokens.find(token))
            self.tokens.stop(LIMIT_S)
        self.assertIn("last used is not kept", logged.output[0])

    def test_full_disk_shuts_nobody_out(self):
        token = self.tokens.make("a")
        with (
            mock.patch("pigeonpost.core.json_file.replace_file", side_effect=DiskError("full")),
            self.assertLogs("pigeonpost.auth.api_tokens", "WARNING"),
        ):
            self.assertIsNotNone(self.tokens.find(token))
            self.tokens.stop(LIMIT_S)

    def test_entry_of_the_file(self):
        entry = read_api_token({"role": "writer", "sha256": "ab" * 32, "made_ms": 5, "later": "versions"})
        self.assertEqual((entry.role, entry.made_ms), ("writer", 5))


class LastUse(TokensCase):
    def used(self):
        return {token.name: token.used_ms for token in self.open().all()}  # as control.py, beside the server

    def test_first_use_is_written_at_once(self):
        token = self.tokens.make("a")
        self.assertEqual(self.used(), {"a": None})
        now_ms = self.clock.wall_ms()
        self.tokens.find(token)
        wait_until(lambda: self.used()["a"] == now_ms, "the use is written")
        self.assertEqual(stat.S_IMODE(os.stat(self.path(API_TOKEN_USES)).st_mode), 0o600)

    def test_written_once_a_minute_however_often_it_is_used(self):
        self.clock = Clock()  # which does not go by being waited on
        tokens = self.open()
        token = tokens.make("a")
        tokens.find(token)
        wait_until(lambda: self.used()["a"] is not None, "the first use is written")
        first_ms = self.used()["a"]
        wait_until(lambda: self.clock.wall_ms() > first_ms, "the clock has gone on")
        secrets_before = os.stat(self.path()).st_mtime_ns
        for _ in range(500):
            tokens.find(token)
        self.assertEqual(self.used()["a"], first_ms)
        self.assertEqual(sum(thread.name == "API tokens" for thread in threading.enumerate()), 1)
        tokens.stop(LIMIT_S)  # what waits is written when the server stops
        self.assertGreater(self.used()["a"], first_ms)
        self.assertEqual(os.stat(self.path()).st_mtime_ns, secrets_before)  # and the secrets are not touched
        self.assertEqual(WRITE_EVERY_S, 60.0)

    def test_later_uses_are_written_a_minute_later(self):
        token = self.tokens.make("a")
        began_s = self.clock.monotonic()
        for _ in range(3):
            now_ms = self.clock.wall_ms()
            self.tokens.find(token)
            wait_until(lambda at_ms=now_ms: (self.used()["a"] or 0) >= at_ms, "the use is written")
        self.assertLessEqual(self.clock.monotonic() - began_s, 3 * WRITE_EVERY_S)

    def test_no_room_for_the_thread_shuts_nobody_out(self):
        token = self.tokens.make("a")
        with (
            mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")),
            self.assertLogs(api_tokens.log, "WARNING"),
        ):
            self.assertEqual(self.tokens.find(token).name, "a")
        self.tokens.stop(LIMIT_S)  # nothing to wait for
        self.tokens.find(token)
        self.tokens.stop(LIMIT_S)
        self.assertIsNotNone(self.used()["a"])

    def test_of_a_name_that_was_used_before_it_is_not_taken_over(self):
        token = self.tokens.make("a")
        self.tokens.find(token)
        wait_until(lambda: self.used()["a"] is not None, "the use is written")
        self.tokens.revoke("a")
        self.clock.sleep(1)
        self.tokens.make("a")
        self.assertEqual(self.used(), {"a": None})

    def test_times_of_revoked_ones_are_forgotten(self):
        one, other = self.tokens.make("a"), self.tokens.make("b")
        self.tokens.find(one)
        wait_until(lambda: self.used()["a"] is not None, "the use is written")
        self.tokens.revoke("a")
        self.tokens.find(other)
        wait_until(lambda: self.used()["b"] is not None, "the use is written")
        with open(self.path(API_TOKEN_USES), encoding="ascii") as file:
            self.assertEqual(list(json.load(file)), ["b"])


if __name__ == "__main__":
    unittest.main()
