"""Discovery, server side: listens for announcements of nodes whose token it has, and connects to them over TCP.

An announcement is worth one attempt to connect, and no more: the link proves the token again, on both sides.

One thread owns everything here. Errors: those of the network are logged once, and it is tried again; datagrams that are
not believed are ignored and counted.
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

STALE_MS = 300_000  # of a datagram, where both clocks are set
LEAST_MOVE_S = 5.0  # between two attempts that announcements of one node cause
DATAGRAMS_A_S = 100  # of one source that are looked at, so that a flood costs no more than that,
AT_ONCE = 4000  # and so many where none came before: a short flood hides nothing
SOURCES = 4  # that much of both for all sources together; those that were believed have room of their own
MOST_SOURCES = 256  # that are told apart
MOST_NAMED = 256  # nodes, each with a reason, whose ignored announcements are counted one by one in the log
_REMEMBERED = 32  # nonces of each node
_NAMELESS_S = 60.0  # that addresses without a name get to tell who is there

# Reasons to ignore an announcement that are part of normal operation: networks repeat, and so do several interfaces.
_USUAL = ("heard before", "of this machine, by another way", "older than what was heard")
_REMEDIES = {
    "wrong token": "; `control.py get-token {node}` shows the one that the node takes as PIGEONPOST_NODE_TOKEN",
    "from a node without a token here": "; to collect from it: `control.py token {node}`",
    "of another time": "; its clock or this server's is wrong",
}


class Budget:
    """Limits the datagrams that are looked at: of each source, and of all that were never believed."""

    def __init__(self) -> None:
        self._rooms: dict[str, tuple[float, float]] = {}  # by source, the latest last: room, and at what time
        self._believed: set[str] = set()

    def take(self, source: str, now_s: float) -> bool:
        """Return True if a datagram of `source` may be looked at, which costs room."""
        return self._take(source, 1, now_s) and (source in self._believed or self._take("", SOURCES, now_s))

    def believe(self, source: str) -> None:
        """Give a source room of its own: it knows the token of a node."""
        if len(self._believed) >= MOST_SOURCES:
            self._believed.clear()
        self._believed.add(source)

    def _take(self, source: str, share: int, now_s: float) -> bool:
        room, then_s = self._rooms.pop(source, (share * AT_ONCE, now_s))
        room = min(share * AT_ONCE, room + (now_s - then_s) * share * DATAGRAMS_A_S)
        is_taken = room >= 1
        if len(self._rooms) > MOST_SOURCES:
            del self._rooms[next(iter(self._rooms))]
        self._rooms[source] = (room - is_taken, now_s)
        return is_taken


class _Known:
    """State of a node whose announcements were believed."""

    def __init__(self) -> None:
        self.nonces: deque[str] = deque(maxlen=_REMEMBERED)
        self.time_ms: int | None = None  # of its latest word
        self.moved_s: float | None = None  # when that last caused an attempt
        self.told = ""  # where it was, in the log
        self.senders: Alternation[int] = Alternation()  # numbers in `places`
        self.places: dict[int, frozenset[tuple[str, int]]] = {}  # of senders that have no place in common
        self.wanted: tuple[MovableLink, tuple[str, int]] | None = None  # where to connect, as soon as that is allowed


class DiscoveryServerTransport(DatagramLoop):
    """Listens for nodes whose token this server has, and has them collected from where they are."""

    def __init__(self, context: ServerContext, group: tuple[str, int]) -> None:
        super().__init__("find nodes")
        self._context = context
        self._group = group
        self._began_s = context.clock.monotonic()
        self._heard: dict[str, _Known] = {}  # only nodes with a token here, so unknown senders cannot make it longer
        self._found: dict[str, MovableLink] = {}  # ends that were made for what was heard
        self._budget = Budget()
        self._listeners: dict[tuple[str, str], socket.socket] = {}  # by interface and address; of the thread alone
        self._own: set[str] = set()  # this machine's addresses, when it is heard on the loopback interface
        self._node = ""  # that the datagram received last is about; empty: not known
        self._logged: Counter[tuple[str, str]] = Counter()  # ignored ones, by reason and node
        self.believed = 0
        self.ignored: Counter[str] = Counter()  # why, and how many

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
        """Hear the group on every interface that there is now, and on no other."""
        now = set(self.interfaces().items())
        for gone in set(self._listeners) - now:
            self._listeners.pop(gone).close()
        for new in now - set(self._listeners):
            try:
                self._listeners[new] = listener(self._group, Path(new[0]))
            except (SettingsError, OSError) as error:
                log.info("cannot hear nodes on %s: %s", new[0], error)
        here = {address for _, address in self._listeners}
        self._own = {address for address in here if not is_loopback(address)} if LOOPBACK in here else set()

    def _receive(self, sock: socket.socket, ear: str) -> None:
        try:
            data, source = sock.recvfrom(DATAGRAM_BYTES + 1)
        except OSError:
            return  # another one took it, or its interface is gone
        why = self.receive(data, source[0], ear)
        if why:
            self._ignore(why, source[0])

    def _ignore(self, why: str, source: str) -> None:
        """Count the announcement received last as ignored; log the first, tenth, hundredth ... of each node."""
        self.ignored[why] += 1
        node = self._node if (why, self._node) in self._logged or len(self._logged) < MOST_NAMED else ""
        self._logged[why, node] += 1
        count = self._logged[why, node]
        if str(count).rstrip("0") == "1":
            who = f"{source} {node}".rstrip()
            remedy = _REMEDIES.get(why, "").format(node=node or "NODE")
            level = logging.DEBUG if why in _USUAL else logging.INFO
            log.log(level, "%s: an announcement is ignored: %s (%d so far)%s", who, why, count, remedy)

    def receive(self, data: bytes, source: str, ear: str = "") -> str:
        """One datagram from `source`, which came to our address `ear`: why it is ignored; empty when it is believed."""
        self._node = ""
        mac, body = split_signature(data)
        if not mac or len(data) > DATAGRAM_BYTES:
            return "not sealed"
        if source in self._own and not is_loopback(ear):
            return "of this machine, by another way"
        if not self._budget.take(source, self._context.clock.monotonic()):
            return "too many"
        try:
            call = read_announcement(body)
            call = call._replace(node=self._context.current(call.node))
            self._node = call.node
            key = self._context.tokens.get(call.node)
        except BadArgument:
            return "not readable"
        except SettingsError as error:  # tokens that do not read: somebody will mend the file while this runs
            return str(error)
        if key is None:
            return "from a node without a token here"
        if key.sealing(mac, PURPOSE, body) is None:
            return "wrong token"
        why = self._is_old(call)
        if not why:
            self.believed += 1
            self._budget.believe(source)
            self._note_copies(call)
            self._believe(call, source)
        return why

    def _is_old(self, call: Announcement) -> str:
        """Return why it is ignored as a repetition, by the network or by an attacker; empty when it is new."""
        known = self._heard.setdefault(call.node, _Known())
        if call.nonce in known.nonces:
            return "heard before"
        if call.time_ms is not None:
            clock = self._context.clock
            if clock.is_set() and abs(call.time_ms - clock.wall_ms()) > STALE_MS:
                return "of another time"
            if known.time_ms is not None and call.time_ms < known.time_ms - 1000:
                return "older than what was heard"
            known.time_ms = call.time_ms
        known.nonces.append(call.nonce)
        return ""

    def _believe(self, call: Announcement, source: str) -> None:
        """Have the node collected from, at the place that its datagram came from if it named that, else its first."""
        places = sorted(call.places, key=lambda place: place[0] != source)
        texts = [join_address(*place) for place in places]
        self._context.unnumbered_sources.forget_unproven(call.node)
        if any(link.state.calls_in and link.state.name == call.node for link in self._context.links):
            return  # it comes by itself
        links = [link for link in self._context.links if _is_movable(link) and _is_for(link, call.node, texts)]
        found = self._found.get(call.node)
        if found is not None and found in links and len(links) > 1:
            # Another link, to an address without a name, has turned out to be this node's: that one stays.
            links.remove(found)
            self._context.links.remove(self._found.pop(call.node))
            found.end()
        known, now_s = self._heard[call.node], self._context.clock.monotonic()
        if not links:
            if now_s < self._began_s + _NAMELESS_S and any(_is_nameless(link) for link in self._context.links):
                return
            log.info("node %s has announced itself: collecting from %s", call.node, texts[0])
            self._found[call.node] = self._context.collect(call.node, places[0])
            known.moved_s = now_s
            return
        state = links[0].state
        if state.connected and state.address in texts:
            known.wanted = None
            return
        if state.address not in texts and known.told != texts[0]:
            log.info("node %s has announced itself at %s, not %s", call.node, texts[0], state.address)
            known.told = texts[0]
        known.wanted = links[0], places[0]
        self.move_due()

    def _note_copies(self, call: Announcement) -> None:
        """Remember the places of an announcement as those of one sender of its node."""
        known, places = self._heard[call.node], frozenset(call.places)
        usual = max(known.places, default=0) + 1
        number = next((number for number, other in known.places.items() if other & places), usual)
        known.places[number] = places
        known.places.pop(number - MOST_SENDERS, None)
        known.senders.note(number, self._now_s())

    def warn(self) -> None:
        """Show of which nodes two senders announce themselves in turn, and no more of which."""
        for node, known in list(self._heard.items()):
            text = ""
            if senders := known.senders.senders(self._now_s()):
                at = [join_address(*min(known.places[number])) for number in sorted(senders) if number in known.places]
                text = f"two nodes announce themselves as {node}, at {' and at '.join(at)}; {remedy_of(node)}"
            for state in [link.state for link in self._context.links if link.state.name == node]:
                if state.warnings.get("announced", "") != text:
                    state.warn("announced", text)

    def _now_s(self) -> float:
        return self._context.clock.monotonic()

    def move_due(self) -> None:
        """Have those go elsewhere that are to, and have not been told to in the last seconds."""
        now_s = self._context.clock.monotonic()
        for known in self._heard.values():
            if known.wanted and (known.moved_s is None or now_s >= known.moved_s + LEAST_MOVE_S):
                link, place = known.wanted
                known.wanted, known.moved_s = None, now_s
                link.move(place)


def _is_movable(link: NodeLink) -> TypeGuard[MovableLink]:
    return hasattr(link, "move")


def _is_for(link: NodeLink, node: str, texts: Sequence[str]) -> bool:
    return node in (link.state.expected, link.state.name) or (not link.state.name and link.state.address in texts)


def _is_nameless(link: NodeLink) -> bool:
    return _is_movable(link) and not link.state.name
