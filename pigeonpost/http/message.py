"""HTTP requests and responses without a socket: strict parsers for heads, forms and ranges, and response headers.

Errors: HTTPError, with the status of the response. The text of an error never repeats input of the client, except a
host name that consists of letters, digits, dots and hyphens (web/host_names.py).

RFC 9112 lets a recipient tolerate some invalid requests: a bare LF, folded lines, a space before a colon, two lengths.
This module rejects them, because a request that two programs interpret differently allows request smuggling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from pigeonpost.core.errors import PigeonpostError

HEAD_BYTES = 8192  # maximum length of a head, including its empty line
MOST_HEADERS = 64
BODY_BYTES = 64 << 10  # maximum length of a body, unless the route has its own limit
MOST_FIELDS = 64  # maximum number of fields in a query or a form

TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"


class HTTPError(PigeonpostError, ValueError):
    """Error that is sent to the client as the response to its request.

    Args:
        status: Status of the response.
        text: Message for people, one or more sentences. A line that starts with four spaces is a command.
        code: Code for programs; by default, the reason phrase of the status in lower case with hyphens.
        headers: Additional headers of the response.
        closes: True if the connection must be closed after the response, because the bytes that follow may not be the
            start of a request.
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
    """A parsed HTTP request.

    Args:
        method: Method, such as `GET`.
        target: Path and query, as received.
        version: HTTP version: `1.0` or `1.1`.
        headers: Values of the headers by name in lower case.
    """

    def __init__(self, method: str, target: str, version: str, headers: Mapping[str, str]) -> None:
        self.method = method
        self.path, _, self.query_text = target.partition("?")
        self.version = version
        self.headers = headers
        self.body = b""  # empty until the body has been received; always empty if a consumer receives it
        self.peer = ""  # the client's address without the port, as forwarded by a trusted proxy if there is one
        self.proxy = ""  # the address of that proxy, or an empty string
        self.is_secure = False  # True if the client used TLS, to this server or to that proxy
        self.forwarded_host = ""  # Host in the client's request to that proxy, in lower case, or an empty string
        self.prefix = ""  # the path below which the client reaches this server, such as /sensors
        self.endpoint: Endpoint | None = None  # the endpoint of this path, after the lookup
        self.args: Sequence[str] = ()  # the parts of the path that match the placeholders of the endpoint
        self.consumer: BodyConsumer | None = None  # receives a long body block by block
        self._query: Mapping[str, str] | None = None

    @property
    def query(self) -> Mapping[str, str]:
        """The fields of the query string by name. If they are invalid, the access raises HTTPError."""
        if self._query is None:
            self._query = parse_form(self.query_text)
        return self._query

    @property
    def site(self) -> str:
        """The URL of this server as the client uses it, without a slash at the end; for messages."""
        host = self.forwarded_host or self.headers.get("host", "localhost")
        return f"{'https' if self.is_secure else 'http'}://{host}{self.prefix}"

    @property
    def wants_html(self) -> bool:
        """True if the client accepts HTML, as browsers do. Other clients, such as curl, get plain text."""
        return "text/html" in self.headers.get("accept", "")

    @property
    def keeps_alive(self) -> bool:
        """True if the client wants to send further requests on this connection."""
        option = self.headers.get("connection", "").lower()
        return "close" not in option if self.version == "1.1" else "keep-alive" in option


class FilePart(NamedTuple):
    """Part of an open file that is sent as a body. The sender of the response closes the file.

    Attributes:
        fd: File descriptor.
        start: Offset of the first byte.
        length: Number of bytes.
    """

    fd: int
    start: int
    length: int


class Response(NamedTuple):
    """Response to a request.

    Attributes:
        body: The complete body, or empty if it is in `file`.
        kind: Content-Type.
        status: Status code.
        headers: Additional headers.
        file: Part of a file that is the body, or None.
        live: Function that takes over the connection as an event stream after the head has been sent, or None.
    """

    body: bytes = b""
    kind: str = TEXT
    status: int = 200
    headers: Mapping[str, str] = {}
    file: FilePart | None = None
    live: Callable[..., object] | None = None


class BodyConsumer(Protocol):
    """Receiver of a long body, which is passed on block by block and is never in memory completely.

    A consumer belongs to the thread of its connection.

    Attributes:
        is_proven: True if the client has sent a valid token or id. Such a connection is closed last when too many
            connections are open.
    """

    is_proven: bool

    def take(self, data: bytes) -> None:
        """Process `data`, the next block of the body. Raise HTTPError if the rest of the body is not accepted."""

    def finish(self) -> Response:
        """Return the response, after the complete body was received. Raise HTTPError if the body is not accepted."""

    def abandon(self) -> None:
        """Discard what was received, because the rest of the body will not arrive."""


class Endpoint(NamedTuple):
    """Path that programs request. Its handler does its own access control.

    Attributes:
        method: HTTP method.
        path: Path with placeholders. NAME matches the name of a node; WORD matches letters, digits, dots, `_` and `-`.
            The matched parts are in `Request.args`.
        answer: Function that returns the response. It is not called if `receive` is set; the response is then the
            result of `BodyConsumer.finish`.
        body_bytes: Maximum length of a body.
        claims: Function that returns True if a request is for this endpoint. It is needed if a page or another endpoint
            has the same path.
        receive: Function that returns the consumer of a body, called with the request and the length of the body
            (its maximum length if it is chunked). It may raise HTTPError.
        takes_encoded: True if the body may be chunked, and compressed by gzip. This requires `receive`, whose consumer
            decompresses the body.
        refusal: Function that returns the response for an error, or None for the usual one.
    """

    method: str
    path: str
    answer: Callable[[Request], Response]
    body_bytes: int = BODY_BYTES
    claims: Callable[[Request], bool] = lambda request: True
    receive: Callable[[Request, int], BodyConsumer] | None = None
    takes_encoded: bool = False
    refusal: Callable[[HTTPError], Response] | None = None


# ------------------------------------------------------------------------------------------------------------ head


def head_end(data: bytes | bytearray) -> int:
    """Return the length of the head at the start of `data`, including its empty line, or 0 if it is incomplete.

    Raises:
        HTTPError: The head is invalid. This is raised as early as possible, so that the client need not wait for the
            deadline.
    """
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES) + 4
    head = data[:end] if end > 3 else data[:HEAD_BYTES]
    if _has_stray_end(head):
        raise HTTPError(400, "Each line of the head must end with CR LF.", closes=True)
    if end > 3:
        return end
    line, crlf, _ = head.partition(b"\r\n")
    if crlf:
        _request_line(line.decode("latin-1"))
    if len(data) >= HEAD_BYTES:
        raise _too_long(line.decode("latin-1"), bool(crlf))
    return 0


def parse_head(head: bytes) -> Request:
    """Return the request in `head`, a complete head as found by `head_end`. Raise HTTPError if it is invalid."""
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, version = _request_line(first)
    if len(lines) > MOST_HEADERS:
        raise HTTPError(431, f"The request has more than {MOST_HEADERS} headers.", closes=True)
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER(line)
        if not found:
            raise HTTPError(400, "Each header must be one line of the form `Name: value`.", closes=True)
        name, value = found[1].lower(), found[2].rstrip(" \t")
        if name in headers:
            if name in _ONCE:
                raise HTTPError(400, "A header occurs twice that may occur only once.", closes=True)
            value = f"{headers[name]}, {value}"
        headers[name] = value
    if version == "1.1" and "host" not in headers:
        raise HTTPError(400, "The request has no Host header.", closes=True)
    return Request(method, target, version, headers)


def body_length(request: Request, most: int, takes_encoded: bool = False) -> int | None:
    """Return the length in bytes of the body of `request`, or None if it is chunked.

    Args:
        request: The request.
        most: Maximum length.
        takes_encoded: True if the body may be chunked, and compressed by gzip.

    Raises:
        HTTPError: The length is missing, invalid or too large. None of the body has been read then.
    """
    header = request.headers.get("content-length")
    coding = request.headers.get("transfer-encoding")
    if coding is not None:
        if header is not None:
            raise HTTPError(400, "Send Content-Length or Transfer-Encoding, not both.", closes=True)
        if not takes_encoded or coding.lower() != "chunked" or request.version != "1.1":
            raise HTTPError(501, "This Transfer-Encoding is not supported: send a Content-Length.", closes=True)
    if header is not None and not _LENGTH(header):
        raise HTTPError(400, "Content-Length must be a whole number.", closes=True)
    length = int(header or 0)
    if length > most:
        raise HTTPError(413, f"The body may have at most {most} bytes.", closes=True)
    compression = request.headers.get("content-encoding", "identity").lower()
    has_body = length > 0 or coding is not None  # InfluxDB's client sends the header without a body too
    if has_body and compression != "identity" and not (takes_encoded and compression == "gzip"):
        raise HTTPError(
            415, "Compressed bodies are not supported: send the body without Content-Encoding.", closes=True
        )
    if coding is not None:
        return None
    if header is None and request.method == "POST":
        raise HTTPError(411, "A POST request must have a Content-Length.", closes=True)
    return length


def _has_stray_end(head: bytes | bytearray) -> bool:
    """Return True if there is a CR without an LF, or an LF without a CR.

    A CR at the end of `head` is accepted, because its LF may not have been received yet. This function is called after
    each read. It counts characters, because a regular expression takes 50 times as long (measured).
    """
    pairs = head.count(b"\r\n")
    return head.count(b"\n") != pairs or head.count(b"\r") - head.endswith(b"\r") != pairs


def _request_line(line: str) -> tuple[str, str, str]:
    """Return method, target and version."""
    found = _REQUEST(line)
    if not found:
        raise HTTPError(400, _BAD_REQUEST_LINE, closes=True)
    method, target, version = found.groups()
    if version not in ("1.0", "1.1"):
        if version.startswith("0"):
            raise HTTPError(400, "This server supports HTTP/1.0 and HTTP/1.1 only.", closes=True)
        raise HTTPError(505, "This server supports HTTP/1.0 and HTTP/1.1 only.", closes=True)
    if not target.startswith("/"):
        raise HTTPError(400, "The request must contain a path that starts with a slash.", closes=True)
    return method, target, version


def _too_long(line: str, is_complete: bool) -> HTTPError:
    """Return the error for a head that is too long. `line` is its first line, complete or not."""
    if not is_complete and not _METHOD(line):
        return HTTPError(400, _BAD_REQUEST_LINE, closes=True)
    if not is_complete:
        return HTTPError(414, f"The address is too long: the head may have at most {HEAD_BYTES} bytes.", closes=True)
    return HTTPError(431, f"The head of the request may have at most {HEAD_BYTES} bytes.", closes=True)


_BAD_REQUEST_LINE = "The first line of a request must look like this: GET /path HTTP/1.1."
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_METHOD = re.compile(_TOKEN + r"{1,32} ").match
# The target may contain all characters of a URI (RFC 3986, section 2) except `#`, so it contains no " < > \\ ^ ` { | }.
_REQUEST = re.compile(rf"({_TOKEN}{{1,32}}) ([!$-;=?-\[\]_a-z~]+) HTTP/([0-9]{{1,3}}\.[0-9]{{1,9}})").fullmatch
# The quantifier is possessive (*+). With backtracking, the blanks of one head took 1 s (measured).
_HEADER = re.compile(rf"({_TOKEN}+):[ \t]*+([\t\x20-\x7e\x80-\xff]*)").fullmatch
_LENGTH = re.compile(r"[0-9]{1,18}").fullmatch
_ONCE = frozenset((
    "authorization", "content-encoding", "content-length", "content-type", "cookie", "expect", "host", "if-range",
    "last-event-id", "origin", "range", "sec-fetch-site", "transfer-encoding", "x-csrf-token",
))  # fmt: skip

# -------------------------------------------------------------------------------------------------------- responses

# All resources come from this server, and only its own script files run. This limits the damage if escaping fails.
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
    """Return the fields of a query or form by name.

    Args:
        text: The query or form, encoded as application/x-www-form-urlencoded.

    Raises:
        HTTPError: 400: the text is invalid, or a name occurs twice.
    """
    found: dict[str, str] = {}
    parts = text.split("&") if text else []
    if len(parts) > MOST_FIELDS:
        raise HTTPError(400, f"A query or form may have at most {MOST_FIELDS} fields.")
    for part in parts:
        name, _, value = part.partition("=")
        name, value = _unquoted(name), _unquoted(value)
        if name in found:
            raise HTTPError(400, "A field of the query or form occurs twice. Lists are separated by commas.")
        found[name] = value
    return found


def form_of(request: Request) -> dict[str, str]:
    """Return the fields in the body of `request`, a posted form. Raise HTTPError if it is invalid."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not request.body:
        return {}
    if kind != "application/x-www-form-urlencoded":
        raise HTTPError(415, "Send the form as application/x-www-form-urlencoded.")
    try:
        return parse_form(request.body.decode("ascii"))
    except UnicodeDecodeError:
        raise HTTPError(400, "The form must consist of ASCII characters; write others as %XX.") from None


def _unquoted(text: str) -> str:
    if _BAD_PERCENT(text):
        raise HTTPError(400, "A percent sign must be followed by two hex digits.")
    try:
        plain = unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise HTTPError(400, "A field of the query or form is not valid UTF-8.") from None
    if "\0" in plain:
        raise HTTPError(400, "A field of the query or form contains a NUL character.")
    return plain


_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})").search

# ---------------------------------------------------------------------------------------------------------- ranges


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the part of a file that a Range header requests.

    The complete file is sent if the header contains several ranges or is invalid: a server may ignore the header
    (RFC 9110, section 14.2).

    Args:
        text: Value of the header.
        size: Length of the file in bytes.

    Returns:
        `(start, count)` in bytes, or None for the complete file.

    Raises:
        HTTPError: 416: the range is outside the file.
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
        raise HTTPError(
            416, f"The range is outside the file, which has {size} bytes.", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end - start + 1


_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})").fullmatch
