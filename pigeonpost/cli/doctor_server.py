"""Checks of a server: its data, secrets, web interface, nodes and backups. A check that fails yields a finding."""

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
from pigeonpost.cli.doctor_backup import check_backup
from pigeonpost.cli.doctor_checks import (
    SERVICE_DISK,
    Finding,
    check_broker,
    check_database,
    check_folder,
    check_port,
    check_private,
    check_reachable,
    control_command,
    is_hidden,
    listeners,
)  # fmt: skip
from pigeonpost.cli.doctor_libraries import check_libraries
from pigeonpost.cli.doctor_service import Service, ask_systemd
from pigeonpost.cli.doctor_systemd import restart_command
from pigeonpost.cli.install_files import SOCKET, UNITS
from pigeonpost.core.addresses import is_loopback, join_address
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import API_TOKENS, DATABASE, RUNNING, TOKENS, USERS
from pigeonpost.core.errors import DamagedFile, PigeonpostError
from pigeonpost.server.node_settings import read_nodes
from pigeonpost.storage.models import NodeRecords
from pigeonpost.storage.registry import open_store

_PARALLEL_NODES = 32  # nodes that are contacted at the same time, because a node that does not answer takes REACH_S
_FIRST_PORT_FOR_ALL = 1024  # lower ports need root (ip(7), ip_unprivileged_port_start)


class _FolderContent:
    """Content of the data folder. An attribute is None if this user may not read it, or if it is damaged."""

    def __init__(self) -> None:
        self.tokens: set[str] | None = None  # the nodes that have a token
        self.users: dict[str, str] | None = None  # roles by user name
        self.records: NodeRecords | None = None


def check_server(settings: Settings, data: str, service: Service | None = None) -> Iterator[Finding]:
    """Yield the findings on a server.

    Args:
        settings: Settings of the server.
        data: Its data folder.
        service: Service that runs the server, or None if it is started by hand.
    """
    content, is_closed = _FolderContent(), is_hidden(data)
    if is_closed and service is None:
        yield from check_folder(data)
    elif is_closed:
        yield Finding("note", f"run doctor with sudo to check {data}, which only the service may read")
    else:
        yield from _data(settings, data, service, content)
    yield from _page(settings, data, service)
    yield from doctor_web.check_page(settings, content.users, service)
    yield from _nodes(settings, data, service, content)
    yield from check_backup(settings, data, service, is_closed)
    yield from check_libraries(settings, "server", service)
    yield from check_broker(settings, "server.toml")


def _data(settings: Settings, data: str, service: Service | None, content: _FolderContent) -> Iterator[Finding]:
    """Check the data folder, and store the content that the other checks need in `content`."""
    if os.path.isdir(data) or service is None:  # systemd creates the folder of a service
        yield from check_folder(data) if service is None else check_folder(data, SERVICE_DISK)
    if not settings["store", "postgres"]:
        yield from check_database(data)
        if os.path.exists(os.path.join(data, DATABASE)):
            content.records = _node_records(settings, data)

    def read_tokens() -> None:
        content.tokens = set(Tokens(data))

    def read_users() -> None:
        content.users = Users(data).roles()

    yield from check_secrets(os.path.join(data, TOKENS), "tokens of the nodes", read_tokens)
    yield from check_secrets(os.path.join(data, USERS), "users of the page", read_users)
    yield from check_secrets(os.path.join(data, API_TOKENS), "API tokens", ApiTokens(data).all)


def _node_records(settings: Settings, data: str) -> NodeRecords | None:
    """Return the records of renamed and retired nodes, or None if the database cannot be read.

    A database that cannot be read is reported by another check.
    """
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


def _nodes(settings: Settings, data: str, service: Service | None, content: _FolderContent) -> Iterator[Finding]:
    """Check the nodes in the settings: renamed and retired nodes, reachability, tokens."""
    records = content.records or NodeRecords()
    current = {former.name: former.node for former in records.former if not former.is_released}
    nodes = []
    for name, address in read_nodes(settings)[0]:
        if name in current:
            yield Finding("note", f"node {name} has been renamed to {current[name]}; the server accepts both names",
                          f"write {current[name]} instead of {name} in server.toml")  # fmt: skip
        if current.get(name, name) in records.retired:
            undo = _control(f"retire {name} --undo", data, service)
            yield Finding("note", f"node {name} is retired, but is still in the settings",
                          f"remove it from server.toml, or: {undo}")  # fmt: skip
        else:
            nodes.append((name, address))
    remedy = "run `python3 control.py doctor node` there; check that node.py is running and that its port is open"
    if nodes:
        who = [f"node {name}" if name else "the node" for name, _ in nodes]
        with ThreadPoolExecutor(min(len(nodes), _PARALLEL_NODES)) as pool:
            reached = pool.map(check_reachable, [address for _, address in nodes], who, [remedy] * len(nodes))
            yield from reached
    for name, address in nodes:
        if name and content.tokens is not None and name not in content.tokens and not is_loopback(address[0]):
            yield Finding("note", f"node {name} has no token on this server, so the node will refuse the connection",
                          f"{_control(f'token {name}', data, service)}, and copy it to the node")  # fmt: skip


def _control(command: str, data: str, service: Service | None) -> str:
    """Return the shell command that runs a command of control.py on the data of this server."""
    if service is None:
        return f"python3 control.py {command}"
    return control_command(command, as_root=True, data=data)


def check_secrets(path: str, what: str, read: Callable[[], object]) -> Iterator[Finding]:
    """Yield the finding on a file with secrets, which must be valid, and readable by this user only.

    Args:
        path: Path of the file.
        what: Description of its content, for the message.
        read: Function that reads the file, and raises DamagedFile if it is invalid.
    """
    try:
        read()
    except DamagedFile as error:
        about, _, remedy = str(error).partition("; ")
        yield Finding("wrong", about, remedy)
        return
    if os.path.exists(path):
        yield check_private(path, what)


# ------------------------------------------------------------------------------------ addresses of the web interface


def _page(settings: Settings, data: str, service: Service | None) -> Iterator[Finding]:
    if service is None:
        for address in settings["web", "listen"]:
            yield check_port(address, "--web HOST:PORT", functools.partial(_running, data, address))
        return
    state = ask_systemd(SOCKET)
    is_passed = state.get("ActiveState") == "active"
    if is_passed:
        yield Finding("ok", f"{SOCKET} has opened the port of the page")
    elif state and os.path.exists(service.path(f"{UNITS}/{SOCKET}")):  # the unit of the Debian package may be unused
        yield _socket(state["ActiveState"])
    for address in () if is_passed else settings["web", "listen"]:
        yield _listens(address, service)


def _socket(state: str) -> Finding:
    """Return the finding on the unit that opens port 80, if it is not active. `state` is its ActiveState."""
    remedy = control_command("install server --port-80 --write", as_root=True)
    if state == "failed":
        return Finding("wrong", f"{SOCKET} has failed: another program uses the port, so the page is not on port 80",
                       f"sudo ss -ltnp 'sport = :80' shows the program; stop it, then {remedy}")  # fmt: skip
    return Finding("wrong", f"{SOCKET} is not active, so the page is not on port 80", remedy)


def _listens(address: tuple[str, int], service: Service) -> Finding:
    """Return the finding on an address of the page of a service."""
    where, number = join_address(*address), address[1]
    on_port_80 = control_command("install server --port-80 --write", as_root=True)
    other = f'[web] listen = ["0.0.0.0:8081"] in {service.path("/etc/pigeonpost/server.toml")}'
    if number and number < _FIRST_PORT_FOR_ALL:
        return Finding("wrong", f"the service may not listen on {where}: ports below {_FIRST_PORT_FOR_ALL} need root",
                       f"remove that `listen`, then {on_port_80}; systemd then opens port 80 for"
                       " the service")  # fmt: skip
    if not service.is_active:
        return check_port(address, other, str)
    uids = listeners(number)
    if number and not uids:
        return Finding("wrong", f"{service.unit} is running, but does not listen on {where}", restart_command(service))
    if number and service.account.uid is not None and service.account.uid not in uids:
        return Finding("wrong", f"a program other than {service.unit} listens on {where}",
                       f"sudo ss -ltnp 'sport = :{number}' shows it; or use another port: {other}")  # fmt: skip
    return Finding("ok", f"{where}: the page of this server")


def _running(data: str, address: tuple[str, int]) -> str:
    """Return a description of the running server if it uses the address, or an empty string."""
    try:
        with open(os.path.join(data, RUNNING), encoding="utf-8") as file:
            about = json.load(file)
        with contextlib.suppress(PermissionError):  # the process is running as another user
            os.kill(about["pid"], 0)
        is_listening = any(found[1] == address[1] for found in about["web"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return "the page of this server" if is_listening else ""
