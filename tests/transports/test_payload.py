"""Samples in one JSON object: written bodies are read, and invalid bodies are refused with a clear text."""

import json
import random
import time
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import BadArgument, NotUtf8, TooLong, WireError
from pigeonpost.link.checks import COLUMN_SAMPLES
from pigeonpost.link.sample_text import write_sample_array
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports import payload
from pigeonpost.transports.payload import (
    MOST_GAPS,
    MOST_SAMPLES,
    MOST_SENSORS,
    PAYLOAD_BYTES,
    read_body,
    sign,
    split_signature,
    write_body,
)
from protocol import BATCH_SAMPLES, LARGEST_SEQ, Gap, SampleBatch, sample_body, sample_text
from tests.support import EPOCH, WALL_MS, write_columns
from tests.test_protocol import sample

OUTBOX = "00000000000000ab"
HEAD = {"node": "basement", "outbox": OUTBOX}


def texts(first, count):
    return [
        sample_text(seq, WALL_MS + seq, 1000 + seq, sample_body({"temperature": seq / 4}, {}), "")
        for seq in range(first, first + count)
    ]


def written(head, epoch, base, gaps, texts):
    """Return a body with an array of samples."""
    return write_body(head, epoch, base, gaps, write_sample_array(texts))


def gap(first, last, **more):
    return {"from": first, "to": last, "why": "overwritten", **more}


def body(**changes):
    """Return the bytes of a body with changed keys; a value of ... removes the key."""
    said = {**HEAD, "epoch": EPOCH, "gaps": [], "samples": [sample()], **changes}
    return json.dumps({key: value for key, value in said.items() if value is not ...}).encode()


def shape(batch_payload):
    """Return a summary of the pieces: ("gap" or "samples", first seq, last seq)."""
    return [
        ("gap", piece.first, piece.last) if isinstance(piece, Gap) else ("samples", piece[0].seq, piece[-1].seq)
        for piece in batch_payload.pieces
    ]


class WrittenBodies(unittest.TestCase):
    def test_samples_are_read_as_they_were_written(self):
        sensors = [{"name": "temperature", "unit": "°C", "limits": {"low": 2}},
                   {"name": "light", "unit": "", "simulated": True},
                   {"name": "rain", "unit": "mm", "total": True}]  # fmt: skip
        head = {**HEAD, "every": 10.0, "sensors": sensors, "more": "of one transport"}
        batch_payload = read_body(written(head, EPOCH, 150, [], texts(9, 3)))
        self.assertEqual(batch_payload[:6], ("basement", OUTBOX, EPOCH, 150, 10.0, sensors))
        self.assertEqual(batch_payload.units, {"temperature": "°C", "light": "", "rain": "mm"})
        self.assertEqual(batch_payload.fields["more"], "of one transport")
        self.assertEqual(shape(batch_payload), [("samples", 9, 11)])
        first = batch_payload.pieces[0][0]
        self.assertEqual(first, (9, WALL_MS + 9, 1009, {"temperature": 2.25}, {}, ""))

    def test_gaps_and_samples_are_read_in_the_order_of_their_numbers(self):
        data = written(HEAD, EPOCH, None, [gap(1, 8, before=3), gap(12, 12)], texts(9, 3) + texts(13, 2))
        batch_payload = read_body(data)
        self.assertEqual(
            shape(batch_payload), [("gap", 1, 8), ("samples", 9, 11), ("gap", 12, 12), ("samples", 13, 14)]
        )
        self.assertEqual(batch_payload.pieces[0], Gap(1, 8, 3, "overwritten"))
        self.assertEqual(batch_payload.last, 14)

    def test_body_may_contain_only_a_gap_even_an_empty_one(self):
        self.assertEqual(shape(read_body(written(HEAD, EPOCH, 7, [gap(5, 9)], []))), [("gap", 5, 9)])
        batch_payload = read_body(written(HEAD, EPOCH, 7, [gap(1, 0, before=70)], texts(1, 1)))
        self.assertEqual(shape(batch_payload), [("gap", 1, 0), ("samples", 1, 1)])

    def test_body_without_samples_is_read(self):
        for data in (write_body(HEAD, EPOCH), body(samples=..., gaps=...)):
            batch_payload = read_body(data)
            self.assertEqual((batch_payload.pieces, batch_payload.last, batch_payload.batches()), ([], 0, []))

    def test_long_array_of_alike_samples_is_one_batch(self):
        batch_payload = read_body(written(HEAD, EPOCH, None, [], texts(1, 2 * BATCH_SAMPLES + 1)))
        self.assertEqual(shape(batch_payload), [("samples", 1, 2 * BATCH_SAMPLES + 1)])

    def test_batch_ends_where_sensors_or_clock_state_change(self):
        items = [sample(seq=seq, values={name: seq}) for seq, name in enumerate("aabba", 1)]
        items[1]["clock"] = "unset"
        self.assertEqual(
            shape(read_body(body(samples=items))),
            [("samples", 1, 1), ("samples", 2, 2), ("samples", 3, 4), ("samples", 5, 5)],
        )

    def test_body_without_the_spaces_of_json_or_with_escapes_is_the_same(self):
        said = {**HEAD, "epoch": EPOCH, "gaps": [], "samples": [sample(seq=seq) for seq in range(1, 9)],
                "sensors": [{"name": "t", "unit": "°C"}], "more": 'a "b" \\'}  # fmt: skip
        for text in (json.dumps(said), json.dumps(said, ensure_ascii=False, separators=(",", ":"))):
            self.assertEqual(read_body(text.encode()), read_body(json.dumps(said, indent=1).encode()))

    def test_batches_contain_node_outbox_base_and_units(self):
        head = {**HEAD, "sensors": [{"name": "temperature", "unit": "°C"}]}
        first, second = read_body(written(head, EPOCH, 4, [gap(1, 2)], texts(3, 2))).batches()
        self.assertEqual((first.gap, first.samples), (Gap(1, 2, 0, "overwritten"), None))
        self.assertEqual((second.gap, second.ends), (None, (3, 4)))
        for batch in (first, second):
            self.assertEqual(batch[:4], ("basement", OUTBOX, EPOCH, 4))
            self.assertEqual(batch.units, {"temperature": "°C"})

    def test_state_of_the_node_is_updated_from_the_body(self):
        state = NodeState("", "basement")
        sensors = [{"name": "temperature", "unit": "°C"}]
        told = {"every": 5.0, "on": False, "sensors": sensors, "time": "2026-11-20T15:36:10.123Z"}
        read_body(body(**told)).update_state(state, FakeClock(WALL_MS + 7))
        self.assertEqual((state.connected, state.fault, state.since_ms), (True, "", WALL_MS + 7))
        self.assertEqual((state.every_s, state.on, state.sensors, state.offset_ms), (5.0, False, sensors, -7))
        later = FakeClock(WALL_MS + 9)
        read_body(body(on="yes", time=7)).update_state(state, later)  # not plausible: the state does not change
        self.assertEqual((state.every_s, state.on, state.sensors, state.since_ms), (5.0, False, sensors, WALL_MS + 7))
        self.assertEqual((state.offset_ms, state.checked_ms), (None, WALL_MS + 9))

    def test_random_mixtures_are_read_as_written(self):
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        for _ in range(200):
            seq = first = rng.randint(1, 50)
            gaps, all_texts, wanted = [], [], []
            for _ in range(rng.randint(1, 8)):
                count = rng.randint(1, 30)
                if rng.random() < 0.5:
                    gaps.append(gap(seq, seq + count - 1))
                    wanted.append(("gap", seq, seq + count - 1))
                else:
                    all_texts += texts(seq, count)
                    if wanted and wanted[-1][0] == "samples":
                        wanted[-1] = ("samples", wanted[-1][1], seq + count - 1)
                    else:
                        wanted.append(("samples", seq, seq + count - 1))
                seq += count
            with self.subTest(seed=seed, first=first):
                self.assertEqual(shape(read_body(written(HEAD, EPOCH, None, gaps, all_texts))), wanted)


def columns(first, count, **more):
    """Return the samples of `texts` as columns."""
    steps = [1] * (count - 1)
    return {
        "seq": first, "time": [WALL_MS + first, *steps], "up": 1000 + first,
        "values": {"temperature": [seq / 4 for seq in range(first, first + count)]}, **more,
    }  # fmt: skip


class Columns(unittest.TestCase):
    def test_columns_are_the_same_samples_as_an_array(self):
        as_array = read_body(written(HEAD, EPOCH, 5, [], texts(9, 100)))
        as_columns = read_body(body(base=5, samples=columns(9, 100)))
        self.assertEqual(as_columns.pieces, as_array.pieces)
        self.assertEqual((as_columns.last, as_columns.batches()[0].ends), (108, (9, 108)))

    def test_written_columns_are_read(self):
        batch = SampleBatch(
            3, [WALL_MS, WALL_MS + 7], [5, 12], {"t": [1.5, None]}, {"t": {1: 'no "answer" \\'}}, "unset"
        )
        data = write_body(HEAD, EPOCH, 5, [gap(1, 2)], write_columns(batch))
        self.assertEqual(read_body(data).pieces, [Gap(1, 2, 0, "overwritten"), batch])

    def test_gaps_come_before_and_after_columns(self):
        gaps = [gap(1, 0, before=70), gap(1, 8), gap(19, 20)]
        batch_payload = read_body(body(gaps=gaps, samples=columns(9, 10)))
        self.assertEqual(shape(batch_payload), [("gap", 1, 0), ("gap", 1, 8), ("samples", 9, 18), ("gap", 19, 20)])

    def test_gap_that_only_counts_earlier_epochs_cuts_columns(self):
        batch_payload = read_body(body(gaps=[gap(12, 11, before=7)], samples=columns(9, 5)))
        self.assertEqual(shape(batch_payload), [("samples", 9, 11), ("gap", 12, 11), ("samples", 12, 13)])

    def test_gaps_that_overlap_columns_or_leave_a_hole_are_refused(self):
        for wrong in (gap(1, 7), gap(1, 9), gap(10, 12), gap(18, 20), gap(20, 21), gap(9, 18)):
            with self.subTest(wrong), self.assertRaisesRegex(BadArgument, "comes next"):
                read_body(body(gaps=[wrong], samples=columns(9, 10)))

    def test_too_many_columns_and_wrong_values_name_the_sample(self):
        cases = (
            (columns(9, COLUMN_SAMPLES + 1), "from 9: time must be a list of 1 to 4096"),
            (columns(9, 3, values={"temperature": [1, "2", 3]}), "sample 10: temperature must be a finite number"),
            (columns(9, 3, time=[WALL_MS, 1]), "samples from 9: temperature"),
            ({}, "columns must be an object"),
        )  # fmt: skip
        for samples, text in cases:
            with self.subTest(text), self.assertRaisesRegex(BadArgument, text):
                read_body(body(samples=samples))

    def test_duplicate_keys_and_infinite_numbers_are_refused_anywhere(self):
        right = body(samples=columns(1, 2, clock="unset"), sensors=[{"name": "t", "unit": "°"}], every=5.0)
        read_body(right)
        for key in (b'"node": ', b'"seq": ', b'"up": ', b'"temperature": ', b'"clock": ', b'"name": '):
            self.assertEqual(right.count(key), 1)
            with self.subTest(key), self.assertRaisesRegex(BadArgument, "occurs twice"):
                read_body(right.replace(key, key + b"7, " + key))
        for number in (b"1e400", b"NaN", b"-Infinity"):
            with self.subTest(number), self.assertRaisesRegex(BadArgument, "finite"):
                read_body(right.replace(b"5.0", number))
            with self.subTest(number), self.assertRaisesRegex(BadArgument, "finite"):
                read_body(right.replace(b"0.25", number))

    def test_escaped_quotes_do_not_hide_a_duplicate_key(self):
        for more in (
            '"more": "\\u0022\\u0022\\u0022\\u0022"',
            '"more": {"\\u0022": "\\u0022\\u0022\\u0022"}',
            '"more": "\\""',
        ):
            for samples in (columns(1, 2), [sample(seq=seq) for seq in range(1, 9)]):
                data = body(samples=samples)[:-1] + f", {more}}}".encode()
                read_body(data)
                with self.subTest(more), self.assertRaisesRegex(BadArgument, "occurs twice"):
                    read_body(data.replace(b'"epoch"', b'"epoch": "x", "epoch"'))


class BothDecoders(unittest.TestCase):
    """The fast decoder accepts what the strict one accepts, and nothing else."""

    def outcome(self, data, is_strict):
        with mock.patch.object(payload, "_is_strict", is_strict):
            try:
                return read_body(data)
            except WireError:
                return None

    def test_mutated_bodies_are_decoded_alike(self):
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        sensors = [{"name": "t", "unit": "\u00b0"}]
        right = [
            body(samples=[sample(seq=3), sample(seq=4, values={"t": None}, errors={"t": 'a "b"'})], gaps=[gap(1, 2)]),
            body(samples=columns(3, 2, errors={"temperature": {"1": "x"}}, clock="unset"), sensors=sensors),
            written(HEAD, EPOCH, 3, [gap(1, 2)], texts(3, 5)),
        ]
        parts = [
            b'"',
            b"\\",
            b'\\"',
            b"\\u0022",
            b',"t":1',
            b'"seq":3,',
            b'"node": "x",',
            b"{}",
            b"[",
            b"1e999",
            b":",
            b",",
        ]
        accepted = 0
        for number in range(15_000):
            if number >= 1500 and accepted > 20:  # 44 are accepted, give or take 7
                break
            data = bytearray(rng.choice(right))
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(data))
                data[at : at + rng.randint(0, 2)] = rng.choice(parts)
            fast = self.outcome(bytes(data), payload._is_strict)
            accepted += fast is not None
            with self.subTest(seed=seed, data=bytes(data)):
                self.assertEqual(fast, self.outcome(bytes(data), lambda *_: False))
        self.assertGreater(accepted, 20)

    def test_usual_bodies_are_decoded_once(self):
        usual = (
            written({**HEAD, "sensors": [{"name": "t", "unit": "°C"}]}, EPOCH, 3, [gap(1, 2)], texts(3, 5)),
            body(samples=columns(3, 2, errors={"temperature": {"1": "x"}}, clock="unset")),
            body(samples=[sample(values={"t": None}, errors={"t": "x"}, clock="server")], gaps=...),
            body(samples=..., sensors=[{"name": "t", "unit": "°"}]),
        )  # fmt: skip
        with mock.patch.object(payload, "read_json", side_effect=AssertionError("decoded again")):
            for data in usual:
                read_body(data)


class InvalidBodies(unittest.TestCase):
    def refused(self, data, error, *words):
        with self.assertRaises(error) as caught:
            read_body(data)
        for word in words:
            self.assertIn(word, str(caught.exception))
        self.assertLess(len(str(caught.exception)), 400)

    def test_invalid_bodies_are_refused(self):
        for data in (b"", b"[]", b"null", b"7", b'{"node":', b"{}{}"):
            with self.subTest(data):
                self.refused(data, BadArgument)
        self.refused(b'{"node":"\xff"}', NotUtf8, "byte 9")
        self.refused(b" " * (PAYLOAD_BYTES + 1), TooLong, str(PAYLOAD_BYTES))
        self.refused(body()[:-1] + b',"epoch":"%s"}' % EPOCH.encode(), BadArgument, "'epoch' occurs twice")

    def test_invalid_node_outbox_or_epoch_is_refused(self):
        for key in ("node", "outbox", "epoch"):
            for value in (..., None, 7, "", "x" * 300, "<img src=x>", [EPOCH], EPOCH.upper() + "é"):
                with self.subTest(key, value=value):
                    self.refused(body(**{key: value}), BadArgument, f"{key} must be ")
        for value in ("1", 1.5, True, 10**18, [1]):
            with self.subTest(base=value):
                self.refused(body(base=value), BadArgument, "base must be a whole number")

    def test_invalid_samples_are_refused(self):
        self.refused(body(samples=7), BadArgument, "samples must be an array")
        self.refused(
            body(samples=[sample(seq=n) for n in range(1, MOST_SAMPLES + 2)]), BadArgument, "samples must be an"
        )
        self.refused(body(samples=[sample(), sample(seq=3)]), BadArgument, "sample 3 is out of order: 2 comes next")
        self.refused(body(samples=[sample(), sample(seq=2, up="x")]), BadArgument, "sample 2", "up must be")
        self.refused(body(samples=[sample(values={"light": float("1e400")})]), BadArgument)
        run = [sample(seq=n) for n in (*range(1, BATCH_SAMPLES + 1), BATCH_SAMPLES + 2)]
        self.refused(body(samples=run), BadArgument, "sample 502 is out of order: 501 comes next")

    def test_invalid_gaps_are_refused(self):
        wrong = (
            {}, 7, None, gap(0, 5), gap(5, 3), gap(1, LARGEST_SEQ + 1), gap("1", 5), gap(1, 5, before=-1),
            gap(1, 5, before=None), gap(True, 5), gap(1.0, 5),
        )  # fmt: skip
        for item in wrong:
            with self.subTest(item):
                self.refused(body(gaps=[item], samples=[]), BadArgument, "a gap must be ")
        for items in (7, {}, [gap(n, n) for n in range(1, MOST_GAPS + 2)]):
            self.refused(body(gaps=items), BadArgument, "gaps must be a list")

    def test_skipped_or_overlapping_numbers_are_refused(self):
        cases = (
            ([gap(1, 3)], [5]), ([gap(1, 3)], [3]), ([gap(3, 4)], [1]), ([gap(2, 4)], [1, 2]), ([gap(2, 4)], [1, 4]),
            ([gap(1, 3), gap(5, 6)], []), ([gap(1, 3), gap(3, 6)], []), ([gap(5, 6), gap(1, 4)], []),
            ([gap(LARGEST_SEQ, LARGEST_SEQ)], [1]),
        )  # fmt: skip
        for gaps, seqs in cases:
            with self.subTest(gaps=gaps, seqs=seqs):
                items = [sample(seq=seq) for seq in seqs]
                self.refused(body(gaps=gaps, samples=items), BadArgument, "comes next")

    def test_invalid_sensors_are_refused(self):
        for items in (7, {}, [7], [{}], [{"name": "T"}], [{"name": "t", "unit": "\n"}], [{"name": "t", "unit": None}]):
            with self.subTest(items):
                self.refused(body(sensors=items), BadArgument, "sensors must be a list")
        self.refused(body(sensors=[{"name": "t"}] * (MOST_SENSORS + 1)), BadArgument, "sensors must be a list")

    def test_only_numbers_of_limits_are_kept(self):
        told = {"low": 1, "high": 2.5, "rail": [0, 9], "jump": "x" * 9000, "stuck": None, "more": ["x"] * 9000}
        (sensor,) = read_body(body(sensors=[{"name": "t", "limits": told}])).sensors
        self.assertEqual(sensor["limits"], {"low": 1, "high": 2.5, "rail": [0, 9]})
        (sensor,) = read_body(body(sensors=[{"name": "t", "limits": {"rail": [0, [9]]}}])).sensors
        self.assertEqual(sensor["limits"], {})

    def test_invalid_interval_is_ignored(self):
        for value in (0, -1, 1e10, "10", None, True, [10]):
            self.assertIsNone(read_body(body(every=value)).every_s, value)
        self.assertEqual(read_body(body(every=3)).every_s, 3.0)

    def test_long_reason_of_a_gap_is_truncated(self):
        self.assertEqual(len(read_body(body(gaps=[gap(2, 3) | {"why": "x" * 9999}])).pieces[1].why), 80)

    def test_hostile_bodies_cost_no_time(self):
        began_s = time.thread_time()
        hostile = (
            b"[" * PAYLOAD_BYTES,
            b'{"a":' * 200_000, b'"' * PAYLOAD_BYTES, b'{"samples":[' + b"{}," * 300_000 + b"{}]}",
            b'{"a":' + b"9" * 1_000_000 + b"}", body(gaps=[gap(1, 10**17), gap(10**17 + 1, 10**18 - 1)], samples=[]),
        )  # fmt: skip
        for data in hostile:
            try:
                read_body(data)
            except WireError:
                pass
        self.assertLess(time.thread_time() - began_s, 2.0)

    def test_mutated_bodies_are_read_or_refused(self):
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        right = written({**HEAD, "sensors": [{"name": "t", "unit": ""}]}, EPOCH, 3, [gap(1, 2)], texts(3, 2))
        for _ in range(3000):
            data = bytearray(right)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(data))
                data[at : at + rng.randint(0, 3)] = bytes(rng.choices(b'{}[]",:0129e.-ntu\\\xff ', k=rng.randint(0, 3)))
            with self.subTest(seed=seed, data=bytes(data)):
                try:
                    read_body(bytes(data))
                except WireError:
                    pass


class Signatures(unittest.TestCase):
    MAC = "0123456789abcdef" * 4

    def test_signed_body_is_returned_unchanged(self):
        data = sign(body(), self.MAC)
        self.assertEqual(split_signature(data), (self.MAC, body()))
        self.assertEqual(read_body(data).fields["mac"], self.MAC)

    def test_mac_in_another_position_or_form_is_not_found(self):
        others = (
            body(), body(mac=self.MAC), b' {"mac":"%s","a":1}' % self.MAC.encode(), b"",
            b'{"mac": "%s","a":1}' % self.MAC.encode(), b'{"mac":"%s","a":1}' % self.MAC.upper().encode(),
        )  # fmt: skip
        for data in others:
            with self.subTest(data):
                self.assertEqual(split_signature(data), ("", data))


if __name__ == "__main__":
    unittest.main()
