"""Program that samples sensors at fixed intervals, stores the samples in a durable outbox and sends them to servers.

    python3 node.py --simulate          try it without hardware
    python3 node.py                     read an MCP3008 on SPI 0.0: temperature on input 1, light on input 2

The main thread starts the components in order, waits for a signal or a fatal error, and stops the components in reverse
order. Each component has its own threads.
Exit status: 2 for invalid settings, 74 for a disk error, 75 if another node uses the same data folder.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - older versions cannot import our modules
    sys.exit(
        "Pigeonpost needs Python 3.11 or later, as in Raspberry Pi OS bookworm; this is %d.%d" % sys.version_info[:2]
    )

import logging
import os
from collections.abc import Callable, Mapping, Sequence

from pigeonpost.auth.key import Key
from pigeonpost.core import config
from pigeonpost.core.addresses import join_address
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import OUTBOX, OUTBOX_LOCK
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.core.files import close_to_others, give_to_owner, kind_of_filesystem, lock_data_dir
from pigeonpost.core.format import counted
from pigeonpost.core.lifecycle import Lifecycle, LifecycleComponent
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.logs import print_error, start_logging
from pigeonpost.core.strict_json import write_json
from pigeonpost.core.version import VERSION
from pigeonpost.node.kept_name import node_name
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring, slot_bytes_for
from pigeonpost.node.sampler import Sampler
from pigeonpost.sensors.contract import Channel, SensorSource, in_order
from pigeonpost.sensors.machine import MachineSource
from pigeonpost.sensors.registry import make_simulated_adc, make_source
from pigeonpost.settings import NODE, SHORTEST_TOKEN, load_node, warn_of_variables
from pigeonpost.transports import registry
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.tcp_connection import LineConnection
from pigeonpost.transports.tcp_node import TcpNodeTransport
from protocol import LINE_BYTES

if TYPE_CHECKING:
    import argparse
    import socket
    from typing import Any

log = logging.getLogger("node")

MOST_FAULTS = 5  # maximum number of faults in the response to STATUS; a server stores only its first 4,096 characters

# Sources of a node without [[sensor]] tables: an MCP3008 with a temperature and a light sensor, and this machine.
_CHIP = {
    "kind": "adc",
    "channels": {"temperature": {"input": 1, "convert": "mcp9700"}, "light": {"input": 2, "convert": "counts"}},
}
_MACHINE = {"kind": "machine"}


def _multicast_bus(settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> Transport:
    from pigeonpost.compat.multicast_bus import node

    return node.make_transport(settings, info, outbox, clock)


TRANSPORTS = (*registry.NODE, registry.NodeTransportEntry("bus", ("bus", "enabled"), _multicast_bus))

_EXAMPLES = """examples:
  python3 node.py --simulate --every 1           try it without hardware
  python3 node.py --name basement --every 10     sample the chip every 10 s
  PIGEONPOST_NODE_TOKEN=... python3 node.py      allow a server on another machine to collect"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node until it is stopped, and return the exit status.

    Args:
        arguments: Command-line arguments without the name of the program; None for those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = config.read_flags(NODE, arguments) or _parse(arguments)
    os.umask(0o077)  # only the owner can read the files that this program creates
    start_logging()
    sys.setswitchinterval(0.0005)  # a busy connection then delays a sample by 0.5 ms instead of 5 ms (the default)
    try:
        settings = load_node(chosen)
        start_logging(settings["log", "level"])
        if getattr(chosen, "show", False):
            print(settings.show())
            _show_fingerprint(settings)
            return 0
        warn_of_variables()
        node = Node(settings)
        log.info("settings: %s", settings.source)
        return node.run()
    except PigeonpostError as error:
        print_error("node.py", error)
        return error.exit_status


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse all arguments. `--help` and invalid arguments end the program."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="node.py", description="Sample sensors at fixed intervals, store the samples, and send them to servers.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    config.add_flags(parser, NODE)
    parser.add_argument("--show", action="store_true", help="print all settings with their origins, and exit")
    parser.add_argument("--version", action="version", version=f"pigeonpost {VERSION}")
    return parser.parse_args(arguments)


class Node:
    """A node with all its components.

    Args:
        settings: The settings of the node.
    """

    def __init__(self, settings: Settings) -> None:
        data = config.data_folder(settings["node", "data"])
        close_to_others(data)
        lock_data_dir(os.path.join(data, OUTBOX_LOCK))
        _warn_of_volatile_filesystem(data)
        self.clock = Clock()
        self._data = data
        self._machine = MachineSource(disk=data)
        self.sources = make_sources(settings)
        channels = [channel for source in self.sources for channel in source.channels]
        self.every_s = settings["node", "every"]
        self.ring = Ring(data, settings["outbox", "slots"], _slot_bytes([channel.name for channel in channels]))
        give_to_owner(os.path.join(data, OUTBOX))
        self.outbox = Outbox(self.ring, self.clock.boot_id, settings["outbox", "sync"], self._fail)
        self.sampler = Sampler(
            self.sources, self.outbox.put, self.every_s, self.clock, lambda: self.outbox.on, is_checked=True
        )
        _refuse_too_many(channels)
        key = _key(settings["node", "token"].strip())
        info = NodeInfo(
            settings["node", "name"] or node_name(data),
            [_channel_as_json(channel) for channel in channels],
            self.every_s, key, self.outbox.switch, self._details,
        )  # fmt: skip
        connect, self._fingerprint = _connections(settings, data, info.name)
        self.link = TcpNodeTransport(settings["node", "listen"], info, self.outbox, self.clock, connect)
        self.info = info
        transports = _transports(settings, info, self.outbox, self.clock)
        self._transport_faults = [transport.fault for transport in transports.values() if transport.fault]
        self._running = Lifecycle([
            LifecycleComponent("link", self.link.start, self.link.stop),
            *[LifecycleComponent(name, transport.start, transport.stop) for name, transport in transports.items()],
            LifecycleComponent("outbox", self.outbox.start, self.outbox.stop),
            LifecycleComponent("sensors", self._start_sources, lambda limit_s: None),  # the sampler closes them
            LifecycleComponent(
                "sampler", self.sampler.start, self.sampler.stop, self.sampler.check, self.sampler.check_s
            ),
        ])  # fmt: skip

    def run(self) -> int:
        """Start all components, print the link address, wait for the end, and stop them. Return the exit status."""
        return self._running.run(self._report_ready)

    def _start_sources(self) -> None:
        for source in self.sources:
            source.start(self._data)

    def _report_ready(self) -> None:
        log.info(
            "node %s: sensors %s, sampled every %g s; sampling is %s; %s in the outbox",
            self.info.name, ", ".join(sensor["name"] for sensor in self.info.sensors), self.every_s,
            "on" if self.outbox.on else "OFF", counted(self._held(), "sample"),
        )  # fmt: skip
        if self.info.key is None:
            log.info(
                "no token: only programs on this machine can connect; `control.py token %s` creates a token",
                self.info.name,
            )
        if self._fingerprint:
            log.info("the link uses TLS; SHA-256 fingerprint of the certificate: %s", self._fingerprint)
        # The only line on standard output, for scripts that use port 0.
        print(f"listening on {join_address(*self.link.address)}", flush=True)

    def _held(self) -> int:
        return sum(run.last - run.first + 1 for run in self.ring.runs)

    def _details(self) -> dict[str, Any]:
        """Return the fields of the response to STATUS, in addition to ON or OFF."""
        return {
            "version": VERSION, "every": self.every_s, "held": self._held(), "slots": self.ring.slots,
            "taken": self.sampler.taken, "missed": self.sampler.missed, "failed": self.sampler.failed,
            "dropped": self.outbox.dropped, "collectors": self.link.collectors,
            "up": self.clock.up_ms(), "clock": "set" if self.clock.is_set() else "unset",
            "machine": {key: value for key, value in self._machine.read().items() if not isinstance(value, Exception)},
            **({"tls": self._fingerprint} if self._fingerprint else {}),
            **_faults([*self._transport_faults, *_outbox_faults(self._data, self.ring)]),
        }  # fmt: skip

    def _fail(self, error: BaseException) -> None:
        self._running.fail(error)


def _connections(settings: Settings, data: str, name: str) -> tuple[Callable[[socket.socket], LineConnection], str]:
    """Return the function that creates a link connection, and the certificate's fingerprint ("" without TLS)."""
    tls, certificate, key = (settings["link", setting] for setting in ("tls", "certificate", "key"))
    if (certificate or key) and not (tls and certificate):
        raise SettingsError("[link] certificate requires tls = true, and [link] key requires a certificate")
    if not tls:
        return LineConnection, ""
    from pigeonpost.transports.tcp_tls import node_connections, own_certificate

    return node_connections(certificate or own_certificate(data, name), key)


def _show_fingerprint(settings: Settings) -> None:
    if settings["link", "tls"]:
        from pigeonpost.transports.tcp_tls import fingerprint_for_show

        data = config.data_folder(settings["node", "data"])
        fingerprint = fingerprint_for_show(data, settings["link", "certificate"])
        print(f"# SHA-256 fingerprint of the link's certificate: {fingerprint}")


def _transports(settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> dict[str, Transport]:
    """Return the node transports that are enabled, by name. A transport is imported only if it is enabled."""
    return {
        name: registry.make_or_explain(make, settings, info, outbox, clock)
        for name, setting, make in TRANSPORTS if settings[setting]
    }  # fmt: skip


def make_sources(settings: Settings) -> list[SensorSource]:
    """Return the sources for the [[sensor]] tables in `settings`; without tables, an MCP3008 and this machine.

    With --simulate each source of kind "adc" reads a simulated chip. Without tables, the simulated chip is then the
    only source, so that a trial has the same channels on every machine.

    Raises:
        SettingsError: A table is invalid, or two sources have a channel of the same name.
    """
    try:
        return _make_sources(settings)
    except SettingsError as error:
        raise settings.with_line(error) from None


def _make_sources(settings: Settings) -> list[SensorSource]:
    simulate = settings["node", "simulate"]
    tables: Sequence[Mapping[str, Any]] = settings.tables.get("sensor") or ([_CHIP] if simulate else [_CHIP, _MACHINE])
    sources = [_make_source(table, f"{settings.file}: [[sensor]] {n}", simulate) for n, table in enumerate(tables, 1)]
    seen: set[str] = set()
    for n, source in enumerate(sources, 1):
        for channel in source.channels:
            if channel.name in seen:
                where = f"{settings.file}: [[sensor]] {n}: channels.{channel.name}"
                raise SettingsError(f"{where}: two sensors have a channel {channel.name!r}; rename one of them")
            seen.add(channel.name)
    # A channel that is calculated from a simulated channel is simulated too. The order makes this transitive.
    for derived, name in in_order(sources):
        simulated = {channel.name for source in sources for channel in source.channels if channel.simulated}
        if not simulated.isdisjoint(derived.uses[name]):
            derived.channels = [c._replace(simulated=c.simulated or c.name == name) for c in derived.channels]
    return sources


def _make_source(table: Mapping[str, Any], where: str, simulate: bool) -> SensorSource:
    kind = table.get("kind")
    options = {key: value for key, value in table.items() if key != "kind"}
    if kind == "adc" and simulate:
        return make_simulated_adc(options, where)
    return make_source(kind, options, where)


def _channel_as_json(channel: Channel) -> dict[str, Any]:
    """Return the description of a channel in HELLO."""
    sensor: dict[str, Any] = {"name": channel.name, "unit": channel.unit}
    if channel.simulated:
        sensor["simulated"] = True
    if channel.is_total:
        sensor["total"] = True
    if channel.limits:
        sensor["limits"] = dict(channel.limits)
    return sensor


def _refuse_too_many(channels: Sequence[Channel]) -> None:
    """Raise SettingsError if the descriptions of the channels are too long for HELLO, which is one line."""
    if sum(len(write_json(_channel_as_json(channel))) + 30 for channel in channels) > LINE_BYTES // 2:
        raise SettingsError(f"{len(channels)} sensors are too many for one node: move some of them to a second node")


def _slot_bytes(names: Sequence[str]) -> int:
    try:
        return slot_bytes_for(names)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _key(token: str) -> Key | None:
    """Return the key of the token in the settings or in systemd's credential node-token; None without a token."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = os.path.join(folder, "node-token")
    if not token and folder and os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            token = file.read().strip()
        if token and (len(token) < SHORTEST_TOKEN or "\ufffd" in token):
            raise SettingsError(
                f"the credential node-token (file /etc/pigeonpost/node-token) must have {SHORTEST_TOKEN} characters or"
                " more; `control.py token NAME` on the server prints the token"
            )
    if not token:
        return None
    from pigeonpost.auth.link_key import LinkKey

    return LinkKey(token)


def _faults(faults: list[str]) -> dict[str, list[str]]:
    """Return the field of STATUS with the faults that a person must repair; empty if there is none."""
    return {"faults": faults[:MOST_FAULTS]} if faults else {}


def _outbox_faults(data: str, ring: Ring) -> list[str]:
    """Return the faults of the outbox at this start, and a fault for each damaged file kept at an earlier start."""
    kept = [os.path.join(data, name) for name in sorted(os.listdir(data)) if name.startswith(OUTBOX + ".damaged-")]
    return ring.faults + [
        f"{path} is a damaged outbox that was kept. `python3 control.py read-outbox {path}` prints its samples;"
        " delete the file afterwards"
        for path in kept if not any(fault.endswith(f" {path}") for fault in ring.faults)
    ]  # fmt: skip


def _warn_of_volatile_filesystem(data: str) -> None:
    kind = kind_of_filesystem(data)
    if kind in ("tmpfs", "ramfs", "overlay"):
        log.warning("%s is on %s: a restart of the machine or the container deletes all samples in it", data, kind)


if __name__ == "__main__":
    sys.exit(main())
