"""`api-token`, `api-tokens`, `revoke --api`, `password --role|--list|--remove`: alone, and beside a running server."""

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
    def test_one_is_shown_once_with_how_to_use_it(self):
        status, token, told = self.run_("api-token", "prometheus")
        self.assertEqual(status, 0)
        self.assertRegex(token, r"^pp_[0-9a-f]{40}\n$")
        for text in ("role viewer", "shown this once", "Authorization: Bearer TOKEN", "curl -u any:TOKEN",
                     "`revoke --api prometheus` ends it"):  # fmt: skip
            self.assertIn(text, told)
        self.assertNotIn(token.strip(), told)
        text = "there is an API token prometheus already, and it cannot be shown again: take another name, or `revoke"
        self.assert_fails(1, text, "api-token", "prometheus", "--role", "operator")
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.data, API_TOKENS)).st_mode), 0o600)

    def test_list_and_revoke(self):
        set_zone(self, "UTC")
        self.assertEqual(self.done("api-tokens"), "")
        self.done("api-token", "grafana")
        self.done("api-token", "ha", "--role", "operator")
        lines = self.done("api-tokens").splitlines()
        self.assertRegex(lines[0], r"^grafana  viewer    made 20\d\d-\d\d-\d\d \d\d:\d\d  never used$")
        self.assertRegex(lines[1], r"^ha       operator  made 20\d\d-\d\d-\d\d \d\d:\d\d  never used$")
        self.assertEqual(self.done("revoke", "--api", "ha"), "")
        self.assertEqual(len(self.done("api-tokens").splitlines()), 1)
        self.assert_fails(1, "there is no API token 'ha'; `api-tokens` lists", "revoke", "--api", "ha")

    def test_wrong_usage(self):
        self.assert_fails(2, "the name of an API token is letters, digits", "api-token", "a b")
        self.assert_fails(2, "invalid choice", "api-token", "a", "--role", "admin")
        for arguments in (["revoke"], ["revoke", "basement", "--api", "ha"]):
            self.assert_fails(2, "revoke takes the node whose token is revoked, or --api", *arguments)
        self.assert_fails(2, "'a b' is no node name", "revoke", "a b")

    def test_damaged_file_is_named_with_its_remedy(self):
        self.done("api-token", "ha")
        with open(os.path.join(self.data, API_TOKENS), "w", encoding="ascii"):
            pass
        for command in (["api-tokens"], ["api-token", "x"], ["revoke", "--api", "ha"]):
            self.assert_fails(2, "api_tokens.json is damaged (0 bytes); `python3 control.py", *command)
        self.done("restore", os.path.join(self.data, f"{API_TOKENS}.bak"))
        self.assertIn("ha", self.done("api-tokens"))


class Users(ControlCase):
    def test_role_of_a_user(self):
        told = self.run_("password", said="correct horse")[2]
        self.assertEqual(told, "The page now asks for a password; the user is admin.\n")
        told = self.run_("password", "guest", "--role", "viewer", said="correct horse")[2]
        self.assertIn("the user is guest, who may read everything and change nothing.", told)
        self.assertEqual(self.done("password", "--list"), "admin  operator\nguest  viewer\n")
        self.done("password", "guest", said="another horse")  # the role stays
        self.assertEqual(self.done("password", "--list"), "admin  operator\nguest  viewer\n")
        self.done("password", "guest", "--role", "operator", said="another horse")
        self.assertEqual(self.done("password", "--list"), "admin  operator\nguest  operator\n")

    def test_says_where_nobody_can_press_the_buttons(self):
        text = "No user is an operator, so nobody can press the buttons: `password USER --role operator` sets one.\n"
        self.assertIn(text, self.run_("password", "guest", "--role", "viewer", said="correct horse")[2])
        self.assertNotIn(text, self.run_("password", said="correct horse")[2])
        self.assertIn(text, self.run_("password", "admin", "--remove")[2])

    def test_remove(self):
        self.done("password", said="correct horse")
        self.assert_fails(1, "there is no user 'guest'; `password --list` lists", "password", "guest", "--remove")
        self.assertIn("No password is set any more", self.run_("password", "admin", "--remove")[2])
        self.assertEqual(self.done("password", "--list"), "")
        with open(os.path.join(self.data, USERS), encoding="ascii") as file:
            self.assertEqual(json.load(file), {})

    def test_wrong_usage(self):
        self.assert_fails(2, "--remove takes the name of the user", "password", "--remove")
        for more in (["--list", "--remove"], ["--list", "--role", "viewer"], ["--remove", "--role", "viewer"]):
            self.assert_fails(2, "one at a time", "password", "guest", *more)
        self.assert_fails(2, "invalid choice", "password", "--role", "writer", said="correct horse")
        self.assertFalse(os.path.exists(os.path.join(self.data, USERS)))


class BesideAServer(ControlCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(for_class(cls), data=temp_folder(for_class(cls)))
        assert cls.server.page  # it has made its database

    def setUp(self):
        self.data = self.server.data

    def ask(self, path, said):
        return self.server.get(path, {"Authorization": said})[0]

    def test_new_token_is_taken_at_once_and_a_revoked_one_no_more(self):
        token = self.done("api-token", "prometheus").strip()
        both = f"Bearer {token}", "Basic " + base64.b64encode(f"prometheus:{token}".encode()).decode()
        for said in both:
            self.assertEqual(self.ask("/metrics", said), 200)
        wait_until(lambda: "  used 20" in self.done("api-tokens"), "its last use")
        self.done("revoke", "--api", "prometheus")
        for said in both:
            self.assertEqual(self.ask("/metrics", said), 401)
        self.server.logs("127.0.0.1: wrong key or API token")

    def test_backup_has_the_tokens(self):
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
