"""Authentication, authorization and CSRF protection of the page.

May be used by any thread; `_lock` guards whether the one-time key was used, and is held while it is compared.
Errors: HTTPError. Codes `log-in` and `session-over` say that a login would help; webui redirects browsers to it.

Four ways to authenticate: the key of control.py (Authorization: Bearer); a program's API token (Bearer, or Basic with
the token as password); a session, begun with a password or with the one-time key; and, while no password is set, being
on this machine, which is enough to read and never to change anything: a proxy on this machine may connect for others
without a sign of it.

A token begins no session. One that is wrong is an attempt; a right one is taken from any address, also from one where
others guess. A browser that shows a login which is no API token has logged in at a proxy before us, which passes that
on: it is treated as if it showed nothing.

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
import threading
from typing import NamedTuple

from pigeonpost.auth.api_tokens import ApiTokens, is_api_token
from pigeonpost.auth.sessions import UserSession, UserSessions
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.auth.users import User, Users
from pigeonpost.core.clock import Clock
from pigeonpost.http.credentials import Credentials, challenge, is_browser, read_credentials
from pigeonpost.http.message import JSON, HTTPError, Request, form_of
from pigeonpost.web.host_names import is_of_another_site, is_this_machine

log = logging.getLogger(__name__)

# In these texts a line that begins with four blanks is a command. A server prints a new key at each start.
NO_PASSWORD = (
    "No password is set, so these pages answer the server's own machine only.\n"
    "On that machine, set a password{}:\n"
    "    {}\n"
    "Or open the address with the one-time key (/?key=...) that the server printed when it last started."
)
_THROUGH_PROXY = (
    "Behind a proxy, the page needs a password.\nWithout one, everybody who reaches the proxy could read it.\n"
)
NO_KEY = (
    "Being on this machine is enough to read, not to change anything.\n"
    "Open the address with the key (/?key=...) that the server printed when it last started; it may have been restarted"
    " since this page was opened. Or set a password:\n"
    "    {}"
)
_PASSWORD_COMMAND = "python3 control.py {}password"
_DATA = "data"  # the folder that control.py takes by itself
_ROLES = {"viewer": 0, "writer": 1, "operator": 2}  # each may do what those before it may
_READING = ("GET", "HEAD")


WRONG_TOKEN = (
    "That is no API token of this server; it may have been revoked. Passwords are for /login.\n"
    "On the server's machine, this makes one:\n"
    "    python3 control.py api-token NAME"
)


def password_command(data: str) -> str:
    """Return the command that sets a password of the server with that data folder; for those who may know its path."""
    return _PASSWORD_COMMAND.format("" if data == _DATA else f"--data {shlex.quote(os.path.abspath(data))} ")


def no_password(data: str, request: Request | None = None) -> str:
    """Return what those are told who may not know the path of the data folder.

    request  that is refused: one through a proxy is told why it is not taken for this machine's own
    """
    before = _THROUGH_PROXY if request is not None and request.proxy else ""
    if data == _DATA:
        return before + NO_PASSWORD.format("", password_command(data))
    command = _PASSWORD_COMMAND.format("--data FOLDER ")
    return before + NO_PASSWORD.format(" (FOLDER: the data folder, which the server's log names)", command)


class Principal(NamedTuple):
    """The client of a request, authenticated.

    name     for people
    role     "viewer", "writer" (programs only) or "operator"
    csrf     the token that its forms must carry; empty: none is needed
    session  of a browser that has signed in
    scheme   by which a program has shown its API token: "bearer" or "basic"; empty: it is no such program
    """

    name: str
    role: str
    csrf: str
    session: UserSession | None = None
    scheme: str = ""


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
        clock: Clock,
        port: int,
        throttle: LoginThrottle,
        api_tokens: ApiTokens,
        data: str = _DATA,
    ) -> None:
        """
        control   the key of control.py
        port      where the page is: cookies are not kept apart by port, so the name of ours has it
        throttle  counts failed attempts with every kind of secret
        data      the data folder, for the command that sets a password
        """
        self._users = users
        self._control = control.encode()
        self._cookie = f"pigeonpost-{port}"
        value = rf"{self._cookie}=([A-Za-z0-9_-]{{43}})(?:;|\Z)"
        self._cookie_value = re.compile(rf"(?:^|;) ?{value}").search
        self._host_value = re.compile(rf"(?:^|;) ?__Host-{value}").search
        self._secure_value = re.compile(rf"(?:^|;) ?__(?:Host|Secure)-{value}").search
        self._sessions = UserSessions(clock)
        self._throttle = throttle
        self._api_tokens = api_tokens
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

    # ------------------------------------------------------------------------------------------ authorization

    def authorize(self, request: Request, role: str) -> Principal:
        """Authenticate a request. Raises HTTPError where it is not allowed to do what takes `role`."""
        visitor = self._visitor(request)
        is_reading = request.method in _READING
        if visitor is LOCAL and not is_reading:
            raise HTTPError(403, NO_KEY.format(password_command(self._data)), "no-key")
        # Of a token all that its role may change is in the routes that name this role.
        needed = "operator" if visitor.scheme and role == "viewer" and not is_reading else role
        if _ROLES[visitor.role] < _ROLES[needed]:
            raise HTTPError(403, _role_text(visitor, needed), "role")
        if visitor.scheme == "basic" and not is_reading and is_browser(request):
            # It adds a login to each request by itself, also to those that a page of another site makes.
            raise HTTPError(403, "A browser changes nothing with a token as password: log in at /login.", "browser")
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

    def find(self, request: Request) -> Principal | None:
        """Return the client of a request; None: it may not even read. A wrong secret does not count as an attempt."""
        shown = read_credentials(request)
        if shown is not None and not _is_of_a_proxy(request, shown):
            return self._holder(shown)
        id = self._session_id(request)
        session = self._sessions.find(id) if id else None
        if session is not None and self._still_holds(session):
            return Principal(session.user or ONE_TIME_KEY, session.role, session.csrf, session)
        if shown is None and not self.has_password and is_this_machine(request):
            return LOCAL
        return None

    def _holder(self, shown: Credentials) -> Principal | None:
        """Return the program whose key or token this is."""
        if shown.scheme == "bearer" and hmac.compare_digest(shown.secret.encode(), self._control):
            return Principal("control.py", "operator", "")
        found = self._api_tokens.find(shown.secret) if shown.secret else None
        return Principal(f"token {found.name}", found.role, "", None, shown.scheme) if found is not None else None

    def _visitor(self, request: Request) -> Principal:
        visitor = self.find(request)
        if visitor is not None:
            return visitor
        shown = read_credentials(request)
        if shown is not None and not _is_of_a_proxy(request, shown):
            self._throttle.delay_or_refuse(request.peer)
            self._throttle.log_failure(log, request.peer, "wrong key or API token")
            raise HTTPError(401, WRONG_TOKEN, "key", challenge(request))
        if not self.has_password:
            raise HTTPError(403, no_password(self._data, request), "no-password")
        if self._session_id(request):
            raise HTTPError(401, "The session is over. Log in again.", "session-over", challenge(request))
        raise HTTPError(401, "Log in first; a program shows an API token.", "log-in", challenge(request))

    def _still_holds(self, session: UserSession) -> bool:
        if not session.user:
            return not self.has_password
        user = self._users.find(session.user)
        return user is not None and user.stamp == session.stamp and user.role == session.role

    def _session_id(self, request: Request) -> str:
        """Return the session id in the cookie; by a strict pattern: http.cookies takes 1.3 s for 32 kB (measured)."""
        # Through TLS only what was set through TLS counts: no page of another port or scheme can have put it there.
        # One of a sub-domain can set a cookie called __Secure-, so that is looked at where we set it: below a path.
        below = self._secure_value if _cookie_path(request) else self._host_value
        value = below if request.is_secure else self._cookie_value
        found = value(request.headers.get("cookie", ""))
        return found[1] if found else ""

    # ------------------------------------------------------------------------------------- login and logout

    def open_with_key(self, request: Request, key: str) -> UserSession | None:
        """Begin a session for a browser with the one-time key, on this machine or the first elsewhere; else None."""
        if not self._key or self.has_password:
            return None
        is_local = is_this_machine(request)
        with self._lock:
            right = hmac.compare_digest(key.encode(), self._key.encode()) and (is_local or not self._key_is_used)
            self._key_is_used |= right and not is_local
        if not right:
            # A page of another site could close the login by links to here. Who evades the throttle by this header
            # has 128 random bits to guess.
            if not is_of_another_site(request):
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
        path = _cookie_path(request)
        before = "" if not request.is_secure else "__Secure-" if path else "__Host-"
        secure = "; Secure" if request.is_secure else ""
        return {
            "Set-Cookie": f"{before}{self._cookie}={value}; Path={path or '/'}; HttpOnly{secure}; SameSite=Strict{age}"
        }

    def _user_with(self, request: Request, name: str, password: str, failure: str) -> User | None:
        """Return the user if that is the password; else None, logged as `failure`. Delayed after several failures."""
        account = name or "-"  # an attempt without a name is one at a password all the same
        self._users.refuse_if_busy()
        self._throttle.delay_or_refuse(request.peer, account, request.proxy)
        user = self._users.check(name, password)
        if user is None:
            self._throttle.log_failure(log, request.peer, failure)
            return None
        self._throttle.succeeded(request.peer, account, request.proxy)
        return user


def _cookie_path(request: Request) -> str:
    """Return the path for which the session's cookie is; empty: for the whole server, as a cookie called __Host- is.

    Beside a proxy's path are those of other programs, perhaps of another Pigeonpost: a cookie called __Host- goes to
    all of them (RFC 6265bis, section 4.1.3.2).
    """
    return request.prefix if request.proxy else ""


def _is_of_a_proxy(request: Request, shown: Credentials) -> bool:
    """Return True for a browser with the login of a proxy before us: no API token, so it can be no attempt at one."""
    return shown.scheme != "bearer" and is_browser(request) and not is_api_token(shown.secret)


def _role_text(visitor: Principal, needed: str) -> str:
    who = f"This token ({visitor.name.removeprefix('token ')})" if visitor.scheme else "Your role"
    has = "has the role" if visitor.scheme else "is"
    return f"{who} {has} {visitor.role}; this takes the role {needed}."
