"""Discovery, server side: receives announcements of nodes whose token it has, and connects to them over TCP.

An announcement causes at most one attempt to connect. It does not prove that the node is at that address, because
anyone can send a recorded datagram again. Both ends prove the token to each other when the link is opened.

One thread owns all state. Errors: network errors are logged, and the server tries again. Invalid datagrams are counted
and ignored.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from pigeonpost.core.addresses import is_loopback, join_address
from pigeonpost.core.errors import BadArgument, SettingsError
from pigeonpost.core.multicast import Path, listener
from pigeonpost.server.node_names import MOST_SENDERS, Alternation, remedy_of
from pigeonpost.transports.contract import ServerContext
from pigeonpost.transports.discovery_datagram import (
    ADDRESS_CHECK_S,
    DATAGRAM_BYTES,
    LOOPBACK,
    PURPOSE,
    Announcement,
    DatagramLoop,
    read_announcement,
)
from pigeonpost.transports.payload import split_signature

if TYPE_CHECKING:
    from pigeonpost.server.node_status import MovableLink, NodeLink

log = logging.getLogger(__name__)

STALE_MS = 300_000  # maximum age of a datagram, if both clocks are set
LEAST_MOVE_S = 5.0  # minimum time between two attempts to connect that announcements of one node cause
DATAGRAMS_A_S = 100  # maximum number of checked datagrams of one source per second, to limit the cost of a flood
AT_ONCE = 4000  # checked datagrams of one source in a burst, so that a short flood does not hide an announcement
SOURCES = 4  # all unproven sources together have this many times both limits: addresses can be forged
MOST_SOURCES = 256  # maximum number of sources that are counted separately
MOST_NAMED = 256  # maximum number of pairs of node and reason that are counted separately in the log
_REMEMBERED_NONCES = 32  # number of remembered nonces of each node
_NAMELESS_S = 60.0  # time after the start in which links that are configured without a node name learn it from the node

# Reasons that are part of normal operation: networks duplicate datagrams, and several interfaces receive the same one.
_USUAL = ("repeated", "from this machine, not by loopback", "older than an earlier one")
_REMEDIES = {
    "wrong token": "; set PIGEONPOST_NODE_TOKEN on the node to the token that `control.py get-token {node}` shows",
    "from a node without a token here": "; to collect from it: `control.py token {node}`",
    "sent at another time": "; check the clocks of the node and of this server",
}


class Budget:
    """Rate limit of the datagrams that are checked: per source, and for all sources without a proven token together."""

    def __init__(self) -> None:
        # By source, the latest last: number of datagrams that may still be checked, and the monotonic time when that
        # number was calculated.
        self._budgets: dict[str, tuple[float, float]] = {}
        self._trusted: set[str] = set()

    def take(self, source: str, now_s: float) -> bool:
        """Return True if a datagram of `source` may be checked at `now_s` (monotonic seconds); this uses up budget."""
        return self._take(source, 1, now_s) and (source in self._trusted or self._take("", SOURCES, now_s))

    def trust(self, source: str) -> None:
        """Exempt `source` from the common limit of unproven sources, because it has proven the token of a node."""
        if len(self._trusted) >= MOST_SOURCES:
            self._trusted.clear()
        self._trusted.add(source)

    def _take(self, source: str, share: int, now_s: float) -> bool:
        left, checked_s = self._budgets.pop(source, (share * AT_ONCE, now_s))
        left = min(share * AT_ONCE, left + (now_s - checked_s) * share * DATAGRAMS_A_S)
        is_allowed = left >= 1
        if len(self._budgets) > MOST_SOURCES:
            del self._budgets[next(iter(self._budgets))]
        self._budgets[source] = (left - is_allowed, now_s)
        return is_allowed


class _KnownNode:
    """State of a node that has sent a valid announcement."""

    def __init__(self) -> None:
        self.nonces: deque[str] = deque(maxlen=_REMEMBERED_NONCES)
        self.time_ms: int | None = None  # time of its latest announcement
        self.moved_s: float | None = None  # monotonic time of the last attempt to connect
        self.logged_address = ""  # address in the last log line
        self.senders: Alternation[int] = Alternation()  # keys of `addresses`
        # Addresses by sender number. No two senders have a common address.
        self.addresses: dict[int, frozenset[tuple[str, int]]] = {}
        # The link to move and its new address, once LEAST_MOVE_S is over.
        self.next_move: tuple[MovableLink, tuple[str, int]] | None = None


class DiscoveryServerTransport(DatagramLoop):
    """Receives announcements of nodes whose token this server has, and starts to collect from their addresses.

    Args:
        context: The server's components.
        group: Multicast group and port.

    Attributes:
        believed: Number of valid announcements.
        ignored: Number of ignored datagrams by reason.
    """

    def __init__(self, context: ServerContext, group: tuple[str, int]) -> None:
        super().__init__("find nodes")
        self._context = context
        self._group = group
        self._began_s = context.clock.monotonic()
        # Contains only nodes with a token on this server, so that untrusted senders cannot make it grow.
        self._known_nodes: dict[str, _KnownNode] = {}
        self._found: dict[str, MovableLink] = {}  # links that announcements have created
        self._budget = Budget()
        self._listeners: dict[tuple[str, str], socket.socket] = {}  # by interface and address
        self._own: set[str] = set()  # this machine's addresses, if its own announcements arrive on loopback
        self._node = ""  # node of the latest datagram, or empty if it is not known
        self._logged: Counter[tuple[str, str]] = Counter()  # ignored announcements by reason and node
        self.believed = 0
        self.ignored: Counter[str] = Counter()

    def report(self) -> dict[str, Any]:
        return {"believed": self.believed, "ignored": dict(self.ignored), "found": sorted(self._found)}

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._listen()
                ready = self._wait(ADDRESS_CHECK_S, list(self._listeners.values()))
                while ready and not self._stopping.is_set():
                    for (_, address), sock in self._listeners.items():
                        if sock in ready:
                            self._receive(sock, address)
                    ready = self._wait(0.0, list(self._listeners.values()))
                self.move_due()
                self.warn()
        finally:
            for sock in self._listeners.values():
                sock.close()

    def _listen(self) -> None:
        """Join the group on every present interface, and leave it on interfaces that no longer exist."""
        present = set(self.interfaces().items())
        for missing in set(self._listeners) - present:
            self._listeners.pop(missing).close()
        for new in present - set(self._listeners):
            try:
                self._listeners[new] = listener(self._group, Path(new[0]))
            except (SettingsError, OSError) as error:
                log.info("cannot receive announcements of nodes on %s: %s", new[0], error)
        addresses = {address for _, address in self._listeners}
        self._own = {address for address in addresses if not is_loopback(address)} if LOOPBACK in addresses else set()

    def _receive(self, sock: socket.socket, interface_address: str) -> None:
        try:
            data, source = sock.recvfrom(DATAGRAM_BYTES + 1)
        except OSError:
            return  # another socket has read the datagram, or the interface no longer exists
        reason = self.receive(data, source[0], interface_address)
        if reason:
            self._ignore(reason, source[0])

    def _ignore(self, reason: str, source: str) -> None:
        """Count the latest announcement as ignored; log the first, tenth, hundredth ... for each node and reason."""
        self.ignored[reason] += 1
        node = self._node if (reason, self._node) in self._logged or len(self._logged) < MOST_NAMED else ""
        self._logged[reason, node] += 1
        count = self._logged[reason, node]
        if str(count).rstrip("0") == "1":
            sender = f"{source} {node}".rstrip()
            remedy = _REMEDIES.get(reason, "").format(node=node or "NODE")
            level = logging.DEBUG if reason in _USUAL else logging.INFO
            log.log(level, "%s: announcement ignored: %s (%d so far)%s", sender, reason, count, remedy)

    def receive(self, data: bytes, source: str, interface_address: str = "") -> str:
        """Process one datagram.

        Args:
            data: The datagram.
            source: IP address of the sender.
            interface_address: Address of this machine's interface that received it.

        Returns:
            The reason why it is ignored, or an empty string if it is valid.
        """
        self._node = ""
        mac, body = split_signature(data)
        if not mac or len(data) > DATAGRAM_BYTES:
            return "not signed"
        if source in self._own and not is_loopback(interface_address):
            return "from this machine, not by loopback"
        if not self._budget.take(source, self._context.clock.monotonic()):
            return "too many"
        try:
            announcement = read_announcement(body)
            announcement = announcement._replace(node=self._context.current(announcement.node))
            self._node = announcement.node
            key = self._context.tokens.get(announcement.node)
        except BadArgument:
            return "not valid"
        except SettingsError as error:  # the token file is invalid; it may be corrected while the server runs
            return str(error)
        if key is None:
            return "from a node without a token here"
        if key.signing_key(mac, PURPOSE, body) is None:
            return "wrong token"
        reason = self._is_old(announcement)
        if not reason:
            self.believed += 1
            self._budget.trust(source)
            self._record_sender(announcement)
            self._collect_from(announcement, source)
        return reason

    def _is_old(self, announcement: Announcement) -> str:
        """Return the reason to ignore a duplicate or replayed announcement, or an empty string if it is new."""
        known = self._known_nodes.setdefault(announcement.node, _KnownNode())
        if announcement.nonce in known.nonces:
            return "repeated"
        if announcement.time_ms is not None:
            clock = self._context.clock
            if clock.is_set() and abs(announcement.time_ms - clock.wall_ms()) > STALE_MS:
                return "sent at another time"
            # The network may reorder the datagrams of a burst: accept those that are up to 1 s older.
            if known.time_ms is not None and announcement.time_ms < known.time_ms - 1000:
                return "older than an earlier one"
            known.time_ms = announcement.time_ms
        known.nonces.append(announcement.nonce)
        return ""

    def _collect_from(self, announcement: Announcement, source: str) -> None:
        """Collect from the node, at the address that sent the datagram if it is among those announced."""
        addresses = sorted(announcement.addresses, key=lambda address: address[0] != source)
        texts = [join_address(*address) for address in addresses]
        self._context.unnumbered_sources.forget_unproven(announcement.node)
        if any(link.state.calls_in and link.state.name == announcement.node for link in self._context.links):
            return  # the node connects to this server itself
        links = [link for link in self._context.links if _is_movable(link) and _is_for(link, announcement.node, texts)]
        found = self._found.get(announcement.node)
        if found is not None and found in links and len(links) > 1:
            # A link that is configured by address, without a node name, has reached this node: keep it, and end the
            # link that was created by an announcement.
            links.remove(found)
            self._context.links.remove(self._found.pop(announcement.node))
            found.end()
        known, now_s = self._known_nodes[announcement.node], self._context.clock.monotonic()
        if not links:
            if now_s < self._began_s + _NAMELESS_S and any(_is_nameless(link) for link in self._context.links):
                return
            log.info("node %s was discovered: collecting from %s", announcement.node, texts[0])
            self._found[announcement.node] = self._context.collect(announcement.node, addresses[0])
            known.moved_s = now_s
            return
        state = links[0].state
        if state.connected and state.address in texts:
            known.next_move = None
            return
        if state.address not in texts and known.logged_address != texts[0]:
            log.info("node %s was discovered at %s instead of %s", announcement.node, texts[0], state.address)
            known.logged_address = texts[0]
        known.next_move = links[0], addresses[0]
        self.move_due()

    def _record_sender(self, announcement: Announcement) -> None:
        """Record the addresses of an announcement as those of one sender, to detect two nodes with the same name."""
        known, addresses = self._known_nodes[announcement.node], frozenset(announcement.addresses)
        new_number = max(known.addresses, default=0) + 1
        number = next((number for number, other in known.addresses.items() if other & addresses), new_number)
        known.addresses[number] = addresses
        known.addresses.pop(number - MOST_SENDERS, None)
        known.senders.record(number, self._now_s())

    def warn(self) -> None:
        """Update the warnings of nodes that two senders announce in turn."""
        for node, known in list(self._known_nodes.items()):
            text = ""
            if senders := known.senders.senders(self._now_s()):
                numbers = [number for number in sorted(senders) if number in known.addresses]
                texts = [join_address(*min(known.addresses[number])) for number in numbers]
                text = f"two nodes announce themselves as {node}, at {' and at '.join(texts)}; {remedy_of(node)}"
            for state in [link.state for link in self._context.links if link.state.name == node]:
                if state.warnings.get("announced", "") != text:
                    state.warn("announced", text)

    def _now_s(self) -> float:
        return self._context.clock.monotonic()

    def move_due(self) -> None:
        """Connect nodes to their new addresses, at most once in LEAST_MOVE_S for each node."""
        now_s = self._context.clock.monotonic()
        for known in self._known_nodes.values():
            if known.next_move and (known.moved_s is None or now_s >= known.moved_s + LEAST_MOVE_S):
                link, address = known.next_move
                known.next_move, known.moved_s = None, now_s
                link.move(address)


def _is_movable(link: NodeLink) -> TypeGuard[MovableLink]:
    return hasattr(link, "move")


def _is_for(link: NodeLink, node: str, texts: Sequence[str]) -> bool:
    return node in (link.state.expected, link.state.name) or (not link.state.name and link.state.address in texts)


def _is_nameless(link: NodeLink) -> bool:
    return _is_movable(link) and not link.state.name
