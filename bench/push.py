"""Throughput of samples pushed over HTTP; each response is sent only once they are durable.

    python3 -m bench.push                   all rows of bench/README.md
    python3 -m bench.push array100          samples in arrays of 100; also array10, array500, array1000
    python3 -m bench.push columns1000       samples in columns of 1,000; also columns4096
    python3 -m bench.push readings1         `POST /api/v1/readings` with one reading; also readings1000, ids1000 (with
                                            ids) and again1000 (the same request again and again)
    python3 -m bench.push lines1000         line protocol: 1,000 lines with two fields
    python3 -m bench.push temp              tmon's `POST /temp`, from 8 clients that keep their connections
    python3 -m bench.push floor100          upper bound: the same arrays, received by a server that does nothing else
                                            (push_floor.py); also commit100, which stores the bodies as text

The clients are raw sockets in their own process, so that the cost of a client library is not counted.
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

CLIENTS, SECONDS = 8, 10.0
_START_MS = 1_795_188_970_000

Body = Callable[[int], bytes]  # returns the body of the n-th request


def arrays(count: int, token: str, node: str) -> tuple[str, Body]:
    """Return the head of pushes of `count` samples in an array, and a function that returns the n-th body.

    Args:
        count: Samples per body.
        token: The node's token.
        node: Name of the node.
    """
    indices = range(count)
    text = ",".join([
        f'{{"seq":%d,"time":"%s.{k * 1000 // count:03}Z","up":%d,"values":{json.dumps(_values(k))}}}' for k in indices
    ])  # fmt: skip
    body = f"{body_start(node)}[{text}]}}"

    def of(number: int) -> bytes:
        seq, second = number * count + 1, rfc3339(_START_MS + 1000 * number)[:19]
        return (body % tuple([part for k in indices for part in (seq + k, second, 1000 * number + k)])).encode()

    return _head(token), of


def columns(count: int, token: str, node: str) -> tuple[str, Body]:
    """Return the same as `arrays` for samples in columns: `count` per body, of `node` with `token`."""
    steps = "".join(f",{(k + 1) * 1000 // count - k * 1000 // count}" for k in range(count - 1))
    values = json.dumps({name: [_values(k)[name] for k in range(count)] for name in _values(0)})
    body = f'{body_start(node)}{{"seq":%d,"time":[%d{steps}],"up":%d,"values":{values}}}}}'

    def of(number: int) -> bytes:
        return (body % (number * count + 1, _START_MS + 1000 * number, 1000 * number)).encode()

    return _head(token), of


def _values(k: int) -> dict[str, float]:
    return {"temperature": 20 + k % 100 / 8, "light": 500 + k % 40}


def body_start(node: str) -> str:
    """Return the beginning of a body of `node`; the samples and `}` follow."""
    sensors = [{"name": "temperature", "unit": "°C"}, {"name": "light", "unit": "counts"}]
    fields = {"node": node, "outbox": "0b" * 8, "epoch": "ab" * 8, "base": 0, "sensors": sensors, "gaps": []}
    return json.dumps(fields)[:-1] + ', "samples": '


def _head(token: str) -> str:
    return f"POST /api/v1/samples HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"


def temperatures(count: int, token: str, node: str) -> tuple[str, Body]:
    """Return the same as `arrays` for tmon's report. `count` is not used; `token` and `node` identify the client."""
    text = json.dumps({"type": "temperature", "token": token, "data": {"temperature": "20812"}}).encode()
    return "POST /temp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n", lambda number: text


def readings(count: int, token: str, node: str, step: int = 1, has_id: bool = False) -> tuple[str, Body]:
    """Return the same as `arrays` for readings of any program.

    Args:
        count: Readings per body.
        token: The node's token.
        node: Name of the node.
        step: 0 to send the same times again and again.
        has_id: True for readings with ids.
    """
    head = f"POST /api/v1/readings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"

    def of(number: int) -> bytes:
        first = number * count * step
        return json.dumps([
            {"node": node, "values": _values(k), "time": _START_MS + first + k, **({"id": first + k} if has_id else {})}
            for k in range(count)
        ]).encode()  # fmt: skip

    return head, of


def ids(count: int, token: str, node: str) -> tuple[str, Body]:
    """Return the same as `readings` with ids, for `count` readings of `node` with `token`."""
    return readings(count, token, node, has_id=True)


def again(count: int, token: str, node: str) -> tuple[str, Body]:
    """Return the same as `readings` that are always the same, for `count` readings of `node` with `token`."""
    return readings(count, token, node, step=0)


def lines(count: int, token: str, node: str) -> tuple[str, Body]:
    """Return the same as `readings` in line protocol, for `count` lines of `node` with `token`."""
    head = f"POST /write?precision=ms HTTP/1.1\r\nHost: localhost\r\nAuthorization: Token {token}\r\n"
    texts = [",".join(f"{name}={value}" for name, value in _values(k).items()) for k in range(count)]

    def of(number: int) -> bytes:
        first = _START_MS + number * count
        return "\n".join([f"room,host={node} {texts[k]} {first + k}" for k in range(count)]).encode()

    return head, of


CASES = {
    "array10": (arrays, 10, "samples/s"),
    "array100": (arrays, 100, "samples/s"),
    "array500": (arrays, 500, "samples/s"),
    "array1000": (arrays, 1000, "samples/s"),
    "columns1000": (columns, 1000, "samples/s"),
    "columns4096": (columns, 4096, "samples/s"),
    "readings1": (readings, 1, "requests/s"),
    "readings1000": (readings, 1000, "readings/s"),
    "ids1000": (ids, 1000, "readings/s"),
    "again1000": (again, 1000, "readings/s"),
    "lines1000": (lines, 1000, "lines/s"),
    "temp": (temperatures, 1, "requests/s"),
    "floor100": (arrays, 100, "samples/s"),
    "commit100": (arrays, 100, "samples/s"),
}
_FLOORS: dict[str, list[str]] = {"floor100": [], "commit100": ["commit"]}  # the arguments of push_floor.py


def send(case: str, port: int, tokens: list[str]) -> dict[str, float]:
    """Send as fast as responses arrive, for SECONDS, in one thread for each of `tokens`.

    Args:
        case: One of CASES.
        port: Port of the server on 127.0.0.1.
        tokens: Tokens of the nodes.

    Returns:
        The requests per second, and the median and 99th percentile of the response times in milliseconds.
    """
    took: list[float] = []
    end_s = time.monotonic() + SECONDS

    def client(number: int, token: str) -> None:
        make, size, _ = CASES[case]
        head, body = make(size, token, f"node{number}")
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count = 0
        while time.monotonic() < end_s:
            data = body(count)
            began_s = time.monotonic()
            sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            answer = sock.recv(1 << 16)
            took.append(time.monotonic() - began_s)
            assert answer.startswith(b"HTTP/1.1 20"), answer
            count += 1

    threads = [threading.Thread(target=client, args=pair) for pair in enumerate(tokens)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    return {
        "per_second": len(took) / SECONDS,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[len(took) * 99 // 100] * 1000,
    }


def measure(case: str) -> str:
    """Return the result of one `case` with a real server as text; the start of the server is not counted."""
    with tempfile.TemporaryDirectory() as data:
        tokens = Tokens(data)
        texts = [tokens.make(f"node{number}") for number in range(CLIENTS)]
        command = ["server.py", "--data", data, "--web", "127.0.0.1:0"]
        if case in _FLOORS:
            command = ["-m", "bench.push_floor", data, *_FLOORS[case]]
        server = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert server.stdout is not None
            found = re.search(r":(\d+)/", server.stdout.readline())
            assert found, "the server did not start"
            before_s = cpu_s(server.pid)
            code = f"import json; from bench.push import send; print(json.dumps(send({case!r}, {found[1]}, {texts!r})))"
            sender = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            result = json.loads(sender.stdout)
            used, most = cpu_s(server.pid) - before_s, rss_mib(server.pid, peak=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)
        if case not in _FLOORS:
            _verify(data)
        size, unit = CASES[case][1:]
        per_second = result["per_second"] * size
        each_us = used / SECONDS / per_second * 1e6
        return (
            f"{per_second:,.0f} {unit} ({each_us:.1f} µs CPU each); response in {result['p50_ms']:.0f} ms"
            f" (p99 {result['p99_ms']:.0f} ms); {used / SECONDS * 100:.0f} % of a core; {most:.0f} MiB at most"
        )


def _verify(data: str) -> None:
    done = subprocess.run(
        [sys.executable, "control.py", "--data", data, "verify"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


_TITLES = {
    "array": "arrays of {:,} from {} nodes, each with a durable response",
    "columns": "columns of {:,} from {} nodes, each with a durable response",
    "readings": "`POST /api/v1/readings`, {:,} with two values each, from {} connections",
    "ids": "the same, {:,} with ids",
    "again": "the same, {:,} that are stored already",
    "lines": "`POST /write`, {:,} lines with two fields each, from {} connections",
    "temp": "tmon's `POST /temp` from {1} persistent connections, each with a durable response",
    "floor": "for comparison: http.server that parses the same arrays of {} and responds",
    "commit": "for comparison: the same, storing all waiting requests in one transaction before it responds",
}


def _title(case: str) -> str:
    return _TITLES[case.rstrip("0123456789")].format(CASES[case][1], CLIENTS)


def main() -> None:
    """Run the chosen cases and print the table."""
    table("server: samples over HTTP", [(_title(case), measure(case)) for case in sys.argv[1:] or CASES])


if __name__ == "__main__":
    main()
