"""File drop of the older system "Access Lab": Pis upload files, each with its SHA-256, in either of two dialects.

    GET /             pi_id, num_files                     ->  20 letters, the name of a session; or nothing
    POST /upload/...  pi_id, checksum, num_files; a file   ->  the checksum; or nothing
    GET /upload/      pi_id                                ->  301 and the letters; or a code
    POST /upload/...  the same, and pi_num                 ->  200 stored, 401, 412, 415 or 500
    POST /register/   pi_id, email, checksum; a file       ->  the same codes

A file is written to the disk as it is received, and acknowledged once it is durable. A transfer that breaks leaves
nothing, and its session continues. The original senders need no change (docs/coming-from-file-drop.md).

Runs in the threads of the web server. `_lock` guards the sessions, and is held for one lookup or change.
Errors: answered as those senders expect, with HTTP status 200: in the first dialect an empty body, in the second a
code. What none of them sends gets the proper status: 413 for too much, 400 for an invalid form.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import string
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.compat import wrong_secrets
from pigeonpost.compat.file_drop.storage import FileStore, IncomingFile, PiIds, plain_name, read_pi_id
from pigeonpost.core.errors import SettingsError
from pigeonpost.http.message import Endpoint, HTTPError, Request, Response
from pigeonpost.http.multipart import BadMultipart, FormPart, Multipart, boundary_of
from pigeonpost.transports.contract import Transport

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

STORED, NAME, WRONG_ID, MISSING, WRONG_TYPE, FAILED = "200", "301", "401", "412", "415", "500"
FILE_FIELD, CONFIG_FIELD = "sensor_data_file", "sensor_config"
SESSION_S = 3600.0  # without an upload
MOST_SESSIONS = 256  # of one Pi; then its oldest one ends
_LETTERS = 20
_FORM_BYTES = 64 << 10  # of a body, beside the file
_LONGEST_EMAIL = 254

Reply = Callable[[str, str], str]


def _first_dialect(code: str, checksum: str) -> str:
    return checksum if code == STORED else ""


def _second_dialect(code: str, checksum: str) -> str:
    return code


# ------------------------------------------------------------------------------------------------------- sessions


class UploadSession:
    """The session of one run of a sender: its Pi, its dialect, and the time of its last request."""

    def __init__(self, pi_id: str, reply: Reply, heard_s: float) -> None:
        self.pi_id = pi_id
        self.reply = reply
        self.heard_s = heard_s


class UploadSessions:
    """The open sessions, by their letters; the one silent for longest first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, UploadSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, pi_id: str, reply: Reply) -> str:
        """Begin a session. Returns its letters."""
        letters = "".join(secrets.choice(string.ascii_letters) for _ in range(_LETTERS))
        now_s = self._clock.monotonic()
        with self._lock:
            self._forget_old(now_s)
            own = [name for name, session in self._sessions.items() if session.pi_id == pi_id]
            if len(own) >= MOST_SESSIONS:
                del self._sessions[own[0]]
            self._sessions[letters] = UploadSession(pi_id, reply, now_s)
        return letters

    def find(self, letters: str) -> UploadSession | None:
        """Return the session with these letters, while it is open."""
        with self._lock:
            self._forget_old(self._clock.monotonic())
            return self._sessions.get(letters)

    def heard(self, letters: str) -> None:
        """Note a valid request of its sender."""
        with self._lock:
            session = self._sessions.pop(letters, None)
            if session is not None:
                session.heard_s = self._clock.monotonic()
                self._sessions[letters] = session

    def end(self, letters: str) -> None:
        """End the session: its last file was received."""
        with self._lock:
            self._sessions.pop(letters, None)

    def _forget_old(self, now_s: float) -> None:
        while self._sessions:
            letters, session = next(iter(self._sessions.items()))
            if now_s - session.heard_s < SESSION_S:
                break
            del self._sessions[letters]


# -------------------------------------------------------------------------------------------------------- uploads


class AnnouncedFile(NamedTuple):
    """What the headers of an upload announce.

    code      what is wrong with it already; empty: nothing
    checksum  as the sender wrote it
    kept      called when the file is kept
    """

    code: str
    pi_id: str
    checksum: str
    field: str
    reply: Reply
    kept: Callable[[], None] = lambda: None


class Upload:
    """One upload in progress: BodyConsumer of the request, and Sink of the form in its body.

    Where it is known not to be stored, the rest is read away all the same: the senders look for an answer only after
    they have sent everything.
    """

    def __init__(self, end: FileDropTransport, announced: AnnouncedFile, request: Request, length: int) -> None:
        self._end, self._announced = end, announced
        self.is_proven = not announced.code
        self._peer = request.peer
        self._left = length
        self._code = announced.code
        self._form: Multipart | None = None
        self._coming: IncomingFile | None = None
        self._name = ""
        self._in_file = self._has_file = False
        if not self._code:
            self._open_form(request, length)

    def _open_form(self, request: Request, length: int) -> None:
        try:
            boundary = boundary_of(request.headers.get("content-type", ""))
        except BadMultipart as error:
            raise _no_form(error) from None
        if boundary is None or not length:
            self._code = MISSING  # no form with files: so there is no file
        else:
            self._form = Multipart(boundary, self)

    # ---------------------------------------------------------------------------------------------- the body

    def take(self, data: bytes) -> None:
        """Take a part of the body. With the last byte the file is kept, which may take a while."""
        self._left -= len(data)
        if self._form is None:
            return
        try:
            self._form.take(data)
            if not self._left:
                self._form.finish()
                self._form = None
                self._keep()
        except BadMultipart as error:
            raise _no_form(error) from None

    def finish(self) -> Response:
        """Return the response, once the whole body was received."""
        code, announced = self._code or FAILED, self._announced
        if code != STORED and announced.pi_id:
            log.info("%s: a file of %s was not taken: %s", self._peer, announced.pi_id, _WORDS[code])
        elif code != STORED:
            self._end.log_failure(self._peer, f"a file of nobody was not taken: {_WORDS[code]}")
        return Response(announced.reply(code, announced.checksum).encode("latin-1"))

    def abandon(self) -> None:
        """Delete what was received: the rest will not come."""
        if self._coming is not None:
            self._coming.abandon()
            self._coming = None

    # --------------------------------------------------------------------------------------------- the form

    def begin(self, part: FormPart) -> None:
        """Begin a part: check whether it is the file, and of a type that is accepted."""
        self._in_file = part.name == self._announced.field and bool(part.filename)
        if not self._in_file:
            return
        if self._has_file:
            raise BadMultipart("one file comes at a time")
        self._has_file = True
        self._name = plain_name(part.filename or "", self._end.types)
        if not self._name:
            self._fail(WRONG_TYPE)

    def data(self, data: bytes) -> None:
        """Write some content of a part."""
        if not self._in_file or self._code:
            return
        try:
            if self._coming is None:
                self._coming = self._end.received.begin(len(data) + self._left)
            if self._coming.size + len(data) > self._end.largest:
                raise HTTPError(413, f"A file has at most {self._end.largest} bytes ([drop] largest).", closes=True)
            self._coming.write(data)
        except OSError as error:
            self._cannot(error)

    def end(self) -> None:
        """End the part."""
        self._in_file = False

    def _keep(self) -> None:
        """Keep the file, which was received completely, if it is valid."""
        coming, announced = self._coming, self._announced
        if self._code:
            return
        if coming is None or not coming.size:
            self._fail(MISSING)
        elif not hmac.compare_digest(coming.checksum.encode(), announced.checksum.lower().encode("latin-1")):
            self._fail(FAILED)
        else:
            try:
                name, is_new = self._end.received.keep(coming, announced.pi_id, self._name)
                announced.kept()
            except OSError as error:
                self._cannot(error)
                return
            self._code = STORED
            log.info("%s: %s, %d bytes%s", self._peer, name, coming.size, "" if is_new else ", was here already")

    def _cannot(self, error: OSError) -> None:
        log.error("%s: a file of %s cannot be stored: %s", self._peer, self._announced.pi_id, error.strerror or error)
        self._fail(FAILED)

    def _fail(self, code: str) -> None:
        self._code = code
        self.abandon()


def _no_form(error: BadMultipart) -> HTTPError:
    return HTTPError(400, f"That does not read as a form: {error}.", "form", closes=True)


# ------------------------------------------------------------------------------------------------------- the end


class FileDropTransport(Transport):
    """The endpoints of the file drop."""

    def __init__(self, context: ServerContext, largest: int, types: Sequence[str]) -> None:
        """
        largest  bytes of a file at most
        types    accepted endings of names, like ".csv"
        """
        self._context = context
        self.largest, self.types = largest, tuple(types)
        self.received = FileStore(context.data)
        self._ids = PiIds(context.data, context.faults)
        self._sessions = UploadSessions(context.clock)
        most = largest + _FORM_BYTES
        self.endpoints = (
            Endpoint("GET", "/", self.open_first, claims=_is_senders),
            Endpoint("GET", "/upload/", self.open_second),
            Endpoint("POST", "/upload/WORD", _not_called, most, receive=self.upload),
            Endpoint("POST", "/register/", _not_called, most, receive=self.register),
        )

    def start(self) -> None:
        """Prepare the folder. Raises DiskError."""
        self.received.start()

    def stop(self, limit_s: float) -> str | None:
        """Do nothing: the web server has ended the transfers."""
        return None

    def log_failure(self, host: str, text: str) -> None:
        """Log what somebody without a known id has tried, once a minute at most."""
        self._context.throttle.log_failure(log, host, text)

    # ------------------------------------------------------------------------------------------- requests

    def open_first(self, request: Request) -> Response:
        """`GET /` of the first dialect."""
        code, pi_id = self._who(request)
        return Response(b"" if code else self._sessions.begin(pi_id, _first_dialect).encode())

    def open_second(self, request: Request) -> Response:
        """`GET /upload/` of the second."""
        code, pi_id = self._who(request)
        return Response((code or f"{NAME} {self._sessions.begin(pi_id, _second_dialect)}").encode())

    def upload(self, request: Request, length: int) -> Upload:
        """`POST /upload/LETTERS` of both: who takes the body."""
        letters = request.args[0]
        session = self._sessions.find(letters)
        count, checksum, number = (_header_of(request, name) for name in ("num_files", "checksum", "pi_num"))
        reply = session.reply if session else _second_dialect if number is not None else _first_dialect
        code, pi_id = self._who(request)
        if not code and (session is None or session.pi_id != pi_id):
            code = WRONG_ID
        if not code and not (checksum and count and (number or reply is _first_dialect)):
            code = MISSING

        def kept() -> None:
            if count == "1":
                self._sessions.end(letters)
            else:
                self._sessions.heard(letters)

        return Upload(self, AnnouncedFile(code, pi_id, checksum or "", FILE_FIELD, reply, kept), request, length)

    def register(self, request: Request, length: int) -> Upload:
        """`POST /register/`: who takes the body."""
        code, pi_id = self._who(request)
        checksum, email = _header_of(request, "checksum"), (_header_of(request, "email") or "")[:_LONGEST_EMAIL]
        if not code and not (checksum and email and email.isprintable()):  # it is shown in terminals
            code = MISSING

        def kept() -> None:
            with self._ids.changing() as ids:
                if pi_id in ids:
                    ids[pi_id] = ids[pi_id]._replace(email=email)

        return Upload(
            self, AnnouncedFile(code, pi_id, checksum or "", CONFIG_FIELD, _second_dialect, kept), request, length
        )

    def _who(self, request: Request) -> tuple[str, str]:
        """Return the error code for the id in the request (empty: none), and that id."""
        said = _header_of(request, "pi_id")
        if not said:
            return MISSING, ""
        pi_id = read_pi_id(said)
        try:
            is_known = bool(pi_id) and self._ids.find(pi_id) is not None
        except SettingsError as error:  # a list that does not read lets nobody in
            log.error("%s", error)
            is_known = False
        if is_known:
            return "", pi_id
        wrong_secrets.refuse_later(self._context, log, request.peer, "a Pi id of the file drop that is not known")
        return WRONG_ID, ""


def _header_of(request: Request, name: str) -> str | None:
    """Return a header of the senders, stripped; also with hyphens, since some proxies drop names with underscores."""
    said = request.headers.get(name, request.headers.get(name.replace("_", "-")))
    return said if said is None else said.strip()


def _is_senders(request: Request) -> bool:
    """Return True if a `GET /` is of a sender, and not of a browser that wants the page."""
    return _header_of(request, "pi_id") is not None or _header_of(request, "num_files") is not None


def _not_called(request: Request) -> Response:
    raise AssertionError("the receiver answers")


_WORDS = {
    WRONG_ID: "its id or its session is not known", MISSING: "a header or the file is missing or empty",
    WRONG_TYPE: "files of that type are not taken ([drop] types)", FAILED: "it was not stored, or is not what was sent",
}  # fmt: skip


def make_transport(context: ServerContext) -> FileDropTransport:
    """Make the transport of the server."""
    settings = context.settings
    return FileDropTransport(context, settings["drop", "largest"], settings["drop", "types"])
