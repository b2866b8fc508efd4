"""Server for tests: store, log, ingestor and web interface in a temporary folder, on a separate port.

    house = WebHouse(self, password="correct horse")
    house.store_samples("basement", [{"temperature": 21.5}], {"temperature": "°C"})
    status, headers, body = house.request("GET", "/api/v1/nodes", house.bearer)

Its client uses a socket and shares no code with the tested program. Everything ends with the test.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import socket
import threading
import unittest
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import server
import webui
from csvbuffer import CsvLog
from pigeonpost.auth import users as users_module
from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.auth.tokens import Tokens
from pigeonpost.auth.users import FIRST_USER, Users
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import load
from pigeonpost.core.faults import Faults
from pigeonpost.link.samples import batches_of
from pigeonpost.server.calibrations import Calibrations
from pigeonpost.server.disk_usage import DiskUsageMonitor
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.quality import QualityChecks
from pigeonpost.server.unnumbered_sources import UnnumberedSources
from pigeonpost.settings import SERVER, SERVER_ARRAYS
from pigeonpost.storage.models import EpochCommit
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.transports.contract import ServerContext, Transport
from pigeonpost.views.context import WebContext
from pigeonpost.web.connection_limits import Limits
from protocol import Batch, Sample
from tests.support import LIMIT_S, memory_disk, temp_folder
from webui import WebInterface

CONTROL_KEY = "control-key-of-this-test"
# On a busy machine, any client of a test can be slow, so the limits are long.
PATIENT = Limits(head_s=LIMIT_S, body_s=LIMIT_S, idle_s=LIMIT_S, send_s=LIMIT_S, queue_s=LIMIT_S)
Response = tuple[int, dict[str, str], bytes]


class FakeLink:
    """Replacement for the server side of a link, with the `state` of a node and the method `ask`.

    Args:
        name: Name of the node.
        sensors: Units by channel name.
        connected: False for a node that is not connected and does not answer.

    Attributes:
        asked: Requests in their order: ("SEND", True), ("CHECK",).
        answers: False if the node does not answer.
    """

    def __init__(self, name: str, sensors: Mapping[str, str] | None = None, connected: bool = True) -> None:
        self.state = NodeState("192.168.1.20:5003", name)
        self.state.connected = connected
        self.state.fault = "" if connected else "not reached yet"
        self.state.on = True if connected else None
        self.state.every_s = 10.0
        self.state.since_ms = Clock().wall_ms()
        self.state.sensors = [{"name": sensor, "unit": unit} for sensor, unit in (sensors or {}).items()]
        self.answers = connected
        self.asked: list[tuple[Any, ...]] = []

    def ask(self, word: str, *args: Any, limit_s: float = 5.0) -> bool:
        self.asked.append((word, *args))
        if self.answers and word == "SEND":
            self.state.on = args[0]
        return self.answers


class WebHouse:
    """Running server inside the test process.

    Args:
        test: The test. The server ends with it.
        password: Password of the user "admin", who is an operator; None for no password.
        links: FakeLinks, or real links that the test starts and stops itself.
        limits: Limits of the web server.
        clock: Clock of the server.
        listen: Address of the web interface.
        names: Names of the server ([web] names).
        prefix: Path below which a proxy provides the server.
        proxies: Trusted proxies.
        transports: Constructors of the transports to open.
        settings: Settings for the transports, as the text of a server.toml.
        tls: Certificate for HTTPS. `request` and `raw` use plain HTTP.
        plain: Addresses without TLS.
        notifier: Component that sends alerts, or None.
        alerts: Active alerts and rules, or None.

    Attributes:
        app, web, ingestor, store, csv, users, calibrations: Parts of the server. The values in `store` are raw.
        folder: The data folder.
        address: Address of the web interface: (host, port).
        stopped: Reasons with which a page has requested the end of the server.
        bearer: Headers with the key of control.py.
        browser: Headers of a browser that has logged in with the one-time key, while no password is set.
    """

    def __init__(
        self,
        test: unittest.TestCase,
        password: str | None = None,
        links: Sequence[Any] = (),
        limits: Limits = PATIENT,
        clock: Clock | None = None,
        listen: str = "127.0.0.1",
        names: Sequence[str] = (),
        prefix: str = "",
        proxies: Sequence[str] = (),
        transports: Sequence[Callable[[ServerContext], Transport]] = (),
        settings: str = "",
        tls: Any = None,
        plain: Sequence[tuple[str, int]] = (),
        notifier: Any = None,
        alerts: Any = None,
    ) -> None:
        self.folder = temp_folder(test, memory_disk())
        test.enterContext(mock.patch.object(users_module, "_N", 2))  # test_users tests the real cost of a hash
        clock = clock or Clock()
        self.users = Users(self.folder)
        if password is not None:
            self.users.set_password(FIRST_USER, password)
        self.password = password or ""
        self.stopped: list[str] = []
        self.store = SqliteStore(self.folder)
        test.addCleanup(self.store.close)
        self.csv = CsvLog(self.folder, self.store, clock)
        test.addCleanup(self.csv.close)
        self.csv.start()
        self.ingestor = Ingestor(self.store, self.csv, clock, commit_s=0.01)
        self.tokens, self.links = Tokens(self.folder), list(links)
        self.faults, self.throttle = Faults(), LoginThrottle(clock)
        self.api_tokens = ApiTokens(self.folder, self.faults, clock)
        self.unnumbered_sources = UnnumberedSources(
            self.ingestor, self.links, clock, self.tokens, self.faults, self.throttle
        )
        self.calibrations = Calibrations(self.folder, self.ingestor.names.current, self.faults)
        shown = self.calibrations.install(self.store, self.ingestor)
        quality = QualityChecks(self.links, timelines_of=self.calibrations.of, ingestor=self.ingestor)
        self.calibrations.on_change.append(quality.on_calibration)
        self.ingestor.subscribe(quality.on_commit)
        self.app = WebContext(
            name="house", data=self.folder, clock=clock, store=shown, csv=self.csv, ingestor=self.ingestor,
            links=self.links, users=self.users, api_tokens=self.api_tokens, control=CONTROL_KEY,
            started_ms=clock.wall_ms(), names=names, proxies=proxies, prefix=prefix,
            stop=self.stopped.append, quality=quality, disk=DiskUsageMonitor(self.folder, clock),
            faults=self.faults, throttle=self.throttle, calibrations=self.calibrations,
            notifier=notifier, alerts=alerts,
        )  # fmt: skip
        self.bearer = {"Authorization": f"Bearer {CONTROL_KEY}"}
        ends = [make(self._context(settings)) for make in transports]
        self.web = WebInterface(
            [(listen, 0)], self.app, limits, [one for end in ends for one in end.endpoints], tls, plain,
            server.compat_pages(),
        )  # fmt: skip
        for end in ends:
            end.start()
            test.addCleanup(end.stop, LIMIT_S)
        self.ingestor.start()
        test.addCleanup(self.ingestor.stop, LIMIT_S)
        with mock.patch.object(webui, "_POLL_S", 0.002):  # otherwise every test would end 0.2 s later
            self.web.start()
        test.addCleanup(self.web.stop, 2.0)
        host, port = self.web.addresses[0]
        self.address = ("127.0.0.1" if host == "0.0.0.0" else host), port
        self._seqs: dict[str, int] = {}
        # An acknowledged sample is committed, but may not be in the log and on the page yet. This subscriber is last.
        self._handed_on = threading.Condition()
        self._seen: dict[str, int] = {}
        self.ingestor.subscribe(self._note)

    def _context(self, settings: str) -> ServerContext:
        path = os.path.join(self.folder, "server.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(settings)
        found = load(SERVER, argparse.Namespace(config=path), "", SERVER_ARRAYS, environment={})
        return ServerContext(
            "house", self.folder, self.app.clock, found, self.store, self.ingestor, self.tokens,
            self.unnumbered_sources, self.links, lambda name, address: None, self.app.faults,
            self.app.throttle, self.ingestor.names, self.api_tokens,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ samples

    def store_samples(
        self, node: str, samples: Iterable[Sample | Mapping[str, Any]], units: Mapping[str, str] | None = None
    ) -> list[Sample]:
        """Store samples of `node` through the ingestor, and return when they are durable and in the log.

        Args:
            node: Name of the node.
            samples: Samples with consecutive sequence numbers, starting at 1; or only their values, with None for a
                failed reading. Values get sequence numbers and times one second apart, ending now.
            units: Units by channel name.
        """
        wanted = list(samples)
        first, now_ms = self._seqs.get(node, 0) + 1, self.app.clock.wall_ms()
        made = [
            one if isinstance(one, Sample) else _sample(first + k, now_ms - 1000 * (len(wanted) - 1 - k), one)
            for k, one in enumerate(wanted)
        ]
        self._seqs[node] = made[-1].seq
        refused: list[BaseException] = []
        outbox = f"{sum(node.encode()):016x}"
        for alike in batches_of(made):
            self.ingestor.submit(
                Batch(node, outbox, "0123456789abcdef", 0, alike, None, units or {}, lambda *_: None, refused.append)
            )
        with self._handed_on:
            if not self._handed_on.wait_for(lambda: self._seen.get(node, 0) >= made[-1].seq, LIMIT_S):
                raise AssertionError(f"{node}: not stored within {LIMIT_S:g} s: {refused or self.ingestor.fault}")
        return made

    def _note(self, epoch_commits: Sequence[EpochCommit]) -> None:
        with self._handed_on:
            self._seen.update({epoch_commit.node: epoch_commit.mark.seq for epoch_commit in epoch_commits})
            self._handed_on.notify_all()

    # ----------------------------------------------------------------------------------------------------- requests

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"", html: bool = False
    ) -> Response:
        """Send one request on a new connection, and return status, headers with names in lower case, and body.

        With `html`, the request accepts HTML as a browser does. A Content-Length is added if there is a body.
        """
        wanted = {"Host": f"{self.address[0]}:{self.address[1]}", "Connection": "close"}
        if html:
            wanted["Accept"] = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
        if body or method == "POST":
            wanted["Content-Length"] = str(len(body))
        wanted.update(headers or {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in wanted.items())
        data = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body
        return parse_response(self.raw(data, ends=False), is_head=method == "HEAD")

    def raw(self, data: bytes, limit_s: float = LIMIT_S, ends: bool = True) -> bytes:
        """Send `data` unchanged, and return everything received until the server closes the connection.

        With `ends`, the client closes its half after sending. Otherwise the server or `limit_s` ends the connection.
        """
        with socket.create_connection(self.address, limit_s) as sock:
            sock.settimeout(limit_s)
            return exchange(sock, data, ends)

    def connect(self, limit_s: float = LIMIT_S) -> socket.socket:
        """Return a connection to the web server, which the test must close."""
        return socket.create_connection(self.address, limit_s)

    def post_form(self, path: str, fields: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Response:
        """Post a form as a browser does."""
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", path, {**kind, **(headers or {})}, urlencode(fields).encode(), html=True)

    def log_in(self, user: str = FIRST_USER, password: str | None = None) -> dict[str, str]:
        """Log in, and return the headers (Cookie) of the session."""
        fields = {"user": user, "password": self.password if password is None else password}
        status, headers, body = self.post_form("/login", fields)
        if status != 303:
            raise AssertionError(f"login answered {status}: {body[:200]!r}")
        return {"Cookie": headers["set-cookie"].partition(";")[0]}

    def sign_in(self) -> dict[str, str]:
        """Open the address with the one-time key on this machine, and return the headers (Cookie) of the session.

        While no password is set, changes require this session.
        """
        status, headers, body = self.request("GET", f"/?key={self.web.first_key}", html=True)
        if status != 303:
            raise AssertionError(f"the one-time key answered {status}: {body[:200]!r}")
        return {"Cookie": headers["set-cookie"].partition(";")[0]}

    @functools.cached_property
    def browser(self) -> dict[str, str]:
        return self.sign_in()

    def csrf(self, headers: Mapping[str, str] | None = None) -> str:
        """Return the CSRF token in the forms of the front page."""
        _, _, body = self.request("GET", "/", headers, html=True)
        found = re.search(rb'name="csrf" value="([^"]*)"', body)
        if not found:
            raise AssertionError(f"no form on the front page: {body[:200]!r}")
        return found[1].decode()


def parse_response(data: bytes, is_head: bool = False) -> Response:
    """Return the response in `data`. Raise AssertionError if it is not exactly one."""
    status, headers, body, rest = next_response(data, is_head)
    if rest:
        raise AssertionError(f"more than one answer: {rest[:200]!r}")
    return status, headers, body


def next_response(data: bytes, is_head: bool = False) -> tuple[int, dict[str, str], bytes, bytes]:
    """Return the first response in `data`, and the bytes after it."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        raise AssertionError(f"incomplete response: {data[:200]!r}")
    first, *lines = head.decode("latin-1").split("\r\n")
    found = re.fullmatch(r"HTTP/1\.1 ([1-5][0-9][0-9]) [ -~]*", first)
    if not found:
        raise AssertionError(f"invalid status line: {first!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        if not colon or name.lower() in headers:
            raise AssertionError(f"invalid or repeated header: {line!r}")
        headers[name.lower()] = value
    length = 0 if is_head or found[1] in ("100", "304") else int(headers.get("content-length", len(rest)))
    if len(rest) < length:
        raise AssertionError(f"{len(rest)} of {length} bytes received: {data[:200]!r}")
    return int(found[1]), headers, rest[:length], rest[length:]


def exchange(sock: socket.socket, data: bytes, ends: bool = True) -> bytes:
    """Send `data`, and return everything received until the peer closes the connection."""
    try:
        sock.sendall(data)
        if ends:
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the peer has already closed the connection; its data can still be read
    return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Return everything received until the peer closes the connection."""
    parts = []
    try:
        while part := sock.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def _sample(seq: int, time_ms: int, values: Mapping[str, Any]) -> Sample:
    errors = {name: "no reading" for name, value in values.items() if value is None}
    return Sample(seq, time_ms, seq * 1000, dict(values), errors, "")
