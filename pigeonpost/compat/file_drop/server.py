"""The road of "Access Lab": Pis drop files here, each with its SHA-256. Both dialects; their senders need no change.

Runs on: server.  Reached from: server.py, which makes the end; webui, which brings the requests.
Hands on to: files/multipart, which reads the form; files/received, which keeps the file.
Threads: those of the web server, one a connection. `_lock` guards the sessions; held for one look-up or change.
Errors: answered as those senders know it, with HTTP status 200: in the first dialect an empty body, in the second a
  code. What no sender of theirs does gets the status that fits: 413 for too much, 400 for a form that is none.

    GET /             pi_id, num_files                     ->  20 letters, the name of a session; or nothing
    POST /upload/...  pi_id, checksum, num_files; a file   ->  the checksum; or nothing
    GET /upload/      pi_id                                ->  301 and the letters; or a code
    POST /upload/...  the same, and pi_num                 ->  200 stored, 401, 412, 415 or 500
    POST /register/   pi_id, email, checksum; a file       ->  the same codes

The file goes to the disk while it comes, and is answered for when it is there durably. A transfer that is cut leaves
nothing, and its session goes on. docs/coming-from-file-drop.md tells it to people.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import string
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

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
    """One run of a sender: whose it is, in which dialect, and when it was last heard."""

    def __init__(self, pi_id: str, reply: Reply, heard_s: float) -> None:
        self.pi_id = pi_id
        self.reply = reply
        self.heard_s = heard_s


class UploadSessions:
    """The sessions that are open, by their letters; the longest silent first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, UploadSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, pi_id: str, reply: Reply) -> str:
        """A session under a new name."""
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
        """The session of that name, while it is open."""
        with self._lock:
            self._forget_old(self._clock.monotonic())
            return self._sessions.get(letters)

    def heard(self, letters: str) -> None:
        """Its sender has sent something that was right."""
        with self._lock:
            session = self._sessions.pop(letters, None)
            if session is not None:
                session.heard_s = self._clock.monotonic()
                self._sessions[letters] = session

    def end(self, letters: str) -> None:
        """Its last file has come."""
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
    """What the head of an upload says.

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
    """One upload on its way: takes the body (web.head.Receiver), and the parts of the form in it (multipart.Sink).

    Where it is known not to be stored, the rest is read away all the same: the senders look for an answer only after
    they have sent everything.
    """

    def __init__(self, end: FileDropTransport, announced: AnnouncedFile, request: Request, length: int) -> None:
        self._end, self._announced = end, announced
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
        """As BodyConsumer.finish."""
        code, announced = self._code or FAILED, self._announced
        if code != STORED:
            log.info("%s: a file of %s was not taken: %s", self._peer, announced.pi_id or "nobody", _WORDS[code])
        return Response(announced.reply(code, announced.checksum).encode("latin-1"))

    def abandon(self) -> None:
        """As BodyConsumer.abandon."""
        if self._coming is not None:
            self._coming.abandon()
            self._coming = None

    # --------------------------------------------------------------------------------------------- the form

    def begin(self, part: FormPart) -> None:
        """As Sink.begin: is it the file, and do we take such files?"""
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
        """As Sink.data."""
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
        """As Sink.end."""
        self._in_file = False

    def _keep(self) -> None:
        """All has come: keep the file, if it is right."""
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
    """The addresses of the road."""

    def __init__(self, data: str, clock: Clock, largest: int, types: Sequence[str]) -> None:
        """
        data     the server's data folder
        largest  bytes of a file at most
        types    endings of the names that are taken, as ".csv"
        """
        self.largest, self.types = largest, tuple(types)
        self.received = FileStore(data)
        self._ids = PiIds(data)
        self._sessions = UploadSessions(clock)
        most = largest + _FORM_BYTES
        self.endpoints = (
            Endpoint("GET", "/", self.open_first, claims=_is_senders),
            Endpoint("GET", "/upload/", self.open_second),
            Endpoint("POST", "/upload/WORD", _not_called, most, receive=self.upload),
            Endpoint("POST", "/register/", _not_called, most, receive=self.register),
        )

    def start(self) -> None:
        """As Transport.start."""
        self.received.start()

    def stop(self, limit_s: float) -> str | None:
        """As Transport.stop; the web server has ended the transfers."""
        return None

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
        count, checksum, number = (_said(request, name) for name in ("num_files", "checksum", "pi_num"))
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
        checksum, email = _said(request, "checksum"), (_said(request, "email") or "")[:_LONGEST_EMAIL]
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
        """What is wrong with the id that the request names (empty: nothing), and that id."""
        said = _said(request, "pi_id")
        if not said:
            return MISSING, ""
        pi_id = read_pi_id(said)
        try:
            is_known = bool(pi_id) and self._ids.find(pi_id) is not None
        except SettingsError as error:  # a list that does not read lets nobody in
            log.error("%s", error)
            is_known = False
        return ("", pi_id) if is_known else (WRONG_ID, "")


def _said(request: Request, name: str) -> str | None:
    """A header of theirs, without blanks; also with hyphens, since some proxies drop names with underscores."""
    said = request.headers.get(name, request.headers.get(name.replace("_", "-")))
    return said if said is None else said.strip()


def _is_senders(request: Request) -> bool:
    """Whether a `GET /` is a sender's, and not somebody's who wants to see the page."""
    return _said(request, "pi_id") is not None or _said(request, "num_files") is not None


def _not_called(request: Request) -> Response:
    raise AssertionError("the receiver answers")


_WORDS = {
    WRONG_ID: "its id or its session is not known", MISSING: "a header or the file is missing or empty",
    WRONG_TYPE: "files of that type are not taken ([drop] types)", FAILED: "it was not stored, or is not what was sent",
}  # fmt: skip


def make_server_end(context: ServerContext) -> FileDropTransport:
    """The end, for server.py."""
    settings = context.settings
    return FileDropTransport(context.data, context.clock, settings["drop", "largest"], settings["drop", "types"])
