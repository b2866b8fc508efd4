"""Datagrams of the bus: each is a packet that is decoded the same after encoding, or BadPacket.

The state stays small.
"""

import json
import math
import struct
import unittest

from pigeonpost.compat.multicast_bus.cli import show
from pigeonpost.compat.multicast_bus.packets import FLAGS, PACKET_BYTES, decode, encode
from pigeonpost.compat.multicast_bus.state import MOST_CODIFIERS, BusState
from pigeonpost.core.errors import BadPacket
from tests.compat.multicast_bus.test_packets import TIME, control, head, text, written
from tests.fuzz import Target, fuzzed, mutated, st

SEEDS = [control(letter.encode()) for letter, row in FLAGS.items() if row.channel == "control"] + [
    written(b"n", struct.pack("<I", 7)), written(b"i", struct.pack("<I", 7)), written(b"f", struct.pack("<f", 21.5)),
    written(b"s", text(b"21.5")), written(b"j", text(b'{"value":21.5,"voltage":1.2}')),
    control(b"I", time_ms=0), control(b"N", time_ms=2**64 - 1, sequence=2**32 - 1),
]  # fmt: skip
PIECES = (b"\0", b"\xff" * 4, b"@@", b"\x1b[2J", b"[" * 70, b'{"value":', b'"value"', b"NaN", b"1e999", b"\\ud800",
          struct.pack("<d", math.nan), struct.pack("<d", 1e308), struct.pack("<f", math.inf))  # fmt: skip


def datagrams():
    """Return a strategy for changed packets, often with corrected lengths, so that the rest is decoded."""

    @st.composite
    def mended(draw):
        data = draw(mutated(st.sampled_from(SEEDS), PIECES, PACKET_BYTES + 1))
        flag = draw(st.sampled_from([*(letter.encode() for letter in FLAGS), b"x"]))
        if len(data) < 28 or draw(st.booleans()):
            return data
        payload = data[28:]
        if flag in b"sj" and draw(st.booleans()):
            payload = text(data[32:])
        return head(flag, len(payload), time_ms=draw(st.integers(0, 2**64 - 1) | st.just(TIME))) + payload

    return mended()


def conversations():
    """Return a strategy for successive datagrams, each after its length."""
    one = st.sampled_from(SEEDS) | datagrams()
    return st.lists(one.map(lambda data: struct.pack("<H", len(data)) + data), max_size=30).map(b"".join)


class Packets(Target, unittest.TestCase):
    corpus = "packets"

    def check(self, data):
        with self.bounded():
            try:
                packet = decode(data)
            except BadPacket as error:
                self.assertLess(len(str(error)), 400)
                return
            line = show(packet, packet.channel, "192.0.2.1:7")
        self.assertTrue(line.isascii() and line.isprintable(), line)
        again = decode(encode(packet))
        self.assertEqual(repr(again), repr(packet))  # NaN is not equal to itself, but is written as itself

    @fuzzed(datagrams)
    def test_random_datagrams_are_refused_or_decoded(self, data):
        self.check(data)


class States(Target, unittest.TestCase):
    corpus = "packet_streams"

    def check(self, data):
        state, at = BusState(), 0
        with self.bounded():
            while at + 2 <= len(data):
                (length,) = struct.unpack_from("<H", data, at)
                try:
                    packet = decode(data[at + 2 : at + 2 + length])
                except BadPacket as error:
                    state.refuse(1, str(error))
                else:
                    for heard in state.receive([packet], TIME):
                        self.assertTrue(heard.value is None or math.isfinite(heard.value))
                        self.assertLessEqual(abs(heard.time_ms - TIME), 24 * 3_600_000)
                at += 2 + length
            shown = json.dumps(state.show(TIME), allow_nan=False)
        self.assertLess(len(shown), 64 * 4096)
        self.assertLessEqual(len(state.show(TIME)["codifiers"]), MOST_CODIFIERS)
        for fields in state.show(TIME)["codifiers"].values():
            self.assertGreaterEqual(fields["DPacketsLost"], 0)

    @fuzzed(conversations)
    def test_random_packets_keep_the_state_valid(self, data):
        self.check(data)


if __name__ == "__main__":
    unittest.main()
