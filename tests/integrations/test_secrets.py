"""Addresses, passwords, tokens, topics and headers of other systems are in no output of the programs.

The other system is one that repeats the request in its answer, in each form in which programs do that.
"""

import base64
import html
import http.client
import json
import re
import socketserver
import unittest
import urllib.parse

from pigeonpost.alerts.webhook_shapes import SHAPES
from pigeonpost.integrations.forward_targets import KINDS
from tests.alerts.fake_servers import serve
from tests.forked import Forked
from tests.page_support import Server, control_here, use_memory_disk
from tests.support import long, temp_folder, wait_until

FAST = {
    "pigeonpost.alerts.notifier.LOOK_S": 0.02, "pigeonpost.alerts.engine.COLLECT_S": 0.05,
    "pigeonpost.integrations.heartbeat.FIRST_S": 0.05,
}  # fmt: skip
PAGES = (
    "/", "/alerts", "/api/v1/alerts", "/api/v1/health", "/integrations", "/integrations.json", "/about", "/about.json",
    "/metrics", "/api/v1/nodes",
)  # fmt: skip
WORDS = ("canary", base64.b64encode(b"canaryuser:canarypassword").decode())
FORWARDS = {
    "influxdb": 'database = "home"\nuser = "me"\npassword = "canarypassword"\n',
    "mqtt": 'host = "127.0.0.1"\nport = PORT\nuser = "me"\npassword = "canarypassword"\n',
    "otlp": 'headers = ["X-Scope: canaryheader", "Api-Key: Token canaryheader2"]\n',
    "pigeonpost": 'token = "canarytoken"\n',
    "victoriametrics": 'user = "me"\npassword = "canarypassword"\n',
    "webhook": 'token = "canarytoken"\n',
}


def setUpModule():
    use_memory_disk()


def with_head(status, text):
    """Return an answer whose body is `text` as the error of the service."""
    body = json.dumps(dict.fromkeys(("message", "description", "errorDescription", "error"), text)).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def decoded(request):
    """Return a request as a program logs it after it has decoded address and login."""
    login = re.search("Basic ([A-Za-z0-9+/=]+)", request)
    return urllib.parse.unquote(request) + (base64.b64decode(login[1]).decode() if login else "")


def pieces(request):
    """Return the words of a request that are secrets."""
    return " ".join(re.findall(r"[^\s/:?&=]*canary[^\s/:?&=]*", request))


ANSWERS = {
    "refused": lambda said: with_head(f"400 no {' '.join(said.split())}", f"{pieces(said)} {decoded(said)} {said}"),
    "repeated": lambda said: with_head("401 Unauthorized", said),
    "failed": lambda said: with_head("500 Internal Server Error", said),
    "decoded": lambda said: with_head("400 Bad Request", decoded(said)),
    "long": lambda said: with_head("403 Forbidden", "-" * 190 + pieces(said)),
    "html": lambda said: with_head("400 Bad Request", html.escape(said)),
    "not http": lambda said: said.encode(),
    "moved": lambda said: f"HTTP/1.1 308 Moved\r\nLocation: {said.split()[1]}\r\nContent-Length: 0\r\n\r\n".encode(),
    "away": None,
}


class Repeating(socketserver.StreamRequestHandler):
    """Service that repeats each request in its answer, in the form of `server.form`."""

    timeout = 20

    def handle(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line or line.startswith(b"\x10"):  # nothing, or MQTT
                return
            head += line
        length = re.search(rb"(?i)content-length: (\d+)", head)
        self.rfile.read(int(length[1]) if length else 0)
        self.server.heads.append(head)
        self.wfile.write(ANSWERS[self.server.form](head.decode()))


class Canary(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.heads = []
        self.service, port = serve(self, Repeating, form="refused", heads=self.heads)
        self.settings = f"{self.folder}/server.toml"
        at = f"http://canaryuser:canarypassword@127.0.0.1:{port}"
        shapes = {
            "json": f'url = "{at}/canarypath?k=canaryquery"\ntoken = "canarytoken"\n',
            "ntfy": f'url = "{at}"\ntopic = "canarytopic"\nheaders = ["X-Key: canaryheader"]\n',
            "telegram": f'url = "{at}"\ntoken = "1234:1234canarytoken"\nchat = "-1007"\n',
            "slack": f'url = "{at}/services/T0/B0/canarypath"\nheaders = ["X-Key: Token canaryheader"]\n',
            "discord": f'url = "{at}/api/webhooks/1/canary%20path?name=canaryquery"\n',
            "gotify": f'url = "{at}/canarypath"\ntoken = "canarytoken"\n',
        }
        self.assertEqual((shapes.keys(), FORWARDS.keys()), (SHAPES.keys(), KINDS.keys()))
        text = f"""
[log]
level = "debug"
[webhook]
{shapes["json"]}
[heartbeat]
url = "{at}/canarypath?create=canaryquery"
[home_assistant]
discovery = true
url = "http://127.0.0.1:{port}"
token = "canarytoken"
[mqtt]
host = "127.0.0.1"
port = {port}
user = "me"
password = "canarypassword"
[[device]]
name = "desk"
preset = "tasmota"
[[device]]
name = "shelf"
preset = "tasmota"
host = "localhost"
port = {port}
user = "me"
password = "canarypassword"
[alerts]
silent = 0
[[alert]]
kind = "disk"
below = 1e12
"""
        for shape, lines in shapes.items():
            text += f'[[channel]]\nname = "to-{shape}"\nshape = "{shape}"\n{lines}'
        for kind, lines in FORWARDS.items():
            url = "" if kind == "mqtt" else f'url = "http://127.0.0.1:{port}"\n'
            if kind in ("webhook", "victoriametrics"):
                url = f'url = "{at}/canarypath"\n'
            text += f'[[forward]]\nname = "{kind}"\nkind = "{kind}"\n{url}{lines.replace("PORT", str(port))}'
        with open(self.settings, "w", encoding="utf-8") as file:
            file.write(text)

    def assert_hidden(self, text, place):
        found = next((at for word in WORDS if (at := text.lower().find(word.lower())) >= 0), None)
        if found is not None:
            self.fail(f"{place}: {text[max(0, found - 300) : found + 100]}")

    def send_reading(self, server):
        _, token, _ = control_here(
            "--data", self.folder, "--config", self.settings, "api-token", "x", "--role", "writer"
        )
        connection = http.client.HTTPConnection(*server.page)
        self.addCleanup(connection.close)
        headers = {"Authorization": f"Bearer {token.split()[-1]}", "Content-Type": "application/json"}
        connection.request("POST", "/api/v1/readings", json.dumps({"node": "bench", "values": {"volt": 3.3}}), headers)
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200, answer.read())

    def check_outputs(self, form):
        self.service.form = form
        if form == "away":
            self.service.shutdown()
            self.service.server_close()
        server = Server(self, "--config", self.settings, data=self.folder, constants=FAST)
        self.assertTrue(server.page)
        with open(f"{self.folder}/running.json", encoding="utf-8") as file:
            key = {"Authorization": f"Bearer {json.load(file)['key']}"}
        self.send_reading(server)

        def are_told():
            channels = json.loads(server.get("/api/v1/alerts", key)[1])["channels"]
            states = json.loads(server.get("/integrations.json", key)[1])["integrations"]
            names = {one["name"] for one in states if one["fault"]}
            waited = {"heartbeat", *(f"forward {kind}" for kind in KINDS if kind != "mqtt")}
            return all(one["refused"] or one["fault"] for one in channels) and waited <= names

        wait_until(are_told, "a fault of each part")
        for path in PAGES:
            status, text = server.get(path, key)
            self.assertEqual(status, 200, path)
            self.assert_hidden(text, path)
        for arguments in (["check"], ["doctor"], ["alerts"], ["alerts", "test"]):
            _, said, told = control_here("--data", self.folder, "--config", self.settings, *arguments)
            self.assert_hidden(said + told, arguments)
        server.terminate()
        self.assertEqual(server.wait(), 0)
        self.assert_hidden("\n".join(server.logged), "the log")
        self.assertEqual(bool(self.heads), form != "away")

    def test_secrets_in_answers_are_hidden(self):
        self.check_outputs("refused")

    def test_secrets_in_answers_that_are_not_http_are_hidden(self):
        self.check_outputs("not http")

    @long
    def test_secrets_in_other_answers_are_hidden(self):
        for form in ANSWERS.keys() - {"refused", "not http"}:
            with self.subTest(form):
                self.setUp()
                self.check_outputs(form)

    def test_faults_of_settings_contain_no_secrets(self):
        for text in (
            '[[channel]]\nname = "a"\nurl = ["http://h/canary"]\n',
            '[[channel]]\nname = "a"\nurl = "http://h"\ntopic = ["canary"]\n',
            '[[channel]]\nname = "a"\nurl = "http://h"\ntopic = canary\n',
            '[[forward]]\nname = "a"\nkind = "webhook"\nurl = "htp://h/canary"\n',
        ):
            with self.subTest(text):
                with open(self.settings, "w", encoding="utf-8") as file:
                    file.write(text)
                server = Forked(self, "server.py", "--config", self.settings, "--data", self.folder)
                self.assertEqual(server.wait(), 2)
                self.assert_hidden("\n".join(server.said + server.logged), text)

    def test_shown_settings_contain_no_secrets(self):
        shown = Forked(self, "server.py", "--config", self.settings, "--show")
        self.assertEqual(shown.wait(), 0)
        self.assertIn("[[channel]]", "\n".join(shown.said))
        self.assert_hidden("\n".join(shown.said + shown.logged), "--show")


if __name__ == "__main__":
    unittest.main()
