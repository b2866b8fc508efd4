"""Untrusted payloads and limits: a payload is a number or a SensorError, and no limits make the quality checks fail."""

import json
import math
import types
import unittest

from pigeonpost.core.errors import SensorError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.sensors.mqtt import Message
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.quality import KINDS, QualityChecks
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import Sample
from tests.fuzz import Target, fuzzed, mutated, st
from tests.fuzz.test_samples import json_texts

PAYLOADS = [
    b'{"battery":97,"temperature":21.43,"v":[1,{"v":2}]}',
    b'{"time":1795188970123,"value":9.5}',
    b"21.5",
    b"ON",
]
PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"v":',
    b":",
    b",",
    b"1",
    b"-",
    b"e999",
    b"NaN",
    b"null",
    b"true",
    b"\\ud800",
    b'"',
    b"\xff",
]
LIMITS = [b'{"low":-10,"high":35,"jump":0.5,"stuck":3600,"rail":[-50,279.68]}']
VALUES = (None, 0, 5.5, -(2**63), 2**63 - 1, 1.7e308, -1.7e308, 5e-324)


class Payloads(Target, unittest.TestCase):
    corpus = "payloads"

    def check(self, data):
        with self.bounded():
            for path in ((), ("v",), ("v", "0"), ("v", "1", "v"), ("temperature",), ("", "")):
                try:
                    value = Message(data).value_at(path)
                except SensorError as error:
                    self.assertLess(len(str(error)), 1000)
                else:
                    self.assertTrue(math.isfinite(value))

    @fuzzed(lambda: mutated(st.sampled_from(PAYLOADS), PIECES, 100_000) | json_texts().map(str.encode))
    def test_random_payloads_are_judged_without_an_error(self, data):
        self.check(data)


class Limits(Target, unittest.TestCase):
    corpus = "limits"

    def check(self, data):
        try:
            limits = json.loads(data)
        except (ValueError, RecursionError):
            return
        state = NodeState("address", "node")
        state.every_s = 1.0
        state.sensors = [{"name": "t", "limits": limits}]
        quality = QualityChecks([types.SimpleNamespace(state=state)])
        epoch_commit = EpochCommit("node", "outbox", "0123456789abcdef", NOTHING)
        epoch_commit.items.append(
            SampleBatch.of([Sample(k, 1000 * k, 1000 * k, {"t": v}, {}, "") for k, v in enumerate(VALUES, 1)])
        )
        with self.bounded():
            quality.on_commit([epoch_commit])
            judged = quality.of("node", "t", 10**12)
            self.assertTrue(judged is None or set(judged.counts) == set(KINDS))

    @fuzzed(lambda: mutated(st.sampled_from(LIMITS), PIECES, 60_000) | json_texts().map(str.encode))
    def test_random_limits_are_refused_or_applied(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
