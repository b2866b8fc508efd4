"""Commands of the multicast bus: `watch` what is sent, `say` something, join two networks with `router`.

Errors: Failed, for exit status 1: no answer to a ping, or too few packets in time. SettingsError for 2.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from pigeonpost.cli.contract import Command, Context, Failed, discard_output
from pigeonpost.compat.multicast_bus.component import Bus, Sender, bus_of
from pigeonpost.compat.multicast_bus.packets import (
    CONTROL,
    DATA,
    EVERYBODY,
    FLAGS,
    PACKET_BYTES,
    Packet,
    codifier,
    decode,
)
from pigeonpost.compat.multicast_bus.router import Network, Router
from pigeonpost.core.addresses import is_group, join_address, split_address
from pigeonpost.core.clock import Clock, rfc3339
from pigeonpost.core.errors import BadPacket, SettingsError
from pigeonpost.core.multicast import listener

US = "PP"  # who says something with this program: not the server's own codifier, or that would stop as a second one
_LAST_MS = 253_402_300_799_999  # of the year 9999
_WORDS = {"ping": "P", "start": "S", "halt": "H", "config": "C", "set": "A", "step": "E", "alive": "I"}


def watch(context: Context) -> int:
    """Show what is said on the bus, a line a packet, until Ctrl-C or --count. Nothing of it is obeyed.

    With --seconds and --count: exit status 1 when fewer came in time.
    """
    chosen, bus = context.arguments, _bus(context)
    channels = [chosen.channel] if chosen.channel else [CONTROL, DATA]
    ears = {listener(bus.control if one == CONTROL else bus.data, bus.path): one for one in channels}
    print(f"listening to {', '.join(_place(bus, one) for one in channels)}", file=sys.stderr, flush=True)
    wanted, came = chosen.count, 0
    give_up_s = time.monotonic() + chosen.seconds if chosen.seconds else None
    try:
        while wanted is None or came < wanted:
            left_s = None if give_up_s is None else max(0.0, give_up_s - time.monotonic())
            ready, _, _ = select.select(list(ears), [], [], left_s)
            if not ready:
                break
            for sock in ready:
                data, sender = sock.recvfrom(PACKET_BYTES + 1)
                line = _line(chosen, ears[sock], data, join_address(*sender))
                if line:
                    print(line[1], flush=True)
                    came += line[0]
                if came == wanted:
                    break
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `watch | head`: the reader has seen enough
        discard_output()
        return 0
    finally:
        for sock in ears:
            sock.close()
    if wanted is not None and came < wanted:
        raise Failed(f"{came} of {wanted} packets came within {chosen.seconds:g} s")
    return 0


def say(context: Context) -> int:
    """Say one thing to a component, and end. `ping` waits for the answer, and tells how long it took."""
    chosen, bus = context.arguments, _bus(context)
    flag, to, value = chosen.flag, chosen.codifier, chosen.value
    if flag in "AE" and value is None:
        raise SettingsError(f"say {flag} takes a VALUE too, as in `say {flag} {to} 21.5`")
    clock = Clock()
    now_ms = clock.wall_ms()
    voice = Sender(chosen.us, clock)
    ear = listener(bus.control, bus.path) if flag == "P" else None
    try:
        voice.open(bus)
        voice.begin(now_ms)  # numbering restarts here, so that nobody counts packets as lost
        began_s = time.monotonic()
        number = float(now_ms if value is None else value)
        voice.control(flag, to, number)
        if voice.unsent:
            raise Failed(f"nothing could be sent to {join_address(*bus.control)}")
        if ear is not None:
            return _await_answers(ear, voice.codifier, to, number, began_s, chosen.wait)
    finally:
        voice.close()
        if ear is not None:
            ear.close()
    return 0


def router(context: Context) -> int:
    """Join two networks of the bus: what is said on one is said on the other, once, without loops. Until Ctrl-C."""
    chosen, bus = context.arguments, _bus(context)
    other_path = bus.path._replace(interface=chosen.other_interface or bus.path.interface)
    joined = Router(
        Network(bus.control, bus.data, bus.path),
        Network(chosen.other_control, chosen.other_data, other_path),
        chosen.standby / 1000,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: joined.stop())
    signal.signal(signal.SIGINT, lambda number, frame: joined.stop())
    here = f"{join_address(*bus.control)} {join_address(*bus.data)}"
    there = f"{join_address(*chosen.other_control)} {join_address(*chosen.other_data)}"
    print(f"joining {here} and {there}", flush=True)
    try:
        joined.run()
    finally:
        joined.close()
    print(f"{joined.crossed} packets crossed, {joined.known} were known, {joined.refused} were none")
    return 0


def _bus(context: Context) -> Bus:
    """The bus as it is set, changed by the flags of the command."""
    chosen, settings = context.arguments, context.settings
    bus = bus_of(settings)
    path = bus.path
    path = path._replace(interface=chosen.interface) if chosen.interface is not None else path
    path = path._replace(ttl=chosen.ttl) if chosen.ttl is not None else path
    return bus._replace(control=chosen.control or bus.control, data=chosen.data_group or bus.data, path=path)


def _place(bus: Bus, channel: str) -> str:
    return f"{channel} {join_address(*(bus.control if channel == CONTROL else bus.data))}"


def _await_answers(ear: Any, own: str, to: str, number: float, began_s: float, wait_s: float) -> int:
    answered = False
    while (left_s := began_s + wait_s - time.monotonic()) > 0 and select.select([ear], [], [], left_s)[0]:
        try:
            packet = decode(ear.recv(PACKET_BYTES + 1))
        except BadPacket:
            continue
        if (packet.flag, packet.to, packet.value) == ("T", own, number) and to in (packet.source, EVERYBODY):
            print(f"{packet.source} answered in {(time.monotonic() - began_s) * 1000:.1f} ms", flush=True)
            answered = True
            if to != EVERYBODY:
                return 0
    if not answered:
        raise Failed(f"no answer from {to} within {wait_s:g} s")
    return 0


def _line(chosen: argparse.Namespace, channel: str, data: bytes, sender: str) -> tuple[int, str] | None:
    """How a datagram is shown, and whether it counts; None when a filter leaves it out."""
    filtered = chosen.to or chosen.source or chosen.either
    try:
        packet = decode(data)
    except BadPacket as error:
        return None if filtered else (0, f"no packet on {channel}, from {sender}: {_escaped(str(error))}")
    wanted = (
        chosen.to in (None, packet.to)
        and chosen.source in (None, packet.source)
        and chosen.either in (None, packet.source, packet.to)
    )
    if not wanted:
        return None
    return 1, show(packet, channel, sender)


def show(packet: Packet, channel: str, sender: str) -> str:
    """Return a packet as one line. Untrusted text is escaped: it moves no cursor and makes no line."""
    time_ms = packet.time_ms
    moment = rfc3339(time_ms) if time_ms <= _LAST_MS else f"{time_ms} ms"
    if packet.flag == "f":
        value = f"{packet.value:.7g}"
    elif isinstance(packet.value, float):  # mostly a time
        whole = abs(packet.value) < 1e16 and packet.value == int(packet.value)
        value = f"{packet.value:.0f}" if whole else repr(packet.value)
    else:
        value = _escaped(json.dumps(packet.value))
    active = {True: " active", False: " halted", None: ""}[packet.active]
    to = f"{packet.source} -> {packet.to}"
    return f"{moment} {channel:7} {packet.flag} {to} #{packet.sequence} {value}{active} from {sender}"


def _escaped(text: str) -> str:
    """Only ASCII that can be seen."""
    return text.encode("ascii", "backslashreplace").decode().translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def _group(text: str) -> tuple[str, int]:
    try:
        found = split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None
    if not is_group(found):
        raise argparse.ArgumentTypeError(f"takes a multicast group, as 226.0.0.221:7001, not {text!r}")
    return found


def _code(text: str) -> str:
    try:
        return codifier(text)
    except BadPacket as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _flag(text: str) -> str:
    found = _WORDS.get(text.lower(), text.upper() if len(text) == 1 else text)
    if found not in FLAGS or FLAGS[found].channel != CONTROL:
        letters = " ".join(letter for letter, row in FLAGS.items() if row.channel == CONTROL)
        raise argparse.ArgumentTypeError(f"takes {', '.join(_WORDS)}, or one of {letters}, not {text!r}")
    return found


def _number(low: float, high: float, kind: Callable[[str], float] = float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            found = kind(text)
        except ValueError:
            found = float("nan")
        if not low <= found <= high:
            raise argparse.ArgumentTypeError(f"takes a number from {low:g} to {high:g}, not {text!r}")
        return found

    return read


_WHERE: list[tuple[str, dict[str, Any]]] = [
    (
        "--control-group",
        {
            "metavar": "GROUP:PORT",
            "type": _group,
            "dest": "control",
            "help": "the control group (as set: [bus] control)",
        },
    ),
    ("--data-group", {"metavar": "GROUP:PORT", "type": _group, "dest": "data_group", "help": "the data group"}),
    ("--interface", {"metavar": "ADDRESS", "help": "this machine's address there, or the interface's name"}),
    ("--ttl", {"metavar": "N", "type": _number(0, 255, int), "help": "1: this network only"}),
]

COMMANDS = {
    "watch": Command("see what is said on the multicast bus", [
        ("--to", {"metavar": "CODIFIER", "type": _code, "help": "only what is said to it"}),
        ("--from", {"metavar": "CODIFIER", "type": _code, "dest": "source", "help": "only what it says"}),
        ("--either", {"metavar": "CODIFIER", "type": _code, "help": "only what it says or is told"}),
        ("--channel", {"choices": [CONTROL, DATA], "help": "only this channel"}),
        ("--count", {"metavar": "N", "type": _number(1, 1e9, int), "help": "end after so many packets"}),
        ("--seconds", {"metavar": "S", "type": _number(0.01, 1e6), "help": "end after so many seconds"}),
        *_WHERE,
    ], watch),
    "say": Command("say something on the multicast bus: ping, start, halt, config, set, step", [
        ("flag", {"metavar": "FLAG", "type": _flag, "help": f"{', '.join(_WORDS)}, or the letter"}),
        ("codifier", {"metavar": "CODIFIER", "type": _code, "help": "whom to tell; @@ for all"}),
        ("value", {"metavar": "VALUE", "type": _number(-1e300, 1e300), "nargs": "?", "help": "of set and step"}),
        ("--as", {"metavar": "CODIFIER", "type": _code, "dest": "us", "default": US, "help": f"who says it ({US})"}),
        ("--wait", {"metavar": "S", "type": _number(0.01, 3600), "default": 5.0, "help": "for an answer to ping (5)"}),
        *_WHERE,
    ], say),
    "router": Command("join two multicast networks", [
        *_WHERE,
        ("--other-control-group", {"metavar": "GROUP:PORT", "type": _group, "dest": "other_control",
                                   "default": ("227.0.0.111", 8001),
                                   "help": "control group of the other network (227.0.0.111:8001)"}),
        ("--other-data-group", {"metavar": "GROUP:PORT", "type": _group, "dest": "other_data",
                                "default": ("227.0.0.112", 8002), "help": "its data group (227.0.0.112:8002)"}),
        ("--other-interface", {"metavar": "ADDRESS", "help": "this machine's address there, or the interface's name"}),
        ("--standby", {"metavar": "MS", "type": _number(0, 10_000), "default": 0.0,
                       "help": "beside another router: let cross only what that has not after so many ms"}),
    ], router),
}  # fmt: skip
