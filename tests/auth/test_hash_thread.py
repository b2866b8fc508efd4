"""Tests of the thread that hashes passwords: its queue, its limits and its memory."""

import hashlib
import subprocess
import sys
import threading
import unittest
from unittest import mock

from pigeonpost.auth import hash_thread
from pigeonpost.auth.hash_thread import MOST_WAITING, HashThread
from pigeonpost.http.message import HTTPError
from tests.support import LIMIT_S, ROOT, clean_environment, temp_folder, wait_until

SALT = b"salt of the test"


# Checks eight wrong passwords at the same time, the maximum, and prints the growth of the process in KiB.
AT_ONCE = """
import sys, tempfile, threading
from pigeonpost.auth.users import Users

def resident_kib():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1])

users = Users(tempfile.mkdtemp(dir=sys.argv[1]))
together = threading.Barrier(8)
def wrong():
    together.wait()
    users.check("unknown", "wrong horse")

before = resident_kib()
threads = [threading.Thread(target=wrong) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(resident_kib() - before)
"""


class Memory(unittest.TestCase):
    def test_simultaneous_hashes_keep_the_memory_of_one(self):
        """One hash needs 16 MiB. With a thread for each hash, 128 MiB remained in use."""
        done = subprocess.run(
            [sys.executable, "-c", AT_ONCE, temp_folder(self)], capture_output=True, text=True, timeout=LIMIT_S,
            env=clean_environment(PYTHONPATH=ROOT),
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLess(int(done.stdout) / 1024, 24)


class Hashing(unittest.TestCase):
    def setUp(self):
        self.hashing = HashThread()
        self.may_go = threading.Event()
        self.names, self.results = [], []

    def slow(self, password, **how):
        """Replace hashlib.scrypt, and wait for the test."""
        self.names.append(threading.current_thread().name)
        self.assertTrue(self.may_go.wait(LIMIT_S))
        return b"hash of " + password

    def begin(self, count):
        """Request `count` hashes at the same time, and return when all are waiting."""
        threads = [threading.Thread(target=self.ask, args=(b"%d" % number,)) for number in range(count)]
        threads[0].start()
        wait_until(lambda: self.names, "the first is being hashed")
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: len(self.hashing._jobs) == count - 1, "all others wait")
        return threads

    def ask(self, password):
        self.results.append((password, self.hashing.scrypt(password, SALT, 2, 8, 1)))

    def test_result_is_that_of_scrypt(self):
        right = hashlib.scrypt(b"p", salt=SALT, n=4, r=8, p=1)
        self.assertEqual(self.hashing.scrypt(b"p", SALT, 4, 8, 1), right)

    def test_password_beyond_the_queue_limit_is_refused(self):
        with mock.patch.object(hash_thread.hashlib, "scrypt", self.slow):
            threads = self.begin(MOST_WAITING + 1)
            for call in (self.hashing.refuse_if_full, lambda: self.hashing.scrypt(b"x", SALT, 2, 8, 1)):
                with self.assertRaises(HTTPError) as caught:
                    call()
                self.assertEqual((caught.exception.status, caught.exception.code), (503, "busy"))
                self.assertIn("Retry-After", caught.exception.headers)
            self.may_go.set()
            for thread in threads:
                thread.join(LIMIT_S)
        self.assertEqual(self.names, ["passwords"] * (MOST_WAITING + 1))
        self.assertEqual(sorted(self.results), [(b"%d" % k, b"hash of %d" % k) for k in range(MOST_WAITING + 1)])
        self.hashing.refuse_if_full()

    def test_error_is_raised_in_the_calling_thread(self):
        with self.assertRaises(ValueError):
            self.hashing.scrypt(b"p", SALT, 3, 8, 1)  # 3 is not a power of 2
        with mock.patch.object(hash_thread.hashlib, "scrypt", side_effect=MemoryError), self.assertRaises(MemoryError):
            self.hashing.scrypt(b"p", SALT, 4, 8, 1)
        self.assertEqual(len(self.hashing.scrypt(b"p", SALT, 4, 8, 1)), 64)

    def test_wait_for_a_hash_has_a_timeout(self):
        with (
            mock.patch.object(hash_thread.hashlib, "scrypt", self.slow),
            mock.patch.object(hash_thread, "ANSWER_S", 0.01),
        ):
            with self.assertRaises(HTTPError) as caught:
                self.hashing.scrypt(b"p", SALT, 4, 8, 1)
            self.assertEqual(caught.exception.status, 503)
            self.may_go.set()

    def test_idle_thread_ends_and_starts_again(self):
        with mock.patch.object(hash_thread, "IDLE_S", 0.01):
            for _ in range(2):
                self.hashing.scrypt(b"p", SALT, 4, 8, 1)
                wait_until(lambda: self.hashing._thread is None, "it has ended")

    def test_failed_thread_start_does_not_block_later_hashes(self):
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            self.assertRaises(RuntimeError, self.hashing.scrypt, b"p", SALT, 4, 8, 1)
        self.assertEqual(len(self.hashing._jobs), 0)
        self.assertEqual(len(self.hashing.scrypt(b"p", SALT, 4, 8, 1)), 64)


if __name__ == "__main__":
    unittest.main()
