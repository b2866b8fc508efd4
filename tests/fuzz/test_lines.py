"""Lines of the link: a decoded line is decoded the same after encoding; a session replies to everything, briefly."""

import unittest

import protocol
from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import WireError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports.tcp_node_session import NodeSession
from pigeonpost.transports.tcp_server_session import ServerSession
from protocol import LARGEST_SEQ, LINE_BYTES, WORDS, decode, encode
from tests.fuzz import Target, fuzzed, mutated, st
from tests.fuzz.test_samples import PIECES, json_texts, sample_texts
from tests.support import BOOT, EPOCH, FakeLedger, MemoryDisk, sensors_line, taken, write_columns
from tests.test_protocol import TIME

TOKEN = "a token of 16 letters or more"
EPOCHS = [f"{n:016x}" for n in range(0xF00, 0xF10)]
SENSORS = [{"name": "temperature", "unit": "°C"}]
NODE_HELLO = {"link": 1, "node": "basement", "outbox": "0b" * 8, "held": [[EPOCH, 1, 9, 1]], "every": 10.0,
              "sensors": SENSORS, "time": TIME}  # fmt: skip
SERVER_HELLO = {"link": 1, "server": "home", "time": TIME, "clock": "set", "nonce": "5e" * 16, "columns": True}
COLUMNS = '{"seq":2,"time":[1795188970123,1],"up":5,"values":{"temperature":[1.5,null]}}'
SEEDS = [line[:-1] for line in (
    encode("HELLO", NODE_HELLO), encode("HELLO", SERVER_HELLO), encode("AUTH", {"token": TOKEN}),
    encode("AUTH", {"mac": "ab" * 32}), encode("HELD", {"held": [[EPOCH, 1, 9, 1]], "more": True}),
    encode("RESUME", {"id": 3, EPOCH: [2, 2]}), encode("RESUME", {"id": 0, "more": True}), encode("SEND", True),
    encode("SENDBACK", False), encode("CHECK"), encode("STATUS", True, "15:36:10", {"time": TIME, "held": 1}),
    sensors_line(EPOCH, 1, 3), sensors_line(EPOCH, 2, 1), encode("ACK", EPOCH, 3), encode("BYE"),
    encode("STATUS", False, None, {}), encode("SENSORS", EPOCH, COLUMNS),
    encode("GAP", EPOCH, {"from": 1, "to": 5, "why": "wet", "before": 2}), encode("ERROR", "auth", {"text": ""}),
)]  # fmt: skip


def lines():
    """Return a strategy for lines of the link, without their ends."""
    simple = st.sampled_from(["ON", "off", "-", "15:36:10", EPOCH, "0", "9" * 18, "9" * 19, "bad-argument"])
    word = st.sampled_from([*WORDS, "SENDACK", "hello", "ſEND"])
    built = st.tuples(word, st.lists(simple, max_size=2), json_texts()).map(lambda p: " ".join((p[0], *p[1], p[2])))
    sampled = sample_texts().map(f"SENSORS {EPOCH} {{}}".format)
    return mutated(st.sampled_from(SEEDS) | (built | sampled).map(str.encode), PIECES, LINE_BYTES)


def conversations():
    """Return a strategy for successive lines in a stream; a dot stands for elapsed time."""
    return st.lists(st.sampled_from(SEEDS[:3]) | st.sampled_from([*SEEDS, b"."]) | lines(), max_size=12).map(b"\n".join)


def again(word, args):
    """Return the decoded form of a line that encodes this decoded line."""
    return decode(encode(word, *(texts(arg) if isinstance(arg, list) else arg for arg in args)))


def texts(batches):
    """Return the content of a line with these samples: columns if there are several samples of the same kind."""
    if len(batches) == 1 and len(batches[0]) > 1:
        return write_columns(batches[0])
    return [text(sample) for batch in batches for sample in batch]


def text(sample):
    body = protocol.sample_body(sample.values, sample.errors)
    return protocol.sample_text(sample.seq, sample.time_ms, sample.up_ms, body, sample.clock)


class Lines(Target, unittest.TestCase):
    corpus = "lines"

    def check(self, data):
        with self.bounded():
            try:
                message = decode(data)
            except WireError as error:
                message = decode(protocol.error_line(error, data))
                self.assertEqual((message.word, message.args[0]), ("ERROR", error.code))
                return
        if message is not None:
            self.assertEqual(again(*message), message)
            self.assertIn(data.rstrip(b"\r\n").split(b" ")[0].upper(), (message.word.encode(), b"SENDACK"))
            self.assertTrue(all(arg <= LARGEST_SEQ for arg in message.args if type(arg) is int))

    @fuzzed(lines)
    def test_random_lines_are_refused_or_decoded(self, data):
        self.check(data)


MOST_LINES = 1000  # of a session: a repeated part with a line's end gives 5,000 lines of 0.2 ms each (measured)


class Sessions(Target, unittest.TestCase):
    """Both ends, each with and without a token, receive the same lines."""

    corpus = "sessions"

    def check(self, data):
        for key in (None, LinkKey(TOKEN)):
            ledger, clock = FakeLedger(), FakeClock()
            state, keys = NodeState("192.0.2.5:5003", "basement"), {"basement": key} if key else {}
            self.talk(ServerSession("home", ledger, keys, state, clock, int), clock, data)
            self.check_ledger(ledger, key)
            outbox = Outbox(Ring("/card", 64, 128, MemoryDisk()), BOOT, new_epoch=iter((EPOCH, *EPOCHS)).__next__)
            for number in range(1, 6):
                outbox.put(taken(number, up_ms=number))
            while outbox.commit():
                pass
            info = NodeInfo("basement", SENSORS, 10.0, key, outbox.switch, dict)
            self.talk(NodeSession(info, outbox, clock, "192.0.2.7:1", True), clock, data)
            self.assertEqual([slot.up_ms for slot in outbox.read(1, 5)], [1, 2, 3, 4, 5])

    def talk(self, session, clock, data):
        """Pass every line to the session until it closes; check that its output consists of few valid lines."""
        with self.bounded():
            for line in data.split(b"\n")[:MOST_LINES]:
                if line == b".":
                    clock.sleep(7)
                    session.tick()
                else:
                    session.receive(line)
                while isinstance(session, NodeSession) and session.stream():
                    pass
                said = session.take_output()
                self.assertLess(len(said), 16 << 10, line[:80])
                for answer in said.splitlines(keepends=True):
                    self.assertIsNotNone(decode(answer))
                if session.closing:
                    break

    def check_ledger(self, ledger, key):
        """Check that stored samples can be encoded and are stored once, and that nothing is stored without a proof."""
        self.assertFalse(key and (ledger.rows or ledger.gaps))
        for _, epoch, sample in ledger.rows:
            self.assertEqual(again("SENSORS", (epoch, [SampleBatch.of([sample])])).args[1], [SampleBatch.of([sample])])
            self.assertEqual(ledger.seqs(epoch), sorted(set(ledger.seqs(epoch))))
        for _, _, first, last, before, why in ledger.gaps:
            self.assertTrue(0 < first <= last + 1 <= LARGEST_SEQ + 1 and 0 <= before <= LARGEST_SEQ and len(why) <= 80)

    @fuzzed(conversations)
    def test_random_sessions_end_with_an_error_code(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
