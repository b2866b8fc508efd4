"""Commands of the multicast bus: `watch` shows packets, `say` sends a command, `router` joins two networks.

Errors: Failed (exit status 1) if a ping is not answered or too few packets arrive in time; SettingsError (exit status
2) for invalid arguments.
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
    ALL_COMPONENTS,
    CONTROL,
    DATA,
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
from pigeonpost.core.format import counted
from pigeonpost.core.multicast import listener

# Codifier of `say`. If `say` used the server's codifier, the server would detect a duplicate and stop sending.
OWN_CODIFIER = "PP"
_LAST_MS = 253_402_300_799_999  # end of the year 9999, in milliseconds since 1970 (UTC)
_FLAG_NAMES = {"ping": "P", "start": "S", "halt": "H", "config": "C", "set": "A", "step": "E", "alive": "I"}


def watch(context: Context) -> int:
    """Print the packets on the bus, one per line, until Ctrl-C or the limits --count and --seconds.

    Args:
        context: Context of the command, with its arguments.

    Returns:
        The exit status.

    Raises:
        Failed: Fewer than --count packets arrived within --seconds.
    """
    arguments, bus = context.arguments, _bus(context)
    channels = [arguments.channel] if arguments.channel else [CONTROL, DATA]
    listeners = {listener(bus.control if channel == CONTROL else bus.data, bus.path): channel for channel in channels}
    print(f"listening to {', '.join(_channel_text(bus, channel) for channel in channels)}", file=sys.stderr, flush=True)
    limit, received = arguments.count, 0
    give_up_s = time.monotonic() + arguments.seconds if arguments.seconds else None
    try:
        while limit is None or received < limit:
            left_s = None if give_up_s is None else max(0.0, give_up_s - time.monotonic())
            ready, _, _ = select.select(list(listeners), [], [], left_s)
            if not ready:
                break
            for sock in ready:
                data, sender = sock.recvfrom(PACKET_BYTES + 1)
                line = _line(arguments, listeners[sock], data, join_address(*sender))
                if line:
                    print(line[1], flush=True)
                    received += line[0]
                if received == limit:
                    break
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # as in `watch | head`
        discard_output()
        return 0
    finally:
        for sock in listeners:
            sock.close()
    if limit is not None and received < limit:
        raise Failed(f"{received} of {counted(limit, 'packet')} arrived within {arguments.seconds:g} s")
    return 0


def say(context: Context) -> int:
    """Send one command to a component. `ping` waits for the answer and prints the response time.

    Args:
        context: Context of the command, with its arguments.

    Returns:
        The exit status.

    Raises:
        SettingsError: The value is missing.
        Failed: The packet could not be sent, or a ping was not answered.
    """
    arguments, bus = context.arguments, _bus(context)
    flag, to, value = arguments.flag, arguments.codifier, arguments.value
    if flag in "AE" and value is None:
        raise SettingsError(f"say {flag} needs a VALUE, as in `say {flag} {to} 21.5`")
    clock = Clock()
    now_ms = clock.wall_ms()
    sender = Sender(arguments.own, clock)
    answers = listener(bus.control, bus.path) if flag == "P" else None
    try:
        sender.open(bus)
        sender.begin(now_ms)  # announces new sequence numbers, so that receivers do not count lost packets
        began_s = time.monotonic()
        number = float(now_ms if value is None else value)
        sender.control(flag, to, number)
        if sender.unsent:
            raise Failed(f"the packet could not be sent to {join_address(*bus.control)}")
        if answers is not None:
            return _await_answers(answers, sender.codifier, to, number, began_s, arguments.wait)
    finally:
        sender.close()
        if answers is not None:
            answers.close()
    return 0


def router(context: Context) -> int:
    """Forward packets between two networks of the bus until Ctrl-C.

    Args:
        context: Context of the command, with its arguments.

    Returns:
        The exit status.
    """
    arguments, bus = context.arguments, _bus(context)
    other_path = bus.path._replace(interface=arguments.other_interface or bus.path.interface)
    joined = Router(
        Network(bus.control, bus.data, bus.path),
        Network(arguments.other_control, arguments.other_data, other_path),
        arguments.standby / 1000,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: joined.stop())
    signal.signal(signal.SIGINT, lambda number, frame: joined.stop())
    first = f"{join_address(*bus.control)} {join_address(*bus.data)}"
    second = f"{join_address(*arguments.other_control)} {join_address(*arguments.other_data)}"
    print(f"joining {first} and {second}", flush=True)
    try:
        joined.run()
    finally:
        joined.close()
    print(
        f"{counted(joined.forwarded, 'packet')} forwarded, {counted(joined.duplicates, 'duplicate')} dropped,"
        f" {counted(joined.invalid, 'invalid datagram')} dropped"
    )
    return 0


def _bus(context: Context) -> Bus:
    """Return the bus settings, changed by the flags of the command."""
    arguments, settings = context.arguments, context.settings
    bus = bus_of(settings)
    path = bus.path
    path = path._replace(interface=arguments.interface) if arguments.interface is not None else path
    path = path._replace(ttl=arguments.ttl) if arguments.ttl is not None else path
    return bus._replace(control=arguments.control or bus.control, data=arguments.data_group or bus.data, path=path)


def _channel_text(bus: Bus, channel: str) -> str:
    return f"{channel} {join_address(*(bus.control if channel == CONTROL else bus.data))}"


def _await_answers(answers: Any, own: str, to: str, number: float, began_s: float, wait_s: float) -> int:
    answered = False
    while (left_s := began_s + wait_s - time.monotonic()) > 0 and select.select([answers], [], [], left_s)[0]:
        try:
            packet = decode(answers.recv(PACKET_BYTES + 1))
        except BadPacket:
            continue
        if (packet.flag, packet.to, packet.value) == ("T", own, number) and to in (packet.source, ALL_COMPONENTS):
            print(f"{packet.source} answered in {(time.monotonic() - began_s) * 1000:.1f} ms", flush=True)
            answered = True
            if to != ALL_COMPONENTS:
                return 0
    if not answered:
        raise Failed(f"no answer from {to} within {wait_s:g} s")
    return 0


def _line(arguments: argparse.Namespace, channel: str, data: bytes, sender: str) -> tuple[int, str] | None:
    """Return `(count, line)` for a datagram: 1 for a packet, 0 for an invalid datagram. Return None if filtered out."""
    filtered = arguments.to or arguments.source or arguments.either
    try:
        packet = decode(data)
    except BadPacket as error:
        return None if filtered else (0, f"invalid datagram on {channel}, from {sender}: {_escaped(str(error))}")
    is_selected = (
        arguments.to in (None, packet.to)
        and arguments.source in (None, packet.source)
        and arguments.either in (None, packet.source, packet.to)
    )
    if not is_selected:
        return None
    return 1, show(packet, channel, sender)


def show(packet: Packet, channel: str, sender: str) -> str:
    """Return a packet as one line. Untrusted text is escaped, so that it cannot control the terminal.

    Args:
        packet: The packet.
        channel: CONTROL or DATA.
        sender: Address of the sender.
    """
    time_ms = packet.time_ms
    time_text = rfc3339(time_ms) if time_ms <= _LAST_MS else f"{time_ms} ms"
    if packet.flag == "f":
        value = f"{packet.value:.7g}"
    elif isinstance(packet.value, float):  # usually a time
        whole = abs(packet.value) < 1e16 and packet.value == int(packet.value)
        value = f"{packet.value:.0f}" if whole else repr(packet.value)
    else:
        value = _escaped(json.dumps(packet.value))
    active = {True: " active", False: " halted", None: ""}[packet.active]
    to = f"{packet.source} -> {packet.to}"
    return f"{time_text} {channel:7} {packet.flag} {to} #{packet.sequence} {value}{active} from {sender}"


def _escaped(text: str) -> str:
    """Return `text` with everything except visible ASCII characters and spaces escaped."""
    return text.encode("ascii", "backslashreplace").decode().translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def _group(text: str) -> tuple[str, int]:
    try:
        found = split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None
    if not is_group(found):
        raise argparse.ArgumentTypeError(f"must be a multicast group, such as 226.0.0.221:7001, not {text!r}")
    return found


def _code(text: str) -> str:
    try:
        return codifier(text)
    except BadPacket as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _flag(text: str) -> str:
    found = _FLAG_NAMES.get(text.lower(), text.upper() if len(text) == 1 else text)
    if found not in FLAGS or FLAGS[found].channel != CONTROL:
        letters = " ".join(letter for letter, row in FLAGS.items() if row.channel == CONTROL)
        raise argparse.ArgumentTypeError(f"must be {', '.join(_FLAG_NAMES)}, or one of {letters}, not {text!r}")
    return found


def _number(low: float, high: float, kind: Callable[[str], float] = float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            found = kind(text)
        except ValueError:
            found = float("nan")
        if not low <= found <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}, not {text!r}")
        return found

    return read


_NETWORK_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    (
        "--control-group",
        {
            "metavar": "GROUP:PORT",
            "type": _group,
            "dest": "control",
            "help": "control group (default: [bus] control)",
        },
    ),
    (
        "--data-group",
        {"metavar": "GROUP:PORT", "type": _group, "dest": "data_group", "help": "data group (default: [bus] data)"},
    ),
    ("--interface", {"metavar": "ADDRESS", "help": "address of this machine in the network, or name of the interface"}),
    ("--ttl", {"metavar": "N", "type": _number(0, 255, int), "help": "TTL of packets; 1 for this network only"}),
]

COMMANDS = {
    "watch": Command("show the packets on the multicast bus", [
        ("--to", {"metavar": "CODIFIER", "type": _code, "help": "show only packets to this component"}),
        ("--from", {"metavar": "CODIFIER", "type": _code, "dest": "source",
                    "help": "show only packets from this component"}),
        ("--either", {"metavar": "CODIFIER", "type": _code, "help": "show only packets from or to this component"}),
        ("--channel", {"choices": [CONTROL, DATA], "help": "show only packets on this channel"}),
        ("--count", {"metavar": "N", "type": _number(1, 1e9, int), "help": "end after N packets"}),
        ("--seconds", {"metavar": "S", "type": _number(0.01, 1e6), "help": "end after S seconds"}),
        *_NETWORK_ARGUMENTS,
    ], watch),
    "say": Command("send a command on the multicast bus: ping, start, halt, config, set or step", [
        ("flag", {"metavar": "FLAG", "type": _flag, "help": f"{', '.join(_FLAG_NAMES)}, or the letter of the flag"}),
        ("codifier", {"metavar": "CODIFIER", "type": _code, "help": "component that receives it, or @@ for all"}),
        ("value", {"metavar": "VALUE", "type": _number(-1e300, 1e300), "nargs": "?", "help": "for set and step"}),
        ("--as", {"metavar": "CODIFIER", "type": _code, "dest": "own", "default": OWN_CODIFIER,
                  "help": f"codifier of the sender (default: {OWN_CODIFIER})"}),
        ("--wait", {"metavar": "S", "type": _number(0.01, 3600), "default": 5.0,
                    "help": "seconds to wait for the answer to a ping (default: 5)"}),
        *_NETWORK_ARGUMENTS,
    ], say),
    "router": Command("forward packets between two multicast networks", [
        *_NETWORK_ARGUMENTS,
        ("--other-control-group", {"metavar": "GROUP:PORT", "type": _group, "dest": "other_control",
                                   "default": ("227.0.0.111", 8001),
                                   "help": "control group of the other network (default: 227.0.0.111:8001)"}),
        ("--other-data-group", {"metavar": "GROUP:PORT", "type": _group, "dest": "other_data",
                                "default": ("227.0.0.112", 8002),
                                "help": "data group of the other network (default: 227.0.0.112:8002)"}),
        ("--other-interface", {"metavar": "ADDRESS",
                               "help": "address of this machine in the other network, or name of the interface"}),
        ("--standby", {"metavar": "MS", "type": _number(0, 10_000), "default": 0.0,
                       "help": "forward only packets that another router has not forwarded within MS ms"}),
    ], router),
}  # fmt: skip
