"""Tests of the router: each packet is forwarded once, even with other routers in parallel or in a ring."""

import os
import shutil
import subprocess
import threading
import time
import unittest
import uuid

from pigeonpost.compat.multicast_bus.router import REMEMBER_S, Network, RecentPackets, Router
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.multicast import Path
from tests.compat.multicast_bus.support import LOOPBACK, Ear, control, free_groups, reading, taken_apart
from tests.forked import Forked
from tests.support import LIMIT_S, wait_until

IN_CI = "CI" in os.environ


class RouterMemory(unittest.TestCase):
    def test_memory_recognises_a_repeated_key(self):
        memory = RecentPackets()
        self.assertTrue(memory.add(b"a", 100.0))
        self.assertFalse(memory.add(b"a", 100.0))
        self.assertTrue(memory.add(b"b", 100.0))

    def test_memory_keeps_a_key_for_at_least_ten_seconds(self):
        memory = RecentPackets()
        memory.add(b"first", 100.0)
        self.assertTrue(memory.add(b"a", 109.9))
        self.assertFalse(memory.add(b"a", 109.9 + REMEMBER_S))
        for later in range(5):
            memory.add(str(later).encode(), 130.0 + 11 * later)
        self.assertTrue(memory.add(b"a", 200.0))

    def test_memory_size_is_limited(self):
        memory = RecentPackets()
        for n in range(250_000):
            memory.add(n.to_bytes(4, "big"), 100.0)
        self.assertLessEqual(len(memory._now) + len(memory._before), 200_000)
        self.assertFalse(memory.add((249_999).to_bytes(4, "big"), 100.0))


class RouterOnLoopback(unittest.TestCase):
    def setUp(self):
        groups = free_groups(4)
        path = Path(LOOPBACK, 1, True)
        self.networks = Network(groups[0], groups[1], path), Network(groups[2], groups[3], path)
        self.ears = [Ear(self, group) for group in groups]

    def router(self, standby_s=0.0, networks=None, monotonic=time.monotonic):
        router = Router(*(networks or self.networks), standby_s, monotonic)
        thread = threading.Thread(target=router.run)
        thread.start()

        def end():
            router.stop()
            thread.join(LIMIT_S)
            router.close()

        router.end = end
        self.addCleanup(lambda: router.end())
        return router

    def test_packets_are_forwarded_unchanged_in_both_directions(self):
        self.router()
        for near, far, data in (
            (0, 2, control("P", "R1", "C4", number=5.0)), (2, 0, control("T", "C4", "R1", number=5.0)),
            (1, 3, reading("f", 21.5)), (3, 1, reading("s", b"open", "C5")),
        ):  # fmt: skip
            self.ears[near].say(data)
            self.assertEqual(self.ears[far].next(), data)

    def test_invalid_datagrams_are_not_forwarded(self):
        router = self.router()
        self.ears[0].say(b"junk", b"x" * 2000, reading("i", 1), control("P", number=1.0))
        self.assertEqual(taken_apart(self.ears[2].next()).flag, "P")
        wait_until(lambda: router.forwarded, "it is counted")
        self.assertEqual((router.invalid, router.forwarded), (3, 1))

    def test_packets_of_the_router_itself_are_not_forwarded_again(self):
        router = self.router()
        for n in range(50):
            self.ears[1].say(reading("i", n, sequence=n))
        wait_until(lambda: router.duplicates == 50, "its own copies were received")
        wait_until(lambda: router.forwarded >= 50, "they are counted")
        self.assertEqual(router.forwarded, 50)

    def test_two_routers_in_parallel_make_no_loop(self):
        routers = self.router(), self.router()
        for n in range(100):
            self.ears[n % 2].say(control("I", sequence=n) if n % 2 == 0 else reading("i", n, sequence=n))
            self.ears[n % 2 + 2].say(
                control("I", "R1", sequence=n) if n % 2 == 0 else reading("i", n, "R1", sequence=n)
            )
        copies = wait_until(
            lambda: (
                sum(r.forwarded for r in routers)
                if all(r.forwarded + r.duplicates == 200 + sum(o.forwarded for o in routers) for r in routers)
                else 0
            ),
            "all copies were received",
        )
        self.assertTrue(200 <= copies <= 400, copies)  # forwarded by one router or both, and never back

    def test_ring_of_three_networks_makes_no_loop(self):
        third = free_groups(2)
        other = Network(third[0], third[1], Path(LOOPBACK, 1, True))
        ear = Ear(self, other.control)
        one, two = self.networks
        routers = [self.router(networks=pair) for pair in ((one, two), (two, other), (other, one))]
        self.ears[0].say(control("I", sequence=5))
        self.assertEqual(taken_apart(ear.next()).sequence, 5)
        wait_until(lambda: sum(r.duplicates for r in routers) >= 3, "copies have returned")
        self.ears[0].say(control("I", sequence=6))
        self.ears[2].until("I", sequence=6)
        self.assertLessEqual(sum(r.forwarded for r in routers), 6)

    def test_standby_router_forwards_only_when_the_other_stops(self):
        now_s = [100.0]  # clock of the second router, which only the test advances
        first, second = self.router(), self.router(standby_s=0.01, monotonic=lambda: now_s[0])
        for n in range(50):
            self.ears[1].say(reading("i", n, sequence=n))
        wait_until(lambda: first.forwarded == 50 and second.duplicates >= 50, "the first has forwarded all")
        wait_until(lambda: not second._waiting, "the second has dropped them")
        self.assertEqual(second.forwarded, 0)
        received = [taken_apart(self.ears[3].next()).sequence for _ in range(50)]
        self.assertEqual(received, list(range(50)))
        first.end()
        first.end = lambda: None
        self.ears[1].say(reading("i", 1, sequence=99))
        wait_until(lambda: second._waiting, "the second has received it")
        now_s[0] += 0.01
        self.assertEqual(taken_apart(self.ears[3].next()).sequence, 99)
        wait_until(lambda: second.forwarded == 1, "it was the second one")

    def test_router_rejects_two_equal_networks(self):
        with self.assertRaisesRegex(SettingsError, "both networks have the control group"):
            Router(self.networks[0], self.networks[0])
        with self.assertRaisesRegex(SettingsError, "no interface 'nowhere'"):
            Router(self.networks[0], self.networks[1]._replace(path=Path("nowhere")))


def why_no_namespaces():
    """Return the reason why no network namespace can be created here, or an empty string."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "there is no ip (iproute2)"
    name = f"pp{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


class RouterInNamespaces(unittest.TestCase):
    """Two networks, 10.71.0.0/24 (left) and 10.72.0.0/24 (right), each with a bridge. Routers are connected to both."""

    @classmethod
    def setUpClass(cls):
        reason = why_no_namespaces()
        if reason and IN_CI:
            raise AssertionError(reason)
        if reason:
            raise unittest.SkipTest(reason)
        cls.mark = uuid.uuid4().hex[:6]
        cls.hub = cls.space("hub")
        for bridge in ("left", "right"):
            cls.ip("-n", cls.hub, "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
            cls.ip("-n", cls.hub, "link", "set", bridge, "up")
        cls.near, cls.far = cls.space("near"), cls.space("far")
        cls.plug(cls.near, "left", "10.71.0.1")
        cls.plug(cls.far, "right", "10.72.0.1")
        cls.between = {}  # namespaces of the routers, by number
        for number in (11, 12):
            cls.between[number] = cls.space(f"r{number}")
            cls.plug(cls.between[number], "left", f"10.71.0.{number}")
            cls.plug(cls.between[number], "right", f"10.72.0.{number}")

    @staticmethod
    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=LIMIT_S)

    @classmethod
    def space(cls, name):
        full = f"pp{cls.mark}{name}"
        cls.ip("netns", "add", full)
        cls.addClassCleanup(cls.ip, "netns", "delete", full)
        cls.ip("-n", full, "link", "set", "lo", "up")
        return full

    @classmethod
    def plug(cls, space, bridge, address):
        """Connect a namespace to one of the networks."""
        there = f"v{uuid.uuid4().hex[:8]}"
        cls.ip("-n", cls.hub, "link", "add", there, "type", "veth", "peer", "name", bridge, "netns", space)
        cls.ip("-n", cls.hub, "link", "set", there, "master", bridge, "up")
        cls.ip("-n", space, "addr", "add", f"{address}/24", "dev", bridge)
        cls.ip("-n", space, "link", "set", bridge, "up")

    def control(self, space, *words):
        """control.py as a process in a namespace."""
        return Forked(self, "control.py", *words, namespace=space)

    def ended(self, process):
        """Return the lines of standard output after the process has ended with status 0."""
        self.assertEqual(process.wait(), 0, process.logged)
        return process.said

    def router(self, number, *more):
        ends = "--interface", f"10.71.0.{number}", "--other-interface", "right"
        process = self.control(self.between[number], "router", *ends, *more)
        self.assertIn("joining 226.0.0.221:7001 226.0.0.222:7002 and 227.0.0.111:8001", process.line())
        return process

    def watch(self, *words):
        groups = "--control-group", "227.0.0.111:8001", "--data-group", "227.0.0.112:8002", "--interface", "10.72.0.1"
        process = self.control(self.far, "watch", *groups, *words)
        process.logs("listening to")
        return process

    def say(self, *words):
        self.ended(self.control(self.near, "say", *words, "--interface", "10.71.0.1"))

    def test_multicast_passes_through_the_router(self):
        watch = self.watch("--channel", "control", "--count", "2")
        self.router(11)
        self.say("halt", "C4")
        lines = self.ended(watch)
        self.assertIn(" control N PP -> @@ ", lines[0])
        self.assertIn(" control H PP -> C4 ", lines[1])
        self.assertIn("from 10.72.0.11:", lines[1])

    def test_standby_router_in_parallel_forwards_nothing(self):
        watch = self.watch("--from", "PP", "--count", "10")
        routers = self.router(11), self.router(12, "--standby", "10000")
        for _ in range(5):
            self.say("start", "C4")
        lines = self.ended(watch)
        sequences = [line.split("#")[1].split()[0] for line in lines]
        self.assertEqual(len(sequences), 10, lines)
        self.assertEqual(len(set(sequences)), 10, lines)
        told = []
        for router in routers:
            router.terminate()
            told.append(self.ended(router)[-1])
        self.assertTrue(told[0].startswith("10 packets forwarded, "), told)
        self.assertTrue(told[1].startswith("0 packets forwarded, "), told)

    def test_two_routers_in_parallel_without_standby_make_no_storm(self):
        routers = self.router(11), self.router(12)
        watch = self.watch("--from", "PP", "--count", "10")
        for _ in range(5):
            self.say("start", "C4")
        self.assertEqual(len(self.ended(watch)), 10)
        crossed = 0
        for router in routers:
            router.terminate()
            crossed += int(self.ended(router)[-1].split()[0])
        self.assertTrue(10 <= crossed <= 20, crossed)


if __name__ == "__main__":
    unittest.main()
