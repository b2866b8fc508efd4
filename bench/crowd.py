"""Effects of a flood of connections without the token on a node and its server, and delay of a token's revocation.

    python3 -m bench.crowd [RATE...]

64 silent connections from many addresses of 127.0.0.0/8 occupy a node with a token, and RATE new ones are opened per
second (250, and as many as this machine can open). During the flood, a server that has the token is started five times.
Then the token is rotated and revoked. The benchmark takes two minutes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator

from bench.machine import cpu_s, rss_mib, table

STARTS, LIMIT_S = 5, 60.0
# HELD is the number of connections that are open at the same time: 250 per second, which the node closes after 5 s.
# MOST is a rate that no machine reaches, so as many connections as possible are opened.
HELD, MOST = 1250, 1_000_000.0
_WARM_UP_S = 3.0


class Program:
    """Running Pigeonpost program, with the lines that it logs and the time of each line."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PIGEONPOST_ANNOUNCE_ON": "false", **environment},
        )  # fmt: skip
        self.count = 0
        self._lines: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.count += 1
            self._lines.put((time.monotonic(), line))

    def wait_for(self, *texts: str, limit_s: float = LIMIT_S) -> tuple[float, str]:
        """Return the time and the text of the next line that contains one of `texts`.

        Raises:
            queue.Empty: No such line arrives within `limit_s` seconds.
        """
        give_up_s = time.monotonic() + limit_s
        while True:
            at_s, line = self._lines.get(timeout=max(0.001, give_up_s - time.monotonic()))
            if any(text in line for text in texts):
                return at_s, line

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send signal `number` and wait for the end of the program."""
        self.process.send_signal(number)
        self.process.wait(LIMIT_S)


def flood(host: str, port: int, rate: float) -> None:
    """Hold HELD connections to `host` and `port`, and open `rate` new ones per second, until standard input ends.

    Print the number of opened connections.
    """
    over, opened, socks = threading.Event(), 0, deque[socket.socket]()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    began_s = time.monotonic()
    for n in itertools.count():
        if over.wait(max(0.0, began_s + n / rate - time.monotonic())):
            break
        sock = socket.socket()
        sock.setblocking(False)  # the kernel connects: a full queue does not delay the flood
        with contextlib.suppress(OSError):
            sock.bind((f"127.{n % 83}.{n % 199}.{n % 251 + 2}", 0))
            sock.connect_ex((host, port))
            opened += 1
        socks.append(sock)
        while len(socks) > HELD:
            socks.popleft().close()
    print(opened)


@contextlib.contextmanager
def flooding(address: str, rate: float) -> Iterator[list[int]]:
    """Run a flood of `rate` connections per second to `address` from another process until the block ends.

    Yield a list to which the number of opened connections is added at the end.
    """
    host, _, port = address.rpartition(":")
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.crowd", "--flood", host, port, str(rate)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    opened: list[int] = []
    try:
        time.sleep(_WARM_UP_S)
        yield opened
    finally:
        opened.append(int(process.communicate("", LIMIT_S)[0] or 0))


def start_server(address: str, data: str) -> Program:
    """Return a server, just started, that collects from the node at `address` with the data folder `data`."""
    return Program("server.py", "--data", data, "--web", "127.0.0.1:0", "--node", f"crowded@{address}")


def starts(address: str, data: str) -> str:
    """Return the seconds from the start of a server until it collects from `address`, STARTS times, as text.

    `data` is the server's data folder.
    """
    took = []
    for _ in range(STARTS):
        begun_s, server = time.monotonic(), start_server(address, data)
        try:
            took.append(f"{server.wait_for('collecting;')[0] - begun_s:.2f}")
        except queue.Empty:
            took.append("never")
        server.end()
    return ", ".join(took)


def crowd(rate: float, address: str, node: Program, data: str) -> list[tuple[str, str]]:
    """Return table rows of the flood of `rate` connections per second to `node`, which listens on `address`.

    `data` is the data folder of the servers that are started during the flood.
    """
    lines, began_cpu_s, began_s = node.count, cpu_s(node.process.pid), time.monotonic()
    with flooding(address, rate) as opened:
        took = starts(address, data)
    seconds = time.monotonic() - began_s
    pid = node.process.pid
    return [
        ("opened connections", f"{opened[0]} ({opened[0] / seconds:.0f} per second)"),
        ("from the start of a server until it collects (s)", took),
        ("lines that the node logged", str(node.count - lines)),
        ("processor time of the node", f"{(cpu_s(pid) - began_cpu_s) / seconds:.1%} of a core"),
        ("memory of the node, afterwards and at most", f"{rss_mib(pid):.1f} and {rss_mib(pid, peak=True):.1f} MiB"),
    ]


def control(data: str, *arguments: str) -> str:
    """Return the output of control.py with `arguments` on the data folder `data`."""
    command = [sys.executable, "control.py", "--data", data, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def revocation(address: str, data: str) -> list[tuple[str, str]]:
    """Return table rows with the effects of rotating and of revoking the token of the node at `address`.

    `data` is the data folder of the server.
    """
    server = start_server(address, data)
    try:
        server.wait_for("collecting;")
        control(data, "rotate", "crowded")
        try:
            server.wait_for("crowded: has", "crowded: is", limit_s=5.0)
            rotated = "ended"
        except queue.Empty:
            rotated = "continues with the previous token"
        control(data, "revoke", "crowded")
        at_s, _ = server.wait_for("its token was revoked")
        revoked_s = os.stat(os.path.join(data, "tokens.json")).st_mtime - time.time() + time.monotonic()
        return [
            ("session 5 s after `control.py rotate`", rotated),
            ("from `control.py revoke` to the end of the session", f"{at_s - revoked_s:.2f} s"),
        ]
    finally:
        server.end()


def main() -> None:
    """Run the benchmark and print the table."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    rates = [float(text) for text in sys.argv[1:]] or [250.0, MOST]
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "server")
        token = control(data, "token", "crowded")
        node = Program(
            "node.py", "--simulate", "--name", "crowded", "--every", "1", "--listen", "127.0.0.1:0", "--data", folder,
            PIGEONPOST_NODE_TOKEN=token,
        )  # fmt: skip
        try:
            address = node.wait_for("listening on ")[1].split()[-1]
            table("without attack", [("from the start of a server until it collects (s)", starts(address, data))])
            for rate in rates:
                flood = "as many new ones as possible" if rate == MOST else f"{rate:.0f} new ones/s"
                table(f"64 silent connections, {flood}", crowd(rate, address, node, data))
            table("change of a token", revocation(address, data))
        finally:
            node.end()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--flood"]:
        flood(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
