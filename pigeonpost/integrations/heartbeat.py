"""Heartbeat of this server: a request every `every` seconds to a service that tells people when the requests end.

    healthchecks.io and compatible services    POST url while the server is well, else POST url/fail with its faults
    Uptime Kuma (a path with /api/push/)       GET url?status=up&msg=OK, else status=down and the faults as msg

"Well" is what `control.py check` reports, except nodes and sensors: rules report those while this server runs. Samples
that wait for a commit for HANG_S are a fault, too, so a thread that hangs does not go unnoticed. Nothing is sent at the
start and at the end: a server that is off for longer than the grace time of the check is reported.
A service that does not know /fail answers 404 or 405, and then notices that its requests have ended.

One thread sends one request at a time. It waits for nothing else of this server.
Errors: none. `fault` contains the reason why the service does not accept the requests.
Sources: healthchecks.io, "Pinging API" (five requests a minute; 200 "OK (not found)" for a UUID, 404 and 409 for a
slug) and "Signaling failures"; Uptime Kuma, server/routers/api-router.js.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.format import counted
from pigeonpost.core.http_client import USER_AGENT, AnswerTooLong, HttpConnection, HttpError, HttpResponse, split_url
from pigeonpost.core.redact import hide_secrets
from pigeonpost.core.retry_after import retry_after_s
from pigeonpost.transports.contract import IntegrationStatus, Transport

if TYPE_CHECKING:
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

NAME = "heartbeat"
FIRST_S = 5.0  # time before the first request
SHORTEST_S = 12.0  # shortest time between two requests: a check accepts five a minute
RETRY_S = 60.0  # time before the next request after one that failed
ANSWER_S = 10.0  # time limit for a request
HANG_S = 60.0  # time for which samples may wait for a commit that is due
MOST_BYTES = 10_000  # of the faults in one request
MOST_LETTERS = 250  # of the message to Uptime Kuma
_ANSWER_BYTES = 64 << 10
_UNKNOWN = (404, 405)
_PUSH = "/api/push/"


class HeartbeatRequest(NamedTuple):
    """One request to the service.

    Attributes:
        method: HTTP method.
        target: Path and query.
        body: The body.
    """

    method: str
    target: str
    body: bytes


def make_heartbeat(context: ServerContext) -> dict[str, Transport]:
    """Return the heartbeat for the table [heartbeat] of the settings.

    Args:
        context: Context of the server, with its settings.

    Raises:
        SettingsError: The URL is invalid.
    """
    return {NAME: Heartbeat(context)}


class Heartbeat(Transport):
    """Thread that sends the requests.

    Args:
        context: Context of the server, with its settings.

    Attributes:
        parts: Components of this server whose `fault` is reported, by name.

    Raises:
        SettingsError: The URL is invalid.
    """

    def __init__(self, context: ServerContext) -> None:
        settings = context.settings
        try:
            self._url = split_url(settings["heartbeat", "url"])
        except ValueError as error:
            raise SettingsError(f"{settings.origin('heartbeat', 'url')}: [heartbeat] url {error}") from None
        self._context = context
        self._every_s = max(SHORTEST_S, float(settings["heartbeat", "every"]))
        self._kind = "uptime kuma" if _PUSH in self._url.target.partition("?")[0] else "healthchecks"
        self.parts: Mapping[str, Any] = {}
        self._done = self._refused = 0
        self._success_ms: int | None = None
        self._connection: HttpConnection | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        self._stopping.set()
        if (connection := self._connection) is not None:
            connection.cut()
        if self._thread.ident is not None:
            self._thread.join(limit_s)
        return None

    def statuses(self) -> list[IntegrationStatus]:
        return [IntegrationStatus(
            NAME, self._kind, "out", self._url.shown, self._success_ms, None, "requests", self._done, self._refused,
            self.fault,
        )]  # fmt: skip

    def _run(self) -> None:
        wait_s = FIRST_S
        while not self._stopping.wait(wait_s):
            began_s = time.monotonic()
            pause_s = self.beat()
            wait_s = max(SHORTEST_S, pause_s - (time.monotonic() - began_s))

    def beat(self) -> float:
        """Send one request, and return the time until the next one in seconds."""
        faults = self.server_faults()
        try:
            answer = self._send(make_request(self._url.target, self._context.name, faults))
        except HttpError as error:
            if not self._stopping.is_set():
                self._note(f"{self._url.shown}: {error}")
            return min(RETRY_S, self._every_s)
        except Exception as error:
            log.exception("heartbeat")
            self._note(f"internal error, see the log: {type(error).__name__}")
            return min(RETRY_S, self._every_s)
        reason = self._reason(answer, bool(faults))
        self._note(reason)
        if not reason:
            self._done, self._success_ms = self._done + 1, self._context.clock.wall_ms()
            return self._every_s
        self._refused += 400 <= answer.status < 500
        pause_s = retry_after_s(answer.headers.get("Retry-After", ""), time.time())
        return min(RETRY_S, self._every_s) if pause_s is None else max(pause_s, min(RETRY_S, self._every_s))

    def server_faults(self) -> list[str]:
        """Return the present faults of this server, one text for each."""
        try:
            return [hide_secrets(text) for text in self._find_faults()]
        except Exception as error:  # an internal error is a fault, too
            log.debug("faults of the server", exc_info=True)
            return [f"internal error, see the log: {type(error).__name__}"]

    def _find_faults(self) -> list[str]:
        ingestor = self._context.ingestor
        faults = [ingestor.fault] if ingestor.fault else []
        if not faults and ingestor.is_blocked:
            faults.append("nothing can be stored")
        if not faults and ingestor.overdue_s > HANG_S:
            faults.append(
                f"samples have waited for {ingestor.overdue_s:.0f} s: the database or its disk does not respond"
            )
        faults += [ingestor.log_fault] if ingestor.log_fault else []
        faults += [f"{subject}: {text}" for subject, text in self._context.faults.present().items()]
        for name, part in self.parts.items():
            if name != NAME and part.fault:
                faults.append(f"{name}: {part.fault}")
            elif name != NAME:
                states: Sequence[IntegrationStatus] = getattr(part, "statuses", tuple)()
                faults += [f"{state.name}: {state.fault}" for state in states if state.fault]
        return faults

    def _send(self, request: HeartbeatRequest) -> HttpResponse:
        connection = HttpConnection(self._url, ANSWER_S, deadline_s=time.monotonic() + ANSWER_S)
        self._connection = connection
        headers = {"User-Agent": USER_AGENT, "Content-Type": "text/plain; charset=utf-8"}
        try:
            return connection.request(
                request.method, request.target, headers, request.body, limit_bytes=_ANSWER_BYTES, until_close=True
            )
        except AnswerTooLong as error:
            if error.response is None:
                raise
            return error.response
        finally:
            self._connection = None
            connection.close()

    def _reason(self, answer: HttpResponse, is_fail: bool) -> str:
        """Return the reason why the service did not accept a request; empty if it did."""
        said = f"{self._url.shown}: the response has the status {answer.status}"
        if 200 <= answer.status < 300:
            is_unknown = b"(not found)" in answer.body
            return f"{self._url.shown}: it has no such check: check [heartbeat] url" if is_unknown else ""
        if is_fail and answer.status in _UNKNOWN and self._kind != "uptime kuma" and self._done:
            return f"{said}: it does not accept faults, so it only notices that the requests have ended"
        if 300 <= answer.status < 500 and answer.status not in (408, 429):
            return f"{said}: check [heartbeat] url"
        return said

    def _note(self, reason: str) -> None:
        reason = hide_secrets(reason)
        if reason != self.fault:
            log.log(logging.WARNING if reason else logging.INFO, "heartbeat: %s", reason or "it is accepted again")
        self.fault = reason


def make_request(target: str, server: str, faults: list[str]) -> HeartbeatRequest:
    """Return the request that reports the `faults` of a server, or that it has none.

    Args:
        target: Path and query of the URL of the check.
        server: Name of the server.
        faults: Texts without secrets.
    """
    path, mark, query = target.partition("?")
    if _PUSH in path:
        return HeartbeatRequest("GET", f"{path}?{_push_query(query, faults)}", b"")
    if not faults:
        return HeartbeatRequest("POST", target, b"")
    text = "\n".join([f"{server}: {counted(len(faults), 'fault')}", *faults])
    body = text.encode("utf-8", "replace")[:MOST_BYTES].decode("utf-8", "ignore").encode()
    return HeartbeatRequest("POST", f"{path.rstrip('/')}/fail{mark}{query}", body)


def _push_query(query: str, faults: list[str]) -> str:
    """Return the query for Uptime Kuma: that of the URL, with the present `status` and `msg`."""
    from urllib.parse import parse_qsl, urlencode

    pairs = [(key, value) for key, value in parse_qsl(query, keep_blank_values=True) if key not in ("status", "msg")]
    message = "; ".join(faults)[:MOST_LETTERS] if faults else "OK"
    pairs += [("status", "down" if faults else "up"), ("msg", message)]
    return urlencode(pairs, errors="replace")
