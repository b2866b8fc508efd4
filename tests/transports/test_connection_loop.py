"""One thread that serves many connections: hundreds at the same time, with slow, silent, flooding and missing peers."""

import contextlib
import errno
import logging
import math
import os
import selectors
import socket
import threading
import time
import unittest
from unittest import mock

from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.errors import NotStored, StoreDamaged
from pigeonpost.transports import (
    connection_loop,
    tcp_connection,
    tcp_connector,
    tcp_faults,
    tcp_server,
    tcp_server_session,
)
from pigeonpost.transports.connection_loop import ConnectionLoop, LoopMember
from pigeonpost.transports.tcp_server import TcpServerTransport
from protocol import LINE_BYTES, encode
from tests.support import LIMIT_S, FakeLedger, Leftovers, sensors_line, wait_until

SAMPLES = 3
SENSORS = [{"name": "temperature", "unit": "°C"}]


class PlayedNode:
    """The node's end of one connection: sends HELLO and `count` samples, and records the acknowledgements."""

    def __init__(self, sock, number, count):
        self.sock, self.number, self.count = sock, number, count
        self.epoch = f"{number:016x}"
        self.acked = self.checks = 0
        self._part = b""

    def receive(self):
        block = self.sock.recv(65_536)
        if not block:
            raise ConnectionResetError
        *lines, self._part = (self._part + block).split(b"\n")
        for line in lines:
            word = line.split()[0]
            if word == b"HELLO":
                hello = {"link": 1, "node": f"n{self.number}", "outbox": self.epoch, "sensors": SENSORS}
                self.sock.sendall(encode("HELLO", {**hello, "held": [[self.epoch, 1, self.count, 1]]}))
            elif word == b"RESUME":
                self.send_samples()
            elif word == b"ACK":
                self.acked = int(line.split()[2])
            elif word == b"CHECK":
                self.checks += 1
                self.sock.sendall(encode("STATUS", True, None, {}))

    def send_samples(self):
        for first in range(1, self.count + 1, 400):
            self.sock.sendall(sensors_line(self.epoch, first, min(400, self.count + 1 - first)))


class Dribbling(PlayedNode):
    """Sends its samples as single bytes."""

    def send_samples(self):
        for byte in sensors_line(self.epoch, 1, self.count):
            self.sock.sendall(bytes([byte]))


class Hasty(PlayedNode):
    """Does not wait for RESUME."""

    def receive(self):
        super().receive()
        if not self.is_done:
            self.is_done = True
            super().send_samples()

    is_done = False

    def send_samples(self):
        pass


class Nodes:
    """Simulated nodes, all served by one thread; each connection is a new one."""

    def __init__(self, test, kinds=(PlayedNode,), count=SAMPLES):
        self.nodes = []
        self._kinds, self._count = kinds, count
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self._listener.getsockname()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        test.addCleanup(self.close)

    def _run(self):
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.02):
                if key.data is None:
                    sock, _ = self._listener.accept()
                    number = len(self.nodes)
                    node = self._kinds[min(number, len(self._kinds) - 1)](sock, number, self._count)
                    self.nodes.append(node)
                    self._selector.register(sock, selectors.EVENT_READ, node)
                else:
                    try:
                        key.data.receive()
                    except OSError:
                        self._selector.unregister(key.fileobj)
                        key.fileobj.close()

    def close(self):
        self._ended.set()
        self._thread.join(LIMIT_S)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()


class LoopCase(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.enterContext(mock.patch.object(tcp_server, "RETRY_S", 0.02))
        self.ledger = FakeLedger()
        self.loop = ConnectionLoop(Clock())

    def collect(self, address, ledger=None):
        link = TcpServerTransport(address, "", "home", ledger or self.ledger, {}, Clock(), loop=self.loop)
        link.start()
        self.addCleanup(link.stop, LIMIT_S)
        return link

    def wait_for_acks(self, nodes, number):
        wait_until(lambda: len(nodes.nodes) == number and all(node.acked == SAMPLES for node in nodes.nodes))


class Many(LoopCase):
    def test_300_connections_have_one_thread_and_one_descriptor_each(self):
        nodes = Nodes(self)
        left = Leftovers()
        links = [self.collect(nodes.address) for _ in range(300)]
        self.wait_for_acks(nodes, 300)
        wait_until(
            lambda: {thread.name for thread in left.threads} == {"collect"}
        )  # the threads that queried the store have ended
        self.assertEqual(len(left.threads), 1)
        self.assertEqual(sum("socket:" in file for file in left.files), 2 * 300)  # both ends belong to this process
        self.assertLessEqual(len(left.files), 3 + 2 * 300)
        self.assertEqual(len(self.ledger.rows), 300 * SAMPLES)
        self.assertTrue(all(link.state.connected for link in links))
        for link in links:
            link.end()
        for link in links:
            self.assertIsNone(link.stop(LIMIT_S))
        left.wait_for_none()

    def test_thread_rests_between_rounds_if_many_peers_send_a_little(self):
        nodes, rounds = Nodes(self), []
        wait_s = ConnectionLoop._wait_s

        def note(loop):
            rounds.append(time.monotonic())
            return wait_s(loop)

        self.enterContext(mock.patch.object(ConnectionLoop, "_wait_s", note))
        for _ in range(12):
            self.collect(nodes.address)
        self.wait_for_acks(nodes, 12)
        began_s, before = time.monotonic(), len(rounds)
        for _ in range(50):
            for link in list(self.loop._members):
                link.wake()
            time.sleep(0.001)
        most = (time.monotonic() - began_s) / connection_loop.ROUND_S + 2
        self.assertLessEqual(len(rounds) - before, most)

    def test_links_can_be_added_after_the_last_has_ended(self):
        nodes = Nodes(self)
        for number in (1, 2):
            link = self.collect(nodes.address)
            self.wait_for_acks(nodes, number)
            self.assertIsNone(link.stop(LIMIT_S))
            wait_until(lambda: self.loop._thread is None)


class Calm(LoopCase):
    """Live samples only, and the next commit is far away."""

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(connection_loop, "CALM_S", 10 * LIMIT_S))
        self.enterContext(mock.patch.object(connection_loop, "STIR_S", -1.0))
        self.enterContext(mock.patch.object(connection_loop, "EXPECT_S", 10 * LIMIT_S))
        self.enterContext(mock.patch.object(connection_loop, "ROUND_S", 0.0))
        self.rests = self.ended = self.wakes = 0
        wait, wake = ConnectionLoop._wait_for_wake, connection_loop.WakePipe.wake

        def note(pipe, limit_s):
            self.rests += 1
            is_woken = wait(pipe, limit_s)
            self.ended += 1
            return is_woken

        def note_wake(pipe):
            self.wakes += 1
            wake(pipe)

        self.enterContext(mock.patch.object(ConnectionLoop, "_wait_for_wake", staticmethod(note)))
        self.enterContext(mock.patch.object(connection_loop.WakePipe, "wake", note_wake))
        self.loop = ConnectionLoop(Clock(), lambda: time.monotonic() + 5 * LIMIT_S)
        self.nodes = Nodes(self)
        self.links = [self.collect(self.nodes.address) for _ in range(12)]
        self.wait_for_acks(self.nodes, 12)
        wait_until(lambda: not self.loop._expecting)  # each has answered CHECK

    def read_until(self, condition):
        """Send CHECK to a node until `condition` is true; its answer makes the loop read all nodes."""
        wait_until(lambda: self.links[1].ask("CHECK", limit_s=LIMIT_S) and condition())

    def wait_for_rest(self):
        """Wait until the loop rests again."""
        before = self.rests
        self.links[-1].wake()
        wait_until(lambda: self.rests > before)

    def test_live_samples_wait_while_commits_are_acknowledged_immediately(self):
        self.ledger.at_once = False
        self.wait_for_rest()
        for node in self.nodes.nodes:
            node.sock.sendall(sensors_line(node.epoch, SAMPLES + 1, 1))
        for _ in range(3):
            self.wait_for_rest()
        self.assertEqual(self.ledger._waiting, [])
        self.read_until(lambda: len(self.ledger._waiting) == 12)
        self.wait_for_rest()
        self.ledger.commit()
        wait_until(lambda: all(node.acked == SAMPLES + 1 for node in self.nodes.nodes))
        self.assertLessEqual(self.ended, self.wakes, "it rests until it is woken")


class CalmSeconds(unittest.TestCase):
    """Calculation of the seconds for which no member needs to be read."""

    def setUp(self):
        self.loop, self.member = ConnectionLoop(FakeClock(), lambda: self.commit_s), LoopMember()
        self.commit_s = math.inf
        self.sleep(100)

    def sleep(self, seconds):
        self.loop.clock.sleep(seconds)
        self.loop._began_s = self.now_s = self.loop.clock.monotonic()

    def assert_calm(self, seconds):
        self.assertAlmostEqual(self.loop._calm_s(self.now_s), seconds)

    def test_rest_lasts_until_its_limit_or_shortly_before_the_next_commit(self):
        self.assert_calm(connection_loop.CALM_S)
        self.loop._began_s -= 0.25
        self.assert_calm(connection_loop.CALM_S - 0.25)
        for left_s in (0.125, 0.0, -self.now_s):
            self.commit_s = self.now_s + left_s
            self.assert_calm(left_s - connection_loop.AHEAD_S)

    def test_no_rest_while_an_answer_is_expected_or_samples_are_held_or_after_an_error(self):
        loop, member = self.loop, self.member
        for begin, end in (
            (lambda: loop.expect(member, True), lambda: loop.expect(member, False)),
            (lambda: loop.expect(member, True), lambda: loop.forget(member)),
            (lambda: loop.hold(member, 1), lambda: loop.hold(member, 0)),
            (lambda: loop.pause(member), lambda: loop.forget(member)),
            (lambda: setattr(loop, "_serves_all", True), lambda: setattr(loop, "_serves_all", False)),
        ):
            begin()
            self.assert_calm(0.0)
            end()
            self.assert_calm(connection_loop.CALM_S)

    def test_missing_answer_prevents_the_rest_for_a_limited_time_only(self):
        other = LoopMember()
        self.loop.expect(self.member, True)
        self.sleep(1.5)
        self.loop.expect(self.member, True)  # as the link does after each round
        self.assert_calm(0.0)
        self.sleep(1.5)
        self.assert_calm(connection_loop.CALM_S)
        self.loop.expect(other, True)
        self.assert_calm(0.0)
        self.loop.expect(other, False)
        self.assert_calm(connection_loop.CALM_S)

    def test_no_rest_soon_after_much_was_read(self):
        for stir in (self.loop.stir, self.loop.hurry):
            stir()
            self.assert_calm(0.0)
            self.sleep(2 * connection_loop.STIR_S)
            self.assert_calm(connection_loop.CALM_S)

    def test_node_that_sends_more_than_live_samples_prevents_the_rest(self):
        for count, is_noticed in ((20, False), (100, True)):
            loop = mock.Mock(is_full=False)
            link = TcpServerTransport(("127.0.0.1", 1), "", "home", FakeLedger(), {}, Clock(), loop=loop)
            wire = mock.Mock(is_full=False)
            wire.receive.return_value = [sensors_line("0" * 16, 1, 1)[:-1]] * count
            link._read(wire, mock.Mock(collecting=True, is_resuming=False))
            self.assertEqual(loop.stir.called, is_noticed)


class BadPeers(LoopCase):
    def test_peer_that_sends_single_bytes_delays_no_other_and_loses_nothing(self):
        nodes = Nodes(self, (Dribbling, PlayedNode))
        for _ in range(12):
            self.collect(nodes.address)
        self.wait_for_acks(nodes, 12)
        self.assertEqual(self.ledger.seqs(nodes.nodes[0].epoch), list(range(1, SAMPLES + 1)))

    def test_peer_that_never_reads_is_closed_and_delays_no_other(self):
        self.enterContext(mock.patch.object(tcp_connection, "STUCK_BYTES", 4 * LINE_BYTES))
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        deaf_link = self.collect(listener.getsockname())
        deaf, _ = listener.accept()
        self.addCleanup(deaf.close)
        wait_until(lambda: deaf_link._current)
        deaf_link._current[0]._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        flood = threading.Thread(target=self.say_nonsense, args=(deaf,))
        flood.start()
        nodes = Nodes(self)
        for _ in range(10):
            self.collect(nodes.address)
        self.wait_for_acks(nodes, 10)
        wait_until(lambda: deaf_link.state.fault not in ("", "not reached yet"))
        flood.join(LIMIT_S)
        self.assertFalse(flood.is_alive())

    @staticmethod
    def say_nonsense(sock):
        sock.settimeout(LIMIT_S)
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(b"NONSENSE of a peer that does not read\n" * 1000)

    def test_flooding_peer_does_not_delay_others(self):
        """Each peer is read once per round, up to a limit of bytes."""
        ended = threading.Event()

        class Flooding(PlayedNode):
            def send_samples(self):
                threading.Thread(target=self.flood, daemon=True).start()

            def flood(self):
                first = 1
                with contextlib.suppress(OSError):
                    while not ended.is_set():
                        self.sock.sendall(sensors_line(self.epoch, first, 400))
                        first += 400

        nodes = Nodes(self, (Flooding, PlayedNode))
        self.addCleanup(ended.set)
        self.collect(nodes.address)
        wait_until(lambda: len(self.ledger.rows) > 2000)
        self.ledger.rows.clear()
        for _ in range(10):
            self.collect(nodes.address)
        wait_until(lambda: len(nodes.nodes) == 11 and all(node.acked == SAMPLES for node in nodes.nodes[1:]))
        self.assertGreater(len(self.ledger.rows), 10 * SAMPLES)  # the flood continued during this time

    def test_address_that_does_not_answer_delays_no_other(self):
        """The SYN is dropped, as with a machine that is switched off."""
        self.enterContext(mock.patch.object(tcp_connector, "CONNECT_S", LIMIT_S))
        later_s = [0.0]
        self.loop.clock.monotonic = lambda: time.monotonic() + later_s[0]
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.addCleanup(full.close)
        for _ in range(2):  # these fill the accept queue
            sock = socket.socket()
            self.addCleanup(sock.close)
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        away = [self.collect(full.getsockname()) for _ in range(10)]
        nodes = Nodes(self)
        for _ in range(10):
            self.collect(nodes.address)
        self.wait_for_acks(nodes, 10)
        self.assertEqual({link.state.fault for link in away}, {"not reached yet"})  # the attempts are still in progress
        self.assertFalse(set(away) & set(self.loop._expecting))  # the others may rest during this time
        later_s[0] = LIMIT_S
        for link in away:
            link.wake()
        wait_until(lambda: all(link.state.fault == "cannot be reached: timed out" for link in away))

    def test_nonsense_is_read_in_small_parts_and_completely(self):
        """In a round, a peer whose bytes are all separate lines costs no more than one that sends samples."""
        most, asked = [], []
        receive = tcp_server_session.ServerSession.receive_lines

        def note(session, lines):
            most.append(len(lines))
            receive(session, lines)

        class Babbling(PlayedNode):
            def send_samples(self):
                self.sock.sendall(b"\n" * 9000)
                super().send_samples()
                asked.append(True)

        self.enterContext(mock.patch.object(tcp_server_session.ServerSession, "receive_lines", note))
        nodes = Nodes(self, (Babbling, PlayedNode))
        for _ in range(10):
            self.collect(nodes.address)
        self.wait_for_acks(nodes, 10)
        self.assertTrue(asked)
        self.assertGreater(sum(most), 9000)
        self.assertLessEqual(max(most), tcp_server.MOST_LINES)

    def test_slow_query_of_marks_delays_no_other_node(self):
        self.ledger = SlowLedger(LIMIT_S)
        self.addCleanup(self.ledger.answers.set)
        self.enterContext(mock.patch.object(tcp_server, "CHECK_AFTER_S", 0.01))
        nodes = Nodes(self, (Hasty, PlayedNode))
        first = self.collect(nodes.address)
        wait_until(lambda: self.ledger.asked)
        for _ in range(10):
            self.collect(nodes.address)
        wait_until(lambda: len(nodes.nodes) == 11 and all(node.acked == SAMPLES for node in nodes.nodes[1:]))
        self.assertFalse(first.state.connected)
        with mock.patch.object(tcp_server_session, "AUTH_S", 0.0):
            first.wake()
            wait_until(lambda: nodes.nodes[0].checks > 2)  # the node receives CHECK; its HELLO arrived in time
            self.ledger.answers.set()
            wait_until(lambda: nodes.nodes[0].acked == SAMPLES)
        self.assertEqual(len(nodes.nodes), 11, "it is the same connection")

    def test_link_stops_in_time_during_a_query_of_marks(self):
        self.ledger = SlowLedger(LIMIT_S)
        self.addCleanup(self.ledger.answers.set)
        nodes = Nodes(self)
        link = self.collect(nodes.address)
        wait_until(lambda: self.ledger.asked)
        self.assertIsNone(link.stop(LIMIT_S))
        self.ledger.answers.set()
        wait_until(lambda: not self.loop.helpers._threads)
        self.assertFalse(link.state.connected)

    def test_store_that_never_answers_is_reported_and_queried_again(self):
        self.ledger = SlowLedger(LIMIT_S)
        self.addCleanup(self.ledger.answers.set)
        nodes = Nodes(self)
        self.enterContext(mock.patch.object(tcp_server, "CHECK_AFTER_S", 0.01))
        self.enterContext(mock.patch.object(tcp_server, "RETRY_S", LIMIT_S))
        with mock.patch.object(tcp_server, "STORE_S", 0.05):
            link = self.collect(nodes.address)
            wait_until(lambda: link.state.fault == "this server's database does not answer")
        wait_until(lambda: self.ledger.asked)  # by the thread of the first query, which may be late
        link.move(nodes.address)  # which makes it try again immediately
        wait_until(lambda: link.state.connected)

    def test_error_of_the_store_ends_the_attempt_and_is_reported(self):
        nodes = Nodes(self)
        with mock.patch.object(self.ledger, "marks", side_effect=StoreDamaged("page 7")):
            link = self.collect(nodes.address)
            wait_until(lambda: link.state.fault == tcp_faults.STORE_DAMAGED)
        with mock.patch.object(self.ledger, "marks", side_effect=NotStored("the database does not answer")):
            wait_until(lambda: link.state.fault == "the database does not answer")
        wait_until(lambda: link.state.connected)


class SlowLedger(FakeLedger):
    """The first caller of `marks` waits for the answer."""

    def __init__(self, limit_s):
        super().__init__()
        self.asked, self.answers, self._limit_s = [], threading.Event(), limit_s

    def marks(self, node, outbox, epochs):
        self.asked.append(node)
        if len(self.asked) == 1:
            self.answers.wait(self._limit_s)
        return super().marks(node, outbox, epochs)


class Shortage(LoopCase):
    def test_store_is_queried_even_if_no_thread_can_be_started(self):
        self.loop.helpers = mock.Mock()
        self.loop.helpers.run.side_effect = RuntimeError("can't start new thread")
        nodes = Nodes(self)
        self.collect(nodes.address)
        self.wait_for_acks(nodes, 1)
        self.loop.helpers.run.assert_called()

    def test_missing_descriptor_is_reported_and_tried_again(self):
        nodes = Nodes(self)
        real, failing = socket.socket, threading.Event()
        failing.set()

        def fail(*arguments, **options):
            if failing.is_set() and threading.current_thread().name == "collect":
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(*arguments, **options)

        first = self.collect(nodes.address)
        self.wait_for_acks(nodes, 1)
        with mock.patch.object(tcp_connector.socket, "socket", fail):
            second = self.collect(nodes.address)
            wait_until(lambda: second.state.fault == "cannot be reached: Too many open files")
            self.assertTrue(first.state.connected)
            failing.clear()
            self.wait_for_acks(nodes, 2)
        self.assertEqual(second.state.fault, "")

    def test_missing_look_up_thread_is_reported_and_tried_again(self):
        nodes = Nodes(self)
        self.collect(nodes.address)
        self.wait_for_acks(nodes, 1)
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            link = self.collect(("localhost", nodes.address[1]))
            wait_until(lambda: link.state.fault == "cannot be reached: can't start new thread")
        self.wait_for_acks(nodes, 2)

    def test_failed_start_of_the_loop_leaves_nothing_and_can_be_repeated(self):
        nodes = Nodes(self)
        link = TcpServerTransport(nodes.address, "", "home", self.ledger, {}, Clock(), loop=self.loop)
        left = Leftovers()
        with (
            mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")),
            self.assertRaises(RuntimeError),
        ):
            link.start()
        self.assertEqual(left.files, set())
        self.assertIsNone(link.stop(0.0))
        self.collect(nodes.address)
        self.wait_for_acks(nodes, 1)

    def test_lack_of_memory_in_one_session_ends_only_that_session(self):
        receive, failing = tcp_server_session.ServerSession.receive_lines, threading.Event()
        failing.set()

        def fail(session, lines):
            if failing.is_set() and any(b'"n1"' in line for line in lines):
                raise MemoryError
            receive(session, lines)

        self.enterContext(mock.patch.object(tcp_server_session.ServerSession, "receive_lines", fail))
        self.enterContext(mock.patch.object(tcp_server, "RETRY_S", LIMIT_S))
        nodes = Nodes(self)
        links = []
        for number in range(3):
            links.append(self.collect(nodes.address))
            wait_until(lambda number=number: len(nodes.nodes) == number + 1)
        told = "is not collected from: internal error of this server, see its log (MemoryError)"
        wait_until(lambda: links[1].state.fault == told)
        wait_until(lambda: nodes.nodes[0].acked == nodes.nodes[2].acked == SAMPLES)
        self.assertTrue(links[0].state.connected and links[2].state.connected)
        failing.clear()
        links[1].move(nodes.address)  # which makes it try again immediately
        wait_until(lambda: links[1].state.connected)

    def test_lack_of_memory_between_sessions_ends_no_session(self):
        nodes = Nodes(self)
        link = self.collect(nodes.address)
        self.wait_for_acks(nodes, 1)
        failures = iter([MemoryError(), MemoryError()])
        rest = ConnectionLoop._rest

        def fail(loop, pipe):
            for error in failures:
                raise error
            return rest(loop, pipe)

        with mock.patch.object(ConnectionLoop, "_rest", fail), mock.patch.object(connection_loop, "PAUSE_S", 0.001):
            for _ in range(3):
                self.assertTrue(link.ask("CHECK", limit_s=LIMIT_S))
        self.assertIsNone(next(failures, None))


class FullLedger(FakeLedger):
    """Accepts nothing while it is full."""

    def __init__(self):
        super().__init__()
        self.is_full = True
        self.asked = 0

    def submit(self, batch, urgent=False, limit_s=None):
        assert limit_s == 0.0, "it must not wait"
        self.asked += 1
        return not self.is_full and super().submit(batch)


class NoRoom(LoopCase):
    """The Ingestor accepts nothing: its buffer or its disk is full."""

    def setUp(self):
        super().setUp()
        self.ledger = FullLedger()

    def fill(self):
        """Return a link that holds the maximum number of samples, and its nodes."""
        self.enterContext(mock.patch.object(connection_loop, "MOST_HELD", 1))
        nodes = Nodes(self)
        link = self.collect(nodes.address)
        wait_until(lambda: self.loop.is_full)
        nodes.nodes[0].sock.sendall(b"\n")  # data sent from now on is not read
        wait_until(lambda: link._is_paused)
        return link, nodes

    def test_held_samples_are_limited_and_later_complete_and_in_order(self):
        most = 1000
        self.enterContext(mock.patch.object(connection_loop, "MOST_HELD", most))
        nodes = Nodes(self, count=800)
        links = [self.collect(nodes.address) for _ in range(6)]
        wait_until(lambda: self.loop.is_full and all(link.state.connected for link in links))

        def unread():  # the others' answers to CHECK may be unread
            return [link for link in links if link._held.count < 800]

        wait_until(
            lambda: all(link in self.loop._paused for link in unread())
        )  # evaluated again each time: one may just be being read
        self.assertGreater(len(unread()), 2)
        self.assertEqual(self.ledger.rows, [])
        self.assertLess(sum(link._held.count for link in links), most + 2 * 400)  # plus the samples of one read
        self.ledger.is_full = False
        wait_until(lambda: all(node.acked == 800 for node in nodes.nodes))
        for node in nodes.nodes:
            self.assertEqual(self.ledger.seqs(node.epoch), list(range(1, 801)))
        self.assertEqual(self.ledger.repeats, 0)
        self.assertEqual((self.loop._held, self.loop._paused), ({}, {}))

    def test_all_are_read_and_silence_is_detected_while_little_is_held(self):
        nodes = Nodes(self)
        links = [self.collect(nodes.address) for _ in range(3)]
        wait_until(lambda: len(self.loop._held) == 3)
        self.assertEqual((self.loop.is_full, self.loop._paused), (False, {}))
        for link in links:
            self.assertTrue(link.ask("CHECK", limit_s=LIMIT_S))

    def test_paused_node_receives_check_and_does_not_time_out(self):
        self.enterContext(mock.patch.object(tcp_server, "CHECK_AFTER_S", 0.01))
        link, nodes = self.fill()
        with mock.patch.object(tcp_server_session, "SILENCE_S", 0.05):
            before = nodes.nodes[0].checks
            wait_until(lambda: nodes.nodes[0].checks > before + 4)
        self.assertTrue(link.state.connected)
        self.ledger.is_full = False
        self.wait_for_acks(nodes, 1)
        self.assertEqual(len(nodes.nodes), 1, "it is the same connection")

    def test_held_samples_are_submitted_again_at_intervals(self):
        self.fill()
        asked, began_s = self.ledger.asked, time.monotonic()
        wait_until(lambda: self.ledger.asked > asked + 2)
        self.assertGreater(time.monotonic() - began_s, connection_loop.FULL_S)

    def test_link_with_held_samples_stops_in_time(self):
        link, _ = self.fill()
        self.assertIsNone(link.stop(LIMIT_S))
        self.assertEqual(self.ledger.rows, [])

    def test_lost_node_with_held_samples_does_not_block_others(self):
        link, nodes = self.fill()
        other = self.collect(nodes.address)
        with mock.patch.object(link, "hand_on", side_effect=MemoryError):
            wait_until(lambda: not link.state.connected)
        self.ledger.is_full = False
        wait_until(lambda: {0, 1} <= {int(epoch, 16) for _, epoch, _ in self.ledger.rows} or len(nodes.nodes) > 2)
        wait_until(lambda: other.state.connected and link.state.connected)
        wait_until(lambda: not self.loop._held and not self.loop._paused)


class Failing(LoopMember):
    def __init__(self, loop):
        self.loop, self.errors, self.served = loop, [], 0

    def serve(self, events):
        self.served += 1
        if self.served == 1:
            raise ValueError("an internal error")
        self.loop.remove(self)

    def fail(self, error):
        self.errors.append(error)


class Members(unittest.TestCase):
    def test_exception_of_a_member_is_passed_to_that_member_only(self):
        loop = ConnectionLoop(Clock())
        members = [Failing(loop), Failing(loop)]
        for member in members:
            loop.add(member)
        wait_until(lambda: all(member.errors for member in members))
        for member in members:
            loop.wake(member)
            self.assertTrue(loop.wait_for_end(member, LIMIT_S))
            self.assertEqual([str(error) for error in member.errors], ["an internal error"])

    def test_member_whose_fail_raises_is_served_again_like_all_others(self):
        class Hopeless(Failing):
            def fail(self, error):
                super().fail(error)
                if len(self.errors) < 3:
                    raise TypeError("a fault in how it is ended")
                self.loop.remove(self)

            def serve(self, events):
                raise ValueError("an internal error")

        self.enterContext(mock.patch.object(connection_loop, "PAUSE_S", 0.001))
        loop = ConnectionLoop(Clock())
        hopeless, other = Hopeless(loop), Failing(loop)
        with self.assertLogs(connection_loop.log, "ERROR") as logged:
            loop.add(other)
            loop.add(hopeless)
            self.assertTrue(loop.wait_for_end(hopeless, LIMIT_S))
            loop.wake(other)
            self.assertTrue(loop.wait_for_end(other, LIMIT_S))
        self.assertIn("a fault in how it is ended", logged.output[0])
        wait_until(lambda: loop._thread is None)

    def test_lack_of_memory_loses_no_wake_up(self):
        """Memory was exhausted after the pipe was read, but before the list of woken members was read."""
        loop, served = ConnectionLoop(Clock()), []

        class Waiting(LoopMember):
            def serve(self, events):
                served.append(events)
                if len(served) == 2:
                    loop.remove(self)

        member, drain = Waiting(), connection_loop.WakePipe.drain
        failures = iter([MemoryError])

        def fail(pipe):
            drain(pipe)
            if served:
                for error in failures:
                    raise error

        with (
            self.assertLogs(connection_loop.log, "ERROR"),
            mock.patch.object(connection_loop.WakePipe, "drain", fail),
            mock.patch.object(connection_loop, "PAUSE_S", 0.001),
        ):
            loop.add(member)
            wait_until(lambda: served)
            loop.wake(member)
            self.assertTrue(loop.wait_for_end(member, LIMIT_S))
        self.assertIsNone(next(failures, None))

    def test_member_is_served_at_its_time_and_an_earlier_time_is_kept(self):
        times = []

        class Timed(LoopMember):
            def serve(self, events):
                times.append(loop.clock.monotonic())
                if len(times) == 1:
                    loop.call_in(self, 0.02)
                    loop.call_in(self, LIMIT_S)
                else:
                    loop.remove(self)

        loop, member = ConnectionLoop(Clock()), Timed()
        loop.add(member)
        self.assertTrue(loop.wait_for_end(member, LIMIT_S))
        self.assertGreaterEqual(times[1] - times[0], 0.02)

    def test_wait_for_end_returns_after_its_limit(self):
        class Staying(LoopMember):
            ended = False

            def serve(self, events):
                if self.ended:
                    loop.remove(self)

        loop, member = ConnectionLoop(Clock()), Staying()
        loop.add(member)
        self.assertFalse(loop.wait_for_end(member, 0.01))
        member.ended = True
        loop.wake(member)
        self.assertTrue(loop.wait_for_end(member, LIMIT_S))


if __name__ == "__main__":
    unittest.main()
