"""What a hostile node can do to a server: memory, time of the front page, whether other nodes' pages still answer.

    python3 -m bench.hostile

A real server (SQLite) that collects from a hostile node without a token, on this machine, beside a demonstration of
what an honest one has: nothing. Each row is an attack on a new server.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator

from bench.machine import rss_mib, table
from pigeonpost.core.clock import rfc3339

OUTBOX = "00000000000000aa"
_PATHS = ("/", "/metrics", "/api/v1/nodes", "/api/v1/status", "/gaps", "/nodes/evil")
Line = tuple[str, str, object]  # word, epoch, argument


class HostileNode:
    """Answers one server after the other, and sends the same lines to each, a few ahead of the acknowledgements."""

    def __init__(self, lines: Callable[[], Iterable[Line]], sensors: Iterable[str] = ()) -> None:
        self._lines, self._sensors = lines, [{"name": name, "unit": ""} for name in sensors]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_done = threading.Event()
        self.answers: list[bytes] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with contextlib.suppress(OSError), connection, connection.makefile("rwb") as file:
                self._talk(file)
            self.is_done.set()

    def _talk(self, file) -> None:  # type: ignore[no-untyped-def]
        file.readline()  # the server's HELLO
        hello = {"link": 1, "node": "evil", "outbox": OUTBOX, "every": 1.0, "time": rfc3339(_now_ms()),
                 "sensors": self._sensors, "held": []}  # fmt: skip
        file.write(b"HELLO %s\n" % json.dumps(hello).encode())
        file.flush()
        threading.Thread(target=self._read, args=(file,), daemon=True).start()
        for word, epoch, argument in self._lines():
            file.write(f"{word} {epoch} {json.dumps(argument, separators=(',', ':'))}\n".encode())
            file.flush()
        time.sleep(3)  # two commits
        self.is_done.set()
        time.sleep(600)

    def _read(self, file) -> None:  # type: ignore[no-untyped-def]
        with contextlib.suppress(OSError, ValueError):
            for line in file:
                self.answers.append(line[:200])
                if line.startswith(b"CHECK"):
                    file.write(b"STATUS ON - {}\n")
                    file.flush()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _samples(values: Iterable[tuple[int, dict[str, float]]], first: int, errors: object = None) -> list[object]:
    more = {"errors": errors} if errors else {}
    return [
        {"seq": seq, "time": rfc3339(time_ms), "up": seq, "values": found, **more}
        for seq, (time_ms, found) in enumerate(values, first)
    ]


def many_names() -> Iterator[Line]:
    """150 lines, each a sample of 6,000 new names: the attack of issue 12 in lines that fit the link."""
    for line in range(150):
        yield "SENSORS", "1" * 16, _samples([(_now_ms(), {f"n{line}_{k}": 1 for k in range(4000)})], line + 1)


def names_over_a_day() -> Iterator[Line]:
    """1,000 names in all combinations of 250, dated over a day."""
    start_ms = _now_ms() - 86_000_000
    for line in range(600):
        names = {f"c{(line * 250 + k * (1 + line % 7)) % 1000:03d}": k * 0.37 for k in range(250)}
        yield "SENSORS", "2" * 16, _samples([(start_ms + line * 143_000, names)], line + 1)


def all_combinations() -> Iterator[Line]:
    """2,000 samples, each with a new combination of 200 out of 400 names."""
    for line in range(2000):
        names = {f"c{k:03d}": 1.5 for k in range(400) if (k * 7919 + line * line * 31 + k * line) % 2}
        yield "SENSORS", "3" * 16, _samples([(_now_ms(), names)], line + 1)


def huge_gaps() -> Iterator[Line]:
    """Ten epochs, each with a gap of nearly 10^18."""
    for epoch in range(10):
        yield "GAP", f"{epoch:016x}", {"from": 1, "to": 999_999_999_999_999_999, "why": "x"}


def many_gaps() -> Iterator[Line]:
    """30,000 gaps, with a sample's worth each."""
    for seq in range(1, 30_001):
        yield "GAP", "4" * 16, {"from": seq, "to": seq, "why": "x" * 80}


def many_epochs() -> Iterator[Line]:
    """10,000 epochs of a sample each."""
    for epoch in range(10_000):
        yield "SENSORS", f"{epoch:016x}", _samples([(_now_ms(), {"t": 1.0})], 1)


def many_errors() -> Iterator[Line]:
    """300 samples with 250 errors of 200 letters."""
    names = {f"c{k:03d}": None for k in range(250)}
    for line in range(300):
        yield "SENSORS", "5" * 16, _samples([(_now_ms(), names)], line + 1, dict.fromkeys(names, "e" * 200))  # type: ignore[list-item]


def far_windows() -> Iterator[Line]:
    """100,000 samples, each in another ten minutes of the years to come."""
    for line in range(400):
        times = [_now_ms() + (line * 250 + k) * 600_000 for k in range(250)]
        yield "SENSORS", "6" * 16, _samples([(time_ms, {"t": 1.0}) for time_ms in times], line * 250 + 1)


def huge_values() -> Iterator[Line]:
    """2,000 samples near the ends of floats."""
    ends = (1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -5e-324, 0, 9_007_199_254_740_993, 1e-308)
    for line in range(20):
        found = [
            (_now_ms() - 100_000 + k, {f"v{n}": ends[(k + n * k) % len(ends)] for n in range(4)}) for k in range(100)
        ]
        yield "SENSORS", "7" * 16, _samples(found, line * 100 + 1)


def no_attack() -> Iterator[Line]:
    """100,000 samples of one value, as an honest node brings after an outage: what the others compare with."""
    for line in range(400):
        times = [_now_ms() - (100_000 - line * 250 - k) * 1000 for k in range(250)]
        yield "SENSORS", "8" * 16, _samples([(time_ms, {"t": 1.0}) for time_ms in times], line * 250 + 1)


ATTACKS = (
    no_attack, many_names, names_over_a_day, all_combinations, huge_gaps, many_gaps, many_epochs, many_errors,
    far_windows, huge_values,
)  # fmt: skip


def page_ms(port: int, path: str) -> tuple[float, int]:
    """Return how long a page took that is not in a cache, and its status."""
    time.sleep(1.05)
    began_s = time.perf_counter()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": "text/html"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    return (time.perf_counter() - began_s) * 1000, status


def attack(lines: Callable[[], Iterable[Line]], sensors: Iterable[str] = ()) -> str:
    """Return what an attack did, in words."""
    with tempfile.TemporaryDirectory() as data:
        node = HostileNode(lines, sensors)
        command = [
            sys.executable,
            "server.py",
            "--node",
            f"127.0.0.1:{node.port}",
            "--data",
            data,
            "--web",
            "127.0.0.1:0",
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r":(\d+)/", server.stdout.readline())
            assert found, "the server did not start"
            port = int(found[1])
            page_ms(port, "/")
            before = rss_mib(server.pid)
            began_s = time.monotonic()
            node.is_done.wait(300)
            took_s = time.monotonic() - began_s
            first_ms, _ = page_ms(port, "/")
            times = sorted(page_ms(port, "/")[0] for _ in range(5))
            wrong = [f"{path} {status}" for path in _PATHS if (status := page_ms(port, path)[1]) >= 500]
            grown, peak = rss_mib(server.pid) - before, rss_mib(server.pid, peak=True) - before
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        check = subprocess.run([sys.executable, "control.py", "--data", data, "verify"], capture_output=True, text=True)
    last = next((line for line in reversed(node.answers) if not line.startswith(b"CHECK")), b"").decode()[:90].strip()
    return (
        f"{grown:+.1f} MiB ({peak:.1f} at most) after {took_s:.0f} s; `/` first {first_ms:.0f} ms,"
        f" then {times[2]:.0f} ms;"
        f" pages that failed: {', '.join(wrong) or 'none'}; `verify` {check.returncode}; last answer `{last}`"
    )


def main() -> None:
    chosen = sys.argv[1:]
    rows = [(f"`{one.__name__}`", attack(one)) for one in ATTACKS if not chosen or one.__name__ in chosen]
    table("server: attacked by a node", rows)


if __name__ == "__main__":
    main()
