"""Page for changing the own password: permissions, rate limit, and the sessions that end."""

import unittest

from pigeonpost.auth.throttle import MOST
from pigeonpost.core.clock import FakeClock
from tests.page_support import use_memory_disk
from tests.web.support import WebHouse

OLD, NEW = "correct horse", "battery staple"


def setUpModule():
    use_memory_disk()


class PasswordCase(unittest.TestCase):
    def setUp(self):
        self.house = WebHouse(self, password=OLD, clock=FakeClock())
        self.session = self.house.log_in()

    def change(self, old=OLD, new=NEW, again=None, session=None, **more):
        session = session or self.session
        fields = {"csrf": self.house.csrf(session), "old": old, "new": new, "again": new if again is None else again}
        status, headers, body = self.house.post_form("/password", {**fields, **more}, session)
        return status, headers, body.decode()

    def is_in(self, session):
        return self.house.request("GET", "/", session, html=True)[0] == 200


class ChangedPassword(PasswordCase):
    def test_page_has_a_form_for_the_new_password(self):
        page = self.house.request("GET", "/password", self.session, html=True)[2].decode()
        self.assertIn("Change the password of admin", page)
        self.assertEqual(page.count('type="password"'), 3)

    def test_changed_password_ends_all_other_sessions_of_the_user(self):
        other = self.house.log_in()
        status, headers, page = self.change()
        self.assertEqual(status, 200, page)
        mine = {"Cookie": headers["set-cookie"].partition(";")[0]}
        self.assertNotEqual(mine, self.session)
        self.assertTrue(self.is_in(mine))
        self.assertFalse(self.is_in(other))
        self.assertFalse(self.is_in(self.session))
        self.assertEqual(self.house.post_form("/login", {"user": "admin", "password": OLD})[0], 403)
        self.assertEqual(self.house.post_form("/login", {"user": "admin", "password": NEW})[0], 303)

    def test_changed_password_keeps_the_role_and_does_not_affect_other_users(self):
        self.house.users.set_password("guest", "only to look", "viewer")
        guest = self.house.log_in("guest", "only to look")
        admin = self.session
        csrf_page = self.house.request("GET", "/password", guest, html=True)[2].decode()
        csrf = csrf_page.partition('name="csrf" value="')[2].partition('"')[0]
        fields = {"csrf": csrf, "old": "only to look", "new": NEW, "again": NEW, "user": "admin"}
        self.assertEqual(self.house.post_form("/password", fields, guest)[0], 200)
        self.assertEqual(self.house.users.roles(), {"admin": "operator", "guest": "viewer"})
        self.assertTrue(self.is_in(admin))
        self.assertIsNotNone(self.house.users.check("admin", OLD))  # the user name in the form is ignored
        self.assertIsNotNone(self.house.users.check("guest", NEW))


class RejectedPassword(PasswordCase):
    def assert_unchanged(self):
        self.assertTrue(self.is_in(self.session))
        self.assertIsNotNone(self.house.users.check("admin", OLD))

    def test_wrong_old_password_is_rejected(self):
        status, _, page = self.change(old="wrong")
        self.assertEqual(status, 403)
        self.assertIn("The old password is wrong", page)
        self.assert_unchanged()

    def test_two_different_new_passwords_are_rejected(self):
        status, _, page = self.change(again="another one")
        self.assertEqual(status, 400)
        self.assertIn("are not the same", page)
        self.assert_unchanged()

    def test_short_password_is_rejected(self):
        status, _, page = self.change(new="short")
        self.assertEqual(status, 400)
        self.assertIn(">A password must have 8 to 1024 characters, not 5.<", page)
        self.assert_unchanged()

    def test_request_without_a_csrf_token_is_rejected(self):
        fields = {"old": OLD, "new": NEW, "again": NEW}
        self.assertEqual(self.house.post_form("/password", fields, self.session)[0], 403)
        self.assert_unchanged()

    def test_wrong_old_passwords_are_throttled_like_logins(self):
        """Attempts are delayed and then rejected, and so are logins from the same address."""
        statuses = [self.change(old=f"wrong {number}")[0] for number in range(MOST + 2)]
        self.assertEqual(statuses, [403] * MOST + [429, 429])
        self.assertEqual(self.change()[0], 429)
        self.assertEqual(self.house.post_form("/login", {"user": "admin", "password": OLD})[0], 429)
        self.assert_unchanged()

    def test_key_of_control_py_cannot_change_a_password(self):
        fields = {"old": OLD, "new": NEW, "again": NEW}
        self.assertEqual(self.house.post_form("/password", fields, self.house.bearer)[0], 403)
        page = self.house.request("GET", "/password", self.house.bearer, html=True)[2].decode()
        self.assertIn("You signed in without a password", page)


class NoPassword(unittest.TestCase):
    def test_login_without_a_password_is_rejected_and_not_counted_as_a_failure(self):
        house = WebHouse(self)
        fields = {"user": "admin", "password": "wrong"}
        with self.assertNoLogs("pigeonpost.web.access", "WARNING"):
            answers = [house.post_form("/login", fields)[::2] for _ in range(MOST + 2)]
        for status, page in (*answers, house.request("GET", "/login", html=True)[::2]):
            self.assertIn(status, (200, 403))
            self.assertIn(b"<h1>No password is set", page)
            # Any client can request this page, so it does not contain the name of the folder.
            self.assertIn(b"<pre>python3 control.py --data FOLDER password</pre>", page)
            self.assertNotIn(b"<form", page)
        self.assertIn(b"No password is set", house.request("GET", "/login")[2])

    def test_password_page_explains_how_to_set_the_first_password(self):
        house = WebHouse(self)
        page = house.request("GET", "/password", html=True)[2].decode()
        self.assertIn(f"python3 control.py --data {house.folder} password", page)
        fields = {"csrf": house.csrf(), "old": "", "new": NEW, "again": NEW}
        self.assertEqual(house.post_form("/password", fields)[0], 403)
        self.assertEqual(len(house.users), 0)


if __name__ == "__main__":
    unittest.main()
