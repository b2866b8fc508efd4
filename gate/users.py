"""The users of the page, their sessions, and how often an address may try.

Runs on: server, control.  Reached from: control.py (`Users.set_password`), webui and gate/door (the rest).
Hands on to: the disk (`users.json`), hashlib.scrypt.
Threads: any. Users re-reads its file when that has changed, so control.py works beside a running server; its
  `_hashing` is held while one password is hashed, since each takes 16 MiB; `_changing` while the file is changed.
  Sessions and Attempts have a lock each,
  held for one look-up or change.
Errors: SettingsError for a file that does not read, and for a name or a password that is not taken.

A password is kept as scrypt (RFC 7914) of it with a salt of its own, beside the parameters, so that these can be
raised later. Sessions are in memory only: a restart of the server ends them all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from base.clock import Clock
from base.errors import SettingsError
from base.json_file import JsonFile

FILE = "users.json"
FIRST_USER = "admin"  # whom `control.py password` means when nobody is named
ROLES = ("look", "control")
SHORTEST, LONGEST = 8, 1024  # characters of a password

# 47 ms and 16 MiB on a PC (measured), about 300 ms on a Pi.
_N, _R, _P = 1 << 14, 8, 1
_MOST_BYTES = 64 << 20
_USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}").fullmatch


class User(NamedTuple):
    """Somebody who knows a password. `stamp` changes with the password, and so ends the sessions begun before."""

    name: str
    role: str
    stamp: str


class Users:
    """All users: `users.json` in the data folder, for its owner's eyes only."""

    def __init__(self, data: str) -> None:
        # Nobody is let in by a file that does not read, nor by one in a folder that may not be entered.
        self._file = JsonFile(os.path.join(data, FILE), "a list of users", _checked)
        self._hashing = threading.Lock()
        self._changing = threading.Lock()
        self._no_salt = secrets.token_bytes(16)

    def __len__(self) -> int:
        """How many there are; 0: no password is set."""
        return len(self._file.now())

    def roles(self) -> dict[str, str]:
        """Every user with his role."""
        return {name: str(user["role"]) for name, user in self._file.now().items()}

    def find(self, name: str) -> User | None:
        """The user of that name."""
        found = self._file.now().get(name)
        return User(name, str(found["role"]), str(found["salt"])) if found else None

    def set_password(self, name: str, password: str, role: str = "") -> None:
        """Give a user a password, and make him when he is not there.

        role  "look" or "control"; empty: as he has it, "control" for a new one
        """
        if not _USER_NAME(name):
            raise SettingsError(f"a user name is letters, digits and . _ @ -, not {name[:60]!r}")
        if not SHORTEST <= len(password) <= LONGEST:
            raise SettingsError(f"a password has {SHORTEST} to {LONGEST} characters, not {len(password)}")
        if role and role not in ROLES:
            raise SettingsError(f"a role is {' or '.join(ROLES)}, not {role[:60]!r}")
        salt = secrets.token_bytes(16)
        hashed = self._hash(password, salt, _N, _R, _P).hex()
        with self._changing:
            users = dict(self._file.now())
            role = role or str(users.get(name, {}).get("role", "control"))
            users[name] = {"role": role, "salt": salt.hex(), "n": _N, "r": _R, "p": _P, "scrypt": hashed}
            self._file.write(users)

    def remove(self, name: str) -> bool:
        """Forget a user; whether there was one."""
        with self._changing:
            users = dict(self._file.now())
            had = users.pop(name, None) is not None
            self._file.write(users)
        return had

    def check(self, name: str, password: str) -> User | None:
        """The user, when this is his password. For a name that nobody has it works as long."""
        known = self._file.now().get(name)
        entry = known or {"salt": self._no_salt.hex(), "n": _N, "r": _R, "p": _P, "scrypt": "00" * 64}
        hashed = self._hash(password, bytes.fromhex(entry["salt"]), entry["n"], entry["r"], entry["p"])
        right = hmac.compare_digest(hashed, bytes.fromhex(entry["scrypt"]))
        return User(name, str(entry["role"]), str(entry["salt"])) if right and known else None

    def _hash(self, password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
        plain = password.encode(errors="surrogateescape")  # as typed: neither trimmed nor normalised
        with self._hashing:
            return hashlib.scrypt(plain, salt=salt, n=n, r=r, p=p, maxmem=_MOST_BYTES)


def _checked(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """One user of the file, or ValueError: better at once than at his login."""
    for key in ("salt", "scrypt"):
        bytes.fromhex(entry[key])
    n, r, p = entry["n"], entry["r"], entry["p"]
    if entry["role"] not in ROLES or not all(type(number) is int and number > 0 for number in (n, r, p)):
        raise ValueError("a role is look or control; n, r and p are whole numbers")
    if n < 2 or n & (n - 1):
        raise ValueError("n is a power of 2")
    if 128 * r * max(n * p, n + p + 2) > _MOST_BYTES:  # of time, and of memory as OpenSSL counts it
        raise ValueError("scrypt would take too much")
    return entry


# -------------------------------------------------------------------------------------------------------- sessions


class Session(NamedTuple):
    """One browser that was let in.

    user  who; empty: whoever had the one-time key    csrf  the token that its forms carry
    """

    id: str
    user: str
    role: str
    stamp: str
    csrf: str
    began_s: float


IDLE_S = 24 * 3600.0  # a session that was not used for so long is over,
ABSOLUTE_S = 30 * 24 * 3600.0  # and so is one that is so old
MOST_SESSIONS = 1000


class Sessions:
    """The browsers that are let in now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._all: dict[str, Session] = {}
        self._used_s: dict[str, float] = {}  # by id; the longest unused one stands first

    def begin(self, user: User | None) -> Session:
        """Let a browser in, as `user` (or with the one-time key), under an id that nobody has known before."""
        name, role, stamp = user or ("", "control", "")
        now_s = self._clock.monotonic()
        session = Session(secrets.token_urlsafe(32), name, role, stamp, secrets.token_urlsafe(24), now_s)
        with self._lock:
            if len(self._all) >= MOST_SESSIONS:
                self._drop(next(iter(self._used_s)))
            self._all[session.id] = session
            self._used_s[session.id] = now_s
        return session

    def find(self, id: str) -> Session | None:
        """The session of that id, which counts as used now; None when there is none, or none any more."""
        now_s = self._clock.monotonic()
        with self._lock:
            session = self._all.get(id)
            if session is None:
                return None
            if now_s - self._used_s.pop(id) > IDLE_S or now_s - session.began_s > ABSOLUTE_S:
                del self._all[id]
                return None
            self._used_s[id] = now_s
            return session

    def end(self, id: str) -> None:
        """Let it in no more."""
        with self._lock:
            self._drop(id)

    def _drop(self, id: str) -> None:
        self._all.pop(id, None)
        self._used_s.pop(id, None)


# -------------------------------------------------------------------------------------------------------- attempts

FREE = 3  # failures of an address that are answered at once; then each is answered later than the one before,
MOST = 10  # and after so many none is looked at
CLOSED_S = 300.0  # until nothing failed for so long
_MOST_ADDRESSES = 1024


class Attempts:
    """How often each address has failed to prove itself. An attempt counts as failed until it has succeeded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}  # how many, and when the last began

    def begin(self, host: str) -> tuple[float, float]:
        """Before an attempt: the seconds to wait with it; and, where it must not be made, until one may be."""
        key, now_s = _network(host), self._clock.monotonic()
        with self._lock:
            count, last_s = self._failures.pop(key, (0, now_s))
            if now_s - last_s >= CLOSED_S:
                count = 0
            closed = count >= MOST
            if len(self._failures) >= _MOST_ADDRESSES:
                del self._failures[next(iter(self._failures))]
            self._failures[key] = (count, last_s) if closed else (count + 1, now_s)
        if closed:
            return 0.0, last_s + CLOSED_S - now_s
        return (min(0.1 * 2.0 ** (count - FREE), 1.0) if count >= FREE else 0.0), 0.0

    def succeeded(self, host: str) -> None:
        """Forget the failures of an address that has proved itself."""
        with self._lock:
            self._failures.pop(_network(host), None)


def _network(host: str) -> str:
    """Whose address it is: of IPv6 the first half, since everybody has 2^64 addresses with the same one."""
    if ":" not in host:
        return host
    head, _, tail = host.partition("::")
    groups = head.split(":") if head else []
    missing = 8 - len(groups) - (len(tail.split(":")) if tail else 0)
    return ":".join((groups + ["0"] * missing + tail.split(":"))[:4])
