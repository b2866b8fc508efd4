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

from pigeonpost.core.data_folder import USERS
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.json_file import JsonFile

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
        self._file = JsonFile(os.path.join(data, USERS), "a list of users", _checked)
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


# -------------------------------------------------------------------------------------------------------- attempts
