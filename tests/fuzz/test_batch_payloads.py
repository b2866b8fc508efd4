"""Bodies of push and MQTT, announcements, and messages from a broker to a node.

Accepted or refused, without side effects.
"""

import unittest
from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import BadArgument, WireError
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.transports import mqtt_node
from pigeonpost.transports.discovery_datagram import (
    DATAGRAM_BYTES,
    MOST_ADDRESSES,
    read_announcement,
    write_announcement,
)
from pigeonpost.transports.discovery_server import DiscoveryServerTransport
from pigeonpost.transports.mqtt_states import State
from pigeonpost.transports.payload import PAYLOAD_BYTES, read_body, sign, split_signature, write_body
from protocol import Gap, sample_body, sample_text
from tests.fuzz import Target, fuzzed, mutated, st
from tests.support import BOOT, EPOCH, MemoryDisk, taken
from tests.test_protocol import INSERTS
from tests.transports.test_payload import HEAD, body, columns, gap, texts, written

TOKEN = "0123456789abcdef0123456789abcdef"
SENSORS = [{"name": "temperature", "unit": "°C"}]
BODIES = (
    written({**HEAD, "every": 10.0, "sensors": SENSORS}, EPOCH, 3, [gap(1, 2, before=3), gap(5, 5)],
            texts(3, 2) + texts(6, 1)),
    write_body({**HEAD, "session": "x", "held": [[EPOCH, 1, 5, 9]]}, EPOCH),
    sign(written(HEAD, EPOCH, None, [], texts(1, 1)), "0" * 64),
    body(samples=columns(3, 3, errors={"temperature": {"1": "x"}}, clock="unset"), gaps=[gap(1, 2)]),
)  # fmt: skip
PIECES = (
    *INSERTS, b'"gaps":[{"from":1,"to":2}]', b'"samples":[]', b'"from":0', b'"to":999999999999999999', b'"before":-1',
    b'"base":1e3', b'"every":1e999', b'{"mac":"', b"[" * 60, b"1" * 5000, b'"node":"a"', b'"sensors":[{"name":7}]',
    b'"samples":{}',
)  # fmt: skip


ANSWERS = (
    b'{"epoch":"%s","ack":3,"re":"0011223344556677"}' % EPOCH.encode(),
    b'{"epoch":"%s","have":2,"re":"0011223344556677","server":"a"}' % EPOCH.encode(),
    b'{"resume":{"id":5,"%s":[3,3]},"ledger":"00000000000000ab","commit":1.0,"time":"2026-11-20T15:36:10Z",'
    b'"clock":"set","re":"0011223344556677"}' % EPOCH.encode(),
    b'{"error":{"code":"auth","text":"x"}}',
)  # fmt: skip


class BatchPayloads(Target, unittest.TestCase):
    corpus = "batch_payloads"
    CPU_S = 3.0  # of a mebibyte
    MEMORY_BYTES = 200 << 20

    def check(self, data):
        mac, body = split_signature(data)
        if mac:
            self.assertEqual(sign(body, mac), data)
        with self.bounded():
            try:
                batch_payload = read_body(data)
            except WireError as error:
                self.assertLess(len(str(error)), 500)
                return
        ends = [(p.first, p.last) if isinstance(p, Gap) else (p[0].seq, p[-1].seq) for p in batch_payload.pieces]
        for (_, last), (first, _) in pairwise(ends):
            self.assertEqual(first, last + 1)
        gaps = [
            {"from": p.first, "to": p.last, "before": p.before, "why": p.why}
            for p in batch_payload.pieces
            if isinstance(p, Gap)
        ]
        samples = [s for p in batch_payload.pieces if not isinstance(p, Gap) for s in p]
        again = [sample_text(s.seq, s.time_ms, s.up_ms, sample_body(s.values, s.errors), s.clock) for s in samples]
        head = {"node": batch_payload.node, "outbox": batch_payload.outbox, "sensors": batch_payload.sensors}
        self.assertEqual(
            read_body(written(head, batch_payload.epoch, batch_payload.base, gaps, again)).pieces,
            batch_payload.pieces,
        )
        batches = batch_payload.batches()
        self.assertEqual(len(batches), len(batch_payload.pieces))

    @fuzzed(lambda: mutated(st.sampled_from(BODIES), PIECES, PAYLOAD_BYTES + 100))
    def test_random_bodies_are_refused_or_decoded(self, data):
        self.check(data)


class Announcements(Target, unittest.TestCase):
    corpus = "announcements"
    CPU_S = 0.5

    def check(self, data):
        clock = FakeClock()
        links = []
        context = SimpleNamespace(
            clock=clock, tokens={"basement": LinkKey(TOKEN)}, links=links, collect=mock.Mock(),
            unnumbered_sources=mock.Mock(), current=lambda name: name,
        )  # fmt: skip
        end = DiscoveryServerTransport(context, ("239.255.50.3", 5003))
        self.addCleanup(end._wake_pipe.close)
        with self.bounded():
            why = end.receive(data[: DATAGRAM_BYTES + 1], "192.168.1.20")
        self.assertEqual(context.collect.called, not why)
        if not why:  # then the token's owner made it
            self.assertTrue(LinkKey(TOKEN).is_signature(split_signature(data)[0], "announce", split_signature(data)[1]))
        try:
            call = read_announcement(split_signature(data)[1])
        except BadArgument:
            return
        self.assertTrue(0 < len(call.addresses) <= MOST_ADDRESSES)

    @fuzzed(lambda: mutated(
        st.builds(lambda: write_announcement(LinkKey(TOKEN), "basement", [("192.168.1.20", 5003)], FakeClock())),
        (*INSERTS, b'"at":["1.2.3.4:5"]', b"0.0.0.0:1", b"\xff", b'"clock":"set"', b"9999-12-31T23:59:59Z"), 2000,
    ))  # fmt: skip
    def test_random_announcements_are_refused_or_decoded(self, data):
        self.check(data)


class Answers(Target, unittest.TestCase):
    """Messages that a node receives on its topic during a session."""

    corpus = "answers"
    CPU_S = 3.0
    MEMORY_BYTES = 100 << 20
    SESSION = "0011223344556677"

    def check(self, data):
        sent = []
        broker = SimpleNamespace(place="b:1", publish=lambda *message: sent.append(message), connected=True)
        with mock.patch.object(mqtt_node, "MqttConnection", lambda *arguments: broker):
            outbox = Outbox(Ring("/card", 64, 128, MemoryDisk()), BOOT, new_epoch=lambda: EPOCH)
            for number in range(1, 6):
                outbox.put(taken(value=number, up_ms=number))
            while outbox.commit():
                pass
            info = NodeInfo("basement", SENSORS, 10.0, None, outbox.switch, dict)
            node = mqtt_node.MqttNodeTransport({("mqtt", "signed"): True}, info, outbox, FakeClock())
            node.conversation.publish_due()
            node.conversation._publisher.session = self.SESSION
            with self.bounded():
                node.conversation.receive(data)
        node.conversation._clock.sleep(10_000)
        before = len(sent)
        node.conversation.publish_due()
        node.conversation._clock.sleep(10_000)
        node.conversation.publish_due()
        acked = max((seq for epoch, seq in node.conversation.acked.items() if epoch == EPOCH), default=0)
        # After any message that is not a valid answer, the node asks again and sends its samples.
        self.assertTrue(len(sent) > before or acked == 5 or node.conversation.state is not State.ASKED)

    @fuzzed(
        lambda: mutated(st.sampled_from(ANSWERS), (*INSERTS, b"[3,3]", b'"id":', b'"re":7', b"1e400"), PAYLOAD_BYTES)
    )
    def test_random_answers_are_refused_or_decoded(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
