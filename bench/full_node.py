"""A real node with a full outbox, for bench/ingest.py: its ring file, session and connection.

    python3 -m bench.full_node --samples 1000000

The program prints the port on which the node listens, and one line of JSON once all samples are acknowledged, as
bench/fleet.py does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from unittest import mock

from pigeonpost.core.clock import Clock
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.node.send_cursor import SendCursor
from pigeonpost.transports.tcp_node import TcpNodeTransport

_AT_ONCE = 1000  # samples in one write of the ring
_LIMIT_S = 300.0


def filled_outbox(folder: str, samples: int, clock: Clock) -> Outbox:
    """Return an outbox in `folder` with `samples` of two values, one every 10 s until the present time of `clock`."""
    outbox = Outbox(Ring(folder, 1 << (2 * samples - 1).bit_length(), 128), clock.boot_id, 3600.0)
    first_ms = clock.wall_ms() - samples * 10_000
    for seq in range(1, samples + 1):
        values = {"temperature": round(20 + seq % 97 * 0.11, 2), "light": seq * 37 % 1024}
        outbox.put(UnnumberedSample(first_ms + seq * 10_000, seq * 10_000, True, values, {}))
        if seq % _AT_ONCE == 0:
            outbox.commit()
    outbox.commit()
    return outbox


def main() -> None:
    """Fill the outbox, serve one collector, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100_000, help="number of samples in the outbox")
    samples = parser.parse_args().samples
    has_all = threading.Event()

    def note_ack(cursor: SendCursor, epoch: str, seq: int) -> None:
        record_ack(cursor, epoch, seq)
        if seq >= samples:
            has_all.set()

    clock, record_ack = Clock(), SendCursor.record_ack
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(SendCursor, "record_ack", note_ack):
        outbox = filled_outbox(folder, samples, clock)
        sensors = [{"name": "temperature", "unit": "°C"}, {"name": "light", "unit": ""}]
        info = NodeInfo("full", sensors, 10.0, None, outbox.switch, dict)
        node = TcpNodeTransport(("127.0.0.1", 0), info, outbox, clock)
        node.start()
        print(node.address[1], flush=True)
        while not node.collectors:
            time.sleep(0.001)
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        if not has_all.wait(_LIMIT_S):
            raise SystemExit(f"not acknowledged within {_LIMIT_S:g} s")
        took_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
        found = {"samples": samples, "seconds": round(took_s, 3), "cpu_s": round(cpu_s, 3)}
        print(json.dumps({**found, "per_second": round(samples / took_s)}), flush=True)
        node.stop(2.0)


if __name__ == "__main__":
    main()
