"""Benchmark of the multicast bus: packets per second that a real server receives without loss, and their cost.

    python3 -m bench.bus                    all rows of bench/README.md
    python3 -m bench.bus --rate 20000 --seconds 12 --codifiers 20
    python3 -m bench.bus send ...           the sender, which runs in its own process

A sender sends data packets (f) with many codifiers on loopback at a constant rate. `server.py` receives and counts
them, and stores each one as a reading. Lost packets are those that the server counts as lost, and those that it never
received.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.machine import cpu_s, rss_mib, table

GROUPS = ("239.255.71.1", 7471), ("239.255.71.2", 7472)
_HEADER = struct.Struct("<I4xQ1s2s2s3xIf")
_TICK_S = 0.005


def send(rate: int, seconds: float, codifiers: int) -> None:
    """Send `rate` packets per second for `seconds`, alternating between `codifiers` codifiers.

    Print the number of packets and the longest delay as JSON.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    sock.connect(GROUPS[1])
    names = [f"{chr(65 + n // 26)}{chr(97 + n % 26)}".encode() for n in range(codifiers)]
    sent, late_s, began_s = 0, 0.0, time.monotonic()
    total = int(rate * seconds)
    while sent < total:
        due = min(total, int((time.monotonic() - began_s) * rate) + 1)
        now_ms = time.time_ns() // 1_000_000
        for n in range(sent, due):
            turn, code = divmod(n, codifiers)
            sock.send(_HEADER.pack(turn + 1, now_ms, b"f", names[code], b"@@", 4, 20 + n % 100 / 10))
        sent = due
        left_s = began_s + sent / rate + _TICK_S - time.monotonic()
        late_s = max(late_s, -left_s)
        if left_s > 0:
            time.sleep(left_s)
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - began_s, "late_s": late_s}))


def measure(rate: int, seconds: float, codifiers: int) -> dict[str, Any]:
    """Measure one run of a server that receives packets.

    Args:
        rate: Packets per second.
        seconds: Duration of sending.
        codifiers: Number of codifiers.

    Returns:
        The numbers of packets sent, received, lost and stored; the share of a core and the memory that the server used.
    """
    with tempfile.TemporaryDirectory() as data:
        (control, control_port), (group, port) = GROUPS
        environment = {
            **os.environ, "PIGEONPOST_BUS_ENABLED": "1", "PIGEONPOST_BUS_CONTROL": f"{control}:{control_port}",
            "PIGEONPOST_BUS_DATA": f"{group}:{port}", "PIGEONPOST_BUS_INTERFACE": "127.0.0.1",
        }  # fmt: skip
        with open(os.path.join(data, "err"), "w") as err:
            server = subprocess.Popen(
                [sys.executable, "server.py", "--data", data, "--web", "127.0.0.1:0"], env=environment,
                stdout=subprocess.PIPE, stderr=err,
            )  # fmt: skip
        try:
            assert server.stdout is not None
            server.stdout.readline()
            about = json.loads(Path(data, "running.json").read_text())
            sender = [sys.executable, "-m", "bench.bus", "send", "--rate", str(rate), "--seconds", str(seconds),
                      "--codifiers", str(codifiers)]  # fmt: skip
            before_s, began_s = cpu_s(server.pid), time.monotonic()
            found: dict[str, Any] = json.loads(subprocess.run(sender, stdout=subprocess.PIPE, check=True).stdout)
            found["core"] = (cpu_s(server.pid) - before_s) / (time.monotonic() - began_s)
            time.sleep(1.0)
            report = _fetch_report(about)
            found["received"], found["unstored"], found["stored"] = (
                report[k] for k in ("packets", "unstored", "stored")
            )
            found["lost"] = sum(fields["DPacketsLost"] for fields in report["codifiers"].values())
            found["rss_mib"] = rss_mib(server.pid, peak=True)
            server.send_signal(signal.SIGTERM)
            server.wait(30)
            return found
        finally:
            server.kill()
            server.wait()


def _fetch_report(about: dict[str, Any]) -> Any:
    host, port = about["web"][0]
    request = urllib.request.Request(
        f"http://{host}:{port}/api/v1/bus", headers={"Authorization": f"Bearer {about['key']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def row(rate: int, seconds: float, codifiers: int) -> tuple[str, str]:
    """Return the table row of a run with `rate`, `seconds` and `codifiers`, as for `measure`."""
    found = measure(rate, seconds, codifiers)
    actual_rate = found["sent"] / found["seconds"]
    lost = max(found["lost"], found["sent"] - found["received"])
    result = (
        f"{found['sent']:,} sent at {actual_rate:,.0f} packets/s (at most {found['late_s'] * 1000:.0f} ms late),"
        f" {lost:,} lost, {found['stored']:,} stored; {found['core'] * 100:.0f} % of a core;"
        f" {found['rss_mib']:.0f} MiB at most"
    )
    return f"{rate:,} packets/s from {codifiers} codifiers for {seconds:g} s", result


def main() -> None:
    """Run the chosen benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["send"])
    parser.add_argument("--rate", type=int)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--codifiers", type=int, default=20)
    chosen = parser.parse_args()
    if chosen.what:
        send(chosen.rate, chosen.seconds, chosen.codifiers)
        return
    rates = [chosen.rate] if chosen.rate else [1000, 20_000]
    table("server: the multicast bus", [row(rate, chosen.seconds, chosen.codifiers) for rate in rates])


if __name__ == "__main__":
    main()
