"""Checks of the scheduled backups: their folder, its permissions, and the age of the last backup."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from pigeonpost.cli.doctor_checks import Finding, as_root, may_use
from pigeonpost.cli.doctor_service import Service
from pigeonpost.cli.doctor_systemd import restart_command
from pigeonpost.core.addresses import own_name
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.server.scheduled_backup import make_scheduled_backup

_OLDEST_DAYS = 2.0  # accepted age of the last backup: the machine may have been off for one day
_DAY_S = 86_400.0
_GROUP = "pigeonpost-backup"  # the same name as in deploy/pigeonpost-server-backup.conf


def check_backup(settings: Settings, data: str, service: Service | None, is_closed: bool) -> Iterator[Finding]:
    """Yield the findings on the settings [backup].

    Args:
        settings: Settings of the server.
        data: Data folder of the server.
        service: Service that runs the server, or None if it is started by hand.
        is_closed: True if this user may not read the data folder.
    """
    to = settings["backup", "to"]
    if not to:
        return
    place = service.path(to) if service is not None else to
    if not os.path.isdir(place):
        yield Finding("wrong", f"[backup] to: the folder {to} does not exist, so no backups are made",
                      f"mount its disk, or {as_root(f'install -d -m 2770 {to}')}")  # fmt: skip
        return
    try:
        found = make_scheduled_backup(settings, data, settings["server", "name"] or own_name(), Faults(), Clock())
    except SettingsError as error:
        yield Finding(
            "wrong", str(error), f"see docs/data.md; then {restart_command(service)}" if service else "see docs/data.md"
        )
        return
    is_writable = True
    for fault in _rights(to, place, service):
        is_writable = False
        yield fault
    if is_closed:
        return
    about = found["backup"].report()
    if about["same_disk"]:
        yield Finding("note", f"[backup] to: {to} is on the same disk as the data, so a failure of the disk loses both",
                      f"use a folder on another disk; if the disk of {to} is not mounted: sudo mount {to}")  # fmt: skip
    made_ms = found["backup"].made_ms
    if made_ms is None:
        yield Finding(
            "note", f"no backup has been made yet; the first is written to {to} half a minute after the server starts"
        )
        return
    days = (time.time() - made_ms / 1000) / _DAY_S
    if days > _OLDEST_DAYS:
        yield Finding("wrong", f"the last good backup is {days:.0f} days old ({about['file']})",
                      "`control.py check` shows why the server does not make newer ones")  # fmt: skip
    elif is_writable:
        yield Finding("ok", f"backups are written to {to}; the last good one is {days * 24:.0f} h old")


def _rights(to: str, place: str, service: Service | None) -> Iterator[Finding]:
    """Check that the server may write to the backup folder."""
    if service is None:
        if not os.access(place, os.W_OK | os.X_OK):
            yield Finding("wrong", f"[backup] to: this user may not write to {to}", f"sudo chown $USER {to}")
        return
    allowed = [word.lstrip("-+") for value in service.values("ReadWritePaths") for word in value.split()]
    if service.value("ProtectSystem") == "strict" and not any(_is_below(to, path) for path in allowed):
        yield Finding("wrong", f"[backup] to: the unit does not allow the server to write to {to}", _open(to, service))
    elif not may_use(service.account, place, os.W_OK | os.X_OK):
        yield Finding("wrong", f"[backup] to: the service, which runs as its own user, may not write to {to}",
                      _open(to, service))  # fmt: skip


def _open(to: str, service: Service) -> str:
    """Return the commands that allow a service to write to a folder: with a drop-in for its unit, and with a group."""
    drop_in = f"/etc/systemd/system/{service.unit}.service.d/backup.conf"
    text = rf"[Service]\nSupplementaryGroups={_GROUP}\nReadWritePaths=-{to}\n"
    commands = (
        f"printf '{text}' | {as_root(f'install -D -m 644 /dev/stdin {drop_in}')}",
        as_root(f"groupadd --force --system {_GROUP}"), as_root(f"chgrp {_GROUP} {to}"), as_root(f"chmod 2770 {to}"),
        as_root("systemctl daemon-reload"), restart_command(service),
    )  # fmt: skip
    return " && ".join(commands)


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.abspath(path), os.path.abspath(folder)]) == os.path.abspath(folder)
