"""Authentication, authorization and CSRF protection of the web pages and the JSON API.

All functions may be called from any thread. `_lock` guards the flag that the one-time key was used, and is held while a
key is compared.
Errors: HTTPError. The codes `log-in` and `session-over` mean that a login is necessary. For these codes, webui.py
redirects browsers to the login page.

There are four ways to authenticate:
- The key of control.py (Authorization: Bearer).
- The API token of a program (Bearer, or Basic with the token as password).
- A session, which begins with a password or with the one-time key.
- While no password is set: a connection from this machine. It allows reading but no changes, because a proxy on this
  machine can connect for other clients without showing that it is a proxy.

A token does not begin a session. A wrong token counts as a failed attempt. A valid token is accepted from any address,
including an address with many failed attempts. If a browser sends credentials other than an API token, the user has
logged in at a proxy, which has passed these credentials on. They are ignored.

While no password is set, the server prints its address with a one-time key. On this machine, the key is valid until the
server stops or a password is set, so that the operator can open the address again in another browser or a day later.
From other machines, the key admits one browser, once, because it is sent over the network in plain text.
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

# In these texts, a line that begins with four spaces is a command. A server prints a new key at each start.
NO_PASSWORD = (
    "No password is set, so only the server's own machine has access to these pages.\n"
    "Set a password on that machine{}:\n"
    "    {}\n"
    "Or open the address with the one-time key (/?key=...) that the server printed when it last started."
)
_THROUGH_PROXY = (
    "Behind a proxy, the page needs a password.\nWithout a password, anyone who can reach the proxy could read it.\n"
)
NO_KEY = (
    "Without a login, this machine can read the pages but cannot change anything.\n"
    "Open the address with the key (/?key=...) that the server printed when it last started; it may have been restarted"
    " since this page was opened. Or set a password:\n"
    "    {}"
)
_PASSWORD_COMMAND = "python3 control.py {}password"
_DATA = "data"  # the default data folder of control.py
_ROLES = {"viewer": 0, "writer": 1, "operator": 2}  # each role includes the rights of those before it
_READING = ("GET", "HEAD")


WRONG_TOKEN = (
    "The API token is not valid on this server; it may have been revoked. Use passwords at /login only.\n"
    "To create a token, run this command on the server's machine:\n"
    "    python3 control.py api-token NAME"
)


def password_command(data: str) -> str:
    """Return the command that sets a password for the server with the data folder `data`.

    The command contains the path of the folder, so it must only be shown to clients that may know the path.
    """
    return _PASSWORD_COMMAND.format("" if data == _DATA else f"--data {shlex.quote(os.path.abspath(data))} ")


def no_password(data: str, request: Request | None = None) -> str:
    """Return the message that a password must be set, for clients that may not know the path of the data folder.

    Args:
        data: Path of the data folder.
        request: The refused request. If it was sent by a proxy, the message explains why a password is needed.
    """
    explanation = _THROUGH_PROXY if request is not None and request.proxy else ""
    if data == _DATA:
        return explanation + NO_PASSWORD.format("", password_command(data))
    command = _PASSWORD_COMMAND.format("--data FOLDER ")
    return explanation + NO_PASSWORD.format(" (FOLDER is the data folder; the server's log contains its path)", command)


class Principal(NamedTuple):
    """The authenticated client of a request.

    Attributes:
        name: Name for messages and logs.
        role: `viewer`, `writer` (programs only) or `operator`.
        csrf: Token that the client's forms must contain, or an empty string if none is needed.
        session: Session of a browser that has logged in, or None.
        scheme: Scheme with which a program has sent its API token, `bearer` or `basic`; otherwise an empty string.
    """

    name: str
    role: str
    csrf: str
    session: UserSession | None = None
    scheme: str = ""


NOBODY = Principal("", "", "")
# Name of a client that has logged in with the one-time key. The name of a user never contains a space.
ONE_TIME_KEY = "one-time key"
LOCAL = Principal("this machine", "viewer", "")


class AccessControl:
    """Authentication and authorization of requests.

    Args:
        users: Users with passwords.
        control: Key of control.py.
        clock: Clock for the sessions.
        port: Port of the web pages. The name of the session's cookie contains it, because browsers send a cookie to all
            ports of a host.
        throttle: Counts of failed attempts with all kinds of secrets.
        api_tokens: API tokens of programs.
        data: Path of the data folder, for the command that sets a password.
    """

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
        self._key_is_used = False  # by a client on another machine

    @property
    def first_key(self) -> str:
        """The one-time key, or an empty string if a password was set when the server started."""
        return self._key

    @property
    def has_password(self) -> bool:
        """True if any user has a password. Otherwise clients on this machine can read, and others have no access."""
        return len(self._users) > 0

    # ------------------------------------------------------------------------------------------ authorization

    def authorize(self, request: Request, role: str) -> Principal:
        """Authenticate `request` and return its client. Raise HTTPError if the client does not have the role `role`."""
        principal = self._authenticate(request)
        is_reading = request.method in _READING
        if principal is LOCAL and not is_reading:
            raise HTTPError(403, NO_KEY.format(password_command(self._data)), "no-key")
        # Routes on which a token may change something name the role that it needs. For a change on any other route, a
        # token needs the role `operator`.
        needed = "operator" if principal.scheme and role == "viewer" and not is_reading else role
        if _ROLES[principal.role] < _ROLES[needed]:
            raise HTTPError(403, _role_text(principal, needed), "role")
        if principal.scheme == "basic" and not is_reading and is_browser(request):
            # A browser adds these credentials to each request automatically, even to requests by other sites' pages.
            raise HTTPError(
                403, "A browser cannot change anything with an API token as password. Log in at /login.", "browser"
            )
        return principal

    def check_csrf(self, request: Request, principal: Principal) -> None:
        """Raise HTTPError if `request` of the client `principal` lacks the token that only Pigeonpost's pages know."""
        if not principal.csrf:
            return
        token = request.headers.get("x-csrf-token")
        if token is None and "x-www-form-urlencoded" in request.headers.get("content-type", ""):
            token = form_of(request).get("csrf")
        if not hmac.compare_digest((token or "").encode(), principal.csrf.encode()):
            raise HTTPError(403, "The form is out of date. Reload the page and try again.", "csrf")

    def check_program(self, request: Request, principal: Principal) -> None:
        """Refuse a change through the JSON API by a browser if the body is not JSON.

        A page of another site can send JSON only after a CORS preflight (Fetch standard), which this server never
        grants. A request with a token is sent by a program, because browsers never add a token automatically.

        Args:
            request: The request.
            principal: Its client.

        Raises:
            HTTPError: 415: the content type is not JSON.
        """
        # A missing type is refused too: a page can send a Blob without one (Fetch standard, CORS-safelisted
        # request-header).
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON and principal.session is not None:
            raise HTTPError(415, f"Send the body with Content-Type: {JSON}.", "content-type")

    def find(self, request: Request) -> Principal | None:
        """Return the client of `request`, or None if it may not even read.

        A wrong secret does not count as a failed attempt here.
        """
        credentials = read_credentials(request)
        if credentials is not None and not _is_login_at_proxy(request, credentials):
            return self._program_with(credentials)
        id = self._session_id(request)
        session = self._sessions.find(id) if id else None
        if session is not None and self._is_valid(session):
            return Principal(session.user or ONE_TIME_KEY, session.role, session.csrf, session)
        if credentials is None and not self.has_password and is_this_machine(request):
            return LOCAL
        return None

    def _program_with(self, credentials: Credentials) -> Principal | None:
        """Return the program with this key or token, or None."""
        if credentials.scheme == "bearer" and hmac.compare_digest(credentials.secret.encode(), self._control):
            return Principal("control.py", "operator", "")
        found = self._api_tokens.find(credentials.secret) if credentials.secret else None
        return Principal(f"token {found.name}", found.role, "", None, credentials.scheme) if found is not None else None

    def _authenticate(self, request: Request) -> Principal:
        """Return the client of a request. Raise HTTPError if it may not even read; a wrong secret counts as failed."""
        principal = self.find(request)
        if principal is not None:
            return principal
        credentials = read_credentials(request)
        if credentials is not None and not _is_login_at_proxy(request, credentials):
            self._throttle.delay_or_refuse(request.peer)
            self._throttle.log_failure(log, request.peer, "wrong key or API token")
            raise HTTPError(401, WRONG_TOKEN, "key", challenge(request))
        if not self.has_password:
            raise HTTPError(403, no_password(self._data, request), "no-password")
        if self._session_id(request):
            raise HTTPError(401, "The session has ended. Log in again.", "session-over", challenge(request))
        raise HTTPError(401, "Log in first. Programs must send an API token.", "log-in", challenge(request))

    def _is_valid(self, session: UserSession) -> bool:
        if not session.user:
            return not self.has_password
        user = self._users.find(session.user)
        return user is not None and user.stamp == session.stamp and user.role == session.role

    def _session_id(self, request: Request) -> str:
        """Return the session id in the cookie, or an empty string.

        A regular expression finds it, since http.cookies takes 1.3 s for 32 kB (measured).
        """
        # With TLS, only cookies with the prefix __Host- or __Secure- are accepted: no page that was loaded over plain
        # HTTP can set them. A page of a sub-domain can set a cookie with the prefix __Secure-, so this prefix is
        # accepted below a path only, where it is used.
        below = self._secure_value if _cookie_path(request) else self._host_value
        value = below if request.is_secure else self._cookie_value
        found = value(request.headers.get("cookie", ""))
        return found[1] if found else ""

    # ------------------------------------------------------------------------------------- login and logout

    def open_with_key(self, request: Request, key: str) -> UserSession | None:
        """Begin a session with the one-time key and return it.

        Args:
            request: Request of the browser.
            key: Key in the request.

        Returns:
            The session, or None if the key is wrong, is no longer valid, or was used before by another machine.
        """
        if not self._key or self.has_password:
            return None
        is_local = is_this_machine(request)
        with self._lock:
            is_correct = hmac.compare_digest(key.encode(), self._key.encode()) and (is_local or not self._key_is_used)
            self._key_is_used |= is_correct and not is_local
        if not is_correct:
            # Not counted for requests by other sites: their pages could block the login with links to this address. A
            # client that evades the throttle with this header still has to guess 128 random bits.
            if not is_of_another_site(request):
                self._throttle.delay_or_refuse(request.peer)
                self._throttle.log_failure(log, request.peer, "a key that is not the one-time key")
            return None
        self.log_out(request)
        log.info("%s: logged in with the one-time key", request.peer)
        return self._sessions.begin(None)

    def wrong_key(self) -> HTTPError:
        """Return the error for a browser that was not admitted with its key."""
        if self.has_password:
            return HTTPError(403, "A password is set, so the key is no longer valid. Log in instead.", "password-set")
        text = (
            "The key is wrong or was used before. From other machines it admits one browser, once.\n"
            "If the server was restarted, it has printed a new address.\n"
        )
        return HTTPError(403, text + no_password(self._data), "key")

    def log_in(self, request: Request, name: str, password: str) -> UserSession | None:
        """Begin a session with a password and return it. After several failures the answer is delayed.

        Args:
            request: Request of the browser.
            name: Name of the user.
            password: Password in the request.

        Returns:
            The session, or None if the name or the password is wrong.
        """
        user = self._user_with(request, name, password, "wrong user or password")
        if user is None:
            return None
        self.log_out(request)
        log.info("%s: %s logged in", request.peer, user.name)
        return self._sessions.begin(user)

    def change_password(self, request: Request, old: str, new: str) -> UserSession | None:
        """Change the password of the user who is logged in. All sessions of the user end.

        Args:
            request: Request of the browser.
            old: Present password of the user.
            new: New password.

        Returns:
            A new session for this browser, or None if `old` is wrong, which counts as a failed attempt.

        Raises:
            HTTPError: No user is logged in.
            SettingsError: The new password is not accepted.
        """
        session = self._authenticate(request).session
        if session is None or not session.user:
            raise HTTPError(403, "To change a password, log in with it first.", "no-user")
        user = self._user_with(request, session.user, old, f"wrong password of {session.user}, to change it")
        if user is None:
            return None
        self._users.set_password(session.user, new, stamp=user.stamp)
        user = self._users.find(session.user)
        self.log_out(request)
        log.info("%s: %s changed the password", request.peer, session.user)
        return self._sessions.begin(user) if user is not None else None

    def log_out(self, request: Request) -> None:
        """End the session of `request`, if it has one."""
        id = self._session_id(request)
        if id:
            self._sessions.end(id)

    def cookie(self, request: Request, session: UserSession | None) -> dict[str, str]:
        """Return the header of the response to `request` that sets the cookie of `session`, or deletes it for None."""
        value, age = (session.id, "") if session else ("", "; Max-Age=0")
        path = _cookie_path(request)
        name = f"{'' if not request.is_secure else '__Secure-' if path else '__Host-'}{self._cookie}"
        secure = "; Secure" if request.is_secure else ""
        return {"Set-Cookie": f"{name}={value}; Path={path or '/'}; HttpOnly{secure}; SameSite=Strict{age}"}

    def _user_with(self, request: Request, name: str, password: str, failure: str) -> User | None:
        """Return the user if the password is correct; otherwise log `failure` and return None.

        After several failures the answer is delayed.
        """
        account = name or "-"  # an attempt without a name is counted too
        self._users.refuse_if_busy()
        self._throttle.delay_or_refuse(request.peer, account, request.proxy)
        user = self._users.check(name, password)
        if user is None:
            self._throttle.log_failure(log, request.peer, failure)
            return None
        self._throttle.succeeded(request.peer, account, request.proxy)
        return user


def _cookie_path(request: Request) -> str:
    """Return the path of the session's cookie, or an empty string for a cookie with the prefix __Host-.

    A proxy can have other programs at other paths, perhaps another Pigeonpost. A cookie with the prefix __Host- is sent
    to all paths of a host (RFC 6265bis, section 4.1.3.2).
    """
    return request.prefix if request.proxy else ""


def _is_login_at_proxy(request: Request, credentials: Credentials) -> bool:
    """Return True if the credentials are a user's login at a proxy: sent by a browser, and not an API token."""
    return credentials.scheme != "bearer" and is_browser(request) and not is_api_token(credentials.secret)


def _role_text(principal: Principal, needed: str) -> str:
    who = f"This token ({principal.name.removeprefix('token ')})" if principal.scheme else "Your role"
    has = "has the role" if principal.scheme else "is"
    return f"{who} {has} {principal.role}; this action needs the role {needed}."
