"""Tests of the removal of secrets: hidden texts, unchanged texts, and the time for long texts."""

import logging
import sys
import time
import unittest

from pigeonpost.core.config import Setting, load, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.core.http_client import split_url
from pigeonpost.core.json_fetch import _status_error, decoded
from pigeonpost.core.logs import _OneLine
from pigeonpost.core.redact import hide_secrets
from tests.forked import Forked

HIDDEN = (
    "https://user:hunter2@host/x", "https://user:hun/ter2hunter2@host/x", "https://hunter2@host/",
    "redis://:hunter2@host:6379/0", "mqtts://a:hunter2@host/t", "postgresql://u:hunter2@[::1]:5432/db",
    "http://user:p@hunter2@host/x", "u:hunter2@broker:1883", "http://h/?apikey=hunter2&x=1",
    "http://h/?a=1&token=hunter2#f", "http://h/?appid=hunter2", "http://h/?KEY=hunter2", "http://h/?api_key=hunter2",
    "http://h/?sig=hunter2", "host=db user=u password=hunter2 dbname=x", "password = 'hun\\'hunter2' dbname=x",
    "access_token=hunter2,x=1", "{'token': 'hunter2', 'a': 1}", '{"client_secret":"hunter2"}',
    "Authorization: Bearer hunter2", "password='hunter2", "http://h/?k=hunter2", "http://h/?a=1&k=hunter2",
    "https://api.telegram.org/bot123:hunter2/sendMessage", "https://hooks.slack.com/services/T0AB/B0CD/hunter2",
    "https://discord.com/api/webhooks/1234/hunter2?wait=1", "https://chat.example/hooks/hunter2",
    "http://kuma:3001/api/push/hunter2?status=up", "https://hc-ping.com/hunter2/fail",
    "passwort=hunter2", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
)  # fmt: skip
SHOWN = (
    "basement@192.168.1.20:5003", "https://host:8080/a@b", "monkey=5", "time 10:30", "2026-11-20T15:36:10.123Z",
    "[node] every = 5", "http://[::1]:8080/chart?series=a/b&span=1h", "wrong password of admin, to change it",
    "/etc/ssl/key.pem", "control.py token basement", "someone@example.org", "the bearer of this", "k = 5",
    "http://h/hooks", "/usr/share/hooks/x: failed", "http://h/bot/x", "/services/web/x=1",
    "http://h/?ok=1",
)  # fmt: skip


class Hiding(unittest.TestCase):
    def test_secrets_are_hidden_and_the_other_text_is_kept(self):
        for line in HIDDEN:
            with self.subTest(line):
                shown = hide_secrets(f"cannot reach {line}: refused")
                self.assertNotIn("hunter2", shown)
                self.assertIn("***", shown)
                self.assertTrue(shown.startswith("cannot reach ") and shown.endswith("refused"), shown)

    def test_texts_without_secrets_are_unchanged(self):
        for line in SHOWN:
            self.assertEqual(hide_secrets(line), line)

    def test_long_texts_are_processed_quickly(self):
        for part in ("=@a:", "//", "token=", "x-", "'token':", "//a:", "token='\\", "token  ", "Bearer ", "a:b@",
                     "-----BEGIN ", "//a/hooks", "//hc-ping.com/", "/api/push/"):  # fmt: skip
            began_s = time.thread_time()
            hide_secrets((part * 32_768)[:32_768] + "=@")
            self.assertLess(time.thread_time() - began_s, 1.0, part)  # 0.12 s at most, measured


class Uses(unittest.TestCase):
    URL = "https://me:hunter2@host/x?apikey=hunter2"

    def test_secrets_in_shown_settings_are_hidden(self):
        rows = [Setting("push", "server", text, "", "")]
        found = load(rows, _Flags(), "", environment={"PIGEONPOST_PUSH_SERVER": self.URL})
        found.tables["sensor"] = [{"kind": "json", "url": self.URL, "deep": [{"urls": [self.URL]}]}]
        self.assertNotIn("hunter2", found.show())
        self.assertIn("https://***@host/x?apikey=***", found.show())
        self.assertEqual(found["push", "server"], self.URL)

    def test_queries_of_a_source_and_a_key_as_text_are_hidden(self):
        path = Setting("web", "key", text, "", "")
        for pem in ("-----BEGIN hunter2", "-----BEGIN PRIVATE KEY-----\nhunter2\n", "hunter2\nhunter2\n"):
            shown = load([path], _Flags(), "", environment={path.variable: pem})
            shown.tables["sensor"] = [
                {"url": "http://h/?x=hunter2", "token_url": "http://h/?hunter2", "passwort": "hunter2"}
            ]
            self.assertNotIn("hunter2", shown.show())
            self.assertRegex(shown.show(), r'\[web\] key = ("\*\*\*"|\*\*\*)  #')
            self.assertIn('url = "http://h/?***"', shown.show())

    def test_secrets_in_faults_are_hidden(self):
        faults = Faults()
        faults.add_check(lambda: None)
        with self.assertLogs("pigeonpost.core.faults", "ERROR") as logged:
            faults.set("store", f"cannot reach {self.URL}")
        self.assertNotIn("hunter2", str(faults.present()) + str(logged.output))

    def test_secrets_in_errors_about_settings_are_hidden(self):
        def refuse(value):
            raise ValueError(f"cannot be {value}")

        with self.assertRaises(SettingsError) as caught:
            load([Setting("push", "server", refuse, self.URL, "")], _Flags(), "", environment={})
        self.assertNotIn("hunter2", str(caught.exception))
        self.assertIn("[push] server cannot be https://***@host/x", str(caught.exception))

    def test_invalid_port_is_not_shown_because_it_may_be_a_password(self):
        with self.assertRaises(ValueError) as caught:
            split_url("https://me:hunter2/x@host/")
        self.assertNotIn("hunter2", str(caught.exception))

    def test_key_repeated_by_a_server_is_hidden(self):
        error = _status_error("http://host", 401, ", 'no such key: /x?apikey=hunter2'")
        self.assertNotIn("hunter2", str(error))
        with self.assertRaises(SensorError) as caught:
            decoded(b"<a href='/x?apikey=hunter2'>", "http://host")
        self.assertNotIn("hunter2", str(caught.exception))

    def test_secrets_in_the_last_log_line_of_a_program_are_hidden(self):
        """The last line of a program goes to the journal."""
        for program, name, value in (
            ("server.py", "PIGEONPOST_SERVER_NODES", "me:hunter2@host:zz"),
            ("node.py", "PIGEONPOST_PUSH_TO", "ftp://me:hunter2@host/?token=hunter2"),
        ):
            with self.subTest(program):
                done = Forked(self, program, "--show", **{name: value})
                self.assertEqual(done.wait(), 2)
                self.assertIn("***", "".join(done.logged))
                self.assertNotIn("hunter2", "".join([*done.said, *done.logged]))

    def test_secrets_in_log_lines_and_tracebacks_are_hidden(self):
        try:
            raise OSError(f"cannot reach {self.URL}")
        except OSError:
            record = logging.LogRecord("x", logging.ERROR, "", 1, "at %s", (self.URL,), sys.exc_info())
        line = _OneLine("%(levelname)s %(message)s").format(record)
        self.assertNotIn("hunter2", line)
        self.assertIn("OSError: cannot reach https://***@host", line)


class _Flags:
    config = ""


if __name__ == "__main__":
    unittest.main()
