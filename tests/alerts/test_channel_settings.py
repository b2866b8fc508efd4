"""Tests of the settings of channels: keys of each shape, errors without secrets, reports, and what is shown."""

import argparse
import unittest

from pigeonpost.alerts.alert_store import AlertStore
from pigeonpost.alerts.channel_settings import read_channels, read_webhook
from pigeonpost.alerts.contract import AlertMessage
from pigeonpost.alerts.registry import alert_channels, has_channel, report_plans
from pigeonpost.cli.settings_secrets import secrets_in_file
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.data_folder import ALERTS
from pigeonpost.core.errors import SettingsError
from pigeonpost.settings import load_server
from tests.page_support import use_memory_disk
from tests.support import temp_folder

BOT = "123:canary-bot"
NTFY = '[[channel]]\nname = "phone"\nshape = "ntfy"\nurl = "https://ntfy.sh/canary-topic"\n'
VALID = {
    "json": 'url = "https://me:canary@h.example/canary?x=canary"\ntoken = "canary"\ntemplate = \'["{text}"]\'\n',
    "ntfy": 'url = "https://ntfy.sh"\ntopic = "canary"\ntoken = "tk_canary"\n',
    "telegram": f'url = "https://api.telegram.org"\ntoken = "{BOT}"\nchat = "-1007"\n',
    "slack": 'url = "https://hooks.slack.com/services/T0/B0/canary"\nheaders = ["X-Key: canary"]\n',
    "discord": 'url = "https://discord.com/api/webhooks/1/canary"\n',
    "gotify": 'url = "https://gotify.example"\ntoken = "canary"\n',
}


def setUpModule():
    use_memory_disk()


def load(text):
    return load_server(argparse.Namespace(config=None), {"PIGEONPOST_SERVER_TOML": text}, ())


def tables(**more):
    """Return one [[channel]] table for each shape, named after it."""
    return "".join(
        f'[[channel]]\nname = "{shape}"\nshape = "{shape}"\n{keys}{more.get(shape, "")}'
        for shape, keys in VALID.items()
    )


class Keys(unittest.TestCase):
    def refused(self, text):
        with self.assertRaises(SettingsError) as caught:
            alert_channels(load(text))
        self.assertNotIn("canary", str(caught.exception))
        return str(caught.exception)

    def test_each_shape_is_read_in_both_tables(self):
        several = read_channels(load(tables()))
        self.assertEqual([one.key for one in several], [f"channel {shape}" for shape in VALID])
        for one in several:
            with self.subTest(one.shape):
                single = read_webhook(load(f'[webhook]\nshape = "{one.shape}"\n{VALID[one.shape]}'))
                self.assertEqual((single.key, single.where), ("webhook", "[webhook]"))
                names = {"key": "", "where": "", "chosen": None, "plan": None}
                self.assertEqual(single._replace(**names), one._replace(**names))

    def test_topic_is_read_from_the_url(self):
        for url, topic, target in (
            ("https://ntfy.sh/alarm", "", "/"), ("https://ntfy.sh/alarm/", "", "/"), ("https://ntfy.sh", "alarm", "/"),
            ("https://ntfy.sh/alarm", "alarm", "/"), ("https://ntfy.sh/alarm?auth=x", "", "/?auth=x"),
        ):  # fmt: skip
            (one,) = read_channels(load(f'[[channel]]\nname="a"\nshape="ntfy"\nurl="{url}"\ntopic="{topic}"'))
            self.assertEqual((one.topic, one.url.target), ("alarm", target), url)

    def test_unset_webhook_is_no_channel(self):
        self.assertIsNone(read_webhook(load("")))
        self.assertFalse(has_channel(load("")))
        self.assertTrue(has_channel(load(NTFY)))

    def test_wrong_key_is_named_with_its_table(self):
        for shape, change, words in (
            ("ntfy", ("https://ntfy.sh", "https://ntfy.sh/other"), "1: url: leave out the path, because topic is set"),
            ("ntfy", ('topic = "canary"', ""), "1: topic is missing: set it, or write it in url as in https://ntfy.sh"),
            ("ntfy", ('"canary"', '"canary topic"'), "1: topic takes a topic of up to 64 letters, digits, - and _"),
            ("ntfy", ("tk_canary", "tk canary"), "1: token takes the token of the service, without spaces"),
            ("telegram", ('"-1007"', '"canary"'), '1: chat takes the number of a chat such as "-1001234567890"'),
            ("telegram", ('chat = "-1007"', ""), '1: chat is missing: shape = "telegram" needs it (docs/alerts.md)'),
            ("telegram", (f'token = "{BOT}"', ""), '1: token is missing: shape = "telegram" needs it'),
            ("telegram", (BOT, "canary"), "1: token takes the token of a bot: digits, a colon, letters"),
            ("telegram", (BOT, "1: canary"), "1: token takes the token of the service, without spaces"),
            ("gotify", ('"canary"', '""'), "1: token is missing"),
            ("slack", ("headers", 'token = "canary"\nheaders'), '1: token is not used with shape = "slack"'),
            ("slack", ("X-Key: canary", "canary"), "1: headers takes a list of HTTP headers: an HTTP header such as"),
            ("slack", ("X-Key", "Content-Length"), "1: headers: the header Content-Length cannot be set"),
            ("slack", ('headers = ["X-Key: canary"]', "headers = 1"), "1: headers takes a list"),
            ("discord", ("https:", "ftp:"), "1: url takes an address that begins with http:// or https:// and a host"),
            ("discord", ("discord.com", "me:canary/x@discord.com"), "1: url takes an address whose port is a number"),
            ("discord", ("discord.com", "a%3Ab:canary@discord.com"), "1: url takes a user name without a colon"),
            ("discord", ("url", "urls"), 'unknown key \'urls\'; did you mean "url"?'),
            ("discord", ('url = "https://discord.com/api/webhooks/1/canary"', ""), "1: url is missing"),
            ("json", ("[\"{text}\"]", "{text}"), "1: template takes a JSON text: not JSON"),
            ("json", ("{text}", "{canary_} {valeu} {text}"), "1: template: unknown placeholder"),
            ("json", ('\'["{text}"]\'', "7"), "1: template takes a string"),
            ("gotify", ("token", 'report = "hourly"\ntoken'), "1: report takes true, false, 'daily', 'weekly' or 'mon"),
            ("gotify", ("token", "day = 5\ntoken"), "1: day is not used with the period daily"),
            ("gotify", ("token", 'severity = "loud"\ntoken'), "1: severity takes 'info' or"),
        ):  # fmt: skip
            with self.subTest(words):
                self.assertIn(change[0], VALID[shape])
                keys = VALID[shape].replace(*change)
                text = f'[[channel]]\nname = "a"\nshape = "{shape}"\n{keys}'.replace("canary_", "typo")
                self.assertIn(words, self.refused(text))

    def test_name_is_needed_and_unique(self):
        for text, words in (
            ('[[channel]]\nurl = "http://h/"\n', '[[channel]] 1: name is missing: it takes a name such as "phone"'),
            (NTFY * 2, "[[channel]] 2: name: there is another channel 'phone'; use another name"),
            (NTFY.replace("phone", "webhook"), "1: name: there is another channel 'webhook'"),
            (NTFY.replace("phone", "my phone"), "1: name takes a name of up to 32 letters, digits, and . _ -"),
        ):
            self.assertIn(words, self.refused(text))

    def test_webhook_with_other_keys_but_no_url_is_an_error(self):
        self.assertIn("[webhook] url is missing", self.refused(NTFY + '[webhook]\ntoken = "canary"\n'))


class Secrets(unittest.TestCase):
    def test_settings_are_shown_without_secrets(self):
        for text in (tables(), *(f'[webhook]\nshape = "{shape}"\n{keys}' for shape, keys in VALID.items())):
            shown = load(text).show()
            self.assertNotIn("canary", shown)
            self.assertIn('url = "(set)"' if "[[" in text else "[webhook] url = (set)", shown)

    def test_secrets_in_a_settings_file_are_found(self):
        names = [one.name for one in secrets_in_file("server", load(tables()))]
        self.assertEqual(names, [
            "[[channel]] 1: url", "[[channel]] 1: token", "[[channel]] 2: url", "[[channel]] 2: topic",
            "[[channel]] 2: token", "[[channel]] 3: url", "[[channel]] 3: token", "[[channel]] 4: url",
            "[[channel]] 4: headers", "[[channel]] 5: url", "[[channel]] 6: url", "[[channel]] 6: token",
        ])  # fmt: skip

    def test_fault_in_the_file_is_shown_without_the_address(self):
        for line in ("url = https://h.example/canary", "topic = canary\ntoken = canary"):
            with self.assertRaises(SettingsError) as caught:
                load(f"[[channel]]\n{line}\n")
            if line.startswith("url"):
                self.assertNotIn("canary", str(caught.exception))


class Use(unittest.TestCase):
    def test_channel_receives_only_its_alerts(self):
        (channel,) = alert_channels(load(NTFY + 'severity = "critical"\nnodes = ["attic"]\n'), {"loft": "attic"}.get)
        message = AlertMessage("a", "b\n", {"node": "loft", "severity": "critical"}, "id")
        self.assertEqual((channel.key, channel.name), ("channel phone", "phone"))
        current = [channel.select(message._replace(info={**message.info, **change})) for change in (
            {}, {"severity": "warning"},
        )]  # fmt: skip
        self.assertEqual(current, [None, None])  # `attic` has no current name here
        (channel,) = alert_channels(load(NTFY + 'severity = "critical"\nnodes = ["attic"]\n'))
        for change, is_selected in (
            ({"node": "attic"}, True), ({"node": "cellar"}, False), ({"node": "attic", "severity": "warning"}, False),
        ):  # fmt: skip
            selected = channel.select(message._replace(info={**message.info, **change}))
            self.assertEqual(selected is not None, is_selected, change)

    def test_report_of_a_channel_follows_its_keys(self):
        general = '[report]\nat = "07:00"\n'
        for keys, plans in (
            ("", [("report:channel phone", "daily at 07:00")]),
            ("report = true", [("report:channel phone", "daily at 07:00")]),
            ("report = false", []), ('report = "none"', []),
            ('report = "weekly"\nday = "friday"', [("report:channel phone", "weekly")]),
        ):  # fmt: skip
            found = report_plans(load(f"{NTFY}{keys}\n{general}"))
            self.assertEqual([plan.key for plan in found], [key for key, _ in plans], keys)
            for plan, (_, words) in zip(found, plans, strict=True):
                self.assertEqual(plan.channels, ["channel phone"])
                self.assertIn(words, str(plan))
        self.assertEqual(report_plans(load(NTFY)), [])
        both = report_plans(load(f'{NTFY}report = false\n{general}[webhook]\nurl = "http://h/"\n'))
        self.assertEqual([(plan.key, plan.channels) for plan in both], [("report", ["webhook"])])

    def test_messages_of_a_removed_channel_are_dropped_and_logged(self):
        path, clock = f"{temp_folder(self)}/{ALERTS}", FakeClock()
        queue = AlertStore(path, ["webhook", "channel phone"], clock)
        queue.put([AlertMessage("hot", "hot\n", {}, "id-1")])
        queue.close()
        with self.assertLogs("pigeonpost.alerts.alert_store", "WARNING") as logged:
            queue = AlertStore(path, ["webhook"], clock)
        self.assertEqual(len(queue.waiting("webhook")), 1)
        self.assertIn("channel phone, which is no longer in the settings: 1 message dropped", str(logged.output))
        queue.close()


if __name__ == "__main__":
    unittest.main()
