"""Answers of services that receive alerts: each gives a line without control characters, and a pause or none."""

import unittest

from pigeonpost.alerts.channel_settings import HttpChannel
from pigeonpost.alerts.webhook_channel import WebhookChannel
from pigeonpost.alerts.webhook_shapes import SHAPES, read_reply
from pigeonpost.core.http_client import split_url
from tests.fuzz import Target, fuzzed, mutated, st
from tests.fuzz.test_json_answers import PIECES

BODIES = [
    b'{"ok":false,"error_code":429,"description":"Too Many Requests","parameters":{"retry_after":35}}',
    b'{"ok":false,"description":"Bad Request: group chat was upgraded","parameters":{"migrate_to_chat_id":-1007}}',
    b'{"message":"You are being rate limited.","retry_after":0.65,"global":false}', b"no_service",
    b'{"code":40101,"http":401,"error":"unauthorized"}', b'{"error":"Unauthorized","errorDescription":"token"}',
]  # fmt: skip
CHANNELS = [
    HttpChannel("webhook", "[webhook]", split_url("http://h/secret?key=1"), shape, "token", headers={"X-Key": "header"})
    for shape in SHAPES
]


class ServiceAnswers(Target, unittest.TestCase):
    corpus = "service_answers"
    MEMORY_BYTES = 16 << 20  # a thousand nested arrays are a thousand lists

    def check(self, data):
        for channel in CHANNELS:
            with self.bounded():
                for status in (400, 401, 429, 500):
                    reply = read_reply(channel, status, data)
                    self.assertTrue(reply.words == "" or reply.words.isprintable(), reply.words)
                    self.assertLessEqual(len(reply.words), 200)
                    self.assertLess(len(reply.remedy), 200)
                    self.assertTrue(reply.pause_s is None or reply.pause_s >= 0)
                    said = WebhookChannel(channel)._words(status, reply)
                    self.assertFalse([word for word in ("token", "header") if word in said.partition(";")[0]], said)

    @fuzzed(lambda: mutated(st.sampled_from(BODIES), PIECES, 40_000))
    def test_answers_mutated(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
