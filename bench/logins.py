"""Cost of failed logins for the server: resident memory before and after many at the same time, and their responses.

    python3 -m bench.logins

A real server with a password receives 10 and 100 wrong logins at the same time, from one address and from as many
addresses of this machine (127.0.0.2 and following). Each hash takes 16 MiB; one thread calculates all of them. The same
number of requests without a hash shows what the connections alone cost.
"""

from __future__ import annotations

import collections
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

from bench.machine import rss_mib, table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BODY = b"user=admin&password=wrong+horse"
LOGIN = (
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\n%s" % (len(BODY), BODY)
)
PLAIN = b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
LIMIT_S = 60.0


def ask(port: int, source: str, request: bytes, together: threading.Barrier, statuses: list[int]) -> None:
    """Send `request` to `port` from the address `source` once all threads have reached the barrier `together`.

    The status of the response is added to `statuses`.
    """
    with socket.create_connection(("127.0.0.1", port), LIMIT_S, source_address=(source, 0)) as sock:
        together.wait(LIMIT_S)
        sock.sendall(request)
        statuses.append(int(sock.recv(65_536)[9:12]))


def at_once(port: int, sources: list[str], request: bytes) -> list[int]:
    """Return the statuses of copies of `request` sent to `port` at the same time, one from each of `sources`."""
    together, statuses = threading.Barrier(len(sources)), list[int]()
    threads = [threading.Thread(target=ask, args=(port, source, request, together, statuses)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    return statuses


def measure(what: str, request: bytes, count: int, is_many: bool) -> tuple[str, str]:
    """Return a table row with the memory of a new server before and after simultaneous requests, five times.

    Args:
        what: Name of the row.
        request: The HTTP request.
        count: Number of requests at the same time.
        is_many: True to send each from another address.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PIGEONPOST_SERVER_DATA": folder}
        subprocess.run(
            [sys.executable, os.path.join(ROOT, "control.py"), "--data", folder, "password"],
            input="correct horse\ncorrect horse\n", text=True, check=True, capture_output=True, env=environment,
        )  # fmt: skip
        server = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "server.py"), "--web", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            found = re.search(r"the page is at http://127.0.0.1:(\d+)/", server.stdout.readline())
            assert found is not None
            port, statuses = int(found[1]), collections.Counter[int]()
            before = rss_mib(server.pid)
            began_s = time.monotonic()
            for turn in range(5):
                first = 2 + (turn * count if is_many else 0)
                addresses = [f"127.0.{number >> 8}.{number & 255}" for number in range(first, first + count)]
                statuses.update(at_once(port, addresses if is_many else ["127.0.0.1"] * count, request))
            took_s = time.monotonic() - began_s
            after = rss_mib(server.pid)
        finally:
            server.terminate()
            server.wait(LIMIT_S)
    answers = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
    where = f"{count} addresses" if is_many else "one address"
    return (
        f"five times {count} {what} at the same time, from {where}",
        f"{before:.0f} to {after:.0f} MiB; {answers}; {took_s:.1f} s",
    )


def main() -> int:
    """Run the benchmark and print the table. Returns 0."""
    rows = [measure("failed logins", LOGIN, count, is_many) for count in (10, 100) for is_many in (False, True)]
    rows += [measure("plain requests", PLAIN, count, False) for count in (10, 100)]
    table("resident memory before and after; responses", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
