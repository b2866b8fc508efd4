"""JSON of samples: valid, or BadArgument; the fast decoder accepts only what the strict one accepts."""

import json
import unittest

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.strict_json import DEEPEST_JSON, read_json, write_json
from pigeonpost.link.sample_json import read_samples
from protocol import LARGEST_SEQ, LINE_BYTES, SENSOR_NAME, decode, decode_joined, encode
from tests.fuzz import Target, fuzzed, mutated, st
from tests.support import EPOCH, write_columns
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
HALVES = (b'"}]\n[{', b"}]\n[{", b"},{", b'"}]\n[{"', b'"x":"}]\n[{"')
PIECES = (*INSERTS, *(text.encode() for text in (*NUMBERS, *TIMES)))


def json_texts():
    """Return a strategy for JSON texts: repeated names, escapes, invalid numbers, nested brackets."""
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
    """Return a strategy for an array of samples, valid except for a key or two, which may be repeated."""
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


def column_texts():
    """Return a strategy for an object of columns of two samples, valid except for a key or two."""
    values = st.sampled_from(('{"a":[1,2]}', '{"a":[1.5,null],"light":[0,-3]}', '{"a":[1,1e999]}', '{"a":[1]}'))
    errors = st.sampled_from(("{}", "null", '{"a":{"1":"x"}}', '{"a":{"2":"x"}}', '{"a":{"0":"x","\\u0030":"y"}}'))
    ups = st.sampled_from(("5", "[5,10]", "[5,-6]", "[5]", "null"))
    more = st.lists(st.tuples(st.just("errors"), errors) | st.tuples(st.sampled_from(NAMES), json_texts()), max_size=2)
    return st.tuples(ups, values, more).map(
        lambda three: as_object(
            [("seq", "1"), ("time", "[1795188970123,10000]"), ("up", three[0]), ("values", three[1]), *three[2]]
        )
    )


def joined_texts():
    """Return a strategy for successive lines, each an array of one sample."""
    sample = f'[{{"seq":{{}},"time":"{TIME}","up":5,"values":{{"a":1.5,"b":null}}}}]'
    return st.integers(2, 4).map(lambda count: "\n".join(sample.replace("{}", str(seq)) for seq in range(1, count + 1)))


class Samples(Target, unittest.TestCase):
    corpus = "samples"

    def check(self, data):
        text = data.decode(errors="replace").rstrip("\r\n")
        with self.bounded():
            strict = self.outcome(lambda: read_samples(read_json(text)))
            fast = self.outcome(lambda: self.decoded(text))
        self.assertEqual(fast, strict, "the fast way reads it otherwise than the strict one")
        value = self.outcome(lambda: read_json(text))
        if value is not None:
            self.assertEqual(value, json.loads(text, object_pairs_hook=self.no_name_twice))
            self.assertLessEqual(self.depth(value), DEEPEST_JSON)
            write_json(value).encode()  # no NaN, no lone surrogate
        for seq, sample in enumerate(strict or (), strict[0].seq if strict else 0):
            self.assertEqual(sample.seq, seq)
            self.assertTrue(0 < seq <= LARGEST_SEQ and 0 <= sample.up_ms < 1 << 63 and sample.values)
            self.assertTrue(all(map(SENSOR_NAME, sample.values)) and set(sample.errors) <= set(sample.values))
            self.assertTrue(all(value is None or abs(value) < 1.8e308 for value in sample.values.values()))

    def decoded(self, text):
        """Return the samples of a line with this array; nothing for columns, which are not an array."""
        batches = decode(f"SENSORS {EPOCH} {text}".encode()).args[1]
        return None if text.startswith("{") else [sample for batch in batches for sample in batch]

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
    def test_valid_samples_are_decoded_exactly(self, data):
        self.check(data)

    @fuzzed(lambda: mutated(sample_texts().map(str.encode), PIECES, LINE_BYTES))
    def test_mutated_samples_are_refused_or_decoded(self, data):
        self.check(data)


class Columns(Target, unittest.TestCase):
    """Columns are decoded to the same samples as the single form, or are refused."""

    corpus = "columns"

    def check(self, data):
        text = data.decode(errors="replace").rstrip("\r\n")
        if not text.startswith("{"):
            return  # an array, as above
        with self.bounded():
            try:
                (batch,) = decode(f"SENSORS {EPOCH} {text}".encode()).args[1]
            except BadArgument:
                return
        samples = list(batch)
        items = [
            {"seq": s.seq, "time": rfc3339(s.time_ms), "up": s.up_ms, "values": s.values, "errors": dict(s.errors)}
            | ({"clock": s.clock} if s.clock else {})
            for s in samples
        ]
        read = [sample for start in range(0, len(items), 500) for sample in read_samples(items[start : start + 500])]
        self.assertEqual(repr(read), repr(samples))
        self.assertEqual(decode(encode("SENSORS", EPOCH, write_columns(batch))).args[1], [batch])

    @fuzzed(lambda: mutated(column_texts().map(str.encode), (*PIECES, b"],[", b",", b"null,"), LINE_BYTES))
    def test_mutated_columns_are_refused_or_decoded(self, data):
        self.check(data)


class JoinedLines(Target, unittest.TestCase):
    """Lines decoded together give the same samples as line by line: parts of broken JSON are not joined."""

    corpus = "joined"

    def check(self, data):
        head = f"SENSORS {EPOCH} ".encode()
        lines = [head + array for array in data.split(b"\n") if array.startswith(b"[{")]
        if not lines:
            return
        with self.bounded():
            message = decode_joined(lines)
        if message is not None:
            batches = [batch for line in lines for batch in decode(line).args[1]]
            self.assertEqual([len(batch) for batch in batches], [1] * len(lines))
            self.assertEqual(list(message.args[1][0]), [batch[0] for batch in batches])

    @fuzzed(lambda: mutated(joined_texts().map(str.encode), (*PIECES, *HALVES), LINE_BYTES))
    def test_mutated_lines_are_decoded_as_one_by_one(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
