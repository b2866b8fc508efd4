"""File drop of the older system "Access Lab": Pis upload files, each with its SHA-256, in either of two dialects.

    GET /             pi_id, num_files                     ->  20 letters, the name of a session; or an empty body
    POST /upload/...  pi_id, checksum, num_files; a file   ->  the checksum; or an empty body
    GET /upload/      pi_id                                ->  301 and the letters; or a code
    POST /upload/...  as above, and pi_num                 ->  200 stored, 401, 412, 415 or 500
    POST /register/   pi_id, email, checksum; a file       ->  the same codes

A file is written to the disk while it is received, and acknowledged after it is durable. An aborted transfer leaves
no file, and its session continues. The original senders need no change (docs/coming-from-file-drop.md).

The functions run in the threads of the web server. `_lock` guards the sessions and is held for one lookup or change.
Errors are answered as the original senders expect, with HTTP status 200 and an empty body (first dialect) or a code
(second dialect). Requests that no original sender makes get a normal HTTP status: 413 for a body that is too long, 400
for an invalid form.
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
SESSION_S = 3600.0  # time without an upload after which a session ends
MOST_SESSIONS = 256  # sessions per Pi; at the limit, its oldest session ends
_LETTERS = 20
_FORM_BYTES = 64 << 10  # maximum length of a body in addition to the file
_LONGEST_EMAIL = 254

Reply = Callable[[str, str], str]


def _first_dialect(code: str, checksum: str) -> str:
    return checksum if code == STORED else ""


def _second_dialect(code: str, checksum: str) -> str:
    return code


# ------------------------------------------------------------------------------------------------------- sessions


class UploadSession:
    """Session of one run of a sender.

    Args:
        pi_id: Id of the Pi.
        reply: Function that returns the response in the dialect of the sender.
        used_s: `Clock.monotonic()` of its last request.
    """

    def __init__(self, pi_id: str, reply: Reply, used_s: float) -> None:
        self.pi_id = pi_id
        self.reply = reply
        self.used_s = used_s


class UploadSessions:
    """Open sessions by their letters, ordered by the time of the last request.

    Args:
        clock: Clock for the sessions.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, UploadSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, pi_id: str, reply: Reply) -> str:
        """Begin a session and return its letters.

        Args:
            pi_id: Id of the Pi.
            reply: Function that returns the response in the dialect of the sender.
        """
        letters = "".join(secrets.choice(string.ascii_letters) for _ in range(_LETTERS))
        now_s = self._clock.monotonic()
        with self._lock:
            self._end_old(now_s)
            own = [name for name, session in self._sessions.items() if session.pi_id == pi_id]
            if len(own) >= MOST_SESSIONS:
                del self._sessions[own[0]]
            self._sessions[letters] = UploadSession(pi_id, reply, now_s)
        return letters

    def find(self, letters: str) -> UploadSession | None:
        """Return the open session with the letters `letters`, or None."""
        with self._lock:
            self._end_old(self._clock.monotonic())
            return self._sessions.get(letters)

    def touch(self, letters: str) -> None:
        """Extend the session with the letters `letters` after a valid request."""
        with self._lock:
            session = self._sessions.pop(letters, None)
            if session is not None:
                session.used_s = self._clock.monotonic()
                self._sessions[letters] = session

    def end(self, letters: str) -> None:
        """End the session with the letters `letters`, because its last file has been received."""
        with self._lock:
            self._sessions.pop(letters, None)

    def _end_old(self, now_s: float) -> None:
        while self._sessions:
            letters, session = next(iter(self._sessions.items()))
            if now_s - session.used_s < SESSION_S:
                break
            del self._sessions[letters]


# -------------------------------------------------------------------------------------------------------- uploads


class AnnouncedFile(NamedTuple):
    """Description of an uploaded file, from the headers of the request.

    Attributes:
        code: Error code if the headers are invalid, or an empty string.
        pi_id: Id of the Pi, or an empty string if it is not accepted.
        checksum: SHA-256 of the file, as written by the sender.
        field: Field of the form that contains the file.
        reply: Function that returns the response in the dialect of the sender.
        on_stored: Function that is called after the file has been stored.
    """

    code: str
    pi_id: str
    checksum: str
    field: str
    reply: Reply
    on_stored: Callable[[], None] = lambda: None


class Upload:
    """Upload in progress. It is the BodyConsumer of the request and the Sink of the form in its body.

    If the file will not be stored, the rest of the body is still received and discarded, because the senders read the
    response only after they have sent everything.

    Args:
        transport: Transport of the file drop.
        announced: Description of the file, from the headers.
        request: The request.
        length: Length of the body in bytes.
    """

    def __init__(self, transport: FileDropTransport, announced: AnnouncedFile, request: Request, length: int) -> None:
        self._transport, self._announced = transport, announced
        self.is_proven = not announced.code
        self._peer = request.peer
        self._left = length
        self._code = announced.code
        self._form: Multipart | None = None
        self._incoming: IncomingFile | None = None
        self._name = ""
        self._in_file = self._has_file = False
        if not self._code:
            self._open_form(request, length)

    def _open_form(self, request: Request, length: int) -> None:
        try:
            boundary = boundary_of(request.headers.get("content-type", ""))
        except BadMultipart as error:
            raise _invalid_form(error) from None
        if boundary is None or not length:
            self._code = MISSING  # the body is not a form with files
        else:
            self._form = Multipart(boundary, self)

    # ---------------------------------------------------------------------------------------------- the body

    def take(self, data: bytes) -> None:
        """Process `data`, the next block of the body. After the last block, store the file, which may take seconds.

        Raises:
            HTTPError: The form is invalid, or the file is too long.
        """
        self._left -= len(data)
        if self._form is None:
            return
        try:
            self._form.take(data)
            if not self._left:
                self._form.finish()
                self._form = None
                self._store()
        except BadMultipart as error:
            raise _invalid_form(error) from None

    def finish(self) -> Response:
        """Return the response, after the complete body was received."""
        code, announced = self._code or FAILED, self._announced
        if code != STORED and announced.pi_id:
            log.info("%s: a file of %s was not accepted: %s", self._peer, announced.pi_id, _REASONS[code])
        elif code != STORED:
            self._transport.log_failure(self._peer, f"a file of an unknown Pi was not accepted: {_REASONS[code]}")
        return Response(announced.reply(code, announced.checksum).encode("latin-1"))

    def abandon(self) -> None:
        """Delete what was received, because the rest of the body will not arrive."""
        if self._incoming is not None:
            self._incoming.abandon()
            self._incoming = None

    # --------------------------------------------------------------------------------------------- the form

    def begin(self, part: FormPart) -> None:
        """Begin the part `part`. Check whether it is the file, and whether the type of the file is accepted.

        Raises:
            BadMultipart: The form contains a second file.
        """
        self._in_file = part.name == self._announced.field and bool(part.filename)
        if not self._in_file:
            return
        if self._has_file:
            raise BadMultipart("a request may contain only one file")
        self._has_file = True
        self._name = plain_name(part.filename or "", self._transport.types)
        if not self._name:
            self._fail(WRONG_TYPE)

    def data(self, data: bytes) -> None:
        """Write `data`, the next block of the current part. Raise HTTPError 413 if the file is too long."""
        if not self._in_file or self._code:
            return
        try:
            if self._incoming is None:
                self._incoming = self._transport.received.begin(len(data) + self._left)
            if self._incoming.size + len(data) > self._transport.largest:
                text = f"A file may have at most {self._transport.largest} bytes ([drop] largest)."
                raise HTTPError(413, text, closes=True)
            self._incoming.write(data)
        except OSError as error:
            self._report_error(error)

    def end(self) -> None:
        """End the current part."""
        self._in_file = False

    def _store(self) -> None:
        """Store the completely received file if it is valid."""
        incoming, announced = self._incoming, self._announced
        if self._code:
            return
        if incoming is None or not incoming.size:
            self._fail(MISSING)
        elif not hmac.compare_digest(incoming.checksum.encode(), announced.checksum.lower().encode("latin-1")):
            self._fail(FAILED)
        else:
            try:
                name, is_new = self._transport.received.keep(incoming, announced.pi_id, self._name)
                announced.on_stored()
            except OSError as error:
                self._report_error(error)
                return
            self._code = STORED
            log.info(
                "%s: received %s, %d bytes%s", self._peer, name, incoming.size, "" if is_new else "; already stored"
            )

    def _report_error(self, error: OSError) -> None:
        log.error("%s: a file of %s cannot be stored: %s", self._peer, self._announced.pi_id, error.strerror or error)
        self._fail(FAILED)

    def _fail(self, code: str) -> None:
        self._code = code
        self.abandon()


def _invalid_form(error: BadMultipart) -> HTTPError:
    return HTTPError(400, f"The body is not a valid form: {error}.", "form", closes=True)


# ----------------------------------------------------------------------------------------------------- transport


class FileDropTransport(Transport):
    """Transport with the endpoints of the file drop.

    Args:
        context: Context of the server.
        largest: Maximum length of a file in bytes.
        types: Accepted file name extensions, such as ".csv".
    """

    def __init__(self, context: ServerContext, largest: int, types: Sequence[str]) -> None:
        self._context = context
        self.largest, self.types = largest, tuple(types)
        self.received = FileStore(context.data)
        self._ids = PiIds(context.data, context.faults)
        self._sessions = UploadSessions(context.clock)
        body_bytes = largest + _FORM_BYTES
        self.endpoints = (
            Endpoint("GET", "/", self.open_first, claims=_is_from_sender),
            Endpoint("GET", "/upload/", self.open_second),
            Endpoint("POST", "/upload/WORD", _not_called, body_bytes, receive=self.upload),
            Endpoint("POST", "/register/", _not_called, body_bytes, receive=self.register),
        )

    def start(self) -> None:
        """Prepare the folder. Raise DiskError if that fails."""
        self.received.start()

    def stop(self, limit_s: float) -> str | None:
        """Do nothing and return None, since the web server has already ended the transfers."""
        return None

    def log_failure(self, host: str, text: str) -> None:
        """Log a failed attempt of a client without an accepted id, at most once per minute.

        Args:
            host: Address of the client.
            text: Description of the attempt.
        """
        self._context.throttle.log_failure(log, host, text)

    # ------------------------------------------------------------------------------------------- requests

    def open_first(self, request: Request) -> Response:
        """Open a session and return the response to `request`: `GET /` of the first dialect."""
        code, pi_id = self._check_id(request)
        return Response(b"" if code else self._sessions.begin(pi_id, _first_dialect).encode())

    def open_second(self, request: Request) -> Response:
        """Open a session and return the response to `request`: `GET /upload/` of the second dialect."""
        code, pi_id = self._check_id(request)
        return Response((code or f"{NAME} {self._sessions.begin(pi_id, _second_dialect)}").encode())

    def upload(self, request: Request, length: int) -> Upload:
        """Return the consumer for the body of `request`, which has `length` bytes.

        This is `POST /upload/LETTERS` of both dialects.
        """
        letters = request.args[0]
        session = self._sessions.find(letters)
        count, checksum, number = (_header_of(request, name) for name in ("num_files", "checksum", "pi_num"))
        reply = session.reply if session else _second_dialect if number is not None else _first_dialect
        code, pi_id = self._check_id(request)
        if not code and (session is None or session.pi_id != pi_id):
            code = WRONG_ID
        if not code and not (checksum and count and (number or reply is _first_dialect)):
            code = MISSING

        def on_stored() -> None:
            if count == "1":
                self._sessions.end(letters)
            else:
                self._sessions.touch(letters)

        return Upload(self, AnnouncedFile(code, pi_id, checksum or "", FILE_FIELD, reply, on_stored), request, length)

    def register(self, request: Request, length: int) -> Upload:
        """Return the consumer for the body of `request`, which has `length` bytes: `POST /register/`."""
        code, pi_id = self._check_id(request)
        checksum, email = _header_of(request, "checksum"), (_header_of(request, "email") or "")[:_LONGEST_EMAIL]
        if not code and not (checksum and email and email.isprintable()):  # the address is shown in terminals
            code = MISSING

        def on_stored() -> None:
            with self._ids.changing() as ids:
                if pi_id in ids:
                    ids[pi_id] = ids[pi_id]._replace(email=email)

        return Upload(
            self, AnnouncedFile(code, pi_id, checksum or "", CONFIG_FIELD, _second_dialect, on_stored), request, length
        )

    def _check_id(self, request: Request) -> tuple[str, str]:
        """Return `("", id)` if the Pi id in the request is accepted. Otherwise return an error code and `""`."""
        header = _header_of(request, "pi_id")
        if not header:
            return MISSING, ""
        pi_id = read_pi_id(header)
        try:
            is_known = bool(pi_id) and self._ids.find(pi_id) is not None
        except SettingsError as error:  # if the list cannot be read, no Pi is accepted
            log.error("%s", error)
            is_known = False
        if is_known:
            return "", pi_id
        wrong_secrets.refuse_later(self._context, log, request.peer, "a file drop request with an unknown Pi id")
        return WRONG_ID, ""


def _header_of(request: Request, name: str) -> str | None:
    """Return the stripped value of a header of the senders, or None if it is missing.

    A name with hyphens is accepted too, since some proxies remove headers whose names contain underscores.
    """
    value = request.headers.get(name, request.headers.get(name.replace("_", "-")))
    return value if value is None else value.strip()


def _is_from_sender(request: Request) -> bool:
    """Return True if a `GET /` request is from a sender, not from a browser that requests the page."""
    return _header_of(request, "pi_id") is not None or _header_of(request, "num_files") is not None


def _not_called(request: Request) -> Response:
    raise AssertionError("the body consumer answers")


_REASONS = {
    WRONG_ID: "unknown Pi id or session", MISSING: "a header or the file is missing or empty",
    WRONG_TYPE: "this file type is not accepted ([drop] types)", FAILED: "not stored, or the checksum does not match",
}  # fmt: skip


def make_transport(context: ServerContext) -> FileDropTransport:
    """Return the transport of the server with the context `context`."""
    settings = context.settings
    return FileDropTransport(context, settings["drop", "largest"], settings["drop", "types"])
