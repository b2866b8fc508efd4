"""How fast the server takes what is brought over HTTP, each answer only when it is durable.

    python3 -m bench.push                   both rows of bench/README.md
    python3 -m bench.push push              samples in arrays of 100
    python3 -m bench.push temp              tmon's `POST /temp`, from 8 clients that keep their connections

The clients are raw sockets in a process of their own: what a client library costs is not the server's.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from bench.machine import cpu_s, rss_mib, table
from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.clock import rfc3339

CLIENTS, ARRAY, SECONDS = 8, 100, 10.0
_START_MS = 1_795_188_970_123


def bodies(token: str, node: str) -> tuple[str, Callable[[int], bytes]]:
    """Of a push: the head's first lines, and the body of the n-th array of this node."""

    def body(number: int) -> bytes:
        samples = [
            {"seq": seq, "time": rfc3339(_START_MS + 100 * seq), "up": 100 * seq,
             "values": {"temperature": 20 + seq % 100 / 8, "light": 500 + seq % 40}}
            for seq in range(number * ARRAY + 1, (number + 1) * ARRAY + 1)
        ]  # fmt: skip
        sensors = [{"name": "temperature", "unit": "°C"}, {"name": "light", "unit": "counts"}]
        said = {"node": node, "outbox": "0b" * 8, "epoch": "ab" * 8, "base": 0, "sensors": sensors, "gaps": []}
        return json.dumps({**said, "samples": samples}).encode()

    return f"POST /api/v1/samples HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n", body


def temperatures(token: str, node: str) -> tuple[str, Callable[[int], bytes]]:
    """Of tmon's report, the same."""
    text = json.dumps({"type": "temperature", "token": token, "data": {"temperature": "20812"}}).encode()
    return "POST /temp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n", lambda number: text


CASES = {"push": (bodies, ARRAY, "samples/s"), "temp": (temperatures, 1, "requests/s")}


def send(case: str, port: int, tokens: list[str]) -> dict[str, float]:
    """Send as fast as answers come, for SECONDS; requests a second, and how long the slowest answers took."""
    took: list[float] = []
    end_s = time.monotonic() + SECONDS

    def client(number: int, token: str) -> None:
        head, body = CASES[case][0](token, f"node{number}")
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count = 0
        while time.monotonic() < end_s:
            data = body(count)
            began_s = time.monotonic()
            sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            answer = sock.recv(1 << 16)
            took.append(time.monotonic() - began_s)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            count += 1

    threads = [threading.Thread(target=client, args=pair) for pair in enumerate(tokens)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    return {
        "a_second": len(took) / SECONDS,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[len(took) * 99 // 100] * 1000,
    }


def measure(case: str) -> str:
    """One case against a real server."""
    with tempfile.TemporaryDirectory() as data:
        tokens = Tokens(data)
        texts = [tokens.make(f"node{number}") for number in range(CLIENTS)]
        command = [sys.executable, "server.py", "--data", data, "--web", "127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r":(\d+)/", server.stdout.readline())
            assert found, "the server did not start"
            code = f"import json; from bench.push import send; print(json.dumps(send({case!r}, {found[1]}, {texts!r})))"
            sender = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            told = json.loads(sender.stdout)
            used, most = cpu_s(server.pid), rss_mib(server.pid, peak=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)
        done = subprocess.run(
            [sys.executable, "control.py", "--data", data, "verify"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        each, unit = CASES[case][1:]
        return (
            f"{told['a_second'] * each:,.0f} {unit}; an answer in {told['p50_ms']:.0f} ms"
            f" (p99 {told['p99_ms']:.0f} ms); {used / SECONDS * 100:.0f} % of a core; {most:.0f} MiB at most"
        )


_TITLES = {
    "push": f"pushed in arrays of {ARRAY} by {CLIENTS} nodes, a durable answer to each",
    "temp": f"tmon's `POST /temp` from {CLIENTS} kept-alive clients, a durable answer to each",
}


def main() -> None:
    table("server: what is brought over HTTP", [(_TITLES[case], measure(case)) for case in sys.argv[1:] or CASES])


if __name__ == "__main__":
    main()
