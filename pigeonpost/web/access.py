"""Authentication, authorization and CSRF protection of the page.

May be used by any thread; `_lock` guards the one-time key, and is held while it is compared and invalidated.
Errors: HTTPError. Codes `log-in` and `session-over` say that a login would help; webui redirects browsers to it.

Four ways to authenticate: the key of control.py (Authorization: Bearer); a session, begun with a password or with the
one-time key; and, while no password is set, being on this machine. What comes through a proxy is not on this machine.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import socket
import threading
from collections.abc import Iterable
from typing import NamedTuple

from pigeonpost.auth.sessions import UserSession, UserSessions
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.auth.users import Users
from pigeonpost.core.addresses import is_loopback, own_name
from pigeonpost.core.clock import Clock
from pigeonpost.http.message import JSON, HTTPError, Request, form_of

log = logging.getLogger(__name__)

NO_PASSWORD = (
    "No password is set, so these pages answer this machine only. On it, set one:\n"
    "    python3 control.py password\n"
    "or open the address with the one-time key that the server printed when it started."
)
_BEARER = {"WWW-Authenticate": "Bearer"}


class Principal(NamedTuple):
    """The client of a request, authenticated.

    name     for people
    role     "viewer" or "operator"
    csrf     the token that its forms must carry; empty: none is needed
    session  of a browser that has signed in
    """

    name: str
    role: str
    csrf: str
    session: UserSession | None = None


NOBODY = Principal("", "", "")


class AccessControl:
    """Authenticates and authorizes requests."""

    def __init__(self, users: Users, control: str, names: Iterable[str], clock: Clock, port: int) -> None:
        """
        control  the key of control.py
        names    by which browsers may call this server, beside its addresses and this machine's own names
        port     where the page is: cookies are not kept apart by port, so the name of ours has it
        """
        self._users = users
        self._control = control.encode()
        self._clock = clock
        self._names = {name.lower() for name in names} | _own_names()
        self._cookie = f"pigeonpost-{port}"
        value = rf"{self._cookie}=([A-Za-z0-9_-]{{43}})(?:;|\Z)"
        self._cookie_value = re.compile(rf"(?:^|;) ?{value}").search
        self._secure_value = re.compile(rf"(?:^|;) ?__Host-{value}").search
        self._sessions = UserSessions(clock)
        self._attempts = LoginThrottle(clock)
        self._local = Principal("this machine", "operator", secrets.token_urlsafe(24))
        self._lock = threading.Lock()
        self._key = "" if len(users) else secrets.token_urlsafe(16)

    @property
    def first_key(self) -> str:
        """The one-time key for one browser elsewhere while no password is set; empty once it was used."""
        return self._key

    @property
    def has_password(self) -> bool:
        """Return True if any user has a password. Else clients on this machine need none, and others have no access."""
        return len(self._users) > 0

    # ------------------------------------------------------------------------------------------ host and origin

    def check_host(self, request: Request) -> None:
        """Refuse a request for another name: a hostile page's own name may lead here (DNS rebinding)."""
        host = request.headers.get("host")
        if host is not None and not self._is_ours(host):
            raise HTTPError(
                421, "This server does not go by that name. Names that it may have are listed in [web] names.", "name"
            )

    def _is_ours(self, host: str) -> bool:
        found = _HOST(host.lower())
        if not found:
            return False
        bracketed, name = found.groups()
        if bracketed is not None:
            return _is_address(socket.AF_INET6, bracketed)
        return name.removesuffix(".") in self._names or _is_address(socket.AF_INET, name)

    def check_origin(self, request: Request) -> None:
        """Refuse a change that another site's page asks for."""
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise HTTPError(403, "A page of another site may change nothing here.", "cross-site")
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise HTTPError(403, "A page of another site may change nothing here.", "cross-site")

    # ------------------------------------------------------------------------------------------ authorization

    def authorize(self, request: Request, role: str) -> Principal:
        """Authenticate a request. Raises HTTPError where it is not allowed to do what takes `role`."""
        visitor = self._visitor(request)
        if role == "operator" and visitor.role != "operator":
            raise HTTPError(403, "Your role is viewer; this takes the role operator.", "role")
        return visitor

    def check_csrf(self, request: Request, visitor: Principal) -> None:
        """Refuse a change without the token that only our own pages know."""
        if not visitor.csrf:
            return
        said = request.headers.get("x-csrf-token")
        if said is None and "x-www-form-urlencoded" in request.headers.get("content-type", ""):
            said = form_of(request).get("csrf")
        if not hmac.compare_digest((said or "").encode(), visitor.csrf.encode()):
            raise HTTPError(403, "The form is out of date. Open the page anew, and try again.", "csrf")

    def check_program(self, request: Request) -> None:
        """Refuse a change that a browser requests of the JSON interface, except in JSON: another site's page may send
        that only after a CORS preflight (Fetch standard), which is never granted."""
        # Without any type as well: a page sends a Blob that has none (Fetch standard, CORS-safelisted request-header).
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON and any(name in request.headers for name in _BROWSER_HEADERS):
            raise HTTPError(415, f"The body comes as Content-Type: {JSON}.", "content-type")

    def _visitor(self, request: Request) -> Principal:
        said = request.headers.get("authorization")
        if said is not None:
            scheme, _, token = said.partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._control):
                return Principal("control.py", "operator", "")
            raise HTTPError(401, "That is not this server's key.", "key", _BEARER)
        id = self._session_id(request)
        session = self._sessions.find(id) if id else None
        if session is not None and self._still_holds(session):
            return Principal(session.user or "one-time key", session.role, session.csrf, session)
        if not self.has_password:
            if _is_this_machine(request):
                return self._local
            raise HTTPError(403, NO_PASSWORD, "no-password")
        if id:
            raise HTTPError(401, "The session is over. Log in again.", "session-over", _BEARER)
        raise HTTPError(401, "Log in first.", "log-in", _BEARER)

    def _still_holds(self, session: UserSession) -> bool:
        if not session.user:
            return not self.has_password
        user = self._users.find(session.user)
        return user is not None and user.stamp == session.stamp and user.role == session.role

    def _session_id(self, request: Request) -> str:
        """Return the session id in the cookie; by a strict pattern: http.cookies takes 1.3 s for 32 kB (measured)."""
        # Through TLS only what was set through TLS counts: no page of another port or scheme can have put it there.
        value = self._secure_value if request.is_secure else self._cookie_value
        found = value(request.headers.get("cookie", ""))
        return found[1] if found else ""

    # ------------------------------------------------------------------------------------- login and logout

    def open_with_key(self, request: Request, key: str) -> UserSession | None:
        """Begin a session for the browser that has the one-time key, which is void from then on; else None."""
        if not self._key or self.has_password:
            return None
        self._try(request)
        with self._lock:
            right = bool(self._key) and hmac.compare_digest(key.encode(), self._key.encode())
            if right:
                self._key = ""
        if not right:
            return None
        self._attempts.succeeded(request.peer)
        log.info("%s: came in with the one-time key", request.peer)
        return self._sessions.begin(None)

    def log_in(self, request: Request, name: str, password: str) -> UserSession | None:
        """Begin a session if that is the user's password; else None. Delayed after several failures."""
        self._try(request)
        user = self._users.check(name, password)
        if user is None:
            log.warning("%s: wrong user or password", request.peer)
            return None
        self._attempts.succeeded(request.peer)
        self.log_out(request)
        log.info("%s: %s logged in", request.peer, user.name)
        return self._sessions.begin(user)

    def change_password(self, request: Request, old: str, new: str) -> UserSession | None:
        """Change the password of the user who is logged in; None when `old` is wrong, which counts as an attempt.

        All sessions of the user end; the one that is returned is for this browser. Raises SettingsError for a password
        that is not accepted.
        """
        session = self._visitor(request).session
        if session is None or not session.user:
            raise HTTPError(403, "Only somebody who has logged in has a password to change.", "no-user")
        self._try(request)
        if self._users.check(session.user, old) is None:
            log.warning("%s: wrong password of %s, to change it", request.peer, session.user)
            return None
        self._attempts.succeeded(request.peer)
        self._users.set_password(session.user, new)
        user = self._users.find(session.user)
        self.log_out(request)
        log.info("%s: %s changed the password", request.peer, session.user)
        return self._sessions.begin(user) if user is not None else None

    def log_out(self, request: Request) -> None:
        """End the session that the request comes with."""
        id = self._session_id(request)
        if id:
            self._sessions.end(id)

    def cookie(self, request: Request, session: UserSession | None) -> dict[str, str]:
        """Return the header that sets the session's cookie in the browser, or without a session deletes it."""
        value, age = (session.id, "") if session else ("", "; Max-Age=0")
        before, secure = ("__Host-", "; Secure") if request.is_secure else ("", "")
        return {"Set-Cookie": f"{before}{self._cookie}={value}; Path=/; HttpOnly{secure}; SameSite=Strict{age}"}

    def _try(self, request: Request) -> None:
        wait_s, closed_s = self._attempts.begin(request.peer)
        if closed_s > 0:
            raise HTTPError(
                429, "Too many attempts have failed from your address. Try again in some minutes.", "attempts",
                {"Retry-After": str(int(closed_s) + 1)},
            )  # fmt: skip
        self._clock.wait(threading.Event(), wait_s)


def _is_this_machine(request: Request) -> bool:
    """Return True for a client on this machine; a proxy here connects for others, as its headers show."""
    return is_loopback(request.peer) and not any(name in request.headers for name in _PROXY_HEADERS)


def _is_address(family: int, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except OSError:
        return False
    return True


def _own_names() -> set[str]:
    """Return this machine's names that need no look-up: its host name, whole and short, also as mDNS has it."""
    names = {"localhost"}
    for name in (socket.gethostname().lower(), own_name().lower()):
        short = name.partition(".")[0]
        names |= {name, short, f"{short}.local"}
    return names


_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9][a-z0-9._-]{0,252}))(?::[0-9]{1,5})?").fullmatch
_BROWSER_HEADERS = ("origin", "referer", "sec-fetch-site", "cookie")
_PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
