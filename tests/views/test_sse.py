"""Live values: every commit reaches every client, a reconnected client misses nothing, a blocked one is dropped."""

import fcntl
import json
import os
import socket
import threading
import unittest
from types import SimpleNamespace

from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.http.message import HTTPError, Request
from pigeonpost.server.latest_samples import LatestSample
from pigeonpost.views.context import RequestContext
from pigeonpost.views.sse import EventStream
from protocol import Sample
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, WALL_MS, wait_until


def setUpModule():
    use_memory_disk()


class StreamClient:
    """The client's end of an event stream."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(LIMIT_S)
        self._data = b""
        self.last_id = ""

    def block(self):
        """Return the fields of the next block by name, or None at the end of the stream; a comment has the name ""."""
        while b"\n\n" not in self._data:
            try:
                part = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not part:
                return None
            self._data += part
        block, _, self._data = self._data.partition(b"\n\n")
        fields = {line.partition(":")[0]: line.partition(":")[2].strip() for line in block.decode().split("\n")}
        self.last_id = fields.get("id", self.last_id)
        return fields

    def samples(self):
        """Return the samples of the next event."""
        while (fields := self.block()) is not None:
            if "data" in fields:
                return json.loads(fields["data"])["samples"]
        raise AssertionError("the stream has ended")


class StreamCase(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.latest = {}
        self.house = SimpleNamespace(clock=self.clock, ingestor=SimpleNamespace(latest=self.latest))
        self.live = self.make()

    def make(self, **settings):
        live = EventStream(self.house, **settings)
        self.addCleanup(live.stop, LIMIT_S)
        live.start()
        return live

    def visit(self, last_id=None, path="/events"):
        headers = {} if last_id is None else {"last-event-id": last_id}
        return RequestContext(self.house, Request("GET", path, "1.1", headers), (), print)

    def page(self, last_id=None, is_signed_in=lambda: True, live=None, wait=True, buffer=None, path="/events"):
        """Open a stream and wait until it is served: it receives all later commits as events."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        if buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        live = live or self.live
        answer = live.answer(self.visit(last_id, path), is_signed_in)
        self.assertEqual(answer.kind, "text/event-stream; charset=utf-8")
        self.assertEqual(answer.headers["Cache-Control"], "no-store")
        answer.live(theirs)
        page = StreamClient(ours)
        if wait:
            self.assertEqual(page.block(), {"retry": "3000"})
        return page

    def store(self, node="basement", values=None, units=None, live=None):
        """Commit a sample of `node`."""
        values = {"temperature": 21.5} if values is None else values
        units = {"temperature": "°C"} if units is None else units
        self.latest[node] = LatestSample(Sample(1, WALL_MS, 1, values, {}, ""), units, WALL_MS)
        (live or self.live).on_commit([SimpleNamespace(node=node)])

    def beat(self, live=None):
        """Advance the clock to the next heartbeat, and wake the thread with a commit so that it reads the clock."""
        self.clock.sleep(15)
        (live or self.live).on_commit([])


class Events(StreamCase):
    def test_new_client_first_receives_the_present_values(self):
        self.store()
        self.assertEqual(
            self.page().samples(),
            [{"node": "basement", "time_ms": WALL_MS, "values": {"temperature": "21.5 °C"}}],
        )

    def test_first_event_is_empty_without_samples(self):
        self.assertEqual(self.page().samples(), [])

    def test_every_commit_is_sent_to_every_client(self):
        pages = [self.page() for _ in range(5)]
        for page in pages:
            page.samples()
        self.store(values={"temperature": 22.25, "light": 1500, "load": 0}, units={"temperature": "°C"})
        for page in pages:
            (sample,) = page.samples()
            self.assertEqual(sample["values"], {"temperature": "22.25 °C", "light": "1,500", "load": "0"})

    def test_failed_reading_is_sent_as_a_dash(self):
        page = self.page()
        page.samples()
        self.store(values={"temperature": None})
        self.assertEqual(page.samples()[0]["values"], {"temperature": "–"})

    def test_commit_of_several_nodes_is_one_event(self):
        page = self.page()
        page.samples()
        for node in "abc":
            self.latest[node] = LatestSample(Sample(1, WALL_MS, 1, {"t": 1}, {}, ""), {}, WALL_MS)
        self.live.on_commit([SimpleNamespace(node=node) for node in "abcaz"])  # z has sent only a gap
        self.assertEqual([sample["node"] for sample in page.samples()], ["a", "b", "c"])

    def test_committing_thread_never_waits_for_clients(self):
        """The pipe that wakes the other thread becomes full."""
        self.page(wait=False)
        fcntl.fcntl(self.live._wake_pipe._writer, fcntl.F_SETPIPE_SZ, 4096)
        writer = threading.Thread(target=lambda: [self.live.on_commit([]) for _ in range(10_000)])
        writer.start()
        writer.join(LIMIT_S)
        self.assertFalse(writer.is_alive())

    def test_event_ids_contain_the_run_and_a_number(self):
        page = self.page()
        page.samples()
        first = page.last_id
        self.store()
        page.samples()
        run, _, number = first.partition("-")
        self.assertRegex(run, r"^[0-9a-f]{6}$")
        self.assertEqual(page.last_id, f"{run}-{int(number) + 1}")


class Reconnection(StreamCase):
    def events(self, count, page):
        """Commit `count` samples; `page` receives each of them."""
        for number in range(count):
            self.store(values={"temperature": number})
            page.samples()

    def setUp(self):
        super().setUp()
        self.first = self.page()
        self.first.samples()

    def texts_from(self, last_id, count):
        page = self.page(last_id)
        return [page.samples()[0]["values"]["temperature"] for _ in range(count)]

    def test_reconnected_client_receives_missed_events(self):
        self.events(3, self.first)
        last_id = self.first.last_id
        self.events(3, self.first)
        self.assertEqual(self.texts_from(last_id, 3), ["0 °C", "1 °C", "2 °C"])

    def test_reconnected_client_without_missed_events_receives_only_new_ones(self):
        self.events(3, self.first)
        page = self.page(self.first.last_id)
        self.store(values={"temperature": 50})
        self.assertEqual(page.samples()[0]["values"]["temperature"], "50 °C")

    def test_client_that_missed_too_many_events_receives_the_present_values(self):
        self.events(1, self.first)
        last_id = self.first.last_id
        self.events(66, self.first)
        page = self.page(last_id)
        self.assertEqual(page.samples()[0]["values"]["temperature"], "65 °C")
        self.assertEqual(page.last_id, self.first.last_id)
        self.events(1, self.first)
        self.assertEqual(page.samples()[0]["values"]["temperature"], "0 °C")

    def test_all_stored_events_are_sent_again(self):
        self.events(1, self.first)
        last_id = self.first.last_id
        self.events(64, self.first)
        self.assertEqual(self.texts_from(last_id, 64), [f"{number} °C" for number in range(64)])

    def test_unknown_event_id_is_ignored(self):
        self.events(3, self.first)
        _, _, number = self.first.last_id.partition("-")
        for last_id in (f"abcdef-{int(number) - 2}", number, "", "-", f"{self.first.last_id}0", "x" * 5000,
                        f"{self.first.last_id[:6]}--1", f"{self.first.last_id[:6]}-²"):  # fmt: skip
            self.assertEqual(self.texts_from(last_id, 1), ["2 °C"], last_id)


class Clients(StreamCase):
    def test_number_of_clients_is_limited(self):
        live = self.make(most_clients=2)
        pages = [self.page(live=live), self.page(live=live)]
        with self.assertRaises(HTTPError) as caught:
            live.answer(self.visit(), lambda: True)
        self.assertEqual((caught.exception.status, caught.exception.code), (503, "busy"))
        self.assertEqual(caught.exception.headers, {"Retry-After": "30"})
        pages[0].sock.close()
        wait_until(lambda: live.clients == 1, "the closed client is removed")
        self.page(live=live)

    def test_client_that_does_not_read_is_disconnected_and_others_are_not_affected(self):
        good, slow = self.page(), self.page(buffer=4096)
        good.samples()
        texts = {f"sensor_{number}": number for number in range(400)}
        for _ in range(100):
            self.store(values=texts)
            self.assertEqual(len(good.samples()[0]["values"]), 400)
            if self.live.clients == 1:
                break
        self.assertEqual(self.live.clients, 1)
        while slow.block() is not None:  # data sent before the end of the stream
            pass

    def test_slow_client_receives_all_events(self):
        slow = self.page(buffer=4096)
        slow.samples()
        good = self.page()
        good.samples()
        values = {f"sensor_{number}": number for number in range(100)}
        for _ in range(10):
            self.store(values=values)
            good.samples()
        for _ in range(10):
            self.assertEqual(len(slow.samples()[0]["values"]), 100)
        self.assertEqual(slow.last_id, good.last_id)

    def test_data_from_a_client_is_ignored(self):
        page = self.page()
        page.samples()
        page.sock.sendall(b"x" * 5000)
        self.store()
        self.assertEqual(len(page.samples()), 1)

    def test_disconnected_client_is_removed(self):
        page = self.page()
        wait_until(lambda: self.live.clients == 1)
        page.sock.close()
        wait_until(lambda: self.live.clients == 0, "the client is removed")

    def test_heartbeat_is_sent_when_it_is_due(self):
        page = self.page()
        page.samples()
        self.beat()
        self.assertEqual(page.block(), {"": ""})
        self.beat()
        self.assertEqual(page.block(), {"": ""})

    def test_heartbeat_is_sent_without_any_commit(self):
        self.house.clock = Clock()
        page = self.page(live=self.make(heartbeat_s=0.02))
        page.samples()
        self.assertEqual([page.block(), page.block()], [{"": ""}, {"": ""}])

    def test_client_is_disconnected_at_the_heartbeat_after_its_session_ended(self):
        may = [True]
        guest, other = self.page(is_signed_in=lambda: may[0]), self.page()
        for page in (guest, other):
            page.samples()
        self.beat()
        self.assertEqual(guest.block(), {"": ""})
        other.block()
        may[0] = False
        self.beat()
        self.assertIsNone(guest.block())
        self.assertEqual(other.block(), {"": ""})

    def test_client_whose_session_ended_does_not_receive_the_next_event(self):
        may = [True]
        guest, other = self.page(is_signed_in=lambda: may[0]), self.page()
        for page in (guest, other):
            page.samples()
        may[0] = False
        self.store("basement")
        self.assertEqual([sample["node"] for sample in other.samples()], ["basement"])
        self.assertIsNone(guest.block())


class SelectedNodes(StreamCase):
    """`/events?nodes=...`: a page that shows some of thousands of nodes receives only their values."""

    def nodes(self, page):
        return [sample["node"] for sample in page.samples()]

    def test_client_receives_only_the_requested_nodes(self):
        for node in ("attic", "basement", "shed"):
            self.store(node)
        page, all_nodes = self.page(path="/events?nodes=shed,attic"), self.page()
        self.assertEqual(self.nodes(page), ["attic", "shed"])
        self.assertEqual(self.nodes(all_nodes), ["attic", "basement", "shed"])
        for node in ("basement", "shed"):
            self.store(node)
            self.assertEqual(self.nodes(all_nodes), [node])
        self.assertEqual(self.nodes(page), ["shed"])

    def test_reconnected_client_receives_missed_events_of_its_nodes(self):
        page = self.page(path="/events?nodes=shed,attic")
        self.assertEqual(page.samples(), [])
        watcher = self.page()
        watcher.samples()
        for node in ("shed", "basement", "attic"):
            self.store(node)
            watcher.samples()
        again = self.page(page.last_id, path="/events?nodes=shed,attic")
        self.assertEqual([self.nodes(again), self.nodes(again)], [["shed"], ["attic"]])

    def test_first_event_contains_only_the_requested_nodes(self):
        for k in range(3000):
            self.latest[f"n{k}"] = LatestSample(Sample(1, WALL_MS, 1, {"t": k}, {}, ""), {"t": "°C"}, WALL_MS)
        page = self.page(path="/events?nodes=" + ",".join(f"n{k}" for k in range(60)))
        self.assertEqual(len(page.samples()), 60)
        self.store("n7")
        self.assertEqual(self.nodes(page), ["n7"])

    def test_invalid_node_lists_are_rejected(self):
        for query in (",", "a,<b>", "../x", ",".join(f"n{k}" for k in range(61))):
            with self.assertRaises(HTTPError) as raised:
                self.live.answer(self.visit(path=f"/events?nodes={query}"), lambda: True)
            self.assertEqual(raised.exception.status, 400)


class Shutdown(StreamCase):
    def test_stop_ends_all_streams(self):
        pages = [self.page() for _ in range(3)]
        self.live.stop(LIMIT_S)
        for page in pages:
            while page.block() is not None:
                pass
        with self.assertRaises(HTTPError):
            self.live.answer(self.visit(), lambda: True)

    def test_stop_ends_a_stream_that_was_not_yet_served(self):
        live = EventStream(self.house)
        self.addCleanup(live.stop, LIMIT_S)
        page = self.page(live=live, wait=False)
        live.start()
        live.stop(LIMIT_S)
        while page.block() is not None:
            pass

    def test_stop_works_before_start(self):
        live = EventStream(self.house)
        live.stop(LIMIT_S)

    def test_stop_closes_all_descriptors_and_later_notes_are_ignored(self):
        before = set(os.listdir("/proc/self/fd"))
        live = EventStream(self.house)
        live.start()
        live.stop(LIMIT_S)
        self.assertLessEqual(set(os.listdir("/proc/self/fd")), before)
        live.on_commit([])

    def test_disconnected_clients_leave_no_descriptors(self):
        self.page().samples()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(200):
            wait_until(lambda: self.live.clients < 10, "a client can be added")
            ours, theirs = socket.socketpair()
            self.live.answer(self.visit(), lambda: True).live(theirs)
            ours.close()
        wait_until(lambda: self.live.clients == 1, "all clients but one are removed")
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before + 2)


if __name__ == "__main__":
    unittest.main()
