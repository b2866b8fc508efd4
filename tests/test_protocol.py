"""The words of the link: valid lines are read, and all others are refused with a clear text."""

import gc
import json
import math
import random
import sys
import threading
import time
import tracemalloc
import unittest

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import BadArgument, NotUtf8, TooLong, UnknownWord, WireError, WrongVersion
from pigeonpost.core.strict_json import DEEPEST_JSON, read_json, write_json
from pigeonpost.link import checks
from pigeonpost.link.sample_json import read_samples
from protocol import (
    BATCH_SAMPLES,
    LINE_BYTES,
    VALUES_PER_SAMPLE,
    WORDS,
    Batch,
    Gap,
    Message,
    Sample,
    SampleBatch,
    decode,
    decode_joined,
    encode,
    error_line,
    is_count,
    sample_body,
    sample_text,
)
from tests.support import EPOCH, WALL_MS, rounds, samples_of, sensors_line

TIME = "2026-11-20T15:36:10.123Z"


def sample(**changes):
    """Return a sample's JSON object with changed keys; a value of ... removes the key."""
    item = {"seq": 1, "time": TIME, "up": 48_211_903, "values": {"temperature": 23.4, "light": 512}, **changes}
    return {key: value for key, value in item.items() if value is not ...}


def sensors(*items):
    return b"SENSORS %s %s\n" % (EPOCH.encode(), json.dumps(items, ensure_ascii=False).encode())


class Refusing(unittest.TestCase):
    def refused(self, line, error, *words):
        with self.assertRaises(error) as caught:
            decode(line)
        for word in words:
            self.assertIn(word, str(caught.exception))
        self.assertLess(len(str(caught.exception)), 1000)
        return caught.exception


class Words(Refusing):
    EXAMPLES = {
        "HELLO": ({"link": 1, "server": "home"},),
        "AUTH": ({"mac": "ab" * 32},),
        "HELD": ({"held": [[EPOCH, 1, 2, 3]], "more": True},),
        "RESUME": ({"id": 150, EPOCH: [150, 48_201_903]},),
        "SEND": (True,),
        "SENDBACK": (False,),
        "CHECK": (),
        "STATUS": (True, "15:36:10", {"held": 151, "über": "°C"}),
        "SENSORS": (EPOCH, [sample_text(7, WALL_MS, 9, '"values":{"a":1}', "")]),
        "GAP": (EPOCH, {"from": 101, "to": 340, "why": "overwritten", "before": 12}),
        "ACK": (EPOCH, 10**18 - 1),
        "ERROR": ("bad-ack", {"text": "no", "line": ""}),
        "BYE": (),
    }

    def test_every_word_has_an_example(self):
        self.assertEqual(list(self.EXAMPLES), list(WORDS))

    def test_every_word_is_encoded_and_decoded(self):
        for word, args in self.EXAMPLES.items():
            with self.subTest(word):
                line = encode(word, *args)
                self.assertTrue(line.endswith(b"\n"))
                self.assertEqual(line.count(b"\n"), 1)
                expected = args
                if word == "SENSORS":
                    expected = (EPOCH, [SampleBatch(7, [WALL_MS], [9], {"a": [1]})])
                for given in (line, line[:-1], line[:-1] + b"\r\n", line[:-1] + b"\r"):
                    self.assertEqual(decode(given), Message(word, expected))

    def test_words_are_read_in_any_case(self):
        for line in (b"send on", b"Send On", b"SEND oN"):
            self.assertEqual(decode(line), Message("SEND", (True,)))
        self.assertEqual(decode(b"status off - {}"), Message("STATUS", (False, None, {})))
        self.assertEqual(decode(b"ack %s 3" % EPOCH.encode()), Message("ACK", (EPOCH, 3)))

    def test_words_contain_only_ascii_letters(self):
        # "\u017f".upper() is "S", and "\ufb00".upper() is "FF".
        self.refused("\u017fEND ON".encode(), UnknownWord)
        self.refused("SEND o\ufb00".encode(), BadArgument, "ON or OFF")

    def test_sendack_is_read_as_sendback(self):
        for line in (b"SENDACK ON", b"sendack on"):
            self.assertEqual(decode(line), Message("SENDBACK", (True,)))

    def test_empty_lines_are_ignored(self):
        for line in (b"", b"\n", b"\r\n", b"   \n", b"\t"):
            self.assertIsNone(decode(line))

    def test_error_for_an_unknown_word_lists_the_words(self):
        for line in (b"HELO {}", b"CHECK\t", b" CHECK", b"GET / HTTP/1.1", b"\xef\xbb\xbfCHECK", b"{}", b"\0"):
            with self.subTest(line):
                error = self.refused(line, UnknownWord, "unknown word", "HELLO, AUTH, HELD")
                self.assertEqual((error.code, error.closes), ("unknown-word", False))

    def test_a_long_unknown_word_is_shown_short(self):
        self.refused(b"x" * 60_000, UnknownWord, "'" + "x" * 50, "...")

    def test_invalid_utf8_is_refused(self):
        for line, place in ((b"SEND \xff", "byte 5"), (b"\xed\xa0\x80", "byte 0"), (b"HELLO {}\xc3", "byte 8")):
            error = self.refused(line, NotUtf8, place)
            self.assertEqual((error.code, error.closes), ("not-utf8", False))

    def test_wrong_number_of_arguments_is_refused(self):
        for line, takes in (
            (b"CHECK now", "CHECK takes no argument"),
            (b"BYE  ", "BYE takes no argument"),
            (b"SEND", "SEND takes ON or OFF"),
            (b"SEND ", "SEND takes ON or OFF"),
            (b"HELLO", "HELLO takes a JSON object"),
            (b"STATUS ON 15:36:10", "STATUS takes ON or OFF and HH:MM:SS or - and a JSON object"),
            (b"ACK " + EPOCH.encode(), "ACK takes an epoch (16 hex digits) and a sequence number"),
            (b"SENSORS []", "SENSORS takes an epoch (16 hex digits) and a JSON array of samples"),
            (b"ERROR x", "ERROR takes a code and a JSON object"),
        ):
            with self.subTest(line):
                error = self.refused(line, BadArgument, takes)
                self.assertEqual((error.code, error.closes), ("bad-argument", False))

    def test_every_shape_explains_invalid_values(self):
        e = EPOCH.encode()
        for line, words in (
            (b"SEND 1", "ON or OFF, not '1'"),
            (b"SEND ON ", "ON or OFF, not 'ON '"),
            (b"SEND  ON", "ON or OFF, not ' ON'"),
            (b"SENDBACK YES", "ON or OFF"),
            (b"STATUS ON 3:36:10 {}", "a time of day must be like 15:36:10, or - for none, not '3:36:10'"),
            (b"STATUS ON 15:36:10.5 {}", "a time of day"),
            (b"STATUS ON 15:61:10 {}", "a time of day"),
            (b"ACK 0123456789ABCDEF 1", "an epoch must be 16 hex digits (0-9, a-f), not '0123456789ABCDEF'"),
            (b"ACK 0123456789abcde 1", "an epoch"),
            (b"ACK 0123456789abcdef0 1", "an epoch"),
            (b"GAP \xc2\xb2" + e[1:] + b" {}", "an epoch"),
            (b"ACK " + e + b" -1", "a sequence number must be a whole number of at least 0, not '-1'"),
            (b"ACK " + e + b" 1.0", "a sequence number"),
            (b"ACK " + e + b" 1e3", "a sequence number"),
            (b"ACK " + e + b" " + b"9" * 19, "a sequence number"),
            (b"ACK " + e + b" " + b"9" * 5000, "a sequence number"),
            (b"ACK " + e + " ١".encode(), "a sequence number"),
            (b"ERROR Bad {}", "an error code must be lower-case letters, digits and -, not 'Bad'"),
            (b"ERROR " + b"a" * 33 + b" {}", "an error code"),
            (b"HELLO []", "a JSON object, not []"),
            (b"HELLO 1", "a JSON object, not 1"),
            (b"HELLO null", "a JSON object, not None"),
            (b'HELLO "x"', "a JSON object, not 'x'"),
            (b"SENSORS " + e + b" {}", "columns must be an object with seq, time, up and values"),
            (b"SENSORS " + e + b" []", "samples must be a JSON array of 1 to 500"),
            (b"SENSORS " + e + b" 7", "samples must be a JSON array of 1 to 500"),
        ):
            with self.subTest(line):
                self.assertEqual(self.refused(line, BadArgument, words).code, "bad-argument")

    def test_encode_requires_the_arguments_of_the_table(self):
        for word, args in (("CHECK", (1,)), ("SEND", ()), ("GAP", (EPOCH,)), ("NOWORD", ())):
            with self.assertRaises((ValueError, KeyError)):
                encode(word, *args)
        for number in (math.nan, math.inf, -math.inf):
            with self.assertRaises(ValueError):
                encode("HELLO", {"x": number})

    def test_line_of_maximum_length_is_encoded_and_a_longer_one_is_not(self):
        room = LINE_BYTES - len(encode("HELLO", {"x": ""}))
        line = encode("HELLO", {"x": "a" * room})
        self.assertEqual(len(line), LINE_BYTES)
        self.assertEqual(len(decode(line).args[0]["x"]), room)
        with self.assertRaises(TooLong) as caught:
            encode("HELLO", {"x": "a" * (room + 1)})
        self.assertEqual((caught.exception.code, caught.exception.closes), ("too-long", True))
        self.assertIn("65537 bytes; at most 65536", str(caught.exception))
        with self.assertRaises(TooLong):
            encode("HELLO", {"x": "°" * (room // 2 + 1)})  # the limit is in bytes, not characters


class Json(Refusing):
    def test_json_values_are_read(self):
        for text, value in (
            ("{}", {}),
            ('{"a" : [1, -2.5e3, true, false, null, "\\u00b0 \\ud83d\\ude00 [{"]}\t\r ',
             {"a": [1, -2500.0, True, False, None, "° 😀 [{"]}),
            ('{"a":{"a":{"a":1}}}', {"a": {"a": {"a": 1}}}),
            ("9" * 400, int("9" * 400)),
            ("1e308", 1e308),
            ("-0.0", -0.0),
        ):  # fmt: skip
            self.assertEqual(read_json(text), value)

    def test_invalid_json_is_refused(self):
        for text in ("", " ", " {}", "{", "[", "{'a':1}", "{\"a\":1,}", "[1,]", "01", "1 2", "{} {}", "tru",
                     '"\n"', '"a', "\\", "+1", ".5", "0x1", "Nan", "[1}", "]",
                     "}"):  # fmt: skip
            with self.subTest(text):
                self.refused(b"HELLO " + text.encode() if text else b"HELLO  ", BadArgument)

    def test_infinite_numbers_are_refused(self):
        for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400 + ".0"):
            with self.subTest(text):
                self.refused(b'HELLO {"x":%s}' % text.encode(), BadArgument, "is not a finite number")
                self.refused(b"HELLO [%s]" % text.encode(), BadArgument, "is not a finite number")
                line = sensors(sample(values={"a": 1})).replace(b'{"a": 1}', b'{"a": %s}' % text.encode())
                self.refused(line, BadArgument, "finite number")

    def test_integer_of_five_thousand_digits_is_refused(self):
        self.refused(b'HELLO {"x":%s}' % (b"7" * 5000), BadArgument, "not JSON")
        for key in (b'"up": 48211903', b'"seq": 1', b'"light": 512'):
            name = key.partition(b":")[0]
            self.refused(sensors(sample()).replace(key, name + b":" + b"7" * 5000), BadArgument)
            self.refused(sensors(sample()).replace(key, name + b":" + b"7" * 4000), BadArgument)

    def test_duplicate_keys_are_refused(self):
        for text in ('{"a":1,"a":1}', '{"b":{"a":1,"a":2}}', '[{"a":1},{"b":1,"b":1}]', '{"\\u0061":1,"a":1}'):
            self.refused(b"HELLO " + text.encode(), BadArgument, "occurs twice in one JSON object")

    def test_duplicate_key_among_many_is_found_in_linear_time(self):
        keys = [f'"{k:x}":1' for k in range(7000)]
        line = ("HELLO {" + ",".join([*keys, keys[-1]]) + "}").encode()
        self.assertLess(len(line), LINE_BYTES)
        began_s = time.thread_time()
        self.refused(line, BadArgument, "'1b57' occurs twice")
        self.assertLess(time.thread_time() - began_s, 0.2)

    def test_nesting_is_accepted_up_to_the_limit(self):
        opened = {
            "arrays": lambda depth: "[" * depth + "]" * depth,
            "objects": lambda depth: '{"a":' * depth + "1" + "}" * depth,
            "both": lambda depth: '[{"a":' * (depth // 2) + ("[1]" if depth % 2 else "1") + "}]" * (depth // 2),
            "wide": lambda depth: (
                "[" + ",".join(["[" * (depth - 1) + "]" * (depth - 1)] * (50 if depth < 1000 else 2)) + "]"
            ),
        }
        for name, nested in opened.items():
            with self.subTest(name):
                json.loads(nested(DEEPEST_JSON))  # check that the test's value is valid JSON
                read_json(nested(DEEPEST_JSON))
                for depth in (DEEPEST_JSON + 1, DEEPEST_JSON + 2, DEEPEST_JSON + 5, 100, 30_000):
                    if depth < 1000:
                        json.loads(nested(depth))
                    with self.assertRaises(BadArgument) as caught:
                        read_json(nested(depth))
                    self.assertEqual(str(caught.exception), f"JSON nested deeper than {DEEPEST_JSON}")

    def test_brackets_in_strings_are_not_nesting(self):
        text = "[{" * 200 + '\\" ]] \\\\'
        value = {"a": text, "[[[[[[[[[[": [{"]}": "{{{{{{{{{{"}]}
        self.assertEqual(read_json(json.dumps(value)), value)

    def test_deep_nesting_never_reaches_the_stack(self):
        """A thread may have a stack of only 256 KiB; the C parsers of Python 3.11 and 3.13 use it differently."""
        lines = [b"[" * 100_000, b'{"a":' * 100_000, b"[{" * 50_000, b"[" * 100_000 + b"]" * 100_000,
                 b'["' + b"[" * 100_000, b'{"a":["\\"' * 10_000,
                 b'{"":{"}}":' * 10_000, b'{"\\"":{"\\"}}":' * 10_000, b'{"":["]}":' * 10_000 + b"1",
                  b'{"a":' * 100_000 + b"1" + b"}" * 100_000]  # fmt: skip
        found = []

        def read():
            for text in lines:
                for line in (b"HELLO " + text, b"SENSORS " + EPOCH.encode() + b" " + text):
                    try:
                        decode(line)
                    except WireError as error:
                        found.append(type(error))

        before = threading.stack_size(256 << 10)
        try:
            thread = threading.Thread(target=read)
            thread.start()
        finally:
            threading.stack_size(before)
        thread.join(60)
        self.assertEqual(found, [BadArgument] * 2 * len(lines))

    def test_brackets_and_open_quotes_take_no_more_time_than_other_lines(self):
        for text in (
            b'"' + b'\\"' * 32_000,
            b'"a' * 20_000 + b"\\",
            b'"\\' * 20_000,
            b'"' * 60_000,
            b'"' + b"a" * 60_000,
        ):
            began_s = time.thread_time()
            with self.assertRaises(BadArgument):
                decode(b"HELLO " + b"[" * 9 + text)
            self.assertLess(time.thread_time() - began_s, 0.5, text[:10])

    def test_half_a_surrogate_pair_is_refused(self):
        for text in (r'"\ud800"', r'"\udc00"', r'"\udc00\ud800"', r'"\uD83Dx"', r'{"\ud83d":1}'):
            with self.subTest(text):
                self.refused(b'HELLO {"x":' + text.encode() + b"}", BadArgument, "surrogate")
        self.assertEqual(decode(rb'HELLO {"x":"\uD83D\uDE00"}').args[0], {"x": "😀"})
        self.assertEqual(decode(rb'HELLO {"x":"\\ud800"}').args[0], {"x": r"\ud800"})
        line = sensors(sample(values={"a": None}, errors={"a": "?"})).replace(b"?", rb"\ud800")
        self.refused(line, BadArgument, "surrogate")

    def test_written_json_is_one_line_and_is_read_again(self):
        value = {"a": ["\n\r\0\u2028", 1.5, None, True, {"b": {}}]}
        text = write_json(value)
        self.assertNotIn("\n", text)
        self.assertEqual(read_json(text), value)


class Samples(Refusing):
    def test_valid_samples_are_read(self):
        for changes, expected in (
            ({}, Sample(1, WALL_MS, 48_211_903, {"temperature": 23.4, "light": 512}, {}, "")),
            ({"clock": "unset"}, Sample(1, WALL_MS, 48_211_903, {"temperature": 23.4, "light": 512}, {}, "unset")),
            ({"clock": "server", "more": {"to": "come"}, "seq": 10**18 - 1},
             Sample(10**18 - 1, WALL_MS, 48_211_903, {"temperature": 23.4, "light": 512}, {}, "server")),
            ({"values": {"a": None}, "errors": {"a": "no response"}, "up": 0},
             Sample(1, WALL_MS, 0, {"a": None}, {"a": "no response"}, "")),
            ({"values": {"a": -(2**63 - 1)}, "time": "2026-11-20T16:36:10.123456+01:00"},
             Sample(1, WALL_MS, 48_211_903, {"a": -(2**63 - 1)}, {}, "")),
        ):  # fmt: skip
            self.assertEqual(decode(sensors(sample(**changes))).args[0], EPOCH)
            self.assertEqual(samples_of(sensors(sample(**changes))), [expected])

    def test_invalid_samples_are_refused(self):
        for item, words in (
            (None, "a sample must be an object with seq, time, up and values"),
            ([1, 2, 3, 4], "a sample must be an object"),
            ("seq", "a sample must be an object"),
            (7, "a sample must be an object"),
            (sample(seq=...), "a sample must be an object"),
            (sample(up=...), "a sample must be an object"),
            (sample(values=...), "a sample must be an object"),
            (sample(time=...), "a sample must be an object"),
            (sample(seq=0), "seq must be a whole number of at least 1, not 0"),
            (sample(seq=-1), "seq must be a whole number of at least 1"),
            (sample(seq=1.0), "seq must be a whole number of at least 1, not 1.0"),
            (sample(seq="1"), "seq must be a whole number of at least 1, not '1'"),
            (sample(seq=True), "seq must be a whole number of at least 1, not True"),
            (sample(seq=10**18), "seq must be a whole number of at least 1"),  # an ACK could not contain it
            (sample(up=-1), "sample 1: up must be milliseconds since boot"),
            (sample(up=False), "sample 1: up must be"),
            (sample(up=0.5), "sample 1: up must be"),
            (sample(up=2**63), "sample 1: up must be"),
            (sample(values={}), "sample 1: values must be an object of sensor names and numbers"),
            (sample(values=[1]), "sample 1: values must be an object"),
            (sample(values={"Temperature": 1}), "sample 1: 'Temperature' is not a valid sensor name"),
            (sample(values={"1a": 1}), "is not a valid sensor name"),
            (sample(values={"": 1}), "is not a valid sensor name"),
            (sample(values={"a" * 33: 1}), "is not a valid sensor name"),
            (sample(values={"a\n": 1}), "is not a valid sensor name"),
            (sample(values={"ä": 1}), "is not a valid sensor name"),
            (sample(values={"a": "1"}), "sample 1: a must be a finite number or null, not '1'"),
            (sample(values={"a": True}), "sample 1: a must be a finite number or null, not True"),
            (sample(values={"a": [1]}), "sample 1: a must be a finite number"),
            (sample(values={"a": {}}), "sample 1: a must be a finite number"),
            (sample(values={"a": 2**63}), "sample 1: a must be a finite number"),
            (sample(clock="set"), 'sample 1: clock must be "unset", "server" or absent, not \'set\''),
            (sample(clock=None), "sample 1: clock must be"),
            (sample(clock=["unset"]), "sample 1: clock must be"),
            (sample(errors=[]), "sample 1: errors must map"),
            (sample(errors={"other": "x"}), "sample 1: errors must map names of this sample's sensors to texts"),
            (sample(errors={"light": 1}), "sample 1: errors must map"),
        ):
            with self.subTest(item):
                self.refused(sensors(item), BadArgument, words)

    def test_invalid_times_are_refused(self):
        keys = {str(k): 1 for k in range(30)}
        for value in (
            "", "2026-11-20", "2026-11-20T15:36:10.123", "2026-11-20 15:36", "20261120T153610.123Z+00", "x" * 24,
            "2026-13-20T15:36:10Z", "2026-11-20T25:36:10Z", "2026-W47-5T15:36:10Z", "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999-23:59",  # years in UTC that no library can write
            "T" * 60_000, "２026-11-20T15:36:10.123Z", 1_795_188_970_123, None, True, [], ["T"] * 24, keys, {},
        ):  # fmt: skip
            with self.subTest(str(value)[:40]):
                self.refused(
                    sensors(sample(time=value)), BadArgument, "sample 1: time must be like 2026-11-20T15:36:10.123Z"
                )

    def test_distant_times_are_accepted(self):
        for value in ("0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z", "1970-01-01T00:00:00.000Z"):
            self.assertEqual(rfc3339(samples_of(sensors(sample(time=value)))[0].time_ms), value)

    def test_skipped_seq_within_a_line_is_refused(self):
        self.assertEqual([s.seq for s in samples_of(sensors(sample(seq=5), sample(seq=6)))], [5, 6])
        for second in (5, 4, 7):
            words = f"sample {second} follows 5; seq must not skip numbers within one line"
            self.refused(sensors(sample(seq=5), sample(seq=second)), BadArgument, words)

    def test_line_has_at_most_500_samples(self):
        line = sensors_line(EPOCH, 1, BATCH_SAMPLES)
        self.assertLess(len(line), LINE_BYTES)
        self.assertEqual(len(samples_of(line)), BATCH_SAMPLES)
        items = [{"seq": k, "time": TIME, "up": 1, "values": {"a": 1}} for k in range(1, BATCH_SAMPLES + 2)]
        with self.assertRaises(BadArgument):
            read_samples(items)

    def test_duplicate_key_in_a_sample_is_found_in_any_spelling(self):
        usual = json.dumps(sample(), separators=(",", ":"))
        for text in (
            usual.replace('"seq":1', '"seq":1,"seq":1'),
            usual.replace('"seq":1', '"seq":1,"seq" :2'),  # with the space, `":` occurs as often as in the usual sample
            usual.replace('"seq":1', '"seq" :1,"seq":2'),
            usual.replace('"seq":1', '"seq"\t:1,"seq"\t:2'),
            usual.replace('"seq":1', '"s\\u0065q":1,"seq":2'),
            usual.replace('"light":512', '"light":512,"light":512'),
            usual.replace('"light":512', '"light" :512,"light":512'),
            usual.replace('"up"', '"values" :{"a":1},"up"'),
            usual.replace('"up"', '"x":{"a":1,"a":2},"up"'),
            usual.replace('"up"', '"time" :"2026-11-20T15:36:10.123Z","up"'),
            usual.replace('"up"', '"x":1,"x" :2,"up"'),
        ):
            with self.subTest(text):
                self.refused(f"SENSORS {EPOCH} [{text}]".encode(), BadArgument, "occurs twice in one JSON object")

    def test_strict_decoder_decides_if_the_count_of_keys_differs(self):
        """Strings with `":`, escapes and spaces make the fast count wrong, although the sample is valid."""
        item = sample(values={"a": None}, errors={"a": 'told "x": "\\", }":{ [[['}, note={'k":': ['":', {"z": 1}]})
        expected = [Sample(1, WALL_MS, 48_211_903, {"a": None}, item["errors"], "")]
        for text in (json.dumps([item], indent=1), json.dumps([item], separators=(" ,", " : ")), json.dumps([item])):
            self.assertEqual(samples_of(f"SENSORS {EPOCH} ".encode() + text.encode()), expected)

    def test_infinite_numbers_of_unknown_keys_are_refused(self):
        line = f"SENSORS {EPOCH} [{json.dumps(sample(more=0))}]".replace('"more": 0', '"more": 1e999')
        self.refused(line.encode(), BadArgument, "not a finite number")

    def test_body_is_written_once_and_sent_unchanged(self):
        body = sample_body({"temperature": 23.4, "light": None}, {"light": 'no "response"'})
        for clock in ("", "unset", "server"):
            read = read_samples([json.loads(sample_text(151, WALL_MS, 48_211_903, body, clock))])
            values, errors = {"temperature": 23.4, "light": None}, {"light": 'no "response"'}
            self.assertEqual(read, [Sample(151, WALL_MS, 48_211_903, values, errors, clock)])
        self.assertEqual(
            sample_text(151, WALL_MS, 48_211_903, sample_body({"temperature": 23.4, "light": 512}, {}), ""),
            '{"seq":151,"time":"2026-11-20T15:36:10.123Z","up":48211903,"values":{"temperature":23.4,"light":512}}',
        )


class Batches(unittest.TestCase):
    def of(self, samples, gap=None):
        return Batch("a", "0" * 16, EPOCH, 0, samples, gap, {})

    def test_batch_of_samples_has_their_ends_and_weight(self):
        one = SampleBatch(5, [1, 2, 3], [1, 2, 3], {"a": [1, 2, 3]})
        batch = self.of(one)
        self.assertEqual((batch.sample_count, batch.ends, batch.weight), (3, (5, 7), 3))
        wide = SampleBatch(5, [1], [1], {f"n{k}": [k] for k in range(10 * VALUES_PER_SAMPLE)})
        self.assertEqual((self.of(wide).sample_count, self.of(wide).weight), (1, 10))

    def test_batch_of_a_gap_has_its_ends_and_weight_1(self):
        batch = self.of(None, Gap(3, 9, 0, "overwritten"))
        self.assertEqual((batch.sample_count, batch.ends, batch.weight), (0, (3, 9), 1))


class Joined(unittest.TestCase):
    def lines(self, *seqs):
        return [f"SENSORS {EPOCH} {json.dumps([sample(seq=seq)], separators=(',', ':'))}".encode() for seq in seqs]

    def test_lines_received_together_are_one_message(self):
        message = decode_joined(self.lines(1, 2, 3))
        self.assertEqual((message.word, message.args[0]), ("SENSORS", EPOCH))
        (batch,) = message.args[1]
        self.assertEqual((batch.seq, len(batch), batch.values["light"]), (1, 3, [512, 512, 512]))

    def test_unusual_lines_are_left_to_the_decoder_of_single_lines(self):
        first, second = self.lines(1, 2)
        for one in (second[:-1], second + b" ", second.replace(b"up", b"uq"), first):
            self.assertIsNone(decode_joined([first, one]), one)
        self.assertIsNone(decode_joined([b"GAP" + first[7:], b"GAP" + second[7:]]))

    def test_is_count_accepts_only_storable_whole_numbers(self):
        self.assertTrue(is_count(0) and is_count(checks.LARGEST_SEQ))
        self.assertFalse(any(map(is_count, (-1, 1.0, True, None, "1", checks.LARGEST_SEQ + 1))))


class ErrorLines(unittest.TestCase):
    def test_error_line_contains_the_reason_and_the_line(self):
        line = error_line(BadArgument("ON or OFF, not 'x'"), b"SEND x\r\n")
        self.assertEqual(line, b'ERROR bad-argument {"text":"ON or OFF, not \'x\'","line":"SEND x"}\n')

    def test_error_line_is_valid_for_any_error_and_line(self):
        texts = ["", "x" * 200_000, "\0" * 100_000, "😀" * 50_000, "\\" * 70_000, "\ud800" * 10, "a\nb\r\u2028"]
        lines = [
            b"",
            b"x" * 100_000,
            b"\0" * 65_536,
            b"\xff" * 65_536,
            "😀".encode() * 16_000,
            b"\xf0\x9f\x98" * 500,
            b"\n\r",
        ]
        for text in texts:
            for given in lines:
                for error in (WrongVersion(text), TooLong(text)):
                    line = error_line(error, given)
                    self.assertLessEqual(len(line), LINE_BYTES)
                    self.assertEqual(line.count(b"\n"), 1)
                    code, details = decode(line).args
                    self.assertEqual(code, error.code)
                    self.assertLessEqual(len(details["line"]), 80)

    def test_error_line_quotes_the_first_80_characters(self):
        for letter in ("a", "°", "😀"):
            details = decode(error_line(BadArgument("?"), (letter * 100).encode())).args[1]
            self.assertEqual(details["line"], letter * 80)


class Memory(unittest.TestCase):
    def test_invented_sensor_names_are_not_remembered_without_limit(self):
        names = [f"a{k:x}" for k in range(4000)]
        body = ",".join(f'"{name}":1' for name in names)
        lines = []
        for k in range(16):  # the names together take more than 2 MiB
            values = f'"b{k}":1,{body}'
            lines.append(f'SENSORS {EPOCH} [{{"seq":1,"time":"{TIME}","up":1,"values":{{{values}}}}}]'.encode())
        decode(lines[0])
        gc.collect()
        tracemalloc.start()
        try:
            for line in lines:
                decode(line)
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            checks._good_names.clear()
        self.assertLess(kept, 2 << 20)

    def test_at_most_256_sets_of_sensor_names_are_remembered(self):
        self.addCleanup(checks._good_names.clear)
        checks._good_names.clear()
        for k in range(600):
            decode(sensors(sample(values={f"a{k}": 1})))
            self.assertLessEqual(len(checks._good_names), 256)
        with self.assertRaises(BadArgument):
            decode(sensors(sample(values={"A": 1})))
        self.assertEqual(samples_of(sensors(sample(values={"a1": 2})))[0].values, {"a1": 2})

    def test_decoding_needs_little_memory_beyond_the_line(self):
        lines = [
            b"HELLO " + b"[" * 65_000,
            b"HELLO {" + b",".join(b'"%x":[]' % k for k in range(6000)) + b"}",
            b"HELLO [" + b"[]," * 20_000 + b"1]",
            b"SENSORS %s [%s]" % (EPOCH.encode(), b"," * 65_000),
            b"x" * 65_000,
            b"\xff" * 65_000,
        ]
        for line in lines:
            tracemalloc.start()
            try:
                try:
                    decode(line)
                except WireError as error:
                    error_line(error, line)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            self.assertLess(peak, 4 << 20, line[:20])


def mutated(rng, line):
    """Return `line` with a few bytes changed, removed, repeated or moved."""
    line = bytearray(line)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(line) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            line[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del line[at : at + rng.randint(1, 20)]
        elif kind == 2:
            line[at:at] = line[at : at + rng.randint(1, 30)]
        elif kind == 3:
            line[at:at] = rng.choice(INSERTS)
        elif kind == 4:
            line[at : at + rng.randint(1, 12)] = rng.choice(INSERTS)
        else:
            line = line[at:] + line[:at]
    return bytes(line)


INSERTS = [text.encode("utf-8", "surrogatepass") for text in (
    '"', "{", "}", "[", "]", ",", ":", "\\", "\\u", "\\ud800", "\\u0000", "null", "true", "NaN", "-Infinity", "1e999",
    "1e-999", "9" * 25, "-1", "0", "1.5", '"a":1,', '"seq":1,', '"time":{"0":1},', " ", "\r", "\t", "\0", "ſ", "ﬀ",
    "\ud800", "😀", "\x1c", "ON", "off", "SENDACK", "HELLO {}", EPOCH, "[[[[[[[[[[[", '{"a":{"a":{"a":', '"more":true,',
    '"held":[[]],', '"nonce":""',
)]  # fmt: skip


def seeds():
    """Return lines of every word, as both ends send them, for mutation."""
    lines = [encode(word, *args) for word, args in Words.EXAMPLES.items()]
    lines += [sensors(sample()), sensors(sample(clock="unset"), sample(seq=2, values={"a": None}, errors={"a": "x"}))]
    lines += [encode("HELLO", {"link": 1, "server": "home", "time": TIME, "clock": "set", "nonce": "a" * 32})]
    lines += [encode("HELLO", {
        "link": 1, "node": "n", "outbox": EPOCH, "held": [[EPOCH, 1, 2, 3]], "every": 10.0,
        "sensors": [{"name": "temperature", "unit": "°C"}], "time": TIME,
    })]  # fmt: skip
    return [line.rstrip(b"\n") for line in lines]


def hostile_lines(seed, count):
    """Return `count` random and mutated lines, the same ones for each seed."""
    rng = random.Random(f"lines {seed}")
    known = seeds()
    for _ in range(count):
        if rng.random() < 0.1:
            yield rng.randbytes(rng.randint(0, 60))
        elif rng.random() < 0.1:
            yield b" ".join(rng.choices([*INSERTS, *known], k=rng.randint(1, 5)))
        else:
            yield mutated(rng, rng.choice(known))


class Fuzz(unittest.TestCase):
    def test_random_and_mutated_lines_are_read_or_refused(self):
        seed = random.randrange(10**6)
        for line in hostile_lines(seed, rounds("PIGEONPOST_TEST_LINES", 10_000, 100_000)):
            try:
                message = decode(line)
            except WireError as error:
                try:
                    told = decode(error_line(error, line))
                except Exception as fault:
                    self.fail(f"seed {seed}: {line!r}: the ERROR for it: {fault!r}")
                self.assertEqual(told.word, "ERROR")
            except BaseException as fault:
                self.fail(f"seed {seed}: {line!r}: {fault!r}")
            else:
                if message is not None:
                    self.assertIn(message.word, WORDS, f"seed {seed}: {line!r}")
                    self.assertEqual(len(message.args), len(WORDS[message.word].shapes))


if sys.flags.int_max_str_digits == 0:  # pragma: no cover
    raise unittest.SkipTest("integers of any length are converted here")

if __name__ == "__main__":
    unittest.main()
