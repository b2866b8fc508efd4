"""File drop through kill -9, power cuts and full disks: acknowledged files are complete and stored once.

The oracle is the responses that the senders received. Every file with its final name must be complete at any time, also
after a kill and before the next start. After the start no partial file is left.
"""

import hashlib
import http.client
import os
import random
import socket
import tempfile
import threading
import time
import unittest
from pathlib import Path

from tests.compat.file_drop.support import PI, Sender, accept, checksum, files, form, upload_request
from tests.faults.house import DISK, Program
from tests.faults.loop_disk import LoopDisk
from tests.support import LIMIT_S, free_port, long, rounds, wait_until

KILLS = rounds("PIGEONPOST_TEST_DROP_KILLS", 1, 100)
CUTS = rounds("PIGEONPOST_TEST_DROP_CUTS", 3, 30)
SENDERS = 4


class Depot:
    """A server as a program, with its data in a folder."""

    def __init__(self, test, folder, data):
        self.data = data
        self.address = "127.0.0.1", free_port()
        accept(data, PI)
        self.server = Program(
            Path(folder), "server.py", "--web", "%s:%d" % self.address, "--data", str(data),
        )  # fmt: skip
        test.addCleanup(self.server.kill)

    def start(self):
        self.server.start()
        wait_until(self.answers, "the server answers")

    def answers(self):
        if not self.server.is_running():
            raise AssertionError(self.server.log.read_text()[-3000:])
        try:
            socket.create_connection(self.address, 5).close()
        except OSError:
            return False
        return True

    def check(self, told, started):
        """Check that all files in `told` (name to content) are stored once, and all files are complete."""
        folder = os.path.join(self.data, "files")
        for name in os.listdir(folder):
            if name.startswith("."):
                if started:
                    raise AssertionError(f"left over: {name}")
            elif not name.endswith((".sha256", ".new")):
                with open(os.path.join(folder, name), "rb") as file:
                    content = file.read()
                total = name.removeprefix(f"{PI}_").removesuffix(".txt")
                if checksum(content)[:40] != total:
                    raise AssertionError(f"{name} is not what was sent: {len(content)} bytes")
        stored = set(os.listdir(folder))
        lost = [name for name in told if f"{PI}_{name}" not in stored]
        if lost:
            raise AssertionError(f"lost: {lost}")


def content(chance):
    """Return the content of a file, and the name under which it is sent. The content shows whether it is complete."""
    data = chance.randbytes(chance.choice((16, 1000, 100_000, 3_000_000)))
    return f"{hashlib.sha256(data).hexdigest()[:40]}.txt", data


class Senders:
    """Threads that send one file after another, each repeatedly until it is acknowledged as stored."""

    def __init__(self, depot, seed):
        self.depot, self.told, self.tries = depot, [], 0
        self.failed = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(f"{seed} {k}",)) for k in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def _run(self, seed):
        chance = random.Random(seed)
        try:
            while not self._ended.is_set():
                name, data = content(chance)
                sender = Sender(self.depot.address, PI, second=chance.random() < 0.5)
                while not self._send(sender, name, data):
                    if self._ended.wait(0.01):
                        return
                self.told.append(name)
        except BaseException as error:
            self.failed.append(error)

    def _send(self, sender, name, data):
        self.tries += 1
        try:
            sender.open(5)
            said = sender.send(data, name, 5)
        except (OSError, http.client.HTTPException):
            return False
        if said not in ("200", checksum(data)):
            raise AssertionError(f"{name}: {said!r}")
        return True

    def end(self):
        self._ended.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
        if self.failed:
            raise self.failed[0]


class Kills(unittest.TestCase):
    def test_killed_while_files_come(self):
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        with tempfile.TemporaryDirectory(dir=DISK) as folder, self.subTest(seed=seed):
            depot = Depot(self, folder, os.path.join(folder, "data"))
            depot.start()
            senders = Senders(depot, seed)
            try:
                for _ in range(KILLS):
                    wanted = len(senders.told) + 1
                    wait_until(lambda wanted=wanted: len(senders.told) >= wanted or senders.failed, "a file is stored")
                    time.sleep(chance.uniform(0, 0.2))  # a random time, not a wait for an event
                    told = list(senders.told)
                    depot.server.kill()
                    depot.check(told, started=False)
                    depot.start()
            finally:
                senders.end()
            depot.server.stop()
            depot.start()
            depot.check(senders.told, started=True)
            files(depot.data)  # with the right line for each file
            self.assertEqual(len(senders.told), len(set(senders.told)))
            self.assertGreater(senders.tries, len(senders.told), "no transfer was cut")


class Disks(unittest.TestCase):
    @long
    def test_power_cut_behind_the_answer(self):
        disk, chance = LoopDisk(self, 48 + 10 * CUTS), random.Random(1)
        with tempfile.TemporaryDirectory(dir=DISK) as folder:
            told = []
            depot = Depot(self, folder, os.path.join(disk.path, "data"))
            for _ in range(CUTS):
                depot.start()
                sender = Sender(depot.address, PI, True)
                sender.open()
                for _ in range(3):
                    name, data = content(chance)
                    self.assertEqual(sender.send(data, name, 5), "200")
                    told.append(name)
                name, data = content(chance)
                with socket.create_connection(depot.address) as half:
                    half.sendall(upload_request(sender.letters, data, name, {"pi_num": "1"})[: len(data) // 2 + 300])
                    disk.cut_power()
                depot.server.kill()
                disk.unmount()
                disk.mount()
                depot.check(told, started=False)
            depot.start()
            depot.check(told, started=True)
            files(depot.data)
            depot.server.kill()

    def test_a_disk_that_fills_up_in_the_middle(self):
        disk, data = LoopDisk(self, 48), random.Random(2).randbytes(4_000_000)
        with tempfile.TemporaryDirectory(dir=DISK) as folder:
            depot = Depot(self, folder, os.path.join(disk.path, "data"))
            depot.start()
            sender = Sender(depot.address, PI, True)
            sender.open()
            kind, body = form(data, "log.txt")
            link = http.client.HTTPConnection(*depot.address, timeout=LIMIT_S)
            link.putrequest("POST", f"/upload/{sender.letters}")
            for name, value in (
                ("pi_id", PI), ("pi_num", "1"), ("num_files", "1"), ("checksum", checksum(data)),
                ("Content-Type", kind), ("Content-Length", str(len(body))),
            ):  # fmt: skip
                link.putheader(name, value)
            link.endheaders(body[:2_000_000])
            coming = os.path.join(depot.data, "files")
            wait_until(lambda: os.listdir(coming), "the file has begun to come")
            disk.fill()
            link.send(body[2_000_000:])
            self.assertEqual(link.getresponse().read(), b"500")
            link.close()
            self.assertEqual(os.listdir(coming), [])
            self.assertEqual(sender.send(data, "log.txt"), "500")  # and no space is left to begin
            self.assertEqual(os.listdir(coming), [])
            disk.free()
            self.assertEqual(sender.send(data, "log.txt"), "200")
            self.assertEqual(list(files(depot.data).values()), [data])
            self.assertTrue(depot.server.is_running())
            depot.server.kill()


if __name__ == "__main__":
    unittest.main()
