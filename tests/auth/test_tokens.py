"""The tokens of nodes: proofs that are good once, compared in constant time, and a file for its owner's eyes only."""

import hashlib
import hmac
import os
import stat
import threading
import unittest
from unittest import mock

from pigeonpost.auth import link_key
from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.data_folder import TOKENS
from pigeonpost.core.errors import SettingsError
from tests.support import temp_folder

NAMES = ("home", "basement", "0b" * 8)
NONCES = ("5e" * 16, "0d" * 16)


class Proofs(unittest.TestCase):
    def setUp(self):
        self.key = LinkKey("ein Geheimnis mit Ümläuten")

    def test_the_text_that_is_signed_is_that_of_the_page(self):
        """docs/protocol.md fixes it; so this is written out here, and not taken from the code."""
        for side in ("node", "server"):
            text = f"pigeonpost-link-1|{side}|home|basement|{'0b' * 8}|{'5e' * 16}|{'0d' * 16}"
            right = hmac.new("ein Geheimnis mit Ümläuten".encode(), text.encode(), hashlib.sha256).hexdigest()
            self.assertEqual(self.key.sign(side, *NAMES, NONCES), right)

    def test_what_one_signs_the_other_believes(self):
        mac = self.key.sign("node", *NAMES, NONCES)
        self.assertTrue(LinkKey("ein Geheimnis mit Ümläuten").proves(mac, "node", *NAMES, NONCES))

    def test_everything_in_it_counts(self):
        mac = self.key.sign("node", *NAMES, NONCES)
        for arguments in (
            ("server", *NAMES, NONCES), ("node", "other", *NAMES[1:], NONCES),
            ("node", "home", "other", NAMES[2], NONCES),
            ("node", *NAMES[:2], "00" * 8, NONCES), ("node", *NAMES, NONCES[::-1]),
            ("node", *NAMES, (NONCES[0], NONCES[0])),
        ):  # fmt: skip
            self.assertFalse(self.key.proves(mac, *arguments))
        self.assertFalse(LinkKey("ein Geheimnis mit Umlauten").proves(mac, "node", *NAMES, NONCES))

    def test_nothing_else_is_a_proof(self):
        mac = self.key.sign("node", *NAMES, NONCES)
        for said in ("", mac[:-1], mac + "0", mac.upper(), mac.encode(), None, 5, [mac], "é" * 64, "\u0660" * 64):
            self.assertFalse(self.key.proves(said, "node", *NAMES, NONCES), said)

    def test_the_token_itself(self):
        self.assertTrue(self.key.is_token("ein Geheimnis mit Ümläuten"))
        for said in ("", "ein Geheimnis", None, 5, b"x", ["ein Geheimnis mit Ümläuten"]):
            self.assertFalse(self.key.is_token(said))

    def test_a_seal_is_good_for_one_body_and_one_purpose(self):
        """What is signed is fixed by docs/protocol.md too."""
        token = "ein Geheimnis mit Ümläuten".encode()
        mac = self.key.seal("announce", b'{"node":"basement"}')
        self.assertEqual(mac, hmac.new(token, b'pigeonpost-announce-1|{"node":"basement"}', hashlib.sha256).hexdigest())
        self.assertTrue(self.key.is_seal(mac, "announce", b'{"node":"basement"}'))
        self.assertFalse(self.key.is_seal(mac, "mqtt", b'{"node":"basement"}'))
        self.assertFalse(self.key.is_seal(mac, "announce", b'{"node":"basemenu"}'))
        self.assertFalse(LinkKey("another").is_seal(mac, "announce", b'{"node":"basement"}'))
        for said in ("", mac[:-1], mac.upper(), None, 5):
            self.assertFalse(self.key.is_seal(said, "announce", b'{"node":"basement"}'), said)

    def test_all_is_compared_in_constant_time(self):
        with mock.patch.object(link_key.hmac, "compare_digest", return_value=True) as compare:
            self.assertTrue(self.key.proves("wrong", "node", *NAMES, NONCES))
            self.assertTrue(self.key.is_token("wrong"))
            self.assertTrue(self.key.is_seal("wrong", "mqtt", b""))
        self.assertEqual(compare.call_count, 3)


class File(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.path = os.path.join(self.folder, TOKENS)
        self.tokens = Tokens(self.folder)

    def test_without_a_file_there_are_none(self):
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

    def test_it_is_found_again_by_name(self):
        token = self.tokens.make("basement")
        again = Tokens(self.folder)
        self.assertEqual((again.text_of("basement"), list(again), len(again)), (token, ["basement"], 1))
        self.assertTrue(again["basement"].is_token(token))
        with self.assertRaises(KeyError):
            again["attic"]

    def test_whose_token_it_is(self):
        made = {node: self.tokens.make(node) for node in ("attic", "basement")}
        for node, token in made.items():
            self.assertEqual(self.tokens.node_of(token), node)
        self.tokens.revoke("attic")
        renewed = self.tokens.make("basement")
        self.assertEqual([self.tokens.node_of(token) for token in made.values()], [None, None])
        self.assertEqual(self.tokens.node_of(renewed), "basement")
        for stranger in ("", "basement", renewed[:-1], "\ud800"):
            self.assertIsNone(self.tokens.node_of(stranger))

    def test_a_new_one_takes_the_place_of_the_old(self):
        old, new = self.tokens.make("basement"), self.tokens.make("basement")
        self.assertNotEqual(old, new)
        self.assertEqual((self.tokens.text_of("basement"), len(self.tokens)), (new, 1))

    def test_revoked_it_is_gone(self):
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
        self.assertEqual(os.listdir(self.folder), [TOKENS])

    def test_a_running_server_sees_what_another_program_changes(self):
        seen = Tokens(self.folder)
        self.assertEqual(list(seen), [])
        for n in range(10):  # at once, one after the other: no change is so quick that it is missed
            token = self.tokens.make("basement")
            self.assertEqual(seen.text_of("basement"), token, n)
        self.tokens.revoke("basement")
        self.assertNotIn("basement", seen)
        os.remove(self.path)
        self.assertEqual(list(seen), [])

    def test_a_file_that_does_not_read_is_named(self):
        for content in (b"", b"{", b"[1]", b"5", b'"x"', b"\xff\xfe", b"null"):
            with open(self.path, "wb") as file:
                file.write(content)
            with self.subTest(content), self.assertRaises(SettingsError) as caught:
                len(Tokens(self.folder))
            self.assertIn(self.path, str(caught.exception))

    def test_many_may_read_while_one_writes(self):
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


if __name__ == "__main__":
    unittest.main()
