"""Checks of the files that a program's service reads, as it meets them: settings, secrets, token; and their changes.

Errors: none; what cannot be seen by this user is a note that says so.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from pigeonpost.cli.doctor_checks import TOKEN, Finding, as_root, may_use
from pigeonpost.cli.doctor_service import Service
from pigeonpost.cli.doctor_systemd import restart
from pigeonpost.cli.program_files import PACKAGE
from pigeonpost.cli.settings_secrets import secrets_in_file
from pigeonpost.core.config import Settings, as_toml
from pigeonpost.settings import SHORTEST_TOKEN, unknown_variables


def files(found: Service, settings: Settings) -> Iterator[Finding]:
    """Check the files that the service reads: rights, secrets, and whether they are in force."""
    yield Finding("ok", f"settings of the service: {settings.source}")
    yield from _readable(found, settings.file)
    yield from _secrets_for_all(found, settings)
    for path in found.environment_files:
        yield from _for_root_alone(found.path(path), "which may hold secrets")
    variables, hidden = found.environment()
    for sentence in unknown_variables(variables):
        fault, _, hint = sentence.partition("; ")
        yield Finding("note", fault, hint)
    if hidden:
        yield Finding("note", f"run doctor with sudo to see what {', '.join(hidden)} sets")
    data = settings[found.program, "data"]
    if data and os.path.realpath(found.path(data)) != os.path.realpath(found.data):
        origin = settings.origin(found.program, "data")
        yield Finding("wrong", f"{origin}: [{found.program}] data = {as_toml(data)}: the unit lets it write to"
                      f" /var/lib/{found.unit} alone", f"take out that line, then {restart(found)}")  # fmt: skip
    yield from _changes(found, settings)


def unreadable(found: Service) -> Iterator[Finding]:
    """Check the service's settings before they are read: whether it may read them at all."""
    yield from _readable(found, found.path(f"/etc/pigeonpost/{found.program}.toml"))


def _readable(found: Service, path: str) -> Iterator[Finding]:
    """Check that the user of the service may read its settings, and look into the folder that they are in."""
    for place, mode, octal in ((os.path.dirname(path), os.R_OK | os.X_OK, 755), (path, os.R_OK, 644)):
        if os.path.exists(place) and not may_use(found.account, place, mode):
            yield Finding("wrong", f"{place} may not be read by {found.account.name}, which has a user of its own",
                          as_root(f"chmod {octal} {place}") + f" && {restart(found)}")  # fmt: skip


def _secrets_for_all(found: Service, settings: Settings) -> Iterator[Finding]:
    """Check that no secret stands in a settings file that everybody may read."""
    if not os.path.exists(settings.file) or not os.stat(settings.file).st_mode & 0o004:
        return
    for name, place in secrets_in_file(found.program, settings):
        about = f"{settings.file}: {name} is a secret, and every user of this machine may read it"
        yield Finding("wrong", about, f"move it to {place} (chmod 600), then {restart(found)}")


def _for_root_alone(path: str, what: str) -> Iterator[Finding]:
    if os.path.exists(path) and os.stat(path).st_mode & 0o077:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        yield Finding("wrong", f"{path}, {what}, may be read by others (mode {mode:04o})",
                      as_root(f"chmod 600 {path}"))  # fmt: skip


def token(found: Service, settings: Settings) -> Iterator[Finding]:
    """Check the token of the node's service."""
    path = found.path(TOKEN)
    if settings["node", "token"]:
        yield Finding("ok", f"a token is set, by {settings.origin('node', 'token')}")
        return
    if not os.path.exists(path):
        yield Finding("note", f"there is no {TOKEN}: only servers on this machine may collect",
                      f"`control.py token NAME` on the server makes one;"
                      f" {as_root(f'install -m 600 /dev/stdin {TOKEN}')} takes it, then {restart(found)}")  # fmt: skip
        return
    yield from _for_root_alone(path, "which holds the token")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16).strip()
    except PermissionError:
        yield Finding("note", f"run doctor with sudo to see whether {TOKEN} holds a token")
        return
    except OSError as error:
        yield Finding("wrong", f"{TOKEN} cannot be read ({error.strerror}), so the node has no token",
                      as_root(f"install -m 600 /dev/stdin {TOKEN}") + f" takes one, then {restart(found)}")  # fmt: skip
        return
    remedy = f"{as_root(f'install -m 600 /dev/stdin {TOKEN}')} takes the token alone, then {restart(found)}"
    if not text:
        yield Finding("wrong", f"{TOKEN} is empty: the node has no token, and no other machine may collect", remedy)
    elif len(text) < SHORTEST_TOKEN or len(text.split()) > 1 or not text.isprintable():
        yield Finding("wrong", f"{TOKEN} holds no token: one is a word of {SHORTEST_TOKEN} characters or more", remedy)
    else:
        yield Finding("ok", f"{TOKEN} holds a token")


def _changes(found: Service, settings: Settings) -> Iterator[Finding]:
    """Check that nothing which the service reads at its start has changed since."""
    started = found.state.get("ExecMainStartTimestampMonotonic", "0")
    if not found.is_active or started in ("", "0"):
        return
    # By the clock that never steps: the time of day at the start may have been a guess.
    started_s = time.time() - (time.monotonic() - int(started) / 1e6)
    own = [settings.file, found.path(TOKEN) if found.program == "node" else ""]
    paths = [*own, *map(found.path, (*found.environment_files, *found.paths)), *_modules(found)]
    changed = [path for path in paths if path and _changed_s(path) > started_s]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield Finding("wrong", f"{changed[0]}{others} changed after {found.unit} was started, and is not in force yet",
                      restart(found))  # fmt: skip


def _modules(found: Service) -> Iterator[str]:
    """Yield the service's program and modules."""
    script = found.path(found.script)
    yield script
    for folder, _, names in os.walk(os.path.join(os.path.dirname(script), PACKAGE)):
        yield from (os.path.join(folder, name) for name in names if name.endswith(".py"))


def _changed_s(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
