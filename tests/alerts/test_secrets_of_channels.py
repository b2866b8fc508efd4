"""Addresses, tokens, topics and headers of channels and of the heartbeat are in no output of the programs.

Each service answers with an error that repeats the complete request, which contains all of them.
"""

import base64
import json
import unittest

from pigeonpost.alerts.webhook_shapes import SHAPES
from tests.alerts.fake_services import FakeService
from tests.forked import Forked
from tests.page_support import Server, control_here, use_memory_disk
from tests.support import temp_folder, wait_until

FAST = {
    "pigeonpost.alerts.notifier.LOOK_S": 0.02, "pigeonpost.alerts.engine.COLLECT_S": 0.05,
    "pigeonpost.integrations.heartbeat.FIRST_S": 0.05,
}  # fmt: skip
PAGES = (
    "/", "/alerts", "/api/v1/alerts", "/api/v1/health", "/integrations", "/integrations.json", "/about", "/about.json",
    "/metrics", "/api/v1/nodes",
)  # fmt: skip


def setUpModule():
    use_memory_disk()


class Echo(FakeService):
    """A service that repeats the request in its error."""

    status = 401

    def answer(self, request, body):
        self.received.append(request.path)
        text = f"{request.command} {request.path} {dict(request.headers)} {body.decode()}"
        return self.status, {"message": text, "description": text, "errorDescription": text, "error": text}, {}


class Canary(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.service = Echo(self)
        self.settings = f"{self.folder}/server.toml"
        at = self.service.url.replace("//", "//canaryuser:canarypassword@")
        keys = {
            "json": f'url = "{at}/canarypath?k=canaryquery"\ntoken = "canarytoken"\n',
            "ntfy": f'url = "{at}"\ntopic = "canarytopic"\ntoken = "canarytoken"\n',
            "telegram": f'url = "{at}"\ntoken = "123:canarytoken"\nchat = "-1007"\n',
            "slack": f'url = "{at}/services/T0/B0/canarypath"\nheaders = ["X-Key: canaryheader"]\n',
            "discord": f'url = "{at}/api/webhooks/1/canarypath"\n',
            "gotify": f'url = "{at}/canarypath"\ntoken = "canarytoken"\n',
        }
        self.assertEqual(keys.keys(), SHAPES.keys())
        text = (
            f'[webhook]\n{keys["json"]}[heartbeat]\nurl = "{at}/canarypath?create=canaryquery"\n[log]\nlevel="debug"\n'
        )
        text += '[alerts]\nsilent = 0\n[[alert]]\nkind = "disk"\nbelow = 1e12\n'
        for shape, lines in keys.items():
            text += f'[[channel]]\nname = "to-{shape}"\nshape = "{shape}"\n{lines}'
        with open(self.settings, "w", encoding="utf-8") as file:
            file.write(text)

    def assert_hidden(self, text, place):
        pair = base64.b64encode(b"canaryuser:canarypassword").decode()
        found = next((at for word in ("canary", pair) if (at := text.find(word)) >= 0), None)
        if found is not None:
            self.fail(f"{place}: {text[max(0, found - 200) : found + 100]}")

    def check_outputs(self, is_reached):
        server = Server(self, "--config", self.settings, data=self.folder, constants=FAST)
        self.assertTrue(server.page)
        with open(f"{self.folder}/running.json", encoding="utf-8") as file:
            key = {"Authorization": f"Bearer {json.load(file)['key']}"}

        def states():
            return json.loads(server.get("/api/v1/alerts", key)[1])["channels"]

        def are_told():
            return (
                all(one["refused"] or one["fault"] for one in states())
                and "heartbeat" in server.get("/api/v1/health", key)[1]
            )

        wait_until(are_told, "a fault of each channel and of the heartbeat")
        self.assertEqual(len(states()), 7)
        for path in PAGES:
            status, text = server.get(path, key)
            self.assertEqual(status, 200, path)
            self.assert_hidden(text, path)
        for arguments in (["check"], ["doctor"], ["alerts"], ["alerts", "test"]):
            _, said, told = control_here("--data", self.folder, "--config", self.settings, *arguments)
            self.assert_hidden(said + told, arguments)
        self.assertIn("heartbeat: http://127.0.0.1", server.get("/api/v1/health", key)[1])
        server.terminate()
        self.assertEqual(server.wait(), 0)
        self.assert_hidden("\n".join(server.logged), "the log")
        self.assertEqual(bool(self.service.received), is_reached)

    def test_secrets_of_services_that_refuse_are_in_no_output(self):
        self.check_outputs(is_reached=True)

    def test_secrets_of_services_that_are_away_are_in_no_output(self):
        self.service.server.shutdown()
        self.service.server.server_close()
        self.check_outputs(is_reached=False)

    def test_secrets_of_services_that_fail_are_in_no_output(self):
        self.service.status = 500
        self.check_outputs(is_reached=True)

    def test_shown_settings_contain_no_secrets(self):
        shown = Forked(self, "server.py", "--config", self.settings, "--show")
        self.assertEqual(shown.wait(), 0)
        self.assertIn("[[channel]]", "\n".join(shown.said))
        self.assert_hidden("\n".join(shown.said + shown.logged), "--show")


if __name__ == "__main__":
    unittest.main()
