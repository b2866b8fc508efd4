"""What wrong logins cost the server: its resident memory before and after many at once, and the answers they get.

    python3 -m bench.logins

A real server with a password; 10 and 100 wrong logins at once, from one address and from as many addresses of this
machine (127.0.0.2 and on). Each hash takes 16 MiB; one thread does all of them. As many requests that hash nothing tell
what the connections cost alone.
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
    """Send a request from an address of this machine, when all others are ready to."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S, source_address=(source, 0)) as sock:
        together.wait(LIMIT_S)
        sock.sendall(request)
        statuses.append(int(sock.recv(65_536)[9:12]))


def at_once(port: int, sources: list[str], request: bytes) -> list[int]:
    """The statuses of as many requests at once."""
    together, statuses = threading.Barrier(len(sources)), list[int]()
    threads = [threading.Thread(target=ask, args=(port, source, request, together, statuses)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    return statuses


def measure(what: str, request: bytes, count: int, is_many: bool) -> tuple[str, str]:
    """Memory of a fresh server before and after `count` requests at once, five times."""
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
    told = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
    where = f"{count} addresses" if is_many else "one address"
    return f"five times {count} {what} at once, {where}", f"{before:.0f} to {after:.0f} MiB; {told}; {took_s:.1f} s"


def main() -> int:
    """Print the table."""
    rows = [measure("wrong logins", LOGIN, count, is_many) for count in (10, 100) for is_many in (False, True)]
    rows += [measure("plain requests", PLAIN, count, False) for count in (10, 100)]
    table("resident memory before and after, answers", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
