"""Effect of a hostile node on a server: memory, response time of the front page, and other pages that fail.

    python3 -m bench.hostile

A real server (SQLite) collects from a hostile node without a token on this machine. Each row is an attack on a new
server; the first row is an honest node, for comparison.
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
    """Node that accepts one server after another, and sends the same lines to each without waiting for replies."""

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
    """Yield 150 lines, each a sample with 4,000 new channel names, so that it nearly fills the line."""
    for line in range(150):
        yield "SENSORS", "1" * 16, _samples([(_now_ms(), {f"n{line}_{k}": 1 for k in range(4000)})], line + 1)


def names_over_a_day() -> Iterator[Line]:
    """Yield samples with all combinations of 250 out of 1,000 names, dated over a day."""
    start_ms = _now_ms() - 86_000_000
    for line in range(600):
        names = {f"c{(line * 250 + k * (1 + line % 7)) % 1000:03d}": k * 0.37 for k in range(250)}
        yield "SENSORS", "2" * 16, _samples([(start_ms + line * 143_000, names)], line + 1)


def all_combinations() -> Iterator[Line]:
    """Yield 2,000 samples, each with a new combination of about 200 out of 400 names."""
    for line in range(2000):
        names = {f"c{k:03d}": 1.5 for k in range(400) if (k * 7919 + line * line * 31 + k * line) % 2}
        yield "SENSORS", "3" * 16, _samples([(_now_ms(), names)], line + 1)


def huge_gaps() -> Iterator[Line]:
    """Yield ten epochs, each with a gap of nearly 10^18 samples."""
    for epoch in range(10):
        yield "GAP", f"{epoch:016x}", {"from": 1, "to": 999_999_999_999_999_999, "why": "x"}


def many_gaps() -> Iterator[Line]:
    """Yield 30,000 gaps of one sample each."""
    for seq in range(1, 30_001):
        yield "GAP", "4" * 16, {"from": seq, "to": seq, "why": "x" * 80}


def many_epochs() -> Iterator[Line]:
    """Yield 10,000 epochs of one sample each."""
    for epoch in range(10_000):
        yield "SENSORS", f"{epoch:016x}", _samples([(_now_ms(), {"t": 1.0})], 1)


def many_errors() -> Iterator[Line]:
    """Yield 300 samples with 250 error texts of 200 letters each."""
    names = {f"c{k:03d}": None for k in range(250)}
    for line in range(300):
        yield "SENSORS", "5" * 16, _samples([(_now_ms(), names)], line + 1, dict.fromkeys(names, "e" * 200))  # type: ignore[list-item]


def far_windows() -> Iterator[Line]:
    """Yield 100,000 samples, each in another ten-minute window of future years."""
    for line in range(400):
        times = [_now_ms() + (line * 250 + k) * 600_000 for k in range(250)]
        yield "SENSORS", "6" * 16, _samples([(time_ms, {"t": 1.0}) for time_ms in times], line * 250 + 1)


def huge_values() -> Iterator[Line]:
    """Yield 2,000 samples with values near the limits of floats."""
    ends = (1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -5e-324, 0, 9_007_199_254_740_993, 1e-308)
    for line in range(20):
        found = [
            (_now_ms() - 100_000 + k, {f"v{n}": ends[(k + n * k) % len(ends)] for n in range(4)}) for k in range(100)
        ]
        yield "SENSORS", "7" * 16, _samples(found, line * 100 + 1)


def no_attack() -> Iterator[Line]:
    """Yield 100,000 samples of one value, as a normal node sends them after an outage."""
    for line in range(400):
        times = [_now_ms() - (100_000 - line * 250 - k) * 1000 for k in range(250)]
        yield "SENSORS", "8" * 16, _samples([(time_ms, {"t": 1.0}) for time_ms in times], line * 250 + 1)


ATTACKS = {
    no_attack: "100,000 samples of one value, no attack",
    many_names: "150 samples with 4,000 new names",
    names_over_a_day: "1,000 names in samples of 250, with dates in one day",
    all_combinations: "2,000 samples, each with a new combination of 200 names",
    huge_gaps: "10 gaps of 10^18 samples",
    many_gaps: "30,000 gaps",
    many_epochs: "10,000 epochs",
    many_errors: "300 samples with 250 errors of 200 characters",
    far_windows: "100,000 samples, each with a date in another window of ten minutes",
    huge_values: "2,000 samples with values near the limits of floats",
}


def page_ms(port: int, path: str) -> tuple[float, int]:
    """Return the response time in milliseconds of the page `path` at `port`, not from a cache, and its status."""
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
    """Return the effect of an attack as text.

    Args:
        lines: Yields the lines of the node.
        sensors: Names of the sensors in its HELLO.
    """
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
            failures = [f"{path} {status}" for path in _PATHS if (status := page_ms(port, path)[1]) >= 500]
            grown, peak = rss_mib(server.pid) - before, rss_mib(server.pid, peak=True) - before
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        check = subprocess.run([sys.executable, "control.py", "--data", data, "verify"], capture_output=True, text=True)
    last = next((line for line in reversed(node.answers) if not line.startswith(b"CHECK")), b"").decode()[:90].strip()
    return (
        f"{grown:+.1f} MiB ({peak:.1f} at most) after {took_s:.0f} s; `/` first {first_ms:.0f} ms,"
        f" then {times[2]:.0f} ms;"
        f" failed pages: {', '.join(failures) or 'none'}; `verify` {check.returncode}; last response `{last}`"
    )


def main() -> None:
    """Run the attacks and print the table."""
    chosen = sys.argv[1:]
    rows = [(title, attack(one)) for one, title in ATTACKS.items() if not chosen or one.__name__ in chosen]
    table("server: effects of a malicious node", rows)


if __name__ == "__main__":
    main()
