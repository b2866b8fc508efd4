"""Sessions of the users of the web pages, kept in memory. A restart of the server ends all sessions.

All functions may be called from any thread. `_lock` guards the sessions and is held for one lookup or change.
"""

from __future__ import annotations

import secrets
import threading
from typing import NamedTuple

from pigeonpost.auth.users import User
from pigeonpost.core.clock import Clock


class UserSession(NamedTuple):
    """Session of a browser that has logged in.

    Attributes:
        id: Random id, which is the value of the browser's cookie.
        user: Name of the user, or an empty string if the browser was authenticated with the one-time key.
        role: Role of the user: `viewer` or `operator`.
        stamp: Stamp of the user at the login (see User). The session is invalid once the user has another stamp.
        csrf: Token that each form of this session must contain.
        began_s: Start of the session, as `Clock.monotonic()` in seconds.
    """

    id: str
    user: str
    role: str
    stamp: str
    csrf: str
    began_s: float


IDLE_S = 24 * 3600.0  # a session ends when it has not been used for this time

ABSOLUTE_S = 30 * 24 * 3600.0  # a session ends at this age, even if it is in use

MOST_SESSIONS = 1000


class UserSessions:
    """Sessions of all browsers that have logged in."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._all: dict[str, UserSession] = {}
        self._used_s: dict[str, float] = {}  # time of last use by id, oldest first

    def begin(self, user: User | None) -> UserSession:
        """Begin a session and return it. It has a new random id. `user` is None for a login with the one-time key."""
        name, role, stamp = user or ("", "operator", "")
        now_s = self._clock.monotonic()
        session = UserSession(secrets.token_urlsafe(32), name, role, stamp, secrets.token_urlsafe(24), now_s)
        with self._lock:
            if len(self._all) >= MOST_SESSIONS:
                self._drop(next(iter(self._used_s)))
            self._all[session.id] = session
            self._used_s[session.id] = now_s
        return session

    def find(self, id: str) -> UserSession | None:
        """Return the session with this `id` and mark it as used now. Return None if it is unknown or has ended."""
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
        """End the session with this `id`, if it exists."""
        with self._lock:
            self._drop(id)

    def _drop(self, id: str) -> None:
        self._all.pop(id, None)
        self._used_s.pop(id, None)
