"""No descriptors, no threads, no memory: no accepted sample is lost or repeated, and each program continues.

A program that lacks a resource either continues, or ends with a status and a reason in its log, so that its supervisor
starts it again. It never appears healthy while doing nothing, and never runs in a busy loop. The quick suite makes two
calls fail. With PIGEONPOST_TEST_LONG every start of a thread fails once; PIGEONPOST_TEST_MEMORY function calls of each
program, and a quarter as many of each other kind, run out of memory.
"""

import contextlib
import http.client
import json
import os
import random
import resource
import socket
import sys
import time
import unittest
from pathlib import Path

from tests.faults.failing import MARK
from tests.faults.house import House, Program, trial
from tests.support import LIMIT_S, LONG, long, rounds, wait_until

FAILING = str(Path(__file__).with_name("failing.py"))
MEMORY = rounds("PIGEONPOST_TEST_MEMORY", 1, 6)
STARVED_S = 0.3
STATUSES = (1, 70, 74)  # exit status of a program that ended: unhandled at the start, internal error, disk
REASONS = ("MemoryError", "can't start new thread", "the page")
CALLS_MOST = 20_000  # function calls: some seconds of a program's run time


def log_after(program: Program, size: int) -> str:
    """Return the part of a program's log after the first `size` bytes."""
    with open(program.log, "rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace")


def page_answers(house: House, limit_s: float = LIMIT_S) -> bool:
    """Return True if the server's page reports that it is healthy."""
    try:
        with open(house.data / "server" / "running.json", encoding="utf-8") as file:
            link = http.client.HTTPConnection(*json.load(file)["web"][0], timeout=limit_s)
        with contextlib.closing(link):
            link.request("GET", "/healthz")
            return link.getresponse().read() == b"ok\n"
    except (OSError, http.client.HTTPException):
        return False


def flows(house: House) -> None:
    """Wait until both programs do all of their work."""
    count = len(house.heard)

    def has_stored() -> bool:
        for program in (house.server, house.node):
            assert program.is_running(), f"it has ended; its log: {log_after(program, 0)[-2000:]}"
        return house.has_stored_after(count)

    wait_until(has_stored, "samples arrive and are stored")
    wait_until(lambda: page_answers(house), "the page answers")
    wait_until(lambda: house.try_ask("CHECK").startswith("STATUS"), "the node answers")


class OneCall(unittest.TestCase):
    def fail_call(self, house: House, program: Program, kind: str, at: int) -> bool:
        """Run a program whose `at`-th call fails. Returns False if it made no such call.

        Waits until the program works again: it recovers, or is started again after its end.
        """
        program.kill()
        size, count = program.log.stat().st_size, len(house.heard)
        as_usual, script = program.command, program.command[2]
        program.command = [sys.executable, FAILING, kind, str(at), *as_usual[2:]]
        program.start()
        program.command = as_usual
        most = 40 if kind == "thread" else 400  # samples until the call is made at the latest

        def came() -> bool:
            return (
                MARK in log_after(program, size) or not program.is_running()
                or (house.has_stored_after(count + most) and page_answers(house))
            )  # fmt: skip

        wait_until(came, f"{script}: {kind} {at}")
        if MARK not in log_after(program, size):
            self.assertTrue(program.is_running(), log_after(program, size)[-2000:])
            return False
        before = len(house.heard)
        wait_until(lambda: not program.is_running() or self.works(house, before), f"{script} goes on, or ends")
        if not program.is_running():
            status = program.end()
            text = log_after(program, size)
            self.assertIn(status, STATUSES, f"{kind} {at}: {text[-2000:]}")
            self.assertTrue(any(reason in text for reason in REASONS), f"{kind} {at}: {text[-2000:]}")
            program.start()
        flows(house)
        return True

    @staticmethod
    def works(house: House, count: int) -> bool:
        return house.has_stored_after(count) and page_answers(house) and house.try_ask("CHECK").startswith("STATUS")

    def trial(self, which: str, kind: str, places: list[int] | None = None) -> None:
        """Make calls of one program fail, one after another: those at `places`, or all of them."""
        done = 0
        with trial(f"{which}: {kind} fails") as (house, _):
            program = house.server if which == "server" else house.node
            for at in places or range(1, 1000):
                is_made = self.fail_call(house, program, kind, at)
                if not is_made and places is None:  # there are no more
                    break
                done += is_made
        print(f"{which}: {done} calls failed ({kind})")
        self.assertGreater(done, 0)

    def test_failure_of_one_call_of_each_kind_loses_nothing(self):
        with trial("one call fails") as (house, _):
            self.assertTrue(self.fail_call(house, house.server, "thread", random.randrange(1, 6)))
            self.assertTrue(self.fail_call(house, house.node, "call", random.randrange(1, 2000)))

    @long
    def test_server_that_cannot_start_a_thread(self):
        self.trial("server", "thread")

    @long
    def test_node_that_cannot_start_a_thread(self):
        self.trial("node", "thread")

    @long
    def test_server_without_memory(self):
        self.trial("server", "call", [random.randrange(1, CALLS_MOST) for _ in range(MEMORY)])
        for kind in ("sqlite", "json", "receive"):
            self.trial("server", kind, [random.randrange(1, 100) for _ in range(MEMORY // 4)])

    @long
    def test_node_without_memory(self):
        self.trial("node", "call", [random.randrange(1, CALLS_MOST) for _ in range(MEMORY)])
        for kind in ("put", "receive"):
            self.trial("node", kind, [random.randrange(1, 60) for _ in range(MEMORY // 4)])


class NoDescriptors(unittest.TestCase):
    """Sets RLIMIT_NOFILE of a running program to its number of open descriptors, and raises it again."""

    @staticmethod
    def connect(house: House) -> None:
        """Let a connection wait for the node for a short time."""
        try:
            with socket.create_connection(("127.0.0.1", house.port), 0.1) as link:
                link.sendall(b"CHECK\n")
                link.recv(1)
        except OSError:
            pass  # the expected state

    def starve(self, house: House, program: Program, more: int) -> None:
        """Leave a program `more` descriptors for some time, in which clients repeatedly connect to it."""
        process = program.process
        assert process is not None
        opened = {int(fd) for fd in os.listdir(f"/proc/{process.pid}/fd")}
        descriptors = min(set(range(len(opened) + 1)) - opened) + more  # descriptors from there on are not available
        size = program.log.stat().st_size
        usual = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (descriptors, usual[1]))
        began_s, began_cpu_s = time.monotonic(), cpu_s(process.pid)
        try:
            while time.monotonic() - began_s < STARVED_S:
                page_answers(house, 0.1)
                self.connect(house)
        finally:
            used = (cpu_s(process.pid) - began_cpu_s) / (time.monotonic() - began_s) if program.is_running() else 0.0
            if program.is_running():
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
        self.assertLess(used, 0.5, "it spins")
        self.assertTrue(program.is_running(), f"it has ended; log: {log_after(program, size)[-3000:]}")
        flows(house)
        self.assertLess(log_after(program, size).count("\n"), 60, "the log is not filled")

    def test_server_and_node_without_descriptors(self):
        with trial("no descriptors") as (house, chance):
            for program, other in ((house.server, house.node), (house.node, house.server)):
                flows(house)
                for more in range(4) if LONG else (chance.randrange(3),):
                    if LONG and chance.random() < 0.5:  # it must also reconnect in this time
                        other.kill()
                        other.start()
                    self.starve(house, program, more)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds (proc(5), stat)."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    unittest.main()
