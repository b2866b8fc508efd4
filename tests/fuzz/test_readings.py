"""Random requests to `/api/v1/readings` and `/write` against an oracle, and random bytes: only 2xx and 4xx answers.

The oracle keeps one value per node, sensor and millisecond, and one time per id. The server is asked the same requests
again and again, with restarts in between, and must store exactly what the oracle keeps.
"""

import json
import random
import unittest

from pigeonpost.transports.line_protocol import BadLine, read_lines, read_series
from tests.page_support import use_memory_disk
from tests.support import WALL_MS, rounds
from tests.transports.test_readings_server import InCase

_PIECES = (
    "m", "weather", ",host=a", ",node=b", ",t=1", ",t=", " ", "  ", "f=1", "f=-1.5e3", "g=7i", "h=t", 's="x y"', 's="',
    "\\", "\\ ", "\\,", '\\"', ",", "=", "\n", "\r\n", "#", '"', "NaN", "1e999", "é", "\t", "0",
    str(WALL_MS), "-1", "i", "u",
)  # fmt: skip
_JSON = (
    b"{", b"}", b"[", b"]", b",", b":", b'"node"', b'"values"', b'"time"', b'"id"', b'"units"', b'"a"', b'"shed"',
    b"1", b"-1e400", b"null", b"true", b'""', b"\xff", b"\\ud800", b" ", b'{"node":"shed","values":{"a":1}}', b"NaN",
)  # fmt: skip


def setUpModule():
    use_memory_disk()


class Oracle:
    """Model of what must be stored."""

    def __init__(self):
        self.values = {}  # by (node, time, sensor)
        self.times = {}  # by (node, id)

    def add(self, node, values, time_ms, name=""):
        if name:
            time_ms = self.times.setdefault((node, name), time_ms)
        for sensor, value in values.items():
            self.values.setdefault((node, time_ms, sensor), value)


class Requests(InCase):
    def stored_values(self):
        found = {}
        count = 0
        for node in "abc":
            for time_ms, values in self.stored(node):
                count += len(values)
                found |= {(node, time_ms, sensor): value for sensor, value in values.items()}
        self.assertEqual(count, len(found), "a value is stored twice")
        return found

    def test_stored_values_equal_those_of_the_oracle(self):
        dice = random.Random("readings")
        self.open()
        oracle, sent = Oracle(), []
        for _ in range(rounds("PIGEONPOST_TEST_READINGS", 60, 1000)):
            request = dice.choice(sent) if sent and dice.random() < 0.4 else self.random_request(dice)
            sent.append(request)
            kind, entries = request
            for node, values, time_ms, name in entries:
                oracle.add(node, values, time_ms, name)
            if dice.random() < 0.1:
                self.again()
            if kind == "json":
                content = [
                    {"node": node, "values": values, "time": time_ms} | ({"id": name} if name else {})
                    for node, values, time_ms, name in entries
                ]
                self.assertEqual(self.post(content)[0], 200)
            else:
                lines = [
                    f"{sensor},host={node} value={value} {time_ms}"
                    for node, values, time_ms, _ in entries
                    for sensor, value in values.items()
                ]
                auth = {"Authorization": f"Token {self.writer}"}
                answer = self.web.request("POST", "/write?precision=ms", auth, "\n".join(lines).encode())
                self.assertEqual(answer[0], 204, answer)
        self.assertEqual(self.stored_values(), oracle.values)

    def random_request(self, dice):
        """Return a request: its kind, and (node, values, time, id) of each reading.

        The value is a function of node, time and sensor, so a reading with a new id is never another one.
        """
        kind = dice.choice(("json", "lines"))
        entries = []
        for _ in range(dice.choice((1, 2, 5, 30))):
            node, time_ms = dice.choice("abc"), WALL_MS + dice.choice((1, 1000, 3_600_000)) * dice.randrange(30)
            sensors = dice.sample(("t", "u", "v"), dice.randrange(1, 4))
            values = {sensor: float(hash((time_ms, ord(node), ord(sensor))) % 1000) for sensor in sensors}
            name = str(dice.randrange(10**9)) if kind == "json" and dice.random() < 0.3 else ""
            entries.append((node, values, time_ms, name))
        return kind, entries

    def test_random_bytes_are_answered_with_2xx_or_4xx(self):
        dice = random.Random("bytes")
        self.open()
        auth = {"Authorization": f"Bearer {self.writer}"}
        for _ in range(rounds("PIGEONPOST_TEST_READINGS", 150, 5000)):
            if dice.random() < 0.5:
                path, data = "/api/v1/readings", b"".join(dice.choices(_JSON, k=dice.randrange(12)))
            else:
                path, data = "/api/v2/write", "".join(dice.choices(_PIECES, k=dice.randrange(30))).encode()
            headers = (
                {**auth, "Content-Encoding": "gzip"} if path != "/api/v1/readings" and dice.random() < 0.1 else auth
            )
            status, _, answer = self.web.request("POST", path, headers, data)
            self.assertTrue(status in (200, 204) or 400 <= status < 500, (status, data))
            if status >= 400:
                json.loads(answer)


class Lines(unittest.TestCase):
    def test_random_lines_are_read_or_described(self):
        dice = random.Random("lines")
        for _ in range(rounds("PIGEONPOST_TEST_READINGS", 3000, 200_000)):
            text = "".join(dice.choices(_PIECES, k=dice.randrange(40)))
            for found in read_lines(text, "ns"):
                if isinstance(found, BadLine):
                    self.assertTrue(found.why)
                    continue
                self.assertTrue(all(value - value == 0 for value in found.fields.values()))
                try:
                    self.assertTrue(read_series(found.head).measurement)
                except ValueError as error:
                    self.assertIn("twice", str(error))

    def test_written_points_are_read_back(self):
        """Random texts, escaped as the reference describes, are read as they were."""
        dice = random.Random("points")
        letters = "ab ,=\\é\"'#\t\u00a0.:/"

        def word():
            return "".join(dice.choices(letters, k=dice.randrange(1, 8))).rstrip("\\") + dice.choice("ab")

        def escaped(text, characters):
            return "".join(f"\\{letter}" if letter in characters else letter for letter in text)

        for _ in range(rounds("PIGEONPOST_TEST_READINGS", 1000, 50_000)):
            measurement = f"m{word()}"
            tags = {word(): word() for _ in range(dice.randrange(4))}
            fields = {word(): dice.choice((dice.uniform(-1e9, 1e9), dice.randrange(-(2**63) + 1, 2**63))) for _ in "ab"}
            texts = [f"{value!r}{'i' if type(value) is int else ''}" for value in fields.values()]
            head = escaped(measurement, ", ") + "".join(
                f",{escaped(key, ',= ')}={escaped(value, ',= ')}" for key, value in tags.items()
            )
            line = ",".join(f"{escaped(key, ',= ')}={text}" for key, text in zip(fields, texts))
            if any("\\" in text for text in (measurement, *tags, *tags.values(), *fields)):
                continue  # a backslash before a separator cannot be written in line protocol
            (point,) = read_lines(f'{head} {line},s="a\\" b\n,c=d" {WALL_MS}', "ms")
            self.assertEqual(read_series(point.head), (measurement, tuple(sorted(tags.items()))))
            self.assertEqual((point.fields, point.time_ms), (fields, WALL_MS))


if __name__ == "__main__":
    unittest.main()
