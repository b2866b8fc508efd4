"""Authentication, authorization and CSRF protection of the page.

May be used by any thread; `_lock` guards whether the one-time key was used, and is held while it is compared.
Errors: HTTPError. Codes `log-in` and `session-over` say that a login would help; webui redirects browsers to it.

Four ways to authenticate: the key of control.py (Authorization: Bearer); a session, begun with a password or with the
one-time key; and, while no password is set, being on this machine, which is enough to read and never to change
anything: a proxy on this machine may connect for others without a sign of it.

The one-time key is printed with the page's address while no password is set. On this machine it works until the server
stops or a password is set, since its owner opens the printed address in another browser, or a day later. From
elsewhere it lets in one browser, once: it goes over the network in plain text.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import shlex
import socket
import threading
from collections.abc import Iterable
from typing import NamedTuple

from pigeonpost.auth.sessions import UserSession, UserSessions
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.auth.users import User, Users
from pigeonpost.core.addresses import is_loopback, own_name
from pigeonpost.core.clock import Clock
from pigeonpost.http.message import JSON, HTTPError, Request, form_of

log = logging.getLogger(__name__)

# In these texts a line that begins with four blanks is a command. A server prints a new key at each start.
NO_PASSWORD = (
    "No password is set, so these pages answer the server's own machine only.\n"
    "On that machine, set a password{}:\n"
    "    {}\n"
    "Or open the address with the one-time key (/?key=...) that the server printed when it last started."
)
NO_KEY = (
    "Being on this machine is enough to read, not to change anything.\n"
    "Open the address with the key (/?key=...) that the server printed when it last started; it may have been restarted"
    " since this page was opened. Or set a password:\n"
    "    {}"
)
_PASSWORD_COMMAND = "python3 control.py {}password"
_DATA = "data"  # the folder that control.py takes by itself
_BEARER = {"WWW-Authenticate": "Bearer"}


def password_command(data: str) -> str:
    """Return the command that sets a password of the server with that data folder; for those who may know its path."""
    return _PASSWORD_COMMAND.format("" if data == _DATA else f"--data {shlex.quote(os.path.abspath(data))} ")


def no_password(data: str) -> str:
    """Return what those are told who may not know the path of the data folder."""
    if data == _DATA:
        return NO_PASSWORD.format("", password_command(data))
    command = _PASSWORD_COMMAND.format("--data FOLDER ")
    return NO_PASSWORD.format(" (FOLDER: the data folder, which the server's log names)", command)


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
# Without a user; no user's name has a blank.
ONE_TIME_KEY = "one-time key"
LOCAL = Principal("this machine", "viewer", "")


class AccessControl:
    """Authenticates and authorizes requests."""

    def __init__(
        self,
        users: Users,
        control: str,
        names: Iterable[str],
        clock: Clock,
        port: int,
        throttle: LoginThrottle,
        data: str = _DATA,
    ) -> None:
        """
        control   the key of control.py
        names     by which browsers may call this server, beside its addresses and this machine's own names
        port      where the page is: cookies are not kept apart by port, so the name of ours has it
        throttle  counts failed attempts with every kind of secret
        data      the data folder, for the command that sets a password
        """
        self._users = users
        self._control = control.encode()
        self._names = {name.lower() for name in names} | _own_names()
        self._cookie = f"pigeonpost-{port}"
        value = rf"{self._cookie}=([A-Za-z0-9_-]{{43}})(?:;|\Z)"
        self._cookie_value = re.compile(rf"(?:^|;) ?{value}").search
        self._secure_value = re.compile(rf"(?:^|;) ?__Host-{value}").search
        self._sessions = UserSessions(clock)
        self._throttle = throttle
        self._data = data
        self._lock = threading.Lock()
        self._key = secrets.token_urlsafe(16) if users.are_none() else ""
        self._key_is_used = False  # from elsewhere

    @property
    def first_key(self) -> str:
        """The one-time key, printed with the page's address; empty where a password was set at the start."""
        return self._key

    @property
    def has_password(self) -> bool:
        """Return True if any user has a password. Else clients on this machine may read, and others have no access."""
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
        if _is_of_another_site(request):
            raise HTTPError(403, "A page of another site may change nothing here.", "cross-site")

    # ------------------------------------------------------------------------------------------ authorization

    def authorize(self, request: Request, role: str) -> Principal:
        """Authenticate a request. Raises HTTPError where it is not allowed to do what takes `role`."""
        visitor = self._visitor(request)
        if visitor is LOCAL and request.method not in ("GET", "HEAD"):
            raise HTTPError(403, NO_KEY.format(password_command(self._data)), "no-key")
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

    def check_program(self, request: Request, visitor: Principal) -> None:
        """Refuse a change that a browser requests of the JSON interface, except in JSON: another site's page may send
        that only after a CORS preflight (Fetch standard), which is never granted. A request with a token comes from a
        program: browsers add a token by themselves to none."""
        # Without any type as well: a page sends a Blob that has none (Fetch standard, CORS-safelisted request-header).
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON and visitor.session is not None:
            raise HTTPError(415, f"The body comes as Content-Type: {JSON}.", "content-type")

    def _visitor(self, request: Request) -> Principal:
        said = request.headers.get("authorization")
        if said is not None:
            scheme, _, token = said.partition(" ")
            if scheme.lower() == "bearer":
                if hmac.compare_digest(token.strip().encode(), self._control):
                    return Principal("control.py", "operator", "")
                self._throttle.delay_or_refuse(request.peer)
                self._throttle.log_failure(log, request.peer, "wrong key")
            raise HTTPError(401, "That is not this server's key.", "key", _BEARER)
        id = self._session_id(request)
        session = self._sessions.find(id) if id else None
        if session is not None and self._still_holds(session):
            return Principal(session.user or ONE_TIME_KEY, session.role, session.csrf, session)
        if not self.has_password:
            if _is_this_machine(request):
                return LOCAL
            raise HTTPError(403, no_password(self._data), "no-password")
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
        """Begin a session for a browser with the one-time key, on this machine or the first elsewhere; else None."""
        if not self._key or self.has_password:
            return None
        is_local = _is_this_machine(request)
        with self._lock:
            right = hmac.compare_digest(key.encode(), self._key.encode()) and (is_local or not self._key_is_used)
            self._key_is_used |= right and not is_local
        if not right:
            # A page of another site could close the login by links to here. Who evades the throttle by this header
            # has 128 random bits to guess.
            if not _is_of_another_site(request):
                self._throttle.delay_or_refuse(request.peer)
                self._throttle.log_failure(log, request.peer, "a key that is not the one-time key")
            return None
        self.log_out(request)
        log.info("%s: came in with the one-time key", request.peer)
        return self._sessions.begin(None)

    def wrong_key(self) -> HTTPError:
        """Return what a browser is told that was not let in with a key."""
        if self.has_password:
            return HTTPError(403, "A password is set, so the key is no longer needed: log in.", "password-set")
        text = (
            "That key is not right, or was used: from elsewhere it lets in one browser, once.\n"
            "The server may have been restarted, and has printed a new address then.\n"
        )
        return HTTPError(403, text + no_password(self._data), "key")

    def log_in(self, request: Request, name: str, password: str) -> UserSession | None:
        """Begin a session if that is the user's password; else None. Delayed after several failures."""
        user = self._user_with(request, name, password, "wrong user or password")
        if user is None:
            return None
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
        user = self._user_with(request, session.user, old, f"wrong password of {session.user}, to change it")
        if user is None:
            return None
        self._users.set_password(session.user, new, stamp=user.stamp)
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

    def _user_with(self, request: Request, name: str, password: str, failure: str) -> User | None:
        """Return the user if that is the password; else None, logged as `failure`. Delayed after several failures."""
        account = name or "-"  # an attempt without a name is one at a password all the same
        self._users.refuse_if_busy()
        self._throttle.delay_or_refuse(request.peer, account)
        user = self._users.check(name, password)
        if user is None:
            self._throttle.log_failure(log, request.peer, failure)
            return None
        self._throttle.succeeded(request.peer, account)
        return user


def _is_this_machine(request: Request) -> bool:
    """Return True for a client on this machine that shows no sign of a proxy, which would connect for others.

    nginx by default adds no header, but asks with HTTP/1.0 and the name of its upstream; others add headers.
    """
    return (
        is_loopback(request.peer)
        and request.version == "1.1"
        and _is_loopback_name(request.headers.get("host", "").lower())
        and not any(_is_of_proxy(name.replace("_", "-")) for name in request.headers)
    )


def _is_of_proxy(name: str) -> bool:
    return name.startswith(_PROXY_HEADERS) and name not in _PAGE_HEADERS


def _is_of_another_site(request: Request) -> bool:
    """Return True if a browser says that the page of another site made this request (Fetch Metadata)."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _is_loopback_name(host: str) -> bool:
    found = _HOST(host)
    if not found:
        return False
    name = (found[1] or found[2]).removesuffix(".")
    return name in ("localhost", "::1") or (is_loopback(name) and _is_address(socket.AF_INET, name))


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
# Beginnings of the names of headers with which proxies and content delivery networks tell for whom they ask. Each has
# its own, nearly all with x-; browsers send none of those by themselves, and scripts of pages these two.
_PROXY_HEADERS = (
    "x-", "proxy-", "forwarded", "via", "cf-", "cdn-loop", "fastly-", "fly-", "tailscale-", "true-client-", "client-ip",
    "max-forwards",
)  # fmt: skip
_PAGE_HEADERS = ("x-csrf-token", "x-requested-with")
