"""Node and server killed in, or given an error by, their k-th pwrite, fdatasync, fsync, ftruncate or send, for every k.

No accepted sample is lost, and the programs log why they end. strace does it (`--inject`), so these tests run where
strace may trace. The quick suite kills each program once, and makes one call of the node fail. PIGEONPOST_TEST_SYSCALLS
is the number of samples that a run of the node takes, which limits k, and PIGEONPOST_TEST_STRIDE the step of k;
PIGEONPOST_TEST_SERVER_CALLS limits k for the server.
"""

import json
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from pigeonpost.core.data_folder import DATABASE, OUTBOX
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample
from tests.faults.house import DISK, Program, trial
from tests.support import LIMIT_S, free_port, long, rounds, wait_until

SAMPLES = rounds("PIGEONPOST_TEST_SYSCALLS", 2, 10)
STRIDE = rounds("PIGEONPOST_TEST_STRIDE", 4, 1)
SERVER_CALLS = rounds("PIGEONPOST_TEST_SERVER_CALLS", 1, 40)
SLOTS = 64
HELD = 20  # samples in the ring file before
BOOT, EPOCH = "00000000000000b0", "00000000000000e1"
DISK_ERROR = 74


def may_trace() -> bool:
    try:
        return (
            subprocess.run(["strace", "-D", "-o", "/dev/null", "true"], capture_output=True, timeout=30).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def injecting(fault: str, *only: str) -> tuple[str, ...]:
    """Return the prefix of a command that makes strace inject `fault` (`pwrite64:error=EIO:when=3`)."""
    # --seccomp-bpf stops the program at these calls only, not at each; but with it strace 6.1 injects no signals.
    quick = () if ":signal=" in fault else ("--seccomp-bpf",)
    trace = ("strace", "-D", "-f", "-q", "-o", "/dev/null", *quick, *only)
    return (*trace, "-e", f"trace={fault.partition(':')[0]}", "-e", f"inject={fault}")


@unittest.skipUnless(may_trace(), "strace is not here, or may not trace")
class OfTheNode(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=DISK)
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.filled = self.folder / "filled"
        self.filled.mkdir()
        ring = Ring(str(self.filled), SLOTS, 256)
        ring.append(
            EPOCH, 1, BOOT, [UnnumberedSample(k, k, True, {"temperature": k, "light": k}, {}) for k in range(HELD)]
        )
        ring.close()
        self.old = {(EPOCH, seq) for seq in range(1, HELD + 1)}

    # ---------------------------------------------------------------------------------------- one run

    def node(self, wrapper=()):
        self.port = free_port()
        program = Program(
            self.folder, "node.py", "--simulate", "--name", "n", "--every", "0.02",
            "--listen", f"127.0.0.1:{self.port}", "--data", str(self.data), wrapper=wrapper,
        )  # fmt: skip
        program.environment["PIGEONPOST_OUTBOX_SLOTS"] = str(SLOTS)
        self.addCleanup(program.kill)
        program.start()
        return program

    def hear(self, program, count):
        """Receive samples as the oracle does, until `count` have arrived; then turn sampling off and on.

        Returns True when the node has done that, False when it has ended.
        """
        while program.is_running():
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1.0) as link:
                    link.settimeout(LIMIT_S)
                    lines = link.makefile("rb")
                    link.sendall(b"SEND ON\n")
                    for line in lines:
                        if line.startswith(b"SENSORS ") and line.endswith(b"\n"):
                            _, epoch, samples = line.split(b" ", 2)
                            for sample in json.loads(samples):
                                self.heard[epoch.decode(), sample["seq"]] = sample["values"]
                                count -= 1
                            if count <= 0:
                                link.sendall(b"SEND OFF\nSEND ON\nBYE\n")
                                if b"".join(lines).count(b"SENDBACK O") == 2:
                                    return True
                                break
            except OSError:
                pass  # not yet started, or ended
            time.sleep(0.005)
        return False

    def run_with(self, injected, fresh):
        """Run a node with an injected fault, on new or existing data.

        Returns its exit status, or None if it kept running.
        """
        self.heard = {}
        self.data = self.folder / "node"
        shutil.rmtree(self.data, ignore_errors=True)
        if not fresh:
            shutil.copytree(self.filled, self.data)
        call = injected.partition(":")[0]
        paths = () if call in ("sendto", "ftruncate") else (OUTBOX, f"{OUTBOX}.new", "")
        only = [option for path in paths for option in ("-P", str(self.data / path).rstrip("/"))]
        program = self.node(injecting(injected, *only))
        if self.hear(program, SAMPLES):
            program.kill()
            return None
        return program.end()

    def check(self):
        """Start the node again without a fault: all accepted samples are there, and it continues."""
        before = dict(self.heard)
        program = self.node()
        self.hear(program, 2)
        self.assertEqual(program.stop(LIMIT_S), 0, program.log.read_text()[-2000:])
        self.assertGreater(len(self.heard), len(before))
        ring = Ring(str(self.data), SLOTS, 128)
        held = {}
        for run in ring.runs:
            for number in range(run.number, run.last_number + 1):
                slot = ring.read(number, 1)[0]
                if slot is not None:
                    held[run.epoch, run.seq_of(number)] = json.loads(f"{{{slot.body}}}")["values"]
        ring.close()
        self.assertEqual({key: held.get(key) for key in self.heard}, self.heard)
        return held

    def every(self, call, fault, fresh, expected, text=""):
        """Inject a fault at the first, second, ... `call` of any one thread until it is no longer reached.

        A run that ends with `expected` must have logged `text`. Returns the number of calls.
        """
        k, status = 1 - STRIDE, expected
        while status is not None:
            k += STRIDE
            with self.subTest(call=call, k=k, fresh=fresh):
                status = self.run_with(f"{call}:{fault}:when={k}", fresh)
                self.assertIn(status, (expected, None), self.log())
                if status is not None:
                    self.assertIn(text, self.log())
                held = self.check()
                self.assertLessEqual(set() if fresh else self.old, held.keys())
        return k - STRIDE

    def log(self):
        """Return the log of the last run, which begins with the settings that are used."""
        return (self.folder / "node.py.log").read_text().rpartition("INFO settings: ")[2]

    # ---------------------------------------------------------------------------------------- one of each kind

    def test_fault_of_each_kind_loses_nothing(self):
        for fault, fresh, status, said in (
            ("pwrite64:signal=KILL", False, -9, ""),
            ("fdatasync:error=EIO", True, DISK_ERROR, "Input/output error"),
        ):
            with self.subTest(fault):
                self.assertEqual(self.run_with(f"{fault}:when=1", fresh), status, self.log())
                self.assertIn(said, self.log())
                held = self.check()
                self.assertLessEqual(set() if fresh else self.old, held.keys())

    # ---------------------------------------------------------------------------------------- all of them

    def kill_at_every(self, calls, fresh):
        reached = {call: self.every(call, "signal=KILL", fresh, -9) for call in calls}
        self.assertTrue(all(reached.values()), reached)

    @long
    def test_killed_while_it_makes_its_outbox(self):
        self.kill_at_every(("pwrite64", "fdatasync", "fsync", "ftruncate"), fresh=True)

    @long
    def test_killed_while_it_writes_its_outbox(self):
        self.kill_at_every(("pwrite64", "fdatasync"), fresh=False)

    @long
    def test_killed_while_it_sends(self):
        self.kill_at_every(("sendto",), fresh=False)

    @long
    def test_a_disk_that_fails_while_it_makes_its_outbox(self):
        for call in ("pwrite64", "fdatasync", "fsync"):
            self.assertGreater(self.every(call, "error=EIO", True, DISK_ERROR, "Input/output error"), 0)

    @long
    def test_a_disk_that_fails_while_it_writes_its_outbox(self):
        for call in ("pwrite64", "fdatasync"):
            self.assertGreater(self.every(call, "error=EIO", False, DISK_ERROR, "Input/output error"), 0)

    @long
    def test_a_disk_that_is_full(self):
        for fresh in (True, False):
            number = self.every("pwrite64", "error=ENOSPC", fresh, DISK_ERROR, "No space left on device")
            self.assertGreater(number, 0)


@unittest.skipUnless(may_trace(), "strace is not here, or may not trace")
class OfTheServer(unittest.TestCase):
    """Servers that collect from a running node, one after another, each with a fault in the k-th call of one thread."""

    def every(self, what, faults, calls=SERVER_CALLS):
        """Inject each fault at the first, second, ... call. `faults` maps them to the expected exit status."""
        reached = 0
        with trial(f"the server {what}") as (house, _):
            wait_until(house.is_up, "the server has started")
            house.server.stop()
            for fault, ends_with in faults.items():
                for k in range(1, calls + 1):
                    with self.subTest(fault=fault, k=k):
                        status = self.run_with(house, f"{fault}:when={k}")
                        self.assertIn(status, (0, ends_with), house.server.log.read_text()[-2000:])
                        reached += status == ends_with
            house.server.wrapper = ()
        self.assertGreater(reached, 0)
        print(f"in {reached} of {len(faults) * calls} runs that ended it")

    def run_with(self, house, injected):
        """Run a server with an injected fault. Returns its exit status, after it ended or was stopped."""
        database = house.data / "server" / DATABASE
        # Reads by ld.so are excluded: they are not made by this program.
        only = ("-P", str(database), "-P", f"{database}-wal") if injected.startswith("pread") else ()
        house.server.wrapper = injecting(injected, *only)
        read = house.server.log.stat().st_size
        house.server.start()
        wanted = len(house.heard) + 15

        def is_settled():
            # A page that the disk did not return may look damaged. The server then reports this and keeps running until
            # it receives a signal. Before its start is complete, it has no handler for that signal.
            said = house.server.log.read_bytes()[read:]
            stays = b"is damaged (" in said and b"the page is at " in said
            return stays or not house.server.is_running() or house.has_stored_after(wanted)

        wait_until(is_settled, "it works, ends, or reports a fault")
        status = house.server.stop() if house.server.is_running() else house.server.end()
        house.server.kills += status == -9
        return status

    def test_killed_in_one_call(self):
        self.every("killed in one call", {"pwrite64:signal=KILL": -9}, 1)

    @long
    def test_killed_in_every_call(self):
        calls = ("pwrite64", "fdatasync", "fsync", "ftruncate", "write", "sendto", "unlink")
        self.every("killed in every call", {f"{call}:signal=KILL": -9 for call in calls})

    @long
    def test_a_disk_that_fails(self):
        calls = ("pwrite64", "fdatasync", "fsync", "pread64", "ftruncate")
        self.every("has a disk that fails", {f"{call}:error=EIO": DISK_ERROR for call in calls})


if __name__ == "__main__":
    unittest.main()
