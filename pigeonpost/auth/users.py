"""Users of the page and their passwords, kept in `users.json`.

May be used by any thread. The file is read again when it has changed, so control.py works beside a running server.
Both write: each change locks the data folder (flock), so that none is lost. Passwords are hashed by one thread
(auth/hash_thread.py).
Errors: SettingsError for a file that cannot be read, and for a name, a password or a role that is not accepted;
HTTPError 503 when too many passwords wait to be hashed.

A password is kept as its scrypt hash (RFC 7914) with a salt of its own, beside the parameters of the hash, so that
these can be raised later.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from pigeonpost.auth.hash_thread import MOST_BYTES, HashThread
from pigeonpost.core.data_folder import USERS
from pigeonpost.core.errors import DamagedFile, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile, changes_locked

FIRST_USER = "admin"  # the user of `control.py password` without a name
ROLES = ("viewer", "operator")
_FORMER_ROLES = {"look": "viewer", "control": "operator"}  # as older versions wrote them
SHORTEST, LONGEST = 8, 1024  # characters of a password

# 47 ms and 16 MiB on a PC (measured), about 300 ms on a Pi.
_N, _R, _P = 1 << 14, 8, 1
_USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}").fullmatch


class User(NamedTuple):
    """A user with a password. `stamp` changes with the password, which ends the sessions begun before."""

    name: str
    role: str
    stamp: str


class Users:
    """All users; the file may be read by its owner only."""

    def __init__(self, data: str, faults: Faults | None = None) -> None:
        """faults: of a running server, see JsonFile."""
        self._folder = data
        # A file that cannot be read, or that is in a folder without permission, raises SettingsError at every login.
        self._file = JsonFile(os.path.join(data, USERS), "a list of users", read_user, faults)
        self._hashing = HashThread()
        self._no_salt = secrets.token_bytes(16)

    def __len__(self) -> int:
        """Return the number of users; 0: no password is set."""
        return len(self._file.now())

    def are_none(self) -> bool:
        """Return True if no password is set; False for a damaged file, in which there may be one."""
        try:
            return not self._file.now()
        except DamagedFile:
            return False

    def roles(self) -> dict[str, str]:
        """Return the role of every user."""
        return {name: str(user["role"]) for name, user in self._file.now().items()}

    def find(self, name: str) -> User | None:
        """Return the user of that name; None when there is none."""
        found = self._file.now().get(name)
        return User(name, str(found["role"]), str(found["salt"])) if found else None

    def set_password(self, name: str, password: str, role: str = "", stamp: str = "") -> None:
        """Set the password of a user, who is created when there is none of that name.

        role   "viewer" or "operator"; empty: unchanged, "operator" for a new user
        stamp  of the user who changes their own password. Raises SettingsError if they were changed or deleted since:
               a deleted viewer would else be created again, as an operator
        """
        if not _USER_NAME(name):
            raise SettingsError(f"a user name is letters, digits and . _ @ -, not {name[:60]!r}")
        if not SHORTEST <= len(password) <= LONGEST:
            raise SettingsError(f"a password has {SHORTEST} to {LONGEST} characters, not {len(password)}")
        if role and role not in ROLES:
            raise SettingsError(f"a role is {' or '.join(ROLES)}, not {role[:60]!r}")
        salt = secrets.token_bytes(16)
        hashed = self._hash(password, salt, _N, _R, _P).hex()
        with changes_locked(self._folder):
            users = dict(self._file.now())
            if stamp and users.get(name, {}).get("salt") != stamp:
                raise SettingsError(f"user {name} was changed or deleted meanwhile")
            role = role or str(users.get(name, {}).get("role", "operator"))
            users[name] = {"role": role, "salt": salt.hex(), "n": _N, "r": _R, "p": _P, "scrypt": hashed}
            self._file.write(users)

    def remove(self, name: str) -> bool:
        """Delete a user. Returns True if there was one."""
        with changes_locked(self._folder):
            users = dict(self._file.now())
            had = users.pop(name, None) is not None
            self._file.write(users)
        return had

    def refuse_if_busy(self) -> None:
        """Raise HTTPError 503 if no further password can be checked now, before it counts as an attempt."""
        self._hashing.refuse_if_full()

    def check(self, name: str, password: str) -> User | None:
        """Return the user if this is their password, else None. Takes as long for an unknown name."""
        known = self._file.now().get(name)
        entry = known or {"salt": self._no_salt.hex(), "n": _N, "r": _R, "p": _P, "scrypt": "00" * 64}
        hashed = self._hash(password, bytes.fromhex(entry["salt"]), entry["n"], entry["r"], entry["p"])
        right = hmac.compare_digest(hashed, bytes.fromhex(entry["scrypt"]))
        return User(name, str(entry["role"]), str(entry["salt"])) if right and known else None

    def _hash(self, password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
        plain = password.encode(errors="surrogateescape")  # as typed: neither trimmed nor normalised
        return self._hashing.scrypt(plain, salt, n, r, p)


def read_user(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return one entry of the file. Raises ValueError, now rather than at the user's login."""
    for key in ("salt", "scrypt"):
        bytes.fromhex(entry[key])
    n, r, p = entry["n"], entry["r"], entry["p"]
    role = _FORMER_ROLES.get(entry["role"], entry["role"])
    if role not in ROLES or not all(type(number) is int and number > 0 for number in (n, r, p)):
        raise ValueError("a role is viewer or operator; n, r and p are whole numbers")
    if n < 2 or n & (n - 1):
        raise ValueError("n is a power of 2")
    if 128 * r * max(n * p, n + p + 2) > MOST_BYTES:  # of time, and of memory as OpenSSL counts it
        raise ValueError("scrypt would take too much")
    return {**entry, "role": role}
