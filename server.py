"""Program that collects samples from nodes, stores each sample once, writes the CSV log and serves the web interface.

    python3 server.py --demo                             demonstration with a simulated node
    python3 server.py --node basement@192.168.1.20       collect from the node on a Pi

The main thread starts the components in order, waits for a stop request or a fatal error, and stops the components in
reverse order. Each component has its own threads.
Exit status: 2 for invalid settings, 74 for a disk error, 75 if another server uses the same data folder.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - older versions cannot import our modules
    sys.exit(
        "Pigeonpost needs Python 3.11 or later, as in Raspberry Pi OS bookworm; this is %d.%d" % sys.version_info[:2]
    )

import argparse
import gc
import json
import logging
import os
import resource
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from csvbuffer import CsvLog
from pigeonpost.alerts.registry import alert_rules, make_alerts
from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.auth.token_watch import TokenWatch
from pigeonpost.auth.tokens import Tokens
from pigeonpost.auth.users import Users
from pigeonpost.compat.file_drop import page as file_drop_page
from pigeonpost.compat.multicast_bus import page as multicast_bus_page
from pigeonpost.core import config
from pigeonpost.core.addresses import own_name
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import RUNNING, SERVER_LOCK
from pigeonpost.core.errors import DiskError, PigeonpostError, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.core.files import close_to_others, lock_data_dir, replace_file
from pigeonpost.core.format import counted
from pigeonpost.core.lifecycle import Lifecycle, LifecycleComponent
from pigeonpost.core.logs import print_error, start_logging
from pigeonpost.core.version import VERSION
from pigeonpost.integrations.registry import connect_parts, make_integrations
from pigeonpost.server.calibrations import Calibrations
from pigeonpost.server.damage_check import (
    DAMAGE_FAULTS,
    DamageCheck,
    make_check,
    open_despite_damage,
    show_lost_rows,
)
from pigeonpost.server.disk_usage import DiskUsageMonitor
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.known_clients import KnownClients
from pigeonpost.server.limit_warnings import LimitWarnings
from pigeonpost.server.node_admin import NodeAdmin
from pigeonpost.server.node_limits import NodeLimits
from pigeonpost.server.node_names import CopyWatch, NodeNames
from pigeonpost.server.node_register import ByPresentName, NodeRegister
from pigeonpost.server.node_settings import read_nodes
from pigeonpost.server.node_status import NodeLink
from pigeonpost.server.quality import QualityChecks, read_rules
from pigeonpost.server.scheduled_backup import make_scheduled_backup
from pigeonpost.server.unnumbered_sources import UnnumberedSources
from pigeonpost.settings import SERVER, load_server, warn_of_variables
from pigeonpost.storage.csv.retention import LogLimits
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.transports import registry
from pigeonpost.transports.connection_loop import ConnectionLoop
from pigeonpost.transports.contract import ServerContext, Transport
from pigeonpost.transports.state_publisher import make_publisher
from pigeonpost.transports.tcp_server import TcpServerTransport
from pigeonpost.views.context import Route, WebContext
from pigeonpost.web.host_names import names_origin
from pigeonpost.web.page_addresses import page_addresses
from pigeonpost.web.socket_activation import passed_addresses
from webui import WebInterface

if TYPE_CHECKING:
    from pigeonpost.alerts.contract import AlertEngine
    from pigeonpost.storage.contract import Store
    from pigeonpost.views.demo_page import DemoPage
    from pigeonpost.web.tls import Tls

log = logging.getLogger("server")

_STACK_BYTES = 512 << 10  # stack of a thread: a thousand threads then fit into the address space of a 32-bit Pi


def _tmon(context: ServerContext) -> Transport:
    from pigeonpost.compat import tmon

    return tmon.TmonTransport(context)


def _pimonitor(context: ServerContext) -> Transport:
    from pigeonpost.compat import pimonitor

    return pimonitor.PiMonitorTransport(context)


def _file_drop(context: ServerContext) -> Transport:
    from pigeonpost.compat.file_drop import server

    return server.make_transport(context)


def _multicast_bus(context: ServerContext) -> Transport:
    from pigeonpost.compat.multicast_bus import server

    return server.make_transport(context)


TRANSPORTS = (
    *registry.SERVER,
    registry.ServerTransportEntry("tmon", None, _tmon),
    registry.ServerTransportEntry("pimonitor", ("pimonitor", "api_key"), _pimonitor),
    registry.ServerTransportEntry("drop", None, _file_drop),
    registry.ServerTransportEntry("bus", ("bus", "enabled"), _multicast_bus),
)


def compat_pages() -> list[Route]:
    """Return the routes of the web pages for the older systems' clients."""
    return [*file_drop_page.routes(), *multicast_bus_page.routes()]


_EXAMPLES = """examples:
  python3 server.py --demo                            demonstration without any hardware
  python3 server.py --node basement@192.168.1.20      collect from a Pi (create its token: control.py token basement)
  python3 server.py --node a@10.0.0.5 --node b@10.0.0.6:5003 --web 0.0.0.0:80"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until it is stopped, and return the exit status.

    Args:
        arguments: Command-line arguments without the name of the program; None for those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="server.py", description="Collect samples from nodes, store each sample once, and serve web pages.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    config.add_flags(parser, SERVER)
    parser.add_argument("--demo", action="store_true", help="start a simulated node and collect from it")
    parser.add_argument("--show", action="store_true", help="print all settings with their origins, and exit")
    parser.add_argument("--version", action="version", version=f"pigeonpost {VERSION}")
    chosen = parser.parse_args(arguments)
    os.umask(0o077)  # only the owner can read the files that this program creates, including those of SQLite
    start_logging()
    try:
        # A demonstration must not use the settings of an installation.
        settings = load_server(chosen, folders=("",) if chosen.demo else None)
        start_logging(settings["log", "level"])
        if chosen.show:
            print(settings.show())
            return 0
        warn_of_variables()
        make_room()
        return _run(settings, chosen.demo)
    except PigeonpostError as error:
        print_error("server.py", error)
        return error.exit_status


def _run(settings: Settings, is_demo: bool) -> int:
    try:
        if is_demo:
            return run_demo(settings)
        data = config.data_folder(settings["server", "data"])
        server = Server(settings, data, read_nodes(settings)[0], _web_addresses(settings))
        log.info("settings: %s", settings.source)
        return server.run()
    except SettingsError as error:
        raise settings.with_line(error) from None


def make_room() -> None:
    """Raise the limits of this process for many connections and many samples."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))  # each connection needs a file descriptor
    threading.stack_size(_STACK_BYTES)
    # Many small objects wait for a commit, and none of them is part of a reference cycle. The garbage collector found
    # nothing in them, but used a sixth of the CPU time at full load.
    gc.set_threshold(200_000, 10, 10)


def run_demo(settings: Settings) -> int:
    """Run a server and a simulated node until the server is stopped, and return the exit status.

    The data is in a temporary folder, which is deleted at the end, unless `settings` name a data folder.
    """
    from pigeonpost.server.demo_trials import NODE, DemoTrials
    from pigeonpost.views.demo_page import DemoPage

    folder = settings["server", "data"] or tempfile.mkdtemp(prefix="pigeonpost-demo-")
    demo = DemoTrials(folder)
    try:
        web = _web_addresses(settings)
        if settings.origin("web", "listen") == "default" and not _is_free(web[0]):
            web = [(web[0][0], 0)]
        return Server(settings, folder, [(NODE, demo.start())], web, DemoPage(demo)).run()
    finally:
        demo.stop(2.0)
        if not settings["server", "data"]:
            shutil.rmtree(folder, ignore_errors=True)


class Server:
    """A server with all its components."""

    def __init__(
        self, settings: Settings, data: str, nodes: Sequence[tuple[str, tuple[str, int]]], web: list[tuple[str, int]],
        demo: DemoPage | None = None,
    ) -> None:  # fmt: skip
        """Create all components without starting them.

        Args:
            settings: The settings of the server.
            data: Data folder.
            nodes: Name (or an empty string) and address of each node to collect from.
            web: Addresses of the web interface.
            demo: Page of a demonstration, or None.
        """
        close_to_others(data)
        self._lock = lock_data_dir(os.path.join(data, SERVER_LOCK))
        name, clock = settings["server", "name"] or own_name(), Clock()
        self._running_file, self._demo = os.path.join(data, RUNNING), demo
        self._control, self._collecting = secrets.token_urlsafe(24), False
        faults, throttle = Faults(), LoginThrottle(clock)
        store = open_despite_damage(settings, data, faults)
        csv = CsvLog(data, store, clock, LogLimits(settings["store", "log_days"], settings["store", "log_mib"]),
                     lambda: not faults.present().keys() & DAMAGE_FAULTS)  # fmt: skip
        check = make_check(data, store, csv, faults, clock)
        show_lost_rows(store, csv, faults)
        links: list[NodeLink] = []
        warnings = LimitWarnings(links, faults, clock)
        tokens, self._api_tokens = Tokens(data, faults), ApiTokens(data, faults, clock)
        register = NodeRegister(store, tokens.text_of)
        self._calibrations = Calibrations(data, register.current, faults)
        ingestor = self._make_ingestor(settings, store, csv, clock, warnings, register)
        shown = self._calibrations.install(store, ingestor)
        loop = ConnectionLoop(clock, ingestor.next_commit_s)
        maintenance = MaintenanceWorker(store, ingestor, clock, settings["store", "keep"])
        self._token_watch = TokenWatch(tokens, self._recheck_tokens)
        # First the nodes in the settings, from which this server collects over TCP; then nodes that connect to it or
        # announce themselves.
        self._links: list[TcpServerTransport] = []
        self._clients = unnumbered_sources = UnnumberedSources(
            ingestor, links, clock, tokens, faults, throttle, register.current, KnownClients(data, faults)
        )
        names, pins = NodeNames(links, register.current), ByPresentName(read_nodes(settings)[1], register.current)
        register.on_rename += [names.on_rename, unnumbered_sources.on_rename]

        def collect(expected: str, address: tuple[str, int]) -> TcpServerTransport:
            link = TcpServerTransport(address, expected, name, ingestor, tokens, clock, pins, names, loop)
            self._links.append(link)
            links.append(link)
            if self._collecting:
                link.start()
            return link

        for expected, address in nodes:
            collect(expected, address)
        unnumbered_sources.expect_known()
        context = ServerContext(
            name, data, clock, settings, shown, ingestor, tokens, unnumbered_sources, links, collect, faults, throttle,
            register, self._api_tokens,
        )  # fmt: skip
        transports = _make_transports(context)
        quality = _subscribe_checks(context, self._calibrations)
        alerts = make_alerts(context, csv, quality)
        parts = {**transports, **_make_others(context, transports), **alerts.components}
        connect_parts(parts, self._calibrations)
        self.app = self._web_context(context, csv, check, parts, quality, alerts.engine)
        endpoints = [one for transport in transports.values() for one in transport.endpoints]
        self._tls = _tls(settings)
        self.web = WebInterface(web, self.app, None, endpoints, self._tls, settings["web", "plain"], self._pages())
        self._running = Lifecycle(self._components(store, csv, ingestor, maintenance, check, parts))

    def _pages(self) -> list[Route]:
        return [*compat_pages(), *(self._demo.routes if self._demo else ())]

    def _web_context(
        self,
        context: ServerContext,
        csv: CsvLog,
        check: DamageCheck,
        parts: Mapping[str, Any],
        quality: QualityChecks,
        alerts: AlertEngine | None,
    ) -> WebContext:
        """Return the context of the web pages."""
        data, settings, clock, faults = context.data, context.settings, context.clock, context.faults
        return WebContext(
            name=context.name, data=data, clock=clock, store=context.store, csv=csv, ingestor=context.ingestor,
            links=context.links, stop=self._end, users=Users(data, faults), control=self._control,
            api_tokens=self._api_tokens, started_ms=clock.wall_ms(), quality=quality, alerts=alerts,
            calibrations=self._calibrations,
            disk=DiskUsageMonitor(data, clock), faults=faults, throttle=context.throttle, transports=parts,
            names=settings["web", "names"], names_origin=names_origin(settings), proxies=settings["web", "proxies"],
            prefix=settings["web", "prefix"], rules=alert_rules(settings), admin=_make_admin(context), check=check,
            notifier=parts.get("watch"), more=[self._demo.link] if self._demo else [],
        )  # fmt: skip

    def _components(
        self,
        store: Store,
        csv: CsvLog,
        ingestor: Ingestor,
        maintenance: MaintenanceWorker,
        check: DamageCheck,
        parts: Mapping[str, Any],
    ) -> list[LifecycleComponent]:
        """Return all components in the order in which they are started; they are stopped in reverse order."""
        return [
            LifecycleComponent("store", lambda: None, lambda limit_s: store.close()),
            LifecycleComponent("CSV log", csv.start, lambda limit_s: csv.close()),
            # Before the links, so that no change of a token between the two starts is missed.
            LifecycleComponent("tokens", self._token_watch.start, self._token_watch.stop),
            # The links stop after the Ingestor, because the last samples are acknowledged only after their commit.
            LifecycleComponent("links", self._start_links, self._stop_links),
            *[LifecycleComponent(name, part.start, part.stop) for name, part in parts.items()],
            LifecycleComponent("ingest", ingestor.start, ingestor.stop),
            LifecycleComponent("maintenance", maintenance.start, maintenance.stop),
            LifecycleComponent("damage check", check.start, check.stop),
            LifecycleComponent("page", self.web.start, self.web.stop),
            LifecycleComponent("control", self._write_running_file, self._delete_running_file),
        ]

    def run(self) -> int:
        """Start all components, print the addresses of the web interface, wait for the end, and stop them.

        Returns:
            The exit status.
        """
        return self._running.run(self._report_ready)

    def _report_ready(self) -> None:
        app = self.app
        log.info(
            "server %s: collects from %s; data folder %s",
            app.name,
            counted(sum(not link.state.calls_in for link in app.links), "node"),
            app.data,
        )
        if self._demo is not None:
            log.info("demonstration: node `demo` has simulated readings of a chip and real readings of this computer")
        for scheme, host, port in self.web.urls:
            for line in page_addresses(scheme, host, port, self.web.first_key):
                print(f"the page is at {line}", flush=True)
        if self._tls is not None:
            log.info("SHA-256 fingerprint of the certificate: %s", self._tls.fingerprint)

    def _start_links(self) -> None:
        """Start to collect from all nodes. The nodes are independent of each other."""
        self._collecting = True
        for link in self._links:
            link.start()

    def _recheck_tokens(self, nodes: Set[str]) -> None:
        """Check the tokens of `nodes` again, because they have changed."""
        for link in list(self._links):
            if not link.state.name or link.state.name in nodes:
                link.recheck_token()
        self._clients.recheck_tokens(nodes)

    def _stop_links(self, limit_s: float) -> str | None:
        give_up_s = self.app.clock.monotonic() + limit_s
        for link in self._links:
            link.end()
        unfinished = [link.stop(max(0.0, give_up_s - self.app.clock.monotonic())) for link in self._links]
        return "; ".join(text for text in unfinished if text) or None

    def _write_running_file(self) -> None:
        about = {
            "pid": os.getpid(), "web": [list(address) for address in self.web.addresses], "key": self._control,
            "certificate": self._tls.path if self._tls is not None else "",
        }  # fmt: skip
        try:
            replace_file(self._running_file, json.dumps(about).encode())
        except DiskError as error:  # disk full: collecting and the web interface continue
            log.warning("control.py cannot find this server: %s", error)

    def _delete_running_file(self, limit_s: float) -> None:
        try:
            os.unlink(self._running_file)
        except FileNotFoundError:
            pass  # another program or a user has already deleted it

    def _end(self, reason: str) -> None:
        self._running.end(reason)

    def _make_ingestor(
        self, settings: Settings, store: Store, csv: CsvLog, clock: Clock, warnings: LimitWarnings, names: NodeRegister
    ) -> Ingestor:
        limits = NodeLimits(store, settings["store", "channels_per_sample"], settings["store", "channels_per_node"])
        commit_s, buffer_samples = settings["store", "commit"], settings["store", "buffer"]
        return Ingestor(store, csv, clock, commit_s, buffer_samples, self._fail, limits, warnings.warn, names)

    def _fail(self, error: BaseException) -> None:
        self._running.fail(error)


def _make_transports(context: ServerContext) -> dict[str, Transport]:
    """Return the transports that are enabled, by name."""
    return {
        name: registry.make_or_explain(make, context)
        for name, setting, make in TRANSPORTS if setting is None or context.settings[setting]
    }  # fmt: skip


def _make_others(context: ServerContext, transports: Mapping[str, Transport]) -> dict[str, Any]:
    """Return the other optional components that are enabled, by name."""
    backups = make_scheduled_backup(context.settings, context.data, context.name, context.faults, context.clock)
    return {**make_publisher(context, transports), **backups, **make_integrations(context)}


def _make_admin(context: ServerContext) -> NodeAdmin:
    """Return the NodeAdmin, after completing a rename that was interrupted."""
    admin = NodeAdmin(context.store, context.ingestor, context.tokens, context.clock)
    admin.finish()
    return admin


def _subscribe_checks(context: ServerContext, calibrations: Calibrations) -> QualityChecks:
    """Subscribe the quality checks, and the check for two senders with the same name, to all commits."""
    written = read_rules(context.settings.tables.get("limits", ()), context.settings.file)
    # A table with a former name of a node applies to the node, too. A table with its current name has priority.
    rules = {(context.current(node), sensor): limits for (node, sensor), limits in written.items()}
    quality = QualityChecks(context.links, {**rules, **written}, calibrations.of, context.ingestor)
    calibrations.on_change.append(quality.on_calibration)
    context.ingestor.subscribe(quality.on_commit)
    if context.names is not None:
        context.names.on_rename.append(quality.on_rename)
    context.ingestor.subscribe(CopyWatch(context.links, context.clock).on_commit)
    return quality


def _web_addresses(settings: Settings) -> list[tuple[str, int]]:
    """Return the addresses that systemd has opened, or else those in the settings.

    The default on balena is port 80, because balena's public device URL leads to that port.
    """
    if passed := passed_addresses():
        return passed
    addresses: list[tuple[str, int]] = settings["web", "listen"]
    if settings.origin("web", "listen") == "default" and "BALENA" in os.environ:
        return [("0.0.0.0", 80)]
    return addresses


def _tls(settings: Settings) -> Tls | None:
    """Return the TLS context of the web interface, or None without a certificate."""
    certificate, key = settings["web", "certificate"], settings["web", "key"]
    if not certificate:
        if key:
            raise SettingsError(f"{settings.origin('web', 'key')}: [web] key requires [web] certificate")
        return None
    from pigeonpost.web.tls import Tls  # imports ssl, which needs much memory

    return Tls(certificate, key)


def _is_free(address: tuple[str, int]) -> bool:
    try:
        socket.create_server(address).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
