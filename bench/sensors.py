"""Cost of reading for a node: 20 kernel sensors at 1 Hz, as a share of a core.

    python3 -m bench.sensors [PYTHON]

The sensors are files in a temporary folder, in the format of Linux drivers: six channels of two BME280, four of an
ADS1115 (raw value and scale), four hwmon temperatures (two of them selected by label), six DS18B20. The time that a
real driver needs is not included. The node is the real program, with its outbox on the disk and no collector.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from bench.machine import about, cpu_s, rss_mib
from bench.node import Node

SECONDS = 60.0
IIO, HWMON, W1 = "sys/bus/iio/devices", "sys/class/hwmon", "sys/bus/w1/devices"
SCRATCHPAD = "72 01 4b 46 7f ff 0e 10 57 : crc=57 YES\n72 01 4b 46 7f ff 0e 10 57 t=23125\n"


def fake_root(root: str) -> Iterator[str]:
    """Create the files below `root`, and yield the 20 channels in the form of the setting `from`."""
    for n in range(2):
        device = f"{IIO}/iio:device{n}"
        put(root, f"{device}/name", f"bme280_{n}")
        for channel, value in (("temp", "21840"), ("humidityrelative", "41250"), ("pressure", "99.123")):
            put(root, f"{device}/in_{channel}_input", value)
            yield f"iio/bme280_{n}/{channel}"
    put(root, f"{IIO}/iio:device2/name", "ads1115")
    for n in range(4):
        put(root, f"{IIO}/iio:device2/in_voltage{n}_raw", "12345")
        put(root, f"{IIO}/iio:device2/in_voltage{n}_scale", "0.125")
        yield f"iio/ads1115/voltage{n}"
    for n in range(2):
        put(root, f"{HWMON}/hwmon{n}/name", f"chip{n}")
        for number in range(1, 9):
            put(root, f"{HWMON}/hwmon{n}/temp{number}_input", "48312")
            put(root, f"{HWMON}/hwmon{n}/temp{number}_label", f"Core {number}")
        yield f"hwmon/chip{n}/temp1"
        yield f"hwmon/chip{n}/temp/Core 5"
    for n in range(6):
        put(root, f"{W1}/28-00000000000{n}/name", f"28-00000000000{n}")
        put(root, f"{W1}/28-00000000000{n}/w1_slave", SCRATCHPAD)
        yield f"w1/28-00000000000{n}"


def put(root: str, name: str, content: str) -> None:
    """Write `content` to the file `name` below `root`; missing folders are created."""
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(content + "\n")


def settings(root: str, places: list[str], together: bool) -> str:
    """Return a node.toml for the channels `places` below `root`.

    It has one [[sensor]] table for all channels if `together` is true, otherwise one table for each channel.
    """
    head = f'[[sensor]]\nkind = "kernel"\nroot = "{root}"\n'
    channels = [f'[sensor.channels.s{n}]\nfrom = "{place}"\n' for n, place in enumerate(places)]
    return head + "".join(channels) if together else "".join(head + channel for channel in channels)


def failed(address: str) -> int:
    """Return the number of readings without a value, from the STATUS of the node at `address`."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(b"CHECK\n")
        _, _, _, details = sock.makefile("r", encoding="utf-8").readline().split(" ", 3)
    count: int = json.loads(details)["failed"]
    return count


def measure(python: str, together: bool) -> None:
    """Print the share of a core of a node run by `python`; `together` as for `settings`."""
    with tempfile.TemporaryDirectory() as folder:
        places = list(fake_root(os.path.join(folder, "root")))
        assert len(places) == 20
        config = os.path.join(folder, "node.toml")
        with open(config, "w", encoding="ascii") as file:
            file.write(settings(os.path.join(folder, "root"), places, together))
        node = Node(python, os.path.join(folder, "data"), "--config", config, "--every", "1")
        time.sleep(3)
        before_s, began_s = cpu_s(node.process.pid), time.monotonic()
        time.sleep(SECONDS)
        share = (cpu_s(node.process.pid) - before_s) / (time.monotonic() - began_s)
        memory = rss_mib(node.process.pid)
        assert failed(node.address) == 0, "some sensors failed, so the cost is not comparable"
        node.stop()
    what = "in one table" if together else "in one table each (20 threads)"
    print(f"| 20 kernel sensors at 1 Hz, {what} | {share * 100:.2f} % of a core; {memory:.1f} MiB | 3 % |", flush=True)


def main() -> None:
    """Run the benchmark."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"| node with {version} | {about()} | goal |\n|---|---|---|")
    for together in (False, True):
        measure(python, together)


if __name__ == "__main__":
    main()
