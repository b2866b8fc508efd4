"""Channel that sends messages by HTTP POST to a URL: as JSON, or in the form of a service such as ntfy or Telegram.

    POST url  {"subject": ..., "text": ..., "facts": {...}}        any status from 200 to 299 is success

The header Idempotency-Key contains the id of the message, which is the same in each attempt.
It runs in the thread that delivers to this server. Errors: NotSent and Refused, with the response of the web server.
Error texts contain only the host of the URL, because the rest can be a secret. The modules http.client and ssl are
imported when the first message is sent.
Sources: RFC 9110, section 15 (status codes); RFC 8470 (425); RFC 6585 (429).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pigeonpost.alerts.channel_settings import HttpChannel
from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent, Refused
from pigeonpost.alerts.webhook_shapes import SHAPES, Reply, make_request, read_reply
from pigeonpost.core.http_client import AnswerTooLong, HttpConnection, HttpError, HttpResponse
from pigeonpost.core.retry_after import LONGEST_PAUSE_S, retry_after_s

ANSWER_S = 20.0  # time limit for the response of the web server
# Request Timeout, Too Early, Too Many Requests: of the statuses from 400 to 499, only these are temporary.
_TEMPORARY = (408, 425, 429)
_MOVED = (301, 302, 303, 307, 308)
_ANSWER_BYTES = 64 << 10  # maximum length of a service's answer about an error


class WebhookChannel(AlertChannel):
    """Channel that sends messages to one URL.

    Args:
        channel: Its settings.
        current: Function that returns the current name of a node; the filter or a message may contain a former one.
    """

    def __init__(self, channel: HttpChannel, current: Callable[[str], str] = lambda node: node) -> None:
        self._channel, self._current = channel, current
        shape = SHAPES[channel.shape]
        self.place = f"{shape.place} at {channel.url.host}"
        self.key = channel.key
        self.name = channel.key.removeprefix("channel ")
        self.kind, self.pace = channel.shape, shape.pace

    def select(self, message: AlertMessage) -> AlertMessage | None:
        return self._channel.chosen.select(message, self._current)

    def send(self, message: AlertMessage) -> None:
        request = make_request(message, self._channel)
        answer = self._post(request.target, request.headers, request.body)
        status = answer.status
        if 200 <= status < 300:
            return
        reply = read_reply(self._channel, status, answer.body)
        said = self._words(status, reply)
        if 400 <= status < 500 and status not in _TEMPORARY:
            raise Refused(said)
        if status in _MOVED:  # not followed: the message is only for the host in the settings
            said += f"; it has another address now: set {self._channel.where} url"
        pause_s = retry_after_s(answer.headers.get("Retry-After", ""), time.time())
        if reply.pause_s is not None:
            pause_s = min(max(reply.pause_s, 1.0), LONGEST_PAUSE_S)
        raise NotSent(said, pause_s, is_answer=status >= 500 and pause_s is None)

    def _post(self, target: str, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        # An answer of the shape json may have any form, so it is not read.
        limit_bytes = None if self._channel.shape == "json" else _ANSWER_BYTES
        connection = HttpConnection(self._channel.url, ANSWER_S, deadline_s=time.monotonic() + ANSWER_S)
        try:
            return connection.request(
                "POST", target, headers, body, limit_bytes=limit_bytes, until_close=True, skip_success=True
            )
        except AnswerTooLong as error:
            if error.response is not None:
                return error.response
            raise NotSent(f"{self.place}: {error}") from None
        except HttpError as error:
            raise NotSent(f"{self.place}: {error}") from None
        finally:
            connection.close()

    def _words(self, status: int, reply: Reply) -> str:
        """Return the text about an answer."""
        said = f"{self.place}: the response has the status {status}{reply.words and f': {reply.words}'}"
        return f"{said}; {reply.remedy}" if reply.remedy else said
