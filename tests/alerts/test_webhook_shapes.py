"""Tests of the messages for each service: against strict fakes, and what the answers mean."""

import json
import unittest

from pigeonpost.alerts.channel_settings import HttpChannel
from pigeonpost.alerts.contract import AlertMessage, NotSent, Refused
from pigeonpost.alerts.webhook_channel import WebhookChannel
from pigeonpost.alerts.webhook_shapes import cut, make_request, page_of
from pigeonpost.core.http_client import split_url
from tests.alerts import fake_services
from tests.alerts.fake_services import TOKEN, Refusal
from tests.page_support import for_class

PAGE = "http://pi.example:8080/nodes/attic/temperature"
HOT = AlertMessage(
    "Alert: it is <41> °C & hot", f"It is 41 °C.\nSince 12:00.\n{PAGE}\n",
    {"kind": "alert", "node": "attic", "sensor": "temperature", "value": 41.5, "time": "2026-11-20T15:00:00.000Z"},
    "a-1", "critical",
)  # fmt: skip
SERVICES = {
    "ntfy": (fake_services.Ntfy, "/", {"topic": "home", "token": TOKEN}),
    "telegram": (fake_services.Telegram, "", {"chat": "-100123", "token": TOKEN}),
    "slack": (fake_services.Slack, fake_services.Slack.path, {}),
    "discord": (fake_services.Discord, fake_services.Discord.path, {}),
    "gotify": (fake_services.Gotify, "/", {"token": TOKEN}),
}
LONG = (
    "x" * 50_000, "é" * 50_000, "🔥" * 25_000, "<&>" * 20_000, "a\U0001f468\u200d\U0001f469" * 9000,
    "\n".join(f"- line {n} of cpu_temperature" for n in range(5000)),
)  # fmt: skip


class ShapeCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.fakes = {shape: fake(for_class(cls)) for shape, (fake, _, _) in SERVICES.items()}

    def setUp(self):
        for fake in self.fakes.values():
            for kept in (fake.received, fake.faults, fake.answers, fake.keys):
                kept.clear()

    def channel(self, shape, **changes):
        _, path, values = SERVICES[shape]
        url = split_url(f"{self.fakes[shape].url}{path}")
        return WebhookChannel(HttpChannel("webhook", "[webhook]", url, shape, **values)._replace(**changes))

    def sent(self, shape, message):
        self.channel(shape).send(message)
        fake = self.fakes[shape]
        self.assertEqual(fake.faults, [], shape)
        return fake.received[-1]

    def error(self, shape, answer=None, **changes):
        self.fakes[shape].answers += [answer] if answer else []
        with self.assertRaises(NotSent) as caught:
            self.channel(shape, **changes).send(HOT)
        return caught.exception


class Messages(ShapeCase):
    def test_alert_arrives_in_the_form_of_each_service(self):
        text = f"{HOT.subject}\n\nIt is 41 °C.\nSince 12:00.\n{PAGE}"
        for shape, expected in (
            ("ntfy", {"topic": "home", "title": HOT.subject, "message": HOT.text.strip(), "priority": 5,
                      "tags": ["rotating_light"], "click": PAGE}),
            ("telegram", {"chat_id": "-100123", "text": text, "link_preview_options": {"is_disabled": True},
                          "disable_notification": False}),
            ("slack", {"text": text.replace("&", "&amp;").replace("<41>", "&lt;41&gt;")}),
            ("discord", {"content": text, "allowed_mentions": {"parse": []}}),
            ("gotify", {"title": HOT.subject, "message": HOT.text.strip(), "priority": 10,
                        "extras": {"client::notification": {"click": {"url": PAGE}}}}),
        ):  # fmt: skip
            with self.subTest(shape):
                self.assertEqual(self.sent(shape, HOT), expected)
                self.assertEqual(self.fakes[shape].keys, ["a-1"])

    def test_severity_and_kind_set_the_priority(self):
        for severity, kind, ntfy, gotify, is_quiet in (
            ("info", "alert", 3, 5, True), ("warning", "alert", 4, 7, False), ("critical", "alert", 5, 10, False),
            ("critical", "over", 3, 5, False), ("info", "report", 3, 5, False), ("info", "test", 3, 5, False),
        ):  # fmt: skip
            message = HOT._replace(severity=severity, kind=kind, text="It is over.")
            self.assertEqual(self.sent("ntfy", message)["priority"], ntfy, kind)
            self.assertEqual(self.sent("gotify", message)["priority"], gotify, kind)
            self.assertEqual(self.sent("telegram", message)["disable_notification"], is_quiet, kind)

    def test_long_message_is_cut_and_keeps_the_address_of_its_page(self):
        for text in LONG:
            for shape in SERVICES:
                with self.subTest(shape, text=text[:5]):
                    message = HOT._replace(subject=text, text=f"{text}\n{PAGE}\n")
                    whole = json.dumps(self.sent(shape, message), ensure_ascii=False)
                    self.assertTrue(f"…\\n{PAGE}" in whole)  # a long text is not printed
                    self.assertLess(len(whole), 50_000)

    def test_cut_never_divides_a_character(self):
        for text in LONG:
            for counted in (("utf-8", 1), ("utf-16-le", 2)):
                for limit in range(3, 40):
                    shown = cut(text, limit, counted)
                    self.assertLessEqual(len(shown.encode(counted[0])), limit * counted[1])
                    self.assertTrue(text.startswith(shown[:-1].rstrip("…")) and shown.endswith("…"))
                    self.assertFalse(shown[:-1].endswith("\u200d"))
        self.assertEqual(cut("short", 5, ("utf-8", 1)), "short")
        self.assertEqual(cut("x" * 9, 4, ("utf-8", 1), "http://too.long/"), "x…")

    def test_text_without_valid_characters_is_accepted(self):
        for text in ("a\x00\x1b[31mb\x85\r\nc", "\ud800", "", "\x00"):
            for shape in SERVICES:
                whole = json.dumps(self.sent(shape, HOT._replace(text=text)), ensure_ascii=False)
                self.assertNotRegex(whole, r"\\u00|[\ud800-\udfff]")

    def test_page_is_the_last_line_only_if_it_is_an_address(self):
        for text, page in (
            (HOT.text, PAGE), ("see http://x/\n", ""), ("http://x/\nmore", ""), ("", ""), ("a\njavascript:x", ""),
        ):  # fmt: skip
            self.assertEqual(page_of(HOT._replace(text=text)), page)

    def test_query_and_folder_of_the_url_are_kept(self):
        for shape, url, target in (
            ("gotify", "http://h/gotify/?x=1", "/gotify/message?x=1"), ("gotify", "http://h/message", "/message"),
            ("telegram", "http://h/api", f"/api/bot{TOKEN}/sendMessage"),
            ("discord", "http://h/api/webhooks/1/x?thread_id=5", "/api/webhooks/1/x?thread_id=5"),
        ):  # fmt: skip
            channel = HttpChannel("webhook", "[webhook]", split_url(url), shape, TOKEN)
            self.assertEqual(make_request(HOT, channel).target, target)


class Json(unittest.TestCase):
    def request(self, message=HOT, **changes):
        return make_request(message, HttpChannel("webhook", "[webhook]", split_url("http://h/x"), **changes))

    def test_body_and_headers_without_further_settings_are_those_of_earlier_versions(self):
        request = self.request(HOT._replace(info={"kind": "alert"}, text="caf\udce9"))
        body = '{"subject":"Alert: it is <41> °C & hot","text":"caf?","facts":{"kind":"alert"}}'
        self.assertEqual(request.body, body.encode())
        self.assertEqual(list(request.headers), ["Content-Type", "User-Agent", "Idempotency-Key"])
        self.assertEqual(request.target, "/x")

    def test_template_is_filled_after_it_was_read(self):
        template = {"a": ["{subject}", {"{text}": "{node}/{sensor}: {value}"}], "n": 1, "u": "{url} {time} {severity}"}
        message = HOT._replace(subject='a "quote" \\ {text}\n')
        self.assertEqual(json.loads(self.request(message, template=template).body), {
            "a": ['a "quote" \\ {text}', {"{text}": "attic/temperature: 41.5"}], "n": 1,
            "u": f"{PAGE} 2026-11-20T15:00:00.000Z critical",
        })  # fmt: skip

    def test_value_that_a_message_does_not_have_is_empty(self):
        message = HOT._replace(info={"kind": "test", "value": None}, text="Hello.")
        template = "{node}{sensor}{value}{url}{time}!"
        self.assertEqual(self.request(message, template=template).body, b'"!"')

    def test_own_headers_replace_the_usual_ones(self):
        request = self.request(token="t", headers={"content-type": "text/json", "X-Key": "k", "authorization": "A"})
        self.assertEqual(request.headers["content-type"], "text/json")
        self.assertEqual({name.lower() for name in request.headers},
                         {"content-type", "user-agent", "idempotency-key", "x-key", "authorization"})  # fmt: skip
        self.assertEqual(len(request.headers), 5)
        self.assertEqual(self.request(token="t").headers["Authorization"], "Bearer t")


class Answers(ShapeCase):
    def test_wrong_setting_is_named(self):
        wrong, elsewhere = "wrong-canary", split_url(f"{self.fakes['ntfy'].url}/x")
        for shape, changes, words in (
            ("ntfy", {"token": wrong}, "status 401: unauthorized; check [webhook] token, or the user and password in"),
            ("ntfy", {"topic": "private"}, "status 403: forbidden; check [webhook] token"),
            ("ntfy", {"url": elsewhere}, "status 404: Not Found; check [webhook] url"),
            ("telegram", {"token": "1:" + wrong}, "status 404: Not Found; check [webhook] token"),
            ("telegram", {"chat": "7"}, "status 400: Bad Request: chat not found; check [webhook] chat: write to the"),
            ("slack", {"url": split_url(self.fakes["slack"].url + "/services/T0/B0/" + wrong)},
             "status 404: no_service; check [webhook] url: create a new incoming webhook"),
            ("discord", {"url": split_url(self.fakes["discord"].url + "/api/webhooks/1/" + wrong)},
             "status 404: Unknown Webhook; check [webhook] url: create a new webhook"),
            ("gotify", {"token": wrong}, "access this api; check [webhook] token: it must be that of an application"),
            ("gotify", {"where": "[[channel]] phone", "token": wrong}, "check [[channel]] phone token"),
        ):  # fmt: skip
            with self.subTest(words):
                error = self.error(shape, **changes)
                self.assertIsInstance(error, Refused)
                self.assertIn(words, str(error))
                self.assertNotIn("canary", str(error))
                self.assertEqual(self.fakes[shape].received, [])

    def test_words_of_services_that_the_fakes_do_not_use_are_understood(self):
        def telegram(status, text, **parameters):
            return Refusal(status, {"ok": False, "error_code": status, "description": text, "parameters": parameters})

        for shape, answer, words in (
            ("telegram", telegram(403, "Forbidden: bot was blocked by the user"), "check [webhook] chat: the bot must"),
            ("telegram", telegram(400, "Bad Request: group chat was upgraded", migrate_to_chat_id=-1007),
             'set [webhook] chat = "-1007"'),
            ("telegram", telegram(401, "Unauthorized"), "status 401: Unauthorized; check [webhook] token"),
            ("slack", Refusal(410, "channel_is_archived"), "status 410: channel_is_archived; check [webhook] url"),
            ("slack", Refusal(403, "x\x1b[31m" + "y" * 999), "status 403: x\ufffd[31my"),
            ("discord", Refusal(400, "<html>"), "the response has the status 400"),
            ("gotify", Refusal(413, "[1]"), "the response has the status 413"),
            ("ntfy", Refusal(400, '{"error": 7}'), "the response has the status 400"),
        ):  # fmt: skip
            with self.subTest(words):
                error = self.error(shape, answer)
                self.assertIsInstance(error, Refused)
                self.assertIn(words, str(error))

    def test_pause_that_a_service_wants_is_obeyed(self):
        limited = {"message": "You are being rate limited.", "retry_after": 2.5, "global": False}
        telegram = {
            "ok": False,
            "error_code": 429,
            "description": "Too Many Requests",
            "parameters": {"retry_after": 35},
        }
        for shape, answer, pause_s in (
            ("telegram", Refusal(429, telegram), 35), ("discord", Refusal(429, limited, Retry_After="3"), 2.5),
            ("discord", Refusal(429, {**limited, "retry_after": 0.3}), 1),
            ("discord", Refusal(429, "<html>", Retry_After="90"), 90),
            ("discord", Refusal(429, {**limited, "retry_after": 1e99}), 86_400),
            ("discord", Refusal(429, {**limited, "retry_after": "x"}), None),
            ("discord", Refusal(429, {**limited, "retry_after": True}), None),
            ("discord", Refusal(429, {**limited, "retry_after": float("nan")}), None),
            ("discord", Refusal(429, {**limited, "retry_after": -1}), None),
            ("slack", Refusal(429, "rate_limited", Retry_After="30"), 30),
            ("ntfy", Refusal(429, {"code": 42901}), None),
        ):  # fmt: skip
            with self.subTest(shape, pause_s=pause_s):
                error = self.error(shape, answer)
                self.assertNotIsInstance(error, Refused)
                self.assertEqual((error.pause_s, error.is_answer), (pause_s, False))

    def test_fault_of_a_service_is_temporary(self):
        for shape in SERVICES:
            for status in (500, 502, 503):
                error = self.error(shape, Refusal(status, "<html>oops</html>"))
                self.assertEqual((isinstance(error, Refused), error.is_answer), (False, True))

    def test_words_of_a_service_do_not_repeat_secrets(self):
        for shape, (_, path, values) in SERVICES.items():
            secret = values.get("token") or path.rpartition("/")[2]
            for text in (f"no such key {secret}", f"cannot POST {path}?{secret}"):
                error = self.error(shape, Refusal(400, {"message": text, "description": text}))
                self.assertNotIn(secret, str(error))
        error = self.error("slack", Refusal(403, "key canary-header-1 is wrong"), headers={"X-Key": "canary-header-1"})
        self.assertNotIn("canary", str(error))

    def test_credentials_in_the_url_are_sent_and_not_shown(self):
        for user, is_right in (("me:s%C3%A9cret", True), ("me:wrong-canary", False)):
            url = split_url(self.fakes["ntfy"].url.replace("//", f"//{user}@"))
            channel = self.channel("ntfy", url=url, token="")
            if is_right:
                channel.send(HOT)
                continue
            with self.assertRaisesRegex(Refused, "status 401") as caught:
                channel.send(HOT)
            self.assertNotIn("canary", str(caught.exception) + channel.place)

    def test_long_answer_is_read_up_to_a_limit(self):
        error = self.error("slack", Refusal(403, "no_service " + "x" * 100_000))
        self.assertIsInstance(error, Refused)
        self.assertIn("status 403: no_service xxx", str(error))
        self.assertLess(len(str(error)), 400)
        endless = Refusal(403, "x", **{f"X-{number}": "y" * 60_000 for number in range(5)})
        self.assertNotIsInstance(self.error("slack", endless), Refused)

    def test_answer_whose_body_is_cut_off_is_success(self):
        for shape in SERVICES:
            self.fakes[shape].answers.append(Refusal(200, "", Content_Length="5"))
            self.channel(shape).send(HOT)


if __name__ == "__main__":
    unittest.main()
