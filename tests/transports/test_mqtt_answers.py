"""Decoding of a server's answers, valid and invalid; the words are those of docs/protocol.md."""

import unittest

from pigeonpost.transports.mqtt_answers import NOT_AN_ANSWER, Ack, Hole, Order, Rejection, Resume, read_answer
from tests.support import EPOCH

LEDGER = "1edce41edce41edc"


class Answers(unittest.TestCase):
    def test_each_kind_of_answer_is_read(self):
        for message, answer in (
            ({"epoch": EPOCH, "ack": 3}, Ack(EPOCH, 3, False)),
            ({"epoch": EPOCH, "ack": 3, "ledger": LEDGER}, Ack(EPOCH, 3, True)),
            ({"epoch": EPOCH, "have": 3}, Hole({EPOCH: 3})),
            ({"epoch": EPOCH, "have": "3"}, Hole(None)),
            ({"error": {"code": "auth"}}, Rejection("{'code': 'auth'}", "auth")),
            ({"error": "no"}, Rejection("no", "")),
            ({"order": "x", "on": False}, Order("x", False)),
            ({"order": "x"}, Order("x", None)),
            ({"order": "x", "on": 1}, Order("x", None)),
        ):
            with self.subTest(message):
                self.assertEqual(read_answer(message), answer)

    def test_resume_with_all_keys_is_read(self):
        message = {
            "resume": {"id": 40, EPOCH: [7, 1234]}, "ledger": LEDGER, "server": "home", "commit": 2.5,
            "time": "2026-11-20T15:36:10.123Z", "clock": "set", "columns": True,
        }  # fmt: skip
        expected = Resume(40, {EPOCH: 7}, {EPOCH: 1234}, LEDGER, "home", 2.5, 1_795_188_970_123, True)
        self.assertEqual(read_answer(message), expected)

    def test_resume_with_required_keys_only_is_read(self):
        for more in (
            {},
            {"commit": 1e9},
            {"commit": "1"},
            {"columns": 1},
            {"time": "2026-11-20T15:36:10.123Z", "clock": "unset"},
        ):
            with self.subTest(more):
                answer = read_answer({"resume": {}, "ledger": "", **more})
                self.assertEqual(answer, Resume(None, {}, {}, "", "a server", 0.0, None, False))

    def test_invalid_answers_are_refused(self):
        for message in (
            {}, {"ack": 1}, {"epoch": 7, "ack": 1}, {"epoch": EPOCH, "ack": -1}, {"epoch": EPOCH, "ack": "3"},
            {"epoch": {}, "have": 3}, {"resume": 7, "ledger": LEDGER}, {"resume": {}}, {"resume": {}, "ledger": 7},
            {"resume": {"x": [1, 2]}, "ledger": LEDGER}, {"resume": {EPOCH: 7}, "ledger": LEDGER},
            {"resume": {EPOCH: ["7", 1]}, "ledger": LEDGER}, {"resume": {}, "ledger": LEDGER, "clock": "set"},
            {"resume": {}, "ledger": LEDGER, "clock": "set", "time": 7}, [], 7, None,
        ):  # fmt: skip
            with self.subTest(message), self.assertRaises(NOT_AN_ANSWER):
                read_answer(message)


if __name__ == "__main__":
    unittest.main()
