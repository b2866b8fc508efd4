"""Discovery, node side: announces the node's addresses on the local network.

One thread. Errors: those of the network are logged once for each interface, and it is tried again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from pigeonpost.auth.key import Key
from pigeonpost.core.addresses import is_loopback
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.multicast import Path, speaker
from pigeonpost.transports.discovery_datagram import ADDRESS_CHECK_S, DatagramLoop, write_announcement

if TYPE_CHECKING:
    from pigeonpost.node.node_info import NodeInfo

log = logging.getLogger(__name__)

TTL = 1  # this network only

FIRST_S = (0.0, 1.0, 3.0)  # at start and when the address changes it is said more than once: a datagram may be lost


class DiscoveryNodeTransport(DatagramLoop):
    """Announces the node's addresses: at once, when one changes, and periodically."""

    def __init__(self, info: NodeInfo, key: Key, group: tuple[str, int], every_s: float, clock: Clock) -> None:
        super().__init__("announce")
        self._info = info
        self._key = key
        self._group = group
        self._every_s = every_s
        self._clock = clock
        self._faults: dict[str, str] = {}  # of each interface, as it was told last

    def _run(self) -> None:
        said: dict[str, str] = {}
        burst: list[float] = []
        now_s = next_s = self._clock.monotonic()
        while not self._stopping.is_set():
            here = self.reached_at()
            now_s = self._clock.monotonic()
            if here != said:
                burst, said = [now_s + wait_s for wait_s in FIRST_S], here
                next_s = now_s
            if now_s >= next_s:
                self.say(here)
                burst = [at_s for at_s in burst if at_s > now_s]
                next_s = burst[0] if burst else now_s + self._every_s * _some(0.8, 1.2)
            self._wait(min(next_s - now_s, ADDRESS_CHECK_S))

    def reached_at(self) -> dict[str, str]:
        """Where servers can connect: interface to its address, for those on which the node listens."""
        host = self._info.address[0]
        everywhere = host in ("0.0.0.0", "::")
        return {name: address for name, address in self.interfaces().items() if everywhere or address == host}

    def say(self, here: Mapping[str, str]) -> None:
        """One datagram on each interface, its own address first."""
        port = self._info.address[1]
        away = [address for address in here.values() if not is_loopback(address)]
        for name, own in self.interfaces().items():
            # On the loopback interface always: a server on this machine listens to it there, and only there.
            if name not in here and not (away and is_loopback(own)):
                continue
            hosts = list(dict.fromkeys([own, *away] if name in here else away))
            data = write_announcement(self._key, self._info.name, [(host, port) for host in hosts], self._clock)
            fault = ""
            try:
                with speaker(self._group, Path(name, TTL, True)) as sock:
                    sock.send(data)
            except (OSError, SettingsError) as error:
                fault = str(error)
            if fault and fault != self._faults.get(name):
                log.info("cannot announce this node on %s: %s", name, fault)
            self._faults[name] = fault


def _some(low: float, high: float) -> float:
    """A random number between the two. The module random costs a node 0.2 MiB."""
    return low + (high - low) * os.urandom(1)[0] / 255
