"""Alerts of a server that is killed (kill -9) while the mail server or a service is away: each arrives exactly once."""

import contextlib
import json
import os
import random
import socketserver
import sqlite3
import threading
import time
import unittest
import urllib.request

from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.data_folder import ALERTS
from tests.alerts.fake_servers import MailServer
from tests.alerts.fake_services import TOKEN, Discord, Ntfy
from tests.forked import Forked
from tests.support import free_port, long, rounds, temp_folder, wait_until

OFTEN = {
    "pigeonpost.alerts.notifier.LOOK_S": 0.02, "pigeonpost.alerts.notifier.RETRY_S": 0.05,
    "pigeonpost.alerts.notifier.LONGEST_RETRY_S": 0.1, "pigeonpost.alerts.engine.COLLECT_S": 0.1,
}  # fmt: skip
SETTINGS = """
[store]
commit = 0.05
[[alert]]
sensor = "temperature"
above = 40
clear = 35
"""
MAIL = """
[mail]
to = ["you@example.org"]
host = "127.0.0.1"
port = {port}
tls = "none"
"""
CHANNELS = f"""
[[channel]]
name = "phone"
shape = "ntfy"
url = "http://127.0.0.1:{{ntfy}}/home"
token = "{TOKEN}"
[[channel]]
name = "club"
shape = "discord"
url = "http://127.0.0.1:{{discord}}{Discord.path}"
"""


class KillCase(unittest.TestCase):
    channels = ""

    def setUp(self):
        self.folder, self.mail_port, self.seq = temp_folder(self), free_port(), 0
        self.ports = {"port": self.mail_port, "ntfy": free_port(), "discord": free_port()}
        with open(f"{self.folder}/server.toml", "w", encoding="utf-8") as settings:
            settings.write(self.channels.format(**self.ports) + SETTINGS)
        os.mkdir(f"{self.folder}/data", 0o700)
        self.token = ApiTokens(f"{self.folder}/data").make("tests", "writer")

    def start(self):
        self.program = Forked(self, "server.py", "--web", "127.0.0.1:0", folder=self.folder, constants=OFTEN)
        line = self.program.line()
        self.url = line.partition("http://")[2].partition("/")[0]

    def send(self, value):
        """Store one sample; it is durable when this returns."""
        self.seq += 1
        now = rfc3339(time.time_ns() // 1_000_000)
        sample = {"seq": self.seq, "time": now, "up": self.seq, "values": {"temperature": value}}
        body = {"node": "attic", "epoch": "e" * 16, "outbox": "0" * 16, "gaps": [],
                "sensors": [{"name": "temperature", "unit": "°C"}], "samples": [sample]}  # fmt: skip
        request = urllib.request.Request(
            f"http://{self.url}/api/v1/samples", json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=20) as response:
            self.assertEqual(json.load(response)["ack"], self.seq)

    def kill_and_start(self):
        self.program.kill()
        self.start()

    def waiting(self):
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/data/{ALERTS}?mode=ro", uri=True)) as db:
            return db.execute("SELECT count(*) FROM queue").fetchone()[0]


@long
class AlertKills(KillCase):
    channels = MAIL

    def subjects(self):
        found = []
        for _, text in self.mail_server.mails:
            head, _, _ = text.partition("\n\n")
            found.append(head.replace("\n ", " ").partition("Subject: ")[2].partition(":")[0])
        return found

    def ids(self):
        return [text.partition("Message-ID: <")[2].partition(">")[0] for _, text in self.mail_server.mails]

    def test_each_message_is_delivered_once_after_kills_without_a_mail_server(self):
        self.start()
        expected = []
        for value, subject in ((41, "Alert"), (20, "Resolved"), (50, "Alert"), (36, None), (34, "Resolved")):
            self.send(value)
            if subject:
                expected.append(subject)
                wait_until(lambda: self.waiting() == len(expected), f"{len(expected)} messages in the queue")
            self.kill_and_start()
        self.serve_mail()
        wait_until(lambda: len(self.mail_server.mails) >= len(expected), "all mails")
        self.assertEqual(self.subjects(), expected)
        wait_until(lambda: self.waiting() == 0, "an empty queue")
        self.kill_and_start()
        self.send(41)
        wait_until(lambda: len(self.mail_server.mails) > len(expected), "one more mail")
        self.assertEqual(self.subjects(), [*expected, "Alert"])

    def test_kills_at_random_moments_neither_lose_nor_repeat_an_alert(self):
        dice = random.Random(5)
        self.serve_mail()
        self.start()
        self.send(20)
        wait_until(lambda: os.path.getsize(f"{self.folder}/data/{ALERTS}") > 0, "the file of the alerts")
        expected = []
        for _ in range(rounds("PIGEONPOST_TEST_ALERT_KILLS", 5, 30)):
            for value, subject in ((dice.choice([41, 60]), "Alert"), (dice.choice([20, 35]), "Resolved")):
                self.send(value)
                expected.append(subject)
                if dice.random() < 0.8:
                    time.sleep(dice.random() * 0.3)  # the moment of the kill is the input of this test
                    self.kill_and_start()
                wait_until(lambda: len(set(self.ids())) >= len(expected), f"{len(expected)} mails")
        # A kill between the acceptance of a mail and its removal from the queue repeats it, with the same id.
        unique = list(dict.fromkeys(zip(self.ids(), self.subjects(), strict=True)))
        self.assertEqual([subject for _, subject in unique], expected)

    def serve_mail(self):
        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # the client was killed

        server = self.mail_server = Server(("127.0.0.1", self.mail_port), MailServer)
        server.received, server.responses, server.mails = [], {}, []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)


@long
class ServiceKills(KillCase):
    channels = CHANNELS

    def test_each_service_receives_each_message_once_after_kills_while_it_was_away(self):
        self.start()
        expected = []
        for value, title in ((41, "Alert"), (20, "Resolved"), (50, "Alert"), (34, "Resolved")):
            self.send(value)
            expected.append(title)
            wait_until(lambda: self.waiting() == 2 * len(expected), f"{len(expected)} messages in both queues")
            self.kill_and_start()
        ntfy, discord = Ntfy(self, self.ports["ntfy"]), Discord(self, self.ports["discord"])
        wait_until(lambda: self.waiting() == 0, "empty queues")
        self.kill_and_start()
        self.send(41)
        expected.append("Alert")
        services = (ntfy, discord)
        wait_until(lambda: all(len(one.received) >= len(expected) for one in services), "one more message for each")
        for service, key in ((ntfy, "title"), (discord, "content")):
            self.assertEqual([one[key].partition(":")[0] for one in service.received], expected)
            self.assertEqual(len(set(service.keys)), len(expected))
            self.assertEqual(service.faults, [])

    def test_kills_at_random_moments_neither_lose_nor_repeat_a_message(self):
        dice = random.Random(7)
        ntfy, discord = Ntfy(self, self.ports["ntfy"]), Discord(self, self.ports["discord"])
        services = (ntfy, discord)
        self.start()
        self.send(20)
        expected = []
        for _ in range(rounds("PIGEONPOST_TEST_ALERT_KILLS", 3, 20)):
            for value, title in ((41, "Alert"), (20, "Resolved")):
                self.send(value)
                expected.append(title)
                if dice.random() < 0.8:
                    time.sleep(dice.random() * 0.3)  # the moment of the kill is the input of this test
                    self.kill_and_start()
                wait_until(
                    lambda: all(len(set(one.keys)) >= len(expected) for one in services), f"{len(expected)} messages"
                )
        for service, key in ((ntfy, "title"), (discord, "content")):
            # A kill between the acceptance of a message and its removal from the queue repeats it, with the same id.
            titles = [one[key].partition(":")[0] for one in service.received]
            unique = list(dict.fromkeys(zip(service.keys, titles, strict=True)))
            self.assertEqual([title for _, title in unique], expected)
            self.assertEqual(service.faults, [])


del KillCase

if __name__ == "__main__":
    unittest.main()
