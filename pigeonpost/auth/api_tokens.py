"""Tokens of programs that use the web pages and the JSON API, such as Prometheus, Grafana, Home Assistant and curl.

All functions may be called from any thread. `api_tokens.json` is read again when it has changed, so control.py works
while a server is running. Both programs write the file. Each change locks the data folder (flock), so that no change is
lost.

A token is shown once. The file contains its SHA-256 digest, which is sufficient protection for 160 random bits. The
times of last use are in a separate file, `api_token_uses.json`. The file with the digests is therefore not rewritten
for each use, and no program is locked out if the file of times is damaged. The times are written at most once per
WRITE_EVERY_S, by a thread that runs only while there are times to write.

Errors: SettingsError for a name or a role that is not accepted, and for a file that cannot be read; DiskError for a
file that cannot be written.
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

ROLES = ("viewer", "writer", "operator")  # each role includes the rights of those before it
MOST_TOKENS = 100  # a household needs a few; without a limit, a script that creates one per day would fill the list
WRITE_EVERY_S = 60.0  # minimum time between two writes of the times of last use

# The prefix distinguishes API tokens from the nodes' tokens. It also keeps YAML from reading a token that consists of
# digits and one `e` as a number.
_PREFIX = "pp_"
_TOKEN = re.compile(rf"{_PREFIX}[0-9a-f]{{40}}").fullmatch
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}").fullmatch


class ApiToken(NamedTuple):
    """Name, role and times of an API token, without the secret.

    Attributes:
        name: Name of the token.
        role: One of ROLES.
        made_ms: Time of creation in milliseconds since 1970 (UTC).
        used_ms: Time of last use in milliseconds since 1970 (UTC), or None if it has never been used.
    """

    name: str
    role: str
    made_ms: int
    used_ms: int | None = None


class _Entry(NamedTuple):
    """Entry of the file: role, SHA-256 digest of the token, and time of creation."""

    role: str
    sha256: bytes
    made_ms: int


class ApiTokens:
    """The API tokens of a server. Only the owner of the file can read it.

    Args:
        data: Path of the data folder.
        faults: Faults of a running server, for JsonFile; None in control.py.
        clock: Clock for the times of creation and use.
    """

    def __init__(self, data: str, faults: Faults | None = None, clock: Clock | None = None) -> None:
        self._folder, self._clock = data, clock or Clock()
        self._file = JsonFile(os.path.join(data, API_TOKENS), "a list of API tokens", read_api_token, faults)
        self._uses = _Uses(data, faults, self._clock)
        # The entries, and the names of the tokens by digest, as in Tokens.
        self._by_digest: tuple[Mapping[str, _Entry], dict[bytes, str]] | None = None

    def make(self, name: str, role: str = "viewer") -> str | None:
        """Create a token and return it. It cannot be shown again later.

        Args:
            name: Name of the token: letters, digits and `. _ -`, at most 63 characters.
            role: One of ROLES.

        Returns:
            The token, or None if a token with this name exists.

        Raises:
            SettingsError: The name or the role is not accepted, or there are already MOST_TOKENS tokens.
        """
        if not _NAME(name):
            raise SettingsError(
                f"the name of an API token must consist of at most 63 letters, digits and . _ -, not {name[:70]!r}"
            )
        if role not in ROLES:
            raise SettingsError(
                f"the role of an API token must be {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {role[:60]!r}"
            )
        token = f"{_PREFIX}{secrets.token_hex(20)}"
        with changes_locked(self._folder):
            entries = dict(self._file.now())
            if name in entries:
                return None
            if len(entries) >= MOST_TOKENS:
                raise SettingsError(f"there are already {MOST_TOKENS} API tokens, the maximum: revoke one first")
            entries[name] = _Entry(role, _digest(token), self._clock.wall_ms())
            self._write(entries)
        return token

    def revoke(self, name: str) -> bool:
        """Delete the token called `name`. Return True if it existed."""
        with changes_locked(self._folder):
            entries = dict(self._file.now())
            if entries.pop(name, None) is None:
                return False
            self._write(entries)
        return True

    def all(self) -> list[ApiToken]:
        """Return all tokens, sorted by name.

        Times of use that another process records can be up to WRITE_EVERY_S seconds old.
        """
        entries, used_ms = self._file.now(), self._uses.now()
        found = []
        for name, entry in sorted(entries.items()):
            last_ms = used_ms.get(name, -1)  # if before made_ms, an earlier token with the same name was used
            found.append(ApiToken(name, entry.role, entry.made_ms, last_ms if last_ms >= entry.made_ms else None))
        return found

    def find(self, token: str) -> ApiToken | None:
        """Return the entry of `token` and record its use, or return None for an unknown token.

        The time taken does not depend on how similar an unknown token is to an existing one.
        """
        entries = self._file.now()
        by_digest = self._by_digest  # read once: another thread may replace it with that of a newer file
        if by_digest is None or by_digest[0] is not entries:
            by_digest = self._by_digest = entries, {entry.sha256: name for name, entry in entries.items()}
        name = by_digest[1].get(_digest(token))
        entry = entries.get(name) if name is not None else None
        if name is None or entry is None:
            return None
        self._uses.record(name, entries)
        return ApiToken(name, entry.role, entry.made_ms)

    def stop(self, limit_s: float) -> None:
        """Write the times of last use that are not written yet, waiting at most `limit_s` seconds."""
        self._uses.stop(limit_s)

    def _write(self, entries: Mapping[str, _Entry]) -> None:
        self._file.write({
            name: {"role": entry.role, "sha256": entry.sha256.hex(), "made_ms": entry.made_ms}
            for name, entry in entries.items()
        })  # fmt: skip


class _Uses:
    """Times of last use of the tokens.

    `_lock` guards the times that are not written yet and the thread. It is not held while writing.
    """

    def __init__(self, data: str, faults: Faults | None, clock: Clock) -> None:
        self._clock = clock
        path = os.path.join(data, API_TOKEN_USES)
        self._file = JsonFile(path, "a list of times", _read_time, faults, auto_restore=True)
        self._lock = threading.Lock()
        self._unwritten: dict[str, int] = {}
        self._names: Mapping[str, object] = {}  # names of all tokens; times of deleted tokens are dropped
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
        """Record that the token `name` was used now. The keys of `names` are the names of all tokens."""
        with self._lock:
            self._unwritten[name] = self._clock.wall_ms()
            self._names = names
            if self._thread is None:
                self._thread = self._start_thread()

    def stop(self, limit_s: float) -> None:
        """Write the unwritten times now, waiting at most `limit_s` seconds."""
        self._stopping.set()
        thread = self._thread
        if thread is not None:
            thread.join(limit_s)

    def _start_thread(self) -> threading.Thread | None:
        """Start the thread that writes the times, and return it. Return None if it cannot be started.

        The next use of a token then tries again.
        """
        thread = threading.Thread(target=self._write_later, name="API tokens", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the tokens themselves still work
            self._rare_log.log(
                logging.WARNING, "thread", f"the times when API tokens were last used are not saved: {error}"
            )
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
        except (DiskError, SettingsError) as error:  # the tokens themselves still work
            log.warning("the times when API tokens were last used are not saved: %s", error)


def is_api_token(text: str) -> bool:
    """Return True if `text` has the format of an API token."""
    return _TOKEN(text) is not None


def read_api_token(entry: Mapping[str, Any]) -> _Entry:
    """Return the entry in the JSON object `entry`. Raise ValueError, TypeError or KeyError if it is invalid."""
    digest = bytes.fromhex(entry["sha256"])
    if entry["role"] not in ROLES or len(digest) != hashlib.sha256().digest_size:
        raise ValueError(
            f"the role must be {', '.join(ROLES[:-1])} or {ROLES[-1]}, and the SHA-256 must have 64 hex digits"
        )
    return _Entry(entry["role"], digest, _read_time(entry["made_ms"]))


def _read_time(entry: object) -> int:
    if type(entry) is not int:
        raise ValueError("a time must be a whole number of milliseconds since 1970")
    return entry


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
