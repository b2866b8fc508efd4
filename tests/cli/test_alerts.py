"""Command `alerts`: list of active alerts, and test messages without a running server."""

import json
import os
import unittest

from tests.alerts.fake_servers import Hook, serve, serve_mail
from tests.alerts.fake_services import Ntfy, Refusal
from tests.page_support import control_here, for_class, use_memory_disk
from tests.support import temp_folder
from tests.views.test_alerts_page import PageCase


def setUpModule():
    use_memory_disk()


class TestMessages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.mail, cls.port = serve_mail(for_class(cls))
        cls.hook, cls.hook_port = serve(for_class(cls), Hook, status=200)

    def setUp(self):
        self.mail.responses, self.hook.status = {}, 200
        self.mail.mails.clear()
        self.data = temp_folder(self)

    def run_it(self, *arguments, to='["a@example.org"]', more=""):
        path = os.path.join(self.data, "server.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'[server]\nname = "home"\n[mail]\nto = {to}\nhost = "127.0.0.1"\nport = {self.port}\n'
                       f'tls = "none"\n{more}[webhook]\nurl = "http://127.0.0.1:{self.hook_port}/secret"')  # fmt: skip
        return control_here("--data", self.data, "--config", path, "alerts", *arguments)

    def test_test_message_is_sent_on_every_channel(self):
        status, said, _ = self.run_it("test", more='[[recipient]]\nto = "b@example.org"\nseverity = "none"\n')
        self.assertEqual((status, said.splitlines()), (0, [
            "a@example.org: accepted (mail server 127.0.0.1)",
            "b@example.org: accepted (mail server 127.0.0.1)",
            "webhook: accepted (webhook at 127.0.0.1)",
        ]))  # fmt: skip
        self.assertEqual(sorted(to for to, _ in self.mail.mails), ["a@example.org", "b@example.org"])
        self.assertIn("Subject: Test message of home", self.mail.mails[0][1])

    def test_answer_of_each_failed_channel_is_printed_without_secrets(self):
        for responses, hook, words in (
            (
                {"RCPT": b"550 no such user"},
                200,
                "a@example.org: mail server 127.0.0.1: a@example.org: 550 no such user",
            ),
            ({"": b"421 busy"}, 200, "a@example.org: mail server 127.0.0.1: 421 busy"),
            ({".": b"552 too large"}, 200, "552 too large"),
            ({}, 404, "webhook: webhook at 127.0.0.1: the response has the status 404"),
            ({}, 429, "webhook: webhook at 127.0.0.1: the response has the status 429"),
        ):
            self.mail.responses, self.hook.status = responses, hook
            status, said, _ = self.run_it("test")
            self.assertEqual((status, words in said, "secret" in said), (1, True, False), said)
            self.assertEqual(said.count(": accepted ("), 1)

    def test_missing_password_is_explained(self):
        self.mail.responses = {"EHLO": b"250-mail\r\n250 AUTH PLAIN", "AUTH": b"535 wrong"}
        status, said, _ = self.run_it("test", "mail", more='user = "pi"\n')
        self.assertEqual(status, 1)
        self.assertIn("PIGEONPOST_MAIL_PASSWORD", said)

    def test_channel_is_chosen_by_kind_or_address(self):
        for chosen, count in (("mail", 2), ("b@example.org", 1), ("webhook", 1), ("mail:a@example.org", 1)):
            status, said, _ = self.run_it("test", chosen, to='["a@example.org", "b@example.org"]')
            self.assertEqual((status, len(said.splitlines())), (0, count), chosen)
        status, _, told = self.run_it("test", "pager")
        words = "control.py: there is no channel 'pager'; the channels are: a@example.org, webhook"
        self.assertEqual((status, told.strip()), (1, words))

    def test_channel_of_a_table_is_chosen_by_its_name(self):
        fake = Ntfy(self)
        table = f'[[channel]]\nname = "phone"\nshape = "ntfy"\nurl = "{fake.url}/home"\n'
        for arguments, lines in (((), 3), (("phone",), 1)):
            status, said, _ = self.run_it("test", *arguments, more=table)
            self.assertEqual((status, len(said.splitlines())), (0, lines))
            self.assertEqual(said.splitlines()[-1], "phone: accepted (ntfy at 127.0.0.1)")
        self.assertEqual([one["title"] for one in fake.received], ["Test message of home"] * 2)
        fake.answers.append(Refusal(401, {"error": "unauthorized"}))
        status, said, _ = self.run_it("test", "phone", more=table)
        words = "phone: ntfy at 127.0.0.1: the response has the status 401: unauthorized; check [[channel]] phone token"
        self.assertEqual((status, said.startswith(words)), (1, True), said)

    def test_settings_without_a_channel_are_an_error(self):
        status, _, told = control_here("--data", self.data, "alerts", "test")
        self.assertEqual(status, 2)
        self.assertIn("set [mail] to or [webhook] url", told)


class List(PageCase):
    def listed(self):
        host, port = self.web.address
        with open(os.path.join(self.web.folder, "running.json"), "w", encoding="utf-8") as file:
            json.dump({"pid": 1, "web": [[host, port]], "key": self.web.bearer["Authorization"][7:]}, file)
        return control_here("--data", self.web.folder, "alerts")

    def test_active_alerts_are_listed(self):
        status, said, told = self.listed()
        self.assertEqual((status, told), (0, ""))
        self.assertRegex(said, r"^critical: it is <41> °C \(since 2026-11-20 15:20:00\+00:00\)\n$")
        self.engine.acknowledge("a1", "admin")
        self.assertIn("; acknowledged by admin)", self.listed()[1])
        self.engine.alerts = []
        self.assertEqual(self.listed()[1], "There are no active alerts.\n")

    def test_command_without_a_running_server_fails(self):
        status, _, told = control_here("--data", self.web.folder, "alerts")
        self.assertEqual(status, 1)
        self.assertIn("no running server", told)


if __name__ == "__main__":
    unittest.main()
