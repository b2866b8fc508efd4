"""deploy/client/client.py and a server that are killed at any time: each queued reading is stored exactly once."""

import collections
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import unittest
from pathlib import Path

from pigeonpost.auth.api_tokens import ApiTokens
from tests.faults.house import DISK, Program
from tests.support import ROOT, clean_environment, free_port, rounds, temp_folder, wait_until

# The file of the queue is rewritten often, so that kills hit this too.
CLIENT = """
import runpy, sys
sys.argv[0] = sys.argv.pop(1)
names = runpy.run_path(sys.argv[0])
names["main"].__globals__.update(KEPT_BYTES=2000, BATCH=7, LONGEST_PAUSE_S=0.2)
sys.exit(names["main"]())
"""


class Client:
    """The client, which reads consecutive numbers from its standard input."""

    def __init__(self, folder, port, token):
        self.queue = os.path.join(folder, "queue")
        self._command = [
            sys.executable, "-c", CLIENT, os.path.join(ROOT, "deploy/client/client.py"),
            "--server", f"http://127.0.0.1:{port}", "--node", "shed", "--sensor", "n", "--stdin", "--queue", self.queue,
        ]  # fmt: skip
        self._environment = clean_environment(CLIENT_TOKEN=token)
        self._log = open(os.path.join(folder, "client.log"), "ab")  # noqa: SIM115  # closed by `close`
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=self._log, stderr=self._log
        )

    def feed(self, numbers):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("".join(f"{number}\n" for number in numbers).encode())
            self.process.stdin.flush()

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process = None

    def accepted(self):
        """Return the readings that the file of the queue contains now."""
        if not os.path.exists(self.queue):  # the client was killed before it made the file
            return []
        with open(self.queue, "rb") as file:
            lines = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b"{")]
        return [json.loads(line)["values"]["n"] for line in lines]

    def close(self):
        self.kill()
        self._log.close()


class Kills(unittest.TestCase):
    def test_accepted_reading_is_stored_once_after_any_kill(self):
        folder, dice, port = temp_folder(self, DISK), random.Random(17), free_port()
        data = os.path.join(folder, "data")
        token = ApiTokens(data).make("client", "writer")
        server = Program(Path(folder), "server.py", "--data", data, "--web", f"127.0.0.1:{port}")
        client = Client(folder, port, token)
        self.addCleanup(client.close)
        self.addCleanup(server.kill)
        accepted, fed = set(), 1
        client.start()
        client.feed([0])
        wait_until(client.accepted, "a reading is accepted")
        server.start()
        for _ in range(rounds("PIGEONPOST_TEST_POSTING", 2, 60)):
            if client.process is None:
                client.start()
            if not server.is_running():
                server.start()
            for _ in range(dice.randrange(1, 5)):
                count = dice.randrange(1, 60)
                client.feed(range(fed, fed + count))
                fed += count
            before = self.stored(data).total()
            goal = before + dice.randrange(30)
            with contextlib.suppress(AssertionError):  # the queue may have less
                wait_until(lambda goal=goal: self.stored(data).total() >= goal, "some are stored", limit_s=0.2)
            if dice.random() < 0.7:
                client.kill()
                accepted.update(client.accepted())
            if dice.random() < 0.5:
                server.kill()
        client.kill()
        accepted.update(client.accepted())
        if not server.is_running():
            server.start()
        client.start()
        wait_until(lambda: accepted <= self.stored(data).keys(), "all accepted readings are stored")
        stored = self.stored(data)
        self.assertEqual({number: count for number, count in stored.items() if count > 1}, {})
        self.assertLessEqual(stored.keys(), set(range(fed)))
        self.assertGreater(len(accepted), 0)

    @staticmethod
    def stored(data):
        """Return how often each number is stored, as another program reads it from the database."""
        path = os.path.join(data, "pigeonpost.sqlite3")
        if not os.path.exists(path):
            return collections.Counter()
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            try:
                rows = database.execute("SELECT value FROM readings WHERE node = 'shed' AND sensor = 'n'").fetchall()
            except sqlite3.OperationalError:  # the server creates the tables just now
                return collections.Counter()
        return collections.Counter(int(value) for (value,) in rows)


if __name__ == "__main__":
    unittest.main()
