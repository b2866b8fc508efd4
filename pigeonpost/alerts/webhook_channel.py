"""Channel that sends messages as JSON to a URL, for chat programs, ntfy, Home Assistant and similar services.

    POST url  {"subject": ..., "text": ..., "facts": {...}}        any status from 200 to 299 is success

The header Idempotency-Key contains the id of the message, which is the same in each attempt.
It runs in the thread that delivers to this server. Errors: NotSent and Refused, with the response of the web server.
Error texts contain only the host of the URL, because the rest can be a secret. The modules http.client and ssl are
imported when the first message is sent.
Sources: RFC 9110, section 15 (status codes); RFC 8470 (425); RFC 6585 (429).
"""

from __future__ import annotations

import time

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent, Refused
from pigeonpost.core.http_client import USER_AGENT, HttpConnection, HttpError, split_url
from pigeonpost.core.retry_after import retry_after_s
from pigeonpost.core.strict_json import write_json

ANSWER_S = 20.0  # time limit for the response of the web server
# Request Timeout, Too Early, Too Many Requests: of the statuses from 400 to 499, only these are temporary.
_TEMPORARY = (408, 425, 429)
_MOVED = (301, 302, 303, 307, 308)


class WebhookChannel(AlertChannel):
    """Channel that sends messages to one URL.

    Args:
        url: URL that receives the messages.
    """

    def __init__(self, url: str) -> None:
        self._url = split_url(url)
        self.place = f"webhook at {self._url.host}"
        self.key = self.name = "webhook"

    def send(self, message: AlertMessage) -> None:
        content = {"subject": message.subject, "text": message.text, "facts": message.info}
        body = write_json(content).encode(errors="replace")  # the text can contain the name of a file that is not UTF-8
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, "Idempotency-Key": message.id}
        connection = HttpConnection(self._url, ANSWER_S)
        try:
            answer = connection.request("POST", self._url.target, headers, body, limit_bytes=None)
        except HttpError as error:
            raise NotSent(f"{self.place}: {error}") from None
        finally:
            connection.close()
        status = answer.status
        if 200 <= status < 300:
            return
        said = f"{self.place}: the response has the status {status}"
        if 400 <= status < 500 and status not in _TEMPORARY:
            raise Refused(said)
        if status in _MOVED:  # not followed: the message is only for the host in the settings
            said += "; it has another address now: set [webhook] url"
        pause_s = retry_after_s(answer.headers.get("Retry-After", ""), time.time())
        raise NotSent(said, pause_s, is_answer=status >= 500 and pause_s is None)
