"""Announcement: a node with a token tells the local network where it is; a server with that token collects from there.

Runs on: node (NodeEnd), server (ServerEnd).  Reached from: node.py, server.py.
Hands on to: links/tcp, by `collect` and `move` of what the server hands in.
Threads: one at each end. It belongs to it alone: the other side of the program only sets an Event, or writes to a pipe.
Errors: of the network: told once and tried again; what is heard and not believed is ignored and counted.

One datagram, JSON, sealed with the node's token (parcels.sealed); docs/protocol.md has it in words:

    {"mac": "<64 hex>", "pigeonpost": 1, "node": "basement", "at": ["192.168.1.20:5003"], "time": "...", "clock": "set",
     "nonce": "<16 hex>"}

What it says is worth one attempt to connect, and no more: the link proves the token anew, on both sides.
"""

from __future__ import annotations

import logging
import os
import random
import select
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from links import End, Hall
from parcels import sealed, unsealed
from pigeonpost.auth.key import Key
from pigeonpost.core.addresses import is_loopback, join_address, split_address
from pigeonpost.core.clock import Clock, parse_rfc3339, rfc3339
from pigeonpost.core.errors import BadArgument, SettingsError
from pigeonpost.core.multicast import Path, listener, speaker
from pigeonpost.core.strict_json import read_json, write_json
from protocol import NODE_NAME

if TYPE_CHECKING:
    from pigeonpost.core.config import Settings
    from pigeonpost.node.node_info import NodeFacts
    from pigeonpost.node.outbox import Outbox

log = logging.getLogger(__name__)

VERSION = 1
PURPOSE = "announce"
DATAGRAM_BYTES = 1200  # at most: one frame of any network
MOST_PLACES = 8  # in a datagram
MOST_INTERFACES = 32
TTL = 1  # this network only
FIRST_S = (0.0, 1.0, 3.0)  # at start and when the address changes it is said more than once: a datagram may be lost
STALE_MS = 300_000  # of a datagram, where both clocks are set
LEAST_MOVE_S = 5.0  # between two attempts that announcements of one node cause
DATAGRAMS_A_S = 100  # that are looked at, so that a flood costs no more than that; twice as many at once
_REMEMBERED = 32  # nonces of each node
_NAMELESS_S = 60.0  # that addresses without a name get to tell who is there
_LOOK_S = 2.0  # between two looks at this machine's interfaces
_LOOPBACK = "127.0.0.1"
_SIOCGIFCONF = 0x8912  # netdevice(7)
_IFREQ_BYTES = 40 if struct.calcsize("P") == 8 else 32  # one interface in its answer


class Call(NamedTuple):
    """What a datagram says: the node's name, where it is, and when it said so (None: its clock is not set)."""

    node: str
    places: list[tuple[str, int]]
    time_ms: int | None
    nonce: str


def write_call(key: Key, node: str, places: Sequence[tuple[str, int]], clock: Clock) -> bytes:
    """The datagram that says that `node` is at `places`."""
    said = {
        "pigeonpost": VERSION, "node": node, "at": [join_address(*place) for place in places[:MOST_PLACES]],
        "time": rfc3339(clock.wall_ms()), "clock": "set" if clock.is_set() else "unset", "nonce": os.urandom(8).hex(),
    }  # fmt: skip
    body = write_json(said).encode()
    return sealed(body, key.seal(PURPOSE, body))


def read_call(body: bytes) -> Call:
    """What a stranger's bytes say, if they are an announcement; else BadArgument."""
    try:
        said = read_json(body.decode())
        node, at, nonce, is_set = said["node"], said["at"], said["nonce"], said["clock"] == "set"
        if (
            said["pigeonpost"] != VERSION
            or not NODE_NAME(node)
            or not 0 < len(at) <= MOST_PLACES
            or type(at) is not list
        ):
            raise ValueError
        if type(nonce) is not str or not 8 <= len(nonce) <= 64:
            raise ValueError
        return Call(node, [_place(text) for text in at], parse_rfc3339(said["time"]) if is_set else None, nonce)
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        raise BadArgument("not an announcement") from None


def _place(text: str) -> tuple[str, int]:
    """An IPv4 address with a port: never a name, which would make us ask a name server for a stranger."""
    host, port = split_address(text)
    first = socket.inet_pton(socket.AF_INET, host)[0]
    if not 0 < first < 224 or not port:
        raise ValueError
    return host, port


# --------------------------------------------------------------------------------------------------------- interfaces


def interfaces() -> dict[str, str]:
    """This machine's interfaces that have an IPv4 address, with it; the loopback one among them.

    Not by socket.if_nameindex, which asks over netlink: that the systemd units do not allow.
    """
    import array
    import fcntl

    answer = array.array("B", bytes(_IFREQ_BYTES * MOST_INTERFACES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        room, where = len(answer), answer.buffer_info()[0]
        filled = struct.unpack("iP", fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", room, where)))[0]
    found: dict[str, str] = {}
    for at in range(0, filled, _IFREQ_BYTES):
        name = answer[at : at + 16].tobytes().partition(b"\0")[0].decode(errors="replace").partition(":")[0]
        found.setdefault(name, socket.inet_ntoa(answer[at + 20 : at + 24]))  # what comes first is the main one
    return found


class Waker:
    """Waits for sockets, for a while, or until it is woken."""

    def __init__(self) -> None:
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)

    def wait(self, seconds: float, socks: Sequence[socket.socket] = ()) -> list[socket.socket]:
        """After at most `seconds`, or when woken, or when some of `socks` can be read: those."""
        poll = select.poll()  # not select(), which takes no file descriptor above 1,023
        poll.register(self._woken, select.POLLIN)
        for sock in socks:
            poll.register(sock, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)}
        if self._woken in ready:
            os.read(self._woken, 4096)
        return [sock for sock in socks if sock.fileno() in ready]

    def wake(self) -> None:
        """Make `wait` return; from any thread."""
        try:
            os.write(self._waker, b"\0")
        except BlockingIOError:
            pass  # woken already

    def close(self) -> None:
        """Give back what it holds, after the last `wait` and `wake`."""
        os.close(self._woken)
        os.close(self._waker)


class _Loop(End):
    """What both ends are: a thread that waits, and ends when told to."""

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        if self._stopping.is_set() or not self._thread.ident:
            return None
        self._stopping.set()
        self._waker.wake()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            return "the announcements did not end"
        self._waker.close()
        return None

    def _run(self) -> None:
        raise NotImplementedError


# --------------------------------------------------------------------------------------------------------- the node


def make_node_end(settings: Settings, facts: NodeFacts, outbox: Outbox, clock: Clock) -> End:
    """The node's end. Without a token it has nothing to say; nor, if nobody asked for it, when the node goes itself."""
    comes_itself = settings["mqtt", "host"] or settings["push", "to"]
    if facts.key is None or (comes_itself and settings.origin("announce", "on") == "default"):
        return Silent()
    return NodeEnd(facts, facts.key, settings["announce", "group"], settings["announce", "every"], clock)


class Silent(End):
    """The end of a node that nobody has to find: without a token it answers its own machine only."""

    def start(self) -> None:
        pass

    def stop(self, limit_s: float) -> str | None:
        return None


class NodeEnd(_Loop):
    """Says where the node is: at once, when its address changes, and every so often."""

    def __init__(self, facts: NodeFacts, key: Key, group: tuple[str, int], every_s: float, clock: Clock) -> None:
        super().__init__("announce")
        self._facts = facts
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
                next_s = burst[0] if burst else now_s + self._every_s * random.uniform(0.8, 1.2)
            self._waker.wait(min(next_s - now_s, _LOOK_S))

    def reached_at(self) -> dict[str, str]:
        """Where servers can connect: interface to its address, for those on which the node listens."""
        host = self._facts.address[0]
        everywhere = host in ("0.0.0.0", "::")
        return {name: address for name, address in interfaces().items() if everywhere or address == host}

    def say(self, here: Mapping[str, str]) -> None:
        """One datagram on each interface, its own address first."""
        port = self._facts.address[1]
        away = [address for address in here.values() if not is_loopback(address)]
        for name, own in interfaces().items():
            # On the loopback interface always: a server on this machine listens to it there, and only there.
            if name not in here and not (away and is_loopback(own)):
                continue
            hosts = list(dict.fromkeys([own, *away] if name in here else away))
            data = write_call(self._key, self._facts.name, [(host, port) for host in hosts], self._clock)
            fault = ""
            try:
                with speaker(self._group, Path(name, TTL, True)) as sock:
                    sock.send(data)
            except (OSError, SettingsError) as error:
                fault = str(error)
            if fault and fault != self._faults.get(name):
                log.info("cannot announce this node on %s: %s", name, fault)
            self._faults[name] = fault


# ------------------------------------------------------------------------------------------------------- the server


def make_server_end(hall: Hall) -> ServerEnd:
    """The server's end."""
    return ServerEnd(hall, hall.settings["announce", "group"])


class _Known:
    """What is remembered of a node that has announced itself rightly."""

    def __init__(self) -> None:
        self.nonces: deque[str] = deque(maxlen=_REMEMBERED)
        self.time_ms: int | None = None  # of its latest word
        self.moved_s: float | None = None  # when that last caused an attempt
        self.told = ""  # where it was, in the log
        self.wanted: tuple[Any, tuple[str, int]] | None = None  # whom to move where, as soon as that may be


class ServerEnd(_Loop):
    """Listens for nodes whose token this server has, and has them collected from where they are."""

    def __init__(self, hall: Hall, group: tuple[str, int]) -> None:
        super().__init__("find nodes")
        self._hall = hall
        self._group = group
        self._began_s = hall.clock.monotonic()
        self._heard: dict[str, _Known] = {}  # only nodes with a token here, so no stranger makes it longer
        self._found: dict[str, Any] = {}  # ends that were made for what was heard
        self._room, self._room_s = 2.0 * DATAGRAMS_A_S, self._began_s
        self._own: set[str] = set()  # this machine's addresses, when it is heard on the loopback interface
        self.believed = 0
        self.ignored: Counter[str] = Counter()  # why, and how many

    def report(self) -> dict[str, Any]:
        return {"believed": self.believed, "ignored": dict(self.ignored), "found": sorted(self._found)}

    def _run(self) -> None:
        listeners: dict[tuple[str, str], socket.socket] = {}
        try:
            while not self._stopping.is_set():
                self._listen(listeners)
                ready = self._waker.wait(_LOOK_S, list(listeners.values()))
                while ready and not self._stopping.is_set():
                    for (_, address), sock in listeners.items():
                        if sock in ready:
                            self._receive(sock, address)
                    ready = self._waker.wait(0.0, list(listeners.values()))
                self.move_due()
        finally:
            for sock in listeners.values():
                sock.close()

    def _listen(self, listeners: dict[tuple[str, str], socket.socket]) -> None:
        """Hear the group on every interface that there is now, and on no other."""
        now = set(interfaces().items())
        for gone in set(listeners) - now:
            listeners.pop(gone).close()
        for new in now - set(listeners):
            try:
                listeners[new] = listener(self._group, Path(new[0]))
            except SettingsError as error:
                log.info("cannot hear nodes on %s: %s", new[0], error)
        here = {address for _, address in listeners}
        self._own = {address for address in here if not is_loopback(address)} if _LOOPBACK in here else set()

    def _receive(self, sock: socket.socket, ear: str) -> None:
        try:
            data, source = sock.recvfrom(DATAGRAM_BYTES + 1)
        except OSError:
            return  # another one took it, or its interface is gone
        why = self.hear(data, source[0], ear)
        if why:
            self.ignored[why] += 1
            count = self.ignored[why]
            if count in (1, 10, 100, 1000) or not count % 10_000:
                log.info("%s: an announcement is ignored: %s (%d so far)", source[0], why, count)

    def hear(self, data: bytes, source: str, ear: str = "") -> str:
        """One datagram from `source`, which came to our address `ear`: why it is ignored; empty when it is believed."""
        if not self._is_room():
            return "too many"
        mac, body = unsealed(data)
        if not mac or len(data) > DATAGRAM_BYTES:
            return "not sealed"
        if source in self._own and not is_loopback(ear):
            return "of this machine, by another way"
        try:
            call = read_call(body)
            key = self._hall.tokens.get(call.node)
        except BadArgument:
            return "not readable"
        except SettingsError as error:  # tokens that do not read: somebody will mend the file while this runs
            return str(error)
        if key is None:
            return "from a node without a token here"
        if not key.is_seal(mac, PURPOSE, body):
            return "wrong token"
        why = self._is_old(call)
        if not why:
            self.believed += 1
            self._believe(call, source)
        return why

    def _is_room(self) -> bool:
        now_s = self._hall.clock.monotonic()
        self._room = min(2.0 * DATAGRAMS_A_S, self._room + (now_s - self._room_s) * DATAGRAMS_A_S)
        self._room_s = now_s
        if self._room < 1:
            return False
        self._room -= 1
        return True

    def _is_old(self, call: Call) -> str:
        """Whether it was said before: the network may say it again, or somebody who recorded it."""
        known = self._heard.setdefault(call.node, _Known())
        if call.nonce in known.nonces:
            return "heard before"
        if call.time_ms is not None:
            clock = self._hall.clock
            if clock.is_set() and abs(call.time_ms - clock.wall_ms()) > STALE_MS:
                return "of another time"
            if known.time_ms is not None and call.time_ms < known.time_ms - 1000:
                return "older than what was heard"
            known.time_ms = call.time_ms
        known.nonces.append(call.nonce)
        return ""

    def _believe(self, call: Call, source: str) -> None:
        """Have the node collected from, at the place that its datagram came from if it named that, else its first."""
        places = sorted(call.places, key=lambda place: place[0] != source)
        texts = [join_address(*place) for place in places]
        if any(link.state.calls_in and link.state.name == call.node for link in self._hall.links):
            return  # it comes by itself
        links = [link for link in self._hall.links if hasattr(link, "move") and self._is_for(link, call.node, texts)]
        found = self._found.get(call.node)
        if (
            found is not None and found in links and len(links) > 1
        ):  # the node of an address without a name: that one stays
            links.remove(found)
            self._hall.links.remove(self._found.pop(call.node))
            found.end()
        known, now_s = self._heard[call.node], self._hall.clock.monotonic()
        if not links:
            if now_s < self._began_s + _NAMELESS_S and any(self._is_nameless(link) for link in self._hall.links):
                return
            log.info("node %s has announced itself: collecting from %s", call.node, texts[0])
            self._found[call.node] = self._hall.collect(call.node, places[0])
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

    def move_due(self) -> None:
        """Have those go elsewhere that are to, and have not been told to in the last seconds."""
        now_s = self._hall.clock.monotonic()
        for known in self._heard.values():
            if known.wanted and (known.moved_s is None or now_s >= known.moved_s + LEAST_MOVE_S):
                link, place = known.wanted
                known.wanted, known.moved_s = None, now_s
                link.move(place)

    @staticmethod
    def _is_for(link: Any, node: str, texts: Sequence[str]) -> bool:
        return node in (link.state.expected, link.state.name) or (not link.state.name and link.state.address in texts)

    @staticmethod
    def _is_nameless(link: Any) -> bool:
        return hasattr(link, "move") and not link.state.name
