"""Benchmarks of the web page: 50 sensors, 200 open pages, and comparison with Flask on waitress and with nginx.

    python3 -m bench.beside [PYTHON]

PYTHON is an interpreter with flask and waitress (python3 -m venv /tmp/flask && /tmp/flask/bin/pip install flask
waitress). Debian's wrk requests the same bytes from both servers in turns; Debian's nginx-light serves the same log
file. A comparison is left out if its program is not installed.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.machine import cpu_s, rss_mib, table
from bench.node import Node
from bench.sensors import put
from bench.web import Client, download, fresh_page_ms, long_log
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import EpochCommit, HighWaterMark
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Sample

SENSORS, PAGES, TURNS = 50, 200, 3
SECONDS = 30.0
_NODE, _CHARTS = "open", 2
_FLASK = """
import sys
from flask import Flask, Response
from waitress import serve
body = open(sys.argv[1], "rb").read()
app = Flask(__name__)
@app.get("/")
def page():
    return Response(body, mimetype="text/html")
serve(app, host="127.0.0.1", port=int(sys.argv[2]), threads=8)
"""
_NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{ access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; root {logs}; }} }}
"""


@contextmanager
def serving(data: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a server until the block ends. Yield its process and the port of its web page.

    Args:
        data: Data folder of the server.
        *arguments: Further command-line arguments of server.py.
    """
    command = [sys.executable, "server.py", "--data", data, "--web", "127.0.0.1:0", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r":(\d+)/", server.stdout.readline())
        assert found, "the server did not start"
        yield server, int(found[1])
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


# ------------------------------------------------------------------------------------------------------- 50 sensors


def store_day(data: str, names: list[str]) -> None:
    """Store a day of samples of the node `fifty`, one per minute, in the data folder `data`.

    `names` are its sensors.
    """
    now_ms = int(time.time() * 1000)
    samples = [
        Sample(n, now_ms - 86_400_000 + n * 60_000, n * 60_000,
               {name: round(20 + 3 * math.sin(n / 230 + k) + math.sin(n / 3), 2) for k, name in enumerate(names)},
               {}, "")
        for n in range(1, 1440)
    ]  # fmt: skip
    epoch_commit = EpochCommit("fifty", "0" * 16, "1" * 16, HighWaterMark(1439, samples[-1].up_ms))
    epoch_commit.units = dict.fromkeys(names, "°C")
    epoch_commit.items = [SampleBatch.of(samples)]
    store = SqliteStore(data)
    with store.writing(()):
        store.put([epoch_commit], now_ms, None)
    store.close()


def fifty_sensors(folder: str) -> Iterator[tuple[str, str]]:
    """Yield a table row with the time and size of the front page with 50 sensors; files are created in `folder`."""
    root, names = os.path.join(folder, "root"), [f"temperature_{k:02d}" for k in range(SENSORS)]
    lines = [f'[[sensor]]\nkind = "kernel"\nroot = "{root}"\n']
    put(root, "sys/class/hwmon/hwmon0/name", "chip")
    for k, name in enumerate(names):
        put(root, f"sys/class/hwmon/hwmon0/temp{k + 1}_input", str(20_000 + 137 * k))
        lines.append(f'[sensor.channels.{name}]\nfrom = "hwmon/chip/temp{k + 1}"\n')
    config = os.path.join(folder, "node.toml")
    with open(config, "w", encoding="ascii") as file:
        file.write("".join(lines))
    data = os.path.join(folder, "data")
    os.mkdir(data)
    store_day(data, names)
    node = Node(sys.executable, os.path.join(folder, "node"), "--config", config, "--name", "fifty", "--every", "1")
    with serving(data, "--node", f"fifty@{node.address}") as (_, port):
        time.sleep(4)
        took_ms = fresh_page_ms(port)
        length = Client(port).get()
        yield f"`/` with {SENSORS} sensors, generated again, median of 15", f"{took_ms:.1f} ms, {length / 1000:.1f} kB"
    node.stop()


# ---------------------------------------------------------------------------------------------------- 200 open pages


def open_pages(folder: str) -> Iterator[tuple[str, str]]:
    """Yield table rows with the cost of open pages for a server that receives ten samples per second.

    Files are created in `folder`.
    """
    node = Node(sys.executable, os.path.join(folder, "node"), "--simulate", "--every", "0.1", "--name", _NODE)
    data = os.path.join(folder, "data")
    os.mkdir(data)
    with serving(data, "--node", node.address) as (server, port):
        time.sleep(5)
        Client(port).get()
        alone, memory = share(server.pid), rss_mib(server.pid)
        listeners = [socket.create_connection(("127.0.0.1", port)) for _ in range(PAGES)]
        for sock in listeners:
            sock.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        time.sleep(2)
        assert all(drain(sock).startswith(b"HTTP/1.1 200") for sock in listeners), "some connections were refused"
        with_them = share(server.pid, listeners)
        more = rss_mib(server.pid) - memory
        time.sleep(2)
        assert all(b"temperature" in drain(sock) for sock in listeners), "some did not receive the event"
        begun = refreshing(port)
        try:
            time.sleep(3)
            whole, most = share(server.pid, listeners), rss_mib(server.pid) - memory
        finally:
            begun.terminate()
            begun.wait(10)
        for sock in listeners:
            sock.close()
    node.stop()
    yield f"{PAGES} open pages at 10 samples/s: memory", f"{more:.1f} MiB in addition"
    result = f"{100 * with_them:.1f} % of a core, {100 * alone:.1f} % without"
    yield f"{PAGES} open pages at 10 samples/s: processor time", result
    result = f"{most:.1f} MiB in addition, {100 * whole:.1f} % of a core"
    yield f"the same, all in the foreground: each requests the page every 5 s and {_CHARTS} charts every 15 s", result


def refreshing(port: int) -> subprocess.Popen[bytes]:
    """Start a process that runs `refresh` against `port`, and return it."""
    code = f"from bench.beside import refresh; refresh({port})"
    return subprocess.Popen([sys.executable, "-c", code])


def refresh(port: int) -> None:
    """Send the requests of PAGES visible pages to `port` over 16 connections, evenly distributed, until ended.

    Each page requests itself every 5 s and its charts every 15 s, as its script does.
    """
    clients, turn = [Client(port) for _ in range(16)], 0
    began_s = time.monotonic()
    while True:
        clients[turn % 16].get()
        at = int(time.time() // 15)
        for chart in ("temperature", "light") if turn % 3 == 0 else ():
            address = f"/chart.svg?node={_NODE}&sensor={chart}&span=10m&size=small&at={at}"
            clients[turn % 16].get(f"GET {address} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        turn += 1
        time.sleep(max(0.0, began_s + turn * 5.0 / PAGES - time.monotonic()))


def share(pid: int, listeners: list[socket.socket] | None = None) -> float:
    """Return the share of a core that process `pid` uses during SECONDS.

    The `listeners` are read during this time, as browsers do.
    """
    before_s, began_s = cpu_s(pid), time.monotonic()
    while time.monotonic() - began_s < SECONDS:
        time.sleep(1.0)
        for sock in listeners or ():
            drain(sock)
    return (cpu_s(pid) - before_s) / (time.monotonic() - began_s)


def drain(sock: socket.socket) -> bytes:
    """Return the bytes that `sock` has received, without waiting."""
    try:
        return sock.recv(1 << 16, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


# ---------------------------------------------------------------------------------------------------- comparison


def wrk(port: int, seconds: int = 8) -> float:
    """Return the requests per second that wrk reaches at `port` in `seconds`, with 8 kept-alive connections."""
    command = ["wrk", "-t1", "-c8", f"-d{seconds}s", "-H", "Accept: text/html", f"http://127.0.0.1:{port}/"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in output, output
    found = re.search(r"Requests/sec:\s+([0-9.]+)", output)
    assert found, output
    return float(found[1])


def page_of(port: int) -> bytes:
    """Return the HTML of the front page at `port`."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n")
        data = b""
        while part := sock.recv(1 << 16):
            data += part
    return data.partition(b"\r\n\r\n")[2]


def beside_flask(folder: str, python: str) -> Iterator[tuple[str, str]]:
    """Yield a table row that compares the front page with Flask on waitress, run by `python` in `folder`."""
    data, port = os.path.join(folder, "data"), free_port()
    with serving(data, "--demo") as (_, ours):
        time.sleep(3)
        for name, content in (("page.html", page_of(ours)), ("app.py", _FLASK.encode())):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        app, page = os.path.join(folder, "app.py"), os.path.join(folder, "page.html")
        flask = subprocess.Popen([python, app, page, str(port)], stderr=subprocess.DEVNULL)
        try:
            time.sleep(3)
            turns = [(wrk(ours), wrk(port)) for _ in range(TURNS)]
        finally:
            flask.terminate()
            flask.wait(10)
    own, other = (statistics.median(one) for one in zip(*turns))
    yield (
        "`/` requested by wrk, 8 persistent connections; Flask on waitress with the same bytes, in turn",
        (f"{own:,.0f} and {other:,.0f} requests/s ({own / other:.1f} times)"),
    )


def beside_nginx(folder: str) -> Iterator[tuple[str, str]]:
    """Yield table rows that compare the download of the log with nginx serving the same file from `folder`."""
    data, port = os.path.join(folder, "data"), free_port()
    os.mkdir(data)
    long_log(data)
    with serving(data, "--demo") as (server, ours):
        time.sleep(3)
        logs = os.path.join(data, "logs")
        config = os.path.join(folder, "nginx.conf")
        with open(config, "w", encoding="ascii") as file:
            file.write(_NGINX.format(folder=folder, port=port, logs=logs))
        os.chmod(folder, 0o755)
        (name,) = [name for name in os.listdir(logs) if name.endswith(".csv")]
        command = ["nginx", "-c", config, "-e", os.path.join(folder, "error.log"), "-g", "user root;"]
        nginx = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)
            download(ours)
            before = rss_mib(server.pid)
            turns = [(rate(ours, "/log.csv"), rate(port, f"/{name}")) for _ in range(TURNS)]
        finally:
            nginx.terminate()
            nginx.wait(10)
        own, other = (statistics.median(one) for one in zip(*turns))
        length = os.path.getsize(os.path.join(logs, name)) / (1 << 30)
        yield (
            f"the log, {length:.2f} GiB; nginx with the same file, in turn",
            (f"{own:.2f} and {other:.2f} GiB/s ({own / other:.2f} times)"),
        )
        yield "memory of the server before and after it", f"{before:.1f} and {rss_mib(server.pid):.1f} MiB"


def rate(port: int, path: str) -> float:
    """Return the speed of one download of `path` from `port`, in GiB per second."""
    sock = socket.create_connection(("127.0.0.1", port))
    began_s, buffer, total = time.monotonic(), bytearray(1 << 20), 0
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    while got := sock.recv_into(buffer):
        total += got
    assert total > 1 << 20, bytes(buffer[:200])
    return total / (time.monotonic() - began_s) / (1 << 30)


def main() -> None:
    """Run the benchmarks and print the table."""
    rows: list[tuple[str, str]] = []
    python = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory() as folder:
        rows += fifty_sensors(folder)
    with tempfile.TemporaryDirectory() as folder:
        rows += open_pages(folder)
    if python and shutil.which("wrk"):
        with tempfile.TemporaryDirectory() as folder:
            rows += beside_flask(folder, python)
    if shutil.which("nginx"):
        with tempfile.TemporaryDirectory() as folder:
            rows += beside_nginx(folder)
    table("web page: large pages, and comparison with other servers", rows)


if __name__ == "__main__":
    main()
