"""Tests of the API tokens of programs: creation, lookup by digest, revocation, and the times of last use."""

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


class TokenCreation(TokensCase):
    def test_token_has_160_random_bits_and_a_prefix(self):
        found = {self.tokens.make(f"t{number}") for number in range(20)}
        self.assertEqual(len(found), 20)
        for token in found:
            self.assertTrue(re.fullmatch("pp_[0-9a-f]{40}", token) and is_api_token(token), token)

    def test_token_is_found_with_its_role(self):
        for role in api_tokens.ROLES:
            token = self.tokens.make(role, role)
            found = self.tokens.find(token)
            self.assertEqual((found.name, found.role), (role, role))
        self.assertEqual(self.tokens.find(self.tokens.make("usual")).role, "viewer")

    def test_older_list_gives_no_role_to_a_newer_token(self):
        """A token is revoked as operator and created again as viewer while two threads use different lists."""
        self.tokens.make("thermostat", "operator")
        older, newer = self.tokens._file.now(), self.open()
        newer.revoke("thermostat")
        token = newer.make("thermostat")
        self.assertEqual(newer.find(token).role, "viewer")

        class Replaced(tuple):
            """List that another thread replaces while a thread is reading it."""

            def __getitem__(known, index):
                self.tokens._by_digest = newer._by_digest
                return tuple.__getitem__(known, index)

        self.tokens._by_digest = Replaced((older, {}))
        with mock.patch.object(self.tokens._file, "now", return_value=older):
            self.assertIsNone(self.tokens.find(token))

    def test_similar_token_is_not_found(self):
        token = self.tokens.make("a")
        for said in ("", token[:-1], token + "0", token.upper(), token[3:], f" {token}", "x" * 8000, "ä\udcff"):
            self.assertIsNone(self.tokens.find(said), said[:50])

    def test_file_contains_digests_only_and_is_private(self):
        token = self.tokens.make("a")
        for name in (API_TOKENS, f"{API_TOKENS}{COPY}"):
            with open(self.path(name), encoding="ascii") as file:
                text = file.read()
            self.assertNotIn(token[3:], text)
            self.assertEqual(set(json.loads(text)["a"]), {"role", "sha256", "made_ms"})
            self.assertEqual(stat.S_IMODE(os.stat(self.path(name)).st_mode), 0o600)

    def test_existing_name_is_not_created_again(self):
        token = self.tokens.make("a")
        self.assertIsNone(self.tokens.make("a", "operator"))
        self.assertEqual(self.tokens.find(token).role, "viewer")

    def test_invalid_names_and_roles_are_rejected(self):
        for name in ("", "a b", "../x", "x" * 64, "-x", "a\n", "ä", "a/b", "<img>"):
            with self.assertRaisesRegex(
                SettingsError, "the name of an API token must consist of at most 63 letters, digits"
            ):
                self.tokens.make(name)
        for role in ("", "admin", "Viewer", "control"):
            with self.assertRaisesRegex(SettingsError, "role of an API token must be viewer, writer or operator"):
                self.tokens.make("a", role)
        self.assertFalse(os.path.exists(self.path()))

    def test_number_of_tokens_is_limited(self):
        with mock.patch.object(api_tokens, "MOST_TOKENS", 2):
            self.tokens.make("a")
            self.tokens.make("b")
            with self.assertRaisesRegex(SettingsError, "there are already 2 API tokens, the maximum: revoke one first"):
                self.tokens.make("c")
        self.assertGreater(MOST_TOKENS, 2)

    def test_simultaneous_changes_are_all_kept(self):
        threads = [threading.Thread(target=self.open().make, args=(f"t{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(len(self.tokens.all()), 8)


class TokenRevocation(TokensCase):
    def test_revoked_token_is_not_found(self):
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

    def test_copy_of_the_file_does_not_contain_a_revoked_token(self):
        token = self.tokens.make("a")
        self.tokens.make("b")
        self.tokens.revoke("a")
        os.replace(self.path(f"{API_TOKENS}{COPY}"), self.path())
        self.assertIsNone(self.open().find(token))


class DamagedTokenFile(TokensCase):
    def test_damaged_file_accepts_no_token(self):
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

    def test_running_server_keeps_its_tokens_and_reports_the_fault(self):
        faults = Faults()
        token = self.tokens.make("a")
        running = self.open(faults)
        self.assertIsNotNone(running.find(token))
        self.lay("")
        with self.assertLogs("pigeonpost.core.faults", "ERROR"):
            self.assertIsNotNone(running.find(token))
        self.assertIn(f"restore {self.path()}.bak", faults.present()[API_TOKENS])

    def test_missing_file_next_to_its_copy_is_damage(self):
        token = self.tokens.make("a")
        os.unlink(self.path())
        with self.assertRaisesRegex(DamagedFile, "is missing"):
            self.open().find(token)

    def test_damaged_times_of_use_do_not_lock_programs_out(self):
        token = self.tokens.make("a")
        self.lay("", API_TOKEN_USES)
        with self.assertLogs("pigeonpost.auth.api_tokens", "WARNING") as logged:
            self.assertIsNotNone(self.tokens.find(token))
            self.tokens.stop(LIMIT_S)
        self.assertIn("last used are not saved", logged.output[0])

    def test_full_disk_does_not_lock_programs_out(self):
        token = self.tokens.make("a")
        with (
            mock.patch("pigeonpost.core.json_file.replace_file", side_effect=DiskError("full")),
            self.assertLogs("pigeonpost.auth.api_tokens", "WARNING"),
        ):
            self.assertIsNotNone(self.tokens.find(token))
            self.tokens.stop(LIMIT_S)

    def test_unknown_keys_of_an_entry_are_ignored(self):
        entry = read_api_token({"role": "writer", "sha256": "ab" * 32, "made_ms": 5, "later": "versions"})
        self.assertEqual((entry.role, entry.made_ms), ("writer", 5))


class LastUse(TokensCase):
    def used(self):
        return {token.name: token.used_ms for token in self.open().all()}  # in a second instance, like control.py

    def test_first_use_is_written_immediately(self):
        token = self.tokens.make("a")
        self.assertEqual(self.used(), {"a": None})
        now_ms = self.clock.wall_ms()
        self.tokens.find(token)
        wait_until(lambda: self.used()["a"] == now_ms, "the use is written")
        self.assertEqual(stat.S_IMODE(os.stat(self.path(API_TOKEN_USES)).st_mode), 0o600)

    def test_uses_are_written_once_per_minute(self):
        self.clock = Clock()  # unlike FakeClock, it does not advance during waits
        tokens = self.open()
        token = tokens.make("a")
        tokens.find(token)
        wait_until(lambda: self.used()["a"] is not None, "the first use is written")
        first_ms = self.used()["a"]
        wait_until(lambda: self.clock.wall_ms() > first_ms, "the clock has advanced")
        secrets_before = os.stat(self.path()).st_mtime_ns
        for _ in range(500):
            tokens.find(token)
        self.assertEqual(self.used()["a"], first_ms)
        self.assertEqual(sum(thread.name == "API tokens" for thread in threading.enumerate()), 1)
        tokens.stop(LIMIT_S)  # pending times are written when the server stops
        self.assertGreater(self.used()["a"], first_ms)
        self.assertEqual(os.stat(self.path()).st_mtime_ns, secrets_before)  # the file with the digests was not written
        self.assertEqual(WRITE_EVERY_S, 60.0)

    def test_later_uses_are_written_a_minute_later(self):
        token = self.tokens.make("a")
        began_s = self.clock.monotonic()
        for _ in range(3):
            now_ms = self.clock.wall_ms()
            self.tokens.find(token)
            wait_until(lambda at_ms=now_ms: (self.used()["a"] or 0) >= at_ms, "the use is written")
        self.assertLessEqual(self.clock.monotonic() - began_s, 3 * WRITE_EVERY_S)

    def test_failed_thread_start_does_not_lock_programs_out(self):
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

    def test_new_token_does_not_inherit_the_use_of_an_old_one(self):
        token = self.tokens.make("a")
        self.tokens.find(token)
        wait_until(lambda: self.used()["a"] is not None, "the use is written")
        self.tokens.revoke("a")
        self.clock.sleep(1)
        self.tokens.make("a")
        self.assertEqual(self.used(), {"a": None})

    def test_times_of_revoked_tokens_are_dropped(self):
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
