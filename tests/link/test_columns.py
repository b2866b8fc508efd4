"""Samples as columns: accepted and refused, with the same error texts, exactly as samples one by one."""

import json
import random
import unittest

from pigeonpost.core.clock import FIRST_MS, LAST_MS, rfc3339
from pigeonpost.core.errors import BadArgument
from pigeonpost.link.checks import COLUMN_SAMPLES
from pigeonpost.link.columns import decode_columns, read_columns
from pigeonpost.link.sample_json import read_samples
from pigeonpost.link.samples import SampleBatch
from protocol import LINE_BYTES, decode, encode
from tests.support import EPOCH, WALL_MS, write_columns

DEEP = "[" * 9 + "]" * 9


def columns(**changes):
    """Return a JSON object of three samples with changed keys; a value of ... removes the key."""
    usual = {"seq": 151, "time": [WALL_MS, 10_000, 10_001], "up": [48_211_903, 10_000, 10_000],
             "values": {"temperature": [23.4, None, -2.5], "light": [512, 511, 0]}}  # fmt: skip
    return {key: value for key, value in {**usual, **changes}.items() if value is not ...}


def read(value):
    """Return the samples in a line with this JSON value or text."""
    text = value if isinstance(value, str) else json.dumps(value)
    (batch,) = decode(f"SENSORS {EPOCH} {text}".encode()).args[1]
    return batch


def random_batch(chance):
    count = chance.choice((1, 2, 3, 40))
    steps = (10_000, 10_000, 10_001, -3_600_000, 0)
    times, ups = [WALL_MS], [chance.randrange(10**9)]
    for _ in range(count - 1):
        times.append(times[-1] + chance.choice(steps))
        ups.append(ups[-1] + 10_000)
    numbers = (1, -7, 0.5, 1e-7, -0.0, 1e300, 2**63 - 1, -(2**63 - 1), None)
    values = {name: chance.choices(numbers, k=count) for name in chance.sample(("a", "b_2", "temperature"), 2)}
    errors = {name: {k: 'no "response", °\u2028' for k, value in enumerate(column) if value is None}
              for name, column in values.items() if None in column}  # fmt: skip
    return SampleBatch(chance.randrange(1, 10**17), times, ups, values, errors, chance.choice(("", "unset", "server")))


class RoundTrip(unittest.TestCase):
    def test_documented_object_is_read(self):
        batch = read(columns(errors={"temperature": {"1": "no response"}}, clock="unset"))
        self.assertEqual(batch, SampleBatch(
            151, [WALL_MS, WALL_MS + 10_000, WALL_MS + 20_001], [48_211_903, 48_221_903, 48_231_903],
            {"temperature": [23.4, None, -2.5], "light": [512, 511, 0]}, {"temperature": {1: "no response"}}, "unset",
        ))  # fmt: skip

    def test_written_columns_are_read_again(self):
        for seed in range(200):
            batch = random_batch(random.Random(f"columns {seed}"))
            text = write_columns(batch)
            self.assertEqual(read(text), batch, f"seed {seed}")
            self.assertEqual(repr(list(read(text))), repr(list(batch)), f"seed {seed}")  # types, and -0.0
            self.assertNotIn("\n", text)

    def test_up_is_one_number_if_its_differences_equal_those_of_time(self):
        batch = SampleBatch(1, [WALL_MS, WALL_MS + 9, WALL_MS + 5], [7, 16, 12], {"a": [1, 2, 3]})
        self.assertIn('"up":7,', write_columns(batch))
        self.assertEqual(read(write_columns(batch)), batch)
        self.assertEqual(read(columns(up=5)).ups, [5, 10_005, 20_006])
        other = SampleBatch(1, [WALL_MS, WALL_MS + 9, WALL_MS + 5], [7, 16, 13], {"a": [1, 2, 3]})
        self.assertIn('"up":[7,9,-3],', write_columns(other))

    def test_unknown_keys_are_ignored(self):
        self.assertEqual(read(columns(mood=["good"], errors=None)), read(columns()))
        self.assertEqual(read(columns(errors={"light": {}})), read(columns()))
        self.assertEqual(read(json.dumps(columns(), indent=1).replace("\n", " ") + " "), read(columns()))

    def test_at_most_4096_samples_are_accepted(self):
        for count in (COLUMN_SAMPLES, COLUMN_SAMPLES + 1):
            value = columns(time=[WALL_MS] + [1] * (count - 1), up=1, values={"a": [1] * count})
            if count == COLUMN_SAMPLES:
                self.assertEqual(len(read(value)), 4096)
                self.assertLess(len(encode("SENSORS", EPOCH, write_columns(read(value)))), LINE_BYTES)
            else:
                with self.assertRaisesRegex(BadArgument, "samples from 151: time must be a list of 1 to 4096 numbers"):
                    read(value)


class Refusals(unittest.TestCase):
    def refused(self, value, words):
        with self.assertRaises(BadArgument) as caught:
            read(value)
        self.assertIn(words, str(caught.exception))
        self.assertLess(len(str(caught.exception)), 300)
        self.assertEqual(caught.exception.code, "bad-argument")

    def test_invalid_parts_are_refused_with_sample_and_key(self):
        huge = 10**300
        for value, words in (
            ({}, "columns must be an object with seq, time, up and values"),
            (columns(seq=...), "columns must be an object"),
            (columns(time=...), "columns must be an object"),
            (columns(up=...), "columns must be an object"),
            (columns(values=...), "columns must be an object"),
            (columns(seq=0), "seq must be a whole number of at least 1, not 0"),
            (columns(seq=True), "seq must be a whole number of at least 1, not True"),
            (columns(seq=1.0), "seq must be a whole number of at least 1, not 1.0"),
            (columns(seq=[1]), "seq must be a whole number of at least 1"),
            (columns(seq=huge), "seq must be a whole number of at least 1"),
            (
                columns(seq=10**18 - 2),
                "seq must be a whole number of at least 1, not 1000000000000000000",
            ),  # of the last sample
            (columns(time=[]), "samples from 151: time must be a list of 1 to 4096"),
            (columns(time=WALL_MS), "time must be a list"),
            (columns(time={"0": WALL_MS}), "time must be a list"),
            (
                columns(time=[WALL_MS, 1]),
                "samples from 151: up must be a whole number, or a list as long as time, which has 2",
            ),
            (columns(time=[rfc3339(WALL_MS), 1, 1]), "sample 151: time must be whole milliseconds since 1970"),
            (columns(time=[WALL_MS, True, 1]), "sample 152: time must be whole milliseconds"),
            (columns(time=[WALL_MS, 1.0, 1]), "sample 152: time must be whole milliseconds"),
            (columns(time=[WALL_MS, None, 1]), "sample 152: time must be whole milliseconds"),
            (columns(time=[WALL_MS, 1, [1]]), "sample 153: time must be whole milliseconds"),
            (columns(time=[WALL_MS, 1, huge]), "sample 153: time must be whole milliseconds"),
            (columns(time=[FIRST_MS, 1, -2]), "sample 153: time must be whole milliseconds"),
            (columns(time=[FIRST_MS - 1, 1, 1]), "sample 151: time must be whole milliseconds"),
            (columns(time=[LAST_MS, 1, -1]), "sample 152: time must be whole milliseconds"),
            (columns(up=[1, 1]), "up must be a whole number, or a list as long as time, which has 3"),
            (columns(up=None), "up must be a whole number, or a list"),
            (columns(up=True), "up must be a whole number, or a list"),
            (columns(up=1.5), "up must be a whole number, or a list"),
            (columns(up=-1), "sample 151: up must be milliseconds since boot, a whole number of at least 0, not -1"),
            (columns(up=[1, True, 1]), "sample 152: up must be milliseconds since boot"),
            (
                columns(up=[1, -2, 1]),
                "sample 152: up must be milliseconds since boot, a whole number of at least 0, not -1",
            ),
            (columns(up=[2**63 - 1, 1, -1]), "sample 152: up must be milliseconds since boot"),
            (columns(up=[huge, 1, 1]), "sample 151: up must be milliseconds since boot"),
            (columns(up=["1", 1, 1]), "sample 151: up must be milliseconds since boot"),
            (
                columns(up=[1, 10**4300 - 1, 1]),
                "sample 152: up must be milliseconds since boot",
            ),  # no decimal text of their sum
            (columns(up=[1, 1 - 10**4300, 1]), "sample 152: up must be milliseconds since boot"),
            (columns(values=[]), "samples from 151: values must be an object of sensor names and lists of numbers"),
            (columns(values={}), "values must be an object of sensor names"),
            (columns(values=None), "values must be an object of sensor names"),
            (columns(values={"Light": [1, 2, 3]}), "sample 151: 'Light' is not a valid sensor name"),
            (columns(values={"a": 1}), "samples from 151: a must be a list as long as time, which has 3"),
            (columns(values={"a": {"0": 1}}), "a must be a list"),
            (columns(values={"a": [1, 2]}), "a must be a list as long as time, which has 3"),
            (columns(values={"a": [1, 2, 3, 4]}), "a must be a list as long as time, which has 3"),
            (columns(values={"a": [1, 2, 3], "b": []}), "b must be a list as long as time, which has 3"),
            (columns(clock="set"), 'sample 151: clock must be "unset", "server" or absent, not \'set\''),
            (columns(clock=None), "sample 151: clock must be"),
            (columns(clock=["unset"]), "sample 151: clock must be"),
        ):
            with self.subTest(str(value)[:150]):
                self.refused(value, words)

    def test_errors_at_invalid_indexes_are_refused(self):
        for errors in (
            [], "x", {"other": {"0": "x"}}, {"light": "x"}, {"light": ["x"]}, {"light": {"0": 1}},
            {"light": {"0": None}}, {"light": {"0": {"0": "x"}}}, {"light": {"0": "x", "1": True}},
        ):  # fmt: skip
            with self.subTest(errors):
                self.refused(columns(errors=errors), "samples from 151: errors must map names of these sensors")
        for place in ("3", "-1", "01", "+1", "1.0", " 1", "", "x", "٢", "²", "1_0", "9" * 5000):
            with self.subTest(place[:9]):
                self.refused(columns(errors={"light": {place: "x"}}), "the index of an error of light must be 0 to 2")

    def test_nan_and_infinity_are_refused(self):
        for literal in ("NaN", "Infinity", "-Infinity"):
            text = json.dumps(columns()).replace("-2.5", literal)
            self.refused(text, f"{literal} is not a finite number")
        for literal in ("1e999", "-1e999"):
            self.refused(
                json.dumps(columns()).replace("-2.5", literal), "sample 153: temperature must be a finite number"
            )
            self.refused(
                json.dumps(columns(more=0)).replace('"seq": 151', f'"seq": {literal}'), "seq must be a whole number"
            )
        self.refused(json.dumps(columns()).replace("-2.5", "9" * 5000), "not JSON")
        nan = float("nan")  # from a decoder that accepts it
        for column in ([1.5, nan, 2.5], [nan, 1, 2.5], [1, 2.5, nan], [None, nan, None]):
            with self.assertRaisesRegex(BadArgument, "a must be a finite number or null, not nan"):
                read_columns(columns(values={"a": column}))

    def test_duplicate_keys_are_refused(self):
        text = json.dumps(columns(errors={"light": {"0": "x"}}))
        for old, new in (
            ('"seq": 151', '"seq": 151, "seq": 151'),
            ('"seq": 151', '"s\\u0065q": 151, "seq": 151'),
            ('"up"', '"values": {"a": [1, 1, 1]}, "up"'),
            ('"light": [512', '"light": [1, 2, 3], "light": [512'),
            ('"errors"', '"clock": "", "clock": "", "errors"'),
            ('"errors": {', '"errors": {"light": {}, '),
            ('{"0": "x"}', '{"0": "x", "0": "x"}'),
        ):
            with self.subTest(new):
                self.assertIn(old, text)
                self.refused(text.replace(old, new), "occurs twice in one JSON object")

    def test_deep_nesting_is_refused(self):
        self.refused(json.dumps(columns(more=0)).replace('"more": 0', f'"more": {DEEP}'), "nested deeper than 8")
        self.refused('{"":{"}}":' * 6000 + "1", "nested deeper than 8")  # brackets in strings do not close others
        self.refused("[{" * 20_000, "nested deeper than 8")
        many = json.dumps(columns(values={f"a{k}": [1, 2, 3] for k in range(500)}))
        self.assertEqual(len(read(many).values), 500)

    def test_half_a_surrogate_pair_is_refused(self):
        text = json.dumps(columns(errors={"light": {"0": "?"}}))
        self.refused(text.replace("?", r"\ud800"), "surrogate")
        self.assertEqual(read(text.replace("?", r"\ud83d\ude00")).errors, {"light": {0: "😀"}})
        self.refused(text.replace("light", r"\udc00"), "surrogate")

    def test_decoded_value_that_is_not_an_object_is_refused(self):
        for value in (None, 5, "seq", [], [1, 2, 3, 4], ["seq", "time", "up", "values"]):
            with self.assertRaisesRegex(BadArgument, "columns must be an object"):
                read_columns(value)
        self.assertEqual(read_columns(decode_columns(json.dumps(columns()))), read(columns()))


class SameAsOneByOne(unittest.TestCase):
    VALUES = (
        0, 1, -1, 0.5, -0.0, 1e300, -1.7e308, 5e-324, 2**53, 2**63 - 1, -(2**63 - 1), None,  # valid
        2**63, -(2**63), 10**300, True, False, "1", "", [1], [], {}, {"a": 1}, float("inf"), float("-inf"),
    )  # fmt: skip

    def one_by_one(self, seq, value):
        """Return the error of a single sample with this value, or an empty string."""
        try:
            read_samples([{"seq": seq, "time": rfc3339(WALL_MS), "up": 1, "values": {"a": value}}])
        except BadArgument as error:
            return str(error)
        return ""

    def test_each_value_is_judged_in_each_position_as_in_a_single_sample(self):
        for value in self.VALUES:
            for others in ([1, 2], [1.5, 2.5], [None, None], [1, 2.5], [None, 1e308], [2**63 - 1, 0.5]):
                for place in range(3):
                    column = [*others[:place], value, *others[place:]]
                    expected = self.one_by_one(151 + place, value)
                    with self.subTest(column=column):
                        try:
                            batch = read_columns(columns(values={"b": [1, 2, 3], "a": column}))
                        except BadArgument as error:
                            self.assertEqual(str(error), expected)
                        else:
                            self.assertEqual((batch.values["a"], expected), (column, ""))

    def test_floats_whose_sum_overflows_are_accepted(self):
        column = [1.7e308, 1.7e308, 1.7e308]
        self.assertEqual(read(columns(values={"a": column})).values, {"a": column})
        column = [1.7e308, -1.7e308, 2**63 - 1]
        self.assertEqual(read(columns(values={"a": column})).values, {"a": column})


if __name__ == "__main__":
    unittest.main()
