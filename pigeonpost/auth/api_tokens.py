"""Tokens of programs that use the page and the JSON API: Prometheus, Grafana, Home Assistant, curl.

May be used by any thread. `api_tokens.json` is read again when it has changed, so control.py works beside a running
server. Both write: each change locks the data folder (flock), so that none is lost.

A token is shown once; the file has its SHA-256, which is enough for 160 random bits. The times of last use are in a
file of their own, `api_token_uses.json`: the secrets are not written again for them, and a damage there shuts nobody
out. It is written at most once in WRITE_EVERY_S, by a thread that runs while there is something to write.
Errors: SettingsError for a name or a role that is not accepted, and for a file that cannot be read; DiskError when it
cannot be written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import API_TOKEN_USES, API_TOKENS
from pigeonpost.core.errors import DiskError, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile, changes_locked
from pigeonpost.core.rare_log import RareLog

log = logging.getLogger(__name__)

ROLES = ("viewer", "writer", "operator")  # each may do what those before it may
MOST_TOKENS = 100  # a household has some; without a limit a script that makes one a day fills the list
WRITE_EVERY_S = 60.0  # at most one write of the times of last use in this time

# The beginning tells them from nodes' tokens, and keeps YAML from reading one of digits and an `e` as a number.
_BEGINNING = "pp_"
_TOKEN = re.compile(rf"{_BEGINNING}[0-9a-f]{{40}}").fullmatch
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}").fullmatch


class ApiToken(NamedTuple):
    """A program's token, without the secret.

    made_ms  when it was made, in milliseconds since 1970 (UTC)
    used_ms  when it was last used; None: not since it was made
    """

    name: str
    role: str
    made_ms: int
    used_ms: int | None = None


class _Entry(NamedTuple):
    """One entry of the file: role, SHA-256 of the token, and when it was made."""

    role: str
    sha256: bytes
    made_ms: int


class ApiTokens:
    """All tokens of programs; the file may be read by its owner only."""

    def __init__(self, data: str, faults: Faults | None = None, clock: Clock | None = None) -> None:
        """faults: of a running server, see JsonFile."""
        self._folder, self._clock = data, clock or Clock()
        self._file = JsonFile(os.path.join(data, API_TOKENS), "a list of API tokens", read_api_token, faults)
        self._uses = _Uses(data, faults, self._clock)
        # The entries, and the names of their tokens by digest: as Tokens.
        self._by_digest: tuple[Mapping[str, _Entry], dict[bytes, str]] | None = None

    def make(self, name: str, role: str = "viewer") -> str | None:
        """Return a new token, which is shown once; None where there is one of that name.

        Raises SettingsError for a name or a role that is not accepted, and where there are MOST_TOKENS.
        """
        if not _NAME(name):
            raise SettingsError(
                f"the name of an API token is letters, digits and . _ -, at most 63 of them, not {name[:70]!r}"
            )
        if role not in ROLES:
            raise SettingsError(
                f"the role of an API token is {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {role[:60]!r}"
            )
        token = f"{_BEGINNING}{secrets.token_hex(20)}"
        with changes_locked(self._folder):
            entries = dict(self._file.now())
            if name in entries:
                return None
            if len(entries) >= MOST_TOKENS:
                raise SettingsError(f"there are {MOST_TOKENS} API tokens, as many as are kept: revoke one first")
            entries[name] = _Entry(role, _digest(token), self._clock.wall_ms())
            self._write(entries)
        return token

    def revoke(self, name: str) -> bool:
        """Delete a token. Returns True if there was one of that name."""
        with changes_locked(self._folder):
            entries = dict(self._file.now())
            if entries.pop(name, None) is None:
                return False
            self._write(entries)
        return True

    def all(self) -> list[ApiToken]:
        """Return all tokens, sorted by name; the last use to WRITE_EVERY_S where another program records it."""
        entries, used_ms = self._file.now(), self._uses.now()
        found = []
        for name, entry in sorted(entries.items()):
            last_ms = used_ms.get(name, -1)  # of an earlier token of this name: earlier than it was made
            found.append(ApiToken(name, entry.role, entry.made_ms, last_ms if last_ms >= entry.made_ms else None))
        return found

    def find(self, token: str) -> ApiToken | None:
        """Return the token and record its use; None: there is no such token. A nearly right one takes no longer."""
        entries = self._file.now()
        known = self._by_digest  # once: another thread may replace it by that of a newer file
        if known is None or known[0] is not entries:
            known = self._by_digest = entries, {entry.sha256: name for name, entry in entries.items()}
        name = known[1].get(_digest(token))
        entry = entries.get(name) if name is not None else None
        if name is None or entry is None:
            return None
        self._uses.record(name, entries)
        return ApiToken(name, entry.role, entry.made_ms)

    def stop(self, limit_s: float) -> None:
        """Write the times of last use that are not written yet."""
        self._uses.stop(limit_s)

    def _write(self, entries: Mapping[str, _Entry]) -> None:
        self._file.write({
            name: {"role": entry.role, "sha256": entry.sha256.hex(), "made_ms": entry.made_ms}
            for name, entry in entries.items()
        })  # fmt: skip


class _Uses:
    """When each token was last used. `_lock` guards what is not written yet, and the thread; not held while writing."""

    def __init__(self, data: str, faults: Faults | None, clock: Clock) -> None:
        self._clock = clock
        path = os.path.join(data, API_TOKEN_USES)
        self._file = JsonFile(path, "a list of times", _read_time, faults, is_mended=True)
        self._lock = threading.Lock()
        self._unwritten: dict[str, int] = {}
        self._names: Mapping[str, object] = {}  # of all tokens: times of others are forgotten
        self._thread: threading.Thread | None = None
        self._written_s = -WRITE_EVERY_S
        self._stopping = threading.Event()
        self._rare_log = RareLog(log, clock)

    def now(self) -> dict[str, int]:
        """Return the times in milliseconds since 1970 (UTC), by name."""
        written = self._file.now()
        with self._lock:
            return {**written, **self._unwritten}

    def record(self, name: str, names: Mapping[str, object]) -> None:
        """A token was used now.

        names  of all tokens, as keys
        """
        with self._lock:
            self._unwritten[name] = self._clock.wall_ms()
            self._names = names
            if self._thread is None:
                self._thread = self._begin()

    def stop(self, limit_s: float) -> None:
        """Write now what waits to be written."""
        self._stopping.set()
        thread = self._thread
        if thread is not None:
            thread.join(limit_s)

    def _begin(self) -> threading.Thread | None:
        """Return the thread that writes; None where there is no room for one: the next use tries again."""
        thread = threading.Thread(target=self._write_later, name="API tokens", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the token itself works all the same
            self._rare_log.say(logging.WARNING, "thread", f"when API tokens were last used is not kept: {error}")
            return None
        return thread

    def _write_later(self) -> None:
        while True:
            self._clock.wait(self._stopping, self._written_s + WRITE_EVERY_S - self._clock.monotonic())
            self._written_s = self._clock.monotonic()
            with self._lock:
                unwritten, self._unwritten = self._unwritten, {}
                names = self._names
            self._write(unwritten, names)
            with self._lock:
                if not self._unwritten:
                    self._thread = None
                    return

    def _write(self, unwritten: Mapping[str, int], names: Mapping[str, object]) -> None:
        try:
            times = {**self._file.now(), **unwritten}
            self._file.write({name: time_ms for name, time_ms in times.items() if name in names})
        except (DiskError, SettingsError) as error:  # the tokens themselves work all the same
            log.warning("when API tokens were last used is not kept: %s", error)


def is_api_token(text: str) -> bool:
    """Return True if a text has the shape of an API token: anything else can be none, and is no attempt at one."""
    return _TOKEN(text) is not None


def read_api_token(entry: Mapping[str, Any]) -> _Entry:
    """Return one entry of the file. Raises ValueError, TypeError or KeyError."""
    digest = bytes.fromhex(entry["sha256"])
    if entry["role"] not in ROLES or len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"a role is {', '.join(ROLES[:-1])} or {ROLES[-1]}; a SHA-256 has 64 hex digits")
    return _Entry(entry["role"], digest, _read_time(entry["made_ms"]))


def _read_time(entry: object) -> int:
    if type(entry) is not int:
        raise ValueError("a time is a whole number of milliseconds since 1970")
    return entry


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
