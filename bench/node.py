"""Cost of a node: memory, time to start, processor time per sample; and the regularity of its samples.

    python3 -m bench.node [PYTHON]

PYTHON is the interpreter to be measured (default: this one). It runs with -I -S, so that the site-packages of a
development machine are not counted; everything else is the real program, with a simulated chip. Only the row "as users
start it" is `PYTHON node.py --simulate`, which compiles node.py itself and loads `site`.

At 0.1 s between samples, most of a sample's time is spent on loading code and data into the processor's caches.
Therefore parts are also measured alone: a loop that only waits, and one that also writes 128 bytes and syncs them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.machine import about, rss_mib
from pigeonpost.core.clock import Clock
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.node.sampler import Sampler
from pigeonpost.sensors.contract import Channel, Readings, SensorSource

_RUN = "import sys; sys.path.insert(0, '.'); import node; sys.exit(node.main(sys.argv[1:]))"
_RUN_QUICK = (
    "import sys; sys.path.insert(0, '.'); import node; from bench.node import Quick;"
    " node.make_sources = lambda settings: [Quick()]; sys.exit(node.main(sys.argv[1:]))"
)


class Node:
    """A running node.py, measured from outside."""

    def __init__(
        self,
        python: str,
        folder: str,
        *arguments: str,
        token: str = "",
        how: tuple[str, ...] = ("-I", "-S", "-c", _RUN),
    ) -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        if token:
            environment["PIGEONPOST_NODE_TOKEN"] = token
        began_s = time.monotonic()
        self.process = subprocess.Popen(
            [python, *how, "--simulate", "--listen", "127.0.0.1:0", "--data", folder, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]
        self.start_s = time.monotonic() - began_s

    def used(self) -> tuple[float, int]:
        """Return the processor time used so far in milliseconds, and the number of context switches of its threads."""
        ms, switches = 0.0, 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            ms += int((task / "schedstat").read_text().split()[0]) / 1e6
            switches += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())))
        return ms, switches

    def stop(self) -> None:
        """Stop the program and wait for its end."""
        self.process.terminate()
        self.process.wait(10)


class Quick(SensorSource):
    """A source without cost, to measure the sampler alone."""

    channels = (Channel("x", ""),)

    def read(self) -> Readings:
        return {"x": 1}


def memory_and_start(python: str) -> None:
    """Print the memory and the time to start of a node run by the interpreter `python`."""
    for what, token in (("without a token", ""), ("with a token", "0123456789abcdef")):
        with tempfile.TemporaryDirectory() as folder:
            first = Node(python, folder, token=token)
            first.stop()
            node = Node(python, folder, token=token)  # with an existing ring file, as at every later start
            time.sleep(2)
            print(f"| resident memory {what} | {rss_mib(node.process.pid):.1f} MiB |")
            print(f"| start until listening {what} (in brackets: the first start) |"
                  f" {node.start_s:.2f} s ({first.start_s:.2f} s) |")  # fmt: skip
            node.stop()


def memory_as_started(python: str) -> None:
    """Print the memory of a node started by `python` as users start it."""
    with tempfile.TemporaryDirectory() as folder:
        Node(python, folder).stop()
        node = Node(python, folder, how=("node.py",))
        time.sleep(2)
        print(f"| resident memory with `node.py --simulate` | {rss_mib(node.process.pid):.1f} MiB |")
        node.stop()


def cpu_per_sample(python: str, every_s: float, seconds: float, source: str = "the simulated chip") -> None:
    """Print the processor time per sample of a node.

    Args:
        python: The interpreter.
        every_s: Sampling interval in seconds.
        seconds: Duration of the measurement.
        source: Description of the source of the samples.
    """
    how = ("-I", "-S", "-c", _RUN if source == "the simulated chip" else _RUN_QUICK)
    with tempfile.TemporaryDirectory() as folder:
        node = Node(python, folder, "--every", str(every_s), how=how)
        time.sleep(1)
        before_ms, before = node.used()
        time.sleep(seconds)
        after_ms, after = node.used()
        node.stop()
    count = seconds / every_s
    print(f"| processor time per sample, every {every_s:g} s, with {source}; context switches |"
          f" {(after_ms - before_ms) / count:.2f} ms; {(after - before) / count:.1f} |")  # fmt: skip


def cpu_alone(every_s: float, count: int) -> None:
    """Print the processor time of two loops for comparison, each with `count` turns of `every_s` seconds."""
    with tempfile.TemporaryFile() as file:
        os.pwrite(file.fileno(), bytes(1 << 20), 0)
        os.fsync(file.fileno())
        for what, syncs in (("a loop that waits", False), ("a loop that waits, writes and syncs", True)):
            began_s = time.thread_time()
            for n in range(count):
                time.sleep(every_s)
                if syncs:
                    os.pwrite(file.fileno(), b"x" * 128, 128 * n)
                    os.fdatasync(file.fileno())
            each_ms = (time.thread_time() - began_s) / count * 1000
            print(f"| for comparison: {what}, every {every_s:g} s | {each_ms:.2f} ms |")


def lateness(every_s: float, seconds: float) -> None:
    """Print the delays of samples taken every `every_s` seconds during `seconds`."""
    late: list[float] = []
    clock = Clock()
    first = clock.monotonic()

    def deliver(taken: UnnumberedSample) -> None:
        now = clock.monotonic() - first
        late.append(now)

    sampler = Sampler([Quick()], deliver, every_s, clock, is_checked=True)  # as a node does
    sampler.start()
    time.sleep(seconds)
    sampler.stop(1)
    slots = [moment - round(moment / every_s) * every_s for moment in late]
    ordered = sorted(slots)
    drift = (late[-1] - late[0]) / ((len(late) - 1) * every_s) - 1
    print(f"| lateness at {1 / every_s:g} Hz for {seconds:g} s, p50 / p99 / maximum |"
          f" {ordered[len(ordered) // 2] * 1000:.2f} / {ordered[len(ordered) * 99 // 100] * 1000:.2f} /"
          f" {ordered[-1] * 1000:.2f} ms |")  # fmt: skip
    print(f"| drift in this time; missed slots | {drift * 100:.5f} %; {sampler.missed} |")


def main() -> None:
    """Run the benchmarks."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    sys.setswitchinterval(0.0005)
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"| node with {version} | {about()} |\n|---|---|")
    memory_and_start(python)
    memory_as_started(python)
    for every_s, seconds in ((0.1, 20), (0.01, 10)):
        cpu_per_sample(python, every_s, seconds)
        cpu_per_sample(python, every_s, seconds, "a source without cost")
        cpu_alone(every_s, int(seconds / every_s / 2))
    lateness(0.1, 60)


if __name__ == "__main__":
    main()
