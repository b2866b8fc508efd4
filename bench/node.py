"""What a node costs: memory, start, CPU a sample; and how well it keeps the time.

    python3 -m bench.node [PYTHON]

PYTHON is the interpreter that is measured (this one). It runs with -I -S, so that nothing of a development machine's
site-packages is counted; everything else is the real program, with a simulated chip.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from bench.machine import about, cpu_s, rss_mib
from pigeonpost.core.clock import Clock
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.node.sampler import Sampler
from pigeonpost.sensors.contract import Channel, Readings, SensorSource


class Node:
    """A running node.py, measured from outside."""

    def __init__(self, python: str, folder: str, *arguments: str, token: str = "") -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        if token:
            environment["PIGEONPOST_NODE_TOKEN"] = token
        began_s = time.monotonic()
        program = "import sys; sys.path.insert(0, '.'); import node; sys.exit(node.main(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [python, "-I", "-S", "-c", program, "--simulate", "--listen", "127.0.0.1:0", "--data", folder, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]
        self.start_s = time.monotonic() - began_s

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class Quick(SensorSource):
    """A source that costs nothing, to measure the sampler alone."""

    channels = (Channel("x", ""),)

    def read(self) -> Readings:
        return {"x": 1}


def memory_and_start(python: str) -> None:
    for what, token in (("without a token", ""), ("with a token", "0123456789abcdef")):
        with tempfile.TemporaryDirectory() as folder:
            first = Node(python, folder, token=token)
            first.stop()
            node = Node(python, folder, token=token)  # the ring is there now: this is how it starts every other time
            time.sleep(2)
            print(f"| resident memory {what} | {rss_mib(node.process.pid):.1f} MiB |")
            print(f"| start to listening {what} (the very first time) | {node.start_s:.2f} s ({first.start_s:.2f} s) |")
            node.stop()


def cpu_a_sample(python: str, every_s: float, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node = Node(python, folder, "--every", str(every_s))
        time.sleep(1)
        before_s = cpu_s(node.process.pid)
        time.sleep(seconds)
        used_s = cpu_s(node.process.pid) - before_s
        node.stop()
    print(f"| CPU a sample, every {every_s:g} s | {used_s / (seconds / every_s) * 1000:.2f} ms |")


def lateness(every_s: float, seconds: float) -> None:
    late: list[float] = []
    clock = Clock()
    first = clock.monotonic()

    def deliver(taken: UnnumberedSample) -> None:
        now = clock.monotonic() - first
        late.append(now)

    sampler = Sampler([Quick()], deliver, every_s, clock)
    sampler.start()
    time.sleep(seconds)
    sampler.stop(1)
    slots = [moment - round(moment / every_s) * every_s for moment in late]
    ordered = sorted(slots)
    drift = (late[-1] - late[0]) / ((len(late) - 1) * every_s) - 1
    print(f"| lateness at {1 / every_s:g} Hz for {seconds:g} s, p50 / p99 / worst |"
          f" {ordered[len(ordered) // 2] * 1000:.2f} / {ordered[len(ordered) * 99 // 100] * 1000:.2f} /"
          f" {ordered[-1] * 1000:.2f} ms |")  # fmt: skip
    print(f"| drift over that, slots missed | {drift * 100:.5f} %, {sampler.missed} |")


def main() -> None:
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    sys.setswitchinterval(0.0005)
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"| node with {version} | {about()} |\n|---|---|")
    memory_and_start(python)
    cpu_a_sample(python, 0.1, 20)
    cpu_a_sample(python, 0.01, 10)
    lateness(0.1, 60)


if __name__ == "__main__":
    main()
