"""Tests of the packets of the bus. The expected bytes are written with struct only, independently of the program."""

import math
import struct
import unittest

from pigeonpost.compat.multicast_bus import packets
from pigeonpost.compat.multicast_bus.packets import (
    ALL_COMPONENTS,
    CONTROL,
    DATA,
    FLAGS,
    LAST_SEQUENCE,
    PACKET_BYTES,
    Packet,
    decode,
    encode,
    following,
)
from pigeonpost.core.errors import BadPacket

TIME = 1_795_188_970_123


def head(flag, length, sequence=151, time_ms=TIME, source=b"C4", to=b"@@"):
    """Return a header as the old programs wrote it: "IQ1s2s2sI" with the native alignment of a Pi."""
    return (
        struct.pack("<I", sequence) + bytes(4) + struct.pack("<Q", time_ms) + flag + source + to + bytes(3)
        + struct.pack("<I", length)
    )  # fmt: skip


def written(flag, payload, **more):
    return head(flag, len(payload), **more) + payload


def control(flag, number=float(TIME), active=True, **more):
    return written(flag, struct.pack("<d?", number, active), **more)


def text(content):
    return struct.pack("<I", len(content)) + content


class PacketBytes(unittest.TestCase):
    def both_ways(self, data, *packet):
        self.assertEqual(encode(Packet(*packet)), data)
        self.assertEqual(decode(data), Packet(*packet))

    def test_the_header_is_28_bytes_little_endian(self):
        self.assertEqual(struct.calcsize("<I4xQ1s2s2s3xI"), 28)
        self.assertEqual(len(head(b"I", 9)), 28)
        data = control(b"I", source=b"C4", to=b"R1", sequence=0x01020304)
        self.assertEqual(data[:4], b"\x04\x03\x02\x01")
        self.assertEqual(data[16:21], b"IC4R1")
        self.both_ways(data, 0x01020304, TIME, "I", "C4", "R1", float(TIME), True)

    def test_every_control_flag_carries_a_number_and_is_active(self):
        letters = [letter for letter, row in FLAGS.items() if row.channel == CONTROL]
        self.assertEqual(letters, list("NICPTSHAE"))
        for letter in letters:
            for number, active in ((float(TIME), True), (-2.5, False), (0.0, False)):
                data = control(letter.encode(), number, active)
                self.assertEqual(len(data), 37)
                self.both_ways(data, 151, TIME, letter, "C4", ALL_COMPONENTS, number, active)

    def test_data_payloads_are_encoded_and_decoded(self):
        self.assertEqual([letter for letter, row in FLAGS.items() if row.channel == DATA], list("nifsj"))
        for letter, payload, value in (
            (b"i", struct.pack("<I", 4_294_967_295), 4_294_967_295),
            (b"i", struct.pack("<I", 0), 0),
            (b"f", struct.pack("<f", -21.5), -21.5),
            (b"s", text("21 °C".encode()), "21 °C"),
            (b"s", text(b""), ""),
            (b"j", text(b'{"value":21.5,"voltage":1.25}'), {"value": 21.5, "voltage": 1.25}),
            (b"n", struct.pack("<I", 2_147_483_647), 2_147_483_647),
        ):
            self.both_ways(written(letter, payload), 151, TIME, letter.decode(), "C4", ALL_COMPONENTS, value)

    def test_unused_bytes_of_the_header_are_ignored(self):
        data = bytearray(control(b"P"))
        data[4:8], data[21:24] = b"\xff" * 4, b"abc"
        self.assertEqual(decode(bytes(data)), decode(control(b"P")))

    def test_nan_is_a_valid_float_payload(self):
        self.assertTrue(math.isnan(decode(written(b"f", struct.pack("<f", math.nan))).value))

    def test_packet_of_1500_bytes_is_the_largest(self):
        self.assertEqual(decode(written(b"s", text(b"x" * 1468))).value, "x" * 1468)
        self.assertEqual(len(encode(Packet(1, TIME, "s", "C4", "@@", "x" * 1468))), PACKET_BYTES)
        with self.assertRaisesRegex(BadPacket, "s: the payload has 1473 bytes, more than 1472"):
            encode(Packet(1, TIME, "s", "C4", "@@", "x" * 1469))

    def test_sequence_number_0_follows_the_last(self):
        self.assertEqual(following(1), 2)
        self.assertEqual(LAST_SEQUENCE, 2**31 - 1)
        self.assertEqual(following(LAST_SEQUENCE), 0)

    def test_each_flag_has_a_channel_and_a_description(self):
        self.assertEqual(decode(control(b"P")).channel, "control")
        self.assertEqual(decode(written(b"i", bytes(4))).channel, "data")
        self.assertTrue(all(row.meaning and row.payload.description for row in FLAGS.values()))


class HostilePackets(unittest.TestCase):
    def assert_refused(self, data, text):
        with self.assertRaises(BadPacket) as caught:
            decode(data)
        self.assertIn(text, str(caught.exception))
        self.assertLess(len(str(caught.exception)), 300)

    def test_wrong_lengths_are_rejected(self):
        right = control(b"I")
        for end in range(28):
            self.assert_refused(right[:end], f"the datagram has {end} bytes, not 28 to 1500")
        for end in range(28, len(right)):
            self.assert_refused(right[:end], f"the payload has {end - 28} bytes, not 9 as declared")
        self.assert_refused(right + b"\0", "the payload has 10 bytes, not 9 as declared")
        self.assert_refused(head(b"s", 2**32 - 1) + b"\0\0\0\0", "not 4294967295 as declared")
        self.assert_refused(written(b"s", text(b"x" * 1469)), "the datagram has 1501 bytes, not 28 to 1500")
        self.assert_refused(written(b"I", bytes(8)), "the payload of I must be a 64-bit number")
        self.assert_refused(written(b"i", bytes(5)), "the payload of i must be a whole number")
        self.assert_refused(written(b"f", b""), "the payload of f must be a 32-bit number")
        self.assert_refused(written(b"s", struct.pack("<I", 5) + b"abcd"), "the text has 4 bytes, not 5 as declared")
        self.assert_refused(written(b"s", struct.pack("<I", 2**32 - 1) + b"abcd"), "not 4294967295 as declared")
        self.assert_refused(written(b"s", b"\0\0"), "the payload of s must be a length")

    def test_unknown_flags_are_rejected(self):
        for flag in (b"X", b"x", b"\0", b"\xff", b"@"):
            self.assert_refused(written(flag, bytes(9)), f"{flag!r} is not a flag of the bus")

    def test_invalid_codifiers_are_rejected_and_not_cached(self):
        for code in (b"\0\0", b"\n\r", b" C", b"C ", b"\x1b[", b"\xc3\xbc", b"\x7f4"):
            self.assert_refused(control(b"I", source=code), "a codifier must be two visible ASCII characters")
            self.assert_refused(control(b"I", to=code), "a codifier must be two visible ASCII characters")
        self.assertEqual(decode(control(b"I", source=b"<>")).source, "<>")
        before = len(packets._CODIFIERS)
        for n in range(65_536):
            try:
                decode(control(b"I", source=struct.pack("<H", n)))
            except BadPacket:
                pass
        self.assertLessEqual(len(packets._CODIFIERS), 94 * 94)
        self.assertGreaterEqual(len(packets._CODIFIERS), before)

    def test_control_number_must_be_finite(self):
        for number in (math.nan, math.inf, -math.inf):
            self.assert_refused(control(b"I", number), "is not finite")
        self.assert_refused(written(b"I", struct.pack("<dB", 1.0, 2)), "the last byte is 2")

    def test_invalid_text_and_json_are_rejected(self):
        for content, why in ((b"\xff\xfe", "the payload of s must be a length and a UTF-8 text"),):
            self.assert_refused(written(b"s", text(content)), why)
        for content in (
            b"", b"21.5", b"[1]", b'{"val":1}', b'{"value":1}x', b'{"value":NaN}', b'{"value":1e999}',
            b'{"value":-Infinity}', b'{"value":1,"value":2}', b"[" * 1400,
            b'{"value":' + b"[" * 700 + b"]" * 700 + b"}",
            b'{"value":"\\ud800"}', b'{"value":1,"\\udfff":1}', b"\xff",
        ):  # fmt: skip
            self.assert_refused(written(b"j", text(content)), "the payload of j must be a length and a JSON object")

    def test_extreme_times_and_sequence_numbers_are_accepted(self):
        packet = decode(control(b"I", time_ms=2**64 - 1, sequence=2**32 - 1))
        self.assertEqual((packet.time_ms, packet.sequence), (2**64 - 1, 2**32 - 1))


class InvalidPackets(unittest.TestCase):
    def test_value_that_does_not_fit_its_flag_is_not_encoded(self):
        for flag, value in (
            ("i", -1), ("i", 2**32), ("i", 1.5), ("i", "1"), ("f", "x"), ("f", 1e39), ("n", -1), ("s", 5), ("s", b"x"),
            ("s", "\ud800"), ("j", {}), ("j", 5), ("j", {"value": math.nan}), ("I", math.nan), ("I", "x"), ("I", None),
        ):  # fmt: skip
            with (
                self.subTest(flag=flag, value=value),
                self.assertRaisesRegex(BadPacket, f"^the payload of {flag} must be "),
            ):
                encode(Packet(1, TIME, flag, "C4", "@@", value))

    def test_packet_with_an_invalid_header_is_not_encoded(self):
        for packet, why in (
            (Packet(1, TIME, "X", "C4", "@@", 1), "not a flag"),
            (Packet(1, TIME, "I", "C", "@@", 1), "a codifier must"),
            (Packet(1, TIME, "I", "C4", "@@@", 1), "a codifier must"),
            (Packet(-1, TIME, "I", "C4", "@@", 1), "sequence"),
            (Packet(2**32, TIME, "I", "C4", "@@", 1), "sequence"), (Packet(1, -1, "I", "C4", "@@", 1), "time"),
            (Packet(1, 2**64, "I", "C4", "@@", 1), "time"), (Packet(1, TIME, "I", "ü4", "@@", 1), "a codifier must"),
        ):  # fmt: skip
            with self.subTest(packet), self.assertRaisesRegex(BadPacket, why):
                encode(packet)


if __name__ == "__main__":
    unittest.main()
