"""Messages as JSON to a web address: what chat programs, ntfy, Home Assistant and the like take.

Runs on: server, where `[webhook] url` is set.  Reached from: watch/watchman.  Hands on to: a web server.
Threads: the watchman's.  Errors: NotSent, with what the web server said.

    POST url  {"subject": ..., "text": ..., "facts": {...}}        any answer from 200 to 299 will do

http.client and ssl are loaded when the first message goes. An address may have a secret in it: errors name its host.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent
from pigeonpost.core.strict_json import write_json
from pigeonpost.core.version import VERSION

ANSWER_S = 20.0


class WebhookChannel(AlertChannel):
    """A web address that takes messages."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.place = f"webhook at {parts.hostname}"
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"

    def send(self, message: AlertMessage) -> None:
        import http.client

        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        link = kind(self._host, self._port, timeout=ANSWER_S)
        body = write_json({"subject": message.subject, "text": message.text, "facts": message.info}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": f"pigeonpost/{VERSION}"}
        try:
            link.request("POST", self._target, body, headers)
            status = link.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise NotSent(f"{self.place}: {error}") from None
        finally:
            link.close()
        if not 200 <= status < 300:
            raise NotSent(f"{self.place}: it answered {status}")
