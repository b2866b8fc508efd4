"""Tests of alerts, reports, and the channels that deliver them."""

import http.server
import json
import logging
import random
import socketserver
import threading
import unittest
import unittest.mock
from types import SimpleNamespace

from pigeonpost.alerts import notifier
from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent
from pigeonpost.alerts.email_channel import EmailChannel
from pigeonpost.alerts.notifier import Notifier
from pigeonpost.alerts.report import report
from pigeonpost.alerts.rules import Alerts, read_rules
from pigeonpost.alerts.webhook_channel import WebhookChannel
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import DiskError, NotStored, SettingsError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import Batch
from tests.forked import Forked
from tests.page_support import use_memory_disk
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import E1, OUTBOX, file, gap, sample
from tests.support import LIMIT_S, temp_folder, wait_until

HELLO = AlertMessage("Alert: it is 41 °C", "It is 41 °C.\n", {"kind": "alert"})


def setUpModule():
    use_memory_disk()


class AlertCase(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.links = [SimpleNamespace(state=SimpleNamespace(name=name)) for name in ("attic", "cellar")]
        self.seq = 0

    def alerts(self, *tables):
        self.made = Alerts(read_rules(tables, "server.toml"), self.links, self.clock)
        return self.made

    def bring(self, value, node="attic", time_ms=None):
        self.seq += 1
        self.file([sample(self.seq, value, self.clock.wall_ms() if time_ms is None else time_ms)], node)

    def file(self, samples, node="attic"):
        epoch_commit = EpochCommit(node, OUTBOX, E1, NOTHING)
        epoch_commit.units = {"temperature": "°C"}
        epoch_commit.items.append(SampleBatch.of(samples))
        self.made.on_commit([epoch_commit])

    def subjects(self):
        return [message.subject.partition(" at ")[0] for message in self.made.look()]


class Thresholds(AlertCase):
    HOT = {"sensor": "temperature", "above": 40}

    def test_threshold_alert_is_sent_and_resolved(self):
        self.alerts({**self.HOT, "below": 2, "node": "attic"})
        for value, said in (
            (40, []), (40.5, ["Alert: temperature of attic is 40.5 °C"]), (41, []), (None, []),
            (39, ["Resolved: temperature of attic is 39 °C"]), (1, ["Alert: temperature of attic is 1 °C"]),
        ):  # fmt: skip
            self.bring(value)
            self.assertEqual(self.subjects(), said, value)

    def test_value_of_another_node_is_ignored(self):
        self.alerts({**self.HOT, "node": "attic"})
        self.bring(50, "cellar")
        self.assertEqual(self.subjects(), [])

    def test_rule_without_a_node_applies_to_every_node(self):
        self.alerts(self.HOT)
        self.bring(50, "cellar")
        self.bring(51, "attic")
        self.assertEqual(len(self.subjects()), 2)

    def test_batch_gives_the_same_alerts_as_single_samples(self):
        dice = random.Random(14)
        tables = [
            {"sensor": "temperature", "above": 40}, {"sensor": "temperature", "above": 45, "below": -5, "for": 5},
            {"sensor": "light", "below": 1, "node": "attic", "again": 10}, {"node": "attic", "silent": 20},
        ]  # fmt: skip
        told = 0
        for _ in range(30):
            made = [self.alerts(*tables) for _ in range(2)]
            time_ms, last = self.clock.wall_ms(), 0
            for _ in range(6):
                values, samples = dice.choice([(20, 30), (50, 60), (None,), (20, 50, None), (-10, 44)]), []
                for seq in range(last + 1, last + dice.randrange(2, 20)):
                    time_ms += 1000 if dice.random() < 0.9 else -5000
                    samples.append(sample(seq, dice.choice(values), time_ms))
                last = samples[-1].seq
                for self.made, some in zip(made, ([samples], [[one] for one in samples])):
                    for part in some:
                        self.file(part)
                self.clock.sleep(dice.choice([1, 4, 30]))
                said = [sorted(message.subject for message in alerts.look()) for alerts in made]
                self.assertEqual(*said)
                told += len(said[0])
        self.assertGreater(told, 50)

    def test_alert_is_sent_only_after_the_time_for(self):
        self.alerts({**self.HOT, "for": 60})
        self.bring(50)
        self.clock.sleep(59)
        self.bring(50)
        self.assertEqual(self.subjects(), [])
        self.clock.sleep(1)
        self.assertEqual(len(self.subjects()), 1)

    def test_condition_that_ends_within_a_batch_starts_a_new_time(self):
        self.alerts({**self.HOT, "for": 60})
        self.bring(50)
        self.clock.sleep(40)
        time_ms = self.clock.wall_ms()
        self.file([sample(seq, value, time_ms + seq) for seq, value in enumerate((50, 20, 50), 2)])
        self.clock.sleep(40)
        self.assertEqual(self.subjects(), [])
        self.clock.sleep(20)
        self.assertEqual(len(self.subjects()), 1)

    def test_condition_that_ends_early_sends_no_alert(self):
        self.alerts({**self.HOT, "for": 60})
        self.bring(50)
        self.clock.sleep(30)
        self.bring(20)
        self.clock.sleep(60)
        self.assertEqual(self.subjects(), [])

    def test_peak_between_two_checks_is_reported_without_the_time_for(self):
        self.alerts(self.HOT)
        self.bring(50)
        self.bring(20)
        self.assertEqual(self.subjects(), ["Alert: temperature of attic is 50 °C"])
        self.assertEqual(self.subjects(), ["Resolved: temperature of attic is 20 °C"])
        self.assertEqual(self.subjects(), [])

    def test_peak_is_not_reported_with_the_time_for(self):
        self.alerts({**self.HOT, "for": 1})
        self.bring(50)
        self.bring(20)
        self.clock.sleep(5)
        self.assertEqual(self.subjects(), [])

    def test_alert_is_repeated_while_the_condition_lasts(self):
        self.alerts({**self.HOT, "again": 600})
        self.bring(50)
        self.assertEqual(len(self.subjects()), 1)
        self.clock.sleep(599)
        self.assertEqual(self.subjects(), [])
        self.clock.sleep(1)
        self.assertEqual(len(self.subjects()), 1)

    def test_late_value_older_than_the_last_one_is_ignored(self):
        self.alerts(self.HOT)
        self.bring(20)
        self.bring(50, time_ms=self.clock.wall_ms() - 1000)
        self.assertEqual(self.subjects(), [])

    def test_message_contains_value_time_and_condition(self):
        self.alerts(self.HOT)
        self.bring(50)
        (message,) = self.made.look()
        self.assertRegex(
            message.text,
            r"^temperature of attic is 50 °C at 20\S+Z\.\nCondition of the alert: temperature above 40\.\n$",
        )
        self.assertEqual((message.info["kind"], message.info["node"], message.info["above"]), ("alert", "attic", 40))


class Silence(AlertCase):
    def test_silent_node_is_reported_and_resolved(self):
        self.alerts({"silent": 600})
        self.clock.sleep(300)
        self.bring(1, "attic")
        self.clock.sleep(301)
        self.assertEqual(self.subjects(), ["Alert: no sample of cellar for 601 s"])
        self.clock.sleep(300)
        self.assertEqual(self.subjects(), ["Alert: no sample of attic for 601 s"])
        self.bring(1, "cellar")
        self.assertEqual(self.subjects(), ["Resolved: cellar sends samples again"])

    def test_node_that_never_sent_a_sample_is_reported(self):
        self.alerts({"silent": 60, "node": "shed"})
        self.clock.sleep(61)
        self.assertEqual(self.subjects(), ["Alert: no sample of shed for 61 s"])


class Tables(unittest.TestCase):
    def test_invalid_tables_are_refused(self):
        for table, words in (
            ({}, "must have either `sensor` with `above` or `below`, or `silent`"),
            ({"silent": 5, "above": 1, "sensor": "x"}, "must have either `sensor`"),
            ({"above": 1}, "require `sensor`"), ({"silent": 5, "sensor": "x"}, "require `sensor`"),
            ({"sensor": "x", "above": "hot"}, "above takes"), ({"sensor": "x", "abov": 1}, "above"),
            ({"sensor": "X", "above": 1}, "sensor takes"), ({"silent": 0}, "silent takes"),
        ):  # fmt: skip
            with self.assertRaises(SettingsError) as caught:
                read_rules([{"silent": 9}, table], "server.toml")
            self.assertIn("server.toml: [[alert]] 2: ", str(caught.exception))
            self.assertIn(words, str(caught.exception))


class Reports(unittest.TestCase):
    def test_report_contains_statistics_of_every_sensor(self):
        store = MemoryStore()
        made = [sample(n, 20 + n, 1_795_000_000_000 + n * 60_000) for n in range(1, 5)]
        file(
            store,
            Batch(
                "attic", OUTBOX, E1, 0, SampleBatch.of(made), None, {"temperature": "°C", "humidity": "%"}, print, print
            ),
        )
        file(store, gap(1, 7, node="cellar"))
        message = report(store, "home", 1_795_000_000_000, 1_795_000_200_000)
        self.assertRegex(message.subject, "^Report of home, 2026-11-18T")
        self.assertRegex(message.text, r"\n\nattic\n  temperature +21 to 23 +mean 22 +°C +3 values\n")
        self.assertIn("cellar (7 samples missing in total): no values", message.text)
        self.assertEqual(
            message.info["nodes"]["attic"], {"temperature": {"values": 3, "low": 21, "high": 23, "mean": 22}}
        )

    def test_report_of_an_empty_store_contains_no_samples(self):
        self.assertIn("No samples are stored.", report(MemoryStore(), "home", 0, 1000).text)


class MailServer(socketserver.StreamRequestHandler):
    """Minimal mail server. The lines that it receives are in `server.received`."""

    def handle(self):
        self.wfile.write(b"220 mail\r\n")
        data = False
        for line in self.rfile:
            self.server.received.append(line.decode().rstrip("\r\n"))
            word = line[:4].upper()
            if data:
                data = line != b".\r\n"
                self.wfile.write(b"" if data else b"250 taken\r\n")
            elif word == b"DATA":
                data = True
                self.wfile.write(b"354 go on\r\n")
            elif word == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            elif word == b"RCPT" and self.server.refuses:
                self.wfile.write(b"550 no such user\r\n")
            else:
                self.wfile.write(b"250 fine\r\n")


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def serve(test, handler, **info):
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.received = True, []
    for name, value in info.items():
        setattr(server, name, value)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    test.addCleanup(server.server_close)
    test.addCleanup(server.shutdown)
    return server, server.server_address[1]


class Channels(unittest.TestCase):
    def test_mail_is_sent_with_each_kind_of_encryption(self):
        server, port = serve(self, MailServer, refuses=False)
        EmailChannel("127.0.0.1", port, "none", "", "", "pi@example.org", ["you@example.org", "me@example.org"]).send(
            HELLO
        )
        said = "\n".join(server.received)
        for words in ("mail FROM:<pi@example.org>", "rcpt TO:<you@example.org>", "rcpt TO:<me@example.org>",
                      "To: you@example.org, me@example.org", "Subject: Alert: it is 41 =?utf-8?q?="):  # fmt: skip
            self.assertIn(words.lower(), said.lower())

    def test_subject_is_reduced_to_one_line(self):
        server, port = serve(self, MailServer, refuses=False)
        EmailChannel("127.0.0.1", port, "none", "", "", "pi@example.org", ["you@example.org"]).send(
            HELLO._replace(subject="a\r\nBcc: all@example.org")
        )
        self.assertIn("Subject: a Bcc: all@example.org", server.received)
        self.assertFalse([line for line in server.received if line.startswith("Bcc:")])

    def test_mail_error_raises_not_sent(self):
        _, port = serve(self, MailServer, refuses=True)
        for at in (port, 1):
            with self.assertRaisesRegex(NotSent, "mail server 127.0.0.1: "):
                EmailChannel("127.0.0.1", at, "none", "", "", "pi@example.org", ["you@example.org"]).send(HELLO)
        with self.assertRaisesRegex(
            NotSent, "mail server"
        ):  # the server does not support TLS: nothing is sent unencrypted
            EmailChannel("127.0.0.1", port, "starttls", "", "", "pi@example.org", ["you@example.org"]).send(HELLO)

    def test_webhook_receives_the_message_as_json(self):
        server, port = serve(self, Hook, status=204)
        WebhookChannel(f"http://127.0.0.1:{port}/hook?key=secret").send(HELLO)
        self.assertEqual(server.received, [
            ("/hook?key=secret", "application/json",
             {"subject": HELLO.subject, "text": HELLO.text, "facts": HELLO.info})
        ])  # fmt: skip

    def test_webhook_error_raises_not_sent(self):
        _, port = serve(self, Hook, status=500)
        for at, words in ((port, "the response has the status 500"), (1, "refused")):
            with self.assertRaisesRegex(NotSent, f"webhook at 127.0.0.1: .*{words}") as caught:
                WebhookChannel(f"http://127.0.0.1:{at}/hook?key=secret").send(HELLO)
            self.assertNotIn("secret", str(caught.exception))


class FakeChannel(AlertChannel):
    place = "fake"

    def __init__(self):
        self.works, self.taken = True, []

    def send(self, message):
        if not self.works:
            raise NotSent("fake at smtp://u:hunter2@host: it is away")
        self.taken.append(message.subject)


class Delivery(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.clock, self.channel, self.now = FakeClock(), FakeChannel(), []
        self.spans = []
        self.watch = Notifier([self.channel], self.look, self.report, 3600.0, self.clock)

    def look(self):
        now, self.now = self.now, []
        return now

    def report(self, from_ms, to_ms):
        self.spans.append(to_ms - from_ms)
        return HELLO._replace(subject="report", info={"kind": "report"})

    def test_alerts_are_sent_immediately(self):
        self.now = [HELLO, HELLO._replace(subject="two")]
        self.watch.look()
        self.assertEqual(self.channel.taken, [HELLO.subject, "two"])
        self.assertEqual((self.watch.report(), self.watch.fault), ({"sent": 2, "waiting": 0}, ""))

    def test_failed_messages_are_retried_in_order(self):
        self.channel.works = False
        self.now = [HELLO]
        self.watch.look()
        self.assertEqual(self.watch.fault, "messages are not sent yet: fake at smtp://***@host: it is away")
        self.channel.works = True
        self.now = [HELLO._replace(subject="two")]
        self.watch.look()
        self.assertEqual(self.channel.taken, [])
        self.clock.sleep(notifier.RETRY_S)
        self.watch.look()
        self.assertEqual((self.channel.taken, self.watch.fault), ([HELLO.subject, "two"], ""))

    def test_failing_channel_does_not_delay_the_other(self):
        other = FakeChannel()
        self.watch = Notifier([self.channel, other], self.look, self.report, 0.0, self.clock)
        self.channel.works = False
        self.now = [HELLO]
        self.watch.look()
        self.assertEqual((self.channel.taken, other.taken), ([], [HELLO.subject]))

    def test_report_is_sent_every_hour(self):
        for _ in range(5):
            self.clock.sleep(1800)
            self.watch.look()
        self.assertEqual((self.channel.taken, self.spans), (["report", "report"], [3_600_000, 3_600_000]))

    def test_failed_report_loses_no_alert(self):
        self.clock.sleep(3600)
        self.now = [HELLO]
        self.report_fails = True
        self.watch._report = lambda *span: (_ for _ in ()).throw(NotStored("locked"))
        self.assertRaises(NotStored, self.watch.look)
        self.watch._report = self.report
        self.watch.look()
        self.assertEqual(self.channel.taken, [HELLO.subject, "report"])

    def test_queue_length_is_limited(self):
        self.channel.works = False
        self.now = [HELLO._replace(subject=str(n)) for n in range(600)]
        self.watch.look()
        self.assertEqual(self.watch.report()["waiting"], notifier.MOST_WAITING)

    def test_thread_continues_after_a_busy_store_and_ends_with_a_broken_one(self):
        failures = [NotStored("locked"), DiskError("broken")]
        self.watch._look = lambda: (_ for _ in ()).throw(failures.pop(0))
        with unittest.mock.patch.object(notifier, "LOOK_S", 0.01):
            self.watch.start()
            self.watch._thread.join(LIMIT_S)
        self.assertEqual((failures, self.watch._thread.is_alive()), ([], False))


class ServerProgram(unittest.TestCase):
    def test_server_sends_an_alert_about_a_silent_node(self):
        server, port = serve(self, Hook, status=200)
        folder = temp_folder(self)
        with open(f"{folder}/server.toml", "w", encoding="utf-8") as settings:
            settings.write(f'[webhook]\nurl = "http://127.0.0.1:{port}/"\n[[alert]]\nnode = "attic"\nsilent = 1\n')
        often = {"pigeonpost.alerts.notifier.LOOK_S": 0.05}
        program = Forked(self, "server.py", "--web", "127.0.0.1:0", folder=folder, constants=often)
        program.line()
        wait_until(lambda: server.received, "a message at the webhook")
        self.assertRegex(server.received[0][2]["subject"], "^Alert: no sample of attic for [0-9]+ s$")
        program.terminate()
        self.assertEqual(program.wait(), 0)

    def test_alerts_without_a_recipient_are_refused(self):
        folder = temp_folder(self)
        with open(f"{folder}/server.toml", "w", encoding="utf-8") as settings:
            settings.write("[report]\nevery = 24\n")
        program = Forked(self, "server.py", "--web", "127.0.0.1:0", folder=folder)
        self.assertEqual(program.wait(), 2)
        program.logs("set [mail] to or [webhook] url")


if __name__ == "__main__":
    unittest.main()
