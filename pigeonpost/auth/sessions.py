"""Sessions of the page's users, in memory: a restart of the server ends all of them.

May be used by any thread; `_lock` guards the sessions, and is held for one lookup or change.
"""

from __future__ import annotations

import secrets
import threading
from typing import NamedTuple

from pigeonpost.auth.users import User
from pigeonpost.core.clock import Clock


class UserSession(NamedTuple):
    """The session of one signed-in browser.

    user  name; empty: signed in with the one-time key    csrf  the token that its forms carry
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


class UserSessions:
    """The sessions of all signed-in browsers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._all: dict[str, UserSession] = {}
        self._used_s: dict[str, float] = {}  # by id; the longest unused one stands first

    def begin(self, user: User | None) -> UserSession:
        """Begin a session of `user` (None: of the one-time key), under a new random id."""
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
        """Return the session of that id and mark it as used now; None when there is none, or it is over."""
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
        """End the session of that id."""
        with self._lock:
            self._drop(id)

    def _drop(self, id: str) -> None:
        self._all.pop(id, None)
        self._used_s.pop(id, None)
