"""Both ends of a TCP session in one thread, with a clock that advances on demand; without sockets."""

import copy
import itertools
import json
import logging
import random
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.clock import FakeClock, rfc3339
from pigeonpost.core.data_folder import OUTBOX
from pigeonpost.core.errors import Unexpected
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.node_status import NodeState
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.transports import tcp_faults, tcp_node_session, tcp_server_session
from pigeonpost.transports.tcp_node_session import NodeSession
from pigeonpost.transports.tcp_server_session import ServerSession
from pigeonpost.transports.tcp_session import MOST_WARNINGS, parts
from protocol import BATCH_SAMPLES, LINE_BYTES, WINDOW_SAMPLES, Message, decode, encode, is_count
from tests.page_support import use_memory_disk
from tests.support import WALL_MS, FakeLedger, Killed, MemoryDisk, rounds, samples_of, sensors_line, taken, temp_folder

TOKEN = "a token of 16 letters or more"
NONCE = "5e" * 16
E = [f"{n:016x}" for n in range(0xE0, 0xF0)]
SENSORS = [{"name": "temperature", "unit": "°C"}]


LONG_LINES = mock.patch("pigeonpost.node.send_cursor.FIRST_SAMPLES", 500)  # from the first line on


class SessionCase(unittest.TestCase):
    """A node with its outbox, and a server with its ledger."""

    def setUp(self):
        self.clock = FakeClock(WALL_MS)
        self.server_clock = FakeClock(WALL_MS + 5000, up_ms=1)
        self.disk = MemoryDisk()
        self.ledger = FakeLedger()
        self.epochs = iter(E)
        self.quiet = self.enterContext(self.silence())
        self.info = None

    def silence(self):
        """Disable the log of sessions; tests of log lines enable it."""
        return _Silence()

    def start_node(self, slots=64, width=128, key=None, every_s=10.0):
        """Start the node as the program does: with the same outbox and a new epoch."""
        ring = Ring("/card", slots, width, self.disk)
        self.outbox = Outbox(ring, self.clock.boot_id, new_epoch=self.epochs.__next__)
        self.info = NodeInfo("basement", SENSORS, every_s, key, self.outbox.switch, lambda: {"held": ring.last})
        return self.outbox

    def take(self, count=1, **more):
        """Take samples whose value and uptime are their running number, and add them to the outbox."""
        for _ in range(count):
            number = self.outbox.ring.last + len(self.outbox._queue) + 1
            given = {"values": {"temperature": number}, "wall_ms": WALL_MS + number, "up_ms": number}
            self.outbox.put(taken(**{**given, **more}))
        while self.outbox.commit():
            pass

    def node(self, local=True):
        return NodeSession(self.info, self.outbox, self.clock, "192.0.2.7:1234", local)

    def server(self, keys=None, expected="basement", ledger=None, name="home", **more):
        self.state = NodeState("192.0.2.5:5003", expected)
        self.answers = []
        return ServerSession(
            name,
            ledger or self.ledger,
            {} if keys is None else keys,
            self.state,
            self.server_clock,
            lambda: None,
            self.note_answer,
            **more,
        )

    def note_answer(self, *answer):
        self.answers.append(answer)

    def say(self, session, word, *args):
        session.receive(encode(word, *args))

    def heard(self, session):
        """Return the messages that a session sends now, without the stream."""
        return [decode(line) for line in session.take_output().splitlines()]

    def streamed(self, session):
        """Return all messages that a node sends now, including samples."""
        while session.stream():
            pass
        return self.heard(session)

    def pump(self, node, server):
        """Exchange lines until neither end has more to send; return all messages as (side, message)."""
        said = []
        while True:
            to_node = server.take_output()
            for line in to_node.splitlines():
                said.append(("server", decode(line)))
                node.receive(line)
            while node.stream():
                pass
            to_server = node.take_output()
            said += [("node", decode(line)) for line in to_server.splitlines()]
            server.receive_lines(to_server.splitlines())
            if not to_node and not to_server:
                return said

    def collect(self, **more):
        """Open a session from the beginning, and return both ends."""
        node, server = self.node(), self.server(**more)
        self.pump(node, server)
        self.assertTrue(server.collecting)
        return node, server

    def open_as_server(self, node, resume, server="home", **hello):
        """Send the lines of a server by hand; return the node's answer to HELLO."""
        self.say(node, "HELLO", {"link": 1, "server": server, "ledger": "1" * 16, "clock": "unset", **hello})
        answer = self.heard(node)
        self.say(node, "RESUME", resume)
        return answer

    def open_as_node(self, server, *held, **hello):
        """Send the lines of a node by hand; return the server's answer."""
        self.heard(server)
        usual = {"link": 1, "node": "basement", "outbox": "0b" * 8, "held": list(held), "sensors": SENSORS}
        self.say(server, "HELLO", {**usual, **hello})
        return self.heard(server)

    def assert_refused(self, session, code, *words, closes=False):
        """Check that the last message of the session is this ERROR."""
        error = self.heard(session)[-1]
        self.assertEqual((error.word, error.args[0]), ("ERROR", code))
        for word in words:
            self.assertIn(word, error.args[1]["text"])
        self.assertEqual(session.closing, closes)


class _Silence:
    def __enter__(self):
        logging.disable(logging.CRITICAL)

    def __exit__(self, *_):
        logging.disable(logging.NOTSET)


class Opening(SessionCase):
    def test_session_is_opened_and_samples_are_acknowledged(self):
        self.start_node()
        self.take(3)
        said = self.pump(self.node(), self.server())
        self.assertEqual(
            [(side, message.word) for side, message in said],
            [
                ("server", "HELLO"), ("node", "HELLO"), ("server", "RESUME"), ("server", "CHECK"), ("node", "STATUS"),
                ("node", "SENSORS"), ("server", "ACK"),
            ],
        )  # fmt: skip
        hello, answer, resume, _, status, samples, ack = [message.args for _, message in said]
        self.assertEqual(hello[0], {
            "link": 1, "server": "home", "ledger": self.ledger.identity,
            "time": "2026-11-20T15:36:15.123Z", "clock": "set", "columns": True, "window": 65_536,
        })  # fmt: skip
        self.assertEqual(answer[0], {
            "link": 1, "node": "basement", "outbox": self.outbox.ring.identity, "held": [[E[0], 1, 3, 1]],
            "every": 10.0, "sensors": SENSORS, "time": "2026-11-20T15:36:10.123Z", "columns": True,
        })  # fmt: skip
        self.assertEqual(resume[0], {"id": 0})
        self.assertEqual(status[:2], (True, None))
        self.assertEqual(samples[0], E[0])
        self.assertEqual([(s.seq, s.time_ms, s.up_ms, s.values) for s in samples[1][0]], [
            (n, WALL_MS + n, n, {"temperature": n}) for n in (1, 2, 3)
        ])  # fmt: skip
        self.assertEqual(ack, (E[0], 3))
        self.assertEqual(self.ledger.seqs(E[0]), [1, 2, 3])
        self.assertEqual(self.ledger.tops, {self.outbox.ring.identity: 3})

    def test_new_samples_are_sent_as_they_are_taken(self):
        self.start_node()
        node, server = self.collect()
        for count in (1, 2, 5):
            self.take(count)
            said = [message.word for _, message in self.pump(node, server)]
            self.assertEqual(said, ["SENSORS", "ACK"])
        self.assertEqual(self.ledger.seqs(E[0]), list(range(1, 9)))

    def test_stored_samples_are_not_sent_again(self):
        self.start_node()
        self.take(5)
        self.collect()
        self.start_node()
        self.take(2)
        node, server = self.node(), self.server()
        said = self.pump(node, server)
        resume = next(message.args[0] for _, message in said if message.word == "RESUME")
        self.assertEqual(resume, {"id": 5, E[0]: [5, 5]})
        self.assertEqual([m.args[0] for _, m in said if m.word == "SENSORS"], [E[1]])
        self.assertEqual((self.ledger.repeats, self.ledger.seqs(E[1])), (0, [1, 2]))

    def test_current_epoch_is_listed_before_its_first_sample(self):
        self.start_node()
        self.take(3)
        self.start_node()
        self.assertEqual(
            self.open_as_server(self.node(), {"id": 0})[0].args[0]["held"], [[E[0], 1, 3, 1], [E[1], 1, 0, 4]]
        )

    @mock.patch("pigeonpost.transports.tcp_session.ENTRIES_A_LINE", 50)
    def test_long_lists_continue_in_further_lines(self):
        ring = Ring("/card", 256, 128, self.disk)
        names = [f"{n:016x}" for n in range(1, 131)]
        for number, epoch in enumerate(names, 1):
            ring.append(epoch, 1, self.clock.boot_id, [taken(values={"temperature": number}, up_ms=number)])
        self.start_node()
        for known in (0, 130):
            node, server = self.node(), self.server()
            said = self.pump(node, server)
            words = [message.word for _, message in said]
            lists = [m.args[0] for side, m in said if m.word in ("HELLO", "HELD") and side == "node"]
            self.assertEqual(
                [(len(part["held"]), part.get("more")) for part in lists], [(50, True), (50, True), (31, None)]
            )
            self.assertEqual([entry[0] for part in lists for entry in part["held"]], [*names, E[0]])
            resumes = [m.args[0] for _, m in said if m.word == "RESUME"]
            self.assertEqual([part.get("more") for part in resumes], [True, True, None] if known else [None])
            self.assertEqual(sum(len(part) for part in resumes), known + 1 + 2 * bool(known))
            self.assertEqual(words.count("SENSORS"), 0 if known else 130)
            self.assertEqual(len(self.ledger.rows), 130)
        self.assertEqual(self.ledger.repeats, 0)

    def test_every_line_of_a_list_is_within_the_limit(self):
        number = 10**16
        held = [[f"{n:016x}", number, number, number] for n in range(1200)]
        for items, more in parts(held):
            self.assertLess(len(encode("HELD", {"held": items, **more})), LINE_BYTES)
        resume = [(f"{n:016x}", [10**18 - 1, 2**63 - 1]) for n in range(1200)]
        for items, more in parts(resume):
            self.assertLess(len(encode("RESUME", {"id": 10**18 - 1, **dict(items), **more})), LINE_BYTES)

    def test_list_is_split_into_parts(self):
        self.assertEqual(parts([]), [([], {})])
        self.assertEqual([(len(p), more) for p, more in parts(range(500))], [(500, {})])
        self.assertEqual([(len(p), more) for p, more in parts(range(501))], [(500, {"more": True}), (1, {})])

    def test_unknown_keys_are_ignored(self):
        self.start_node()
        self.take(2)
        node = self.node()
        self.open_as_server(node, {"id": 0, "weather": "fine", "0" * 16: "?", "more": False}, mood="good")
        self.assertEqual([m.word for m in self.streamed(node)], ["SENSORS"])
        self.assertIn("RESUME", [m.word for m in self.open_as_node(self.server(), [E[0], 1, 2, 1], mood="good")])

    def test_words_of_the_other_end_are_refused(self):
        self.start_node()
        node, server = self.collect()
        for word, args in (
            ("HELD", ({"held": []},)), ("SENDBACK", (True,)), ("STATUS", (True, None, {})), ("GAP", (E[0], {})),
        ):  # fmt: skip
            self.say(node, word, *args)
            self.assert_refused(node, "unknown-word", f"{word} is a word of the node", "HELLO, AUTH, RESUME, SEND")
        node.receive(sensors_line(E[0], 1, 1))
        self.assert_refused(node, "unknown-word")
        for word, args in (
            ("AUTH", ({},)), ("RESUME", ({"id": 0},)), ("SEND", (True,)), ("CHECK", ()), ("ACK", (E[0], 1)),
        ):  # fmt: skip
            self.say(server, word, *args)
            self.assert_refused(server, "unknown-word", f"{word} is a word of the server")

    def test_invalid_line_does_not_end_the_session(self):
        self.start_node()
        node, server = self.collect()
        for session in (node, server):
            for line, code in (
                (b"\xff\xfe", "not-utf8"), (b"HELLO", "bad-argument"), (b"what?", "unknown-word"),
                (b"ACK x 1", "bad-argument"),
            ):  # fmt: skip
                session.receive(line)
                self.assert_refused(session, code)
        self.take(1)
        self.pump(node, server)
        self.assertEqual(self.ledger.seqs(E[0]), [1])

    def test_empty_lines_are_ignored(self):
        self.start_node()
        node, _ = self.collect()
        for line in (b"", b"\r", b"  "):
            node.receive(line)
        self.assertEqual(self.heard(node), [])

    def test_bye_closes_the_session(self):
        self.start_node()
        for session in self.collect():
            self.say(session, "BYE")
            self.assertTrue(session.closing)
            self.assertEqual(self.heard(session), [])

    def test_lines_after_the_end_are_ignored(self):
        """Lines received together with the line that ended the session are neither processed nor answered."""
        self.start_node()
        node = self.node()
        self.say(node, "BYE")
        for line in (b"SEND OFF", b"CHECK", b"nonsense", b"\xff"):
            node.receive(line)
        self.assertEqual(self.heard(node), [])
        self.assertTrue(self.outbox.on)

    def test_names_of_both_ends_must_be_valid(self):
        self.start_node()
        for name in ("", "-x", "a" * 64, "a b", 5, None, ["home"], "hé"):
            node = self.node()
            self.say(node, "HELLO", {"link": 1, "server": name})
            self.assert_refused(node, "bad-argument", "server's name")
            server = self.server(expected="")
            self.assertEqual(self.open_as_node(server, node=name)[-1].args[0], "bad-argument")
            self.assertEqual(self.state.name, "")

    def test_unsupported_version_is_refused_with_the_supported_one(self):
        self.start_node()
        for link in (0, 2, "1", None, 1.5):
            node, server = self.node(), self.server()
            self.say(node, "HELLO", {"link": link, "server": "home"})
            self.assert_refused(node, "version", "speaks link 1", closes=True)
            self.heard(server)
            self.say(server, "HELLO", {"link": link, "node": "basement"})
            self.assert_refused(server, "version", "speaks link 1", closes=True)

    def test_second_hello_is_refused(self):
        self.start_node()
        node, server = self.collect()
        self.say(node, "HELLO", {"link": 1, "server": "home"})
        self.assert_refused(node, "expected", closes=True)
        self.say(server, "HELLO", {"link": 1, "node": "basement", "outbox": "0" * 16})
        self.assert_refused(server, "expected", closes=True)

    def test_resume_is_accepted_once_after_hello(self):
        self.start_node()
        node = self.node()
        self.say(node, "RESUME", {"id": 0})
        self.assert_refused(node, "expected", "after HELLO", closes=True)
        node, _ = self.collect()
        self.say(node, "RESUME", {"id": 0})
        self.assert_refused(node, "expected", closes=True)

    def test_invalid_resume_is_refused(self):
        self.start_node()
        self.take(3)
        for entry in (5, [], [1], [1, 2, 3], [-1, 5], ["1", 5], [1.0, 5], [True, 5], None, {}, [10**18, 1]):
            node = self.node()
            self.open_as_server(node, {"id": 0, E[0]: entry})
            self.assert_refused(node, "bad-argument", "highest seq stored")
            self.assertFalse(node.stream())

    def test_unexpected_node_is_refused(self):
        server = self.server(expected="attic")
        answer = self.open_as_node(server)
        self.assertEqual(answer[-1].args[0], "expected")
        self.assertIn("'attic'", answer[-1].args[1]["text"])
        self.assertTrue(server.closing)

    def test_invalid_hello_opens_no_session(self):
        for hello in (
            {"outbox": "x"}, {"outbox": 5}, {"outbox": None}, {"sensors": 5}, {"sensors": [{}]}, {"sensors": "abc"},
            {"sensors": [{"name": "A"}]}, {"sensors": [{"name": "a", "unit": 5}]}, {"sensors": [{"name": ["a"]}]},
            {"sensors": [{"name": "a", "unit": "x" * 33}]}, {"sensors": None}, {"held": 5}, {"held": None},
            {"held": [[E[0], 1, 2]]}, {"held": [[E[0], 1, 2, -3]]}, {"held": [["x", 1, 2, 3]]}, {"held": ["abcd"]},
            {"held": [[E[0], 1, 2, 10**18]]}, {"held": [[E[0], 1, 2, True]]}, {"held": [[5, 1, 2, 3]]},
        ):  # fmt: skip
            with self.subTest(hello):
                server = self.server()
                error = self.open_as_node(server, **hello)[-1]
                self.assertEqual((error.word, error.args[0]), ("ERROR", "bad-argument"))
                server.receive(sensors_line(E[0], 1, 1))
                self.assertTrue(server.closing)
                self.assertFalse(server.collecting)
        self.assertEqual(self.ledger.rows, [])

    def test_huge_numbers_do_no_harm(self):
        """Python reads integers of thousands of digits, but neither a float nor a database accepts them."""
        for every in (10**400, -(10**400), 0, -5, 1e300, "10", None, [], True):
            server = self.server()
            self.assertIn("RESUME", [m.word for m in self.open_as_node(server, every=every)])
            self.assertIn(self.state.every_s, (None, 1.0))
        for value in (0, 10**18 - 1):
            self.assertTrue(is_count(value))
        for value in (-1, 10**18, 10**400, 1.0, True, None, "1"):
            self.assertFalse(is_count(value))

    def test_node_at_an_address_without_a_name_reports_its_name(self):
        self.start_node()
        self.collect(expected="")
        self.assertEqual((self.state.name, self.state.every_s, self.state.sensors), ("basement", 10.0, SENSORS))
        self.assertEqual((self.state.connected, self.state.fault), (True, ""))
        self.assertEqual(self.state.offset_ms, -5000)

    def test_round_trip_and_start_of_collecting_are_recorded(self):
        self.start_node()
        node, server = self.node(), self.server()
        for line in server.take_output().splitlines():
            node.receive(line)
        self.server_clock.sleep(0.25)
        for line in node.take_output().splitlines():
            server.receive(line)
        self.assertEqual((self.state.round_trip_ms, self.state.offset_ms), (250.0, -5125))
        server.take_output()
        self.assertEqual(self.state.since_ms, self.server_clock.wall_ms())

    def test_node_that_uses_tls_is_refused_without_it(self):
        for pin in ("", "ab" * 32):
            server = self.server(pins={"basement": pin})
            answer = self.open_as_node(server)[-1]
            self.assertEqual(answer.args[0], "expected")
            self.assertIn("by TLS only", answer.args[1]["text"])
            self.assertTrue(server.closing)
            self.assertEqual(server.fault, tcp_faults.describe(tcp_faults.PLAIN_TEXT, "basement"))

    @mock.patch("pigeonpost.transports.tcp_server_session.MOST_EPOCHS", 10_000)
    def test_endless_lists_cost_no_memory(self):
        most_epochs = tcp_server_session.MOST_EPOCHS
        self.start_node()
        self.take(2)
        node = self.node()
        self.say(node, "HELLO", {"link": 1, "server": "home"})
        numbers = itertools.count()
        for _ in range(100):
            names = {f"{next(numbers):016x}": [1, 1] for _ in range(500)}
            self.say(node, "RESUME", {"id": 0, **names, "more": True})
        self.assertLess(len(node._resume), 5)
        server = self.server()
        self.open_as_node(server, more=True)
        lines = 0
        while not server.closing:
            held = [[f"{next(numbers):016x}", 1, 1, 1] for _ in range(500)]
            self.say(server, "HELD", {"held": held, "more": True})
            lines += 1
            self.assertLessEqual(len(server._bases), most_epochs + 500)
        self.assertEqual(lines, most_epochs // 500 + 1)
        self.assert_refused(server, "expected", closes=True)

    def test_log_lines_of_one_session_are_limited(self):
        self.start_node()
        node = self.node()
        logging.disable(logging.NOTSET)
        with self.assertLogs("pigeonpost.transports.tcp_session", "WARNING") as logged:
            for n in range(1000):
                node.receive(b"nonsense %d" % n)
                self.say(node, "ERROR", "oh", {"text": f"no {n}"})
            self.say(node, "ACK", E[0], 1)
        self.assertEqual(len(logged.output), MOST_WARNINGS + 1)
        self.assertIn("further warnings of this session are not logged", logged.output[-2])
        self.assertIn("expected", logged.output[-1])  # the reason for the end is always logged


class Resuming(SessionCase):
    """The store is queried in another thread, which takes some time."""

    def open(self, **hello):
        self.asked = []
        server = self.server(run_apart=lambda find, answer: self.asked.append((find, answer)))
        self.open_as_node(server, [E[0], 1, 9, 1], **hello)
        return server

    def test_resuming_lasts_until_the_owner_processes_the_answer(self):
        server = self.open()
        self.assertEqual((server.is_resuming, server.collecting, self.heard(server)), (True, False, []))
        ((find, answer),) = self.asked
        answer(find)
        self.assertEqual((server.is_resuming, server.collecting), (True, False))  # the answer came from another thread
        self.assertEqual([message.word for message in self.heard(server)], ["RESUME", "CHECK"])
        self.assertEqual((server.is_resuming, server.collecting), (False, True))

    def test_store_is_queried_once_after_all_epochs_are_listed(self):
        server = self.open(more=True)
        self.assertEqual((self.asked, server.is_resuming), ([], False))
        for number in (10, 11, 12):  # lines after the last one change nothing, before or after the answer
            self.say(server, "HELD", {"held": [[E[1], 1, 9, number]]})
            ((find, answer),) = self.asked
            self.assertIs(server.is_resuming, number < 12)
            if number == 11:
                answer(find)
                self.heard(server)

    def test_expected_answers_of_the_node_are_tracked(self):
        """In addition to samples: its HELLO, then answers to commands."""
        server = self.server()
        self.assertTrue(server.is_asked)
        self.open_as_node(server, [E[0], 1, 9, 1])
        self.assertTrue(server.is_asked)  # CHECK
        self.say(server, "STATUS", True, None, {})
        for words, answer in ((("CHECK",), ("STATUS", True, None, {})), (("SEND", False), ("SENDBACK", False))):
            self.assertFalse(server.is_asked)
            server.ask(*words)
            self.heard(server)
            self.assertTrue(server.is_asked)
            self.say(server, *answer)
        self.assertFalse(server.is_asked)


class Streaming(SessionCase):
    def lines(self, messages):
        """Return SENSORS and GAP lines in short; lines of samples split only by the end of the file count as one."""
        short = []
        for word, args in messages:
            if word == "SENSORS":
                epoch, first, last = args[0], args[1][0].seq, args[1][-1].last
                if short and (short[-1][0], short[-1][-1]) == (epoch, first - 1) and last - short[-1][1] < 16:
                    first = short.pop()[1]
                short.append((epoch, first, last))
            elif word == "GAP":
                short.append((args[0], args[1]))
        return short

    def test_the_first_lines_are_short(self):
        """Otherwise no sample of a backlog would pass a network that cuts every connection after some kilobytes."""
        self.start_node(slots=8192)
        self.take(2000)
        for _ in range(2):  # again in every session
            node = self.node()
            self.open_as_server(node, {"id": 0})
            lengths = [last - first + 1 for _, first, last in self.lines(self.streamed(node))]
            self.assertEqual(lengths, [16, 32, 64, 128, 256, 500, 500, 500, 4])

    def test_status_contains_the_number_of_unacknowledged_samples(self):
        self.start_node(slots=8192)
        self.take(40)
        node = self.node()
        self.say(node, "CHECK")
        self.assertNotIn("waiting", self.heard(node)[-1].args[2])  # no server collects in this session
        self.open_as_server(node, {"id": 0})
        self.streamed(node)
        for acked in (0, 16, 40):
            if acked:
                self.say(node, "ACK", E[0], acked)
            self.say(node, "CHECK")
            (status,) = [message for message in self.heard(node) if message.word == "STATUS"]
            self.assertEqual(status.args[2]["waiting"], 40 - acked)

    @LONG_LINES
    def test_line_has_500_samples_and_window_5000(self):
        self.start_node(slots=8192)
        self.take(6200)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        expected = [(E[0], 1 + 500 * k, 500 + 500 * k) for k in range(10)]
        self.assertEqual(self.lines(self.streamed(node)), expected)
        self.assertEqual((BATCH_SAMPLES, WINDOW_SAMPLES), (500, 5000))
        self.assertFalse(node.stream())
        self.say(node, "ACK", E[0], 3)
        self.assertEqual(self.lines(self.streamed(node)), [(E[0], 5001, 5003)])
        self.say(node, "ACK", E[0], 1200)
        self.assertEqual(self.lines(self.streamed(node)), [(E[0], 5004, 5503), (E[0], 5504, 6003), (E[0], 6004, 6200)])
        self.say(node, "ACK", E[0], 6200)
        self.take(1)
        self.assertEqual(self.lines(self.streamed(node)), [(E[0], 6201, 6201)])

    def test_window_counts_all_epochs_together(self):
        self.start_node(slots=16_384)
        self.take(3000)
        self.start_node()
        self.take(3000)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        self.assertEqual(self.lines(self.streamed(node))[-1], (E[1], 1501, 2000))
        self.say(node, "ACK", E[1], 2000)  # possible, since epochs are committed in any order
        self.assertEqual(self.lines(self.streamed(node))[-1], (E[1], 2501, 3000))

    def test_lower_ack_takes_nothing_back(self):
        self.start_node(slots=8192)
        self.take(6000)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        self.streamed(node)
        for seq in (800, 10, 0, 800):
            self.say(node, "ACK", E[0], seq)
        self.assertEqual(self.lines(self.streamed(node))[-1][2], 5800)

    @LONG_LINES
    def test_line_has_fewer_samples_if_it_would_be_too_long(self):
        self.start_node(slots=256, width=4096)
        values = {f"a_rather_long_name_for_a_{k}": k / 7 for k in range(60)}
        self.take(100, values=values)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        while node.stream():
            pass
        lines = node.take_output().splitlines(keepends=True)
        self.assertTrue(
            all(LINE_BYTES - 4096 < len(line) <= LINE_BYTES for line in lines[:-1]), [len(x) for x in lines]
        )
        samples = [s for line in lines for s in samples_of(line)]
        self.assertEqual([s.seq for s in samples], list(range(1, 101)))
        self.assertEqual(samples[50].values, values)

    def test_capacity_of_a_line_excludes_its_head(self):
        self.assertEqual(len(encode("SENSORS", E[0], "x" * tcp_node_session._ROOM_BYTES)), LINE_BYTES)

    def check_lengths(self, lengths, count, slots, left):
        """Check that a line is filled exactly: errors of any length make no line too long.

        In the longest line, fewer than `left` bytes are free.
        """
        for length in lengths:
            self.setUp()
            self.start_node(slots=slots, width=512)
            self.take(count, values={"t": None}, errors={"t": "°" * length})
            node = self.node()
            self.open_as_server(node, {"id": 0})
            while node.stream():
                pass
            lines = node.take_output().splitlines(keepends=True)
            longest = max(map(len, lines))
            self.assertTrue(LINE_BYTES - left < longest <= LINE_BYTES, longest)
            self.assertEqual(sum(len(samples_of(line)) for line in lines), count)

    def test_lines_of_every_length_are_within_the_limit(self):
        self.check_lengths(range(100, 160, 9), 500, 512, left=512)

    def test_overwritten_samples_become_a_gap(self):
        self.start_node(slots=8)
        self.take(20)
        for have, gap in (
            (None, {"from": 1, "to": 12, "why": "overwritten"}),
            (5, {"from": 6, "to": 12, "why": "overwritten"}),
            (11, {"from": 12, "to": 12, "why": "overwritten"}),
        ):
            node = self.node()
            self.open_as_server(node, {"id": have or 0} | ({E[0]: [have, have]} if have else {}))
            self.assertEqual(self.lines(self.streamed(node)), [(E[0], gap), (E[0], 13, 20)])
        node = self.node()
        self.open_as_server(node, {"id": 12, E[0]: [12, 12]})
        self.assertEqual(self.lines(self.streamed(node)), [(E[0], 13, 20)])

    def test_gap_counts_overwritten_samples_of_earlier_epochs(self):
        self.start_node(slots=8)
        self.take(5)
        self.start_node()
        self.take(3)
        self.start_node()
        self.take(9)  # running 9 to 17; held: 10 to 17
        held = [(E[2], 2, 9)]
        for id, gap in (
            (0, {"from": 1, "to": 1, "why": "overwritten", "before": 8}),
            (3, {"from": 1, "to": 1, "why": "overwritten", "before": 5}),
            (8, {"from": 1, "to": 1, "why": "overwritten"}),
            (9, {"from": 1, "to": 1, "why": "overwritten"}),
        ):
            node = self.node()
            self.open_as_server(node, {"id": id})
            self.assertEqual(self.lines(self.streamed(node)), [(E[2], gap), *held])

    def test_gap_is_empty_if_only_earlier_epochs_are_overwritten(self):
        self.start_node(slots=8)
        self.take(5)
        self.start_node()
        self.take(8)
        node = self.node()
        self.open_as_server(node, {"id": 2, E[0]: [2, 2]})
        gap = {"from": 1, "to": 0, "why": "overwritten", "before": 3}
        self.assertEqual(self.lines(self.streamed(node)), [(E[1], gap), (E[1], 1, 8)])

    def test_a_resume_without_an_id_makes_no_guess_about_older_epochs(self):
        self.start_node(slots=8)
        self.take(5)
        self.start_node()
        self.take(8)
        node = self.node()
        self.open_as_server(node, {})
        self.assertEqual(self.lines(self.streamed(node)), [(E[1], 1, 8)])

    @LONG_LINES
    @mock.patch("pigeonpost.node.send_cursor.WINDOW_SAMPLES", 500)
    @mock.patch("pigeonpost.node.send_cursor.BATCH_SAMPLES", 50)
    def test_samples_overwritten_during_the_session_become_a_gap(self):
        self.start_node(slots=1024)
        self.take(500)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        self.assertEqual(len(self.streamed(node)), 10)
        self.take(1024)  # up to 1524: all but 501 to 1524 is overwritten, and acknowledged
        self.say(node, "ACK", E[0], 500)
        self.assertEqual(self.lines(self.streamed(node))[0], (E[0], 501, 550))
        self.take(1024)  # up to 2548
        self.say(node, "ACK", E[0], 1000)
        gap = {"from": 1001, "to": 2548 - 1024, "why": "overwritten"}
        self.assertEqual(self.lines(self.streamed(node))[0], (E[0], gap))

    def test_damaged_samples_become_a_gap_with_that_reason(self):
        self.start_node(slots=16)
        self.take(12)
        path = f"/card/{OUTBOX}"
        spoilt = bytearray(self.disk.content(path))
        for number in (2, 3, 7, 12):
            spoilt[12_288 + number * 128 + 50] ^= 1
        self.disk.lay(path, bytes(spoilt))
        self.outbox.ring._disk = self.disk
        self.outbox.ring._fd = self.disk.open(path, 2)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        self.assertEqual(self.lines(self.streamed(node)), [
            (E[0], 1, 1),
            (E[0], {"from": 2, "to": 3, "why": "damaged"}),
            (E[0], 4, 6),
            (E[0], {"from": 7, "to": 7, "why": "damaged"}),
            (E[0], 8, 11),
            (E[0], {"from": 12, "to": 12, "why": "damaged"}),
        ])  # fmt: skip

    @LONG_LINES
    def test_all_damaged_samples_are_reported_across_line_boundaries(self):
        self.start_node(slots=2048)
        self.take(1200)
        path = f"/card/{OUTBOX}"
        spoilt = bytearray(self.disk.content(path))
        for number in range(400, 1100):
            spoilt[12_288 + number * 128 + 50] ^= 1
        self.disk.lay(path, bytes(spoilt))
        self.outbox.ring._fd = self.disk.open(path, 2)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        lines = self.lines(self.streamed(node))
        self.assertEqual((lines[0], lines[-1]), ((E[0], 1, 399), (E[0], 1100, 1200)))
        gone = [seq for _, gap in lines[1:-1] for seq in range(gap["from"], gap["to"] + 1)]
        self.assertEqual(gone, list(range(400, 1100)))

    def test_a_full_catch_up_is_stored_once_and_in_order(self):
        self.start_node(slots=16_384)
        for count in (1, 700, 3000, 3500):
            self.take(count)
            self.start_node()
        self.take(20)
        self.ledger.at_once = False
        node, server = self.node(), self.server()
        for _ in range(100):
            self.pump(node, server)
            self.ledger.commit(most=3)
        self.assertEqual([len(self.ledger.seqs(e)) for e in E[:5]], [1, 700, 3000, 3500, 20])
        for epoch in E[:5]:
            seqs = self.ledger.seqs(epoch)
            self.assertEqual(seqs, list(range(1, len(seqs) + 1)))
        self.assertEqual((self.ledger.repeats, self.ledger.gaps), (0, []))


class StreamingColumns(Streaming):
    """The same tests with a server that accepts columns."""

    def open_as_server(self, node, resume, server="home", **hello):
        return super().open_as_server(node, resume, server, columns=True, **hello)

    def test_the_first_lines_are_short(self):
        self.start_node(slots=16_384)
        self.take(10_000)
        for _ in range(2):  # again in every session
            node = self.node()
            self.open_as_server(node, {"id": 0}, window=65_536)
            messages = self.streamed(node)
            lengths = [last - first + 1 for _, first, last in self.lines(messages)]
            self.assertEqual(lengths[:8], [16, 32, 64, 128, 256, 512, 1024, 2048])
            self.assertEqual((sum(lengths), max(lengths)), (10_000, 4096))
            self.assertEqual([len(message.args[1]) for message in messages], [1] * len(messages))

    def test_line_has_500_samples_and_window_5000(self):
        """The window is 5,000 if the server does not send one, and at most 1,000,000."""
        self.start_node(slots=16_384)
        self.take(6200)
        for window, believed in (
            (None, 5000), (1, 1), (0, 5000), (-1, 5000), (True, 5000), ("9", 5000), (1e6, 5000), (10**30, 5000),
            (65_536, 65_536), (10**17, 1_000_000),
        ):  # fmt: skip
            node = self.node()
            self.open_as_server(node, {"id": 0}, window=window)
            self.assertEqual(node._cursor.window, believed, window)
        node = self.node()
        self.open_as_server(node, {"id": 0}, window=5500)
        self.assertEqual(sum(len(samples_of(line)) for line in self.streamed(node)), 5500)
        node = self.node()  # a server without "columns" in HELLO never has a wider window
        super().open_as_server(node, {"id": 0}, columns=1, window=65_536)
        self.assertEqual(sum(len(samples_of(line)) for line in self.streamed(node)), 5000)

    def test_window_counts_all_epochs_together(self):
        self.start_node(slots=16_384)
        self.take(3000)
        self.start_node()
        self.take(3000)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        self.assertEqual(self.lines(self.streamed(node))[-1], (E[1], 1, 2000))
        self.say(node, "ACK", E[1], 2000)  # possible, since epochs are committed in any order
        self.assertEqual(self.lines(self.streamed(node))[-1], (E[1], 2001, 3000))

    @mock.patch("pigeonpost.node.send_cursor.COLUMN_SAMPLES", 50)
    def test_samples_overwritten_during_the_session_become_a_gap(self):
        super().test_samples_overwritten_during_the_session_become_a_gap()

    @LONG_LINES
    def test_lines_of_every_length_are_within_the_limit(self):
        """The index of an error counts with its maximum length, so more bytes are left."""
        self.check_lengths(range(90, 150, 9), 700, 1024, left=4096)

    def test_samples_across_the_end_of_the_file_are_one_line(self):
        self.start_node(slots=1024)
        self.take(1500)  # in the file, 477 to 1023 follow 1024 to 1500
        node = self.node()
        self.open_as_server(node, {"id": 1000, E[0]: [1000, 1000]})
        messages = self.streamed(node)
        self.assertEqual([len(m.args[1][0]) for m in messages], [16, 32, 64, 128, 256, 4])
        seqs = [sample.seq for message in messages for sample in samples_of(message)]
        self.assertEqual(seqs, list(range(1001, 1501)))

    def test_a_single_sample_is_one_readable_object(self):
        self.start_node()
        node = self.node()
        self.open_as_server(node, {"id": 0})
        self.take(1)
        self.assertTrue(node.stream())
        self.assertIn(b' [{"seq":1,"time":"2026-', node.take_output())
        self.take(2)
        self.assertTrue(node.stream())
        line = node.take_output()
        self.assertIn(b' {"seq":2,"time":[', line)
        self.assertEqual([sample.values for sample in samples_of(line)], [{"temperature": 2}, {"temperature": 3}])

    def test_a_line_ends_where_the_clock_state_changes(self):
        self.start_node()
        self.take(3, clock_set=False)
        self.outbox._boot_id = "b" * 16  # of an earlier boot
        self.take(2, clock_set=False)
        self.take(4)
        self.clock.known = False
        node = self.node()
        self.open_as_server(node, {"id": 0}, clock="set", time=rfc3339(WALL_MS))
        found = [(batch.seq, batch.last, batch.clock) for m in self.streamed(node) for batch in m.args[1]]
        self.assertEqual(found, [(1, 3, "server"), (4, 5, "unset"), (6, 9, "")])

    def test_a_line_ends_where_the_sensors_change(self):
        self.start_node()
        self.take(3)
        self.take(2, values={"temperature": 1, "light": 2})
        self.take(1, values={"light": 2, "temperature": 1})
        self.take(20)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        found = [(batch.seq, batch.last, batch.names) for m in self.streamed(node) for batch in m.args[1]]
        self.assertEqual(found[:3], [(1, 3, ("temperature",)), (4, 5, ("temperature", "light")),
                                     (6, 6, ("light", "temperature"))])  # fmt: skip
        self.assertEqual((found[3][0], found[-1][1]), (7, 26))

    def test_failed_sensors_keep_their_texts(self):
        self.start_node(width=256)
        taken = []
        for number in range(1, 41):
            fails = number % 3 == 0
            values = {"a": None if fails else number / 8, "b": None if number % 5 == 0 else -number}
            errors = {name: f'no "{name}", {number} °' for name, value in values.items() if value is None}
            taken.append((number, values, errors))
            self.take(1, values=values, errors=errors)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        messages = self.streamed(node)
        self.assertEqual([len(m.args[1]) for m in messages], [1, 1])
        samples = [sample for message in messages for sample in samples_of(message)]
        self.assertEqual([(s.seq, s.values, s.errors) for s in samples], taken)

    @LONG_LINES
    def test_line_has_fewer_samples_if_it_would_be_too_long(self):
        self.start_node(slots=256, width=4096)
        values = {f"a_rather_long_name_for_a_{k}": k / 7 for k in range(60)}
        self.take(150, values=values)
        node = self.node()
        self.open_as_server(node, {"id": 0})
        while node.stream():
            pass
        lines = node.take_output().splitlines(keepends=True)
        self.assertTrue(all(LINE_BYTES - 1500 < len(line) <= LINE_BYTES for line in lines[:-1]), list(map(len, lines)))
        samples = [sample for line in lines for sample in samples_of(line)]
        self.assertEqual([s.seq for s in samples], list(range(1, 151)))
        self.assertEqual(samples[50].values, values)


class ColumnsReceived(SessionCase):
    """The server's processing of columns, of lines received together, and of nodes without these options."""

    def setUp(self):
        super().setUp()
        self.ledger.at_once = False

    def columns(self, first, last, epoch=E[0], **changes):
        """Return a line of columns with these samples."""
        count = last - first + 1
        value = {"seq": first, "time": [WALL_MS + first] + [1] * (count - 1), "up": first,
                 "values": {"temperature": list(range(first, last + 1))}, **changes}  # fmt: skip
        return f"SENSORS {epoch} {json.dumps(value)}".encode()

    def test_each_batch_has_the_agreed_window(self):
        for columns, window in ((True, 65_536), (False, 5000), (None, 5000), (1, 5000)):
            server = self.server()
            self.open_as_node(server, [E[0], 1, 9, 1], columns=columns)
            server.receive(sensors_line(E[0], 1, 3))
            server.receive(encode("GAP", E[0], {"from": 4, "to": 5}))
            server.take_output()
            self.assertEqual([batch.window for batch in self.ledger._waiting], [window] * 2)
            self.ledger.forget()

    def test_older_node_sends_arrays_to_this_server(self):
        """An older node ignores unknown keys of HELLO, and sends arrays."""
        server = self.server()
        (resume, _) = self.open_as_node(server, [E[0], 1, 1000, 1])
        self.assertEqual(resume, Message("RESUME", ({"id": 0},)))
        server.receive_lines([sensors_line(E[0], 1, 500)[:-1], sensors_line(E[0], 501, 1)[:-1]])
        server.take_output()
        self.ledger.commit()
        self.assertEqual(self.heard(server), [Message("ACK", (E[0], 501))])
        self.assertEqual(self.ledger.seqs(E[0]), list(range(1, 502)))

    def test_columns_are_submitted_unchanged(self):
        server = self.server()
        self.open_as_node(server, [E[0], 1, 9, 1], columns=True)
        server.receive_lines([self.columns(1, 40), self.columns(41, 4136), self.columns(1, 5, E[1])])
        server.take_output()
        self.assertEqual([(b.epoch, b.ends, b.sample_count) for b in self.ledger._waiting],
                         [(E[0], (1, 4136), 4136), (E[1], (1, 5), 5)])  # fmt: skip

    def test_stored_samples_at_the_start_of_a_line_are_dropped(self):
        """With the real ingestor and the real store."""
        use_memory_disk()
        folder = temp_folder(self)
        store = SqliteStore(folder)
        self.addCleanup(store.close)
        log = CsvLog(folder, store, self.server_clock)
        self.addCleanup(log.close)
        log.start()
        ingestor = Ingestor(store, log, self.server_clock)
        server = self.server(ledger=ingestor)
        self.open_as_node(server, [E[0], 1, 200, 1], columns=True)
        stored = []
        for first, last in ((1, 100), (51, 150), (1, 20), (150, 151), (100, 160)):
            server.receive_lines([self.columns(first, last)])
            server.take_output()
            ingestor.commit()
            stored = [sample for batch in store.stored_batches("basement", 0, 1 << 60) for sample in batch.samples]
            self.assertEqual(self.heard(server), [Message("ACK", (E[0], last))])
        self.assertEqual([s.seq for s in stored], list(range(1, 161)))
        self.assertEqual([s.values["temperature"] for s in stored], list(range(1, 161)))
        self.assertEqual([s.time_ms for s in stored], [WALL_MS + seq for seq in range(1, 161)])
        self.assertEqual(ingestor.repeated, 50 + 20 + 1 + 52)
        server.receive(self.columns(162, 163))
        self.assert_refused(server, "expected", "sample 161 of epoch", closes=True)

    def test_invalid_columns_end_no_session_and_are_not_stored(self):
        server = self.server()
        self.open_as_node(server, [E[0], 1, 9, 1], columns=True)
        for changes in (
            {"time": [WALL_MS, 10**300, 1]}, {"time": [WALL_MS]}, {"up": [1, 2]}, {"up": -1},
            {"values": {"A": [1, 2, 3]}}, {"values": {"a": [1, 2]}}, {"values": {"a": [1, True, 3]}},
            {"values": {"a": [1, [[[[]]]], 3]}}, {"errors": {"temperature": {"3": "x"}}}, {"clock": "set"}, {"seq": 0},
        ):  # fmt: skip
            server.receive_lines([self.columns(1, 3, **changes)])
            self.assert_refused(server, "bad-argument")
        server.receive_lines([self.columns(1, 3).replace(b"[1, 2, 3]", b"[1, NaN, 3]")])
        self.assert_refused(server, "bad-argument", "NaN is not a finite number")
        self.assertEqual((self.ledger._waiting, server.collecting), ([], True))
        server.receive(self.columns(1, 3))
        server.take_output()
        self.assertEqual(self.ledger._waiting[0].ends, (1, 3))

    def test_before_resume_columns_are_refused(self):
        for lines in ([self.columns(1, 3)], [sensors_line(E[0], seq, 1)[:-1] for seq in (1, 2)]):
            server = self.server()
            server.receive_lines(lines)
            self.assert_refused(server, "expected", "before RESUME", closes=True)

    def test_lines_received_together_have_the_effect_of_single_lines(self):
        """Usual lines, mixed with holes, repeats, other epochs, other words and nonsense."""
        together = 0
        for seed in range(rounds("PIGEONPOST_TEST_LINES_TOGETHER", 60, 2000)):
            chance = random.Random(f"together {seed}")
            lines, seq = [], 1
            for _ in range(chance.choice((2, 5, 40))):
                epoch = E[0] if chance.random() < 0.9 else E[1]
                odd = chance.random() < 0.15
                lines.append(chance.choice((
                    sensors_line(epoch, seq + chance.choice((-2, -1, 1)), 1), sensors_line(epoch, seq, 3), b"CHECK",
                    b"nonsense", b"", sensors_line(epoch, seq, 1).replace(b"values", b"valves"),
                    self.columns(seq, seq + 1), encode("GAP", epoch, {"from": seq, "to": seq + 3}),
                    sensors_line(epoch, seq, 1).lower(), encode("STATUS", True, None, {}),
                    sensors_line(epoch, seq, 1).replace(b"}]", b'}],"'),
                )).rstrip() if odd else sensors_line(epoch, seq, 1)[:-1])  # fmt: skip
                seq += 1
            results = []
            for take_together in (True, False):
                self.ledger = FakeLedger(at_once=False)
                server = self.server()
                self.open_as_node(server, [E[0], 1, 50, 1])
                with mock.patch.object(
                    tcp_server_session, "decode_joined", wraps=tcp_server_session.decode_joined
                ) as joined:
                    if take_together:
                        server.receive_lines(lines)
                        together += joined.called
                    else:
                        for line in lines:
                            server.receive(line)
                said = server.take_output()
                batches = [(b.epoch, b.ends, b.samples, b.gap) for b in self.ledger._waiting]
                results.append((said, batches, server.closing, dict(server._next)))
            self.assertEqual(results[0], results[1], f"seed {seed}")
        self.assertGreater(together, 30)

    def test_lines_received_together_break_the_silence(self):
        server = self.server()
        self.open_as_node(server, [E[0], 1, 9, 1])
        for seq in range(1, 9, 2):
            self.server_clock.sleep(30)
            server.receive_lines([sensors_line(E[0], seq, 1)[:-1], sensors_line(E[0], seq + 1, 1)[:-1]])
            server.tick()
        self.assertFalse(server.closing)
        self.server_clock.sleep(46)
        server.tick()
        self.assertTrue(server.closing)

    def test_samples_taken_one_by_one_arrive_as_one_batch(self):
        server = self.server()
        self.open_as_node(server, [E[0], 1, 9, 1])
        server.receive_lines([sensors_line(E[0], seq, 1)[:-1] for seq in range(1, 601)])
        server.take_output()
        (batch,) = self.ledger._waiting
        self.assertEqual(
            (batch.ends, batch.samples.values), ((1, 600), {"temperature": [n / 4 for n in range(1, 601)]})
        )


class Acknowledging(SessionCase):
    def test_ack_of_unsent_samples_closes(self):
        self.start_node()
        self.take(3)
        for epoch, seq in ((E[0], 4), (E[1], 1), (E[0], 10**18 - 1)):
            node, _ = self.collect()
            self.say(node, "ACK", epoch, seq)
            self.assert_refused(node, "bad-ack", closes=True)

    def test_ack_before_resume_closes(self):
        self.start_node()
        node = self.node()
        self.say(node, "ACK", E[0], 0)
        self.assert_refused(node, "expected", "collecting session", closes=True)

    def test_ack_deletes_nothing(self):
        self.start_node()
        self.take(10)
        self.collect()
        other = FakeLedger()
        self.collect(ledger=other, name="second")
        self.assertEqual(other.seqs(E[0]), list(range(1, 11)))

    def test_server_that_lost_everything_receives_it_again(self):
        self.start_node()
        self.take(10)
        self.collect()
        self.ledger = FakeLedger()
        self.collect()
        self.assertEqual(self.ledger.seqs(E[0]), list(range(1, 11)))

    def test_ack_is_sent_only_after_the_commit(self):
        self.ledger.at_once = False
        self.start_node()
        self.take(10)
        _, server = self.collect()
        self.assertEqual(self.heard(server), [])
        self.ledger.commit()
        self.assertEqual(self.heard(server), [Message("ACK", (E[0], 10))])

    def test_ack_covers_several_commits(self):
        server = self.server()
        self.open_as_node(server, [E[0], 1, 9, 1])
        for seq in (1, 2, 3):
            server.committed(E[0], seq)
        server.committed(E[1], 7)
        self.assertEqual(self.heard(server), [Message("ACK", (E[0], 3)), Message("ACK", (E[1], 7))])


class Receiving(SessionCase):
    """The server's processing of samples."""

    def setUp(self):
        super().setUp()
        self.session = self.server()
        self.open_as_node(self.session, [E[0], 1, 50, 1])

    def test_samples_before_resume_are_refused(self):
        server = self.server()
        server.receive(sensors_line(E[0], 1, 1))
        self.assert_refused(server, "expected", "before RESUME", closes=True)
        server = self.server()
        self.say(server, "GAP", E[0], {"from": 1, "to": 2})
        self.assert_refused(server, "expected", closes=True)

    def test_unknown_epoch_must_begin_with_its_first_sample(self):
        self.session.receive(sensors_line(E[1], 2, 1))
        self.assert_refused(self.session, "expected", "sample 1 of epoch", closes=True)

    def test_held_before_hello_is_refused(self):
        server = self.server()
        self.say(server, "HELD", {"held": []})
        self.assert_refused(server, "expected", closes=True)

    def test_lines_received_together_are_submitted_together(self):
        self.ledger.at_once = False
        for first in (1, 4, 6):
            self.session.receive(sensors_line(E[0], first, 2 + (first == 1)))
        self.session.receive(sensors_line(E[1], 1, 1))
        self.session.take_output()
        batches = [(b.epoch, b.base, b.sample_count) for b in self.ledger._waiting]
        self.assertEqual(batches, [(E[0], 0, 7), (E[1], None, 1)])
        batch = self.ledger._waiting[0]
        self.assertEqual((batch.node, batch.outbox, batch.units), ("basement", "0b" * 8, {"temperature": "°C"}))

    def test_a_hole_without_a_gap_is_refused(self):
        self.session.receive(sensors_line(E[0], 1, 3))
        self.session.receive(sensors_line(E[0], 5, 1))
        error, ack = self.heard(self.session)
        self.assertEqual((error.word, error.args[0], self.session.closing), ("ERROR", "expected", True))
        self.assertIn("sample 4 of epoch 00000000000000e0 comes next, not 5", error.args[1]["text"])
        self.assertEqual((ack, self.ledger.seqs(E[0])), (Message("ACK", (E[0], 3)), [1, 2, 3]))

    def test_repeats_are_acknowledged_and_not_stored_again(self):
        self.session.receive(sensors_line(E[0], 1, 3))
        self.session.receive(sensors_line(E[0], 2, 3))
        self.session.receive(sensors_line(E[0], 1, 2))
        self.assertEqual(self.heard(self.session)[-1], Message("ACK", (E[0], 2)))
        self.assertEqual((self.ledger.seqs(E[0]), self.ledger.repeats), ([1, 2, 3, 4], 4))
        self.session.receive(sensors_line(E[0], 5, 1))
        self.assertEqual(self.heard(self.session), [Message("ACK", (E[0], 5))])

    def test_gap_replaces_missing_samples(self):
        self.session.receive(sensors_line(E[0], 1, 2))
        self.say(self.session, "GAP", E[0], {"from": 3, "to": 6, "why": "overwritten", "before": 2})
        self.session.receive(sensors_line(E[0], 7, 1))
        self.assertEqual(self.heard(self.session), [Message("ACK", (E[0], 7))])
        self.assertEqual(self.ledger.gaps, [("basement", E[0], 3, 6, 2, "overwritten")])
        self.assertEqual(self.ledger.seqs(E[0]), [1, 2, 7])

    def test_invalid_gap_is_refused(self):
        for gap in (
            {}, {"from": 1}, {"to": 1}, {"from": 0, "to": 1}, {"from": 5, "to": 3}, {"from": 1, "to": 10**18},
            {"from": 1, "to": 10**400}, {"from": "1", "to": 2}, {"from": 1, "to": 2, "before": -1},
            {"from": 1, "to": 2, "before": 10**30}, {"from": 1.0, "to": 2}, {"from": True, "to": 2},
        ):  # fmt: skip
            self.say(self.session, "GAP", E[0], gap)
            self.assert_refused(self.session, "bad-argument", "GAP must have")
        self.say(self.session, "GAP", E[0], {"from": 2, "to": 3})
        self.assert_refused(self.session, "expected", closes=True)
        self.assertEqual(self.ledger.gaps, [])

    def test_rejection_by_the_ingestor_is_sent_to_the_node(self):
        self.session.refused(Unexpected("sample 3 comes next, not 9"))
        self.assert_refused(self.session, "expected", "sample 3 comes next", closes=True)

    def test_stored_mark_defines_the_next_seq(self):
        self.ledger.stored["basement", E[0]] = (20, 5)
        self.ledger.at_once = False  # otherwise the ledger would refuse it too
        server = self.server()
        self.open_as_node(server, [E[0], 1, 50, 1])
        server.receive(sensors_line(E[0], 22, 1))
        self.assert_refused(server, "expected", "sample 21", closes=True)

    def test_seq_continues_after_a_gap(self):
        self.ledger.at_once = False
        self.say(self.session, "GAP", E[0], {"from": 1, "to": 6})
        self.session.receive(sensors_line(E[0], 8, 1))
        self.assert_refused(self.session, "expected", "sample 7 of epoch", closes=True)

    def test_requests_of_other_threads_wake_the_session(self):
        self.session._wake = woken = mock.Mock()
        for call, args in (
            (self.session.committed, (E[0], 1)), (self.session.refused, (Unexpected("no"),)), (self.session.doubt, ()),
            (self.session.ask, ("CHECK",)), (self.session.recheck_token, ()),
        ):  # fmt: skip
            call(*args)
            woken.assert_called_once_with()
            woken.reset_mock()

    def test_status_is_recorded(self):
        self.heard(self.session)
        self.session.ask("CHECK")
        self.assertEqual(self.heard(self.session), [Message("CHECK", ())])
        self.server_clock.sleep(0.25)
        time = rfc3339(self.server_clock.wall_ms() - 7000)
        self.say(self.session, "STATUS", False, "15:36:10", {"time": time, "held": 3})
        state = self.state
        self.assertEqual((state.on, state.last_sent, state.details["held"]), (False, "15:36:10", 3))
        self.assertEqual((state.round_trip_ms, state.offset_ms), (250.0, -6875))
        self.assertEqual((state.checked_ms, self.answers), (self.server_clock.wall_ms(), [("STATUS",)]))
        for details in ({}, {"time": 5}, {"time": "now"}, {"time": None}):
            self.say(self.session, "STATUS", True, None, details)
            self.assertEqual((state.on, state.last_sent, state.offset_ms), (True, None, None))

    def test_step_of_a_clock_corrects_the_offset_and_asks_the_node(self):
        self.heard(self.session)
        up_ms, node_ms = 900_000, self.server_clock.wall_ms() - 5000

        def report(seq, step_ms=0, behind_ms=0):
            """Receive a sample of the node 10 s later; its clock is set by `step_ms` before. Return the answer."""
            nonlocal up_ms, node_ms
            self.server_clock.sleep(10)
            up_ms, node_ms = up_ms + 10_000, node_ms + 10_000 + step_ms
            sample = {"seq": seq, "time": rfc3339(node_ms - behind_ms), "up": up_ms - behind_ms, "values": {"t": 1}}
            self.say(self.session, "SENSORS", E[0], json.dumps([sample]))
            return [message.word for message in self.heard(self.session)]

        self.say(self.session, "STATUS", True, None, {"time": rfc3339(node_ms), "up": up_ms})
        self.assertEqual((self.state.offset_ms, report(1)), (-5000, ["ACK"]))
        for seq, step_ms in enumerate((3_600_000, -3_600_000, 5000, -40_000_000_000), 2):
            before_ms = self.state.offset_ms
            self.assertEqual(report(seq, step_ms), ["CHECK", "ACK"])
            self.assertEqual(self.state.offset_ms, before_ms + step_ms)
            self.say(self.session, "STATUS", True, None, {"time": rfc3339(node_ms), "up": up_ms})
        before_ms = self.state.offset_ms
        self.assertEqual(report(6, 7_200_000, 60_000), ["ACK"])  # a sample of a backlog
        self.assertEqual(self.state.offset_ms, before_ms)
        self.assertEqual(report(7), ["CHECK", "ACK"])
        self.assertEqual(report(8, 7_200_000), ["ACK"])  # the node has not answered yet
        self.assertEqual(self.state.offset_ms, before_ms + 14_400_000)

    def test_reported_outbox_fault_is_a_warning_while_it_lasts(self):
        self.heard(self.session)
        self.session.ask("CHECK")
        self.say(self.session, "STATUS", True, None, {"faults": ["its outbox is damaged", 5, "move it"]})
        self.assertEqual(self.state.warnings, {"outbox": "its outbox is damaged; move it"})
        for faults in ("text", 7, None, {}, []):
            self.say(self.session, "STATUS", True, None, {"faults": faults})
            self.assertEqual(self.state.warnings, {})

    def test_sendback_is_recorded(self):
        self.session.ask("SEND", False)
        self.assertEqual(self.heard(self.session)[-1], Message("SEND", (False,)))
        self.session.receive(b"SENDACK OFF")
        self.assertEqual((self.state.on, self.answers), (False, [("SENDBACK", False)]))

    def test_reason_of_the_node_for_closing_is_kept(self):
        self.say(self.session, "ERROR", "expected", {"text": "RESUME comes once", "line": ""})
        self.assertEqual(self.session.fault, "refuses: RESUME comes once")
        self.say(self.session, "ERROR", "expected", {})
        self.assertEqual(self.session.fault, "refuses: expected")
        self.say(self.session, "ERROR", "expected", {"text": ["x" * 10_000]})
        self.assertEqual(len(self.session.fault), 300)
        self.say(self.session, "ERROR", "expected", {"text": "{node.__class__} {0}"})
        self.assertEqual(self.session.fault, "refuses: {node.__class__} {0}")


class Forks(SessionCase):
    """Two running copies of one card."""

    def copied(self):
        """Return another card with the present contents of this one."""
        other = MemoryDisk("copy")
        other.lay(f"/card/{OUTBOX}", self.disk.content(f"/card/{OUTBOX}"))
        return other

    def test_copy_of_a_running_card_gets_its_own_epoch(self):
        """A machine that is copied while it runs continues twice, with the same epoch and the same numbers."""
        self.start_node()
        self.take(5)
        other = copy.copy(self.outbox)
        other.ring = Ring("/card", 64, 128, self.copied())
        self.take(3)  # samples 6 to 8 of the first copy ...
        self.collect()
        self.outbox, one = other, self.outbox
        self.info.switch = other.switch
        self.take(2, up_ms=777)  # ... and 6 and 7 of the second
        self.assertEqual(other.held(), [[E[0], 1, 7, 1]])
        node, server = self.node(), self.server()
        said = self.pump(node, server)
        self.assertEqual(self.ledger.seqs(E[0]), list(range(1, 9)))
        # The server has sample 8 of the other copy; this one has not taken its own sample 8 yet.
        self.assertEqual(other.epoch, E[1])
        self.assertEqual([m.args[0]["held"] for _, m in said if m.word == "HELD"], [[[E[1], 1, 0, 8]]])
        self.take(2, up_ms=888)
        self.pump(node, server)
        self.assertEqual(self.ledger.seqs(E[1]), [1, 2])
        self.assertEqual(one.held(), [[E[0], 1, 8, 1]])

    def test_sample_with_the_number_of_another_begins_a_new_epoch(self):
        self.start_node()
        self.take(5)
        self.take(3, up_ms=777)
        self.ledger.stored["basement", E[0]] = (6, 6)  # from the other copy
        self.ledger.tops[self.outbox.ring.identity] = 6
        node, server = self.node(), self.server()
        said = self.pump(node, server)
        self.assertEqual([m.args[0]["held"] for _, m in said if m.word == "HELD"], [[[E[1], 1, 3, 6]]])
        self.assertEqual([(e, s.seq, s.up_ms) for _, e, s in self.ledger.rows], [(E[1], n, 777) for n in (1, 2, 3)])
        self.take(2)
        self.pump(node, server)
        self.assertEqual(self.ledger.seqs(E[1]), [1, 2, 3, 4, 5])
        self.assertEqual((self.ledger.gaps, server.closing, node.closing), ([], False, False))
        self.start_node()  # the new epoch is remembered
        self.assertEqual(self.outbox.held(), [[E[0], 1, 5, 1], [E[1], 1, 5, 6], [E[2], 1, 0, 11]])

    def test_the_same_sample_is_no_fork(self):
        self.start_node()
        self.take(5)
        self.collect()
        self.collect()
        self.assertEqual(self.outbox.epoch, E[0])

    def test_mark_at_the_end_of_a_gap_is_no_fork(self):
        self.start_node()
        self.take(5)
        node = self.node()
        self.open_as_server(node, {"id": 5, E[0]: [5, None]})
        self.assertEqual((self.outbox.epoch, self.heard(node)), (E[0], []))

    def test_server_may_have_more_of_an_earlier_epoch(self):
        """If the card is restored from an old copy, the server has later samples of that epoch; this is no error."""
        self.start_node()
        self.take(5)
        self.start_node()
        self.take(2)
        node = self.node()
        self.open_as_server(node, {"id": 9, E[0]: [9, 9]})
        self.assertEqual([m.args[0] for m in self.streamed(node)], [E[1]])

    def test_both_nodes_of_a_copied_card_are_collected_by_one_server(self):
        """A card that was copied while it was off: both nodes start with epochs of their own."""
        self.start_node()
        self.take(5)
        other = self.copied()
        self.start_node()
        self.take(4)
        self.collect()
        self.disk = other
        self.start_node()
        self.take(6)
        self.collect()
        self.assertEqual([len(self.ledger.seqs(e)) for e in E[:3]], [5, 4, 6])
        self.assertEqual(len(self.ledger.rows), 15)


class Tokens(SessionCase):
    def setUp(self):
        super().setUp()
        self.key = LinkKey(TOKEN)
        self.start_node(key=self.key)
        self.take(3)

    def hello(self, node, **more):
        self.say(node, "HELLO", {"link": 1, "server": "home", "nonce": NONCE, **more})
        return self.heard(node)[0].args[0]

    def test_both_ends_prove_the_token(self):
        node, server = self.node(local=False), self.server({"basement": self.key})
        said = self.pump(node, server)
        words = [(side, m.word) for side, m in said]
        self.assertEqual(words[:4], [("server", "HELLO"), ("node", "HELLO"), ("server", "AUTH"), ("server", "RESUME")])
        hello, answer = said[0][1].args[0], said[1][1].args[0]
        self.assertRegex(hello["nonce"], "^[0-9a-f]{32}$")
        self.assertRegex(answer["nonce"], "^[0-9a-f]{32}$")
        self.assertRegex(answer["mac"], "^[0-9a-f]{64}$")
        self.assertRegex(said[2][1].args[0]["mac"], "^[0-9a-f]{64}$")
        self.assertNotEqual(said[2][1].args[0]["mac"], answer["mac"])
        self.assertEqual(self.ledger.seqs(E[0]), [1, 2, 3])
        self.assertNotIn(TOKEN, repr(said))

    def test_nonces_are_never_used_twice(self):
        nonces = {self.hello(self.node())["nonce"] for _ in range(50)}
        nonces |= {self.heard(self.server({"basement": self.key}))[0].args[0]["nonce"] for _ in range(50)}
        self.assertEqual(len(nonces), 100)

    def test_a_server_with_another_token_gets_nothing(self):
        node, server = self.node(), self.server({"basement": LinkKey("another token of 16")})
        said = self.pump(node, server)
        self.assertEqual(said[-1][1].args[0], "auth")
        self.assertTrue(server.closing)
        self.assertEqual(self.ledger.rows, [])

    def test_every_wrong_mac_closes(self):
        right = self.hello(self.node())["mac"]
        for mac in ("", "0" * 64, right[:-1], right + "0", right.upper(), None, 5, [right], "é" * 64):
            node = self.node()
            self.hello(node)
            self.say(node, "AUTH", {"mac": mac})
            self.assert_refused(node, "auth", closes=True)
            self.assertTrue(node.closing)
            self.say(node, "RESUME", {"id": 0})
            self.assertEqual(self.streamed(node), [])

    def test_answer_to_a_wrong_proof_is_delayed_in_any_case(self):
        failed = []
        node = NodeSession(
            self.info, self.outbox, self.clock, "192.0.2.7:1234", False, "", lambda: failed.append(1) or 2.0
        )
        self.hello(node)
        self.say(node, "AUTH", {"mac": "0" * 64})
        self.say(node, "AUTH", {"mac": "1" * 64})
        self.say(node, "RESUME", {"id": 0})
        self.assertEqual((self.heard(node), len(failed), node.tick(), node.closing), ([], 1, 2.0, False))
        self.clock.sleep(2)
        node.tick()
        self.assert_refused(node, "auth", "not this node's token", closes=True)

    def test_correct_mac_with_a_changed_last_digit_closes(self):
        node = self.node()
        answer = self.hello(node)
        names = "home", "basement", self.outbox.ring.identity
        mac = self.key.sign("server", *names, (NONCE, answer["nonce"]))
        self.say(node, "AUTH", {"mac": mac[:-1] + ("0" if mac[-1] != "0" else "1")})
        self.assert_refused(node, "auth", closes=True)

    def test_reflected_mac_of_the_node_closes(self):
        node = self.node()
        self.say(node, "AUTH", {"mac": self.hello(node)["mac"]})
        self.assert_refused(node, "auth", closes=True)

    def test_mac_of_the_node_for_its_reflected_nonce_closes(self):
        """An attacker makes the node sign its own nonce in a second connection."""
        node, second = self.node(), self.node()
        answer = self.hello(node)
        signed = self.hello(second, nonce=answer["nonce"])
        for mac in (signed["mac"], answer["mac"]):
            self.say(node, "AUTH", {"mac": mac})
        self.assert_refused(node, "auth", closes=True)

    def test_a_recorded_session_cannot_be_replayed_to_the_node(self):
        node, server = self.node(), self.server({"basement": self.key})
        recorded = [message for side, message in self.pump(node, server) if side == "server"]
        node = self.node()
        for message in recorded:
            self.say(node, message.word, *message.args)
        self.assert_refused(node, "auth", closes=True)

    def test_a_recorded_session_cannot_be_replayed_to_the_server(self):
        recorded = [
            message for side, message in self.pump(self.node(), self.server({"basement": self.key})) if side == "node"
        ]
        self.ledger = FakeLedger()
        server = self.server({"basement": self.key})
        self.heard(server)
        for message in recorded:
            if message.word == "SENSORS":
                server.receive(sensors_line(message.args[0], 1, 3))
            else:
                self.say(server, message.word, *message.args)
        self.assertTrue(server.closing)
        server.take_output()
        self.assertEqual(self.ledger.rows, [])

    def test_unproven_hello_with_other_errors_is_not_used(self):
        """An error that does not close must not leave half a HELLO that HELD then continues."""
        for wrong in ({}, {"sensors": 5}, {"held": 5}, {"every": 10**400}, {"outbox": 5}, {"time": 5}, {"node": 5}):
            for mac in ({}, {"mac": "0" * 64, "nonce": NONCE}):
                server = self.server({"basement": self.key})
                self.open_as_node(server, **wrong, **mac)
                self.say(server, "HELD", {"held": [[E[0], 1, 3, 1]]})
                server.receive(sensors_line(E[0], 1, 3))
                self.assertNotIn("RESUME", [m.word for m in self.heard(server)])
                self.assertFalse(server.collecting)
                self.assertEqual((self.ledger.rows, self.state.sensors), ([], []))

    def test_node_without_the_token_is_refused(self):
        self.start_node(key=None)
        self.take(1)
        node, server = self.node(), self.server({"basement": self.key})
        self.pump(node, server)
        self.assertTrue(server.closing)
        self.assertEqual(self.ledger.rows, [])

    def test_wrong_proof_over_tls_reports_a_man_in_the_middle(self):
        for fingerprint, fault in (("ab" * 32, tcp_faults.INTERCEPTED), ("", tcp_faults.WRONG_TOKEN)):
            node = NodeSession(self.info, self.outbox, self.clock, "192.0.2.7:1234", False, "cd" * 32)
            server = self.server({"basement": self.key}, fingerprint=fingerprint)
            self.pump(node, server)
            self.assertTrue(server.closing)
            self.assertEqual(server.fault, tcp_faults.describe(fault, "basement", found=fingerprint))

    def test_revoked_token_is_reported_with_the_name_that_the_node_sent(self):
        keys = {"basement": self.key}
        _, server = self.collect(keys=keys, expected="")
        keys.clear()
        server.recheck_token()
        self.assert_refused(server, "auth", "the token of node basement was revoked", closes=True)
        self.assertEqual(server.fault, tcp_faults.describe(tcp_faults.REVOKED, "basement"))

    def test_server_without_the_token_receives_the_remedy(self):
        node, server = self.node(), self.server()
        self.pump(node, server)
        self.assertTrue(node.closing)
        self.assertIn("control.py token basement", server.fault)
        # A server with tokens of other nodes sends a nonce, and detects the mismatch itself.
        node, server = self.node(), self.server({"attic": self.key}, expected="")
        said = self.pump(node, server)
        self.assertIn("control.py token basement", said[-1][1].args[1]["text"])
        self.assertTrue(server.closing)

    def test_invalid_nonces_close(self):
        for nonce in ("", "short", "x" * 15, "x" * 129, "x" * 16 + "|", 5, None, ["x" * 32]):
            node = self.node()
            self.say(node, "HELLO", {"link": 1, "server": "home", "nonce": nonce})
            self.assert_refused(node, "auth", closes=True)
        for nonce in ("x" * 16, "x" * 128):
            self.assertEqual(self.hello(self.node(), nonce=nonce)["node"], "basement")

    def test_is_proven_reports_a_successful_proof(self):
        node = self.node()
        self.assertFalse(node.is_proven)
        self.say(node, "AUTH", {"token": TOKEN})
        self.assertTrue(node.is_proven)
        node, server = self.node(), self.server({"basement": self.key})
        self.pump(node, server)
        self.assertTrue(node.is_proven)
        self.start_node(key=None)  # without a token, a server that collects counts as proven
        node = self.node()
        self.say(node, "HELLO", {"link": 1, "server": "home"})
        self.assertEqual((node.is_proven, node.server), (False, ""))
        self.say(node, "RESUME", {"id": 0})
        self.assertEqual((node.is_proven, node.server), (True, "home"))

    def test_proof_after_a_successful_one_is_ignored(self):
        node, server = self.node(), self.server({"basement": self.key})
        self.pump(node, server)
        self.say(node, "AUTH", {"mac": "0" * 64})
        self.assertEqual((self.heard(node), node.closing, node.is_proven), ([], False, True))

    def test_errors_of_unproven_peers_are_logged_rarely(self):
        rare = mock.Mock()
        session = NodeSession(self.info, self.outbox, self.clock, "192.0.2.7:1234", False, rare_log=rare)
        session.receive(b"nonsense")
        self.say(session, "ERROR", "made-up", {"text": "no"})
        kinds = [call.args[1] for call in rare.log.call_args_list]
        self.assertEqual(kinds, ["unknown-word", "peer reports"])
        self.say(session, "AUTH", {"token": TOKEN})
        logging.disable(logging.NOTSET)
        with self.assertLogs("pigeonpost.transports.tcp_session", "WARNING"):
            session.receive(b"nonsense")
        self.assertEqual(len(rare.log.call_args_list), 2)

    def test_only_auth_and_hello_are_answered_before_the_proof(self):
        for line in (b"CHECK", b"SEND OFF", b"SEND ON", b'RESUME {"id":0}', b"ACK %s 1" % E[0].encode()):
            for greet in (False, True):
                node = self.node()
                if greet:
                    self.hello(node)
                node.receive(line)
                self.assert_refused(node, "auth", closes=True)
        self.assertTrue(self.outbox.on)

    def test_session_without_a_proof_closes_after_five_seconds(self):
        for greet in (False, True):
            node = self.node()
            if greet:
                self.hello(node)
            self.assertEqual(node.tick(), 5.0)
            self.clock.sleep(4.5)
            node.receive(b"")  # empty lines do not extend the time
            self.assertAlmostEqual(node.tick(), 0.5)
            self.assertFalse(node.closing)
            self.clock.sleep(0.5)
            node.tick()
            self.assert_refused(node, "auth", "no AUTH within 5 s", closes=True)

    def test_plain_session_is_opened_with_the_token(self):
        node = self.node(local=False)
        self.say(node, "AUTH", {"token": TOKEN})
        self.say(node, "CHECK")
        self.assertEqual([m.word for m in self.heard(node)], ["STATUS"])
        for token in ("", TOKEN[:-1], None, 5, [TOKEN], {"token": TOKEN}):
            node = self.node(local=False)
            self.say(node, "AUTH", {"token": token})
            self.assert_refused(node, "auth", "not this node's token", closes=True)

    def test_plain_token_opens_no_collecting_session(self):
        node = self.node()
        self.hello(node)
        self.say(node, "AUTH", {"token": TOKEN})
        self.assert_refused(node, "auth", closes=True)

    def test_auth_to_a_node_without_a_token_is_ignored(self):
        self.start_node(key=None)
        node = self.node()
        self.say(node, "AUTH", {"mac": "0" * 64})
        self.assertEqual((self.heard(node), node.closing), ([], False))

    def test_a_node_without_a_token_answers_only_its_own_machine(self):
        self.start_node(key=None)
        node = self.node(local=False)
        error = self.heard(node)
        self.assertEqual([(m.word, m.args[0]) for m in error], [("ERROR", "protected")])
        self.assertIn("control.py token", error[0].args[1]["text"])
        self.assertTrue(node.closing)


class Time(SessionCase):
    def test_a_quiet_server_checks_every_15_seconds(self):
        self.start_node()
        node, server = self.collect()
        for _ in range(5):
            self.assertAlmostEqual(server.tick(), 15.0)
            self.server_clock.sleep(14.9)
            server.tick()
            self.assertEqual(self.heard(server), [])
            self.server_clock.sleep(0.2)
            self.assertEqual(server.tick(), 15.0)
            self.assertEqual([m.word for _, m in self.pump(node, server)], ["CHECK", "STATUS"])

    def test_acknowledging_server_checks_less_often(self):
        self.start_node()
        node, server = self.collect()
        checks = 0
        for _ in range(40):
            self.server_clock.sleep(10)
            self.take(1)
            server.tick()
            checks += [m.word for _, m in self.pump(node, server)].count("CHECK")
        self.assertTrue(0 < checks <= 8, checks)  # the data from STATUS must not become old

    def test_45_seconds_of_silence_end_the_session(self):
        self.start_node()
        node, server = self.collect()
        for session, clock in ((node, self.clock), (server, self.server_clock)):
            clock.sleep(44.5)
            self.assertLessEqual(session.tick(), 0.5)
            self.assertFalse(session.closing)
            clock.sleep(0.5)
            session.tick()
            self.assertTrue(session.closing)

    def test_node_announced_elsewhere_must_answer_within_five_seconds(self):
        self.start_node()
        node, server = self.collect()
        for _ in range(3):  # it answers, so nothing happens
            server.doubt()
            server.tick()
            self.assertEqual([m.word for _, m in self.pump(node, server)], ["CHECK", "STATUS"])
            self.server_clock.sleep(10)
            server.tick()
            self.assertEqual((server.closing, self.heard(server)), (False, []))
        server.doubt()
        self.assertAlmostEqual(
            server.tick(), 5.0
        )  # the owner sends the output before it waits so long, as `run_session` does
        self.assertEqual([m.word for m in self.heard(server)], ["CHECK"])
        self.server_clock.sleep(3)
        server.doubt()  # a repetition sends no further CHECK and does not extend the time
        self.assertAlmostEqual(server.tick(), 2.0)
        self.assertEqual(self.heard(server), [])
        self.server_clock.sleep(2.1)
        server.tick()
        self.assertTrue(server.closing)

    def test_a_session_that_has_not_begun_is_not_doubted(self):
        server = self.server()
        self.heard(server)
        server.doubt()
        self.assertAlmostEqual(server.tick(), 10.0)
        self.assertEqual(self.heard(server), [])

    def test_any_line_breaks_the_silence(self):
        self.start_node()
        node, server = self.collect()
        for _ in range(5):
            for session, clock in ((node, self.clock), (server, self.server_clock)):
                clock.sleep(40)
                session.receive(b"nonsense")
                session.tick()
                self.assertFalse(session.closing)

    def test_session_without_hello_closes_after_ten_seconds(self):
        server = self.server()
        self.server_clock.sleep(9)
        self.assertEqual(server.tick(), 1.0)
        self.assertFalse(server.closing)
        self.server_clock.sleep(1)
        server.tick()
        self.assert_refused(server, "expected", "no complete HELLO within 10 s", closes=True)

    def test_plain_session_may_be_silent_without_limit(self):
        self.start_node()
        node = self.node()
        self.clock.sleep(86_400)
        self.assertGreater(node.tick(), 0)
        self.assertFalse(node.closing)

    def test_step_of_the_clock_changes_no_timeout(self):
        self.start_node()
        node, server = self.collect()
        for seconds in (1e9, -2e9, 1e9):
            self.clock.step(seconds)
            self.server_clock.step(-seconds)
            node.tick(), server.tick()
            self.take(1)
            self.pump(node, server)
        self.assertFalse(node.closing or server.closing)
        self.assertEqual(self.ledger.seqs(E[0]), [1, 2, 3])


class Plain(SessionCase):
    """A person with nc."""

    def setUp(self):
        super().setUp()
        self.start_node()
        self.take(3)
        self.session = self.node()

    def test_check_is_answered(self):
        self.say(self.session, "CHECK")
        ((word, (on, at, details)),) = self.heard(self.session)
        self.assertEqual((word, on, at), ("STATUS", True, None))
        self.assertEqual(details, {"time": "2026-11-20T15:36:10.123Z", "held": 3})

    def test_status_contains_the_time_of_the_last_sample_sent(self):
        self.collect()
        self.say(self.session, "CHECK")
        at = self.heard(self.session)[0].args[1]
        self.assertRegex(at, r"^\d\d:36:10$")

    def test_sample_taken_during_send_on_is_sent(self):
        """The sampler does not wait until the session has recorded where it starts."""
        switch = self.info.switch
        self.info.switch = lambda on: (switch(on), self.take(1))
        self.say(self.session, "SEND", True)
        self.assertEqual([m.word for m in self.streamed(self.session)], ["SENDBACK", "SENSORS"])

    def test_send_turns_the_node_on_and_off_durably(self):
        for on in (False, True, False):
            self.say(self.session, "SEND", on)
            self.assertEqual(self.heard(self.session), [Message("SENDBACK", (on,))])
            self.say(self.session, "CHECK")
            self.assertEqual(self.heard(self.session)[0].args[0], on)
            self.start_node()
            self.assertEqual(self.outbox.on, on)
            self.session = self.node()

    def test_samples_are_sent_as_they_are_taken_after_send_on(self):
        self.assertFalse(self.session.stream())
        self.say(self.session, "SEND", True)
        self.assertEqual([m.word for m in self.streamed(self.session)], ["SENDBACK"])  # no earlier samples
        for seq in (4, 5, 6):
            self.take(1)
            ((word, (epoch, samples)),) = self.streamed(self.session)
            self.assertEqual((word, epoch, [s.seq for s in samples[0]]), ("SENSORS", E[0], [seq]))

    def test_first_sample_of_an_epoch_is_sent_after_send_on(self):
        for fresh in (False, True):
            self.disk = MemoryDisk() if fresh else self.disk
            self.start_node()
            session = self.node()
            self.say(session, "SEND", True)
            self.heard(session)
            self.take(2)
            self.assertEqual([[s.seq for s in samples_of(m)] for m in self.streamed(session)], [[1, 2]])

    def test_no_samples_are_sent_before_send_on(self):
        self.say(self.session, "SEND", False)
        self.say(self.session, "CHECK")
        self.take(1)
        self.assertEqual([m.word for m in self.streamed(self.session)], ["SENDBACK", "STATUS"])

    def test_repeated_send_on_repeats_no_samples(self):
        self.say(self.session, "SEND", True)
        self.take(1)
        self.say(self.session, "SEND", True)
        self.assertEqual([m.word for m in self.streamed(self.session)], ["SENDBACK", "SENDBACK", "SENSORS"])

    def test_plain_session_has_no_window(self):
        self.say(self.session, "SEND", True)
        seen = 0
        for _ in range(120):
            self.take(50)
            seen += sum(len(samples_of(m)) for m in self.streamed(self.session) if m.word == "SENSORS")
        self.assertEqual(seen, 6000)

    def test_plain_session_is_not_a_collector(self):
        self.assertEqual(self.session.server, "")
        self.say(self.session, "SEND", True)
        self.take(2)
        self.streamed(self.session)
        self.assertEqual(self.session.server, "")
        self.say(self.session, "ACK", E[0], 4)
        self.assert_refused(self.session, "expected", closes=True)

    def test_send_in_a_collecting_session_does_not_restart_the_stream(self):
        node, server = self.collect()
        self.say(node, "SEND", False)
        self.take(1)
        self.say(node, "SEND", True)
        self.pump(node, server)
        self.assertEqual((self.ledger.seqs(E[0]), self.ledger.repeats), ([1, 2, 3, 4], 0))


class Dating(SessionCase):
    """The time of a sample, as well as it is known when it is sent."""

    def sent(self, **hello):
        """Return (time, clock) of the samples that a server receives now."""
        node = self.node()
        self.open_as_server(node, {"id": 0}, **hello)
        return [(s.time_ms, s.clock) for m in self.streamed(node) for s in samples_of(m)]

    def test_a_set_clock_is_believed(self):
        self.start_node()
        self.take(1, wall_ms=WALL_MS - 5, up_ms=40_000_000)
        self.clock.step(-1e9)
        self.assertEqual(self.sent(time=rfc3339(5), clock="set"), [(WALL_MS - 5, "")])

    def test_samples_of_an_unset_clock_are_marked(self):
        self.clock.known = False
        self.start_node()
        self.take(1, wall_ms=1000, up_ms=5000, clock_set=False)
        self.assertEqual(self.sent(), [(1000, "unset")])
        self.assertEqual(self.sent(time=rfc3339(WALL_MS), clock="unset"), [(1000, "unset")])

    def test_earlier_samples_are_dated_again_once_the_clock_is_set(self):
        self.clock.known = False
        self.start_node()
        now_up = self.clock.up_ms()
        self.take(1, wall_ms=1000, up_ms=now_up - 60_000, clock_set=False)
        self.clock.known = True
        self.assertEqual(self.sent(), [(WALL_MS - 60_000, "")])

    def test_unset_clock_uses_the_time_of_the_server(self):
        self.clock.known = False
        self.start_node()
        now_up = self.clock.up_ms()
        self.take(1, wall_ms=1000, up_ms=now_up - 60_000, clock_set=False)
        self.assertEqual(self.sent(time=rfc3339(WALL_MS + 77), clock="set"), [(WALL_MS + 77 - 60_000, "server")])

    def test_samples_of_earlier_boots_are_not_dated(self):
        self.clock.known = False
        self.start_node()
        self.take(1, wall_ms=1000, up_ms=5000, clock_set=False)
        self.clock.boot_id = "b" * 16
        self.clock.known = True
        self.start_node()
        self.assertEqual(self.sent(time=rfc3339(WALL_MS), clock="set"), [(1000, "unset")])

    def test_invalid_time_of_the_server_is_refused(self):
        self.start_node()
        for time in ("now", 5, None, "2026-11-20"):
            node = self.node()
            self.say(node, "HELLO", {"link": 1, "server": "home", "clock": "set", "time": time})
            self.assert_refused(node, "bad-argument", "time must be like")

    def test_up_never_changes(self):
        self.clock.known = False
        self.start_node()
        self.take(1, up_ms=5000, clock_set=False)
        for known in (False, True):
            self.clock.known = known
            node = self.node()
            self.open_as_server(node, {"id": 0})
            self.assertEqual(samples_of(self.streamed(node)[0])[0].up_ms, 5000)


class CutAnywhere(SessionCase):
    """Random faults: bytes arrive in parts, connections break at any of them, programs are killed, the power fails."""

    def test_samples_are_delivered_once_despite_random_faults(self):
        for seed in range(rounds("PIGEONPOST_TEST_SESSION_LIVES", 8, 20)):
            with self.subTest(seed=seed):
                self.setUp()
                _Life(self, seed).run()


class _Life:
    def __init__(self, case, seed):
        self.case = case
        self.chance = random.Random(f"session {seed}")
        case.disk = MemoryDisk(seed)
        case.ledger.at_once = False
        case.epochs = (f"{self.chance.getrandbits(64):016x}" for _ in itertools.count())
        self.key = LinkKey(TOKEN) if self.chance.random() < 0.3 else None
        self.accepted = {}  # (epoch, seq) to value, in the order of acceptance
        self.tried = {}  # in progress when the program was killed: may or may not be stored
        self.slots = self.chance.choice((16, 64, 1024))
        self.values = itertools.count(1)
        case.start_node(self.slots, key=self.key)
        self.connect()

    def run(self):
        deeds = (self.take, self.move, self.move, self.move, self.commit, self.cut, self.server_dies, self.node_dies)
        weights = (30, 40, 40, 40, 20, 4, 1, 2)
        for deed in self.chance.choices(deeds, weights, k=400):
            deed()
        self.settle()
        self.check()

    def connect(self):
        self.node = self.case.node()
        self.server = self.case.server({"basement": self.key} if self.key else {})
        self.to_node, self.to_server = bytearray(), bytearray()

    def take(self):
        outbox, count = self.case.outbox, self.chance.choice((1, 1, 1, 5, 40))
        batch = {}
        for k in range(count):
            value = next(self.values)
            outbox.put(taken(values={"temperature": value}, up_ms=value))
            batch[outbox.epoch, outbox._next_seq + k] = value
        if self.chance.random() < 0.03:
            self.case.disk.die_at(self.chance.randrange(3))
        try:
            while outbox.commit():
                pass
        except Killed:
            self.tried |= batch
            self.node_dies()
        else:
            self.case.disk.fault = lambda call: None
            self.accepted |= batch

    def move(self):
        """Move some bytes in one direction, perhaps up to the middle of a line."""
        node, server = self.node, self.server
        if self.chance.random() < 0.5:
            self.to_node += server.take_output()
            self.feed(node, self.to_node)
        else:
            while len(self.to_server) < 20_000 and node.stream():
                self.to_server += node.take_output()
            self.to_server += node.take_output()
            self.feed(server, self.to_server)
        if node.closing or server.closing:
            self.case.assertFalse(self.tells_of_a_fault(), (self.to_node, self.to_server))
            self.connect()

    def tells_of_a_fault(self):
        out = self.node.take_output() + self.server.take_output()
        return b"ERROR" in out + self.to_node + self.to_server

    def feed(self, session, buffer):
        count = self.chance.choice((1, 7, 100, 2000, 1 << 20))
        end = buffer.rfind(b"\n", 0, count)  # an incomplete line waits, and is lost with the connection
        if end >= 0:
            session.receive_lines(bytes(buffer[:end]).split(b"\n"))
            del buffer[: end + 1]

    def commit(self):
        self.case.ledger.commit(self.chance.choice((None, 1, 3)))

    def cut(self):
        self.connect()

    def server_dies(self):
        self.case.ledger.forget()
        self.connect()

    def node_dies(self):
        self.chance.choice((self.case.disk.kill, self.case.disk.cut_power))()
        self.case.start_node(self.slots, key=self.key)
        self.connect()

    def settle(self):
        self.cut()
        for _ in range(100):
            said = self.case.pump(self.node, self.server)
            self.case.ledger.commit()
            if not said and not self.case.ledger._waiting:
                return
        raise AssertionError("they never come to an end")

    def check(self):
        case, ledger = self.case, self.case.ledger
        stored = {}
        for _, epoch, sample in ledger.rows:
            case.assertNotIn((epoch, sample.seq), stored)
            stored[epoch, sample.seq] = sample.values["temperature"]
        known = self.accepted | self.tried
        case.assertEqual({name: value for name, value in stored.items() if known.get(name) != value}, {})
        gone = {(e, n) for _, e, first, last, _, _ in ledger.gaps for n in range(first, last + 1)}
        case.assertEqual(gone & stored.keys(), set())
        before = sum(gap[4] for gap in ledger.gaps)
        missing = [name for name in self.accepted if name not in stored and name not in gone]
        case.assertLessEqual(len(missing), before)
        if (
            case.outbox.ring.last + 40 <= self.slots
        ):  # nothing was overwritten, not even by samples that were never accepted
            case.assertEqual((missing, gone & self.accepted.keys()), ([], set()))
        for epoch, first, last, _ in case.outbox.held():
            case.assertEqual([n for n in range(first, last + 1) if (epoch, n) not in stored.keys() | gone], [])
        for epoch in {name[0] for name in stored}:
            seqs = ledger.seqs(epoch)
            case.assertEqual(seqs, sorted(seqs))


if __name__ == "__main__":
    unittest.main()
