"""How fast a file of 100 MB is dropped, beside what the disk does with the same bytes, and what that costs in memory.

    python3 -m bench.drop [FOLDER]

A real server, whose data are in FOLDER (the current one), on the disk that is asked; the client is a raw socket that
sends the same block again and again. The disk is measured in the same run, between the uploads: write and fsync, and
the same with SHA-256 beside it, which is the least that any receiver has to do.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from bench.machine import cpu_s, rss_mib, table
from pigeonpost.compat.file_drop.storage import Pi, PiIds

_BYTES = 100_000_000
_BLOCK = 1 << 20
_RUNS = 12
_PI = "10000000a1b2c3d4"


def blocks(seed: int) -> Iterator[bytes]:
    """The content of one file, in blocks: each file another one, since the same again would not be kept."""
    block = (b"%016d" % seed) * (_BLOCK // 16)
    for at in range(0, _BYTES, _BLOCK):
        yield block[: min(_BLOCK, _BYTES - at)]


def disk_s(folder: str, seed: int, with_sum: bool) -> float:
    """Seconds that the disk takes to have the file: written in the pieces in which it comes, and synced."""
    path = os.path.join(folder, "probe")
    began_s = time.perf_counter()
    total = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for block in blocks(seed):
            if with_sum:
                total.update(block)
            file.write(block)
        os.fsync(file.fileno())
    took_s = time.perf_counter() - began_s
    os.unlink(path)
    return took_s


_PROBE = """
import hashlib, os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
buffer = memoryview(bytearray(256 << 10))
while True:
    sock, _ = listener.accept()
    total = hashlib.sha256()
    with open(sys.argv[1], "wb", buffering=0) as file:
        while got := sock.recv_into(buffer):
            total.update(buffer[:got])
            file.write(buffer[:got])
        os.fsync(file.fileno())
    sock.sendall(total.hexdigest().encode())
    sock.close()
    os.unlink(sys.argv[1])
"""


def bare_s(port: int, seed: int) -> float:
    """Seconds that the smallest program takes which receives a file, sums it, writes it and syncs it."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        began_s = time.perf_counter()
        for block in blocks(seed):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
        return time.perf_counter() - began_s


def ask(port: int, head: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"{head}\r\nHost: x\r\nConnection: close\r\npi_id: {_PI}\r\nnum_files: 1\r\n\r\n".encode())
        return answer(sock)


def answer(sock: socket.socket) -> bytes:
    said = b""
    while part := sock.recv(4096):
        said += part
    return said.partition(b"\r\n\r\n")[2]


def upload_s(port: int, seed: int) -> float:
    """Seconds from the first byte to the answer that the file is there, durably."""
    total = hashlib.sha256()
    for block in blocks(seed):
        total.update(block)
    letters = ask(port, "GET / HTTP/1.1").decode()
    head = b'--x\r\nContent-Disposition: form-data; name="sensor_data_file"; filename="f%d.txt"\r\n\r\n' % seed
    tail = b"\r\n--x--\r\n"
    request = (
        f"POST /upload/{letters} HTTP/1.1\r\nHost: x\r\nConnection: close\r\npi_id: {_PI}\r\nnum_files: 1\r\n"
        f"checksum: {total.hexdigest()}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {len(head) + _BYTES + len(tail)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        began_s = time.perf_counter()
        sock.sendall(request + head)
        for block in blocks(seed):
            sock.sendall(block)
        sock.sendall(tail)
        said = answer(sock)
        took_s = time.perf_counter() - began_s
    assert said.decode() == total.hexdigest(), said
    return took_s


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as data:
        with PiIds(data).changing() as known:
            known[_PI] = Pi("bench")
        command = [sys.executable, "server.py", "--data", data, "--web", "127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r":(\d+)/", server.stdout.readline())
            assert found, "the server did not start"
            port = int(found[1])
            upload_s(port, 0)  # what is loaded at first use is loaded now
            before_mib, before_s = rss_mib(server.pid), cpu_s(server.pid)
            code = [sys.executable, "-c", _PROBE, os.path.join(data, "bare")]
            probe = subprocess.Popen(code, stdout=subprocess.PIPE, text=True)
            assert probe.stdout is not None
            probe_port = int(probe.stdout.readline())
            took: dict[str, list[float]] = {"disk": [], "summed": [], "bare": [], "dropped": []}  # seconds, of each run
            for run in range(1, _RUNS + 1):
                steps: list[tuple[str, Callable[[], float]]] = [
                    ("disk", functools.partial(disk_s, data, run, False)),
                    ("summed", functools.partial(disk_s, data, run, True)),
                    ("bare", functools.partial(bare_s, probe_port, run)),
                    ("dropped", functools.partial(upload_s, port, run)),
                ]
                for name, step in steps[run % 4 :] + steps[: run % 4]:  # none always comes behind the same other
                    took[name].append(step())
            spent_s = (cpu_s(server.pid) - before_s) / _RUNS
            probe.kill()
            probe.wait()
            speed, with_sum, least, drop = (_BYTES / 1e6 / statistics.median(times) for times in took.values())
            table("server: a file of 100 MB dropped", [
                ("the disk: write and fsync", f"{speed:.0f} MB/s"),
                ("the same with SHA-256 beside", f"{with_sum:.0f} MB/s"),
                ("a bare loop that receives, sums, writes and syncs", f"{least:.0f} MB/s"),
                ("first byte to the answer that it is durable",
                 f"{drop:.0f} MB/s: {drop / speed:.0%} of the disk, {drop / with_sum:.0%} of it with SHA-256,"
                 f" {drop / least:.0%} of the bare loop"),
                ("processor time of the server", f"{spent_s:.2f} s"),
                ("memory before, after, at most", f"{before_mib:.1f}, {rss_mib(server.pid):.1f}, "
                                                  f"{rss_mib(server.pid, peak=True):.1f} MiB"),
            ])  # fmt: skip
            spans = ", ".join(f"{name} {span(times)}" for name, times in took.items())
            print(f"\nmedians of {_RUNS}; slowest and fastest, MB/s: {spans}")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)


def span(took: list[float]) -> str:
    return f"{_BYTES / 1e6 / max(took):.0f} to {_BYTES / 1e6 / min(took):.0f}"


if __name__ == "__main__":
    main()
