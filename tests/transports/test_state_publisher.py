"""States of the nodes for Redis."""

import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports.state_publisher import make_publisher


class StatePublisherTest(unittest.TestCase):
    def setUp(self):
        self.clock, self.state = FakeClock(), NodeState("", "attic")
        self.state.calls_in, self.state.every_s = True, 10.0
        self.ingestor = SimpleNamespace(received_s={}, commit_s=1.0, latest={}, subscribe=lambda _: None)
        context = SimpleNamespace(
            settings={("redis", "url"): "redis://127.0.0.1", ("redis", "prefix"): ""}, name="house", store=None,
            links=[SimpleNamespace(state=self.state)], ingestor=self.ingestor, clock=self.clock,
        )  # fmt: skip
        with mock.patch("pigeonpost.storage.redis_publisher.RedisPublisher") as publisher:
            make_publisher(context, {})
        self.publisher, self.nodes = publisher.return_value, publisher.call_args.args[6]

    def test_status_contains_place_backlog_and_fault(self):
        publisher = self.publisher
        publisher.place, publisher.success_ms, publisher.written = "redis://127.0.0.1", 5, 7
        publisher.report.return_value, publisher.fault = {"lacking": 3}, "no answer"
        (status,) = publisher.statuses()
        self.assertEqual(status, ("redis", "redis", "out", "redis://127.0.0.1", 5, 3, "states", 7, 0, "no answer"))

    def send(self, on):
        self.state.record_contact(self.clock.wall_ms(), self.clock.monotonic())
        self.state.on = on
        self.ingestor.received_s["attic"] = self.clock.monotonic()

    def is_active(self):
        return self.nodes()["attic"]["IsActive"]

    def test_node_is_active_while_it_sends_samples_unless_it_is_switched_off(self):
        self.assertFalse(self.is_active())
        for on, is_active in ((True, True), (False, False), (None, True)):  # None: a client that does not report it
            for later_s, is_late in ((0, False), (35, False), (2, True), (86_400, True)):
                with self.subTest(on=on, later_s=later_s):
                    if later_s == 0:
                        self.send(on)
                    self.clock.sleep(later_s)
                    self.assertEqual(self.is_active(), is_active and not is_late)
        self.send(None)
        self.state.connected = False
        self.assertFalse(self.is_active())


if __name__ == "__main__":
    unittest.main()
