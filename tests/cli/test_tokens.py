"""Tests of `api-token`, `api-tokens`, `revoke --api` and `password`, with and without a running server."""

import base64
import json
import os
import stat
import unittest

from pigeonpost.core.data_folder import API_TOKENS, USERS
from tests.page_support import Server, for_class, set_zone, use_memory_disk
from tests.support import temp_folder, wait_until
from tests.test_control import ControlCase


def setUpModule():
    use_memory_disk()


class ApiTokens(ControlCase):
    def test_api_token_is_shown_once_with_instructions(self):
        status, token, told = self.run_("api-token", "prometheus")
        self.assertEqual(status, 0)
        self.assertRegex(token, r"^pp_[0-9a-f]{40}\n$")
        for text in ("role viewer", "shown only once", "Authorization: Bearer TOKEN", "curl -u any:TOKEN",
                     "`revoke --api prometheus` deletes it"):  # fmt: skip
            self.assertIn(text, told)
        self.assertNotIn(token.strip(), told)
        text = "the API token prometheus exists already, and cannot be shown again: use another name, or delete it"
        self.assert_fails(1, text, "api-token", "prometheus", "--role", "operator")
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.data, API_TOKENS)).st_mode), 0o600)

    def test_api_tokens_are_listed_and_revoked(self):
        set_zone(self, "UTC")
        self.assertEqual(self.done("api-tokens"), "")
        self.done("api-token", "grafana")
        self.done("api-token", "ha", "--role", "operator")
        lines = self.done("api-tokens").splitlines()
        self.assertRegex(lines[0], r"^grafana  viewer    created 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+00:00  never used$")
        self.assertRegex(lines[1], r"^ha       operator  created 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+00:00  never used$")
        self.assertEqual(self.done("revoke", "--api", "ha"), "")
        self.assertEqual(len(self.done("api-tokens").splitlines()), 1)
        self.assert_fails(1, "there is no API token 'ha'; `api-tokens` lists", "revoke", "--api", "ha")

    def test_wrong_usage_is_rejected(self):
        self.assert_fails(2, "the name of an API token must consist of at most 63 letters, digits", "api-token", "a b")
        self.assert_fails(2, "invalid choice", "api-token", "a", "--role", "admin")
        for arguments in (["revoke"], ["revoke", "basement", "--api", "ha"]):
            self.assert_fails(2, "revoke needs the name of a node, or --api", *arguments)
        self.assert_fails(2, "'a b' is not a valid node name", "revoke", "a b")

    def test_damaged_file_is_named_with_its_remedy(self):
        self.done("api-token", "ha")
        with open(os.path.join(self.data, API_TOKENS), "w", encoding="ascii"):
            pass
        for command in (["api-tokens"], ["api-token", "x"], ["revoke", "--api", "ha"]):
            self.assert_fails(2, "api_tokens.json is damaged (0 bytes); `python3 control.py", *command)
        self.done("restore", os.path.join(self.data, f"{API_TOKENS}.bak"))
        self.assertIn("ha", self.done("api-tokens"))


class Users(ControlCase):
    def test_role_of_a_user_is_set_and_kept(self):
        told = self.run_("password", said="correct horse")[2]
        self.assertEqual(told, "The password of admin was set. The page now asks for user name and password.\n")
        told = self.run_("password", "visitor", "--role", "viewer", said="correct horse")[2]
        self.assertIn("password of visitor (viewer: may read everything and change nothing) was set.", told)
        self.assertEqual(self.done("password", "--list"), "admin  operator\nvisitor  viewer\n")
        self.done("password", "visitor", said="another horse")  # the role stays
        self.assertEqual(self.done("password", "--list"), "admin  operator\nvisitor  viewer\n")
        self.done("password", "visitor", "--role", "operator", said="another horse")
        self.assertEqual(self.done("password", "--list"), "admin  operator\nvisitor  operator\n")

    def test_warning_if_no_user_is_an_operator(self):
        text = "No user is an operator, so no one can press the buttons. `password USER --role operator` adds one.\n"
        self.assertIn(text, self.run_("password", "visitor", "--role", "viewer", said="correct horse")[2])
        self.assertNotIn(text, self.run_("password", said="correct horse")[2])
        self.assertIn(text, self.run_("password", "admin", "--remove")[2])

    def test_user_is_removed(self):
        self.done("password", said="correct horse")
        self.assert_fails(1, "there is no user 'visitor'; `password --list` lists", "password", "visitor", "--remove")
        self.assertIn("No user has a password now", self.run_("password", "admin", "--remove")[2])
        self.assertEqual(self.done("password", "--list"), "")
        with open(os.path.join(self.data, USERS), encoding="ascii") as file:
            self.assertEqual(json.load(file), {})

    def test_wrong_usage_is_rejected(self):
        self.assert_fails(2, "--remove needs the name of the user", "password", "--remove")
        for more in (["--list", "--remove"], ["--list", "--role", "viewer"], ["--remove", "--role", "viewer"]):
            self.assert_fails(2, "cannot be used together", "password", "visitor", *more)
        self.assert_fails(2, "invalid choice", "password", "--role", "writer", said="correct horse")
        self.assertFalse(os.path.exists(os.path.join(self.data, USERS)))


class WithServer(ControlCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(for_class(cls), data=temp_folder(for_class(cls)))
        assert cls.server.page  # wait until the database exists

    def setUp(self):
        self.data = self.server.data

    def ask(self, path, said):
        return self.server.get(path, {"Authorization": said})[0]

    def test_running_server_accepts_new_tokens_and_rejects_revoked_tokens(self):
        token = self.done("api-token", "prometheus").strip()
        both = f"Bearer {token}", "Basic " + base64.b64encode(f"prometheus:{token}".encode()).decode()
        for said in both:
            self.assertEqual(self.ask("/metrics", said), 200)
        wait_until(lambda: "  used 20" in self.done("api-tokens"), "its last use")
        self.done("revoke", "--api", "prometheus")
        for said in both:
            self.assertEqual(self.ask("/metrics", said), 401)
        self.server.logs("127.0.0.1: wrong key or API token")

    def test_backup_contains_the_api_tokens(self):
        token = self.done("api-token", "backed-up").strip()
        folder = temp_folder(self)
        self.done("backup", os.path.join(folder, "backup.tar"))
        restored = os.path.join(folder, "restored")
        status, _, told = self.run_("restore", os.path.join(folder, "backup.tar"), data=restored)
        self.assertEqual(status, 0, told)
        self.assertIn("backed-up", self.run_("api-tokens", data=restored)[1])
        self.assertEqual(self.ask("/metrics", f"Bearer {token}"), 200)


if __name__ == "__main__":
    unittest.main()
