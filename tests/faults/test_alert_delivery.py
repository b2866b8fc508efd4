"""Alerts through kill -9 while the mail server is away: each message and each end arrives exactly once.

The oracle is a mail server that counts what it has accepted.
"""

import email
import email.policy
import json
import os
import unittest

from tests.alerts.fake_servers import MailServer, serve
from tests.page_support import Node, Server
from tests.support import free_port, long, temp_folder, wait_until

FAST = {
    "pigeonpost.alerts.notifier.LOOK_S": 0.05,
    "pigeonpost.alerts.notifier.RETRY_S": 0.2,
    "pigeonpost.alerts.engine.COLLECT_S": 0.1,
}


class MailServerAway(unittest.TestCase):
    def setUp(self):
        self.port, self.place, self.data = free_port(), f"127.0.0.1:{free_port()}", temp_folder(self)
        self.node = Node(self, "--listen", self.place)
        self.settings = os.path.join(self.data, "server.toml")
        with open(self.settings, "w", encoding="utf-8") as file:
            file.write(
                '[mail]\nto = ["you@example.org", "bad@example.org"]\nhost = "127.0.0.1"\ntls = "none"\n'
                f'port = {self.port}\n[[alert]]\nnode = "basement"\nsilent = 1\n'
            )
        self.start()

    def start(self):
        node = f"basement@{self.place}"
        self.server = Server(self, "--node", node, "--config", self.settings, data=self.data, constants=FAST)
        wait_until(lambda: self.server.page, "the server has started")

    def restart(self):
        self.server.kill()
        self.start()

    def get(self, path):
        with open(os.path.join(self.data, "running.json"), encoding="utf-8") as file:
            key = json.load(file)["key"]
        return self.server.get(path, {"Authorization": f"Bearer {key}"})[1]

    def alerts(self):
        return json.loads(self.get("/api/v1/alerts"))

    def waiting(self):
        return sum(one["waiting"] for one in self.alerts()["channels"])

    @long
    def test_alert_and_its_end_arrive_once_after_kills(self):
        wait_until(lambda: "temperature" in self.get("/"), "the server collects")
        self.node.kill()
        wait_until(lambda: self.waiting() == 2, "the alert waits for both recipients")
        self.restart()
        self.assertEqual(self.waiting(), 2)
        self.node = Node(self, "--listen", self.place)
        self.restart()
        wait_until(lambda: self.waiting() == 4, "the end waits, too")
        self.restart()
        mail, _ = serve(self, MailServer, port=self.port, responses={"RCPT TO:<bad": b"550 no such user"}, mails=[])
        wait_until(lambda: self.waiting() == 0, "all messages are sent or refused")
        self.restart()
        wait_until(lambda: self.alerts()["recent"], "the results are kept")
        subjects = [email.message_from_string(text, policy=email.policy.default)["Subject"] for _, text in mail.mails]
        self.assertEqual([subject.partition(":")[0] for subject in subjects], ["Alert", "Resolved"], subjects)
        self.assertEqual({to for to, _ in mail.mails}, {"you@example.org"})
        results = [(entry["channel"], entry["result"]) for one in self.alerts()["recent"] for entry in one["results"]]
        self.assertEqual(sorted(results), [("bad@example.org", "refused")] * 2 + [("you@example.org", "sent")] * 2)


if __name__ == "__main__":
    unittest.main()
