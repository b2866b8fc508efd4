"""Tests of the channels: mails, webhooks, and which refusals are permanent."""

import contextlib
import email
import email.policy
import os
import socketserver
import ssl
import threading
import unittest
import unittest.mock
from base64 import b64encode

from pigeonpost.alerts import email_channel, webhook_channel
from pigeonpost.alerts.channel_settings import HttpChannel
from pigeonpost.alerts.contract import AlertMessage, NotSent, Refused
from pigeonpost.alerts.email_channel import EmailChannel, MailServer
from pigeonpost.alerts.recipients import Filter
from pigeonpost.alerts.webhook_channel import WebhookChannel
from pigeonpost.core.http_client import split_url
from tests.alerts.fake_servers import Hook, serve, serve_mail
from tests.page_support import for_class
from tests.support import LIMIT_S

HELLO = AlertMessage("Alert: it is 41 °C", "It is 41 °C.\n", {"kind": "alert"}, "a-1")


def mail_to(port, to="you@example.org", tls="none", user="", password="secret", sender="pi@example.org"):
    return EmailChannel(MailServer("127.0.0.1", port, tls, user, password, sender), to)


def webhook_to(url):
    return WebhookChannel(HttpChannel("webhook", "[webhook]", split_url(url)))


def base64(text):
    return b64encode(text.encode()).decode()


class Mail(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server, cls.port = serve_mail(for_class(cls))

    def setUp(self):
        self.server.responses = {}
        self.server.received.clear()
        self.server.mails.clear()

    def error(self, responses, **options):
        self.server.responses, port = responses, self.port
        with self.assertRaises(NotSent) as caught:
            mail_to(port, **options).send(HELLO)
        self.assertTrue(str(caught.exception).startswith("mail server 127.0.0.1: "), caught.exception)
        self.assertNotIn("secret", str(caught.exception))
        return caught.exception

    def test_mail_has_the_id_of_the_message_in_each_attempt(self):
        server, port = self.server, self.port
        for _ in range(2):
            mail_to(port).send(HELLO)
        for to, text in server.mails:
            self.assertEqual(to, "you@example.org")
            for line in ("To: you@example.org", "Message-ID: <a-1@pigeonpost.invalid>", "From: pi@example.org",
                         "Auto-Submitted: auto-generated"):  # fmt: skip
                self.assertIn(line, text.splitlines())
        self.assertIn("subject: alert: it is 41 =?utf-8?q?", server.mails[0][1].lower())

    def test_mail_with_html_has_both_parts(self):
        server, port = self.server, self.port
        mail_to(port).send(HELLO._replace(html="<p>It is <b>41</b>.</p>"))
        text = server.mails[0][1]
        for words in ("multipart/alternative", "text/plain", "text/html", "<b>41</b>"):
            self.assertIn(words, text)

    def test_subject_is_reduced_to_one_line(self):
        server, port = self.server, self.port
        mail_to(port).send(HELLO._replace(subject="a\r\nBcc: all@example.org"))
        self.assertIn("Subject: a Bcc: all@example.org", server.received)
        self.assertFalse([line for line in server.received if line.startswith("Bcc:")])

    def test_long_subjects_arrive_unchanged_and_their_first_line_is_not_empty(self):
        subjects = [f"Alert: {'of node ' * n}{letter}" for n in (1, 8, 9, 10, 20) for letter in ("x", "é")]
        for subject in subjects:
            mail_to(self.port).send(HELLO._replace(subject=subject))
        for subject, (_, text) in zip(subjects, self.server.mails):
            self.assertEqual(email.message_from_string(text, policy=email.policy.default)["Subject"], subject)
            self.assertNotIn("Subject:\n", text)

    def test_text_that_cannot_be_encoded_is_sent_without_it(self):
        server, port = self.server, self.port
        mail_to(port).send(HELLO._replace(subject="a\ud800b", text="c\udfffd\n"))
        self.assertIn("Subject: a?b", server.received)

    def test_message_that_waits_while_its_node_is_renamed_is_still_selected(self):
        server = MailServer("127.0.0.1", 25, "none", "", "", "pi@example.org")
        message = HELLO._replace(info={"node": "attic", "sensor": "temperature"})
        for nodes, expected in ((["attic"], message), (["loft"], message), (["cellar"], None)):
            with self.subTest(nodes=nodes):
                chosen, renamed = Filter(nodes=nodes), lambda node: "loft" if node == "attic" else node
                channel = EmailChannel(server, "a@example.org", chosen, renamed)
                self.assertEqual(channel.select(message), expected)
                self.assertEqual(channel.select(message._replace(info={"node": "loft"})) is None, expected is None)

    def test_refusal_of_the_recipient_or_the_message_is_permanent(self):
        for responses, words in (
            ({"RCPT": b"550 no such user"}, "you@example.org: 550 no such user"),
            ({"RCPT": b"551 user not local"}, "551 user not local"),
            ({"RCPT": b"553 5.1.3 bad address"}, "553 5.1.3 bad address"),
            ({".": b"552 message too large"}, "552 message too large"),
            ({".": b"554 5.7.1 looks like spam"}, "554 5.7.1 looks like spam"),
            ({"DATA": b"554 no"}, "554 no"),
            ({"MAIL": b"552 message size exceeds limit"}, "552 message size exceeds limit"),
        ):
            error = self.error(responses)
            self.assertIsInstance(error, Refused, responses)
            self.assertIn(words, str(error))

    def test_error_that_may_pass_is_temporary(self):
        for responses, options, is_answer in (
            ({"RCPT": b"450 greylisted"}, {}, True), ({"RCPT": b"452 mailbox full"}, {}, True),
            ({".": b"451 try later"}, {}, True), ({"": b"421 too busy"}, {}, False),
            ({"": b"554 no service"}, {}, False), ({"RCPT": b"421 closing"}, {}, False),
            ({"RCPT": b"530 authentication required"}, {}, False), ({"MAIL": b"550 not your address"}, {}, False),
            ({"DATA": b""}, {}, False), ({".": b""}, {}, False), ({}, {"tls": "starttls"}, False),
            ({"EHLO": b"250-mail\r\n250 STARTTLS", "STARTTLS": b"220 go on"}, {"tls": "starttls"}, False),
            ({"EHLO": b"250-mail\r\n250 AUTH PLAIN", "AUTH": b"535 wrong password"}, {"user": "pi"}, False),
        ):  # fmt: skip
            error = self.error(responses, **options)
            self.assertNotIsInstance(error, Refused, responses)
            self.assertEqual(error.is_answer, is_answer, (responses, str(error)))

    def test_mail_is_ascii_for_servers_without_8bitmime(self):
        mail_to(self.port).send(HELLO._replace(text="Küche: 41 °C\n", html="<p>Küche: 41 °C</p>"))
        self.assertEqual([line for line in self.server.received if not line.isascii()], [])
        read = email.message_from_string(self.server.mails[0][1], policy=email.policy.default)
        for kind in ("plain", "html"):
            self.assertIn("Küche: 41 °C", read.get_body((kind,)).get_content())

    def test_password_that_the_server_repeats_is_hidden(self):
        login = base64("\0pi\0canary-word")
        for repeated in ("canary-word", base64("canary-word"), login, f"{'-' * 190} {login}"):
            self.server.responses = {"EHLO": b"250-mail\r\n250 AUTH PLAIN", "AUTH": f"535 no: {repeated}".encode()}
            with self.subTest(repeated), self.assertRaisesRegex(NotSent, r"535 no: -*( ?\*\*\*)+: check") as caught:
                mail_to(self.port, user="pi", password="canary-word").send(HELLO)
            self.assertNotIn(base64("canary")[:8], str(caught.exception))

    def test_password_is_sent_as_utf_8(self):
        for user, password, offered, line in (
            ("pi", "pässwört", b"PLAIN LOGIN", "AUTH PLAIN " + base64("\0pi\0pässwört")),
            ("pi", "€", b"CRAM-MD5 PLAIN", "AUTH PLAIN " + base64("\0pi\0€")),
            ("jürgen", "x", b"PLAIN", "AUTH PLAIN " + base64("\0jürgen\0x")),
            ("pi", "grün", b"LOGIN", base64("grün")),
            ("küche@example.org", "x", b"CRAM-MD5 LOGIN", "AUTH LOGIN " + base64("küche@example.org")),
        ):
            go_on = {} if b"PLAIN" in offered else {"AUTH": b"334 VXNlcm5hbWU6"}
            login = {"AUTH": b"235 fine", "": b"220 mail", **go_on, base64(password): b"235 fine"}
            self.server.responses = {"EHLO": b"250-mail\r\n250 AUTH " + offered, **login}
            mail_to(self.port, user=user, password=password).send(HELLO)
            self.assertIn(line, self.server.received)

    def test_fault_of_the_settings_refuses_no_message(self):
        auth = {"EHLO": b"250-mail\r\n250 AUTH PLAIN LOGIN CRAM-MD5"}
        for responses, options, words in (
            ({**auth, "AUTH": b"535 no"}, {"user": "pi", "password": "grün"}, "535 no: check [mail] user and the"),
            ({"EHLO": b"250-mail\r\n250 AUTH CRAM-MD5"}, {"user": "pi", "password": "grün"}, "only ASCII"),
            ({}, {"user": "pi", "password": "grün"}, "only ASCII"),
            ({}, {"to": "jürgen@example.org"}, "set [mail] from and to, not pi@example.org and jürgen@example.org"),
            ({}, {"sender": "jürgen@example.org"}, "set [mail] from and to, not jürgen@example.org and you@"),
            ({"": b"HTTP/1.1 400 Bad Request"}, {}, "it does not answer as a mail server: /1.1 400 Bad Request"),
            ({"": b"SSH-2.0-OpenSSH"}, {}, "it does not answer as a mail server"),
        ):  # fmt: skip
            error = self.error(responses, **options)
            self.assertNotIsInstance(error, Refused, options)
            self.assertIn(words, str(error))
        for host in ("smtp..example.org", "x" * 64 + ".org"):
            with self.assertRaises(NotSent) as caught:
                EmailChannel(MailServer(host, 25, "none", "", "", "pi@example.org"), "you@example.org").send(HELLO)
            self.assertNotIsInstance(caught.exception, Refused)

    def test_errors_of_tls_name_the_setting(self):
        wrong, timeout = ssl.SSLError(1, "wrong version number"), TimeoutError("timed out")
        for error, port, tls, words in (
            (ssl.SSLCertVerificationError(1, "self-signed certificate"), 587, "starttls", "valid for [mail] host"),
            (ssl.SSLCertVerificationError(1, "Hostname mismatch"), 465, "tls", "known to this system"),
            (wrong, 587, "tls", 'wrong version number: set [mail] tls = "starttls"'), (wrong, 25, "tls", '"starttls"'),
            (timeout, 465, "starttls", 'timed out: for this port, set [mail] tls = "tls"'),
            (timeout, 465, "none", '"tls"'), (timeout, 587, "starttls", ": timed out"), (timeout, 465, "tls", "out"),
        ):  # fmt: skip
            connect = unittest.mock.patch("smtplib.socket.create_connection", side_effect=error)
            with connect, self.assertRaises(NotSent) as caught:
                mail_to(port, tls=tls).send(HELLO)
            self.assertNotIsInstance(caught.exception, Refused)
            self.assertIn(words, str(caught.exception))

    def test_response_is_shown_without_control_characters(self):
        self.assertIn("550 no\ufffd[31m user", str(self.error({"RCPT": b"550 no\x1b[31m user"})))

    def test_domain_is_sent_in_ascii(self):
        for to, sent in (
            ("info@müller.example", "info@xn--mller-kva.example"), ("a@EXAMPLE.org", "a@EXAMPLE.org"),
            ("a@bücher.münchen.example", "a@xn--bcher-kva.xn--mnchen-3ya.example"),
            ("a@日本.example", "a@xn--wgv71a.example"), ("a@xn--mller-kva.example", "a@xn--mller-kva.example"),
        ):  # fmt: skip
            mail_to(self.port, to).send(HELLO)
            self.assertEqual(self.server.mails[-1][0], sent)
        self.assertIn("only ASCII", str(self.error({}, to="a@straße.example")))  # not strasse.example, another domain

    def test_server_that_refuses_the_connection_or_tls_is_a_temporary_error(self):
        port = self.port
        for at, tls in ((1, "none"), (1, "tls"), (port, "tls")):
            with unittest.mock.patch.object(email_channel, "ANSWER_S", 0.05), self.assertRaises(NotSent) as caught:
                mail_to(at, tls=tls).send(HELLO)
            self.assertNotIsInstance(caught.exception, Refused)

    def test_error_after_the_mail_was_accepted_is_ignored(self):
        """Otherwise it would be sent again."""
        for response in (b"421 closing", b"500 what", b""):
            self.server.responses = {"QUIT": response}
            mail_to(self.port).send(HELLO)
        self.assertEqual(len(self.server.mails), 3)


class Webhook(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server, cls.port = serve(for_class(cls), Hook, status=204)

    def setUp(self):
        self.server.status, self.server.keys = 204, []
        self.server.received.clear()
        self.hook = webhook_to(f"http://127.0.0.1:{self.port}/hook?key=secret")

    def error(self, status, head=()):
        self.server.status, self.server.head = status, dict(head)
        with self.assertRaises(NotSent) as caught:
            self.hook.send(HELLO)
        remedy = {
            401: "; check [webhook] token or headers, or the user and password in url",
            404: "; check [webhook] url",
            301: "; it has another address now: set [webhook] url",
        }.get({403: 401, 410: 404, 302: 301, 303: 301, 307: 301, 308: 301}.get(status, status), "")
        self.assertEqual(str(caught.exception), f"webhook at 127.0.0.1: the response has the status {status}{remedy}")
        return caught.exception

    def test_webhook_receives_the_message_as_json(self):
        self.hook.send(HELLO)
        self.assertEqual(self.server.received, [
            ("/hook?key=secret", "application/json",
             {"subject": HELLO.subject, "text": HELLO.text, "facts": HELLO.info})
        ])  # fmt: skip
        self.assertEqual(self.server.keys, ["a-1"])

    def test_name_of_a_file_that_is_not_utf_8_is_sent(self):
        self.hook.send(HELLO._replace(text=os.fsdecode(b"caf\xe9 is damaged")))
        self.assertEqual(self.server.received[0][2]["text"], "caf? is damaged")

    def test_client_error_is_a_permanent_refusal(self):
        for status in (400, 401, 403, 404, 410, 413, 422):
            self.assertIsInstance(self.error(status), Refused, status)

    def test_status_that_may_pass_is_temporary(self):
        for status, is_answer in (
            (408, False), (425, False), (429, False), (500, True), (502, True), (503, True), (301, False),
            (302, False), (303, False), (304, False), (307, False), (308, False),
        ):  # fmt: skip
            error = self.error(status)
            self.assertNotIsInstance(error, Refused, status)
            self.assertEqual((error.is_answer, error.pause_s), (is_answer, None), status)

    def test_retry_after_is_reported(self):
        self.assertEqual(self.error(429, {"Retry-After": "120"}).pause_s, 120)
        self.assertEqual(self.error(503, {"Retry-After": "7"}).pause_s, 7)

    def test_server_that_cannot_be_reached_is_a_temporary_error(self):
        with self.assertRaisesRegex(NotSent, "webhook at 127.0.0.1: .*refused") as caught:
            webhook_to("http://127.0.0.1:1/hook?key=secret").send(HELLO)
        self.assertNotIsInstance(caught.exception, Refused)
        self.assertNotIn("secret", str(caught.exception))
        self.assertEqual(webhook_channel.ANSWER_S, 20.0)

    def test_answer_that_arrives_byte_by_byte_is_a_temporary_error(self):
        ends = threading.Event()

        class Slow(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(ConnectionError):
                    while not ends.wait(0.02):
                        self.request.sendall(b"H")

        _, port = serve(self, Slow)
        self.addCleanup(ends.set)
        giving_up = threading.Timer(LIMIT_S, ends.set)
        giving_up.start()
        self.addCleanup(giving_up.cancel)
        with unittest.mock.patch.object(webhook_channel, "ANSWER_S", 0.2), self.assertRaisesRegex(NotSent, "timed out"):
            webhook_to(f"http://127.0.0.1:{port}/").send(HELLO)
        self.assertFalse(ends.is_set())


if __name__ == "__main__":
    unittest.main()
