"""File drop of 100 MB: speed and memory, compared with what the disk needs for the same bytes.

    python3 -m bench.drop [FOLDER]

A real server keeps its data in FOLDER (default: the current one), on the disk to be measured. The client is a raw
socket that sends the same block repeatedly. The disk is measured in the same run, between the uploads: write and fsync,
and the same with SHA-256, which is the minimum work of every receiver.
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
    """Yield the content of one file in blocks.

    Each `seed` gives a different file, because the server stores equal files only once.
    """
    block = (b"%016d" % seed) * (_BLOCK // 16)
    for at in range(0, _BYTES, _BLOCK):
        yield block[: min(_BLOCK, _BYTES - at)]


def disk_s(folder: str, seed: int, with_sum: bool) -> float:
    """Return the seconds to write and sync the file of `seed` in `folder`, in the blocks in which it arrives.

    If `with_sum` is true, the time includes calculating the SHA-256.
    """
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
    """Return the seconds that the minimal receiver at `port` needs.

    It receives, hashes, writes and syncs the file of `seed`.
    """
    with socket.create_connection(("127.0.0.1", port)) as sock:
        began_s = time.perf_counter()
        for block in blocks(seed):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
        return time.perf_counter() - began_s


def ask(port: int, head: str) -> bytes:
    """Send a request with the request line `head` to `port`, and return the body of the response."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"{head}\r\nHost: x\r\nConnection: close\r\npi_id: {_PI}\r\nnum_files: 1\r\n\r\n".encode())
        return answer(sock)


def answer(sock: socket.socket) -> bytes:
    """Return the body of the response from `sock`."""
    reply = b""
    while part := sock.recv(4096):
        reply += part
    return reply.partition(b"\r\n\r\n")[2]


def upload_s(port: int, seed: int) -> float:
    """Return the seconds from the first byte of the file of `seed` sent to `port` until its acknowledgement."""
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
        reply = answer(sock)
        took_s = time.perf_counter() - began_s
    assert reply.decode() == total.hexdigest(), reply
    return took_s


def main() -> None:
    """Run the benchmark and print the table."""
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
            upload_s(port, 0)  # load what is loaded at first use
            before_mib, before_s = rss_mib(server.pid), cpu_s(server.pid)
            code = [sys.executable, "-c", _PROBE, os.path.join(data, "bare")]
            probe = subprocess.Popen(code, stdout=subprocess.PIPE, text=True)
            assert probe.stdout is not None
            probe_port = int(probe.stdout.readline())
            took: dict[str, list[float]] = {"disk": [], "summed": [], "bare": [], "dropped": []}  # seconds per run
            for run in range(1, _RUNS + 1):
                steps: list[tuple[str, Callable[[], float]]] = [
                    ("disk", functools.partial(disk_s, data, run, False)),
                    ("summed", functools.partial(disk_s, data, run, True)),
                    ("bare", functools.partial(bare_s, probe_port, run)),
                    ("dropped", functools.partial(upload_s, port, run)),
                ]
                for name, step in steps[run % 4 :] + steps[: run % 4]:  # vary the order
                    took[name].append(step())
            spent_s = (cpu_s(server.pid) - before_s) / _RUNS
            probe.kill()
            probe.wait()
            speed, with_sum, least, drop = (_BYTES / 1e6 / statistics.median(times) for times in took.values())
            table("server: upload of a file of 100 MB", [
                ("the disk alone: write and fsync", f"{speed:.0f} MB/s"),
                ("the same with SHA-256", f"{with_sum:.0f} MB/s"),
                ("a minimal loop that receives, hashes, writes and syncs", f"{least:.0f} MB/s"),
                ("the server, from the first byte to the durable response",
                 f"{drop:.0f} MB/s: {drop / speed:.0%} of the disk, {drop / with_sum:.0%} of it with SHA-256,"
                 f" {drop / least:.0%} of the minimal loop"),
                ("processor time of the server", f"{spent_s:.2f} s"),
                ("memory of the server before; after; at most", f"{before_mib:.1f}; {rss_mib(server.pid):.1f}; "
                                                  f"{rss_mib(server.pid, peak=True):.1f} MiB"),
            ])  # fmt: skip
            spans = ", ".join(f"{name} {span(times)}" for name, times in took.items())
            print(f"\nmedians of {_RUNS} runs; slowest and fastest in MB/s: {spans}")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)


def span(took: list[float]) -> str:
    """Return the lowest and the highest speed in MB/s for the durations `took` in seconds, as text."""
    return f"{_BYTES / 1e6 / max(took):.0f} to {_BYTES / 1e6 / min(took):.0f}"


if __name__ == "__main__":
    main()
