"""Discovery, node side: announces the node's addresses on the local network.

One thread. Errors: network errors are logged once for each interface, and the node tries again.
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

TTL = 1  # routers do not forward the datagram, so it stays in the local network

# Seconds from the start or a change of address to each announcement; several, because datagrams may be lost.
FIRST_S = (0.0, 1.0, 3.0)


class DiscoveryNodeTransport(DatagramLoop):
    """Announces the node's addresses: at the start, when one changes, and periodically.

    Args:
        info: Name and address of the node.
        key: Key of the node's token.
        group: Multicast group and port.
        every_s: Time between two announcements in seconds, varied by 20 % so that nodes do not send at the same time.
        clock: Clock for timers and for the time in the datagram.
    """

    def __init__(self, info: NodeInfo, key: Key, group: tuple[str, int], every_s: float, clock: Clock) -> None:
        super().__init__("announce")
        self._info = info
        self._key = key
        self._group = group
        self._every_s = every_s
        self._clock = clock
        self._faults: dict[str, str] = {}  # last logged fault of each interface

    def _run(self) -> None:
        announced: dict[str, str] = {}
        burst: list[float] = []
        now_s = next_s = self._clock.monotonic()
        while not self._stopping.is_set():
            addresses = self.reachable_addresses()
            now_s = self._clock.monotonic()
            if addresses != announced:
                burst, announced = [now_s + wait_s for wait_s in FIRST_S], addresses
                next_s = now_s
            if now_s >= next_s:
                self.announce(addresses)
                burst = [at_s for at_s in burst if at_s > now_s]
                next_s = burst[0] if burst else now_s + self._every_s * _random(0.8, 1.2)
            self._wait(min(next_s - now_s, ADDRESS_CHECK_S))

    def reachable_addresses(self) -> dict[str, str]:
        """Return the addresses to which servers can connect, by interface: those on which the node listens."""
        host = self._info.address[0]
        everywhere = host in ("0.0.0.0", "::")
        return {name: address for name, address in self.interfaces().items() if everywhere or address == host}

    def announce(self, addresses: Mapping[str, str]) -> None:
        """Send one datagram on each interface in `addresses` (name to address), with its own address first."""
        port = self._info.address[1]
        external = [address for address in addresses.values() if not is_loopback(address)]
        for name, own_address in self.interfaces().items():
            # Always send on the loopback interface: a server on this machine receives announcements only there.
            if name not in addresses and not (external and is_loopback(own_address)):
                continue
            hosts = list(dict.fromkeys([own_address, *external] if name in addresses else external))
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


def _random(low: float, high: float) -> float:
    """Return a random number from `low` to `high`; importing `random` would cost a node 0.2 MiB of memory."""
    return low + (high - low) * os.urandom(1)[0] / 255
