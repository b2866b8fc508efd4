"""Checks of the scheduled backups: where they go, whether the server may write there, how old the last one is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from pigeonpost.cli.doctor_checks import Finding, as_root, may_use
from pigeonpost.cli.doctor_service import Service
from pigeonpost.cli.doctor_systemd import restart
from pigeonpost.core.addresses import own_name
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.server.scheduled_backup import make_scheduled_backup

_OLDEST_DAYS = 2.0  # of the last one: a day without the machine, and the day after it
_DAY_S = 86_400.0
_GROUP = "pigeonpost-backup"  # as in deploy/pigeonpost-server-backup.conf


def backup(settings: Settings, data: str, service: Service | None, is_closed: bool) -> Iterator[Finding]:
    """Yield what is wrong with [backup]; `is_closed`: this user may not look into the data folder."""
    to = settings["backup", "to"]
    if not to:
        return
    place = service.path(to) if service is not None else to
    if not os.path.isdir(place):
        yield Finding("wrong", f"[backup] to: {to} is not there, so there are no backups",
                      f"mount its disk, or {as_root(f'install -d -m 2770 {to}')}")  # fmt: skip
        return
    try:
        found = make_scheduled_backup(settings, data, settings["server", "name"] or own_name(), Faults(), Clock())
    except SettingsError as error:
        yield Finding("wrong", str(error), f"docs/data.md; then {restart(service)}" if service else "docs/data.md")
        return
    is_well = True
    for fault in _rights(to, place, service):
        is_well = False
        yield fault
    if is_closed:
        return
    about = found["backup"].report()
    if about["same_disk"]:
        yield Finding("note", f"{to} is on the disk of the data, and is lost with it",
                      f"a folder of another disk in [backup] to; if one is to be there: sudo mount {to}")  # fmt: skip
    made_ms = found["backup"].made_ms
    if made_ms is None:
        yield Finding(
            "note", f"no backup has been made yet; the first is made a minute after the server's start into {to}"
        )
        return
    days = (time.time() - made_ms / 1000) / _DAY_S
    if days > _OLDEST_DAYS:
        yield Finding("wrong", f"the last good backup is {days:.0f} days old ({about['file']})",
                      "`control.py check` says what keeps the server from making one")  # fmt: skip
    elif is_well:
        yield Finding("ok", f"backups go to {to}; the last good one is {days * 24:.0f} hours old")


def _rights(to: str, place: str, service: Service | None) -> Iterator[Finding]:
    """Check that the server may write there."""
    if service is None:
        if not os.access(place, os.W_OK | os.X_OK):
            yield Finding("wrong", f"[backup] to: {to} may not be written by this user", f"sudo chown $USER {to}")
        return
    allowed = [word.lstrip("-+") for value in service.values("ReadWritePaths") for word in value.split()]
    if service.value("ProtectSystem") == "strict" and not any(_is_below(to, path) for path in allowed):
        yield Finding("wrong", f"[backup] to: the unit does not let the server write to {to}", _open(to, service))
    elif not may_use(service.account, place, os.W_OK | os.X_OK):
        yield Finding("wrong", f"[backup] to: {to} may not be written by the service, which has a user of its own",
                      _open(to, service))  # fmt: skip


def _open(to: str, service: Service) -> str:
    """Return the commands that let a service write to a folder: by its unit, and by a group of its own."""
    drop_in = f"/etc/systemd/system/{service.unit}.service.d/backup.conf"
    text = rf"[Service]\nSupplementaryGroups={_GROUP}\nReadWritePaths=-{to}\n"
    commands = (
        f"printf '{text}' | {as_root(f'install -D -m 644 /dev/stdin {drop_in}')}",
        as_root(f"groupadd --force --system {_GROUP}"), as_root(f"chgrp {_GROUP} {to}"), as_root(f"chmod 2770 {to}"),
        as_root("systemctl daemon-reload"), restart(service),
    )  # fmt: skip
    return " && ".join(commands)


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.abspath(path), os.path.abspath(folder)]) == os.path.abspath(folder)
