"""Arrays of samples: reading by column, or lines together, gives the same result as reading one by one."""

import itertools
import json
import random
import unittest

from pigeonpost.core.errors import BadArgument, WireError
from pigeonpost.core.strict_json import read_json
from pigeonpost.link.sample_json import read_alike, read_joined, read_sample_array, read_samples
from pigeonpost.link.samples import SampleBatch
from protocol import decode, decode_joined
from tests.support import EPOCH, WALL_MS, rounds, sensors_line
from tests.test_protocol import TIME, sample

PARTS = (  # fragments for random lines: some end an object, others begin one
    b"}", b"{", b"]", b"[", b'"', b"\\", b",", b":", b"},{", b'"},{"', b"1", b"null", b'"x":', b'"x":"', b'"seq":3,',
    b'"time":"', b'"values":{', b'"values":{"a":1}', b'"up":1,', b" ", b"1e999", b"\xff", b"\xc3", b"true", b'"a":2',
    TIME.encode(), b'"time":"%s"' % TIME.encode(), b'{"seq":2,"time":"%s","up":1,"values":{"a":1}}' % TIME.encode(),
)  # fmt: skip


def line(seq, **changes):
    return f"SENSORS {EPOCH} [{json.dumps(sample(seq=seq, **changes), separators=(',', ':'))}]".encode()


def one_by_one(lines):
    """Return the samples of all lines, or None if a line is refused or has several samples."""
    found = []
    for each in lines:
        try:
            message = decode(each)
        except WireError:
            return None
        (batch,) = message.args[1]
        if len(batch) != 1:
            return None
        if found and not found[-1].is_followed_by(batch):
            return None
        found.append(batch)
    together = found[0]
    for batch in found[1:]:
        together.extend(batch)
    return together


class Alike(unittest.TestCase):
    """read_alike accepts what read_samples accepts if the samples are alike; otherwise it returns None."""

    def test_usual_samples_are_one_batch(self):
        items = [sample(seq=seq, up=seq, values={"a": seq, "b": None}) for seq in range(5, 9)]
        batch = read_alike(items)
        self.assertEqual(list(batch), read_samples(items))
        self.assertEqual(read_sample_array(json.dumps(items)), [batch])

    def test_unusual_samples_are_left_to_read_samples(self):
        for changes in (
            {"seq": 3}, {"seq": True}, {"seq": 2.0}, {"seq": None}, {"time": TIME[:-1]}, {"time": 5},
            {"time": "T" * 24}, {"time": "2026-11-20T16:36:10.123+01:00"}, {"time": "2026-W47-5T15:36:10.123Z"},
            {"up": -1}, {"up": 2**63},
            {"up": 1.0}, {"up": True}, {"values": {}}, {"values": []}, {"values": {"A": 1}}, {"values": {"light": 1}},
            {"values": {"light": 1, "temperature": 2}}, {"values": {"temperature": "1", "light": 2}},
            {"values": {"temperature": True, "light": 2}}, {"values": {"temperature": 2**63, "light": 2}},
            {"errors": {}}, {"clock": "unset"}, {"more": 1}, {"seq": ...}, {"values": ...}, {"up": ..., "ups": 1},
        ):  # fmt: skip
            with self.subTest(changes):
                self.assertIsNone(read_alike([sample(), sample(**{"seq": 2, **changes})]))
        for other in (None, 5, "x", [], ["seq", "time", "up", "values"], {}):
            self.assertIsNone(read_alike([sample(), other]))
        self.assertIsNone(read_alike([sample(seq=10**18 - 1), sample(seq=10**18)]))
        self.assertIsNone(read_alike([sample(seq=0), sample(seq=1)]))

    def test_random_samples_give_the_result_of_read_samples_or_none(self):
        values = ({"a": 1}, {"a": 1.5}, {"a": None}, {"a": 1}, {"a": 1}, {"a": "x"}, {"b": 1}, {"a": 1, "b": 2})
        taken = 0
        for seed in range(500):
            chance = random.Random(f"alike {seed}")
            start = chance.choice((1, 1, 1, 0, 10**18 - 3))
            among = values[: seed % 9 or 3]
            items = [
                sample(seq=start + k, up=chance.choice((0, 1, 5)), values=dict(chance.choice(among)))
                for k in range(chance.choice((2, 3, 5)))
            ]
            try:
                expected = read_samples(items)
            except BadArgument:
                expected = None
            batch = read_alike(items)
            taken += batch is not None
            if batch is not None:
                self.assertEqual(list(batch), expected, f"seed {seed}")
        self.assertGreater(taken, 50)

    def test_mixed_samples_become_batches_in_order(self):
        items = [sample(), sample(seq=2, values={"a": 1}), sample(seq=3, values={"a": 2}, clock="unset")]
        self.assertEqual([batch.seq for batch in read_sample_array(json.dumps(items))], [1, 2, 3])

    def test_duplicate_key_in_one_of_many_samples_is_found(self):
        text = json.dumps([sample(seq=seq) for seq in range(1, 6)])
        for old, new in (('"seq": 3', '"seq": 9, "seq": 3'), ('"light": 512}', '"light": 512, "light": 512}')):
            with self.assertRaisesRegex(BadArgument, "occurs twice"):
                read_sample_array(text.replace(old, new))


class Joined(unittest.TestCase):
    """Two halves of invalid JSON must never be joined into valid JSON."""

    def check(self, lines):
        """Return True if the lines are read together; check that the result is that of the single lines."""
        message = decode_joined(lines)
        if message is None:
            return False
        self.assertEqual(message.args[1], [one_by_one(lines)], lines)
        return True

    def test_usual_lines_are_read_together(self):
        lines = [sensors_line(EPOCH, seq, 1)[:-1] for seq in range(7, 600)]
        self.assertTrue(self.check(lines))
        self.assertTrue(self.check([line(1), line(2, up=0)]))
        self.assertTrue(self.check([line(1).replace(b'"up"', b' "up" '), line(2).replace(b":", b" : ", 1)]))

    def test_unusual_lines_are_not_read_together(self):
        for second in (
            line(1), line(3), line(2, clock="unset"), line(2, more=1), line(2, values={"light": 1, "temperature": 2}),
            line(2, values={"light": 1}), line(2, values={"temperature": None, "light": 1}, errors={"light": "x"}),
            line(2).replace(b'"up"', b'"\\u0075p"'), line(2).replace(b"512", b"512,512"), line(2) + b"\r",
            line(2) + b" ", line(2).replace(b"512", b'512,"light":512'), line(2).replace(b"512", b"1e999"),
            line(2).replace(b"512", b"NaN"), line(2).replace(b"light", b"l\xffght"), line(2).replace(b"512", b"true"),
            sensors_line(EPOCH, 2, 2)[:-1],
        ):  # fmt: skip
            with self.subTest(second):
                self.assertIsNone(decode_joined([line(1), second]))
                self.assertIsNone(decode_joined([second, line(1)]))
        for head in (b"SENSORS 0123456789ABCDEF [{", b"sensors 0123456789abcdef [{", b"CHECK", b""):
            self.assertIsNone(decode_joined([head + line(seq)[27:] for seq in (1, 2)]))

    def test_halves_of_objects_in_two_lines_are_not_joined(self):
        """One line begins an object, the next one ends it, and a third line makes the number of objects correct."""
        usual = line(1)[25:]
        cuts = [usual.index(b'"time"'), usual.index(b":10.123"), usual.index(b'"up"'), usual.index(b"23.4")]
        begins, ends = [usual[:k] for k in cuts], [usual[k:] for k in cuts]
        outs = (b"}]", b'"}]', b'"x":"}]', b'"x":{"y":"}]', b'"}}]', b"}}]", b'"x":[{}]', b'"time":"}]', b'"seq":{}]')
        backs = (b"[{", b'[{"', b'[{"x":', b'[{":1,', b'[{",', b'[{"}},', b"[{}},", b"[{},", b'[{","x":1,')
        two = b"[" + line(2)[26:-1] + b"," + line(3)[26:-1] + b"]"
        for begin, end, out, back in itertools.product(begins, ends, outs, backs):
            for more in ([], [two], [two, two]):
                arrays = [begin + out, back + end, *more]
                self.check([b"SENSORS " + EPOCH.encode() + b" " + array for array in arrays])

    def test_hidden_half_and_two_objects_in_another_line_are_not_joined(self):
        """As many objects as lines, but not one in each; the number of quotation marks reveals the hidden half."""
        first = b'[{"seq":1,"time":"}]'
        second = b'[{","time":"%s","up":1,"values":{"temperature":1,"light":2}}]' % TIME.encode()
        third = b"[" + line(2)[26:-1] + b"," + line(3)[26:-1] + b"]"
        joined = json.loads(b"[" + b",".join(array[1:-1] for array in (first, second, third)) + b"]")
        self.assertEqual([item["seq"] for item in joined], [1, 2, 3])  # valid JSON with three objects
        self.assertIsNone(read_joined([first, second, third]))

    def test_random_lines_together_give_the_results_of_each_line(self):
        """Valid lines with random changes."""
        together = 0
        for seed in range(rounds("PIGEONPOST_TEST_JOINED_LINES", 2000, 100_000)):
            chance = random.Random(f"joined {seed}")
            lines = [line(seq, up=seq) for seq in range(1, chance.choice((2, 3, 4, 5)))]
            lines = [bytearray(each) for each in lines]
            for _ in range(chance.choice((0, 1, 1, 2, 3, 6))):
                each = chance.choice(lines)
                start = chance.randrange(27, max(28, len(each) - 2))
                end = min(max(start, len(each) - 2), start + chance.choice((0, 0, 1, 2, 5, 20, 100)))
                each[start:end] = b"".join(chance.choices(PARTS, k=chance.choice((0, 1, 1, 2))))
            together += self.check([bytes(each) for each in lines])
        self.assertGreater(together, 100)

    def test_deep_nesting_and_long_numbers_are_not_read_together(self):
        deep = line(2).replace(b"512", b"[" * 5000)
        self.assertIsNone(decode_joined([line(1), deep]))
        self.assertIsNone(decode_joined([line(1), line(2).replace(b"512", b"9" * 5000)]))
        self.assertIsNone(decode_joined([line(1).replace(b"512", b'{"":{"}}":' * 2000 + b"1"), line(2)]))

    def test_joined_lines_are_equal_for_the_strict_decoder(self):
        lines = [line(1, values={"a": -0.0}), line(2, values={"a": 10**18})]
        (batch,) = decode_joined(lines).args[1]
        expected = [read_samples(read_json(each[25:].decode()))[0] for each in lines]
        self.assertEqual(repr(list(batch)), repr(expected))
        self.assertEqual(batch.times, [WALL_MS, WALL_MS])
        self.assertIsInstance(batch, SampleBatch)


if __name__ == "__main__":
    unittest.main()
