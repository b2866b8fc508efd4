"""Warnings about exceeded limits, which disappear some time after the node was repaired."""

import unittest
from types import SimpleNamespace

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.faults import Faults
from pigeonpost.server.limit_warnings import SHOWN_S, LimitWarnings
from pigeonpost.server.node_status import NodeState


class LimitWarningsTest(unittest.TestCase):
    def test_warning_ends_an_hour_after_the_last_one(self):
        clock, faults = FakeClock(), Faults()
        states = [NodeState("192.168.1.20:5003", "basement"), NodeState("192.168.1.21:5003", "attic")]
        warnings = LimitWarnings([SimpleNamespace(state=state) for state in states], faults, clock)
        warnings.warn("basement", "channels", "sends too many channels")
        clock.sleep(SHOWN_S - 1)
        warnings.warn("basement", "channels", "sends too many channels")
        clock.sleep(SHOWN_S)
        faults.present()
        self.assertEqual(states[0].warnings, {"channels": "sends too many channels"})
        self.assertEqual(states[1].warnings, {})
        clock.sleep(1)
        faults.present()
        self.assertEqual(states[0].warnings, {})


if __name__ == "__main__":
    unittest.main()
