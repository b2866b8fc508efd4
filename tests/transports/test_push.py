"""Samples over HTTP: what the server accepts, refuses and acknowledges, and how a node pushes its samples."""

import base64
import gc
import itertools
import json
import logging
import os
import socket
import threading
import time
import unittest
from unittest import mock

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.throttle import MOST
from pigeonpost.core import data_folder, json_file
from pigeonpost.core.clock import Clock, FakeClock, parse_rfc3339
from pigeonpost.core.config import load
from pigeonpost.core.errors import DiskError, NotStored, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.server import command_queue, ingest, unnumbered_sources
from pigeonpost.settings import NODE
from pigeonpost.transports import push_node, push_node_client, push_server
from pigeonpost.transports.payload import PAYLOAD_BYTES
from pigeonpost.transports.push_node_client import PushClient
from pigeonpost.web.tls import Tls, fingerprint_of
from protocol import BATCH_SAMPLES
from tests.http_servers import certificates
from tests.page_support import use_memory_disk
from tests.support import (
    BOOT,
    EPOCH,
    LIMIT_S,
    WALL_MS,
    MemoryDisk,
    free_port,
    rounds,
    taken,
    temp_folder,
    wait_until,
)
from tests.web.support import FakeLink, WebHouse, next_response, parse_response

OUTBOX = "0b" * 8
UNITS = [{"name": "temperature", "unit": "°C"}]


def setUpModule():
    use_memory_disk()


def samples(first, count):
    return [
        {"seq": seq, "time": "2026-11-20T15:36:10.123Z", "up": 1000 * seq, "values": {"temperature": seq / 4}}
        for seq in range(first, first + count)
    ]


def columns(first, count):
    """Return the samples of `samples` as columns."""
    return {
        "seq": first, "time": [WALL_MS] + [0] * (count - 1), "up": [1000 * first] + [1000] * (count - 1),
        "values": {"temperature": [seq / 4 for seq in range(first, first + count)]},
    }  # fmt: skip


def body(first=1, count=3, **more):
    """Return the bytes of a body; a value of ... removes the key."""
    said = {"node": "attic", "outbox": OUTBOX, "epoch": EPOCH, "gaps": [], "samples": samples(first, count), **more}
    return json.dumps({key: value for key, value in said.items() if value is not ...}).encode()


class PushCase(unittest.TestCase):
    def open(self, **options):
        self.web = WebHouse(self, transports=[push_server.PushServerTransport], **options)
        self.token = self.web.tokens.make("attic")
        return self.web

    def bearer(self, token=None):
        return {"Authorization": f"Bearer {self.token if token is None else token}"}

    def post(self, data, token=None, **headers):
        status, heads, answer = self.web.request(
            "POST", "/api/v1/samples", {**self.bearer(token), **headers}, data
        )  # fmt: skip
        return status, json.loads(answer), heads

    def resume(self, query=f"node=attic&epoch={EPOCH}", token=None):
        status, _, answer = self.web.request("GET", f"/api/v1/samples/resume?{query}", self.bearer(token))
        return status, json.loads(answer)

    def stored(self, node="attic"):
        return [point.seq for point in self.web.store.points(node, 0, 1 << 60, 100_000)]


class Stored(PushCase):
    def setUp(self):
        self.open()

    def test_no_request_stays_in_memory_until_garbage_is_collected(self):
        """Refused bodies of 1 MB once took 2 MB each: exceptions referred to frames, and those to the bodies."""

        def kept():
            kinds = ("Request", "ProvenBody", "CommitWaiter")
            return [one for one in gc.get_objects() if type(one).__name__ in kinds and id(one) not in others]

        others = set()
        before = kept()  # objects of other tests, referred to here so that their ids are not used again
        others = {id(one) for one in before}
        huge = [{"from": 1, "to": 10**18, "why": "x"}]
        requests = {
            "stored": (200, lambda: self.post(body(1))),
            "no JSON": (400, lambda: self.post(b"x" * 1000)),
            "a hole": (409, lambda: self.post(body(100))),
            "over a limit": (400, lambda: self.post(body(epoch="ab" * 8, gaps=huge, samples=[]))),
            "no token": (401, lambda: self.post(body(), token="wrong")),
            "no page": (404, lambda: self.web.request("GET", "/nowhere")),
        }
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for what, (status, request) in requests.items():
            with self.subTest(what):
                self.assertEqual(request()[0], status)
                wait_until(lambda: not kept(), "nothing of the request is left")

    def test_acknowledged_samples_are_durable(self):
        status, told, headers = self.post(body(1, 3, sensors=UNITS))
        self.assertEqual((status, told, headers["content-type"]), (200, {"ack": 3}, "application/json"))
        points = self.web.store.points("attic", 0, 1 << 60, 10)
        self.assertEqual([(p.seq, p.epoch, p.time_ms, p.values) for p in points], [
            (seq, EPOCH, WALL_MS, {"temperature": seq / 4}) for seq in (1, 2, 3)
        ])  # fmt: skip
        self.assertEqual(self.web.store.nodes()[0]["sensors"], {"temperature": "°C"})

    def test_forwarded_samples_have_no_uptime_and_cause_no_commands(self):
        writer = self.web.api_tokens.make("relay", "writer")
        query = f"node=shed&epoch={EPOCH}&relay=home"
        self.assertEqual(self.resume(query, writer)[1].items() & {("relay", True), ("known", False), ("have", 0)},
                         {("relay", True), ("known", False), ("have", 0)})  # fmt: skip
        self.assertEqual(self.post(body(node="shed", relay="home"), writer)[:2], (200, {"ack": 3}))
        told = self.resume(query, writer)[1]
        self.assertEqual((told["have"], told["up"], told["known"]), (3, None, True))
        self.assertFalse(self.web.unnumbered_sources.find("shed").takes_orders)

    def test_forwarding_with_a_nodes_token_or_an_invalid_name_is_refused(self):
        writer = self.web.api_tokens.make("relay", "writer")
        self.assertEqual(self.post(body(relay="home"))[0], 403)
        self.assertEqual(self.post(body(node="shed", relay=7), writer)[0], 400)
        self.assertEqual(self.resume(f"node=shed&epoch={EPOCH}&relay=a/b", writer)[0], 400)
        self.assertEqual(self.stored("shed"), [])

    def test_resume_returns_the_stored_seq(self):
        self.assertEqual(self.resume()[1]["have"], 0)
        self.post(body(1, 3, base=150))
        status, told = self.resume(f"node=attic&epoch={EPOCH}&outbox={OUTBOX}")
        self.assertEqual((status, told["have"], told["up"], told["id"]), (200, 3, 3000, 153))
        self.assertLess(abs(parse_rfc3339(told["time"]) - Clock().wall_ms()), 60_000)
        self.assertEqual(self.resume(f"node=attic&epoch={'ab' * 8}")[1]["have"], 0)

    def test_resume_of_many_epochs_is_one_request(self):
        self.post(body(1, 3))
        self.post(body(1, 7, epoch="ab" * 8))
        told = self.resume(f"node=attic&epoch={EPOCH},{'ab' * 8},{'cd' * 8}")[1]
        self.assertEqual(told["epochs"], {EPOCH: [3, 3000], "ab" * 8: [7, 7000]})
        self.assertEqual(told["have"], 0)

    def test_a_repeat_is_acknowledged_and_not_stored_again(self):
        for first, count, ack in ((1, 3, 3), (1, 3, 3), (2, 1, 2), (2, 4, 5), (1, 5, 5)):
            self.assertEqual(self.post(body(first, count))[:2], (200, {"ack": ack}))
        self.assertEqual(self.stored(), [1, 2, 3, 4, 5])

    def test_hole_without_a_gap_is_refused_with_the_next_seq(self):
        self.post(body(1, 3))
        status, told, _ = self.post(body(6, 2))
        self.assertEqual((status, told["error"]["code"], told["error"]["next"]), (409, "expected", 4))
        self.assertIn("sample 4 of epoch", told["error"]["text"])
        self.assertEqual(self.stored(), [1, 2, 3])
        gap = {"from": 4, "to": 5, "why": "overwritten"}
        self.assertEqual(self.post(body(6, 2, gaps=[gap]))[:2], (200, {"ack": 7}))
        self.assertEqual(self.stored(), [1, 2, 3, 6, 7])
        self.assertEqual([(g["from"], g["to"]) for g in self.web.store.gaps(10)], [(4, 5)])

    def test_gap_beyond_a_limit_is_refused_permanently(self):
        gap = {"from": 1, "to": 10**12 + 1, "why": "x"}
        status, told, _ = self.post(body(10**12 + 2, 3, gaps=[gap]))
        self.assertEqual((status, told["error"]["code"]), (400, "bad-argument"))
        self.assertIn("a gap can have at most 1,000,000,000,000 samples", told["error"]["text"])
        self.assertEqual((self.web.store.gaps(10), self.post(body(1, 3))[:2]), ([], (200, {"ack": 3})))

    def test_samples_with_too_many_channels_are_acknowledged(self):
        many = [{**samples(1, 1)[0], "values": {f"n{k}": k for k in range(300)}}]
        self.assertEqual(self.post(body(samples=many))[:2], (200, {"ack": 1}))
        (point,) = self.web.store.points("attic", 0, 1 << 60, 10)
        self.assertEqual(len(point.values), 256)

    def test_body_may_contain_only_a_gap_or_nothing(self):
        self.assertEqual(self.post(body(samples=..., gaps=...))[:2], (200, {"ack": 0}))
        gap = {"from": 1, "to": 5, "why": "overwritten"}
        self.assertEqual(self.post(body(samples=[], gaps=[gap]))[:2], (200, {"ack": 5}))
        self.assertEqual(self.post(body(samples=[]))[:2], (200, {"ack": 5}))

    def test_more_samples_than_one_batch_are_stored(self):
        count = 3 * BATCH_SAMPLES + 7
        self.assertEqual(self.post(body(1, count))[:2], (200, {"ack": count}))
        self.assertEqual(self.stored(), list(range(1, count + 1)))

    def test_columns_are_stored_as_the_same_samples_of_an_array(self):
        self.assertIs(self.resume()[1]["columns"], True)
        self.assertEqual(self.post(body(samples=columns(1, 100)))[:2], (200, {"ack": 100}))
        self.post(body(1, 100, epoch="ab" * 8))
        points = self.web.store.points("attic", 0, 1 << 60, 1000)
        by_epoch = [[point._replace(epoch="") for point in points if point.epoch == e] for e in (EPOCH, "ab" * 8)]
        self.assertEqual(len(by_epoch[0]), 100)
        self.assertEqual(*by_epoch)

    def test_only_new_samples_of_columns_are_stored(self):
        self.post(body(1, 3))
        self.assertEqual(self.post(body(samples=columns(2, 10)))[:2], (200, {"ack": 11}))
        self.assertEqual(self.post(body(samples=columns(5, 3)))[:2], (200, {"ack": 7}))
        self.assertEqual(self.post(body(samples=columns(13, 2)))[0], 409)
        gap = {"from": 12, "to": 12, "why": "overwritten"}
        self.assertEqual(self.post(body(samples=columns(13, 2), gaps=[gap]))[:2], (200, {"ack": 14}))
        self.assertEqual(self.stored(), [*range(1, 12), 13, 14])

    def test_failed_sensor_and_unset_clock_are_stored(self):
        item = {**samples(1, 1)[0], "values": {"temperature": None}, "errors": {"temperature": "no answer"}}
        self.assertEqual(self.post(body(samples=[{**item, "clock": "unset"}]))[0], 200)
        self.assertEqual(self.web.store.points("attic", 0, 1 << 60, 1)[0].clock, "unset")

    def test_page_shows_pushing_nodes(self):
        self.post(body(1, 3, sensors=UNITS, every=5.0, on=True))
        status, _, answer = self.web.request("GET", "/api/v1/nodes/attic", self.web.bearer)
        told = json.loads(answer)
        self.assertEqual((status, told["every"], told["on"]), (200, 5.0, True))
        self.assertEqual([sensor["unit"] for sensor in told["sensors"]], ["°C"])
        self.assertEqual(
            self.web.request("GET", "/api/v1/samples", self.web.bearer)[0], 200
        )  # the readings of the page itself

    def test_node_with_two_transports_is_shown_once_and_asked_where_it_is_connected(self):
        for connected in (False, True):
            link = FakeLink("attic", {"temperature": "°C"}, connected)
            self.open(links=[link])
            self.post(body(1, 3, sensors=UNITS, on=True))
            nodes = json.loads(self.web.request("GET", "/api/v1/nodes", self.web.bearer)[2])["nodes"]
            self.assertEqual([(node["name"], node["connected"]) for node in nodes], [("attic", True)])
            with mock.patch.object(command_queue.CommandQueue, "set_sampling", return_value=True) as given:
                asked = self.web.request(
                    "POST", "/api/v1/nodes/attic/send", {**self.web.bearer, "Content-Type": "application/json"},
                    b'{"on": false}',
                )  # fmt: skip
            self.assertEqual(
                (asked[0], link.asked, given.called), (200, [("SEND", False)] if connected else [], not connected)
            )

    def test_fifty_concurrent_senders_are_served(self):
        tokens = {f"node{n}": self.web.tokens.make(f"node{n}") for n in range(50)}
        answers = []

        def send(node, token):
            for first in range(1, 20, 5):
                answers.append(self.post(body(first, 5, node=node), token)[0])

        threads = [threading.Thread(target=send, args=pair) for pair in tokens.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        # A client that finds all places taken receives an error and tries again; in this test the sender stops.
        self.assertLessEqual(set(answers), {200, 409, 503})
        for node, token in tokens.items():
            while self.resume(f"node={node}&epoch={EPOCH}", token)[1]["have"] < 20:
                self.post(body(1, 20, node=node), token)
            self.assertEqual(self.stored(node), list(range(1, 21)))


class Refused(PushCase):
    def setUp(self):
        self.open()

    def error(self, *arguments, **more):
        status, told, headers = self.post(*arguments, **more)
        self.assertEqual(set(told), {"error"})
        self.assertEqual(self.stored(), [])
        return status, told["error"]["text"], headers

    def test_missing_and_wrong_tokens_are_refused(self):
        last = "0" if self.token[-1] != "0" else "1"
        for said in (None, "Bearer", "Bearer ", f"Basic {self.token}", "Bearer x", f"Bearer {self.token[:-1]}{last}",
                     f"Bearer {self.token}0", "Bearer \xe9"):  # fmt: skip
            with self.subTest(said):
                headers = {} if said is None else {"Authorization": said}
                self.web.app.throttle._addresses.clear()  # the limit of attempts has a test below
                for method, path in (
                    ("POST", "/api/v1/samples"),
                    ("GET", f"/api/v1/samples/resume?node=attic&epoch={EPOCH}"),
                ):
                    status, heads, answer = self.web.request(method, path, headers, body() if method == "POST" else b"")
                    self.web.throttle.succeeded("127.0.0.1")
                    self.assertEqual((status, heads["www-authenticate"]), (401, "Bearer"))
                    self.assertIn("get-token", json.loads(answer)["error"]["text"])
        self.assertEqual(self.stored(), [])

    def test_correct_token_is_accepted_after_many_wrong_ones(self):
        """Delays, then 429 with Retry-After, and one log line; other nodes may be behind the same router."""
        throttle = self.web.app.throttle
        path = f"/api/v1/samples/resume?node=attic&epoch={EPOCH}"
        with (
            mock.patch.object(throttle, "_clock", FakeClock()),
            self.assertLogs("pigeonpost.transports.push_server", "WARNING") as logged,
        ):
            for number in range(MOST + 5):
                headers = {"Authorization": f"Bearer {number:032x}"}
                status, heads, _ = self.web.request("GET", path, headers)
                self.assertEqual(status, 401 if number < MOST else 429)
            self.assertGreater(int(heads["retry-after"]), 100)
            self.assertEqual(self.web.request("POST", "/api/v1/samples", headers, body())[0], 429)
            right = {"Authorization": f"Bearer {self.token}"}
            self.assertEqual(self.web.request("GET", path, right)[0], 200)
        self.assertEqual(len(logged.output), 1, logged.output)

    def test_wrong_passwords_count_as_wrong_tokens_do(self):
        """A program may send its API token as the password of Basic authentication."""
        path = f"/api/v1/samples/resume?node=attic&epoch={EPOCH}"
        with (
            mock.patch.object(self.web.app.throttle, "_clock", FakeClock()),
            self.assertLogs("pigeonpost.transports.push_server", "WARNING"),
        ):
            for number in range(MOST + 1):
                pair = base64.b64encode(f"any:{number:040x}".encode()).decode()
                status, _, _ = self.web.request("GET", path, {"Authorization": f"Basic {pair}"})
                self.assertEqual(status, 401 if number < MOST else 429)

    def test_revoked_token_is_refused(self):
        self.web.tokens.revoke("attic")
        self.assertEqual(self.error(body())[0], 401)

    def test_token_of_another_node_is_refused(self):
        other = self.web.tokens.make("cellar")
        status, text, _ = self.error(body(), other)
        self.assertEqual(status, 403)
        self.assertIn("cellar", text)
        self.assertEqual(self.resume(token=other)[0], 403)

    def test_body_without_a_known_token_is_not_read(self):
        head = f"POST /api/v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Length: {PAYLOAD_BYTES}\r\n\r\n"
        status, _, _ = parse_response(self.web.raw(head.encode(), ends=False))
        self.assertEqual(status, 401)

    def test_wrong_shapes_name_the_sample_and_the_key(self):
        good = samples(7, 1)[0]
        for changes, words in (
            ({"samples": [{**good, "values": {"temperature": "21"}}]}, "sample 7: temperature"),
            ({"samples": [{**good, "values": {"Temp": 1}}]}, "sample 7: 'Temp'"),
            ({"samples": [{**good, "time": "yesterday"}]}, "sample 7: time"),
            ({"samples": [{**good, "up": -1}]}, "sample 7: up"),
            ({"samples": [{**good, "clock": "hers"}]}, "sample 7: clock"),
            ({"samples": [{**good, "seq": 0}]}, "seq"),
            ({"samples": ["x"]}, "a sample must be an object"),
            ({"samples": {}}, "columns must be an object"), ({"samples": 7}, "samples"),
            ({"samples": {**columns(7, 2), "up": [1]}}, "samples from 7: up"),
            ({"samples": {**columns(7, 2), "values": {"temperature": [1, "21"]}}}, "sample 8: temperature"),
            ({"gaps": [{"from": 2}]}, "a gap must be"), ({"gaps": 3}, "gaps"),
            ({"epoch": "xyz"}, "epoch"), ({"epoch": ...}, "epoch"), ({"outbox": 5}, "outbox"), ({"node": ...}, "node"),
            ({"sensors": [{"name": "Bad Name"}]}, "sensors"), ({"base": "x"}, "base"),
            ({"samples": samples(1, 2) + samples(5, 1)}, "5"),
        ):  # fmt: skip
            with self.subTest(changes):
                status, text, _ = self.error(body(**changes))
                self.assertEqual(status, 400)
                self.assertIn(words, text)

    def test_invalid_json_is_refused(self):
        for data in (
            b"",
            b"x",
            b"[]",
            b"\xff",
            b'{"node": NaN}',
            b"[" * 100_000,
            b'{"node":"a","node":"a"}',
            b"1" * 5000,
        ):
            with self.subTest(data[:20]):
                self.assertEqual(self.error(data)[0], 400)

    def test_long_body_is_refused(self):
        self.assertEqual(self.error(body(why="x" * PAYLOAD_BYTES))[0], 413)

    def test_invalid_resume_requests_are_refused(self):
        for query in ("", "node=attic", "node=attic&epoch=", "node=attic&epoch=xyz", f"node=attic&epoch={EPOCH},",
                      f"node=attic&epoch={EPOCH}&outbox=x", "node=attic&epoch=" + ",".join([EPOCH] * 401)):  # fmt: skip
            with self.subTest(query[:60]):
                self.assertIn(self.resume(query)[0], (400, 403))

    def test_unsupported_methods_are_answered_with_the_allowed_ones(self):
        self.assertEqual(self.web.request("PUT", "/api/v1/samples", self.bearer())[0], 405)


class FailedCommits(PushCase):
    def setUp(self):
        self.open()
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_failed_commit_is_answered_with_503_and_nothing_is_stored_later(self):
        self.enterContext(mock.patch.object(push_server, "STORE_S", 0.1))
        self.enterContext(mock.patch.object(ingest, "_RETRY_S", 0.02))

        def says_why():
            status, told, headers = self.post(body())
            self.assertEqual(status, 503)
            self.assertGreater(int(headers["retry-after"]), 0)
            return "the disk is full" in told["error"]["text"]

        with mock.patch.object(self.web.store, "put", side_effect=NotStored("the disk is full")):
            wait_until(says_why, "the first attempt to store it has failed")
            self.assertEqual(self.resume()[1]["have"], 0)
        self.web.ingestor.flush(LIMIT_S)
        self.assertEqual(self.stored(), [])
        self.assertEqual(wait_until(lambda: self.post(body())[1].get("ack")), 3)
        self.assertEqual(self.stored(), [1, 2, 3])

    def test_nodes_without_a_token_do_not_displace_nodes_with_one(self):
        with mock.patch.object(unnumbered_sources, "MOST_UNPROVEN", 0):
            self.assertEqual(self.post(body())[0], 200)
            self.assertEqual(self.resume()[0], 200)
        self.assertEqual(self.stored(), [1, 2, 3])

    def test_stopping_server_answers_503(self):
        self.web.ingestor.stop(LIMIT_S)
        self.assertEqual(self.post(body())[0], 503)

    def test_hanging_writer_does_not_block_the_sender_permanently(self):
        hangs, put = threading.Event(), self.web.store.put

        def slow(*arguments):
            hangs.wait(LIMIT_S)
            return put(*arguments)

        with (
            mock.patch.object(self.web.store, "put", side_effect=slow),
            mock.patch.object(push_server, "STORE_S", 0.02),
        ):
            began_s = time.monotonic()
            self.assertEqual(self.post(body())[0], 503)
            self.assertLess(time.monotonic() - began_s, LIMIT_S / 2)
            hangs.set()
        self.assertEqual(wait_until(lambda: self.post(body())[1].get("ack")), 3)
        self.assertEqual(self.stored(), [1, 2, 3])


class BrokenConnections(PushCase):
    def test_connection_cut_at_any_byte_loses_and_repeats_nothing(self):
        self.open()
        step, at = rounds("PIGEONPOST_TEST_CUT_STEP", 7, 1), 0  # the bytes from one cut to the next
        for first in itertools.count(1):
            data = body(first, 1)
            head = f"POST /api/v1/samples HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
            upload = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
            if at >= len(upload):
                break
            at = min(at + step, len(upload))
            with self.web.connect() as sock:
                sock.sendall(upload[:at])
                if first % 2:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # ends with a reset
            have = self.resume()[1]["have"]
            self.assertIn(have, (first - 1, first) if at == len(upload) else (first - 1,))
            self.assertEqual(self.post(data)[:2], (200, {"ack": first}))
        self.assertEqual(self.stored(), list(range(1, first)))

    def test_connection_cut_before_the_answer_loses_nothing(self):
        self.open()
        for first in range(1, 30):
            data = body(first, 1)
            head = f"POST /api/v1/samples HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
            with self.web.connect() as sock:
                sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            self.assertEqual(self.post(data)[:2], (200, {"ack": first}))
        self.assertEqual(self.stored(), list(range(1, 30)))


class Orders(PushCase):
    def test_order_waits_until_the_node_reports_the_state(self):
        self.open()
        self.post(body(1, 1, on=True))
        answers = []
        asking = threading.Thread(target=lambda: answers.append(self.web.links[0].ask("SEND", False, limit_s=LIMIT_S)))
        asking.start()
        wait_until(lambda: self.post(body(1, 1, on=True))[1].get("on") is False, "the node receives the order")
        self.assertEqual(self.resume(f"node=attic&epoch={EPOCH}&on=true")[1]["on"], False)
        self.assertNotIn("on", self.resume(f"node=attic&epoch={EPOCH}&on=false")[1])
        asking.join(LIMIT_S)
        self.assertEqual(answers, [True])
        self.assertIs(self.web.unnumbered_sources.find("attic").on, False)

    def test_caller_stops_waiting_and_the_order_survives_a_restart(self):
        self.open()
        self.post(body(1, 1, on=True))
        self.assertFalse(self.web.links[0].ask("SEND", False, limit_s=0.05))
        self.assertIs(command_queue.CommandQueue(self.web.folder, Faults()).of("attic"), False)

    def test_later_order_replaces_the_first(self):
        orders = command_queue.CommandQueue(temp_folder(self), Faults())
        orders.set_sampling("attic", False, 0.0)
        orders.set_sampling("attic", True, 0.0)
        orders.record("attic", False)
        self.assertIs(orders.of("attic"), True)
        orders.record("attic", True)
        self.assertIsNone(orders.of("attic"))

    def test_order_that_cannot_be_saved_is_refused(self):
        self.open()
        self.post(body(1, 1))
        full = mock.patch.object(json_file, "replace_file", side_effect=DiskError("the disk is full"))
        with full, self.assertLogs("pigeonpost.server.command_queue", "ERROR"):
            self.assertFalse(self.web.links[0].ask("SEND", False, limit_s=LIMIT_S))
        self.assertNotIn("on", self.post(body(1, 1))[1])

    def test_status_is_answered_by_the_next_request(self):
        self.open()
        self.post(body(1, 1))
        self.assertFalse(self.web.links[0].ask("CHECK", limit_s=0.05))
        answers = []
        asking = threading.Thread(target=lambda: answers.append(self.web.links[0].ask("CHECK", limit_s=LIMIT_S)))
        asking.start()
        while not answers:
            self.resume()
        asking.join(LIMIT_S)
        self.assertEqual(answers, [True])

    def test_a_damaged_file_is_a_fault_until_the_next_order(self):
        for text in ("", "[", "[]", "5"):
            folder, faults = temp_folder(self), Faults()
            with open(os.path.join(folder, data_folder.COMMANDS), "w", encoding="ascii") as file:
                file.write(text)
            with self.assertLogs("pigeonpost.core.faults", "ERROR"):
                orders = command_queue.CommandQueue(folder, faults)
            self.assertIsNone(orders.of("attic"))
            self.assertIn("is damaged", faults.present()[data_folder.COMMANDS])
            orders.set_sampling("attic", False, 0.0)
            with self.assertLogs("pigeonpost.core.faults", "WARNING"):
                self.assertEqual(faults.present(), {})
            self.assertIs(command_queue.CommandQueue(folder, faults).of("attic"), False)

    def test_a_damaged_file_is_replaced_by_its_copy(self):
        folder, faults = temp_folder(self), Faults()
        command_queue.CommandQueue(folder, faults).set_sampling("attic", False, 0.0)
        with open(os.path.join(folder, data_folder.COMMANDS), "w", encoding="ascii"):
            pass
        with self.assertLogs("pigeonpost.core.json_file", "ERROR") as logged:
            self.assertIs(command_queue.CommandQueue(folder, faults).of("attic"), False)
        self.assertIn("is damaged (0 bytes); it was replaced by its copy", logged.output[0])
        self.assertEqual(faults.present(), {})


# ---------------------------------------------------------------------------------------------------------- the node


class NodeCase(PushCase):
    def setUp(self):
        self.enterContext(mock.patch.object(push_node, "RETRY_S", 0.005))
        self.outbox = Outbox(Ring("/card", 1024, 128, MemoryDisk()), BOOT)
        self.clock = Clock()

    def settings(self, to, certificate=""):
        path = os.path.join(temp_folder(self), "node.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'[push]\nto = "{to}"\ncertificate = "{certificate}"\n')
        return load(NODE, mock.Mock(config=path, spec=["config"]), "", environment={})

    def start(self, to, certificate="", token=None):
        key = LinkKey(self.token if token is None else token)
        self.info = NodeInfo("attic", UNITS, 10.0, key, self.outbox.switch, dict)
        node = push_node.PushNodeTransport(self.settings(to, certificate), self.info, self.outbox, self.clock)
        node.start()
        self.addCleanup(node.stop, LIMIT_S)
        return node

    def url(self, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.web.address[1]}"

    def take(self, count=1):
        for _ in range(count):
            number = self.outbox.ring.last + len(self.outbox._queue) + 1
            self.outbox.put(taken(value=number, up_ms=number))
        while self.outbox.commit():
            pass

    def arrived(self, count, node="attic"):
        wait_until(lambda: len(self.stored(node)) >= count, f"{count} samples are stored")
        self.assertEqual(len(self.stored(node)), count)


class PushedSamples(NodeCase):
    def test_held_and_new_samples_are_pushed(self):
        self.open()
        self.take(700)
        self.start(self.url())
        self.arrived(700)
        for _ in range(5):
            self.take()
        self.arrived(705)
        self.assertEqual(self.stored(), list(range(1, 706)))
        state = self.web.unnumbered_sources.find("attic")
        self.assertEqual((state.connected, state.on, state.every_s), (True, True, 10.0))
        self.assertEqual(state.sensors, UNITS)
        self.assertLess(abs(state.offset_ms), 60_000)
        self.assertEqual(self.info.last_sent_ms, WALL_MS)

    def test_epochs_of_earlier_starts_are_pushed_in_order(self):
        self.open()
        ring = self.outbox.ring
        for number in range(12):  # so many that one request asks about all
            self.outbox = Outbox(ring, BOOT, new_epoch=lambda number=number: f"{number:016x}")
            self.take(3)
        self.start(self.url())
        self.arrived(36)
        told = self.resume(f"node=attic&epoch={0:016x}&outbox={ring.identity}")[1]
        self.assertEqual((told["have"], told["id"]), (3, 36))

    def test_samples_that_were_overwritten_are_a_gap(self):
        self.open()
        self.outbox = Outbox(Ring("/card", 64, 128, MemoryDisk()), BOOT)
        for _ in range(100):
            self.take()
        self.start(self.url())
        wait_until(lambda: self.stored() and self.stored()[-1] == 100, "the last one is stored")
        gap = self.web.store.gaps(10)[0]
        self.assertEqual((gap["from"], gap["to"]), (1, self.stored()[0] - 1))

    def test_fork_is_detected_and_gets_a_new_epoch(self):
        self.open()
        self.post(body(1, 5, epoch=self.outbox.epoch, outbox=self.outbox.ring.identity))
        self.take(5)
        with self.assertLogs("pigeonpost.transports.push_node", "ERROR"):
            self.start(self.url())
            self.arrived(6)  # its own fifth sample differs
        self.assertEqual(len({point.epoch for point in self.web.store.points("attic", 0, 1 << 60, 100)}), 2)

    def test_node_waits_for_a_server_that_starts_later(self):
        port = free_port()
        self.token = "0" * 32
        with self.assertLogs("pigeonpost.transports.push_node", "WARNING") as logs:
            node = self.start(f"http://127.0.0.1:{port}")
            wait_until(lambda: node._fault, "it has tried")
        self.assertIn(f"127.0.0.1:{port}: Connection refused; the node keeps the samples", logs.output[0])
        self.take(3)
        self.assertIsNone(node.stop(LIMIT_S))

    def test_node_without_a_clock_uses_the_time_of_the_server(self):
        self.open()
        self.clock = FakeClock(wall_ms=0, up_ms=50_000, known=False)
        self.outbox.put(taken(wall_ms=0, up_ms=20_000, clock_set=False))
        self.outbox._boot_id = self.clock.boot_id
        self.outbox.commit()
        self.start(self.url())
        self.arrived(1)
        point = self.web.store.points("attic", 0, 1 << 60, 1)[0]
        self.assertEqual(point.clock, "server")
        self.assertLess(abs(point.time_ms - (Clock().wall_ms() - 30_000)), 60_000)

    def test_restored_server_receives_the_lost_samples_again(self):
        self.open()
        self.enterContext(mock.patch.object(push_node, "POLL_S", 0.01))
        self.take(20)
        self.start(self.url())
        self.arrived(20)
        first = self.web
        self.web = WebHouse(self, transports=[push_server.PushServerTransport])
        self.web.tokens._file.write({"attic": self.token})
        with mock.patch.object(first.ingestor, "marks", self.web.ingestor.marks), \
                mock.patch.object(first.ingestor, "submit", self.web.ingestor.submit):  # fmt: skip
            self.arrived(20)

    def test_orders_reach_the_node_with_its_next_request(self):
        self.open()
        self.enterContext(mock.patch.object(push_node, "POLL_S", 0.01))
        self.enterContext(mock.patch.object(push_node, "POLL_OFF_S", 0.01))
        self.take()
        self.start(self.url())
        self.arrived(1)
        for on in (False, True):
            self.assertTrue(self.web.links[0].ask("SEND", on, limit_s=LIMIT_S))
            self.assertIs(self.outbox.on, on)


class OverTls(NodeCase):
    @classmethod
    def setUpClass(cls):
        cls.paths, cls.other = certificates(cls, "page", "other")

    def setUp(self):
        super().setUp()
        self.open(tls=Tls(*self.paths))

    def test_pinned_certificate_is_accepted(self):
        self.take(20)
        colons = ":".join(fingerprint_of(self.paths[0]).upper()[k : k + 2] for k in range(0, 64, 2))
        self.start(self.url("https"), colons)
        self.arrived(20)

    def test_unpinned_certificate_is_refused_before_the_token_is_sent(self):
        self.take(3)
        other = fingerprint_of(self.other[0])
        with (
            self.assertLogs("pigeonpost.transports.push_node", "WARNING") as logs,
            mock.patch.object(self.web.tokens, "node_of") as asked,
        ):
            node = self.start(self.url("https"), other)
            wait_until(lambda: node._fault, "it has tried")
        self.assertIn(f"expected {other}, found {fingerprint_of(self.paths[0])}", logs.output[0])
        asked.assert_not_called()
        self.assertEqual(self.stored(), [])

    def test_certificate_must_be_trusted_by_the_system_without_a_fingerprint(self):
        self.take(3)
        with self.assertLogs("pigeonpost.transports.push_node", "WARNING") as logs:
            node = self.start(self.url("https"))
            wait_until(lambda: node._fault, "it has tried")
        self.assertIn("CERTIFICATE_VERIFY_FAILED", logs.output[0])
        self.assertIsNone(node.stop(LIMIT_S))
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": self.paths[0]}):
            self.start(self.url("https"))
            self.arrived(3)

    def test_plain_http_to_a_tls_server_is_answered_with_the_remedy(self):
        with self.assertLogs("pigeonpost.transports.push_node", "WARNING") as logs:
            node = self.start(self.url("http"))
            wait_until(lambda: node._fault, "it has tried")
        self.assertIn("answers 400", logs.output[0])


class Scripted:
    """A web server that answers each request with the next of `answers`, and repeats the last one."""

    def __init__(self, test, *answers):
        self.requests = []
        self._answers = list(answers)
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        test.addCleanup(self._thread.join, LIMIT_S)
        test.addCleanup(self._sock.shutdown, socket.SHUT_RDWR)

    def _run(self):
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                self._sock.close()
                return
            with sock:
                sock.settimeout(LIMIT_S)
                try:
                    self._serve(sock)
                except OSError:
                    pass  # the node has disconnected

    def _serve(self, sock):
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                part = sock.recv(1 << 16)
                if not part:
                    return
                data += part
            head, _, data = data.partition(b"\r\n\r\n")
            found = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            length = int(found[0].partition(b":")[2]) if found else 0
            while len(data) < length:
                data += sock.recv(1 << 16)
            self.requests.append((head, data[:length]))
            data = data[length:]
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            sock.sendall(answer or b"")
            if answer is None or answer.endswith(CUT):
                return


def answer(status, told, more=""):
    data = told if isinstance(told, bytes) else json.dumps(told).encode()
    return f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(data)}\r\n\r\n".encode() + data


CUT = b" ... cut"  # an answer with this ending is the last one of its connection
RESUMED = answer(200, {"have": 0})


class Answers(NodeCase):
    """With any answer of the server, the node keeps its samples, logs the reason, and tries again."""

    def setUp(self):
        super().setUp()
        self.token = "0123456789abcdef" * 2
        self.take(3)

    def fault_after(self, *answers):
        server = Scripted(self, *answers)
        with self.assertLogs("pigeonpost.transports.push_node", "WARNING") as logs:
            node = self.start(server.url)
            wait_until(lambda: node._fault, "it has found a fault")
            self.assertTrue(node._thread.is_alive())
            self.assertIsNone(node.stop(LIMIT_S))
        return server, logs.output[0]

    def test_requests_of_the_node_have_the_documented_form(self):
        server = Scripted(self, RESUMED, answer(200, {"ack": 3}))
        self.start(server.url)
        wait_until(lambda: len(server.requests) == 2)
        (asked, _), (pushed, data) = server.requests
        epoch, outbox = self.outbox.epoch, self.outbox.ring.identity
        self.assertTrue(
            asked.startswith(f"GET /api/v1/samples/resume?node=attic&epoch={epoch}&outbox={outbox}".encode())
        )
        self.assertTrue(pushed.startswith(b"POST /api/v1/samples HTTP/1.1\r\n"))
        for head in (asked, pushed):
            self.assertIn(f"Authorization: Bearer {self.token}".encode(), head)
        said = json.loads(data)
        self.assertEqual(
            [said[key] for key in ("node", "outbox", "epoch", "gaps", "base")], ["attic", outbox, epoch, [], 0]
        )
        self.assertEqual([sample["seq"] for sample in said["samples"]], [1, 2, 3])

    def pushed(self, server):
        """Return the samples of each body received."""
        return [json.loads(data)["samples"] for head, data in server.requests if head.startswith(b"POST")]

    def test_columns_are_sent_to_a_server_that_accepts_them_except_single_samples(self):
        server = Scripted(
            self, answer(200, {"have": 0, "columns": True}), answer(200, {"ack": 3}), answer(200, {"ack": 4})
        )
        self.start(server.url)
        wait_until(lambda: len(server.requests) == 2)
        self.take()
        wait_until(lambda: len(server.requests) == 3)
        many, single = self.pushed(server)
        self.assertEqual((many["seq"], len(many["time"]), many["values"]), (1, 3, {"temperature": [1, 2, 3]}))
        self.assertEqual([sample["seq"] for sample in single], [4])

    def test_columns_refused_by_an_older_server_are_sent_as_an_array(self):
        self.enterContext(mock.patch.object(push_node_client, "LONGEST_RETRY_S", 0.005))
        resumed = answer(200, {"have": 0, "columns": True})
        server = Scripted(
            self, resumed, answer(400, {"error": {"text": "samples is an array"}}), resumed, answer(200, {"ack": 3})
        )
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.start(server.url)
        wait_until(lambda: len(server.requests) == 4)
        refused, taken_ = self.pushed(server)
        self.assertEqual((type(refused), [sample["seq"] for sample in taken_]), (dict, [1, 2, 3]))

    def test_pushing_continues_after_the_marks_of_the_server(self):
        server = Scripted(self, answer(200, {"have": 2}), answer(200, {"ack": 3}))
        self.start(server.url)
        wait_until(lambda: len(server.requests) == 2)
        self.assertEqual([sample["seq"] for sample in json.loads(server.requests[1][1])["samples"]], [3])

    def test_path_of_the_address_is_prepended(self):
        server = Scripted(self, RESUMED, answer(200, {"ack": 3}))
        self.start(f"{server.url}/sensors/")
        wait_until(lambda: len(server.requests) == 2)
        self.assertTrue(server.requests[1][0].startswith(b"POST /sensors/api/v1/samples HTTP/1.1\r\n"))

    def test_rejected_token_is_logged_and_tried_again_slowly(self):
        for status in (401, 403):
            with self.subTest(status):
                told = {"error": {"code": "token", "text": "That is no node's token here."}}
                server, said = self.fault_after(answer(status, told))
                self.assertIn(f"rejects this node's token ({status}): That is no node's token here.", said)
                self.assertEqual(len(server.requests), 1)

    def test_each_invalid_answer_is_logged_and_tried_again(self):
        for second, words in (
            (answer(409, {"error": {"text": "sample 2 comes next"}}), "lacks samples before those sent: sample 2"),
            (answer(503, {"error": {"text": "the disk is full"}}, "Retry-After: 1\r\n"), "answers 503: the disk"),
            (answer(400, {"error": "x"}), "answers 400"), (answer(301, {}), "answers 301"),
            (answer(500, b"<html>"), "without a valid JSON"), (answer(200, b"[]"), "without a valid JSON"),
            (answer(200, {"ack": 2}), "acknowledges 2"), (answer(200, {"ack": 99}), "acknowledges 99"),
            (answer(200, {}), "acknowledges None"), (answer(200, {"ack": "3"}), "acknowledges '3'"),
            (answer(200, b" " * 70_000), "more than 65536 bytes"), (b"HTTP/1.1 nonsense\r\n\r\n", "nonsense"),
            (b"SSH-2.0-OpenSSH\r\n", "SSH"), (None, "closed connection"),
        ):  # fmt: skip
            with self.subTest(words):
                _, said = self.fault_after(RESUMED, second)
                self.assertIn(words, said)

    def test_truncated_answer_is_tried_again_soon(self):
        """It is not treated as the answer of another kind of server, which would be tried again rarely."""
        cut_head = b"HTTP/1.1 200 OK\r\nServer:" + CUT
        cut_length = b"HTTP/1.1 200 OK\r\nContent-Length: " + CUT
        cut_body = answer(200, {"ack": 3, "more": "x" * 50})[:-20] + CUT
        server = Scripted(self, RESUMED, cut_body, RESUMED, cut_head, RESUMED, cut_length, RESUMED, None)
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.start(server.url)
        wait_until(lambda: len(server.requests) >= 8, "it has come again")

    def test_invalid_resume_answer_is_logged(self):
        for told in ({}, {"have": -1}, {"have": "3"}, {"have": None}, {"have": 1.5}, {"have": True}):
            with self.subTest(told):
                self.assertIn("reports an invalid mark", self.fault_after(answer(200, told))[1])

    def test_invalid_resume_answer_for_many_epochs_is_logged(self):
        ring = self.outbox.ring
        for number in range(12):  # so many that one request asks about all
            self.outbox = Outbox(ring, BOOT, new_epoch=lambda number=number: f"{number:016x}")
            self.take()
        for marks in ([], 5, None, {f"{1:016x}": 5}, {f"{1:016x}": []}, {f"{1:016x}": [1, 2, 3]}):
            with self.subTest(marks):
                self.assertIn("reports an invalid mark", self.fault_after(answer(200, {"epochs": marks}))[1])

    def test_same_samples_are_pushed_again_after_503(self):
        server = Scripted(
            self, RESUMED, answer(503, {}), RESUMED, None, RESUMED, answer(409, {}), RESUMED, answer(200, {"ack": 3})
        )
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.start(server.url)
        wait_until(lambda: len(server.requests) == 8)
        pushed = [[s["seq"] for s in json.loads(data)["samples"]] for head, data in server.requests if data]
        self.assertEqual(pushed, [[1, 2, 3]] * 4)

    def test_stopping_does_not_wait_for_an_answer(self):
        never = threading.Event()
        self.addCleanup(never.set)
        with mock.patch.object(Scripted, "_serve", lambda self, sock: never.wait(LIMIT_S)):
            node = self.start(Scripted(self).url)
            wait_until(lambda: node._client._connection._link.sock is not None)
            join, limits_s = node._thread.join, iter((0.02, LIMIT_S))  # limits before and after the connection is cut
            began_s = time.monotonic()
            with mock.patch.object(node._thread, "join", lambda _: join(next(limits_s))):
                self.assertIsNone(node.stop(2.0))
            self.assertLess(time.monotonic() - began_s, LIMIT_S / 2)
            never.set()


class NodeSettings(NodeCase):
    def test_missing_token_is_a_settings_error_with_the_remedy(self):
        info = NodeInfo("attic", UNITS, 10.0, None, self.outbox.switch, dict)
        with self.assertRaisesRegex(SettingsError, r"PIGEONPOST_NODE_TOKEN.*get-token attic"):
            push_node.PushNodeTransport(self.settings("http://localhost:1"), info, self.outbox, self.clock)

    def test_invalid_addresses_and_fingerprints_are_refused(self):
        for to in ("localhost:8080", "ftp://x", "http://", "http://a b", "https://host:x", "http://u@h"):
            with self.subTest(to), self.assertRaisesRegex(SettingsError, r"\[push\] to takes"):
                self.settings(to)
        with self.assertRaisesRegex(SettingsError, r"\[push\] certificate takes the SHA-256 fingerprint"):
            self.settings("https://localhost", "ab:cd")

    def test_unencrypted_token_on_the_network_is_warned_of(self):
        with self.assertLogs("pigeonpost.transports.push_node_client", "WARNING") as logs:
            PushClient("http://192.0.2.1:8080", "", "token")
        self.assertIn("unencrypted", logs.output[0])
        with self.assertNoLogs("pigeonpost.transports.push_node_client", "WARNING"):
            PushClient("http://127.0.0.1:8080", "", "token")
            PushClient("https://192.0.2.1:8080", "", "token")


class KeepAlive(PushCase):
    def test_many_pushes_use_one_connection(self):
        self.open()
        head = f"POST /api/v1/samples HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
        with self.web.connect() as sock:
            for first in range(1, 6):
                data = body(first, 1)
                sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                status, headers, told, _ = next_response(_one_answer(sock))
                self.assertEqual((status, json.loads(told)), (200, {"ack": first}))
                self.assertNotIn("connection", headers)


def _one_answer(sock):
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith(b"\n"):
        part = sock.recv(1 << 16)
        assert part, data
        data += part
    return data


if __name__ == "__main__":
    unittest.main()
