"""Users of the web pages and their passwords, stored in `users.json`.

All functions may be called from any thread. The file is read again when it has changed, so control.py works while a
server is running. Both programs write the file. Each change locks the data folder (flock), so that no change is lost.
Passwords are hashed by one thread (auth/hash_thread.py).

Errors: SettingsError for a file that cannot be read, and for a name, a password or a role that is not accepted;
HTTPError 503 when too many passwords are waiting to be hashed.

A password is stored as its scrypt hash (RFC 7914) with its own salt. The parameters of the hash are stored with it, so
that they can be increased later.
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
_FORMER_ROLES = {"look": "viewer", "control": "operator"}  # names of the roles in files of older versions
SHORTEST, LONGEST = 8, 1024  # length of a password in characters

# One hash takes 47 ms and 16 MiB on a PC (measured), and about 300 ms on a Pi.
_N, _R, _P = 1 << 14, 8, 1
_USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}").fullmatch


class User(NamedTuple):
    """A user with a password.

    Attributes:
        name: Name of the user.
        role: `viewer` or `operator`.
        stamp: Value that changes with the password. Sessions with an older stamp are invalid.
    """

    name: str
    role: str
    stamp: str


class Users:
    """The users of a server. Only the owner of the file can read it.

    Args:
        data: Path of the data folder.
        faults: Faults of a running server, for JsonFile; None in control.py.
    """

    def __init__(self, data: str, faults: Faults | None = None) -> None:
        self._folder = data
        # If the file or its folder cannot be read, every login raises SettingsError.
        self._file = JsonFile(os.path.join(data, USERS), "a list of users", read_user, faults)
        self._hashing = HashThread()
        self._no_salt = secrets.token_bytes(16)

    def __len__(self) -> int:
        """Return the number of users. If it is 0, no password is set."""
        return len(self._file.now())

    def are_none(self) -> bool:
        """Return True if no password is set. Return False if the file is damaged, since it may contain a password."""
        try:
            return not self._file.now()
        except DamagedFile:
            return False

    def roles(self) -> dict[str, str]:
        """Return the role of each user, by user name."""
        return {name: str(user["role"]) for name, user in self._file.now().items()}

    def find(self, name: str) -> User | None:
        """Return the user called `name`, or None if there is none."""
        entry = self._file.now().get(name)
        return User(name, str(entry["role"]), str(entry["salt"])) if entry else None

    def set_password(self, name: str, password: str, role: str = "", stamp: str = "") -> None:
        """Set the password of a user. Create the user if they do not exist.

        Args:
            name: Name of the user: letters, digits and `. _ @ -`, at most 63 characters.
            password: New password, 8 to 1024 characters.
            role: `viewer` or `operator`. With an empty string, an existing user keeps their role, and a new user is an
                operator.
            stamp: Stamp of the user, if they change their own password; otherwise an empty string. It is compared with
                the stored stamp. Without this check, a viewer who has just been deleted would be created again, as an
                operator.

        Raises:
            SettingsError: The name, the password or the role is not accepted, or the user no longer has this stamp.
        """
        if not _USER_NAME(name):
            raise SettingsError(
                f"a user name must consist of at most 63 letters, digits and . _ @ -, not {name[:60]!r}"
            )
        if not SHORTEST <= len(password) <= LONGEST:
            raise SettingsError(f"a password must have {SHORTEST} to {LONGEST} characters, not {len(password)}")
        if role and role not in ROLES:
            raise SettingsError(f"a role must be {' or '.join(ROLES)}, not {role[:60]!r}")
        salt = secrets.token_bytes(16)
        hashed = self._hash(password, salt, _N, _R, _P).hex()
        with changes_locked(self._folder):
            users = dict(self._file.now())
            if stamp and users.get(name, {}).get("salt") != stamp:
                raise SettingsError(f"user {name} was changed or deleted in the meantime")
            role = role or str(users.get(name, {}).get("role", "operator"))
            users[name] = {"role": role, "salt": salt.hex(), "n": _N, "r": _R, "p": _P, "scrypt": hashed}
            self._file.write(users)

    def remove(self, name: str) -> bool:
        """Delete the user called `name`. Return True if they existed."""
        with changes_locked(self._folder):
            users = dict(self._file.now())
            existed = users.pop(name, None) is not None
            self._file.write(users)
        return existed

    def refuse_if_busy(self) -> None:
        """Raise HTTPError 503 if no other password can be checked now. Call this before counting an attempt."""
        self._hashing.refuse_if_full()

    def check(self, name: str, password: str) -> User | None:
        """Return the user called `name` if `password` is correct, else None. An unknown name takes the same time."""
        stored = self._file.now().get(name)
        entry = stored or {"salt": self._no_salt.hex(), "n": _N, "r": _R, "p": _P, "scrypt": "00" * 64}
        hashed = self._hash(password, bytes.fromhex(entry["salt"]), entry["n"], entry["r"], entry["p"])
        is_correct = hmac.compare_digest(hashed, bytes.fromhex(entry["scrypt"]))
        return User(name, str(entry["role"]), str(entry["salt"])) if is_correct and stored else None

    def _hash(self, password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
        plain = password.encode(errors="surrogateescape")  # as typed: neither trimmed nor normalised
        return self._hashing.scrypt(plain, salt, n, r, p)


def read_user(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the user in the JSON object `entry`.

    Everything is checked here, so that a damaged file is found when it is read and not at the user's login.

    Raises:
        ValueError: A value is invalid.
        KeyError: A value is missing.
    """
    for key in ("salt", "scrypt"):
        bytes.fromhex(entry[key])
    n, r, p = entry["n"], entry["r"], entry["p"]
    role = _FORMER_ROLES.get(entry["role"], entry["role"])
    if role not in ROLES or not all(type(number) is int and number > 0 for number in (n, r, p)):
        raise ValueError("the role must be viewer or operator; n, r and p must be positive whole numbers")
    if n < 2 or n & (n - 1):
        raise ValueError("n must be a power of 2")
    if 128 * r * max(n * p, n + p + 2) > MOST_BYTES:  # limits the time, and the memory as OpenSSL calculates it
        raise ValueError("n, r and p are too large: scrypt would need too much memory")
    return {**entry, "role": role}
