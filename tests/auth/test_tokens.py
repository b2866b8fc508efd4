"""Tests of the nodes' tokens: proofs, constant-time comparison, rotation, and the permissions of the files."""

import hashlib
import hmac
import json
import os
import stat
import threading
import unittest
from unittest import mock

from pigeonpost.auth import link_key, token_watch
from pigeonpost.auth import tokens as tokens_module
from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.tokens import REPLACED_S, Tokens
from pigeonpost.core import json_file
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.data_folder import REPLACED_TOKENS, TOKENS
from pigeonpost.core.errors import DiskError, SettingsError
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, temp_folder

NAMES = ("home", "basement", "0b" * 8)
NONCES = ("5e" * 16, "0d" * 16)


def setUpModule():
    use_memory_disk()


class Proofs(unittest.TestCase):
    def setUp(self):
        self.key = LinkKey("ein Geheimnis mit Ümläuten")

    def test_signed_text_is_that_of_the_protocol(self):
        """The expected text is in docs/protocol.md. It is written here independently of the code."""
        for side in ("node", "server"):
            text = f"pigeonpost-link-1|{side}|home|basement|{'0b' * 8}|{'5e' * 16}|{'0d' * 16}"
            right = hmac.new("ein Geheimnis mit Ümläuten".encode(), text.encode(), hashlib.sha256).hexdigest()
            self.assertEqual(self.key.sign(side, *NAMES, NONCES), right)

    def test_proof_is_accepted_with_the_same_token(self):
        mac = self.key.sign("node", *NAMES, NONCES)
        self.assertTrue(LinkKey("ein Geheimnis mit Ümläuten").proves(mac, "node", *NAMES, NONCES))

    def test_proof_depends_on_every_argument(self):
        mac = self.key.sign("node", *NAMES, NONCES)
        for arguments in (
            ("server", *NAMES, NONCES), ("node", "other", *NAMES[1:], NONCES),
            ("node", "home", "other", NAMES[2], NONCES),
            ("node", *NAMES[:2], "00" * 8, NONCES), ("node", *NAMES, NONCES[::-1]),
            ("node", *NAMES, (NONCES[0], NONCES[0])),
        ):  # fmt: skip
            self.assertFalse(self.key.proves(mac, *arguments))
        self.assertFalse(LinkKey("ein Geheimnis mit Umlauten").proves(mac, "node", *NAMES, NONCES))

    def test_invalid_proofs_are_rejected(self):
        mac = self.key.sign("node", *NAMES, NONCES)
        for said in ("", mac[:-1], mac + "0", mac.upper(), mac.encode(), None, 5, [mac], "é" * 64, "\u0660" * 64):
            self.assertFalse(self.key.proves(said, "node", *NAMES, NONCES), said)

    def test_is_token_accepts_the_token_only(self):
        self.assertTrue(self.key.is_token("ein Geheimnis mit Ümläuten"))
        for said in ("", "ein Geheimnis", None, 5, b"x", ["ein Geheimnis mit Ümläuten"]):
            self.assertFalse(self.key.is_token(said))

    def test_signature_is_valid_for_one_body_and_purpose(self):
        """The signed text is in docs/protocol.md too."""
        token = "ein Geheimnis mit Ümläuten".encode()
        mac = self.key.signature("announce", b'{"node":"basement"}')
        self.assertEqual(mac, hmac.new(token, b'pigeonpost-announce-1|{"node":"basement"}', hashlib.sha256).hexdigest())
        self.assertTrue(self.key.is_signature(mac, "announce", b'{"node":"basement"}'))
        self.assertFalse(self.key.is_signature(mac, "mqtt", b'{"node":"basement"}'))
        self.assertFalse(self.key.is_signature(mac, "announce", b'{"node":"basemenu"}'))
        self.assertFalse(LinkKey("another").is_signature(mac, "announce", b'{"node":"basement"}'))
        for said in ("", mac[:-1], mac.upper(), None, 5):
            self.assertFalse(self.key.is_signature(said, "announce", b'{"node":"basement"}'), said)

    def test_comparisons_take_constant_time(self):
        with mock.patch.object(link_key.hmac, "compare_digest", return_value=True) as compare:
            self.assertTrue(self.key.proves("wrong", "node", *NAMES, NONCES))
            self.assertTrue(self.key.is_token("wrong"))
            self.assertTrue(self.key.is_signature("wrong", "mqtt", b""))
        self.assertEqual(compare.call_count, 3)


class TokenFile(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.path = os.path.join(self.folder, TOKENS)
        self.tokens = Tokens(self.folder)

    def test_missing_file_means_no_tokens(self):
        self.assertEqual(
            (len(self.tokens), list(self.tokens), self.tokens.text_of("a"), "a" in self.tokens), (0, [], None, False)
        )
        self.assertFalse(self.tokens.revoke("a"))
        self.assertIsNone(self.tokens.get("a"))
        self.assertFalse(os.path.exists(self.path))

    def test_a_token_is_128_random_bits(self):
        made = {self.tokens.make(f"n{n}") for n in range(20)}
        self.assertEqual(len(made), 20)
        for token in made:
            self.assertRegex(token, "^[0-9a-f]{32}$")

    def test_token_is_found_by_node_name(self):
        token = self.tokens.make("basement")
        again = Tokens(self.folder)
        self.assertEqual((again.text_of("basement"), list(again), len(again)), (token, ["basement"], 1))
        self.assertTrue(again["basement"].is_token(token))
        with self.assertRaises(KeyError):
            again["attic"]

    def test_node_of_finds_the_node_of_a_token(self):
        made = {node: self.tokens.make(node) for node in ("attic", "basement")}
        for node, token in made.items():
            self.assertEqual(self.tokens.node_of(token), node)
        self.tokens.revoke("attic")
        renewed = self.tokens.make("basement")
        self.assertEqual([self.tokens.node_of(token) for token in made.values()], [None, None])
        self.assertEqual(self.tokens.node_of(renewed), "basement")
        for unknown in ("", "basement", renewed[:-1], "\ud800"):
            self.assertIsNone(self.tokens.node_of(unknown))

    def test_new_token_replaces_the_old_one(self):
        old, new = self.tokens.make("basement"), self.tokens.make("basement")
        self.assertNotEqual(old, new)
        self.assertEqual((self.tokens.text_of("basement"), len(self.tokens)), (new, 1))

    def test_revoked_token_is_deleted(self):
        self.tokens.make("a")
        kept = self.tokens.make("b")
        self.assertTrue(self.tokens.revoke("a"))
        self.assertFalse(self.tokens.revoke("a"))
        self.assertEqual((list(Tokens(self.folder)), self.tokens.text_of("b")), (["b"], kept))

    def test_the_file_is_for_its_owner_only(self):
        self.tokens.make("a")
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        os.chmod(self.path, 0o644)
        self.tokens.make("b")
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        self.assertEqual(sorted(os.listdir(self.folder)), [TOKENS, f"{TOKENS}.bak"])
        self.assertEqual(stat.S_IMODE(os.stat(f"{self.path}.bak").st_mode), 0o600)

    def test_running_server_sees_changes_of_other_programs(self):
        seen = Tokens(self.folder)
        self.assertEqual(list(seen), [])
        for n in range(10):  # changes in quick succession are not missed
            token = self.tokens.make("basement")
            self.assertEqual(seen.text_of("basement"), token, n)
        self.tokens.revoke("basement")
        self.assertNotIn("basement", seen)
        os.remove(self.path)
        os.remove(f"{self.path}.bak")
        self.assertEqual(list(seen), [])

    def test_damaged_file_is_named_in_the_error(self):
        for content in (b"", b"{", b"[1]", b"5", b'"x"', b"\xff\xfe", b"null"):
            with open(self.path, "wb") as file:
                file.write(content)
            with self.subTest(content), self.assertRaises(SettingsError) as caught:
                len(Tokens(self.folder))
            self.assertIn(self.path, str(caught.exception))

    def test_threads_can_read_during_a_write(self):
        seen, failed, done = Tokens(self.folder), [], threading.Event()
        self.tokens.make("steady")

        def read():
            try:
                while not done.is_set():
                    if "steady" not in seen:
                        failed.append("gone")
            except Exception as error:
                failed.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for n in range(15):
            self.tokens.make(f"n{n}")
        done.set()
        for reader in readers:
            reader.join()
        self.assertEqual(failed, [])


class Rotation(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.clock = FakeClock()
        self.tokens = Tokens(self.folder, wall_ms=self.clock.wall_ms)
        self.old = self.tokens.make("basement")
        self.tokens.make("attic")

    def proofs(self, *tokens):
        """Return a list with True for each token that is accepted now, in proofs and signatures."""
        key = self.tokens["basement"]
        found = []
        for token in tokens:
            mine = LinkKey(token)
            proving = key.proving_key(mine.sign("node", *NAMES, NONCES), "node", *NAMES, NONCES)
            sealing = key.signing_key(mine.signature("mqtt", b"{}"), "mqtt", b"{}")
            self.assertEqual(proving is not None, sealing is not None)
            if proving is not None and sealing is not None:
                self.assertEqual((proving.plain_token(), sealing.plain_token()), (token, token))
            self.assertEqual(key.covers(mine), proving is not None)
            found.append(proving is not None)
        return found

    def bearers(self, *tokens):
        return [self.tokens.node_of(token) for token in tokens]

    def test_previous_token_is_accepted_until_the_new_one_is_used(self):
        new = self.tokens.rotate("basement")
        self.assertRegex(new, "^[0-9a-f]{32}$")
        self.assertEqual(self.tokens.text_of("basement"), new)
        self.assertEqual(self.bearers(self.old, self.old), ["basement", "basement"])
        self.assertEqual(self.proofs(self.old), [True])
        self.assertEqual(self.proofs(new), [True])  # this is a use of the new token
        self.assertEqual(self.proofs(self.old, new), [False, True])
        self.assertEqual(self.bearers(self.old, new), [None, "basement"])

    def test_use_as_bearer_token_retires_the_previous_token(self):
        new = self.tokens.rotate("basement")
        self.assertEqual(self.bearers(new, self.old), ["basement", None])

    def test_previous_token_expires_after_an_hour(self):
        new = self.tokens.rotate("basement")
        self.clock.sleep(REPLACED_S - 1)
        self.assertEqual((self.proofs(self.old), self.bearers(self.old)), ([True], ["basement"]))
        self.clock.sleep(2)
        self.assertEqual((self.proofs(self.old, new), self.bearers(self.old)), ([False, True], [None]))

    def test_clock_set_back_does_not_extend_the_previous_token(self):
        self.tokens.rotate("basement")
        self.clock.step(-86_400)
        self.assertEqual((self.proofs(self.old), self.bearers(self.old)), ([False], [None]))

    def test_repeated_use_of_a_token_needs_one_stat_call(self):
        for token in (self.old, None):
            token = token or self.tokens.rotate("basement")
            self.assertEqual(
                self.bearers(token, token), ["basement", "basement"]
            )  # retires the previous token, if there is one
            with mock.patch.object(json_file.os, "stat", side_effect=os.stat) as asked:
                self.assertEqual(self.bearers(token, token, token), ["basement"] * 3)
            self.assertEqual(asked.call_count, 3)

    def test_token_used_during_a_rotation_is_not_retired(self):
        servers, waiting = Tokens(self.folder, wall_ms=self.clock.wall_ms), threading.Event()
        user = threading.Thread(target=servers.node_of, args=(self.old,))
        write, lock = self.tokens._write_replaced, tokens_module.changes_locked

        def locking(folder):
            if threading.current_thread() is user:
                waiting.set()
            return lock(folder)

        def write_the_first(entries):
            write(entries)
            user.start()
            self.assertTrue(waiting.wait(LIMIT_S))

        with (
            mock.patch.object(tokens_module, "changes_locked", locking),
            mock.patch.object(self.tokens, "_write_replaced", write_the_first),
        ):
            new = self.tokens.rotate("basement")
            user.join(LIMIT_S)
        self.assertEqual(self.bearers(self.old, new, self.old), ["basement", "basement", None])

    def test_setting_the_clock_does_not_restore_a_retired_token(self):
        """This happens on a Pi without a real-time clock that has restarted since the rotation."""
        for use, expected in ((self.bearers, "basement"), (self.proofs, True)):
            old, new = self.tokens.text_of("basement"), self.tokens.rotate("basement")
            self.clock.step(-600)
            self.assertEqual(use(new), [expected])
            self.clock.step(600)
            self.assertEqual((self.bearers(old), self.proofs(old)), ([None], [False]))

    def test_revoking_deletes_current_and_previous_token(self):
        new = self.tokens.rotate("basement")
        self.assertTrue(self.tokens.revoke("basement"))
        self.assertEqual(self.bearers(self.old, new), [None, None])
        again = self.tokens.make("basement")
        self.assertEqual(self.bearers(self.old, new, again), [None, None, "basement"])
        self.assertEqual(self.proofs(self.old, again), [False, True])

    def test_set_token_replaces_current_and_previous_token(self):
        new = self.tokens.rotate("basement")
        self.tokens.make("basement", "a token of the node's own")
        self.assertEqual(self.bearers(self.old, new, "a token of the node's own"), [None, None, "basement"])

    def test_second_rotation_keeps_the_token_that_the_node_has(self):
        never_used, new = self.tokens.rotate("basement"), self.tokens.rotate("basement")
        self.assertEqual(self.bearers(self.old, never_used, new, self.old), ["basement", None, "basement", None])

    def test_rotation_without_a_token_returns_none(self):
        self.assertIsNone(self.tokens.rotate("cellar"))
        self.assertEqual(list(self.tokens), ["basement", "attic"])

    def test_older_programs_still_read_the_tokens(self):
        """They expect an object of strings."""
        new = self.tokens.rotate("basement")
        with open(os.path.join(self.folder, TOKENS), encoding="utf-8") as file:
            content = json.load(file)
        self.assertEqual(content["basement"], new)
        self.assertTrue(all(isinstance(token, str) for token in content.values()))

    def test_damaged_list_of_replaced_tokens_does_not_affect_new_tokens(self):
        new = self.tokens.rotate("basement")
        for name in (REPLACED_TOKENS, f"{REPLACED_TOKENS}.bak"):
            with open(os.path.join(self.folder, name), "wb") as file:
                file.write(b"{")
        self.tokens = Tokens(self.folder, wall_ms=self.clock.wall_ms)
        self.assertEqual(self.proofs(new, self.old), [True, False])
        self.assertEqual(self.bearers(new, self.old), ["basement", None])
        again = self.tokens.rotate("basement")  # repairs the list
        self.assertEqual(Tokens(self.folder, wall_ms=self.clock.wall_ms).node_of(new), "basement")
        self.assertTrue(self.tokens.revoke("basement"))
        self.assertEqual(self.bearers(new, again), [None, None])

    def test_both_files_are_for_their_owner_only(self):
        self.tokens.rotate("basement")
        for name in os.listdir(self.folder):
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.folder, name)).st_mode), 0o600, name)

    def test_simultaneous_changes_of_programs_are_all_kept(self):
        others = [Tokens(self.folder, wall_ms=self.clock.wall_ms) for _ in range(3)]

        def work(tokens, k):
            for n in range(4):
                tokens.make(f"n{k}-{n}")
                tokens.rotate(f"n{k}-{n}")

        threads = [threading.Thread(target=work, args=(tokens, k)) for k, tokens in enumerate(others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        accepted, replaced = self.tokens.accepted()
        self.assertEqual((len(accepted), len(replaced)), (2 + 12, 12))

    def test_full_disk_does_not_lock_nodes_out(self):
        new = self.tokens.rotate("basement")
        full = mock.patch("pigeonpost.core.json_file.replace_file", side_effect=DiskError("disk full"))
        with full, self.assertLogs("pigeonpost.auth.tokens", "WARNING") as logged:
            self.assertEqual(self.bearers(new), ["basement"])
        self.assertIn("disk full", logged.output[0])


class TokenWatching(unittest.TestCase):
    def setUp(self):
        self.enterContext(mock.patch.object(token_watch, "CHECK_EVERY_S", 0.005))
        self.tokens = Tokens(temp_folder(self))
        self.tokens.make("attic")
        self.first = self.tokens.make("basement")
        self.changes, self.seen = [], threading.Semaphore(0)

    def watch(self, tokens=None):
        looks = threading.Event()
        accepted = (tokens or self.tokens).accepted

        def look():
            found = accepted()
            looks.set()
            return found

        watched = mock.Mock(accepted=look)
        watch = token_watch.TokenWatch(watched, lambda nodes: (self.changes.append(nodes), self.seen.release()))
        watch.start()
        self.addCleanup(watch.stop, LIMIT_S)
        self.assertTrue(looks.wait(LIMIT_S))
        return watch

    def next(self):
        self.assertTrue(self.seen.acquire(timeout=LIMIT_S))
        return self.changes.pop(0)

    def test_watch_reports_nodes_with_changed_tokens(self):
        self.watch()
        other = Tokens(os.path.dirname(self.tokens._file.path))  # control.py, in another process
        other.revoke("basement")
        self.assertEqual(self.next(), {"basement"})
        other.make("cellar")
        self.assertEqual(self.next(), {"cellar"})
        other.rotate("attic")
        self.assertEqual(self.next(), {"attic"})

    def test_watch_reports_an_expired_previous_token(self):
        clock = FakeClock()
        tokens = Tokens(os.path.dirname(self.tokens._file.path), wall_ms=clock.wall_ms)
        tokens.rotate("basement")
        self.watch(tokens)
        clock.sleep(REPLACED_S + 1)
        self.assertEqual(self.next(), {"basement"})

    def test_damaged_file_ends_no_session(self):
        self.watch()
        path = self.tokens._file.path
        with open(path, "rb") as file:
            content = file.read()
        with open(path, "wb") as file:
            file.write(b"{")
        with open(path, "wb") as file:
            file.write(content)
        Tokens(os.path.dirname(path)).make("cellar")
        self.assertEqual(self.next(), {"cellar"})

    def test_watch_can_be_stopped_twice(self):
        watch = self.watch()
        watch.stop(LIMIT_S)
        watch.stop(LIMIT_S)
        self.assertFalse(watch._thread.is_alive())


if __name__ == "__main__":
    unittest.main()
