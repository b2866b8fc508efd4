"""Cost of live samples for the server: many nodes send one sample at a time, while its page is open.

    python3 -m bench.live                 all rows
    python3 -m bench.live hundred --root OTHER_CHECKOUT

Another process simulates the nodes, each at its own address (127.0.x.y). One real `server.py` collects from them, and
its front page is requested every five seconds, as by a browser that shows it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.fleet import FakeNode
from bench.machine import cpu_s, rss_mib, table

CASES = {"hundred": (100, 10.0, 20.0), "thousand": (1000, 0.1, 40.0), "3000": (3000, 0.1, 40.0)}
SETTLE_S = 12.0  # until every node has sent its first samples
POLL_S = 5.0
_OPTIONS = argparse.Namespace(samples=0, per_line=1, rate=1.0, values=2)  # of a node with an empty outbox
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def address_of(number: int) -> str:
    """Return the address of the node with this `number`."""
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


def play(count: int, rate: float, seconds: float) -> None:
    """Simulate nodes that send samples once the server collects from all of them, and print the result.

    Args:
        count: Number of nodes.
        rate: Samples per second of each node.
        seconds: Duration of sending.
    """
    listener = socket.create_server(("0.0.0.0", 0), backlog=4096)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    numbers = {address_of(number): number for number in range(count)}
    nodes: dict[int, FakeNode] = {}
    ready: list[FakeNode] = []
    next_s, end_s, place = 0.0, float("inf"), 0
    while time.monotonic() < end_s + 3:
        now_s = time.monotonic()
        if len(ready) < count:
            ready = [node for node in nodes.values() if node.started]
            if len(ready) == count:
                print("ready", flush=True)
                next_s, end_s = now_s, now_s + SETTLE_S + seconds
        while ready and len(ready) == count and next_s <= now_s < end_s:
            next_s += 1 / rate / count
            ready[place % count].take_live(now_s)
            ready[place % count].send()
            place += 1
        for fd, _ in epoll.poll(max(0.0, min(next_s - now_s, 0.05)) if len(ready) == count else 0.05):
            if fd == listener.fileno():
                _accept(listener, numbers, nodes, epoll)
            elif not nodes[fd].receive():
                raise SystemExit(f"{nodes[fd].name}: the server closed the connection")
            else:
                nodes[fd].send()
    late = sorted(seconds for node in nodes.values() for seconds in node.latencies)
    print(json.dumps({
        "p50_ms": round(late[len(late) // 2] * 1000), "p99_ms": round(late[len(late) * 99 // 100] * 1000),
        "unacked": sum(node.sent - node.acked for node in nodes.values()), "samples": len(late),
    }), flush=True)  # fmt: skip


def _accept(listener: socket.socket, numbers: dict[str, int], nodes: dict[int, FakeNode], epoll: select.epoll) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nodes[sock.fileno()] = FakeNode(sock, numbers[sock.getsockname()[0]], _OPTIONS)
        epoll.register(sock, select.EPOLLIN)


def _poll_page(port: int, done: threading.Event) -> None:
    """Request the front page as an open browser does, until `done` is set."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not done.wait(POLL_S):
        connection.request("GET", "/")
        if len(connection.getresponse().read()) < 1000:
            raise SystemExit("the page is empty")


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def measure(case: str, root: str, python: str) -> dict[str, Any]:
    """Return the result of a `case` with the server of the checkout `root` and the interpreter `python`."""
    count, rate, seconds = CASES[case]
    player = subprocess.Popen(
        [sys.executable, "-m", "bench.live", "--play", str(count), str(rate), str(seconds)], stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    server, done = None, threading.Event()
    with tempfile.TemporaryDirectory() as data:
        try:
            assert player.stdout is not None
            port = int(player.stdout.readline())
            nodes = ",".join(f"n{number:04d}@{address_of(number)}:{port}" for number in range(count))
            environment = {**os.environ, "PIGEONPOST_SERVER_NODES": nodes}
            command = [python, "server.py", "--data", data, "--web", "127.0.0.1:0"]
            with open(os.path.join(data, "err"), "w") as err:
                server = subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=err, cwd=root, text=True
                )
            assert server.stdout is not None
            web = int(server.stdout.readline().split("/")[2].rpartition(":")[2])
            threading.Thread(target=_poll_page, args=(web, done), daemon=True).start()
            if player.stdout.readline() != "ready\n":
                raise SystemExit(f"not all are collected from: {Path(data, 'err').read_text()[-2000:]}")
            time.sleep(SETTLE_S)
            before_s, began_s = cpu_s(server.pid), time.monotonic()
            time.sleep(seconds - 2)
            found = {
                "core": (cpu_s(server.pid) - before_s) / (time.monotonic() - began_s), "threads": _threads(server.pid),
                "descriptors": _descriptors(server.pid), "mib": rss_mib(server.pid),
                "peak_mib": rss_mib(server.pid, peak=True),
            }  # fmt: skip
            found.update(json.loads(player.communicate(timeout=60)[0]))
            done.set()
            server.send_signal(signal.SIGTERM)
            if server.wait(20):
                raise SystemExit(f"the server failed: {Path(data, 'err').read_text()[-2000:]}")
            return found
        finally:
            done.set()
            for process in (player, server):
                if process is not None:
                    process.kill()
                    process.wait()


def row(case: str, root: str, python: str) -> tuple[str, str]:
    """Return the table row of a `case`; `root` and `python` as for `measure`."""
    count, rate, _ = CASES[case]
    found = measure(case, root, python)
    if found["unacked"]:
        raise SystemExit(f"{found['unacked']} samples were not acknowledged")
    return f"{count:,} nodes at {rate:g} Hz", (
        f"{found['core'] * 100:.1f} % of a core; from sampling to acknowledgement {found['p50_ms']} ms"
        f" (p99 {found['p99_ms']} ms); {found['threads']} threads, {found['descriptors']} descriptors;"
        f" {found['mib']:.0f} MiB ({found['peak_mib']:.0f} MiB at most)"
    )


def main() -> None:
    """Run the chosen cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--root", default=_ROOT, help="folder of the program to measure (default: this one)")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--play", nargs=3, type=float, metavar=("NODES", "RATE", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(int(options.play[0]), *options.play[1:])
        return
    rows = [row(case, options.root, options.python) for case in options.cases or CASES]
    table("server: live samples, page requested every 5 s", rows)


if __name__ == "__main__":
    main()
