"""Checks of a server: its data, secrets, page, nodes and backups. Errors: none; a failure is a finding."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.tokens import Tokens
from pigeonpost.auth.users import Users
from pigeonpost.cli import doctor_web
from pigeonpost.cli.doctor_backup import backup
from pigeonpost.cli.doctor_checks import (
    SERVICE_DISK,
    Finding,
    broker,
    control,
    database,
    folder,
    is_hidden,
    listeners,
    port,
    private,
    reach,
)  # fmt: skip
from pigeonpost.cli.doctor_libraries import libraries
from pigeonpost.cli.doctor_service import Service, ask_systemd
from pigeonpost.cli.doctor_systemd import restart
from pigeonpost.cli.install_files import SOCKET, UNITS
from pigeonpost.core.addresses import is_loopback, join_address
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import API_TOKENS, DATABASE, RUNNING, TOKENS, USERS
from pigeonpost.core.errors import DamagedFile, PigeonpostError
from pigeonpost.server.node_settings import read_nodes
from pigeonpost.storage.models import NodeRecords
from pigeonpost.storage.registry import open_store

_MANY = 32  # nodes that are asked at the same time: each that is away takes REACH_S
_FIRST_PORT_FOR_ALL = 1024  # those below are root's (ip(7), ip_unprivileged_port_start)


class _Kept:
    """What the data folder has; None: this user may not see it, or it is damaged."""

    def __init__(self) -> None:
        self.tokens: set[str] | None = None  # the nodes that have one
        self.users: dict[str, str] | None = None  # roles by name
        self.records: NodeRecords | None = None


def server(settings: Settings, data: str, service: Service | None = None) -> Iterator[Finding]:
    """Yield what a server needs; `service` is the one that runs it."""
    kept, is_closed = _Kept(), is_hidden(data)
    if is_closed and service is None:
        yield from folder(data)
    elif is_closed:
        yield Finding("note", f"run doctor with sudo to see {data}, which is for the service alone")
    else:
        yield from _data(settings, data, service, kept)
    yield from _page(settings, data, service)
    yield from doctor_web.page(settings, kept.users, service)
    yield from _nodes(settings, data, service, kept)
    yield from backup(settings, data, service, is_closed)
    yield from libraries(settings, "server", service)
    yield from broker(settings, "server.toml")


def _data(settings: Settings, data: str, service: Service | None, kept: _Kept) -> Iterator[Finding]:
    """Check the data folder, and take from it what the other checks need."""
    if os.path.isdir(data) or service is None:  # systemd makes that of a service
        yield from folder(data) if service is None else folder(data, SERVICE_DISK)
    if not settings["store", "postgres"]:
        yield from database(data)
        if os.path.exists(os.path.join(data, DATABASE)):
            kept.records = _node_records(settings, data)

    def read_tokens() -> None:
        kept.tokens = set(Tokens(data))

    def read_users() -> None:
        kept.users = Users(data).roles()

    yield from secrets(os.path.join(data, TOKENS), "the tokens of the nodes", read_tokens)
    yield from secrets(os.path.join(data, USERS), "the users of the page", read_users)
    yield from secrets(os.path.join(data, API_TOKENS), "the tokens of programs", ApiTokens(data).all)


def _node_records(settings: Settings, data: str) -> NodeRecords | None:
    """Return what operators have said of nodes; None for a database that cannot be read, a finding of its own."""
    try:
        store = open_store(settings, data, look_only=True)
    except PigeonpostError:
        return None
    try:
        return store.node_records()
    except PigeonpostError:
        return None
    finally:
        store.close()


def _nodes(settings: Settings, data: str, service: Service | None, kept: _Kept) -> Iterator[Finding]:
    """Check the nodes that the settings name: what operators have said of them, whether they answer, their tokens."""
    records = kept.records or NodeRecords()
    present = {former.name: former.node for former in records.former if not former.is_released}
    nodes = []
    for name, address in read_nodes(settings)[0]:
        if name in present:
            yield Finding("note", f"node {name} is called {present[name]} now, and the server knows it by either name",
                          f"{present[name]} in place of {name} in server.toml")  # fmt: skip
        if present.get(name, name) in records.retired:
            undo = _control(f"retire {name} --undo", data, service)
            yield Finding("note", f"node {name} is retired, and the settings still name it",
                          f"take it out of server.toml, or: {undo}")  # fmt: skip
        else:
            nodes.append((name, address))
    remedy = "there: `python3 control.py doctor node`; is node.py running, and its port open?"
    if nodes:
        who = [f"node {name}" if name else "the node" for name, _ in nodes]
        with ThreadPoolExecutor(min(len(nodes), _MANY)) as pool:
            reached = pool.map(reach, [address for _, address in nodes], who, [remedy] * len(nodes))
            yield from reached
    for name, address in nodes:
        if name and kept.tokens is not None and name not in kept.tokens and not is_loopback(address[0]):
            yield Finding("note", f"node {name} has no token here, so it will refuse",
                          f"{_control(f'token {name}', data, service)}, and give it to the node")  # fmt: skip


def _control(command: str, data: str, service: Service | None) -> str:
    """Return a command of control.py for the data of this server."""
    if service is None:
        return f"python3 control.py {command}"
    return control(command, as_root=True, data=data)


def secrets(path: str, what: str, read: Callable[[], object]) -> Iterator[Finding]:
    """Check that `read` can read a file with secrets, and that nobody else can."""
    try:
        read()
    except DamagedFile as error:
        about, _, remedy = str(error).partition("; ")
        yield Finding("wrong", about, remedy)
        return
    if os.path.exists(path):
        yield private(path, what)


# ------------------------------------------------------------------------------------------- the page's addresses


def _page(settings: Settings, data: str, service: Service | None) -> Iterator[Finding]:
    if service is None:
        for address in settings["web", "listen"]:
            yield port(address, "--web HOST:PORT", functools.partial(_running, data, address))
        return
    state = ask_systemd(SOCKET)
    is_passed = state.get("ActiveState") == "active"
    if is_passed:
        yield Finding("ok", f"{SOCKET} has the page's port")
    elif state and os.path.exists(service.path(f"{UNITS}/{SOCKET}")):  # the package's own may be unused
        yield _socket(state["ActiveState"])
    for address in () if is_passed else settings["web", "listen"]:
        yield _listens(address, service)


def _socket(state: str) -> Finding:
    """Say why the unit that opens port 80 does not, by its ActiveState."""
    remedy = control("install server --port-80 --write", as_root=True)
    if state == "failed":
        return Finding("wrong", f"{SOCKET} has failed: another program has the port, so the page is not on port 80",
                       f"sudo ss -ltnp 'sport = :80' tells which; end it, then {remedy}")  # fmt: skip
    return Finding("wrong", f"{SOCKET} is not active, so the page is not on port 80", remedy)


def _listens(address: tuple[str, int], service: Service) -> Finding:
    """Check an address of the service's page."""
    where, number = join_address(*address), address[1]
    other = f'[web] listen = ["0.0.0.0:8081"] in {service.path("/etc/pigeonpost/server.toml")}'
    if number and number < _FIRST_PORT_FOR_ALL:
        return Finding("wrong", f"the service may not listen on {where}: ports below {_FIRST_PORT_FOR_ALL} are root's",
                       f"take out that `listen`, then {control('install server --port-80 --write', as_root=True)};"
                       " systemd then opens port 80 for it")  # fmt: skip
    if not service.is_active:
        return port(address, other, str)
    uids = listeners(number)
    if number and not uids:
        return Finding("wrong", f"{service.unit} runs, but does not listen on {where}", restart(service))
    if number and service.account.uid is not None and service.account.uid not in uids:
        return Finding("wrong", f"another program than {service.unit} listens on {where}",
                       f"sudo ss -ltnp 'sport = :{number}' tells which; or another: {other}")  # fmt: skip
    return Finding("ok", f"{where}: this server's page is there")


def _running(data: str, address: tuple[str, int]) -> str:
    """Who of ours has the page's address; empty: nobody."""
    try:
        with open(os.path.join(data, RUNNING), encoding="utf-8") as file:
            about = json.load(file)
        with contextlib.suppress(PermissionError):  # it runs, as another user
            os.kill(about["pid"], 0)
        is_there = any(found[1] == address[1] for found in about["web"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return "this server's page is there" if is_there else ""
