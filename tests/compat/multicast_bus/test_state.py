"""Tests of the state of the components on the bus: lost packets, liveness, and plausible times."""

import math
import struct
import unittest

from pigeonpost.compat.multicast_bus.packets import decode
from pigeonpost.compat.multicast_bus.state import MOST_CODIFIERS, BusState, Count, as_written, number_of
from tests.compat.multicast_bus.support import control, reading

NOW = 1_795_188_970_123
DAY_MS = 24 * 3_600_000


class PacketCounts(unittest.TestCase):
    def note(self, *sequences, start=None):
        count = Count()
        if start is not None:
            count.restart(start, NOW)
        self.new = [count.record(sequence, NOW) for sequence in sequences]
        return count

    def test_gaps_are_counted_as_lost(self):
        self.assertEqual(self.note(101, 102, 103, start=100).lost, 0)
        self.assertEqual(self.note(102, 103, 107, 108, start=100).lost, 1 + 3)
        self.assertEqual(self.note(7, 8, 10).lost, 1)  # packets before the first received one are not lost
        self.assertEqual(self.note(1, 65_537).lost, 65_535)

    def test_sequence_number_0_continues_the_count(self):
        self.assertEqual(self.note(2**31 - 2, 2**31 - 1, 0, 1).lost, 0)
        self.assertEqual(self.note(2**31 - 2, 1).lost, 2)
        self.assertEqual(self.note(2**31 - 1, 2**31, 2**31 + 1).lost, 0)  # the old data channel continues with 2**31
        self.assertEqual(self.note(2**32 - 1, 0).lost, 0)

    def test_late_packet_is_not_lost(self):
        count = self.note(1, 4, 2)
        self.assertEqual((count.lost, self.new), (1, [True, True, True]))
        count = self.note(1, 4, 3, 2, 5)
        self.assertEqual((count.lost, count.repeated), (0, 0))
        count = self.note(1, 64, 2, 3)
        self.assertEqual(count.lost, 60)
        count = self.note(1, 200, 150, 136)  # packet 136 is outside the window, so it does not reduce the loss
        self.assertEqual(count.lost, 198 - 1)

    def test_repeated_packet_is_recognised(self):
        count = self.note(1, 2, 2, 1, 3, 3)
        self.assertEqual((count.lost, count.repeated), (0, 3))
        self.assertEqual(self.new, [True, True, False, False, True, False])

    def test_unannounced_restart_is_recognised(self):
        count = self.note(1000, 1001, 5, 6)
        self.assertEqual((count.lost, count.unannounced), (0, 1))
        count = self.note(5, 1_000_000, 1_000_001)
        self.assertEqual((count.lost, count.unannounced), (0, 1))
        count = self.note(5, 6, 7)
        self.assertTrue(count.record(5, NOW + 1))  # a recent number, but with a newer time
        self.assertEqual((count.unannounced, count.repeated), (1, 0))

    def test_announced_restart_resets_the_loss(self):
        count = self.note(101, 105, start=100)
        self.assertEqual(count.lost, 3)
        self.assertTrue(count.restart(500, NOW + 1))
        self.assertEqual(count.lost, 0)
        self.assertTrue(count.record(501, NOW + 1))
        self.assertFalse(count.restart(500, NOW + 1))  # the same packet via another router
        self.assertTrue(count.record(503, NOW + 1))
        self.assertEqual((count.lost, count.repeated), (1, 1))


class BusStates(unittest.TestCase):
    def setUp(self):
        self.state = BusState()

    def receive(self, *datagrams, now_ms=NOW):
        return self.state.receive([decode(data) for data in datagrams], now_ms)

    def fields(self, codifier="C4", now_ms=NOW):
        return self.state.show(now_ms)["codifiers"][codifier]

    def test_last_state_has_the_names_of_the_old_redis_hash(self):
        self.receive(
            reading("n", 70, sequence=70, time_ms=NOW - 9), reading("f", 21.3, sequence=71, time_ms=NOW - 8),
            control("N", sequence=1, number=NOW - 500, time_ms=NOW - 7),
            control("I", sequence=2, number=NOW - 500, active=False, time_ms=NOW - 6),
            control("P", sequence=3, number=5.5, time_ms=NOW - 5),
            control("T", sequence=4, number=NOW - 30, time_ms=NOW - 4),
            control("H", sequence=5, time_ms=NOW - 3), control("S", sequence=6, time_ms=NOW - 2),
            control("C", sequence=7, time_ms=NOW - 1),
        )  # fmt: skip
        expected = {
            "Codifier": "C4", "Value": 21.3, "DTimestamp": NOW - 8, "DPacketsLost": 0, "DResetTime": NOW - 9,
            "CPacketsLost": 0, "CResetTime": NOW - 7, "ITimestamp": NOW - 6, "IsActive": False, "PTimestamp": NOW - 5,
            "PRequest": 5.5, "TRequest": NOW - 30, "TTimestamp": NOW - 4, "TDuration": 26, "HTimestamp": NOW - 3,
            "STimestamp": NOW - 2, "CTimestamp": NOW - 1,
        }  # fmt: skip
        fields = self.fields()
        self.assertEqual({key: fields[key] for key in expected}, expected)

    def test_each_payload_kind_becomes_a_reading(self):
        heard = self.receive(
            reading("i", 512, sequence=1, time_ms=NOW), reading("f", -21.3, sequence=2, time_ms=NOW),
            reading("s", b"7.5", sequence=3, time_ms=NOW), reading("s", b"open", sequence=4, time_ms=NOW),
            reading("j", b'{"value":20.5,"voltage":1.2}', sequence=5, time_ms=NOW),
            reading("j", b'{"value":true}', sequence=6, time_ms=NOW),
            reading("j", b'{"value":null}', sequence=7, time_ms=NOW),
            reading("f", math.nan, sequence=8, time_ms=NOW),
        )  # fmt: skip
        self.assertEqual([one.value for one in heard], [512, -21.3, 7.5, 20.5, 1, None, None])
        self.assertEqual(heard[3].more, {"voltage": 1.2})
        self.assertEqual([one.error for one in heard[-2:]], ["not a number: None", "not a finite number: nan"])
        self.receive(reading("s", b"closed", sequence=9, time_ms=NOW))
        self.assertEqual(self.fields()["Value"], "closed")

    def test_data_loss_is_counted_per_codifier(self):
        self.receive(
            reading("i", 1, "C4", 1), reading("i", 1, "C5", 900), reading("i", 1, "C4", 2), reading("i", 1, "C5", 902)
        )
        self.assertEqual(self.fields("C4")["DPacketsLost"], 0)
        self.assertEqual(self.fields("C5")["DPacketsLost"], 1)

    def test_repeated_data_packet_is_one_reading(self):
        data = reading("i", 1, sequence=5, time_ms=NOW)
        self.assertEqual(len(self.receive(data, data)), 1)
        self.assertEqual(self.fields()["DRepeated"], 1)

    def test_sender_time_is_used_if_within_a_day_of_server_time(self):
        for off_ms, believed in (
            (0, True),
            (DAY_MS, True),
            (-DAY_MS, True),
            (DAY_MS + 1, False),
            (-10 * DAY_MS, False),
        ):
            with self.subTest(off_ms):
                state = self.state = BusState()
                (heard,) = self.receive(reading("i", 1, time_ms=NOW + off_ms))
                self.assertEqual(heard.time_ms, NOW + off_ms if believed else NOW)
                self.assertEqual("Note" in state.show(NOW)["codifiers"]["C4"], not believed)
        self.assertEqual(self.fields()["Note"], "its clock is -10 days off; server time is used")
        self.receive(reading("i", 1, sequence=2, time_ms=2**64 - 1))
        self.assertEqual(self.fields()["DTimestamp"], NOW)
        self.receive(reading("i", 1, sequence=3, time_ms=NOW + 5))
        self.assertNotIn("Note", self.fields())

    def test_component_is_alive_until_its_alive_packets_stop(self):
        state = BusState({"C4": 10.0}.get)
        state.receive([decode(control("I", time_ms=NOW))], NOW)
        for later_ms, alive in ((0, True), (25_000, True), (25_001, False)):
            self.assertEqual(state.show(NOW + later_ms)["codifiers"]["C4"]["Alive"], alive)
        state.receive([decode(reading("i", 1, "C5"))], NOW)
        self.assertNotIn("Alive", state.show(NOW)["codifiers"]["C5"])  # a proxy never sends I

    def test_duplicate_instance_is_counted(self):
        self.receive(control("N", sequence=1, number=1000), control("I", sequence=2, number=1000))
        self.receive(control("N", sequence=70, number=2000), control("I", sequence=71, number=2000))
        self.assertNotIn("Duplicates", self.fields())
        self.receive(control("I", sequence=3, number=1000, time_ms=NOW))
        self.assertEqual((self.fields()["Duplicates"], self.fields()["DuplicateTimestamp"]), (1, NOW))

    def test_round_trip_time_of_a_ping_is_measured(self):
        self.receive(control("P", "R1", "C4", 1, number=123.0), now_ms=NOW)
        self.receive(control("T", "C4", "R1", 1, number=123.0, time_ms=NOW + 4), now_ms=NOW + 4)
        self.assertEqual(self.fields()["RoundTrip"], 4)
        self.receive(control("T", "C4", "R1", 2, number=123.0, time_ms=NOW + 9), now_ms=NOW + 9)  # without a ping
        self.assertEqual(self.fields()["RoundTrip"], 4)
        for n in range(1000):
            self.receive(control("P", "R1", "C4", n + 2, number=float(n)))
        self.assertLessEqual(len(self.state._pings), 64)

    def test_number_of_stored_codifiers_is_limited(self):
        codes = [chr(a) + chr(b) for a in range(33, 127) for b in range(33, 127)][: MOST_CODIFIERS + 100]
        heard = self.receive(*[reading("i", 1, code, time_ms=NOW) for code in codes if code != "@@"])
        shown = self.state.show(NOW)
        self.assertEqual((len(heard), len(shown["codifiers"])), (MOST_CODIFIERS, MOST_CODIFIERS))
        self.assertEqual(shown["ignored"], 100)

    def test_configured_codifier_is_stored_beyond_the_limit(self):
        state = BusState(is_listed=lambda codifier: codifier == "C4")
        codes = [chr(a) + chr(b) for a in range(33, 60) for b in range(33, 127)]
        state.receive([decode(reading("i", 1, code, time_ms=NOW)) for code in codes], NOW)
        state.receive([decode(reading("i", 7, "C4", time_ms=NOW))], NOW)
        self.assertEqual(state.show(NOW)["codifiers"]["C4"]["Value"], 7)

    def test_number_of_converts_finite_numbers_only(self):
        for value, found in (
            (1, 1), (1.5, 1.5), (True, 1), ("2", 2.0), (2**70, float(2**70)), ("x", None), (None, None), ([], None),
            (math.inf, None), ("nan", None), (10**400, None),
        ):  # fmt: skip
            self.assertEqual(number_of(value)[0], found, value)

    def test_as_written_shortens_32_bit_floats(self):
        for meant in (21.3, 0.1, -273.15, 1e30, 16777217.0, 3.4028234663852886e38, 1e-45, 0.0):
            got = struct.unpack("<f", struct.pack("<f", meant))[0]
            self.assertEqual(struct.pack("<f", as_written(got)), struct.pack("<f", meant))
        self.assertEqual(as_written(struct.unpack("<f", struct.pack("<f", 21.3))[0]), 21.3)


if __name__ == "__main__":
    unittest.main()
