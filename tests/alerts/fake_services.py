"""Strict fakes of the services that receive messages: each checks method, path, every header and key, and the limits.

A request that a service would not accept is answered with its error, and is in `faults` of the fake.
Sources: those named in pigeonpost/alerts/webhook_shapes.py and pigeonpost/integrations/heartbeat.py.
"""

import base64
import contextlib
import http.server
import json
import re
import urllib.parse

from tests.alerts.fake_servers import serve

TOKEN = "123456:canary-AAF_bot-token"  # of all services
USUAL = {"host", "accept-encoding", "content-length", "content-type", "user-agent", "idempotency-key"}


def utf_16(text):
    return len(text.encode("utf-16-le")) // 2


class Refusal(Exception):
    """Status, body and headers of an answer that is not success."""

    def __init__(self, status, body, **headers):
        super().__init__(status, body)
        self.status, self.body, self.headers = status, body, headers


class FakeService:
    """One service.

    Attributes:
        received: The accepted messages, as JSON objects.
        faults: Descriptions of requests that break the rules of the service.
        answers: Answers for the next requests, instead of the usual ones.
        keys: Idempotency-Key of each request.
    """

    path = "/"
    headers = frozenset()
    success = 200, {"ok": True}

    def __init__(self, test, port=0):
        self.received, self.faults, self.answers, self.keys = [], [], [], []
        self.server, self.port = serve(test, _Handler, port, service=self)
        self.url = f"http://127.0.0.1:{self.port}"

    def answer(self, request, body):
        """Return (status, body, headers) for a request."""
        self.keys.append(request.headers["Idempotency-Key"])
        try:
            if self.answers:
                raise self.answers.pop(0)
            self.check(request, body)
            content = json.loads(body)
            self.take(request, content)
            self.received.append(content)
            return (*self.success, {})
        except AssertionError as error:
            self.faults.append(str(error))
            return 400, self.error(str(error)), {}
        except Refusal as error:
            return error.status, error.body, error.headers

    def check(self, request, body):
        path = request.path.partition("?")[0]
        assert request.command == "POST", request.command
        if path != self.path:
            raise Refusal(404, self.error("Not Found"))
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["User-Agent"].startswith("pigeonpost/")
        names = {name.lower() for name in request.headers}
        assert names <= USUAL | self.headers, names

    def error(self, text):
        return {"error": text}

    def take(self, request, content):
        raise NotImplementedError


class Ntfy(FakeService):
    headers = frozenset(("authorization",))
    allowed = (f"Bearer {TOKEN}", "Basic " + base64.b64encode(b"me:s\xc3\xa9cret").decode())

    def error(self, text):
        return {"code": 40001, "http": 400, "error": text, "link": "https://ntfy.sh/docs/publish/"}

    def take(self, request, content):
        if request.headers["Authorization"] not in (None, *self.allowed):
            raise Refusal(401, {"code": 40101, "http": 401, "error": "unauthorized"})
        if content["topic"] == "private":
            raise Refusal(403, {"code": 40301, "http": 403, "error": "forbidden"})
        assert content.keys() <= {"topic", "title", "message", "priority", "tags", "click"}, content.keys()
        assert re.fullmatch(r"[-_A-Za-z0-9]{1,64}", content["topic"]), content["topic"]
        assert 0 < len(content["message"].encode()) <= 4096, "the message becomes an attachment"
        assert len(content["title"]) <= 250
        assert content["priority"] in (1, 2, 3, 4, 5)
        assert all(re.fullmatch("[a-z_]+", tag) for tag in content.get("tags", []))
        assert re.match("https?://", content.get("click", "http://"))


class Telegram(FakeService):
    path = f"/bot{TOKEN}/sendMessage"
    chats = ("-100123", "42", "@channel")

    def error(self, text, status=400):
        return {"ok": False, "error_code": status, "description": text}

    def take(self, request, content):
        known = {"chat_id", "text", "link_preview_options", "disable_notification"}
        assert content.keys() <= known, content.keys()  # no parse_mode
        if content["chat_id"] not in self.chats:
            raise Refusal(400, self.error("Bad Request: chat not found"))
        if not content["text"].strip():
            raise Refusal(400, self.error("Bad Request: message text is empty"))
        if utf_16(content["text"]) > 4096:
            raise Refusal(400, self.error("Bad Request: message is too long"))
        assert content["link_preview_options"] == {"is_disabled": True}
        assert isinstance(content["disable_notification"], bool)


class Slack(FakeService):
    path = "/services/T0AAAAAA/B0BBBBBB/canarySlackSecret"
    success = 200, "ok"

    def error(self, text):
        return "no_service" if text == "Not Found" else "invalid_payload"

    def take(self, request, content):
        assert content.keys() == {"text"}, content.keys()
        assert 0 < utf_16(content["text"]) <= 40_000
        assert not re.search(r"[<>]|&(?!(?:amp|lt|gt);)", content["text"]), "not escaped"


class Discord(FakeService):
    path = "/api/webhooks/1234567890/canaryDiscordSecret"
    success = 204, ""

    def error(self, text):
        return (
            {"message": "Unknown Webhook", "code": 10015} if text == "Not Found" else {"message": text, "code": 50035}
        )

    def take(self, request, content):
        assert content.keys() == {"content", "allowed_mentions"}, content.keys()
        assert content["allowed_mentions"] == {"parse": []}
        assert 0 < utf_16(content["content"]) <= 2000, "Must be 2000 or fewer in length."


class Gotify(FakeService):
    path = "/message"
    headers = frozenset(("x-gotify-key",))

    def error(self, text, status=400):
        return {"error": "Bad Request", "errorCode": status, "errorDescription": text}

    def take(self, request, content):
        assert "token" not in request.path
        if request.headers["X-Gotify-Key"] != TOKEN:
            text = "you need to provide a valid access token or user credentials to access this api"
            raise Refusal(401, {"error": "Unauthorized", "errorCode": 401, "errorDescription": text})
        assert content.keys() <= {"title", "message", "priority", "extras"}, content.keys()
        assert content["message"] and content["title"]
        assert 0 <= content["priority"] <= 10
        click = content.get("extras", {"client::notification": {"click": {"url": "http://"}}})
        assert re.match("https?://", click["client::notification"]["click"]["url"])


class Healthchecks(FakeService):
    """A check with the UUID of `path`, and one with a slug; `pings` has (kind, body, query)."""

    uuid, slug = "5bf66975-d4c7-4bf5-bcc8-b8d8a82ea278", "canary-ping-key/home"

    def __init__(self, test, port=0):
        self.pings = []
        super().__init__(test, port)

    def answer(self, request, body):
        parts = urllib.parse.urlsplit(request.path)
        if self.answers:
            error = self.answers.pop(0)
            return error.status, error.body, error.headers
        assert request.command == "POST", request.command
        names = {name.lower() for name in request.headers}
        assert names <= USUAL - {"idempotency-key"}, names
        found = re.fullmatch(rf"/(?:{self.uuid}|{self.slug})(?:/(start|fail|log))?", parts.path)
        if not found:
            is_uuid = parts.path.count("/") == 1
            return (200, "OK (not found)", {}) if is_uuid else (404, "not found", {})
        if len(body) > 10_000:
            self.faults.append("the body is too long")
        self.pings.append((found[1] or "success", body.decode(), parts.query))
        return 200, "OK", {}


class UptimeKuma(FakeService):
    """A push monitor; `pings` has (status, msg, ping)."""

    token = "canaryKumaToken"

    def __init__(self, test, port=0):
        self.pings = []
        super().__init__(test, port)

    def answer(self, request, body):
        parts = urllib.parse.urlsplit(request.path)
        query = urllib.parse.parse_qs(parts.query, keep_blank_values=True, strict_parsing=True)
        assert request.command == "GET", request.command  # before version 2 only GET is accepted
        if parts.path != f"/api/push/{self.token}":
            return 404, {"ok": False, "msg": "Monitor not found or not active."}, {}
        assert all(len(values) == 1 for values in query.values()), query
        assert query.keys() <= {"status", "msg", "ping"}, query.keys()
        self.pings.append((query["status"][0], query["msg"][0], query.get("ping", [None])[0]))
        return 200, {"ok": True}, {}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client that does not read the body of a success
            super().handle()

    def handle_one(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, content, headers = self.server.service.answer(self, body)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = handle_one

    def log_message(self, *args):
        pass
