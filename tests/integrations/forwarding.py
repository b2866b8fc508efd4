"""Samples and helpers for the tests of forward targets."""

import gzip

from pigeonpost.integrations.contract import ForwardBatch
from pigeonpost.integrations.forward_targets import KINDS
from pigeonpost.link.samples import SampleBatch
from tests.support import EPOCH, WALL_MS

OUTBOX = "93aa93aa93aa93aa"
UNITS = {"temperature": "°C", "light": "lx", "door": ""}


def make_target(test, kind, context=None, **keys):
    """Return the target of a [[forward]] table with these `keys`. It is closed at the end of the test."""
    target = KINDS[kind]({"name": "out", "kind": kind, **keys}, "server.toml: [[forward]] 1", context)
    test.addCleanup(target.close)
    return target


def batch_of(samples, node="basement", epoch=EPOCH, after=None, units=UNITS):
    return ForwardBatch(node, OUTBOX, epoch, samples.seq - 1 if after is None else after, samples, units)


def some(first=1, count=3, step_ms=1000, **columns):
    """Return a SampleBatch of `count` samples from number `first`. `columns` are lists by sensor."""
    times = [WALL_MS + step_ms * (first + index) for index in range(count)]
    columns = columns or {"temperature": [20.5 + first + index for index in range(count)]}
    return SampleBatch(first, times, [], columns)


def body_of(headers, body):
    """Return the text of a request's body."""
    return (gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body).decode()
