"""Channel that sends messages as JSON to a URL, for chat programs, ntfy, Home Assistant and similar services.

    POST url  {"subject": ..., "text": ..., "facts": {...}}        any status from 200 to 299 is success

It runs in the Notifier's thread. Errors: NotSent, with the response of the web server. Error texts contain only the
host of the URL, because the rest can be a secret. The modules http.client and ssl are imported when the first message
is sent.
"""

from __future__ import annotations

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent
from pigeonpost.core.http_client import USER_AGENT, HttpConnection, HttpError, split_url
from pigeonpost.core.strict_json import write_json

ANSWER_S = 20.0  # time limit for the response of the web server


class WebhookChannel(AlertChannel):
    """Channel that sends messages to one URL.

    Args:
        url: URL that receives the messages.
    """

    def __init__(self, url: str) -> None:
        self._url = split_url(url)
        self.place = f"webhook at {self._url.host}"

    def send(self, message: AlertMessage) -> None:
        body = write_json({"subject": message.subject, "text": message.text, "facts": message.info}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        connection = HttpConnection(self._url, ANSWER_S)
        try:
            status = connection.request("POST", self._url.target, headers, body, limit_bytes=None).status
        except HttpError as error:
            raise NotSent(f"{self.place}: {error}") from None
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise NotSent(f"{self.place}: the response has the status {status}")
