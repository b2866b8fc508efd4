"""JSON of samples: right ones or BadArgument, and the fast way never takes what the strict one refuses."""

import json
import unittest

from pigeonpost.core.errors import BadArgument
from pigeonpost.core.strict_json import DEEPEST_JSON, read_json, write_json
from protocol import LARGEST_SEQ, LINE_BYTES, SENSOR_NAME, decode, read_samples
from tests.fuzz import Target, fuzzed, mutated, st
from tests.support import EPOCH
from tests.test_protocol import INSERTS, TIME

NUMBERS = ("0", "1", "-0", "1.5", "1e5", "1e999", "NaN", "-Infinity", "9" * 18, "9" * 19, "9" * 4301, str(2**63))
TIMES = (TIME, "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-11-20 15:36:10+00:00", "2026-W47-5")
TEXTS = ("", "x", "unset", "server", EPOCH, "\\ud83d\\ude00", "\\udc00", "\\ud800", '\\"', *TIMES)
NAMES = (
    "seq",
    "time",
    "up",
    "values",
    "errors",
    "clock",
    "s\\u0065q",
    "a",
    "light",
    "\\u0061",
    "more",
    "held",
    "\\ud800",
)
PIECES = (*INSERTS, *(text.encode() for text in (*NUMBERS, *TIMES)))


def json_texts():
    """JSON as text: names twice, escapes, numbers that are none, brackets in brackets."""
    strings = (st.sampled_from(TEXTS) | st.text(max_size=5).map(lambda text: json.dumps(text)[1:-1])).map('"{}"'.format)
    single = st.sampled_from(("null", "true", "[" * 9 + "]" * 9, *NUMBERS)) | strings | st.integers().map(str)
    return st.recursive(single, lambda inner: array(inner, 4) | objects(inner), max_leaves=8)


def array(items, most):
    return st.lists(items, max_size=most).map(lambda items: f"[{','.join(items)}]")


def objects(values):
    return st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=4).map(as_object)


def as_object(pairs):
    return "{" + ",".join(f'"{name}":{text}' for name, text in pairs) + "}"


def sample_texts():
    """An array of samples: right ones but for a key or two more, which may stand twice then."""
    values = st.sampled_from(('{"a":1}', '{"a":1.5,"light":null}', '{"a":1,"a":2}', '{"a":1e999}'))
    errors = st.sampled_from(("{}", "null", '{"a":"x"}', '{"a":"\\""}', '{"a":"x","\\u0061":"y"}'))
    known = st.sampled_from(("values", "errors")).flatmap(
        lambda name: st.tuples(st.just(name), values if name == "values" else errors)
    )
    more = st.lists(known | st.tuples(st.sampled_from(NAMES), json_texts()), max_size=2)

    def sample(seq):
        right = st.tuples(st.just(("up", "5")), st.tuples(st.just("values"), values))
        return st.tuples(more, right, more | st.just([]) | st.just([("clock", '"unset"')])).map(
            lambda three: as_object([("seq", seq), ("time", f'"{TIME}"'), *three[0], *three[1], *three[2]])
        )

    return st.tuples(sample(1), st.just("") | sample(2)).map(lambda two: f"[{','.join(filter(None, two))}]")


class Samples(Target, unittest.TestCase):
    corpus = "samples"

    def check(self, data):
        text = data.decode(errors="replace").rstrip("\r\n")
        with self.bounded():
            strict = self.outcome(lambda: read_samples(read_json(text)))
            fast = self.outcome(lambda: decode(f"SENSORS {EPOCH} {text}".encode()).args[1])
        self.assertEqual(fast, strict, "the fast way reads it otherwise than the strict one")
        value = self.outcome(lambda: read_json(text))
        if value is not None:
            self.assertEqual(value, json.loads(text, object_pairs_hook=self.no_name_twice))
            self.assertLessEqual(self.depth(value), DEEPEST_JSON)
            write_json(value).encode()  # no NaN, no half of a pair
        for seq, sample in enumerate(strict or (), strict[0].seq if strict else 0):
            self.assertEqual(sample.seq, seq)
            self.assertTrue(0 < seq <= LARGEST_SEQ and 0 <= sample.up_ms < 1 << 63 and sample.values)
            self.assertTrue(all(map(SENSOR_NAME, sample.values)) and set(sample.errors) <= set(sample.values))
            self.assertTrue(all(value is None or abs(value) < 1.8e308 for value in sample.values.values()))

    def outcome(self, read):
        try:
            return read()
        except BadArgument:
            return None

    def no_name_twice(self, pairs):
        self.assertEqual(len(dict(pairs)), len(pairs))
        return dict(pairs)

    def depth(self, value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(self.depth, inner), default=0)

    @fuzzed(lambda: (json_texts() | sample_texts()).map(str.encode))
    def test_built(self, data):
        self.check(data)

    @fuzzed(lambda: mutated(sample_texts().map(str.encode), PIECES, LINE_BYTES))
    def test_mutated(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
