"""Checks of the files that a service reads: settings, secrets, token, and changes since the service was started.

No errors are raised: a file that this user may not read yields a note.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from pigeonpost.cli.doctor_checks import TOKEN, Finding, as_root, may_use
from pigeonpost.cli.doctor_service import Service
from pigeonpost.cli.doctor_systemd import restart_command
from pigeonpost.cli.program_files import PACKAGE
from pigeonpost.cli.settings_secrets import secrets_in_file
from pigeonpost.core.config import Settings, as_toml
from pigeonpost.settings import SHORTEST_TOKEN, unknown_variables


def check_files(service: Service, settings: Settings) -> Iterator[Finding]:
    """Yield the findings on the files of `service`: permissions, secrets, changes since it was started.

    `settings` are those with which the service starts.
    """
    yield Finding("ok", f"settings of the service: {settings.source}")
    yield from _readable(service, settings.file)
    yield from _secrets_for_all(service, settings)
    for path in service.environment_files:
        yield from _for_root_alone(service.path(path), "may contain secrets")
    variables, hidden = service.environment()
    for sentence in unknown_variables(variables):
        fault, _, hint = sentence.partition("; ")
        yield Finding("note", fault, hint)
    if hidden:
        yield Finding("note", f"run doctor with sudo to check the variables in {', '.join(hidden)}")
    data = settings[service.program, "data"]
    if data and os.path.realpath(service.path(data)) != os.path.realpath(service.data):
        origin = settings.origin(service.program, "data")
        yield Finding("wrong", f"{origin}: [{service.program}] data = {as_toml(data)}: the service may write"
                      f" to /var/lib/{service.unit} only",
                      f"remove that line, then {restart_command(service)}")  # fmt: skip
    yield from _changes(service, settings)


def check_readable(service: Service) -> Iterator[Finding]:
    """Yield a finding if `service` may not read its settings file. This is used if the settings could not be loaded."""
    yield from _readable(service, service.path(f"/etc/pigeonpost/{service.program}.toml"))


def _readable(service: Service, path: str) -> Iterator[Finding]:
    """Check that the user of the service may read its settings file and the folder of that file."""
    for place, mode, octal in ((os.path.dirname(path), os.R_OK | os.X_OK, 755), (path, os.R_OK, 644)):
        if os.path.exists(place) and not may_use(service.account, place, mode):
            yield Finding("wrong", f"{place} cannot be read by {service.account.name}, which runs as its own user",
                          as_root(f"chmod {octal} {place}") + f" && {restart_command(service)}")  # fmt: skip


def _secrets_for_all(service: Service, settings: Settings) -> Iterator[Finding]:
    """Check that a settings file which all users may read contains no secret."""
    if not os.path.exists(settings.file) or not os.stat(settings.file).st_mode & 0o004:
        return
    for name, place in secrets_in_file(service.program, settings):
        about = f"{settings.file}: {name} is a secret, but all users of this machine may read the file"
        yield Finding("wrong", about, f"move it to {place} (chmod 600), then {restart_command(service)}")


def _for_root_alone(path: str, what: str) -> Iterator[Finding]:
    if os.path.exists(path) and os.stat(path).st_mode & 0o077:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        yield Finding("wrong", f"{path} ({what}) can be read by other users (mode {mode:04o})",
                      as_root(f"chmod 600 {path}"))  # fmt: skip


def check_token(service: Service, settings: Settings) -> Iterator[Finding]:
    """Yield the findings on the token of a node that runs as `service`: in its `settings`, or in its token file."""
    path = service.path(TOKEN)
    if settings["node", "token"]:
        yield Finding("ok", f"a token is set in {settings.origin('node', 'token')}")
        return
    if not os.path.exists(path):
        yield Finding("note", f"{TOKEN} does not exist: only servers on this machine may collect",
                      f"`control.py token NAME` on the server creates a token; then here:"
                      f" {as_root(f'install -m 600 /dev/stdin {TOKEN}')} (enter the token), then"
                      f" {restart_command(service)}")  # fmt: skip
        return
    yield from _for_root_alone(path, "contains the token")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16).strip()
    except PermissionError:
        yield Finding("note", f"run doctor with sudo to check the token in {TOKEN}")
        return
    except OSError as error:
        yield Finding("wrong", f"{TOKEN} cannot be read ({error.strerror}), so the node has no token",
                      as_root(f"install -m 600 /dev/stdin {TOKEN}")
                      + f" (enter the token), then {restart_command(service)}")  # fmt: skip
        return
    remedy = f"{as_root(f'install -m 600 /dev/stdin {TOKEN}')} (enter only the token), then {restart_command(service)}"
    if not text:
        yield Finding("wrong", f"{TOKEN} is empty: the node has no token, and no other machine may collect", remedy)
    elif len(text) < SHORTEST_TOKEN or len(text.split()) > 1 or not text.isprintable():
        yield Finding("wrong", f"{TOKEN} does not contain a valid token: a token is one word of at least"
                      f" {SHORTEST_TOKEN} characters", remedy)  # fmt: skip
    else:
        yield Finding("ok", f"{TOKEN} contains a token")


def _changes(service: Service, settings: Settings) -> Iterator[Finding]:
    """Check that the files which the service reads at its start have not changed since."""
    started = service.state.get("ExecMainStartTimestampMonotonic", "0")
    if not service.is_active or started in ("", "0"):
        return
    # Use the monotonic clock: the time of day may not have been set yet when the service was started.
    started_s = time.time() - (time.monotonic() - int(started) / 1e6)
    own = [settings.file, service.path(TOKEN) if service.program == "node" else ""]
    paths = [*own, *map(service.path, (*service.environment_files, *service.paths)), *_modules(service)]
    changed = [path for path in paths if path and _changed_s(path) > started_s]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        verb = "have" if others else "has"
        yield Finding("wrong", f"{changed[0]}{others} {verb} changed since {service.unit} was started; the changes have"
                      " no effect before a restart", restart_command(service))  # fmt: skip


def _modules(service: Service) -> Iterator[str]:
    """Yield the paths of the service's program and its modules."""
    script = service.path(service.script)
    yield script
    for folder, _, names in os.walk(os.path.join(os.path.dirname(script), PACKAGE)):
        yield from (os.path.join(folder, name) for name in names if name.endswith(".py"))


def _changed_s(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
