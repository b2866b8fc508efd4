"""A network that loses some packets, or all of them for some time: the kernel's TCP under the link.

Everything runs in its own network namespace, in which nftables drops packets between node and server.
"""

import ctypes
import os
import random
import shutil
import subprocess
import time
import unittest
from unittest import mock

from tests.faults.house import House, trial
from tests.support import LIMIT_S, LONG, rounds, wait_until

ROUNDS = rounds("PIGEONPOST_TEST_LOSS", 1, 50)
LONGEST_S = 2.0 if LONG else 0.4
_CLONE_NEWNET = 0x40000000  # unshare(2)
_FROM_SERVER_OR_NODE = "ip saddr 127.0.0.1 ip daddr 127.0.0.1 tcp"


class Loss(unittest.TestCase):
    def setUp(self):
        lacks = _what_is_lacking()
        if lacks:
            (self.fail if os.environ.get("CI") else self.skipTest)(f"no network can be made here: {lacks}")
        self.libc = ctypes.CDLL(None, use_errno=True)
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.addCleanup(os.close, before)
        if self.libc.unshare(_CLONE_NEWNET):  # this thread and its child processes
            raise OSError(ctypes.get_errno(), "unshare")
        self.addCleanup(self.libc.setns, before, _CLONE_NEWNET)
        self.enterContext(mock.patch("tests.faults.house.IS_FORKED", False))
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        nft("add table inet t; add chain inet t link { type filter hook input priority 0; }")

    def test_lost_packets_lose_no_sample(self):
        with trial(f"{ROUNDS} times 30 % loss or nothing at all", every_s=0.01, is_impatient=not LONG) as (
            house,
            chance,
        ):
            wait_until(lambda: house.is_stored(1), "samples are stored")
            for number in range(ROUNDS):
                lose(house, chance, share=100 if number % 2 else 30, seconds=chance.uniform(0.2, LONGEST_S))
            if LONG:  # long enough for both ends to close the connection
                lose(house, chance, share=100, seconds=100.0)
                self.assertIn("received nothing for 45 s", house.server.log.read_text())
                self.assertIn("received nothing for 45 s", house.node.log.read_text())


def lose(house: House, chance: random.Random, share: int, seconds: float) -> None:
    """Drop `share` % of the packets for some time; then deliver all."""
    lost = "drop" if share == 100 else f"numgen random mod 100 < {share} drop"
    nft(f"add rule inet t link {_FROM_SERVER_OR_NODE} dport {house.port} {lost}")
    nft(f"add rule inet t link {_FROM_SERVER_OR_NODE} sport {house.port} {lost}")
    time.sleep(seconds)
    wanted = len(house.heard)
    nft("flush chain inet t link")
    # The server's pauses between attempts grow to one minute.
    wait_until(lambda: house.is_stored(wanted), "what was held up is stored", 3 * LIMIT_S)


def nft(rules: str) -> None:
    subprocess.run(["nft", rules], check=True)


def _what_is_lacking() -> str:
    if os.geteuid() != 0:
        return "it takes root to make a network namespace"
    for tool, package in (("nft", "nftables"), ("ip", "iproute2")):
        if not shutil.which(tool):
            return f"there is no {tool} (Debian package {package})"
    if subprocess.run(["unshare", "--net", "nft", "add table inet t"], capture_output=True).returncode:
        return "this kernel gives no network namespace, or has no nftables"
    return ""


if __name__ == "__main__":
    unittest.main()
