"""HTTP requests and responses without a socket: strict parsing of heads, forms and ranges; response headers.

Errors: HTTPError, with the status of the response. Its text never repeats what the client sent, but for a host name of
letters, digits, dots and hyphens (web/host_names.py).

Where RFC 9112 lets a recipient guess (bare LF, folded lines, space before a colon, two lengths), this refuses: requests
that two programs read differently are how requests are smuggled past one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from pigeonpost.core.errors import PigeonpostError

HEAD_BYTES = 8192  # a head at most, its empty line included
MOST_HEADERS = 64
BODY_BYTES = 64 << 10  # a body at most, where a route does not say otherwise
MOST_FIELDS = 64  # of a query or a form

TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"


class HTTPError(PigeonpostError, ValueError):
    """A request that is refused: status of the response, a code for programs, and a text for people.

    `closes`: the connection ends with the answer, since what follows on it cannot be trusted to be a request.
    """

    def __init__(
        self, status: int, text: str, code: str = "", headers: Mapping[str, str] | None = None, closes: bool = False
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.code = code or HTTPStatus(status).phrase.lower().replace(" ", "-")
        self.headers: Mapping[str, str] = headers or {}
        self.closes = closes


class Request:
    """A decoded request. Names of headers are in lower case; `body` is empty until it was received."""

    def __init__(self, method: str, target: str, version: str, headers: Mapping[str, str]) -> None:
        self.method = method
        self.path, _, self.query_text = target.partition("?")
        self.version = version
        self.headers = headers
        self.body = b""
        self.peer = ""  # the client's address, without its port; also where it comes through a trusted proxy
        self.proxy = ""  # the address of that proxy
        self.is_secure = False  # it came through TLS, here or at that proxy
        self.asked_host = ""  # Host as the client sent it to that proxy, in lower case; empty: the proxy does not tell
        self.prefix = ""  # the path below which the client has this server, as /sensors
        self.endpoint: Endpoint | None = None  # that it is meant for, once it was looked for
        self.args: Sequence[str] = ()  # what that address's pattern found in the path
        self.consumer: BodyConsumer | None = None  # who took the body as it came; `body` is empty then
        self._query: Mapping[str, str] | None = None

    @property
    def query(self) -> Mapping[str, str]:
        """The fields of the query string. Raises HTTPError when they are invalid."""
        if self._query is None:
            self._query = parse_form(self.query_text)
        return self._query

    @property
    def site(self) -> str:
        """The address of this server as the client wrote it, without a slash at its end; for texts."""
        host = self.asked_host or self.headers.get("host", "localhost")
        return f"{'https' if self.is_secure else 'http'}://{host}{self.prefix}"

    @property
    def wants_html(self) -> bool:
        """Whether the client accepts HTML, as browsers do; curl and scripts get text for a terminal."""
        return "text/html" in self.headers.get("accept", "")

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to go on with this connection."""
        said = self.headers.get("connection", "").lower()
        return "close" not in said if self.version == "1.1" else "keep-alive" in said


class FilePart(NamedTuple):
    """`length` bytes of an open file from `start` on; the sender closes it."""

    fd: int
    start: int
    length: int


class Response(NamedTuple):
    """The response to a request.

    body   all of it; or empty, where `file` has it
    live   takes the connection over once the head is sent: it goes on as a stream of events
    """

    body: bytes = b""
    kind: str = TEXT
    status: int = 200
    headers: Mapping[str, str] = {}
    file: FilePart | None = None
    live: Callable[..., object] | None = None


class BodyConsumer(Protocol):
    """Takes a long body as it comes, so that none is held in memory. Belongs to the thread of its connection.

    is_proven  who sends it has shown the right token or id: the connection gives way to others last
    """

    is_proven: bool

    def take(self, data: bytes) -> None:
        """Take more of the body. Raises HTTPError: the rest is not wanted."""

    def finish(self) -> Response:
        """Return the response, once all of it has come. Raises HTTPError."""

    def abandon(self) -> None:
        """Discard everything: the rest will not come."""


class Endpoint(NamedTuple):
    """An address for programs, which does its own access control.

    path        NAME in it stands for a node's name, WORD for letters, digits, dots, _ and -; request.args has them
    answer      makes the answer; not called where `receive` is given: then `finish` of its BodyConsumer is
    body_bytes  a body at most
    claims      where a page or another endpoint has the address too: whether this request is meant for this one
    receive     (request, length of the body) gives who takes the body as it comes; it may raise HTTPError
    """

    method: str
    path: str
    answer: Callable[[Request], Response]
    body_bytes: int = BODY_BYTES
    claims: Callable[[Request], bool] = lambda request: True
    receive: Callable[[Request, int], BodyConsumer] | None = None


# ------------------------------------------------------------------------------------------------------------ head


def head_end(data: bytes | bytearray) -> int:
    """Return the length of the head in `data`, with its empty line; 0: it is incomplete.

    Raises HTTPError as soon as it can no longer become valid, so that no client waits for a deadline in vain.
    """
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES) + 4
    head = data[:end] if end > 3 else data[:HEAD_BYTES]
    if _has_stray_end(head):
        raise HTTPError(400, "Lines end with CR LF, and neither stands alone.", closes=True)
    if end > 3:
        return end
    line, crlf, _ = head.partition(b"\r\n")
    if crlf:
        _request_line(line.decode("latin-1"))
    if len(data) >= HEAD_BYTES:
        raise _too_long(line.decode("latin-1"), bool(crlf))
    return 0


def parse_head(head: bytes) -> Request:
    """Return the request in a complete head, as `head_end` found it. Raises HTTPError for all that is not valid."""
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, version = _request_line(first)
    if len(lines) > MOST_HEADERS:
        raise HTTPError(431, f"A request has at most {MOST_HEADERS} headers.", closes=True)
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER(line)
        if not found:
            raise HTTPError(400, "A header is written `Name: value`, in one line.", closes=True)
        name, value = found[1].lower(), found[2].rstrip(" \t")
        if name in headers:
            if name in _ONCE:
                raise HTTPError(400, "A header stands twice that may stand once.", closes=True)
            value = f"{headers[name]}, {value}"
        headers[name] = value
    if version == "1.1" and "host" not in headers:
        raise HTTPError(400, "A request names its Host.", closes=True)
    return Request(method, target, version, headers)


def body_length(request: Request, most: int) -> int:
    """Return the length of the body, at most `most`. Raises HTTPError before any of it is read."""
    said = request.headers.get("content-length")
    if "transfer-encoding" in request.headers:
        if said is not None:
            raise HTTPError(400, "Content-Length or Transfer-Encoding, not both.", closes=True)
        raise HTTPError(501, "Bodies come with a Content-Length.", closes=True)
    if said is not None and not _LENGTH(said):
        raise HTTPError(400, "Content-Length is a whole number.", closes=True)
    length = int(said or 0)
    if length > most:
        raise HTTPError(413, f"The body has at most {most} bytes.", closes=True)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPError(415, "Bodies come as they are, not compressed.", closes=True)
    if said is None and request.method == "POST":
        raise HTTPError(411, "A POST says how long it is: Content-Length.", closes=True)
    return length


def _has_stray_end(head: bytes | bytearray) -> bool:
    """Return True if there is a CR or an LF alone; a CR at the very end may still get its LF.

    Counted, not searched by a pattern, which takes 50 times as long (measured): it is done again whenever a byte comes.
    """
    pairs = head.count(b"\r\n")
    return head.count(b"\n") != pairs or head.count(b"\r") - head.endswith(b"\r") != pairs


def _request_line(line: str) -> tuple[str, str, str]:
    """Return method, target and version."""
    found = _REQUEST(line)
    if not found:
        raise HTTPError(400, "A request starts like GET /path HTTP/1.1.", closes=True)
    method, target, version = found.groups()
    if version not in ("1.0", "1.1"):
        if version.startswith("0"):
            raise HTTPError(400, "HTTP/1.0 and HTTP/1.1 are spoken here.", closes=True)
        raise HTTPError(505, "HTTP/1.0 and HTTP/1.1 are spoken here.", closes=True)
    if not target.startswith("/"):
        raise HTTPError(400, "A request names a path, which starts with a slash.", closes=True)
    return method, target, version


def _too_long(line: str, is_whole: bool) -> HTTPError:
    if not is_whole and not _METHOD(line):
        return HTTPError(400, "A request starts like GET /path HTTP/1.1.", closes=True)
    if not is_whole:
        return HTTPError(414, f"The address is too long; a head has at most {HEAD_BYTES} bytes.", closes=True)
    return HTTPError(431, f"A request's head has at most {HEAD_BYTES} bytes.", closes=True)


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_METHOD = re.compile(_TOKEN + r"{1,32} ").match
# In the target all that a URI may have (RFC 3986, section 2), but no `#`: not " < > \\ ^ ` { | }.
_REQUEST = re.compile(rf"({_TOKEN}{{1,32}}) ([!$-;=?-\[\]_a-z~]+) HTTP/([0-9]{{1,3}}\.[0-9]{{1,9}})").fullmatch
# Possessive (*+): blanks that are given back one by one, and tried again as the value, took 1 s for a head (measured).
_HEADER = re.compile(rf"({_TOKEN}+):[ \t]*+([\t\x20-\x7e\x80-\xff]*)").fullmatch
_LENGTH = re.compile(r"[0-9]{1,18}").fullmatch
_ONCE = frozenset((
    "authorization", "content-encoding", "content-length", "content-type", "cookie", "expect", "host", "if-range",
    "last-event-id", "origin", "range", "sec-fetch-site", "transfer-encoding", "x-csrf-token",
))  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- answers

# Everything comes from here and nothing runs but our files: what slips through the escaping finds nothing to call.
SAFE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

# ---------------------------------------------------------------------------------------------------------- fields


def parse_form(text: str) -> dict[str, str]:
    """Return the fields of a query or form (application/x-www-form-urlencoded). A name twice: HTTPError 400."""
    found: dict[str, str] = {}
    parts = text.split("&") if text else []
    if len(parts) > MOST_FIELDS:
        raise HTTPError(400, f"At most {MOST_FIELDS} fields.")
    for part in parts:
        name, _, value = part.partition("=")
        name, value = _unquoted(name), _unquoted(value)
        if name in found:
            raise HTTPError(400, "A field stands twice that may stand once.")
        found[name] = value
    return found


def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a posted form. Raises HTTPError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not request.body:
        return {}
    if kind != "application/x-www-form-urlencoded":
        raise HTTPError(415, "A form comes as application/x-www-form-urlencoded.")
    try:
        return parse_form(request.body.decode("ascii"))
    except UnicodeDecodeError:
        raise HTTPError(400, "A form is ASCII, other letters as %XX.") from None


def _unquoted(text: str) -> str:
    if _BAD_PERCENT(text):
        raise HTTPError(400, "A percent sign is followed by two hex digits.")
    try:
        plain = unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise HTTPError(400, "Fields are UTF-8.") from None
    if "\0" in plain:
        raise HTTPError(400, "A field has a NUL in it.")
    return plain


_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})").search

# ---------------------------------------------------------------------------------------------------------- ranges


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the (start, count) that a Range header requests of `size` bytes; None: all of them.

    Several ranges in one request are answered with all (RFC 9110, section 14.2: a server may ignore the header).
    Raises HTTPError 416 where nothing of the range is there.
    """
    found = _RANGE(text)
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    else:
        start, end = max(0, size - int(last)), size - 1
    if start > end:
        raise HTTPError(416, f"There are {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return start, end - start + 1


_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})").fullmatch
